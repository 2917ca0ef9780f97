"""Implicit MAML: the inner loop goes to a minimum, which is differentiated implicitly.

The inner loop stays near theta, by a penalty on the distance (the proximal term):

    theta' = argmin_phi  S(phi) + lambda / 2 |phi - theta|^2

At the minimum grad S(theta') + lambda (theta' - theta) = 0. The derivative of this line
with respect to theta gives that of theta', and so the difference from `maml.py`:

    v_0 = (I + H / lambda)^-1 grad Q(theta'),   H = Hessian of S at theta'

It does not matter how the minimum was found: no step of the inner loop is kept or
differentiated. The linear system is solved by conjugate gradients, which need one
Hessian-vector product an iteration.

Parameters whose alpha is 0 stay at theta, so the line above holds for the others only.
With u for the adapted part and w for the rest, differentiating it gives

    v_u = (I + H_uu / lambda)^-1 grad_u Q,   v_w = grad_w Q - H_wu v_u / lambda

which takes one product more.

The file is longer than others here: it has an inner problem, a linear system, and the
conjugate gradients that solve it on a tape.

Source: Rajeswaran, Finn, Kakade, Levine, Meta-learning with implicit gradients, NeurIPS
2019, arXiv:1909.04630. The formula for u and w is ours, and the damping is after their
code.
"""

from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any

from tinymaml.autodiff.derivatives import grad, hvp
from tinymaml.autodiff.functions import where
from tinymaml.autodiff.tape import Value
from tinymaml.checks import check_that, number_in, whole_number
from tinymaml.learner import MAML, TaskOnTape
from tinymaml.maml import Examples, inner_loop

# It keeps 0 / 0 out where the residual is 0. The square of a residual above 1e-12 is
# changed by less than a millionth of it.
TINY = 1e-30


class ImplicitMAML(MAML):
    """MAML with a proximal inner loop and the implicit meta-gradient.

    penalty: lambda, more than 0.
    iterations: of conjugate gradients. They start from 0 and their number is fixed;
        P of them are exact up to rounding, if I + H / lambda is positive definite.
    damping: a number that is added to lambda in the meta-gradient alone, at least 0. It
        makes training more stable where the inner loop stops before the minimum, and
        the meta-gradient more like grad Q(theta'). 0 is the paper's formula.

    The other arguments are those of `MAML`, but without `step_weights`; order 1 takes
    grad Q(theta') for v_0, and `recompute` changes nothing. `adapt`, `evaluate` and
    `predict` take proximal steps as well. The meta-gradient is exact only at the
    minimum, so J and alpha must be large enough to come near it.

    >>> import numpy as np
    >>> def loss(theta, x, y):                        # f_theta(x) = theta x, so H = 2
    ...     return ((x * theta - y) * (x * theta - y)).mean()
    >>> one = np.ones((1, 1, 1))
    >>> maml = ImplicitMAML(loss, 0.25, steps=50, penalty=2.0, backend="numpy")
    >>> maml.adapt(np.zeros(1), one, one).round(6)[0, -1]     # the minimum of
    array([0.5])
    >>> # ... (theta' - 1)^2 + theta'^2; then 2 (theta' - 1) / (1 + 2/2) = -1/2
    >>> maml.meta_gradient(np.zeros(1), (one, one, one, one)).gradient.round(6)
    array([-0.5])
    """

    own_settings = {
        "penalty": partial(number_in, "penalty", low=TINY, high=inf),
        "iterations": partial(whole_number, "iterations"),
        "damping": partial(number_in, "damping", low=0, high=inf),
        "step_weights": lambda w: check_that(w is None, "step_weights", "None", w),
    }

    def __init__(
        self,
        *settings: Any,
        penalty: float = 2.0,
        iterations: int = 5,
        damping: float = 0.0,
        **options: Any,
    ) -> None:
        self.penalty, self.iterations, self.damping = penalty, iterations, damping
        super().__init__(*settings, **options)

    def record_inner_loop(
        self, theta: Value, support: Examples, alpha: Value, steps: int
    ) -> list[Value]:
        """[theta_0, ..., theta_J], by gradient steps on the penalised support loss."""

        # [imaml-inner-problem]
        def proximal_loss(phi: Value, x: Value, y: Value) -> Value:
            distance = phi - theta
            penalty = self.penalty / 2 * (distance * distance).sum()
            return self.loss(phi, x, y) + penalty

        return inner_loop(proximal_loss, theta, support, alpha, steps)
        # [/imaml-inner-problem]

    def record_meta_gradient(
        self, thetas: list[Value], task: TaskOnTape, order: int
    ) -> tuple[Value, list[Value]]:
        """The query loss at theta_J, and v_0 alone."""
        phi, alpha = thetas[-1], task.alpha
        objective = task.query_loss(phi, *task.query)
        v = grad(objective, phi)
        if order == 1:
            return objective, [v]
        # [imaml]
        support_loss = self.loss(phi, *task.support)
        adapted = where(alpha * alpha, 1.0, 0.0)  # and 0 for what is not

        def curvature(p: Value) -> Value:
            return hvp(support_loss, phi, p) / (self.penalty + self.damping)

        def product(p: Value) -> Value:
            return p + (adapted * curvature(p) if alpha.shape else curvature(p))

        v_0 = conjugate_gradients(product, adapted * v, self.iterations)
        # [/imaml]
        # grad_w Q - H_wu v_u / lambda for the rest; one alpha leaves all or nothing.
        rest = v - curvature(v_0) if alpha.shape else v
        return objective, [v_0 + (1 - adapted) * rest]


def conjugate_gradients(
    product: Callable[[Value], Value], b: Value, iterations: int
) -> Value:
    """x (P,) with product(x) = b, from x = 0; product: p (P,) -> A p, A symmetric."""
    x, residual, p = b * 0.0, b, b
    square = (b * b).sum()
    for _ in range(iterations):
        image = product(p)
        length = square / ((p * image).sum() + TINY)
        x, residual = x + length * p, residual - length * image
        last, square = square, (residual * residual).sum()
        p = residual + square / (last + TINY) * p
    return x
