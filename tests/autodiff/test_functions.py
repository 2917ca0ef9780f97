"""The functions that a loss is written with, each against NumPy or by hand.

Their derivatives, and values at many shapes, are in test_primitives.py.
"""

import numpy as np
import pytest
from scipy import special

import tinymaml as tm
from tests.support.gpu_backends import gpu_backend
from tests.support.running import BACKENDS, DTYPES, assert_close, run_tape
from tinymaml.autodiff import functions
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


def test_concatenate_refuses_what_it_cannot_join():
    x = Tape().input("x", (2, 3))
    with pytest.raises(ValueError, match=r"^vectors: expected a list.* got \[\]"):
        tm.concatenate([])
    with pytest.raises(ValueError, match="^concat: expected vectors"):
        tm.concatenate([x])
    with pytest.raises(ValueError, match="^vectors: expected a list.* got 3"):
        tm.concatenate(3)


def test_values_of_two_tapes_are_refused_by_name():
    x, y = Tape().input("x", (3, 1)), Tape().input("y", (3, 1))
    with pytest.raises(ValueError, match="^y: it was recorded on another tape"):
        tm.squared_error(x, y)
