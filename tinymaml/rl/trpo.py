"""Trust-region policy optimisation: the longest good step that changes a policy little.

    minimise the surrogate loss subject to mean KL(old || new) <= max_kl

The direction solves F x = gradient by conjugate gradients, which need products F v and
not F. Its length is where the quadratic model of the KL divergence reaches max_kl, and
a line search shortens it until the surrogate loss has really fallen and the divergence
is really within its bound. If it never is, nothing changes.

Nothing here knows of policies: gradient, product and evaluation are arguments. The
constants are those of the authors' code (rllab's).

Source: Schulman et al., Trust region policy optimization, ICML 2015, arXiv:1502.05477,
appendix C.
"""

from collections.abc import Callable
from math import isfinite, sqrt
from typing import Any, NamedTuple

import numpy as np

from tinymaml.checks import check_numbers, check_sizes, check_theta

Array = np.ndarray[Any, Any]
Product = Callable[[Array], Array]
TOLERANCE = 1e-10  # of conjugate gradients, on the squared length of what is left


class TrustRegionStep(NamedTuple):
    """Where a step ended, and how."""

    theta: Array  # (P,); the old one, unchanged, if nothing was accepted
    accepted: bool
    improvement: float  # by which the surrogate loss fell, 0 if nothing was accepted
    kl: float  # mean KL(old || new), 0 if nothing was accepted
    backtracks: int  # how often the step was shortened
    why: str  # nothing was accepted; "" if something was


def check_settings(max_kl: float, iterations: int, damping: float) -> None:
    """Raise an error with the name of the first that is no number in its range."""
    check_numbers(max_kl=max_kl, damping=damping)
    if not 0 < max_kl < np.inf:
        raise ValueError(f"max_kl: expected a positive number, got {max_kl}")
    check_sizes(iterations=iterations)
    if not 0 <= damping < np.inf:
        raise ValueError(f"damping: expected a number of at least 0, got {damping}")


def conjugate_gradient(
    product: Product, b: Array, iterations: int = 10, tolerance: float = TOLERANCE
) -> Array:
    """x with A x = b, for symmetric positive definite A given as product(v) = A v.

    b: (P,); all is computed in float64. Stops after `iterations`, when |b - A x|^2 is
    below `tolerance`, or where A has no positive curvature left, as happens when it is
    singular; x is then the best in the space searched so far. Costs a product an
    iteration.

    >>> A = np.array([[4.0, 1.0], [1.0, 3.0]])
    >>> conjugate_gradient(lambda v: A @ v, np.array([1.0, 2.0])).round(4)
    array([0.0909, 0.6364])
    """
    b = np.asarray(b, np.float64)
    if b.ndim != 1 or not np.isfinite(b).all():
        raise ValueError(f"b: expected a finite vector, got {b!r:.60}")
    check_sizes(iterations=iterations)
    x, residual, direction = np.zeros_like(b), b.copy(), b.copy()
    squared = residual @ residual
    for _ in range(iterations):
        if squared < tolerance:
            break
        curved = np.asarray(product(direction), np.float64)
        curvature = direction @ curved
        # Rounding leaves a little curvature where there is none. Infinity and NaN stop
        # here too, because no comparison with them is true.
        if not 1e-15 * (direction @ direction) < curvature < np.inf:
            break
        length = squared / curvature
        x += length * direction
        residual -= length * curved
        before, squared = squared, residual @ residual
        direction = residual + squared / before * direction
    return x


def trust_region_step(
    theta: Array,
    loss: float,
    gradient: Array,
    product: Product,
    evaluate: Callable[[Array], tuple[float, float]],
    max_kl: float = 0.01,
    iterations: int = 10,
    damping: float = 1e-5,
    shorten: float = 0.8,
    tries: int = 15,
) -> TrustRegionStep:
    """One step from theta (P,), float32 or float64.

    loss, gradient: the surrogate loss at theta, and its gradient (P,). product: v (P,)
    -> F v, where F is the Hessian of the mean KL divergence at theta; `damping` v is
    added. evaluate: (P,) -> surrogate loss and mean KL divergence. `tries` lengths are
    tried, each `shorten` times the one before.

    A step is accepted only if its loss is below that of theta and its divergence at
    most max_kl, and not negative by more than rounding. Raises ValueError or TypeError
    naming the argument that does not fit.
    """
    check_theta(theta, np.size(theta))
    gradient = np.asarray(gradient, np.float64)
    if gradient.shape != theta.shape:
        raise ValueError(
            f"gradient: expected theta's shape, {theta.shape}, got {gradient.shape}"
        )
    check_settings(max_kl, iterations, damping)
    check_numbers(loss=loss, shorten=shorten)
    if not 0 < shorten < 1:
        raise ValueError(f"shorten: expected a number in (0, 1), got {shorten}")
    check_sizes(tries=tries)

    def damped(v: Array) -> Array:
        return product(v.astype(theta.dtype)) + damping * v

    def nothing(why: str, backtracks: int = 0) -> TrustRegionStep:
        return TrustRegionStep(theta.copy(), False, 0.0, 0.0, backtracks, why)

    if not (isfinite(loss) and np.isfinite(gradient).all()):
        return nothing("the loss or its gradient is not finite")
    if gradient @ gradient < TOLERANCE:
        return nothing("the gradient is 0, or too short for conjugate gradients")
    direction = conjugate_gradient(damped, gradient, iterations)
    # x A x without a further product: CG's residual is orthogonal to its x, so A x may
    # be replaced by b. Only rounding makes a difference, in float32 up to 2 % of it.
    curvature = float(direction @ gradient)
    if not 0 < curvature < np.inf:
        return nothing(f"the curvature along the direction is {curvature:.3g}")
    step = sqrt(2 * max_kl / curvature) * direction
    # A small divergence is a difference of larger numbers: rounded, it may be below 0.
    least_kl = -sqrt(np.finfo(theta.dtype).eps)
    for backtracks in range(tries):
        candidate = (theta - shorten**backtracks * step).astype(theta.dtype)
        after, kl = evaluate(candidate)
        if isfinite(after) and after < loss and least_kl <= kl <= max_kl:
            return TrustRegionStep(candidate, True, loss - after, kl, backtracks, "")
    return nothing(f"none of {tries} lengths kept loss and divergence down", tries)
