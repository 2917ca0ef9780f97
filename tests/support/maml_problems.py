"""Small meta-learning problems, and the meta-gradient by routes that share little code.

The routes are: the recursion of Hessian-vector products, which `MAML` records; reverse
over reverse, which is backpropagation through the inner loop unrolled on one tape; the
recursion written in NumPy with dense Hessians; and finite differences of the
meta-objective. The objective and the gradient are sums over tasks.
"""

from typing import Any, NamedTuple

import numpy as np

import tinymaml as tm
from tests.support.running import assert_close, difference, run_tape
from tinymaml.autodiff.derivatives import grad
from tinymaml.maml import inner_loop

LOSSES = ("squared_error", "cross_entropy")
ACTIVATIONS = ("relu", "tanh")


class Problem(NamedTuple):
    """A loss of a small network, a point theta, and tasks, in float64."""

    loss: Any
    theta: np.ndarray
    tasks: tm.Tasks

    def maml(self, backend="numpy", alpha=0.3, **options):
        options = {"reduction": "sum", "threads": 1, **options}
        return tm.MAML(self.loss, alpha=alpha, backend=backend, **options)

    def objective(self, theta, alpha, steps):
        """The meta-objective after 0 .. steps inner steps: the sums of query losses."""
        maml = self.maml(alpha=alpha, steps=steps)
        return maml.evaluate(theta, self.tasks).sum(axis=0)

    def cast(self, dtype):
        tasks = tm.Tasks(*(array.astype(dtype) for array in self.tasks))
        return Problem(self.loss, self.theta.astype(dtype), tasks)


def problem(loss="squared_error", activation="tanh", seed=0, tasks=3, sizes=(2, 5, 3)):
    network = tm.MLP(list(sizes), activation)
    rng = np.random.default_rng(seed)

    def examples(n):
        x = rng.standard_normal((tasks, n, sizes[0]))
        if loss == "cross_entropy":
            return x, np.eye(sizes[-1])[rng.integers(0, sizes[-1], (tasks, n))]
        return x, rng.standard_normal((tasks, n, sizes[-1]))

    def record_loss(theta, x, y):
        return getattr(tm, loss)(network(theta, x), y)

    # The noise also moves the biases away from 0, so that no relu is at its kink.
    theta = network.init(rng, "float64") + 0.3 * rng.standard_normal(network.size)
    return Problem(record_loss, theta, tm.Tasks(*examples(4), *examples(5)))


def alpha_vector(theta, seed=0):
    """An inner learning rate for each parameter; every third one is zero."""
    alpha = np.random.default_rng(seed).uniform(0.1, 0.4, theta.size)
    alpha[::3] = 0.0
    return alpha


# --- routes ---------------------------------------------------------------------------


def by_recursion(p, steps, alpha=0.3, backend="numpy", **options):
    maml = p.maml(backend, alpha, steps=steps, **options)
    return maml.meta_gradient(p.theta, p.tasks).gradient


def by_reverse_over_reverse(p, steps, alpha=0.3, backend="numpy"):
    """Backpropagation through the whole unrolled inner loop, on one tape."""
    tape = tm.Tape()
    theta = tape.input("theta", p.theta.shape)
    alpha_value = tape.input("alpha", np.shape(alpha))
    data = [
        tape.input(name, array.shape[1:], per_task=True)
        for name, array in p.tasks._asdict().items()
    ]
    thetas = inner_loop(p.loss, theta, data[:2], alpha_value, steps)
    tape.output("gradient", grad(p.loss(thetas[-1], *data[2:]), theta), "sum")
    inputs = {"theta": p.theta, "alpha": alpha, **p.tasks._asdict()}
    return run_tape(tape, inputs, backend)["gradient"]


def derivatives(p, theta, x, y):
    """Gradient and dense Hessian of the loss for one task; a "task" is a row of it."""
    tape = tm.Tape()
    point, row = tape.input("theta", theta.shape), tape.input("row", theta.shape, True)
    data = [tape.input(name, a.shape) for name, a in (("x", x), ("y", y))]
    gradient = grad(p.loss(point, *data), point)
    tape.output("gradient", gradient)
    tape.output("hessian", grad((gradient * row).sum(), point))
    inputs = {"theta": theta, "row": np.eye(theta.size), "x": x, "y": y}
    results = run_tape(tape, inputs)
    return results["gradient"][0], results["hessian"]


def by_dense_hessians(p, steps, alpha=0.3):
    """(meta-gradient, query gradient, corrections): the recursion in plain NumPy."""
    exact, first_order, corrections = 0.0, 0.0, np.zeros((steps, p.theta.size))
    for x, y, x_query, y_query in zip(*p.tasks, strict=True):
        thetas, hessians = [p.theta], []
        for _ in range(steps):
            gradient, hessian = derivatives(p, thetas[-1], x, y)
            hessians.append(hessian)
            thetas.append(thetas[-1] - alpha * gradient)
        v, _ = derivatives(p, thetas[-1], x_query, y_query)
        first_order = first_order + v
        for j in reversed(range(steps)):
            correction = hessians[j] @ (alpha * v)
            corrections[j] += correction
            v = v - correction
        exact = exact + v
    return exact, first_order, corrections


def assert_is_gradient_of(gradient, function, point, tolerance=1e-8):
    """Compare a gradient with differences of the function, in three directions."""
    directions = np.random.default_rng(9).standard_normal((3, point.size))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    slopes = [difference(function, point, direction) for direction in directions]
    assert_close(directions @ gradient, slopes, tolerance, "gradient")


# --- variants -------------------------------------------------------------------------


def variant_of(kind, p, *args, **options):
    """A variant of MAML with the settings of `Problem.maml`."""
    defaults = {"reduction": "sum", "threads": 1, "backend": "numpy", "alpha": 0.3}
    return kind(p.loss, *args, **{**defaults, **options})


def adapt_in_numpy(p, step, steps, start=None):
    """theta_0 .. theta_J of all tasks (T, J + 1, P), by a step written in NumPy.

    step: from (j, theta_j, gradient, state) to (theta_{j+1}, state); the first state is
    None.
    """
    paths = []
    for x, y in zip(*p.tasks[:2], strict=True):
        thetas, state = [p.theta if start is None else start], None
        for j in range(steps):
            gradient, _ = derivatives(p, thetas[-1], x, y)
            theta, state = step(j, thetas[-1], gradient, state)
            thetas.append(theta)
        paths.append(thetas)
    return np.array(paths)


def assert_exact(variant, outer, tasks, weights=None):
    """A variant's meta-gradient is that of its own objective, and not first order."""
    weights = np.eye(variant.steps)[-1] if weights is None else np.array(weights)

    def objective(outer):
        return variant.evaluate(outer, tasks)[:, 1:].sum(axis=0) @ weights

    gradient = variant.meta_gradient(outer, tasks).gradient
    assert gradient.shape == outer.shape
    assert_is_gradient_of(gradient, objective, outer)
    variant.order = 1
    first_order = variant.meta_gradient(outer, tasks).gradient
    variant.order = 2
    missing = np.linalg.norm(gradient - first_order) / np.linalg.norm(gradient)
    assert missing > 0.02
    return gradient, first_order


def assert_float32_agrees(variant, outer, tasks, tolerance=1e-4):
    """The same result, and its losses, in float32."""
    exact = variant.meta_gradient(outer, tasks)
    tasks = tm.Tasks(*(array.astype("float32") for array in tasks))
    rounded = variant.meta_gradient(outer.astype("float32"), tasks)
    assert rounded.gradient.dtype == np.float32
    assert_close(rounded.gradient, exact.gradient, tolerance)
    assert_close(rounded.losses, exact.losses, tolerance)
