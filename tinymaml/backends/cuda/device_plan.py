"""From a tape to launches on a GPU: the plan of the CPU backend, for all tasks at once.

`DevicePlan(tape)` selects and places like `Plan`, with three differences. Products are
left to a library that transposes as it reads, and convolutions are products of patches
(`im2col`). A launch costs microseconds, so neighbouring elementwise operations become
one. And a sum of many terms is made in two passes, because a GPU wants thousands of
results at a time and one thread makes each.

Inputs and constants have memory of their own. All else is the workspace of one task, as
`Plan` lays it out, and every buffer of it an array of all tasks: what begins at offset
o for one task begins at T o for T of them.
"""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from tinymaml.autodiff.tape import Node, Shape
from tinymaml.backends.numba.fusion import Place
from tinymaml.backends.numba.planner import Plan
from tinymaml.backends.numba.selection import Instruction

# In the order of kernels.cu.
ELEMENTWISE = (
    *("add", "sub", "mul", "mul_add", "add_relu", "gate", "scale", "relu", "exp"),
    *("log", "tanh", "reciprocal", "rsqrt", "copy", "broadcast"),
)
LONG_SUM = 64  # terms: more are added in two passes


class Launch(NamedTuple):
    """One launch of a kernel, or one call of the library, for all tasks."""

    kernel: str
    out: Place
    reads: tuple[Place, ...]
    sizes: tuple[int, ...]
    links: tuple[Instruction, ...] = ()  # of the kernel "elementwise": its operations


class DevicePlan(Plan):
    """Launches for all tasks, and the memory that one task needs.

    >>> from tinymaml.autodiff.tape import Tape
    >>> tape = Tape()
    >>> x = tape.input("x", (4, 3), per_task=True)
    >>> tape.output("y", (x * x * 2.0 + x))
    >>> [(launch.kernel, len(launch.links)) for launch in DevicePlan(tape).launches]
    [('elementwise', 3)]
    """

    launches: list[Launch]

    def _place_buffers(self) -> tuple[list[int], int]:
        """Placed with the operations of a launch at one time: none may reuse memory
        that another still reads."""
        self.launches = chained(self.instructions)
        self.instructions = [Instruction(*launch[:4]) for launch in self.launches]
        return super()._place_buffers()

    def _apart(self) -> set[int]:
        inputs = {
            self._places[i.node].buffer
            for i in self.tape.inputs.values()
            if i.node in self._places
        }
        return inputs | self.constants.keys()

    def buffer_size(self, buffer: int) -> int:
        """Elements of one task in a buffer."""
        return self._sizes[buffer]

    # --- selection, where it differs from the CPU's -----------------------------------

    def _is_narrow(self, product: int) -> bool:
        return False

    def _emit_matmul(self, out: int, product: int, accumulate: int) -> None:
        node = self.tape.nodes[product]
        attributes = dict(node.attributes)
        ta, tb = int(attributes["ta"]), int(attributes["tb"])
        a = self.tape.nodes[node.arguments[0]].shape
        reads = tuple(self._places[i] for i in node.arguments)
        sizes = (*node.shape, a[0] if ta else a[1], ta, tb, accumulate)
        self._emit("matmul", out, reads, sizes)

    def _emit_conv(self, out: int, product: int, accumulate: int) -> None:
        """Patches (P, Q) times a kernel (Q, F) give the pixels (P, F) of the result."""
        node = self.tape.nodes[product]
        kind, attributes = node.primitive.name, dict(node.attributes)
        images, outputs, kernel = self._conv_shapes(node)
        first, second = (self._places[i] for i in node.arguments)
        places, taps, features = prod(outputs[:3]), prod(kernel[:3]), kernel[3]
        where = attributes["stride"], *attributes["padding"]
        window = (*images, *outputs[1:3], *kernel[:2], *where)
        if kind == "conv_input":
            patches = self._new_buffer(places * taps)
            sizes = (places, taps, features, 0, 1, 0)
            self.instructions.append(
                Instruction("matmul", patches, (first, second), sizes)
            )
            self._emit("col2im", out, (patches,), (*window, accumulate))
            return
        patches = self._once("im2col", first, places * taps, window)
        if kind == "conv":
            sizes = (places, features, taps, 0, 0, accumulate)
        else:
            sizes = (taps, features, places, 1, 0, accumulate)
        self._emit("matmul", out, (patches, second), sizes)

    def _select_max_gather(self, index: int, node: Node, *, size: int) -> None:
        sizes = (*self.tape.nodes[node.arguments[1]].shape, size)
        reads = tuple(self._places[i] for i in node.arguments)
        self._emit(node.primitive.name, index, reads, sizes)

    _select_max_scatter = _select_max_gather

    def _emit(
        self, kernel: str, index: int, reads: tuple[Place, ...], sizes: Shape
    ) -> None:
        if kernel in ("sum", "mul_sum"):
            outer, middle, inner = sizes
            terms = divisor_of(middle)
            if terms < middle:
                groups = outer * middle // terms
                some = self._new_buffer(groups * inner)
                first = Instruction(kernel, some, reads, (groups, terms, inner))
                self.instructions.append(first)
                self._emit("sum", index, (some,), (outer, middle // terms, inner))
                return
        super()._emit(kernel, index, reads, sizes)


def divisor_of(terms: int) -> int:
    """The largest divisor up to LONG_SUM of a long sum; all of it if none helps.

    >>> divisor_of(50), divisor_of(980), divisor_of(2 * 509)
    (50, 49, 1018)
    """
    if terms <= LONG_SUM:
        return terms
    largest = max(d for d in range(1, LONG_SUM + 1) if terms % d == 0)
    return largest if largest >= 8 else terms


# --- chains ---------------------------------------------------------------------------


def chained(instructions: Sequence[Instruction]) -> list[Launch]:
    """Launches, in which neighbouring elementwise operations of one size are one."""
    launches: list[Launch] = []
    for call in instructions:
        if call.kernel not in ELEMENTWISE:
            launches.append(Launch(*call))
        elif launches and _joins(call, launches[-1]):
            last = launches[-1]
            reads = (*last.reads, last.out, *call.reads)
            launches[-1] = Launch(
                "elementwise", call.out, reads, last.sizes, (*last.links, call)
            )
        else:
            size = (prod(call.sizes),)
            launches.append(Launch("elementwise", call.out, call.reads, size, (call,)))
    return launches


def _joins(call: Instruction, chain: Launch) -> bool:
    """Whether a thread that makes element i of all operations before can go on.

    It can if, of what the others write, it reads element i alone, and if it writes
    nothing that another thread may still have to read.
    """
    n = prod(call.sizes)
    if not chain.links or chain.sizes != (n,):
        return False
    for link in chain.links:
        written = (link.out, n)
        meetings = [((call.out, n), written)]
        meetings += [(read, written) for read in extents_read(call)]
        meetings += [(read, (call.out, n)) for read in extents_read(link)]
        if any(_overlap(a, b) and a != b for a, b in meetings):
            return False
    return True


def extents_read(call: Instruction) -> list[tuple[Place, int]]:
    """Where an elementwise operation reads, and how many elements of each place."""
    n = prod(call.sizes)
    sizes = [n, n]
    if call.kernel == "scale":
        sizes = [n, 1]
    elif call.kernel == "broadcast":
        sizes = [call.sizes[0] * call.sizes[2]]
    elif len(call.sizes) == 3:
        sizes = [n, call.sizes[0] * call.sizes[2]]
    return list(zip(call.reads, sizes, strict=False))


def _overlap(one: tuple[Place, int], other: tuple[Place, int]) -> bool:
    (a, size_a), (b, size_b) = one, other
    apart = a.offset + size_a <= b.offset or b.offset + size_b <= a.offset
    return a.buffer == b.buffer and not apart
