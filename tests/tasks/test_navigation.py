"""2D navigation: its rules by hand, and what must hold of every trajectory."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinymaml.rl.rollouts import roll_out
from tinymaml.tasks.navigation import HORIZON, Navigation


class Straight:
    """An actor that always wants the same action, and adds noise to it."""

    size, actions = 2, 2

    def act(self, thetas, x, noise):
        return np.broadcast_to(thetas[:, None], noise.shape) + noise


def walk(rules, goals, wanted, trajectories=1, noise=0.0, seed=0):
    """Trajectories of the actor above in tasks with these goals."""
    goals = np.array(goals, float)
    thetas = np.broadcast_to(np.array(wanted, float), (len(goals), 2))
    shape = (len(goals), trajectories, rules.horizon, 2)
    drawn = noise * np.random.default_rng(seed).standard_normal(shape)
    return roll_out(Straight(), rules, thetas, goals, drawn)


# --- rules, by hand -------------------------------------------------------------------


def test_alg3_line5_a_trajectory_by_hand():
    found = walk(Navigation(horizon=4), [[0.2, 0.05]], [1.0, 0.25])
    x = found.observations[0, 0]
    np.testing.assert_allclose(x[:2], [[0, 0], [0.1, 0.025]], atol=1e-15)
    np.testing.assert_allclose(
        found.rewards[0, 0], [-np.hypot(0.1, 0.025), 0, 0, 0], atol=1e-15
    )
    assert found.mask[0, 0].tolist() == [True, True, False, False]
    assert (x[2:] == 0).all() and (found.actions[0, 0, 2:] == 0).all()


@pytest.mark.parametrize("reward", ["distance", "squared"])
def test_the_reward_is_minus_the_distance_after_the_move_or_its_square(reward):
    rules = Navigation(reward)
    goals = np.array([[0.3, 0.4]])
    _, rewards, _ = rules.step(rules.start(goals, 1), np.zeros((1, 1, 2)), goals)
    assert rewards[0, 0] == pytest.approx(-0.5 if reward == "distance" else -0.25)
    _, rewards, _ = rules.step(rules.start(goals, 1), np.ones((1, 1, 2)), goals)
    distance = np.hypot(0.2, 0.3)
    assert rewards[0, 0] == pytest.approx(-(distance ** (1 + (reward == "squared"))))


@pytest.mark.parametrize(
    ("action", "move"),
    [([0.5, -0.5], [0.05, -0.05]), ([7.0, -7.0], [0.1, -0.1]), ([1.0, 0.0], [0.1, 0])],
)
def test_an_action_of_1_is_the_largest_move_and_more_is_clipped(action, move):
    rules, goals = Navigation(), np.array([[0.3, 0.4]])
    where, _, _ = rules.step(rules.start(goals, 1), np.array([[action]]), goals)
    np.testing.assert_allclose(where[0, 0], move)


@pytest.mark.parametrize(
    ("away", "over"),
    [([0.0099, -0.0099], True), ([0.0101, 0.0], False), ([0.0, -0.0101], False)],
)
def test_it_is_over_within_a_hundredth_of_the_goal_along_both_axes(away, over):
    rules, goals = Navigation(), np.array([[0.3, 0.4]])
    at = goals[:, None] + np.array(away)
    _, _, done = rules.step(at, np.zeros((1, 1, 2)), goals)
    assert bool(done[0, 0]) is over


def test_the_oracle_sees_the_goal_and_the_agent_does_not():
    goals = np.array([[0.3, 0.4], [-0.1, 0.2]])
    assert walk(Navigation(horizon=2), goals, [1, 1]).observations.shape[-1] == 2
    told = walk(Navigation(horizon=2, told=True), goals, [1, 1]).observations
    assert told.shape == (2, 1, 2, 4)
    np.testing.assert_array_equal(told[:, 0, 1, 2:], goals)
    np.testing.assert_array_equal(told[:, 0, 1, :2], np.full((2, 2), 0.1))


def test_trajectories_may_have_a_goal_each():
    goals = np.array([[[0.1, 0.1], [0.2, 0.2], [0.5, 0.5]]])
    found = walk(Navigation(horizon=3), goals, [1, 1], trajectories=3)
    assert found.mask.sum(axis=2).tolist() == [[1, 2, 3]]


# --- what always holds ----------------------------------------------------------------


def test_alg3_line3_goals_fill_the_square():
    goals = Navigation().draw(np.random.default_rng(0), (4000,))
    assert goals.shape == (4000, 2)
    assert (np.abs(goals) <= 0.5).all()
    np.testing.assert_allclose(goals.mean(axis=0), 0, atol=0.02)
    np.testing.assert_allclose(goals.var(axis=0), 1 / 12, rtol=0.05)
    assert Navigation().draw(np.random.default_rng(0), (2, 3)).shape == (2, 3, 2)


@given(
    seed=st.integers(0, 2**32 - 1),
    tasks=st.integers(1, 4),
    trajectories=st.integers(1, 4),
    horizon=st.integers(1, 15),
    noise=st.floats(0, 5),
    near=st.floats(0.02, 1),
)
def test_what_holds_of_every_trajectory(
    seed, tasks, trajectories, horizon, noise, near
):
    rules = Navigation(horizon=horizon)
    goals = near * rules.draw(np.random.default_rng(seed), (tasks,))
    found = walk(rules, goals, [0.3, -0.2], trajectories, noise, seed)
    x, actions, rewards, mask = found
    assert mask[:, :, 0].all()
    # ended trajectories stay ended, and contribute nothing
    assert (mask[:, :, 1:] <= mask[:, :, :-1]).all()
    assert (x[~mask] == 0).all() and (actions[~mask] == 0).all()
    assert (rewards[~mask] == 0).all()
    # nobody is further away than the steps taken allow, and no reward is positive
    furthest = np.hypot(0.5, 0.5) + 0.1 * np.sqrt(2) * horizon
    assert (rewards <= 0).all() and (rewards >= -furthest).all()
    assert (found.returns() >= -furthest * horizon).all()
    np.testing.assert_allclose(
        found.returns(), rewards.sum(axis=2).mean(axis=1), atol=1e-12
    )
    moves = np.diff(x, axis=2)[mask[:, :, 1:]]
    assert (np.abs(moves) <= 0.1 + 1e-12).all()
    # a trajectory is over where its last move brought it close, or at the horizon
    steps = mask.sum(axis=2)
    short = steps < horizon
    last = np.take_along_axis(rewards, steps[..., None] - 1, axis=2)[..., 0]
    assert (last[short] > -0.01 * np.sqrt(2)).all()


def test_same_noise_same_bits_and_tasks_do_not_disturb_each_other():
    rules = Navigation(horizon=20)
    goals = rules.draw(np.random.default_rng(0), (3,))
    one, same, other = (
        walk(rules, goals, [0.1, 0.2], 5, 1.0, seed) for seed in (1, 1, 2)
    )
    for a, b, c in zip(one, same, other, strict=True):
        assert a.tobytes() == b.tobytes()
        assert a.shape == c.shape
    assert (one.rewards != other.rewards).any()
    thetas = np.array([[0.1, 0.2]])
    noise = np.random.default_rng(1).standard_normal((3, 5, 20, 2))
    alone = roll_out(Straight(), rules, thetas, goals[1:2], noise[1:2])
    assert alone.rewards.tobytes() == one.rewards[1:2].tobytes()


def test_the_first_trajectories_are_kept_until_they_have_enough_steps():
    goals = np.array([[[0.1, 0.1], [0.2, 0.2], [0.5, 0.5], [0.1, 0.1]]])
    found = walk(Navigation(horizon=3), goals, [1, 1], trajectories=4)  # 1, 2, 3, 1
    for steps, kept in [(1, 1), (2, 2), (3, 2), (4, 3), (6, 3), (7, 4), (99, 4)]:
        some = found.first(steps)
        assert some.mask.any(axis=2).tolist() == [[True] * kept + [False] * (4 - kept)]
        for all_of_it, part in zip(found, some, strict=True):
            assert (part[:, :kept] == all_of_it[:, :kept]).all()
            assert not part[:, kept:].any()
        assert some.returns() == pytest.approx(
            found.rewards[:, :kept].sum(axis=2).mean(axis=1)
        )


def test_rolling_out_stops_when_all_have_ended():
    class Counted(Straight):
        calls = 0

        def act(self, thetas, x, noise):
            self.calls += 1
            return super().act(thetas, x, noise)

    actor = Counted()
    goals, thetas = np.array([[0.3, 0.3]]), np.ones((1, 2))
    found = roll_out(actor, Navigation(), thetas, goals, np.zeros((1, 2, HORIZON, 2)))
    assert actor.calls == 3
    assert found.mask.shape == (1, 2, HORIZON)


# --- bad input ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "complaint"),
    [
        ({"reward": "money"}, ValueError, "reward: expected one of distance, squared"),
        ({"horizon": 0}, ValueError, "horizon: expected at least 1, got 0"),
        ({"horizon": 1.5}, TypeError, "horizon: expected a whole number, got 1.5"),
        ({"horizon": True}, TypeError, "horizon: expected a whole number, got True"),
        ({"told": "no"}, TypeError, "told: expected True or False, got 'no'"),
    ],
)
def test_bad_rules_are_refused_by_name(arguments, error, complaint):
    with pytest.raises(error, match=f"^{complaint}"):
        Navigation(**arguments)


def test_bad_goals_and_numbers_are_refused_by_name():
    rules = Navigation()
    with pytest.raises(ValueError, match="^shape: expected at least one goal"):
        rules.draw(np.random.default_rng(0), (0,))
    with pytest.raises(ValueError, match="^trajectories: expected at least 1, got 0"):
        rules.start(np.zeros((2, 2)), 0)
    with pytest.raises(ValueError, match="^goals: expected shape"):
        rules.start(np.zeros((2, 3)), 4)
    with pytest.raises(ValueError, match="^goals: expected one a task or one for each"):
        rules.start(np.zeros((2, 3, 2)), 4)
    with pytest.raises(TypeError, match="^goals: expected an array, got list"):
        rules.start([[0.1, 0.2]], 4)


@pytest.mark.parametrize("shape", [(2, 4, 1), (2, 4, 3), (2, 1, 2), (4, 2)])
def test_actions_that_are_not_one_for_each_axis_and_trajectory_are_refused(shape):
    rules, goals = Navigation(), np.full((2, 2), 0.3)
    with pytest.raises(ValueError, match="^actions: expected shape .2, 4, 2., got"):
        rules.step(rules.start(goals, 4), np.zeros(shape), goals)


def test_bad_policies_and_arrays_are_refused_by_name():
    class Half(Straight):
        actions = 1

    class Unchecked(Navigation):
        def start(self, goals, trajectories):
            raise AssertionError("nothing should start")

    rules, thetas, goals = Unchecked(horizon=2), np.ones((1, 2)), np.zeros((1, 2))
    noise = np.zeros((1, 3, 2, 2))
    complaint = "^policy: expected 2 actions, as the environment has, got 1"
    with pytest.raises(ValueError, match=complaint):
        roll_out(Half(), rules, thetas, goals, noise[..., :1])
    with pytest.raises(ValueError, match="^trajectories: expected at least 1, got 0"):
        roll_out(Straight(), rules, thetas, goals, noise[:, :0])
    with pytest.raises(TypeError, match="^thetas: expected an array, got list"):
        roll_out(Straight(), rules, thetas.tolist(), goals, noise)
    with pytest.raises(TypeError, match="^noise: expected an array, got list"):
        roll_out(Straight(), rules, thetas, goals, noise.tolist())
