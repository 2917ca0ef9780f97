"""What the page four-starts gets from tinymaml: three starts, and tapes to move them.

The reader places up to ten points. A tape has fixed shapes, so it always takes ten,
each with a weight: 1 for a point, 0 for a place that is empty.
"""

from typing import Any

import numpy as np

import tinymaml as tm
from tinymaml import maml
from tinymaml.tasks import sinusoid

PLACES = 10  # for the reader's points; also K of meta-training
GRID = 81  # numbers x between -5 and 5 at which curves are drawn
TASKS = 25  # waves in an iteration of meta-training
SHIPPED = {
    "pretrained": "sinusoid-pretrained",
    "first": "sinusoid-first-order",
    "exact": "sinusoid-maml",
}
# What the reader sees first: a wave, and five points in one half of the range.
FIRST_WAVE, FIRST_X = {"amplitude": 4.0, "phase": 1.0}, [0.4, 1.5, 2.6, 3.7, 4.8]
NETWORK = tm.MLP([1, 40, 40, 1])
# README's numbers: they go well with He's initial weights in a few hundred iterations.
ALPHA, LEARNING_RATE = 0.003, 0.005


def loss(theta: tm.Value, x: tm.Value, y: tm.Value) -> tm.Value:
    """The loss of meta-training: mean squared error, on x (N, 1) and y (N, 1)."""
    return tm.squared_error(NETWORK(theta, x), y)


def step_tape() -> tm.Tape:
    """One inner step on the reader's points, and the error on them before it."""
    tape = tm.Tape()
    theta, alpha = tape.input("theta", (NETWORK.size,)), tape.input("alpha", ())
    x, y, weights = (tape.input(n, (PLACES, 1)) for n in ("x", "y", "weights"))

    def weighted(theta: tm.Value, x: tm.Value, y: tm.Value) -> tm.Value:
        error = NETWORK(theta, x) - y
        return (weights * error * error).sum() / weights.sum()

    thetas = maml.inner_loop(weighted, theta, (x, y), alpha, steps=1)
    tape.output("error", weighted(theta, x, y))
    tape.output("theta", thetas[1])
    return tape


def curve_tape() -> tm.Tape:
    """What the network predicts on the grid."""
    tape = tm.Tape()
    theta, x = tape.input("theta", (NETWORK.size,)), tape.input("x", (GRID, 1))
    tape.output("y", NETWORK(theta, x))
    return tape


def meta_tape(order: int) -> tm.Tape:
    """The meta-gradient of tasks of K = 10 points, after one inner step."""
    tape = tm.Tape()
    theta, alpha = tape.input("theta", (NETWORK.size,)), tape.input("alpha", ())
    shape = (PLACES, 1)
    names = "x_support", "y_support", "x_query", "y_query"
    xs, ys, xq, yq = (tape.input(name, shape, per_task=True) for name in names)
    thetas = maml.inner_loop(loss, theta, (xs, ys), alpha, steps=1)
    objective, cotangents = maml.meta_gradient(
        loss, thetas, (xs, ys), (xq, yq), alpha, order
    )
    tape.output("loss", objective, "sum")
    tape.output("gradient", cotangents[0], "sum")
    return tape


def starts() -> dict[str, Any]:
    """The shipped starts: theta, and the inner learning rate that goes with it."""
    shipped = {kind: tm.pretrained(name) for kind, name in SHIPPED.items()}
    return {
        kind: {"theta": start.theta, "alpha": start.recipe.alpha}
        for kind, start in shipped.items()
    }


def weights() -> list[list[int]]:
    """Where theta holds weights, and not biases: first, behind the last, inputs."""
    layout = NETWORK.layout.values()
    return [
        [span.start, span.stop, shape[0]] for span, shape in layout if len(shape) == 2
    ]


def error_of_the_mean() -> float:
    """The mean squared distance of all waves from their mean, -1.62 cos x.

    It is the least that a curve can have which knows nothing of the points: the mean
    of y^2 less the mean of the curve's own square.
    """
    least, most = sinusoid.AMPLITUDES
    squares = (most**3 - least**3) / (3 * (most - least))  # of the amplitude
    height = (least + most) / 2 * 2 / np.pi  # 1.62
    return float(squares / 2 - height**2 * (1 / 2 + np.sin(10) / 20))


def data() -> dict[str, Any]:
    """Tapes, starts, and the numbers of meta-training."""
    return {
        "places": PLACES,
        "tasks": TASKS,
        "size": NETWORK.size,
        "weights": weights(),
        "alpha": ALPHA,
        "rate": LEARNING_RATE,
        "grid": np.linspace(-5, 5, GRID),
        "meanError": error_of_the_mean(),
        "first": {"wave": FIRST_WAVE, "x": FIRST_X},
        "starts": starts(),
        "step": step_tape(),
        "curve": curve_tape(),
        "meta": {"exact": meta_tape(2), "first": meta_tape(1)},
    }
