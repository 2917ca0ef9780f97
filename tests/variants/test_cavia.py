"""CAVIA: the context adapts from 0 and is not learned; the weights are MAML's."""

import numpy as np
import pytest

import tinymaml as tm
from tests.support.maml_problems import Problem, assert_is_gradient_of
from tests.support.running import AGREE, BACKENDS, assert_close
from tinymaml.variants.cavia import CAVIA
from tinymaml.variants.context_vector import Context

every_backend = pytest.mark.parametrize("backend", BACKENDS)
X, Z = 3, 2  # inputs, and numbers of the context
NETWORK = tm.Network([Context(Z), *tm.MLP([X + Z, 4, 2], "tanh").layers])
ALPHA = NETWORK.vector(0.0, "float64", **{"context1.z": 0.3})


def cavia_problem():
    rng = np.random.default_rng(4)

    def loss(theta, x, y):
        return tm.squared_error(NETWORK(theta, x), y)

    tasks = tm.Tasks(*(rng.standard_normal((3, n, k)) for n in (5, 6) for k in (X, 2)))
    theta = NETWORK.init(rng, "float64") + 0.3 * rng.standard_normal(NETWORK.size)
    theta[:Z] = 0.0
    return Problem(loss, theta, tasks)


def cavia(p, backend="numpy", **options):
    options = {"reduction": "sum", "threads": 1, **options}
    return CAVIA(p.loss, ALPHA, backend=backend, **options)


@every_backend
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("steps", [1, 3])
def test_cavia_is_maml_for_the_weights_and_0_for_the_context(backend, order, steps):
    p, options = cavia_problem(), {"steps": steps, "order": order}
    result = cavia(p, backend, **options).meta_gradient(p.theta, p.tasks)
    expected = p.maml(alpha=ALPHA, **options).meta_gradient(p.theta, p.tasks)
    assert np.array_equal(result.gradient[:Z], np.zeros(Z))
    assert_close(result.gradient[Z:], expected.gradient[Z:], 1e-12)
    assert_close(result.losses, expected.losses, 1e-13)
    assert np.linalg.norm(expected.gradient[:Z]) > 0.01  # so MAML does learn it


def test_the_meta_gradient_of_the_weights_matches_finite_differences():
    p = cavia_problem()
    weights = p.theta[Z:]
    gradient = cavia(p, steps=2).meta_gradient(p.theta, p.tasks).gradient[Z:]

    def objective(weights):
        theta = np.concatenate([np.zeros(Z), weights])
        return cavia(p).evaluate(theta, p.tasks, steps=2)[:, -1].sum()

    assert_is_gradient_of(gradient, objective, weights)
    first = cavia(p, steps=2, order=1).meta_gradient(p.theta, p.tasks).gradient[Z:]
    assert np.linalg.norm(gradient - first) > 0.05 * np.linalg.norm(gradient)


@every_backend
def test_a_linear_model_adapts_by_the_formula(backend):
    """f(x) = x w + z u + b: z_1 = -2 alpha m u with the mean support residual m."""
    network = tm.Network([Context(Z), tm.Linear(X + Z, 1)])
    rng = np.random.default_rng(1)
    theta = network.init(rng, "float64")
    x, y = rng.standard_normal((1, 5, X)), rng.standard_normal((1, 5, 1))
    alpha = network.vector(0.0, "float64", **{"context1.z": 0.25})

    def loss(theta, x, y):
        return tm.squared_error(network(theta, x), y)

    (start, end), *_ = CAVIA(loss, alpha, backend=backend).adapt(theta, x, y)
    w, u = theta[Z : Z + X], theta[Z + X : -1]
    m = (x[0] @ w + theta[-1] - y[0, :, 0]).mean()
    assert np.array_equal(start, theta)
    assert_close(end[:Z], -2 * 0.25 * m * u, 1e-13)
    assert np.array_equal(end[Z:], theta[Z:])


@every_backend
def test_training_moves_the_weights_and_leaves_the_context_at_zero(backend):
    p = cavia_problem().cast("float32")
    result = tm.train(
        cavia(p, backend, order=2),
        p.theta,
        lambda rng: p.tasks,
        iterations=20,
        optimiser=tm.Adam(0.01),
        rng=np.random.default_rng(0),
        progress=False,
    )
    assert np.array_equal(result.theta[:Z], np.zeros(Z))
    assert (np.abs(result.theta[Z:] - p.theta[Z:]) > 1e-3).all()
    assert result.losses[-1].loss < cavia(p).evaluate(p.theta, p.tasks)[:, -1].sum()


@every_backend
def test_float32_loses_no_more_than_its_rounding(backend):
    p = cavia_problem()
    exact = cavia(p, steps=3).meta_gradient(p.theta, p.tasks).gradient
    p = p.cast("float32")
    short = cavia(p, backend, steps=3).meta_gradient(p.theta, p.tasks).gradient
    assert_close(short, exact, AGREE["float32"])


def test_batch_normalisation_behind_the_context_undoes_it():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((1, 5, X)), rng.standard_normal((1, 5, 2))
    moved = []
    for mode in ("batch", "none"):
        behind = [tm.BatchNorm(4, mode), tm.Activation("tanh"), tm.Linear(4, 2)]
        network = tm.Network([Context(Z), tm.Linear(X + Z, 4), *behind])

        def loss(theta, x, y, network=network):
            return tm.squared_error(network(theta, x), y)

        learner = CAVIA(loss, network.alpha(context1=1.0), backend="numpy")
        theta = network.init(np.random.default_rng(1), "float64")
        moved.append(np.abs(learner.adapt(theta, x, y)[0, 1, :Z]).max())
    assert moved[0] < 1e-15
    assert moved[1] > 1e-3


def test_what_theta_has_for_the_context_is_not_read():
    p = cavia_problem()
    other = p.theta.copy()
    other[:Z] = 7.0
    here, there = (cavia(p).meta_gradient(t, p.tasks) for t in (p.theta, other))
    assert np.array_equal(here.gradient, there.gradient)
    assert np.array_equal(here.losses, there.losses)
    (thetas, *_) = cavia(p).adapt(other, *p.tasks[:2])
    assert np.array_equal(thetas[0], p.theta)


def test_one_alpha_for_all_parameters_is_refused():
    p = cavia_problem()
    with pytest.raises(ValueError, match=r"alpha: expected a vector \(36,\) that is 0"):
        CAVIA(p.loss, 0.1).meta_gradient(p.theta, p.tasks)


def test_the_gradients_of_weights_are_not_computed_in_the_inner_loop():
    p = cavia_problem()
    few, many = (
        maml.tape(p.theta, p.tasks, kind="adapt").flops()
        for maml in (cavia(p, steps=10), p.maml(alpha=ALPHA, steps=10))
    )
    assert few < 0.8 * many


def test_parts_are_refused():
    p = cavia_problem()
    with pytest.raises(ValueError, match="parts: expected False"):
        cavia(p).meta_gradient(p.theta, p.tasks, parts=True)
