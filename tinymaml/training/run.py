"""A training as it goes: all that its next iteration depends on, and its log.

With this file `train` keeps to its loop: a `TrainingRun` counts losses, remembers the
best parameters, writes itself into a checkpoint, is restored from one bit for bit, and
says what went wrong when a number is no longer finite.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from tinymaml.training.checkpoint import CheckpointError, CheckpointFile
from tinymaml.training.console import LogRow, ProgressBar
from tinymaml.training.optim import Optimiser

FilePath = str | os.PathLike[str]


class GradientResult(Protocol):
    """What the gradient function returns: a loss and its gradient."""

    @property
    def loss(self) -> float: ...

    @property
    def gradient(self) -> np.ndarray: ...


class NonFiniteLossError(FloatingPointError):
    """Training met NaN or infinity.

    Attributes:
        iteration: the iteration that failed, counted from 1.
        theta: the parameters as they stand, shape (P,); that iteration did not change
            them if its loss or gradient was at fault.
    """

    def __init__(self, message: str, iteration: int, theta: np.ndarray) -> None:
        super().__init__(message)
        self.iteration = iteration
        self.theta = theta


@dataclass
class TrainingRun:
    """All that a checkpoint holds: what the next iteration depends on, and the log."""

    theta: np.ndarray
    optimiser: Optimiser
    rng: np.random.Generator
    config: dict[str, Any]
    columns: tuple[str, ...] = ()
    iteration: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    sums: list[float] = field(default_factory=list)  # of the columns, as loss_sum
    seconds: float = 0.0
    rows: list[LogRow] = field(default_factory=list)
    saved: tuple[str, int] | None = None  # last good checkpoint: file and iteration
    scores: list[tuple[int, float]] = field(default_factory=list)
    best: np.ndarray | None = None  # theta at the first highest score

    def add(self, loss: float, result: GradientResult | None = None) -> None:
        """Count a loss, and what else the log shows of a result, towards the row."""
        self.loss_sum += loss
        self.loss_count += 1
        if result is None:
            return
        more = [float(getattr(result, name)) for name in self.columns]
        old = self.sums or [0.0] * len(more)
        self.sums = [a + b for a, b in zip(old, more, strict=True)]

    def fetch(self, resident: Any, bar: ProgressBar) -> None:
        """Bring theta, optimiser and losses up to date with steps taken elsewhere."""
        losses = resident.fetch(self.theta, self.optimiser)
        first = self.iteration - len(losses) + 1
        for iteration, loss in enumerate(losses, start=first):
            if not math.isfinite(loss):
                raise self._error(iteration, "the loss or its gradient is not finite")
            self.add(loss)
        if losses:
            bar.step(self.iteration, losses[-1])

    def close_row(self) -> LogRow:
        """Turn the losses since the last row into a new one."""
        loss = self.loss_sum / self.loss_count
        more = tuple(total / self.loss_count for total in self.sums)
        self.rows.append(LogRow(self.iteration, loss, self.seconds, more))
        self.loss_sum, self.loss_count, self.sums = 0.0, 0, []
        return self.rows[-1]

    def judge(self, score: float) -> None:
        """Note the score of theta as it stands, and keep theta if none was better."""
        highest = max((s for _, s in self.scores if s == s), default=-math.inf)
        if self.best is None or score > highest:  # NaN is never highest
            self.best = self.theta.copy()
        self.scores.append((self.iteration, score))

    def save(self, out: FilePath | None) -> None:
        """Check that all numbers are finite; write them to `out`, if there is one."""
        arrays = {"theta": self.theta}
        for name, array in self.optimiser.state().items():
            arrays[f"optimiser/{name}"] = array
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise self._error(self.iteration, f"{name} is no longer finite")
        if out is None or self.saved == (os.path.realpath(out), self.iteration):
            return
        rows = [(*row[:3], *row.more) for row in self.rows]
        width = 3 + len(self.columns)
        arrays["log"] = np.array(rows, np.float64).reshape(-1, width)
        if self.best is not None:
            arrays["best"] = self.best
            arrays["scores"] = np.array(self.scores, np.float64)
        state = {
            "iteration": self.iteration,
            "loss_sum": self.loss_sum,
            "loss_count": self.loss_count,
            "sums": self.sums,
            "seconds": self.seconds,
            "rng": _rng_state(self.rng),
            "optimiser": self.optimiser.config(),
        }
        _checkpoint_file(out).save(arrays, self.config, state)
        self.saved = (os.path.realpath(out), self.iteration)

    def restore(self, path: FilePath) -> dict[str, Any]:
        """Continue from a checkpoint; return the state that the rng must be set to."""
        checkpoint = _checkpoint_file(path).load()
        arrays, state = checkpoint.arrays, checkpoint.state
        try:
            theta, log = arrays.pop("theta"), arrays.pop("log")
            self.iteration, self.seconds = state["iteration"], state["seconds"]
            self.loss_sum, self.loss_count = state["loss_sum"], state["loss_count"]
            self.sums = state.get("sums", [])  # none in a file of an older version
            optimiser, rng_state = state["optimiser"], state["rng"]
        except KeyError as error:
            raise CheckpointError(
                f"resume: expected a training run, but {path} has no {error}"
            ) from None
        here = _identity(
            self.theta, self.optimiser.config(), _rng_state(self.rng), self.config
        )
        saved = _identity(theta, optimiser, rng_state, checkpoint.config)
        here["width of the log"], saved["width of the log"] = (
            3 + len(self.columns),
            log.shape[-1],
        )
        for key in {**here, **saved}:
            ours, theirs = here.get(key, "nothing"), saved.get(key, "nothing")
            if ours != theirs:
                raise CheckpointError(
                    f"resume: expected a checkpoint with {key} = {ours!r}, "
                    f"but {path} was written with {theirs!r}"
                )
        self.theta = theta
        self.best = arrays.pop("best", None)
        scores = arrays.pop("scores", np.empty((0, 2)))
        self.scores = [(int(iteration), score) for iteration, score in scores.tolist()]
        self.optimiser.load_state(
            {name.removeprefix("optimiser/"): array for name, array in arrays.items()}
        )
        self.rows = [
            LogRow(int(iteration), loss, seconds, tuple(more))
            for iteration, loss, seconds, *more in log.tolist()
        ]
        self.saved = (os.path.realpath(path), self.iteration)
        return dict(rng_state)

    def non_finite(self, loss: float, gradient: np.ndarray) -> NonFiniteLossError:
        """Describe a loss or gradient that is not finite."""
        what = f"the loss is {loss}"
        if math.isfinite(loss):
            bad = np.flatnonzero(~np.isfinite(gradient))
            what = (
                f"{bad.size} of {gradient.size} entries of the gradient are not finite "
                f"(the first, at {bad[0]}, is {gradient[bad[0]]})"
            )
        return self._error(self.iteration + 1, what)

    def _error(self, iteration: int, what: str) -> NonFiniteLossError:
        kept = "no checkpoint has been written"
        if self.saved is not None:
            path, saved_iteration = self.saved
            kept = f"the last good checkpoint is {path} of iteration {saved_iteration}"
        message = (
            f"iteration {iteration}: {what}; try a smaller inner step size alpha or a "
            f"smaller learning rate; {kept}"
        )
        return NonFiniteLossError(message, iteration, self.theta)


def _checkpoint_file(path: FilePath) -> CheckpointFile:
    return path if isinstance(path, CheckpointFile) else CheckpointFile(path)


def _identity(
    theta: np.ndarray,
    optimiser: Mapping[str, Any],
    rng_state: Mapping[str, Any],
    config: Mapping[str, Any],
) -> dict[str, Any]:
    """Return all in which a checkpoint must agree with the run that resumes it."""
    identity = {
        "parameters": f"{theta.dtype} of shape {theta.shape}",
        "random generator": rng_state["bit_generator"],
    }
    identity |= {f"optimiser {key}": value for key, value in optimiser.items()}
    identity |= {f"config {key}": value for key, value in config.items()}
    identity.pop("config iterations", None)
    return identity


def _rng_state(rng: np.random.Generator) -> dict[str, Any]:
    """Return the state of the bit generator in JSON types (some kinds hold arrays)."""
    text = json.dumps(rng.bit_generator.state, default=lambda array: array.tolist())
    state: dict[str, Any] = json.loads(text)
    return state
