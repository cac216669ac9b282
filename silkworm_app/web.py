"Moved to serve.page."
from .serve.page.answers import *
from .serve.page.gate import *
from .serve.page.html import *
from .serve.page.page import *
from .serve.page.server import *
