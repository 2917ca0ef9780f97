"""A policy's losses on sampled trajectories, and their derivatives, task by task.

With this file the algorithm (`maml_trpo.py`) reads like its formulas: `gradient` takes
parameters (T, P), one for each task, and returns such; `hessian` and `fisher` return
functions that multiply vectors (T, P), as often as one likes.

A loss of sampled steps is a sum over steps, and so are its gradient and all of these
products. So the steps of all tasks that were really taken are cut into pieces of
`ROWS`, a backend runs a piece as it runs a task elsewhere, and the pieces of a task
are added. Ended trajectories cost nothing, one tape serves whatever is sampled, and the
arrays of a piece stay in the core's cache.

Left out: losses that are no sums over steps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tinymaml.autodiff.derivatives import grad, hvp, jvp
from tinymaml.autodiff.functions import exp, rematerialise
from tinymaml.autodiff.partial_evaluation import partially_evaluate
from tinymaml.autodiff.tape import Tape, Value
from tinymaml.backends import Backend, Program, get_backend
from tinymaml.losses import policy_gradient_loss, surrogate_loss
from tinymaml.rl.policy import Gaussian, GaussianPolicy, kl_divergence, log_probability
from tinymaml.rl.rollouts import Trajectories

Array = np.ndarray[Any, Any]
Product = Callable[[Array], Array]  # v (T, P) -> (T, P), a product for each task
ROWS = 250  # steps in a piece; measured, see docs/log.md


class Samples(NamedTuple):
    """The steps of T tasks, cut into M pieces of R; a piece belongs to one task."""

    task: Array  # (M,) whose piece it is, in ascending order
    tasks: int  # T
    arrays: dict[str, Array]  # (M, R, ...): x, actions, advantages, weights


def cut(trajectories: Trajectories, advantages: Array, rows: int = ROWS) -> Samples:
    """The steps that were taken, in pieces; the last of a task is filled up.

    A step's weight is 1 over the number of its task's steps, so that weighted sums are
    means; what fills up has weight 0. advantages: (T, B, H).
    """
    mask = trajectories.mask.reshape(len(trajectories.mask), -1)
    counts = mask.sum(axis=1)
    pieces = -(-counts // rows)
    starts = np.cumsum(pieces) - pieces
    task = np.repeat(np.arange(len(counts)), pieces)
    place = (np.arange(len(task)) - starts[task])[:, None] * rows + np.arange(rows)
    taken = place < counts[task][:, None]
    first = (np.cumsum(counts) - counts)[task][:, None]
    index = np.flatnonzero(mask)[first + np.where(taken, place, 0)]
    x = trajectories.observations
    weights = taken / counts[task][:, None]
    return Samples(
        task,
        len(counts),
        {
            "x": x.reshape(-1, x.shape[-1])[index],
            "actions": trajectories.actions.reshape(mask.size, -1)[index],
            "advantages": advantages.reshape(-1)[index].astype(x.dtype),
            "weights": weights.astype(x.dtype),
        },
    )


class _Holes:
    """The inputs of a tape, made when they are first asked for: `holes.theta`."""

    def __init__(self, tape: Tape, shapes: dict[str, tuple[int, ...]]) -> None:
        self._tape, self._shapes = tape, shapes

    def __getattr__(self, name: str) -> Value:
        value = self._tape.input(name, self._shapes[name], per_task=True)
        setattr(self, name, value)
        return value


Recorder = Callable[[GaussianPolicy, "_Holes"], dict[str, Value]]


# --- what goes on the tape, for one piece ---------------------------------------------


def _inner_loss(policy: GaussianPolicy, holes: _Holes) -> Value:
    log_pi = log_probability(policy(holes.theta, holes.x), holes.actions)
    return policy_gradient_loss(log_pi, holes.advantages, holes.weights)


def record_gradient(policy: GaussianPolicy, holes: _Holes) -> dict[str, Value]:
    """The gradient of the inner loss."""
    return {"gradient": grad(_inner_loss(policy, holes), holes.theta)}


def record_hvp(policy: GaussianPolicy, holes: _Holes) -> dict[str, Value]:
    """The Hessian of the inner loss times v."""
    return {"hvp": hvp(_inner_loss(policy, holes), holes.theta, holes.v)}


def record_old(policy: GaussianPolicy, holes: _Holes) -> dict[str, Value]:
    """What the surrogate and the KL divergence must know of the old policy."""
    gaussian = policy(holes.theta, holes.x)
    return {
        "old": log_probability(gaussian, holes.actions),
        "old_mean": gaussian.mean,
        "old_log_std": gaussian.log_std,
    }


def record_surrogate(policy: GaussianPolicy, holes: _Holes) -> dict[str, Value]:
    """The surrogate loss and its gradient."""
    log_pi = log_probability(policy(holes.theta, holes.x), holes.actions)
    loss = surrogate_loss(log_pi, holes.old, holes.advantages, holes.weights)
    return {"loss": loss, "gradient": grad(loss, holes.theta)}


def record_surrogate_and_kl(policy: GaussianPolicy, holes: _Holes) -> dict[str, Value]:
    """The surrogate loss and the mean KL divergence from the old policy."""
    new = policy(holes.theta, holes.x)
    log_pi = log_probability(new, holes.actions)
    loss = surrogate_loss(log_pi, holes.old, holes.advantages, holes.weights)
    old = Gaussian(holes.old_mean, holes.old_log_std)
    return {"loss": loss, "kl": (kl_divergence(old, new) * holes.weights).sum()}


# [fisher]
def record_fisher(policy: GaussianPolicy, holes: _Holes) -> dict[str, Value]:
    """F v, the Hessian at new = old of the mean KL(old || new), times v.

    The KL divergence has slope 0 there, so its Hessian is J' M J: J the derivative of
    (mean, log sigma), M the curvature of the divergence in these, 1 / sigma^2 for a
    mean and 2 for log sigma. J v is a jvp, J' of what comes of it a gradient. The
    latter is taken at a copy of theta, on which J v does not depend.
    """
    mean, log_std = gaussian = policy(holes.theta, holes.x)
    mean_dot, log_std_dot = (jvp(output, holes.theta, holes.v) for output in gaussian)
    pull_mean = mean_dot * exp(log_std * -2) * holes.weights.reshape(-1, 1)
    pull_log_std = log_std_dot * 2 * holes.weights.sum()
    copy = rematerialise(holes.theta)
    mean, log_std = policy(copy, holes.x)
    pulled = (mean * pull_mean).sum() + (log_std * pull_log_std).sum()
    return {"fisher": grad(pulled, copy)}


# [/fisher]


# --- running it for all pieces of all tasks -------------------------------------------


class PolicyLosses:
    """The losses of a policy on samples, run by a backend.

    Each method takes thetas (T, P) and samples of T tasks and returns arrays with a
    leading task axis, in the dtype of thetas, or a function that does.
    """

    def __init__(
        self,
        policy: GaussianPolicy,
        backend: str | Backend = "auto",
        threads: int | None = None,
    ) -> None:
        self.policy = policy
        self.backend = get_backend(backend, threads)
        self._programs: dict[Any, list[tuple[Tape, Program]]] = {}

    def gradient(self, thetas: Array, samples: Samples) -> Array:
        """The gradient of the inner loss, equation (4): (T, P)."""
        return self._run(record_gradient, thetas, samples)["gradient"]

    def hessian(self, thetas: Array, samples: Samples) -> Product:
        """Its Hessian H, as a function: v (T, P) -> H v (T, P)."""
        return self._product(record_hvp, thetas, samples)

    def fisher(self, thetas: Array, samples: Samples) -> Product:
        """F, the Hessian of the mean KL(old || new) at new = old, as a function."""
        return self._product(record_fisher, thetas, samples)

    def attach_old_policy(self, thetas: Array, samples: Samples) -> Samples:
        """The samples with what the policy of thetas, which drew them, gives them."""
        old = self._run(record_old, thetas, samples, add=False)
        return samples._replace(arrays=samples.arrays | old)

    def surrogate(self, thetas: Array, samples: Samples) -> tuple[Array, Array]:
        """The surrogate loss (T,) and its gradient (T, P), of remembered samples."""
        outputs = self._run(record_surrogate, thetas, samples)
        return outputs["loss"], outputs["gradient"]

    def surrogate_and_kl(self, thetas: Array, samples: Samples) -> tuple[Array, Array]:
        """The surrogate loss and the mean KL(old || new): (T,), (T,)."""
        outputs = self._run(record_surrogate_and_kl, thetas, samples)
        return outputs["loss"], outputs["kl"]

    def _run(
        self, record: Recorder, thetas: Array, samples: Samples, add: bool = True
    ) -> dict[str, Array]:
        """Run what `record` records for every piece; add up the pieces of a task."""
        inputs = {"theta": thetas[samples.task], **samples.arrays}
        ((tape, program),) = self._prepared(record, inputs)
        outputs = program({name: inputs[name] for name in tape.inputs})
        return _add_up(outputs, samples) if add else outputs

    def _product(self, record: Recorder, thetas: Array, samples: Samples) -> Product:
        """The product with v that `record` records, of which all else is run now.

        Keeps about a forward and a backward pass of each piece: 1.2 KB a step for a
        policy with two layers of 100 units in float32.
        """
        inputs = {"theta": thetas[samples.task], **samples.arrays}
        (one, first), (two, second) = self._prepared(record, inputs, changing="v")
        inputs |= first({name: inputs[name] for name in one.inputs})
        run = second.bind({name: inputs[name] for name in two.inputs if name != "v"})

        def product(v: Array) -> Array:
            (added,) = _add_up(run({"v": v[samples.task]}), samples).values()
            return added

        return product

    def _prepared(
        self, record: Recorder, inputs: dict[str, Array], changing: str = ""
    ) -> list[tuple[Tape, Program]]:
        """What `record` records, split by an input that changes, and its programs."""
        key = (record, inputs["theta"].dtype, inputs["x"].shape[1:])
        if key not in self._programs:
            holes = inputs | ({changing: inputs["theta"]} if changing else {})
            tape = _record(self.policy, record, holes)
            self._programs[key] = [
                (part, self.backend.compile(part, inputs["theta"].dtype))
                for part in (
                    partially_evaluate(tape, changing) if changing else (tape,)
                )
            ]
        return self._programs[key]


def _record(policy: GaussianPolicy, record: Recorder, inputs: dict[str, Array]) -> Tape:
    """The tape of one piece; it has the inputs that `record` asks for."""
    tape = Tape()
    holes = _Holes(tape, {name: array.shape[1:] for name, array in inputs.items()})
    for name, value in record(policy, holes).items():
        tape.output(name, value)
    return tape


def _add_up(outputs: dict[str, Array], samples: Samples) -> dict[str, Array]:
    """Sums over the pieces of each task, in their order."""
    added = {}
    for name, array in outputs.items():
        total = added[name] = np.zeros((samples.tasks, *array.shape[1:]), array.dtype)
        for task, piece in zip(samples.task, array, strict=True):
            total[task] += piece
    return added
