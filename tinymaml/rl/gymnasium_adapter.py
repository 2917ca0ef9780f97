"""Environments of gymnasium in MAML, and ours in gymnasium's tools.

A task of gymnasium's pendulum shall be its mass. A vector environment has one pendulum
for each trajectory of each task:

    environment = FromGymnasium(
        lambda count: gymnasium.make_vec("Pendulum-v1", num_envs=count),
        draw=lambda rng, shape: rng.uniform(0.5, 1.5, (*shape, 1)),
        set_tasks=lambda envs, masses: envs.set_attr("m", masses[:, 0].tolist()),
        horizon=200,
    )
    policy = GaussianPolicy(MLP([3, 64, 64, 1]), actions=1)
    learner = MAMLTRPO(policy, environment)

The other way round, `ToGymnasium(HalfCheetah("direction"), [1.0])` is a
`gymnasium.Env` of one task, one trajectory at a time.

Left out: actions that are whole numbers or have no bounds, and observations that are
not vectors.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from tinymaml.checks import Array, check_function, check_that, whole_number
from tinymaml.rl.locomotion import package
from tinymaml.rl.rollouts import Environment

try:
    from gymnasium import Env
except ImportError:  # making an object then says what to install
    Env = object

PIXELS = 256  # height and width of a picture
VIEW = 1.5  # metres, from the middle of a picture to its edges


class FromGymnasium:
    """The `Environment` that gymnasium's vector environments make.

    make: count -> a vector environment of `count` copies; it is called anew for another
    number of trajectories.
    draw: (rng, shape) -> tasks, an array with the leading axes `shape`.
    set_tasks: (vector environment, tasks (count, ...)) -> None tells each copy its
    task; by default nothing does.
    horizon: steps of the longest trajectory.

    Actions from -1 to 1 span the range that gymnasium's space of actions allows, and
    larger ones are clipped. The seed of a copy is made of its one number of start
    noise; a vector environment that is not gymnasium's SyncVectorEnv or AsyncVectorEnv
    takes one seed for all copies, made of all their numbers. A copy that has ended must
    start anew by itself, as gymnasium's do unless they are told not to. The copies hold
    the true states, so time only goes forwards: `step` takes the states that the last
    call returned, and no others.

    Raises ImportError if gymnasium is missing, and ValueError or TypeError naming the
    argument that does not fit.
    """

    start_noise = 1

    def __init__(
        self,
        make: Callable[[int], Any],
        draw: Callable[[np.random.Generator, tuple[int, ...]], Array],
        horizon: int,
        set_tasks: Callable[[Any, Array], Any] = lambda envs, tasks: None,
    ) -> None:
        gymnasium = package("gymnasium")
        self._make = check_function("make", make)
        self.draw = check_function("draw", draw)
        self._task_axes = np.ndim(draw(np.random.default_rng(0), (1,)))
        self._set_tasks = check_function("set_tasks", set_tasks)
        self.horizon = whole_number("horizon", horizon)
        envs: Any = make(1)
        vector = gymnasium.vector
        fits = isinstance(envs, vector.VectorEnv)
        check_that(fits, "make", "a vector environment", envs)
        mode = str(envs.metadata.get("autoreset_mode"))
        check_that("DISABLED" not in mode, "make", "copies that start anew", mode)
        kinds = (vector.SyncVectorEnv, vector.AsyncVectorEnv)
        self._seed_each = isinstance(envs.unwrapped, kinds)
        states, space = envs.single_observation_space, envs.single_action_space
        for name, box in (("observations", states), ("actions", space)):
            vectors = isinstance(box, gymnasium.spaces.Box) and len(box.shape) == 1
            check_that(vectors, "make", f"{name} that are vectors of numbers", box)
        with np.errstate(over="ignore"):
            self._low, self._span = space.low, space.high - space.low
        fits = space.dtype.kind == "f" and bool(np.isfinite(self._span).all())
        check_that(fits, "make", "actions that are real numbers with bounds", space)
        (self.observations,), (self.actions,) = states.shape, space.shape
        self._envs, self._states = envs, np.zeros(0)

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        """A copy has environments of its own; its first call is `start`."""
        return type(self), (self._make, self.draw, self.horizon, self._set_tasks)

    def __repr__(self) -> str:
        return f"FromGymnasium({self._envs}, horizon={self.horizon})"

    def start(self, tasks: Array, trajectories: int, noise: Array) -> Array:
        """The first observations (T, B, O), for noise (T, B, 1)."""
        check_that(len(tasks) == len(noise), "tasks", f"{len(noise)}", len(tasks))
        if self._envs.num_envs != noise.size:
            self._envs.close()
            self._envs = self._make(noise.size)
        each = tasks[:, None] if tasks.ndim == self._task_axes else tasks
        each = np.broadcast_to(each, (*noise.shape[:2], *each.shape[2:]))
        self._set_tasks(self._envs, each.reshape(noise.size, *each.shape[2:]))
        seeds = np.abs(noise.astype(np.float64)).view(np.uint64).ravel()
        one = int(np.bitwise_xor.reduce(seeds) % 2**31)
        rows, _ = self._envs.reset(seed=seeds.tolist() if self._seed_each else one)
        self._states = rows.reshape(*noise.shape[:2], -1)
        return self._states

    def observe(self, states: Array, tasks: Array) -> Array:
        """The observations (T, B, O), which are the states."""
        return states

    def step(
        self, states: Array, actions: Array, tasks: Array
    ) -> tuple[Array, Array, Array]:
        """Observations (T, B, O), rewards (T, B), and who has ended (T, B)."""
        fits, expected = states is self._states, "what the last start or step returned"
        check_that(fits, "states", expected, f"another array of shape {states.shape}")
        shape = (*states.shape[:2], self.actions)
        check_that(actions.shape == shape, "actions", f"shape {shape}", actions.shape)
        clipped = np.clip(np.nan_to_num(actions), -1, 1).reshape(-1, self.actions)
        scaled = (self._low + (clipped + 1) / 2 * self._span).astype(self._low.dtype)
        rows, rewards, terminated, truncated, _ = self._envs.step(scaled)
        self._states = rows.reshape(states.shape)
        ends = (terminated | truncated).reshape(shape[:2])
        return self._states, rewards.astype(np.float64).reshape(shape[:2]), ends


class ToGymnasium(Env):
    """One task of an `Environment`, one trajectory at a time, for gymnasium's tools.

    task: what distinguishes the task: numbers, such as a goal. render_mode: None, or
    "rgb_array" where the environment has a `skeleton`. A picture (256, 256, 3) is then
    a stick figure, seen from the side along y and centred on the body: enough to see
    whether it runs, with a line for the floor, and nothing of surfaces and contacts. In
    a video at its 50 pictures a second an ant moves in real time, and a half-cheetah at
    half its speed. `reset` comes before `step` and `render`.

        env = ToGymnasium(Navigation(), [0.3, 0.4])
        observation, info = env.reset(seed=0)
        observation, reward, terminated, truncated, info = env.step(np.ones(2))

    Here the observation is [0.1, 0.1] and the reward -0.3606.

    Raises ImportError if gymnasium is missing, and ValueError naming the argument that
    does not fit.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 50}

    def __init__(
        self, environment: Environment, task: Any, render_mode: str | None = None
    ) -> None:
        box = package("gymnasium").spaces.Box
        modes = [None, "rgb_array"] if hasattr(environment, "skeleton") else [None]
        check_that(render_mode in modes, "render_mode", f"one of {modes}", render_mode)
        self.environment: Any = environment
        self.tasks, self.render_mode = np.array(task, np.float64)[None], render_mode
        _, *shape = environment.draw(np.random.default_rng(0), (1,)).shape
        came = [*self.tasks.shape[1:]]
        check_that(came == shape, "task", f"an array of shape {shape}", came)
        size = environment.observations
        self.observation_space = box(-np.inf, np.inf, (size,), float)
        self.action_space = box(-1.0, 1.0, (environment.actions,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """The first observation (O,), and an empty dictionary."""
        super().reset(seed=seed)
        noise = self.np_random.standard_normal((1, 1, self.environment.start_noise))
        self.states, self.steps = self.environment.start(self.tasks, 1, noise), 0
        return self._seen(), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Observation (O,), reward, terminated, truncated at the horizon, {}."""
        self.states, rewards, ended = self.environment.step(
            self.states, np.asarray(action)[None, None], self.tasks
        )
        self.steps += 1
        truncated = self.steps >= self.environment.horizon
        return self._seen(), float(rewards[0, 0]), bool(ended[0, 0]), truncated, {}

    def render(self) -> Array | None:
        """A stick figure (256, 256, 3), uint8, or None where nothing is rendered."""
        if self.render_mode is None:
            return None
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        lines = self.environment.skeleton(self.states[0, 0])[..., [0, 2]]
        figure = Figure(figsize=(1, 1), dpi=PIXELS)
        canvas, axes = FigureCanvasAgg(figure), figure.add_axes((0, 0, 1, 1))
        axes.plot(*lines.transpose(2, 1, 0), color="black", linewidth=1)
        axes.axhline(0, color="0.6", linewidth=0.5)
        middle = lines[..., 0].mean()
        axes.set(xlim=(middle - VIEW, middle + VIEW), ylim=(-0.5, 2 * VIEW - 0.5))
        axes.set_axis_off()
        canvas.draw()  # type: ignore[no-untyped-call]
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]

    def _seen(self) -> Array:
        return self.environment.observe(self.states, self.tasks)[0, 0].astype(float)
