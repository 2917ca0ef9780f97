"""Small policy-search problems, and the outer step's derivatives by other routes.

The other routes record the whole computation, adaptation included, as one function of
theta on one tape, for all steps of a task at once. They have no chunks, and they do not
use the formula of the chain rule that the package uses.
"""

from typing import Any, NamedTuple

import numpy as np

import tinymaml as tm
from tests.support.running import run_tape
from tinymaml.autodiff.derivatives import grad, hvp
from tinymaml.losses import policy_gradient_loss, surrogate_loss
from tinymaml.rl.advantages import advantages
from tinymaml.rl.maml_trpo import MAMLTRPO, Adaptation, Objective
from tinymaml.rl.policy import GaussianPolicy, kl_divergence, log_probability
from tinymaml.rl.policy_losses import chunk_steps
from tinymaml.rl.rollouts import roll_out
from tinymaml.tasks.navigation import Navigation

TASKS, TRAJECTORIES, HORIZON = 3, 4, 6
STEP = ("x", "a", "advantages", "weights")  # arrays of sampled steps


class Problem(NamedTuple):
    """A learner, parameters theta, and the adaptation from there, all in float64."""

    learner: MAMLTRPO
    theta: np.ndarray
    adaptation: Adaptation

    def objective(self):
        return Objective(self.learner, self.adaptation)


def small_policy(backend="numpy", activation="tanh"):
    network = tm.MLP([2, 5, 2], activation)
    return GaussianPolicy(network, 2, backend=backend, threads=1)


def small_theta(policy, seed=0):
    """Random parameters, also for biases and standard deviations."""
    rng = np.random.default_rng(seed)
    theta = policy.init(rng, "float64")
    return theta + 0.3 * rng.standard_normal(policy.size)


def problem(backend="numpy", steps=1, order=2, alpha=0.4, chunk=5, activation="tanh"):
    """A learner adapted as in training, with chunks so small that tasks have several.

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
    batch = learner.draw(rng, TASKS, "float64")
    batch = batch._replace(tasks=0.1 * batch.tasks)
    adaptation = learner.adapt(theta, batch)
    samples = [
        chunk_steps(trajectories, advantages_of(learner, trajectories), chunk)
        for trajectories in adaptation.trajectories
    ]
    return Problem(learner, theta, adaptation._replace(samples=samples))


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
    """Initial parameters and a meta-batch of 3 tasks."""
    rng = np.random.default_rng(seed)
    return learner.policy.init(rng, dtype), learner.draw(rng, 3, dtype)


def advantages_of(learner, trajectories):
    return advantages(trajectories, learner.discount, learner.decay)


class ConstantActor:
    """An actor that always takes the action theta, plus noise."""

    size, actions = 2, 2

    def act(self, thetas, x, noise):
        return np.broadcast_to(thetas[:, None], noise.shape) + noise


def walk(environment, goals, action, trajectories=1, noise=0.0, seed=0):
    """Trajectories of a ConstantActor in tasks with these goals."""
    goals = np.array(goals, float)
    thetas = np.broadcast_to(np.array(action, float), (len(goals), 2))
    shape = (len(goals), trajectories, environment.horizon, 2)
    z = noise * np.random.default_rng(seed).standard_normal(shape)
    return roll_out(ConstantActor(), environment, thetas, goals, z)


# --- the derivatives of the outer step, from one function of theta --------------------


def task_inputs(p, task):
    """Observations, actions, advantages and weights of one task, for each policy j."""
    inputs: dict[str, Any] = {}
    for j, trajectories in enumerate(p.adaptation.trajectories):
        mask = trajectories.mask[task]
        inputs[f"x{j}"] = trajectories.observations[task][mask]
        inputs[f"a{j}"] = trajectories.actions[task][mask]
        inputs[f"advantages{j}"] = advantages_of(p.learner, trajectories)[task][mask]
        inputs[f"weights{j}"] = np.full(mask.sum(), 1 / mask.sum())
    return inputs


def record(p, inputs, kind):
    """A tape of one task: the surrogate loss or the divergence after adaptation.

    The old policy is adapted from `theta_old`, which is another input of the tape, so
    it counts as a constant when the tape is differentiated with respect to theta.
    """
    policy, steps = p.learner.policy, p.learner.steps
    tape = tm.Tape()
    values = {name: tape.input(name, np.shape(a)) for name, a in inputs.items()}

    def adapted(theta):
        for j in range(steps):
            x, a, advantage, weights = (values[f"{name}{j}"] for name in STEP)
            log_pi = log_probability(policy(theta, x), a)
            gradient = grad(policy_gradient_loss(log_pi, advantage, weights), theta)
            theta = theta - gradient * float(p.learner.alpha)
        return theta

    theta = values["theta"]
    last = {name: values[f"{name}{steps}"] for name in STEP}
    new = policy(adapted(theta), last["x"])
    old = policy(adapted(values["theta_old"]), last["x"])
    if kind == "kl":
        loss = (kl_divergence(old, new) * last["weights"]).sum()
    else:
        log_new, log_old = (log_probability(g, last["a"]) for g in (new, old))
        loss = surrogate_loss(log_new, log_old, last["advantages"], last["weights"])
    tape.output("loss", loss)
    tape.output("gradient", grad(loss, theta))
    tape.output("hvp", hvp(loss, theta, values["v"]))
    return tape


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
