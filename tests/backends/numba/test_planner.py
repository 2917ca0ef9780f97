"""The planner: where buffers lie, what the plan computes, and its summary."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinymaml as tm
from tests.support.plan_recipes import RECIPES
from tests.support.planning import (
    assert_plan_is_sound,
    meta_gradient_tape,
    tape_of,
)
from tests.support.random_programs import random_inputs
from tests.support.running import DTYPES, assert_backends_agree, compile_tape
from tinymaml.autodiff.functions import tanh
from tinymaml.backends.numba.planner import ALIGNMENT, lowest_offsets, plan, summary

every_recipe = pytest.mark.parametrize("recipe", RECIPES)


@every_recipe
def test_plan_reads_what_was_written(recipe):
    assert_plan_is_sound(plan(tape_of(recipe)))


@every_recipe
@pytest.mark.parametrize("dtype", DTYPES)
def test_backends_agree_where(recipe, dtype):
    tape = tape_of(recipe)
    for tasks in (1, 3):
        assert_backends_agree(tape, random_inputs(tape, seed=tasks, tasks=tasks), dtype)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("recompute", [False, True])
def test_plan_of_a_meta_gradient_reads_what_was_written(steps, recompute):
    tape = meta_gradient_tape(steps=steps, recompute=recompute)
    assert_plan_is_sound(plan(tape))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 3])
def test_summary_prints_the_bytes_that_a_thread_gets(dtype, threads):
    tape = meta_gradient_tape()
    (printed,) = re.findall(r"([\d,]+) bytes of workspace", summary(tape, dtype))
    program = tm.get_backend("numba", threads).compile(tape, dtype)
    assert len(program.workspaces) == threads
    for row in program.workspaces:
        assert row.nbytes == int(printed.replace(",", ""))


@pytest.mark.parametrize("dtype", ["int8", "float16", "float31", object])
def test_a_summary_in_another_dtype_is_refused(dtype):
    with pytest.raises(TypeError, match="^dtype: expected float32 or float64, got"):
        summary(meta_gradient_tape(), dtype)


def test_summary_counts_live_operations_and_their_flops():
    tape = tm.Tape()
    x, w = tape.input("x", (5, 3)), tape.input("w", (3, 7))
    tape.output("loss", tanh(x @ w).sum())
    (x @ w * 2.0).sum()  # recorded, and no output depends on it
    table = [line.split() for line in summary(tape).splitlines()]
    assert ["matmul", "1", "210"] in table  # 2 * 5 * 3 * 7
    assert ["tanh", "1", "35"] in table
    assert ["sum", "1", "35"] in table
    assert not any(line[0] == "scale" for line in table)
    assert tape.flops() == 210 + 35 + 35


def test_buffers_are_reused_along_a_chain():
    tape = tm.Tape()
    value = tape.input("x", (ALIGNMENT,))
    for _ in range(20):
        value = tanh(value)
    tape.output("y", value)
    # Input and output have buffers of their own; the 19 values between share two.
    assert plan(tape).size == 4 * ALIGNMENT


def offsets_of(*buffers):
    """lowest_offsets of (size, first, last) of each buffer."""
    return lowest_offsets(*np.array(buffers).T).tolist()


def test_buffers_that_are_needed_at_one_time_lie_side_by_side():
    assert offsets_of((16, 0, 1), (16, 1, 2), (16, 2, 3)) == [0, 16, 0]


def test_large_buffers_are_placed_first_and_small_ones_in_gaps():
    # The third lies where the first was. Between it and the second is a gap of 16, too
    # small for the fourth and just enough for the fifth.
    buffers = (64, 0, 1), (48, 1, 3), (48, 3, 4), (32, 3, 3), (16, 3, 3)
    assert offsets_of(*buffers) == [0, 64, 0, 112, 48]


@given(st.lists(st.tuples(*[st.integers(0, 6)] * 3), min_size=1, max_size=12))
def test_each_buffer_lies_at_the_first_place_that_is_free(buffers):
    """Large buffers first, each tried at 0, 1, 2 and so on."""
    sizes, first, lengths = np.array(buffers).T
    last = first + lengths
    offsets = np.full(len(buffers), -1)
    for buffer in np.argsort(-sizes, kind="stable"):
        others = (offsets >= 0) & (first <= last[buffer]) & (first[buffer] <= last)
        starts, stops = offsets[others], (offsets + sizes)[others]
        offsets[buffer] = next(
            place
            for place in range(sizes.sum() + 1)
            if ((stops <= place) | (place + sizes[buffer] <= starts)).all()
        )
    assert lowest_offsets(sizes, first, last).tolist() == offsets.tolist()


def test_buffers_of_threads_start_on_cache_lines():
    program = tm.get_backend("numba", 3).compile(meta_gradient_tape(), "float32")
    for row in program.workspaces:
        assert row.ctypes.data % 64 == 0


@every_recipe
def test_program_run_twice_gives_the_same_and_leaves_earlier_results_alone(recipe):
    tape = tape_of(recipe)
    first, second = (random_inputs(tape, seed, tasks=5) for seed in (0, 1))
    program = compile_tape(tape, "numba", threads=2)
    once = program(first)
    copies = {name: array.copy() for name, array in once.items()}
    program(second)
    twice = program(first)
    for name in once:
        assert np.array_equal(once[name], copies[name])
        assert np.array_equal(twice[name], copies[name])
