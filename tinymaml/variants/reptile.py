"""Reptile: theta moves towards where gradient descent on a task leads.

    theta <- theta + epsilon (theta_J - theta)

The difference from `maml.py`: nothing is differentiated through the inner loop. The sum
of its gradients takes the place of the meta-gradient, for plain gradient descent has

    v_0 = (theta_0 - theta_J) / alpha = sum_j grad S(theta_j),   j = 0 .. J - 1

An outer step of SGD with learning rate beta is then the paper's with epsilon = beta /
alpha; the paper also gives v_0 to Adam, as we do. With J = 1 it is the gradient of the
loss itself, so theta is trained on all tasks jointly. A few lines are for batches.

Source: Nichol, Achiam, Schulman, On first-order meta-learning algorithms, 2018,
arXiv:1803.02999, algorithm 1 and the remark below it.
"""

from typing import Any

from tinymaml.autodiff.derivatives import grad
from tinymaml.autodiff.functions import concatenate
from tinymaml.autodiff.tape import Value
from tinymaml.checks import check_that, whole_number
from tinymaml.learner import MAML, TaskOnTape


class Reptile(MAML):
    """MAML whose outer loop learns by Reptile; at test it adapts as MAML does.

    batch: the number of examples in a training step of the inner loop, which takes the
        support and query examples of a task in their order and begins again when no
        whole batch is left. By default each step takes them all.

    The other arguments are those of `MAML`, but without `step_weights`; `order` and
    `recompute` change nothing. With a vector alpha v_0 is still the sum of gradients:
    parameters whose alpha is 0 are trained jointly. The reported loss is that of the
    query examples after J training steps.

    Raises ValueError for a batch larger than a task, and for steps=0.

    >>> import numpy as np
    >>> def loss(theta, x, y):                        # f_theta(x) = theta x
    ...     return ((x * theta - y) * (x * theta - y)).mean()
    >>> one = np.ones((1, 1, 1))                      # theta: 0, 1/2, 3/4
    >>> reptile = Reptile(loss, alpha=0.25, steps=2, backend="numpy")
    >>> reptile.meta_gradient(np.zeros(1), (one, one, one, one)).gradient
    array([-3.])
    """

    own_settings = {
        "batch": lambda n: n if n is None else whole_number("batch", n),
        "steps": lambda steps: whole_number("steps", steps),
        "step_weights": lambda w: check_that(w is None, "step_weights", "None", w),
    }

    def __init__(self, *settings: Any, batch: int | None = None, **rest: Any) -> None:
        self.batch = batch
        super().__init__(*settings, **rest)

    def record_meta_gradient(
        self, thetas: list[Value], task: TaskOnTape, order: int
    ) -> tuple[Value, list[Value]]:
        """The query loss after J steps on all examples, and v_0 alone."""
        # [reptile]
        x, y = map(concatenate, zip(task.support, task.query, strict=True))
        size = self.batch or x.shape[0]
        check_that(size <= x.shape[0], "batch", f"at most {x.shape[0]} examples", size)
        theta_j, v = thetas[0], thetas[0].tape.constant(0.0, thetas[0].shape)
        for j in range(len(thetas) - 1):
            start = j % (x.shape[0] // size) * size
            batch = x[start : start + size], y[start : start + size]
            g = grad(self.loss(theta_j, *batch), theta_j)
            theta_j, v = theta_j - task.alpha * g, v + g
        return task.query_loss(theta_j, *task.query), [v]
        # [/reptile]
