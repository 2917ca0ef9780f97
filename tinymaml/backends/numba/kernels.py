"""The kernels of the numba backend: plain Python loops over one flat workspace.

Every kernel has the same two parameters: `w`, the workspace of one thread, and `args`,
the arguments of one instruction: offsets into `w`, then sizes. The first line of a
kernel gives them names. Since all kernels have one machine signature, an instruction
calls its kernel through an address, and each kernel is compiled on its own, when a tape
first needs it.

The loops are written so that the compiler vectorises them:

- A kernel does not write where it reads, except where its docstring says so.
- Offsets plus counters are never negative, so no bounds or wraparound are checked.
- Fast-math may contract, reassociate and ignore the sign of a zero. It may not assume
  that there is no NaN and no infinity: these are results, and they must come out. It
  may not divide by way of the processor's estimate of a reciprocal either, which makes
  1 / sqrt(0) a NaN in float32.

Compiled kernels are kept on disk (`kernel_cache.py`) and compiled again when this file
or another with compiled functions has changed.

Left out: the kernels for images, which are in `image_kernels.py`.
"""

import operator
from collections.abc import Callable

import numpy as np
from numba import njit

from tinymaml.backends.numba.tiles import (
    WIDE,
    lanes,
    number_like,
    tile_add,
    tile_store,
    tile_update,
    tile_zero,
    transpose_block,
    unpack,
)

FAST_MATH = {"contract", "reassoc", "nsz"}
NEAR_TERMS = 64  # rows of a strip of B that stay in the first-level cache; measured


# --- matrix products ------------------------------------------------------------------

# All functions here compute C = A B for C (m, n), A (m, k) and B (k, n), or C += A B to
# `accumulate`. `c`, `a` and `b` are offsets in the workspace. Two tuples say how the
# matrices lie there, in elements:
#
# steps: (from row to row of C, from row to row of A). A transposed A, or one with
#     overlapping rows, needs no kernel of its own.
# terms: (counts, steps in A, steps in B). A sum runs over its k terms in three nested
#     loops; each tuple has a number for each loop. A plain product needs the innermost
#     loop only, a window of an image one more for its rows, and the gradient of a
#     convolution's weights all three: images, rows and columns of outputs.


def _tile_kernel(rows: int, vectors: int, masked: bool) -> Callable[..., None]:
    """A kernel for one tile of C, from row `i` on, summed up in registers.

    The tile is `rows` times `vectors`. If it is `masked`, it can store fewer columns
    than the tile has.
    """

    @njit(fastmath=FAST_MATH, forceinline=True)
    def tile_product(w, c, a, b, i, steps, terms, accumulate, columns):
        c_step, a_step = steps
        counts, a_steps, b_steps = terms
        c, a = c + i * c_step, a + i * a_step
        tile = tile_zero(w, rows, vectors)
        for _ in range(counts[0]):
            a_run, b_run = a, b
            for _ in range(counts[1]):
                p, q = a_run, b_run
                for _ in range(counts[2]):
                    tile = tile_update(tile, w, p, a_step, q)
                    p += a_steps[2]
                    q += b_steps[2]
                a_run += a_steps[1]
                b_run += b_steps[1]
            a += a_steps[0]
            b += b_steps[0]
        if accumulate:  # last, so that C grows by sums and not by single terms
            tile = tile_add(tile, w, c, c_step)
        if masked and columns < vectors * lanes(w):
            tile_store(tile, w, c, c_step, columns)
        else:  # the width is a constant here, so these stores have no mask
            tile_store(tile, w, c, c_step, vectors * lanes(w))

    return tile_product


def _strip_kernel(rows: int, vectors: int, masked: bool = False) -> Callable[..., None]:
    """A kernel for a strip of C: tiles of `rows` rows, then of two, then of one."""
    tall, pair, single = (_tile_kernel(r, vectors, masked) for r in (rows, 2, 1))

    @njit(fastmath=FAST_MATH, forceinline=True)
    def strip_product(w, c, a, b, steps, m, terms, accumulate, columns):
        i = 0
        while i + rows <= m:
            tall(w, c, a, b, i, steps, terms, accumulate, columns)
            i += rows
        while rows > 2 and i + 2 <= m:
            pair(w, c, a, b, i, steps, terms, accumulate, columns)
            i += 2
        if i < m:
            single(w, c, a, b, i, steps, terms, accumulate, columns)

    return strip_product


# The sums of a tile fill 8 to 16 registers and do not depend on each other: a processor
# begins an addition while others are on their way. Strips that may be the last of C are
# masked, because n need not be a multiple of their width.
strip_8, strip_4 = _strip_kernel(4, 8), _strip_kernel(2, 4)
strip_5, strip_1 = _strip_kernel(2, 5, masked=True), _strip_kernel(8, 1, masked=True)


@njit(fastmath=FAST_MATH)
def product(w, c, a, b, steps, m, n, terms, accumulate):
    """C (+)= A B, strip by strip: the strip of B stays in the first-level cache while
    all rows of A pass over it.

    A width of a multiple of five vectors (40 units in float32) is cut into strips of
    five. Any other is cut into strips of eight, where registers are wide, then of four,
    or of five if that covers the rest, then of one. The last strip stores its last
    vector with a mask. What it reads behind the columns of B and C is not used, but the
    workspace must have room for it: one vector behind its end.
    """
    width = lanes(w)
    fives = n // (5 * width) if n % (5 * width) == 0 else 0
    j = 0
    for _ in range(fives):
        strip_5(w, c + j, a, b + j, steps, m, terms, accumulate, 5 * width)
        j += 5 * width
    while WIDE and j + 8 * width <= n:
        strip_8(w, c + j, a, b + j, steps, m, terms, accumulate, 8 * width)
        j += 8 * width
    if 4 * width < n - j < 5 * width:
        strip_5(w, c + j, a, b + j, steps, m, terms, accumulate, n - j)
        j = n
    while j + 4 * width <= n:
        strip_4(w, c + j, a, b + j, steps, m, terms, accumulate, 4 * width)
        j += 4 * width
    while j < n:
        columns = min(n - j, width)
        strip_1(w, c + j, a, b + j, steps, m, terms, accumulate, columns)
        j += width


def matmul(w, args):
    """C (m, n) (+)= A (m, k) B (k, n), where A is read by two steps: it may be
    transposed. Long sums are cut, so that the rows of B in use stay in the cache."""
    c, a, b, m, n, k, a_step, k_step, accumulate = unpack(args, 9)
    for p in range(0, k, NEAR_TERMS):
        counts = (1, 1, min(k - p, NEAR_TERMS))
        terms = (counts, (0, 0, k_step), (0, 0, n))
        left, right = a + p * k_step, b + p * n
        product(w, c, left, right, (n, a_step), m, n, terms, accumulate or p)


def dots(w, args):
    """C (m, n) (+)= A (m, k) B^T, B (n, k): dot products of rows, for a small n.

    Vectors lie along k here, because along so few columns they would be mostly empty.
    """
    c, a, b, m, n, k, accumulate = unpack(args, 7)
    for i in range(m):
        for j in range(n):
            total = np.float64(w[c + i * n + j] if accumulate else 0)
            for start in range(0, k, NEAR_TERMS):
                part = number_like(w, 0)
                for p in range(start, min(start + NEAR_TERMS, k)):
                    part += w[a + i * k + p] * w[b + j * k + p]
                total += part
            w[c + i * n + j] = total


def transpose(w, args):
    """out (n, m) = x (m, n) transposed: square blocks in registers, then the edges."""
    out, x, m, n = unpack(args, 4)
    width = lanes(w)
    i = 0
    while i + width <= m:
        j = 0
        while j + width <= n:
            transpose_block(w, out + j * m + i, m, x + i * n + j, n)
            j += width
        while j < n:
            for r in range(i, i + width):
                w[out + j * m + r] = w[x + r * n + j]
            j += 1
        i += width
    while i < m:
        for j in range(n):
            w[out + j * m + i] = w[x + i * n + j]
        i += 1


def swap(w, args):
    """out (outer, n, m, inner) = x (outer, m, n, inner), two axes exchanged."""
    out, x, outer, m, n, inner = unpack(args, 6)
    for o in range(outer):
        for j in range(n):
            for i in range(m):
                row = x + ((o * m + i) * n + j) * inner
                for p in range(inner):
                    w[out + p] = w[row + p]
                out += inner


# --- elementwise ----------------------------------------------------------------------


def _unary(function: Callable[..., float]) -> Callable[..., None]:
    """A kernel of one operand: out = function(x)."""

    def kernel(w, args):
        out, x, n = unpack(args, 3)
        for i in range(n):
            w[out + i] = function(w[x + i])

    return kernel


exp, log, tanh, copy = (_unary(f) for f in (np.exp, np.log, np.tanh, operator.pos))
reciprocal, sin, cos = (_unary(f) for f in (np.reciprocal, np.sin, np.cos))


def rsqrt(w, args):
    """out = 1 / sqrt(x)."""
    out, x, n = unpack(args, 3)
    one = number_like(w, 1)
    for i in range(n):
        w[out + i] = one / np.sqrt(w[x + i])


def relu(w, args):
    """out = max(x, 0); NaN stays NaN, because no comparison with it is true."""
    out, x, n = unpack(args, 3)
    zero = number_like(w, 0)
    for i in range(n):
        w[out + i] = zero if w[x + i] <= zero else w[x + i]


def gate(w, args):
    """out = x where y > 0 or y is NaN, else 0: the derivative of relu at y, times x."""
    out, x, y, n = unpack(args, 4)
    zero = number_like(w, 0)
    for i in range(n):
        w[out + i] = zero if w[y + i] <= zero else w[x + i]


def scale(w, args):
    """out = x * number; the number is a constant that lies in the workspace."""
    out, x, constant, n = unpack(args, 4)
    number = w[constant]
    for i in range(n):
        w[out + i] = w[x + i] * number


def pad(w, args):
    """out (n,) = zeros, with x (length,) at `start`."""
    out, x, start, length, n = unpack(args, 5)
    for i in range(n):
        w[out + i] = number_like(w, 0)
    for i in range(length):
        w[out + start + i] = w[x + i]


# --- broadcasts and sums --------------------------------------------------------------

# A broadcast or sum over neighbouring axes is one over the middle of three axes (outer,
# middle, inner), once the axes before and those behind are merged. The innermost loop
# runs along `inner`, or along `middle` where `inner` is 1: vectors need long loops.


def _binary(
    combine: Callable[..., float], accumulate: bool = False
) -> Callable[..., None]:
    """A kernel of two operands: out (outer, middle, inner) (+)= combine(x, y).

    x has the shape of out; y is (outer, 1, inner), repeated along the middle. A plain
    elementwise operation has a middle of 1. With `accumulate` the kernel reads each
    element of out before it writes it.
    """

    def kernel(w, args):
        out, x, y, outer, middle, inner = unpack(args, 6)
        for o in range(outer):
            first, last = o * middle, (o + 1) * middle
            if inner == 1:
                number = w[y + o]
                for m in range(first, last):
                    value = combine(w[x + m], number)
                    w[out + m] = w[out + m] + value if accumulate else value
            else:
                r = y + o * inner
                for m in range(first * inner, last * inner, inner):
                    for i in range(inner):
                        value = combine(w[x + m + i], w[r + i])
                        w[out + m + i] = w[out + m + i] + value if accumulate else value

    return kernel


add, sub, mul = (_binary(f) for f in (operator.add, operator.sub, operator.mul))
mul_add = _binary(operator.mul, accumulate=True)


def add_relu(w, args):
    """out = max(x + y, 0), shapes as for `add`: a bias y, then relu, in one pass."""
    out, x, y, outer, middle, inner = unpack(args, 6)
    zero = number_like(w, 0)
    for o in range(outer):
        r = y + o * inner
        for m in range(o * middle * inner, (o + 1) * middle * inner, inner):
            for i in range(inner):
                total = w[x + m + i] + w[r + i]
                w[out + m + i] = zero if total <= zero else total


def broadcast(w, args):
    """out (outer, middle, inner) = x (outer, inner), repeated along the middle."""
    out, x, outer, middle, inner = unpack(args, 5)
    for o in range(outer):
        for m in range(middle):
            row = out + (o * middle + m) * inner
            for i in range(inner):
                w[row + i] = w[x + o * inner + i]


def _sum_kernel(multiply: bool) -> Callable[..., None]:
    """A kernel of a sum: out (outer, blocks, inner) = sums of x along the middle axis.

    x is (outer, middle, inner), and the middle axis is cut into so many blocks of about
    the same length. To `multiply`, the terms are x * y, which is not stored; y has the
    shape of x.
    """

    def kernel(w, args):
        if multiply:
            out, x, y, outer, middle, inner, blocks = unpack(args, 7)
        else:
            out, x, outer, middle, inner, blocks = unpack(args, 6)
            y = x
        for block in range(outer * blocks):
            o, b = block // blocks, block % blocks
            first = (o * middle + b * middle // blocks) * inner
            last = (o * middle + (b + 1) * middle // blocks) * inner
            if inner == 1:
                total = number_like(w, 0)
                for m in range(first, last):
                    total += w[x + m] * w[y + m] if multiply else w[x + m]
                w[out + block] = total
            else:
                r = out + block * inner
                for i in range(first, first + inner):
                    w[r + i - first] = w[x + i] * w[y + i] if multiply else w[x + i]
                for m in range(first + inner, last, inner):
                    for i in range(inner):
                        term = w[x + m + i] * w[y + m + i] if multiply else w[x + m + i]
                        w[r + i] += term

    return kernel


sum, mul_sum = _sum_kernel(multiply=False), _sum_kernel(multiply=True)


# --- rows of logits -------------------------------------------------------------------


def softmax(w, args):
    """out[r, :] = exp(x[r, :]) / sum(exp(x[r, :])).

    The largest element of a row is subtracted first, or exp would overflow.
    """
    out, x, rows, n = unpack(args, 4)
    for r in range(rows):
        largest = w[x + r * n]
        for i in range(1, n):
            largest = max(largest, w[x + r * n + i])
        total = np.float64(0)  # there may be thousands of classes
        for i in range(n):
            w[out + r * n + i] = np.exp(w[x + r * n + i] - largest)
            total += w[out + r * n + i]
        for i in range(n):
            w[out + r * n + i] /= total


def logsumexp(w, args):
    """out[r] = log(sum(exp(x[r, :]))).

    The largest element of a row is subtracted first and added to the logarithm.
    """
    out, x, rows, n = unpack(args, 4)
    for r in range(rows):
        largest = w[x + r * n]
        for i in range(1, n):
            largest = max(largest, w[x + r * n + i])
        if np.isinf(largest):  # no inf - inf
            largest = number_like(w, 0)
        total = np.float64(0)
        for i in range(n):
            total += np.exp(w[x + r * n + i] - largest)
        w[out + r] = largest + np.log(total)
