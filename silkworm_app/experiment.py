"Moved to lab.grid and lab.report"
from .lab.grid import *
from .lab.report import *
