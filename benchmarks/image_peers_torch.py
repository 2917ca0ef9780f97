"""The image networks and MAML in PyTorch: in a loop, in processes, under vmap.

Images are (N, C, H, W). Every function at the end takes theta, the tasks' arrays and
the settings, and returns what a worker is to time.
"""

import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.devices import flatten, torch_workload, unflatten
from benchmarks.image_peers import (
    AXES,
    BATCHES,
    EPSILON,
    Array,
    Loss,
    Settings,
    Tensors,
    flatten_result,
    from_torch_layout,
    parameters_of,
    replace_adapted,
    same_padding,
    torch_layout,
)
from benchmarks.peers import GRAPHS, compile_with_torch
from benchmarks.workers import Workload, peak_bytes


def loss_of(settings: Settings, patches: bool) -> Loss:
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
            # On a card, PyTorch 2.11 cannot differentiate twice without a weight.
            weights = torch.ones_like(beta) if beta.is_cuda else None
            x = F.batch_norm(x, None, None, weights, beta, training=True, eps=EPSILON)
            x = torch.relu(x)
            if settings.pooled:
                x = F.max_pool2d(x, 2)
        x = x.flatten(1) if settings.pooled else x.mean((2, 3))
        logits = torch.addmm(bias, x, weight)
        return F.cross_entropy(logits, y, reduction="sum") / settings.shots

    return loss


def tensors_of(
    theta: Array, tasks: Sequence[Array], settings: Settings, form: str
) -> tuple[list, list]:
    """Parameters and tasks in PyTorch's layout; images as (T, N, C, H, W)."""
    import torch

    parameters = [
        torch.tensor(a) for a in torch_layout(parameters_of(theta, settings), settings)
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


def reordering_of(parameters: Tensors, settings: Settings) -> Callable[[Array], Array]:
    """A function from [loss, gradient ...] in PyTorch's layout to theta's layout."""
    shapes = [tuple(p.shape) for p in parameters]

    def reorder(numbers: Array) -> Array:
        gradients = unflatten(numbers[1:], shapes)
        return flatten_result(numbers[0], from_torch_layout(gradients, settings))

    return reorder


def task_gradients(settings: Settings, form: str) -> Callable[[Tensors, Tensors], Any]:
    """The sum over tasks of loss and gradient, one backward pass for each task.

    One backward pass for all tasks keeps all their graphs in memory, and is slower.
    """
    import torch

    loss, indices = loss_of(settings, form == "patches"), settings.adapted
    create_graph = settings.order == 2

    def gradients(parameters: Tensors, tasks: Tensors) -> Any:
        total, sums = 0.0, None
        for x, y, x_query, y_query in zip(*tasks, strict=True):
            adapted = list(parameters)
            for _ in range(settings.steps):
                free = [adapted[i] for i in indices]
                inner = loss(adapted, x, y)
                gradients = torch.autograd.grad(inner, free, create_graph=create_graph)
                free = [
                    p - settings.alpha * g for p, g in zip(free, gradients, strict=True)
                ]
                adapted = replace_adapted(adapted, free, indices)
            query_loss = loss(adapted, x_query, y_query)
            task_gradient = torch.autograd.grad(query_loss, parameters)
            total = (
                total + query_loss.detach()
            )  # on a GPU, float() would wait for the loss
            if sums is None:
                sums = list(task_gradient)
            else:
                torch._foreach_add_(sums, task_gradient)
        return total, sums

    return gradients


def loop_workload(
    theta: Array,
    tasks: Sequence[Array],
    settings: Settings,
    form: str,
    device: str = "",
    tf32: bool = False,
) -> Workload:
    """A loop over tasks with torch.autograd.grad(create_graph=True): the usual way."""
    parameters, tensors = tensors_of(theta, tasks, settings, form)
    gradients, count = task_gradients(settings, form), len(tasks[0])

    def function(parameters: Tensors, tasks: Tensors) -> Any:
        loss, sums = gradients([p.requires_grad_() for p in parameters], tasks)
        return [loss / count, *(g / count for g in sums)]

    reorder = reordering_of(parameters, settings)
    return torch_workload(function, parameters, tensors, device, tf32, reorder)


def serve_share(
    pipe: Any, shared_tensors: Tensors, tasks: Tensors, settings: Settings, form: str
) -> None:
    """Serve requests in a process of one thread: gradients of its share of tasks."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    parameters, sums = shared_tensors
    parameters = [p.requires_grad_() for p in parameters]
    gradients = task_gradients(settings, form)
    while True:
        try:
            question = pipe.recv()
        except EOFError:  # the worker has ended
            return
        if question == "memory":
            pipe.send(peak_bytes())
            continue
        loss, new_sums = gradients(parameters, tasks)
        for target, g in zip(sums, new_sums, strict=True):
            target.copy_(g)
        pipe.send(float(loss))


def process_workload(
    theta: Array, tasks: Sequence[Array], settings: Settings, form: str, count: int
) -> Workload:
    """`count` processes of one thread, each with its share of the tasks.

    Parameters, tasks and gradients are in shared memory; the pipes carry only a word
    and a loss.
    """
    import torch
    from torch import multiprocessing

    os.environ["OMP_NUM_THREADS"] = "1"  # what the processes below read as they start
    torch.set_num_threads(1)
    context = multiprocessing.get_context("spawn")
    parameters, tensors = tensors_of(theta, tasks, settings, form)
    for tensor in (*parameters, *tensors):
        tensor.share_memory_()
    count = min(count, len(tasks[0]))
    pipes, sums = [], []
    shares = zip(*(t.tensor_split(count) for t in tensors), strict=True)
    for share in shares:
        share_sums = [torch.empty_like(p).share_memory_() for p in parameters]
        ours, theirs = context.Pipe()
        context.Process(
            target=serve_share,
            args=(theirs, (parameters, share_sums), share, settings, form),
            daemon=True,
        ).start()
        theirs.close()  # otherwise the end of the process would go unnoticed
        pipes.append(ours)
        sums.append(share_sums)
    size = len(tasks[0])

    def ask(question: str) -> list[Any]:
        for pipe in pipes:
            pipe.send(question)
        return [pipe.recv() for pipe in pipes]

    reorder = reordering_of(parameters, settings)

    def call() -> Any:
        losses = ask("gradient")
        gradients = [torch.stack(g).sum(0) / size for g in zip(*sums, strict=True)]
        return [sum(losses) / size, *gradients]

    def others() -> int:
        return sum(peak or 0 for peak in ask("memory"))

    return Workload(call, lambda result: reorder(flatten(result)), others)


def vmap_workload(
    theta: Array,
    tasks: Sequence[Array],
    settings: Settings,
    form: str,
    device: str = "",
    tf32: bool = False,
    compile_function: bool = False,
) -> Workload:
    """torch.func: vmap over tasks, grad in grad; or the same by torch.compile."""
    import torch
    from torch.func import grad, grad_and_value, vmap

    batches, convolution = form.removesuffix(GRAPHS).split(", ")
    loss, indices = (
        loss_of(settings, convolution == "patches"),
        settings.adapted,
    )
    parameters, tensors = tensors_of(theta, tasks, settings, form)

    def query_loss(parameters: Tensors, *task: Any) -> Any:
        x, y, x_query, y_query = task
        adapted = list(parameters)

        def inner(free: Tensors) -> Any:
            return loss(replace_adapted(parameters, free, indices), x, y)

        for _ in range(settings.steps):
            free = [adapted[i] for i in indices]
            gradients = grad(inner)(free)
            if settings.order == 1:
                gradients = [g.detach() for g in gradients]
            free = [
                p - settings.alpha * g for p, g in zip(free, gradients, strict=True)
            ]
            adapted = replace_adapted(adapted, free, indices)
        return loss(adapted, x_query, y_query)

    def mean_query_loss(parameters: Tensors, tasks: Tensors) -> Any:
        return vmap(query_loss, AXES)(parameters, *tasks).mean()

    def function(parameters: Tensors, tasks: Tensors) -> Any:
        if batches == BATCHES[0]:
            gradients, value = grad_and_value(mean_query_loss)(parameters, tasks)
            return [value, *gradients]
        gradients, losses = vmap(grad_and_value(query_loss), AXES)(parameters, *tasks)
        return [losses.mean(), *(torch.mean(g, 0) for g in gradients)]

    if compile_function:
        function = compile_with_torch(function, form)
    reorder = reordering_of(parameters, settings)
    return torch_workload(function, parameters, tensors, device, tf32, reorder)
