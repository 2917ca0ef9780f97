"""Context vectors, appendix C.2: MAML that adapts free inputs and no weights.

    network = Network([Context(5), *MLP([2 + 5, 100, 2]).layers])
    alpha = network.vector(0.0, **{"context1.z": 0.5})     # only z has a learning rate
    maml = MAML(loss, alpha)

The network sees (x, z) in place of x. The vector z is a part of theta like any other,
so the outer loop learns it together with the weights. The inner loop is that of
`maml.py`; what differs from MAML is alpha, which is 0 for everything but z.

A z that starts from 0 in every task and is not learned is in `cavia.py`.
"""

from collections.abc import Sequence

import numpy as np

from tinymaml.autodiff.functions import concatenate
from tinymaml.autodiff.tape import Value, check_values
from tinymaml.checks import Array, check_that, whole_numbers
from tinymaml.networks.images import Conv2d, ImageNetwork, OmniglotConv
from tinymaml.networks.layers import Layer


class Context(Layer):
    """(x, z): free inputs z, the same for all examples, behind the last axis of x.

    shape: that of z: (S,) for examples (N, C), which become (N, C + S); (H, W, S) for
        images (N, H, W, C), which get S further channels.

    z starts at 0. Its name in a network is "context1.z".

    >>> Context(5), Context(28, 28, 1)
    (Context(z (5,)), Context(z (28, 28, 1)))
    """

    def __init__(self, *shape: int) -> None:
        check_that(shape, "shape", "at least one size", shape)
        self.shapes = {"z": whole_numbers("shape", shape)}

    def init(self, rng: np.random.Generator) -> list[Array]:
        """z = 0."""
        return [np.zeros(self.shapes["z"])]

    def __call__(self, parameters: Sequence[Value], x: Value) -> Value:
        """x (N, ..., C) and z (..., S), joined: (N, ..., C + S)."""
        (z,) = parameters
        check_values(x=x, z=z)
        sizes = z.shape[:-1]
        fits = len(x.shape) == len(z.shape) + 1 and x.shape[1:-1] == sizes
        expected = " ".join(["shape (N,", *(f"{size}," for size in sizes), "C)"])
        check_that(fits, "x", expected, x.shape)
        # [context-vector]
        repeated = z.broadcast_to((*x.shape[:-1], z.shape[-1]))
        return concatenate([x, repeated], axis=-1)
        # [/context-vector]


class OmniglotContext(ImageNetwork):
    """`OmniglotConv` whose images have a second channel, z (28, 28, 1).

    The inner loop of a recipe adapts z and nothing else.

    >>> OmniglotContext(ways=5).size
    113109
    """

    def __init__(self, ways: int, mode: str = "batch") -> None:
        _, *rest = OmniglotConv(ways, mode=mode).layers
        super().__init__([Context(28, 28, 1), Conv2d(2, 64, stride=2), *rest])

    def adapted_only(self, alpha: float, dtype: str = "float32") -> Array:
        """A vector (size,): alpha for z, 0 for every other parameter."""
        return self.vector(0.0, dtype, **{"context1.z": alpha})
