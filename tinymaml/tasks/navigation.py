"""2D navigation: the reinforcement-learning tasks of section 5.3, figure 4.

A task is a goal, uniform in the square [-0.5, 0.5]^2. A point starts at (0, 0). Its
action is a velocity, clipped to at most 0.1 along each axis in a step. The agent sees
the position of the point, but not the goal. The reward after each step is minus the
distance to the goal. A trajectory ends when the point is within 0.01 of the goal along
both axes, or after 100 steps.

All trajectories of all tasks move as one array. Only the goals are random here: the
noise of actions is an argument of `rollouts.roll_out`.

Deviations from the paper, as in the authors' code: the reward is minus the distance,
where the paper has its square (`reward="squared"`). Actions are scaled so that 1 is the
largest move, which the paper does not mention.
"""

import numpy as np

from tinymaml.checks import (
    Array,
    check_arrays,
    check_choice,
    check_flags,
    check_generator,
    check_sizes,
    check_that,
    whole_number,
    whole_numbers,
)

GOALS = (-0.5, 0.5)  # lowest and highest coordinate of a goal
LARGEST_MOVE = 0.1  # along each axis, in one step
NEAR = 0.01  # distance from the goal along each axis at which a trajectory ends
HORIZON = 100  # steps
REWARDS = ("distance", "squared")


class Navigation:
    """The environment of 2D navigation; the state of a trajectory is its position.

    reward: "distance" as in the authors' code, or "squared" as in the paper.
    horizon: steps of the longest trajectory, at least 1.
    goal_visible: whether observations include the goal, as for the oracle of figure 4.

    Raises ValueError or TypeError naming the argument.

    >>> navigation = Navigation()
    >>> goals = np.array([[0.3, 0.4]])                        # one task
    >>> positions = navigation.start(goals, trajectories=1)   # (1, 1, 2)
    >>> actions = np.array([[[3.0, 4.0]]])                    # clipped to the largest
    >>> positions, rewards, terminated = navigation.step(positions, actions, goals)
    >>> positions, rewards.round(4), terminated
    (array([[[0.1, 0.1]]]), array([[-0.3606]]), array([[False]]))
    """

    actions, start_noise = 2, 0

    def __init__(
        self,
        reward: str = "distance",
        horizon: int = HORIZON,
        goal_visible: bool = False,
    ) -> None:
        check_flags(goal_visible=goal_visible)
        self.reward = check_choice("reward", reward, REWARDS)
        self.horizon = whole_number("horizon", horizon)
        self.goal_visible = goal_visible
        self.observations = 4 if goal_visible else 2

    def __repr__(self) -> str:
        return (
            f"Navigation(reward={self.reward!r}, horizon={self.horizon}, "
            f"goal_visible={self.goal_visible})"
        )

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """New goals, uniform in the square: (*shape, 2), float64.

        The shape (T,) gives each of T tasks one goal. The shape (T, B) gives each of
        the B trajectories of a task a goal of its own.
        """
        check_generator(rng)
        check_that(whole_numbers("shape", shape), "shape", "at least one goal", shape)
        return rng.uniform(*GOALS, (*shape, 2))

    def start(self, goals: Array, trajectories: int, noise: object = None) -> Array:
        """The initial positions of trajectories, all (0, 0): (T, B, 2).

        noise: not used, because all trajectories start alike.
        """
        check_sizes(trajectories=trajectories)
        fits = self._of_trajectories(goals).shape[1] in (1, trajectories)
        expected = f"one a task or one for each of {trajectories} trajectories"
        check_that(fits, "goals", expected, f"shape {goals.shape}")
        return np.zeros((len(goals), trajectories, 2))

    def observe(self, positions: Array, goals: Array) -> Array:
        """The positions (T, B, 2); if the goal is visible, (T, B, 4) with the goals."""
        if not self.goal_visible:
            return positions
        goals = np.broadcast_to(self._of_trajectories(goals), positions.shape)
        return np.concatenate([positions, goals], axis=-1)

    def step(
        self, positions: Array, actions: Array, goals: Array
    ) -> tuple[Array, Array, Array]:
        """Move: new positions (T, B, 2), rewards (T, B), and who is at the goal (T, B).

        actions: (T, B, 2). 1 is the largest move, and larger actions are clipped to it.
        """
        fits = actions.shape == positions.shape
        check_that(fits, "actions", f"shape {positions.shape}", actions.shape)
        positions = positions + LARGEST_MOVE * np.clip(actions, -1.0, 1.0)
        difference = positions - self._of_trajectories(goals)
        squared = np.square(difference).sum(axis=-1)
        rewards = -squared if self.reward == "squared" else -np.sqrt(squared)
        return positions, rewards, (np.abs(difference) < NEAR).all(axis=-1)

    def _of_trajectories(self, goals: Array) -> Array:
        """Goals (T, 2) or (T, B, 2) with an axis for trajectories: (T, 1 or B, 2)."""
        check_arrays(goals=goals)
        fits = goals.ndim in (2, 3) and goals.shape[-1] == 2 and goals.size > 0
        expected = "shape (tasks, 2) or (tasks, trajectories, 2)"
        check_that(fits, "goals", expected, goals.shape)
        return goals[:, None] if goals.ndim == 2 else goals
