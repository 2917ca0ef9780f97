"""Gymnasium's environments as ours, compared with gymnasium alone; ours as theirs."""

import copy
import warnings

import numpy as np
import pytest

import tinymaml as tm
from tests.support.policy_problems import ConstantActor
from tests.support.running import run_python
from tinymaml.rl.gymnasium_adapter import FromGymnasium, ToGymnasium
from tinymaml.rl.rollouts import roll_out
from tinymaml.tasks.navigation import Navigation

REASON = 'needs pip install ".[locomotion]"'
gymnasium = pytest.importorskip("gymnasium", reason=REASON)


def masses_of(rng, shape):
    return rng.uniform(0.5, 1.5, (*shape, 1))


def set_masses(envs, masses):
    envs.set_attr("m", masses[:, 0].tolist())


def pendulums(horizon=12, **settings):
    """Pendulums whose task is the mass."""
    return FromGymnasium(
        lambda count: gymnasium.make_vec("Pendulum-v1", num_envs=count),
        masses_of,
        horizon,
        **{"set_tasks": set_masses, **settings},
    )


class OneAction(ConstantActor):
    size, actions = 1, 1


def swing(environment, tasks, seed=0, trajectories=2):
    """Trajectories of random actions."""
    rng = np.random.default_rng(seed)
    shape = (len(tasks), trajectories, environment.horizon, 1)
    noise, starts = rng.standard_normal(shape), rng.standard_normal((*shape[:2], 1))
    thetas = np.zeros((len(tasks), 1))
    return roll_out(OneAction(), environment, thetas, tasks, noise, starts), starts


# --- gymnasium's environments as ours -------------------------------------------------


def test_trajectories_are_those_of_single_pendulums_stepped_alone():
    environment, masses = pendulums(), np.array([[0.5], [2.0]])
    (x, actions, rewards, mask), starts = swing(environment, masses)
    assert x.shape == (2, 2, 12, 3) and mask.all()
    for task, mass in enumerate(masses[:, 0]):
        for trajectory in range(2):
            env = gymnasium.make("Pendulum-v1")
            env.unwrapped.m = float(mass)
            seed = np.abs(starts[task, trajectory]).view(np.uint64)[0]
            seen, _ = env.reset(seed=int(seed))
            for t in range(12):
                np.testing.assert_array_equal(x[task, trajectory, t], seen)
                torque = 2 * np.clip(actions[task, trajectory, t], -1, 1)
                seen, reward, *_ = env.step(torque.astype(np.float32))
                assert rewards[task, trajectory, t] == pytest.approx(reward, rel=1e-6)


def test_the_same_noise_gives_the_same_bits_and_another_start_otherwise():
    environment, masses = pendulums(), np.ones((2, 1))
    (one, _), (same, _), (other, _) = (
        swing(environment, masses, seed) for seed in (1, 1, 2)
    )
    assert one.observations.tobytes() == same.observations.tobytes()
    first = np.stack([one.observations, other.observations])[:, :, :, 0, 2]
    assert len(np.unique(first)) == 8


def test_trajectories_may_have_a_task_each_and_their_number_may_change():
    environment = pendulums()
    for count in (3, 2):
        masses = np.linspace(0.5, 2.0, count).reshape(1, count, 1)
        swing(environment, masses, trajectories=count)
        assert environment._envs.get_attr("m") == tuple(masses.ravel())


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy])
def test_an_object_that_is_copied_has_its_own_environments(copier):
    environment, tasks = pendulums(), np.array([[0.5], [2.0]])
    noise, actions = np.random.default_rng(0).standard_normal((2, 2, 3, 1))
    states = environment.start(tasks, 3, noise)
    expected = environment.step(states, actions, tasks)[0]
    states = environment.start(tasks, 3, noise)
    copier(environment).start(tasks, 3, noise + 1)
    assert np.array_equal(environment.step(states, actions, tasks)[0], expected)


def test_a_copy_that_reaches_its_goal_ends_its_trajectory():
    environment = FromGymnasium(
        lambda count: gymnasium.make_vec("MountainCarContinuous-v0", num_envs=count),
        lambda rng, shape: np.zeros((*shape, 1)),
        horizon=3,
        set_tasks=lambda envs, tasks: None,
    )
    tasks, noise = np.zeros((1, 1)), np.full((1, 2, 1), 0.5)
    states = environment.start(tasks, 2, noise)
    cars = environment._envs.envs
    cars[1].unwrapped.state = np.array([0.449, 0.07], np.float32)
    _, rewards, ended = environment.step(states, np.ones((1, 2, 1)), tasks)
    assert ended.tolist() == [[False, True]] and rewards[0, 1] > 90


class Springs(gymnasium.vector.VectorEnv):
    """A vector environment that is no collection of single ones, with one seed."""

    def __init__(self, count):
        self.num_envs = count
        self.single_observation_space = gymnasium.spaces.Box(-9, 9, (2,), np.float32)
        self.single_action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.normal(size=(self.num_envs, 2)).astype(np.float32)
        return self.x.copy(), {}

    def step(self, actions):
        self.x = 0.9 * self.x + np.asarray(actions)
        never = np.zeros(self.num_envs, bool)
        return self.x.copy(), -np.abs(self.x).sum(axis=1), never, never, {}


def test_any_vector_environment_serves_even_with_one_seed_for_all_copies():
    environment = FromGymnasium(Springs, masses_of, horizon=4)
    (one, _), (same, _), (other, _) = (
        swing(environment, np.ones((2, 1)), seed) for seed in (1, 1, 2)
    )
    assert one.observations.tobytes() == same.observations.tobytes()
    first = np.stack([one.observations, other.observations])[:, :, :, 0, 0]
    assert len(np.unique(first)) == 8


def test_copies_that_do_not_start_anew_are_refused():
    mode = getattr(gymnasium.vector, "AutoresetMode", None)
    if mode is None:
        pytest.skip("this gymnasium has no AutoresetMode")
    settings = {"autoreset_mode": mode.DISABLED}
    with pytest.raises(ValueError, match="^make: expected copies that start anew, g"):
        FromGymnasium(
            lambda count: gymnasium.make_vec(
                "Pendulum-v1", num_envs=count, vector_kwargs=settings
            ),
            masses_of,
            horizon=4,
        )


def test_arrays_that_do_not_fit_are_refused_by_name():
    environment = pendulums()
    with pytest.raises(ValueError, match="^tasks: expected 2, got 3"):
        environment.start(np.ones((3, 1)), 2, np.ones((2, 2, 1)))
    states = environment.start(np.ones((2, 1)), 2, np.ones((2, 2, 1)))
    with pytest.raises(ValueError, match=r"^actions: expected shape \(2, 2, 1\), got"):
        environment.step(states, np.ones((2, 2, 2)), np.ones((2, 1)))


def test_maml_learns_on_pendulums():
    policy = tm.GaussianPolicy(tm.MLP([3, 8, 1]), 1, backend="numpy")
    learner = tm.MAMLTRPO(policy, pendulums(), trajectories=3, backend="numpy")
    rng = np.random.default_rng(0)
    theta = policy.init(rng, "float64")
    step = learner.step(theta, learner.draw(rng, 4, "float64"))
    assert step.accepted and step.kl <= 0.01 and 0 < step.inner_kl < 1


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        ("CartPole-v1", "make: expected actions that are vectors of numbers, got Disc"),
        ("FrozenLake-v1", "make: expected observations that are vectors of numbers, g"),
    ],
)
def test_environments_that_do_not_fit_are_refused_by_name(make, complaint):
    with pytest.raises(ValueError, match=f"^{complaint}"):
        FromGymnasium(
            lambda count: gymnasium.make_vec(make, num_envs=count), masses_of, 5
        )


@pytest.mark.parametrize(
    "box",
    [
        gymnasium.spaces.Box(0, 1, (1,), np.int64),  # 1 would be sent for 1 alone
        gymnasium.spaces.Box(-np.finfo("f").max, np.finfo("f").max, (1,), np.float32),
        gymnasium.spaces.Box(-65504, 65504, (1,), np.float16),
        gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64),
    ],
    ids=["whole numbers", "infinite in float32", "infinite in float16", "no bounds"],
)
def test_actions_that_cannot_be_scaled_are_refused(box):
    class Simulator(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float64)
        action_space = box

    def make(count):
        return gymnasium.vector.SyncVectorEnv([Simulator] * count)

    with pytest.raises(ValueError, match="^make: expected actions that are real numb"):
        FromGymnasium(make, masses_of, 5)


def test_states_of_an_earlier_time_are_refused():
    environment, masses = pendulums(), np.ones((1, 1))
    first = environment.start(masses, 1, np.ones((1, 1, 1)))
    environment.step(first, np.ones((1, 1, 1)), masses)
    with pytest.raises(ValueError, match="^states: expected what the last start or st"):
        environment.step(first, np.ones((1, 1, 1)), masses)


def test_settings_are_refused_by_name():
    with pytest.raises(TypeError, match="^make: expected a function, got 3"):
        FromGymnasium(3, masses_of, 5)
    with pytest.raises(ValueError, match="^horizon: expected at least 1, got 0"):
        pendulums(horizon=0)
    with pytest.raises(ValueError, match="^make: expected a vector environment, got"):
        FromGymnasium(lambda count: gymnasium.make("Pendulum-v1"), masses_of, 5)
    with pytest.raises(ValueError, match="^render_mode: expected one of .None., got"):
        ToGymnasium(Navigation(), [0.3, 0.4], "rgb_array")
    for task, shape in ((1.0, r"\[\]"), ([1.0], r"\[1\]")):
        with pytest.raises(
            ValueError, match=rf"^task: expected an array of .* {shape}"
        ):
            ToGymnasium(Navigation(), task)


# --- ours in gymnasium's tools --------------------------------------------------------


def test_navigation_passes_gymnasiums_own_checks_and_ends():
    from gymnasium.utils.env_checker import check_env

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about observations without bounds
        check_env(ToGymnasium(Navigation(), [0.3, 0.4]), skip_render_check=True)
    env = ToGymnasium(Navigation(), [0.3, 0.4])
    env.reset(seed=0)
    seen, reward, *_ = env.step(np.ones(2))
    assert (seen == 0.1).all() and reward == pytest.approx(-0.3606, abs=5e-5)
    env = ToGymnasium(Navigation(horizon=3), [0.2, 0.05])
    env.reset(seed=0)
    _, reward, terminated, truncated, _ = env.step(np.array([1.0, 0.25]))
    assert reward == pytest.approx(-np.hypot(0.1, 0.025))
    assert (terminated, truncated) == (False, False)
    assert env.step(np.array([1.0, 0.25]))[2:4] == (True, False)
    assert env.step(np.array([1.0, 0.25]))[2:4] == (False, True)


def test_a_cheetah_is_rendered_as_a_stick_figure_and_seeded():
    pytest.importorskip("mujoco", reason=REASON)
    from tinymaml.rl.locomotion import HalfCheetah

    env = ToGymnasium(HalfCheetah("direction", threads=1), [1.0], "rgb_array")
    first, _ = env.reset(seed=1)
    assert (first == env.reset(seed=1)[0]).all() and first.shape == (20,)
    assert (first != env.reset(seed=2)[0]).any()
    env.reset(seed=1)
    before = env.render()
    assert before.shape == (256, 256, 3) and before.dtype == np.uint8
    dark = (before < 100).all(axis=2)
    assert 300 < dark.sum() < 6000  # lines, on white
    rows = np.flatnonzero(dark.any(axis=1))
    # The torso is 0.7 m above the ground, and a picture shows 2.5 m above it.
    assert 256 * (2.5 - 1.1) / 3 < rows.min() and rows.max() < 256 * 2.6 / 3
    for _ in range(30):
        env.step(np.ones(6))
    assert (env.render() != before).any()
    env.reset(seed=1)
    assert (env.render() == before).all()


def test_without_gymnasium_one_line_says_what_to_install():
    program = """
import sys
sys.modules["gymnasium"] = None
from tinymaml.rl.gymnasium_adapter import FromGymnasium, ToGymnasium
from tinymaml.tasks.navigation import Navigation
for make in (lambda: FromGymnasium(len, len, 1), lambda: ToGymnasium(Navigation(), 1)):
    try:
        make()
    except ImportError as error:
        print(error)
"""
    out, _ = run_python(program)
    message = 'gymnasium is missing: pip install "tinymaml[locomotion]"'
    assert out.splitlines() == [message, message]
