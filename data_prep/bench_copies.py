"""How well copies are found: precision and recall on copies made from photographs, and on pairs of different photographs.

    python data_prep/bench_copies.py FOLDER [--n 100] [--unrelated 4000] [--seed 0]

FOLDER holds distinct photographs, at any depth. Of `n` of them, copies of every kind below are made, resized and re-encoded as an augmentation tool would;
each is laid over its source. Unrelated pairs are photographs, and augmented photographs, of different sources. At the end all are grouped at once.
"""
import argparse
import io
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np
from PIL import Image
from scipy.stats import binomtest

from silkworm_app.data.folder import DataError, Scan
from silkworm_app.data.copies import group_pictures
from silkworm_app.data.same import same_photo, sketch
from silkworm_app.data.imaging import open_image

FILLS = [(cv2.BORDER_CONSTANT, 0), (cv2.BORDER_CONSTANT, 255), (cv2.BORDER_REPLICATE, 0), (cv2.BORDER_REFLECT, 0), (cv2.BORDER_WRAP, 0)]


def warp(im, rng, angle=0., zoom=1., shear=0., flip='', gain=1., offset=0., shift=0.):
    "An affine copy with filled corners and changed brightness."
    w, h = im.size
    kind, value = FILLS[rng.integers(len(FILLS))]
    t, c = np.deg2rad(angle), np.array([w / 2, h / 2])
    a = zoom * np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]]) @ np.array([[1, shear], [0, 1]]) @ np.diag([-1 if 'h' in flip else 1, -1 if 'v' in flip else 1])
    m = np.c_[a, c - a @ c + rng.uniform(-shift, shift, 2) * (w, h)]
    x = cv2.warpAffine(np.asarray(im), m, (w, h), borderMode=kind, borderValue=(value,) * 3).astype(np.float32)
    return Image.fromarray((x * gain + offset).clip(0, 255).astype(np.uint8))


def encode(im, rng, quality=None, side=None):
    "Resized and saved as JPEG, as bytes."
    k = (side or rng.integers(160, 301)) / max(im.size)
    b = io.BytesIO()
    im.resize((max(1, round(im.width * k)), max(1, round(im.height * k))), Image.Resampling.BICUBIC).save(b, 'JPEG', quality=int(quality or rng.integers(50, 96)))
    return b.getvalue()


def trim(im, rng, part):
    w, h = round(im.width * (1 - part)), round(im.height * (1 - part))
    x, y = rng.integers(0, im.width - w + 1), rng.integers(0, im.height - h + 1)
    return im.crop((x, y, x + w, y + h))


def everything(im, r):
    return warp(im, r, r.uniform(-45, 45), r.uniform(.75, 1.4), r.uniform(-.25, .25), r.choice(['', 'h', 'v']), r.uniform(.6, 1.4), r.uniform(-20, 20), .15)


NEAR = {'resized to 40 %': lambda im, r: encode(im, r, 90, round(.4 * max(im.size))), 'JPEG quality 20': lambda im, r: encode(im, r, 20, max(im.size)),
        'trimmed by 5 %': lambda im, r: encode(trim(im, r, .05), r), 'trimmed by 10 %': lambda im, r: encode(trim(im, r, .1), r), 'trimmed by 15 %': lambda im, r: encode(trim(im, r, .15), r)}
COPIES = {'rotated by 15': lambda im, r: warp(im, r, 15), 'rotated by 30': lambda im, r: warp(im, r, -30), 'rotated by 45': lambda im, r: warp(im, r, 45), 'zoomed by 0.7': lambda im, r: warp(im, r, zoom=.7),
          'zoomed by 1.5': lambda im, r: warp(im, r, zoom=1.5), 'sheared by 0.3': lambda im, r: warp(im, r, shear=.3), 'shifted by up to 30 %': lambda im, r: warp(im, r, shift=.3),
          'flipped left-right': lambda im, r: warp(im, r, flip='h'), 'flipped upside down': lambda im, r: warp(im, r, flip='v'),
          'brightness x 0.5': lambda im, r: warp(im, r, gain=.5), 'brightness x 1.5': lambda im, r: warp(im, r, gain=1.5), 'all of these': everything, 'all of these, twice': lambda im, r: everything(everything(im, r), r)}


def show(name, k, n):
    lo, hi = binomtest(k, n).proportion_ci(method='wilson')
    print(f'{name:28} {k:5} of {n:5}   {100 * k / n:6.2f} %   (95 %: {100 * lo:.2f} to {100 * hi:.2f})', flush=True)


def pair_counts(found, true):
    "Pairs joined and right, pairs joined, pairs that should be joined."
    two = lambda c: sum(v * (v - 1) // 2 for v in c.values())
    return two(Counter(zip(found, true))), two(Counter(found)), two(Counter(true))


def main(folder, n, unrelated, seed):
    cv2.setNumThreads(1)
    files, rng = [p for p, _, _ in Scan(folder).items], np.random.default_rng(seed)
    if len(files) < 2: raise DataError(f'{folder} holds {len(files)} pictures; at least 2 are needed')
    pick = [files[i] for i in rng.permutation(len(files))[:n]]
    ims = [open_image(f) for f in pick]
    print(f'{len(pick)} photographs of {folder}, seed {seed}\n\nrecall of pairs (copy, source), near level')
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        def put(name, data): (tmp / name).write_bytes(data); return tmp / name
        for k, (kind, f) in enumerate(NEAR.items()):
            copies = [put(f'near{k}_{i}.jpg', f(im, rng)) for i, im in enumerate(ims)]
            g = group_pictures(pick + copies, 'hash').near
            show(kind, sum(a == b for a, b in zip(g, g[len(pick):])), len(pick))
        print('\nrecall of pairs (copy, source), copies level')
        sources, hard = [sketch(im) for im in ims], []
        for kind, f in COPIES.items():
            hard = [sketch(encode(f(im, rng), rng)) for im in ims]
            show(kind, sum(same_photo(a, b) for a, b in zip(sources, hard)), len(pick))
        print('\nfalse pairs among different photographs, copies level')
        pairs = [(i, j) for i in range(len(pick)) for j in range(i)]
        pairs = [pairs[i] for i in rng.permutation(len(pairs))[:unrelated // 2]]
        t = time.perf_counter()
        for name, a, b in (('as they are', sources, sources), ('one of them augmented', sources, hard)):
            wrong = [(i, j) for i, j in pairs if same_photo(a[i], b[j])]
            show(name, len(wrong), len(pairs))
            for i, j in wrong[:5]: print(f'  {pick[i]} and {pick[j]}')
        print(f'{(time.perf_counter() - t) / (2 * len(pairs)) * 1e3:.1f} ms per pair, both ways round')
        mixed, true = list(pick), list(range(len(pick)))
        for r in range(4):
            for i, im in enumerate(ims): mixed.append(put(f'all{r}_{i}.jpg', encode(everything(im, rng), rng))); true.append(i)
        t = time.perf_counter()
        g = group_pictures(mixed, show=False)
        t = time.perf_counter() - t
        print(f'\ngroups of {len(mixed)} files ({len(pick)} photographs and 4 augmented copies of each), {t:.0f} s')
        for name, found in (('near', g.near), ('copies', g.copies)):
            both, joined, should = pair_counts(found, true)
            print(f'{name:8} {len(set(found)):5} groups; pair precision {100 * both / max(1, joined):.2f} %, pair recall {100 * both / should:.2f} %')


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('folder', help='distinct photographs, at any depth')
    p.add_argument('--n', type=int, default=100, help='photographs taken (default: %(default)s)')
    p.add_argument('--unrelated', type=int, default=4000, help='pairs of different photographs (default: %(default)s)')
    p.add_argument('--seed', type=int, default=0)
    args = p.parse_args()
    try: main(**vars(args))
    except (DataError, OSError) as e:
        print(f'bench_copies: {e}', file=sys.stderr)
        sys.exit(2)
