"""Roll-outs: let policies act in an environment, and get trajectories as arrays.

    trajectories = roll_out(policy, Navigation(), thetas, goals, noise)
    trajectories.rewards       # (T, B, horizon), with trajectories.mask

T tasks, each with its own parameters, and B trajectories in each of them take a step at
the same time, so the policy is called once for each step. Trajectories end at different
times: the arrays have the length of the horizon, and the mask is True for the steps
that were taken. All randomness comes in as `noise` of the actions and `start_noise` of
the first states, so the same noise gives the same bits. This is line 5 (and line 8) of
the paper's algorithm 3.

Left out: simulators that are written elsewhere. Any object with the methods of
`Environment` can be used.
"""

from typing import NamedTuple, Protocol

import numpy as np

from tinymaml.checks import Array, check_arrays, check_choice, check_sizes, check_that


class Actor(Protocol):
    """What `roll_out` needs of a policy."""

    size: int
    actions: int

    def act(self, thetas: Array, x: Array, noise: Array) -> Array:
        """Actions (T, B, A) for thetas (T, P), x (T, B, O) and noise (T, B, A)."""


class Environment(Protocol):
    """The dynamics of T tasks with B trajectories each, as functions of arrays.

    `tasks` is an array of what distinguishes the tasks, with a leading task axis.
    `start_noise` is D, how many standard normal numbers place a trajectory at its
    start: 0 where all start alike.
    """

    observations: int
    actions: int
    horizon: int
    start_noise: int

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """Draw new tasks: an array with the given leading axes."""

    def start(self, tasks: Array, trajectories: int, noise: Array) -> Array:
        """The initial states of trajectories, (T, B, ...), for noise (T, B, D)."""

    def observe(self, states: Array, tasks: Array) -> Array:
        """What the agent sees in these states: (T, B, observations)."""

    def step(
        self, states: Array, actions: Array, tasks: Array
    ) -> tuple[Array, Array, Array]:
        """New states, rewards (T, B), and which trajectories terminate here (T, B).

        tasks: (T, ...). One number for each task is combined with arrays (T, B) as
        `tasks[:, None]`; `tasks` alone would be one for each trajectory where T = B.
        """


class Trajectories(NamedTuple):
    """B trajectories for each of T tasks, of at most `horizon` steps.

    After the end of a trajectory its arrays are 0 and its mask is False.

    >>> rewards = np.array([[[1.0, 2.0, 0.0], [5.0, 0.0, 0.0]]])  # of one task
    >>> inputs = np.zeros((1, 2, 3, 1))
    >>> trajectories = Trajectories(inputs, inputs, rewards, mask=rewards > 0)
    >>> trajectories
    Trajectories(observations (1, 2, 3, 1), actions (1, 2, 3, 1), 3 of 6 steps)
    >>> trajectories.returns()  # (1 + 2 + 5) / 2
    array([4.])
    """

    observations: Array  # (T, B, horizon, O), before each action; dtype of theta
    actions: Array  # (T, B, horizon, A); dtype of theta
    rewards: Array  # (T, B, horizon), after each action; float64
    mask: Array  # (T, B, horizon), bool: whether the step was taken

    def __repr__(self) -> str:
        shapes = f"observations {self.observations.shape}, actions {self.actions.shape}"
        return f"Trajectories({shapes}, {self.mask.sum()} of {self.mask.size} steps)"

    def returns(self) -> Array:
        """The mean over a task's trajectories of the sum of their rewards: (T,).

        Rewards are not discounted, and trajectories without a step do not count: a task
        that has no others gets NaN.
        """
        # Contiguous: NumPy else adds in another order where there is one task only.
        rewards = np.ascontiguousarray(self.rewards).sum(axis=(1, 2))
        return rewards / self.mask.any(axis=2).sum(axis=1)

    def first(self, steps: int) -> "Trajectories":
        """The first trajectories of each task that have `steps` steps together.

        The trajectory that reaches this number is kept whole. Later ones become empty:
        all their steps are masked.
        """
        steps_before = self.mask.sum(axis=2).cumsum(axis=1) - self.mask.sum(axis=2)
        trajectories = Trajectories(*map(np.copy, self))
        for array in trajectories:
            array[steps_before >= steps] = 0
        return trajectories


# [alg3-line5]
def roll_out(
    policy: Actor,
    environment: Environment,
    thetas: Array,
    tasks: Array,
    noise: Array,
    start_noise: Array | None = None,
) -> Trajectories:
    """B trajectories in each of T tasks, in task i by the policy of theta_i.

    policy: a `GaussianPolicy`, or any object with its method `act`. thetas: (T, P),
    float32 or float64. tasks: (T, ...), from `environment.draw`. noise: standard normal
    numbers, (T, B, horizon, A), of the dtype of thetas. start_noise: standard normal
    numbers too, (T, B, D), where the environment starts at random; else None.

    Raises ValueError or TypeError naming the argument that does not fit.

    >>> import tinymaml as tm
    >>> from tinymaml.tasks.navigation import Navigation
    >>> rng, navigation = np.random.default_rng(0), Navigation()
    >>> policy = tm.GaussianPolicy(tm.MLP([2, 8, 2]), actions=2, backend="numpy")
    >>> thetas = np.stack([policy.init(rng, "float64")] * 3)  # of three tasks
    >>> noise = rng.standard_normal((3, 4, navigation.horizon, 2))
    >>> roll_out(policy, navigation, thetas, navigation.draw(rng, (3,)), noise)
    Trajectories(observations (3, 4, 100, 2), actions ..., 1200 of 1200 steps)
    """
    _check_arguments(policy, environment, thetas, tasks, noise)
    count, trajectories, horizon, _ = noise.shape
    if start_noise is None:
        start_noise = np.zeros((count, trajectories, 0))
    check_arrays(start_noise=start_noise)
    shape, came = (count, trajectories, environment.start_noise), start_noise.shape
    check_that(came == shape, "start_noise", f"shape {shape}", came)
    # Time is the first axis until all steps are taken, so that each step is contiguous.
    shape = (horizon, count, trajectories)
    observations = np.zeros((*shape, environment.observations), thetas.dtype)
    actions = np.zeros((*shape, policy.actions), thetas.dtype)
    rewards, mask = np.zeros(shape), np.zeros(shape, dtype=bool)
    states = environment.start(tasks, trajectories, start_noise)
    alive = np.ones(shape[1:], dtype=bool)
    for t in range(horizon):
        x = environment.observe(states, tasks).astype(thetas.dtype)
        action = policy.act(thetas, x, noise[:, :, t])
        states, reward, terminated = environment.step(states, action, tasks)
        observations[t], actions[t], rewards[t], mask[t] = x, action, reward, alive
        alive = alive & ~terminated
        if not alive.any():
            break
    # After its end a trajectory was still computed along with the others: erase that.
    for array in (observations, actions, rewards):
        array[~mask] = 0
    arrays = (observations, actions, rewards, mask)
    return Trajectories(*(np.moveaxis(array, 0, 2) for array in arrays))


# [/alg3-line5]


def _check_arguments(
    policy: Actor, environment: Environment, thetas: Array, tasks: Array, noise: Array
) -> None:
    """Check that policy, environment and arrays fit together."""
    check_arrays(thetas=thetas, noise=noise)
    came, n = policy.actions, environment.actions
    check_that(came == n, "policy", f"{n} actions, as the environment has", came)
    check_choice("thetas", thetas.dtype.name, ("float32", "float64"))
    fits = thetas.ndim == 2 and thetas.shape[1] == policy.size and len(thetas) > 0
    check_that(fits, "thetas", f"shape (tasks, {policy.size})", thetas.shape)
    count, horizon, actions = len(thetas), environment.horizon, policy.actions
    fits = noise.ndim == 4 and noise.shape == (count, noise.shape[1], horizon, actions)
    expected = "shape (tasks, trajectories, horizon, actions) ="
    shape = f"({count}, B, {horizon}, {actions})"
    check_that(fits, "noise", f"{expected} {shape}", noise.shape)
    check_sizes(trajectories=noise.shape[1])
    if noise.dtype != thetas.dtype:
        raise TypeError(f"noise: expected dtype {thetas.dtype}, got {noise.dtype}")
    check_that(len(tasks) == count, "tasks", f"{count} of them", len(tasks))
