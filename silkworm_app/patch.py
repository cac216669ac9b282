"Moved to act.places, act.plan, act.patch, act.start and act.weights"
from .act.patch import *
from .act.patch import INITS,NetSpec,lslu_model,lslus,patch_lslu,rebuild_model
from .act.places import *
from .act.places import arch_of as _arch
from .act.plan import *
from .act.start import *
from .act.weights import *
from .act.weights import read_weights as _read_weights

def _read_state(file, key): return _read_weights(file, key).state
