"""Kernels: uncompiled with all their mutants, and the compiled product size by size."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from numba import njit

from tests.support.product_checks import check_products
from tests.support.running import DTYPES
from tinymaml.backends.numba.backend import call_kernel, kernel_address

SUPPORT = Path(__file__).resolve().parents[2] / "support"


def run_uncompiled(file):
    """Run a file of tests where Numba compiles nothing."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
        + [str(file)],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        cwd=SUPPORT.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_kernels_run_uncompiled():
    run_uncompiled(SUPPORT / "uncompiled_kernels.py")


@njit
def call(address, w, args):
    call_kernel(address, w.ctypes.data, args.ctypes.data)


@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_product_is_exact_and_writes_nothing_else(dtype):
    address = kernel_address("matmul", dtype)
    check_products(lambda w, args: call(address, w, args), dtype)
