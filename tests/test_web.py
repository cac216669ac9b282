"The page over HTTP and gradio_client: answers, messages, limits, and what nobody may read."
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from PIL import Image

from silkworm_app.serve.load import load_bundle
from web_tools import Colours, Keeper, as_file, call, encode, files_in, picture, random_bundle, serving, upload

root = Path(__file__).resolve().parent.parent
red = encode(Image.new('RGB', (40, 30), 'red'), 'JPEG')


@pytest.fixture(scope='module')
def demo():
    with serving(Colours()) as demo: yield demo


@pytest.fixture
def http(demo):
    with httpx.Client(base_url=demo.local_url.rstrip('/'), timeout=30) as client: yield client


@pytest.fixture(scope='module')
def bundle(tmp_path_factory): return random_bundle(tmp_path_factory.mktemp('web') / 'bundle')


def uploaded(http, data=red, name='picture.jpg'):
    r = upload(http, data, name)
    assert r.status_code == 200, r.text
    return r.json()[0]


def test_client_gets_the_same_as_the_predictor(demo, tmp_path):
    (tmp_path / 'red.jpg').write_bytes(red)
    client = Client(demo.local_url, verbose=False)
    out = client.predict(handle_file(tmp_path / 'red.jpg'), api_name='/predict')
    assert out['label'] == 'red' and out['can_tell'] and out['kind'] == 'one' and out['labels'] == ['red'] and {'probability', 'probabilities', 'reasons', 'measured'} < set(out)
    assert set(client.view_api(return_format='dict')['named_endpoints']) == {'/predict', '/predict_many', '/model_info'}


def test_dark_picture_gets_no_label_but_reasons(http):
    status, (out,) = call(http, 'predict', [as_file(uploaded(http, encode(Image.new('RGB', (40, 30), (9, 0, 0)), 'PNG'), 'd.png'))])
    assert status == 'complete' and out['label'] is None and not out['can_tell'] and out['reasons'] == ['the picture is too dark']


def test_bad_upload_gets_one_sentence_without_a_path(http, demo):
    status, out = call(http, 'predict', [as_file(uploaded(http, b'not a picture', 'x.jpg'))])
    assert status == 'error' and 'x.jpg' in out['error'] and demo.upload_folder not in out['error'] and 'Traceback' not in out['error']


def test_many_goes_on_after_a_bad_one(http):
    paths = [uploaded(http, data, name) for data, name in ((red, 'a.jpg'), (b'nothing', 'b.jpg'), (red[:200], 'c.jpg'), (red, 'd.jpg'))]
    status, (rows,) = call(http, 'predict_many', [[as_file(p) for p in paths]])
    assert status == 'complete' and [r['label'] for r in rows] == ['red', None, None, 'red']
    assert [bool(r['error']) for r in rows] == [False, True, True, False]


def test_too_many_pictures_get_a_message(http):
    status, out = call(http, 'predict_many', [[as_file(uploaded(http))] * 301])
    assert status == 'error' and '301' in out['error'] and '300' in out['error']


@pytest.mark.parametrize('path', ['/etc/passwd', '{app}', '{folder}', '{folder}/../app.py', '../../../../etc/passwd', '%2Fetc%2Fpasswd', '/proc/self/environ', 'file:///etc/passwd', 'http://127.0.0.1:1/x'])
def test_no_server_file_can_be_read(http, demo, path):
    path = path.format(app=root / 'app.py', folder=demo.upload_folder)
    for prefix in ('/gradio_api/file=', '/gradio_api/file/', '/file=', '/static/', '/assets/', '/gradio_api/proxy='):
        r = http.get(prefix + path)
        assert r.status_code in (403, 404), (prefix + path, r.status_code)
    for args in ([as_file(path)], [{'path': path}], [{'path': path, 'url': path}]):
        assert call(http, 'predict', args)[0] in ('error', 'refused')
        assert call(http, 'predict_many', [args])[0] in ('error', 'refused')


def test_addresses_are_not_fetched(http, demo):
    hits = []
    class Handler(__import__('http.server').server.BaseHTTPRequestHandler):
        def do_GET(self): hits.append(self.path); self.send_error(404)
        def log_message(self, *a): pass
    server = __import__('http.server').server.HTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f'http://127.0.0.1:{server.server_port}/p.jpg'
    assert call(http, 'predict', [as_file(url)])[0] == 'refused'
    assert call(http, 'predict', [{'path': url, 'url': url, 'meta': {'_type': 'gradio.FileData'}}])[0] == 'refused'
    assert call(http, 'predict_many', [[as_file(url)]])[0] == 'refused'
    for u in (f'/gradio_api/file={url}', f'/gradio_api/proxy={url}'): assert http.get(u).status_code == 404
    server.shutdown()
    assert not hits


def test_nobody_is_asked(monkeypatch):
    "From start to end the server looks up no name and connects to no other machine, and listens on this one only."
    import socket
    asked, connect, lookup, local = [], socket.socket.connect, socket.getaddrinfo, ('127.0.0.1', 'localhost', '::1', '0.0.0.0', None, '')
    def note(host):
        if (host.decode() if isinstance(host, bytes) else host) not in local: asked.append(host)
    monkeypatch.setattr(socket.socket, 'connect', lambda self, a: (note(a[0]) if isinstance(a, tuple) else None, connect(self, a))[1])
    monkeypatch.setattr(socket, 'getaddrinfo', lambda host, *a, **k: (note(host), lookup(host, *a, **k))[1])
    with serving(Colours()) as demo, httpx.Client(base_url=demo.local_url.rstrip('/'), timeout=30) as http:
        assert http.get('/').status_code == 200 and http.get('/config').status_code == 200
        assert call(http, 'predict', [as_file(uploaded(http))])[0] == 'complete'
        port = int(demo.local_url.rstrip('/').rsplit(':', 1)[1])
        bound = [line.split()[1] for line in Path('/proc/net/tcp').read_text().splitlines()[1:]] if Path('/proc/net/tcp').exists() else ['0100007F:%04X' % port]
        assert [b for b in bound if b.endswith(':%04X' % port) and not b.startswith('0100007F')] == []
    assert not asked, asked
    with pytest.raises(OSError): socket.getaddrinfo('name.invalid', 1)
    assert asked == ['name.invalid']         # the watch itself works


def test_picture_inside_the_request(http):
    import base64
    status, (out,) = call(http, 'predict', [{'url': 'data:image/jpeg;base64,' + base64.b64encode(red).decode()}])
    assert status == 'complete' and out['label'] == 'red'
    assert call(http, 'predict', [{'url': 'data:image/jpeg;base64,%%%'}])[0] == 'error'


def test_upload_over_the_limit_is_refused_and_leaves_nothing():
    with serving(Colours(), max_file_size='100kb') as demo, httpx.Client(base_url=demo.local_url.rstrip('/'), timeout=30) as http:
        r = upload(http, b'\0' * 300_000)
        assert r.status_code == 413 and 'maximum allowed size' in r.text
        assert files_in(demo.upload_folder) == []
        assert call(http, 'predict', [as_file(uploaded(http))])[0] == 'complete'


def test_limits_are_those_of_the_manual():
    import inspect
    from silkworm_app.serve.page.server import parser, serve
    assert 'export-web' in parser().format_help()
    assert inspect.signature(serve).parameters['max_file_size'].default == '40mb' and '(default: 2000)' in ' '.join(parser().format_help().split())


def test_uploads_are_private_and_go_away():
    before = os.environ.get('GRADIO_TEMP_DIR')
    with serving(Colours(), delete_after=(1, 1)) as demo, httpx.Client(base_url=demo.local_url.rstrip('/'), timeout=30) as http:
        folder = Path(demo.upload_folder)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        path = uploaded(http)
        assert call(http, "predict", [as_file(folder)])[0] == "error"
        assert call(http, 'predict', [as_file(path)])[0] == 'complete' and Path(path).is_file()
        end = time.monotonic() + 15
        while Path(path).exists() and time.monotonic() < end: time.sleep(.3)
        assert files_in(folder) == []
    assert not folder.exists() and os.environ.get('GRADIO_TEMP_DIR') == before


def test_full_queue_says_so():
    slow = Colours()
    with serving(slow, workers=1, queue_size=1) as demo:
        slow.wait = .6
        answers = []
        def ask():
            with httpx.Client(base_url=demo.local_url.rstrip('/'), timeout=60) as http: answers.append(call(http, 'predict', [as_file(path)]))
        with httpx.Client(base_url=demo.local_url.rstrip('/'), timeout=60) as http:
            path = uploaded(http)
            threads = [threading.Thread(target=ask) for _ in range(8)]
            for t in threads: t.start()
            for t in threads: t.join()
            refused = [a for a in answers if a[0] == 'refused']
            assert refused and all('queue is full' in a[1].lower() for a in refused), answers
            assert any(a[0] == 'complete' for a in answers)
            assert call(http, 'predict', [as_file(path)])[0] == 'complete'      # and it recovers


def test_login_from_the_environment(monkeypatch):
    monkeypatch.setenv('SILKWORM_APP_AUTH', 'keeper:mulberry')
    with serving(Colours()) as demo, httpx.Client(base_url=demo.local_url.rstrip('/'), timeout=30) as http:
        assert http.get('/config').status_code == 401 and upload(http, red).status_code == 401
        assert http.post('/gradio_api/call/predict', json={'data': [None]}).status_code == 401
        assert http.post('/login', data={'username': 'keeper', 'password': 'wrong'}).status_code == 400
        assert http.post('/login', data={'username': 'keeper', 'password': 'mulberry'}).status_code == 200
        assert call(http, 'predict', [as_file(uploaded(http))])[0] == 'complete'


def code_block(language, nth=0): return re.findall(rf'```{language}\n(.*?)```', (root / 'docs/web.md').read_text(), re.S)[nth]


def test_documented_python_example_runs(demo, tmp_path):
    (tmp_path / 'larva.jpg').write_bytes(red)
    code = code_block('python').replace('http://127.0.0.1:7860', demo.local_url)
    assert len(code.strip().splitlines()) <= 10
    out = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert out.returncode == 0 and 'red' in out.stdout, out.stderr[-800:]


def test_documented_curl_example_runs(demo, tmp_path):
    if not shutil.which('curl'): pytest.skip('curl is not installed')
    (tmp_path / 'larva.jpg').write_bytes(red)
    code = code_block('bash').replace('http://127.0.0.1:7860', demo.local_url.rstrip('/'))
    out = subprocess.run(['bash', '-euc', code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert out.returncode == 0 and '"label"' in out.stdout and 'red' in out.stdout, out.stdout + out.stderr


def test_app_says_what_is_wrong():
    out = subprocess.run([sys.executable, root / 'app.py', '--bundle', 'no/such/bundle'], capture_output=True, text=True, timeout=120)
    assert out.returncode == 2 and 'no/such/bundle' in out.stderr and 'Traceback' not in out.stderr


@pytest.mark.parametrize('args,say', [([], '--bundle'), (['--bundle', '.'], 'config.json'), (['--bundle', '.', '--port', 'x'], '--port'), (['--bundle', '.', '--workers', '0'], '--workers'), (['--bundle', '.', '--risk', '2'], '--risk must lie'), (['--bundle', '.', '--examples', 'nowhere'], 'nowhere'),
    (['--bundle', '.', '--collect-mb', '10'], '--collect-mb needs --collect')])
def test_main_says_what_is_wrong(args, say, capsys):
    from silkworm_app.serve.page.server import main
    try: code = main(args)
    except SystemExit as e: code = e.code       # argparse's
    assert code == 2 and say in capsys.readouterr().err


def test_app_serves_a_bundle_and_stops_clean(bundle, tmp_path):
    from silkworm_app.serve.load import load_bundle
    env = dict(os.environ, TMPDIR=str(tmp_path), OMP_NUM_THREADS='1')
    app = subprocess.Popen([sys.executable, '-u', root / 'app.py', '--bundle', bundle, '--port', '0'], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env, cwd=root)
    try:
        line = app.stdout.readline()
        url = re.search(r'http://127\.0\.0\.1:\d+', line).group()
        rng = np.random.default_rng(3)
        pictures = [picture(rng, (160, 120)) for _ in range(6)]
        offline = load_bundle(bundle).decide(pictures)
        with httpx.Client(base_url=url, timeout=30) as http:
            for im, d in zip(pictures, offline):
                status, (out,) = call(http, 'predict', [as_file(uploaded(http, encode(im, 'PNG'), 'p.png'))])
                assert status == 'complete' and out['label'] == d.label
                assert max(abs(out['probabilities'][k] - v) for k, v in d.probs.items()) < 1e-4
            assert call(http, 'model_info', [])[1][0]['classes'] == list(load_bundle(bundle).classes)
    finally:
        app.terminate()
        app.wait(20)
    assert list(tmp_path.glob('silkworm_app_*')) == []


def test_importing_changes_nothing_outside():
    "Environment, warnings and signal handlers are as before; only main() sets any of them."
    code = ('import os, signal, warnings; before = dict(os.environ), list(warnings.filters), signal.getsignal(signal.SIGTERM)\n'
        'import silkworm_app.serve.page.server\n'
        'changed = {k for k in set(before[0]) | set(os.environ) if before[0].get(k) != os.environ.get(k)}\n'
        'ours = {k for k in changed if k.startswith(("HF_", "GRADIO", "NO_ALBUMENTATIONS", "SILKWORM", "OMP", "CUDA"))}\n'
        'print(sorted(ours), signal.getsignal(signal.SIGTERM) == before[2])')
    env = {k: v for k, v in os.environ.items() if not k.startswith(('HF_', 'GRADIO', 'NO_ALBUMENTATIONS'))}
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120, env=env, cwd=root)
    assert out.stdout.strip() == '[] True', out.stdout + out.stderr[-600:]


@pytest.mark.parametrize('how', ['option', 'environment'])
def test_behind_a_proxy_the_same_routes_are_open(how, monkeypatch):
    "gradio routes a path with and without the prefix of a proxy: what is closed stays closed under both, and the page works under both."
    if how == 'environment': monkeypatch.setenv('GRADIO_ROOT_PATH', '/silk')
    with serving(Colours(), root_path='/silk' if how == 'option' else None) as demo, httpx.Client(base_url=demo.local_url.rstrip('/'), timeout=30) as http:
        for prefix in ('', '/silk'):
            for path in ('dev/reload', 'proxy=http://127.0.0.1:1/x', 'startup', 'vibe-code', 'process_recording', 'stream/a/b/c/playlist.m3u8', 'openapi.json', 'file=http://127.0.0.1:1/x'):
                for p in (f'{prefix}/gradio_api/{path}', f'{prefix}/{path}', f'{prefix}//gradio_api/{path}', f'{prefix}/silk/gradio_api/{path}'):
                    assert http.get(p).status_code == 404, p
            assert http.get(f'{prefix}/').status_code == 200 and http.get(f'{prefix}/config').status_code == 200
            r = http.post(f'{prefix}/gradio_api/upload', files={'files': ('p.jpg', red)})
            assert r.status_code == 200
            r = http.post(f'{prefix}/gradio_api/call/predict', json={'data': [as_file('http://127.0.0.1:1/x.jpg')]})
            assert r.status_code == 400 and 'not fetched' in r.text
        assert '/silk/' in http.get('/').text


def test_uploads_that_are_none_get_a_sentence(http):
    "A part without a file name, a body that is cut, another type, no part at all: one sentence each, and no stack trace."
    end = b'--x--\r\n'
    part = lambda name: b'--x\r\nContent-Disposition: form-data; name="files"' + name + b'\r\n\r\n' + red + b'\r\n'
    for body in (part(b'') + end, part(b'; filename="p.jpg"'), b'--x\r\n', b''):
        r = http.post('/gradio_api/upload', content=body, headers={'content-type': 'multipart/form-data; boundary=x'})
        assert r.status_code in (200, 400) and len(r.text) < 300 and 'Traceback' not in r.text, (body[:60], r.status_code, r.text)
        if r.status_code == 200: assert not r.json() or body.startswith(b'--x\r\nContent')
    r = http.post('/gradio_api/upload', content=part(b'') + end, headers={'content-type': 'multipart/form-data; boundary=x'})
    assert r.status_code == 400 and 'file with a name' in r.text
    for head in ({'content-type': 'multipart/form-data'}, {'content-type': 'text/plain'}, {}):
        assert http.post('/gradio_api/upload', content=b'abc', headers=head).status_code == 400


def test_upload_on_a_full_disk_gets_a_sentence(http, monkeypatch):
    async def full(*args, **kwargs): raise OSError(28, 'No space left on device')
    monkeypatch.setattr('gradio.routes.upload_fn', full)
    r = upload(http, red)
    assert r.status_code == 507 and 'No space left' in r.text
    monkeypatch.undo()
    assert upload(http, red).status_code == 200


def test_upload_folder_comes_back_private(http, demo):
    "A tidy machine empties /tmp: the next upload finds a folder that only we may read, and so do the examples' neighbours."
    folder = Path(demo.upload_folder)
    for gone in (folder, folder.parent):
        shutil.rmtree(gone)
        assert call(http, 'predict', [as_file(uploaded(http))])[0] == 'complete'
        assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE(folder.parent.stat().st_mode) == 0o700


def test_port_in_use_and_wrong_host_name_the_options(bundle, capsys):
    import socket
    from silkworm_app.serve.page.server import main
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        s.listen()
        port = str(s.getsockname()[1])
        for args, say in ((['--port', port], f'--port {port} is in use'), (['--host', '192.0.2.1', '--port', '0'], '--host 192.0.2.1'), (['--port', '99999'], '--port must lie')):
            code, err = main(['--bundle', str(bundle), *args]), capsys.readouterr().err
            assert code == 2 and say in err and 'launch' not in err, err


def test_a_run_folder_is_taken(bundle, tmp_path, monkeypatch):
    from silkworm_app.serve.page import server
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run/bundle').symlink_to(bundle)
    got = {}
    monkeypatch.setattr(server, 'serve', lambda predictor, **kwargs: got.update(kwargs, classes=predictor.classes))
    server.main(['--bundle', str(tmp_path / 'run'), '--port', '0'])
    assert got['classes'][0] == 'flacherie' and 'Model card' in got['card']


def test_an_onnx_file_alone_is_served(tmp_path, monkeypatch, capsys):
    "As silkworm-fuse --format onnx-int8 writes it, without a bundle; pictures of a person have no class of the bundle's examples"
    from silkworm_app.serve.page import server
    bundle = random_bundle(tmp_path / 'bundle', onnx=True, examples=[(picture(np.random.default_rng(0), (320, 240)), 'healthy')])
    shutil.copy(bundle / 'model.onnx', tmp_path / 'net.onnx')
    (tmp_path / 'mine').mkdir()
    picture(np.random.default_rng(1), (320, 240)).save(tmp_path / 'mine/00.jpg')
    got = {}
    monkeypatch.setattr(server, 'serve', lambda predictor, **kwargs: got.update(kwargs, p=predictor))
    for more, shown in (([], []), (['--examples', str(tmp_path / 'mine')], [(tmp_path / 'mine/00.jpg', '')])):
        assert server.main(['--bundle', str(tmp_path / 'net.onnx'), '--port', '0', *more]) == 0, capsys.readouterr().err
        assert got['examples'] == shown and got['p'].classes[0] == 'flacherie' and got['p'].backend == 'onnxruntime' and got['name'] == 'net.onnx'
    assert server.main(['--bundle', str(bundle), '--port', '0', '--backend', 'onnx', '--examples', str(tmp_path / 'mine')]) == 0 and got['examples'] == shown
    pictures = [np.random.default_rng(i).integers(0, 256, (96, 96, 3), np.uint8) for i in range(4)]
    assert np.abs(got['p'].logits(pictures) - load_bundle(bundle, 'onnx').logits(pictures)).max() < 1e-5
    assert server.main(['--bundle', str(tmp_path / 'net.onnx'), '--port', '0', '--backend', 'torch']) == 2 and 'backend torch cannot run' in capsys.readouterr().err
    (tmp_path / 'list.onnx').write_text('no net')
    assert server.main(['--bundle', str(tmp_path / 'list.onnx'), '--port', '0']) == 2 and 'list.onnx' in capsys.readouterr().err


def test_a_page_shows_of_a_bundle_what_its_config_says(tmp_path, monkeypatch, capsys):
    "The card is made at the risk of the page, and no file that merely lies there is shown or deployed, a link least of all"
    from silkworm_app.serve.calibrate import fit_trust
    from silkworm_app.serve.deploy import fuse_main
    from silkworm_app.serve.page import server
    y = np.arange(25) % 5
    few = fit_trust(4 * np.eye(5)[y] + np.random.default_rng(0).normal(0, .1, (25, 5)), None, y, Keeper.classes, leak=0.)
    rng, got = np.random.default_rng(0), {}
    bundle = random_bundle(tmp_path / 'bundle', trust=few, examples=[(picture(rng, (320, 240)), 'healthy')])
    (tmp_path / 'secret.txt').write_bytes('root:x:0:0 caf\u00e9'.encode('latin-1'))
    picture(rng, (320, 240)).save(tmp_path / 'private.jpg')
    (bundle / 'card.md').unlink(), (bundle / 'card.md').symlink_to(tmp_path / 'secret.txt')
    (bundle / 'examples/01.jpg').symlink_to(tmp_path / 'private.jpg')
    monkeypatch.setattr(server, 'serve', lambda predictor, **kwargs: got.update(kwargs))
    for risk in ('.1', '.2'):
        assert server.main(['--bundle', str(bundle), '--port', '0', '--risk', risk]) == 0, capsys.readouterr().err
        assert got['examples'] == [(bundle / 'examples/00.jpg', 'healthy')] and 'root' not in got['card'] and '# Model card' in got['card']
        assert ("can't tell anything" in got['card']) == (risk == '.1') and ('in at most about 20% of' in got['card']) == (risk == '.2')
        assert 'photographs are like these (tried on 25 validation pictures of 25 photographs)' in got['card']
    assert fuse_main([str(bundle), '--out', str(tmp_path / 'out')]) == 0
    assert [f.name for f in (tmp_path / 'out/examples').iterdir()] == ['00.jpg'] and load_bundle(tmp_path / 'out').config['example_classes'] == {'examples/00.jpg': 'healthy'}


def test_what_an_option_cannot_do_is_said(tmp_path, monkeypatch, capsys):
    "Which example is too large to be shown; that a model which was not calibrated answers at none"
    from silkworm_app.serve.page import server
    from silkworm_app.serve.trust import Trust
    monkeypatch.setattr(server, 'serve', lambda *args, **kwargs: None)
    bundle = random_bundle(tmp_path / 'bundle', trust=Trust(Keeper.classes))
    assert server.main(['--bundle', str(bundle), '--port', '0', '--risk', '.2']) == 0 and '--risk changes nothing' in capsys.readouterr().err
    (tmp_path / 'mine/a').mkdir(parents=True)
    picture(np.random.default_rng(1), (320, 240)).save(large := tmp_path / 'mine/a/large.png')
    with large.open('ab') as f: f.truncate(41 * 2**20)
    assert server.main(['--bundle', str(bundle), '--port', '0', '--examples', str(tmp_path / 'mine')]) == 2
    assert f'--examples: {large} is larger than 40 MB' in capsys.readouterr().err


def test_the_address_to_type_on_a_phone(monkeypatch):
    from silkworm_app.serve.page import server
    monkeypatch.setattr(server, 'own_address', lambda: '192.168.1.7')
    text = server.where('http://localhost:7860/', '0.0.0.0', None)
    assert 'http://192.168.1.7:7860/' in text and 'localhost' not in text and 'Every machine' in text
    assert server.where('http://127.0.0.1:7860/', '127.0.0.1', ('a', 'b')) == 'Listening on http://127.0.0.1:7860/ with a login'


def test_examples_carry_their_class_and_none_is_there_twice(tmp_path, monkeypatch):
    from silkworm_app.serve.page.server import find_examples
    for c, seeds in dict(blue=(1, 2), red=(3,)).items():
        (tmp_path / c).mkdir()
        for i in seeds: picture(np.random.default_rng(i), (320, 240)).save(tmp_path / c / f'{i}.jpg', quality=95)
    Image.open(tmp_path / 'blue/1.jpg').resize((160, 120)).save(tmp_path / 'red/9.jpg', quality=70)
    (tmp_path / 'blue/broken.jpg').write_bytes(b'no picture')
    found = find_examples(tmp_path)
    assert [(p.name, c) for p, c in found] == [('1.jpg', 'blue'), ('3.jpg', 'red'), ('2.jpg', 'blue')]
    monkeypatch.chdir(tmp_path.parent)
    assert [(p.name, c) for p, c in find_examples(tmp_path.name)] == [(p.name, c) for p, c in found]     # a relative folder
    for p in tmp_path.glob('*/*.jpg'): p.rename(tmp_path / p.name)
    assert {c for _, c in find_examples(tmp_path)} == {''} and find_examples(tmp_path, {'3.jpg': 'red', '1.jpg': ''}) == [(tmp_path / '3.jpg', 'red'), (tmp_path / '1.jpg', '')]


def test_examples_are_of_every_class(tmp_path, monkeypatch):
    from types import SimpleNamespace
    from silkworm_app.serve.page.server import find_examples
    monkeypatch.setattr('silkworm_app.data.copies.group_pictures', lambda files: SimpleNamespace(kept_together=lambda: range(len(files)), bad={}))
    for f in [*(f'blue/{i:03}.jpg' for i in range(201)), 'red/1.jpg', 'red/2.webp', 'red/3.tif', '.green/1.jpg']:
        (tmp_path / f).parent.mkdir(exist_ok=True)
        (tmp_path / f).touch()
    assert [c for _, c in find_examples(tmp_path)] == ['blue', 'red'] * 2 + ['blue'] * 4


@pytest.mark.parametrize('names', [('healthy', 'rust', 'scab'), ('female', 'male', 'broken')])
def test_page_of_other_things_says_nothing_of_diseases_of_silkworms(names):
    from silkworm_app.data.diseases import CLASS_INFO, silkworm_info
    from silkworm_app.serve.page.html import Say, many_html, why_html
    class Others(Colours): classes = list(names)
    with serving(Others()) as demo, httpx.Client(base_url=demo.local_url.rstrip('/'), timeout=30) as http:
        page = http.get('/config').text.lower()
        assert 'picture check' in page and 'silkworm' not in page and 'tray' not in page
        assert not any(c in page for c in set(CLASS_INFO) - set(names)) and not silkworm_info(names)
    say = Say('en', names)
    told = many_html(say, [], 'net', 'today') + why_html(say, dict(probabilities={c: .5 for c in names}, pvalues={}), dict(risk=.1), 'map')
    assert not any(w in told.lower() for w in ('diagnos', 'sick', 'disease'))


def test_a_bundle_that_refuses_everything_says_so_on_top():
    from silkworm_app.serve.trust import Trust
    class Never(Colours): trust = Trust(Colours.classes, note='only 20 photographs')
    with serving(Never()) as demo, httpx.Client(base_url=demo.local_url.rstrip('/'), timeout=30) as http:
        shown = [str(c['props'].get('value')) for c in http.get('/config').json()['components']]
        assert any('Read this first' in v and 'only 20 photographs' in v for v in shown), shown[:3]


def test_a_figure_is_called_by_the_pictures_that_it_is_of():
    "The matrix of the trust is of validation photographs, also beside the accuracy of a test"
    from silkworm_app.serve.page.answers import facts
    from silkworm_app.serve.page.html import Say, engineers_html, model_html
    from silkworm_app.serve.reasons import Reason, reason_code
    from silkworm_app.serve.trust import Trust
    row = lambda n: dict(n=n, kept=n, low=.5, high=1., answered=n, found=n, size=1.)
    measured = dict(photographs=12, nothing=12, one={}, several=dict(n=0, right=0, low=0., high=1.), classes=dict(red=row(9), green=row(3)))
    tried = Trust(Colours.classes, calibrated=True, scores=dict(red=[.1] * 9, green=[.1] * 3, blue=[]), measured=measured, confusion=[[9, 0, 0], [0, 3, 0], [0, 0, 0]])
    class Tested(Colours):
        trust, config = tried, dict(metrics=dict(test=dict(balanced_accuracy=.8, per_class_n=dict(red=1, green=3, blue=0))))
    f, say = facts(Tested()), Say('en', Colours.classes)
    assert '(validation)' in engineers_html(say, f) and '(test)' not in engineers_html(say, f)
    assert 'on the test pictures' in (h := model_html(say, f)) and 'always saying Green would be right on 75%' in h
    Tested.config['metrics']['test']['interval'] = [.6, .9]
    assert 'never seen: 80.0% (95 % interval: 60% to 90%)' in model_html(say, facts(Tested()))
    Tested.config['notes'] = [reason_code(Reason('learned', weights='a.pth', n=1, of=4, part='test'))]      # seen by the net that it began with
    assert 'never seen' not in model_html(say, facts(Tested()))


@pytest.mark.parametrize('risk,lost,kept', [(.005, '0.5', '99.5'), (.025, '2.5', '97.5'), (.07, '7', '93'), (.125, '12.5', '87.5')])
def test_a_risk_is_said_as_it_is_promised(risk, lost, kept):
    from dataclasses import replace
    from silkworm_app.serve.card import answers_text
    from silkworm_app.serve.page.answers import as_dict, facts, reason_code
    from silkworm_app.serve.page.html import Say, model_html, why_html
    from silkworm_app.serve.reasons import Reason
    class At(Keeper): trust = replace(Keeper().trust, risk=risk)
    f, say = facts(At()), Say('en', Keeper.classes)
    for t in (r := Reason('leaked', part=risk / 10), say.reason(reason_code(r))): assert t.startswith(f'{10 * risk:.3g}% of the test pictures')
    assert f'in at most about {lost}% of the cases' in answers_text(replace(At.trust, measured={}))[0]
    assert f'at least {kept} in 100 of each class' in model_html(say, f)
    assert f'about {lost} in 100 photographs' in why_html(say, as_dict(At().decide([Image.new('RGB', (8, 8), 'red')])[0]), f)


def test_a_class_below_the_risk_that_stays_is_no_riddle():
    "The two thirds keep it: the sentence over the p-values says so"
    from silkworm_app.serve.page.answers import as_dict, facts
    from silkworm_app.serve.page.html import Say, why_html
    from silkworm_app.serve.trust import Trust
    class Net(Colours): trust = Trust(Colours.classes, scores=dict(red=[.1] * 20, green=[i / 40 for i in range(20)], blue=[.1] * 20), calibrated=True)
    a = as_dict(Net.trust.decide(np.log([[.4, .58, .02]]))[0])
    assert a['pvalues']['red'] < .1 and 'red' in a['labels'] and 'red' not in a['excluded']
    lone = Trust(Colours.classes, scores=dict(red=[.01 + i / 1000 for i in range(20)], green=[i / 20 for i in range(20)], blue=[i / 20 for i in range(20)]), calibrated=True)
    assert 'red' in lone.decide(np.log([[.7, .16, .14]]))[0].excluded           # the most probable one, where two others stay
    for lang, words in dict(en='where fewer than two', zh='不足两类', hi='यदि दो से कम').items(): assert words in why_html(Say(lang, Net.classes), a, facts(Net()))


def test_what_was_measured_leaves_out_the_unlike_and_says_so():
    from silkworm_app.serve.calibrate import fit_trust
    from silkworm_app.serve.card import answers_text
    from silkworm_app.serve.page.answers import facts
    from silkworm_app.serve.page.html import LANGUAGES, Say, model_html
    y, rng = np.arange(60) % 3, np.random.default_rng(0)
    far, flat = rng.normal(size=(60, 4)) + 3 * np.eye(4)[y], rng.uniform(.2, .3, (60, 2))
    for features, stats in (far, None), (None, flat), (None, None):
        class Net(Colours): trust = fit_trust(4 * np.eye(3)[y], features, y, Colours.classes, leak=0., stats=stats)
        told = features is not None or stats is not None
        assert any('turn away as unlike' in line for line in answers_text(Net.trust)) == told
        for say in (Say(lang, Net.classes) for lang in LANGUAGES): assert (say('model_measured_unlike') in model_html(say, facts(Net()))) == told


def test_where_nothing_can_be_told_no_table_names_a_class(tmp_path):
    import csv
    import io
    from silkworm_app.serve.page.answers import as_dict, to_csv
    from silkworm_app.serve.page.collect import Store
    from silkworm_app.serve.trust import Trust
    half = [i / 40 for i in range(20)]
    a = as_dict(Trust(Colours.classes, scores=dict.fromkeys(Colours.classes, half), calibrated=True).decide(np.log([[.34, .33, .33]]))[0])
    row, = csv.DictReader(io.StringIO(to_csv([a | dict(file='a.jpg', folder='', day='', error='')], Colours.classes)))
    assert a['kind'] == 'nothing' and row['label'] == row['labels'] == row['excluded'] == '' and 'no class stands out: red 34%' in row['reasons']
    store = Store(tmp_path)
    assert store.keep(picture(np.random.default_rng(0)), 'red', a).state == 'done' and store.rows()[0]['answer'] == ''


def test_names_of_classes_keep_their_capitals():
    from silkworm_app.serve.page.html import Say
    assert list(Say('en', ['NPV', 'iPhone', 'rust_spot']).titles.values()) == ['NPV', 'IPhone', 'Rust spot']


def test_what_a_person_wrote_into_the_table_stays(tmp_path):
    from silkworm_app.serve.page.collect import COLLECTED, Store
    store, a, rng = Store(tmp_path), dict(kind='one', labels=['red'], probability=.9), np.random.default_rng(0)
    keep = lambda: store.keep(picture(rng, (320, 240)), 'red', a)
    assert keep().state == 'done'
    table = tmp_path / COLLECTED
    head, row = table.read_text(encoding='utf-8-sig').splitlines()
    table.write_text(f'{head},tray\n{row},7,far beyond\n')
    assert keep().state == 'done' and [(r['tray'], r.get(None)) for r in store.rows()] == [('7', ['far beyond']), ('', None)]
    table.write_bytes('file,said,phash\nx,gr\u00fcn,0\n'.encode('cp1252'))
    assert keep().state == 'failed' and str(table) in keep().why
    with pytest.raises(ValueError, match=f'--collect: {table} cannot be read'): Store(tmp_path)


def test_a_page_without_serve_finds_its_folder(tmp_path, monkeypatch):
    import tempfile
    from silkworm_app.serve.page.page import Page
    monkeypatch.delenv('GRADIO_TEMP_DIR', raising=False)
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    (tmp_path / 'red.jpg').write_bytes(red)
    Page(Colours()).identify_many([str(tmp_path / 'red.jpg')], None, progress=lambda *args, **kwargs: None)
    assert len(list((tmp_path / 'gradio').rglob('*.csv'))) == 1


def test_a_whole_folder_takes_what_can_be_opened(http):
    from silkworm_app.data.imaging import IMAGE_SUFFIXES
    js = next(v for c in http.get('/config').json()['components'] if 'webkitdirectory' in (v := str(c['props'].get('js_on_load'))))
    assert all(re.search(rf'[(|]{s[1:]}[|)]', js) for s in IMAGE_SUFFIXES)


def test_what_ends_the_page_is_as_before_it():
    import signal
    from types import SimpleNamespace
    from silkworm_app.serve.page.server import wait
    before, closed = signal.getsignal(signal.SIGTERM), []
    threading.Timer(.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    wait(SimpleNamespace(close=lambda: closed.append(1)))
    assert closed and signal.getsignal(signal.SIGTERM) == before


def test_map_without_a_warm_place_is_said(monkeypatch):
    from types import SimpleNamespace
    from silkworm_app.serve.page import page
    monkeypatch.setattr('silkworm_app.serve.explain.grad_cam', lambda *a: np.zeros((4, 4)))
    class Net(Colours): model = SimpleNamespace(forward_features=None)
    im = Image.new('RGB', (40, 30), 'red')
    assert page.looked(Net(), im, dict(probabilities=dict(red=1., green=0.))) == (None, 'nothing')
    assert page.looked(Colours(), im, dict(probabilities=dict(red=1., green=0.))) == (None, None)
