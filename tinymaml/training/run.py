"""The state of a training run: all that its next iteration depends on, and its log.

With this file `train` can be a short loop: a `TrainingRun` sums up losses, keeps the
parameters with the best score, writes itself into a checkpoint, is restored from one
bit for bit, and explains a step that failed.
"""

import copy
import json
import math
import os
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from tinymaml.checks import check_theta, real_number, shown, whole_number
from tinymaml.files import FilePath
from tinymaml.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
    to_json,
)
from tinymaml.training.console import LogRow, ProgressBar
from tinymaml.training.optim import Optimiser
from tinymaml.training.steps import Steps


class NonFiniteLossError(FloatingPointError):
    """Loss, gradient or parameters became NaN or infinite, or the gradient said so.

    Attributes:
        iteration: the iteration that failed, counted from 1.
        theta: the parameters as they are now, shape (P,). An iteration with a bad loss
            or gradient has not changed them.
    """

    def __init__(self, message: str, iteration: int, theta: np.ndarray) -> None:
        super().__init__(message)
        self.iteration, self.theta = iteration, theta


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
            bar.step(iteration, loss, columns)

    def close_row(self) -> LogRow:
        """Make a row of the log from the steps since the last one."""
        loss = self.loss_sum / self.loss_count
        more = tuple(total / self.loss_count for total in self.column_sums)
        self.rows.append(LogRow(self.iteration, loss, self.seconds, more))
        self.loss_sum, self.loss_count, self.column_sums = 0.0, 0, []
        return self.rows[-1]

    def note_score(self, score: Any) -> None:
        """Record the score of theta, and keep a copy of theta if no score was higher.

        NaN is never the highest score.
        """
        number = score.item() if getattr(score, "shape", None) == () else score
        score = real_number("validate", number)
        highest = max((s for _, s in self.scores if s == s), default=-math.inf)
        if self.best is None or score > highest:
            self.best = self.theta.copy()
        self.scores.append((self.iteration, score))

    def random_state(self) -> tuple[Any, Any]:
        """What `set_random_state` needs; takes about a microsecond."""
        return self.rng.bit_generator.state, _seeds(self.rng)

    def set_random_state(self, state: tuple[Any, Any]) -> None:
        """Let `rng` continue, in place, from where it was at `random_state`."""
        copy_state(_restored(self.rng, *state), self.rng)

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
            # JSON has no NaN, and a diagnostic that is one ends no training.
            "columns": list(self.columns),
            "sums": [x if math.isfinite(x) else str(x) for x in self.column_sums],
            "seconds": self.seconds,
            "rng": _rng_state(self.rng.bit_generator.state),
            "seeds": _rng_state(_seeds(self.rng)),
            # As it comes back from the file: with lists for tuples.
            "optimiser": json.loads(to_json("optimiser", self.optimiser.config())),
        }
        return Checkpoint(arrays, self.config, state)

    def restore(self, path: FilePath) -> None:
        """Continue from a checkpoint, with a random generator of its own.

        The caller's generator is left as it is until nothing can be refused any more.
        """
        checkpoint = load_checkpoint(path)
        try:
            self._adopt(checkpoint, path)
            self.saved = (os.path.realpath(path), self.iteration)
            return
        except CheckpointError:
            raise
        except KeyError as error:
            problem = f"has no {error}"
        # Values of other types raise whatever they meet first.
        except Exception as error:
            problem = f"holds something else: {' '.join(str(error).split())[:200]}"
        raise CheckpointError(f"resume: expected a training run, but {path} {problem}")

    def _adopt(self, checkpoint: Checkpoint, path: FilePath) -> None:
        """Take over all that a checkpoint holds. Any error says that it is no run's."""
        unstarted, arrays = self._checkpoint(), dict(checkpoint.arrays)
        # Older versions had no columns, then no names of them, and no seed sequence.
        older = {name: unstarted.state[name] for name in ("columns", "seeds")}
        state = {"sums": [], **older, **checkpoint.state}
        checkpoint = Checkpoint(checkpoint.arrays, checkpoint.config, state)
        here, file = _identity(unstarted), _identity(checkpoint)
        for key in here | file:
            check_setting(key, here.get(key, "nothing"), file.get(key, "nothing"), path)
        self.theta = check_theta(arrays.pop("theta"))
        self.iteration = whole_number("iteration", state["iteration"], least=0)
        self.loss_count = whole_number("loss_count", state["loss_count"], least=0)
        self.loss_sum, self.seconds = state["loss_sum"], state["seconds"]
        self.column_sums = [float(number) for number in state["sums"]]
        self.best = arrays.pop("best", None)
        scores = arrays.pop("scores", np.empty((0, 2)))
        self.scores = [(int(iteration), score) for iteration, score in scores.tolist()]
        self.rows = [
            LogRow(int(iteration), loss, seconds, tuple(more))
            for iteration, loss, seconds, *more in arrays.pop("log").tolist()
        ]
        moments = {name.removeprefix("optimiser/"): a for name, a in arrays.items()}
        self.optimiser.load_state(moments)
        self.rng = _restored(self.rng, state["rng"], state["seeds"])

        numbers = [self.loss_sum, self.seconds]
        numbers += [number for row in self.rows for number in row[1:3]]
        finite = all(math.isfinite(real_number("state", x)) for x in numbers)
        _require(finite and self.seconds >= 0, "a number is not finite, or negative")
        logged = [row.iteration for row in self.rows]
        for past in (logged, [iteration for iteration, _ in self.scores]):
            ascending = all(a < b for a, b in pairwise([0, *past, self.iteration + 1]))
            _require(ascending, "iterations do not follow each other")
        summed = self.iteration - max(logged, default=0)
        _require(self.loss_count == summed, "losses are missing")
        columns = len(self.columns) if self.loss_count else 0
        _require(len(self.column_sums) == columns, "columns are missing")
        alike = [self.best] if self.best is not None else []
        if isinstance(self.optimiser, Optimiser):
            alike += [m for m in moments.values() if m.size * m.ndim]
        for array in alike:
            check_theta(array, self.theta.size)
            _require(array.dtype == self.theta.dtype, "dtypes differ")
        # What would be written now is what was read: nothing is left or converted.
        again, read = self._checkpoint(), Checkpoint(checkpoint.arrays, {}, state)
        _require(_contents(again) == _contents(read), "not all of it is used")

    def _error(self, iteration: int, what: str) -> NonFiniteLossError:
        rescue = "no checkpoint has been written"
        if self.saved is not None:
            path, saved_at = self.saved
            rescue = f"the last good checkpoint is {path} of iteration {saved_at}"
        message = (
            f"iteration {iteration}: {what}; try a smaller inner learning rate alpha "
            f"or a smaller outer learning rate; {rescue}"
        )
        return NonFiniteLossError(message, iteration, self.theta)


def check_setting(key: str, ours: Any, theirs: Any, path: FilePath) -> None:
    """Raise CheckpointError if a checkpoint differs in a setting from this run."""
    if ours != theirs:
        raise CheckpointError(
            f"resume: expected a checkpoint with {key} = {shown(ours)}, but "
            f"{os.fspath(path)} was written with {shown(theirs)}"
        )


def _identity(checkpoint: Checkpoint) -> dict[str, Any]:
    """Everything in which a checkpoint must agree with the run that resumes it."""
    theta, state = checkpoint.arrays["theta"], checkpoint.state
    identity = {
        "parameters": f"{theta.dtype} of shape {theta.shape}",
        "random generator": state["rng"]["bit_generator"],
        "width of the log": checkpoint.arrays["log"].shape[-1],
        "columns of the log": state["columns"],
    }
    identity |= {f"optimiser {key}": value for key, value in state["optimiser"].items()}
    identity |= {f"config {key}": value for key, value in checkpoint.config.items()}
    identity.pop("config iterations", None)
    return identity


def _rng_state(state: Any) -> Any:
    """The state of a bit generator or a seed sequence, in JSON types."""
    return json.loads(json.dumps(state, default=lambda array: array.tolist()))


def _seeds(rng: np.random.Generator) -> dict[str, Any]:
    """The state of which `rng.spawn` makes its next child; {} if it cannot."""
    state = getattr(rng.bit_generator.seed_seq, "state", {})
    return {key: value for key, value in state.items() if key != "pool_size"}


def _restored(
    rng: np.random.Generator, state: dict[str, Any], seeds: dict[str, Any]
) -> np.random.Generator:
    """A copy of `rng` in another state."""
    rng = copy.deepcopy(rng)
    bit_generator: Any = rng.bit_generator
    # With an index beyond their buffers, generators read foreign memory.
    places = (state["state"].get("pos", 0), 624), (state.get("buffer_pos", 0), 4)
    for index, size in places:
        _require(0 <= index <= size, "an index of the random generator is too large")
    seed_sequence = bit_generator.seed_seq
    if seeds:
        seed_sequence = np.random.SeedSequence(
            seeds["entropy"],
            spawn_key=tuple(seeds["spawn_key"]),
            pool_size=seed_sequence.pool_size,
            n_children_spawned=seeds["n_children_spawned"],
        )
    bit_generator.__setstate__((state, seed_sequence))  # as a pickle would
    return rng


def copy_state(source: np.random.Generator, target: np.random.Generator) -> None:
    """Let `target` continue from where `source` is, children of its seed included."""
    bit_generators: Any = source.bit_generator, target.bit_generator
    # As a pickle would: the state, and what the next child is spawned from.
    bit_generators[1].__setstate__(bit_generators[0].__getstate__())


def _contents(checkpoint: Checkpoint) -> Any:
    """All that two checkpoints of one configuration can differ in, ready to compare."""
    arrays = checkpoint.arrays.items()
    encoded = {name: (a.dtype, a.shape, a.tobytes()) for name, a in arrays}
    return encoded, json.dumps(checkpoint.state, sort_keys=True)


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise ValueError(problem)
