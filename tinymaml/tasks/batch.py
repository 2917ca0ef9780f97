"""A batch of tasks: what every loss of meta-learning is about.

With this file algorithms and samplers agree on one shape: four arrays with a leading
task axis.

Left out: where tasks come from, which is in `tinymaml.tasks`.
"""

from typing import Any, NamedTuple

import numpy as np

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
