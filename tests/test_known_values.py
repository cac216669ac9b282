"Answers known beforehand, where a changed sign, bound or default would go unseen elsewhere (each was found by changing the code)."
import json

import numpy as np
import pytest
import torch
from fastcore.test import test_close as close
from scipy.stats import ttest_rel
from torch import nn

from silkworm_app.act.plan import _act_nums, default_where
from silkworm_app.data.audit import audit, headlines
from silkworm_app.data.merge import _called
from silkworm_app.data.sample import draw_larva
from silkworm_app.data.splits import Splits, find_splits
from silkworm_app.lab.report import paired
from silkworm_app.serve.advice import confusions, trust_warnings
from silkworm_app.serve.calibrate import fit_temperature, fit_trust
from silkworm_app.serve.format import is_pickle
from silkworm_app.serve.metrics import agreement, class_interval, evaluate_probs, hardly_found
from silkworm_app.serve.reasons import _few, listed, pct
from silkworm_app.serve.trust import Trust
from silkworm_app.serve.unlike import fit_limits
from silkworm_app.train.compare import compare_answers, held_out
from silkworm_app.train.config import TrainConfig
from silkworm_app.train.cross import _result, held_out_answers, part_splits, photo_interval, photographs_of
from silkworm_app.train.optim import CPUMixedPrecision, make_opt_func, param_groups, precision, schedules, warmup_cosine
from silkworm_app.train.run import RunFolder


def three():
    "Outputs for 60, 30 and 2 photographs, the last of which are taken for the first"
    y = np.repeat(np.arange(3), (60, 30, 2))
    return 6*np.eye(3)[np.where(y == 2, 0, y)] + np.random.default_rng(0).normal(size=(92, 3)), y, ['healthy', 'grasserie', 'pebrine']


# ---- figures ----

def test_metrics():
    close(agreement(np.array([[0., 10.]]), np.array([[0., 9.]]))[0], .1)
    assert hardly_found(dict(confusion_matrix=[[6, 4], [4, 6]], per_class_recall=dict(a=.6, b=.6), per_class_n=dict(a=10, b=10))) == []
    with pytest.raises(ValueError, match=r'must be \[N, K\]'): evaluate_probs([.5, .5], [0, 1])


def test_intervals():
    one = lambda right, n=10: dict(photo=range(n), target=[0]*n, right=[1]*right + [0]*(n - right))
    close(class_interval(one(10)), (1, .7225, 1), 1e-3)                              # Wilson's
    close(class_interval(one(8)), (.8, .4902, 1), 1e-3)
    close(class_interval(one(8, 20)), (.4, .1845, .6155), 1e-3)                       # one more right and one more wrong: 9 of 22
    value, low, high = photo_interval([one(80, 100)])
    close(value, .8, 1e-9)
    assert .70 < low < .74 and .86 < high < .89


def test_the_paired_interval_is_that_of_a_t_test():
    a, b = [.52, .53, .55, .5], [.51, .52, .53, .51]
    d, t = paired(a, b), ttest_rel(a, b)
    close((d['low'], d['high'], d['p']), (*t.confidence_interval(), t.pvalue), 1e-9)


def test_recalls_count_photographs_not_files():
    both = _result([dict(photo=[0, 0, 0, 1, 2], target=[0, 0, 1, 0, 1], pick=[0, 0, 1, 1, 0])], [], ['a', 'b'])
    assert both['per_class_recall'] == dict(a=.5, b=.5)


def test_equal_answers_are_neither_better_nor_worse():
    now = {f'f{i}': ['a' if i < 10 else 'b']*2 + [i//2] for i in range(16)}
    assert [compare_answers(now, now)[k] for k in ('better', 'worse', 'p')] == [0, 0, 1.]


# ---- words ----

def test_words():
    assert [pct(p) for p in (.456, .0123, .9987, .995)] == ['46%', '1.23%', '99.9%', '99.5%']
    assert (_few('abcdefgh'), _few('abcdefghi'), listed([])) == ('a, b, c, d, e, f, g and h', 'a, b, c, d, e, f, g and 2 others', '')


def test_advice():
    z, y, names = three()
    said = trust_warnings(fit_trust(z[y < 2], None, y[y < 2], names, leak=0.))
    assert [(r.code, r.values['labels']) for r in said] == [('unchecked', ['pebrine'])]
    assert [r.values['true'] for r in confusions(Trust(list('abc'), confusion=[[90, 10, 0], [4, 6, 0], [1, 0, 9]]))] == ['b', 'a']


# ---- when it answers ----

def test_calibration():
    z, y, names = three()
    assert list(fit_trust(z, None, y, names, leak=0.).measured_at) == ['0.02', '0.05', '0.1', '0.15', '0.2', '0.25', '0.3']
    assert ['was not checked' in fit_trust(z, None, y, names, leak=o).note for o in (None, 0.)] == [True, False]
    assert 'was not checked' not in fit_trust(z, None, y, names, held_out=(z, y, np.arange(92))).note
    close(fit_temperature([[5., 0.]], [0]), 5/np.log(3), 1e-3)
    assert Trust(['a', 'b'], risk=.5).risk == .5


def test_limits_of_what_is_unlike():
    assert fit_limits(None, np.zeros(30), stats=np.tile([2., 1.], (30, 1))) == dict(min_contrast=1., min_sharpness=.5, max_grain=.75)


def test_what_holds_a_pickle():
    files = b'PK\3\4' + bytes(6), b'\x80\4' + bytes(8), b'PK' + bytes(6) + b'{', b'{"a": 1}  '
    assert [is_pickle(o) for o in files] == [True, True, False, False]


# ---- cross-validation ----

def test_only_answers_cut_by_photograph_count_later(tmp_path):
    run = RunFolder(tmp_path)
    record = lambda by, k: dict(by=by, part=0, file=['f0', 'f1'], photo=[0, 1], target=[0, 1], pick=[k, k], probs=[[.9, .1], [.2, .8]])
    run.cross.parent.mkdir(parents=True, exist_ok=True)
    run.cross.write_text(''.join(json.dumps(record(*o)) + '\n' for o in (('photo', 0), ('file', 1))))
    assert len(held_out_answers(run)[1]) == 2
    assert held_out(run, ['a', 'b']) == dict(f0=['a', 'a', 0], f1=['b', 'a', 1])


def parts(tmp_path, by, folds=False):
    "The first part of two, and the photograph of each file: ten a class, in four files each"
    items = [(tmp_path/c/f'{g}_{i}', c) for c in 'ab' for g in range(10) for i in range(4)]
    groups = {p: int(p.name.split('_')[0]) + 100*(p.parent.name == 'b') for p, _ in items}
    splits = Splits(items, [], [], ['a', 'b'], groups)
    if folds: splits.folds = {f'fold_{k}': [o for o in items if groups[o[0]] % 2 == k] for k in (0, 1)}
    own, _ = part_splits(TrainConfig(cross_validate=2, valid_pct=.2, seed=0), splits, photographs_of(splits), by, 0)
    return [{groups[p] for p, _ in o} for o in (own.train, own.valid, own.test)]


def test_photographs_are_in_one_part_and_files_are_not(tmp_path):
    train, valid, test = parts(tmp_path, 'photo')
    assert train and valid and test and not (train & valid or train & test or valid & test)
    train, _, test = parts(tmp_path, 'file', folds=True)
    assert train & test


# ---- training ----

def test_schedules():
    close((warmup_cosine(.1, 10)(0.), warmup_cosine(.1, 10, 2)(.2), warmup_cosine(.1, 10, 2)(.1)), (.1, .1, .05))
    given = dict(epochs=4, lr=.1, sched='cosine', weight_decay=.1, weight_decay_end=.3, opt='adamw')
    cfg = TrainConfig(**given)
    cfg.given = given
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    wd = schedules(cfg, make_opt_func(cfg)(param_groups(net, cfg.weight_decay), .1), lambda s: None)['wd']
    for at, now in (0., .1), (.125, .1 + .1*(1 - np.cos(np.pi/8))), (1., .3): close(sorted(wd(at)), [0, now])


def test_half_precision_on_a_cpu_is_bfloat16_or_none():
    said = []
    cpu = lambda **kw: [type(o) for o in precision(TrainConfig(use_amp=True, **kw), torch.device('cpu'), said.append)]
    assert (cpu(amp_dtype='bf16'), cpu(), len(said)) == ([CPUMixedPrecision], [], 1)


def test_plans():
    assert _act_nums('auto', dict(a=nn.ReLU6(), b=nn.ReLU()), (3, 224, 224)) == dict(a=2, b=3)
    assert _act_nums('auto', dict(b=nn.ReLU()), (3, 64, 64)) == dict(b=1) and _act_nums(0, dict(b=nn.ReLU()), (3, 64, 64)) == dict(b=0)
    assert (default_where(['a']*13, ['a']), default_where(['a', 'b']*7, ['a']), default_where(['a', 'b']*7, [])) == ('all', 'stem', ['a'])


# ---- data ----

def test_a_given_validation_split_that_met_train(tmp_path):
    for c, kind in (('a', 'healthy'), ('b', 'muscardine')):
        for s, seeds in (('train', (0, 1, 2, 3)), ('valid', (0, 5))):
            (tmp_path/s/c).mkdir(parents=True)
            for i in seeds: draw_larva(kind, 64, i).save(tmp_path/s/c/f'{i}.png')
    out = find_splits(tmp_path, group='hash')
    assert out.leak['valid_seen_in_train'] == .5 and any('validation accuracy is too good' in w for w in out.warnings)


def test_what_a_random_split_would_leak(tmp_path):
    for c, kind in (('a', 'healthy'), ('b', 'muscardine')):
        (tmp_path/c).mkdir()
        for i in range(3):
            for k in '01': draw_larva(kind, 64, i).save(tmp_path/c/f'{i}{k}.png')
    report = audit(tmp_path, 'hash', show=False)
    close(report['random_split_leak'], .8)
    assert any('of a random test fifth 80 %' in h for h in headlines(report))


def test_classes_of_before_keep_their_names():
    assert _called(['pabrin', 'x'], ['healthy', 'pabrin'], dict(x=None), 'src') == dict(pabrin='pabrin', x=None)
