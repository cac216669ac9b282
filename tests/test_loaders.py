"What fastai asks of loaders, of each kind of `image_dls`; and a normalisation that is set later."
import numpy as np
import pytest
import torch
from fastai.vision.all import ClassificationInterpretation, Interpretation, Learner, accuracy, nn

from silkworm_app.data.sample import draw_sample
from silkworm_app.data.splits import find_splits
from silkworm_app.data.loaders import image_dls, test_loader as labelled_test
from silkworm_app.data.imaging import Preprocess

KINDS = {'items': {}, 'two workers': dict(num_workers=2), 'fast': dict(fast=True), 'cache': dict(cache=True), 'fast cache': dict(cache=True, fast=True),
         'timm': dict(aug='timm:rand-m9-mstd0.5-inc1', re_prob=.5)}


@pytest.fixture(scope='module')
def drawn(tmp_path_factory): return find_splits(draw_sample(tmp_path_factory.mktemp('d') / 'sample', n_per_class=15, size=48), group=None)


@pytest.fixture(params=KINDS)
def dls(request, drawn, tmp_path):
    return image_dls(drawn, 40, 8, **{k: tmp_path / 'cache' if k == 'cache' else v for k, v in KINDS[request.param].items()})


@pytest.fixture
def learn(dls, tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 5))
    learn = Learner(dls, net, metrics=accuracy, path=tmp_path)
    with learn.no_bar(), learn.no_logging(): yield learn


def passes(learn, n):
    "What the net was shown in each pass of `learn.tta`."
    shown = []
    def look(module, x): shown.append(x[0].detach().cpu())
    hook = learn.model[0].register_forward_pre_hook(look)
    try: learn.tta(n=n)
    finally: hook.remove()
    k = len(learn.dls.valid)
    return [torch.cat(shown[i * k:(i + 1) * k]) for i in range(n + 1)]


def test_passes_of_tta_differ_and_the_last_is_plain(learn, drawn):
    first, second, third, plain = passes(learn, 3)
    files = [p for p, _ in drawn.valid]
    assert np.abs(plain.numpy() - Preprocess(40).batch(files)).max() < 1e-5
    for a, b in ((first, second), (second, third), (first, plain)):
        assert (a - b).abs().amax((1, 2, 3)).gt(.05).float().mean() > .9
    again = passes(learn, 3)
    assert all(torch.equal(a, b) for a, b in zip(again, (first, second, third, plain)))      # and can be repeated


def test_what_fastai_asks_of_a_loader(learn, drawn, dls):
    probs, y = learn.get_preds()
    assert [dls.vocab[i] for i in y] == [c for _, c in drawn.valid] and probs.shape == (15, 5)
    files = [p for p, _ in drawn.valid]
    for src in (files, list(map(str, files))): assert torch.allclose(learn.get_preds(dl=dls.test_dl(src))[0], probs, atol=1e-5)
    with_labels = dls.test_dl(drawn.valid and [i for i in dls.valid_ds.items], with_labels=True)
    assert learn.validate(dl=with_labels)[1] == pytest.approx(learn.validate()[1])
    assert torch.allclose(learn.predict(files[3])[2], probs[3], atol=1e-5)
    assert len(learn.get_preds(ds_idx=0)[0]) == len(drawn.train)
    assert [dls.vocab[i] for i in learn.get_preds(dl=labelled_test(dls))[1]] == [c for _, c in drawn.test]
    for dl in (dls.train, dls.valid):
        dl.show_batch(show=False, max_n=4)
        assert dl.one_batch()[0].shape == (8, 3, 40, 40) and len(dl.decode_batch(dl.one_batch(), max_n=3)) == 3
    learn.show_results(max_n=4, shuffle=True)
    for kind in (Interpretation, ClassificationInterpretation):
        interp = kind.from_learner(learn)
        losses, worst = interp.top_losses(4)
        assert len(interp.losses if hasattr(interp, 'losses') else losses) and losses[0] >= losses[3]
        interp.plot_top_losses(4)
    assert interp.confusion_matrix().sum() == 15
    train = ClassificationInterpretation.from_learner(learn, ds_idx=0)
    assert train.confusion_matrix().sum() == len(drawn.train)
    learn.fit(1)
    assert dls.train.epoch == 1


def test_looking_and_asking_move_no_epoch(learn, dls):
    learn.tta(n=2), learn.get_preds(ds_idx=0), dls.show_batch(show=False), dls.one_batch()
    assert dls.train.epoch == 0 and dls.valid.epoch == 0


@pytest.mark.parametrize('resize', ['crop', 'pad'])
@pytest.mark.parametrize('kind', KINDS)
def test_normalised_later_is_normalised_from_the_start(drawn, tmp_path, kind, resize):
    kw = {k: tmp_path / 'cache' if k == 'cache' else v for k, v in KINDS[kind].items()}
    if resize == 'pad': kw = {**kw, 'aug': 'none'} if kind != 'timm' else kw
    mean, std = (.1, .5, .9), (.5, .4, .3)
    pre = Preprocess(40, resize=resize)
    wide = [(np.asarray(p)[:30], c) for p, c in [(np.asarray(Preprocess(48).image(_open(p))), c) for p, c in drawn.train]]
    data = drawn if 'cache' in kw else type(drawn)(wide, wide[:15], wide[:10], drawn.classes)
    want = image_dls(data, 40, 8, resize=resize, mean=mean, std=std, **kw)
    got = image_dls(data, 40, 8, resize=resize, **kw)
    before = got.train.one_batch()[0]
    assert got.normalise(mean, std) is got and got.preprocess == want.preprocess != pre
    assert not torch.allclose(before, got.train.one_batch()[0])
    for a, b in ((got.train, want.train), (got.valid, want.valid), (labelled_test(got), labelled_test(want))):
        for (x, y), (u, v) in zip(a, b): assert torch.allclose(x, u, atol=1e-5) and torch.equal(y, v)
    src = data.valid[0][0]
    assert np.abs(got.test_dl([src]).one_batch()[0].cpu().numpy()[0] - want.preprocess.array(src)).max() < 1e-5


def _open(p):
    from silkworm_app.data.imaging import open_image
    return open_image(p)
