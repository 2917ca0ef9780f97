"""From a tape to kernel calls on one flat workspace, planned before anything runs.

`Plan(tape)` does three things, all of them arithmetic on shapes:

1. **select** kernel calls (`fusion.py`, `selection.py`).
2. **live ranges**: a buffer is needed from the first call that writes it to the last
   that reads it. Inputs, constants and outputs are needed throughout.
3. **place**: buffers get offsets, large ones first, each at the lowest offset where it
   meets no other buffer alive at the same time.

The result is data: a list of calls and the size of the workspace, which is what
`Tape.summary` prints and the numba backend runs. Offsets and sizes count elements.
"""

from collections.abc import Collection

import numpy as np

from tinymaml.autodiff.tape import Tape
from tinymaml.backends.numba.fusion import Place
from tinymaml.backends.numba.selection import Selection

ALIGNMENT = 16  # elements: 64 bytes of float32, one cache line


class Plan(Selection):
    """Kernel calls for one task, and the workspace they need.

    >>> tape = Tape()
    >>> x = tape.input("x", (4, 3))
    >>> tape.output("total", (x * x).sum())
    >>> plan = Plan(tape)
    >>> [call.kernel for call in plan.instructions]
    ['mul_sum']
    >>> plan.bytes("float32")
    128
    """

    def __init__(self, tape: Tape) -> None:
        super().__init__(tape)
        self.offsets, self.size = self._place_buffers()

    def bytes(self, dtype: str) -> int:
        """The size of one thread's workspace."""
        return self.size * np.dtype(dtype).itemsize

    def offset(self, place: Place) -> int:
        """The place as an offset in the workspace."""
        return self.offsets[place.buffer] + place.offset

    def place_of(self, index: int) -> Place:
        """The place of the value that node `index` of the tape makes."""
        return self._places[index]

    def offset_of(self, index: int) -> int:
        """Its offset in the workspace."""
        return self.offset(self._places[index])

    def holds(self, index: int) -> bool:
        """Whether the value of that node has a place: an unused input has none."""
        return index in self._places

    def constant_pieces(self) -> list[tuple[int, int, float]]:
        """(offset, size, number) for every constant, to be written once."""
        return [
            (self.offsets[buffer], self._sizes[buffer], number)
            for buffer, number in self.constants.items()
        ]

    def _apart(self) -> Collection[int]:
        """Buffers that have memory of their own, outside the workspace."""
        return ()

    def _place_buffers(self) -> tuple[list[int], int]:
        first = np.full(len(self._sizes), len(self.instructions))
        last = np.full(len(self._sizes), -1)
        for time, call in enumerate(self.instructions):
            for place in (call.out, *call.reads):
                first[place.buffer] = min(first[place.buffer], time)
                last[place.buffer] = time
        pinned = [
            self._places[i.node].buffer
            for i in self.tape.inputs.values()
            if i.node in self._places
        ]
        pinned += [self._places[o.node].buffer for o in self.tape.outputs.values()]
        pinned += self.constants
        first[pinned] = 0
        last[pinned] = len(self.instructions)
        sizes = -(-np.array(self._sizes, dtype=np.int64) // ALIGNMENT) * ALIGNMENT
        sizes[list(self._apart())] = 0
        offsets = np.zeros(len(sizes), dtype=np.int64)
        order = np.argsort(-sizes, kind="stable")
        for count, buffer in enumerate(order):
            placed = order[:count]
            meets = placed[
                (first[placed] <= last[buffer]) & (first[buffer] <= last[placed])
            ]
            meets = meets[np.argsort(offsets[meets], kind="stable")]
            low = 0
            for start, stop in zip(
                offsets[meets].tolist(),
                (offsets[meets] + sizes[meets]).tolist(),
                strict=True,
            ):
                if start - low >= sizes[buffer]:
                    break
                low = max(low, stop)
            offsets[buffer] = low
        return offsets.tolist(), int((offsets + sizes).max(initial=0))


def summary(tape: Tape, dtype: str = "float32") -> str:
    """What running a tape costs for one task: operations, FLOPs, memory.

    The workspace is what the numba backend allocates for each thread, to the byte;
    nothing is run or compiled to know it.
    """
    plan = Plan(tape)
    counts: dict[str, int] = {}
    flops: dict[str, int] = {}
    for index in tape.live():
        name = tape.nodes[index].primitive.name
        counts[name] = counts.get(name, 0) + 1
        flops[name] = flops.get(name, 0) + tape.node_flops(index)
    lines = [f"{'primitive':<16}{'nodes':>8}{'FLOPs':>18}"]
    for name in sorted(flops, key=lambda name: -flops[name]):
        lines.append(f"{name:<16}{counts[name]:>8}{flops[name]:>18,}")
    lines.append(f"{'total':<16}{sum(counts.values()):>8}{tape.flops():>18,}")
    lines.append(
        f"{len(plan.instructions)} kernel calls and "
        f"{plan.bytes(dtype):,} bytes of workspace per thread ({dtype})"
    )
    return "\n".join(lines)
