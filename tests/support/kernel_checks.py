"""Checks of kernels.cu, kernel by kernel, which its mutants must not pass.

A check takes a `SerialBackend` and a dtype. The threads of its grids run in any order,
and a read beyond an array gives NaN.
"""

from itertools import product

import numpy as np

import tinymaml as tm
from tests.support.random_programs import random_inputs
from tests.support.running import AGREE, assert_close, run_tape
from tinymaml.autodiff.convolution import max_pool
from tinymaml.autodiff.functions import (
    concatenate,
    cos,
    exp,
    log,
    logsumexp,
    relu,
    rsqrt,
    sin,
    softmax,
    tanh,
)
from tinymaml.backends.cuda.device_plan import ELEMENTWISE, device_plan
from tinymaml.backends.cuda.training import TRAINING

GRID = {"grid": (2, 3), "threads": 2, "seed": 0}


def assert_agrees(backend, dtype, tape, inputs):
    """Results agree with the reference, and have NaN and infinity where it has."""
    inputs = {name: np.array(array, dtype) for name, array in inputs.items()}
    with np.errstate(all="ignore"):
        expected = run_tape(tape, inputs, "numpy", dtype)
    results = backend.compile(tape, dtype)(inputs)
    for name, array in expected.items():
        finite = np.isfinite(array)
        assert np.array_equal(results[name][~finite], array[~finite], equal_nan=True)
        assert_close(results[name][finite], array[finite], AGREE[dtype], name)


def sprinkled(array, numbers, seed=0):
    """An array, a third of which is replaced by some numbers."""
    rng = np.random.default_rng(seed)
    replacements = rng.choice(numbers, array.shape)
    return np.where(rng.random(array.shape) < 1 / 3, replacements, array)


# --- kernels of tapes -----------------------------------------------------------------


def check_elementwise(backend, dtype):
    """Every operation, with operands per task, shared and broadcast; with NaN too."""
    tape, shape = tm.Tape(), (2, 3, 2)
    x, z = tape.input("x", shape, per_task=True), tape.input("z", shape)
    few = tape.input("few", (2, 1, 2), per_task=True)
    row = tape.input("row", (2,), per_task=True)
    square = tape.input("square", (2, 2), per_task=True)
    wide = few.broadcast_to(shape)
    safe = x * x + 0.5
    values = {
        "add": x + few,
        "sub": x - z,
        "sub few": x - few,
        "mul": x * few,
        "mul_add": tanh(z) + x * z,
        "mul_add alone": row.reshape(2, 1) @ row.reshape(1, 2) + square * square,
        "mul_add row": tanh(x) + z * row,
        "add_relu": relu(x + few),
        "add_relu row": relu(z + row),
        "gate": tape.record("gate", z, x),
        "scale": x * -0.7,
        "relu": relu(x),
        "exp": exp(x),
        "log": log(safe),
        "sin": sin(x),
        "cos": cos(x),
        "tanh": tanh(x),
        "reciprocal": 1 / x,
        "rsqrt": rsqrt(safe),
        "copy": concatenate([x.reshape(12), z.reshape(12)]),
        "broadcast": tape.record("broadcast", few, start=1, sizes=(3,)),
        "broadcast of three": z.reshape(4, 3) + tanh(z).reshape(12)[:3],
        "tanh of broadcast": tanh(wide),
        "pad": tape.record("pad", x.reshape(12), start=3, size=19),
    }
    for name, value in values.items():
        tape.output(name, value)
    launches = device_plan(tape).instructions
    operations = {call.kernel for launch in launches for call in launch.operations}
    assert operations == {*ELEMENTWISE}
    inputs = random_inputs(tape, seed=0, tasks=5)
    assert_agrees(backend, dtype, tape, inputs)
    some = [np.nan, np.inf, -np.inf, 0.0]
    inputs = {name: sprinkled(array, some) for name, array in inputs.items()}
    assert_agrees(backend, dtype, tape, inputs)


def check_sums(backend, dtype):
    """Sums in one pass and in two, of products, and over 1 to 100 tasks."""
    tape = tm.Tape()
    x, z = (tape.input(name, (2, 3, 4), per_task=True) for name in "xz")
    long = tape.input("long", (2, 96, 3))
    y = tape.input("y", (2, 96, 3), per_task=True)
    for name, value in (("x", x), ("x z", x * z), ("long", y), ("long y", y * long)):
        tape.output(name, tape.record("sum", value, start=1, stop=2))
        tape.output(
            f"tasks of {name}", tape.record("sum", value, start=1, stop=2), "sum"
        )
    for tasks in (1, 2, 33, 100):
        assert_agrees(backend, dtype, tape, random_inputs(tape, tasks, tasks))


def check_swaps(backend, dtype):
    """Axes exchanged: of matrices, between and behind other axes, of all lengths."""
    tape = tm.Tape()
    x = tape.input("x", (2, 3, 4, 5), per_task=True)
    for axes in ((3, 2, 1, 0), (0, 2, 1, 3), (0, 1, 3, 2), (1, 0, 2, 3), (2, 3, 0, 1)):
        tape.output(f"{axes}", x.transpose(*axes))
    tape.output("matrix", x.reshape(8, 15).T + 1.0)
    assert_agrees(backend, dtype, tape, random_inputs(tape, seed=0, tasks=3))


def check_rows(backend, dtype):
    """Logits: so large that exp overflows, NaN, the largest in any column."""
    tape = tm.Tape()
    for shape in ((3, 5), (4, 2), (2, 1)):
        x = tape.input(f"{shape}", shape, per_task=True)
        tape.output(f"softmax {shape}", softmax(x))
        tape.output(f"logsumexp {shape}", logsumexp(x))
    inputs = random_inputs(tape, seed=0, tasks=4)
    assert_agrees(backend, dtype, tape, inputs)
    large = {name: 1000 * array for name, array in inputs.items()}
    assert_agrees(backend, dtype, tape, large)
    some = {name: sprinkled(array, [np.nan]) for name, array in inputs.items()}
    assert_agrees(backend, dtype, tape, some)


def check_convolutions(backend, dtype):
    """Convolutions: all sizes differ, strides 1 to 3, padding, stored or added."""
    for stride, padding, size in (
        (1, (1, 0), (3, 4)),  # taps that meet no pixel on any side, pixels that no tap
        (1, (2, 1), (5, 7)),
        (2, (2, 1), (3, 4)),
        (3, (0, 1), (2, 3)),
    ):
        tape, how = tm.Tape(), {"stride": stride, "padding": padding}
        shapes = {"x": (2, 4, 6, 3), "w": (3, 2, 3, 5), "g": (2, *size, 5)}
        x, w, g = (tape.input(*item, per_task=True) for item in shapes.items())

        def all_three(x, w, g, tape=tape, size=size, how=how):
            return [
                tape.record("conv", x, w, size=size, **how),
                tape.record("conv_input", g, w, size=(4, 6), **how),
                tape.record("conv_weight", x, g, size=(3, 2), **how),
            ]

        for i, value in enumerate(all_three(x, w, g)):
            tape.output(f"value {i}", value)
        values = all_three(x * 2.0, w * 2.0, g * 2.0)
        for i, (base, value) in enumerate(zip((g, x, w), values, strict=True)):
            tape.output(f"added {i}", tanh(base) + value)
        assert_agrees(backend, dtype, tape, random_inputs(tape, seed=0, tasks=3))


def check_pools(backend, dtype):
    """Pools: pixels of no window, equal elements (the first counts), NaN."""
    for seed, (height, width, size) in enumerate([(5, 7, 2), (4, 4, 2), (7, 6, 3)]):
        tape = tm.Tape()
        shape = 2, height, width, 3
        small = 2, height // size, width // size, 3
        x, z = (tape.input(name, shape, per_task=True) for name in "xz")
        g = tape.input("g", small, per_task=True)
        tape.output("pool", max_pool(x, size))
        tape.output("gather", tape.record("max_gather", z, x, size=size))
        tape.output("scatter", tape.record("max_scatter", g, x, size=size))
        inputs = random_inputs(tape, seed, tasks=3)
        for some in ([0.0], [9.0], [9.0, np.nan, np.nan]):
            inputs["x"] = sprinkled(inputs["x"], some, seed)
            assert_agrees(backend, dtype, tape, inputs)


# --- kernels of training --------------------------------------------------------------


class Arrays:
    """Arrays on the device, by name, and launches of kernels with them."""

    def __init__(self, backend, dtype, **arrays):
        self.device, self.dtype = backend.device, dtype
        self.sizes = {name: array.size for name, array in arrays.items()}
        self.memory = {name: self.device.put(array) for name, array in arrays.items()}

    def __getitem__(self, name):
        return self.device.read(self.memory[name], 0, self.sizes[name])

    def __setitem__(self, name, array):
        staging = self.device.staging(self.memory[name], 0, array.size)
        staging.array[:] = array
        staging.send()

    def launch(self, kernel, tasks, *arguments):
        """Launch a kernel; an argument is the name of an array, or a number."""
        numbers = [
            self.memory[a].address if isinstance(a, str) else a for a in arguments
        ]
        self.device.launch(kernel, self.dtype, 1, tasks, tuple(numbers))


def check_examples(backend, dtype):
    """Images copied and rotated counter-clockwise; labels as one-hot rows."""
    rng, tasks, examples = np.random.default_rng(0), 3, 5
    for shape, quarters in (((3, 3, 2), 4), ((2, 4, 3), 1)):
        images = rng.integers(0, 256, (6, *shape), np.uint8)
        numbers = rng.integers(0, 6, (tasks, examples))
        turns = np.arange(tasks * examples).reshape(tasks, examples) % quarters
        size = examples * np.prod(shape)
        out = np.zeros(tasks * size, dtype)
        arrays = Arrays(
            backend, dtype, out=out, images=images, numbers=numbers, turns=turns
        )
        where = "out", size, "images", "numbers", "turns"
        arrays.launch("look_up", tasks, *where, examples, *shape)
        expected = [
            np.rot90(images[number], turn)
            for number, turn in zip(numbers.flat, turns.flat, strict=True)
        ]
        pixels = np.array(expected).astype(dtype).reshape(-1) / np.array(255, dtype)
        assert np.array_equal(arrays["out"], pixels)
    labels, ways = rng.integers(0, 4, (tasks, examples)), 4
    out = np.full(tasks * examples * ways, np.nan, dtype)
    arrays = Arrays(backend, dtype, out=out, labels=labels)
    arrays.launch("one_hot", tasks, "out", examples * ways, "labels", examples, ways)
    assert np.array_equal(arrays["out"], np.eye(ways)[labels].reshape(-1))


SETTINGS = {
    "SGD": {"learning_rate": 0.3},
    "Adam": {"learning_rate": 0.3, "beta1": 0.8, "beta2": 0.9, "epsilon": 0.02},
}


SCALE, CLIP, LENGTH = 0.25, 0.5, 3  # of a loss, of a gradient's entry, of a history


class Steps:
    """An optimiser's steps on the device, and its settings there."""

    def __init__(self, backend, dtype, name, theta, clip=CLIP):
        self.kind, self.size, self.dtype = name.lower(), theta.size, dtype
        numbers = dict.fromkeys(TRAINING, 0.0) | SETTINGS[name]
        numbers |= {"scale": SCALE, "clip": clip}
        self.arrays = Arrays(
            backend,
            dtype,
            theta=theta,
            gradient=theta,
            loss=np.zeros(1, dtype),
            moments=np.zeros(2 * theta.size, dtype),
            history=np.full(LENGTH, -1.0),
            training=np.array([numbers[name] for name in TRAINING]),
        )

    def take(self, loss, gradient):
        arrays = self.arrays
        arrays["gradient"], arrays["loss"] = gradient, np.array([loss], self.dtype)
        arrays.launch("begin_step", 1, "training", "loss", "history", LENGTH)
        last = ("moments",) if self.kind == "adam" else ()
        arrays.launch(self.kind, 1, "theta", "gradient", "training", self.size, *last)

    def setting(self, name):
        return self.arrays["training"][TRAINING.index(name)]


def check_steps(backend, dtype):
    """Steps have the bits of optim.py, with gradients scaled, clipped and infinite; the
    history of losses is a ring."""
    rng, size = np.random.default_rng(0), 7
    for name, settings in SETTINGS.items():
        optimiser, theta = getattr(tm, name)(**settings), rng.standard_normal(size)
        theta = theta.astype(dtype)
        steps, history = Steps(backend, dtype, name, theta), np.full(LENGTH, -1.0)
        for number in range(2 * LENGTH + 1):
            gradient = (rng.standard_normal(size) * 3).astype(dtype)
            gradient[:3] = np.inf, -np.inf, 0.0
            steps.take(number - 2.0, gradient)
            optimiser.update(theta, np.clip(gradient * SCALE, -CLIP, CLIP))
            history[number % LENGTH] = (number - 2.0) * SCALE
            assert np.array_equal(steps.arrays["theta"], theta, equal_nan=True)
            assert np.array_equal(steps.arrays["history"], history)
            assert steps.setting("step") == number + 1 and steps.setting("failed") == 0
        for moment, part in zip(
            type(optimiser).moment_names,
            np.split(steps.arrays["moments"], 2),
            strict=False,
        ):
            assert np.array_equal(part, optimiser.state()[moment], equal_nan=True)


def check_failures(backend, dtype):
    """After a loss or gradient that is not finite, only the history changes."""
    for name, loss in product(SETTINGS, (np.nan, np.inf, -np.inf, 0.0)):
        gradient = np.array([0.5, -0.25, 3.0], dtype)
        steps = Steps(backend, dtype, name, gradient)
        steps.take(1.0, gradient)
        steps.arrays.launch("look_at", 1, "training", "gradient", steps.size)
        assert steps.setting("failed") == 0
        before = [steps.arrays[name] for name in ("theta", "moments")]
        if loss == 0:  # here the gradient is not finite
            steps.arrays["gradient"] = np.array([0.5, np.inf, 3.0], dtype)
            steps.arrays.launch("look_at", 1, "training", "gradient", steps.size)
        steps.take(loss, gradient)
        steps.take(2.0, gradient)  # finite again: too late
        for array, name in zip(before, ("theta", "moments"), strict=True):
            assert np.array_equal(steps.arrays[name], array)
        noted = [SCALE, np.nan, np.nan]
        assert np.array_equal(steps.arrays["history"], noted, equal_nan=True)
        assert steps.setting("failed") == 1


def check_overflow(backend, dtype):
    """A gradient that is finite but has no finite square fails for Adam alone."""
    size = 0.9 * float(np.finfo(dtype).max) ** 0.5
    for name, factor in product(SETTINGS, (1.0, 2.0)):
        gradient = np.array([0.5, -factor * size / SCALE, 3.0], dtype)
        steps = Steps(backend, dtype, name, gradient, clip=np.inf)
        steps.take(1.0, gradient)
        steps.arrays.launch("look_at", 1, "training", "gradient", steps.size)
        assert steps.setting("failed") == (name == "Adam" and factor == 2)


CHECKS = {
    "elementwise": check_elementwise,
    "sums": check_sums,
    "rows": check_rows,
    "swaps": check_swaps,
    "convolutions": check_convolutions,
    "pools": check_pools,
    "examples": check_examples,
    "steps": check_steps,
    "failures": check_failures,
    "overflow": check_overflow,
}
