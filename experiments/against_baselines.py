"""silkworm-train next to the same net with plain relus and to a linear model on colour histograms, several seeds, test split read once.

    python experiments/against_baselines.py NAME DATA [--seeds 3] [--out runs/baselines.csv] [--arm NAME=OPTIONS ...] [-- silkworm-train options]

With --arm, these variants of the command are compared instead.

Every run is a process of its own; rows are added to the table as they come, and runs that are in it are not made again. A name in the
table is for one choice of options. Data without a test split is refused.
The split, the pictures and all options are the same for the two nets; the linear model sees the same training pictures.
"""
import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from sklearn.model_selection import GridSearchCV
from silkworm_app.files import replacing
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from silkworm_app.data.imaging import open_image
from silkworm_app.train.config import read_settings
from silkworm_app.train.setup import load_splits

FIELDS = ['data', 'what', 'options', 'seed', 'accuracy', 'balanced_accuracy', 'n_test', 'epochs', 'seconds']
WHAT = {'lslu': ['--act', 'lslu'], 'relu': ['--act', 'relu']}


def histogram(src):
    "Part of the pixels in each of 8 x 8 x 8 colours."
    im = open_image(src)
    im.thumbnail((128, 128))
    a = np.asarray(im).reshape(-1, 3) // 32
    return np.bincount(a[:, 0] * 64 + a[:, 1] * 8 + a[:, 2], minlength=512) / len(a)


def linear(options):
    "Logistic regression, its strength of regularisation chosen by cross-validation inside the training pictures."
    splits = load_splits(read_settings(options))
    part = lambda items: (np.stack([histogram(p) for p, _ in items]), [c for _, c in items])
    (x, y), (xt, yt) = part(splits.train + splits.valid), part(splits.test)
    model = GridSearchCV(make_pipeline(StandardScaler(), LogisticRegression(max_iter=200)), {'logisticregression__C': [1e-4, 1e-3, 1e-2, 1e-1]}, cv=3)
    pred = model.fit(x, y).predict(xt)
    return dict(accuracy=accuracy_score(yt, pred), balanced_accuracy=balanced_accuracy_score(yt, pred), n_test=len(yt), epochs='')


def net(options):
    with tempfile.TemporaryDirectory() as run:
        subprocess.run([sys.executable, '-m', 'silkworm_app.train', *options, '--output_dir', f'{run}/run', '--bundle', 'false', '--save_ckpt', 'false'], check=True)
        m = json.loads(Path(run, 'run/metrics.json').read_text())
    test = m['test']
    return dict(accuracy=test['accuracy'], balanced_accuracy=test['balanced_accuracy'], n_test=test['n'], epochs=m['epochs'])


def main():
    argv, rest = sys.argv[1:], []
    if '--' in argv: argv, rest = argv[:argv.index('--')], argv[argv.index('--') + 1:]
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('name', help='of the data in the table')
    p.add_argument('data', help='folder or zip file, as for silkworm-train --data_path')
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--out', default='runs/baselines.csv')
    p.add_argument('--arm', action='append', metavar='NAME=OPTIONS', help='variant of silkworm-train, for example "clipped=--clip_grad 1"')
    args = p.parse_args(argv)
    arms = {a.partition('=')[0]: a.partition('=')[2].split() for a in args.arm} if args.arm else {**WHAT, 'linear': None}
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    done = list(csv.DictReader(out.open())) if out.is_file() else []
    made = {what: ' '.join(['silkworm-train', *rest, *(more or [])]) for what, more in arms.items()}
    for r in done:
        if r['data'] == args.name and (was := r.get('options')) and was != made.get(r['what'], was):
            p.error(f'{out} holds {args.name} {r["what"]} made with {was}; give the data or the arm another name')
    todo = [(seed, what) for seed in range(args.seeds) for what in arms if (args.name, what, str(seed)) not in {(r['data'], r['what'], r['seed']) for r in done}]
    options = lambda seed, more: ['--data_path', args.data, '--seed', str(seed), *rest, *(more or [])]
    if todo:
        cfg = read_settings(options(0, arms[todo[0][1]]))
        if not load_splits(cfg).test or cfg.cross_validate: p.error(f'{args.data} has no test split of its own, and without one nothing is compared')
    for seed, what in todo:
        t = time.perf_counter()
        row = (linear if arms[what] is None else net)(options(seed, arms[what]))
        done.append({k: str(v) for k, v in dict(data=args.name, what=what, options=made[what], seed=seed, **row, seconds=round(time.perf_counter() - t)).items()})
        with replacing(out) as part, part.open('w', newline='') as f:
            w = csv.DictWriter(f, FIELDS)
            w.writeheader(); w.writerows(done)
    for name in dict.fromkeys(r['data'] for r in done):
        for what in dict.fromkeys(r['what'] for r in done if r['data'] == name):
            rows = [r for r in done if (r['data'], r['what']) == (name, what)]
            if not rows: continue
            cell = lambda k: (lambda v: f'{100*statistics.mean(v):5.1f} ± {100*statistics.stdev(v) if len(v) > 1 else 0:.1f}')([float(r[k]) for r in rows])
            print(f'{name:12} {what:14} {len(rows)} seeds: accuracy {cell("accuracy")} %, balanced {cell("balanced_accuracy")} %, {rows[0]["n_test"]} test pictures')


if __name__ == '__main__': main()
