"""Fusion: which values have no call, or no memory, of their own, and which must."""

import re
from pathlib import Path

import pytest
from hypothesis import given

import tinymaml as tm
from tests.backends.test_random_programs import output_picks, wide, with_outputs
from tests.support.plan_recipes import RECIPES
from tests.support.planning import meta_gradient_tape, tape_of
from tinymaml.autodiff.functions import concatenate, relu, rematerialise, tanh
from tinymaml.backends.numba import fusion
from tinymaml.backends.numba.fusion import fuse
from tinymaml.backends.numba.selection import can_accumulate


def always(product):
    return True


def test_bias_and_broadcast_before_a_relu_are_inlined():
    tape = tm.Tape()
    x, b = tape.input("x", (4, 3)), tape.input("b", (3,))
    total = x + b
    tape.output("out", relu(total))
    result = fuse(tape, always)
    assert {result.name(i) for i in result.inlined} == {"broadcast", "add"}
    assert total.index in result.inlined
    assert not result.deferred and not result.inside


def test_product_is_deferred_and_its_sum_is_the_memory_of_the_other_term():
    tape = tm.Tape()
    a, b, x = (tape.input(name, (3, 3)) for name in "abx")
    term, product = tanh(x), a @ b
    total = term + product
    tape.output("out", total)
    result = fuse(tape, always)
    assert result.deferred == {product.index}
    assert result.inside == {total.index: {term.index: 0}}
    result = fuse(tape, can_accumulate=lambda product: False)
    assert not result.deferred and not result.inside


def test_values_are_computed_inside_the_concat_that_joins_them():
    tape = tm.Tape()
    a, b = tape.input("a", (5,)), tape.input("b", (3, 2))
    first, second = tanh(a), tanh(b)
    joined = concatenate([first, second.reshape(6), a])
    tape.output("out", joined)
    assert fuse(tape, always).inside == {
        joined.index: {first.index: 0, second.index: 5}
    }


def test_outer_memory_comes_before_what_lies_inside_it():
    """For selection, which gives out memory in this order."""
    tape = tm.Tape()
    a, b, x = (tape.input(name, (3, 3)) for name in "abx")
    term = tanh(x)
    total = term + a @ b
    joined = concatenate([total.reshape(9), tanh(a).reshape(9)])
    tape.output("out", joined)
    assert list(fuse(tape, always).inside) == [joined.index, total.index]


def test_memory_of_a_reshape_is_found_through_reshapes_and_rematerialisations():
    tape = tm.Tape()
    x = tanh(tape.input("x", (4, 3)))
    view = rematerialise(x.reshape(12)).reshape(3, 4)
    tape.output("out", view)
    result = fuse(tape, always)
    assert result.memory_source(view.index) == x.index
    assert result.memory_source(x.index) == x.index


def test_value_that_is_read_twice_or_an_output_has_no_only_reader():
    tape = tm.Tape()
    x = tape.input("x", (3,))
    once, twice, output = tanh(x), x + 1.0, x - 1.0
    square = tape.record("mul", twice, twice)
    tape.output("once", tanh(once))
    tape.output("square", square)
    tape.output("output", output)
    tape.output("read", tanh(output))
    result = fuse(tape, always)
    assert result.only_reader(once.index) == tape.outputs["once"].node
    assert result.only_reader(twice.index) is None
    assert result.only_reader(output.index) is None


def assert_fusion_is_consistent(tape):
    """No value has its place decided twice, and what is not stored is wanted once."""
    result = fuse(tape, can_accumulate)
    parts = [part for parts in result.inside.values() for part in parts]
    assert len(set(parts)) == len(parts)
    assert not result.inlined & (result.deferred | {*parts} | {*result.inside})
    assert not result.deferred & {*parts}
    assert not (result.inlined | result.deferred) & result.outputs
    for index in result.deferred:
        (reader,) = result.readers[index]
        ((other, start),) = result.inside[reader].items()
        assert sorted(tape.nodes[reader].arguments) == sorted([index, other])
        assert start == 0 and result.only_reader(other) == reader


@pytest.mark.parametrize("recipe", RECIPES)
def test_fusion_is_consistent_where(recipe):
    assert_fusion_is_consistent(tape_of(recipe))


@given(program=wide, picks=output_picks)
def test_fusion_of_random_programs_is_consistent(program, picks):
    assert_fusion_is_consistent(with_outputs(program, picks))


@pytest.mark.parametrize("order", [1, 2])
def test_fusion_of_a_meta_gradient_is_consistent(order):
    assert_fusion_is_consistent(meta_gradient_tape(steps=2, order=order))


def test_counter_examples_that_the_source_quotes_are_recipes():
    source = Path(str(fusion.__file__)).read_text(encoding="utf-8")
    quoted = re.findall(r"Counter-example\s+\((\w+)\)", source)
    assert len(quoted) == source.count("Counter-example") >= 4
    assert {*quoted} <= {*RECIPES}
