"""Trajectories: what a policy does in an environment, as arrays with a mask.

With this file one runs T tasks times B trajectories, each under its task's own policy,
as one array: `roll_out` asks the policy once a step for all of them. Trajectories end
at different times; the arrays have the size of the horizon, and `mask` says which steps
were taken. All randomness is in `noise`, so the same noise gives the same bits.

Left out: processes and environments written elsewhere. Whatever has the methods of
`Environment` can be used.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np

from tinymaml.checks import check_arrays, check_sizes

Array = np.ndarray[Any, Any]


class Actor(Protocol):
    """What `roll_out` asks of a policy."""

    size: int
    actions: int

    def act(self, thetas: Array, x: Array, noise: Array) -> Array:
        """Actions (T, B, A) for thetas (T, P), x (T, B, O) and noise (T, B, A)."""


class Environment(Protocol):
    """The rules that T tasks times B trajectories run by, as functions of arrays.

    `tasks` is what makes tasks differ, with a leading task axis.
    """

    observations: int
    actions: int
    horizon: int

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """New tasks, with these leading axes."""

    def start(self, tasks: Array, trajectories: int) -> Array:
        """The states (T, B, ...) in which trajectories start."""

    def observe(self, states: Array, tasks: Array) -> Array:
        """What the agent sees of them: (T, B, observations)."""

    def step(
        self, states: Array, actions: Array, tasks: Array
    ) -> tuple[Array, Array, Array]:
        """New states, rewards (T, B), and which trajectories have ended (T, B)."""


class Trajectories(NamedTuple):
    """B trajectories for each of T tasks, at most H steps long.

    What stands behind the end of a trajectory is 0 and its mask is False.
    """

    observations: Array  # (T, B, H, O), dtype of theta: what the agent saw
    actions: Array  # (T, B, H, A), dtype of theta: what it then did
    rewards: Array  # (T, B, H), float64: what it was then paid
    mask: Array  # (T, B, H), bool: whether it came to that

    def returns(self) -> Array:
        """The mean over a task's trajectories of the sum of their rewards: (T,).

        Not discounted. A trajectory without a step is none.
        """
        return self.rewards.sum(axis=(1, 2)) / self.mask.any(axis=2).sum(axis=1)

    def first(self, steps: int) -> "Trajectories":
        """Of each task the first trajectories, until these have so many steps in all.

        The last of them is kept whole; of the others nothing is left.
        """
        before = self.mask.sum(axis=2).cumsum(axis=1) - self.mask.sum(axis=2)
        kept = (before < steps)[..., None]
        return Trajectories(
            np.where(kept[..., None], self.observations, 0),
            np.where(kept[..., None], self.actions, 0),
            np.where(kept, self.rewards, 0.0),
            self.mask & kept,
        )


# [alg3-line5]
def roll_out(
    policy: Actor,
    environment: Environment,
    thetas: Array,
    tasks: Array,
    noise: Array,
) -> Trajectories:
    """B trajectories in each of T tasks, task i under the policy of theta_i.

    thetas: (T, P), float32 or float64. tasks: (T, ...), what `environment.draw` makes.
    noise: (T, B, H, A), standard normal numbers, of the dtype of thetas. policy: a
    `GaussianPolicy`, or whatever has its method `act`.

    Raises ValueError or TypeError naming the argument that does not fit.
    """
    count, horizon = _check(policy, environment, thetas, tasks, noise)
    states = environment.start(tasks, count)
    seen, done = [], []
    rewards = np.zeros((horizon, *noise.shape[:2]))
    mask = np.zeros(rewards.shape, dtype=bool)
    going = np.ones(noise.shape[:2], dtype=bool)
    for t in range(horizon):
        x = environment.observe(states, tasks).astype(thetas.dtype)
        seen.append(x)
        done.append(policy.act(thetas, x, noise[:, :, t]))
        states, rewards[t], ended = environment.step(states, done[-1], tasks)
        mask[t] = going
        going = going & ~ended
        if not going.any():
            break
    return _trajectories(seen, done, rewards, mask)


# [/alg3-line5]


def _trajectories(
    seen: list[Array], done: list[Array], rewards: Array, mask: Array
) -> Trajectories:
    """Arrays with the time axis in its place, and zeros where nothing happened."""

    def whole(steps: list[Array]) -> Array:
        array = np.zeros((*mask.shape, steps[0].shape[-1]), steps[0].dtype)
        array[: len(steps)] = steps
        return np.moveaxis(np.where(mask[..., None], array, 0), 0, 2)

    paid = np.where(mask, rewards, 0.0)
    return Trajectories(
        whole(seen),
        whole(done),
        np.moveaxis(paid, 0, 2),
        np.moveaxis(mask, 0, 2),
    )


def _check(
    policy: Actor,
    environment: Environment,
    thetas: Array,
    tasks: Array,
    noise: Array,
) -> tuple[int, int]:
    """The numbers of trajectories and steps, if policy and arrays fit."""
    check_arrays(thetas=thetas, noise=noise)
    if policy.actions != environment.actions:
        raise ValueError(
            f"policy: expected {environment.actions} actions, as the environment has, "
            f"got {policy.actions}"
        )
    if thetas.ndim != 2 or thetas.shape[1] != policy.size or len(thetas) == 0:
        raise ValueError(
            f"thetas: expected shape (tasks, {policy.size}), got {thetas.shape}"
        )
    expected = (len(thetas), environment.horizon, policy.actions)
    if noise.ndim != 4 or (noise.shape[0], *noise.shape[2:]) != expected:
        raise ValueError(
            f"noise: expected shape (tasks, trajectories, horizon, actions) = "
            f"({expected[0]}, B, {expected[1]}, {expected[2]}), got {noise.shape}"
        )
    check_sizes(trajectories=noise.shape[1])
    if noise.dtype != thetas.dtype:
        raise TypeError(f"noise: expected dtype {thetas.dtype}, got {noise.dtype}")
    if len(tasks) != len(thetas):
        raise ValueError(f"tasks: expected {len(thetas)} of them, got {len(tasks)}")
    return noise.shape[1], noise.shape[2]
