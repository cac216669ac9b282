"Bundles: real pictures through every backend, files that lie, and nothing that runs."
import csv
import hashlib
import json
import os
import pickle
import random
import re
import shutil
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from silkworm_app.serve.page.answers import facts
from silkworm_app.serve.advice import first_words, trust_warnings
from silkworm_app.serve.bundle import load_bundle, save_bundle
from silkworm_app.serve.card import bundle_card
from silkworm_app.serve.deploy import fuse_main
from silkworm_app.serve.format import BundleError
from silkworm_app.serve.int8 import quantise
from silkworm_app.serve.metrics import evaluate_probs, hardly_found
from silkworm_app.serve.net import Predictor, save_onnx, save_torch_export
from silkworm_app.serve.page.export import page_words
from silkworm_app.serve.reasons import Reason, reason_code
from silkworm_app.data.loaders import image_dls
from silkworm_app.data.imaging import Preprocess
from silkworm_app.act.fuse import fuse
from silkworm_app.act.lslu import LSLU
from silkworm_app.serve.onnx import ONNX_FORMAT, OnnxPredictor, _metadata
from silkworm_app.act.patch import lslu_model
from silkworm_app.act.weights import save_weights
from silkworm_app.serve.calibrate import fit_trust
from silkworm_app.serve.trust import Trust


def moved(model, seed=0):
    "Statistics and activations away from their start, so that fusing has something to do."
    torch.manual_seed(seed)
    for o in model.modules():
        if isinstance(o, nn.BatchNorm2d): o.running_mean.normal_(0, .1); o.running_var.uniform_(.5, 2)
        if isinstance(o, LSLU): nn.init.uniform_(o.alphas, .7, 1.3); nn.init.uniform_(o.biases, -.1, .1)
    return model.eval()


@pytest.fixture(scope='module')
def learn(sample_dir):
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    dls = image_dls(sample_dir, size=64, bs=16, num_workers=0)
    return Learner(dls, moved(lslu_model('vanillanet_5_x0_125', len(dls.vocab))), loss_func=CrossEntropyLossFlat())


@pytest.fixture(scope='module')
def bundle(learn, tmp_path_factory):
    return save_bundle(tmp_path_factory.mktemp('bundle') / 'b', learn, metrics={'valid': {'accuracy': .2}}, onnx=True)


def test_predicts_as_the_learner(learn, bundle):
    want, _ = learn.get_preds(dl=learn.dls.valid)
    files = [p for p, _ in learn.dls.splits.valid]
    for backend in ('torch', 'onnx'):
        got = load_bundle(bundle, backend).predict(files)
        np.testing.assert_allclose(got, want.numpy(), atol=1e-5)
        assert (got.argmax(1) == want.numpy().argmax(1)).all()


def test_learner_untouched_and_config_complete(learn, bundle):
    assert any(isinstance(m, LSLU) for m in learn.model.modules()) and any(isinstance(m, nn.BatchNorm2d) for m in learn.model.modules())
    c = load_bundle(bundle).config
    assert c['curves'] and c['fusion'] and c['metrics'] == {'valid': {'accuracy': .2}} and c['leak'] and c['versions']['torch']
    assert c['trust']['n'] == len(learn.dls.splits.valid)


def test_untrained_net_never_answers(learn, bundle):
    assert [d.label for d in load_bundle(bundle).decide([p for p, _ in learn.dls.splits.valid])] == [None] * len(learn.dls.splits.valid)


@pytest.mark.parametrize('arch,kw', [('vanillanet_5_x0_125', {}), ('resnet10t', dict(where='stem')), ('mobilenetv3_small_050', dict(where='none'))])
def test_onnx_on_real_photographs(hymenoptera_dir, tmp_path, arch, kw):
    files = sorted((hymenoptera_dir / 'valid').rglob('*.jpg'))[::8]
    model = moved(lslu_model(arch, 2, input_size=96, **kw))
    b = save_bundle(tmp_path / 'b', model, Preprocess(96), ['ants', 'bees'], onnx=True)
    with torch.no_grad(): want = model(torch.from_numpy(Preprocess(96).batch(files))).numpy()
    for p in (load_bundle(b, 'torch'), load_bundle(b, 'onnx'), OnnxPredictor(b / 'model.onnx')):
        got = p.logits(files)
        assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()
        assert (got.argmax(1) == want.argmax(1)).all()
    import onnx
    assert not [n for n in onnx.load(b / 'model.onnx').graph.node if n.op_type == 'BatchNormalization']


def test_onnx_needs_no_torch(bundle, learn):
    pic = learn.dls.splits.valid[0][0]
    code = f'''import sys
from silkworm_app.serve.onnx import OnnxPredictor
from silkworm_app.serve.predict import predict_main
p = OnnxPredictor({str(bundle / "model.onnx")!r})
p.decide({str(pic)!r}), p.predict({str(pic)!r})
for source in ({str(bundle / "model.onnx")!r}, {str(bundle)!r}): assert predict_main([source, {str(pic)!r}]) == 0
bad = [m for m in ("torch", "fastai", "timm", "onnx", "sklearn", "scipy", "matplotlib", "gradio") if m in sys.modules]
assert not bad, bad'''
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr


@pytest.mark.parametrize('file,call,more', [('model.onnx', 'onnx import OnnxPredictor as load', ()), ('', 'load import load_bundle as load', ('safetensors',))])
def test_what_the_manual_names_is_all_that_is_needed(file, call, more):
    "Of what pip installs nothing else is there"
    folder = Path(__file__).parent / 'stored_bundle'
    code = f'''import sys
allowed = {{"silkworm_app", "numpy", "PIL", "pillow_heif", "_pillow_heif", "onnxruntime", *{more}, *sys.stdlib_module_names}}
class Bare:
    def find_spec(self, name, *args):
        if name.split(".")[0] not in allowed: raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Bare())
from silkworm_app.serve.{call}
p = load({str(folder / "bundle" / file)!r})
print(p.backend, len(p.decide({str(min((folder / "pictures").iterdir()))!r})))'''
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert r.stdout == 'onnxruntime 1\n', r.stderr


def test_where_torch_is_missing(bundle, learn):
    "A page is served by the ONNX file, without a map; the backend torch is refused in a sentence"
    pic = str(learn.dls.splits.valid[0][0])
    code = f'''import sys
class Missing:
    def find_spec(self, name, *args):
        if name.split(".")[0] in ("torch", "timm", "fastai"): raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
from silkworm_app.serve.predict import predict_main
assert predict_main([{str(bundle)!r}, {pic!r}]) == 0 and predict_main([{str(bundle)!r}, {pic!r}, "--backend", "torch"]) == 2
from silkworm_app.serve.page.answers import answer, load_picture
from silkworm_app.serve.page.page import Page, looked
from silkworm_app.serve.page.server import fastest
page, im = Page(fastest({str(bundle)!r})), load_picture({pic!r})
assert looked(page.predictor, im, answer(page.predictor, [im])[0]) == (None, None)'''
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    assert f'silkworm-predict: the backend torch of {bundle} needs torch, which is not installed here: install it, or use the backend onnx' in r.stderr


def test_many_threads_agree(bundle, learn):
    files = [p for p, _ in learn.dls.splits.valid][:12]
    for backend in ('torch', 'onnx'):
        p = load_bundle(bundle, backend)
        want = p.predict(files)
        with ThreadPoolExecutor(8) as ex: got = list(ex.map(lambda i: p.predict(files[i % 12])[0], range(96)))
        np.testing.assert_allclose(got, want[np.arange(96) % 12], atol=1e-5)


def test_failed_save_keeps_the_old_bundle(bundle, learn, tmp_path, monkeypatch):
    d = tmp_path / 'b'
    shutil.copytree(bundle, d)
    before = {f.name: f.read_bytes() for f in d.iterdir() if f.is_file()}
    import silkworm_app.serve.bundle as B
    monkeypatch.setattr(B, 'save_onnx', lambda *a, **k: (_ for _ in ()).throw(OSError('disk full')))
    with pytest.raises(OSError, match='disk full'): save_bundle(d, learn, onnx=True)
    assert {f.name: f.read_bytes() for f in d.iterdir() if f.is_file()} == before
    assert [f.name for f in tmp_path.iterdir()] == ['b']


def test_what_others_put_beside_it_is_not_lost(bundle, learn, tmp_path):
    "A note in a bundle, and a folder of another program that has a config.json, too"
    d, other = tmp_path / 'b', tmp_path / 'other'
    shutil.copytree(bundle, d)
    (d / 'notes.txt').write_text('mine')
    other.mkdir(), (other / 'config.json').write_text('{"architectures": ["ViT"]}'), (other / 'model.safetensors').write_text('mine')
    with pytest.raises(BundleError, match='holds notes.txt, which is no part of it'): save_bundle(d, learn)
    with pytest.raises(BundleError, match='holds other files'): save_bundle(other, learn)
    assert (d / 'notes.txt').read_text() == (other / 'model.safetensors').read_text() == 'mine'


def test_names_of_classes_are_data(tmp_path):
    "Also where they look like folders, in what was measured, warned and said of them, and in the examples; folders are left out all the same"
    names = ['no /very/ sick', '/x', 'C:\\a\\b', 'data/a']
    y = np.tile(np.arange(4), 8)
    trust = fit_trust(np.eye(4)[(y + 1) % 4], None, y, names, leak=0.)
    metrics = dict(test=dict(accuracy=.5, per_class_n=dict.fromkeys(names, 1)))
    d = save_bundle(tmp_path / 'b', moved(lslu_model('vanillanet_5_x0_125', 4)), Preprocess(64), names, metrics, trust, dict(data_path='/home/jo/data/x'),
                    examples=[(np.zeros((9, 9, 3), np.uint8), names[0])])
    c = json.loads((d / 'config.json').read_text())
    assert c['classes'] == c['trust']['classes'] == list(c['metrics']['test']['per_class_n']) == names and list(c['example_classes'].values()) == names[:1]
    assert c['warnings'] == c['notes'] == [] and c['extra']['data_path'] == 'x'           # those of the trust hang on the risk, and are made from it
    assert (warned := trust_warnings(trust)) and all(w[1:] in (d / 'card.md').read_text() for w in warned)
    assert load_bundle(d).trust == trust and 'jo' not in (d / 'config.json').read_text()


def test_a_learner_without_pictures_is_compared_on_noise(learn, tmp_path):
    "As load_learner gives it; nothing of how long it took is kept"
    from fastai.learner import load_learner
    learn.export(tmp_path / 'learn.pkl')
    c = json.loads((save_bundle(tmp_path / 'b', load_learner(tmp_path / 'learn.pkl')) / 'config.json').read_text())
    assert c['fusion']['n'] == 4 and 'no validation pictures' in c['trust']['note'] and not {'latency', 'latency_ms'} & {*c, *c['fusion']}


def test_pictures_of_the_proof_are_those_of_the_run(sample_dir, tmp_path, monkeypatch, capsys):
    "By the settings beside the bundle; a folder that happens to have the name of theirs is another one"
    run = tmp_path / 'run'
    save_bundle(run / 'bundle', moved(lslu_model('vanillanet_5_x0_125', 2)), Preprocess(64), ['a', 'b'], extra=dict(data_path='pictures', settings=dict(data_path='pictures')))
    shutil.copytree(sample_dir, tmp_path / 'here/pictures')
    monkeypatch.chdir(tmp_path / 'here')
    def proved(source):
        fuse_main([str(source), '--out', str(tmp_path / 'eight'), '--format', 'onnx-int8'])
        out = capsys.readouterr()
        assert '--data' in out.err or 'Ranges are measured on' in out.out
        return 'Ranges' in out.out
    assert not proved(run / 'bundle')
    (run / 'settings.yaml').write_text(f'data_path: {sample_dir}')
    assert proved(run / 'bundle')


def test_pictures_that_a_run_left_out_are_no_proof(sample_dir, tmp_path, capsys):
    "A run with --on_bad skip is fused without a word; who names a folder hears what is wrong with it"
    save_bundle(tmp_path / 'run/bundle', moved(lslu_model('vanillanet_5_x0_125', 2)), Preprocess(64), ['a', 'b'])
    shutil.copytree(sample_dir / 'valid', tmp_path / 'pictures')
    next((tmp_path / 'pictures').rglob('*.jpg')).write_bytes(b'no picture')
    (tmp_path / 'run/settings.yaml').write_text(f'data_path: {tmp_path}/pictures')
    fuse = lambda *more: fuse_main([str(tmp_path / 'run'), '--out', str(tmp_path / 'out'), *more])
    assert fuse() == 0, capsys.readouterr().err
    assert fuse('--data', str(tmp_path / 'pictures')) == 2 and '.jpg' in capsys.readouterr().err


def test_the_command_that_a_message_names_works(tmp_path, capsys):
    d = save_bundle(tmp_path / 'b', moved(lslu_model('vanillanet_5_x0_125', 2)), Preprocess(64), ['a', 'b'], examples=[np.zeros((9, 9, 3), np.uint8)])
    with pytest.raises(BundleError, match='make it with silkworm-fuse') as e: load_bundle(d, 'onnx')
    command = str(e.value).split('silkworm-fuse ')[1].split(',')[0]
    assert fuse_main(command.split()) == 0, capsys.readouterr().err
    assert load_bundle(d, 'onnx').classes == ['a', 'b'] and (d / 'examples/00.jpg').is_file()


@pytest.mark.parametrize('form', ['safetensors', 'onnx', 'torch-export'])
def test_a_full_disk_is_told_by_the_name_of_what_was_written(tmp_path, form):
    "The errors of safetensors and torch have no number: they ended in tracebacks, and torch.export ended the process"
    d = save_bundle(tmp_path / 'b', moved(lslu_model('vanillanet_5_x0_125', 2)), Preprocess(64), ['a', 'b'])
    (tmp_path / 'to').mkdir()
    limited = 'import resource, sys; from silkworm_app.cli import fuse_main; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); sys.exit(fuse_main(sys.argv[1:]))'
    r = subprocess.run([sys.executable, '-c', limited, str(d), '--out', str(tmp_path / 'to'), '--format', form], capture_output=True, text=True)
    last = r.stderr.strip().splitlines()[-1]
    assert r.returncode == 2 and last == f'silkworm-fuse: {tmp_path}/to{"/model.pt2" if form == "torch-export" else ""}: the disk is full or a file limit is reached', r.stderr
    assert not list((tmp_path / 'to').iterdir()) and not list(tmp_path.glob('.to*'))


class Plain(nn.Module):
    "A net that no package knows."
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(3, 2)

    def forward(self, x): return self.last(x.mean((2, 3)))


class Apart(Plain):
    "Attention over five dimensions, as in NesT and Hiera: torch.onnx knows it over four."
    def forward(self, x):
        x = torch.nn.functional.scaled_dot_product_attention(*[x[:, None]]*3)
        return self.last(x.mean((1, 3, 4)))


def test_a_net_that_torch_cannot_write_as_onnx(tmp_path, monkeypatch, capsys):
    "It ended in torch's report of several pages, after the training"
    from silkworm_app.cli import train_main
    from silkworm_app.data.sample import draw_sample
    from silkworm_app.serve import bundle
    with pytest.raises(BundleError, match="^torch can't write this Apart as ONNX: Error when translating node %scaled_dot_product_attention") as e: save_onnx(tmp_path / 'no.onnx', Apart(), ['a', 'b'], Preprocess(32))
    assert '\n' not in str(e.value) and not list(tmp_path.iterdir())
    def refuse(*args): raise type(e.value)("torch can't write this net as ONNX: no such step")
    monkeypatch.setattr(bundle, 'save_onnx', refuse)
    options = '--pretrained false --epochs 1 --log_dir none --device cpu --num_workers 0 --model vanillanet_5_x0_125 --group none'.split()
    assert train_main(['--data_path', str(draw_sample(tmp_path / 'set', n_per_class=5, size=32)), '--output_dir', str(tmp_path / 'run'), *options]) == 0
    assert "Warning: torch can't write this net as ONNX: no such step; a bundle without ONNX is written" in (said := capsys.readouterr()).err and 'ONNX file against' not in said.out
    assert load_bundle(tmp_path / 'run/bundle').backend == 'torch' and not (tmp_path / 'run/bundle/model.onnx').exists()


def test_a_net_of_another_make_is_deployable_already(tmp_path, capsys):
    d = save_bundle(tmp_path / 'b', Plain(), Preprocess(32), ['a', 'b'])
    assert fuse_main([str(d), '--out', str(tmp_path / 'out')]) == 2
    assert 'deployable as it is' in (err := capsys.readouterr().err) and 'backend' not in err


def test_nothing_stays_on_the_net_of_the_caller():
    net = Plain()
    p = Predictor(net, ['a', 'b'], Preprocess(32))
    x = np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype(np.float32)
    np.testing.assert_allclose(p.run(x)[1], x.mean((2, 3)), atol=1e-6)
    del p
    assert not net.last._forward_pre_hooks


def test_a_net_of_several_branches():
    "Its last features are a list: what goes into the classifiers stands for them, and it has no map to show"
    import timm
    from silkworm_app.serve.explain import grad_cam
    torch.manual_seed(0)
    net = timm.create_model('crossvit_9_240', num_classes=2).eval()
    x = np.random.default_rng(0).normal(size=(2, 3, 240, 240)).astype(np.float32)
    logits, features = Predictor(net, ['a', 'b'], Preprocess(240)).run(x)
    with torch.no_grad(): np.testing.assert_allclose(logits, net(torch.from_numpy(x)).numpy(), atol=1e-5)
    assert features.shape == (2, sum(h.in_features for h in net.head))
    with pytest.raises(ValueError, match='Grad-CAM needs a map'): grad_cam(net, x[0])


def test_pictures_that_come_one_by_one(bundle, learn):
    p, files = load_bundle(bundle), [p for p, _ in learn.dls.splits.valid][:3]
    assert [d.probs for d in p.decide(f for f in files)] == [d.probs for d in p.decide(files)] and p.decide(iter(())) == []


def test_many_examples_can_be_replaced(tmp_path):
    pics, net = [np.full((9, 9, 3), i, np.uint8) for i in range(101)], moved(lslu_model('vanillanet_5_x0_125', 2))
    for n in (101, 1): d = save_bundle(tmp_path / 'b', net, Preprocess(64), ['a', 'b'], examples=pics[:n])
    assert [f.name for f in (d / 'examples').iterdir()] == ['00.jpg']
    for own in ('mine.jpg', '20260501_093000.jpg'):
        (d / 'examples' / own).write_bytes(b'')
        with pytest.raises(BundleError, match=f'{own}, which is no part of it'): save_bundle(d, net, Preprocess(64), ['a', 'b'])
        (d / 'examples' / own).unlink()


def test_warnings_are_those_of_the_risk_that_is_asked(tmp_path):
    "Five photographs of a class: at a risk of .1 nothing can be told, at .2 something"
    y = np.repeat([0, 1], 5)
    trust = fit_trust(4 * np.eye(2)[y] + np.random.default_rng(0).normal(0, .1, (10, 2)), None, y, ['a', 'b'], leak=0.)
    d = save_bundle(tmp_path / 'b', moved(lslu_model('vanillanet_5_x0_125', 2)), Preprocess(64), ['a', 'b'], trust=trust)
    for risk, codes in ((None, ['refuses_few']), (.2, [])):
        f = facts(load_bundle(d, risk=risk))
        assert [n['code'] for n in f['notes']] == codes
    assert "can't tell anything about any picture: of each class 9 photographs" in (d / 'card.md').read_text()


def test_what_must_be_known_first_goes_with_every_file(tmp_path, capsys):
    "As the page does, the command says it, of a bundle and of the ONNX file alone"
    from silkworm_app.serve.predict import predict_main
    leak, warned = dict(test_seen_in_train=.31, distinct=dict(a=30, b=20)), [f'4 file(s) were skipped: {tmp_path}/pictures/a.mp4 is a video']
    known = [reason_code(Reason('learned', weights=f'{tmp_path}/first.pth', n=3, of=9, part='test'))]
    net, trust = moved(lslu_model('vanillanet_5_x0_125', 2)), Trust(['a', 'b'], scores=dict(a=[.1] * 20, b=[.1] * 20), calibrated=True, note='')
    d = save_bundle(tmp_path / 'b', net, Preprocess(64), ['a', 'b'], trust=trust, extra=dict(drawn=True), inherit=dict(leak=leak, warnings=warned, notes=known), onnx=True)
    alone, whole = facts(OnnxPredictor(d / 'model.onnx')), facts(load_bundle(d))
    assert [n['code'] for n in alone['notes']] == ['drawn', 'learned'] and '- 4 file(s) were skipped: a.mp4 is a video.' in (d / 'card.md').read_text().lower()
    assert all(alone[k] == whole[k] for k in ('notes', 'todo', 'leak'))
    Image.new('RGB', (30, 30)).save(tmp_path / 'p.png')
    for source in (d, d / 'model.onnx'):
        assert predict_main([str(source), str(tmp_path / 'p.png')]) == 0
        err = capsys.readouterr().err
        assert 'synthetic pictures' in err and 'the weights of first.pth were trained on 3 of the 9 test pictures' in err and 'a video' not in err
    assert fuse_main([str(d), '--out', str(tmp_path / 'pt2'), '--format', 'torch-export']) == 0
    torch.export.load(tmp_path / 'pt2/model.pt2', extra_files=(held := dict(about='', notes='')))
    assert json.loads(held['about']) == dict(leak=leak, extra=dict(drawn=True)) and json.loads(held['notes']) == alone['notes'][1:]


def test_what_is_said_first_is_said_once_and_in_every_language():
    "Of a class hardly found, of one answer to all, of what a start had learned; what is said of files and cuts stands on the card alone"
    names = ['flacherie', 'grasserie', 'healthy', 'pebrine']
    y = np.repeat(np.arange(4), (30, 30, 3, 2))
    z = 6 * np.eye(4)[np.where(y == 2, 0, y)] + np.random.default_rng(0).normal(size=(65, 4))          # no healthy one is found
    trust, leak = fit_trust(z, None, y, names, leak=0.), dict(test_seen_in_train=.1, valid_seen_in_train=.2)
    files, start = ['4 file(s) were skipped: a.mp4 is a video'], Reason('learned', weights='a.pth', n=3, of=9, part='validation')
    for k, said in enumerate((z, np.where(y[:, None] == 3, -z, z), 9 * np.eye(4)[np.zeros_like(y)])):                # of pebrine all, nothing, and one answer to all
        m = evaluate_probs(said, y, names, logits=True)
        found = hardly_found(m)
        c = dict(arch='x', size=9, classes=names, metrics=dict(test=m), leak=leak, trust=trust.to_dict(), warnings=files, notes=list(map(reason_code, [*found, start])))
        p = SimpleNamespace(config=c, trust=trust, classes=names)
        f = facts(p)
        assert [n['code'] for n in f['notes']] == ['hardly_found', *[[], ['few_found'], ['one_answer']][k], 'learned']
        assert f['notes'][0]['values']['label'] == 'healthy' and (k != 1 or f['notes'][1]['values']['found'] == dict(pebrine=[0, 2]))   # which the trust doesn't know
        for lang in ('hi', 'zh'):
            banner = page_words(p, lang)['banner']
            assert len(banner) == len(f['notes']) and not any(re.search('[A-Za-z]{3}', b) for b in banner), banner
        assert 'of the test' not in page_words(p, 'en')['banner'][-1]        # they were those of the validation
        card = bundle_card(c)
        assert sum('found' in o and 'ealthy' in o for o in card.splitlines() if o.startswith('- ')) == 1 and files[0][2:] in card and 'were trained on 3 of the 9' in card
    about = lambda notes: facts(SimpleNamespace(config=c | dict(notes=list(map(reason_code, notes))), trust=trust, classes=names))['notes']
    assert [n['code'] for n in about(found)] == ['leaked', 'leaked_valid', 'hardly_found', 'one_answer']   # of the same pictures `learned` says why
    assert [n['values']['of'] for n in about([start, Reason('learned', weights='a.pth', n=5, of=7, part='test')]) if n['code'] == 'learned'] == [7]
    untried = fit_trust(z[:63, :], None, y[:63], names, leak=0.)                              # on no pebrine
    of = lambda *labels: [o.values['labels'] for o in first_words(dict(notes=[reason_code(Reason('untested', labels=list(labels)))]), untried)[-2:] if 'labels' in o.values]
    assert of('healthy', 'pebrine') == [['pebrine'], ['healthy']] and of('pebrine') == [['pebrine']]


def test_notes_of_a_training_go_into_the_bundle(learn, tmp_path):
    "Those with a code for the page, in every language; the others for the card"
    learn.dls.splits.warnings, was = ['2 file(s) were skipped', Reason('untested', labels=['b'])], learn.dls.splits.warnings
    try: d = save_bundle(tmp_path / 'b', learn)
    finally: learn.dls.splits.warnings = was
    c = json.loads((d / 'config.json').read_text())
    assert c['warnings'] == ['2 file(s) were skipped'] and [n['values'] for n in c['notes']] == [dict(labels=['b'])]
    assert [n['code'] for n in facts(load_bundle(d))['notes']][-1] == 'untested'
    (d / 'config.json').write_text(json.dumps(c | dict(notes=[dict(code='of a later version', values={}, text='said')])))
    assert facts(load_bundle(d))['notes'][-1] == dict(code='', values={}, text='said')
    for bad in (dict(code='other', values={}), dict(code='untested', values=dict(labels=[['b']])), dict(code='one_answer', values=dict(label={})),
                dict(code='leaked', values=dict(part=10**400)), dict(code='few_found', values=dict(found=dict(b=[1]), unit='')), 'a\nb'):
        (d / 'config.json').write_text(json.dumps(c | dict(notes=[bad])))
        assert 'no reason that is known here' in refused(d)


def test_files_of_before_there_were_notes_say_what_they_said(copy, tmp_path):
    "Among their warnings stands what the page and the command must say; fusing them loses none of it"
    known = ['the net says b to every picture, so it has learned nothing', 'less than half is found of b (0 % of 3 pictures): another answer does not exclude it',
             'nothing was there to test b on: whether the net finds it is not known', 'the weights of a.pth were trained on 3 of the 9 test pictures: what these say of the net is too good']
    d, files = copy(), ['4 file(s) were skipped']
    c = json.loads((d / 'config.json').read_text())
    del c['notes']
    (d / 'config.json').write_text(json.dumps(c | dict(warnings=files + known)))
    meta = {k: json.dumps(v) for k, v in {'silkworm_app.format': ONNX_FORMAT, 'classes': ['a'], 'preprocess': {}, 'about': dict(warnings=files + known)}.items()}
    assert [n['text'] for n in _metadata(meta)[0]['notes']] == known
    for again in ('one', 'two'):
        p = load_bundle(d, 'torch')
        assert [n['text'] for n in facts(p)['notes']][-4:] == known and p.config['warnings'] == files
        assert fuse_main([str(d), '--out', str(tmp_path / again)]) == 0
        d = tmp_path / again
        card = (d / 'card.md').read_text().lower()
        assert all(card.count(w) == 1 for w in files + known)


# ---- files that lie ----

def rehash(d):
    "Make the hashes of the config fit what lies there, as somebody would who forges a bundle."
    c = json.loads((d / 'config.json').read_text())
    for n in list(c['files']):
        data = (d / n).read_bytes()
        c['files'][n] = dict(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    (d / 'config.json').write_text(json.dumps(c))


@pytest.fixture
def copy(bundle, tmp_path):
    def make():
        shutil.rmtree(tmp_path / 'c', ignore_errors=True)
        shutil.copytree(bundle, tmp_path / 'c')
        return tmp_path / 'c'
    return make


def refused(d, backend='torch'):
    with pytest.raises(BundleError) as e: load_bundle(d, backend)
    assert '\n' not in str(e.value) and str(d.name) in str(e.value), e.value
    return str(e.value)


def test_what_was_answered_is_kept_when_it_is_interrupted(bundle, learn, tmp_path, monkeypatch, capsys):
    from silkworm_app.cli import predict_main
    real = Predictor.decide_each
    def two(self, files):
        yield from real(self, files[:2])
        raise KeyboardInterrupt
    monkeypatch.setattr(Predictor, 'decide_each', two)
    files = [str(p) for p, _ in learn.dls.splits.valid[:5]]
    assert predict_main([str(bundle), *files, '--backend', 'torch', '--csv', str(tmp_path / 'a.csv')]) == 130
    assert 'interrupted' in capsys.readouterr().err
    with open(tmp_path / 'a.csv', encoding='utf-8-sig') as f: assert [r['file'] for r in csv.DictReader(f)] == files[:2]


@pytest.mark.parametrize('name', ['model.safetensors', 'model.onnx', 'trust.safetensors'])
def test_damaged_files(copy, name):
    rng = random.Random(0)
    for i in range(60):
        d = copy()
        f = d / name
        data = bytearray(f.read_bytes())
        how = rng.choice(['cut', 'flip', 'grow', 'empty', 'head'])
        if how == 'cut': data = data[:rng.randrange(len(data))]
        elif how == 'flip': data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif how == 'grow': data += os.urandom(rng.randrange(1, 50))
        elif how == 'empty': data = b''
        else: data[:8] = struct.pack('<Q', rng.choice([0, 1, len(data), 1 << 40, (1 << 64) - 1]))
        f.write_bytes(data)
        refused(d, 'onnx' if name == 'model.onnx' else 'torch')
        rehash(d)                       # a forger fixes the hash: a readable file may load, anything else is one sentence
        try: load_bundle(d, 'onnx' if name == 'model.onnx' else 'torch')
        except BundleError as e: assert '\n' not in str(e)


@pytest.mark.parametrize('leak', [dict(distinct=5), dict(distinct=dict(ants='many')), dict(scenes=dict(ants='many')), dict(test_seen_in_train='x'),
                                  dict(valid_seen_in_train='x'), dict(test_seen_in_train=10**400)])
def test_what_is_said_of_a_leak_is_numbers(copy, leak):
    from silkworm_app.cli import predict_main
    d = copy()
    c = json.loads((d / 'config.json').read_text()) | dict(leak=leak)
    (d / 'config.json').write_text(json.dumps(c))
    assert 'leak must hold numbers' in refused(d) and predict_main([str(d), str(d / 'a.jpg')]) == 2
    meta = {k: json.dumps(v) for k, v in {'silkworm_app.format': ONNX_FORMAT, 'classes': ['a'], 'preprocess': {}, 'about': dict(leak=leak)}.items()}
    with pytest.raises(ValueError, match='leak must hold numbers'): _metadata(meta)


def test_a_page_whose_config_lacks_what_its_card_says(copy, monkeypatch, capsys):
    from silkworm_app.serve.page import server
    monkeypatch.setattr(server, 'serve', lambda *args, **kwargs: pytest.fail('it was served'))
    d = copy()
    c = json.loads((d / 'config.json').read_text())
    c.pop('size')
    (d / 'config.json').write_text(json.dumps(c))
    assert server.main(['--bundle', str(d), '--port', '0']) == 2 and f"{d}: its config.json is not as a bundle's is" in capsys.readouterr().err


@pytest.mark.parametrize('name', ['model.safetensors', 'model.onnx'])
def test_each_file_is_the_one_that_was_saved(copy, tmp_path, name):
    "Also where the config gives no hash, a wrong length or nonsense for it, and where it is a link"
    def said(entry):
        d = copy()
        c = json.loads((d / 'config.json').read_text())
        c['files'][name] = entry(c['files'][name])
        (d / 'config.json').write_text(json.dumps(c))
        with pytest.raises(BundleError) as e: load_bundle(d, 'onnx')
        return str(e.value)
    for wrong in ({}, None, 'abc', dict(sha256=5)): assert f'gives no SHA-256 for {name}' in said(lambda _: wrong)
    assert 'bytes instead of 1' in said(lambda e: e | dict(bytes=1))
    d = copy()
    (d / name).rename(tmp_path / 'elsewhere')
    (d / name).symlink_to(tmp_path / 'elsewhere')
    with pytest.raises(BundleError, match=f'{name} is missing from the bundle'): load_bundle(d, 'onnx')


@pytest.mark.parametrize('text', [b'silkworm_app.format', b'logits'])
def test_onnx_names_that_are_no_text(copy, text):
    d = copy()
    f = d / 'model.onnx'
    assert text in (data := f.read_bytes())
    f.write_bytes(data.replace(text, b'\xff' + text[1:]))
    rehash(d)
    with pytest.raises(BundleError, match='model.onnx'): load_bundle(d, 'onnx')


def test_onnx_metadata_of_another_shape(copy):
    import onnx
    from silkworm_app.serve.onnx import onnx_metadata
    f = copy() / 'model.onnx'
    m, p = onnx.load(f), OnnxPredictor(f)
    trust = fit_trust(np.eye(2)[[0, 1] * 30], np.random.default_rng(0).normal(size=(60, 4)), [0, 1] * 30, ['a', 'b'])
    meta = onnx_metadata(p.classes, p.preprocess, trust)
    entry = json.loads(meta['trust'])
    entry['arrays']['means'] |= dict(shape=[], data=entry['arrays']['means']['data'][:4] + 'AA==')
    onnx.helper.set_model_props(m, meta | dict(trust=json.dumps(entry)))
    onnx.save(m, f)
    with pytest.raises(BundleError, match='wrong metadata'): OnnxPredictor(f)


def mutate(o, rng):
    "Change one random place of a JSON value."
    junk = [None, True, -1, 0, 1e300, 10**12, 'x' * 300, '../../etc/passwd', 'hf_hub:a/b', [], {}, [[[[]]]], {'pretrained': True}, 'nan', [1, 2, 3]]
    if isinstance(o, dict) and o and rng.random() < .9:
        k = rng.choice(list(o))
        if rng.random() < .1: return {a: b for a, b in o.items() if a != k}
        return {**o, k: mutate(o[k], rng)}
    if isinstance(o, list) and o and rng.random() < .9:
        i = rng.randrange(len(o))
        return o[:i] + [mutate(o[i], rng)] + o[i + 1:]
    return rng.choice(junk)


@pytest.mark.timeout(120)
def test_forged_configs(copy):
    rng, d = random.Random(1), copy()
    good = json.loads((d / 'config.json').read_text())
    good['curves'] = []
    loaded = 0
    for i in range(300):
        c = good
        for _ in range(rng.choice([1, 1, 3])): c = mutate(c, rng) if isinstance(c, dict) else c
        (d / 'config.json').write_text(json.dumps(c))
        try: p = load_bundle(d, 'torch'); p.decide(np.zeros((20, 20, 3), np.uint8)); loaded += 1
        except BundleError as e: assert '\n' not in str(e) and len(str(e)) < 600
    assert loaded < 250


def test_foreign_things(copy, tmp_path):
    for text in ('', '{', '[]', 'null', '{"a": 1}', '{"format": 3}', '[' * 100000, '{"_name_or_path": "bert"}'):
        d = copy()
        (d / 'config.json').write_text(text)
        refused(d)
    d = copy(); (d / 'config.json').write_bytes(b'\xff\xfe\x00'); refused(d)
    d = copy(); (d / 'config.json').unlink(); refused(d)
    d = copy(); (d / 'model.safetensors').unlink(); refused(d)
    d = copy(); (d / 'model.safetensors').unlink(); os.symlink('/etc/passwd', d / 'model.safetensors'); refused(d)
    d = copy()
    for make in (lambda f: torch.save({'a': torch.ones(1)}, f), lambda f: torch.save({'a': torch.ones(1)}, f, _use_new_zipfile_serialization=False), lambda f: f.write_bytes(pickle.dumps({}))):
        make(d / 'model.safetensors'); rehash(d)
        assert 'pickle or zip' in refused(d)
    with pytest.raises(BundleError, match='does not exist'): load_bundle(tmp_path / 'none')
    with pytest.raises(BundleError, match='backend'): load_bundle(d, 'tensorflow')
    f = tmp_path / 'learner.pkl'; f.write_bytes(pickle.dumps({}))
    with pytest.raises(BundleError, match='pickle or zip'): load_bundle(f)


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, torch.float16])
def test_a_net_of_another_type_is_served_in_32_bits(tmp_path, dtype):
    net = moved(lslu_model('vanillanet_5_x0_125', 2)).to(dtype)
    x = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    for n in (net, fuse(net)):
        b = save_bundle(tmp_path / 'b', n, Preprocess(64), ['ants', 'bees'], onnx=n is not net)
        with torch.no_grad(): want = deepcopy(n).float()(x).numpy()
        for p in (load_bundle(b, 'torch'), load_bundle(b)): assert np.abs(p.run(x.numpy())[0] - want).max() <= 1e-4 * np.abs(want).max()
    assert {p.dtype for p in net.parameters()} == {dtype}


def test_a_loaded_net_has_the_memory_format_of_the_fused_one(tmp_path):
    net = lslu_model('vanillanet_5_x0_125', 2)       # with one kernel in another format all its maps were, and it took six times as long
    p = load_bundle(save_bundle(tmp_path / 'b', net, Preprocess(64), ['ants', 'bees']), 'torch')
    for a, b in zip(p.model.parameters(), fuse(net).parameters(), strict=True): assert a.stride() == b.stride()


def test_files_are_written_without_a_warning(tmp_path, recwarn, caplog):
    "By a net with what onnxruntime warns of, and a kernel of five dimensions, which can't be read in pairs"
    solid = [nn.Unflatten(1, (1, 8)), nn.Conv3d(1, 1, 3, padding=1), nn.Flatten(1, 2), nn.ReLU()]
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), *solid, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(8), nn.Linear(8, 2))
    file, x = save_onnx(tmp_path / 'a.onnx', net, ['a', 'b'], Preprocess(32)), np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype(np.float32)
    p = OnnxPredictor(quantise(file, x, tmp_path / 'b.onnx'))
    assert p.bits == 8 and np.abs(p.run(x)[0] - OnnxPredictor(file).run(x)[0]).max() < .1
    save_torch_export(tmp_path / 'c.pt2', net, ['a', 'b'], Preprocess(32))
    assert not recwarn.list and not [r for r in caplog.records if r.levelname in ('WARNING', 'ERROR')]


@pytest.mark.parametrize('wrap', [nn.DataParallel, lambda n: torch.compile(n, backend='eager'), 'weight_norm'])
def test_what_stands_around_a_net_or_its_weights_stays_out_of_its_bundle(tmp_path, wrap):
    net = moved(lslu_model('test_resnet', 2, where='stem', input_size=64))
    x = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(): want = net(x).numpy()
    if wrap == 'weight_norm': torch.nn.utils.parametrizations.weight_norm(net.layer1[0].conv1)
    else: net = wrap(net)
    p = load_bundle(save_bundle(tmp_path / 'b', net, Preprocess(64), ['ants', 'bees']), 'torch')
    assert p.config['fuse_plan'] and not [m for m in p.model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert np.abs(p.run(x.numpy())[0] - want).max() <= 1e-4 * np.abs(want).max()


@pytest.mark.parametrize('arch,kw,says', [('test_resnet', dict(in_chans=1), "can't be asked about a picture of 64 pixels"), ('vit_tiny_patch16_224', {}, "can't be asked about a picture of 64 pixels"),
                                          ('test_resnet', dict(inf=True), 'no finite numbers')])
@pytest.mark.parametrize('build', [lambda arch, **kw: lslu_model(arch, 2, where='none', **kw), lambda arch, **kw: timm.create_model(arch, num_classes=2, **kw)])
def test_a_net_that_can_not_be_served_is_refused_in_a_sentence(tmp_path, arch, kw, says, build):
    net = build(arch, **{k: v for k, v in kw.items() if k != 'inf'}).eval()
    if 'inf' in kw: net.get_classifier().bias.data[0] = float('inf')
    for n in (net, fuse(net)) if says.startswith('can') else (net,):
        with pytest.raises(BundleError, match=says): save_bundle(tmp_path / 'b', n, Preprocess(64), ['ants', 'bees'])
        if says.startswith('can'):
            for save in (save_onnx, save_torch_export):
                with pytest.raises(BundleError, match=says): save(tmp_path / 'file', n, ['ants', 'bees'], Preprocess(64))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('form', ['safetensors', 'torch-export'])
@pytest.mark.parametrize('make', [lambda n: n, fuse])
def test_fuse_refuses_a_net_of_grey_pictures_and_makes_no_folder(tmp_path, capsys, form, make):
    file = save_weights(make(lslu_model('test_resnet', 2, in_chans=1, where='none').eval()), tmp_path / 'w.safetensors')
    assert fuse_main([str(file), '--classes', 'ants,bees', '--input_size', '64', '--out', str(tmp_path / 'out' / 'here'), '--format', form]) == 2
    assert "ResNet can't be asked about a picture of 64 pixels in colour" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [file]


def test_loaders_of_grey_pictures_are_refused_for_what_they_are(learn, tmp_path):
    grey = SimpleNamespace(model=learn.model, dls=SimpleNamespace(vocab=learn.dls.vocab, loaders=[None, [(torch.zeros(2, 1, 64, 64), torch.zeros(2, dtype=torch.long))]]))
    with pytest.raises(BundleError, match='pictures of three colours, and these have 1: use the net itself'): save_bundle(tmp_path / 'b', grey)


def test_a_size_that_the_net_does_not_take(tmp_path):
    "A config that was changed by hand"
    b = save_bundle(tmp_path / 'b', lslu_model('vit_tiny_patch16_224', 2, where='none'), Preprocess(224), ['ants', 'bees'])
    c = json.loads((b / 'config.json').read_text())
    c['preprocess']['size'] = 64
    (b / 'config.json').write_text(json.dumps(c))
    assert 'does not run on pictures of 64 pixels' in refused(b)


def test_trust_of_other_classes(learn, tmp_path):
    t = fit_trust(np.eye(2), None, [0, 1], ['a', 'b'])
    with pytest.raises(BundleError, match='trust is for the classes a, b'): save_bundle(tmp_path / 'x', learn, trust=t)


def test_onnx_reads_no_other_file(tmp_path, monkeypatch, copy):
    "An ONNX file may point to weights in another file; the predictor opens none, not even beside it or in the working directory."
    import onnx
    d = copy()
    onnx.save(onnx.load(d / 'model.onnx'), d / 'model.onnx', save_as_external_data=True, location='beside.bin', size_threshold=16)
    assert (d / 'beside.bin').stat().st_size > 1000
    monkeypatch.chdir(d)
    with pytest.raises(BundleError, match='model.onnx'): OnnxPredictor('model.onnx')
    rehash(d)
    refused(d, 'onnx')


EVIL = '''
import sys
seen = []
def hook(event, args):
    if event in ('pickle.find_class', 'subprocess.Popen', 'os.system', 'os.exec', 'socket.connect', 'socket.getaddrinfo', 'marshal.loads') and watching: seen.append((event, str(args)[:200]))
    if event == 'open' and watching and 'secret' in str(args[0]): seen.append((event, str(args[0])))
watching = False
sys.addaudithook(hook)
from silkworm_app.serve.load import load_bundle
from silkworm_app.serve.format import BundleError
from silkworm_app.serve.onnx import OnnxPredictor
import numpy as np, pathlib, warnings, torch.onnx
load_bundle(sys.argv[1], 'torch').model       # all imports done
load_bundle(sys.argv[1], 'onnx').decide(np.zeros((30, 30, 3), np.uint8))
watching = True
n = 0
for d in sorted(pathlib.Path(sys.argv[2]).iterdir()):
    for backend in ('torch', 'onnx'):
        try: load_bundle(d, backend).decide(np.zeros((30, 30, 3), np.uint8))
        except BundleError: n += 1
watching = False
print(n, seen)
'''


def test_executes_nothing(bundle, tmp_path):
    "Bundles that try: no pickle is opened, no process started, no address looked up, no file outside read."
    class Boom:
        def __reduce__(self): return (os.system, (f'touch {tmp_path}/pwned',))
    folder = tmp_path / 'evil'
    folder.mkdir()
    (tmp_path / 'secret.txt').write_text('secret')

    def evil(name, change=None, file=None, data=None):
        d = folder / name
        shutil.copytree(bundle, d)
        if file: (d / file).write_bytes(data); rehash(d)
        c = json.loads((d / 'config.json').read_text())
        if change: change(c)
        (d / 'config.json').write_text(json.dumps(c))
    evil('pickle', file='model.safetensors', data=pickle.dumps(Boom()))
    evil('pickle_trust', file='trust.safetensors', data=pickle.dumps(Boom()))
    evil('pickle_onnx', file='model.onnx', data=pickle.dumps(Boom()))
    kw = lambda **k: lambda c: c["net_spec"]['kwargs'].update(k)
    evil('pretrained', kw(pretrained=True))
    evil('overlay', kw(pretrained_cfg_overlay=dict(file=f'{tmp_path}/secret.txt')))
    evil('checkpoint', kw(checkpoint_path=f'{tmp_path}/secret.txt'))
    evil('cfg', kw(pretrained_cfg=dict(url='http://127.0.0.1:9/x')))
    evil('arch', lambda c: c["net_spec"].update(arch='hf-hub:evil/net'))
    evil('arch2', lambda c: c["net_spec"].update(arch='local-dir:' + str(tmp_path)))
    evil('files', lambda c: c['files'].update({f'{tmp_path}/secret.txt': c['files']['model.safetensors']}))
    evil('files2', lambda c: c['files'].update({'../../secret.txt': c['files']['model.safetensors']}))
    evil('examples', lambda c: c['files'].update({'examples/../../../secret.txt': c['files']['model.safetensors']}))
    r = subprocess.run([sys.executable, '-c', EVIL, str(bundle), str(folder)], capture_output=True, text=True, env={**os.environ, 'HF_HUB_OFFLINE': '0'})
    assert r.returncode == 0, r.stderr[-2000:]
    n, seen = r.stdout.strip().splitlines()[-1].split(' ', 1)
    assert seen == '[]' and not (tmp_path / 'pwned').exists(), seen
    assert int(n) >= 22, n            # 12 forgeries, 2 backends; a wrong model.onnx matters only to onnx


@pytest.mark.parametrize('backend', ['torch', 'onnx'])
def test_a_stored_bundle_gives_the_same_answers(backend):
    "Its answers were written down by the code that saved it."
    folder = Path(__file__).parent / 'stored_bundle'
    want, pictures = json.loads((folder / 'answers.json').read_text(encoding='utf-8')), sorted((folder / 'pictures').iterdir())
    p = load_bundle(folder / 'bundle', backend)
    assert len(notes := [n['text'] for n in facts(p)['notes']]) == len({*notes})  # said once, at today's risk
    assert np.abs(p.logits(pictures) - want['logits']).max() < 1e-4
    got = p.decide(pictures)
    assert [d.kind for d in got] == want['kinds'] and [d.labels for d in got] == want['labels'] and [[str(r) for r in d.reasons] for d in got] == want['reasons']
    assert np.allclose([d.prob for d in got], want['prob'], atol=1e-5) and np.allclose([d.distance for d in got], want['distance'], atol=1e-3)


def test_a_stored_bundle_can_be_saved_anew(tmp_path):
    folder = Path(__file__).parent / 'stored_bundle'
    assert fuse_main([str(folder / 'bundle'), '--out', str(tmp_path / 'new'), '--data', str(folder / 'pictures')]) == 0
    old, new = (load_bundle(f, 'torch') for f in (folder / 'bundle', tmp_path / 'new'))
    pictures = sorted((folder / 'pictures').iterdir())
    assert np.abs(old.logits(pictures) - new.logits(pictures)).max() < 1e-5
    assert [str(d) for d in old.decide(pictures)] == [str(d) for d in new.decide(pictures)]


def test_a_bundle_of_a_net_with_a_new_classifier(tmp_path):
    net = lslu_model('vanillanet_5_x0_125', 10, stem_stride=2).eval()
    net.reset_classifier(3)
    dest = save_bundle(tmp_path/'b', net.eval(), Preprocess(32), ['a', 'b', 'c'], trust=Trust(['a', 'b', 'c']))
    assert len(load_bundle(dest).classes) == 3


def test_torch_needs_no_onnx_file(bundle, tmp_path):
    shutil.copytree(bundle, tmp_path/'b')
    (tmp_path/'b/model.onnx').unlink()
    assert load_bundle(tmp_path/'b', 'torch').backend == 'torch'
    with pytest.raises(BundleError, match='model.onnx is missing'): load_bundle(tmp_path/'b')
