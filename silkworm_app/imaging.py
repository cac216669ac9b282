"Moved to data.imaging"
from .data.imaging import *
from .data.imaging import _formats
