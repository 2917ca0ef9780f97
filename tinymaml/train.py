"""The training loop: theta <- optimiser(theta, gradient), many times, safely.

With this file one runs the `while not done` of algorithms 1 and 2 of the paper, for
MAML and for the baselines alike: `train` draws a batch of tasks, asks for the
meta-gradient and takes the outer step, equation (1). Around these three lines it keeps
a checkpoint from which a run continues bit for bit, a CSV log and a progress bar; it
stops at a loss that is not finite, and Ctrl-C saves before it stops.

Left out: schedules of the learning rate, which neither paper nor authors' code use.
"""

import copy
import json
import math
import operator
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from tinymaml.checkpoint import (
    CheckpointError,
    CheckpointFile,
    check_writable,
    to_json,
)
from tinymaml.console import Interrupt, LogRow, ProgressBar, Table
from tinymaml.optim import Optimiser

FilePath = str | os.PathLike[str]


class GradientResult(Protocol):
    """What the gradient function returns: a loss and its gradient."""

    @property
    def loss(self) -> float: ...

    @property
    def gradient(self) -> np.ndarray: ...


@dataclass(frozen=True)
class TrainResult:
    """Where a training run ended.

    Attributes:
        theta: parameters, shape (P,), dtype of the start.
        iteration: steps taken since the very start, runs before a resume included.
        losses: the rows of the log, runs before a resume included.
        interrupted: whether Ctrl-C was pressed.
        seconds: wall-clock time, runs before a resume included.
        optimiser: the optimiser as it stands, for training on without a checkpoint.
        scores: (iteration, score) of every validation, runs before a resume included.
        best: theta at the first highest of these scores; None without validation.
    """

    theta: np.ndarray
    iteration: int
    losses: list[LogRow]
    interrupted: bool
    seconds: float
    optimiser: Optimiser
    scores: list[tuple[int, float]] = field(default_factory=list)
    best: np.ndarray | None = None


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


def train(
    gradient: Callable[[np.ndarray, Any], GradientResult],
    theta: np.ndarray,
    sample: Callable[[np.random.Generator], Any],
    *,
    iterations: int,
    optimiser: Optimiser,
    rng: np.random.Generator,
    out: FilePath | None = None,
    log: FilePath | Table | None = None,
    config: Mapping[str, Any] | None = None,
    checkpoint_every: int = 5000,
    log_every: int = 100,
    resume: FilePath | None = None,
    progress: bool = True,
    description: str = "",
    validate: Callable[[np.ndarray], float] | None = None,
    validate_every: int = 1000,
    columns: Sequence[str] = (),
) -> TrainResult:
    """Train until `iterations` steps have been taken in all, or until Ctrl-C.

    Everything that can be checked is checked before the first step. The first Ctrl-C
    lets the iteration finish, saves and returns; a second raises KeyboardInterrupt at
    once. The loop itself adds about 5 us per iteration to its three parts.

    Args:
        gradient: from theta, shape (P,), and a batch to an object with `.loss` (a
            number) and `.gradient`, shape (P,). A `MAML` object is such a function; on
            a GPU it trains there and comes back only for what this loop writes down.
        theta: start, shape (P,), float32 or float64; copied. With `resume` only its
            shape and dtype count.
        sample: from `rng` to a batch. For an exact resume all its randomness must come
            from `rng`.
        iterations: steps in all, those before a resume included.
        optimiser: `SGD` or `Adam`; copied, so one object can start several trainings.
        rng: advanced in place; `resume` sets it to the saved state.
        out: checkpoint to write (an older one is replaced), every `checkpoint_every`
            iterations and at the end.
        log: CSV file to write (an older one is replaced), a row every `log_every`
            iterations and at the end: iteration, loss (mean since the row before),
            seconds. A `Table` when several trainings write one log.
        config: JSON values that describe the run. `resume` refuses a checkpoint with
            another configuration; only "iterations" may differ.
        checkpoint_every: iterations between checkpoints.
        log_every: iterations between rows of the log.
        resume: checkpoint to continue from. run(2n) equals run(n), resume, run(n) bit
            for bit: theta, optimiser, random numbers and log (its seconds apart; rows
            later than the checkpoint are dropped).
        progress: whether to show a progress bar on stderr.
        description: text before the progress bar.
        validate: from theta, shape (P,), to a score, such as the accuracy on tasks kept
            for this; higher is better, and the best theta so far is kept (early
            stopping, without the stopping). It must not draw from `rng`.
        validate_every: iterations between scores.
        columns: attributes of the gradient's result, numbers, whose means stand in the
            log behind those of the loss; a `Table` must have been told of them too.

    Returns:
        A `TrainResult`.

    Raises:
        NonFiniteLossError: loss, gradient or parameters became NaN or infinite; the
            last good checkpoint is still there.
        CheckpointError: `resume` is damaged, or belongs to another run.
        OSError: `out`, `log` or `resume` cannot be written or read.
        TypeError, ValueError: an argument has the wrong type or value.

    >>> from types import SimpleNamespace
    >>> from tinymaml.optim import SGD
    >>> def parabola(theta, target):
    ...     error = theta - target
    ...     return SimpleNamespace(loss=error @ error, gradient=2 * error)
    >>> result = train(
    ...     parabola,
    ...     np.zeros(2),
    ...     lambda rng: rng.normal(loc=[1.0, 3.0], scale=0.01),
    ...     iterations=50,
    ...     optimiser=SGD(learning_rate=0.1),
    ...     rng=np.random.default_rng(0),
    ...     progress=False,
    ... )
    >>> result.theta.round(1), result.iteration
    (array([1., 3.]), 50)
    """
    iterations = _count("iterations", iterations, least=0)
    checkpoint_every = _count("checkpoint_every", checkpoint_every, least=1)
    log_every = _count("log_every", log_every, least=1)
    validate_every = _count("validate_every", validate_every, least=1)
    _check_functions(gradient, sample, optimiser, validate)
    _check_theta(theta)
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng: expected a numpy.random.Generator, got {type(rng)}")
    table = log if isinstance(log, Table) else Table(log, columns=columns)
    others = {os.path.realpath(path) for path in (out, resume) if path is not None}
    if table.path is not None and os.path.realpath(table.path) in others:
        raise ValueError(
            f"log: expected a file of its own, got the checkpoint {table.path}"
        )
    plain_config = json.loads(to_json("config", config or {}))

    start = theta.copy()
    run = _Run(start, copy.deepcopy(optimiser), rng, plain_config, tuple(columns))
    draw, resident = sample, None
    with _naming("resume"):
        rng_state = None if resume is None else run.restore(resume)
    with _naming("out"):
        if out is not None:
            check_writable(out)
    with _naming("log"):
        table.begin(run.rows)
    if rng_state is not None:
        rng.bit_generator.state = rng_state

    if hasattr(gradient, "resident") and not columns:
        resident = gradient.resident(run.theta, run.optimiser, sample)
    if resident is not None:
        draw = resident.draw

    started = time.perf_counter() - run.seconds
    bar = ProgressBar(progress, description, run.iteration, iterations)
    with table, bar, Interrupt() as interrupt:
        # [alg2-line2]
        while run.iteration < iterations and not interrupt.requested:
            # [alg2-line3]
            batch = draw(rng)
            # [/alg2-line3]
            if resident is None:
                result = gradient(run.theta, batch)
                loss = float(result.loss)
                if not (math.isfinite(loss) and np.isfinite(result.gradient).all()):
                    raise run.non_finite(loss, result.gradient)
                # [alg2-line10]
                run.optimiser.update(run.theta, result.gradient)
                # [/alg2-line10]
                run.add(loss, result)
                bar.step(run.iteration + 1, loss)
            else:
                resident.step(batch)
            run.iteration += 1
            validates = validate is not None and run.iteration % validate_every == 0
            logs = run.iteration % log_every == 0
            saves = run.iteration % checkpoint_every == 0
            if resident is not None and (validates or logs or saves or resident.full):
                run.fetch(resident, bar)
            if validate is not None and validates:
                run.judge(float(validate(run.theta.copy())))
            if logs:
                run.seconds = time.perf_counter() - started
                table.write(run.close_row())
            if saves:
                run.seconds = time.perf_counter() - started
                run.save(out)
        if resident is not None:
            run.fetch(resident, bar)
        # [/alg2-line2]
        run.seconds = time.perf_counter() - started
        run.save(out)
        # After saving: a resumed run continues this mean, and drops the row made of it.
        if run.loss_count > 0:
            table.write(run.close_row())
    return TrainResult(
        theta=run.theta,
        iteration=run.iteration,
        losses=run.rows,
        interrupted=interrupt.requested,
        seconds=run.seconds,
        optimiser=run.optimiser,
        scores=run.scores,
        best=run.best,
    )


@dataclass
class _Run:
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
                raise self._error(iteration, f"the loss is {loss}")
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


@contextmanager
def _naming(argument: str) -> Iterator[None]:
    """Say in an OSError which argument it is about."""
    try:
        yield
    except OSError as error:
        reason = f"{argument}: {error.strerror}"
        raise OSError(error.errno, reason, error.filename) from error


def _count(name: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if operator.index(value) < least:
        raise ValueError(f"{name}: expected an integer >= {least}, got {value}")
    return operator.index(value)


def _check_functions(
    gradient: object, sample: object, optimiser: object, validate: object
) -> None:
    functions = {"gradient": gradient, "sample": sample}
    if validate is not None:
        functions["validate"] = validate
    for name, function in functions.items():
        if not callable(function):
            raise TypeError(f"{name}: expected a function, got {function!r}")
    if not hasattr(optimiser, "load_state") or isinstance(optimiser, type):
        raise TypeError(
            f"optimiser: expected an object such as Adam(), got {optimiser!r}"
        )


def _check_theta(theta: Any) -> None:
    if not isinstance(theta, np.ndarray) or theta.dtype not in (np.float32, np.float64):
        kind = getattr(theta, "dtype", type(theta).__name__)
        raise TypeError(f"theta: expected a float32 or float64 array, got {kind}")
    if theta.ndim != 1 or theta.size == 0:
        raise ValueError(f"theta: expected shape (P,), P > 0, got {theta.shape}")
    if not np.isfinite(theta).all():
        raise ValueError("theta: expected finite values, got NaN or infinity")
