"""A stand-in for CuPy and cuBLAS, so that the GPU backend can be tested without a GPU.

It has those parts of CuPy that `cuda/backend.py` uses. Memory is NumPy's. The kernels
are kernels.cu itself, compiled as plain C++ (serial_cuda.h defines CUDA's words) and
called through ctypes: the threads of a grid run one after another, with a seed in a
shuffled order, since no result may depend on it. While a graph is captured, calls are
recorded and not made. cuBLAS is serial_cublas.c.
"""

import atexit
import ctypes
import re
import shutil
import subprocess
import weakref
from functools import cache
from itertools import product
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace

import numpy as np

from tinymaml.backends.cuda.backend import REAL, SOURCE, CupyBackend, CupyDevice
from tinymaml.backends.cuda.device_program import DeviceProgram
from tinymaml.checks import check_dtype

MARGIN = 4096  # elements before and behind each allocation
HERE = Path(__file__).resolve().parent
COMPILER = shutil.which("g++") or shutil.which("c++")
WHY_NOT = "" if COMPILER else "no C++ compiler is on the PATH"


@cache
def build_folder():
    folder = mkdtemp(prefix="tinymaml-kernels-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@cache
def compiled(source, *options):
    """Source text in C or C++, as a shared library."""
    number = len(list(build_folder().glob("*.so")))
    file = build_folder() / f"{number}.so"
    command = [
        COMPILER,
        *options,
        "-Wall",
        "-Wextra",
        "-Werror",
        "-shared",
        "-ffp-contract=off",
        "-fPIC",
    ]
    command += ["-o", str(file), "-"]
    subprocess.run(command, input=source, text=True, check=True)
    return ctypes.CDLL(str(file))


def compiled_kernels(dtype, source=None, how=("-O1",)):
    source = SOURCE.read_text(encoding="utf-8") if source is None else source
    words = ("-x", "c++", "-include", str(HERE / "serial_cuda.h"))
    return compiled(source, *how, *words, f"-DREAL={REAL[dtype]}")


def count_parameters(source, kernel):
    """The number of a kernel's parameters, from its text.

    Neither ctypes nor CUDA checks it, so the stand-in does.
    """
    source = source.replace("\\\n", "")
    source = re.sub(r"\b(TO|FROM)\(\w+\)", "array, step", source)
    for name, text in re.findall(r"#define (WINDOW|POOL) +(.*)", source):
        source = re.sub(rf"\b{name}\b(?=[,)])", text, source)
    (parameters,) = re.findall(rf"KERNEL {kernel}\((.*?)\)", source, re.DOTALL)
    return parameters.count(",") + 1


class Queue:
    """A stream's work: recorded during a capture, else run as late as possible.

    Nothing runs before somebody waits for it. So a test fails if the host reads memory,
    or writes it again, without waiting.
    """

    def __init__(self):
        self.recorded = None
        self.waiting, self.finished = [], 0

    def call(self, function, *arguments):
        work = self.waiting if self.recorded is None else self.recorded
        work.append((function, arguments))
        return 0

    def wait(self, until=None):
        """Run what waits: all of it, or the first `until` calls since the beginning."""
        assert self.recorded is None, "not allowed while a graph is captured"
        while self.waiting and (until is None or self.finished < until):
            function, arguments = self.waiting.pop(0)
            self.finished += 1
            if function(*arguments) not in (0, None):
                # What waits behind a failed call must not run later: tests share the
                # queue, and by then the memory of this program is free.
                self.finished += len(self.waiting)
                self.waiting.clear()
                raise AssertionError(f"{function} has failed")

    def launch(self, graph):
        for function, arguments in graph:
            self.call(function, *arguments)


class Event:
    """Marks how much work a stream had been given when the event was recorded."""

    def __init__(self, queue):
        self.queue, self.until = queue, 0

    def record(self, stream):
        self.until = self.queue.finished + len(self.queue.waiting)

    def synchronize(self):
        self.queue.wait(self.until)


class Ndarray:
    """A flat array with an address."""

    def __init__(self, array, queue):
        self.array, self.size, self.dtype = array, array.size, array.dtype
        self.data, self.queue = SimpleNamespace(ptr=array.ctypes.data), queue

    def __getitem__(self, part):
        return Ndarray(self.array[part], self.queue)

    def set(self, array, stream):
        assert array.shape == self.array.shape and array.dtype == self.array.dtype
        self.queue.call(np.copyto, self.array, array)

    def get(self, stream, out):
        self.queue.wait()
        out[...] = self.array


class Stream:
    ptr = 1234

    def __init__(self, queue):
        self.queue = queue

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def synchronize(self):
        self.queue.wait()

    def begin_capture(self):
        assert self.queue.recorded is None
        self.queue.recorded = []

    def end_capture(self):
        recorded, self.queue.recorded = self.queue.recorded, None
        return SimpleNamespace(launch=lambda stream: self.queue.launch(recorded))


def filled(size, dtype):
    """New memory, filled with numbers on which no result may depend."""
    return np.full(size, np.nan if dtype.kind == "f" else 77, dtype)


class SerialCupy:
    """The module `cupy`. All grids have `grid` (across, down) blocks of `threads`.

    free: bytes that can be allocated; they are freed when nothing refers to them.
    """

    def __init__(self, grid=(1, 1), threads=1, seed=None, free=2**33, source=None):
        self.queue, self.source, self.free = Queue(), source, free
        self.grid, self.threads = grid, threads
        self.rng = None if seed is None else np.random.default_rng(seed)
        self.launches = []  # (kernel, grid, block) of each launch
        self.allocated = {}  # start and end of all memory, with its margins
        self.cuda = SimpleNamespace(
            Stream=lambda non_blocking: Stream(self.queue),
            Event=lambda disable_timing: Event(self.queue),
            runtime=SimpleNamespace(memGetInfo=lambda: (self.free, 2**34)),
        )

    def empty_pinned(self, size, dtype):
        return filled(size, np.dtype(dtype))

    def get_default_memory_pool(self):
        nothing = dict.fromkeys(("free_bytes", "get_limit", "used_bytes"), lambda: 0)
        return SimpleNamespace(**nothing)

    def zeros(self, size, dtype):
        """Memory that is not 0, so that no result depends on zeros."""
        return self._allocate(size, np.dtype(dtype))

    empty = zeros

    def _allocate(self, size, dtype):
        """Memory inside of a larger array of NaN, so that a read beyond it shows."""
        bytes_needed = size * dtype.itemsize
        if bytes_needed > self.free:
            raise MemoryError(
                f"out of memory: {bytes_needed} of {self.free} bytes are free"
            )
        memory = filled(size + 2 * MARGIN, dtype)
        self._free(-bytes_needed)
        weakref.finalize(memory, self._free, bytes_needed)
        start = memory.ctypes.data
        self.allocated[start] = start + memory.nbytes
        weakref.finalize(memory, self.allocated.pop, start)
        return Ndarray(memory[MARGIN : MARGIN + size], self.queue)

    def _free(self, size):
        self.free += size

    def RawModule(self, code, options):
        (real,) = options
        dtype = {f"-DREAL={real}": name for name, real in REAL.items()}[real]
        how = ("-O1",)
        if self.source:  # a mutant runs once: compile it fast
            code, how = self.source, ("-O0", "-w")
        library = compiled_kernels(dtype, code, how)

        def get_function(name):
            count = count_parameters(code, name)

            def launch(grid, block, arguments):
                assert len(arguments) == count, f"{name}: {count} parameters"
                self.queue.call(self._run, library, name, grid, block, arguments)

            return launch

        return SimpleNamespace(get_function=get_function)

    def _run(self, library, name, grid, block, arguments):
        self.launches.append((name, grid, block))
        numbers = [ctypes.c_longlong(n) for n in arguments]
        (across, down), threads = self.grid, self.threads
        threads_of_grid = list(product(range(across), range(down), range(threads)))
        if self.rng is not None:
            self.rng.shuffle(threads_of_grid)
        for block_x, block_y, thread in threads_of_grid:
            library.be_thread(block_x, block_y, thread, across, down, threads)
            getattr(library, name)(*numbers)


class SerialCublas:
    """cuBLAS as `cublas.py` calls it.

    allocated: from the start to the end of each memory on the device. A product that
    reads or writes elsewhere fails, where a mutant would end the process.
    """

    def __init__(self, queue, allocated=None):
        self.allocated = allocated
        source = (HERE / "serial_cublas.c").read_text(encoding="utf-8")
        self.library, self.queue = compiled(source, "-O1", "-x", "c"), queue

    def __getattr__(self, name):
        function = getattr(self.library, name)
        if "gemm" not in name:
            return function

        def run(*arguments):
            if self.allocated is not None and not self._fits(name, arguments):
                return 11  # CUBLAS_STATUS_MAPPING_ERROR
            return function(*arguments)

        return lambda *arguments: self.queue.call(run, *arguments)

    def _fits(self, name, arguments):
        """Whether all matrices of a product lie in memory of the device."""
        numbers = [getattr(argument, "value", None) for argument in arguments]
        ta, tb, m, n, k = numbers[1:6]
        size, tasks = (4 if "Sgemm" in name else 8), numbers[-1]
        shapes = (k, m) if ta else (m, k), (n, k) if tb else (k, n), (m, n)
        for (rows, columns), first in zip(shapes, (7, 10, 14), strict=True):
            address, ld, step = numbers[first : first + 3]
            count = (tasks - 1) * step + (columns - 1) * ld + rows
            ends = self.allocated.items()
            if not any(a <= address and address + count * size <= b for a, b in ends):
                return False
        return True


class SerialBackend:
    """The GPU backend on the stand-in."""

    name, threads = "serial", 1

    def __init__(self, **options):
        self.cupy = SerialCupy(**options)
        cublas = SerialCublas(self.cupy.queue, self.cupy.allocated)
        self.device = CupyDevice(self.cupy, self.cupy, cublas)

    def compile(self, tape, dtype):
        return DeviceProgram(tape, check_dtype(dtype), self.device)

    training_steps = CupyBackend.training_steps


@cache
def serial_backend(**options):
    """A backend that tests share: a new one costs 32 MB of workspace."""
    return SerialBackend(**options)


def run_serially(tape, inputs, dtype="float64", **options):
    """Run a tape once, on inputs cast to the dtype."""
    program = serial_backend(**options).compile(tape, dtype)
    return program({name: np.array(a, dtype) for name, a in inputs.items()})
