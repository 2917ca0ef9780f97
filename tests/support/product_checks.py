"""Checks of the kernel `matmul` on whole numbers: sums are exact, tolerances are zero.

The kernel is checked compiled in test_kernels.py and as plain Python in
uncompiled_kernels.py. In the workspace, C = A B comes before A and B. One vector of NaN
follows B, so that a read beyond the end of B shows in the result.
"""

from itertools import product

import numpy as np

from tinymaml.backends.numba.kernels import NEAR_TERMS
from tinymaml.backends.numba.tiles import VECTOR_BYTES

ROWS = (1, 2, 3, 4, 7, 8, 15)
WIDTHS = (1, 3, 4, 5, 8, 10, 12, 13)  # in vectors: all ways to cut C into strips
TERMS = (1, NEAR_TERMS, NEAR_TERMS + 1, 3 * NEAR_TERMS)


def sizes(dtype):
    """(m, n, k) for every way to cut rows, columns and terms."""
    width = VECTOR_BYTES // np.dtype(dtype).itemsize
    columns = [n for v in WIDTHS for n in range(v * width - 1, v * width + 2) if n]
    yield from product(ROWS, columns, (2,))
    yield from product((5,), (1, width + 1, 5 * width), TERMS)


def check_products(matmul, dtype):
    """All sizes, with A transposed or not, and with A B stored in C or added to C."""
    for seed, size in enumerate(sizes(dtype)):
        for transposed, add in product((False, True), (0, 1)):
            check_product(matmul, dtype, size, transposed, add, seed)


def check_product(matmul, dtype, size, transposed, add, seed=0, slack=None):
    """One product of size (m, n, k), with `slack` NaNs after B: by default a vector."""
    m, n, k = size
    rng = np.random.default_rng(seed)
    a, b, c = (rng.integers(-9, 10, shape) for shape in ((m, k), (k, n), (m, n)))
    nans = VECTOR_BYTES // np.dtype(dtype).itemsize if slack is None else slack
    before = np.full(3 + c.size, np.nan, dtype)
    if add:
        before[3:] = c.ravel()
    operands = [(a.T if transposed else a).ravel(), b.ravel(), np.full(nans, np.nan)]
    w = np.concatenate([before, *operands]).astype(dtype)
    offsets = 3, before.size, before.size + a.size
    strides = (1, m) if transposed else (k, 1)
    matmul(w, np.array([*offsets, m, n, k, *strides, add]))
    assert np.array_equal(w[3 : before.size].reshape(m, n), a @ b + add * c)
    assert np.isnan(w[:3]).all()
    assert np.array_equal(w[before.size :], np.concatenate(operands), equal_nan=True)
