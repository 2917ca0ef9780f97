"""The table of primitives: everything that a backend must be able to compute.

Read one class and you know the operation: its shape, its value in NumPy, and how
derivatives pass through it. `tape.Primitive` says what each function is for.

The table is **closed**: every vjp and jvp records primitives of the table. So
derivatives can be derived again, to any order, and a backend that computes the table
computes all of them. Linear primitives stand beside their transpose, which is what
their vjp records: `broadcast` and `sum`, `slice` and `pad`; `reshape` is undone by
`reshape`, and `matmul` by `matmul` with other transpose flags. A Jacobian that is
symmetric, such as the diagonal one of an elementwise operation, is its own transpose:
there the jvp is the vjp.

Where a cheaper way to the same value exists, `simplify` stands beside the derivative
with which it must agree. There are two ideas. An operation on a constant array gives a
constant array. And a factor moves to where there are fewer elements: `sum(a * 2)`
becomes `sum(a) * 2`, and `broadcast(a) * 2` becomes `broadcast(a * 2)`. Derivatives are
full of such factors. The value stays the same up to rounding, and up to overflow and
underflow of the values in between.

Convolution and pooling, in `convolution.py`, belong to the same table.
"""

from math import prod

import numpy as np

from tinymaml.autodiff.tape import Primitive

BLOCK = 256  # a sum of more terms than this is made in blocks


def expect(condition, message):
    """Raise ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def whole(*numbers, least=0):
    """Whether all are whole numbers of at least `least`; a bool is not."""
    return all(type(n) is int and n >= least for n in numbers)


def fold(a, shape, factor=1.0):
    """What an operation makes of a constant `a`; None if `a` is not constant."""
    return None if a.constant is None else a.tape.constant(a.constant * factor, shape)


class Elementwise(Primitive):
    """Primitives whose result has the shape of their one argument."""

    def shape(a):
        return a

    def flops(out, *shapes, **attributes):
        return prod(out)


class Pairwise(Elementwise):
    """Primitives of two arguments; both and the result have one shape."""

    def shape(a, b):
        expect(a == b, f"shapes: expected two equal ones, got {a} and {b}")
        return a


class Linear(Primitive):
    """Primitives linear in their one argument: the tangent takes the same way."""

    def jvp(i, t, out, a, **attributes):
        return t.tape.record(out.primitive.name, t, **attributes)


class Bilinear(Primitive):
    """Primitives linear in each of two arguments: a tangent takes its argument's place.

    This is the product rule. The term for the other argument is that one's own jvp.
    """

    def jvp(i, t, out, a, b, **attributes):
        arguments = (t, b) if i == 0 else (a, t)
        return t.tape.record(out.primitive.name, *arguments, **attributes)


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
        expect(type(number) is float, f"full: expected a number, got {number!r}")
        return shape

    def evaluate(*, shape, number):
        return np.full((1, *shape), number)


class ConstantArray(Primitive):
    """An array of numbers known when the tape is recorded, row after row."""

    name = "constant_array"

    def shape(*, shape, numbers):
        fit = type(numbers) is tuple and all(type(n) is float for n in numbers)
        expect(fit and whole(*shape, least=1), "constant_array: expected numbers")
        size = prod(shape)
        expect(len(numbers) == size, f"constant_array: {len(numbers)} for {shape}")
        return shape

    def evaluate(*, shape, numbers):
        return np.reshape(numbers, (1, *shape))


# --- arithmetic -----------------------------------------------------------------------


class Add(Pairwise):
    """a + b."""

    name = "add"

    def evaluate(a, b):
        return a + b

    def vjp(i, g, out, a, b):
        return g

    jvp = vjp


class Sub(Pairwise):
    """a - b."""

    name = "sub"

    def evaluate(a, b):
        return a - b

    def vjp(i, g, out, a, b):
        return g if i == 0 else -g

    jvp = vjp


class Mul(Pairwise):
    """a * b, element by element."""

    name = "mul"

    def evaluate(a, b):
        return a * b

    def vjp(i, g, out, a, b):
        return g * (b if i == 0 else a)

    jvp = vjp


class Scale(Elementwise):
    """number * a, for a number known when the tape is recorded."""

    name = "scale"

    def shape(a, *, number):
        expect(type(number) is float, f"scale: expected a number, got {number!r}")
        return a

    def evaluate(a, *, number):
        return a * number

    def vjp(i, g, out, a, *, number):
        return g * number

    jvp = vjp

    def simplify(a, *, number):
        """Two factors become one, and a factor goes in front of a broadcast."""
        name, arguments = a.primitive.name, a.arguments
        if name == "scale":
            return arguments[0] * (a.attributes["number"] * number)
        if name == "broadcast":
            return a.tape.record(name, arguments[0] * number, **a.attributes)
        if name == "mul":
            # (a * broadcast(b)) * 2 is a * broadcast(b * 2).
            for factor, other in (arguments, arguments[::-1]):
                if factor.primitive.name == "broadcast":
                    return a.tape.record(name, factor * number, other)
        return fold(a, a.shape, number)


class Gate(Pairwise):
    """a where x > 0, else 0: how a relu passes tangents and cotangents.

    The derivative with respect to x is zero, and is taken as zero at the kink too. A
    NaN in x lets `a` through.
    """

    name = "gate"

    def evaluate(a, x):
        return np.where(x <= 0, a.dtype.type(0), a)

    def vjp(i, g, out, a, x):
        return g.tape.record("gate", g, x) if i == 0 else None

    jvp = vjp


# --- functions of one argument --------------------------------------------------------


def smooth(name, value, derivative):
    """Add f(a), element by element, to the table.

    The Jacobian is diagonal, so it is its own transpose: `derivative(t, f, a)`, which
    records f'(a) t, is vjp and jvp in one. It is written in the result f = f(a) where
    this is possible, so that `a` need not be kept in memory.
    """

    def rule(i, t, out, a):
        return derivative(t, out, a)

    body = {"name": name, "evaluate": value, "vjp": rule, "jvp": rule}
    # As a name of this file, the class can be pickled, and with it a tape.
    globals()[name.title()] = type(name.title(), (Elementwise,), body)


def relu(a):
    """max(a, 0), written so that a NaN survives."""
    return np.where(a <= 0, a.dtype.type(0), a)


# The slopes are: 1 where f > 0, else 0 (at the kink too); exp(a); 1 / a; cos(a);
# -sin(a); 1 - tanh(a)^2; -1 / a^2; and -1/2 (1 / sqrt(a))^3. In the last two t comes
# first: f f alone can be too large or too small for a float where t f f is neither.
smooth("relu", relu, lambda t, f, a: t.tape.record("gate", t, f))
smooth("exp", np.exp, lambda t, f, a: t * f)
smooth("log", np.log, lambda t, f, a: t / a)
smooth("sin", np.sin, lambda t, f, a: t * t.tape.record("cos", a))
smooth("cos", np.cos, lambda t, f, a: -(t * t.tape.record("sin", a)))
smooth("tanh", np.tanh, lambda t, f, a: t - t * (f * f))
smooth("reciprocal", lambda a: 1 / a, lambda t, f, a: -(t * f * f))
smooth("rsqrt", lambda a: 1 / np.sqrt(a), lambda t, f, a: t * f * f * f * -0.5)


class LogSumExp(Primitive):
    """log(sum(exp(a))) over the last axis, which keeps length 1; its slope is softmax.

    The largest element is subtracted first, so that exp does not overflow; if it is
    infinite, it is the result.
    """

    name = "logsumexp"

    def shape(a):
        expect(len(a) > 0, "logsumexp: expected at least one axis, got shape ()")
        return (*a[:-1], 1)

    def evaluate(a):
        top = a.max(axis=-1, keepdims=True)
        top = np.where(np.isinf(top), top.dtype.type(0), top)  # no inf - inf
        return top + np.log(np.exp(a - top).sum(axis=-1, keepdims=True))

    def vjp(i, g, out, a):
        return g * g.tape.record("softmax", a)

    def jvp(i, t, out, a):
        return sum_last_axis(t * t.tape.record("softmax", a))

    def flops(out, a):
        return 3 * prod(a)


class Softmax(Elementwise):
    """exp(a) / sum(exp(a)) over the last axis.

    The Jacobian, diag(out) - out out^T for each row, is symmetric: vjp equals jvp.
    """

    name = "softmax"

    def shape(a):
        expect(len(a) > 0, "softmax: expected at least one axis, got shape ()")
        return a

    def evaluate(a):
        e = np.exp(a - a.max(axis=-1, keepdims=True))
        return e / e.sum(axis=-1, keepdims=True)

    def vjp(i, g, out, a):
        return out * (g - sum_last_axis(g * out))

    jvp = vjp

    def flops(out, a):
        return 4 * prod(a)


def sum_last_axis(a):
    """The sum over the last axis, which keeps length 1 so that it broadcasts back."""
    axis = len(a.shape) - 1
    return a.tape.record("sum", a, start=axis, stop=axis + 1)


# --- linear primitives, each beside its transpose -------------------------------------


class MatMul(Bilinear):
    """op(a) @ op(b) of matrices, op transposes where its flag `ta` or `tb` is set."""

    name = "matmul"

    def shape(a, b, *, ta, tb):
        fit = len(a) == len(b) == 2 and type(ta) is type(tb) is bool
        expect(fit, f"matmul: expected two matrices, got {a} and {b}, {ta=}, {tb=}")
        m, k = a[::-1] if ta else a
        k_b, n = b[::-1] if tb else b
        expect(k == k_b, f"matmul: inner sizes differ, {(m, k)} @ {(k_b, n)}")
        return (m, n)

    def evaluate(a, b, *, ta, tb):
        return (a.mT if ta else a) @ (b.mT if tb else b)

    def vjp(i, g, out, a, b, *, ta, tb):
        # With A = op(a) and B = op(b), the cotangents are dA = g B^T and dB = A^T g. If
        # `a` enters transposed, its own cotangent is the transpose: da = dA^T = B g^T.
        product = g.tape.record
        if i == 0:
            if ta:
                return product("matmul", b, g, ta=tb, tb=True)
            return product("matmul", g, b, ta=False, tb=not tb)
        if tb:
            return product("matmul", g, a, ta=True, tb=ta)
        return product("matmul", a, g, ta=not ta, tb=False)

    def simplify(a, b, *, ta, tb):
        """A product reads a transposed matrix as it lies."""
        if "swap" not in (a.primitive.name, b.primitive.name):
            return None
        ta, tb = ta != (a.primitive.name == "swap"), tb != (b.primitive.name == "swap")
        a, b = (x.arguments[0] if x.primitive.name == "swap" else x for x in (a, b))
        return a.tape.record("matmul", a, b, ta=ta, tb=tb)

    def flops(out, a, b, *, ta, tb):
        return 2 * prod(a) * prod(out) // (a[1] if ta else a[0])


class Sum(Linear):
    """The sum over the neighbouring axes start .. stop - 1, which keep length 1."""

    name = "sum"

    def shape(a, *, start, stop):
        inside = whole(start, stop) and start < stop <= len(a)
        expect(inside, f"sum: no axes {start}..{stop} in shape {a}")
        return (*a[:start], *(1,) * (stop - start), *a[stop:])

    def evaluate(a, *, start, stop):
        axis, axes = start + 1, tuple(range(start + 1, stop + 1))
        if prod(a.shape[axis : stop + 1]) <= BLOCK:
            return a.sum(axis=axes, keepdims=True)
        # A long sum is a sum of the sums of blocks. Added one after the other, many
        # numbers of float32 lose digits: the total outgrows what is added to it.
        x = a.reshape(*a.shape[:axis], -1, *a.shape[stop + 1 :])
        while (terms := x.shape[axis]) > BLOCK:
            blocks = np.array_split(x, -(-terms // BLOCK), axis)
            x = np.stack([block.sum(axis) for block in blocks], axis)
        return np.expand_dims(x.sum(axis), axes)

    def vjp(i, g, out, a, *, start, stop):
        return g.tape.record("broadcast", g, start=start, sizes=a.shape[start:stop])

    def simplify(a, *, start, stop):
        """A factor of all terms is applied after the sum."""
        if a.primitive.name == "scale":
            total = a.tape.record("sum", a.arguments[0], start=start, stop=stop)
            return total * a.attributes["number"]
        terms = prod(a.shape[start:stop])
        return fold(a, Sum.shape(a.shape, start=start, stop=stop), terms)

    def flops(out, a, **attributes):
        return prod(a)


class Broadcast(Linear):
    """Copies along neighbouring axes of length 1, from `start` on, up to `sizes`."""

    name = "broadcast"

    def shape(a, *, start, sizes):
        inside = whole(start, *sizes) and start + len(sizes) <= len(a)
        stop = start + len(sizes) if inside else 0
        ones = inside and all(n == 1 for n in a[start:stop])
        expect(ones, f"broadcast: no axes of length 1 from {start} to {sizes} in {a}")
        return (*a[:start], *sizes, *a[stop:])

    def evaluate(a, *, start, sizes):
        stop = start + 1 + len(sizes)
        return np.broadcast_to(a, (*a.shape[: start + 1], *sizes, *a.shape[stop:]))

    def vjp(i, g, out, a, *, start, sizes):
        return g.tape.record("sum", g, start=start, stop=start + len(sizes))

    def simplify(a, *, start, sizes):
        return fold(a, Broadcast.shape(a.shape, start=start, sizes=sizes))


class Reshape(Linear):
    """The same elements in the same order, in another shape; costs nothing."""

    name = "reshape"

    def shape(a, *, shape):
        same = whole(*shape, least=1) and prod(a) == prod(shape)
        expect(same, f"reshape: {a} has other size than {shape}")
        return shape

    def evaluate(a, *, shape):
        return a.reshape(len(a), *shape)

    def vjp(i, g, out, a, *, shape):
        return g.reshape(*a.shape)

    def simplify(a, *, shape):
        return fold(a, shape)


class Swap(Linear):
    """Axes start .. middle - 1 change places with axes middle .. stop - 1.

    The transpose of a matrix is the swap of its two axes.
    """

    name = "swap"

    def shape(a, *, start, middle, stop):
        inside = whole(start, middle, stop) and start < middle < stop <= len(a)
        expect(inside, f"swap: no axes {start}..{middle}..{stop} in shape {a}")
        return (*a[:start], *a[middle:stop], *a[start:middle], *a[stop:])

    def evaluate(a, *, start, middle, stop):
        axes = [*range(a.ndim)]
        first, second = axes[start + 1 : middle + 1], axes[middle + 1 : stop + 1]
        return a.transpose(*axes[: start + 1], *second, *first, *axes[stop + 1 :])

    def vjp(i, g, out, a, *, start, middle, stop):
        back = start + stop - middle
        return g.tape.record("swap", g, start=start, middle=back, stop=stop)

    def simplify(a, *, start, middle, stop):
        """An axis of length 1 moves by a reshape, and two swaps may be none."""
        shape = Swap.shape(a.shape, start=start, middle=middle, stop=stop)
        if 1 in (prod(a.shape[start:middle]), prod(a.shape[middle:stop])):
            return a.reshape(*shape)
        back = {"start": start, "middle": start + stop - middle, "stop": stop}
        if a.primitive.name == "swap" and a.attributes == back:
            return a.arguments[0]
        return fold(a, shape)


class Rematerialise(Primitive):
    """The same numbers as a new value: see `functions.rematerialise`.

    `number` makes the node unlike all others. Derivatives pass it by unchanged.
    """

    name = "rematerialise"

    def shape(a, *, number):
        return a

    def evaluate(a, *, number):
        return a

    def vjp(i, g, out, a, *, number):
        return g

    jvp = vjp


class StopGradient(Primitive):
    """The same numbers, which every derivative takes for constants."""

    name = "stop_gradient"

    def shape(a):
        return a

    def evaluate(a):
        return a

    def vjp(i, g, out, a):
        return None

    jvp = vjp


class Slice(Linear):
    """The elements start .. stop - 1 of a vector; costs nothing."""

    name = "slice"

    def shape(a, *, start, stop):
        inside = len(a) == 1 and whole(start, stop) and start < stop <= a[0]
        expect(inside, f"slice: no elements {start}..{stop} in a vector of shape {a}")
        return (stop - start,)

    def evaluate(a, *, start, stop):
        return a[:, start:stop]

    def vjp(i, g, out, a, *, start, stop):
        return g.tape.record("pad", g, start=start, size=a.shape[0])

    def simplify(a, *, start, stop):
        return fold(a, (stop - start,))


class Pad(Linear):
    """A vector of zeros with `a` written into it at `start`: the transpose of slice."""

    name = "pad"

    def shape(a, *, start, size):
        inside = len(a) == 1 and whole(start, size) and start + a[0] <= size
        expect(inside, f"pad: {a} at {start} does not fit a vector of {size}")
        return (size,)

    def evaluate(a, *, start, size):
        return np.pad(a, ((0, 0), (start, size - start - a.shape[1])))

    def vjp(i, g, out, a, *, start, size):
        return g[start : start + a.shape[0]]


class Concat(Primitive):
    """Vectors end to end. Pads that tile a vector are joined by it instead of added."""

    name = "concat"

    def shape(*vectors):
        fit = vectors and all(len(a) == 1 for a in vectors)
        expect(fit, f"concat: expected vectors, got {vectors}")
        return (sum(a[0] for a in vectors),)

    def evaluate(*vectors):
        tasks = max(len(a) for a in vectors)
        repeated = [np.broadcast_to(a, (tasks, a.shape[1])) for a in vectors]
        return np.concatenate(repeated, axis=1)

    def vjp(i, g, out, *vectors):
        start = sum(a.size for a in vectors[:i])
        return g[start : start + vectors[i].size]

    def jvp(i, t, out, *vectors):
        start = sum(a.size for a in vectors[:i])
        return t.tape.record("pad", t, start=start, size=out.size)
