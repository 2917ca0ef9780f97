"""A policy's losses on sampled steps and their derivatives, for many tasks at once.

    losses = PolicyLosses(policy)
    samples = chunk_steps(trajectories, advantages(trajectories))
    gradient = losses.gradient(thetas, samples)      # equation (4): (T, P)
    hessian = losses.hessian(thetas, samples)        # a function
    hessian(v)                                       # Hessian-vector products, (T, P)

With this file, algorithm 3 (`maml_trpo.py`) reads like its formulas. Parameters,
gradients and products are (T, P), a row for each task.

Each loss here is a sum over steps, so its gradient and its products are such sums too.
`chunk_steps` therefore divides the steps of all tasks into chunks of `CHUNK` steps, a
backend runs a tape for each chunk, and the results of a task's chunks are added. Steps
after the end of a trajectory are left out and cost nothing, one tape serves any number
of steps, and the arrays of a chunk stay in the cache of a core.

Left out: losses that are not sums over steps.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from tinymaml.autodiff.derivatives import grad, hvp, jvp
from tinymaml.autodiff.functions import exp, rematerialise
from tinymaml.autodiff.partial_evaluation import partially_evaluate
from tinymaml.autodiff.tape import Tape, Value
from tinymaml.backends import Backend, Program, get_backend
from tinymaml.backends.programs import ProgramCache
from tinymaml.losses import policy_gradient_loss, surrogate_loss
from tinymaml.rl.policy import Gaussian, GaussianPolicy, kl_divergence, log_probability
from tinymaml.rl.rollouts import Trajectories
from tinymaml.tasks.batch import array_table

Array = np.ndarray[Any, Any]
Product = Callable[[Array], Array]  # v (T, P) -> a matrix of each task times v (T, P)
Arrays = dict[str, Array]
Inputs = SimpleNamespace  # Values by name
Outputs = dict[str, Value]
CHUNK = 250  # steps in a chunk: the fastest size measured, see docs/log.md


# --- chunks of steps ------------------------------------------------------------------


class Samples(NamedTuple):
    """The sampled steps of T tasks in chunks; each chunk belongs to one task."""

    task_of_chunk: Array  # (chunks,), the number of its task, in ascending order
    tasks: int  # the number of tasks, T
    arrays: Arrays  # (chunks, CHUNK, ...): x, actions, advantages, weights

    def __repr__(self) -> str:
        return array_table(f"Samples of {self.tasks} tasks, in chunks", self.arrays)


def chunk_steps(
    trajectories: Trajectories, advantages: Array, size: int = CHUNK
) -> Samples:
    """The steps that were taken, in chunks of `size` steps.

    advantages: (T, B, horizon). The weight of a step is 1 over the number of steps in
    its task, so a weighted sum is a mean over the task's steps. The last chunk of a
    task is padded: with copies of the task's first step, with weight 0.
    """
    mask = trajectories.mask.reshape(len(trajectories.mask), -1)
    counts = mask.sum(axis=1)  # steps of each task
    chunks = -(-counts // size)  # chunks of each task, rounded up
    task = np.repeat(np.arange(len(counts)), chunks)
    chunk_in_task = np.arange(len(task)) - (np.cumsum(chunks) - chunks)[task]
    # (chunks, size): the position of every entry among the steps of its task
    position = chunk_in_task[:, None] * size + np.arange(size)
    real = position < counts[task][:, None]
    first_step = (np.cumsum(counts) - counts)[task][:, None]
    index = np.flatnonzero(mask)[first_step + np.where(real, position, 0)]
    x = trajectories.observations
    arrays = {
        "x": x.reshape(-1, x.shape[-1])[index],
        "actions": trajectories.actions.reshape(mask.size, -1)[index],
        "advantages": advantages.reshape(-1)[index].astype(x.dtype),
        "weights": (real / counts[task][:, None]).astype(x.dtype),
    }
    return Samples(task, len(counts), arrays)


# --- what is recorded for one chunk ---------------------------------------------------
# Each function gets the policy and a namespace of the inputs that the table QUANTITIES
# lists for it, and returns the outputs of its tape by name.


def _inner_loss(policy: GaussianPolicy, inputs: Inputs) -> Value:
    log_pi = log_probability(policy(inputs.theta, inputs.x), inputs.actions)
    return policy_gradient_loss(log_pi, inputs.advantages, inputs.weights)


def record_gradient(policy: GaussianPolicy, inputs: Inputs) -> Outputs:
    """The gradient of the inner loss, equation (4)."""
    return {"gradient": grad(_inner_loss(policy, inputs), inputs.theta)}


def record_hvp(policy: GaussianPolicy, inputs: Inputs) -> Outputs:
    """The Hessian of the inner loss times v."""
    return {"product": hvp(_inner_loss(policy, inputs), inputs.theta, inputs.v)}


def record_old_policy(policy: GaussianPolicy, inputs: Inputs) -> Outputs:
    """What the surrogate loss and the KL divergence need of the old policy."""
    gaussian = policy(inputs.theta, inputs.x)
    return {
        "old_log_pi": log_probability(gaussian, inputs.actions),
        "old_mean": gaussian.mean,
        "old_log_std": gaussian.log_std,
    }


def _surrogate(new: Gaussian, inputs: Inputs) -> Value:
    log_pi = log_probability(new, inputs.actions)
    return surrogate_loss(log_pi, inputs.old_log_pi, inputs.advantages, inputs.weights)


def record_surrogate(policy: GaussianPolicy, inputs: Inputs) -> Outputs:
    """The surrogate loss and its gradient."""
    loss = _surrogate(policy(inputs.theta, inputs.x), inputs)
    return {"loss": loss, "gradient": grad(loss, inputs.theta)}


def record_surrogate_and_kl(policy: GaussianPolicy, inputs: Inputs) -> Outputs:
    """The surrogate loss and the mean KL divergence from the old policy."""
    new = policy(inputs.theta, inputs.x)
    loss = _surrogate(new, inputs)
    old = Gaussian(inputs.old_mean, inputs.old_log_std)
    return {"loss": loss, "kl": (kl_divergence(old, new) * inputs.weights).sum()}


# [fisher]
def record_fisher(policy: GaussianPolicy, inputs: Inputs) -> Outputs:
    """F v: the Hessian of the mean KL(old || new), at new = old, times v.

    The gradient of the KL divergence is 0 at new = old, so only first derivatives of
    the policy occur in its Hessian: F = J' M J. J is the Jacobian of (mean, log sigma)
    with respect to theta. M is the Hessian of the divergence in (mean, log sigma),
    which is diagonal: 1 / sigma^2 for a mean and 2 for a log sigma.
    """
    gaussian = policy(inputs.theta, inputs.x)
    # Forward mode: J v.
    mean_dot, log_std_dot = (jvp(out, inputs.theta, inputs.v) for out in gaussian)
    # u = M J v for each step, with the step's weight in the mean over steps.
    u_mean = mean_dot * exp(gaussian.log_std * -2) * inputs.weights.reshape(-1, 1)
    u_log_std = log_std_dot * 2 * inputs.weights.sum()
    # Reverse mode: J' u is the gradient of (mean, log sigma) . u, where u counts as a
    # constant. But u was computed from theta, so the gradient is taken with respect to
    # a copy of theta, on which u does not depend.
    copy = rematerialise(inputs.theta)
    mean, log_std = policy(copy, inputs.x)
    return {"product": grad((mean * u_mean).sum() + (log_std * u_log_std).sum(), copy)}


# [/fisher]


class Quantity(NamedTuple):
    """A computation on one chunk: what records it, and the inputs of its tape."""

    record: Callable[[GaussianPolicy, Inputs], Outputs]
    inputs: tuple[str, ...]


STEPS = ("theta", "x", "actions", "advantages", "weights")
OLD = ("old_mean", "old_log_std")
QUANTITIES = {
    "gradient": Quantity(record_gradient, STEPS),
    "hessian": Quantity(record_hvp, (*STEPS, "v")),
    "fisher": Quantity(record_fisher, ("theta", "x", "weights", "v")),
    "old policy": Quantity(record_old_policy, ("theta", "x", "actions")),
    "surrogate": Quantity(record_surrogate, (*STEPS, "old_log_pi")),
    "surrogate and kl": Quantity(record_surrogate_and_kl, (*STEPS, "old_log_pi", *OLD)),
}


# --- running it for all chunks of all tasks -------------------------------------------


class PolicyLosses:
    """The losses of a policy on samples, and their derivatives, run by a backend.

    policy: a GaussianPolicy. backend, threads: see `get_backend`.

    Each method takes thetas (T, P) and samples of T tasks. Results have a leading task
    axis and the dtype of thetas.
    """

    def __init__(
        self,
        policy: GaussianPolicy,
        backend: str | Backend = "auto",
        threads: int | None = None,
    ) -> None:
        self.policy = policy
        self.backend = get_backend(backend, threads)
        self._programs = ProgramCache()

    def gradient(self, thetas: Array, samples: Samples) -> Array:
        """The gradient of the inner loss, equation (4): (T, P)."""
        return self._sums("gradient", thetas, samples)["gradient"]

    def hessian(self, thetas: Array, samples: Samples) -> Product:
        """Products with the Hessian of the inner loss, as a function of v (T, P)."""
        return self._product("hessian", thetas, samples)

    def fisher(self, thetas: Array, samples: Samples) -> Product:
        """Products with F, the Hessian of the mean KL(old || new) at new = old."""
        return self._product("fisher", thetas, samples)

    def attach_old_policy(self, thetas: Array, samples: Samples) -> Samples:
        """The samples with what the losses below need of the policy that drew them.

        thetas: the parameters of that policy.
        """
        old = self._run("old policy", thetas, samples)
        return samples._replace(arrays=samples.arrays | old)

    def surrogate(self, thetas: Array, samples: Samples) -> tuple[Array, Array]:
        """The surrogate loss (T,) and its gradient (T, P).

        samples: from `attach_old_policy`.
        """
        sums = self._sums("surrogate", thetas, samples)
        return sums["loss"], sums["gradient"]

    def surrogate_and_kl(self, thetas: Array, samples: Samples) -> tuple[Array, Array]:
        """The surrogate loss and the mean KL(old || new): (T,), (T,).

        samples: from `attach_old_policy`.
        """
        sums = self._sums("surrogate and kl", thetas, samples)
        return sums["loss"], sums["kl"]

    def _sums(self, name: str, thetas: Array, samples: Samples) -> Arrays:
        """The outputs of a quantity, summed over the chunks of each task."""
        return _sum_chunks(self._run(name, thetas, samples), samples)

    def _run(self, name: str, thetas: Array, samples: Samples) -> Arrays:
        """The outputs of a quantity for every chunk."""
        inputs = {"theta": thetas[samples.task_of_chunk], **samples.arrays}
        ((tape, program),) = self._compiled(name, inputs)
        return program({key: inputs[key] for key in tape.inputs})

    def _product(self, name: str, thetas: Array, samples: Samples) -> Product:
        """Products of a quantity with any v; what does not depend on v runs only now.

        The result keeps about a forward and a backward pass of each chunk in memory:
        1.2 KB for each step of a policy with two layers of 100 units in float32.
        """
        inputs = {"theta": thetas[samples.task_of_chunk], **samples.arrays}
        (known, known_program), (rest, rest_program) = self._compiled(name, inputs)
        inputs |= known_program({key: inputs[key] for key in known.inputs})
        run = rest_program.bind({key: inputs[key] for key in rest.inputs if key != "v"})

        def product(v: Array) -> Array:
            return _sum_chunks(run({"v": v[samples.task_of_chunk]}), samples)["product"]

        return product

    def _compiled(self, name: str, inputs: Arrays) -> list[tuple[Tape, Program]]:
        """The tape of a quantity and its program, compiled at first use.

        A tape with the input v is split in two: what does not depend on v, and what
        does.
        """
        dtype = inputs["theta"].dtype

        def compile_quantity() -> list[tuple[Tape, Program]]:
            tape = _record(self.policy, name, inputs | {"v": inputs["theta"]})
            tapes = partially_evaluate(tape, "v") if "v" in tape.inputs else (tape,)
            return [(t, self.backend.compile(t, dtype)) for t in tapes]

        key = (name, dtype, inputs["x"].shape[1:])
        return self._programs.get(key, compile_quantity)


def _record(policy: GaussianPolicy, name: str, arrays: Arrays) -> Tape:
    """The tape of a quantity for one chunk, with inputs of the shapes of arrays."""
    tape, quantity = Tape(), QUANTITIES[name]
    shapes = {key: arrays[key].shape[1:] for key in quantity.inputs}
    inputs = {key: tape.input(key, n, per_task=True) for key, n in shapes.items()}
    for key, value in quantity.record(policy, Inputs(**inputs)).items():
        tape.output(key, value)
    return tape


def _sum_chunks(outputs: Arrays, samples: Samples) -> Arrays:
    """Sums over the chunks of each task, in their order.

    A loop over chunks is faster here than `np.add.reduceat`, see docs/log.md.
    """
    sums = {}
    for name, array in outputs.items():
        total = sums[name] = np.zeros((samples.tasks, *array.shape[1:]), array.dtype)
        for task, chunk in zip(samples.task_of_chunk, array, strict=True):
            total[task] += chunk
    return sums
