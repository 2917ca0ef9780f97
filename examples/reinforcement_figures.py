"""Returns of the experiments of section 5.3: nothing but drawing.

Left out: where the numbers come from.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

Array = np.ndarray[Any, Any]


class Curve(NamedTuple):
    """One method's mean return against gradient steps or outer steps."""

    label: str
    colour: str
    marker: str
    steps: Array  # gradient steps or outer steps: the horizontal axis
    values: Array  # mean returns
    interval: Array | None = None  # half-widths of the 95 % intervals
    paper: Array | None = None  # the authors' mean returns, for the first steps


def draw_returns(
    place: "SubFigure",
    curves: Sequence[Curve],
    training: Sequence[Curve],
    paper: bool = False,
) -> None:
    """Returns after gradient steps above those of training; a legend below.

    paper: whether the authors' returns are drawn too, as dotted lines.
    """
    above, below = place.subplots(2, 1)
    for curve in curves:
        _draw_adaptation(above, curve)
    known = [c for c in curves if paper and c.paper is not None and len(c.paper) > 0]
    for curve in known:
        _draw_authors(above, curve)
    if known:
        above.plot([], [], ":", color="0.3", label="dotted: the authors")
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
    place.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)


def _draw_adaptation(panel: "Axes", curve: Curve) -> None:
    """Returns with their intervals; a method that takes no steps is a level line."""
    low, high = curve.values - curve.interval, curve.values + curve.interval
    band: dict[str, Any] = {"color": curve.colour, "alpha": 0.2, "linewidth": 0}
    if len(curve.steps) == 1:
        panel.axhspan(low[0], high[0], **band)
        panel.axhline(
            curve.values[0], color=curve.colour, ls=(0, (7, 3)), label=curve.label
        )
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


def _draw_authors(panel: "Axes", curve: Curve) -> None:
    """The authors' returns of a method, dotted and in its colour."""
    style: dict[str, Any] = {"color": curve.colour, "ls": ":", "lw": 1.8}
    assert curve.paper is not None
    if len(curve.paper) == 1:
        panel.axhline(curve.paper[0], **style)
        return
    steps = curve.steps[: len(curve.paper)]
    panel.plot(steps, curve.paper, marker=curve.marker, ms=3, **style)
