"The figures of the experiments, from made-up rows with known answers, and what their commands keep and refuse."
import csv
import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binom

from silkworm_app.data.sample import draw_sample
from silkworm_app.train.cross import photo_interval

folder = Path(__file__).resolve().parent.parent/'experiments'


def load(name, monkeypatch):
    "A script of experiments/, under a name of its own: tests/ has a pretrained.py, too"
    def loaded(name):
        spec = importlib.util.spec_from_file_location(f'experiments_{name}', folder/f'{name}.py')
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    monkeypatch.setattr(sys, 'path', list(sys.path))
    if name == 'int8': monkeypatch.setitem(sys.modules, 'pretrained', loaded('pretrained'))
    return loaded(name)


def test_what_was_killed_half_way_is_made_again(tmp_path, monkeypatch):
    answers = load('answers', monkeypatch)
    im = tmp_path/'a.jpg'
    Image.new('RGB', (8, 8)).save(im)
    with zipfile.ZipFile(tmp_path/'cifar10.zip', 'w') as z: z.write(im, 'cifar10/train/cat/a.jpg')
    unpack = answers.unpack
    def half(archive, dest):
        unpack(archive, dest)
        raise KeyboardInterrupt
    monkeypatch.setattr(answers, 'unpack', half)
    with pytest.raises(KeyboardInterrupt): answers.files_of('cifar10', tmp_path, tmp_path)
    monkeypatch.setattr(answers, 'unpack', unpack)
    assert [c for _, c in answers.files_of('cifar10', tmp_path, tmp_path)] == ['cat']
    savez = np.savez
    def cut(f, **arrays):
        f.write(b'PK')
        raise KeyboardInterrupt
    monkeypatch.setattr(np, 'savez', cut)
    with pytest.raises(KeyboardInterrupt): answers.save(tmp_path/'x.npz', a=np.arange(3))
    assert not (tmp_path/'x.npz').exists()
    monkeypatch.setattr(np, 'savez', savez)
    answers.save(tmp_path/'x.npz', a=np.arange(3))
    assert np.load(tmp_path/'x.npz')['a'].tolist() == [0, 1, 2]


def test_what_is_strange_is_asked_of_sets_with_pictures_of_their_own(tmp_path, monkeypatch):
    answers, asked = load('answers', monkeypatch), []
    monkeypatch.setattr(answers, 'strange', lambda name, *args: asked.append(name))
    monkeypatch.setenv('SILKWORM_DATA', str(tmp_path))
    monkeypatch.setattr(sys, 'argv', ['answers.py', '--cache', str(tmp_path/'cache'), '--strange'])
    answers.main()
    assert asked == [k for k in answers.TITLES if k != 'rare']


def test_baselines_want_a_test_split_and_one_choice_of_options(tmp_path, monkeypatch, capsys):
    script, made = load('against_baselines', monkeypatch), []
    draw_sample(tmp_path/'p', n_per_class=8, size=32, seed=0)
    figures = dict(accuracy=.5, balanced_accuracy=.5, n_test=10, epochs=1)
    monkeypatch.setattr(script, 'net', lambda options: made.append(options) or figures)
    monkeypatch.setattr(script, 'linear', lambda options: made.append(options) or figures)
    def run(*more):
        monkeypatch.setattr(sys, 'argv', ['against_baselines.py', 'drawn', str(tmp_path/'p/train'), '--out', str(tmp_path/'runs/b.csv'), '--seeds', '1', *more])
        script.main()
    with pytest.raises(SystemExit) as e: run('--', '--group', 'hash', '--test_pct', '0')
    assert e.value.code == 2 and 'no test split' in capsys.readouterr().err and not made
    run('--', '--group', 'hash')
    assert len(made) == 3 and len(list(csv.DictReader((tmp_path/'runs/b.csv').open()))) == 3
    run('--', '--group', 'hash')
    assert len(made) == 3
    with pytest.raises(SystemExit): run('--', '--group', 'hash', '--epochs', '2')
    assert 'drawn lslu made with silkworm-train --group hash --act lslu' in capsys.readouterr().err and len(made) == 3


FAKE = """#!/bin/sh
case "$*" in
*lab.bench*act_num*) exit 1;;
*lab.bench*|*gpu_page*) ;;
*"import sys, torch"*) ;;
*) exit 1;;
esac
"""


def test_the_script_for_a_card_tells_what_failed_and_what_it_left_out(tmp_path):
    "A python that measures nothing: it is what the shell makes of it that is looked at"
    (tmp_path/'python').write_text(FAKE)
    (tmp_path/'python').chmod(0o755)
    def run(*out, **env):
        env = dict(os.environ, PYTHON=str(tmp_path/'python'), DEVICE='cpu', CIFAR100='none.zip') | env
        return subprocess.run(['sh', str(folder/'gpu.sh'), *out], cwd=folder.parent, env=env, capture_output=True, text=True)
    out = tmp_path/'out'
    left = lambda: (out/'left_out.txt').read_text().splitlines()
    assert run(str(out), STEPS='layers').returncode == 0 and (out/'layers.md').is_file()
    assert 'training steps of whole nets: not among STEPS' in left() and 'the comparison act_num_gpu: MINUTES is under 40' in left()
    assert not any(o.startswith('one layer:') for o in left())
    assert run(str(out), STEPS='layers act_num grids', MINUTES='40').returncode == 4            # act_num and three comparisons
    assert sum('failed, see' in o for o in left()) == 4
    assert 'grid: {seed: [0], act_num: [1, 2, 3, 4, 5]}' in (out/'act_num_gpu.yaml').read_text()
    other = run(str(out), DEVICE='cuda')
    assert other.returncode == 2 and other.stdout.strip() == f'gpu.sh: {out} holds what DEVICE=cpu gave; name another folder for DEVICE=cuda'
