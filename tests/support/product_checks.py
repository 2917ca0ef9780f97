"""Checks of `matmul` on whole numbers, which add up exactly: no tolerance is needed.

Compiled in test_kernels.py and as plain Python in uncompiled_kernels.py. C lies before
A and B in the workspace, and behind B there is nothing but one vector of NaN.
"""

from itertools import product

import numpy as np

from tinymaml.backends.numba.kernels import NEAR_TERMS
from tinymaml.backends.numba.tiles import VECTOR_BYTES

ROWS = (1, 2, 3, 4, 7, 8, 15)
AROUND = (1, 3, 4, 5, 8, 10, 12, 13)  # vectors: all ways to cut columns into strips
LONG = (1, NEAR_TERMS, NEAR_TERMS + 1, 3 * NEAR_TERMS)


def sizes(dtype):
    """(m, n, k) for every way to cut rows, columns and terms."""
    width = VECTOR_BYTES // np.dtype(dtype).itemsize
    columns = [n for v in AROUND for n in range(v * width - 1, v * width + 2) if n]
    yield from product(ROWS, columns, (2,))
    yield from product((5,), (1, width + 1, 5 * width), LONG)


def check_products(matmul, dtype):
    """Check matmul(w, args) for all sizes, A transposed or not, added or not."""
    for number, (m, n, k) in enumerate(sizes(dtype)):
        for transposed, more in product((False, True), (0, 1)):
            check_product(matmul, dtype, (m, n, k), transposed, more, seed=number)


def check_product(matmul, dtype, size, transposed, more, seed=0, slack=None):
    m, n, k = size
    rng = np.random.default_rng(seed)
    a, b, c = (rng.integers(-9, 10, shape) for shape in ((m, k), (k, n), (m, n)))
    room = VECTOR_BYTES // np.dtype(dtype).itemsize if slack is None else slack
    before = np.full(3 + c.size, np.nan, dtype)
    if more:
        before[3:] = c.ravel()
    operands = [(a.T if transposed else a).ravel(), b.ravel(), np.full(room, np.nan)]
    w = np.concatenate([before, *operands]).astype(dtype)
    offsets = 3, before.size, before.size + a.size
    strides = (1, m) if transposed else (k, 1)
    matmul(w, np.array([*offsets, m, n, k, *strides, more]))
    assert np.array_equal(w[3 : before.size].reshape(m, n), a @ b + more * c)
    assert np.isnan(w[:3]).all()
    assert np.array_equal(w[before.size :], np.concatenate(operands), equal_nan=True)
