"""MAML's meta-gradient in PyTorch and JAX, in the style that is best for each.

Every function takes a loss (parameters, x, y) -> one number, written in that library on
a list of parameter tensors, and returns a function (parameters, tasks) that computes
the meta-gradient of the mean query loss over tasks, as a list of tensors like the
parameters. `tasks` holds four tensors with a leading task axis: x and y of the support
examples, then of the query examples. `devices.py` decides on which device the tensors
are, and when they are copied there.

The functions convert and copy nothing, and recompute nothing without need. Where there
is more than one good way to write a function, `form` names the way, and the benchmark
keeps the fastest.

Left out: mixed precision, and the optimiser.
"""

from collections.abc import Callable, Sequence
from typing import Any

Tensors = Sequence[Any]
Loss = Callable[[Any, Any, Any], Any]
Gradient = Callable[[Tensors, Tensors], Any]  # of (parameters, tasks)
LOOP, VMAP, COMPILED = "PyTorch loop", "PyTorch vmap", "PyTorch vmap + compile"
JAX_VMAP, JAX_MAP = "JAX jit + vmap", "JAX jit + map"
FORMS = ("vmap of grad", "grad of vmap")
GRAPHS = ", CUDA graphs"  # behind a form: torch.compile's mode that replays launches
AXES = (None, 0, 0, 0, 0)  # parameters are shared, the four tensors have a task axis


def torch_loop(loss: Loss, alpha: float, steps: int, order: int) -> Gradient:
    """A loop over tasks with torch.autograd.grad(create_graph=True): the usual way."""
    import torch

    create_graph = order == 2

    def gradient(parameters: Tensors, tasks: Tensors) -> Any:
        parameters = [p.requires_grad_() for p in parameters]
        total = 0.0
        for x, y, x_query, y_query in zip(*tasks, strict=True):
            adapted = parameters
            for _ in range(steps):
                inner = loss(adapted, x, y)
                gradients = torch.autograd.grad(
                    inner, adapted, create_graph=create_graph
                )
                adapted = [
                    p - alpha * g for p, g in zip(adapted, gradients, strict=True)
                ]
            total = total + loss(adapted, x_query, y_query)
        return torch.autograd.grad(total / len(tasks[0]), parameters)

    return gradient


def compile_with_torch(function: Callable[..., Any], form: str) -> Callable[..., Any]:
    """torch.compile of a function of tensors, with CUDA graphs if the form says so."""
    import torch

    # mode="max-autotune" compiles twice as long and is no faster for these sizes.
    mode = "reduce-overhead" if form.endswith(GRAPHS) else None
    return torch.compile(function, fullgraph=True, dynamic=False, mode=mode)


def torch_vmap(
    loss: Loss,
    alpha: float,
    steps: int,
    order: int,
    form: str = FORMS[0],
    compile_function: bool = False,
) -> Gradient:
    """torch.func.vmap and grad; with `compile_function` through torch.compile."""
    from torch.func import grad, vmap

    def query_loss(parameters: Tensors, *task: Any) -> Any:
        x, y, x_query, y_query = task
        adapted = parameters
        for _ in range(steps):
            gradients = grad(loss)(adapted, x, y)
            if order == 1:
                gradients = [g.detach() for g in gradients]
            adapted = [p - alpha * g for p, g in zip(adapted, gradients, strict=True)]
        return loss(adapted, x_query, y_query)

    def vmap_of_grad(parameters: Tensors, *tasks: Any) -> Any:
        gradients = vmap(grad(query_loss), AXES)(parameters, *tasks)
        return [g.mean(0) for g in gradients]

    def mean_query_loss(parameters: Tensors, *tasks: Any) -> Any:
        return vmap(query_loss, AXES)(parameters, *tasks).mean()

    differentiate_batch = form.removesuffix(GRAPHS) == FORMS[1]
    function = grad(mean_query_loss) if differentiate_batch else vmap_of_grad
    if compile_function:
        function = compile_with_torch(function, form)
    return lambda parameters, tasks: function(list(parameters), *tasks)


def jax_function(
    loss: Loss, alpha: float, steps: int, order: int, form: str = FORMS[0]
) -> Gradient:
    """grad and vmap, or grad in lax.map ("map") or lax.scan ("scan"), for jax.jit."""
    import jax
    import jax.numpy as jnp

    def query_loss(parameters: Tensors, *task: Any) -> Any:
        x, y, x_query, y_query = task
        adapted = parameters
        for _ in range(steps):
            gradients = jax.grad(loss)(adapted, x, y)
            if order == 1:
                gradients = jax.lax.stop_gradient(gradients)
            adapted = [p - alpha * g for p, g in zip(adapted, gradients, strict=True)]
        return loss(adapted, x_query, y_query)

    gradient = jax.grad(query_loss)

    def vmap_of_grad(parameters: Tensors, *tasks: Any) -> Any:
        gradients = jax.vmap(gradient, AXES)(parameters, *tasks)
        return [g.mean(0) for g in gradients]

    def mean_query_loss(parameters: Tensors, *tasks: Any) -> Any:
        return jax.vmap(query_loss, AXES)(parameters, *tasks).mean()

    def map_of_grad(parameters: Tensors, *tasks: Any) -> Any:
        gradients = jax.lax.map(lambda task: gradient(parameters, *task), tasks)
        return [g.mean(0) for g in gradients]

    def scan_of_grad(parameters: Tensors, *tasks: Any) -> Any:
        def add_task(total: Tensors, task: Tensors) -> tuple[Tensors, None]:
            return jax.tree.map(jnp.add, total, gradient(parameters, *task)), None

        zeros = jax.tree.map(jnp.zeros_like, parameters)
        total, _ = jax.lax.scan(add_task, zeros, tasks)
        return [g / len(tasks[0]) for g in total]

    functions = {
        FORMS[0]: vmap_of_grad,
        FORMS[1]: jax.grad(mean_query_loss),
        "map": map_of_grad,
        "scan": scan_of_grad,
    }
    function = functions[form]
    return lambda parameters, tasks: function(list(parameters), *tasks)
