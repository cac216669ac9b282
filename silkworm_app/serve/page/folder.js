// gradio asks for the type of a file, which a browser doesn't know of every picture (HEIC), and hands on its name only: so each picture is
// given its type, and of a whole folder each file is named by its folder, and what is no picture is left out.
const picture = /\.(SUFFIXES)$/i;                                          // those that can be opened
const known = f => f.type.startsWith('image/') || !picture.test(f.name);
const typed = (f, name = f.name) => new File([f], name,
  {type: known(f) ? f.type : `image/${f.name.split('.').pop().toLowerCase()}`, lastModified: f.lastModified});
const list = files => { const kept = new DataTransfer(); files.forEach(f => kept.items.add(f)); return kept.files; };
document.addEventListener('change', e => {
  if (e.target.type !== 'file') return;
  const files = [...e.target.files];
  if (e.target.webkitdirectory) {
    const parts = f => f.webkitRelativePath.split('/');
    const own = files.filter(f => picture.test(f.name) && !parts(f).some(p => p.startsWith('.')));
    e.target.files = list(own.map(f => typed(f, parts(f).slice(-2).join('\u29f8'))));
  } else if (!files.every(known)) e.target.files = list(files.map(f => typed(f)));
}, true);
document.addEventListener('drop', e => {
  const files = [...e.dataTransfer?.files ?? []], input = e.target.closest('#picture, #files')?.querySelector('input[type=file]');
  if (!input || files.every(known)) return;
  e.preventDefault();                                                      // what was dropped can't be changed, what was chosen can
  e.stopPropagation();
  e.target.dispatchEvent(new DragEvent('dragleave', {bubbles: true}));
  input.files = list(files.map(f => typed(f)).slice(0, input.multiple ? files.length : 1));
  input.dispatchEvent(new Event('change', {bubbles: true}));
}, true);
