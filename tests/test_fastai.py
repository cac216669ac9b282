"LSLU from fastai: any learner gets it by one line, and everything fastai does with a learner still works."
import json
import warnings

import pytest
import timm
import torch
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.schedule import *  # noqa: F401,F403 adds fit_one_cycle, fine_tune and lr_find to Learner
from fastai.learner import Learner, load_learner
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import Adam, OptimWrapper
from fastai.torch_core import params
from fastai.vision.learner import vision_learner
from functools import partial
from timm.layers import GroupNorm1
from torchvision import models

from silkworm_app.train.callback import DeepTraining, LSLUCallback
from silkworm_app.lab.coverage import randomise
from silkworm_app.data.sample import draw_sample
from silkworm_app.data.loaders import image_dls
from silkworm_app.act.fuse import compare
from silkworm_app.act.fuse import fuse
from silkworm_app.train.learner import lslu_learner
from silkworm_app.act.patch import lslus
from silkworm_app.act.trace import deviation


@pytest.fixture(scope='module')
def dls(tmp_path_factory):
    torch.manual_seed(0)
    folder = draw_sample(tmp_path_factory.mktemp('fastai')/'synthetic_silkworm_sample', n_per_class=10, size=48)
    dls = image_dls(folder, 48, 10, fast=True, device='cpu')
    dls.path = tmp_path_factory.mktemp('runs')
    return dls


def quiet(learn, what, *args, **kw):
    with learn.no_bar(), learn.no_logging(): getattr(learn, what)(*args, **kw)
    return learn


def state(learn): return {n: p.detach().clone() for n, p in learn.model.named_parameters()}


def still(learn, before): return [n for n, p in learn.model.named_parameters() if torch.equal(p, before[n])]


def of_lslus(learn): return {f'{n}.{k}' for n, m in lslus(learn.model).items() for k, _ in m.named_parameters()}


def in_optimiser(learn): return {id(p) for g in learn.opt.param_lists for p in g} == {id(p) for p in learn.model.parameters()}


# The nets of fastai: `Sequential(TimmBody, head)` for a name of timm, `Sequential(Sequential, head)` for a function of torchvision.

@pytest.mark.parametrize('arch,name', [('resnet18', '0.model.act1'), (models.resnet18, '0.2'), ('tf_efficientnetv2_b0', '0.model.bn1.act')])
def test_vision_learner_is_patched_before_its_optimiser_is_built(dls, arch, name):
    learn = vision_learner(dls, arch, pretrained=False, cbs=LSLUCallback(where='stem', fname=None))
    assert list(lslus(learn.model)) == [name] and learn.opt is None
    before = state(learn)
    quiet(learn, 'fit', 1, 1e-2)
    assert in_optimiser(learn) and of_lslus(learn) and not of_lslus(learn) & set(still(learn, before))


def test_where_number_and_form_reach_the_net_and_the_head_is_left_alone(dls):
    cb = LSLUCallback(where='stages', act_num={'layer1': 2, '*': 1}, per_channel=True, form='sum', fname=None)
    learn = vision_learner(dls, 'resnet18', pretrained=False, cbs=cb)
    ls = lslus(learn.model)
    assert len(ls) == 16 and all(n.startswith('0.model.layer') for n in ls)
    assert {m.act_num for n, m in ls.items() if 'layer1' in n} == {2} and {m.act_num for n, m in ls.items() if 'layer1' not in n} == {1}
    assert all(m.per_channel and m.form == 'sum' for m in ls.values())
    head = [p for p in cb.report.plan.places if p.name.startswith('1.')]
    assert head and all('2-D' in p.reason for p in head) and '16 of 18' in str(cb.report)


def test_nothing_to_patch_is_said_by_the_learner(dls):
    with pytest.raises(ValueError, match="where='nowhere' matches no activation"): vision_learner(dls, 'resnet18', pretrained=False, cbs=LSLUCallback(where='nowhere'))


# `lslu_learner`, the paper's ResNets and EfficientNetV2

@pytest.mark.parametrize('arch', ['resnet18', 'resnet34', 'resnet50', 'resnet101'])
def test_resnet_lslu(dls, arch):
    learn = lslu_learner(dls, arch, where='stem', drop_rate=.1)
    assert list(lslus(learn.model)) == ['act1'] and learn.model.drop_rate == .1
    assert list(lslus(lslu_learner(dls, arch).model)) == ['act1']  # the default by depth
    x = dls.valid.one_batch()[0][:2]
    with torch.no_grad(): assert learn.model.eval()(x).shape == (2, 5)
    if arch == 'resnet18':
        before = state(learn)
        quiet(learn, 'fit_one_cycle', 1, 1e-3)
        assert still(learn, before) == []


def test_efficientnetv2_lslu_trains_and_fuses(dls):
    learn = lslu_learner(dls, 'efficientnetv2_rw_t', where=r'bn1\.act$|^blocks\.0', act_num=1, drop_path_rate=.1)
    assert len(lslus(learn.model)) > 3
    before = state(learn)
    quiet(learn, 'fit', 1, 1e-3)
    assert not of_lslus(learn) & set(still(learn, before))
    c = compare(learn.model, fuse(learn.model), [dls.valid.one_batch()[0]], seconds=.1)
    assert c.max_rel_err < 1e-4 and c.top1_agreement == 1


# Freezing, weight decay, learning rates: one net with plain batch norms, one with `BatchNormAct2d`

@pytest.fixture(params=['test_resnet', 'test_efficientnet'])
def pretrained(request, tmp_path):
    "Name and weights of a net that 'was trained': its batch norms hold statistics"
    torch.manual_seed(0)
    net = timm.create_model(request.param, num_classes=5)
    randomise(net, torch.randn(8, 3, 48, 48))
    torch.save(net.state_dict(), tmp_path/'w.pth')
    return request.param, dict(file=str(tmp_path/'w.pth'), num_classes=5)


def made(make, dls, source, arch, **kw):
    if make == 'lslu_learner': return lslu_learner(dls, arch, where='all', act_num=1, pretrained=True, pretrained_cfg_overlay=source, **kw)
    cb = LSLUCallback(where='all', act_num=1, fname=None, **kw)
    return vision_learner(dls, arch, pretrained=True, normalize=False, pretrained_cfg_overlay=source, cbs=cb)


def test_a_frozen_body_runs_without_gradients(dls, pretrained):
    "LSLUs that began as what they replaced, and batch norms, hold knowledge like the rest: nothing below the classifier is walked back through"
    arch, source = pretrained
    learn = made('lslu_learner', dls, source, arch)
    head = {id(p) for p in learn.model.get_classifier().parameters()}
    assert all(p.requires_grad == (id(p) in head) for p in learn.model.parameters())
    x = dls.valid.one_batch()[0]
    seen = []
    learn.model.get_classifier().register_forward_pre_hook(lambda m, args: seen.append(args[0].requires_grad))
    learn.model.train()(x)
    assert seen == [False]
    before = state(learn)
    quiet(learn, 'fit', 1, 1e-2)
    assert len(still(learn, before)) == len(before) - len(head)


@pytest.mark.parametrize('make', ['vision_learner', 'lslu_learner'])
def test_frozen_layers_keep_training_their_lslus_where_asked_for(dls, pretrained, make):
    arch, source = pretrained
    learn = made(make, dls, source, arch, train_frozen=True)
    ours, body = of_lslus(learn), {n for n, p in learn.model.named_parameters() if p.ndim == 4}
    assert ours and all(p.requires_grad == (n in ours) for n, p in learn.model.named_parameters() if n in body)
    before = state(learn)
    quiet(learn, 'fit', 1, 1e-2)  # frozen
    assert not ours & set(still(learn, before)) and body - ours <= set(still(learn, before))
    before = state(learn)
    learn.unfreeze()
    quiet(learn, 'fit_one_cycle', 1, slice(1e-4, 1e-2))
    assert not set(still(learn, before))
    assert [round(h['lr'], 9) < round(learn.opt.hypers[-1]['lr'], 9) for h in learn.opt.hypers[:-1]] == [True]*(len(learn.opt.hypers) - 1)


@pytest.mark.parametrize('arch', ['test_resnet', 'test_efficientnet'])
def test_weight_decay_reaches_the_kernel_only(dls, arch):
    learn = vision_learner(dls, arch, pretrained=False, wd=.5, cbs=LSLUCallback(where='all', act_num=1, fname=None))
    quiet(learn, 'fit', 1, 0.)
    got = {n: learn.opt.state[p].get('do_wd', True) for n, p in learn.model.named_parameters() if n in of_lslus(learn)}
    assert {n for n, v in got.items() if v} == {n for n in got if n.endswith('.weight') and not n.endswith('.bn.weight')}
    before = state(learn)
    quiet(learn, 'fit', 1, 1e-12)  # the gradient's part is nothing at this rate; so is decay's
    learn.opt.set_hyper('lr', 1e-1)
    with torch.no_grad():
        for p in learn.model.parameters(): p.grad = torch.zeros_like(p)
    learn.opt.clear_state()
    learn.opt.step()
    moved = of_lslus(learn) - set(still(learn, before))
    assert {n for n in moved if not n.endswith(('.alphas', '.biases', '.bn.weight', '.bn.bias'))} == {n for n, v in got.items() if v}


def test_fine_tune_starts_from_what_the_net_knew(dls, pretrained):
    arch, source = pretrained
    torch.manual_seed(0)
    kw = dict(pretrained=True, normalize=False, pretrained_cfg_overlay=source)
    torch.manual_seed(1); plain = vision_learner(dls, arch, **kw)
    torch.manual_seed(1); learn = vision_learner(dls, arch, cbs=LSLUCallback(where='all', act_num=1, fname=None), **kw)
    x = dls.valid.one_batch()[0]
    with torch.no_grad(): moved = (learn.model.eval()(x) - plain.model.eval()(x)).abs().max()/plain.model(x).abs().max()
    assert learn.lslu.report.init == 'identity'
    assert moved < 1e-4 if arch == 'test_resnet' else abs(moved - learn.lslu.report.deviation) < .5*moved  # SiLU is no clamped line: measured and reported
    before = state(learn)
    quiet(learn, 'fine_tune', 1, 1e-2)
    assert still(learn, before) == []


# The rest of fastai

@pytest.mark.parametrize('precision', ['to_fp16', 'to_bf16', 'to_fp32'])
def test_precision(dls, precision):
    "fastai's mixed precision is for CUDA and does nothing on a CPU; it must not harm"
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        learn = lslu_learner(dls, 'test_resnet', where='all', act_num=1)
        learn = getattr(learn.to_fp16() if precision == 'to_fp32' else learn, precision)()
        assert any(isinstance(cb, MixedPrecision) for cb in learn.cbs) == (precision != 'to_fp32')
        before = state(learn)
        quiet(learn, 'fit', 1, 1e-2)
    assert all(p.isfinite().all() and p.dtype == torch.float32 for p in learn.model.parameters())
    if precision != 'to_fp16' or torch.cuda.is_available(): assert not of_lslus(learn) & set(still(learn, before))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_training_step_under_autocast(dls, dtype):
    "What fastai's callback does on a GPU, here for the CPU: half precision inside, float32 parameters with finite gradients"
    learn = lslu_learner(dls, 'resnet18', where='all', act_num=1)
    x, y = (t.as_subclass(torch.Tensor) for t in dls.valid.one_batch())
    with torch.autocast('cpu', dtype): loss = torch.nn.functional.cross_entropy(learn.model.train()(x).float(), y)
    loss.backward()
    assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in learn.model.parameters())


@pytest.mark.parametrize('make', ['vision_learner', 'lslu_learner'])
def test_export_and_load(dls, tmp_path, make):
    learn = lslu_learner(dls, 'test_resnet', where='all', act_num=1) if make == 'lslu_learner' else vision_learner(dls, 'test_resnet', pretrained=False, cbs=LSLUCallback(where='all', act_num=1, fname=None))
    quiet(learn, 'fit', 1, 1e-2)
    learn.path = tmp_path
    learn.export('it.pkl')
    assert in_optimiser(learn)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        again = load_learner(tmp_path/'it.pkl')
    x = dls.valid.one_batch()[0]
    with torch.no_grad(): assert torch.equal(again.model.eval()(x), learn.model.eval()(x))
    assert list(lslus(again.model)) == list(lslus(learn.model))
    pic = dls.splits.valid[0][0]
    assert torch.allclose(again.predict(pic)[2], learn.predict(pic)[2], atol=1e-6)
    quiet(learn, 'fit', 1)  # goes on


def test_save_and_load_of_weights(dls, tmp_path):
    learn = vision_learner(dls, 'test_resnet', pretrained=False, path=tmp_path, cbs=LSLUCallback(where='all', act_num=1, fname=None))
    quiet(learn, 'fit', 1, 1e-2)
    learn.save('a')
    other = vision_learner(dls, 'test_resnet', pretrained=False, path=tmp_path, cbs=LSLUCallback(where='all', act_num=1, fname=None)).load('a')
    assert all(torch.equal(a, b) for a, b in zip(learn.model.state_dict().values(), other.model.state_dict().values()))


@pytest.mark.trains
@pytest.mark.parametrize('how', ['add_cb', 'to_lslu', 'fit'])
def test_late(dls, how):
    torch.manual_seed(0)  # alone or behind other tests, the same net: three steps of an unlucky one leave an alpha where it was
    learn = vision_learner(dls, 'test_resnet', pretrained=False)
    quiet(learn, 'fit', 1, 1e-3)
    learn.freeze()
    kw = dict(where='all', act_num=1, fname=None, train_frozen=True)
    if how == 'add_cb': learn.add_cb(LSLUCallback(**kw))
    if how == 'to_lslu':
        assert learn.to_lslu(**kw) is learn and lslus(learn.model) and learn.lslu.report.init == 'identity'
    quiet(learn, 'fit', 1, 1e-2, **(dict(cbs=LSLUCallback(**kw)) if how == 'fit' else {}))
    assert in_optimiser(learn) and lslus(learn.model)
    if how != 'fit': assert all(p.requires_grad == (n in of_lslus(learn)) for n, p in learn.model.named_parameters() if n.startswith('0.') and p.ndim == 4)
    before = state(learn)
    quiet(learn, 'fine_tune', 1, 1e-2)
    assert still(learn, before) == []


def test_removing_the_callback_leaves_a_learner_that_trains(dls, tmp_path):
    learn = vision_learner(dls, 'test_resnet', pretrained=False, path=tmp_path, cbs=LSLUCallback(where='all', act_num=1))
    quiet(learn, 'fit', 1)
    assert [json.loads(o)['epoch'] for o in (tmp_path/'learnable_params.jsonl').read_text().splitlines()] == [1]
    learn.remove_cb(LSLUCallback)
    assert not any(isinstance(cb, LSLUCallback) for cb in learn.cbs) and lslus(learn.model)
    learn.create_opt()
    learn.freeze()
    assert all(p.requires_grad for n, p in learn.model.named_parameters() if n in of_lslus(learn))  # still what was decided
    before = state(learn)
    quiet(learn, 'fine_tune', 1, 1e-2)
    assert still(learn, before) == [] and len((tmp_path/'learnable_params.jsonl').read_text().splitlines()) == 1
    learn.export('it.pkl')


@pytest.mark.parametrize('opt', [partial(Adam, lr=1e-2, wd=.1), partial(OptimWrapper, opt=torch.optim.AdamW)])
def test_optimisers(dls, opt):
    learn = vision_learner(dls, 'test_resnet', pretrained=False, opt_func=opt, cbs=LSLUCallback(where='all', act_num=1, fname=None))
    learn.freeze()
    assert all(p.requires_grad for n, p in learn.model.named_parameters() if n in of_lslus(learn))
    before = state(learn)
    quiet(learn, 'fit', 1, 1e-2)
    assert not of_lslus(learn) & set(still(learn, before))
    quiet(learn, 'fine_tune', 1, 1e-2)


def test_validating_is_no_epoch(dls, tmp_path):
    "Before any training (there is no optimiser yet), and between two"
    learn = vision_learner(dls, 'test_resnet', pretrained=False, path=tmp_path, cbs=[LSLUCallback(where='all', act_num=1), DeepTraining(4)])
    quiet(learn, 'validate')
    assert learn.opt is None and learn.lslu.epochs == learn.deep_training.epochs == 0 and not (tmp_path/'learnable_params.txt').exists()
    quiet(learn, 'fit', 1)
    quiet(learn, 'validate')
    quiet(learn, 'fit', 1)
    assert learn.lslu.epochs == learn.deep_training.epochs == 2
    assert [json.loads(o)['epoch'] for o in (tmp_path/'learnable_params.jsonl').read_text().splitlines()] == [1, 2]


def test_lr_find_leaves_everything_as_it_was(dls):
    learn = vision_learner(dls, 'test_resnet', pretrained=False, cbs=LSLUCallback(where='all', act_num=1))
    before = state(learn)
    with learn.no_bar(), learn.no_logging(): found = learn.lr_find(num_it=10, show_plot=False)
    assert found.valley > 0 and len(still(learn, before)) == len(before) and learn.lslu.epochs == 0
    quiet(learn, 'fit', 1)
    assert learn.lslu.epochs == 1


def test_a_trained_net_without_batch_norms_keeps_its_training(dls):
    "Nothing in it says that it was trained, so it isn't started anew"
    net = timm.create_model('test_resnet', num_classes=dls.c, norm_layer=GroupNorm1)
    learn = Learner(dls, net, CrossEntropyLossFlat())
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    x = dls.valid.one_batch()[0]
    with torch.no_grad(): was = net.eval()(x)
    learn.to_lslu(where='all')
    with torch.no_grad(): assert lslus(net) and deviation(net.eval()(x), was) < 1e-3
    fresh = vision_learner(dls, 'test_resnet', pretrained=False, cbs=LSLUCallback(where='all', fname=None))
    assert fresh.lslu.report.init == 'mixed'
