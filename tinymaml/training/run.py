"""The state of a training run: all that its next iteration depends on, and its log.

With this file `train` can be a short loop: a `TrainingRun` sums up losses, keeps the
parameters with the best score, writes itself into a checkpoint, is restored from one
bit for bit, and explains a step that failed.
"""

import json
import math
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinymaml.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
)
from tinymaml.training.console import LogRow, ProgressBar
from tinymaml.training.optim import Optimiser
from tinymaml.training.steps import Steps

FilePath = str | os.PathLike[str]


class NonFiniteLossError(FloatingPointError):
    """Loss, gradient or parameters became NaN or infinite.

    Attributes:
        iteration: the iteration that failed, counted from 1.
        theta: the parameters as they are now, shape (P,). An iteration with a bad loss
            or gradient has not changed them.
    """

    def __init__(self, message: str, iteration: int, theta: np.ndarray) -> None:
        super().__init__(message)
        self.iteration = iteration
        self.theta = theta


@dataclass
class TrainingRun:
    """All that a checkpoint holds: what the next iteration depends on, and the log."""

    theta: np.ndarray  # (P,)
    optimiser: Optimiser
    rng: np.random.Generator
    config: dict[str, Any]
    columns: tuple[str, ...] = ()
    iteration: int = 0
    # Sums over the iterations since the last row of the log.
    loss_sum: float = 0.0
    loss_count: int = 0
    column_sums: list[float] = field(default_factory=list)
    seconds: float = 0.0
    rows: list[LogRow] = field(default_factory=list)
    saved: tuple[str, int] | None = None  # last good checkpoint: file and iteration
    scores: list[tuple[int, float]] = field(default_factory=list)
    best: np.ndarray | None = None  # theta at the first highest score

    def fetch(self, steps: Steps, bar: ProgressBar) -> None:
        """Add the results of all steps up to `iteration` to the sums, and show them.

        Raises NonFiniteLossError for the first step that failed.
        """
        results = steps.fetch()
        iteration = self.iteration - len(results)
        for loss, columns, failure in results:
            iteration += 1
            if failure:
                raise self._error(iteration, failure)
            self.loss_sum += loss
            self.loss_count += 1
            if columns:
                sums = self.column_sums or [0.0] * len(columns)
                self.column_sums = [a + b for a, b in zip(sums, columns, strict=True)]
            bar.step(iteration, loss)

    def close_row(self) -> LogRow:
        """Make a row of the log from the steps since the last one."""
        loss = self.loss_sum / self.loss_count
        more = tuple(total / self.loss_count for total in self.column_sums)
        self.rows.append(LogRow(self.iteration, loss, self.seconds, more))
        self.loss_sum, self.loss_count, self.column_sums = 0.0, 0, []
        return self.rows[-1]

    def note_score(self, score: float) -> None:
        """Record the score of theta, and keep a copy of theta if no score was higher.

        NaN is never the highest score.
        """
        highest = max((s for _, s in self.scores if s == s), default=-math.inf)
        if self.best is None or score > highest:
            self.best = self.theta.copy()
        self.scores.append((self.iteration, score))

    def save(self, out: FilePath | None) -> None:
        """Check that all numbers are finite; write them to `out` unless it is None."""
        for name, array in {"theta": self.theta, **self.optimiser.state()}.items():
            if not np.isfinite(array).all():
                raise self._error(self.iteration, f"{name} is no longer finite")
        if out is None or self.saved == (os.path.realpath(out), self.iteration):
            return
        save_checkpoint(out, **vars(self._checkpoint()))
        self.saved = (os.path.realpath(out), self.iteration)

    def _checkpoint(self) -> Checkpoint:
        """What `save` writes."""
        rows = [(*row[:3], *row.more) for row in self.rows]
        log = np.array(rows, np.float64).reshape(-1, 3 + len(self.columns))
        arrays = {"theta": self.theta, "log": log}
        for name, array in self.optimiser.state().items():
            arrays[f"optimiser/{name}"] = array
        if self.best is not None:
            arrays["best"] = self.best
            arrays["scores"] = np.array(self.scores, np.float64)
        state = {
            "iteration": self.iteration,
            "loss_sum": self.loss_sum,
            "loss_count": self.loss_count,
            "sums": self.column_sums,
            "seconds": self.seconds,
            "rng": _rng_state(self.rng),
            "optimiser": self.optimiser.config(),
        }
        return Checkpoint(arrays, self.config, state)

    def restore(self, path: FilePath) -> dict[str, Any]:
        """Continue from a checkpoint; return the state of its random generator.

        The caller sets `rng` to it once nothing can be refused any more.
        """
        checkpoint, here = load_checkpoint(path), _identity(self._checkpoint())
        arrays, state = checkpoint.arrays, checkpoint.state
        try:
            saved = _identity(checkpoint)
            self.iteration, self.seconds = state["iteration"], state["seconds"]
            self.loss_sum, self.loss_count = state["loss_sum"], state["loss_count"]
        except KeyError as error:
            raise CheckpointError(
                f"resume: expected a training run, but {path} has no {error}"
            ) from None
        for key in {**here, **saved}:
            check_setting(
                key, here.get(key, "nothing"), saved.get(key, "nothing"), path
            )
        self.column_sums = state.get("sums", [])  # older versions had no columns
        self.theta = arrays.pop("theta")
        self.best = arrays.pop("best", None)
        scores = arrays.pop("scores", np.empty((0, 2)))
        self.scores = [(int(iteration), score) for iteration, score in scores.tolist()]
        self.rows = [
            LogRow(int(iteration), loss, seconds, tuple(more))
            for iteration, loss, seconds, *more in arrays.pop("log").tolist()
        ]
        self.optimiser.load_state(
            {name.removeprefix("optimiser/"): array for name, array in arrays.items()}
        )
        self.saved = (os.path.realpath(path), self.iteration)
        return dict(state["rng"])

    def _error(self, iteration: int, what: str) -> NonFiniteLossError:
        rescue = "no checkpoint has been written"
        if self.saved is not None:
            path, saved_at = self.saved
            rescue = f"the last good checkpoint is {path} of iteration {saved_at}"
        message = (
            f"iteration {iteration}: {what}; try a smaller inner step size alpha or a "
            f"smaller learning rate; {rescue}"
        )
        return NonFiniteLossError(message, iteration, self.theta)


def check_setting(key: str, ours: Any, theirs: Any, path: FilePath) -> None:
    """Raise CheckpointError if a checkpoint differs in a setting from this run."""
    if ours != theirs:
        raise CheckpointError(
            f"resume: expected a checkpoint with {key} = {ours!r}, but "
            f"{os.fspath(path)} was written with {theirs!r}"
        )


def _identity(checkpoint: Checkpoint) -> dict[str, Any]:
    """Everything in which a checkpoint must agree with the run that resumes it."""
    theta, state = checkpoint.arrays["theta"], checkpoint.state
    identity = {
        "parameters": f"{theta.dtype} of shape {theta.shape}",
        "random generator": state["rng"]["bit_generator"],
        "width of the log": checkpoint.arrays["log"].shape[-1],
    }
    identity |= {f"optimiser {key}": value for key, value in state["optimiser"].items()}
    identity |= {f"config {key}": value for key, value in checkpoint.config.items()}
    identity.pop("config iterations", None)
    return identity


def _rng_state(rng: np.random.Generator) -> dict[str, Any]:
    """The state of the bit generator in JSON types (some generators hold arrays)."""
    text = json.dumps(rng.bit_generator.state, default=lambda array: array.tolist())
    return dict(json.loads(text))
