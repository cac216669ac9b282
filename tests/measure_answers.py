"""What answers per class are worth on pictures never seen: coverage of each class and size of sets, beside one threshold and plain softmax.

`SILKWORM_DATA=... python tests/measure_answers.py --cache DIR --out answers.md` computes features of a pretrained net once (kept in DIR), then
trains and calibrates the linear head of `silkworm_app.train.head` over and over: scores by five-fold cross-validation over photographs.
"""
import argparse
import os
from pathlib import Path

import numpy as np
import timm
import torch

from silkworm_app.act.weights import find_weights
from silkworm_app.data.sample import draw_larva
from silkworm_app.data.copies import copy_groups
from silkworm_app.data.imaging import Preprocess
from silkworm_app.data.folder import unpack
from silkworm_app.serve.calibrate import fit_trust
from silkworm_app.serve.trust import softmax
from silkworm_app.train.head import fit_head

ARCH, RISKS = 'tf_efficientnet_lite0', (.05, .1, .2)


@torch.inference_mode()
def features(pictures, size):
    "Pooled features of pictures and their mirror images, averaged."
    w = find_weights(ARCH)
    net = timm.create_model(ARCH, num_classes=0)
    net.load_state_dict({k: v for k, v in w.state.items() if not k.startswith('classifier')})
    pre, out = Preprocess(size, mean=w.mean, std=w.std, interpolation=w.interpolation), []
    for i in range(0, len(pictures), 32):
        x = torch.from_numpy(pre.batch(pictures[i:i + 32]))
        out.append((net.eval()(x) + net(x.flip(3))) / 2)
    return torch.cat(out).numpy()


def folders(root): return [(p, p.parent.name) for p in sorted(root.rglob('*.jpg'))]


def pictures_of(name, data, work):
    "Pictures with their class names, photographs (None: each picture is one), and the side of its pictures."
    rng = np.random.default_rng(0)
    if name.startswith('drawn'):
        items = [(draw_larva(c, 96, i), c) for c, n in (('healthy', 360), ('pebrine', 72)) for i in range(n)]
        return items, None, 96
    archive = data / {'cifar': 'cifar10.zip'}.get(name, f'{name}.tar')
    folder = work / f'{name}_pictures'
    if not folder.is_dir():
        folder.mkdir()
        unpack(archive, folder)
    items = folders(folder)
    if name == 'cifar':
        items = [it for it in items if 'train' in it[0].parts]
        items = [items[i] for i in rng.permutation(len(items))[:3000]]
    groups = copy_groups([p for p, _ in items]) if name == 'silkworm_photos' else None
    return items, groups, 96 if name == 'cifar' else 224


def cached(name, data, cache):
    "Features, labels, class names, photographs."
    file = cache / f'{name}.npz'
    if not file.is_file():
        items, groups, size = pictures_of(name, data, cache)
        f = features([p for p, _ in items], size)
        np.savez(file, features=f, names=np.array([c for _, c in items]), groups=np.arange(len(items)) if groups is None else groups)
    d = np.load(file)
    classes = sorted(set(d['names']))
    return d['features'], np.searchsorted(classes, d['names']), classes, d['groups']


def by_group(groups, labels, parts, rng):
    "A part for each picture: photographs stay together, classes are spread evenly."
    part = np.zeros(len(groups), int)
    for c in np.unique(labels):
        own = rng.permutation(np.unique(groups[labels == c]))
        for i, g in enumerate(own): part[groups == g] = (i + rng.integers(parts)) % parts if len(own) < parts else i % parts
    return part


def logits(f, y, g, k, new): 
    head = fit_head(f, y, g, classes=k, C=.01)
    return new @ np.asarray(head.weight).T + np.asarray(head.bias)


def one_draw(f, y, classes, g, rng, train, test):
    "Trust at each risk, and test logits, of a head trained on `train`."
    k, part = len(classes), by_group(g[train], y[train], 5, rng)
    held = np.zeros((len(train), k))
    for i in range(5):
        a, b = train[part != i], train[part == i]
        held[part == i] = logits(f[a], y[a], g[a], k, f[b])
    z = logits(f[train], y[train], g[train], k, f[test])
    return {r: fit_trust(z[:0], None, y[:0], classes, held_out=(held, y[train], g[train]), risk=r, risks=()) for r in RISKS}, z, (held, y[train], g[train])


def threshold(held, labels, target=.9):
    "The rule of before: the smallest probability above which so many held-out answers were right, by a bound of 95 %."
    from scipy.stats import beta
    p = softmax(held)
    order = np.argsort(-p.max(1))
    n, right = np.arange(1, len(p) + 1), np.cumsum((p.argmax(1) == labels)[order])
    ok = np.where(right > 0, beta.ppf(.05, np.maximum(right, 1e-9), n - right + 1), 0) >= target
    return p.max(1)[order][ok][-1] if ok.any() else np.inf


def measure(name, data, cache, repeats):
    "Rows of numbers, one for each repetition and rule."
    f, y, classes, g = cached(name, data, cache)
    rows, known = [], np.ones(len(y), bool)
    if name == 'cifar':
        classes_known = [c for c in classes if c not in ('frog', 'horse', 'ship', 'truck')]
        known = np.isin(np.array(classes)[y], classes_known)
        strangers = f[~known][:400]
        y = np.searchsorted(classes_known, np.array(classes)[y][known])
        f, g, classes = f[known], g[known], classes_known
    for seed in range(repeats):
        rng = np.random.default_rng(seed)
        if name.startswith('drawn'):
            train = np.concatenate([rng.permutation(np.flatnonzero(y == 0))[:300], rng.permutation(np.flatnonzero(y == 1))[:12]])
            test = np.setdiff1d(np.arange(len(y)), train)
        else:
            part = by_group(g, y, 3, rng)
            train, test = np.flatnonzero(part != 0), np.flatnonzero(part == 0)
        trusts, z, (held, hy, _) = one_draw(f, y, classes, g, rng, train, test)
        weight = 1 / np.unique(g[test], return_inverse=True, return_counts=True)[2][np.unique(g[test], return_inverse=True)[1]]
        share = lambda v, on=slice(None): float(np.average(np.asarray(v, float)[on], weights=weight[on])) if np.size(np.asarray(v)[on]) else np.nan
        for r, t in trusts.items():
            ds = t.decide(z)
            kept = [classes[i] not in d.excluded for d, i in zip(ds, y[test])]
            one = np.array([d.kind == 'one' for d in ds])
            row = dict(rule=f'sets, risk {r:g}', one=share(one), right=share([d.label == classes[i] for d, i in zip(ds, y[test])], one),
                       several=share([d.kind == 'several' for d in ds]), size=share([len(classes) - len(d.excluded) for d in ds]))
            rows.append(row | {f'kept {c}': share(kept, y[test] == k) for k, c in enumerate(classes)} | dict(unproven=len(t.unproven)))
        t0 = next(iter(trusts.values())).temperature
        for rule, t, scale in (('one threshold, 90 %', threshold(held / t0, hy), t0), ('softmax over 90 %', .9, 1.)):
            p = softmax(z, scale)
            said, right = p.max(1) >= t, p.argmax(1) == y[test]
            rows.append(dict(rule=rule, one=share(said), right=share(right, said), several=0., size=np.nan)
                        | {f'kept {c}': share(~said | right, y[test] == k) for k, c in enumerate(classes)})
    return rows, classes


def table(rows, classes):
    "Means and standard deviations over the repetitions, as markdown."
    def cell(rule, key, pct=True):
        v = np.array([r[key] for r in rows if r['rule'] == rule], float)
        v = v[np.isfinite(v)]
        if not len(v): return '-'
        return f'{100*v.mean():.1f} ± {100*v.std():.1f}' if pct else f'{v.mean():.2f}'
    head = ['rule', *(f'{c}: not lost' for c in classes), 'one class', 'right of these', 'several', 'classes left']
    out = ['| ' + ' | '.join(head) + ' |', '|' + '---|' * len(head)]
    for rule in dict.fromkeys(r['rule'] for r in rows):
        cells = [rule, *(cell(rule, f'kept {c}') for c in classes), cell(rule, 'one'), cell(rule, 'right'), cell(rule, 'several'), cell(rule, 'size', False)]
        out.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(out)


TITLES = dict(silkworm_photos='Silkworm photographs, five classes (by photograph)', pupae='Pupae, female and male', hymenoptera='Ants and bees',
              cifar='CIFAR-10, six classes, pictures enlarged to 96 pixels', drawn='300 drawings of healthy larvae and 12 of pebrine')


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--cache', required=True, type=Path)
    p.add_argument('--out', type=Path)
    p.add_argument('--sets', nargs='+', default=list(TITLES))
    p.add_argument('--repeats', type=int, default=10)
    a = p.parse_args()
    a.cache.mkdir(parents=True, exist_ok=True)
    parts = []
    for name in a.sets:
        rows, classes = measure(name, Path(os.environ['SILKWORM_DATA']), a.cache, a.repeats)
        parts += [f'## {TITLES[name]}', '', table(rows, classes), '']
        print('\n'.join(parts[-4:]), flush=True)
    if a.out: a.out.write_text('\n'.join(parts), encoding='utf-8')


if __name__ == '__main__': main()
