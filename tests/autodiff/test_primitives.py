"""Every primitive of the table, on every backend: values and derivatives to order 3.

The second part is about what `simplify` records instead of what was asked for: each
case is written as a user would and in plain NumPy, with the operations that are
expected on the tape. A rule that changes a value, or is no longer used, is noticed.
"""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import fuzz_records
from tests.support.mutants import put, survives
from tests.support.node_backend import JAVASCRIPT, needs_node
from tests.support.primitive_cases import CASES
from tests.support.primitive_checks import (
    check_agreement,
    check_derivatives,
    check_values,
)
from tests.support.running import BACKENDS, DTYPES, assert_close, run_tape
from tinymaml.autodiff import derivatives, primitives
from tinymaml.autodiff.derivatives import accumulate_cotangents, grad, jvp
from tinymaml.autodiff.tape import PRIMITIVES, Tape
from tinymaml.networks.images import BatchNorm

fewer = settings(max_examples=settings().max_examples // 2)  # odd shapes come besides
seeds = st.integers(0, 2**16)
every_primitive = pytest.mark.parametrize("primitive", CASES)
every_backend = pytest.mark.parametrize("backend", [*BACKENDS, JAVASCRIPT])
every_other_backend = pytest.mark.parametrize("backend", ["numba", JAVASCRIPT])
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def test_cases_cover_the_table():
    assert CASES.keys() == PRIMITIVES.keys()


@pytest.mark.parametrize("primitive", sorted({*CASES} - {"input"}))
def test_a_primitive_can_be_pickled_and_with_it_a_tape(primitive):
    assert pickle.loads(pickle.dumps(PRIMITIVES[primitive])) is PRIMITIVES[primitive]
    shapes, attributes = CASES[primitive].odd[0]
    tape = Tape()
    values = [tape.input(f"x{i}", shape) for i, shape in enumerate(shapes)]
    tape.output("out", tape.record(primitive, *values, **attributes))
    copied = pickle.loads(pickle.dumps(tape))
    assert [(n.primitive, n.shape) for n in copied.nodes] == [
        (n.primitive, n.shape) for n in tape.nodes
    ]


@every_primitive
@every_backend
def test_primitive_values_are_those_of_plain_numpy_at_odd_shapes(primitive, backend):
    for seed, (shapes, attributes) in enumerate(CASES[primitive].odd):
        check_values(primitive, shapes, attributes, seed, backend)


@every_primitive
@every_backend
@fewer
@given(data=st.data(), seed=seeds)
def test_primitive_values_are_those_of_plain_numpy(primitive, backend, data, seed):
    check_values(primitive, *data.draw(CASES[primitive].drawn), seed, backend)


@every_primitive
@every_backend
def test_primitive_derivatives_are_finite_differences_at_odd_shapes(primitive, backend):
    for seed, (shapes, attributes) in enumerate(CASES[primitive].odd):
        check_derivatives(primitive, shapes, attributes, seed, backend)


@every_primitive
@every_backend
@fewer
@given(data=st.data(), seed=seeds)
def test_primitive_derivatives_are_finite_differences(primitive, backend, data, seed):
    check_derivatives(primitive, *data.draw(CASES[primitive].drawn), seed, backend)


@every_primitive
@every_other_backend
@every_dtype
def test_backends_agree_on_primitive_at_odd_shapes(primitive, backend, dtype):
    for seed, (shapes, attributes) in enumerate(CASES[primitive].odd):
        check_agreement(primitive, shapes, attributes, seed, dtype, backend)


@every_primitive
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        ("numba", "float32"),
        ("numba", "float64"),
        pytest.param("javascript", "float32", marks=needs_node),
    ],
)
@fewer
@given(data=st.data(), seed=seeds)
def test_backends_agree_on_primitive(primitive, backend, dtype, data, seed):
    call = data.draw(CASES[primitive].drawn)
    check_agreement(primitive, *call, seed, dtype, backend)


@pytest.mark.parametrize(
    ("primitive", "shapes", "attributes", "message"),
    [
        ("add", [(2,), (3,)], {}, "shapes: expected two equal ones"),
        ("gate", [(2, 1), (2,)], {}, "shapes: expected two equal ones"),
        ("logsumexp", [()], {}, "at least one axis"),
        ("matmul", [(2, 3), (2, 3)], {"ta": False, "tb": False}, "inner sizes differ"),
        ("matmul", [(3,), (3, 1)], {"ta": False, "tb": False}, "two matrices"),
        ("sum", [(2, 3)], {"start": 1, "stop": 3}, "no axes"),
        ("sum", [(2, 3)], {"start": 1, "stop": 1}, "no axes"),
        ("broadcast", [(2, 3)], {"start": 1, "sizes": (4,)}, "no axes of length 1"),
        ("broadcast", [(1,)], {"start": 0, "sizes": (4, 2)}, "no axes of length 1"),
        ("reshape", [(6,)], {"shape": (4,)}, "other size"),
        ("slice", [(6,)], {"start": 2, "stop": 7}, "no elements"),
        ("slice", [(6,)], {"start": 2, "stop": 2}, "no elements"),
        ("slice", [(6, 1)], {"start": 0, "stop": 1}, "no elements"),
        ("pad", [(6,)], {"start": 2, "size": 7}, "does not fit"),
        ("concat", [(6,), (2, 1)], {}, "concat: expected vectors"),
    ],
)
def test_primitive_refuses_shapes_that_do_not_fit(
    primitive, shapes, attributes, message
):
    tape = Tape()
    arguments = [tape.input(f"x{i}", shape) for i, shape in enumerate(shapes)]
    with pytest.raises(ValueError, match=message):
        tape.record(primitive, *arguments, **attributes)


# --- cheaper ways to the same value ---------------------------------------------------

A, B, V = (
    np.random.default_rng(i).standard_normal(s)
    for i, s in enumerate([(4, 3)] * 2 + [(3,)])
)

# name: (what a user writes, its value in NumPy, the operations that are recorded)
SIMPLIFIED = {
    "two factors are one factor": (
        lambda a, b, v: a * 2.0 * 1.5,
        A * 3,
        "scale",
    ),
    "factors that cancel are none": (lambda a, b, v: a * 2.0 * 0.5, A, ""),
    "a factor goes through a broadcast": (
        lambda a, b, v: v.broadcast_to((4, 3)) * 2.0,
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
    "a factor is applied after a sum": (
        lambda a, b, v: (a * 2.0).sum(0),
        2 * A.sum(0),
        "sum scale reshape",
    ),
    "a factor passes broadcasts and sums": (
        lambda a, b, v: ((v.broadcast_to((4, 3)) * 2.0) * 2.0).sum(0) * 0.25,
        4 * V,
        "reshape scale broadcast sum reshape scale",
    ),
    "an operation on a constant gives a constant": (
        lambda a, b, v: (a.tape.constant(0.5, (4, 3)) * 3).sum(0).broadcast_to((4, 3)),
        np.full((4, 3), 6.0),
        "full",
    ),
    "the same contribution twice is a factor": (
        lambda a, b, v: accumulate_cotangents(a.tape, [a, b, a]),
        2 * A + B,
        "scale add",
    ),
}


def record(case):
    """A tape with the output of a case, and the names of the operations it takes."""
    tape = Tape()
    values = [tape.input(n, x.shape) for n, x in zip("abv", (A, B, V), strict=True)]
    tape.output("out", SIMPLIFIED[case][0](*values))
    names = [tape.nodes[i].primitive.name for i in tape.live()]
    return tape, [name for name in names if name != "input"]


def check_simplified_values():
    for case in SIMPLIFIED:
        tape, _ = record(case)
        inputs = {name: {"a": A, "b": B, "v": V}[name] for name in tape.inputs}
        assert_close(run_tape(tape, inputs)["out"][0], SIMPLIFIED[case][1], 1e-14, case)


def check_simplified_operations():
    for case, (_, _, expected) in SIMPLIFIED.items():
        assert record(case)[1] == expected.split(), case


def check_factors_of_batch_norm():
    """No factor is applied to all pixels in the derivatives of batch normalisation."""
    tape = Tape()
    x, beta = tape.input("x", (20, 3)), tape.input("beta", (3,))
    loss = (BatchNorm(3)([beta], x) * tape.input("w", (20, 3))).sum()
    tape.output("gradient", grad(loss, x))
    tape.output("product", jvp(grad(loss, x), x, tape.input("t", (20, 3))))
    for index in tape.live():
        node = tape.nodes[index]
        assert node.primitive.name != "scale" or np.prod(node.shape) <= 3, node


def test_simplified_operations_have_the_same_value():
    check_simplified_values()


def test_operations_are_simplified():
    check_simplified_operations()


def test_no_factor_is_applied_to_all_pixels_of_batch_norm():
    check_factors_of_batch_norm()


RULE_MUTANTS = {  # what goes wrong: (owner, function, old text, new text)
    "constants are not folded": (
        primitives,
        "fold",
        "None if a.constant is None",
        "None if True",
    ),
    "a sum of a constant counts all elements": (
        primitives.Sum,
        "simplify",
        "prod(a.shape[start:stop])",
        "a.size",
    ),
    "a scaled constant keeps its number": (
        primitives.Scale,
        "simplify",
        "fold(a, a.shape, number)",
        "fold(a, a.shape)",
    ),
    "a factor is applied before a sum": (
        primitives.Sum,
        "simplify",
        'a.primitive.name == "scale"',
        "False",
    ),
    "a sum is divided by the factor of its terms": (
        primitives.Sum,
        "simplify",
        'total * a.attributes["number"]',
        'total * (1 / a.attributes["number"])',
    ),
    "the second factor replaces the first": (
        primitives.Scale,
        "simplify",
        '(a.attributes["number"] * number)',
        "number",
    ),
    "a factor is applied after a broadcast": (
        primitives.Scale,
        "simplify",
        'if name == "broadcast"',
        "if False",
    ),
    "a factor is applied after a product": (
        primitives.Scale,
        "simplify",
        'if name == "mul"',
        "if False",
    ),
    "a broadcast on the right of a product is missed": (
        primitives.Scale,
        "simplify",
        "(arguments, arguments[::-1])",
        "(arguments,)",
    ),
    "a product forgets its other argument": (
        primitives.Scale,
        "simplify",
        "factor * number, other)",
        "factor * number, factor)",
    ),
    "equal contributions are counted once": (
        derivatives,
        "accumulate_cotangents",
        "* count",
        "* 1",
    ),
}


@pytest.mark.parametrize("mutant", RULE_MUTANTS)
def test_broken_simplification_is_caught(monkeypatch, mutant):
    put(monkeypatch, *RULE_MUTANTS[mutant])
    assert not survives(
        check_simplified_values,
        check_simplified_operations,
        check_factors_of_batch_norm,
    )


# --- what kernels cannot do -----------------------------------------------------------

G, W, X = (1, 3, 3, 2), (2, 2, 1, 2), (1, 4, 4, 1)


@pytest.mark.parametrize(
    ("primitive", "shapes", "attributes"),
    [
        ("broadcast", [(6, 6)], {"start": -1, "sizes": (1,)}),
        ("broadcast", [(1,)], {"start": 0, "sizes": (-3,)}),
        ("broadcast", [(1,)], {"start": 0, "sizes": (2.0,)}),
        ("full", [], {"shape": (-5,), "number": 7.0}),
        ("full", [], {"shape": (2,), "number": "7"}),
        ("scale", [(2,)], {"number": None}),
        ("pad", [(3,)], {"start": 2.5, "size": 9}),
        ("pad", [(3,)], {"start": -1, "size": 9}),
        ("slice", [(3,)], {"start": True, "stop": 2}),
        ("sum", [(3, 3)], {"start": -1, "stop": 1}),
        ("reshape", [(6,)], {"shape": (-2, -3)}),
        ("matmul", [(2, 2), (2, 2)], {"ta": 2, "tb": False}),
        ("softmax", [()], {}),
        ("tanh", [(2,), (2,)], {}),
        ("add", [(2,)], {}),
        ("concat", [], {}),
        ("max_gather", [X, X], {"size": 0}),
        ("max_gather", [X, X], {"size": 1.5}),
        ("conv", [X, W], {"stride": 0, "padding": (0, 0), "size": (3, 3)}),
        ("conv", [X, W], {"stride": -1, "padding": (0, 0), "size": (3, 3)}),
        ("conv", [X, W], {"stride": 1, "padding": (-1, 0), "size": (3, 3)}),
        ("conv", [X, W], {"stride": 1, "padding": (2, 0), "size": (3, 3)}),
        ("conv", [X, W], {"stride": 1, "padding": (0, 0), "size": (5, 3)}),
        ("conv", [X, W], {"stride": 1, "padding": (0, 0), "size": (0, 3)}),
        ("conv", [X, W], {"stride": 1, "padding": (0,), "size": (3, 3)}),
        ("conv", [X, W], {"stride": 1, "padding": 0, "size": (3, 3)}),
        ("conv_input", [G, W], {"stride": 0, "padding": (99, 99), "size": (4, 4)}),
        ("conv_input", [G, W], {"stride": 1, "padding": (0, 0), "size": (2, 4)}),
        ("conv_weight", [X, G], {"stride": 1, "padding": (0, 0), "size": (-2, 2)}),
        ("conv_weight", [X, G], {"stride": 3, "padding": (0, 0), "size": (2, 2)}),
    ],
)
def test_shape_rule_refuses_what_kernels_cannot_do(primitive, shapes, attributes):
    tape = Tape()
    arguments = [tape.input(f"x{i}", shape) for i, shape in enumerate(shapes)]
    with pytest.raises((TypeError, ValueError)):
        tape.record(primitive, *arguments, **attributes)


def test_windows_need_not_be_those_of_same_padding():
    tape = Tape()
    x, w = tape.input("x", (1, 5, 5, 1)), tape.input("w", (3, 3, 1, 1))
    y = tape.record("conv", x, w, stride=1, padding=(2, 0), size=(7, 3))  # FULL, VALID
    assert y.shape == (1, 7, 3, 1)


def test_random_records_are_refused_or_stay_in_their_workspace():
    results = fuzz_records.fuzz(800)
    assert results["refused"] > 150 and results["the same"] > 300
