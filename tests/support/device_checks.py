"""What is checked of plans and programs for a GPU; no mutant of them may pass it."""

import pytest

from tests.backends.cuda import test_cublas, test_device_grids, test_device_program
from tests.backends.cuda.test_chains import BREAK, JOIN, call
from tests.backends.cuda.test_device_plan import check_divisor
from tests.backends.numba.test_planner import meta_gradient_tape, tape_of
from tests.support.device_planning import assert_device_plan_is_sound
from tests.support.kernel_checks import (
    GRID,
    check_convolutions,
    check_elementwise,
    check_pools,
    check_sums,
)
from tests.support.plan_recipes import RECIPES
from tests.support.random_programs import random_inputs
from tests.support.running import assert_close, run_tape
from tests.support.serial_cupy import run_serially
from tinymaml.autodiff.functions import exp, softmax, tanh
from tinymaml.autodiff.tape import Tape
from tinymaml.backends.cuda import cublas
from tinymaml.backends.cuda.device_plan import DevicePlan, chained

NOTICED = (
    *(AssertionError, LookupError, ValueError, MemoryError, ArithmeticError),
    *(cublas.CublasError, pytest.fail.Exception),
)


# --- checks ---------------------------------------------------------------------------


def needed_behind_a_chain():
    """What the first of two operations in a launch made is read after the second's."""
    tape = Tape()
    x, y = (tape.input(name, (4, 4), per_task=True) for name in "xy")
    first, second = tanh(x), exp(y)
    tape.output("out", first @ (second @ y))
    return tape


def sound():
    """Plans, in the memory of a few tasks and of more than there are blocks."""
    for recipe in RECIPES:
        assert_device_plan_is_sound(DevicePlan(tape_of(recipe)), tasks=3)
    assert_device_plan_is_sound(DevicePlan(meta_gradient_tape()), tasks=40)
    assert_device_plan_is_sound(DevicePlan(needed_behind_a_chain()))


def chains():
    """What may be one launch is, and nothing else."""
    for first, second, *_ in BREAK.values():
        assert len(chained([first, second])) == 2
    first = call("tanh", (0, 0), (1, 0))
    for second in JOIN.values():
        assert len(chained([first, second])) == 1
    last = call("tanh", (0, 4), (1, 0))
    assert len(chained([last, call("exp", (2, 0), (0, 0))])) == 1
    for kernel in ("tanh", "pad"):  # of another size, and of another kind
        size = (3,) if kernel == "tanh" else (4,)
        other = call(kernel, (3, 0), (1, 0), sizes=size)
        assert len(chained([other, first, call("exp", (2, 0), (0, 0))])) == 2


def numbers():
    """Recipes, run by shuffled threads."""
    for recipe in RECIPES:
        tape = tape_of(recipe)
        inputs = random_inputs(tape, seed=0, tasks=3)
        results = run_serially(tape, inputs, **GRID)
        for name, array in run_tape(tape, inputs).items():
            assert_close(results[name], array, 1e-11, name)


def of_kernel(check):
    return lambda: check(test_device_program.SerialBackend(**GRID), "float64")


operations, sums, pools = map(of_kernel, (check_elementwise, check_sums, check_pools))
convolutions = of_kernel(check_convolutions)


def divisors():
    for terms in (*range(1, 200), 509, 8 * 127, 1018, 4096):
        check_divisor(terms)


def parts():
    """Tasks in parts: how many, what is added in which order, what stays the same."""
    test_device_program.check_parts(24, 100, 2**14, "float64")
    for free in (2**9, 2**16):
        test_device_program.check_parts(500, 7, free, "float64")
    for tasks, fit in ((13, 5), (13, 1), (70, 40)):
        test_device_program.test_tasks_in_parts_give_the_same_results(
            "float32", tasks, fit
        )


def later():
    """Memory that is gone when it is wanted, or later."""
    for test in (
        test_device_program.test_parts_stay_the_same_whatever_is_free_later,
        test_device_program.test_a_program_recovers_from_a_failed_allocation,
    ):
        with pytest.MonkeyPatch.context() as patch:
            test(patch)


def captures():
    test_device_program.test_numbers_of_tasks_in_use_are_captured_once()


def grows():
    """One program in memory that is just enough for its largest number of tasks."""
    tape = test_device_program.small_tape(200)
    enough = (
        int(test_device_program.bytes_of(DevicePlan(tape), 4, "float64") / 0.9) + 2**11
    )
    program, _ = test_device_program.program_with(tape, "float64", enough)
    for tasks in (1, 2, 3, 4):
        assert program.tasks_per_run(tasks) == tasks
        program(test_device_program.small_inputs(tasks, n=200))


def grids():
    for recipe in RECIPES:
        test_device_grids.assert_grids_fit(tape_of(recipe), tasks=2)
    tape = Tape()
    tape.output("rows", softmax(tape.input("x", (3, 5))))
    test_device_grids.assert_grids_fit(tape, tasks=1)


def handles():
    for tf32, mode in ((False, 0), (True, 3)):
        test_cublas.test_handle_has_stream_workspace_and_mode(tf32, mode)
    test_cublas.test_a_product_is_refused_with_the_function_and_its_status(
        "float64", {"m": 2}
    )


def noticed(check):
    try:
        check()
    except NOTICED:
        return True
    return False
