"""How the classification examples measure: fixed tasks, accuracy, intervals."""

from collections.abc import Sequence
from typing import Any

import numpy as np

import tinymaml as tm
from few_shot_figures import Episode
from methods import RELATIVES
from shared import STARTS, mean_and_interval, text_table
from tinymaml.autodiff.functions import concatenate
from tinymaml.networks.images import ImageNetwork
from tinymaml.paper.recipes import Recipe, accuracy
from tinymaml.tasks.episodes import Episodes
from tinymaml.tasks.images import ImageSet

Array = np.ndarray[Any, Any]
Row = dict[str, Any]  # of results.json
TEST_STEPS = 10
BLOCK = 60  # tasks in one call of `predict`, so that its results fit in memory


def sampler(
    images: ImageSet, recipe: Recipe, rotations: bool, queries: int, tasks: int = 1
) -> Episodes:
    """Tasks of the recipe's ways and shots from these images."""
    return Episodes(
        images.images,
        images.labels,
        ways=recipe.ways,
        shots=recipe.shots,
        queries=queries,
        rotations=rotations,
        tasks=tasks,
    )


def fixed_tasks(
    images: ImageSet, recipe: Recipe, rotations: bool, purpose: int, count: int
) -> tm.Tasks:
    """The same tasks for every run, with K query examples of each class."""
    return sampler(images, recipe, rotations, recipe.shots).fixed(purpose, count)


def logits(
    maml: tm.MAML,
    networks: Sequence[ImageNetwork],
    theta: Array,
    tasks: tm.Tasks,
    steps: int,
) -> Array:
    """The logits after 0 .. steps inner steps: (networks, T, steps + 1, N K, N).

    The networks differ only in how they normalise query examples, so one adaptation
    serves all of them.
    """

    def all_logits(theta: tm.Value, x: tm.Value, x_support: tm.Value) -> tm.Value:
        return concatenate([n(theta, x, x_support).reshape(-1) for n in networks])

    count = len(tasks.x_query)
    blocks = [
        tm.Tasks(*(array[start : start + BLOCK] for array in tasks))
        for start in range(0, count, BLOCK)
    ]
    results = [maml.predict(all_logits, theta, block, steps) for block in blocks]
    shape = (count, steps + 1, len(networks), *tasks.y_query.shape[1:])
    return np.moveaxis(np.concatenate(results).reshape(shape), 2, 0)


# %% The test: 600 tasks, 0 to 10 gradient steps, or as many as a method needs
# Query examples are normalised by their own statistics (transductive, as in the paper)
# and, for comparison, by those of the support examples.


def test(
    theta: Array,
    recipe: Recipe,
    tasks: tm.Tasks,
    maml: tm.MAML,
    method: str,
    as_in_paper: bool,
) -> list[Row]:
    """The rows of `results.json`: one for each normalisation and number of steps.

    maml: adapts the parameters of a network of the recipe. method: its name in
    `methods.py`. A row has the mean accuracy and its 95 % interval. Results of MAML on
    data and tasks `as_in_paper` also have the paper's number.
    """
    rows = []
    paper = recipe.paper_of(maml.order) if as_in_paper and method in STARTS else None
    modes = ("batch", "support")
    networks = [recipe.network(mode) for mode in modes]
    reported = RELATIVES[method].reported_steps(recipe.test_steps, maml)
    most = max(TEST_STEPS, reported)
    by_mode = logits(maml, networks, theta, tasks, most)
    accuracies = accuracy(by_mode, tasks.y_query[:, None])  # (modes, T, steps + 1)
    for mode, values in zip(modes, accuracies, strict=True):
        for steps in range(most + 1):
            mean, interval = mean_and_interval(100 * values[:, steps])
            of_paper = mode == "batch" and steps == recipe.test_steps
            rows.append(
                {
                    "method": "maml" if method in STARTS else method,
                    "order": maml.order,
                    "ways": recipe.ways,
                    "shots": recipe.shots,
                    "statistics": mode,
                    "steps": steps,
                    "accuracy": mean,
                    "ci95": interval,
                    "paper": paper[0] if paper and of_paper else None,
                }
            )
    return rows


def table(
    rows: Sequence[Row], recipe: Recipe, reported: int, paper: bool = True
) -> str:
    """Accuracy in per cent after each number of steps; * marks the reported one.

    paper: whether to leave a column for the paper's number.
    """
    lines = []
    for steps in range(rows[-1]["steps"] + 1):
        by_mode = [r for r in rows if r["steps"] == steps]
        line = [f"{steps}{' *' if steps == reported else ''}"]
        line += [f"{r['accuracy']:.2f} ± {r['ci95']:.2f}" for r in by_mode]
        published = recipe.paper_of(by_mode[0]["order"])
        shown = by_mode[0]["paper"] is not None
        of_paper = (
            f"{published[0]:.2f} ± {published[1]:.2f}" if published and shown else ""
        )
        lines.append(line + [of_paper] * paper)
    header = ["steps", "transductive", "support statistics", "paper"]
    return text_table(header[: 3 + paper], lines)


def episode(
    theta: Array, recipe: Recipe, tasks: tm.Tasks, maml: tm.MAML, steps: int
) -> Episode:
    """The first test task, with predictions before and after that many steps."""
    network = recipe.network()
    first = tm.Tasks(*(a[:1] for a in tasks))
    classes = logits(maml, [network], theta, first, steps)[0, 0].argmax(-1)
    support, query = first.y_support[0].argmax(-1), first.y_query[0].argmax(-1)
    return Episode(
        first.x_support[0], support, first.x_query[0], query, classes[[0, -1]], steps
    )
