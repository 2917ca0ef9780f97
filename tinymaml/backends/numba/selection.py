"""Choose the kernel calls that run a tape: the second of three steps of planning.

`select(fuse(tape, ...), rules)` goes through the live nodes once. For each of them it
applies the rule of its primitive, which chooses a kernel. A rule is a function

    rule(s, index, node, **attributes of the node)

which emits, into the `Selection` s, the calls that write the value of `node` into the
memory of value `index`. The two differ for a product that is added in place: `node` is
then the product and `index` the sum. `CPU_RULES` is the table for the kernels of this
folder; the GPU's table (`device_plan.py`) replaces the rules for sums, products,
convolutions and pooling.

Memory is numbered buffers here. Where they lie is decided later, in `planner.py`.
"""

from collections.abc import Callable, Mapping
from math import prod
from typing import Any, NamedTuple

from tinymaml.autodiff.convolution import pooled
from tinymaml.autodiff.tape import Node, Shape
from tinymaml.backends.numba.fusion import Fusion
from tinymaml.checks import check_that

LONG_SUM = 64  # a sum of more terms than this takes several passes
NARROW = 4  # a result with fewer columns does not fill half a vector of float32
Rule = Callable[..., None]
Views = tuple["View", ...]


class View(NamedTuple):
    """Memory that a value is read from or written to: an offset in a buffer."""

    buffer: int
    offset: int

    def shifted(self, elements: int) -> "View":
        """The view that starts so many elements further on."""
        return View(self.buffer, self.offset + elements)


class Instruction(NamedTuple):
    """One kernel call: it writes one view, reads others, and is given some integers."""

    kernel: str
    out: View
    reads: Views
    sizes: Shape
    operations: tuple["Instruction", ...] = ()  # of a fused group on a GPU


class Selection:
    """The kernel calls of a tape, in running order, and the buffers that they use."""

    def __init__(self, fusion: Fusion, rules: Mapping[str, Rule]) -> None:
        self.fusion, self.tape, self.rules = fusion, fusion.tape, rules
        self.instructions: list[Instruction] = []
        self.buffer_sizes: list[int] = []  # in elements
        self.views: dict[int, View] = {}  # of values, by their node
        # of (number or numbers, how they are written, size): 0.0 == -0.0, and yet they
        # are different numbers
        self.constants: dict[tuple[float | tuple[float, ...], str, int], View] = {}
        # {(kernel, the view it reads, sizes): its result, for all that need it}
        self.shared_results: dict[tuple[str, View, Shape], View] = {}

    def new_buffer(self, size: int) -> View:
        """A view of memory that nothing else uses yet."""
        self.buffer_sizes.append(size)
        return View(len(self.buffer_sizes) - 1, 0)

    def memory_of(self, index: int) -> View:
        """Where a value is written: where it was decided before, or a new buffer."""
        if index not in self.views:
            self.views[index] = self.new_buffer(prod(self.tape.nodes[index].shape))
        return self.views[index]

    def constant(self, number: float | tuple[float, ...], size: int) -> View:
        """Memory filled with one number, or with the numbers of an array."""
        key = number, repr(number), size
        if key not in self.constants:
            self.constants[key] = self.new_buffer(size)
        return self.constants[key]

    def reads(self, node: Node) -> Views:
        """Where the arguments of a node are."""
        return tuple(self.views[i] for i in node.arguments)

    def apply_rule(self, index: int, node: Node, **options: Any) -> None:
        """Emit the calls that write the value of `node` into the memory of `index`."""
        name = node.primitive.name
        check_that(name in self.rules, "primitive", "one with a kernel", repr(name))
        self.rules[name](self, index, node, **dict(node.attributes), **options)

    def emit(self, kernel: str, index: int, reads: Views, sizes: Shape) -> None:
        """Append the call that writes value `index`."""
        out = self.memory_of(index)
        self.instructions.append(Instruction(kernel, out, reads, sizes))

    def emit_scratch(self, kernel: str, size: int, reads: Views, sizes: Shape) -> View:
        """Append a call that writes to a new buffer, and return the buffer."""
        out = self.new_buffer(size)
        self.instructions.append(Instruction(kernel, out, reads, sizes))
        return out

    def emit_once(self, kernel: str, size: int, read: View, sizes: Shape) -> View:
        """As `emit_scratch`, but a call that was emitted before is used again."""
        key = kernel, read, sizes
        if key not in self.shared_results:
            self.shared_results[key] = self.emit_scratch(kernel, size, (read,), sizes)
        return self.shared_results[key]


def select(fusion: Fusion, rules: Mapping[str, Rule]) -> Selection:
    """The kernel calls for a tape, chosen by one rule for each primitive."""
    selection = Selection(fusion, rules)
    # Values computed inside others get their views first, outer ones before inner ones.
    for outer, parts in fusion.inside.items():
        for index, start in [(outer, 0), *parts.items()]:
            selection.views[index] = selection.memory_of(outer).shifted(start)
    for index in fusion.live:
        if index not in fusion.inlined and index not in fusion.deferred:
            selection.apply_rule(index, fusion.tape.nodes[index])
    return selection


# --- values that no kernel makes ------------------------------------------------------


def select_input(s: Selection, index: int, node: Node, **_: Any) -> None:
    """A backend writes an input into memory of its own."""
    s.memory_of(index)


def select_constant(s: Selection, index: int, node: Node, **attributes: Any) -> None:
    """Constants of the same numbers share their memory, which is written once."""
    numbers = attributes["numbers" if "numbers" in attributes else "number"]
    s.views[index] = s.constant(numbers, prod(node.shape))


def select_reshape(s: Selection, index: int, node: Node, **_: Any) -> None:
    """Another shape of the same memory; an inlined value has none."""
    if s.fusion.memory_source(index) not in s.fusion.inlined:
        (s.views[index],) = s.reads(node)


def select_rematerialise(s: Selection, index: int, node: Node, **_: Any) -> None:
    """The same memory, and a new start for shared results.

    A transposed copy from before, say, is not read after a rematerialisation: it would
    have to stay in memory until then, and to save that memory is what it is for.
    """
    s.shared_results.clear()
    select_reshape(s, index, node)


def select_slice(
    s: Selection, index: int, node: Node, *, start: int, stop: int
) -> None:
    """A part of the same memory."""
    (view,) = s.reads(node)
    s.views[index] = view.shifted(start)


def select_concat(s: Selection, index: int, node: Node) -> None:
    """Copies of those arguments that could not be computed inside the result."""
    out = s.memory_of(index)
    for i in node.arguments:
        size = prod(s.tape.nodes[i].shape)
        if s.views[i] != out:
            s.instructions.append(Instruction("copy", out, (s.views[i],), (size,)))
        out = out.shifted(size)


# --- elementwise operations, sums and broadcasts --------------------------------------


def select_elementwise(s: Selection, index: int, node: Node) -> None:
    """A kernel that is named as the primitive; its one size is that of the result."""
    s.emit(node.primitive.name, index, s.reads(node), (prod(node.shape),))


def select_scale(s: Selection, index: int, node: Node, *, number: float) -> None:
    """The factor is read from memory, so that the code of a program is integers."""
    s.emit("scale", index, (*s.reads(node), s.constant(number, 1)), (prod(node.shape),))


def select_pad(s: Selection, index: int, node: Node, *, start: int, size: int) -> None:
    """Zeros around a vector."""
    length = prod(s.tape.nodes[node.arguments[0]].shape)
    s.emit("pad", index, s.reads(node), (start, length, size))


def select_swap(
    s: Selection, index: int, node: Node, *, start: int, middle: int, stop: int
) -> None:
    """(outer, m, n, inner) -> (outer, n, m, inner)."""
    shape = s.tape.nodes[node.arguments[0]].shape
    ends = (0, start), (start, middle), (middle, stop), (stop, len(shape))
    s.emit("swap", index, s.reads(node), tuple(prod(shape[i:j]) for i, j in ends))


def select_broadcast(s: Selection, index: int, node: Node, **_: Any) -> None:
    """A broadcast that some reader needs in memory."""
    s.emit("broadcast", index, s.reads(node), broadcast_sizes(node))


def broadcast_sizes(node: Node) -> tuple[int, int, int]:
    """(outer, middle, inner): outer * inner numbers, each of them `middle` times."""
    attributes = dict(node.attributes)
    start, sizes = attributes["start"], attributes["sizes"]
    return prod(node.shape[:start]), prod(sizes), prod(node.shape[start + len(sizes) :])


def select_pair(s: Selection, index: int, node: Node, *, accumulate: int = 0) -> None:
    """A sum, difference or product of two arrays; only a product may accumulate."""
    emit_pair(s, index, node, "mul_add" if accumulate else node.primitive.name)


def emit_pair(s: Selection, index: int, node: Node, kernel: str) -> None:
    """A kernel that broadcasts its second operand: (outer, middle, inner) of it."""
    a, b = node.arguments
    broadcast = s.fusion.broadcast_operand(node)
    if broadcast is None:
        s.emit(kernel, index, s.reads(node), (1, 1, prod(node.shape)))
    else:
        source = s.tape.nodes[broadcast]
        reads = (s.views[a if broadcast == b else b], *s.reads(source))
        s.emit(kernel, index, reads, broadcast_sizes(source))


def select_add(s: Selection, index: int, node: Node) -> None:
    """A sum, or the deferred product that is added to the sum's other term in place."""
    for i in node.arguments:
        if i in s.fusion.deferred:
            s.apply_rule(index, s.tape.nodes[i], accumulate=1)
            return
    select_pair(s, index, node)


def select_relu(s: Selection, index: int, node: Node) -> None:
    """A relu, together with the sum before it if the sum is inlined."""
    source = s.fusion.memory_source(node.arguments[0])
    if source in s.fusion.inlined:
        emit_pair(s, index, s.tape.nodes[source], "add_relu")
    else:
        select_elementwise(s, index, node)


def select_sum(s: Selection, index: int, node: Node, *, start: int, stop: int) -> None:
    """A sum over axes start to stop; a long one is a sum of the sums of blocks.

    Added one after the other, many numbers of float32 lose digits: the total outgrows
    what is added to it. Here no sum of a pass has more than LONG_SUM terms.
    """
    kernel, reads, (outer, middle, inner) = sum_call(s, node, start, stop)
    while middle > LONG_SUM:
        blocks = -(-middle // LONG_SUM)
        sizes = outer, middle, inner, blocks
        reads = (s.emit_scratch(kernel, outer * blocks * inner, reads, sizes),)
        kernel, middle = "sum", blocks  # the first pass alone multiplies
    s.emit(kernel, index, reads, (outer, middle, inner, 1))


def sum_call(
    s: Selection, node: Node, start: int, stop: int
) -> tuple[str, Views, Shape]:
    """(kernel, reads, sizes): the terms may be products of two arrays, not stored."""
    shape = s.tape.nodes[node.arguments[0]].shape
    sizes = prod(shape[:start]), prod(shape[start:stop]), prod(shape[stop:])
    source = s.fusion.memory_source(node.arguments[0])
    if source in s.fusion.inlined:
        return "mul_sum", s.reads(s.tape.nodes[source]), sizes
    return "sum", s.reads(node), sizes


def select_softmax(s: Selection, index: int, node: Node) -> None:
    """A function of the rows of an array, which are its last axis."""
    shape = s.tape.nodes[node.arguments[0]].shape
    s.emit(node.primitive.name, index, s.reads(node), (prod(shape[:-1]), shape[-1]))


# --- matrix products ------------------------------------------------------------------


def can_accumulate(product: Node) -> bool:
    """Whether the kernel for a product can add it to what is in memory."""
    return product.primitive.name != "matmul" or not is_computed_transposed(product)


def is_computed_transposed(product: Node) -> bool:
    """Whether a narrow matrix product is computed as its transpose, then transposed."""
    attributes = dict(product.attributes)
    return attributes["ta"] and not attributes["tb"] and 1 < product.shape[1] < NARROW


def select_matmul(
    s: Selection, index: int, node: Node, *, ta: bool, tb: bool, accumulate: int = 0
) -> None:
    """A matrix product, by the kernel and in the orientation that fill vectors best.

    The kernel `matmul` fills vectors with columns of the result and wants the rows of
    the right-hand matrix: a transposed one is copied once, for all products that read
    it. The kernel `dots` sums along rows of both matrices, for a result too narrow to
    fill a vector.
    """
    (m, n), (a, b) = node.shape, s.reads(node)
    shape = s.tape.nodes[node.arguments[0]].shape
    k = shape[0] if ta else shape[1]
    if n < NARROW and not ta and k > 1:
        if n > 1 and not tb:
            b = copy_transposed(s, b, k, n)
        s.emit("dots", index, (a, b), (m, n, k, accumulate))
    elif m == 1 and tb and k > 1:
        s.emit("dots", index, (b, a), (n, 1, k, accumulate))
    elif n == 1:  # A column lies in memory like a row: compute it as the row b' a'.
        s.emit("matmul", index, (b, a), (1, m, k, k, 1, accumulate))
    elif is_computed_transposed(node):
        transpose = s.emit_scratch("matmul", m * n, (b, a), (n, m, k, 1, n, 0))
        s.emit("transpose", index, (transpose,), (n, m))
    else:
        if tb and k > 1:
            b = copy_transposed(s, b, n, k)
        strides = (1, m) if ta else (k, 1)
        s.emit("matmul", index, (a, b), (m, n, k, *strides, accumulate))


def copy_transposed(s: Selection, view: View, rows: int, columns: int) -> View:
    """The transpose of a matrix, copied once for all products that read it."""
    return s.emit_once("transpose", rows * columns, view, (rows, columns))


# --- convolutions and max-pooling -----------------------------------------------------


def select_convolution(
    s: Selection, index: int, node: Node, *, accumulate: int = 0, **_: Any
) -> None:
    """A convolution, or its transpose in the images or in the kernel.

    All three take the same numbers: images, outputs, kernel, stride, padding.
    """
    images, outputs, kernel, steps = convolution_sizes(s, node)
    first, second = s.reads(node)
    if node.primitive.name == "conv_input":
        second = copy_transposed(s, second, prod(kernel[:3]), kernel[3])
    sizes = (*images, *outputs[1:], *kernel[:2], *steps, accumulate)
    s.emit(node.primitive.name, index, (first, second), sizes)


def convolution_sizes(s: Selection, node: Node) -> tuple[Shape, Shape, Shape, Shape]:
    """The shapes of images, outputs and kernel, whichever of them the node computes.

    The last tuple is the stride and the padding above and left of the images.
    """
    a, b = (s.tape.nodes[i].shape for i in node.arguments)
    attributes = dict(node.attributes)
    images, outputs, kernel = {
        "conv": (a, node.shape, b),
        "conv_input": (node.shape, a, b),
        "conv_weight": (a, b, node.shape),
    }[node.primitive.name]
    return images, outputs, kernel, (attributes["stride"], *attributes["padding"])


def select_pooling(s: Selection, index: int, node: Node, *, size: int) -> None:
    """Where x is largest is found once, for all values that are gathered there."""
    (z, x), shape = s.reads(node), s.tape.nodes[node.arguments[1]].shape
    sizes = (*shape, size)
    largest = s.emit_once("largest", 2 * prod(pooled(shape, size)), x, sizes)
    s.emit(node.primitive.name, index, (z, largest), sizes)


CPU_RULES: dict[str, Rule] = {
    "input": select_input,
    **dict.fromkeys(("full", "constant_array"), select_constant),
    **dict.fromkeys(("reshape", "stop_gradient"), select_reshape),
    "rematerialise": select_rematerialise,
    "slice": select_slice,
    "concat": select_concat,
    **dict.fromkeys(("gate", "exp", "log", "tanh"), select_elementwise),
    **dict.fromkeys(("reciprocal", "rsqrt", "sin", "cos"), select_elementwise),
    "scale": select_scale,
    "pad": select_pad,
    "swap": select_swap,
    "broadcast": select_broadcast,
    "add": select_add,
    "sub": select_pair,
    "mul": select_pair,
    "relu": select_relu,
    "sum": select_sum,
    **dict.fromkeys(("softmax", "logsumexp"), select_softmax),
    "matmul": select_matmul,
    **dict.fromkeys(("conv", "conv_input", "conv_weight"), select_convolution),
    **dict.fromkeys(("max_gather", "max_scatter"), select_pooling),
}
