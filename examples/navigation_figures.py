"""The figure of `examples/navigation.py`: nothing but drawing.

Left out: where the numbers come from.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from reinforcement_figures import Curve, draw_returns
from shared import save_figure

Array = np.ndarray[Any, Any]


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
    draw_returns(left, curves, training)
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
