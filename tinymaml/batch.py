"""A batch of tasks: what every loss of meta-learning is about.

With this file algorithms and samplers agree on one shape: four arrays with a leading
task axis.

Left out: where tasks come from, which is in `tinymaml.tasks`.
"""

from typing import Any, NamedTuple

import numpy as np

from tinymaml.machines.checks import DTYPES

Array = np.ndarray[Any, Any]


class Tasks(NamedTuple):
    """A batch of T tasks: support and query examples, each with a leading task axis."""

    x_support: Array
    y_support: Array
    x_query: Array
    y_query: Array


def as_tasks(tasks: Any) -> Tasks:
    """Four arrays in a tuple or list, by name."""
    came = len(tasks) if isinstance(tasks, tuple | list) else type(tasks).__name__
    if came != 4:
        raise ValueError(f"tasks: expected (x, y) for support and query, got {came}")
    return Tasks(*tasks)


def check_tasks(theta: Array, tasks: Tasks) -> int:
    """The number of tasks, if the arrays fit together."""
    if not isinstance(theta, np.ndarray) or theta.ndim != 1:
        came = getattr(theta, "shape", type(theta).__name__)
        raise ValueError(f"theta: expected a flat vector (P,), got {came}")
    if theta.dtype not in DTYPES:
        raise TypeError(f"theta: expected float32 or float64, got {theta.dtype}")
    for name, array in zip(Tasks._fields, tasks, strict=True):
        if not isinstance(array, np.ndarray) or array.dtype != theta.dtype:
            came = getattr(array, "dtype", type(array).__name__)
            raise TypeError(
                f"{name}: expected an array of theta's dtype, {theta.dtype}, got {came}"
            )
        if array.ndim < 2 or len(array) != len(tasks[0]) or array.size == 0:
            raise ValueError(
                f"{name}: expected shape (tasks, examples, ...) with at least one "
                f"example for each of {len(tasks[0])} tasks, got {array.shape}"
            )
    for kind, x, y in (("support", *tasks[:2]), ("query", *tasks[2:])):
        if x.shape[1] != y.shape[1]:
            raise ValueError(
                f"y_{kind}: expected {x.shape[1]} examples as in x_{kind}, "
                f"got {y.shape[1]}"
            )
    return len(tasks[0])
