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
from scipy.stats import binom, binomtest

from silkworm_app.data.sample import draw_sample
from silkworm_app.data.splits import Splits
from silkworm_app.serve.card import better_text, cross_text
from silkworm_app.serve.metrics import class_interval
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


def line(arm, seed, part, photo, target, right, of=2, data='d', minutes=1):
    "A line of pretrained.py: two classes, sure of each answer"
    probs = np.eye(2)[np.where(right, target, 1 - np.array(target))]
    return dict(data=data, arm=arm, seed=seed, part=part, photo=photo, target=target, probs=probs.tolist(), minutes=minutes, of=of)


def test_photographs_are_counted_once(monkeypatch):
    "Photograph 5 lies in three files, two of them answered wrong by a little, one right by a lot"
    pretrained = load('pretrained', monkeypatch)
    rows = [line('a', 0, 0, [3, 5, 5, 5], [1, 0, 0, 0], [True]*4), line('a', 0, 1, [4], [1], [False])]
    rows[0]['probs'][1:] = [[.4, .6], [.4, .6], [.9, .1]]
    photo, y, right = pretrained.by_photograph(rows)
    assert photo.tolist() == [3, 4, 5] and y.tolist() == [1, 1, 0] and right.tolist() == [True, False, True]


def test_a_picture_has_one_number_in_all_seeds(monkeypatch):
    "Of CIFAR each seed draws its own: the third of one is not the third of another"
    pretrained = load('pretrained', monkeypatch)
    a, b = (np.random.default_rng(k).integers(0, 256, (4, 4, 3), dtype=np.uint8) for k in (0, 1))
    draws = [[a, b], [b.copy(), a.copy()]]
    numbers = [[pretrained.number_of(Splits([], [], [], [], {id(q): i for i, q in enumerate(d)}), q) for q in d] for d in draws]
    assert numbers[0] == numbers[1][::-1] and len(set(numbers[0])) == 2
    assert pretrained.number_of(Splits([], [], [], [], {Path('x'): 7}), Path('x')) == 7


def test_the_summary_is_of_whole_seeds(tmp_path, monkeypatch):
    pretrained = load('pretrained', monkeypatch)
    rows = []
    for seed, ok in enumerate(([True]*4, [True, True, True, False], [True, True, False, False])):  # of photographs 0 and 1 of class 0, 2 and 3 of class 1
        rows += [line('a', seed, 0, [0, 2, 2], [0, 1, 1], [ok[0], ok[2], ok[2]], minutes=2), line('a', seed, 1, [1, 3], [0, 1], [ok[1], ok[3]], minutes=seed)]
    rows += [line('a', 3, 0, [0, 2, 2], [0, 1, 1], [False]*3, minutes=99), line('b', 0, 0, [0, 1], [0, 1], [True, True], of=1)]
    file = tmp_path/'peers.jsonl'
    file.write_text('\n'.join(map(json.dumps, rows)) + '\n{"data": "d", "arm": "a", "se')
    res = pretrained.summary([file])
    assert list(res) == [('d', 'a'), ('d', 'b')]
    a, b = res.values()
    assert (a['seeds'], a['parts'], b['seeds'], b['parts']) == (3, 2, 1, 1)
    assert a['right'] == a['balanced'] == 75 and a['right_sd'] == a['balanced_sd'] == 25 and a['minutes'] == 3
    assert b['right'] == 100 and np.isnan(b['right_sd']) and b['right_in'] == [100, 100]
    assert a['right_in'][0] < 75 < a['right_in'][1] and a['balanced_in'][0] < 75 < a['balanced_in'][1]


def test_rare_classes_count_as_much_in_balanced_figures(tmp_path, monkeypatch):
    pretrained = load('pretrained', monkeypatch)
    file = tmp_path/'peers.jsonl'
    file.write_text(json.dumps(line('a', 0, 0, list(range(10)), [0]*8 + [1]*2, [True]*8 + [True, False], of=1)))
    a, = pretrained.summary([file]).values()
    assert np.isclose(a['right'], 90) and np.isclose(a['balanced'], 75)


def test_eight_bits_are_counted_by_photograph(monkeypatch, capsys):
    "Photograph 7 has two files, of which the first counts; 8 became wrong, 9 became right"
    int8 = load('int8', monkeypatch)
    sure = lambda *picks: np.eye(2)[list(picks)].tolist()
    row = dict(data='d', part=0, photo=[7, 7, 8, 9], y=[0, 0, 0, 1], classes=['f', 'm'], ms={'32 bits': 6., '8 bits': 3.},
               logits={'32 bits': sure(0, 1, 0, 0), '8 bits': sure(0, 1, 1, 1)},
               sets={'32 bits': [['f'], ['m'], ['f'], ['f']], '8 bits': [['f'], ['m'], ['f', 'm'], ['m']]})
    int8.table([row])
    *_, whole, eight = capsys.readouterr().out.strip().splitlines()
    assert whole == '| d, 3 photographs | 32 bits | 66.7% | 0, 0 | 66.7% | 100.0% | 6.0 | 1.00 |'
    assert eight == '| d, 3 photographs | 8 bits | 66.7% | 1, 1 | 100.0% | 33.3% | 3.0 | 2.00 |'


def test_answers_are_means_over_copies_and_repetitions(monkeypatch):
    "Columns: photograph, class, kept, answered alone, right, several, classes left"
    answers = load('answers', monkeypatch)
    rows = np.array([[4, 0, 1, 1, 1, 0, 1], [4, 0, 1, 0, 0, 1, 2], [4, 0, 0, 0, 0, 1, 2], [4, 0, 1, 1, 1, 0, 1], [2, 1, 0, 1, 0, 0, 1]], float)
    assert answers.by_photograph(rows).tolist() == [[2, 1, 0, 1, 0, 0, 1], [4, 0, .75, .5, .5, .5, 1.5]]
    head, _, cells = answers.table({'the rule': rows}, ['x', 'y']).splitlines()
    assert 'x (1): kept' in head and 'y (1): kept' in head
    cells = [o.strip() for o in cells.strip('|').split('|')]
    assert [o.split(' ')[0] for o in cells[1:]] == ['75.0', '0.0', '75.0', '33.3', '25.0', '1.25']


def test_the_interval_over_photographs_is_that_of_the_binomial():
    "Of one class, each photograph right or wrong: drawing them again is a binomial of the part that was right"
    for n, part in ((400, .9), (1000, .6)):
        right = np.arange(n) < part*n
        record = dict(photo=range(n), target=[0]*n, right=right.tolist())
        value, low, high = photo_interval([record])
        assert value == part and abs((high - low)/np.ptp(binom.ppf((.025, .975), n, part)/n) - 1) < .1
        exact = binomtest(int(right.sum()), n).proportion_ci(method='exact')
        assert abs((high - low)/(exact.high - exact.low) - 1) < .1 and exact.low < value < exact.high
        copies = dict(photo=[*range(n)]*3, target=[0]*3*n, right=right.tolist()*3)
        assert photo_interval([copies]) == photo_interval([record]) == photo_interval([record]*4)   # copies and seeds make no photographs


def test_the_interval_of_one_run_is_no_point():
    "Of one class it holds Wilson's, of two the example of Newcombe (1998), 56 of 70 against 48 of 80: a difference of 0.2, 0.0524 to 0.3339"
    def record(*right): return dict(photo=range(sum(n for _, n in right)), target=[k for k, (_, n) in enumerate(right) for _ in range(n)],
                                    right=[i < r for r, n in right for i in range(n)])
    for right, n, far in ((8, 8, 1), (0, 8, 0), (31, 40, .906991)):                             # far: the end that Wilson's has nearer
        exact = binomtest(right, n).proportion_ci(method='wilson')
        want = (exact.low, far) if right > n/2 else (far, exact.high)
        assert class_interval(record((right, n))) == pytest.approx((right/n, *want), abs=1e-6)
        assert want[0] <= exact.low + 1e-12 and want[1] >= exact.high - 1e-12
    two = class_interval(record((56, 70), (32, 80)))                                            # the 48 turned round: the mean is (1 + difference)/2
    assert [round(2*v - 1, 4) for v in two] == [.2, .0475, .3451]
    value, low, high = class_interval(record((8, 8), (8, 8)))
    assert (value, high) == (1, 1) and low < .8 and photo_interval([record((8, 8), (8, 8))]) == (1, 1, 1)
    copies = dict(photo=[*range(8)]*3, target=[0]*24, right=[1]*24)
    assert class_interval(copies) == class_interval(record((8, 8)))
    c = dict(balanced_accuracy=1., interval=[1., 1.], classes=['a', 'b'], folds=2, photographs=16, n=16, accuracy=1.)
    assert 'Wilson' not in cross_text(c) and 'too narrow' in cross_text(c) and 'Wilson' in cross_text(c | dict(interval_of='classes'))     # an earlier bundle's


def test_the_interval_of_many_small_classes_holds_the_truth():
    "Twenty classes of three to ten photographs, nine of ten right, or as chance has it by class: some 95 of 100 intervals, not 80 to 90, and as often on either side as a net in use would be over- or underrated"
    rng, sizes = np.random.default_rng(0), np.array([3, 4, 6, 10]*5)
    target = np.repeat(np.arange(20), sizes)
    for draw in (lambda: np.full(20, .9), lambda: rng.beta(8, 2, 20)):
        out = []
        for _ in range(600):
            truth = draw()
            right = rng.random(len(target)) < truth[target]
            _, low, high = class_interval(dict(photo=range(len(target)), target=target.tolist(), right=right.tolist()))
            out.append([truth.mean() < low, truth.mean() > high])
        assert (np.mean(out, 0) < .04).all(), np.mean(out, 0)


def test_a_figure_is_called_misleading_or_better_only_where_it_is():
    c = dict(balanced_accuracy=.6, interval=[.5, .7], classes=['a', 'b'], folds=2, photographs=16, n=30, accuracy=.728)
    text = lambda **f: cross_text(c | dict(by_file=f))
    assert 'Misleading' in text(balanced_accuracy=.679, accuracy=.704) and '67.9 %' in text(balanced_accuracy=.679, accuracy=.704)
    assert '70.4 %' not in text(balanced_accuracy=.679, accuracy=.704) and '73.1 % accuracy' in text(balanced_accuracy=.679, accuracy=.731)
    assert 'Misleading' not in text(balanced_accuracy=.59, accuracy=.704) and '70.4 % accuracy' in text(balanced_accuracy=.59, accuracy=.704)
    b = dict(name='old', photographs=66, before=.73, now=.76, balanced_before=.5, balanced_now=.59, difference=.092, interval=[.003, .166], better=9, worse=7, p=.69)
    for interval, p, said in (([.003, .166], .69, True), ([-.166, -.003], .69, True), ([-.003, .166], .69, False), ([.003, .166], .01, False)):
        assert ('too narrow where a class has few: the test decides' in better_text(b | dict(interval=interval, p=p))) == said
    for difference, p, said in ((.05, .01, False), (-.05, .01, True), (-.05, .2, False)):
        text = better_text(b | dict(better=30, worse=9, p=p, difference=difference, interval=[-.2, .2]))
        assert ('the difference points the other way' in text) == said


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


def test_a_baseline_whose_head_alone_is_trained_has_no_epochs(tmp_path, monkeypatch):
    script = load('against_baselines', monkeypatch)
    draw_sample(tmp_path/'p', n_per_class=8, size=32, seed=0)
    from silkworm_app.train.fit import main
    monkeypatch.setattr(script.subprocess, 'run', lambda line, check: main(line[3:]))
    row = script.net(['--data_path', str(tmp_path/'p'), '--model', 'test_resnet', '--recipe', 'head', '--input_size', '32', '--device', 'cpu', '--num_workers', '0', '--log_dir', 'none'])
    assert row['epochs'] == 0 and row['n_test'] > 0


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
    assert other.returncode == 64 and other.stdout.strip() == f'gpu.sh: {out} holds what DEVICE=cpu gave; name another folder for DEVICE=cuda'
