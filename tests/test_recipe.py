"The recipe on real photographs and over fastai's own loaders: it learns, it keeps what is better, and it never needs this library's loaders."
import pickle
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.mixup import CutMix, MixUp
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.load import DataLoader
from fastai.data.transforms import GrandparentSplitter, get_image_files, parent_label
from fastai.vision.augment import Resize
from fastai.vision.core import PILImageBW
from fastai.vision.data import ImageBlock, ImageDataLoaders

from silkworm_app.data.splits import Splits, find_splits
from silkworm_app.data.sample import draw_sample
from silkworm_app.data import loaders as loaders_of_pictures
from silkworm_app.data.loaders import image_dls
from silkworm_app.act.patch import lslu_model
from silkworm_app.train.learner import lslu_learner
from silkworm_app.train.head import Features, fit_head, in_order, photograph_losses, photograph_weights, photographs, picture_features
from silkworm_app.train import cross, recipe
from silkworm_app.train.head import predict_logits
from silkworm_app.train.mixing import TrainLoss
from silkworm_app.train.recipe import fit_recipe, one_file_each
from silkworm_app.train.run import RunFolder


pytestmark = pytest.mark.trains


@pytest.fixture(scope='module')
def sample(tmp_path_factory): return draw_sample(tmp_path_factory.mktemp('recipe')/'sample', n_per_class=10, size=96)


def quiet(learn, *args, **kw):
    with learn.no_bar(), learn.no_logging(): return learn.fine_tune(*args, **kw)


def loaders(kind, path):
    "fastai's own loaders: their `splits` are lists of indices, or not there, and nothing normalises"
    if kind == 'ImageDataLoaders': return ImageDataLoaders.from_folder(path, valid='valid', item_tfms=Resize(96), bs=8, device='cpu', num_workers=0)
    if kind == 'table':
        rows = pd.DataFrame([(str(p.relative_to(path)), p.parent.name, p.parent.parent.name == 'valid') for p in get_image_files(path)], columns=['name', 'label', 'is_valid'])
        return ImageDataLoaders.from_df(rows, path, valid_col='is_valid', item_tfms=Resize(96), bs=8, device='cpu', num_workers=0)
    block = DataBlock((ImageBlock, CategoryBlock), get_items=get_image_files, splitter=GrandparentSplitter(), get_y=parent_label, item_tfms=Resize(96))
    return block.dataloaders(path, bs=8, device='cpu', num_workers=0)


@pytest.mark.parametrize('kind', ['ImageDataLoaders', 'DataBlock', 'table'])
def test_loaders_of_fastai(sample, tmp_path, kind):
    dls = loaders(kind, sample)
    learn = lslu_learner(dls, path=tmp_path)
    x = dls.valid.one_batch()[0]
    with torch.no_grad(): assert -1.01 < float(x.min()) and float(x.max()) < 1.01  # (x - 127)/128, which ImageNet's numbers leave
    done = quiet(learn, 1)
    assert done.photos == len(dls.train_ds) and learn.recipe is done
    z, y = predict_logits(learn.model, dls.valid)
    assert photograph_losses(z.softmax(1).numpy(), y.numpy(), photographs(dls, 1)).sum() <= done.losses[0] + 1e-4
    assert float((z.argmax(1) == y).float().mean()) > .4  # five classes: guessing gives 0.2


@pytest.mark.parametrize('own,more', [(CutMix(), None), (None, MixUp())])
def test_a_callback_that_changes_the_loss_keeps_its_own(sample, tmp_path, own, more):
    learn = lslu_learner(loaders('ImageDataLoaders', sample), path=tmp_path, cbs=own)
    loss = learn.loss_func
    assert len(quiet(learn, 2, cbs=more).losses) == 3 and learn.loss_func is loss


def test_pictures_of_one_channel(sample, tmp_path):
    block = DataBlock((ImageBlock(PILImageBW), CategoryBlock), get_items=get_image_files, splitter=GrandparentSplitter(), get_y=parent_label, item_tfms=Resize(96))
    learn = lslu_learner(block.dataloaders(sample, bs=8, device='cpu', num_workers=0), 'tf_efficientnet_lite0', pretrained=True, path=tmp_path)
    assert next(learn.model.parameters()).shape[1] == 1
    quiet(learn, 1)
    z, y = predict_logits(learn.model, learn.dls.valid)
    assert float((z.argmax(1) == y).float().mean()) > .4


def test_nets_that_know_one_size_only():
    "Features are remembered by what a probe says, which is of the size that the net was built for"
    net, features = lslu_model('visformer_tiny', 3, act='relu', input_size=224).eval(), Features()
    features._check(net, None)
    features.known['it'] = 1
    features._check(net, None)
    assert features.known == {'it': 1}
    with torch.no_grad(): next(net.parameters()).mul_(2)
    features._check(net, None)
    assert not features.known


def test_copies_of_a_photograph_weigh_like_one():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 6)), np.repeat([0, 1], 15)
    once = fit_head(x, y, C=.1)
    more = np.concatenate([np.arange(30), np.repeat(3, 20)])  # twenty copies of one photograph
    again = fit_head(x[more], y[more], more, C=.1)
    assert photograph_weights(y[more], more)[more == 3].sum() == pytest.approx(photograph_weights(y, np.arange(30))[3])
    plain = fit_head(x[more], y[more], C=.1)
    probe = rng.normal(size=(200, 6))
    apart = [np.abs(once.logits(probe) - h.logits(probe)).max() for h in (again, plain)]
    assert apart[0] < apart[1]  # the standardisation sees the copies, the weights don't


def test_a_class_without_validation_pictures_is_no_warning(sample):
    z, y = torch.eye(3)[[0, 1, 2]], torch.tensor([0, 0, 1])  # the third answer is of a class that no picture shows
    metrics = lslu_learner(image_dls(find_splits(sample, group=None), 32, 8, device='cpu', num_workers=0), 'test_resnet', act='relu').metrics
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert [m.name for m in metrics] == ['accuracy', 'balanced_accuracy_score'] and metrics[1].func(z, y) == .25


@pytest.mark.parametrize('what,says', [('head', ['', '16 min', '12 min', '8 min', '4 min', '']), ('full', ['75 min', '16 min', '12 min', '8 min', '4 min', ''])])
def test_how_long_a_cross_validation_takes(tmp_path, monkeypatch, what, says):
    "A first head looks at all pictures, which says nothing of the parts after it"
    now, lines = [0.], []
    def part(cfg, splits, items, by, i, *args):
        now[0] += 900 if not now[0] else 240
        return dict(by=by, part=i, photo=[i], target=[i % 2], pick=[i % 2])
    monkeypatch.setattr(cross, 'test_part', part)
    monkeypatch.setattr(cross, 'time', SimpleNamespace(time=lambda: now[0]))
    train = [(Path(f'{i}.png'), 'ab'[i % 2]) for i in range(6)]
    splits = Splits(train, [], [], ['a', 'b'], {p: i for i, (p, _) in enumerate(train)})
    cross.cross_validate(SimpleNamespace(cross_validate=6, seed=0, recipe=what), splits, RunFolder(tmp_path), lines.append)
    assert [o.partition('; about ')[2].partition(' of cross')[0] for o in lines[1:]] == says


def test_one_file_of_each_photograph_in_an_epoch(sample):
    splits = find_splits(sample, group=None)
    splits.groups = {p: i//3 for part in (splits.train, splits.valid, splits.test) for i, (p, _) in enumerate(part)}
    dls = image_dls(splits, 32, 4, fast=True, device='cpu')
    photos = photographs(dls, 0)
    with one_file_each(dls.train, photos):
        drawn = [dls.set_epoch(i).train.get_idxs() for i in range(3)]
        assert sum(len(b[1]) for b in dls.train) == len(set(photos))
    for d in drawn: assert sorted(photos[d]) == sorted(set(photos))
    assert drawn[0] != drawn[1]
    assert len(dls.train.get_idxs()) == len(photos)


def test_a_loader_that_draws_goes_to_processes_that_are_started_anew(sample, tmp_path):
    "Windows, and Python 3.14 everywhere, hand them the loader as it is while pictures are drawn"
    dls = image_dls(find_splits(sample, group=None), 64, 8, device='cpu', num_workers=2)
    learn, photos, sent, walk = lslu_learner(dls, 'test_resnet', path=tmp_path), photographs(dls, 0), [], DataLoader.__iter__
    def send(dl):
        sent.append(pickle.loads(pickle.dumps(dl.fake_l)).d.get_idxs())
        return walk(dl)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DataLoader, '__iter__', send)
        Features().drawn(learn, 'fc', 1, [3, 1])
    assert sent == [[3, 1]]
    with one_file_each(dls.train, photos) as dl: assert pickle.loads(pickle.dumps(dl.fake_l)).d.get_idxs() == dl.get_idxs()


def test_features_are_shared_among_learners_that_start_alike(sample, tmp_path):
    splits, features, seen = find_splits(sample, group=None), Features(), []
    for swap in (False, True):
        parts = (splits.valid, splits.train) if swap else (splits.train, splits.valid)
        learn = lslu_learner(image_dls(Splits(*parts, splits.test, splits.classes, path=sample), 96, 8, device='cpu'), path=tmp_path)
        hook = learn.model.get_classifier().register_forward_pre_hook(lambda m, args: seen.append(len(args[0])))
        fit_recipe(learn, epochs=0, refit=True, features=features)
        hook.remove()
        n, before = sum(seen), n if swap else 0
    assert before >= 2*(len(splits.train) + len(splits.valid)) and n - before < 10  # the second learner looks at the probe only


def test_features_of_pictures_in_memory_open_no_file(sample, tmp_path, monkeypatch):
    dls = image_dls(find_splits(sample, group=None), 64, 8, fast=True, device='cpu')
    learn = lslu_learner(dls, 'test_resnet', path=tmp_path)
    want = picture_features(learn.model, dls.test_dl(dls.train_ds.items, with_labels=True, num_workers=0))
    monkeypatch.setattr(loaders_of_pictures, 'open_image', None)
    assert all(np.array_equal(a, b) for a, b in zip(Features()(learn, 0), want))
    x, y = picture_features(learn.model, in_order(dls, 0, [5, 2]))
    assert np.allclose(x, want[0][[5, 2]], atol=1e-5) and np.array_equal(y, want[1][[5, 2]])


@pytest.mark.parametrize('arch,fast', [('test_resnet', False), ('lcnet_050', True)])
def test_what_lies_below_the_last_stage_runs_once(sample, tmp_path, monkeypatch, fast, arch):
    "A training on kept maps is the training on the pictures themselves"
    def losses():
        dls = image_dls(find_splits(sample, group=None), 64, 16, aug='none', fast=fast, device='cpu', num_workers=0)
        learn = lslu_learner(dls, arch, act='relu', seed=0, path=tmp_path)
        net, count = learn.model, []
        next(m for m in net.modules() if isinstance(m, torch.nn.Conv2d)).register_forward_hook(lambda m, i, o: count.append(len(o)))
        with learn.no_bar(), learn.no_logging(): done = fit_recipe(learn, 2, lr=1e-3, C=.1)
        return done.losses, [n for n in count if n > 1], predict_logits(net, dls.valid)[0]
    kept, few, z = losses()
    monkeypatch.setattr(recipe, 'find_front', lambda *args: None)
    plain, many, again = losses()
    assert kept == pytest.approx(plain, rel=1e-3) and torch.allclose(z, again, atol=1e-2)
    assert sum(few) < sum(many)


def test_ants_and_bees_are_learned(hymenoptera_dir, tmp_path):
    "The README's code; its net used to end at one class for every picture"
    splits = find_splits(hymenoptera_dir, group=None, valid_as_test=True)
    dls = image_dls(splits, 224, 32, device='cpu')
    learn = lslu_learner(dls, path=tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        quiet(learn, 0)
    # 49 photographs; over 200 cuts the head is right on 86 to 100 % of them, median 96 % (seeds 0 to 199), and on 90 % of this one; one
    # answer for all is right on about half
    assert learn.validate()[1] > .75


class Stop(Callback):
    "Ctrl-C in the middle of an epoch"
    def after_batch(self):
        if self.training: raise KeyboardInterrupt


def test_the_loss_comes_back_where_a_training_is_stopped(sample, tmp_path):
    "It stayed weighted by classes, or that of the training pictures, in all that followed"
    learn = lslu_learner(image_dls(sample, 32, 4, group=None, device='cpu'), 'test_resnet', seed=0, path=tmp_path)
    loss, learn.pretrained = learn.loss_func, True
    with pytest.raises(KeyboardInterrupt): quiet(learn, 1, cbs=Stop())
    assert learn.loss_func is loss
    learn.add_cb(TrainLoss(torch.nn.CrossEntropyLoss(label_smoothing=.9)))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), learn.no_bar(), learn.no_logging(): learn.fit(1, cbs=Stop())
    right = float(loss(*predict_logits(learn.model, learn.dls.valid)))
    assert learn.validate()[0] == pytest.approx(right, rel=1e-3) and learn.loss_func is loss
