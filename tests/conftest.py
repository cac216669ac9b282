"Fixtures shared by the tests: the built-in sample, and real pictures where SILKWORM_DATA names a folder that holds them."
import os
import zipfile
from pathlib import Path

os.environ.setdefault('NO_ALBUMENTATIONS_UPDATE', '1')
os.environ.setdefault('GRADIO_ANALYTICS_ENABLED', 'False')
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('MPLBACKEND', 'Agg')
os.environ.setdefault('SILKWORM_CACHE', 'off')                      # a test measures what the code does, not what was found before

import pytest

from silkworm_app.data.folder import unpack


def real(name):
    "Path of one archive of real pictures, or skip with the reason."
    folder = os.environ.get('SILKWORM_DATA')
    if not folder: pytest.skip(f'needs real pictures: set SILKWORM_DATA to the folder that holds {name}')
    path = Path(folder) / name
    if not path.is_file(): pytest.skip(f'needs real pictures: {path} is missing')
    return path


def untar(name, tmp_path_factory):
    dest = tmp_path_factory.mktemp(name)
    unpack(real(f'{name}.tar'), dest)
    return dest / name


@pytest.fixture(scope='session')
def data_dir():
    return real('README.md').parent


@pytest.fixture(scope='session')
def silkworm_dir(tmp_path_factory): return untar('silkworm_raw', tmp_path_factory)


@pytest.fixture(scope='session')
def silkworm_binary_dir(tmp_path_factory): return untar('silkworm_binary_raw', tmp_path_factory)


@pytest.fixture(scope='session')
def hymenoptera_dir(tmp_path_factory): return untar('hymenoptera', tmp_path_factory)


@pytest.fixture(scope='session')
def cifar10_dir(tmp_path_factory):
    "A part of CIFAR-10 as an image folder: of each class the first 100 training and 50 test pictures."
    dest = tmp_path_factory.mktemp('cifar10')
    seen = {}
    with zipfile.ZipFile(real('cifar10.zip')) as z:
        for name in sorted(z.namelist()):
            if name.endswith('/'): continue
            split, label = Path(name).parts[-3:-1]
            seen[split, label] = seen.get((split, label), 0) + 1
            if seen[split, label] <= (100 if split == 'train' else 50): z.extract(name, dest)
    return dest / 'cifar10'


@pytest.fixture(scope='session')
def sample_dir(tmp_path_factory):
    "The built-in synthetic sample, drawn small."
    from silkworm_app.data.sample import draw_sample
    return Path(draw_sample(tmp_path_factory.mktemp('sample') / 'synthetic_silkworm_sample', n_per_class=24, size=64, seed=0))


LONG = [f'test_{name}' for name in 'train web_browser experiment distributed patch copies fuse_trained folder bundle survival web start recipe readme docs'.split()]


def pytest_collection_modifyitems(items):
    "The files that take longest first, so that at the end no process waits for another (with --no-loadscope-reorder)."
    items.sort(key=lambda o: LONG.index(o.path.stem) if o.path.stem in LONG else len(LONG))
