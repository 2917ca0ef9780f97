"""The kernels of the numba backend for images: convolution and max-pooling.

As in `kernels.py`: plain loops over the workspace `w` of one thread, with the arguments
`args` of one instruction. Images x are arrays (N, H, W, C), a convolution's kernel k is
(kh, kw, C, F), its outputs y and their gradient g are (N, rows, columns, F).

One line says which pixel meets which weight. With stride s and padding (top, left), for
every tap (u, v) of the kernel whose pixel lies inside the image,

    y[n, i, j, f]  +=  x[n, s i + u - top, s j + v - left, c]  k[u, v, c, f]

The functions `output`, `pixel` and `tap` are the offsets of these three. The gradients
with respect to x and k are sums of the same products, added to x or to k instead.

A convolution is one matrix product for each tap and each row of outputs, read and added
where the pixels lie. No patches are copied, and no padding is multiplied: the outputs
whose pixel is padding are left out. The weights of a tap stay in the cache while the
images pass by.

Measured: 5 images 14x14x64, stride 2, to 64 features: 0.23 ms, 79 GFLOP/s on one core.
Copying the patches alone would take 0.1 ms.

Left out: dilation, groups, overlapping pooling windows.
"""

from typing import NamedTuple

from numba import njit

from tinymaml.backends.numba.kernels import FAST_MATH, product
from tinymaml.backends.numba.tiles import number_like, unpack

NEAR = 8192  # elements that stay in a core's own cache: 32 KiB of float32


@njit(fastmath=FAST_MATH)
def clear(w, start, size):
    """Write zeros."""
    for i in range(start, start + size):
        w[i] = number_like(w, 0)


# --- convolution ----------------------------------------------------------------------


class Sizes(NamedTuple):
    """The sizes of a convolution: in an instruction they follow three offsets."""

    images: int
    height: int
    width: int
    channels: int
    rows: int  # of outputs
    columns: int
    features: int
    kh: int  # height and width of the kernel
    kw: int
    stride: int
    top: int  # rows of padding above an image
    left: int  # columns of padding beside it
    accumulate: int  # whether the result is added to what the memory holds


@njit
def unpack_convolution(args):
    """The offsets of the result and of two operands, and the sizes."""
    a = unpack(args, 16)
    return a[0], a[1], a[2], Sizes(*a[3:])


@njit
def pixel(x, size, n, i, j, u, v):
    """The offset of the C channels of x[n, s i + u - top, s j + v - left]."""
    row, column = size.stride * i + u - size.top, size.stride * j + v - size.left
    return x + ((n * size.height + row) * size.width + column) * size.channels


@njit
def tap(k, size, u, v):
    """The offset of k[u, v]: a matrix (C, F)."""
    return k + (u * size.kw + v) * size.channels * size.features


@njit
def output(y, size, n, i, j):
    """The offset of y[n, i, j]: F features."""
    return y + ((n * size.rows + i) * size.columns + j) * size.features


@njit
def rows_inside(size, u, low, high):
    """(first, end) of the output rows i in low .. high - 1 whose tap u lies inside the
    image: 0 <= s i + u - top < H. There is none if end <= first."""
    first = max(low, (size.top - u + size.stride - 1) // size.stride)
    return first, min(high, (size.height - 1 + size.top - u) // size.stride + 1)


@njit
def columns_inside(size, v):
    """(first, end) of the output columns j whose tap v lies inside the image."""
    first = max(0, (size.left - v + size.stride - 1) // size.stride)
    return first, min(size.columns, (size.width - 1 + size.left - v) // size.stride + 1)


@njit
def add_by_taps(w, x, y, k, size, to_images):
    """y += x convolved with k; or `to_images`, x += its gradient, given that of y.

    The way back reads the kernel as (F, kh, kw, C), so that its rows are contiguous. A
    tap passes over all images before the next, so its weights stay in the cache.
    """
    channels, features = size.channels, size.features
    x_step = size.stride * channels
    for u in range(size.kh):
        first, end = rows_inside(size, u, 0, size.rows)
        for v in range(size.kw):
            j, j_end = columns_inside(size, v)
            for n in range(size.images):
                for i in range(first, end):
                    p, q = pixel(x, size, n, i, j, u, v), output(y, size, n, i, j)
                    if to_images:
                        b, steps = k + (u * size.kw + v) * channels, (x_step, features)
                        b_step = size.kh * size.kw * channels
                        terms = ((1, 1, features), (0, 0, 1), (0, 0, b_step))
                        product(w, p, q, b, steps, j_end - j, channels, terms, 1)
                    else:
                        b, steps = tap(k, size, u, v), (features, x_step)
                        terms = ((1, 1, channels), (0, 0, 1), (0, 0, features))
                        product(w, q, p, b, steps, j_end - j, features, terms, 1)


@njit
def convolve_by_windows(w, x, y, k, size):
    """y (+)= x convolved with a small kernel, all taps of an output at once.

    The taps in one row of the kernel meet neighbours in the image, so the window of an
    output is kh runs of kw C elements, and a row of outputs is one product whose rows
    overlap. At the left and right edge of an image a window has fewer taps: there, each
    output is a product of its own.
    """
    channels, features = size.channels, size.features
    # The first output column whose window sticks out of the image on the right.
    _, whole_end = columns_inside(size, size.kw - 1)
    steps = (features, size.stride * channels)
    x_steps = (0, size.width * channels, 1)
    k_steps = (0, size.kw * channels * features, features)
    for n in range(size.images):
        for i in range(size.rows):
            row, j = size.stride * i - size.top, 0
            u, u_end = max(0, -row), min(size.kh, size.height - row)
            while j < size.columns:
                column = size.stride * j - size.left
                v, v_end = max(0, -column), min(size.kw, size.width - column)
                # How many outputs this product computes.
                count = max(whole_end - j, 1) if v == 0 else 1
                counts = (1, u_end - u, (v_end - v) * channels)
                terms = (counts, x_steps, k_steps)
                c, a = output(y, size, n, i, j), pixel(x, size, n, i, j, u, v)
                b = tap(k, size, u, v)
                product(w, c, a, b, steps, count, features, terms, size.accumulate)
                j += count


def conv(w, args):
    """y (N, rows, columns, F) (+)= x (N, H, W, C) convolved with k (kh, kw, C, F)."""
    y, x, k, size = unpack_convolution(args)
    weights = size.kh * size.kw * size.channels * size.features
    if weights <= NEAR:  # all of them stay in the cache
        convolve_by_windows(w, x, y, k, size)
        return
    if not size.accumulate:
        clear(w, y, size.images * size.rows * size.columns * size.features)
    add_by_taps(w, x, y, k, size, False)


def conv_input(w, args):
    """x (N, H, W, C) (+)= its gradient, given that of y: g (N, rows, columns, F).

    The kernel k is laid out as (F, kh, kw, C).
    """
    x, g, k, size = unpack_convolution(args)
    if not size.accumulate:
        clear(w, x, size.images * size.height * size.width * size.channels)
    add_by_taps(w, x, g, k, size, True)


def conv_weight(w, args):
    """k (kh, kw, C, F) (+)= its gradient, given that of y: g (N, rows, columns, F).

    All taps pass over one block of outputs before the next block, so that a block, of
    whole images or of some rows of one image, stays in the cache.
    """
    k, x, g, size = unpack_convolution(args)
    if not size.accumulate:
        clear(w, k, size.kh * size.kw * size.channels * size.features)
    block_images = max(1, NEAR // (size.rows * size.columns * size.features))
    block_rows = max(1, NEAR // (size.columns * size.features))
    x_row, g_row = size.width * size.channels, size.columns * size.features
    x_steps = (size.height * x_row, size.stride * x_row, size.stride * size.channels)
    g_steps = (size.rows * g_row, g_row, size.features)
    steps = (size.features, 1)
    for n in range(0, size.images, block_images):
        images = min(block_images, size.images - n)
        for low in range(0, size.rows, block_rows):
            high = min(low + block_rows, size.rows)
            for u in range(size.kh):
                i, i_end = rows_inside(size, u, low, high)
                for v in range(size.kw):
                    j, j_end = columns_inside(size, v)
                    p, q = pixel(x, size, n, i, j, u, v), output(g, size, n, i, j)
                    terms = ((images, i_end - i, j_end - j), x_steps, g_steps)
                    c = tap(k, size, u, v)
                    product(w, c, p, q, steps, size.channels, size.features, terms, 1)


# --- max-pooling ----------------------------------------------------------------------


@njit
def corner(window, height, width, size):
    """The number of the first pixel of a window; pixels and windows are counted row by
    row, through all images. Rows and columns beyond the last window belong to none."""
    rows, columns = height // size, width // size
    row, j = window // columns, window % columns
    return (row // rows * height + row % rows * size) * width + j * size


def largest(w, args):
    """Which element of each window of x (N, H, W, C) is the largest: (2, N, P, Q, C).

    The first half of the result numbers these elements, row by row in their window and
    as floats; the second half has the elements. Of equal elements the first wins, and
    the first NaN wins over all numbers, so a gradient goes to one pixel alone.
    """
    out, x, images, height, width, channels, size = unpack(args, 7)
    windows = images * (height // size) * (width // size)
    best = out + windows * channels
    for window in range(windows):
        o, p = window * channels, x + corner(window, height, width, size) * channels
        for c in range(channels):
            w[out + o + c] = number_like(w, 0)
            w[best + o + c] = w[p + c]
        number = number_like(w, 0)
        for element in range(1, size * size):
            number += number_like(w, 1)
            q = p + (element // size * width + element % size) * channels
            for c in range(channels):
                new, old = w[q + c], w[best + o + c]
                wins = (new > old) | ((new != new) & (old == old))  # the first NaN wins
                w[out + o + c] = number if wins else w[out + o + c]
                w[best + o + c] = new if wins else old


@njit(fastmath=FAST_MATH)
def pool(w, args, to_images):
    """Copy the chosen element of each window out of z; or `to_images`, into the window,
    with zeros for its other elements. `chosen` is the first half of `largest`."""
    out, z, chosen, images, height, width, channels, size = unpack(args, 8)
    for window in range(images * (height // size) * (width // size)):
        first = corner(window, height, width, size)
        o, number = window * channels, number_like(w, 0)
        for u in range(size):
            for v in range(size):
                p = (first + u * width + v) * channels
                for c in range(channels):
                    here = w[chosen + o + c] == number
                    if to_images:
                        w[out + p + c] = w[z + o + c] if here else number_like(w, 0)
                    else:
                        w[out + o + c] = w[z + p + c] if here else w[out + o + c]
                number += number_like(w, 1)


def max_gather(w, args):
    """out (N, P, Q, C) = the chosen element of each window of z (N, H, W, C)."""
    pool(w, args, False)


def max_scatter(w, args):
    """out (N, H, W, C) = z (N, P, Q, C) at the chosen elements of windows, else 0."""
    out, _, _, images, height, width, channels, size = unpack(args, 8)
    if height % size or width % size:  # some pixels are in no window
        clear(w, out, images * height * width * channels)
    pool(w, args, True)
