"What nets, files and commands say of themselves is true, also where somebody does the unusual."
import json
import shutil

import numpy as np
import pytest
import torch

from silkworm_app.act.lslu import collapse
from silkworm_app.act.patch import batches, lslu_model
from silkworm_app.act.start import net_of
from silkworm_app.act.weights import WeightsError, save_weights
from silkworm_app.data.augment import aug_pipeline
from silkworm_app.data.folder import DataError
from silkworm_app.data.prepare import prepare
from silkworm_app.data.sample import draw_sample
from silkworm_app.data.splits import find_splits
from silkworm_app.files import write_text
from silkworm_app.serve.explain import grad_cam
from silkworm_app.serve.load import load_bundle
from silkworm_app.serve.predict import predict_main
from silkworm_app.train.config import TrainConfig, TrainError
from silkworm_app.train.fit import main
from silkworm_app.train.optim import make_opt_func


@pytest.mark.parametrize('name', ['s', 'examples', 'les'])
def test_whatever_the_folder_of_pictures_is_called(tmp_path, monkeypatch, capsys, name):
    "Its name is taken out of what a bundle tells, but not out of the names of the bundle's own files; and drawings are known as such"
    monkeypatch.chdir(tmp_path)
    draw_sample(name, n_per_class=8, size=32, seed=1)
    assert main(f'--data_path {name} --output_dir run --model vanillanet_5_x0_125 --epochs 1 --input_size 32 --batch_size 8 --group none --log_dir none --progress false --device cpu --num_workers 0'.split()) == 0, capsys.readouterr().err
    c = json.loads((tmp_path/'run/bundle/config.json').read_text())
    assert all((tmp_path/'run/bundle'/f).is_file() for f in c['files']) and set(c['example_classes']) < set(c['files']) and c['extra']['drawn'] and len(load_bundle('run/bundle').classes) == 5


def test_a_net_that_its_file_does_not_fill_is_refused(tmp_path):
    net = lslu_model('test_resnet', 2, input_size=64)
    net.num_classes = 7                                          # says one thing, and is another
    save_weights(net, tmp_path/'other.safetensors')
    with pytest.raises(WeightsError, match='other.safetensors does not fit the net that it says it is of'): net_of(tmp_path/'other.safetensors')
    with pytest.raises(ValueError, match='features_only'): lslu_model('test_resnet', 2, features_only=True)


@pytest.mark.parametrize('wrong', [[], 3, torch.zeros(0, 3, 64, 64), torch.zeros(3, 64, 64), [[]]])
def test_calibrated_on_pictures(wrong):
    with pytest.raises(ValueError, match='calibrate must be a batch of pictures'): batches(wrong, torch.nn.Conv2d(3, 1, 1))


def test_a_line_that_leaves_the_numbers_has_an_end():
    a, b = torch.tensor([[1e-36], [-1.]]), torch.tensor([[0.], [-1e4]])          # the line crosses zero left of all numbers of float32
    c, d, lo, hi = collapse(a, b)
    assert (lo <= hi).all() and (lo >= 0).all() and torch.isfinite(torch.clamp(c*torch.ones(1) + d, lo, hi)).all()


def test_momentum_is_of_optimisers_that_have_one():
    groups = lambda: [dict(params=[torch.nn.Parameter(torch.zeros(2))], weight_decay=0.)]
    for opt in ('adamw', 'lamb'):
        with pytest.raises(TrainError, match=f'opt {opt} has no momentum'): make_opt_func(TrainConfig(opt=opt, momentum=.5))(groups(), lr=.1)
    assert make_opt_func(TrainConfig(opt='sgd', momentum=.5))(groups(), lr=.1).opt.param_groups[0]['momentum'] == .5


def test_where_a_net_with_channels_behind_looks():
    net = lslu_model('mambaout_femto', 3, act='relu', input_size=160).eval()
    assert grad_cam(net, torch.randn(3, 160, 160)).shape == (5, 5)


@pytest.mark.parametrize('text, words', [('- HorizontalFlip: 0.5', 'HorizontalFlip: its arguments'), ('- HorizontalFlip: [p, 0.5]', 'HorizontalFlip: its arguments'),
                                         ('- OneOf: {transforms: 5}', 'transforms is a list'), ('# nothing', 'holds no steps')])
def test_augmentation_files(tmp_path, text, words):
    (tmp_path/'x.yaml').write_text(text)
    with pytest.raises(DataError, match=words): aug_pipeline(tmp_path/'x.yaml', 32)


def test_answers_are_not_written_over_a_picture(tmp_path, capsys):
    from web_tools import random_bundle
    bundle, pictures = random_bundle(tmp_path/'bundle'), draw_sample(tmp_path/'pics', n_per_class=5, size=96)
    some = sorted(map(str, (tmp_path/'pics').rglob('*.png')))[:3] or sorted(map(str, (tmp_path/'pics').rglob('*.jpg')))[:3]
    was = open(some[0], 'rb').read()
    for table in (some[0], str(tmp_path/'pics')):
        assert predict_main([str(bundle), '--csv', table, *some[1:]]) == 2 and '--csv' in capsys.readouterr().err
    assert open(some[0], 'rb').read() == was


def test_options_without_the_one_that_they_belong_to(tmp_path, capsys):
    draw_sample(tmp_path/'s', n_per_class=8, size=32, seed=1)
    line = f'--data_path {tmp_path}/s --output_dir {tmp_path}/run --model vanillanet_5_x0_125 --epochs 1 --input_size 32 --batch_size 8 --group none --log_dir none --progress false --device cpu --num_workers 0 --bundle false --overwrite'.split()
    assert main([*line, *'--mixup_mode pair --min_lr 1e-5 --recount 3 --bce_target_thresh .2 --model_ema_eval true --decay_linear true --amp_dtype bf16 --model_prefix a. --deploy true'.split()]) == 0
    out = capsys.readouterr().out
    for what, option in (('mixup', 'mixup_mode'), ('sched cosine', 'min_lr'), ('reprob', 'recount'), ('bce_loss', 'bce_target_thresh'), ('model_ema', 'model_ema_eval'),
                         ('decay_epochs', 'decay_linear'), ('use_amp', 'amp_dtype'), ('finetune', 'model_prefix'), ('eval', 'deploy')):
        assert any(o.startswith(f'without {what}') and option in o for o in out.splitlines()), (option, out)
    assert main([*line, *'--sched cosine --min_lr 1e-5 --mixup .2 --mixup_mode pair'.split()]) == 0 and 'there is no use' not in capsys.readouterr().out


def test_a_stream_that_goes_into_a_file_is_not_cut_off(tmp_path):
    with open(tmp_path/'all.csv', 'a+') as f:
        f.write('last week\n')
        f.flush()
        with pytest.raises(ValueError, match='name a file'): write_text(f'/proc/self/fd/{f.fileno()}', 'table\n')
    assert (tmp_path/'all.csv').read_text() == 'last week\n'


def test_a_prepared_set_that_was_changed_is_counted_anew(tmp_path):
    prepare(draw_sample(tmp_path/'plain', n_per_class=10, size=32, seed=1), tmp_path/'set', valid_pct=.2, test_pct=.2)
    assert set(find_splits(tmp_path/'set').leak['distinct'].values()) == {10}
    head, *rows = (tmp_path/'set/manifest.csv').read_text(encoding='utf-8-sig').splitlines()
    gone = [r for r in rows if r.startswith('train/pebrine/')][:3]
    for r in gone: (tmp_path/'set'/r.split(',')[0]).unlink()
    (tmp_path/'set/manifest.csv').write_text('\n'.join([head, *(r for r in rows if r not in gone)]) + '\n')
    assert find_splits(tmp_path/'set').leak['distinct']['pebrine'] == 7
