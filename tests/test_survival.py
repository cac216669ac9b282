"A training survives: killed anywhere it goes on and ends with the same bits; what stops it is said in one sentence, and the last good state is kept."
import csv
import hashlib
import json
import multiprocessing as mp
import os
import random
import resource
import shutil
import signal
import sys
import time

import pytest

from silkworm_app.data.sample import draw_sample

EPOCHS = 6
OPTIONS = ['--pretrained', 'false', '--epochs', EPOCHS, '--batch_size', 8, '--decay_epochs', 2, '--model_ema', 'true', '--model_ema_decay', .9, .99, '--model_ema_eval', 'true', '--mixup', .2, '--cutmix', .5, '--smoothing', .1,
           '--clip_grad', 1, '--update_freq', 2, '--early_stop_epochs', 3, '--group', 'hash', '--bundle', 'false', '--progress', 'false', '--num_workers', 0, '--device', 'cpu']

forks = mp.get_context('forkserver') # torch and fastai are imported once; each training is a fresh fork of that
forks.set_forkserver_preload(['silkworm_app.train.fit', 'torch.utils.tensorboard'])


def child(argv, out, at, what):
    "Train; at the `at`-th event of the training do `what`"
    import torch
    from fastai.learner import Learner
    from silkworm_app.train.fit import main
    torch.set_num_threads(1)
    PATHS['data'] = argv[1]
    fd = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(fd, 1); os.dup2(fd, 2)
    sys.stdout, sys.stderr = os.fdopen(1, 'w', buffering=1), os.fdopen(2, 'w', buffering=1)
    call, count = Learner._call_one, 0
    def counted(self, name):
        nonlocal count
        count += 1
        if count == at: ACTS[what]()
        return call(self, name)
    Learner._call_one = counted
    code = main([str(a) for a in argv])
    print(f'{count} events')
    sys.stdout.flush(); sys.stderr.flush()
    os._exit(code)


def kill(): os.kill(os.getpid(), signal.SIGKILL)
def interrupt():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in what it starts in the background
    os.kill(os.getpid(), signal.SIGINT)
def terminate(): os.kill(os.getpid(), signal.SIGTERM)
def small_files(): resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))


def kill_in_save():
    "Die in the middle of the next checkpoint"
    import torch
    def half(obj, f, *args):
        import io
        whole = io.BytesIO()
        real(obj, whole)
        f.write_bytes(whole.getvalue()[:len(whole.getvalue())//2])
        kill()
    real, torch.save = torch.save, half


def hide_data():
    "Somebody moves the pictures away"
    os.rename(PATHS['data'], f'{PATHS["data"]}.gone')


PATHS = {}
ACTS = dict(kill=kill, interrupt=interrupt, terminate=terminate, small_files=small_files, kill_in_save=kill_in_save, hide_data=hide_data)


def run(data, dest, *options, at=None, what='kill', after=None):
    "`(exit code, output)` of one training; killed after `after` seconds"
    out = f'{dest}.log'
    p = forks.Process(target=child, args=(['--data_path', data, '--output_dir', dest, *OPTIONS, *options], out, at, what))
    p.start()
    if after is not None:
        p.join(after)
        if p.is_alive(): os.kill(p.pid, signal.SIGKILL)
    p.join(300)
    assert p.exitcode is not None, 'the training hangs'
    return p.exitcode, open(out).read()


def bits(dest):
    "Hash of all weights that a run keeps, its last state, and its logs without times"
    import torch
    h = hashlib.sha256()
    for f in sorted(dest.glob('best*.safetensors')): h.update(f.name.encode() + f.read_bytes())
    state = torch.load(sorted(dest.glob('checkpoints/epoch_*.pth'), key=lambda f: int(f.stem.split('_')[1]))[-1], weights_only=True)
    def add(o):
        if isinstance(o, torch.Tensor): h.update(o.contiguous().numpy().tobytes())
        elif isinstance(o, dict): [add((k, o[k])) for k in o if k != 'logs']
        elif isinstance(o, (list, tuple)): [add(v) for v in o]
        else: h.update(repr(o).encode())
    add(state)
    rows = list(csv.DictReader((dest/'history.csv').open()))
    for r in rows: r.pop('time')
    h.update(json.dumps(rows).encode() + (dest/'learnable_params.jsonl').read_bytes() + (dest/'learnable_params.txt').read_bytes())
    metrics = json.loads((dest/'metrics.json').read_text())
    metrics['recipe'] = str(metrics.get('recipe')).rpartition(';')[0]  # without its seconds
    h.update(json.dumps({k: v for k, v in metrics.items() if k != 'seconds'}).encode())
    return h.hexdigest(), len(rows)


@pytest.fixture(scope='module')
def data(tmp_path_factory): return draw_sample(tmp_path_factory.mktemp('data')/'sample', n_per_class=20, size=32, seed=1)


@pytest.fixture(scope='module')
def whole(data, tmp_path_factory):
    "An uninterrupted run: its bits, its number of events, its seconds"
    dest, start = tmp_path_factory.mktemp('whole')/'run', time.time()
    code, out = run(data, dest)
    assert code == 0, out
    return bits(dest), int(out.splitlines()[-1].split()[0]), time.time() - start


@pytest.mark.slow
def test_same_bits_twice(data, whole, tmp_path):
    code, out = run(data, tmp_path/'run')
    assert code == 0, out
    assert bits(tmp_path/'run') == whole[0] and whole[0][1] == EPOCHS


def test_killed_at_three_moments(data, whole, tmp_path):
    "The third time in the middle of a checkpoint"
    rng, dest = random.Random(0), tmp_path/'run'
    for i in range(3):
        code, out = run(data, dest, at=rng.randint(whole[1]//8, whole[1]//4), what='kill_in_save' if i == 2 else 'kill')
        assert code == -signal.SIGKILL, out
        assert not (dest/'metrics.json').exists()
    assert list((dest/'checkpoints').glob('.*.part')), 'the half-written checkpoint should be there'
    code, out = run(data, dest)
    assert code == 0 and 'Going on after epoch' in out, out
    assert bits(dest) == whole[0]
    code, out = run(data, dest)
    assert code == 0 and 'finished' in out


def test_a_pretrained_net_goes_on(data, tmp_path):
    "Its head is fitted again, its maps are computed again, and its last stage goes on"
    options = ['--pretrained', 'true', '--decay_epochs', 0]
    code, out = run(data, tmp_path/'whole', *options)
    assert code == 0 and 'last trained gently' in out, out
    assert run(data, tmp_path/'run', *options, at=3*int(out.splitlines()[-1].split()[0])//4)[0] == -signal.SIGKILL
    code, out = run(data, tmp_path/'run', *options)
    assert code == 0 and 'Going on after epoch' in out, out
    assert bits(tmp_path/'run') == bits(tmp_path/'whole')


def test_damaged_checkpoint_is_passed_over(data, whole, tmp_path):
    dest = tmp_path/'run'
    run(data, dest, at=int(whole[1]*.7))
    last, before = sorted((dest/'checkpoints').glob('epoch_*.pth'), reverse=True)[:2]
    last.write_bytes(last.read_bytes()[:5000])
    code, out = run(data, dest)
    assert code == 0 and f'Going on after epoch {before.stem.split("_")[1]}' in out, out
    assert bits(dest) == whole[0]


@pytest.mark.parametrize('what, code, says', [('interrupt', 130, 'stopped'), pytest.param('terminate', 130, 'stopped', marks=pytest.mark.slow), ('small_files', 1, 'disk is full')])
def test_stopped(data, whole, tmp_path, what, code, says):
    dest = tmp_path/'run'
    got, out = run(data, dest, at=int(whole[1]*.6), what=what)
    assert got == code and says in out and 'is kept' in out and 'Traceback' not in out, out
    got, out = run(data, dest)
    assert got == 0 and 'Going on' in out, out
    assert bits(dest) == whole[0]


def test_data_vanish(data, whole, tmp_path):
    mine, dest = tmp_path/'data', tmp_path/'run'
    shutil.copytree(data, mine)
    code, out = run(mine, dest, '--fast', 'false', at=int(whole[1]*.6), what='hide_data')
    assert code == 1 and str(mine) in out and 'does not exist' in out and 'is kept' in out and 'Traceback' not in out, out
    os.rename(f'{mine}.gone', mine)
    code, out = run(mine, dest, '--fast', 'false')
    assert code == 0 and 'Going on' in out, out


def test_loss_not_a_number(data, tmp_path):
    code, out = run(data, tmp_path/'run', '--lr', 1e30, '--clip_grad', 1e30)
    assert code == 1 and 'the loss became' in out and 'lower the learning rate' in out and 'Traceback' not in out, out


def test_other_settings_are_refused(data, whole, tmp_path):
    dest = tmp_path/'run'
    run(data, dest, at=whole[1]//2)
    code, out = run(data, dest, '--lr', .01)
    assert code == 2 and 'lr: 0.004, now 0.01' in out, out
    code, out = run(data, dest, '--auto_resume', 'false')
    assert code == 2 and '--overwrite' in out, out


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_twenty_random_times(data, whole, tmp_path):
    "By the clock, anywhere from the first import to the last plot"
    dest, kills, rng = tmp_path/'run', 0, random.Random(int(os.environ.get('SURVIVAL_SEED', 0)))
    for _ in range(200):
        if kills == 20: break
        code, out = run(data, dest, after=rng.uniform(.2, whole[2]))
        if code == 0: # it was faster: start anew, so that all kills hit a training
            assert bits(dest) == whole[0]
            shutil.rmtree(dest)
        else:
            assert code == -signal.SIGKILL, out
            kills += 1
    assert kills == 20
    assert run(data, dest)[0] == 0 and bits(dest) == whole[0]
