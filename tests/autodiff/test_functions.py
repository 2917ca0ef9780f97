"""What a tape records more cheaply than it was asked to, and that it is the same.

Each case is written twice: as a user would, and in plain NumPy. The mutants at the end
show that a rule which changes a value, or is no longer used, is noticed.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.mutants import put, survives
from tests.support.running import assert_close, run_tape
from tinymaml.autodiff import derivatives as sweeps
from tinymaml.autodiff import functions
from tinymaml.autodiff.derivatives import accumulate_cotangents, grad, jvp
from tinymaml.autodiff.functions import broadcast_to
from tinymaml.autodiff.tape import Tape
from tinymaml.networks.images import BatchNorm

A, B, V = (
    np.random.default_rng(i).standard_normal(s)
    for i, s in enumerate([(4, 3)] * 2 + [(3,)])
)

# (what is asked for, the same in NumPy, the operations recorded after the inputs)
CASES = {
    "factors are one factor": (
        lambda a, b, v: a * 2.0 * 1.5,
        A * 3,
        "scale",
    ),
    "factors that cancel are none": (lambda a, b, v: a * 2.0 * 0.5, A, ""),
    "a factor goes through a broadcast": (
        lambda a, b, v: broadcast_to(v, (4, 3)) * 2.0,
        np.tile(2 * V, (4, 1)),
        "reshape scale broadcast",
    ),
    "a factor goes to a broadcast on the right of a product": (
        lambda a, b, v: (a * v) * -1.0,
        -A * V,
        "reshape scale broadcast mul",
    ),
    "a factor goes to a broadcast on the left of a product": (
        lambda a, b, v: (v * a) * 3.0,
        3 * A * V,
        "reshape scale broadcast mul",
    ),
    "a factor of a product without a broadcast stays": (
        lambda a, b, v: (a * b) * 3.0,
        3 * A * B,
        "mul scale",
    ),
    "a factor waits for a sum": (
        lambda a, b, v: (a * 2.0).sum(0),
        2 * A.sum(0),
        "sum scale reshape",
    ),
    "a factor in a chain of both": (
        lambda a, b, v: ((broadcast_to(v, (4, 3)) * 2.0) * 2.0).sum(0) * 0.25,
        4 * V,
        "reshape scale broadcast sum reshape scale",
    ),
    "whatever is done to a constant gives a constant": (
        lambda a, b, v: broadcast_to((a.tape.constant(0.5, (4, 3)) * 3).sum(0), (4, 3)),
        np.full((4, 3), 6.0),
        "full",
    ),
    "the same contribution twice is a factor": (
        lambda a, b, v: accumulate_cotangents(a.tape, [a, b, a]),
        2 * A + B,
        "scale add",
    ),
}


def recorded(case):
    """The output of a case on a tape, and what it took."""
    tape = Tape()
    values = [tape.input(n, x.shape) for n, x in zip("abv", (A, B, V), strict=True)]
    tape.output("out", CASES[case][0](*values))
    names = [tape.nodes[i].primitive.name for i in tape.live()]
    return tape, [name for name in names if name != "input"]


def check_values():
    for case in CASES:
        tape, _ = recorded(case)
        known = {name: {"a": A, "b": B, "v": V}[name] for name in tape.inputs}
        assert_close(run_tape(tape, known)["out"][0], CASES[case][1], 1e-14, case)


def check_operations():
    for case, (_, _, expected) in CASES.items():
        assert recorded(case)[1] == expected.split(), case


def check_batch_norm():
    """No factor is ever applied to all pixels in the derivatives of batch norm."""
    tape = Tape()
    x, beta = tape.input("x", (20, 3)), tape.input("beta", (3,))
    loss = (BatchNorm(3)([beta], x) * tape.input("w", (20, 3))).sum()
    tape.output("gradient", grad(loss, x))
    tape.output("product", jvp(grad(loss, x), x, tape.input("t", (20, 3))))
    for index in tape.live():
        node = tape.nodes[index]
        assert node.primitive.name != "scale" or np.prod(node.shape) <= 3, node


def test_cheaper_ways_have_the_same_value():
    check_values()


def test_cheaper_ways_are_taken():
    check_operations()


def test_no_factor_is_applied_to_all_pixels():
    check_batch_norm()


@given(st.lists(st.integers(0, 2), min_size=1, max_size=6))
def test_contributions_may_come_any_number_of_times(which):
    tape = Tape()
    values = [tape.input(name, A.shape) for name in "abc"]
    tape.output("out", accumulate_cotangents(tape, [values[i] for i in which]))
    arrays = dict(zip("abc", (A, B, A + B), strict=True))
    expected = sum([A, B, A + B][i] for i in which)
    assert_close(run_tape(tape, arrays)["out"][0], expected, 1e-14)


@pytest.mark.parametrize(
    ("owner", "name", "old", "new"),
    [
        (functions, "simpler", '"slice", "sum")', '"slice")'),
        (functions, "simpler", "a.size // prod(shape)", "prod(shape)"),
        (functions, "simpler", 'attributes.get("number", 1.0)', "1.0"),
        (functions, "simpler", "**attributes), how[", "**attributes), 1 / how["),
        (functions, "simpler", 'how["number"] * attributes', "attributes"),
        (functions, "simpler", 'of == "broadcast"', 'of == "never"'),
        (functions, "simpler", 'of == "mul"', 'of == "never"'),
        (functions, "simpler", "(operands, operands[::-1])", "(operands,)"),
        (functions, "simpler", '["number"]), other)', '["number"]), operand)'),
        (sweeps, "accumulate_cotangents", "* count", "* 1"),
    ],
)
def test_broken_rule_is_caught(monkeypatch, owner, name, old, new):
    put(monkeypatch, owner, name, old, new)
    assert not survives(check_values, check_operations, check_batch_norm)
