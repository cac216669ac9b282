"""Very few photographs of a class: this library's head, exactly as it is fitted in training, beside standardised logistic regression.

    python experiments/very_few.py hymenoptera silkworm_photos pupae

Of each class N photographs are drawn (of a class that has fewer than N + 2 all but two), all others are answered. Printed are right answers in %, balanced
right answers, and the mean loss of a photograph; means and standard deviations over the seeds.
"""
import argparse
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from silkworm_app.data.loaders import image_dls
from silkworm_app.files import markdown_table
from silkworm_app.train.head import fit_head, in_order, photographs, picture_features
from silkworm_app.train.learner import lslu_learner


def pictures(folder, size):
    "Features, class numbers and photographs of all pictures of a folder"
    learn = lslu_learner(image_dls(folder, size=size, bs=32))
    parts = [picture_features(learn.model, in_order(learn.dls, p, range(len(learn.dls.loaders[p].dataset)))) for p in (0, 1)]
    x, y = (np.concatenate(o) for o in zip(*parts))
    return x, y, np.concatenate([photographs(learn.dls, p) for p in (0, 1)])


def draw(y, photos, n, seed):
    "The pictures of `n` photographs a class"
    order = np.random.default_rng(seed).permutation(np.unique(photos))
    label = {p: y[photos == p][0] for p in order}
    of = [[p for p in order if label[p] == c] for c in np.unique(y)]
    return np.isin(photos, [p for own in of for p in own[:min(n, max(1, len(own) - 2))]])


def head(x, y, photos, seed): return fit_head(x, y, photos, seed=seed).logits


def linear(x, y, photos, seed):
    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(x, y)
    def logits(x):
        z = fitted.decision_function(x)
        return z if z.ndim > 1 else np.stack([-z, z], 1)/2
    return logits


def judged(z, y, photos):
    "Right answers, balanced right answers, loss: a photograph counts once"
    _, of, n = np.unique(photos, return_inverse=True, return_counts=True)
    w, ok = 1/n[of], z.argmax(1) == y
    loss = np.logaddexp.reduce(z, 1) - z[np.arange(len(y)), y]
    return [100*np.average(ok, weights=w), 100*np.mean([np.average(ok[y == c], weights=w[y == c]) for c in np.unique(y)]), np.average(loss, weights=w)]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('data', nargs='+', type=Path, help='folders of class folders')
    p.add_argument('--each', nargs='+', type=int, default=[4, 8, 16], metavar='N', help='photographs of a class (default: 4 8 16)')
    p.add_argument('--seeds', nargs='+', type=int, default=list(range(10)), help='(default: 0 to 9)')
    p.add_argument('--size', type=int, default=224, help='side of the pictures in pixels (default: 224)')
    args, rows = p.parse_args(), []
    for folder in args.data:
        x, y, photos = pictures(folder, args.size)
        for n in args.each:
            for name, fit in (('head', head), ('linear model', linear)):
                out = []
                for seed in args.seeds:
                    a = draw(y, photos, n, seed)
                    out.append(judged(fit(x[a], y[a], photos[a], seed)(x[~a]), y[~a], photos[~a]))
                rows.append([folder.name, n, name, *(f'{m:.{d}f} ± {s:.{d}f}' for m, s, d in zip(np.mean(out, 0), np.std(out, 0, ddof=1), (1, 1, 2)))])
                print(*rows[-1], flush=True)
    print(markdown_table(['set', 'photographs a class', 'classifier', 'right, %', 'balanced', 'loss'], rows))


if __name__ == '__main__': main()
