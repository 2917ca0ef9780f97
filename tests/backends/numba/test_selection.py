"""Selection: which kernel calls run a tape."""

import pytest

import tinymaml as tm
from tests.support.plan_recipes import RECIPES
from tests.support.planning import tape_of
from tinymaml.autodiff.functions import tanh
from tinymaml.autodiff.tape import PRIMITIVES
from tinymaml.backends.cuda.device_plan import GPU_RULES
from tinymaml.backends.numba.fusion import fuse
from tinymaml.backends.numba.planner import plan
from tinymaml.backends.numba.selection import (
    CPU_RULES,
    Selection,
    View,
    can_accumulate,
    select,
)


@pytest.mark.parametrize("recipe", RECIPES)
def test_planner_calls_these_kernels(recipe):
    calls = plan(tape_of(recipe)).instructions
    assert sorted(call.kernel for call in calls) == RECIPES[recipe][1]


@pytest.mark.parametrize("rules", [CPU_RULES, GPU_RULES])
def test_every_primitive_has_a_rule(rules):
    assert {*rules} == {*PRIMITIVES}


def test_a_rule_may_be_replaced():
    tape = tm.Tape()
    tape.output("out", tanh(tape.input("x", (3,))))

    def select_slow_tanh(selection, index, node):
        selection.emit("slow tanh", index, selection.reads(node), (3,))

    rules = {**CPU_RULES, "tanh": select_slow_tanh}
    (call,) = select(fuse(tape, can_accumulate), rules).instructions
    assert call.kernel == "slow tanh"


def test_a_primitive_without_a_kernel_is_named():
    tape = tm.Tape()
    tape.output("out", tanh(tape.input("x", (3,))))
    rules = {name: rule for name, rule in CPU_RULES.items() if name != "tanh"}
    with pytest.raises(ValueError, match="^primitive: .* a kernel, got 'tanh'$"):
        select(fuse(tape, can_accumulate), rules)


def test_constants_of_one_number_and_size_share_memory():
    selection = Selection(fuse(tm.Tape(), can_accumulate), CPU_RULES)
    one = selection.constant(2.0, 3)
    assert selection.constant(2.0, 3) == one
    assert selection.constant(2.0, 4) != one
    assert selection.constant(1.0, 3) != one
    assert selection.constant(0.0, 3) != selection.constant(-0.0, 3)
    numbers = [(number, size) for number, _, size in selection.constants]
    assert numbers == [(2.0, 3), (2.0, 4), (1.0, 3), (0.0, 3), (-0.0, 3)]
    assert selection.buffer_sizes == [3, 4, 3, 3, 3]


def test_a_result_is_shared_by_all_who_want_it():
    selection = Selection(fuse(tm.Tape(), can_accumulate), CPU_RULES)
    view = selection.new_buffer(12)
    one = selection.emit_once("transpose", 12, view, (4, 3))
    assert selection.emit_once("transpose", 12, view, (4, 3)) == one
    assert len(selection.instructions) == 1
    assert selection.emit_once("transpose", 12, view, (3, 4)) != one
    assert selection.emit_once("transpose", 12, view.shifted(1), (4, 3)) != one
    assert len(selection.instructions) == 3


def test_shifted_view_is_in_the_same_buffer():
    assert View(2, 5).shifted(3) == View(2, 8)


def test_selecting_does_not_change_the_fusion():
    """So one fusion may be selected for with two tables of rules."""
    fusion = fuse(tape_of("product_accumulates_inside_a_concat"), can_accumulate)
    first, second = (select(fusion, CPU_RULES) for _ in range(2))
    assert first.instructions == second.instructions
    assert first.buffer_sizes == second.buffer_sizes
