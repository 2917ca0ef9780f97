"""Returns, baseline and advantages, compared with sums that are written out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinymaml.rl.advantages import (
    advantages,
    discounted_sums,
    features,
    gae,
    linear_baseline,
    standardise,
)
from tinymaml.rl.rollouts import Trajectories


def random_trajectories(seed=0, tasks=2, count=3, horizon=5):
    """Trajectories of random lengths, with zeros after their ends."""
    rng = np.random.default_rng(seed)
    shape = (tasks, count, horizon)
    lengths = rng.integers(1, horizon + 1, shape[:2])
    mask = np.arange(horizon) < lengths[..., None]
    rewards = np.where(mask, rng.standard_normal(shape), 0.0)
    x, actions = np.where(mask[..., None], rng.standard_normal((2, *shape, 2)), 0.0)
    return Trajectories(x, actions, rewards, mask)


def each_trajectory(trajectories):
    """Task, index and length of each trajectory."""
    for i, b in np.ndindex(trajectories.mask.shape[:2]):
        yield i, b, int(trajectories.mask[i, b].sum())


@given(st.integers(0, 1000), st.floats(0, 1))
def test_discounted_sums_are_sums(seed, discount):
    trajectories = random_trajectories(seed)
    sums = discounted_sums(trajectories.rewards, discount)
    for i, b, n in each_trajectory(trajectories):
        for t in range(n):
            direct = sum(
                discount ** (k - t) * trajectories.rewards[i, b, k] for k in range(t, n)
            )
            assert sums[i, b, t] == pytest.approx(direct, abs=1e-12)


@pytest.mark.parametrize("dtype", ["int64", "bool", "float32", "float64"])
def test_discounted_sums_of_whole_numbers_are_not_cut_off(dtype):
    sums = discounted_sums(np.ones(3, dtype), 0.5)
    assert sums.tolist() == [1.75, 1.5, 1.0]
    assert sums.dtype == ("float32" if dtype == "float32" else "float64")


@given(st.integers(0, 1000), st.floats(0, 1), st.floats(0, 1))
def test_gae_is_the_direct_sum(seed, discount, decay):
    trajectories = random_trajectories(seed)
    values = np.random.default_rng(seed).standard_normal(trajectories.mask.shape)
    ours = gae(trajectories.rewards, values, trajectories.mask, discount, decay)
    assert (ours[~trajectories.mask] == 0).all()
    for i, b, n in each_trajectory(trajectories):
        v = [*values[i, b, :n], 0.0]
        r = trajectories.rewards[i, b]
        delta = [r[t] + discount * v[t + 1] - v[t] for t in range(n)]
        for t in range(n):
            direct = sum((discount * decay) ** (k - t) * delta[k] for k in range(t, n))
            assert ours[i, b, t] == pytest.approx(direct, abs=1e-12)


def test_gae_with_decay_1_is_the_return_minus_the_baseline():
    trajectories = random_trajectories()
    values = np.random.default_rng(1).standard_normal(trajectories.mask.shape)
    ours = gae(trajectories.rewards, values, trajectories.mask, 0.9, 1.0)
    expected = discounted_sums(trajectories.rewards, 0.9) - values
    np.testing.assert_allclose(
        ours[trajectories.mask], expected[trajectories.mask], atol=1e-12
    )


def test_features_by_hand():
    x = np.array([[[[2.0, -30.0], [0.5, 12.0]]]])
    first, second = features(x)[0, 0]
    t = 0.01
    np.testing.assert_allclose(first, [2, -10, 4, 100, 0, 0, 0, 1])
    np.testing.assert_allclose(second, [0.5, 10, 0.25, 100, t, t**2, t**3, 1])


def test_baseline_is_ridge_regression_of_each_tasks_own_steps():
    trajectories = random_trajectories(count=6, horizon=9)
    targets = np.random.default_rng(2).standard_normal(trajectories.mask.shape)
    ours = linear_baseline(trajectories.observations, targets, trajectories.mask)
    assert (ours[~trajectories.mask] == 0).all()
    for i, mask in enumerate(trajectories.mask):
        x = features(trajectories.observations)[i][mask]
        size = x.shape[1]
        # the same as plain least squares, with one more equation for each penalty
        augmented = np.concatenate([x, np.sqrt(1e-5) * np.eye(size)])
        y = np.concatenate([targets[i][mask], np.zeros(size)])
        weights, *_ = np.linalg.lstsq(augmented, y, rcond=None)
        np.testing.assert_allclose(ours[i][mask], x @ weights, atol=1e-7)


def test_baseline_finds_returns_that_are_linear_in_the_features():
    trajectories = random_trajectories(count=20, horizon=30)
    x = trajectories.observations
    t = np.arange(30) / 100
    targets = 3 - 2 * x[..., 0] + x[..., 1] ** 2 + t - t**3
    ours = linear_baseline(x, targets, trajectories.mask)
    np.testing.assert_allclose(
        ours[trajectories.mask], targets[trajectories.mask], atol=1e-3
    )


@given(st.integers(0, 1000))
def test_standardised_advantages_have_mean_0_and_standard_deviation_1(seed):
    trajectories = random_trajectories(seed, count=4)
    raw = 5 + 3 * np.random.default_rng(seed).standard_normal(trajectories.mask.shape)
    ours = standardise(raw, trajectories.mask)
    assert (ours[~trajectories.mask] == 0).all()
    for task, mask in zip(ours, trajectories.mask, strict=True):
        assert task[mask].mean() == pytest.approx(0, abs=1e-12)
        assert task[mask].std() == pytest.approx(1, rel=1e-6)


def test_equal_advantages_become_0():
    mask = np.ones((1, 2, 3), bool)
    assert (standardise(np.full(mask.shape, 7.0), mask) == 0).all()


def test_what_comes_after_the_end_of_a_trajectory_does_not_matter():
    trajectories = random_trajectories(count=5)
    mask = trajectories.mask
    garbled = trajectories._replace(
        observations=np.where(mask[..., None], trajectories.observations, 99.0),
        rewards=np.where(mask, trajectories.rewards, -77.0),
    )
    np.testing.assert_array_equal(advantages(trajectories), advantages(garbled))
    longer = Trajectories(
        *(np.pad(a, [(0, 0), (0, 0), (0, 4), (0, 0)][: a.ndim]) for a in trajectories)
    )
    np.testing.assert_allclose(
        advantages(longer)[:, :, :5], advantages(trajectories), atol=1e-12
    )


def test_advantages_combine_returns_baseline_gae_and_standardisation():
    trajectories = random_trajectories(count=5)
    x, _, rewards, mask = trajectories
    sums = discounted_sums(rewards, 0.9)
    values = linear_baseline(x, sums, mask)
    raw = gae(rewards, values, mask, 0.9, 0.5)
    np.testing.assert_array_equal(
        advantages(trajectories, 0.9, 0.5), standardise(raw, mask)
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rewards_that_are_not_finite_are_refused(bad):
    trajectories = random_trajectories()
    trajectories.rewards[1, 0, 0] = bad
    with pytest.raises(ValueError, match="^rewards: expected finite numbers"):
        advantages(trajectories)


def test_a_task_without_steps_is_refused():
    trajectories = random_trajectories()
    only_task_0 = trajectories.mask & (np.arange(2) == 0)[:, None, None]
    for empty in (
        trajectories._replace(mask=only_task_0),
        Trajectories(*(a[:, :0] for a in trajectories)),
        Trajectories(*(a[:, :, :0] for a in trajectories)),
        Trajectories(*(a[:0] for a in trajectories)),
    ):
        with pytest.raises(ValueError, match="^trajectories: expected at least one"):
            advantages(empty)
    for name in ("discount", "decay"):
        with pytest.raises(ValueError, match=f"^{name}: expected a number in"):
            advantages(trajectories, **{name: np.nan})
        with pytest.raises(TypeError, match=f"^{name}: expected a number, got None"):
            advantages(trajectories, **{name: None})


def test_a_task_without_steps_has_advantages_0():
    mask = np.array([[[True, True]], [[False, False]]])
    assert (standardise(np.array([[[1.0, 3.0]], [[5.0, 6.0]]]), mask)[1] == 0).all()
