"""Programs on a GPU: memory for all tasks, commands written once, and their replay.

    program = DeviceProgram(tape, dtype, device)
    results = program({"theta": theta, "x": x, ...})    # NumPy arrays in and out

A program is prepared once for each number of tasks T. A `Layout` gives every array of
the plan an offset in one block of memory. `Commands` turns the launches of the plan
into calls of kernels and of cuBLAS that contain all addresses. The device captures
these calls (on a GPU, as a CUDA graph) and returns a function that repeats them.

From then on, running the program is one copy of all inputs to the device, one replay,
and one copy of all outputs back: the host does not launch kernels one by one, which
would take longer than the kernels of a small network run.

The protocol `Device` lists what this file needs of a device; `cuda/backend.py`
implements it with CuPy. In the tests a stand-in for CuPy runs the same kernels on the
processor, one thread after another, so that all of this is tested where there is no
GPU.

Left out: copies that overlap with computation; `training.py` has them.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import ceil, prod
from typing import Any, NamedTuple, Protocol

import numpy as np

from tinymaml.autodiff.tape import Output, Tape
from tinymaml.backends import bind_by_merging
from tinymaml.backends.cuda.cublas import Gemm, Matrix
from tinymaml.backends.cuda.device_plan import ELEMENTWISE, device_plan
from tinymaml.backends.numba.planner import ALIGNMENT, Plan
from tinymaml.backends.numba.selection import Instruction, View
from tinymaml.checks import check_inputs

BLOCKS = 32  # blocks of tasks in a sum over tasks, as in the numba backend
MEMORY_FRACTION = 0.9  # how much of the free memory a program may allocate
# A kernel's element index has 32 bits and advances by one grid at a time. 2^20, more
# than the elements of a grid, is kept free so that the index cannot overflow.
MOST_ELEMENTS = 2**31 - 2**20
MOST_TASKS = 65_535  # tasks in one run: the limit of cuBLAS and of CUDA grids
CACHED_GRAPHS = 4  # numbers of tasks for which a program keeps a captured graph
Array = np.ndarray[Any, Any]
Command = Callable[[], None]


class Memory(Protocol):
    """Memory of a device. It is freed when nothing refers to this object."""

    address: int


class Staging(Protocol):
    """Host memory whose contents can be sent fast to one part of a device's memory."""

    @property
    def array(self) -> Array:
        """The host memory, flat. Fill it, then call `send`."""

    def send(self) -> None:
        """Copy it to the device, once the device has done its work so far."""


class Device(Protocol):
    """What a GPU must do: memory, kernels of kernels.cu, products, and graphs."""

    def free_bytes(self) -> int:
        """How many bytes can be allocated."""

    def zeros(self, size: int, dtype: Any) -> Memory:
        """New memory for `size` elements, all 0."""

    def put(self, array: Array) -> Memory:
        """A copy of an array in new memory."""

    def read(self, memory: Any, start: int, size: int) -> Array:
        """A copy of `size` elements of memory; waits for all work given so far."""

    def staging(self, memory: Any, start: int, size: int) -> Staging:
        """Host memory for `size` elements of memory from `start` on."""

    def launch(
        self, kernel: str, dtype: Any, work: int, tasks: int, arguments: tuple[int, ...]
    ) -> None:
        """Launch a kernel for `work` elements of each task; the kernel's parameters are
        `tasks`, then the arguments."""

    def gemm(self, dtype: Any, arguments: Gemm) -> None:
        """Multiply the matrices of all tasks."""

    def capture(self, commands: Sequence[Command]) -> Command:
        """A function that repeats the commands. Capturing may also run them once."""


class Operand(NamedTuple):
    """The arrays of all tasks for one value: their positions, in elements."""

    start: int  # where the array of the first task begins
    step: int  # from one task's array to the next; 0 if all tasks share one


class Layout:
    """Where the arrays of T tasks lie in one block of memory, in elements.

    The order lets one copy send all inputs, and one fetch all outputs. First come
    shared inputs, constants and inputs per task, which the host sends; then the
    workspace and sums over blocks of tasks; then the outputs.
    """

    def __init__(self, plan: Plan, tasks: int) -> None:
        self.plan, self.tasks = plan, tasks
        self._outside: dict[int, Operand] = {}  # buffers outside the workspace
        self.size = 0
        self.inputs: dict[str, Operand] = {}
        self._allocate_inputs(per_task=False)
        for buffer in plan.constants:
            start = self._allocate(plan.buffer_sizes[buffer])
            self._outside[buffer] = Operand(start, 0)
        self.per_task = self.size  # where the inputs per task begin
        self._allocate_inputs(per_task=True)
        self.from_host = self.size
        self._workspace = self._allocate(plan.size * tasks)
        self.partial_sums: dict[str, Operand] = {}
        self.outputs: dict[str, Operand] = {}
        outputs = plan.tape.outputs.items()
        for name, output in outputs:
            size = prod(output.shape)
            if output.reduction == "sum":
                blocks = min(BLOCKS, tasks)
                self.partial_sums[name] = Operand(self._allocate(blocks * size), size)
        self.outputs_start = self.size
        for name, output in outputs:
            size = prod(output.shape)
            start = self._allocate(size * tasks if output.reduction == "each" else size)
            self.outputs[name] = Operand(start, size)

    def _allocate(self, size: int) -> int:
        """The start of `size` new elements, aligned to a cache line."""
        start = self.size
        self.size += -(-size // ALIGNMENT) * ALIGNMENT
        return start

    def _allocate_inputs(self, per_task: bool) -> None:
        for name, (node, shape, of_task) in self.plan.tape.inputs.items():
            if of_task == per_task:
                size = prod(shape)
                start = self._allocate(size * self.tasks if per_task else size)
                operand = Operand(start, size if per_task else 0)
                self.inputs[name] = operand
                if node in self.plan.views:
                    self._outside[self.plan.views[node].buffer] = operand

    def operand(self, view: View) -> Operand:
        """The arrays of all tasks that a view of the plan stands for.

        A buffer that begins at offset o of one task's workspace begins at T o here, and
        holds the arrays of T tasks one behind the other. So buffers that share memory
        in the plan of one task share it here too, and no others do.
        """
        buffer, offset = view
        if buffer in self._outside:
            start, step = self._outside[buffer]
            return Operand(start + offset, step)
        step = -(-self.plan.buffer_sizes[buffer] // ALIGNMENT) * ALIGNMENT
        start = self._workspace + self.tasks * self.plan.offsets[buffer]
        return Operand(start + offset, step)

    def constants(self) -> Iterable[tuple[int, int, Any]]:
        """Where every constant starts, how many elements it has, and its values."""
        for buffer, number in self.plan.constants.items():
            yield self._outside[buffer].start, self.plan.buffer_sizes[buffer], number


class Commands:
    """The commands that run a plan in the memory of a layout.

    list: the commands in running order. They refer to `tables`, the fused groups in the
    device's memory, so this object must live as long as they are repeated.
    """

    def __init__(
        self, layout: Layout, memory: Memory, dtype: np.dtype[Any], device: Device
    ) -> None:
        self.layout, self.memory, self.dtype = layout, memory, dtype
        self.device, self.tasks = device, layout.tasks
        self.tables: list[Memory] = []
        self.list = [self._command(launch) for launch in layout.plan.instructions]
        for name, output in layout.plan.tape.outputs.items():
            self.list += self._output_commands(name, output)

    def argument(self, operand: Operand) -> tuple[int, int]:
        """The two arguments of a kernel that stand for an operand: address and step."""
        return self.memory.address + operand.start * self.dtype.itemsize, operand.step

    def _view(self, view: View) -> tuple[int, int]:
        return self.argument(self.layout.operand(view))

    def launch(self, kernel: str, work: int, tasks: int, *arguments: int) -> Command:
        """A command that launches a kernel for `work` elements of each task."""
        # The command must not refer to `self`: this object refers to the command, and
        # such a cycle would keep its memory on the device until Python looks for
        # cycles.
        device, dtype = self.device, self.dtype
        return lambda: device.launch(kernel, dtype, work, tasks, arguments)

    def _command(self, launch: Instruction) -> Command:
        kernel, out, reads, sizes, operations = launch
        if kernel == "matmul":
            return self._product(out, reads, sizes)
        if kernel == "elementwise":
            return self._fused_group(operations, sizes[0])
        views = [number for view in (out, *reads) for number in self._view(view)]
        return self.launch(kernel, threads_per_task(launch), self.tasks, *views, *sizes)

    def _fused_group(self, operations: Iterable[Instruction], n: int) -> Command:
        """One launch for several elementwise operations on arrays of n elements."""
        table = np.array([self._operation(call) for call in operations], np.int64)
        self.tables.append(self.device.put(table))
        address = self.tables[-1].address
        return self.launch("elementwise", n, self.tasks, address, len(table), n)

    def _operation(self, call: Instruction) -> list[int]:
        """The numbers of the struct `Operation` in kernels.cu.

        Element i of the operation reads element i / span * inner + i % inner of y,
        which is how a broadcast along the middle of (outer, middle, inner) reads its
        operand.
        """
        n, nothing = prod(call.sizes), (0, 0)
        x, y = self._view(call.reads[0]), nothing
        span, inner = n, n
        if len(call.sizes) == 3:
            span, inner = call.sizes[1] * call.sizes[2], call.sizes[2]
        if call.kernel == "scale":
            inner = 1
        if call.kernel == "broadcast":
            x, y = nothing, x
        elif len(call.reads) == 2:
            y = self._view(call.reads[1])
        opcode = ELEMENTWISE.index(call.kernel)
        return [opcode, *self._view(call.out), *x, *y, span, inner]

    def _product(
        self, out: View, reads: tuple[View, ...], sizes: tuple[int, ...]
    ) -> Command:
        """C (m, n) (+)= op(A) op(B), by a library that stores matrices by columns.

        To the library, our matrix stored by rows is its own transpose. So it is asked
        for C' = op(B)' op(A)': the factors change places, and their transposes stay.
        """
        m, n, k, ta, tb, accumulate, *parts = sizes
        product = Gemm(
            transpose_a=bool(tb),
            transpose_b=bool(ta),
            m=n,
            n=m,
            k=k,
            a=self._matrix(reads[1], k if tb else n),
            b=self._matrix(reads[0], m if ta else k),
            accumulate=bool(accumulate),
            c=self._matrix(out, n),
            tasks=self.tasks,
        )
        products = [product]
        if parts:
            products = products_of_parts(product, parts[0], self.dtype.itemsize)
        device, dtype = self.device, self.dtype  # so that `call` does not hold self

        def call() -> None:
            for each in products:
                device.gemm(dtype, each)

        return call

    def _matrix(self, view: View, columns: int) -> Matrix:
        address, step = self._view(view)
        return Matrix(address, columns, step)

    def _output_commands(self, name: str, output: Output) -> list[Command]:
        """Copy an output to where the host fetches it, or sum it over tasks.

        A sum goes over blocks of tasks first, then over the blocks, so that there is
        work for more than one thread.
        """
        source = self._view(self.layout.plan.views[output.node])
        target = self.argument(self.layout.outputs[name])
        size, tasks, blocks = prod(output.shape), self.tasks, min(BLOCKS, self.tasks)
        if output.reduction == "each":  # a pad without zeros is a copy
            return [self.launch("pad", size, tasks, *target, *source, 0, size, size)]
        partial = self.argument(self.layout.partial_sums[name])
        return [
            self.launch("sum_tasks", size, blocks, *partial, *source, tasks, size),
            self.launch("sum_tasks", size, 1, *target, *partial, blocks, size),
        ]


def threads_per_task(launch: Instruction) -> int:
    """How many threads have work for one task.

    One thread computes one element of the result; for softmax and logsumexp one row,
    for im2col one element of each row of outputs.
    """
    sizes = launch.sizes
    if launch.kernel in ("sum", "mul_sum"):
        return sizes[0] * sizes[2]
    if launch.kernel in ("softmax", "logsumexp"):
        return sizes[0]
    if launch.kernel == "im2col":
        return prod(sizes[i] for i in (0, 5, 6, 7, 3))
    if launch.kernel == "max_gather":
        images, height, width, channels, size = sizes
        return images * (height // size) * (width // size) * channels
    return sizes[-1] if launch.kernel == "pad" else prod(sizes[:4])


def products_of_parts(product: Gemm, parts: int, itemsize: int) -> list[Gemm]:
    """The products of all parts, from that of the first part of each task.

    The parts of a task lie one behind the other. If the next task's follow without a
    gap, one call does them all; if not, or if they are too many, one does a task's.
    """
    m, n, k, tasks = product.m, product.n, product.k, product.tasks
    matrices = (product.a, m * k), (product.b, k * n), (product.c, m * n)
    follow = all(matrix.step == parts * size for matrix, size in matrices)
    at_once = tasks if follow and tasks * parts <= MOST_TASKS else 1
    calls = []
    for task in range(0, tasks, at_once):
        a, b, c = (
            Matrix(matrix.address + task * matrix.step * itemsize, matrix.ld, size)
            for matrix, size in matrices
        )
        calls.append(product._replace(a=a, b=b, c=c, tasks=at_once * parts))
    return calls


class CapturedProgram:
    """A program for one number of tasks: its memory, and its graph, ready to replay."""

    def __init__(
        self, layout: Layout, memory: Memory, dtype: np.dtype[Any], device: Device
    ) -> None:
        self.layout, self.memory, self.device = layout, memory, device
        self.staging = device.staging(memory, 0, layout.from_host)
        # Constants lie between the inputs and are sent again in each call, because one
        # copy of everything takes less time than two copies around them.
        for start, size, number in layout.constants():
            self.staging.array[start : start + size] = number
        self.commands = Commands(layout, memory, dtype, device)
        self.replay = device.capture(self.commands.list)

    def write(self, inputs: Mapping[str, Array]) -> None:
        """Send inputs and constants to the device."""
        staged = self.staging.array
        for name, (start, _) in self.layout.inputs.items():
            flat = inputs[name].reshape(-1)
            staged[start : start + flat.size] = flat
        self.staging.send()

    def read(self) -> dict[str, Array]:
        """Fetch the outputs; an output of each task has a leading task axis."""
        layout = self.layout
        start = layout.outputs_start
        flat = self.device.read(self.memory, start, layout.size - start)
        results = {}
        for name, output in layout.plan.tape.outputs.items():
            each = output.reduction == "each"
            shape = (layout.tasks, *output.shape) if each else output.shape
            first = layout.outputs[name].start - start
            results[name] = flat[first : first + prod(shape)].reshape(shape)
        return results


class DeviceProgram:
    """One tape, planned for one dtype and a device.

    All tasks are run at once if their memory fits. If not, they are run in equal parts
    one after another, and sums over parts are added in order. One program must not be
    called from two threads at once.

    Raises MemoryError where one task alone does not fit.
    """

    def __init__(self, tape: Tape, dtype: np.dtype[Any], device: Device) -> None:
        tape = tape.snapshot()
        self.tape, self.dtype, self.device = tape, dtype, device
        self.plan = device_plan(tape)
        self._memory: Memory | None = None
        self._size = 0  # elements in this memory
        self._captured: dict[int, CapturedProgram] = {}  # by number of tasks
        # How many tasks run at once, by number of tasks. It is decided in the first
        # call with that number, and after `release` once more: if it changed with the
        # free memory in every call, so would the bits of sums.
        self._tasks_per_run: dict[int, int] = {}

    bind = bind_by_merging

    @property
    def launches(self) -> int:
        """How many kernels and products one replay launches."""
        reductions = [output.reduction for output in self.tape.outputs.values()]
        return len(self.plan.instructions) + len(reductions) + reductions.count("sum")

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the tape for all tasks; sums are over tasks, in the order of blocks."""
        tasks = check_inputs(self.tape.inputs, self.dtype, inputs) or 1
        count = self.tasks_per_run(tasks)
        parts = []
        for start in range(0, tasks, count):
            stop = min(start + count, tasks)
            captured = self._capture(stop - start)
            part = {
                name: inputs[name][start:stop] if placeholder.per_task else inputs[name]
                for name, placeholder in self.tape.inputs.items()
            }
            captured.write(part)
            captured.replay()
            parts.append(captured.read())
        self._tasks_per_run[tasks] = count
        return {name: self._join(name, parts) for name in self.tape.outputs}

    def _join(self, name: str, parts: list[dict[str, Array]]) -> Array:
        arrays = [part[name] for part in parts]
        if self.tape.outputs[name].reduction == "each":
            return np.concatenate(arrays)
        return np.asarray(sum(arrays[1:], arrays[0]))

    def tasks_per_run(self, tasks: int) -> int:
        """How many of `tasks` tasks are run at once: as few equal parts as fit."""
        if tasks in self._tasks_per_run:
            return self._tasks_per_run[tasks]
        # The memory that the program has already counts as free: it is used again.
        available = self.device.free_bytes() // self.dtype.itemsize + self._size
        allowed = max(self._size, int(MEMORY_FRACTION * available))
        counts = range(1, min(tasks, MOST_TASKS) + 1)
        fit = bisect_right(counts, allowed, key=lambda n: Layout(self.plan, n).size)
        one = Layout(self.plan, 1).size
        if fit == 0 or one > MOST_ELEMENTS:
            raise MemoryError(
                f"backend: one task of this tape needs {self._gigabytes(one)} of the "
                f"GPU's memory, {self._gigabytes(allowed)} are free, and at most "
                f"{self._gigabytes(MOST_ELEMENTS)} can be used for it; take fewer "
                "examples or inner steps, recompute=True, or float32"
            )
        return ceil(tasks / ceil(tasks / fit))

    def _capture(self, tasks: int) -> CapturedProgram:
        """The program for a number of tasks, from the cache or captured now.

        All graphs use the same memory, since only one runs at a time. A larger number
        of tasks needs new memory, which makes the graphs captured so far useless.
        """
        if tasks not in self._captured:
            layout = Layout(self.plan, tasks)
            if self._memory is None or layout.size > self._size:
                self._captured.clear()
                self._memory, self._size = None, 0  # freed before more is allocated
                self._memory = self.device.zeros(layout.size, self.dtype)
                self._size = layout.size
            if len(self._captured) == CACHED_GRAPHS:
                del self._captured[min(self._captured)]
            self._captured[tasks] = CapturedProgram(
                layout, self._memory, self.dtype, self.device
            )
        return self._captured[tasks]

    def release(self) -> None:
        """Give back the memory of all graphs; the next call captures its graph anew."""
        self._captured.clear()
        self._memory, self._size = None, 0
        self._tasks_per_run.clear()  # decided when less may have been free

    def _gigabytes(self, elements: int) -> str:
        return f"{elements * self.dtype.itemsize / 1e9:.3g} GB"
