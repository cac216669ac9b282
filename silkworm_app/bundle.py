"Moved to serve.bundle, serve.card, serve.net, serve.load and serve.format."
from .serve.format import BUNDLE_FORMAT, BundleError, read_config
from .serve.load import OnnxBundlePredictor, load_bundle
from .serve.net import LogitsAndFeatures, Predictor, save_onnx, save_torch_export
from .serve.card import bundle_card, cross_text
from .serve.bundle import learner_trust, save_bundle
