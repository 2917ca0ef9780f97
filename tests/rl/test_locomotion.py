"""Half-cheetah and ant: rewards by hand, MuJoCo called directly, and what can go wrong.

In free flight no force acts along x, so the velocity of the centre of mass there stays
what it was, whatever the joints do: rewards can be computed by hand. In contact, they
are compared with MuJoCo's own data, stepped one trajectory at a time.
"""

import copy
import os
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import tinymaml as tm
from tests.support.running import run_python
from tinymaml.networks.layers import he_normal
from tinymaml.rl.locomotion import ANT_TIMESTEP, Ant, HalfCheetah
from tinymaml.rl.maml_trpo import MAMLTRPO

mujoco = pytest.importorskip("mujoco", reason='needs pip install ".[locomotion]"')
gymnasium = pytest.importorskip("gymnasium", reason='needs pip install ".[locomotion]"')

ASSETS = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
X, VELOCITY_X = 1, {HalfCheetah: 10, Ant: 16}  # columns of a state
HEIGHT = 3  # of the ant's torso
KINDS = [
    (HalfCheetah, "velocity"),
    (HalfCheetah, "direction"),
    (Ant, "velocity"),
    (Ant, "direction"),
    (Ant, "position"),
]


def at_rest(environment, goals, trajectories=1):
    shape = (len(goals), trajectories, environment.start_noise)
    return environment.start(goals, trajectories, np.zeros(shape))


def sampled(environment, seed=0, tasks=3, trajectories=4, steps=25):
    """Goals, and the states, actions, rewards and ends of random actions."""
    rng = np.random.default_rng(seed)
    goals = environment.draw(rng, (tasks,))
    noise = rng.standard_normal((tasks, trajectories, environment.start_noise))
    shape = (steps, tasks, trajectories, environment.actions)
    actions = rng.standard_normal(shape).astype(np.float32)
    states, rewards, ends = [environment.start(goals, trajectories, noise)], [], []
    for action in actions:
        state, reward, ended = environment.step(states[-1], action, goals)
        states.append(state), rewards.append(reward), ends.append(ended)
    return goals, np.stack(states), actions, np.stack(rewards), np.stack(ends)


def plain_model(file):
    """The file as MuJoCo reads it, without this package."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MuJoCo's, about `settotalmass`
        return mujoco.MjSpec.from_file(str(ASSETS / file)).compile()


# --- rewards, by hand -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "goal", "speed", "reward"),
    [
        ("velocity", 1.5, 0.0, -1.5),
        ("velocity", 0.5, 2.0, -1.5),
        ("direction", 1.0, 2.0, 2.0),
        ("direction", -1.0, 2.0, -2.0),
    ],
)
def test_sec5_3_rewards_of_a_cheetah_in_the_air_are_for_its_speed(
    task, goal, speed, reward
):
    environment, goals = HalfCheetah(task, threads=1), np.array([[goal]])
    states = at_rest(environment, goals)
    states[..., VELOCITY_X[HalfCheetah]] = speed
    after, rewards, ended = environment.step(states, np.zeros((1, 1, 6)), goals)
    assert rewards[0, 0] == pytest.approx(reward, abs=1e-12)
    assert after[0, 0, X] == pytest.approx(0.01 * speed, abs=1e-12)
    assert not ended[0, 0]
    # Steps of finite length keep momentum up to 0.003 where joints accelerate.
    actions = np.array([[[0.5, -9.0, 0.0, 0.0, 3.0, 0.0]]])  # two are clipped
    _, rewards, _ = environment.step(states, actions, goals)
    cost = 0.05 * (0.25 + 1.0 + 1.0)
    assert rewards[0, 0] == pytest.approx(reward - cost, abs=0.004)


@pytest.mark.parametrize(
    ("task", "goal", "reward"),
    [
        ("velocity", [3.0], -2.0 + 1.0),
        ("velocity", [0.25], -0.75 + 1.0),
        ("direction", [1.0], 1.0),
        ("direction", [-1.0], -1.0),
        ("position", [3.0, -2.0], -(3.0 - ANT_TIMESTEP) - 2.0 + 4.0),
    ],
)
def test_sec5_3_ant_rewards_in_the_air_are_for_speed_or_place(task, goal, reward):
    environment, goals = Ant(task, threads=1), np.array([goal])
    states = at_rest(environment, goals)
    states[..., HEIGHT] = 0.9
    states[..., VELOCITY_X[Ant]] = 1.0
    actions = np.array([[[0.5, -9.0, 0.0, 0.0, 3.0, 0.0, 0.0, -0.5]]])
    _, rewards, ended = environment.step(states, actions, goals)
    cost = 0.005 * (0.25 + 1.0 + 1.0 + 0.25)
    assert rewards[0, 0] == pytest.approx(reward + 0.05 - cost, abs=2e-6)
    assert not ended[0, 0]


@pytest.mark.parametrize(
    ("height", "end"), [(0.1, True), (0.25, False), (0.98, False), (1.03, True)]
)
def test_sec5_3_ant_end_is_where_it_falls_or_jumps(height, end):
    environment, goals = Ant("direction", threads=1), np.ones((1, 1))
    states = at_rest(environment, goals)
    states[..., HEIGHT] = height
    after, rewards, ended = environment.step(states, np.zeros((1, 1, 8)), goals)
    assert bool(ended[0, 0]) is end and environment.unstable == 0
    # It stays where it ended, and is paid no more.
    later, pay, ended = environment.step(after, np.ones((1, 1, 8)), goals)
    assert bool(ended[0, 0]) is end and rewards[0, 0] != 0
    assert (later.tobytes() == after.tobytes()) is end
    assert bool(pay[0, 0] == 0) is end


# --- in contact, by MuJoCo's own data -------------------------------------------------


def stepped_directly(environment, states, actions):
    """MuJoCo's data after each step of one trajectory, without warm starts."""
    model = plain_model(environment.file)
    if isinstance(environment, Ant):
        model.opt.timestep = ANT_TIMESTEP
        model.geom_solimp[:] = (0.8, 0.8, 0.01, 0.5, 2.0)
    for state, action in zip(states, actions, strict=False):
        data = mujoco.MjData(model)
        data.qpos[:] = state[1 : 1 + model.nq]
        data.qvel[:] = state[1 + model.nq : 1 + model.nq + model.nv]
        data.ctrl[:] = np.clip(action, -1, 1)
        mujoco.mj_step(model, data)
        data.qacc_warmstart[:] = 0
        mujoco.mj_forward(model, data)
        mujoco.mj_rnePostConstraint(model, data)
        yield model, data


def test_sec5_3_observations_of_a_cheetah_by_hand():
    environment, goals = HalfCheetah(threads=1), np.ones((1, 1))
    states, velocities = at_rest(environment, goals), np.arange(10.0, 19.0)
    states[..., 1:4] = [7.0, 0.25, 0.0]  # x, which is not seen, height, angle
    states[..., 10:19] = velocities
    seen = environment.observe(states, goals)[0, 0]
    com = states[0, 0, environment._com]
    np.testing.assert_array_equal(seen, [0.25, *[0.0] * 7, *velocities, *com])


def test_sec5_3_ant_observations_of_an_ant_in_the_air_by_hand():
    """Positions, velocities, no force on 14 bodies, a rotation, the middle."""
    environment, goals = Ant(threads=1), np.ones((1, 1))
    quarter = np.sqrt(0.5)  # a quarter turn about the vertical axis
    states = at_rest(environment, goals)
    states[..., 1:8] = [2.0, -1.0, 0.9, quarter, 0.0, 0.0, quarter]
    after, _, _ = environment.step(states, np.zeros((1, 1, 8)), goals)
    seen = environment.observe(after, goals)[0, 0]
    positions, velocities, forces, rotation, com = np.split(seen, [15, 29, 113, 122])
    np.testing.assert_allclose(positions[:2], [2.0, -1.0], atol=1e-9)
    assert velocities[2] == pytest.approx(-9.81 * ANT_TIMESTEP, rel=0.01)
    assert not forces.any()
    turn = [0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    np.testing.assert_allclose(rotation, turn, atol=1e-9)
    np.testing.assert_allclose(com[:2], [2.0, -1.0], atol=1e-6)


def velocity_of_the_whole(model, data):
    """The centre of mass's velocity: the mean of the parts', weighted by mass."""
    momentum = np.zeros(3)
    for part in range(1, model.nbody):
        twist = np.zeros(6)
        mujoco.mj_objectVelocity(model, data, mujoco.mjtObj.mjOBJ_BODY, part, twist, 0)
        momentum += model.body_mass[part] * twist[3:]
    return momentum / model.body_mass.sum()


@pytest.mark.parametrize(("body", "task"), KINDS)
def test_sec5_3_observations_states_and_rewards_are_those_of_mujoco(body, task):
    environment = body(task, threads=1)
    goals, states, actions, rewards, ends = sampled(environment, steps=40)
    task_number, trajectory = 1, 2
    one = (slice(None), task_number, trajectory)
    goal, touched = goals[task_number], 0
    direct = stepped_directly(environment, states[one], actions[one])
    for t, (model, data) in enumerate(direct):
        if ends[one][:t].any():
            break
        physics = states[one][t + 1][1 : 1 + model.nq + model.nv]
        expected = np.concatenate([data.qpos, data.qvel])
        np.testing.assert_allclose(physics, expected, rtol=1e-9, atol=1e-9)
        observed = environment.observe(states[t + 1], goals)[task_number, trajectory]
        com, u = data.subtree_com[1], np.clip(actions[one][t], -1, 1).astype(float)
        v = velocity_of_the_whole(model, data)[0]
        forces = np.clip(data.cfrc_ext, -1, 1)
        reward = {
            "velocity": -abs(v - goal[0]),
            "direction": goal[0] * v,
            "position": -np.abs(com[:2] - goal[: goals.shape[1]]).sum(),
        }[task]
        if body is HalfCheetah:
            seen = [data.qpos[1:], data.qvel, com]
            reward -= 0.05 * (u**2).sum()
        else:
            seen = [data.qpos, data.qvel, forces.ravel(), data.xmat[1], com]
            bonus = {"velocity": 1.0, "direction": 0.0, "position": 4.0}[task]
            reward += bonus + 0.05 - 0.005 * (u**2).sum() - 0.0005 * (forces**2).sum()
        np.testing.assert_allclose(observed, np.concatenate(seen), atol=1e-7)
        assert rewards[one][t] == pytest.approx(reward, abs=1e-7)
        touched += data.ncon > 0
    assert touched >= 5


def test_sec5_3_cheetah_body_is_rllabs():
    cheetah = HalfCheetah(threads=1).model
    plain = plain_model("half_cheetah.xml")
    for name in ("body_mass", "body_inertia", "dof_invweight0", "body_invweight0"):
        np.testing.assert_allclose(
            getattr(cheetah, name), getattr(plain, name), rtol=1e-12
        )
    assert cheetah.body_mass.sum() == pytest.approx(14)
    assert cheetah.opt.timestep == 0.01
    # Masses are in proportion to volumes, since their sum is given. Of the torso's two
    # capsules, the head is the second.
    radius, length = cheetah.geom_size[1:, 0], 2 * cheetah.geom_size[1:, 1]
    volumes = np.pi * radius**2 * (length + 4 / 3 * radius)
    masses = 14 * volumes / volumes.sum()
    assert cheetah.body_mass[1] == pytest.approx(masses[:2].sum(), rel=1e-12)
    assert masses[0] / 14 == pytest.approx(0.333, abs=5e-4)
    cylinders = np.pi * radius**2 * (length + radius)  # as in MuJoCo 1.31
    assert cylinders[0] / cylinders.sum() == pytest.approx(0.341, abs=5e-4)


def test_sec5_3_ant_body_is_rllabs():
    ant = Ant(threads=1)
    assert ant.model.opt.timestep == 0.02
    assert ant.model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4
    sphere, capsules = 4 / 3 * np.pi * 0.25**3, ant.model.geom_size[2:]
    radius, length = capsules[:, 0], 2 * capsules[:, 1]
    volumes = np.pi * radius**2 * (length + 4 / 3 * radius)
    mass = ant.model.body_mass.sum()
    assert mass == pytest.approx(5.0 * (sphere + volumes.sum()), rel=1e-12)
    assert mass == pytest.approx(0.911, abs=5e-4)
    cylinders = np.pi * radius**2 * (length + radius)  # as in MuJoCo 1.31
    assert 5.0 * (sphere + cylinders.sum()) == pytest.approx(0.879, abs=5e-4)
    assert (ant.observations, HalfCheetah(threads=1).observations) == (125, 20)
    # rllab's motors are of +-150; here a control of 1 is a torque of 150
    assert (ant.model.actuator_gear[:, 0] == 150).all()


# --- the same bits --------------------------------------------------------------------


@pytest.mark.parametrize("body", [HalfCheetah, Ant])
def test_any_number_of_threads_gives_the_same_bits(body):
    one, *others = (sampled(body("direction", threads=n)) for n in (1, 2, 3))
    for other in others:
        for a, b in zip(one, other, strict=True):
            assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("body", [HalfCheetah, Ant])
def test_a_trajectory_is_the_same_alone_and_among_others(body):
    environment = body("velocity", threads=2)
    goals, states, actions, rewards, ends = sampled(environment)
    for task, trajectory in ((0, 3), (2, 1)):
        here = np.s_[task : task + 1, trajectory : trajectory + 1]
        state = states[0][here]
        for t, action in enumerate(actions):
            state, reward, ended = environment.step(
                state, action[here], goals[task : task + 1]
            )
            assert state.tobytes() == states[t + 1][here].tobytes()
            assert (reward, ended) == (rewards[t][here], ends[t][here])


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_of_python_may_share_an_environment(threads):
    environment = HalfCheetah("direction", threads=threads)

    def trajectories(seed):
        return [a.tobytes() for a in sampled(environment, seed)]

    expected = [trajectories(seed) for seed in range(6)]
    with ThreadPoolExecutor(3) as threads_of_python:
        assert list(threads_of_python.map(trajectories, range(6))) == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("normal_end", [True, False])
def test_a_forked_process_moves_an_environment_of_its_parent_and_ends(normal_end):
    program = """
import os, signal
import numpy as np
from tinymaml.rl.locomotion import HalfCheetah

environment, goals = HalfCheetah(threads=2), np.ones((2, 1))
states = environment.start(goals, 3, np.zeros((2, 3, 18)))
step = environment.step(states, np.ones((2, 3, 6)), goals)[0].tobytes()
child = os.fork()
if child == 0:
    signal.alarm(20)  # it ends by a signal if it waits for threads that it lacks
    other = environment.step(states, np.ones((2, 3, 6)), goals)[0].tobytes()
    del environment
    if {normal_end}:
        raise SystemExit(other != step)
    os._exit(other != step)
print(os.waitpid(child, 0)[1])
"""
    out, _ = run_python(program.replace("{normal_end}", str(normal_end)))
    assert out.split() == ["0"]


def test_copies_and_pickles_move_alike_and_keep_their_settings():
    environment = Ant("position", horizon=9, goal_visible=True, threads=1)
    expected = sampled(environment)
    for other in (
        copy.deepcopy(environment),
        copy.copy(environment),
        pickle.loads(pickle.dumps(environment)),
    ):
        assert repr(other) == repr(environment) and other.model is not environment.model
        for a, b in zip(sampled(other), expected, strict=True):
            assert a.tobytes() == b.tobytes()
    assert repr(environment) == (
        "Ant('position', horizon=9, goal_visible=True, threads=1)"
    )
    environment.name = "what a subclass adds"
    assert copy.copy(environment).name == pickle.loads(pickle.dumps(environment)).name


# --- goals and starts -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "task", "lowest", "highest", "size"),
    [
        (HalfCheetah, "velocity", 0, 2, 1),
        (Ant, "velocity", 0, 3, 1),
        (Ant, "position", -3, 3, 2),
    ],
)
def test_sec5_3_tasks_have_goals_that_are_uniform(body, task, lowest, highest, size):
    goals = body(task, threads=1).draw(np.random.default_rng(0), (4000,))
    assert goals.shape == (4000, size)
    assert goals.min() >= lowest and goals.max() <= highest
    np.testing.assert_allclose(goals.mean(axis=0), (lowest + highest) / 2, atol=0.08)
    np.testing.assert_allclose(goals.var(), (highest - lowest) ** 2 / 12, rtol=0.05)


def test_sec5_3_tasks_go_forwards_and_backwards_equally_often():
    goals = HalfCheetah("direction", threads=1).draw(
        np.random.default_rng(0), (4000, 1)
    )
    assert goals.shape == (4000, 1, 1) and set(goals.ravel()) == {-1.0, 1.0}
    assert abs(goals.mean()) < 0.05


@pytest.mark.parametrize("body", [HalfCheetah, Ant])
def test_sec5_3_start_is_at_rest_plus_the_noise_of_rllab(body):
    environment, rng = body("direction", threads=1), np.random.default_rng(0)
    goals, nq = np.ones((20, 1)), environment.model.nq
    rest = at_rest(environment, goals)[0, 0]
    expected = (
        np.zeros(9)
        if body is HalfCheetah
        else [0, 0, 0.55, 1, 0, 0, 0, 0, 1, 0, -1, 0, -1, 0, 1]
    )
    np.testing.assert_array_equal(rest[1 : 1 + nq], expected)
    assert not rest[1 + nq : 1 + environment.start_noise].any()
    noise = rng.standard_normal((20, 30, environment.start_noise))
    states = environment.start(goals, 30, noise)
    moved = (
        states[..., 1 : 1 + environment.start_noise]
        - rest[1 : 1 + environment.start_noise]
    )
    np.testing.assert_allclose(moved[..., :nq], 0.01 * noise[..., :nq], atol=1e-12)
    np.testing.assert_allclose(moved[..., nq:], 0.1 * noise[..., nq:], atol=1e-12)


def test_sec5_3_oracle_sees_the_goal():
    environment = Ant("position", goal_visible=True, threads=1)
    goals = np.array([[1.0, -2.0], [0.5, 3.0]])
    seen = environment.observe(at_rest(environment, goals, 3), goals)
    assert seen.shape == (2, 3, 127) == (2, 3, environment.observations)
    assert (seen[:, :, -2:] == goals[:, None]).all()


def test_trajectories_may_have_a_goal_each():
    environment = HalfCheetah("velocity", threads=1)
    goals = np.array([[[0.5], [1.0], [2.0]]])
    states = at_rest(environment, goals, 3)
    _, rewards, _ = environment.step(states, np.zeros((1, 3, 6)), goals)
    np.testing.assert_allclose(rewards, -goals[..., 0], atol=1e-12)


def test_a_skeleton_joins_up():
    environment = HalfCheetah(threads=1)
    lines = environment.skeleton(at_rest(environment, np.ones((1, 1)))[0, 0])
    assert lines.shape == (8, 2, 3)
    torso = lines[0][np.argsort(lines[0, :, 0])]
    np.testing.assert_allclose(torso, [[-0.5, 0, 0.7], [0.5, 0, 0.7]], atol=1e-12)
    assert lines[..., 2].min() > 0 and np.abs(lines[..., 1]).max() < 1e-12
    ant = Ant(threads=1)
    assert ant.skeleton(at_rest(ant, np.ones((1, 1)))[0, 0]).shape == (12, 2, 3)


# --- unstable physics -----------------------------------------------------------------


@pytest.mark.parametrize("body", [HalfCheetah, Ant])
@pytest.mark.parametrize("velocity", [np.nan, np.inf, 1e9, 3e11])
@pytest.mark.parametrize("threads", [1, 2])
def test_sec5_3_unstable_physics_ends_its_trajectory_only(
    body, velocity, threads, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warnings into a file there
    environment = body("direction", threads=threads)
    goals, actions = np.ones((2, 1)), np.full((2, 3, environment.actions), 0.3)
    healthy = environment.start(
        goals, 3, 0.5 * np.ones((2, 3, environment.start_noise))
    )
    alone, pay, _ = environment.step(healthy, actions, goals)
    broken = healthy.copy()
    broken[1, 1, VELOCITY_X[body] + 2] = velocity
    states, rewards, ended = environment.step(broken, actions, goals)
    assert ended.tolist() == [[False] * 3, [False, True, False]]
    assert environment.unstable == 1 and rewards[1, 1] == 0
    np.testing.assert_array_equal(states[1, 1, :-1], broken[1, 1, :-1])
    others = ~ended
    assert states[others].tobytes() == alone[others].tobytes()
    assert rewards[others].tobytes() == pay[others].tobytes()
    # It is counted once, and does not spoil later steps either.
    alone, pay, _ = environment.step(alone, actions, goals)
    states, rewards, ended = environment.step(states, actions, goals)
    assert environment.unstable == 1 and rewards[1, 1] == 0 and ended[1, 1]
    assert states[others].tobytes() == alone[others].tobytes()
    capfd.readouterr()


def test_sec5_3_step_takes_actions_that_are_no_numbers_as_0():
    environment, goals = HalfCheetah(threads=1), np.ones((1, 1))
    states = at_rest(environment, goals)
    broken = np.array([[[np.nan, 0.5, np.nan, 0.0, -1.0, np.nan]]])
    zeros = np.array([[[0.0, 0.5, 0.0, 0.0, -1.0, 0.0]]])
    for a, b in zip(
        environment.step(states, broken, goals),
        environment.step(states, zeros, goals),
        strict=True,
    ):
        assert a.tobytes() == b.tobytes() and np.isfinite(a).all()
    assert environment.unstable == 0


# --- meta-learning --------------------------------------------------------------------


def cheetah_learner(network, horizon=60, **settings):
    environment = HalfCheetah("direction", horizon=horizon, threads=1)
    policy = tm.GaussianPolicy(network, 6, threads=1)
    return MAMLTRPO(policy, environment, threads=1, **settings)


def test_maml_takes_the_same_outer_step_for_the_same_seed_and_starts_differ():
    steps = []
    for _ in range(2):
        rng = np.random.default_rng(3)
        learner = cheetah_learner(tm.MLP([20, 16, 6]), trajectories=5)
        theta, batch = learner.policy.init(rng), learner.draw(rng, 3)
        steps.append(learner.step(theta, batch))
    assert steps[0].theta.tobytes() == steps[1].theta.tobytes()
    assert steps[0].accepted and 0 < steps[0].inner_kl < 10
    assert batch.start_noise.shape == (2, 3, 5, 18)
    assert repr(batch).endswith("start_noise (2, 3, 5, 18))")
    adaptation = learner.adapt(theta, batch)
    first = np.stack([t.observations[:, :, 0] for t in adaptation.trajectories])
    assert len(np.unique(first[..., 8])) == first[..., 8].size  # one velocity each
    without = batch._replace(start_noise=None)
    with pytest.raises(ValueError, match=r"^start_noise: expected shape \(3, 5, 18\)"):
        learner.adapt(theta, without)


def test_weights_that_ruin_the_inner_step_are_reported_in_one_line():
    """With the weights of `he_normal` a seed's inner step is 1,000 times as large."""
    sizes, settings = [20, 100, 100, 6], {"horizon": 200, "alpha": 0.1}
    usual = cheetah_learner(tm.MLP(sizes), **settings)
    rng = np.random.default_rng(1)
    theta = usual.policy.init(rng)
    assert usual.inner_kl(usual.adapt(theta, usual.draw(rng, 4))) < 0.1
    larger = cheetah_learner(tm.MLP(sizes, initialiser=he_normal()), **settings)
    rng = np.random.default_rng(1)
    theta = larger.policy.init(rng)
    complaint = "^alpha: the inner step moves the policy by a KL of .*: alpha or the"
    with pytest.raises(FloatingPointError, match=complaint):
        larger.step(theta, larger.draw(rng, 4))


# --- bad input ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "complaint"),
    [
        ({"task": "position"}, ValueError, "task: expected one of velocity, direction"),
        ({"horizon": 0}, ValueError, "horizon: expected at least 1, got 0"),
        ({"threads": 0}, ValueError, "threads: expected at least 1, got 0"),
        ({"goal_visible": 1}, TypeError, "goal_visible: expected True or False, got 1"),
    ],
)
def test_bad_settings_are_refused_by_name(arguments, error, complaint):
    with pytest.raises(error, match=f"^{complaint}"):
        HalfCheetah(**arguments)


def test_bad_arrays_are_refused_by_name():
    environment, goals = HalfCheetah(threads=1), np.ones((2, 1))
    states, noise = at_rest(environment, goals, 3), np.zeros((2, 3, 18))
    with pytest.raises(ValueError, match="^shape: expected at least one goal"):
        environment.draw(np.random.default_rng(0), ())
    with pytest.raises(ValueError, match=r"^noise: expected shape \(2, 3, 18\), got"):
        environment.start(goals, 3, noise[..., 1:])
    with pytest.raises(TypeError, match="^shape: expected whole numbers, got 3"):
        environment.draw(np.random.default_rng(0), 3)
    with pytest.raises(ValueError, match="^trajectories: expected at least 1, got 0"):
        environment.start(goals, 0, noise[:, :0])
    expected = (
        r"^goals: expected shape \(2, 1\), one for each task, or \(2, 3, 1\), got"
    )
    for wrong in (np.ones((2, 2)), np.ones((2, 2, 1)), np.ones((2, 1, 3))):
        with pytest.raises(ValueError, match=expected):
            environment.start(wrong, 3, noise)
    for wrong in (np.ones((1, 1)), np.ones((3, 1)), np.ones((3, 3, 1))):
        with pytest.raises(ValueError, match=expected):
            environment.observe(states, wrong)
        with pytest.raises(ValueError, match=expected):
            environment.step(states, np.zeros((2, 3, 6)), wrong)
    with pytest.raises(ValueError, match="^goals: expected finite numbers, got NaN"):
        environment.step(states, np.zeros((2, 3, 6)), np.array([[1.0], [np.nan]]))
    expected = r"^states: expected float64, shape \(tasks, trajectories, 26\), got"
    for wrong in (
        states[0],
        states[..., :-1],
        states.astype(int),
        states.astype("float32"),
    ):
        with pytest.raises(ValueError, match=expected):
            environment.observe(wrong, goals)
        with pytest.raises(ValueError, match=expected):
            environment.step(wrong, np.zeros((2, 3, 6)), goals)
    for call in (
        lambda: environment.observe(states, [[1.0], [1.0]]),
        lambda: environment.step(states, np.zeros((2, 3, 6)), [[1.0], [1.0]]),
    ):
        with pytest.raises(TypeError, match="^goals: expected an array, got list"):
            call()
    with pytest.raises(ValueError, match=r"^actions: expected shape \(2, 3, 6\), got"):
        environment.step(states, np.zeros((2, 3, 5)), goals)


def test_a_package_that_does_not_load_is_not_called_missing(monkeypatch):
    def broken(name):
        raise ImportError("libmujoco.so: cannot open shared object file")

    monkeypatch.setattr("tinymaml.rl.locomotion.import_module", broken)
    with pytest.raises(ImportError, match="^libmujoco.so: cannot open"):
        HalfCheetah()


@pytest.mark.parametrize("name", ["mujoco", "gymnasium"])
def test_a_missing_package_is_named_and_only_when_it_is_needed(name):
    program = f"""
import sys
sys.modules[{name!r}] = None
import tinymaml
from tinymaml.rl.locomotion import Ant
assert not {{"mujoco", "gymnasium"}} & {{n for n in sys.modules if sys.modules[n]}}
try:
    Ant()
except ImportError as error:
    print(error)
"""
    out, errors = run_python(program)
    message = f'{name} is missing: pip install "tinymaml[locomotion]"'
    assert out.splitlines() == [message]
    assert errors == ""
