"""How many wrong labels the page of doubtful labels finds: some labels of a folder are swapped, and its photographs are cross-validated.

    python data_prep/bench_labels.py FOLDER [--share .05] [--seeds 0 1 2 3 4] [--size 288]

Of FOLDER (class folders, labels taken as right) the given share of photographs gets another label, at random. A linear head on the features of the pretrained EfficientNet-Lite0, as
`silkworm-train --recipe head` fits it, answers each photograph in five parts; those that `label_trouble` lists are compared with those that were swapped.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from fastai.torch_core import get_model
from scipy.special import softmax

from silkworm_app.data.folder import DataError
from silkworm_app.data.loaders import image_dls
from silkworm_app.data.splits import find_splits, stratified
from silkworm_app.train.cross import distinct_pictures
from silkworm_app.train.head import fit_head, picture_features
from silkworm_app.train.learner import lslu_learner
from silkworm_app.train.trouble import label_trouble


def photographs(folder, size):
    "`(features [N, D], labels [N])`: of each photograph one picture."
    splits = find_splits(folder, group='copies')
    one = {}
    for f, c, g in distinct_pictures(splits)[0]: one.setdefault(g, (Path(f), c))
    splits.train, splits.valid, splits.test = sorted(one.values()), sorted(one.values())[:8], []
    dls = image_dls(splits, size, 32, aug='none', num_workers=0)
    model = get_model(lslu_learner(dls, 'tf_efficientnet_lite0', pretrained=True, act='relu').model)
    return picture_features(model, dls.test_dl(list(dls.train_ds.items), with_labels=True, num_workers=0), 'mirror')


def swapped(y, share, seed):
    "Labels of which a share is wrong."
    rng, k, y = np.random.default_rng(seed), y.max() + 1, y.copy()
    at = rng.choice(len(y), round(share * len(y)), replace=False)
    y[at] = (y[at] + rng.integers(1, k, len(at))) % k
    return y


def answers(x, y, seed, parts=5):
    "Probabilities [N, K] of heads that had not seen the photograph."
    p, part = np.zeros((len(y), y.max() + 1)), stratified(y, None, parts, seed)
    for i in range(parts):
        p[part == i] = softmax(fit_head(x[part != i], y[part != i], classes=p.shape[1], seed=seed).logits(x[part == i]), 1)
    return p


def main(folder, share, seeds, size):
    x, true = photographs(folder, size)
    total = np.zeros(3, int)
    for s in seeds:
        y = swapped(true, share, s)
        listed = label_trouble(answers(x, y, s), y) >= 0
        found = np.array([(listed & (y != true)).sum(), listed.sum(), (y != true).sum()])
        total += found
        print(f'seed {s}: {found[0]} of {found[2]} wrong labels among the {found[1]} of {len(y)} photographs listed', flush=True)
    print(f'precision {total[0] / max(1, total[1]):.3f}, recall {total[0] / max(1, total[2]):.3f}')


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('folder', help='class folders')
    p.add_argument('--share', type=float, default=.05, help='part of the labels that is swapped (default: %(default)s)')
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2, 3, 4])
    p.add_argument('--size', type=int, default=288, help='pixels (default: %(default)s)')
    args = p.parse_args()
    try: main(**vars(args))
    except (DataError, OSError, ValueError) as e:
        print(f'bench_labels: {e}', file=sys.stderr)
        sys.exit(2)
