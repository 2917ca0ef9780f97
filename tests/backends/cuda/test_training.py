"""On-device training gives the numbers of the host's training, one by one."""

import numpy as np
import pytest

import tinymaml as tm
from tests.support.gpu_backends import GPU_BACKENDS, gpu_backend
from tests.support.image_problems import image_problem, strided_network
from tests.support.running import assert_close
from tinymaml.backends.cuda import training
from tinymaml.backends.cuda.backend import CupyStaging
from tinymaml.backends.cuda.cublas import WORKSPACE
from tinymaml.backends.cuda.device_plan import device_plan
from tinymaml.backends.cuda.device_program import DeviceProgram, Layout
from tinymaml.tasks import sinusoid
from tinymaml.tasks.episodes import Episodes
from tinymaml.training.optim import cosine
from tinymaml.training.steps import HostSteps

every_backend = pytest.mark.parametrize("backend", GPU_BACKENDS)
NETWORK = tm.MLP([1, 8, 1])
OPTIMISERS = {"adam": tm.Adam(0.01), "sgd": tm.SGD(0.001)}
HISTORY = 8  # losses that the device keeps; few, so that old ones are overwritten


def loss(theta, x, y):
    return tm.squared_error(NETWORK(theta, x), y)


def sample_waves(rng, dtype="float64"):
    tasks = sinusoid.sample_tasks(rng, tasks=5, shots=4)
    return tm.Tasks(*(array.astype(dtype) for array in tasks[:4]))


def train(backend, iterations=20, optimiser="adam", sample=sample_waves, **options):
    """A short training; options of MAML by name, those of `train` besides."""
    of_maml = {k: options.pop(k) for k in ("clip", "reduction") if k in options}
    maml = tm.MAML(loss, 0.02, backend=backend, **of_maml)
    return tm.train(
        options.pop("gradient", maml),
        NETWORK.init(np.random.default_rng(0), "float64"),
        sample,
        iterations=iterations,
        optimiser=OPTIMISERS[optimiser],
        rng=np.random.default_rng(1),
        progress=False,
        **{"log_every": 3, **options},
    )


def assert_same_training(one, other, tolerance=1e-10):
    assert one.iteration == other.iteration
    assert_close(one.theta, other.theta, tolerance, "theta")
    assert [row.iteration for row in one.losses] == [r.iteration for r in other.losses]
    losses = [[row.loss for row in result.losses] for result in (one, other)]
    assert_close(*losses, tolerance, "losses")
    states = one.optimiser.state(), other.optimiser.state()
    assert states[0].keys() == states[1].keys()
    for name, array in states[1].items():
        assert states[0][name].dtype == array.dtype
        assert_close(states[0][name], array, tolerance, name, floor=1e-3)


@pytest.fixture(autouse=True)
def short_history(monkeypatch):
    monkeypatch.setattr(training, "HISTORY", HISTORY)


@every_backend
@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize(
    "options", [{}, {"clip": 0.02}, {"reduction": "sum"}, {"log_every": 100}]
)
def test_training_is_that_of_the_host(backend, optimiser, options):
    options = {"optimiser": optimiser, **options}
    ours = train(gpu_backend(backend), **options)
    assert_same_training(ours, train("numpy", **options))


def test_clipping_makes_a_difference():
    assert not np.allclose(train("numpy").theta, train("numpy", clip=0.02).theta)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_updates_are_the_optimisers_bit_by_bit(optimiser):
    """With the same gradients, that is: the host is given those of the device."""
    backend = gpu_backend("stand-in")
    ours = train(backend, optimiser=optimiser, iterations=12)
    host = train(
        backend,
        optimiser=optimiser,
        iterations=12,
        gradient=tm.MAML(loss, 0.02, backend=backend).meta_gradient,
    )
    assert ours.theta.tobytes() == host.theta.tobytes()


@every_backend
def test_nothing_comes_back_between_rows_of_the_log(backend, monkeypatch):
    backend = gpu_backend(backend)
    reads, read = [], backend.device.read
    monkeypatch.setattr(backend.device, "read", lambda *a: reads.append(a) or read(*a))
    train(backend, iterations=6, log_every=3)
    assert len(reads) == 2 * 3  # parameters, moments, losses


@every_backend
def test_resumed_training_is_the_whole_one(backend, tmp_path):
    backend, file = gpu_backend(backend), tmp_path / "checkpoint.npz"
    whole = train(backend, iterations=20)
    train(backend, iterations=10, out=file)
    rest = train(backend, iterations=20, resume=file)
    assert rest.theta.tobytes() == whole.theta.tobytes()
    assert_same_training(rest, whole, 1e-15)
    on_host = train("numpy", iterations=20, resume=file)
    assert_same_training(on_host, whole)


@every_backend
def test_validation_is_given_the_parameters_of_its_iteration(backend):
    thetas = {}
    for name, b in ((backend, gpu_backend(backend)), ("numpy", "numpy")):
        thetas[name] = []
        train(
            b,
            iterations=10,
            validate=lambda theta, name=name: thetas[name].append(theta) or 0.0,
            validate_every=4,
        )
    assert len(thetas[backend]) == 2
    assert_close(np.array(thetas[backend]), np.array(thetas["numpy"]), 1e-10)


@every_backend
def test_a_loss_that_is_not_finite_stops_training_where_it_was(backend):
    def sample(rng):
        tasks = sample_waves(rng)
        if sample.count == 4:
            tasks.y_query[...] = np.nan
        sample.count += 1
        return tasks

    sample.count = 0
    before = train(gpu_backend(backend), iterations=4)
    sample.count = 0
    with pytest.raises(
        tm.NonFiniteLossError, match="iteration 5: the loss or its gradient"
    ) as e:
        train(gpu_backend(backend), iterations=20, sample=sample, log_every=10)
    assert e.value.iteration == 5
    assert e.value.theta.tobytes() == before.theta.tobytes()


@every_backend
@pytest.mark.parametrize("clip", [None, 0.02])
def test_steps_that_fail_are_not_counted_and_change_nothing(backend, clip):
    theta, adam = NETWORK.init(np.random.default_rng(0)), tm.Adam()
    expected, host = theta.copy(), tm.Adam()
    tasks = sample_waves(np.random.default_rng(1), "float32")
    maml = tm.MAML(loss, 0.02, clip=clip, backend=gpu_backend(backend))
    steps = maml.training_steps(theta, adam, sample_waves)
    for y in (tasks.y_query, tasks.y_query * np.float32(1e30), tasks.y_query):
        steps.step(tasks._replace(y_query=y))
    failures = [bool(result.failure) for result in steps.fetch()]
    assert failures == [False, True, True]  # the device waits until it is asked
    on_host = tm.MAML(loss, 0.02, clip=clip, backend="numpy")
    host.update(expected, on_host(expected, tasks).gradient)
    assert adam.state()["step"] == host.state()["step"] == 1
    assert_close(theta, expected, 1e-4)


@every_backend
@pytest.mark.parametrize("failing", [1, 3])
@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_a_gradient_that_is_not_finite_stops_training_where_it_was(
    backend, optimiser, failing
):
    """As that of |x theta|, written as a square root, is at x = 0; the loss is 0."""

    def root_of_square(theta, x, y):
        product = x * theta.sum()
        return tm.exp(tm.log((product * product).sum()) * 0.5)

    def sample(rng):
        sample.count += 1
        x = np.ones((2, 1, 1))
        return tm.Tasks(x, x, x * (sample.count < failing), x)

    sample.count, validated = 0, []
    maml = tm.MAML(root_of_square, 0.0, backend=gpu_backend(backend))
    message = f"iteration {failing}: the loss or its"
    with pytest.raises(tm.NonFiniteLossError, match=message):
        tm.train(
            maml,
            np.ones(2),
            sample,
            iterations=8,
            optimiser=OPTIMISERS[optimiser],
            rng=np.random.default_rng(0),
            validate=lambda theta: validated.append(theta) or 0.0,
            validate_every=2,
            progress=False,
        )
    assert len(validated) == failing // 2 and np.isfinite(validated).all()


@every_backend
@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda array: array[:4], r"\(4, 4, 1\) float64"),
        (lambda array: array.astype("float32"), r"\(5, 4, 1\) float32"),
    ],
)
def test_batches_of_another_kind_are_refused(backend, change, got):
    def sample(rng):
        sample.count += 1
        tasks = sample_waves(rng)
        return tasks if sample.count == 1 else tm.Tasks(*map(change, tasks))

    sample.count = 0
    expected = r"batch: expected arrays \(5, 4, 1\) float64"
    with pytest.raises(ValueError, match=f"{expected}.*, got {got}"):
        train(gpu_backend(backend), sample=sample)


@every_backend
def test_what_is_no_batch_is_refused_as_on_the_host(backend):
    with pytest.raises(ValueError, match=r"tasks: expected \(x, y\).*got NoneType"):
        train(gpu_backend(backend), sample=lambda rng: None)


def test_tasks_that_do_not_fit_together_are_refused():
    theta = NETWORK.init(np.random.default_rng(0), "float64")
    tape = tm.MAML(loss).tape(theta, sample_waves(np.random.default_rng(1)))
    free = WORKSPACE + 9 * Layout(device_plan(tape), 4).size
    backend = gpu_backend("stand-in", free=free)
    with pytest.raises(MemoryError, match="5 tasks do not fit .* take at most [1-4]"):
        train(backend)


def test_the_most_tasks_that_fit_are_said(monkeypatch):
    """Not the size of equal parts: 5 tasks in parts are 3 and 2, but 4 may fit."""
    parts = {5: 3, 4: 4, 3: 3, 2: 2, 1: 1}
    monkeypatch.setattr(DeviceProgram, "tasks_per_run", lambda _, tasks: parts[tasks])
    with pytest.raises(MemoryError, match="5 tasks do not fit .* take at most 4$"):
        train(gpu_backend("stand-in"))


def test_training_has_the_memory_that_its_program_held():
    """`meta_gradient` of the same shapes ran before: both together would not fit."""
    theta = NETWORK.init(np.random.default_rng(0), "float64")
    tasks = sample_waves(np.random.default_rng(1))
    elements = Layout(device_plan(tm.MAML(loss).tape(theta, tasks)), 5).size
    backend = gpu_backend("stand-in", free=WORKSPACE + 8 * int(1.8 * elements))
    maml = tm.MAML(loss, 0.02, backend=backend)
    before = maml.meta_gradient(theta, tasks).gradient
    result = train(backend, gradient=maml)
    assert_same_training(result, train(gpu_backend("stand-in")), 0)
    del result
    assert maml.meta_gradient(theta, tasks).gradient.tobytes() == before.tobytes()


def test_host_memory_used_again_too_early_would_be_noticed(monkeypatch):
    """The stand-in copies as late as it can; without waiting, batches are mixed up."""
    right = train("numpy", log_every=10)
    assert_close(train(gpu_backend("stand-in"), log_every=10).theta, right.theta, 1e-10)
    monkeypatch.setattr(CupyStaging, "array", property(lambda self: self._pinned))
    wrong = train(gpu_backend("stand-in"), log_every=10)
    assert not np.allclose(wrong.theta, right.theta)


# --- data sets on the device ----------------------------------------------------------


def drawings(classes=4, each=4, size=5, channels=2):
    rng = np.random.default_rng(3)
    shape = (classes * each, size, size, channels)
    images = rng.integers(0, 256, shape, np.uint8)
    return images, np.repeat(np.arange(classes), each)


def train_on_images(backend, dtype, rotations, images, kind=Episodes, labels=None):
    p = image_problem(strided_network())
    sample = kind(
        images,
        drawings()[1] if labels is None else labels,
        ways=3,
        shots=1,
        queries=2,
        rotations=rotations,
        tasks=4,
        dtype=dtype,
    )
    return tm.train(
        p.cast(dtype).maml(backend=backend),
        p.theta.astype(dtype),
        sample,
        iterations=5,
        optimiser=tm.Adam(0.01),
        rng=np.random.default_rng(1),
        progress=False,
        log_every=2,
    )


@every_backend
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-3)])
@pytest.mark.parametrize("rotations", [False, True])
@pytest.mark.parametrize("of", ["bytes", "numbers"])
def test_episodes_assembled_on_the_device_are_those_of_the_host(
    backend, dtype, tolerance, rotations, of
):
    images = drawings()[0]
    if of == "numbers":
        images = (images / 255).astype(dtype)
    backend = gpu_backend(backend)
    ours = train_on_images(backend, dtype, rotations, images)
    host = train_on_images("numpy", dtype, rotations, images)
    assert_same_training(ours, host, tolerance)


def test_examples_of_episodes_are_the_hosts_bit_by_bit():
    backend, sizes = gpu_backend("stand-in"), {"ways": 4, "shots": 1, "queries": 3}
    sample = Episodes(*drawings(), **sizes, rotations=True, tasks=6)

    def compile(tasks):
        """A program that takes a batch and looks at its images only."""
        tape = tm.Tape()
        theta = tape.input("theta", (3,))
        x, *_ = (
            tape.input(name, array.shape[1:], per_task=True)
            for name, array in tasks._asdict().items()
        )
        tape.output("losses", x.sum())
        tape.output("gradient", theta * x.sum(), "sum")
        return backend.compile(tape, "float32")

    start, optimiser = np.zeros(3, "float32"), tm.SGD(0.1)
    steps = training.DeviceTraining(compile, start, {}, optimiser, True, None, sample)
    numbers = steps.draw(np.random.default_rng(0))
    steps.step(numbers)
    for name, array in sample.look_up(numbers)._asdict().items():
        offset = steps._layout.inputs[name].start
        examples = backend.device.read(steps._memory, offset, array.size)
        assert examples.tobytes() == array.tobytes(), name


class Negatives(Episodes):
    """Episodes of images with black and white exchanged."""

    def __call__(self, rng):
        tasks = super().__call__(rng)
        return tasks._replace(x_support=1 - tasks.x_support, x_query=1 - tasks.x_query)


@every_backend
def test_a_subclass_of_episodes_keeps_what_it_does(backend):
    images = drawings()[0]
    results = [
        train_on_images(m, "float64", False, images, kind)
        for m, kind in (
            (gpu_backend(backend), Negatives),
            ("numpy", Negatives),
            ("numpy", Episodes),
        )
    ]
    assert_same_training(*results[:2], 1e-9)
    assert np.abs(results[1].theta - results[2].theta).max() > 1e-3


def test_a_data_set_that_does_not_fit_is_refused_with_its_size():
    images, labels = drawings(each=400)
    backend = gpu_backend("stand-in", free=WORKSPACE + 60_000)
    with pytest.raises(MemoryError, match=r"backend: the images, 8e-05 GB, do not fit"):
        train_on_images(backend, "float64", False, images, labels=labels)


# --- where the host trains ------------------------------------------------------------


def test_the_host_trains_where_it_must():
    theta, on_host = NETWORK.init(np.random.default_rng(0)), []
    for name in ("numpy", "numba"):
        maml = tm.MAML(loss, backend=name)
        on_host.append(maml.training_steps(theta, tm.Adam(), sample_waves))

    class Mine(tm.SGD):
        """An optimiser that the device does not know."""

    maml = tm.MAML(loss, backend=gpu_backend("stand-in"))
    on_host.append(maml.training_steps(theta, Mine(0.1), sample_waves))
    schedule = tm.Adam(cosine(0.1, 5))  # the device has one learning rate
    on_host.append(maml.training_steps(theta, schedule, sample_waves))
    columns = ["loss"]  # further numbers for the log
    on_host.append(maml.training_steps(theta, tm.Adam(), sample_waves, columns))
    assert all(type(steps) is HostSteps for steps in on_host)
    on_device = maml.training_steps(theta, tm.Adam(), sample_waves)
    assert type(on_device) is training.DeviceTraining


@every_backend
def test_further_columns_of_the_log_are_those_of_the_host(backend):
    options = {"columns": ["loss"], "iterations": 4, "log_every": 2}
    ours, host = train(gpu_backend(backend), **options), train("numpy", **options)
    assert_same_training(ours, host)
    assert [row.more for row in ours.losses] == [(row.loss,) for row in ours.losses]
