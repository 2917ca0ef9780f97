"""Machines play tapes.

A machine has one method, `prepare(tape, dtype)`, which returns a program. Called, it
takes the tape's inputs by name (shared ones as they are, per-task ones with a leading
task axis) and returns its outputs by name. All machines give the same numbers.

Where most inputs stay the same from call to call, `program.hold(inputs)` is given these
once and returns a callable of the rest. They must not be changed while it is in use.
Any number of such callables of one program may be in use at the same time.
"""

import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np

from tinymaml.tape import Tape

Arrays = Mapping[str, np.ndarray[Any, Any]]
Play = Callable[[Arrays], dict[str, np.ndarray[Any, Any]]]
MACHINES = ("auto", "cupy", "cupy-tf32", "numba", "numpy")


class Program(Protocol):
    """A tape, ready to be played."""

    def __call__(self, inputs: Arrays, /) -> dict[str, np.ndarray[Any, Any]]:
        """Play it for all tasks."""

    def hold(self, held: Arrays, /) -> Play:
        """The same for the rest of the inputs, these being given now."""


class Machine(Protocol):
    """What an algorithm may know of a machine."""

    name: str
    threads: int

    def prepare(self, tape: Tape, dtype: str) -> Program:
        """A program that plays the tape."""


_told: set[str] = set()


def get_machine(name: "str | Machine" = "auto", threads: int | None = None) -> Machine:
    """The machine of that name, or the machine itself.

    "numpy" is the reference, "numba" the fast one on processors, "cupy" that of NVIDIA
    GPUs, and "cupy-tf32" the same with products that round their factors to ten bits.
    "auto" is "cupy" where a GPU can be used, else "numba" where it is installed, else
    "numpy"; what is missing is told once, on stderr. `threads` defaults to the number
    of cores.

    Raises ValueError for an unknown name or fewer than one thread, ImportError with one
    line that says what is missing.
    """
    if not isinstance(name, str) and hasattr(name, "prepare"):
        return name
    if name not in MACHINES:
        raise ValueError(
            f"machine: expected one of {', '.join(MACHINES)}, got {name!r}"
        )
    if name == "auto":
        name = _automatic()
    if name == "numpy":
        from tinymaml.machines.numpy_machine import NumpyMachine

        return NumpyMachine(threads)
    if name in ("cupy", "cupy-tf32"):
        from tinymaml.machines.cupy_machine import CupyMachine

        return CupyMachine(threads, tf32=name == "cupy-tf32")
    try:
        from tinymaml.machines.numba_machine import NumbaMachine
    except ImportError as error:
        raise ImportError(f"machine 'numba' needs Numba: {error}") from error
    return NumbaMachine(threads)


def _automatic() -> str:
    """The name of the fastest machine that can be used."""
    from tinymaml.machines import cupy_machine

    if cupy_machine.seems_wanted():
        why = cupy_machine.why_not()
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
