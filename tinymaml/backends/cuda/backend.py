"""The GPU backend: tapes run as CUDA graphs on an NVIDIA GPU, by way of CuPy.

    gpu_obstacle()    # "" if a GPU can be used here, else one line that says why not
    program = CupyBackend().compile(tape, "float32")

`device_program.py` decides which kernels run, in which order and in which memory; this
file makes a GPU do it. CuPy compiles kernels.cu, allocates memory, keeps the stream and
captures graphs. Matrix products are calls of cuBLAS (`cublas.py`). float32 means
float32: only the backend "cupy-tf32" rounds the factors of products to TF32's ten bits.

Left out: several GPUs, GPUs of AMD, systems other than Linux.
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
from tinymaml.backends import Backend
from tinymaml.backends.cuda.cublas import WORKSPACE, Cublas, Gemm
from tinymaml.backends.cuda.device_program import MOST_TASKS, Command, DeviceProgram
from tinymaml.backends.cuda.training import MOMENTS, DeviceTraining
from tinymaml.checks import check_dtype, check_threads
from tinymaml.training.optim import Optimiser

OLDEST_CUPY = 13  # from 13.2 on it can be imported beside NumPy 2
THREADS = 128  # threads in a block
# The largest grid: blocks across (elements) and down (tasks). If there is more work,
# each thread continues with the elements and tasks one grid further.
MOST_BLOCKS = 4096, MOST_TASKS
REAL = {"float32": "float", "float64": "double"}
SOURCE = Path(__file__).with_name("kernels.cu")
Array = np.ndarray[Any, Any]


class CupyMemory:
    """An array of CuPy, and its address on the GPU."""

    def __init__(self, array: Any) -> None:
        self.array = array
        self.address = int(array.data.ptr)


class CupyStaging:
    """Pinned host memory from which a part of an array on the GPU is filled.

    A GPU can copy from pinned memory while the host continues with other work.
    """

    def __init__(self, device: "CupyDevice", target: Any) -> None:
        self._pinned = device.cupyx.empty_pinned(target.size, target.dtype)
        self._target = target
        self._stream = device.stream
        self._sent = device.cupy.cuda.Event(disable_timing=True)

    @property
    def array(self) -> Array:
        """The host memory; waits until the last copy out of it has ended."""
        self._sent.synchronize()
        return self._pinned

    def send(self) -> None:
        """Start the copy to the GPU, and return before it has ended."""
        self._target.set(self._pinned, self._stream)
        self._sent.record(self._stream)


class CupyDevice:
    """A GPU as the protocol `Device` describes it, with all work on one stream.

    cupy, cupyx: the modules. library: a `ctypes.CDLL` that has cuBLAS. tf32: whether
    products may round their factors to ten bits.
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
        """Bytes that can be allocated: free on the card, or freed and kept by CuPy."""
        free, _ = self.cupy.cuda.runtime.memGetInfo()
        pool = self.cupy.get_default_memory_pool()
        most = pool.get_limit() - pool.used_bytes() if pool.get_limit() else np.inf
        return int(min(free + pool.free_bytes(), most))

    def zeros(self, size: int, dtype: Any) -> CupyMemory:
        """New memory for `size` elements, all 0."""
        with self.stream:
            return CupyMemory(self.cupy.zeros(size, dtype))

    def put(self, array: Array) -> CupyMemory:
        """A copy of an array in new memory on the GPU."""
        with self.stream:
            memory = CupyMemory(self.cupy.empty(array.size, array.dtype))
        memory.array.set(np.ascontiguousarray(array).reshape(-1), self.stream)
        self.stream.synchronize()
        return memory

    def read(self, memory: CupyMemory, start: int, size: int) -> Array:
        """A copy of `size` elements of memory; waits for all work given so far."""
        array = memory.array[start : start + size]
        pinned = self.cupyx.empty_pinned(size, array.dtype)
        array.get(stream=self.stream, out=pinned)
        return np.array(pinned)

    def staging(self, memory: CupyMemory, start: int, size: int) -> CupyStaging:
        """Pinned host memory for `size` elements of memory from `start` on."""
        return CupyStaging(self, memory.array[start : start + size])

    def launch(
        self, kernel: str, dtype: Any, work: int, tasks: int, arguments: tuple[int, ...]
    ) -> None:
        """Launch a kernel of kernels.cu, with one thread for each element of each task,
        or with the largest grid."""
        grid = min(-(-work // THREADS), MOST_BLOCKS[0]), min(tasks, MOST_BLOCKS[1])
        function = self._kernel(kernel, np.dtype(dtype).name)
        with self.stream:
            function(grid, (THREADS,), (tasks, *arguments))

    def _kernel(self, name: str, dtype: str) -> Any:
        if (name, dtype) not in self._kernels:
            self._kernels[name, dtype] = _module(self.cupy, dtype).get_function(name)
        return self._kernels[name, dtype]

    def gemm(self, dtype: Any, arguments: Gemm) -> None:
        """Call cuBLAS for the products of all tasks."""
        self._cublas.gemm(np.dtype(dtype), arguments)

    # [capture]
    def capture(self, commands: Sequence[Command]) -> Command:
        """Capture the commands as a CUDA graph, and return a function that launches it.

        The commands are called twice. The first time they run: a first call loads
        modules and sets up libraries, which is an error during a capture. The second
        time nothing runs, the driver only records what would.
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
                with suppress(Exception):  # the stream must leave the failed capture
                    self.stream.end_capture()
                raise
            graph = self.stream.end_capture()
        stream = self.stream
        return lambda: graph.launch(stream)

    # [/capture]


@cache
def _module(cupy: Any, dtype: str) -> Any:
    """The kernels for one dtype. CuPy compiles them at first use and caches them."""
    options = (f"-DREAL={REAL[dtype]}",)
    return cupy.RawModule(code=SOURCE.read_text(encoding="utf-8"), options=options)


# --- whether a GPU can be used --------------------------------------------------------


def gpu_obstacle() -> str:
    """Why no GPU can be used here, in one line; "" if one can."""
    return _find_device(tf32=False)[1]


def has_gpu_software() -> bool:
    """Whether CuPy is installed, or an NVIDIA driver with which it could be used.

    If neither is installed, nobody expects a GPU to be used, and no notice is needed.
    """
    driver = os.path.exists("/dev/nvidiactl") or shutil.which("nvidia-smi") is not None
    return driver or find_spec("cupy") is not None


@cache
def _find_device(tf32: bool) -> tuple[CupyDevice | None, str]:
    """(the device, ""), or (None, why there is none, in one line).

    As a test, all kernels are compiled and one is launched: a broken installation often
    shows only then.
    """
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
        # This module of CuPy is linked to cuBLAS, so its symbols include the library's.
        from cupy_backends.cuda.libs import cublas

        device = CupyDevice(cupy, cupyx, ctypes.CDLL(cublas.__file__), tf32)
        for dtype in REAL:
            device.launch("sum_tasks", dtype, 1, 1, (0,) * 6)  # a sum of no elements
        device.stream.synchronize()
    except Exception as error:  # a broken installation may raise anything
        text = " ".join(str(error).split()) or type(error).__name__
        return None, f"CuPy does not work here: {text}"
    return device, ""


class CupyBackend(Backend):
    """Runs tapes on a GPU, for all tasks at once.

    All backends of a name share one stream, so only one thread of Python may use them
    at a time.

    threads: accepted as by every backend, and not used. tf32: whether products of
    float32 may round their factors to ten bits. Raises ImportError with one line that
    says why no GPU can be used.
    """

    def __init__(self, threads: int | None = None, tf32: bool = False) -> None:
        self.name = "cupy-tf32" if tf32 else "cupy"
        self.threads = check_threads(threads, default=1)
        device, obstacle = _find_device(tf32)
        if device is None:
            raise ImportError(f"backend {self.name!r}: {obstacle}")
        self.device = device

    def __reduce__(self) -> tuple[type["CupyBackend"], tuple[int, bool]]:
        """A copy, or a pickle in another process, finds the device anew."""
        return CupyBackend, (self.threads, self.name == "cupy-tf32")

    def compile(self, tape: Tape, dtype: str) -> DeviceProgram:
        """A program that runs the tape in float32 or float64."""
        return DeviceProgram(tape, check_dtype(dtype), self.device)

    def training_steps(
        self, optimiser: Optimiser, **settings: Any
    ) -> DeviceTraining | None:
        """Outer steps on the GPU; None for an optimiser that it has no kernel for.

        A kernel reads one learning rate, which was sent at the start: so a schedule is
        left to outer steps in this process.
        """
        scheduled = isinstance(optimiser.config().get("learning_rate"), str)
        if type(optimiser) not in MOMENTS or scheduled:
            return None
        return DeviceTraining(optimiser=optimiser, **settings)
