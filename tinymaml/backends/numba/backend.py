"""The fast CPU backend: one thread per task, the whole tape per thread.

`NumbaBackend().compile(tape, dtype)` plans the tape (`planner.py`), compiles the
kernels it uses and writes the calls into an integer array, the *code*: one row a call,
first the kernel's address, then its offsets and sizes. Running a task is a loop over
rows that calls each address. The code is data, so a new network or a new shape compiles
nothing.

Each thread owns one workspace that stays in its cache, whatever the number of tasks.
Tasks are cut into at most 32 blocks, each summed in task order and the blocks in block
order: the cut depends on the number of tasks alone, so the bits of a result do not
depend on the number of threads.

Left out: products large enough to be worth a call of BLAS.
"""

import os
from collections.abc import Mapping
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

# Threads of GNU's OpenMP wait busily for each other, for milliseconds. If another
# program has the core, they wait for nothing. A tenth of a millisecond is as fast on a
# quiet machine and, measured on a busy one, up to seven times faster. The library reads
# this when it is loaded, which importing numba's parallel half does.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from llvmlite import ir
from numba import config, njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from tinymaml.autodiff.tape import Tape
from tinymaml.backends import check_bound
from tinymaml.backends.numba import image_kernels, kernels, planner, tiles
from tinymaml.backends.numba.planner import ALIGNMENT, Plan
from tinymaml.checks import check_dtype, check_inputs, check_threads

BLOCKS = 32
ROW = 17  # integers in one row of the code: an address and up to 16 arguments
Array = np.ndarray[Any, Any]
KERNELS = {**vars(kernels), **vars(image_kernels)}


def pointer_type(dtype: str) -> types.CPointer:
    """The type of a workspace pointer."""
    return types.CPointer(types.float32 if dtype == "float32" else types.float64)


def _is_stale(folder: str, name: str) -> bool:
    """Whether what Numba has kept of a kernel is older than the code it is made of.

    Numba looks at the kernel's own file; what it calls may be in the others.
    """
    sources = [Path(str(file.__file__)) for file in (kernels, image_kernels, tiles)]
    kept = [path.stat().st_mtime_ns for path in _kept_files(folder, name)]
    newest = max(path.stat().st_mtime_ns for path in sources)
    return bool(kept) and max(kept) < newest


def _kept_files(folder: str, name: str) -> list[Path]:
    """Numba's index files of a kernel, by Numba's own way to name them."""
    made_by = KERNELS[name].__qualname__.replace("<", "").replace(">", "")
    return [*Path(folder).glob(f"*.{made_by}-*.nbi")]


@cache
def kernel_address(name: str, dtype: str) -> int:
    """Compile one kernel for one dtype (or load it from Numba's cache): its address."""
    signature = types.void(pointer_type(dtype), types.CPointer(types.int64))
    compiled = njit(
        signature,
        fastmath=kernels.FAST_MATH,
        error_model="numpy",
        cache=True,
    )(KERNELS[name])
    if compiled.stats.cache_hits and _is_stale(compiled.stats.cache_path, name):
        compiled.recompile()
    (result,) = compiled.overloads.values()
    return int(result.library.get_pointer_to_function(result.fndesc.llvm_func_name))


@intrinsic
def call_kernel(typing_context, address, w, row):
    """Call the kernel at an address, on the workspace at w and the code row at row."""
    kernel_arguments = (types.CPointer(types.float32), types.CPointer(types.int64))

    def generate(context, builder, signature, arguments):
        convention = context.call_conv
        function = convention.get_function_type(types.none, kernel_arguments)
        pointer = builder.inttoptr(arguments[0], function.as_pointer())
        places = [
            builder.inttoptr(value, context.get_value_type(kind))
            for value, kind in zip(arguments[1:], kernel_arguments, strict=True)
        ]
        convention.call_function(builder, pointer, types.none, kernel_arguments, places)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


# Loops run over slices, not over `row[start + i]`: only then does the compiler know
# that no index is negative, and vectorises (measured: 6 times faster).


@njit(cache=True)
def copy_pieces(source, target, moves):
    """Copy pieces of one row to another: (start in source, start in target, size)."""
    for k in range(len(moves)):
        start, to, size = moves[k, 0], moves[k, 1], moves[k, 2]
        x, out = source[start : start + size], target[to : to + size]
        for i in range(size):
            out[i] = x[i]


@njit(cache=True)
def add_pieces(source, target, moves):
    """Add pieces of one row to another: (start in source, start in target, size)."""
    for k in range(len(moves)):
        start, to, size = moves[k, 0], moves[k, 1], moves[k, 2]
        x, out = source[start : start + size], target[to : to + size]
        for i in range(size):
            out[i] += x[i]


@intrinsic
def copy_memory(typing_context, target, source, size):
    """Copy so many bytes from one address to another."""

    def generate(context, builder, signature, arguments):
        byte = ir.IntType(8).as_pointer()
        target, source = (builder.inttoptr(place, byte) for place in arguments[:2])
        cgutils.raw_memcpy(builder, target, source, arguments[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@njit(cache=True)
def read_inputs(w, task, inputs):
    """Copy inputs to w: (address, bytes from task to task, place in w, bytes)."""
    for k in range(len(inputs)):
        start = inputs[k, 0] + task * inputs[k, 1]
        copy_memory(w.ctypes.data + inputs[k, 2], start, inputs[k, 3])


@intrinsic
def take_number(typing_context, counter):
    """The next of 0, 1, 2, ...: no two threads get the same."""

    def generate(context, builder, signature, arguments):
        place = context.make_array(signature.args[0])(context, builder, arguments[0])
        one = context.get_constant(types.int64, 1)
        return builder.atomic_rmw("add", place.data, one, "monotonic")

    return types.int64(counter), generate


@njit(nogil=True, cache=True, error_model="numpy")
def run_blocks(counter, code, w, inputs, rows, moves):
    """Run the code for one block of tasks after another, until none is left.

    Threads take blocks as they come, so one that starts late, or that another program
    disturbs, takes fewer. Who takes a block does not matter to its sum.
    """
    each, blocks = rows
    each_moves, sum_moves = moves
    count, cuts = len(each), len(blocks)
    read_inputs(w, 0, inputs[0])
    block = take_number(counter)
    while block < cuts:
        blocks[block, :] = 0
        # [alg2-line4]
        for task in range(block * count // cuts, (block + 1) * count // cuts):
            read_inputs(w, task, inputs[1])
            row = code.ctypes.data + 8
            for i in range(len(code)):
                call_kernel(code[i, 0], w.ctypes.data, row)
                row += 8 * ROW
            copy_pieces(w, each[task], each_moves)
            add_pieces(w, blocks[block], sum_moves)
        # [/alg2-line4]
        block = take_number(counter)


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def run_in_parallel(counter, code, workspaces, inputs, rows, moves):
    """Run all blocks, each thread in a workspace of its own."""
    for thread in prange(len(workspaces)):
        run_blocks(counter, code, workspaces[thread], inputs, rows, moves)


@njit(nogil=True, cache=True)
def sum_blocks(blocks, total):
    """The sum of all blocks, in block order."""
    total[:] = 0
    for block in range(len(blocks)):
        for i in range(len(total)):
            total[i] += blocks[block, i]


class NumbaBackend:
    """Runs tapes with compiled kernels, one task per thread at a time.

    `threads` defaults to Numba's number of threads, one per core; more threads than
    that share the cores. The same bits come out for any number.
    """

    name = "numba"

    def __init__(self, threads: int | None = None) -> None:
        self.threads = check_threads(threads, default=config.NUMBA_NUM_THREADS)

    def compile(self, tape: Tape, dtype: str) -> "NumbaProgram":
        """A callable that runs the tape: {name: array} in, {name: array} out."""
        return NumbaProgram(tape, check_dtype(dtype), self.threads)


class Rows:
    """Named outputs packed end to end, one row a task, and their workspace places."""

    def __init__(self, plan: Plan, places: Mapping[str, Any], dtype: Any) -> None:
        self.dtype = dtype
        self.pieces: dict[str, tuple[slice, tuple[int, ...]]] = {}
        moves = []
        start = 0
        for name, place in places.items():
            size = prod(place.shape)
            self.pieces[name] = (slice(start, start + size), place.shape)
            moves.append((plan.offset_of(place.node), start, size))
            start += size
        self.size = start
        self.moves = np.array(moves, dtype=np.int64).reshape(-1, 3)

    def new(self, count: int) -> Array:
        """`count` rows, not yet filled."""
        return np.empty((count, self.size), dtype=self.dtype)

    def views(self, rows: Array) -> dict[str, Array]:
        """The rows taken apart again: {name: (count, ...)}, sharing their memory."""
        return {
            name: rows[:, piece].reshape(len(rows), *shape)
            for name, (piece, shape) in self.pieces.items()
        }


class NumbaProgram:
    """One tape, planned, compiled and ready to be run in one dtype.

    It owns its workspaces: one program must not be called from two threads at once.
    """

    def __init__(self, tape: Tape, dtype: np.dtype[Any], threads: int) -> None:
        tape = tape.snapshot()
        self.tape, self.dtype, self.threads = tape, dtype, threads
        self.plan = plan = planner.plan(tape)
        self.code = np.zeros((len(plan.instructions), ROW), dtype=np.int64)
        for row, call in zip(self.code, plan.instructions, strict=True):
            offsets = [plan.offset(view) for view in (call.out, *call.reads)]
            arguments = [*offsets, *call.sizes]
            row[0] = kernel_address(call.kernel, dtype.name)
            row[1 : 1 + len(arguments)] = arguments
        # one row of aligned memory per thread, and room behind the last: products read
        # up to a vector further than their operands go
        memory = np.zeros(threads * plan.size + 2 * ALIGNMENT, dtype=dtype)
        shift = (-memory.ctypes.data // memory.itemsize) % ALIGNMENT
        memory = memory[shift : shift + threads * plan.size]
        self.workspaces = memory.reshape(threads, plan.size)
        for offset, size, number in plan.constant_ranges():
            self.workspaces[:, offset : offset + size] = number
        self._run = BoundProgram(self, {})

    def bind(self, bound: Mapping[str, Array]) -> "BoundProgram":
        """The same for the rest of the inputs, these being given now."""
        return BoundProgram(self, bound)

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the tape for all tasks; sums run over tasks in task order."""
        return self._run(inputs)


class BoundProgram:
    """A program that knows where some inputs are, and asks for the others.

    What is asked for is copied to arrays of its own, because to ask NumPy for an
    address takes longer than to copy the inputs of a small network.
    """

    def __init__(self, program: NumbaProgram, bound: Mapping[str, Array]) -> None:
        self._program, tape = program, program.tape
        self._unbound, self._count = check_bound(tape, program.dtype, bound)
        self._bound = {
            name: array if one_row.flags.c_contiguous else array.copy("C")
            for name, array in bound.items()
            for one_row in (array[:1] if tape.inputs[name].per_task else array,)
        }
        self._each, self._sums = (
            Rows(
                program.plan,
                {n: o for n, o in tape.outputs.items() if o.reduction == reduction},
                program.dtype,
            )
            for reduction in ("each", "sum")
        )
        self._moves = self._each.moves, self._sums.moves
        self._counter = np.zeros(1, dtype=np.int64)
        self._make_room(self._count or 1)

    def _make_room(self, count: int) -> None:
        """Arrays for the inputs of `count` tasks, kept from call to call."""
        self._room = count
        self._arrays = {
            name: np.empty((count, *shape) if per_task else shape, self._program.dtype)
            for name, (_, shape, per_task) in self._unbound.items()
        }
        self._inputs = self._addresses(per_task=False), self._addresses(per_task=True)
        self._blocks = self._sums.new(min(count, BLOCKS))

    def _addresses(self, per_task: bool) -> Array:
        """What `read_inputs` must know of inputs."""
        plan, unit = self._program.plan, self._program.dtype.itemsize
        arrays = self._bound | self._arrays
        rows = [
            (
                arrays[name].ctypes.data,
                arrays[name].strides[0] if per_task else 0,
                plan.offset_of(place.node) * unit,
                prod(place.shape) * unit,
            )
            for name, place in self._program.tape.inputs.items()
            if place.per_task == per_task and place.node in plan.views
        ]
        return np.array(rows, dtype=np.int64).reshape(-1, 4)

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the tape for all tasks; sums run over tasks in task order."""
        program = self._program
        count = check_inputs(self._unbound, program.dtype, inputs, self._count) or 1
        if count != self._room:
            self._make_room(count)
        for name, array in self._arrays.items():
            array[...] = inputs[name]
        each, total = self._each.new(count), self._sums.new(1)
        work = self._inputs, (each, self._blocks), self._moves
        self._counter[0] = 0
        if program.threads == 1:
            run_blocks(self._counter, program.code, program.workspaces[0], *work)
        else:
            run_in_parallel(self._counter, program.code, program.workspaces, *work)
        sum_blocks(self._blocks, total[0])
        sums = self._sums.views(total)
        return self._each.views(each) | {name: sums[name][0] for name in sums}
