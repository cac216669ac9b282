"Moved to lab.bench"
from .lab.bench import *
