"""Query losses after every inner step: their weighted sum and its meta-gradient."""

import numpy as np
import pytest

import tinymaml as tm
from tests.support.maml_problems import (
    assert_is_gradient_of,
    by_recursion,
    problem,
    variant_of,
)
from tests.support.running import BACKENDS, assert_close
from tinymaml import variants
from tinymaml.backends.numba.planner import plan

every_backend = pytest.mark.parametrize("backend", BACKENDS)
WEIGHTS = [0.5, 0.0, -2.0, 1.5]


@every_backend
def test_multi_step_gradient_is_the_weighted_sum_over_steps(backend):
    p = problem("cross_entropy")
    maml = p.maml(backend, steps=4, step_weights=WEIGHTS)
    result = maml.meta_gradient(p.theta, p.tasks)
    separate = [by_recursion(p, k) for k in range(1, 5)]
    assert_close(result.gradient, np.dot(WEIGHTS, separate), 1e-12)
    losses = maml.evaluate(p.theta, p.tasks)[:, 1:]
    assert_close(result.losses, losses @ WEIGHTS, 1e-13)


def test_multi_step_gradient_matches_finite_differences():
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
    corrections = result.parts.corrections.sum(axis=0)
    assert_close(result.gradient, result.parts.query_gradient - corrections, 1e-13)
    first_order = p.maml(steps=4, step_weights=WEIGHTS, order=1)
    query_gradient = first_order.meta_gradient(p.theta, p.tasks).gradient
    assert_close(result.parts.query_gradient, query_gradient, 1e-13)


@every_backend
def test_weight_on_the_last_step_alone_is_plain_maml(backend):
    p = problem()
    plain = p.maml(backend, steps=3).meta_gradient(p.theta, p.tasks)
    weighted = p.maml(backend, steps=3, step_weights=[0, 0, 1])
    same = weighted.meta_gradient(p.theta, p.tasks)
    assert np.array_equal(same.gradient, plain.gradient)
    assert np.array_equal(same.losses, plain.losses)


def learner_with(kind, p, query_loss):
    """A learner whose query loss is judged after two steps, or after the last."""
    options = {"steps": 2, "query_loss": query_loss}
    if kind is variants.MAMLPlusPlus:
        schedules = (lambda t: [0.25, 0.75]), (lambda t: 2)
        return variant_of(kind, p, tm.MLP([2, 5, 3], "tanh"), *schedules, **options)
    if kind is not variants.ImplicitMAML:
        options["step_weights"] = [0.25, 0.75]
    return variant_of(kind, p, **options)


@pytest.mark.parametrize(
    "kind",
    [tm.MAML, variants.Unrolled, variants.MAMLPlusPlus, variants.ImplicitMAML],
)
def test_a_query_loss_of_its_own_counts_after_every_step(kind):
    p = problem()
    plain = learner_with(kind, p, None)
    threefold = learner_with(
        kind, p, lambda theta, x, y, support: 3 * p.loss(theta, x, y)
    )
    theta = plain.start(p.theta) if hasattr(plain, "start") else p.theta
    one, three = (m.meta_gradient(theta, p.tasks) for m in (plain, threefold))
    assert_close(three.losses, 3 * one.losses, 1e-13)
    assert_close(three.gradient, 3 * one.gradient, 1e-13)


def test_recomputation_saves_memory_with_a_loss_after_every_step_too():
    p = problem(sizes=(2, 30, 30, 3))
    sizes = []
    for recompute in (False, True):
        maml = p.maml(steps=6, step_weights=[1.0] * 6, recompute=recompute)
        sizes.append(plan(maml.tape(p.theta, p.tasks)).size)
    assert sizes[1] < 0.8 * sizes[0]


def test_without_a_step_there_is_no_weight():
    p = problem()
    plain, weighted = (
        p.maml(steps=0, **options).meta_gradient(p.theta, p.tasks)
        for options in ({}, {"step_weights": ()})
    )
    assert np.array_equal(weighted.gradient, plain.gradient)
