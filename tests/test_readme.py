"The code in README.md runs as it stands, with the sample for pictures."
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

root = Path(__file__).resolve().parent.parent
text = (root / 'README.md').read_text()
blocks = re.findall(r'```python\n(.*?)```', text, re.S)


def test_the_ten_lines_from_pictures_to_a_decision(tmp_path, sample_dir):
    (tmp_path / 'pictures').symlink_to(sample_dir)
    (tmp_path / 'new.jpg').symlink_to(next((sample_dir / 'test').rglob('*.jpg')))
    code = blocks[0]
    assert len([o for o in code.splitlines() if o.strip()]) <= 11
    out = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, timeout=300, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert out.returncode == 0, out.stderr[-2000:]
    assert re.search(r"\[Decision\(label=", out.stdout) and (tmp_path / 'my_bundle/model.onnx').is_file()


def test_every_file_that_is_linked_exists():
    links = [o for o in re.findall(r'\]\(([^)]+)\)', text) if not o.startswith('http')]
    assert len(links) > 5 and [o for o in links if not (root / o).exists()] == []


@pytest.mark.parametrize('command', sorted(set(re.findall(r'^(silkworm-\w+)', text, re.M))))
def test_every_command_that_is_named_is_installed(command):
    assert (Path(sys.executable).parent / command).is_file()
