"""The GPU backend for tests: on a stand-in for CuPy, and on a GPU if there is one."""

import pytest

from tests.support import serial_cupy
from tinymaml.backends import get_backend
from tinymaml.backends.cuda.backend import gpu_obstacle

GPU_BACKENDS = ("stand-in", "cupy")
AGREE = {"float32": 1e-4, "float64": 1e-10}  # with the numpy backend


def gpu_backend(name, **options):
    """The backend of that name, or skip the test with the reason why there is none.

    `options` are those of the stand-in.
    """
    missing = serial_cupy.WHY_NOT if name == "stand-in" else gpu_obstacle()
    if missing:
        pytest.skip(f"backend {name!r}: {missing}")
    if name == "stand-in":
        return serial_cupy.SerialBackend(**options)
    return get_backend(name)
