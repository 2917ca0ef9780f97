"""The bodies of the kernels for images as plain Python, and mutants of them.

    NUMBA_DISABLE_JIT=1 pytest tests/uncompiled_image_kernels.py

Run by test_kernels_uncompiled.py, as uncompiled_kernels.py is.
"""

from itertools import product

import numpy as np
import pytest

from tests.support.mutants import mutated, put, survives
from tests.support.running import run_tape
from tests.support.uncompiled_kernels import KERNELS, check_row, play_uncompiled
from tinymaml.autodiff.tape import Tape
from tinymaml.backends.numba import image_kernels, kernels


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
            for row in ("conv", "conv_weight"):
                check_row(row)


def test_kernels_find_the_first_largest_element_or_nan():
    check_places_of_the_largest()


def test_kernels_cut_large_convolutions_into_blocks():
    check_blocks()


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
        ("range(images * rows)", "range(images)"),
        ("i < first or i >= end", "i < first"),
        ("i < first or i >= end", "i >= end"),
        ("r // rows, r % rows", "0, r % rows"),
        ("s * i + u - top", "i + u - top"),
        ("s * j + v - left", "s * j + v"),
        ("(u * kw + v) * channels", "(u * kh + v) * channels"),
        ("p * channels, s * channels", "p * channels, channels"),
        ("k + tap, kh * kw * channels", "k + tap, channels"),
        ("(r * columns + j) * features", "r * columns * features"),
        ("m, n, z = run, channels", "m, n, z = run, features"),
        ("m, n, z = run, features", "m, n, z = run - 1, features"),
        ("(1, features, 0, 0)", "(1, channels, 0, 0)"),
        ("(1, channels, 0, 0)", "(1, features, 0, 0)"),
    ],
    "windows": [
        ("range(images * rows)", "range(images)"),
        ("s * (r % rows) - top", "(r % rows) - top"),
        ("max(0, -up)", "0"),
        ("min(kh, height - up)", "kh"),
        ("s * j - left", "s * j"),
        ("max(0, -aside)", "0"),
        ("min(kw, width - aside)", "kw"),
        ("max(whole - j, 1) if v == 0", "columns - j if v == 0"),
        ("r // rows * height", "r % rows * height"),
        ("height + up + u)", "height + up)"),
        ("(u * kw + v) * channels", "u * kw * channels"),
        ("(u_end - u, ", "(kh, "),
        ("width * channels - length", "width * channels"),
        ("skipped * features)", "0)"),
        ("s * channels", "channels"),
        ("m, n, z, more", "m, n, z, 0"),
    ],
    "conv": [
        ("a[8] * a[9])", "a[8])"),
        ("False", "True"),
        ("if not a[15]", "if True"),
        ("if not a[15]", "if False"),
        ("w, a, a[15]", "w, a, 0"),
    ],
    "conv_input": [
        ("a[5] * a[6]", "a[5]"),
        ("True", "False"),
        ("if not a[15]", "if 1"),
        ("if not a[15]", "if 0"),
    ],
    "conv_weight": [
        ("if not a[15]", "if True"),
        ("if not a[15]", "if False"),
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
        ("sum_2x1(w, t, features, x + c, x_steps, p, g_steps, counts, n)", "pass"),
        ("sum_1x1(w, t, features, x + c, x_steps, p, g_steps, counts, n)", "pass"),
        ("if c + 1 < channels", "if True"),
        ("c += 2", "c += 1"),
    ],
}
POOLING = {
    "clear": [("start + size)", "start)")],
    "largest": [
        ("new > old", "new >= old"),
        ("new > old", "new < old"),
        ("| ((new != new) & (old == old))", ""),
        (" & (old == old)", ""),
        ("range(1, size * size)", "range(1, size)"),
        ("place // size * width", "place // size * size"),
        ("number += number_like(w, 1)", "number = number_like(w, 1)"),
        ("r // rows * height", "r % rows * height"),
        ("r % rows * size) * width", "r % rows) * width"),
        ("width + j * size", "width + j"),
        ("w[best + o + c] = new if wins else old", "pass"),
    ],
    "pool": [
        ("r // rows * height", "r % rows * height"),
        ("r % rows * size) * width", "r % rows) * width"),
        ("width + j * size", "width + j"),
        ("range(images * rows * columns)", "range(rows * columns)"),
        ("u * width + v", "u * size + v"),
        ("window * channels, number_like", "window, number_like"),
        ("w[chosen + o + c] == number", "w[chosen + c] == number"),
        ("else w[out + o + c]", "else number_like(w, 0)"),
        ("else number_like(w, 0)", "else w[out + p + c]"),
        ("number += number_like(w, 1)", "pass"),
    ],
    "max_gather": [("False", "True")],
    "max_scatter": [
        ("clear(w, a[0], a[3] * height * width * a[6])", "pass"),
        ("height % size or", ""),
        ("or width % size", ""),
        ("True", "False"),
    ],
}
SUM_KERNELS = {
    "sum_2x8": (2, 8),
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
            "tile_load(tile_zero(w, size, vectors), w, o, features)",
            "tile_zero(w, size, vectors)",
        ),
        ("range(counts[0])", "range(1)"),
        ("range(counts[1])", "range(1)"),
        ("range(counts[2])", "range(1)"),
        ("i * x_steps[1]", "i * x_steps[2]"),
        ("q += x_steps[2]", "q += 1"),
        ("p += features", "p += 1"),
        ("features, columns)", "features, columns - 1)"),
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
