"""ProtoMAML and prototypical networks: distances to prototypes, written in NumPy."""

import numpy as np
import pytest

import tinymaml as tm
from tests.support.gpu_backends import AGREE as GPU_AGREE
from tests.support.gpu_backends import GPU_BACKENDS, gpu_backend
from tests.support.image_problems import image_problem
from tests.support.maml_problems import Problem, assert_is_gradient_of
from tests.support.running import AGREE, BACKENDS, assert_close, difference
from tinymaml.variants.proto_maml import ProtoMAML

every_backend = pytest.mark.parametrize("backend", BACKENDS)
some_steps = pytest.mark.parametrize("steps", [0, 1, 3])
FEATURES, WAYS = 4, 3
HEAD = (FEATURES + 1) * WAYS
NETWORK = tm.Network(
    [tm.Linear(2, FEATURES), tm.Activation("tanh"), tm.Linear(FEATURES, WAYS)]
)


def proto_problem():
    """Tasks of three classes, of which the first has the most support examples."""
    rng = np.random.default_rng(6)

    def loss(theta, x, y):
        return tm.cross_entropy(NETWORK(theta, x), y)

    def examples(n):
        labels = np.stack([rng.permutation(np.arange(n) % WAYS) for _ in range(2)])
        return rng.standard_normal((2, n, 2)), np.eye(WAYS)[labels]

    theta = rng.standard_normal(NETWORK.size)
    return Problem(loss, theta, tm.Tasks(*examples(7), *examples(5)))


def proto(p, backend="numpy", network=NETWORK, alpha=0.2, **options):
    options = {"reduction": "sum", "threads": 1, **options}
    return ProtoMAML(p.loss, alpha, network=network, backend=backend, **options)


def features(theta, x):
    weight, bias = theta[: 2 * FEATURES].reshape(2, FEATURES), theta[2 * FEATURES :]
    return np.tanh(x @ weight + bias[:FEATURES])


def prototypes(theta, x, y):
    """The mean of the features of each class of a task, one class after the other."""
    f = features(theta, x)
    return np.array([f[y.argmax(-1) == k].mean(axis=0) for k in range(WAYS)])


# --- without inner steps: a prototypical network --------------------------------------


@every_backend
def test_proto_maml_without_steps_compares_distances_to_prototypes(backend):
    p = proto_problem()
    network = proto(p, backend, steps=0)
    losses = network.meta_gradient(p.theta, p.tasks).losses
    logits = network.predict(NETWORK, p.theta, p.tasks)[:, 0]
    for task, (xs, ys, xq, yq) in enumerate(zip(*p.tasks, strict=True)):
        c = prototypes(p.theta, xs, ys)
        f = features(p.theta, xq)
        distances = ((f[:, None] - c) ** 2).sum(axis=-1)
        probabilities = np.exp(-distances)
        probabilities /= probabilities.sum(axis=-1, keepdims=True)
        by_logits = np.exp(logits[task])
        by_logits /= by_logits.sum(axis=-1, keepdims=True)
        assert_close(by_logits, probabilities, 1e-13)
        expected = -np.log((probabilities * yq).sum(axis=-1)).mean()
        assert_close(losses[task], expected, 1e-13)


@every_backend
def test_the_last_layer_starts_from_the_prototypes(backend):
    p = proto_problem()
    starts = proto(p, backend).adapt(p.theta, *p.tasks[:2], steps=0)[:, 0]
    for start, x, y in zip(starts, *p.tasks[:2], strict=True):
        c = prototypes(p.theta, x, y)
        assert np.array_equal(start[:-HEAD], p.theta[:-HEAD])
        assert_close(start[-HEAD:-WAYS].reshape(FEATURES, WAYS), 2 * c.T, 1e-13)
        assert_close(start[-WAYS:], -(c**2).sum(axis=1), 1e-13)


# --- the meta-gradient ----------------------------------------------------------------


@every_backend
@some_steps
def test_proto_maml_start_is_differentiated_as_finite_differences_say(backend, steps):
    p = proto_problem()
    maml = proto(p, backend, steps=steps)
    gradient = maml.meta_gradient(p.theta, p.tasks).gradient

    def objective(theta):
        return proto(p, steps=steps).evaluate(theta, p.tasks)[:, -1].sum()

    assert_is_gradient_of(gradient, objective, p.theta)
    assert np.array_equal(gradient[-HEAD:], np.zeros(HEAD))
    # What a gradient through fixed prototypes would be, is far from it.
    starts = maml.adapt(p.theta, *p.tasks[:2], steps=0)[:, 0]
    fixed = 0.0
    for start, *task in zip(starts, *p.tasks, strict=True):
        one = tm.Tasks(*(array[None] for array in task))
        fixed = (
            fixed + p.maml(alpha=0.2, steps=steps).meta_gradient(start, one).gradient
        )
    term = np.linalg.norm((fixed - gradient)[:-HEAD])
    assert term > 0.1 * np.linalg.norm(gradient)


@every_backend
@some_steps
def test_it_is_the_transposed_derivative_of_the_start_times_that_of_maml(
    backend, steps
):
    """Each order, with the Jacobian of the start by differences in all directions."""
    p = proto_problem()
    for order in (1, 2):
        maml = proto(p, backend, steps=steps, order=order)
        expected = np.zeros(p.theta.size)
        for task in range(2):
            one = tm.Tasks(*(array[task : task + 1] for array in p.tasks))

            def start(theta, one=one):
                return proto(p).adapt(theta, *one[:2], steps=0)[0, 0]

            plain = p.maml(alpha=0.2, steps=steps, order=order)
            v = plain.meta_gradient(start(p.theta), one).gradient
            identity = np.eye(p.theta.size)
            expected += [difference(start, p.theta, e) @ v for e in identity]
        gradient = maml.meta_gradient(p.theta, p.tasks).gradient
        assert_close(gradient, expected, 1e-9)


def test_the_numbers_of_the_last_layer_in_theta_are_not_read():
    p = proto_problem()
    other = p.theta.copy()
    other[-HEAD:] = 7.0
    here, there = (proto(p).meta_gradient(theta, p.tasks) for theta in (p.theta, other))
    assert np.array_equal(here.gradient, there.gradient)
    assert np.array_equal(here.losses, there.losses)


@every_backend
def test_float32_loses_no_more_than_its_rounding(backend):
    p = proto_problem()
    exact = proto(p, steps=2).meta_gradient(p.theta, p.tasks).gradient
    p = p.cast("float32")
    short = proto(p, backend, steps=2).meta_gradient(p.theta, p.tasks).gradient
    assert_close(short, exact, AGREE["float32"])


@pytest.mark.parametrize("backend", GPU_BACKENDS)
@pytest.mark.parametrize("order", [1, 2])
def test_the_gpu_backend_agrees(backend, order):
    p = proto_problem()
    results = [
        proto(p, b, steps=2, order=order).meta_gradient(p.theta, p.tasks)
        for b in (gpu_backend(backend), "numpy")
    ]
    assert_close(results[0].gradient, results[1].gradient, GPU_AGREE["float64"])
    assert_close(results[0].losses, results[1].losses, GPU_AGREE["float64"])


@every_backend
@pytest.mark.parametrize("mode", ["batch", "support", "none"])
def test_an_image_network_is_differentiated_through_its_prototypes(backend, mode):
    layers = [tm.Conv2d(2, 3, stride=2), tm.BatchNorm(3, mode), tm.Activation("tanh")]
    network = tm.networks.images.ImageNetwork(
        [*layers, tm.MeanPool(), tm.Flatten(), tm.Linear(3, 3)]
    )
    p = image_problem(network)
    # As a query loss it has the support set's inputs too, whose statistics it may take.
    maml = proto(p, backend, network, steps=1, query_loss=p.loss)
    gradient = maml.meta_gradient(p.theta, p.tasks).gradient

    def objective(theta):
        reference = proto(p, "numpy", network, query_loss=p.loss)
        return reference.evaluate(theta, p.tasks)[:, -1].sum()

    assert_is_gradient_of(gradient, objective, p.theta)


# --- use and misuse -------------------------------------------------------------------


def test_training_a_prototypical_network_learns_features():
    """Classes differ in the sign of one of 8 inputs; the others are larger noise."""

    def sample(rng):
        y = np.tile(np.eye(2, dtype=np.float32), (20, 4, 1))
        x = 2 * rng.standard_normal((20, 8, 8)).astype(np.float32)
        sign = rng.choice([-1, 1], (20, 1)).astype(np.float32)
        x[:, :, 0] = sign * np.where(y[:, :, 0] > 0, 1, -1)
        return tm.Tasks(x[:, :2], y[:, :2], x[:, 2:], y[:, 2:])

    network = tm.MLP([8, 8, 2], "tanh")

    def loss(theta, x, y):
        return tm.cross_entropy(network(theta, x), y)

    learner = ProtoMAML(loss, steps=0, network=network)
    rng = np.random.default_rng(0)
    theta, new = network.init(rng), sample(np.random.default_rng(1))
    settings = {"iterations": 300, "optimiser": tm.Adam(0.01), "rng": rng}
    trained = tm.train(learner, theta, sample, **settings, progress=False).theta
    start, end = (
        tm.accuracy(learner.predict(network, t, new)[:, 0], new.y_query).mean()
        for t in (theta, trained)
    )
    assert start < 0.8
    assert end > 0.95


class Doubled(tm.Network):
    """A network with a way of its own from x to its result."""

    def __call__(self, theta, x, x_support=None):
        return super().__call__(theta, x) * 2.0


@pytest.mark.parametrize(
    "network",
    [
        tm.Network([tm.Linear(2, 3), tm.Activation("relu")]),
        tm.Network([tm.Linear(2, 3)]),
        None,
        Doubled([tm.Linear(2, 3), tm.Linear(3, 2)]),
    ],
    ids=["last layer", "one layer", "no network", "a call of its own"],
)
def test_a_network_without_a_last_linear_layer_is_refused(network):
    expected = "network: expected a Network with parameters before a last layer Linear"
    with pytest.raises(ValueError, match=expected):
        proto(proto_problem(), network=network)


def test_labels_of_other_classes_and_parts_are_refused():
    p = proto_problem()
    x, y, x_query, y_query = p.tasks
    with pytest.raises(ValueError, match=r"y_support: expected shape \(7, 3\), got"):
        proto(p).meta_gradient(p.theta, tm.Tasks(x, y[..., :2], x_query, y_query))
    with pytest.raises(ValueError, match="parts: expected False"):
        proto(p).meta_gradient(p.theta, p.tasks, parts=True)
