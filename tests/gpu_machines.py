"""The GPU machine for tests: on a stand-in for CuPy, and on a GPU if there is one."""

import pytest
import serial_cupy

from tinymaml.machines import get_machine
from tinymaml.machines.cupy_machine import why_not

GPU_MACHINES = ("stand-in", "cupy")
AGREE = {"float32": 1e-4, "float64": 1e-10}  # with the numpy machine


def gpu_machine(name, **options):
    """The machine of that name; the test is skipped, with the reason, if there is none.

    `options` are those of the stand-in.
    """
    missing = serial_cupy.WHY_NOT if name == "stand-in" else why_not()
    if missing:
        pytest.skip(f"machine {name!r}: {missing}")
    if name == "stand-in":
        return serial_cupy.SerialMachine(**options)
    return get_machine(name)
