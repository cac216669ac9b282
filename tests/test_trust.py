"Answers per class: the promise holds for each class, on drawn and on real pictures; what proves nothing answers nothing."
import numpy as np
import pytest

from silkworm_app.data.imaging import Preprocess
from silkworm_app.serve.calibrate import fit_trust, measure
from silkworm_app.serve.trust import Trust, class_sets, p_values, photographs_needed, softmax
from silkworm_app.serve.unlike import distance, fit_limits, look_distance, picture_stats

NAMES = list('abcde')


def features_of(files, pre):
    x = pre.batch(files)
    return x[:, :, ::4, ::4].reshape(len(x), -1), picture_stats(x)


@pytest.fixture(scope='module')
def linear(sample_dir):
    "A linear classifier (colour and layout of the picture) on the sample's small pictures, with its trust."
    from sklearn.linear_model import LogisticRegression
    from silkworm_app.data.splits import find_splits
    s, pre = find_splits(sample_dir), Preprocess(32)
    number = {c: i for i, c in enumerate(s.classes)}
    get = lambda part: (*features_of([p for p, _ in part], pre), np.array([number[c] for _, c in part]))
    (ftr, _, ytr), (fva, sva, yva) = get(s.train), get(s.valid)
    lr = LogisticRegression(C=1e-3, max_iter=300).fit(ftr, ytr)
    groups = [s.groups[p] for p, _ in s.valid]
    return s, pre, lr, fit_trust(lr.decision_function(fva), fva, yva, s.classes, ftr, ytr, stats=sva, groups=groups, leak=s.leak)


def test_strange_pictures_are_unlike(linear):
    s, pre, lr, trust = linear
    rng = np.random.default_rng(0)
    strange = dict(noise=[rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(40)],
                   blank=[np.full((64, 64, 3), v, np.uint8) for v in range(0, 256, 10)])
    def unlike(files):
        f, st = features_of(files, pre)
        return np.mean([d.kind == 'unlike' for d in trust.decide(lr.decision_function(f), f, st)])
    assert unlike([p for p, _ in s.test]) < .2
    for name, files in strange.items(): assert unlike(files) > .9, name


def test_a_leaky_validation_never_answers(linear):
    s, pre, lr, trust = linear
    f, st = features_of([p for p, _ in s.valid], pre)
    y = np.array([s.classes.index(c) for _, c in s.valid])
    sure = 20 * np.eye(len(s.classes))[y]            # 100 % on validation pictures that it has seen
    leaky = fit_trust(sure, f, y, s.classes, stats=st, leak=.97)
    assert not leaky.calibrated and leaky.scores is None
    assert all(d.kind in ('nothing', 'unlike') and not d.excluded for d in leaky.decide(sure, f, st))
    assert any('copies of training pictures' in d.reasons[-1] for d in leaky.decide(sure, f, st))


@pytest.mark.parametrize('risk', (.05, .1, .2))
@pytest.mark.parametrize('skill', (.5, 3.))
def test_each_class_keeps_its_promise(risk, skill):
    "Over 150 draws the true class is excluded in at most `risk` of the pictures of each class, a rare one too, by a poor and a good net."
    rng, lost, counts = np.random.default_rng(0), np.zeros(5), (200, 60, 40, 25, 20)
    y = np.repeat(np.arange(5), counts)
    draw = lambda y: rng.normal(size=(len(y), 5)) + skill * np.eye(5)[y] + np.log(counts)      # leans to the frequent classes
    for _ in range(150):
        trust = fit_trust(draw(y), None, y, NAMES, leak=0., risk=risk, risks=())
        new = np.repeat(np.arange(5), 40)
        lost += np.array([NAMES[k] in d.excluded for d, k in zip(trust.decide(draw(new)), new)]).reshape(5, 40).mean(1)
    assert (lost / 150 <= risk + 3 * (risk * (1 - risk) / (150 * 20)) ** .5).all(), lost / 150


def test_what_was_measured_is_what_comes():
    "The left-out count of answers and of right ones agrees with fresh pictures, over 60 draws, and does not promise more."
    rng, y, new = np.random.default_rng(0), np.repeat(np.arange(5), 30), np.repeat(np.arange(5), 200)
    draw = lambda y: rng.normal(size=(len(y), 5)) + 2.5 * np.eye(5)[y]
    rows = []
    for _ in range(60):
        t = fit_trust(draw(y), None, y, NAMES, leak=0., risks=())
        ds = t.decide(draw(new))
        kept = np.mean([NAMES[k] not in d.excluded for d, k in zip(ds, new)])
        one = [d.label == NAMES[k] for d, k in zip(ds, new) if d.kind == 'one']
        rows.append((t.coverage, len(one) / len(ds), t.accuracy, np.mean(one), np.mean([c['kept'] / c['n'] for c in t.measured['classes'].values()]), kept))
    coverage, answered, accuracy, right, promised, kept = np.mean(rows, 0)
    assert abs(coverage - answered) < .03 and abs(accuracy - right) < .02 and promised - kept < .01, np.mean(rows, 0)


def test_hardly_seen_classes_are_never_excluded():
    y = np.repeat(np.arange(5), (50, 50, 50, 8, 0))
    t = fit_trust(20 * np.eye(5)[y], None, y, NAMES, leak=0.)
    assert t.unproven == dict(d=(8, 9), e=(0, 9)) and t.calibrated
    for d in t.decide(20 * np.eye(5)):
        assert not set(d.excluded) & {'d', 'e'} and d.unproven == t.unproven and d.label in (None, 'a', 'b', 'c')
        assert d.kind == ('one' if d.top in 'abc' else 'several') and d.advice == 'collect'
        assert "can't be ruled out" in str(d) if d.top in 'abc' else sorted(d.labels) == ['d', 'e']
    assert t.with_risk(.2).unproven == dict(e=(0, 4)) and not t.with_risk(.01).calibrated


def test_a_picture_between_two_well_seen_classes_needs_another_picture():
    "The model has seen enough of both, and can exclude either; that a third was hardly seen is no reason to collect for this picture"
    many, between = [round(i / 40, 6) for i in range(20)], np.log([[.5, .498, .002]])
    at = lambda **more: Trust(list('abc'), **dict(scores=dict(a=many, b=many, c=[.1, .2]), calibrated=True) | more).decide(between)[0]
    assert (at().kind, at().labels, at().advice) == ('nothing', [], 'camera') and 'c can\'t be ruled out' in str(at())
    for more in dict(scores=dict(a=many, b=[.1], c=[.1])), dict(measured=dict(photographs=42, nothing=30, several=dict(n=0, right=0, low=0, high=1))):
        assert (at(**more).kind, at(**more).advice) == ('nothing', 'collect')


def test_scores_from_a_cross_validation():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 5, 200)
    z = 4 * np.eye(5)[np.where(rng.random(200) < .1, rng.integers(0, 5, 200), y)] + rng.normal(0, .1, (200, 5))
    few, labels, photos = 4 * np.eye(5)[:5], np.arange(5), np.arange(200)
    alone = fit_trust(few, None, labels, NAMES, leak=0.)
    assert not alone.calibrated and 'of no class there are so many' in alone.note
    kept = fit_trust(few, None, labels, NAMES, leak=0., held_out=(z, y, photos))
    direct = fit_trust(z, None, y, NAMES, leak=0., groups=photos)
    assert kept.calibrated and (kept.scores, kept.temperature, kept.n) == (direct.scores, direct.temperature, 200)
    assert kept.source == 'cross-validation' and 'cross-validated' in kept.note
    assert not fit_trust(few, None, labels, NAMES, leak=0., held_out=(z, y, np.arange(200) % 4)).calibrated, 'copies counted as photographs'
    assert not fit_trust(few, None, labels, NAMES, leak=.5, held_out=(z, y, photos)).calibrated, 'a leak was forgotten'
    with pytest.raises(ValueError, match='held_out'): fit_trust(few, None, labels, NAMES, held_out=(z[:, :4], y, photos))
    with pytest.raises(ValueError, match='held_out'): fit_trust(few, None, labels, NAMES, held_out=(z * np.nan, y, photos))
    with pytest.raises(ValueError, match='held_out'): fit_trust(few, None, labels, NAMES, held_out=(z, y, photos[:9]))


def test_copies_prove_nothing_more():
    "Ten photographs, copied a hundred times each, all right: no class is ever excluded."
    y = np.repeat(np.arange(10) % 5, 100)
    t = fit_trust(10 * np.eye(5)[y], None, y, NAMES, groups=np.repeat(np.arange(10), 100), leak=0.)
    assert not t.calibrated and t.seen == dict.fromkeys(NAMES, 2)


def test_a_new_picture_of_photographs_with_frames_keeps_its_class():
    "Twenty photographs of each class in eight frames that differ, over 40 draws; a new photograph is asked about in one frame."
    rng, lost = np.random.default_rng(0), []
    def draw(photos, frames):
        y = np.repeat(np.arange(3), photos)
        z = np.repeat(2 * np.eye(3)[y] + rng.normal(size=(len(y), 3)), frames, 0)
        return z + rng.normal(size=z.shape), np.repeat(y, frames), np.repeat(np.arange(len(y)), frames)
    for _ in range(40):
        z, y, photos = draw(20, 8)
        t = fit_trust(z, None, y, list('abc'), groups=photos, leak=0., risks=())
        z, y, _ = draw(200, 1)
        pvalues = p_values(softmax(z, t.temperature), [np.array(t.scores[c]) for c in 'abc'])
        lost.append((pvalues[np.arange(len(y)), y] <= .1).mean())
    assert np.mean(lost) < .12 and all(m['n'] == 20 for m in t.measured['classes'].values())


def test_a_photograph_weighs_once_in_the_temperature():
    rng = np.random.default_rng(0)
    y = np.arange(60) % 5
    z = 3 * np.eye(5)[y] + 2 * rng.normal(size=(60, 5))
    many = np.where(z.argmax(1) == y, 1, 30)                                # what it gets wrong lies there in thirty copies
    fit = lambda n: fit_trust(z.repeat(n, 0), None, y.repeat(n), NAMES, groups=np.arange(60).repeat(n), leak=0., risks=())
    once, copied = fit(1), fit(many)
    assert np.isclose(once.temperature, copied.temperature, rtol=1e-4) and copied.n_sources == 60


@pytest.mark.parametrize('what', ['features', 'looks'])
def test_frames_of_a_photograph_do_not_narrow_what_is_like_the_rest(what):
    "Thirty photographs in eight nearly equal frames, without training pictures: few new photographs are farther than the limit."
    rng = np.random.default_rng(0)
    draw = lambda photos, frames: np.repeat(rng.normal(size=(photos, 10)), frames, 0) + .05 * rng.normal(size=(photos * frames, 10))
    photos, new = np.arange(30).repeat(8), draw(500, 1)
    def far(groups):
        x, y = draw(30, 8), np.zeros(240, int)
        if what == 'features':
            out = fit_limits(x, y, groups=groups)
            return (distance(new, out['fitted']) > out['distance_limit']).mean()
        out = fit_limits(None, y, stats=np.concatenate([np.ones((240, 2)), x], 1), groups=groups)
        return (look_distance(new, out['fitted']) > out['look_limit']).mean()
    assert far(photos) < .1 and far(None) > 2 * far(photos)
    assert set(fit_limits(draw(1, 30), np.zeros(30, int), stats=np.ones((30, 12)), groups=[7] * 30)) == {'min_contrast', 'min_sharpness', 'max_grain'}


def test_one_threshold_would_mislead():
    "300 healthy and 12 pebrine, a net that never says pebrine: at most about one in ten of the sick is called healthy, over 40 draws."
    rng, lost = np.random.default_rng(0), []
    draw = lambda n: np.stack([np.full(n, 3.2), np.zeros(n)], 1) + .3 * rng.normal(size=(n, 2))
    y = np.repeat([0, 1], (300, 12))
    for _ in range(40):
        t = fit_trust(draw(312), None, y, ['healthy', 'pebrine'], leak=0., risks=())
        assert t.measured['classes']['pebrine']['found'] == 0
        lost.append(np.mean([d.label == 'healthy' for d in t.decide(draw(100))]))
    assert np.mean(lost) < .13


def test_without_scores_nothing_is_answered():
    "However sure the net is; what was stored with each model and said nothing is passed over, a rule that is no more is refused."
    stored = Trust(['a', 'b'], note='never tried').to_dict() | dict(threshold=None, target=.9)
    d = Trust.from_dict(stored).decide(np.log([[.999, .001]]))[0]
    assert (d.kind, d.label, d.labels, str(d)) == ('nothing', None, [], "can't tell: never tried")
    with pytest.raises(ValueError, match='threshold'): Trust.from_dict(stored | dict(threshold=.8))
    with pytest.raises(ValueError, match='no scores'): Trust.from_dict(stored | dict(calibrated=True))


def test_sets_never_shrink_below_the_evidence():
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = softmax(3 * rng.normal(size=(40, 4)))
        scores = [np.sort(rng.uniform(size=rng.integers(0, 30))) for _ in range(4)]
        proven, v = np.array([len(s) >= photographs_needed(.1) for s in scores]), p_values(p, scores)
        keep, named = class_sets(p, v, proven, .1)
        assert (keep | (v <= .1)).all() and named.any(1).all() and (keep | ~named).all() and keep[:, ~proven].all() and keep.any(1).all()


def test_measure_counts_each_photograph_once():
    m = measure(softmax(5 * np.eye(3)[np.arange(60) % 3]), np.arange(60) % 3, list('abc'), .1)
    assert m['photographs'] == 60 == m['nothing'] + m['several']['n'] + sum(r['n'] for r in m['one'].values())
    assert {c: r['n'] for c, r in m['classes'].items()} == dict(a=20, b=20, c=20)


@pytest.mark.parametrize('risk,n', [(.15, 19), (.15, 39), (.3, 9), (.3, 19), (.2, 14)])
def test_what_is_measured_as_kept_is_what_the_rule_keeps(risk, n):
    "Counted in whole numbers: of n photographs, those of which more than risk * (n + 1) fit as badly, themselves among them"
    p = np.r_[np.linspace(.1, .9, n), np.full(40, .01)]
    kept = measure(np.stack([p, 1 - p], 1), np.r_[np.zeros(n, int), np.ones(40, int)], ['a', 'b'], risk)['classes']['a']['kept']
    assert kept == sum(100 * c > round(100 * risk) * (n + 1) for c in range(1, n + 1))
