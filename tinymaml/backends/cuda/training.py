"""Training that stays on the GPU: an iteration is one replay, and nothing comes back.

The graph of an iteration assembles the episodes, runs the tape of the meta-gradient
and takes the optimiser's step; parameters and moments never leave the device. All the
host does is draw random numbers and send them, while the device is busy with the step
before. Losses are noted there and fetched every now and then, with the parameters.

    resident = maml.resident(theta, optimiser, sample)    # `train` does all of this
    resident.step(resident.draw(rng))                     # many times; does not wait
    losses = resident.fetch(theta, optimiser)             # waits; everything comes back

A data set of bytes is copied to the device once; batches of other samplers are sent
from pinned memory.

Left out: optimisers other than SGD and Adam, and columns of a log, which are numbers
that the host makes.
"""

from collections.abc import Callable, Mapping
from math import inf
from typing import Any

import numpy as np

from tinymaml.backends.cuda.device_program import (
    BLOCKS,
    Command,
    Commands,
    DeviceProgram,
    Layout,
)
from tinymaml.tasks.batch import Tasks, as_tasks
from tinymaml.tasks.episodes import Episodes
from tinymaml.training.optim import SGD, Adam, Optimiser

Array = np.ndarray[Any, Any]
MOMENTS: dict[type, tuple[str, ...]] = {SGD: (), Adam: Adam.moment_names}
# As in kernels.cu.
TRAINING = (
    *("scale", "clip", "learning_rate", "beta1", "beta2", "epsilon"),
    *("step", "rate", "failed"),
)
HISTORY = 1024  # losses noted before they must be fetched


class Resident:
    """theta and an optimiser's state on a device, and the graph of a step.

    prepare: a batch -> the program of its meta-gradient, which has the inputs of a
    batch by name, "theta" and what is in `shared`, and the outputs "gradient", a sum
    over tasks, and "losses". theta, optimiser: where to start. mean: whether the loss
    is the mean over tasks, not their sum. clip: largest size of an node of its
    gradient. sample: what `train` draws batches with.
    """

    def __init__(
        self,
        compile: Callable[[Tasks], DeviceProgram],
        theta: Array,
        shared: Mapping[str, Array],
        optimiser: Optimiser,
        mean: bool,
        clip: float | None,
        sample: Callable[[np.random.Generator], Any],
    ) -> None:
        self._prepare, self._mean, self._clip = compile, mean, clip
        self._shared = {**shared, "theta": theta.copy()}
        self._optimiser, self._kind = optimiser, type(optimiser)
        self._episodes = None
        self.draw = sample
        # A subclass may do more than look up images.
        if type(sample) is Episodes and sample.images.dtype == np.uint8:
            self._episodes, self.draw = sample, sample.draw
        self._kinds: list[str] = []  # of a batch's arrays
        self._steps = self._fetched = int(optimiser.state()["step"])

    @property
    def full(self) -> bool:
        """Whether losses must be fetched before the next step."""
        return self._steps - self._fetched == HISTORY

    def step(self, batch: Any) -> None:
        """Send a batch and start an iteration on it; does not wait for its end.

        All batches must have the shapes and dtypes of the first.
        """
        if self._episodes is None:
            batch = as_tasks(batch)
        kinds = [f"{np.shape(array)} {np.asarray(array).dtype}" for array in batch]
        if not self._kinds:
            self._build(batch)
            self._kinds = kinds
        if kinds != self._kinds:
            raise ValueError(
                f"batch: expected arrays {', '.join(self._kinds)} as before, got "
                f"{', '.join(kinds)}"
            )
        self._send(batch)
        self._replay()
        self._steps += 1

    def fetch(self, theta: Array, optimiser: Optimiser) -> list[float]:
        """Wait; bring theta (P,) and the optimiser up to date; the losses since then.

        The loss of a step that failed, because it or its gradient was not finite, is
        NaN, and parameters are those it was found at.
        """
        if self._steps == self._fetched:
            return []
        size, names = theta.size, MOMENTS[self._kind]
        theta[:] = self._device.read(self._memory, self._theta.start, size)
        moments = self._device.read(self._moments, 0, 2 * size).reshape(2, size)
        history = self._device.read(self._history, 0, HISTORY)
        new = [float(history[i % HISTORY]) for i in range(self._fetched, self._steps)]
        self._fetched = self._steps
        if np.isfinite(moments).all():
            state = dict(zip(names, moments, strict=False))
            optimiser.load_state({"step": np.array(self._steps, np.int64), **state})
        return new

    def _send(self, batch: Any) -> None:
        staging = self._stagings[self._steps % 2]  # the other may still be on its way
        staged, first = staging.array, self._layout.per_task
        if self._episodes is not None:
            np.concatenate([numbers.reshape(-1) for numbers in batch], out=staged)
        else:
            for name, array in zip(Tasks._fields, batch, strict=True):
                start = self._layout.inputs[name].start - first
                staged[start : start + array.size] = array.reshape(-1)
        staging.send()

    # --- the graph --------------------------------------------------------------------

    def _build(self, batch: Any) -> None:
        """Lay out memory, capture the graph, and only then put everything in its place:
        a capture may begin with calls that change what they find."""
        tasks = batch if self._episodes is None else self._episodes.look_up(batch)
        program = self._prepare(tasks)
        count, device = len(tasks[0]), program.device
        dtype, size = program.dtype, self._shared["theta"].size
        self._device = device
        self._moments = device.zeros(2 * size, dtype)
        self._history = device.zeros(HISTORY, np.float64)
        self._sums = device.zeros(BLOCKS + 1, dtype)
        self._training = device.zeros(len(TRAINING), np.float64)
        if self._episodes is not None:
            self._images = self._put_images(self._episodes.images)
        together = program.tasks_per_run(count)
        if together < count:
            raise MemoryError(
                f"backend: {count} tasks do not fit the GPU's memory together; take "
                f"at most {together}"
            )
        layout = self._layout = Layout(program.plan, count)
        self._theta = layout.inputs["theta"]
        self._memory = device.zeros(layout.size, dtype)
        commands = Commands(layout, self._memory, dtype, device)
        assemble = self._assemble(commands, batch, tasks)
        steps = [*assemble, *commands.list, *self._update(commands)]
        self._send(batch)  # a capture calls once, and images are looked up by it
        self._commands = commands  # whose chains the graph reads
        self._replay = device.capture(steps)
        self._start(layout, count)

    def _put_images(self, images: Array) -> Any:
        """A copy of the data set on the device."""
        try:
            return self._device.put(np.asarray(images))
        except MemoryError as error:
            raise MemoryError(
                f"backend: the images, {images.nbytes / 1e9:.3g} GB, do not fit the "
                "GPU's memory; give floating images, which are sent batch by batch"
            ) from error

    def _assemble(self, commands: Commands, batch: Any, tasks: Tasks) -> list[Command]:
        """Commands that make the inputs of all tasks out of numbers that are sent."""
        device, layout = self._device, self._layout
        if self._episodes is None:
            size = layout.from_host - layout.per_task
            self._stagings = [
                device.staging(self._memory, layout.per_task, size) for _ in range(2)
            ]
            return []
        numbers = sum(array.size for array in batch)
        self._places = device.zeros(numbers, np.int64)
        self._stagings = [device.staging(self._places, 0, numbers) for _ in range(2)]
        made, address, count = [], self._places.address, len(tasks[0])
        for part, x, y in (("support", *tasks[:2]), ("query", *tasks[2:])):
            bytes_each = count * x.shape[1] * 8  # a whole number for each example
            images, turns, labels, address = (
                address + i * bytes_each for i in range(4)
            )
            to_x, to_y = (
                commands.argument(layout.inputs[f"{name}_{part}"]) for name in "xy"
            )
            pixels = x[0].size, count, *to_x, self._images.address, images, turns
            made.append(commands.launch("look_up", *pixels, *x.shape[1:]))
            made.append(
                commands.launch(
                    "one_hot", y[0].size, count, *to_y, labels, *y.shape[1:]
                )
            )
        return made

    def _update(self, commands: Commands) -> list[Command]:
        """Commands that sum the losses, count the step, and take it."""
        layout, training = self._layout, self._training.address
        count, size = layout.tasks, self._shared["theta"].size
        losses, _ = commands.argument(layout.outputs["losses"])
        gradient, _ = commands.argument(layout.outputs["gradient"])
        theta, _ = commands.argument(self._theta)
        some, blocks = self._sums.address, min(BLOCKS, count)
        total = some + BLOCKS * commands.dtype.itemsize
        arguments = theta, gradient, training, size
        if self._kind is Adam:
            last = commands.launch("adam", size, 1, *arguments, self._moments.address)
        else:
            last = commands.launch("sgd", size, 1, *arguments)
        history = self._history.address, HISTORY
        return [
            commands.launch("sum_tasks", 1, blocks, some, 1, losses, 1, count, 1),
            commands.launch("sum_tasks", 1, 1, total, 1, some, 1, blocks, 1),
            commands.launch("look_at", size, 1, training, gradient, size),
            commands.launch("begin_step", 1, 1, training, total, *history),
            last,
        ]

    def _start(self, layout: Layout, count: int) -> None:
        """Send parameters, constants, moments and settings."""
        staging = self._device.staging(self._memory, 0, layout.per_task)
        for name, array in self._shared.items():
            start = layout.inputs[name].start
            staging.array[start : start + array.size] = array.reshape(-1)
        for start, size, number in layout.constants():
            staging.array[start : start + size] = number
        staging.send()
        state = self._optimiser.state()
        moments = self._device.staging(self._moments, 0, 2 * self._shared["theta"].size)
        moments.array[:] = 0
        for name, part in zip(
            MOMENTS[self._kind], np.split(moments.array, 2), strict=False
        ):
            part[:] = state[name] if state[name].size else 0
        moments.send()
        scale = 1 / count if self._mean else 1.0
        clip = inf if self._clip is None else self._clip
        numbers = dict.fromkeys(TRAINING, 0.0) | self._optimiser.config()
        numbers |= {"scale": scale, "clip": clip, "step": float(state["step"])}
        training = self._device.staging(self._training, 0, len(TRAINING))
        training.array[:] = [numbers[name] for name in TRAINING]
        training.send()
        for sent in (staging, moments, training):
            _ = sent.array  # waits: these buffers are let go now
