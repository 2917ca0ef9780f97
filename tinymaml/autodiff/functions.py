"""What a loss is written with, besides operators: nonlinearities and joined vectors.

    hidden = functions.tanh(x @ weight + bias)
    loss = functions.logsumexp(hidden).mean()

Every function takes and returns `Value`s and records a primitive; nothing is computed.
So the examples below ask `tinymaml.function` for numbers.
What has an operator or a method in NumPy (`+`, `@`, `sum`, `reshape`) has it on `Value`
as well. Convolution and pooling are in `convolution.py`, losses in `tinymaml.losses`.
"""

from collections.abc import Sequence
from typing import Any

from tinymaml.autodiff.tape import NUMBERS, Value, check_values, common_shape
from tinymaml.checks import check_that, shown, whole_numbers


def _record(name: str, x: Value, **attributes: Any) -> Value:
    """The value of a primitive of one argument."""
    check_values(x=x)
    return x.tape.record(name, x, **attributes)


def concatenate(values: Sequence[Value], axis: int = 0) -> Value:
    """Values end to end along an axis; all their other axes have the same lengths.

    Raises ValueError where the shapes do not fit or there are no values, TypeError for
    what is no `Value`.

    >>> import numpy as np
    >>> import tinymaml as tm
    >>> twice = tm.function(lambda x: tm.concatenate([x, 2 * x]), "numpy")
    >>> twice(np.array([1.0, 3.0]))
    array([1., 3., 2., 6.])
    """
    if not isinstance(values, Sequence) or not values:
        raise ValueError(f"values: expected a list of Values, got {shown(values)}")
    check_values(**{f"values[{i}]": value for i, value in enumerate(values)})
    axis = _axis(values[0], axis)
    others = [(*v.shape[:axis], *v.shape[axis + 1 :]) for v in values]
    same = all(shape == others[0] for shape in others)
    fit = same and all(len(v.shape) > axis for v in values)
    shapes = [v.shape for v in values]
    check_that(fit, "values", f"equal shapes apart from axis {axis}", shapes)
    if len(values) == 1:
        return values[0]
    # The joined axis comes first: there each value is contiguous.
    front = (axis, *range(axis), *range(axis + 1, len(shapes[0])))
    pieces = [v.transpose(*front).reshape(-1) for v in values]
    joined = values[0].tape.record("concat", *pieces).reshape(-1, *others[0])
    return joined.transpose(*range(1, axis + 1), 0, *range(axis + 1, len(shapes[0])))


def _axis(x: Value, axis: int) -> int:
    """The number of an axis from the front."""
    check_values(x=x)
    rank = len(x.shape)
    (number,) = whole_numbers("axis", [axis], least=-max(rank, 1))
    check_that(-rank <= number < rank, "axis", f"an axis of shape {x.shape}", axis)
    return number % rank


def relu(x: Value) -> Value:
    """max(x, 0) of each element of x (...), with slope 0 at 0.

    Raises TypeError if x is no `Value`.

    >>> import numpy as np
    >>> import tinymaml as tm
    >>> tm.function(tm.relu, "numpy")(np.array([-1.0, 2.0]))
    array([0., 2.])
    """
    return _record("relu", x)


def exp(x: Value) -> Value:
    """The exponential of each element of x (...).

    Raises TypeError if x is no `Value`.

    >>> import numpy as np
    >>> import tinymaml as tm
    >>> tm.function(tm.exp, "numpy")(np.array([0.0, 1.0]))
    array([1.        , 2.71828183])
    """
    return _record("exp", x)


def log(x: Value) -> Value:
    """The natural logarithm of each element of x (...): NaN below 0, -inf at 0.

    Raises TypeError if x is no `Value`.

    >>> import numpy as np
    >>> import tinymaml as tm
    >>> tm.function(tm.log, "numpy")(np.array([1.0, 10.0]))
    array([0.        , 2.30258509])
    """
    return _record("log", x)


def tanh(x: Value) -> Value:
    """The hyperbolic tangent of each element of x (...).

    Raises TypeError if x is no `Value`.

    >>> import numpy as np
    >>> import tinymaml as tm
    >>> tm.function(tm.tanh, "numpy")(np.array([0.0, 0.5]))
    array([0.        , 0.46211716])
    """
    return _record("tanh", x)


def rsqrt(x: Value) -> Value:
    """1 / sqrt(x) of each element of x (...): NaN below 0, inf at 0.

    Raises TypeError if x is no `Value`.

    >>> import numpy as np
    >>> import tinymaml as tm
    >>> tm.function(tm.rsqrt, "numpy")(np.array([1.0, 4.0]))
    array([1. , 0.5])
    """
    return _record("rsqrt", x)


def sqrt(x: Value) -> Value:
    """The square root of each element of x (...); its slope at 0 is not a number.

    Raises TypeError if x is no `Value`.

    >>> import numpy as np
    >>> import tinymaml as tm
    >>> tm.function(tm.sqrt, "numpy")(np.array([0.0, 9.0]))
    array([0., 3.])
    """
    return 1 / rsqrt(x)


def sin(x: Value) -> Value:
    """The sine of each element of x (...), in radians.

    Raises TypeError if x is no `Value`.

    >>> import numpy as np
    >>> import tinymaml as tm
    >>> tm.function(tm.sin, "numpy")(np.array([0.0, 0.5]))
    array([0.        , 0.47942554])
    """
    return _record("sin", x)


def cos(x: Value) -> Value:
    """The cosine of each element of x (...), in radians.

    Raises TypeError if x is no `Value`.

    >>> import numpy as np
    >>> import tinymaml as tm
    >>> tm.function(tm.cos, "numpy")(np.array([0.0, 0.5]))
    array([1.        , 0.87758256])
    """
    return _record("cos", x)


def sigmoid(x: Value) -> Value:
    """1 / (1 + exp(-x)) of each element of x (...).

    Its error is that of a number near 1, for small results too: the logarithm of a
    probability is `-softplus(-x)`. Raises TypeError if x is no `Value`.

    >>> import numpy as np
    >>> import tinymaml as tm
    >>> tm.function(tm.sigmoid, "numpy")(np.array([0.0, 2.0]))
    array([0.5       , 0.88079708])
    """
    check_values(x=x)
    return tanh(x * 0.5) * 0.5 + 0.5


def softplus(x: Value) -> Value:
    """log(1 + exp(x)) of each element of x (...), a smooth relu; it does not overflow.

    Raises TypeError if x is no `Value`.

    >>> import numpy as np
    >>> import tinymaml as tm
    >>> tm.function(tm.softplus, "numpy")(np.array([0.0, 50.0]))
    array([ 0.69314718, 50.        ])
    """
    check_values(x=x)
    zeros = x.tape.constant(0.0, (x.size,))
    pairs = concatenate([x.reshape(-1), zeros]).reshape(2, -1).T  # (x, 0) for each x
    return logsumexp(pairs).reshape(*x.shape)


def logsumexp(x: Value, axis: int = -1) -> Value:
    """log(sum(exp(x))) over one axis, which keeps length 1: (..., C) -> (..., 1).

    Raises TypeError if x is no `Value`, ValueError if it has no such axis.

    >>> import numpy as np
    >>> import tinymaml as tm
    >>> tm.function(tm.logsumexp, "numpy")(np.array([0.0, 1000.0]))
    array([1000.])
    """
    return _over_axis("logsumexp", x, axis)


def softmax(x: Value, axis: int = -1) -> Value:
    """exp(x) / sum(exp(x)) over one axis, by default the last: probabilities (..., C).

    Raises TypeError if x is no `Value`, ValueError if it has no such axis.

    >>> import numpy as np
    >>> import tinymaml as tm
    >>> tm.function(tm.softmax, "numpy")(np.log([1.0, 3.0]))
    array([0.25, 0.75])
    """
    return _over_axis("softmax", x, axis)


def _over_axis(name: str, x: Value, axis: int) -> Value:
    """A primitive of the last axis, over any axis."""
    axis = _axis(x, axis)
    last = len(x.shape) - 1
    if axis == last:
        return _record(name, x)
    moved = x.tape.record("swap", x, start=axis, middle=axis + 1, stop=last + 1)
    out = _record(name, moved)
    return out.tape.record("swap", out, start=axis, middle=last, stop=last + 1)


def where(condition: Value, a: Value | float, b: Value | float) -> Value:
    """a where the condition is above 0, else b, element by element.

    condition: for instance a mask of zeros and ones that comes with the data, or a
    difference: where(x - y, x, y) is the larger one. What is not chosen has no effect
    on the value, even if it is NaN. No derivative passes through the condition. A
    condition that is NaN chooses a.

    Where the slope of what is not chosen is infinite or NaN, the derivative is NaN, as
    0 times infinity is. A harmless number in its place prevents this:
    where(x, sqrt(where(x, x, 1.0)), 0.0) and not where(x, sqrt(x), 0.0).

    Raises TypeError without a `Value`, ValueError for shapes that do not broadcast.

    >>> import numpy as np
    >>> import tinymaml as tm
    >>> f = tm.function(lambda x: tm.where(x - 1, x, 10.0), "numpy")
    >>> f(np.array([0.0, 3.0]))
    array([10., 3.])
    """
    condition, a, b = _broadcast(condition, a, b)
    chosen = _gate(condition.tape.constant(1.0, condition.shape), condition)
    return _gate(a, condition) + _gate(b, 0.5 - chosen)


def maximum(a: Value, b: Value | float) -> Value:
    """The larger of a and b, element by element; NaN if one is.

    The slope is that of the larger one, of equal finite numbers that of a. Raises
    TypeError without a `Value`, ValueError for shapes that do not broadcast.

    >>> import numpy as np
    >>> import tinymaml as tm
    >>> tm.function(lambda x: tm.maximum(x, 2.0), "numpy")(np.array([1.0, 3.0]))
    array([2., 3.])
    """
    a, b = _broadcast(a, b)
    one = a.tape.constant(1.0, a.shape)
    # With NaN both differences let the number 1 through, and both a and b are added.
    a_larger, b_larger = _gate(one, a - b), _gate(one, b - a)
    return _gate(a, a_larger - b_larger + 0.5) + _gate(b, b_larger - 0.5)


def minimum(a: Value, b: Value | float) -> Value:
    """The smaller of a and b, element by element. Slopes and errors: see `maximum`.

    >>> import numpy as np
    >>> import tinymaml as tm
    >>> tm.function(lambda x: tm.minimum(x, 2.0), "numpy")(np.array([1.0, 3.0]))
    array([1., 2.])
    """
    a, b = _broadcast(a, b)
    return -maximum(-a, -b)


def clip(x: Value, lowest: Value | float, highest: Value | float) -> Value:
    """x, or the nearest number between two ends.

    The slope beyond them is 0, unless that of x is infinite; see `where`. Raises what
    `maximum` raises.

    >>> import numpy as np
    >>> import tinymaml as tm
    >>> tm.function(lambda x: tm.clip(x, -1, 1), "numpy")(np.array([-5.0, 0.5, 3.0]))
    array([-1. ,  0.5,  1. ])
    """
    return minimum(maximum(x, lowest), highest)


def _gate(x: Value, condition: Value) -> Value:
    """x where the condition is above 0 or NaN, else 0."""
    return x.tape.record("gate", x, condition)


def _broadcast(*operands: Value | float) -> list[Value]:
    """Values and numbers in their common shape."""
    values = [x for x in operands if isinstance(x, Value)]
    named = {f"operand {i}": x for i, x in enumerate(operands)}
    may_be = NUMBERS if values else ()  # at least one operand says which tape it is
    check_values(**{i: x for i, x in named.items() if not isinstance(x, may_be)})
    shape = common_shape(*(x.shape for x in values))
    tape = values[0].tape
    return [
        x.broadcast_to(shape) if isinstance(x, Value) else tape.constant(x, shape)
        for x in operands
    ]


def stop_gradient(x: Value) -> Value:
    """The same numbers, which every derivative takes for constants.

    It is right, and saves time, for a number on which the result does not depend: one
    that is subtracted only so that float32 loses fewer digits.
    """
    return _record("stop_gradient", x)


def rematerialise(x: Value) -> Value:
    """The same numbers as a new value: what is recorded from it is computed again.

    A tape uses equal operations on equal values only once, and so keeps the result in
    memory between its first use and its last. Activations recorded from a
    rematerialised theta are new nodes, computed a second time where they are needed
    (gradient checkpointing; `maml.py` does it with `recompute=True`).
    """
    check_values(x=x)
    return _record("rematerialise", x, number=len(x.tape.nodes))
