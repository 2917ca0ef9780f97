"""Kernels that Numba has cached are compiled again when their source changes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tinymaml
from tinymaml.backends.numba import kernels
from tinymaml.backends.numba.backend import _cache_files, _is_stale, kernel_address

CONVOLVE = """
import numpy as np
from tinymaml.autodiff.convolution import conv2d
from tinymaml.backends import get_backend
from tinymaml.autodiff.tape import Tape
tape = Tape()
x, w = tape.input("x", (1, 2, 2, 8)), tape.input("w", (1, 1, 8, 8))
tape.output("y", conv2d(x, w))
run = get_backend("numba", 1).compile(tape, "float64")
print(run({"x": np.ones((1, 2, 2, 8)), "w": np.ones((1, 1, 8, 8))})["y"].max())
"""


def test_the_cache_files_of_each_kernel_are_found():
    for name in ("add", "conv", "exp", "matmul", "softmax"):
        kernel_address(name, "float64")
        folder = str(Path(kernels.__file__).parent / "__pycache__")
        assert _cache_files(folder, name), name
        assert not _is_stale(folder, name)


@pytest.mark.slow
def test_a_kernel_is_compiled_again_when_a_function_that_it_calls_changes(tmp_path):
    package = Path(tinymaml.__file__).parent
    leave_out = shutil.ignore_patterns("__pycache__")
    shutil.copytree(package, tmp_path / "tinymaml", ignore=leave_out)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": ""}
    environment["NUMBA_OPT"] = "1"  # compiled faster; what is tested stays the same

    def convolve():
        run = subprocess.run(
            [sys.executable, "-c", CONVOLVE],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return float(run.stdout)

    assert convolve() == 8
    source = tmp_path / "tinymaml/backends/numba/tiles.py"
    text, old = source.read_text(), "builder.fadd(total, product"
    assert old in text
    source.write_text(text.replace(old, "builder.fsub(total, product"))
    assert convolve() == -8
