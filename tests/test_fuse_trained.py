"Exact fusion of nets that were really trained, on pictures they were not trained on; the naive way fails the same check."
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from silkworm_app.data.loaders import image_dls, test_loader as labelled_test
from silkworm_app.train.callback import act_slope
from silkworm_app.act.fuse import compare, fuse
from silkworm_app.train.learner import lslu_learner
from silkworm_app.act.lslu import LSLU

pytestmark = pytest.mark.trains


def trained(folder, **kw):
    "A learner after a short deep training, with alphas and biases that have moved, and its test pictures."
    dls = image_dls(folder, 32, 32, fast=True, group=None, device='cpu', seed=0)
    learn = lslu_learner(dls, stem_stride=2, decay_epochs=1, seed=0, **kw)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(max(2, 48 // len(dls.train)), 8e-3)
    for m in learn.model.modules():
        if isinstance(m, LSLU): assert (m.alphas - 1).abs().max() > 1e-3 and m.biases.abs().max() > 1e-4
    assert act_slope(learn.model) == 1
    xs = [b[0].as_subclass(torch.Tensor) for b, _ in zip(labelled_test(dls) or dls.valid, range(8))]
    assert sum(map(len, xs)) >= 20
    return learn.model.eval(), xs


class Naive(nn.Module):
    "What the reference's deploy branch computes: one relu, the kernel times the alphas, no biases."
    def __init__(self, m):
        super().__init__()
        self.m = m
        self.alphas = m.alphas[torch.arange(m.dim) % m.act_num].view(-1, 1, 1, 1)
    def forward(self, x): return self.m.bn(F.conv2d(F.relu(x), self.m.weight * self.alphas, padding=self.m.act_num, groups=self.m.dim))


def check(model, xs):
    with torch.no_grad(): spread = torch.cat([model(x) for x in xs]).std(0).max()
    assert spread > 1e-3                                     # the net tells the pictures apart
    single = compare(model, fuse(model), xs, seconds=0)
    assert single.max_rel_err <= 1e-4 and single.top1_agreement == 1
    model, xs = copy.deepcopy(model).double(), [x.double() for x in xs]
    fused = fuse(model)
    assert not any(isinstance(m, (nn.modules.batchnorm._BatchNorm, LSLU)) for m in fused.modules())
    double = compare(model, fused, xs, seconds=0)
    assert double.max_rel_err <= 1e-10 and double.top1_agreement == 1
    return model, xs


FORMS = pytest.mark.parametrize('kw', [dict(), dict(form='sum', per_channel=True)], ids=['chain', 'sum'])


@FORMS
def test_trained_on_the_sample(sample_dir, kw): check(*trained(sample_dir, **kw))


@FORMS
def test_trained_on_cifar10(cifar10_dir, kw): check(*trained(cifar10_dir, **kw))


def test_trained_on_silkworms_and_the_naive_way_fails(silkworm_dir):
    model, xs = check(*trained(silkworm_dir / 'Train'))
    naive = copy.deepcopy(model)
    for name, m in list(naive.named_modules()):
        if isinstance(m, LSLU): naive.set_submodule(name, Naive(m))
    assert compare(model, naive, xs, seconds=0).max_rel_err > 1e-3
