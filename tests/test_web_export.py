"The page without a server in a real browser, on a phone's screen, with the network cut: its answers are those of Python."
import functools
import http.server
import io
import json
import shutil
import struct
import threading
from copy import copy

import numpy as np
import pytest
from PIL import Image

from silkworm_app.serve.load import load_bundle
from silkworm_app.serve.onnx import OnnxPredictor, pack_arrays
from silkworm_app.serve.page import html
from silkworm_app.serve.page.answers import as_dict, facts
from silkworm_app.serve.page.export import export_web, ort_web, page_model
from silkworm_app.serve.trust import Trust
from test_imaging import wide
from web_tools import random_bundle

chromium = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
pytest.importorskip('playwright')
pytestmark = pytest.mark.skipif(chromium is None, reason='needs a chromium on the PATH')
CLASSES = ['flacherie', 'grasserie', 'healthy', 'muscardine', 'pebrine']


def make_trust(rng, features, looks, **kwargs):
    "Rules with every check in them, fitted on random pictures."
    from silkworm_app.serve.unlike import fit_distance, fit_look
    labels = np.arange(len(features)) % len(CLASSES)
    scores = {c: sorted(np.round(rng.beta(2, 3, n), 6).tolist()) for c, n in zip(CLASSES, (40, 30, 9, 4, 25))}
    rows = {c: dict(n=20, right=18, low=.7, high=.99) for c in CLASSES[:4]}
    measured = dict(photographs=90, nothing=50, one=rows, several=dict(n=11, right=10, low=.6, high=.99), classes={})
    return Trust(CLASSES, **dict(temperature=1.3, distance_limit=1.25, min_contrast=.05, min_sharpness=.01, max_grain=3., look_limit=1.6, calibrated=True, note='', scores=scores,
                                 measured=measured, fitted=fit_distance(features, labels) | fit_look(looks)) | kwargs)


def texture(rng, w, h):
    "A picture with large and small detail."
    a = sum(np.asarray(Image.fromarray(rng.integers(0, 256, (k, k, 3), dtype=np.uint8)).resize((w, h), Image.Resampling.BICUBIC), float) * s for k, s in ((3, .6), (16, .3), (60, .1)))
    return Image.fromarray(a.astype(np.uint8))


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    "Pictures as they come: turned JPEG and WebP, a colour profile far behind, PNG with alpha, palette and gray, tiny, wide, large."
    d, rng, out = tmp_path_factory.mktemp('pictures'), np.random.default_rng(5), []
    def add(name, im, **kwargs): im.save(d / name, **kwargs); out.append(d / name)
    exif = Image.Exif()
    for turn in (1, 3, 6, 8, 5):
        exif[0x0112] = turn
        add(f'turned{turn}.jpg', texture(rng, 320, 200), exif=exif, quality=92, subsampling=(0, 2)[turn % 2])
    rgba = texture(rng, 150, 130).convert('RGBA')
    rgba.putalpha(texture(rng, 150, 130).convert('L'))
    add('alpha.png', rgba)
    add('palette.png', texture(rng, 90, 70).quantize(32))
    add('gray.png', texture(rng, 64, 200).convert('L'))
    add('exact.webp', texture(rng, 97, 300), lossless=True)
    add('tiny.png', texture(rng, 9, 7))
    add('wide.png', texture(rng, 900, 40))
    add('square.png', texture(rng, 96, 96))
    add('large.jpg', texture(rng, 3000, 2000), quality=90)
    add('blank.png', Image.new('RGB', (60, 60), (200, 200, 200)))
    add('noise.png', Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)))
    for turn in range(1, 9):
        exif[0x0112] = turn
        add(f'turned{turn}.webp', texture(rng, 120, 75), exif=exif, lossless=True)
    add('turned_by_xmp.jpg', texture(rng, 320, 200), xmp=b'<x tiff:Orientation="6"/>')
    swapped = wide().replace(b'rXYZ', b'green').replace(b'gXYZ', b'rXYZ').replace(b'green', b'gXYZ')       # red is green
    add('profile.jpg', texture(rng, 320, 200), icc_profile=swapped, quality=92)
    data = out[-1].read_bytes()
    out[-1].write_bytes(data[:2] + (b'\xff\xed\xfd\xea' + bytes(0xfde8)) * 5 + data[2:])      # 325 kB of an editor before the profile
    return out


@pytest.fixture(scope='module')
def exported(tmp_path_factory, pictures):
    "(predictor, folder of the page)"
    from silkworm_app.serve.net import save_onnx
    folder = tmp_path_factory.mktemp('export')
    random_bundle(folder / 'bundle')
    plain, rng = load_bundle(folder / 'bundle'), np.random.default_rng(1)
    _, features, stats = plain.forward([np.asarray(texture(rng, 120, 110)) for _ in range(60)])
    file = save_onnx(folder / 'model.onnx', plain.model, CLASSES, plain.preprocess, make_trust(rng, features, stats[:, 2:], distance_limit=8., look_limit=8.))
    try: files = ort_web()
    except ValueError as e: pytest.skip(str(e))
    (folder / 'ort').mkdir()
    for n, data in files.items(): (folder / 'ort' / n).write_bytes(data)
    return OnnxPredictor(file), export_web(file, folder / 'page', folder / 'ort')


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


@pytest.fixture(scope='module')
def phone(exported):
    "The exported page on a phone's screen, loaded once and then without server and network; fails on script errors and on requests elsewhere."
    from playwright.sync_api import sync_playwright
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=exported[1]))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url, errors, asked = f'http://127.0.0.1:{server.server_port}/', [], []
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=['--no-sandbox'])
        context = browser.new_context(viewport=dict(width=390, height=844), device_scale_factor=2, is_mobile=True, has_touch=True, locale='en-GB')
        page = context.new_page()
        page.on('pageerror', lambda e: errors.append(str(e)))
        page.on('request', lambda r: asked.append(r.url))
        page.goto(url)
        page.wait_for_selector('#offline:not(:empty)', timeout=60_000)
        context.set_offline(True)
        server.shutdown()
        server.server_close()
        page.reload()
        page.wait_for_selector('#choose:enabled', timeout=60_000)
        page.exported = exported
        yield page
        browser.close()
    assert not errors, errors
    assert all(u.startswith((url, 'blob:')) for u in asked), asked


def test_a_picture_gets_the_same_numbers_and_sets_as_in_python(phone, pictures):
    predictor, _ = phone.exported
    kinds = set()
    for p in pictures:
        want = as_dict(predictor.decide([p])[0])
        phone.evaluate("document.getElementById('probe')?.remove()")
        phone.evaluate("() => { const i = document.createElement('input'); i.type = 'file'; i.id = 'probe'; document.body.append(i); }")
        phone.set_input_files('#probe', str(p))
        got = phone.evaluate("async () => (await import('./app.js')).ask(document.getElementById('probe').files[0])")
        off = max(abs(got['probabilities'][c] - want['probabilities'][c]) for c in CLASSES)
        assert off < 1e-5, (p.name, off)
        assert {k: got[k] for k in ('kind', 'label', 'labels', 'excluded', 'unproven', 'advice', 'measured')} == {k: want[k] for k in ('kind', 'label', 'labels', 'excluded', 'unproven', 'advice', 'measured')}, p.name
        assert [r['code'] for r in got['codes']] == [r['code'] for r in want['codes']], p.name
        kinds.add(got['kind'])
    assert 'unlike' in kinds and len(kinds) > 1


RULES = [{}, dict(risk=.05), dict(risk=.3, measured={}), dict(scores=None, calibrated=False, note='no photographs to try it on'), dict(distance_limit=None, look_limit=None, fitted={}),
         dict(scores={c: [.1, .2] for c in CLASSES}, measured={}), dict(scores={c: [i / 40 for i in range(2 if c == 'pebrine' else 20)] for c in CLASSES}, measured={})]


def test_the_rules_are_those_of_trust(phone):
    "Random logits, features and pictures: every field of the answer."
    from silkworm_app.serve.unlike import picture_stats
    rng, n, s = np.random.default_rng(7), 60, 24
    features, x = rng.normal(size=(n, 20)).astype(np.float32), rng.normal(size=(n, 3, s, s)).astype(np.float32) * rng.uniform(.02, 2, (n, 1, 1, 1)).astype(np.float32)
    x[::2] = np.cumsum(x[::2], 3) / 9
    stats, logits = picture_stats(x), rng.normal(size=(n, 5)) * rng.uniform(.2, 4, (n, 1))
    trusts = [make_trust(rng, features[:40], stats[:40, 2:], **dict(min_contrast=.03, distance_limit=1.) | more) for more in RULES]
    rules = json.loads(json.dumps([t.to_dict() | dict(arrays=pack_arrays(t.arrays())) for t in trusts]))
    got = phone.evaluate("""async ([rules, logits, features, xs]) => {
        const m = await import('./decide.js'), stats = xs.map(x => m.picture_stats(Float32Array.from(x), 24));
        return rules.map(t => { const a = m.unpack(t.arrays); return logits.map((z, i) => m.decide(t, a, z, features[i], stats[i])); });
    }""", [rules, logits.tolist(), features.tolist(), x.reshape(n, -1).round(6).tolist()])
    kinds = set()
    for trust, answers in zip(trusts, got):
        for g, d in zip(answers, trust.decide(logits, features, stats)):
            w = as_dict(d)
            for k in ('kind', 'label', 'labels', 'excluded', 'unproven', 'advice', 'measured'): assert g[k] == w[k], k
            assert [(r['code'], list(r['values'])) for r in g['codes']] == [(r['code'], list(r['values'])) for r in w['codes']]
            for k in ('probabilities', 'pvalues'): assert g[k] == pytest.approx(w[k], abs=1e-6)
            kinds |= {g['kind'], (g['kind'], g['advice']), *(r['code'] for r in g['codes'])}
    assert kinds >= {'one', 'several', 'nothing', 'unlike', 'blank', 'noise', 'look', 'far', 'unproven', 'ambiguous', 'note', ('nothing', 'camera'), ('nothing', 'collect')}


@pytest.mark.parametrize('lang', html.LANGUAGES)
def test_the_words_are_those_of_the_page(phone, pictures, lang):
    predictor, _ = phone.exported
    say = html.Say(lang, predictor.classes)
    phone.select_option('#language', lang)
    words = lambda text: ''.join(text.split())
    for p in pictures[:15:3] + pictures[13:15]:
        want = html.verdict_html(say, as_dict(predictor.decide([p])[0]), facts(predictor)['more'])
        phone.evaluate("document.querySelector('#verdict').replaceChildren()")
        phone.set_input_files('#choose', str(p))
        phone.wait_for_selector('.verdict:is(.one, .several, .nothing, .unlike)')
        want = phone.evaluate("h => { const d = document.createElement('div'); d.innerHTML = h; return d.textContent; }", want)
        assert words(phone.text_content('.verdict')) == words(want), p.name


def test_a_phone_shows_it_whole_and_says_what_it_cannot_read(phone, tmp_path):
    phone.select_option('#language', 'en')
    (tmp_path / 'x.jpg').write_bytes(b'no picture')
    Image.new('RGB', (40, 30), (90, 120, 40)).save(tmp_path / '<img src=x onerror=alert(1)>.png')
    phone.set_input_files('#choose', str(tmp_path / 'x.jpg'))
    phone.wait_for_selector('.verdict.bad')
    assert 'JPEG or PNG' in phone.inner_text('.verdict')
    small = io.BytesIO()
    Image.new('L', (8, 8)).save(small, 'JPEG')
    size = bytes([0xff, 0xc0, 0, 11, 8]) + struct.pack('>2H', 8, 8)
    assert size in small.getvalue()
    (tmp_path / 'large.jpg').write_bytes(small.getvalue().replace(size, size[:5] + struct.pack('>2H', 9000, 8890)))
    Image.new('L', (65536, 1)).save(tmp_path / 'wide.png')                         # a canvas of this width stays empty
    for name in ('large.jpg', 'x.jpg', 'wide.png'):
        phone.set_input_files('#choose', str(tmp_path / name))
        phone.wait_for_function("t => document.querySelector('.verdict.bad')?.textContent.includes(t)", arg='JPEG or PNG' if name == 'x.jpg' else '80 million')
        assert phone.is_hidden('#picture')
    phone.set_input_files('#camera', str(tmp_path / '<img src=x onerror=alert(1)>.png'))
    phone.wait_for_selector('.verdict.unlike')
    assert phone.evaluate('document.documentElement.scrollWidth <= innerWidth') and not phone.query_selector('img[onerror]')
    assert phone.get_attribute('#camera', 'capture') == 'environment'
    phone.evaluate("""good => { for (const part of [good.slice(0, -40), good]) {                     // a damaged one, and at once the next
        const files = new DataTransfer(), choose = document.getElementById('choose');
        files.items.add(new File([Uint8Array.from(part)], 'x.png'));
        choose.files = files.files;
        choose.dispatchEvent(new Event('change'));
    } }""", list((tmp_path / '<img src=x onerror=alert(1)>.png').read_bytes()))
    phone.wait_for_selector('.verdict.unlike')
    phone.wait_for_timeout(200)
    assert phone.is_visible('#picture')


def test_names_that_are_whole_numbers_keep_their_order(phone, pictures):
    "Objects of JavaScript sort them; the sentences name the surest first, or in the order of the classes."
    predictor, folder = phone.exported
    other, names, logits = copy(predictor), list('54321'), [1.2, 1.1, .2, 1., .1]
    other.classes, other.trust = names, Trust(names, scores={c: [.1] * n for n, c in zip((0, 1, 2, 3, 7), names)}, risk=.025, note='')
    net = f'{{run: async () => ({{logits: {{data: {logits}}}, features: {{data: []}}}})}}'          # in place of the real one, which takes longer to load
    page = phone.context.browser.new_context(service_workers='block').new_page()
    page.route('**/*', lambda r: r.fulfill(path=folder / (r.request.url.split('/', 3)[3] or 'index.html')))
    page.route('**/model.json', lambda r: r.fulfill(json=page_model(other, b'')))
    page.route('**/ort/*', lambda r: r.fulfill(content_type='text/javascript', body=f'export const env = {{wasm: {{}}}}, Tensor = Object, InferenceSession = {{create: async () => ({net})}};'))
    page.goto('http://127.0.0.1/')
    page.wait_for_selector('#choose:enabled', timeout=60_000)
    page.set_input_files('#choose', str(pictures[0]))
    page.wait_for_selector('.verdict.nothing')
    answer = as_dict(other.trust.decide(np.array([logits]))[0])
    want = page.evaluate("h => { const d = document.createElement('div'); d.innerHTML = h; return d.textContent; }", html.verdict_html(html.Say('en', names), answer, facts(other)['more']))
    assert [c['code'] for c in answer['codes']] == ['ambiguous', 'unproven']
    assert ''.join(page.text_content('.verdict').split()) == ''.join(want.split())
    why = page.evaluate("h => { const d = document.createElement('div'); d.innerHTML = h; return d.textContent; }", html.why_html(html.Say('en', names), answer, facts(other)))
    got = ''.join(page.evaluate("document.getElementById('why').lastElementChild.textContent").split())
    assert ''.join(why.split()).startswith(got) and 'about2.5in100' in got and '0.12' in got and answer['pvalues']['1'] == .125         # what follows in Python is where the net looked
    page.context.close()


def test_a_page_that_is_cut_off_says_so(phone):
    folder = phone.exported[1]
    page = phone.context.browser.new_context(service_workers='block').new_page()
    page.route('**/*', lambda r: r.fulfill(path=folder / (r.request.url.split('/', 3)[3] or 'index.html')))
    page.route('**/model.json', lambda r: r.abort())
    page.goto('http://127.0.0.1/')
    page.wait_for_function("document.getElementById('verdict').textContent.includes('Open it again with a network')")
    assert not page.query_selector('#ask')
    page.context.close()
