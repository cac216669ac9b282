"Copies from the outside: made from photographs, in real sets, among odd pictures."
import importlib.util
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from silkworm_app.data.sample import draw_larva
from conftest import untar
from silkworm_app.data import copies
from silkworm_app.data.audit import audit
from silkworm_app.data.copies import copy_groups, group_pictures
from silkworm_app.data.loaders import image_dls
from silkworm_app.data.memory import cache_folder
from silkworm_app.data.prepare import prepare
from silkworm_app.data.same import same_photo, sketch
from silkworm_app.data.splits import find_splits
from silkworm_app.train.config import read_settings
from silkworm_app.serve.advice import counted
from silkworm_app.train.cross import distinct_pictures, whole_split
from silkworm_app.train.setup import load_splits

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location('bench_copies', ROOT / 'data_prep/bench_copies.py')
bench = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench)
spec = importlib.util.spec_from_file_location('bench_plain', ROOT / 'data_prep/bench_plain.py')
plain = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plain)


def put(folder, name, im):
    p = folder / name
    p.write_bytes(im) if isinstance(im, bytes) else im.save(p)
    return p


@pytest.fixture(scope='module')
def larvae(): return [draw_larva(k, 144, s) for s, k in enumerate(('healthy', 'pebrine', 'grasserie', 'flacherie', 'muscardine') * 2)]


def test_near_level_joins_trimmed_and_encoded_only(larvae, tmp_path):
    rng = np.random.default_rng(0)
    files = [put(tmp_path, f'{i}.png', im) for i, im in enumerate(larvae)]
    for kind in ('resized to 40 %', 'JPEG quality 20', 'trimmed by 5 %', 'trimmed by 10 %'):
        more = [put(tmp_path, f'{kind}_{i}.jpg', bench.NEAR[kind](im, rng)) for i, im in enumerate(larvae)]
        g = group_pictures(files + more, 'hash').near
        assert g[:len(files)] == list(range(len(files)))
        assert sum(a == b for a, b in zip(g, g[len(files):])) >= len(files) - 1, kind
    turned = [put(tmp_path, f'turned_{i}.png', im.rotate(30)) for i, im in enumerate(larvae)]
    assert len(set(group_pictures(files + turned, 'hash').near)) == 2 * len(files)


def test_copies_of_drawings(larvae, tmp_path):
    rng = np.random.default_rng(1)
    files = [put(tmp_path, f'{i}.png', im) for i, im in enumerate(larvae)]
    more = [put(tmp_path, f'{r}_{i}.jpg', bench.encode(bench.warp(im, rng, rng.uniform(-45, 45), rng.uniform(.8, 1.3), rng.uniform(-.2, .2), rng.choice(['', 'h', 'v']), rng.uniform(.7, 1.2)), rng, 85))
            for r in range(2) for i, im in enumerate(larvae)]
    true = list(range(len(larvae))) * 3
    both, joined, should = bench.pair_counts(copy_groups(files + more), true)
    assert both == joined and both / should > .85, (both, joined, should)


def test_groups_do_not_depend_on_order_or_threads(larvae, tmp_path):
    rng = np.random.default_rng(2)
    files = [put(tmp_path, f'{i}.png', im) for i, im in enumerate(larvae[:6])] + [put(tmp_path, f'c{i}.jpg', bench.encode(bench.warp(im, rng, 20), rng, 90)) for i, im in enumerate(larvae[:6])]
    sets = lambda fs, **kw: {frozenset(f for f, n in zip(fs, g) if n == k) for g in [group_pictures(fs, **kw).copies] for k in set(g)}
    assert sets(files) == sets(files[::-1]) == sets(files, workers=1) and len(sets(files)) == 6


def test_pictures_without_detail_are_only_joined_when_exact(tmp_path):
    files = [put(tmp_path, f'{c}.png', Image.new('RGB', (40, 30), c)) for c in ('white', 'black', 'red', '#fefefe')]
    ramp = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (64, 1))
    files += [put(tmp_path, 'ramp.png', Image.fromarray(ramp)), put(tmp_path, 'ramp2.png', Image.fromarray(ramp[:, ::-1])), put(tmp_path, 'one.png', Image.new('L', (1, 1))), put(tmp_path, 'line.png', Image.new('L', (3000, 2)))]
    shutil.copy(files[0], tmp_path / 'again.png')
    files.append(tmp_path / 'again.png')
    assert group_pictures(files).copies == [0, 1, 2, 3, 4, 5, 6, 7, 0]


def test_same_label_strip_is_no_copy(larvae, tmp_path):
    "A caption printed into different photographs doesn't make them one."
    out = []
    for i, im in enumerate(larvae[:4]):
        im = im.copy()
        ImageDraw.Draw(im).rectangle((0, 120, 144, 144), fill='white')
        text = Image.new('RGB', (100, 14), 'white')
        ImageDraw.Draw(text).text((2, 1), 'SERICULTURE 2021', fill='black')
        im.paste(text, (6, 125))
        out.append(put(tmp_path, f'{i}.png', im))
    assert len(set(copy_groups(out))) == 4


def test_empty_one_and_unreadable(tmp_path):
    assert copy_groups([]) == [] and group_pictures([], 'hash').near == []
    a = put(tmp_path, 'a.png', draw_larva('healthy', 64, 0))
    assert copy_groups([a]) == [0]
    g = group_pictures([a, tmp_path / 'gone.png', put(tmp_path, 'zero.jpg', b''), put(tmp_path, 'page.jpg', b'<html>'), put(tmp_path, 'zero2.jpg', b'')])
    assert g.copies[:2] == [0, 1] and sorted(g.bad) == [1, 2, 3, 4] and 'gone.png' in g.bad[1] and 'zero.jpg is empty' in g.bad[2] and 'zero2.jpg is empty' in g.bad[4]
    with pytest.raises(ValueError, match="level must be 'hash' or 'copies'"): group_pictures([a], 'all')


def test_many_alike_stay_linear(tmp_path):
    "Hundreds of versions of one picture are one group, and don't take time by the square."
    im = draw_larva('pebrine', 64, 3)
    files = [put(tmp_path, f'{i}.png', Image.fromarray(np.clip(np.asarray(im).astype(int) + i % 7, 0, 255).astype(np.uint8)).resize((48 + i // 7, 48))) for i in range(300)]
    assert set(group_pictures(files, 'hash').near) == {0}


def test_real_silkworm_copies(silkworm_dir):
    "628 files of one split: a few photographs. The groups were looked at one by one; every file of a class with few photographs has its copies."
    files = sorted(p for p in (silkworm_dir / 'Train').glob('[fgmp]*/*'))
    g = group_pictures(files)
    sizes = Counter(g.copies)
    assert len(files) == 383 and 10 <= len(sizes) <= 18 and min(sizes.values()) > 1
    assert len(set(g.exact)) > 10 * len(sizes)


@pytest.mark.parametrize('kind', ['cocoon', 'seed', 'egg'])
def test_different_objects_on_a_plain_ground_stay_apart(kind, tmp_path):
    "On white, black and grey, small and large, sharp and soft: at every level."
    looks = [dict(ground=g, part=p, soft=s) for g in ('white', 'black', 'grey') for p, s in ((.15, .5), (.7, .5), (.7, 4.))]
    files = [put(tmp_path, f'{k}_{j}.jpg', plain.jpeg(plain.draw(kind, 2 * k + j, **look), 90)) for k, look in enumerate(looks) for j in (0, 1)]
    g = group_pictures(files)
    assert len(set(g.near)) == len(set(g.copies)) == len(set(g.scenes)) == len(files), g.links


def test_copies_of_objects_on_a_plain_ground_are_found(tmp_path):
    "Of six cocoons, one copy of each kind: nothing false is joined, and next to nothing is missed."
    rng, ims = np.random.default_rng(0), [plain.draw('cocoon', s) for s in range(6)]
    files, true = [put(tmp_path, f'{i}.jpg', plain.jpeg(im, 95)) for i, im in enumerate(ims)], list(range(6))
    kinds = ('rotated by any angle', 'flipped', 'brightness', 'zoomed by 1.1 to 1.5', 'JPEG 35 to 80', 'ground recoloured')
    for k, kind in enumerate(kinds):
        files += [put(tmp_path, f'{k}_{i}.jpg', plain.KINDS[kind](im, rng)) for i, im in enumerate(ims)]
        true += range(6)
    both, joined, should = plain.pair_counts(group_pictures(files).copies, true)
    assert both == joined and both / should > .9, (both, joined, should)


def test_a_label_beside_each_object_does_not_join_them(tmp_path):
    "A lot number that is larger than the cocoons agrees in all, and is not enough."
    def marked(im):
        ImageDraw.Draw(im).text((20, 300), 'SAMPLE 12', fill='red', font=ImageFont.load_default(60))
        return im
    ims = [marked(plain.draw('cocoon', s, ground='white', part=.3)) for s in (0, 1, 2)]
    g = group_pictures([put(tmp_path, f'{k}.jpg', plain.jpeg(im, 90)) for k, im in enumerate([*ims, ims[1].rotate(180)])])
    assert g.copies == [0, 1, 2, 1], g.links


def test_two_classes_on_one_ground_are_not_under_two_classes(tmp_path):
    for c, kind in (('female', 'seed'), ('male', 'egg')):
        (tmp_path / c).mkdir()
        for s in range(4): put(tmp_path / c, f'{s}.jpg', plain.jpeg(plain.draw(kind, s, ground='white', part=.5), 90))
    r = audit(tmp_path, show=False)
    assert r['distinct_total'] == 8 and r['label_conflicts'] == 0 and not r['scene_groups']


def test_pupae_are_126_photographs(tmp_path_factory):
    "All different files; a few show one pupa that was photographed again, which is a scene and no copy."
    g = group_pictures(sorted(untar('pupae', tmp_path_factory).rglob('*.jpg')))
    assert len(g.files) == len(set(g.near)) == len(set(g.copies)) == 126
    again = [(g.files[i].stem, g.files[j].stem) for i, j, kind, _ in g.links if kind == 'scene']
    assert ('Pictures1_13_30_07', 'Pictures2_13_33_55') in again and len(again) <= 6


def film(seed, places=((20, 40), (120, 210))):
    "A larva moves over one leaf."
    rng = np.random.default_rng(seed)
    n = lambda s: cv2.GaussianBlur(rng.normal(size=(240, 320, 3)), (0, 0), s)
    leaf, bug = 110 + 60 * (n(2) / .14 * .4 + n(8) / .035 * .3), np.clip(200 + 400 * n(1.5)[:90, :60], 0, 255)
    out = []
    for y, x in places:
        f = leaf.copy()
        f[y:y + 90, x:x + 60] = bug
        out.append(Image.fromarray(f.clip(0, 255).astype(np.uint8)))
    return out


def test_frames_of_one_scene_are_kept_together_unless_told_otherwise(tmp_path):
    "The larva moves over the same leaf: two photographs, one scene; nothing else is."
    files = [put(tmp_path, f'{k}.png', im) for k, im in enumerate([*film(0), film(1)[0]])]
    g = group_pictures(files)
    assert g.copies == [0, 1, 2] and g.scenes == [0, 0, 1]
    assert copy_groups(files) == [0, 0, 1] and copy_groups(files, scenes='apart') == [0, 1, 2]
    with pytest.raises(ValueError, match="scenes must be 'together' or 'apart'"): g.kept_together('both')


def test_classes_of_one_film_are_folded_as_far_as_they_go(tmp_path):
    "Folds are cut by scene, so scenes and not photographs say how many there can be"
    for k, c in enumerate('ab'):
        (tmp_path / 'set' / c).mkdir(parents=True)
        for i, im in enumerate(film(k, [(20 + 25 * (i % 2), 20 + 40 * i) for i in range(6)])): put(tmp_path / 'set' / c, f'{i}.png', im)
    out = prepare(tmp_path / 'set', tmp_path / 'out', show=False)
    assert out['folds'] == 2 and min(out['distinct'].values()) > 2
    assert 'a, b: photographs of one scene only, in train or in test and never in both, so not to be judged' in out['notes']


def test_the_choice_of_scenes_reaches_training(tmp_path, monkeypatch):
    "Two films of two frames, the second film under two classes: as found, in the loaders, in a training, cross-validated, and prepared."
    monkeypatch.setenv('SILKWORM_CACHE', str(tmp_path / 'cache'))
    one, two = film(0), film(1)
    for c, ims in (('a', [*one, two[0], *(film(k)[0] for k in (2, 3, 4))]), ('b', [two[1], *(film(k)[0] for k in (5, 6, 7, 8))])):
        (tmp_path / 'set' / c).mkdir(parents=True)
        for k, im in enumerate(ims): put(tmp_path / 'set' / c, f'{c}{k}.png', im)
    def groups(s): return [len({g for p, g in s.groups.items() if p.name in pair}) for pair in (('a0.png', 'a1.png'), ('a2.png', 'b0.png'))]
    def settings(scenes): return read_settings(['--data_path', str(tmp_path / 'set'), '--group', 'copies', '--scenes', scenes, '--valid_pct', '.2', '--test_pct', '.2'])
    for scenes, n in (('together', 1), ('apart', 2)):
        for s in (find_splits(tmp_path / 'set', .2, .2, group='copies', scenes=scenes), load_splits(settings(scenes)),
                  image_dls(tmp_path / 'set', size=32, bs=2, aug='none', valid_pct=.2, test_pct=.2, group='copies', scenes=scenes).splits):
            assert groups(s) == [n, n] and len(set(s.photos.values())) == 11
            assert s.leak['label_conflicts'] == 0 and s.leak['test_seen_in_train'] == 0 and s.leak['distinct'] == dict(a=6, b=5), s.leak
            assert counted(s.leak) == dict(a=4 + n, b=5)
            assert len(distinct_pictures(s)[0]) == 11                # a scene under two classes is no photograph under two classes
        prepare(tmp_path / 'set', tmp_path / scenes, folds=0, valid_pct=.2, test_pct=.2, scenes=scenes, show=False)
        s = find_splits(tmp_path / scenes)
        assert ('nearly the same scene, share a group' in (tmp_path / scenes / 'README.md').read_text()) == (scenes == 'together')
        assert len(set(s.groups.values())) == (9 if n == 1 else 11) and s.leak['label_conflicts'] == 0 and sum(map(len, (s.train, s.valid, s.test))) == 11
        prepare(tmp_path / 'set', tmp_path / f'{scenes}_folds', folds=3, scenes=scenes, show=False)
        for s in (s, find_splits(tmp_path / f'{scenes}_folds'), whole_split(find_splits(tmp_path / f'{scenes}_folds'), .2, 42)):
            assert s.leak['distinct'] == dict(a=6, b=5) and counted(s.leak) == dict(a=4 + n, b=5) and not any('copies of about' in w for w in s.warnings), s.warnings    # scenes are no copies
    with pytest.raises(ValueError, match="scenes must be 'together' or 'apart', not 'both'"): find_splits(tmp_path / 'set', scenes='both')


def test_auto_means_the_same_to_an_audit_and_to_a_training(tmp_path, monkeypatch):
    for c in 'ab':
        (tmp_path / c).mkdir()
        for k in range(3): put(tmp_path / c, f'{k}.png', Image.new('RGB', (64, 64), (80 * k, 99, ord(c))))
    for most, level in ((6, 'copies'), (5, 'hash')):
        monkeypatch.setattr('silkworm_app.data.copies.COPIES_UP_TO', most)
        assert audit(tmp_path)['level'] == find_splits(tmp_path, group='auto').leak['level'] == find_splits(tmp_path).leak['level'] == level
        assert image_dls(tmp_path, 32, 2, aug='none', valid_pct=.4, test_pct=0.).splits.leak['level'] == level
    with pytest.raises(ValueError, match="group must be 'auto', 'hash' or 'copies', not 'all'"): find_splits(tmp_path, group='all')


def test_what_was_found_is_remembered(larvae, tmp_path, monkeypatch):
    "A second search reads nothing and compares nothing; a renamed folder is read, but not compared; a changed file is seen."
    monkeypatch.setenv('SILKWORM_CACHE', str(tmp_path / 'cache'))
    (tmp_path / 'a').mkdir()
    files = [put(tmp_path / 'a', f'{i}.png', im) for i, im in enumerate(larvae[:4])] + [put(tmp_path / 'a', f'{i}t.png', im.rotate(30)) for i, im in enumerate(larvae[:4])]
    files.append(put(tmp_path / 'a', 'broken.png', b'no picture'))
    first = group_pictures(files)
    def never(*a, **k): raise AssertionError('searched again')
    monkeypatch.setattr(copies, '_join_near', never)
    again = group_pictures(files)
    assert (again.copies, again.near, again.bad, again.sha256, again.links) == (first.copies, first.near, first.bad, first.sha256, first.links)
    os.rename(tmp_path / 'a', tmp_path / 'b')
    moved = [tmp_path / 'b' / f.name for f in files]
    other = group_pictures(moved)
    assert other.copies == first.copies and str(moved[-1]) in other.bad[8]
    put(tmp_path / 'b', '0.png', larvae[5])
    with pytest.raises(AssertionError, match='searched again'): group_pictures(moved)
    monkeypatch.undo()


def test_a_cache_that_cannot_be_used_stops_nothing(larvae, tmp_path, monkeypatch):
    monkeypatch.setenv('SILKWORM_CACHE', str(tmp_path / 'cache'))
    (tmp_path / 'cache/pictures.lock').mkdir(parents=True)            # no file can be opened there for writing, as in a folder that may only be read
    assert group_pictures([put(tmp_path, f'{i}.png', im) for i, im in enumerate(larvae[:2])], 'hash').near == [0, 1]
    def homeless(): raise RuntimeError('Could not determine home directory.')
    for k in ('SILKWORM_CACHE', 'XDG_CACHE_HOME'): monkeypatch.delenv(k, raising=False)
    monkeypatch.setattr(Path, 'home', homeless)
    assert cache_folder() is None


@pytest.mark.slow
def test_precision_and_recall_on_photographs(hymenoptera_dir):
    "Thresholds that fail when either gets worse; the measured numbers stand in docs/data.md."
    files, rng = sorted(hymenoptera_dir.rglob('*.jpg')), np.random.default_rng(0)
    ims = [bench.open_image(files[i]) for i in rng.permutation(len(files))[:40]]
    src = [sketch(im) for im in ims]
    hard = [sketch(bench.encode(bench.everything(im, rng), rng)) for im in ims]
    assert sum(map(same_photo, src, hard)) >= 38
    assert not any(same_photo(src[i], hard[j]) for i in range(40) for j in range(i))


def test_photographs_in_short(hymenoptera_dir):
    files, rng = sorted(hymenoptera_dir.rglob('*.jpg'))[::40], np.random.default_rng(0)
    src = [sketch(f) for f in files]
    hard = [sketch(bench.encode(bench.everything(bench.open_image(f), rng), rng)) for f in files]
    assert len(files) == 10 and sum(map(same_photo, src, hard)) >= 9
    assert not any(same_photo(src[i], x[j]) for i in range(10) for j in range(i) for x in (src, hard))


@pytest.mark.slow
def test_bench_command(tmp_path):
    for i in range(4): put(tmp_path, f'{i}.png', draw_larva('pebrine', 160, i))
    run = [sys.executable, ROOT / 'data_prep/bench_copies.py']
    out = subprocess.run([*run, tmp_path, '--n', '3', '--unrelated', '6'], capture_output=True, text=True, timeout=300)
    assert out.returncode == 0 and 'pair precision' in out.stdout, out.stderr[-500:]
    out = subprocess.run([*run, tmp_path / 'nothing'], capture_output=True, text=True, timeout=100)
    assert out.returncode == 2 and 'Traceback' not in out.stderr and 'nothing holds no pictures' in out.stderr.splitlines()[-1]
