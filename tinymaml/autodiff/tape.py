"""The tape: a loss recorded once, as a flat list of primitive operations.

With this file one can record a Python function of symbolic values and print what it
will cost before anything runs::

    tape = Tape()
    theta = tape.input("theta", (3,))
    tape.output("loss", (theta * theta).sum())
    print(summary(tape))

A `Value` knows its shape and its place on the tape, nothing else: no numbers are
computed here. Each node makes one new value and never changes one (static single
assignment), so a tape may be read in any direction: `sweeps.py` walks it backwards for
the gradient and forwards for directional derivatives, and both append to the same tape.

Recording the same operation on the same values twice returns the first value. That is
what makes `hvp(loss, theta, v)` cost no second gradient: it records the gradient again
and gets back the nodes that are already there. `rematerialise` is the way to ask for a
recomputation on purpose.

Left out: control flow that depends on numbers. A tape is one straight line.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from tinymaml.autodiff import convolution, functions  # noqa: F401 (adds rows to the table)
from tinymaml.autodiff.primitives import PRIMITIVES, Primitive

Shape = tuple[int, ...]


class Node(NamedTuple):
    """One line of a tape: a primitive, the nodes it reads, and its result's shape."""

    primitive: type[Primitive]
    arguments: tuple[int, ...]
    attributes: tuple[tuple[str, Any], ...]
    shape: Shape


class Input(NamedTuple):
    """A named hole in a tape, filled by a backend when the tape is run."""

    node: int
    shape: Shape
    per_task: bool


class Output(NamedTuple):
    """A named result: one array per task ("each") or their sum over tasks ("sum")."""

    node: int
    shape: Shape
    reduction: str


class Tape:
    """A flat list of operations, recorded once and run by a backend.

    >>> tape = Tape()
    >>> theta = tape.input("theta", (3,))
    >>> loss = (theta * theta).sum()
    >>> [node.primitive.name for node in tape.nodes]
    ['input', 'mul', 'sum', 'reshape']
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.inputs: dict[str, Input] = {}
        self.outputs: dict[str, Output] = {}
        self._known: dict[tuple[Any, ...], int] = {}

    def input(self, name: str, shape: Sequence[int], per_task: bool = False) -> "Value":
        """A named input of the given shape, shared or with one array per task.

        Raises ValueError when the name is taken or the shape has an empty axis.
        """
        if name in self.inputs:
            raise ValueError(f"input {name!r}: the tape already has an input so named")
        if any(int(n) != n or n < 1 for n in shape):
            raise ValueError(f"input {name!r}: sizes must be at least 1, got {shape}")
        value = self.record("input", name=name, shape=tuple(int(n) for n in shape))
        self.inputs[name] = Input(value.index, value.shape, per_task)
        return value

    def constant(self, number: float, shape: Sequence[int] = ()) -> "Value":
        """An array of the given shape, filled with one number."""
        return self.record("full", shape=tuple(shape), number=float(number))

    def output(self, name: str, value: "Value", reduction: str = "each") -> None:
        """Name a result: one array per task ("each"), or summed over tasks ("sum")."""
        if reduction not in ("each", "sum"):
            raise ValueError(f"reduction: expected 'each' or 'sum', got {reduction!r}")
        if name in self.outputs:
            raise ValueError(
                f"output {name!r}: the tape already has an output so named"
            )
        self.outputs[name] = Output(self.check(value).index, value.shape, reduction)

    def record(self, name: str, /, *arguments: "Value", **attributes: Any) -> "Value":
        """Append one primitive and return its value; known operations are reused.

        What is recorded may be a cheaper way to the same value: `functions.simpler`.
        """
        primitive = PRIMITIVES[name]
        for argument in arguments:
            self.check(argument)
        shape = primitive.shape(*(a.shape for a in arguments), **attributes)
        cheaper = functions.simpler(name, arguments, attributes)
        if cheaper is not None:
            return cheaper
        node = Node(
            primitive,
            tuple(a.index for a in arguments),
            tuple(sorted(attributes.items())),
            shape,
        )
        index = self._known.setdefault(node, len(self.nodes))
        if index == len(self.nodes):
            self.nodes.append(node)
        return Value(self, index, shape)

    def value(self, index: int) -> "Value":
        """The value that node number `index` makes."""
        return Value(self, index, self.nodes[index].shape)

    def check(self, value: "Value") -> "Value":
        """The value itself, if it lives on this tape."""
        if not isinstance(value, Value):
            raise TypeError(f"expected a Value of a tape, got {type(value).__name__}")
        if value.tape is not self:
            raise ValueError("value: it was recorded on another tape")
        return value

    def live(self) -> list[int]:
        """The nodes some output depends on, in running order; the rest is dead."""
        needed = {output.node for output in self.outputs.values()}
        for index in range(len(self.nodes) - 1, -1, -1):
            if index in needed:
                needed.update(self.nodes[index].arguments)
        return sorted(needed)

    def flops(self) -> int:
        """Floating-point operations of the live nodes, for one task.

        A product or sum counts one, a matrix product 2 m n k, data movement nothing.
        """
        return sum(self.node_flops(index) for index in self.live())

    def node_flops(self, index: int) -> int:
        """Floating-point operations of one node, for one task."""
        node = self.nodes[index]
        shapes = [self.nodes[i].shape for i in node.arguments]
        return node.primitive.flops(node.shape, *shapes, **dict(node.attributes))


class Value:
    """A symbolic array on a tape: a shape, and the operations that arrays have.

    `+`, `-`, `*` and `/` broadcast as NumPy does; `@` is the matrix product; numbers
    mix with values. The functions behind the operators are in `functions.py`.
    """

    __slots__ = ("tape", "index", "shape")
    __array_priority__ = 1000  # a NumPy array on the left must not swallow a Value

    def __init__(self, tape: Tape, index: int, shape: Shape) -> None:
        self.tape = tape
        self.index = index
        self.shape = shape

    def __repr__(self) -> str:
        name = self.tape.nodes[self.index].primitive.name
        return f"Value({name}, shape={self.shape})"

    @property
    def size(self) -> int:
        """The number of elements."""
        size = 1
        for n in self.shape:
            size *= n
        return size

    def __add__(self, other: "Value | float") -> "Value":
        return functions.add(self, other)

    __radd__ = __add__

    def __sub__(self, other: "Value | float") -> "Value":
        return functions.subtract(self, other)

    def __rsub__(self, other: float) -> "Value":
        return functions.add(-self, other)

    def __mul__(self, other: "Value | float") -> "Value":
        return functions.multiply(self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: "Value | float") -> "Value":
        return functions.divide(self, other)

    def __rtruediv__(self, other: float) -> "Value":
        return functions.multiply(functions.reciprocal(self), other)

    def __neg__(self) -> "Value":
        return functions.scale(self, -1.0)

    def __matmul__(self, other: "Value") -> "Value":
        return functions.matmul(self, other)

    def __getitem__(self, piece: slice) -> "Value":
        return functions.take_slice(self, piece)

    def reshape(self, *shape: int) -> "Value":
        """The same elements in another shape."""
        return functions.reshape(self, shape)

    def sum(self, axis: int | Sequence[int] | None = None) -> "Value":
        """The sum over all axes or the given ones, which disappear."""
        return functions.sum(self, axis)

    def mean(self, axis: int | Sequence[int] | None = None) -> "Value":
        """The mean over all axes or the given ones, which disappear."""
        return functions.mean(self, axis)
