"""Derivatives checked against finite differences, for your own loss.

    gradcheck(loss, theta, x, y)        # raises GradientError if anything disagrees

Order 1 compares the gradient along a random direction with differences of the loss.
Order 2 compares the Hessian-vector product with differences of the *exact gradient*:
second differences of the loss itself cannot be trusted beyond 1e-8.

The difference quotient is the four-point one, (8 (f(+h) - f(-h)) - (f(+2h) - f(-2h))) /
12 h, whose error falls with h^4. A kink (relu at 0) within 2h of theta breaks it: the
derivative there is not wrong, there is none.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tinymaml.autodiff.derivatives import grad, hvp
from tinymaml.autodiff.tape import Tape, Value
from tinymaml.backends import Backend, get_backend
from tinymaml.checks import check_dtype

Array = np.ndarray[Any, Any]

# dtype: (step h along a unit direction, largest error allowed)
STEPS = {"float64": (1e-4, 1e-8), "float32": (3e-2, 2e-3)}


class GradientError(AssertionError):
    """A derivative that differs from its finite difference."""


class Errors(NamedTuple):
    """Relative errors: of the gradient, and of H v (nan where not asked for)."""

    order1: float
    order2: float


def gradcheck(
    loss: Callable[..., Value],
    theta: Array,
    *arguments: Array,
    order: int = 2,
    seed: int = 0,
    backend: str | Backend = "numpy",
    tolerance: float | None = None,
) -> Errors:
    """Check the gradient and Hessian-vector product of loss(theta, *arguments).

    loss: written on Values, returns one number. theta: an array of any shape, of the
    dtype to check in; arguments: arrays that are held fixed. Errors are relative to the
    size of what is checked: |g v - difference| / |g| and |H v - difference| / |H v|,
    for a random unit vector v.

    Raises GradientError when an error exceeds the tolerance of the dtype, 1e-8 in
    float64.

    >>> theta = np.array([1.0, 2.0])
    >>> errors = gradcheck(lambda theta: (theta * theta * theta).sum(), theta)
    >>> errors.order1 < 1e-10 and errors.order2 < 1e-10
    True
    """
    if order not in (1, 2):
        raise ValueError(f"order: expected 1 or 2, got {order!r}")
    h, default = STEPS[check_dtype(theta.dtype).name]
    tolerance = default if tolerance is None else tolerance
    tape = Tape()
    point = tape.input("theta", theta.shape)
    v = tape.input("v", theta.shape)
    fixed = [tape.input(f"x{i}", a.shape) for i, a in enumerate(arguments)]
    value = loss(point, *fixed)
    tape.output("loss", value)
    tape.output("gradient", grad(value, point))
    if order == 2:
        tape.output("hvp", hvp(value, point, v))
    program = get_backend(backend).compile(tape, theta.dtype)
    direction = np.random.default_rng(seed).standard_normal(theta.shape)
    direction = (direction / np.linalg.norm(direction)).astype(theta.dtype)

    def at(step: float) -> dict[str, Array]:
        moved = theta + theta.dtype.type(step) * direction
        inputs = {"theta": moved, "v": direction}
        inputs |= {f"x{i}": a for i, a in enumerate(arguments)}
        return {name: array.astype(float) for name, array in program(inputs).items()}

    here = at(0.0)
    near, far = (at(h), at(-h)), (at(2 * h), at(-2 * h))

    def difference(name: str) -> Array:
        inner, outer = (pair[0][name] - pair[1][name] for pair in (near, far))
        return (8 * inner - outer) / (12 * h)

    slope = np.sum(here["gradient"] * direction)
    first = _relative(slope - difference("loss").ravel(), here["gradient"])
    second = float("nan")
    if order == 2:
        second = _relative(here["hvp"] - difference("gradient"), here["hvp"])
    checked = [("gradient", first), ("Hessian-vector product", second)][:order]
    for name, error in checked:
        if not error <= tolerance:  # NaN is no pass
            raise GradientError(
                f"the {name} differs from its finite difference by {error:.1e} of its "
                f"size; {tolerance:.0e} is allowed in {theta.dtype.name}"
            )
    return Errors(first, second)


def _relative(error: Array, size: Array) -> float:
    """|error| / |size|; 0 if both vanish."""
    top, bottom = float(np.linalg.norm(error)), float(np.linalg.norm(size))
    return top / bottom if bottom else (float("inf") if top else 0.0)
