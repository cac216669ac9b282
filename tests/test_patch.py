"LSLU in timm nets: every step from patching to export, on a sample of families; what must stay true of plans, starts and checkpoints."
import argparse
import copy
import json

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.utils import freeze
from torch import nn
from torch.overrides import TorchFunctionMode

from silkworm_app.act import vanillanet
from silkworm_app.lab import coverage as coverage_module
from silkworm_app.lab.coverage import check_family, coverage, main as coverage_main, randomise
from silkworm_app.act.fuse import FuseError, compare, fuse, fuse_like
from silkworm_app.act.lslu import LSLU
from silkworm_app.act.plan import LSLUPlan, plan_lslu
from silkworm_app.act.patch import apply_plan, lslu_model, lslus, patch_lslu, rebuild_model
from silkworm_app.act.weights import pretrained_cfg
from silkworm_app.act.curves import describe_acts, layer_curves
from silkworm_app.files import write_table
from silkworm_app.act.start import load_reference, start_from
from silkworm_app.act.trace import deviation, tensors


@pytest.mark.parametrize('arch,size', [('test_resnet', 64), ('test_efficientnet', 64), ('test_byobnet', 64), ('test_nfnet', 96), ('test_mambaout', 96), ('mobilenetv3_small_050', 64),
                                       ('hgnetv2_b0', 64)])
def test_family_passes_every_step(arch, size):
    row = check_family(arch, act_num=1, size=size)
    assert row['outcome'] == 'ok', row
    assert row['fuse_error'] < 1e-10 and row['lslus'] > 0


@pytest.mark.parametrize('kw', [dict(per_channel=True), dict(form='sum'), dict(form='sum', per_channel=True)])
@pytest.mark.parametrize('arch', ['test_efficientnet', 'test_mambaout'])
def test_every_form_passes_every_step(arch, kw):
    row = check_family(arch, act_num=2, size=96, export=False, **kw)
    assert row['outcome'] == 'ok', row


@pytest.mark.parametrize('arch,n', [('resnet18', 17), ('resnet34', 33), ('resnet50', 49), ('resnet101', 100)])
def test_resnet_lslu_of_the_paper(arch, n):
    with torch.device('meta'): net = timm.create_model(arch)
    plan = plan_lslu(net, where=None, input_size=224)
    assert [p.name for p in plan.replaced] == ['act1'] and plan.where == 'stem' and len(plan.places) == n
    assert (plan.replaced[0].channels, plan.replaced[0].shape) == (64, [64, 112, 112])
    assert [p.name for p in plan_lslu(net, where=None, input_size=48).replaced] == ['act1']  # the advice is about the net, not about the pictures


def test_efficientnetv2_takes_the_stem_by_default_and_anything_on_request():
    with torch.device('meta'): net = timm.create_model('tf_efficientnetv2_b0')
    assert [p.name for p in plan_lslu(net, where=None).replaced] == ['bn1.act']
    some = plan_lslu(net, where=r'^blocks\.[01]\.', act_num={'blocks.0': 5, '*': 2})
    assert {p.act_num for p in some.replaced if p.name.startswith('blocks.0')} == {5} and all(p.name.startswith(('blocks.0.', 'blocks.1.')) for p in some.replaced)
    assert {p.name for p in plan_lslu(net, where='all').replaced} == {p.name for w in ('stem', 'stages') for p in plan_lslu(net, where=w).replaced}


@pytest.mark.parametrize('arch,size', [('resnet18', 64), pytest.param('resnet50', 64, marks=pytest.mark.slow), ('mobilenetv2_035', 96), ('regnetx_002', 96), pytest.param('densenet121', 64, marks=pytest.mark.slow), ('repvgg_a0', 64)])
def test_identity_start_computes_what_the_net_computed(arch, size):
    torch.manual_seed(0)
    net = timm.create_model(arch, num_classes=7).double()
    x = torch.randn(4, 3, size, size, dtype=torch.float64)
    randomise(net, x)
    with torch.no_grad(): y = net(x)
    stats = {k: v.clone() for k, v in net.state_dict().items()}
    net, report = patch_lslu(net, where='all', act_num=2, init='identity', input_size=size)
    with torch.no_grad(): moved = (net(x) - y).abs().max()/y.abs().max()
    assert moved < 1e-9 and report.deviation < 1e-9 and len(report.plan.replaced) > 5
    assert all(torch.equal(net.state_dict()[k], v) for k, v in stats.items())  # weights and statistics of the net untouched
    grads = torch.autograd.grad(net.train()(x).square().mean(), [p for m in lslus(net).values() for p in m.parameters()])
    assert all(g.isfinite().all() for g in grads)


def test_identity_start_is_kept_by_fusing():
    net = timm.create_model('test_resnet').double()
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    randomise(net, x)
    with torch.no_grad(): y = net(x)
    patch_lslu(net, init='identity', input_size=64)
    with torch.no_grad(): assert (fuse(net)(x) - y).abs().max()/y.abs().max() < 1e-9


@pytest.mark.parametrize('arch,kw', [('test_resnet', dict(stem_stride=2)), ('test_resnet', dict(foo=1)), ('vanillanet_5_x0_125', dict(foo=1))])
def test_arguments_that_no_net_takes_are_named(arch, kw):
    (k, v), = kw.items()
    with pytest.raises(ValueError) as e: lslu_model(arch, 3, **kw)
    assert f'{arch} cannot be built with {k}={v}' in str(e.value) and 'change or leave out' in str(e.value) and '\n' not in str(e.value)


class Shared(nn.Module):
    "One activation at two places, under two names"
    def __init__(self):
        super().__init__()
        self.c1, self.b1, self.c2, self.b2, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 2)
        self.act = self.same = nn.ReLU(inplace=True)
    def forward(self, x):
        x = self.act(self.b1(self.c1(x)))
        return self.fc(self.same(self.b2(self.c2(x))).mean((2, 3)))


def test_a_shared_activation_stays_shared_and_fuses():
    torch.manual_seed(0)
    net = Shared().double()
    x = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    patch_lslu(net, input_size=12)
    assert net.act is net.same and isinstance(net.act, LSLU)
    net.train()(x).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in net.act.parameters())
    randomise(net, x)
    fused = fuse(net)
    with torch.no_grad(): y = net(x); assert (fused(x) - y).abs().max()/y.abs().max() < 1e-10
    assert not lslus(fused) and describe_acts(fused)['text'] == '2 fused LSLUs, act_num 3: act, same'  # under both of its names


def test_where_takes_every_name_of_an_activation():
    assert [p.name for p in plan_lslu(Shared(), ['same'], input_size=12).replaced] == ['act']


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_type_and_mode_are_kept(dtype):
    net = timm.create_model('test_efficientnet').to(dtype).eval()
    net.blocks[0].train()
    net, _ = patch_lslu(net, input_size=64)
    assert {p.dtype for p in net.parameters()} == {dtype}
    assert net.blocks[0][0].bn1.act.training and not net.bn1.act.training
    assert net(torch.randn(1, 3, 64, 64, dtype=dtype)).isfinite().all()


def test_a_failed_patch_changes_nothing():
    net = timm.create_model('test_resnet')
    names = [(n, type(m)) for n, m in net.named_modules()]
    for kw in [dict(where='nowhere'), dict(act_num=99), dict(input_size=1), dict(init='no')]:
        with pytest.raises(ValueError): patch_lslu(net, **{'input_size': 64, **kw})
    assert names == [(n, type(m)) for n, m in net.named_modules()] and not hasattr(net, 'lslu_plan')


def test_an_lslu_that_cannot_be_built_leaves_the_net_whole():
    net = timm.create_model('test_resnet')
    with pytest.raises(ValueError, match="form='sum' needs at least one term"): patch_lslu(net, form='sum', act_num={'*': 1, 'layer4': 0}, input_size=64)
    assert not lslus(net)


class Elsewhere(Shared):
    "Its activation is called by way of a list, which no patch changes, or with a name that only relu has, or where it is a relu"
    def __init__(self, way):
        super().__init__()
        self.held, self.way = [self.act], way
    def forward(self, x):
        x = F.relu(self.b1(self.c1(x)))
        if self.way == 'keyword': x = self.act(self.act(input=x))
        elif self.way == 'list' or isinstance(self.act, nn.ReLU): x = self.held[0](x)
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize('init', ['mixed', 'identity'])
@pytest.mark.parametrize('way,says', [('list', 'an LSLU at act would never run'), ('class', 'an LSLU at act would never run'), ('keyword', 'TypeError')])
def test_an_activation_that_is_not_reached_by_its_name_is_told(way, says, init):
    net = Elsewhere(way)
    with pytest.raises(ValueError, match=says): patch_lslu(net, init=init, input_size=12)
    assert not lslus(net) and net.act is net.same is net.held[0]


@pytest.mark.parametrize('init', ['reference', 'identity'])
def test_a_path_that_hangs_on_what_an_activation_gives_is_no_other_way_to_it(init):
    class ByData(Shared):
        def __init__(self):
            super().__init__()
            self.late = nn.GELU()
        def forward(self, x):
            x = self.act(self.b1(self.c1(x)))
            if (x >= 0).all() and x.mean() > .1: x = self.late(x)
            return self.fc(x.mean((2, 3)))
    net, _ = patch_lslu(ByData(), init=init, input_size=12)
    assert list(lslus(net)) == ['act', 'late'] and net(torch.randn(2, 3, 12, 12)).isfinite().all()


def test_a_net_that_asks_for_what_its_activation_gives_starts_as_the_identity():
    "It is run once more with what the activations gave"
    class Asks(Shared):
        def forward(self, x):
            x = self.act(self.b1(self.c1(x)))
            assert (x > -.05).all()
            return self.fc(self.same(x).mean((2, 3)))
    assert list(lslus(patch_lslu(Asks(), init='identity', input_size=12)[0])) == ['act']


def test_hooks_of_the_activations_stay():
    "Nets of features and of fastai live on them, and handles of before go on removing them"
    x = torch.randn(2, 3, 64, 64)
    net = timm.create_model('test_resnet', features_only=True, feature_cls='hook').eval()
    maps = len(net(x))
    fused = fuse(patch_lslu(net, act_num=1, input_size=64)[0], 64)
    assert len(net(x)) == len(fused(x)) == maps and not fused.fuse_report.kept
    net, seen, order = timm.create_model('test_resnet').eval(), [], []
    handles = [net.act1.register_forward_hook(lambda m, i, o: seen.append(m)), net.act1.register_forward_pre_hook(lambda m, i, k: order.append(k), with_kwargs=True),
               net.act1.register_full_backward_hook(lambda m, i, o: order.append('back'))]
    patch_lslu(net, input_size=64)
    seen.clear(), order.clear()
    net(x).sum().backward()
    assert seen == [net.act1] and isinstance(net.act1, LSLU) and order == [{}, 'back']
    fuse(net, 64)(x)
    assert type(seen[-1]).__name__ == 'FusedLSLU'
    for h in handles: h.remove()
    seen.clear(), order.clear()
    net(x).sum().backward()
    assert not seen + order


class Overwritten(nn.Module):
    "Uses what its activation left in its input"
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.act, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Linear(8, 3)
    def forward(self, x):
        x = self.bn(self.conv(x))
        self.act(x)
        return self.fc(x.mean((2, 3)))


def test_an_identity_start_that_is_none_is_told():
    start = patch_lslu(Overwritten(), init='identity', input_size=32)[1].start
    assert start.startswith('the start is not the identity') and 'computes what' not in start


@pytest.mark.parametrize('arch,where', [('test_resnet', 'all'), ('test_efficientnet', 'stem')])
def test_batch_norms_that_were_measured_on_noise_are_told(tmp_path, arch, where):
    plain, x = timm.create_model(arch, num_classes=3), torch.randn(4, 3, 64, 64)
    torch.save(plain.state_dict(), tmp_path/'w.pth')
    for calibrate in (None, x):
        report = patch_lslu(copy.deepcopy(plain), where, 1, 'identity', calibrate=calibrate, input_size=64)[1]
        started = start_from(lslu_model(arch, 3, where=where, act_num=1, input_size=64), tmp_path/'w.pth', calibrate=calibrate)
        assert ['measured on noise: give calibrate=' in str(o) for o in (report, report.start, started)] == [calibrate is None]*3
    start_from(net := lslu_model(arch, 3, where=where, act_num=1, input_size=64), tmp_path/'w.pth')
    torch.save(net.state_dict(), tmp_path/'w.pth')
    reports = patch_lslu(copy.deepcopy(plain), where, 1, 'mixed', input_size=64)[1], start_from(net, tmp_path/'w.pth')
    assert not any('noise' in str(o) for o in reports)                # nothing was measured


def test_every_map_of_a_net_of_features_is_compared():
    "The first one lies before what is replaced or changed"
    net, x = timm.create_model('test_efficientnet', features_only=True).eval(), torch.randn(2, 3, 64, 64)
    randomise(net, x)
    changed = copy.deepcopy(net)
    with torch.no_grad(): changed.blocks[-1][-1].conv_pwl.weight.mul_(2)
    assert torch.equal(net(x)[0], changed(x)[0]) and compare(net, changed, x, .01).max_rel_err > .01
    with torch.no_grad(): changed.blocks[-1][-1].bn3.weight.mul_(0), changed.blocks[-1][-1].bn3.bias.mul_(0)
    assert abs(compare(net, changed, x, .01).max_rel_err - 1) < .5                     # of its own map, however small beside the first
    assert patch_lslu(net, 'stages', 1, 'identity', input_size=64)[1].deviation > .01


def test_labels_beside_the_pictures_are_no_batch():
    net, x, y = timm.create_model('test_resnet', num_classes=3).double(), torch.randn(4, 3, 32, 32, dtype=torch.float64), torch.randint(0, 3, (4,))
    nets = [patch_lslu(copy.deepcopy(net), 'stem', 1, 'identity', calibrate=c, input_size=64)[0] for c in (x, (x, y), [(x, y)], [x, x], (x, F.one_hot(y)))]
    for n in nets[1:]:
        for a, b in zip(n.buffers(), nets[0].buffers()): assert torch.allclose(a, b, rtol=1e-12)
    tiny = nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    for batches, n in ((x, 4), ((x, y), 4), ([x, y], 4), ([(x, y), (x, y)], 8), ((x, x), 8)): assert compare(tiny, tiny, batches, .01).n == n


def test_identity_start_with_synchronised_norms():
    net = timm.create_model('test_resnet').double()
    twin = patch_lslu(copy.deepcopy(net), 'stem', 1, 'identity', input_size=64)[0].state_dict()
    synced, report = patch_lslu(nn.SyncBatchNorm.convert_sync_batchnorm(net), 'stem', 1, 'identity', input_size=64)
    assert report.deviation < 1e-12 and all(torch.equal(v, twin[k]) for k, v in synced.state_dict().items())


def test_plan_does_not_depend_on_the_picture_size_at_loading_time():
    net = lslu_model('test_resnet', 3, where='all', input_size=160)
    again = rebuild_model(json.loads(json.dumps(net.build_cfg)))
    again.load_state_dict(net.state_dict(), strict=True)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad(): assert torch.equal(net.eval()(x), again.eval()(x))
    with pytest.raises(ValueError, match='another net'): apply_plan(timm.create_model('test_vit'), LSLUPlan.from_dict(net.build_cfg['plan']))


@pytest.mark.parametrize('arch,stride', [('vanillanet_5_x0_125', None), *(('vanillanet_5_x0_125', s) for s in (1, 2, 3, 4)), ('vanillanet_13_x1_5_ada_pool', None)])
def test_the_largest_map_of_a_vanillanet(arch, stride):
    kw = dict(stem_stride=stride) if stride else {}
    with torch.device('meta'): stem = timm.create_model(arch, act='relu', **kw).stem
    for side in (95, 96, 97, 98): assert stem(torch.zeros(1, 3, side, side, device='meta')).shape[-1] == vanillanet.stem_side(arch, kw, side)


@pytest.mark.parametrize('arch', ['vanillanet_5_x0_125', 'vanillanet_5_x0_25'])
def test_vanillanet_uses_its_own_activations(arch):
    net = lslu_model(arch, 4, act_num=2)
    assert len(lslus(net)) > 0 and all(m.act_num == 2 for m in lslus(net).values()) and net.build_cfg['plan'] is None
    rebuild_model(json.loads(json.dumps(net.build_cfg))).load_state_dict(net.state_dict(), strict=True)
    assert not lslus(lslu_model(arch, 4, act='relu')) and not lslus(lslu_model(arch, 4, where='none'))
    with pytest.raises(ValueError, match='where=stem is not possible'): lslu_model(arch, 4, where='stem')


@pytest.mark.parametrize('make,says', [
    (lambda: lslu_model('resnet_18', 10), 'resnet18'),
    (lambda: lslu_model('resnet18', 10, where='block', input_size=64), 'matches no activation'),
    (lambda: lslu_model('resnet18', 10, where='stem', act_num=40, input_size=64), 'act_num=40 is larger than the maps'),
    (lambda: lslu_model('resnet50', 10, act_num=20, input_size=32), 'act_num=20 is larger than the maps .* take act_num=15'),
    (lambda: lslu_model('vanillanet_5_x0_125', 10, act_num=24, input_size=96), 'act_num=24 is larger than the maps .* is 24x24; take act_num=23'),
    (lambda: lslu_model('resnet18.foo', 10), "timm knows no weights 'resnet18.foo'; of resnet18 it has resnet18"),
    (lambda: lslu_model('inception_v3', 10, input_size=32), 'does not run on pictures of 3x32x32'),
    (lambda: lslu_model('vit_tiny_patch16_224', 10), 'tokens, no map'),
    (lambda: patch_lslu(timm.create_model('test_nfnet'), init='identity'), 'no batch norm statistics'),
    (lambda: lslu_model('resnet18', 10, input_size='big'), 'input_size'),
    (lambda: lslu_model('vanillanet_5_x0_125', 3, init='identity'), "init='identity' is not possible .* take 'reference', 'delta', 'mixed'"),
    (lambda: lslu_model('resnet18', 0.5), 'num_classes'),
    (lambda: lslu_model('vanillanet_5_x0_125', 3, checkpoint_path='w.pth'), "checkpoint_path='w.pth' .* give that file as pretrained"),
    (lambda: rebuild_model({'arch': 'resnet18', 'num_classes': 2, 'kwargs': {'pretrained': True}, 'plan': None}), 'build_cfg')])
def test_bad_input_is_one_clear_sentence(make, says):
    with pytest.raises(ValueError, match=says) as e: make()
    assert '\n' not in str(e.value) and len(str(e.value)) < 500


def own_test_net(pretrained=False, num_classes=1000, in_chans=3, **kwargs):
    return nn.Sequential(nn.Conv2d(in_chans, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))


def test_nets_of_which_timm_says_nothing(recwarn):
    "A user's own, and the names of before"
    timm.models.register_model(own_test_net)
    for arch in ('own_test_net', 'tf_efficientnet_b0_ns'):
        net = lslu_model(arch, 4, input_size=64)
        assert lslus(net) and rebuild_model(json.loads(json.dumps(net.build_cfg))).eval()(torch.randn(1, 3, 64, 64)).shape == (1, 4)
    with pytest.raises(ValueError, match='published nowhere that timm knows'): lslu_model('own_test_net', 4, pretrained=True)
    assert pretrained_cfg('xception')['mean'] == pretrained_cfg('xception.tf_in1k')['mean'] == (.5, .5, .5) # of legacy_xception, as it is called now
    assert lslu_model('own_test_net', 4).build_cfg['plan']['input_size'] == [3, 224, 224]


def test_whole_numbers_of_numpy():
    net = lslu_model('test_resnet', np.int64(4), np.int64(1), act_num=np.int64(1), where='stem', input_size=np.int64(64))
    assert json.dumps(net.build_cfg) and net(torch.randn(2, 1, 64, 64)).shape == (2, 4)
    assert LSLU(np.int64(4), np.int64(2))(torch.randn(1, 4, 5, 5)).shape == (1, 4, 5, 5)


class Scalar(nn.Module):
    "An activation of one number beside one of a map"
    def __init__(self):
        super().__init__()
        self.conv, self.act, self.scale, self.gate = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Parameter(torch.ones(())), nn.ReLU()
    def forward(self, x): return self.act(self.conv(x)).mean((2, 3))*self.gate(self.scale)


def test_an_activation_of_a_number_is_left_alone():
    plan = plan_lslu(Scalar(), input_size=32)
    assert {p.name: p.reason for p in plan.places} == {'act': '', 'gate': '0-D, no map'}


class NoFloat64(TorchFunctionMode):
    "As if all tensors were on Apple's GPU, which has no float64, but for those that `cpu()` gave and what is made of them alone"
    def __torch_function__(self, func, types, args=(), kwargs=None):
        out, given = func(*args, **(kwargs or {})), tensors((args, kwargs))
        if func is torch.Tensor.cpu: out = out.clone()
        moved = any(isinstance(o, torch.device) for o in args)
        here = func is torch.Tensor.cpu or not moved and all(getattr(t, 'here', False) for t in given)
        for t in tensors(out):
            if t.dtype == torch.float64 and not here: raise TypeError(f'{func} made a float64 tensor on the GPU')
            t.here = here
        return out


@pytest.fixture
def net():
    net = lslu_model('test_efficientnet', 3, where='all', act_num=2, input_size=64)
    randomise(net, torch.randn(4, 3, 64, 64))
    return net


@pytest.mark.parametrize('use', [lambda net: fuse(net, 64), layer_curves, lambda net: patch_lslu(timm.create_model('test_resnet'), 'stem', 1, 'identity', input_size=64),
                                 lambda net: start_from(lslu_model('test_efficientnet', 3, where='all', act_num=2, input_size=64), net.state_dict())])
def test_float64_is_used_on_the_cpu_only(net, use):
    with NoFloat64():
        with pytest.raises(TypeError, match='on the GPU'): net.conv_stem.weight.double()
        use(net)


@pytest.mark.parametrize('arch', ['vanillanet_5_x0_125', 'test_efficientnet'])
def test_no_net_holds_float64(arch):
    assert torch.float64 not in {t.dtype for t in lslu_model(arch, 3, input_size=64).state_dict().values()}


def test_nan_is_no_small_difference():
    net = lslu_model('test_resnet', 3, where='stem', act_num=1, input_size=64).eval()
    fused, x = fuse(net, 64), torch.randn(2, 3, 64, 64)
    with torch.no_grad(): fused.fc.bias[0] = torch.nan
    assert not compare(net, fused, [x, x], .01).max_rel_err <= 1e-3
    with torch.no_grad(): net.fc.bias[0] = torch.nan
    with pytest.raises(FuseError, match='fc.bias holds NaN'): fuse(net, 64)
    with torch.no_grad(): net.fc.bias[0] = torch.inf
    fuse(net, 64)


def test_pretrained_weights_are_loaded_before_patching(tmp_path):
    "Weights from a file, as there may be no network: the identity start is then the default"
    torch.manual_seed(0)
    plain = timm.create_model('test_resnet', num_classes=5)
    randomise(plain, torch.randn(4, 3, 64, 64))
    torch.save(plain.state_dict(), tmp_path / 'w.pth')
    net = lslu_model('test_resnet', 5, pretrained=True, input_size=64, pretrained_cfg_overlay=dict(file=str(tmp_path / 'w.pth'), num_classes=5))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad(): assert (net.eval()(x) - plain(x)).abs().max()/plain(x).abs().max() < 1e-4
    assert str(tmp_path) not in json.dumps(net.build_cfg) and lslus(net)


@pytest.mark.parametrize('key,pre,act', [('model', '', 'act1'), ('model_ema', 'module.', 'lslu'), ('module', 'module.', 'act1')])
def test_reference_checkpoint(tmp_path, key, pre, act):
    "alphas and biases of one entry per channel, of which the series uses the first ones; the step-by-step definition is the judge"
    torch.manual_seed(0)
    net = lslu_model('resnet18', 10, where='stem', input_size=64).double()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    randomise(net, x)
    a, b = torch.rand(64, dtype=torch.float64) + .5, torch.randn(64, dtype=torch.float64)*.1
    state = {k: v for k, v in net.state_dict().items()} | {'act1.alphas': a, 'act1.biases': b}
    torch.save({key: {pre + k.replace('act1.', act + '.', 1) if k.startswith('act1.') else pre + k: v for k, v in state.items()}, 'args': argparse.Namespace(lr=1), 'epoch': 1}, tmp_path / 'ref.pth')
    mine = lslu_model('resnet18', 4, where='stem', input_size=64).double().eval()
    assert load_reference(mine, tmp_path / 'ref.pth') == ['fc.weight', 'fc.bias']
    z = u = mine.bn1(mine.conv1(x))
    for i in range(3): u = F.relu(u)*a[i] + b[i]
    u = mine.act1.bn(F.conv2d(F.relu(u), state['act1.weight'], None, padding=3, groups=64))
    with torch.no_grad(): assert (mine.act1(z) - u).abs().max()/u.abs().max() < 1e-12


@pytest.mark.parametrize('act,n', [('lslu', 3), ('series', 2)])
@pytest.mark.parametrize('key,pre', [('model', ''), ('model_ema', 'module.')])
def test_reference_checkpoint_of_vanillanet(tmp_path, act, n, key, pre):
    "VanillaNet with LSLU, and the original one, under the reference's names; a head of other size stays as it was"
    torch.manual_seed(0)
    kw = dict(act=act, act_num=n, input_size=64)
    net = lslu_model('vanillanet_5_x0_125', 7, **kw)
    x = torch.randn(4, 3, 64, 64)
    randomise(net, x)
    names = {ours: theirs for theirs, ours in vanillanet._KEYS}
    state = {}
    for k, v in net.state_dict().items():
        ours = next((o for o in names if k.startswith(o)), None)
        if k.endswith(('.alphas', '.biases')): v = torch.cat([v, torch.full((net.get_submodule(k.rpartition('.')[0]).dim - n,), 9.)])  # the reference keeps one a channel and uses the first n
        state[pre + (names[ours] + k[len(ours):] if ours else k)] = v
    assert pre + 'stem1.0.weight' in state and pre + 'stem2.2.weight' in state and pre + 'cls1.2.weight' in state
    torch.save({key: state, 'epoch': 3, 'args': argparse.Namespace(lr=1)}, tmp_path / 'ref.pth')
    same = lslu_model('vanillanet_5_x0_125', 7, **kw).eval()
    assert load_reference(same, tmp_path / 'ref.pth') == []
    with torch.no_grad(): assert torch.equal(same(x), net(x))
    other = lslu_model('vanillanet_5_x0_125', 3, **kw).eval()
    left = load_reference(other, tmp_path / 'ref.pth')
    assert left and all(k.startswith('head.') for k in left)
    with torch.no_grad(): assert torch.equal(other.forward_features(x), net.forward_features(x)) and other(x).shape == (4, 3)
    with pytest.raises(ValueError, match='act_num'): load_reference(lslu_model('vanillanet_5_x0_125', 7, act=act, act_num=1, input_size=64), tmp_path / 'ref.pth')


def test_maps_of_a_vanillanet():
    "Without a pool it gives maps, as timm's other nets do"
    x = torch.randn(2, 3, 64, 64)
    make = lambda **kw: timm.create_model('vanillanet_5_x0_125', **kw).eval()
    net = make(num_classes=0, global_pool='')
    assert net(x).shape == (2, 512, 2, 2) and torch.equal(net(x), net.forward_features(x)) and torch.equal(net.forward_head(net(x), pre_logits=True), net(x))
    pooled = make(num_classes=3)
    y = pooled(x)
    pooled.reset_classifier(0, '')
    assert y.shape == (2, 3) and pooled(x).shape == (2, 512, 2, 2)
    pooled.reset_classifier(3, 'avg')
    assert pooled(x).shape == (2, 3) and make(num_classes=3, global_pool='')(x).shape == (2, 3, 2, 2)
    assert len(make(features_only=True, global_pool='')(x)) == 4
    with pytest.raises(ValueError, match='global_pool'): pooled.reset_classifier(3, 'max')


@pytest.mark.parametrize('stride', [1, 2, 3, 4])
def test_the_smallest_picture_of_a_vanillanet(stride):
    net = timm.create_model('vanillanet_5_x0_125', num_classes=2, stem_stride=stride).eval()
    n = net.least_side
    assert net(torch.randn(1, 3, n, n)).shape == (1, 2)
    with pytest.raises(ValueError, match=f'too small .* use at least {n} pixels'): net(torch.randn(1, 3, n - 1, n))


@pytest.mark.parametrize('arch', ['test_resnet', 'test_efficientnet'])
def test_frozen_norms_fold(arch):
    net, x = timm.create_model(arch, num_classes=3).double(), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    randomise(net, x)
    freeze(net.eval())
    fused = fuse(net, 64)
    with torch.no_grad(): assert deviation(fused(x), net(x)) < 1e-10
    assert not any('Norm' in type(m).__name__ for m in fused.modules()) and not fused.fuse_report.kept
    assert deviation(fuse_like(copy.deepcopy(net), fused.fuse_plan)(x), net(x)) < 1e-10


def test_files_that_are_no_weights(tmp_path):
    (tmp_path / 'a.pth').write_text('import os')
    torch.save({'model': LSLU(3)}, tmp_path / 'b.pth')  # a pickled object
    torch.save({'epoch': 1}, tmp_path / 'c.pth')
    net = lslu_model('test_resnet', 3, where='stem', act_num=1, input_size=64)
    for f, says in [('a.pth', 'no file of weights, or holds objects'), ('b.pth', 'no file of weights, or holds objects'), ('c.pth', 'No weights'), ('d.pth', 'no checkpoint')]:
        with pytest.raises(ValueError, match=says) as e: load_reference(net, tmp_path / f)
        assert '\n' not in str(e.value) and len(str(e.value)) < 300


def test_coverage_command(tmp_path, capsys):
    out = tmp_path / 'c.csv'
    coverage(out, ['starnet', 'mlp_mixer/gmlp'], timeout=120)
    assert '| starnet | starnet_s050 |' in out.with_suffix('.md').read_text()
    rows = coverage(out, ['starnet'])  # has it already
    assert [r['outcome'][:6] for r in rows] == ['cannot', 'ok'] and not list(tmp_path.glob('.*'))
    assert coverage_main(['--families', 'resnot', '--out', str(out)]) == 2
    assert "'resnot' is no family" in capsys.readouterr().err


def test_coverage_made_again_spares_the_large(tmp_path, monkeypatch):
    out, ran = tmp_path / 'c.csv', []
    rows = [['a', 'resnet18', '11e6', 'ok'], ['b', 'resnet34', '', 'failed: x'], ['c', 'vit_giant', '1000000000', 'not run: 1000 M parameters']]
    write_table(out, [['family', 'arch', 'params', 'outcome'], *rows])
    monkeypatch.setattr(coverage_module, 'run_family', lambda arch, *rest: ran.append(arch) or dict(arch=arch, outcome='ok'))
    assert [r['outcome'] for r in coverage(out, redo=True)] == ['ok', 'ok', 'not run: 1000 M parameters'] and ran == ['resnet18', 'resnet34']


@pytest.mark.slow
def test_pretrained_net_keeps_what_it_knows(data_dir):
    import pretrained
    runs = pretrained.main(['--data', str(data_dir)])
    for r in runs:
        for k in ('stem, identity', 'all, identity'): assert abs(r[k][0] - r['unpatched'][0]) < .1  # at step 0
    after = {k: sum(r[k][1] for r in runs)/len(runs) for k in runs[0]}
    assert min(after['stem, identity'], after['all, identity']) > after['unpatched'] - 1


def test_a_hook_inside_a_folded_norm_stays():
    net, heard = lslu_model('lcnet_050', 3, where='stem').eval(), []
    x = torch.randn(2, 3, 64, 64)
    net.blocks[1][0].bn1.act.register_forward_hook(lambda m, i, o: heard.append(o))
    fuse(net)(x)
    n = len(heard)
    net(x)
    assert n > 0 and len(heard) == n + 1


def test_other_work_is_not_taken_for_speed():
    "On a CPU a net that waits, as beside other programs, counts as no slower; by the clock on the wall it was 0.15 or 2.7 times as fast"
    import time
    net = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.Flatten(), nn.LazyLinear(2)).eval()
    x = torch.randn(8, 3, 32, 32)
    net(x)
    held = copy.deepcopy(net)
    held[1].register_forward_hook(lambda *_: time.sleep(.2))
    assert compare(net, held, x).latency_ratio > .3
