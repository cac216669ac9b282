"silkworm-data as a user meets it: real sets, broken pictures, hostile archives, runs that are killed."
import csv
import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from silkworm_app.data.folder import DataError, new_folder
from silkworm_app.data.merge import merge
from silkworm_app.files import whole_folder
from silkworm_app.data.sample import draw_larva
from silkworm_app.data.splits import find_splits
from silkworm_app.data.imaging import ImageError, open_image
from silkworm_app.data.cifar import cifar, cifar_splits
from silkworm_app.data.folder import Scan, opened, unpack
from silkworm_app.data.cli import main
from silkworm_app.data.prepare import prepare, read_mapping
from silkworm_app.data.audit import audit, audit_text, headlines
from silkworm_app.train.config import TrainConfig, read_settings
from silkworm_app.train.setup import load_splits


def everything(root): return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(Path(root).rglob('*')) if p.is_file()}


def tree(root, classes=('pabrin', 'undiseased'), n=6, size=72, seed=0):
    for k, c in enumerate(classes):
        (root / c).mkdir(parents=True, exist_ok=True)
        for i in range(n): draw_larva('pebrine' if k % 2 else 'healthy', size, 1000 * seed + 100 * k + i).save(root / c / f'{i}.png')
    return root


def rows(dest): return list(csv.DictReader((dest / 'manifest.csv').open(encoding='utf-8-sig')))


def bomb():
    "A PNG of 60,000 x 60,000 pixels in a few bytes."
    chunk = lambda k, d: len(d).to_bytes(4, 'big') + k + d + zlib.crc32(k + d).to_bytes(4, 'big')
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', (60000).to_bytes(4, 'big') * 2 + bytes([8, 0, 0, 0, 0])) + chunk(b'IDAT', zlib.compress(bytes(1000))) + chunk(b'IEND', b'')


def test_every_kind_of_bad_file(tmp_path, capsys):
    d = tree(tmp_path / 'fotos – 蚕 set')
    c = d / 'pabrin'
    (c / 'bomb.png').write_bytes(bomb())
    (c / 'zero.jpg').touch()
    (c / 'page.jpg').write_bytes(b'<!doctype html><p>404')
    (c / 'cut.png').write_bytes((c / '0.png').read_bytes()[:900])
    (c / 'gone.jpg').symlink_to(tmp_path / 'nowhere.jpg')
    (c / 'loop').symlink_to(d)
    (c / 'self.jpg').symlink_to(c / 'self.jpg')
    shutil.copy(c / '1.png', c / 'really a png.jpg')
    os.mkfifo(c / 'pipe.jpg')
    before = everything(d / 'undiseased')
    r = audit(d, 'copies')
    bad = '\n'.join(r['unusable'])
    assert len(r['unusable']) == 7 and all(n in bad for n in ('bomb.png', 'zero.jpg', 'page.jpg', 'cut.png', 'gone.jpg', 'self.jpg', 'pipe.jpg')), bad
    assert 'more pixels' in bad or '60000 x 60000' in bad
    assert r['link_loops'] == 1 and r['wrong_suffix'] == ['pabrin/really a png.jpg is PNG'] and r['distinct'] == {'healthy': 6, 'pebrine': 6}
    out = prepare(d, tmp_path / 'out', folds=0, level='copies', test_pct=.3)
    assert sum(sum(c.values()) for c in out['counts'].values()) == 12 and any('7 file(s) left out: cannot be opened' in n for n in out['notes'])
    assert main(['audit', str(d), '--strict']) == 1 and before == everything(d / 'undiseased')
    assert all(Path(p).suffix == '.png' for p in everything(tmp_path / 'out') if p.count('/') == 2)


def test_many_files_in_a_folder_are_listed_fast(tmp_path):
    "100,000 names in one folder."
    d = tmp_path / 'big/pebrine'
    d.mkdir(parents=True)
    for i in range(100_000): os.close(os.open(d / f'{i:06d}.jpg', os.O_CREAT | os.O_WRONLY))
    t = time.perf_counter()
    s = Scan(tmp_path / 'big')
    assert len(s.items) == 100_000 and s.classes == ['pebrine'] and time.perf_counter() - t < 60


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read everything')
def test_unreadable_folder(tmp_path, capsys):
    d = tree(tmp_path / 'set')
    (d / 'pabrin').chmod(0)
    try:
        assert 'pabrin' in audit(d)['unreadable_folders'][0]
        assert main(['prepare', str(d), str(tmp_path / 'out')]) == 2 and 'pabrin' in capsys.readouterr().err
    finally: (d / 'pabrin').chmod(0o755)


def test_folder_that_closes_is_said(tmp_path, monkeypatch, capsys):
    "The same without depending on who runs the test."
    d, scandir = tree(tmp_path / 'set'), os.scandir
    def closed(p):
        if Path(p).name == 'pabrin': raise PermissionError(13, 'Permission denied', str(p))
        return scandir(p)
    monkeypatch.setattr(os, 'scandir', closed)
    assert 'pabrin: Permission denied' in audit(d)['unreadable_folders'][0]
    assert main(['prepare', str(d), str(tmp_path / 'out')]) == 2
    err = capsys.readouterr().err
    assert 'pabrin' in err and err.count('\n') == 1 and not (tmp_path / 'out').exists()


@pytest.mark.parametrize('name', ['../evil.png', 'a/../../evil.png', '/tmp/evil_absolute.png', '..\\evil.png', 'C:\\evil.png'])
@pytest.mark.parametrize('kind', ['zip', 'tar'])
def test_archives_with_members_outside(tmp_path, name, kind, capsys):
    data, path = (tree(tmp_path / 't', n=1) / 'pabrin/0.png').read_bytes(), tmp_path / f'set.{kind}'
    if kind == 'zip':
        with zipfile.ZipFile(path, 'w') as z: z.writestr('x/pabrin/0.png', data); z.writestr(name, data)
    else:
        with tarfile.open(path, 'w') as t:
            for n in ('x/pabrin/0.png', name):
                i = tarfile.TarInfo(n); i.size = len(data); t.addfile(i, io.BytesIO(data))
    before = set(tmp_path.rglob('*'))
    for args in (['audit', str(path)], ['prepare', str(path), str(tmp_path / 'out/deep')], ['cifar10', str(tmp_path / 'out/deep'), '--source', str(path)]):
        assert main(args) == 2
        err = capsys.readouterr().err
        assert 'points outside' in err and err.count('\n') == 1
    assert {p for p in tmp_path.rglob('*') if p.is_file()} <= before and not Path('/tmp/evil_absolute.png').exists()


def test_links_in_archives_are_not_followed(tmp_path):
    (tmp_path / 'secret').mkdir()
    draw_larva('healthy', 48, 5).save(tmp_path / 'secret/s.png')
    tree(tmp_path / 'set')
    with tarfile.open(tmp_path / 'a.tar', 'w') as t:
        t.add(tmp_path / 'set', 'set')
        for n, kind in (('set/pabrin/link', tarfile.SYMTYPE), ('set/pabrin/hard.png', tarfile.LNKTYPE)):
            i = tarfile.TarInfo(n); i.type, i.linkname = kind, str(tmp_path / 'secret'); t.addfile(i)
    assert audit(tmp_path / 'a.tar')['files'] == 12


def test_hard_links_in_a_tar_are_files(tmp_path, capsys):
    tree(tmp_path / 'set/train')
    for p in (tmp_path / 'set/train').rglob('*.png'):
        (to := tmp_path / 'set/test' / p.parent.name).mkdir(parents=True, exist_ok=True)
        os.link(p, to / p.name)
    (tmp_path / 'set/latest').symlink_to('train')
    with tarfile.open(tmp_path / 'set.tar', 'w') as t: t.add(tmp_path / 'set', 'set')
    r = audit(tmp_path / 'set.tar', 'hash')
    assert r['files'] == 24 and r['test_seen_in_train'] == 1 and 'set.tar: 1 link(s) in it were left out' in capsys.readouterr().err


def test_a_link_to_what_was_replaced_is_left_out(tmp_path):
    "A file that a link of its name took the place of is no file that a hard link could stand for"
    with tarfile.open(tmp_path / 's.tar', 'w') as t:
        for n, kind, to in (('a.jpg', tarfile.REGTYPE, ''), ('a.jpg', tarfile.SYMTYPE, 'nowhere.jpg'), ('b.jpg', tarfile.LNKTYPE, 'a.jpg')):
            i = tarfile.TarInfo(n); i.type, i.linkname = kind, to; t.addfile(i)
    (out := tmp_path / 'out').mkdir()
    assert unpack(tmp_path / 's.tar', out) == 2 and not (out / 'b.jpg').exists()


@pytest.mark.parametrize('last', ['more.zip', 'trays.xlsx'])
def test_a_tar_that_ends_with_a_zip_is_a_tar(tmp_path, last):
    "A zip is known by its end, which here is that of the tar"
    d = tree(tmp_path / 'set')
    with zipfile.ZipFile(tmp_path / last, 'w') as z: z.write(d / 'pabrin/0.png', 'pabrin/0.png')
    with tarfile.open(tmp_path / 'set.tar', 'w') as t: t.add(d, 'set'); t.add(tmp_path / last, f'set/{last}')
    with opened(tmp_path / 'set.tar') as root: assert len(Scan(root).items) == 12


def test_archive_equals_folder_and_damage_is_said(tmp_path, capsys):
    d = tree(tmp_path / 'set')
    shutil.make_archive(tmp_path / 'set', 'zip', tmp_path, 'set')
    a, b = audit(d), audit(tmp_path / 'set.zip')
    assert {k: v for k, v in a.items() if k != 'source'} == {k: v for k, v in b.items() if k != 'source'}
    (tmp_path / 'cut.zip').write_bytes((tmp_path / 'set.zip').read_bytes()[:2000])
    (tmp_path / 'list.txt').write_text('no archive')
    for p, words in ((tmp_path / 'cut.zip', 'no zip or tar archive'), (tmp_path / 'list.txt', 'is no folder, and no zip or tar archive that can be unpacked\n'), (tmp_path / 'none', 'does not exist')):
        assert main(['audit', str(p)]) == 2 and words in capsys.readouterr().err
    for name, mode in (('set.zip', None), ('set.tar.xz', 'w:xz'), ('set.tgz', 'w:gz'), ('set.tbz', 'w:bz2')):      # bytes in the middle were overwritten
        if mode:
            with tarfile.open(tmp_path / name, mode) as t: t.add(d, 'set')
        whole = bytearray((tmp_path / name).read_bytes())
        whole[len(whole)//3:len(whole)//3 + 400] = bytes(400)
        (tmp_path / f'bad {name}').write_bytes(whole)
        assert main(['audit', str(tmp_path / f'bad {name}')]) == 2 and f'bad {name}' in capsys.readouterr().err
    (tmp_path / 'empty').mkdir()
    assert main(['audit', str(tmp_path / 'empty')]) == 2 and 'no pictures' in capsys.readouterr().err


@pytest.mark.parametrize('kind', ['zip', 'tar'])
@pytest.mark.parametrize('names', [('a/\xe9.png', 'a/e\u0301.png'), ('a/x.png', './a/x.png'), ('a/x.png', 'a/x.png')], ids=['forms', 'dot', 'again'])
@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_no_file_of_an_archive_takes_the_place_of_another(tmp_path, kind, names):
    with (zipfile.ZipFile(tmp_path / 'a', 'w') if kind == 'zip' else tarfile.open(tmp_path / 'a', 'w')) as z:
        for k, n in enumerate(names):
            if kind == 'zip': z.writestr(n, b'%d' % k)
            else:
                t = tarfile.TarInfo(n)
                t.size = 1
                z.addfile(t, io.BytesIO(b'%d' % k))
    (tmp_path / 'out').mkdir()
    if names[0] == names[1]:                                     # added again, as `tar -r` does: the last one stands
        unpack(tmp_path / 'a', tmp_path / 'out')
        assert (tmp_path / 'out/a/x.png').read_bytes() == b'1'
        return
    with pytest.raises(DataError, match='two files whose names read'): unpack(tmp_path / 'a', tmp_path / 'out')
    assert not list((tmp_path / 'out').iterdir())


def test_strict_says_that_the_test_lies_in_validation(tmp_path):
    d = tree(tree(tree(tmp_path / 'set/train', n=3).parent / 'valid', n=2, seed=5).parent / 'test', n=2, seed=7).parent
    assert main(['audit', str(d), '--strict']) == 0
    shutil.copy(d / 'valid/pabrin/0.png', d / 'test/pabrin/same.png')
    assert main(['audit', str(d), '--strict']) == 1


def test_what_lies_in_no_split_is_said(tmp_path):
    for s in ('training_set', 'test-set'): tree(tmp_path / 'set' / s, n=2, seed=len(s))
    tree(tmp_path / 'set', classes=('more',), n=3, seed=7)
    r = audit(tmp_path / 'set', 'hash')
    assert r['given_splits'] and any(h.startswith('3 file(s) lie beside the split folders') for h in headlines(r))
    for c in ('cats', 'dogs'):
        for k, s in enumerate(('Train', 'Test')): tree(tmp_path / 'out' / c, classes=(s,), n=2, seed=40 + 2 * ord(c[0]) + k)
    said = 'hold split folders (cats/Test, cats/Train), which are not read as splits: turn them inside out (Test/cats, Train/cats)'
    assert any(said in h for h in headlines(audit(tmp_path / 'out', 'hash')))
    with pytest.raises(DataError) as e: find_splits(tmp_path / 'out')
    assert said in str(e.value)


@pytest.mark.parametrize('split', ['', 'train'])
def test_farms_above_the_classes_are_said(tmp_path, split):
    said = 'its class folders farm_A, farm_B hold the same folders (grasserie, healthy): if those are the classes, put them first'
    def remarks(name, **inner):
        for k, (farm, of) in enumerate(inner.items()): tree(tmp_path / name / split / farm, classes=of, n=1, seed=k)
        return headlines(audit(tmp_path / name, 'hash', show=False))
    assert said in remarks('farms', farm_A=('healthy', 'grasserie'), farm_B=('grasserie', 'healthy'))
    if not split: assert said in find_splits(tmp_path / 'farms').warnings
    assert 'put them first' not in str(remarks('days', ants=('May', 'June'), bees=('June', 'July')) + remarks('one', ants=('May',), bees=('May',)))


def test_messages_name_the_archive_and_not_where_it_was_unpacked(tmp_path, capsys):
    for name, inside, text in (('none.zip', 'a/b.txt', ''), ('table.zip', 'collected.csv', 'file,said\n"never closed' + 200_000*'x')):
        with zipfile.ZipFile(tmp_path / name, 'w') as z:
            z.writestr(inside, text)
            if name == 'table.zip': [z.write(p, f'pabrin/{p.name}') for p in tree(tmp_path / 'set').rglob('pabrin/*')]
    prepare(tmp_path / 'set', tmp_path / 'old', folds=0, level='hash', show=False)
    none, table, old, out = (str(tmp_path / n) for n in ('none.zip', 'table.zip', 'old', 'out'))
    for args in (['audit', none], ['prepare', none, out], ['crop', none, out], ['prepare', old, none, out]):
        assert main(args) == 2 and f'{none} holds no pictures' in capsys.readouterr().err
    assert main(['prepare', old, table, out]) == 2 and f'{table}/collected.csv is damaged' in capsys.readouterr().err


def test_archives_in_a_set_are_said(tmp_path, capsys):
    d, said = tree(tmp_path / 'set', n=3), '1 archive(s) in it were not opened (more.zip): if they hold pictures, unpack them and move the archives away'
    shutil.make_archive(tmp_path / 'more', 'zip', d)
    shutil.copy(tmp_path / 'more.zip', d)
    assert said in headlines(audit(d, 'hash', show=False)) and said in find_splits(d).warnings
    prepare(tree(tmp_path / 'first', seed=5), tmp_path / 'old', folds=0, level='hash', show=False)
    for out in (prepare(d, tmp_path / 'out', folds=0, level='hash', show=False), merge(tmp_path / 'old', d, tmp_path / 'new', show=False)):
        assert said in out['notes'] and (Path(out['path']) / 'README.md').read_text().count(said) == 1
    (tmp_path / 'only').mkdir()
    shutil.move(tmp_path / 'more.zip', tmp_path / 'only')
    assert main(['audit', str(tmp_path / 'only')]) == 2 and f'holds no pictures; {said}' in capsys.readouterr().err
    wrapped = tmp_path / 'wrapped'
    shutil.copytree(d, wrapped / 'set', ignore=shutil.ignore_patterns('more.zip'))
    shutil.copy(d / 'more.zip', wrapped)
    assert main(['audit', str(wrapped), '--level', 'hash']) == 0 and f'{wrapped}: {said}' in capsys.readouterr().err
    (wrapped / 'set/pabrin/a.tar.gz').write_bytes(b'')
    assert 'not opened (pabrin/a.tar.gz)' in str(headlines(audit(wrapped, 'hash', show=False)))


def test_a_folder_with_two_names_is_no_loop(tmp_path, capsys):
    "One of them would be lost, with its class"
    d = tree(tmp_path / 'set')
    (d / 'zebra').symlink_to(d / 'pabrin')
    for read in (lambda: prepare(d, tmp_path / 'out'), lambda: find_splits(d)):
        with pytest.raises(DataError) as e: read()
        assert 'the same folder as' in str(e.value) and 'set/zebra' in str(e.value) and 'set/pabrin' in str(e.value)
    assert main(['audit', str(d), '--strict', '--level', 'hash']) == 1 and 'it is the same folder as' in capsys.readouterr().out


def test_leak_conflict_and_exact_copies(tmp_path):
    d = tree(tree(tmp_path / 'set/Train', n=5).parent / 'Test', n=3, seed=7).parent
    shutil.copy(d / 'Train/pabrin/0.png', d / 'Test/pabrin/same.png')
    Image.open(d / 'Train/pabrin/1.png').resize((60, 60)).save(d / 'Test/pabrin/small.jpg', quality=80)
    Image.open(d / 'Train/undiseased/1.png').rotate(25, Image.Resampling.BICUBIC, fillcolor='white').save(d / 'Test/undiseased/turned.jpg', quality=90)
    shutil.copy(d / 'Train/undiseased/2.png', d / 'Train/pabrin/two labels.png')
    r = audit(d)
    at = {k: v['test_seen_in_train'] * 9 for k, v in r['by_level'].items()}
    assert {k: round(v) for k, v in at.items()} == {'exact': 1, 'near': 2, 'copies': 3}
    assert r['label_conflicts'] == 1 and r['conflicts'] == [['Train/pabrin/two labels.png', 'Train/undiseased/2.png']]
    assert headlines(r)[0].startswith('33.3 % of the test pictures were seen in training')
    assert sorted(map(sorted, r['across_splits'])) == [['Test/pabrin/same.png', 'Train/pabrin/0.png'], ['Test/pabrin/small.jpg', 'Train/pabrin/1.png'], ['Test/undiseased/turned.jpg', 'Train/undiseased/1.png']]
    assert '33.3 %' in audit_text(r) and json.loads(json.dumps(r)) == r


def test_a_photograph_under_two_classes_is_named(tmp_path):
    "By a file of each class, and no more than three in all"
    d = tree(tmp_path / 'set', n=4)
    said = lambda: [n for n in prepare(d, tmp_path / 'out', folds=0, level='hash', show=False, overwrite=True)['notes'] if 'two or more classes' in n]
    assert said() == []
    for i in (0, 2):
        shutil.copy(d / f'pabrin/{i}.png', d / f'undiseased/z{i}.png')
        last = 'pabrin/0.png, undiseased/z0.png' + ', pabrin/2.png, ...'*(i > 0)
        assert said() == [f'{2 + i} file(s) left out: photograph under two or more classes ({last}): delete the wrong one']
    for n in 'ab': Image.open(d / 'pabrin/0.png').resize((60, 60)).save(d / f'pabrin/0{n}.png')
    assert '6 file(s)' in said()[0] and '(pabrin/0.png, undiseased/z0.png, pabrin/2.png, ...)' in said()[0]


def test_of_near_copies_the_largest_stays(tmp_path):
    "And not the one whose name comes first"
    d = tree(tmp_path / 'set', n=3)
    for p in d.rglob('*.png'): Image.open(p).resize((64, 64)).save(p.with_name(f'+{p.name}'))
    prepare(d, tmp_path / 'out', folds=0, level='hash', show=False)
    assert {r['source'] for r in rows(tmp_path / 'out')} == {f'{c}/{i}.png' for c in ('pabrin', 'undiseased') for i in range(3)}


def test_mapping(tmp_path):
    d = tree(tmp_path / 'set', classes=('a', 'b', 'junk'), n=5)
    for name, text in (('m.yaml', 'a: pebrine\nb: Healthy larva\njunk:\n'), ('m.csv', 'a,pebrine\nb,Healthy larva\njunk,\n'), ('m.json', '{"a": "pebrine", "b": "Healthy larva", "junk": null}')):
        (tmp_path / name).write_text(text)
        assert read_mapping(tmp_path / name) == {'a': 'pebrine', 'b': 'Healthy larva', 'junk': None}
    out = prepare(d, tmp_path / 'out', folds=0, mapping=tmp_path / 'm.yaml')
    assert set(out['distinct']) == {'pebrine', 'Healthy larva'} and {r['source'].split('/')[0] for r in rows(tmp_path / 'out')} == {'a', 'b'}
    for m, words in (({'a': '../x'}, 'name of a class folder'), ({'a': 'test'}, 'name of a class folder'), ({'c': 'x'}, 'no class of'), ({'a': 'b', 'junk': None}, 'one class is left')):
        with pytest.raises(DataError, match=words): prepare(d, tmp_path / 'x', mapping=m)
    assert not (tmp_path / 'x').exists()


@pytest.mark.parametrize('name,text', [('m.csv', 'a;pebrine\n1;no\nx;\n'), ('m.csv', 'a,pebrine\n,\n1,no\n\nx,\n , \n'), ('m.yml', '# names\na: pebrine\n1: no\nx: ~\n'), ('m.json', '{"a": "pebrine", "1": "no", "x": ""}')])
def test_mappings_as_people_write_them(tmp_path, name, text):
    "As Excel saves them where a comma stands in numbers, with empty rows, with names that YAML takes for something else"
    (tmp_path / name).write_text(text)
    assert read_mapping(tmp_path / name) == {'a': 'pebrine', '1': 'no', 'x': None}


def test_a_mapping_that_says_two_things_of_a_class(tmp_path):
    (tmp_path / 'm.csv').write_text('a,pebrine\nb,healthy\na,healthy\n')
    with pytest.raises(DataError, match="names 'a' twice"): read_mapping(tmp_path / 'm.csv')


def test_an_empty_argument_is_no_folder(tmp_path, monkeypatch, capsys):
    tree(tmp_path, n=1)
    monkeypatch.chdir(tmp_path)
    for argv in (['audit', ''], ['prepare', '', 'new'], ['crop', '', 'new']): assert main(argv) == 2 and 'an argument is empty' in capsys.readouterr().err


def test_same_seed_same_bytes_and_place_does_not_matter(tmp_path):
    a = tree(tmp_path / 'one/set', n=11)
    shutil.copytree(a, tmp_path / 'two/deep/set')
    for i, (src, kw) in enumerate([(a, {}), (a, dict(workers=1)), (tmp_path / 'two/deep/set', {}), (a, dict(seed=1))]): prepare(src, tmp_path / f'out{i}', size=32, **kw)
    same = [everything(tmp_path / f'out{i}') for i in range(4)]
    assert same[0] == same[1] == same[2] != same[3]
    assert find_splits(tmp_path / 'out0', group='copies').leak['test_seen_in_train'] == 0
    for r in rows(tmp_path / 'out0'):
        assert Image.open(tmp_path / 'out0' / r['path']).size == (32, 32) and hashlib.sha256((tmp_path / 'out0' / r['path']).read_bytes()).hexdigest() == r['sha256'] and (a / r['source']).is_file()


def test_given_splits_are_cut_anew_and_that_is_said(tmp_path, capsys):
    d, said = tmp_path / 'set', 'the split folders (Test, Train) of the source were not kept: all photographs were cut anew'
    for k, s in enumerate(('Train', 'Test')): tree(d / s, n=3, seed=k)
    assert main(['prepare', str(d), str(tmp_path / 'out'), '--level', 'hash', '--folds', '0']) == 0 and f'note: {said}\n' in capsys.readouterr().out
    assert f'\n- {said}\n' in (tmp_path / 'out/README.md').read_text()
    assert not any('cut anew' in n for n in prepare(d / 'Train', tmp_path / 'one', folds=0, level='hash', show=False)['notes'])


def test_few_photographs_become_folds(tmp_path):
    d = tree(tmp_path / 'set', n=4)
    for i in range(4):
        for a in (15, 30): Image.open(d / f'pabrin/{i}.png').rotate(a, Image.Resampling.BICUBIC).save(d / f'pabrin/{i}_{a}.png')
    out = prepare(d, tmp_path / 'out', level='copies')
    assert out['folds'] == 4 and any('grouped folds' in n for n in out['notes']) and 'grouped folds' in (tmp_path / 'out/README.md').read_text()
    tests = [set(everything(tmp_path / f'out/fold_{i}/test')) for i in range(1, 5)]
    assert not set.intersection(*tests) and len(set.union(*tests)) == len(rows(tmp_path / 'out')) == 16
    for i in range(1, 5): assert find_splits(tmp_path / f'out/fold_{i}', group='copies').leak['test_seen_in_train'] == 0


def test_a_thin_class_does_not_cut_the_folds_of_all(tmp_path):
    "A class of one photograph is absent from all tests but one, and from the training of that one only"
    out = prepare(tree(tree(tmp_path / 'set', n=20), ('cocoon',), n=1, seed=9), tmp_path / 'out', level='hash', show=False)
    assert out['folds'] == 5 and any('(cocoon: 1): 5 grouped folds' in n and 'silkworm-train' in n for n in out['notes'])
    s = find_splits(tmp_path / 'out')
    for n in [s.fold(f).counts() for f in s.folds]: assert n['test']['cocoon'] + n['train']['cocoon'] == 1 and min(n['test']['healthy'], n['test']['pebrine']) == 4


def test_nothing_of_others_is_replaced(tmp_path, capsys):
    d = tree(tmp_path / 'set')
    mine = tmp_path / 'mine'
    mine.mkdir()
    (mine / 'thesis.txt').write_text('years of work')
    for extra in ([], ['--overwrite']):
        assert main(['prepare', str(d), str(mine), *extra]) == 2 and 'never replaced' in capsys.readouterr().err
    assert (mine / 'thesis.txt').read_text() == 'years of work'
    prepare(d, tmp_path / 'out', folds=0)
    with pytest.raises(DataError, match='overwrite'): prepare(d, tmp_path / 'out')
    prepare(d, tmp_path / 'out', folds=0, seed=3, overwrite=True)
    assert '"seed": 3' in (tmp_path / 'out/README.md').read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ['mine', 'out', 'set']
    for dest in (d, d / 'in', tmp_path):
        with pytest.raises(DataError, match='inside each other'): prepare(d, dest)
    (mine / 'manifest.csv').write_text('sample,date\n1,2026\n')           # a list of that name is no prepared set
    assert main(['prepare', str(d), str(mine), '--overwrite']) == 2 and 'never replaced' in capsys.readouterr().err


@pytest.mark.parametrize('folds,place', [(0, 'notes.txt'), (0, 'train/pabrin/more.png'), (3, 'fold_1/test/pabrin/more.png'), (3, 'mine/notes.txt')])
def test_what_was_put_into_a_prepared_set_is_not_lost(tmp_path, folds, place, capsys):
    d, out = tree(tmp_path / 'set'), tmp_path / 'out'
    prepare(d, out, folds=folds)
    (out / 'Thumbs.db').write_bytes(b'litter')
    prepare(d, out, folds=folds, overwrite=True)
    (out / place).parent.mkdir(exist_ok=True, parents=True)
    (out / place).write_text('years of work')
    assert main(['prepare', str(d), str(out), '--overwrite']) == 2 and Path(place).name in capsys.readouterr().err
    assert (out / place).read_text() == 'years of work'


def test_a_result_behind_a_link_at_a_mount_point_or_in_the_making(tmp_path, monkeypatch, capsys):
    d, big = tree(tmp_path / 'set'), tmp_path / 'big'
    big.mkdir()
    (tmp_path / 'clean').symlink_to(big / 'clean')
    for _ in range(3): assert main(['prepare', str(d), str(tmp_path / 'clean'), '--overwrite', '--level', 'hash']) == 0
    assert (tmp_path / 'clean').is_symlink() and (big / 'clean/manifest.csv').is_file() and [p.name for p in big.iterdir()] == ['clean']
    with whole_folder(tmp_path / 'out') as work:
        (work / 'mine').touch()
        with pytest.raises(DataError, match='another run is writing it'): prepare(d, tmp_path / 'out', level='hash', show=False)
        assert (work / 'mine').is_file()
    (tmp_path / '.out.partial/of a killed run').mkdir(parents=True)
    prepare(d, tmp_path / 'other', level='hash', show=False)
    with whole_folder(tmp_path / 'out') as work: assert not list(work.iterdir())
    (tmp_path / 'volume').mkdir()
    monkeypatch.setattr(os.path, 'ismount', lambda p: str(p) == str(tmp_path / 'volume'))
    with pytest.raises(DataError, match='volume is a mount point, which cannot be replaced; name a folder inside it'): prepare(d, tmp_path / 'volume')
    with pytest.raises(OSError, match='mount point'), whole_folder(tmp_path / 'volume'): pass


def test_a_source_given_as_a_dot_keeps_its_name(tmp_path, monkeypatch):
    d = tree(tmp_path / 'Set 1')
    (d / 'pabrin/bad.jpg').write_bytes(b'x')
    want = prepare(d, tmp_path / 'a', level='hash', show=False)
    monkeypatch.chdir(d)
    got = prepare('.', tmp_path / 'b', level='hash', show=False)
    assert got['notes'] == want['notes'] and any('Set 1/pabrin/bad.jpg is not a picture' in n for n in got['notes']), got['notes']
    assert everything(tmp_path / 'a') == everything(tmp_path / 'b') and merge(tmp_path / 'a', '.', tmp_path / 'c', show=False)['added'] == {}
    assert '(Set 1/pabrin/' in (tmp_path / 'c/README.md').read_text()


def test_a_fault_of_the_source_is_not_one_of_the_result(tmp_path):
    with pytest.raises(DataError, match='cannot be written: .*gone.png: No such file'), new_folder(tmp_path / 'out') as work:
        shutil.copyfile(tmp_path / 'gone.png', work / 'x.png')
    with pytest.raises(DataError, match='out cannot be written: the disk is full'), new_folder(tmp_path / 'out') as work:
        raise OSError(28, 'No space left on device', str(tmp_path / 'a.png'), None, str(work / 'x.png'))    # as shutil.copyfile does


def test_equal_files_that_cannot_be_opened_are_no_group(tmp_path):
    d = tree(tmp_path / 'set', n=2)
    for n in 'xy': (d / f'pabrin/{n}.jpg').write_bytes(b'no picture')
    r = audit(d, 'hash')
    assert r['groups'] == [] and len(r['unusable']) == 2


def test_killed_and_run_again(tmp_path):
    d = tree(tmp_path / 'set', n=30, size=200)
    cmd = [sys.executable, '-c', 'import sys; from silkworm_app.data.cli import main; sys.exit(main(sys.argv[1:]))', 'prepare', str(d), str(tmp_path / 'out'), '--size', '150', '--level', 'hash']
    before, p = everything(d), subprocess.Popen(cmd)
    t = time.monotonic()
    while not (list(tmp_path.glob('.out.partial/*/*/*')) or p.poll() is not None) and time.monotonic() - t < 120: time.sleep(.002)
    p.send_signal(signal.SIGKILL); p.wait()
    assert not (tmp_path / 'out').exists() or p.returncode == 0
    assert main(cmd[3:] + ['--overwrite']) == 0
    prepare(d, tmp_path / 'other', size=150, level='hash')
    assert everything(tmp_path / 'out') == everything(tmp_path / 'other') and everything(d) == before
    assert sorted(x.name for x in tmp_path.iterdir()) == ['other', 'out', 'set']


@pytest.mark.parametrize('args,words', [(['--valid', '1.2'], 'valid_pct'), (['--valid', '.5', '--test', '.5'], 'leaves too little'), (['--size', '3'], 'size must'), (['--seed', '-1'], 'seed must lie in'), (['--mapping', ''], 'an argument is empty'), (['--folds', '1'], 'folds must'), (['--workers', '0'], '--workers'), (['--mapping', 'none.yaml'], 'none.yaml')])
def test_options_out_of_range(tmp_path, args, words, capsys):
    assert main(['prepare', str(tree(tmp_path / 'set', n=2)), str(tmp_path / 'out'), *args]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count('\n') == 1 and not (tmp_path / 'out').exists()


# ---------------------------------------------------------------- pictures of every kind keep their values

def kinds():
    g = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))
    rgb = np.stack([g, g.T, 255 - g], -1)
    return {'gray.png': Image.fromarray(g), 'rgba.png': Image.fromarray(np.dstack([rgb, np.full_like(g, 255)])), 'cmyk.jpg': Image.fromarray(rgb).convert('CMYK'), 'palette.png': Image.fromarray(rgb).quantize(256),
            '16bit.png': Image.fromarray(g.astype(np.uint16) * 257), 'turned.jpg': Image.fromarray(rgb)}


@pytest.mark.parametrize('name', kinds())
def test_resized_pictures_look_as_before(tmp_path, name):
    d = tree(tmp_path / 'set', n=3)
    kw = {}
    if name == 'turned.jpg': e = Image.Exif(); e[0x0112] = 6; kw = dict(exif=e)
    if name.endswith('.jpg'): kw.update(quality=98)
    kinds()[name].save(d / 'pabrin' / name, **kw)
    prepare(d, tmp_path / 'out', folds=0, size=64)
    r, = [r for r in rows(tmp_path / 'out') if r['source'] == f'pabrin/{name}']
    a, b = np.asarray(open_image(d / 'pabrin' / name), int), np.asarray(open_image(tmp_path / 'out' / r['path']), int)
    assert a.shape == b.shape and abs(a - b).mean() < 4


# ---------------------------------------------------------------- CIFAR

def cifar100(root, n=1):
    rng, names = np.random.default_rng(0), [f'c{i:02d}' for i in range(100)]
    root.mkdir(parents=True)
    for b, k in (('train', 2 * n), ('test', n)):
        y = list(range(100)) * k
        (root / b).write_bytes(pickle.dumps({'data': rng.integers(0, 256, (len(y), 3072), dtype=np.uint8), 'fine_labels': y, 'coarse_labels': [0] * len(y)}))
    (root / 'meta').write_bytes(pickle.dumps({'fine_label_names': names}))
    return root


@pytest.fixture
def as_original(monkeypatch):
    "Let torchvision take the batches in a folder for the original ones."
    from torchvision.datasets import CIFAR100
    md5 = lambda p: hashlib.md5(p.read_bytes()).hexdigest()
    def take(root):
        monkeypatch.setattr(CIFAR100, 'train_list', [['train', md5(root / 'train')]])
        monkeypatch.setattr(CIFAR100, 'test_list', [['test', md5(root / 'test')]])
        monkeypatch.setattr(CIFAR100, 'meta', {**CIFAR100.meta, 'md5': md5(root / 'meta')})
        return root
    return take


def test_cifar100_pickles(tmp_path, as_original):
    root = as_original(cifar100(tmp_path / 'cifar-100-python'))
    out = cifar('cifar100', tmp_path / 'out', root, per_class=(2, 1))
    assert (out['train'], out['test'], out['classes']) == (200, 100, 100) and len(everything(tmp_path / 'out')) == 301
    for line in (tmp_path / 'out/checksums.sha256').read_text().splitlines():
        sha, path = line.split('  ')
        assert hashlib.sha256((tmp_path / 'out' / path).read_bytes()).hexdigest() == sha
    with pytest.raises(DataError, match='not the whole cifar100'): cifar('cifar100', tmp_path / 'whole', root)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['cifar-100-python', 'out']


@pytest.mark.parametrize('what', ['os.system', 'builtins.eval', 'numpy.load', 'subprocess.Popen'])
def test_pickles_that_run_code_are_not_opened(tmp_path, as_original, what, capsys):
    root = as_original(cifar100(tmp_path / 'c'))
    module, name = what.rsplit('.', 1)
    (root / 'train').write_bytes(f'c{module}\n{name}\n(S"touch {tmp_path}/evil"\ntR.'.encode())
    assert main(['cifar100', str(tmp_path / 'out'), '--source', str(root)]) == 2
    err = capsys.readouterr().err
    assert 'not those of the original cifar100' in err and not (tmp_path / 'evil').exists() and not (tmp_path / 'out').exists()


@pytest.mark.parametrize('change', [lambda d: (d / 'train').unlink(), lambda d: (d / 'train').write_bytes(b'\x80\x04garbage'),
                                    lambda d: (d / 'test').write_bytes((d / 'test').read_bytes()[:-5000])])
def test_cifar_that_is_not_whole(tmp_path, as_original, change):
    root = as_original(cifar100(tmp_path / 'c'))
    change(root)
    with pytest.raises(DataError, match='not those of the original cifar100'): cifar('cifar100', tmp_path / 'out', root)
    assert [p.name for p in tmp_path.iterdir()] == ['c']


def test_cifar_parquet(tmp_path):
    pa = pytest.importorskip('pyarrow', reason='parquet needs pyarrow')
    import pyarrow.parquet as pq
    rng = np.random.default_rng(0)
    def png():
        b = io.BytesIO(); Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(b, 'PNG'); return b.getvalue()
    for split, k in (('train', 2), ('test', 1)): pq.write_table(pa.table({'img': [{'bytes': png(), 'path': None} for _ in range(10 * k)], 'label': list(range(10)) * k}), tmp_path / f'{split}-00000-of-00001.parquet')
    assert cifar('cifar10', tmp_path / 'out', tmp_path / 'train-00000-of-00001.parquet', per_class=(2, 1))['train'] == 20


@pytest.mark.parametrize('at, value, words', [((6, 8), 1, 'is encrypted'), ((8, 10), 9, 'compression method is not supported')])
def test_cifar_in_a_zip_that_cannot_be_read(tmp_path, at, value, words):
    b = io.BytesIO()
    with zipfile.ZipFile(b, 'w') as z:
        for s in ('train', 'test'):
            for c in 'abcdefghij': z.writestr(f'{s}/{c}/0.png', b'x' * 9)
    b = bytearray(b.getvalue())
    for head, o in zip((b'PK\x03\x04', b'PK\x01\x02'), at):
        i = -1
        while (i := b.find(head, i + 1)) >= 0: b[i + o] = value
    (tmp_path / 'c.zip').write_bytes(b)
    with pytest.raises(DataError, match=words): cifar_splits('cifar10', tmp_path / 'c.zip')


def test_cifar_is_split_as_its_settings_say(tmp_path):
    "A tenth for validation unless another part is given, also where the settings of a run are read again"
    for split, n in (('train', 10), ('test', 1)):
        for k, c in enumerate('abcdefghij'):
            (tmp_path / split / c).mkdir(parents=True)
            for i in range(n): Image.fromarray(np.random.default_rng([n, k, i]).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / split / c / f'{i}.png')
    for options, n in (([], 10), (['--valid_pct', '.3'], 30), (['--valid_pct', '.2'], 20)):
        cfg = read_settings(['--data_path', str(tmp_path), '--data_set', 'CIFAR10', *options])
        assert len(load_splits(cfg).valid) == n == round(100 * cfg.valid_pct)
        if n != 20: assert len(load_splits(TrainConfig(**cfg.to_dict())).valid) == n


def test_cifar_without_source_or_network(tmp_path, monkeypatch, capsys):
    import silkworm_app.data.cifar as module
    def gone(*a, **k): raise OSError('no route to host')
    monkeypatch.setattr(module, 'untar_data', gone)
    assert main(['cifar10', str(tmp_path / 'out')]) == 2
    assert '--source' in capsys.readouterr().err


@pytest.mark.slow
def test_cifar10_from_pictures(tmp_path, data_dir):
    out = cifar('cifar10', tmp_path / 'out', data_dir / 'cifar10.zip')
    assert (out['train'], out['test']) == (50_000, 10_000)


# ---------------------------------------------------------------- real sets

def test_real_silkworm_audit(silkworm_dir, tmp_path):
    "The hash level of the real set: full leak, exact copies, one photograph under two diseases."
    r = audit(silkworm_dir, 'hash')
    assert r['test_seen_in_train'] == 1 and r['by_level']['exact']['groups'] == 305 and r['label_conflicts'] >= 2
    assert 'an accuracy on this test split is not a result' in headlines(r)[0]


@pytest.mark.slow
def test_real_silkworm_prepare(silkworm_dir, tmp_path):
    r = audit(silkworm_dir)
    assert r['by_level']['copies']['test_seen_in_train'] == 1 and 35 <= r['distinct_total'] <= 45 and r['label_conflicts'] == 3 and r['distinct']['healthy'] == 25
    out = prepare(silkworm_dir, tmp_path / 'out')
    assert out['folds'] >= 2 and set(out['distinct']) == {'flacherie', 'grasserie', 'healthy', 'muscardine', 'pebrine'}
    for i in range(out['folds']): assert find_splits(tmp_path / f'out/fold_{i + 1}', group='copies').leak['test_seen_in_train'] == 0
