"""tm.function: a loss of arrays, against closed forms, and in SciPy's hands."""

import copy
import pickle

import numpy as np
import pytest
from scipy import optimize

import tinymaml as tm
from tests.support.running import BACKENDS, assert_close, difference

every_backend = pytest.mark.parametrize("backend", BACKENDS)
A = np.array([[3.0, 1.0, 0.5], [1.0, 2.0, -0.5], [0.5, -0.5, 4.0]])
B = np.array([1.0, -2.0, 0.5])
THETA, V = np.array([0.3, -1.1, 0.7]), np.array([1.5, 0.2, -0.4])


def quadratic(theta, a, b):
    return theta @ a @ theta * 0.5 - b @ theta


def rosenbrock(theta):
    x, y = theta[:-1], theta[1:]
    return (100.0 * (y - x**2) ** 2 + (1 - x) ** 2).sum()


@every_backend
def test_value_and_derivatives_of_a_quadratic_are_its_closed_forms(backend):
    f = tm.function(quadratic, backend)
    assert_close(f(THETA, A, B), 0.5 * THETA @ A @ THETA - B @ THETA, 1e-14)
    assert_close(f.gradient(THETA, A, B), A @ THETA - B, 1e-14)
    assert_close(f.hvp(THETA, V, A, B), A @ V, 1e-14)
    assert_close(f.jvp(THETA, V, A, B), (A @ THETA - B) @ V, 1e-14)
    value, gradient = f.value_and_gradient(THETA, A, B)
    assert value == f(THETA, A, B)
    assert gradient.tolist() == f.gradient(THETA, A, B).tolist()


@every_backend
def test_derivatives_are_differences_of_the_value_and_of_the_gradient(backend):
    f = tm.function(rosenbrock, backend)
    assert_close(f.gradient(THETA) @ V, difference(f, THETA, V), 1e-9)
    assert_close(f.hvp(THETA, V), difference(f.gradient, THETA, V), 1e-9)


def test_derivative_of_an_array_along_v_is_its_jacobian_times_v():
    f = tm.function(lambda theta, a: a @ theta, "numpy")
    assert_close(f(THETA, A), A @ THETA, 1e-14)
    assert_close(f.jvp(THETA, V, A), A @ V, 1e-14)
    with pytest.raises(ValueError, match=r"^loss: expected one number, got shape \(3,"):
        f.gradient(THETA, A)


def test_a_loss_that_is_no_value_is_refused_by_every_method():
    f = tm.function(lambda theta: 1.0, "numpy")
    for call in (f, f.gradient, lambda x: f.hvp(x, x), lambda x: f.jvp(x, x)):
        with pytest.raises(TypeError, match="^loss: expected a Value of a tape, got"):
            call(np.ones(2))


@pytest.mark.parametrize("method", ["Newton-CG", "trust-krylov", "BFGS"])
def test_scipy_finds_the_minimum_with_these_derivatives(method):
    f = tm.function(rosenbrock, "numpy")
    second = {} if method == "BFGS" else {"hessp": f.hvp}
    start = np.array([0.5, 0.8, 1.2, 1.1])
    found = optimize.minimize(f, start, method=method, jac=f.gradient, **second)
    assert_close(found.x, np.ones(4), 1e-4)


def test_shapes_and_dtypes_may_change_from_call_to_call():
    f = tm.function(lambda theta, x: (theta[0] * x).sum(), "numpy")
    one, many = np.ones((1, 1)), np.ones((5, 2))
    assert f(np.array([2.0]), one) == 2 and f(np.array([2.0]), many) == 20
    gradient = f.gradient(np.array([2.0], np.float32), many.astype(np.float32))
    assert gradient.dtype == np.float32 and gradient.tolist() == [10]


def test_copies_and_pickles_compute_the_same():
    f = tm.function(quadratic, "numpy")
    f(THETA, A, B)
    for other in (copy.deepcopy(f), pickle.loads(pickle.dumps(f))):
        assert other.gradient(THETA, A, B).tolist() == f.gradient(THETA, A, B).tolist()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: tm.function(3), TypeError, "loss: "),
        (lambda: tm.function(quadratic, "abacus"), ValueError, "backend: "),
        (lambda f: f([1.0], A, B), TypeError, "theta: expected a float32 or float64"),
        (lambda f: f(THETA, A, [1.0]), TypeError, "data 1: expected an array"),
        (lambda f: f.hvp(THETA, V[:2], A, B), ValueError, r"v: expected shape \(3,\)"),
        (lambda f: f.hvp(THETA, 1.0, A, B), TypeError, "v: expected an array"),
        (
            lambda f: f(THETA, A, B.astype(np.float32)),
            TypeError,
            "data 1: expected .*64",
        ),
    ],
)
def test_what_does_not_fit_is_named(call, error, message):
    f = tm.function(quadratic, "numpy")
    with pytest.raises(error, match=message):
        call(f) if call.__code__.co_argcount else call()


def test_another_backend_takes_effect_in_the_next_call(monkeypatch):
    f = tm.function(quadratic, "numpy")
    expected = f(THETA, A, B)
    other, compiled = tm.get_backend("numpy"), []
    compile = other.compile
    other.compile = lambda *given: compiled.append(given) or compile(*given)
    f.backend = other
    assert f(THETA, A, B) == expected and len(compiled) == 1


def test_function_shows_what_it_is():
    assert repr(tm.function(quadratic, "numpy")) == (
        "Function(quadratic, backend='numpy')"
    )
