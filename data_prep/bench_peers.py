"""The same sets through this library, imagededup and cleanvision: pairs found, pairs joined that are none, seconds of one core.

    pip install imagededup cleanvision          # for this script only
    python data_prep/bench_peers.py [--folder NAME=FOLDER ...] [--looked NAME=FOLDER ...] [--n 40] [--seed 0]

Of `n` drawn cocoons, and of `n` pictures of each FOLDER (all different), one copy of each kind below is made, so the truth is known. A set that is `--looked` at is taken as it is; its truth are
this library's groups, so look through them first (`silkworm-data audit FOLDER --html`). Each tool runs with its defaults on one thread. Of imagededup and cleanvision the pairs count that they
name; of this library all pairs of a group. imagededup's CNN takes its MobileNetV3 if torch can load the weights, else EfficientNet-Lite0 through its interface for own models.
"""
import argparse
import logging
import os
import sys
import tempfile
from functools import cache
from itertools import combinations
from pathlib import Path

for v in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS'): os.environ[v] = '1'
os.environ['SILKWORM_CACHE'] = 'off'
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(1, str(Path(__file__).resolve().parent))

import numpy as np

from bench_plain import KINDS, draw, jpeg
from silkworm_app.data.copies import group_pictures
from silkworm_app.data.folder import DataError, pictures_below
from silkworm_app.data.imaging import open_image

COPIES = ('rotated by up to 20', 'rotated by any angle', 'rotated by 90, 180, 270', 'flipped', 'brightness', 'zoomed by 1.1 to 1.5', 'zoomed by 0.6 to 0.9', 'JPEG 35 to 80', 'resized to 40 to 80 %')


def pairs_of(groups):
    "Pairs of positions with the same number."
    members = {}
    for k, g in enumerate(groups): members.setdefault(g, []).append(k)
    return {p for m in members.values() for p in combinations(m, 2)}


def named(folder, found):
    "Pairs of positions, from `{name: [names]}`."
    at = {n: k for k, n in enumerate(sorted(os.listdir(folder)))}
    return {tuple(sorted((at[Path(a).name], at[Path(b).name]))) for a, bs in found.items() for b in bs}


def own(folder, level='copies'):
    return pairs_of(getattr(group_pictures(sorted(Path(folder).iterdir()), level, 1, False), 'near' if level == 'hash' else level))


def own_hash(folder): return own(folder, 'hash')


@cache
def imagededup():
    "Its methods, and whether its own net has its weights: they are fetched when it is imported."
    from torchvision import models
    bare = models.mobilenet_v3_small
    try: import imagededup.methods as m
    except OSError:
        models.mobilenet_v3_small = lambda **_: bare()
        import imagededup.methods as m
    return m, models.mobilenet_v3_small is bare


def hashed(method):
    def find(folder):
        return named(folder, getattr(imagededup()[0], method)(verbose=False).find_duplicates(image_dir=folder, num_enc_workers=0, num_dist_workers=0))
    return find


def lite0():
    "imagededup's way to take another net."
    import timm
    from imagededup.utils import CustomModel
    from torchvision import transforms as t
    from silkworm_app.act.weights import find_weights
    w = find_weights('tf_efficientnet_lite0')
    net = timm.create_model('tf_efficientnet_lite0', num_classes=0).eval()
    net.load_state_dict(w.state, strict=False)
    return CustomModel('lite0', net, t.Compose([t.Resize((256, 256)), t.CenterCrop(224), t.ToTensor(), t.Normalize(w.pictures['mean'], w.pictures['std'])]))


def cnn(folder):
    import torch
    torch.set_num_threads(1)
    m, own = imagededup()
    net = m.CNN(verbose=False) if own else m.CNN(verbose=False, model_config=lite0())
    return named(folder, net.find_duplicates(image_dir=folder, num_enc_workers=0, num_sim_workers=0))


def cleanvision(folder):
    from cleanvision import Imagelab
    lab = Imagelab(data_path=folder, verbose=False)
    lab.find_issues({'exact_duplicates': {}, 'near_duplicates': {}}, n_jobs=1, verbose=False)
    sets = [s for kind in ('exact_duplicates', 'near_duplicates') for s in lab.info[kind]['sets']]
    return {p for s in sets for a, b in combinations(s, 2) for p in named(folder, {a: [b]})}


TOOLS = {'this library, copies': own, 'this library, hash': own_hash, **{f'imagededup {m}': hashed(m) for m in ('PHash', 'DHash', 'AHash', 'WHash')}, 'imagededup CNN': cnn, 'cleanvision': cleanvision}


def made(ims, folder, rng):
    "Originals and copies in `folder`; the truth in the order of their names."
    truth = {}
    for i, im in enumerate(ims):
        for k, data in enumerate([jpeg(im, 95), *(KINDS[c](im, rng) for c in COPIES)]):
            (folder / f'{i:04d}_{k}.jpg').write_bytes(data)
            truth[f'{i:04d}_{k}.jpg'] = i
    return pairs_of([truth[n] for n in sorted(truth)])


def copied(files, folder):
    for k, f in enumerate(files): (folder / f'{k:05d}{f.suffix.lower()}').write_bytes(f.read_bytes())


def seconds():
    t = os.times()
    return t.user + t.system + t.children_user + t.children_system


def run(name, folder, truth, tools):
    "A row for each tool; the first says what is true where that isn't known."
    for tool in tools:
        t = seconds()
        found = TOOLS[tool](str(folder))
        t = seconds() - t
        if truth is None: truth = found
        right = len(found & truth)
        print(f'| {name} | {tool} | {right} of {len(truth)} ({100 * right / max(1, len(truth)):.1f} %) | {len(found) - right} | {t:.0f} |', flush=True)


def some(folder, n, rng):
    files = pictures_below(folder)[0]
    return [open_image(files[i]) for i in sorted(rng.permutation(len(files))[:n])]


def main(folder, looked, only_looked, n, seed, tools):
    logging.disable(logging.INFO)
    print('| set | tool | pairs found | false pairs | s |\n|---|---|---|---|---|')
    for name, source in [*[('drawn cocoons', None)] * (not only_looked), *(f.split('=', 1) for f in folder)]:
        rng = np.random.default_rng(seed)
        with tempfile.TemporaryDirectory() as tmp:
            tmp = Path(tmp)
            ims = some(source, n, rng) if source else [draw('cocoon', 1000 * seed + i) for i in range(n)]
            run(name, tmp, made(ims, tmp, rng), tools)
    for name, source in (f.split('=', 1) for f in looked):
        with tempfile.TemporaryDirectory() as tmp:
            copied(pictures_below(source)[0], Path(tmp))
            run(name, Path(tmp), None, tools)


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--folder', nargs='*', default=[], metavar='NAME=FOLDER', help='different pictures, of which copies are made')
    p.add_argument('--looked', nargs='*', default=[], metavar='NAME=FOLDER', help='sets as they are, whose groups were looked at')
    p.add_argument('--only-looked', action='store_true', help='no drawn cocoons')
    p.add_argument('--n', type=int, default=40, help='pictures taken of each set (default: %(default)s)')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--tools', nargs='*', default=list(TOOLS), choices=list(TOOLS))
    args = p.parse_args()
    try: main(**vars(args))
    except (DataError, OSError, ImportError) as e:
        print(f'bench_peers: {e}', file=sys.stderr)
        sys.exit(2)
