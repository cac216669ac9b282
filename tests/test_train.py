"Every option of silkworm-train is tried; bad input gets one sentence."
import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from silkworm_app.data.sample import draw_larva, draw_sample
from silkworm_app.cli import train_main as command       # draws the plots, too
from silkworm_app.train.fit import main
from silkworm_app.train.config import GROUPS as TITLES, OPTIONS, TrainConfig, TrainError, read_settings
from silkworm_app.act.start import open_weights
from silkworm_app.train.evaluate import main as evaluate
from silkworm_app.train.pictures import run_splits, write_pictures
from silkworm_app.train.run import RunFolder
from silkworm_app.train.setup import load_splits

BASE = ['--pretrained', 'false', '--epochs', 1, '--batch_size', 16, '--bundle', 'false', '--group', 'hash', '--log_dir', 'none', '--progress', 'false', '--device', 'cpu', '--num_workers', 0]


@pytest.fixture(scope='module')
def data(tmp_path_factory): return draw_sample(tmp_path_factory.mktemp('data')/'sample', n_per_class=15, size=32, seed=1)


@pytest.fixture
def train(data, tmp_path, capsys):
    "`(exit code, output, metrics)` of a training"
    def run(*options, data=data, dest=tmp_path/'run', main=main):
        options = [str(o) for o in options]
        base = [str(b) for i in range(0, len(BASE), 2) if BASE[i] not in options for b in BASE[i:i + 2]]
        capsys.readouterr()
        code = main(['--data_path', str(data), '--output_dir', str(dest), *base, *options])
        out = ''.join(capsys.readouterr())
        assert 'Traceback' not in out
        return code, out, json.loads((dest/'metrics.json').read_text()) if (dest/'metrics.json').is_file() else None
    return run


GROUPS = { # options that go together; between them they name every option of training
    'policy': '--risk 0.2 --aa rand-m7-mstd0.5-inc1 --color_jitter 0.3 --train_interpolation bilinear --reprob 0.5 --remode rand --recount 2 --crop_pct 0.875 --interpolation bilinear --resize squish',
    'mixing': '--aug light --mixup 0.8 --cutmix 1 --mixup_prob 0.9 --mixup_switch_prob 0.4 --mixup_mode pair --smoothing 0.1 --bce_loss --bce_target_thresh 0.2 --fast true',
    'minmax': '--aug none --cutmix_minmax 0.2 0.6 --mixup_mode elem --smoothing 0.1',
    'optimiser': '--opt sgd --momentum 0.8 --lr 0.05 --sched cosine --warmup_epochs 1 --min_lr 1e-5 --weight_decay 0.1 --weight_decay_end 0.01 --layer_decay 0.7 --clip_grad 1 --update_freq 2 --epochs 2',
    'lamb': '--opt lamb --opt_eps 1e-6 --opt_betas 0.9 0.98',
    'averages': '--model_ema true --model_ema_decay 0.5 0.9 --model_ema_warmup true --model_ema_eval true --decay_epochs 1 --decay_linear true --epochs 3 --early_stop_epochs 1 --save_ckpt_freq 2 --save_ckpt_num 1 --test_freq 2',
    'net': '--model test_resnet --act_num 2 --form sum --per_channel true --where all --init identity --drop 0.2 --channels_last false --seed 3',
    'series': '--act series --stem_stride 2 --input_size 48 --use_amp true --nb_classes 5 --sync_bn false --early_stop_epochs 0 --save_ckpt false',
    'bf16': '--use_amp true --amp_dtype bf16 --valid_pct 0.3 --test_pct 0.1 --on_bad skip --model_prefix x. --model_key model',
}


@pytest.mark.parametrize('name', [g if g in ('policy', 'mixing', 'averages') else pytest.param(g, marks=pytest.mark.slow) for g in GROUPS])
def test_options(train, tmp_path, name):
    code, out, m = train(*GROUPS[name].split())
    assert code == 0, out
    assert m['test']['n'] == 15 and np.isfinite(m['test']['loss']) and np.isfinite(m['train_loss'])
    s = read_settings(['--config', str(tmp_path/'run/settings.yaml')])
    asked = read_settings(GROUPS[name].split())
    for k in asked.given: assert getattr(s, k) == getattr(asked, k), k
    if name == 'averages':
        rows = list(csv.DictReader((tmp_path/'run/history.csv').open()))
        assert [r['valid_loss'] != 'None' for r in rows] == [False, True, True] and len(list((tmp_path/'run/checkpoints').iterdir())) <= 2
        assert (tmp_path/'run/best_ema_0.5.safetensors').is_file() and (tmp_path/'run/best_ema_0.9.safetensors').is_file()


def test_every_option_is_tried():
    tried = {o.split()[0] for g in GROUPS.values() for o in g.split('--')[1:]} | {b[2:] for b in BASE if str(b).startswith('--')} | {'data_path', 'output_dir'}
    elsewhere = {'cross_validate', 'better_than', 'fold', 'model_kwargs', 'mean', 'std', 'recipe', 'pretrained', 'enable_wandb', 'project', 'data_set', 'n_train', 'n_test', 'eval_data_path', 'cache', 'scenes', 'config', 'overwrite', 'resume', 'finetune', 'eval', 'switch_to_deploy', 'onnx', 'auto_resume', # below
                 'deploy', 'compile'} # test_distributed.py; slow; cross_validate: test_experiment.py; better_than: test_merge.py; scenes: test_copies.py
    assert tried | elsewhere == set(OPTIONS), tried ^ elsewhere ^ set(OPTIONS)


def test_whole_run_again_from_its_settings(data, tmp_path, capsys, monkeypatch):
    "Bundle, plots, scalars; the same run again from its settings file, bit for bit; evaluated by silkworm-evaluate; continued from its weights"
    monkeypatch.setenv('SILKWORM_CACHE', str(tmp_path/'memory'))         # the pictures are compared once
    run, again = tmp_path/'run', tmp_path/'again'
    assert command(['--data_path', str(data), '--output_dir', str(run), '--pretrained', 'false', '--epochs', '2', '--model_ema', '--model_ema_decay', '.5', '--progress', 'false', '--cache', str(tmp_path/'cache'), '--switch_to_deploy', str(tmp_path/'d.safetensors')]) == 0
    out = capsys.readouterr().out
    assert 'largest relative difference' in out and 'ONNX file against' in out
    for f in ('settings.yaml', 'history.csv', 'learnable_params.txt', 'learnable_params.jsonl', 'metrics.json', 'best.safetensors', 'best_ema_0.5.safetensors', 'bundle/model.onnx', 'bundle/config.json', 'plots/confusion_matrix.png',
              'plots/activation_curves.png', 'checkpoints/epoch_2.pth', 'logs'): assert (run/f).exists(), f
    assert (run/'learnable_params.txt').read_text().startswith('Epoch 1:\nstem.act.alphas: [')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    acc = EventAccumulator(str(run/'logs')); acc.Reload()
    tags = acc.Tags()['scalars']
    assert {'metrics/valid_loss', 'metrics/accuracy', 'metrics/lr', 'alphas/stem.act/0', 'biases/stem.act/0'} <= set(tags), tags
    s = yaml.safe_load((run/'settings.yaml').read_text())
    assert s['act_num'] == 1 and s['channels_last'] is (s['device'] == 'cpu' or not torch.cuda.is_available())  # 48 pixels; memory format of a CPU
    assert main(['--config', str(run/'settings.yaml'), '--output_dir', str(again), '--bundle', 'false', '--onnx', 'false']) == 0
    assert (run/'best.safetensors').read_bytes() == (again/'best.safetensors').read_bytes()
    capsys.readouterr()
    for what, cols in ((run, 'unfused fused ONNX'), (run/'checkpoints/epoch_2.pth', 'unfused fused'), (run/'bundle', 'fused ONNX'), (run/'bundle/model.onnx', 'ONNX')):
        args = [str(what), '--json', str(tmp_path/'e.json')] + (['--data', str(data)] if 'bundle' in str(what) else [])
        assert evaluate(args) == 0
        e = json.loads((tmp_path/'e.json').read_text())
        assert all(c in e for c in cols.split())
        if 'epoch_2' not in str(what):
            m = json.loads((run/'metrics.json').read_text())['test']
            for c in cols.split(): assert e[c]['confusion_matrix'] == m['confusion_matrix'] and abs(e[c]['loss'] - m['loss']) < 1e-4
    assert evaluate([str(run), '--model_key', 'model_ema_0.5']) == 0 and evaluate([str(run/'checkpoints/epoch_2.pth'), '--model_key', 'model_ema_0.5', '--split', 'valid']) == 0
    assert evaluate([str(run), '--model_key', 'model_ema_0.7']) == 2 and 'best_ema_0.5' in capsys.readouterr().err
    assert evaluate([str(run/'checkpoints/epoch_2.pth'), '--model_key', 'model_ema', '--split', 'test', '--json', str(tmp_path/'e.json')]) == 0
    args = ['--data_path', str(data), '--eval', 'true', '--output_dir', str(tmp_path/'ev'), '--finetune']
    assert main([*args, str(run/'checkpoints/epoch_2.pth'), '--model_key', 'model_ema']) == 0
    one, two = (json.loads((tmp_path/f).read_text()) for f in ('e.json', 'ev/eval.json'))
    rounded = {k: pytest.approx(v, rel=1e-6) if k in ('loss', 'ece') else v for k, v in two['unfused'].items()}  # maps lie otherwise in memory there, so sums differ in their last bits
    assert one['unfused'] == rounded and one['split'] == two['split'] == 'test'
    assert one['unfused']['loss'] != json.loads((run/'metrics.json').read_text())['test']['loss']
    assert main([*args, str(run), '--model_key', 'model_ema_0.7']) == 2 and 'it has best_ema_0.5.safetensors' in capsys.readouterr().err
    args = ['--data_path', str(data), '--finetune', str(run), '--epochs', '1', '--bundle', 'false', '--progress', 'false', '--output_dir']
    assert main([*args, str(tmp_path/'fine')]) == 0 and 'Weights of' in capsys.readouterr().out
    assert main([*args, str(tmp_path/'more'), '--resume', str(run/'checkpoints/epoch_1.pth'), '--epochs', '2', '--lr', '.004', '--model_ema', '--model_ema_decay', '.5']) == 0 and 'Going on after epoch 1' in capsys.readouterr().out
    assert main(['--data_path', str(data), '--finetune', str(run), '--eval', 'true', '--eval_data_path', str(data)]) == 0 and 'validation split' in capsys.readouterr().out


def test_other_validation_folder(train, data, tmp_path):
    "Its pictures are the validation split; that they are the training pictures is said"
    code, out, m = train('--eval_data_path', data/'train')
    assert code == 0 and m['valid']['n'] == 45 and m['leak']['valid_seen_in_train'] == 1. and 'of the validation pictures also occur in train' in out, out


def test_cifar(tmp_path, cifar10_dir, capsys):
    "A folder of CIFAR-10"
    assert main(['--data_path', str(cifar10_dir), '--data_set', 'CIFAR10', '--n_train', '200', '--n_test', '100', '--output_dir', str(tmp_path/'run'), '--epochs', '1', '--bundle', 'false', '--progress', 'false', '--batch_size', '32']) == 0
    m = json.loads((tmp_path/'run/metrics.json').read_text())
    assert m['test']['n'] == 100 and len(m['classes']) == 10


def test_cifar_is_cifar100(tmp_path, capsys):
    "As in the reference; with CIFAR-10 alone there, one sentence says what to take"
    for k in (10, 100):
        for split, n in (('train', 10), ('test', 1)):
            for c in range(k):
                d = tmp_path/f'cifar{k}'/split/f'class{c:02}'
                d.mkdir(parents=True)
                for i in range(n): Image.fromarray(np.random.default_rng([k, c, i]).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(d/f'{i}.png')
    splits = lambda name, path: load_splits(read_settings(['--data_path', str(path), '--data_set', name]))
    for name, path, k in (('CIFAR', tmp_path, 100), ('CIFAR', tmp_path/'cifar100', 100), ('CIFAR100', tmp_path, 100), ('CIFAR10', tmp_path, 10)): assert len(splits(name, path).classes) == k and len(splits(name, path).test) == k
    assert main(['--data_path', str(tmp_path/'cifar10'), '--data_set', 'CIFAR', '--output_dir', str(tmp_path/'run')]) == 2
    err = capsys.readouterr().err
    assert err.startswith('silkworm-train: data_set CIFAR is CIFAR-100') and '--data_set CIFAR10' in err and err.count('\n') == 1 and not (tmp_path/'run').exists()
    assert main(['--data_path', str(tmp_path/'cifar100'), '--data_set', 'CIFAR10', '--output_dir', str(tmp_path/'run')]) == 2 and 'cifar10 has 10 classes' in capsys.readouterr().err


def test_pretrained(train, data, tmp_path, monkeypatch):
    "Weights in the local cache are taken; without them one sentence, and nothing that stands in the way of the next start"
    import timm
    from huggingface_hub import constants
    from safetensors.torch import load_file, save_file
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path/'hub'))
    options = '--model test_resnet --pretrained --recipe head --input_size 64'.split()
    code, out, m = train(*options)
    assert code == 2 and m is None and out.splitlines()[-1].startswith('silkworm-train: The pretrained weights of test_resnet are neither installed nor cached'), out
    code, out, m = train('--model', 'vanillanet_5_x0_125', '--pretrained')
    assert code == 2 and 'weights of vanillanet_5_x0_125 are published nowhere' in out.splitlines()[-1], out
    torch.manual_seed(5)
    net = timm.create_model('test_resnet')
    repo = tmp_path/'hub'/f'models--{net.pretrained_cfg["hf_hub_id"].replace("/", "--")}' # as huggingface_hub lays it out
    for d in ('refs', 'snapshots/abc'): (repo/d).mkdir(parents=True)
    (repo/'refs/main').write_text('abc')
    save_file(net.state_dict(), repo/'snapshots/abc/model.safetensors')
    code, out, m = train(*options)
    assert code == 0 and "pretrained (timm's cache (timm/test_resnet" in out, out
    kept = yaml.safe_load((tmp_path/'run/settings.yaml').read_text())
    assert [kept['mean'], kept['std']] == [list(net.pretrained_cfg[k]) for k in ('mean', 'std')]  # .5, the weights' own
    got, convs = load_file(tmp_path/'run/best.safetensors'), {k: v for k, v in net.state_dict().items() if v.ndim == 4}
    assert len(convs) > 10 and all(torch.equal(got[k], v) for k, v in convs.items())


def test_wandb(train, tmp_path, monkeypatch):
    "Without the package one sentence, at once; with it, what is logged is what is printed; the same run there goes on when it goes on here; no other connection is opened"
    import socket
    import sys
    monkeypatch.setitem(sys.modules, 'wandb', None)
    code, out, m = train('--enable_wandb')
    assert code == 2 and m is None and out.strip() == 'silkworm-train: enable_wandb needs the package wandb: pip install wandb' # before any picture is read
    monkeypatch.delitem(sys.modules, 'wandb')
    (tmp_path/'fake').mkdir()
    (tmp_path/'fake/wandb.py').write_text('''
calls = []
class Run:
    summary = {}
    def log(self, d, step): calls.append((step, d))
    def finish(self): calls.append('finish')
def init(**kw): calls.append(kw); return Run()
''')
    monkeypatch.syspath_prepend(tmp_path/'fake')
    def refuse(*args): raise AssertionError(f'a connection to {args[1:]}')
    monkeypatch.setattr(socket.socket, 'connect', refuse)
    code, out, m = train('--enable_wandb', '--project', 'worms', '--epochs', 2)
    assert code == 0, out
    import wandb
    start, (one, first), (two, last), end = wandb.calls
    assert start['project'] == 'worms' and start['config']['epochs'] == 2 and start['resume'] is None and (one, two, end) == (1, 2, 'finish')
    rows = list(csv.DictReader((tmp_path/'run/history.csv').open()))
    for row, got in zip(rows, (first, last)):
        for k in ('train_loss', 'valid_loss', 'accuracy', 'balanced_accuracy_score'): assert abs(got[f'metrics/{k}'] - float(row[k])) < 1e-6
        assert f'accuracy {got["metrics/accuracy"]:.4f}' in out and f'valid loss {got["metrics/valid_loss"]:.4f}' in out
    assert last['alphas/stem.act/0'] == json.loads((tmp_path/'run/learnable_params.jsonl').read_text().splitlines()[-1])['params']['stem.act.alphas'][0]
    assert wandb.Run.summary['test/accuracy'] == m['test']['accuracy'] and 'test/top5' not in wandb.Run.summary
    for f in ('metrics.json', 'checkpoints/epoch_2.pth'): (tmp_path/'run'/f).unlink() # as if it had been killed in its second epoch
    code, out, m = train('--enable_wandb', '--project', 'worms', '--epochs', 2)
    again, (two, more), end = wandb.calls[4:]
    assert code == 0 and again['resume'] == 'allow' and again['id'] == start['id'] and two == 2 and more == last


BAD = [(['--nb_classes', 7], 'nb_classes is 7'), (['--model', 'vanilanet_5'], 'vanillanet_5'), (['--opt', 'adamy'], 'close to it'), (['--aa', 'rand-m7', '--aug', 'strong'], 'two ways to augment'),
       (['--aa', 'nonsense'], 'timm augmentation'), (['--aug', 'nonsense'], 'augmentation'), (['--batch_size', 0], 'batch_size must be 2'), (['--epochs', 0], 'epochs must be 1'), (['--drop', 2], 'drop must be'),
       (['--finetune', 'nofile.pth'], 'nofile.pth'), (['--resume', 'nofile.pth'], 'nofile.pth'), (['--device', 'cuda:9'], 'device'), (['--stem_stride', 9], 'stem_stride'), (['--form', 'spline'], 'form must be one of'),
       (['--opt', 'sgd', '--opt_betas', .9, .9], 'opt sgd'), (['--model_ema', 'true', '--model_ema_decay', 1.5], 'decay'), (['--config', 'nofile.yaml'], 'nofile.yaml'), (['--lr', 'fast'], 'lr must be a number')]


@pytest.mark.parametrize('options, says', BAD, ids=[f'{" ".join(map(str, o))}' for o, _ in BAD])
def test_bad_options(train, options, says):
    code, out, m = train(*options)
    assert code == 2 and says in out and m is None, out
    assert out.strip().splitlines()[-1].startswith('silkworm-train: ')


def test_what_would_train_nothing_is_refused(data):
    "Each of these was taken, and the net stayed as it was, or came out as nonsense"
    from silkworm_app.train.config import TrainError
    from silkworm_app.train.setup import resolve
    splits = load_splits(read_settings(['--data_path', str(data), '--group', 'hash']))
    for o in ['lr 0', 'lr -1', 'lr inf', 'min_lr 1', 'clip_grad -1', 'smoothing 1', 'drop 1', 'mixup -1', 'momentum 2', 'opt_betas 2 .9', 'model_ema_decay 1', 'layer_decay 0', 'weight_decay -1', 'weight_decay_end -1',
              'bce_target_thresh 2', 'crop_pct 0', 'crop_pct 3', 'std 0 0 0', 'std 1 1', 'mean 1 2', 'num_workers -1', 'seed -1', 'seed 99999999999', 'cutmix_minmax 2 3', 'cutmix_minmax .5', 'n_train -5', 'recount 0', 'risk 1']:
        with pytest.raises(TrainError, match=o.split()[0]): resolve(read_settings(['--data_path', str(data), '--device', 'cpu', *f'--{o}'.split()]), splits)


def test_bad_data(train, data, tmp_path):
    def broken(name, change):
        d = tmp_path/name
        shutil.copytree(data, d)
        change(d)
        return d
    pic = sorted((data/'train').glob('*/*.jpg'))[0].relative_to(data)
    for d, says in ((tmp_path/'nothing', 'does not exist'), (broken('corrupt', lambda d: (d/pic).write_bytes(b'x')), pic.name), (broken('empty', lambda d: [f.unlink() for f in (d/'train'/'healthy').iterdir()]), 'healthy'),
                    (broken('one', lambda d: [shutil.rmtree(f) for s in d.iterdir() if s.is_dir() for f in sorted(s.iterdir())[1:]]), 'one class only')):
        code, out, m = train(data=d)
        assert code == 2 and says in out and m is None, out
    code, out, m = train(dest=data/'run')
    assert code == 2 and 'lies among the pictures' in out and not (data/'run').exists(), out
    (tmp_path/'full').mkdir(); (tmp_path/'full/mine.txt').write_text('x')
    code, out, _ = train('--overwrite', dest=tmp_path/'full')
    assert code == 2 and 'not overwritten' in out and (tmp_path/'full/mine.txt').exists()


def options_table():
    "The options with what carries each, as docs/training.md shows them."
    text = lambda v: ' '.join(map(str, v)) if isinstance(v, list) else str(v).lower() if isinstance(v, bool) else str(v)
    show = lambda v: 'none' if v is None else 'empty' if v == '' else f'`{text(v)}`'
    out = []
    for title in TITLES:
        out += [f'### {title}', '', '| option | default | what it does | carried by |', '|---|---|---|---|']
        out += [f'| `--{o.name}` | {show(o.default)} | {o.help.replace("|", "/")} | {o.by} |' for o in OPTIONS.values() if o.group == title]
        out.append('')
    return '\n'.join(out)


def test_docs_list_the_options():
    docs = Path(__file__).parent.with_name('docs')/'training.md'
    assert options_table() in docs.read_text(encoding='utf-8'), 'write the table anew with `options_table` of this file'


@pytest.mark.slow
def test_compiled(train):
    code, out, m = train('--compile', 'true', '--epochs', 2)
    assert code == 0, out


def test_overwrite_removes_only_what_the_run_wrote(train, tmp_path):
    "A folder that holds any settings.yaml, and a run beside a person's own files"
    mine = ['models/a.pth', 'logs/diary.txt', 'plots/holiday.png', 'bundle/readme.txt', 'checkpoints/epoch_7.pth', 'history.csv', 'notes.txt']
    def put(folder):
        for f in mine:
            (folder/f).parent.mkdir(parents=True, exist_ok=True)
            (folder/f).write_text('mine')
    def there(folder): return [f for f in mine if not any((d/f).is_file() and (d/f).read_text() == 'mine' for d in (folder, *folder.glob('before_*')))]
    put(tmp_path/'a')
    (tmp_path/'a/settings.yaml').write_text('colour: red')
    code, out, _ = train('--overwrite', dest=tmp_path/'a')
    assert code == 2 and 'no earlier run' in out and there(tmp_path/'a') == []
    (tmp_path/'a/settings.yaml').write_text('epochs: 3')
    code, out, _ = train('--overwrite', dest=tmp_path/'a', main=command)
    assert code == 0 and there(tmp_path/'a') == [] and 'Moved aside' in out, out
    code, out, _ = train(dest=tmp_path/'b', main=command)
    put(tmp_path/'b'/'more'); mine = [f'more/{f}' for f in mine] + ['plots/mine.txt', 'checkpoints/epoch_9.pth']
    for f in mine[-2:]: (tmp_path/'b'/f).write_text('mine')
    code, out, m = train('--overwrite', '--lr', .01, dest=tmp_path/'b', main=command)
    assert code == 0 and there(tmp_path/'b') == [] and not list((tmp_path/'b').glob('before_*/best*')), out


def test_a_first_run_loses_nothing_of_others(train, tmp_path):
    "Without --overwrite: a folder with a person's own files of the same names, and no run"
    mine = ['metrics.json', 'history.csv', 'pictures.csv', 'plots/confusion_matrix.png', 'settings.yaml']
    for f in mine[:4]:
        (tmp_path/'a'/f).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/'a'/f).write_text('mine')
    code, out, _ = train(dest=tmp_path/'a', main=command)
    assert code == 0 and all((tmp_path/'a/before_1'/f).read_text() == 'mine' for f in mine[:4]) and 'Moved aside' in out, out
    (tmp_path/'b').mkdir(), (tmp_path/'b/settings.yaml').write_text('epochs: 3  # mine')
    assert train(dest=tmp_path/'b')[0] == 0 and 'mine' in (tmp_path/'b/before_1/settings.yaml').read_text()


def test_a_photograph_of_many_copies_counts_once(train, data, tmp_path):
    "35 % of the 31 files of a class were found, and all were of one photograph"
    shutil.copytree(data, tmp_path/'set')
    many = sorted((tmp_path/'set/test/healthy').iterdir())[0]
    for k in range(3):
        with Image.open(many) as im: im.save(many.with_name(f'again_{k}.png'), compress_level=k)
    code, out, m = train('--bundle', 'true', data=tmp_path/'set')
    n = len(list((tmp_path/'set/test').rglob('*.*')))
    assert code == 0 and (m['test']['n'], m['test']['photographs'], m['test']['per_class_n']['healthy']) == (n, n - 3, 3), out
    recall, (low, high) = [v for v in m['test']['per_class_recall'].values() if v is not None], m['test']['interval']
    assert np.allclose(np.array(m['test']['confusion_matrix']).sum(), n - 3) and m['test']['balanced_accuracy'] == pytest.approx(np.mean(recall))
    assert low < m['test']['balanced_accuracy'] < high and f'photographs{n - 3:25}' in out and f'{100*low:.1f} to {100*high:.1f} %' in out
    assert f'({n} pictures of {n - 3} photographs, each of which counts once): accuracy' in (tmp_path/'run/bundle/card.md').read_text()
    numbers = lambda *more: evaluate([str(tmp_path/'run'), *more, '--json', str(tmp_path/'e.json')]) == 0 and json.loads((tmp_path/'e.json').read_text())['ONNX']
    assert numbers()['accuracy'] == m['test']['accuracy'] == numbers('--data', str(tmp_path/'set'))['accuracy'] and numbers()['photographs'] == n - 3


@pytest.fixture(scope='module')
def grown(tmp_path_factory):
    "A run on class folders, to which pictures were added afterwards"
    top = tmp_path_factory.mktemp('grown')
    for c in ('healthy', 'pebrine'):
        (top/'p'/c).mkdir(parents=True)
        for i in range(16): draw_larva(c, 32, seed=i).save(top/'p'/c/f'{i:02}.png')
    line = ['--data_path', str(top/'p'), *map(str, BASE)]
    line[line.index('--bundle') + 1] = 'true'
    line += ['--onnx', 'false']
    assert main([*line, '--epochs', '2', '--output_dir', str(top/'run')]) == 0
    for c in ('healthy', 'pebrine'):
        for i in range(16): draw_larva(c, 32, seed=100 + i).save(top/'p'/c/f'{i:02}_new.png')
    return top, line


def test_a_run_is_tested_on_the_pictures_that_it_left_out(grown, capsys):
    "The folder has grown: cut anew, most of the test would have been trained on"
    top, line = grown
    rows = list(csv.DictReader((top/'run/pictures.csv').open(encoding='utf-8-sig')))
    assert {r['split'] for r in rows} == {'train', 'valid', 'test'} and len(rows) == 32 and not any(r['path'].startswith('/') for r in rows)
    m = json.loads((top/'run/metrics.json').read_text())
    for what in ('run', 'run/bundle'):
        assert evaluate([str(top/what), '--json', str(top/'e.json')]) == 0
        out, e = capsys.readouterr().out, json.loads((top/'e.json').read_text())
        assert e['fused']['confusion_matrix'] == m['test']['confusion_matrix'] and 'trained on' not in out, out
    assert main([*line, '--eval', 'true', '--finetune', str(top/'run')]) == 0 and f'{m["test"]["n"]}' in (out := capsys.readouterr().out) and 'trained on' not in out
    n = sum(r['split'] == 'train' for r in rows)
    assert evaluate([str(top/'run/bundle'), '--data', str(top/'p')]) == 0 and f'trained on {n} of these 64 pictures' in capsys.readouterr().out
    shutil.copytree(top/'run/bundle', top/'given away/b')                # without its run
    assert evaluate([str(top/'given away/b'), '--data', str(top/'p')]) == 0 and f'trained on {n} of these 64 pictures' in capsys.readouterr().out
    shutil.copytree(top/'p', top/'again', dirs_exist_ok=True)
    assert main(['--data_path', str(top/'again'), *line[2:], '--eval', 'true', '--finetune', str(top/'run/bundle')]) == 0 and 'the net was trained on' in capsys.readouterr().out


def test_prepared_then_trained(grown):
    "The README's two lines: what prepare wrote is known by its manifest; its folds are parts to test on, not classes"
    from silkworm_app.cli import data_main
    top, line = grown
    assert data_main(['prepare', str(top/'p'), str(top/'clean'), '--level', 'hash', '--folds', '2']) == 0
    assert main(['--data_path', str(top/'clean'), *line[2:], '--epochs', '1', '--output_dir', str(top/'two')]) == 0
    m = json.loads((top/'two/metrics.json').read_text())
    assert m['classes'] == ['healthy', 'pebrine'] and m['cross_validation']['folds'] == 2 and m['cross_validation']['n'] == 64


def test_a_start_that_knows_the_test(grown, capsys):
    "The bundle in a run starts a training, with the net that it was made from; that this net knows some of the test pictures is said"
    top, line = grown
    assert main([*line, '--output_dir', str(top/'fine'), '--finetune', str(top/'run/bundle')]) == 0
    out, m = capsys.readouterr().out, json.loads((top/'fine/metrics.json').read_text())
    assert 'bundle is fused' in out and 'the net computes what the file\'s does' in out, out
    assert m['leak']['test_seen_in_train'] > 0 and 'the weights of bundle were trained on' in out and any('trained on' in w for w in m['warnings'])


def test_a_run_goes_on_with_its_own_pictures(grown, capsys):
    top, line = grown
    run = top/'begun'
    shutil.copytree(top/'run', run)
    (run/'metrics.json').unlink(), (run/'checkpoints/epoch_2.pth').unlink()
    again = [*line, '--epochs', '2', '--output_dir', str(run)]
    assert main(again) == 2 and '32 are new (healthy/00_new.png)' in capsys.readouterr().err
    (run/'pictures.csv').unlink()
    assert main(again) == 2 and f'{run} has no pictures.csv: bring it back' in capsys.readouterr().err
    assert main([*line, '--epochs', '2', '--output_dir', str(top/'other'), '--resume', str(top/'run/checkpoints/epoch_1.pth')]) == 2 and 'are new' in capsys.readouterr().err


@pytest.mark.parametrize('entry', [main, command])
def test_a_finished_run_is_none_of_other_pictures(grown, tmp_path, capsys, entry):
    top, line = grown
    again = [*line, '--epochs', '2', '--output_dir', str(top/'run')]
    assert entry(again) == 2 and '32 are new (healthy/00_new.png)' in capsys.readouterr().err
    for c in ('healthy', 'pebrine'): shutil.copytree(top/'p'/c, tmp_path/'q'/c, ignore=shutil.ignore_patterns('*_new.png', '00.png'))
    assert entry(['--data_path', str(tmp_path/'q'), *again[2:]]) == 2 and '2 are gone' in capsys.readouterr().err
    shutil.copy(top/'p/healthy/00.png', tmp_path/'q/healthy'), shutil.copy(top/'p/pebrine/00.png', tmp_path/'q/pebrine')
    assert entry(['--data_path', str(tmp_path/'q'), *again[2:]]) == 0 and 'it is finished' in capsys.readouterr().out


def test_evaluated_under_other_names_of_classes(grown, tmp_path, capsys):
    "The net's own order of the classes counts, whatever the folders are called; what it doesn't know is said"
    top, line = grown
    for c, called in (('healthy', 'z_healthy'), ('pebrine', 'a_pebrine')): shutil.copytree(top/'p'/c, tmp_path/'other'/called)
    shutil.copytree(top/'p', tmp_path/'three'), shutil.copytree(top/'p/pebrine', tmp_path/'three/rust')
    for w in (top/'run', top/'run/best.safetensors', top/'run/checkpoints/epoch_2.pth'):
        for data, unknown in (('other', 'a_pebrine'), ('three', 'rust')):
            assert main(['--data_path', str(tmp_path/data), *line[2:], '--eval', 'true', '--finetune', str(w)]) == 2
            assert f'does not know the class {unknown}' in capsys.readouterr().err
    for c, called in (('healthy', 'undiseased'), ('pebrine', 'pabrin')): shutil.copytree(top/'p'/c, tmp_path/'spelled'/called) # names that are known
    shutil.copytree(top/'p', tmp_path/'plain')
    with safe_open(top/'run/best.safetensors', 'pt') as f: w, about = {k: f.get_tensor(k) for k in f.keys()}, f.metadata()
    save_file(w | {'head.conv2.0.bias': torch.tensor([99., 0.])}, tmp_path/'sure.safetensors', about)          # whatever it has learned, it answers healthy
    found = []
    for data in ('spelled', 'plain'):
        assert main(['--data_path', str(tmp_path/data), *line[2:], '--eval', 'true', '--finetune', str(tmp_path/'sure.safetensors'), '--output_dir', str(tmp_path/'e'),
                     '--switch_to_deploy', str(tmp_path/'d.safetensors'), '--valid_pct', '.9', '--test_pct', '0']) == 0, capsys.readouterr().err
        found.append(json.loads((tmp_path/'e/eval.json').read_text()))
        assert open_weights(tmp_path/'d.safetensors').pictures['classes'] == ['healthy', 'pebrine'] and found[-1]['fused']['n'] > 50
    assert [o[k]['per_class_recall'] for o in found for k in ('unfused', 'fused')] == [dict(healthy=1, pebrine=0)]*4


def test_options_that_a_recipe_has_no_use_for(grown, capsys):
    top, line = grown
    start = [*line, '--output_dir', str(top/'unused'), '--model', 'test_resnet', '--overwrite', '--bundle', 'false']
    i = start.index('--epochs')
    def said(*more):
        assert main([*start[:i], *start[i + 2:], *more]) == 0
        return next((o for o in capsys.readouterr().out.splitlines() if 'has no use for' in o), '')
    assert not said('--recipe', 'head', '--seed', '3', '--weight_decay', '.05')            # as it is by default
    assert said('--recipe', 'head', '--opt', 'lamb', '--mixup', '.2', '--lr', '.1').startswith('recipe head has no use for opt, mixup, lr:')
    assert said('--recipe', 'last', '--epochs', '1', '--opt', 'lamb', '--mixup', '.2', '--lr', '.1').startswith('recipe last has no use for opt:')
    assert not said('--recipe', 'full', '--epochs', '1', '--opt', 'lamb')
    settings = str(top/'settings.yaml')
    assert said('--recipe', 'head') == '' and shutil.copy(top/'unused/settings.yaml', settings)
    assert main(['--config', settings, '--output_dir', str(top/'unused2')]) == 0 and 'has no use for' not in capsys.readouterr().out


def test_a_stopped_cross_validation_owns_its_parts(grown, monkeypatch, capsys):
    "It goes on with the next part; started anew, its file is known to be its own"
    from silkworm_app.train import cross
    top, line = grown
    start, whole, parts = [*line, '--output_dir', str(top/'parts'), '--model', 'test_resnet', '--recipe', 'head', '--cross_validate', '3', '--bundle', 'false'], cross.test_part, []
    def part(*args, **kw):
        if len(parts) == 1: raise KeyboardInterrupt
        parts.append(1)
        return whole(*args, **kw)
    for again in ([], ['--overwrite']):
        parts.clear()
        monkeypatch.setattr(cross, 'test_part', part)
        assert main(start + again) == 130
        assert 'cross_validation.jsonl' in json.loads((top/'parts/run.json').read_text())['files']
        out, err = capsys.readouterr()
        assert 'Moved aside' not in out and 'answered so far is kept' in err and ('again without --overwrite' in err) == bool(again), err
    monkeypatch.setattr(cross, 'test_part', whole)
    assert main(start) == 0 and '1 trainings done before' in capsys.readouterr().out


def test_what_the_head_learned_is_no_figure(grown, capsys, monkeypatch):
    "In a cross-validated run the head learns the validation part, too; the net looks once at each picture for all its heads"
    from silkworm_app.train import head
    top, line = grown
    run, asked, in_order = top/'head', [], head.in_order
    monkeypatch.setattr(head, 'in_order', lambda dls, part, idxs: asked.extend(idxs) or in_order(dls, part, idxs))
    assert command([*line, '--output_dir', str(run), '--model', 'test_resnet', '--recipe', 'head', '--cross_validate', '2']) == 0
    out, m = capsys.readouterr().out, json.loads((run/'metrics.json').read_text())
    assert 'valid' not in m and 'test' not in m and 'Validation split' not in out and 'Balanced accuracy on photographs never seen' in out, out
    card = (run/'bundle/card.md').read_text()
    assert 'The net itself' not in card and 'cross-validation over' in card and (run/'plots/confusion_matrix.png').is_file()
    split = [r['split'] for r in csv.DictReader((run/'pictures.csv').open(encoding='utf-8-sig'))]
    n = split.count('valid')
    assert len(asked) == n + split.count('train')
    assert evaluate([str(run)]) == 0 and f'trained on {n} of these {n} pictures' in capsys.readouterr().out


def test_weights_of_a_run_are_fused_without_a_word(grown, tmp_path, capsys):
    "Also where they lie alone: the file knows its net, its classes and its pictures"
    from silkworm_app.serve.deploy import fuse_main
    from silkworm_app.serve.load import load_bundle
    top, _ = grown
    alone = tmp_path/'alone.safetensors'
    shutil.copy(top/'run/best.safetensors', alone)
    assert fuse_main([str(alone), '--out', str(tmp_path/'b')]) == 0, capsys.readouterr().err
    a, b = load_bundle(tmp_path/'b'), load_bundle(top/'run/bundle')
    pics = sorted((top/'p/healthy').glob('*.png'))[:3]
    assert a.classes == b.classes and a.preprocess == b.preprocess and np.allclose(a.predict(pics), b.predict(pics), atol=1e-5)
    for given, source in (('--classes a,b', top/'run'), ('--act_num 9', alone), ('--arch resnet18', top/'run/bundle')): # else it would be left out unsaid
        assert fuse_main([str(source), '--out', str(tmp_path/'no'), *given.split()]) == 2 and given.split()[0] in capsys.readouterr().err
    assert evaluate([str(top/'run'), '--stem_stride', '2']) == 2 and '--stem_stride' in capsys.readouterr().err
    assert fuse_main([str(top/'run'), '--format', 'torch-export', '--out', str(tmp_path/'b')]) == 2 and 'holds a bundle' in capsys.readouterr().err
    assert fuse_main([str(top/'run'), '--out', str(tmp_path/'c')]) == 0, capsys.readouterr().err
    assert f"pictures of {top/'p'}" in capsys.readouterr().out, 'it was proved on noise'
    was, now = (json.loads((d/'config.json').read_text())['example_classes'] for d in (top/'run/bundle', tmp_path/'c'))
    assert was == now and len(was) == len(list((tmp_path/'c/examples').iterdir())) > 1, 'the example pictures were lost'
    assert 'act_num 1: ' in (tmp_path/'b/card.md').read_text() and 'Activations: 4 LSLUs (chain), act_num 1: ' in (top/'run/bundle/card.md').read_text()


def test_training_without_a_step_is_refused(train):
    code, out, m = train('--update_freq', 1000)
    assert code == 2 and m is None and 'update_freq 1000' in out.splitlines()[-1], out
    code, out, m = train('--decay_epochs', 3, '--epochs', 1)
    assert code == 0 and 'decay_epochs 3' in out and 'left out' in out, out


def test_the_command_as_it_is_started(train, data, tmp_path):
    "No warning of a package before the first line of our own; a finished run is answered before torch is loaded"
    import subprocess
    import sys
    line = ['--data_path', str(data), '--output_dir', str(tmp_path/'run'), *map(str, BASE)]
    done = subprocess.run([sys.executable, '-m', 'silkworm_app.train', *line], capture_output=True, text=True)
    assert done.returncode == 0 and not [o for o in done.stderr.splitlines() if 'Warning' in o and not o.startswith('Warning: NOTHING LEARNED')], done.stderr
    ask = f'import sys; from silkworm_app.cli import train_main; code = train_main({line!r}); print("torch" in sys.modules, code)'
    said = subprocess.run([sys.executable, '-c', ask], capture_output=True, text=True, check=True).stdout
    assert 'it is finished' in said and said.endswith('False 0\n'), said
    code, out, _ = train('--lr', .01)
    assert code == 2 and 'other settings (lr: 0.004, now 0.01)' in out


def test_validation_pictures_of_another_folder_are_found_again(tmp_path, monkeypatch):
    "Their paths were kept as they were typed, and looked for below data_path: the run was tested on what it had learned"
    monkeypatch.chdir(tmp_path)
    for k, name in enumerate(('train', 'val')): draw_sample(f'pics/{name}', n_per_class=6, size=32, seed=k)
    cfg, run = TrainConfig(data_path='pics/train', eval_data_path='pics/val', group='none'), RunFolder('run')
    run.path.mkdir()
    write_pictures(run, splits := load_splits(cfg))
    again = run_splits(run, cfg)
    for part in ('train', 'valid', 'test'): assert {p.resolve() for p, _ in getattr(again, part)} == {p.resolve() for p, _ in getattr(splits, part)}, part
    assert not [w for w in again.warnings if 'gone' in w]


@pytest.mark.parametrize('line', ['epochs:', 'model:', 'mean:', 'recipe:', 'onnx:'])
def test_an_empty_line_of_a_settings_file(tmp_path, capsys, line):
    (tmp_path/'s.yaml').write_text(f'{line}\ndrop:\nstem_stride:\nfinetune:\n')
    assert main(['--config', str(tmp_path/'s.yaml')]) == 2
    said = capsys.readouterr().err
    assert f'{line[:-1]} must be' in said and 'not None' in said and said.count('\n') == 1, said


def test_auto_where_numbers_are_taken():
    cfg = read_settings('--mean auto --std auto'.split())
    assert (cfg.mean, cfg.std) == ('auto', 'auto')
    with pytest.raises(TrainError, match='model_ema_decay must be numbers'): read_settings('--model_ema_decay auto'.split())


def test_what_eval_needs_and_writes(grown, tmp_path, monkeypatch, capsys):
    "The first of several processes writes the fused net; without its training pictures a run is evaluated by another command"
    top, line = grown
    ask = [*line, '--eval', 'true', '--switch_to_deploy', str(tmp_path/'d.safetensors'), '--finetune']
    with monkeypatch.context() as m:
        m.setattr('silkworm_app.train.evaluate.rank_distrib', lambda: 1)
        assert main([*ask, str(top/'run')]) == 0 and not (tmp_path/'d.safetensors').exists()
    assert main([*ask, str(top/'run')]) == 0 and (tmp_path/'d.safetensors').exists()
    shutil.copytree(top/'run', tmp_path/'run')
    kept = tmp_path/'run/pictures.csv'
    kept.write_text('\n'.join(f'gone/{o}' if ',train,' in o else o for o in kept.read_text(encoding='utf-8').splitlines()), encoding='utf-8')
    capsys.readouterr()
    assert main([*ask, str(tmp_path/'run')]) == 2
    assert f'silkworm-evaluate {tmp_path/"run"}' in capsys.readouterr().err


def test_a_full_graphics_card(train, monkeypatch):
    def full(*args): raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB.')
    monkeypatch.setattr('silkworm_app.train.fit.train', full)
    code, out, _ = train()
    assert code == 1 and out == "silkworm-train: the GPU's memory is full: take a smaller --batch_size or --input_size\n"
