"""The matrix product of the numba backend, size by size, compiled."""

import pytest
from numba import njit

import tinymaml as tm
from tests.support.product_checks import check_products
from tests.support.running import DTYPES
from tinymaml.autodiff.tape import Tape
from tinymaml.backends.numba.backend import call_kernel, kernel_address
from tinymaml.backends.numba.tiles import VECTOR_BYTES


@njit
def call(address, w, arguments):
    call_kernel(address, w.ctypes.data, arguments.ctypes.data)


@pytest.mark.parametrize("dtype", DTYPES)
def test_product_is_exact_and_writes_nothing_else(dtype):
    address = kernel_address("matmul", dtype)
    check_products(lambda w, arguments: call(address, w, arguments), dtype)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_workspaces_have_a_vector_of_room_behind_the_last(dtype, threads):
    tape = Tape()
    a, b = tape.input("a", (3, 3)), tape.input("b", (3, 1))
    tape.output("product", a @ b)
    program = tm.get_backend("numba", threads).compile(tape, dtype)
    memory = program.workspaces
    end = memory.ctypes.data + memory.nbytes
    while memory.base is not None:
        memory = memory.base
    assert end + VECTOR_BYTES <= memory.ctypes.data + memory.nbytes
