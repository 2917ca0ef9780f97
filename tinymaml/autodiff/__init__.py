"""Automatic differentiation: record a loss once, then derive it as often as needed.

Read `tape`, then `primitives`, then `derivatives`. Importing this package imports the
tables of primitives, so that a tape finds them by their names.
"""

from tinymaml.autodiff import convolution, functions, primitives

__all__ = ["convolution", "functions", "primitives"]
