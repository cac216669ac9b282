"""What a training step of a pretrained net costs, by what of it is trained: processor time of one thread, arms in turns.

    python experiments/finetune_speed.py [--batch 32] [--size 160] [--rounds 5]
"""
import argparse
import copy
from contextlib import ExitStack

import numpy as np
import timm
import torch
import torch.nn.functional as F

from silkworm_app.act.fuse import folded_norms
from silkworm_app.act.patch import lslu_model, lslus
from silkworm_app.clock import in_turns
from silkworm_app.train.front import cut_net

p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
p.add_argument('--batch', type=int, default=32)
p.add_argument('--size', type=int, default=160)
p.add_argument('--rounds', type=int, default=5)
args = p.parse_args()
torch.set_num_threads(1)
torch.manual_seed(0)
NET = 'tf_efficientnet_lite0'
plain = timm.create_model(NET, num_classes=5)
stem, top = (lslu_model(NET, num_classes=5, where=o, report=lambda _: None) for o in ('stem', r'^(blocks\.6\.|bn2\.)'))
stack = ExitStack()  # of the folded norms
every, head = (lambda n: True), (lambda n: n.startswith('classifier'))


def with_head(net):
    "Names of the LSLUs' parameters and the classifier's"
    places = tuple(lslus(net))
    return lambda n: head(n) or n.startswith(places)


def arm(model, train, fmt=torch.channels_last, norms=False, folded=True, kept=None):
    """One step of training the parameters whose names `train` takes; `norms`: they take the statistics of the batch;
    `folded`: else, convolutions compute them; `kept`: from maps computed once, which this module gets"""
    m = copy.deepcopy(model).train().to(memory_format=fmt)
    for k in m.modules():
        if isinstance(k, torch.nn.BatchNorm2d): k.train(norms)
    for n, w in m.named_parameters(): w.requires_grad_(train(n))
    if folded and not norms: stack.enter_context(folded_norms(m, args.size))
    opt = torch.optim.SGD([w for w in m.parameters() if w.requires_grad], .01)
    x, y = torch.randn(args.batch, 3, args.size, args.size).contiguous(memory_format=fmt), torch.randint(0, 5, (args.batch,))
    net = m
    if kept:
        got = []
        hook = m.get_submodule(kept).register_forward_pre_hook(lambda _, a: got.extend(a))
        with torch.no_grad(): m(x)
        hook.remove()
        net, x = cut_net(m, kept), got[0]

    def step():
        opt.zero_grad()
        F.cross_entropy(net(x), y).backward()
        opt.step()
    return step


last = (lambda n: n.startswith(('blocks.6', 'conv_head', 'bn2', 'classifier')))
arms = {
    'everything, NCHW': arm(plain, every, torch.contiguous_format, True),
    'everything, channels-last': arm(plain, every, norms=True),
    'everything, channels-last, norms as they are': arm(plain, every, folded=False),
    'the same, computed by the convolutions': arm(plain, every),
    'head and LSLUs (one, in the stem)': arm(stem, with_head(stem)),
    'head and LSLUs (three, in the last stage)': arm(top, with_head(top)),
    'the same, from kept maps': arm(top, with_head(top), kept='blocks.6'),
    'last stage': arm(plain, last),
    'last stage, from kept maps': arm(plain, last, kept='blocks.6'),
    'head': arm(plain, head),
    'head, features kept': arm(plain, head, kept='classifier')}
times = in_turns(arms, args.rounds, 1, budget=float('inf'), clock='cpu')
base = np.array(times['everything, NCHW'])
print(f'| trained ({args.batch} pictures of {args.size} px) | ms a picture, median | times as fast (quartiles) |\n|---|---|---|')
for k, v in times.items():
    low, mid, high = np.quantile(base / np.array(v), [.25, .5, .75])
    print(f'| {k} | {1000 * np.median(v) / args.batch:.1f} | {mid:.2f} ({low:.2f} to {high:.2f}) |')
