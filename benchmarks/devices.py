"""Where an implementation computes, and how it gets its arrays: `device` in a request.

    ""      the processor; a peer's tensors are made once, nothing is copied in a call
    "cuda"  the graphics card, from arrays on the host to a gradient on the host
    "cpu"   the same as "cuda" without a card: for tests

On a GPU all implementations do what tinymaml does for its user: each call copies
parameters and tasks to the card and the gradient back, and ends when the gradient has
arrived, so that the clock is read after the card has finished. The peers copy as fast
as they can: parameters in one piece, the result in one piece, PyTorch from page-locked
memory.

Products of float32 matrices are in float32 for all, or in TF32 for all (`tf32`).

Left out: several cards, and data that stay on the card from one call to the next.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from benchmarks.common import Array
from benchmarks.peers import Gradient
from benchmarks.workers import Workload

# Sizes of the square matrices whose product is the peak: large enough for the device.
PEAK_SIZES = {"": 1024, "cpu": 256, "cuda": 8192}


def environment(device: str, tf32: bool) -> dict[str, str]:
    """The environment variables that a process needs before it imports a library."""
    if device != "cuda":
        return {}
    return {
        "JAX_PLATFORMS": "cuda",
        # By default JAX reserves three quarters of a card that the other workers share.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        # JAX's default is TF32 on cards that have it.
        "JAX_DEFAULT_MATMUL_PRECISION": "tensorfloat32" if tf32 else "highest",
        "CUPY_TF32": "1" if tf32 else "0",
    }


def unflatten(flat: Any, shapes: Sequence[tuple[int, ...]]) -> list[Any]:
    """A flat array divided into arrays of these shapes.

    >>> [array.tolist() for array in unflatten(np.arange(5), [(2, 2), (1,)])]
    [[[0, 1], [2, 3]], [4]]
    """
    stops = np.cumsum([0, *(prod(shape) for shape in shapes)])
    return [
        flat[start:stop].reshape(shape)
        for start, stop, shape in zip(stops[:-1], stops[1:], shapes, strict=True)
    ]


def flatten(arrays: Sequence[Any]) -> Array:
    """Arrays of any library, or numbers, as one flat NumPy array."""
    return np.concatenate([np.ravel(np.asarray(array)) for array in arrays])


def matmul_peak(device: str) -> Workload:
    """A large float32 matrix product by NumPy or CuPy: the peak speed of the device."""
    size = PEAK_SIZES[device]
    a, b = np.random.default_rng(0).random((2, size, size), np.float32)
    if device != "cuda":
        out = np.empty_like(a)
        return Workload(
            lambda: np.matmul(a, b, out=out), lambda product: product[0, :1]
        )
    import cupy

    a, b = cupy.asarray(a), cupy.asarray(b)
    out = cupy.empty_like(a)

    def call() -> Any:
        cupy.matmul(a, b, out=out)
        cupy.cuda.get_current_stream().synchronize()
        return out

    return Workload(call, lambda product: cupy.asnumpy(product[0, :1]))


# --- tinymaml -------------------------------------------------------------------------


def tinymaml_workload(
    maml: Any, theta: Array, arrays: Sequence[Array], read: Callable[[Any], Array]
) -> Workload:
    """A meta-gradient as a user asks for it, NumPy arrays in and out."""
    from tinymaml import Tasks

    tasks = Tasks(*arrays)

    def launches() -> int | None:
        program = maml.backend.compile(maml.tape(theta, tasks), theta.dtype)
        return getattr(
            program, "launches", None
        )  # backends on the processor launch no kernels

    return Workload(lambda: maml.meta_gradient(theta, tasks), read, launches=launches)


# --- PyTorch --------------------------------------------------------------------------


def torch_workload(
    function: Gradient,
    parameters: Sequence[Any],
    tasks: Sequence[Any],
    device: str,
    tf32: bool = False,
    arrange: Callable[[Array], Array] = lambda flat: flat,
) -> Workload:
    """A function of tensors that returns a list of tensors, on a device.

    parameters, tasks: tensors on the host, in the layout that the function wants.
    arrange: a function from the flat result to the array that the worker sends.
    """
    import torch

    if not device:
        return Workload(
            lambda: function(parameters, tasks), lambda result: arrange(flatten(result))
        )
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32  # convolutions; PyTorch's default is True
    torch.backends.cudnn.benchmark = True  # the fastest algorithm, tried at first use
    in_memory = [p.as_strided((p.numel(),), (1,)) for p in parameters]
    host = [torch.cat(in_memory), *tasks]
    starts = np.cumsum([0, *(p.numel() for p in parameters)]).tolist()
    layout = [
        (p.shape, p.stride(), s) for p, s in zip(parameters, starts[:-1], strict=True)
    ]
    if device == "cuda":
        host = [tensor.pin_memory() for tensor in host]

    def call() -> Any:
        theta, *copied = (tensor.to(device, non_blocking=True) for tensor in host)
        result = function([theta.as_strided(*view) for view in layout], copied)
        return torch.cat([tensor.reshape(-1) for tensor in result]).cpu()

    return Workload(
        call, lambda flat: arrange(flat.numpy()), launches=lambda: torch_launches(call)
    )


def torch_launches(call: Callable[[], Any]) -> int | None:
    """The kernels that one call runs on the card; None where there is no card.

    Kernels that a CUDA graph launches together are counted one by one.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    if not torch.cuda.is_available():
        return None
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        call()
    return count_kernels(profiled.events())


def count_kernels(events: Sequence[Any]) -> int:
    """How many of a profile's events are kernels: no copies, no fills, no labels."""
    return sum(
        event.device_type.name == "CUDA"
        and not event.name.startswith(("Memcpy", "Memset"))
        and not getattr(event, "is_user_annotation", False)
        for event in events
    )


# --- JAX ------------------------------------------------------------------------------


def jax_workload(
    function: Gradient, parameters: Sequence[Array], tasks: Sequence[Array], device: str
) -> Workload:
    """jax.jit of a function of arrays that returns a list of arrays, on a device."""
    import jax
    import jax.numpy as jnp

    if not device:
        jit_function = jax.jit(function)
        here = [jnp.asarray(p) for p in parameters], [jnp.asarray(t) for t in tasks]
        return Workload(lambda: jax.block_until_ready(jit_function(*here)), flatten)
    shapes = [p.shape for p in parameters]

    def flat_function(theta: Any, tasks: Sequence[Any]) -> Any:
        result = function(unflatten(theta, shapes), tasks)
        return jnp.concatenate([jnp.ravel(array) for array in result])

    theta, host, jit_function = flatten(parameters), list(tasks), jax.jit(flat_function)
    return Workload(lambda: np.asarray(jit_function(theta, host)), lambda flat: flat)
