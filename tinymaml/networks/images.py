"""Layers for images, and the classification networks of sections 5.2 and 6.1.

    network = OmniglotConv(ways=5)
    theta = network.init(np.random.default_rng(0))
    logits = network.predict(theta, images)   # (N, 28, 28, 1) -> (N, 5)

Images are arrays (N, H, W, C). Batch normalisation is written with the primitives of
the tape, so its derivatives of any order are exact, those through the batch's mean and
variance included.

Left out: running averages of statistics, which neither paper nor authors' code use.
"""

from collections.abc import Sequence

import numpy as np

from tinymaml.autodiff import convolution, functions
from tinymaml.autodiff.tape import Value
from tinymaml.checks import check_sizes
from tinymaml.networks.layers import (
    Activation,
    Array,
    Initialiser,
    Layer,
    Linear,
    Network,
    normal,
    truncated_normal,
    xavier_uniform,
)

MODES = ("batch", "support", "none")


# --- layers ---------------------------------------------------------------------------


class Conv2d(Layer):
    """Convolution with SAME padding: (N, H, W, C) -> (N, H / stride, W / stride, F).

    Weights (kernel, kernel, C, F). A bias before batch normalisation changes nothing,
    its gradient is exactly zero; so there is none unless it is asked for.
    """

    def __init__(
        self,
        channels: int,
        features: int,
        kernel: int = 3,
        stride: int = 1,
        bias: bool = False,
        initialiser: Initialiser | None = None,
    ) -> None:
        check_sizes(channels=channels, features=features, kernel=kernel, stride=stride)
        self.shapes = {"weight": (kernel, kernel, channels, features)}
        if bias:
            self.shapes["bias"] = (features,)
        self.stride = stride
        self.initialiser = initialiser or xavier_uniform()

    def init(self, rng: np.random.Generator) -> list[Array]:
        """Weights from the initialiser, biases 0."""
        weight, *bias = self.shapes.values()
        return [self.initialiser(rng, weight), *(np.zeros(shape) for shape in bias)]

    def __call__(self, parameters: Sequence[Value], x: Value) -> Value:
        """x convolved with the weights."""
        weight, *bias = parameters
        x = convolution.conv2d(x, weight, self.stride)
        return x + bias[0] if bias else x


class BatchNorm(Layer):
    """(x - mean) / sqrt(variance + epsilon) for each channel, the last axis; + beta.

    mode: whose mean and variance. "batch": those of the batch itself, so that query
    examples are normalised by each other, as in the paper: they are seen together
    (transductive). "support": those of the task's support examples, for the query too.
    "none": no normalisation, only beta and gamma.

    gamma: whether there is a factor as well, as in most other codes; the authors have
    none.
    """

    def __init__(
        self,
        channels: int,
        mode: str = "batch",
        gamma: bool = False,
        epsilon: float = 1e-3,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
        check_sizes(channels=channels)
        if not epsilon > 0:
            raise ValueError(f"epsilon: expected more than 0, got {epsilon}")
        self.shapes = {"beta": (channels,)}
        if gamma:
            self.shapes["gamma"] = (channels,)
        self.mode = mode
        self.epsilon = epsilon

    def init(self, rng: np.random.Generator) -> list[Array]:
        """beta 0, gamma 1."""
        return [
            np.full(shape, float(i)) for i, shape in enumerate(self.shapes.values())
        ]

    def __call__(
        self, parameters: Sequence[Value], x: Value, x_support: Value | None = None
    ) -> Value:
        """x normalised; in mode "support" by the statistics of x_support, if given."""
        for name, images in (("x", x), ("x_support", x_support)):
            if images is not None and images.shape[-1:] != self.shapes["beta"]:
                raise ValueError(
                    f"{name}: expected (..., C) with {self.shapes['beta'][0]} "
                    f"channels, got shape {images.shape}"
                )
        # [batch-norm]
        beta, *gamma = parameters
        rows = x.reshape(-1, x.shape[-1])
        if self.mode != "none":
            given = x_support if self.mode == "support" else None
            source = rows if given is None else given.reshape(-1, x.shape[-1])
            mean = source.mean(0)
            centred = source - mean
            variance = (centred * centred).mean(0)
            scale = functions.rsqrt(variance + self.epsilon)
            rows = (centred if given is None else rows - mean) * scale
        rows = rows * gamma[0] if gamma else rows
        return (rows + beta).reshape(*x.shape)
        # [/batch-norm]


class MaxPool(Layer):
    """The largest of every `size` by `size` elements; odd rests are left out."""

    def __init__(self, size: int = 2) -> None:
        check_sizes(size=size)
        self.size = size

    def __call__(self, parameters: Sequence[Value], x: Value) -> Value:
        """x pooled."""
        return convolution.max_pool(x, self.size)


class MeanPool(Layer):
    """The mean of every `size` by `size` elements, by default of the whole map."""

    def __init__(self, size: int | None = None) -> None:
        if size is not None:
            check_sizes(size=size)
        self.size = size

    def __call__(self, parameters: Sequence[Value], x: Value) -> Value:
        """x pooled."""
        return convolution.mean_pool(x, self.size)


class Flatten(Layer):
    """All axes but the first made one: (N, ...) -> (N, features)."""

    def __call__(self, parameters: Sequence[Value], x: Value) -> Value:
        """x as a matrix."""
        return x.reshape(x.shape[0], -1)


# --- networks -------------------------------------------------------------------------


class ImageNetwork(Network):
    """A network of images, told how to normalise the query examples."""

    def __call__(self, theta: Value, x: Value, x_support: Value | None = None) -> Value:
        """Logits (N, ways) for images x (N, H, W, C).

        With `x_support`, layers of mode "support" take its statistics: the support
        examples pass through the network beside x.
        """
        for layer, parameters in self.pieces(theta):
            if isinstance(layer, BatchNorm):
                x = layer(parameters, x, x_support)
            else:
                x = layer(parameters, x)
            if x_support is not None:
                x_support = layer(parameters, x_support)
        return x

    def adapted_only(self, alpha: float, dtype: str = "float32") -> Array:
        """alpha for every parameter but those of batch normalisation: 0 there.

        In the authors' code beta is meta-learned but not adapted.
        """
        fixed = {name: 0.0 for name in self.layout if name.startswith("batchnorm")}
        return self.vector(alpha, dtype, **fixed)


def classifier(inputs: int, ways: int, initialiser: Initialiser) -> Linear:
    """The last layer: one logit for each of N classes."""
    check_sizes(ways=ways)
    return Linear(inputs, ways, initialiser)


class OmniglotConv(ImageNetwork):
    """Four 3x3 convolutions of stride 2 to 64 features, and the mean of the 2x2 map.

    For 28x28x1 images. Convolution, batch normalisation, relu; Xavier weights, and a
    last layer drawn with deviation 1, as in the authors' code.

    >>> OmniglotConv(ways=5).size
    111749
    """

    def __init__(
        self, ways: int, features: int = 64, mode: str = "batch", gamma: bool = False
    ) -> None:
        layers: list[Layer] = []
        for channels in (1, features, features, features):
            layers += [
                Conv2d(channels, features, stride=2),
                BatchNorm(features, mode, gamma),
                Activation("relu"),
            ]
        last = classifier(features, ways, normal(1.0))
        super().__init__([*layers, MeanPool(), Flatten(), last])


class OmniglotFC(ImageNetwork):
    """The network without convolutions: 784-256-128-64-64-ways, normalised and relu.

    >>> OmniglotFC(ways=5).size
    247109
    """

    def __init__(self, ways: int, mode: str = "batch", gamma: bool = False) -> None:
        sizes = (784, 256, 128, 64, 64)
        layers: list[Layer] = [Flatten()]
        for inputs, outputs in zip(sizes[:-1], sizes[1:], strict=True):
            layers += [
                Linear(inputs, outputs, truncated_normal(0.01)),
                BatchNorm(outputs, mode, gamma),
                Activation("relu"),
            ]
        last = classifier(sizes[-1], ways, truncated_normal(0.01))
        super().__init__([*layers, last])


class MiniImagenetConv(ImageNetwork):
    """Four 3x3 convolutions to 32 features, each max-pooled: 84x84x3 -> 5x5x32 -> ways.

    >>> MiniImagenetConv(ways=5).size
    32645
    """

    def __init__(
        self, ways: int, features: int = 32, mode: str = "batch", gamma: bool = False
    ) -> None:
        layers: list[Layer] = []
        for channels in (3, features, features, features):
            layers += [
                Conv2d(channels, features),
                BatchNorm(features, mode, gamma),
                Activation("relu"),
                MaxPool(2),
            ]
        last = classifier(25 * features, ways, xavier_uniform())
        super().__init__([*layers, Flatten(), last])
