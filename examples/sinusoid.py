"""Regression on sinusoids: section 5.1 of the paper, figures 2, 3, 6, 7 and table 2.

    python examples/sinusoid.py               # under 3 minutes on two cores
    python examples/sinusoid.py --fast        # 15 seconds, compilation included
    python examples/sinusoid.py --multitask   # 3 minutes more: all of table 2

A task is one sine wave, of which the network sees K points. Meta-learned parameters
(exact MAML and first-order MAML) are compared with parameters pretrained on all tasks
at once and with an oracle that is told amplitude and phase.

The recipe is the paper's and, where the paper is silent, that of the authors' code: net
1-40-40-1 with relu, weights from a normal distribution of deviation 0.01 cut off at two
deviations, mean squared error, one inner step on K = 10 points with alpha = 0.001; Adam
with step size 0.001, 25 tasks a step, 70,000 steps. Test: 600 tasks, the same for all
methods and seeds, with K = 5, 10, 20 support points and K query points (the error is
taken on these), up to 10 gradient steps on the same support points, 95 % intervals of
1.96 deviations / sqrt(600). The pretrained net takes steps of the size that is best for
it on 600 other tasks, for each K, in the mean over 1 to 10 steps.

Deviations: alpha is the 0.001 of the authors' code, not the 0.01 of the paper's text,
because the former gives the paper's numbers with every seed tried. Exact MAML that is
trained for one step of 0.01 may diverge on some tasks when it takes ten of them on 5
points (try --alpha 0.01). --multitask has deviations of its own: see multitask.py.

Written into the folder of --out: figure2.png (fits, all points in one half of the
range), figure3.png (error against gradient steps), results.json, and a folder with
log.csv and checkpoint.npz for each training. Ctrl-C saves and stops; --resume continues
to the same bits.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import tinymaml as tm
from multitask import REGRESSORS, train_multitask
from shared import (
    Parser,
    add_resume,
    command_line,
    experiment_parser,
    how_to_continue,
    mean_and_interval,
    open_stages,
    positive_number,
    read_options,
    run_to_the_end,
    text_table,
    write_results,
)
from sinusoid_figures import Curve, Fits, draw_errors, draw_fits
from tinymaml.backends import Backend
from tinymaml.networks.layers import he_normal, truncated_normal
from tinymaml.tasks import sinusoid
from tinymaml.training.stages import Stages

Array = np.ndarray[Any, Any]
Row = dict[str, Any]  # of results.json
Sizes = Mapping[tuple[str, int], float]  # of gradient steps, by method and K
FILES = ("figure2.png", "figure3.png", "results.json")

# %% What is compared
# Names as in the log and the checkpoint, as in results.json, and as a reader sees them.


class Method(NamedTuple):
    """One row of the comparison; `paper` is table 2, by number of gradient steps."""

    name: str
    order: int | None
    label: str
    paper: dict[int, float]
    colour: str = ""
    marker: str = ""


MAML = {1: 0.67, 5: 0.38, 10: 0.35}
PRETRAINED = {1: 2.41, 5: 2.23, 10: 2.19}
MULTITASK = {1: 4.19, 5: 3.85, 10: 3.69}
MULTITASK_L2 = {1: 7.18, 5: 5.69, 10: 5.60}
MULTITASK_MEAN = {1: 2.91, 5: 2.72, 10: 2.71}
METHODS = {
    "exact": Method("maml", 2, "MAML", MAML, "#0072B2", "o"),
    "first-order": Method("maml", 1, "MAML, first order", {}, "#E69F00", "s"),
    "pretrained": Method("pretrained", None, "pretrained", PRETRAINED, "#CC3311", "^"),
    "oracle": Method("oracle", None, "oracle", {}, "#009E73", "d"),
    "multitask": Method("multitask", None, "multi-task", MULTITASK),
    "multitask-l2": Method("multitask_l2", None, "multi-task, l2", MULTITASK_L2),
    "multitask-mean": Method(
        "multitask_mean", None, "multi-task, to mean", MULTITASK_MEAN
    ),
}
TEST_SHOTS = (5, 10, 20)
TEST_STEPS = 10
TEST_TASKS = 600
DIVERGED = 100.0  # (2 * 5)^2: no wave is that far from another
STEP_SIZES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)

# Each use of random numbers has a stream of its own, so none disturbs another. The mean
# squared amplitude of the test waves is 8.4; over all waves it is 8.5.
INITIAL, TRAINING, FITS, TEST, VALIDATION = 1, 2, 5, 1000, 2000


def random(purpose: int, number: int) -> np.random.Generator:
    """The random numbers for one purpose."""
    return np.random.default_rng([purpose, number])


# %% The network and the loss
# Both are written once, on symbolic values; everything below is derived from them.

SIZES = [1, 40, 40, 1]
ORACLE_SIZES = [3, *SIZES[1:]]
INITIALISERS = {"recipe": truncated_normal(0.01), "he": he_normal()}
NETWORK = tm.MLP(SIZES, initialiser=INITIALISERS["recipe"])
ORACLE = tm.MLP(ORACLE_SIZES, initialiser=INITIALISERS["recipe"])


def loss(theta: tm.Value, x: tm.Value, y: tm.Value) -> tm.Value:
    """Paper eq. (2), as a mean."""
    return tm.squared_error(NETWORK(theta, x), y)


def oracle_loss(theta: tm.Value, x: tm.Value, y: tm.Value) -> tm.Value:
    """The same for the network that sees (x, amplitude, phase)."""
    return tm.squared_error(ORACLE(theta, x), y)


def tell(tasks: tm.Tasks, waves: sinusoid.Waves) -> tm.Tasks:
    """The tasks with amplitude and phase behind each x: (T, N, 1) -> (T, N, 3)."""

    def told(x: Array) -> Array:
        facts = [np.broadcast_to(fact, x.shape) for fact in waves]
        return np.concatenate([x, *facts], axis=2, dtype=x.dtype)

    return tasks._replace(x_support=told(tasks.x_support), x_query=told(tasks.x_query))


# %% Meta-training, and the baselines
# All methods start from the same weights and see the same tasks. The baselines are the
# same loop without an inner step: the "query" loss is then the support loss itself.


def no_query(tasks: tm.Tasks) -> tm.Tasks:
    """The tasks with their support examples in the place of the query examples."""
    return tasks._replace(x_query=tasks.x_support, y_query=tasks.y_support)


def sample_pooled(rng: np.random.Generator) -> tm.Tasks:
    """What the pretrained network learns from: the support examples of 25 tasks."""
    return no_query(sinusoid.sample_tasks(rng))


def sample_told(rng: np.random.Generator) -> tm.Tasks:
    """What the oracle learns from."""
    waves = sinusoid.sample_waves(rng, 25)
    return tell(no_query(sinusoid.sample_points(rng, waves, 10, 10)), waves)


def training_names(options: argparse.Namespace) -> list[str]:
    """The trainings that the options ask for."""
    orders = {"1": ["first-order"], "2": ["exact"], "both": ["exact", "first-order"]}
    names = [*orders[options.order], "pretrained", "oracle"]
    if options.multitask:
        names += [name for name, *_ in REGRESSORS.variants]
    return names


def train_methods(
    stages: Stages, options: argparse.Namespace, backend: Backend
) -> dict[str, Array]:
    """Train what the options ask for, one after the other; return theta by name."""
    trainings: dict[str, tuple[tm.MAML, list[int], Any]] = {}
    for name, order in (("exact", 2), ("first-order", 1)):
        if options.order in (str(order), "both"):
            maml = tm.MAML(loss, options.alpha, order=order, backend=backend)
            trainings[name] = maml, SIZES, sinusoid.sample_tasks
    plain = tm.MAML(loss, steps=0, backend=backend)
    trainings["pretrained"] = plain, SIZES, sample_pooled
    plain = tm.MAML(oracle_loss, steps=0, backend=backend)
    trainings["oracle"] = plain, ORACLE_SIZES, sample_told
    initialiser = INITIALISERS[options.initial]
    return {
        name: stages.train(
            name,
            maml,
            tm.MLP(sizes, initialiser=initialiser).init(random(INITIAL, options.seed)),
            sample,
            iterations=options.iterations,
            optimiser=tm.Adam(0.001),
            rng=random(TRAINING, options.seed),
        ).theta
        for name, (maml, sizes, sample) in trainings.items()
    }


# %% The test: 600 tasks, 0 to 10 gradient steps
# Adaptation at test time runs the same inner loop as meta-training.


def test_tasks(purpose: int, shots: int) -> tuple[tm.Tasks, sinusoid.Waves]:
    """600 tasks of K support and K query points; the waves are the same for each K."""
    waves = sinusoid.sample_waves(random(purpose, 0), TEST_TASKS)
    points = sinusoid.sample_points(random(purpose, shots), waves, shots, shots)
    return points, waves


def tuned_step_size(theta: Array, shots: int, backend: Backend) -> float:
    """The step size with the smallest error on validation tasks, over 1 to 10 steps."""
    tasks, _ = test_tasks(VALIDATION, shots)

    def error(alpha: float) -> float:
        maml = tm.MAML(loss, alpha, backend=backend)
        errors = maml.evaluate(theta, tasks, TEST_STEPS)[:, 1:]
        return float(np.nan_to_num(errors, nan=np.inf).mean(dtype=np.float64))

    return min(STEP_SIZES, key=error)


def step_sizes(thetas: Mapping[str, Array], alpha: float, backend: Backend) -> Sizes:
    """The size of the gradient steps, by method and K: 0 for the oracle takes none."""
    sizes: dict[tuple[str, int], float] = {}
    for name, theta in thetas.items():
        for shots in TEST_SHOTS:
            if METHODS[name].name == "maml":
                sizes[name, shots] = alpha
            elif name == "oracle":
                sizes[name, shots] = 0.0
            else:
                sizes[name, shots] = tuned_step_size(theta, shots, backend)
    return sizes


def test(thetas: Mapping[str, Array], sizes: Sizes, backend: Backend) -> list[Row]:
    """The rows of `results.json`: mean and interval for each method, K and step."""
    rows = []
    for (name, shots), alpha in sizes.items():
        tasks, waves = test_tasks(TEST, shots)
        if name == "oracle":
            maml = tm.MAML(oracle_loss, alpha, backend=backend)
            tasks = tell(tasks, waves)
        else:
            maml = tm.MAML(loss, alpha, backend=backend)
        method = METHODS[name]
        errors = maml.evaluate(thetas[name], tasks, TEST_STEPS)
        for steps in range(TEST_STEPS + 1):
            mse, interval = mean_and_interval(errors[:, steps])
            rows.append(
                {
                    "method": method.name,
                    "order": method.order,
                    "shots": shots,
                    "steps": steps,
                    "mse": mse,
                    "ci95": interval,
                    "paper": method.paper.get(steps) if shots == 5 else None,
                }
            )
    return rows


def select(rows: Sequence[Row], method: Method, shots: int) -> list[Row]:
    """The rows for 0 .. 10 steps of one method and K."""
    key = (method.name, method.order, shots)
    return [r for r in rows if (r["method"], r["order"], r["shots"]) == key]


def table_2(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Table 2 of the paper, its numbers beside ours."""
    lines = []
    for name in names:
        line = [METHODS[name].label]
        points = select(rows, METHODS[name], shots=5)
        for row in (points[1], points[5], points[10]):
            ours = f"{row['mse']:.2f} ± {row['ci95']:.2f}"
            line.append(ours if row["mse"] < DIVERGED else "diverges")
            line.append("-" if row["paper"] is None else f"{row['paper']:.2f}")
        lines.append(line)
    header = ["MSE on 5 shots after", "1 step", "paper", "5 steps", "paper"]
    return text_table([*header, "10 steps", "paper"], lines)


# %% Figure 3: error against the number of gradient steps
# Also figure 6 of the paper. The scale is logarithmic here, or MAML and the oracle
# would share the bottom of the figure.


def draw_figure_3(rows: Sequence[Row], names: Sequence[str], out: Path) -> None:
    """Mean squared error after 0 to 10 steps, for K = 5, 10, 20."""
    panels: dict[str, list[Curve]] = {}
    for shots in TEST_SHOTS:
        for name in names:
            method = METHODS[name]
            chosen = select(rows, method, shots)
            mse, interval = (
                np.array([r[key] for r in chosen]) for key in ("mse", "ci95")
            )
            line = Curve(method.label, method.colour, method.marker, mse, interval)
            panels.setdefault(f"K = {shots}", []).append(line)
    title = f"Mean of {TEST_TASKS} new tasks, with 95 % intervals"
    draw_errors(panels, title, out)


# %% Figure 2: fits with all points in one half of the range
# Also figure 7 of the paper. Only a network that has learned what a sine wave is can
# know the half in which it has seen nothing.


def draw_figure_2(
    thetas: Mapping[str, Array], sizes: Sizes, backend: Backend, out: Path
) -> None:
    """Fits before the update, after 1 and after 10 steps: MAML beside pretrained."""
    waves = sinusoid.sample_waves(random(FITS, 0), 3)
    grid = np.linspace(*sinusoid.INPUTS, 201, dtype=np.float32)[:, None]
    columns = []
    for shots in (5, 10):
        x = random(FITS, shots).uniform(0, 5, (3, shots, 1)).astype(np.float32)
        x[1] -= 5  # the second wave has its points in the left half
        for name in ("exact" if "exact" in thetas else "first-order", "pretrained"):
            alpha = sizes[name, shots]
            maml = tm.MAML(loss, alpha, backend=backend)
            adapted = maml.adapt(thetas[name], x, waves(x), TEST_STEPS)
            predictions = [
                [
                    NETWORK.predict(theta, grid)[:, 0]
                    for theta in task[[0, 1, TEST_STEPS]]
                ]
                for task in adapted
            ]
            method = METHODS[name]
            title = f"{method.label}, K = {shots}\n(step size {alpha:g})"
            fits = Fits(title, method.colour, x, waves(x), np.array(predictions))
            columns.append(fits)
    draw_fits(columns, grid, waves(grid[None])[..., 0], TEST_STEPS, out)


# %% Everything


def make_parser() -> Parser:
    """The options of this example."""
    parser = experiment_parser(
        __doc__ or "", out="results/sinusoid", iterations=70_000, fast=1_000
    )
    parser.add_argument(
        "--order",
        choices=("1", "2", "both"),
        default="both",
        help="exact MAML (2), the first-order approximation (1), or both (default)",
    )
    parser.add_argument(
        "--alpha",
        type=positive_number,
        default=0.001,
        metavar="SIZE",
        help="MAML's inner step size, in training and at test (default: %(default)s)",
    )
    parser.add_argument(
        "--initial",
        choices=("recipe", "he"),
        default="recipe",
        help="first weights: of deviation 0.01 as in the recipe (default), or He's",
    )
    parser.add_argument(
        "--multitask",
        action="store_true",
        help="also train the three multi-task baselines of table 2",
    )
    add_resume(parser, "--seed, --alpha and --initial")
    return parser


def run(
    stages: Stages, options: argparse.Namespace, backend: Backend, command: str
) -> None:
    """Train, test, print, draw."""
    thetas = train_methods(stages, options, backend)
    drawn = list(thetas)
    if options.multitask:
        thetas |= train_multitask(
            stages,
            NETWORK,
            loss,
            options.iterations,
            lambda: random(TRAINING, options.seed),
            backend,
        )
    seconds = {name: result.seconds for name, result in stages.results.items()}

    started = time.perf_counter()
    sizes = step_sizes(thetas, options.alpha, backend)
    rows = test(thetas, sizes, backend)
    seconds["test"] = time.perf_counter() - started

    started = time.perf_counter()
    draw_figure_3(rows, drawn, options.out / "figure3.png")
    draw_figure_2(thetas, sizes, backend, options.out / "figure2.png")
    seconds["figures"] = time.perf_counter() - started
    seconds["total"] = sum(seconds.values())
    write_results("sinusoid", command, options, backend, seconds, rows)

    print(table_2(rows, list(thetas)))
    for name in thetas:
        if METHODS[name].name not in ("maml", "oracle"):
            tuned = ", ".join(f"{sizes[name, k]:g} for K = {k}" for k in TEST_SHOTS)
            print(f"tuned step size, {METHODS[name].label}: {tuned}")
    print(f"{seconds['total']:.0f} seconds; files are in {options.out}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with command-line arguments; return the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = make_parser()
    options, backend = read_options(parser, arguments)
    config = {
        "experiment": "sinusoid",
        "network": SIZES,
        "seed": options.seed,
        "alpha": options.alpha,
        "initial": options.initial,
    }
    stages = open_stages(parser, options, training_names(options), config, FILES)
    command = command_line("examples/sinusoid.py", arguments)
    return run_to_the_end(
        parser,
        lambda: run(stages, options, backend, command),
        stopped=how_to_continue(command, stages),
    )


if __name__ == "__main__":
    sys.exit(main())
