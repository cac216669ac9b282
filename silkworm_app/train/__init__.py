"From batches to a run: settings, learner, cross-validation and the command silkworm-train"
from importlib import import_module

_homes = 'config', 'run', 'setup', 'one', 'optim', 'mixing', 'log', 'cross', 'fit'


def __getattr__(name):
    "What was in the module `train` before it became a package, found when it is asked for, so that nothing heavy is imported here"
    if name.startswith('__') or name in _homes: raise AttributeError(name)
    for home in _homes:
        module = import_module(f'silkworm_app.train.{home}')
        if hasattr(module, name): return getattr(module, name)
    raise AttributeError(f'silkworm_app.train has no {name}')
