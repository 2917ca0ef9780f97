"""What every machine checks before it plays a tape: names, shapes, dtypes, threads."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tinymaml.tape import Input, Tape

Array = np.ndarray[Any, Any]
DTYPES = (np.dtype("float32"), np.dtype("float64"))


def check_dtype(dtype: Any) -> np.dtype[Any]:
    """The dtype as NumPy's object, if a machine can compute in it."""
    try:
        checked = np.dtype(dtype)
    except TypeError:
        raise TypeError(f"dtype: expected float32 or float64, got {dtype!r}") from None
    if checked not in DTYPES:
        raise TypeError(f"dtype: expected float32 or float64, got {checked}")
    return checked


def check_threads(threads: int | None, default: int) -> int:
    """The number of threads: a whole number of at least 1, or the default for None."""
    if threads is None:
        return default
    if isinstance(threads, bool) or not isinstance(threads, int | np.integer):
        raise TypeError(f"threads: expected a whole number, got {threads!r}")
    if threads < 1:
        raise ValueError(f"threads: expected at least 1, got {threads}")
    return int(threads)


def check_inputs(tape: Tape, dtype: np.dtype[Any], inputs: Mapping[str, Array]) -> int:
    """The number of tasks, if every input has its name, shape and dtype."""
    return check_some(tape.inputs, dtype, inputs) or 1


def check_held(
    tape: Tape, dtype: np.dtype[Any], held: Mapping[str, Array]
) -> tuple[dict[str, Input], int | None]:
    """What a program that holds these inputs asks for, and their number of tasks."""
    places = tape.inputs.items()
    tasks = check_some({name: i for name, i in places if name in held}, dtype, held)
    return {name: i for name, i in places if name not in held}, tasks


def check_some(
    places: Mapping[str, Input],
    dtype: np.dtype[Any],
    inputs: Mapping[str, Array],
    tasks: int | None = None,
) -> int | None:
    """The number of tasks, None if nothing tells it, if all inputs fit their places.

    Raises ValueError or TypeError naming the input, what was expected and what came.
    Called for every step of training, so the usual case is decided in a few lookups.
    """
    if inputs.keys() != places.keys():
        raise ValueError(f"inputs: expected {[*places]}, got {[*inputs]}")
    for name, (_, shape, per_task) in places.items():
        array = inputs[name]
        if not isinstance(array, np.ndarray) or array.dtype != dtype:
            came = getattr(array, "dtype", type(array).__name__)
            raise TypeError(f"{name}: expected an array of {dtype}, got {came}")
        if per_task and array.ndim and tasks is None:
            tasks = len(array)
        expected = (tasks, *shape) if per_task else shape
        if array.shape != expected:
            wanted = f"{expected} (first axis: tasks)" if per_task else f"{expected}"
            raise ValueError(f"{name}: expected shape {wanted}, got {array.shape}")
    if tasks == 0:
        raise ValueError("tasks: expected at least one task, got none")
    return tasks
