"""2D navigation: the reinforcement-learning tasks of section 5.3, figure 4.

A task is a goal, uniform in the square [-0.5, 0.5]^2. A point starts at (0, 0) and
moves by an action a step, at most 0.1 along each axis; the agent sees where the point
is and not where the goal is. After each move it is paid minus its distance to the goal.
A trajectory ends within 0.01 of the goal along both axes, or after 100 steps.

All tasks times all trajectories move as one array, and nothing here is random but the
goals: noise is an argument of `trajectories.roll_out`.

Deviations of the authors' code from the paper, followed here: the reward is minus the
distance, where the paper says its square (`reward="squared"`), and actions are rescaled
from [-1, 1] before they are clipped, of which the paper does not speak.
"""

from typing import Any

import numpy as np

from tinymaml.checks import check_arrays, check_sizes

GOALS = (-0.5, 0.5)  # length units, along each axis
LARGEST_MOVE = 0.1  # along each axis, in one step
NEAR = 0.01  # of the goal, along each axis
HORIZON = 100  # steps
REWARDS = ("distance", "squared")
Array = np.ndarray[Any, Any]


class Navigation:
    """The rules of 2D navigation; the state of a trajectory is its position.

    reward: "distance" as in the authors' code, or "squared" as in the paper.
    horizon: steps of the longest trajectory, at least 1.
    told: whether the agent sees the goal too, as the oracle of figure 4 does.

    Raises ValueError or TypeError naming the argument.

    >>> rules = Navigation()
    >>> goals = np.array([[0.3, 0.4]])                   # one task
    >>> positions = rules.start(goals, trajectories=1)   # (1, 1, 2)
    >>> full_speed = np.array([[[3.0, 4.0]]])            # clipped to 1, that is 0.1
    >>> positions, rewards, done = rules.step(positions, full_speed, goals)
    >>> positions, rewards.round(4), done
    (array([[[0.1, 0.1]]]), array([[-0.3606]]), array([[False]]))
    """

    actions = 2

    def __init__(
        self, reward: str = "distance", horizon: int = HORIZON, told: bool = False
    ) -> None:
        if reward not in REWARDS:
            raise ValueError(
                f"reward: expected one of {', '.join(REWARDS)}, got {reward!r}"
            )
        check_sizes(horizon=horizon)
        if not isinstance(told, bool):
            raise TypeError(f"told: expected True or False, got {told!r}")
        self.reward = reward
        self.horizon = int(horizon)
        self.told = told
        self.observations = 4 if told else 2

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """New goals, uniform in the square: (*shape, 2), float64.

        The shape (T,) is one goal for each of T tasks; (T, B) is one for each of B
        trajectories of each.
        """
        if not shape or any(n < 1 for n in shape):
            raise ValueError(f"shape: expected at least one goal, got {shape}")
        return rng.uniform(*GOALS, (*shape, 2))

    def start(self, goals: Array, trajectories: int) -> Array:
        """The positions in which trajectories start, all (0, 0): (T, B, 2)."""
        check_sizes(trajectories=trajectories)
        spread = self._spread(goals)
        if spread.shape[1] not in (1, trajectories):
            raise ValueError(
                f"goals: expected one a task or one for each of {trajectories} "
                f"trajectories, got shape {goals.shape}"
            )
        return np.zeros((len(goals), trajectories, 2))

    def observe(self, positions: Array, goals: Array) -> Array:
        """What the agent sees: the position (T, B, 2); told, the goal behind it."""
        if not self.told:
            return positions
        seen = np.broadcast_to(self._spread(goals), positions.shape)
        return np.concatenate([positions, seen], axis=-1)

    def step(
        self, positions: Array, actions: Array, goals: Array
    ) -> tuple[Array, Array, Array]:
        """Move: the new positions (T, B, 2), rewards (T, B) and whether it is over.

        actions (T, B, 2): 1 is the largest move, and what is beyond is clipped to it.
        """
        if actions.shape != positions.shape:
            raise ValueError(
                f"actions: expected shape {positions.shape}, got {actions.shape}"
            )
        positions = positions + LARGEST_MOVE * np.clip(actions, -1.0, 1.0)
        away = positions - self._spread(goals)
        squared = np.square(away).sum(axis=-1)
        rewards = -squared if self.reward == "squared" else -np.sqrt(squared)
        return positions, rewards, (np.abs(away) < NEAR).all(axis=-1)

    def _spread(self, goals: Array) -> Array:
        """Goals (T, 2) or (T, B, 2) as (T, 1 or B, 2)."""
        check_arrays(goals=goals)
        if goals.ndim not in (2, 3) or goals.shape[-1] != 2 or goals.size == 0:
            raise ValueError(
                f"goals: expected shape (tasks, 2) or (tasks, trajectories, 2), got "
                f"{goals.shape}"
            )
        return goals[:, None] if goals.ndim == 2 else goals
