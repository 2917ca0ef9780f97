"""Trust-region policy optimisation (TRPO): a large step within a bound on the change.

    minimise the surrogate loss subject to mean KL(old || new) <= max_kl

The direction of the step solves F x = gradient by conjugate gradients, which need
products F v and never the matrix F, the Hessian of the KL divergence. To F is added a
small damping; with it, the quadratic model of the divergence reaches max_kl at the end
of the step. A line search shortens the step until the true surrogate loss is lower and
the true divergence is within its bound. If no length passes, theta stays as it was.

The optimiser does not know about policies: gradient, products and losses are arguments.
Its constants are those of rllab, on which the authors' code is built.

Source: Schulman et al., Trust region policy optimization, ICML 2015, arXiv:1502.05477,
appendix C.
"""

from collections.abc import Callable
from math import isfinite, sqrt
from typing import NamedTuple

import numpy as np

from tinymaml.checks import Array, check_numbers, check_sizes, check_that, check_theta

Product = Callable[[Array], Array]  # v (P,) -> a matrix times v (P,)
TOLERANCE = 1e-10  # conjugate gradients stop at this squared length of the residual


class TrustRegionStep(NamedTuple):
    """The result of `trust_region_step`."""

    theta: Array  # (P,); the old parameters if no step was accepted
    accepted: bool
    improvement: float  # decrease of the surrogate loss; 0 if no step was accepted
    kl: float  # mean KL(old || new); 0 if no step was accepted
    backtracks: int  # lengths of the step that were tried in vain
    reason: str  # why no step was accepted, or "" if one was


def check_settings(max_kl: float, iterations: int, damping: float) -> None:
    """Every setting of `trust_region_step` is a number in its range."""
    check_numbers(max_kl=max_kl, damping=damping)
    check_that(0 < max_kl < np.inf, "max_kl", "a positive number", max_kl)
    check_sizes(iterations=iterations)
    check_that(0 <= damping < np.inf, "damping", "a number of at least 0", damping)


def conjugate_gradient(
    product: Product, b: Array, iterations: int = 10, tolerance: float = TOLERANCE
) -> Array:
    """Solve A x = b for a symmetric positive definite A, given as product(v) = A v.

    b: (P,); the solver works in float64. It stops after `iterations`, or when
    |b - A x|^2 is below `tolerance`, or when A has no positive curvature along the next
    direction, which happens if A is singular. x is then the best solution in the
    subspace that was searched. Each iteration costs one product.

    >>> A = np.array([[4.0, 1.0], [1.0, 3.0]])
    >>> conjugate_gradient(lambda v: A @ v, np.array([1.0, 2.0])).round(4)
    array([0.0909, 0.6364])
    """
    b = np.asarray(b, np.float64)
    fits = b.ndim == 1 and np.isfinite(b).all()
    check_that(fits, "b", "a finite vector", f"{b!r:.60}")
    check_sizes(iterations=iterations)
    x, residual, direction = np.zeros_like(b), b.copy(), b.copy()
    squared = residual @ residual
    for _ in range(iterations):
        if squared < tolerance:
            break
        a_direction = np.asarray(product(direction), np.float64)
        curvature = direction @ a_direction
        # A curvature of 0 may come out slightly positive because of rounding, hence
        # 1e-15. The comparison is false for NaN too, so NaN also stops the loop.
        if not 1e-15 * (direction @ direction) < curvature < np.inf:
            break
        length = squared / curvature
        x += length * direction
        residual -= length * a_direction
        previous, squared = squared, residual @ residual
        direction = residual + squared / previous * direction
    return x


def trust_region_step(
    theta: Array,
    loss: float,
    gradient: Array,
    product: Product,
    loss_and_kl: Callable[[Array], tuple[float, float]],
    max_kl: float = 0.01,
    iterations: int = 10,
    damping: float = 1e-5,
    shorten: float = 0.8,
    tries: int = 15,
) -> TrustRegionStep:
    """One TRPO step from theta (P,), float32 or float64.

    loss, gradient: the surrogate loss at theta, and its gradient (P,).
    product: v (P,) -> F v, where F is the Hessian of the mean KL divergence at theta.
    loss_and_kl: (P,) -> the surrogate loss and the mean KL divergence there.
    max_kl: bound on the mean KL divergence.
    iterations: of conjugate gradients.
    damping: this multiple of the identity is added to F.
    shorten, tries: the line search multiplies the step by `shorten`, at most
    tries - 1 times.

    A step is accepted if its loss is below that of theta and its divergence is at most
    max_kl, and not negative beyond rounding. Raises ValueError or TypeError naming the
    argument that does not fit.
    """
    check_theta(theta, np.size(theta))
    gradient = np.asarray(gradient, np.float64)
    fits = gradient.shape == theta.shape
    check_that(fits, "gradient", f"theta's shape, {theta.shape}", gradient.shape)
    check_settings(max_kl, iterations, damping)
    check_numbers(loss=loss, shorten=shorten)
    check_that(0 < shorten < 1, "shorten", "a number in (0, 1)", shorten)
    check_sizes(tries=tries)

    def damped(v: Array) -> Array:
        return product(v.astype(theta.dtype)) + damping * v

    def rejected(reason: str, backtracks: int = 0) -> TrustRegionStep:
        return TrustRegionStep(theta.copy(), False, 0.0, 0.0, backtracks, reason)

    if not (isfinite(loss) and np.isfinite(gradient).all()):
        return rejected("the loss or its gradient is not finite")
    if gradient @ gradient < TOLERANCE:
        return rejected("the gradient is 0, or too short for conjugate gradients")
    direction = conjugate_gradient(damped, gradient, iterations)
    # The curvature x F x, with the damping in F, needs no further product. The residual
    # of conjugate gradients is orthogonal to x, so x F x = x b, up to rounding (2 % in
    # float32 at worst).
    curvature = float(direction @ gradient)
    if not 0 < curvature < np.inf:
        return rejected(f"the curvature along the direction is {curvature:.3g}")
    step = sqrt(2 * max_kl / curvature) * direction
    # A small divergence is a difference of larger numbers, so rounding can make it
    # slightly negative.
    least_kl = -sqrt(np.finfo(theta.dtype).eps)
    for backtracks in range(tries):
        candidate = (theta - shorten**backtracks * step).astype(theta.dtype)
        new_loss, kl = loss_and_kl(candidate)
        if isfinite(new_loss) and new_loss < loss and least_kl <= kl <= max_kl:
            return TrustRegionStep(candidate, True, loss - new_loss, kl, backtracks, "")
    return rejected(f"none of {tries} lengths kept loss and divergence down", tries)
