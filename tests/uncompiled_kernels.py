"""The bodies of the kernels as plain Python: run by test_kernels_uncompiled.py.

    NUMBA_DISABLE_JIT=1 pytest tests/uncompiled_kernels.py

A plan is played call by call on a NumPy array, so that a debugger can step through a
kernel and coverage can see it, and the kernels' own mistakes are found in a moment.
"""

import numpy as np
import pytest
from mutants import mutated, put, survives
from numba import config
from plan_recipes import RECIPES
from playing import AGREE, DTYPES, all_values, assert_close, play
from primitive_cases import CASES
from primitive_checks import derivative_inputs, derivative_tape
from random_programs import random_inputs
from test_planner import tape_of

from tinymaml.machines import image_kernels, kernels
from tinymaml.machines.planner import Plan
from tinymaml.tape import Tape

every_dtype = pytest.mark.parametrize("dtype", DTYPES)
SLACK = 64  # so that a mutant that goes too far hits no wall


def is_kernel(function):
    code = getattr(function, "__code__", None)
    return code is not None and code.co_varnames[: code.co_argcount] == ("w", "a")


KERNELS = {
    name: function
    for module in (kernels, image_kernels)
    for name, function in vars(module).items()
    if is_kernel(function)
}


def play_uncompiled(tape, inputs, dtype):
    """The outputs for one task; memory that nobody wrote is NaN."""
    plan = Plan(tape)
    w = np.full(plan.size + SLACK, np.nan, dtype)
    for start, size, number in plan.constant_pieces():
        w[start : start + size] = number
    for name, place in tape.inputs.items():
        if plan.holds(place.entry):
            start = plan.offset_of(place.entry)
            array = np.ravel(inputs[name][0] if place.per_task else inputs[name])
            w[start : start + array.size] = array
    for call in plan.instructions:
        places = [plan.offset(place) for place in (call.out, *call.reads)]
        KERNELS[call.kernel](w, np.array([*places, *call.sizes]))
    outputs = {}
    for name, output in tape.outputs.items():
        start = plan.offset_of(output.entry)
        array = w[start : start + int(np.prod(output.shape))]
        outputs[name] = array.reshape(output.shape)
    return outputs


def check(tape, inputs, dtype="float64"):
    inputs = {name: np.array(a, dtype) for name, a in inputs.items()}
    expected = play(tape, inputs, "numpy", dtype)
    floor = max(np.abs(array).max() for array in all_values(tape, inputs).values())
    for name, actual in play_uncompiled(tape, inputs, dtype).items():
        each = tape.outputs[name].reduction == "each"
        array = expected[name][0] if each else expected[name]
        assert actual.dtype == dtype
        assert_close(actual, array, AGREE[dtype], name, floor)


def check_row(row, dtype="float64"):
    for seed, (shapes, attributes) in enumerate(CASES[row].odd):
        tape = derivative_tape(row, shapes, attributes)
        check(tape, derivative_inputs(tape, row, shapes, attributes, seed), dtype)


def check_recipe(recipe, dtype="float64"):
    tape = tape_of(recipe)
    check(tape, random_inputs(tape, seed=0, tasks=1), dtype)


def check_extremes():
    """No overflow in rows of logits, and NaN stays NaN."""
    tape = Tape()
    x = tape.input("x", (2, 3))
    for row in ("softmax", "logsumexp"):
        tape.output(row, tape.record(row, x))
    check(tape, {"x": np.array([[1e3, -1e3, 999.0], [-1e4, -1e4, -1e4]])})
    tape = Tape()
    x = tape.input("x", (3,))
    tape.output("relu", tape.record("relu", x))
    tape.output("gate", tape.record("gate", tape.constant(2.0, (3,)), x))
    results = play_uncompiled(tape, {"x": np.array([np.nan, -1.0, 1.0])}, "float64")
    assert np.array_equal(results["relu"], [np.nan, 0.0, 1.0], equal_nan=True)
    assert results["gate"].tolist() == [2.0, 0.0, 2.0]


def check_places_of_the_largest():
    """Of equal elements the first counts, a NaN above all, and of two NaN the first."""
    x = np.array(
        [[1, 1, 5, 2], [1, 0, 5, 5], [3, np.nan, 1, np.nan], [np.nan, 4, 9, 9]]
    )
    tape = Tape()
    images = tape.input("x", (1, 4, 4, 1))
    numbers = tape.input("numbers", (1, 4, 4, 1))
    small = tape.input("small", (1, 2, 2, 1))
    tape.output("gathered", tape.record("max_gather", numbers, images, size=2))
    tape.output("scattered", tape.record("max_scatter", small, images, size=2))
    inputs = {"x": x, "numbers": np.arange(16.0), "small": np.arange(1.0, 5.0)}
    inputs = {name: a.reshape(tape.inputs[name].shape) for name, a in inputs.items()}
    results = play_uncompiled(tape, inputs, "float64")
    assert results["gathered"].ravel().tolist() == [0, 2, 9, 11]
    scattered = np.zeros(16)
    scattered[[0, 2, 9, 11]] = 1, 2, 3, 4
    assert results["scattered"].ravel().tolist() == scattered.tolist()
    for name, array in play(tape, inputs).items():
        assert np.array_equal(array[0], results[name])


def check_blocks():
    """Convolutions cut into blocks, as those of large images and kernels are."""
    with pytest.MonkeyPatch.context() as patch:
        for elements in (1, 40):
            patch.setattr(image_kernels, "NEAR", elements)
            for row in ("conv", "conv_weight"):
                check_row(row)


def test_compiler_is_off():
    assert config.DISABLE_JIT


@every_dtype
@pytest.mark.parametrize("row", CASES)
def test_kernels_play_the_derivatives_of_every_row(row, dtype):
    check_row(row, dtype)


@every_dtype
@pytest.mark.parametrize("recipe", RECIPES)
def test_kernels_play_every_recipe(recipe, dtype):
    check_recipe(recipe, dtype)


def test_kernels_survive_extremes():
    check_extremes()


def test_kernels_find_the_first_largest_element_or_nan():
    check_places_of_the_largest()


def test_kernels_cut_large_convolutions_into_blocks():
    check_blocks()


def test_these_tapes_call_every_kernel():
    tapes = [tape_of(recipe) for recipe in RECIPES]
    tapes += [derivative_tape(r, *call) for r, c in CASES.items() for call in c.odd]
    called = {call.kernel for tape in tapes for call in Plan(tape).instructions}
    assert called == set(KERNELS)


@pytest.mark.parametrize(
    ("kernel", "old", "new"),
    [
        ("product", "even = m - m % 2", "even = m"),
        ("product", "if even < m:", "if False:"),
        ("product", "while x < j:", "while x < j - width:"),
        ("product", "j += half", "j += width"),
        ("product", "for r in range(m)", "for r in range(m - 1)"),
        ("product", "if more else", "if False else"),
        ("product", "r * rs + p * ks", "r * ks + p * rs"),
        ("product", "for p in range(k)", "for p in range(k - 1)"),
        ("matmul", "y, n, m, n, k, more", "y, k, m, n, k, more"),
        ("matmul", "k, more)", "k, 0)"),
        ("dots", "if more else", "if not more else"),
        ("dots", "for p in range(k)", "for p in range(k - 1)"),
        ("transpose", "while i < m:", "while i < m - 1:"),
        ("transpose", "while j < n:", "while j < n - 1:"),
        ("gate", "w[y + i] <= zero", "w[y + i] >= zero"),
        ("gate", "w[y + i] <= zero", "not w[y + i] > zero"),
        ("relu", "for i in range(n)", "for i in range(n - 1)"),
        ("relu", "w[x + i] <= zero", "not w[x + i] > zero"),
        ("add_relu", "total <= zero", "total <= 1"),
        ("scale", "for i in range(n)", "for i in range(1, n)"),
        ("pad", "for i in range(n)", "for i in range(n - 1)"),
        ("sum", "range(1, middle)", "range(middle)"),
        ("softmax", "w[x + r * n + i] - top", "w[x + r * n + i]"),
        ("logsumexp", "top + np.log(total)", "np.log(total)"),
        ("logsumexp", "w[x + r * n + i] - top", "w[x + r * n + i]"),
        ("rsqrt", "np.sqrt", ""),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_broken_kernel_is_caught(monkeypatch, kernel, old, new):
    put(monkeypatch, kernels, kernel, old, new)
    if kernel in KERNELS:
        monkeypatch.setitem(KERNELS, kernel, getattr(kernels, kernel))
    calls = {"product": "matmul", "dots": "matmul", "transpose": "matmul"}
    row = {**calls, "add_relu": "add"}.get(kernel, kernel)

    def recipes():
        for recipe in RECIPES:
            check_recipe(recipe)

    assert not survives(lambda: check_row(row), recipes, check_extremes)


CONVOLUTION = {
    "clear": [("start + size)", "start + size - 1)")],
    "first_inside": [
        ("padding - tap + s - 1", "padding - tap"),
        ("padding - tap + s - 1", "padding - tap + s"),
        ("max(low, ", "max(0, "),
    ],
    "end_inside": [
        ("(size - 1 + padding - tap)", "(size + padding - tap)"),
        ("(size - 1 + padding - tap)", "(size - 1 + padding)"),
        ("min(high, ", "min(size, "),
    ],
    "sweep": [
        ("range(start, start + block)", "range(start, start + 1)"),
        ("i < first or i >= end", "i < first"),
        ("i < first or i >= end", "i >= end"),
        ("r // rows, r % rows", "0, r % rows"),
        ("s * i + u - top", "i + u - top"),
        ("s * j + v - left", "s * j + v"),
        ("(u * kw + v) * channels", "(u * kh + v) * channels"),
        ("p * channels, s * channels", "p * channels, channels"),
        ("k + tap, kh * kw * channels", "k + tap, channels"),
        ("(r * columns + j) * features", "r * columns * features"),
        ("m, n, z = run, channels, features", "m, n, z = run, features, channels"),
        ("m, n, z = run, features, channels", "m, n, z = run - 1, features, channels"),
    ],
    "conv": [("a[8] * a[9]", "a[8]"), ("False", "True")],
    "conv_input": [("a[5] * a[6]", "a[5]"), ("True", "False")],
    "conv_weight": [
        ("kh * kw * channels * features)", "channels * features)"),
        ("range(0, images, together)", "range(0, 1, together)"),
        ("range(0, rows, strip)", "range(0, 1, strip)"),
        ("min(low + strip, rows)", "rows"),
        ("top, s, low)", "top, s, 0)"),
        ("min(together, images - n)", "together"),
        ("(u * kw + v)", "(u * kh + v)"),
        ("s * width * channels, s * channels", "width * channels, s * channels"),
        ("s * width * channels, s * channels", "s * width * channels, channels"),
        ("(height * width * channels, ", "(width * channels, "),
        ("features, columns * features)", "features, rows * features)"),
        ("((n * rows + i) * columns + j)", "((n * rows + i) * columns)"),
        ("end - i, run)", "end - i, run - 1)"),
    ],
    "sum_of_outer_products": [
        ("if c + 1 < channels", "if True"),
        ("while f < features", "while f < features - 1"),
        ("min(c + 2, channels)", "c + 1"),
        ("c += 2", "c += 1"),
        ("total = w[o + r * features + f]", "total = 0 * w[o]"),
        ("n * x_steps[0] + i * x_steps[1] + r", "n * x_steps[0] + i * x_steps[1] + c"),
        ("p += features", "p += 1"),
    ],
}
POOLING = {
    "clear": [("start + size)", "start)")],
    "place_of_largest": [
        ("w[q] > w[best]", "w[q] >= w[best]"),
        ("w[q] > w[best]", "w[q] < w[best]"),
        ("or (w[q] != w[q] and w[best] == w[best])", ""),
        (" and w[best] == w[best]", ""),
        ("u * width + v", "u * size + v"),
        ("(u * width + v) * channels", "(u * width + v)"),
    ],
    "pool": [
        ("i * size) * width", "i) * width"),
        ("j * size) * channels", "j) * channels"),
        ("n * height + i", "i"),
        ("range(height // size)", "range(height // size - 1)"),
        ("p = q + c + place", "p = q + place"),
        ("x + q + c", "z + q + c"),
        ("o += 1", "o += channels"),
    ],
    "max_gather": [("False", "True")],
    "max_scatter": [
        ("clear(w, a[0], a[3] * a[4] * a[5] * a[6])", "pass"),
        ("True", "False"),
    ],
}
SUM_KERNELS = {
    "sum_2x4": (2, 4),
    "sum_2x1": (2, 1),
    "sum_1x4": (1, 4),
    "sum_1x1": (1, 1),
}


def each_mutant(table):
    return [(name, *change) for name, changes in table.items() for change in changes]


def put_image_kernel(monkeypatch, kernel, old, new):
    put(monkeypatch, image_kernels, kernel, old, new)
    if kernel in KERNELS:
        monkeypatch.setitem(KERNELS, kernel, getattr(image_kernels, kernel))


@pytest.mark.parametrize(("kernel", "old", "new"), each_mutant(CONVOLUTION))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_broken_convolution_is_caught(monkeypatch, kernel, old, new):
    put_image_kernel(monkeypatch, kernel, old, new)
    assert not survives(
        lambda: check_row("conv"), lambda: check_row("conv_weight"), check_blocks
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            "tile_load(tile_zero(w, size, vectors, 1), w, o, features)",
            "tile_zero(w, size, vectors, 1)",
        ),
        ("range(counts[0])", "range(1)"),
        ("range(counts[1])", "range(1)"),
        ("range(counts[2])", "range(1)"),
        ("i * x_steps[1]", "i * x_steps[2]"),
        ("q += x_steps[2]", "q += 1"),
        ("p += features", "p += 1"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("kernel", SUM_KERNELS)
def test_broken_tile_of_a_weight_gradient_is_caught(monkeypatch, kernel, old, new):
    broken = mutated(image_kernels._sum_kernel, old, new)
    monkeypatch.setattr(image_kernels, kernel, broken(*SUM_KERNELS[kernel]))
    assert not survives(lambda: check_row("conv_weight"), check_blocks)


@pytest.mark.parametrize(("kernel", "old", "new"), each_mutant(POOLING))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_broken_pooling_is_caught(monkeypatch, kernel, old, new):
    put_image_kernel(monkeypatch, kernel, old, new)
    rows = [lambda: check_row("max_gather"), lambda: check_row("max_scatter")]
    assert not survives(*rows, check_places_of_the_largest)
