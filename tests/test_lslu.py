"Every form of LSLU as a whole module: compiled, exported, in mixed precision, channels-last, differentiated twice."
import pytest
import torch

from silkworm_app.act.lslu import LSLU, reference_series, series, series_sum

FORMS = [('chain', False, 3), ('chain', True, 2), ('sum', True, 3), ('sum', False, 2), ('series', False, 3)]


def lslu(form, per_channel, n, dtype=torch.float32, dim=6):
    torch.manual_seed(0)
    m = LSLU(dim, n, per_channel=per_channel, form=form).to(dtype)
    with torch.no_grad():
        for p in m.parameters(): p.add_(torch.randn_like(p) * .3)
    return m, torch.randn(2, dim, 9, 9, dtype=dtype)


def values_and_gradients(f, m, x):
    x = x.detach().requires_grad_()
    y = f(x)
    r = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)  # a sum of squares after a batch norm has no gradient
    return [y, *torch.autograd.grad((y * r).sum(), [x, *m.parameters()])]


def off(a, b): return max(((p.double() - q.double()).abs().max() / q.double().abs().max().clamp(min=1e-12)).item() for p, q in zip(a, b, strict=True))


@pytest.mark.parametrize('form,per_channel,n', FORMS)
def test_compiled_without_a_break(form, per_channel, n):
    m, x = lslu(form, per_channel, n, torch.float64)
    torch._dynamo.reset()
    assert off(values_and_gradients(torch.compile(m, fullgraph=True, backend='aot_eager'), m, x), values_and_gradients(m, m, x)) < 1e-10


@pytest.mark.parametrize('form,per_channel,n', FORMS)
def test_channels_last_and_export(form, per_channel, n):
    m, x = lslu(form, per_channel, n, torch.float64)
    want = values_and_gradients(m, m, x)
    got = values_and_gradients(m, m, x.contiguous(memory_format=torch.channels_last))
    assert off(got, want) < 1e-10 and got[0].is_contiguous(memory_format=torch.channels_last)
    m.eval()
    program = torch.export.export(m, (x,), dynamic_shapes=({0: torch.export.Dim('batch')},)).module()
    more = torch.cat([x, x + 1, -x])
    assert off([program(more)], [m(more)]) < 1e-12


@pytest.mark.parametrize('dtype,tol', [(torch.bfloat16, .06), (torch.float16, .01)])
@pytest.mark.parametrize('form,per_channel,n', FORMS)
def test_mixed_precision_is_near_and_finite(form, per_channel, n, dtype, tol):
    m, x = lslu(form, per_channel, n)
    def mixed(x):
        with torch.autocast('cpu', dtype): return m(x).float()
    got, want = values_and_gradients(mixed, m, x), values_and_gradients(m, m, x)
    assert all(g.isfinite().all() for g in got) and off(got[:1], want[:1]) < tol
    assert all(g.dtype == torch.float32 for g in got[2:])


@pytest.mark.parametrize('form,per_channel,n', FORMS)
def test_second_derivatives(form, per_channel, n):
    m, x = lslu(form, per_channel, n, torch.float64, dim=2)
    assert torch.autograd.gradgradcheck(m, (x[:, :, :4, :4].clone().requires_grad_(),), atol=1e-5)


@pytest.mark.parametrize('big', [1e13, -1e13, 1e30])
@pytest.mark.parametrize('form', ['chain', 'sum'])
@pytest.mark.parametrize('grad', [True, False])
def test_numbers_beyond_the_largest_are_infinite(form, big, grad):
    "A training that has run away hears of it from its own check, not from a conversion"
    torch.manual_seed(0)
    m, x = LSLU(2, 3, form=form), torch.randn(5, requires_grad=grad)
    with torch.no_grad(): m.alphas.fill_(big); m.biases.fill_(big)
    with torch.set_grad_enabled(grad): y, s = m(torch.randn(2, 2, 8, 8)), series(x, m.alphas, m.biases)
    if grad: (y.sum() + s.sum()).backward()
    assert y.isfinite().all() == (form == 'sum' and abs(big) < 1e19)            # three times 1e26 is a number still
    known = s.isfinite()
    assert torch.equal(s[known], reference_series(x, m.alphas, m.biases)[known]) and not (big > 0 and known.any())


@pytest.mark.parametrize('dtype', [torch.int64, torch.bool, torch.complex64])
def test_numbers_that_are_no_floats_are_refused(dtype):
    "The result has the type of the input: one of integers would be cut off"
    x, n = torch.ones(1, 2, 8, 8).to(dtype), torch.full((2,), .5)
    for f in (LSLU(2), LSLU(2, deploy=True), lambda x: series(x, n, n), lambda x: series_sum(x, n, n)):
        with pytest.raises(ValueError, match='expected floating point numbers'): f(x)


@pytest.mark.parametrize('form,per_channel,n', FORMS)
def test_a_parametrized_lslu_is_fused_in_place(form, per_channel, n):
    m, x = lslu(form, per_channel, n, torch.float64)
    torch.nn.utils.parametrizations.weight_norm(m)
    m.eval()
    y = m(x)
    m.switch_to_deploy()
    assert off([m(x)], [y]) < 1e-12 and {k.split('.')[0] for k in m.state_dict()} <= {'pre', 'conv'}
