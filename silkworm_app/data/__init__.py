"From a folder of pictures to batches."
from importlib import import_module

_home = {n: 'loaders' for n in (
    'CLASS_INFO canonical_name draw_larva draw_sample picture_grid list_pictures check_pictures Splits find_splits DataError '
    'AUGMENTATIONS FAST_AUGMENTATIONS aug_pipeline Item OpenPicture LabelOf Fit AlbumentationsTransform TimmTransform TimmErasing '
    'EpochDL PictureDataLoaders BatchAugment FastDL load_pixels image_dls test_loader cifar_splits cifar_dls '
    '_carve _group _leak _leak_warnings _cifar_files _litter _split_names').split()}
__all__ = [n for n in _home if n[0] != '_']


def __getattr__(name):
    "The names that stood in `silkworm_app.data` when it was one module; each is imported when it is asked for."
    if name not in _home: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'.{_home[name]}', __name__), name)
