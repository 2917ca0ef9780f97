"""What the Hessian term does: exact and first-order MAML (FOMAML), after section 5.2.

    python examples/maml_vs_fomaml.py          # 2 minutes on two cores
    python examples/maml_vs_fomaml.py --fast   # 15 seconds, compilation included

First-order MAML leaves the Hessian out of the meta-gradient. With one inner step,

    exact = first-order - correction,   correction = H_S(theta) (alpha grad Q(theta')).

On the sinusoids of section 5.1 this example measures
- the norms of these three vectors and the angle between the first two, during
  two trainings, one with the exact and one with the first-order meta-gradient. They
  are always measured on the same 500 tasks, which no training uses;
- the cost: the time and the floating-point operations of a meta-gradient of 25 tasks,
  for 1 to 10 inner steps. The paper reports a "speed-up in network computation" of
  roughly 33 %, for convolutions on MiniImagenet. Here the saving is the share of the
  exact meta-gradient's time, with everything but the sampling of tasks included;
- the memory: bytes of workspace per thread against the number of inner steps, with
  K = 100 support points, where activations need more memory than parameters. With
  `recompute` only the thetas are stored and the activations are computed again.

Written into the folder of --out: maml_vs_fomaml.png, results.json, and log.csv in the
folders exact and first-order.
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np

import tinymaml as tm
from shared import (
    Parser,
    command_line,
    experiment_parser,
    open_folder,
    random_stream,
    read_options,
    run_to_the_end,
    save_figure,
    text_table,
    write_results,
)
from tinymaml.backends import Backend
from tinymaml.backends.numba.planner import plan
from tinymaml.networks.layers import truncated_normal
from tinymaml.tasks import sinusoid

Array = np.ndarray[Any, Any]
Row = dict[str, Any]
LOGS = {2: "exact/log.csv", 1: "first-order/log.csv"}
FILES = ("maml_vs_fomaml.png", "results.json", *LOGS.values())
ALPHA = 0.01
LABELS = {2: "exact MAML", 1: "first-order MAML"}
COLOURS = {2: "#0072B2", 1: "#E69F00"}
STEPS = (1, 2, 3, 5, 7, 10)
ROUNDS = 300

# Purposes of random numbers, as in sinusoid.py.
INITIAL, TRAINING = 1, 2

# %% The network and the loss of section 5.1

NETWORK = tm.MLP([1, 40, 40, 1], initialiser=truncated_normal(0.01))


def loss(theta: tm.Value, x: tm.Value, y: tm.Value) -> tm.Value:
    """Mean squared error; paper eq. (2) has the sum."""
    return tm.squared_error(NETWORK(theta, x), y)


def row(quantity: str, value: float, **about: Any) -> Row:
    """One number of `results.json`; fields that do not apply to it are null."""
    fields = ("order", "iteration", "steps", "recompute", "paper")
    return {"quantity": quantity, "value": value, **dict.fromkeys(fields), **about}


def rows_of(rows: Sequence[Row], quantity: str, **about: Any) -> list[Row]:
    """The rows of one quantity whose fields have the values in `about`."""
    fields = {"quantity": quantity, **about}
    return [r for r in rows if all(r[key] == fields[key] for key in fields)]


# %% Norms and angle during training
# `parts=True` gives the terms of the exact meta-gradient. They are measured before
# about 40 of the iterations; measuring them does not change the training.


def measure_parts(maml: tm.MAML, theta: Array, tasks: tm.Tasks) -> dict[str, float]:
    """The norms of both meta-gradients and their difference, and the angle between."""
    result = maml.meta_gradient(theta, tasks, parts=True)
    assert result.parts is not None
    cosine = min(1.0, result.parts.cosine)  # rounding may take it above 1
    return {
        "first_order_norm": float(np.linalg.norm(result.parts.query_gradient)),
        "correction_norm": float(np.linalg.norm(result.parts.corrections.sum(0))),
        "exact_norm": float(np.linalg.norm(result.gradient)),
        "angle_degrees": math.degrees(math.acos(cosine)),
    }


def train_and_measure(
    order: int, options: argparse.Namespace, backend: Backend
) -> list[Row]:
    """Train with one meta-gradient; measure the exact one's parts on the way."""
    maml = tm.MAML(loss, ALPHA, order=order, backend=backend)
    exact = tm.MAML(loss, ALPHA, backend=backend)
    tasks = sinusoid.sample_tasks(np.random.default_rng(1000), tasks=500)
    measured = {0, *np.geomspace(1, max(1, options.iterations), 40).astype(int)}
    iterations = count()
    rows: list[Row] = []

    def measure(theta: Array, iteration: int) -> None:
        if iteration in measured:
            for quantity, value in measure_parts(exact, theta, tasks).items():
                rows.append(row(quantity, value, order=order, iteration=iteration))

    def gradient(theta: Array, batch: tm.Tasks) -> tm.MetaGradient:
        measure(theta, next(iterations))
        return maml.meta_gradient(theta, batch)

    result = tm.train(
        gradient,
        NETWORK.init(random_stream(INITIAL, options.seed)),
        sinusoid.sample_tasks,
        iterations=options.iterations,
        optimiser=tm.Adam(0.001),
        rng=random_stream(TRAINING, options.seed),
        log=options.out / LOGS[order],
        description=LABELS[order],
    )
    if result.interrupted:
        raise KeyboardInterrupt
    measure(result.theta, options.iterations)
    return rows


# %% Cost
# Exact and first-order meta-gradients are timed in turns, so that other programs
# disturb both alike. The shortest time counts, as the least disturbed one.


def measure_cost(backend: Backend) -> list[Row]:
    """Shortest time and FLOPs by inner steps, and how much of both FOMAML saves."""
    theta = NETWORK.init(np.random.default_rng(0))
    tasks = sinusoid.sample_tasks(np.random.default_rng(0), tasks=25)
    rows = []
    for steps in STEPS:
        mamls = {
            order: tm.MAML(loss, ALPHA, steps, order, backend=backend)
            for order in LABELS
        }
        seconds = dict.fromkeys(LABELS, math.inf)
        for turn in range(ROUNDS + 1):
            for order, maml in mamls.items():
                started = time.perf_counter()
                maml.meta_gradient(theta, tasks)
                if turn > 0:  # the first call records and compiles
                    elapsed = time.perf_counter() - started
                    seconds[order] = min(seconds[order], elapsed)
        flops = {
            order: 25 * maml.tape(theta, tasks).flops() for order, maml in mamls.items()
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


def count_memory(backend: Backend) -> list[Row]:
    """Bytes of workspace per thread by inner steps, with and without `recompute`."""
    theta = NETWORK.init(np.random.default_rng(0))
    tasks = sinusoid.sample_tasks(np.random.default_rng(0), tasks=1, shots=100)
    rows = []
    for steps in STEPS:
        for order, recompute in ((2, False), (2, True), (1, False)):
            maml = tm.MAML(
                loss, ALPHA, steps, order, recompute=recompute, backend=backend
            )
            size = plan(maml.tape(theta, tasks)).bytes("float32")
            about = {"order": order, "steps": steps, "recompute": recompute}
            rows.append(row("workspace_bytes", size, **about))
    return rows


# %% The figure


def draw(rows: Sequence[Row], out: Any) -> None:
    """Norms, angle, cost and memory."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    (norms, angle), (cost, memory) = figure.subplots(2, 2)

    def plot(panel: Any, chosen: Sequence[Row], by: str, **style: Any) -> None:
        points = [(r[by], r["value"]) for r in chosen if math.isfinite(r["value"])]
        panel.plot(*zip(*points, strict=True), **style)

    for quantity, label, colour in (
        ("exact_norm", "exact meta-gradient", COLOURS[2]),
        ("first_order_norm", "first-order meta-gradient", COLOURS[1]),
        ("correction_norm", "correction (Hessian term)", "#CC3311"),
    ):
        chosen = rows_of(rows, quantity, order=2)
        plot(norms, chosen, "iteration", label=label, color=colour)
    norms.set(title="Norms, trained with exact MAML", ylabel="norm", yscale="log")

    for order, label in LABELS.items():
        chosen = rows_of(rows, "angle_degrees", order=order)
        label = f"trained with {label}"
        plot(angle, chosen, "iteration", label=label, color=COLOURS[order])
    angle.set(
        title="Angle between exact and first-order", ylabel="degrees", ylim=(0, None)
    )
    for panel in (norms, angle):
        panel.set_xscale("symlog")
        panel.set_xlim(0, None)
        panel.set_xlabel("iteration of meta-training")

    for quantity, label, line in (
        ("percent_seconds_saved", "time", "o-"),
        ("percent_flops_saved", "floating-point operations", "s--"),
    ):
        percent = [r["value"] for r in rows_of(rows, quantity)]
        cost.plot(STEPS, percent, line, color=COLOURS[1], label=label)
    cost.axhline(33, color="0.5", linestyle=":", label="paper (MiniImagenet)")
    cost.set(title="What first order saves", ylabel="% of exact MAML", ylim=(0, 80))

    for order, recompute, label, line in (
        (2, False, "exact", "o-"),
        (2, True, "exact, recomputing activations", "o--"),
        (1, False, "first order", "s-"),
    ):
        chosen = rows_of(rows, "workspace_bytes", order=order, recompute=recompute)
        kibibytes = [r["value"] / 1024 for r in chosen]
        memory.plot(STEPS, kibibytes, line, color=COLOURS[order], label=label)
    parameters = [4 * NETWORK.size * (steps + 1) / 1024 for steps in STEPS]
    memory.plot(STEPS, parameters, ":", color="0.5", label="theta_0 ... theta_J alone")
    memory.set(title="Workspace per thread", ylabel="KiB", ylim=(0, None))
    for panel in (cost, memory):
        panel.set_xlabel("inner steps")
    for panel in (norms, angle, cost, memory):
        panel.grid(color="0.9")
        panel.legend(frameon=False)
    save_figure(figure, out)


def summary(rows: Sequence[Row]) -> str:
    """The last measurement of each training, and the costs, as two tables."""

    def final(quantity: str, order: int) -> str:
        return f"{rows_of(rows, quantity, order=order)[-1]['value']:.3g}"

    quantities = ("first_order_norm", "correction_norm", "exact_norm", "angle_degrees")
    lines = [
        [LABELS[order], *(final(quantity, order) for quantity in quantities)]
        for order in LABELS
    ]
    last = text_table(["at the end, trained with", *quantities], lines)
    lines = []
    for steps in STEPS:
        exact, first = (
            1e3 * rows_of(rows, "seconds", steps=steps, order=order)[0]["value"]
            for order in LABELS
        )
        sizes = [
            f"{r['value'] / 1024:.0f}"
            for r in rows_of(rows, "workspace_bytes", steps=steps)
        ]
        saved = [
            f"{rows_of(rows, quantity, steps=steps)[0]['value']:.0f}"
            for quantity in ("percent_seconds_saved", "percent_flops_saved")
        ]
        times = [f"{exact:.3f}", f"{first:.3f}", f"{exact / first:.2f}"]
        lines.append([str(steps), *times, *saved, *sizes])
    header = ["inner steps", "exact ms", "first ms", "ratio", "% time saved"]
    header += ["% FLOPs", "exact KiB", "recompute KiB", "first KiB"]
    return last + "\n\n" + text_table(header, lines)


# %% Everything


def make_parser() -> Parser:
    """The options of this example."""
    return experiment_parser(
        __doc__ or "", out="results/maml_vs_fomaml", iterations=70_000, fast=1_000
    )


def run(options: argparse.Namespace, backend: Backend, command: str) -> None:
    """Train, measure, draw, print."""
    started = time.perf_counter()
    rows: list[Row] = []
    for order in LABELS:
        rows += train_and_measure(order, options, backend)
    seconds = {"training": time.perf_counter() - started}

    started = time.perf_counter()
    rows += measure_cost(backend) + count_memory(backend)
    draw(rows, options.out / "maml_vs_fomaml.png")
    seconds["measurements"] = time.perf_counter() - started
    seconds["total"] = sum(seconds.values())
    write_results("maml_vs_fomaml", command, options, backend, seconds, rows)
    print(summary(rows))
    print(f"{seconds['total']:.0f} seconds; files are in {options.out}")


def start(parser: Parser, arguments: Sequence[str]) -> None:
    """Read the options, check everything, and run."""
    options, backend = read_options(parser, arguments)
    command = command_line("examples/maml_vs_fomaml.py", arguments)
    with open_folder(parser, options, FILES):
        run(options, backend, command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with command-line arguments; return the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = make_parser()
    return run_to_the_end(parser, lambda: start(parser, arguments))


if __name__ == "__main__":
    sys.exit(main())
