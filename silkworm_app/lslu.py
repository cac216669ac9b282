"Moved to act.lslu"
from .act.lslu import *
from .act.lslu import INITS as _INITS, compose
