"""The image networks and MAML in JAX: under vmap, in lax.map, in a loop.

Images are (N, H, W, C), the layout that XLA prefers on processors.

Left out: one device per core (pmap).
"""

from collections.abc import Sequence
from typing import Any

from benchmarks.devices import flatten, jax_workload
from benchmarks.image_peers import (
    AXES,
    BATCHES,
    EPSILON,
    Array,
    Loss,
    Settings,
    Tensors,
    parameters_of,
    replace_adapted,
    same_padding,
)
from benchmarks.workers import Workload


def loss_of(settings: Settings, patches: bool) -> Loss:
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
        # The windows do not overlap, so their places can be an axis; faster than
        # reduce_window. A plain maximum over this axis failed the float64 check (JAX
        # 0.10: an exact gradient of five steps was off by 2 %).
        n, height, width, channels = x.shape
        x = x[:, : height // 2 * 2, : width // 2 * 2]
        x = x.reshape(n, height // 2, 2, width // 2, 2, channels)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(*x.shape[:2], width // 2, 4, channels)
        largest = jax.lax.stop_gradient(x).argmax(3)
        return (x * jax.nn.one_hot(largest, 4, axis=3, dtype=x.dtype)).sum(3)

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


def jit_workload(
    theta: Array,
    tasks: Sequence[Array],
    settings: Settings,
    form: str,
    device: str = "",
) -> Workload:
    """jax.jit of grad and vmap, of grad in lax.map, or of one task in a loop."""
    import jax
    import jax.numpy as jnp

    batches, convolution = form.split(", ")
    loss, indices = (
        loss_of(settings, convolution == "patches"),
        settings.adapted,
    )
    theta_arrays, count = parameters_of(theta, settings), len(tasks[0])

    def query_loss(parameters: Tensors, *task: Any) -> Any:
        x, y, x_query, y_query = task
        adapted = list(parameters)

        def inner(free: Tensors) -> Any:
            return loss(replace_adapted(parameters, free, indices), x, y)

        for _ in range(settings.steps):
            free = [adapted[i] for i in indices]
            gradients = jax.grad(inner)(free)
            if settings.order == 1:
                gradients = jax.lax.stop_gradient(gradients)
            free = [
                p - settings.alpha * g for p, g in zip(free, gradients, strict=True)
            ]
            adapted = replace_adapted(adapted, free, indices)
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

    def map_of_grad(parameters: Tensors, *tasks: Any) -> Any:
        return mean(jax.lax.map(lambda task: of_one(parameters, *task), tasks))

    if batches == "loop":
        parameters = [jnp.asarray(piece) for piece in theta_arrays]
        tensors = [jnp.asarray(array) for array in tasks]
        one, add = jax.jit(of_one), jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b))
        divide = jax.jit(lambda tree: jax.tree.map(lambda a: a / count, tree))
        each = [tuple(t[i] for t in tensors) for i in range(count)]

        def call() -> Any:
            total = one(parameters, *each[0])
            for task in each[1:]:
                total = add(total, one(parameters, *task))
            return jax.block_until_ready(divide(total))

        return Workload(call, lambda result: flatten(jax.tree.leaves(result)))
    functions = {BATCHES[0]: grad_of_vmap, BATCHES[1]: vmap_of_grad, "map": map_of_grad}

    def function(parameters: Tensors, tasks: Tensors) -> Any:
        loss, gradients = functions[batches](list(parameters), *tasks)
        return [loss, *gradients]

    return jax_workload(function, theta_arrays, tasks, device)
