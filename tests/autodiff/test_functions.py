"""The functions that a loss is written with, each against NumPy or by hand.

Their derivatives, and values at many shapes, are in test_primitives.py.
"""

import numpy as np
import pytest
from scipy import special

import tinymaml as tm
from tests.support.running import BACKENDS, assert_close, run_tape
from tinymaml.autodiff import functions
from tinymaml.autodiff.tape import Tape

every_backend = pytest.mark.parametrize("backend", BACKENDS)
X = np.array([[0.5, -1.5, 2.0], [3.0, 0.0, -0.25]])

FUNCTIONS = {  # name: (the argument, the result in NumPy)
    "relu": (X, np.maximum(X, 0)),
    "exp": (X, np.exp(X)),
    "log": (X**2 + 1, np.log(X**2 + 1)),
    "tanh": (X, np.tanh(X)),
    "reciprocal": (X + 5, 1 / (X + 5)),
    "rsqrt": (X**2 + 1, 1 / np.sqrt(X**2 + 1)),
    "logsumexp": (X, special.logsumexp(X, axis=-1, keepdims=True)),
    "softmax": (X, special.softmax(X, axis=-1)),
    "rematerialise": (X, X),
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
    repeated = result_of(
        lambda x: functions.broadcast_to(x, (3, 2, 4)), column, backend=backend
    )
    assert np.array_equal(repeated, np.broadcast_to(column, (3, 2, 4)))


def test_broadcast_to_refuses_a_shape_that_does_not_fit():
    theta = Tape().input("theta", (3,))
    with pytest.raises(ValueError, match=r"shape: \(3,\) does not broadcast to \(4,\)"):
        functions.broadcast_to(theta, (4,))
    with pytest.raises(
        ValueError, match=r"shape: \(3,\) does not broadcast to \(3, 1\)"
    ):
        functions.broadcast_to(theta, (3, 1))


def test_rematerialise_makes_a_new_node():
    theta = Tape().input("theta", (3,))
    first, second = functions.rematerialise(theta), functions.rematerialise(theta)
    assert first.index != second.index
    assert tm.tanh(first).index != tm.tanh(theta).index
