"""Abstaining on real pictures: what a net says about pictures of things it has never seen.

`SILKWORM_DATA=... python tests/test_trust.py --out docs/trust.md` trains the nets of `report` and writes the page and its plot.
"""
import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from silkworm_app.imaging import Preprocess, open_image
from silkworm_app.prepare import unpack
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
    far = lambda ds: np.mean([any('resemble' in r or 'unlike' in r or 'blank' in r or 'blurred' in r or 'noise' in r for r in d.reasons) for d in ds])
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


def test_threshold_from_a_cross_validation():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 5, 200)
    z = 4 * np.eye(5)[np.where(rng.random(200) < .3, rng.integers(0, 5, 200), y)] + rng.normal(0, .1, (200, 5))
    few, labels, photos = 4 * np.eye(5)[:5], np.arange(5), np.arange(200)
    alone = fit_trust(few, None, labels, list('abcde'), leak=0., target=.7)
    assert alone.threshold is None and '5 distinct validation photographs' in alone.note
    kept = fit_trust(few, None, labels, list('abcde'), leak=0., target=.7, held_out=(z, y, photos))
    direct = fit_trust(z, None, y, list('abcde'), leak=0., target=.7, groups=photos)
    assert kept.calibrated and (kept.threshold, kept.temperature, kept.n) == (direct.threshold, direct.temperature, 200) and 'cross-validated' in kept.note
    assert not fit_trust(few, None, labels, list('abcde'), leak=0., target=.7, held_out=(z, y, np.arange(200) % 4)).calibrated, 'copies counted as photographs'
    assert not fit_trust(few, None, labels, list('abcde'), leak=.5, target=.7, held_out=(z, y, photos)).calibrated, 'a leak was forgotten'
    with pytest.raises(ValueError, match='held_out'): fit_trust(few, None, labels, list('abcde'), held_out=(z[:, :4], y, photos))
    with pytest.raises(ValueError, match='held_out'): fit_trust(few, None, labels, list('abcde'), held_out=(z * np.nan, y, photos))


def test_copies_prove_nothing_more():
    "Ten photographs, copied a hundred times each, all right: no threshold."
    y = np.repeat(np.arange(10) % 5, 100)
    t = fit_trust(10 * np.eye(5)[y], None, y, list('abcde'), groups=np.repeat(np.arange(10), 100), leak=0.)
    assert t.threshold is None and 'only 10 distinct' in t.note


# ---- slow: trained nets ----

ARCH = 'vanillanet_5_x0_125'


def train(splits, size, epochs, seed, **kw):
    "A trained learner; its validation loader takes no part in training."
    from silkworm_app.data import image_dls
    from silkworm_app.learner import lslu_learner
    import fastai.callback.schedule
    dls = image_dls(splits, size=size, bs=64, seed=seed, fast=True, aug='light')
    learn = lslu_learner(dls, ARCH, seed=seed, **kw)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs)
    return learn


def bundled(learn, dest, **kw):
    from silkworm_app.bundle import load_bundle, save_bundle
    return load_bundle(save_bundle(dest, learn, **kw))


def blur(im, part=.08):
    im = open_image(im)
    return im.filter(ImageFilter.GaussianBlur(part * min(im.size)))


def strange_sets(data, own, cifar=None, n=200):
    "Pictures that are none of the classes."
    rng = np.random.default_rng(0)
    pick = lambda items: [items[i] for i in rng.permutation(len(items))[:n]]
    out = {'hymenoptera (ants, bees)': pick(sorted((data / 'hymenoptera').rglob('*.jpg')))}
    if cifar: out['CIFAR-10'] = pick(cifar)
    out['noise'] = [rng.integers(0, 256, (96, 96, 3), dtype=np.uint8) for _ in range(n)]
    out['blanks'] = [np.clip(rng.integers(0, 256, (1, 1, 3)) + rng.normal(0, 2, (96, 96, 3)), 0, 255).astype(np.uint8) for _ in range(n)]
    out['its own test pictures, strongly blurred'] = [blur(p) for p in pick(own)]
    return {k: (v, None) for k, v in out.items()}


def strange(d): return any(w in r for r in d.reasons for w in ('resemble', 'unlike', 'blank', 'blurred', 'noise'))


def ask(predictor, sets):
    "`ood_report` of each set, and the part turned away for its looks alone."
    out = {}
    for what, (pictures, labels) in sets.items():
        ds = predictor.decide(pictures)
        out[what] = ood_report(ds, labels) | dict(strange=float(np.mean([strange(d) for d in ds])), known=labels is not None)
    return out


def curve(predictor, test):
    "Accuracy over coverage on test pictures by confidence alone."
    z = predictor.logits([p for p, _ in test])
    return selective_curve(predictor.trust.confidence(z), np.array([predictor.classes[i] == c for i, (_, c) in zip(z.argmax(1), test)]))


def at(curves, coverage):
    "Mean and range of the accuracy at a coverage."
    v = [float(acc[min(np.searchsorted(cov, coverage), len(acc) - 1)]) for cov, acc, _ in curves]
    return f'{np.mean(v):.0%} ({min(v):.0%} to {max(v):.0%})'


def curve_table(named):
    cs = (.1, .2, .4, .6, .8, 1.)
    return '| answered | ' + ' | '.join(f'{c:.0%}' for c in cs) + ' |\n|---|' + '---|' * len(cs) + '\n' + ''.join(f'| right of these, {name} | ' + ' | '.join(at(curves, c) for c in cs) + ' |\n' for name, curves in named.items())


def table(runs):
    "A table of several nets' reports: means over the nets."
    cols = [('abstains', 'abstained'), ('turned away for its looks', 'strange'), ('right', 'right'), ('wrong', 'wrong'), ('confidently wrong', 'confidently_wrong'), ('if it always answered: right', 'forced_right'), ('confidently wrong', 'forced_confidently_wrong')]
    lines = ['| shown | pictures | ' + ' | '.join(n for n, _ in cols) + ' |', '|---|---|' + '---|' * len(cols)]
    for what in runs[0]:
        rs = [r[what] for r in runs if r[what]['n']]
        cell = lambda k: '-' if 'right' in k and not rs[0]['known'] else f'{np.mean([r[k] for r in rs]):.1%}'
        lines.append(f'| {what} | {round(np.mean([r["n"] for r in rs]))} | ' + ' | '.join(cell(k) for _, k in cols) + ' |')
    return '\n'.join(lines) + '\n'


def untar(data, name, dest):
    unpack(data / f'{name}.tar', dest)
    return dest / name


def cifar_part(data, dest, seeds, epochs, n_train):
    "Six classes learned, the other four never seen."
    from silkworm_app.data import Splits, cifar_splits
    reports, curves, notes = [], [], []
    for seed in seeds:
        s = cifar_splits('cifar10', data / 'cifar10.zip', n_train=int(n_train / .6), valid_pct=.06, seed=seed)
        known = s.classes[:6]
        keep = lambda part: [(p, c) for p, c in part if c in known]
        p = bundled(train(Splits(keep(s.train), keep(s.valid), keep(s.test), known), 32, epochs, seed, stem_stride=2), dest / f'six{seed}', )
        test, other = keep(s.test)[::3], [a for a, c in s.test if c not in known][::4]
        reports.append(ask(p, {'the six classes (test)': ([a for a, _ in test], [c for _, c in test]), 'the other four classes': (other, None), **strange_sets(dest, [a for a, _ in test])}))
        curves.append(curve(p, test))
        notes.append(p.trust)
    return reports, curves, notes, known


def silkworm_part(data, dest, seeds, epochs):
    "The same photographs split by source and at random, asked about sources that neither net has seen."
    from silkworm_app.data import Splits, cifar_splits, find_splits
    from silkworm_app.trust import fit_trust
    from silkworm_app import duplicates
    groups_of, out = {}, dict(source=[], random=[], unchecked=[], curves=dict(source=[], random=[], random_valid=[]), notes=[], counts=[])
    own = duplicates.copy_groups
    def once(files):                    # the grouping takes longest and is the same for every seed
        if tuple(files) not in groups_of: groups_of[tuple(files)] = own(files)
        return groups_of[tuple(files)]
    duplicates.copy_groups = once
    cifar = [p for p, _ in cifar_splits('cifar10', data / 'cifar10.zip', n_train=100, n_test=500).test]
    other = [f for f in sorted((dest / 'silkworm_binary_raw').rglob('*')) if f.is_file() and f.parent.name == 'undiseased'][::2]
    try:
        for seed in seeds:
            s = find_splits(dest / 'silkworm_raw' / 'Train', group='copies', seed=seed)
            rest = s.train + s.valid
            mix = [rest[i] for i in np.random.default_rng(seed).permutation(len(rest))]
            n = len(s.valid)
            from silkworm_app.data import _leak
            leaky = Splits(mix[n:], mix[:n], s.test, s.classes, s.groups, leak=_leak(dict(train=mix[n:], valid=mix[:n], test=s.test), s.groups, 'copies'))
            test = [a for a, _ in s.test], [c for _, c in s.test]
            new = {'silkworm photographs of sources it never saw': test, 'healthy ones of another collection': (other, ['undiseased'] * len(other)), **strange_sets(dest, test[0], cifar)}
            p = bundled(train(s, 64, epochs, seed), dest / f'source{seed}')
            out['source'].append(ask(p, new))
            out['curves']['source'].append(curve(p, s.test))
            learn = train(leaky, 64, epochs, seed)
            q = bundled(learn, dest / f'random{seed}')
            naive = bundled(learn, dest / f'naive{seed}', trust=naive_trust(learn, q))
            val = [a for a, _ in leaky.valid], [c for _, c in leaky.valid]
            for name, predictor in (('random', q), ('unchecked', naive)): out[name].append(ask(predictor, {'its validation pictures (copies of training pictures)': val, **new}))
            out['curves']['random'].append(curve(q, s.test))
            out['curves']['random_valid'].append(curve(q, leaky.valid))
            out['notes'].append((p.trust, q.trust))
            out['counts'].append((len(s.train), len(s.valid), len(s.test), len({s.groups[f] for f, _ in s.test}), leaky.leak['valid_seen_in_train']))
    finally: duplicates.copy_groups = own
    return out


def naive_trust(learn, predictor):
    "What calibrating would give if nobody had looked for copies."
    from silkworm_app.bundle import learner_trust
    return learner_trust(learn, predictor, leak=0., groups=None)


def plot(curves, file):
    from matplotlib.figure import Figure
    fig = Figure(figsize=(8.4, 3.4), layout='constrained', facecolor='white')
    axs = fig.subplots(1, 2, sharey=True)
    panels = ('Six classes of CIFAR-10', {'six': ('test pictures', 'C0')}), ('Silkworm photographs', {'random_valid': ('random split, its validation pictures', 'C3'), 'random': ('random split, new sources', 'C1'), 'source': ('split by source, new sources', 'C2')})
    for ax, (title, lines) in zip(axs, panels):
        for k, (label, color) in lines.items():
            for i, (cov, acc, _) in enumerate(curves[k]): ax.plot(cov, acc, color=color, lw=1.2, alpha=.75, label=label if i == 0 else None)
        ax.set(title=title, xlabel='part of the pictures that is answered (coverage)', ylim=(0, 1.02), xlim=(0, 1))
        ax.legend(fontsize=8, frameon=False, loc='lower left')
        ax.spines[['top', 'right']].set_visible(False)
    axs[0].set_ylabel('accuracy of the answers')
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(file, dpi=100)


def report(dest, epochs=(8, 12), n_train=4000, seeds=2, img=None):
    "Train, ask, and give the page's text and the numbers."
    data, dest, start = Path(os.environ['SILKWORM_DATA']), Path(dest), time.time()
    for n in ('hymenoptera', 'silkworm_raw', 'silkworm_binary_raw'): untar(data, n, dest)
    seeds = range(42, 42 + seeds)
    six = cifar_part(data, dest, seeds, epochs[0], n_train)
    print(f'CIFAR-10 after {time.time() - start:.0f} s', flush=True)
    silk = silkworm_part(data, dest, seeds, epochs[1])
    return page(six, silk, seeds, epochs, n_train, img), dict(six=six[0], six_trust=six[2], **silk)


def page(six, silk, seeds, epochs, n_train, img=None):
    "The text of docs/trust.md from what the two parts gave."
    six, six_curves, six_trust, known = six
    if img: plot(dict(six=six_curves, **silk['curves']), img)
    notes = lambda ts: '; '.join(dict.fromkeys(f'seed {s}: {t.note}' for s, t in zip(seeds, ts)))
    tr, va, te, ng, seen = np.mean(silk['counts'], 0)
    mean = lambda runs, what, k: np.mean([r[what][k] for r in runs])
    named = lambda runs: ', '.join(map(str, seeds[:len(runs)]))
    return f"""# When it says "I can't tell"

A net answers where its probability, scaled on the validation pictures, is above a threshold at which its answers there were right at least 90 % of the time (with 95 % certainty, counted by photograph, not by copy),
and where the picture looks like the training pictures: not blank, blurred or noise, and neither its features nor its colours and textures farther from them than those of 99 % of the validation pictures. Where no threshold reaches that, or the validation pictures are copies of training
pictures, it never answers, and says why. How the limits are chosen: `nbs/06a_trust.ipynb`.

Written by `python tests/test_trust.py --out docs/trust.md --epochs {epochs[0]} {epochs[1]} --seeds {len(seeds)} --n-train {n_train}` on one CPU core; {ARCH}, means over the seeds {named(silk['source'])} (CIFAR-10: {named(six)}).
"Confidently wrong": a wrong answer given with 80 % or more, in per cent of all pictures shown. "Turned away for its looks": blank, blurred, noise or too far from the training pictures. The last two columns are the same net made to answer always.

## Trained on six classes of CIFAR-10 ({", ".join(known)})

{n_train} training pictures of 32 x 32, {epochs[0]} epochs. {notes(six_trust)}.

{table(six)}
Things of another kind are turned away; things that resemble a class it knows (a truck, a horse) are the weak spot: of these it answers {1 - mean(six, 'the other four classes', 'abstained'):.0%}, {mean(six, 'the other four classes', 'confidently_wrong'):.0%} confidently, all wrong.
No picture gives that away, only a class for them in the training set.

What abstaining costs where it knows, by confidence alone: mean over the seeds (lowest to highest).

{curve_table({'six classes, test': six_curves})}
![Accuracy over coverage](img/coverage.png)

## Silkworm photographs, split by source

The pictures of `silkworm_raw/Train`: copies of one photograph stay on one side. On average {tr:.0f} training, {va:.0f} validation and {te:.0f} test pictures; the test pictures come from {ng:.0f} source photographs that neither net saw. {epochs[1]} epochs at 64 x 64.

{notes([a for a, _ in silk['notes']])}.

{table(silk['source'])}
## The same, split at random

{seen:.0%} of the validation pictures are copies of training pictures. {notes([b for _, b in silk['notes']])}.

{table(silk['random'])}
What would happen if nobody had looked for copies: the same nets, calibrated on the same validation pictures as if these were new.

{table(silk['unchecked'])}
Accuracy over coverage by confidence alone: what a net from a random split promises on its validation pictures doesn't hold on new photographs.

{curve_table({'random split, its validation pictures': silk['curves']['random_valid'], 'random split, sources it never saw': silk['curves']['random'], 'split by source, sources it never saw': silk['curves']['source']})}"""


@pytest.mark.slow
def test_report(tmp_path, data_dir):
    _, n = report(tmp_path, seeds=1)
    known = n['six'][0]['the six classes (test)']
    assert n['six_trust'][0].calibrated and known['right'] > .85 * (known['right'] + known['wrong']) and known['abstained'] < .95
    for k in ('noise', 'blanks', 'hymenoptera (ants, bees)', 'its own test pictures, strongly blurred'): assert n['six'][0][k]['abstained'] > .95, k
    leaky = n['random'][0]
    assert leaky['its validation pictures (copies of training pictures)']['forced_right'] > leaky['silkworm photographs of sources it never saw']['forced_right'] + .2
    assert all(r['abstained'] == 1 for r in leaky.values())


def main():
    p = argparse.ArgumentParser()
    p.add_argument('--out', default='docs/trust.md')
    p.add_argument('--epochs', type=int, nargs=2, default=(8, 12))
    p.add_argument('--seeds', type=int, default=2)
    p.add_argument('--n-train', type=int, default=4000)
    a = p.parse_args()
    out = Path(a.out)
    with tempfile.TemporaryDirectory() as d: text, _ = report(d, a.epochs, a.n_train, a.seeds, out.parent / 'img/coverage.png')
    out.parent.mkdir(exist_ok=True)
    out.write_text(text, encoding='utf-8')
    print(text)


if __name__ == '__main__': main()
