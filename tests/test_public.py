"The public benchmark: built from a server, with a picture that is gone, one that has changed, one that comes at the second try, and an interruption."
import csv
import hashlib
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

from silkworm_app.data.splits import find_splits, read_manifest
from conftest import untar

sys.path.insert(0, str(Path(__file__).parent.parent/'data_prep'))
import public


def test_the_list_is_whole():
    rows = public.read_list()
    assert len({r['sha256'] for r in rows}) == len(rows) and all(len(r['sha256']) == 64 and len(r['commit']) == 40 for r in rows)
    assert {r['class'] for r in rows} == {'healthy', 'flacherie', 'grasserie', 'muscardine', 'pebrine'}
    of = {}
    for r in rows: of.setdefault(r['group'], set()).add((r['fold'], r['class']))
    assert all(len(v) == 1 for v in of.values())                     # a photograph is in one fold, under one class


@pytest.fixture
def site(tmp_path_factory):
    "(address, {path: bytes}, Counter of requests, paths that fail once): the pictures of one repository, as they lie in it"
    root = untar('silkworm_raw', tmp_path_factory)/'Test'
    rows = [r for r in public.read_list() if 'silk-shield' in r['repository']]
    group = {c: list(dict.fromkeys(r['group'] for r in rows if r['class'] == c))[:3] for c in ('healthy', 'flacherie')}
    rows = [next(r for r in rows if r['group'] == g) for gs in group.values() for g in gs]
    for k, r in enumerate(rows): r['fold'] = f'fold_{k % 2 + 1}'
    files = {f'/{r["repository"]}/{r["commit"]}/{r["path"]}': (root/Path(r['path']).relative_to('Training/Dataset/Test')).read_bytes() for r in rows}
    asked, once = Counter(), set()
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_): pass
        def do_GET(self):
            path = unquote(self.path)
            asked[path] += 1
            code = 503 if path in once and asked[path] == 1 else 200 if path in files else 404
            self.send_response(code)
            self.end_headers()
            if code == 200: self.wfile.write(files[path])
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_address[1]}', rows, files, asked, once
    server.shutdown()


def test_an_answer_that_was_cut_off_is_asked_for_again_and_a_dot_is_a_folder(tmp_path, monkeypatch, capsys):
    asked = Counter()
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_): pass
        def do_GET(self):
            asked[self.path] += 1
            if self.path == '/odd': self.wfile.write(b'what?\r\n\r\n'); return
            self.send_response(200)
            self.send_header('Content-Length', '10')
            self.end_headers()
            self.wfile.write(b'0123456789'[:10 if asked[self.path] > 1 else 4])
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    at = f'http://127.0.0.1:{server.server_address[1]}'
    assert public.fetch(f'{at}/x', wait=0) == b'0123456789' and asked['/x'] == 2
    with pytest.raises(public.Gone, match=r'cannot be fetched \(only 4 of 10 bytes came\)'): public.fetch(f'{at}/y', tries=1)
    with pytest.raises(public.Gone, match='cannot be fetched'): public.fetch(f'{at}/odd', tries=1)
    server.shutdown()
    (tmp_path/'here').mkdir()
    monkeypatch.chdir(tmp_path/'here')
    assert public.main(['.', '--mirror', 'http://127.0.0.1:9', '--wait', '0', '--pause', '0']) == 2 and 'too few pictures' in capsys.readouterr().err


def test_built_from_a_server(site, tmp_path, monkeypatch, capsys):
    at, rows, files, asked, once = site
    listed = tmp_path/'list.csv'
    with listed.open('w', newline='') as f:
        w = csv.DictWriter(f, rows[0])
        w.writeheader()
        w.writerows(rows)
    def build(*more): return public.main([str(tmp_path/'set'), '--list', str(listed), '--mirror', at, '--pause', '0', '--wait', '0.01', *more])
    paths, whole = list(files), dict(files)
    once.add(paths[0])
    fetch, n = public.fetch, iter(range(100))
    def stopped(*args, **kw):
        if next(n) == 3: raise KeyboardInterrupt
        return fetch(*args, **kw)
    monkeypatch.setattr(public, 'fetch', stopped)
    assert build() == 130 and 'run it again' in capsys.readouterr().err and not (tmp_path/'set').exists()
    monkeypatch.setattr(public, 'fetch', fetch)
    assert sum(asked.values()) == 4                                   # three pictures, one of them at the second try
    files[paths[4]] += b'changed'
    del files[paths[5]]
    asked.clear()
    assert build() == 1
    out, err = capsys.readouterr()
    assert set(asked) == set(paths[3:])                               # what had come isn't fetched again
    assert 'has changed' in err and 'is gone from there (404' in err and len([l for l in err.splitlines() if 'silk-shield' in l]) == 2
    made = read_manifest(tmp_path/'set')
    assert len(made) == 4 and '2 of 6 listed pictures are missing' in out and {r['split'] for r in made} == {'fold_1', 'fold_2'}
    fold = {r['sha256']: r['fold'] for r in rows}
    assert all(r['split'] == fold[r['sha256']] and hashlib.sha256((tmp_path/'set'/r['path']).read_bytes()).hexdigest() == r['sha256'] for r in made)
    assert build() == 2 and 'overwrite' in capsys.readouterr().err
    files.update(whole)
    assert build('--overwrite') == 0 and len(read_manifest(tmp_path/'set')) == 6
    assert find_splits(tmp_path/'set').leak['test_seen_in_train'] == 0
    assert public.main([str(tmp_path/'none'), '--list', str(listed), '--mirror', 'http://127.0.0.1:9', '--wait', '0']) == 2
    assert 'too few pictures' in capsys.readouterr().err
