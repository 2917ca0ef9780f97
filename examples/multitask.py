"""Multi-task baselines of table 2: the mean parameters of 500 single-task regressors.

    python examples/sinusoid.py --multitask

Each regressor learns one sine wave, from random weights and new points in every step;
the mean of all their parameter vectors is where a new task starts. As in the paper the
regressors have no penalty, an l2 penalty, or a penalty on the distance to the mean
vector thus far, as strong as their own error allows: about 0.02 at most.

Deviations: the paper trains one regressor after the other, we train 20 groups of 25 at
once; "the mean thus far" is that of the groups before, and zero for the first. How
long, on how many points and how strongly regularised the paper does not say. Our
choices are in REGRESSORS: the strengths are the largest of 0.001, 0.003, 0.01, 0.03 for
which the median group errs by less than 0.02. A few regressors get stuck on a plateau
and stay worse; the log has the mean of each group.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

import tinymaml as tm
from tinymaml.backends import Backend
from tinymaml.learner import Loss
from tinymaml.tasks import sinusoid
from tinymaml.training.stages import Stages

Array = np.ndarray[Any, Any]


class Regressors(NamedTuple):
    """How regressors are trained; a variant is a name, a strength, and to the mean?"""

    groups: int = 20
    size: int = 25
    points: int = 40
    steps: int = 6_000
    step_size: float = 0.01
    variants: tuple[tuple[str, float, bool], ...] = (
        ("multitask", 0.0, False),
        ("multitask-l2", 0.003, False),
        ("multitask-mean", 0.01, True),
    )


REGRESSORS = Regressors()

# %% One group
# All regressors of a group train at once, one per task of a tape: their parameters are
# inputs of the tasks, their gradients outputs.


class GroupResult(NamedTuple):
    """What `train` asks for: the group's own error, and mean - (mean of the group)."""

    loss: float
    gradient: Array


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
        """Train a group from random weights; return what takes the mean to theirs."""
        size, points = REGRESSORS.size, REGRESSORS.points
        thetas = np.stack([self.network.init(rng) for _ in range(size)])
        waves = sinusoid.sample_waves(rng, size)
        # Adam works entry by entry: one vector of all parameters is many optimisers.
        adam = tm.Adam(REGRESSORS.step_size)
        centre = mean if self.to_mean else np.zeros_like(mean)
        for _ in range(self.steps):
            x = rng.uniform(*sinusoid.INPUTS, (size, points, 1)).astype(np.float32)
            inputs = {"theta": thetas, "x": x, "y": waves(x), "centre": centre}
            results = self.run(inputs)
            adam.update(thetas.reshape(-1), results["gradient"].reshape(-1))
        return GroupResult(float(results["error"].mean()), mean - thetas.mean(0))


# %% All groups
# With the running mean as theta, a whole group as one "iteration" and this optimiser,
# `train` does the rest: checkpoints, log, Ctrl-C.


class RunningMean:
    """An optimiser whose n-th step goes 1/n of the way: theta is the targets' mean."""

    def __init__(self) -> None:
        self.count = 0

    def update(self, theta: Array, gradient: Array) -> None:
        """Step number `count` + 1."""
        self.count += 1
        theta -= gradient / self.count

    def state(self) -> dict[str, Array]:
        """The number of steps."""
        return {"count": np.array(self.count)}

    def load_state(self, state: Mapping[str, Array]) -> None:
        """Go on from there."""
        self.count = int(state["count"])

    def config(self) -> dict[str, Any]:
        """Its name."""
        return {"name": type(self).__name__}


def train_multitask(
    stages: Stages,
    network: tm.Network,
    loss: Loss,
    iterations: int,
    random: Callable[[], np.random.Generator],
    backend: Backend,
) -> dict[str, Array]:
    """The mean parameters, for each variant; few `iterations` make it a trial run."""
    steps = min(REGRESSORS.steps, iterations)
    groups = min(REGRESSORS.groups, -(-iterations // 500))
    return {
        name: stages.train(
            name,
            Group(network, loss, backend, steps, strength, to_mean),
            np.zeros(network.size, np.float32),
            lambda rng: np.random.default_rng(rng.integers(2**63, size=2)),
            iterations=groups,
            optimiser=RunningMean(),
            rng=random(),
            config={"regressor_steps": steps, "strength": strength},
            checkpoint_every=1,
            log_every=1,
        ).theta
        for name, strength, to_mean in REGRESSORS.variants
    }
