"""What the Hessian term does: exact and first-order MAML (FOMAML), after section 5.2.

    python examples/maml_vs_fomaml.py                      # 2 minutes on two cores
    python examples/maml_vs_fomaml.py --fast               # 15 seconds, with compiling
    python examples/maml_vs_fomaml.py --problem omniglot --data DIR        # 5 minutes
    python examples/maml_vs_fomaml.py --problem omniglot --standin --fast  # 1 minute

First-order MAML leaves the Hessian out of the meta-gradient. With one inner step,

    exact = first-order - correction,   correction = H_S(theta) (alpha grad Q(theta')).

On the sinusoids of section 5.1, or on 5-way 1-shot Omniglot (table 1; drawn stand-ins
where there is no data), this example measures
- the norms of these three vectors and the angle between the first two, during
  two trainings, one with the exact and one with the first-order meta-gradient. They
  are always measured on the same tasks, which no training uses. For Omniglot they are
  also measured at the initialisation that comes with the package;
- the error, or the accuracy, of both trainings at equal iterations and at equal time.
  The time of an iteration is the shortest processor time of a meta-gradient, so that
  other programs on the computer do not decide the comparison; the unit is the time of
  an iteration of exact MAML;
- the cost: the processor time and the floating-point operations of a meta-gradient of
  25 waves or of two tasks of Omniglot, for several numbers of inner steps. The paper
  reports a "speed-up in network computation" of roughly 33 %, for convolutions on
  MiniImagenet. Here the saving is the share of the exact meta-gradient's time, without
  the sampling of tasks;
- the memory: bytes of workspace per thread against the number of inner steps. The
  sinusoids have 100 support points here, so that activations need more memory than
  parameters. With `recompute` only the thetas are stored and the activations are
  computed again.

Deviation: 1,000 iterations of Omniglot, where the paper takes 60,000, so its accuracies
are those of a training that has begun. omniglot.py trains it to the end.

Written into the folder of --out: maml_vs_fomaml.png, results.json, and log.csv in the
folders exact and first-order.
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from functools import partial
from itertools import count
from typing import Any

import numpy as np

import tinymaml as tm
from maml_vs_fomaml_figures import LABELS, draw, summary, value_of
from maml_vs_fomaml_problems import (
    TRAINING,
    Problem,
    first_theta,
    omniglot_5_way,
    sinusoids,
)
from shared import (
    Parser,
    add_images,
    add_problem,
    command_line,
    experiment_parser,
    open_folder,
    random_stream,
    read_options,
    reason,
    refuse_images,
    run_to_the_end,
    shortest_seconds,
    write_results,
)
from tinymaml.backends import Backend
from tinymaml.backends.numba.planner import plan
from tinymaml.tasks import omniglot
from tinymaml.tasks.images import DataError

Array = np.ndarray[Any, Any]
Row = dict[str, Any]
LOGS = {2: "exact/log.csv", 1: "first-order/log.csv"}
FILES = ("maml_vs_fomaml.png", "results.json", *LOGS.values())
ITERATIONS = {"sinusoid": (70_000, 1_000), "omniglot": (1_000, 40)}  # and with --fast


def row(quantity: str, value: float, **about: Any) -> Row:
    """One number of `results.json`; fields that do not apply to it are null."""
    fields = ("start", "order", "iteration", "steps", "recompute", "paper")
    return {"quantity": quantity, "value": value, **dict.fromkeys(fields), **about}


# %% Norms and angle during training
# `parts=True` gives the terms of the exact meta-gradient. They are measured before
# some of the iterations; measuring them does not change the training.


def measure(problem: Problem, theta: Array, **about: Any) -> list[Row]:
    """Norms of both meta-gradients and their difference, the angle, and the score."""
    result = problem.maml().meta_gradient(theta, problem.probe, parts=True)
    assert result.parts is not None
    cosine = min(1.0, result.parts.cosine)  # rounding may take it above 1
    values = {
        "first_order_norm": float(np.linalg.norm(result.parts.query_gradient)),
        "correction_norm": float(np.linalg.norm(result.parts.corrections.sum(0))),
        "exact_norm": float(np.linalg.norm(result.gradient)),
        "angle_degrees": math.degrees(math.acos(cosine)),
        "score": problem.evaluate(theta, problem.probe),
    }
    return [row(quantity, value, **about) for quantity, value in values.items()]


def train_and_measure(
    problem: Problem, order: int, options: argparse.Namespace, at: set[int]
) -> list[Row]:
    """Train with one meta-gradient; measure before iterations `at` and at the end."""
    maml = problem.maml(order=order)
    about = {"start": "trained", "order": order}
    iterations = count()
    rows: list[Row] = []

    def gradient(theta: Array, batch: tm.Tasks) -> tm.MetaGradient:
        if (iteration := next(iterations)) in at:
            rows.extend(measure(problem, theta, iteration=iteration, **about))
        return maml.meta_gradient(theta, batch)

    result = tm.train(
        gradient,
        first_theta(problem, options.seed),
        problem.sample,
        iterations=options.iterations,
        optimiser=tm.Adam(0.001),
        rng=random_stream(TRAINING, options.seed),
        log=options.out / LOGS[order],
        description=LABELS[order],
    )
    if result.interrupted:
        raise KeyboardInterrupt
    return rows + measure(problem, result.theta, iteration=options.iterations, **about)


def train_both(
    problem: Problem, costs: Sequence[Row], options: argparse.Namespace
) -> list[Row]:
    """Both trainings, and their scores at equal iterations and at equal time.

    The time is the one in which first-order MAML takes all its iterations; exact MAML
    takes fewer in it.
    """
    last = options.iterations
    seconds = {
        order: value_of(costs, "seconds", order=order, steps=1) for order in (1, 2)
    }
    in_time = min(last, int(last * seconds[1] / seconds[2]))
    at = {0, in_time, *np.geomspace(1, max(1, last), problem.points).astype(int)}
    rows: list[Row] = []
    for order in LABELS:
        rows += train_and_measure(problem, order, options, at)
    for name, order, iteration in (
        ("iterations", 2, last),
        ("iterations", 1, last),
        ("time", 2, in_time),
        ("time", 1, last),
    ):
        score = value_of(rows, "score", order=order, iteration=iteration)
        about = {"order": order, "iteration": iteration}
        rows.append(row(f"score_at_equal_{name}", score, **about))
    return rows


# %% Cost
# `shortest_seconds` says which time is meant.


def measure_cost(problem: Problem) -> list[Row]:
    """Shortest time and FLOPs by inner steps, and how much of both FOMAML saves."""
    theta = first_theta(problem, 0)
    tasks = problem.timed
    rows = []
    for steps in problem.steps:
        mamls = {order: problem.maml(steps=steps, order=order) for order in LABELS}
        calls = {
            order: partial(maml.meta_gradient, theta, tasks)
            for order, maml in mamls.items()
        }
        seconds = shortest_seconds(calls, problem.rounds, mamls[2].backend)
        flops = {
            order: len(tasks.x_query) * maml.tape(theta, tasks).flops()
            for order, maml in mamls.items()
        }
        for quantity, cost in (("seconds", seconds), ("flops", flops)):
            for order in LABELS:
                rows.append(row(quantity, cost[order], order=order, steps=steps))
            paper = 33.0 if quantity == "seconds" and steps == 1 else None
            saved = 100 * (1 - cost[1] / cost[2])
            rows.append(
                row(f"percent_{quantity}_saved", saved, steps=steps, paper=paper)
            )
    return rows


# %% Memory
# The planner computes it from the tape, exactly, before anything runs.


def count_memory(problem: Problem) -> list[Row]:
    """Bytes of workspace per thread by inner steps, with and without `recompute`."""
    theta = first_theta(problem, 0)
    rows = []
    for steps in problem.steps:
        for order, recompute in ((2, False), (2, True), (1, False)):
            maml = problem.maml(steps=steps, order=order, recompute=recompute)
            size = plan(maml.tape(theta, problem.memory)).bytes("float32")
            about = {"order": order, "steps": steps, "recompute": recompute}
            rows.append(row("workspace_bytes", size, **about))
    return rows


# %% Everything


def make_parser() -> Parser:
    """The options of this example."""
    parser = experiment_parser(
        __doc__ or "", "results/maml_vs_fomaml", *ITERATIONS["sinusoid"]
    )
    add_problem(
        parser,
        "--problem",
        ITERATIONS,
        "sinusoid (section 5.1, default) or omniglot (5-way 1-shot; "
        f"{ITERATIONS['omniglot'][0]:,} iterations, {ITERATIONS['omniglot'][1]} with "
        "--fast)",
    )
    add_images(parser, otherwise="; stand-ins if they have none")
    return parser


def choose_problem(
    parser: Parser, options: argparse.Namespace, backend: Backend
) -> Problem:
    """The problem of --problem, with its data."""
    if options.problem == "sinusoid":
        refuse_images(parser, options, "--problem")
        return sinusoids(backend)
    try:
        images = omniglot.standin() if options.standin else omniglot.load(options.data)
    except (DataError, OSError) as error:
        folder, parts = omniglot.find_data(), [*omniglot.PARTS, *omniglot.ARCHIVES]
        there = any((folder / part).exists() for part in parts)
        if options.data is not None or there:
            parser.error(f"argument --data: {reason(error)}")
        print(f"Drawn stand-ins take the place of Omniglot: {reason(error)}")
        images = omniglot.standin()
    return omniglot_5_way(omniglot.split(images), backend)


def run(
    problem: Problem, options: argparse.Namespace, backend: Backend, command: str
) -> None:
    """Measure the cost, train twice, draw, print."""
    started = time.perf_counter()
    if options.fast:
        problem = problem._replace(rounds=problem.rounds // 2)
    rows = measure_cost(problem) + count_memory(problem)
    for start, theta in problem.shipped.items():
        rows += measure(problem, theta, start=start)
    seconds = {"measurements": time.perf_counter() - started}

    started = time.perf_counter()
    rows += train_both(problem, rows, options)
    seconds["training"] = time.perf_counter() - started
    seconds["total"] = sum(seconds.values())
    about = (problem.title, problem.score, problem.network.size)
    draw(rows, *about, options.out / "maml_vs_fomaml.png")
    facts = {"problem": problem.title, "score": problem.score}
    write_results("maml_vs_fomaml", command, options, backend, seconds, rows, **facts)
    print(summary(rows, problem.score))
    print(f"{seconds['total']:.0f} seconds; files are in {options.out}")


def start(parser: Parser, arguments: Sequence[str]) -> None:
    """Read the options, check everything, and run."""
    options, backend = read_options(parser, arguments)
    problem = choose_problem(parser, options, backend)
    command = command_line("examples/maml_vs_fomaml.py", arguments)
    with open_folder(parser, options, FILES):
        run(problem, options, backend, command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with command-line arguments; return the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = make_parser()
    return run_to_the_end(parser, lambda: start(parser, arguments))


if __name__ == "__main__":
    sys.exit(main())
