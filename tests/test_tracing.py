"Whatever traces, transforms or differentiates an LSLU otherwise than by training it meets plain operations and gets the same numbers."
import io

import pytest
import timm
import torch
from timm.models import create_feature_extractor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from silkworm_app.act.fuse import fuse
from silkworm_app.act.lslu import LSLU
from silkworm_app.act.patch import lslu_model
from silkworm_app.lab.coverage import randomise

FORMS = [('chain', False), ('chain', True), ('sum', True), ('series', False)]
forms = pytest.mark.parametrize('form,per_channel', FORMS)


def lslu(form, per_channel, dtype=torch.float32, dim=4):
    torch.manual_seed(0)
    m = LSLU(dim, 2, per_channel=per_channel, form=form).to(dtype).eval()
    with torch.no_grad():
        for p in m.parameters(): p.add_(torch.randn_like(p) * .3)
    return m, torch.randn(2, dim, 7, 7, dtype=dtype)


def off(a, b): return ((a - b).abs().max() / b.abs().max()).item()


@forms
def test_onnx_by_tracing(form, per_channel):
    onnxruntime = pytest.importorskip('onnxruntime')
    m, x = lslu(form, per_channel)
    f = io.BytesIO()
    torch.onnx.export(m, (x,), f, dynamo=False, input_names=['x'], output_names=['y'], dynamic_axes={'x': {0: 'n'}, 'y': {0: 'n'}})
    session = onnxruntime.InferenceSession(f.getvalue(), providers=['CPUExecutionProvider'])
    assert [i.name for i in session.get_inputs()] == ['x']
    for z in (x, torch.cat([x, -x, x + 1])): assert off(torch.from_numpy(session.run(None, {'x': z.numpy()})[0]), m(z).detach()) < 1e-5


@forms
@pytest.mark.parametrize('training', [False, True])
def test_traced_by_jit_at_another_batch_size(form, per_channel, training):
    m, x = lslu(form, per_channel, torch.float64)
    traced = torch.jit.trace(m.train(training), x, check_trace=False)
    for z in (torch.cat([x, -x, x + 1]), torch.randn(5, 4, 9, 6, dtype=torch.float64)): assert off(traced(z), m(z)) < 1e-12


@pytest.mark.parametrize('arch,kw', [('vanillanet_5_x0_125', dict(stem_stride=2)), ('resnet18', dict(where='all', act_num=1, input_size=32))])
def test_fx(arch, kw):
    net = lslu_model(arch, 3, **kw).double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    graph = torch.fx.symbolic_trace(net)
    assert off(graph(x), net(x)) < 1e-12
    lslus = [n for n in graph.graph.nodes if n.op == 'call_module' and isinstance(graph.get_submodule(n.target), LSLU)]
    assert len(lslus) == sum(isinstance(m, LSLU) for m in net.modules())
    graph(x).square().sum().backward()
    layers = [n for n, m in net.named_modules() if isinstance(m, LSLU)]
    some = create_feature_extractor(net, [layers[0]])(x)
    assert off(some[layers[0]], dict(net.named_modules())[layers[0]](_input_of(net, layers[0], x))) < 1e-12


def _input_of(net, name, x):
    seen = []
    h = net.get_submodule(name).register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    net(x)
    h.remove()
    return seen[0]


@forms
def test_gradients_picture_by_picture(form, per_channel):
    m, x = lslu(form, per_channel, torch.float64)
    params = dict(m.named_parameters())
    loss = lambda p, x: functional_call(m, p, (x[None],)).square().sum()
    each = vmap(grad(loss), (None, 0))(params, x)
    for i, one in enumerate(x):
        want = torch.autograd.grad(loss(params, one), list(params.values()))
        for (k, g), w in zip(each.items(), want): assert off(g[i], w) < 1e-10, k


@forms
@pytest.mark.parametrize('training', [False, True])
def test_forward_mode(form, per_channel, training):
    m, x = lslu(form, per_channel, torch.float64)
    m.train(training)
    t, h = torch.randn_like(x), 1e-7
    with forward_ad.dual_level(): ours = forward_ad.unpack_dual(m(forward_ad.make_dual(x, t))).tangent
    with torch.no_grad(): want = (m(x + h*t) - m(x - h*t)) / (2*h)
    assert off(ours, want) < 1e-5
    if not training: assert off(jvp(m, (x,), (t,))[1], ours) < 1e-12


@forms
def test_other_lookers_on(form, per_channel):
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    m, x = lslu(form, per_channel)
    with torch.no_grad():
        assert off(make_fx(m)(x)(-x), m(-x)) < 1e-6
    with FakeTensorMode(allow_non_fake_inputs=True) as mode: assert m(mode.from_tensor(x)).shape == x.shape
    assert m.to('meta')(x.to('meta')).shape == x.shape


def test_an_ensemble_of_nets():
    nets = [timm.create_model('vanillanet_5_x0_125', num_classes=3, stem_stride=2).eval() for _ in range(2)]
    params, buffers = torch.func.stack_module_state(nets)
    x = torch.randn(2, 3, 32, 32)
    both = vmap(lambda p, b: functional_call(nets[0], (p, b), (x,)))(params, buffers)
    for y, net in zip(both, nets): assert off(y, net(x)) < 1e-5


@pytest.mark.parametrize('way', ['compile', 'jit', 'export', 'fx', 'vmap'])
def test_the_slope_of_an_average_is_read_where_it_is_written(way):
    "An average writes the buffer after the net was traced, or before anybody has read it"
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    net = timm.create_model('vanillanet_5_x0_125', num_classes=3, stem_stride=2, act='relu').double().eval()
    randomise(net, x)
    net.set_act_slope(.2)
    average = AveragedModel(net, use_buffers=True, multi_avg_fn=get_ema_multi_avg_fn(.5))
    inside = average.module
    if way in ('compile', 'jit'):
        run = torch.compile(inside, backend='eager', fullgraph=True) if way == 'compile' else torch.jit.trace(inside, x)
        assert off(run(x), net(x)) < 1e-12
    average.update_parameters(net)
    net.set_act_slope(.6)
    average.update_parameters(net)
    if way == 'export': run = torch.export.export(inside, (x,)).module()
    if way == 'fx': run = torch.fx.symbolic_trace(inside)
    if way == 'vmap': run = lambda x: vmap(inside)(x[None])[0]
    y = run(x)
    assert off(y, inside(x)) < 1e-9 and off(net(x), y) > 1e-3
    assert abs(inside.act_slope - .4) < 1e-6


def test_features_of_a_vanillanet_are_exported():
    torch.manual_seed(0)
    net, x = timm.create_model('vanillanet_5_x0_125', features_only=True).eval(), torch.randn(2, 3, 64, 64)
    for a, b in zip(torch.export.export(net, (x,)).module()(x), net(x)): assert off(a, b) < 1e-5


@forms
@pytest.mark.parametrize('training', [False, True])
def test_batches_of_gradients(form, per_channel, training):
    m, x = lslu(form, per_channel, torch.float64, 3)
    m.train(training)
    f = lambda x: m(x).square().sum()
    x = x[..., :4, :5]
    J = torch.autograd.functional.jacobian(m, x, vectorize=True)
    assert off(J, torch.autograd.functional.jacobian(m, x)) < 1e-12 and not J.requires_grad
    assert off(torch.autograd.functional.hessian(f, x, vectorize=True), torch.autograd.functional.hessian(f, x)) < 1e-12
    z = x.clone().requires_grad_()
    y, g = m(z), torch.randn(3, *x.shape, dtype=torch.float64)
    for a, b in zip(vmap(lambda g: torch.autograd.grad(y, z, g, retain_graph=True)[0])(g), g): assert off(a, torch.autograd.grad(y, z, b, retain_graph=True)[0]) < 1e-12


def test_a_net_that_was_exported_is_as_it_was(tmp_path):
    "Nothing of the export stays in it"
    import copy
    net, x = timm.create_model('vanillanet_5_x0_125', num_classes=3, stem_stride=2).eval(), torch.randn(2, 3, 32, 32)
    for _ in range(2): assert off(torch.export.export(net, (x,)).module()(x), net(x)) < 1e-5
    torch.save(net, tmp_path/'net.pt')
    for other in (copy.deepcopy(net), fuse(net), torch.jit.trace(net, x)): assert off(other(x), net(x)) < 1e-4
    net.train()
    torch.compile(net, backend='eager')(x).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
