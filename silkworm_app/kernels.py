"Moved to lab.kernels"
from .lab.kernels import *
from .lab.kernels import triton
