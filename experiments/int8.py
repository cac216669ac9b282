"""What eight bits cost and gain: a bundle's ONNX file, quantised by onnxruntime with training photographs, on photographs held out.

    python experiments/int8.py BUNDLE TRAIN TEST          (folders with one folder a class; writes nothing that is kept)
"""
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from silkworm_app.serve.load import load_bundle

if len(sys.argv) != 4: sys.exit(__doc__)
bundle, train, test = map(Path, sys.argv[1:])
p = load_bundle(bundle, 'onnx')
pictures = lambda folder: [(f, p.classes.index(f.parent.name)) for f in sorted(folder.glob('*/*')) if f.parent.name in p.classes]
some, held = pictures(train), pictures(test)
x = p.preprocess.batch([some[i][0] for i in np.random.default_rng(0).permutation(len(some))[:100]])
z, y = p.preprocess.batch([f for f, _ in held]), np.array([c for _, c in held])


class Reader(CalibrationDataReader):
    def __init__(self): self.left = iter(x)
    def get_next(self): return next(({'image': o[None]} for o in self.left), None)


def session(file):
    opts = ort.SessionOptions()
    opts.intra_op_num_threads, opts.log_severity_level = 1, 4
    return ort.InferenceSession(file, opts, providers=['CPUExecutionProvider'])


with tempfile.TemporaryDirectory() as d:
    quant_pre_process(bundle / 'model.onnx', f'{d}/pre.onnx', skip_symbolic_shape=True)
    nets = {'32 bits': session(bundle / 'model.onnx')}
    for name, kw in {'8 bits': {}, '8 bits, weights of 7': dict(reduce_range=True)}.items():
        quantize_static(f'{d}/pre.onnx', f'{d}/{name}.onnx', Reader(), per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, **kw)
        nets[name] = session(f'{d}/{name}.onnx')
logits = {k: np.concatenate([s.run(['logits'], {'image': o[None]})[0] for o in z]) for k, s in nets.items()}
times = {k: [] for k in nets}
for i in range(60):
    for k, s in nets.items():
        start = time.process_time()
        s.run(['logits'], {'image': z[i % len(z)][None]})
        times[k].append(time.process_time() - start)
sets = {k: [d.labels if d.kind in ('one', 'several') else p.classes for d in p.trust.decide(l)] for k, l in logits.items()}  # the promise was measured in 32 bits
held_in = {k: np.mean([p.classes[c] in s for s, c in zip(v, y)]) for k, v in sets.items()}
print(f'| {len(z)} photographs held out | right | same class | largest change of a logit | class in the answer | one class | same answer | ms, median | times as fast (quartiles) |\n|---|---|---|---|---|---|---|---|---|')
for k, l in logits.items():
    one, same = np.mean([len(s) == 1 for s in sets[k]]), np.mean([set(a) == set(b) for a, b in zip(sets[k], sets['32 bits'])])
    faster = np.quantile(np.array(times['32 bits'][5:]) / np.array(times[k][5:]), [.25, .5, .75])
    print(f'| {k} | {(l.argmax(1) == y).mean():.2%} | {(l.argmax(1) == logits["32 bits"].argmax(1)).mean():.2%} | {np.abs(l - logits["32 bits"]).max():.2f} | '
          f'{held_in[k]:.2%} | {one:.2%} | {same:.2%} | {1000 * np.median(times[k][5:]):.1f} | {faster[1]:.2f} ({faster[0]:.2f} to {faster[2]:.2f}) |')
