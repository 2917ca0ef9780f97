"""Programs on a device: sums over tasks, tasks in parts, and graphs that are cached.

They run on a stand-in for a GPU whose new memory holds NaN.
"""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinymaml as tm
from tests.backends.test_random_programs import output_picks, wide, with_outputs
from tests.support.random_programs import random_inputs
from tests.support.running import AGREE, DTYPES, all_values, assert_close, run_tape
from tests.support.serial_cupy import WHY_NOT, SerialBackend, run_serially
from tinymaml.autodiff.convolution import max_pool
from tinymaml.autodiff.functions import (
    exp,
    log,
    logsumexp,
    relu,
    rsqrt,
    softmax,
)
from tinymaml.backends.cuda.device_plan import device_plan
from tinymaml.backends.cuda.device_program import (
    BLOCKS,
    CACHED_GRAPHS,
    MEMORY_FRACTION,
    MOST_ELEMENTS,
    Layout,
)

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
many = settings(max_examples=5 * settings().max_examples)
task_counts = pytest.mark.parametrize("tasks", [1, 31, 32, 33, 100])


def small_tape(n=5):
    """x of each task and shared w; the products of both of each task, and their sum."""
    tape = tm.Tape()
    x, w = tape.input("x", (n,), per_task=True), tape.input("w", (n,))
    tape.output("each", x * w)
    tape.output("sum", x * w, "sum")
    tape.output("loss", (x * w).sum(), "sum")
    tape.output("w", w * 2.0, "sum")
    return tape


def small_inputs(tasks, dtype="float64", n=5, seed=0):
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal((tasks, n)), rng.standard_normal(n)
    return {"x": x.astype(dtype), "w": w.astype(dtype)}


def in_order(rows):
    """The sum of rows, first to last, rounded after each addition."""
    total = np.zeros_like(rows[0])
    for row in rows:
        total = total + row
    return total


def in_blocks(rows):
    """The sum of 32 sums of neighbouring rows."""
    edges = np.arange(BLOCKS + 1) * len(rows) // BLOCKS
    blocks = [rows[a:b] for a, b in zip(edges[:-1], edges[1:], strict=True) if b > a]
    return in_order([in_order(block) for block in blocks])


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype
        assert np.array_equal(actual[name], array, equal_nan=True), name


# --- sums over tasks ------------------------------------------------------------------


@every_dtype
@task_counts
def test_sums_over_tasks_are_sums_of_blocks_in_order(tasks, dtype):
    inputs = small_inputs(tasks, dtype)
    results = run_serially(small_tape(), inputs, dtype)
    products = inputs["x"] * inputs["w"]
    losses = np.array([in_order(row) for row in products])
    assert_same(
        results,
        {
            "each": products,
            "sum": in_blocks(products),
            "loss": in_blocks(losses),
            "w": in_blocks(np.tile(2 * inputs["w"], (tasks, 1))),
        },
    )


@given(tasks=st.integers(1, 300))
def test_every_task_is_in_one_block(tasks):
    tape = small_tape(1)
    ones = {"x": np.arange(1.0, tasks + 1)[:, None], "w": np.ones(1)}
    assert run_serially(tape, ones)["loss"] == tasks * (tasks + 1) / 2


# --- tasks in parts -------------------------------------------------------------------


def bytes_of(plan, tasks, dtype):
    return Layout(plan, tasks).size * np.dtype(dtype).itemsize


def program_with(tape, dtype, free):
    """(a program on a stand-in with `free` bytes of memory, the stand-in)."""
    backend = SerialBackend()
    backend.cupy.free = free
    return backend.compile(tape, dtype), backend.cupy


def check_parts(n, tasks, free, dtype):
    """As few as memory allows, and as equal as they can be."""
    tape = tm.Tape()  # large inputs, small workspace
    tape.output("loss", tape.input("x", (n,), per_task=True).sum(), "sum")
    program, _ = program_with(tape, dtype, free)
    fitting = [
        count
        for count in range(1, tasks + 1)
        if bytes_of(program.plan, count, dtype) <= MEMORY_FRACTION * free
    ]
    if not fitting:
        with pytest.raises(MemoryError, match="backend: one task"):
            program.tasks_per_run(tasks)
        return
    together = program.tasks_per_run(tasks)
    assert together in fitting
    parts = -(-tasks // together)
    assert parts == -(-tasks // fitting[-1])  # no fewer parts would do
    assert together == -(-tasks // parts)  # and the largest is no larger than it must


@many
@given(
    n=st.integers(1, 70),
    tasks=st.integers(1, 100),
    free=st.integers(0, 100).map(lambda n: 640 * n + 320),  # no size fits by a hair
    dtype=st.sampled_from(DTYPES),
)
def test_tasks_are_run_in_as_few_equal_parts_as_fit(n, tasks, free, dtype):
    check_parts(n, tasks, free, dtype)


@every_dtype
@pytest.mark.parametrize(("tasks", "fit"), [(13, 1), (13, 5), (70, 40), (6, 2), (3, 3)])
def test_tasks_in_parts_give_the_same_results(dtype, tasks, fit):
    """Sums are those of the parts, added in order."""
    tape, inputs = small_tape(500), small_inputs(tasks, dtype, 500)
    program, cupy = program_with(
        tape, dtype, int(bytes_of(device_plan(tape), fit, dtype) / MEMORY_FRACTION) + 9
    )
    together = program.tasks_per_run(tasks)
    assert together <= fit
    results = program(inputs)
    products = inputs["x"] * inputs["w"]
    starts = range(0, tasks, together)
    parts = [products[start : start + together] for start in starts]
    assert np.array_equal(results["each"], products)
    assert np.array_equal(results["sum"], in_order([in_blocks(part) for part in parts]))
    whole = run_serially(tape, inputs, dtype)
    assert_close(results["loss"], whole["loss"], AGREE[dtype])
    assert_same(program(inputs), results)
    program(small_inputs(1, dtype, 500))
    assert_same(program(inputs), results)


@every_dtype
def test_a_task_that_does_not_fit_is_refused_with_remedies(dtype):
    tape = small_tape(2_000_000)
    itemsize = np.dtype(dtype).itemsize
    needed = bytes_of(device_plan(tape), 1, dtype)
    assert 5 * 2_000_000 * itemsize <= needed < 10 * 2_000_000 * itemsize
    program, cupy = program_with(tape, dtype, needed)  # all of it; a tenth is left free
    inputs = small_inputs(3, dtype, 2_000_000)
    with pytest.raises(MemoryError) as caught:
        program(inputs)
    text = str(caught.value)
    reported = [float(number) for number in re.findall(r"([\d.]+) GB", text)]
    most = MOST_ELEMENTS * itemsize
    expected = [needed / 1e9, MEMORY_FRACTION * needed / 1e9, most / 1e9]
    assert reported == pytest.approx(expected, rel=0.005)
    for remedy in ("fewer examples", "inner steps", "recompute=True", "float32"):
        assert remedy in text
    cupy.free = 2 * needed  # another program is gone
    assert np.array_equal(program(inputs)["each"], inputs["x"] * inputs["w"])


def test_parts_stay_the_same_whatever_is_free_later(monkeypatch):
    """Else sums would have other bits; and a program's own memory is enough for it."""
    tape, inputs = small_tape(500), small_inputs(33, "float32", 500)
    for fit in (33, 5):
        enough = int(bytes_of(device_plan(tape), fit, "float32") / MEMORY_FRACTION) + 9
        program, _ = program_with(tape, "float32", enough)
        results = program(inputs)
        for free in (0, 2**10, 2**40):
            monkeypatch.setattr(program.device, "free_bytes", lambda free=free: free)
            assert_same(program(inputs), results)
            assert program.tasks_per_run(fit) == fit


def test_a_program_recovers_from_a_failed_allocation(monkeypatch):
    tape, plan = small_tape(500), device_plan(small_tape(500))
    enough = int(bytes_of(plan, 8, "float64") / MEMORY_FRACTION) + 2**10
    program, _ = program_with(tape, "float64", enough)
    program(small_inputs(4, n=500))
    inputs = small_inputs(40, n=500)
    with monkeypatch.context() as others:  # another program takes it meanwhile
        others.setattr(program.device, "free_bytes", lambda: 2**40)
        with pytest.raises(MemoryError, match="out of memory"):
            program(inputs)
    assert np.array_equal(program(inputs)["each"], inputs["x"] * inputs["w"])
    assert program.tasks_per_run(40) == 8


# --- graphs that are cached -----------------------------------------------------------


@settings(max_examples=2 * settings().max_examples)
@given(counts=st.lists(st.integers(1, 9), min_size=2, max_size=12), free=st.booleans())
def test_a_program_serves_any_numbers_of_tasks_in_turn(counts, free):
    """Whatever was run before; in all memory or in just enough for 4 tasks."""
    tape = small_tape(200)
    enough = int(bytes_of(device_plan(tape), 4, "float64") / MEMORY_FRACTION) + 9
    program, _ = program_with(tape, "float64", 2**30 if free else enough)
    for seed, tasks in enumerate(counts):
        inputs = small_inputs(tasks, n=200, seed=seed)
        products = inputs["x"] * inputs["w"]
        results = program(inputs)
        assert np.array_equal(results["each"], products)
        assert_close(results["sum"], products.sum(axis=0), 1e-13)
        assert len(program._captured) <= CACHED_GRAPHS


def count_captures(backend):
    """A list of the number of calls in each graph that is captured from now on."""
    counted, recorder = [], backend.cupy.queue
    call = recorder.call

    def counting(*arguments):
        if recorder.recorded is not None:
            if not recorder.recorded:
                counted.append(0)
            counted[-1] += 1
        return call(*arguments)

    recorder.call = counting
    return counted


def test_numbers_of_tasks_in_use_are_captured_once():
    backend = SerialBackend()
    captured = count_captures(backend)
    program = backend.compile(small_tape(), "float64")
    in_use = range(3 + CACHED_GRAPHS, 3, -1)
    for _ in range(3):
        for tasks in in_use:
            program(small_inputs(tasks))
    assert len(captured) == CACHED_GRAPHS
    program(small_inputs(1))  # replaces the smallest
    program(small_inputs(3 + CACHED_GRAPHS))
    assert len(captured) == CACHED_GRAPHS + 1
    program(small_inputs(4))
    assert len(captured) == CACHED_GRAPHS + 2


@many
@given(program=wide, picks=output_picks)
def test_launches_are_what_a_replay_really_does(program, picks):
    backend = SerialBackend()
    captured = count_captures(backend)
    tape = with_outputs(program, picks)
    compiled = backend.compile(tape, "float64")
    inputs = random_inputs(tape, seed=0, tasks=2)
    compiled({name: np.array(array) for name, array in inputs.items()})
    assert captured == [compiled.launches]


@every_dtype
@pytest.mark.parametrize(("grid", "threads"), [((1, 1), 1), ((2, 3), 5), ((7, 40), 1)])
def test_the_same_bits_in_every_call_and_in_any_order_of_threads(dtype, grid, threads):
    tape, inputs = small_tape(), small_inputs(33, dtype)
    expected = run_serially(tape, inputs, dtype)
    backend = SerialBackend(grid=grid, threads=threads, seed=0)
    program = backend.compile(tape, dtype)
    for _ in range(3):
        assert_same(program(inputs), expected)


def test_results_of_a_call_are_the_callers():
    program = SerialBackend().compile(small_tape(), "float64")
    first, second = (small_inputs(3, seed=seed) for seed in (0, 1))
    results = program(first)
    copies = {name: array.copy() for name, array in results.items()}
    program(second)
    assert_same(results, copies)


# --- numbers --------------------------------------------------------------------------


@every_dtype
@many
@given(program=wide, picks=output_picks, seed=st.integers(0, 2**16))
def test_everything_read_was_sent_or_written_before(dtype, program, picks, seed):
    """Else it would be NaN; and the numbers are those of the reference."""
    tape = with_outputs(program, picks)
    inputs = random_inputs(tape, seed, tasks=3)
    inputs = {name: np.array(array, dtype) for name, array in inputs.items()}
    results, expected = (
        run_serially(tape, inputs, dtype),
        run_tape(tape, inputs, "numpy", dtype),
    )
    values = all_values(tape, inputs)
    floor = max(np.abs(array).max() for array in values.values())
    assert results.keys() == expected.keys()
    for name, array in expected.items():
        assert results[name].dtype == array.dtype == dtype
        assert np.isfinite(results[name]).all()
        assert_close(results[name], array, AGREE[dtype], name, floor)


SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -2.0, 800.0]


def reciprocal(x):
    return 1 / x


FUNCTIONS = (exp, log, reciprocal, rsqrt, relu, softmax, logsumexp)


@every_dtype
def test_nan_and_infinity_are_results(dtype):
    tape = tm.Tape()
    x, y = (tape.input(name, (1, 2, 2, 1), per_task=True) for name in "xy")
    row = x.reshape(2, 2)
    for function in FUNCTIONS:
        tape.output(function.__name__, function(row))
    for name in ("add", "sub", "mul", "gate"):
        tape.output(name, tape.record(name, x, y))
        tape.output(f"sum of {name}", tape.record(name, x, y).sum(), "sum")
    tape.output("product", row @ y.reshape(2, 2))
    tape.output("pooled", max_pool(x, 2))
    tape.output("scattered", tape.record("max_scatter", max_pool(y, 2), x, size=2))
    rng = np.random.default_rng(0)
    with np.errstate(all="ignore"):
        inputs = {
            name: rng.choice(SPECIAL, (200, 1, 2, 2, 1)).astype(dtype) for name in "xy"
        }
        expected = run_tape(tape, inputs, "numpy", dtype)
        results = run_serially(tape, inputs, dtype)
    for name, array in expected.items():
        each = tape.outputs[name].reduction == "each"
        assert np.isnan(array).any() and (not each or np.isfinite(array).any()), name
        np.testing.assert_allclose(
            results[name], array, 10 * AGREE[dtype], err_msg=name
        )
