"""Returns, baseline and advantages against sums written out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinymaml.rl import advantages as returns
from tinymaml.rl.rollouts import Trajectories


def drawn(seed=0, tasks=2, trajectories=3, horizon=5):
    """Trajectories of random lengths, zeros behind their ends."""
    rng = np.random.default_rng(seed)
    shape = (tasks, trajectories, horizon)
    lengths = rng.integers(1, horizon + 1, shape[:2])
    mask = np.arange(horizon) < lengths[..., None]
    rewards = np.where(mask, rng.standard_normal(shape), 0.0)
    x, actions = np.where(mask[..., None], rng.standard_normal((2, *shape, 2)), 0.0)
    return Trajectories(x, actions, rewards, mask)


def each_trajectory(found):
    """(task, trajectory, length) of all."""
    for i, b in np.ndindex(found.mask.shape[:2]):
        yield i, b, int(found.mask[i, b].sum())


@given(st.integers(0, 1000), st.floats(0, 1))
def test_discounted_sums_are_sums(seed, discount):
    found = drawn(seed)
    sums = returns.discounted_sums(found.rewards, discount)
    for i, b, n in each_trajectory(found):
        for t in range(n):
            direct = sum(
                discount ** (k - t) * found.rewards[i, b, k] for k in range(t, n)
            )
            assert sums[i, b, t] == pytest.approx(direct, abs=1e-12)


@given(st.integers(0, 1000), st.floats(0, 1), st.floats(0, 1))
def test_gae_is_the_direct_sum(seed, discount, decay):
    found = drawn(seed)
    values = np.random.default_rng(seed).standard_normal(found.mask.shape)
    ours = returns.gae(found.rewards, values, found.mask, discount, decay)
    assert (ours[~found.mask] == 0).all()
    for i, b, n in each_trajectory(found):
        v = [*values[i, b, :n], 0.0]
        r = found.rewards[i, b]
        delta = [r[t] + discount * v[t + 1] - v[t] for t in range(n)]
        for t in range(n):
            direct = sum((discount * decay) ** (k - t) * delta[k] for k in range(t, n))
            assert ours[i, b, t] == pytest.approx(direct, abs=1e-12)


def test_gae_with_decay_1_is_the_return_minus_the_baseline():
    found = drawn()
    values = np.random.default_rng(1).standard_normal(found.mask.shape)
    ours = returns.gae(found.rewards, values, found.mask, 0.9, 1.0)
    expected = returns.discounted_sums(found.rewards, 0.9) - values
    np.testing.assert_allclose(ours[found.mask], expected[found.mask], atol=1e-12)


def test_features_by_hand():
    x = np.array([[[[2.0, -30.0], [0.5, 12.0]]]])
    rows = returns.features(x)[0, 0]
    t = 0.01
    np.testing.assert_allclose(rows[0], [2, -10, 4, 100, 0, 0, 0, 1])
    np.testing.assert_allclose(rows[1], [0.5, 10, 0.25, 100, t, t**2, t**3, 1])


def test_baseline_is_ridge_regression_of_each_tasks_own_steps():
    found = drawn(trajectories=6, horizon=9)
    wanted = np.random.default_rng(2).standard_normal(found.mask.shape)
    ours = returns.linear_baseline(found.observations, wanted, found.mask)
    assert (ours[~found.mask] == 0).all()
    for i, mask in enumerate(found.mask):
        rows = returns.features(found.observations)[i][mask]
        size = rows.shape[1]
        # the same by least squares, with a row for each penalty
        augmented = np.concatenate([rows, np.sqrt(1e-5) * np.eye(size)])
        targets = np.concatenate([wanted[i][mask], np.zeros(size)])
        fitted, *_ = np.linalg.lstsq(augmented, targets, rcond=None)
        np.testing.assert_allclose(ours[i][mask], rows @ fitted, atol=1e-7)


def test_baseline_finds_what_is_linear_in_the_features():
    found = drawn(trajectories=20, horizon=30)
    x = found.observations
    t = np.arange(30) / 100
    wanted = 3 - 2 * x[..., 0] + x[..., 1] ** 2 + t - t**3
    ours = returns.linear_baseline(x, wanted, found.mask)
    np.testing.assert_allclose(ours[found.mask], wanted[found.mask], atol=1e-3)


@given(st.integers(0, 1000))
def test_standardised_advantages_have_mean_0_and_deviation_1_in_each_task(seed):
    found = drawn(seed, trajectories=4)
    raw = 5 + 3 * np.random.default_rng(seed).standard_normal(found.mask.shape)
    ours = returns.standardise(raw, found.mask)
    assert (ours[~found.mask] == 0).all()
    for task, mask in zip(ours, found.mask, strict=True):
        assert task[mask].mean() == pytest.approx(0, abs=1e-12)
        assert task[mask].std() == pytest.approx(1, rel=1e-6)


def test_equal_advantages_become_0():
    mask = np.ones((1, 2, 3), bool)
    assert (returns.standardise(np.full(mask.shape, 7.0), mask) == 0).all()


def test_what_is_behind_the_end_of_a_trajectory_does_not_matter():
    found = drawn(trajectories=5)
    garbled = found._replace(
        observations=np.where(found.mask[..., None], found.observations, 99.0),
        rewards=np.where(found.mask, found.rewards, -77.0),
    )
    np.testing.assert_array_equal(
        returns.advantages(found), returns.advantages(garbled)
    )
    longer = Trajectories(
        *(np.pad(a, [(0, 0), (0, 0), (0, 4), (0, 0)][: a.ndim]) for a in found)
    )
    np.testing.assert_allclose(
        returns.advantages(longer)[:, :, :5], returns.advantages(found), atol=1e-12
    )


def test_advantages_are_all_of_it_in_a_row():
    found = drawn(trajectories=5)
    x, _, rewards, mask = found
    sums = returns.discounted_sums(rewards, 0.9)
    values = returns.linear_baseline(x, sums, mask)
    raw = returns.gae(rewards, values, mask, 0.9, 0.5)
    np.testing.assert_array_equal(
        returns.advantages(found, 0.9, 0.5), returns.standardise(raw, mask)
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rewards_that_are_not_finite_are_refused(bad):
    found = drawn()
    found.rewards[1, 0, 0] = bad
    with pytest.raises(ValueError, match="^rewards: expected finite numbers"):
        returns.advantages(found)


def test_a_task_without_steps_is_refused():
    found = drawn()
    for empty in (
        found._replace(mask=found.mask & (np.arange(2) == 0)[:, None, None]),
        Trajectories(*(a[:, :0] for a in found)),
        Trajectories(*(a[:, :, :0] for a in found)),
        Trajectories(*(a[:0] for a in found)),
    ):
        with pytest.raises(ValueError, match="^trajectories: expected at least one"):
            returns.advantages(empty)
    for name in ("discount", "decay"):
        with pytest.raises(ValueError, match=f"^{name}: expected a number in"):
            returns.advantages(found, **{name: np.nan})
        with pytest.raises(TypeError, match=f"^{name}: expected a number, got None"):
            returns.advantages(found, **{name: None})
