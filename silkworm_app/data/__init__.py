"From a folder of pictures to batches."
from importlib import import_module

_modules = dict(
    diseases='CLASS_INFO canonical_name silkworm_names silkworm_info of_silkworms',
    folder='DataError Scan unpack opened check_pictures',
    splits='Splits find_splits cut carve leaks leak_warnings find_groups read_manifest',
    augment='AUGMENTATIONS FAST_AUGMENTATIONS aug_pipeline AlbumentationsTransform TimmTransform TimmErasing BatchAugment',
    pixels='load_pixels',
    loaders='Item OpenPicture LabelOf Fit EpochDL PictureDataLoaders FastDL image_dls test_loader',
    sample='draw_larva draw_sample picture_grid',
    cifar='cifar_splits cifar_dls')
_home = {n: (m, n) for m, ns in _modules.items() for n in ns.split()}
__all__ = list(_home)
_home |= {'_carve': ('splits', 'carve'), '_group': ('splits', 'find_groups'), '_leak': ('splits', 'leaks'), '_leak_warnings': ('splits', 'leak_warnings'),
          '_cifar_files': ('loaders', '_cifar_files')}


def __getattr__(name):
    "The names that stood in `silkworm_app.data` when it was one module; each is imported when it is asked for."
    if name not in _home: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    module, own = _home[name]
    return getattr(import_module(f'.{module}', __name__), own)

