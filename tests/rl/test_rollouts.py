"""Roll-outs: a trajectory by hand, and what must hold of every trajectory."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.policy_problems import ConstantActor, walk
from tinymaml.rl.rollouts import Trajectories, roll_out
from tinymaml.tasks.navigation import HORIZON, Navigation


def test_alg3_line5_a_trajectory_by_hand():
    trajectories = walk(Navigation(horizon=4), [[0.2, 0.05]], [1.0, 0.25])
    x = trajectories.observations[0, 0]
    np.testing.assert_allclose(x[:2], [[0, 0], [0.1, 0.025]], atol=1e-15)
    np.testing.assert_allclose(
        trajectories.rewards[0, 0], [-np.hypot(0.1, 0.025), 0, 0, 0], atol=1e-15
    )
    assert trajectories.mask[0, 0].tolist() == [True, True, False, False]
    assert (x[2:] == 0).all() and (trajectories.actions[0, 0, 2:] == 0).all()
    assert (trajectories.actions[0, 0, :2] == [1.0, 0.25]).all()


@given(
    seed=st.integers(0, 2**32 - 1),
    tasks=st.integers(1, 4),
    count=st.integers(1, 4),
    horizon=st.integers(1, 15),
    noise=st.floats(0, 5),
    near=st.floats(0.02, 1),
)
def test_what_holds_of_every_trajectory(seed, tasks, count, horizon, noise, near):
    navigation = Navigation(horizon=horizon)
    goals = near * navigation.draw(np.random.default_rng(seed), (tasks,))
    trajectories = walk(navigation, goals, [0.3, -0.2], count, noise, seed)
    x, actions, rewards, mask = trajectories
    assert mask[:, :, 0].all()
    # ended trajectories stay ended, and contribute nothing
    assert (mask[:, :, 1:] <= mask[:, :, :-1]).all()
    assert (x[~mask] == 0).all() and (actions[~mask] == 0).all()
    assert (rewards[~mask] == 0).all()
    # nobody is further away than the steps allow, and no reward is positive
    furthest = np.hypot(0.5, 0.5) + 0.1 * np.sqrt(2) * horizon
    assert (rewards <= 0).all() and (rewards >= -furthest).all()
    assert (trajectories.returns() >= -furthest * horizon).all()
    np.testing.assert_allclose(
        trajectories.returns(), rewards.sum(axis=2).mean(axis=1), atol=1e-12
    )
    moves = np.diff(x, axis=2)[mask[:, :, 1:]]
    assert (np.abs(moves) <= 0.1 + 1e-12).all()
    # a trajectory ends where its last move brought it close, or at the horizon
    steps = mask.sum(axis=2)
    short = steps < horizon
    last = np.take_along_axis(rewards, steps[..., None] - 1, axis=2)[..., 0]
    assert (last[short] > -0.01 * np.sqrt(2)).all()


def test_same_noise_same_bits_and_tasks_do_not_disturb_each_other():
    navigation = Navigation(horizon=20)
    goals = navigation.draw(np.random.default_rng(0), (3,))
    one, same, other = (
        walk(navigation, goals, [0.1, 0.2], 5, 1.0, seed) for seed in (1, 1, 2)
    )
    for a, b, c in zip(one, same, other, strict=True):
        assert a.tobytes() == b.tobytes()
        assert a.shape == c.shape
    assert (one.rewards != other.rewards).any()
    thetas = np.array([[0.1, 0.2]])
    noise = np.random.default_rng(1).standard_normal((3, 5, 20, 2))
    alone = roll_out(ConstantActor(), navigation, thetas, goals[1:2], noise[1:2])
    assert alone.rewards.tobytes() == one.rewards[1:2].tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arrays_have_the_dtype_of_theta_and_rewards_are_float64(dtype):
    noise = np.zeros((1, 2, 3, 2), dtype)
    thetas, goals = np.ones((1, 2), dtype), np.full((1, 2), 0.5)
    x, actions, rewards, mask = roll_out(
        ConstantActor(), Navigation(horizon=3), thetas, goals, noise
    )
    assert x.dtype == actions.dtype == dtype
    assert (rewards.dtype, mask.dtype) == (np.float64, bool)


def test_the_first_trajectories_are_included_until_they_have_enough_steps():
    goals = np.array([[[0.1, 0.1], [0.2, 0.2], [0.5, 0.5], [0.1, 0.1]]])
    trajectories = walk(Navigation(horizon=3), goals, [1, 1], 4)  # of 1, 2, 3, 1 steps
    for steps, n in [(1, 1), (2, 2), (3, 2), (4, 3), (6, 3), (7, 4), (99, 4)]:
        first = trajectories.first(steps)
        assert first.mask.any(axis=2).tolist() == [[True] * n + [False] * (4 - n)]
        for whole, part in zip(trajectories, first, strict=True):
            assert (part[:, :n] == whole[:, :n]).all()
            assert not part[:, n:].any()
        assert first.returns() == pytest.approx(
            trajectories.rewards[:, :n].sum(axis=2).mean(axis=1)
        )


def test_rolling_out_stops_when_all_trajectories_have_ended():
    class CountingActor(ConstantActor):
        calls = 0

        def act(self, thetas, x, noise):
            self.calls += 1
            return super().act(thetas, x, noise)

    actor = CountingActor()
    goals, thetas = np.array([[0.3, 0.3]]), np.ones((1, 2))
    noise = np.zeros((1, 2, HORIZON, 2))
    trajectories = roll_out(actor, Navigation(), thetas, goals, noise)
    assert actor.calls == 3
    assert trajectories.mask.shape == (1, 2, HORIZON)


def test_trajectories_show_their_shapes_and_how_many_steps_were_taken():
    trajectories = walk(Navigation(horizon=4), [[0.2, 0.05]], [1.0, 0.25], 3)
    assert repr(trajectories) == (
        "Trajectories(observations (1, 3, 4, 2), actions (1, 3, 4, 2), 6 of 12 steps)"
    )
    assert "0 of 0 steps" in repr(Trajectories(*(a[:0] for a in trajectories)))


class ScatteredNavigation(Navigation):
    """Navigation whose points start at a tenth of the noise, and not at (0, 0)."""

    start_noise = 2

    def start(self, goals, trajectories, noise=None):
        return super().start(goals, trajectories) + 0.1 * noise


def test_start_noise_places_each_trajectory():
    thetas, goals = np.zeros((2, 2)), np.full((2, 2), 0.5)
    noise = np.zeros((2, 3, 4, 2))
    start_noise = np.random.default_rng(0).standard_normal((2, 3, 2))
    arguments = ConstantActor(), ScatteredNavigation(horizon=4), thetas, goals, noise
    x = roll_out(*arguments, start_noise).observations
    np.testing.assert_array_equal(x[:, :, 0], 0.1 * start_noise)
    for wrong in (None, start_noise[:, :2], start_noise[..., :1], start_noise[:1]):
        with pytest.raises(ValueError, match=r"^start_noise: expected shape .2, 3, 2."):
            roll_out(*arguments, wrong)
    with pytest.raises(TypeError, match="^start_noise: expected an array, got list"):
        roll_out(*arguments, start_noise.tolist())


# --- bad input ------------------------------------------------------------------------


def test_bad_policies_and_arrays_are_refused_by_name():
    class ActorOfOneAction(ConstantActor):
        actions = 1

    class EnvironmentThatNeverStarts(Navigation):
        def start(self, goals, trajectories):
            raise AssertionError("arguments are checked before anything starts")

    navigation = EnvironmentThatNeverStarts(horizon=2)
    actor, thetas, goals = ConstantActor(), np.ones((1, 2)), np.zeros((1, 2))
    noise = np.zeros((1, 3, 2, 2))
    complaint = "^policy: expected 2 actions, as the environment has, got 1"
    with pytest.raises(ValueError, match=complaint):
        roll_out(ActorOfOneAction(), navigation, thetas, goals, noise[..., :1])
    with pytest.raises(ValueError, match="^trajectories: expected at least 1, got 0"):
        roll_out(actor, navigation, thetas, goals, noise[:, :0])
    with pytest.raises(TypeError, match="^thetas: expected an array, got list"):
        roll_out(actor, navigation, thetas.tolist(), goals, noise)
    with pytest.raises(TypeError, match="^noise: expected an array, got list"):
        roll_out(actor, navigation, thetas, goals, noise.tolist())
    whole = thetas.astype(int), noise.astype(int)  # observations would be rounded to 0
    with pytest.raises(
        ValueError, match="^thetas: expected one of float32, float64, g"
    ):
        roll_out(actor, navigation, whole[0], goals, whole[1])
    with pytest.raises(ValueError, match=r"^thetas: expected shape \(tasks, 2\), got"):
        roll_out(actor, navigation, thetas[:, :1], goals, noise)
    with pytest.raises(ValueError, match="^tasks: expected 1 of them, got 2"):
        roll_out(actor, navigation, thetas, np.zeros((2, 2)), noise)


def test_the_return_of_a_task_has_the_same_bits_beside_others_and_alone():
    rng = np.random.default_rng(0)

    def as_rolled_out(rewards):  # time is the first axis in memory
        views = [np.moveaxis(array, 0, 2) for array in (rewards, rewards != 0)]
        return Trajectories(np.zeros(0), np.zeros(0), *views)

    rewards = 10 * rng.standard_normal((100, 5, 20))
    together = as_rolled_out(rewards).returns()
    for i in range(5):
        alone = as_rolled_out(rewards[:, i : i + 1].copy()).returns()
        assert alone.tobytes() == together[i : i + 1].tobytes()


def test_every_step_of_every_trajectory_has_noise_of_its_own():
    noise = np.random.default_rng(0).standard_normal((2, 3, 5, 2))
    goals = np.full((2, 2), 5.0)  # too far to be reached
    actor, environment = ConstantActor(), Navigation(horizon=5)
    actions = roll_out(actor, environment, np.zeros((2, 2)), goals, noise).actions
    np.testing.assert_array_equal(actions, noise)
