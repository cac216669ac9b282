"""What LSLUs cost in use: one picture of EfficientNet-Lite0, fused, as an ONNX file on one core, by what of its LSLUs was trained.

    python experiments/fused_cost.py [--sizes 224 288] [--rounds 10]

Prints a table: milliseconds of the processor (arms in turns, medians; quartiles in brackets), times what relu6 takes, megabytes.
"""
import argparse

import torch
from pretrained import move

from silkworm_app.act.fuse import fuse
from silkworm_app.act.patch import lslu_model
from silkworm_app.lab.timing import latency, machine

ARMS = {  # arguments of `lslu_model`, and the parameters of an LSLU that training has moved
    'relu6 untouched': (dict(act='relu'), ()),
    'LSLU in the stem, as it starts': ({}, ()),
    '... trained': ({}, ('alphas', 'biases', 'weight', 'bn.weight', 'bn.bias')),
    'LSLUs everywhere, as they start': (dict(where='all'), ()),
    '... alphas and biases trained': (dict(where='all'), ('alphas', 'biases')),
    '... by channel': (dict(where='all', per_channel=True), ('alphas', 'biases')),
    '... and the batch norms': (dict(where='all', per_channel=True), ('alphas', 'biases', 'bn.weight', 'bn.bias')),
    '... and the kernels, one alpha and bias for all channels': (dict(where='all'), ('alphas', 'biases', 'weight', 'bn.weight', 'bn.bias')),
}


def net(size, kwargs, moved):
    "The fused net, its LSLUs moved by a hundredth"
    torch.manual_seed(0)
    model = lslu_model('tf_efficientnet_lite0', 5, pretrained=True, input_size=size, report=lambda o: None, **kwargs).eval()
    move(model, moved)
    return fuse(model, size)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--sizes', nargs='+', type=int, default=[224, 288])
    p.add_argument('--rounds', type=int, default=10)
    a = p.parse_args()
    print(machine())
    for size in a.sizes:
        print(f'\n| {size} px | ms | times relu6 | MB |\n|---|---|---|---|')
        found = latency({k: net(size, *o) for k, o in ARMS.items()}, size, rounds=a.rounds)
        for k, v in found.items():
            print(f'| {k} | {v["ms"]:.1f} ({v["q1"]:.1f} to {v["q3"]:.1f}) | {v["ms"]/found["relu6 untouched"]["ms"]:.2f} | {v["megabytes"]:.1f} |')


if __name__ == '__main__': main()
