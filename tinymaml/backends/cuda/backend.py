"""The GPU backend: tapes replayed as CUDA graphs, with CuPy.

`device_program.py` says what is to be done and in which memory; this file does it on an
NVIDIA GPU. CuPy compiles kernels.cu, gives memory and streams, and captures graphs;
matrix products are cuBLAS's (`cublas.py`). float32 means float32: products round their
factors to TF32's ten bits only on the backend "cupy-tf32".

    why_not()    # "" if a GPU can be used here, else one line that says what is missing

Left out: several GPUs; AMD's; systems other than Linux.
"""

import ctypes
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from tinymaml.autodiff.tape import Tape
from tinymaml.backends.cuda.cublas import WORKSPACE, Cublas, Gemm
from tinymaml.backends.cuda.device_program import MOST_TASKS, Command, DeviceProgram
from tinymaml.checks import check_dtype, check_threads

OLDEST_CUPY = 13  # the first that works with NumPy 2
THREADS = 128  # in a block
MOST_BLOCKS = 4096, MOST_TASKS  # across, down; kernels go on with what lies beyond
REAL = {"float32": "float", "float64": "double"}
SOURCE = Path(__file__).with_name("kernels.cu")
Array = np.ndarray[Any, Any]


class CupyMemory:
    """An array of CuPy's, and where it lies."""

    def __init__(self, array: Any) -> None:
        self.array = array
        self.address = int(array.data.ptr)


class CupyStaging:
    """Pinned host memory for a part of an array on the GPU."""

    def __init__(self, device: "CupyDevice", target: Any) -> None:
        self._pinned = device.cupyx.empty_pinned(target.size, target.dtype)
        self._target = target
        self._stream = device.stream
        self._sent = device.cupy.cuda.Event(disable_timing=True)

    @property
    def array(self) -> Array:
        """The host memory, once what was sent last has left it."""
        self._sent.synchronize()
        return self._pinned

    def send(self) -> None:
        """Start the copy; the host goes on."""
        self._target.set(self._pinned, self._stream)
        self._sent.record(self._stream)


class CupyDevice:
    """A GPU: the protocol `Device`, with all work on one stream.

    cupy, cupyx: the modules. library: a `ctypes.CDLL` with cuBLAS.
    """

    def __init__(self, cupy: Any, cupyx: Any, library: Any, tf32: bool = False) -> None:
        self.cupy, self.cupyx = cupy, cupyx
        self.stream = cupy.cuda.Stream(non_blocking=True)
        with self.stream:
            self._workspace = cupy.empty(WORKSPACE, np.uint8)
        address = int(self._workspace.data.ptr)
        self._cublas = Cublas(library, self.stream.ptr, address, tf32)
        self._kernels: dict[tuple[str, str], Any] = {}

    def free_bytes(self) -> int:
        """What the driver has left, and what CuPy keeps for later."""
        free, _ = self.cupy.cuda.runtime.memGetInfo()
        pool = self.cupy.get_default_memory_pool()
        most = pool.get_limit() - pool.used_bytes() if pool.get_limit() else np.inf
        return int(min(free + pool.free_bytes(), most))

    def zeros(self, size: int, dtype: Any) -> CupyMemory:
        """Memory for so many elements, all 0."""
        with self.stream:
            return CupyMemory(self.cupy.zeros(size, dtype))

    def put(self, array: Array) -> CupyMemory:
        """A copy of an array."""
        with self.stream:
            memory = CupyMemory(self.cupy.empty(array.size, array.dtype))
        memory.array.set(np.ascontiguousarray(array).reshape(-1), self.stream)
        self.stream.synchronize()
        return memory

    def read(self, memory: CupyMemory, start: int, size: int) -> Array:
        """Elements of memory, once all work given to the device so far is done."""
        array = memory.array[start : start + size]
        pinned = self.cupyx.empty_pinned(size, array.dtype)
        array.get(stream=self.stream, out=pinned)
        return np.array(pinned)

    def staging(self, memory: CupyMemory, start: int, size: int) -> CupyStaging:
        """Pinned host memory for `size` elements of memory."""
        return CupyStaging(self, memory.array[start : start + size])

    def launch(
        self, kernel: str, dtype: Any, work: int, tasks: int, arguments: tuple[int, ...]
    ) -> None:
        """A kernel of kernels.cu, a thread for each element as far as grids go."""
        blocks = -(-work // THREADS), tasks
        across, down = (
            min(n, most) for n, most in zip(blocks, MOST_BLOCKS, strict=True)
        )
        function = self._kernel(kernel, np.dtype(dtype).name)
        with self.stream:
            function((across, down), (THREADS,), (tasks, *arguments))

    def _kernel(self, name: str, dtype: str) -> Any:
        if (name, dtype) not in self._kernels:
            self._kernels[name, dtype] = _module(self.cupy, dtype).get_function(name)
        return self._kernels[name, dtype]

    def gemm(self, dtype: Any, arguments: Gemm) -> None:
        """A product of the library for all tasks."""
        self._cublas.gemm(np.dtype(dtype), arguments)

    # [capture]
    def capture(self, commands: Sequence[Command]) -> Command:
        """The commands as a CUDA graph: a function that launches it.

        Once they are called before, because modules are loaded and libraries get ready
        at a first call, which must not happen within a capture.
        """
        for command in commands:
            command()
        self.stream.synchronize()
        with self.stream:
            self.stream.begin_capture()
            try:
                for command in commands:
                    command()
            except BaseException:
                with suppress(Exception):  # to leave the capture; it has failed anyway
                    self.stream.end_capture()
                raise
            graph = self.stream.end_capture()
        stream = self.stream
        return lambda: graph.launch(stream)

    # [/capture]


@cache
def _module(cupy: Any, dtype: str) -> Any:
    """The kernels for one dtype, compiled at first use and then in CuPy's cache."""
    options = (f"-DREAL={REAL[dtype]}",)
    return cupy.RawModule(code=SOURCE.read_text(encoding="utf-8"), options=options)


# --- whether there is one -------------------------------------------------------------


def why_not() -> str:
    """In one line, why no GPU can be used here; "" if one can."""
    return _found(tf32=False)[1]


def seems_wanted() -> bool:
    """Whether this machine has CuPy, or an NVIDIA driver that it could use."""
    driver = os.path.exists("/dev/nvidiactl") or shutil.which("nvidia-smi") is not None
    return driver or find_spec("cupy") is not None


@cache
def _found(tf32: bool) -> tuple[CupyDevice | None, str]:
    """A device, or in one line why there is none."""
    if find_spec("cupy") is None:
        return None, "CuPy is missing (pip install 'tinymaml[cuda]')"
    if sys.platform != "linux":
        return None, f"the GPU backend runs on Linux only, not on {sys.platform}"
    try:
        import cupy
        import cupyx

        if int(cupy.__version__.split(".")[0]) < OLDEST_CUPY:
            return None, f"CuPy {cupy.__version__} is too old, {OLDEST_CUPY} is needed"
        if cupy.cuda.runtime.getDeviceCount() < 1:
            return None, "CuPy finds no GPU"
        # The library that CuPy has loaded is found through the module that needs it.
        from cupy_backends.cuda.libs import cublas

        device = CupyDevice(cupy, cupyx, ctypes.CDLL(cublas.__file__), tf32)
        for dtype in REAL:
            device.launch("sum_tasks", dtype, 1, 1, (0,) * 6)  # of nothing
        device.stream.synchronize()
    except Exception as error:  # whatever a broken installation raises
        text = " ".join(str(error).split()) or type(error).__name__
        return None, f"CuPy does not work here: {text}"
    return device, ""


class CupyBackend:
    """Runs tapes on a GPU, for all tasks at once. Threads are accepted and not used.

    All backends share one stream, so only one thread of Python may use them at a time.

    tf32: whether products may round their factors to ten bits.
    Raises ImportError with one line that says why where no GPU can be used.
    """

    def __init__(self, threads: int | None = None, tf32: bool = False) -> None:
        self.name = "cupy-tf32" if tf32 else "cupy"
        self.threads = check_threads(threads, default=1)
        device, why = _found(tf32)
        if device is None:
            raise ImportError(f"backend {self.name!r}: {why}")
        self.device = device

    def compile(self, tape: Tape, dtype: str) -> DeviceProgram:
        """A callable that runs the tape: {name: array} in, {name: array} out."""
        return DeviceProgram(tape, check_dtype(dtype), self.device)

    def resident(self, *arguments: Any) -> Any:
        """Training that stays on the GPU: see `resident.Resident`."""
        from tinymaml.backends.cuda.training import Resident

        return Resident(*arguments)
