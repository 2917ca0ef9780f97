"""Kernels for images: compiled against their one line of definition, and uncompiled."""

from itertools import product

import numpy as np
import pytest

from tests.backends.numba.test_kernels import SUPPORT, call, run_uncompiled
from tests.support.running import DTYPES
from tinymaml.backends.numba import image_kernels
from tinymaml.backends.numba.backend import kernel_address

SHAPES = [  # images, pixels, channels, outputs, features, kernel, stride, padding
    (2, (5, 4), 3, (5, 4), 5, (3, 3), 1, (1, 1)),
    (1, (7, 6), 2, (4, 3), 33, (3, 2), 2, (1, 0)),
    (2, (3, 5), 1, (2, 2), 8, (2, 4), 3, (2, 1)),  # some taps meet no pixel
    (1, (4, 4), 17, (3, 3), 64, (3, 3), 1, (0, 0)),  # more weights than stay near
]


def test_image_kernels_run_uncompiled():
    run_uncompiled(SUPPORT / "uncompiled_image_kernels.py")


def meetings(images, pixels, outputs, kernel, stride, padding):
    """(index of y, of x, of k) for each product of a pixel and a weight."""
    sizes = (images, *outputs, *kernel)
    for n, i, j, u, v in product(*map(range, sizes)):
        row, column = stride * i + u - padding[0], stride * j + v - padding[1]
        if 0 <= row < pixels[0] and 0 <= column < pixels[1]:
            yield (n, i, j), (n, row, column), (u, v)


@pytest.mark.parametrize("accumulate", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_pixels_meet_the_weights_that_the_definition_says(shape, dtype, accumulate):
    """All three kernels, on whole numbers, whose sums are exact."""
    images, pixels, channels, outputs, features, kernel, stride, padding = shape
    rng = np.random.default_rng(0)
    y, x, k = (
        rng.integers(-9, 10, size).astype(dtype)
        for size in (
            (images, *outputs, features),
            (images, *pixels, channels),
            (*kernel, channels, features),
        )
    )
    expected = [array * accumulate for array in (y, x, k)]
    for at_y, at_x, at_k in meetings(images, pixels, outputs, kernel, stride, padding):
        expected[0][at_y] += x[at_x] @ k[at_k]
        expected[1][at_x] += k[at_k] @ y[at_y]
        expected[2][at_k] += np.outer(x[at_x], y[at_y])
    sizes = images, *pixels, channels, *outputs, features, *kernel, stride, *padding
    transposed = k.transpose(3, 0, 1, 2)  # (F, kh, kw, C), as conv_input reads it
    for name, target, operands, result in (
        ("conv", y, (x, k), expected[0]),
        ("conv_input", x, (y, transposed), expected[1]),
        ("conv_weight", k, (x, y), expected[2]),
    ):
        arrays = [array.ravel() for array in (target, *operands)]
        offsets = np.cumsum([0, *(array.size for array in arrays)])[:3]
        w = np.concatenate([*arrays, np.full(16, np.nan, dtype)])  # room for a vector
        args = np.array([*offsets, *sizes, accumulate])
        call(kernel_address(name, dtype), w, args)
        assert np.array_equal(w[: target.size].reshape(target.shape), result), name
        rest = np.concatenate([*arrays[1:], np.full(16, np.nan, dtype)])
        assert np.array_equal(w[target.size :], rest, equal_nan=True), name


def test_outputs_inside_are_those_whose_pixel_is_in_the_image():
    """Brute force over one axis."""
    rows, columns = image_kernels.rows_inside, image_kernels.columns_inside
    for pixels, outputs, stride, padding, tap in product(
        (1, 4, 5), (1, 3, 6), (1, 2, 3), (0, 1, 2), (0, 1, 3)
    ):
        sizes = image_kernels.Sizes(
            images=1,
            height=pixels,
            width=pixels,
            channels=1,
            rows=outputs,
            columns=outputs,
            features=1,
            kh=4,
            kw=4,
            stride=stride,
            top=padding,
            left=padding,
            accumulate=0,
        )
        inside = [i for i in range(outputs) if 0 <= stride * i + tap - padding < pixels]
        assert [*range(*columns(sizes, tap))] == inside
        assert [*range(*rows(sizes, tap, 0, outputs))] == inside
        for low in range(outputs):
            assert [*range(*rows(sizes, tap, low, low + 1))] == [*{low} & {*inside}]
