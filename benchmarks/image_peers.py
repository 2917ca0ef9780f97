"""What the peers of the image benchmark share: settings, layouts, forms.

    workload = image_peers_torch.loop_workload(theta, tasks, settings, form, device)
    workload.read(workload.call())       # [loss, gradient ...], in the order of theta

The convolutional networks of section 5.2, and MAML of them, are in
`image_peers_torch.py` and `image_peers_jax.py`.

Every peer divides tinymaml's flat theta once into arrays of its own layout, and returns
the mean query loss with its gradient in these arrays. The inner loop differentiates
only with respect to the adapted parameters, not to beta of batch normalisation.

`form` names one of several good ways to write the same function; the benchmark keeps
the fastest. "patches" is a convolution written as a matrix product with copied patches:
under vmap each task has weights of its own, and a batch of matrix products is often
faster than a grouped convolution.

Left out: the optimiser.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.devices import flatten, unflatten

Array = np.ndarray[Any, Any]
Tensors = Sequence[Any]
Loss = Callable[[Tensors, Any, Any], Any]
EPSILON = 1e-3
# The likely best first: with --quick it is the only one.
LOOP_FORMS = ("contiguous", "channels last", "patches")
BATCHES = ("grad of vmap", "vmap of grad")
VMAP_FORMS = (
    f"{BATCHES[0]}, patches",
    f"{BATCHES[1]}, patches",
    f"{BATCHES[0]}, convolution",
)
MAP_FORMS = ("loop, patches", "map, patches", "map, convolution")
AXES = (None, 0, 0, 0, 0)  # parameters are shared, the tasks' arrays are not


class Settings(NamedTuple):
    """The network, given by the shapes of its parameters, and the settings of MAML."""

    shapes: tuple[tuple[int, ...], ...]  # of the parameters, in the order of theta
    pooled: bool  # stride 1 and max-pooling, instead of stride 2 and a mean at the end
    shots: int
    alpha: float
    steps: int
    order: int

    @property
    def stride(self) -> int:
        """The stride of every convolution."""
        return 1 if self.pooled else 2

    @property
    def adapted(self) -> list[int]:
        """The parameters that the inner loop changes: all weights, the last bias."""
        last = len(self.shapes) - 1
        return [i for i, s in enumerate(self.shapes) if len(s) > 1 or i == last]


def same_padding(size: int, stride: int) -> tuple[int, int]:
    """The zeros before and after an axis for a kernel of 3, by TensorFlow's rule."""
    total = max((-(-size // stride) - 1) * stride + 3 - size, 0)
    return total // 2, total - total // 2


# --- layouts --------------------------------------------------------------------------


def parameters_of(theta: Array, settings: Settings) -> list[Array]:
    """theta as arrays: kernels (3, 3, C, F), the last weight (inputs, ways)."""
    return unflatten(theta, settings.shapes)


def torch_layout(arrays: Sequence[Array], settings: Settings) -> list[Array]:
    """Kernels as (F, C, 3, 3); the last weight for features in the order C, H, W."""
    result = [a.transpose(3, 2, 0, 1) if a.ndim == 4 else a for a in arrays]
    if settings.pooled:
        weight, channels = result[-2], settings.shapes[-3][0]
        maps = weight.reshape(-1, channels, weight.shape[1])
        result[-2] = maps.transpose(1, 0, 2).reshape(weight.shape)
    return [np.ascontiguousarray(a) for a in result]


def from_torch_layout(arrays: Sequence[Array], settings: Settings) -> list[Array]:
    """The inverse of `torch_layout`."""
    result = [a.transpose(2, 3, 1, 0) if a.ndim == 4 else a for a in arrays]
    if settings.pooled:
        weight, channels = result[-2], settings.shapes[-3][0]
        maps = weight.reshape(channels, -1, weight.shape[1])
        result[-2] = maps.transpose(1, 0, 2).reshape(weight.shape)
    return result


def flatten_result(loss: Any, arrays: Sequence[Array]) -> Array:
    """[loss, gradient ...] as one flat array, which is what a worker sends."""
    return flatten([loss, *arrays])


def replace_adapted(parameters: Tensors, values: Tensors, adapted: list[int]) -> list:
    """The parameters, with new values for the adapted ones."""
    merged = list(parameters)
    for i, value in zip(adapted, values, strict=True):
        merged[i] = value
    return merged
