"""Does a pretrained net keep what it knows when its activations become LSLUs?

A relu net is trained on a part of CIFAR-10. Copies of it, unpatched and patched in several ways, are then fine-tuned for one epoch
(fastai's `fine_tune(1)`) on pictures it hasn't seen, all in the same order. Accuracy on test pictures before and after, several seeds:

    python tests/pretrained.py --data FOLDER_WITH_cifar10.zip --out docs/pretrained.md
"""
import argparse
import copy
import io
import os
import statistics
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
from fastai.callback import progress, schedule  # noqa: F401 they add no_bar, fit_one_cycle and fine_tune to Learner
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.torch_core import params, set_seed
from PIL import Image
from torch.utils.data import TensorDataset

from silkworm_app.train.callback import LSLUCallback
from silkworm_app.act.patch import lslu_model, patch_lslu

VARIANTS = {'unpatched': None,
            'stem, identity': dict(where='stem', init='identity', act_num=3),
            'all, identity': dict(where='all', init='identity', act_num=1),
            'stem, reference': dict(where='stem', init='reference', act_num=3)}


def read(path, split, start, stop):
    "Pictures `start` to `stop` of each class as a normalised tensor, and their labels"
    with zipfile.ZipFile(path) as z:
        names = sorted(n for n in z.namelist() if f'/{split}/' in n and not n.endswith('/'))
        classes = sorted({n.split('/')[-2] for n in names})
        xs, ys = [], []
        for y, c in enumerate(classes):
            for n in [n for n in names if n.split('/')[-2] == c][start:stop]:
                xs.append(np.asarray(Image.open(io.BytesIO(z.read(n))).convert('RGB'))); ys.append(y)
    x = torch.from_numpy(np.stack(xs)).permute(0, 3, 1, 2).float()/255
    return TensorDataset((x - .47)/.25, torch.tensor(ys))


def learner(model, train, test, bs=64):
    dls = DataLoaders.from_dsets(train, test, bs=bs, num_workers=0, device='cpu')
    head = lambda m: m.get_classifier()
    split = lambda m: [[p for p in m.parameters() if all(p is not q for q in head(m).parameters())], params(head(m))]
    return Learner(dls, model, loss_func=CrossEntropyLossFlat(), metrics=accuracy, splitter=split, cbs=LSLUCallback(where='none', fname=None))


def score(learn):
    with learn.no_bar(), learn.no_logging(): return learn.validate()[1]*100


def one_seed(seed, sets, arch, size, epochs):
    "Accuracy before and after one epoch of fine-tuning, for each variant"
    first, second, test = sets
    set_seed(seed)
    learn = learner(lslu_model(arch, 10, where='none'), first, test)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 4e-3)
    res = {}
    for name, kw in VARIANTS.items():
        model, plan = copy.deepcopy(learn.model), None
        set_seed(seed)
        if kw: model, plan = patch_lslu(model, input_size=size, calibrate=first[:256][0], **kw)
        tuned = learner(model, second, test)
        before = score(tuned)
        set_seed(seed)
        with tuned.no_bar(), tuned.no_logging(): tuned.fine_tune(1, 1e-3)
        res[name] = before, score(tuned), len(plan.plan.replaced) if plan else 0
        print(seed, name, *(f'{o:.2f}' for o in res[name]), flush=True)
    return res


def report(runs, a, seconds):
    "The result as markdown"
    cell = lambda vs: f'{statistics.mean(vs):.2f} ± {statistics.stdev(vs) if len(vs) > 1 else 0:.2f} ({" / ".join(f"{v:.2f}" for v in vs)})'
    lines = ['# Pretrained nets keep what they know', '',
             f'Made by `python tests/pretrained.py --data FOLDER --n {a.n} --test {a.test} --epochs {a.epochs} --seeds {a.seeds} --out docs/pretrained.md` (cifar10.zip in FOLDER; one of 2 CPU cores, {seconds/60:.0f} minutes, the machine was shared). '
             f'timm\'s {a.arch} with plain relus, trained for {a.epochs} epochs on {a.n:,} CIFAR-10 pictures at 32 x 32; then one epoch of fastai\'s `fine_tune` on {a.n:,} other pictures, for the unpatched net and for patched copies, '
             f'in the same order. `act_num=3` in the stem; `act_num=1` with LSLUs everywhere, since the last maps are small. Test accuracy in % on {a.test:,} test pictures, mean ± standard deviation over {len(runs)} seeds (and each seed).', '',
             '| net | LSLUs | after patching, before training | after one epoch | difference to unpatched, by seed |', '| --- | --- | --- | --- | --- |']
    for k in runs[0]:
        diff = [r[k][1] - r['unpatched'][1] for r in runs]
        lines.append(f'| {k} | {runs[0][k][2]} | {cell([r[k][0] for r in runs])} | {cell([r[k][1] for r in runs])} | {" / ".join(f"{v:+.2f}" for v in diff)} |')
    return '\n'.join(lines) + '\n'


def main(args=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', default=os.environ.get('SILKWORM_DATA'), help='folder that holds cifar10.zip')
    p.add_argument('--out', help='markdown file for the result')
    p.add_argument('--arch', default='test_resnet')
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--n', type=int, default=10000, help='pictures to pretrain on, and as many others to fine-tune on')
    p.add_argument('--test', type=int, default=5000)
    p.add_argument('--epochs', type=int, default=8)
    a = p.parse_args(args)
    path = Path(a.data or '') / 'cifar10.zip'
    if not path.is_file(): print(f'{path} is missing: give --data FOLDER that holds cifar10.zip.', file=sys.stderr); sys.exit(2)
    start, n = time.time(), a.n//10
    sets = read(path, 'train', 0, n), read(path, 'train', n, 2*n), read(path, 'test', 0, a.test//10)
    runs = []
    for seed in range(a.seeds):
        runs.append(one_seed(seed, sets, a.arch, 32, a.epochs))
        text = report(runs, a, time.time() - start)
        if a.out: Path(a.out + '.tmp').write_text(text); os.replace(a.out + '.tmp', a.out)  # after each seed
    print(text)
    return runs


if __name__ == '__main__': main()
