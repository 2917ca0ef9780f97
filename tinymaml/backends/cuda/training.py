"""On-device training: an iteration is one launch of a CUDA graph.

The graph of an iteration assembles the episodes, runs the tape of the meta-gradient and
takes the optimiser's step. Parameters and moments stay on the device. The host only
draws random numbers and sends them, while the device computes the previous step. The
device keeps a list of the losses; the host fetches it together with the parameters
whenever the training loop needs them.

    steps = maml.training_steps(theta, optimiser, sample)    # as `train` does
    steps.step(steps.draw(rng))      # many times; does not wait for the device
    results = steps.fetch()          # waits, and brings theta and optimiser up to date

A data set of bytes is copied to the device once. Batches of other samplers are sent
from pinned memory, one by one.

Left out: optimisers other than SGD and Adam, learning-rate schedules, and further
columns of the log, which are numbers that only the host computes.
"""

from collections.abc import Callable, Mapping
from math import inf, isfinite
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
from tinymaml.training.steps import Sample, StepResult

Array = np.ndarray[Any, Any]
MOMENTS: dict[type, tuple[str, ...]] = {SGD: (), Adam: Adam.moment_names}
# The fields of the struct `Training` in kernels.cu, in its order.
TRAINING = (
    *("scale", "clip", "learning_rate", "beta1", "beta2", "epsilon"),
    *("step", "rate", "failed"),
)
HISTORY = 1024  # losses that the device can store before they must be fetched
FAILURE = "the loss or its gradient is not finite, or too large for Adam to square"


class DeviceTraining:
    """The outer steps of one training on a device: the protocol `training.steps.Steps`.

    compile: from a batch to the program of its meta-gradient, which has the inputs of a
    batch by name, "theta" and those in `shared`, and the outputs "gradient", summed
    over tasks, and "losses". theta (P,), optimiser: the start; `fetch` brings them up
    to date. mean: whether the loss is the mean over tasks, not their sum. clip: largest
    size of an entry of the meta-gradient, or None. sample: from a random generator to a
    batch.
    """

    def __init__(
        self,
        compile: Callable[[Tasks], DeviceProgram],
        theta: Array,
        shared: Mapping[str, Array],
        optimiser: Optimiser,
        mean: bool,
        clip: float | None,
        sample: Sample,
    ) -> None:
        self._compile, self._mean, self._clip = compile, mean, clip
        self._theta, self._optimiser = theta, optimiser
        self._shared = {**shared, "theta": theta}
        self._moment_names = MOMENTS[type(optimiser)]
        self._episodes, self._draw = None, sample
        # Not for subclasses of Episodes: they may do more than look up images.
        if type(sample) is Episodes and sample.images.dtype == np.uint8:
            self._episodes, self._draw = sample, sample.draw
        self._kinds: list[str] = []  # shape and dtype of a batch's arrays
        self._steps = self._fetched = int(optimiser.state()["step"])
        self._failed = 0

    @property
    def full(self) -> bool:
        """Whether the device can store no more losses until `fetch` is called."""
        return self._steps - self._fetched == HISTORY

    def draw(self, rng: np.random.Generator) -> Any:
        """A batch, or for a data set on the device the numbers of its images."""
        return self._draw(rng)

    def step(self, batch: Any) -> None:
        """Send a batch and start an iteration on it; does not wait for its end.

        Raises ValueError if a batch does not have the shapes and dtypes of the first.
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
        self._launch()
        self._steps += 1

    def fetch(self) -> list[StepResult]:
        """Wait for the device; bring theta and the optimiser up to date.

        A step whose loss or gradient is not finite has failed. From then on the device
        changes nothing, so theta has the values from before the failed step.
        """
        if self._steps == self._fetched:
            return []
        size = self._theta.size
        self._theta[:] = self._device.read(self._memory, self._theta_view.start, size)
        moments = self._device.read(self._moments, 0, 2 * size).reshape(2, size)
        history = self._device.read(self._history, 0, HISTORY)
        numbers = range(self._fetched, self._steps)
        losses = [float(history[number % HISTORY]) for number in numbers]
        self._fetched = self._steps
        self._failed += sum(not isfinite(loss) for loss in losses)
        # Where no step succeeded the optimiser has no moments yet, and keeps none.
        if self._steps > self._failed and np.isfinite(moments).all():
            state = dict(zip(self._moment_names, moments, strict=False))
            step = np.array(self._steps - self._failed, np.int64)
            self._optimiser.load_state({"step": step, **state})
        return [
            StepResult(loss, failure="" if isfinite(loss) else FAILURE)
            for loss in losses
        ]

    def _send(self, batch: Any) -> None:
        """Copy a batch to the device, from one of two pinned buffers in turn.

        The copy of the previous batch, from the other buffer, may still be running.
        """
        staging = self._stagings[self._steps % 2]
        pinned, first = staging.array, self._layout.per_task
        if self._episodes is not None:
            np.concatenate([numbers.reshape(-1) for numbers in batch], out=pinned)
        else:
            for name, array in zip(Tasks._fields, batch, strict=True):
                start = self._layout.inputs[name].start - first
                pinned[start : start + array.size] = array.reshape(-1)
        staging.send()

    # --- the graph --------------------------------------------------------------------

    def _build(self, batch: Any) -> None:
        """Lay out memory, capture the graph, then send parameters and moments.

        They are sent last because `capture` runs all commands once before it records
        them, and that run overwrites parameters, moments and the count of steps.
        """
        tasks = batch if self._episodes is None else self._episodes.look_up(batch)
        program = self._compile(tasks)
        count, device = len(tasks[0]), program.device
        program.release()  # `meta_gradient` may have run it: here it has other memory
        dtype, size = program.dtype, self._theta.size
        self._device = device
        self._moments = device.zeros(2 * size, dtype)
        self._history = device.zeros(HISTORY, np.float64)
        self._sums = device.zeros(BLOCKS + 1, dtype)
        self._training = device.zeros(len(TRAINING), np.float64)
        if self._episodes is not None:
            self._images = self._put_images(self._episodes.images)
        together = program.tasks_per_run(count)
        if together < count:
            # `together` is the size of equal parts; more may fit.
            most = max(n for n in range(1, count) if program.tasks_per_run(n) == n)
            raise MemoryError(
                f"backend: {count} tasks do not fit the GPU's memory together; take "
                f"at most {most}"
            )
        layout = self._layout = Layout(program.plan, count)
        self._theta_view = layout.inputs["theta"]
        self._memory = device.zeros(layout.size, dtype)
        commands = Commands(layout, self._memory, dtype, device)
        assemble = self._assemble(commands, batch, tasks)
        steps = [*assemble, *commands.list, *self._update(commands)]
        self._send(batch)  # so that the run within `capture` finds valid image numbers
        self._commands = commands  # the graph reads their tables of fused groups
        self._launch = device.capture(steps)
        self._send_start(layout, count)

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
        """Commands that make the inputs of all tasks out of the numbers sent.

        There are none for a batch of arrays, which is sent as it is.
        """
        device, layout = self._device, self._layout
        if self._episodes is None:
            size = layout.from_host - layout.per_task
            self._stagings = [
                device.staging(self._memory, layout.per_task, size) for _ in range(2)
            ]
            return []
        numbers = sum(array.size for array in batch)
        self._numbers = device.zeros(numbers, np.int64)
        self._stagings = [device.staging(self._numbers, 0, numbers) for _ in range(2)]
        assemble, address, count = [], self._numbers.address, len(tasks[0])
        for part, x, y in (("support", *tasks[:2]), ("query", *tasks[2:])):
            # The numbers of the images, the rotations and the labels follow each other:
            # one int64 of each for every example.
            length = count * x.shape[1] * 8
            images, rotations, labels, address = (
                address + i * length for i in range(4)
            )
            to_x, to_y = (
                commands.argument(layout.inputs[f"{name}_{part}"]) for name in "xy"
            )
            pixels = x[0].size, count, *to_x, self._images.address, images, rotations
            assemble.append(commands.launch("look_up", *pixels, *x.shape[1:]))
            assemble.append(
                commands.launch(
                    "one_hot", y[0].size, count, *to_y, labels, *y.shape[1:]
                )
            )
        return assemble

    def _update(self, commands: Commands) -> list[Command]:
        """Commands that sum the losses over tasks, count the step, and take it."""
        layout, training = self._layout, self._training.address
        count, size = layout.tasks, self._theta.size
        losses, _ = commands.argument(layout.outputs["losses"])
        gradient, _ = commands.argument(layout.outputs["gradient"])
        theta, _ = commands.argument(self._theta_view)
        partial_sums, blocks = self._sums.address, min(BLOCKS, count)
        total = partial_sums + BLOCKS * commands.dtype.itemsize
        arguments = theta, gradient, training, size
        if isinstance(self._optimiser, Adam):
            update = commands.launch("adam", size, 1, *arguments, self._moments.address)
        else:
            update = commands.launch("sgd", size, 1, *arguments)
        history = self._history.address, HISTORY
        return [
            commands.launch(
                "sum_tasks", 1, blocks, partial_sums, 1, losses, 1, count, 1
            ),
            commands.launch("sum_tasks", 1, 1, total, 1, partial_sums, 1, blocks, 1),
            commands.launch("look_at", size, 1, training, gradient, size),
            commands.launch("begin_step", 1, 1, training, total, *history),
            update,
        ]

    def _send_start(self, layout: Layout, count: int) -> None:
        """Send parameters, constants, moments and the optimiser's settings."""
        staging = self._device.staging(self._memory, 0, layout.per_task)
        for name, array in self._shared.items():
            start = layout.inputs[name].start
            staging.array[start : start + array.size] = array.reshape(-1)
        for start, size, number in layout.constants():
            staging.array[start : start + size] = number
        staging.send()
        state = self._optimiser.state()
        moments = self._device.staging(self._moments, 0, 2 * self._theta.size)
        moments.array[:] = 0
        halves = np.split(moments.array, 2)
        for name, part in zip(self._moment_names, halves, strict=False):
            part[:] = state[name] if state[name].size else 0
        moments.send()
        scale = 1 / count if self._mean else 1.0
        clip = inf if self._clip is None else self._clip
        numbers = dict.fromkeys(TRAINING, 0.0) | self._optimiser.config()
        numbers |= {"scale": scale, "clip": clip, "step": float(state["step"])}
        training = self._device.staging(self._training, 0, len(TRAINING))
        training.array[:] = [numbers[name] for name in TRAINING]
        training.send()
        # Reading `array` waits for the copies: these buffers are freed on return.
        for buffer in (staging, moments, training):
            _ = buffer.array
