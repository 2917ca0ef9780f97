"""What the tests of the training loop share: a tiny problem, looks into files."""

import csv
import signal
from types import SimpleNamespace

import numpy as np

from tinymaml.training.checkpoint import load_checkpoint
from tinymaml.training.optim import Adam
from tinymaml.training.train import train

START = np.array([1.0, -2.0, 3.0], np.float32)


def parabola(theta, target):
    """Return loss and gradient of the squared distance to a target."""
    error = theta - target
    return SimpleNamespace(loss=float(error @ error), gradient=2 * error)


def with_size(theta, target):
    """The parabola's result, with a further number."""
    result = parabola(theta, target)
    result.size = float(np.abs(target).sum())
    return result


def with_fault(number, loss=None, entry=None):
    """Return the parabola with a bad loss or gradient entry in one call."""
    calls = iter(range(1, 10**6))

    def gradient(theta, target):
        result = parabola(theta, target)
        if next(calls) == number:
            if loss is not None:
                result.loss = loss
            if entry is not None:
                result.gradient[1] = entry
        return result

    return gradient


def closeness(theta):
    """A score, highest where theta is [1, 1, 1]."""
    return -float(((theta - 1) ** 2).sum())


def noise(rng):
    return rng.normal(size=3).astype(np.float32)


def run(iterations=10, *, gradient=parabola, theta=START, sample=noise, **options):
    """Call train quietly, with a fresh optimiser and generator unless given."""
    defaults = {
        "optimiser": Adam(learning_rate=0.1),
        "rng": np.random.default_rng(0),
        "progress": False,
    }
    return train(
        gradient, theta, sample, iterations=iterations, **{**defaults, **options}
    )


def at_call(number, action, function=noise):
    """Return `function`, with `action` called first in its call of that number."""
    calls = iter(range(1, 10**6))

    def wrapped(*arguments):
        if next(calls) == number:
            action()
        return function(*arguments)

    return wrapped


def press_ctrl_c():
    signal.raise_signal(signal.SIGINT)


def untimed(rows):
    return [(row.iteration, row.loss) for row in rows]


def read_rows(path):
    """The rows of a CSV file with a header, each as a dict of texts."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def untimed_csv(path):
    return [row[:2] for row in read_csv(path)]


def contents(path):
    """Return all of a checkpoint that must be reproducible: no times."""
    arrays, state = load_checkpoint(path).arrays, load_checkpoint(path).state
    arrays["log"] = arrays["log"][:, :2]
    del state["seconds"]
    exact = {name: (a.dtype, a.shape, a.tobytes()) for name, a in arrays.items()}
    return exact, state


def never(*_):
    """Stand in for a function that must not be called."""
    raise AssertionError("training started")


def files_below(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
