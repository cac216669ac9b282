"Moved to train.learner"
from .train.learner import *
from .train.learner import _shape as _size
