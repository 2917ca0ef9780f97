"""Gradients, directional derivatives and Hessian-vector products, recorded on a tape.

- `grad(loss, theta)` is reverse mode, backpropagation: it walks the tape from the loss
  to theta.
- `jvp(output, theta, v)` is forward mode, the derivative of `output` along v: it walks
  the tape from theta to the output.
- `hvp(loss, theta, v)` is forward over reverse, the derivative of the gradient along v.
  It equals H v with the Hessian H of the loss, and no Hessian is formed (Pearlmutter's
  R-operator, 1994). MAML's equation (1) needs one for each inner step.

All three append operations to the tape and compute nothing. A derivative is more tape,
so it can be derived again and runs like any other loss.

**How a gradient comes about.** Take f = sum(theta * theta) at theta = (1, 2, 3):

    node  primitive  reads  value
    0     input             (1, 2, 3)  theta
    1     mul        0, 0   (1, 4, 9)
    2     sum        1      (14,)      the summed axis keeps length 1
    3     reshape    2      14         f

The *cotangent* of a node is the derivative of f with respect to the node's value: one
slope for each element. `grad` starts with the cotangent of f itself, which is 1. On the
way back it asks each node for the cotangents of its arguments, given its own (this is
the `vjp` of the node's primitive):

    node 3, reshape: node 2 gets the same number in the old shape, (1.0,)
    node 2, sum: a sum grows as fast as each of its terms, so node 1 gets (1, 1, 1)
    node 1, mul: d(a b) = b da + a db, and node 0 is both a and b, so theta gets the
        cotangent times theta twice, (1, 2, 3) and (1, 2, 3)

The gradient is the sum of the contributions to theta, (2, 4, 6) = 2 theta. On the tape,
nodes 4, 5 and 6 are the constant cotangents 1, (1.0,) and (1, 1, 1), and node 7 is the
gradient: `scale` of node 0 by 2. The product of theta with ones was simplified when it
was recorded, so no node that is needed reads the constants.

Cost, in matrix products of a dense layer: the loss takes 1, the gradient 2 more and
H v 6 more, whatever the number of parameters.

Left out: derivatives with respect to several values at once. A network's parameters are
one vector theta, and its layers read slices of it.
"""

from collections import Counter
from collections.abc import Sequence

from tinymaml.autodiff import functions
from tinymaml.autodiff.tape import Tape, Value, check_values
from tinymaml.checks import check_that


# [autodiff-grad]
def grad(loss: Value, theta: Value) -> Value:
    """The gradient of a scalar `loss` with respect to `theta`, appended to their tape.

    Returns a Value shaped like `theta`. Raises ValueError when the loss is not a
    scalar, or where recording has simplified theta away: it looks past factors,
    broadcasts, transposes and reshapes. What `functions.rematerialise(theta)` returns,
    used in its place from the start, has a derivative. An input always has one; a
    constant number has none, since it becomes a factor.

    With b = a + a and c = b * b = 4 a^2, the gradient is 8 a, which is 24 at a = 3:

    >>> import numpy as np
    >>> from tinymaml.backends import get_backend
    >>> tape = Tape()
    >>> a = tape.input("a", ())
    >>> b = a + a
    >>> tape.output("gradient", grad(b * b, a))
    >>> run = get_backend("numpy").compile(tape, "float64")
    >>> run({"a": np.array(3.0)})["gradient"]
    array([24.])
    """
    found = cotangents(loss, theta)
    if theta.index in found:
        return found[theta.index]
    return theta.tape.constant(0.0, theta.shape)


def cotangents(loss: Value, theta: Value) -> dict[int, Value]:
    """The cotangents of theta and of all nodes through which it acts on the loss."""
    if not isinstance(loss, Value) or loss.size != 1:
        came = getattr(loss, "shape", type(loss).__name__)
        raise ValueError(f"loss: expected one number on a tape, got {came}")
    check_values(loss=loss, theta=theta)
    tape = loss.tape
    between = _nodes_between(theta, loss)
    # For each node: the contributions to its cotangent that have arrived so far.
    contributions = {loss.index: [tape.constant(1.0, loss.shape)]}
    complete: dict[int, Value] = {}
    # The walk goes from the end of the tape to the start. All nodes that read a node
    # come after it, so its cotangent is complete when the walk arrives there. With
    # b = a * a; c = b * b at a = 3, node b receives 9 twice, once for each factor, and
    # only then passes on their sum 18: times 3 for each factor a, 108 in all, which is
    # 4 a^3. An algorithm that passes on the first 9 and never returns to b finds 54.
    for index in range(loss.index, theta.index - 1, -1):
        if index not in contributions:
            continue  # No path from theta to the loss leads here, or its slope is zero.
        # A value that is read several times acts on the loss along several paths, and
        # by the chain rule the derivatives along all paths are summed.
        complete[index] = g = accumulate_cotangents(tape, contributions.pop(index))
        out = tape.value(index)
        arguments = out.arguments
        for i, argument in enumerate(arguments):
            if argument.index in between:  # Data and constants need no cotangent.
                part = out.primitive.vjp(i, g, out, *arguments, **out.attributes)
                if part is not None:
                    contributions.setdefault(argument.index, []).append(part)
    return complete


# [/autodiff-grad]


# [autodiff-jvp]
def jvp(output: Value, theta: Value, v: Value) -> Value:
    """The derivative of `output` along the tangent `v` of `theta`, appended.

    The tangent of a value is its velocity while theta moves with velocity v. `v` has
    the shape of `theta`, else ValueError; returns a Value shaped like `output`. The
    rest as in `grad`.

    With c = a * a, moving a = 3 with velocity 10 moves c with velocity 2 * 3 * 10:

    >>> import numpy as np
    >>> from tinymaml.backends import get_backend
    >>> tape = Tape()
    >>> a, v = tape.input("a", ()), tape.input("v", ())
    >>> tape.output("slope", jvp(a * a, a, v))
    >>> run = get_backend("numpy").compile(tape, "float64")
    >>> run({"a": np.array(3.0), "v": np.array(10.0)})["slope"]
    array([60.])
    """
    check_values(output=output, theta=theta, v=v)
    expected = f"the shape of theta, {theta.shape}"
    check_that(v.shape == theta.shape, "v", expected, v.shape)
    tape = output.tape
    between = _nodes_between(theta, output)
    # Tangents are new nodes, and this dictionary, which assigns them to values, lives
    # as long as this call. If a tangent were stored in the value itself, a nested
    # derivative would take it for its own (perturbation confusion). For example, the
    # derivative of x d/dy(x + y) with respect to x is 1, since d/dy(x + y) is 1. If
    # tangents were attributes of values, the inner derivative would also read the outer
    # tangent of x: its result would be 2, and the outer one too.
    tangents: dict[int, Value] = {theta.index: v}
    # In recorded order: a tangent is computed from the tangents of its arguments.
    for index in range(theta.index + 1, output.index + 1):
        if index not in between:
            continue
        out = tape.value(index)
        arguments = out.arguments
        # The product rule, for every primitive: the sum of one term for each argument,
        # in which this argument moves and the others stand still.
        terms: list[Value] = []
        for i, argument in enumerate(arguments):
            if argument.index in tangents:
                t = tangents[argument.index]
                part = out.primitive.jvp(i, t, out, *arguments, **out.attributes)
                if part is not None:
                    terms.append(part)
        if terms:
            tangents[index] = accumulate_cotangents(tape, terms)
    return tangents.get(output.index, tape.constant(0.0, output.shape))


# [/autodiff-jvp]


# [autodiff-hvp]
def hvp(loss: Value, theta: Value, v: Value) -> Value:
    """The Hessian-vector product H v of a scalar `loss`, without the Hessian.

    H v is how the gradient changes when theta moves with velocity v, the derivative of
    grad loss(theta + epsilon v) with respect to epsilon at 0. Returns a Value shaped
    like `theta`.

    With f = x^3 + x y, H = [[6 x, 1], [1, 0]]; at x = 2, H (1, 10) = (12 + 10, 1):

    >>> import numpy as np
    >>> from tinymaml.backends import get_backend
    >>> tape = Tape()
    >>> theta, v = tape.input("theta", (2,)), tape.input("v", (2,))
    >>> x, y = theta[0:1], theta[1:2]
    >>> tape.output("hvp", hvp((x * x * x + x * y).sum(), theta, v))
    >>> run = get_backend("numpy").compile(tape, "float64")
    >>> run({"theta": np.array([2.0, 9.0]), "v": np.array([1.0, 10.0])})["hvp"]
    array([[22.,  1.]])
    """
    # A gradient that is on the tape already is found there and not recorded again. The
    # tangents run through all of it. In the cotangent g b of a, where p = a b and g is
    # the cotangent of p, both factors move: if only the cotangents moved and not the
    # values b, the result would be the Gauss-Newton product instead of H v.
    return jvp(grad(loss, theta), theta, v)


# [/autodiff-hvp]


def accumulate_cotangents(tape: Tape, parts: Sequence[Value]) -> Value:
    """The sum of all contributions to one cotangent (or tangent), each of its shape.

    The cotangent of a slice of theta is a pad: its values among zeros. The layers of a
    network read slices that tile theta, so the sum of their pads is a concatenation.
    Recording it as one costs nothing, whereas a sum would add P numbers for each layer.
    """
    terms = [part for part in parts if part.primitive.name != "pad"]
    pads = [part for part in parts if part.primitive.name == "pad"]
    pads.sort(key=lambda pad: pad.attributes["start"])
    while pads:
        joined, pads = _join_pads(tape, pads, parts[0].size)
        terms.append(joined)
    # x * x contributes the same term twice: one factor 2 instead of a sum.
    counts = Counter(term.index for term in terms)
    total, *others = (tape.value(index) * count for index, count in counts.items())
    for term in others:
        total = total + term
    return total


def _join_pads(tape: Tape, pads: list[Value], size: int) -> tuple[Value, list[Value]]:
    """The sum (size,) of the pads that overlap no earlier one, and the other pads.

    They are sorted by their starts. The sum is what they hold, end to end, with zeros
    in the gaps.
    """
    vectors: list[Value] = []
    overlapping: list[Value] = []
    end = 0
    for pad in pads:
        start, vector = pad.attributes["start"], pad.arguments[0]
        if start < end:
            overlapping.append(pad)
            continue
        if start > end:
            vectors.append(tape.constant(0.0, (start - end,)))
        vectors.append(vector)
        end = start + vector.size
    if end < size:
        vectors.append(tape.constant(0.0, (size - end,)))
    return functions.concatenate(vectors), overlapping


def _nodes_between(theta: Value, output: Value) -> set[int]:
    """The nodes on some path from `theta` to `output`, both ends included.

    Only these have both a cotangent and a tangent to speak of: a node that does not
    depend on theta never moves, and one that the output does not read never matters.
    """
    if (kind := type(theta)) is not Value:  # ANIL's: a loss reads its parts instead.
        raise TypeError(f"theta: expected a Value, got {kind.__name__}; use MAML")
    tape, expected = output.tape, "a value that is read as it is, such as an input"
    came = f"{theta}, which was simplified away: use functions.rematerialise(theta)"
    needed = tape.ancestors([output.index], start=theta.index)
    # Where a node stands for one that reads theta, a path from theta is hidden.
    for index in needed & tape.stands_for.keys():
        check_that(theta.index not in tape.lost_by(index), "theta", expected, came)
    dependent = {theta.index}
    for index in range(theta.index + 1, output.index + 1):
        if any(i in dependent for i in tape.nodes[index].arguments):
            dependent.add(index)
    return dependent & needed
