"""The two problems on which `examples/compare.py` compares MAML's relatives.

A problem says what is trained, on which tasks, and how parameters are tested:
`sinusoids` is section 5.1, `omniglot_5_way` the network without convolutions of section
5.2. Left out: the methods (`methods.py`), and everything that is measured.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import tinymaml as tm
from few_shot import TEST, VALIDATION
from few_shot_evaluation import fixed_tasks, logits, sampler
from methods import RELATIVES, Method, context_network, rescaled
from shared import random_stream
from sinusoid import (
    CANDIDATES,
    EVALUATION,
    INITIAL,
    INITIALISERS,
    OUTER_LEARNING_RATE,
    STEPS,
    TASKS,
    new_tasks,
    sample_pooled_tasks,
)
from sinusoid import VALIDATION as SINUSOID_VALIDATION
from tinymaml.backends import Backend
from tinymaml.networks.layers import Network
from tinymaml.paper.recipes import RECIPES, SinusoidRecipe, accuracy
from tinymaml.tasks import sinusoid
from tinymaml.tasks.images import ImageSet
from tinymaml.variants.cavia import CAVIA
from tinymaml.variants.fine_tuning import AllClasses, new_last_layer
from tinymaml.variants.nearest_neighbour import nearest_neighbour

Array = np.ndarray[Any, Any]
RECIPE = RECIPES["fc-5w1s"]


class Problem(NamedTuple):
    """What differs between the sinusoids and Omniglot."""

    name: str  # in `methods.PROBLEMS`
    title: str
    metric: str  # in results.json: mse or accuracy
    better: int  # +1 if larger is better, else -1
    maml: Callable[[Any], tm.MAML]  # exact MAML of a network, with all settings
    network: Any
    context: Any  # the network with a context vector, if there is one
    sample: Callable[[np.random.Generator], tm.Tasks]  # a meta-batch
    pooled: "Callable[[], Pooled]"  # the baseline that knows no tasks
    nearest: Callable[[tm.Tasks], Array] | None  # nearest neighbour's metric, (T,)
    learning_rate: float  # of Adam
    validation: Mapping[int, tm.Tasks]  # by K
    tests: Mapping[int, tm.Tasks]  # by K, the same for all methods and seeds
    evaluate: Callable[[tm.MAML, Any, Array, tm.Tasks, int], Array]  # (T, steps + 1)
    shots: int  # K in the table and the figure
    steps: int  # inner steps there, or more if a method is trained for more
    candidates: tuple[float, ...]  # inner learning rates of a baseline without its own
    validate_every: int
    rounds: int  # of timing


class Pooled(NamedTuple):
    """How the baseline is trained that learns everything at once."""

    maml: tm.MAML  # with no inner step
    network: Any
    sample: Callable[[np.random.Generator], tm.Tasks]
    for_new_tasks: Callable[[Array], Array]  # from its theta to that of the network


class Training(NamedTuple):
    """One method on one problem."""

    method: Method
    maml: tm.MAML
    network: Any
    sample: Callable[[np.random.Generator], tm.Tasks]

    def first_theta(self, seed: int) -> Array:
        """What the outer loop starts from."""
        theta = np.asarray(self.network.init(random_stream(INITIAL, seed)))
        return self.method.start(self.maml, theta)


def training(problem: Problem, name: str) -> Training:
    """A method of `methods.py` on the problem."""
    method = RELATIVES[name]
    if method.pooled:
        return Training(method, *problem.pooled()[:3])
    network = problem.context if method.context else problem.network
    maml = method.learner(problem.maml(network), network)
    return Training(method, maml, network, problem.sample)


def adapted(problem: Problem, entry: Training) -> int:
    """How many parameters the inner loop changes at test."""
    maml, network = entry.maml, entry.network
    if entry.method.pooled:
        maml, network = problem.maml(problem.network), problem.network
    if maml.steps == 0:
        return 0
    return int(np.count_nonzero(np.broadcast_to(maml.alpha, network.size)))


def learned(problem: Problem, entry: Training, theta: Array) -> int:
    """How many parameters the outer loop changes: all but CAVIA's context."""
    fixed = isinstance(entry.maml, CAVIA)
    return theta.size - (adapted(problem, entry) if fixed else 0)


def scores(
    problem: Problem, entry: Training, theta: Array, tasks: tm.Tasks, steps: int
) -> Array:
    """The metric of each task after 0 .. steps inner steps, (T, steps + 1)."""
    return problem.evaluate(entry.maml, entry.network, theta, tasks, steps)


def at_test(
    problem: Problem, entry: Training, theta: Array, shots: int, steps: int
) -> tuple[Training, Array]:
    """What adapts to new tasks, and the theta from which it does.

    It is what was trained, except for the baseline. That has MAML's inner loop, with
    the rate of the best mean over 1 to `steps` steps on the validation tasks.
    """
    if not entry.method.pooled:
        return entry, theta
    theta, tasks = problem.pooled().for_new_tasks(theta), problem.validation[shots]

    def with_rate(alpha: float) -> Training:
        maml = problem.maml(problem.network)
        maml.alpha = rescaled(maml, alpha)
        return entry._replace(maml=maml, network=problem.network)

    def score(alpha: float) -> float:
        values = scores(problem, with_rate(alpha), theta, tasks, steps)[:, 1:]
        mean = float(values.mean(dtype=np.float64))
        return problem.better * mean if np.isfinite(mean) else -np.inf

    return with_rate(max(problem.candidates, key=score)), theta


def reported_steps(problem: Problem, entry: Training) -> int:
    """The number of inner steps after which a method is reported."""
    return entry.method.reported_steps(problem.steps, entry.maml)


# %% Sinusoids


def sinusoids(backend: Backend, fast: bool) -> Problem:
    """Section 5.1 as in sinusoid.py: trained and reported with 10 points and one step.

    The test has 5 points too.
    """
    initialiser = INITIALISERS["recipe"]

    def maml(network: Network) -> tm.MAML:
        return SinusoidRecipe().maml(network, backend=backend)

    def evaluate(
        maml: tm.MAML, network: Network, theta: Array, tasks: tm.Tasks, steps: int
    ) -> Array:
        return maml.evaluate(theta, tasks, steps)

    def pooled() -> Pooled:
        plain = maml(network)
        plain.steps = 0
        return Pooled(plain, network, sample_pooled_tasks, lambda theta: theta)

    network = tm.MLP([1, 40, 40, 1], initialiser=initialiser)
    return Problem(
        "sinusoid",
        "mean squared error of new sine waves, 10 points",
        "mse",
        -1,
        maml,
        network,
        context_network(initialiser),
        lambda rng: sinusoid.sample_tasks(rng),
        pooled,
        None,
        OUTER_LEARNING_RATE,
        {shots: new_tasks(SINUSOID_VALIDATION, shots)[0] for shots in (5, 10)},
        {shots: new_tasks(EVALUATION, shots)[0] for shots in (5, 10)},
        evaluate,
        shots=10,
        steps=1,
        candidates=CANDIDATES,
        validate_every=50 if fast else 1_000,
        rounds=20 if fast else 200,
    )


# %% Omniglot, 5-way 1-shot, without convolutions


def omniglot_5_way(
    sets: Mapping[str, ImageSet], backend: Backend, fast: bool
) -> Problem:
    """The recipe fc-5w1s of table 1; the accuracy is that after its 3 test steps."""
    count = (200, TASKS) if not fast else (20, 60)

    def evaluate(
        maml: tm.MAML, network: Any, theta: Array, tasks: tm.Tasks, steps: int
    ) -> Array:
        after = logits(maml, [network], theta, tasks, steps)[0]
        return 100 * accuracy(after, tasks.y_query[:, None])

    def fixed(part: str, purpose: int, number: int) -> Mapping[int, tm.Tasks]:
        tasks = fixed_tasks(sets[part], RECIPE, True, purpose, number)
        return {RECIPE.shots: tasks}

    train, network = sets["train"], RECIPE.network()
    sample = sampler(train, RECIPE, True, RECIPE.queries, RECIPE.tasks)

    def pooled() -> Pooled:
        classes = AllClasses(sample)
        wide = tm.OmniglotFC(classes.classes)
        plain = RECIPE.maml(wide, backend=backend)
        plain.steps = 0
        narrow = partial(new_last_layer, trained=wide, network=network)
        return Pooled(plain, wide, classes, narrow)

    def nearest(tasks: tm.Tasks) -> Array:
        maml = RECIPE.maml(network, backend=backend)
        theta = network.init(random_stream(INITIAL, 0))  # pixels do not depend on it
        y = nearest_neighbour(maml, pixels, theta, tasks)
        return 100 * accuracy(y, tasks.y_query)

    return Problem(
        "omniglot",
        "accuracy in per cent on new characters, 5-way 1-shot, no convolutions, "
        f"{sets['train'].source}",
        "accuracy",
        1,
        lambda network: RECIPE.maml(network, backend=backend),
        network,
        None,
        sample,
        pooled,
        nearest,
        RECIPE.learning_rate,
        fixed("validation", VALIDATION, count[0]),
        fixed("test", TEST, count[1]),
        evaluate,
        shots=RECIPE.shots,
        steps=RECIPE.test_steps,
        candidates=(0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8),
        validate_every=20 if fast else 500,
        rounds=3 if fast else 20,
    )


def pixels(theta: tm.Value, x: tm.Value, x_support: tm.Value) -> tm.Value:
    """The features that nearest neighbour compares."""
    return x.reshape(x.shape[0], -1)


TEST_STEPS = STEPS  # the test has 0 to 10 inner steps
