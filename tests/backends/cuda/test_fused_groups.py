"""Fused groups: which elementwise operations become one launch.

A thread computes its element of all operations of a group, so two operations may be one
launch exactly if no thread reads or writes an element that another thread writes.
"""

from itertools import pairwise
from math import prod
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinymaml as tm
from tests.backends.test_random_programs import output_picks, wide, with_outputs
from tests.support.device_planning import assert_threads_do_not_meet, touched
from tests.support.maml_problems import problem
from tests.support.mutants import put, survives
from tests.support.planning import ONE_ARGUMENT
from tests.support.random_programs import random_inputs
from tests.support.serial_cupy import WHY_NOT, run_serially
from tinymaml.autodiff.functions import tanh
from tinymaml.backends.cuda import device_plan
from tinymaml.backends.cuda.device_plan import fused_groups
from tinymaml.backends.numba.selection import Instruction, View

needs_compiler = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
many = settings(max_examples=20 * settings().max_examples)


def order_matters(launch):
    """Whether the threads of a fused group meet."""

    def addresses(view, elements, threads):
        return 1000 * view.buffer + view.offset + elements, threads

    try:
        assert_threads_do_not_meet(
            (addresses(*out, out[1]), [addresses(*read) for read in reads])
            for out, reads in touched(launch)
        )
    except AssertionError:
        return True
    return False


def together(*calls):
    """The calls as one fused group, whether that is right or not."""
    size = (prod(calls[0].sizes),)
    return Instruction("elementwise", calls[-1].out, (), size, calls)


def call(kernel, out, *reads, sizes=(4,)):
    """A call on views (buffer, offset)."""
    return Instruction(kernel, View(*out), tuple(View(*read) for read in reads), sizes)


# --- each rule ------------------------------------------------------------------------

whole, row = (1, 1, 4), (1, 2, 2)  # y is read element by element; y of 2, twice


class Pair(NamedTuple):
    """Two operations, and the rule without which `can_join` would fuse them."""

    first: Instruction
    second: Instruction
    old: str
    new: str


BREAK = {
    "reads the first result at the next element": Pair(
        call("tanh", (0, 0), (1, 0)),
        call("exp", (2, 0), (0, 1)),
        "for read in extents_read(call)]",
        "for read in []]",
    ),
    "broadcasts the first result": Pair(
        call("tanh", (0, 0), (1, 0)),
        call("add", (2, 0), (3, 0), (0, 0), sizes=row),
        "for read in extents_read(call)]",
        "for read in []]",
    ),
    "stores a broadcast of the first result": Pair(
        call("tanh", (0, 0), (1, 0)),
        call("broadcast", (2, 0), (0, 0), sizes=row),
        "for read in extents_read(call)]",
        "for read in []]",
    ),
    "reads one number of the first result": Pair(
        call("tanh", (0, 0), (1, 0)),
        call("scale", (2, 0), (3, 0), (0, 0)),
        "for read in extents_read(call)]",
        "for read in []]",
    ),
    "writes elements that others may still read": Pair(
        call("add", (0, 0), (1, 0), (2, 0), sizes=row),
        call("tanh", (2, 0), (3, 0)),
        "for read in extents_read(operation)]",
        "for read in []]",
    ),
    "writes the first result at the next element": Pair(
        call("tanh", (0, 0), (1, 0)),
        call("exp", (0, 1), (1, 0)),
        "shared = [((call.out, n), written)]",
        "shared = []",
    ),
    "reads the last element of the first result": Pair(
        call("tanh", (0, 3), (1, 0)),
        call("exp", (2, 0), (0, 0)),
        "overlap(a, b) and a != b",
        "a[0] == b[0] and a != b",
    ),
}


@pytest.mark.parametrize("name", BREAK)
def test_operations_stay_apart_if_the_second(monkeypatch, name):
    first, second, old, new = BREAK[name]
    assert order_matters(together(first, second))
    assert len(fused_groups([first, second])) == 2
    assert len(fused_groups([first, call("tanh", (9, 0), (1, 0)), second])) == 2
    put(monkeypatch, device_plan, "can_join", old, new)  # and without the rule:
    assert len(fused_groups([first, second])) == 1


def test_operations_of_two_sizes_stay_apart(monkeypatch):
    first, second = (
        call("tanh", (0, 0), (1, 0)),
        call("exp", (2, 0), (1, 0), sizes=(3,)),
    )
    assert len(fused_groups([first, second])) == len(fused_groups([second, first])) == 2
    put(monkeypatch, device_plan, "can_join", "or group.sizes != (n,)", "")
    assert len(fused_groups([first, second])) == 1


def test_operations_join_no_other_kernel(monkeypatch):
    first = call("pad", (0, 0), (1, 0), sizes=(4,))
    second = call("exp", (2, 0), (3, 0))
    assert len(fused_groups([first, second])) == len(fused_groups([second, first])) == 2
    put(monkeypatch, device_plan, "can_join", "not group.operations or", "")
    assert len(fused_groups([first, second])) == 1


JOIN = {
    "reads the first result": call("exp", (2, 0), (0, 0)),
    "reads the first result as both operands": call(
        "mul", (2, 0), (0, 0), (0, 0), sizes=whole
    ),
    "reads the first result as its second operand": call(
        "gate", (2, 0), (3, 0), (0, 0)
    ),
    "reads the operand of the first": call("add", (2, 0), (3, 0), (1, 0), sizes=row),
    "overwrites the operand of the first": call("exp", (1, 0), (3, 0)),
    "overwrites the first result": call("exp", (0, 0), (3, 0)),
    "adds to the first result": call("mul_add", (0, 0), (1, 0), (3, 0), sizes=whole),
    "reads beside the first result": call("exp", (2, 0), (0, 4)),
    "writes beside the first result": call("exp", (0, 4), (3, 0)),
}


@pytest.mark.parametrize("name", JOIN)
def test_operations_become_one_launch_if_the_second(name):
    first, second = call("tanh", (0, 0), (1, 0)), JOIN[name]
    assert not order_matters(together(first, second))
    (launch,) = fused_groups([first, second])
    assert launch.operations == (first, second) and launch.sizes == (4,)
    assert launch.out == second.out
    assert launch.reads == (*first.reads, first.out, *second.reads)


# --- properties -----------------------------------------------------------------------


@st.composite
def operations(draw):
    """Elementwise operations of 4 or 6 elements on views that often overlap."""
    view = st.builds(View, st.integers(0, 2), st.sampled_from([0, 1, 4, 6]))
    kernel = draw(st.sampled_from([*ONE_ARGUMENT, "gate", "scale", "mul_add", "add"]))
    n = draw(st.sampled_from([4, 4, 6]))
    if kernel == "add" or kernel == "mul_add":
        middle = draw(st.sampled_from([1, 2, n]))
        outer = draw(st.sampled_from([1, n // middle]))
        sizes = outer, middle, n // middle // outer
    else:
        sizes = (n,)
    reads = 1 if kernel in ONE_ARGUMENT else 2
    return Instruction(
        kernel, draw(view), tuple(draw(view) for _ in range(reads)), sizes
    )


def may_run_in_any_order(operation):
    """The planner never lets one operation write what another of its threads reads."""
    return not order_matters(together(operation))


drawn = st.lists(operations().filter(may_run_in_any_order), max_size=6)


@many
@given(calls=drawn)
def test_groups_are_all_operations_in_order_and_as_large_as_they_may_be(calls):
    launches = fused_groups(calls)
    assert [one for launch in launches for one in launch.operations] == calls
    for launch in launches:
        assert not order_matters(launch)
        assert {prod(one.sizes) for one in launch.operations} == {launch.sizes[0]}
    for one, other in pairwise(launches):
        if one.sizes == other.sizes:
            assert order_matters(together(*one.operations, other.operations[0]))


def test_memory_is_not_reused_within_a_group():
    """The CPU's plan reuses the memory of b here, whose last reader broadcasts it."""
    tape = tm.Tape()
    b = tanh(tape.input("b", (1, 16), per_task=True))
    x = tape.input("x", (16, 16), per_task=True)
    tape.output("y", tanh(x + b) * (x * b))
    (first, second) = device_plan.device_plan(tape).instructions
    assert len(first.operations) == 1 and len(second.operations) == 4


GRIDS = [((1, 1), 1), ((3, 2), 4), ((1, 5), 7), ((40, 1), 1)]


def assert_order_does_not_matter(tape, tasks=3):
    inputs = random_inputs(tape, seed=0, tasks=tasks)
    expected = run_serially(tape, inputs)
    for seed, (grid, threads) in enumerate(GRIDS):
        results = run_serially(tape, inputs, grid=grid, threads=threads, seed=seed)
        for name, array in expected.items():
            assert np.array_equal(results[name], array, equal_nan=True), name


@needs_compiler
@given(program=wide, picks=output_picks)
def test_any_grid_and_any_order_of_threads_give_the_same_bits(program, picks):
    assert_order_does_not_matter(with_outputs(program, picks))


@needs_compiler
def test_any_grid_and_order_give_the_same_bits_of_a_meta_gradient():
    p = problem("cross_entropy", "relu")
    assert_order_does_not_matter(p.maml(steps=2).tape(p.theta, p.tasks))


@needs_compiler
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("for read in extents_read(call)]", "for read in []]"),
        ("overlap(a, b) and a != b", "False"),
        ("sizes = [n, call.sizes[0] * call.sizes[2]]", "pass"),
    ],
)
def test_order_of_threads_matters_where_a_group_is_too_large(monkeypatch, old, new):
    """So the tests above can fail."""
    tape = tm.Tape()
    x, z = (tape.input(name, (4, 4), per_task=True) for name in "xz")
    row = tanh(x).reshape(16)[:4].reshape(1, 4)
    tape.output("y", z + row)
    name = "extents_read" if "sizes" in old else "can_join"
    assert_order_does_not_matter(tape)
    put(monkeypatch, device_plan, name, old, new)
    assert not survives(lambda: assert_order_does_not_matter(tape))
