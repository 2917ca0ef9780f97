"""Derivatives checked against finite differences, for your own loss.

    gradcheck(loss, theta, x, y)        # raises GradientError if anything disagrees
    python -m tinymaml check mine.py    # the same for the loss in a file of yours

Order 1 compares the gradient along a random direction v with differences of the loss.
Order 2 compares the Hessian-vector product H v with differences of the *exact
gradient*, which reach 1e-10; second differences of the loss are no better than 1e-8,
which would hide small mistakes.

The difference quotient is the one of four points,

    f'(theta) v = (8 (f(theta + h v) - f(theta - h v))
                   - (f(theta + 2 h v) - f(theta - 2 h v))) / (12 h)

whose error falls with h^4. A tolerance of 1e-8 means that a derivative may be wrong by
1e-8 of its own size, and by ten times what rounding can do to the comparison, which is
more than that only where terms cancel: at a minimum, for a confident classifier, or
with a large constant in the loss. Rounding moves each value a on the tape by about
eps |a|, and so the loss by S eps, where S is the sum of |a da| over all values a with
their cotangents da. (For a = logsumexp(...) it is eps (1 + |a|), since a sum of about 1
is rounded before its logarithm is taken.) The difference quotient moves by S eps / h.

The quotient is meaningless where a kink (relu at 0) lies within 2 h of theta, because
there is no derivative to compare with. It is too inexact where the loss changes within
a few hundred h, as log(x) does for x below 0.03 (h is 1e-4 in float64). Choose another
theta then.

Left out: derivatives of order 3, and any check of the loss itself.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tinymaml.autodiff.derivatives import cotangents, grad, hvp
from tinymaml.autodiff.tape import Tape, Value, check_values
from tinymaml.backends import Backend, get_backend
from tinymaml.checks import (
    check_arrays,
    check_choice,
    check_dtype,
    check_function,
    check_that,
    real_number,
    whole_number,
)

Array = np.ndarray[Any, Any]

# For each dtype, the step h along a unit vector and the largest error that is accepted.
# A smaller h loses digits in the subtraction, a larger one leaves the h^4 term.
STEPS = {"float64": (1e-4, 1e-8), "float32": (3e-2, 2e-3)}
MARGIN = 10  # rounding counts so many times


class GradientError(AssertionError):
    """A derivative that differs from its finite difference."""


class Errors(NamedTuple):
    """The relative errors of the gradient and of H v; the second is NaN for order 1."""

    order1: float
    order2: float = float("nan")


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

    loss: a function of Values that returns one number. theta: an array of any shape;
    its dtype, float32 or float64, is that of the check. arguments: further arrays of
    this dtype, which stay fixed. Errors are relative to the size of the derivative,
    |g v - difference| / |g| and |H v - difference| / |H v|, for a random unit vector v
    drawn from the seed. Where terms cancel, so that the derivative is small beside what
    it is the sum of, they are relative to the rounding of these terms: see above.

    Raises GradientError when an error exceeds the tolerance, by default 1e-8 in float64
    and 2e-3 in float32; ValueError for another order, TypeError for another dtype.

    >>> theta = np.array([1.0, 2.0])
    >>> errors = gradcheck(lambda theta: (theta * theta * theta).sum(), theta)
    >>> errors.order1 < 1e-10 and errors.order2 < 1e-10
    True
    """
    check_choice("order", order, (1, 2))
    check_function("loss", loss)
    fixed = {f"x{i}": array for i, array in enumerate(arguments)}
    check_arrays(theta=theta, **fixed)
    h, default = STEPS[check_dtype(theta.dtype).name]
    tolerance = default if tolerance is None else real_number("tolerance", tolerance)
    check_that(tolerance > 0, "tolerance", "more than 0", tolerance)
    tape = Tape()
    point = tape.input("theta", theta.shape)
    direction = tape.input("v", theta.shape)
    data = [tape.input(name, array.shape) for name, array in fixed.items()]
    check_values(loss=(value := loss(point, *data)))
    tape.output("loss", value)
    tape.output("gradient", gradient := grad(value, point))
    if order == 2:
        tape.output("hvp", hvp(value, point, direction))
    program = get_backend(backend).compile(tape, theta.dtype)
    rng = np.random.default_rng(whole_number("seed", seed, least=0))
    v = np.asarray(rng.standard_normal(theta.shape))
    v = np.asarray(v / np.linalg.norm(v), theta.dtype)

    def moved(step: float) -> Array:
        """theta + step v; an array also where theta is one number."""
        return np.asarray(theta + theta.dtype.type(step) * v)

    def outputs_at(step: float) -> dict[str, Array]:
        """Loss, gradient and H v at theta + step v, in float64."""
        outputs = program({"theta": moved(step), "v": v, **fixed})
        return {name: array.astype(float) for name, array in outputs.items()}

    exact = outputs_at(0.0)
    near, far = ((outputs_at(s), outputs_at(-s)) for s in (h, 2 * h))

    def difference(name: str) -> Array:
        """The derivative of an output along v, by the formula of four points."""
        inner, outer = (plus[name] - minus[name] for plus, minus in (near, far))
        return (8 * inner - outer) / (12 * h)

    eps = float(np.finfo(theta.dtype).eps)
    # At theta + h v, since at a minimum itself all cotangents are zero.
    inputs = {"theta": moved(h), "v": v, **fixed}
    terms = _terms(value, point, inputs)  # S of the loss, and of its slope along v
    terms_of_slope = _terms((gradient * direction).sum(), point, inputs)
    slope = np.sum(exact["gradient"] * v)
    rounding = MARGIN * eps * (terms / h + terms_of_slope) / default
    error = slope - difference("loss").ravel()
    # At a minimum a wrong gradient is zero, too, so the one at theta + h v is compared
    # as well, with the formula that looks three points back and one ahead.
    (plus, minus), (ahead, back) = near, far
    losses = [o["loss"].sum() for o in (back, minus, exact, plus, ahead)]
    beside = np.dot((-1, 6, -18, 10, 3), losses) / (12 * h)
    error_beside = np.sum(plus["gradient"] * v) - beside
    first = _relative(error, exact["gradient"], rounding)
    second = _relative(error_beside, plus["gradient"], 2 * rounding)
    errors = [float(np.maximum(first, second))]  # NaN if one is
    if order == 2:
        rounding = MARGIN * eps * terms_of_slope / h / default
        error = exact["hvp"] - difference("gradient")
        errors.append(_relative(error, exact["hvp"], rounding))
    names = ("gradient", "Hessian-vector product")[:order]
    for name, error in zip(names, errors, strict=True):
        if not error <= tolerance:  # This is also true of a NaN.
            raise GradientError(
                f"the {name} differs from its finite difference by {error:.1e} of its "
                f"size; {tolerance:.0e} is allowed in {theta.dtype.name}"
            )
    return Errors(*errors)


def _relative(error: Array, derivative: Array, rounding: float) -> float:
    """|error| / (|derivative| + rounding); 0 if both are zero."""
    norm = float(np.linalg.norm(error))
    size = float(np.linalg.norm(derivative)) + rounding
    return norm / size if size else (float("inf") if norm else 0.0)


def _terms(scalar: Value, theta: Value, inputs: dict[str, Array]) -> float:
    """S, the sum of |a da| over the values a between theta and a scalar."""
    tape = scalar.tape.snapshot()
    tape.outputs.clear()
    found = cotangents(tape.value(scalar.index), tape.value(theta.index))
    for index, g in found.items():
        tape.output(str(index), g * (a := tape.value(index)))
        if a.primitive.name == "logsumexp":
            tape.output(f"sum of {index}", g)
    products = get_backend("numpy").compile(tape, inputs["theta"].dtype)(inputs)
    return float(sum(np.abs(a[np.isfinite(a)]).sum() for a in products.values()))
