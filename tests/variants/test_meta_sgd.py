"""Meta-SGD: the meta-gradient for theta and for alpha, beside that of MAML."""

import numpy as np
import pytest

import tinymaml as tm
from tests.support.maml_problems import (
    adapt_in_numpy,
    alpha_vector,
    assert_exact,
    assert_float32_agrees,
    problem,
    variant_of,
)
from tests.support.running import BACKENDS, assert_close
from tinymaml.autodiff.derivatives import grad
from tinymaml.tasks import sinusoid
from tinymaml.variants import MetaSGD

every_backend = pytest.mark.parametrize("backend", BACKENDS)


def learner(p, backend="numpy", **options):
    """Meta-SGD and (theta, alpha), with another learning rate for each parameter."""
    alpha = alpha_vector(p.theta)
    meta_sgd = variant_of(MetaSGD, p, backend=backend, alpha=alpha, **options)
    return meta_sgd, meta_sgd.start(p.theta)


def test_meta_sgd_starts_from_theta_and_alpha():
    p = problem()
    meta_sgd, start = learner(p)
    assert np.array_equal(start, [*p.theta, *meta_sgd.alpha])
    meta_sgd.alpha = 0.25
    assert np.array_equal(meta_sgd.start(p.theta)[p.theta.size :], 0.25 + 0 * p.theta)
    assert meta_sgd.start(p.theta.astype("float32")).dtype == np.float32


@every_backend
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_meta_sgd_with_a_constant_alpha_is_maml(backend, order, steps):
    p = problem("cross_entropy")
    meta_sgd, start = learner(p, backend, order=order, steps=steps)
    maml = p.maml(backend, meta_sgd.alpha, order=order, steps=steps)
    result = meta_sgd.meta_gradient(start, p.tasks)
    expected = maml.meta_gradient(p.theta, p.tasks)
    assert result.gradient.shape == (2 * p.theta.size,)
    assert_close(result.gradient[: p.theta.size], expected.gradient, 1e-13)
    assert_close(result.losses, expected.losses, 1e-14)
    thetas, expected = (
        m.adapt(t, *p.tasks[:2]) for m, t in ((meta_sgd, start), (maml, p.theta))
    )
    assert_close(thetas, expected, 1e-14)


@pytest.mark.parametrize("weights", [None, (0.5, -1.0, 1.5)])
def test_meta_sgd_matches_finite_differences_in_theta_and_alpha(weights):
    p = problem()
    meta_sgd, start = learner(p, steps=3, step_weights=weights)
    exact, first_order = assert_exact(meta_sgd, start, p.tasks, weights)
    # The Hessian term matters to alpha, too.
    size = p.theta.size
    assert np.linalg.norm((exact - first_order)[size:]) > 0.01 * np.linalg.norm(
        exact[size:]
    )


@every_backend
@pytest.mark.parametrize("recompute", [False, True])
def test_meta_sgd_is_backpropagation_through_the_inner_loop(backend, recompute):
    p = problem()
    meta_sgd, start = learner(p, backend, steps=3, recompute=recompute)
    tape = tm.Tape()
    outer = tape.input("outer", start.shape)
    data = [tape.input(n, a.shape[1:], True) for n, a in p.tasks._asdict().items()]
    theta, alpha = outer[: p.theta.size], outer[p.theta.size :]
    for _ in range(3):
        theta = theta - alpha * grad(p.loss(theta, *data[:2]), theta)
    tape.output("gradient", grad(p.loss(theta, *data[2:]), outer), "sum")
    run = tm.get_backend("numpy").compile(tape, "float64")
    expected = run({"outer": start, **p.tasks._asdict()})["gradient"]
    gradient = meta_sgd.meta_gradient(start, p.tasks).gradient
    assert_close(gradient, expected, 1e-12)


def test_meta_sgd_of_first_order_is_the_last_cotangent_times_the_inner_gradients():
    p = problem()
    meta_sgd, start = learner(p, steps=3, order=1)
    alpha = meta_sgd.alpha
    gradients = np.zeros((3, p.theta.size))  # of the support loss, of each task

    def step(j, theta, gradient, total):
        total = gradient if total is None else total + gradient
        if j == 2:
            gradients[len(done)] = total
            done.append(j)
        return theta - alpha * gradient, total

    done = []
    paths = adapt_in_numpy(p, step, 3)
    expected = np.zeros(p.theta.size)
    for task in range(3):
        one = tm.Tasks(*(array[task : task + 1] for array in p.tasks))
        plain = p.maml(steps=0).meta_gradient(paths[task, -1], one).gradient
        expected -= gradients[task] * plain
    result = meta_sgd.meta_gradient(start, p.tasks).gradient
    assert_close(result[p.theta.size :], expected, 1e-12)


@every_backend
def test_float32_is_close(backend):
    p = problem()
    meta_sgd, start = learner(p, backend, steps=2)
    assert_float32_agrees(meta_sgd, start, p.tasks)


@pytest.mark.parametrize("call", ["meta_gradient", "evaluate"])
def test_theta_alone_is_refused(call):
    p = problem()
    meta_sgd, start = learner(p)
    with pytest.raises(ValueError, match=r"^theta: expected \(theta, alpha\), an even"):
        getattr(meta_sgd, call)(start[:-1], p.tasks)
    with pytest.raises(ValueError, match="^alpha: expected 1 or 3 numbers, got 33"):
        meta_sgd.start(p.theta[:3])


def test_train_learns_the_rates_of_sinusoids_and_beats_maml():
    network = tm.MLP([1, 40, 40, 1])

    def loss(theta, x, y):
        return tm.squared_error(network(theta, x), y)

    theta = network.init(np.random.default_rng(0))
    errors = {}
    for kind in (tm.MAML, MetaSGD):
        maml = kind(loss, alpha=0.01, threads=1)
        start = maml.start(theta) if kind is MetaSGD else theta
        trained = tm.train(
            *(maml, start, sinusoid.sample_tasks),
            iterations=3000,
            optimiser=tm.Adam(0.005),
            rng=np.random.default_rng(1),
            progress=False,
        ).theta
        assert trained.shape == start.shape
        test = sinusoid.sample_tasks(np.random.default_rng(2), 100)
        errors[kind] = maml.evaluate(trained, test)[:, -1].mean()
    assert errors[MetaSGD] < 0.65 * errors[tm.MAML], errors
