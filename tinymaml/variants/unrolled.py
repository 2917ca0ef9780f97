"""The meta-gradient as one reverse pass through the whole inner loop.

    v_0 = gradient of Q(theta_J) in what the outer loop learns, by `grad` alone

`maml.py` writes the chain rule through an inner step out, which needs to know the step:
theta_{j+1} = theta_j - alpha grad S(theta_j). An inner loop of another form (momentum,
other rates in each step, an adapted part) is differentiated here without a recursion of
its own: a variant overrides `record_inner_step`, and `grad` walks back through what has
been recorded. On the same inner loop the numbers are those of `maml.py`.

First order: the gradients of the inner loop count as constants, as in the code of
MAML's authors.

The file is longer than others here: it is what they share.

Left out: `recompute`, which is written for the recursion of `maml.py`.
"""

from tinymaml.autodiff.derivatives import grad
from tinymaml.autodiff.functions import stop_gradient
from tinymaml.autodiff.tape import Value
from tinymaml.checks import check_that, shown
from tinymaml.learner import MAML, TaskOnTape
from tinymaml.maml import Examples, Loss

Moments = tuple[Value, Value]  # each (P,)


def _check_recompute(recompute: bool) -> bool:
    expected = "False, as only the recursion of maml.py can recompute"
    check_that(recompute is False, "recompute", expected, shown(recompute))
    return recompute


class Unrolled(MAML):
    """MAML for an inner loop of any form; a subclass overrides `record_inner_step`.

    Arguments as in `MAML`, but `recompute`, which is refused with a ValueError.
    """

    own_settings = {"recompute": _check_recompute}

    def support_gradient(self, support_loss: Value, theta: Value) -> Value:
        """The gradient of an inner step; with order=1 no derivative passes through."""
        gradient = grad(support_loss, theta)
        return gradient if self.order == 2 else stop_gradient(gradient)

    def record_inner_loop(
        self, theta: Value, support: Examples, alpha: Value, steps: int
    ) -> list[Value]:
        """[theta_0, ..., theta_J], each (P,)."""
        zeros = theta.tape.constant(0.0, theta.shape)
        thetas, moments = [theta], (zeros, zeros)
        for j in range(steps):
            gradient = self.support_gradient(self.loss(thetas[j], *support), thetas[j])
            step, moments = self.record_inner_step(j, gradient, alpha, moments)
            thetas.append(thetas[j] - step)
        return thetas

    def record_inner_step(
        self, j: int, gradient: Value, alpha: Value, moments: Moments
    ) -> tuple[Value, Moments]:
        """theta_j - theta_{j+1}, and the moments of an optimiser; 0 before step 0."""
        return alpha * gradient, moments

    def record_objective(
        self, thetas: list[Value], query: Examples, query_loss: Loss
    ) -> Value:
        """What the outer loop minimises, (): the query loss, or its weighted sum."""
        objective = query_loss(thetas[-1], *query)
        if weights := self._weights():
            objective = objective * weights[-1]
            for theta_j, weight in zip(thetas[1:-1], weights, strict=False):
                objective = objective + query_loss(theta_j, *query) * weight
        return objective

    def record_meta_gradient(
        self, thetas: list[Value], task: TaskOnTape, order: int
    ) -> tuple[Value, list[Value]]:
        """The objective (), and [v_0]: no other cotangent has a name here."""
        objective = self.record_objective(thetas, task.query, task.query_loss)
        tape = objective.tape
        # [unrolled]
        learned = tape.value(tape.inputs["theta"].node)
        return objective, [grad(objective, learned)]
        # [/unrolled]
