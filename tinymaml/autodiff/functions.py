"""What a loss is written with, besides operators: nonlinearities and joined vectors.

    hidden = functions.tanh(x @ weight + bias)
    loss = functions.logsumexp(hidden).mean()

Every function takes and returns `Value`s and records a primitive; nothing is computed.
What has an operator or a method in NumPy (`+`, `@`, `sum`, `reshape`) has it on `Value`
as well. Convolution and pooling are in `convolution.py`, losses in `tinymaml.losses`.
"""

from collections.abc import Sequence
from typing import Any

from tinymaml.autodiff.tape import Value, check_values
from tinymaml.checks import shown


def _record(name: str, x: Value, **attributes: Any) -> Value:
    """The value of a primitive of one argument."""
    check_values(x=x)
    return x.tape.record(name, x, **attributes)


def concatenate(vectors: Sequence[Value]) -> Value:
    """Vectors end to end: (P1,), (P2,), ... -> (P1 + P2 + ...,)."""
    if not isinstance(vectors, Sequence) or not vectors:
        raise ValueError(f"vectors: expected a list of vectors, got {shown(vectors)}")
    check_values(**{f"vectors[{i}]": vector for i, vector in enumerate(vectors)})
    if len(vectors) == 1 and len(vectors[0].shape) == 1:
        return vectors[0]
    return vectors[0].tape.record("concat", *vectors)


def relu(x: Value) -> Value:
    """max(x, 0), with slope 0 at 0."""
    return _record("relu", x)


def exp(x: Value) -> Value:
    """The exponential."""
    return _record("exp", x)


def log(x: Value) -> Value:
    """The natural logarithm."""
    return _record("log", x)


def tanh(x: Value) -> Value:
    """The hyperbolic tangent."""
    return _record("tanh", x)


def rsqrt(x: Value) -> Value:
    """1 / sqrt(x)."""
    return _record("rsqrt", x)


def logsumexp(x: Value) -> Value:
    """log(sum(exp(x))) over the last axis: (..., C) -> (..., 1)."""
    return _record("logsumexp", x)


def softmax(x: Value) -> Value:
    """exp(x) / sum(exp(x)) over the last axis: probabilities from logits."""
    return _record("softmax", x)


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
