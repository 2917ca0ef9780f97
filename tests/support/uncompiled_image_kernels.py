"""Tests of the kernels for images as plain Python, and mutants of them.

    NUMBA_DISABLE_JIT=1 pytest tests/support/uncompiled_image_kernels.py

numba/test_image_kernels.py runs this file.
"""

from functools import partial
from itertools import product

import numpy as np
import pytest

from tests.support.mutants import mutated, put, survives
from tests.support.running import run_tape
from tests.support.uncompiled_kernels import STRIPS, check_primitive, run_uncompiled
from tinymaml.autodiff.tape import Tape
from tinymaml.backends.numba import image_kernels, kernels
from tinymaml.backends.numba.backend import KERNELS


def check_largest():
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
    results = run_uncompiled(tape, inputs, "float64")
    assert results["gathered"].ravel().tolist() == [0, 2, 9, 11]
    scattered = np.zeros(16)
    scattered[[0, 2, 9, 11]] = 1, 2, 3, 4
    assert results["scattered"].ravel().tolist() == scattered.tolist()
    for name, array in run_tape(tape, inputs).items():
        assert np.array_equal(array[0], results[name])


def check_blocks(primitives=("conv", "conv_weight"), wide_registers=(True, False)):
    """Convolutions cut into blocks, as those of large images and kernels are.

    With the tiles of processors that have wide registers, and of those that have not.
    """
    with pytest.MonkeyPatch.context() as patch:
        for elements, wide in product((1, 40, image_kernels.NEAR), wide_registers):
            patch.setattr(image_kernels, "NEAR", elements)
            patch.setattr(kernels, "WIDE", wide)
            for primitive in primitives:
                check_primitive(primitive)


def test_kernels_find_the_first_largest_element_or_nan():
    check_largest()


def test_kernels_cut_large_convolutions_into_blocks():
    check_blocks()


CONVOLUTION = {
    "the last zero is missing": ("clear", "start + size)", "start + size - 1)"),
    "a pixel has no stride down": ("pixel", "size.stride * i + u", "i + u"),
    "a pixel has no stride across": ("pixel", "size.stride * j + v", "j + v"),
    "a pixel ignores padding above": ("pixel", "+ u - size.top", "+ u"),
    "a pixel ignores padding beside": ("pixel", "+ v - size.left", "+ v"),
    "pixels of one image": ("pixel", "(n * size.height + row)", "row"),
    "taps are one above the other": ("tap", "u * size.kw + v", "u * size.kh + v"),
    "all taps of a row are one": ("tap", "u * size.kw + v", "u * size.kw"),
    "outputs of one image": ("output", "(n * size.rows + i)", "i"),
    "outputs of one column": ("output", "* size.columns + j)", "* size.columns)"),
    "a row too early": ("rows_inside", "+ size.stride - 1)", ")"),
    "a row too late": ("rows_inside", "+ size.stride - 1)", "+ size.stride)"),
    "blocks start at the top": ("rows_inside", "max(low, ", "max(0, "),
    "rows below the image": ("rows_inside", "height - 1 +", "height +"),
    "no tap but the first row": ("rows_inside", "size.top - u) //", "size.top) //"),
    "blocks end at the bottom": ("rows_inside", "min(high, ", "min(size.rows, "),
    "a column too early": ("columns_inside", "+ size.stride - 1)", ")"),
    "a column too late": ("columns_inside", "+ size.stride - 1)", "+ size.stride)"),
    "columns left of the outputs": ("columns_inside", "max(0, ", "max(-9, "),
    "columns beside the image": ("columns_inside", "width - 1 +", "width +"),
    "no tap but the first": ("columns_inside", "size.left - v) //", "size.left) //"),
    "columns beside the outputs": ("columns_inside", "min(size.columns, ", "min(99, "),
    "taps of one image": ("add_by_taps", "range(size.images)", "range(1)"),
    "taps from the first row": ("add_by_taps", "range(first, end)", "range(0, end)"),
    "taps to the last row": (
        "add_by_taps",
        "range(first, end)",
        "range(first, size.rows)",
    ),
    "outputs meet neighbouring pixels": (
        "add_by_taps",
        "size.stride * channels",
        "channels",
    ),
    "taps back are one above the other": (
        "add_by_taps",
        "(u * size.kw + v) * channels",
        "(u * size.kh + v) * channels",
    ),
    "features back are taps": (
        "add_by_taps",
        "b_step = size.kh * size.kw * channels",
        "b_step = channels",
    ),
    "as many pixels as features": (
        "add_by_taps",
        "j_end - j, channels, terms",
        "j_end - j, features, terms",
    ),
    "the last output of a row is missing": (
        "add_by_taps",
        "j_end - j, features, terms",
        "j_end - j - 1, features, terms",
    ),
    "sums back over channels": ("add_by_taps", "(1, 1, features)", "(1, 1, channels)"),
    "sums over features": ("add_by_taps", "(1, 1, channels)", "(1, 1, features)"),
    "windows of one image": ("convolve_by_windows", "range(size.images)", "range(1)"),
    "windows have no stride down": ("convolve_by_windows", "size.stride * i -", "i -"),
    "windows begin above": ("convolve_by_windows", "max(0, -row)", "0"),
    "windows end below": (
        "convolve_by_windows",
        "min(size.kh, size.height - row)",
        "size.kh",
    ),
    "windows ignore padding": ("convolve_by_windows", "j - size.left", "j"),
    "windows begin beside": ("convolve_by_windows", "max(0, -column)", "0"),
    "windows end beside": (
        "convolve_by_windows",
        "min(size.kw, size.width - column)",
        "size.kw",
    ),
    "cut windows are whole": (
        "convolve_by_windows",
        "max(whole_end - j, 1) if v == 0",
        "size.columns - j if v == 0",
    ),
    "windows have all rows": (
        "convolve_by_windows",
        "(1, u_end - u, ",
        "(1, size.kh, ",
    ),
    "rows of a window skip a row": (
        "convolve_by_windows",
        "(counts, x_steps,",
        "(counts, (0, x_steps[1] + counts[2], 1),",
    ),
    "rows of weights are whole": (
        "convolve_by_windows",
        "x_steps, k_steps)",
        "x_steps, (0, counts[2] * features, features))",
    ),
    "windows do not move": (
        "convolve_by_windows",
        "(features, size.stride * channels",
        "(features, channels",
    ),
    "windows never add": (
        "convolve_by_windows",
        "terms, size.accumulate)",
        "terms, 0)",
    ),
    "not all outputs are cleared": (
        "conv",
        "size.columns * size.features)",
        "size.columns)",
    ),
    "a convolution goes back": ("conv", "False", "True"),
    "outputs are always cleared": ("conv", "if not size.accumulate", "if True"),
    "outputs are never cleared": ("conv", "if not size.accumulate", "if False"),
    "not all pixels are cleared": (
        "conv_input",
        "size.width * size.channels)",
        "size.width)",
    ),
    "a gradient goes forward": ("conv_input", "True", "False"),
    "pixels are always cleared": ("conv_input", "if not size.accumulate", "if 1"),
    "pixels are never cleared": ("conv_input", "if not size.accumulate", "if 0"),
    "weights are always cleared": ("conv_weight", "if not size.accumulate", "if True"),
    "weights are never cleared": ("conv_weight", "if not size.accumulate", "if False"),
    "not all weights are cleared": (
        "conv_weight",
        "clear(w, k, size.kh * size.kw * ",
        "clear(w, k, ",
    ),
    "only the first block of images": (
        "conv_weight",
        "range(0, size.images, block_images)",
        "range(0, 1, block_images)",
    ),
    "only the first block of rows": (
        "conv_weight",
        "range(0, size.rows, block_rows)",
        "range(0, 1, block_rows)",
    ),
    "a block has all rows": (
        "conv_weight",
        "min(low + block_rows, size.rows)",
        "size.rows",
    ),
    "a block begins at the top": (
        "conv_weight",
        "(size, u, low, high)",
        "(size, u, 0, high)",
    ),
    "the last block is too long": (
        "conv_weight",
        "min(block_images, size.images - n)",
        "block_images",
    ),
    "rows of x have no stride": ("conv_weight", "size.stride * x_row", "x_row"),
    "pixels of x have no stride": (
        "conv_weight",
        "size.stride * size.channels)",
        "size.channels)",
    ),
    "images of x are rows": ("conv_weight", "(size.height * x_row, ", "(x_row, "),
    "rows of x are pixels": (
        "conv_weight",
        "size.stride * x_row, size.stride * size.channels)",
        "size.stride * size.channels, size.stride * size.channels)",
    ),
    "rows of g are columns": (
        "conv_weight",
        "size.columns * size.features\n",
        "size.rows * size.features\n",
    ),
    "outputs of g are features": ("conv_weight", "g_row, size.features)", "g_row, 1)"),
    "channels of x are pixels": (
        "conv_weight",
        "(size.features, 1)",
        "(size.features, size.channels)",
    ),
    "weights are overwritten": ("conv_weight", "terms, 1)", "terms, 0)"),
    "one image of a block": ("conv_weight", "(images, i_end", "(1, i_end"),
    "one row of a block": ("conv_weight", "i_end - i,", "1,"),
    "one output of a row": ("conv_weight", "j_end - j)", "1)"),
    "the last output is missing": ("conv_weight", "j_end - j)", "j_end - j - 1)"),
    "the last channel is missing": (
        "conv_weight",
        "steps, size.channels, size.features",
        "steps, size.channels - 1, size.features",
    ),
    "the last feature is missing": (
        "conv_weight",
        "steps, size.channels, size.features",
        "steps, size.channels, size.features - 1",
    ),
}
POOLING = {
    "nothing is cleared": ("clear", "start + size)", "start)"),
    "windows of one image": ("corner", "row // rows * height", "row % rows * height"),
    "windows overlap downwards": ("corner", "row % rows * size", "row % rows"),
    "windows overlap across": ("corner", "+ j * size", "+ j"),
    "the last of equals wins": ("largest", "new > old", "new >= old"),
    "the smallest wins": ("largest", "new > old", "new < old"),
    "NaN never wins": ("largest", "| ((new != new) & (old == old))", ""),
    "the last NaN wins": ("largest", " & (old == old)", ""),
    "only the first row": ("largest", "range(1, size * size)", "range(1, size)"),
    "rows of a window are rows of x": (
        "largest",
        "element // size * width",
        "element // size * size",
    ),
    "every element is the second": (
        "largest",
        "number += number_like(w, 1)",
        "number = number_like(w, 1)",
    ),
    "the largest is forgotten": (
        "largest",
        "w[best + o + c] = new if wins else old",
        "pass",
    ),
    "pooling of one image": (
        "pool",
        "range(images * (height // size)",
        "range((height // size)",
    ),
    "rows of a window lie close": ("pool", "u * width + v", "u * size + v"),
    "windows have one channel": (
        "pool",
        "window * channels, number_like",
        "window, number_like",
    ),
    "all windows choose as the first": (
        "pool",
        "w[chosen + o + c] == number",
        "w[chosen + c] == number",
    ),
    "the chosen is overwritten": (
        "pool",
        "else w[out + o + c]",
        "else number_like(w, 0)",
    ),
    "the others are not cleared": (
        "pool",
        "else number_like(w, 0)",
        "else w[out + p + c]",
    ),
    "all elements are the first": ("pool", "number += number_like(w, 1)", "pass"),
    "gather scatters": ("max_gather", "False", "True"),
    "pixels of no window are not cleared": (
        "max_scatter",
        "clear(w, out, images * height * width * channels)",
        "pass",
    ),
    "rows of no window are not cleared": ("max_scatter", "height % size or", ""),
    "columns of no window are not cleared": ("max_scatter", "or width % size", ""),
    "scatter gathers": ("max_scatter", "True", "False"),
}
# The three nested loops over the terms of a sum are those of `kernels._tile_kernel`. A
# window uses two of them and the gradient of weights all three.
TERMS = {
    "tiles are overwritten": ("if accumulate:", "if False:"),
    "one image": ("range(counts[0])", "range(1)"),
    "one row": ("range(counts[1])", "range(1)"),
    "one output": ("range(counts[2])", "range(1)"),
    "images of x are rows": ("a += a_steps[0]", "a += a_steps[1]"),
    "images of g are rows": ("b += b_steps[0]", "b += b_steps[1]"),
    "rows of x are pixels": ("a_run += a_steps[1]", "a_run += a_steps[2]"),
    "rows of g are outputs": ("b_run += b_steps[1]", "b_run += b_steps[2]"),
    "pixels are channels": ("p += a_steps[2]", "p += 1"),
    "outputs are features": ("q += b_steps[2]", "q += 1"),
    "the last feature is missing": ("c_step, columns)", "c_step, columns - 1)"),
}


def put_image_kernel(monkeypatch, kernel, old, new):
    put(monkeypatch, image_kernels, kernel, old, new)
    if kernel in KERNELS:
        monkeypatch.setitem(KERNELS, kernel, getattr(image_kernels, kernel))


@pytest.mark.parametrize(
    ("kernel", "old", "new"), CONVOLUTION.values(), ids=CONVOLUTION
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_broken_convolution_is_caught(monkeypatch, kernel, old, new):
    put_image_kernel(monkeypatch, kernel, old, new)
    assert not survives(
        lambda: check_primitive("conv"),
        lambda: check_primitive("conv_weight"),
        check_blocks,
    )


@pytest.mark.parametrize(("old", "new"), TERMS.values(), ids=TERMS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("vectors", [8, 4, 1])
def test_broken_loop_over_terms_is_caught(monkeypatch, vectors, old, new):
    """Strips of each width on their own, beside others that are not broken.

    Strips of five vectors are broken in uncompiled_kernels.py. Only those of one vector
    have a masked store here: in the others the last feature of a whole store is lost.
    """
    if "columns" in old and len(STRIPS[vectors]) == 2:
        old, new = "c_step, vectors * lanes(w))", "c_step, vectors * lanes(w) - 1)"
    broken = mutated(kernels._tile_kernel, old, new)
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "_tile_kernel", broken)
        strip = kernels._strip_kernel(*STRIPS[vectors])
    monkeypatch.setattr(kernels, f"strip_{vectors}", strip)
    # Strips of eight vectors are used with wide registers only, those of four without.
    blocks = partial(check_blocks, ["conv_weight"], [vectors == 8])
    checks = [blocks, lambda: check_primitive("conv_weight")]
    assert not survives(*checks[:: 1 if vectors == 4 else -1])


@pytest.mark.parametrize(("kernel", "old", "new"), POOLING.values(), ids=POOLING)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_broken_pooling_is_caught(monkeypatch, kernel, old, new):
    put_image_kernel(monkeypatch, kernel, old, new)
    checks = [
        lambda: check_primitive("max_gather"),
        lambda: check_primitive("max_scatter"),
    ]
    assert not survives(*checks, check_largest)
