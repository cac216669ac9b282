"""How long and how much memory a large folder takes, in seconds of one core.

    python data_prep/bench_scale.py AT [--of FOLDER] [--files 20000] [--level copies|hash] [--seed 0]

The folder AT is made, or used where it is there: of every picture of FOLDER as many augmented copies as make about `files` (as `bench_copies.py` makes them: turned, zoomed, sheared, flipped, brightened,
resized, re-encoded), or, without FOLDER, that many different drawn objects on plain grounds. Then it is grouped. What is found is remembered, so that an interrupted run goes on
when it is started again; `SILKWORM_CACHE=off` measures from the beginning.
"""
import argparse
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(1, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np

from bench_copies import encode, everything, pair_counts
from bench_plain import COLOURS, draw, jpeg
from silkworm_app.data.copies import group_pictures
from silkworm_app.data.folder import DataError, pictures_below
from silkworm_app.data.imaging import open_image
from silkworm_app.data.progress import each
from silkworm_app.files import whole_folder


def make(at, of, files, seed):
    "The pictures, named by their source."
    sources = pictures_below(of)[0] if of else []
    per = max(1, round(files / len(sources))) if sources else 1
    def one(k):
        rng = np.random.default_rng([seed, k])
        if not sources: (at / f'{k:06d}_0.jpg').write_bytes(jpeg(draw(list(COLOURS)[k % 3], 10**6 * (seed + 1) + k), 90))
        else:
            im = open_image(sources[k])
            for c in range(per): (at / f'{k:06d}_{c}.jpg').write_bytes(encode(everything(im, rng) if c else im, rng))
    for _ in each(one, range(len(sources) or files), 'making pictures'): pass


def main(at, of, files, level, seed):
    cv2.setNumThreads(1)
    if not at.exists():
        with whole_folder(at) as work: make(work, of, files, seed)
    paths = pictures_below(at)[0]
    t, use = time.time(), resource.getrusage(resource.RUSAGE_SELF)
    g = group_pictures(paths, level)
    t, now = time.time() - t, resource.getrusage(resource.RUSAGE_SELF)
    cpu = now.ru_utime + now.ru_stime - use.ru_utime - use.ru_stime
    print(f'{len(paths)} files, level {level}: {cpu:.0f} s of one core, {t:.0f} s in all, at most {now.ru_maxrss / 2**20:.2f} GB')
    print(f'{len(set(g.exact))} by bytes, {len(set(g.near))} near' + (f', {len(set(g.copies))} photographs, {len(set(g.scenes))} scenes' if g.copies else ''))
    if all('_' in p.stem for p in paths):
        both, joined, should = pair_counts(g.photos, [p.stem.split('_')[0] for p in paths])
        print(f'pair precision {both / max(1, joined):.4f}, pair recall {both / max(1, should):.4f}')


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('at', type=Path, help='folder of the pictures; made where it is not there')
    p.add_argument('--of', help='folder of distinct photographs to make copies of; default: objects are drawn')
    p.add_argument('--files', type=int, default=20_000, help='pictures to make (default: %(default)s)')
    p.add_argument('--level', default='copies', choices=('copies', 'hash'))
    p.add_argument('--seed', type=int, default=0)
    args = p.parse_args()
    try: main(**vars(args))
    except (DataError, OSError, ValueError) as e:
        print(f'bench_scale: {e}', file=sys.stderr)
        sys.exit(2)
