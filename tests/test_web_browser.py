"""The page in a real browser: each tab, a failure, a phone, and no request to anywhere else.

SILKWORM_SCREENSHOTS=1 writes the screenshots of the README and docs/web.md into docs/img (else they go to a temporary folder);
SILKWORM_BUNDLE=DIR takes a trained bundle instead of one with random weights."""
import io
import os
import shutil
import threading
from pathlib import Path

import httpx
import pytest
from PIL import Image

from web_tools import Colours, as_file, call, random_bundle, serving, upload

documented = {'desktop_identify', 'desktop_model', 'phone_many', 'phone_cant_tell'}        # the pictures in docs/img
root = Path(__file__).resolve().parent.parent
chromium = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
pytest.importorskip('playwright')
pytestmark = pytest.mark.skipif(chromium is None, reason='needs a chromium on the PATH')


@pytest.fixture(scope='module')
def shots(tmp_path_factory):
    folder = root / 'docs/img' if os.environ.get('SILKWORM_SCREENSHOTS') else tmp_path_factory.mktemp('shots')
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    from silkworm_app.data import CLASS_INFO, draw_larva
    folder = tmp_path_factory.mktemp('pictures')
    for i, k in enumerate(CLASS_INFO): draw_larva(k, 256, 7 * i + 3).save(folder / f'{k}.jpg', quality=92)
    (folder / 'broken.jpg').write_bytes((folder / 'healthy.jpg').read_bytes()[:900])
    Image.new('RGB', (300, 200), (120, 120, 120)).save(folder / 'blank.png')
    return folder


@pytest.fixture(scope='module')
def predictor(tmp_path_factory):
    from silkworm_app.bundle import load_bundle
    bundle = os.environ.get('SILKWORM_BUNDLE')
    if not bundle:
        metrics = dict(test=dict(accuracy=.9, n=50, classes=['flacherie', 'grasserie', 'healthy', 'muscardine', 'pebrine'], confusion_matrix=[[10 if i == j else 0 for j in range(5)] for i in range(5)], leak=dict(test_seen_in_train=.97)))
        bundle = random_bundle(tmp_path_factory.mktemp('web') / 'bundle', metrics=metrics)
    return load_bundle(bundle)


@pytest.fixture(scope='module')
def demo(predictor, pictures):
    with serving(predictor, examples=sorted(pictures.glob('*e.jpg'))) as demo: yield demo


@pytest.fixture(scope='module')
def browser():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=['--no-sandbox', '--use-fake-device-for-media-stream', '--use-fake-ui-for-media-stream'])
        yield browser
        browser.close()


@pytest.fixture(params=['desktop', 'phone'])
def page(request, browser, demo):
    "A page that fails the test when it asks another host for anything or reports a script error."
    phone = request.param == 'phone'
    context = browser.new_context(viewport=dict(width=390, height=844) if phone else dict(width=1280, height=860), device_scale_factor=2 if phone else 1, is_mobile=phone, has_touch=phone, permissions=['camera', 'clipboard-read', 'clipboard-write'])
    page, asked, errors = context.new_page(), [], []
    page.kind = request.param
    page.on('request', lambda r: asked.append(r.url))
    page.on('pageerror', lambda e: errors.append(str(e)))
    page.goto(demo.local_url)
    page.wait_for_selector('#verdict .verdict')
    yield page
    context.close()
    elsewhere = [u for u in asked if not u.startswith((demo.local_url, 'data:', f'blob:{demo.local_url}'))]
    assert not elsewhere and not errors, (elsewhere, errors)


def fits(page): return page.evaluate('document.documentElement.scrollWidth') <= page.viewport_size['width']


def give(page, *files):
    "Put a file on the Identify tab."
    clear = page.locator('#picture').get_by_role('button', name='Remove Image')
    if clear.count(): clear.first.click()
    page.locator('#picture input[type=file]').set_input_files([str(f) for f in files])


def shoot(page, shots, name):
    page.wait_for_timeout(900)                  # fonts, fades
    im = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert('RGB')
    if page.kind == 'phone': im = im.resize((im.width // 2, im.height // 2), Image.Resampling.LANCZOS)
    if shots.name != 'img' or f'{page.kind}_{name}' in documented: im.save(shots / f'{page.kind}_{name}.png', optimize=True)


def test_identify(page, predictor, pictures, shots):
    own = Path(os.environ.get('SILKWORM_BUNDLE') or pictures)/'examples'            # a trained net may know none of the drawings, but some of its own
    known = max([*pictures.glob('*e.jpg'), *own.glob('*.jpg')], key=lambda f: (d := predictor.decide([f])[0]).prob * (d.label is not None))
    give(page, known)
    page.wait_for_selector('.verdict.ok')
    page.wait_for_selector('#probabilities .label, #probabilities dt', timeout=10_000)
    page.wait_for_selector('#looked img')
    assert page.locator('#probabilities').inner_text().count('%') >= 5
    page.wait_for_function("document.querySelector('#looked img').naturalWidth > 100")
    assert fits(page)
    shoot(page, shots, 'identify')


def test_blank_picture_gets_no_answer(page, pictures, shots):
    give(page, pictures / 'blank.png')
    page.wait_for_selector('.verdict.unsure')
    text = page.locator('.verdict').inner_text()
    assert 'I can’t tell' in text and 'blank' in text
    assert fits(page)
    if page.kind == 'phone': shoot(page, shots, 'cant_tell')


def test_broken_file_gets_a_sentence_and_the_next_one_works(page, pictures):
    give(page, pictures / 'broken.jpg')
    page.wait_for_selector('.verdict.bad')
    assert 'broken.jpg' in page.locator('.verdict').inner_text()
    assert not page.locator('#looked img').is_visible()
    give(page, pictures / 'healthy.jpg')
    page.wait_for_selector('.verdict.ok, .verdict.unsure')


def test_a_file_name_is_never_code(page, pictures, tmp_path):
    "Neither as markup nor as a template of gradio's HTML component."
    names = ['<img src=x onerror=document.title=1>.jpg', '${document.title=2}.jpg', '{{document.title=3}}.jpg']
    for n in names: (tmp_path / n).write_bytes(b'nothing')
    title = page.title()
    give(page, tmp_path / names[1])
    page.wait_for_selector('.verdict.bad')
    page.get_by_role('tab', name='Many pictures').click()
    page.locator('#files input[type=file]').set_input_files([str(tmp_path / n) for n in names])
    page.wait_for_function("document.querySelectorAll('#files tr.file, #files .file').length >= 3")
    page.locator('#go').click()
    page.wait_for_selector('#table tbody tr')
    assert page.locator('#table tbody tr').count() == 3 and page.locator('#table tbody img').count() == 0
    assert page.title() == title


def test_camera(page):
    page.locator('#picture').get_by_role('button', name='Capture from camera').or_(page.locator('#picture [aria-label*=amera], #picture [aria-label*=ebcam]')).first.click()
    page.locator('#picture').get_by_text('Click to Access Webcam').click()
    page.wait_for_function("[...document.querySelectorAll('#picture video')].some(v => v.videoWidth > 0)")
    page.locator('#picture [aria-label="capture photo"]').click()
    page.wait_for_selector('.verdict.ok, .verdict.unsure')


def test_paste(page):
    page.evaluate("""async () => {
        const c = Object.assign(document.createElement('canvas'), {width: 200, height: 150}), x = c.getContext('2d');
        for (let i = 0; i < 30; i++) { x.fillStyle = `hsl(${i * 37} 60% 50%)`; x.fillRect(i * 31 % 200, i * 17 % 150, 60, 40); }
        await navigator.clipboard.write([new ClipboardItem({'image/png': await new Promise(done => c.toBlob(done))})]); }""")
    page.locator('#picture [aria-label*=lipboard], #picture [aria-label*=aste]').first.click()
    page.wait_for_selector('.verdict.ok, .verdict.unsure')


def test_example_click_answers(page):
    page.locator('#examples button img, #examples img, .gallery img').first.click()
    page.wait_for_selector('.verdict.ok, .verdict.unsure')


def test_many_pictures(page, pictures, shots, tmp_path):
    page.get_by_role('tab', name='Many pictures').click()
    files = sorted(pictures.iterdir())
    page.locator('#files input[type=file]').set_input_files([str(f) for f in files])
    page.wait_for_function(f"document.querySelectorAll('#files tr.file, #files .file').length >= {len(files)}")
    page.locator('#go').click()
    page.wait_for_selector('#table tbody tr img')
    summary = page.locator('#summary').inner_text()
    assert summary.startswith(f'{len(files)} pictures') and '1 not readable' in summary
    with page.expect_download() as got: page.locator('#csv').click()
    got.value.save_as(tmp_path / 'a.csv')
    lines = (tmp_path / 'a.csv').read_text().splitlines()
    assert len(lines) == len(files) + 1 and lines[0].startswith('file,label,can_tell,probability')
    assert fits(page)
    shoot(page, shots, 'many')
    column = lambda n: page.locator(f'#table tbody td:nth-child({n})').all_inner_texts()
    def sort(name): page.locator('#table th button', has_text=name).click()
    names = sorted(f.name for f in files)
    for _ in range(2):                          # again and again: up, down
        sort('File')
        assert column(2) == names
        sort('File')
        assert column(2) == names[::-1]
    sort('Probability')
    numbers = [float(p.rstrip('%')) for p in column(4) if p]
    assert numbers == sorted(numbers) and len(numbers) == len(files) - 1 and column(4)[-1] == ''
    assert page.locator('#table th[aria-sort=ascending]').inner_text().startswith('Probability')


def test_hundreds_of_pictures_show_progress(page, pictures, tmp_path):
    for i in range(120): shutil.copy(pictures / 'healthy.jpg', tmp_path / f'{i:03}.jpg')
    page.get_by_role('tab', name='Many pictures').click()
    page.locator('#files input[type=file]').set_input_files([str(f) for f in sorted(tmp_path.iterdir())])
    page.wait_for_function("document.querySelectorAll('#files tr.file, #files .file').length >= 120")
    page.evaluate("window.told = []; new MutationObserver(() => { const m = document.body.innerText.match(/\\d+\\/120 pictures/); if (m) told.push(m[0]); }).observe(document.body, {subtree: true, childList: true, characterData: true})")
    page.locator('#go').click()
    page.wait_for_function("document.querySelectorAll('#table tbody tr').length === 120")
    told = sorted({int(t.split('/')[0]) for t in page.evaluate('told')})
    assert len(told) > 2 and page.locator('#table tbody img').count() == 120, told


def test_model_tab(page, shots):
    page.get_by_role('tab', name='The model').click()
    page.wait_for_selector('#model .tiles')
    text = page.locator('#model').inner_text()
    for part in ('Confusion matrix', 'Learned activation curves', 'Trained net against fused net', 'ms'): assert part in text, part
    page.wait_for_function("[...document.querySelectorAll('#model img.fig')].every(i => i.naturalWidth > 100)")
    assert fits(page)
    shoot(page, shots, 'model')


def test_full_queue_is_told_on_the_page(browser, pictures):
    gate = threading.Event()
    class Gated(Colours):
        def decide(self, items):
            gate.wait(60)
            return super().decide(items)
    gate.set()
    with serving(Gated(), workers=1, queue_size=1) as demo:
        context = browser.new_context()
        page = context.new_page()
        page.goto(demo.local_url)
        page.wait_for_selector('#picture input[type=file]', state='attached')
        gate.clear()
        answers = []
        def ask():
            with httpx.Client(base_url=demo.local_url.rstrip('/'), timeout=60) as http: answers.append(call(http, 'predict', [as_file(upload(http, (pictures / 'healthy.jpg').read_bytes()).json()[0])])[0])
        threads = []
        while 'refused' not in answers:         # one is computed, one waits, one is refused
            threads.append(threading.Thread(target=ask))
            threads[-1].start()
            threads[-1].join(.5)
        give(page, pictures / 'grasserie.jpg')
        page.wait_for_selector('text=/currently busy/')
        gate.set()
        for t in threads: t.join()
        assert set(answers) == {'refused', 'complete'}
        give(page, pictures / 'pebrine.jpg')
        page.wait_for_selector('.verdict.ok, .verdict.unsure')
        context.close()
