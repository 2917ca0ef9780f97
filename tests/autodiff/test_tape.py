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
        "operand: expected a Value of a tape, got an array",
    ),
    "array on the left": (
        lambda: np.ones(3) * vector(),
        TypeError,
        "operand: expected a Value of a tape, got an array",
    ),
    "array as a divisor": (
        lambda: vector() / np.ones(3),
        TypeError,
        "operand: expected a Value of a tape, got an array",
    ),
    "text": (
        lambda: vector() + "1",
        TypeError,
        "operand: expected a Value of a tape, got str",
    ),
    "shapes that do not broadcast": (
        lambda: with_itself(lambda v: v + v[0:2]),
        ValueError,
        r"shapes: expected a common one, got \(3,\) and \(2,\)",
    ),
    "rank that does not broadcast": (
        lambda: vector().broadcast_to(()),
        ValueError,
        r"shape: \(3,\) does not broadcast to \(\)",
    ),
    "product of unfit vectors": (
        lambda: with_itself(lambda v: v @ v[:2]),
        ValueError,
        r"matmul: inner sizes differ, \(1, 3\) @ \(2, 1\)",
    ),
    "product of unfit stacks": (
        lambda: with_itself(lambda v: v.reshape(3, 1, 1) @ v[:2].reshape(2, 1, 1)),
        ValueError,
        r"shapes: expected a common one, got \(3,\) and \(2,\)",
    ),
    "product with a number": (
        lambda: with_itself(lambda v: v @ v[:1].reshape()),
        ValueError,
        r"matmul: expected .* got \(3,\) and \(\)",
    ),
    "mask as an index": (
        lambda: vector()[np.array([True, False, True])],
        TypeError,
        "index: expected whole numbers, slices with a positive step",
    ),
    "truth as an index": (lambda: vector()[True], TypeError, "index: .* got True"),
    "fraction as an index": (lambda: vector()[0.5], TypeError, "index: .* got 0.5"),
    "element beyond the end": (
        lambda: vector()[3],
        ValueError,
        "index: expected a number from -3 to 2, got 3",
    ),
    "slice backwards": (lambda: vector()[::-1], TypeError, "index: .* got slice"),
    "slice by text": (lambda: vector()["a":], TypeError, "index: .* got slice"),
    "empty slice": (lambda: vector()[2:2], ValueError, "index: expected at least one"),
    "too many indices": (
        lambda: vector()[0, 0],
        ValueError,
        r"index: expected at most 1 axes, got \(0, 0\)",
    ),
    "two ellipses": (lambda: vector()[..., ...], ValueError, "index: "),
    "axes named twice": (
        lambda: vector().transpose(0, 0),
        ValueError,
        r"axes: expected every axis of shape \(3,\) once, got \(0, 0\)",
    ),
    "axes counted from 1": (
        lambda: vector().reshape(1, 3).transpose(1, 2),
        ValueError,
        r"axes: expected every axis of shape \(1, 3\) once, got \(1, 2\)",
    ),
    "an axis of a number": (lambda: vector()[0].transpose(0), ValueError, "axes: "),
    "masked constants": (
        lambda: Tape().constant_array(np.ma.array([1.0, 2.0], mask=[False, True])),
        ValueError,
        "numbers: expected an array of real numbers, got masked_array",
    ),
    "text as an exponent": (lambda: vector() ** "2", TypeError, "operand: .* got str"),
    "power of a negative number": (
        lambda: (-2.0) ** vector(),
        ValueError,
        "base: expected more than 0, got -2.0",
    ),
    "constants that are no numbers": (
        lambda: Tape().constant_array(["a"]),
        ValueError,
        "numbers: expected an array of real numbers, got",
    ),
    "no constants": (lambda: Tape().constant_array([]), ValueError, "numbers: "),
    "axis that is not there": (
        lambda: vector().sum(axis=1),
        ValueError,
        r"axis: expected axes of shape \(3,\), got 1",
    ),
    "other size": (
        lambda: vector().reshape(2, -1),
        ValueError,
        "reshape: .* other size",
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


# --- a Value has no numbers -----------------------------------------------------------

WITHOUT_NUMBERS = {
    "== number": lambda v: v == 0,
    "== value": lambda v: v == v,
    "number ==": lambda v: 0 == v,
    "array ==": lambda v: np.zeros(3) == v,
    "!=": lambda v: v != 0,
    "<": lambda v: v < 0,
    "<=": lambda v: v <= v,
    ">": lambda v: v > np.float64(0),
    ">=": lambda v: v >= 0,
    "if": lambda v: 1 if v else 0,
    "not": lambda v: not v,
    "and": lambda v: v and 1,
    "or": lambda v: v or 1,
    "bool": bool,
    "len": len,
    "iteration": list,
    "unpacking": lambda v: [*v],
    "in a value": lambda v: 0 in v,
    "in a list": lambda v: v in [v * 2.0],
    "max": lambda v: max(v, v * 2.0),
    "float": float,
    "int": int,
    "complex": complex,
    "range": lambda v: range(v),
    "asarray": np.asarray,
    "numpy's function": lambda v: np.exp(v),
}


@pytest.mark.parametrize("case", WITHOUT_NUMBERS)
def test_value_is_not_compared_tested_or_converted(case):
    with pytest.raises(
        TypeError, match=r"^Value\(\w+, shape=\(3,\)\): .*Write `a is b`"
    ):
        WITHOUT_NUMBERS[case](vector())


def test_a_loss_with_a_condition_on_data_is_refused_and_not_silently_wrong():
    def loss(theta, x, y):
        return (x * theta - y).sum() * (0.0 if y == 0 else 1.0)

    one = np.ones((1, 1, 1))
    with pytest.raises(TypeError, match="mask of 0 and 1"):
        tm.MAML(loss, backend="numpy")(np.ones(1), tm.Tasks(one, one, one, one))


def test_value_is_a_key_by_identity():
    v = vector()
    assert {v: 1}[v] == 1 and v is v and v in {v} and v in [v]


# --- numbers beside a value -----------------------------------------------------------


@pytest.mark.parametrize(
    "three",
    [3, 3.0, np.int64(3), np.float64(3), np.float32(3), np.float16(3)],
)
def test_divisor_is_inverted_in_float64(three):
    tape = Tape()
    tape.output("quotient", tape.input("x", (1,)) / three)
    assert run_tape(tape, {"x": np.ones(1)})["quotient"].item() == 1 / 3


@pytest.mark.parametrize("zero", [0, 0.0, -0.0, np.float32(0), False])
def test_division_by_zero_is_refused(zero):
    with pytest.raises(ValueError, match="divisor: expected another number than 0"):
        vector() / zero


@pytest.mark.parametrize("operator", ["__add__", "__rsub__", "__mul__", "__truediv__"])
def test_number_that_float64_does_not_hold_is_refused(operator):
    with pytest.raises(ValueError, match=r"^(operand|factor|divisor): .*below 1.8e308"):
        getattr(vector(), operator)(10**400)


def test_zeros_of_both_signs_are_different_numbers():
    x = Tape().input("x", (3,))
    assert (x * 0.0).index != (x * -0.0).index
    constants = [x.tape.constant(number, (3,)).index for number in (0.0, -0.0)]
    assert len({*constants}) == 2


def test_nan_is_one_number():
    x = Tape().input("x", (3,))
    assert (x * float("nan")).index == (x * (float("inf") - float("inf"))).index


# --- sizes and axes in the types that users have --------------------------------------


@pytest.mark.parametrize(
    "shape", [((2, -1),), ([2, 3],), (np.array([2, 3]),), (2, 3), (np.int64(2), -1)]
)
def test_reshape_takes_sizes_one_by_one_or_together(shape):
    assert Tape().input("x", (6,)).reshape(*shape).shape == (2, 3)


@pytest.mark.parametrize("axis", [np.int64(0), np.int32(-2), [0], (np.int64(0),)])
def test_sum_takes_numpys_whole_numbers(axis):
    assert Tape().input("x", (2, 3)).sum(axis=axis).shape == (3,)
    assert Tape().input("x", (2, 3)).mean(axis=axis).shape == (3,)


MISFITS = {
    "reshape of a fraction": (lambda v: v.reshape(1.5), TypeError, "shape: "),
    "reshape of nan": (lambda v: v.reshape(float("nan")), TypeError, "shape: "),
    "reshape of text": (lambda v: v.reshape("3"), TypeError, "shape: "),
    "two sizes to infer": (lambda v: v.reshape(-1, -1), ValueError, "reshape: "),
    "negative size": (lambda v: v.reshape(-3), ValueError, "shape: expected at least"),
    "axis of nan": (lambda v: v.sum(float("nan")), TypeError, "axis: "),
    "axis of text": (lambda v: v.sum("0"), TypeError, "axis: "),
    "axis twice": (lambda v: v.sum((0, 0)), ValueError, "axis: expected axes of"),
    "axis twice, once negative": (lambda v: v.sum((0, -1)), ValueError, "axis: "),
    "slice of fractions": (lambda v: v[0.5:2], TypeError, "index: "),
    "slice of a value": (lambda v: v[v:2], TypeError, "index: "),
    "value @ array": (lambda v: v @ np.ones(3), TypeError, "operand: .*got an array"),
    "array @ value": (lambda v: np.ones(3) @ v, TypeError, "operand: .*got an array"),
    "value @ number": (
        lambda v: v @ 3,
        TypeError,
        "operand: .*got int",
    ),
    "text / value": (lambda v: "x" / v, TypeError, "operand: .*got str"),
    "value / text": (lambda v: v / "x", TypeError, "operand: .*got str"),
    "none": (lambda v: v - None, TypeError, "operand: .*got NoneType"),
    "constant of text": (lambda v: v.tape.constant("x"), TypeError, "number: "),
    "constant of a negative size": (
        lambda v: v.tape.constant(1.0, (-5,)),
        ValueError,
        "shape: expected at least 1, got -5",
    ),
    "input without a name": (lambda v: v.tape.input(3, (3,)), TypeError, "name: "),
    "input of no shape": (lambda v: v.tape.input("x", 3), TypeError, "shape of input"),
    "input per what": (lambda v: v.tape.input("x", (), "no"), TypeError, "per_task: "),
    "output without a name": (lambda v: v.tape.output([], v), TypeError, "name: "),
    "unknown primitive": (lambda v: v.tape.record("tan", v), ValueError, "primitive: "),
    "input recorded": (
        lambda v: v.tape.record("input"),
        ValueError,
        "primitive: an in",
    ),
    "no argument": (lambda v: v.tape.record("tanh"), TypeError, ".*missing 1"),
    "an argument too many": (
        lambda v: v.tape.record("exp", v, v),
        TypeError,
        ".*2 were given",
    ),
    "an attribute too many": (
        lambda v: v.tape.record("add", v, v, start=1),
        TypeError,
        ".*start",
    ),
    "too large": (
        lambda v: v.tape.constant(1.0, (2**30, 2**30)),
        ValueError,
        "full: expected at most",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_is_named(case):
    call, error, message = MISFITS[case]
    with pytest.raises(error, match=f"^{message}"):
        call(vector())


@pytest.mark.parametrize("step", [5, 6, 10**6, 10**12])
def test_a_step_beyond_the_end_takes_the_first_element(step):
    x = Tape().input("x", (5, 3))
    part = x[::step]
    assert part.shape == (1, 3)
    assert max(np.prod(node.shape) for node in x.tape.nodes) <= 15
    assert x[1:4, ::step].shape == (3, 1)


# --- snapshots ------------------------------------------------------------------------


def test_snapshot_does_not_change_with_the_tape():
    tape = vector().tape
    theta = tape.value(0)
    tape.output("y", theta * 2.0)
    snapshot = tape.snapshot()
    tape.output("z", tm.tanh(theta))
    tape.input("x", (2,))
    assert repr(snapshot) == "Tape of 2 nodes: theta (3,) -> y (3,)"
    assert tm.tanh(snapshot.value(0)).index == 2  # it can be recorded on, too
    assert len(tape.nodes) == 4
    lost = snapshot.lost_by(1)
    assert (theta * 0.5 * 4.0).index == 1 and tape.lost_by(1) != lost
    assert snapshot.lost_by(1) == lost
