"""The tape: how arithmetic is recorded, shown and counted, and what is refused."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import tinymaml as tm
from tests.support.running import assert_close, run_tape
from tinymaml.autodiff.functions import broadcast_to
from tinymaml.autodiff.tape import Tape

X = np.array([[1.0, -2.0, 3.0], [0.5, 4.0, -1.0]])
Y = np.array([0.5, -1.5, 2.0])

EXPRESSIONS = {
    "x + y": lambda x, y: x + y,
    "y - x": lambda x, y: y - x,
    "x * y / 3": lambda x, y: x * y / 3,
    "2 - x": lambda x, y: 2 - x,
    "1 / x": lambda x, y: 1 / x,
    "-x / y": lambda x, y: -x / y,
    "0.5 * x + 1": lambda x, y: 0.5 * x + 1,
    "numpy numbers": lambda x, y: np.float32(2) * x - np.int64(3) / y + np.float64(0.5),
    "x @ column": lambda x, y: x @ y.reshape(3, 1),
    "sum": lambda x, y: x.sum() + y.sum(),
    "sum of first axis": lambda x, y: x.sum(axis=0) * y,
    "sum of last axis": lambda x, y: x.sum(axis=-1),
    "sum of both axes": lambda x, y: x.sum(axis=(0, 1)),
    "mean": lambda x, y: x.mean() - y.mean(),
    "mean of an axis": lambda x, y: x.mean(axis=1),
    "flattened": lambda x, y: x.reshape(-1)[1:5],
    "slice from the end": lambda x, y: y[-2:],
    "whole slice": lambda x, y: y[:] * y[0:3],
    "x + x": lambda x, y: x + x,
    "x * x - x": lambda x, y: x * x - x,
    "constant folding": lambda x, y: (y * 0 + 2) * (y * 3) * 2,
}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_expression_means_what_it_means_in_numpy(expression):
    tape = Tape()
    x, y = tape.input("x", X.shape), tape.input("y", Y.shape)
    value = EXPRESSIONS[expression](x, y)
    tape.output("value", value)
    expected = np.asarray(EXPRESSIONS[expression](X, Y))
    assert value.shape == expected.shape
    assert_close(run_tape(tape, {"x": X, "y": Y})["value"][0], expected, 1e-15)


@given(shapes=npst.mutually_broadcastable_shapes(num_shapes=2, min_side=1, max_side=4))
def test_broadcasting_follows_numpy(shapes):
    tape, rng = Tape(), np.random.default_rng(0)
    arrays = {
        name: rng.standard_normal(s) for name, s in zip("ab", shapes[0], strict=True)
    }
    a, b = (tape.input(name, np.shape(array)) for name, array in arrays.items())
    tape.output("product", a * b)
    expected = np.asarray(arrays["a"] * arrays["b"])
    assert (a * b).shape == expected.shape
    assert_close(run_tape(tape, arrays)["product"][0], expected, 1e-15)


def test_operation_recorded_twice_is_one_node():
    theta = Tape().input("theta", (3,))
    first = tm.tanh(theta * 2.0)
    assert tm.tanh(theta * 2.0).index == first.index
    assert tm.tanh(theta * 3.0).index != first.index


@given(factors=st.lists(st.floats(0.5, 2), min_size=2, max_size=5))
def test_product_with_many_numbers_is_one_factor(factors):
    theta = Tape().input("theta", (3,))
    value = theta
    for factor in factors:
        value = value * factor
    assert value.index == theta.index or value.arguments[0].index == theta.index


def test_dead_nodes_are_not_live():
    tape = Tape()
    a, b = tape.input("a", (2,)), tape.input("b", (2,))
    tape.output("sum", a + b)
    tm.tanh(a)
    names = [tape.nodes[i].primitive.name for i in tape.live()]
    assert names == ["input", "input", "add"]


def test_repr_of_a_value_gives_its_operation_and_shape():
    theta = Tape().input("theta", (3,))
    assert repr(tm.tanh(theta)) == "Value(tanh, shape=(3,))"
    assert theta.size == 3


def test_repr_of_a_tape_gives_nodes_inputs_and_outputs():
    tape = Tape()
    x, y = tape.input("x", (5, 2)), tape.input("y", (5, 2))
    tape.output("sums", (x + y).sum(0))
    tape.output("product", (x * y).sum(), "sum")
    expected = "Tape of 8 nodes: x (5, 2), y (5, 2) -> sums (2,), product ()"
    assert len(tape.nodes) == 8 and repr(tape) == expected
    assert repr(Tape()) == "Tape of 0 nodes:  -> "


def test_value_knows_how_it_is_computed():
    tape = Tape()
    x = tape.input("x", (2, 3))
    total = tape.record("sum", x * x, start=0, stop=1)
    assert total.primitive.name == "sum"
    assert total.attributes == {"start": 0, "stop": 1}
    (square,) = total.arguments
    assert [argument.index for argument in square.arguments] == [x.index, x.index]


def test_only_a_constant_has_a_number():
    tape = Tape()
    x = tape.input("x", (3,))
    assert tape.constant(2.5, (3,)).constant == 2.5
    assert (tape.constant(2.5, (3,)) * 2).constant == 5.0
    assert x.constant is None and (x * 2.0).constant is None


def test_flops_count_live_operations_once():
    tape = Tape()
    x, w = tape.input("x", (10, 4)), tape.input("w", (4, 5))
    tape.output("sum", tm.relu(x @ w).sum())
    tm.tanh(x)  # dead
    assert tape.flops() == 2 * 10 * 4 * 5 + 10 * 5 + 10 * 5


def test_tape_imports_nothing_of_the_package_but_checks():
    source = Path(sys.modules[Tape.__module__].__file__).read_text(encoding="utf-8")
    imports = re.findall(r"^\s*(?:from|import) (tinymaml\S*)", source, re.M)
    assert imports == ["tinymaml.checks"]


# --- refusals -------------------------------------------------------------------------


def vector(n=3):
    return Tape().input("theta", (n,))


def with_itself(function):
    return function(vector())


REFUSALS = {
    "second input of a name": (
        lambda: vector().tape.input("theta", (2,)),
        ValueError,
        "input 'theta': the tape already has an input so named",
    ),
    "input with an empty axis": (
        lambda: Tape().input("x", (2, 0)),
        ValueError,
        "shape of input 'x': expected at least 1, got 0",
    ),
    "unknown reduction of an output": (
        lambda: vector().tape.output("y", vector(), "max"),
        ValueError,
        "reduction: expected one of each, sum, got 'max'",
    ),
    "output that is no value": (
        lambda: Tape().output("y", np.ones(3)),
        TypeError,
        "value: expected a Value of a tape, got an array",
    ),
    "output of another tape": (
        lambda: Tape().output("y", vector()),
        ValueError,
        "recorded on another tape",
    ),
    "value of another tape": (
        lambda: vector() + vector(),
        ValueError,
        "recorded on another tape",
    ),
    "factor of another tape": (
        lambda: vector() * vector(),
        ValueError,
        "recorded on another tape",
    ),
    "array on the right": (
        lambda: vector() + np.ones(3),
        TypeError,
        "expected a Value or a number, got ndarray",
    ),
    "array on the left": (
        lambda: np.ones(3) * vector(),
        TypeError,
        "expected a Value or a number, got ndarray",
    ),
    "array as a divisor": (
        lambda: vector() / np.ones(3),
        TypeError,
        "expected a Value or a number, got ndarray",
    ),
    "text": (
        lambda: vector() + "1",
        TypeError,
        "expected a Value or a number, got str",
    ),
    "shapes that do not broadcast": (
        lambda: with_itself(lambda v: v + v[0:2]),
        ValueError,
        "does not broadcast",
    ),
    "rank that does not broadcast": (
        lambda: broadcast_to(vector(), ()),
        ValueError,
        r"shape: \(3,\) does not broadcast to \(\)",
    ),
    "product of vectors": (
        lambda: with_itself(lambda v: v @ v),
        ValueError,
        r"matmul: expected two matrices, got \(3,\) and \(3,\)",
    ),
    "element": (lambda: vector()[0], TypeError, r"vector\[start:stop\] only"),
    "strided slice": (lambda: vector()[::2], TypeError, r"vector\[start:stop\] only"),
    "empty slice": (lambda: vector()[2:2], ValueError, "no elements 2..2"),
    "slice of a matrix": (
        lambda: vector(4).reshape(2, 2)[0:1],
        TypeError,
        r"vector\[start:stop\] only",
    ),
    "axis that is not there": (
        lambda: vector().sum(axis=1),
        ValueError,
        r"axis: expected different axes of shape \(3,\), got 1",
    ),
    "other size": (
        lambda: vector().reshape(2, -1),
        ValueError,
        "shape: expected 3 elements",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_tape_refuses(case):
    record, error, message = REFUSALS[case]
    with pytest.raises(error, match=message):
        record()


def test_second_output_of_a_name_is_refused():
    theta = vector()
    theta.tape.output("y", theta)
    with pytest.raises(ValueError, match="output 'y': the tape already has an output"):
        theta.tape.output("y", theta * 2.0)
