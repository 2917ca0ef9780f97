"""Locomotion: the half-cheetah and the ant of section 5.3, figure 5, on MuJoCo.

    environment = HalfCheetah("direction")   # or "velocity"; Ant also has "position"
    goals = environment.draw(rng, (20,))     # 20 tasks: directions -1 or 1, (20, 1)

A task is a velocity to run at, a direction to run in or a position to reach. The agent
sees its body, but not the goal. MuJoCo moves all trajectories of all tasks in one call,
in threads. A state (S,) holds MuJoCo's full physics state, then what was measured
there, then 1 if the trajectory has ended. A trajectory that has ended stays where it is
and costs nothing. The same states and actions give the same bits for any number of
threads, and for a trajectory alone or among others.

Observations, rewards, costs, ends of trajectories, the noise of the start, the range of
actions and the horizon are those of the authors' code, which is built on rllab. The
bodies are rllab's too: gymnasium's package has them, and where its ant differs (time
step, softness of contacts) rllab's values are set here.

Deviations from the authors' code:

- The engine is MuJoCo 3.3.5 or newer, not 1.31. Contacts, friction and the solver of
  constraints differ. MuJoCo 3.5 and 4.0 changed the ant's contacts again, and so its
  trajectories; the half-cheetah's are the same. Masses of capsules are exact, where
  1.31 took cylinders: the ant weighs 0.911 kg and not 0.879, and the parts of the
  cheetah share its 14 kg a little differently.
- Where physics becomes unstable (a number in a state is not finite or beyond 1e6), the
  trajectory ends with a reward of 0 and is counted in `unstable`. MuJoCo notes it on
  the terminal and in a file MUJOCO_LOG.TXT of the current folder, several times.
- A direction is drawn as -1 or 1; the authors draw a number and compare it with the
  middle of its range.

Left out: other bodies, and pictures; `skeleton` returns lines that can be drawn.
"""

import copy
import ctypes
import os
from functools import cache
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from tinymaml.backends.programs import free_after_fork
from tinymaml.checks import (
    Array,
    check_arrays,
    check_choice,
    check_finite,
    check_flags,
    check_sizes,
    check_that,
    check_threads,
    whole_number,
    whole_numbers,
)

HORIZON = 200  # steps
NOISE = (0.01, 0.1)  # standard deviations of positions and velocities at the start
SIGNS = (-1.0, 1.0, 1)  # a direction is the sign of one number between -1 and 1
LARGEST = 1e6  # physics beyond it is unstable: rllab's bound of an observation
CHEETAH_TIMESTEP = 0.01  # seconds; one step of the environment is one of MuJoCo
CHEETAH_MASS = 14.0  # kilograms, of the whole body
ANT_TIMESTEP = 0.02  # seconds, as in rllab; gymnasium's file has 0.01
ANT_SOFTNESS = (0.8, 0.8, 0.01, 0.5, 2.0)  # MuJoCo's solimp of contacts, as in rllab
ANT_CONTACT_COST = 0.0005  # of a squared force or torque
ANT_BONUS = {"velocity": 1.05, "direction": 0.05, "position": 4.05}  # for each step
ANT_HEIGHTS = (0.2, 1.0)  # metres: a trajectory ends where the torso is beyond them
THREADS_IN_USE = free_after_fork(Lock())  # MuJoCo's serve one call at a time


def package(name: str) -> Any:
    """MuJoCo, gymnasium or a module of theirs, or an ImportError with the remedy."""
    try:
        return import_module(name)
    except ModuleNotFoundError:
        message = f'{name} is missing: pip install "tinymaml[locomotion]"'
        raise ImportError(message) from None


@cache
def thread_pool(threads: int, process: int) -> Any:
    """MuJoCo's pool of threads, of one process. For 1 the calling thread does the work.

    A forked process has the pool of its parent, but not the threads. So it needs a pool
    of its own, and must never destroy its parent's, which would wait for the threads
    for ever: a reference that nobody gives back keeps it, at the end of Python too.
    """
    pool = package("mujoco.rollout").Rollout(nthread=threads * (threads > 1))
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(pool))
    return pool


class Locomotion:
    """What the two bodies share; use `HalfCheetah` or `Ant`.

    task: the kind of task. horizon: steps of the longest trajectory, at least 1.
    goal_visible: whether observations end with the goal, as for an oracle. threads: of
    MuJoCo; by default one per core.

    Raises ImportError if MuJoCo or gymnasium is missing, and ValueError or TypeError
    naming the argument.
    """

    file: str  # the model's, in gymnasium's package
    goals: dict[str, tuple[float, float, int]]  # lowest, highest, how many numbers
    actions: int
    body: int  # numbers of an observation, without the goal
    cost: float  # of a squared action

    def __init__(
        self,
        task: str = "velocity",
        horizon: int = HORIZON,
        goal_visible: bool = False,
        threads: int | None = None,
    ) -> None:
        check_flags(goal_visible=goal_visible)
        self.task = check_choice("task", task, self.goals)
        self.horizon, self.goal_visible = whole_number("horizon", horizon), goal_visible
        self.threads = check_threads(threads, os.cpu_count() or 1)
        self.unstable = 0  # trajectories that unstable physics has ended
        *_, self.goal_size = self.goals[task]
        self.observations = self.body + self.goal_size * goal_visible
        self._compile()
        self.start_noise = self.model.nq + self.model.nv

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.task!r}, horizon={self.horizon}, "
            f"goal_visible={self.goal_visible}, threads={self.threads})"
        )

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a pickle makes models, memory and a lock of its own."""
        own = ("model", "_measuring", "_buffers", "_lock")
        return {name: vars(self)[name] for name in vars(self) if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._compile()

    # --- the protocol of environments ---

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """New goals, one for each task (T,) or trajectory (T, B): (*shape, G).

        G is 2 for a position and 1 else; numbers are float64, in metres and seconds.
        """
        check_that(whole_numbers("shape", shape), "shape", "at least one goal", shape)
        # [sec5-3-tasks]
        lowest, highest, size = self.goals[self.task]
        goals = rng.uniform(lowest, highest, (*shape, size))
        return np.where(goals < 0, -1.0, 1.0) if self.task == "direction" else goals
        # [/sec5-3-tasks]

    def start(self, goals: Array, trajectories: int, noise: Array) -> Array:
        """The first states (T, B, S): at rest, and noise (T, B, D) on every number.

        The standard deviation of the noise is 0.01 for positions and 0.1 for
        velocities. D = `start_noise`; where noise is 0 the body is at rest.
        """
        check_arrays(goals=goals, noise=noise)
        (trajectories,) = check_sizes(trajectories=trajectories)
        shape = (len(goals), trajectories, self.start_noise)
        check_that(noise.shape == shape, "noise", f"shape {shape}", noise.shape)
        self._of_trajectories(goals, *shape[:2])
        # [sec5-3-start]
        stds = np.repeat(NOISE, (self.model.nq, self.model.nv))
        count = len(goals) * trajectories
        physics = np.tile(self._rest, (count, 1))
        physics[:, self._moving] += stds * noise.reshape(count, -1)
        # [/sec5-3-start]
        measured = self._measure(physics, np.zeros((count, self.actions)))
        states = np.concatenate([physics, measured, np.zeros((count, 1))], axis=1)
        return states.reshape(*shape[:2], -1)

    def observe(self, states: Array, goals: Array) -> Array:
        """What the agent sees: (T, B, observations)."""
        # [sec5-3-oracle]
        goals = self._of_trajectories(goals, *self._shape(states))
        parts = [self._see(states), goals] if self.goal_visible else [self._see(states)]
        return np.concatenate(parts, axis=-1)
        # [/sec5-3-oracle]

    def step(
        self, states: Array, actions: Array, goals: Array
    ) -> tuple[Array, Array, Array]:
        """New states (T, B, S), rewards (T, B), and who has ended (T, B).

        actions: (T, B, A). 1 is the largest torque, and larger actions are clipped.
        """
        check_arrays(actions=actions)
        shape = (*self._shape(states), self.actions)
        check_that(actions.shape == shape, "actions", f"shape {shape}", actions.shape)
        goals = self._of_trajectories(goals, *shape[:2])
        # [sec5-3-step]
        states, rewards = states.copy(), np.zeros(states.shape[:2])
        alive = states[..., -1] == 0
        # NaN counts as 0 here, so that the simulation goes on. `MAMLTRPO` finds such
        # actions in the trajectories and reports their cause.
        controls = np.clip(np.nan_to_num(actions[alive].astype(np.float64)), -1, 1)
        rows, stable = self._move(states[alive], controls)
        rows[:, -1] = ~stable | self._fallen(rows)
        self.unstable += int((~stable).sum())
        reward = self._reward(rows, controls, goals[alive])
        states[alive], rewards[alive] = rows, np.where(stable, reward, 0.0)
        return states, rewards, states[..., -1] == 1
        # [/sec5-3-step]

    # --- physics ---

    def _compile(self) -> None:
        """Make MuJoCo's model, and a second one that measures.

        After a step MuJoCo's sensors still show the state before it. The second model
        shows them for a state at a fraction of a step's cost: it integrates by Euler's
        method, whose result is not used, and leaves out contacts and torques unless
        contacts are measured.
        """
        mujoco, gymnasium = package("mujoco"), package("gymnasium")
        assets = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
        spec = mujoco.MjSpec.from_file(str(assets / self.file))
        sensors, body = mujoco.mjtSensor, mujoco.mjtObj.mjOBJ_BODY
        for kind in (sensors.mjSENS_SUBTREECOM, sensors.mjSENS_SUBTREELINVEL):
            spec.add_sensor(type=kind, objtype=body, objname="torso")
        model = self._finish(spec, mujoco)
        off = mujoco.mjtDisableBit
        # A trajectory that becomes unstable is to be seen, and not to start anew.
        model.opt.disableflags |= int(off.mjDSBL_AUTORESET)
        measuring = copy.deepcopy(model)
        measuring.opt.integrator = int(mujoco.mjtIntegrator.mjINT_EULER)
        if not (model.sensor_type == int(sensors.mjSENS_CONTACT)).any():
            for unused in ("CONSTRAINT", "CONTACT", "ACTUATION", "EULERDAMP"):
                measuring.opt.disableflags |= int(getattr(off, f"mjDSBL_{unused}"))
        model.opt.disableflags |= int(off.mjDSBL_SENSOR)
        self.model, self._measuring = model, measuring
        self._buffers = [
            [mujoco.MjData(m) for _ in range(self.threads)] for m in (model, measuring)
        ]
        # Two threads of Python may use this environment, but one at a time.
        self._lock = free_after_fork(Lock()) if self.threads == 1 else THREADS_IN_USE
        kind = mujoco.mjtState.mjSTATE_FULLPHYSICS
        self._rest = np.zeros(mujoco.mj_stateSize(model, kind))
        mujoco.mj_getState(model, self._buffers[0][0], self._rest, kind)
        # The physics state is the time, then positions, then velocities.
        self._positions = slice(1, 1 + model.nq)
        self._moving = slice(1, 1 + model.nq + model.nv)
        # Behind it is what was measured: first the centre of mass and its velocity.
        n = self._size = len(self._rest)
        self._com, self._com_velocity = slice(n, n + 3), slice(n + 3, n + 6)
        self._width = n + 7  # of a state, whose last number says that it has ended

    def _move(self, before: Array, controls: Array) -> tuple[Array, Array]:
        """The rows (N, S) one step later, and where physics was stable (N,)."""
        # [sec5-3-unstable]
        rows = before.copy()
        after = self._rollout(0, before[:, : self._size], controls)[0]
        # The comparison is false for NaN, too.
        stable = np.asarray((np.abs(after) <= LARGEST).all(axis=1))
        rows[stable, : self._size] = after[stable]
        measured = self._measure(rows[:, : self._size], controls)
        stable &= np.isfinite(measured).all(axis=1)
        rows[:, self._size : -1] = measured
        rows[~stable] = before[~stable]
        return rows, stable
        # [/sec5-3-unstable]

    def _measure(self, physics: Array, controls: Array) -> Array:
        """What is measured in the states of physics (N, physics)."""
        return self._rollout(1, physics, controls)[1]

    def _rollout(self, which: int, physics: Array, controls: Array) -> list[Array]:
        """States and sensors after a step of the model (0) or the measuring one (1)."""
        model, buffers = (self.model, self._measuring)[which], self._buffers[which]
        if len(physics) == 0:
            return [physics, np.zeros((0, model.nsensordata))]
        physics, controls = np.ascontiguousarray(physics), controls[:, None]
        with self._lock:
            pool = thread_pool(self.threads, os.getpid())
            return [a[:, 0] for a in pool.rollout(model, buffers, physics, controls)]

    def skeleton(self, state: Array) -> Array:
        """The body of one state (S,) as lines, in metres: (lines, 2 ends, 3)."""
        mujoco, model = package("mujoco"), self.model
        data = mujoco.MjData(model)
        data.qpos[:] = state[self._positions]
        mujoco.mj_kinematics(model, data)
        capsules = model.geom_type == int(mujoco.mjtGeom.mjGEOM_CAPSULE)
        # A capsule is as long as its half-length says on both sides, along its z axis.
        axes = data.geom_xmat.reshape(-1, 3, 3)[capsules, :, 2]
        half = axes * model.geom_size[capsules, 1:2]
        return data.geom_xpos[capsules, None] + np.stack([-half, half], axis=1)

    # --- what the bodies differ in ---

    def _finish(self, spec: Any, mujoco: Any) -> Any:
        """Complete MuJoCo's specification of the body, and compile it."""
        raise NotImplementedError

    def _see(self, states: Array) -> Array:
        """Observations of the body."""
        raise NotImplementedError

    def _reward(self, rows: Array, controls: Array, goals: Array) -> Array:
        """Rewards (N,) of states (N, S) that were reached by controls (N, A)."""
        # [sec5-3-rewards]
        velocity = rows[:, self._com_velocity][:, 0]
        if self.task == "direction":
            progress = goals[:, 0] * velocity
        elif self.task == "velocity":
            progress = -np.abs(velocity - goals[:, 0])
        else:
            progress = -np.abs(rows[:, self._com][:, :2] - goals).sum(axis=1)
        return progress - self.cost * np.square(controls).sum(axis=1)
        # [/sec5-3-rewards]

    def _fallen(self, rows: Array) -> Array:
        """Which trajectories end in these states: (N,)."""
        return np.zeros(len(rows), dtype=bool)

    def _shape(self, states: Array) -> tuple[int, int]:
        """The numbers of tasks and of trajectories, (T, B), of states (T, B, S)."""
        check_arrays(states=states)
        fits = states.ndim == 3 and states.shape[2] == self._width
        expected = f"float64, shape (tasks, trajectories, {self._width})"
        came = f"{states.dtype}, shape {states.shape}"
        check_that(fits and states.dtype == np.float64, "states", expected, came)
        return states.shape[0], states.shape[1]

    def _of_trajectories(self, goals: Array, tasks: int, trajectories: int) -> Array:
        """A goal for each trajectory, (T, B, G), of goals (T, G) or (T, B, G)."""
        check_arrays(goals=goals)
        each, size = (tasks, trajectories, self.goal_size), self.goal_size
        fits = goals.shape in ((tasks, size), (tasks, 1, size), each) and goals.size > 0
        expected = f"shape ({tasks}, {size}), one for each task, or {each}"
        check_that(fits, "goals", expected, goals.shape)
        check_finite(goals=goals)
        return np.broadcast_to(goals[:, None] if goals.ndim == 2 else goals, each)


class HalfCheetah(Locomotion):
    """A planar body of seven parts that runs by torques at six joints.

    The reward is -|v - goal|, or goal * v for a direction, where v is the horizontal
    velocity of the centre of mass, minus 0.05 times the squared actions. Goals are
    velocities in [0, 2] metres per second, or directions -1 and 1. Trajectories end at
    the horizon only. Observations: positions without the horizontal one, velocities,
    the centre of mass.

    Settings and errors are those of `Locomotion`.
    """

    file = "half_cheetah.xml"
    goals = {"velocity": (0.0, 2.0, 1), "direction": SIGNS}
    actions, body, cost = 6, 20, 0.05

    def _finish(self, spec: Any, mujoco: Any) -> Any:
        # [sec5-3-cheetah-body]
        spec.option.timestep = CHEETAH_TIMESTEP
        # The file's `settotalmass` is deprecated. What follows does the same.
        spec.compiler.settotalmass = 0
        model = spec.compile()
        mujoco.mj_setTotalmass(model, CHEETAH_MASS)
        mujoco.mj_setConst(model, mujoco.MjData(model))
        return model
        # [/sec5-3-cheetah-body]

    def _see(self, states: Array) -> Array:
        # [sec5-3-observations]
        moving = states[..., self._moving][..., 1:]
        return np.concatenate([moving, states[..., self._com]], axis=-1)
        # [/sec5-3-observations]


class Ant(Locomotion):
    """A body with four legs that walks in any direction by torques at eight joints.

    The reward is -|v - goal| + 1 for a velocity in [0, 3] metres per second along x,
    goal * v for a direction, and -|x - goal_x| - |y - goal_y| + 4 for a position in
    [-3, 3]^2, where v and (x, y) are those of the centre of mass. Each step adds 0.05
    to the reward, and costs 0.005 times the squared actions and 0.0005 times the
    squared contact forces, which are clipped to [-1, 1]. A trajectory ends where the
    torso is below 0.2 or above 1 metre. Observations: positions, velocities, the
    clipped forces and torques of contacts on each part, the torso's rotation matrix,
    the centre of mass.

    Settings and errors are those of `Locomotion`.
    """

    file = "ant.xml"
    goals = {"velocity": (0.0, 3.0, 1), "direction": SIGNS, "position": (-3.0, 3.0, 2)}
    actions, body, cost = 8, 125, 0.005

    def _finish(self, spec: Any, mujoco: Any) -> Any:
        frame, geom = mujoco.mjtObj.mjOBJ_XBODY, mujoco.mjtObj.mjOBJ_GEOM
        for axis in "XYZ":
            kind = getattr(mujoco.mjtSensor, f"mjSENS_FRAME{axis}AXIS")
            spec.add_sensor(type=kind, objtype=frame, objname="torso")
        # For each part: force, torque and place of its contacts with the floor, summed
        # up. Nothing else touches: the parts do not collide with each other.
        kind, fields, summed = mujoco.mjtSensor.mjSENS_CONTACT, 0b10110, 3
        for part in spec.geoms[1:]:
            sensor = spec.add_sensor(type=kind, objtype=geom, objname=part.name)
            sensor.reftype, sensor.refname = geom, "floor"
            sensor.intprm[:3] = fields, summed, 1
        # [sec5-3-ant-body]
        spec.option.timestep = ANT_TIMESTEP
        model = spec.compile()
        model.geom_solimp[:] = ANT_SOFTNESS
        return model
        # [/sec5-3-ant-body]

    def _compile(self) -> None:
        super()._compile()
        self._rest[self._positions] = self.model.numeric("init_qpos").data
        self._rotation = slice(self._size + 6, self._size + 15)
        self._forces = slice(self._size + 15, self._size + 15 + 6 * self.model.nbody)
        self._width = self._forces.stop + 1

    def _measure(self, physics: Array, controls: Array) -> Array:
        """The centre of mass and its velocity, the rotation, clipped contact forces."""
        sensors = super()._measure(physics, controls)
        n, parts = len(sensors), self.model.nbody - 1
        rotation = sensors[:, 6:15].reshape(n, 3, 3).swapaxes(1, 2)  # from its columns
        contacts = sensors[:, 15:].reshape(n, parts, 3, 3)
        force, torque, place = np.moveaxis(contacts, 2, 0)  # each (N, parts, 3)
        # MuJoCo's cfrc_ext: torques about the centre of mass, then forces, and first
        # those on the world, which are 0. Sensors show what the floor feels.
        torque = torque + np.cross(place - sensors[:, None, :3], force)
        forces = np.clip(-np.concatenate([torque, force], axis=2), -1, 1)
        forces = np.c_[np.zeros((n, 6)), forces.reshape(n, 6 * parts)]
        return np.concatenate([sensors[:, :6], rotation.reshape(n, 9), forces], axis=1)

    def _see(self, states: Array) -> Array:
        # [sec5-3-ant-observations]
        parts = (self._moving, self._forces, self._rotation, self._com)
        return np.concatenate([states[..., part] for part in parts], axis=-1)
        # [/sec5-3-ant-observations]

    def _reward(self, rows: Array, controls: Array, goals: Array) -> Array:
        # [sec5-3-ant-rewards]
        contact_cost = ANT_CONTACT_COST * np.square(rows[:, self._forces]).sum(axis=1)
        reward = super()._reward(rows, controls, goals)
        return reward + ANT_BONUS[self.task] - contact_cost
        # [/sec5-3-ant-rewards]

    def _fallen(self, rows: Array) -> Array:
        # [sec5-3-ant-end]
        height, (lowest, highest) = rows[:, self._positions][:, 2], ANT_HEIGHTS
        return (height < lowest) | (height > highest)
        # [/sec5-3-ant-end]
