"Grids of runs: resumed, repeatable, the same with several processes, cut by photograph, one sentence for each mistake."
import csv
import errno
import json
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import yaml

from silkworm_app.lab import grid as experiment, report
from silkworm_app.lab.grid import GridError, make_grid, read_grid, read_results, run_grid, run_id, splits_of, value_or_default
from silkworm_app.lab.report import main
from silkworm_app.train.one import build_model

shipped = Path(__file__).resolve().parent.parent / 'experiments'
TINY = dict(group='hash', input_size=32, batch_size=8, epochs=1, aug='light', device='cpu', stem_stride=4, model_kwargs=dict(dims=[8, 8, 8, 8]))
quiet = dict(log=lambda s: None)


def small_grid(folder, **base):
    return dict(name='small', base=dict(data_path=str(folder), **{**TINY, **base}), arms=dict(relu=dict(act='relu'), lslu={}), grid=dict(seed=[0, 1]))


@pytest.fixture(scope='module')
def drawings(tmp_path_factory):
    from silkworm_app.data.sample import draw_sample
    return draw_sample(tmp_path_factory.mktemp('grid') / 'sample', n_per_class=10, size=32, seed=0)


@pytest.fixture(scope='module')
def done(drawings, tmp_path_factory):
    out = tmp_path_factory.mktemp('done')
    return out, run_grid(make_grid(small_grid(drawings)), out, **quiet)


def test_a_run_repeats_bit_for_bit(drawings, done, tmp_path):
    again = run_grid(make_grid(small_grid(drawings)), tmp_path, **quiet)
    same = lambda rows: [{k: v for k, v in r.items() if k != 'seconds'} for r in rows]
    assert same(again) == same(done[1])


def test_two_processes_say_the_same(drawings, done, tmp_path):
    again = run_grid(make_grid(small_grid(drawings)), tmp_path, procs=2, **quiet)
    assert [(r['arm'], r['seed'], r['accuracy'], r['test_loss']) for r in again] == [(r['arm'], r['seed'], r['accuracy'], r['test_loss']) for r in done[1]]


def killed(s):
    import os, signal
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_told(drawings, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, '_job', killed)
    with pytest.raises(GridError, match='killed from outside'): run_grid(make_grid(small_grid(drawings)), tmp_path, procs=2, **quiet)


def test_seeds_differ(done):
    relu = [r for r in done[1] if r['arm'] == 'relu']
    assert relu[0]['train_loss'] != relu[1]['train_loss']


def test_nothing_is_run_twice(drawings, done, tmp_path, monkeypatch):
    shutil.copytree(done[0], tmp_path / 'out')
    monkeypatch.setattr(experiment, 'run_one', lambda s: pytest.fail('a finished run was run again'))
    assert len(run_grid(make_grid(small_grid(drawings)), tmp_path / 'out', **quiet)) == 4


@pytest.mark.parametrize('kind', [RuntimeError, FloatingPointError])   # the latter is that of a training that diverged
def test_a_failed_run_is_told_and_tried_again(drawings, tmp_path, monkeypatch, kind):
    real = experiment.run_one
    def broken(s):
        if s.get('act') == 'relu': raise kind('no memory left')
        return real(s)
    monkeypatch.setattr(experiment, 'run_one', broken)
    lines, grid = [], make_grid({**small_grid(drawings), 'grid': dict(seed=[0])})
    assert [r['arm'] for r in run_grid(grid, tmp_path, log=lines.append)] == ['lslu']
    assert any('relu' in o and 'no memory left' in o for o in lines)
    monkeypatch.setattr(experiment, 'run_one', real)
    assert len(run_grid(grid, tmp_path, **quiet)) == 2


@pytest.mark.parametrize('cut', [1, 20, 200])
def test_a_table_cut_anywhere_loses_only_the_last_row(done, tmp_path, cut):
    data = (done[0] / 'results.csv').read_bytes()
    (tmp_path / 'results.csv').write_bytes(data[:-cut])
    rows = read_results(tmp_path / 'results.csv')
    assert [r['id'] for r in rows] == [r['id'] for r in done[1]][:3]
    experiment.append_row(tmp_path / 'results.csv', dict(done[1][3], settings={k: v for k, v in done[1][3].items() if k not in experiment.COLUMNS}))
    assert [r['id'] for r in read_results(tmp_path / 'results.csv')] == [r['id'] for r in done[1]]


@pytest.mark.parametrize('torn', ['', 'id,arm,sett'])
def test_a_table_without_its_heading_gets_it(done, tmp_path, torn):
    (tmp_path / 'results.csv').write_text(torn)
    row = done[1][0]
    experiment.append_row(tmp_path / 'results.csv', dict(row, settings={k: v for k, v in row.items() if k not in experiment.COLUMNS}))
    assert [r['id'] for r in read_results(tmp_path / 'results.csv')] == [row['id']]


def test_what_was_learned_survives_a_torn_line(drawings, done, tmp_path):
    "The record of the run that was interrupted is made again, and no other is lost behind what was left of it."
    shutil.copytree(done[0], tmp_path / 'out')
    for name, cut in (('results.csv', 3), ('learned.jsonl', 30)): (tmp_path / 'out' / name).write_bytes((done[0] / name).read_bytes()[:-cut])
    grid = make_grid(small_grid(drawings))
    assert len(run_grid(grid, tmp_path / 'out', **quiet)) == 4
    assert {r['id'] for r in report.learned_records(tmp_path / 'out', grid)} == {run_id(r) for r in grid.runs}


def test_a_grid_leaves_torch_as_it_was(drawings, tmp_path, monkeypatch):
    import torch
    had = torch.get_num_threads()
    def run(s):
        torch.set_num_threads(had + 1)
        raise ValueError('enough seen')
    monkeypatch.setattr(experiment, 'run_one', run)
    monkeypatch.setattr(experiment, 'keep_memory', lambda: pytest.fail('memory is kept in a process that is not its own'))
    run_grid(make_grid(small_grid(drawings)), tmp_path, **quiet)
    assert torch.get_num_threads() == had


def test_values_survive_the_table(done):
    rows = read_results(done[0] / 'results.csv')
    assert rows[0]['model_kwargs'] == TINY['model_kwargs'] and rows[0]['input_size'] == 32 and isinstance(rows[0]['accuracy'], float)
    with open(done[0] / 'results.csv') as f: assert len(list(csv.reader(f))) == 5


def test_a_row_says_what_was_counted(done):
    "Accuracies are parts of whole numbers of pictures, to the last bit."
    for r in done[1]:
        right, n = np.sum(r['by_class'], 0)
        assert r['tested'] == n and r['accuracy'] == right / n and r['balanced_accuracy'] == np.mean([a / b for a, b in r['by_class']])
        assert r['valid_accuracy'] == float(Fraction(r['valid_accuracy']).limit_denominator(100))


def test_a_photograph_of_many_copies_counts_once(drawings, tmp_path):
    shutil.copytree(drawings, tmp_path / 'set')
    one = sorted((tmp_path / 'set/test/healthy').iterdir())[0]
    for k in range(3): shutil.copyfile(one, one.with_name(f'again_{k}.jpg'))
    row, more = experiment.run_one(dict(TINY, data_path=str(tmp_path / 'set'), model='vanillanet_5_x0_125', seed=0))
    right, n = np.sum(row['by_class'], 0)
    assert (row['tested'], n, len(set(more['photo']))) == (13, 10, 10) and row['accuracy'] == right / n


def test_folds_hold_photographs_together(tmp_path):
    "Pictures and their rotated copies: no photograph is on both sides, all files are tested once, and cutting by file mixes them."
    from PIL import Image
    from silkworm_app.data.sample import draw_larva
    for c, kind in (('one', 'healthy'), ('two', 'muscardine')):
        (tmp_path / 'p' / c).mkdir(parents=True)
        for i in range(6):
            im = draw_larva(kind, 160, seed=i)
            for k, turned in enumerate((im, im.transpose(Image.Transpose.ROTATE_90), im.transpose(Image.Transpose.FLIP_LEFT_RIGHT))): turned.save(tmp_path / 'p' / c / f'{i}_{k}.png')
    s = make_grid(dict(base=dict(data_path=str(tmp_path / 'p'), cross_validate=3), grid=dict(part=[0, 1, 2]))).runs[0]
    tested = []
    for f in range(3):
        splits, photos = experiment.splits_of({**s, 'part': f})
        of = splits.groups
        assert not {of[p] for p, _ in splits.train + splits.valid} & {of[p] for p, _ in splits.test}
        assert photos == [of[p] for p, _ in splits.test]
        tested += [p for p, _ in splits.test]
    assert len(tested) == len(set(tested)) == 36 and len(set(of.values())) == 12
    splits, photos = experiment.splits_of({**s, 'by': 'file'})
    assert {of[p] for p, _ in splits.train} & set(photos)


def test_summary_pairs_by_seed():
    "A constant advantage under large seed noise is found; a missing seed is left out of the pairs."
    grid = make_grid(dict(arms=dict(a={}, b=dict(act='relu')), grid=dict(seed=list(range(6))), baseline='a'))
    noise = np.random.default_rng(0).normal(0, .05, 6)
    rows = [dict(id=run_id(r), arm=r['arm'], **{k: v for k, v in r.items() if k != 'arm'}, accuracy=.5 + noise[r['seed']] + (.01 if r['arm'] == 'b' else 0) + 1e-4 * r['seed'] * (r['arm'] == 'b'), seconds=1, params=1)
            for r in grid.runs if not (r['arm'] == 'a' and r['seed'] == 5)]
    b = next(d for d in report.summary(grid, rows) if d['arm'] == 'b')
    assert b['n'] == 6 and b['against']['n'] == 5 and b['sd'] > .02
    assert abs(b['against']['diff'] - .0102) < 1e-9 and b['against']['p'] < 1e-4 and b['against']['low'] > 0


def told(grid, out, accuracy=lambda r: .5, layers=None, **more):
    "The grid, with made-up results"
    for r in grid.runs:
        layer = {} if r.get('act') == 'relu' else dict(alphas=[1.]*r.get('act_num', 3), biases=[0.]*r.get('act_num', 3))
        learned = [{k: layer for k in (layers or (lambda r: ['act']))(r)}]*2 if layer else [{}]*2
        row = dict(accuracy=accuracy(r), balanced_accuracy=accuracy(r), by_class=[[accuracy(r)*4, 4]], seconds=1, params=1)
        experiment._keep(out, {**r, 'data_path': 'made/up'}, row, dict(learned=learned, **{k: f(r) for k, f in more.items()}))
    return report.report(grid, out)


def test_what_varies_is_learned_apart(tmp_path):
    "Nets whose layers have other names, numbers of steps, weights that were decayed otherwise: each a plot of its own over the seeds."
    axes = dict(seed=[0, 1], model=['resnet18', 'mobilenetv2_100'], act_num=[1, 2], weight_decay=[0., .1])
    grid = make_grid(dict(arms=dict(relu=dict(act='relu'), chain={}), grid=axes))
    seen = []
    with pytest.MonkeyPatch.context() as m:
        m.setattr(report, 'plot_learned', lambda records, file, title: seen.append((title, len(records), {len(v['alphas']) for r in records for v in r['learned'][0].values()})))
        told(grid, tmp_path, layers=lambda r: ['act1'] if r['model'] == 'resnet18' else ['bn1.act'])
    assert len(seen) == 8 and all(n == 2 and len(steps) == 1 for _, n, steps in seen)
    assert seen[0][0] == 'grid: chain, model resnet18, act_num 1, weight_decay 0.0'
    told(grid, tmp_path, layers=lambda r: ['act1'] if r['model'] == 'resnet18' else ['bn1.act'])
    assert len(list(tmp_path.glob('learned_chain__*.png'))) == 8


def test_intervals_are_of_one_value_and_whole_seeds(tmp_path):
    grid = make_grid(dict(base=dict(cross_validate=2), grid=dict(seed=[0, 1], part=[0, 1], act_num=[1, 3])))
    done = [r for r in grid.runs if (r['seed'], r['part'], r['act_num']) != (1, 1, 3)]
    right = lambda r: [int(r['act_num'] == 1)]*2 if r['seed'] == 0 else [1, 1]
    some = experiment.Grid(grid.name, '', done, grid.arms, grid.baseline, grid.vary)
    text = told(some, tmp_path, photo=lambda r: [2*r['part'], 2*r['part'] + 1], target=lambda r: [0, 1], right=right)
    assert '- lslu, act_num 1: 100.0% (100.0% to 100.0%)' in text and '- lslu, act_num 3: 0.0% (0.0% to 0.0%)' in text


def drawn(monkeypatch, grid, accuracy, tmp_path):
    figs = []
    monkeypatch.setattr(report, 'save_figure', lambda fig, *rest: figs.append(fig))
    rows = [dict(r, id=run_id(r), accuracy=accuracy(r), seconds=1, params=1) for r in grid.runs]
    report.plot_results(grid, rows, tmp_path / 'x')
    return figs[0].axes[0]


def test_results_are_drawn_a_line_a_value(tmp_path, monkeypatch):
    grid = make_grid(dict(arms=dict(a={}, b=dict(act='series')), grid=dict(seed=[0, 1], weight_decay=[.1, 0., .2], drop=[0., .5])))
    ax = drawn(monkeypatch, grid, lambda r: r['weight_decay'] + r['drop'], tmp_path)
    lines = {c.get_label(): c.lines[0].get_xydata().round(6).tolist() for c in ax.containers}
    assert list(lines) == ['a, drop 0.0', 'b, drop 0.0', 'a, drop 0.5', 'b, drop 0.5'] and lines['b, drop 0.5'] == [[0, 50], [.1, 60], [.2, 70]]


def test_every_seed_has_its_dot(tmp_path, monkeypatch):
    grid = make_grid(dict(grid=dict(seed=[0, 1], form=['chain', 'sum'])))
    ax = drawn(monkeypatch, grid, lambda r: (r['form'] == 'sum')/2 + r['seed']/10, tmp_path)
    dots = [o.get_xydata().round(6).tolist() for o in ax.lines if o.get_marker() == '.']
    assert dots == [[[.15, 0], [.15, 10]], [[1.15, 50], [1.15, 60]]]
    assert [t.get_text() for t in ax.get_xticklabels()] == ['lslu, form chain', 'lslu, form sum']


@pytest.mark.parametrize('d, word', [
    (dict(base=dict(cross_validate=3), grid=dict(seed=[0, 1])), r'arm lslu has part 0 of cross_validate=3: put part: \[0, 1, 2\] into grid'),
    (dict(base=dict(cross_validate=2), grid=dict(part=[0, 1, 2])), 'part 0, 1, 2 of cross_validate=2'),
    (dict(base=dict(cross_validate=2), arms=dict(a={}, b=dict(part=1, act='relu')), grid=dict(part=[0, 1])), 'arm b has part 1'),
    (dict(grid=dict(part=[0, 1])), 'set cross_validate')])
def test_parts_that_cannot_be_pooled_are_refused(d, word):
    with pytest.raises(GridError, match=word): make_grid(d)


@pytest.mark.parametrize('file', sorted(shipped.glob('*.yaml')), ids=lambda f: f.stem)
def test_shipped_grids_are_sound(file):
    "They can be read, have a name and a size, and every net in them can be built."
    grid = read_grid(file)
    assert grid.name == file.stem and 'Size:' in grid.about
    names = ('model', 'act', 'act_num', 'per_channel', 'form', 'where', 'init', 'model_kwargs', 'stem_stride', 'input_size')
    nets = {json.dumps([value_or_default(r, k) for k in names]): r for r in grid.runs if r['model'] != 'vanillanet_5'}
    for cfg in map(experiment.settings_of, list(nets.values())[:7]):
        cfg.stem_stride, cfg.drop = (None if v == 'auto' else v for v in (cfg.stem_stride, cfg.drop))
        build_model(cfg, 10)


@pytest.mark.parametrize('name', ['cifar10', 'cifar100', 'act_num', 'regularisation', 'position', 'silkworm'])
def test_every_experiment_of_the_paper_has_three_sizes(name):
    assert all((shipped / f'{name}_{s}.yaml').is_file() for s in ('cpu', 'gpu', 'paper'))


@pytest.mark.parametrize('text, word', [
    ('base: {epoch: 3}', 'epoch'), ('arms: [a]', 'arms'), ('grid: {seed: 1}', 'seed'), ('bases: {}', 'bases'), ('- 1', 'mapping'), ('a: [', 'YAML'), ('baseline: x', 'baseline'),
    ('base: {data_set: mnist}', 'mnist'), ('base: {epochs: 1}', 'data_path'), ('base: {data_path: /nowhere}', '/nowhere')])
def test_mistakes_are_one_sentence(tmp_path, capsys, text, word):
    (tmp_path / 'g.yaml').write_text(text)
    assert main([str(tmp_path / 'g.yaml'), '--out', str(tmp_path / 'out')]) in (1, 2)
    said = capsys.readouterr()
    assert word in said.out + said.err and 'Traceback' not in said.out + said.err


@pytest.mark.parametrize('more, words', [
    (dict(arms=dict(a=dict(data_path='x'), b=dict(data_path='y'))), ['arm a, data_path x', 'arm b, data_path y']),
    (dict(arms=dict(a={}, b=dict(threads=2))), ['arm a, threads 1', 'arm b, threads 2']),
    (dict(arms=dict(a={}, b=dict(epochs=100)), base=dict(epochs=100)), ['(arm a)', '(arm b)']),
    (dict(grid=dict(device=['cpu', 'cuda'])), ['arm lslu, device cpu', 'arm lslu, device cuda'])])
def test_runs_that_cannot_be_told_apart_are_refused(more, words):
    with pytest.raises(GridError) as e: make_grid(more)
    assert all(w in str(e.value) for w in words) and '--out' in str(e.value)


def test_an_arm_may_fix_what_the_grid_varies():
    assert len(make_grid(dict(arms=dict(relu=dict(act='relu', act_num=1), lslu={}), grid=dict(act_num=[1, 3], seed=[0, 1]))).runs) == 6


def test_results_of_other_pictures_are_refused(drawings, done, tmp_path, monkeypatch):
    shutil.copytree(done[0], tmp_path / 'out')
    monkeypatch.setattr(experiment, 'run_one', lambda s: pytest.fail('a finished run was run again'))
    grid = make_grid(small_grid(drawings))
    with pytest.raises(GridError, match='runs on sample, not on others; name another folder with --out'): run_grid(grid, tmp_path / 'out', source=tmp_path / 'others', **quiet)
    assert len(run_grid(grid, tmp_path / 'out', source=tmp_path / 'elsewhere' / 'sample', **quiet)) == 4
    table = tmp_path / 'out/results.csv'
    table.write_text(table.read_text().replace('""data_path"": ""sample""', '""data_path"": null'))
    assert len(run_grid(grid, tmp_path / 'out', source=tmp_path / 'others', **quiet)) == 4


@pytest.mark.parametrize('base, word', [(dict(part='x'), 'part must be a whole number'), (dict(part=None), 'part'), (dict(views=['one']), 'views must be one of one, flip, symmetry'),
                                        (dict(by='picture'), 'by must be one of photo, file'), (dict(threads='many'), 'threads')])
def test_wrong_extras_are_refused_before_training(base, word):
    with pytest.raises(GridError, match=word): make_grid(dict(base=base))


def test_extras_are_read_and_ids_stay():
    run = lambda **k: make_grid(dict(base=k)).runs[0]
    assert run(part='1')['part'] == 1 and run(threads=None)['threads'] is None
    assert run_id(run()) == run_id(run(threads=None)) == '44136fa355'
    assert run_id(run(part=1, views='flip')) == 'fab2c35897' and run_id(run(epochs=7, by='file', act_num=1)) == '1e99b10d04'


def test_wrong_files_are_named(tmp_path, capsys):
    file = tmp_path / 'g.yaml'
    file.write_bytes('about: Größe'.encode('latin-1'))
    assert main([str(file)]) == 2 and f'{file} is not YAML in UTF-8' in capsys.readouterr().err
    file.write_text('5: 1\nwhat: 2\nbase: {}')
    assert main([str(file)]) == 2 and 'unknown entries 5, what' in capsys.readouterr().err


def test_command_makes_tables_and_plots(drawings, done, tmp_path, capsys):
    shutil.copytree(done[0], tmp_path / 'out')
    (tmp_path / 'g.yaml').write_text(yaml.safe_dump(small_grid(drawings)))
    assert main([str(tmp_path / 'g.yaml'), '--out', str(tmp_path / 'out'), '--report']) == 0
    said = capsys.readouterr().out
    assert '| relu |' in said and '| lslu |' in said
    for f in ('results.md', 'results.png', 'learned_lslu.png'): assert (tmp_path / 'out' / f).stat().st_size > 100
    assert main([str(tmp_path / 'none.yaml')]) == 2 and 'none.yaml' in capsys.readouterr().err


@pytest.mark.parametrize('option, n', [('--max-runs', '0'), ('--max-runs', '-1'), ('--procs', '0')])
def test_counts_below_one_are_refused(tmp_path, capsys, option, n):
    with pytest.raises(SystemExit) as e: main([str(tmp_path / 'none.yaml'), option, n])
    assert e.value.code == 2 and f'{option} must be 1 or more, not {n}' in capsys.readouterr().err


def test_report_of_an_empty_folder_says_so(drawings, tmp_path, capsys):
    (tmp_path / 'g.yaml').write_text(yaml.safe_dump(small_grid(drawings)))
    assert main([str(tmp_path / 'g.yaml'), '--out', str(tmp_path / 'out'), '--report']) == 2
    assert f'{tmp_path / "out"} holds no finished run of small' in capsys.readouterr().err


@pytest.mark.parametrize('option, value', [('scenes', 'apart'), ('group', 'copies'), ('valid_pct', .3), ('on_bad', 'skip')])
def test_settings_of_the_pictures_reach_them(drawings, monkeypatch, option, value):
    seen, real = [], experiment.load_splits
    monkeypatch.setattr(experiment, 'load_splits', lambda cfg: seen.append(cfg) or real(cfg))
    experiment._pictures.cache_clear()
    for v in ({}, {option: value}): experiment.splits_of(make_grid(small_grid(drawings, **v)).runs[0])
    assert getattr(seen[1], option) == value != getattr(seen[0], option)


def test_one_writer_at_a_time(drawings, done):
    import fcntl
    with open(done[0] / '.lock', 'w') as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        with pytest.raises(GridError, match='another process'): run_grid(make_grid(small_grid(drawings)), done[0], **quiet)


def test_a_file_system_without_locks_is_no_other_process(drawings, done, monkeypatch):
    def flock(f, how): raise OSError(errno.ENOTSUP, 'Operation not supported')
    monkeypatch.setattr('silkworm_app.files.fcntl.flock', flock)
    assert run_grid(make_grid(small_grid(drawings)), done[0], max_runs=0, **quiet) == done[1]


def test_model_card_of_cross_validated_bundle(tmp_path, capsys, monkeypatch):
    "Drawings with turned copies, one of them under two classes: the bundle, its card and the page say how it does on photographs never seen; the same seed gives the same weights."
    import hashlib
    from PIL import Image
    from silkworm_app.serve.load import load_bundle
    from silkworm_app.data.sample import draw_larva
    from silkworm_app.serve.page.answers import facts
    from silkworm_app.serve.page.html import Say, model_html
    from silkworm_app.train.fit import main as train
    monkeypatch.setenv('SILKWORM_CACHE', str(tmp_path / 'cache'))   # the pictures are compared once
    for split, c, kind, seeds in (('train', 'healthy', 'healthy', range(8)), ('test', 'healthy', 'healthy', range(6, 10)), ('train', 'muscardine', 'muscardine', range(5)), ('test', 'muscardine', 'muscardine', range(5, 8))):
        d = tmp_path / 'p' / split / c
        d.mkdir(parents=True)
        for i in seeds:
            im = draw_larva(kind, 160, seed=i)
            for k, turned in enumerate((im, im.transpose(Image.Transpose.ROTATE_90))): turned.save(d / f'{i}_{k}.png')
    draw_larva('healthy', 160, seed=0).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(tmp_path / 'p/train/muscardine/wrong.png')
    def run(name, *options):
        assert train(['--output_dir', str(tmp_path / name), *options]) == 0
        return json.loads((tmp_path / name / 'metrics.json').read_text()), {f: hashlib.sha256((tmp_path / name / f).read_bytes()).hexdigest() for f in ('best.safetensors', 'bundle/model.safetensors', 'cross_validation.jsonl')}
    m, hashes = run('a', '--data_path', str(tmp_path / 'p'), '--cross_validate', '3', '--epochs', '1', '--batch_size', '8', '--input_size', '32', '--device', 'cpu', '--progress', 'false')
    said, cv = capsys.readouterr().out, m['cross_validation']
    records = [json.loads(o) for o in (tmp_path / 'a/cross_validation.jsonl').read_text().splitlines()]
    seen = [r for r in records if r['by'] == 'photo']
    assert len({g for r in seen for g in r['photo']}) == sum(len(set(r['photo'])) for r in seen) == cv['photographs'] == 17, 'a photograph was tested in two parts, or one under two classes stayed'
    assert cv['n'] == 34 and len(records) == 6 and cv['by_file'] and 'test' not in m and m['leak']['valid_seen_in_train'] == 0
    right = {}
    for r in seen:
        for g, y, p in zip(r['photo'], r['target'], r['pick']): right.setdefault((y, g), []).append(y == p)
    recall = [np.mean([np.mean(v) for (y, _), v in right.items() if y == c]) for c in (0, 1)]
    assert abs(cv['balanced_accuracy'] - np.mean(recall)) < 1e-9 and cv['interval'][0] <= np.mean(recall) <= cv['interval'][1] and np.allclose(np.sum(cv['confusion_matrix'], 1), [9, 8])
    assert np.allclose(list(cv['per_class_recall'].values()), recall)
    card = (tmp_path / 'a/bundle/card.md').read_text()
    predictor = load_bundle(tmp_path / 'a/bundle')
    page = model_html(Say('en', predictor.classes), facts(predictor))
    trust = load_bundle(tmp_path / 'a/bundle').trust
    assert (trust.n, trust.n_sources) == (34, 17) and 'cross-validated' in trust.note, 'the threshold comes from the few validation pictures'
    v, by_file = cv['balanced_accuracy'], cv['by_file']['balanced_accuracy']
    for text in (card, said): assert f'{100*v:.1f} %' in text and f'{100*by_file:.1f} %' in text and ('Misleading' in text) == (by_file > v)
    assert f'{v:.1%}' in page and ('misleads' in page) == (by_file > v)
    for word in ('17 photographs', 'left out since under two classes: 1', 'It is no diagnosis', 'seed 42'): assert word in card
    assert '1 picture(s) stand' not in card, 'what was left out is still warned of'
    assert run('b', '--config', str(tmp_path / 'a/settings.yaml'), '--onnx', 'false')[1] == hashes
    assert train(['--data_path', str(tmp_path / 'p'), '--output_dir', str(tmp_path / 'd'), '--cross_validate', '18']) == 2 and 'cross_validate must be 2 to 17' in capsys.readouterr().err


def test_a_set_with_folds_says_which_is_tested(drawings, tmp_path):
    from silkworm_app.data.prepare import prepare
    prepare(drawings, tmp_path/'folded', valid_pct=0, test_pct=0, folds=3)
    run = dict(data_path=str(tmp_path/'folded'))
    with pytest.raises(GridError, match='prepared with 3 folds: set fold to one of fold_1, fold_2, fold_3, or cross_validate to 3'): splits_of(run)
    tested = [{p for p, _ in splits_of(run | more)[0].test} for more in (dict(fold='fold_2'), dict(cross_validate=3, part=1))]
    assert tested[0] == tested[1] and len(tested[0]) > 5


def test_arms_of_one_base_are_not_told_what_the_others_need(capsys):
    "act_num of the base is of no use to the relu, which nobody has to be told in each run; another option of no use still is"
    from silkworm_app.lab.grid import settings_of
    from silkworm_app.train.setup import _say_unused
    for arm in (dict(act='relu'), dict(act='series'), {}): _say_unused(settings_of(dict(arm='a', recipe='full', act_num=3, init='reference', form='sum', **arm)), {})
    assert not capsys.readouterr().out
    _say_unused(settings_of(dict(arm='a', recipe='full', decay_linear=True)), {})
    assert 'no use for decay_linear' in capsys.readouterr().out
    given = settings_of(dict(arm='a', act='series', act_num=3, form='sum')).given
    assert given == dict(act='series', act_num=3)                # the series has one, so a file of weights doesn't say another
