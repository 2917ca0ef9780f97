"""Tapes on a GPU: memory for all tasks laid out, commands written down once, replayed.

    program = DeviceProgram(tape, dtype, device)
    results = program({"theta": theta, "x": x, ...})    # arrays of NumPy in and out

For a number of tasks a `Layout` gives every array of the plan its place in one block of
memory, and `commands` turns launches into calls of kernels and of the library, with all
addresses in them. A device *captures* the calls (on a GPU: as a CUDA graph) and gives
back a function that repeats them; a call of the program then is one copy of all inputs
to the device, one replay, and one copy of all outputs back.

What a device must be able to do is the protocol `Device`; `cupy_machine.py` has it. In
the tests a stand-in for CuPy runs the same kernels on the processor, one thread after
another, so everything here is tested where there is no GPU.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple, Protocol

import numpy as np

from tinymaml.autodiff.tape import Output, Tape
from tinymaml.backends import bind_by_merging
from tinymaml.backends.cuda.cublas import Gemm
from tinymaml.backends.cuda.device_plan import ELEMENTWISE, device_plan
from tinymaml.backends.numba.planner import ALIGNMENT, Plan
from tinymaml.backends.numba.selection import Instruction, View
from tinymaml.checks import check_inputs

BLOCKS = 32  # of tasks, in a sum over tasks
SPARE = 0.9  # of the free memory that a program may take
MOST_ELEMENTS = 2**31 - 2**20  # of one task: kernels count with ints, a grid at a time
MOST_TASKS = 65_535  # at once: what cuBLAS and grids take on all cards
KEPT = 4  # numbers of tasks for which a program is kept ready
Array = np.ndarray[Any, Any]
Command = Callable[[], None]


class Memory(Protocol):
    """A piece of a device's memory; it is freed when nothing refers to it."""

    address: int


class Staging(Protocol):
    """Host memory from which a device reads fast, and where it goes."""

    @property
    def array(self) -> Array:
        """Flat; fill it, then send."""

    def send(self) -> None:
        """Copy it to the device, in the order of the device's other work."""


class Device(Protocol):
    """Memory, kernels of kernels.cu, products, and repeating all that."""

    def free_bytes(self) -> int:
        """Memory that can still be had."""

    def zeros(self, size: int, dtype: Any) -> Memory:
        """Memory for so many elements, all 0."""

    def put(self, array: Array) -> Memory:
        """A copy of an array."""

    def read(self, memory: Any, start: int, size: int) -> Array:
        """Elements of memory, once all work given to the device so far is done."""

    def staging(self, memory: Any, start: int, size: int) -> Staging:
        """Host memory for `size` elements of memory."""

    def launch(
        self, kernel: str, dtype: Any, work: int, tasks: int, arguments: tuple[int, ...]
    ) -> None:
        """A kernel for `work` elements of each task; `tasks` is its first argument."""

    def gemm(self, dtype: Any, arguments: Gemm) -> None:
        """A product of the library for all tasks."""

    def capture(self, commands: Sequence[Command]) -> Command:
        """A function that repeats the commands, which may be called before."""


class Operand(NamedTuple):
    """An array of each task: where that of the first begins, and the next."""

    start: int  # elements
    step: int  # 0: all tasks share one


class Layout:
    """Where the arrays of T tasks lie in one block of memory, in elements.

    In this order: shared inputs, constants and inputs of each task, which come from the
    host; the workspace; sums over blocks of tasks; outputs, which go to the host.
    """

    def __init__(self, plan: Plan, tasks: int) -> None:
        self.plan, self.tasks = plan, tasks
        self._apart: dict[int, Operand] = {}
        self.size = 0
        self.inputs: dict[str, Operand] = {}
        self._take_inputs(per_task=False)
        for buffer in plan.constants:
            start = self._take(plan.buffer_sizes[buffer])
            self._apart[buffer] = Operand(start, 0)
        self.per_task = self.size  # where inputs of each task begin
        self._take_inputs(per_task=True)
        self.from_host = self.size
        self._workspace = self._take(plan.size * tasks)
        self.partial_sums: dict[str, Operand] = {}
        self.outputs: dict[str, Operand] = {}
        outputs = plan.tape.outputs.items()
        for name, output in outputs:
            size = prod(output.shape)
            if output.reduction == "sum":
                blocks = min(BLOCKS, tasks)
                self.partial_sums[name] = Operand(self._take(blocks * size), size)
        self.outputs_start = self.size
        for name, output in outputs:
            size = prod(output.shape)
            each = output.reduction == "each"
            start = self._take(size * tasks if each else size)
            self.outputs[name] = Operand(start, size)

    def _take(self, size: int) -> int:
        start = self.size
        self.size += -(-size // ALIGNMENT) * ALIGNMENT
        return start

    def _take_inputs(self, per_task: bool) -> None:
        for name, place in self.plan.tape.inputs.items():
            if place.per_task == per_task:
                size = prod(place.shape)
                start = self._take(size * self.tasks if per_task else size)
                operand = Operand(start, size if per_task else 0)
                self.inputs[name] = operand
                if place.node in self.plan.views:
                    self._apart[self.plan.views[place.node].buffer] = operand

    def operand(self, view: View) -> Operand:
        """Where a view of the plan lies."""
        buffer, offset = view
        if buffer in self._apart:
            start, step = self._apart[buffer]
            return Operand(start + offset, step)
        step = -(-self.plan.buffer_sizes[buffer] // ALIGNMENT) * ALIGNMENT
        start = self._workspace + self.tasks * self.plan.offsets[buffer]
        return Operand(start + offset, step)

    def constants(self) -> Iterable[tuple[int, int, float]]:
        """(start, size, number) of every constant."""
        for buffer, number in self.plan.constants.items():
            yield self._apart[buffer].start, self.plan.buffer_sizes[buffer], number


class Commands:
    """The commands that run a plan in the memory of a layout."""

    def __init__(
        self, layout: Layout, memory: Memory, dtype: np.dtype[Any], device: Device
    ) -> None:
        self.layout, self.memory, self.dtype = layout, memory, dtype
        self.device, self.tasks = device, layout.tasks
        self.links: list[Memory] = []  # read by chains, as long as they are repeated
        self.list = [self._command(launch) for launch in layout.plan.instructions]
        for name, output in layout.plan.tape.outputs.items():
            self.list += self._output(name, output)

    def argument(self, operand: Operand) -> tuple[int, int]:
        """An array of each task, as kernels are told of it."""
        itemsize = self.dtype.itemsize
        return self.memory.address + operand.start * itemsize, operand.step

    def _at(self, view: View) -> tuple[int, int]:
        return self.argument(self.layout.operand(view))

    def launch(self, kernel: str, work: int, tasks: int, *arguments: int) -> Command:
        """A command that launches a kernel for `work` elements of each task."""
        device, dtype = self.device, self.dtype
        return lambda: device.launch(kernel, dtype, work, tasks, arguments)

    def _command(self, launch: Instruction) -> Command:
        kernel, out, reads, sizes, operations = launch
        if kernel == "matmul":
            return self._product(out, reads, sizes)
        if kernel == "elementwise":
            return self._chain(operations, sizes[0])
        views = [number for view in (out, *reads) for number in self._at(view)]
        return self.launch(kernel, work_of(launch), self.tasks, *views, *sizes)

    def _chain(self, links: Iterable[Instruction], n: int) -> Command:
        rows = np.array([self._link(link) for link in links], dtype=np.int64)
        self.links.append(self.device.put(rows))
        address = self.links[-1].address
        return self.launch("elementwise", n, self.tasks, address, len(rows), n)

    def _link(self, call: Instruction) -> list[int]:
        """One operation, as `Link` in kernels.cu has it."""
        n, nothing = prod(call.sizes), (0, 0)
        x, y = self._at(call.reads[0]), nothing
        span, inner = n, n
        if len(call.sizes) == 3:
            span, inner = call.sizes[1] * call.sizes[2], call.sizes[2]
        if call.kernel == "scale":
            inner = 1
        if call.kernel == "broadcast":
            x, y = nothing, x
        elif len(call.reads) == 2:
            y = self._at(call.reads[1])
        operation = ELEMENTWISE.index(call.kernel)
        return [operation, *self._at(call.out), *x, *y, span, inner]

    def _product(
        self, out: View, reads: tuple[View, ...], sizes: tuple[int, ...]
    ) -> Command:
        # Our rows are the library's columns: it is asked for C' = op(B)' op(A)', and
        # finds B' where we have B.
        m, n, k, ta, tb, more = sizes
        (a, step_a), (b, step_b), (c, step_c) = (self._at(p) for p in (*reads, out))
        arguments = Gemm(
            transpose_a=bool(tb),
            transpose_b=bool(ta),
            m=n,
            n=m,
            k=k,
            a=b,
            lda=k if tb else n,
            step_a=step_b,
            b=a,
            ldb=m if ta else k,
            step_b=step_a,
            more=bool(more),
            c=c,
            ldc=n,
            step_c=step_c,
            tasks=self.tasks,
        )
        device, dtype = self.device, self.dtype
        return lambda: device.gemm(dtype, arguments)

    def _output(self, name: str, output: Output) -> list[Command]:
        """Copied to where outputs lie, or summed over tasks, 32 blocks at a time."""
        source = self.layout.operand(self.layout.plan.views[output.node])
        target, size = self.layout.outputs[name], prod(output.shape)
        if output.reduction == "each":
            # A pad with nothing around is a copy.
            arguments = (*self.argument(target), *self.argument(source), 0, size)
            return [self.launch("pad", size, self.tasks, *arguments, size)]
        some, blocks = self.layout.partial_sums[name], min(BLOCKS, self.tasks)
        into, total = self.argument(some), self.argument(target)
        read = self.argument(source)
        return [
            self.launch("sum_tasks", size, blocks, *into, *read, self.tasks, size),
            self.launch("sum_tasks", size, 1, *total, *into, blocks, size),
        ]


def work_of(launch: Instruction) -> int:
    """How many threads of a task have something to do."""
    sizes = launch.sizes
    if launch.kernel in ("sum", "mul_sum"):
        return sizes[0] * sizes[2]
    if launch.kernel in ("softmax", "logsumexp"):
        return sizes[0]
    if launch.kernel == "im2col":
        return prod(sizes[i] for i in (0, 4, 5, 6, 7, 3))
    if launch.kernel == "max_gather":
        images, height, width, channels, size = sizes
        return images * (height // size) * (width // size) * channels
    return sizes[-1] if launch.kernel == "pad" else prod(sizes[:4])


class Loaded:
    """A program on a device, ready for one number of tasks."""

    def __init__(
        self, layout: Layout, memory: Memory, dtype: np.dtype[Any], device: Device
    ) -> None:
        self.layout, self.memory, self.device = layout, memory, device
        self.staging = device.staging(memory, 0, layout.from_host)
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
        """Fetch the outputs: those of each task with a leading task axis."""
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
    """One tape, planned and ready to be run in one dtype on a device.

    All tasks are run at once if their memory fits, else in equal parts one after the
    other, whose sums are added in order. Raises MemoryError where one task alone does
    not fit. One program must not be called from two threads at once.
    """

    def __init__(self, tape: Tape, dtype: np.dtype[Any], device: Device) -> None:
        tape = tape.snapshot()
        self.tape, self.dtype, self.device = tape, dtype, device
        self.plan = device_plan(tape)
        self._memory: Memory | None = None
        self._size = 0  # elements of it
        self._loaded: dict[int, Loaded] = {}
        # Of so many tasks, how many are run at once: found once, so that sums have
        # the same bits in every call, whatever others do with the memory meanwhile.
        self._together: dict[int, int] = {}

    bind = bind_by_merging

    @property
    def launches(self) -> int:
        """Kernels launched and products called in one replay."""
        sums = [o.reduction == "sum" for o in self.tape.outputs.values()]
        return len(self.plan.instructions) + len(sums) + sum(sums)

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the tape for all tasks; sums run over tasks in task order."""
        tasks = check_inputs(self.tape.inputs, self.dtype, inputs) or 1
        together = self.tasks_together(tasks)
        parts = []
        for start in range(0, tasks, together):
            stop = min(start + together, tasks)
            loaded = self._load(stop - start)
            loaded.write(
                {
                    name: inputs[name][start:stop] if per_task else inputs[name]
                    for name, (_, _, per_task) in self.tape.inputs.items()
                }
            )
            loaded.replay()
            parts.append(loaded.read())
        self._together[tasks] = together
        return {name: self._joined(name, parts) for name in self.tape.outputs}

    def _joined(self, name: str, parts: list[dict[str, Array]]) -> Array:
        arrays = [part[name] for part in parts]
        if self.tape.outputs[name].reduction == "each":
            return np.concatenate(arrays)
        return np.asarray(sum(arrays[1:], arrays[0]))

    def tasks_together(self, tasks: int) -> int:
        """How many of so many tasks are run at once."""
        if tasks in self._together:
            return self._together[tasks]
        itemsize = self.dtype.itemsize
        all_of_it = self.device.free_bytes() // itemsize + self._size
        room = max(self._size, int(SPARE * all_of_it))
        counts = range(1, min(tasks, MOST_TASKS) + 1)
        fit = bisect_right(counts, room, key=lambda n: Layout(self.plan, n).size)
        one = Layout(self.plan, 1).size
        if fit == 0 or one > MOST_ELEMENTS:
            raise MemoryError(
                f"backend: one task of this tape needs {self._gigabytes(one)} of the "
                f"GPU's memory, {self._gigabytes(room)} are free, and at most "
                f"{self._gigabytes(MOST_ELEMENTS)} can be used for it; take fewer "
                "examples or inner steps, recompute=True, or float32"
            )
        return -(-tasks // -(-tasks // fit))

    def _load(self, tasks: int) -> Loaded:
        if tasks not in self._loaded:
            layout = Layout(self.plan, tasks)
            if self._memory is None or layout.size > self._size:
                self._loaded.clear()
                self._memory, self._size = None, 0  # freed before more is asked for
                self._memory = self.device.zeros(layout.size, self.dtype)
                self._size = layout.size
            if len(self._loaded) == KEPT:
                del self._loaded[min(self._loaded)]
            self._loaded[tasks] = Loaded(layout, self._memory, self.dtype, self.device)
        return self._loaded[tasks]

    def _gigabytes(self, elements: int) -> str:
        return f"{elements * self.dtype.itemsize / 1e9:.3g} GB"
