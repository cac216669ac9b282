"The code in README.md runs as it stands, with the sample for pictures."
import json
import re
import sys
from pathlib import Path

import pytest

from silkworm_app.data.sample import draw_sample

root = Path(__file__).resolve().parent.parent
text = (root / 'README.md').read_text()
blocks = re.findall(r'```python\n(.*?)```', text, re.S)


def test_the_ten_lines_from_pictures_to_a_decision(tmp_path, monkeypatch, capsys):
    pictures = draw_sample(tmp_path / 'pictures', n_per_class=5, size=128)
    (tmp_path / 'new.jpg').symlink_to(next((pictures / 'test').rglob('*.jpg')))
    code = blocks[0]
    assert len([o for o in code.splitlines() if o.strip()]) <= 11
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert re.search(r"\[Decision\(label=", capsys.readouterr().out) and (tmp_path / 'my_bundle/model.onnx').is_file()


def test_every_file_that_is_linked_exists():
    links = [o for o in re.findall(r'\]\(([^)]+)\)', text) if not o.startswith('http')]
    assert len(links) > 5 and [o for o in links if not (root / o).exists()] == []


@pytest.mark.parametrize('command', sorted(set(re.findall(r'^(silkworm-\w+)', text, re.M))))
def test_every_command_that_is_named_is_installed(command):
    assert (Path(sys.executable).parent / command).is_file()


def named_in(path):
    "The text of a page, a test, or of a notebook's cells."
    text = path.read_text(encoding='utf-8')
    return '\n'.join(''.join(c['source']) for c in json.loads(text)['cells']) if path.suffix == '.ipynb' else text


pages = [*root.glob('*.md'), *root.glob('docs/**/*.md'), *root.glob('tests/*.py'), *root.glob('experiments/*.py'), *root.glob('nbs/**/*.ipynb'), root / 'nbs/README.md']
FORMATS = {'silkworm_app.bits', 'silkworm_app.bundle', 'silkworm_app.format', 'silkworm_app.onnx'}   # names in files, not modules


def is_there(name):
    "Whether a dotted name is a folder, a module, or a name in a module."
    place = root / 'silkworm_app'
    for part, after in zip((parts := name.split('.')[1:]), [*parts[1:], None]):
        if (place / f'{part}.py').is_file(): return after is None or re.search(rf'\b{after}\b', (place / f'{part}.py').read_text()) is not None
        if not (place / part).is_dir(): return re.search(rf'\b{part}\b', (place / '__init__.py').read_text()) is not None
        place = place / part
    return True


@pytest.mark.parametrize('page', pages, ids=lambda p: p.relative_to(root).as_posix())
def test_modules_and_files_that_a_page_names_exist(page):
    text = named_in(page)
    names = set(re.findall(r'silkworm_app(?:\.[A-Za-z_]\w*)+', text)) - FORMATS
    gone = [n for n in names if not is_there(n) and not n.endswith(('.py', '.yaml', '.egg'))]
    files = {f.rstrip('.-') for f in re.findall(r'(?<![\w/.])(?:nbs|tests|experiments|docs|silkworm_app)/[\w./-]+(?![\w./*-])', text)}
    assert gone + [f for f in sorted(files) if not (root / f).exists()] == []
