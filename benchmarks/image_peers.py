"""The convolutional networks of sections 5.2 and 6.1 and MAML in PyTorch and JAX.

    call = torch_loop(architecture, theta, tasks, settings, "channels last")
    loss, gradients = call()
    flat_gradient(gradients, architecture, "torch")   # in the order of theta

Every peer takes tinymaml's flat theta, cuts it into arrays in its own layout, once, and
returns the mean query loss with its gradient in these arrays. Only what is adapted
is differentiated in the inner loop: beta of batch normalisation is not.

`form` names one of several good ways to write the same; the benchmark keeps the
fastest. "patches" is a convolution written as a matrix product with the patches copied
out: under vmap each task has weights of its own, and a batch of matrix products is
often faster than a convolution in groups.

Left out: torch.compile (minutes for five inner steps), graphics cards, the optimiser.
"""

import os
import signal
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from benchmarks.workers import Prepared, peak_bytes

Array = np.ndarray[Any, Any]
Tensors = Sequence[Any]
Loss = Callable[[Tensors, Any, Any], Any]
EPSILON = 1e-3
LOOP_FORMS = ("contiguous", "channels last")
BATCHES = ("grad of vmap", "vmap of grad")
CONVOLUTIONS = ("convolution", "patches")
VMAP_FORMS = tuple(f"{b}, {c}" for b in BATCHES for c in CONVOLUTIONS)
MAP_FORMS = tuple(f"{m}, {c}" for m in ("map", "loop") for c in CONVOLUTIONS)
AXES = (None, 0, 0, 0, 0)  # parameters are shared, the tasks' arrays are not


class Settings(NamedTuple):
    """What is computed: the network by its shapes, and MAML's settings."""

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
    """Zeros before and behind for a kernel of 3, by TensorFlow's rule."""
    total = max((-(-size // stride) - 1) * stride + 3 - size, 0)
    return total // 2, total - total // 2


# --- layouts --------------------------------------------------------------------------


def pieces(theta: Array, settings: Settings) -> list[Array]:
    """theta cut into arrays; kernels (3, 3, C, F), the last weight (inputs, ways)."""
    stops = np.cumsum([prod(shape) for shape in settings.shapes])
    cut = np.split(theta, stops[:-1])
    return [a.reshape(s) for a, s in zip(cut, settings.shapes, strict=True)]


def torch_layout(arrays: Sequence[Array], settings: Settings) -> list[Array]:
    """Kernels as (F, C, 3, 3); the last weight for features in the order C, H, W."""
    made = [a.transpose(3, 2, 0, 1) if a.ndim == 4 else a for a in arrays]
    if settings.pooled:
        weight, channels = made[-2], settings.shapes[-3][0]
        maps = weight.reshape(-1, channels, weight.shape[1])
        made[-2] = maps.transpose(1, 0, 2).reshape(weight.shape)
    return [np.ascontiguousarray(a) for a in made]


def from_torch_layout(arrays: Sequence[Array], settings: Settings) -> list[Array]:
    """The inverse of `torch_layout`."""
    made = [a.transpose(2, 3, 1, 0) if a.ndim == 4 else a for a in arrays]
    if settings.pooled:
        weight, channels = made[-2], settings.shapes[-3][0]
        maps = weight.reshape(channels, -1, weight.shape[1])
        made[-2] = maps.transpose(1, 0, 2).reshape(weight.shape)
    return made


def flat(loss: Any, arrays: Sequence[Array]) -> Array:
    """[loss, gradient ...] as a worker sends it."""
    return np.concatenate([np.ravel(loss), *(np.ravel(a) for a in arrays)])


def with_adapted(parameters: Tensors, changed: Tensors, adapted: list[int]) -> list:
    """The parameters, some of them replaced."""
    merged = list(parameters)
    for i, value in zip(adapted, changed, strict=True):
        merged[i] = value
    return merged


# --- PyTorch --------------------------------------------------------------------------


def torch_loss(settings: Settings, patches: bool) -> Loss:
    """The network's cross-entropy, images (N, C, H, W), sum over examples / K."""
    import torch
    from torch.nn import functional as F

    def convolution(x: Any, weight: Any) -> Any:
        stride = settings.stride
        before, behind = same_padding(x.shape[-1], stride)
        padding = before
        if before != behind:  # PyTorch pads both sides alike
            x, padding = F.pad(x, (before, behind, before, behind)), 0
        if not patches:
            return F.conv2d(x, weight, stride=stride, padding=padding)
        side = (x.shape[-1] + 2 * padding - 3) // stride + 1
        columns = F.unfold(x, 3, padding=padding, stride=stride)
        return (weight.flatten(1) @ columns).unflatten(-1, (side, side))

    def loss(parameters: Tensors, x: Any, y: Any) -> Any:
        *hidden, weight, bias = parameters
        for kernel, beta in zip(hidden[::2], hidden[1::2], strict=True):
            x = convolution(x, kernel)
            x = F.batch_norm(x, None, None, None, beta, training=True, eps=EPSILON)
            x = torch.relu(x)
            if settings.pooled:
                x = F.max_pool2d(x, 2)
        x = x.flatten(1) if settings.pooled else x.mean((2, 3))
        logits = torch.addmm(bias, x, weight)
        return F.cross_entropy(logits, y, reduction="sum") / settings.shots

    return loss


def torch_tensors(
    theta: Array, tasks: Sequence[Array], settings: Settings, form: str
) -> tuple[list, list]:
    """Parameters and tasks as tensors in PyTorch's layout; images as (T, N, C, H, W)."""
    import torch

    parameters = [
        torch.tensor(a) for a in torch_layout(pieces(theta, settings), settings)
    ]
    tensors = []
    for array in tasks:
        tensor = torch.tensor(array)
        if tensor.ndim == 5:
            tensor = tensor.permute(0, 1, 4, 2, 3)
            if form != "channels last":  # that is how they lie in memory already
                tensor = tensor.contiguous()
        tensors.append(tensor)
    if form == "channels last":
        last = torch.channels_last
        parameters = [
            p.contiguous(memory_format=last) if p.ndim == 4 else p for p in parameters
        ]
    return parameters, tensors


def torch_read(settings: Settings) -> Callable[[Any], Array]:
    """(loss, gradients) in PyTorch's layout -> [loss, gradient ...]."""

    def read(result: Any) -> Array:
        loss, gradients = result
        arrays = [g.detach().contiguous().numpy() for g in gradients]
        return flat(float(loss), from_torch_layout(arrays, settings))

    return read


def torch_task_gradients(settings: Settings) -> Callable[[Tensors, Tensors], Any]:
    """The sum over tasks of loss and gradient, one backward pass for each task.

    One for all tasks together would keep all their graphs, and is slower.
    """
    import torch

    loss, chosen = torch_loss(settings, patches=False), settings.adapted
    second = settings.order == 2

    def gradients(parameters: Tensors, tasks: Tensors) -> Any:
        total, sums = 0.0, None
        for x, y, x_query, y_query in zip(*tasks, strict=True):
            adapted = list(parameters)
            for _ in range(settings.steps):
                free = [adapted[i] for i in chosen]
                inner = loss(adapted, x, y)
                slopes = torch.autograd.grad(inner, free, create_graph=second)
                free = [
                    p - settings.alpha * g for p, g in zip(free, slopes, strict=True)
                ]
                adapted = with_adapted(adapted, free, chosen)
            query_loss = loss(adapted, x_query, y_query)
            found = torch.autograd.grad(query_loss, parameters)
            total += float(query_loss.detach())
            if sums is None:
                sums = list(found)
            else:
                torch._foreach_add_(sums, found)
        return total, sums

    return gradients


def torch_loop(
    theta: Array, tasks: Sequence[Array], settings: Settings, form: str
) -> Prepared:
    """A loop over tasks with torch.autograd.grad(create_graph=True): the usual way."""
    parameters, tensors = torch_tensors(theta, tasks, settings, form)
    parameters = [p.requires_grad_() for p in parameters]
    gradients, count = torch_task_gradients(settings), len(tasks[0])

    def call() -> Any:
        loss, sums = gradients(parameters, tensors)
        return loss / count, [g / count for g in sums]

    return Prepared(call, torch_read(settings))


def serve_share(pipe: Any, shared: Tensors, tasks: Tensors, settings: Settings) -> None:
    """A process with one thread: its tasks' gradients whenever it is asked."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    parameters, sums = shared
    parameters = [p.requires_grad_() for p in parameters]
    gradients = torch_task_gradients(settings)
    while True:
        try:
            question = pipe.recv()
        except EOFError:  # the worker has ended
            return
        if question == "memory":
            pipe.send(peak_bytes())
            continue
        loss, found = gradients(parameters, tasks)
        for place, g in zip(sums, found, strict=True):
            place.copy_(g)
        pipe.send(loss)


def torch_processes(
    theta: Array, tasks: Sequence[Array], settings: Settings, form: str, count: int
) -> Prepared:
    """One process with one thread per core, each with its share of the tasks.

    Parameters, tasks and gradients are in shared memory; through the pipes go a word
    and a loss.
    """
    import torch
    from torch import multiprocessing

    os.environ["OMP_NUM_THREADS"] = "1"  # what the processes below read as they start
    torch.set_num_threads(1)
    context = multiprocessing.get_context("spawn")
    parameters, tensors = torch_tensors(theta, tasks, settings, form)
    for tensor in (*parameters, *tensors):
        tensor.share_memory_()
    pipes, sums = [], []
    shares = zip(*(t.tensor_split(count) for t in tensors), strict=True)
    for share in shares:
        found = [torch.empty_like(p).share_memory_() for p in parameters]
        ours, theirs = context.Pipe()
        context.Process(
            target=serve_share,
            args=(theirs, (parameters, found), share, settings),
            daemon=True,
        ).start()
        theirs.close()  # or nobody would notice when the process ends
        pipes.append(ours)
        sums.append(found)
    size = len(tasks[0])

    def ask(question: str) -> list[Any]:
        for pipe in pipes:
            pipe.send(question)
        return [pipe.recv() for pipe in pipes]

    def call() -> Any:
        losses = ask("gradient")
        gradients = [torch.stack(g).sum(0) / size for g in zip(*sums, strict=True)]
        return sum(losses) / size, gradients

    def others() -> int:
        return sum(peak or 0 for peak in ask("memory"))

    return Prepared(call, torch_read(settings), others)


def torch_vmap(
    theta: Array, tasks: Sequence[Array], settings: Settings, form: str
) -> Prepared:
    """torch.func: vmap over tasks, grad in grad."""
    import torch
    from torch.func import grad, grad_and_value, vmap

    batches, convolution = form.split(", ")
    loss, chosen = torch_loss(settings, convolution == "patches"), settings.adapted
    parameters, tensors = torch_tensors(theta, tasks, settings, form)

    def query_loss(parameters: Tensors, *task: Any) -> Any:
        x, y, x_query, y_query = task
        adapted = list(parameters)

        def inner(free: Tensors) -> Any:
            return loss(with_adapted(parameters, free, chosen), x, y)

        for _ in range(settings.steps):
            free = [adapted[i] for i in chosen]
            slopes = grad(inner)(free)
            if settings.order == 1:
                slopes = [g.detach() for g in slopes]
            free = [p - settings.alpha * g for p, g in zip(free, slopes, strict=True)]
            adapted = with_adapted(adapted, free, chosen)
        return loss(adapted, x_query, y_query)

    def mean_query_loss(parameters: Tensors) -> Any:
        return vmap(query_loss, AXES)(parameters, *tensors).mean()

    def call() -> Any:
        if batches == BATCHES[0]:
            gradients, value = grad_and_value(mean_query_loss)(parameters)
            return value, gradients
        found, values = vmap(grad_and_value(query_loss), AXES)(parameters, *tensors)
        return values.mean(), [torch.mean(g, 0) for g in found]

    return Prepared(call, torch_read(settings))


# --- JAX ------------------------------------------------------------------------------


def jax_loss(settings: Settings, patches: bool) -> Loss:
    """The network's cross-entropy, images (N, H, W, C), sum over examples / K."""
    import jax
    import jax.numpy as jnp

    def convolution(x: Any, weight: Any) -> Any:
        stride = settings.stride
        if not patches:  # "SAME" is TensorFlow's
            return jax.lax.conv_general_dilated(
                x,
                weight,
                (stride, stride),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        side = -(-x.shape[1] // stride)
        around = same_padding(x.shape[1], stride)
        padded = jnp.pad(x, ((0, 0), around, around, (0, 0)))
        reach = stride * (side - 1) + 1
        taps = [
            padded[:, u : u + reach : stride, v : v + reach : stride]
            for u in range(3)
            for v in range(3)
        ]
        return jnp.concatenate(taps, -1) @ weight.reshape(-1, weight.shape[-1])

    def pool(x: Any) -> Any:
        # The windows do not overlap: a maximum over axes is their pooling, and its
        # derivative is cheaper than that of reduce_window.
        n, height, width, channels = x.shape
        x = x[:, : height // 2 * 2, : width // 2 * 2]
        return x.reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4))

    def loss(parameters: Tensors, x: Any, y: Any) -> Any:
        *hidden, weight, bias = parameters
        for kernel, beta in zip(hidden[::2], hidden[1::2], strict=True):
            x = convolution(x, kernel)
            centred = x - x.mean((0, 1, 2))
            variance = (centred * centred).mean((0, 1, 2))
            x = jax.nn.relu(centred * jax.lax.rsqrt(variance + EPSILON) + beta)
            if settings.pooled:
                x = pool(x)
        x = x.reshape(len(x), -1) if settings.pooled else x.mean((1, 2))
        logits = x @ weight + bias
        return -(y * jax.nn.log_softmax(logits)).sum() / settings.shots

    return loss


def jax_read(result: Any) -> Array:
    """(loss, gradients) in theta's layout -> [loss, gradient ...]."""
    loss, gradients = result
    return flat(float(loss), [np.asarray(g) for g in gradients])


def jax_jit(
    theta: Array, tasks: Sequence[Array], settings: Settings, form: str
) -> Prepared:
    """jax.jit of grad and vmap, of grad in lax.map, or of one task, called in a loop."""
    import jax
    import jax.numpy as jnp

    batches, convolution = form.split(", ")
    loss, chosen = jax_loss(settings, convolution == "patches"), settings.adapted
    parameters = [jnp.asarray(piece) for piece in pieces(theta, settings)]
    tensors = tuple(jnp.asarray(array) for array in tasks)
    count = len(tasks[0])

    def query_loss(parameters: Tensors, *task: Any) -> Any:
        x, y, x_query, y_query = task
        adapted = list(parameters)

        def inner(free: Tensors) -> Any:
            return loss(with_adapted(parameters, free, chosen), x, y)

        for _ in range(settings.steps):
            free = [adapted[i] for i in chosen]
            slopes = jax.grad(inner)(free)
            if settings.order == 1:
                slopes = jax.lax.stop_gradient(slopes)
            free = [p - settings.alpha * g for p, g in zip(free, slopes, strict=True)]
            adapted = with_adapted(adapted, free, chosen)
        return loss(adapted, x_query, y_query)

    of_one = jax.value_and_grad(query_loss)

    def mean(tree: Any) -> Any:
        return jax.tree.map(lambda values: values.mean(0), tree)

    def grad_of_vmap(parameters: Tensors, *tasks: Any) -> Any:
        def mean_query_loss(parameters: Tensors) -> Any:
            return jax.vmap(query_loss, AXES)(parameters, *tasks).mean()

        return jax.value_and_grad(mean_query_loss)(parameters)

    def vmap_of_grad(parameters: Tensors, *tasks: Any) -> Any:
        return mean(jax.vmap(of_one, AXES)(parameters, *tasks))

    def mapped(parameters: Tensors, *tasks: Any) -> Any:
        return mean(jax.lax.map(lambda task: of_one(parameters, *task), tasks))

    if batches == "loop":
        one, add = jax.jit(of_one), jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b))
        divide = jax.jit(lambda tree: jax.tree.map(lambda a: a / count, tree))
        each = [tuple(t[i] for t in tensors) for i in range(count)]

        def call() -> Any:
            total = one(parameters, *each[0])
            for task in each[1:]:
                total = add(total, one(parameters, *task))
            return jax.block_until_ready(divide(total))

        return Prepared(call, jax_read)
    functions = {BATCHES[0]: grad_of_vmap, BATCHES[1]: vmap_of_grad, "map": mapped}
    function = jax.jit(functions[batches])
    return Prepared(
        lambda: jax.block_until_ready(function(parameters, *tensors)), jax_read
    )
