"""Implicit MAML: closed forms of quadratics, dense Hessians, finite differences."""

import re

import numpy as np
import pytest

import tinymaml as tm
from tests.support.maml_problems import (
    assert_is_gradient_of,
    derivatives,
    problem,
)
from tests.support.running import AGREE, BACKENDS, assert_close
from tinymaml.variants.implicit_maml import ImplicitMAML

every_backend = pytest.mark.parametrize("backend", BACKENDS)
LAMBDA = 1.5


def imaml(p, backend="numpy", alpha=0.2, **options):
    defaults = {"reduction": "sum", "threads": 1, "penalty": LAMBDA}
    return ImplicitMAML(p.loss, alpha, backend=backend, **{**defaults, **options})


def quadratic(seed=3):
    """Linear regression: loss, theta, tasks, and (H, c) of both losses of each task.

    A loss of mean ((x theta - y)^2) is theta' H theta / 2 - c' theta + a constant.
    """
    rng = np.random.default_rng(seed)
    theta = rng.standard_normal(4)
    tasks = tm.Tasks(*(rng.standard_normal((2, n, k)) for n in (5, 6) for k in (4, 1)))

    def loss(theta, x, y):
        error = x @ theta.reshape(4, 1) - y
        return (error * error).mean()

    def form(x, y):
        return 2 * x.T @ x / len(x), 2 * x.T @ y[:, 0] / len(x)

    forms = [
        (*form(xs, ys), *form(xq, yq)) for xs, ys, xq, yq in zip(*tasks, strict=True)
    ]
    return loss, theta, tasks, forms


def dense_gradient(p, thetas, alpha, penalty):
    """The implicit meta-gradient at given theta_J, by dense linear algebra."""
    total, u = np.zeros(p.theta.size), np.broadcast_to(alpha, p.theta.shape) != 0
    for phi, xs, ys, xq, yq in zip(thetas, *p.tasks, strict=True):
        _, h = derivatives(p, phi, xs, ys)
        v, _ = derivatives(p, phi, xq, yq)
        solution = np.linalg.solve(np.eye(u.sum()) + h[np.ix_(u, u)] / penalty, v[u])
        total[u] += solution
        total[~u] += v[~u] - h[np.ix_(~u, u)] @ solution / penalty
    return total


def some_alpha(theta):
    """Learning rates of which every fourth is 0."""
    alpha = np.random.default_rng(2).uniform(0.1, 0.3, theta.size)
    alpha[::4] = 0.0
    return alpha


# --- the inner problem ----------------------------------------------------------------


@every_backend
def test_imaml_inner_problem_is_gradient_descent_with_a_pull_to_theta(backend):
    loss, theta, tasks, forms = quadratic()
    maml = ImplicitMAML(loss, 0.1, penalty=LAMBDA, backend=backend)
    thetas = maml.adapt(theta, *tasks[:2], steps=6)
    for task, (h, c, *_) in enumerate(forms):
        phi = theta
        for j in range(7):
            assert_close(thetas[task, j], phi, 1e-13, f"theta_{j}")
            phi = phi - 0.1 * (h @ phi - c + LAMBDA * (phi - theta))


@every_backend
def test_many_steps_lead_to_the_closed_form_of_the_minimum(backend):
    loss, theta, tasks, forms = quadratic()
    maml = ImplicitMAML(loss, 0.15, penalty=LAMBDA, backend=backend)
    ends = maml.adapt(theta, *tasks[:2], steps=300)[:, -1]
    for phi, (h, c, *_) in zip(ends, forms, strict=True):
        minimum = np.linalg.solve(h + LAMBDA * np.eye(4), c + LAMBDA * theta)
        assert_close(phi, minimum, 1e-12)


# --- the meta-gradient ----------------------------------------------------------------


@every_backend
def test_imaml_converges_to_the_closed_form_on_quadratics(backend):
    loss, theta, tasks, forms = quadratic()
    expected = 0.0
    for h, c, h_query, c_query in forms:
        minimum = np.linalg.solve(h + LAMBDA * np.eye(4), c + LAMBDA * theta)
        v = h_query @ minimum - c_query
        expected = expected + np.linalg.solve(np.eye(4) + h / LAMBDA, v) / 2
    maml = ImplicitMAML(loss, 0.15, 300, penalty=LAMBDA, backend=backend)
    errors = []
    for maml.iterations in (1, 2, 3, 4, 6):
        gradient = maml.meta_gradient(theta, tasks).gradient
        errors.append(np.linalg.norm(gradient - expected) / np.linalg.norm(expected))
    assert errors[0] > 0.01  # one iteration is not enough, so the others do something
    assert errors[0] > errors[1] > errors[2] > 1e-6
    assert max(errors[3:]) < 1e-12  # P = 4 iterations are, and a fifth does no harm


@every_backend
@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy"])
@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("alpha", [0.2, "some"])
def test_the_linear_system_is_solved_as_dense_algebra_does(backend, loss, steps, alpha):
    p = problem(loss)
    alpha = some_alpha(p.theta) if alpha == "some" else alpha
    maml = imaml(p, backend, alpha, steps=steps, iterations=60, penalty=4.0)
    ends = maml.adapt(p.theta, *p.tasks[:2])[:, -1]
    expected = dense_gradient(p, ends, alpha, 4.0)
    result = maml.meta_gradient(p.theta, p.tasks)
    assert_close(result.gradient, expected, 1e-10)
    assert_close(result.losses, maml.evaluate(p.theta, p.tasks)[:, -1], 1e-13)
    first_order = imaml(p, backend, alpha, steps=steps, order=1)
    term = first_order.meta_gradient(p.theta, p.tasks).gradient - expected
    assert np.linalg.norm(term) > 0.05 * np.linalg.norm(expected)


@every_backend
@pytest.mark.parametrize("alpha", [0.2, "some"])
def test_damping_enters_the_linear_system_alone(backend, alpha):
    p = problem()
    alpha = some_alpha(p.theta) if alpha == "some" else alpha
    maml = imaml(p, backend, alpha, steps=3, iterations=60, damping=2.5)
    ends = maml.adapt(p.theta, *p.tasks[:2])[:, -1]
    plain = imaml(p, backend, alpha, steps=3)
    assert np.array_equal(ends, plain.adapt(p.theta, *p.tasks[:2])[:, -1])
    expected = dense_gradient(p, ends, alpha, LAMBDA + 2.5)
    assert_close(maml.meta_gradient(p.theta, p.tasks).gradient, expected, 1e-10)


@pytest.mark.parametrize("alpha", [0.2, "some"])
def test_at_the_minimum_it_matches_finite_differences_of_the_objective(alpha):
    p = problem()
    alpha = some_alpha(p.theta) if alpha == "some" else alpha
    maml = imaml(p, alpha=alpha, steps=150, iterations=40, penalty=4.0)
    gradient = maml.meta_gradient(p.theta, p.tasks).gradient

    def objective(theta):
        return maml.evaluate(theta, p.tasks)[:, -1].sum()

    assert_is_gradient_of(gradient, objective, p.theta)


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_few_iterations_are_the_best_of_their_krylov_space(iterations):
    """In the norm of A, no combination of b, A b, A^2 b, ... is nearer to A^-1 b."""
    p = problem()
    p = p._replace(tasks=tm.Tasks(*(array[:1] for array in p.tasks)))
    maml = imaml(p, steps=2, penalty=4.0, iterations=iterations)
    (end,) = maml.adapt(p.theta, *p.tasks[:2])[:, -1]
    _, h = derivatives(p, end, *(array[0] for array in p.tasks[:2]))
    b, _ = derivatives(p, end, *(array[0] for array in p.tasks[2:]))
    a = np.eye(b.size) + h / 4.0
    assert np.linalg.eigvalsh(a).min() > 0
    krylov = [b]
    for _ in range(iterations - 1):
        krylov.append(a @ krylov[-1])
    basis, _ = np.linalg.qr(np.transpose(krylov))
    best = basis @ np.linalg.solve(basis.T @ a @ basis, basis.T @ b)
    assert_close(maml.meta_gradient(p.theta, p.tasks).gradient, best, 1e-11)


def test_a_negative_alpha_adapts_as_well():
    """What is adapted is where alpha is not 0, also where it is below."""
    p = problem()
    alpha = np.where(np.arange(p.theta.size) % 3, 0.1, -0.1)
    alpha[::4] = 0.0
    maml = imaml(p, alpha=alpha, steps=2, iterations=60, penalty=4.0)
    ends = maml.adapt(p.theta, *p.tasks[:2])[:, -1]
    expected = dense_gradient(p, ends, alpha, 4.0)
    assert_close(maml.meta_gradient(p.theta, p.tasks).gradient, expected, 1e-10)


@every_backend
def test_with_alpha_0_nothing_is_adapted(backend):
    """One number 0 is as a vector of zeros: the query gradient at theta."""
    p = problem()
    queries = zip(*p.tasks[2:], strict=True)
    expected = sum(derivatives(p, p.theta, x, y)[0] for x, y in queries)
    for alpha in (0.0, np.zeros(p.theta.size)):
        maml = imaml(p, backend, alpha=alpha, steps=2, iterations=3)
        assert_close(maml.meta_gradient(p.theta, p.tasks).gradient, expected, 1e-12)


def test_order_1_is_the_query_gradient_at_the_end_of_the_inner_loop():
    p = problem()
    maml = imaml(p, steps=3, order=1)
    expected = 0.0
    ends = maml.adapt(p.theta, *p.tasks[:2])[:, -1]
    for end, x, y in zip(ends, *p.tasks[2:], strict=True):
        expected = expected + derivatives(p, end, x, y)[0]
    gradient = maml.meta_gradient(p.theta, p.tasks).gradient
    assert_close(gradient, expected, 1e-12)


@every_backend
def test_where_the_query_loss_is_least_the_meta_gradient_is_zero(backend):
    """The residual is 0 from the start: 0 / 0 must not come out."""
    loss, theta, tasks, _ = quadratic()
    x, x_query = tasks.x_support, tasks.x_query
    fitted = [inputs @ theta[:, None] for inputs in (x, x_query)]
    tasks = tm.Tasks(x, fitted[0], x_query, fitted[1])
    for dtype in ("float32", "float64"):
        maml = ImplicitMAML(loss, 0.1, 2, backend=backend)
        arrays = tm.Tasks(*(np.zeros_like(a, dtype) for a in tasks))
        gradient = maml.meta_gradient(np.zeros(4, dtype), arrays).gradient
        assert np.array_equal(gradient, np.zeros(4))
    gradient = ImplicitMAML(loss, 0.1, 2, backend=backend).meta_gradient(theta, tasks)
    assert np.abs(gradient.gradient).max() < 1e-12


@every_backend
def test_float32_loses_no_more_than_its_rounding(backend):
    p = problem("cross_entropy")
    options = {"steps": 5, "iterations": 3}
    exact = imaml(p, **options).meta_gradient(p.theta, p.tasks).gradient
    p = p.cast("float32")
    short = imaml(p, backend, **options).meta_gradient(p.theta, p.tasks).gradient
    assert_close(short, exact, AGREE["float32"])


# --- what a user sets -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"), [("penalty", 3.0), ("iterations", 1), ("damping", 2.0)]
)
def test_a_setting_of_a_later_time_is_used_by_the_next_call(name, value):
    p = problem()
    maml = imaml(p, steps=3)
    before = maml.meta_gradient(p.theta, p.tasks).gradient
    setattr(maml, name, value)
    after = maml.meta_gradient(p.theta, p.tasks).gradient
    anew = imaml(p, steps=3, **{name: value}).meta_gradient(p.theta, p.tasks)
    assert np.array_equal(after, anew.gradient)
    assert np.linalg.norm(after - before) > 0.01 * np.linalg.norm(before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalty": 0.0}, r"penalty: expected a number in \[1e-30, inf\), got 0.0"),
        ({"penalty": np.inf}, r"penalty: expected a number in \[1e-30, inf\), got inf"),
        ({"damping": -1.0}, r"damping: expected a number in \[0, inf\), got -1.0"),
        ({"iterations": 0}, "iterations: expected at least 1, got 0"),
        ({"step_weights": [1.0]}, r"step_weights: expected None, got \[1.0\]"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        imaml(problem(), **options)


def test_parts_are_refused():
    p = problem()
    with pytest.raises(ValueError, match="parts: expected False"):
        imaml(p).meta_gradient(p.theta, p.tasks, parts=True)


def test_the_memory_does_not_grow_with_the_inner_steps():
    """No step is kept, because none is differentiated."""
    p = problem()

    def workspace(maml):
        text = tm.summary(maml.tape(p.theta, p.tasks))
        return re.findall(r"([\d,]+) bytes of workspace", text)

    few, many = (workspace(imaml(p, steps=steps)) for steps in (2, 20))
    assert few == many != []
    assert workspace(p.maml(steps=2)) != workspace(p.maml(steps=20))


def test_it_trains_a_classifier_of_one_shot_tasks():
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

    maml = ImplicitMAML(loss, 0.3, 16, penalty=0.5)
    rng = np.random.default_rng(0)
    theta, new = network.init(rng), sample(np.random.default_rng(1))
    settings = {"iterations": 300, "optimiser": tm.Adam(0.01), "rng": rng}
    trained = tm.train(maml, theta, sample, **settings, progress=False).theta
    start, end = (maml.evaluate(t, new)[:, -1].mean() for t in (theta, trained))
    assert end < 0.5 * start


def test_defaults_are_those_of_the_authors_code():
    maml = ImplicitMAML(problem().loss, backend="numpy")
    assert (maml.penalty, maml.iterations, maml.damping) == (2.0, 5, 0.0)
