"What a notebook types, in one import beside `from fastai.vision.all import *`; it hides nothing of fastai"
from .act.curves import layer_curves
from .act.fuse import FuseError, compare, fuse
from .act.lslu import LSLU, FusedLSLU, collapse, reference_series, series, series_sum
from .act.patch import NetSpec, lslu_model, lslus, patch_lslu, rebuild_model
from .act.plan import plan_lslu
from .act.start import load_reference, start_from
from .act.vanillanet import count_ops
from .act.weights import find_weights, pretrained_cfg
from .data.audit import audit
from .data.cifar import cifar_dls, cifar_splits
from .data.copies import copy_groups, group_pictures
from .data.folder import unpack
from .data.imaging import ImageError, Preprocess, open_image
from .data.loaders import image_dls, test_loader
from .data.prepare import prepare
from .data.sample import draw_sample, picture_grid
from .data.splits import Splits, find_splits
from .figures import (activation_curves, cam_overlay, compare_runs, confusion_figure, loss_curves, params_over_epochs,
                      selectivity_figure)
from .plot import plot_run
from .serve.bundle import save_bundle
from .serve.explain import grad_cam, selectivity
from .serve.load import load_bundle
from .serve.trust import Decision, Trust
from .train.callback import DeepTraining, LSLUCallback, SaveBest, WeightEMA
from .train.learner import lslu_learner, lslu_splitter
from .train.recipe import fit_recipe
