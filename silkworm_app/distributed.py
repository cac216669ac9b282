"Moved to train.distributed"
from .train.distributed import *
