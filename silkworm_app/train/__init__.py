"From batches to a run: settings, learner, cross-validation and the command silkworm-train"
from importlib import import_module


def __getattr__(name):
    "What was in the module `train` before it became a package, found when it is asked for, so that nothing heavy is imported here"
    if name.startswith('__'): raise AttributeError(name)
    return getattr(import_module('silkworm_app.train.fit'), name)
