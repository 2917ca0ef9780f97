"""Which kernel calls run a tape: the second of three steps of planning.

Each live node becomes at most one call of a kernel; `fusion.py` has decided which
become none, because their values are never stored or made inside others. A broadcast
that only feeds sums and products is read where it is needed; a transposed copy is made
once and shared. Where the memory lies is not yet known: that is `planner.py`.
"""

from math import prod
from typing import Any, NamedTuple

from tinymaml.autodiff.convolution import pooled
from tinymaml.autodiff.tape import Node, Shape, Tape
from tinymaml.backends.numba.fusion import NARROW, Fusion, Place


class Instruction(NamedTuple):
    """One kernel call: it writes one place, reads others, and is told sizes."""

    kernel: str
    out: Place
    reads: tuple[Place, ...]
    sizes: tuple[int, ...]


class Selection(Fusion):
    """The kernel calls of a tape, in running order."""

    def __init__(self, tape: Tape) -> None:
        super().__init__(tape)
        self.instructions: list[Instruction] = []
        self.constants: dict[int, float] = {}  # buffer -> the number it is filled with
        self._known: dict[tuple[Any, ...], Place] = {}
        for index in self._live:
            self._select(index, tape.nodes[index])

    def _select(self, index: int, node: Node) -> None:
        """Emit the kernel call of one node, if it needs one."""
        if index in self._deferred or self._is_fused(index):
            return
        name = node.primitive.name
        attributes = dict(node.attributes)
        select = getattr(self, f"_select_{name}", None)
        if select is not None:
            select(index, node, **attributes)
        else:
            reads = tuple(self._places[i] for i in node.arguments)
            self._emit(name, index, reads, (prod(node.shape),))

    def _emit(
        self, kernel: str, index: int, reads: tuple[Place, ...], sizes: tuple[int, ...]
    ) -> None:
        out = self._claim_here(index, self.tape.nodes[index])
        self.instructions.append(Instruction(kernel, out, reads, sizes))

    def _constant(self, number: float, size: int) -> Place:
        key = ("constant", number, size)
        if key not in self._known:
            self._known[key] = self._new_buffer(size)
            self.constants[self._known[key].buffer] = number
        return self._known[key]

    def _select_input(self, index: int, node: Node, **_: Any) -> None:
        self._places[index] = self._new_buffer(prod(node.shape))

    def _select_full(self, index: int, node: Node, *, number: float, **_: Any) -> None:
        self._places[index] = self._constant(number, prod(node.shape))

    def _select_reshape(self, index: int, node: Node, **_: Any) -> None:
        if self._fused(index) is None:
            self._places[index] = self._places[node.arguments[0]]

    def _select_rematerialise(self, index: int, node: Node, **_: Any) -> None:
        # A new start: what was found out before it is not kept alive for it.
        self._known = {k: v for k, v in self._known.items() if k[0] == "constant"}
        self._select_reshape(index, node)

    def _select_slice(self, index: int, node: Node, *, start: int, stop: int) -> None:
        place = self._places[node.arguments[0]]
        self._places[index] = Place(place.buffer, place.offset + start)

    def _select_concat(self, index: int, node: Node) -> None:
        place = self._claim_here(index, node)
        for i in node.arguments:
            size = prod(self.tape.nodes[i].shape)
            if self._places[i] != place:  # not computed here: copy it
                call = Instruction("copy", place, (self._places[i],), (size,))
                self.instructions.append(call)
            place = Place(place.buffer, place.offset + size)

    def _select_pad(self, index: int, node: Node, *, start: int, size: int) -> None:
        read = self._places[node.arguments[0]]
        length = prod(self.tape.nodes[node.arguments[0]].shape)
        self._emit("pad", index, (read,), (start, length, size))

    def _select_scale(self, index: int, node: Node, *, number: float) -> None:
        reads = (self._places[node.arguments[0]], self._constant(number, 1))
        self._emit("scale", index, reads, (prod(node.shape),))

    def _select_sum(self, index: int, node: Node, *, start: int, stop: int) -> None:
        (summed,) = node.arguments
        shape = self.tape.nodes[summed].shape
        sizes = prod(shape[:start]), prod(shape[start:stop]), prod(shape[stop:])
        factors = self._fused(summed)
        if factors is None:
            self._emit("sum", index, (self._places[summed],), sizes)
        else:
            reads = tuple(self._places[i] for i in factors)
            self._emit("mul_sum", index, reads, sizes)

    def _select_broadcast(self, index: int, node: Node, **_: Any) -> None:
        read = self._places[node.arguments[0]]
        self._emit("broadcast", index, (read,), self._broadcast_sizes(index))

    def _broadcast_sizes(self, index: int) -> tuple[int, int, int]:
        node = self.tape.nodes[index]
        attributes = dict(node.attributes)
        start = attributes["start"]
        stop = start + len(attributes["sizes"])
        return (
            prod(node.shape[:start]),
            prod(attributes["sizes"]),
            prod(node.shape[stop:]),
        )

    def _select_binary(self, index: int, node: Node) -> None:
        self._emit_binary(node.primitive.name, index, index)

    def _emit_binary(self, kernel: str, out: int, index: int) -> None:
        """Entry `index`, written to the place of `out`; a broadcast is not stored."""
        a, b = self.tape.nodes[index].arguments
        spread = self._broadcast_operand(index)
        if spread is None:
            sizes = (1, 1, prod(self.tape.nodes[index].shape))
            self._emit(kernel, out, (self._places[a], self._places[b]), sizes)
        else:
            source = self.tape.nodes[spread].arguments[0]
            reads = (self._places[a if spread == b else b], self._places[source])
            self._emit(kernel, out, reads, self._broadcast_sizes(spread))

    _select_sub = _select_mul = _select_binary

    def _select_add(self, index: int, node: Node) -> None:
        products = [i for i in node.arguments if i in self._deferred]
        if not products:
            self._select_binary(index, node)
        elif self._name(products[0]) == "mul":
            self._emit_binary("mul_add", index, products[0])
        elif self._name(products[0]) == "matmul":
            self._emit_matmul(index, products[0], accumulate=1)
        else:
            self._emit_conv(index, products[0], accumulate=1)

    def _select_relu(self, index: int, node: Node) -> None:
        (a,) = node.arguments
        if self._fused(a) is not None:
            self._emit_binary("add_relu", index, self._base(a))
        else:
            self._emit("relu", index, (self._places[a],), (prod(node.shape),))

    def _select_logsumexp(self, index: int, node: Node) -> None:
        shape = self.tape.nodes[node.arguments[0]].shape
        sizes = prod(shape[:-1]), shape[-1]
        kernel = node.primitive.name
        self._emit(kernel, index, (self._places[node.arguments[0]],), sizes)

    _select_softmax = _select_logsumexp

    def _select_matmul(self, index: int, node: Node, **_: Any) -> None:
        self._emit_matmul(index, index, accumulate=0)

    def _emit_matmul(self, out: int, product: int, accumulate: int) -> None:
        """The product in one of the forms that kernels have.

        Rows of a times rows of b: a transposed right-hand side is copied once and the
        copy shared by all products that want it. A narrow result would leave vectors
        empty: it is made of dot products, or as its transpose.
        """
        node = self.tape.nodes[product]
        attributes = dict(node.attributes)
        (m, n), (a, b) = node.shape, (self._places[i] for i in node.arguments)
        ta, tb = attributes["ta"], attributes["tb"]
        shape = self.tape.nodes[node.arguments[0]].shape
        k = shape[0] if ta else shape[1]
        if n < NARROW and not ta and k > 1:
            if n > 1 and not tb:
                b = self._transposed(b, k, n)
            self._emit("dots", out, (a, b), (m, n, k, accumulate))
            return
        if m == 1 and tb and k > 1:
            self._emit("dots", out, (b, a), (n, 1, k, accumulate))
            return
        if n == 1:  # the transpose: a row of m
            sizes = (1, m, k, k, 1, accumulate)
            self._emit("matmul", out, (b, a), sizes)
            return
        if self._is_narrow(product) and not tb:
            turned = self._new_buffer(m * n)
            sizes = (n, m, k, 1, n, 0)
            self.instructions.append(Instruction("matmul", turned, (b, a), sizes))
            self._emit("transpose", out, (turned,), (n, m))
            return
        if tb and k > 1:
            b = self._transposed(b, n, k)
        strides = (1, m) if ta else (k, 1)
        self._emit("matmul", out, (a, b), (m, n, k, *strides, accumulate))

    def _transposed(self, place: Place, rows: int, columns: int) -> Place:
        return self._once("transpose", place, rows * columns, (rows, columns))

    def _once(self, kernel: str, read: Place, size: int, sizes: Shape) -> Place:
        """What a kernel makes of a place, made once for all that ask for it."""
        key = (kernel, read, *sizes)
        if key not in self._known:
            self._known[key] = self._new_buffer(size)
            call = Instruction(kernel, self._known[key], (read,), sizes)
            self.instructions.append(call)
        return self._known[key]

    def _select_conv(self, index: int, node: Node, **_: Any) -> None:
        self._emit_conv(index, index, accumulate=0)

    _select_conv_input = _select_conv_weight = _select_conv

    def _emit_conv(self, out: int, product: int, accumulate: int) -> None:
        """The sizes of all three rows: images, outputs, kernel, stride, padding."""
        node = self.tape.nodes[product]
        kind, attributes = node.primitive.name, dict(node.attributes)
        images, outputs, kernel = self._conv_shapes(node)
        reads = [self._places[i] for i in node.arguments]
        if kind == "conv_input":
            reads[1] = self._transposed(reads[1], prod(kernel[:3]), kernel[3])
        where = (attributes["stride"], *attributes["padding"])
        sizes = (*images, *outputs[1:], *kernel[:2], *where, accumulate)
        self._emit(kind, out, tuple(reads), sizes)

    def _conv_shapes(self, node: Node) -> tuple[Shape, Shape, Shape]:
        """The shapes of images, outputs and kernel, of any of the three rows."""
        a, b = (self.tape.nodes[i].shape for i in node.arguments)
        return {
            "conv": (a, node.shape, b),
            "conv_input": (node.shape, a, b),
            "conv_weight": (a, b, node.shape),
        }[node.primitive.name]

    def _select_max_gather(self, index: int, node: Node, *, size: int) -> None:
        """Which elements of a value are largest is found once, for all that ask."""
        z, x = node.arguments
        sizes = (*self.tape.nodes[x].shape, size)
        windows = prod(pooled(self.tape.nodes[x].shape, size))
        chosen = self._once("largest", self._places[x], 2 * windows, sizes)
        self._emit(node.primitive.name, index, (self._places[z], chosen), sizes)

    _select_max_scatter = _select_max_gather
