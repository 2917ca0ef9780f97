"""Regression on sinusoids: section 5.1 of the paper, figures 2, 3, 6, 7 and table 2.

    python examples/sinusoid.py               # under 3 minutes on two cores
    python examples/sinusoid.py --fast        # under 20 seconds, compilation included
    python examples/sinusoid.py --multitask   # 3 minutes more: all of table 2
    python examples/sinusoid.py --method meta-sgd   # a relative of MAML in its place

A task is one sine wave, of which the network sees K points. Exact and first-order MAML
are compared with a network that is pretrained on all tasks at once and then fine-tuned,
and with an oracle: a network with amplitude and phase as further inputs.

The recipe is the paper's and, where the paper is silent, that of the authors' code: net
1-40-40-1 with relu, initial weights from a normal distribution of standard deviation
0.01 truncated at two of them, mean squared error, one inner step on K = 10 points,
inner learning rate (step size) alpha = 0.001; Adam with learning rate 0.001, 25 tasks
in each of 70,000 iterations. Evaluation: the same 600 tasks for all methods and seeds,
K = 5, 10, 20 support points and K query points, on which the error is taken; up to 10
gradient steps on the support points; 95 % intervals of 1.96 standard deviations /
sqrt(600). The pretrained network is fine-tuned with the learning rate that is best on
600 other tasks, for each K, in the mean over 1 to 10 steps.

`--fast` takes 3,000 iterations, He's initial weights and an outer learning rate of
0.005. MAML beats pretraining clearly, but the errors are larger than the paper's.

Deviations: alpha is the 0.001 of the authors' code, not the 0.01 of the paper's text,
because the former gives the paper's numbers with every seed tried. Exact MAML that is
trained for one step of 0.01 may diverge on some tasks when it takes ten of them on 5
points (try --alpha 0.01). --multitask has deviations of its own: see multitask.py.

Written into the folder of --out: figure2.png (fits, all points in one half of the
range), figure3.png (error against gradient steps), results.json, and for each training
a folder with log.csv and checkpoint.npz: exact (MAML), first-order (first-order MAML),
pretrained, oracle, or the name of a relative of MAML. The first three also have
initialisation.npz, the trained parameters with their errors; those of seed 0 come with
the package (tinymaml.pretrained). Ctrl-C or SIGTERM saves and stops; a run continued
with --resume gives the same bits as one that never stopped.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import tinymaml as tm
from methods import RELATIVES, context_network, meta_learners
from multitask import REGRESSORS, prepare_multitask
from shared import (
    INITIALISATION,
    STARTS,
    Parser,
    add_resume,
    command_line,
    experiment_parser,
    finite,
    four_digits,
    mean_and_interval,
    open_stages,
    positive_number,
    random_stream,
    read_options,
    run_to_the_end,
    training_command,
    write_results,
)
from sinusoid_figures import (
    METHODS,
    Fits,
    Row,
    draw_figure_3,
    draw_fits,
    rows_of,
    table_2,
)
from stages import Stages
from tinymaml.backends import Backend
from tinymaml.networks.layers import Network, he_normal, truncated_normal
from tinymaml.paper.initialisations import save_initialisation
from tinymaml.paper.recipes import RecipeLoss, SinusoidRecipe
from tinymaml.tasks import sinusoid

Array = np.ndarray[Any, Any]
FILES = ("figure2.png", "figure3.png", "results.json")

# %% The network and the loss
# Both are written once, as functions of symbolic values. The gradients, the inner loop
# and the evaluation below are derived from them.

SIZES = [1, 40, 40, 1]
ORACLE_SIZES = [3, *SIZES[1:]]
INITIALISERS = {"recipe": truncated_normal(0.01), "he": he_normal()}
NETWORK = tm.MLP(SIZES, initialiser=INITIALISERS["recipe"])
ORACLE = tm.MLP(ORACLE_SIZES, initialiser=INITIALISERS["recipe"])


def loss(theta: tm.Value, x: tm.Value, y: tm.Value) -> tm.Value:
    """Mean squared error; paper eq. (2) has the sum."""
    return tm.squared_error(NETWORK(theta, x), y)


def oracle_loss(theta: tm.Value, x: tm.Value, y: tm.Value) -> tm.Value:
    """Mean squared error of the oracle, whose inputs are (x, amplitude, phase)."""
    return tm.squared_error(ORACLE(theta, x), y)


# %% What the methods learn from
# MAML adapts to support points and is evaluated on query points. The baselines have no
# inner loop: their query points are the support points, and the meta-gradient is the
# plain gradient of the loss.


def support_as_query(tasks: tm.Tasks) -> tm.Tasks:
    """The tasks with their support points in the place of the query points."""
    return tasks._replace(x_query=tasks.x_support, y_query=tasks.y_support)


def append_amplitude_and_phase(tasks: tm.Tasks, waves: sinusoid.Waves) -> tm.Tasks:
    """The oracle's tasks: x (T, N, 1) becomes (x, amplitude, phase), (T, N, 3)."""

    def extend(x: Array) -> Array:
        columns = [x, *(np.broadcast_to(column, x.shape) for column in waves)]
        return np.concatenate(columns, axis=2, dtype=x.dtype)

    return tasks._replace(
        x_support=extend(tasks.x_support), x_query=extend(tasks.x_query)
    )


def sample_pooled_tasks(rng: np.random.Generator) -> tm.Tasks:
    """25 tasks for the pretrained network, which learns from all points at once."""
    return support_as_query(sinusoid.sample_tasks(rng))


def sample_oracle_tasks(rng: np.random.Generator) -> tm.Tasks:
    """The tasks of `sample_pooled_tasks`, with amplitude and phase for the oracle."""
    waves = sinusoid.sample_waves(rng, 25)
    tasks = support_as_query(sinusoid.sample_points(rng, waves, 10, 10))
    return append_amplitude_and_phase(tasks, waves)


# %% Meta-training, and training the baselines
# All methods see the same tasks in the same order. MAML and the pretrained network also
# start from the same weights.

# Purposes of random numbers: each has a stream of its own, so that the number of draws
# for one purpose never changes another. 1000 was chosen for the evaluation because
# these waves have nearly the mean squared amplitude of all waves: 8.4 and 8.5.
INITIAL, TRAINING, FITS, EVALUATION, VALIDATION = 1, 2, 5, 1000, 2000


class Training(NamedTuple):
    """One method's training."""

    maml: tm.MAML  # gives the gradient to descend
    network: Network  # gives the initial weights
    sample: Callable[[np.random.Generator], tm.Tasks]


def trainings(options: argparse.Namespace, backend: Backend) -> dict[str, Training]:
    """The trainings that the options ask for, by name."""
    network, oracle = (
        tm.MLP(sizes, initialiser=INITIALISERS[options.initial])
        for sizes in (SIZES, ORACLE_SIZES)
    )
    chosen: dict[str, Training] = {}
    by_order = {"1": ["first-order"], "2": ["exact"], "both": ["exact", "first-order"]}
    for name in options.method or by_order[options.order]:
        method, own = RELATIVES[name], Network(network.layers)
        maml = tm.MAML(loss, options.alpha, backend=backend)
        if method.context:
            own = context_network(INITIALISERS[options.initial])
            maml.loss = RecipeLoss(own, tm.squared_error)
        chosen[name] = Training(method.learner(maml, own), own, sinusoid.sample_tasks)
    plain = tm.MAML(loss, steps=0, backend=backend)
    chosen["pretrained"] = Training(plain, network, sample_pooled_tasks)
    plain = tm.MAML(oracle_loss, steps=0, backend=backend)
    chosen["oracle"] = Training(plain, oracle, sample_oracle_tasks)
    return chosen


def prepare_all(
    stages: Stages, chosen: Mapping[str, Training], options: argparse.Namespace
) -> None:
    """Describe the trainings, and check what is resumed, before the first begins."""
    for name, (maml, network, sample) in chosen.items():
        # The loop of algorithm 2, with a progress bar, a log and checkpoints. Without
        # them it is written out in first_steps.py: in each iteration the optimiser
        # takes one step along the gradient of maml(theta, sample(rng)).
        stages.prepare(
            name,
            maml,
            network.init(random_stream(INITIAL, options.seed)),
            sample,
            iterations=options.iterations,
            optimiser=tm.Adam(options.outer_learning_rate),
            rng=random_stream(TRAINING, options.seed),
            config={"method": name} if name in (options.method or ()) else None,
            description=METHODS[name].label,
        )


# %% Evaluation: 600 new tasks, 0 to 10 gradient steps
# A new task is learned by the inner loop of meta-training, with more steps. Fine-tuning
# the pretrained network is the same loop, with a learning rate of its own.

SHOTS = (5, 10, 20)
STEPS = 10
TASKS = 600
CANDIDATES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
LearningRates = Mapping[tuple[str, int], float]  # inner ones, by method and K


def new_tasks(purpose: int, shots: int) -> tuple[tm.Tasks, sinusoid.Waves]:
    """600 tasks of K support and K query points; the waves are the same for each K."""
    waves = sinusoid.sample_waves(random_stream(purpose, 0), TASKS)
    rng = random_stream(purpose, shots)
    return sinusoid.sample_points(rng, waves, shots, shots), waves


def tuned_learning_rate(theta: Array, shots: int, backend: Backend) -> float:
    """The candidate with the smallest mean error over 1 to 10 steps, on other tasks."""
    tasks, _ = new_tasks(VALIDATION, shots)

    def error(alpha: float) -> float:
        maml = tm.MAML(loss, alpha, backend=backend)
        errors = maml.evaluate(theta, tasks, STEPS)[:, 1:]
        return float(np.nan_to_num(errors, nan=np.inf).mean(dtype=np.float64))

    return min(CANDIDATES, key=error)


def inner_learning_rates(
    thetas: Mapping[str, Array], alpha: float, backend: Backend
) -> LearningRates:
    """MAML's alpha, a tuned rate for each baseline, and 0 for the oracle: no step."""
    rates: dict[tuple[str, int], float] = {}
    for name, theta in thetas.items():
        for shots in SHOTS:
            if name == "oracle":
                rates[name, shots] = 0.0
            elif name == "pretrained" or name not in RELATIVES:
                rates[name, shots] = tuned_learning_rate(theta, shots, backend)
            else:
                rates[name, shots] = alpha
    return rates


def at_test(
    name: str, alpha: float, chosen: Mapping[str, Training], backend: Backend
) -> tm.MAML:
    """What adapts to new tasks: a relative of MAML in its own way, others as MAML."""
    if name in chosen and name in RELATIVES and name != "pretrained":
        return chosen[name].maml
    return tm.MAML(oracle_loss if name == "oracle" else loss, alpha, backend=backend)


def evaluate(
    thetas: Mapping[str, Array],
    rates: LearningRates,
    backend: Backend,
    chosen: Mapping[str, Training] = {},
) -> list[Row]:
    """The rows of `results.json`: mean and interval for each method, K and step."""
    rows = []
    for (name, shots), alpha in rates.items():
        tasks, waves = new_tasks(EVALUATION, shots)
        maml = at_test(name, alpha, chosen, backend)
        if name == "oracle":
            tasks = append_amplitude_and_phase(tasks, waves)
        errors = maml.evaluate(thetas[name], tasks, STEPS)  # (600, 11)
        method = METHODS[name]
        for steps in range(STEPS + 1):
            mse, interval = mean_and_interval(errors[:, steps])
            rows.append(
                {
                    "method": method.name,
                    "order": method.order,
                    "shots": shots,
                    "steps": steps,
                    "mse": mse,
                    "ci95": interval,
                    "paper": method.paper(shots, steps),
                }
            )
    return rows


# %% What others can start from
# The parameters of MAML and of the pretrained network, with what they were trained on
# and how well they learn new tasks: three of the files behind `tm.pretrained`.

STEPS_IN_FACTS = [0, 1, 5, 10]


def save_starts(
    thetas: Mapping[str, Array],
    rates: LearningRates,
    rows: Sequence[Row],
    options: argparse.Namespace,
    command: str,
) -> None:
    """Write initialisation.npz into the folders of the trainings in `STARTS`."""
    for name in [name for name in thetas if name in STARTS]:
        facts: dict[str, Any] = {
            "data": "sine waves: amplitude 0.1 to 5, phase 0 to pi, x from -5 to 5",
            "method": METHODS[name].label,
            "order": METHODS[name].order,
            "iterations": options.iterations,
            "initial": options.initial,
            "seed": options.seed,
            "test_tasks": TASKS,
            "steps": STEPS_IN_FACTS,
        }
        for shots in SHOTS:
            points = rows_of(rows, name, shots)
            chosen = [points[steps] for steps in STEPS_IN_FACTS]
            figures = four_digits(chosen, "mse", "ci95")
            facts[f"{shots} shots"] = {"alpha": rates[name, shots], **figures}
        facts["command"] = training_command(command)
        # With another number of points another alpha may be best: it is in the facts.
        recipe = SinusoidRecipe(rates[name, SHOTS[0]])
        path = options.out / name / INITIALISATION
        save_initialisation(path, thetas[name], recipe, finite(facts))


# %% Figure 2: fits with all points in one half of the range
# Only a network that has learned what a sine wave is can continue a wave into the half
# of the range from which it has no points. Figure 7 of the paper shows the same.


def draw_figure_2(
    thetas: Mapping[str, Array],
    rates: LearningRates,
    backend: Backend,
    chosen: Mapping[str, Training],
    out: Path,
) -> None:
    """Fits before any step, after 1 and after 10 steps: MAML beside pretrained."""
    waves = sinusoid.sample_waves(random_stream(FITS, 0), 3)
    grid = np.linspace(*sinusoid.INPUTS, 201, dtype=np.float32)[:, None]
    columns = []
    for shots in (5, 10):
        x = random_stream(FITS, shots).uniform(0, 5, (3, shots, 1)).astype(np.float32)
        x[1] -= 5  # the second wave has its points in the left half
        for name in (next(iter(chosen)), "pretrained"):
            alpha = rates[name, shots]
            maml = at_test(name, alpha, chosen, backend)
            everywhere = np.broadcast_to(grid, (len(x), *grid.shape)).copy()
            tasks = tm.Tasks(x, waves(x), everywhere, waves(everywhere))
            network = chosen[name].network
            fits = maml.predict(network, thetas[name], tasks, STEPS)[
                ..., 0
            ]  # (3, 11, N)
            shown = fits[:, [0, 1, STEPS]]
            rate = alpha if name in STARTS else None
            columns.append(Fits(name, shots, rate, x, waves(x), shown))
    draw_fits(columns, grid, waves(grid[None])[..., 0], STEPS, out)


# %% Options, and everything in order

ITERATIONS, ITERATIONS_FAST = 70_000, 3_000
OUTER_LEARNING_RATE, OUTER_LEARNING_RATE_FAST = 0.001, 0.005


def make_parser() -> Parser:
    """The options of this example."""
    parser = experiment_parser(
        __doc__ or "",
        "results/sinusoid",
        ITERATIONS,
        ITERATIONS_FAST,
        f", He's initial weights and outer learning rate {OUTER_LEARNING_RATE_FAST}",
    )
    trained = parser.add_mutually_exclusive_group()
    trained.add_argument(
        "--order",
        choices=("1", "2", "both"),
        default="both",
        help="exact MAML (2), the first-order approximation (1), or both (default)",
    )
    trained.add_argument(
        "--method",
        nargs="+",
        choices=meta_learners("sinusoid"),
        metavar="NAME",
        help="relatives of MAML (docs/variants.md) to train in the place of what "
        "--order says: %(choices)s",
    )
    parser.add_argument(
        "--alpha",
        type=positive_number,
        default=0.001,
        metavar="RATE",
        help="MAML's inner learning rate (step size), in training and evaluation; some "
        "relatives have one of their own (default: %(default)s)",
    )
    parser.add_argument(
        "--initial",
        choices=("recipe", "he"),
        help="initial weights: 'recipe' has standard deviation 0.01, as the authors' "
        "code (default); 'he' is He's initialisation (default with --fast)",
    )
    parser.add_argument(
        "--multitask",
        action="store_true",
        help="also train the three multi-task baselines of table 2",
    )
    add_resume(parser, "--method, --seed, --alpha, --initial and --fast")
    return parser


def describe_fast(options: argparse.Namespace) -> str:
    """What --fast shortened and changed, in one line."""
    return (
        f"--fast: {options.iterations:,} iterations instead of {ITERATIONS:,}, "
        f"--initial {options.initial}, outer learning rate "
        f"{options.outer_learning_rate} instead of {OUTER_LEARNING_RATE}"
    )


def run(
    stages: Stages,
    chosen: Mapping[str, Training],
    options: argparse.Namespace,
    backend: Backend,
    command: str,
) -> None:
    """Train, evaluate, draw, print."""
    prepare_all(stages, chosen, options)
    if options.multitask:
        prepare_multitask(
            stages,
            NETWORK,
            loss,
            options.iterations,
            lambda: random_stream(TRAINING, options.seed),
            backend,
        )
    thetas = {name: stages.train(name).theta for name in stages.names}
    seconds = {name: result.seconds for name, result in stages.results.items()}

    started = time.perf_counter()
    rates = inner_learning_rates(thetas, options.alpha, backend)
    rows = evaluate(thetas, rates, backend, chosen)
    save_starts(thetas, rates, rows, options, command)
    seconds["evaluation"] = time.perf_counter() - started

    started = time.perf_counter()
    draw_figure_3(rows, list(chosen), TASKS, options.out / "figure3.png")
    draw_figure_2(thetas, rates, backend, chosen, options.out / "figure2.png")
    seconds["figures"] = time.perf_counter() - started
    seconds["total"] = sum(seconds.values())
    settings = {
        "alpha": options.alpha,
        "initial": options.initial,
        "outer_learning_rate": options.outer_learning_rate,
    }
    write_results("sinusoid", command, options, backend, seconds, rows, **settings)

    print(table_2(rows, list(thetas)))
    for name in thetas:
        if name == "pretrained" or name not in chosen:
            tuned = ", ".join(f"{rates[name, k]:g} for K = {k}" for k in SHOTS)
            print(f"tuned learning rate, {METHODS[name].label}: {tuned}")
    if options.fast:
        print(describe_fast(options))
    print(f"{seconds['total']:.0f} seconds; files are in {options.out}")


def start(parser: Parser, arguments: Sequence[str]) -> None:
    """Read the options, check everything, and run."""
    options, backend = read_options(parser, arguments)
    options.outer_learning_rate = OUTER_LEARNING_RATE
    if options.fast:
        options.outer_learning_rate = OUTER_LEARNING_RATE_FAST
    if options.initial is None:
        options.initial = "he" if options.fast else "recipe"
    config = {
        "experiment": "sinusoid",
        "network": SIZES,
        "seed": options.seed,
        "alpha": options.alpha,
        "initial": options.initial,
    }
    chosen = trainings(options, backend)
    names = [*chosen]
    if options.multitask:
        names += [variant.name for variant in REGRESSORS.variants]
    command = command_line("examples/sinusoid.py", arguments)
    starts = [f"{name}/{INITIALISATION}" for name in names if name in STARTS]
    files = [*FILES, *starts]
    with open_stages(parser, options, command, names, config, files) as stages:
        run(stages, chosen, options, backend, command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with command-line arguments; return the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = make_parser()
    return run_to_the_end(parser, lambda: start(parser, arguments))


if __name__ == "__main__":
    sys.exit(main())
