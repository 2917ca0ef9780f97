"""The figures of the classification examples: a training curve, and one episode."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import pyplot as plt

import tinymaml as tm
from shared import save_figure

Array = np.ndarray[Any, Any]
MOST_IMAGES = 25  # images drawn of each set


class Episode(NamedTuple):
    """One task: images (M, H, W, C), class numbers (M,), predictions (2, M)."""

    x_support: Array
    support: Array
    x_query: Array
    query: Array
    predicted: Array  # of the query examples: before adaptation, and after `steps`
    steps: int


def draw_curve(result: tm.TrainResult, title: str, path: Path) -> None:
    """Meta-loss and validation accuracy against iterations."""
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(7, 5.5), sharex=True, layout="constrained"
    )
    line: dict[str, Any] = {"color": "#0072B2", "ms": 3, "lw": 0.9}
    iterations = [row.iteration for row in result.losses]
    top.plot(iterations, [row.loss for row in result.losses], ".-", **line)
    top.set_yscale("log")
    top.set_ylabel("query loss after adaptation")
    top.set_title(title)
    if result.scores:
        at, scores = np.array(result.scores).T
        best = int(np.argmax(scores))
        bottom.plot(at, 100 * scores, ".-", **line)
        label = f"{100 * scores[best]:.2f} % at {at[best]:,.0f}: tested"
        bottom.plot(at[best], 100 * scores[best], "o", color="#CC3311", label=label)
        bottom.legend(loc="lower right")
    bottom.set_ylabel("validation accuracy, %")
    bottom.set_xlabel("meta-iteration")
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
    save_figure(figure, path)
    plt.close(figure)


def draw_episode(episode: Episode, title: str, path: Path) -> None:
    """Support and query images, with predictions before and after adaptation."""
    after = f"after {episode.steps} step{'s' if episode.steps > 1 else ''}"
    rows: list[tuple[str, Array, Array, Array]] = [
        ("support", episode.x_support, episode.support, episode.support),
        ("before", episode.x_query, episode.predicted[0], episode.query),
        (after, episode.x_query, episode.predicted[1], episode.query),
    ]
    columns = min(MOST_IMAGES, len(episode.support))
    figure, axes = plt.subplots(
        3,
        columns,
        figsize=(0.9 * columns + 1.2, 3.9),
        squeeze=False,
        layout="constrained",
    )
    for line, (label, images, predicted, true) in zip(axes, rows, strict=True):
        order = np.argsort(true, kind="stable")[:columns]
        for axis, i in zip(line, order, strict=True):
            axis.imshow(images[i].squeeze(), cmap="gray_r", vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
            wrong = predicted[i] != true[i]
            colour = "#CC3311" if wrong else "#009E73"
            axis.set_title(
                f"{predicted[i]}",
                color="black" if label == "support" else colour,
                fontsize=11,
            )
            for spine in axis.spines.values():
                spine.set_color("0.7" if label == "support" else colour)
        line[0].set_ylabel(label, fontsize=11)
    figure.suptitle(f"{title}\nclasses given, and predicted", fontsize=11)
    save_figure(figure, path)
    plt.close(figure)
