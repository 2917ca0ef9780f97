"""Backends run tapes: on NumPy, on Numba, or on an NVIDIA GPU.

    backend = get_backend("auto")
    program = backend.compile(tape, "float32")
    results = program({"theta": theta, "x": x})      # {name: array} in and out

A backend of your own is a subclass of `Backend` with a `name`, a number of `threads`
and the method `compile(tape, dtype)`, which returns a program. A program takes the
tape's inputs by name, shared ones as they are and those per task with a leading task
axis, and returns the tape's outputs by name. All backends give the same numbers, up to
rounding.

Where most inputs stay the same from call to call, as they do in the many products of a
Fisher matrix with a vector, `program.bind(inputs)` takes these once and returns a
callable of the others. The arrays that are bound must not be changed while it is in
use. One program may have several such callables at the same time.
"""

import sys
from collections.abc import Callable, Mapping
from functools import cache
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np

from tinymaml.autodiff.tape import Input, Tape
from tinymaml.checks import Array, check_choice, check_inputs
from tinymaml.training.optim import Optimiser
from tinymaml.training.steps import Steps

Arrays = Mapping[str, Array]
Run = Callable[[Arrays], dict[str, Array]]
BACKENDS = ("auto", "cupy", "cupy-tf32", "numba", "numpy")


class Program(Protocol):
    """A tape, compiled for one backend and one dtype."""

    def __call__(self, inputs: Arrays, /) -> dict[str, Array]:
        """Run the tape for all tasks.

        inputs: every input of the tape by name, in the program's dtype; of shape (T,
        ...) for an input per task. Returns every output by name: (T, ...) for "each",
        the sum over tasks for "sum". Raises TypeError or ValueError for a missing,
        unknown or unfit input.
        """

    def bind(self, bound: Arrays, /) -> Run:
        """Bind some inputs; the result is called with the others only.

        Raises TypeError or ValueError, as a call does.
        """


class Backend(Protocol):
    """What an algorithm may use of a backend."""

    name: str
    threads: int

    def __repr__(self) -> str:
        return f"{type(self).__name__}(threads={self.threads})"

    def compile(self, tape: Tape, dtype: str) -> Program:
        """A program that runs the tape in "float32" or "float64"."""

    def training_steps(self, optimiser: Optimiser, **settings: Any) -> Steps | None:
        """Outer steps on a device with memory of its own; None to take them here."""
        return None


def get_backend(name: "str | Backend" = "auto", threads: int | None = None) -> Backend:
    """The backend of a name; a backend is returned as it is.

    name: "numpy" is the reference, "numba" the fast one on processors, "cupy" runs on
    NVIDIA GPUs, and "cupy-tf32" is the same with products that round their factors to
    ten bits. "auto" takes "cupy" where a GPU can be used, else "numba" where it is
    installed, else "numpy"; once a line on stderr says so if Numba is missing, or if
    CuPy or a driver is there but no GPU can be used. Where NUMBA_DISABLE_JIT is set,
    "numpy" stands in for "numba" and a line on stderr says so. threads: how many tasks
    run at once on "numba"; by default one per core.

    Raises ValueError for an unknown name, TypeError or ValueError for threads that are
    not a whole number of at least 1, ImportError with one line where something is not
    installed.

    >>> get_backend("numpy").name
    'numpy'
    """
    if not isinstance(name, str | type) and hasattr(name, "compile"):
        return name
    if check_choice("backend", name, BACKENDS) == "auto":
        name = _automatic()
    if name in ("cupy", "cupy-tf32"):
        from tinymaml.backends.cuda.backend import CupyBackend

        return CupyBackend(threads, tf32=name == "cupy-tf32")
    if name == "numba":
        try:
            from tinymaml.backends.numba.backend import NumbaBackend
        except ImportError as error:
            raise ImportError(f"backend 'numba' needs Numba: {error}") from error
        from numba import config  # after backend.py, which changes it first

        if not config.DISABLE_JIT:
            return NumbaBackend(threads)
        _print_once("NUMBA_DISABLE_JIT is set, so NumPy computes")
    from tinymaml.backends.numpy import NumpyBackend

    return NumpyBackend(threads)


def _automatic() -> str:
    """The name of the fastest backend that can be used."""
    from tinymaml.backends.cuda import backend as cuda_backend

    if cuda_backend.has_gpu_software():
        obstacle = cuda_backend.gpu_obstacle()
        if not obstacle:
            return "cupy"
        _print_once(f"no GPU is used: {obstacle}")
    if find_spec("numba") is not None:
        return "numba"
    _print_once("Numba is missing, so NumPy computes")
    return "numpy"


@cache
def _print_once(notice: str) -> None:
    """Print a notice on stderr; a second call with the same one does nothing."""
    print(f"tinymaml: {notice}.", file=sys.stderr)


# --- binding inputs -------------------------------------------------------------------


def bind_by_merging(program: Any, bound: Arrays) -> Run:
    """The method `bind` of a program that needs all of its inputs in every call.

    The bound inputs are merged with the others in each call, so nothing is saved but
    the caller's trouble. What does not fit is refused at once: the bound inputs here,
    the others in the call, with the number of tasks that the bound ones have.
    """
    bound = dict(bound)
    unbound, tasks = check_bound(program.tape, program.dtype, bound)

    def run(inputs: Arrays) -> dict[str, Array]:
        check_inputs(unbound, program.dtype, inputs, tasks)
        return program({**bound, **inputs})

    return run


def check_bound(
    tape: Tape, dtype: np.dtype[Any], bound: Arrays
) -> tuple[dict[str, Input], int | None]:
    """Check the inputs that are bound; return what calls must bring.

    Returns (the other inputs of the tape by name, the number of tasks T that the bound
    ones have, or None if none of them is per task: then each call may have its own T).
    Raises TypeError or ValueError for an unknown or unfit array.
    """
    unbound = dict(tape.inputs)
    placeholders = {name: unbound.pop(name) for name in tape.inputs if name in bound}
    return unbound, check_inputs(placeholders, dtype, bound)
