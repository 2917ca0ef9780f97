"""The figures of `examples/sinusoid.py`: nothing but drawing.

Left out: where the numbers come from.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from shared import save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = np.ndarray[Any, Any]


class Curve(NamedTuple):
    """An error after 0, 1, 2 ... gradient steps, with its 95 % interval."""

    label: str
    colour: str
    marker: str
    mse: Array
    interval: Array


def draw_errors(panels: Mapping[str, Sequence[Curve]], title: str, out: Path) -> None:
    """A panel of curves for each title in `panels`, on a logarithmic scale."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for panel, (name, curves) in zip(axes, panels.items(), strict=True):
        for label, colour, marker, mse, interval in curves:
            steps = range(len(mse))
            low = np.maximum(mse - interval, mse / 2)  # a log scale has no zero
            band = {"color": colour, "alpha": 0.2, "linewidth": 0}
            panel.fill_between(steps, low, mse + interval, **band)
            panel.plot(steps, mse, label=label, color=colour, marker=marker, ms=5)
        panel.set(title=name, xlabel="gradient steps", yscale="log")
        panel.set_xticks(range(0, len(mse), 2))
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter("")
        panel.grid(color="0.9")
    axes[0].set_ylabel("mean squared error on query points")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), frameon=False
    )
    figure.suptitle(title)
    save_figure(figure, out)


class Fits(NamedTuple):
    """A column of panels, one for each task: support points and predictions."""

    title: str
    colour: str
    x: Array  # (tasks, K, 1)
    y: Array  # (tasks, K, 1)
    predictions: Array  # (tasks, 3, grid): before any step, after 1 step, after all


def draw_fits(
    columns: Sequence[Fits], grid: Array, truths: Array, steps: int, out: Path
) -> None:
    """Fits to `truths` (tasks, grid), all support points in one half of the range."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), layout="constrained")
    panels = figure.subplots(len(truths), len(columns), sharex=True, sharey=True)
    for fits, column in zip(columns, panels.T, strict=True):
        column[0].set_title(fits.title, color=fits.colour)
        column[-1].set_xlabel("x")
        for task, panel in enumerate(column):
            _draw_task(panel, fits, task, grid, truths[task], steps)
    for panel in panels[:, 0]:
        panel.set(ylabel="y", ylim=(-5.5, 5.5))
    handles, labels = panels[0, 0].get_legend_handles_labels()
    legend = figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), frameon=False
    )
    for line in legend.get_lines()[2:4]:  # the colour says the method, not the step
        line.set_color("0.3")
    save_figure(figure, out)


def _draw_task(
    panel: "Axes", fits: Fits, task: int, grid: Array, truth: Array, steps: int
) -> None:
    half = (0, 5) if fits.x[task, 0, 0] > 0 else (-5, 0)
    panel.axvspan(*half, color="0.94", linewidth=0, label="half with all points")
    panel.plot(grid, truth, color="black", linewidth=1, label="true wave")
    before, first, last = fits.predictions[task]
    panel.plot(grid, before, ":", color="0.4", label="before any step")
    panel.plot(grid, first, "--", color=fits.colour, label="after 1 step")
    label = f"after {steps} steps"
    panel.plot(grid, last, color=fits.colour, linewidth=2.5, label=label)
    x, y = fits.x[task], fits.y[task]
    panel.plot(x, y, "^k", ms=7, mfc="#F0E442", label="support points")
