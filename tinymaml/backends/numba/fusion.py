"""Decide which values of a tape are never stored, and which share another's memory.

This is the first of three steps of planning (`planner.py` tells all three). `fuse`
looks at the tape alone, at who reads which value, and answers with data:

- `inlined` values are never stored: the one call that reads them computes them.
- `deferred` products have no call of their own: they are added, in place, to the other
  term of a sum, by the call that computes the sum.
- `inside` tells which values are computed in the memory of another value: the parts of
  a `concat`, and the term to which a deferred product is added.

Each of them saves a pass through memory, and each is wrong where somebody else needs
the value. So the rules below have counter-examples beside them, which are recipes of
the tests (`tests/support/plan_recipes.py`) under the names in brackets.

Left out: fusion of elementwise operations in general. The GPU's plan does that
(`device_plan.py`).
"""

from collections.abc import Callable
from math import prod

from tinymaml.autodiff.tape import Node, Tape

PRODUCTS = ("mul", "matmul", "conv", "conv_input", "conv_weight")
# The same elements in the same memory.
RESHAPES = ("reshape", "rematerialise", "stop_gradient")
# No kernel writes these.
NOT_COMPUTED = ("input", "full", "constant_array", "slice", "concat", *RESHAPES)


class Fusion:
    """Which values of a tape have no call, or no memory, of their own.

    Values are named by the index of the node that makes them.
    """

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self.live = tape.live()  # the nodes that some output depends on, in order
        self.readers: dict[int, list[int]] = {i: [] for i in self.live}
        for reader in self.live:
            for i in tape.nodes[reader].arguments:  # x * x reads x twice
                self.readers[i].append(reader)
        self.outputs = {output.node for output in tape.outputs.values()}
        self.inlined = {i for i in self.live if self.can_be_inlined(i)}
        self.deferred: set[int] = set()
        # {value: {value computed inside its memory: first element}}
        self.inside: dict[int, dict[int, int]] = {}

    # --- questions about the tape -----------------------------------------------------

    def name(self, index: int) -> str:
        """The name of the primitive that makes a value."""
        return self.tape.nodes[index].primitive.name

    def only_reader(self, index: int) -> int | None:
        """The node that reads a value, if the value is read once and is no output."""
        readers = self.readers[index]
        return readers[0] if len(readers) == 1 and index not in self.outputs else None

    def memory_source(self, index: int) -> int:
        """The value whose memory a reshaped value shares; itself for other values."""
        while self.name(index) in RESHAPES:
            index = self.tape.nodes[index].arguments[0]
        return index

    def broadcast_operand(self, node: Node) -> int | None:
        """The argument that the kernel of a sum, difference or product broadcasts.

        None if it broadcasts none. A kernel can broadcast its second operand only, and
        so a sum or a product may swap its operands; a difference may not. Of two
        broadcasts one is left to the kernel, the other is computed before it.

        Counter-example (left_side_of_sub_is_stored): in `b - x` the broadcast is the
        first operand, so it must be stored.

        Counter-example (broadcast_on_both_sides_is_stored): in `wide * wide` the one
        broadcast is both operands, so the kernel would find no stored operand.
        """
        a, b = node.arguments
        if a == b:
            return None
        if self.name(b) == "broadcast":
            return b
        if self.name(a) == "broadcast" and node.primitive.name != "sub":
            return a
        return None

    def can_be_inlined(self, index: int) -> bool:
        """Whether the readers of a value can compute it as they go."""
        node = self.tape.nodes[index]
        # Kernels of sums, differences and products read a broadcast element by element,
        # straight from the small array. All readers must be such kernels.
        # Counter-example (broadcast_that_feeds_a_function_is_stored):
        # `tanh(wide) * wide` with wide = broadcast_to(b, (4, 3)): tanh has no such
        # kernel, and wide must be stored for it.
        if node.primitive.name == "broadcast":
            return index not in self.outputs and all(
                self.name(reader) in ("add", "sub", "mul")
                and self.broadcast_operand(self.tape.nodes[reader]) == index
                for reader in self.readers[index]
            )
        # The kernel `add_relu` adds a bias and applies relu in one pass.
        # Counter-example (sum_before_relu_that_is_read_again_is_stored):
        # `relu(total) * total` with total = x @ w + b reads the sum once more.
        if node.primitive.name == "add":
            bias = self.broadcast_operand(node)
            return bias is not None and self._only_computing_reader(index) == "relu"
        # The kernel `mul_sum` sums a product without storing it.
        # Counter-example (product_with_a_broadcast_is_stored_before_its_sum):
        # `(a * b).sum(1)` with b of shape (3,): the kernel does not broadcast.
        if node.primitive.name == "mul":
            broadcast = self.broadcast_operand(node)
            return broadcast is None and self._only_computing_reader(index) == "sum"
        return False

    def _only_computing_reader(self, index: int) -> str | None:
        """The primitive that alone reads a value, directly or through reshapes."""
        reader = self.only_reader(index)
        while reader is not None and self.name(reader) == "reshape":
            reader = self.only_reader(reader)
        return None if reader is None else self.name(reader)

    def is_computed(self, index: int) -> bool:
        """Whether a kernel writes the value, so that it can be told where to write."""
        return self.name(index) not in NOT_COMPUTED and index not in self.inlined


def fuse(tape: Tape, can_accumulate: Callable[[Node], bool]) -> Fusion:
    """Find the values that need no call, or no memory, of their own.

    can_accumulate: whether the kernel for a product can add it to what is in memory.
    """
    fusion = Fusion(tape)
    parts: set[int] = set()  # values that are computed inside another value's memory
    # Backwards, from readers to what they read: in a concat of sums, or a sum of sums,
    # the outer value's memory is known before the inner value is computed inside it.
    for index in reversed(fusion.live):
        node = tape.nodes[index]
        # The values that a concat joins are computed where they belong in it.
        # Counter-example (part_joined_twice_is_copied_once): a concat of tanh(a) and
        # tanh(a) needs it in two places. It is computed in the first and copied.
        # Counter-example (inputs_and_constants_are_copied_into_a_concat): no kernel
        # writes an input, so it cannot be written into the concat.
        if node.primitive.name == "concat":
            start = 0
            starts = fusion.inside[index] = {}
            for i in node.arguments:
                source = fusion.memory_source(i)
                if source not in parts and fusion.is_computed(source):
                    starts[source] = start
                    parts.add(source)
                start += prod(tape.nodes[i].shape)
        # In `x + a * b`, for a product of any kind, x is computed in the memory of the
        # sum and the product is then added to it. Nothing else may read either of them.
        # Counter-example (product_does_not_accumulate_into_an_input): `x + a @ b` with
        # an input x: the product would overwrite the input.
        # Counter-example (value_read_elsewhere_is_not_accumulated_into): beside
        # `exp(tanh(x))`, the sum `tanh(x) + a @ b` must leave tanh(x) as it is.
        elif node.primitive.name == "add":
            for term, product in (node.arguments, node.arguments[::-1]):
                if (
                    fusion.name(product) in PRODUCTS
                    and can_accumulate(tape.nodes[product])
                    and fusion.only_reader(term) == fusion.only_reader(product) == index
                    and fusion.is_computed(term)
                ):
                    fusion.inside[index] = {term: 0}
                    fusion.deferred.add(product)
                    break
    return fusion
