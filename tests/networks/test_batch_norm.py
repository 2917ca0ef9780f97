"""Batch normalisation: symmetries, modes, and a bias before it, which has no effect."""

import numpy as np
import pytest

import tinymaml as tm
from tests.support.image_problems import on_numbers, random, small_network
from tests.support.running import BACKENDS, assert_close, run_tape
from tinymaml.autodiff.derivatives import grad, hvp
from tinymaml.autodiff.tape import Tape
from tinymaml.networks.images import MODES

every_backend = pytest.mark.parametrize("backend", BACKENDS)


def normalise(x, support=None, backend="numpy", **options):
    """x after BatchNorm with its initial parameters: beta 0, gamma 1."""
    layer = tm.BatchNorm(x.shape[-1], **options)
    parameters = layer.init(np.random.default_rng(0))

    def function(x, *values):
        own, x_support = values[: len(parameters)], values[len(parameters) :]
        return layer(own, x, *x_support)

    arrays = [x, *parameters, *([] if support is None else [support])]
    return on_numbers(function, *arrays, backend=backend)


@every_backend
@pytest.mark.parametrize("shape", [(7, 3), (4, 3, 5, 2), (1, 1, 1, 4)])
@pytest.mark.parametrize("epsilon", [1e-3, 0.5])
def test_batch_norm_has_mean_0_and_variance_v_over_v_plus_epsilon(
    backend, shape, epsilon
):
    x = 3 * random(*shape) + 2
    out = normalise(x, backend=backend, epsilon=epsilon).reshape(-1, shape[-1])
    variance = x.reshape(-1, shape[-1]).var(0)
    assert np.abs(out.mean(0)).max() < 1e-14
    assert_close(out.var(0), variance / (variance + epsilon), 1e-13)


@every_backend
def test_batch_norm_is_invariant_to_a_shift_of_its_input(backend):
    # The mean of 16 whole numbers and the differences from it are exact.
    x = np.random.default_rng(0).integers(-8, 9, (4, 2, 2, 3)).astype(float)
    plain, shifted = (
        normalise(array, backend=backend) for array in (x, x + [5, -100, 2**20])
    )
    assert np.array_equal(shifted, plain)


@every_backend
@pytest.mark.parametrize("factor", [0.5, -3.0, 100.0])
def test_a_scaled_input_differs_in_the_effect_of_epsilon_only(backend, factor):
    x, epsilon = random(4, 3, 3, 2), 1e-3
    scaled = np.sign(factor) * normalise(factor * x, backend=backend, epsilon=epsilon)
    equal = normalise(x, backend=backend, epsilon=epsilon / factor**2)
    assert_close(scaled, equal, 1e-13)
    share = epsilon / min(1, factor**2) / x.reshape(-1, 2).var(0).min()
    assert_close(scaled, normalise(x, backend=backend, epsilon=epsilon), share)


def test_beta_is_added_and_gamma_multiplies():
    x, beta, gamma = random(4, 3, 3, 2), np.array([0.5, -2]), np.array([3, -1.0])
    plain = normalise(x)
    layer = tm.BatchNorm(2, gamma=True)
    both = on_numbers(lambda x, *p: layer(p, x), x, beta, gamma)
    assert_close(both, gamma * plain + beta, 1e-14)
    shift = on_numbers(lambda x, b: tm.BatchNorm(2)([b], x), x, beta)
    assert_close(shift, plain + beta, 1e-14)


@every_backend
def test_mode_none_is_affine(backend):
    x, beta, gamma = random(4, 3, 3, 2), np.array([0.5, -2]), np.array([3, -1.0])
    layer = tm.BatchNorm(2, "none", gamma=True)
    out = on_numbers(lambda x, *p: layer(p, x), x, beta, gamma, backend=backend)
    assert_close(out, gamma * x + beta, 1e-15)
    assert np.array_equal(normalise(x, mode="none", backend=backend), x)


@every_backend
def test_mode_support_takes_mean_and_variance_of_the_support_examples(backend):
    x, support = random(4, 3, 3, 2), 2 * random(5, 3, 3, 2, seed=1) + 1
    rows = support.reshape(-1, 2)
    expected = (x - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-3)
    assert_close(normalise(x, support, backend, mode="support"), expected, 1e-13)
    own = normalise(x, support, backend, mode="batch")
    assert_close(own, normalise(x, backend=backend), 1e-15)
    assert_close(normalise(x, mode="support", backend=backend), own, 1e-15)


def logits(network, x, support, backend="numpy"):
    theta = network.init(np.random.default_rng(0), "float64")
    theta += 0.2 * random(theta.size, seed=5)
    return on_numbers(network, theta, x, support, backend=backend)


@every_backend
@pytest.mark.parametrize("mode", MODES)
def test_query_examples_depend_on_each_other_in_mode_batch_only(backend, mode):
    network = small_network(mode)
    query, support = random(5, 6, 6, 2), random(4, 6, 6, 2, seed=1)
    changed = query.copy()
    changed[2] += random(6, 6, 2, seed=2)
    before, after = (logits(network, x, support, backend) for x in (query, changed))
    others = [0, 1, 3, 4]
    change = np.abs(after - before).max(1)
    assert change[2] > 0.01
    if mode == "batch":
        assert (change[others] > 1e-3).all()
    else:
        assert_close(after[others], before[others], 1e-14)


@pytest.mark.parametrize("mode", MODES)
def test_every_network_gives_its_layers_the_support_examples(mode):
    network = small_network(mode)
    plain = tm.Network(network.layers)

    def layer_by_layer(theta, x, support):  # each layer sees both, one after the other
        for layer, parameters in plain.unpack(theta):
            if isinstance(layer, tm.BatchNorm):
                x, support = layer(parameters, x, support), layer(parameters, support)
            else:
                x, support = layer(parameters, x), layer(parameters, support)
        return x

    query, support = random(5, 6, 6, 2), random(4, 6, 6, 2, seed=1)
    theta = random(plain.size)
    expected = on_numbers(layer_by_layer, theta, query, support)
    assert_close(on_numbers(plain, theta, query, support), expected, 1e-12)
    assert_close(plain.predict(theta, query, support), expected, 1e-12)


@every_backend
@pytest.mark.parametrize("mode", MODES)
def test_query_examples_depend_on_the_support_in_mode_support_only(backend, mode):
    network = small_network(mode)
    query, support = random(5, 6, 6, 2), random(4, 6, 6, 2, seed=1)
    before, after = (
        logits(network, query, x, backend) for x in (support, 2 * support + 1)
    )
    if mode == "support":
        assert (np.abs(after - before).max(1) > 1e-3).all()
    else:
        assert np.array_equal(after, before)


@every_backend
def test_modes_batch_and_support_agree_where_query_and_support_are_the_same(backend):
    x = random(5, 6, 6, 2)
    batch, support = (
        logits(small_network(mode), x, x.copy(), backend)
        for mode in ("batch", "support")
    )
    assert_close(support, batch, 1e-14)


@every_backend
@pytest.mark.parametrize("mode", MODES)
def test_a_bias_before_batch_norm_has_no_gradient_and_no_curvature(backend, mode):
    """They are zero up to rounding: 1e-14 of the whole gradient, in float64."""
    network = small_network(mode, bias=True)
    tape = Tape()
    theta, v = (tape.input(name, (network.size,)) for name in ("theta", "v"))
    x, support = (tape.input(name, (n, 6, 6, 2)) for name, n in (("x", 5), ("s", 4)))
    y = tape.input("y", (5, 3))
    loss = tm.cross_entropy(network(theta, x, support), y)
    tape.output("gradient", grad(loss, theta))
    tape.output("hvp", hvp(loss, theta, v))
    inputs = {
        "theta": network.init(np.random.default_rng(0), "float64")
        + 0.2 * random(network.size),
        "v": random(network.size, seed=1),
        "x": random(5, 6, 6, 2, seed=2),
        "s": random(4, 6, 6, 2, seed=3),
        "y": np.eye(3)[[0, 1, 2, 0, 1]],
    }
    results = run_tape(tape, inputs, backend)
    for name, array in results.items():
        for layer in ("conv2d1", "conv2d2"):
            span, _ = network.layout[f"{layer}.bias"]
            share = np.linalg.norm(array[0, span]) / np.linalg.norm(array)
            if mode == "none":
                assert share > 1e-3, (name, layer)
            else:
                assert share < 1e-14, (name, layer)
