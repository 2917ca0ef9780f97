"""Query losses after every inner step: their weighted sum and its meta-gradient."""

import numpy as np
import pytest

from tests.support.maml_problems import assert_is_gradient_of, by_recursion, problem
from tests.support.running import BACKENDS, assert_close

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


@every_backend
def test_weight_on_the_last_step_alone_is_plain_maml(backend):
    p = problem()
    plain = p.maml(backend, steps=3).meta_gradient(p.theta, p.tasks)
    weighted = p.maml(backend, steps=3, step_weights=[0, 0, 1])
    same = weighted.meta_gradient(p.theta, p.tasks)
    assert np.array_equal(same.gradient, plain.gradient)
    assert np.array_equal(same.losses, plain.losses)
