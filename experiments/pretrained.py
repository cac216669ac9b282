"""Pretrained nets on few photographs: every photograph answered by a net that has not seen it, for several recipes and seeds.

    python experiments/pretrained.py DATA --arms linear head last --seeds 0 1 2 3 4 --out results.jsonl
    python experiments/pretrained.py --table results.jsonl

DATA is a folder of class folders (cut into --parts over photographs) or holds train and valid (tested on valid). One line a training goes
to --out, and what is there is not trained again; --table prints the means over seeds.
"""
import argparse
import contextlib
import io
import json
import time
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
from fastai.torch_core import get_model, set_seed
from fastai.vision.learner import vision_learner

from silkworm_app.act.weights import find_weights
from silkworm_app.data.splits import Splits, cut, find_splits
from silkworm_app.data.loaders import image_dls, test_loader
from silkworm_app.train.callback import SaveBest
from silkworm_app.train.learner import lslu_learner
from silkworm_app.train.head import Features
from silkworm_app.train.head import predict_logits
from silkworm_app.train.recipe import fit_recipe, stages

NET, TOP = 'tf_efficientnet_lite0', r'^(blocks\.6\.|bn2\.)'


def norms(model):
    "Weights and biases of the last stage's norms, the convolutions' biases, and the classifier (as in BitFit)"
    *_, last, head = stages(model)
    return [p for p in last if p.ndim == 1] + head


ARMS = {  # size of the pictures, arguments of lslu_learner, arguments of fit_recipe
    'linear': (224, dict(act='relu'), dict(epochs=0, C=.01)),  # the linear model on the same features, its strength fixed
    'head': (288, dict(act='relu'), dict(epochs=0)),
    'head224': (224, dict(act='relu'), dict(epochs=0)),
    'head lslu': (288, dict(), dict(epochs=0)),
    'last': (288, dict(act='relu'), dict(scope='last')),
    'last lslu': (288, dict(), dict(scope='last')),
    'last all-lslu': (288, dict(where='all'), dict(scope='last')),
    'top lslu': (288, dict(where=TOP), dict(scope='last')),          # LSLUs in the last stage, which is trained
    'top adapters': (288, dict(where=TOP), dict(scope='adapters')),  # they and the head only
    'top norms': (288, dict(act='relu'), dict(scope=norms)),       # norms' weights and biases of the last stage, and the head
    'adapters stem': (288, dict(), dict(scope='adapters')),
    'adapters all-lslu': (288, dict(where='all'), dict(scope='adapters')),
    'all': (288, dict(act='relu'), dict(scope='all')),
    'all lslu': (288, dict(), dict(scope='all')),
    'all all-lslu': (288, dict(where='all'), dict(scope='all')),
}


def trained(arm, dls, seed, features, path):
    "`(learner, what was done)` of one arm"
    if arm == 'fastai':  # its own head, its own fine_tune, the same weights
        learn = vision_learner(dls, NET, pretrained=False, normalize=False, path=path)
        weights = find_weights(NET)
        dls.normalise(weights.mean, weights.std)
        missing = learn.model[0].model.load_state_dict(weights.state, strict=False)
        assert not missing.missing_keys
        learn.freeze()
        learn.fine_tune(6)
        return learn, 'vision_learner, fine_tune(6)'
    if arm == 'vanillanet':
        learn = lslu_learner(dls, 'vanillanet_5_x0_125', act_num=3, path=path, cbs=SaveBest())
        learn.fit_one_cycle(max(8, min(120, round(24000/len(dls.train_ds)))), 4e-3)
        return learn, 'from nothing'
    _, net, how = ARMS[arm]
    learn = lslu_learner(dls, NET, pretrained=True, path=path, **net)
    res = fit_recipe(learn, refit=True, seed=seed, features=features, **how)
    return learn, str(res)


def parts_of(splits, k, seed):
    "`[(part, rest, test)]`: lists of `(picture, class)`"
    if splits.test: return [(0, splits.train + splits.valid, splits.test)]
    items = splits.train + splits.valid
    part = cut([c for _, c in items], [splits.groups[p] for p, _ in items], k, seed)
    return [(i, [o for o, j in zip(items, part) if j != i], [o for o, j in zip(items, part) if j == i]) for i in range(k)]


def one(splits, arm, seed, i, rest, test, features, tmp):
    "A line of results"
    start = time.time()
    of = cut([c for _, c in rest], [splits.groups[p] for p, _ in rest], 5, seed)
    train, valid = [o for o, j in zip(rest, of) if j], [o for o, j in zip(rest, of) if not j]
    size = ARMS[arm][0] if arm in ARMS else dict(fastai=224, vanillanet=96)[arm]
    set_seed(seed)
    part = Splits(train, valid, test, splits.classes, splits.groups, path=splits.path)
    dls = image_dls(part, size, 32, fast=True, cache=f'{tmp}/pixels', aug='silkworm', seed=seed)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        learn, how = trained(arm, dls, seed, features, tmp)
    z, y = predict_logits(get_model(learn.model), test_loader(dls))
    photo = [int(splits.groups[p]) for p, _ in test]
    return dict(data=splits.path.name, arm=arm, seed=seed, part=i, photo=photo, target=y.tolist(), probs=z.softmax(1).numpy().round(5).tolist(),
                how=how, seconds=round(time.time() - start, 1))


def photo_scores(rows):
    "Right and balanced, in percent of photographs, of all parts of one seed"
    photo, y, p = (np.concatenate([np.asarray(r[k]) for r in rows]) for k in ('photo', 'target', 'probs'))
    numbers = np.unique(photo)
    pick = np.array([p[photo == g].mean(0).argmax() for g in numbers])
    true = np.array([y[photo == g][0] for g in numbers])
    right = pick == true
    return 100*right.mean(), 100*np.mean([right[true == c].mean() for c in np.unique(true)])


def table(files):
    "Markdown: mean and standard deviation over seeds"
    by = defaultdict(lambda: defaultdict(list))
    for file in files:
        for line in Path(file).read_text().splitlines():
            r = json.loads(line)
            by[r['data'], r['arm']][r['seed']].append(r)
    print('| data | arm | right | balanced | seeds |\n|---|---|---|---|---|')
    for (data, arm), seeds in sorted(by.items()):
        full = max(len(o) for o in seeds.values())
        s = np.array([photo_scores(o) for o in seeds.values() if len(o) == full])
        sd = s.std(0, ddof=1) if len(s) > 1 else np.zeros(2)
        print(f'| {data} | {arm} | {s[:, 0].mean():.1f} ± {sd[0]:.1f} | {s[:, 1].mean():.1f} ± {sd[1]:.1f} | {len(s)} |')


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('data', nargs='?')
    p.add_argument('--arms', nargs='+', default=['linear', 'head', 'last'], choices=[*ARMS, 'fastai', 'vanillanet'])
    p.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2, 3, 4])
    p.add_argument('--parts', type=int, default=10)
    p.add_argument('--group', default='copies', help='copies, hash or none')
    p.add_argument('--out', default='pretrained.jsonl')
    p.add_argument('--share', nargs=2, type=int, default=[0, 1], metavar=('I', 'N'), help='of the trainings, do every Nth from the Ith on')
    p.add_argument('--tmp', default='/tmp/pretrained')
    p.add_argument('--table', nargs='+')
    a = p.parse_args()
    if a.table: return table(a.table)
    splits = find_splits(a.data, .2, 0, group=None if a.group == 'none' else a.group, valid_as_test=True)
    pictures = splits.train + splits.valid + splits.test
    if splits.groups is None: splits.groups = {q: i for i, (q, _) in enumerate(pictures)}
    classes = defaultdict(set)
    for q, c in pictures: classes[splits.groups[q]].add(c)
    for k in ('train', 'valid', 'test'): setattr(splits, k, [(q, c) for q, c in getattr(splits, k) if len(classes[splits.groups[q]]) == 1])
    out, features = Path(a.out), defaultdict(Features)
    done = {(r['arm'], r['seed'], r['part']) for r in map(json.loads, out.read_text().splitlines())} if out.exists() else set()
    todo = [(s, m, *o) for s in a.seeds for m in a.arms for o in parts_of(splits, a.parts, s)]
    for s, m, i, rest, test in todo[a.share[0]::a.share[1]]:
        if (m, s, i) in done: continue
        row = one(splits, m, s, i, rest, test, features[ARMS[m][0] if m in ARMS else m], a.tmp)
        with out.open('a') as f: f.write(json.dumps(row) + '\n')
        print(m, s, i, row['seconds'], row['how'][:200], flush=True)


if __name__ == '__main__': main()
