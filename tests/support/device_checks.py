"""Named checks of plans and programs for a GPU; each mutant must fail one of them."""

import pytest

from tests.backends.cuda import (
    test_cublas,
    test_device_grids,
    test_device_plan,
    test_device_program,
)
from tests.backends.cuda.test_device_plan import (
    check_calls,
    check_divisor,
    check_weight_gradients,
)
from tests.backends.cuda.test_fused_groups import BREAK, JOIN, call
from tests.support.device_planning import assert_device_plan_is_sound
from tests.support.kernel_checks import (
    GRID,
    check_convolutions,
    check_elementwise,
    check_pools,
    check_sums,
)
from tests.support.plan_recipes import RECIPES
from tests.support.planning import meta_gradient_tape, tape_of
from tests.support.random_programs import random_inputs
from tests.support.running import assert_close, run_tape
from tests.support.serial_cupy import run_serially
from tinymaml.autodiff.functions import exp, softmax, tanh
from tinymaml.autodiff.tape import Tape
from tinymaml.backends.cuda import cublas
from tinymaml.backends.cuda.device_plan import device_plan, fused_groups, parts_of

NOTICED = (
    *(AssertionError, LookupError, ValueError, MemoryError, ArithmeticError),
    *(cublas.CublasError, pytest.fail.Exception),
)


# --- checks ---------------------------------------------------------------------------


def first_result_is_read_last():
    """Of two operations in a launch, the first's result is read after the second's."""
    tape = Tape()
    x, y = (tape.input(name, (4, 4), per_task=True) for name in "xy")
    first, second = tanh(x), exp(y)
    tape.output("out", first @ (second @ y))
    return tape


def sound():
    """Plans for a few tasks, and for more tasks than there are blocks, are sound."""
    for recipe in RECIPES:
        assert_device_plan_is_sound(device_plan(tape_of(recipe)), tasks=3)
    assert_device_plan_is_sound(device_plan(meta_gradient_tape()), tasks=40)
    assert_device_plan_is_sound(device_plan(first_result_is_read_last()))


def groups():
    """Operations are fused if they may be, and only then."""
    for first, second, *_ in BREAK.values():
        assert len(fused_groups([first, second])) == 2
    first = call("tanh", (0, 0), (1, 0))
    for second in JOIN.values():
        assert len(fused_groups([first, second])) == 1
    last = call("tanh", (0, 4), (1, 0))
    assert len(fused_groups([last, call("exp", (2, 0), (0, 0))])) == 1
    for kernel in ("tanh", "pad"):  # of another size, and of another kind
        size = (3,) if kernel == "tanh" else (4,)
        other = call(kernel, (3, 0), (1, 0), sizes=size)
        assert len(fused_groups([other, first, call("exp", (2, 0), (0, 0))])) == 2


def numbers():
    """Recipes give the reference's numbers when their threads run in any order."""
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


def long_products():
    """Products in parts, for tasks that follow each other and for others; and whole."""
    check_weight_gradients(shared=False, parts=2)
    check_weight_gradients(shared=True, parts=2)
    assert parts_of(1030) == 5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_device_plan.plans, "FEW_RESULTS", 71)
        check_weight_gradients(shared=False, parts=None)


def calls():
    """No call of the library does more products than it may."""
    check_calls(most=65_535, calls=1)
    check_calls(most=5, calls=3)


def parts():
    """Tasks that do not fit together are run in equal parts, and summed in order."""
    test_device_program.check_parts(24, 100, 2**14, "float64")
    for free in (2**9, 2**16):
        test_device_program.check_parts(500, 7, free, "float64")
    for tasks, fit in ((13, 5), (13, 1), (70, 40)):
        test_device_program.test_tasks_in_parts_give_the_same_results(
            "float32", tasks, fit
        )


def later():
    """Programs go on after memory was short, in one call or between two."""
    for test in (
        test_device_program.test_parts_stay_the_same_whatever_is_free_later,
        test_device_program.test_a_program_recovers_from_a_failed_allocation,
    ):
        with pytest.MonkeyPatch.context() as patch:
            test(patch)


def captures():
    test_device_program.test_numbers_of_tasks_in_use_are_captured_once()


def grows():
    """A program frees its memory before it takes more for more tasks."""
    tape = test_device_program.small_tape(200)
    enough = (
        int(test_device_program.bytes_of(device_plan(tape), 4, "float64") / 0.9) + 2**11
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
