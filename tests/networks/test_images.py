"""Networks of images: layout of theta, initial values, and values of the networks."""

import numpy as np
import pytest

import tinymaml as tm
from tests.support.image_problems import (
    direct,
    on_numbers,
    random,
    small_network,
    windows,
)
from tests.support.running import assert_close, relative_error
from tinymaml.autodiff.tape import Tape
from tinymaml.networks.layers import normal


def test_layout_names_every_parameter_and_gamma_only_as_an_option():
    names = ["conv2d1.weight", "batchnorm1.beta", "conv2d2.weight", "batchnorm2.beta"]
    last = ["linear1.weight", "linear1.bias"]
    assert [*small_network().layout] == names + last
    with_all_options = small_network(bias=True, gamma=True)
    assert [*with_all_options.layout] == [
        *("conv2d1.weight", "conv2d1.bias", "batchnorm1.beta", "batchnorm1.gamma"),
        *("conv2d2.weight", "conv2d2.bias", "batchnorm2.beta", "batchnorm2.gamma"),
        *last,
    ]
    assert with_all_options.size == small_network().size + 2 * (3 + 4)
    assert small_network().layout["conv2d2.weight"][1] == (2, 2, 3, 4)


def test_a_network_of_images_shows_its_layers_with_their_options():
    assert repr(tm.OmniglotConv(5)).splitlines()[:4] == [
        "OmniglotConv of 111,749 parameters",
        "     576  Conv2d(weight (3, 3, 1, 64), stride=2)",
        "      64  BatchNorm(beta (64,), mode='batch', epsilon=0.001)",
        "       0  Activation(name='relu')",
    ]
    layers = [tm.BatchNorm(4, "none", gamma=True), tm.Conv2d(2, 3, 1, bias=True)]
    layers += [tm.MaxPool(3), tm.MeanPool(), tm.MeanPool(2), tm.Flatten()]
    assert [repr(layer) for layer in layers] == [
        "BatchNorm(beta (4,), gamma (4,), mode='none', epsilon=0.001)",
        "Conv2d(weight (1, 1, 2, 3), bias (3,), stride=1)",
        "MaxPool(size=3)",
        "MeanPool()",
        "MeanPool(size=2)",
        "Flatten()",
    ]


@pytest.mark.parametrize("gamma", [False, True])
@pytest.mark.parametrize("ways", [5, 20])
def test_networks_have_the_papers_sizes(ways, gamma):
    vectors = 2 if gamma else 1  # beta, and gamma
    omniglot = tm.OmniglotConv(ways, gamma=gamma)
    kernels = 9 * (1 * 64 + 3 * 64 * 64)
    assert omniglot.size == kernels + vectors * 4 * 64 + 64 * ways + ways
    mini = tm.MiniImagenetConv(ways, gamma=gamma)
    kernels = 9 * (3 * 32 + 3 * 32 * 32)
    assert mini.size == kernels + vectors * 4 * 32 + 800 * ways + ways
    dense = tm.OmniglotFC(ways, gamma=gamma)
    assert dense.size == (
        784 * 256 + 256 * 128 + 128 * 64 + 64 * 64 + 64 * ways  # weights
        + (1 + vectors) * (256 + 128 + 64 + 64) + ways  # biases, beta, gamma
    )  # fmt: skip


NETWORKS = [tm.OmniglotConv, tm.OmniglotFC, tm.MiniImagenetConv]


@pytest.mark.parametrize("make", NETWORKS)
@pytest.mark.parametrize("gamma", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_adapted_only_is_zero_at_batch_norm_and_alpha_elsewhere(make, gamma, dtype):
    network = make(5, gamma=gamma)
    alpha = network.adapted_only(0.5, dtype)
    assert alpha.dtype == dtype and alpha.shape == (network.size,)
    kinds = {"beta": 0.0, "gamma": 0.0, "weight": 0.5, "bias": 0.5}
    for name, (span, _) in network.layout.items():
        assert (alpha[span] == kinds[name.split(".")[1]]).all(), name


def variances(network):
    theta = network.init(np.random.default_rng(0), "float64")
    return {
        name: (theta[span].var(), theta[span], shape)
        for name, (span, shape) in network.layout.items()
    }


@pytest.mark.parametrize("make", [tm.OmniglotConv, tm.MiniImagenetConv])
def test_convolutions_start_from_xavier_with_every_pixel_of_the_kernel(make):
    for name, (variance, weights, shape) in variances(make(5)).items():
        if name.startswith("conv2d"):
            _, _, inputs, outputs = shape
            expected = 2 / (9 * inputs + 9 * outputs)
            # Four standard errors of the variance of uniform numbers.
            tolerance = 4 * np.sqrt(0.8 / weights.size)
            assert variance == pytest.approx(expected, rel=tolerance), name
            assert np.abs(weights).max() <= np.sqrt(3 * expected), name


def test_last_layers_start_as_in_the_authors_code():
    for make, expected in [
        (tm.OmniglotConv, 1.0),
        (tm.OmniglotFC, 0.01**2 * 0.774),  # a normal cut at 2 std
        (tm.MiniImagenetConv, 2 / (800 + 100)),
    ]:
        name = "linear5.weight" if make is tm.OmniglotFC else "linear1.weight"
        variance, weights, _ = variances(make(100))[name]
        tolerance = 5 * np.sqrt(2 / weights.size)
        assert variance == pytest.approx(expected, rel=tolerance), make


def test_all_layers_without_convolutions_start_from_a_cut_normal():
    for name, (variance, weights, _) in variances(tm.OmniglotFC(100)).items():
        if name.endswith(".weight"):
            tolerance = 5 * np.sqrt(2 / weights.size)
            assert variance == pytest.approx(0.01**2 * 0.774, rel=tolerance), name
            assert np.abs(weights).max() <= 0.02, name


@pytest.mark.parametrize("make", NETWORKS)
def test_biases_and_beta_start_at_0_and_gamma_at_1(make):
    for name, (_, array, _) in variances(make(5, gamma=True)).items():
        kind = name.split(".")[1]
        if kind != "weight":
            assert (array == (1 if kind == "gamma" else 0)).all(), name


def test_an_initialiser_of_ones_own_is_used():
    layer = tm.Conv2d(50, 60, initialiser=normal(7.0))
    (weights,) = layer.init(np.random.default_rng(0))
    assert weights.std() == pytest.approx(7, rel=0.02)


def plain_network(network, theta, x, stride, pool):
    """The networks of convolutions in NumPy; `pool` makes the last map smaller."""
    parameters = {
        name: theta[span].reshape(shape)
        for name, (span, shape) in network.layout.items()
    }
    for layer in range(1, 5):
        x = direct(x, parameters[f"conv2d{layer}.weight"], stride)
        x = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-3)
        x = np.maximum(x + parameters[f"batchnorm{layer}.beta"], 0)
        x = windows(x, 2).max((3, 4)) if pool else x
    x = x if pool else x.mean((1, 2))
    x = x.reshape(len(x), -1)
    return x @ parameters["linear1.weight"] + parameters["linear1.bias"]


@pytest.mark.parametrize(
    ("make", "shape", "stride", "pool"),
    [
        (tm.OmniglotConv, (6, 28, 28, 1), 2, False),
        (tm.MiniImagenetConv, (2, 84, 84, 3), 1, True),
    ],
)
def test_networks_of_convolutions_are_the_plain_expression(make, shape, stride, pool):
    network = make(5)
    theta = network.init(np.random.default_rng(0), "float64")
    theta += 0.1 * random(theta.size)
    x = np.random.default_rng(1).random(shape)
    out = network.predict(theta, x)
    assert out.shape == (shape[0], 5)
    assert_close(out, plain_network(network, theta, x, stride, pool), 1e-12)


def test_network_without_convolutions_is_the_plain_expression():
    network = tm.OmniglotFC(20)
    theta = network.init(np.random.default_rng(0), "float64")
    theta += 0.1 * random(theta.size)
    images = np.random.default_rng(1).random((7, 28, 28, 1))
    x = images.reshape(7, 784)

    def parameter(name):
        span, shape = network.layout[name]
        return theta[span].reshape(shape)

    for i in range(1, 5):
        x = x @ parameter(f"linear{i}.weight") + parameter(f"linear{i}.bias")
        x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3) + parameter(f"batchnorm{i}.beta")
        x = np.maximum(x, 0)
    expected = x @ parameter("linear5.weight") + parameter("linear5.bias")
    assert_close(network.predict(theta, images), expected, 1e-12)
    assert_close(network.predict(theta, images.reshape(7, 784)), expected, 1e-12)


def test_predict_normalises_by_the_support_images_that_it_gets():
    network = small_network("support")
    theta = network.init(np.random.default_rng(0), "float64")
    x, support = random(5, 6, 6, 2), random(4, 6, 6, 2, seed=1)
    expected = on_numbers(network, theta, x, support)
    assert np.array_equal(network.predict(theta, x, support), expected)
    assert relative_error(network.predict(theta, x), expected) > 0.01


# --- refusals -------------------------------------------------------------------------


def predict(make, *shape):
    network = make(5)
    return network.predict(np.zeros(network.size), np.zeros(shape))


def normalise_shapes(x, support):
    tape = Tape()
    values = [tape.input(f"x{i}", shape) for i, shape in enumerate((x, support))]
    tm.BatchNorm(2, "support")([tape.input("beta", (2,))], *values)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tm.OmniglotConv(0), "^ways: expected at least 1, got 0"),
        (lambda: tm.OmniglotFC(0), "^ways: expected at least 1, got 0"),
        (lambda: tm.MiniImagenetConv(-1), "^ways: expected at least 1, got -1"),
        (lambda: tm.OmniglotConv(5, features=0), "^features: expected .* 1, got 0"),
        (lambda: tm.OmniglotConv(5, mode="sup"), "^mode: expected one of .*got 'sup'"),
        (
            lambda: tm.BatchNorm(2, "Batch"),
            "^mode: .*batch, support, none, got 'Batch'",
        ),
        (lambda: tm.BatchNorm(0), "^channels: expected at least 1, got 0"),
        (lambda: tm.BatchNorm(2, epsilon=0), "^epsilon: expected more than 0, got 0"),
        (
            lambda: tm.BatchNorm(2, epsilon=np.nan),
            "^epsilon: expected more .*, got nan",
        ),
        (lambda: tm.Conv2d(0, 2), "^channels: expected at least 1, got 0"),
        (lambda: tm.Conv2d(1, 0), "^features: expected at least 1, got 0"),
        (lambda: tm.Conv2d(1, 2, kernel=0), "^kernel: expected at least 1, got 0"),
        (lambda: tm.Conv2d(1, 2, stride=-1), "^stride: expected at least 1, got -1"),
        (lambda: tm.MaxPool(0), "^size: expected at least 1, got 0"),
        (lambda: tm.MeanPool(0), "^size: expected at least 1, got 0"),
        (
            lambda: predict(tm.OmniglotConv, 3, 784),
            r"^x: expected images \(N, H, W, C\), got shape \(3, 784\)",
        ),
        (
            lambda: predict(tm.OmniglotConv, 3, 28, 28, 3),
            r"^x: expected .* 1 channels, got shape \(3, 28, 28, 3\)",
        ),
        (
            lambda: predict(tm.MiniImagenetConv, 2, 42, 42, 3),
            r"^x: expected .* 800 inputs, got \(2, 128\)",
        ),
        (
            lambda: predict(tm.MiniImagenetConv, 2, 8, 8, 3),
            r"^size: .*height and width, got 2 for images of shape \(2, 1, 1, 32\)",
        ),
        (
            lambda: predict(tm.OmniglotFC, 3, 28, 28, 3),
            r"^x: expected .* 784 inputs, got \(3, 2352\)",
        ),
        (
            lambda: normalise_shapes((4, 3), (4, 2)),
            r"^x: expected .* 2 channels, got shape \(4, 3\)",
        ),
        (
            lambda: normalise_shapes((4, 2), (4, 3)),
            r"^x_support: expected .* 2 channels, got shape \(4, 3\)",
        ),
    ],
)
def test_a_bad_argument_is_refused_by_name_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [1.5, 2.0, True, "2", np.inf])
@pytest.mark.parametrize("name", ["channels", "features", "kernel", "stride"])
def test_a_size_that_is_no_whole_number_is_refused(name, number):
    sizes = {"channels": 1, "features": 2, "kernel": 3, "stride": 1, name: number}
    with pytest.raises(TypeError, match=f"^{name}: expected a whole number, got"):
        tm.Conv2d(**sizes)
