"Two processes compute what one process with the whole batch computes; the reference's commands run with the program's name alone replaced."
import csv
import json
import multiprocessing as mp
import os
import re
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fastai.callback.core import Callback
from fastai.metrics import AccumMetric, accuracy
from fastai.optimizer import SGD
from fastai.torch_core import get_model, num_distrib, rank_distrib

from silkworm_app.data.loaders import image_dls
from silkworm_app.data.sample import draw_sample
from silkworm_app.train.callback import WeightEMA
from silkworm_app.train.config import TrainError
from silkworm_app.train.distributed import Processes, leave
from silkworm_app.train.fit import main as train_main
from silkworm_app.train.head import photograph_losses, photographs, predict_logits
from silkworm_app.train.learner import lslu_learner
from silkworm_app.train.recipe import fit_recipe
from silkworm_app.train import one
from silkworm_app.train.run import RunFolder

class Double(Callback):
    def before_batch(self): self.learn.xb = tuple(x.double() for x in self.xb)


def trained(data, arch, out):
    "Train, as one of the processes that the environment names; the first writes what there is to compare"
    lr = .001 if 'efficient' in arch else .05
    dls = image_dls(data, 32, 16//max(1, num_distrib()), aug='none', fast=True, group=None, device='cpu', val_bs=4)
    kw = dict(stem_stride=2, per_channel=True, decay_epochs=1) if arch.startswith('vanilla') else dict(where='all', act_num=1)
    learn = lslu_learner(dls, arch, opt_func=partial(SGD, mom=.9), lr=lr, wd=.01, drop_rate=0., seed=0, path=f'{out}.run', metrics=[AccumMetric(accuracy, flatten=False, name='accuracy')],
                         cbs=[Double(), WeightEMA([.5, .9])], **kw)
    learn.model.double()
    learn.recorder.loss = AccumMetric(torch.nn.functional.cross_entropy, flatten=False, name='loss')
    if num_distrib() > 1: learn.add_cb(Processes(cpu=True))
    with learn.no_bar(), learn.no_logging(): learn.fit(2, lr)
    if not rank_distrib(): torch.save(dict(model=get_model(learn.model).state_dict(), ema=learn.weight_ema.module(.9).state_dict(), values=[list(map(float, v)) for v in learn.recorder.values],
                                           kinds=sorted({type(m).__name__ for m in learn.model.modules()})), out)


def gentle(data, scope, out):
    "The recipe, as one of the processes that the environment names; each writes what it ended with"
    dls = image_dls(data, 32, 8, aug='none', fast=True, group=None, device='cpu', val_bs=4)
    learn = lslu_learner(dls, 'test_resnet', act_num=1, seed=0, path=f'{out}.run')
    if num_distrib() > 1: learn.add_cb(Processes(cpu=True))
    with learn.no_bar(), learn.no_logging(): done = fit_recipe(learn, 2, scope, lr=.01)
    z, y = predict_logits(learn.model, dls.valid)
    ends = float(photograph_losses(z.softmax(1).numpy(), y.numpy(), photographs(dls, 1)).sum())
    torch.save(dict(losses=done.losses, best=done.best, ends=ends), f'{out}-{rank_distrib()}.pt')


def process(rank, port, env, data, out):
    "One of two processes, as torchrun would have started it; each net in its turn"
    os.environ.update(env | dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', LOCAL_WORLD_SIZE='2', MASTER_ADDR='localhost', MASTER_PORT=str(port)))
    torch.set_num_threads(1)
    for arch in NETS:
        trained(data, arch, out/f'{arch}-2.pt')
    for scope in SCOPES: gentle(data, scope, out/scope)
    leave()


ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'NO_ALBUMENTATIONS_UPDATE': '1'}


def launch(n, *args, tool=('-m', 'torch.distributed.run'), timeout=300):
    "A program in `n` processes on this machine"
    cmd = [sys.executable, *tool, *(['--nnodes=1', f'--nproc_per_node={n}', '--rdzv-backend=c10d', '--rdzv-endpoint=localhost:0'] if 'run' in tool[-1] else []), *map(str, args)]
    p = subprocess.run(cmd, env=ENV, capture_output=True, text=True, timeout=timeout)
    return p.returncode, p.stdout + p.stderr


@pytest.fixture(scope='module')
def data(tmp_path_factory): return draw_sample(tmp_path_factory.mktemp('data')/'sample', n_per_class=25, size=32, seed=1)


SCOPES = ['last', 'adapters', 'all']
NETS = ['vanillanet_5_x0_125', 'test_efficientnet', 'test_resnet']       # norms with their activation inside: test_efficientnet
forks = mp.get_context('forkserver')                     # torch and fastai are imported once for both
forks.set_forkserver_preload(['silkworm_app.train.fit'])


@pytest.fixture(scope='module')
def together(data, tmp_path_factory):
    "What two processes made of each net"
    out = tmp_path_factory.mktemp('two')
    with socket.socket() as s:
        s.bind(('localhost', 0))
        port = s.getsockname()[1]
    both = [forks.Process(target=process, args=(rank, port, {k: ENV[k] for k in ('OMP_NUM_THREADS', 'CUDA_VISIBLE_DEVICES')}, data, out)) for rank in range(2)]
    for p in both: p.start()
    for p in both: p.join(300)
    assert [p.exitcode for p in both] == [0, 0]
    return out


@pytest.mark.parametrize('arch', NETS)
def test_two_processes_equal_one(data, together, tmp_path, arch):
    "Weights, averages and validation metrics in float64, over batch norms, deep training and an odd number of validation pictures"
    trained(data, arch, tmp_path/'1.pt')
    res = [torch.load(tmp_path/'1.pt'), torch.load(together/f'{arch}-2.pt')]
    one, two = res
    tol = 1e-9 if 'efficient' in arch else 1e-10 # of its ill-conditioned norms: the order of the pictures in a batch alone moves these weights by 1e-10
    assert one['kinds'] == two['kinds'] and not any(k.startswith('Sync') for k in two['kinds'])
    for part in ('model', 'ema'):
        assert set(one[part]) == set(two[part])
        for k, v in one[part].items(): assert (v - two[part][k]).abs().max() <= tol*max(1, v.abs().max()), (part, k)
    a, b = (torch.tensor(r['values'], dtype=torch.double)[:, 1:] for r in res) # the training loss is a running mean, not compared
    assert torch.allclose(a[:, :2], b[:, :2], rtol=1e-10, atol=1e-10), (a, b) # loss and accuracy
    assert torch.allclose(a, b, rtol=1e-5, atol=1e-5), (a, b) # those of the averages are computed in float32


@pytest.mark.parametrize('scope', SCOPES)
def test_the_recipe_in_two_processes(data, together, tmp_path, scope):
    "Each process judges by all validation pictures, not by its share of them; so they keep the same weights"
    gentle(data, scope, tmp_path/scope)
    alone, *both = [torch.load(o) for o in (tmp_path/f'{scope}-0.pt', together/f'{scope}-0.pt', together/f'{scope}-1.pt')]
    assert both[0] == both[1] and len(both[0]['losses']) == 3
    assert both[0]['losses'][0] == pytest.approx(alone['losses'][0], rel=1e-4)
    for o in (alone, both[0]): assert o['ends'] == pytest.approx(o['losses'][o['best']], rel=1e-4)


REFERENCE = '''--model vanillanet_5_x0_125 --data_path {data} --batch_size 8 --update_freq 1 --epochs 3 --decay_epochs 1 --lr 3.5e-3 --weight_decay 0.35 --drop 0.05
--opt lamb --aa rand-m7-mstd0.5-inc1 --mixup 0.1 --bce_loss --output_dir {out} --model_ema true --model_ema_eval true --model_ema_decay 0.99996 --use_amp true'''


def test_reference_training_command(data, tmp_path, capsys):
    "The reference's options, two processes, then its two evaluation commands on what came out"
    run = tmp_path/'run'
    code, out = launch(2, '-m', 'silkworm_app.train', *REFERENCE.format(data=data, out=run).split(), '--onnx', 'false')
    assert code == 0, out
    assert out.count('Test split') == 1 and len(re.findall('^epoch 3/3 ', out, re.M)) == 1 and 'steps of 16 pictures (2 processes x 8 pictures)' in out, out
    rows = list(csv.DictReader((run/'history.csv').open()))
    assert [r['epoch'] for r in rows] == ['0', '1', '2'] and 'ema_0.99996_loss' in rows[0]
    assert [json.loads(o)['epoch'] for o in (run/'learnable_params.jsonl').read_text().splitlines()] == [1, 2, 3]
    m = json.loads((run/'metrics.json').read_text())
    assert m['test']['n'] == 25 and m['fusion']['top1_agreement'] == 1 and (run/'bundle/config.json').is_file() and (run/'best_ema_0.99996.safetensors').is_file()
    state = torch.load(run/'checkpoints/epoch_3.pth', weights_only=True)
    torch.save({'model': state['model'], 'model_ema': state['callbacks']['weight_ema']['averages'][0][1]}, tmp_path/'c.pth')
    evaluate = f'--model vanillanet_5_x0_125 --data_path {data} --finetune {tmp_path}/c.pth --eval True --model_key model_ema --crop_pct 0.875 --output_dir {tmp_path}/eval'.split()
    code, out = train_main([*evaluate, '--switch_to_deploy', str(tmp_path/'deploy.pth')]), capsys.readouterr().out
    assert code == 0 and 'unfused' in out and (tmp_path/'deploy.pth').is_file(), out
    both = json.loads((tmp_path/'eval/eval.json').read_text())
    assert both['unfused']['accuracy'] == both['fused']['accuracy'] and abs(both['unfused']['loss'] - both['fused']['loss']) < 1e-4
    assert train_main([*[a if a != f'{tmp_path}/c.pth' else f'{tmp_path}/deploy.pth' for a in evaluate], '--deploy', 'true']) == 0
    assert json.loads((tmp_path/'eval/eval.json').read_text())['fused']['confusion_matrix'] == both['fused']['confusion_matrix']


@pytest.mark.slow
@pytest.mark.parametrize('flag, several', [('--multi_gpu', True), ('--cpu', False)])
def test_accelerate_launch(data, tmp_path, flag, several):
    "Two processes on CPUs with --multi_gpu; with --cpu accelerate starts one, which is said"
    run = tmp_path/'run'
    code, out = launch(2, flag, '--num_processes', 2, '--num_machines', 1, '--mixed_precision', 'no', '--dynamo_backend', 'no', '-m', 'silkworm_app.train', '--data_path', data, '--output_dir', run, '--recipe', 'full', '--pretrained', 'false', '--epochs', 1, '--batch_size', 8,
                       tool=('-m', 'accelerate.commands.launch'))
    assert code == 0 and out.count('Test split') == 1, out
    assert ('(2 processes x 8 pictures)' in out) == several and ('started one' in out) != several, out
    assert json.loads((run/'metrics.json').read_text())['test']['n'] == 25


@pytest.mark.parametrize('recipe', ['full', 'head'])
def test_only_the_first_process_reads_and_writes_the_best_weights(tmp_path, monkeypatch, recipe):
    "The other processes came to the end first and looked for an average that was not written yet."
    average = one.BestEMA(.9, 'best_ema_0.9.safetensors')
    average.saved, average.best = True, .1
    learn = SimpleNamespace(model=torch.nn.Linear(1, 1), save_best=SimpleNamespace(saved=True, best=.2), cbs=[average])
    cfg = SimpleNamespace(recipe=recipe, model_ema=True, model_ema_eval=True)
    monkeypatch.setattr(one, 'rank_distrib', lambda: 1)
    assert not one.best_model(cfg, learn, RunFolder(tmp_path))[0].training and not list(tmp_path.iterdir())


def test_a_process_that_sees_fewer_batches_than_a_step_takes_is_refused(tmp_path, monkeypatch):
    "6 batches are 3 for each of two processes: the training ran a whole epoch and then said that it had made no step."
    monkeypatch.setattr(one, 'num_distrib', lambda: 2)
    cfg, dls = SimpleNamespace(update_freq=4, batch_size=8), SimpleNamespace(train=range(6))
    with pytest.raises(TrainError, match='only 3 in each process: take 3 or less'): one.build_learner(cfg, dls, RunFolder(tmp_path/'run'))
