"""From rewards to advantages: how much better an action was than what was expected.

With this file the rewards of trajectories become the weights that equation (4)'s
gradient gives to log-probabilities: discounted sums, minus a baseline fitted to these
trajectories, then standardised within each task. Arrays are (T, B, H). Where a function
takes a mask of the steps that were taken, a step that was not contributes nothing;
`discounted_sums` takes none and wants zeros there, which `advantages` sees to.

Left out: learned value functions. The baseline is linear in a few features, fitted
afresh for each task and step on the very trajectories it is then subtracted from, as in
the authors' code.
"""

from typing import Any

import numpy as np

from tinymaml.checks import check_fractions
from tinymaml.rl.rollouts import Trajectories

Array = np.ndarray[Any, Any]
RIDGE = 1e-5
CLIP = 10.0  # of observations, in the features
PERIOD = 100.0  # steps: the unit of time in the features


def discounted_sums(rewards: Array, discount: float) -> Array:
    """sum_k discount^k r_{t+k} up to the end of the trajectory, for each t.

    rewards: (..., H), 0 behind a trajectory's end.

    >>> discounted_sums(np.array([1.0, 2.0, 4.0]), discount=0.5)
    array([3., 4., 4.])
    """
    sums = np.zeros_like(rewards)
    total = np.zeros_like(rewards[..., 0])
    for t in reversed(range(rewards.shape[-1])):
        total = rewards[..., t] + discount * total
        sums[..., t] = total
    return sums


def features(observations: Array) -> Array:
    """[x, x^2, t, t^2, t^3, 1], x clipped to +-10, t in hundreds of steps.

    observations: (T, B, H, O), any floats; returns (T, B, H, 2 O + 4), float64.

    >>> features(np.full((1, 1, 2, 1), 3.0))[0, 0, 1]
    array([3.e+00, 9.e+00, 1.e-02, 1.e-04, 1.e-06, 1.e+00])
    """
    x = np.clip(observations.astype(np.float64), -CLIP, CLIP)
    t = np.broadcast_to(np.arange(x.shape[2])[:, None] / PERIOD, (*x.shape[:3], 1))
    return np.concatenate([x, x**2, t, t**2, t**3, np.ones_like(t)], axis=-1)


def linear_baseline(observations: Array, returns: Array, mask: Array) -> Array:
    """What the features say a return will be: ridge regression in each task, (T, B, H).

    returns: (T, B, H), what to fit; observations: (T, B, H, O). Steps that were not
    taken neither count in the fit nor get a value: theirs is 0.
    """
    tasks = len(mask)
    rows = np.where(mask[..., None], features(observations), 0.0)
    rows = rows.reshape(tasks, -1, rows.shape[-1])
    columns = rows.transpose(0, 2, 1)
    normal = columns @ rows + RIDGE * np.eye(rows.shape[-1])
    wanted = columns @ np.where(mask, returns, 0.0).reshape(tasks, -1, 1)
    return (rows @ np.linalg.solve(normal, wanted)).reshape(mask.shape)


def gae(
    rewards: Array, values: Array, mask: Array, discount: float, decay: float
) -> Array:
    """Generalised advantage estimates, sum_k (discount decay)^k delta_{t+k}.

    delta_t = r_t + discount V_{t+1} - V_t, where V is 0 behind the end of a trajectory,
    also where only the horizon ended it. decay is lambda: with 1 the estimate is the
    return minus the baseline, with 0 it is delta. All arrays: (T, B, H).

    Source: Schulman et al., High-dimensional continuous control using generalized
    advantage estimation, ICLR 2016, arXiv:1506.02438, equation (16).
    """
    values = np.where(mask, values, 0.0)
    following = np.concatenate([values[..., 1:], np.zeros_like(values[..., :1])], -1)
    deltas = np.where(mask, rewards + discount * following - values, 0.0)
    return np.where(mask, discounted_sums(deltas, discount * decay), 0.0)


def standardise(advantages: Array, mask: Array) -> Array:
    """Mean 0 and deviation 1 over the steps of each task; 0 elsewhere: (T, B, H).

    >>> mask = np.array([[[True, True, False]]])
    >>> standardise(np.array([[[1.0, 3.0, 7.0]]]), mask).round(6)
    array([[[-1.,  1.,  0.]]])
    """
    axes = (1, 2)
    count = mask.sum(axis=axes, keepdims=True)
    mean = np.where(mask, advantages, 0.0).sum(axis=axes, keepdims=True) / count
    centred = np.where(mask, advantages - mean, 0.0)
    deviation = np.sqrt(np.square(centred).sum(axis=axes, keepdims=True) / count)
    return centred / (deviation + 1e-8)


def advantages(
    trajectories: Trajectories, discount: float = 0.99, decay: float = 1.0
) -> Array:
    """All of the above in a row: standardised advantages (T, B, H), float64.

    discount: in [0, 1]; decay: GAE's lambda, in [0, 1].

    Raises ValueError when there are no trajectories, a number is out of its range, or a
    reward is not finite; TypeError when a number is none.
    """
    observations, _, rewards, mask = trajectories
    rewards = np.where(mask, rewards, 0.0)
    check_fractions(discount=discount, decay=decay)
    if rewards.ndim != 3 or not mask.any(axis=(1, 2)).all() or rewards.size == 0:
        raise ValueError(
            f"trajectories: expected at least one step in each task, got arrays of "
            f"shape {rewards.shape}"
        )
    if not np.isfinite(rewards).all():
        raise ValueError("rewards: expected finite numbers, got NaN or inf")
    returns = discounted_sums(rewards, discount)
    values = linear_baseline(observations, returns, mask)
    return standardise(gae(rewards, values, mask, discount, decay), mask)
