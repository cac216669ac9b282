"Moved to serve.metrics and train.evaluate"
from importlib import import_module

from .serve.metrics import evaluate_probs, metrics_report


def __getattr__(name):
    "The command, found when it is asked for"
    if name not in ('main', 'open_models', 'labelled_pictures'): raise AttributeError(name)
    return getattr(import_module('silkworm_app.train.evaluate'), name)
