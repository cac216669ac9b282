"What people bring: archives of every machine, names in every alphabet, and one command's output as the next one's input."
import builtins
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import unicodedata
import zipfile
from collections import Counter
from pathlib import Path

import albumentations as A
import numpy as np
import pytest
from PIL import Image

from silkworm_app.act.patch import lslu_model
from silkworm_app.act.weights import save_weights
from silkworm_app.cli import data_main
from silkworm_app.data.augment import aug_pipeline
from silkworm_app.data.copies import group_pictures
from silkworm_app.data.diseases import silkworm_info, silkworm_names
from silkworm_app.data import folder
from silkworm_app.data.folder import DataError, Scan, check_pictures, opened, pictures_below, unpack
from silkworm_app.data.loaders import image_dls, test_loader as labelled_test
from silkworm_app.data.cli import main
from silkworm_app.data.merge import merge
from silkworm_app.data.prepare import prepare, read_mapping
from silkworm_app.data.sample import draw_larva
from silkworm_app.data.splits import carve, cut, find_splits
from silkworm_app.data.audit import audit, headlines
from silkworm_app.serve.page.html import Say
from silkworm_app.train.config import read_settings
from silkworm_app.train.cross import whole_split
from silkworm_app.train.evaluate import labelled_pictures, main as evaluate
from silkworm_app.train.pictures import run_splits, write_pictures
from silkworm_app.train.run import RunFolder
from silkworm_app.train.setup import load_splits

ROOT = Path(__file__).resolve().parent.parent


def tree(root, classes=('pabrin', 'undiseased'), n=6, size=64, seed=0):
    for k, c in enumerate(classes):
        (root / c).mkdir(parents=True, exist_ok=True)
        for i in range(n): draw_larva('pebrine' if k % 2 else 'healthy', size, 1000 * seed + 100 * k + i).save(root / c / f'{i}.png')
    return root


def leaky(root):
    "Train and Test, with every test picture in Train."
    tree(root / 'Train')
    for p in (root / 'Train').rglob('*.png'):
        if p.stem in '01': (root / 'Test' / p.parent.name).mkdir(parents=True, exist_ok=True), shutil.copy(p, root / 'Test' / p.parent.name)
    return root


def zipped(root, path, inside='set', extra=()):
    with zipfile.ZipFile(path, 'w') as z:
        for p in sorted(root.rglob('*')):
            if p.is_file(): z.write(p, f'{inside}/{p.relative_to(root).as_posix()}' if inside else p.relative_to(root).as_posix())
        for name in extra: z.writestr(name, b'Mac OS X junk')
    return path


def facts(r): return {k: v for k, v in r.items() if k != 'source'}


# ---------------------------------------------------------------- litter and wrappings

LITTER = {'Finder': ['__MACOSX/._set', '__MACOSX/set/Train/pabrin/._0.png', '.DS_Store', 'set/.DS_Store', 'set/Train/.DS_Store', 'set/Train/pabrin/._0.png'],
          'Synology': ['set/@eaDir/SYNO@.fileindexdb', 'set/Train/@eaDir/x.jpg', 'set/Train/pabrin/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg', 'set/#recycle/old.jpg'],
          'Windows': ['set/desktop.ini', 'set/Train/pabrin/Thumbs.db', 'set/Train/pabrin/0.png:Zone.Identifier', '$RECYCLE.BIN/S-1/x.jpg', 'System Volume Information/y'],
          'beside': ['README.txt', 'licence.pdf']}


@pytest.mark.parametrize('of', LITTER)
def test_litter_is_litter_in_folders_and_archives(tmp_path, of):
    plain = leaky(tmp_path / 'plain')
    want = facts(audit(plain, 'hash'))
    assert want['test_seen_in_train'] == 1
    archive = zipped(plain, tmp_path / 'set.zip', extra=LITTER[of])
    folder = tmp_path / 'unzipped'
    with zipfile.ZipFile(archive) as z: z.extractall(folder)
    for src in (archive, folder): assert facts(audit(src, 'hash')) == want, src
    assert main(['audit', str(archive), '--strict', '--level', 'hash']) == main(['audit', str(folder), '--strict', '--level', 'hash']) == 1
    s = find_splits(folder)
    assert s.leak['test_seen_in_train'] == 1 and len(s.test) == 4 and s.classes == ['pabrin', 'undiseased']
    assert len(pictures_below(folder)[0]) == 16


@pytest.mark.parametrize('deep', [0, 1, 3])
def test_wrapping_folders_are_taken_off(tmp_path, deep):
    d = tmp_path / '/'.join(['w'] * (deep + 1))
    leaky(d)
    top = tmp_path / 'w'
    s = find_splits(top)
    assert s.classes == ['pabrin', 'undiseased'] and len(s.test) == 4 and s.path == top
    assert any('were found in' in w for w in s.warnings) == (deep > 0)
    assert audit(top, 'hash')['given_splits']


def test_what_is_no_wrapping(tmp_path):
    one = tree(tmp_path / 'one', classes=('healthy',))                # the only class is a class
    with opened(one) as root: assert root == one
    with pytest.raises(DataError, match='one class only'): find_splits(one)
    only_train = tree(tmp_path / 'only' / 'Train').parent
    with opened(only_train) as root: assert root == only_train
    loose = tree(tmp_path / 'loose' / 'sub').parent
    draw_larva('healthy', 32, 1).save(loose / 'stray.png')
    with opened(loose) as root: assert root == loose


# ---------------------------------------------------------------- names

def with_raw_names(path, names, encoding, slash='/'):
    "A zip whose members' names are bytes of `encoding`, and no flag that says so."
    png = io.BytesIO()
    draw_larva('healthy', 48, 3).save(png, 'PNG')
    with zipfile.ZipFile(path, 'w') as z:
        for i, n in enumerate(names):
            raw = n.replace('/', slash).encode(encoding)
            z.writestr(f'{i:x}'.rjust(len(raw), 'A'), png.getvalue() + bytes([i]))
    data = path.read_bytes()
    for i, n in enumerate(names):
        raw = n.replace('/', slash).encode(encoding)
        data = data.replace(f'{i:x}'.rjust(len(raw), 'A').encode(), raw)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize('encoding,classes', [('gbk', ('健康', '微粒子病')), ('gb18030', ('脓病', '白僵病')), ('utf-8', ('健康', 'émile')), ('shift_jis', ('健康なカイコ', '微粒子病')),
                                              ('cp437', ('Köln', 'émile')), ('cp437', ('gesund', 'Größe'))])
def test_names_of_archives_without_the_flag(tmp_path, encoding, classes):
    names = [f'家蚕/{c}/{i}.png' if encoding != 'cp437' else f'Seidenraupe/{c}/{i}.png' for c in classes for i in range(2)]
    if encoding == 'cp437': names = [n.replace('ß', 'ss') for n in names]
    with opened(with_raw_names(tmp_path / 'a.zip', names, encoding)) as root:
        assert Scan(root).classes == sorted({n.split('/')[1] for n in names})


def test_backslashes_of_old_windows_tools(tmp_path):
    names = [f'set/{c}/{i}.png' for c in ('sick', 'well') for i in range(2)]
    with opened(with_raw_names(tmp_path / 'a.zip', names, 'ascii', '\\')) as root: assert Scan(root).classes == ['sick', 'well']
    bad = with_raw_names(tmp_path / 'b.zip', ['set/a/0.png', '../../evil.png'], 'ascii', '\\')
    with pytest.raises(DataError, match='points outside'): unpack(bad, tmp_path)


def test_names_that_windows_cannot_hold(tmp_path, monkeypatch):
    "They stay as they are elsewhere; there `_` stands for what would hide a picture or stop the command, and two that become one are refused."
    names = ['set/sick/img 12:30.png', 'set/sick/a?*.png', 'set/well. /b.png', 'set/well. /c.png.']
    one, two = (with_raw_names(tmp_path/f'{len(ns)}.zip', ns, 'ascii') for ns in (names, ['set/a/1:2.png', 'set/a/1?2.png']))
    def below(d): return sorted(p.relative_to(d).as_posix() for p in d.rglob('*') if p.is_file())
    for d in ('here', 'there', 'twice'): (tmp_path/d).mkdir()
    unpack(one, tmp_path/'here')
    assert below(tmp_path/'here') == sorted(names)
    monkeypatch.setattr(folder, '_unheld', re.compile(folder._on_windows))
    unpack(one, tmp_path/'there')
    assert below(tmp_path/'there') == ['set/sick/a__.png', 'set/sick/img 12_30.png', 'set/well_/b.png', 'set/well_/c.png_']
    with pytest.raises(DataError, match='two files whose names read'): unpack(two, tmp_path/'twice')
    assert below(tmp_path/'twice') == []


def test_one_name_written_in_two_ways_is_one_class(tmp_path):
    nfc, nfd = unicodedata.normalize('NFC', 'émile'), unicodedata.normalize('NFD', 'émile')
    assert nfc != nfd
    tree(tmp_path / 'set/train', classes=(nfc, 'pabrin')), tree(tmp_path / 'set/test', classes=(nfd, 'pabrin'), seed=5)
    s = find_splits(tmp_path / 'set', group='hash')
    assert s.classes == ['pabrin', nfc] and {c for _, c in s.test} == {nfc, 'pabrin'}
    assert audit(tmp_path / 'set', 'hash')['counts']['test'] == {nfc: 6, 'pabrin': 6}
    tree(tmp_path / 'flat', classes=(nfc, 'pabrin')), tree(tmp_path / 'flat', classes=(nfd,), n=3, seed=7)
    assert sum(find_splits(tmp_path / 'flat').counts()[k][nfc] for k in ('train', 'valid', 'test')) == 9
    (tmp_path / 'm.yaml').write_text(f'{nfd}: healthy\n', encoding='utf-8')
    assert set(prepare(tmp_path / 'flat', tmp_path / 'out', mapping=tmp_path / 'm.yaml', folds=0)['distinct']) == {'healthy', 'pebrine'}
    assert set(prepare(tmp_path / 'flat', tmp_path / 'out2', mapping={nfd: 'healthy'}, folds=0)['distinct']) == {'healthy', 'pebrine'}


def test_names_that_differ_in_case_are_told(tmp_path):
    tree(tmp_path / 'set/train', classes=('Ants', 'Bees')), tree(tmp_path / 'set/test', classes=('ants', 'bees'), seed=5)
    with pytest.raises(DataError, match='missing Ants, Bees; unknown ants, bees; upper and lower case are told apart'): find_splits(tmp_path / 'set')
    tree(tmp_path / 'flat', classes=('Ants', 'ants', 'bees'))
    said = 'Ants, ants: these classes differ in upper and lower case only'
    assert said in find_splits(tmp_path / 'flat').warnings and said in headlines(audit(tmp_path / 'flat', 'hash', show=False))
    assert said in prepare(tmp_path / 'flat', tmp_path / 'out', folds=2, level='hash', show=False)['notes']
    assert said not in prepare(tmp_path / 'flat', tmp_path / 'one', folds=2, level='hash', show=False, mapping={'Ants': 'ants'})['notes']


@pytest.mark.parametrize('name,text', [('m.csv', 'a,pebrine\nb,grün\n'), ('m.yaml', 'a: pebrine\nb: grün\n'), ('m.json', '{"a": "pebrine", "b": "grün"}')])
def test_mapping_files_with_the_mark_of_excel(tmp_path, name, text):
    (tmp_path / name).write_bytes(text.encode('utf-8-sig'))
    assert read_mapping(tmp_path / name) == {'a': 'pebrine', 'b': 'grün'}
    (tmp_path / 'aug.yaml').write_bytes('- HorizontalFlip: {p: 0.5}\n'.encode('utf-8-sig'))
    assert aug_pipeline(tmp_path / 'aug.yaml', 32)


def test_our_tables_open_in_excel(tmp_path):
    prepare(tree(tmp_path / 'set', classes=('grün', '家蚕')), tmp_path / 'out', folds=0)
    data = (tmp_path / 'out/manifest.csv').read_bytes()
    assert data.startswith('\ufeffpath,'.encode()) and next(csv.DictReader(io.StringIO(data.decode('utf-8-sig'))))['class'] in ('grün', '家蚕')


@pytest.mark.parametrize('encoding', ['utf-8', 'ascii', 'cp1252'])
def test_a_name_that_is_no_utf8_loses_nothing(tmp_path, monkeypatch, encoding):
    d = tree(tmp_path / 'set', n=5)
    odd = os.fsdecode(b'Mu\xf1oz.png')
    draw_larva('healthy', 64, 77).save(d / 'pabrin' / odd)
    (d / 'pabrin' / os.fsdecode(b'cut\xf1.jpg')).write_bytes(b'x')
    shutil.copy(d / 'pabrin/0.png', d / 'pabrin' / os.fsdecode(b'copy\xf1.png'))
    tree(d, classes=(os.fsdecode(b'Espa\xf1a'), '健康'), n=5, seed=9)
    def here(*args):
        "The command in this process, with streams of another encoding"
        with monkeypatch.context() as m:
            for o in ('stdout', 'stderr'): m.setattr(sys, o, io.TextIOWrapper(io.BytesIO(), encoding))
            code = data_main([*map(str, args)])
            said = [o.flush() or o.buffer.getvalue() for o in (sys.stdout, sys.stderr)]
        return subprocess.CompletedProcess(args, code, *said)
    def apart(*args):
        env, code = {**os.environ, 'PYTHONIOENCODING': encoding, 'PYTHONPATH': str(ROOT)}, 'import sys; from silkworm_app.cli import data_main; sys.exit(data_main())'
        return subprocess.run([sys.executable, '-W', 'ignore', '-c', code, *map(str, args)], capture_output=True, env=env)
    out = (apart if encoding == 'ascii' else here)('audit', d, '--level', 'hash', '--json', tmp_path / 'a.json', '--html', tmp_path / 'a.html')
    assert out.returncode == 0 and b'\\xf1.jpg' in out.stdout and b'Traceback' not in out.stderr, out.stderr[-400:]
    r = json.loads((tmp_path / 'a.json').read_text(encoding='utf-8'))
    assert r['files'] == 23 and r['groups'] == [['pabrin/0.png', 'pabrin/copy\\xf1.png']] and 'cut\\xf1.jpg' in r['unusable'][0] and 'España' in r['distinct']
    page = (tmp_path / 'a.html').read_text(encoding='utf-8')
    assert 'copy\\xf1.png' in page and 'cannot be opened' not in page          # of a group all can
    out = here('prepare', d, tmp_path / 'out', '--level', 'hash', '--folds', '0')
    assert out.returncode == 0 and b'cut\\xf1.jpg' in out.stdout, out.stderr[-400:]
    with open(tmp_path / 'out/manifest.csv', encoding='utf-8-sig') as f: sources = {x['source'] for x in csv.DictReader(f)}
    assert 'pabrin/Mu\\xf1oz.png' in sources and len(sources) == 21
    dls = image_dls(d, 32, 4, group=None, on_bad='skip')
    assert 'España' in dls.vocab and dls.one_batch()[0].shape == (4, 3, 32, 32) and any('cut\\xf1.jpg' in w for w in dls.splits.warnings)
    print(str(dls.splits), repr(dls.train_ds.items))


# ---------------------------------------------------------------- what is read and what is not

def test_a_folder_says_what_it_left_out(tmp_path, capsys):
    d = tree(tmp_path / 'set')
    (d / 'pabrin/zero.jpg').touch(), (d / 'pabrin/film.mov').write_bytes(b'\0\0\0\x18ftypqt  ' + bytes(50)), (d / 'undiseased/list.csv').write_text('a')
    out = prepare(d, tmp_path / 'out', folds=0)
    said = '\n'.join(out['notes'])
    assert '2 file(s) left out: cannot be opened' in said and 'zero.jpg is empty' in said and 'is a video' in said and 'list.csv' in said and str(tmp_path) not in said
    assert said.split('\n')[0].startswith('classes renamed')
    s = find_splits(d, on_bad='skip')
    assert '3 file(s) were skipped' in s.warnings[0] and 'is a video' in s.warnings[0] and 'list.csv is not a picture' in s.warnings[0]


def test_a_picture_that_opened_is_not_opened_again(tmp_path, monkeypatch):
    "Only what is new, has changed or did not open, whichever of the two looked at it first; and the same files are named."
    monkeypatch.setenv('SILKWORM_CACHE', str(tmp_path/'cache'))
    files = sorted(tree(tmp_path/'set', n=3).rglob('*.png'))
    files[1].write_bytes(files[1].read_bytes()[:2000])
    opens, read = [], folder.check_image
    monkeypatch.setattr(folder, 'check_image', lambda f: (opens.append(f), read(f)))
    first = check_pictures(files)
    assert sorted(opens) == files and list(first) == [files[1]] and 'damaged or cut short' in first[files[1]]
    opens.clear()
    assert check_pictures(files) == first and opens == [files[1]]
    files[2].write_bytes(b'no picture any more')
    opens.clear()
    assert list(check_pictures(files)) == files[1:3] and sorted(opens) == files[1:3]
    other = sorted(tree(tmp_path/'other', n=3, seed=1).rglob('*.png'))
    group_pictures(other, 'hash', show=False)
    opens.clear()
    assert check_pictures(other) == {} and opens == []
    monkeypatch.setenv('SILKWORM_CACHE', 'off')
    assert check_pictures(other) == {} and sorted(opens) == other


def test_an_unchanged_set_is_not_opened_again(tmp_path, monkeypatch):
    monkeypatch.setenv('SILKWORM_CACHE', str(tmp_path/'cache'))
    d, opened_, was = tree(tmp_path/'set', n=2), [], builtins.open
    first = audit(d, 'hash', show=False)
    for of in (builtins, io): monkeypatch.setattr(of, 'open', lambda f, *a, **k: (opened_.append(str(f)), was(f, *a, **k))[1])
    seen = lambda: sorted(f for f in opened_ if f.endswith('.png'))
    assert audit(d, 'hash', show=False) == first and seen() == []
    Image.new('RGB', (32, 48)).save(d/'pabrin/0.png')
    opened_.clear()
    assert folder.headers([d/'pabrin/0.png'], show=False)[0][:4] == ('PNG', 32, 48, 'RGB') and seen() == [str(d/'pabrin/0.png')]      # once


def test_pictures_beside_the_classes_are_said(tmp_path):
    d = tree(tmp_path / 'set')
    for k in range(2): draw_larva('healthy', 64, 300 + k).save(d / f'loose{k}.png')
    (d / 'LICENSE').write_text('of whoever took them')
    assert '2 picture(s) lie beside the class folders and are not used (loose0.png)' in find_splits(d, group=None).warnings


def test_two_kinds_of_muscardine_stay_two_classes(tmp_path):
    out = prepare(tree(tmp_path / 'set', ('white_muscardine', 'green muscardine', 'undiseased')), tmp_path / 'out', folds=0, level='hash', show=False)
    assert set(out['distinct']) == {'white muscardine', 'green muscardine', 'healthy'}
    about = json.loads((tmp_path / 'out/classes.json').read_text(encoding='utf-8'))
    assert about['white muscardine']['title'] == 'White muscardine' and about['green muscardine']['do'] and 'kinds' not in about['green muscardine']
    assert set(silkworm_names(['White Muscardine', 'white_muscardine', 'healthy']).values()) == {'white muscardine', 'healthy'}
    for lang, white, green in (('en', 'White muscardine', 'Green muscardine'), ('zh', '白僵病', '绿僵病'), ('hi', 'सफ़ेद मस्कार्डिन', 'हरा मस्कार्डिन')):
        titles = Say(lang, list(out['distinct'])).titles
        assert (titles['white muscardine'], titles['green muscardine']) == (white, green) and titles['healthy'] == Say(lang, ['healthy', 'pebrine']).titles['healthy']
        assert Say(lang, ['White_Muscardine', 'healthy']).titles['White_Muscardine'] == white


def test_pictures_of_one_kind_are_no_pictures_of_another(tmp_path):
    s = find_splits(tree(tmp_path / 'set', ('Green_Muscardine', 'healthy')), group=None)
    classes = ['green muscardine', 'healthy', 'white muscardine']
    assert {*labelled_pictures(s, classes, 'all')[1]} == {0, 1}
    known = find_splits(tree(tmp_path / 'white', ('white_muscardine', 'Healthy')), group=None)
    assert [{*labelled_pictures(known, c, 'all')[1]} for c in (['healthy', 'muscardine'], ['diseased', 'healthy', 'white muscardine'])] == [{0, 1}, {1, 2}]
    with pytest.raises(DataError, match='does not know the class muscardine'):
        labelled_pictures(find_splits(tree(tmp_path / 'one', ('muscardine', 'healthy')), group=None), classes, 'all')


def test_files_of_several_pictures_are_named(tmp_path):
    d, of = tree(tmp_path / 'set'), lambda n: [draw_larva('pebrine', 96, 70 + i) for i in range(n)]
    for name, n in (('stack.tif', 3), ('film.gif', 2), ('one.tif', 1), ('phone.mpo', 2)):
        first, *more = of(n)
        first.save(d / 'pabrin' / name, save_all=n > 1, append_images=more)
    (d / 'pabrin/phone.mpo').rename(d / 'pabrin/phone.jpg')              # with its preview, as phones write it
    said = '2 file(s) hold several pictures, of which the first is taken: pabrin/film.gif, pabrin/stack.tif'
    assert said in headlines(audit(d, 'hash', show=False))
    prepare(d, tmp_path / 'a', level='hash', show=False)
    assert said in (tmp_path / 'a/README.md').read_text()
    (tmp_path / 'more/pebrine').mkdir(parents=True)
    first, *more = [draw_larva('pebrine', 96, 90 + i) for i in range(2)]
    first.save(tmp_path / 'more/pebrine/new.tif', save_all=True, append_images=more)
    assert any(n.startswith('1 file(s) hold several') for n in merge(tmp_path / 'a', tmp_path / 'more', tmp_path / 'b', show=False)['notes'])


def test_heic_is_a_picture_like_any(tmp_path):
    pillow_heif = pytest.importorskip('pillow_heif')
    d = tree(tmp_path / 'set')
    for i in range(3):
        (d / f'pabrin/IMG_{i}.HEIC').parent.mkdir(exist_ok=True)
        pillow_heif.from_pillow(draw_larva('pebrine', 96, 50 + i)).save(d / f'pabrin/IMG_{i}.HEIC', quality=90)
    r = audit(d, 'hash')
    assert r['formats'] == {'PNG': 12, 'HEIF': 3} and not r['unusable'] and not r['wrong_suffix']
    out = prepare(d, tmp_path / 'out', folds=0)
    assert sum(p.suffix == '.heic' for p in (tmp_path / 'out').rglob('*')) == 3 and out['distinct']['pebrine'] == 9
    dls = image_dls(find_splits(tmp_path / 'out'), 32, 4)
    assert sum(p.suffix == '.heic' for s in (dls.splits.train, dls.splits.valid, dls.splits.test) for p, _ in s) == 3
    for _ in dls.train: pass


# ---------------------------------------------------------------- whose classes are silkworms'

@pytest.mark.parametrize('classes', [('healthy', 'rust', 'scab'), ('jaundice', 'normal'), ('diseased', 'undiseased'), ('female', 'male'), ('nosema', 'healthy')])
def test_classes_of_others_keep_their_names(tmp_path, classes):
    assert silkworm_names(classes) == {c: c for c in classes} and silkworm_info(classes) == {}
    out = prepare(tree(tmp_path / 'set', classes=classes), tmp_path / 'out', folds=0)
    assert set(out['distinct']) == set(classes) and not any('renamed' in n for n in out['notes'])
    assert set(json.loads((tmp_path / 'out/classes.json').read_text()).values().__iter__().__next__()) == set()
    assert set(audit(tmp_path / 'set', 'hash')['distinct']) == set(classes)


def test_a_folder_for_what_is_not_sorted_is_named(tmp_path):
    "By an audit, by prepare unless it is left out, and by a training, also one that is cross-validated"
    misc = tree(tmp_path / 'set', classes=('ants', 'bees', 'misc', 'miscanthus'), n=2)
    of, about = lambda notes: [n.split(' is taken for a class: ')[0] for n in notes if ' is taken for a class: ' in n], dict(level='hash', show=False)
    out = prepare(misc, tmp_path / 'out', **about)
    for notes in (headlines(audit(misc, **about)), out['notes'], find_splits(misc).warnings, find_splits(tmp_path / 'out').warnings,
                  whole_split(find_splits(misc), .2, 42).warnings, whole_split(find_splits(tmp_path / 'out'), .2, 42).warnings): assert of(notes) == ['misc']
    assert of(prepare(misc, tmp_path / 'without', mapping=dict(misc=None), **about)['notes']) == []


def test_every_renaming_is_said(tmp_path, capsys):
    d = tree(tmp_path / 'set', classes=('pabrin', 'jaundice', 'normal', 'cocoon'))
    assert main(['prepare', str(d), str(tmp_path / 'out'), '--folds', '0']) == 0
    said = capsys.readouterr().out
    for words in ('pabrin is called pebrine', 'jaundice is called grasserie', 'normal is called healthy'): assert words in said
    assert 'cocoon is called' not in said and 'classes renamed' in (tmp_path / 'out/README.md').read_text()


# ---------------------------------------------------------------- one command's output is the next one's input

@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    d = tmp_path_factory.mktemp('p')
    src = tree(d / 'raw', n=7)
    for i in range(7): Image.open(src / f'pabrin/{i}.png').rotate(20, Image.Resampling.BICUBIC).save(src / f'pabrin/{i}_turned.png')
    prepare(src, d / 'folds', folds=3, level='copies')
    prepare(src, d / 'split', folds=0, level='copies')
    return d


def test_a_set_prepared_with_folds_is_known(prepared):
    s = find_splits(prepared / 'folds')
    assert s.classes == ['healthy', 'pebrine'] and list(s.folds) == ['fold_1', 'fold_2', 'fold_3']
    files = [p for f in s.folds.values() for p, _ in f]
    assert len(files) == len(set(files)) == 21 and len({p.name for p in files}) == 21 and all('pictures' in p.parts for p in files)
    assert s.test == s.folds['fold_1'] and any('3 folds' in w for w in s.warnings)
    for name in s.folds:
        one = find_splits(prepared / 'folds', fold=name)
        assert one.test == s.folds[name] and len(one.train) + len(one.valid) + len(one.test) == 21 and not any('folds' in w for w in one.warnings)
        assert one.leak['test_seen_in_train'] == one.leak['test_seen_in_valid'] == 0 and one.leak['level'] == 'manifest'
        photos = [{one.groups[p] for p, _ in part} for part in (one.train, one.valid, one.test)]
        assert not (photos[0] & photos[1] or photos[0] & photos[2] or photos[1] & photos[2])
        inside = find_splits(prepared / 'folds' / name)
        assert {p.name for p, _ in inside.test} == {p.name for p, _ in one.test} and inside.leak['level'] == 'manifest'
    assert find_splits(prepared / 'folds', fold=2).test == s.folds['fold_2'] == s.fold('fold_2').test
    with pytest.raises(DataError, match='no fold fold_9; it has fold_1, fold_2, fold_3'): find_splits(prepared / 'folds', fold='fold_9')
    with pytest.raises(DataError, match='has no folds'): find_splits(prepared / 'split', fold=1)
    dls = image_dls(prepared / 'folds', 32, 4)
    assert list(dls.vocab) == ['healthy', 'pebrine'] and len(labelled_test(dls).dataset) == len(s.folds['fold_1'])


def said_of(*options): return load_splits(read_settings(list(map(str, options))))


def test_a_fold_that_is_named_is_tested_or_refused(prepared, tmp_path):
    folds, raw = prepared / 'folds', prepared / 'raw'
    one = said_of('--data_path', folds, '--fold', 'fold_2')
    assert one.test == one.folds['fold_2'] and not any('was prepared with' in w for w in one.warnings)
    for options, words in ((('--data_path', raw), 'has no folds'), (('--data_path', folds, '--cross_validate', 3), 'leave out cross_validate 3, or fold'),
                           (('--data_path', folds, '--eval_data_path', raw), 'leave out eval_data_path, or fold'),
                           (('--data_path', raw, '--data_set', 'CIFAR10'), 'leave out data_set CIFAR10, or fold')):
        with pytest.raises(ValueError, match=words): said_of(*options, '--fold', 'fold_2')
    f = shutil.copytree(folds, tmp_path / 'folds')
    (f / one.folds['fold_2'][0][0].relative_to(folds)).write_bytes(b'')
    assert any('1 file(s) were skipped' in w for w in said_of('--data_path', f, '--fold', 'fold_2', '--on_bad', 'skip').warnings)


def test_pictures_of_a_wrapped_set_with_folds_are_found_again(prepared, tmp_path):
    "Its path was the folder inside, while a run looks below the one that was named"
    shutil.copytree(prepared / 'folds', tmp_path / 'wrap/clean')
    cfg, run = read_settings(['--data_path', str(tmp_path / 'wrap')]), RunFolder(tmp_path)
    write_pictures(run, splits := load_splits(cfg))
    again = run_splits(run, cfg)
    for part in ('train', 'valid', 'test'): assert sorted(getattr(again, part)) == sorted(getattr(splits, part)) != []


def test_validation_pictures_of_another_folder_take_none_from_training(prepared, tmp_path):
    "And what was said of the files is still said"
    other = tree(tmp_path / 'other', ('healthy', 'pebrine'), n=3, seed=8)
    (other / 'healthy/cut.png').write_bytes((other / 'healthy/0.png').read_bytes()[:200])
    s = said_of('--data_path', prepared / 'folds', '--eval_data_path', other, '--on_bad', 'skip')
    assert len(s.train) + len(s.test) == 21 and s.test == s.folds['fold_1'] and len(s.valid) == 6
    assert any('1 file(s) were skipped: ' in w for w in s.warnings) and any('3 folds, of which fold_1 is the test here' in w for w in s.warnings)
    s = said_of('--data_path', prepared / 'split', '--eval_data_path', other, '--on_bad', 'skip')
    assert any('validation pictures of' in w and 'are left out' in w for w in s.warnings) and not any('no test split' in w for w in s.warnings)


def test_a_manifest_that_excel_saved_is_read_and_one_that_is_none_is_named(prepared, tmp_path, capsys):
    "Else a random split would be cut in silence"
    f = shutil.copytree(prepared / 'folds', tmp_path / 'folds')
    m, want = f / 'manifest.csv', find_splits(prepared / 'folds')
    m.write_bytes(m.read_bytes().replace(b',', b';').replace(b'\n', b'\r\n'))
    assert [p.relative_to(f) for p, _ in find_splits(f).test] == [p.relative_to(prepared / 'folds') for p, _ in want.test]
    m.write_bytes(m.read_bytes().replace(b'sha256', b'checksum', 1))
    with pytest.raises(DataError, match='manifest.csv, which says what each fold tests, is not as silkworm-data wrote it'): find_splits(f)


def test_a_report_on_one_fold_says_so(prepared, tmp_path, capsys):
    save_weights(lslu_model('vanillanet_5_x0_125', 2, input_size=32, stem_stride=2).eval(), tmp_path / 'w.safetensors')
    assert evaluate([str(tmp_path / 'w.safetensors'), '--data', str(prepared / 'folds'), '--input_size', '32']) == 0
    assert 'was prepared with 3 folds, of which fold_1 is the test here' in capsys.readouterr().out


def test_the_pictures_of_a_prepared_set(prepared):
    s = find_splits(prepared / 'folds/pictures')
    assert s.classes == ['healthy', 'pebrine'] and len(s.train) + len(s.valid) + len(s.test) == 21 and s.leak['level'] == 'manifest'
    sides = {}
    for k in ('train', 'valid', 'test'):
        for p, _ in getattr(s, k): sides.setdefault(s.groups[p], set()).add(k)
    assert all(len(v) == 1 for v in sides.values()) and len(sides) == 14


def test_prepared_again_audited_and_predicted(prepared, tmp_path):
    "Every picture once, whichever command reads the folder."
    r = audit(prepared / 'folds', 'copies')
    assert r['files'] == 21 and r['distinct_total'] == 14 and set(r['distinct']) == {'healthy', 'pebrine'}
    assert 'it was prepared with 3 folds' in str(headlines(r)) and 'no splits are given' not in str(headlines(r))
    again = prepare(prepared / 'folds', tmp_path / 'again', folds=0, level='copies')
    assert sum(sum(c.values()) for c in again['counts'].values()) == 21
    assert 'the folds of the source were not kept: all photographs were cut anew' in again['notes']
    assert len(pictures_below(prepared / 'folds')[0]) == 21 and len(pictures_below(prepared / 'split')[0]) == 21
    s = find_splits(prepared / 'split')
    assert s.leak['level'] == 'manifest' and s.leak['test_seen_in_train'] == 0 and not s.folds
    assert audit(prepared / 'split', 'copies')['test_seen_in_train'] == 0


@pytest.mark.parametrize('kind', ['folds', 'split'])
def test_a_prepared_set_inside_an_archive_or_one_folder_deeper(prepared, tmp_path, kind):
    "Its folds are no classes, and its manifest is known"
    archive, folder, want = zipped(prepared / kind, tmp_path / 'clean.zip'), tmp_path / 'unzipped', find_splits(prepared / kind)
    with zipfile.ZipFile(archive) as z: z.extractall(folder)
    s = find_splits(folder)
    assert s.classes == ['healthy', 'pebrine'] and s.leak['level'] == 'manifest' and list(s.folds) == list(want.folds)
    assert [p.name for p, _ in s.test] == [p.name for p, _ in want.test] and len(pictures_below(folder)[0]) == 21
    for src in (archive, folder):
        r = audit(src, 'hash')
        assert r['files'] == 21 and set(r['distinct']) == {'healthy', 'pebrine'} and r['label_conflicts'] == 0
    if kind == 'folds': assert said_of('--data_path', folder, '--fold', 'fold_2').test == s.folds['fold_2']
    merge(folder, tree(tmp_path / 'more', ('healthy', 'pebrine'), n=1, seed=6), tmp_path / 'grown', show=False)


def test_a_prepared_set_that_was_changed(prepared, tmp_path):
    d = shutil.copytree(prepared / 'split', tmp_path / 'split')
    draw_larva('healthy', 64, 4711).save(d / 'train/healthy/mine.png')
    s = find_splits(d, group='hash')
    assert s.leak['level'] == 'hash' and len(s.train) == len(find_splits(prepared / 'split').train) + 1       # its groups are looked for again
    f = shutil.copytree(prepared / 'folds', tmp_path / 'folds')
    gone = find_splits(f).folds['fold_2'][0][0]
    gone.unlink()
    s = find_splits(f)
    assert sum(map(len, s.folds.values())) == 20 and any('1 picture(s) of the manifest are gone' in w for w in s.warnings)
    (f / 'manifest.csv').write_text('my own list')                    # not ours: its pictures can be cut anew, but not in silence
    with pytest.raises(DataError, match='or name .*pictures'): find_splits(f)
    s = find_splits(f / 'pictures', group=None)
    assert s.classes == ['healthy', 'pebrine'] and not s.folds


# ---------------------------------------------------------------- the cutter

@pytest.mark.parametrize('seed', range(3))
def test_parts_are_alike_and_photographs_whole(seed):
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(200), rng.integers(1, 9, 200))
    labels = rng.choice(['a', 'b', 'c'], 200, p=[.7, .2, .1])[groups]
    part = cut(labels, groups, 5, seed)
    assert all(len(set(part[groups == g])) == 1 for g in range(200))
    for c in 'abc':
        share = np.bincount(part[labels == c], minlength=5) / (labels == c).sum()
        assert share.min() > .1 and share.max() < .3, share


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('share', [.01, .02, .05, .1, .15, .2, .3, .5])
def test_a_part_has_its_share_of_each_class(seed, share):
    items = [(Path(f'{c}/{i}'), c) for c, n in (('many', 400), ('some', 100), ('few', 12), ('two', 2), ('one', 1)) for i in range(n)]
    (test, train), notes = carve(items, None, (share,), seed, ('test',))
    assert sorted(test + train) == sorted(items)
    got = Counter(c for _, c in test)
    assert abs(got['many'] - 400 * share) <= 4 and abs(got['some'] - 100 * share) <= 3 and 1 <= got['few'] <= 11 and got['two'] == 1 and got['one'] == 0
    assert notes == ['class one has too few distinct pictures to give any to the test split']


# ---------------------------------------------------------------- augmentation

def test_no_class_is_missing_from_training():
    "All of one class lies in a film that is mostly of another: it is trained on, whatever the seed"
    film = [(f'a{k}', 'a') for k in range(12)] + [(f'b{k}', 'b') for k in range(10)]
    items = film + [(f'more{k}', 'a') for k in range(30)]
    groups = {p: 'film' if (p, c) in film else p for p, c in items}
    for seed in range(20):
        (test, valid, train), notes = carve(items, groups, (.2, .2), seed, ('test', 'validation'))
        assert {c for _, c in train} == {'a', 'b'} and {c for _, c in test} == {c for _, c in valid} == {'a'}, seed
        assert all(f'class b has too few distinct pictures to give any to the {n} split' in notes for n in ('test', 'validation'))


def test_albumentations_own_transforms(prepared):
    steps = [A.RandomResizedCrop(size=(32, 32)), A.HorizontalFlip(p=.5), 'Blur']
    for aug in (steps, A.Compose(steps[:2])): assert image_dls(prepared / 'split', 32, 4, aug=aug).one_batch()[0].shape == (4, 3, 32, 32)


@pytest.mark.parametrize('aug', [[{'RandomCrop': {'height': 300, 'width': 300}}], [{'SmallestMaxSize': {'max_size': 20}}, {'RandomCrop': {'height': 32, 'width': 32}}]])
def test_a_crop_larger_than_the_picture_is_one_sentence(prepared, aug):
    with pytest.raises(DataError, match='augmentation fails on a picture of'): image_dls(prepared / 'split', 32, 4, aug=aug)


def test_importing_changes_nothing_outside():
    code = ('import albumentations, fastai.vision.all, os, timm, torchvision, warnings, PIL.Image, pillow_heif\n'
            'PIL.Image.init()\n'
            'del os.environ["NO_ALBUMENTATIONS_UPDATE"]\n'
            'before = dict(os.environ), list(warnings.filters), dict(PIL.Image.OPEN)\n'
            'import silkworm_app.data.prepare, silkworm_app.data.sample\n'
            'after = dict(os.environ), list(warnings.filters), dict(PIL.Image.OPEN)\n'
            'print([k for a, b in zip(before, after) for k in (set(a) ^ set(b) if isinstance(a, dict) else []) or [k for k in a if isinstance(a, dict) and a[k] != b[k]]])')
    env = {**os.environ, 'NO_ALBUMENTATIONS_UPDATE': '1', 'PYTHONPATH': str(ROOT)}
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, env=env)
    assert out.stdout.strip() == '[]', out.stdout + out.stderr[-500:]
