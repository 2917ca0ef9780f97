"""Primitives for images: convolution and max-pooling, and the functions to call them.

Images are arrays (N, H, W, C): examples, height, width, channels.

A convolution lays the kernel over the images at every output pixel (i, j). Its weights
for one offset (u, v) are a *tap*; with stride s and padding (top, left), the tap meets
the input pixel (s i + u - top, s j + v - left). Everything follows from one sum of
products of three arrays, the images x, the kernel w and an array g shaped like the
output:

    L = sum of  x[n, s i + u - top, s j + v - left, c]  w[u, v, c, f]  g[n, i, j, f]

over all indices n, i, j, u, v, c, f, with x = 0 outside of the image. L is linear in
each of the three, and its three derivatives are the three primitives:

    conv(x, w) = dL/dg         the output of the convolution
    conv_input(g, w) = dL/dx   the cotangent of x, if g is that of the output
    conv_weight(x, g) = dL/dw  the cotangent of w, if g is that of the output

The derivatives of each of them are the other two, for the same reason; so the table of
primitives stays closed. Here all three are loops over the taps, with one matrix product
for each. The numba backend loops likewise and reads the pixels in place; on a GPU and
in JavaScript the patches of the images are copied first (im2col).

Max-pooling is two primitives that are each other's transpose: `max_gather` reads an
array where another one is largest in its window, `max_scatter` writes there.

Left out: dilation, groups, overlapping pooling windows.
"""

from collections.abc import Iterator
from functools import reduce
from math import prod

import numpy as np

from tinymaml.autodiff.primitives import Bilinear, expect, whole
from tinymaml.autodiff.tape import Array, Primitive, Shape, Value, check_values
from tinymaml.checks import check_that, whole_number


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """(output size, zeros before the first element) by TensorFlow's SAME rule.

    The output has ceil(size / stride) elements. If an odd number of zeros is needed,
    the extra one comes after the last element.

    >>> same_padding(28, 3, 2), same_padding(7, 3, 2), same_padding(84, 3, 1)
    ((14, 0), (4, 1), (84, 1))
    """
    out = -(-size // stride)
    return out, max((out - 1) * stride + kernel - size, 0) // 2


# --- convolution ----------------------------------------------------------------------

PIXELS = 4096  # of all images, whose products are added up before the next block's


class Window:
    """Which pixels of padded images each tap of a kernel meets.

    `padded` is the shape (T, N, H, W, C) of the images with enough zeros around them
    that every tap meets a pixel for every output pixel. `inside` is the index of the
    images themselves in an array of this shape.
    """

    def __init__(
        self, images: Shape, kernel: Shape, out: Shape, stride: int, padding: Shape
    ) -> None:
        self.kernel, self.out, self.stride = kernel, out, stride
        sizes = [
            max(before + n, stride * (m - 1) + k)
            for n, k, m, before in zip(images[2:4], kernel, out, padding, strict=True)
        ]
        self.padded = (*images[:2], *sizes, images[4])
        top, left = padding
        self.inside = np.s_[:, :, top : top + images[2], left : left + images[3]]

    def pad(self, x: Array) -> Array:
        """The images with zeros around them."""
        padded = np.zeros(self.padded, x.dtype)
        padded[self.inside] = x
        return padded

    def taps(self, padded: Array) -> Iterator[tuple[int, int, Array]]:
        """(u, v, x_uv) for each tap, where x_uv is a view (T, N, H', W', C).

        x_uv[:, :, i, j] is the pixel that tap (u, v) meets for the output pixel (i, j).
        """
        (height, width), s = self.out, self.stride
        for u, v in np.ndindex(*self.kernel):
            yield u, v, padded[:, :, u : u + s * height : s, v : v + s * width : s]


def as_matrix(x: Array) -> Array:
    """(T, N, H, W, C) -> (T, N H W, C): the pixels of each task as a matrix."""
    return x.reshape(len(x), -1, x.shape[-1])


def number_of_tasks(*arrays: Array) -> int:
    """The length of the common task axis; an array that tasks share has length 1."""
    return max(len(a) for a in arrays)


def expect_images(name: str, a: Shape, b: Shape, fit: bool) -> None:
    """Raise ValueError unless both have rank 4 and the sizes that must agree do."""
    rank_4 = len(a) == len(b) == 4
    expect(rank_4, f"{name}: expected two arrays of rank 4, got {a} and {b}")
    expect(fit, f"{name}: sizes do not fit, {a} and {b}")


def expect_windows_inside(
    name: str, images: Shape, kernel: Shape, out: Shape, stride: int, padding: Shape
) -> None:
    """Raise ValueError unless each window meets a pixel: kernels rely on it.

    images, kernel, out: height and width. An axis of length n is met by the first
    window if fewer zeros than the kernel's length k stand before it, and by the last
    window, number m, if this starts before the end.
    """
    sizes = *images, *kernel, *out, stride
    fit = len(sizes) == 7 and whole(*sizes, least=1) and whole(*padding)
    fit = fit and all(
        before < k and stride * (m - 1) < n + before
        for n, k, m, before in zip(images, kernel, out, padding, strict=True)
    )
    numbers = f"stride {stride}, padding {padding}, windows {out} of {kernel}"
    expect(fit, f"{name}: {numbers} do not fit images of {images}")


# The attribute `size` of the three primitives is what the shapes of the arguments leave
# open: height and width of the result.


# [convolution]
class Conv(Bilinear):
    """x (N, H, W, C) convolved with w (kh, kw, C, F), as dL/dg: (N, *size, F)."""

    name = "conv"

    def shape(x, w, *, stride, padding, size):
        expect_images("conv", x, w, x[-1:] == w[-2:-1])
        expect_windows_inside("conv", x[1:3], w[:2], size, stride, padding)
        return (x[0], *size, w[3])

    def evaluate(x, w, *, stride, padding, size):
        window = Window(x.shape, w.shape[1:3], size, stride, padding)
        out = np.zeros((), x.dtype)
        for u, v, x_uv in window.taps(window.pad(x)):
            out = out + as_matrix(x_uv) @ w[:, u, v]
        return out.reshape(len(out), x.shape[1], *size, -1)

    def vjp(i, g, out, x, w, *, stride, padding, size):
        geometry = {"stride": stride, "padding": padding}
        if i == 0:
            return g.tape.record("conv_input", g, w, size=x.shape[1:3], **geometry)
        return g.tape.record("conv_weight", x, g, size=w.shape[:2], **geometry)

    def flops(out, x, w, **attributes):
        return 2 * prod(out) * prod(w[:3])


# [/convolution]


class ConvInput(Bilinear):
    """dL/dx, from g (N, H', W', F) and w (kh, kw, C, F): (N, *size, C).

    Each output pixel sends its cotangent back to all pixels that the taps met for it,
    multiplied by the weights of these taps. This is the transposed convolution.
    """

    name = "conv_input"

    def shape(g, w, *, stride, padding, size):
        expect_images("conv_input", g, w, g[-1:] == w[-1:])
        expect_windows_inside("conv_input", size, w[:2], g[1:3], stride, padding)
        return (g[0], *size, w[2])

    def evaluate(g, w, *, stride, padding, size):
        images = (number_of_tasks(g, w), g.shape[1], *size, w.shape[3])
        window = Window(images, w.shape[1:3], g.shape[2:4], stride, padding)
        total = np.zeros(window.padded, g.dtype)
        for u, v, x_uv in window.taps(total):
            x_uv += (as_matrix(g) @ w[:, u, v].mT).reshape(x_uv.shape)
        return total[window.inside]

    def vjp(i, x, out, g, w, *, stride, padding, size):
        geometry = {"stride": stride, "padding": padding}
        if i == 0:
            return x.tape.record("conv", x, w, size=g.shape[1:3], **geometry)
        return x.tape.record("conv_weight", x, g, size=w.shape[:2], **geometry)

    def flops(out, g, w, **attributes):
        return 2 * prod(g) * prod(w[:3])


class ConvWeight(Bilinear):
    """dL/dw, from x (N, H, W, C) and g (N, H', W', F): (*size, C, F).

    The weights of a tap get, for all output pixels, the cotangent of the output times
    the pixel that the tap met there.
    """

    name = "conv_weight"

    def shape(x, g, *, stride, padding, size):
        expect_images("conv_weight", x, g, x[:1] == g[:1])
        expect_windows_inside("conv_weight", x[1:3], size, g[1:3], stride, padding)
        return (*size, x[3], g[3])

    def evaluate(x, g, *, stride, padding, size):
        window = Window(x.shape, size, g.shape[2:4], stride, padding)
        shape = (number_of_tasks(x, g), *size, x.shape[4], g.shape[4])
        total, right = np.empty(shape, x.dtype), as_matrix(g)
        # In blocks of pixels: a BLAS adds them one after the other if C is small.
        blocks = [slice(i, i + PIXELS) for i in range(0, right.shape[1], PIXELS)]
        for u, v, x_uv in window.taps(window.pad(x)):
            left = as_matrix(x_uv).mT
            products = (left[:, :, block] @ right[:, block] for block in blocks)
            total[:, u, v] = reduce(np.add, products)
        return total

    def vjp(i, w, out, x, g, *, stride, padding, size):
        geometry = {"stride": stride, "padding": padding}
        if i == 0:
            return w.tape.record("conv_input", g, w, size=x.shape[1:3], **geometry)
        return w.tape.record("conv", x, w, size=g.shape[1:3], **geometry)

    def flops(out, x, g, **attributes):
        return 2 * prod(out) * prod(g[:3])


# --- max-pooling ----------------------------------------------------------------------


def pooled(x: Shape, size: int) -> Shape:
    """The shape of images (N, H, W, C) after pooling: one pixel for a whole window."""
    return (x[0], x[1] // size, x[2] // size, x[3])


def elements(x: Array, size: int) -> Iterator[tuple[int, Array]]:
    """(number, view) for each position in a window: the view is (T, N, H', W', C)."""
    height, width = (n // size * size for n in x.shape[2:4])
    for number in range(size * size):
        u, v = divmod(number, size)
        yield number, x[:, :, u:height:size, v:width:size]


def argmax(x: Array, size: int) -> Array:
    """The number of the largest element of each window; the first of equal ones.

    A NaN counts as largest.
    """
    return np.stack([view for _, view in elements(x, size)]).argmax(axis=0)


def expect_windows(name: str, x: Shape, size: int) -> None:
    """Raise ValueError unless images have at least one whole window."""
    fit = len(x) == 4 and whole(size, least=1) and min(x[1:3]) >= size
    expect(fit, f"{name}: no window of {size} by {size} in images of shape {x}")


class MaxGather(Primitive):
    """a where x is largest in each window: (N, H // size, W // size, C).

    Both are (N, H, W, C). Of equal elements the first is taken, rows before columns.
    The primitive is linear in a, and its derivative in x is zero. Max-pooling is the
    case a = x: its derivative is that in a.
    """

    name = "max_gather"

    def shape(a, x, *, size):
        expect_windows("max_gather", x, size)
        expect(a == x, f"max_gather: shapes must be equal, got {a} and {x}")
        return pooled(x, size)

    def evaluate(a, x, *, size):
        winner = argmax(x, size)
        return sum(np.where(winner == i, view, 0) for i, view in elements(a, size))

    def vjp(i, g, out, a, x, *, size):
        return g.tape.record("max_scatter", g, x, size=size) if i == 0 else None

    def jvp(i, t, out, a, x, *, size):
        return t.tape.record("max_gather", t, x, size=size) if i == 0 else None


class MaxScatter(Primitive):
    """g (N, H // size, W // size, C), put where x (N, H, W, C) is largest; else 0."""

    name = "max_scatter"

    def shape(g, x, *, size):
        expect_windows("max_scatter", x, size)
        fit = g == pooled(x, size)
        expect(fit, f"max_scatter: {g} does not fit windows of {size} in {x}")
        return x

    def evaluate(g, x, *, size):
        winner = argmax(x, size)
        out = np.zeros((number_of_tasks(g, x), *x.shape[1:]), g.dtype)
        for i, view in elements(out, size):
            view[...] = np.where(winner == i, g, 0)
        return out

    def vjp(i, a, out, g, x, *, size):
        return a.tape.record("max_gather", a, x, size=size) if i == 0 else None

    def jvp(i, t, out, g, x, *, size):
        return t.tape.record("max_scatter", t, x, size=size) if i == 0 else None


# --- functions of values --------------------------------------------------------------


def check_images(x: Value) -> None:
    """Raise an error unless x is a Value in the shape of images."""
    check_values(x=x)
    check_that(len(x.shape) == 4, "x", "images (N, H, W, C)", f"shape {x.shape}")


def conv2d(x: Value, w: Value, stride: int = 1) -> Value:
    """x (N, H, W, C) convolved with w (kh, kw, C, F), SAME padding: (N, H', W', F).

    H' = ceil(H / stride). As in every network library this is a correlation: the kernel
    is not flipped. Raises ValueError where the shapes do not fit, TypeError for what is
    no `Value`.

    A kernel of ones counts the pixels that it meets, here of 3 x 3:

    >>> import numpy as np
    >>> import tinymaml as tm
    >>> f = tm.function(lambda w, x: tm.conv2d(x, w.reshape(3, 3, 1, 1)), "numpy")
    >>> f(np.ones(9), np.ones((1, 3, 3, 1))).reshape(3, 3)
    array([[4., 6., 4.],
           [6., 9., 6.],
           [4., 6., 4.]])
    """
    check_values(x=x, w=w)
    check_that(len(w.shape) == 4, "w", "a kernel (kh, kw, C, F)", f"shape {w.shape}")
    check_images(x)
    expected = f"images (N, H, W, C) with {w.shape[2]} channels"
    check_that(x.shape[3] == w.shape[2], "x", expected, f"shape {x.shape}")
    stride = whole_number("stride", stride)
    axes = zip(x.shape[1:3], w.shape[:2], strict=True)
    rows, columns = (same_padding(n, k, stride) for n, k in axes)
    size, padding = zip(rows, columns, strict=True)
    return x.tape.record("conv", x, w, stride=stride, padding=padding, size=size)


def check_windows(x: Value, size: int) -> None:
    """Raise an error unless the images x have a whole window."""
    check_images(x)
    fits = whole_number("size", size) <= min(x.shape[1:3])
    came = f"{size} for images of shape {x.shape}"
    check_that(fits, "size", "at most height and width", came)


def max_pool(x: Value, size: int = 2) -> Value:
    """The largest element of each window: (N, H, W, C) -> (N, H // size, W // size, C).

    Rows and columns after the last whole window are left out (VALID padding). Raises
    ValueError where x is not images (N, H, W, C) or has no whole window, TypeError for
    what is no `Value`.

    >>> import numpy as np
    >>> import tinymaml as tm
    >>> f = tm.function(lambda x: tm.max_pool(x.reshape(1, 2, 4, 1)), "numpy")
    >>> f(np.arange(8.0)).ravel()
    array([5., 7.])
    """
    check_windows(x, size)
    return x.tape.record("max_gather", x, x, size=size)


def mean_pool(x: Value, size: int | None = None) -> Value:
    """The mean of each window; by default of the whole image, for each channel.

    (N, H, W, C) -> (N, H / size, W / size, C), or (N, 1, 1, C). Raises ValueError where
    `size` does not divide H and W; `max_pool` leaves the rest out.

    >>> import numpy as np
    >>> import tinymaml as tm
    >>> f = tm.function(lambda x: tm.mean_pool(x.reshape(1, 2, 4, 1), 2), "numpy")
    >>> f(np.arange(8.0)).ravel()
    array([2.5, 4.5])
    """
    check_images(x)
    if size is not None:
        check_windows(x, size)
    n, height, width, channels = x.shape
    rows, columns = (height, width) if size is None else (size, size)
    fits = height % rows == width % columns == 0
    came = f"{size} for images of shape {x.shape}"
    check_that(fits, "size", "a divisor of height and width", came)
    out = (n, height // rows, width // columns, channels)
    windows = x.reshape(n, out[1], rows, out[2], columns, channels)
    return windows.mean((2, 4)).reshape(*out)
