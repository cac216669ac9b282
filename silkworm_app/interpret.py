"Moved to figures, serve.explain and act.curves."
from .act.curves import *
from .figures import *
from .serve.explain import *
from .plot import *
