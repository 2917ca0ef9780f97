"""Momentum and Adam in the inner loop: their steps, and the way back through them."""

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
from tinymaml.variants import InnerAdam, InnerMomentum

every_backend = pytest.mark.parametrize("backend", BACKENDS)
KINDS = {"momentum": InnerMomentum, "adam": InnerAdam}
every_kind = pytest.mark.parametrize("name", KINDS)


def learner(p, name, backend="numpy", **options):
    options = {"steps": 3, "alpha": {"momentum": 0.2, "adam": 0.05}[name], **options}
    return variant_of(KINDS[name], p, backend=backend, **options)


@every_backend
def test_inner_momentum_takes_the_steps_written_in_numpy(backend):
    p = problem()

    def step(j, theta, gradient, m):
        m = gradient if m is None else 0.7 * m + gradient
        return theta - 0.2 * m, m

    maml = learner(p, "momentum", backend, momentum=0.7)
    assert_close(maml.adapt(p.theta, *p.tasks[:2]), adapt_in_numpy(p, step, 3), 1e-13)


@every_backend
def test_inner_adam_takes_the_steps_of_adam(backend):
    """With a small epsilon they are those of our outer optimiser."""
    p = problem()

    def step(j, theta, gradient, adam):
        adam = tm.Adam(0.05, 0.8, 0.9, 1e-14) if adam is None else adam
        theta = theta.copy()
        adam.update(theta, gradient)
        return theta, adam

    maml = learner(p, "adam", backend, beta1=0.8, beta2=0.9, epsilon=1e-9)
    assert_close(maml.adapt(p.theta, *p.tasks[:2]), adapt_in_numpy(p, step, 3), 1e-7)

    def with_epsilon(j, theta, gradient, moments):
        m, v = (0, 0) if moments is None else moments
        m, v = 0.8 * m + 0.2 * gradient, 0.9 * v + 0.1 * gradient**2
        unbiased = m / (1 - 0.8 ** (j + 1)), v / (1 - 0.9 ** (j + 1))
        return theta - 0.05 * unbiased[0] / np.sqrt(unbiased[1] + 0.01), (m, v)

    maml = learner(p, "adam", backend, beta1=0.8, beta2=0.9, epsilon=0.1)
    expected = adapt_in_numpy(p, with_epsilon, 3)
    assert_close(maml.adapt(p.theta, *p.tasks[:2]), expected, 1e-12)


@every_backend
@pytest.mark.parametrize("order", [1, 2])
def test_without_momentum_it_is_maml(backend, order):
    p = problem("cross_entropy")
    maml = learner(p, "momentum", backend, momentum=0, order=order)
    expected = p.maml(backend, 0.2, steps=3, order=order)
    result, expected = (m.meta_gradient(p.theta, p.tasks) for m in (maml, expected))
    assert_close(result.gradient, expected.gradient, 1e-12)
    assert_close(result.losses, expected.losses, 1e-14)


@every_kind
@pytest.mark.parametrize("weights", [None, (0.5, -1.0, 1.5)])
def test_meta_gradient_matches_finite_differences(name, weights):
    p = problem()
    # Where a gradient passes 0, Adam's step turns within an epsilon: it is 0.1 here.
    settings = {"epsilon": 0.1} if name == "adam" else {}
    maml = learner(p, name, step_weights=weights, **settings)
    assert_exact(maml, p.theta, p.tasks, weights)


def test_momentum_on_a_quadratic_has_the_closed_form():
    """S = a theta^2 / 2 and Q = (theta - b)^2 / 2: a linear recursion of (theta, m)."""
    a, b, mu, alpha, steps = 2.0, 3.0, 0.6, 0.1, 4
    matrix = np.array([[1 - alpha * a, -alpha * mu], [a, mu]])  # of (theta, m)
    factor = np.linalg.matrix_power(matrix, steps)[0, 0]
    one = np.ones((1, 1, 1))
    maml = InnerMomentum(
        lambda theta, x, y: (theta * theta * x).sum() * (a / 2),
        momentum=mu,
        alpha=alpha,
        steps=steps,
        query_loss=lambda theta, x, y, s: ((theta - b) * (theta - b)).sum() * 0.5,
        backend="numpy",
    )
    result = maml.meta_gradient(np.array([1.5]), tm.Tasks(one, one, one, one))
    assert_close(result.gradient, [(factor * 1.5 - b) * factor], 1e-13)


@every_backend
@every_kind
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_parameter_whose_gradient_is_always_zero_does_no_harm(backend, name, dtype):
    """A relu that is shut for all examples: a root would have an infinite slope."""
    p = problem(activation="relu")
    network = tm.MLP([2, 5, 3], "relu")
    theta = p.theta.copy()
    theta[network.layout["linear1.bias"][0]][:2] = -100.0
    p = p._replace(theta=theta).cast(dtype)
    settings = {"epsilon": 1e-8} if name == "adam" else {}
    maml = learner(p, name, backend, **settings)
    gradient = maml.meta_gradient(p.theta, p.tasks).gradient
    weights = gradient[network.layout["linear1.weight"][0]].reshape(2, 5)
    assert np.isfinite(gradient).all()
    assert (weights[:, :2] == 0).all() and (weights[:, 2:] != 0).any()


@every_backend
@every_kind
def test_float32_is_close(backend, name):
    p = problem()
    settings = {"epsilon": 0.1} if name == "adam" else {}
    assert_float32_agrees(learner(p, name, backend, **settings), p.theta, p.tasks)


def test_settings_that_are_changed_take_effect():
    p = problem()
    changed = learner(p, "adam")
    for name, value in (("beta1", 0.5), ("beta2", 0.5), ("epsilon", 0.01)):
        before = changed.meta_gradient(p.theta, p.tasks).gradient
        setattr(changed, name, value)
        after = changed.meta_gradient(p.theta, p.tasks).gradient
        assert not np.array_equal(after, before)
    new = learner(p, "adam", beta1=0.5, beta2=0.5, epsilon=0.01)
    assert np.array_equal(new.meta_gradient(p.theta, p.tasks).gradient, after)
    changed = learner(p, "momentum")
    changed.momentum = 0.0
    expected = p.maml(alpha=0.2, steps=3).meta_gradient(p.theta, p.tasks)
    result = changed.meta_gradient(p.theta, p.tasks)
    assert_close(result.gradient, expected.gradient, 1e-12)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (InnerMomentum, "momentum", 1.0),
        (InnerMomentum, "momentum", "0.9"),
        (InnerAdam, "beta1", -0.1),
        (InnerAdam, "beta2", np.nan),
        (InnerAdam, "epsilon", 0.0),
    ],
)
def test_settings_out_of_their_range_are_refused(kind, name, value):
    with pytest.raises(ValueError, match=f"^{name}: expected a number in ") as caught:
        kind(tm.squared_error, **{name: value})
    assert "\n" not in str(caught.value)
    maml = kind(tm.squared_error)
    with pytest.raises(ValueError, match=f"^{name}: expected a number in "):
        setattr(maml, name, value)


def test_alpha_is_the_second_argument_as_in_maml():
    p = problem()
    for kind in KINDS.values():
        maml = kind(p.loss, 0.2, 3, backend="numpy")
        assert (float(maml.alpha), maml.steps) == (0.2, 3)


def test_defaults_are_those_that_the_pages_give():
    p = problem()
    assert variant_of(InnerMomentum, p).momentum == 0.9
    adam = variant_of(InnerAdam, p)
    assert (adam.beta1, adam.beta2, adam.epsilon) == (0.9, 0.999, 1e-4)
