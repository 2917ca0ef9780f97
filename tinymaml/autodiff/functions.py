"""What a loss is written with: arithmetic, matrix products, nonlinearities.

Every function here takes and returns `Value`s and records rows of the table in
`primitives.py`; nothing is computed. Broadcasting follows NumPy's rules and is written
out on the tape, so that its transpose, a sum, is what the gradient finds there.
"""

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from tinymaml.autodiff.primitives import PRIMITIVES

if TYPE_CHECKING:
    from tinymaml.autodiff.tape import Value

NUMBERS = (int, float, np.integer, np.floating)


def broadcast_to(a: "Value", shape: Sequence[int]) -> "Value":
    """`a` repeated to the shape, by NumPy's rules: missing axes lead, ones stretch."""
    shape = tuple(shape)
    if len(a.shape) > len(shape):
        raise ValueError(f"shape {a.shape} does not broadcast to {shape}")
    a = reshape(a, (1,) * (len(shape) - len(a.shape)) + a.shape)
    if any(n not in (1, wanted) for n, wanted in zip(a.shape, shape, strict=True)):
        raise ValueError(f"shape {a.shape} does not broadcast to {shape}")
    for start, stop in _runs([n != m for n, m in zip(a.shape, shape, strict=True)]):
        a = a.tape.record("broadcast", a, start=start, sizes=shape[start:stop])
    return a


def _runs(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """The [start, stop) of every run of true flags."""
    edges = [i for i in range(len(flags) + 1) if _at(flags, i) != _at(flags, i - 1)]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _at(flags: Sequence[bool], i: int) -> bool:
    return 0 <= i < len(flags) and flags[i]


def _together(a: "Value", b: "Value | float") -> tuple["Value", "Value"]:
    """Both operands at their common shape; a number becomes a constant."""
    if isinstance(b, NUMBERS):
        return a, a.tape.constant(b, a.shape)
    if not hasattr(b, "tape"):
        raise TypeError(f"expected a Value or a number, got {type(b).__name__}")
    rank = max(len(a.shape), len(b.shape))
    padded = [(1,) * (rank - len(v.shape)) + v.shape for v in (a, b)]
    shape = tuple(m if n == 1 else n for n, m in zip(*padded, strict=True))
    return broadcast_to(a, shape), broadcast_to(b, shape)


def constant_number(a: "Value") -> float | None:
    """The number an array is filled with, if it was recorded as a constant."""
    node = a.tape.nodes[a.index]
    return dict(node.attributes).get("number") if not node.arguments else None


def simpler(
    name: str, arguments: Sequence["Value"], attributes: dict[str, Any]
) -> "Value | None":
    """A cheaper way to the same value, if there is one: asked before one is recorded.

    What is done to a constant gives a constant. A factor goes where there are fewer
    elements: two factors become one, `broadcast(a) * 2` is `broadcast(a * 2)`,
    `(a * broadcast(b)) * 2` is `a * broadcast(b * 2)`, `sum(a * 2)` is `sum(a) * 2`.
    Derivatives are full of such factors. The result is equal up to rounding, and up to
    overflow and underflow of what stands between: 0.25 a sum is scaled after the sum.
    """
    if name not in ("scale", "broadcast", "reshape", "slice", "sum"):
        return None
    (a,), tape = arguments, arguments[0].tape
    number = constant_number(a)
    if number is not None:
        shape = PRIMITIVES[name].shape(a.shape, **attributes)
        terms = a.size // prod(shape) if name == "sum" else 1
        return tape.constant(number * terms * attributes.get("number", 1.0), shape)
    inner = tape.nodes[a.index]
    operands = [tape.value(i) for i in inner.arguments]
    of, how = inner.primitive.name, dict(inner.attributes)
    if name == "sum" and of == "scale":
        return scale(tape.record("sum", *operands, **attributes), how["number"])
    if name == "scale" and of == "scale":
        return scale(operands[0], how["number"] * attributes["number"])
    if name == "scale" and of == "broadcast":
        return tape.record(of, scale(operands[0], attributes["number"]), **how)
    if name == "scale" and of == "mul":
        for operand, other in (operands, operands[::-1]):
            if tape.nodes[operand.index].primitive.name == "broadcast":
                return tape.record(of, scale(operand, attributes["number"]), other)
    return None


def add(a: "Value", b: "Value | float") -> "Value":
    """a + b."""
    a, b = _together(a, b)
    same = a.tape is b.tape and a.index == b.index
    return scale(a, 2.0) if same else a.tape.record("add", a, b)


def subtract(a: "Value", b: "Value | float") -> "Value":
    """a - b."""
    return a.tape.record("sub", *_together(a, b))


def multiply(a: "Value", b: "Value | float") -> "Value":
    """a * b, element by element."""
    if isinstance(b, NUMBERS):
        return scale(a, b)
    a, b = _together(a, b)
    for constant, other in ((a, b), (b, a)):
        number = constant_number(constant)
        if number is not None:
            return scale(other, number)
    return a.tape.record("mul", a, b)


def divide(a: "Value", b: "Value | float") -> "Value":
    """a / b, element by element."""
    return multiply(a, 1 / b if isinstance(b, NUMBERS) else reciprocal(b))


def scale(a: "Value", number: float) -> "Value":
    """number * a, for a number known now."""
    return a if number == 1 else a.tape.record("scale", a, number=float(number))


def matmul(a: "Value", b: "Value") -> "Value":
    """The matrix product a @ b."""
    return a.tape.record("matmul", a, b, ta=False, tb=False)


def reshape(a: "Value", shape: Sequence[int]) -> "Value":
    """The same elements in another shape; one size may be -1, for what is left."""
    node = a.tape.nodes[a.index]
    if node.primitive.name == "reshape":
        a = a.tape.value(node.arguments[0])
    rest = a.size // max(-prod(shape), 1)
    shape = tuple(rest if n == -1 else n for n in shape)
    return a if a.shape == shape else a.tape.record("reshape", a, shape=shape)


def take_slice(a: "Value", piece: slice) -> "Value":
    """a[start:stop] of a vector."""
    if not isinstance(piece, slice) or piece.step not in (None, 1) or len(a.shape) != 1:
        raise TypeError("a Value is indexed as vector[start:stop] only")
    start, stop, _ = piece.indices(a.shape[0])
    if (start, stop) == (0, a.shape[0]):
        return a
    return a.tape.record("slice", a, start=start, stop=stop)


def concatenate(pieces: Sequence["Value"]) -> "Value":
    """Vectors end to end."""
    if len(pieces) == 1:
        return pieces[0]
    return pieces[0].tape.record("concat", *pieces)


def sum(a: "Value", axis: int | Sequence[int] | None = None) -> "Value":
    """The sum over all axes or the given ones, which disappear."""
    rank = len(a.shape)
    axes = range(rank) if axis is None else [axis] if isinstance(axis, int) else axis
    wanted = {i + rank if i < 0 else i for i in axes}
    if not wanted <= set(range(rank)):
        raise ValueError(f"axis: expected axes of shape {a.shape}, got {axis}")
    kept = tuple(n for i, n in enumerate(a.shape) if i not in wanted)
    for start, stop in _runs([i in wanted for i in range(rank)]):
        a = a.tape.record("sum", a, start=start, stop=stop)
    return reshape(a, kept)


def mean(a: "Value", axis: int | Sequence[int] | None = None) -> "Value":
    """The mean over all axes or the given ones, which disappear."""
    total = sum(a, axis)
    return scale(total, total.size / a.size)


def relu(x: "Value") -> "Value":
    """max(x, 0), with slope 0 at 0."""
    return x.tape.record("relu", x)


def exp(x: "Value") -> "Value":
    """The exponential."""
    return x.tape.record("exp", x)


def log(x: "Value") -> "Value":
    """The natural logarithm."""
    return x.tape.record("log", x)


def tanh(x: "Value") -> "Value":
    """The hyperbolic tangent."""
    return x.tape.record("tanh", x)


def reciprocal(x: "Value") -> "Value":
    """1 / x."""
    return x.tape.record("reciprocal", x)


def rsqrt(x: "Value") -> "Value":
    """1 / sqrt(x)."""
    return x.tape.record("rsqrt", x)


def logsumexp(x: "Value") -> "Value":
    """log(sum(exp(x))) over the last axis, which keeps length 1."""
    return x.tape.record("logsumexp", x)


def softmax(x: "Value") -> "Value":
    """exp(x) / sum(exp(x)) over the last axis."""
    return x.tape.record("softmax", x)


def rematerialise(x: "Value") -> "Value":
    """The same numbers under a new name: whatever is recorded on it is computed anew.

    This is how activations are recomputed rather than kept (see `maml.py`).
    """
    return x.tape.record("rematerialise", x, number=len(x.tape.nodes))
