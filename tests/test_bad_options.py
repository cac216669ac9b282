"Options of silkworm-train that no net, optimiser or checkpoint takes: one sentence that names them, and nothing is trained."
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from silkworm_app.data.sample import draw_sample
from silkworm_app.train.config import TrainConfig, TrainError
from silkworm_app.train.fit import main
from silkworm_app.train.one import net_args

VANILLA = '--model vanillanet_5_x0_125'


@pytest.fixture(scope='module')
def data(tmp_path_factory): return draw_sample(tmp_path_factory.mktemp('data') / 'sample', n_per_class=8, size=32, seed=1)


@pytest.fixture
def train(data, tmp_path, capsys):
    "`(exit code, what is said to stderr)` of a short training"
    base = '--pretrained false --batch_size 8 --bundle false --group none --log_dir none --progress false --device cpu --num_workers 0 --input_size 32 --aug none'
    def run(options, *more, dest='run'):
        capsys.readouterr()
        code = main(['--data_path', str(data), '--output_dir', str(tmp_path / dest), *base.split(), *options.split(), *map(str, more)])
        return code, capsys.readouterr().err.strip()
    return run


def one_sentence(text): return text.startswith('silkworm-train: ') and '\n' not in text


@pytest.mark.parametrize('options, kwargs, words', [
    (VANILLA, '{foo: 1}', ['vanillanet_5_x0_125', 'foo=1']), (VANILLA, '{dims: 3}', ['dims is 3', '4 widths']), (VANILLA, '{dims: [8, 16]}', ['dims is [8, 16]', '4 widths']), (VANILLA, '{dims: [8, 8, 8, 8, 16]}', ['4 widths']),
    (VANILLA, '{num_classes: 5}', ['model_kwargs', 'num_classes']), (VANILLA, '{in_chans: 1}', ['model_kwargs', 'in_chans']), (VANILLA, '{init: delta}', ['model_kwargs', 'init']),
    ('--model resnet10t --stem_stride 2', None, ['resnet10t', 'stem_stride=2']),
    ('--model tf_efficientnet_lite0 --pretrained true', '{foo: 1}', ['cannot be built', 'foo=1'])])
def test_what_the_net_does_not_take(train, options, kwargs, words):
    code, said = train(f'{options} --epochs 1', *(['--model_kwargs', kwargs] if kwargs else []))
    assert code == 2 and one_sentence(said) and all(w in said for w in words), said


def test_model_kwargs_of_the_net_itself_win():
    cfg = TrainConfig(act_num=1, stem_stride=None, drop=.1, model_kwargs=dict(act_num=2, drop_rate=0., dims=[8, 8, 8, 8]))
    assert net_args(cfg) | dict(act_num=2, drop_rate=0., dims=[8, 8, 8, 8]) == net_args(cfg)
    cfg.model_kwargs = dict(dims=[8, 8, 8, 8], input_size=32, num_classes=2)
    with pytest.raises(TrainError, match='leave out input_size, num_classes'): net_args(cfg)


@pytest.mark.parametrize('options, words', [
    ('--opt_betas 0.9', 'adamw takes 2 numbers, not 1'), ('--opt lamb --opt_betas 0.9', 'lamb takes 2 numbers, not 1'), ('--opt adan --opt_betas 0.9 0.99', 'adan takes 3 numbers, not 2'),
    ('--opt sgd --opt_betas 0.9 0.99', 'sgd has no betas')])
def test_what_the_optimiser_does_not_take(train, options, words):
    code, said = train(f'{VANILLA} --epochs 1 {options}')
    assert code == 2 and one_sentence(said) and words in said, said


def test_betas_reach_the_optimiser():
    import torch
    from silkworm_app.train.optim import make_opt_func
    groups = [dict(params=[torch.nn.Parameter(torch.zeros(2))], weight_decay=w, lr_scale=.5) for w in (.1, 0.)]
    opt = make_opt_func(TrainConfig(opt='adamw', opt_betas=[.8, .9], opt_eps=1e-5))(groups, lr=.1).opt
    assert [(g['betas'], g['eps'], g['weight_decay'], g['lr_scale']) for g in opt.param_groups] == [((.8, .9), 1e-5, .1, .5), ((.8, .9), 1e-5, 0., .5)]
    assert opt.param_groups[0]['params'][0] is groups[0]['params'][0]


def test_checkpoint_of_another_training_is_named(train, tmp_path):
    assert train(f'{VANILLA} --epochs 1')[0] == 0
    file = shutil.copy(tmp_path / 'run/checkpoints/epoch_1.pth', tmp_path / 'alone.pth')               # else its run tells
    for k, options in enumerate(('--model vanillanet_5_x0_25', f'{VANILLA} --act relu', f'{VANILLA} --layer_decay 0.7')):
        code, said = train(f'{options} --epochs {1 + k % 2}', '--resume', file, dest=f'other_{k}')         # with nothing left to train, too
        assert code == 2 and one_sentence(said) and f'{file} is of another net, optimiser or averages' in said and 'is kept' not in said, said
        assert not [*(tmp_path / f'other_{k}').rglob('*.*')], 'nothing was trained'
    code, said = train(f'{VANILLA} --epochs 2', '--resume', file, dest='on')
    assert code == 0, said


def test_checkpoint_of_other_averages_is_named(train, tmp_path):
    "Its averages were missed by a KeyError"
    assert train(f'{VANILLA} --epochs 1 --model_ema --model_ema_decay 0.9')[0] == 0
    own, alone = tmp_path / 'run/checkpoints/epoch_1.pth', tmp_path / 'alone.pth'
    shutil.copy(own, alone)
    other = f'{VANILLA} --epochs 2 --model_ema --model_ema_decay 0.99'
    code, said = train(other, '--resume', own, dest='a')
    assert code == 2 and one_sentence(said) and 'model_ema_decay: [0.9], now [0.99]' in said, said
    code, said = train(other, '--resume', alone, dest='b')
    assert code == 2 and one_sentence(said) and 'averages of the decays [0.9], not [0.99]' in said, said
    for more, dest in (('--model_ema --model_ema_decay 0.9', 'c'), ('', 'd')):
        code, said = train(f'{VANILLA} --epochs 2 {more}', '--resume', own, dest=dest)
        assert code == 0, said


def test_resumed_as_it_was_started(data, tmp_path, capsys):
    "The net of an automatic start is built again; another net is refused before the run that it is resumed in loses its settings"
    line = f'--data_path {data} --model tf_efficientnet_lite0 --recipe last --epochs 2 --input_size 32 --bundle false --group none --log_dir none --progress false --device cpu --num_workers 0'.split()
    assert main([*line, '--output_dir', str(tmp_path/'a')]) == 0
    state, settings = tmp_path/'a/checkpoints/epoch_1.pth', (tmp_path/'a/settings.yaml').read_text()
    assert 'pretrained: true' in settings
    assert main([*line, '--output_dir', str(tmp_path/'b'), '--resume', str(state)]) == 0, capsys.readouterr().err
    assert (tmp_path/'a/best.safetensors').read_bytes() == (tmp_path/'b/best.safetensors').read_bytes()
    capsys.readouterr()
    for other, words in (('--model vanillanet_5_x0_125 --recipe full', 'model: tf_efficientnet_lite0, now vanillanet_5_x0_125'), ('--opt sgd', 'opt: adamw, now sgd')):
        assert main([*line, '--output_dir', str(tmp_path/'a'), '--resume', str(state), *other.split()]) == 2
        assert f'another net, optimiser or averages ({words}' in capsys.readouterr().err and (tmp_path/'a/settings.yaml').read_text() == settings


def test_numbers_and_yaml_as_they_are_typed(train):
    "Commas may stand between numbers, as in a settings file; what is no YAML is a sentence, and no traceback of the parser"
    from silkworm_app.train.config import convert
    assert convert('mean', ['.4,.5,.6']) == convert('mean', ['.4', '.5', '.6']) == convert('mean', '.4, .5, .6') == [.4, .5, .6]
    for bad in ('{', '{dims: [8, 8}', 'a: b: c'):
        with pytest.raises(TrainError, match='model_kwargs must be names and values'): convert('model_kwargs', bad)


def test_pictures_too_small_for_the_net(train, tmp_path):
    "Known before anything starts"
    code, said = train(f'{VANILLA} --epochs 1', '--input_size', 7)
    assert code == 2 and one_sentence(said) and 'input_size 7 is too small for vanillanet_5_x0_125: take 16 or more' in said, said
    assert not [*tmp_path.rglob('run/*.*')], 'nothing was started'


@pytest.mark.parametrize('options, words', [
    ('--act relu --act_num 5 --per_channel true', 'without act lslu or series there is no use for act_num, per_channel'), ('--act series --form sum', 'without act lslu there is no use for form'),
    ('--model_key foo', 'without finetune there is no use for model_key'), ('--project mine', 'without enable_wandb there is no use for project'),
    ('--save_ckpt false --save_ckpt_num 5', 'without save_ckpt there is no use for save_ckpt_num')])
def test_what_another_option_makes_useless_is_said(options, words, capsys):
    from silkworm_app.train.config import read_settings
    from silkworm_app.train.setup import _say_unused
    cfg = read_settings(f'{VANILLA} --recipe full {options}'.split())
    _say_unused(cfg, {})
    assert f'{words}: left out' in capsys.readouterr().out


@pytest.mark.parametrize('steps', (0, 30))
def test_figures_of_any_number_of_steps(steps, tmp_path, recwarn):
    "matplotlib said that a legend was empty, or that it left no room"
    import numpy as np
    from silkworm_app.figures import params_over_epochs, save_figure
    save_figure(params_over_epochs((np.array([1, 2]), {'stem.act.alphas': np.ones((2, steps)), 'stem.act.biases': np.ones((2, steps))})), tmp_path/'f', ('png',))
    assert not [str(w.message) for w in recwarn if 'legend' in str(w.message) or 'layout' in str(w.message)]


def test_loss_that_is_no_number_is_one_sentence(data, tmp_path):
    "torch warned of the way in which it was read, in two lines; it does so once in a process"
    line = f'--data_path {data} --output_dir {tmp_path}/run {VANILLA} --pretrained false --lr 1e9 --epochs 1 --batch_size 8 --bundle false --group none --log_dir none --device cpu --num_workers 0 --input_size 32 --aug none'
    done = subprocess.run([sys.executable, '-c', 'import sys; from silkworm_app.cli import train_main; sys.exit(train_main())', *line.split()], capture_output=True, text=True)
    assert done.returncode == 1 and one_sentence(done.stderr.strip()) and 'the loss became' in done.stderr, done.stderr


def test_a_stop_that_python_drops_comes_again(monkeypatch, tmp_path):
    "What is raised in a destructor is printed and forgotten: a training went on after SIGTERM"
    from silkworm_app.train import fit
    class Last:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(.05)                                            # where the handler raises
    def train(*_):
        o = Last()
        del o
        end = time.monotonic() + 20
        while time.monotonic() < end: time.sleep(.01)
        return {}
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(fit, 'train', train)
    monkeypatch.setattr(fit, '_again', .3)
    monkeypatch.setattr(sys, 'unraisablehook', lambda e: None)            # pytest's would warn
    assert main(['--data_path', 'none', '--output_dir', str(tmp_path/'run')]) == 130
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize('options, words', [
    ('--switch_to_deploy {0}', 'switch_to_deploy {0} is a folder; name a file'), ('--log_dir {0}/a.txt', 'log_dir {0}/a.txt is a file; name a folder'),
    ('--output_dir {0}/a.txt', 'output_dir {0}/a.txt is a file; name a folder'), ('--output_dir {0}/a.txt/run', 'output_dir {0}/a.txt/run cannot be written: {0}/a.txt is a file'),
    ('--output_dir /proc/run', 'output_dir /proc/run cannot be written: /proc: '), ('--switch_to_deploy /proc/a.pth', 'switch_to_deploy /proc/a.pth cannot be written: /proc: ')])
def test_what_cannot_be_written_is_told_before_the_training(train, tmp_path, options, words):
    "A folder for --switch_to_deploy was a traceback at the end"
    (tmp_path/'a.txt').touch()
    code, said = train(f'{VANILLA} --epochs 1 {options}'.format(tmp_path))
    assert code == 2 and one_sentence(said) and words.format(tmp_path) in said and 'Errno' not in said, said
    assert [*tmp_path.iterdir()] == [tmp_path/'a.txt']


@pytest.mark.parametrize('options, words', [('--config nowhere.yaml', 'settings file nowhere.yaml cannot be read'), ('--aug nowhere.yaml', 'augmentation file nowhere.yaml')])
def test_a_missing_file_is_said_without_its_number(train, options, words):
    code, said = train(f'{VANILLA} --epochs 1 {options}'.replace('--aug', '--aug none --aug'))
    assert code == 2 and one_sentence(said) and f'{words}: No such file or directory' in said, said


def test_commands_that_are_printed_can_be_copied(data, tmp_path, capsys, monkeypatch):
    "Also where names hold spaces, and what is looked for from elsewhere is named in full"
    from silkworm_app.train.evaluate import main as evaluate
    run = tmp_path/'my first run'
    monkeypatch.chdir(data.parent)
    assert main(['--data_path', data.name, '--output_dir', str(run), *f'{VANILLA} --pretrained false --epochs 1 --group none --log_dir none --device cpu --num_workers 0 --input_size 32 --onnx false'.split()]) == 0
    assert f"silkworm-app --bundle '{run}/bundle'" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    assert evaluate([run.name]) == 2 and f'are not in {tmp_path/data.name}: name the folder that holds them, or run this where it was trained' in capsys.readouterr().err
