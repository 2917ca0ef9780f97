"""The tables and the figure of `examples/maml_vs_fomaml.py`: no measurements."""

import math
from collections.abc import Sequence
from typing import Any

from shared import save_figure, text_table

Row = dict[str, Any]  # one number of results.json
LABELS = {2: "exact MAML", 1: "first-order MAML"}
COLOURS = {2: "#0072B2", 1: "#E69F00"}


def rows_of(rows: Sequence[Row], quantity: str, **about: Any) -> list[Row]:
    """The rows of one quantity whose fields have the values in `about`."""
    fields = {"quantity": quantity, **about}
    return [r for r in rows if all(r[key] == fields[key] for key in fields)]


def value_of(rows: Sequence[Row], quantity: str, **about: Any) -> float:
    """The value of the last of these rows."""
    return float(rows_of(rows, quantity, **about)[-1]["value"])


# %% The figure


def draw(
    rows: Sequence[Row], title: str, score: str, parameters: int, out: Any
) -> None:
    """Norms, angle, score by iterations and by time, cost and memory."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 8), layout="constrained")
    figure.suptitle(f"Exact and first-order MAML: {title}")
    (norms, angle, by_iteration), (by_time, cost, memory) = figure.subplots(2, 3)

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
        label, style = f"trained with {label}", {"color": COLOURS[order]}
        chosen = rows_of(rows, "angle_degrees", order=order)
        plot(angle, chosen, "iteration", label=label, **style)
        chosen = rows_of(rows, "score", order=order)
        plot(by_iteration, chosen, "iteration", label=label, **style)
        step, exact = (value_of(rows, "seconds", order=o, steps=1) for o in (order, 2))
        timed = [{**r, "time": step / exact * r["iteration"]} for r in chosen]
        plot(by_time, timed, "time", label=label, **style)
    angle.set(
        title="Angle between exact and first-order", ylabel="degrees", ylim=(0, None)
    )
    by_iteration.set(title="At equal iterations", ylabel=score)
    by_time.set(title="At equal time", ylabel=score)
    by_time.set_xlabel("time, in iterations of exact MAML")
    by_time.locator_params(axis="x", nbins=5)
    for panel in (norms, angle, by_iteration):
        panel.set_xscale("symlog")
        panel.set_xlim(0, None)
        panel.set_xlabel("iteration of meta-training")

    for quantity, label, line in (
        ("percent_seconds_saved", "time", "o-"),
        ("percent_flops_saved", "floating-point operations", "s--"),
    ):
        chosen = rows_of(rows, quantity)
        plot(cost, chosen, "steps", ls=line[1:], marker=line[0], label=label)
    cost.axhline(33, color="0.5", linestyle=":", label="paper (MiniImagenet)")
    cost.set(title="What first order saves", ylabel="% of exact MAML", ylim=(0, 80))

    for order, recompute, label, line in (
        (2, False, "exact", "o-"),
        (2, True, "exact, recomputing activations", "o--"),
        (1, False, "first order", "s-"),
    ):
        chosen = rows_of(rows, "workspace_bytes", order=order, recompute=recompute)
        steps = [r["steps"] for r in chosen]
        kibibytes = [r["value"] / 1024 for r in chosen]
        memory.plot(steps, kibibytes, line, color=COLOURS[order], label=label)
    thetas = [4 * parameters * (j + 1) / 1024 for j in steps]
    memory.plot(steps, thetas, ":", color="0.5", label="theta_0 ... theta_J alone")
    memory.set(title="Workspace per thread", ylabel="KiB", ylim=(0, None))
    for panel in (cost, memory):
        panel.set_xlabel("inner steps")
    for panel in figure.axes:
        panel.grid(color="0.9")
        panel.legend(frameon=False)
    save_figure(figure, out)


# %% The tables


def summary(rows: Sequence[Row], score: str) -> str:
    """Three tables: the last measurements, the scores compared, the costs."""
    quantities = ("first_order_norm", "correction_norm", "exact_norm", "angle_degrees")
    header = ["at the end, trained with", *quantities, "score"]
    lines = [
        [label, *_last(rows, (*quantities, "score"), order=order, start="trained")]
        for order, label in LABELS.items()
    ]
    for start in dict.fromkeys(r["start"] for r in rows):
        if start not in (None, "trained"):
            found = _last(rows, (*quantities, "score"), start=start)
            lines.append([f"shipped {start}", *found])
    tables = [text_table(header, lines), f"score: {score}"]

    header = ["exact MAML and first order", "exact", "first order"]
    lines = []
    for name in ("iterations", "time"):
        by_exact, by_first = (
            rows_of(rows, f"score_at_equal_{name}", order=order)[-1] for order in (2, 1)
        )
        words = (
            f"at equal {name} ({by_exact['iteration']:,} and {by_first['iteration']:,})"
        )
        lines.append([words, f"{by_exact['value']:.3g}", f"{by_first['value']:.3g}"])
    tables.append(text_table(header, lines))

    header = ["inner steps", "exact ms", "first ms", "ratio", "% time saved"]
    header += ["% FLOPs", "exact KiB", "recompute KiB", "first KiB"]
    lines = []
    for steps in (r["steps"] for r in rows_of(rows, "percent_seconds_saved")):
        exact, first = (
            1e3 * value_of(rows, "seconds", steps=steps, order=order)
            for order in LABELS
        )
        saved = [
            f"{value_of(rows, quantity, steps=steps):.0f}"
            for quantity in ("percent_seconds_saved", "percent_flops_saved")
        ]
        sizes = [
            f"{r['value'] / 1024:.0f}"
            for r in rows_of(rows, "workspace_bytes", steps=steps)
        ]
        times = [f"{exact:.3f}", f"{first:.3f}", f"{exact / first:.2f}"]
        lines.append([str(steps), *times, *saved, *sizes])
    tables.append(text_table(header, lines))
    return "\n\n".join(tables)


def _last(rows: Sequence[Row], quantities: Sequence[str], **about: Any) -> list[str]:
    return [f"{value_of(rows, quantity, **about):.3g}" for quantity in quantities]
