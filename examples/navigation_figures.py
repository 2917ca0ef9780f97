"""The figure of `examples/navigation.py`: nothing but drawing.

Left out: where the numbers come from.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from shared import save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = np.ndarray[Any, Any]


class Curve(NamedTuple):
    """One method's mean return against gradient steps or outer steps."""

    label: str
    colour: str
    marker: str
    steps: Array  # gradient steps or outer steps: the horizontal axis
    values: Array  # mean returns
    interval: Array | None  # half-widths of the 95 % intervals


class Paths(NamedTuple):
    """Paths of one method, for each number of gradient steps and each goal."""

    label: str
    colour: str
    positions: list[list[Array]]  # [j][goal]: (moves + 1, 2), after j gradient steps


def draw_figure_4(
    curves: Sequence[Curve],
    training: Sequence[Curve],
    paths: Sequence[Paths],
    goals: Array,
    out: Path,
) -> None:
    """Curves on the left; on the right a row of paths for each goal (G, 2)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 7.5), layout="constrained")
    halves = figure.subfigures(1, 2, width_ratios=(1, 1.7), squeeze=False)
    left, right = halves[0]
    above, below = left.subplots(2, 1)
    for curve in curves:
        _draw_adaptation(above, curve)
    above.set(xlabel="gradient steps", ylabel="mean return")
    above.set_title("Test goals, with 95 % intervals")
    above.set_xticks(range(max(len(curve.steps) for curve in curves)))
    for curve in training:
        below.plot(curve.steps, curve.values, color=curve.colour, linewidth=1.2)
    below.set(xlabel="outer steps", ylabel="mean return")
    below.set_title("Training goals; MAML's after adaptation")
    below.locator_params(axis="x", integer=True)
    for panel in (above, below):
        panel.grid(color="0.9")
    handles, labels = above.get_legend_handles_labels()
    left.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)

    right.suptitle("One trajectory for each goal, drawn inside the square [-1, 1]^2")
    panels = right.subplots(
        len(goals), len(paths[0].positions), sharex=True, sharey=True, squeeze=False
    )
    for row, goal in enumerate(goals):
        for step, panel in enumerate(panels[row]):
            for path in paths:
                x, y = path.positions[step][row].T
                panel.plot(x, y, "-", color=path.colour, lw=0.8, label=path.label)
            panel.plot(*goal, "*k", ms=12, mfc="#F0E442", label="goal")
            panel.plot(0, 0, "ok", ms=4, label="start")
            panel.set(aspect="equal", xlim=(-1, 1), ylim=(-1, 1))
            panel.set(xticks=(-0.5, 0, 0.5), yticks=(-0.5, 0, 0.5))
    for step, panel in enumerate(panels[0]):
        title = (
            "before any step" if step == 0 else f"after {step} step{'s'[: step > 1]}"
        )
        panel.set_title(title)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    right.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    save_figure(figure, out)


def _draw_adaptation(panel: "Axes", curve: Curve) -> None:
    """Returns with their intervals; a method that takes no steps is a level line."""
    low, high = curve.values - curve.interval, curve.values + curve.interval
    band: dict[str, Any] = {"color": curve.colour, "alpha": 0.2, "linewidth": 0}
    if len(curve.steps) == 1:
        panel.axhspan(low[0], high[0], **band)
        panel.axhline(curve.values[0], color=curve.colour, ls="--", label=curve.label)
        return
    panel.fill_between(curve.steps, low, high, **band)
    panel.plot(
        curve.steps,
        curve.values,
        label=curve.label,
        color=curve.colour,
        marker=curve.marker,
        ms=5,
    )
