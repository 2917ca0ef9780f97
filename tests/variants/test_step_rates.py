"""Learned rates per layer and per step, against NumPy and against MAML."""

import pickle

import numpy as np
import pytest

import tinymaml as tm
from tests.support.maml_problems import (
    adapt_in_numpy,
    assert_exact,
    assert_float32_agrees,
    problem,
    variant_of,
)
from tests.support.running import BACKENDS, assert_close
from tinymaml.variants import StepRates

every_backend = pytest.mark.parametrize("backend", BACKENDS)
NETWORK = tm.MLP([2, 5, 3], "tanh")  # that of `problem`
LAYERS = [15, 18]  # its parameters
RATES = np.array([[0.1, 0.4], [0.3, -0.2], [0.05, 0.2]])  # (J, L)


def learner(p, backend="numpy", **options):
    """Three steps, with rates that all differ."""
    rates = variant_of(StepRates, p, NETWORK, backend=backend, steps=3, **options)
    return rates, np.r_[p.theta, RATES.ravel()]


@every_backend
def test_step_rates_adapt_every_layer_by_its_own_rate_in_each_step(backend):
    p = problem()
    rates, outer = learner(p, backend)

    def step(j, theta, gradient, state):
        return theta - np.repeat(RATES[min(j, 2)], LAYERS) * gradient, None

    expected = adapt_in_numpy(p, step, 5)
    assert_close(rates.adapt(outer, *p.tasks[:2], steps=5), expected, 1e-13)


@every_backend
@pytest.mark.parametrize("order", [1, 2])
def test_constant_rates_are_maml(backend, order):
    p = problem("cross_entropy")
    rates, _ = learner(p, backend, order=order)
    start = rates.start(p.theta)
    assert np.array_equal(start, [*p.theta, *[0.3] * 6])
    result = rates.meta_gradient(start, p.tasks)
    maml = p.maml(backend, np.full(p.theta.size, 0.3), order=order, steps=3)
    expected = maml.meta_gradient(p.theta, p.tasks)
    assert_close(result.gradient[: p.theta.size], expected.gradient, 1e-12)
    assert_close(result.losses, expected.losses, 1e-14)
    # The rates of all steps and layers together move as one alpha would.
    if order == 2:
        parts = maml.meta_gradient(p.theta, p.tasks, parts=True).parts
        total = result.gradient[p.theta.size :].sum()
        assert total == pytest.approx(parts.alpha_gradient.sum(), rel=1e-11)


@pytest.mark.parametrize("weights", [None, (0.5, -1.0, 1.5)])
def test_step_rates_match_finite_differences_in_theta_and_rates(weights):
    p = problem()
    rates, outer = learner(p, step_weights=weights)
    assert_exact(rates, outer, p.tasks, weights)


@every_backend
def test_float32_is_close(backend):
    p = problem()
    rates, outer = learner(p, backend)
    assert_float32_agrees(rates, outer, p.tasks)


def test_layers_of_another_network_take_effect_when_they_are_set():
    p = problem()
    rates, outer = learner(p)
    before = rates.meta_gradient(outer, p.tasks).gradient
    rates.layers = (18, 15)
    other = rates.meta_gradient(outer, p.tasks).gradient
    assert np.linalg.norm(other - before) > 0.01 * np.linalg.norm(before)
    rates.layers = (15, 18)
    assert np.array_equal(rates.meta_gradient(outer, p.tasks).gradient, before)
    with pytest.raises(ValueError, match="^layers: expected at least 1, got 0"):
        rates.layers = (0, 33)


def test_what_does_not_fit_is_refused():
    p = problem()
    rates, outer = learner(p)
    with pytest.raises(ValueError, match=r"^theta: expected \(theta, alpha\), 33 \+ 6"):
        rates.meta_gradient(p.theta, p.tasks)
    with pytest.raises(ValueError, match="^theta: expected shape"):
        rates.start(outer)
    with pytest.raises(ValueError, match="^steps: expected at least 1, got 0"):
        variant_of(StepRates, p, NETWORK, steps=0)
    with pytest.raises(ValueError, match="^alpha: expected one number"):
        variant_of(StepRates, p, NETWORK, alpha=np.ones(33)).start(p.theta)


def test_a_copy_has_the_layers():
    network = tm.MLP([1, 2, 1])
    rates = StepRates(tm.squared_error, network, steps=2)
    assert pickle.loads(pickle.dumps(rates)).layers == (4, 3)
