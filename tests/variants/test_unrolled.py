"""Backpropagation through a recorded inner loop, against the recursion of maml.py."""

import numpy as np
import pytest

from tests.support.maml_problems import (
    alpha_vector,
    assert_exact,
    assert_float32_agrees,
    problem,
    variant_of,
)
from tests.support.running import BACKENDS, assert_close
from tinymaml.variants import Unrolled

every_backend = pytest.mark.parametrize("backend", BACKENDS)


@every_backend
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("weights", [None, (0.5, 0.0, 1.5)])
def test_unrolled_has_the_numbers_of_the_recursion(backend, order, weights):
    p = problem("cross_entropy")
    alpha = alpha_vector(p.theta)
    options = {"steps": 3, "order": order, "step_weights": weights, "alpha": alpha}
    expected = p.maml(backend, **options).meta_gradient(p.theta, p.tasks)
    unrolled = variant_of(Unrolled, p, backend=backend, **options)
    result = unrolled.meta_gradient(p.theta, p.tasks)
    assert_close(result.gradient, expected.gradient, 1e-12)
    assert_close(result.losses, expected.losses, 1e-13)


@pytest.mark.parametrize("weights", [None, (0.5, -1.0, 1.5)])
def test_unrolled_meta_gradient_matches_finite_differences(weights):
    p = problem()
    unrolled = variant_of(Unrolled, p, steps=3, step_weights=weights)
    assert_exact(unrolled, p.theta, p.tasks, weights)


def test_without_inner_steps_it_is_the_gradient_of_the_query_loss():
    p = problem()
    weighted = variant_of(Unrolled, p, steps=0, step_weights=())
    expected = p.maml(steps=0).meta_gradient(p.theta, p.tasks).gradient
    result = weighted.meta_gradient(p.theta, p.tasks).gradient
    assert np.array_equal(result, expected)


@every_backend
def test_float32_is_close(backend):
    p = problem()
    assert_float32_agrees(
        variant_of(Unrolled, p, backend=backend, steps=2), p.theta, p.tasks
    )


def test_recomputation_is_refused_at_any_time():
    p = problem()
    expected = "^recompute: expected False, .* got True"
    with pytest.raises(ValueError, match=expected):
        variant_of(Unrolled, p, recompute=True)
    unrolled = variant_of(Unrolled, p)
    with pytest.raises(ValueError, match=expected):
        unrolled.recompute = True
    assert unrolled.recompute is False


@pytest.mark.parametrize("call", ["meta_gradient", "tape"])
def test_parts_are_refused_where_the_meta_gradient_has_others(call):
    p = problem()
    unrolled = variant_of(Unrolled, p)
    with pytest.raises(ValueError, match="^parts: expected False, .* got True for Unr"):
        getattr(unrolled, call)(p.theta, p.tasks, parts=True)
