"Moved to data.audit and data.prepare."
from .data.audit import audit, audit_html, audit_text, headlines
from .data.folder import unpack
from .data.prepare import cifar, main, prepare, read_mapping
