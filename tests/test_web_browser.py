"""The page in a real browser: each tab, a failure, a phone, and no request to anywhere else.

SILKWORM_BUNDLE=DIR takes a trained bundle instead of one with random weights."""
import os
import shutil
import threading
from pathlib import Path
from unittest.mock import patch

import httpx
import numpy as np
import pytest
from PIL import Image

from web_tools import Colours, Keeper, as_file, call, random_bundle, serving, upload

chromium = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
pytest.importorskip('playwright')
pytestmark = pytest.mark.skipif(chromium is None, reason='needs a chromium on the PATH')


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    from silkworm_app.data.diseases import CLASS_INFO
    from silkworm_app.data.sample import draw_larva
    folder = tmp_path_factory.mktemp('pictures')
    for i, k in enumerate(CLASS_INFO): draw_larva(k, 256, 7 * i + 3).save(folder / f'{k}.jpg', quality=92)
    (folder / 'broken.jpg').write_bytes((folder / 'healthy.jpg').read_bytes()[:900])
    Image.new('RGB', (300, 200), (120, 120, 120)).save(folder / 'blank.png')
    return folder


@pytest.fixture(scope='module')
def predictor(tmp_path_factory):
    from silkworm_app.serve.load import load_bundle
    bundle = os.environ.get('SILKWORM_BUNDLE')
    if not bundle:
        metrics = dict(test=dict(accuracy=.9, n=50, classes=['flacherie', 'grasserie', 'healthy', 'muscardine', 'pebrine'], confusion_matrix=[[10 if i == j else 0 for j in range(5)] for i in range(5)], leak=dict(test_seen_in_train=.97)))
        bundle = random_bundle(tmp_path_factory.mktemp('web') / 'bundle', metrics=metrics)
    return load_bundle(bundle)


@pytest.fixture(scope='module')
def demo(predictor, pictures):
    with serving(predictor, examples=[(p, p.stem) for p in sorted(pictures.glob('*e.jpg'))]) as demo: yield demo


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
    page.wait_for_load_state('networkidle')         # greeted in its language
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


def test_identify(page, predictor, pictures):
    own = Path(os.environ.get('SILKWORM_BUNDLE') or pictures)/'examples'            # a trained net may know none of the drawings, but some of its own
    known = max([*pictures.glob('*e.jpg'), *own.glob('*.jpg')], key=lambda f: (d := predictor.decide([f])[0]).prob * (d.label is not None))
    spoken = page.evaluate_handle("""() => { const live = document.querySelector('[aria-live].sr-only'), said = [];
        if (!live) return ['Done'];             // an older gradio, which says nothing
        new MutationObserver(() => live.textContent && said.push(live.textContent)).observe(live, {subtree: true, childList: true, characterData: true});
        return said; }""")
    give(page, known)
    page.wait_for_selector('.verdict.one')
    page.wait_for_function("said => said.length && said.at(-1) !== 'Loading'", arg=spoken)
    assert spoken.json_value()[-1] == 'Done'
    assert not page.locator('#reasons').is_visible()            # the evidence waits behind "Why?"
    page.locator('#why button').first.click()
    page.wait_for_selector('#looked img')
    assert page.locator('#reasons').inner_text().count('%') >= 5
    page.wait_for_function("document.querySelector('#looked img').naturalWidth > 100")
    assert fits(page)


def test_blank_picture_gets_no_answer(page, pictures):
    give(page, pictures / 'blank.png')
    page.wait_for_selector('.verdict.unlike')
    text = page.locator('.verdict').inner_text()
    assert 'like nothing I was trained on' in text and 'blank' in text and '%' not in text
    assert fits(page)


def test_broken_file_gets_a_sentence_and_the_next_one_works(page, pictures):
    give(page, pictures / 'broken.jpg')
    page.wait_for_selector('.verdict.bad')
    assert 'broken.jpg' in page.locator('.verdict').inner_text()
    assert not page.locator('#looked img').is_visible()
    give(page, pictures / 'healthy.jpg')
    page.wait_for_selector('.verdict.one, .verdict.several, .verdict.nothing, .verdict.unlike')


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
    page.wait_for_selector('#table .rows tbody tr')
    assert page.locator('#table .rows tbody tr').count() == 3 and page.locator('#table .rows tbody img').count() == 0
    assert page.title() == title


def test_camera(page):
    page.locator('#picture').get_by_role('button', name='Capture from camera').or_(page.locator('#picture [aria-label*=amera], #picture [aria-label*=ebcam]')).first.click()
    page.locator('#picture').get_by_text('Click to Access Webcam').click()
    page.wait_for_function("[...document.querySelectorAll('#picture video')].some(v => v.videoWidth > 0)")
    page.locator('#picture [aria-label="capture photo"]').click()
    page.wait_for_selector('.verdict.one, .verdict.several, .verdict.nothing, .verdict.unlike')


def test_paste(page):
    page.evaluate("""async () => {
        const c = Object.assign(document.createElement('canvas'), {width: 200, height: 150}), x = c.getContext('2d');
        for (let i = 0; i < 30; i++) { x.fillStyle = `hsl(${i * 37} 60% 50%)`; x.fillRect(i * 31 % 200, i * 17 % 150, 60, 40); }
        await navigator.clipboard.write([new ClipboardItem({'image/png': await new Promise(done => c.toBlob(done))})]); }""")
    page.locator('#picture [aria-label*=lipboard], #picture [aria-label*=aste]').first.click()
    page.wait_for_selector('.verdict.one, .verdict.several, .verdict.nothing, .verdict.unlike')


def test_example_click_answers(page):
    page.wait_for_selector('#examples .caption-label')
    assert page.locator('#examples .caption-label').all_inner_texts()[0] == 'Flacherie'
    page.locator('#examples img').first.click()
    page.wait_for_selector('.verdict.one, .verdict.several, .verdict.nothing, .verdict.unlike')


def test_many_pictures(page, pictures, tmp_path):
    page.get_by_role('tab', name='Many pictures').click()
    files = sorted(pictures.iterdir())
    page.locator('#files input[type=file]').set_input_files([str(f) for f in files])
    page.wait_for_function(f"document.querySelectorAll('#files tr.file, #files .file').length >= {len(files)}")
    page.locator('#go').click()
    page.wait_for_selector('#table .rows tbody tr img')
    report = page.locator('#report').inner_text()
    counts = dict(zip(*[page.locator(f'#report .counts tr td:nth-child({k})').all_inner_texts() for k in (1, 2)]))
    assert report.startswith(f'{len(files)} pictures') and counts['Not readable'] == '1' and counts['Together'] == str(len(files))
    with page.expect_download() as got: page.locator('#csv').click()
    got.value.save_as(tmp_path / 'a.csv')
    assert (tmp_path / 'a.csv').read_bytes()[:3] == b'\xef\xbb\xbf'          # Excel knows by this that it is UTF-8
    lines = (tmp_path / 'a.csv').read_text(encoding='utf-8-sig').splitlines()
    assert len(lines) == len(files) + 1 and lines[0].startswith('file,folder,day,kind,label,probability,labels')
    assert fits(page)
    column = lambda n: page.locator(f'#table .rows tbody td:nth-child({n})').all_inner_texts()
    def sort(name): page.locator('#table .rows th button', has_text=name).click()
    names = sorted(f.name for f in files)
    for _ in range(2):                          # again and again: up, down
        sort('File')
        assert column(2) == names
        sort('File')
        assert column(2) == names[::-1]
    sort('Probability')
    numbers = [float(p.rstrip('%')) for p in column(4) if p]
    assert numbers == sorted(numbers) and 0 < len(numbers) < len(files) and column(4)[-1] == ''          # a number stands beside one class only
    assert page.locator('#table .rows th[aria-sort=ascending]').inner_text().startswith('Probability')


def test_hundreds_of_pictures_show_progress(page, pictures, tmp_path):
    for i in range(120): shutil.copy(pictures / 'healthy.jpg', tmp_path / f'{i:03}.jpg')
    page.get_by_role('tab', name='Many pictures').click()
    page.locator('#files input[type=file]').set_input_files([str(f) for f in sorted(tmp_path.iterdir())])
    page.wait_for_function("document.querySelectorAll('#files tr.file, #files .file').length >= 120")
    page.evaluate("window.told = []; new MutationObserver(() => { const m = document.body.innerText.match(/\\d+\\/120 pictures/); if (m) told.push(m[0]); }).observe(document.body, {subtree: true, childList: true, characterData: true})")
    page.locator('#go').click()
    page.wait_for_function("document.querySelectorAll('#table .rows tbody tr').length === 120")
    told = sorted({int(t.split('/')[0]) for t in page.evaluate('told')})
    assert len(told) > 2 and page.locator('#table .rows tbody img').count() == 120, told


def test_model_tab(page):
    page.get_by_role('tab', name='The model').click()
    page.wait_for_selector('#model .model')
    text = page.locator('#model').inner_text()
    for part in ('How often it answers', 'Guessing', 'Class by class', 'What to collect next'): assert part in text, part
    page.locator('#engineers button').first.click()
    page.wait_for_selector('#engineers svg polyline')
    text = page.locator('#engineers').inner_text()
    for part in ('Confusion matrix', 'Learned activation curves', 'Trained net against fused net', 'ms'): assert part in text, part
    assert fits(page)


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
        page.wait_for_selector('.verdict.one, .verdict.several, .verdict.nothing, .verdict.unlike')
        context.close()


def visit(browser, url, locale='en-US', phone=True):
    context = browser.new_context(locale=locale, viewport=dict(width=390, height=844) if phone else dict(width=1280, height=860), is_mobile=phone, has_touch=phone)
    page = context.new_page()
    page.kind = 'phone' if phone else 'desktop'
    page.goto(url)
    page.wait_for_selector('#verdict .verdict')
    page.wait_for_load_state('networkidle')
    return page


@pytest.fixture(scope='module')
def colours(tmp_path_factory):
    "Pictures to which `Keeper` gives each kind of answer."
    folder, rng = tmp_path_factory.mktemp('colours'), np.random.default_rng(0)
    for kind, c in dict(one=(200, 60, 60), several=(60, 180, 60), nothing=(60, 60, 190), unlike=(20, 20, 20)).items():
        Image.fromarray((np.array(c) + rng.integers(-15, 15, (200, 300, 3))).astype(np.uint8)).save(folder / f'IMG-20260714-{kind}.jpg')
    return folder


def test_four_kinds_of_answer_on_a_phone(browser, colours):
    say = dict(one=['Grasserie', 'Healthy is excluded', 'can’t be ruled out', 'Of 52 such answers', 'tongs'], several=['Grasserie or Muscardine', 'set this tray apart'],
        nothing=['I can’t tell', 'No other photograph helps', 'Pebrine 6 more'], unlike=['like nothing', 'blurred', 'Hold still'])
    with serving(Keeper()) as demo:
        for kind, parts in say.items():
            page = visit(browser, demo.local_url)
            give(page, next(colours.glob(f'*{kind}.jpg')))
            page.wait_for_selector(f'.verdict.{kind}')
            page.wait_for_timeout(300)
            text = page.locator('#verdict').inner_text() + (page.locator('#care').inner_text() if kind == 'one' else '')
            for p in parts: assert p in text, (kind, p, text)
            assert 'Hold still' not in text or kind == 'unlike'        # no camera helps where the model is the reason
            assert fits(page) and not page.locator('#collect').count()
            page.context.close()


@pytest.mark.parametrize('locale,label,answer,why', [('zh-CN', '多张照片', '脓病', '不能排除'), ('hi-IN', 'कई तस्वीरें', 'ग्रैसरी', 'संभावना बनी रहती है'), ('de-DE', 'Many pictures', 'Grasserie', 'can’t be ruled out')])
def test_language_of_the_browser(browser, colours, locale, label, answer, why):
    with serving(Keeper(), examples=[(next(colours.glob('*one.jpg')), 'grasserie')]) as demo:
        page = visit(browser, demo.local_url, locale)
        page.get_by_role('tab', name=label).wait_for()
        assert page.locator('#examples .caption-label').inner_text() == answer
        give(page, next(colours.glob('*one.jpg')))
        page.wait_for_selector('.verdict.one')
        text = page.locator('#verdict').inner_text()
        assert answer in text and why in text and fits(page)
        page.context.close()


def test_lang_wins_over_the_browser(browser, colours):
    with serving(Keeper(), lang='zh') as demo:
        page = visit(browser, demo.local_url, 'hi-IN')
        page.get_by_role('tab', name='多张照片').wait_for()
        assert '蚕病检查' in page.locator('#head').inner_text()
        page.context.close()


def test_keepers_make_it_better(browser, colours, tmp_path):
    "Confirm with consent; not without; never the same twice, nor from a second page at the same time; a full disk changes nothing."
    from silkworm_app.serve.page.collect import Store, UNSURE
    folder = tmp_path / 'kept'
    files = lambda: sorted(str(p.relative_to(folder)).split('/')[0] for p in folder.rglob('*.jpg'))
    def press(page, name, said, consent=True):
        give(page, next(colours.glob(f'*{name}.jpg')))
        page.wait_for_selector(f'.verdict.{name}')
        page.wait_for_timeout(300)
        if not page.locator('#keep').is_visible(): page.locator('#collect button').first.click()
        page.locator('#said').get_by_text(said, exact=True).click()
        if consent: page.locator('#consent input').check()
        page.locator('#keep').click()
    def told(page, text): page.wait_for_function('t => document.querySelector("#kept").innerText.includes(t)', arg=text)
    with serving(Keeper(), store=Store(folder), name='demo') as demo:
        page, other = (visit(browser, demo.local_url, phone=phone) for phone in (True, False))
        press(page, 'one', 'Muscardine', consent=False)
        told(page, 'tick the box')
        assert files() == []
        press(page, 'one', 'Muscardine')
        press(other, 'nothing', 'Not sure')
        told(page, 'kept as: Muscardine')
        told(other, 'kept as: Not sure')
        press(other, 'one', 'Healthy')
        told(other, 'here already (as: Muscardine)')
        assert files() == [UNSURE, 'muscardine']
        with patch('os.fsync', side_effect=OSError(28, 'No space left on device')):
            press(page, 'several', 'Grasserie')
            told(page, 'the disk is full or a file limit is reached')
        assert files() == [UNSURE, 'muscardine'] and fits(page)
        for p in (page, other): p.context.close()
    rows = Store(folder).rows()
    assert [(r['said'], r['answer'], r['model']) for r in sorted(rows, key=lambda r: r['said'])] == [(UNSURE, '', 'demo'), ('muscardine', 'grasserie', 'demo')]


def test_paper_shows_the_report_alone(browser, colours):
    with serving(Keeper()) as demo:
        page = visit(browser, demo.local_url, phone=False)
        page.get_by_role('tab', name='Many pictures').click()
        page.locator('#files input[type=file]').set_input_files([str(p) for p in sorted(colours.iterdir())])
        page.wait_for_function("document.querySelectorAll('#files tr.file, #files .file').length >= 4")
        page.locator('#go').click()
        page.wait_for_selector('#table .rows tbody tr img')
        assert 'Sick, or possibly sick: 2 of 2' in page.locator('#report').inner_text() and '2026-07-14' in page.locator('#report .days').inner_text()
        page.emulate_media(media='print')
        assert page.locator('#report').is_visible() and not any(page.locator(o).is_visible() for o in ('#files', '#go', '#csv', '#print'))
        page.context.close()


def test_a_whole_folder_is_counted_by_its_folders(browser, colours, tmp_path):
    for tray, kinds in {'tray 1': ('one', 'several'), 'tray 2': ('one',)}.items():
        (tmp_path / 'trays' / tray).mkdir(parents=True)
        for kind in kinds: shutil.copy(next(colours.glob(f'*{kind}.jpg')), tmp_path / 'trays' / tray)
    for f in (tmp_path / 'trays/tray 2').iterdir(): f.rename(f.with_suffix('.jfif'))
    (tmp_path / 'trays/tray 2/notes.txt').write_text('no picture')
    with serving(Keeper()) as demo:
        page = visit(browser, demo.local_url, phone=False)
        page.get_by_role('tab', name='Many pictures').click()
        page.locator('input[type=file][webkitdirectory]').set_input_files(str(tmp_path / 'trays'))
        page.wait_for_function("document.querySelectorAll('#files tr.file, #files .file').length >= 3")
        page.locator('#go').click()
        page.wait_for_selector('#table .rows tbody tr img')
        rows = [r.split('\t') for r in page.locator('#report .days').inner_text().splitlines()]
        assert rows[0] == ['Folder', 'Grasserie', 'Grasserie or Muscardine'] and rows[1:] == [['tray 1', '1', '1'], ['tray 2', '1', '0']], rows
        assert sorted(page.locator('#table .rows .file').all_inner_texts())[0].startswith('tray 1/IMG-')
        page.context.close()


@pytest.mark.parametrize('how', ['chosen', 'dropped'])
def test_what_an_iphone_makes_is_taken(browser, colours, tmp_path, how):
    "Of a picture in HEIC the browser knows no type, whatever the case of its name"
    import base64
    from pillow_heif import from_pillow
    files = [tmp_path / 'trays/tray 1' / n for n in ('IMG_4001.HEIC', 'img_2.heic')]
    files[0].parent.mkdir(parents=True)
    for f, kind in zip(files, ('one', 'several')): from_pillow(Image.open(next(colours.glob(f'*{kind}.jpg')))).save(f)
    def give_all(page, at, files):
        if how == 'chosen': return page.locator(f'{at} input[type=file]:not([webkitdirectory])').set_input_files([str(f) for f in files])
        page.evaluate("""([at, files]) => { const d = new DataTransfer(), area = document.querySelector(`${at} input[type=file]`).parentElement;
            for (const [name, data] of files) d.items.add(new File([Uint8Array.from(atob(data), c => c.charCodeAt())], name));
            area.dispatchEvent(new DragEvent('drop', {dataTransfer: d, bubbles: true, cancelable: true})); }""",
            [at, [(f.name, base64.b64encode(f.read_bytes()).decode()) for f in files]])
    with serving(Keeper()) as demo:
        page = visit(browser, demo.local_url, phone=False)
        give_all(page, '#picture', files[:1])
        page.wait_for_selector('.verdict.one', timeout=15000)
        for at in ('#files', 'folder') if how == 'chosen' else ('#files',):
            page.reload()
            page.wait_for_selector('#verdict .verdict')
            page.wait_for_load_state('networkidle')
            page.get_by_role('tab', name='Many pictures').click()
            if at == 'folder': page.locator('input[type=file][webkitdirectory]').set_input_files(str(tmp_path / 'trays'))
            else: give_all(page, at, files)
            page.wait_for_function("document.querySelectorAll('#files tr.file, #files .file').length >= 2", timeout=15000)
            page.locator('#go').click()
            page.wait_for_selector('#table .rows tbody tr img', timeout=15000)
            text = page.locator('#report').inner_text()
            assert text.startswith('2 pictures') and 'Not readable' not in text, text
        page.context.close()
