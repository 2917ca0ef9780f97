"""The table of primitives under test: one case for each row of the package's table.

A case says what the row computes in plain NumPy, how it is called at odd shapes (always
tried) and at drawn ones (Hypothesis), and from where its arguments are drawn: how far
from kinks and poles.
"""

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from scipy import special

Call = tuple[tuple[tuple[int, ...], ...], dict[str, Any]]  # shapes and attributes


class Case(NamedTuple):
    """How one primitive is called, what it computes, and where."""

    reference: Callable[..., Any]
    odd: list[Call]
    drawn: st.SearchStrategy[Call]
    positive: bool = False
    nearest: float = 0.1  # to zero, where the kinks and the poles are


def alike(number, **attributes):
    """Calls with `number` arguments of one shape; attributes are strategies."""
    shapes = [(1,), (7,), (41,), (2, 3, 5), (1, 1), (13, 1), (1, 8), ()]
    drawn = st.tuples(
        st.lists(st.integers(1, 5), max_size=3).map(lambda shape: (tuple(shape),) * number),
        st.fixed_dictionaries(attributes),
    )
    first = {name: strategy.examples[0] for name, strategy in attributes.items()}
    return [((shape,) * number, first) for shape in shapes], drawn


class Drawn(NamedTuple):
    examples: list[Any]


NUMBERS = st.floats(-3, 3, allow_subnormal=False)


# --- calls of each kind of row --------------------------------------------------------


def elementwise(number):
    shapes = [(1,), (7,), (41,), (2, 3, 5), (1, 1), (13, 1), (1, 8), ()]
    drawn = st.lists(st.integers(1, 5), max_size=3).map(tuple)
    return (
        [((shape,) * number, {}) for shape in shapes],
        drawn.map(lambda shape: ((shape,) * number, {})),
    )
