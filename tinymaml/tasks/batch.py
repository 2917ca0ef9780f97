"""A batch of tasks: the four arrays that samplers return and algorithms take.

Every array has a leading task axis. A sampler is any function of a random generator
that returns such a batch, so tasks of your own need nothing from this file but the
order of the arrays:

    def sample(rng):
        return x_support, y_support, x_query, y_query       # each (T, N, ...)

Left out: where tasks come from, which is in the other files of this folder.
"""

from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
BLOCKS = 32


class Tasks(NamedTuple):
    """A batch of T tasks: support and query examples, each with a leading task axis.

    >>> x, y = np.zeros((4, 10, 1)), np.zeros((4, 10, 1))
    >>> Tasks(x, y, x, y)
    Tasks
      x_support  (4, 10, 1)  float64
      y_support  (4, 10, 1)  float64
      x_query    (4, 10, 1)  float64
      y_query    (4, 10, 1)  float64
    """

    x_support: Array
    y_support: Array
    x_query: Array
    y_query: Array

    def __repr__(self) -> str:
        return array_table("Tasks", self._asdict())


def as_tasks(tasks: Any) -> Tasks:
    """The four arrays of a tuple or list under their names."""
    came = len(tasks) if isinstance(tasks, tuple | list) else type(tasks).__name__
    if came != 4:
        raise ValueError(f"tasks: expected (x, y) for support and query, got {came}")
    return Tasks(*tasks)


def block_bounds(tasks: int) -> list[int]:
    """Where the blocks of a batch begin, and where the last one ends.

    Sums over tasks are taken over at most 32 blocks of neighbours, and then over the
    blocks. The blocks depend on the number of tasks alone, and so no bit of a sum
    depends on how many threads or processes compute it.

    >>> block_bounds(3), len(block_bounds(1000))
    ([0, 1, 2, 3], 33)
    """
    blocks = min(tasks, BLOCKS)
    return [block * tasks // blocks for block in range(blocks + 1)]


def array_table(title: str, arrays: dict[str, Any]) -> str:
    """The title, and one line for each array: its name, shape and dtype.

    Whatever has no shape and dtype, such as a list, is shown by the name of its type.
    """
    shapes = [str(getattr(array, "shape", "")) for array in arrays.values()]
    kinds = [getattr(a, "dtype", type(a).__name__) for a in arrays.values()]
    name_width, shape_width = max(map(len, arrays)), max(map(len, shapes))
    rows = zip(arrays, shapes, kinds, strict=True)
    lines = [f"  {n:<{name_width}}  {s:<{shape_width}}  {k}" for n, s, k in rows]
    return "\n".join([title, *lines])
