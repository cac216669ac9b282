"Data from the outside: folders as users have them, real sets, runs that are killed and continued."
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from silkworm_app.data.folder import DataError
from silkworm_app.data.loaders import Item, image_dls, test_loader as labelled_test
from silkworm_app.data.augment import aug_pipeline
from silkworm_app.data.cifar import cifar_dls, cifar_splits
from silkworm_app.data.sample import draw_larva, draw_sample
from silkworm_app.data.splits import find_splits
from silkworm_app.data.pixels import load_pixels
from silkworm_app.data.imaging import Preprocess

ROOT = Path(__file__).resolve().parent.parent


def folder(root, classes=('b a', 'émile', '家蚕'), n=6, size=40):
    "A class folder set with names that need care."
    for c in classes:
        (root / c).mkdir(parents=True)
        for i in range(n): draw_larva('healthy', size, zlib.crc32(f'{c}{i}'.encode())).save(root / c / f'bild {i} – ö.png')
    return root


def crcs(dl): return [(zlib.crc32(x.cpu().numpy().tobytes()), y.tolist()) for x, y in dl]


# ---------------------------------------------------------------- folders

def test_names_with_spaces_and_other_scripts(tmp_path):
    dls = image_dls(find_splits(folder(tmp_path / 'mes données 蚕'), group=None), 32, 4)
    assert list(dls.vocab) == ['b a', 'émile', '家蚕'] and dls.one_batch()[0].shape == (4, 3, 32, 32)


@pytest.mark.parametrize('names', [('train', 'valid', 'test'), ('Train', 'Val', 'TEST'), ('training', 'validation', 'testing'),
                                   ('training_set', 'dev-set', 'Test Data')])
def test_given_splits_in_any_spelling(tmp_path, names):
    for i, s in enumerate(names): folder(tmp_path / s, n=4 + i)
    s = find_splits(tmp_path, group=None)
    assert [len(s.train), len(s.valid), len(s.test)] == [12, 15, 18]


def test_test_without_valid_and_valid_without_test(tmp_path):
    folder(tmp_path / 'a/Train', n=10), folder(tmp_path / 'a/Test', n=3)
    s = find_splits(tmp_path / 'a', group=None)
    assert [len(s.train), len(s.valid), len(s.test)] == [24, 6, 9] and all(p.parts[-3] == 'Train' for p, _ in s.valid) and not s.warnings
    folder(tmp_path / 'b/train', n=10), folder(tmp_path / 'b/val', n=3)
    s = find_splits(tmp_path / 'b', group=None)
    assert [len(s.train), len(s.valid), len(s.test)] == [30, 9, 0] and 'no test split' in s.warnings[0]
    s = find_splits(tmp_path / 'b', group=None, valid_as_test=True)
    assert [len(s.train), len(s.valid), len(s.test)] == [24, 6, 9] and not s.warnings


def test_split_depends_on_seed_and_names_only(tmp_path):
    a, b = folder(tmp_path / 'a', n=15), tmp_path / 'else/where'
    shutil.copytree(a, b)
    rel = lambda s, r: [[p.relative_to(r) for p, _ in part] for part in (s.train, s.valid, s.test)]
    one = rel(find_splits(a, group=None), a)
    assert one == rel(find_splits(a, group=None), a) == rel(find_splits(b, group=None), b) != rel(find_splits(a, group=None, seed=0), a)
    assert [len(p) for p in one] == [27, 9, 9] and len(set(sum(one, []))) == 45


def test_subfolders_links_and_loops(tmp_path):
    d = folder(tmp_path / 'set')
    (d / 'b a/more').mkdir()
    draw_larva('healthy', 40, 1).save(d / 'b a/more/deep.jpg')
    (d / 'b a/loop').symlink_to(d / 'b a')
    elsewhere = folder(tmp_path / 'other', classes=('linked',)) / 'linked'
    (d / 'linked').symlink_to(elsewhere)
    s = find_splits(d, group=None)
    assert sum(s.counts()[k]['b a'] for k in ('train', 'valid', 'test')) == 7 and 'linked' in s.classes


def test_litter_is_ignored_and_odd_extensions_are_opened(tmp_path):
    d = folder(tmp_path)
    for n in ('.DS_Store', 'Thumbs.db', 'desktop.ini', '._x.jpg'): (d / 'émile' / n).write_bytes(b'junk')
    (d / '__MACOSX').mkdir()
    shutil.move(d / 'émile/bild 0 – ö.png', d / 'émile/picture.dat')
    (d / 'README.txt').write_text('about this set')
    s = find_splits(d, group=None)
    assert len(s.train) + len(s.valid) + len(s.test) == 18


@pytest.mark.parametrize('change,words', [
    (lambda d: shutil.rmtree(d), 'does not exist'),
    (lambda d: [shutil.rmtree(p) for p in d.iterdir()], 'no subfolders'),
    (lambda d: [shutil.rmtree(d / c) for c in ('émile', '家蚕')], 'one class only'),
    (lambda d: [p.unlink() for p in (d / 'émile').iterdir()], 'class folder émile is empty'),
    (lambda d: [p.unlink() for p in d.glob('*/*')], 'holds no pictures'),
    (lambda d: (d / 'émile/zero.jpg').touch(), 'zero.jpg is empty'),
    (lambda d: (d / 'émile/cut.png').write_bytes((d / 'émile/bild 1 – ö.png').read_bytes()[:2000]), 'cut.png is damaged'),
    (lambda d: (d / 'émile/list.csv').write_text('a,b'), 'list.csv is not a picture'),
    (lambda d: (d / 'émile/gone.jpg').symlink_to('/nowhere/x.jpg'), 'gone.jpg does not exist'),
    (lambda d: (d / 'émile').rename(d / 'test'), 'no train folder'),
    (lambda d: [(d / 'Train').mkdir(), (d / 'train').mkdir()], 'both of which mean train'),
])
def test_what_is_wrong_is_named(tmp_path, change, words):
    d = folder(tmp_path / 'set')
    change(d)
    with pytest.raises(DataError) as e: image_dls(d, group=None)
    assert words in str(e.value) and '\n' not in str(e.value)
    assert str(d) in str(e.value)


def test_files_are_not_folders(tmp_path):
    (tmp_path / 'x.zip').touch()
    with pytest.raises(DataError, match='not a folder'): find_splits(tmp_path / 'x.zip')


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read everything')
def test_unreadable_folder(tmp_path):
    d = folder(tmp_path / 'set')
    (d / 'émile').chmod(0)
    try:
        with pytest.raises(DataError, match='émile cannot be read'): find_splits(d, group=None)
    finally: (d / 'émile').chmod(0o755)


def test_classes_that_differ_between_splits(tmp_path):
    folder(tmp_path / 'train'), folder(tmp_path / 'test', classes=('b a', 'emile', '家蚕'))
    with pytest.raises(DataError, match='missing émile; unknown emile'): find_splits(tmp_path, group=None)


def test_skipping_bad_files_is_said(tmp_path):
    d = folder(tmp_path)
    for i in range(7): (d / 'émile' / f'bad{i}.jpg').write_bytes(b'x')
    (d / 'b a/more.zip').write_bytes(b'x')
    with pytest.raises(DataError, match=r"8 file\(s\) cannot be used.*and 3 more.*--on_bad skip \(in code on_bad='skip'\)") as e: find_splits(d, group=None)
    assert f'{d / "b a/more.zip"} is an archive, which is not opened: unpack it and move it away' in str(e.value)
    s = find_splits(d, group=None, on_bad='skip')
    assert '8 file(s) were skipped' in s.warnings[0] and len(s.train) + len(s.valid) + len(s.test) == 18


# ---------------------------------------------------------------- copies

def test_copies_stay_on_one_side(tmp_path):
    d = folder(tmp_path, n=12)
    for c in ('b a', 'émile'):
        for i in range(0, 12, 2):
            src = d / c / f'bild {i} – ö.png'
            shutil.copy(src, d / c / f'exact {i}.png')
            Image.open(src).save(d / c / f'again {i}.jpg', quality=85)
    shutil.copy(d / 'b a/bild 0 – ö.png', d / '家蚕/stranger.png')                  # the same picture under another label
    for seed in range(4):
        s = find_splits(d, seed=seed, group='hash')
        side = {p: k for k in ('train', 'valid', 'test') for p, _ in getattr(s, k)}
        for c in ('b a', 'émile'):
            for i in range(0, 12, 2): assert len({side[d / c / n] for n in (f'bild {i} – ö.png', f'exact {i}.png', f'again {i}.jpg')}) == 1
        assert side[d / '家蚕/stranger.png'] == side[d / 'b a/bild 0 – ö.png']
        assert s.leak['test_seen_in_train'] == s.leak['valid_seen_in_train'] == 0 and s.leak['label_conflicts'] == 1
        assert any('two or more classes' in w for w in s.warnings)


def test_leak_of_a_given_split_is_said(tmp_path):
    folder(tmp_path / 'train', n=10), folder(tmp_path / 'test', n=8)
    for c in ('b a', 'émile', '家蚕'):
        shutil.rmtree(tmp_path / 'test' / c), (tmp_path / 'test' / c).mkdir()
        for i in range(4): shutil.copy(tmp_path / 'train' / c / f'bild {i} – ö.png', tmp_path / 'test' / c / f'{i}.png')
        for i in range(4): draw_larva('pebrine', 40, 1000 + i + zlib.crc32(c.encode())).save(tmp_path / 'test' / c / f'new{i}.png')
    s = find_splits(tmp_path)
    assert s.leak['test_seen_in_train'] == .5 and any('50 % of the test pictures also occur in train' in w for w in s.warnings)


def test_real_silkworm_leak(silkworm_dir):
    s = find_splits(silkworm_dir)
    assert s.leak['test_seen_in_train'] > .99 and s.leak['valid_seen_in_train'] == 0
    assert any('the accuracy on this test split is not a result' in w for w in s.warnings)
    assert len(s.test) == 628 and s.classes == ['flacheria', 'grasseria', 'mascardine', 'pabrin', 'undiseased']


def test_sample_has_no_copies(tmp_path):
    s = find_splits(draw_sample(tmp_path / 's', n_per_class=40, size=96), group='hash')
    assert s.leak['test_seen_in_train'] == s.leak['valid_seen_in_train'] == 0 and not s.warnings, s.warnings


# ---------------------------------------------------------------- batches

@pytest.fixture(scope='module')
def drawn(tmp_path_factory): return find_splits(draw_sample(tmp_path_factory.mktemp('d') / 'sample', n_per_class=15, size=48), group=None)


KINDS = {'items': {}, 'two workers': dict(num_workers=2), 'fast': dict(fast=True), 'fast, strong': dict(fast=True, aug='strong'), 'cache': dict(cache=True), 'strong': dict(aug='strong'), 'none': dict(aug='none'),
         'timm': dict(aug='timm:rand-m9-mstd0.5-inc1', re_prob=.5, color_jitter=.3), 'timm augmix': dict(aug='timm:augmix-m5-w4-d2', train_interpolation='bicubic')}


@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_of_loader(drawn, tmp_path, kind):
    kw = {k: tmp_path / 'cache' if k == 'cache' else v for k, v in KINDS[kind].items()}
    dls = image_dls(drawn, 40, 8, **kw)
    run = [crcs(dls.train) for _ in range(2)]
    assert run[0] != run[1]
    dls.show_batch(show=False)
    again = image_dls(drawn, 40, 8, **kw).set_epoch(1)
    assert crcs(again.train) == run[1]
    files = [p for p, _ in drawn.valid]
    got = torch.cat([x for x, _ in dls.valid]).cpu().numpy()
    assert np.abs(got - Preprocess(40).batch(files)).max() < 1e-5
    assert np.abs(dls.test_dl(files).one_batch()[0].cpu().numpy() - got[:8]).max() < 1e-5
    test = labelled_test(dls)
    assert [dls.vocab[int(i)] for _, y in test for i in y] == [c for _, c in drawn.test]
    x = dls.one_batch()[0]
    assert x.shape == (8, 3, 40, 40) and x.dtype == torch.float32 and torch.isfinite(x).all() and x.abs().max() < 4


def test_order_and_augmentation_in_a_fresh_process(drawn):
    "What a killed and restarted run would see: another process, straight at epoch 3."
    code = ('import sys, zlib; from silkworm_app.data.loaders import image_dls; from silkworm_app.data.splits import find_splits\n'
            'dls = image_dls(find_splits(sys.argv[1], group=None), 40, 8, fast=sys.argv[2] == "1").set_epoch(3)\n'
            'print([(zlib.crc32(x.cpu().numpy().tobytes()), y.tolist()) for x, y in dls.train])')
    for fast in (False, True):
        dls = image_dls(drawn, 40, 8, fast=fast)
        for _ in range(3): crcs(dls.train)
        out = subprocess.run([sys.executable, '-W', 'ignore', '-c', code, str(drawn.path), str(int(fast))], capture_output=True, text=True, cwd=ROOT)
        assert out.stdout.strip() == str(crcs(dls.train)), out.stderr[-500:]


def test_aug_file_errors(tmp_path):
    (tmp_path / 'bad.yaml').write_text('- [unclosed')
    (tmp_path / 'wrong.yaml').write_text('- CoarseDropout: {max_holes: 4}')
    with pytest.raises(DataError, match='bad.yaml'): aug_pipeline(tmp_path / 'bad.yaml', 32)
    with pytest.raises(DataError, match='max_holes'): aug_pipeline(tmp_path / 'wrong.yaml', 32)


def test_fast_refuses_more_memory_than_allowed(drawn):
    with pytest.raises(DataError, match='max_gb'): image_dls(drawn, 40, 8, fast=True, max_gb=1e-5)
    assert type(image_dls(drawn, 40, 8, fast='auto', aug='light', max_gb=1e-5).train).__name__ == 'EpochDL'
    assert type(image_dls(drawn, 40, 8, fast='auto', aug='light').train).__name__ == 'FastDL'


def test_cache_of_large_photographs(hymenoptera_dir, tmp_path):
    "Exact on validation; training pictures keep their aspect and at least the resolution that is needed."
    s = find_splits(hymenoptera_dir, group=None, valid_as_test=True)
    dls = image_dls(s, 64, 16, cache=tmp_path)
    files = [p for p, _ in s.valid]
    assert np.abs(torch.cat([x for x, _ in dls.valid]).cpu().numpy() - Preprocess(64).batch(files)).max() < 1e-5
    for item, (p, _) in zip(list(dls.train_ds.items)[:20], s.train):
        h, w = item.src.shape[:2]
        W, H = Image.open(p).size
        assert min(h, w) == min(96, H, W) and abs(w / h - W / H) < .03 * W / H
    assert not list(tmp_path.glob('.*')) and len(list(tmp_path.iterdir())) == 2


# ---------------------------------------------------------------- CIFAR

def test_cifar_from_zip_and_folder(data_dir, tmp_path):
    s = cifar_splits('cifar10', data_dir / 'cifar10.zip', n_train=1000, valid_pct=.01, n_test=200, seed=1)
    assert [len(s.train), len(s.valid), len(s.test)] == [1000, 500, 200] and set(s.counts()['train'].values()) == {100} and len(s.classes) == 10
    keys = {p.tobytes() for p, _ in s.train}
    assert sum(p.tobytes() in keys for p, _ in s.valid) <= 1
    with zipfile.ZipFile(data_dir / 'cifar10.zip') as z:
        for m in [m for m in z.namelist() if m.endswith(('0001.jpg', '0002.jpg', '0003.jpg', '0004.jpg'))]: z.extract(m, tmp_path)
    d = cifar_dls('cifar10', tmp_path, valid_pct=.25, bs=8)
    assert len(d.splits.test) == 40 and len(d.train_ds) + len(d.valid_ds) == 40 and d.one_batch()[0].shape == (8, 3, 32, 32)
    assert len(labelled_test(d).dataset) == 40
    with pytest.raises(DataError, match='100 classes'): cifar_splits('cifar100', tmp_path / 'cifar10')
    with pytest.raises(DataError, match='fewer than asked'): cifar_splits('cifar10', tmp_path, n_train=1000)


# ---------------------------------------------------------------- commands

def test_make_sample_command(tmp_path):
    run = lambda *a: subprocess.run([sys.executable, '-W', 'ignore', ROOT / 'data_prep/make_sample.py', *map(str, a)], capture_output=True, text=True)
    dest = tmp_path / 'x y/sample'
    assert '50 drawn pictures' in run(dest, '--n_per_class', 10, '--size', 32).stdout
    bad = run(dest, '--n_per_class', 11, '--size', 32)
    assert bad.returncode == 2 and 'is not this sample' in bad.stderr and 'Traceback' not in bad.stderr
    assert [p.name for p in dest.parent.iterdir()] == ['sample']
