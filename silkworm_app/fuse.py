"Moved to act.fuse"
from .act.fuse import *
