"""The planner: what it fuses, where it puts things, and what it says of itself."""

import re

import numpy as np
import pytest

import tinymaml as tm
from tests.support.plan_recipes import RECIPES
from tests.support.planning import assert_plan_is_sound
from tests.support.random_programs import random_inputs
from tests.support.running import DTYPES, assert_backends_agree, compile_tape
from tinymaml.autodiff.functions import tanh
from tinymaml.backends.numba.planner import ALIGNMENT, Plan, summary

every_recipe = pytest.mark.parametrize("recipe", RECIPES)


def tape_of(recipe):
    function, _ = RECIPES[recipe]
    tape = tm.Tape()
    for i, value in enumerate(function(tape)):
        tape.output(f"value {i}", value, "sum" if i % 2 else "each")
    return tape


def meta_gradient_tape(**options):
    """Of a small net, one task, and what it needs to be run."""
    network = tm.MLP([2, 8, 3], activation="tanh")

    def loss(theta, x, y):
        return tm.cross_entropy(network(theta, x), y)

    theta = np.zeros(network.size)
    tasks = tm.Tasks(*(np.zeros((1, 4, n)) for n in (2, 3, 2, 3)))
    return tm.MAML(loss, backend="numpy", **options).tape(theta, tasks, parts=True)


@every_recipe
def test_planner_calls_these_kernels(recipe):
    calls = Plan(tape_of(recipe)).instructions
    assert sorted(call.kernel for call in calls) == RECIPES[recipe][1]


@every_recipe
def test_plan_reads_what_was_written(recipe):
    assert_plan_is_sound(Plan(tape_of(recipe)))


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
    assert_plan_is_sound(Plan(tape))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 3])
def test_summary_tells_the_bytes_that_a_thread_gets(dtype, threads):
    tape = meta_gradient_tape()
    (told,) = re.findall(r"([\d,]+) bytes of workspace", summary(tape, dtype))
    program = tm.get_backend("numba", threads).compile(tape, dtype)
    assert len(program.workspaces) == threads
    for row in program.workspaces:
        assert row.nbytes == int(told.replace(",", ""))


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
    # The input and the output stay; the 19 values between take turns in two places.
    assert Plan(tape).size == 4 * ALIGNMENT


def test_buffers_of_threads_start_on_cache_lines():
    program = tm.get_backend("numba", 3).compile(meta_gradient_tape(), "float32")
    for row in program.workspaces:
        assert row.ctypes.data % 64 == 0


@every_recipe
def test_program_run_again_gives_the_same_and_keeps_earlier_results(recipe):
    tape = tape_of(recipe)
    first, second = (random_inputs(tape, seed, tasks=5) for seed in (0, 1))
    program = compile_tape(tape, "numba", threads=2)
    once = program(first)
    kept = {name: array.copy() for name, array in once.items()}
    program(second)
    twice = program(first)
    for name in once:
        assert np.array_equal(once[name], kept[name])
        assert np.array_equal(twice[name], kept[name])
