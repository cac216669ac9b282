"""Runs the notebooks, two at a time. Without --check what their cells show is written back into them (`make notebooks`); with --check
nothing is written, and a cell that says something else than what is kept fails (`make test`).

Kept is what a reader should see: pictures up to 60 KB, short texts and tables; nothing of cells marked `#| hide`, nothing under `## Tests`, no
progress bars, no warnings of libraries, no folders of this machine. Compared is what stands before a notebook's first training, numbers where it trains nothing;
`#| varies` marks a cell whose words hang on a clock: kept, not compared. The examples run on drawings, as they are kept."""
import argparse
import base64
import contextlib
import io
import os
import re
import sys
import tempfile
import time
import traceback
from pathlib import Path
from unittest.mock import patch

os.environ |= dict(NO_ALBUMENTATIONS_UPDATE='1', GRADIO_ANALYTICS_ENABLED='False', IN_TEST='1', TQDM_DISABLE='1', COLUMNS='110', OMP_NUM_THREADS='1')

from execnb.shell import CaptureShell
from fastcore.nbio import read_nb, write_nb
from fastcore.parallel import parallel
from fastcore.xtras import working_directory
from nbdev.clean import clean_nb
from nbdev.config import get_config
from nbdev.test import nb_test_cells
from PIL import Image

root = Path(__file__).resolve().parent.parent
LARGEST, LINES, WIDTH = 60_000, 40, 300          # bytes of a picture; lines and columns of a text
TRAINS = re.compile(r'\b(fit|fit_one_cycle|fine_tune|fit_recipe|main)\(')            # a notebook with these: its numbers hang on a training
NUMBER = re.compile(r'[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?: ?%)?')
CLOCK = re.compile(r'[\d.]+(?= times as fast| m?s\b| seconds| minutes)')


def small_png(data):
    "The picture with as few colours and, if need be, as few pixels as it takes to be small."
    raw = base64.b64decode(data)
    im = Image.open(io.BytesIO(raw))
    if len(raw) <= LARGEST//4: return data
    im = im.convert('RGB')
    for scale, colours in ((1, 256), (1, 96), (.8, 96), (.6, 64), (.45, 48), (.3, 32)):
        out = io.BytesIO()
        im.resize([round(scale*s) for s in im.size], Image.Resampling.LANCZOS).quantize(colours, dither=Image.Dither.NONE).save(out, 'PNG', optimize=True)
        if out.tell() <= LARGEST: break
    return base64.b64encode(out.getvalue() if out.tell() < len(raw) else raw).decode()


def short(text):
    "Without what belongs to this machine and this moment; a long text is cut."
    text = re.sub(r'\x1b\[[0-9;]*m', '', ''.join(text))
    text = re.sub(r'[^\n]*\r', '', text).replace(str(root) + '/', '').replace(str(root), '.')
    text = re.sub(r'[^\s\'"(]*/site-packages/', '', text)
    text = re.sub(r'(/[\w.-]+)*/tmp[a-z0-9_]{8}\b', '/tmp/here', text)
    lines = [o if len(o) <= WIDTH else o[:WIDTH - 3] + '...' for o in text.splitlines()]
    if len(lines) > LINES: lines = lines[:LINES] + [f'... and {len(lines) - LINES} lines more']
    return [o + '\n' for o in lines[:-1]] + lines[-1:]


def kept(outputs):
    "The outputs of a cell as they are kept."
    out = []
    for o in outputs:
        if o['output_type'] == 'stream':
            if o['name'] == 'stdout' and (text := short(o['text'])): out.append(dict(name='stdout', output_type='stream', text=text))
            continue
        data = {}
        for kind, v in (o.get('data') or {}).items():
            if kind == 'image/png': data[kind] = small_png(v)
            elif kind == 'image/jpeg': data[kind if len(v)*3/4 <= LARGEST else 'image/png'] = v if len(v)*3/4 <= LARGEST else small_png(v)
            elif kind == 'text/html' and 'progress' not in ''.join(v): data[kind] = short(re.sub(r'<style.*?</style>\s*', '', ''.join(v), flags=re.S))
            elif kind in ('text/plain', 'text/markdown'): data[kind] = short(v)
        if any(k.startswith('image') for k in data): data = {k: v for k, v in data.items() if k.startswith('image')}
        if 'image/png' in data: data.pop('image/jpeg', None)
        plain = ''.join(data.get('text/plain', ''))
        if set(data) == {'text/plain'} and (plain.startswith(('<', '[<', 'Text(')) or not plain): continue
        if data: out.append({k: v for k, v in dict(o, data=data, metadata={}).items()})
    return out


def text_of(outputs):
    "What the outputs say: words and numbers, a picture by its kind."
    for o in outputs:
        if o['output_type'] == 'stream': yield ''.join(o['text'])
        else: yield next((f'[{k}]' for k in o['data'] if k.startswith('image')), None) or ''.join(o['data'].get('text/plain', ''))


def alike(a, b, numbers=True):
    "The same words, the same whole numbers; other numbers to a twentieth; rounding errors and times whatever they are."
    a, b = (CLOCK.sub('', re.sub(r'(?<![.\w])[0-9a-f]{16,}\b', '', o)) for o in (a, b))   # nor sums of files; digits of a number are none
    if NUMBER.sub('#', ' '.join(a.split())) != NUMBER.sub('#', ' '.join(b.split())): return False
    for x, y in zip(NUMBER.findall(a), NUMBER.findall(b)) if numbers else ():
        if x == y: continue
        if not set('.e%') & set(x + y): return False
        x, y = (float(o.rstrip(' %'))/(100 if '%' in o else 1) for o in (x, y))
        if not (max(abs(x), abs(y)) < 1e-3 or abs(x - y) <= .05*max(abs(x), abs(y)) + .011): return False
    return True


def differences(was, now, numbers):
    """The cells that say something else than what is kept; cells without kept outputs are not looked at, nor notebooks that show photographs here
    and drawings there."""
    if os.environ.get('SILKWORM_DATA') and any('SILKWORM_DATA' in c.source for c in was.cells if c.cell_type == 'code'): return
    shown = {c.id: c for c in now.cells}
    for c in was.cells:
        if c.cell_type == 'code' and TRAINS.search(c.source) and '#| export' not in c.source: return   # what follows may hang on the training
        if c.cell_type != 'code' or not c.get('outputs') or '#| varies' in c.source: continue
        a, b = ('\n'.join(text_of(o.outputs)) for o in (c, shown[c.id]))
        if not alike(a, b, numbers): yield c.id, a, b


def run_cells(nb, path, skip_flags):
    "Run the cells of `nb` that nbdev-test would run; raises what a cell raises, after the shell has told where."
    keep = {c.id for c in nb_test_cells(path, skip_flags)}
    main = sys.modules['__main__']                                    # the shell takes its place, and the next notebook asks for ours
    from timm.models import _registry
    import silkworm_app.act.vanillanet  # noqa: F401 its models are registered; what a notebook registers in their place ends with it
    shell = CaptureShell(path, mpl_format='png')
    try:
        with patch.dict(_registry._model_entrypoints), working_directory(path.parent): shell.run_all(nb, exc_stop=True, preproc=lambda c: c.id not in keep, cell_timeout=600)
    except Exception:
        raise RuntimeError(shell.prettytb(fname=path) or traceback.format_exc()) from None
    finally:
        shell.close()
        sys.modules['__main__'] = main


@patch.dict(os.environ)                                               # what a notebook sets there ends with it
def run(path, check, skip_flags):
    "`(sentence of what is wrong or '', seconds)`"
    start, was, nb = time.time(), read_nb(path), read_nb(path)
    if path.parent.name == 'examples': os.environ.pop('SILKWORM_DATA', None)
    try: run_cells(nb, path, skip_flags)
    except Exception as e: return str(e)[-3000:], time.time() - start
    tests = False
    for c in nb.cells:
        if c.cell_type == 'markdown' and re.match(r'#+ Tests?\s*$', c.source): tests = True
        elif c.cell_type == 'markdown' and re.match(r'##? ', c.source): tests = False
        if c.cell_type == 'code': c.outputs = [] if tests or re.search(r'^#\|\s*(hide|export)', c.source, re.M) else kept(c.get('outputs') or [])
    clean_nb(nb)
    if check:
        text = '\n'.join(f'cell {i} keeps\n{a}\nbut says\n{b}' for i, a, b in differences(was, nb, not any(TRAINS.search(c.source) for c in was.cells if c.cell_type == 'code')))
        return text and f'{path.relative_to(root)}: make notebooks, or mark the cell with #| varies\n{text}', time.time() - start
    work = path.with_name(f'.{path.name}.tmp')
    with contextlib.ExitStack() as undo:
        undo.callback(work.unlink, missing_ok=True)
        write_nb(nb, work)
        os.replace(work, path)
    return '', time.time() - start


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('paths', nargs='*', help='notebooks or folders; default: all')
    p.add_argument('--check', action='store_true', help='write nothing; fail where a cell says something else than what is kept')
    p.add_argument('--workers', type=int, default=2, help='notebooks at a time')
    args = p.parse_args()
    if os.environ.get('PYTHONHASHSEED') != '0':                       # a set is then shown in the same order every time
        os.environ['PYTHONHASHSEED'] = '0'
        os.execv(sys.executable, [sys.executable, *sys.argv])
    if not args.check: os.environ.pop('SILKWORM_DATA', None)          # what is kept shows drawings, never photographs
    os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [str(root), os.environ.get('PYTHONPATH')]))
    sys.path.insert(0, str(root))
    given = [Path(o).resolve() for o in args.paths or [root/'nbs']]
    found = {f for g in given for f in (g.rglob('*.ipynb') if g.is_dir() else [g]) if '.ipynb_checkpoints' not in f.parts}
    files = sorted(found, key=lambda f: (not TRAINS.search(f.read_text(encoding='utf-8')), f))     # what takes long first: none waits for the other at the end
    flags = get_config(root).tst_flags
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as tempfile.tempdir:     # where notebooks make their folders, and leave them
        os.environ['TMPDIR'] = tempfile.tempdir
        results = parallel(run, files, check=args.check, skip_flags=flags.split() if isinstance(flags, str) else flags,
                           n_workers=0 if len(files) == 1 else args.workers, pause=.01)
    for f, (_, seconds) in sorted(zip(files, results), key=lambda o: -o[1][1]): print(f'{f.relative_to(root)}: {seconds:.0f} s')
    bad = {f: why for f, (why, _) in zip(files, results) if why}
    for f, why in bad.items(): print(f'\n=== {f.relative_to(root)}\n{why}', file=sys.stderr)
    if bad: print('\nnotebooks that failed: ' + ', '.join(str(f.relative_to(root)) for f in bad), file=sys.stderr)
    return bool(bad)


if __name__ == '__main__': sys.exit(main())
