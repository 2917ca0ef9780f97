"""The sweeps: a tape walked backwards for gradients, forwards for tangents.

- `grad(loss, theta)` appends the adjoint operations: the gradient is just more tape.
- `jvp(output, theta, v)` appends tangent operations: the derivative of output along v.
- `hvp(loss, theta, v)` is the second of the first: the tangent of the gradient is H v
  (Pearlmutter's R-operator, 1994). No Hessian is formed, and every value the tangents
  need is already on the tape.

Cost, in matrix products of a dense layer: loss 1, gradient 2 more, H v 6 more, whatever
the number of parameters.

Why a tape is walked from its end: in `b = a + a; c = b * b` the cotangent of `b` must
be complete before it is handed on to `a`, and `a` is reached twice. A tape is in order,
so walking it in reverse always finds every contribution already made.
"""

from collections import Counter
from collections.abc import Sequence

from tinymaml.autodiff import functions
from tinymaml.autodiff.tape import Tape, Value


# [sweeps-grad]
def grad(loss: Value, theta: Value) -> Value:
    """The gradient of a scalar `loss` with respect to `theta`, appended to their tape.

    Returns a Value shaped like `theta`. Raises ValueError when the loss is not a
    scalar.

    >>> from tinymaml.autodiff.tape import Tape
    >>> theta = Tape().input("theta", (3,))
    >>> grad((theta * theta).sum(), theta)
    Value(scale, shape=(3,))
    """
    if not isinstance(loss, Value) or loss.size != 1:
        came = getattr(loss, "shape", type(loss).__name__)
        raise ValueError(f"loss: expected one number on a tape, got {came}")
    tape = loss.tape
    active = _depends_on(theta, loss)
    cotangents: dict[int, list[Value]] = {loss.index: [tape.constant(1.0, loss.shape)]}
    for index in range(loss.index, theta.index, -1):
        if index not in cotangents or index not in active:
            continue
        g = accumulate_cotangents(tape, cotangents.pop(index))
        primitive, indices, attributes, _ = tape.nodes[index]
        arguments = [tape.value(i) for i in indices]
        for i, argument in enumerate(arguments):
            if argument.index in active:
                out = tape.value(index)
                part = primitive.vjp(i, g, out, *arguments, **dict(attributes))
                if part is not None:
                    cotangents.setdefault(argument.index, []).append(part)
    if theta.index not in cotangents:
        return tape.constant(0.0, theta.shape)
    return accumulate_cotangents(tape, cotangents[theta.index])


# [/sweeps-grad]


# [sweeps-jvp]
def jvp(output: Value, theta: Value, v: Value) -> Value:
    """The derivative of `output` along the tangent `v` of `theta`, appended.

    `v` has the shape of `theta`; returns a Value shaped like `output`.
    """
    if v.shape != theta.shape:
        raise ValueError(
            f"v: expected the shape of theta, {theta.shape}, got {v.shape}"
        )
    tape = output.tape
    tape.check(v)
    active = _depends_on(theta, output)
    tangents: dict[int, Value] = {theta.index: v}
    for index in range(theta.index + 1, output.index + 1):
        if index not in active:
            continue
        primitive, indices, attributes, _ = tape.nodes[index]
        arguments = [tape.value(i) for i in indices]
        out = tape.value(index)
        parts = [
            primitive.jvp(i, tangents[j], out, *arguments, **dict(attributes))
            for i, j in enumerate(indices)
            if j in tangents
        ]
        known = [part for part in parts if part is not None]
        if known:
            tangents[index] = accumulate_cotangents(tape, known)
    return tangents.get(output.index, tape.constant(0.0, output.shape))


# [/sweeps-jvp]


# [sweeps-hvp]
def hvp(loss: Value, theta: Value, v: Value) -> Value:
    """The Hessian-vector product H v of a scalar `loss`, without the Hessian.

    H v = d/d epsilon grad loss(theta + epsilon v) at epsilon = 0: the tangent of the
    gradient. If the gradient is on the tape already it is not recorded again.
    """
    return jvp(grad(loss, theta), theta, v)


# [/sweeps-hvp]


def accumulate_cotangents(tape: Tape, parts: Sequence[Value]) -> Value:
    """The sum of the contributions that meet at one value.

    Contributions that went through slices arrive as pads. When these tile the vector,
    their sum is a concatenation, which costs nothing: this is how the gradients of all
    weight matrices become one flat gradient.
    """
    pads: list[tuple[int, Value]] = []
    rest: list[Value] = []
    for part in parts:
        node = tape.nodes[part.index]
        if node.primitive.name == "pad":
            start = dict(node.attributes)["start"]
            pads.append((start, tape.value(node.arguments[0])))
        else:
            rest.append(part)
    if pads:
        rest.append(
            _tile(tape, sorted(pads, key=lambda pad: pad[0]), parts[0].shape[0])
        )
    times = Counter(part.index for part in rest)  # x * x sends the same one back twice
    total, *others = (tape.value(index) * count for index, count in times.items())
    for part in others:
        total = total + part
    return total


def _tile(tape: Tape, pads: list[tuple[int, Value]], size: int) -> Value:
    """Padded pieces in the order of their starts, joined; gaps are zeros."""
    pieces: list[Value] = []
    end = 0
    overlapping: list[tuple[int, Value]] = []
    for start, piece in pads:
        if start < end:
            overlapping.append((start, piece))
            continue
        if start > end:
            pieces.append(tape.constant(0.0, (start - end,)))
        pieces.append(piece)
        end = start + piece.shape[0]
    if end < size:
        pieces.append(tape.constant(0.0, (size - end,)))
    joined = functions.concatenate(pieces)
    return joined + _tile(tape, overlapping, size) if overlapping else joined


def _depends_on(theta: Value, output: Value) -> set[int]:
    """The nodes through which `theta` reaches `output`, both included."""
    tape = output.tape
    tape.check(theta)
    below = {theta.index}
    for index in range(theta.index + 1, output.index + 1):
        if any(i in below for i in tape.nodes[index].arguments):
            below.add(index)
    above = {output.index}
    for index in range(output.index, theta.index, -1):
        if index in above:
            above.update(tape.nodes[index].arguments)
    return below & above
