"""Layers and networks: hand-computed cases, the layout of theta, initial values."""

import copy
import pickle

import numpy as np
import pytest
from scipy import stats

import tinymaml as tm
from tests.support.running import assert_close
from tinymaml.networks.layers import (
    Layer,
    he_normal,
    normal,
    truncated_normal,
    xavier_uniform,
)
from tinymaml.variants.context_vector import Context, OmniglotContext

LARGE = (200, 300)


def rng():
    return np.random.default_rng(0)


def test_linear_relu_linear_is_the_hand_computed_one():
    # W1 = [[1, -1]], b1 = [0.5, 0], W2 = [[2], [3]], b2 = [-1]
    theta = np.array([1, -1, 0.5, 0, 2, 3, -1.0])
    network = tm.MLP([1, 2, 1])
    # x = 2: relu([2.5, -2]) = [2.5, 0] -> 5 - 1;  x = -3: relu([-2.5, 3]) -> 9 - 1
    outputs = network.predict(theta, np.array([[2.0], [-3.0]]))
    assert outputs.tolist() == [[4.0], [8.0]]


def test_tanh_network_is_the_plain_expression():
    network = tm.MLP([3, 4, 5, 2], activation="tanh")
    theta, x = network.init(rng(), "float64"), rng().standard_normal((6, 3))
    parameters = {
        name: theta[span].reshape(shape)
        for name, (span, shape) in network.layout.items()
    }
    h = np.tanh(x @ parameters["linear1.weight"] + parameters["linear1.bias"])
    h = np.tanh(h @ parameters["linear2.weight"] + parameters["linear2.bias"])
    expected = h @ parameters["linear3.weight"] + parameters["linear3.bias"]
    assert_close(network.predict(theta, x), expected, 1e-14)


def test_the_papers_network_has_1761_parameters():
    network = tm.MLP([1, 40, 40, 1])
    assert network.size == (1 * 40 + 40) + (40 * 40 + 40) + (40 * 1 + 1) == 1761


def test_layout_tiles_theta_in_the_order_of_the_layers():
    network = tm.Network(
        [tm.Linear(2, 3), tm.Activation("relu"), tm.Linear(3, 1), tm.Activation("tanh")]
    )
    names = ["linear1.weight", "linear1.bias", "linear2.weight", "linear2.bias"]
    assert [*network.layout] == names
    stop = 0
    for span, shape in network.layout.values():
        assert span.start == stop
        stop = span.stop
        assert span.stop - span.start == np.prod(shape)
    assert stop == network.size == 13


def test_vector_sets_named_parameters_only():
    network = tm.MLP([2, 3, 1])
    vector = network.vector(0.5, "float64", **{"linear1.bias": -1.0})
    span, _ = network.layout["linear1.bias"]
    assert vector.dtype == "float64"
    assert (vector[span] == -1).all()
    assert (np.delete(vector, np.arange(network.size)[span]) == 0.5).all()


def test_a_network_shows_its_layers_and_their_numbers_of_parameters():
    assert repr(tm.MLP([1, 40, 40, 1])).splitlines() == [
        "MLP of 1,761 parameters",
        "     80  Linear(weight (1, 40), bias (40,))",
        "      0  Activation(name='relu')",
        "  1,640  Linear(weight (40, 40), bias (40,))",
        "      0  Activation(name='relu')",
        "     41  Linear(weight (40, 1), bias (1,))",
    ]
    assert repr(tm.Network([])) == "Network of 0 parameters"


class Scale(Layer):
    """A layer of a user's own, with a parameter and options."""

    def __init__(self):
        self.shapes = {"factor": (3,)}
        self.power, self.initialiser = 2, he_normal()


def test_a_layer_of_ones_own_shows_its_parameters_and_options():
    assert repr(Scale()) == "Scale(factor (3,), power=2)"


# --- Values and arrays ----------------------------------------------------------------


def test_a_network_may_be_predicted_after_inner_steps_by_maml():
    network = tm.MLP([2, 4, 3], "tanh")
    theta = network.init(rng(), "float64")
    x, y = rng().standard_normal((2, 5, 2)), rng().standard_normal((2, 5, 3))

    def loss(theta, x, y):
        return tm.squared_error(network(theta, x), y)

    maml = tm.MAML(loss, alpha=0.1, steps=2, backend="numpy")
    tasks = tm.Tasks(x, y, x[:, :4] + 1, y[:, :4])
    outputs = maml.predict(network, theta, tasks)
    thetas = maml.adapt(theta, x, y)
    assert outputs.shape == (2, 3, 4, 3)
    for task in range(2):
        for j in range(3):
            expected = network.predict(thetas[task, j], tasks.x_query[task])
            assert_close(outputs[task, j], expected, 1e-13)


def test_a_plain_network_ignores_support_examples():
    network = tm.MLP([2, 3, 1])
    theta, x = network.init(rng()), np.ones((4, 2), "float32")
    plain, other = (network.predict(theta, x, s) for s in (None, 5 * x[:3]))
    assert np.array_equal(plain, other)


IMAGES = np.zeros((3, 28, 28, 1))


@pytest.mark.parametrize(
    ("network", "x"),
    [(tm.MLP([2, 1]), np.ones((3, 2))), (tm.OmniglotConv(5), IMAGES)],
    ids=["plain network", "network of images"],
)
@pytest.mark.parametrize(
    ("name", "wrong", "came"),
    [
        ("theta", np.zeros(3), "an array"),
        ("theta", [0.0], "list"),
        ("theta", None, "NoneType"),
        ("x", np.zeros(3), "an array"),
        ("x", 1.0, "float"),
        ("x_support", np.zeros(3), "an array"),
    ],
)
def test_a_call_with_arrays_says_that_predict_is_meant(network, x, name, wrong, came):
    tape = tm.Tape()
    values = {
        "theta": tape.input("theta", (network.size,)),
        "x": tape.input("x", x.shape),
        "x_support": tape.input("x_support", x.shape),
    }
    network(**values)
    message = f"{name}: expected a Value of a tape, got {came}; for arrays call "
    with pytest.raises(TypeError) as caught:
        network(**values | {name: wrong})
    assert str(caught.value) == message + "network.predict(theta, x)"
    with pytest.raises(TypeError, match="^theta: expected a Value of a tape, got an"):
        network(network.init(rng()), x)


# --- initial values -------------------------------------------------------------------


def weights_of(initialiser):
    return initialiser(rng(), LARGE)


def test_an_initialiser_of_another_shape_is_refused():
    # PyTorch's layout has as many numbers, in another order.
    for made in (np.ones((3, 2)), np.ones(6), [1.0] * 6):
        network = tm.MLP([2, 3], initialiser=lambda rng, shape, made=made: made)
        with pytest.raises(
            ValueError, match=r"init: expected arrays of shapes \[\(2, 3"
        ):
            network.init(rng())
    network = tm.MLP([2, 1], initialiser=lambda rng, shape: [[1.0], [2.0]])
    assert network.init(rng()).tolist() == [1, 2, 0]


def test_sizes_that_are_small_integers_do_not_overflow():
    five = (np.array([4], np.uint8) + np.uint8(1))[0]  # as labels.max() + 1 is
    many = np.uint8(200)
    for small, plain in (
        (tm.OmniglotConv(five, many), tm.OmniglotConv(5, 200)),
        (tm.OmniglotFC(five), tm.OmniglotFC(5)),
        (tm.MiniImagenetConv(five, many), tm.MiniImagenetConv(5, 200)),
        (tm.Network([tm.Linear(many, many)]), tm.Network([tm.Linear(200, 200)])),
        (tm.Network([tm.Conv2d(many, many)]), tm.Network([tm.Conv2d(200, 200)])),
    ):
        assert small.size == plain.size and small.layout == plain.layout
        assert len(small.init(rng())) == plain.size
    layers = tm.BatchNorm(many, gamma=True), tm.Conv2d(1, 1, np.uint8(3), np.uint8(2))
    sizes = [n for layer in layers for shape in layer.shapes.values() for n in shape]
    sizes += [layers[1].stride, tm.MaxPool(five).size, tm.MeanPool(five).size]
    assert {*map(type, sizes)} == {int}


def test_truncated_normal_ends_at_two_standard_deviations():
    weights = weights_of(truncated_normal(0.01)) / 0.01
    assert np.abs(weights).max() <= 2
    assert np.abs(weights).max() > 1.99
    assert stats.kstest(weights.ravel(), stats.truncnorm(-2, 2).cdf).pvalue > 0.01


def test_he_normal_has_variance_2_over_inputs():
    weights = weights_of(he_normal()) / np.sqrt(2 / LARGE[0])
    assert stats.kstest(weights.ravel(), stats.norm.cdf).pvalue > 0.01


def test_he_normal_counts_every_pixel_of_a_kernel():
    weights = he_normal()(rng(), (3, 3, 40, 50))
    assert weights.var() == pytest.approx(2 / (9 * 40), rel=0.05)


def test_xavier_uniform_has_variance_2_over_inputs_and_outputs():
    weights = weights_of(xavier_uniform())
    assert weights.var() == pytest.approx(2 / sum(LARGE), rel=0.02)
    edge = np.sqrt(6 / sum(LARGE))
    assert (
        stats.kstest(weights.ravel(), stats.uniform(-edge, 2 * edge).cdf).pvalue > 0.01
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_alg2_line1_draws_theta_from_the_initialiser_and_zero_biases(dtype):
    network = tm.MLP([3, 5, 2], initialiser=truncated_normal(0.5))
    theta = network.init(rng(), dtype)
    assert theta.shape == (network.size,)
    assert theta.dtype == dtype
    generator, draw = rng(), truncated_normal(0.5)
    for name, (span, shape) in network.layout.items():
        parameter = theta[span].reshape(shape)
        if name.endswith("bias"):
            assert (parameter == 0).all()
        else:
            assert (parameter == draw(generator, shape).astype(dtype)).all()


def test_default_initialiser_is_he_normal():
    theta = tm.MLP([3, 50]).init(rng(), "float64")
    assert (theta[:150].reshape(3, 50) == he_normal()(rng(), (3, 50))).all()


def test_initial_values_depend_on_the_seed_alone():
    network = tm.MLP([2, 3, 1])
    first, same = (network.init(np.random.default_rng(7)) for _ in range(2))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, network.init(np.random.default_rng(8)))


# --- refusals -------------------------------------------------------------------------


def record(network, *shapes):
    tape = tm.Tape()
    return network(*(tape.input(f"x{i}", shape) for i, shape in enumerate(shapes)))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: tm.MLP([3]), ValueError, "sizes: expected inputs and outputs"),
        (lambda: tm.MLP([3, 0]), ValueError, "sizes: expected at least 1, got 0"),
        (lambda: tm.Linear(-1, 2), ValueError, "inputs: expected at least 1, got -1"),
        (
            lambda: tm.MLP([1, 1, 1], "elu"),
            ValueError,
            "activation: expected one of.*elu",
        ),
        (
            lambda: tm.MLP([1, 1]).init(rng(), "float16"),
            TypeError,
            "dtype: expected float32 or float64, got float16",
        ),
        (
            lambda: tm.MLP([1, 1]).vector(0.0, **{"linear2.bias": 1.0}),
            ValueError,
            "parameter: expected one of linear1.w.*, linear1, head, body, got 'linea",
        ),
        (
            lambda: tm.MLP([1, 1]).predict(np.zeros(3), np.ones((4, 1))),
            ValueError,
            r"theta: expected shape \(2,\), got \(3,\)",
        ),
        (
            lambda: record(tm.MLP([1, 1]), (3,), (4, 1)),
            ValueError,
            r"theta: expected shape \(2,\), got \(3,\)",
        ),
        (
            lambda: tm.MLP([1, 1]).predict(np.zeros(2, "float16"), np.ones((4, 1))),
            TypeError,
            "theta: expected a float32 or float64 array, got float16",
        ),
        (
            lambda: tm.MLP([1, 1]).predict(np.zeros(2), [[1.0]]),
            TypeError,
            "x: expected an array, got list",
        ),
        (
            lambda: tm.MLP([1, 1]).predict(np.zeros(2), np.ones((4, 2))),
            ValueError,
            r"x: expected shape \(N, inputs\) with 1 inputs, got \(4, 2\)",
        ),
        (
            lambda: tm.MLP([1, 1]).predict(np.zeros(2), np.ones(4)),
            ValueError,
            r"x: expected shape \(N, inputs\) with 1 inputs, got \(4,\)",
        ),
        (
            lambda: tm.MLP([1, 1]).predict(np.zeros(2), np.ones((4, 1), "float32")),
            TypeError,
            "x: expected an array of float64, got float32",
        ),
        (
            lambda: tm.Network([tm.Linear(2, 3, lambda rng, shape: np.zeros(2))]).init(
                np.random.default_rng(0)
            ),
            ValueError,
            r"init: expected arrays of shapes \[\(2, 3\), \(3,\)\], got \[\(2,\), ",
        ),
        (
            lambda: tm.Network([tm.Flatten()]).predict(np.zeros(0), np.ones((2, 1))),
            ValueError,
            r"theta: expected shape \(P,\), P > 0, got \(0,\)",
        ),
        (lambda: Layer()([], None), NotImplementedError, None),
    ],
)
def test_a_bad_argument_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()


# --- networks can be sent and not be changed ------------------------------------------

NETWORKS = {
    "perceptron": lambda: tm.MLP([2, 4, 1]),
    "tanh": lambda: tm.MLP([2, 4, 1], "tanh", truncated_normal(0.02)),
    "normal": lambda: tm.MLP([2, 1], "relu", normal(0.5)),
    "xavier": lambda: tm.MLP([2, 4, 1], "relu", xavier_uniform()),
    "omniglot": lambda: tm.OmniglotConv(5, 8, "support", gamma=True),
    "omniglot-fc": lambda: tm.OmniglotFC(5),
    "miniimagenet": lambda: tm.MiniImagenetConv(5, 4),
    "context": lambda: tm.Network([Context(2), tm.Linear(4, 1)]),
    "omniglot-context": lambda: OmniglotContext(5, "support"),
    "layers": lambda: tm.Network([tm.Flatten(), tm.Linear(2, 2), tm.MeanPool()]),
}


@pytest.mark.parametrize(
    "copier", [copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))]
)
@pytest.mark.parametrize("name", NETWORKS)
def test_network_can_be_copied_and_pickled(name, copier):
    network = NETWORKS[name]()
    back = copier(network)
    assert repr(back) == repr(network) and back.layout == network.layout
    assert np.array_equal(back.init(rng()), network.init(rng()))
    with pytest.raises(AttributeError, match="^size: "):
        back.size = 3


@pytest.mark.parametrize("name", NETWORKS)
def test_network_and_its_layers_cannot_be_changed(name):
    network = NETWORKS[name]()
    for thing in (network, *network.layers):
        for attribute in vars(thing):
            message = f"^{attribute}: a {type(thing).__name__} cannot be changed.*new"
            with pytest.raises(AttributeError, match=message):
                setattr(thing, attribute, 0)
            with pytest.raises(AttributeError, match=message):
                delattr(thing, attribute)
    with pytest.raises(TypeError):
        network.layers[0] = tm.Linear(1, 1)


def test_a_layer_of_ones_own_sets_each_attribute_once():
    class Scale(Layer):
        def __init__(self, factor):
            self.factor = factor

        def __call__(self, parameters, x):
            return x * self.factor

    network = tm.Network([tm.Linear(1, 1), Scale(2.0)])
    assert network.predict(np.ones(2), np.ones((1, 1))).tolist() == [[4.0]]
    with pytest.raises(AttributeError, match="^factor: a Scale cannot be changed"):
        network.layers[1].factor = 3.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tm.MLP(5), "sizes: expected whole numbers, got 5"),
        (lambda: tm.Network([3]), r"layers: expected a list of layers, got \[3\]"),
        (lambda: tm.Network(3), "layers: expected a list of layers, got 3"),
        (lambda: tm.MLP([1, 1]).init(0), "rng: expected a numpy.random.Generator"),
        (lambda: tm.MLP([1, 1]).vector("0"), "default: expected a number"),
        (
            lambda: tm.MLP([1, 2, 1], initialiser="he"),
            "initialiser: expected a function, got 'he'",
        ),
        (
            lambda: tm.Conv2d(1, 2, initialiser="he"),
            "initialiser: expected a function, got 'he'",
        ),
        (lambda: truncated_normal("1"), "std: expected a number"),
        (
            lambda: tm.BatchNorm(3, gamma="no"),
            "gamma: expected True or False, got 'no'",
        ),
        (lambda: tm.Conv2d(1, 1, bias=None), "bias: expected True or False, got None"),
    ],
)
def test_a_bad_type_is_refused_by_name(call, message):
    with pytest.raises(TypeError, match=f"^{message}"):
        call()


# --- parameters by name ---------------------------------------------------------------


@pytest.mark.parametrize("torch", [False, True])
@pytest.mark.parametrize(
    "network", [tm.MLP([3, 4, 2]), tm.OmniglotConv(5, features=3, gamma=True)]
)
def test_flatten_is_the_way_back_of_unflatten(network, torch):
    theta = np.random.default_rng(0).normal(size=network.size)
    arrays = network.unflatten(theta, torch=torch)
    assert [*arrays] == [*network.layout]
    back = network.flatten(arrays, torch=torch, dtype="float64")
    assert back.tolist() == theta.tolist()
    for array in arrays.values():
        array[...] = 0  # they are copies
    assert (theta != 0).all()


def test_unflatten_gives_the_shapes_and_numbers_that_pytorch_wants():
    network = tm.OmniglotConv(5, features=3)
    theta = np.arange(network.size, dtype=float)
    ours, theirs = network.unflatten(theta), network.unflatten(theta, torch=True)
    kernel, weight = "conv2d2.weight", "linear1.weight"
    assert theirs[kernel].shape == (3, 3, 3, 3) and theirs[weight].shape == (5, 3)
    assert theirs["conv2d1.weight"].shape == (3, 1, 3, 3)
    for u, v, c, f in np.ndindex(ours[kernel].shape):
        assert theirs[kernel][f, c, u, v] == ours[kernel][u, v, c, f]
    assert theirs[weight].tolist() == ours[weight].T.tolist()


def test_network_of_these_parameters_is_that_of_pytorch():
    torch = pytest.importorskip("torch")
    network = tm.MLP([3, 5, 2], "tanh")
    theta = network.init(np.random.default_rng(0), "float64")
    theirs = torch.nn.Sequential(
        torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2)
    ).double()
    arrays = network.unflatten(theta, torch=True).values()
    names = zip(theirs.state_dict(), arrays, strict=True)
    theirs.load_state_dict({name: torch.from_numpy(array) for name, array in names})
    x = np.random.default_rng(1).normal(size=(4, 3))
    expected = theirs(torch.from_numpy(x)).detach().numpy()
    assert_close(network.predict(theta, x), expected, 1e-14)


def test_parameters_that_do_not_fit_are_named():
    network = tm.MLP([3, 2])
    arrays = network.unflatten(np.zeros(8))
    with pytest.raises(ValueError, match="^arrays: expected the parameters"):
        network.flatten({"linear1.weight": arrays["linear1.weight"]})
    with pytest.raises(ValueError, match=r"^linear1.weight: expected shape \(3, 2\)"):
        network.flatten({**arrays, "linear1.weight": np.zeros((2, 3))})


# --- activations of your own ----------------------------------------------------------


def swish(x):
    return x * tm.sigmoid(x)


def test_activation_may_be_a_function():
    network = tm.MLP([2, 3, 1], swish)
    theta = network.init(np.random.default_rng(0), "float64")
    x = np.random.default_rng(1).normal(size=(4, 2))
    w1, b1, w2, b2 = network.unflatten(theta).values()
    h = x @ w1 + b1
    expected = (h / (1 + np.exp(-h))) @ w2 + b2
    assert_close(network.predict(theta, x), expected, 1e-14)

    def loss(theta, x):
        out = network(theta, x)
        return (out * out).sum()

    tm.gradcheck(loss, theta, x)


def test_activation_of_another_shape_is_refused():
    network = tm.MLP([2, 3, 1], lambda x: x.sum())
    with pytest.raises(ValueError, match=r"^activation: expected a Value of shape"):
        network.predict(np.zeros(network.size), np.ones((4, 2)))
