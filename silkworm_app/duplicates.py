"Moved to data.copies, data.near, data.same and data.progress."
from .data.copies import Groups, Union as _Union, copy_groups, group_pictures, hash_groups
from .data.near import hashes as _hashes, same_thumbs, thumbnail as _thumbnail
from .data.progress import Progress as _Progress, each as _each, n_threads as _threads
from .data.look import Look, look
from .data.same import Overlay, Sketch, overlay, same_photo, sketch
