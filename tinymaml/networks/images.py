"""Layers for images, and the classification networks of section 5.2.

    network = OmniglotConv(ways=5)
    theta = network.init(np.random.default_rng(0))
    logits = network.predict(theta, images)   # (N, 28, 28, 1) -> (N, 5)

Images are arrays (N, H, W, C): N images, height, width, channels. Batch normalisation
is written with the primitives of the tape. Its derivatives of any order are exact, also
those that pass through the mean and the variance of the batch.

Left out: running averages of the statistics, which neither the paper nor the authors'
code use.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinymaml.autodiff import convolution, functions
from tinymaml.autodiff.tape import Value, check_values
from tinymaml.checks import (
    check_choice,
    check_flags,
    check_function,
    check_sizes,
    check_that,
    real_number,
    whole_number,
)
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
    """Convolution with SAME padding: (N, H, W, C) -> (N, H', W', F).

    H' = H / stride, rounded up, and W' too. Weights (kernel, kernel, C, F). bias:
    whether a bias (F,) is added. By default it is not, because a bias before batch
    normalisation changes nothing: its gradient is exactly zero.

    >>> Conv2d(1, 64, stride=2)
    Conv2d(weight (3, 3, 1, 64), stride=2)
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
        channels, features = check_sizes(channels=channels, features=features)
        kernel, self.stride = check_sizes(kernel=kernel, stride=stride)
        check_flags(bias=bias)
        self.shapes = {"weight": (kernel, kernel, channels, features)}
        if bias:
            self.shapes["bias"] = (features,)
        chosen = xavier_uniform() if initialiser is None else initialiser
        self.initialiser = check_function("initialiser", chosen)

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
    """(x - mean) / sqrt(variance + epsilon) + beta, for each channel (the last axis).

    mode: which examples give the mean and the variance. "batch": the batch x itself, as
        in the authors' code. Query examples are then normalised by each other, so that
        the prediction for one depends on all of them (transductive). "support": the
        support examples of the task, for the query examples too. "none": no
        normalisation, only beta and gamma.
    gamma: whether a parameter gamma multiplies the result before beta is added, as in
        most other implementations; the authors' code has none.

    Raises ValueError or TypeError naming the argument; a call does where x has another
    number of channels. Source: Ioffe and Szegedy (2015), without running statistics.

    >>> import tinymaml as tm
    >>> network = tm.Network([BatchNorm(1, epsilon=1e-9)])  # theta is beta, (1,)
    >>> network.predict(np.full(1, 5.0), np.array([[1.0], [3.0]])).round(3)
    array([[4.], [6.]])
    """

    def __init__(
        self,
        channels: int,
        mode: str = "batch",
        gamma: bool = False,
        epsilon: float = 1e-3,
    ) -> None:
        check_choice("mode", mode, MODES)
        (channels,) = check_sizes(channels=channels)
        check_flags(gamma=gamma)
        fits = real_number("epsilon", epsilon) > 0
        check_that(fits, "epsilon", "more than 0", epsilon)
        self.shapes = {"beta": (channels,)}
        if gamma:
            self.shapes["gamma"] = (channels,)
        self.mode, self.epsilon = mode, epsilon

    def init(self, rng: np.random.Generator) -> list[Array]:
        """beta 0, gamma 1."""
        beta, *gamma = self.shapes.values()
        return [np.zeros(beta), *map(np.ones, gamma)]

    def beside(self, parameters: Sequence[Value], x: Value, *support: Any) -> Value:
        """x normalised, in mode "support" by the support examples."""
        return self(parameters, x, *support)

    def __call__(
        self, parameters: Sequence[Value], x: Value, x_support: Value | None = None
    ) -> Value:
        """x normalised; in mode "support" by the statistics of x_support, if given."""
        for name, images in (("x", x), ("x_support", x_support)):
            if images is not None:
                fits = images.shape[-1:] == self.shapes["beta"]
                expected = f"(..., C) with {self.shapes['beta'][0]} channels"
                check_that(fits, name, expected, f"shape {images.shape}")
        # [batch-norm]
        beta, *gamma = parameters
        pixels = x.reshape(-1, x.shape[-1])  # (N, H, W, C) -> (N*H*W, C)
        if self.mode != "none":
            support = x_support if self.mode == "support" else None
            source = pixels if support is None else support.reshape(-1, x.shape[-1])
            mean = source.mean(0)
            centred = source - mean
            # The mean of many pixels is rounded, by more than small differences between
            # them. What is left of it is 0 but for rounding, so it has no derivative.
            rest = functions.stop_gradient(centred.mean(0))
            centred = centred - rest
            variance = (centred * centred).mean(0)
            scale = functions.rsqrt(variance + self.epsilon)
            pixels = (centred if support is None else pixels - mean - rest) * scale
        pixels = pixels * gamma[0] if gamma else pixels
        return (pixels + beta).reshape(*x.shape)
        # [/batch-norm]


class MaxPool(Layer):
    """The largest element of each window of `size` by `size` pixels.

    Rows and columns beyond the last whole window are left out. Raises ValueError or
    TypeError naming the argument; a call does where x has no whole window.

    >>> import tinymaml as tm
    >>> f = tm.function(lambda x: MaxPool()([], x.reshape(1, 2, 4, 1)), "numpy")
    >>> f(np.arange(8.0)).ravel()
    array([5., 7.])
    """

    def __init__(self, size: int = 2) -> None:
        self.size = whole_number("size", size)

    def __call__(self, parameters: Sequence[Value], x: Value) -> Value:
        """x pooled."""
        return convolution.max_pool(x, self.size)


class MeanPool(Layer):
    """The mean of each window of `size` by `size` pixels, by default of all pixels.

    A call raises ValueError where `size` does not divide height and width; MaxPool
    leaves the rest out.

    >>> import tinymaml as tm
    >>> f = tm.function(lambda x: MeanPool()([], x.reshape(1, 2, 4, 1)), "numpy")
    >>> f(np.arange(8.0)).ravel()
    array([3.5])
    """

    def __init__(self, size: int | None = None) -> None:
        self.size = size if size is None else whole_number("size", size)

    def __call__(self, parameters: Sequence[Value], x: Value) -> Value:
        """x pooled."""
        return convolution.mean_pool(x, self.size)


class Flatten(Layer):
    """All axes but the first joined to one: (N, ...) -> (N, features).

    A call raises ValueError where x has no axes.

    >>> import tinymaml as tm
    >>> f = tm.function(lambda x: Flatten()([], x.reshape(2, 2, 2, 1)), "numpy")
    >>> f(np.arange(8.0)).shape
    (2, 4)
    """

    def __call__(self, parameters: Sequence[Value], x: Value) -> Value:
        """x as a matrix."""
        check_values(x=x)
        check_that(x.shape, "x", "shape (N, ...)", ())
        return x.reshape(x.shape[0], -1)


# --- networks -------------------------------------------------------------------------


class ImageNetwork(Network):
    """A network from images (N, H, W, C) to logits (N, ways).

    >>> layers = [Conv2d(1, 4, stride=2), BatchNorm(4), Flatten(), Linear(4, 5)]
    >>> network = ImageNetwork(layers)  # for images of 2 x 2 pixels
    >>> theta = network.init(np.random.default_rng(0))
    >>> network.predict(theta, np.ones((3, 2, 2, 1), np.float32)).shape
    (3, 5)
    """

    def adapted_only(self, alpha: float, dtype: str = "float32") -> Array:
        """A vector (size,): 0 for the parameters of batch normalisation, else alpha.

        In the authors' code beta is meta-learned, but the inner loop does not adapt it.

        >>> network = ImageNetwork([BatchNorm(2), Flatten(), Linear(2, 1)])
        >>> network.adapted_only(0.4)  # beta, then weights and bias
        array([0. , 0. , 0.4, 0.4, 0.4], dtype=float32)
        """
        fixed = {name: 0.0 for name in self.layout if name.startswith("batchnorm")}
        return self.vector(alpha, dtype, **fixed)


def _normalised(layer: Layer, features: int, mode: str, gamma: bool) -> list[Layer]:
    """The layer, and batch normalisation and relu after it."""
    return [layer, BatchNorm(features, mode, gamma), Activation("relu")]


class OmniglotConv(ImageNetwork):
    """Four 3x3 convolutions of stride 2 to 64 features, and the mean of the 2x2 map.

    For images of 28x28x1. Each convolution is followed by batch normalisation and relu.
    Weights start from `xavier_uniform()`, and those of the last layer from
    `normal(1.0)`, as in the authors' code.

    >>> OmniglotConv(ways=5).size
    111749
    """

    def __init__(
        self, ways: int, features: int = 64, mode: str = "batch", gamma: bool = False
    ) -> None:
        ways, features = check_sizes(ways=ways, features=features)
        layers: list[Layer] = []
        for channels in (1, features, features, features):
            conv = Conv2d(channels, features, stride=2)
            layers += _normalised(conv, features, mode, gamma)
        last = Linear(features, ways, normal(1.0))
        super().__init__([*layers, MeanPool(), Flatten(), last])


class OmniglotFC(ImageNetwork):
    """The network without convolutions: linear layers 784-256-128-64-64-ways.

    Every layer but the last is followed by batch normalisation and relu.

    >>> OmniglotFC(ways=5).size
    247109
    """

    def __init__(self, ways: int, mode: str = "batch", gamma: bool = False) -> None:
        check_sizes(ways=ways)
        sizes = (784, 256, 128, 64, 64)
        layers: list[Layer] = [Flatten()]
        for inputs, outputs in zip(sizes[:-1], sizes[1:], strict=True):
            linear = Linear(inputs, outputs, truncated_normal(0.01))
            layers += _normalised(linear, outputs, mode, gamma)
        super().__init__([*layers, Linear(sizes[-1], ways, truncated_normal(0.01))])


class MiniImagenetConv(ImageNetwork):
    """Four 3x3 convolutions to 32 features, each max-pooled: 84x84x3 -> 5x5x32 -> ways.

    Between convolution and pooling are batch normalisation and relu.

    >>> MiniImagenetConv(ways=5).size
    32645
    """

    def __init__(
        self, ways: int, features: int = 32, mode: str = "batch", gamma: bool = False
    ) -> None:
        ways, features = check_sizes(ways=ways, features=features)
        layers: list[Layer] = []
        for channels in (3, features, features, features):
            conv = Conv2d(channels, features)
            layers += [*_normalised(conv, features, mode, gamma), MaxPool(2)]
        last = Linear(25 * features, ways, xavier_uniform())
        super().__init__([*layers, Flatten(), last])
