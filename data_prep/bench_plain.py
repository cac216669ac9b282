"""How well copies of single objects on a plain ground are found, and whether different objects stay apart.

    python data_prep/bench_plain.py [FOLDER] [--objects cocoon seed egg coin leaf pupa] [--n 40] [--seed 0]

Without FOLDER, objects are drawn on white, black, grey and colours, small and large in the frame, sharp and soft, with a shadow and without, one to four in a picture. Of each picture, one copy of
every kind below is made; originals and copies of one kind are grouped, and pairs counted: precision is the part of the joined pairs that are copies, recall the part of copies that are joined.
"""
import argparse
import io
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(1, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np
from PIL import Image

from bench_copies import pair_counts
from silkworm_app.data.copies import group_pictures
from silkworm_app.data.folder import DataError, pictures_below
from silkworm_app.data.imaging import open_image

GROUNDS = dict(white=250., black=8., grey=128.)
COLOURS = dict(cocoon=(225, 220, 205), seed=(140, 105, 70), egg=(120, 120, 135), coin=(190, 160, 100), leaf=(80, 130, 60), pupa=(150, 90, 50))


def noise(rng, n, s):
    x = cv2.GaussianBlur(rng.normal(size=(n, n)).astype(np.float32), (0, 0), s, borderType=cv2.BORDER_REFLECT)
    return x / x.std()


def outline(kind, rng, x, y):
    "Distance from the centre, 1 at the outline."
    if kind == 'cocoon': return np.hypot(x / rng.uniform(.5, .62), y) / .97 + rng.uniform(0, .12) * np.exp(-(y / .3)**2)
    if kind == 'leaf': return np.hypot(x / (rng.uniform(.45, .6) * np.clip(1 - y * y, .05, 1)), y**3) / .97
    if kind == 'pupa': return np.hypot(x / (rng.uniform(.36, .42) * (1 - .2 * y)), y) / .97
    if kind == 'seed': return np.hypot(x / (rng.uniform(.6, .75) * (1 - .25 * y)), y) / .95
    return np.hypot(x / rng.uniform(.88, .97), y) / .97


def texture(kind, rng, x, y):
    "Levels that fibres, specks and mottles add."
    n, k = len(x), len(x) / 256
    if kind == 'cocoon': return 9 * noise(rng, n, 2.2 * k + .3) + 9 * noise(rng, n, 6 * k) + 8 * noise(rng, n, 18 * k)
    if kind == 'egg': return 7 * noise(rng, n, 7 * k) + 7 * noise(rng, n, 25 * k) - 40 * np.exp(-(x**2 + y**2) / .12**2) * rng.uniform(0, 1)
    if kind == 'coin':                                             # one stamp, and each coin's own stains
        r = np.hypot(x, y)
        return 25 * np.sin(8 * np.arctan2(y, x) + 9 * r) * (r < .75) + 25 * (abs(r - .85) < .03) + 9 * noise(rng, n, 3 * k + .3) + 12 * noise(rng, n, 12 * k)
    if kind == 'leaf':
        veins = np.exp(-(x / .02)**2) + sum(np.exp(-((y - y0 + rng.uniform(.5, 1.2) * abs(x)) / .015)**2) for y0 in rng.uniform(-.8, .9, 12))
        return 22 * veins + 6 * noise(rng, n, 2.5 * k + .3) + 8 * noise(rng, n, 14 * k)
    if kind == 'pupa': return 14 * np.sin(22 * y + 2 * x * x) * (y > -.2) + 6 * noise(rng, n, 2.5 * k + .3) + 7 * noise(rng, n, 9 * k)
    t = 6 * noise(rng, n, 4 * k + .3) + 8 * noise(rng, n, 14 * k)
    for _ in range(rng.integers(10, 40)):
        p, q = rng.uniform(-.8, .8, 2)
        t -= rng.uniform(10, 60) * np.exp(-((x - p)**2 + (y - q)**2) / rng.uniform(.01, .06)**2)
    return t


def thing(kind, rng, n, dark, contrast):
    "An object `n` pixels wide and how much of each pixel it covers."
    y, x = (np.mgrid[:n, :n] - (n - 1) / 2) / (n / 2)
    r = outline(kind, rng, x, y)
    colour = np.array(COLOURS[kind], np.float32) + rng.normal(0, 8, 3) - 45 * (kind == 'cocoon' and not dark)
    z = np.sqrt(np.clip(1 - r**2, 0, 1))
    shade = .45 + .55 * np.clip(.8 * z - .3 * x - .3 * y, 0, 1)
    return shade[..., None] * colour + contrast * texture(kind, rng, x, y)[..., None] * (.5 + .5 * shade[..., None]), np.clip((1 - r) * n / 4, 0, 1)


def paste(im, rgb, alpha, at, turn, shadow=0.):
    "The picture with an object, turned, its centre at `at`."
    h, w, n = *im.shape[:2], len(rgb)
    m = cv2.getRotationMatrix2D((n / 2, n / 2), turn, 1.)
    m[:, 2] += np.array(at) - n / 2
    a = cv2.warpAffine(alpha.astype(np.float32), m, (w, h))[..., None]
    if shadow: im = im * (1 - shadow * cv2.GaussianBlur(cv2.warpAffine(a, np.array([[1, 0, .06 * n], [0, 1, .08 * n]]), (w, h)), (0, 0), .05 * n))[..., None]
    return im * (1 - a) + cv2.warpAffine(rgb.astype(np.float32), m, (w, h), borderMode=cv2.BORDER_REPLICATE) * a


def draw(kind, seed, w=480, h=384, ground=None, part=None, soft=None, contrast=1., grain=1.5):
    "One object on a plain ground; what isn't given is drawn by the seed. `part` of the shorter side; `soft`: blur in pixels; `grain`: noise in levels."
    rng = np.random.default_rng([seed, list(COLOURS).index(kind)])
    g = GROUNDS[ground or rng.choice(list(GROUNDS))]
    part = part or rng.uniform(.25, .8)
    soft = rng.uniform(.4, 1.5) if soft is None else soft
    n = max(24, int(min(w, h) * part))
    rgb, alpha = thing(kind, rng, n, g < 200, contrast)
    im, turn = lit(np.full(3, g), w, h, rng), rng.uniform(-15, 15) if kind in ('cocoon', 'pupa') else rng.uniform(0, 360)
    at = np.array([w, h]) / 2 + rng.uniform(-.3, .3, 2) * (w - n, h - n)
    return grained(paste(im, rgb, alpha, at, turn), soft, grain, rng)


def lit(colour, w, h, rng):
    "A ground that is a little brighter at one side."
    gy, gx = np.mgrid[:h, :w]
    return (colour + np.repeat(((gx / w - .5) * rng.uniform(-6, 6) + (gy / h - .5) * rng.uniform(-6, 6))[..., None], 3, 2)).astype(np.float32)


def grained(im, soft, grain, rng):
    return Image.fromarray((cv2.GaussianBlur(im, (0, 0), soft) + rng.normal(0, grain, im.shape)).clip(0, 255).astype(np.uint8))


def varied(kind, seed):
    "One to four objects on a ground of any colour, with a shadow or without."
    w, h, rng = 480, 384, np.random.default_rng([seed, list(COLOURS).index(kind), 1])
    how = rng.choice(['white', 'black', 'grey', 'colour'])
    colour = rng.uniform(20, 240, 3) if how == 'colour' else np.full(3, GROUNDS[how])
    im, many, shadow = lit(colour, w, h, rng), int(rng.choice([1, 1, 1, 2, 3, 4])), rng.choice([0., .35])
    for k in range(many):
        n = int(h * (rng.uniform(.25, .8) if many == 1 else rng.uniform(.25, .42)))
        at = np.array([w, h]) / 2 + rng.uniform(-.3, .3, 2) * (w - n, h - n) if many == 1 else np.array([(k % 2 + .5) * w / 2, (k // 2 + .5) * h / 2])
        im = paste(im, *thing(kind, rng, n, colour.mean() < 200, 1.), at, rng.uniform(0, 360), shadow)
    return grained(im, rng.uniform(.4, 1.5), 1.5, rng)


def jpeg(im, quality=88):
    b = io.BytesIO()
    im.convert('RGB').save(b, 'JPEG', quality=int(quality))
    return b.getvalue()


def ground_colour(a): return np.median(np.concatenate([x.reshape(-1, 3) for x in (a[:4], a[-4:], a[:, :4], a[:, -4:])]), 0)


def warp(im, rng, angle=0., zoom=1., flip=''):
    "Turned, zoomed and flipped; what comes in is the ground's colour, black or white."
    a = np.asarray(im.convert('RGB'))
    h, w = a.shape[:2]
    fill = [tuple(map(int, ground_colour(a))), (0,) * 3, (255,) * 3][rng.integers(3)]
    a = a[::-1 if 'v' in flip else 1, ::-1 if 'h' in flip else 1]
    return Image.fromarray(cv2.warpAffine(np.ascontiguousarray(a), cv2.getRotationMatrix2D((w / 2, h / 2), angle, zoom), (w, h), borderValue=fill))


def bright(im, rng):
    return Image.fromarray((np.asarray(im.convert('RGB')).astype(np.float32) * rng.uniform(.6, 1.3) + rng.uniform(-20, 20)).clip(0, 255).astype(np.uint8))


def recoloured(im, rng):
    "The objects cut out, and a ground of one colour behind them."
    a = np.asarray(im.convert('RGB')).astype(np.float32)
    mask = (cv2.GaussianBlur(np.abs(a - ground_colour(a)).max(2), (0, 0), 1.5) > 14).astype(np.uint8)
    mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (25, 25)))
    mask = cv2.drawContours(np.zeros_like(mask), cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0], -1, 1, -1)
    alpha = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 1.)[..., None]
    return Image.fromarray((a * alpha + rng.uniform(0, 255, 3) * (1 - alpha)).clip(0, 255).astype(np.uint8))


def smaller(im, k): return im.resize((max(1, round(im.width * k)), max(1, round(im.height * k))), Image.Resampling.BICUBIC)


KINDS = {
    'rotated by up to 20': lambda im, r: jpeg(warp(im, r, r.uniform(-20, 20))), 'rotated by any angle': lambda im, r: jpeg(warp(im, r, r.uniform(20, 340))),
    'rotated by 90, 180, 270': lambda im, r: jpeg(im.rotate(90 * int(r.integers(1, 4)), expand=True)), 'flipped': lambda im, r: jpeg(warp(im, r, flip=r.choice(['h', 'v']))),
    'brightness': lambda im, r: jpeg(bright(im, r)), 'zoomed by 1.1 to 1.5': lambda im, r: jpeg(warp(im, r, zoom=r.uniform(1.1, 1.5))),
    'zoomed by 0.6 to 0.9': lambda im, r: jpeg(warp(im, r, zoom=r.uniform(.6, .9))), 'JPEG 35 to 80': lambda im, r: jpeg(im, r.integers(35, 80)),
    'resized to 40 to 80 %': lambda im, r: jpeg(smaller(im, r.uniform(.4, .8)), 85), 'ground recoloured': lambda im, r: jpeg(recoloured(im, r)),
    'all of these': lambda im, r: jpeg(smaller(bright(warp(im, r, r.uniform(0, 360), r.uniform(.8, 1.25), r.choice(['', 'h', 'v'])), r), .7), 80)}


def main(folder, objects, n, seed):
    rng = np.random.default_rng(seed)
    if folder:
        files = pictures_below(folder)[0]
        sets = {str(folder): [open_image(files[i]) for i in rng.permutation(len(files))[:n]]}
    else: sets = {k: [varied(k, 1000 * seed + i) for i in range(n)] for k in objects}
    total = np.zeros((len(KINDS), 3), int)
    for name, ims in sets.items():
        if len(ims) < 2: raise DataError(f'{name} holds {len(ims)} pictures; at least 2 are needed')
        print(f'{name}: {len(ims)} pictures')
        with tempfile.TemporaryDirectory() as tmp:
            os.environ['SILKWORM_CACHE'] = f'{tmp}/cache'
            def put(name, data):
                (Path(tmp)/name).write_bytes(data)
                return Path(tmp)/name
            own = [put(f'{i}.jpg', jpeg(im, 95)) for i, im in enumerate(ims)]
            print(f'{"originals alone":26} {len(set(group_pictures(own, show=False).copies)):4} photographs', flush=True)
            for k, (kind, f) in enumerate(KINDS.items()):
                found = group_pictures(own + [put(f'{k}_{i}.jpg', f(im, rng)) for i, im in enumerate(ims)], show=False).copies
                total[k] += pair_counts(found, [*range(len(ims))] * 2)
                tell(kind, *pair_counts(found, [*range(len(ims))] * 2))
    if len(sets) > 1:
        print('all')
        for kind, t in zip(KINDS, total): tell(kind, *t)


def tell(kind, both, joined, should):
    print(f'{kind:26} precision {both / max(1, joined):.3f}  recall {both / should:.3f}   ({both} of {joined} joined, of {should})', flush=True)


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('folder', nargs='?', help='pictures of different objects; default: objects are drawn')
    p.add_argument('--objects', nargs='*', default=list(COLOURS), choices=list(COLOURS), help='what is drawn (default: all)')
    p.add_argument('--n', type=int, default=40, help='pictures of each kind of object (default: %(default)s)')
    p.add_argument('--seed', type=int, default=0)
    args = p.parse_args()
    try: main(**vars(args))
    except (DataError, OSError) as e:
        print(f'bench_plain: {e}', file=sys.stderr)
        sys.exit(2)
