"""gradcheck accepts right derivatives, reports their errors, and refuses bad arguments.

That it rejects wrong derivatives is tested in tests/autodiff/test_mutants_of_*.py.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinymaml as tm
from tests.support.running import BACKENDS
from tinymaml.autodiff.tape import PRIMITIVES

every_backend = pytest.mark.parametrize("backend", BACKENDS)
X = np.array([[0.5, -1.0], [2.0, 0.25], [-0.75, 1.5]])


def net_loss(theta, x):
    hidden = tm.tanh(x @ theta[0:6].reshape(2, 3) + theta[6:9])
    return tm.logsumexp(hidden @ theta[9:15].reshape(3, 2)).mean()


LOSSES = {
    "net": net_loss,
    "cubic": lambda theta, x: (theta * theta * theta).sum(),
    "entropy": lambda theta, x: (tm.softmax(theta) * tm.log(theta * theta + 1)).sum(),
    "norm": lambda theta, x: 1 / tm.rsqrt((theta * theta).sum()),
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
    errors = tm.gradcheck(lambda theta: theta**3, np.array(3.0))
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


def test_gradcheck_of_order_1_rejects_a_gradient_that_is_no_number_nearby():
    # z is 0, and so is z times the slope of the root, but 1e-4 away that slope is
    # infinite: there the gradient is NaN, while the losses are right.
    def loss(theta, z):
        room = tm.relu(5e-5 - theta) * tm.relu(5e-5 + theta)
        return (theta + z * tm.sqrt(room)).sum()

    with pytest.raises(tm.GradientError, match="the gradient differs.*by nan"):
        tm.gradcheck(loss, np.zeros(1), np.zeros(1), order=1)


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


# --- where terms cancel ---------------------------------------------------------------

RNG = np.random.default_rng(0)
A = RNG.normal(size=(20, 3))
B = A @ np.array([[1.0], [2.0], [3.0]]) + 0.1 * RNG.normal(size=(20, 1))
BEST = np.linalg.lstsq(A, B, rcond=None)[0].ravel()


def least_squares(theta, x, y):
    return tm.squared_error(x @ theta.reshape(3, 1), y)


def classify(theta, y):
    return tm.cross_entropy(theta.reshape(1, 3), y)


ONE = np.eye(3)[:1]
CANCELLING = {
    "at the minimum": (least_squares, BEST, A, B),
    "at a minimum of zero": (least_squares, np.ones(3), A, A.sum(1, keepdims=True)),
    "at the minimum of a tiny loss": (
        lambda theta, x, y: least_squares(theta, x, y) * 1e-30,
        *(BEST, A, B),
    ),
    "beside a constant": (
        lambda theta, x, y: least_squares(theta, x, y) + 1e6,
        *(BEST + 0.1, A, B),
    ),
    "far from the origin": (least_squares, BEST, A + 1e3, B),
    **{
        f"confident by {gap}": (classify, np.array([gap, 0.0, 0.0]), ONE)
        for gap in (8.0, 12.0, 15.0, 20.0, 24.0, 30.0, 33.0, 36.0, 40.0)
    },
    "confident by negative logits": (classify, np.array([0.0, -40.0, -40.0]), ONE),
    "very confident": (classify, np.array([1000.0, 0.0, 0.0]), ONE),
    "confident and wrong": (classify, np.array([0.0, 40.0, 0.0]), ONE),
    "at the origin of a quartic": (
        lambda theta: (theta * theta * theta * theta).sum(),
        np.zeros(3),
    ),
}


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CANCELLING)
def test_gradcheck_accepts_right_derivatives_where_terms_cancel(case, dtype, order):
    loss, *arrays = CANCELLING[case]
    tm.gradcheck(loss, *(array.astype(dtype) for array in arrays), order=order)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("factor", [1.001, -1.0, 0.0])
def test_gradcheck_rejects_wrong_derivatives_whatever_the_unit(
    monkeypatch, scale, factor
):
    def wrong(i, t, out, a):
        return t * (1.0 - out * out) * factor

    monkeypatch.setattr(PRIMITIVES["tanh"], "vjp", staticmethod(wrong))
    with pytest.raises(tm.GradientError, match="gradient differs"):
        tm.gradcheck(lambda theta: tm.tanh(theta).sum() * scale, point())
    if factor != 1.001:
        with pytest.raises(tm.GradientError, match="gradient differs"):
            tm.gradcheck(lambda theta: tm.tanh(theta).sum() + 1e6, point())


def test_gradcheck_rejects_a_wrong_hessian_at_a_minimum(monkeypatch):
    right = PRIMITIVES["matmul"].jvp

    def wrong(i, t, *rest, **attributes):
        return right(i, t, *rest, **attributes) * 1.0001

    monkeypatch.setattr(PRIMITIVES["matmul"], "jvp", staticmethod(wrong))
    with pytest.raises(tm.GradientError, match="Hessian-vector product differs"):
        tm.gradcheck(least_squares, BEST, A, B)


@pytest.mark.parametrize("factor", [-1.0, 0.0, 1.01])
def test_gradcheck_rejects_a_wrong_gradient_at_a_minimum(monkeypatch, factor):
    """There the wrong gradient is as zero as the right one."""

    def wrong(i, g, *rest, **attributes):
        return right(i, g * factor, *rest, **attributes)

    right = PRIMITIVES["mul"].vjp
    monkeypatch.setattr(PRIMITIVES["mul"], "vjp", staticmethod(wrong))
    with pytest.raises(tm.GradientError, match="gradient differs"):
        tm.gradcheck(lambda theta: (theta * theta).sum(), np.zeros(3), order=1)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("gap", [12.0, 15.0, 20.0, 30.0])
def test_gradcheck_accepts_a_network_that_is_sure(seed, gap):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((5, 4)), np.eye(3)[[0, 1, 2, 0, 1]]
    theta = rng.standard_normal(12) * 0.1
    tm.gradcheck(
        lambda theta, x, y: tm.cross_entropy(x @ theta.reshape(4, 3) + y * gap, y),
        *(theta, x, y),
        seed=seed,
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"loss": 3}, TypeError, "loss: expected a function, got 3"),
        ({"theta": [1.0]}, TypeError, "theta: expected an array, got list"),
        ({"theta": np.ma.ones(3)}, TypeError, "theta: .* got MaskedArray"),
        ({"tolerance": 0}, ValueError, "tolerance: expected more than 0, got 0"),
        ({"tolerance": float("nan")}, ValueError, "tolerance: expected more than 0"),
        ({"tolerance": "1"}, TypeError, "tolerance: expected a number, got '1'"),
        ({"seed": -1}, ValueError, "seed: expected at least 0, got -1"),
        ({"seed": None}, TypeError, "seed: expected a whole number, got None"),
        ({"order": np.ones(2)}, ValueError, "order: expected one of 1, 2, got array"),
        ({"backend": 3}, ValueError, "backend: expected one of"),
    ],
)
def test_gradcheck_names_the_argument_that_does_not_fit(options, error, message):
    good = {"loss": lambda theta: (theta * theta).sum(), "theta": np.ones(3)}
    with pytest.raises(error, match=f"^{message}"):
        tm.gradcheck(**(good | options))
