"""Training that stays on the GPU is the training of the host, number by number."""

import numpy as np
import pytest
from gpu_machines import GPU_MACHINES, gpu_machine
from image_problems import image_problem, strided_network
from playing import assert_close

import tinymaml as tm
from tinymaml.machines import resident
from tinymaml.machines.cublas import WORKSPACE
from tinymaml.machines.cupy_machine import CupyStaging
from tinymaml.machines.device_plan import DevicePlan
from tinymaml.machines.device_program import Layout
from tinymaml.tasks import sinusoid
from tinymaml.tasks.episodes import Episodes

every_machine = pytest.mark.parametrize("machine", GPU_MACHINES)
NETWORK = tm.MLP([1, 8, 1])
OPTIMISERS = {"adam": tm.Adam(0.01), "sgd": tm.SGD(0.001)}
HISTORY = 8  # losses noted on the device; few, so that the ring goes round


def loss(theta, x, y):
    return tm.squared_error(NETWORK(theta, x), y)


def sample_waves(rng, dtype="float64"):
    tasks = sinusoid.sample_tasks(rng, tasks=5, shots=4)
    return tm.Tasks(*(array.astype(dtype) for array in tasks[:4]))


def train(machine, iterations=20, optimiser="adam", sample=sample_waves, **options):
    """A short training; options of MAML by name, those of `train` besides."""
    of_maml = {k: options.pop(k) for k in ("clip", "reduction") if k in options}
    maml = tm.MAML(loss, 0.02, machine=machine, **of_maml)
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
    monkeypatch.setattr(resident, "HISTORY", HISTORY)


@every_machine
@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize(
    "options", [{}, {"clip": 0.02}, {"reduction": "sum"}, {"log_every": 100}]
)
def test_training_is_that_of_the_host(machine, optimiser, options):
    options = {"optimiser": optimiser, **options}
    ours = train(gpu_machine(machine), **options)
    assert_same_training(ours, train("numpy", **options))


def test_clipping_makes_a_difference():
    assert not np.allclose(train("numpy").theta, train("numpy", clip=0.02).theta)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_updates_are_the_optimisers_bit_by_bit(optimiser):
    """With the same gradients, that is: the host is given those of the device."""
    machine = gpu_machine("stand-in")
    ours = train(machine, optimiser=optimiser, iterations=12)
    host = train(
        machine,
        optimiser=optimiser,
        iterations=12,
        gradient=tm.MAML(loss, 0.02, machine=machine).meta_gradient,
    )
    assert ours.theta.tobytes() == host.theta.tobytes()


@every_machine
def test_nothing_comes_back_between_rows_of_the_log(machine, monkeypatch):
    machine = gpu_machine(machine)
    reads, read = [], machine.device.read
    monkeypatch.setattr(machine.device, "read", lambda *a: reads.append(a) or read(*a))
    train(machine, iterations=6, log_every=3)
    assert len(reads) == 2 * 3  # parameters, moments, losses


@every_machine
def test_resumed_training_is_the_whole_one(machine, tmp_path):
    machine, file = gpu_machine(machine), tmp_path / "checkpoint.npz"
    whole = train(machine, iterations=20)
    train(machine, iterations=10, out=file)
    rest = train(machine, iterations=20, resume=file)
    assert rest.theta.tobytes() == whole.theta.tobytes()
    assert_same_training(rest, whole, 1e-15)
    on_host = train("numpy", iterations=20, resume=file)
    assert_same_training(on_host, whole)


@every_machine
def test_validation_sees_the_parameters_of_its_iteration(machine):
    seen = {}
    for name, m in ((machine, gpu_machine(machine)), ("numpy", "numpy")):
        seen[name] = []
        train(
            m,
            iterations=10,
            validate=lambda theta, name=name: seen[name].append(theta) or 0.0,
            validate_every=4,
        )
    assert len(seen[machine]) == 2
    assert_close(np.array(seen[machine]), np.array(seen["numpy"]), 1e-10)


@every_machine
def test_a_loss_that_is_not_finite_stops_training_where_it_was(machine):
    def sample(rng):
        tasks = sample_waves(rng)
        if sample.count == 4:
            tasks.y_query[...] = np.nan
        sample.count += 1
        return tasks

    sample.count = 0
    before = train(gpu_machine(machine), iterations=4)
    sample.count = 0
    with pytest.raises(
        tm.NonFiniteLossError, match="iteration 5: the loss or its gradient"
    ) as e:
        train(gpu_machine(machine), iterations=20, sample=sample, log_every=10)
    assert e.value.iteration == 5
    assert e.value.theta.tobytes() == before.theta.tobytes()


@every_machine
@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_a_gradient_that_is_not_finite_stops_training_where_it_was(machine, optimiser):
    """As that of |x theta|, written as a square root, is at x = 0; the loss is 0."""

    def root_of_square(theta, x, y):
        product = x * theta.sum()
        return tm.exp(tm.log((product * product).sum()) * 0.5)

    def sample(rng):
        sample.count += 1
        x = np.ones((2, 1, 1))
        return tm.Tasks(x, x, x * (sample.count < 3), x)

    sample.count, seen = 0, []
    maml = tm.MAML(root_of_square, 0.0, machine=gpu_machine(machine))
    with pytest.raises(tm.NonFiniteLossError, match="iteration 3: the loss or its"):
        tm.train(
            maml,
            np.ones(2),
            sample,
            iterations=8,
            optimiser=OPTIMISERS[optimiser],
            rng=np.random.default_rng(0),
            validate=lambda theta: seen.append(theta) or 0.0,
            validate_every=2,
            progress=False,
        )
    assert len(seen) == 1 and np.isfinite(seen).all()


@every_machine
@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda array: array[:4], r"\(4, 4, 1\) float64"),
        (lambda array: array.astype("float32"), r"\(5, 4, 1\) float32"),
    ],
)
def test_batches_of_another_kind_are_refused(machine, change, got):
    def sample(rng):
        sample.count += 1
        tasks = sample_waves(rng)
        return tasks if sample.count == 1 else tm.Tasks(*map(change, tasks))

    sample.count = 0
    expected = r"batch: expected arrays \(5, 4, 1\) float64"
    with pytest.raises(ValueError, match=f"{expected}.*, got {got}"):
        train(gpu_machine(machine), sample=sample)


@every_machine
def test_what_is_no_batch_is_refused_as_on_the_host(machine):
    with pytest.raises(ValueError, match=r"tasks: expected \(x, y\).*got NoneType"):
        train(gpu_machine(machine), sample=lambda rng: None)


def test_tasks_that_do_not_fit_together_are_refused():
    theta = NETWORK.init(np.random.default_rng(0), "float64")
    tape = tm.MAML(loss).tape(theta, sample_waves(np.random.default_rng(1)))
    free = WORKSPACE + 9 * Layout(DevicePlan(tape), 4).size
    machine = gpu_machine("stand-in", free=free)
    with pytest.raises(MemoryError, match="5 tasks do not fit .* take at most [1-4]"):
        train(machine)


def test_host_memory_used_again_too_early_would_be_noticed(monkeypatch):
    """The stand-in copies as late as it can; without waiting, batches are mixed up."""
    right = train("numpy", log_every=10)
    assert_close(train(gpu_machine("stand-in"), log_every=10).theta, right.theta, 1e-10)
    monkeypatch.setattr(CupyStaging, "array", property(lambda self: self._pinned))
    wrong = train(gpu_machine("stand-in"), log_every=10)
    assert not np.allclose(wrong.theta, right.theta)


# --- data sets on the device ----------------------------------------------------------


def drawings(classes=4, each=4, size=5, channels=2):
    rng = np.random.default_rng(3)
    shape = (classes * each, size, size, channels)
    images = rng.integers(0, 256, shape, np.uint8)
    return images, np.repeat(np.arange(classes), each)


def train_on_images(machine, dtype, rotations, images, kind=Episodes, labels=None):
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
        p.cast(dtype).maml(machine=machine),
        p.theta.astype(dtype),
        sample,
        iterations=5,
        optimiser=tm.Adam(0.01),
        rng=np.random.default_rng(1),
        progress=False,
        log_every=2,
    )


@every_machine
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-3)])
@pytest.mark.parametrize("rotations", [False, True])
@pytest.mark.parametrize("of", ["bytes", "numbers"])
def test_episodes_assembled_on_the_device_are_those_of_the_host(
    machine, dtype, tolerance, rotations, of
):
    images = drawings()[0]
    if of == "numbers":
        images = (images / 255).astype(dtype)
    machine = gpu_machine(machine)
    ours = train_on_images(machine, dtype, rotations, images)
    host = train_on_images("numpy", dtype, rotations, images)
    assert_same_training(ours, host, tolerance)


def test_examples_of_episodes_are_the_hosts_bit_by_bit():
    machine, sizes = gpu_machine("stand-in"), {"ways": 4, "shots": 1, "queries": 3}
    sample = Episodes(*drawings(), **sizes, rotations=True, tasks=6)

    def prepare(tasks):
        """A program that takes a batch and looks at its images only."""
        tape = tm.Tape()
        theta = tape.input("theta", (3,))
        x, *_ = (
            tape.input(name, array.shape[1:], per_task=True)
            for name, array in tasks._asdict().items()
        )
        tape.output("losses", x.sum())
        tape.output("gradient", theta * x.sum(), "sum")
        return machine.prepare(tape, "float32")

    start, optimiser = np.zeros(3, "float32"), tm.SGD(0.1)
    stays = resident.Resident(prepare, start, {}, optimiser, True, None, sample)
    places = stays.draw(np.random.default_rng(0))
    stays.step(places)
    for name, array in sample.look_up(places)._asdict().items():
        at = stays._layout.inputs[name].start
        found = machine.device.read(stays._memory, at, array.size)
        assert found.tobytes() == array.tobytes(), name


class Negatives(Episodes):
    """Episodes of images turned from black to white."""

    def __call__(self, rng):
        tasks = super().__call__(rng)
        return tasks._replace(x_support=1 - tasks.x_support, x_query=1 - tasks.x_query)


@every_machine
def test_a_subclass_of_episodes_keeps_what_it_does(machine):
    images = drawings()[0]
    results = [
        train_on_images(m, "float64", False, images, kind)
        for m, kind in (
            (gpu_machine(machine), Negatives),
            ("numpy", Negatives),
            ("numpy", Episodes),
        )
    ]
    assert_same_training(*results[:2], 1e-9)
    assert np.abs(results[1].theta - results[2].theta).max() > 1e-3


def test_a_data_set_that_does_not_fit_is_refused_with_its_size():
    images, labels = drawings(each=400)
    machine = gpu_machine("stand-in", free=WORKSPACE + 60_000)
    with pytest.raises(MemoryError, match=r"machine: the images, 8e-05 GB, do not fit"):
        train_on_images(machine, "float64", False, images, labels=labels)


# --- where it is not done -------------------------------------------------------------


def test_the_host_trains_where_it_must():
    theta = NETWORK.init(np.random.default_rng(0))
    for maml in (tm.MAML(loss, machine="numpy"), tm.MAML(loss, machine="numba")):
        assert maml.resident(theta, tm.Adam(), sample_waves) is None

    class Mine(tm.SGD):
        """An optimiser that the device does not know."""

    machine = gpu_machine("stand-in")
    assert tm.MAML(loss, machine=machine).resident(theta, Mine(0.1), None) is None
