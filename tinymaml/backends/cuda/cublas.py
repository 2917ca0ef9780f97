"""The one product that the GPU backend takes from NVIDIA's library, and its arguments.

CuPy has cuBLAS too, but refuses to call it while a graph is captured. So the library
that CuPy has loaded is called here directly, with a handle of its own, whose stream,
precision and workspace never change: what cuBLAS asks for if calls are to be captured
and to give the same bits each time.

Left out: all other functions of the library.
"""

from ctypes import byref, c_double, c_float, c_int, c_longlong, c_size_t, c_void_p
from typing import Any, NamedTuple

import numpy as np

WORKSPACE = 32 * 2**20  # bytes; what NVIDIA recommends for the largest cards
DEFAULT_MATH, TF32_MATH = 0, 3  # of cublasMath_t
NO_TRANSPOSE, TRANSPOSE = 0, 1  # of cublasOperation_t


class Gemm(NamedTuple):
    """C (+)= op(A) op(B) for each of `tasks` tasks, in the library's order.

    The library has columns next to each other, and a matrix (m, n) is `ld` elements
    from column to column. Addresses are those of the first task; the next task's matrix
    is `step` elements further on.
    """

    transpose_a: bool
    transpose_b: bool
    m: int
    n: int
    k: int
    a: int
    lda: int
    step_a: int
    b: int
    ldb: int
    step_b: int
    more: bool  # whether C is added to
    c: int
    ldc: int
    step_c: int
    tasks: int


class CublasError(RuntimeError):
    """A call of cuBLAS failed."""


class Cublas:
    """A handle of the library.

    library: a `ctypes.CDLL` in which cuBLAS can be found. stream, workspace: addresses,
    the latter of WORKSPACE bytes on the GPU. tf32: whether products of float32 may
    round their factors to ten bits, as JAX does by default and PyTorch when asked to.
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
        """cublasSgemmStridedBatched or cublasDgemmStridedBatched."""
        letter, real = ("S", c_float) if dtype == np.float32 else ("D", c_double)
        self._call(
            f"cublas{letter}gemmStridedBatched",
            self._handle,
            *(c_int(TRANSPOSE if t else NO_TRANSPOSE) for t in g[:2]),
            *(c_int(size) for size in (g.m, g.n, g.k)),
            byref(real(1)),
            *(c_void_p(g.a), c_int(g.lda), c_longlong(g.step_a)),
            *(c_void_p(g.b), c_int(g.ldb), c_longlong(g.step_b)),
            byref(real(1 if g.more else 0)),
            *(c_void_p(g.c), c_int(g.ldc), c_longlong(g.step_c)),
            c_int(g.tasks),
        )

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status != 0:
            raise CublasError(f"cuBLAS: {name} returned status {status}")
