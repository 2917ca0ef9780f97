"""Multi-task baselines of table 2: the mean parameters of 500 single-task regressors.

    python examples/sinusoid.py --multitask

Each regressor learns one sine wave, from random weights and with new points in every
step. The mean of all their parameter vectors is the initialisation for a new task. The
three variants are the paper's: no penalty, an l2 penalty, and a penalty on the distance
to the mean of the regressors trained so far.

Deviations: the paper trains one regressor after the other; here 20 groups of 25 train,
each group at once, and "the mean so far" is the mean of the groups before, which is
zero for the first group. The paper does not say how long the regressors train, on how
many points, and how strong the penalties are. Our choices are in `REGRESSORS`. Each
strength is the largest of 0.001, 0.003, 0.01, 0.03 with which the error of the median
group stays below 0.02. Some regressors get stuck on a plateau and keep a larger error;
the log has the mean error of each group.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

import tinymaml as tm
from stages import Stages
from tinymaml.backends import Backend
from tinymaml.checks import whole_number
from tinymaml.maml import Loss
from tinymaml.tasks import sinusoid

Array = np.ndarray[Any, Any]


class Variant(NamedTuple):
    """One of the three baselines, by the penalty on its regressors."""

    name: str
    strength: float
    to_mean: bool  # the penalty is on the distance to the mean, not on the norm


class Regressors(NamedTuple):
    """How the regressors are trained."""

    groups: int = 20
    size: int = 25  # regressors in a group
    points: int = 40  # new points of a regressor's wave in each step
    steps: int = 6_000  # gradient steps of a regressor
    learning_rate: float = 0.01
    variants: tuple[Variant, ...] = (
        Variant("multitask", 0.0, to_mean=False),
        Variant("multitask-l2", 0.003, to_mean=False),
        Variant("multitask-mean", 0.01, to_mean=True),
    )


REGRESSORS = Regressors()

# %% One group
# A backend runs a tape for a batch of tasks at once. Here a task is a regressor, so its
# parameters are an input that differs between tasks, and its gradient is an output.


class GroupResult(NamedTuple):
    """What `train` needs from a group."""

    loss: float  # the mean error of the group's regressors
    gradient: Array  # (P,) the mean of the groups before minus the mean of this group


class Group:
    """Trains a group of regressors, each on a wave of its own."""

    def __init__(
        self,
        network: tm.Network,
        loss: Loss,
        backend: Backend,
        steps: int,
        strength: float,
        to_mean: bool,
    ) -> None:
        tape = tm.Tape()
        theta = tape.input("theta", (network.size,), per_task=True)
        x = tape.input("x", (REGRESSORS.points, 1), per_task=True)
        y = tape.input("y", (REGRESSORS.points, 1), per_task=True)
        centre = tape.input("centre", (network.size,))
        error = loss(theta, x, y)
        penalty = strength * ((theta - centre) * (theta - centre)).sum()
        tape.output("error", error)
        tape.output("gradient", tm.grad(error + penalty, theta))
        self.run = backend.compile(tape, "float32")
        self.network, self.steps, self.to_mean = network, steps, to_mean

    def __call__(self, mean: Array, rng: np.random.Generator) -> GroupResult:
        """Train one group; `mean` (P,) is the mean of the groups before."""
        size, points = REGRESSORS.size, REGRESSORS.points
        thetas = np.stack([self.network.init(rng) for _ in range(size)])  # (size, P)
        waves = sinusoid.sample_waves(rng, size)
        # Adam works element by element, so that one Adam for all parameters of the
        # group equals one Adam for each regressor.
        adam = tm.Adam(REGRESSORS.learning_rate)
        centre = mean if self.to_mean else np.zeros_like(mean)
        for _ in range(self.steps):
            x = rng.uniform(*sinusoid.INPUTS, (size, points, 1)).astype(np.float32)
            inputs = {"theta": thetas, "x": x, "y": waves(x), "centre": centre}
            results = self.run(inputs)
            adam.update(thetas.reshape(-1), results["gradient"].reshape(-1))
        return GroupResult(float(results["error"].mean()), mean - thetas.mean(0))


# %% All groups
# A variant is one call of `train`: theta is the mean so far, an iteration trains one
# group, and the optimiser below updates the mean. So the baselines have checkpoints, a
# log and Ctrl-C, as all other trainings do.


class RunningMean:
    """An optimiser for gradients theta - target: theta becomes the targets' mean."""

    def __init__(self) -> None:
        self.count = 0

    def update(self, theta: Array, gradient: Array) -> None:
        """Move theta in place, in the n-th call by 1/n of the way to the target."""
        self.count += 1
        theta -= gradient / self.count

    def state(self) -> dict[str, Array]:
        """The number of steps so far, for a checkpoint."""
        return {"count": np.array(self.count)}

    def load_state(self, state: Mapping[str, Array]) -> None:
        """Continue from a checkpoint."""
        self.count = whole_number("count", state["count"][()], least=0)

    def config(self) -> dict[str, Any]:
        """The name of the optimiser, in which a checkpoint must agree."""
        return {"name": type(self).__name__}


def prepare_multitask(
    stages: Stages,
    network: tm.Network,
    loss: Loss,
    iterations: int,
    new_rng: Callable[[], np.random.Generator],
    backend: Backend,
) -> None:
    """Describe the training of each variant; its theta (P,) is the mean parameters.

    iterations: the number for the other trainings; if it is small, there are fewer
    groups here, and they are shorter. A resumed run with a larger number, in which the
    regressors train longer, therefore trains all of them anew. new_rng: gives each
    variant the same stream of random numbers.
    """
    steps = min(REGRESSORS.steps, iterations)
    groups = min(REGRESSORS.groups, -(-iterations // 500))
    for name, strength, to_mean in REGRESSORS.variants:
        stages.prepare(
            name,
            Group(network, loss, backend, steps, strength, to_mean),
            np.zeros(network.size, np.float32),
            lambda rng: np.random.default_rng(rng.integers(2**63, size=2)),
            iterations=groups,
            optimiser=RunningMean(),
            rng=new_rng(),
            config={"regressor_steps": steps, "strength": strength},
            anew_if=["regressor_steps"],
            checkpoint_every=1,
            log_every=1,
        )
