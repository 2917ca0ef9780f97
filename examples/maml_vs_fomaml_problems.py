"""The two problems on which `examples/maml_vs_fomaml.py` compares the meta-gradients.

A problem says what is trained, on which tasks, and how a theta is evaluated:
`sinusoids` is section 5.1, `omniglot_5_way` is section 5.2. Left out: everything that
is measured.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

import tinymaml as tm
from few_shot_evaluation import fixed_tasks, logits, sampler
from shared import random_stream
from tinymaml.backends import Backend
from tinymaml.networks.layers import truncated_normal
from tinymaml.paper.initialisations import pretrained
from tinymaml.paper.recipes import RECIPES, accuracy
from tinymaml.tasks import sinusoid
from tinymaml.tasks.images import ImageSet

Array = np.ndarray[Any, Any]

# Purposes of random numbers, as in sinusoid.py and few_shot.py.
INITIAL, TRAINING, PROBE = 1, 2, 4
ALPHA = 0.01
RECIPE = RECIPES["5w1s"]


class Problem(NamedTuple):
    """What differs between the sinusoids and Omniglot."""

    title: str
    maml: Callable[..., tm.MAML]  # takes the options of MAML, such as order and steps
    network: tm.Network
    sample: Callable[[np.random.Generator], tm.Tasks]  # a meta-batch
    probe: tm.Tasks  # on these tasks everything is measured; no training uses them
    timed: tm.Tasks  # a few tasks: short calls are disturbed least by other programs
    memory: tm.Tasks  # one task, for counting bytes
    evaluate: Callable[[Array, tm.Tasks], float]  # `score` after adaptation
    score: str
    shipped: Mapping[str, Array]  # meta-learned thetas that come with the package
    steps: tuple[int, ...]  # numbers of inner steps for which the cost is measured
    rounds: int  # of timing
    points: int  # how often the terms are measured during a training


# %% Sinusoids

NETWORK = tm.MLP([1, 40, 40, 1], initialiser=truncated_normal(0.01))


def loss(theta: tm.Value, x: tm.Value, y: tm.Value) -> tm.Value:
    """Mean squared error; paper eq. (2) has the sum."""
    return tm.squared_error(NETWORK(theta, x), y)


def sinusoids(backend: Backend) -> Problem:
    """Section 5.1 with the paper's alpha = 0.01; the score is the error after a step.

    The memory is that of 100 support points: with 10, activations are small.
    """
    probe = sinusoid.sample_tasks(np.random.default_rng(1000), tasks=500)

    def maml(**options: Any) -> tm.MAML:
        return tm.MAML(loss, ALPHA, backend=backend, **options)

    def evaluate(theta: Array, tasks: tm.Tasks) -> float:
        return float(maml().evaluate(theta, tasks, steps=1)[:, 1].mean())

    return Problem(
        "sinusoids",
        maml,
        NETWORK,
        lambda rng: sinusoid.sample_tasks(rng),
        probe,
        sinusoid.sample_tasks(np.random.default_rng(0)),
        sinusoid.sample_tasks(np.random.default_rng(0), tasks=1, shots=100),
        evaluate,
        "mean squared error after 1 step",
        {},
        steps=(1, 2, 3, 5, 7, 10),
        rounds=300,
        points=40,
    )


# %% Omniglot, 5-way 1-shot


def omniglot_5_way(sets: Mapping[str, ImageSet], backend: Backend) -> Problem:
    """The recipe 5w1s of table 1; the score is the accuracy after its 3 test steps.

    The probe is made of test characters, so the shipped theta has not seen them either.
    """
    network, steps = RECIPE.network(), RECIPE.test_steps
    probe = fixed_tasks(sets["test"], RECIPE, True, PROBE, 200)

    def maml(steps: int = RECIPE.steps, **options: Any) -> tm.MAML:
        learner = RECIPE.maml(network, backend=backend, **options)
        learner.steps = steps
        return learner

    def evaluate(theta: Array, tasks: tm.Tasks) -> float:
        after = logits(maml(), [network], theta, tasks, steps)[0, :, steps]
        return float(100 * accuracy(after, tasks.y_query).mean())

    return Problem(
        f"5-way 1-shot, {sets['train'].source}",
        maml,
        network,
        sampler(sets["train"], RECIPE, True, RECIPE.queries, RECIPE.tasks),
        probe,
        tm.Tasks(*(array[:2] for array in probe)),
        tm.Tasks(*(array[:1] for array in probe)),
        evaluate,
        f"accuracy after {steps} steps, %",
        {"omniglot-5w1s": pretrained("omniglot-5w1s").theta},
        steps=(1, 2, 3, 5),
        rounds=60,
        points=14,
    )


def first_theta(problem: Problem, seed: int) -> Array:
    """The theta from which both trainings start."""
    return problem.network.init(random_stream(INITIAL, seed))
