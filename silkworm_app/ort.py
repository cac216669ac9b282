"Moved to serve.format, serve.onnx and serve.load."
from .serve.format import *
from .serve.onnx import *
from .serve.load import *
