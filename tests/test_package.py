"The package says the same about itself everywhere, and importing it is cheap."
import configparser
import errno
import importlib
import re
import shutil
import subprocess
import sys
import tarfile
import warnings
import zipfile
from pathlib import Path
from unittest.mock import Mock

import pytest

import silkworm_app

root = Path(__file__).resolve().parent.parent
cfg = configparser.ConfigParser(delimiters=['='])
cfg.read(root / 'settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']
scripts = dict(o.split('=') for o in cfg['console_scripts'].split())


def test_version_is_the_one_of_settings_ini():
    assert silkworm_app.__version__ == cfg['version']


def test_pyproject_repeats_nothing_of_settings_ini():
    text = (root / 'pyproject.toml').read_text()
    assert {o.strip() for o in text.splitlines() if o.startswith('[')} == {'[build-system]', '[tool.nbdev]'}


@pytest.mark.parametrize('name', scripts)
def test_console_script_points_at_a_function(name):
    module, func = scripts[name].split(':')
    assert callable(getattr(importlib.import_module(module), func))


@pytest.mark.parametrize('name', scripts)
def test_console_script_explains_itself(name):
    exe = Path(sys.executable).parent / name
    out = subprocess.run([exe, '--help'], capture_output=True, text=True, timeout=120)
    assert out.returncode == 0 and f'usage: {name} ' in out.stdout and not out.stderr, out.stderr[-500:]  # nor what packages say of themselves


def test_importing_the_package_loads_no_framework():
    code = "import sys, silkworm_app.data.cli; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == 'False'


def test_the_wheel_holds_every_file_of_the_package(tmp_path):
    "Texts, templates, styles and scripts of the page, names of diseases: all that is read at run time lies beside the modules."
    source = tmp_path / 'source'
    source.mkdir()
    shutil.copytree(root / 'silkworm_app', source / 'silkworm_app', ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('setup.py', 'settings.ini', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE'): shutil.copy(root / name, source)
    (source / 'tests').mkdir()
    (source / 'tests/test_lslu.py').touch()
    build = f'import setuptools.build_meta as b; b.build_sdist({str(tmp_path)!r}); b.build_wheel({str(tmp_path)!r})'
    done = subprocess.run([sys.executable, '-c', build], cwd=source, capture_output=True, text=True, timeout=120)
    wheel, = tmp_path.glob('*.whl')
    have = {n for n in zipfile.ZipFile(wheel).namelist() if n.startswith('silkworm_app/')}
    with tarfile.open(next(tmp_path.glob('*.tar.gz'))) as f: packed = {n.name.partition('/')[2] for n in f.getmembers() if n.isfile()}
    about, = [n for n in zipfile.ZipFile(wheel).namelist() if n.endswith('METADATA')]
    assert cfg['license'] in re.findall(r'^License.*: (.*)$', zipfile.ZipFile(wheel).read(about).decode(), re.M)
    want = {p.relative_to(source).as_posix() for p in (source / 'silkworm_app').rglob('*') if p.is_file()}
    assert have == want and {Path(n).suffix for n in want} >= {'.py', '.yaml', '.html', '.css', '.js'}, done.stderr[-500:]
    assert packed >= want | {'settings.ini', 'LICENSE', 'README.md'} and 'tests/test_lslu.py' not in packed  # of tests it would hold a part that cannot run
    assert 'would be ignored' not in done.stderr + done.stdout                                              # pages of it, shown by `make env`


def test_every_module_that_is_run_by_name_does_something():
    "`python -m` of a module without an entry ends well and does nothing."
    texts = [p.read_text(encoding='utf-8') for d in ('docs', 'experiments', 'nbs') for p in (root / d).rglob('*') if p.suffix in ('.md', '.sh', '.ipynb')]
    named = {m for t in (*texts, (root / 'README.md').read_text(encoding='utf-8')) for m in re.findall(r'-m (silkworm_app[\w.]*\w)', t)}
    assert 'silkworm_app.train' in named
    for m in named:
        file = root / m.replace('.', '/')
        source = (file / '__main__.py' if file.is_dir() else file.with_suffix('.py')).read_text(encoding='utf-8')
        assert "__name__ == '__main__'" in source, f'python -m {m} does nothing'


@pytest.mark.skipif(not shutil.which('make'), reason='make is not here')
@pytest.mark.parametrize('folds, parts', [(3, 3), (0, 5)])
def test_make_counts_the_folds_of_a_folder_with_spaces(tmp_path, folds, parts):
    pictures = tmp_path/'my pictures'
    pictures.mkdir()
    for i in range(folds): (pictures/f'fold_{i + 1}').mkdir()
    out = subprocess.run(['make', '-n', 'silkworm', f'DATA={pictures}'], cwd=root, capture_output=True, text=True).stdout
    assert f'--data_path "{pictures}" --output_dir "runs/silkworm" --cross_validate {parts}' in out, out


def test_a_file_system_without_locks_stops_nobody(tmp_path, monkeypatch):
    "Each photograph that a keeper confirmed was lost there; who is kept out still is"
    fcntl = pytest.importorskip('fcntl')
    from silkworm_app.files import whole_folder
    from silkworm_app.serve.page.collect import Store
    flock = Mock(side_effect=OSError(errno.ENOLCK, 'No locks available'))
    monkeypatch.setattr(fcntl, 'flock', flock)
    with Store(tmp_path).locked(), whole_folder(tmp_path / 'made'): pass
    assert (tmp_path / 'made').is_dir()
    flock.side_effect = BlockingIOError()
    with pytest.raises(OSError, match='another run is writing it'), whole_folder(tmp_path / 'made'): pass


def test_modules_that_lock_folders_are_imported_on_windows(tmp_path):
    "There is no fcntl and no resource there: nobody is kept out of a folder, and all else works."
    code = ("import sys; sys.modules.update(fcntl=None, resource=None)\n"
            'import silkworm_app.lab.coverage, silkworm_app.lab.grid as grid, silkworm_app.serve.page.collect as collect\n'
            'from pathlib import Path\n'
            f'with collect.Store({str(tmp_path)!r}).locked(), grid._locked(Path({str(tmp_path)!r})): print("in")')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout == 'in\n', done.stderr


@pytest.mark.parametrize('files', [{'cpu.max': '50000 100000'}, {'cpu/cpu.cfs_quota_us': '50000', 'cpu/cpu.cfs_period_us': '100000'}])
def test_the_share_of_a_container_is_read_and_its_files_closed(tmp_path, files):
    from silkworm_app.data.progress import cores
    (tmp_path / 'cpu').mkdir()
    for name, text in files.items(): (tmp_path / name).write_text(text)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        assert cores(tmp_path) == 1 and not said
