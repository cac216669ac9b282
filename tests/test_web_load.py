"""32 clients at once, 1,000 requests of real photographs, each answer compared with the offline prediction; and what the page costs over the bare model.

`SILKWORM_DATA=... python tests/test_web_load.py [--bundle DIR]` prints the report of docs/web.md; `pytest -m slow tests/test_web_load.py` checks the same."""
import argparse
import os
import queue
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from silkworm_app.data.folder import unpack
from web_tools import as_file, call, random_bundle, upload

root = Path(__file__).resolve().parent.parent


class App:
    "app.py in a process of its own."
    def __init__(self, bundle, *args):
        env = dict(os.environ, OMP_NUM_THREADS='1')
        self.process = subprocess.Popen([sys.executable, '-u', root / 'app.py', '--bundle', bundle, '--port', '0', *args], stdout=subprocess.PIPE, text=True, env=env, cwd=root)
        self.url = re.search(r'http://127\.0\.0\.1:\d+', self.process.stdout.readline()).group()
    def memory(self): return int(re.search(r'VmRSS:\s+(\d+)', Path(f'/proc/{self.process.pid}/status').read_text()).group(1)) / 1024
    def __enter__(self): return self
    def __exit__(self, *a): self.process.terminate(); self.process.wait(20)


def ask(http, data, name):
    "One request as a client makes it: upload, call, wait for the answer."
    r = upload(http, data, name)
    return call(http, 'predict', [as_file(r.json()[0])]) if r.status_code == 200 else ('refused', r.text)


def load(url, pictures, clients, memory):
    "Ask about every picture from `clients` threads: [(index, seconds, status, answer)], MB of memory over the time."
    todo, out, mb, start = queue.SimpleQueue(), [], [memory()], time.perf_counter()
    for i in range(len(pictures)): todo.put(i)
    def client():
        with httpx.Client(base_url=url, timeout=120) as http:
            while True:
                try: i = todo.get_nowait()
                except queue.Empty: return
                t = time.perf_counter()
                answer = ask(http, pictures[i].read_bytes(), pictures[i].name)
                out.append((i, time.perf_counter() - t, *answer))
    threads = [threading.Thread(target=client) for _ in range(clients)]
    for t in threads: t.start()
    while any(t.is_alive() for t in threads):
        time.sleep(.5)
        mb.append(memory())
    return out, mb, time.perf_counter() - start


def photographs(dest, n):
    "n real photographs, some of them more than once."
    data = Path(os.environ['SILKWORM_DATA'])
    for name in ('hymenoptera', 'silkworm_raw'):
        unpack(data / f'{name}.tar', dest)
    files = sorted(p for p in Path(dest).rglob('*') if p.suffix.lower() in ('.jpg', '.jpeg'))
    return [files[i] for i in np.random.default_rng(0).permutation(len(files))[:n]]


def measure(bundle, folder, n=1000, clients=32):
    "The numbers of a load test of `app.py` with a bundle."
    from silkworm_app.serve.load import load_bundle
    files = photographs(folder, n)
    with App(bundle) as app:
        with httpx.Client(base_url=app.url, timeout=60) as http:
            first = time.perf_counter()
            ask(http, files[0].read_bytes(), 'first.jpg')
            first = time.perf_counter() - first
            backend = call(http, 'model_info', [])[1][0]['backend']
            offline, alone, bare = load_bundle(bundle, backend='onnx' if backend == 'onnxruntime' else 'torch', threads=1), [], []
            for f in files[:100]:               # in turns, so that a busy machine slows both
                t = time.perf_counter()
                ask(http, f.read_bytes(), f.name)
                alone.append(time.perf_counter() - t)
                t = time.perf_counter()
                offline.decide([f])
                bare.append(time.perf_counter() - t)
        answers, mb, seconds = load(app.url, files, clients, app.memory)
        again = load(app.url, files[:n // 4], clients, app.memory)[1]
    expected, errors, wrong = offline.decide(files), [], 0
    for i, _, status, out in answers:
        if status != 'complete': errors.append((files[i].name, out)); continue
        d, a = expected[i], out[0]
        wrong += a['label'] != d.label or a['reasons'] != d.reasons or max(abs(a['probabilities'][c] - p) for c, p in d.probs.items()) > 1e-4
    took = np.array([s for _, s, _, _ in answers])
    ms = lambda s: round(1000 * float(s), 1)
    return dict(backend=backend, requests=len(answers), clients=clients, errors=len(errors), some_errors=errors[:3], wrong=wrong, per_second=round(n / seconds, 1),
                median_ms=ms(np.median(took)), p95_ms=ms(np.quantile(took, .95)), max_ms=ms(took.max()), memory_mb=(round(mb[0]), round(max(mb)), round(max(again))),
                first_ms=ms(first), alone_ms=ms(statistics.median(alone)), bare_ms=ms(statistics.median(bare)),
                alone_best_ms=ms(np.quantile(alone, .1)), bare_best_ms=ms(np.quantile(bare, .1)), load_average=round(os.getloadavg()[0], 1))


@pytest.mark.slow
def test_load(tmp_path, data_dir):
    r = measure(random_bundle(tmp_path / 'bundle', onnx=True), tmp_path)
    print(r)
    assert r['requests'] == 1000 and not r['errors'] and not r['wrong'], r
    before, most, again = r['memory_mb']
    assert most < before + 300 and again < most + 50, r
    assert r['alone_ms'] < 500, r


def main():
    p = argparse.ArgumentParser()
    p.add_argument('--bundle', help='default: a small net with random weights')
    p.add_argument('--requests', type=int, default=1000)
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as d:
        for k, v in measure(a.bundle or random_bundle(Path(d) / 'bundle', onnx=True), Path(d) / 'pictures', a.requests).items(): print(f'{k}: {v}')


if __name__ == '__main__': main()
