"""The functions that a loss is written with, each against NumPy or by hand.

Their derivatives, and values at many shapes, are in test_primitives.py.
"""

from itertools import product

import numpy as np
import pytest
from scipy import special

import tinymaml as tm
from tests.support.gpu_backends import gpu_backend
from tests.support.running import (
    BACKENDS,
    DTYPES,
    assert_close,
    complex_step,
    run_tape,
)
from tinymaml.autodiff import functions
from tinymaml.autodiff.derivatives import grad, hvp, jvp
from tinymaml.autodiff.tape import Tape
from tinymaml.backends import get_backend

every_backend = pytest.mark.parametrize("backend", BACKENDS)
X = np.array([[0.5, -1.5, 2.0], [3.0, 0.0, -0.25]])

FUNCTIONS = {  # name: (the argument, the result in NumPy)
    "relu": (X, np.maximum(X, 0)),
    "exp": (X, np.exp(X)),
    "log": (X**2 + 1, np.log(X**2 + 1)),
    "tanh": (X, np.tanh(X)),
    "rsqrt": (X**2 + 1, 1 / np.sqrt(X**2 + 1)),
    "logsumexp": (X, special.logsumexp(X, axis=-1, keepdims=True)),
    "softmax": (X, special.softmax(X, axis=-1)),
    "rematerialise": (X, X),
    "stop_gradient": (X, X),
}


def result_of(function, *arrays, backend="numpy"):
    """The array that a function of values gives for arrays."""
    tape = Tape()
    values = [tape.input(f"x{i}", array.shape) for i, array in enumerate(arrays)]
    tape.output("result", function(*values))
    inputs = {f"x{i}": array for i, array in enumerate(arrays)}
    return run_tape(tape, inputs, backend)["result"][0]


@every_backend
@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_is_that_of_numpy(name, backend):
    argument, expected = FUNCTIONS[name]
    result = result_of(getattr(functions, name), argument, backend=backend)
    assert_close(result, expected, 1e-15)


@every_backend
def test_one_over_x_is_that_of_numpy(backend):
    assert_close(result_of(lambda x: 1 / x, X + 5, backend=backend), 1 / (X + 5), 1e-15)


def test_functions_of_the_package_are_these():
    for name in ("relu", "exp", "log", "tanh", "rsqrt", "logsumexp", "softmax"):
        assert getattr(tm, name) is getattr(functions, name)


@every_backend
def test_logsumexp_and_softmax_of_large_logits_do_not_overflow(backend):
    logits = np.array([[1000.0, 1000.0]])
    total = result_of(functions.logsumexp, logits, backend=backend)
    assert_close(total, np.array([[1000 + np.log(2)]]), 1e-15)
    halves = result_of(functions.softmax, logits, backend=backend)
    assert halves.tolist() == [[0.5, 0.5]]


@every_backend
def test_concatenate_joins_vectors_end_to_end(backend):
    vectors = [np.array([1.0, 2.0]), np.array([3.0]), np.array([4.0, 5.0, 6.0])]
    joined = result_of(
        lambda *values: functions.concatenate(values), *vectors, backend=backend
    )
    assert joined.tolist() == [1, 2, 3, 4, 5, 6]


def test_concatenate_of_one_vector_is_that_vector():
    theta = Tape().input("theta", (3,))
    assert functions.concatenate([theta]) is theta
    assert len(theta.tape.nodes) == 1


@every_backend
def test_broadcast_to_repeats_as_numpy_does(backend):
    column = np.array([[1.0], [2.0]])
    repeated = result_of(lambda x: x.broadcast_to((3, 2, 4)), column, backend=backend)
    assert np.array_equal(repeated, np.broadcast_to(column, (3, 2, 4)))


def test_broadcast_to_refuses_a_shape_that_does_not_fit():
    theta = Tape().input("theta", (3,))
    with pytest.raises(ValueError, match=r"shape: \(3,\) does not broadcast to \(4,\)"):
        theta.broadcast_to((4,))
    with pytest.raises(
        ValueError, match=r"shape: \(3,\) does not broadcast to \(3, 1\)"
    ):
        theta.broadcast_to((3, 1))


def test_rematerialise_makes_a_new_node():
    theta = Tape().input("theta", (3,))
    first, second = functions.rematerialise(theta), functions.rematerialise(theta)
    assert first.index != second.index
    assert tm.tanh(first).index != tm.tanh(theta).index


@pytest.mark.parametrize("backend", [*BACKENDS, "stand-in"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_infinite_logits_have_the_logsumexp_of_scipy(backend, dtype):
    inf = np.inf
    rows = [[-inf, -inf], [inf, 0], [0, inf], [-inf, 0], [inf, inf], [inf, -inf]]
    rows += [[np.nan, 0], [0, np.nan], [np.nan, inf], [-inf, np.nan], [3e38, -3e38]]
    logits = np.array(rows, dtype)
    tape = Tape()
    tape.output("out", functions.logsumexp(tape.input("x", logits.shape)))
    run = (gpu_backend if backend == "stand-in" else get_backend)(backend)
    out = run.compile(tape, dtype)({"x": logits})["out"][0]
    with np.errstate(all="ignore"):
        expected = np.logaddexp(*logits.T)[:, None]
    assert np.array_equal(out, expected, equal_nan=True)


NO_VALUES = {
    "number": lambda: tm.exp(3),
    "text": lambda: tm.softmax("x"),
    "array": lambda: tm.relu(np.ones(3)),
    "nothing": lambda: tm.logsumexp(None),
    "gradient by a number": lambda: tm.grad(Tape().input("x", ()), 3),
    "tangent of text": lambda: tm.jvp(x := Tape().input("x", ()), x, "v"),
    "images of an array": lambda: tm.max_pool(np.ones((1, 2, 2, 1))),
    "kernel of an array": lambda: tm.conv2d(
        Tape().input("x", (1, 2, 2, 1)), np.ones((1, 1, 1, 1))
    ),
    "vectors of which one is none": lambda: tm.concatenate(
        [Tape().input("x", (3,)), np.ones(3)]
    ),
}


@pytest.mark.parametrize("case", NO_VALUES)
def test_what_is_no_value_is_refused_by_name(case):
    with pytest.raises(
        TypeError, match=r"^[\w\[\]]+: expected a Value of a tape, got \w"
    ):
        NO_VALUES[case]()


@pytest.mark.parametrize("wrong", [None, "x", [1.0], np.ones(3), np.True_])
def test_what_is_no_number_is_refused_by_name_beside_a_value(wrong):
    x = Tape().input("x", (3,))
    refused = pytest.raises(TypeError, match="^operand 1: expected a Value of a tape")
    for function in (functions.minimum, functions.maximum):
        with refused:
            function(x, wrong)
    with refused:
        functions.clip(x, 0.0, wrong)
    with pytest.raises(TypeError, match="^x: expected a Value of a tape"):
        functions.sigmoid(wrong)


def test_functions_of_numbers_alone_are_refused():
    for function in (tm.maximum, tm.minimum, lambda a, b: tm.where(1.0, a, b)):
        with pytest.raises(TypeError, match="expected a Value of a tape, got "):
            function(1.0, 2.0)
    with pytest.raises(ValueError, match=r"^axis: expected an axis of shape \(\), got"):
        tm.logsumexp(Tape().input("x", ()))


def test_concatenate_refuses_what_it_cannot_join():
    x = Tape().input("x", (2, 3))
    with pytest.raises(ValueError, match=r"^values: expected a list.* got \[\]"):
        tm.concatenate([])
    with pytest.raises(ValueError, match="^axis: expected an axis of shape"):
        tm.concatenate([x], axis=2)
    with pytest.raises(ValueError, match="^values: expected equal shapes apart from"):
        tm.concatenate([x, x.T])
    with pytest.raises(ValueError, match="^values: expected equal shapes apart from"):
        tm.concatenate([x, x[0]])
    with pytest.raises(ValueError, match="^values: expected a list.* got 3"):
        tm.concatenate(3)


# --- functions made of primitives: values, and derivatives of three orders ------------

A = np.array(
    [[[0.7, -1.3, 0.2], [2.1, 0.4, -0.6]], [[-0.9, 1.1, 0.3], [0.8, -0.2, 1.7]]]
)
B = np.array(
    [[[-1.2, 0.5, 0.9], [0.3, -0.8, 1.4]], [[1.6, -0.7, 0.1], [-0.5, 2.2, 0.6]]]
)
M = A.transpose(0, 2, 1)
MASK = (A > 0).astype(float)
COMPOSED = {  # name: (a function of values, the same in NumPy, its arrays)
    "sin": (functions.sin, np.sin, [A]),
    "cos": (functions.cos, np.cos, [A]),
    "sqrt": (functions.sqrt, np.sqrt, [A * A]),
    "sigmoid": (functions.sigmoid, special.expit, [A]),
    "softplus": (functions.softplus, lambda a: np.logaddexp(0, a), [3 * A]),
    "abs": (abs, np.abs, [A]),
    "square": (lambda a: a**2, np.square, [A]),
    "thirteenth power": (lambda a: a**13, lambda a: a**13, [A]),
    "power -3": (lambda a: a**-3, lambda a: a**-3.0, [A]),
    "power 0": (lambda a: a**0 * a, lambda a: a, [A]),
    "power 0.3": (lambda a: a**0.3, lambda a: a**0.3, [A * A]),
    "power by an array": (lambda a, b: a**b, lambda a, b: a**b, [A * A, B]),
    "power of a number": (lambda a: 2.5**a, lambda a: 2.5**a, [A]),
    "maximum": (functions.maximum, np.maximum, [A, B]),
    "maximum with a number": (
        lambda a: functions.maximum(a, 0.25),
        lambda a: np.maximum(a, 0.25),
        [A],
    ),
    "maximum with a row": (functions.maximum, np.maximum, [A, B[0, 0]]),
    "minimum": (functions.minimum, np.minimum, [A, B]),
    "clip": (
        lambda a: functions.clip(a, -0.5, 1.0),
        lambda a: np.clip(a, -0.5, 1.0),
        [A],
    ),
    "where": (
        lambda a, b: functions.where(a.tape.constant_array(MASK), a * b, b),
        lambda a, b: np.where(A > 0, a * b, b),
        [A, B],
    ),
    "where with a number": (
        lambda a: functions.where(a.tape.constant_array(MASK), a, -1.0) * a,
        lambda a: np.where(A > 0, a, -1.0) * a,
        [A],
    ),
    "softmax over axis 1": (
        lambda a: functions.softmax(a, axis=1),
        lambda a: special.softmax(a, axis=1),
        [A],
    ),
    "logsumexp over axis 0": (
        lambda a: functions.logsumexp(a, axis=0),
        lambda a: special.logsumexp(a, axis=0, keepdims=True),
        [A],
    ),
    "concatenate along axis 1": (
        lambda a, b: functions.concatenate([a * b, b], axis=1),
        lambda a, b: np.concatenate([a * b, b], axis=1),
        [A, B],
    ),
    "concatenate along the last axis": (
        lambda a, b: functions.concatenate([a, b * b, a[..., :1]], axis=-1),
        lambda a, b: np.concatenate([a, b * b, a[..., :1]], axis=-1),
        [A, B],
    ),
    "transpose": (lambda a: a.T * a.T, lambda a: a.T**2, [A]),
    "transpose of three axes": (
        lambda a: a.transpose(1, 2, 0) * 2.0,
        lambda a: a.transpose(1, 2, 0) * 2,
        [A],
    ),
    "product of transposes": (
        lambda a, b: a[0].T @ b[1] @ a[1].T,
        lambda a, b: a[0].T @ b[1] @ a[1].T,
        [A, B],
    ),
    "product of stacks": (lambda a, b: a @ b, lambda a, b: a @ b, [A, M]),
    "product of stacks that broadcast": (
        lambda a, b: a[:, None] @ b[None],
        lambda a, b: a[:, None] @ b[None],
        [A, M],
    ),
    "stack times matrix": (lambda a, b: a @ b[0], lambda a, b: a @ b[0], [A, M]),
    "matrix times stack": (lambda a, b: a[0] @ b, lambda a, b: a[0] @ b, [A, M]),
    "vector times stack": (lambda a, b: a[0, 1] @ b, lambda a, b: a[0, 1] @ b, [A, M]),
    "stack times vector": (lambda a, b: a @ b[0, 0], lambda a, b: a @ b[0, 0], [A, B]),
    "vector times vector": (
        lambda a: a[0, 0] @ a[1, 1],
        lambda a: a[0, 0] @ a[1, 1],
        [A],
    ),
    "index": (
        lambda a: a[1, ..., None, -1] * a[0, 0, 1],
        lambda a: a[1, ..., None, -1] * a[0, 0, 1],
        [A],
    ),
    "slices": (
        lambda a: a[:, 1:, ::2] * a[:, :1, 1:2],
        lambda a: a[:, 1:, ::2] * a[:, :1, 1:2],
        [A],
    ),
    "slice with an incomplete last step": (
        lambda a: a[..., ::2],
        lambda a: a[..., ::2],
        [np.array([A[0], B[1]])],
    ),
    "sum that keeps axes": (
        lambda a: a / a.sum((0, 2), keepdims=True),
        lambda a: a / a.sum((0, 2), keepdims=True),
        [A],
    ),
    "mean that keeps axes": (
        lambda a: a - a.mean(1, keepdims=True) ** 2,
        lambda a: a - a.mean(1, keepdims=True) ** 2,
        [A],
    ),
}


@every_backend
@pytest.mark.parametrize("name", COMPOSED)
def test_composed_function_is_that_of_numpy(name, backend):
    function, plain, arrays = COMPOSED[name]
    assert_close(result_of(function, *arrays, backend=backend), plain(*arrays), 1e-14)


@pytest.mark.parametrize("name", COMPOSED)
def test_composed_function_has_exact_derivatives_of_three_orders(name):
    function, _, arrays = COMPOSED[name]
    tape, start, values = Tape(), 0, []
    theta = tape.input("theta", (sum(array.size for array in arrays),))
    v, u = tape.input("v", theta.shape), tape.input("u", theta.shape)
    for array in arrays:
        part = theta[start : start + array.size]
        values.append(part.reshape(*array.shape))
        start += array.size
    out = function(*values)
    rng = np.random.default_rng(0)
    loss = (out * out * tape.constant_array(rng.normal(size=out.shape))).sum()
    gradient, product = grad(loss, theta), hvp(loss, theta, v)
    tape.output("loss", loss)
    tape.output("slope", (gradient * v).sum())
    tape.output("curvature", (product * u).sum())
    tape.output("hvp", product)
    tape.output("gradient", gradient)
    tape.output("third", (grad((product * u).sum(), theta) * v).sum())
    tape.output("third by jvp", (jvp(product, theta, v) * u).sum())
    inputs = {name: rng.normal(size=theta.shape) for name in ("u", "v")}
    inputs["theta"] = np.concatenate([array.ravel() for array in arrays])
    for backend in BACKENDS:
        found = run_tape(tape, inputs, backend)
        exact = complex_step(tape, inputs, "theta", inputs["v"])
        size = np.abs(found["gradient"]).max() + np.abs(found["hvp"]).max() + 1
        assert_close(found["slope"], exact["loss"], 1e-11, "gradient", floor=size)
        assert_close(found["hvp"], exact["gradient"], 1e-11, "hvp", floor=size)
        assert_close(found["third"], exact["curvature"], 1e-10, "third", floor=size)
        assert_close(found["third by jvp"], found["third"], 1e-10, floor=size)


@every_backend
def test_maximum_and_minimum_treat_nan_infinity_and_ties_as_numpy(backend):
    ends = [0.0, -0.0, np.nan, np.inf, -np.inf, 1.0]
    a, b = (np.array(numbers) for numbers in zip(*product(ends, ends), strict=True))
    for name in ("maximum", "minimum"):
        result = result_of(getattr(functions, name), a, b, backend=backend)
        np.testing.assert_array_equal(result, getattr(np, name)(a, b))


@every_backend
def test_where_is_not_spoilt_by_what_it_does_not_choose(backend):
    def halves(a):  # at 0 neither the value nor the slope of 1 / a is a number
        return functions.where(a, 1 / a, a * 3.0)

    a = np.array([2.0, 0.0, -1.0])
    assert result_of(halves, a, backend=backend).tolist() == [0.5, 0.0, -3.0]

    # The derivative of 1 / a passes through 0 * infinity: the usual remedy is to put a
    # harmless number in its place before dividing.
    def careful(a):
        safe = functions.where(a, a, 1.0)
        return grad(functions.where(a, 1 / safe, a * 3.0).sum(), a)

    assert result_of(careful, a, backend=backend).tolist() == [-0.25, 3.0, 3.0]


FAR = np.geomspace(1e-33, 1e33, 12)  # of float32, which goes from 1e-38 to 3e38
QUOTIENTS = {  # the function of x (12,) and its gradient, in float64
    "sqrt": (lambda x: functions.sqrt(x).sum(), lambda x: 0.5 / np.sqrt(x)),
    "norm": (
        lambda x: functions.sqrt((x[:6] * x[:6]).sum() + 1e-30),
        lambda x: np.r_[x[:6] / np.sqrt(x[:6] @ x[:6] + 1e-30), np.zeros(6)],
    ),
    "quotient": (
        lambda x: (x[:6] / x[6:]).sum(),
        lambda x: np.r_[1 / x[6:], -x[:6] / x[6:] ** 2],
    ),
    "softmax by hand": (
        lambda x: (functions.exp(x) / functions.exp(x).sum())[0],
        lambda x: (np.eye(12)[0] - special.softmax(x)) * special.softmax(x)[0],
    ),
}
PLACES = {
    "sqrt": FAR,
    "norm": np.r_[3e-17, 4e-17, 0, 1e-18, -2e-17, 0, np.ones(6)],
    "quotient": np.geomspace(1e-21, 3e-19, 12),
    "softmax by hand": np.r_[60.0, 60.0, np.linspace(40, 59, 10)],
}


@every_backend
@pytest.mark.parametrize("name", QUOTIENTS)
def test_slopes_of_quotients_are_right_where_1_over_x_squared_is_beyond_float32(
    name, backend
):
    function, slope = QUOTIENTS[name]
    x = PLACES[name].astype(np.float32)
    found = tm.function(function, backend=backend).gradient(x)
    np.testing.assert_allclose(found, slope(x.astype(float)), rtol=2e-5, atol=1e-12)


def test_slopes_at_kinks_are_those_of_the_documentation():
    at = np.zeros(1)

    def slope(function):
        return result_of(lambda a: grad(function(a).sum(), a), at).item()

    assert slope(abs) == 0
    assert slope(lambda a: functions.maximum(a, 0.0)) == 1  # of equal ones the first
    assert slope(functions.softplus) == 0.5
    assert slope(functions.sigmoid) == 0.25
    assert slope(lambda a: functions.clip(a - 2.0, -1.0, 1.0)) == 0


def test_a_product_reads_transposes_without_copying_them():
    tape = Tape()
    a, b = tape.input("a", (3, 2)), tape.input("b", (4, 3))
    product = a.T @ b.T
    assert product.primitive.name == "matmul"
    assert product.attributes == {"ta": True, "tb": True}
    assert a.T.T is not a and a.T.T.index == a.index


def test_constants_are_those_of_the_moment_of_recording():
    numbers = np.array([1.0, 2.0])
    tape = Tape()
    tape.output("y", tape.constant_array(numbers) * tape.input("x", (2,)))
    numbers[:] = 9.0
    for backend in BACKENDS:
        assert run_tape(tape, {"x": np.ones(2)}, backend)["y"].tolist() == [[1.0, 2.0]]


def test_values_of_two_tapes_are_refused_by_name():
    x, y = Tape().input("x", (3, 1)), Tape().input("y", (3, 1))
    with pytest.raises(ValueError, match="^y: it was recorded on another tape"):
        tm.squared_error(x, y)
