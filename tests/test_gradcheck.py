"""gradcheck accepts right derivatives, reports their errors, and refuses bad arguments.

That it rejects wrong derivatives is tested in tests/autodiff/test_mutants_of_*.py.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinymaml as tm
from tests.support.running import BACKENDS
from tinymaml.autodiff.functions import reciprocal

every_backend = pytest.mark.parametrize("backend", BACKENDS)
X = np.array([[0.5, -1.0], [2.0, 0.25], [-0.75, 1.5]])


def net_loss(theta, x):
    hidden = tm.tanh(x @ theta[0:6].reshape(2, 3) + theta[6:9])
    return tm.logsumexp(hidden @ theta[9:15].reshape(3, 2)).mean()


LOSSES = {
    "net": net_loss,
    "cubic": lambda theta, x: (theta * theta * theta).sum(),
    "entropy": lambda theta, x: (tm.softmax(theta) * tm.log(theta * theta + 1)).sum(),
    "norm": lambda theta, x: reciprocal(tm.rsqrt((theta * theta).sum())),
    "exponential": lambda theta, x: (
        tm.exp(theta * 0.5).mean() / 3 - 2 / (theta * theta).sum()
    ),
    "kinked": lambda theta, x: (tm.relu(theta) * theta * theta).sum(),
}


def point(seed=0, size=15, dtype="float64"):
    """A random theta away from zero, where relu has its kink."""
    rng = np.random.default_rng(seed)
    theta = rng.uniform(0.2, 1.2, size) * rng.choice([-1, 1], size)
    return theta.astype(dtype)


@every_backend
@pytest.mark.parametrize("loss", LOSSES)
@given(seed=st.integers(0, 2**16))
def test_gradcheck_accepts_right_derivatives(backend, loss, seed):
    errors = tm.gradcheck(LOSSES[loss], point(seed), X, seed=seed, backend=backend)
    assert 0 <= errors.order1 <= 1e-8
    assert 0 <= errors.order2 <= 1e-8


@every_backend
def test_gradcheck_works_in_float32(backend):
    theta, x = point(dtype="float32"), X.astype("float32")
    errors = tm.gradcheck(net_loss, theta, x, backend=backend)
    assert errors.order1 < 2e-3 and errors.order2 < 2e-3


def test_gradcheck_takes_theta_of_any_shape():
    errors = tm.gradcheck(
        lambda w, x: tm.tanh(x @ w).mean(), point(size=6).reshape(2, 3), X
    )
    assert errors.order2 < 1e-9


def test_gradcheck_of_order_1_does_not_check_the_hessian():
    errors = tm.gradcheck(net_loss, point(), X, order=1)
    assert errors.order1 < 1e-9
    assert np.isnan(errors.order2)


def test_gradcheck_of_a_constant_has_no_error():
    errors = tm.gradcheck(lambda theta: theta.sum() * 0.0, point())
    assert errors == (0.0, 0.0)


def test_gradcheck_rejects_a_point_on_a_kink():
    theta = np.array([1.0, 0.0, -1.0])
    with pytest.raises(tm.GradientError, match="the gradient differs"):
        tm.gradcheck(lambda theta: tm.relu(theta).sum(), theta)


@pytest.mark.parametrize("order", [1, 2])
def test_gradcheck_rejects_derivatives_that_are_no_numbers(order):
    with pytest.raises(tm.GradientError, match="the gradient differs.*by nan"):
        tm.gradcheck(lambda theta: tm.log(theta).sum(), -np.ones(3), order=order)


def test_gradcheck_rejects_errors_above_the_given_tolerance():
    with pytest.raises(tm.GradientError, match=r"1e-30 is allowed in float64"):
        tm.gradcheck(net_loss, point(), X, tolerance=1e-30)


def test_gradient_error_is_an_assertion_error():
    assert issubclass(tm.GradientError, AssertionError)


@pytest.mark.parametrize("order", [0, 3, "2", None])
def test_gradcheck_refuses_other_orders(order):
    with pytest.raises(ValueError, match="order: expected one of 1, 2, got"):
        tm.gradcheck(net_loss, point(), X, order=order)


@pytest.mark.parametrize("dtype", ["int64", "float16", "complex128"])
def test_gradcheck_refuses_other_dtypes(dtype):
    with pytest.raises(TypeError, match=f"expected float32 or float64, got {dtype}"):
        tm.gradcheck(net_loss, np.ones(15).astype(dtype), X)


def test_gradcheck_refuses_arguments_of_another_dtype():
    with pytest.raises(
        TypeError, match="x0: expected an array of float64, got float32"
    ):
        tm.gradcheck(net_loss, point(), X.astype("float32"))


def test_gradcheck_refuses_a_loss_that_is_not_one_number():
    with pytest.raises(ValueError, match=r"loss: expected one number .*\(15,\)"):
        tm.gradcheck(lambda theta: theta * theta, point())
