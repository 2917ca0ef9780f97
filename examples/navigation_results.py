"""The methods of `examples/navigation.py`, the authors' numbers, and its table.

Left out: where the numbers come from.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from shared import mean_and_interval, text_table
from tinymaml.rl.maml_trpo import Adaptation

Row = dict[str, Any]  # of results.json
SHOTS = 40  # K of the paper: trajectories for each gradient step, if none ends early


class Method(NamedTuple):
    """One of the methods compared."""

    name: str  # the method's name in results.json, together with the order
    order: int | None
    label: str  # in the table and the figure
    paper: tuple[float, ...]  # returns after 0, 1, 2 ... gradient steps
    colour: str
    marker: str


# The returns are in the authors' files behind figure 4, and those of the context vector
# in table 4 of the paper. Keys are names of trainings.
MAML = (-40.41, -11.68, -3.33, -3.23, -3.35)
CONTEXT = (-42.42, -13.90, -5.17, -3.18)
PRETRAINED = (-40.81, -19.73, -11.72, -8.47, -7.49)
RANDOM = (-82.66, -57.96, -53.84, -46.81)
METHODS = {
    "exact": Method("maml", 2, "MAML", MAML, "#0072B2", "o"),
    "first-order": Method("maml", 1, "MAML, first order", (), "#E69F00", "s"),
    "context": Method("context", 2, "context vector", CONTEXT, "#CC79A7", "D"),
    "pretrained": Method("pretrained", None, "pretrained", PRETRAINED, "#CC3311", "^"),
    "random": Method("random", None, "random", RANDOM, "0.5", "v"),
    "oracle": Method("oracle", None, "oracle", (-2.29,), "#009E73", "d"),
}


def rows_of(name: str, adaptation: Adaptation, reward: str) -> list[Row]:
    """The rows of `results.json`: mean and interval for each number of steps.

    "shots" is 40 in all rows, the number if no trajectory ends early. "trajectories" is
    the mean number that was used: if some end early, more are sampled.
    """
    method = METHODS[name]
    rows = []
    for steps, returns in enumerate(adaptation.returns().T):
        counts = adaptation.trajectories[steps].mask.any(axis=2).sum(axis=1)
        mean, interval = mean_and_interval(returns)
        known = reward == "distance" and steps < len(method.paper)
        rows.append(
            {
                "method": method.name,
                "order": method.order,
                "shots": SHOTS,
                "trajectories": float(counts.mean()),
                "steps": steps,
                "return": mean,
                "ci95": interval,
                "paper": method.paper[steps] if known else None,
            }
        )
    return rows


def table(rows: Mapping[str, Sequence[Row]]) -> str:
    """Returns after 0 to 3 steps, each followed by the authors' number."""
    lines = []
    for name, points in rows.items():
        line = [METHODS[name].label]
        for steps in range(4):
            if steps < len(points):
                row = points[steps]
                paper = "" if row["paper"] is None else f" ({row['paper']:.2f})"
                line.append(f"{row['return']:.2f} ± {row['ci95']:.2f}{paper}")
            else:
                line.append("")
        lines.append(line)
    header = ["return after", "0 steps", "1 step", "2 steps", "3 steps"]
    return text_table(header, lines)
