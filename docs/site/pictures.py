"""Every picture in docs/img that shows the commands and the page: `make pictures`.

Nothing here is a photograph. A set is drawn, audited, trained on and served, and a browser (Chromium) takes the screenshots. With a folder as its
only argument, what was made there before is taken again."""
import html
import io
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

os.environ |= dict(NO_ALBUMENTATIONS_UPDATE='1', GRADIO_ANALYTICS_ENABLED='False', COLUMNS='120', SILKWORM_DATA='')

import torch
from matplotlib.figure import Figure
from PIL import Image, ImageFilter
from playwright.sync_api import sync_playwright

from silkworm_app.act.lslu import reference_series
from silkworm_app.data.diseases import CLASS_INFO
from silkworm_app.data.sample import draw_larva, picture_grid
from silkworm_app.serve.load import load_bundle
from silkworm_app.serve.page.collect import Store
from silkworm_app.serve.page.server import serve

root = Path(__file__).resolve().parents[2]
out, SIZE, EACH, LARGEST = root/'docs/img', 192, 40, 60_000
browser_path = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')


def small(im, name, width):
    "The picture as a PNG of at most `LARGEST` bytes."
    im = im.convert('RGB')
    for scale, colours in ((1, 128), (1, 64), (1, 32), (.85, 32), (.7, 32)):
        f, w = io.BytesIO(), round(scale*width)
        im.resize((w, round(im.height*w/im.width)), Image.Resampling.LANCZOS).quantize(colours, dither=Image.Dither.NONE).save(f, 'PNG', optimize=True)
        if f.tell() <= LARGEST: break
    (out/f'{name}.png').write_bytes(f.getvalue())
    print(f'docs/img/{name}.png: {f.tell()//1000} KB')


def curve():
    "relu, and what one, two and three steps make of it."
    x = torch.linspace(-1, 5, 601)
    fig = Figure(figsize=(9, 2.1), layout='constrained')
    steps = ((1.2, -.6), (-.8, 2.4), (-1., 1.8))
    for n, ax in enumerate(fig.subplots(1, 4, sharey=True)):
        ax.plot(x, reference_series(x, *torch.tensor(steps[:n] or torch.zeros(0, 2)).T), lw=2, color='#0f766e')
        ax.set_title('relu' if not n else f'{n} step{"s"*(n > 1)}', fontsize=10)
        ax.grid(alpha=.3)
    f = io.BytesIO()
    fig.savefig(f, dpi=90)
    small(Image.open(f), 'curve', 810)


def draw(folder):
    "A set as a farm has it: one folder a class, fewer pictures of the rare ones, and some files that are copies."
    for kind in sorted(CLASS_INFO):
        (folder/kind).mkdir(parents=True)
        n = 6 if kind == 'pebrine' else EACH
        for i in range(n): draw_larva(kind, SIZE, i).save(folder/kind/f'IMG_{i:04}.jpg', quality=92)
        for i in range(n//10): Image.open(folder/kind/f'IMG_{i:04}.jpg').rotate(90).save(folder/kind/f'IMG_{i:04}_edited.jpg', quality=85)


def ran(name, *args):
    "What a command says, as it would stand in a terminal."
    code = f'from silkworm_app.cli import {name} as main; main()'
    r = subprocess.run([sys.executable, '-c', code, *args], capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(root), 'OMP_NUM_THREADS': '1'})
    if r.returncode: sys.exit(r.stdout + r.stderr)
    return r.stdout


def terminal(browser, lines, name, width=900):
    "The text as a picture of a terminal."
    page = browser.new_page(viewport=dict(width=width, height=200))
    page.set_content(f'<pre style="margin:0;padding:14px;background:#1e293b;color:#e2e8f0;font:13px/1.4 monospace;white-space:pre-wrap">{html.escape(lines)}</pre>')
    shot(page, name, width)
    page.close()


def shot(page, name, width, full=True):
    page.wait_for_timeout(900)
    small(Image.open(io.BytesIO(page.screenshot(full_page=full))), name, width)


def prepare(work):
    "Pictures, audit and run, made once in `work`."
    pictures, run = work/'pictures', work/'run'
    if not pictures.exists(): draw(pictures)
    os.chdir(work)
    if not (work/'audit.txt').exists():
        (work/'audit.txt').write_text(ran('data_main', 'audit', 'pictures', '--html', 'audit.html'))
    if not (run/'bundle').exists():
        (work/'train.txt').write_text(ran('train_main', '--data_path', 'pictures', '--output_dir', 'run', '--overwrite', '--input_size', str(SIZE), '--cross_validate', '3'))
    return pictures, run


def each_kind(bundle, work):
    "A new drawing for every kind of answer that the bundle gives; a blurred one for `unlike`."
    net, files = load_bundle(bundle), {}
    (work/'new').mkdir(exist_ok=True)
    tried = [(k, work/'new'/f'{k}_{i}.jpg') for i in range(20) for k in sorted(CLASS_INFO)]
    for k, f in tried: draw_larva(k, SIZE, 1000 + int(f.stem.split('_')[1])).save(f, quality=92)
    for (k, f), d in zip(tried, net.decide([f for _, f in tried])):
        if d.kind != 'unlike' and d.label in (None, k) and d.label != 'healthy': files.setdefault(d.kind, f)
    files['unlike'] = work/'new'/'blurred.jpg'
    draw_larva('healthy', SIZE, 999).filter(ImageFilter.GaussianBlur(5)).save(files['unlike'], quality=92)
    print({k: f.name for k, f in files.items()})
    return files


def open_page(browser, url, phone):
    size = dict(width=390, height=844) if phone else dict(width=1120, height=800)
    page = browser.new_context(viewport=size, is_mobile=phone, has_touch=phone, device_scale_factor=2 if phone else 1, locale='en-US').new_page()
    page.goto(url)
    page.wait_for_selector('#verdict .verdict')
    page.wait_for_load_state('networkidle')
    return page


def ask(browser, url, file, kind, phone=True):
    "The page with the answer to one picture."
    page = open_page(browser, url, phone)
    page.locator('#picture input[type=file]').set_input_files(str(file))
    page.wait_for_selector(f'.verdict.{kind}')
    shot(page, f'answer_{kind}' if phone else 'answer', 390 if phone else 760)
    return page


@contextmanager
def served(bundle, **kwargs):
    server = serve(load_bundle(bundle, **kwargs), port=0, block=False, quiet=True, store=Store(bundle.parent/'collected'), name='silkworm')
    try: yield server.local_url
    finally: server.close()


def the_page(browser, bundle, work):
    "Every kind of answer on a phone, one on a desktop, many pictures, and a correction."
    files = each_kind(bundle, work)
    with served(bundle) as url:
        for kind, file in files.items():
            page = ask(browser, url, file, kind)
            if kind != 'one': continue
            if not page.locator('#keep').is_visible(): page.locator('#collect button').first.click()
            page.locator('#collect').scroll_into_view_if_needed()
            shot(page, 'collect', 390, full=False)
            ask(browser, url, file, kind, phone=False)
        page = open_page(browser, url, False)
        page.get_by_role('tab', name='Many pictures').click()
        page.locator('#files input[type=file]').set_input_files([str(f) for f in files.values()])
        page.wait_for_function(f"document.querySelectorAll('#files tr.file, #files .file').length >= {len(files)}")
        page.locator('#go').click()
        page.wait_for_selector('#table .rows tbody tr img')
        shot(page, 'many', 760)
    with served(bundle, risk=.02) as url: ask(browser, url, files['one'], 'nothing')      # more than its photographs can promise


def main():
    if not browser_path: sys.exit('make pictures needs a Chromium on the PATH')
    out.mkdir(exist_ok=True)
    curve()
    with tempfile.TemporaryDirectory() as tmp:
        work = Path(sys.argv[1] if len(sys.argv) > 1 else tmp).resolve()
        work.mkdir(parents=True, exist_ok=True)
        pictures, run = prepare(work)
        rows = [sorted((pictures/k).iterdir())[:7] for k in sorted(CLASS_INFO)]
        small(picture_grid(rows, [f'{k}/' for k in sorted(CLASS_INFO)]), 'folders', 602)
        with sync_playwright() as p:
            browser = p.chromium.launch(executable_path=browser_path, args=['--no-sandbox'])
            terminal(browser, '$ silkworm-data audit pictures\n' + (work/'audit.txt').read_text(), 'audit')
            page = browser.new_page(viewport=dict(width=900, height=1150))
            page.goto((work/'audit.html').as_uri())
            shot(page, 'audit_page', 760, full=False)
            terminal(browser, '$ make silkworm DATA=pictures\n' + '\n'.join((work/'train.txt').read_text().splitlines()[-30:]), 'train')
            the_page(browser, run/'bundle', work)
            browser.close()


if __name__ == '__main__': main()
