"""Helpers of many tests: run a tape, compare arrays, take differences.

Errors are relative to the size of what is compared, in the Euclidean norm.
"""

import subprocess
import sys

import numpy as np

from tests.support.node_backend import javascript_backend
from tests.support.source_tree import ROOT
from tinymaml.backends import get_backend

BACKENDS = ("numpy", "numba")
DTYPES = ("float32", "float64")
AGREE = {"float32": 1e-5, "float64": 1e-12}  # between two backends


def run_python(code):
    """Run code in a fresh interpreter, at the root of the clone: (stdout, stderr)."""
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout, run.stderr


def run_tape(tape, inputs, backend="numpy", dtype="float64", threads=1):
    """Run a tape once, on inputs cast to the dtype."""
    program = compile_tape(tape, backend, dtype, threads)
    return program({name: np.array(a, dtype) for name, a in inputs.items()})


def compile_tape(tape, backend="numpy", dtype="float64", threads=1):
    """A program. On the numba backend, memory that nothing has written yet is NaN."""
    if backend == "javascript":
        return javascript_backend().compile(tape, dtype)
    program = get_backend(backend, threads).compile(tape, dtype)
    if backend == "numba":
        program.workspaces[...] = np.nan
        for start, size, number in program.plan.constant_ranges():
            program.workspaces[:, start : start + size] = number
    return program


def relative_error(actual, expected, floor=0.0):
    """|actual - expected| / |expected|, or / floor where that is larger."""
    actual, expected = np.asarray(actual, float), np.asarray(expected, float)
    assert actual.shape == expected.shape
    error = np.linalg.norm(actual - expected)
    size = max(np.linalg.norm(expected), floor)
    return error / size if size else (0.0 if error == 0 else np.inf)


def assert_close(actual, expected, tolerance, what="result", floor=0.0):
    error = relative_error(actual, expected, floor)
    assert error <= tolerance, f"{what}: off by {error:.1e} of its size"


def assert_backends_agree(tape, inputs, dtype="float64", threads=1, backend="numba"):
    """Run a tape on a backend and on the reference; return the reference.

    Where terms cancel, rounding is relative to the terms and not to their small sum. So
    an error is compared with the largest number that occurs on the tape.
    """
    inputs = {name: np.array(array, dtype) for name, array in inputs.items()}
    expected = run_tape(tape, inputs, "numpy", dtype)
    actual = run_tape(tape, inputs, backend, dtype, threads)
    values = all_values(tape, inputs)
    floor = largest(values)
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype == dtype
        assert np.isfinite(array).all(), name
        assert_close(actual[name], array, AGREE[dtype], f"{name} on {backend}", floor)
    return expected


def all_finite(values):
    """Whether no value of a tape is infinite or NaN."""
    return all(np.isfinite(array).all() for array in values.values())


def largest(values):
    """The largest number on a tape. Beside an infinite one every error would be 0."""
    assert all_finite(values)
    return max(np.abs(array).max() for array in values.values())


def all_values(tape, inputs):
    """The values of all live nodes, by node, each with a leading task axis.

    NumPy's warnings are off, as in the numpy backend: some of its matrix products read
    numbers beside the matrices and warn of those. `largest` finds what is not finite.
    """
    arrays = {}
    for name, (index, _, per_task) in tape.inputs.items():
        arrays[index] = inputs[name] if per_task else inputs[name][None]
    with np.errstate(all="ignore"):
        for index in tape.live():
            if index not in arrays:
                primitive, arguments, attributes, _ = tape.nodes[index]
                reads = (arrays[i] for i in arguments)
                arrays[index] = primitive.evaluate(*reads, **dict(attributes))
    return arrays


def difference(function, point, direction, h=1e-4):
    """The derivative of a function of an array along a direction; its error is h^4."""
    near = function(point + h * direction) - function(point - h * direction)
    far = function(point + 2 * h * direction) - function(point - 2 * h * direction)
    return (8 * near - far) / (12 * h)


def complex_step(tape, inputs, name, direction):
    """The exact derivative of all outputs along one input, by an imaginary step.

    f(x + i h v) = f(x) + i h f'(x) v + O(h^2), and nothing is subtracted, so h may be
    so small that no error is left but at a kink itself. Every primitive can evaluate
    complex numbers, too.
    """
    h = 1e-30
    inputs = {key: np.array(array, complex) for key, array in inputs.items()}
    inputs[name] = inputs[name] + 1j * h * direction
    values = all_values(tape, inputs)
    return {k: values[o.node].imag / h for k, o in tape.outputs.items()}
