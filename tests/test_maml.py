"""The meta-gradient: independent routes to it, closed forms, and what it is made of."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinymaml as tm
from tests.support.maml_problems import (
    ACTIVATIONS,
    LOSSES,
    alpha_vector,
    assert_is_gradient_of,
    by_dense_hessians,
    by_recursion,
    by_reverse_over_reverse,
    derivatives,
    problem,
)
from tests.support.running import BACKENDS, assert_close, relative_error

every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_loss = pytest.mark.parametrize("loss", LOSSES)
every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
some_steps = pytest.mark.parametrize("steps", [1, 2, 5])


def check_routes_meet(p, steps, backend="numpy", alpha=0.3, **options):
    """All routes to the meta-gradient; MAML's own first, with these options."""
    gradient = by_recursion(p, steps, alpha, backend, **options)
    reverse = by_reverse_over_reverse(p, steps, alpha, backend)
    assert_close(gradient, reverse, 1e-12, "reverse over reverse")
    assert_close(gradient, by_dense_hessians(p, steps, alpha)[0], 1e-12, "dense")
    assert_is_gradient_of(
        gradient, lambda theta: p.objective(theta, alpha, steps)[-1], p.theta
    )


@every_backend
@every_loss
@every_activation
@some_steps
def test_maml_eq1_meta_gradient_by_all_routes(backend, loss, activation, steps):
    check_routes_meet(problem(loss, activation), steps, backend)


@every_loss
@every_activation
@some_steps
def test_without_the_hessian_the_routes_do_not_meet(loss, activation, steps):
    p = problem(loss, activation)
    exact, first = (by_recursion(p, steps, order=order) for order in (2, 1))
    assert relative_error(first, exact) > 0.01
    with pytest.raises(AssertionError):
        check_routes_meet(p, steps, order=1)
    with pytest.raises(AssertionError):
        assert_is_gradient_of(
            first, lambda theta: p.objective(theta, 0.3, steps)[-1], p.theta
        )


@given(
    loss=st.sampled_from(LOSSES),
    activation=st.sampled_from(ACTIVATIONS),
    sizes=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    steps=st.integers(0, 3),
    tasks=st.integers(1, 4),
    vector=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_maml_eq1_of_random_nets_by_two_routes(
    loss, activation, sizes, steps, tasks, vector, seed
):
    p = problem(loss, activation, seed, tasks, sizes)
    alpha = alpha_vector(p.theta, seed) if vector else 0.2
    expected = by_reverse_over_reverse(p, steps, alpha)
    for backend in BACKENDS:
        gradient = by_recursion(p, steps, alpha, backend)
        assert_close(gradient, expected, 1e-11, backend, floor=1e-3)


# --- closed form ----------------------------------------------------------------------


def quadratic_loss(theta, a, b):
    """theta A theta / 2 - b theta, with A and b in place of examples."""
    column = theta.reshape(-1, 1)
    return (column * (a @ column)).sum() * 0.5 - (column * b).sum()


def quadratic_tasks(tasks=3, size=4):
    rng = np.random.default_rng(0)
    a_support, a_query = rng.standard_normal((2, tasks, size, size))
    b_support, b_query = rng.standard_normal((2, tasks, size, 1))
    return tm.Tasks(a_support + a_support.mT, b_support, a_query + a_query.mT, b_query)


@every_backend
@pytest.mark.parametrize("steps", [0, 1, 2, 5])
@pytest.mark.parametrize("vector", [False, True])
def test_maml_eq1_of_a_quadratic_is_the_product_of_i_minus_alpha_a(
    backend, steps, vector
):
    tasks, theta = quadratic_tasks(), np.array([1.0, -2.0, 0.5, 3.0])
    alpha = np.array([0.1, 0.0, 0.2, 0.05]) if vector else 0.1
    maml = tm.MAML(quadratic_loss, alpha, steps, reduction="sum", backend=backend)
    result = maml.meta_gradient(theta, tasks, parts=True)
    gradient, alpha_gradient, losses = np.zeros(4), np.zeros(4), []
    for a, b, a_query, b_query in zip(*tasks, strict=True):
        shrink = np.eye(4) - a @ np.diag(np.broadcast_to(alpha, 4))  # I - A diag(alpha)
        thetas = [theta]
        for _ in range(steps):
            thetas.append(thetas[-1] - alpha * (a @ thetas[-1] - b[:, 0]))
        v = a_query @ thetas[-1] - b_query[:, 0]
        losses.append(
            thetas[-1] @ a_query @ thetas[-1] / 2 - b_query[:, 0] @ thetas[-1]
        )
        for k in reversed(range(steps)):
            alpha_gradient -= (a @ thetas[k] - b[:, 0]) * v
            v = shrink @ v
        gradient += v
    assert_close(result.gradient, gradient, 1e-12)
    assert_close(result.losses, losses, 1e-12)
    assert_close(result.parts.alpha_gradient, alpha_gradient, 1e-12)


# --- special cases of alpha and of the steps ------------------------------------------


@every_backend
@pytest.mark.parametrize("options", [{"alpha": 0.0, "steps": 3}, {"steps": 0}])
def test_without_inner_steps_the_meta_gradient_is_the_plain_one(backend, options):
    p = problem()
    plain = [
        derivatives(p, p.theta, *query)[0]
        for query in zip(p.tasks.x_query, p.tasks.y_query, strict=True)
    ]
    result = p.maml(backend, **options).meta_gradient(p.theta, p.tasks)
    assert_close(result.gradient, np.sum(plain, axis=0), 1e-14)


@every_backend
@every_loss
def test_parameters_with_alpha_zero_are_meta_learned_but_not_adapted(backend, loss):
    p = problem(loss)
    alpha = alpha_vector(p.theta)
    fixed = alpha == 0
    thetas = p.maml(backend, alpha).adapt(p.theta, *p.tasks[:2], steps=2)
    assert np.array_equal(
        thetas[:, :, fixed], np.broadcast_to(p.theta[fixed], thetas[:, :, fixed].shape)
    )
    assert (thetas[:, 1:, ~fixed] != p.theta[~fixed]).all()
    check_routes_meet(p, 2, backend, alpha)
    gradient = by_recursion(p, 2, alpha, backend)[fixed]
    assert np.linalg.norm(gradient) > 0.1
    # their part of the Hessian term is not zero either
    assert relative_error(by_recursion(p, 2, alpha, order=1)[fixed], gradient) > 0.01


@every_backend
@some_steps
def test_alpha_gradient_matches_finite_differences(backend, steps):
    p = problem("cross_entropy")
    alpha = alpha_vector(p.theta)
    result = p.maml(backend, alpha, steps=steps).meta_gradient(p.theta, p.tasks, True)
    assert_is_gradient_of(
        result.parts.alpha_gradient,
        lambda moved: p.objective(p.theta, moved, steps)[-1],
        alpha,
    )


def test_alpha_gradient_of_a_scalar_alpha_is_per_parameter():
    p = problem()
    scalar, vector = (
        p.maml(alpha=alpha, steps=2).meta_gradient(p.theta, p.tasks, parts=True)
        for alpha in (0.3, np.full(p.theta.size, 0.3))
    )
    assert_close(scalar.parts.alpha_gradient, vector.parts.alpha_gradient, 1e-14)


# --- losses on every step -------------------------------------------------------------

WEIGHTS = [0.5, 0.0, -2.0, 1.5]


@every_backend
def test_maml_meta_objective_is_the_weighted_sum_over_steps(backend):
    p = problem("cross_entropy")
    maml = p.maml(backend, steps=4, step_weights=WEIGHTS)
    result = maml.meta_gradient(p.theta, p.tasks)
    separate = [by_recursion(p, k) for k in range(1, 5)]
    assert_close(result.gradient, np.dot(WEIGHTS, separate), 1e-12)
    losses = maml.evaluate(p.theta, p.tasks)[:, 1:]
    assert_close(result.losses, losses @ WEIGHTS, 1e-13)


def test_maml_meta_objective_with_step_weights_matches_finite_differences():
    p = problem()
    maml = p.maml(steps=4, step_weights=WEIGHTS)
    result = maml.meta_gradient(p.theta, p.tasks, parts=True)

    def objective(theta, alpha):
        return p.objective(theta, alpha, 4)[1:] @ WEIGHTS

    alpha = np.full(p.theta.size, 0.3)
    assert_is_gradient_of(result.gradient, lambda t: objective(t, 0.3), p.theta)
    assert_is_gradient_of(
        result.parts.alpha_gradient, lambda a: objective(p.theta, a), alpha
    )


@every_backend
def test_maml_meta_objective_is_the_query_loss_after_the_last_step(backend):
    p = problem()
    plain = p.maml(backend, steps=3).meta_gradient(p.theta, p.tasks)
    weighted = p.maml(backend, steps=3, step_weights=[0, 0, 1])
    same = weighted.meta_gradient(p.theta, p.tasks)
    assert np.array_equal(same.gradient, plain.gradient)
    assert np.array_equal(same.losses, plain.losses)


# --- what it is made of ---------------------------------------------------------------


@every_backend
@every_loss
@some_steps
@pytest.mark.parametrize("recompute", [False, True])
def test_maml_eq1_is_first_order_plus_the_hessian_terms(
    backend, loss, steps, recompute
):
    p = problem(loss)
    maml = p.maml(backend, steps=steps, recompute=recompute, reduction="mean")
    result = maml.meta_gradient(p.theta, p.tasks, parts=True)
    parts, tasks = result.parts, len(result.losses)
    exact, first, corrections = by_dense_hessians(p, steps)
    assert_close(parts.query_gradient, first / tasks, 1e-12)
    assert parts.corrections.shape == corrections.shape
    for k in range(steps):
        assert_close(parts.corrections[k], corrections[k] / tasks, 1e-12, f"step {k}")
    assert_close(
        result.gradient, parts.query_gradient - parts.corrections.sum(0), 1e-13
    )
    assert_close(result.gradient, exact / tasks, 1e-12)
    first_order = by_recursion(p, steps, backend=backend, order=1, reduction="mean")
    assert_close(first_order, parts.query_gradient, 1e-13)
    norms = np.linalg.norm(first), np.linalg.norm(exact)
    assert parts.cosine == pytest.approx(first @ exact / np.prod(norms), rel=1e-12)
    assert parts.norm_ratio == pytest.approx(norms[0] / norms[1], rel=1e-12)


def test_parts_do_not_change_the_meta_gradient():
    p = problem()
    maml = p.maml("numba", steps=2)
    with_parts = maml.meta_gradient(p.theta, p.tasks, parts=True)
    without = maml.meta_gradient(p.theta, p.tasks)
    assert without.parts is None
    assert_close(with_parts.gradient, without.gradient, 1e-14)
    assert with_parts.loss == pytest.approx(without.loss, rel=1e-14)


def test_cosine_and_ratio_of_a_zero_gradient_are_not_numbers():
    maml = tm.MAML(lambda theta, x, y: theta.sum() * 0.0, backend="numpy")
    parts = maml.meta_gradient(np.ones(4), quadratic_tasks(), parts=True).parts
    assert np.isnan(parts.cosine) and np.isnan(parts.norm_ratio)
