"""The bodies of the kernels run as plain Python too, with the compiler off."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[2] / "support"


@pytest.mark.parametrize("file", ["uncompiled_kernels", "uncompiled_image_kernels"])
def test_kernels_run_uncompiled(file):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
        + [str(TESTS / f"{file}.py")],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        cwd=TESTS.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
