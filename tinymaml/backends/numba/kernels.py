"""The kernels of the numba backend: plain Python loops over one flat workspace.

Every kernel has the same two arguments: `w`, the workspace of one thread, and `a`, one
row of the code, which lists offsets into `w` and sizes. The row's layout is the
kernel's first line. So all kernels have one machine signature and can be called through
a table of addresses, and each is compiled on its own, when a tape first needs it.

Kernels never write where they read, except where a docstring says so; each then
vectorises. Indices into `w` are offsets plus counters and are never negative, so no
bounds or wraparound are checked. Fast-math is limited to contraction, reassociation and
reciprocals: never to the flags that assume NaN and infinity away.

Compiled kernels are kept on disk until this file, `image_kernels.py` or `tiles.py` is
newer than they are.
"""

import operator
from collections.abc import Callable

import numpy as np
from numba import njit

from tinymaml.backends.numba.tiles import (
    WIDE,
    lanes,
    number_like,
    tile_load,
    tile_store,
    tile_update,
    tile_zero,
    transpose_block,
)

FAST_MATH = {"contract", "reassoc", "nsz", "arcp"}
NEAR_TERMS = 64  # rows of a strip of B that stay in the first-level cache; measured


# --- matrix products ------------------------------------------------------------------


def _tile_kernel(rows: int, vectors: int, part: bool) -> Callable[..., None]:
    """One tile of C (+)= A B; of a `part` only the first `columns` are stored."""

    @njit(fastmath=FAST_MATH, forceinline=True)
    def tile_product(w, c, cs, a, rs, ks, b, bs, k, more, columns):
        runs, length, a_jump, b_jump = k
        tile = tile_zero(w, rows, vectors)
        if more:
            tile = tile_load(tile, w, c, cs)
        for _ in range(runs):
            for _ in range(length):
                tile = tile_update(tile, w, a, rs, b)
                a += ks
                b += bs
            a += a_jump
            b += b_jump
        if part and columns < vectors * lanes(w):
            tile_store(tile, w, c, cs, columns)
        else:
            tile_store(tile, w, c, cs, vectors * lanes(w))

    return tile_product


def _strip_kernel(rows: int, vectors: int, part: bool = False) -> Callable[..., None]:
    """A strip of columns of C (+)= A B: tiles of so many rows, of two, and of one."""
    tall, pair, flat = (_tile_kernel(r, vectors, part) for r in (rows, 2, 1))

    @njit(fastmath=FAST_MATH, forceinline=True)
    def strip_product(w, c, cs, a, rs, ks, b, bs, m, k, more, columns):
        i = 0
        while i + rows <= m:
            tall(w, c + i * cs, cs, a + i * rs, rs, ks, b, bs, k, more, columns)
            i += rows
        while rows > 2 and i + 2 <= m:
            pair(w, c + i * cs, cs, a + i * rs, rs, ks, b, bs, k, more, columns)
            i += 2
        if i < m:
            flat(w, c + i * cs, cs, a + i * rs, rs, ks, b, bs, k, more, columns)

    return strip_product


strip_8, strip_4 = _strip_kernel(4, 8), _strip_kernel(2, 4)
strip_5, strip_1 = _strip_kernel(2, 5, part=True), _strip_kernel(8, 1, part=True)


@njit(fastmath=FAST_MATH)
def product(w, c, cs, a, rs, ks, b, bs, m, n, k, more):
    """C (+)= A B for C (m, n), A (m, k), B (k, n), rows `cs`, `rs`, `bs` apart.

    Elements of a row of A are `ks` apart, so A may be transposed. `k` is (runs, length,
    jump in A, jump in B): after every `length` terms both skip what lies between.

    C is made in strips of columns, so that the strip of B stays in the first-level
    cache while the rows of A pass by. A width that is a multiple of five vectors (40
    units in float32) is cut into strips of five, any other into strips of eight where
    registers are wide, then four, or five if that is the rest, then single vectors. The
    last vector may be stored in part; what it reads behind the columns of B and C is
    thrown away. Rows go four by four where registers are wide, else two by two, and
    eight by eight in narrow strips: enough sums to hide the time an addition takes.
    """
    width = lanes(w)
    fives = n // (5 * width) if n % (5 * width) == 0 else 0
    j = 0
    for _ in range(fives):
        strip_5(w, c + j, cs, a, rs, ks, b + j, bs, m, k, more, 5 * width)
        j += 5 * width
    while WIDE and j + 8 * width <= n:
        strip_8(w, c + j, cs, a, rs, ks, b + j, bs, m, k, more, 8 * width)
        j += 8 * width
    if 4 * width < n - j < 5 * width:
        strip_5(w, c + j, cs, a, rs, ks, b + j, bs, m, k, more, n - j)
        j = n
    while j + 4 * width <= n:
        strip_4(w, c + j, cs, a, rs, ks, b + j, bs, m, k, more, 4 * width)
        j += 4 * width
    while j < n:
        strip_1(w, c + j, cs, a, rs, ks, b + j, bs, m, k, more, min(n - j, width))
        j += width


def matmul(w, a):
    """C (+)= A B for C (m, n), B (k, n); A read by strides, so it may be transposed."""
    c, x, y, m, n, k = a[0], a[1], a[2], a[3], a[4], a[5]
    rs, ks, more = a[6], a[7], a[8]
    for p in range(0, k, NEAR_TERMS):
        terms = (1, min(k - p, NEAR_TERMS), 0, 0)
        product(w, c, n, x + p * ks, rs, ks, y + p * n, n, m, n, terms, more or p)


def dots(w, a):
    """C (+)= A B^T for A (m, k), B (n, k): products of rows, where B has few."""
    c, x, y, m, n, k, more = a[0], a[1], a[2], a[3], a[4], a[5], a[6]
    for i in range(m):
        for j in range(n):
            total = w[c + i * n + j] if more else number_like(w, 0)
            for p in range(k):
                total += w[x + i * k + p] * w[y + j * k + p]
            w[c + i * n + j] = total


def transpose(w, a):
    """out (n, m) = A (m, n) transposed."""
    out, x, m, n = a[0], a[1], a[2], a[3]
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


# --- elementwise ----------------------------------------------------------------------


def _of_one(function: Callable[..., float]) -> Callable[..., None]:
    """A kernel of one argument: out = function(x)."""

    def kernel(w, a):
        out, x, n = a[0], a[1], a[2]
        for i in range(n):
            w[out + i] = function(w[x + i])

    return kernel


exp, log, tanh, copy = (_of_one(f) for f in (np.exp, np.log, np.tanh, operator.pos))


def reciprocal(w, a):
    """out = 1 / x."""
    out, x, n = a[0], a[1], a[2]
    one = number_like(w, 1)
    for i in range(n):
        w[out + i] = one / w[x + i]


def rsqrt(w, a):
    """out = 1 / sqrt(x)."""
    out, x, n = a[0], a[1], a[2]
    one = number_like(w, 1)
    for i in range(n):
        w[out + i] = one / np.sqrt(w[x + i])


def relu(w, a):
    """out = max(x, 0); NaN stays NaN."""
    out, x, n = a[0], a[1], a[2]
    zero = number_like(w, 0)
    for i in range(n):
        w[out + i] = zero if w[x + i] <= zero else w[x + i]


def gate(w, a):
    """out = x where y > 0 (or is NaN), else 0."""
    out, x, y, n = a[0], a[1], a[2], a[3]
    zero = number_like(w, 0)
    for i in range(n):
        w[out + i] = zero if w[y + i] <= zero else w[x + i]


def scale(w, a):
    """out = x * number, the number being a constant of the workspace."""
    out, x, number, n = a[0], a[1], w[a[2]], a[3]
    for i in range(n):
        w[out + i] = w[x + i] * number


def pad(w, a):
    """out = zeros with x, of `length`, at `start`."""
    out, x, start, length, n = a[0], a[1], a[2], a[3], a[4]
    for i in range(n):
        w[out + i] = number_like(w, 0)
    for i in range(length):
        w[out + start + i] = w[x + i]


# --- broadcasts and sums: (outer, middle, inner), the middle axis repeated or summed --


def _of_two(combine: Callable[..., float], added: bool = False) -> Callable[..., None]:
    """out (outer, middle, inner) = combine(x, y (outer, 1, inner)), or that is added.

    With middle 1 it is the plain elementwise operation; with inner 1, `y` is one number
    for each row.
    """

    def kernel(w, a):
        out, x, y, outer, middle, inner = a[0], a[1], a[2], a[3], a[4], a[5]
        for o in range(outer):
            first, last = o * middle, (o + 1) * middle
            if inner == 1:
                number = w[y + o]
                for m in range(first, last):
                    value = combine(w[x + m], number)
                    w[out + m] = w[out + m] + value if added else value
            else:
                r = y + o * inner
                for m in range(first * inner, last * inner, inner):
                    for i in range(inner):
                        value = combine(w[x + m + i], w[r + i])
                        w[out + m + i] = w[out + m + i] + value if added else value

    return kernel


add, sub, mul = (_of_two(f) for f in (operator.add, operator.sub, operator.mul))
mul_add = _of_two(operator.mul, added=True)


def add_relu(w, a):
    """out (outer, middle, inner) = max(x + y (outer, 1, inner), 0): bias, then relu."""
    out, x, y, outer, middle, inner = a[0], a[1], a[2], a[3], a[4], a[5]
    zero = number_like(w, 0)
    for o in range(outer):
        r = y + o * inner
        for m in range(o * middle * inner, (o + 1) * middle * inner, inner):
            for i in range(inner):
                total = w[x + m + i] + w[r + i]
                w[out + m + i] = zero if total <= zero else total


def broadcast(w, a):
    """out (outer, middle, inner) = x (outer, inner), repeated along the middle."""
    out, x, outer, middle, inner = a[0], a[1], a[2], a[3], a[4]
    for o in range(outer):
        for m in range(middle):
            row = out + (o * middle + m) * inner
            for i in range(inner):
                w[row + i] = w[x + o * inner + i]


def sum(w, a):
    """out (outer, inner) = the sum of x (outer, middle, inner) over the middle."""
    out, x, outer, middle, inner = a[0], a[1], a[2], a[3], a[4]
    for o in range(outer):
        first = x + o * middle * inner
        if inner == 1:
            total = number_like(w, 0)
            for m in range(middle):
                total += w[first + m]
            w[out + o] = total
        else:
            for i in range(inner):
                w[out + o * inner + i] = w[first + i]
            for m in range(1, middle):
                for i in range(inner):
                    w[out + o * inner + i] += w[first + m * inner + i]


def mul_sum(w, a):
    """out (outer, inner) = the sum of x * y, both (outer, middle, inner)."""
    out, x, y, outer, middle, inner = a[0], a[1], a[2], a[3], a[4], a[5]
    for o in range(outer):
        first = o * middle * inner
        if inner == 1:
            total = number_like(w, 0)
            for m in range(first, first + middle):
                total += w[x + m] * w[y + m]
            w[out + o] = total
        else:
            r = out + o * inner
            for i in range(inner):
                w[r + i] = w[x + first + i] * w[y + first + i]
            for m in range(first + inner, first + middle * inner, inner):
                for i in range(inner):
                    w[r + i] += w[x + m + i] * w[y + m + i]


# --- rows of logits -------------------------------------------------------------------


def softmax(w, a):
    """out[r, :] = exp(x[r, :]) / sum(exp(x[r, :]))."""
    out, x, rows, n = a[0], a[1], a[2], a[3]
    for r in range(rows):
        top = w[x + r * n]
        for i in range(1, n):
            top = max(top, w[x + r * n + i])
        total = number_like(w, 0)
        for i in range(n):
            w[out + r * n + i] = np.exp(w[x + r * n + i] - top)
            total += w[out + r * n + i]
        for i in range(n):
            w[out + r * n + i] /= total


def logsumexp(w, a):
    """out[r] = log(sum(exp(x[r, :]))), the largest element taken out first."""
    out, x, rows, n = a[0], a[1], a[2], a[3]
    for r in range(rows):
        top = w[x + r * n]
        for i in range(1, n):
            top = max(top, w[x + r * n + i])
        if np.isinf(top):  # no inf - inf
            top = number_like(w, 0)
        total = number_like(w, 0)
        for i in range(n):
            total += np.exp(w[x + r * n + i] - top)
        w[out + r] = top + np.log(total)
