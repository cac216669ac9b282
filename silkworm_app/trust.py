"Moved to serve.trust, serve.calibrate and serve.unlike."
from .serve.trust import *
from .serve.calibrate import *
from .serve.unlike import *
