"""Matrix products on a GPU: one function of NVIDIA's library cuBLAS, and its arguments.

    Cublas(library, stream, workspace, tf32).gemm(np.dtype("float32"), Gemm(...))

CuPy can call cuBLAS too, but it refuses to do so while a graph is captured. So this
file calls the library that CuPy has loaded, with a handle of its own. The handle's
stream, precision and workspace never change. NVIDIA requires this of calls that are
captured or that must give the same bits each time.

Left out: all other functions of the library.
"""

from ctypes import byref, c_double, c_float, c_int, c_longlong, c_size_t, c_void_p
from typing import Any, NamedTuple

import numpy as np

WORKSPACE = 32 * 2**20  # bytes; NVIDIA recommends it for the largest cards
DEFAULT_MATH, TF32_MATH = 0, 3  # values of cublasMath_t
NO_TRANSPOSE, TRANSPOSE = 0, 1  # values of cublasOperation_t


class Matrix(NamedTuple):
    """One matrix per task, as the library stores it: column by column."""

    address: int  # where the first task's matrix begins
    ld: int  # "leading dimension": elements from one column to the next
    step: int  # elements from one task's matrix to the next; 0 if all tasks share one


class Gemm(NamedTuple):
    """C (+)= op(A) op(B) for every task, where op may transpose.

    op(A) is (m, k), op(B) is (k, n), C is (m, n).
    """

    transpose_a: bool
    transpose_b: bool
    m: int
    n: int
    k: int
    a: Matrix
    b: Matrix
    accumulate: bool  # whether the product is added to C
    c: Matrix
    tasks: int  # the number of products


class CublasError(RuntimeError):
    """A call of cuBLAS returned a status that is not success."""


class Cublas:
    """A handle of the library.

    library: a `ctypes.CDLL` that has cuBLAS. stream: the address of a CUDA stream.
    workspace: the address of WORKSPACE bytes on the GPU. tf32: whether products of
    float32 may round their factors to ten bits; JAX does so by default, PyTorch on
    request.

    Raises CublasError where the library refuses a setting.
    """

    def __init__(self, library: Any, stream: int, workspace: int, tf32: bool) -> None:
        self._library = library
        handle = c_void_p()
        self._call("cublasCreate_v2", byref(handle))
        self._handle = handle
        self._call("cublasSetStream_v2", handle, c_void_p(stream))
        self._call(
            "cublasSetWorkspace_v2", handle, c_void_p(workspace), c_size_t(WORKSPACE)
        )
        mode = TF32_MATH if tf32 else DEFAULT_MATH
        self._call("cublasSetMathMode", handle, c_int(mode))

    def gemm(self, dtype: np.dtype[Any], g: Gemm) -> None:
        """Call cublasSgemmStridedBatched for float32, cublasDgemm... for float64.

        It returns at once; the product is computed on the handle's stream.
        """
        letter, real = ("S", c_float) if dtype == np.float32 else ("D", c_double)
        self._call(
            f"cublas{letter}gemmStridedBatched",
            self._handle,
            *(c_int(TRANSPOSE if t else NO_TRANSPOSE) for t in g[:2]),
            *(c_int(size) for size in (g.m, g.n, g.k)),
            byref(real(1)),
            *_matrix(g.a),
            *_matrix(g.b),
            byref(real(1 if g.accumulate else 0)),
            *_matrix(g.c),
            c_int(g.tasks),
        )

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status != 0:
            raise CublasError(f"cuBLAS: {name} returned status {status}")


def _matrix(matrix: Matrix) -> tuple[c_void_p, c_int, c_longlong]:
    address, ld, step = matrix
    return c_void_p(address), c_int(ld), c_longlong(step)
