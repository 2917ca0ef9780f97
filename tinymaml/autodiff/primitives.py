"""The table of primitives: everything a backend must be able to do.

Each class is one row: the shape it makes, its value in NumPy, and how derivatives pass
it. Read a row and you know the operation.

- `shape(*shapes, **attributes)` checks the arguments and gives the result's shape.
- `evaluate(*arrays, **attributes)` computes the value. Arrays carry one extra leading
  axis, the task axis: its length is 1 when all tasks share the array.
- `vjp(i, g, out, *arguments, **attributes)` records the cotangent of argument `i` when
  the result has cotangent `g`; `jvp(i, t, ...)` records the tangent of the result when
  argument `i` alone has tangent `t`. Both see `Value`s and return a `Value`, or None
  where the derivative is zero.

The set is **closed**: every vjp and jvp is made of rows of this table, so derivatives
of any order are, and a backend that runs these rows can run any of them. Linear rows
stand beside their transpose: `broadcast` / `sum`, `slice` / `pad`, `reshape` /
`reshape`, `matmul` with transpose flags is its own.

Convolution and pooling are rows of the same kind, in `convolution.py`.
"""

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tinymaml.autodiff.tape import Value

Shape = tuple[int, ...]
Array = NDArray[Any]
PRIMITIVES: dict[str, type["Primitive"]] = {}


class Primitive:
    """One row. Subclasses register themselves under `name`."""

    name: ClassVar[str]
    evaluate: ClassVar[Callable[..., Array]]
    vjp: ClassVar[Callable[..., "Value | None"]]
    jvp: ClassVar[Callable[..., "Value | None"]]
    shape: ClassVar[Callable[..., Shape]]

    def __init_subclass__(cls) -> None:
        for method in ("shape", "evaluate", "vjp", "jvp", "flops"):
            if method in cls.__dict__:
                setattr(cls, method, staticmethod(cls.__dict__[method]))
        if "name" in cls.__dict__:
            PRIMITIVES[cls.name] = cls

    @staticmethod
    def flops(out: Shape, *shapes: Shape, **attributes: Any) -> int:
        """Floating-point operations for one task; data movement counts nothing."""
        return 0


def expect(condition: bool, message: str) -> None:
    """Raise ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


class Elementwise(Primitive):
    """Rows whose arguments and result all have one shape."""

    def shape(*shapes):
        expect(len(set(shapes)) == 1, f"shapes must be equal, got {shapes}")
        return shapes[0]

    def flops(out, *shapes, **attributes):
        return prod(out)


# --- leaves ---------------------------------------------------------------------------


class Input(Primitive):
    """A named array given when the tape is run."""

    name = "input"

    def shape(*, name, shape):
        return shape


class Full(Primitive):
    """An array filled with one number."""

    name = "full"

    def shape(*, shape, number):
        return shape

    def evaluate(*, shape, number):
        return np.full((1, *shape), number)


# --- arithmetic -----------------------------------------------------------------------


class Add(Elementwise):
    """a + b."""

    name = "add"

    def evaluate(a, b):
        return a + b

    def vjp(i, g, out, a, b):
        return g

    def jvp(i, t, out, a, b):
        return t


class Sub(Elementwise):
    """a - b."""

    name = "sub"

    def evaluate(a, b):
        return a - b

    def vjp(i, g, out, a, b):
        return -g if i else g

    def jvp(i, t, out, a, b):
        return -t if i else t


class Mul(Elementwise):
    """a * b, element by element."""

    name = "mul"

    def evaluate(a, b):
        return a * b

    def vjp(i, g, out, a, b):
        return g * (a if i else b)

    def jvp(i, t, out, a, b):
        return t * (a if i else b)


class Scale(Elementwise):
    """number * a, for a number fixed when the tape is recorded."""

    name = "scale"

    def shape(a, *, number):
        return a

    def evaluate(a, *, number):
        return a * number

    def vjp(i, g, out, a, *, number):
        return g * number

    def jvp(i, t, out, a, *, number):
        return t * number


class Gate(Elementwise):
    """a where x > 0, else 0: how a relu passes tangents and cotangents.

    The derivative with respect to x is zero, and taken as zero at the kink too. A NaN
    in x lets `a` through.
    """

    name = "gate"

    def evaluate(a, x):
        return np.where(x <= 0, a.dtype.type(0), a)

    def vjp(i, g, out, a, x):
        return None if i else g.tape.record("gate", g, x)

    def jvp(i, t, out, a, x):
        return None if i else t.tape.record("gate", t, x)


# --- functions of one argument --------------------------------------------------------


class Smooth(Elementwise):
    """f(a), element by element, with f' written in f(a): vjp and jvp agree."""

    derivative: ClassVar[Callable[..., "Value"]]

    def __init_subclass__(cls) -> None:
        cls.derivative = staticmethod(cls.__dict__["derivative"])
        super().__init_subclass__()
        rule = cls.derivative
        cls.vjp = staticmethod(lambda i, g, out, a: rule(g, out, a))
        cls.jvp = staticmethod(lambda i, t, out, a: rule(t, out, a))


class Relu(Smooth):
    """max(a, 0). The slope is 1 where the result is positive, 0 elsewhere and at 0.

    The slope asks the result, not the argument, so that the argument can be forgotten.
    Written so that NaN survives.
    """

    name = "relu"

    def evaluate(a):
        return np.where(a <= 0, a.dtype.type(0), a)

    def derivative(t, out, a):
        return t.tape.record("gate", t, out)


class Exp(Smooth):
    """exp(a)."""

    name = "exp"

    def evaluate(a):
        return np.exp(a)

    def derivative(t, out, a):
        return t * out


class Log(Smooth):
    """The natural logarithm of a."""

    name = "log"

    def evaluate(a):
        return np.log(a)

    def derivative(t, out, a):
        return t / a


class Tanh(Smooth):
    """tanh(a); the derivative is 1 - tanh(a)^2."""

    name = "tanh"

    def evaluate(a):
        return np.tanh(a)

    def derivative(t, out, a):
        return t - t * (out * out)


class Reciprocal(Smooth):
    """1 / a; the derivative is -1 / a^2."""

    name = "reciprocal"

    def evaluate(a):
        return 1 / a

    def derivative(t, out, a):
        return -(t * (out * out))


class Rsqrt(Smooth):
    """1 / sqrt(a); the derivative is -1/2 (1 / sqrt(a))^3."""

    name = "rsqrt"

    def evaluate(a):
        return 1 / np.sqrt(a)

    def derivative(t, out, a):
        return t * (out * out * out) * -0.5


class LogSumExp(Primitive):
    """log(sum(exp(a))) over the last axis, which keeps length 1; its slope is softmax.

    The largest element is taken out first, so nothing overflows.
    """

    name = "logsumexp"

    def shape(a):
        expect(len(a) > 0, f"logsumexp needs at least one axis, got shape {a}")
        return (*a[:-1], 1)

    def evaluate(a):
        top = a.max(axis=-1, keepdims=True)
        return top + np.log(np.exp(a - top).sum(axis=-1, keepdims=True))

    def vjp(i, g, out, a):
        return g * g.tape.record("softmax", a)

    def jvp(i, t, out, a):
        return last_sum(t * t.tape.record("softmax", a))

    def flops(out, a):
        return 3 * prod(a)


class Softmax(Elementwise):
    """exp(a) / sum(exp(a)) over the last axis."""

    name = "softmax"

    def evaluate(a):
        e = np.exp(a - a.max(axis=-1, keepdims=True))
        return e / e.sum(axis=-1, keepdims=True)

    def vjp(i, g, out, a):
        return out * (g - last_sum(g * out))

    def jvp(i, t, out, a):
        return out * (t - last_sum(t * out))

    def flops(out, a):
        return 4 * prod(a)


# --- linear rows, each beside its transpose -------------------------------------------


class MatMul(Primitive):
    """op(a) @ op(b) of matrices, where op transposes if its flag is set."""

    name = "matmul"

    def shape(a, b, *, ta, tb):
        expect(len(a) == len(b) == 2, f"matmul needs two matrices, got {a} and {b}")
        m, k = a[::-1] if ta else a
        k_b, n = b[::-1] if tb else b
        expect(k == k_b, f"matmul: inner sizes differ, {(m, k)} @ {(k_b, n)}")
        return (m, n)

    def evaluate(a, b, *, ta, tb):
        return (a.mT if ta else a) @ (b.mT if tb else b)

    def vjp(i, g, out, a, b, *, ta, tb):
        # out = A B gives dA = g B^T and dB = A^T g; with a transposed operand the same
        # product is wanted the other way round: d(A^T) = B g^T.
        product = g.tape.record
        if i == 0:
            if ta:
                return product("matmul", b, g, ta=tb, tb=True)
            return product("matmul", g, b, ta=False, tb=not tb)
        if tb:
            return product("matmul", g, a, ta=True, tb=ta)
        return product("matmul", a, g, ta=not ta, tb=False)

    def jvp(i, t, out, a, b, *, ta, tb):
        return t.tape.record("matmul", *((a, t) if i else (t, b)), ta=ta, tb=tb)

    def flops(out, a, b, *, ta, tb):
        return 2 * prod(a) * prod(out) // (a[1] if ta else a[0])


class Linear(Primitive):
    """Rows linear in one argument: the tangent passes through the row itself."""

    def jvp(i, t, out, a, **attributes):
        name = out.tape.nodes[out.index].primitive.name
        return t.tape.record(name, t, **attributes)


class Sum(Linear):
    """Sum over the neighbouring axes start .. stop - 1, which keep length 1."""

    name = "sum"

    def shape(a, *, start, stop):
        expect(
            0 <= start < stop <= len(a), f"sum: no axes {start}..{stop} in shape {a}"
        )
        return (*a[:start], *(1,) * (stop - start), *a[stop:])

    def evaluate(a, *, start, stop):
        return a.sum(axis=tuple(range(start + 1, stop + 1)), keepdims=True)

    def vjp(i, g, out, a, *, start, stop):
        sizes = a.shape[start:stop]
        return g.tape.record("broadcast", g, start=start, sizes=sizes)

    def flops(out, a, **attributes):
        return prod(a)


class Broadcast(Linear):
    """Repeat along neighbouring axes of length 1, from start on, to the sizes."""

    name = "broadcast"

    def shape(a, *, start, sizes):
        stop = start + len(sizes)
        ones = all(n == 1 for n in a[start:stop])
        expect(ones and stop <= len(a), f"broadcast: axes {start}..{stop} of {a} not 1")
        return (*a[:start], *sizes, *a[stop:])

    def evaluate(a, *, start, sizes):
        stop = start + 1 + len(sizes)
        return np.broadcast_to(a, (*a.shape[: start + 1], *sizes, *a.shape[stop:]))

    def vjp(i, g, out, a, *, start, sizes):
        return g.tape.record("sum", g, start=start, stop=start + len(sizes))


class Reshape(Linear):
    """The same elements in the same order, in another shape; costs nothing."""

    name = "reshape"

    def shape(a, *, shape):
        same = prod(a) == prod(shape) and all(n > 0 for n in shape)
        expect(same, f"reshape: {a} has other size than {shape}")
        return shape

    def evaluate(a, *, shape):
        return a.reshape(len(a), *shape)

    def vjp(i, g, out, a, *, shape):
        return g.reshape(*a.shape)


class Rematerialise(Linear):
    """The same value under a new name, so that what depends on it is computed anew."""

    name = "rematerialise"

    def shape(a, *, number):
        return a

    def evaluate(a, *, number):
        return a

    def vjp(i, g, out, a, *, number):
        return g

    def jvp(i, t, out, a, *, number):
        return t


class Slice(Linear):
    """Elements start .. stop - 1 of a vector; costs nothing."""

    name = "slice"

    def shape(a, *, start, stop):
        good = len(a) == 1 and 0 <= start < stop <= a[0]
        expect(good, f"slice: no elements {start}..{stop} in a vector of shape {a}")
        return (stop - start,)

    def evaluate(a, *, start, stop):
        return a[:, start:stop]

    def vjp(i, g, out, a, *, start, stop):
        return g.tape.record("pad", g, start=start, size=a.shape[0])


class Pad(Linear):
    """A vector of zeros with `a` at start: the transpose of slice."""

    name = "pad"

    def shape(a, *, start, size):
        good = len(a) == 1 and 0 <= start and start + a[0] <= size
        expect(good, f"pad: {a} at {start} does not fit a vector of {size}")
        return (size,)

    def evaluate(a, *, start, size):
        return np.pad(a, ((0, 0), (start, size - start - a.shape[1])))

    def vjp(i, g, out, a, *, start, size):
        return g[start : start + a.shape[0]]


class Concat(Primitive):
    """Vectors end to end. Pads that tile a vector are summed as a concat."""

    name = "concat"

    def shape(*pieces):
        expect(all(len(a) == 1 for a in pieces), f"concat needs vectors, got {pieces}")
        return (sum(a[0] for a in pieces),)

    def evaluate(*pieces):
        tasks = max(len(a) for a in pieces)
        return np.concatenate(
            [np.broadcast_to(a, (tasks, a.shape[1])) for a in pieces], axis=1
        )

    def vjp(i, g, out, *pieces):
        start = sum(a.shape[0] for a in pieces[:i])
        return g[start : start + pieces[i].shape[0]]

    def jvp(i, t, out, *pieces):
        start = sum(a.shape[0] for a in pieces[:i])
        return t.tape.record("pad", t, start=start, size=out.shape[0])


def last_sum(a: "Value") -> "Value":
    """The sum over the last axis, which keeps length 1 so that it broadcasts back."""
    axis = len(a.shape) - 1
    return a.tape.record("sum", a, start=axis, stop=axis + 1)
