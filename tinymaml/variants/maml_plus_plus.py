"""MAML++: rates per layer and per step, and two schedules of the outer loop.

    objective in iteration t:   sum_j w_j(t) Q(theta_j),   of order 1 or 2 as t says

The losses after early steps keep the first iterations stable, and lose their weight as
training goes on (multi-step loss optimisation). First-order iterations come first, as
they are cheaper (derivative-order annealing). Both are functions of the iteration. The
number of the iteration is the optimiser's count of steps, which a checkpoint holds, so
a resumed training goes on where it was. The weights are an input of the tape:
only the first iteration of each order, with and without early losses, compiles.

    maml = MAMLPlusPlus(
        loss, network, steps=5,
        weights_at=lambda t: annealed_weights(t, steps=5, until=15_000),
        order_at=lambda t: 1 if t < 25_000 else 2,
    )
    result = train(maml, maml.start(theta), ...)

Half of the file is the way of the schedules into a training (`at`, `training_steps`,
`shared_inputs`).

Left out: batch normalisation with statistics of each step. The cosine schedule of the
outer learning rate is the optimiser's: Adam(cosine(0.001, iterations, 1e-5)).

Source: Antoniou, Edwards, Storkey, How to train your MAML, ICLR 2019, arXiv:1810.09502.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Any

import numpy as np

from tinymaml.autodiff.functions import concatenate
from tinymaml.autodiff.tape import Value
from tinymaml.checks import (
    Array,
    check_function,
    check_sizes,
    check_step_weights,
    check_that,
)
from tinymaml.maml import Examples, Loss
from tinymaml.networks.layers import Network
from tinymaml.training.optim import Optimiser
from tinymaml.training.steps import Columns, HostSteps, Sample, Steps
from tinymaml.variants.step_rates import StepRates


def annealed_weights(iteration: int, steps: int, until: int) -> list[float]:
    """Weights of the query losses after steps 1 .. J, which sum to 1.

    They are equal in iteration 0, and before it. Those before the last fall linearly,
    but not below 0.03 / J, and are 0 from iteration `until` on, as in the authors'
    code.

    >>> [round(w, 3) for w in annealed_weights(50, steps=2, until=100)]
    [0.25, 0.75]
    """
    steps, until = check_sizes(steps=steps, until=until)
    left = min(max(1 - iteration / until, 0.03), 1.0)
    early = left / steps if iteration < until else 0.0
    return [early] * (steps - 1) + [1 - early * (steps - 1)]


class MAMLPlusPlus(StepRates):
    """`StepRates` with losses after every step, both annealed over the iterations.

    weights_at: from the iteration, counted from 0, to the J weights of the query losses
        after steps 1 .. J.
    order_at: from the iteration to 1, for first order, or 2.

    The rest as in `StepRates`. Training is not on a device: each iteration has other
    weights. `meta_gradient` takes those of the last iteration, or of iteration 0.

    >>> from tinymaml.losses import squared_error
    >>> from tinymaml.networks.layers import MLP
    >>> network = MLP([1, 2, 1])
    >>> maml = MAMLPlusPlus(
    ...     lambda theta, x, y: squared_error(network(theta, x), y),
    ...     network,
    ...     weights_at=lambda t: annealed_weights(t, steps=2, until=100),
    ...     order_at=lambda t: 1 if t < 50 else 2,
    ...     steps=2,
    ... )
    >>> maml.at(0).order, maml.weights, maml.at(50).order, maml.weights
    (1, (0.5, 0.5), 2, (0.25, 0.75))
    """

    own_settings = StepRates.own_settings | {
        "last_only": bool,
        "weights_at": partial(check_function, "weights_at"),
        "order_at": partial(check_function, "order_at"),
        "step_weights": lambda w: check_that(w is None, "step_weights", "None", w),
    }

    def __init__(
        self,
        loss: Loss,
        network: Network,
        weights_at: Callable[[int], Sequence[float]],
        order_at: Callable[[int], int],
        **options: Any,
    ) -> None:
        # Given a second time in `options`, these two raise TypeError.
        super().__init__(loss, network, order=2, step_weights=None, **options)
        self.weights_at, self.order_at = weights_at, order_at
        self.at(0)

    @property
    def last_only(self) -> bool:
        """Whether all weights before the last are 0: no loss of theirs is recorded."""
        return not any(self.weights[:-1])

    def at(self, iteration: int) -> "MAMLPlusPlus":
        """The same object, with the weights and the order of an iteration."""
        weights = self.weights_at(iteration)
        self.weights = check_step_weights(weights, self.steps, "weights_at")
        self.order = self.order_at(iteration)
        return self

    def training_steps(
        self, theta: Array, optimiser: Optimiser, sample: Sample, columns: Columns = ()
    ) -> Steps:
        """The outer steps of `train`, from the iteration that the optimiser counts."""
        state = optimiser.state()
        check_that("step" in state, "optimiser", "a state with 'step'", [*state])
        iterations = count(int(state["step"]))

        def gradient(theta: Array, tasks: Any) -> Any:
            return self.at(next(iterations))(theta, tasks)

        sample = self.ranks.sampler(sample)
        return HostSteps(gradient, theta, optimiser, sample, columns)

    def shared_inputs(self, theta: Array) -> dict[str, Array]:
        """alpha, and the weights (J,) as numbers that change without compiling."""
        weights = check_step_weights(self.weights, self.steps, "weights_at")
        return super().shared_inputs(theta) | {
            "weights": np.array(weights, theta.dtype)
        }

    def record_objective(
        self, thetas: list[Value], query: Examples, query_loss: Loss
    ) -> Value:
        """The weighted sum of the query losses after steps 1 .. J, ()."""
        tape = thetas[0].tape
        weights = tape.value(tape.inputs["weights"].node)
        # [annealed-loss]
        first = self.steps - 1 if self.last_only else 0
        later = thetas[first + 1 :]
        losses = [query_loss(theta_j, *query).reshape(1) for theta_j in later]
        return (weights[first:] * concatenate(losses)).sum()
        # [/annealed-loss]
