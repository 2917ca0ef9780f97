"""Meta-SGD: the inner learning rates are learned as well, one for each parameter.

    theta_{j+1} = theta_j - alpha grad S(theta_j),   alpha learned like theta

The outer loop learns a vector of 2 P numbers, theta and alpha end to end. The recursion
of `maml.py` gives v_0 for theta; since theta_{j+1} depends on alpha through
- alpha grad S(theta_j), its cotangents also give the meta-gradient for alpha:

    - sum_j grad S(theta_j) v_{j+1},   entry by entry

First order: the same with first-order cotangents, v_J for all without step_weights.

Source: Li, Zhou, Chen, Li, Meta-SGD: learning to learn quickly for few-shot learning,
2017, arXiv:1707.09835.
"""

import numpy as np

from tinymaml.autodiff.functions import concatenate
from tinymaml.autodiff.tape import Value
from tinymaml.checks import Array, check_alpha, check_that, check_theta
from tinymaml.learner import MAML, TaskOnTape, alpha_gradient


class MetaSGD(MAML):
    """MAML that learns alpha: everywhere, theta is (theta, alpha), of shape (2 P,).

    alpha: where the learning rates start, a number or one for each parameter (P,); see
        `start`. Afterwards the rates are those in theta, whatever alpha is set to.

    The rest as in `MAML`; the results of `adapt` have P numbers. Raises ValueError for
    a theta of an odd size.

    >>> from tinymaml.tasks.batch import Tasks
    >>> def loss(theta, x, y):                        # f_theta(x) = theta x
    ...     return ((x * theta - y) * (x * theta - y)).mean()
    >>> one = np.ones((1, 1, 1))                      # one task, one example: x = y = 1
    >>> meta_sgd = MetaSGD(loss, alpha=0.25, backend="numpy")
    >>> start = meta_sgd.start(np.zeros(1))
    >>> start
    array([0.  , 0.25])
    >>> meta_sgd.meta_gradient(start, Tasks(one, one, one, one)).gradient
    array([-0.5, -2. ])
    >>> # For alpha: v_1 = 2 (theta' - 1) = -1 times - grad S(theta) = 2.
    """

    def start(self, theta: Array) -> Array:
        """(theta, alpha), (2 P,), where the outer loop starts from theta (P,)."""
        alpha = check_alpha(self.alpha, check_theta(theta).size)
        return np.r_[theta, np.broadcast_to(alpha.astype(theta.dtype), theta.shape)]

    def record_start(self, theta: Value, alpha: Value) -> tuple[Value, Value]:
        """theta_0 and the learned alpha, each (P,), from both end to end."""
        count, odd = divmod(theta.size, 2)
        check_that(not odd, "theta", "(theta, alpha), an even number", theta.size)
        return theta[:count], theta[count:]

    def record_meta_gradient(
        self, thetas: list[Value], task: TaskOnTape, order: int
    ) -> tuple[Value, list[Value]]:
        """The objective (), and [v_0], which also has the part of alpha."""
        objective, cotangents = super().record_meta_gradient(thetas, task, order)
        # [meta-sgd]
        for_alpha = alpha_gradient(self.loss, thetas, task.support, cotangents)
        return objective, [concatenate([cotangents[0], for_alpha])]
        # [/meta-sgd]
