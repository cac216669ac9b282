"""The Triton kernel is exact, against the PyTorch path: on the card where there is one, else in Triton's interpreter.

Run by test_kernels.py in a process of its own, since Triton reads TRITON_INTERPRET when it is first imported; by hand:
TRITON_INTERPRET=1 python -m pytest tests/kernel_checks.py
"""
import copy

import pytest
import torch
from torch import nn

pytest.importorskip('triton', reason='needs the package triton, which comes with the CUDA builds of PyTorch')
cuda = torch.cuda.is_available()
from silkworm_app.lab import kernels
from silkworm_app.lab.kernels import TritonLSLU, interpreted, to_triton
from silkworm_app.act.lslu import LSLU

device = 'cuda' if cuda else 'cpu'


def pair(dim, n, seed=0, **kw):
    "The same trained-looking LSLU twice, the second on the kernel."
    torch.manual_seed(seed)
    a = LSLU(dim, n, **kw).double()
    with torch.no_grad():
        for p in a.parameters(): p.normal_()
        if a.form == 'chain': a.alphas.add_(1.); a.biases.mul_(.5)
    b = copy.deepcopy(a)
    assert to_triton(b) == 1 and type(b) is TritonLSLU
    return a.to(device), b.to(device)


def run(m, x, g):
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    m.zero_grad()
    y = m(x)
    y.backward(g)
    return [y, x.grad, *[p.grad for p in m.parameters()], m.bn.running_mean, m.bn.running_var]


def error(a, b): return max(((u - v).abs().max() / v.abs().max().clamp_min(1e-6)).item() for u, v in zip(a, b, strict=True))


def test_the_kernel_really_runs(monkeypatch):
    "What is tested below is the kernel, not the path it falls back to."
    assert cuda or interpreted()
    a, b = pair(2, 1)
    called = []
    monkeypatch.setattr(kernels._LineConvNorm, 'apply', staticmethod(lambda *args: called.append(1) or 1 / 0))
    with pytest.raises(ZeroDivisionError): b(torch.randn(2, 2, 4, 4, dtype=torch.float64, device=device))
    assert called


@pytest.mark.parametrize('shape, n', [((2, 3, 5, 5), 3), ((1, 2, 17, 7), 1), ((3, 2, 1, 9), 3), ((1, 2, 20, 66), 1)])
def test_values_and_gradients(shape, n):
    "Tiles with tails in both directions, pictures smaller than the kernel."
    a, b = pair(shape[1], n)
    x, g = (torch.randn(shape, dtype=torch.float64, device=device) for _ in range(2))
    assert error(run(b, x, g), run(a, x, g)) < 1e-9


@pytest.mark.parametrize('seed', range(2))
@pytest.mark.parametrize('kw', [{}, dict(per_channel=True), dict(form='series')], ids=['shared', 'per channel', 'series'])
def test_any_parameters(seed, kw):
    "Falling lines, constants and upper bounds come up when alphas and biases are drawn at random."
    a, b = pair(4, 2, seed, **kw)
    if a.form == 'chain' and seed % 2:
        with torch.no_grad():
            for m in (a, b): m.alphas[0].neg_(); m.biases[0].fill_(.7)
    x, g = (torch.randn(2, 4, 6, 6, dtype=torch.float64, device=device) for _ in range(2))
    assert error(run(b, x, g), run(a, x, g)) < 1e-9


def test_statistics_keep_their_digits():
    "A large offset under float32: the variance of numbers around 1000 is not lost."
    a, b = pair(2, 1, form='series')
    with torch.no_grad():
        for m in (a, b): m.float(); m.weight.zero_(); m.weight[:, 0, 1, 1] = 1; m.bn.momentum = 1.
    x = torch.randn(4, 2, 12, 12, device=device) * .1 + 1000
    b(x)
    assert (b.bn.running_var / x.var((0, 2, 3)) - 1).abs().max() < 1e-3


def test_other_layout_dtype_and_autocast():
    a, b = pair(4, 2)
    a.float(), b.float()
    x, g = (torch.randn(2, 4, 8, 8, device=device) for _ in range(2))
    last = x.contiguous(memory_format=torch.channels_last)
    assert error(run(b, last, g), run(a, x, g)) < 1e-4
    with torch.autocast(device, torch.bfloat16): y = b(x.bfloat16())
    assert y.dtype == torch.bfloat16 and ((y.float() - a(x)).abs().max() / a(x).abs().max()) < .05


def test_cumulative_average():
    a, b = pair(3, 1)
    for m in (a, b): m.bn.momentum = None
    for i in range(3):
        x = torch.randn(2, 3, 5, 5, dtype=torch.float64, device=device)
        a(x), b(x)
    assert error([b.bn.running_mean, b.bn.running_var], [a.bn.running_mean, a.bn.running_var]) < 1e-12 and b.bn.num_batches_tracked == 3


def test_the_rest_of_the_net_stays():
    "State dict, evaluation, fusing; the sum form and plain activations are left alone; the way back."
    a, b = pair(3, 2)
    x = torch.randn(2, 3, 7, 7, dtype=torch.float64, device=device)
    a.eval(), b.eval()
    assert list(a.state_dict()) == list(b.state_dict()) and torch.equal(a(x), b(x)) and torch.equal(a.fuse()(x), b.fuse()(x))
    net = nn.Sequential(LSLU(3), nn.ReLU(), LSLU(3, form='sum'))
    assert to_triton(net) == 1 and type(net[2]) is LSLU
    assert to_triton(net, on=False) == 1 and type(net[0]) is LSLU


def test_training_of_a_net_takes_the_same_steps():
    import timm, silkworm_app.act.vanillanet
    torch.manual_seed(0)
    a = timm.create_model('vanillanet_5_x0_125', num_classes=3, drop_rate=0., dims=(2, 2, 2, 2), stem_stride=2, act_num=1).double().to(device)
    b = copy.deepcopy(a)
    assert to_triton(b) == 4
    opts = [torch.optim.SGD(m.parameters(), lr=.1) for m in (a, b)]
    for _ in range(2):
        x = torch.randn(4, 3, 16, 16, dtype=torch.float64, device=device)
        for m, o in zip((a, b), opts):
            o.zero_grad(); nn.functional.cross_entropy(m(x), torch.tensor([0, 1, 2, 0], device=device)).backward(); o.step()
    assert error(list(b.parameters()), list(a.parameters())) < 1e-6


def test_without_triton_it_says_so(monkeypatch):
    monkeypatch.setattr(kernels, 'triton', None)
    with pytest.raises(ValueError, match='triton is not installed'): to_triton(LSLU(3))
