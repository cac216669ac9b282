"The benchmark compares like with like, counts memory right, and writes what it measured."
import argparse
import json
import logging
import os
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import psutil
import pytest
import torch

from silkworm_app.data.sample import draw_sample

from silkworm_app.act.fuse import fuse
from silkworm_app.act.lslu import LSLU
from silkworm_app.act.patch import lslu_model
from silkworm_app.lab import bench, timing
from silkworm_app.lab.bench import main, run_bench
from silkworm_app.clock import in_turns
from silkworm_app.lab.timing import StepLSLU, latency, layer_arms, net_arms, peak_growth, saved_bytes, step_by_step
from silkworm_app.serve.net import quiet_export


def grads(model, x):
    x = x.clone().requires_grad_()
    y = model(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return [y.detach(), x.grad, *[p.grad for p in model.parameters()]]


def close(a, b): return all((o - p).abs().max() <= 1e-9 * max(1e-6, p.abs().max()) for o, p in zip(a, b, strict=True))


@pytest.mark.parametrize('ours, theirs', [('lslu', 'definition'), ('series', 'series, definition'), ('lslu per channel', 'per channel, definition'), ('lslu sum', 'sum, definition')])
def test_layers_that_are_compared_compute_the_same(ours, theirs):
    "Values and all gradients, in training mode, in float64."
    torch.manual_seed(0)
    arms = layer_arms(6)
    x = torch.randn(2, 6, 9, 11, dtype=torch.float64)
    a, b = (arms[k].double().train() for k in (ours, theirs))
    assert isinstance(a, LSLU) and isinstance(b, StepLSLU)
    assert close(grads(a, x), grads(b, x))
    assert not close(grads(a, x), grads(arms['series' if ours != 'series' else 'lslu'].double().train(), x)[:2] + grads(b, x)[2:]), 'the check cannot tell layers apart'


@pytest.mark.parametrize('arch, kw', [('vanillanet_5_x0_125', {}), ('resnet18', dict(where='stem')), ('test_resnet', dict(where='all'))])
def test_nets_that_are_compared_compute_the_same(arch, kw):
    arms = net_arms(arch, kw, 64)
    x = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    a, b = (arms[k].double().eval() for k in ('lslu', 'definition'))
    assert any(isinstance(m, StepLSLU) for m in b.modules()) and not any(isinstance(m, LSLU) for m in b.modules())
    assert (a(x) - b(x)).abs().max() <= 1e-9 * b(x).abs().max()
    assert not any(isinstance(m, (LSLU, StepLSLU)) for m in arms['relu'].modules())


def test_the_definition_has_its_own_weights():
    "Training one arm must not move another."
    arms = layer_arms(4)
    before = arms['lslu'].weight.detach().clone()
    with torch.no_grad(): arms['definition'].weight.add_(1)
    assert torch.equal(arms['lslu'].weight, before)


def test_every_arm_runs_once_a_round_and_after_every_other():
    calls = []
    times = in_turns({k: (lambda k=k: calls.append(k)) for k in 'abc'}, rounds=9, warm=1)
    assert all(len(v) == 9 for v in times.values()) and len(calls) == 30
    rounds = [calls[i:i + 3] for i in range(0, 30, 3)]
    assert all(sorted(r) == ['a', 'b', 'c'] for r in rounds) and len({r[0] for r in rounds}) == 3
    assert {p + q for r in rounds for p, q in zip(r, r[1:])} == {p + q for p in 'abc' for q in 'abc' if p != q}


def test_saved_memory_is_counted_once():
    x = torch.randn(10, 10, requires_grad=True)
    assert saved_bytes(lambda: x.exp().exp()) == 2 * 400                       # two results
    assert saved_bytes(lambda: (lambda y: y * y)(x.exp())) == 400              # one tensor, kept three times
    assert saved_bytes(lambda: x * x, [x]) == 0


@pytest.mark.parametrize('act_num, part', [(1, .67), (3, .5), (8, .5)])
def test_an_lslu_keeps_half_of_the_definition_at_most(act_num, part):
    "Whatever act_num is, ours keeps the input and the input of the batch norm."
    arms = layer_arms(8, act_num)
    x = torch.randn(4, 8, 32, 32)
    kept = {k: saved_bytes(lambda: m.train()(x.clone().requires_grad_()), [*m.parameters(), *m.buffers()]) for k, m in arms.items()}
    for k in ('lslu', 'lslu per channel', 'lslu sum'): assert kept[k] <= kept['series'] * 1.02, k
    assert kept['lslu'] <= part * kept['definition']


def test_step_by_step_leaves_the_net_alone():
    net = net_arms('vanillanet_5_x0_125', {}, 32)['lslu']
    keys = list(net.state_dict())
    assert list(step_by_step(net).state_dict()) == keys and any(isinstance(m, LSLU) for m in net.modules())


def test_the_command_writes_what_it_measured(tmp_path, capsys):
    "All sections but peak memory at the small size: every arm, finite numbers, JSON and plots."
    assert main(['--quick', '--rounds', '1', '--threads', '1', '--sections', 'layers', 'act_num', 'nets', 'inference', '--out', str(tmp_path / 'b.json')]) == 0
    res = json.loads((tmp_path / 'b.json').read_text())
    assert {r['section'] for r in res['rows']} >= {'layer, training step', 'layer, kept for backward', 'series part, forward and backward', 'net, training step', 'net, kept for backward', 'inference'}
    arms = {r['arm'] for r in res['rows'] if r['section'] == 'inference'}
    assert arms >= {'definition', 'lslu', 'lslu, fused', 'lslu, fused, ONNX Runtime', 'series, fused', 'relu, fused'}
    bench._check_arms({r['arm'] for r in res['rows']})                          # each can be asked for
    assert all(r['ms'] > 0 and r['faster'] > 0 for r in res['rows'] if 'ms' in r)
    assert all(r['megabytes'] >= 0 for r in res['rows'] if 'megabytes' in r)
    assert {'cpu', 'threads', 'torch'} <= set(res['machine']) and res['machine']['threads'] == 1
    assert len(list(tmp_path.glob('*.png'))) >= 4
    out = capsys.readouterr().out
    assert '| lslu |' in out and 'times as fast' in out


def test_the_exporter_is_quiet_only_while_it_exports(recwarn):
    logs, before = [logging.getLogger(), logging.getLogger('torch.onnx')], list(warnings.filters)
    with pytest.raises(ValueError, match='an export that fails'), quiet_export():
        assert not any(log.isEnabledFor(logging.WARNING) for log in logs) and all(log.isEnabledFor(logging.ERROR) for log in logs)
        warnings.warn('of the exporter')
        raise ValueError('an export that fails')
    assert not list(recwarn) and all(log.isEnabledFor(logging.WARNING) for log in logs) and warnings.filters == before


def test_latency_says_what_a_picture_and_a_file_cost():
    nets = {w: fuse(lslu_model('vanillanet_5_x0_125', 5, input_size=64, dims=[w] * 4).eval(), 64) for w in (8, 128)}
    cost = latency(nets, 64, rounds=3)
    assert list(cost) == [8, 128] and cost[128]['ms'] > cost[8]['ms'] > 0 and all(v['q1'] <= v['ms'] <= v['q3'] and v['n'] == 3 for v in cost.values())
    for w, net in nets.items():
        weights = sum(4 * p.numel() for p in net.state_dict().values()) / 1e6
        assert weights < cost[w]['megabytes'] < weights + .4


@pytest.mark.slow
def test_peak_memory_comes_from_processes_of_their_own():
    rows = run_bench('quick', ['peak'], 1, log=lambda s: None)['rows']
    assert {r['arm'] for r in rows} >= {'definition', 'lslu', 'series', 'relu'} and all(0 <= r['megabytes'] < 4096 for r in rows)


def test_peak_memory_is_not_that_of_the_process_that_asks():
    np.ones(500 << 20, np.uint8)                                 # had, and given back
    assert 10 < peak_growth('vanillanet_5_x0_125', {}, 16, 96, 'lslu')/2**20 < 200
    assert {r['arm'] for r in run_bench('quick', ['peak'], 1, log=lambda s: None, arms=['relu'])['rows']} == {'relu'}


def test_a_mac_counts_in_bytes(monkeypatch):
    import resource
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    monkeypatch.setattr(timing.Path, 'is_file', lambda self: False)          # no /proc
    assert kilobytes*1024 <= timing._largest() < kilobytes*2048
    monkeypatch.setattr(timing.sys, 'platform', 'darwin')
    assert kilobytes <= timing._largest() < 2*kilobytes


@pytest.mark.parametrize('argv, word', [(['--out', '/nowhere/at/all/b.json'], '/nowhere'), (['--device', 'cuda'], 'CUDA')])
def test_mistakes_are_one_sentence(argv, word, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert main(['--quick', *argv]) == 2
    err = capsys.readouterr().err
    assert word in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize('argv', [['--rounds', '0'], ['--threads', '0'], ['--budget', '-1'], ['--sections', 'nothing'], ['--device', 'cuda:1'], ['--device', 'mps']])
def test_wrong_options_are_refused(argv):
    with pytest.raises(SystemExit) as e: main(argv)
    assert e.value.code == 2


def test_an_unknown_arm_is_refused_before_measuring(monkeypatch, capsys):
    monkeypatch.setitem(bench.SECTIONS, 'layers', lambda o: pytest.fail('something was measured'))
    assert main(['--quick', '--sections', 'layers', '--arms', 'lslu', 'lsul']) == 2
    err, = capsys.readouterr().err.strip().splitlines()
    assert "no arm 'lsul'" in err and 'lslu per channel' in err and 'channels last' in err


def test_an_arm_that_was_not_measured_is_told():
    said = []
    rows = run_bench('quick', ['layers'], 1, arms=['lslu', 'lslu, fused'], log=said.append)['rows']
    assert {r['arm'] for r in rows if 'ms' in r} == {'definition', 'lslu'} and 'not among what was measured: lslu, fused' in said


@pytest.fixture
def card(monkeypatch):
    "What is done on a card, done on the CPU"
    monkeypatch.setattr(bench, '_on_gpu', lambda o: True)
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda: None)
    monkeypatch.setattr(bench, 'peak_allocated', lambda net, x: 2**20)
    return argparse.Namespace(mode='quick', rounds=3, calls=1, budget=9, device='cpu', compile=True, only='', arms=(), clock='wall', log=lambda s: None)


@pytest.mark.parametrize('big', ['lslu', 'definition'])
def test_an_arm_that_the_card_has_no_memory_for_is_a_note(card, monkeypatch, tmp_path, big):
    "The others are measured all the same, without ratios where it is the one that they are taken against"
    def full(*args): raise torch.OutOfMemoryError('CUDA out of memory')
    arms = layer_arms(16)
    arms[big].forward = full
    monkeypatch.setattr(bench, 'layer_arms', lambda c: arms)
    monkeypatch.setattr(bench, '_compiled', lambda *args: ())
    rows = list(bench.bench_layers(card))
    by = {s: {r['arm']: r for r in rows if r['section'] == s} for s in {r['section'] for r in rows}}
    assert len(by) == 3 and all(v[big]['note'] == 'CUDA out of memory' and 'relu' in v for v in by.values())
    assert (by['layer, training step']['relu']['faster'] > 0) == (big == 'lslu')
    result = dict(machine={}, settings={}, rows=rows)
    assert bench.markdown(result).count('CUDA out of memory') == 3
    bench.plot_bench(result, tmp_path)


def test_each_size_is_compiled_for_itself(card, monkeypatch):
    "And only what was asked for, since it takes minutes"
    how, resets = [], []
    monkeypatch.setattr(torch.nn.Module, 'compile', lambda self, **kw: how.append((type(self), kw)))
    monkeypatch.setattr(torch.compiler, 'reset', lambda: resets.append(len(how)))
    monkeypatch.setitem(bench.LAYERS, 'quick', [(2, 16, 14), (2, 16, 7)])
    card.arms = 'lslu, compiled',
    rows = list(bench.bench_layers(card))
    assert how == [(LSLU, dict(dynamic=False))]*2 and resets == [0, 1]
    assert {r['arm'] for r in rows if r['section'] == 'layer, training step'} == {'definition', 'lslu, compiled'}


def test_a_fused_net_is_measured_in_both_layouts(card, monkeypatch):
    "`fuse` takes channels-last by itself on a CPU, and doesn't on a card"
    card.compile, layouts, kept = False, [], fuse
    monkeypatch.setattr(bench, 'fuse', lambda net, size, channels_last=False: layouts.append(channels_last) or kept(net, size, channels_last))
    rows = list(bench.bench_inference(card))
    assert layouts == [False, True]*(len(layouts)//2) and {'lslu, fused', 'lslu, fused, channels last'} <= {r['arm'] for r in rows}
    bench._check_arms({r['arm'] for r in rows})


@pytest.mark.parametrize('command', (['bench_main', '--quick', '--sections', 'peak'], ['experiment_main', 'g.yaml', '--procs', '2']))
def test_ctrl_c_in_a_command_with_processes_is_one_sentence(tmp_path, command):
    "A terminal sends it to all of them: each printed a traceback"
    draw_sample(tmp_path/'pictures', n_per_class=8, size=32)
    (tmp_path/'g.yaml').write_text('name: g\nbase: {data_path: pictures, input_size: 32, epochs: 500, model: vanillanet_5_x0_125, group: none, early_stop_epochs: 0, device: cpu}\narms: {chain: {}}\ngrid: {seed: [0, 1, 2]}\n')
    code = f'import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from silkworm_app import cli; sys.exit(cli.{command[0]}({command[1:]}))'
    p = subprocess.Popen([sys.executable, '-c', code], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    parent = psutil.Process(p.pid)
    while not any('spawn_main' in a for c in parent.children() for a in c.cmdline()):
        assert p.poll() is None, p.stdout.read()
        time.sleep(.1)
    time.sleep(1)                                                                          # they load torch
    os.killpg(p.pid, signal.SIGINT)
    said = p.communicate(timeout=120)[0]
    assert p.returncode == 130 and 'Traceback' not in said and 'interrupted' in said, said
