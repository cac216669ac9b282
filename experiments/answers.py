"""What answers per class are worth on photographs never seen: how often each class is kept, and how many classes are left.

    SILKWORM_DATA=... python experiments/answers.py --cache DIR

computes features of a pretrained net once (kept in DIR), then trains and calibrates the linear head of `silkworm_app.train.head` over and
over, with scores from a five-fold cross-validation, and prints tables. `--strange` measures what is turned away as unlike instead, of all
sets but `rare`.
"""
import argparse
import os
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import ImageFilter
from sklearn.model_selection import StratifiedShuffleSplit

from silkworm_app.act.weights import find_weights
from silkworm_app.data.copies import copy_groups
from silkworm_app.data.folder import unpack
from silkworm_app.data.imaging import Preprocess, open_image
from silkworm_app.data.splits import stratified
from silkworm_app.files import replacing, whole_folder
from silkworm_app.serve.calibrate import fit_trust, interval
from silkworm_app.serve.trust import softmax
from silkworm_app.serve.unlike import picture_stats
from silkworm_app.train.head import fit_head

ARCH, RISKS = 'tf_efficientnet_lite0', (.05, .1, .2)
KNOWN = 'airplane', 'automobile', 'bird', 'cat', 'deer', 'dog'  # of CIFAR-10; the other four are strangers
LEAVES = 'maple_tree', 'oak_tree', 'orchid', 'palm_tree', 'poppy', 'rose', 'sunflower', 'tulip'  # of CIFAR-100
TITLES = dict(
    silkworm_photos='Silkworm photographs, five classes',
    pupae='Pupae, female and male',
    hymenoptera='Ants and bees',
    cifar='CIFAR-10, six classes, 250 pictures of each',
    rare='CIFAR-10, 300 automobiles and 12 trucks',
)


@torch.inference_mode()
def features(pictures, size):
    "Pooled features of pictures and their mirror images, averaged, and `picture_stats`."
    w = find_weights(ARCH)
    net = timm.create_model(ARCH, num_classes=0)
    net.load_state_dict({k: v for k, v in w.state.items() if not k.startswith('classifier')})
    pre, out, stats = Preprocess(size, **{k: w.pictures[k] for k in ('mean', 'std', 'interpolation')}), [], []
    for i in range(0, len(pictures), 32):
        x = pre.batch(pictures[i : i + 32])
        stats.append(picture_stats(x))
        x = torch.from_numpy(x)
        out.append((net.eval()(x) + net(x.flip(3))) / 2)
    return torch.cat(out).numpy(), np.concatenate(stats)


def save(file, **arrays):
    "An .npz that is whole or not there"
    with replacing(file) as part, part.open('wb') as f: np.savez(f, **arrays)


def files_of(name, data, cache):
    "Files with their class names."
    folder = cache / f'{name}_pictures'
    if not folder.is_dir():
        with whole_folder(folder) as work: unpack(data / (f'{name}.zip' if name.startswith('cifar') else f'{name}.tar'), work)
    found = [(p, p.parent.name) for p in sorted(folder.rglob('*.jpg')) if not name.startswith('cifar') or 'train' in p.parts]
    if name == 'cifar10': found = [found[i] for i in np.random.default_rng(0).permutation(len(found))[:6000]]
    if name == 'cifar100': found = [f for f in found if f[1] in LEAVES][::80]
    return found


def cached(name, data, cache, size=224):
    "Features, stats, class names and photographs of pictures."
    file = cache / f'{name}.npz'
    if not file.is_file():
        found = files_of(name, data, cache)
        paths = [p for p, _ in found]
        groups = copy_groups(paths) if name == 'silkworm_photos' else np.arange(len(paths))
        f, s = features(paths, size)
        save(file, f=f, s=s, names=np.array([c for _, c in found]), g=groups)
    d = np.load(file)
    return d['f'], d['s'], d['names'], d['g']


def load(name, data, cache):
    "Features, stats, labels, class names and photographs of a set."
    f, s, names, g = cached('cifar10', data, cache, 96) if name in ('cifar', 'rare') else cached(name, data, cache)
    on = np.isin(names, dict(cifar=KNOWN, rare=('automobile', 'truck')).get(name, names))
    classes = sorted(set(names[on]))
    return f[on], s[on], np.searchsorted(classes, names[on]), classes, g[on]


def folds(y, g, seed):
    "Pairs (train, test) of a cross-validation over photographs"
    part = stratified(y, np.unique(g, return_inverse=True)[1], 5, seed)
    return [(np.flatnonzero(part != i), np.flatnonzero(part == i)) for i in range(5)]


def cuts(name, y, g, seed):
    "Pairs (train, test): five of a cross-validation over photographs, or one where there are pictures enough."
    rng = np.random.default_rng(seed)
    pick = lambda counts: np.concatenate([rng.permutation(np.flatnonzero(y == k))[:n] for k, n in enumerate(counts)])
    if name in ('cifar', 'rare'):
        train = pick((300, 12) if name == 'rare' else [250] * len(KNOWN))
        return [(train, np.setdiff1d(np.arange(len(y)), train))]
    return folds(y, g, seed)


def held_out(f, y, g, k, seed):
    "Logits of each picture by a head that did not see its photograph."
    z = np.zeros((len(y), k))
    for a, b in folds(y, g, seed):
        z[b] = fit_head(f[a], y[a], g[a], classes=k, C=.01).logits(f[b])
    return z


def draws(name, data, cache, seed):
    "Of each cut: held-out logits, labels and photographs of the training pictures; logits, labels and photographs of the test pictures."
    file = cache / f'draw_{name}_{seed}.npz'
    if not file.is_file():
        f, _, y, classes, g = load(name, data, cache)
        out = {}
        for i, (a, b) in enumerate(cuts(name, y, g, seed)):
            z = fit_head(f[a], y[a], g[a], classes=len(classes), C=.01).logits(f[b])
            parts = held_out(f[a], y[a], g[a], len(classes), seed), y[a], g[a], z, y[b], g[b]
            out |= {f'{i}_{j}': p for j, p in enumerate(parts)}
        save(file, **out)
    d = np.load(file)
    return [[d[f'{i}_{j}'] for j in range(6)] for i in range(len(d) // 6)]


def threshold(held, labels, target=.9):
    "One threshold for all classes: the smallest probability above which so many held-out answers were right, by a bound of 95 %."
    from scipy.stats import beta
    p = softmax(held)
    order = np.argsort(-p.max(1))
    n, right = np.arange(1, len(p) + 1), np.cumsum((p.argmax(1) == labels)[order])
    ok = np.where(right > 0, beta.ppf(.05, np.maximum(right, 1e-9), n - right + 1), 0) >= target
    return p.max(1)[order][ok][-1] if ok.any() else np.inf


def rules(held, y, g, z, k):
    "For each rule: bool [N, K] classes not excluded, and the class answered alone, -1 for none."
    names, out, t = [str(i) for i in range(k)], {}, None
    for r in RISKS:
        t = fit_trust(z[:0], None, y[:0], names, held_out=(held, y, g), risk=r, risks=())
        ds = t.decide(z)
        keep = np.array([[c not in d.excluded for c in names] for d in ds])
        out[f'sets, risk {r:g}'] = keep, np.array([-1 if d.label is None else int(d.label) for d in ds]), np.array([d.kind for d in ds])
    for rule, at, scale in (('one threshold, 90 %', threshold(held / t.temperature, y), t.temperature), ('softmax over 90 %', .9, 1.)):
        p = softmax(z, scale)
        said = np.where(p.max(1) >= at, p.argmax(1), -1)
        keep = (said[:, None] < 0) | (said[:, None] == np.arange(k))
        out[rule] = keep, said, np.where(said < 0, 'nothing', 'one')
    return out


def measure(name, data, cache, seeds):
    "For each rule one row a tested picture: photograph, true class, kept, answered alone, right, several, classes left."
    classes, rows = load(name, data, cache)[3], {}
    for seed in seeds:
        for held, y, g, z, ty, tg in draws(name, data, cache, seed):
            for rule, (keep, said, kind) in rules(held, y, g, z, len(classes)).items():
                row = tg, ty, keep[np.arange(len(ty)), ty], said >= 0, said == ty, kind == 'several', keep.sum(1)
                rows.setdefault(rule, []).append(np.stack(row, 1).astype(float))
    return {r: np.concatenate(v) for r, v in rows.items()}, classes


def by_photograph(rows):
    "Means over the copies and repetitions of each photograph and class."
    keys, i = np.unique(rows[:, :2], axis=0, return_inverse=True)
    n = np.bincount(i.ravel())
    return np.concatenate([keys, np.stack([np.bincount(i.ravel(), c) / n for c in rows[:, 2:].T], 1)], 1)


def span(part, n):
    low, high = interval(part * n, n)
    return f'{100 * part:.1f} ({100 * low:.0f} to {100 * high:.0f})'


def table(rows, classes):
    "Markdown: percent of photographs, in brackets the 95 % interval over photographs."
    first = by_photograph(next(iter(rows.values())))
    n = [int((first[:, 1] == k).sum()) for k in range(len(classes))]
    head = ['rule', *(f'{c} ({m}): kept' for c, m in zip(classes, n)), 'one class', 'right of these', 'several', 'classes left']
    out = ['| ' + ' | '.join(head) + ' |', '|' + '---|' * len(head)]
    for rule, r in rows.items():
        p = by_photograph(r)
        kept = [span(p[p[:, 1] == k, 2].mean(), m) for k, m in enumerate(n)]
        one, right, several, size = p[:, 3:].mean(0)
        cells = [rule, *kept, f'{100 * one:.1f}', span(right / one, one * len(p)) if one else '-', f'{100 * several:.1f}', f'{size:.2f}']
        out.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(out)


def strangers(name, data, cache):
    "Kind of thing -> features and stats of pictures that show no class of this set."
    size, file, rng = 96 if name == 'cifar' else 224, cache / f'strange_{name}.npz', np.random.default_rng(0)
    if not file.is_file():
        own = [p for p, c in files_of('cifar10' if name == 'cifar' else name, data, cache) if name != 'cifar' or c in KNOWN][::7][:30]
        blur = [(im := open_image(p)).filter(ImageFilter.GaussianBlur(.06 * max(im.size))) for p in own]
        made = dict(
            blank=[np.full((96, 96, 3), v, np.uint8) + rng.integers(0, 3, (96, 96, 3), dtype=np.uint8) for v in range(0, 250, 10)],
            noise=[rng.integers(0, 256, (96, 96, 3), dtype=np.uint8) for _ in range(25)],
            blurred=blur,
            leaves=[p for p, _ in files_of('cifar100', data, cache)],
        )
        if name == 'cifar': made['four other classes'] = [p for p, c in files_of('cifar10', data, cache) if c not in KNOWN][:400]
        else: made['CIFAR-10'] = [p for p, _ in files_of('cifar10', data, cache)[:50]]
        if name != 'hymenoptera' and name != 'cifar': made['ants and bees'] = [p for p, _ in files_of('hymenoptera', data, cache)[::8]]
        out = {k: features(v, size) for k, v in made.items()}
        save(file, **{f'{k}|{j}': v[j] for k, v in out.items() for j in (0, 1)})
    d = np.load(file)
    return {k[:-2]: (d[k], d[k[:-1] + '1']) for k in d if k.endswith('|0')}


def strange(name, data, cache, seeds):
    "Markdown: how many of what is strange is turned away as unlike, and how many get one class all the same."
    f, s, y, classes, g = load(name, data, cache)
    rows = {}
    for seed in seeds:
        for a, b in cuts(name, y, g, seed)[:1]:
            held = held_out(f[a], y[a], g[a], len(classes), seed)
            head = fit_head(f[a], y[a], g[a], classes=len(classes), C=.01)
            _, valid = next(StratifiedShuffleSplit(1, test_size=.2, random_state=seed).split(a, y[a]))
            train = np.setdiff1d(np.arange(len(a)), valid)
            t = fit_trust(
                head.logits(f[a][valid]), f[a][valid], y[a][valid], classes, f[a][train], y[a][train], s[a][valid], s[a][train],
                held_out=(held, y[a], g[a]), risks=(),
            )
            for kind, (sf, ss) in dict(strangers(name, data, cache), **{'its own, tested': (f[b], s[b])}).items():
                ds = t.decide(head.logits(sf), sf, ss)
                rows.setdefault(kind, []).append([np.mean([d.kind == o for d in ds]) for o in ('unlike', 'nothing', 'several', 'one')])
    out = ['| pictures | unlike | nothing can be told | several | one class |', '|---|---|---|---|---|']
    return '\n'.join(out + [f'| {k} | ' + ' | '.join(f'{100 * v:.0f}' for v in np.mean(r, 0)) + ' |' for k, r in rows.items()])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--cache', required=True, type=Path, help='folder for features and logits')
    p.add_argument('--sets', nargs='+', choices=TITLES, default=list(TITLES), metavar='SET', help=f'of {", ".join(TITLES)}')
    p.add_argument('--seeds', nargs='+', type=int, default=list(range(10)), help='one repetition each')
    p.add_argument('--strange', action='store_true', help='what is turned away as unlike')
    a = p.parse_args()
    if 'SILKWORM_DATA' not in os.environ: p.error('the variable SILKWORM_DATA must name the folder with the archives of pictures')
    a.cache.mkdir(parents=True, exist_ok=True)
    data = Path(os.environ['SILKWORM_DATA'])
    for name in (n for n in a.sets if not (a.strange and n == 'rare')):
        body = strange(name, data, a.cache, a.seeds) if a.strange else table(*measure(name, data, a.cache, a.seeds))
        print(f'### {TITLES[name]}\n\n{body}\n', flush=True)


if __name__ == '__main__': main()
