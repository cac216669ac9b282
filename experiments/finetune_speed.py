"""What a training step of a pretrained net costs, by what of it is trained: processor time of one thread, arms in turns.

    python experiments/finetune_speed.py [--batch 8] [--size 160] [--rounds 5]
"""
import argparse
import copy
import time

import numpy as np
import timm
import torch
import torch.nn.functional as F

from silkworm_app.act.patch import lslu_model, lslus

p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
p.add_argument('--batch', type=int, default=8)
p.add_argument('--size', type=int, default=160)
p.add_argument('--rounds', type=int, default=5)
args = p.parse_args()
torch.set_num_threads(1)
torch.manual_seed(0)
plain, patched = timm.create_model('tf_efficientnet_lite0', num_classes=5), lslu_model('tf_efficientnet_lite0', num_classes=5)


def arm(model, train, fmt=torch.channels_last, norms=False, kept=False):
    "One step of training the parameters whose names `train` takes; `norms`: they learn, too; `kept`: from features computed once"
    m = copy.deepcopy(model).train().to(memory_format=fmt)
    for k in m.modules():
        if isinstance(k, torch.nn.BatchNorm2d): k.train(norms)
    for n, w in m.named_parameters(): w.requires_grad_(train(n))
    opt = torch.optim.SGD([w for w in m.parameters() if w.requires_grad], .01)
    x, y = torch.randn(args.batch, 3, args.size, args.size).contiguous(memory_format=fmt), torch.randint(0, 5, (args.batch,))
    with torch.no_grad(): features = m.forward_features(x) if kept else None

    def step():
        opt.zero_grad()
        F.cross_entropy(m.forward_head(features) if kept else m(x), y).backward()
        opt.step()
    return step


every, head = (lambda n: True), (lambda n: n.startswith('classifier'))
places = tuple(lslus(patched))
arms = {
    'everything, NCHW': arm(plain, every, torch.contiguous_format, True),
    'everything, channels-last': arm(plain, every, norms=True),
    'everything, channels-last, norms as they are': arm(plain, every),
    'last stage': arm(plain, lambda n: n.startswith(('blocks.6', 'conv_head', 'bn2', 'classifier'))),
    'head and LSLUs': arm(patched, lambda n: head(n) or n.startswith(places)),
    'head': arm(plain, head),
    'head, features kept': arm(plain, head, kept=True)}
times = {k: [] for k in arms}
for r in range(args.rounds + 1):
    for k, step in arms.items():
        start = time.process_time()
        step()
        if r: times[k].append(time.process_time() - start)         # the first warms up
base = np.array(times['everything, NCHW'])
print(f'| trained ({args.batch} pictures of {args.size} px) | ms a picture, median | times as fast (quartiles) |\n|---|---|---|')
for k, v in times.items():
    low, mid, high = np.quantile(base / np.array(v), [.25, .5, .75])
    print(f'| {k} | {1000 * np.median(v) / args.batch:.1f} | {mid:.2f} ({low:.2f} to {high:.2f}) |')
