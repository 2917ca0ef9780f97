"""From a tape to kernel calls on one flat workspace, planned before anything runs.

    tape
      | fuse      fusion.py     which values are never stored, or share memory
      | select    selection.py  which kernel calls run the rest, on numbered buffers
      | place     this file     where in the workspace each buffer lies
      v
    Plan: a list of kernel calls, an offset for each buffer, the workspace's size

`plan(tape)` is these three. All of it is arithmetic on shapes, and the result is data:
it is what `summary` prints and what the numba backend runs. The GPU's plan
(`device_plan.py`) is made in the same way with other rules, and joins calls into
launches before they are placed.

Two buffers may lie in the same memory if they are never needed at the same time. A
buffer is needed from the first call that writes it to the last that reads it; inputs,
constants and outputs are needed throughout.

Offsets and sizes count elements.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinymaml.autodiff.tape import Tape
from tinymaml.backends.numba.fusion import fuse
from tinymaml.backends.numba.selection import (
    CPU_RULES,
    Instruction,
    Selection,
    View,
    can_accumulate,
    select,
)
from tinymaml.checks import check_dtype, check_kind

ALIGNMENT = 16  # elements: 64 bytes of float32, one cache line
Integers = NDArray[np.int64]


@dataclass
class Plan:
    """Kernel calls for one task, and the workspace they need."""

    tape: Tape
    instructions: list[Instruction]
    constants: dict[int, Any]  # buffer -> the number, or numbers, it is filled with
    views: dict[int, View]  # of values, by their node; an unused input has none
    buffer_sizes: list[int]
    offsets: list[int]  # where each buffer begins, in elements
    size: int  # elements in one thread's workspace

    def bytes(self, dtype: str) -> int:
        """The size of one thread's workspace."""
        return self.size * check_dtype(dtype).itemsize

    def offset(self, view: View) -> int:
        """Where a view begins in the workspace."""
        return self.offsets[view.buffer] + view.offset

    def offset_of(self, index: int) -> int:
        """Where the value of node `index` begins in the workspace."""
        return self.offset(self.views[index])

    def constant_ranges(self) -> list[tuple[int, int, Any]]:
        """(offset, size, number or numbers) of each constant, to be written once."""
        return [
            (self.offsets[buffer], self.buffer_sizes[buffer], number)
            for buffer, number in self.constants.items()
        ]


def plan(tape: Tape) -> Plan:
    """Plan a tape for the numba backend.

    >>> tape = Tape()
    >>> x = tape.input("x", (4, 3))
    >>> tape.output("total", (x * x).sum())
    >>> [call.kernel for call in plan(tape).instructions]
    ['mul_sum']
    >>> plan(tape).bytes("float32")
    128
    """
    selection = select(fuse(tape, can_accumulate), CPU_RULES)
    return place(selection, selection.instructions)


def place(
    selection: Selection,
    instructions: list[Instruction],
    inputs_in_workspace: bool = True,
) -> Plan:
    """Give each buffer an offset: large ones first, each at the lowest that is free.

    Without inputs_in_workspace, inputs and constants have memory of their own, and the
    workspace has no room for them. The time is quadratic in the number of buffers.
    """
    tape, views, buffer_sizes = selection.tape, selection.views, selection.buffer_sizes
    constants = {v.buffer: number for (number, *_), v in selection.constants.items()}
    inputs = [views[i.node].buffer for i in tape.inputs.values() if i.node in views]
    outputs = [views[output.node].buffer for output in tape.outputs.values()]
    first = np.full(len(buffer_sizes), len(instructions))
    last = np.full(len(buffer_sizes), -1)
    for time, call in enumerate(instructions):
        for view in (call.out, *call.reads):
            first[view.buffer] = min(first[view.buffer], time)
            last[view.buffer] = time
    needed_throughout = [*inputs, *outputs, *constants]
    first[needed_throughout] = 0
    last[needed_throughout] = len(instructions)
    sizes = -(-np.array(buffer_sizes, dtype=np.int64) // ALIGNMENT) * ALIGNMENT
    if not inputs_in_workspace:
        sizes[[*inputs, *constants]] = 0
    offsets = lowest_offsets(sizes, first, last)
    size = int((offsets + sizes).max(initial=0))
    return Plan(
        tape, instructions, constants, views, buffer_sizes, offsets.tolist(), size
    )


def lowest_offsets(sizes: Integers, first: Integers, last: Integers) -> Integers:
    """Offsets at which no two buffers overlap that are needed at the same time."""
    offsets = np.zeros(len(sizes), dtype=np.int64)
    order = np.argsort(-sizes, kind="stable")
    for count, buffer in enumerate(order):
        placed = order[:count]
        same_time = (first[placed] <= last[buffer]) & (first[buffer] <= last[placed])
        neighbours = placed[same_time]
        neighbours = neighbours[np.argsort(offsets[neighbours])]  # from the lowest up
        starts = offsets[neighbours]
        # A gap begins where all lower neighbours have ended, and ends at the next one;
        # above the last there is always room.
        free = np.maximum.accumulate(np.append(0, starts + sizes[neighbours]))
        fits = np.append(starts - free[:-1] >= sizes[buffer], True)
        offsets[buffer] = free[fits.argmax()]
    return offsets


def summary(tape: Tape, dtype: str = "float32") -> str:
    """What running a tape costs for one task: operations, FLOPs, memory.

    The workspace is what the numba backend allocates for each thread, to the byte;
    nothing is run or compiled to know it. dtype: "float32" or "float64".

    >>> import tinymaml as tm
    >>> tape = tm.Tape()
    >>> x, w = tape.input("x", (10, 40)), tape.input("w", (40, 1))
    >>> tape.output("sum", tm.tanh(x @ w).sum())
    >>> print(summary(tape))
    primitive          nodes             FLOPs
    matmul                 1               800
    tanh                   1                10
    sum                    1                10
    input                  2                 0
    reshape                1                 0
    total                  6               820
    3 kernel calls and 1,984 bytes of workspace per thread (float32)
    """
    check_kind("tape", tape, Tape, "a Tape")
    counts, flops = Counter[str](), Counter[str]()
    for index in tape.live():
        name = tape.nodes[index].primitive.name
        counts[name] += 1
        flops[name] += tape.node_flops(index)
    lines = [f"{'primitive':<16}{'nodes':>8}{'FLOPs':>18}"]
    for name, number in flops.most_common():
        lines.append(f"{name:<16}{counts[name]:>8}{number:>18,}")
    lines.append(f"{'total':<16}{sum(counts.values()):>8}{tape.flops():>18,}")
    tape_plan = plan(tape)
    lines.append(
        f"{len(tape_plan.instructions)} kernel calls and "
        f"{tape_plan.bytes(dtype):,} bytes of workspace per thread ({dtype})"
    )
    return "\n".join(lines)
