"""Small policy-search problems, and the outer step's derivatives by other routes.

The routes take the whole computation, adaptation included, as one function of theta on
one tape, for all steps of a task at once: no pieces, and no formula of the chain rule.
"""

from typing import Any, NamedTuple

import numpy as np

import tinymaml as tm
from tests.support.running import run_tape
from tinymaml.autodiff.derivatives import grad, hvp
from tinymaml.losses import policy_gradient_loss, surrogate_loss
from tinymaml.rl.maml_trpo import MAMLTRPO, Adaptation, Objective
from tinymaml.rl.policy import GaussianPolicy, kl_divergence, log_probability
from tinymaml.rl.policy_losses import cut
from tinymaml.tasks.navigation import Navigation

TASKS, TRAJECTORIES, HORIZON = 3, 4, 6


class Problem(NamedTuple):
    """A learner, a point theta, and what was sampled there, all in float64."""

    learner: MAMLTRPO
    theta: np.ndarray
    adaptation: Adaptation

    def objective(self):
        return Objective(self.learner, self.adaptation)


def small_policy(backend="numpy", activation="tanh"):
    network = tm.MLP([2, 5, 2], activation)
    return GaussianPolicy(network, 2, backend=backend, threads=1)


def small_theta(policy, seed=0):
    """Random parameters, biases and deviations too."""
    rng = np.random.default_rng(seed)
    theta = policy.init(rng, "float64")
    return theta + 0.3 * rng.standard_normal(policy.size)


def problem(backend="numpy", steps=1, order=2, alpha=0.4, rows=5, activation="tanh"):
    """Adapted as training does it; pieces of so few rows that every task has several.

    Goals are near the start, so that trajectories end at different times.
    """
    policy = small_policy(backend, activation)
    learner = MAMLTRPO(
        policy,
        Navigation(horizon=HORIZON),
        alpha,
        steps,
        order,
        TRAJECTORIES,
        backend=backend,
        threads=1,
    )
    theta = small_theta(policy)
    rng = np.random.default_rng(1)
    draw = learner.draw(rng, TASKS, "float64")
    draw = draw._replace(tasks=0.1 * draw.tasks)
    whole = learner.adapt(theta, draw)
    samples = [
        cut(sampled, weighed(learner, sampled), rows) for sampled in whole.trajectories
    ]
    return Problem(learner, theta, whole._replace(samples=samples))


def small_learner(backend="numpy", **options):
    options = {"alpha": 0.4, "trajectories": 4, **options}
    return MAMLTRPO(
        small_policy(backend),
        Navigation(horizon=7),
        backend=backend,
        threads=1,
        **options,
    )


def start(learner, dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    return learner.policy.init(rng, dtype), learner.draw(rng, 3, dtype)


def weighed(learner, trajectories):
    from tinymaml.rl.advantages import advantages

    return advantages(trajectories, learner.discount, learner.decay)


# --- the same as one function of theta ------------------------------------------------


def task_inputs(p, task):
    """The arrays of one task: what its policy saw, did and gained, step by step."""
    found: dict[str, Any] = {}
    for k, trajectories in enumerate(p.adaptation.trajectories):
        taken = trajectories.mask[task]
        found[f"x{k}"] = trajectories.observations[task][taken]
        found[f"a{k}"] = trajectories.actions[task][taken]
        found[f"advantages{k}"] = weighed(p.learner, trajectories)[task][taken]
        found[f"weights{k}"] = np.full(taken.sum(), 1 / taken.sum())
    return found


def record(p, inputs, kind, hold_hessian=False):
    """A tape of one task: the surrogate loss or the divergence after adaptation.

    The old policy is the adapted one at `theta_old`, through which nothing flows.
    """
    policy, steps = p.learner.policy, p.learner.steps
    tape = tm.Tape()
    holes = {name: tape.input(name, np.shape(a)) for name, a in inputs.items()}

    def adapted(theta):
        for k in range(steps):
            x, a, gain, w = (holes[f"{n}{k}"] for n in ("x", "a", *GAIN))
            log_pi = log_probability(policy(theta, x), a)
            slope = grad(policy_gradient_loss(log_pi, gain, w), theta)
            theta = theta - slope * float(p.learner.alpha)
        return theta

    theta = holes["theta"]
    last = {n: holes[f"{n}{steps}"] for n in ("x", "a", *GAIN)}
    new = policy(adapted(theta), last["x"])
    old = policy(adapted(holes["theta_old"]), last["x"])
    if kind == "kl":
        loss = (kl_divergence(old, new) * last["weights"]).sum()
    else:
        log_new, log_old = (log_probability(g, last["a"]) for g in (new, old))
        loss = surrogate_loss(log_new, log_old, last["advantages"], last["weights"])
    slope = grad(loss, theta)
    tape.output("loss", loss)
    tape.output("gradient", slope)
    tape.output("hvp", hvp(loss, theta, holes["v"]))
    return tape


GAIN = ("advantages", "weights")


def by_one_function(p, kind, theta=None, v=None):
    """Loss, gradient and Hessian times v of the mean over tasks, at theta."""
    theta = p.theta if theta is None else theta
    v = np.zeros_like(p.theta) if v is None else v
    totals: dict[str, Any] = {}
    for task in range(TASKS):
        inputs = task_inputs(p, task)
        inputs |= {"theta": theta, "theta_old": p.theta, "v": v}
        outputs = run_tape(record(p, inputs, kind), inputs)
        for name, array in outputs.items():
            totals[name] = totals.get(name, 0.0) + array[0] / TASKS
    return totals


def dense(product, size):
    """The matrix whose products with vectors are given, column by column."""
    return np.stack([product(e) for e in np.eye(size)], axis=1)
