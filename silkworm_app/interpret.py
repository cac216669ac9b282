"Moved to figures and serve.explain."
from .figures import *
from .serve.explain import *
from .plot import *
