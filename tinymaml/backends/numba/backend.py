"""The fast CPU backend: one task at a time in each thread, the whole tape in its cache.

`NumbaBackend().compile(tape, dtype)` plans the tape (`planner.py`), compiles the
kernels that it needs and writes an integer array, the *code*. Each row of the code is
one instruction: the address of a kernel, then the offsets and sizes that are its
arguments. To run a task is to loop over the instructions and call each address. The
code is data, so a new network or a new shape compiles nothing.

Each thread owns one workspace, the memory of all values of one task. It stays in the
cache, whatever the number of tasks.

Tasks are cut into at most 32 blocks. A block sums its tasks in their order, and the
sums of blocks are added in theirs. The blocks depend on the number of tasks alone, so
that a result has the same bits for every number of threads.

Left out: products large enough to be worth a call of BLAS.
"""

import os
from collections.abc import Mapping, Sequence
from functools import cache
from math import prod
from threading import Lock
from typing import Any, NamedTuple, NoReturn

import numpy as np

# GNU's OpenMP lets a thread that waits for the others spin for milliseconds. Where
# another program needs the core, that time is lost for both. Spinning for a tenth of a
# millisecond is as fast on a quiet machine and was up to seven times faster on a busy
# one. OpenMP reads this variable when it is loaded, so it must be set before Numba's
# parallel half is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from llvmlite import ir
from numba import config, njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from tinymaml.autodiff.tape import Tape
from tinymaml.backends import Backend, check_bound
from tinymaml.backends.numba import image_kernels, kernels, planner
from tinymaml.backends.numba.kernel_cache import kept_on_disk
from tinymaml.backends.numba.planner import ALIGNMENT
from tinymaml.backends.programs import free_after_fork
from tinymaml.checks import Array, check_dtype, check_inputs, check_threads
from tinymaml.tasks.batch import block_bounds

# Numba's layer `workqueue` ends the process when two threads of Python run parallel
# regions at once. They would share the cores anyway.
PARALLEL_REGION = Lock()
# GNU's OpenMP ends a process that was forked after a parallel region. So programs run
# on one thread in a forked process; no result depends on it.
FORKED: list[bool] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: FORKED.append(True))
INSTRUCTION_SIZE = 17  # whole numbers: an address and up to 16 arguments
KERNELS = {
    name: getattr(module, name)
    for module, names in (
        (kernels, "matmul dots transpose exp log tanh copy reciprocal rsqrt relu gate"),
        (
            kernels,
            "sin cos swap scale pad add sub mul mul_add add_relu broadcast sum mul_sum",
        ),
        (kernels, "softmax logsumexp"),
        (image_kernels, "conv conv_input conv_weight largest max_gather max_scatter"),
    )
    for name in names.split()
}


# --- kernels --------------------------------------------------------------------------


def pointer_type(dtype: str) -> types.CPointer:
    """The type of a workspace pointer."""
    return types.CPointer(types.float32 if dtype == "float32" else types.float64)


@cache
def kernel_address(name: str, dtype: str) -> int:
    """The address of a kernel for one dtype: compiled, or loaded from disk.

    The first compilation takes up to seconds, a load milliseconds.
    """
    signature = types.void(pointer_type(dtype), types.CPointer(types.int64))
    function = KERNELS[name]
    # Machine code is linked by names. Kernels that are closures of one function, and
    # were compiled in different processes, would have one name.
    function.__qualname__ = name
    jitted = njit(fastmath=kernels.FAST_MATH, error_model="numpy")(function)
    kept_on_disk(jitted, f"{name}.{dtype}").compile(signature)
    (result,) = jitted.overloads.values()
    return int(result.library.get_pointer_to_function(result.fndesc.llvm_func_name))


# --- running a block of tasks, compiled -----------------------------------------------


@intrinsic
def call_kernel(typing_context, address, w, args):
    """Call the kernel at an address with the addresses of a workspace and of arguments.

    Both types of workspace are passed as one: a pointer is a pointer to the processor.
    """
    parameters = (types.CPointer(types.float32), types.CPointer(types.int64))

    def generate(context, builder, signature, arguments):
        convention = context.call_conv
        function = convention.get_function_type(types.none, parameters)
        kernel = builder.inttoptr(arguments[0], function.as_pointer())
        pointers = [
            builder.inttoptr(value, context.get_value_type(kind))
            for value, kind in zip(arguments[1:], parameters, strict=True)
        ]
        convention.call_function(builder, kernel, types.none, parameters, pointers)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@njit(forceinline=True)
def write_outputs(w, row, copies, accumulate):
    """Copy outputs from w to a row, or add them to what it holds.

    copies: (offset in w, offset in the row, size) of each output. The loop runs over
    slices, not over `row[to + i]`: only then does the compiler know that no index is
    negative, and vectorise (measured: 6 times faster).
    """
    for k in range(len(copies)):
        start, to, size = copies[k, 0], copies[k, 1], copies[k, 2]
        x, out = w[start : start + size], row[to : to + size]
        for i in range(size):
            out[i] = out[i] + x[i] if accumulate else x[i]


@intrinsic
def copy_memory(typing_context, target, source, size):
    """Copy `size` bytes from one address to another."""

    def generate(context, builder, signature, arguments):
        byte = ir.IntType(8).as_pointer()
        target, source = (builder.inttoptr(address, byte) for address in arguments[:2])
        cgutils.raw_memcpy(builder, target, source, arguments[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@njit
def read_inputs(w, task, inputs):
    """Copy the inputs of a task to its workspace.

    inputs: a row for each, (address, bytes from task to task, offset in w in bytes,
    size in bytes).
    """
    for k in range(len(inputs)):
        start = inputs[k, 0] + task * inputs[k, 1]
        copy_memory(w.ctypes.data + inputs[k, 2], start, inputs[k, 3])


@intrinsic
def next_number(typing_context, counter):
    """The next of 0, 1, 2, ...: an atomic addition, so no two threads get the same."""

    def generate(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        one = context.get_constant(types.int64, 1)
        return builder.atomic_rmw("add", array.data, one, "monotonic")

    return types.int64(counter), generate


@kept_on_disk
@njit(nogil=True, error_model="numpy")
def run_blocks(counter, code, w, inputs, bounds, outputs, copies):
    """Run the code for one block of tasks after another, until none is left.

    inputs: shared ones and those per task, as `read_inputs` takes them. bounds: where
    the blocks begin; the last number is where the last one ends. outputs: a row for
    each task, and a row for the sum of each block. copies: how both are filled.

    A thread takes the next block when it has finished one, so a thread that starts
    late, or that another program disturbs, takes fewer. Which thread runs a block does
    not change a bit of its sum.
    """
    shared, per_task = inputs
    each, sums = outputs
    each_copies, sum_copies = copies
    read_inputs(w, 0, shared)
    block = next_number(counter)
    while block < len(sums):
        sums[block, :] = 0
        # [alg2-line4]
        for task in range(bounds[block], bounds[block + 1]):
            read_inputs(w, task, per_task)
            args = code.ctypes.data + 8  # behind the address of the first kernel
            for i in range(len(code)):
                call_kernel(code[i, 0], w.ctypes.data, args)
                args += 8 * INSTRUCTION_SIZE
            write_outputs(w, each[task], each_copies, False)
            write_outputs(w, sums[block], sum_copies, True)
        # [/alg2-line4]
        block = next_number(counter)


@kept_on_disk
@njit(parallel=True, nogil=True, error_model="numpy")
def run_in_parallel(counter, code, workspaces, inputs, bounds, outputs, copies):
    """Run all blocks, each thread in a workspace of its own."""
    for thread in prange(len(workspaces)):
        run_blocks(counter, code, workspaces[thread], inputs, bounds, outputs, copies)


@kept_on_disk
@njit(nogil=True)
def sum_blocks(sums, total):
    """The total of the sums of all blocks, added in their order."""
    total[:] = 0
    for block in range(len(sums)):
        for i in range(len(total)):
            total[i] += sums[block, i]


# --- the backend ----------------------------------------------------------------------


class NumbaBackend(Backend):
    """Runs tapes with compiled kernels, one task per thread at a time.

    threads: how many tasks run at once; by default Numba's number of threads, one per
    core. More threads share the cores. Results have the same bits for any number.

    Raises TypeError or ValueError unless `threads` is a whole number of at least 1, and
    ImportError where NUMBA_DISABLE_JIT switches Numba's compiler off.
    """

    name = "numba"

    def __init__(self, threads: int | None = None) -> None:
        if config.DISABLE_JIT:
            raise ImportError("NUMBA_DISABLE_JIT switches Numba's compiler off")
        self.threads = check_threads(threads, default=config.NUMBA_NUM_THREADS)

    def compile(self, tape: Tape, dtype: str) -> "NumbaProgram":
        """A program that runs the tape in one dtype: {name: array} -> {name: array}.

        tape: what to compute; what is recorded on it later is not in the program.
        dtype: "float32" or "float64", of all inputs, of all values on the tape and of
        all outputs.

        Only kernels that no tape of this dtype needed before are compiled, and they are
        kept on disk. Raises TypeError for another dtype.
        """
        return NumbaProgram(tape, check_dtype(dtype), self.threads)


class PackedOutputs:
    """The outputs of one reduction, packed end to end into the rows of a matrix.

    copies: (offset in the workspace, offset in a row, size) of each output.
    """

    def __init__(self, program: "NumbaProgram", reduction: str) -> None:
        self.dtype = program.dtype
        self.slices: dict[str, tuple[slice, tuple[int, ...]]] = {}
        copies = []
        self.size = 0
        for name, (node, shape, kind) in program.tape.outputs.items():
            if kind == reduction:
                start, size = self.size, prod(shape)
                self.size += size
                self.slices[name] = (slice(start, self.size), shape)
                copies.append((program.plan.offset_of(node), start, size))
        self.copies = np.array(copies, dtype=np.int64).reshape(-1, 3)

    def empty(self, count: int) -> Array:
        """`count` rows whose numbers are not yet set."""
        return np.empty((count, self.size), dtype=self.dtype)

    def unpack(self, rows: Array) -> dict[str, Array]:
        """The outputs in some rows, {name: (rows, ...)}, as views of their memory."""
        return {
            name: rows[:, columns].reshape(len(rows), *shape)
            for name, (columns, shape) in self.slices.items()
        }


def _refuse_to_travel(program: object) -> NoReturn:
    """The method `__reduce__` of what holds addresses, which copies would share."""
    raise TypeError("a compiled program cannot be copied or pickled: compile its tape")


class NumbaProgram:
    """One tape, planned and compiled for one dtype.

    It owns its workspaces. So it has a lock, which each call holds: several threads of
    Python may call one program, and wait for each other. It cannot be copied.
    """

    __reduce__ = _refuse_to_travel

    def __init__(self, tape: Tape, dtype: np.dtype[Any], threads: int) -> None:
        tape = tape.snapshot()
        self.tape, self.dtype, self.threads = tape, dtype, threads
        self.lock = free_after_fork(Lock())
        self.plan = plan = planner.plan(tape)
        self.code = np.zeros((len(plan.instructions), INSTRUCTION_SIZE), dtype=np.int64)
        for row, call in zip(self.code, plan.instructions, strict=True):
            offsets = [plan.offset(view) for view in (call.out, *call.reads)]
            arguments = [*offsets, *call.sizes]
            row[0] = kernel_address(call.kernel, dtype.name)
            row[1 : 1 + len(arguments)] = arguments
        # One workspace per thread, aligned to a cache line, and one vector behind the
        # last, because products read up to a vector further than their operands go.
        memory = np.zeros(threads * plan.size + 2 * ALIGNMENT, dtype=dtype)
        shift = (-memory.ctypes.data // memory.itemsize) % ALIGNMENT
        memory = memory[shift : shift + threads * plan.size]
        self.workspaces = memory.reshape(threads, plan.size)
        for offset, size, number in plan.constant_ranges():
            self.workspaces[:, offset : offset + size] = number
        self._run = BoundProgram(self, {})

    def bind(self, bound: Mapping[str, Array]) -> "BoundProgram":
        """A callable of the other inputs; see `tinymaml.backends`."""
        return BoundProgram(self, bound)

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the tape for all tasks; sums are over tasks, in the order of blocks."""
        return self._run(inputs)

    def sums_of_blocks(
        self, inputs: Mapping[str, Array], bounds: Sequence[int]
    ) -> dict[str, Array]:
        """As a call, but with the sum of each block in place of the sum over all.

        bounds: the first task of each block, and behind them the number of tasks. A sum
        over tasks is a row for each block: (blocks, ...). Where the blocks are some of
        those of a larger batch, these rows have the bits that they have there.
        """
        return self._run.sums_of_blocks(inputs, np.array(bounds))


class Memory(NamedTuple):
    """What the calls of a bound program use for one number of tasks."""

    tasks: int
    arrays: dict[str, Array]  # of the unbound inputs, by name
    addresses: tuple[Array, Array]  # of shared inputs and those per task
    bounds: Array  # of the blocks of tasks
    block_sums: Array


class BoundProgram:
    """A program with some inputs bound: a callable of the others.

    Bound inputs are read where they lie. The others are copied to arrays of this object
    first: asking NumPy for the address of an array takes longer than copying the inputs
    of a small network.
    """

    __reduce__ = _refuse_to_travel

    def __init__(self, program: NumbaProgram, bound: Mapping[str, Array]) -> None:
        self._program, tape = program, program.tape
        self._unbound, self._bound_tasks = check_bound(tape, program.dtype, bound)
        # The array of one task must be contiguous; the task axis may have any stride.
        self._bound = {
            name: array if of_one_task.flags.c_contiguous else array.copy("C")
            for name, array in bound.items()
            for of_one_task in (array[:1] if tape.inputs[name].per_task else array,)
        }
        self._each = PackedOutputs(program, "each")
        self._sums = PackedOutputs(program, "sum")
        self._memory = self._allocate(self._bound_tasks or 1)

    def _allocate(self, tasks: int) -> Memory:
        """Memory for a number of tasks. It serves all calls until one has another.

        It changes nothing: an allocation that fails or is interrupted leaves the
        program with what it had.
        """
        arrays = {
            name: np.empty((tasks, *shape) if per_task else shape, self._program.dtype)
            for name, (_, shape, per_task) in self._unbound.items()
        }
        shared, per_task = (self._addresses(arrays, kind) for kind in (False, True))
        bounds = np.array(block_bounds(tasks))
        block_sums = self._sums.empty(len(bounds) - 1)
        return Memory(tasks, arrays, (shared, per_task), bounds, block_sums)

    def _addresses(self, unbound: dict[str, Array], per_task: bool) -> Array:
        """What `read_inputs` must know, of shared inputs or of those per task."""
        plan, itemsize = self._program.plan, self._program.dtype.itemsize
        arrays = self._bound | unbound
        rows = [
            (
                arrays[name].ctypes.data,
                arrays[name].strides[0] if per_task else 0,
                plan.offset_of(placeholder.node) * itemsize,
                prod(placeholder.shape) * itemsize,
            )
            for name, placeholder in self._program.tape.inputs.items()
            if placeholder.per_task == per_task and placeholder.node in plan.views
        ]
        return np.array(rows, dtype=np.int64).reshape(-1, 4)

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the tape for all tasks; sums are over tasks, in the order of blocks."""
        each, total = self._each.empty(self._check(inputs)), self._sums.empty(1)
        with self._program.lock:
            self._fit_memory(len(each))
            _, _, _, bounds, block_sums = self._memory
            self._run_blocks(inputs, bounds, (each, block_sums))
            sum_blocks(block_sums, total[0])
        sums = self._sums.unpack(total)
        return self._each.unpack(each) | {name: sums[name][0] for name in sums}

    def sums_of_blocks(
        self, inputs: Mapping[str, Array], bounds: Array
    ) -> dict[str, Array]:
        """As a call, with a row for each block in place of the sums over tasks."""
        each = self._each.empty(self._check(inputs))
        sums = self._sums.empty(len(bounds) - 1)
        with self._program.lock:
            self._fit_memory(len(each))
            self._run_blocks(inputs, bounds, (each, sums))
        return self._each.unpack(each) | self._sums.unpack(sums)

    def _check(self, inputs: Mapping[str, Array]) -> int:
        """The number of tasks, if the inputs fit."""
        bound_tasks, dtype = self._bound_tasks, self._program.dtype
        return check_inputs(self._unbound, dtype, inputs, bound_tasks) or 1

    def _fit_memory(self, tasks: int) -> None:
        if tasks != self._memory.tasks:
            self._memory = self._allocate(tasks)

    def _run_blocks(
        self, inputs: Mapping[str, Array], bounds: Array, outputs: tuple[Array, Array]
    ) -> None:
        """Fill the outputs, a row for each task and one for each block."""
        program = self._program
        for name, array in self._memory.arrays.items():
            array[...] = inputs[name]
        copies = self._each.copies, self._sums.copies
        work = self._memory.addresses, bounds, outputs, copies
        counter, workspaces = np.zeros(1, dtype=np.int64), program.workspaces
        if program.threads == 1 or FORKED:
            run_blocks(counter, program.code, workspaces[0], *work)
        else:
            with PARALLEL_REGION:
                run_in_parallel(counter, program.code, workspaces, *work)
