"""The table and the figures of `examples/sinusoid.py`: presentation, no learning.

Table 2 with the paper's numbers beside ours, figure 3 (also 6) and figure 2 (also 7).
Left out: where the numbers come from.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from methods import RELATIVES
from shared import save_figure, text_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = np.ndarray[Any, Any]
Row = dict[str, Any]  # one record of results.json: a method, K, and a number of steps


TABLE_2_SHOTS, TABLE_2_STEPS = 5, (1, 5, 10)


class Method(NamedTuple):
    """How one method is called in results.json, in the table and in the figures."""

    name: str  # in results.json, together with the order
    order: int | None
    label: str
    table_2: tuple[float, ...]  # the paper's errors after TABLE_2_STEPS, or ()
    colour: str = ""
    marker: str = ""

    def paper(self, shots: int, steps: int) -> float | None:
        """The paper's error, if table 2 has it."""
        errors = dict(zip(TABLE_2_STEPS, self.table_2, strict=False))
        return errors.get(steps) if shots == TABLE_2_SHOTS else None


# A key is the name of the method's training, and of the folder with its checkpoint.
METHODS = {
    "exact": Method("maml", 2, "MAML", (0.67, 0.38, 0.35), "#0072B2", "o"),
    "first-order": Method("maml", 1, "MAML, first order", (), "#E69F00", "s"),
    "pretrained": Method(
        "pretrained", None, "pretrained", (2.41, 2.23, 2.19), "#CC3311", "^"
    ),
    "oracle": Method("oracle", None, "oracle", (), "#009E73", "d"),
    "multitask": Method("multitask", None, "multi-task", (4.19, 3.85, 3.69)),
    "multitask-l2": Method("multitask_l2", None, "multi-task, l2", (7.18, 5.69, 5.60)),
    "multitask-mean": Method(
        "multitask_mean", None, "multi-task, to mean", (2.91, 2.72, 2.71)
    ),
}
# The relatives of MAML, in colours that are not used above.
for number, (name, relative) in enumerate(RELATIVES.items()):
    METHODS.setdefault(
        name, Method(name, None, relative.label, (), f"C{number % 10}", "v")
    )
DIVERGED = 100.0  # (2 * 5)^2: the squared distance of two waves is nowhere larger


def rows_of(rows: Sequence[Row], name: str, shots: int) -> list[Row]:
    """The rows of one method and K, for 0, 1, 2 ... gradient steps."""
    key = (METHODS[name].name, METHODS[name].order, shots)
    return [row for row in rows if (row["method"], row["order"], row["shots"]) == key]


def table_2(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Table 2 of the paper, its numbers beside ours."""
    lines = []
    for name in names:
        line = [METHODS[name].label]
        errors = rows_of(rows, name, TABLE_2_SHOTS)
        for row in (errors[steps] for steps in TABLE_2_STEPS):
            ours = f"{row['mse']:.2f} ± {row['ci95']:.2f}"
            line.append(ours if row["mse"] < DIVERGED else "diverges")
            line.append("-" if row["paper"] is None else f"{row['paper']:.2f}")
        lines.append(line)
    header = ["MSE on 5 shots after", "1 step", "paper", "5 steps", "paper"]
    return text_table([*header, "10 steps", "paper"], lines)


# --- figure 3 -------------------------------------------------------------------------


def draw_figure_3(
    rows: Sequence[Row], names: Sequence[str], tasks: int, out: Path
) -> None:
    """Error against gradient steps: one panel for each K, one curve for each method.

    The scale is logarithmic; on a linear one MAML and the oracle would coincide.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    all_shots = sorted({row["shots"] for row in rows})
    panels = figure.subplots(1, len(all_shots), sharey=True, squeeze=False)[0]
    for panel, shots in zip(panels, all_shots, strict=True):
        for name in names:
            _draw_curve(panel, METHODS[name], rows_of(rows, name, shots))
        panel.set(title=f"K = {shots}", xlabel="gradient steps", yscale="log")
        panel.set_xticks(range(0, 1 + max(row["steps"] for row in rows), 2))
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter("")
        panel.grid(color="0.9")
    panels[0].set_ylabel("mean squared error on query points")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), frameon=False
    )
    figure.suptitle(f"Mean of {tasks} new tasks, with 95 % intervals")
    save_figure(figure, out)


def _draw_curve(panel: "Axes", method: Method, rows: Sequence[Row]) -> None:
    steps, mse, interval = (
        np.array([row[key] for row in rows]) for key in ("steps", "mse", "ci95")
    )
    low = np.maximum(mse - interval, mse / 2)  # a logarithmic scale has no zero
    panel.fill_between(
        steps, low, mse + interval, color=method.colour, alpha=0.2, linewidth=0
    )
    panel.plot(
        steps, mse, label=method.label, color=method.colour, marker=method.marker, ms=5
    )


# --- figure 2 -------------------------------------------------------------------------


class Fits(NamedTuple):
    """A column of figure 2: one method's fits to K support points of each wave."""

    name: str  # key of METHODS
    shots: int
    alpha: float | None  # inner learning rate, unless a relative has its own
    x: Array  # (waves, K, 1)
    y: Array  # (waves, K, 1)
    predictions: Array  # (waves, 3, grid): before any step, after 1 step, after all


def draw_fits(
    columns: Sequence[Fits], grid: Array, truths: Array, steps: int, out: Path
) -> None:
    """Fits to `truths` (waves, grid), one row for each wave, before and after `steps`.

    All support points of a wave must lie in one half of the range.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), layout="constrained")
    panels = figure.subplots(len(truths), len(columns), sharex=True, sharey=True)
    for fits, column in zip(columns, panels.T, strict=True):
        method = METHODS[fits.name]
        title = f"{method.label}, K = {fits.shots}\n"
        title += "" if fits.alpha is None else f"(learning rate {fits.alpha:g})"
        column[0].set_title(title, color=method.colour)
        column[-1].set_xlabel("x")
        for wave, panel in enumerate(column):
            _draw_fit(panel, fits, wave, grid, truths[wave], steps)
    for panel in panels[:, 0]:
        panel.set(ylabel="y", ylim=(-5.5, 5.5))
    handles, labels = panels[0, 0].get_legend_handles_labels()
    legend = figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), frameon=False
    )
    for line in legend.get_lines()[2:4]:  # grey: these two stand for every method
        line.set_color("0.3")
    save_figure(figure, out)


def _draw_fit(
    panel: "Axes", fits: Fits, wave: int, grid: Array, truth: Array, steps: int
) -> None:
    colour = METHODS[fits.name].colour
    half = (0, 5) if fits.x[wave, 0, 0] > 0 else (-5, 0)
    panel.axvspan(*half, color="0.94", linewidth=0, label="half with all points")
    panel.plot(grid, truth, color="black", linewidth=1, label="true wave")
    before, first, last = fits.predictions[wave]
    panel.plot(grid, before, ":", color="0.4", label="before any step")
    panel.plot(grid, first, "--", color=colour, label="after 1 step")
    panel.plot(grid, last, color=colour, linewidth=2.5, label=f"after {steps} steps")
    x, y = fits.x[wave], fits.y[wave]
    panel.plot(x, y, "^k", ms=7, mfc="#F0E442", label="support points")
