"Runs kernel_checks.py in a process of its own: Triton reads TRITON_INTERPRET when it is first imported."
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

checks = Path(__file__).with_name('kernel_checks.py')


@pytest.mark.skipif(not find_spec('triton'), reason='needs the package triton, which comes with the CUDA builds of PyTorch')
def test_kernel_is_exact():
    env = dict(os.environ) if torch.cuda.is_available() else {**os.environ, 'TRITON_INTERPRET': '1'}
    out = subprocess.run([sys.executable, '-m', 'pytest', str(checks)], capture_output=True, text=True, env=env, cwd=checks.parent.parent)
    assert out.returncode == 0, out.stdout[-4000:] + out.stderr[-2000:]
    assert 'passed' in out.stdout and 'skipped' not in out.stdout, out.stdout[-2000:]


@pytest.mark.skipif(not find_spec('triton'), reason='needs the package triton, which comes with the CUDA builds of PyTorch')
def test_the_notebook_of_the_kernel_runs():
    "In a process of its own, too; elsewhere its cells are left out (their flag is kernels)."
    out = subprocess.run([Path(sys.executable).with_name('nbdev-test'), 'nbs/lab/00_kernels.ipynb', '--flags', 'kernels', '--n-workers', '0'],
                         capture_output=True, text=True, cwd=checks.parent.parent)
    assert out.returncode == 0, out.stdout[-4000:] + out.stderr[-2000:]
