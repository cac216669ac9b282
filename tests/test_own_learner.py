"A learner of one's own, with fastai's callbacks and loaders: what was asked for is what is done, or it is said that it isn't."
import csv
import warnings
from collections import namedtuple

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback import hook  # noqa: F401 adds summary to Learner
from fastai.callback.mixup import MixUp
from fastai.callback.progress import CSVLogger
from fastai.callback.tracker import SaveModelCallback
from fastai.callback.training import GradientAccumulation
from fastai.data.block import CategoryBlock, DataBlock, MultiCategoryBlock, RegressionBlock
from fastai.data.transforms import GrandparentSplitter, IndexSplitter, get_image_files, parent_label
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat, MSELossFlat
from fastai.torch_core import params
from fastai.vision.augment import Resize
from fastai.vision.core import PILImage
from fastai.vision.data import ImageBlock

from silkworm_app.act.weights import save_weights
from silkworm_app.act.patch import lslu_model
from silkworm_app.data.folder import DataError
from silkworm_app.data.loaders import image_dls, test_loader as labelled_test
from silkworm_app.data.sample import draw_sample
from silkworm_app.serve.format import BundleError
from silkworm_app.train.callback import LSLUCallback, SaveBest, WeightEMA
from silkworm_app.train.learner import lslu_learner
from silkworm_app.train.resume import Checkpoint

pytestmark = pytest.mark.trains
NET = 'lcnet_050'


@pytest.fixture(scope='module')
def sample(tmp_path_factory): return draw_sample(tmp_path_factory.mktemp('own')/'sample', n_per_class=10, size=64)


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    "Of a net that counts as trained before"
    torch.manual_seed(0)
    net = lslu_model(NET, 1000, where='none', input_size=64)
    with torch.no_grad():
        for _ in range(20): net(torch.randn(16, 3, 64, 64))
    return save_weights(net, tmp_path_factory.mktemp('w')/f'{NET}.safetensors', dict(size=64, mean=[.485, .456, .406], std=[.229, .224, .225]))


def blocks(path, size=64, **kw):
    kw = dict(blocks=(ImageBlock, CategoryBlock), get_items=get_image_files, splitter=GrandparentSplitter(), get_y=parent_label, item_tfms=Resize(size)) | kw
    return DataBlock(**kw).dataloaders(path, bs=8, device='cpu', num_workers=0)


@pytest.fixture
def learner(sample, weights, tmp_path):
    def make(dls=None, **kw):
        learn = lslu_learner(dls or blocks(sample), NET, pretrained=str(weights), path=tmp_path, seed=0, **kw)
        learn.recorder.silent = True
        return learn
    return make


def quiet(learn, f, *args, **kw):
    with learn.no_bar(), learn.no_logging(): return getattr(learn, f)(*args, **kw)


class Look(Callback):
    "What a training batch meets"
    order = 90
    def __init__(self): self.shapes, self.losses = set(), []
    def after_loss(self):
        if self.training:
            self.shapes.add(tuple(self.x.shape[1:]))
            self.losses.append(self.learn.loss_func)


@pytest.mark.parametrize('tracker', [SaveModelCallback, SaveBest])
def test_a_tracker_does_not_bring_back_what_the_recipe_took_back(learner, tracker):
    learn = learner()
    done = quiet(learn, 'fine_tune', 2, lr=.5, cbs=tracker(fname='kept' if tracker is SaveModelCallback else 'kept.safetensors'))
    assert done.best == 0                                            # half a step a picture destroys the net
    assert torch.allclose(learn.model.get_classifier().weight, torch.as_tensor(done.head.weight).float())


def test_mixup_of_one_training_mixes_pictures(learner):
    for given in (dict(cbs=[MixUp(), look := Look()]), dict(cbs=[MixUp, look])):
        look.shapes.clear()
        quiet(learner(), 'fine_tune', 1, **given)
        assert look.shapes == {(3, 64, 64)}
    quiet(learner(), 'fine_tune', 1, cbs=[plain := Look()])
    assert plain.shapes != {(3, 64, 64)}                             # else nothing was tried here


def test_the_loss_keeps_its_smoothing_and_gets_weights(learner):
    learn = learner(loss_func=CrossEntropyLossFlat(label_smoothing=.2))
    quiet(learn, 'fine_tune', 1, cbs=[look := Look()])
    assert {f.func.label_smoothing for f in look.losses} == {.2} and all(f.func.weight is not None for f in look.losses)
    assert learn.loss_func.func.weight is None and learn.loss_func.func.label_smoothing == .2


def test_the_penalty_counts_once_a_step(learner):
    "Whatever the number of batches that a step has"
    from silkworm_app.train import recipe
    sizes = {}
    for name, more in (('whole', []), ('parts', [GradientAccumulation(16)])):
        seen = []
        class Before(Callback):
            order = recipe.Gentle.order - 1
            def after_loss(self):
                if self.training: seen.append(-float(self.learn.loss_grad.detach()))
        class After(Callback):
            order = recipe.Gentle.order + 1
            def after_loss(self):
                if self.training: seen[-1] += float(self.learn.loss_grad.detach())
        quiet(learner(), 'fine_tune', 1, cbs=[Before(), After(), *more])
        sizes[name] = seen[0]
    assert sizes['parts'] == pytest.approx(sizes['whole']/2, rel=1e-4)


def test_trackers_know_the_classes_in_gentle_training(learner, sample):
    quiet(learner(image_dls(sample, 64, 8, group=None, device='cpu')), 'fine_tune', 1, cbs=SaveBest())


def test_averages_leave_no_column_behind(learner):
    learn = learner()
    names = [m.name for m in learn.metrics]
    quiet(learn, 'fit', 1, cbs=WeightEMA(.5))
    assert 'ema_0.5_loss' in learn.recorder.metric_names and [m.name for m in learn.metrics] == names
    quiet(learn, 'fit', 1, cbs=[WeightEMA(.5), SaveBest('ema_0.5_loss')])
    assert list(learn.recorder.metric_names).count('ema_0.5_loss') == 1


Crop = namedtuple('Crop', 'path part')

def test_crops_of_one_file_are_pictures_of_their_own(sample, learner, tmp_path):
    sheet = PILImage.create(get_image_files(sample)[0]).resize((256, 64))
    for k in range(2): sheet.paste((255*k, 0, 0), (128*k, 0, 128*k + 128, 64))
    sheet.save(tmp_path/'sheet.png')
    crop = lambda c: PILImage.create(PILImage.create(c.path).crop((64*(c.part % 4), 0, 64*(c.part % 4) + 64, 64)))
    block = DataBlock((ImageBlock, CategoryBlock), get_items=lambda s: [Crop(tmp_path/'sheet.png', i) for i in range(32)], get_x=crop,
                      get_y=lambda c: 'right' if c.part % 4 > 1 else 'left', splitter=IndexSplitter(list(range(24, 32))))
    done = quiet(learner(block.dataloaders(tmp_path, bs=8, device='cpu', num_workers=0)), 'fine_tune', 1)
    assert done.photos == 24 and done.losses[0] < .2                 # red on the right, black on the left


def test_arguments_that_do_nothing_are_said(learner, sample):
    with pytest.raises(TypeError, match='epohs'): quiet(learner(), 'fine_tune', epohs=7)
    with pytest.raises(TypeError, match='fine_tune of a pretrained net has no base_lr, freeze_epochs: give lr='): quiet(learner(), 'fine_tune', 1, base_lr=1e-3, freeze_epochs=2)
    for k in 'lr', 'wd':                                                        # fastai's `fine_tune` has a `wd`, too
        with pytest.warns(UserWarning, match=f'only the head was fitted, exactly and without {k}'): quiet(learner(), 'fine_tune', **{k: 1e-4})
    with pytest.raises(ValueError, match='answers with 7 numbers, but the pictures have 5 classes'): quiet(learner(n_out=7), 'fine_tune')
    several = blocks(sample, blocks=(ImageBlock, MultiCategoryBlock), get_y=lambda p: [parent_label(p)])
    with pytest.raises(ValueError, match='each picture needs one class'): quiet(learner(several), 'fine_tune')
    number = blocks(sample, blocks=(ImageBlock, RegressionBlock), get_y=lambda p: 1.)
    with pytest.raises(ValueError, match='each picture needs one class'): quiet(learner(number, n_out=1), 'fine_tune')
    for dls, kw, loss in (several, {}, BCEWithLogitsLossFlat), (number, dict(n_out=1), MSELossFlat):  # trained with the loss of their loaders
        learn = learner(dls, **kw)
        quiet(learn, 'fit', 1)
        assert isinstance(learn.loss_func.func, type(loss().func)) and not learn.metrics and np.isfinite(learn.recorder.values[-1]).all()
        with pytest.raises(BundleError, match='one class a picture'): learn.save_bundle(learn.path/'bundle')
    learn = learner(where='stem')
    with pytest.warns(UserWarning, match="where='all' changes nothing"): learn.to_lslu(where='all')
    with pytest.raises(DataError, match='no test pictures'): labelled_test(learn.dls)


def test_loaders_of_another_net_are_said(sample, weights, tmp_path):
    dls = image_dls(sample, 64, 8, group=None, device='cpu')
    with warnings.catch_warnings():
        warnings.filterwarnings('error', 'these loaders')
        for _ in range(2): lslu_learner(dls, NET, pretrained=str(weights), path=tmp_path)
    with pytest.warns(UserWarning, match=f'normalised for {NET}, now they are for tf_efficientnet_lite0'): lslu_learner(dls, 'tf_efficientnet_lite0', pretrained=True, path=tmp_path)


def test_without_validation_pictures(sample, learner):
    whole = blocks(sample, splitter=lambda items: (list(range(len(items))), []))
    learn = learner(whole)
    for asked in (dict(epochs=6, scope='all'), dict(epochs=1), dict(scope='last')):         # the head was trained instead, without a word
        with pytest.raises(ValueError, match='needs validation pictures'): quiet(learn, 'fine_tune', **asked)
    for asked in ({}, dict(epochs=0), dict(scope='head')): assert quiet(learn, 'fine_tune', **asked).photos == len(whole.train_ds)


def test_summary_before_and_after(learner):
    learn = learner()
    assert 'Total params' in learn.summary()
    quiet(learn, 'fit', 1)
    assert 'Total params' in learn.summary()


def vanilla(sample, path, **kw):
    dls = image_dls(sample, 32, 8, group=None, aug='none', device='cpu', fast=True)
    return lslu_learner(dls, 'vanillanet_5_x0_125', stem_stride=1, path=path, seed=1, **kw)


class Die(Callback):
    "Ends a training after an epoch of the fit with or without a frozen body, as a power cut does"
    order = 110
    def __init__(self, frozen, epoch): self.frozen, self.at = frozen, epoch
    def after_epoch(self):
        if (self.opt.frozen_idx > 0, self.epoch) == (self.frozen, self.at): raise KeyboardInterrupt


@pytest.mark.parametrize('frozen', [1, 2])
def test_fine_tune_of_fastai_goes_on_in_its_second_part(sample, tmp_path, frozen):
    def run(name, *cbs):
        learn = vanilla(sample, tmp_path/name)
        state, seen = Checkpoint(tmp_path/name/'state', resume=True), []
        class Count(Callback):
            def before_train(self): seen.append((self.opt.frozen_idx > 0, self.epoch))
        try: quiet(learn, 'fine_tune', 2, freeze_epochs=frozen, cbs=[state, Count(), *cbs])
        except KeyboardInterrupt: pass
        return learn, seen
    whole, seen = run('whole')
    assert seen == [*((True, e) for e in range(frozen)), (False, 0), (False, 1)]
    run('died', Die(False, 0))
    with pytest.warns(UserWarning, match=f'this one of {frozen} epochs, which was done before, is left out'): again, seen = run('died')
    assert seen == [(False, 1)]
    assert all(torch.equal(a, b) for a, b in zip(whole.model.state_dict().values(), again.model.state_dict().values()))


def test_another_fit_than_the_one_that_broke_off(sample, tmp_path):
    def learner(): return vanilla(sample, tmp_path, cbs=Checkpoint(tmp_path/'state', resume=True))
    learn = learner()
    for n in (1, 2): quiet(learn, 'fit', n)
    with pytest.warns(UserWarning, match='of a training of 2 epochs, this one has 3'): quiet(again := learner(), 'fit', 3)
    assert len(again.recorder.values) == 3


def test_trackers_of_fastai_remember_their_bests(sample, tmp_path):
    "Each its own"
    def fit(*more):
        kept = [SaveModelCallback('valid_loss', fname='loss'), SaveModelCallback('accuracy', fname='right')]
        learn = vanilla(sample, tmp_path, cbs=[Checkpoint(tmp_path/'state', resume=True), *kept, *(m(kept) for m in more)])
        try: quiet(learn, 'fit', 3, 1e-3)
        except KeyboardInterrupt: pass
        return [float(o.best) for o in kept]
    class Remembers(Callback):
        order = SaveModelCallback.order - 1
        def __init__(self, kept): self.kept = kept
        def before_train(self): seen.append([float(o.best) for o in self.kept])
    seen = []
    first = fit(lambda kept: Die(False, 0))
    fit(Remembers)
    assert seen[0] == first and first[0] != first[1] and max(first) < float('inf')


def test_averages_begin_where_a_training_without_them_goes_on(sample, tmp_path):
    "Not at the weights that the learner was made with: an average takes over the first step whole"
    quiet(vanilla(sample, tmp_path, cbs=Checkpoint(tmp_path/'state')), 'fit', 2, 1e-3)
    steps = []
    class Steps(Callback):
        order = 60
        def after_step(self): steps.append({k: p.detach().clone() for k, p in self.model.named_parameters()})
    again = vanilla(sample, tmp_path, cbs=[Checkpoint(tmp_path/'on', resume=tmp_path/'state/epoch_1.pth'), WeightEMA(.9999999), Steps()])
    quiet(again, 'fit', 2, 1e-3)
    for k, p in again.weight_ema.module().named_parameters(): assert torch.allclose(p, steps[0][k], atol=1e-5), k


def test_a_checkpoint_that_is_refused_is_left_behind(sample, tmp_path):
    "Every later fit left out the epochs of that checkpoint, and raised again"
    quiet(vanilla(sample, tmp_path, cbs=Checkpoint(tmp_path/'state')), 'fit', 1)
    for more, why in ((dict(act_num=2), 'alphas: '), (dict(splitter=params), 'AssertionError')):
        other = vanilla(sample, tmp_path, cbs=Checkpoint(tmp_path/'other', resume=tmp_path/'state/epoch_1.pth'), **more)
        was = [p.detach().clone() for p in other.model.state_dict().values()]
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            with pytest.raises(ValueError, match=f'of another net, optimiser or averages .*{why}'): quiet(other, 'fit', 2)
        assert all(torch.equal(a, b) for a, b in zip(was, other.model.state_dict().values())), why
    before = len(other.cbs)
    other.remove_cb(Checkpoint)
    quiet(other, 'fit', 2)
    assert len(other.recorder.values) == 2 and len(other.cbs) == before - 1
    quiet(vanilla(sample, tmp_path, cbs=[Checkpoint(tmp_path/'avg'), WeightEMA(.9)]), 'fit', 1)
    other = vanilla(sample, tmp_path, cbs=[Checkpoint(tmp_path/'not', resume=tmp_path/'avg/epoch_1.pth'), WeightEMA(.99)])
    was = [p.detach().clone() for p in other.model.parameters()]
    with pytest.raises(ValueError, match='epoch_1.pth is of another net, optimiser or averages'): quiet(other, 'fit', 2)
    assert all(torch.equal(a, b) for a, b in zip(was, other.model.parameters()))


@pytest.mark.parametrize('first', [True, False])
def test_the_history_stands_under_the_head_of_now(sample, tmp_path, first):
    "Where averages come or go, the old rows had one column for another"
    def fit(epochs, averages):
        cbs = [CSVLogger(), Checkpoint(tmp_path/'state', resume=True), *([WeightEMA(.9)] if averages else [])]
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            quiet(vanilla(sample, tmp_path, cbs=cbs), 'fit', epochs)
        return list(csv.DictReader((tmp_path/'history.csv').read_text().splitlines()))
    (was,), (row, new) = fit(1, first), fit(2, not first)
    assert len(new) == len(row) and None not in (new | row) and all(new.values())
    assert ('ema_0.9_loss' in row) != first and all(row[k] == was.get(k, '') for k in row), (was, row)


def test_the_log_and_its_twin_are_two_files():
    with pytest.raises(ValueError, match='params.jsonl'): LSLUCallback(fname='params.jsonl')
