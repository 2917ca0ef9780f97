"""The tape: a loss recorded once, as a flat list of operations on arrays.

With this file one can record a Python function of symbolic values, and see what it will
cost before anything is computed::

    tape = Tape()
    theta = tape.input("theta", (3,))
    tape.output("loss", (theta * theta).sum())
    print(tape)          # Tape of 4 nodes: theta (3,) -> loss ()
    print(tape.flops())  # 6: three products and a sum of three terms

A tape is a computation graph, written down as a list. Each node says which primitive
operation it is and which earlier nodes it reads, so the list is in an order in which
it can be computed. No operation changes an array that exists already (static single
assignment), so a tape may be walked in either direction. `derivatives.py` walks it
backwards for gradients and forwards for directional derivatives; both append the
operations of the derivative to the same tape, where they can be derived again.

Recording the same operation on the same values twice returns the first value. This is
why `hvp(loss, theta, v)` costs no second gradient: it records the gradient again, and
finds all of its nodes on the tape. `functions.rematerialise` is the way to have a value
recomputed on purpose.

Three things are in this file: `Primitive` says what an operation must be able to do
(`primitives.py` and `convolution.py` hold the table of them), `Tape` is the list, and
`Value` is a symbolic array with the arithmetic of NumPy.

Left out: control flow that depends on numbers. A tape is one straight line. Where a
choice is made element by element, `functions.where` computes both sides and takes from
each what is wanted. Also left out are indices that are arrays: a product with a matrix
of zeros and ones, which comes with the data, chooses rows.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from copy import copy
from math import log, prod
from typing import Any, ClassVar, NamedTuple, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinymaml.checks import (
    check_choice,
    check_end,
    check_that,
    plain,
    real_number,
    shown,
    whole_numbers,
)

Shape = tuple[int, ...]
Array = NDArray[Any]
Axes = int | Sequence[int] | None
NUMBERS = (int, float, np.integer, np.floating)
PRIMITIVES: dict[str, type["Primitive"]] = {}


class Primitive:
    """An operation on arrays: what it computes, and how derivatives pass through it.

    A subclass is never instantiated. It enters the table `PRIMITIVES` under its `name`,
    and its functions become static methods:

    - `shape(*shapes, **attributes)` checks the arguments and gives the result's shape.
    - `evaluate(*arrays, **attributes)` computes the result in NumPy. Every array has
      one more leading axis, the task axis; its length is 1 where all tasks share the
      array.
    - `vjp(i, g, out, *arguments, **attributes)` is the step of reverse mode. The loss
      has the derivative g with respect to the result `out`; the vjp records how much of
      it goes back to argument i (the vector-Jacobian product).
    - `jvp(i, t, out, *arguments, **attributes)` is the step of forward mode. Argument i
      moves with velocity t; the jvp records the velocity of the result (the
      Jacobian-vector product).
    - `simplify(*arguments, **attributes)` may record something cheaper that has the
      same value.
    - `flops(out, *shapes, **attributes)` counts floating-point operations for one task.

    `vjp`, `jvp` and `simplify` take and return `Value`s. They return None where the
    derivative is zero or counts as zero, or where nothing is cheaper.

    For example, the square of an array, with derivative 2 a:

        class Square(Primitive):
            name = "square"

            def shape(a):
                return a

            def evaluate(a):
                return a * a

            def vjp(i, g, out, a):
                return g * a * 2.0

            def jvp(i, t, out, a):
                return t * a * 2.0

    The Jacobian of an elementwise function is diagonal, so vjp and jvp are the same.
    That of a sum is not: its jvp sums the tangents, and its vjp gives the cotangent of
    the sum to every term.

    The NumPy backend runs a new primitive at once; the others need a kernel for it.
    """

    name: ClassVar[str]
    shape: ClassVar[Callable[..., Shape]]
    evaluate: ClassVar[Callable[..., Array]]
    vjp: ClassVar[Callable[..., "Value | None"]]
    jvp: ClassVar[Callable[..., "Value | None"]]

    def __init_subclass__(cls) -> None:
        for method in ("shape", "evaluate", "vjp", "jvp", "simplify", "flops"):
            if method in cls.__dict__:
                setattr(cls, method, staticmethod(cls.__dict__[method]))
        if "name" in cls.__dict__:
            PRIMITIVES[cls.name] = cls

    @staticmethod
    def simplify(*arguments: "Value", **attributes: Any) -> "Value | None":
        """By default there is nothing cheaper."""
        return None

    @staticmethod
    def flops(out: Shape, *shapes: Shape, **attributes: Any) -> int:
        """By default an operation only moves data, which counts nothing."""
        return 0


class Node(NamedTuple):
    """One operation on a tape: a primitive, the nodes it reads, its result's shape.

    `arguments` are indices of earlier nodes. `attributes` are what else the primitive
    must know, for instance the axes of a sum, as sorted pairs (name, value): so equal
    operations are equal nodes, and a dictionary can find them.
    """

    primitive: type[Primitive]
    arguments: tuple[int, ...]
    attributes: tuple[tuple[str, Any], ...]
    shape: Shape


class Input(NamedTuple):
    """A named placeholder; whoever runs the tape gives it an array."""

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

    A tape is written for one task; a backend runs it for all tasks of a batch, and
    Python is not involved any more while it runs.

    >>> tape = Tape()
    >>> theta = tape.input("theta", (3,))
    >>> tape.output("loss", (theta * theta).sum())
    >>> [node.primitive.name for node in tape.nodes]
    ['input', 'mul', 'sum', 'reshape']
    >>> tape
    Tape of 4 nodes: theta (3,) -> loss ()
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.inputs: dict[str, Input] = {}
        self.outputs: dict[str, Output] = {}
        self._index_of: dict[str, int] = {}
        # For a node that was recorded in place of another: the nodes that the other one
        # would depend on. See `_replace`.
        self.stands_for: dict[int, set[int]] = {}

    def __repr__(self) -> str:
        inputs = ", ".join(f"{name} {i.shape}" for name, i in self.inputs.items())
        outputs = ", ".join(f"{name} {o.shape}" for name, o in self.outputs.items())
        return f"Tape of {len(self.nodes)} nodes: {inputs} -> {outputs}"

    def input(self, name: str, shape: Sequence[int], per_task: bool = False) -> "Value":
        """A named input of the given shape, which is that for one task.

        A shared input, such as the initial theta of MAML, is one array (*shape). One
        that is `per_task`, such as the examples, comes as an array (T, *shape). Raises
        ValueError when the name is taken or the shape has an empty axis.
        """
        check_end("input", name, self.inputs, per_task)
        shape = whole_numbers(f"shape of input {name!r}", shape)
        attributes = ("name", name), ("shape", shape)
        value = self._append(Node(PRIMITIVES["input"], (), attributes, shape))
        self.inputs[name] = Input(value.index, value.shape, bool(per_task))
        return value

    def constant(self, number: float, shape: Sequence[int] = ()) -> "Value":
        """An array of the given shape, filled with one number."""
        number = real_number("number", number)
        return self.record("full", shape=whole_numbers("shape", shape), number=number)

    def constant_array(self, numbers: ArrayLike) -> "Value":
        """An array of fixed numbers, as they are now: changing it later has no effect.

        What differs from task to task or from call to call is an input instead. Raises
        ValueError where there are no real numbers.

        >>> Tape().constant_array([[0.5, 1.0], [2.0, 4.0]])
        Value(constant_array, shape=(2, 2))
        """
        array = np.asarray(None if np.ma.isMaskedArray(numbers) else numbers)
        fits = array.dtype.kind in "biuf" and array.size > 0
        check_that(fits, "numbers", "an array of real numbers", shown(numbers))
        flat = tuple(map(float, array.ravel()))
        return self.record("constant_array", shape=array.shape, numbers=flat)

    def output(self, name: str, value: "Value", reduction: str = "each") -> None:
        """Name a value as a result of the tape.

        With T tasks and a value of the given shape, the reduction "each" returns an
        array (T, *shape), and "sum" returns the sum over tasks (*shape), such as the
        meta-gradient of a batch. Raises ValueError when the name is taken or the
        reduction is another word.
        """
        check_choice("reduction", reduction, ("each", "sum"))
        check_end("output", name, self.outputs)
        self.outputs[name] = Output(self.check(value).index, value.shape, reduction)

    def record(self, name: str, /, *arguments: "Value", **attributes: Any) -> "Value":
        """The value of a primitive, appended to the tape unless it is there already.

        The primitive may offer something cheaper with the same value, up to rounding;
        then this is recorded instead. Raises TypeError or ValueError for shapes and
        attributes that do not fit: nothing is recorded that a kernel could not do.

        >>> x = Tape().input("x", (3,))
        >>> x.tape.record("tanh", x).index, x.tape.record("tanh", x).index
        (1, 1)
        """
        if type(name) is not str or name not in PRIMITIVES:
            check_choice("primitive", name, PRIMITIVES)
        if name == "input":
            raise ValueError("primitive: an input is recorded by `tape.input`")
        primitive = PRIMITIVES[name]
        for argument in arguments:
            if type(argument) is not Value or argument.tape is not self:
                self.check(argument)
        # Attributes are Python's own numbers, so that equal ones are written alike.
        attributes = {key: plain(value) for key, value in attributes.items()}
        # The kernels of a backend check nothing: they go where sizes and attributes
        # send them. What they could not do is refused here, and by the shape rule.
        sizes = primitive.shape(*(a.shape for a in arguments), **attributes)
        shape = whole_numbers(name, sizes)
        if prod(shape) > 2**40:  # Sizes and offsets of memory are far from overflow.
            raise ValueError(f"{name}: expected at most 2**40 elements, got {shape}")
        cheaper = primitive.simplify(*arguments, **attributes)
        if cheaper is not None:
            return self._replace(arguments, cheaper)
        indices = tuple(a.index for a in arguments)
        node = Node(primitive, indices, tuple(sorted(attributes.items())), shape)
        return self._append(node)

    def _replace(self, given: Iterable["Value"], cheaper: "Value") -> "Value":
        """The cheaper value, noted as one that stands for what would read the given.

        Two factors become one, so that the second product reads a, and b not at all.
        Its derivative along b is 3 all the same. `grad` looks into `lost_by`, and
        refuses to take a derivative along b rather than to find 0:

        >>> tape = Tape()
        >>> a = tape.input("a", ())
        >>> b = a * 2.0
        >>> (b * 3.0).attributes, tape.lost_by(2)
        ({'number': 6.0}, {1})
        """
        lost = {i for v in given for i in (v.index, *self.lost_by(v.index))}
        self.stands_for[cheaper.index] = (
            self.stands_for.get(cheaper.index, set()) | lost
        )
        return cheaper

    def lost_by(self, index: int) -> set[int]:
        """The nodes that a node should depend on, and depends on no more.

        It was recorded in place of another one that reads them.
        """
        read = {index, *self.nodes[index].arguments}
        return self.stands_for.get(index, set()) - read

    def _append(self, node: Node) -> "Value":
        """The value of a node, which is appended unless it is on the tape already.

        Inputs come here directly, and everything else through `record`.
        """
        # A node equal to an earlier one has the same value: the earlier one is used.
        # Nodes are compared as text. As numbers, 0.0 and -0.0 would be equal, and yet
        # 1 / (x * 0.0) and 1 / (x * -0.0) are infinities of different signs; and a NaN
        # would not equal itself, so that every product with it would be a new node.
        key = repr((node.primitive.name, node.arguments, node.attributes))
        index = self._index_of.setdefault(key, len(self.nodes))
        if index == len(self.nodes):
            self.nodes.append(node)
        return Value(self, index, node.shape)

    def snapshot(self) -> "Tape":
        """A copy that stays as it is, whatever is recorded on this tape later.

        A backend compiles a snapshot. An output that is named later is therefore not an
        output of the program. If it were, it would be read from memory in which the
        program may have stored another value since.

        >>> tape = Tape()
        >>> x = tape.input("x", (3,))
        >>> tape.output("y", x + x)
        >>> snapshot = tape.snapshot()
        >>> tape.output("z", x * x)
        >>> snapshot
        Tape of 2 nodes: x (3,) -> y (3,)
        """
        tape = Tape()
        vars(tape).update({name: copy(part) for name, part in vars(self).items()})
        return tape

    def value(self, index: int) -> "Value":
        """The value that node number `index` computes."""
        return Value(self, index, self.nodes[index].shape)

    def check(self, value: "Value") -> "Value":
        """The value itself, if it lives on this tape; else TypeError or ValueError."""
        check_values(value=value)
        if value.tape is not self:
            raise ValueError("value: it was recorded on another tape")
        return value

    def live(self) -> list[int]:
        """The indices of the nodes that some output depends on, in running order.

        All other nodes are dead, and no backend runs them. Recording leaves dead nodes
        behind: the gradient of a mean needs the slope of the mean, not its value.

        >>> tape = Tape()
        >>> x, y = tape.input("x", ()), tape.input("y", ())
        >>> difference, total = x - y, x + y
        >>> tape.output("total", total)
        >>> len(tape.nodes), tape.live()
        (4, [0, 1, 3])
        """
        return sorted(self.ancestors(output.node for output in self.outputs.values()))

    def ancestors(self, ends: Iterable[int], start: int = -1) -> set[int]:
        """The nodes that these depend on, and these; not those behind node `start`."""
        needed = set(ends)
        # From the end: whether a node is needed is known before its arguments' turn.
        for index in range(max(needed, default=-1), -1, -1):
            if index in needed and index != start:
                needed.update(self.nodes[index].arguments)
        return needed

    def flops(self) -> int:
        """Floating-point operations of the live nodes, for one task.

        An elementwise operation counts one for each element, a matrix product of (m, k)
        and (k, n) counts 2 m k n, and data movement counts nothing.

        >>> tape = Tape()
        >>> x, weight = tape.input("x", (10, 40)), tape.input("weight", (40, 5))
        >>> tape.output("product", x @ weight)
        >>> tape.flops()
        4000
        """
        return sum(self.node_flops(index) for index in self.live())

    def node_flops(self, index: int) -> int:
        """Floating-point operations of one node, for one task."""
        node = self.nodes[index]
        shapes = [self.nodes[i].shape for i in node.arguments]
        return node.primitive.flops(node.shape, *shapes, **dict(node.attributes))


def check_values(**values: Any) -> None:
    """Check that every argument is a Value, and that all are of one tape.

    The functions that a loss is written with call this first, so that an error names
    their argument and not something inside.

    >>> check_values(x=3)
    Traceback (most recent call last):
    TypeError: x: expected a Value of a tape, got int
    """
    first, *_ = values.values()
    for name, value in values.items():
        if not isinstance(value, Value):
            came = "an array" if isinstance(value, np.ndarray) else type(value).__name__
            raise TypeError(f"{name}: expected a Value of a tape, got {came}")
        if value.tape is not first.tape:
            raise ValueError(f"{name}: it was recorded on another tape than the rest")


class Value:
    """A symbolic array on a tape: a shape, and the index of the node that computes it.

    `+`, `-`, `*`, `/`, `**`, `@`, `abs`, indices and slices work as in NumPy, between
    values or with numbers. What has no operator is in `functions.py`. Nothing is
    computed, so a value has no numbers: only a backend that runs the tape finds them.

    There are few primitives, so an operator may record several of them, which derive
    and run like anything else:

    - `x**3` records products, and `x**0.3` is exp(0.3 log(x)).
    - `x[1:3]` along the first axis is a `slice` of contiguous elements. Any other
      axis first comes to the front by a `swap` of axes, and goes back afterwards.
    - `x.T` records swaps, and a product `x.T @ y` none: it reads x as it lies.
    - `x @ y` of stacks of matrices is one product for each pair, joined by `concat`.

    A part costs nothing where its elements are contiguous; a swap copies the array.

    Broadcasting is written out: `matrix + vector` records a reshape and a `broadcast`
    before the `add`. So the derivative of `add` need not know about it: the transpose
    of a broadcast is a sum, and that is what `grad` records where it meets one.

    A value cannot be compared or tested, since it has no numbers while a loss is
    recorded: `if y == 0:` would take one branch for good, whatever the data. Multiply
    by a mask of zeros and ones that comes with the data instead.

    >>> tape = Tape()
    >>> x, bias = tape.input("x", (5, 3)), tape.input("bias", (3,))
    >>> x + bias
    Value(add, shape=(5, 3))
    >>> [node.primitive.name for node in tape.nodes]
    ['input', 'input', 'reshape', 'broadcast', 'add']

    The elements of a column are not contiguous in memory. It is the first row of the
    transpose, and this is what is recorded:

    >>> x[:, 0]
    Value(slice, shape=(5,))
    >>> [node.primitive.name for node in tape.nodes[5:8]]
    ['swap', 'reshape', 'slice']
    """

    __slots__ = ("tape", "index", "shape")
    __array_priority__ = 1000  # A NumPy array on the left must not swallow a Value.

    def __init__(self, tape: Tape, index: int, shape: Shape) -> None:
        self.tape = tape
        self.index = index
        self.shape = shape

    def __repr__(self) -> str:
        return f"Value({self.primitive.name}, shape={self.shape})"

    # Python gives every object a truth, comparisons and, if it has `__getitem__`, an
    # iteration. Here each of them would look right and be wrong: `y == 0` would be
    # False for every y, since an object equals only itself, and `if y` would hold for
    # every y. With __eq__ the hash must be named as well; it stays that of the object,
    # so that values can be the keys of a dictionary.
    def _refuse(self, *_: Any) -> NoReturn:
        raise TypeError(
            f"{self!r}: a Value has no numbers while a tape is recorded, so it cannot "
            "be compared, tested, counted, iterated or converted. Write `a is b` for "
            "the same value, `x.shape[0]` for len(x), tinymaml's functions for NumPy's,"
            " and multiply by a mask of 0 and 1, given with the data, for a condition"
        )

    __hash__ = object.__hash__
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = _refuse
    __len__ = __iter__ = __contains__ = _refuse
    __float__ = __int__ = __complex__ = __index__ = __array__ = _refuse

    # --- what the tape knows of a value -----------------------------------------------

    @property
    def size(self) -> int:
        """The number of elements."""
        return prod(self.shape)

    @property
    def primitive(self) -> type[Primitive]:
        """The operation that computes this value."""
        return self.tape.nodes[self.index].primitive

    @property
    def arguments(self) -> list["Value"]:
        """The values that the operation reads."""
        return [self.tape.value(i) for i in self.tape.nodes[self.index].arguments]

    @property
    def attributes(self) -> dict[str, Any]:
        """What else fixes the operation, for instance the axes of a sum."""
        return dict(self.tape.nodes[self.index].attributes)

    @property
    def constant(self) -> float | None:
        """The number that fills the array, or None if it was not recorded as constant.

        Derivatives begin with arrays of ones and have zeros where nothing depends on
        theta, so many operations can be left out by looking at this number.
        """
        return self.attributes["number"] if self.primitive.name == "full" else None

    # --- arithmetic -------------------------------------------------------------------

    def __add__(self, other: "Value | float") -> "Value":
        """Sum, element by element; a + a is recorded as 2 a."""
        a, b = self._broadcast_with(other)
        if a.tape is b.tape and a.index == b.index:
            return a * 2.0
        return self.tape.record("add", a, b)

    __radd__ = __add__

    def __sub__(self, other: "Value | float") -> "Value":
        return self.tape.record("sub", *self._broadcast_with(other))

    def __rsub__(self, other: float) -> "Value":
        return -self + other

    def __mul__(self, other: "Value | float") -> "Value":
        """Product, element by element; with a number it is recorded as `scale`."""
        if isinstance(other, NUMBERS):
            number = real_number("factor", +other)  # True counts as 1.
            if number == 1:
                return self
            return self.tape.record("scale", self, number=number)
        a, b = self._broadcast_with(other)
        # A product with a constant array is a product with its number, which reads one
        # array instead of two, and none if the number is 1.
        for constant, factor in ((a, b), (b, a)):
            if constant.constant is not None:
                return factor * constant.constant
        return self.tape.record("mul", a, b)

    __rmul__ = __mul__

    def __truediv__(self, other: "Value | float") -> "Value":
        if not isinstance(other, NUMBERS):
            check_values(value=self, operand=other)
            return self * (1.0 / other)
        # The number is inverted in float64, whatever its own precision is.
        divisor = real_number("divisor", +other)
        if divisor == 0:
            raise ValueError("divisor: expected another number than 0")
        return self * (1.0 / divisor)

    def __rtruediv__(self, other: float) -> "Value":
        return self.tape.record("reciprocal", self) * other

    def __neg__(self) -> "Value":
        return self * -1.0

    def __pow__(self, exponent: "float | Value") -> "Value":
        """self^exponent; a whole exponent is a product, any other wants self > 0.

        A product is right for negative numbers as well, and so are its derivatives.
        For other exponents the derivative of x^p passes through log(x), which has none
        at 0: there it is not a number, also where p is above 1.

        >>> Tape().input("x", (3,)) ** -2
        Value(reciprocal, shape=(3,))
        """
        if isinstance(exponent, NUMBERS):
            power = real_number("exponent", +exponent)
            if power < 0:
                return 1 / self**-power
            if power.is_integer():
                # self^13 is self^8 self^4 self^1, because 13 is 1101 in binary: the
                # squares of squares self, self^2, self^4, ... are multiplied where the
                # exponent has the digit 1. So 13 takes five products and not twelve.
                result, square = self.tape.constant(1.0, self.shape), self
                for digit in reversed(f"{int(power):b}"):
                    result = result * square if digit == "1" else result
                    square = square * square
                return result
            exponent = self.tape.constant(power)
        return self.tape.record("exp", self.tape.record("log", self) * exponent)

    def __rpow__(self, base: float) -> "Value":
        """base^self for a base above 0."""
        # base^x is exp(x log(base)), and the logarithm is taken while recording.
        check_that(real_number("base", base) > 0, "base", "more than 0", base)
        return self.tape.record("exp", self * log(base))

    def __abs__(self) -> "Value":
        """|self|, with slope 0 at 0."""
        # One of the two terms is 0. At 0 both are, and both slopes of relu are 0 there.
        return self.tape.record("relu", self) + self.tape.record("relu", -self)

    def __matmul__(self, other: "Value") -> "Value":
        """The product of matrices, or of stacks (..., m, k) and (..., k, n) of them.

        A vector is a row on the left and a column on the right, as in NumPy. A stack
        times one matrix is one product; two stacks are one product for each pair.
        """
        check_values(value=self, operand=other)
        a, b = self.shape, other.shape
        check_that(a and b, "matmul", "matrices or vectors", f"{a} and {b}")
        # A vector becomes a matrix, and the axis that this has added is dropped again.
        if len(a) == 1:
            row = self.reshape(1, -1) @ other
            return row[0] if len(b) == 1 else row[..., 0, :]
        if len(b) == 1:
            return (self @ other.reshape(-1, 1))[..., 0]
        if len(a) == len(b) == 2:
            return self.tape.record("matmul", self, other, ta=False, tb=False)
        # All rows of a stack are rows of one tall matrix, which is multiplied at once.
        if len(b) == 2:
            return (self.reshape(-1, a[-1]) @ other).reshape(*a[:-1], b[-1])
        # Two stacks are broadcast to one shape, as far as they need. Then the matrices
        # of each are counted from 0: left[i] is one of them, contiguous in memory.
        stack = common_shape(a[:-2], b[:-2])
        left = self.broadcast_to((*stack, *a[-2:])).reshape(-1, *a[-2:])
        right = other.broadcast_to((*stack, *b[-2:])).reshape(-1, *b[-2:])
        pairs = [(left[i] @ right[i]).reshape(-1) for i in range(prod(stack))]
        return self.tape.record("concat", *pairs).reshape(*stack, a[-2], b[-1])

    __rmatmul__ = __matmul__  # An array on the left is refused like one on the right.

    # --- shapes -----------------------------------------------------------------------

    def __getitem__(self, index: Any) -> "Value":
        """The part that whole numbers and slices choose, as in NumPy.

        A number drops its axis, and a slice keeps it. `...` stands for all axes that
        are not named, by default at the end, and None for a new axis of length 1.
        Raises TypeError for anything else, such as a mask or an array of indices, and
        for a slice with a negative step, ValueError where nothing would be left.

        >>> x = Tape().input("x", (4, 3, 5))
        >>> x[1:3, ..., -1].shape, x[::2].shape, x[0, None].shape
        ((2, 3), (2, 3, 5), (1, 3, 5))
        """
        # First the `...`, written or not, is replaced by a full slice for each axis
        # that is not named. It is found by `is`: `==` would ask a Value for its truth.
        entries = [*index] if type(index) is tuple else [index]
        dots = [i for i, entry in enumerate(entries) if entry is ...]
        axes = len(entries) - len(dots) - sum(entry is None for entry in entries)
        fits = len(dots) <= 1 and axes <= len(self.shape)
        check_that(fits, "index", f"at most {len(self.shape)} axes", shown(index))
        place = dots[0] if dots else len(entries)
        rest = [slice(None)] * (len(self.shape) - axes)
        # Then the axes are cut one after the other. `shape` is what is left of them at
        # the end: all axes are still there until the last reshape, also those dropped.
        value, axis, shape = self, 0, list[int]()
        for entry in [*entries[:place], *rest, *entries[place + len(dots) :]]:
            if entry is None:
                shape.append(1)
                continue
            start, stop, step = _window(entry, self.shape[axis])
            value = value._part(axis, start, stop, step)
            if isinstance(entry, slice):
                shape.append(value.shape[axis])
            axis += 1
        return value.reshape(*shape)

    def _part(self, axis: int, start: int, stop: int, step: int) -> "Value":
        """The elements start:stop:step along one axis, which stays."""
        length, others = self.shape[axis], self.shape[1:]
        if (start, stop, step) == (0, length, 1):
            return self
        if axis > 0:  # The axis goes to the front, where a part is contiguous.
            front = self.tape.record("swap", self, start=0, middle=axis, stop=axis + 1)
            part = front._part(0, start, stop, step)
            return part.tape.record("swap", part, start=0, middle=1, stop=axis + 1)
        # Along the first axis an element is `row` contiguous numbers, and start:stop
        # is a slice of the whole, seen as a vector.
        row, count = self.size // length, -(-(stop - start) // step)
        ends = {"start": start * row, "stop": stop * row}
        part = self.tape.record("slice", self.reshape(-1), **ends)
        # x[::3] takes the first of every three elements: a new axis counts within the
        # threes, and of this axis the part 0:1 is taken. The last group may lack some
        # elements, and is filled up with zeros, which nothing reads.
        if step > 1:
            if missing := count * step * row - part.size:
                zeros = self.tape.constant(0.0, (missing,))
                part = self.tape.record("concat", part, zeros)
            part = part.reshape(count, step, *others)._part(1, 0, 1, 1)
        return part.reshape(count, *others)

    def transpose(self, *axes: int | Sequence[int]) -> "Value":
        """The axes in another order, by default reversed.

        Raises ValueError unless every axis is named once.

        >>> Tape().input("x", (2, 3, 4)).transpose(1, 0, 2).shape
        (3, 2, 4)
        """
        rank = len(self.shape)
        one = len(axes) == 1 and not isinstance(axes[0], int | np.integer)
        named = whole_numbers("axes", axes[0] if one else axes, least=-rank)
        order = [i + rank if i < 0 else i for i in named] or [*reversed(range(rank))]
        fits = sorted(order) == [*range(rank)]
        check_that(fits, "axes", f"every axis of shape {self.shape} once", named)
        # The places are filled from the first to the last. Where the axis that belongs
        # to a place stands further behind, a swap puts it in front of all that stand
        # between; `now` tells which axis stands where after the swaps so far.
        value, now = self, [*range(rank)]
        for place, axis in enumerate(order):
            start = now.index(axis)
            stop = start + 1
            # Axes that follow each other now and in the new order move together, in one
            # swap: that of a stack (T, N, H, W) -> (H, W, T, N) is one and not two.
            while stop < rank and now[stop] == order[place + stop - start]:
                stop += 1
            if start > place:
                ends = {"start": place, "middle": start, "stop": stop}
                value = self.tape.record("swap", value, **ends)
                now[place:stop] = now[start:stop] + now[place:start]
        return value

    @property
    def T(self) -> "Value":
        """The axes in reversed order; of a matrix this is the transpose."""
        return self.transpose()

    def reshape(self, *shape: int | Sequence[int]) -> "Value":
        """The same elements in the same order; one size may be -1, to be inferred.

        The sizes come one by one or as one tuple.

        >>> Tape().input("x", (2, 6)).reshape(3, -1)
        Value(reshape, shape=(3, 4))
        """
        one = len(shape) == 1 and not isinstance(shape[0], int | np.integer)
        sizes = whole_numbers("shape", shape[0] if one else shape, least=-1)
        inferred = self.size // max(-prod(sizes), 1)
        sizes = tuple(inferred if n == -1 else n for n in sizes)
        if self.shape == sizes:
            return self
        if self.primitive.name == "reshape":  # This one reads what that one reads.
            return self.tape._replace([self], self.arguments[0].reshape(*sizes))
        return self.tape.record("reshape", self, shape=sizes)

    def broadcast_to(self, shape: Sequence[int]) -> "Value":
        """The value repeated to a shape, by NumPy's rules.

        Missing axes are added in front, and axes of length 1 are repeated. Raises
        ValueError where an axis has another length.

        >>> Tape().input("x", (4, 1)).broadcast_to((2, 4, 3))
        Value(broadcast, shape=(2, 4, 3))
        """
        shape = whole_numbers("shape", shape)
        padded = (1,) * (len(shape) - len(self.shape)) + self.shape
        fits = len(padded) == len(shape)
        if not fits or any(n not in (1, m) for n, m in zip(padded, shape, strict=True)):
            raise ValueError(f"shape: {self.shape} does not broadcast to {shape}")
        value = self.reshape(*padded)
        for start, stop in _ranges([i for i, n in enumerate(padded) if n != shape[i]]):
            sizes = shape[start:stop]
            value = self.tape.record("broadcast", value, start=start, sizes=sizes)
        return value

    def _broadcast_with(self, other: "Value | float") -> tuple["Value", "Value"]:
        """Both operands in their common shape; a number becomes a constant."""
        if isinstance(other, NUMBERS):
            return self, self.tape.constant(real_number("operand", +other), self.shape)
        check_values(value=self, operand=other)
        if self.shape == other.shape:
            return self, other
        shape = common_shape(self.shape, other.shape)
        return self.broadcast_to(shape), other.broadcast_to(shape)

    def sum(self, axis: Axes = None, keepdims: bool = False) -> "Value":
        """The sum over the given axes, which disappear; over all axes by default.

        With keepdims they keep length 1. Raises ValueError for an axis that the value
        does not have.

        >>> Tape().input("x", (2, 3, 4)).sum(axis=(0, -1)).shape
        (3,)
        """
        rank = len(self.shape)
        axis = range(rank) if axis is None else axis
        one = isinstance(axis, int | np.integer)
        axes = whole_numbers("axis", [axis] if one else axis, least=-rank)
        summed = {i + rank if i < 0 else i for i in axes}
        if not summed <= set(range(rank)) or len(summed) < len(axes):
            raise ValueError(f"axis: expected axes of shape {self.shape}, got {axis}")
        total = self
        for start, stop in _ranges(summed):
            total = self.tape.record("sum", total, start=start, stop=stop)
        if keepdims:
            return total
        return total.reshape(*(n for i, n in enumerate(self.shape) if i not in summed))

    def mean(self, axis: Axes = None, keepdims: bool = False) -> "Value":
        """The mean over the given axes; as `sum` in everything else.

        >>> x = Tape().input("x", (2, 3, 4))
        >>> (x - x.mean(axis=1, keepdims=True)).shape
        (2, 3, 4)
        """
        total = self.sum(axis, keepdims)
        return total * (total.size / self.size)


def common_shape(*shapes: Shape) -> Shape:
    """The shape to which all broadcast, by NumPy's rules.

    >>> common_shape((3, 1), (5,))
    (3, 5)
    """
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        came = " and ".join(map(str, shapes))
        raise ValueError(f"shapes: expected a common one, got {came}") from None


def _window(entry: Any, length: int) -> tuple[int, int, int]:
    """(start, stop, step) of one entry of an index, for an axis of this length.

    A step to the end is as long as any that leads beyond it.

    >>> _window(-1, 5), _window(slice(None, None, 2), 5)
    ((4, 5, 1), (0, 5, 2))
    """
    if isinstance(entry, int | np.integer) and not isinstance(entry, bool):
        expected = f"a number from {-length} to {length - 1}"
        check_that(-length <= entry < length, "index", expected, entry)
        return int(entry) % length, int(entry) % length + 1, 1
    try:
        start, stop, step = entry.indices(length)
    except (AttributeError, TypeError, ValueError):
        step = 0  # It is no slice, or its ends are no numbers.
    if step < 1:
        expected = "whole numbers, slices with a positive step, None and ..."
        raise TypeError(f"index: expected {expected}, got {shown(entry)}")
    check_that(start < stop, "index", "at least one element", entry)
    return start, stop, min(step, stop - start)


def _ranges(axes: Collection[int]) -> list[tuple[int, int]]:
    """Neighbouring axes as ranges (start, stop), in order.

    >>> _ranges({0, 1, 3})
    [(0, 2), (3, 4)]
    """
    starts = [i for i in sorted(axes) if i - 1 not in axes]
    stops = [i + 1 for i in sorted(axes) if i + 1 not in axes]
    return list(zip(starts, stops, strict=True))
