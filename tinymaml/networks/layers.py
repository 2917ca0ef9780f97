"""Layers and networks: functions of one flat parameter vector.

A network is a function f_theta(x) of a flat vector theta of `size` numbers and a batch
x of shape (N, inputs). Written on `Value`s it records on a tape; its layers say which
slice of theta is which weight.

    network = MLP([1, 40, 40, 1])             # the regression net of section 5.1
    theta = network.init(np.random.default_rng(0))
    network.predict(theta, x)                 # numbers in, numbers out

Left out: layers for images, which are in `convnets.py`; recurrent layers.
"""

from collections.abc import Callable, Iterator, Sequence
from math import prod, sqrt
from typing import Any

import numpy as np

from tinymaml.autodiff import functions
from tinymaml.autodiff.tape import Tape, Value
from tinymaml.checks import check_dtype, check_sizes

Array = np.ndarray[Any, Any]
Initialiser = Callable[[np.random.Generator, tuple[int, ...]], Array]
ACTIVATIONS = {"relu": functions.relu, "tanh": functions.tanh}


# --- initialisation -------------------------------------------------------------------


def truncated_normal(sd: float = 0.01) -> Initialiser:
    """Normal, deviation `sd`, redrawn beyond two of them: the authors' choice."""

    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        array = rng.standard_normal(shape)
        while (far := np.abs(array) > 2).any():
            array[far] = rng.standard_normal(int(far.sum()))
        return sd * array

    return draw


def normal(sd: float) -> Initialiser:
    """Normal with deviation `sd`."""
    return lambda rng, shape: sd * rng.standard_normal(shape)


def he_normal() -> Initialiser:
    """Normal with variance 2 / inputs (He et al. 2015), suited to relu."""
    return lambda rng, shape: rng.standard_normal(shape) * sqrt(2 / prod(shape[:-1]))


def xavier_uniform() -> Initialiser:
    """Uniform with variance 2 / (inputs + outputs) (Glorot and Bengio 2010).

    The inputs and outputs of a convolution count once for each tap of its kernel.
    """

    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        *taps, inputs, outputs = shape
        return rng.uniform(-1, 1, shape) * sqrt(6 / (prod(taps) * (inputs + outputs)))

    return draw


# --- layers ---------------------------------------------------------------------------


class Layer:
    """A function of its own parameters and an input; most layers have no parameters."""

    shapes: dict[str, tuple[int, ...]] = {}

    def init(self, rng: np.random.Generator) -> list[Array]:
        """Starting values, in the order of `shapes`."""
        return []

    def __call__(self, parameters: Sequence[Value], x: Value) -> Value:
        """The layer's output for a batch x."""
        raise NotImplementedError


class Linear(Layer):
    """x W + b for x (N, inputs), W (inputs, outputs), b (outputs); b starts at 0."""

    def __init__(
        self, inputs: int, outputs: int, initialiser: Initialiser | None = None
    ) -> None:
        check_sizes(inputs=inputs, outputs=outputs)
        self.shapes = {"weight": (inputs, outputs), "bias": (outputs,)}
        self.initialiser = initialiser or he_normal()

    def init(self, rng: np.random.Generator) -> list[Array]:
        """Weights from the initialiser, biases 0."""
        weight, bias = self.shapes.values()
        return [self.initialiser(rng, weight), np.zeros(bias)]

    def __call__(self, parameters: Sequence[Value], x: Value) -> Value:
        """x W + b."""
        weight, bias = parameters
        if len(x.shape) != 2 or x.shape[1] != weight.shape[0]:
            raise ValueError(
                f"x: expected shape (N, inputs) with {weight.shape[0]} inputs, "
                f"got {x.shape}"
            )
        return x @ weight + bias


class Activation(Layer):
    """relu or tanh, element by element."""

    def __init__(self, name: str) -> None:
        if name not in ACTIVATIONS:
            raise ValueError(
                f"activation: expected one of {[*ACTIVATIONS]}, got {name!r}"
            )
        self.function = ACTIVATIONS[name]

    def __call__(self, parameters: Sequence[Value], x: Value) -> Value:
        """The activation of x."""
        return self.function(x)


class Network:
    """Layers one after the other, their parameters end to end in one vector theta.

    >>> network = Network([Linear(2, 3), Activation("tanh"), Linear(3, 1)])
    >>> network.size
    13
    >>> network.layout["linear1.bias"]
    (slice(6, 9, None), (3,))
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = list(layers)
        self.layout: dict[str, tuple[slice, tuple[int, ...]]] = {}
        self.size = 0
        counts: dict[str, int] = {}
        for layer in self.layers:
            kind = type(layer).__name__.lower()
            counts[kind] = counts.get(kind, 0) + 1
            for name, shape in layer.shapes.items():
                piece = slice(self.size, self.size + prod(shape))
                self.layout[f"{kind}{counts[kind]}.{name}"] = (piece, shape)
                self.size = piece.stop

    def init(self, rng: np.random.Generator, dtype: str = "float32") -> Array:
        """Starting parameters theta, shape (size,)."""
        # [alg2-line1]
        arrays = [array.ravel() for layer in self.layers for array in layer.init(rng)]
        return np.concatenate([np.zeros(0), *arrays]).astype(check_dtype(dtype))
        # [/alg2-line1]

    def __call__(self, theta: Value, x: Value) -> Value:
        """f_theta(x), recorded: theta (size,), x (N, inputs) -> (N, outputs)."""
        for layer, parameters in self.pieces(theta):
            x = layer(parameters, x)
        return x

    def pieces(self, theta: Value) -> Iterator[tuple[Layer, list[Value]]]:
        """Each layer with its own parameters, cut out of theta."""
        if theta.shape != (self.size,):
            raise ValueError(f"theta: expected shape ({self.size},), got {theta.shape}")
        places = iter(self.layout.values())
        for layer in self.layers:
            named = [next(places) for _ in layer.shapes]
            yield layer, [theta[piece].reshape(*shape) for piece, shape in named]

    def predict(self, theta: Array, x: Array) -> Array:
        """f_theta(x) in numbers: theta (size,), x (N, inputs), of one dtype.

        >>> network = MLP([1, 4, 1])
        >>> network.predict(np.zeros(13), np.ones((5, 1))).shape
        (5, 1)
        """
        from tinymaml.backends import get_backend

        tape = Tape()
        inputs = (tape.input("theta", theta.shape), tape.input("x", x.shape))
        tape.output("prediction", self(*inputs))
        run = get_backend("numpy").compile(tape, theta.dtype)
        return run({"theta": theta, "x": x})["prediction"][0]

    def vector(self, default: float, dtype: str = "float32", **values: float) -> Array:
        """One number per parameter: `values` by parameter name, `default` elsewhere.

        The way to write a per-parameter alpha. Only the last layer adapted (ANIL):

        >>> network = MLP([1, 2, 1])
        >>> network.vector(0.0, **{"linear2.weight": 0.1, "linear2.bias": 0.1})
        array([0. , 0. , 0. , 0. , 0.1, 0.1, 0.1], dtype=float32)
        """
        vector = np.full(self.size, default, dtype=check_dtype(dtype))
        for name, value in values.items():
            if name not in self.layout:
                raise ValueError(
                    f"parameter: expected one of {[*self.layout]}, got {name!r}"
                )
            vector[self.layout[name][0]] = value
        return vector


class MLP(Network):
    """Linear layers of the given sizes with an activation between them.

    `MLP([1, 40, 40, 1])` is the paper's regression net; the authors start its weights
    from `truncated_normal(0.01)`, the default here is `he_normal()`.

    >>> MLP([1, 40, 40, 1]).size
    1761
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: str = "relu",
        initialiser: Initialiser | None = None,
    ) -> None:
        if len(sizes) < 2:
            raise ValueError(
                f"sizes: expected inputs and outputs at least, got {sizes}"
            )
        layers: list[Layer] = []
        for inputs, outputs in zip(sizes[:-1], sizes[1:], strict=True):
            layers += [Linear(inputs, outputs, initialiser), Activation(activation)]
        super().__init__(layers[:-1])
