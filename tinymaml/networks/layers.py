"""Layers and networks: functions of one flat parameter vector.

A network is a function f_theta(x) of a flat vector theta of `size` numbers and a batch
x of shape (N, inputs). MAML differentiates a loss with respect to theta as a whole, so
theta is one vector; the network knows which slice of it is which weight.

    network = MLP([1, 40, 40, 1])             # the network of section 5.1
    theta = network.init(np.random.default_rng(0))
    network.predict(theta, x)                 # arrays in, an array out

In a loss a network is called with Values: `network(theta, x)` records operations on
their tape and computes nothing.

Left out: layers for images, which are in `images.py`; recurrent layers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from math import prod, sqrt
from typing import Any, NoReturn

import numpy as np

from tinymaml.autodiff import functions
from tinymaml.autodiff.tape import Tape, Value, check_values
from tinymaml.backends import get_backend
from tinymaml.checks import (
    check_arrays,
    check_choice,
    check_dtype,
    check_function,
    check_generator,
    check_sizes,
    check_that,
    check_theta,
    real_number,
    shown,
    whole_numbers,
)

Array = np.ndarray[Any, Any]
Initialiser = Callable[[np.random.Generator, tuple[int, ...]], Array]
ACTIVATIONS = {
    name: getattr(functions, name)
    for name in ("relu", "tanh", "sigmoid", "softplus", "sin")
}


# --- initialisation -------------------------------------------------------------------

# Initialisers are functions of this file, some with an argument filled in, so that a
# network can be pickled and sent to another process. A function made within another
# could not.


def truncated_normal(std: float = 0.01) -> Initialiser:
    """Normal with standard deviation `std`, cut off at two of them, as the authors do.

    Numbers beyond the cut are drawn again, so the variance is 0.774 std^2. Raises
    TypeError if std is no number.

    >>> weights = truncated_normal(0.5)(np.random.default_rng(0), (100, 50))
    >>> print(weights.std().round(2), np.abs(weights).max() <= 2 * 0.5)
    0.44 True
    """
    return partial(_draw_truncated_normal, real_number("std", std))


def _draw_truncated_normal(
    std: float, rng: np.random.Generator, shape: tuple[int, ...]
) -> Array:
    array = rng.standard_normal(shape)
    while (beyond := np.abs(array) > 2).any():
        array[beyond] = rng.standard_normal(int(beyond.sum()))
    return std * array


def normal(std: float) -> Initialiser:
    """Normal with standard deviation `std`. Raises TypeError if it is no number.

    >>> print(normal(0.5)(np.random.default_rng(0), (100, 50)).std().round(2))
    0.5
    """
    return partial(_draw_normal, real_number("std", std))


def _draw_normal(std: float, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return std * rng.standard_normal(shape)


def he_normal() -> Initialiser:
    """Normal with variance 2 / inputs (He et al. 2015), suited to relu.

    >>> print(he_normal()(np.random.default_rng(0), (100, 50)).std().round(2))
    0.14
    """
    return _draw_he_normal


def _draw_he_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.standard_normal(shape) * sqrt(2 / prod(shape[:-1]))


def xavier_uniform() -> Initialiser:
    """Uniform with variance 2 / (inputs + outputs) (Glorot and Bengio 2010).

    Each input and output channel of a convolution counts once for each pixel of the
    kernel.

    >>> print(xavier_uniform()(np.random.default_rng(0), (100, 50)).std().round(2))
    0.12
    """
    return _draw_xavier_uniform


def _draw_xavier_uniform(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    *kernel, inputs, outputs = shape
    return rng.uniform(-1, 1, shape) * sqrt(6 / (prod(kernel) * (inputs + outputs)))


# --- layers ---------------------------------------------------------------------------


class ReadOnly:
    """An object whose attributes are set once: a program that was recorded with it
    would not notice a change.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name in vars(self):
            self._refuse(name)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> NoReturn:
        self._refuse(name)

    def _refuse(self, name: str) -> NoReturn:
        kind = type(self).__name__
        raise AttributeError(
            f"{name}: a {kind} cannot be changed, because what was recorded with it "
            f"would not notice; build a new {kind}"
        )


class Layer(ReadOnly):
    """A function of its own parameters and an input; most layers have no parameters.

    A layer of your own sets `shapes`, the shape of each parameter by name, and defines
    `init` and `__call__`.

    >>> Linear(2, 3), Activation("tanh")
    (Linear(weight (2, 3), bias (3,)), Activation(name='tanh'))
    """

    shapes: dict[str, tuple[int, ...]] = {}

    def init(self, rng: np.random.Generator) -> list[Array]:
        """Initial values of the parameters, in the order of `shapes`."""
        return []

    def __call__(self, parameters: Sequence[Value], x: Value) -> Value:
        """The layer's output for a batch x."""
        raise NotImplementedError

    def beside(self, parameters: Sequence[Value], x: Value, *support: Any) -> Value:
        """The output for x beside support examples, which batch norm looks at."""
        return self(parameters, x)

    def __repr__(self) -> str:
        shapes = [f"{name} {shape}" for name, shape in self.shapes.items()]
        options = [
            f"{name}={value!r}"
            for name, value in vars(self).items()
            if isinstance(value, int | float | str)
        ]
        return f"{type(self).__name__}({', '.join(shapes + options)})"


class Linear(Layer):
    """x W + b for x (N, inputs), W (inputs, outputs), b (outputs,).

    W comes from the initialiser, by default `he_normal()`, and b begins at 0. Raises
    ValueError or TypeError naming the argument; a call does where x does not fit.

    >>> Linear(2, 3)
    Linear(weight (2, 3), bias (3,))
    """

    def __init__(
        self, inputs: int, outputs: int, initialiser: Initialiser | None = None
    ) -> None:
        inputs, outputs = check_sizes(inputs=inputs, outputs=outputs)
        self.shapes = {"weight": (inputs, outputs), "bias": (outputs,)}
        chosen = he_normal() if initialiser is None else initialiser
        self.initialiser = check_function("initialiser", chosen)

    def init(self, rng: np.random.Generator) -> list[Array]:
        """Weights from the initialiser, biases 0."""
        weight, bias = self.shapes.values()
        return [self.initialiser(rng, weight), np.zeros(bias)]

    def __call__(self, parameters: Sequence[Value], x: Value) -> Value:
        """x W + b."""
        check_values(x=x)
        weight, bias = parameters
        fits = len(x.shape) == 2 and x.shape[1] == weight.shape[0]
        expected = f"shape (N, inputs) with {weight.shape[0]} inputs"
        check_that(fits, "x", expected, x.shape)
        return x @ weight + bias


class Activation(Layer):
    """A function of one value, element by element.

    name: "relu", "tanh", "sigmoid", "softplus" or "sin"; or a function of your own,
    from a Value to a Value of the same shape.

    >>> Activation(lambda x: x * functions.sigmoid(x)).shapes  # no parameters
    {}
    """

    def __init__(self, name: str | Callable[[Value], Value]) -> None:
        if not callable(name):
            check_choice("activation", name, ACTIVATIONS)
        self.name = name

    def __call__(self, parameters: Sequence[Value], x: Value) -> Value:
        """The activation of x."""
        result = (self.name if callable(self.name) else ACTIVATIONS[self.name])(x)
        fits = isinstance(result, Value) and result.shape == x.shape
        check_that(fits, "activation", f"a Value of shape {x.shape}", shown(result))
        return result


# --- networks -------------------------------------------------------------------------


class Network(ReadOnly):
    """A sequence of layers, whose parameters lie end to end in one vector theta.

    Attributes:
        layers: the layers.
        size: P, the number of parameters.
        layout: the slice of theta and the shape of each parameter, by its name.

    >>> network = Network([Linear(2, 3), Activation("tanh"), Linear(3, 1)])
    >>> network
    Network of 13 parameters
      9  Linear(weight (2, 3), bias (3,))
      0  Activation(name='tanh')
      4  Linear(weight (3, 1), bias (1,))
    >>> network.layout["linear1.bias"]
    (slice(6, 9, None), (3,))
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        right = isinstance(layers, Sequence)
        if not right or not all(isinstance(layer, Layer) for layer in layers):
            raise TypeError(f"layers: expected a list of layers, got {shown(layers)}")
        self.layers = tuple(layers)
        self.layout: dict[str, tuple[slice, tuple[int, ...]]] = {}
        size = 0
        counts: dict[str, int] = {}
        for layer in self.layers:
            kind = type(layer).__name__.lower()
            counts[kind] = counts.get(kind, 0) + 1
            for name, shape in layer.shapes.items():
                span = slice(size, size + prod(shape))
                self.layout[f"{kind}{counts[kind]}.{name}"] = (span, shape)
                size = span.stop
        self.size = size

    def __repr__(self) -> str:
        sizes = [sum(map(prod, layer.shapes.values())) for layer in self.layers]
        width = max((len(f"{size:,}") for size in sizes), default=0)
        rows = zip(sizes, self.layers, strict=True)
        lines = [f"  {size:{width},}  {layer}" for size, layer in rows]
        return "\n".join([f"{type(self).__name__} of {self.size:,} parameters", *lines])

    def init(self, rng: np.random.Generator, dtype: str = "float32") -> Array:
        """Initial parameters theta, shape (size,)."""
        check_generator(rng)
        # [alg2-line1]
        arrays = [array for layer in self.layers for array in layer.init(rng)]
        theta = np.concatenate([[], *map(np.ravel, arrays)]).astype(check_dtype(dtype))
        # [/alg2-line1]
        expected = [tuple(shape) for _, shape in self.layout.values()]
        came = [np.shape(array) for array in arrays]
        check_that(came == expected, "init", f"arrays of shapes {expected}", came)
        return theta

    def __call__(self, theta: Value, x: Value, x_support: Value | None = None) -> Value:
        """f_theta(x), recorded: theta (size,), x (N, inputs) -> (N, outputs).

        x_support: support examples, which `MAML.predict` passes to every network. They
        pass through the layers beside x, and batch normalisation of mode "support"
        takes their statistics. Without them it takes those of x.

        Raises TypeError for arrays, which `predict` is for.
        """
        check_network_inputs(theta, x, x_support)
        for layer, parameters in self.unpack(theta):
            x = layer.beside(parameters, x, x_support)
            if x_support is not None:
                x_support = layer(parameters, x_support)
        return x

    def unpack(self, theta: Value) -> Iterator[tuple[Layer, list[Value]]]:
        """Each layer with its own parameters, which are slices of theta."""
        check_values(theta=theta)
        shape = (self.size,)
        check_that(theta.shape == shape, "theta", f"shape {shape}", theta.shape)
        layout = iter(self.layout.values())
        for layer in self.layers:
            spans = [next(layout) for _ in layer.shapes]
            yield layer, [theta[span].reshape(*shape) for span, shape in spans]

    def predict(self, theta: Array, x: Array, x_support: Array | None = None) -> Array:
        """f_theta(x) of arrays: theta (size,), x (N, inputs) -> (N, outputs).

        All arrays have the dtype of theta. x_support: see `__call__`.

        >>> network = MLP([1, 4, 1])
        >>> network.predict(np.zeros(13), np.ones((5, 1))).shape
        (5, 1)
        """
        check_theta(theta, self.size, finite=False)
        arrays = {"theta": theta, "x": x}
        if x_support is not None:
            arrays["x_support"] = x_support
        check_arrays(**arrays)
        tape = Tape()
        values = [tape.input(name, array.shape) for name, array in arrays.items()]
        tape.output("prediction", self(*values))
        return get_backend("numpy").compile(tape, theta.dtype)(arrays)["prediction"][0]

    def unflatten(self, theta: Array, torch: bool = False) -> dict[str, Array]:
        """The parameters by name, as copies, in the shapes of `layout`.

        torch: in PyTorch's layout. There the last two axes of a weight come first, in
        reversed order: (inputs, outputs) -> (outputs, inputs), and (kernel, kernel, C,
        F) -> (F, C, kernel, kernel). Behind a `Flatten` of more than one pixel the
        inputs stay in the order (height, width, channels); PyTorch has channels first.

        >>> network = MLP([2, 1])
        >>> network.unflatten(np.array([1.0, 2.0, 3.0]), torch=True)
        {'linear1.weight': array([[1., 2.]]), 'linear1.bias': array([3.])}
        """
        check_theta(theta, self.size, finite=False)
        arrays = {n: theta[s].reshape(shape) for n, (s, shape) in self.layout.items()}
        return {
            name: (array.transpose(_torch_axes(array.ndim)) if torch else array).copy()
            for name, array in arrays.items()
        }

    def flatten(
        self, arrays: Mapping[str, Array], torch: bool = False, dtype: str = "float32"
    ) -> Array:
        """theta (size,) from all parameters by name: the way back of `unflatten`.

        Raises ValueError when a parameter is missing, unknown or of another shape.
        """
        same = sorted(arrays) == sorted(self.layout)
        check_that(same, "arrays", f"the parameters {[*self.layout]}", [*arrays])
        theta = np.empty(self.size, check_dtype(dtype))
        for name, (span, shape) in self.layout.items():
            array = np.asarray(arrays[name])
            if torch:
                array = array.transpose(np.argsort(_torch_axes(array.ndim)))
            check_that(array.shape == shape, name, f"shape {shape}", array.shape)
            theta[span] = array.ravel()
        return theta

    def vector(self, default: float, dtype: str = "float32", **values: float) -> Array:
        """One number for each parameter, shape (size,).

        `values` are numbers by name: of a parameter, of a layer, "head" (the last layer
        that has parameters) or "body" (all that are in front of it). A later name wins
        over an earlier one. All other parameters get `default`.

        >>> MLP([1, 2, 1]).vector(1.0, body=0.0, **{"linear1.bias": 0.5})
        array([0. , 0. , 0.5, 0.5, 1. , 1. , 1. ], dtype=float32)
        """
        default = real_number("default", default)
        vector = np.full(self.size, default, dtype=check_dtype(dtype))
        layers = self.layer_slices()
        spans = {name: span for name, (span, _) in self.layout.items()} | layers
        if layers:
            head = [*layers.values()][-1]
            spans |= {"head": head, "body": slice(0, head.start)}
        for name, value in values.items():
            check_choice("parameter", name, spans)
            vector[spans[name]] = real_number(name, value)
        return vector

    def alpha(
        self, default: float = 0.0, dtype: str = "float32", **rates: float
    ) -> Array:
        """An inner learning rate for each parameter, (size,): 0 where none is named.

        Names and rates as in `vector`. ANIL, for example, adapts only the last layer:

        >>> MLP([1, 2, 1]).alpha(head=0.1)
        array([0. , 0. , 0. , 0. , 0.1, 0.1, 0.1], dtype=float32)
        """
        return self.vector(default, dtype, **rates)

    def layer_slices(self) -> dict[str, slice]:
        """The slice of theta of each layer that has parameters, by its name.

        >>> MLP([1, 2, 1]).layer_slices()
        {'linear1': slice(0, 4, None), 'linear2': slice(4, 7, None)}
        """
        slices: dict[str, slice] = {}
        for name, (span, _) in self.layout.items():
            layer = name.partition(".")[0]
            slices[layer] = slice(slices.get(layer, span).start, span.stop)
        return slices


def _torch_axes(rank: int) -> tuple[int, ...]:
    """The axes of a parameter in PyTorch's order: the last two first, reversed."""
    axes = tuple(range(rank))
    return (*reversed(axes[-2:]), *axes[:-2])


def check_network_inputs(theta: Any, x: Any, x_support: Any = None) -> None:
    """Check that a network is called with Values, and say what to call with arrays."""
    inputs = {"theta": theta, "x": x, "x_support": x_support}
    if x_support is None:
        del inputs["x_support"]
    try:
        check_values(**inputs)
    except TypeError as error:
        call = "for arrays call network.predict(theta, x)"
        raise TypeError(f"{error}; {call}") from None


class MLP(Network):
    """A multilayer perceptron: linear layers of the given sizes, activations between.

    `MLP([1, 40, 40, 1])` is the paper's regression network. Its weights start from
    `truncated_normal(0.01)` in the authors' code; the default here is `he_normal()`.

    >>> MLP([1, 40, 40, 1]).size
    1761
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: str | Callable[[Value], Value] = "relu",
        initialiser: Initialiser | None = None,
    ) -> None:
        sizes = whole_numbers("sizes", sizes)
        check_that(len(sizes) > 1, "sizes", "inputs and outputs at least", sizes)
        self.sizes, self.activation, self.initialiser = sizes, activation, initialiser
        layers: list[Layer] = []
        for inputs, outputs in zip(sizes[:-1], sizes[1:], strict=True):
            layers += [Linear(inputs, outputs, initialiser), Activation(activation)]
        super().__init__(layers[:-1])
