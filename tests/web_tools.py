"What the tests of the page share: a stand-in for a predictor, a server, a client without a queue of its own, and bad uploads."
import io
import json
import os
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from silkworm_app.data.imaging import Preprocess
from silkworm_app.serve.trust import Decision, Reason, Trust


class Colours:
    "Tells red, green and blue pictures apart; says that it can't tell on dark ones. `wait` makes it slow."
    classes, config, model, preprocess, path = ['red', 'green', 'blue'], {}, None, Preprocess(size=16), None

    def __init__(self, wait=0.): self.wait = wait

    def decide(self, items):
        time.sleep(self.wait)
        out = []
        for im in items:
            mean = np.asarray(im.convert('RGB'), float).mean((0, 1)) + 1e-6
            p = mean / mean.sum()
            k, dark = int(p.argmax()), mean.max() < 50
            out.append(Decision(None if dark else self.classes[k], float(p[k]), dict(zip(self.classes, map(float, p))), ['the picture is too dark'] if dark else []))
        return out


class Keeper:
    "The four kinds of answer about silkworms, by the colour of the picture: red one, green several, blue nothing, dark unlike; others one that is hardly sure."
    classes, config, model, preprocess = ['flacherie', 'grasserie', 'healthy', 'muscardine', 'pebrine'], {}, None, Preprocess(size=16)
    few = dict(flacherie=7, muscardine=7, pebrine=3)

    def decide(self, items): return [self.one(np.asarray(im.convert('RGB'), float).mean((0, 1))) for im in items]

    def one(self, mean):
        unproven = {c: (n, 9) for c, n in self.few.items()}
        probs = dict(grasserie=.7, healthy=.1, flacherie=.1, muscardine=.06, pebrine=.04)
        base = dict(prob=.7, probs=probs, unproven=unproven, pvalues=dict(grasserie=.6, healthy=.04, flacherie=.5, muscardine=.4, pebrine=.5), advice='collect',
            reasons=[Reason('unproven', seen=self.few, needed=9)], excluded=[], measured=None, labels=[])
        if mean.max() < 50: return Decision(None, kind='unlike', **base | dict(unproven={}, reasons=[Reason('blurred')], advice='camera', pvalues={}))
        kind = ('one', 'several', 'nothing')[int(mean.argmax())]
        if kind == 'nothing': return Decision(None, kind=kind, **base)
        base |= dict(excluded=['healthy'], measured=dict(n=52, right=50, low=.87, high=.99))
        if kind == 'one': return Decision('grasserie', kind=kind, **base | dict(labels=['grasserie']))
        return Decision(None, kind=kind, **base | dict(labels=['grasserie', 'muscardine'], advice=None, reasons=[], unproven={}))

    @property
    def trust(self):
        answer, tried = lambda n, right: dict(n=n, right=right, low=.8, high=.99), dict(healthy=111, grasserie=36, **self.few)
        row = lambda n: dict(n=n, kept=n, low=.8, high=1., answered=n // 2, found=round(.9 * n) if n > 9 else 1, size=2.)
        measured = dict(photographs=163, nothing=60, one=dict(grasserie=answer(32, 30), healthy=answer(60, 58)), several=answer(11, 10),
            classes={c: row(n) for c, n in tried.items()})
        confusion = [[1, 3, 3, 0, 0], [0, 30, 6, 0, 0], [0, 2, 109, 0, 0], [0, 0, 5, 2, 0], [0, 0, 3, 0, 0]]
        return Trust(self.classes, calibrated=True, note='', scores={c: [.1] * n for c, n in tried.items()}, measured=measured, confusion=confusion,
            n_sources=163, source='cross-validation')


def random_bundle(dest, seed=0, **kwargs):
    "A bundle of the small net with random weights: what it answers is noise, but always the same noise; it can't tell on blank pictures."
    import torch
    from silkworm_app.serve.bundle import save_bundle
    from silkworm_app.act.patch import lslu_model
    torch.manual_seed(seed)
    classes = ['flacherie', 'grasserie', 'healthy', 'muscardine', 'pebrine']
    model = lslu_model('vanillanet_5_x0_125', num_classes=len(classes))
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, torch.nn.Conv2d): torch.nn.init.kaiming_normal_(m.weight)       # else all pictures look the same to it
            if isinstance(m, torch.nn.BatchNorm2d):
                m.running_mean.normal_(0, .2)
                m.running_var.uniform_(.3, 1.5)
                m.weight.uniform_(.6, 1.4)
                m.bias.normal_(0, .2)
    if hasattr(model, 'set_act_slope'): model.set_act_slope(1.)
    trust = Trust(classes, temperature=.05, scores={c: [0.] * 9 for c in classes}, min_contrast=.02, calibrated=True, note='', n=45)     # so cold that one class is left
    return save_bundle(dest, model.eval(), preprocess=Preprocess(size=96), classes=classes, **dict(trust=trust) | kwargs)


@contextmanager
def serving(predictor, **kwargs):
    "The page on a free port: a `Server`."
    from silkworm_app.serve.page.server import serve
    demo = serve(predictor, port=0, block=False, quiet=True, **kwargs)
    try: yield demo
    finally: demo.close()


def upload(http, data, name='picture.jpg'):
    "POST bytes as an upload: the response."
    return http.post('/gradio_api/upload', files={'files': (name, data)})


def call(http, api, args):
    "One call of a named endpoint over plain HTTP: ('complete' or 'error', data)."
    r = http.post(f'/gradio_api/call/{api}', json={'data': args})
    if r.status_code != 200: return 'refused', r.text
    with http.stream('GET', f'/gradio_api/call/{api}/{r.json()["event_id"]}') as stream:
        event = None
        for line in stream.iter_lines():
            if line.startswith('event:'): event = line.split(':', 1)[1].strip()
            elif line.startswith('data:') and event in ('complete', 'error'): return event, json.loads(line.split(':', 1)[1])
    return 'lost', None


def files_in(folder): return [os.path.join(root, f) for root, _, files in os.walk(folder) for f in files]


def as_file(path): return {'path': str(path), 'meta': {'_type': 'gradio.FileData'}}


def encode(im, fmt, **kwargs):
    buf = io.BytesIO()
    im.save(buf, fmt, **kwargs)
    return buf.getvalue()


def picture(rng, size=(64, 48), mode='RGB'):
    "A smooth random picture."
    small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC).convert(mode)


def png_claiming(width, height):
    "A PNG whose header claims a size that its few bytes can't fill."
    import struct
    import zlib
    def chunk(kind, body): return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(b'\0' * 999)) + chunk(b'IEND', b'')


def bad_uploads(n, seed=0):
    "n times (kind, file name, bytes): files that are damaged, hostile, strange, or fine in an unusual way."
    rng = np.random.default_rng(seed)
    formats = {'JPEG': '.jpg', 'PNG': '.png', 'GIF': '.gif', 'BMP': '.bmp', 'TIFF': '.tif', 'WEBP': '.webp'}
    good = {f: encode(picture(rng), f) for f in formats}

    def one(fmt=None): return fmt or list(formats)[rng.integers(len(formats))]
    def cut():
        f = one()
        return f'p{formats[f]}', good[f][:rng.integers(1, len(good[f]))]
    def flipped():
        f = one()
        data = bytearray(good[f])
        for i in rng.integers(0, len(data), rng.integers(1, 30)): data[i] = rng.integers(256)
        return f'p{formats[f]}', bytes(data)
    def wrong_magic():
        f = one()
        return f'p{formats[f]}', rng.bytes(8) + good[f][8:]
    def wrong_name():
        f, g = one(), one()
        return f'p{formats[g]}', good[f]
    def glued():
        f, g = one(), one()
        return f'p{formats[f]}', good[f][:len(good[f]) // 2] + good[g]
    def animated():
        frames = [picture(rng) for _ in range(5)]
        f = ('GIF', 'WEBP', 'PNG')[rng.integers(3)]
        return f'p{formats[f]}', encode(frames[0], f, save_all=True, append_images=frames[1:])
    def zipped():
        buf = io.BytesIO()
        with zipfile.ZipFile(buf, 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('p.jpg', good['JPEG'])
        return ('p.jpg', 'p.zip')[rng.integers(2)], buf.getvalue()
    def deep():
        if rng.integers(2): return 'p.png', encode(Image.fromarray(rng.integers(0, 65535, (48, 64), dtype=np.uint16)), 'PNG')
        return 'p.tif', encode(Image.fromarray(rng.random((48, 64), dtype=np.float32)), 'TIFF')
    def shape():
        w, h = [(1, 1), (1, 5000), (5000, 1), (2, 3), (3, 1)][rng.integers(5)]
        return 'p.png', encode(picture(rng, (w, h)), 'PNG')
    def text(): return 'p.jpg', [b'<html><body>Not found</body></html>', b'%PDF-1.7 x', b'MZ\x90\0', b'#!/bin/sh\nrm -rf ~', b'{"label": "healthy"}', b'\0' * 5000][rng.integers(6)]
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script><image href="file:///etc/passwd"/></svg>'
    kinds = dict(cut=cut, flipped=flipped, wrong_magic=wrong_magic, wrong_name=wrong_name, glued=glued, animated=animated, zipped=zipped, deep=deep, shape=shape, text=text,
                 empty=lambda: ('p.png', b''), svg=lambda: (('p.svg', 'p.png')[rng.integers(2)], svg),
                 noise=lambda: ('p.jpg', rng.bytes(int(rng.integers(1, 3000)))), cmyk=lambda: ('p.jpg', encode(picture(rng, mode='CMYK'), 'JPEG')),
                 modes=lambda: ('p.png', encode(picture(rng, mode=('L', '1', 'P', 'RGBA', 'LA')[rng.integers(5)]), 'PNG')),
                 huge=lambda: ('p.png', png_claiming(*[(60_000, 60_000), (2**31 - 1, 2**31 - 1), (100_000, 1_000), (0, 5)][rng.integers(4)])),
                 name=lambda: (['../../p.jpg', 'a' * 300 + '.jpg', '<script>.jpg', 'p\u202egpj.exe', '%2e%2e%2fp.jpg', '=1+1.jpg'][rng.integers(6)], good['JPEG']))
    names = list(kinds)
    for i in range(n):
        kind = names[i % len(names)]
        yield kind, *kinds[kind]()
