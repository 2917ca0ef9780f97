"""The table and the figure of `examples/compare.py`: presentation, no learning."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compare_problems import Problem
from methods import RELATIVES, Published
from seeds import interval
from shared import save_figure, text_table

Array = np.ndarray[Any, Any]
Row = dict[str, Any]
DIVERGED = 100.0  # of a mean squared error; that of a constant 0 is about 8.5


def select(rows: Sequence[Row], name: str, at: str) -> list[Row]:
    """A method's rows of the table, one for each seed."""
    return [
        r for r in rows if (r["method"], r["at"], r["reported"]) == (name, at, True)
    ]


def mean_of_seeds(rows: Sequence[Row], metric: str) -> tuple[float, float]:
    """Mean over seeds, and half-width of its interval; over tasks for one seed."""
    values = [float(row[metric]) for row in rows]
    if len(rows) == 1:
        return values[0], float(rows[0]["ci95"])
    if not np.isfinite(values).all():
        return np.inf, np.inf
    return float(np.mean(values)), interval(values)


def summary(
    problem: Problem, rows: Sequence[Row], costs: Mapping[str, Mapping[str, float]]
) -> str:
    """One line for each method."""
    lines, notes = [], []
    for name in dict.fromkeys(row["method"] for row in rows):
        line, cost = [RELATIVES[name].label], costs.get(name)
        for at in ("equal iterations", "equal time"):
            mean, half = mean_of_seeds(select(rows, name, at), problem.metric)
            diverged = not np.isfinite(mean) or problem.better * mean < -DIVERGED
            line.append("diverges" if diverged else f"{mean:.2f} ± {half:.2f}")
        last = select(rows, name, "equal time")[0]
        line.append(f"{last['iterations']:,}")
        line += [""] * 5
        if cost is not None:
            line[-5:] = [
                f"{1e3 * cost['seconds']:.3g}",
                f"{cost['flops'] / 1e6:.3g}",
                f"{cost['workspace_bytes'] / 1024:,.0f}",
                f"{cost['adapted']:,.0f}",
                f"{cost['learned']:,.0f}",
            ]
        line.insert(1, str(last["steps"]))
        published = RELATIVES[name].published.get(problem.name)
        line.append("" if published is None else figure_of(published))
        if published is not None:
            notes.append(f"{line[0]}: {published.source}; {published.setting}")
        lines.append(line)
    header = [
        *("method", "steps", "equal iterations", "equal time", "iterations"),
        *("ms", "Mflop", "KiB", "adapted", "learned", "published"),
    ]
    words = [
        problem.title,
        "steps: inner ones, before this is measured; iterations: in equal time; ms, "
        "Mflop: of an outer step;",
        "KiB: workspace of one thread; adapted, learned: numbers of parameters",
    ]
    return "\n".join([*words, text_table(header, lines), *notes])


def figure_of(published: Published) -> str:
    """A published figure with its interval, if it has one."""
    value, half = published.value, published.interval
    return f"{value:g}" if half is None else f"{value:g} ± {half:g}"


def draw(
    problem: Problem,
    curves: Sequence[Row],
    costs: Mapping[str, Mapping[str, float]],
    out: Path,
) -> None:
    """The metric on the validation tasks against processor time, mean over seeds."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(9.5, 5.2), layout="constrained")
    panel = figure.subplots()
    for number, name in enumerate(dict.fromkeys(c["method"] for c in curves)):
        of_method = [curve for curve in curves if curve["method"] == name]
        shortest = min(len(curve["scores"]) for curve in of_method)
        scores = np.array([curve["scores"][:shortest] for curve in of_method])
        iterations = np.array(of_method[0]["iterations"][:shortest])
        if shortest == 0:
            continue
        panel.plot(
            iterations * costs[name]["seconds"],
            scores.mean(axis=0),
            label=RELATIVES[name].label,
            color=f"C{number % 10}",
            linestyle=("-", "--", ":")[number // 10 % 3],
            linewidth=1.4,
        )
    if problem.better < 0:
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter("")
    label = {"mse": "mean squared error", "accuracy": "accuracy, %"}[problem.metric]
    panel.set(xlabel="processor time of outer steps, seconds", ylabel=label)
    panel.set_title(problem.title, fontsize=9)
    panel.grid(color="0.9")
    if panel.lines:
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    else:
        text = "every training is shorter than the time to its first validation"
        panel.text(0.5, 0.5, text, ha="center", transform=panel.transAxes)
    save_figure(figure, out)
