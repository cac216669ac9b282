"Exactness on a CUDA card: run by hand with pytest -m cuda; without a card the checks that need it say that they are skipped."
import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from silkworm_app.act import fast
from silkworm_app.act.fuse import fuse
from silkworm_app.act.lslu import LSLU
from silkworm_app.act.patch import lslu_model, lslus

CARD = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA card')]
BF16, FP16 = torch.bfloat16, torch.float16


def on_card(test):
    for mark in CARD: test = mark(test)
    return test


def mixed(*cpu):
    "Devices and short types: the card in both, and the CPU in `cpu`, so that a check is known to hold before there is a card."
    return pytest.mark.parametrize('device, dtype', [*[('cpu', o) for o in cpu], *[pytest.param('cuda', o, marks=CARD) for o in (BF16, FP16)]])


@pytest.fixture(autouse=True)
def full_precision():
    "TF32 rounds inputs to ten bits, which is no error of ours."
    kept = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = kept


def shake(model, seed=0):
    "Weights as after training: every parameter and statistic away from where it starts."
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.copy_(torch.randn(m.running_mean.shape, generator=gen)*.2)
                m.running_var.copy_(torch.rand(m.running_var.shape, generator=gen) + .5)
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=gen)*(.1 if p.ndim < 2 else .1/math.sqrt(p[0].numel())))
    return model


def error(a, b):
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return ((a - b).abs().max()/b.abs().max().clamp_min(1e-12)).item()


def step(m, x):
    "Output, gradient of the input, gradients of the parameters, running statistics after one pass in training mode."
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    m.zero_grad()
    y = m(x)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)     # the mean square of normalised values has no gradient
    y.backward(g.to(y))
    return [y, x.grad, *[p.grad for p in m.parameters()], *[b for n, b in m.named_buffers() if 'running' in n]]


FORMS = dict(shared={}, per_channel=dict(per_channel=True), sum=dict(form='sum', per_channel=True), series=dict(form='series'))


@on_card
@pytest.mark.parametrize('kw', FORMS.values(), ids=FORMS)
@pytest.mark.parametrize('last', [False, True], ids=['NCHW', 'channels-last'])
@pytest.mark.parametrize('large', [fast.LARGE_MAP, 0], ids=['step by step', 'as a line'])
def test_a_layer_computes_on_the_card_what_it_computes_on_the_cpu(kw, last, large, monkeypatch):
    monkeypatch.setattr(fast, 'LARGE_MAP', large)
    cpu = shake(LSLU(8, 3, **kw).double())
    gpu = copy.deepcopy(cpu).cuda()
    x = torch.randn(4, 8, 9, 11, dtype=torch.float64)
    if last: x = x.to(memory_format=torch.channels_last)
    for a, b in zip(step(gpu, x.cuda()), step(cpu, x), strict=True): assert error(a, b) < 1e-10


@mixed(BF16, FP16)
def test_mixed_precision_stays_near_float32(device, dtype):
    "A few units of the last place of the shorter type, values and gradients alike."
    tol = .03 if dtype == BF16 else .005
    m = shake(LSLU(16, 3)).to(device)
    x = torch.randn(8, 16, 14, 14).to(device)
    want = step(copy.deepcopy(m), x)
    with torch.autocast(device, dtype): got = step(copy.deepcopy(m), x)
    assert all(torch.isfinite(o).all() for o in got)
    assert error(got[0], want[0]) < tol and error(got[1], want[1]) < 2*tol


@on_card
@pytest.mark.parametrize('arch, where', [('vanillanet_5_x0_125', None), ('test_resnet', 'stem'), ('test_resnet', 'all'), ('test_efficientnet', 'all')])
def test_fused_nets_are_equal_on_the_card(arch, where):
    net = shake(lslu_model(arch, 5, where=where, input_size=64)).double().cuda().eval()
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64, device='cuda')
    fused = fuse(net)
    assert lslus(net) and not lslus(fused)
    assert next(fused.parameters()).is_cuda and error(fused(x), net(x)) < 1e-10
    single = copy.deepcopy(fused).float()
    assert (single(x.float()).argmax(1) == net(x).argmax(1)).all() and error(single(x.float()), net(x)) < 1e-4


@on_card
def test_a_net_takes_the_same_steps_on_the_card():
    torch.manual_seed(0)
    cpu = lslu_model('vanillanet_5_x0_125', 3, act_num=1, dims=(2, 2, 2, 2), stem_stride=2, drop_rate=0.).double()
    gpu = copy.deepcopy(cpu).cuda()
    nets = [(cpu, 'cpu', torch.optim.SGD(cpu.parameters(), lr=.1)), (gpu, 'cuda', torch.optim.SGD(gpu.parameters(), lr=.1))]
    for _ in range(3):
        x, y = torch.randn(8, 3, 16, 16, dtype=torch.float64), torch.randint(0, 3, (8,))
        for m, d, o in nets:
            o.zero_grad()
            F.cross_entropy(m(x.to(d)), y.to(d)).backward()
            o.step()
    for a, b in zip(gpu.state_dict().values(), cpu.state_dict().values(), strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-8, atol=1e-12)                             # a bias in front of a batch norm has no gradient, but rounding


@mixed(BF16)
def test_training_under_autocast_learns_and_stays_finite(device, dtype):
    "Two classes that differ in brightness: any seed learns them."
    torch.manual_seed(0)
    net = lslu_model('vanillanet_5_x0_125', 2, act_num=1, stem_stride=2).to(device).to(memory_format=torch.channels_last)
    opt, scaler = torch.optim.AdamW(net.parameters(), 1e-2), torch.amp.GradScaler(enabled=dtype == FP16)
    for _ in range(60):
        y = torch.arange(32, device=device) % 2
        x = torch.randn(32, 3, 32, 32, device=device)*.3 + (y*2. - 1)[:, None, None, None]
        with torch.autocast(device, dtype): loss = F.cross_entropy(net(x.to(memory_format=torch.channels_last)), y)
        opt.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(opt)
        scaler.update()
    assert torch.isfinite(loss) and loss < .3
    assert all(torch.isfinite(p).all() for p in net.parameters())


@on_card
def test_two_streams_do_not_disturb_each_other():
    m = shake(LSLU(16, 3).double()).cuda()
    xs = [torch.randn(8, 16, 32, 32, dtype=torch.float64, device='cuda') for _ in range(2)]
    alone = [step(copy.deepcopy(m), x) for x in xs]
    torch.cuda.synchronize()
    nets, streams, out = [copy.deepcopy(m) for _ in xs], [torch.cuda.Stream() for _ in xs], [None, None]
    for _ in range(5):
        for i, (net, x, s) in enumerate(zip(nets, xs, streams)):
            net.load_state_dict(m.state_dict())
            s.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(s): out[i] = step(net, x)
        torch.cuda.synchronize()
        for got, want in zip(out, alone):
            for a, b in zip(got, want, strict=True): assert error(a, b) < 1e-12


@on_card
def test_a_timm_net_by_name_runs_half_precision_fused():
    net = shake(lslu_model('test_resnet', 5, where='all', input_size=64)).cuda().eval()
    x = torch.randn(4, 3, 64, 64, device='cuda')
    half = fuse(net).half()
    assert half(x.half()).dtype == torch.float16 and error(half(x.half()), net(x)) < .02


@on_card
def test_erased_alike_on_the_card():
    "What fills the patches is drawn on the CPU, where it is seeded."
    from fastai.torch_core import TensorImage
    from silkworm_app.data.augment import TimmErasing
    x = torch.zeros(8, 3, 16, 16)
    want, got = (TimmErasing(1., 'pixel').encodes(TensorImage(x.clone().to(d))).cpu() for d in ('cpu', 'cuda'))
    assert want.any() and torch.equal(want, got)
