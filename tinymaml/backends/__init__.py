"""Backends run tapes.

A backend has one method, `compile(tape, dtype)`, which returns a program. Called, it
takes the tape's inputs by name (shared ones as they are, per-task ones with a leading
task axis) and returns its outputs by name. All backends give the same numbers.

Where most inputs stay the same from call to call, `program.bind(inputs)` is given these
once and returns a callable of the rest. They must not be changed while it is in use.
Any number of such callables of one program may be in use at the same time.
"""

import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np

from tinymaml.autodiff.tape import Input, Tape
from tinymaml.checks import check_choice, check_inputs

Arrays = Mapping[str, np.ndarray[Any, Any]]
Run = Callable[[Arrays], dict[str, np.ndarray[Any, Any]]]
BACKENDS = ("auto", "cupy", "cupy-tf32", "numba", "numpy")


class Program(Protocol):
    """A tape, ready to be run."""

    def __call__(self, inputs: Arrays, /) -> dict[str, np.ndarray[Any, Any]]:
        """Run it for all tasks."""

    def bind(self, bound: Arrays, /) -> Run:
        """The same for the rest of the inputs, these being given now."""


class Backend(Protocol):
    """What an algorithm may know of a backend."""

    name: str
    threads: int

    def compile(self, tape: Tape, dtype: str) -> Program:
        """A program that runs the tape."""


_told: set[str] = set()


def get_backend(name: "str | Backend" = "auto", threads: int | None = None) -> Backend:
    """The backend of that name, or the backend itself.

    "numpy" is the reference, "numba" the fast one on processors, "cupy" that of NVIDIA
    GPUs, and "cupy-tf32" the same with products that round their factors to ten bits.
    "auto" is "cupy" where a GPU can be used, else "numba" where it is installed, else
    "numpy"; what is missing is told once, on stderr. `threads` defaults to the number
    of cores.

    Raises ValueError for an unknown name or fewer than one thread, ImportError with one
    line that says what is missing.
    """
    if not isinstance(name, str) and hasattr(name, "compile"):
        return name
    check_choice("backend", name, BACKENDS)
    if name == "auto":
        name = _automatic()
    if name == "numpy":
        from tinymaml.backends.numpy import NumpyBackend

        return NumpyBackend(threads)
    if name in ("cupy", "cupy-tf32"):
        from tinymaml.backends.cuda.backend import CupyBackend

        return CupyBackend(threads, tf32=name == "cupy-tf32")
    try:
        from tinymaml.backends.numba.backend import NumbaBackend
    except ImportError as error:
        raise ImportError(f"backend 'numba' needs Numba: {error}") from error
    return NumbaBackend(threads)


def _automatic() -> str:
    """The name of the fastest backend that can be used."""
    from tinymaml.backends.cuda import backend as cuda_backend

    if cuda_backend.seems_wanted():
        why = cuda_backend.why_not()
        if not why:
            return "cupy"
        _tell(f"no GPU is used: {why}")
    if find_spec("numba") is not None:
        return "numba"
    _tell("Numba is missing, so NumPy computes")
    return "numpy"


def _tell(what: str) -> None:
    """One line on stderr, once."""
    if what not in _told:
        print(f"tinymaml: {what}.", file=sys.stderr)
    _told.add(what)


class _CompiledTape(Protocol):
    tape: Tape
    dtype: np.dtype[Any]

    def __call__(self, inputs: Arrays, /) -> dict[str, np.ndarray[Any, Any]]: ...


def bind_by_merging(program: _CompiledTape, bound: Arrays) -> Run:
    """`bind` for a program that wants all of its inputs in every call."""
    unbound, tasks = check_bound(program.tape, program.dtype, bound)

    def run(inputs: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        check_inputs(unbound, program.dtype, inputs, tasks)
        return program({**bound, **inputs})

    return run


def check_bound(
    tape: Tape, dtype: np.dtype[Any], bound: Arrays
) -> tuple[dict[str, Input], int | None]:
    """The inputs that are left, and the number of tasks of those that are bound."""
    given = {name: i for name, i in tape.inputs.items() if name in bound}
    tasks = check_inputs(given, dtype, bound)
    return {n: i for n, i in tape.inputs.items() if n not in bound}, tasks
