// A whole folder: gradio hands on the names of files only, so each file is named by its folder first, and what is no picture is left out.
document.addEventListener('change', e => {
  if (!e.target.webkitdirectory) return;
  const kept = new DataTransfer(), picture = /\.(SUFFIXES)$/i;           // those that can be opened
  for (const f of e.target.files) {
    const parts = f.webkitRelativePath.split('/');
    if (picture.test(f.name) && !parts.some(p => p.startsWith('.')))
      kept.items.add(new File([f], parts.slice(-2).join('\u29f8'), {type: f.type, lastModified: f.lastModified}));
  }
  e.target.files = kept.files;
}, true);
