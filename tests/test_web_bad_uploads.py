"""Generated bad uploads: each gets an answer or a clear message, and leaves nothing behind.

60 in CI; `pytest -m slow tests/test_web_bad_uploads.py` sends 1,000 to a real net, with one file of 200 MB among them."""
import tempfile
import time
from pathlib import Path

import httpx
import pytest
from PIL import Image

from web_tools import Colours, as_file, bad_uploads, call, encode, files_in, random_bundle, serving, upload


@pytest.mark.parametrize('count', [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_bad_uploads(count, monkeypatch, tmp_path, tmp_path_factory, capfd):
    predictor = Colours()
    if count >= 1000:
        from silkworm_app.serve.load import load_bundle
        predictor = load_bundle(random_bundle(tmp_path_factory.mktemp('bundle') / 'bundle'))
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))      # what the server forgets would lie here
    good, seen, slowest = encode(Image.new('RGB', (40, 30), 'red'), 'JPEG'), {}, 0.
    with serving(predictor, delete_after=(2, 2)) as demo, httpx.Client(base_url=demo.local_url.rstrip('/'), timeout=30) as http:
        for kind, name, data in bad_uploads(count):
            start = time.perf_counter()
            r = upload(http, data, name)
            if r.status_code != 200: status, out = 'refused', r.text
            else: status, out = call(http, 'predict', [as_file(r.json()[0])])
            slowest = max(slowest, time.perf_counter() - start)
            seen[kind, status] = seen.get((kind, status), 0) + 1
            if status == 'complete': assert set(out[0]['probabilities']) == set(predictor.classes), (kind, name)
            else:
                message = out['error'] if status == 'error' else out
                assert isinstance(message, str) and 10 < len(message) < 600 and '\n' not in message.strip(), (kind, name, status, out)
                assert 'Traceback' not in message and demo.upload_folder not in message, (kind, name, message)
        if count >= 1000:
            r = upload(http, bytes(200 * 2**20))
            assert r.status_code == 413, r.status_code
        status, (out,) = call(http, 'predict', [as_file(upload(http, good).json()[0])])
        assert status == 'complete' and (count >= 1000 or out['label'] == 'red')
        end, folder = time.monotonic() + 30, Path(demo.upload_folder)
        while files_in(folder) and time.monotonic() < end: time.sleep(.5)
        assert files_in(folder) == []
    assert files_in(tmp_path) == []
    text = capfd.readouterr()
    assert 'Traceback' not in text.out + text.err, (text.out + text.err)[-3000:]
    print(f'{count} bad uploads, slowest {slowest:.2f} s:', {f'{k} {s}': n for (k, s), n in sorted(seen.items())})
    for kind in ('empty', 'svg', 'zipped', 'huge', 'noise', 'text', 'wrong_magic'): assert (kind, 'complete') not in seen, seen
    for kind in ('cmyk', 'modes', 'shape', 'wrong_name'): assert seen.get((kind, 'complete')), seen
