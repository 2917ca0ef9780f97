"""2D navigation: its rules, computed by hand, and what it refuses."""

import numpy as np
import pytest

from tests.support.policy_problems import walk
from tinymaml.tasks.navigation import Navigation

# --- rules, by hand -------------------------------------------------------------------


@pytest.mark.parametrize("reward", ["distance", "squared"])
def test_the_reward_is_minus_the_distance_after_the_move_or_its_square(reward):
    navigation = Navigation(reward)
    goals = np.array([[0.3, 0.4]])
    _, rewards, _ = navigation.step(
        navigation.start(goals, 1), np.zeros((1, 1, 2)), goals
    )
    assert rewards[0, 0] == pytest.approx(-0.5 if reward == "distance" else -0.25)
    _, rewards, _ = navigation.step(
        navigation.start(goals, 1), np.ones((1, 1, 2)), goals
    )
    distance = np.hypot(0.2, 0.3)
    assert rewards[0, 0] == pytest.approx(-(distance ** (1 + (reward == "squared"))))


@pytest.mark.parametrize(
    ("action", "move"),
    [([0.5, -0.5], [0.05, -0.05]), ([7.0, -7.0], [0.1, -0.1]), ([1.0, 0.0], [0.1, 0])],
)
def test_an_action_of_1_is_the_largest_move_and_more_is_clipped(action, move):
    navigation, goals = Navigation(), np.array([[0.3, 0.4]])
    positions, _, _ = navigation.step(
        navigation.start(goals, 1), np.array([[action]]), goals
    )
    np.testing.assert_allclose(positions[0, 0], move)


@pytest.mark.parametrize(
    ("difference", "ended"),
    [([0.0099, -0.0099], True), ([0.0101, 0.0], False), ([0.0, -0.0101], False)],
)
def test_a_trajectory_ends_within_a_hundredth_of_the_goal_on_both_axes(
    difference, ended
):
    navigation, goals = Navigation(), np.array([[0.3, 0.4]])
    positions = goals[:, None] + np.array(difference)
    _, _, terminated = navigation.step(positions, np.zeros((1, 1, 2)), goals)
    assert bool(terminated[0, 0]) is ended


def test_the_oracle_sees_the_goal_and_the_agent_does_not():
    goals = np.array([[0.3, 0.4], [-0.1, 0.2]])
    assert walk(Navigation(horizon=2), goals, [1, 1]).observations.shape[-1] == 2
    x = walk(Navigation(horizon=2, goal_visible=True), goals, [1, 1]).observations
    assert x.shape == (2, 1, 2, 4)
    np.testing.assert_array_equal(x[:, 0, 1, 2:], goals)
    np.testing.assert_array_equal(x[:, 0, 1, :2], np.full((2, 2), 0.1))


def test_trajectories_may_have_a_goal_each():
    goals = np.array([[[0.1, 0.1], [0.2, 0.2], [0.5, 0.5]]])
    trajectories = walk(Navigation(horizon=3), goals, [1, 1], trajectories=3)
    assert trajectories.mask.sum(axis=2).tolist() == [[1, 2, 3]]


def test_alg3_line3_goals_fill_the_square():
    goals = Navigation().draw(np.random.default_rng(0), (4000,))
    assert goals.shape == (4000, 2)
    assert (np.abs(goals) <= 0.5).all()
    np.testing.assert_allclose(goals.mean(axis=0), 0, atol=0.02)
    np.testing.assert_allclose(goals.var(axis=0), 1 / 12, rtol=0.05)
    assert Navigation().draw(np.random.default_rng(0), (2, 3)).shape == (2, 3, 2)


def test_navigation_shows_its_settings():
    assert repr(Navigation()) == (
        "Navigation(reward='distance', horizon=100, goal_visible=False)"
    )
    assert "goal_visible=True" in repr(Navigation(goal_visible=True))


# --- bad input ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "complaint"),
    [
        ({"reward": "money"}, ValueError, "reward: expected one of distance, squared"),
        ({"horizon": 0}, ValueError, "horizon: expected at least 1, got 0"),
        ({"horizon": 1.5}, TypeError, "horizon: expected a whole number, got 1.5"),
        ({"horizon": True}, TypeError, "horizon: expected a whole number, got True"),
        (
            {"goal_visible": "no"},
            TypeError,
            "goal_visible: expected True or False, got 'no'",
        ),
    ],
)
def test_bad_settings_are_refused_by_name(arguments, error, complaint):
    with pytest.raises(error, match=f"^{complaint}"):
        Navigation(**arguments)


def test_bad_goals_and_numbers_are_refused_by_name():
    navigation = Navigation()
    with pytest.raises(ValueError, match="^shape: expected at least one goal"):
        navigation.draw(np.random.default_rng(0), ())
    with pytest.raises(ValueError, match="^shape: expected at least 1, got 0"):
        navigation.draw(np.random.default_rng(0), (0,))
    with pytest.raises(TypeError, match="^shape: expected whole numbers, got 3"):
        navigation.draw(np.random.default_rng(0), 3)
    with pytest.raises(TypeError, match=r"^rng: expected a numpy\.random\.Generator"):
        navigation.draw(np.random, (2,))
    with pytest.raises(ValueError, match="^trajectories: expected at least 1, got 0"):
        navigation.start(np.zeros((2, 2)), 0)
    with pytest.raises(ValueError, match="^goals: expected shape"):
        navigation.start(np.zeros((2, 3)), 4)
    with pytest.raises(ValueError, match="^goals: expected one a task or one for each"):
        navigation.start(np.zeros((2, 3, 2)), 4)
    with pytest.raises(TypeError, match="^goals: expected an array, got list"):
        navigation.start([[0.1, 0.2]], 4)


@pytest.mark.parametrize("shape", [(2, 4, 1), (2, 4, 3), (2, 1, 2), (4, 2)])
def test_actions_that_are_not_one_for_each_axis_and_trajectory_are_refused(shape):
    navigation, goals = Navigation(), np.full((2, 2), 0.3)
    with pytest.raises(ValueError, match="^actions: expected shape .2, 4, 2., got"):
        navigation.step(navigation.start(goals, 4), np.zeros(shape), goals)
