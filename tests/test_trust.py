"""Abstaining on real pictures: what a net says about pictures of things it has never seen.

`python tests/test_trust.py --out docs/trust.md` trains the nets of `report` (some minutes on two CPU cores) and writes the page; it reads the archives in SILKWORM_DATA.
"""
import argparse
import os
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from silkworm_app.imaging import Preprocess, open_image
from silkworm_app.trust import Decision, Trust, accuracy_bound, choose_threshold, fit_trust, ood_report, picture_stats, selective_curve


# ---- fast: a stand-in model (colour and layout of the picture, linear), real pictures ----

def features_of(files, pre):
    x = pre.batch(files)
    return x[:, :, ::4, ::4].reshape(len(x), -1), picture_stats(x)


@pytest.fixture(scope='module')
def linear(sample_dir):
    "A linear classifier on the sample's small pictures, with its trust."
    from sklearn.linear_model import LogisticRegression
    from silkworm_app.data import find_splits
    s, pre = find_splits(sample_dir), Preprocess(32)
    number = {c: i for i, c in enumerate(s.classes)}
    get = lambda part: (*features_of([p for p, _ in part], pre), np.array([number[c] for _, c in part]))
    (ftr, _, ytr), (fva, sva, yva) = get(s.train), get(s.valid)
    lr = LogisticRegression(C=1e-3, max_iter=300).fit(ftr, ytr)
    trust = fit_trust(lr.decision_function(fva), fva, yva, s.classes, ftr, ytr, stats=sva, groups=[s.groups[p] for p, _ in s.valid], leak=s.leak, target=.5)
    return s, pre, lr, trust


def test_strange_pictures_are_not_answered(linear):
    s, pre, lr, trust = linear
    rng = np.random.default_rng(0)
    strange = dict(noise=[rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(40)],
                   blank=[np.full((64, 64, 3), v, np.uint8) for v in range(0, 256, 10)])
    own = [p for p, _ in s.test]
    def limits(files):
        f, st = features_of(files, pre)
        return [d for d in trust.decide(lr.decision_function(f), f, st)]
    far = lambda ds: np.mean([any('resemble' in r or 'blank' in r or 'blurred' in r or 'noise' in r for r in d.reasons) for d in ds])
    assert far(limits(own)) < .2
    for name, files in strange.items(): assert far(limits(files)) > .9, name


def test_a_leaky_validation_never_answers(linear):
    s, pre, lr, trust = linear
    f, st = features_of([p for p, _ in s.valid], pre)
    y = np.array([s.classes.index(c) for _, c in s.valid])
    sure = 20 * np.eye(len(s.classes))[y]            # 100 % on validation pictures that it has seen
    leaky = fit_trust(sure, f, y, s.classes, stats=st, leak=.97)
    assert not leaky.calibrated and all(d.label is None and 'copies of training pictures' in d.reasons[-1] for d in leaky.decide(sure, f, st))


def test_threshold_keeps_its_promise():
    "Over 200 draws of 300 validation pictures, the answers on fresh pictures reach the target in most."
    rng, kept, n = np.random.default_rng(0), 0, 0
    for _ in range(200):
        conf = rng.beta(4, 1.5, 300)
        t = choose_threshold(conf, rng.uniform(size=300) < conf, target=.9)
        if not np.isfinite(t): continue
        fresh = rng.beta(4, 1.5, 4000)
        fresh = fresh[fresh >= t]
        n += 1
        kept += fresh.mean() >= .9      # the true accuracy of these answers
    assert n > 80 and kept / n >= .9, (kept, n)


def test_copies_prove_nothing_more():
    "Ten photographs, copied a hundred times each, all right: no threshold."
    y = np.repeat(np.arange(10) % 5, 100)
    t = fit_trust(10 * np.eye(5)[y], None, y, list('abcde'), groups=np.repeat(np.arange(10), 100), leak=0.)
    assert t.threshold is None and 'only 10 distinct' in t.note


# ---- slow: trained nets ----

def train(splits, size, epochs, arch='vanillanet_5_x0_25', seed=42, **kw):
    "A trained learner; its validation loader takes no part in training."
    import torch
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    from fastai.metrics import accuracy
    import fastai.callback.schedule
    from silkworm_app.data import image_dls
    from silkworm_app.patch import lslu_model
    torch.manual_seed(seed)
    dls = image_dls(splits, size=size, bs=64, seed=seed, fast=True, aug='light')
    model = lslu_model(arch, len(dls.vocab), **kw)
    if hasattr(model, 'set_act_slope'): model.set_act_slope(1.)
    learn = Learner(dls, model, loss_func=CrossEntropyLossFlat(), metrics=accuracy)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 4e-3)
    return learn


def blur(im, part=.08):
    im = open_image(im)
    return im.filter(ImageFilter.GaussianBlur(part * min(im.size)))


def show(name, predictor, sets):
    "A table of what it says about each set."
    lines = [f'| shown | pictures | abstains | right | wrong | confidently wrong | if it had to answer: right | confidently wrong |', '|---|---|---|---|---|---|---|---|']
    reports = {}
    for what, (pictures, labels) in sets.items():
        r = reports[what] = ood_report(predictor.decide(pictures), labels)
        lines.append(f'| {what} | {r["n"]} | {r["abstained"]:.1%} | {r["right"]:.1%} | {r["wrong"]:.1%} | {r["confidently_wrong"]:.1%} | {r["forced_right"]:.1%} | {r["forced_confidently_wrong"]:.1%} |')
    return f'### {name}\n\n{predictor.trust.note[:1].upper() + predictor.trust.note[1:]}.\n\n' + '\n'.join(lines) + '\n', reports


def strange_sets(data, own, n=200, cifar=True):
    "Pictures that are none of the classes."
    from silkworm_app.data import cifar_splits
    rng = np.random.default_rng(0)
    pick = lambda items: [items[i] for i in rng.permutation(len(items))[:n]]
    out = {'hymenoptera (ants, bees)': pick(sorted((data / 'hymenoptera').rglob('*.jpg')))}
    if cifar: out['CIFAR-10'] = pick([p for p, _ in cifar_splits('cifar10', os.environ['SILKWORM_DATA'] + '/cifar10.zip', n_train=100, n_test=500).test])
    out['noise'] = [rng.integers(0, 256, (96, 96, 3), dtype=np.uint8) for _ in range(n)]
    out['blank'] = [np.clip(rng.integers(0, 256, (1, 1, 3)) + rng.normal(0, 2, (96, 96, 3)), 0, 255).astype(np.uint8) for _ in range(n)]
    out['its own test pictures, strongly blurred'] = [blur(p) for p in pick(own)]
    return {k: (v, None) for k, v in out.items()}


def curve(predictor, test):
    "Accuracy over coverage on test pictures by confidence alone, as text."
    z = predictor.logits([p for p, _ in test])
    conf = predictor.trust.confidence(z)
    right = np.array([predictor.classes[i] == c for i, (_, c) in zip(z.argmax(1), test)])
    cov, acc, _ = selective_curve(conf, right)
    at = [np.searchsorted(cov, c) for c in (.1, .2, .4, .6, .8, 1.)]
    return '| coverage | ' + ' | '.join(f'{cov[min(i, len(cov) - 1)]:.0%}' for i in at) + ' |\n|---|' + '---|' * len(at) + '\n| accuracy | ' + ' | '.join(f'{acc[min(i, len(acc) - 1)]:.1%}' for i in at) + ' |\n'


def untar(data, name, dest):
    with tarfile.open(data / f'{name}.tar') as t: t.extractall(dest, filter='data')
    return dest / name


def report(dest, epochs=(8, 12), n_train=6000):
    "Train, ask, and give the page's text and the numbers."
    import torch
    from silkworm_app.bundle import load_bundle, save_bundle
    from silkworm_app.data import Splits, cifar_splits, find_splits
    data, dest, out, numbers = Path(os.environ['SILKWORM_DATA']), Path(dest), [], {}
    for n in ('hymenoptera', 'silkworm_raw', 'silkworm_binary_raw'): untar(data, n, dest)

    start = time.time()
    s = cifar_splits('cifar10', data / 'cifar10.zip', n_train=int(n_train / .6), valid_pct=.06)
    known = s.classes[:6]
    keep = lambda part: [(p, c) for p, c in part if c in known]
    six = Splits(keep(s.train), keep(s.valid), keep(s.test), known)
    learn = train(six, 32, epochs[0], stem_stride=2)
    p = load_bundle(save_bundle(dest / 'six', learn))
    unknown = [(a, c) for a, c in s.test if c not in known]
    test = six.test[::3]
    sets = {'the six classes (test)': ([a for a, _ in test], [c for _, c in test]), 'the other four classes': ([a for a, _ in unknown[::4]], None), **strange_sets(dest, [a for a, _ in test], cifar=False)}
    text, numbers['cifar'] = show(f'Trained on six classes of CIFAR-10 ({", ".join(known)})', p, sets)
    out.append(text + f'\nAccuracy over coverage on the test pictures of the six classes, by confidence alone ({len(six.train)} training and {len(six.valid)} validation pictures, {epochs[0]} epochs, seed 42):\n\n' + curve(p, six.test[::3]))
    numbers['cifar_trust'] = p.trust

    for naive in (True, False):
        s = find_splits(dest / 'silkworm_raw' / 'Train', group=None if naive else 'copies')
        learn = train(s, 64, epochs[1])
        p = load_bundle(save_bundle(dest / f'silk{naive}', learn))
        test = s.test
        binary = [(f, 'healthy') if f.parent.name == 'undiseased' else (f, None) for f in sorted((dest / 'silkworm_binary_raw').rglob('*')) if f.is_file()]
        sets = {'its test split' + (' (random: copies of training pictures)' if naive else ' (source photographs it never saw)'): ([a for a, _ in test], [c for _, c in test]),
                'silkworm photographs of another collection': ([f for f, _ in binary[::4]], None), **strange_sets(dest, [a for a, _ in test])}
        numbers[f'silkworm_{"random" if naive else "source"}'] = None
        name = 'Silkworm set, random split, leak not checked' if naive else 'Silkworm set, split by source photograph'
        text, numbers['silk_naive' if naive else 'silk'] = show(name, p, sets)
        out.append(text)
    return out, numbers, time.time() - start


@pytest.mark.slow
def test_report(tmp_path, data_dir):
    _, n, _ = report(tmp_path, epochs=(4, 4))
    assert n['cifar_trust'].calibrated
    known, other = n['cifar']['the six classes (test)'], n['cifar']['the other four classes']
    assert other['abstained'] > known['abstained'] + .1
    for k in ('noise', 'blank'): assert n['cifar'][k]['abstained'] > .95
    assert all(r['abstained'] == 1 for r in n['silk'].values())


def main():
    p = argparse.ArgumentParser()
    p.add_argument('--out', default='docs/trust.md')
    p.add_argument('--epochs', type=int, nargs=2, default=(8, 12))
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as d: text, _, seconds = report(d, a.epochs)
    head = (f'# When it says "I can\'t tell"\n\nWritten by `python tests/test_trust.py --out docs/trust.md` in {seconds / 60:.0f} minutes on two CPU cores. How the limits are chosen: `nbs/06a_trust.ipynb`. '
            '"Confidently wrong": a wrong answer with 80 % or more. The two last columns are the same net without abstaining.\n\n')
    out = Path(a.out)
    out.parent.mkdir(exist_ok=True)
    out.write_text(head + '\n'.join(text), encoding='utf-8')
    print(head + '\n'.join(text))


if __name__ == '__main__': main()
