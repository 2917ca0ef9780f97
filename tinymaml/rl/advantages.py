"""From rewards to advantages: how much better an action was than the policy's average.

Equation (4)'s gradient weighs the log-probability of each action with an advantage.
`advantages` computes them from sampled trajectories: discounted returns, minus a
baseline that predicts them, standardised within each task. The other functions are its
parts. Arrays are (T, B, horizon), for T tasks and B trajectories. A mask is True where
a step was taken; steps that were not taken do not influence any result.

Left out: learned value functions. The baseline is linear in a few features. As in the
authors' code, it is fitted anew for each task and inner step, to the same trajectories
that it is then subtracted from.
"""

import numpy as np

from tinymaml.checks import Array, check_finite, check_fractions, check_that
from tinymaml.rl.rollouts import Trajectories

RIDGE = 1e-5  # penalty on the squared weights of the baseline
CLIP = 10.0  # largest size of an observation in the features
TIME_UNIT = 100.0  # steps


def discounted_sums(rewards: Array, discount: float) -> Array:
    """The discounted return from each step t on: sum_i discount^i r_{t+i}.

    rewards: (..., horizon), which must be 0 after the end of a trajectory.

    >>> discounted_sums(np.array([1.0, 2.0, 4.0]), discount=0.5)
    array([3., 4., 4.])
    """
    sums = rewards * 1.0
    total = np.zeros_like(sums[..., 0])
    for t in reversed(range(rewards.shape[-1])):
        sums[..., t] = total = rewards[..., t] + discount * total
    return sums


def features(observations: Array) -> Array:
    """The baseline's features [x, x^2, t, t^2, t^3, 1] of observations x at time t.

    x is clipped to +-10, and t is counted in hundreds of steps. observations:
    (T, B, horizon, O), of any float dtype; returns (T, B, horizon, 2 O + 4), float64.

    >>> features(np.full((1, 1, 2, 1), 3.0))[0, 0, 1]
    array([3.e+00, 9.e+00, 1.e-02, 1.e-04, 1.e-06, 1.e+00])
    """
    x = np.clip(observations.astype(np.float64), -CLIP, CLIP)
    t = np.broadcast_to(np.arange(x.shape[2])[:, None] / TIME_UNIT, (*x.shape[:3], 1))
    return np.concatenate([x, x**2, t, t**2, t**3, np.ones_like(t)], axis=-1)


def linear_baseline(observations: Array, returns: Array, mask: Array) -> Array:
    """The returns that ridge regression on the features predicts: (T, B, horizon).

    One regression is fitted for each task. observations: (T, B, horizon, O); returns:
    (T, B, horizon). The prediction is 0 for steps that were not taken.
    """
    # (T, B, horizon, features) -> (T, B * horizon, features): the design matrices
    x = np.where(mask[..., None], features(observations), 0.0)
    x = x.reshape(len(mask), -1, x.shape[-1])
    transposed = x.transpose(0, 2, 1)
    normal_matrix = transposed @ x + RIDGE * np.eye(x.shape[-1])
    moments = transposed @ np.where(mask, returns, 0.0).reshape(len(mask), -1, 1)
    return (x @ np.linalg.solve(normal_matrix, moments)).reshape(mask.shape)


def gae(
    rewards: Array, values: Array, mask: Array, discount: float, decay: float
) -> Array:
    """Generalised advantage estimates (GAE): sum_i (discount decay)^i delta_{t+i}.

    delta_t = r_t + discount V_{t+1} - V_t. V is 0 after the last step of a trajectory,
    even if the trajectory only ended because it reached the horizon. `decay` is GAE's
    lambda: with 1 the estimate is the return minus the baseline, with 0 it is delta.
    All arrays are (T, B, horizon); `values` is V.

    Source: Schulman et al., High-dimensional continuous control using generalized
    advantage estimation, ICLR 2016, arXiv:1506.02438, equation (16).
    """
    values = np.where(mask, values, 0.0)
    next_values = np.concatenate([values[..., 1:], np.zeros_like(values[..., :1])], -1)
    deltas = np.where(mask, rewards + discount * next_values - values, 0.0)
    return np.where(mask, discounted_sums(deltas, discount * decay), 0.0)


def standardise(advantages: Array, mask: Array) -> Array:
    """Advantages with mean 0 and standard deviation 1 in each task: (T, B, horizon).

    Steps that were not taken get 0.

    >>> mask = np.array([[[True, True, False]]])
    >>> standardise(np.array([[[1.0, 3.0, 7.0]]]), mask).round(6)
    array([[[-1.,  1.,  0.]]])
    """
    axes = (1, 2)
    count = np.maximum(mask.sum(axis=axes, keepdims=True), 1)
    mean = np.where(mask, advantages, 0.0).sum(axis=axes, keepdims=True) / count
    centred = np.where(mask, advantages - mean, 0.0)
    std = np.sqrt(np.square(centred).sum(axis=axes, keepdims=True) / count)
    return centred / (std + 1e-8)


def advantages(
    trajectories: Trajectories, discount: float = 0.99, decay: float = 1.0
) -> Array:
    """The standardised advantage of each action: (T, B, horizon), float64.

    discount: of rewards, in [0, 1]. decay: GAE's lambda, in [0, 1].

    Raises ValueError when a task has no step, a setting is out of its range or a reward
    is not finite, and TypeError when a setting is not a number.
    """
    observations, _, rewards, mask = trajectories
    rewards = np.where(mask, rewards, 0.0)
    check_fractions(discount=discount, decay=decay)
    fits = rewards.ndim == 3 and mask.any(axis=(1, 2)).all() and rewards.size > 0
    came = f"arrays of shape {rewards.shape}"
    check_that(fits, "trajectories", "at least one step in each task", came)
    check_finite(rewards=rewards)
    values = linear_baseline(observations, discounted_sums(rewards, discount), mask)
    return standardise(gae(rewards, values, mask, discount, decay), mask)
