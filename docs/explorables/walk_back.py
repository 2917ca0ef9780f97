"""What the page walk-back gets from tinymaml: tapes of a loss, and losses to try.

All losses of the page are one function of two parameters with different numbers in it,
as one loss with different examples is another task. x is the matrix A; in y stand the
vectors b and q and the number k:

    loss(theta) = theta A theta / 2 + q theta^4 / 4 - b theta + k

The support loss S and the query loss Q both have this form, so three kinds of tapes do:
the loss with its gradient, its Hessian-vector product, and, to compare with, the whole
meta-gradient as `maml.py` records it.
"""

from pathlib import Path
from typing import Any

import numpy as np
from tags import fenced_parts

import tinymaml as tm
from tinymaml import maml
from tinymaml.autodiff.tape import Value

MOST_STEPS = 5
ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "tinymaml" / "maml.py"
TAG = "maml-eq1"
# The lines that light up at the end of the inner loop, and with each step back.
AT_THE_END = ("objective = ", "v = grad(", "cotangents = [v]")
EACH_STEP = ("for theta_j in ", "v = v - hvp(", "cotangents.append(v)")


def loss(theta: Value, x: Value, y: Value) -> Value:
    """The loss () of theta (2,), with the numbers x (2, 2) and y (5,) of the module."""
    b, q, k = y[0:2], y[2:4], y[4:5]
    quadratic = (theta.reshape(1, 2) @ x @ theta.reshape(2, 1)).sum() * 0.5
    square = theta * theta
    quartic = (q * square * square).sum() * 0.25
    return quadratic + quartic - (b * theta).sum() + k.sum()


def numbers(
    a: list[list[float]], b: list[float], q: list[float], k: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """x (2, 2) and y (5,) of a loss."""
    return np.array(a, "float64"), np.array([*b, *q, k], "float64")


def distance_to(c: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of half of the squared distance to c (2,)."""
    return numbers([[1, 0], [0, 1]], c, [0, 0], (c[0] ** 2 + c[1] ** 2) / 2)


def loss_tape() -> tm.Tape:
    """The loss and its gradient at one point for each task."""
    tape = tm.Tape()
    theta = tape.input("theta", (2,), per_task=True)
    value = loss(theta, tape.input("x", (2, 2)), tape.input("y", (5,)))
    tape.output("loss", value)
    tape.output("gradient", tm.grad(value, theta))
    return tape


def product_tape() -> tm.Tape:
    """The Hessian of the loss at theta times a vector v."""
    tape = tm.Tape()
    theta = tape.input("theta", (2,), per_task=True)
    v = tape.input("v", (2,), per_task=True)
    value = loss(theta, tape.input("x", (2, 2)), tape.input("y", (5,)))
    tape.output("product", tm.hvp(value, theta, v))
    return tape


def meta_tape(steps: int) -> tm.Tape:
    """The meta-gradient of so many inner steps, exact and of first order."""
    tape = tm.Tape()
    theta, alpha = tape.input("theta", (2,)), tape.input("alpha", ())
    support = tape.input("x_support", (2, 2)), tape.input("y_support", (5,))
    query = tape.input("x_query", (2, 2)), tape.input("y_query", (5,))
    thetas = maml.inner_loop(loss, theta, support, alpha, steps)
    for name, order in (("exact", 2), ("first_order", 1)):
        _, cotangents = maml.meta_gradient(loss, thetas, support, query, alpha, order)
        tape.output(name, cotangents[0])
    return tape


def tasks() -> dict[str, dict[str, Any]]:
    """The losses to try, each with a start, a learning rate and a number of steps.

    The first three are those of docs/derivations/maml-recursion.md; the quartic has got
    a second parameter, of which the first knows nothing. The saddle is flat at (0, 0),
    where the surface falls to either side into a valley.
    """
    quarter = [-1.0, 0.25]
    window = {"across": [-1.5, 4.5], "up": [-2.75, 1.5]}
    return {
        "quadratic": {
            "title": "Quadratic",
            "support": numbers([[2, 1], [1, 1]], [1, 0], [0, 0]),
            "query": distance_to(quarter),
            "formulas": ["S = u² + uw + w²/2 − u", "Q = ((u + 1)² + (w − 0.25)²)/2"],
            "theta": [2.0, 0.0],
            "alpha": 0.5,
            "steps": 2,
            **window,
        },
        "parallel": {
            "title": "Parallel",
            "support": numbers([[2, 1], [1, 2]], [1, 0], [0, 0]),
            "query": distance_to(quarter),
            "formulas": ["S = u² + uw + w² − u", "Q = ((u + 1)² + (w − 0.25)²)/2"],
            "theta": [2.0, 0.0],
            "alpha": 0.5,
            "steps": 2,
            **window,
        },
        "quartic": {
            "title": "Quartic",
            "support": numbers([[0, 0], [0, 1]], [0, 0], [1, 0]),
            "query": numbers([[0, 0], [0, 0]], [-1, -0.5], [0, 0]),
            "formulas": ["S = u⁴/4 + w²/2", "Q = u + w/2"],
            "theta": [2.0, 1.0],
            "alpha": 0.125,
            "steps": 2,
            "across": [-1.5, 4.5],
            "up": [-1.75, 2.5],
        },
        "saddle": {
            "title": "Saddle",
            "support": numbers([[1, 0], [0, -1]], [0, 0], [0, 1]),
            "query": distance_to([0.5, 1.0]),
            "formulas": ["S = u²/2 − w²/2 + w⁴/4", "Q = ((u − 0.5)² + (w − 1)²)/2"],
            "theta": [1.5, -0.1],
            "alpha": 0.5,
            "steps": 4,
            "across": [-2.75, 3.25],
            "up": [-2.0, 2.25],
        },
    }


def code() -> dict[str, Any]:
    """The quoted lines of maml.py, where they stand, and which of them light up."""
    (part,) = (part for part in fenced_parts(SOURCE) if part.tag == TAG)
    lines = [t for t in part.text.splitlines() if not t.strip().startswith("#")]

    def find(start: str) -> int:
        (index,) = (i for i, t in enumerate(lines) if t.strip().startswith(start))
        return index

    return {
        "place": f"tinymaml/maml.py, lines {part.first}–{part.last}, without comments",
        "lines": lines,
        "at_the_end": [find(start) for start in AT_THE_END],
        "each_step": [find(start) for start in EACH_STEP],
    }


def data() -> dict[str, Any]:
    """Tapes, losses and lines of code of the page."""
    return {
        "tapes": {
            "loss": loss_tape(),
            "product": product_tape(),
            "meta": {steps: meta_tape(steps) for steps in range(1, MOST_STEPS + 1)},
        },
        "tasks": tasks(),
        "code": code(),
    }
