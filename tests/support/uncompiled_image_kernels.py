"""Tests of the kernels for images as plain Python, and mutants of them.

    NUMBA_DISABLE_JIT=1 pytest tests/support/uncompiled_image_kernels.py

numba/test_image_kernels.py runs this file.
"""

from itertools import product

import numpy as np
import pytest

from tests.support.mutants import mutated, put, survives
from tests.support.running import run_tape
from tests.support.uncompiled_kernels import check_primitive, run_uncompiled
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


def check_blocks():
    """Convolutions cut into blocks, as those of large images and kernels are.

    With the tiles of processors that have wide registers, and of those that have not.
    """
    with pytest.MonkeyPatch.context() as patch:
        for elements, wide in product((1, 40, image_kernels.NEAR), (True, False)):
            patch.setattr(image_kernels, "NEAR", elements)
            patch.setattr(image_kernels, "WIDE", wide)
            patch.setattr(kernels, "WIDE", wide)
            for primitive in ("conv", "conv_weight"):
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
        "size.kh * size.kw * channels)",
        "channels)",
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
    "sums back over channels": ("add_by_taps", "(1, features, 0", "(1, channels, 0"),
    "sums over features": ("add_by_taps", "(1, channels, 0", "(1, features, 0"),
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
    "windows have all rows": ("convolve_by_windows", "(u_end - u, ", "(size.kh, "),
    "rows of a window skip a row": (
        "convolve_by_windows",
        "size.width * channels - length",
        "size.width * channels",
    ),
    "rows of weights are whole": (
        "convolve_by_windows",
        "length, x_jump, k_jump)",
        "length, x_jump, 0)",
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
    "rows of g are columns": (
        "conv_weight",
        "size.features, size.columns * size.features)",
        "size.features, size.rows * size.features)",
    ),
    "the last output is missing": ("conv_weight", "j_end - j)", "j_end - j - 1)"),
    "no pairs of channels": (
        "add_outer_products",
        "add_two_rows(w, to, features, x + c, x_steps, g, g_steps, counts)",
        "pass",
    ),
    "the odd channel is missing": ("add_outer_products", "if channels % 2", "if False"),
    "a pair reaches beyond the channels": (
        "add_outer_products",
        "range(0, channels - 1, 2)",
        "range(0, channels, 2)",
    ),
    "channels are added twice": (
        "add_outer_products",
        "range(0, channels - 1, 2)",
        "range(0, channels - 1)",
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
TILES = [(channels, vectors) for channels in (2, 1) for vectors in (8, 4, 1)]
TILE = {
    "weights are overwritten": (
        "tile_load(tile_zero(w, channels, vectors), w, k, features)",
        "tile_zero(w, channels, vectors)",
    ),
    "one image": ("range(counts[0])", "range(1)"),
    "one row": ("range(counts[1])", "range(1)"),
    "one output": ("range(counts[2])", "range(1)"),
    "rows of x are pixels": ("i * x_steps[1]", "i * x_steps[2]"),
    "pixels are channels": ("p += x_steps[2]", "p += 1"),
    "outputs are features": ("q += features", "q += 1"),
    "the last feature is missing": ("features, columns)", "features, columns - 1)"),
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


@pytest.mark.parametrize(("old", "new"), TILE.values(), ids=TILE)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("tile", TILES)
def test_broken_tile_of_a_weight_gradient_is_caught(monkeypatch, tile, old, new):
    """Each size of a tile on its own, beside sizes that are not broken."""
    intact = image_kernels._tile_kernel
    broken = mutated(intact, old, new)
    monkeypatch.setattr(
        image_kernels,
        "_tile_kernel",
        lambda *size: (broken if size == tile else intact)(*size),
    )
    for name, channels in (("add_two_rows", 2), ("add_one_row", 1)):
        monkeypatch.setattr(image_kernels, name, image_kernels._rows_kernel(channels))
    assert not survives(lambda: check_primitive("conv_weight"), check_blocks)


@pytest.mark.parametrize(("kernel", "old", "new"), POOLING.values(), ids=POOLING)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_broken_pooling_is_caught(monkeypatch, kernel, old, new):
    put_image_kernel(monkeypatch, kernel, old, new)
    checks = [
        lambda: check_primitive("max_gather"),
        lambda: check_primitive("max_scatter"),
    ]
    assert not survives(*checks, check_largest)
