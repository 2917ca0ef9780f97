"""Algorithm 3's outer step in PyTorch, by its own double backward.

The policy, the inner step, the surrogate loss, the KL divergence and its products are
written in PyTorch as public codes of MAML-TRPO have them: the adapted parameters are a
differentiable function of theta, the gradient of the KL divergence is taken with
`create_graph=True` once, and each product F v is one more backward pass through that
graph. The environment, the advantages, conjugate gradients and the line search are
tinymaml's NumPy code.

Forms: "batched" has all tasks in one `baddbmm`, "loop" one task after the other.

Left out: `torch.compile`, which does not support double backward.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tinymaml.rl.advantages import advantages
from tinymaml.rl.maml_trpo import MetaBatch
from tinymaml.rl.rollouts import Environment, Trajectories, roll_out
from tinymaml.rl.trpo import TrustRegionStep, trust_region_step

Array = np.ndarray[Any, Any]
Tensors = list[torch.Tensor]
FORMS = ("batched", "loop")
LEAST_LOG_STD = float(np.log(1e-6))


class TorchPolicy:
    """The Gaussian policy of flat thetas (T, P), as `roll_out` wants one."""

    def __init__(self, shapes: Sequence[tuple[int, ...]], actions: int) -> None:
        self.shapes = [*shapes, (actions,)]
        self.actions = actions
        self.size = sum(int(np.prod(shape)) for shape in self.shapes)

    def parameters_of(self, theta: torch.Tensor) -> Tensors:
        """Views of a flat theta, (P,) or (T, P), as weights, biases and log sigma."""
        sizes = [int(np.prod(shape)) for shape in self.shapes]
        return [
            piece.reshape(*theta.shape[:-1], *shape)
            for piece, shape in zip(theta.split(sizes, -1), self.shapes, strict=True)
        ]

    def __call__(self, parameters: Tensors, x: torch.Tensor) -> Tensors:
        """Mean (..., N, A) and log sigma (..., A) for x (..., N, O)."""
        *layers, weight, bias, log_std = parameters
        for w, b in zip(layers[::2], layers[1::2], strict=True):
            x = torch.relu(_linear(x, w, b))
        return [_linear(x, weight, bias), log_std.clamp(min=LEAST_LOG_STD)]

    def act(self, thetas: Array, x: Array, noise: Array) -> Array:
        """Actions in T tasks, in numbers."""
        with torch.no_grad():
            tensors = [torch.from_numpy(np.ascontiguousarray(a)) for a in (thetas, x)]
            mean, log_std = self(self.parameters_of(tensors[0]), tensors[1])
            standard_normal = torch.from_numpy(np.ascontiguousarray(noise))
            return (mean + log_std.exp()[..., None, :] * standard_normal).numpy()


def _linear(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """x w + b, with a leading task axis or without."""
    if x.dim() == 2:
        return torch.addmm(b, x, w)
    return torch.baddbmm(b[..., None, :], x, w)


def log_probability(gaussian: Tensors, actions: torch.Tensor) -> torch.Tensor:
    """log pi(a | x): (..., N)."""
    mean, log_std = (gaussian[0], gaussian[1][..., None, :])
    z = (actions - mean) * (-log_std).exp()
    constant = 0.5 * np.log(2 * np.pi) * actions.shape[-1]
    return -0.5 * (z * z).sum(-1) - log_std.sum(-1) - constant


def kl_divergence(old: Tensors, new: Tensors) -> torch.Tensor:
    """KL(old || new): (..., N)."""
    old_log_std, new_log_std = (g[1][..., None, :] for g in (old, new))
    squares = (2 * old_log_std).exp() + (old[0] - new[0]) ** 2
    each = 0.5 * squares * (-2 * new_log_std).exp() + new_log_std - old_log_std - 0.5
    return each.sum(-1)


class Objective:
    """Surrogate loss and gradient, F v and divergence, of sampled trajectories."""

    def __init__(
        self,
        policy: TorchPolicy,
        theta: Array,
        samples: Sequence[Tensors],
        alpha: float,
        order: int,
        form: str,
    ) -> None:
        self.policy, self.alpha, self.order = policy, alpha, order
        self.theta = torch.tensor(theta, requires_grad=True)
        inner, outer = samples
        tasks = len(inner[0])
        # Groups of tasks that are computed together: all, or one after the other.
        groups = [slice(None)] if form == "batched" else range(tasks)
        self.groups = [
            ([t[g] for t in inner], [t[g] for t in outer], len(inner[0][g]))
            for g in groups
        ]
        self.tasks = tasks
        self.batched = form == "batched"
        adapted = [self.adapt(self.theta, group, True) for group in self.groups]
        self.old = []
        surrogate, kl = 0.0, 0.0
        for parameters, (_, outer, _) in zip(adapted, self.groups, strict=True):
            x, actions, advantage, weights = outer
            new = self.policy(parameters, x)
            old = [tensor.detach() for tensor in new]
            old_log_pi = log_probability(old, actions)
            self.old.append((old, old_log_pi))
            ratio = (log_probability(new, actions) - old_log_pi).exp()
            surrogate = surrogate - (ratio * advantage * weights).sum() / tasks
            kl = kl + (kl_divergence(old, new) * weights).sum() / tasks
        (gradient,) = torch.autograd.grad(surrogate, self.theta, retain_graph=True)
        self.loss = torch.as_tensor(surrogate).item()
        self.gradient = gradient.numpy().astype(np.float64)
        (self.kl_gradient,) = torch.autograd.grad(kl, self.theta, create_graph=True)

    def adapt(self, theta: torch.Tensor, group: Any, keep_graph: bool) -> Tensors:
        """The parameters after the inner step, a function of theta."""
        (x, actions, advantage, weights), _, tasks = group
        if self.batched:
            theta = theta.expand(tasks, -1)
        parameters = self.policy.parameters_of(theta)
        log_pi = log_probability(self.policy(parameters, x), actions)
        loss = -(log_pi * advantage * weights).sum()
        create_graph = keep_graph and self.order == 2
        gradients = torch.autograd.grad(loss, parameters, create_graph=create_graph)
        pairs = zip(parameters, gradients, strict=True)
        return [p - self.alpha * g for p, g in pairs]

    def fisher(self, v: Array) -> Array:
        """F v, one backward pass through the graph of the divergence's gradient."""
        along_v = (self.kl_gradient * torch.from_numpy(np.ascontiguousarray(v))).sum()
        (product,) = torch.autograd.grad(along_v, self.theta, retain_graph=True)
        return product.numpy().astype(np.float64)

    def evaluate(self, theta: Array) -> tuple[float, float]:
        """Surrogate loss and KL divergence of the policies that theta adapts to."""
        point = torch.tensor(theta, requires_grad=True)
        loss, kl = 0.0, 0.0
        for group, (old, old_log_pi) in zip(self.groups, self.old, strict=True):
            parameters = self.adapt(point, group, False)
            with torch.no_grad():
                x, actions, advantage, weights = group[1]
                new = self.policy(parameters, x)
                ratio = (log_probability(new, actions) - old_log_pi).exp()
                loss -= float((ratio * advantage * weights).sum()) / self.tasks
                kl += float((kl_divergence(old, new) * weights).sum()) / self.tasks
        return loss, kl


def tensors_of(trajectories: Trajectories, dtype: Any) -> Tensors:
    """x, actions, advantages and weights of T tasks, ended steps with weight 0."""
    x, actions, _, mask = trajectories
    tasks = len(mask)
    weights = mask / mask.sum(axis=(1, 2), keepdims=True)
    return [
        torch.from_numpy(array.astype(dtype).reshape(tasks, -1, *array.shape[3:]))
        for array in (x, actions, advantages(trajectories), weights)
    ]


def inner_step(
    policy: TorchPolicy, thetas: Array, samples: Tensors, alpha: float
) -> Array:
    """theta_i' of each task (T, P), in numbers: the policies that sample again."""
    x, actions, advantage, weights = samples
    point = torch.tensor(thetas, requires_grad=True)
    log_pi = log_probability(policy(policy.parameters_of(point), x), actions)
    (gradient,) = torch.autograd.grad(-(log_pi * advantage * weights).sum(), point)
    return thetas - np.asarray(alpha, thetas.dtype) * gradient.numpy()


def sample(
    policy: TorchPolicy,
    environment: Environment,
    theta: Array,
    draw: MetaBatch,
    alpha: float,
) -> list[Tensors]:
    """What theta samples, and what the policies sample after the inner step."""
    thetas = np.broadcast_to(theta, (len(draw.tasks), theta.size))
    samples: list[Tensors] = []
    starts = draw.start_noise if draw.start_noise is not None else (None, None)
    for noise, start in zip(draw.noise, starts, strict=True):
        if samples:
            thetas = inner_step(policy, thetas, samples[0], alpha)
        sampled = roll_out(policy, environment, thetas, draw.tasks, noise, start)
        samples.append(tensors_of(sampled, theta.dtype))
    return samples


def outer_step(
    policy: TorchPolicy,
    theta: Array,
    samples: Sequence[Tensors],
    alpha: float,
    order: int,
    form: str,
) -> TrustRegionStep:
    """TRPO's step on these samples; the inner step is taken again, with its graph."""
    objective = Objective(policy, theta, samples, alpha, order, form)
    return trust_region_step(
        theta,
        objective.loss,
        objective.gradient,
        objective.fisher,
        objective.evaluate,
    )
