"Moved to act.vanillanet"
from .act.vanillanet import *
