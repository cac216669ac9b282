"Moved to train.callback and train.resume"
from .train.callback import *
from .train.resume import *
from .act.weights import load_weights, save_weights
from .train.callback import cross_entropy as _ce, share_right as _acc
from .train.resume import _set_rng_state, _rng_state
