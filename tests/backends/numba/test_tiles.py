"""Operations on tiles give what NumPy gives: compiled, and as their plain twins."""

import os
from pathlib import Path

import numpy as np
import pytest
from numba import config, njit, types

from tests.backends.numba.test_kernels import call, run_uncompiled
from tests.support.running import DTYPES
from tinymaml.backends.numba.backend import pointer_type
from tinymaml.backends.numba.tiles import (
    VECTOR_BYTES,
    lanes,
    number_like,
    tile_add,
    tile_store,
    tile_update,
    tile_zero,
    transpose_block,
    unpack,
)

every_dtype = pytest.mark.parametrize("dtype", DTYPES)
SIZES = [(1, 1), (2, 4), (3, 2), (4, 8), (2, 5), (8, 1)]  # rows, vectors


def run(kernel, w, *args):
    """Run a kernel on a copy of w."""
    w, args = w.copy(), np.array(args)
    if config.DISABLE_JIT:
        kernel(w, args)
        return w
    signature = types.void(pointer_type(w.dtype.name), types.CPointer(types.int64))
    (result,) = njit(signature)(kernel).overloads.values()
    name = result.fndesc.llvm_func_name
    call(result.library.get_pointer_to_function(name), w, args)
    return w


def numbers(dtype, size=600):
    """Whole numbers, so that every order of additions gives the same."""
    return np.random.default_rng(0).integers(-9, 10, size).astype(dtype)


def width_of(dtype):
    return VECTOR_BYTES // np.dtype(dtype).itemsize


@pytest.mark.skipif(config.DISABLE_JIT, reason="this is the run without a compiler")
def test_plain_twins_pass_the_same_tests():
    assert "NUMBA_DISABLE_JIT" not in os.environ
    run_uncompiled(Path(__file__))


@every_dtype
def test_arguments_are_unpacked_in_order(dtype):
    def kernel(w, args):
        a, b, c = unpack(args, 3)
        w[a] = w[b] + w[c]

    w = numbers(dtype)
    expected = w.copy()
    expected[7] = w[3] + w[500]
    assert np.array_equal(run(kernel, w, 7, 3, 500), expected)


@every_dtype
def test_a_vector_has_as_many_lanes_as_fit_its_bytes(dtype):
    def kernel(w, args):
        w[0] = lanes(w) * number_like(w, 3)

    assert run(kernel, numbers(dtype))[0] == 3 * width_of(dtype)


@every_dtype
@pytest.mark.parametrize("size", SIZES)
def test_a_tile_is_zero_plus_outer_products(size, dtype):
    """Two outer products, or one and what the memory holds, stored in full."""
    rows, vectors = size

    def from_zero(w, args):
        c, a, b = unpack(args, 3)
        tile = tile_zero(w, rows, vectors)
        tile = tile_update(tile, w, a, 3, b)
        tile = tile_update(tile, w, a + 1, 3, b + 100)
        tile_store(tile, w, c, 80, vectors * lanes(w))

    def from_memory(w, args):
        c, a, b = unpack(args, 3)
        tile = tile_update(tile_zero(w, rows, vectors), w, a, 3, b)
        tile = tile_add(tile, w, c, 80)
        tile_store(tile, w, c, 80, vectors * lanes(w))

    w, columns = numbers(dtype, 1000), vectors * width_of(dtype)
    a, b = w[700::3][:rows], w[801:][:columns]
    second = np.outer(w[701::3][:rows], w[901:][:columns])
    for kernel, added in ((from_zero, second), (from_memory, None)):
        expected = w.copy()
        target = expected[5 : 5 + 80 * rows].reshape(rows, 80)[:, :columns]
        target[:] = np.outer(a, b) + (target if added is None else added)
        assert np.array_equal(run(kernel, w, 5, 700, 801), expected)


@every_dtype
@pytest.mark.parametrize("size", SIZES)
def test_a_masked_store_writes_the_first_columns_only(size, dtype):
    rows, vectors = size

    def kernel(w, args):
        start, columns = unpack(args, 2)
        tile_store(tile_zero(w, rows, vectors), w, start, 80, columns)

    w, width = numbers(dtype, 1000) + 100, vectors * width_of(dtype)
    for columns in {0, 1, width_of(dtype) - 1, width - 1, width}:
        expected = w.copy()
        expected[3 : 3 + 80 * rows].reshape(rows, 80)[:, :columns] = 0
        assert np.array_equal(run(kernel, w, 3, columns), expected)


@every_dtype
def test_a_block_is_transposed(dtype):
    def kernel(w, args):
        out, x = unpack(args, 2)
        transpose_block(w, out, 13, x, 11)

    w, width = numbers(dtype), width_of(dtype)
    expected = w.copy()
    block = w[300 : 300 + 11 * width].reshape(width, 11)[:, :width]
    expected[1 : 1 + 13 * width].reshape(width, 13)[:, :width] = block.T
    assert np.array_equal(run(kernel, w, 1, 300), expected)
