"""What the page find-the-goal gets from tinymaml: two policies and two tapes of theirs.

`act` computes what `GaussianPolicy.act` does, for the twenty trajectories at once.
`gradient` is the gradient of the inner loss, equation (4), on a chunk of sampled steps:
the sum over the chunks is that of `PolicyLosses.gradient`.
"""

from typing import Any

import tinymaml as tm
from tinymaml.autodiff.functions import exp
from tinymaml.rl.advantages import CLIP, RIDGE, TIME_UNIT
from tinymaml.rl.maml_trpo import MAMLTRPO
from tinymaml.rl.policy import GaussianPolicy, log_probability
from tinymaml.rl.policy_losses import CHUNK
from tinymaml.tasks.navigation import GOALS, LARGEST_MOVE, NEAR

NAMES = ("maml", "pretrained")
TRAJECTORIES = 20  # before each step, as in meta-training
STEPS = 3


def learner_of(start: tm.Initialisation) -> MAMLTRPO:
    """The learner whose inner loop the page runs."""
    return start.recipe.maml(start.network, trajectories=TRAJECTORIES, backend="numpy")


def record_act(policy: GaussianPolicy) -> tm.Tape:
    """The policy's mean actions at twenty positions, and the actions with noise."""
    tape = tm.Tape()
    theta = tape.input("theta", (policy.size,))
    x = tape.input("x", (TRAJECTORIES, 2), per_task=True)
    noise = tape.input("noise", (TRAJECTORIES, policy.actions), per_task=True)
    mean, log_std = policy(theta, x)
    tape.output("mean", mean)
    tape.output("actions", mean + noise * exp(log_std))
    return tape


def record_gradient(policy: GaussianPolicy) -> tm.Tape:
    """The gradient of the inner loss on chunks of steps, summed over the chunks."""
    tape = tm.Tape()
    theta = tape.input("theta", (policy.size,))
    shapes = {"x": (CHUNK, 2), "actions": (CHUNK, policy.actions)}
    shapes |= {"advantages": (CHUNK,), "weights": (CHUNK,)}
    step = {name: tape.input(name, n, per_task=True) for name, n in shapes.items()}
    log_pi = log_probability(policy(theta, step["x"]), step["actions"])
    loss = tm.policy_gradient_loss(log_pi, step["advantages"], step["weights"])
    tape.output("gradient", tm.grad(loss, theta), "sum")
    return tape


def data() -> dict[str, Any]:
    """The policies' parameters, the tapes, and the numbers of the environment."""
    starts = {name: tm.pretrained(f"navigation-{name}") for name in NAMES}
    learner = learner_of(starts["maml"])
    return {
        "starts": {name: start.theta for name, start in starts.items()},
        "alphas": {name: start.recipe.alpha for name, start in starts.items()},
        "act": record_act(learner.policy),
        "gradient": record_gradient(learner.policy),
        "steps": STEPS,
        "trajectories": TRAJECTORIES,
        "horizon": learner.environment.horizon,
        "chunk": CHUNK,
        "largestMove": LARGEST_MOVE,
        "near": NEAR,
        "discount": learner.discount,
        "decay": learner.decay,
        "ridge": RIDGE,
        "clip": CLIP,
        "timeUnit": TIME_UNIT,
        "goals": list(GOALS),
    }
