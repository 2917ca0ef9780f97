"""Rows of the table of primitives for images: convolution and max-pooling.

Images are arrays (N, H, W, C): examples, height, width, channels. Convolution is one
sum of products of three arrays, linear in each of them:

    sum over n i j u v c f of  x[n, s i + u - top, s j + v - left, c] w[u, v, c, f]
                               g[n, i, j, f]                    (x is zero outside)

Its derivative in g is the convolution of x with w; in x, what a cotangent g sends back
to x; in w, what it sends back to w. These are three rows, and the derivatives of each
are the other two: the set stays closed. All three are loops over the taps (u, v) of the
kernel, one matrix product each, so no patches need be copied out.

Max-pooling is two rows that are each other's transpose: `max_gather` picks from one
array, in each window, where another array is largest; `max_scatter` puts it back there.

Left out: dilation, groups, overlapping pooling windows.
"""

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from tinymaml.autodiff.primitives import Array, Primitive, Shape, expect
from tinymaml.checks import check_sizes

if TYPE_CHECKING:
    from tinymaml.autodiff.tape import Value


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """(output size, zeros before the first element) by TensorFlow's SAME rule.

    The output has ceil(size / stride) elements; of an odd number of zeros the larger
    half goes behind.

    >>> same_padding(28, 3, 2), same_padding(7, 3, 2), same_padding(84, 3, 1)
    ((14, 0), (4, 1), (84, 1))
    """
    out = -(-size // stride)
    return out, max((out - 1) * stride + kernel - size, 0) // 2


# --- convolution ----------------------------------------------------------------------


class Window:
    """How a kernel lies over images: where each of its taps meets them.

    `padded` is the shape of images (T, N, H, W, C) with every tap inside them,
    `inside` where the images lie in it.
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
        rows, columns = (
            slice(p, p + n) for p, n in zip(padding, images[2:4], strict=True)
        )
        self.inside = (slice(None), slice(None), rows, columns)

    def pad(self, x: Array) -> Array:
        """The images with zeros around them."""
        padded = np.zeros(self.padded, x.dtype)
        padded[self.inside] = x
        return padded

    def taps(self, padded: Array) -> Iterator[tuple[int, int, Array]]:
        """(u, v, view) for each tap: the elements (T, N, *out, C) that it meets."""
        (height, width), s = self.out, self.stride
        for u in range(self.kernel[0]):
            for v in range(self.kernel[1]):
                met = padded[:, :, u : u + s * height : s, v : v + s * width : s]
                yield u, v, met


def pixels(x: Array) -> Array:
    """(T, N, H, W, C) -> (T, N H W, C): a matrix for each task."""
    return x.reshape(len(x), -1, x.shape[-1])


def tasks_of(*arrays: Array) -> int:
    """The length of the task axis that arrays have together."""
    return max(len(a) for a in arrays)


class Convolution(Primitive):
    """What the three rows have in common: they are bilinear.

    `size` is what the arguments do not tell: height and width of the result.
    """

    def jvp(i, t, out, a, b, **attributes):
        name = out.tape.nodes[out.index].primitive.name
        return t.tape.record(name, *((a, t) if i else (t, b)), **attributes)


def expect_images(name: str, a: Shape, b: Shape, meet: bool) -> None:
    """Raise ValueError unless both have rank 4 and the axes that meet are equal."""
    expect(len(a) == len(b) == 4, f"{name} needs two arrays of rank 4, got {a} and {b}")
    expect(meet, f"{name}: sizes do not fit, {a} and {b}")


# [convolution]
class Conv(Convolution):
    """x (N, H, W, C) convolved with w (kh, kw, C, F): (N, *size, F)."""

    name = "conv"

    def shape(x, w, *, stride, padding, size):
        expect_images("conv", x, w, x[-1:] == w[-2:-1])
        return (x[0], *size, w[3])

    def evaluate(x, w, *, stride, padding, size):
        window = Window(x.shape, w.shape[1:3], size, stride, padding)
        out = np.zeros((), x.dtype)
        for u, v, met in window.taps(window.pad(x)):
            out = out + pixels(met) @ w[:, u, v]
        return out.reshape(len(out), x.shape[1], *size, -1)

    def vjp(i, g, out, x, w, *, stride, padding, size):
        how = {"stride": stride, "padding": padding}
        if i == 0:
            return g.tape.record("conv_input", g, w, size=x.shape[1:3], **how)
        return g.tape.record("conv_weight", x, g, size=w.shape[:2], **how)

    def flops(out, x, w, **attributes):
        return 2 * prod(out) * prod(w[:3])


# [/convolution]


class ConvInput(Convolution):
    """What g (N, H', W', F) sends back to x through w (kh, kw, C, F): (N, *size, C)."""

    name = "conv_input"

    def shape(g, w, *, stride, padding, size):
        expect_images("conv_input", g, w, g[-1:] == w[-1:])
        return (g[0], *size, w[2])

    def evaluate(g, w, *, stride, padding, size):
        images = (tasks_of(g, w), g.shape[1], *size, w.shape[3])
        window = Window(images, w.shape[1:3], g.shape[2:4], stride, padding)
        total = np.zeros(window.padded, g.dtype)
        for u, v, met in window.taps(total):
            met += (pixels(g) @ w[:, u, v].mT).reshape(met.shape)
        return total[window.inside]

    def vjp(i, x, out, g, w, *, stride, padding, size):
        how = {"stride": stride, "padding": padding}
        if i == 0:
            return x.tape.record("conv", x, w, size=g.shape[1:3], **how)
        return x.tape.record("conv_weight", x, g, size=w.shape[:2], **how)

    def flops(out, g, w, **attributes):
        return 2 * prod(g) * prod(w[:3])


class ConvWeight(Convolution):
    """What g (N, H', W', F) sends back to w where it met x: (*size, C, F)."""

    name = "conv_weight"

    def shape(x, g, *, stride, padding, size):
        expect_images("conv_weight", x, g, x[0] == g[0])
        return (*size, x[3], g[3])

    def evaluate(x, g, *, stride, padding, size):
        window = Window(x.shape, size, g.shape[2:4], stride, padding)
        shape = (tasks_of(x, g), *size, x.shape[4], g.shape[4])
        total = np.empty(shape, x.dtype)
        for u, v, met in window.taps(window.pad(x)):
            total[:, u, v] = pixels(met).mT @ pixels(g)
        return total

    def vjp(i, w, out, x, g, *, stride, padding, size):
        how = {"stride": stride, "padding": padding}
        if i == 0:
            return w.tape.record("conv_input", g, w, size=x.shape[1:3], **how)
        return w.tape.record("conv", x, w, size=g.shape[1:3], **how)

    def flops(out, x, g, **attributes):
        return 2 * prod(out) * prod(g[:3])


# --- max-pooling ----------------------------------------------------------------------


def pooled(x: Shape, size: int) -> Shape:
    """The shape of whole windows of images (N, H, W, C)."""
    return (x[0], x[1] // size, x[2] // size, x[3])


def places(x: Array, size: int) -> Iterator[tuple[int, Array]]:
    """(number, view) for each place in a window: its elements (T, N, H', W', C)."""
    height, width = (n // size * size for n in x.shape[2:4])
    for number in range(size * size):
        u, v = divmod(number, size)
        yield number, x[:, :, u:height:size, v:width:size]


def largest(x: Array, size: int) -> Array:
    """The first place of each window that holds its largest element, or a NaN."""
    return np.stack([view for _, view in places(x, size)]).argmax(axis=0)


def expect_windows(name: str, x: Shape, size: int) -> None:
    """Raise ValueError unless images have at least one whole window."""
    good = len(x) == 4 and size >= 1 and min(x[1:3]) >= size
    expect(good, f"{name}: no window of {size} by {size} in images of shape {x}")


class MaxGather(Primitive):
    """a where x is largest in each window: (N, H // size, W // size, C).

    Both are (N, H, W, C); of equal elements the first is taken, rows before columns.
    Linear in a; the derivative in x is zero.
    """

    name = "max_gather"

    def shape(a, x, *, size):
        expect_windows("max_gather", x, size)
        expect(a == x, f"max_gather: shapes must be equal, got {a} and {x}")
        return pooled(x, size)

    def evaluate(a, x, *, size):
        chosen = largest(x, size)
        return sum(np.where(chosen == i, view, 0) for i, view in places(a, size))

    def vjp(i, g, out, a, x, *, size):
        return None if i else g.tape.record("max_scatter", g, x, size=size)

    def jvp(i, t, out, a, x, *, size):
        return None if i else t.tape.record("max_gather", t, x, size=size)


class MaxScatter(Primitive):
    """g (N, H // size, W // size, C), put where x (N, H, W, C) is largest; else 0."""

    name = "max_scatter"

    def shape(g, x, *, size):
        expect_windows("max_scatter", x, size)
        good = g == pooled(x, size)
        expect(good, f"max_scatter: {g} does not fit windows of {size} in {x}")
        return x

    def evaluate(g, x, *, size):
        chosen = largest(x, size)
        out = np.zeros((tasks_of(g, x), *x.shape[1:]), g.dtype)
        for i, view in places(out, size):
            view[...] = np.where(chosen == i, g, 0)
        return out

    def vjp(i, a, out, g, x, *, size):
        return None if i else a.tape.record("max_gather", a, x, size=size)

    def jvp(i, t, out, g, x, *, size):
        return None if i else t.tape.record("max_scatter", t, x, size=size)


# --- functions of values --------------------------------------------------------------


def check_images(shape: Shape) -> None:
    """Raise ValueError unless this is the shape of images."""
    if len(shape) != 4:
        raise ValueError(f"x: expected images (N, H, W, C), got shape {shape}")


def conv2d(x: "Value", w: "Value", stride: int = 1) -> "Value":
    """x (N, H, W, C) convolved with w (kh, kw, C, F), SAME padding: (N, H', W', F).

    H' = ceil(H / stride). As in every network library this is a correlation: the kernel
    is not turned round.
    """
    if len(w.shape) != 4:
        raise ValueError(f"w: expected a kernel (kh, kw, C, F), got shape {w.shape}")
    check_images(x.shape)
    if x.shape[3] != w.shape[2]:
        raise ValueError(
            f"x: expected images (N, H, W, C) with {w.shape[2]} channels, "
            f"got shape {x.shape}"
        )
    check_sizes(stride=stride)
    size, padding = zip(
        *(
            same_padding(n, k, stride)
            for n, k in zip(x.shape[1:3], w.shape[:2], strict=True)
        ),
        strict=True,
    )
    how = {"stride": stride, "padding": padding, "size": size}
    return x.tape.record("conv", x, w, **how)


def check_windows(shape: Shape, size: int) -> None:
    """Raise an error unless images of this shape have a whole window."""
    check_sizes(size=size)
    if size > min(shape[1:3]):
        raise ValueError(
            f"size: expected at most height and width, got {size} for images of shape "
            f"{shape}"
        )


def max_pool(x: "Value", size: int = 2) -> "Value":
    """The largest element of each window: (N, H, W, C) -> (N, H // size, W // size, C).

    Rows and columns beyond the last whole window are left out (VALID).
    """
    check_images(x.shape)
    check_windows(x.shape, size)
    return x.tape.record("max_gather", x, x, size=size)


def mean_pool(x: "Value", size: int | None = None) -> "Value":
    """The mean of each window, of the whole map by default.

    (N, H, W, C) -> (N, H / size, W / size, C), or (N, 1, 1, C).
    """
    check_images(x.shape)
    n, height, width, channels = x.shape
    rows, columns = (height, width) if size is None else (size, size)
    if size is not None:
        check_windows(x.shape, size)
    if height % rows or width % columns:
        raise ValueError(
            f"size: expected a divisor of height and width, got {size} for images of "
            f"shape {x.shape}"
        )
    out = (n, height // rows, width // columns, channels)
    return (
        x.reshape(n, out[1], rows, out[2], columns, channels).mean((2, 4)).reshape(*out)
    )
