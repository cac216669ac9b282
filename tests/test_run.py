"The run folder: what a start may cost that is there already, what goes on from where, and what is said of it."
import io
import json
import os
import shutil
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from silkworm_app.cli import train_main as command
from silkworm_app.data.sample import draw_sample
from silkworm_app.train import fit, one
from silkworm_app.train.compare import earlier_answers
from silkworm_app.train.config import TrainConfig, read_settings, write_yaml
from silkworm_app.train.fit import main
from silkworm_app.train.resume import checkpoints
from silkworm_app.train.run import RunFolder, is_finished, write_start
from silkworm_app.train.setup import load_splits, resolve

BASE = '--pretrained false --epochs 2 --batch_size 16 --bundle false --group none --log_dir none --progress false --device cpu --num_workers 0 --input_size 32 --aug none'


@pytest.fixture(scope='module')
def data(tmp_path_factory): return draw_sample(tmp_path_factory.mktemp('data')/'sample', n_per_class=10, size=32, seed=1)


@pytest.fixture
def train(data, capsys):
    "`(exit code, what is said)` of a short training"
    def run(dest, *options, main=main):
        capsys.readouterr()
        options = [str(o) for o in options]
        base = BASE.split()
        base = [b for i in range(0, len(base), 2) if base[i] not in options for b in base[i:i + 2]]
        code = main(['--data_path', str(data), '--output_dir', str(dest), *base, *options])
        return code, ''.join(capsys.readouterr())
    return run


@pytest.fixture(scope='module')
def finished(data, tmp_path_factory):
    "The folder of a finished run"
    run = tmp_path_factory.mktemp('finished')/'run'
    assert main(['--data_path', str(data), '--output_dir', str(run), *BASE.split()]) == 0
    return run


def bits(folder): return {f.relative_to(folder): (f.read_bytes(), f.stat().st_mtime_ns) for f in folder.rglob('*') if f.is_file()}


def test_a_checkpoint_goes_on_in_a_folder_of_its_own(train, finished, tmp_path):
    "In one of another run its best weights would be taken for those of the run that goes on; a person's file of that name is no best weight, either"
    other = tmp_path/'other'
    assert train(other, '--seed', 5, '--epochs', 1)[0] == 0
    there, state = bits(other), finished/'checkpoints/epoch_1.pth'
    for dest in (other, finished):
        code, out = train(dest, '--resume', state)
        assert code == 2 and f'{dest} holds an earlier run: leave out --resume' in out, out
    assert bits(other) == there
    new = tmp_path/'new'
    new.mkdir()
    shutil.copy(other/'best.safetensors', new)
    code, out = train(new, '--resume', state)
    assert code == 0 and 'Going on after epoch 1' in out and (new/'before_1/best.safetensors').is_file(), out
    assert (new/'best.safetensors').read_bytes() == (finished/'best.safetensors').read_bytes()


@pytest.mark.parametrize('options', ['--resume RUN/checkpoints/epoch_1.pth', '--finetune RUN', '--finetune RUN/checkpoints/epoch_2.pth', '--finetune typo.pth', '--opt adamy', '--opt_betas 0.9',
                                     '--model vanilanet_5', '--aug nonsense', '--recipe head', '--cross_validate 2 --group hash --opt adamy', '--cross_validate 500 --group hash', 'torchrun --cross_validate 2 --group hash'])
def test_what_cannot_start_costs_no_earlier_run(train, finished, monkeypatch, options):
    there = bits(finished)
    if options.startswith('torchrun'): monkeypatch.setattr(fit, 'num_distrib', lambda: 2)
    code, out = train(finished, '--overwrite', *options.replace('RUN', str(finished)).split()[options.startswith('torchrun'):])
    assert code == 2 and bits(finished) == there, out


def test_overwritten_by_a_cross_validation(train, finished, tmp_path):
    "The earlier run goes when the first part begins to train, and with it the parts of an earlier cross-validation"
    run = tmp_path/'run'
    shutil.copytree(finished, run)
    (run/'cross_validation.jsonl').write_text('mine\n')
    (run/'checkpoints/epoch_1_keep.pth').write_text('mine')
    code, out = train(run, '--overwrite', '--cross_validate', 2, '--group', 'hash', '--epochs', 1)
    assert code == 0 and 'Moved aside' in out and (run/'before_1/cross_validation.jsonl').read_text() == 'mine\n' and (run/'checkpoints/epoch_1_keep.pth').is_file(), out
    assert json.loads((run/'metrics.json').read_text())['cross_validation']['folds'] == 2


@pytest.mark.parametrize('options, says', [('', 'the state after epoch 3 is kept, the same command goes on'), ('--overwrite', 'start it again without --overwrite to go on'), ('--auto_resume false', 'with --auto_resume true to go on'),
                                           ('--resume STATE', 'start it again without --resume to go on'), ('--overwrite early', None), ('--seed 9 early', None)])
def test_what_a_stopped_training_goes_on_with(train, finished, tmp_path, monkeypatch, options, says):
    "The same command would start anew, or be refused; before it began to train, what lies there is another run's"
    run = tmp_path/'run'
    if 'overwrite' in options or 'early' in options: shutil.copytree(finished, run)
    def stop(cfg, *args):
        if 'early' in options: raise KeyboardInterrupt
        cfg.started = True
        (run/'checkpoints').mkdir(exist_ok=True)
        for f in ('epoch_3.pth', 'epoch_3_mine.pth', 'epoch_best.pth'): (run/'checkpoints'/f).touch()
        raise KeyboardInterrupt
    monkeypatch.setattr(one, 'fit_learner', stop)
    if 'early' in options: monkeypatch.setattr(fit, 'load_splits', stop)
    code, out = train(run, *options.replace('early', '').replace('STATE', str(finished/'checkpoints/epoch_1.pth')).split())
    assert code == 130 and (says in out if says else out.strip().endswith('stopped')), out
    assert train(run, '--eval', 'true', '--finetune', finished)[0] == 0 and checkpoints(run/'checkpoints')
    monkeypatch.setattr(fit, 'evaluate', stop)
    assert 'is kept' not in train(run, '--eval', 'true', '--finetune', finished)[1]


def test_the_best_of_a_later_epoch_stays_where_it_is(train, tmp_path):
    "The weights of a later epoch were delivered as those of a training that went on from the first, and did worse"
    noise = np.random.default_rng(0)
    for channel, colour in enumerate(('red', 'green', 'blue')):               # so easily told apart that each epoch is better than the first
        (tmp_path/'colours'/colour).mkdir(parents=True)
        for i in range(20):
            picture = noise.integers(0, 80, (32, 32, 3), 'uint8')
            picture[..., channel] += 150
            Image.fromarray(picture).save(tmp_path/f'colours/{colour}/{i}.png')
    old, new = tmp_path/'old', tmp_path/'new'
    net = '--data_path', tmp_path/'colours', '--model', 'test_resnet', '--recipe', 'full', '--epochs', 3, '--batch_size', 2
    assert train(old, *net)[0] == 0
    code, out = train(new, *net, '--lr', 9, '--resume', old/'checkpoints/epoch_1.pth')
    assert code == 0 and f'{old/"best.safetensors"} is not known to be the best that {old/"checkpoints/epoch_1.pth"} knew: the best is looked for from here on' in out, out
    losses = [[float(r.split(',')[2]) for r in (d/'history.csv').read_text().splitlines()[1:]] for d in (old, new)]
    assert max(losses[0][1:]) < losses[0][0] == losses[1][0] < min(losses[1][1:]), losses
    assert json.loads((new/'metrics.json').read_text())['valid']['loss'] == pytest.approx(min(losses[1][1:]), rel=1e-4)
    for d in (old, new): assert [json.loads(r)['epoch'] for r in (d/'learnable_params.jsonl').read_text().splitlines()] == [1, 2, 3]
    first = [(d/'learnable_params.txt').read_text().split('Epoch 2')[0] for d in (old, new)]
    assert first[0] == first[1] and first[0].startswith('Epoch 1:')
    state = torch.load(old/'checkpoints/epoch_1.pth', weights_only=True)
    fit._forget_lost(state, RunFolder(old))
    assert 'save_best' not in state['callbacks']                              # in its own folder, too
    for epoch in 1, 3:                                                        # of an earlier version, which kept no hashes
        file, other = old/f'checkpoints/epoch_{epoch}.pth', RunFolder(tmp_path/f'from_{epoch}')
        state = torch.load(file, weights_only=True)
        for s in state['callbacks'].values(): s.pop('sha', None)
        other.path.mkdir()
        fit._bring(other, SimpleNamespace(resume=file, model_ema=False), state, io.StringIO())
        assert other.best.exists() == ('save_best' in state['callbacks']) == (epoch == 3)


def test_a_small_input_size_costs_the_pretrained_net_and_that_is_said(data, tmp_path, capsys):
    def chosen(*more):
        cfg = read_settings(['--data_path', str(data), '--output_dir', str(tmp_path/'no'), '--device', 'cpu', *more])
        resolve(cfg, load_splits(cfg))
        return cfg.model, capsys.readouterr().out
    says = 'pictures of 32 px seen at 64 px: a small net from nothing; leave out --input_size, or take --model tf_efficientnet_lite0'
    model, out = chosen('--input_size', '64')
    assert model == 'vanillanet_5_x0_125' and says in out, out
    assert chosen() == ('tf_efficientnet_lite0', '') and chosen('--input_size', '64', '--pretrained', 'false') == ('vanillanet_5_x0_125', '')


def test_stopped_before_its_first_own_checkpoint(train, finished, tmp_path, monkeypatch):
    "What was resumed goes on from the checkpoint that was named, not from nothing"
    run = tmp_path/'run'
    def stop(cfg, *args):
        cfg.started = True
        raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(one, 'fit_learner', stop)
        code, out = train(run, '--resume', finished/'checkpoints/epoch_1.pth')
        assert code == 130 and 'the state after epoch 1 is kept: start it again without --resume to go on' in out, out
    code, out = train(run)
    assert code == 0 and 'Going on after epoch 1' in out, out
    assert (run/'best.safetensors').read_bytes() == (finished/'best.safetensors').read_bytes()


def test_the_epoch_that_stops_a_training_early_is_logged(train, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    code, out = train(tmp_path/'run', '--lr', 9, '--epochs', 9, '--early_stop_epochs', 1, '--log_dir', 'auto')
    n = len((tmp_path/'run/history.csv').read_text().splitlines()) - 1
    assert code == 0 and n < 9 and f'No lower valid_loss since epoch {n - 1}: stopped' in out, out
    seen = EventAccumulator(str(tmp_path/'run/logs'))
    seen.Reload()
    assert [o.step for o in seen.Scalars('metrics/valid_loss')] == [*range(1, n + 1)]


def test_a_full_graphics_card_goes_on_with_less(train, tmp_path, monkeypatch):
    "The same command would fill it again, and with another size its folder is refused"
    run, state = tmp_path/'run', tmp_path/'run/checkpoints/epoch_3.pth'
    def full(cfg, *args):
        cfg.started = True
        state.parent.mkdir()
        state.touch()
        raise torch.OutOfMemoryError('CUDA out of memory')
    monkeypatch.setattr(one, 'fit_learner', full)
    code, out = train(run)
    assert code == 1 and out.endswith(f'the state after epoch 3 is kept: the same command goes on from it with --resume {state} --output_dir OTHER --batch_size 8\n'), out


def test_a_refused_checkpoint_moves_no_file(train, finished, tmp_path):
    "What a person put there stays there; what the run wrote goes"
    run = tmp_path/'run'
    (run/'checkpoints').mkdir(parents=True)
    for f in ('best.safetensors', 'checkpoints/epoch_1.pth'): shutil.copy(finished/f, run/f)
    there = bits(run)
    code, out = train(run, '--layer_decay', .7, '--resume', run/'checkpoints/epoch_1.pth')
    assert code == 2 and 'another net, optimiser' in out and bits(run) == there, out


def test_a_cross_validation_whose_checkpoint_is_refused(train, finished, tmp_path):
    "Another net before its parts are trained; after them, they are kept, and the same without the checkpoint goes on"
    state, run = shutil.copy(finished/'checkpoints/epoch_1.pth', tmp_path/'alone.pth'), tmp_path/'run'
    more = '--cross_validate', 2, '--group', 'hash', '--epochs', 1
    code, out = train(run, *more, '--resume', state, '--act', 'relu')
    assert code == 2 and f'{state} is of another net' in out and 'Cross-validation' not in out and not run.exists(), out
    more += '--layer_decay', .7
    code, out = train(run, *more, '--resume', state)
    assert code == 2 and f'{state} is of another net' in out and (run/'cross_validation.jsonl').is_file() and not (run/'checkpoints').exists(), out
    code, out = train(run, *more)
    assert code == 0 and 'trainings done before' in out and 'Going on' not in out, out


def test_averages_are_brought_only_where_they_go_on(train, tmp_path):
    "Those of the old run answered for the new one"
    averages = '--model_ema', 'true', '--model_ema_decay', .9
    assert train(tmp_path/'old', *averages, '--epochs', 1)[0] == 0 and (tmp_path/'old/best_ema_0.9.safetensors').is_file()
    for dest, more in (('none', ()), ('same', averages)):
        assert train(tmp_path/dest, *more, '--resume', tmp_path/'old/checkpoints/epoch_1.pth')[0] == 0
        assert (tmp_path/dest/'best_ema_0.9.safetensors').is_file() == bool(more)


def test_copies_of_a_checkpoint_are_a_persons(train, tmp_path):
    "Neither deleted with those that are too old, nor in the way"
    mine = [tmp_path/'run/checkpoints'/f for f in ('epoch_1_keep.pth', 'epoch_best.pth')]
    mine[0].parent.mkdir(parents=True)
    for f in mine: f.write_text('mine')
    code, out = train(tmp_path/'run', '--save_ckpt_num', 1)
    assert code == 0 and all(f.read_text() == 'mine' for f in mine) and [*checkpoints(tmp_path/'run/checkpoints')] == [2], out


@pytest.mark.parametrize('entry', [main, command])
def test_a_finished_run_says_what_it_is_not_made_with(train, finished, entry):
    code, out = train(finished, '--risk', .2, '--bundle', 'true', main=entry)
    assert code == 0 and 'it is finished' in out and 'left out (bundle: False, now True, risk: 0.1, now 0.2)' in out, out
    for options in ([], ['--onnx', 'false']):
        code, out = train(finished, *options, main=entry)
        assert code == 0 and 'it is finished' in out and 'left out' not in out, out
    code, out = train(finished, '--test_freq', 2, main=entry)
    assert code == 2 and 'test_freq: 1, now 2' in out, out


def test_the_average_without_a_decay_is_the_first_of_the_settings(tmp_path):
    run = RunFolder(tmp_path)
    write_yaml(TrainConfig(model_ema=True, model_ema_decay=[.9998, .9]), run.settings)
    for d in (.9, .9998): run.best_ema(d).touch()
    assert run.best_weights('model_ema') == run.best_ema(.9998) and run.best_weights('model_ema_0.9') == run.best_ema(.9)


def test_the_run_to_surpass_is_the_one_that_is_named(tmp_path):
    def run(name):
        r = RunFolder(tmp_path/name)
        write_start(r, TrainConfig())
        r.write_metrics(dict(classes=[name]))
        r.answers.write_text(json.dumps(dict(file=['f'], photo=[0], target=[0], pick=[0])))
        return r
    a, b, out = map(run, 'abo')
    def noted(r): out.before.write_text(json.dumps(dict(name=str(r), answers={'noted': []})))
    said = lambda new, **kw: earlier_answers(TrainConfig(output_dir=str(out), **kw), new)[0]
    noted(a)
    assert said(False)['answers'] == said(False, better_than=str(a))['answers'] == {'noted': []}
    assert said(False, better_than=str(b)) == dict(name=str(b), answers={'f': ['b', 'b', 0]})
    assert said(True) is None and said(True, better_than=str(a))['answers'] == {'f': ['a', 'a', 0]}
    noted(a)
    shutil.rmtree(a.path)
    for named in (a.path, a.path/'best.safetensors'): assert said(False, better_than=str(named))['answers'] == {'noted': []}  # of a training that goes on
    noted(out)                                                         # it is gone: only the note knows it
    assert said(True)['answers'] == {'noted': []} and said(True, overwrite=True) is None


def test_pictures_behind_links_are_looked_at(tmp_path):
    pictures, run = tmp_path/'pictures', RunFolder(tmp_path/'run')
    (tmp_path/'far/deep').mkdir(parents=True), pictures.mkdir()
    (tmp_path/'far/deep/old.jpg').touch()
    (pictures/'class').symlink_to(tmp_path/'far'), (pictures/'loop').symlink_to(pictures), (pictures/'nowhere').symlink_to(tmp_path/'none')
    (pictures/'one.jpg').symlink_to(tmp_path/'far/deep/old.jpg')
    cfg = TrainConfig(data_path=str(pictures), output_dir=str(run))
    time.sleep(.02)
    write_start(run, cfg)
    run.write_metrics({})
    assert is_finished(cfg)
    time.sleep(.02)
    (tmp_path/'far/deep/new.jpg').touch()
    assert not is_finished(cfg)
    time.sleep(.02)
    write_start(run, cfg)
    assert is_finished(cfg)
    time.sleep(.02)
    os.utime(tmp_path/'far/deep/old.jpg')
    assert not is_finished(cfg)
