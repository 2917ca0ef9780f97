"""The meta-gradient: independent routes to it, closed forms, the class around it."""

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
from tests.support.running import BACKENDS, assert_close, relative_error, run_tape
from tinymaml.maml import inner_loop, meta_gradient

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


# --- the heart itself, without the class around it ------------------------------------


def by_the_heart(p, steps, order, backend):
    """The losses of all tasks and their meta-gradient, straight from `maml.py`."""
    tape = tm.Tape()
    theta, alpha = tape.input("theta", p.theta.shape), tape.input("alpha", ())
    x, y, x_query, y_query = (
        tape.input(name, array.shape[1:], per_task=True)
        for name, array in p.tasks._asdict().items()
    )
    thetas = inner_loop(p.loss, theta, (x, y), alpha, steps)
    loss, cotangents = meta_gradient(
        p.loss, thetas, (x, y), (x_query, y_query), alpha, order
    )
    assert len(thetas) == len(cotangents) == steps + 1
    tape.output("losses", loss)
    tape.output("gradient", cotangents[0], "sum")
    tape.output("first_order", cotangents[-1], "sum")
    inputs = {"theta": p.theta, "alpha": 0.3, **p.tasks._asdict()}
    return run_tape(tape, inputs, backend)


@every_backend
@pytest.mark.parametrize("steps", [0, 1, 2, 5])
@pytest.mark.parametrize("order", [1, 2])
def test_maml_eq1_of_the_heart_is_that_of_the_class_to_the_last_bit(
    backend, steps, order
):
    p = problem("cross_entropy")
    heart = by_the_heart(p, steps, order, backend)
    maml = p.maml(backend, steps=steps, order=order)
    result = maml.meta_gradient(p.theta, p.tasks)
    assert heart["gradient"].tobytes() == result.gradient.tobytes()
    assert heart["losses"].tobytes() == result.losses.tobytes()


@pytest.mark.parametrize("steps", [1, 3])
def test_maml_meta_objective_without_its_hessians_is_the_last_cotangent(steps):
    p = problem()
    exact, first = (by_the_heart(p, steps, order, "numpy") for order in (2, 1))
    assert first["gradient"].tobytes() == exact["first_order"].tobytes()
    assert relative_error(first["gradient"], exact["gradient"]) > 0.01
