"""What is never stored, and what is made inside another value's memory.

The first of three steps of planning (`selection.py` and `planner.py` follow), decided
from the tape alone: reshapes and slices are other views of the same memory; a broadcast
that only feeds sums and products, a product that is only summed and a bias before a
relu are made by their reader as it goes; the pieces of a `concat` are computed where
they belong in it; a product that is added to something is added in place.

Memory is told as buffers, numbered as they are needed.
"""

from math import prod
from typing import NamedTuple

from tinymaml.autodiff.tape import Node, Tape

BROADCASTING = ("add", "sub", "mul")
PRODUCTS = ("mul", "matmul", "conv", "conv_input", "conv_weight")
NARROW = 4  # columns: fewer do not fill half a vector of float32


class Place(NamedTuple):
    """Where a value lives: a buffer, and an offset in it."""

    buffer: int
    offset: int


class Fusion:
    """Which values of a tape have no call, or no memory, of their own."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self._sizes: list[int] = []  # of buffers, in elements
        self._places: dict[int, Place] = {}  # of nodes
        self._live = tape.live()
        self._uses = self._count_uses()
        self._reader_lists: dict[int, list[int]] = {i: [] for i in self._live}
        for reader in self._live:
            for i in set(tape.nodes[reader].arguments):
                self._reader_lists[i].append(reader)
        self._deferred = self._claim()

    def _name(self, index: int) -> str:
        return self.tape.nodes[index].primitive.name

    def _count_uses(self) -> dict[int, int]:
        uses = dict.fromkeys(self._live, 0)
        for index in self._live:
            for i in self.tape.nodes[index].arguments:
                uses[i] += 1
        for output in self.tape.outputs.values():
            uses[output.node] += 2  # never overwritten, never fused away
        return uses

    def _claim(self) -> set[int]:
        """Decide, from the end, which values are computed inside another one's memory.

        Pieces go into their concat, and the first term of `x + a * b`, for any product,
        into the sum, to which the product (deferred until then) is added in place.
        Returns the deferred products; claimed places go to `_places`.
        """
        deferred: set[int] = set()
        for index in reversed(self._live):
            node = self.tape.nodes[index]
            name = node.primitive.name
            if name == "concat":
                place = self._claim_here(index, node)
                for i in node.arguments:
                    base = self._base(i)
                    if base not in self._places and self._computed(base):
                        self._places[base] = place
                    size = prod(self.tape.nodes[i].shape)
                    place = Place(place.buffer, place.offset + size)
            elif name == "add":
                for first, second in (node.arguments, node.arguments[::-1]):
                    if (
                        self._accumulates(second)
                        and self._uses[first] == self._uses[second] == 1
                        and self._computed(first)
                        and first not in self._places
                    ):
                        self._places[first] = self._claim_here(index, node)
                        deferred.add(second)
                        break
        return deferred

    def _claim_here(self, index: int, node: Node) -> Place:
        if index not in self._places:
            self._places[index] = self._new_buffer(prod(node.shape))
        return self._places[index]

    def _base(self, index: int) -> int:
        """The node whose memory a reshaped value shares."""
        while self._name(index) in ("reshape", "rematerialise"):
            index = self.tape.nodes[index].arguments[0]
        return index

    def _computed(self, index: int) -> bool:
        """Whether a kernel call makes the value, rather than a view or a hole."""
        views = ("input", "full", "reshape", "rematerialise", "slice", "concat")
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
        if name == "add":
            bias = self._broadcast_operand(index)
            return bias is not None and self._only_reader(index) == "relu"
        if name == "mul":
            bias = self._broadcast_operand(index)
            return bias is None and self._only_reader(index) == "sum"
        return False

    def _only_reader(self, index: int) -> str | None:
        """The operation that alone reads a value, reshaped perhaps, if there is one."""
        while self._uses[index] == 1:
            (index,) = self._reader_lists[index]
            if self._name(index) != "reshape":
                return self._name(index)
        return None

    def _readers(self, index: int) -> list[int]:
        if any(o.node == index for o in self.tape.outputs.values()):
            return []
        return self._reader_lists[index]

    def _broadcast_operand(self, index: int) -> int | None:
        """The argument of a sum or product that is read as a broadcast, if one is."""
        a, b = self.tape.nodes[index].arguments
        if a == b:
            return None  # it is read as the other operand too, so it must be stored
        if self._name(b) == "broadcast":
            return b
        if self._name(a) == "broadcast" and self._name(index) != "sub":
            return a
        return None

    def _fused(self, index: int) -> tuple[int, ...] | None:
        """What a value never stored is made of, or None if it is stored."""
        base = self._base(index)
        return self.tape.nodes[base].arguments if self._is_fused(base) else None

    def _accumulates(self, index: int) -> bool:
        """Whether a kernel can add the value to what is there."""
        name = self._name(index)
        return name in PRODUCTS and not (name == "matmul" and self._is_narrow(index))

    def _is_narrow(self, product: int) -> bool:
        """Whether a product is best made as its transpose, which cannot accumulate."""
        node = self.tape.nodes[product]
        attributes = dict(node.attributes)
        return attributes["ta"] and not attributes["tb"] and 1 < node.shape[1] < NARROW

    def _new_buffer(self, size: int) -> Place:
        self._sizes.append(size)
        return Place(len(self._sizes) - 1, 0)
