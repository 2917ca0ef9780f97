"""Which kernel calls play a tape, and what memory each of them reads and writes.

The first half of planning (`planner.py` is the second). Each live entry becomes at most
one call of a kernel. Reshapes and slices become none: they are other views of the same
memory. A broadcast that only feeds sums and products is read where it is needed; a sum
of matrix products accumulates in place; the pieces of a `concat` are computed where
they belong in it; a transposed copy is made once and shared.

Memory is told as buffers, numbered as they are needed; where they lie is not yet known.
"""

from math import prod
from typing import Any, NamedTuple

from tinymaml.tape import Entry, Shape, Tape

BROADCASTING = ("add", "sub", "mul")
NARROW = 4  # columns: fewer do not fill half a vector of float32


class Place(NamedTuple):
    """Where a value lives: a buffer, and an offset in it."""

    buffer: int
    offset: int


class Instruction(NamedTuple):
    """One kernel call: it writes one place, reads others, and is told sizes."""

    kernel: str
    out: Place
    reads: tuple[Place, ...]
    sizes: tuple[int, ...]


class Selection:
    """The kernel calls of a tape, in playing order."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self.instructions: list[Instruction] = []
        self.constants: dict[int, float] = {}  # buffer -> the number it is filled with
        self._sizes: list[int] = []
        self._places: dict[int, Place] = {}
        self._known: dict[tuple[Any, ...], Place] = {}
        self._live = tape.live()
        self._uses = self._count_uses()
        self._reader_lists: dict[int, list[int]] = {i: [] for i in self._live}
        for reader in self._live:
            for i in set(tape.entries[reader].arguments):
                self._reader_lists[i].append(reader)
        self._deferred = self._claim()
        for index in self._live:
            self._select(index, tape.entries[index])

    def _name(self, index: int) -> str:
        return self.tape.entries[index].primitive.name

    def _count_uses(self) -> dict[int, int]:
        uses = dict.fromkeys(self._live, 0)
        for index in self._live:
            for i in self.tape.entries[index].arguments:
                uses[i] += 1
        for output in self.tape.outputs.values():
            uses[output.entry] += 2  # never overwritten, never fused away
        return uses

    def _claim(self) -> set[int]:
        """Decide, from the end, which values are computed inside another one's memory.

        Pieces go into their concat, and the first term of `x + a @ b` into the sum, to
        which the product (deferred until then) is added in place. Returns the deferred
        products; claimed places go to `_places`.
        """
        deferred: set[int] = set()
        for index in reversed(self._live):
            entry = self.tape.entries[index]
            name = entry.primitive.name
            if name == "concat":
                place = self._claim_here(index, entry)
                for i in entry.arguments:
                    base = self._base(i)
                    if base not in self._places and self._computed(base):
                        self._places[base] = place
                    size = prod(self.tape.entries[i].shape)
                    place = Place(place.buffer, place.offset + size)
            elif name == "add":
                for first, second in (entry.arguments, entry.arguments[::-1]):
                    if (
                        self._name(second) == "matmul"
                        and not self._is_narrow(second)
                        and self._uses[first] == self._uses[second] == 1
                        and self._computed(first)
                        and first not in self._places
                    ):
                        self._places[first] = self._claim_here(index, entry)
                        deferred.add(second)
                        break
        return deferred

    def _claim_here(self, index: int, entry: Entry) -> Place:
        if index not in self._places:
            self._places[index] = self._new_buffer(prod(entry.shape))
        return self._places[index]

    def _base(self, index: int) -> int:
        """The entry whose memory a reshaped value shares."""
        while self._name(index) in ("reshape", "again"):
            index = self.tape.entries[index].arguments[0]
        return index

    def _computed(self, index: int) -> bool:
        """Whether a kernel call makes the value, rather than a view or a hole."""
        views = ("input", "full", "reshape", "again", "slice", "concat")
        return self._name(index) not in views and not self._is_fused(index)

    def _is_fused(self, index: int) -> bool:
        """Whether a value is never stored: its only readers make it as they go."""
        name = self._name(index)
        if name == "broadcast":
            readers = self._readers(index)
            return bool(readers) and all(
                self._name(r) in BROADCASTING and self._broadcast_operand(r) == index
                for r in readers
            )
        if name == "add" and self._uses[index] == 1:
            (reader,) = self._readers(index)
            bias = self._broadcast_operand(index)
            return self._name(reader) == "relu" and bias is not None
        return False

    def _readers(self, index: int) -> list[int]:
        if any(o.entry == index for o in self.tape.outputs.values()):
            return []
        return self._reader_lists[index]

    def _broadcast_operand(self, index: int) -> int | None:
        """The argument of a sum or product that is read as a broadcast, if one is."""
        a, b = self.tape.entries[index].arguments
        if a == b:
            return None  # it is read as the other operand too, so it must be stored
        if self._name(b) == "broadcast":
            return b
        if self._name(a) == "broadcast" and self._name(index) != "sub":
            return a
        return None

    def _select(self, index: int, entry: Entry) -> None:
        """Emit the kernel call of one entry, if it needs one."""
        if index in self._deferred or self._is_fused(index):
            return
        name = entry.primitive.name
        attributes = dict(entry.attributes)
        select = getattr(self, f"_select_{name}", None)
        if select is not None:
            select(index, entry, **attributes)
        else:
            reads = tuple(self._places[i] for i in entry.arguments)
            self._emit(name, index, reads, (prod(entry.shape),))

    def _emit(
        self, kernel: str, index: int, reads: tuple[Place, ...], sizes: tuple[int, ...]
    ) -> None:
        out = self._claim_here(index, self.tape.entries[index])
        self.instructions.append(Instruction(kernel, out, reads, sizes))

    def _new_buffer(self, size: int) -> Place:
        self._sizes.append(size)
        return Place(len(self._sizes) - 1, 0)

    def _constant(self, number: float, size: int) -> Place:
        key = ("constant", number, size)
        if key not in self._known:
            self._known[key] = self._new_buffer(size)
            self.constants[self._known[key].buffer] = number
        return self._known[key]

    def _select_input(self, index: int, entry: Entry, **_: Any) -> None:
        self._places[index] = self._new_buffer(prod(entry.shape))

    def _select_full(
        self, index: int, entry: Entry, *, number: float, **_: Any
    ) -> None:
        self._places[index] = self._constant(number, prod(entry.shape))

    def _select_reshape(self, index: int, entry: Entry, **_: Any) -> None:
        self._places[index] = self._places[entry.arguments[0]]

    def _select_again(self, index: int, entry: Entry, **_: Any) -> None:
        # A new start: transposed copies made before it are not kept alive for it.
        self._known = {k: v for k, v in self._known.items() if k[0] != "transposed"}
        self._select_reshape(index, entry)

    def _select_slice(self, index: int, entry: Entry, *, start: int, stop: int) -> None:
        place = self._places[entry.arguments[0]]
        self._places[index] = Place(place.buffer, place.offset + start)

    def _select_concat(self, index: int, entry: Entry) -> None:
        place = self._claim_here(index, entry)
        for i in entry.arguments:
            size = prod(self.tape.entries[i].shape)
            if self._places[i] != place:  # not computed here: copy it
                call = Instruction("copy", place, (self._places[i],), (size,))
                self.instructions.append(call)
            place = Place(place.buffer, place.offset + size)

    def _select_pad(self, index: int, entry: Entry, *, start: int, size: int) -> None:
        read = self._places[entry.arguments[0]]
        length = prod(self.tape.entries[entry.arguments[0]].shape)
        self._emit("pad", index, (read,), (start, length, size))

    def _select_scale(self, index: int, entry: Entry, *, number: float) -> None:
        reads = (self._places[entry.arguments[0]], self._constant(number, 1))
        self._emit("scale", index, reads, (prod(entry.shape),))

    def _select_sum(self, index: int, entry: Entry, *, start: int, stop: int) -> None:
        shape = self.tape.entries[entry.arguments[0]].shape
        sizes = prod(shape[:start]), prod(shape[start:stop]), prod(shape[stop:])
        self._emit("sum", index, (self._places[entry.arguments[0]],), sizes)

    def _select_broadcast(self, index: int, entry: Entry, **_: Any) -> None:
        read = self._places[entry.arguments[0]]
        self._emit("broadcast", index, (read,), self._broadcast_sizes(index))

    def _broadcast_sizes(self, index: int) -> tuple[int, int, int]:
        entry = self.tape.entries[index]
        attributes = dict(entry.attributes)
        start = attributes["start"]
        stop = start + len(attributes["sizes"])
        return (
            prod(entry.shape[:start]),
            prod(attributes["sizes"]),
            prod(entry.shape[stop:]),
        )

    def _select_binary(self, index: int, entry: Entry) -> None:
        name = entry.primitive.name
        spread = self._broadcast_operand(index)
        if spread is not None:
            self._emit_spread(name, index, index, spread)
        else:
            reads = tuple(self._places[i] for i in entry.arguments)
            self._emit(name, index, reads, (1, 1, prod(entry.shape)))

    def _emit_spread(self, kernel: str, out: int, index: int, spread: int) -> None:
        """Entry `index`, its argument `spread` read as what was broadcast."""
        a, b = self.tape.entries[index].arguments
        source = self.tape.entries[spread].arguments[0]
        reads = (self._places[a if spread == b else b], self._places[source])
        self._emit(kernel, out, reads, self._broadcast_sizes(spread))

    _select_sub = _select_mul = _select_binary

    def _select_add(self, index: int, entry: Entry) -> None:
        products = [i for i in entry.arguments if i in self._deferred]
        if products:
            self._emit_matmul(index, products[0], accumulate=1)
        else:
            self._select_binary(index, entry)

    def _select_relu(self, index: int, entry: Entry) -> None:
        (a,) = entry.arguments
        spread = self._broadcast_operand(a) if self._is_fused(a) else None
        if spread is not None:
            self._emit_spread("add_relu", index, a, spread)
        else:
            self._emit("relu", index, (self._places[a],), (prod(entry.shape),))

    def _select_logsumexp(self, index: int, entry: Entry) -> None:
        shape = self.tape.entries[entry.arguments[0]].shape
        sizes = prod(shape[:-1]), shape[-1]
        kernel = entry.primitive.name
        self._emit(kernel, index, (self._places[entry.arguments[0]],), sizes)

    _select_softmax = _select_logsumexp

    def _is_narrow(self, product: int) -> bool:
        """Whether a product is best made as its transpose, which cannot accumulate."""
        entry = self.tape.entries[product]
        attributes = dict(entry.attributes)
        return attributes["ta"] and not attributes["tb"] and 1 < entry.shape[1] < NARROW

    def _select_matmul(self, index: int, entry: Entry, **_: Any) -> None:
        self._emit_matmul(index, index, accumulate=0)

    def _emit_matmul(self, out: int, product: int, accumulate: int) -> None:
        """The product in one of the forms that kernels have.

        Rows of a times rows of b: a transposed right-hand side is copied once and the
        copy shared by all products that want it. A narrow result would leave vectors
        empty: it is made of dot products, or as its transpose.
        """
        entry = self.tape.entries[product]
        attributes = dict(entry.attributes)
        (m, n), (a, b) = entry.shape, (self._places[i] for i in entry.arguments)
        ta, tb = attributes["ta"], attributes["tb"]
        shape = self.tape.entries[entry.arguments[0]].shape
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
        key = ("transposed", place, rows, columns)
        if key not in self._known:
            self._known[key] = self._new_buffer(rows * columns)
            call = Instruction("transpose", self._known[key], (place,), (rows, columns))
            self.instructions.append(call)
        return self._known[key]

    def _select_conv(
        self, index: int, entry: Entry, *, stride: int, padding: Shape, size: Shape
    ) -> None:
        """The sizes of all three rows: images, outputs, kernel, stride, padding."""
        a, b = (self.tape.entries[i].shape for i in entry.arguments)
        reads = [self._places[i] for i in entry.arguments]
        kind = entry.primitive.name
        images, outputs, kernel = {
            "conv": (a, entry.shape, b),
            "conv_input": (entry.shape, a, b),
            "conv_weight": (a, b, entry.shape),
        }[kind]
        if kind == "conv_input":
            reads[1] = self._transposed(reads[1], prod(kernel[:3]), kernel[3])
        sizes = (*images, *outputs[1:], *kernel[:2], stride, *padding)
        self._emit(kind, index, tuple(reads), sizes)

    _select_conv_input = _select_conv_weight = _select_conv

    def _select_max_gather(self, index: int, entry: Entry, *, size: int) -> None:
        a, x = entry.arguments
        reads = (self._places[a], self._places[x])
        sizes = (*self.tape.entries[x].shape, size)
        self._emit(entry.primitive.name, index, reads, sizes)

    _select_max_scatter = _select_max_gather
