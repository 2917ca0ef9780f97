"""Regression on sinusoids: section 5.1 of the paper, figures 2, 3, 6, 7 and table 2.

    python examples/sinusoid.py               # under 3 minutes on two cores
    python examples/sinusoid.py --fast        # 15 seconds, compilation included
    python examples/sinusoid.py --multitask   # 5 minutes more: all of table 2

A task is one sine wave, of which the network sees K points. Meta-learned parameters
(exact MAML and first-order MAML) are compared with parameters pretrained on all tasks
at once and with an oracle that is told amplitude and phase.

The recipe is the paper's and, where the paper is silent, that of the authors' code: net
1-40-40-1 with relu, weights from a normal distribution of deviation 0.01 cut off at two
deviations, mean squared error, one inner step on K = 10 points with alpha = 0.01; Adam
with step size 0.001, 25 tasks a step, 70,000 steps. Test: 600 tasks, the same for all
methods and seeds, with K = 5, 10, 20 support points and K query points (the error is
taken on these), up to 10 gradient steps on the same support points, 95 % intervals of
1.96 deviations / sqrt(600). The pretrained net takes steps of the size that is best for
it on 600 other tasks, for each K, in the mean over 1 to 10 steps.

Deviations: the authors' code has alpha = 0.001 where the paper has 0.01 (try
--alpha 0.001). Steps of 0.01 on 5 points that happen to lie together diverge for about
one task in a thousand, and one such task would be the whole mean; tasks with an error
above 100 are left out of a mean and counted beside it ("diverged"). --multitask
averages 500 networks that were trained on one task each, as the paper does, but trains
them in 20 groups of 25 at once and not one by one: "the mean thus far" is that of the
groups before. How long, on how many points and how strongly regularised the paper does
not say; see REGRESSORS below.

Written into the folder of --out: figure2.png (fits, all points in one half of the
range), figure3.png (error against gradient steps), results.json, log.csv and
checkpoint.npz. Ctrl-C saves and stops; --resume continues to the same bits.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import tinymaml as tm
from tinymaml.experiment import (
    Parser,
    command_line,
    experiment_parser,
    mean_and_interval,
    open_stages,
    positive_number,
    read_options,
    save_figure,
    text_table,
    write_results,
)
from tinymaml.machines import Machine
from tinymaml.nn import truncated_normal
from tinymaml.stages import Stages
from tinymaml.tasks import sinusoid

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = np.ndarray[Any, Any]
FILES = ("figure2.png", "figure3.png", "results.json", "log.csv", "checkpoint.npz")

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
INITIAL, TRAINING, FITS, TEST, VALIDATION = 1, 2, 3, 1000, 2000


def random(purpose: int, number: int) -> np.random.Generator:
    """The random numbers for one purpose."""
    return np.random.default_rng([purpose, number])


# %% The network and the loss
# Both are written once, on symbolic values; everything below is derived from them.

SIZES = [1, 40, 40, 1]
NETWORK = tm.MLP(SIZES, initialiser=truncated_normal(0.01))
ORACLE = tm.MLP([3, *SIZES[1:]], initialiser=truncated_normal(0.01))


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


def train_methods(
    stages: Stages, options: argparse.Namespace, machine: Machine
) -> dict[str, Array]:
    """Train what the options ask for, one after the other; return theta by name."""
    trainings: dict[str, tuple[tm.MAML, tm.Network, Any]] = {}
    for name, order in (("exact", 2), ("first-order", 1)):
        if options.order in (str(order), "both"):
            maml = tm.MAML(loss, options.alpha, order=order, machine=machine)
            trainings[name] = maml, NETWORK, sinusoid.sample_tasks
    plain = tm.MAML(loss, steps=0, machine=machine)
    trainings["pretrained"] = plain, NETWORK, sample_pooled
    plain = tm.MAML(oracle_loss, steps=0, machine=machine)
    trainings["oracle"] = plain, ORACLE, sample_told
    return {
        name: stages.train(
            name,
            maml.meta_gradient,
            network.init(random(INITIAL, options.seed)),
            sample,
            iterations=options.iterations,
            optimiser=tm.Adam(0.001),
            rng=random(TRAINING, options.seed),
        ).theta
        for name, (maml, network, sample) in trainings.items()
    }


# %% Multi-task learning, for table 2
# 500 regressors learn one wave each; the mean of their parameters is where a new task
# starts. A group of them trains at once, one per task of a tape, on new points in every
# step. With the running mean as theta and a whole group as one "iteration", `train` can
# do the rest.


class Regressors(NamedTuple):
    """How the regressors are trained, in each variant until they err by under 0.02.

    Strengths are the largest of 0.001, 0.003, 0.01, 0.03 for which they do.
    """

    groups: int = 20
    size: int = 25
    points: int = 40
    steps: int = 5_000
    step_size: float = 0.01
    strengths: tuple[tuple[str, float, bool], ...] = (
        ("multitask", 0.0, False),
        ("multitask-l2", 0.01, False),
        ("multitask-mean", 0.01, True),
    )


REGRESSORS = Regressors()


class GroupResult(NamedTuple):
    """What `train` asks for: the group's own error, and mean - (mean of the group)."""

    loss: float
    gradient: Array


class Group:
    """Trains a group of regressors, each on a wave of its own."""

    def __init__(
        self, machine: Machine, steps: int, strength: float, to_mean: bool
    ) -> None:
        size, points = REGRESSORS.size, REGRESSORS.points
        tape = tm.Tape()
        theta = tape.input("theta", (NETWORK.size,), per_task=True)
        x = tape.input("x", (points, 1), per_task=True)
        y = tape.input("y", (points, 1), per_task=True)
        centre = tape.input("centre", (NETWORK.size,))
        error = loss(theta, x, y)
        offset = theta - centre
        penalty = strength * (offset * offset).sum()
        tape.output("error", error)
        tape.output("gradient", tm.grad(error + penalty, theta))
        self.play = machine.prepare(tape, "float32")
        self.steps, self.to_mean = steps, to_mean
        self.shape = (size, points, 1)

    def __call__(self, mean: Array, rng: np.random.Generator) -> GroupResult:
        """Train a group from random weights; the first has no mean yet, but zeros."""
        thetas = np.stack([NETWORK.init(rng) for _ in range(self.shape[0])])
        waves = sinusoid.sample_waves(rng, len(thetas))
        # Adam works entry by entry: one vector of all parameters is many optimisers.
        adam = tm.Adam(REGRESSORS.step_size)
        centre = mean if self.to_mean else np.zeros_like(mean)
        for _ in range(self.steps):
            x = rng.uniform(*sinusoid.INPUTS, self.shape).astype(np.float32)
            results = self.play(
                {"theta": thetas, "x": x, "y": waves(x), "centre": centre}
            )
            error = results["error"]
            adam.update(thetas.reshape(-1), results["gradient"].reshape(-1))
        return GroupResult(float(error.mean()), mean - thetas.mean(0))


class RunningMean:
    """An optimiser whose n-th step goes 1/n of the way: theta is the targets' mean."""

    def __init__(self) -> None:
        self.count = 0

    def update(self, theta: Array, gradient: Array) -> None:
        """Step number `count` + 1."""
        self.count += 1
        theta -= gradient / self.count

    def state(self) -> dict[str, Array]:
        """The number of steps."""
        return {"count": np.array(self.count)}

    def load_state(self, state: Mapping[str, Array]) -> None:
        """Go on from there."""
        self.count = int(state["count"])

    def config(self) -> dict[str, Any]:
        """Its name."""
        return {"name": type(self).__name__}


def sample_generator(rng: np.random.Generator) -> np.random.Generator:
    """The random numbers of one group."""
    return np.random.default_rng(rng.integers(2**63, size=2))


def train_multitask(
    stages: Stages, options: argparse.Namespace, machine: Machine
) -> dict[str, Array]:
    """The mean parameters of the regressors, for each of the three variants."""
    steps = min(REGRESSORS.steps, options.iterations)
    groups = min(REGRESSORS.groups, -(-options.iterations // 500))
    return {
        name: stages.train(
            name,
            Group(machine, steps, strength, to_mean),
            np.zeros(NETWORK.size, np.float32),
            sample_generator,
            iterations=groups,
            optimiser=RunningMean(),
            rng=random(TRAINING, options.seed),
            config={"regressor_steps": steps, "strength": strength},
            checkpoint_every=1,
            log_every=1,
        ).theta
        for name, strength, to_mean in REGRESSORS.strengths
    }


# %% The test: 600 tasks, 0 to 10 gradient steps
# Adaptation at test time plays the same inner loop as meta-training.


def test_tasks(purpose: int, shots: int) -> tuple[tm.Tasks, sinusoid.Waves]:
    """600 tasks of K support and K query points; the waves are the same for each K."""
    waves = sinusoid.sample_waves(random(purpose, 0), TEST_TASKS)
    points = sinusoid.sample_points(random(purpose, shots), waves, shots, shots)
    return points, waves


def tuned_step_size(theta: Array, shots: int, machine: Machine) -> float:
    """The step size with the smallest error on validation tasks, over 1 to 10 steps."""
    tasks, _ = test_tasks(VALIDATION, shots)

    def error(alpha: float) -> float:
        maml = tm.MAML(loss, alpha, machine=machine)
        errors = maml.evaluate(theta, tasks, TEST_STEPS)[:, 1:]
        return float(np.nan_to_num(errors, nan=DIVERGED).clip(max=DIVERGED).mean())

    return min(STEP_SIZES, key=error)


def step_sizes(
    thetas: Mapping[str, Array], alpha: float, machine: Machine
) -> dict[tuple[str, int], float]:
    """The size of the gradient steps, by method and K: 0 for the oracle takes none."""
    sizes = {}
    for name, theta in thetas.items():
        for shots in TEST_SHOTS:
            if METHODS[name].name == "maml":
                sizes[name, shots] = alpha
            elif name == "oracle":
                sizes[name, shots] = 0.0
            else:
                sizes[name, shots] = tuned_step_size(theta, shots, machine)
    return sizes


def test(
    thetas: Mapping[str, Array],
    sizes: Mapping[tuple[str, int], float],
    machine: Machine,
) -> list[dict[str, Any]]:
    """The rows of `results.json`: mean and interval for each method, K and step."""
    rows = []
    for (name, shots), alpha in sizes.items():
        tasks, waves = test_tasks(TEST, shots)
        if name == "oracle":
            maml = tm.MAML(oracle_loss, alpha, machine=machine)
            tasks = tell(tasks, waves)
        else:
            maml = tm.MAML(loss, alpha, machine=machine)
        method = METHODS[name]
        errors = maml.evaluate(thetas[name], tasks, TEST_STEPS)
        for steps in range(TEST_STEPS + 1):
            kept = errors[errors[:, steps] < DIVERGED, steps]
            mse, interval = mean_and_interval(kept)
            rows.append(
                {
                    "method": method.name,
                    "order": method.order,
                    "shots": shots,
                    "steps": steps,
                    "mse": mse,
                    "ci95": interval,
                    "paper": method.paper.get(steps) if shots == 5 else None,
                    "diverged": TEST_TASKS - len(kept),
                }
            )
    return rows


def curve(
    rows: Sequence[dict[str, Any]], method: Method, shots: int
) -> list[dict[str, Any]]:
    """The rows for 0 .. 10 steps of one method and K."""
    key = (method.name, method.order, shots)
    return [r for r in rows if (r["method"], r["order"], r["shots"]) == key]


def table_2(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """Table 2 of the paper, its numbers beside ours."""
    lines, diverged = [], False
    for name in names:
        line = [METHODS[name].label]
        points = curve(rows, METHODS[name], shots=5)
        for row in (points[1], points[5], points[10]):
            mark = (
                "*" * row["diverged"] if row["diverged"] < 4 else f"*{row['diverged']}"
            )
            line.append(f"{mark}{row['mse']:.2f} ± {row['ci95']:.2f}")
            line.append("-" if row["paper"] is None else f"{row['paper']:.2f}")
            diverged |= row["diverged"] > 0
        lines.append(line)
    header = ["MSE on 5 shots after", "1 step", "paper", "5 steps", "paper"]
    table = text_table([*header, "10 steps", "paper"], lines)
    note = f"\n* a task diverged (error above {DIVERGED:g}) and is not in the mean"
    return table + note if diverged else table


# %% Figure 3: error against the number of gradient steps
# Also figure 6 of the paper. The scale is logarithmic here, or MAML and the oracle
# would share the bottom of the figure.


def draw_figure_3(
    rows: Sequence[dict[str, Any]], names: Sequence[str], out: Any
) -> None:
    """Mean squared error after 0 to 10 steps, for K = 5, 10, 20."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    panels = figure.subplots(1, len(TEST_SHOTS), sharey=True)
    for panel, shots in zip(panels, TEST_SHOTS, strict=True):
        for name in names:
            method = METHODS[name]
            points = curve(rows, method, shots)
            steps = range(len(points))
            mse = np.array([row["mse"] for row in points])
            interval = np.array([row["ci95"] for row in points])
            low = np.maximum(mse - interval, mse / 2)  # a log scale has no zero
            band = {"color": method.colour, "alpha": 0.2, "linewidth": 0}
            panel.fill_between(steps, low, mse + interval, **band)
            line = {"color": method.colour, "marker": method.marker, "markersize": 5}
            panel.plot(steps, mse, label=method.label, **line)
        panel.set_title(f"K = {shots}")
        panel.set_xlabel("gradient steps")
        panel.set_xticks(range(0, TEST_STEPS + 1, 2))
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter("")
        panel.grid(which="major", color="0.9")
    panels[0].set_ylabel("mean squared error on query points")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), frameon=False
    )
    figure.suptitle(f"Mean of {TEST_TASKS} new tasks, with 95 % intervals")
    save_figure(figure, out)


# %% Figure 2: fits with all points in one half of the range
# Also figure 7 of the paper. Only a network that has learned what a sine wave is can
# know the half in which it has seen nothing.


def draw_figure_2(
    thetas: Mapping[str, Array],
    sizes: Mapping[tuple[str, int], float],
    machine: Machine,
    out: Any,
) -> None:
    """Fits before the update, after 1 and after 10 steps: MAML beside pretrained."""
    from matplotlib.figure import Figure

    waves = sinusoid.sample_waves(random(FITS, 0), 3)
    maml_name = "exact" if "exact" in thetas else "first-order"
    columns = [(k, name) for k in (5, 10) for name in (maml_name, "pretrained")]
    grid = np.linspace(*sinusoid.INPUTS, 201, dtype=np.float32)[:, None]
    figure = Figure(figsize=(12, 8), layout="constrained")
    panels = figure.subplots(3, len(columns), sharex=True, sharey="row")
    for column, (shots, name) in zip(panels.T, columns, strict=True):
        alpha = sizes[name, shots]
        x = random(FITS, shots).uniform(0, 5, (3, shots, 1)).astype(np.float32)
        x[1] -= 5  # the second wave has its points in the left half
        maml = tm.MAML(loss, alpha, machine=machine)
        fits = maml.adapt(thetas[name], x, waves(x), TEST_STEPS)
        label, colour = METHODS[name].label, METHODS[name].colour
        column[0].set_title(
            f"{label}, K = {shots}\n(step size {alpha:g})", color=colour
        )
        for task, panel in enumerate(column):
            wave = sinusoid.Waves(waves.amplitude[task], waves.phase[task])
            draw_fits(panel, colour, grid, wave, x[task], fits[task])
    for panel in panels[-1]:
        panel.set_xlabel("x")
    for panel in panels[:, 0]:
        panel.set_ylabel("y")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    legend = figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), frameon=False
    )
    for line in legend.get_lines()[2:4]:  # the colour says the method, not the step
        line.set_color("0.3")
    save_figure(figure, out)


def draw_fits(
    panel: "Axes", colour: str, grid: Array, wave: sinusoid.Waves, x: Array, fits: Array
) -> None:
    """One panel: a wave, its support points x (K, 1), and f_theta for theta in fits."""
    half = (0, 5) if x[0, 0] > 0 else (-5, 0)
    panel.axvspan(*half, color="0.94", linewidth=0, label="half with all points")
    panel.plot(grid, wave(grid), color="black", linewidth=1, label="true wave")
    for step, line, width, label in (
        (0, ":", 1.5, "before any step"),
        (1, "--", 1.5, "after 1 step"),
        (TEST_STEPS, "-", 2.5, f"after {TEST_STEPS} steps"),
    ):
        y = NETWORK.predict(fits[step], grid)
        shade = colour if step else "0.4"
        panel.plot(grid, y, color=shade, linestyle=line, linewidth=width, label=label)
    panel.plot(x, wave(x), "^k", ms=7, mfc="#F0E442", label="support points")
    panel.set_ylim(-1.3 * wave.amplitude.item(), 1.3 * wave.amplitude.item())


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
        default=0.01,
        metavar="SIZE",
        help="MAML's inner step size, in training and at test (default: %(default)s)",
    )
    parser.add_argument(
        "--multitask",
        action="store_true",
        help="also train the three multi-task baselines of table 2",
    )
    parser.add_argument(
        "--resume",
        metavar="FILE",
        help="checkpoint.npz to continue from, with the same --seed and --alpha; "
        "--iterations may be more",
    )
    return parser


def run(
    stages: Stages, options: argparse.Namespace, machine: Machine, command: str
) -> None:
    """Train, test, print, draw."""
    thetas = train_methods(stages, options, machine)
    drawn = list(thetas)
    if options.multitask:
        thetas |= train_multitask(stages, options, machine)
    seconds = {name: result.seconds for name, result in stages.results.items()}

    started = time.perf_counter()
    sizes = step_sizes(thetas, options.alpha, machine)
    rows = test(thetas, sizes, machine)
    seconds["test"] = time.perf_counter() - started

    started = time.perf_counter()
    draw_figure_3(rows, drawn, options.out / "figure3.png")
    draw_figure_2(thetas, sizes, machine, options.out / "figure2.png")
    seconds["figures"] = time.perf_counter() - started
    seconds["total"] = sum(seconds.values())
    results = {
        "experiment": "sinusoid",
        "command": command,
        "version": tm.__version__,
        "seed": options.seed,
        "iterations": options.iterations,
        "machine": machine.name,
        "seconds": seconds,
        "rows": rows,
    }
    write_results(options.out / "results.json", results)

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
    options, machine = read_options(parser, arguments)
    config = {
        "experiment": "sinusoid",
        "network": SIZES,
        "seed": options.seed,
        "alpha": options.alpha,
    }
    stages = open_stages(parser, options, config, FILES)
    command = command_line("examples/sinusoid.py", arguments)
    try:
        run(stages, options, machine, command)
    except KeyboardInterrupt:
        print(f"Stopped. Continue with\n  {command} --resume {stages.checkpoint}")
        return 130
    except (FloatingPointError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
