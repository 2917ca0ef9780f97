"""The figure and the animation of `examples/locomotion.py`: nothing but drawing.

Left out: where the numbers come from.
"""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from reinforcement_figures import Curve, draw_returns
from shared import save_figure
from tinymaml.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = np.ndarray[Any, Any]
# How many poses are drawn over each other in a panel of the figure: of a body seen from
# the side, which runs along, and of one seen from above, whose legs spread.
POSES, POSES_FROM_ABOVE = 9, 4
FRAMES = 50  # of the animation
MARGIN = 0.7  # metres around a body


class Film(NamedTuple):
    """A body through one trajectory, as lines in the plane of the picture."""

    title: str
    colour: str
    poses: Array  # (steps + 1, lines, 2 ends, 2), in metres


def draw_figure_5(
    curves: Sequence[Curve],
    training: Sequence[Curve],
    films: Sequence[Film],
    floor: bool,
    out: Path,
) -> None:
    """Returns on the left; on the right stick figures for each of two or four films.

    floor: whether the body is seen from the side. Its films are strips, one below the
    other, with a line for the height 0. Seen from above, each body also leaves a path.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 7.5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.7), squeeze=False)[0]
    draw_returns(left, curves, training, paper=True)
    right.suptitle("One trajectory in each panel: from pale to dark, in metres")
    columns, poses = (1, POSES) if floor else (2, POSES_FROM_ABOVE)
    panels = right.subplots(len(films) // columns, columns, squeeze=False).ravel()
    for film, panel in zip(films, panels, strict=True):
        _set_panel(panel, film, films, floor)
        if not floor:
            path = film.poses.mean(axis=(1, 2))  # of the middle of all lines
            panel.plot(*path.T, color="0.3", lw=0.8)
        times = np.linspace(0, len(film.poses) - 1, poses).round().astype(int)
        for alpha, time in zip(np.linspace(0.15, 1, poses), times, strict=True):
            lines = film.poses[time].transpose(2, 1, 0)
            panel.plot(*lines, color=film.colour, alpha=alpha, lw=2)
    save_figure(figure, out)


def write_animation(films: Sequence[Film], floor: bool, out: Path) -> None:
    """All films beside each other as a GIF, written completely or not at all.

    A film that ends early stays on its last pose.
    """
    from matplotlib.animation import PillowWriter
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    panels = figure.subplots(2, -(-len(films) // 2), squeeze=False).T.ravel()
    bodies = []
    for film, panel in zip(films, panels, strict=False):
        _set_panel(panel, film, films, floor)
        lines = film.poses[0].transpose(2, 1, 0)
        bodies.append(panel.plot(*lines, color=film.colour, lw=2))
    longest = max(len(film.poses) for film in films)
    writer = PillowWriter(fps=25)
    with TemporaryDirectory() as folder:
        path = Path(folder, out.name)
        with writer.saving(figure, str(path), dpi=80):
            for time in np.linspace(0, longest - 1, FRAMES).round().astype(int):
                for film, body in zip(films, bodies, strict=True):
                    pose = film.poses[min(time, len(film.poses) - 1)]
                    for line, ends in zip(body, pose, strict=True):
                        line.set_data(*ends.T)
                writer.grab_frame()
        with write_atomically(out) as file:
            file.write(path.read_bytes())


def _set_panel(panel: "Axes", film: Film, films: Sequence[Film], floor: bool) -> None:
    """Limits that hold all films, so that their distances can be compared."""
    ends = np.concatenate([f.poses.reshape(-1, 2) for f in films])
    (left, low), (right, high) = ends.min(axis=0) - MARGIN, ends.max(axis=0) + MARGIN
    if floor:
        low = -0.2
        panel.axhline(0, color="0.6", lw=0.8)
    panel.set(aspect="equal", xlim=(left, right), ylim=(low, high))
    panel.set_title(film.title, fontsize=10)
