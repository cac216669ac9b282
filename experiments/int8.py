"""What eight bits cost and gain: the default net, quantised by onnxruntime with its own training photographs, on photographs held out.

    python experiments/int8.py DATA... [--out int8.jsonl]     five parts over photographs; what is there is not made again
    python experiments/int8.py --table int8.jsonl
"""
import argparse
import contextlib
import io
import json
import tempfile
import warnings
from pathlib import Path

import numpy as np
from pretrained import ARMS, NET, loaders, parts_of, photo_of, pictures_of, rows_of

from silkworm_app.clock import in_turns
from silkworm_app.serve.int8 import quantise
from silkworm_app.serve.load import load_bundle
from silkworm_app.serve.onnx import OnnxPredictor
from silkworm_app.train.head import Features
from silkworm_app.train.learner import lslu_learner
from silkworm_app.train.recipe import fit_recipe


def one(splits, rest, test, features, folder):
    "For each net its logits, its answers to the test pictures as lists of classes, and milliseconds of one picture"
    size, net, how = ARMS['head']
    dls = loaders(splits, rest, test, size, 0)
    train = dls.splits.train
    learn = lslu_learner(dls, NET, pretrained=True, path=folder, **net)
    fit_recipe(learn, seed=0, features=features, **how)
    bundle = learn.save_bundle(f'{folder}/bundle', onnx=True)
    p = load_bundle(bundle, 'onnx')
    x = p.preprocess.batch([train[i][0] for i in np.random.default_rng(0).permutation(len(train))[:100]])
    files = {'32 bits': bundle/'model.onnx', '8 bits': quantise(bundle/'model.onnx', x, f'{folder}/int8.onnx')}
    nets, z = {k: OnnxPredictor(f, threads=1) for k, f in files.items()}, p.preprocess.batch([f for f, _ in test])
    seen = {k: n.forward([f for f, _ in test]) for k, n in nets.items()}
    sets = {k: [sorted(d.labels) if d.kind in ('one', 'several') else sorted(p.classes) for d in p.trust.decide(*v)] for k, v in seen.items()}
    times = in_turns({k: (lambda n=n: n.run(z[:1])) for k, n in nets.items()}, 20, clock='cpu')
    return dict(logits={k: v[0].tolist() for k, v in seen.items()}, sets=sets, ms={k: 1000*float(np.median(v)) for k, v in times.items()})


def table(rows):
    "Markdown: one file of each photograph counts"
    print('| data | | right | became wrong, became right | class in the answer | same answer | ms | times as fast |\n|---|---|---|---|---|---|---|---|')
    for data in dict.fromkeys(r['data'] for r in rows):
        mine, found = [r for r in rows if r['data'] == data], {}
        for r in mine:
            first, y = np.unique(r['photo'], return_index=True)[1], np.array(r['y'])
            for k, l in r['logits'].items():
                inside = [r['classes'][c] in s for c, s in zip(y, r['sets'][k])]
                same = [s == t for s, t in zip(r['sets'][k], r['sets']['32 bits'])]
                found.setdefault(k, []).append(np.stack([np.array(l).argmax(1) == y, inside, same])[:, first])
        ms = {k: np.median([r['ms'][k] for r in mine]) for k in found}
        found = {k: np.concatenate(v, 1) for k, v in found.items()}
        whole = found['32 bits'][0]
        for k, (right, inside, same) in found.items():
            print(f'| {data}, {len(right)} photographs | {k} | {right.mean():.1%} | {(whole & ~right).sum()}, {(~whole & right).sum()} | {inside.mean():.1%} | {same.mean():.1%} | '
                  f'{ms[k]:.1f} | {ms["32 bits"]/ms[k]:.2f} |')


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('data', nargs='*')
    p.add_argument('--out', default='int8.jsonl')
    p.add_argument('--table')
    a = p.parse_args()
    if a.table: return table(rows_of(a.table))
    done = {(r['data'], r['part']) for r in rows_of(a.out)}
    for data in a.data:
        splits, features, name = pictures_of(data, 0, 'copies', False), Features(), Path(data).name
        splits.train, splits.valid, splits.test = splits.train + splits.valid + splits.test, [], []
        for i, rest, test in parts_of(splits, 5, 0):
            if (name, i) in done: continue
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter('ignore')
                row = one(splits, rest, test, features, folder)
            row |= dict(data=name, part=i, photo=[int(photo_of(splits, f)) for f, _ in test], y=[splits.classes.index(c) for _, c in test], classes=splits.classes)
            with open(a.out, 'a') as f: f.write(json.dumps(row) + '\n')
            print(name, i, flush=True)


if __name__ == '__main__': main()
