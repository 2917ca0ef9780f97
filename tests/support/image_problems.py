"""For the tests of images: layers in plain NumPy, small networks, and their tasks."""

from typing import NamedTuple

import numpy as np

import tinymaml as tm
from tests.support.running import run_tape
from tinymaml.autodiff.tape import Tape
from tinymaml.networks.images import ImageNetwork


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def on_numbers(function, *arrays, backend="numpy"):
    """A function of Values, evaluated for arrays."""
    tape = Tape()
    values = [tape.input(f"x{i}", a.shape) for i, a in enumerate(arrays)]
    tape.output("out", function(*values))
    return run_tape(tape, {f"x{i}": a for i, a in enumerate(arrays)}, backend)["out"][0]


# --- the layers in NumPy --------------------------------------------------------------


def published_padding(size, kernel, stride):
    """SAME by TensorFlow's documentation: output size, zeros before, zeros behind."""
    remainder = size % stride
    total = max(kernel - (stride if remainder == 0 else remainder), 0)
    return -(-size // stride), total // 2, total - total // 2


def direct(x, w, stride=1):
    """Convolution as a loop over the output's pixels."""
    shapes = zip(x.shape[1:3], w.shape[:2], strict=True)
    (height, top, below), (width, left, right) = (
        published_padding(n, k, stride) for n, k in shapes
    )
    x = np.pad(x, ((0, 0), (top, below), (left, right), (0, 0)))
    y = np.empty((len(x), height, width, w.shape[3]))
    for i, j in np.ndindex(height, width):
        rows = slice(i * stride, i * stride + w.shape[0])
        columns = slice(j * stride, j * stride + w.shape[1])
        y[:, i, j] = np.tensordot(x[:, rows, columns], w, 3)
    return y


def windows(x, size):
    """The windows of images, (N, H', W', size, size, C).

    Rows and columns beyond the last whole window are left out.
    """
    n, height, width, channels = x.shape
    x = x[:, : height // size * size, : width // size * size]
    shape = (n, height // size, size, width // size, size, channels)
    return x.reshape(shape).transpose(0, 1, 3, 2, 4, 5)


# --- a network and its tasks ----------------------------------------------------------


def small_network(mode="batch", bias=False, gamma=False):
    """Two convolutions, one of stride 2, and max-pooling, for images of 6x6x2."""
    return ImageNetwork(
        [
            tm.Conv2d(2, 3, stride=2, bias=bias),
            tm.BatchNorm(3, mode, gamma),
            tm.Activation("relu"),
            tm.Conv2d(3, 4, kernel=2, bias=bias),
            tm.BatchNorm(4, mode, gamma),
            tm.Activation("relu"),
            tm.MaxPool(2),
            tm.Flatten(),
            tm.Linear(4, 3),
        ]
    )


def pooled_network(mode="batch"):
    """Stride 1 and max-pooling, as the network for MiniImagenet."""
    return ImageNetwork(
        [
            tm.Conv2d(2, 3),
            tm.BatchNorm(3, mode),
            tm.Activation("relu"),
            tm.MaxPool(2),
            tm.Flatten(),
            tm.Linear(3 * 2 * 2, 3),
        ]
    )


def strided_network(mode="batch"):
    """Stride 2 and the mean of the last map, as the network for Omniglot."""
    return ImageNetwork(
        [
            tm.Conv2d(2, 3, stride=2),
            tm.BatchNorm(3, mode),
            tm.Activation("relu"),
            tm.Conv2d(3, 4, stride=2),
            tm.BatchNorm(4, mode),
            tm.Activation("relu"),
            tm.MeanPool(),
            tm.Flatten(),
            tm.Linear(4, 3),
        ]
    )


class ImageProblem(NamedTuple):
    """A network of images, a point theta and tasks of 3 classes, in float64."""

    network: ImageNetwork
    theta: np.ndarray
    tasks: tm.Tasks

    def loss(self, theta, x, y, x_support=None):
        """The loss of support examples, or with x_support that of query examples."""
        return tm.cross_entropy(self.network(theta, x, x_support), y)

    def maml(self, backend="numpy", alpha=0.3, **options):
        """MAML whose query loss gets the support examples, unless options say other."""
        options = {"reduction": "sum", "threads": 1, "query_loss": self.loss, **options}
        alpha = self.network.adapted_only(alpha, "float64")
        return tm.MAML(self.loss, alpha, backend=backend, **options)

    def cast(self, dtype):
        tasks = tm.Tasks(*(array.astype(dtype) for array in self.tasks))
        return self._replace(theta=self.theta.astype(dtype), tasks=tasks)


def image_problem(network, seed=1, tasks=2, size=5):
    """Tasks with 3 support and 6 query examples."""
    rng = np.random.default_rng(seed)
    theta = network.init(rng, "float64") + 0.2 * rng.standard_normal(network.size)
    arrays = []
    for n in (3, 6):
        labels = np.tile(np.arange(n) % 3, (tasks, 1))
        arrays += [rng.standard_normal((tasks, n, size, size, 2)), np.eye(3)[labels]]
    return ImageProblem(network, theta, tm.Tasks(*arrays))
