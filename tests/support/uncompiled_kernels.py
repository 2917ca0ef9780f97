"""Tests of the kernels as plain Python; numba/test_kernels.py runs this file.

    NUMBA_DISABLE_JIT=1 pytest tests/support/uncompiled_kernels.py

A plan is run instruction by instruction on a NumPy array. So a debugger can step
through a kernel, coverage can see it, and a mutant of a kernel is tested without
compiling it. The kernels for images are tested in uncompiled_image_kernels.py.
"""

from functools import cache

import numpy as np
import pytest
from numba import config

from tests.backends.numba.test_planner import tape_of
from tests.support.mutants import mutated, put, survives
from tests.support.plan_recipes import RECIPES
from tests.support.primitive_cases import CASES
from tests.support.primitive_checks import derivative_inputs, derivative_tape
from tests.support.product_checks import check_product, check_products
from tests.support.random_programs import random_inputs
from tests.support.running import (
    AGREE,
    DTYPES,
    all_values,
    assert_close,
    largest,
    run_tape,
)
from tinymaml.autodiff.tape import Tape
from tinymaml.backends.numba import image_kernels, kernels, planner
from tinymaml.backends.numba.backend import KERNELS

every_dtype = pytest.mark.parametrize("dtype", DTYPES)
STRIPS = {8: (4, 8), 4: (2, 4), 5: (2, 5, True), 1: (8, 1, True)}  # in kernels.py
SLACK = 64  # elements behind the workspace: a mutant that goes too far ends there


def is_kernel(function):
    code = getattr(function, "__code__", None)
    return code is not None and code.co_varnames[: code.co_argcount] == ("w", "args")


def run_uncompiled(tape, inputs, dtype, plan=None):
    """The outputs for one task; memory that nobody wrote is NaN."""
    plan = plan or planner.plan(tape)
    w = np.full(plan.size + SLACK, np.nan, dtype)
    for start, size, number in plan.constant_ranges():
        w[start : start + size] = number
    for name, placeholder in tape.inputs.items():
        if placeholder.node in plan.views:
            start = plan.offset_of(placeholder.node)
            array = np.ravel(inputs[name][0] if placeholder.per_task else inputs[name])
            w[start : start + array.size] = array
    for call in plan.instructions:
        offsets = [plan.offset(view) for view in (call.out, *call.reads)]
        KERNELS[call.kernel](w, np.array([*offsets, *call.sizes]))
    outputs = {}
    for name, output in tape.outputs.items():
        start = plan.offset_of(output.node)
        array = w[start : start + int(np.prod(output.shape))]
        outputs[name] = array.reshape(output.shape)
    return outputs


def prepared(tape, inputs, dtype):
    """A tape with its plan, inputs and results; none depends on a broken kernel."""
    inputs = {name: np.array(a, dtype) for name, a in inputs.items()}
    expected = run_tape(tape, inputs, "numpy", dtype)
    floor = largest(all_values(tape, inputs))
    return tape, planner.plan(tape), inputs, dtype, expected, floor


@cache
def prepared_primitive(name, call, dtype):
    shapes, attributes = CASES[name].odd[call]
    tape = derivative_tape(name, shapes, attributes)
    inputs = derivative_inputs(tape, name, shapes, attributes, call)
    return prepared(tape, inputs, dtype)


@cache
def prepared_recipe(recipe, dtype):
    tape = tape_of(recipe)
    return prepared(tape, random_inputs(tape, seed=0, tasks=1), dtype)


def check(tape, plan, inputs, dtype, expected, floor):
    for name, actual in run_uncompiled(tape, inputs, dtype, plan).items():
        each = tape.outputs[name].reduction == "each"
        array = expected[name][0] if each else expected[name]
        assert actual.dtype == dtype
        assert_close(actual, array, AGREE[dtype], name, floor)


def check_primitive(name, dtype="float64"):
    for call in range(len(CASES[name].odd)):
        check(*prepared_primitive(name, call, dtype))


def check_recipe(recipe, dtype="float64"):
    check(*prepared_recipe(recipe, dtype))


def check_extremes():
    """No overflow in rows of logits, and NaN stays NaN."""
    tape = Tape()
    x = tape.input("x", (2, 3))
    for name in ("softmax", "logsumexp"):
        tape.output(name, tape.record(name, x))
    inputs = {"x": np.array([[1e3, -1e3, 999.0], [-1e4, -1e4, -1e4]])}
    check(*prepared(tape, inputs, "float64"))
    tape = Tape()
    x = tape.input("x", (3,))
    tape.output("relu", tape.record("relu", x))
    tape.output("gate", tape.record("gate", tape.constant(2.0, (3,)), x))
    results = run_uncompiled(tape, {"x": np.array([np.nan, -1.0, 1.0])}, "float64")
    assert np.array_equal(results["relu"], [np.nan, 0.0, 1.0], equal_nan=True)
    assert results["gate"].tolist() == [2.0, 0.0, 2.0]


def test_compiler_is_off():
    assert config.DISABLE_JIT


@every_dtype
@pytest.mark.parametrize("primitive", CASES)
def test_kernels_compute_the_derivatives_of_every_primitive(primitive, dtype):
    check_primitive(primitive, dtype)


@every_dtype
@pytest.mark.parametrize("recipe", RECIPES)
def test_kernels_compute_every_recipe(recipe, dtype):
    check_recipe(recipe, dtype)


@pytest.mark.parametrize("wide", [False, True])
@every_dtype
def test_product_is_exact_and_writes_nothing_else(monkeypatch, dtype, wide):
    monkeypatch.setattr(kernels, "WIDE", wide)
    check_products(kernels.matmul, dtype)


def test_product_needs_room_behind_its_operands():
    with pytest.raises(ValueError, match="shape"):
        check_product(kernels.matmul, "float64", (1, 1, 1), False, 0, slack=2)
    check_product(kernels.matmul, "float64", (1, 1, 1), False, 0, slack=3)


def test_kernels_survive_extremes():
    check_extremes()


def test_every_kernel_is_listed():
    modules = vars(kernels) | vars(image_kernels)
    assert {name for name, value in modules.items() if is_kernel(value)} == set(KERNELS)


def test_these_tapes_call_every_kernel():
    tapes = [tape_of(recipe) for recipe in RECIPES]
    tapes += [derivative_tape(r, *call) for r, c in CASES.items() for call in c.odd]
    called = {call.kernel for tape in tapes for call in planner.plan(tape).instructions}
    assert called == set(KERNELS)


PRODUCTS = {
    "C is never added to": ("_tile_kernel", "if accumulate:", "if False:"),
    "the last term is missing": (
        "_tile_kernel",
        "range(counts[2])",
        "range(counts[2] - 1)",
    ),
    "A is read by rows": ("_tile_kernel", "p += a_steps[2]", "p += a_step"),
    "no store is masked": ("_tile_kernel", "masked and columns", "False and columns"),
    "the mask lacks a column": ("_tile_kernel", "columns < vec", "columns + 1 < vec"),
    "a masked store is short": (
        "_tile_kernel",
        "c_step, columns)",
        "c_step, columns - 1)",
    ),
    "a whole store is short": (
        "_tile_kernel",
        "c_step, vectors * lanes(w))",
        "c_step, vectors * lanes(w) - 1)",
    ),
    "the last tile is missing": ("_strip_kernel", "i + rows <= m:", "i + rows < m:"),
    "a tile reaches below C": ("_strip_kernel", "i + rows <= m:", "i + rows <= m + 1:"),
    "no pairs of rows": (
        "_strip_kernel",
        "while rows > 2 and i + 2 <= m",
        "while False",
    ),
    "a pair reaches below C": ("_strip_kernel", "i + 2 <= m", "i + 2 <= m + 1"),
    "the last row is missing": ("_strip_kernel", "if i < m", "if False"),
    "a strip of five is too wide": (
        "product",
        "4 * width < n - j < 5 * width",
        "width < n - j < 5 * width",
    ),
    "a strip of five has no mask": (
        "product",
        "accumulate, n - j)",
        "accumulate, 5 * width)",
    ),
    "the last columns are missing": (
        "product",
        "while j < n:",
        "while j + width <= n:",
    ),
    "the last vector has no mask": ("product", "min(n - j, width)", "width"),
    "sums end after the first part": (
        "matmul",
        "range(0, k, NEAR_TERMS)",
        "range(0, NEAR_TERMS, NEAR_TERMS)",
    ),
    "parts of A ignore its step": ("matmul", "a + p * k_step", "a + p"),
    "parts of B ignore its step": ("matmul", "b + p * n", "b + p"),
    "the last part is too long": ("matmul", "min(k - p, NEAR_TERMS)", "NEAR_TERMS"),
    "later parts overwrite": ("matmul", "accumulate or p", "accumulate"),
    "the first part overwrites": ("matmul", "accumulate or p", "p"),
}


@pytest.mark.parametrize(("kernel", "old", "new"), PRODUCTS.values(), ids=PRODUCTS)
def test_broken_product_is_caught(monkeypatch, kernel, old, new):
    put(monkeypatch, kernels, kernel, old, new)
    for vectors, options in STRIPS.items():
        strip = kernels._strip_kernel(*options)
        monkeypatch.setattr(kernels, f"strip_{vectors}", strip)
    assert not survives(lambda: check_products(kernels.matmul, "float64"))


MUTANTS = {
    "dots add when they must not": (
        "dots",
        "if accumulate else",
        "if not accumulate else",
    ),
    "dots lack a term": ("dots", "NEAR_TERMS, k))", "NEAR_TERMS, k - 1))"),
    "transpose lacks a row": ("transpose", "while i < m:", "while i < m - 1:"),
    "transpose lacks a column": ("transpose", "while j < n:", "while j < n - 1:"),
    "swap exchanges the wrong axes": (
        "swap",
        "(o * m + i) * n + j",
        "(o * n + j) * m + i",
    ),
    "swap lacks the outer axis": ("swap", "(o * m + i) * n", "i * n"),
    "swap lacks an element": (
        "swap",
        "for p in range(inner)",
        "for p in range(1, inner)",
    ),
    "swap has another step": ("swap", "out += inner", "out += inner + 1"),
    "gate is upside down": ("gate", "w[y + i] <= zero", "w[y + i] >= zero"),
    "gate stops NaN": ("gate", "w[y + i] <= zero", "not w[y + i] > zero"),
    "relu lacks an element": ("relu", "for i in range(n)", "for i in range(n - 1)"),
    "relu stops NaN": ("relu", "w[x + i] <= zero", "not w[x + i] > zero"),
    "add_relu has another kink": ("add_relu", "total <= zero", "total <= 1"),
    "scale lacks an element": ("scale", "for i in range(n)", "for i in range(1, n)"),
    "pad lacks a zero": ("pad", "for i in range(n)", "for i in range(n - 1)"),
    "softmax overflows": ("softmax", "w[x + r * n + i] - largest", "w[x + r * n + i]"),
    "logsumexp lacks the largest": (
        "logsumexp",
        "largest + np.log(total)",
        "np.log(total)",
    ),
    "logsumexp overflows": (
        "logsumexp",
        "w[x + r * n + i] - largest",
        "w[x + r * n + i]",
    ),
    "rsqrt has no root": ("rsqrt", "np.sqrt", ""),
}


SUMS = {
    "blocks of a sum start at its first": ("sum", "+ b * middle //", "+ 0 * middle //"),
    "blocks of a sum overlap": ("sum", "(b + 1) * middle", "(b + 2) * middle"),
    "all blocks are in the first": ("sum", "out + block * inner", "out + o * inner"),
    "sum adds the first twice": (
        "sum",
        "range(first + inner, last",
        "range(first, last",
    ),
    "sum has another outer step": (
        "sum",
        "(o * middle + b * middle",
        "(o + b * middle",
    ),
    "mul_sum adds the first twice": (
        "mul_sum",
        "range(first + inner, last",
        "range(first, last",
    ),
    "mul_sum of numbers lacks y": (
        "mul_sum",
        "total += w[x + m] * w[y + m]",
        "total += w[x + m]",
    ),
    "mul_sum of rows squares x": (
        "mul_sum",
        "term = w[x + m + i] * w[y",
        "term = w[x + m + i] * w[x",
    ),
    "mul_sum has another outer step": (
        "mul_sum",
        "(o * middle + b * middle",
        "(o + b * middle",
    ),
}


@pytest.mark.parametrize(("kernel", "old", "new"), SUMS.values(), ids=SUMS)
def test_broken_sum_is_caught(monkeypatch, kernel, old, new):
    """The two kernels of sums come from one function; one of them is broken."""
    broken = mutated(kernels._sum_kernel, old, new)
    monkeypatch.setitem(KERNELS, kernel, broken(multiply=kernel == "mul_sum"))
    row = {"sum": "sum", "mul_sum": "mul"}[kernel]

    def recipes():
        for recipe in RECIPES:
            check_recipe(recipe)

    assert not survives(lambda: check_primitive(row), recipes)


@pytest.mark.parametrize(("kernel", "old", "new"), MUTANTS.values(), ids=MUTANTS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_broken_kernel_is_caught(monkeypatch, kernel, old, new):
    put(monkeypatch, kernels, kernel, old, new)
    if kernel in KERNELS:
        monkeypatch.setitem(KERNELS, kernel, getattr(kernels, kernel))
    calls = {"dots": "matmul", "transpose": "matmul"}
    primitive = {**calls, "add_relu": "add"}.get(kernel, kernel)

    def recipes():
        for recipe in RECIPES:
            check_recipe(recipe)

    assert not survives(lambda: check_primitive(primitive), recipes, check_extremes)
