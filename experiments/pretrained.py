"""What a user would take, side by side, on the same work: every photograph is answered by a net that has not seen it or a copy of it.

    python experiments/pretrained.py DATA... --arms last fastai linear --seeds 0 1 2 3 4 --out peers.jsonl
    python experiments/pretrained.py --table peers.jsonl [--deployed peers_cost.json] [--plot peers.png]

DATA is a folder of class folders, cut into --parts over photographs; or one that holds train and valid, tested on valid; or CIFAR at some
size, as `cifar100.zip:5000`, tested on 2,000 pictures of its test part. One line a training goes to --out, and what is there is not
trained again; a file is for one choice of --parts, --group and --equal. --table prints means and standard deviations over seeds, 95 %
intervals from drawing photographs again (those of balanced figures are too narrow where a class has few), minutes of a processor for all parts of a seed and, from --deployed, size and milliseconds of
one picture of the fused ONNX file on one core; they are measured if that file is not there. --equal gives fastai and the VanillaNets the
minutes of a processor that arm `last` took on the same pictures (it is trained first). --quick does a single part of each, to see that
everything runs.

Of the pictures that are not tested, the heads and fastai learn from all, in the end; a VanillaNet from four fifths, and the rest chooses
its epoch.
"""
import argparse
import contextlib
import io
import json
import time
import warnings
from collections import defaultdict
from copy import deepcopy
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from fastai.callback.training import ShortEpochCallback
from fastai.torch_core import get_model, set_seed
from fastai.vision.learner import vision_learner

from silkworm_app.act.fuse import fuse
from silkworm_app.act.lslu import LSLU
from silkworm_app.act.patch import lslu_model, lslus
from silkworm_app.act.weights import find_weights
from silkworm_app.clock import in_turns
from silkworm_app.data.cifar import cifar_splits
from silkworm_app.data.loaders import image_dls, test_loader
from silkworm_app.data.splits import Splits, cut, find_splits
from silkworm_app.files import replacing
from silkworm_app.lab.timing import latency, machine
from silkworm_app.train.callback import SaveBest
from silkworm_app.train.cross import photo_interval
from silkworm_app.train.head import Features, predict_logits
from silkworm_app.train.learner import lslu_learner
from silkworm_app.train.recipe import fit_recipe, stages

NET, TOP = 'tf_efficientnet_lite0', r'^(blocks\.6\.|bn2\.)'


def norms(model):
    "Weights and biases of the last stage's norms, the convolutions' biases, and the classifier (as in BitFit)"
    *_, last, head = stages(model)
    return [p for p in last if p.ndim == 1] + head


def all_norms(model):
    "The same of all stages"
    *body, head = stages(model)
    return [p for g in body for p in g if p.ndim == 1] + head


def no_kernels(model):
    "LSLUs without their kernels, and the classifier"
    *_, head = stages(model)
    return [p for m in model.modules() if isinstance(m, LSLU) for n, p in m.named_parameters() if n != 'weight'] + head


ARMS = {  # side of the pictures, arguments of lslu_learner, arguments of fit_recipe
    'linear': (224, dict(act='relu'), dict(epochs=0, C=.01)),  # the linear model on the same features, its strength fixed
    'head': (288, dict(act='relu'), dict(epochs=0)),  # the command's default below 2,000 photographs
    'head224': (224, dict(act='relu'), dict(epochs=0)),
    'last': (288, dict(), dict(scope='last')),  # and from there on
    'last relu6': (288, dict(act='relu'), dict(scope='last')),
    'last all-lslu': (288, dict(where='all'), dict(scope='last')),
    'top lslu': (288, dict(where=TOP), dict(scope='last')),  # LSLUs in the last stage, which is trained
    'top adapters': (288, dict(where=TOP), dict(scope='adapters')),  # they and the head only
    'top norms': (288, dict(act='relu'), dict(scope=norms)),
    'adapters stem': (288, dict(), dict(scope='adapters')),
    'adapters all-lslu': (288, dict(where='all'), dict(scope='adapters')),
    'adapters no-kernel': (288, dict(where='all', per_channel=True), dict(scope=no_kernels)),
    'top no-kernel': (288, dict(where=TOP, per_channel=True), dict(scope=no_kernels)),
    'all norms': (288, dict(act='relu'), dict(scope=all_norms)),
    'all': (288, dict(act='relu'), dict(scope='all')),
    'all lslu': (288, dict(), dict(scope='all')),
    'all all-lslu': (288, dict(where='all'), dict(scope='all')),
}
VANILLA = {'vanillanet': {}, 'vanillanet series': dict(act='series'), 'vanillanet relu': dict(act='relu')}
PEERS = ['last', 'head', 'fastai', 'linear', *VANILLA]


def side(arm, small):
    "Of the pictures; pictures of 32 pixels are enlarged to 96 for a net that knows larger ones, and stay as they are for one from nothing"
    if arm in VANILLA: return 32 if small else 96
    return 96 if small else ARMS[arm][0] if arm in ARMS else 224


def from_nothing(arm, size):
    "Arguments of `lslu_model` for a VanillaNet"
    return dict(VANILLA[arm], **({'act_num': 1 if size <= 64 else 3} if VANILLA[arm].get('act') != 'relu' else {}),
                **(dict(stem_stride=2) if size <= 48 else {}))


def passes(learn, minutes, usual):
    "As many as fit into `minutes`, by the time of a few batches that are taken back; `usual` where no minutes are given"
    if not minutes: return usual
    state, n = deepcopy(learn.model.state_dict()), len(learn.dls.train)
    few = min(n, 4)
    step = dict(few=lambda: learn.fit(1, cbs=ShortEpochCallback(few/n)))
    with learn.no_bar(), learn.no_logging(), learn.removed_cbs(learn.cbs.filter(lambda o: isinstance(o, SaveBest))):
        seconds, = in_turns(step, rounds=1, warm=1, clock='cpu')['few']
    learn.model.load_state_dict(state)
    learn.opt = None
    return max(1, round(60*minutes/(seconds*n/few)))


def trained(arm, dls, seed, features, path, size, minutes=0):
    "`(learner, what was done)` of one arm"
    if arm == 'fastai':  # its own head, its own fine_tune, the same weights
        learn = vision_learner(dls, NET, pretrained=False, normalize=False, path=path)
        weights = find_weights(NET)
        dls.normalise(weights.pictures['mean'], weights.pictures['std'])
        missing = learn.model[0].model.load_state_dict(weights.state, strict=False)
        assert not missing.missing_keys
        epochs = passes(learn, minutes, 6)
        learn.freeze()
        learn.fine_tune(epochs)
        return learn, f'vision_learner, fine_tune({epochs})'
    if arm in VANILLA:
        learn = lslu_learner(dls, 'vanillanet_5_x0_125', path=path, cbs=SaveBest(), **from_nothing(arm, size))
        epochs = passes(learn, minutes, max(20 if size <= 48 else 8, min(120, round(24000/len(dls.train_ds)))))
        learn.fit_one_cycle(epochs, 4e-3)
        return learn, f'from nothing, {epochs} epochs'
    _, net, how = ARMS[arm]
    learn = lslu_learner(dls, NET, pretrained=True, path=path, **net)
    return learn, str(fit_recipe(learn, refit=True, seed=seed, features=features, **how))


def photo_of(splits, q):
    "Number of the photograph of a picture: a file, or an array of CIFAR"
    return splits.groups[q if isinstance(q, (str, Path)) else id(q)]


def number_of(splits, q):
    "The same in the results of every seed: of CIFAR, whose pictures each seed draws anew, by what the picture shows"
    return int(photo_of(splits, q)) if isinstance(q, (str, Path)) else crc32(np.ascontiguousarray(q))


def pictures_of(data, seed, group, quick):
    "`Splits` with photographs in `groups`; a photograph that stands under two classes is left out"
    source, _, n = str(data).rpartition(':')
    if source:
        splits = cifar_splits(Path(source).stem, source, int(n), .1, 100 if quick else 2000, seed)
        splits.valid = []  # the training pictures are cut here
    else: splits = find_splits(data, .2, 0, group=group, valid_as_test=True)
    pictures = splits.train + splits.valid + splits.test
    if splits.groups is None: splits.groups = {q if isinstance(q, (str, Path)) else id(q): i for i, (q, _) in enumerate(pictures)}
    classes = defaultdict(set)
    for q, c in pictures: classes[photo_of(splits, q)].add(c)
    for k in ('train', 'valid', 'test'): setattr(splits, k, [(q, c) for q, c in getattr(splits, k) if len(classes[photo_of(splits, q)]) == 1])
    return splits


def parts_of(splits, k, seed):
    "`[(part, rest, test)]`: lists of `(picture, class)`"
    if splits.test: return [(0, splits.train + splits.valid, splits.test)]
    items = splits.train + splits.valid
    part = cut([c for _, c in items], [photo_of(splits, p) for p, _ in items], k, seed)
    return [(i, [o for o, j in zip(items, part) if j != i], [o for o, j in zip(items, part) if j == i]) for i in range(k)]


def loaders(splits, rest, test, size, seed, small=False, whole=False):
    "Of one part: a fifth of what is not tested is for validation; `whole`: and for training, too, where it chooses nothing"
    of = cut([c for _, c in rest], [photo_of(splits, p) for p, _ in rest], 5, seed)
    train, valid = [o for o, j in zip(rest, of) if j], [o for o, j in zip(rest, of) if not j]
    set_seed(seed)
    own = Splits(rest if whole else train, valid, test, splits.classes, None if small else splits.groups, path=splits.path)
    return image_dls(own, size, 128 if small else 32, fast=True, aug='light' if small else 'silkworm', seed=seed)


def one(name, splits, small, arm, seed, i, rest, test, features, tmp, minutes=0):
    "A line of results"
    start = time.process_time()
    size = side(arm, small)
    dls = loaders(splits, rest, test, size, seed, small, whole=arm == 'fastai')
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        learn, how = trained(arm, dls, seed, features, tmp, size, minutes)
        minutes = (time.process_time() - start)/60
        z, y = predict_logits(get_model(learn.model), test_loader(dls))
    photo = [number_of(splits, p) for p, _ in test]
    return dict(data=name, arm=arm, seed=seed, part=i, photo=photo, target=y.tolist(), probs=z.softmax(1).numpy().round(5).tolist(), how=how,
                minutes=round(minutes, 3))


def by_photograph(rows):
    "`(photographs, true classes, right)` of all parts of one seed: the mean answer to the files of each"
    photo, y, p = (np.concatenate([np.asarray(r[k]) for r in rows]) for k in ('photo', 'target', 'probs'))
    number, first, inverse = np.unique(photo, return_index=True, return_inverse=True)
    total = np.zeros((len(number), p.shape[1]))
    np.add.at(total, inverse, p)  # largest where the mean is
    return number, y[first], total.argmax(1) == y[first]


def rows_of(file):
    "What was measured, without lines that were cut off (a full disk, a power cut)"
    rows = []
    for line in Path(file).read_text().splitlines() if Path(file).exists() else ():
        with contextlib.suppress(json.JSONDecodeError): rows.append(json.loads(line))
    return rows


def summary(files):
    "`{(data, arm): dict of figures}`; seeds that lack a part are left out"
    by = defaultdict(lambda: defaultdict(dict))
    for file in files:
        for r in rows_of(file): by[r['data'], r['arm']][r['seed']][r['part']] = r
    res = {}
    for key, seeds in sorted(by.items()):
        full = max(o.get('of', len(rows)) for rows in seeds.values() for o in rows.values())
        whole = [list(o.values()) for o in seeds.values() if len(o) == full]
        records = [dict(zip(('photo', 'target', 'right'), by_photograph(o))) for o in whole]
        right = [100*r['right'].mean() for r in records]
        bal = [100*np.mean([r['right'][r['target'] == c].mean() for c in np.unique(r['target'])]) for r in records]
        inner = lambda rs: [100*v for v in photo_interval(rs)[1:]]
        alike = [dict(r, target=np.zeros_like(r['target'])) for r in records]  # one class: the interval of the share that is right
        res[key] = dict(right=np.mean(right), right_sd=np.std(right, ddof=1) if len(right) > 1 else np.nan, right_in=inner(alike),
                        balanced=np.mean(bal), balanced_sd=np.std(bal, ddof=1) if len(bal) > 1 else np.nan, balanced_in=inner(records),
                        minutes=np.mean([sum(r.get('minutes', r.get('seconds', np.nan)/60) for r in o) for o in whole]), seeds=len(whole), parts=full)
    return res


def move(net, names=('alphas', 'biases', 'weight', 'bn.weight', 'bn.bias')):
    "LSLUs as training leaves them, these parameters by a hundredth: as they start, they would fuse away"
    for p in (m.get_parameter(k) for m in lslus(net).values() for k in names): p.data += .01*torch.randn_like(p)


def deployed(keys, file):
    "Megabytes and milliseconds of the fused nets, measured once, in turns, and kept in `file`"
    if Path(file).is_file(): return json.loads(Path(file).read_text())
    res, sizes = {}, defaultdict(dict)
    for data, arm in keys:
        small = ':' in data
        size, classes = side(arm, small), 5  # the number of classes changes nothing that can be seen
        kind = 'fastai' if arm == 'fastai' else arm if arm in VANILLA else str(ARMS[arm][1])
        if arm in VANILLA: net = lslu_model('vanillanet_5_x0_125', classes, input_size=size, **from_nothing(arm, size))
        elif arm == 'fastai': net = lslu_model(NET, classes, act='relu', input_size=size)
        else:
            net = lslu_model(NET, classes, pretrained=True, input_size=size, report=lambda o: None, **ARMS[arm][1])
            if kind != '{}': move(net)  # where the stem alone holds one, the recipe doesn't train it
        sizes[size].setdefault(kind, [net, []])[1].append(f'{data} {arm}')
    for size, nets in sizes.items():
        for kind, v in latency({k: fuse(net.eval(), size) for k, (net, _) in nets.items()}, size, rounds=10).items():
            res |= {k: dict(ms=v['ms'], megabytes=v['megabytes'], size=size) for k in nets[kind][1]}
    res['machine'] = machine()
    with replacing(file) as part: Path(part).write_text(json.dumps(res, indent=1))
    return res


def table(res, cost):
    "Markdown"
    plus = lambda a, s: f'{a:.1f}' + ('' if np.isnan(s) else f' ± {s:.1f}')
    print('| data | arm | right % | interval | balanced % | interval | seeds | minutes | ms | MB |\n|---|---|---|---|---|---|---|---|---|---|')
    for (data, arm), r in res.items():
        c = cost.get(f'{data} {arm}')
        served = f'{c["ms"]:.1f} | {c["megabytes"]:.1f}' if c else ' | '
        a, b = (f'{lo:.1f} to {hi:.1f}' for lo, hi in (r['right_in'], r['balanced_in']))
        print(f'| {data} | {arm} | {plus(r["right"], r["right_sd"])} | {a} | {plus(r["balanced"], r["balanced_sd"])} | {b} | {r["seeds"]} | '
              f'{r["minutes"]:.1f} | {served} |')


def plot(res, file):
    "Balanced accuracy of each arm with its interval, one panel a set"
    from matplotlib.figure import Figure
    sets = sorted({d for d, _ in res})
    fig = Figure(figsize=(4*len(sets), 3.6), layout='constrained')
    for ax, data in zip(fig.subplots(1, len(sets), squeeze=False)[0], sets):
        mine = [(a, r) for (d, a), r in res.items() if d == data]
        for i, (a, r) in enumerate(mine):
            lo, hi = r['balanced_in']
            ax.errorbar(r['balanced'], i, xerr=[[max(0, r['balanced'] - lo)], [max(0, hi - r['balanced'])]], marker='o', capsize=3)
        ax.set_yticks(range(len(mine)), [a for a, _ in mine])
        ax.set(title=data, xlabel='balanced accuracy (%), 95 % interval over photographs')
        ax.grid(alpha=.3)
    with replacing(file) as part: fig.savefig(part, format='png', dpi=110)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('data', nargs='*')
    p.add_argument('--arms', nargs='+', default=PEERS, choices=[*ARMS, 'fastai', *VANILLA])
    p.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2, 3, 4])
    p.add_argument('--parts', type=int, default=10)
    p.add_argument('--group', default='copies', help='copies, hash or none')
    p.add_argument('--out', default='peers.jsonl')
    p.add_argument('--share', nargs=2, type=int, default=[0, 1], metavar=('I', 'N'), help='of the trainings, do every Nth from the Ith on')
    p.add_argument('--equal', action='store_true', help='the minutes of arm `last` for the other trainings')
    p.add_argument('--quick', action='store_true')
    p.add_argument('--tmp', default='/tmp/pretrained')
    p.add_argument('--table', nargs='+')
    p.add_argument('--deployed')
    p.add_argument('--plot')
    a = p.parse_args()
    if a.table:
        res = summary(a.table)
        if a.plot: plot(res, a.plot)
        return table(res, deployed(res, a.deployed) if a.deployed else {})
    if a.equal and a.share[1] > 1: p.error('--equal needs all parts of arm last in one process: leave out --share')
    out, rows = Path(a.out), rows_of(a.out)
    made = {arm: f'--parts {a.parts} --group {a.group}' + ' --equal'*(a.equal and arm not in ARMS) + ' --quick'*a.quick for arm in a.arms}
    for r in rows:
        was = r.get('made', '')
        if was and r['data'] in {Path(o).name for o in a.data} and was != made.get(r['arm'], was):
            p.error(f'{out} holds {r["data"]} {r["arm"]} made with {was}; name another file with --out')
    done = {(r['data'], r['arm'], r['seed'], r['part']): r['minutes'] for r in rows}
    for data in a.data:
        name, small, splits = Path(data).name, ':' in data, None
        for seed in a.seeds:
            features = defaultdict(Features)  # of an arm, shared by its parts: the minutes of a seed are those of a cross-validation
            if splits is None or small: splits = pictures_of(data, seed, None if a.group == 'none' else a.group, a.quick)
            parts = parts_of(splits, a.parts, seed)[:1 if a.quick else None]
            todo = [(arm, *o) for arm in sorted(a.arms, key='last'.__ne__) for o in parts]
            for arm, i, rest, test in todo[a.share[0]::a.share[1]]:
                if (name, arm, seed, i) in done: continue
                minutes = 0
                if a.equal and arm not in ARMS:
                    try: minutes = sum(done[name, 'last', seed, j] for j, *_ in parts)/len(parts)
                    except KeyError: p.error(f'--equal takes the minutes of arm last, which {out} lacks for {name}, seed {seed}')
                row = one(name, splits, small, arm, seed, i, rest, test, features[arm], a.tmp, minutes)
                row |= dict(made=made[arm], of=len(parts))
                done[name, arm, seed, i] = row['minutes']
                with out.open('a') as f: f.write('\n' + json.dumps(row) + '\n')  # a line of its own behind one that was cut off, too
                print(name, arm, seed, i, row['minutes'], row['how'][:200], flush=True)


if __name__ == '__main__': main()
