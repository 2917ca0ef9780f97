"""The training loop: theta <- optimiser(theta, gradient), many times, safely.

With this file one runs the `while not done` of algorithms 1 and 2 of the paper, for
MAML and for the baselines alike: `train` draws a batch of tasks and takes an outer
step, equation (1), again and again. Every so many steps it writes a checkpoint, from
which a run continues bit for bit, writes a row of a CSV log, and validates. It stops at
a loss that is not finite; Ctrl-C and SIGTERM save before they stop it, and so does a
function `stop` that has seen enough.

Left out: what is computed where, which is in `steps.py` and `distributed.py`.
"""

import copy
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinymaml.checks import check_kind, check_theta, shown, whole_number
from tinymaml.files import FilePath, check_path, check_writable
from tinymaml.training.checkpoint import to_json
from tinymaml.training.console import CsvLog, Interrupt, LogRow, ProgressBar
from tinymaml.training.optim import Optimiser
from tinymaml.training.run import TrainingRun, copy_state
from tinymaml.training.steps import (
    ONE_PROCESS,
    Gradient,
    HostSteps,
    Sample,
    Steps,
    Trainable,
)


@dataclass(frozen=True)
class TrainResult:
    """Where a training run ended, and its history. A resumed run has its whole history.

    Attributes:
        theta: parameters after the last iteration, shape (P,), dtype of the start.
        iteration: number of outer steps taken.
        losses: the rows of the log.
        interrupted: whether Ctrl-C was pressed, or SIGTERM or SIGUSR1 sent.
        seconds: wall-clock time of training.
        optimiser: the optimiser after the last step, to go on without a checkpoint.
        scores: (iteration, score) of every validation.
        best: theta at the first highest of these scores; None if there are none.
    """

    theta: np.ndarray
    iteration: int
    losses: list[LogRow]
    interrupted: bool
    seconds: float
    optimiser: Optimiser
    scores: list[tuple[int, float]] = field(default_factory=list)
    best: np.ndarray | None = None


def train(
    gradient: Gradient | Trainable,
    theta: np.ndarray,
    sample: Sample,
    *,
    iterations: int,
    optimiser: Optimiser,
    rng: np.random.Generator,
    out: FilePath | None = None,
    log: FilePath | None = None,
    config: Mapping[str, Any] | None = None,
    checkpoint_every: int = 5000,
    log_every: int = 100,
    resume: FilePath | None = None,
    progress: bool = True,
    description: str = "",
    validate: Callable[[np.ndarray], float] | None = None,
    validate_every: int = 1000,
    stop: Callable[[TrainingRun], bool] | None = None,
    after: Callable[[TrainingRun], object] | None = None,
    columns: Sequence[str] = (),
) -> TrainResult:
    """Train until `iterations` steps have been taken in all, until `stop`, or Ctrl-C.

    Everything that can be checked is checked before the first step. The first Ctrl-C,
    SIGTERM or SIGUSR1 lets the iteration finish, saves and returns; a second raises
    KeyboardInterrupt at once. The loop adds about 5 us to the time of an iteration.

    Args:
        gradient: from theta, shape (P,), and a batch to an object with `.loss` (a
            number) and `.gradient`, shape (P,). A `MAML` object is such a function.
            As a `Trainable` it decides where the training is computed. Over several
            processes, as with `Distributed`, all ranks end at the same iteration; the
            first writes the files, and also when another fails.
        theta: start, shape (P,), float32 or float64; copied. With `resume` only its
            shape and dtype count.
        sample: from `rng` to a batch. For an exact resume all its randomness must come
            from `rng`.
        iterations: number of outer steps in all, those before a resume included.
        optimiser: `SGD` or `Adam`; copied, so one object can start several trainings.
        rng: advanced in place; `resume` sets it to the saved state.
        out: checkpoint to write (an older one is replaced), every `checkpoint_every`
            iterations and at the end.
        log: CSV file to write (an older one is replaced), a row every `log_every`
            iterations and at the end: iteration, loss (mean since the row before),
            seconds.
        config: JSON values that describe the run. `resume` refuses a checkpoint with
            another configuration; only "iterations" may differ.
        checkpoint_every: iterations between checkpoints.
        log_every: iterations between rows of the log.
        resume: checkpoint to continue from. run(2n) equals run(n), resume, run(n) bit
            for bit: theta, optimiser, random numbers (children of `rng.spawn` too) and
            log (its seconds apart; rows later than the checkpoint are dropped).
        progress: whether to show a progress bar on stderr, if that is a terminal.
        description: text before the progress bar.
        validate: from theta, shape (P,), to a score, such as the accuracy on tasks of
            their own; higher is better. The theta with the best score is returned too.
            It must not draw from `rng`.
        validate_every: iterations between scores.
        stop: whether to end before `iterations`, asked after every score and every row
            of the log, and when a run is resumed. Its argument has the attributes
            `iteration`, `scores` and `rows` (of the log, as in the result), `seconds`,
            `theta` and `best`, to be read only. What has been done is saved as at the
            end, and can be continued without `stop`. See the second example.
        after: called after every score and every row of the log, with the argument of
            `stop`: for other logs and displays.
        columns: names of attributes of the gradient's result, numbers, whose means are
            further columns of the log. The progress bar shows the first of them.

    Returns:
        A `TrainResult`.

    Raises:
        NonFiniteLossError: loss, gradient or parameters became NaN or infinite, or the
            gradient raised FloatingPointError; the last good checkpoint is still there.
        CheckpointError: `resume` is damaged, or belongs to another run.
        OSError: `out`, `log` or `resume` cannot be written or read.
        RankError: in one of several processes, when another has failed.
        TypeError, ValueError: an argument has the wrong type or value.

    >>> from types import SimpleNamespace
    >>> from tinymaml.training.optim import SGD
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

    Early stopping: end when the best of all scores is not among the last three.

    >>> def stop(run):
    ...     scores = [score for _, score in run.scores]
    ...     return len(scores) > 3 and max(scores[:-3]) >= max(scores[-3:])
    >>> result = train(
    ...     parabola,
    ...     np.zeros(2),
    ...     lambda rng: np.array([1.0, 3.0]),
    ...     iterations=50,
    ...     optimiser=SGD(learning_rate=0.1),
    ...     rng=np.random.default_rng(0),
    ...     progress=False,
    ...     validate=lambda theta: -abs(theta[1] - 2.0),
    ...     validate_every=1,
    ...     stop=stop,
    ... )
    >>> result.iteration, result.best.round(1)
    (8, array([0.7, 2. ]))
    """
    iterations = whole_number("iterations", iterations, least=0)
    checkpoint_every = whole_number("checkpoint_every", checkpoint_every)
    validate_every = whole_number("validate_every", validate_every)
    log_every = whole_number("log_every", log_every)
    check_kind("gradient", gradient, Callable, "a function")
    check_kind("sample", sample, Callable, "a function")
    for name, function in (("validate", validate), ("stop", stop), ("after", after)):
        if function is not None:
            check_kind(name, function, Callable, "a function")
    for name, path in (("out", out), ("log", log), ("resume", resume)):
        check_path(name, path, or_none=True)
    if not hasattr(optimiser, "load_state") or isinstance(optimiser, type):
        came = shown(optimiser)
        raise TypeError(f"optimiser: expected an object like Adam(), got {came}")
    check_theta(theta)
    listed = isinstance(columns, list | tuple)
    if not (listed and all(isinstance(name, str) for name in columns)):
        raise TypeError(f"columns: expected a list of names, got {shown(columns)}")
    check_kind("rng", rng, np.random.Generator, "a numpy.random.Generator")
    checkpoints = {os.path.realpath(path) for path in (out, resume) if path is not None}
    if log is not None and os.path.realpath(log) in checkpoints:
        raise ValueError(f"log: expected a file of its own, got the checkpoint {log}")
    plain_config = json.loads(to_json("config", {} if config is None else config))

    run = TrainingRun(
        theta.copy(), copy.deepcopy(optimiser), rng, plain_config, tuple(columns)
    )
    ranks = gradient.ranks if isinstance(gradient, Trainable) else ONE_PROCESS
    if ranks.rank > 0:  # the first rank writes for all
        out, log, progress = None, None, False
    with ranks:
        if resume is not None:
            with _naming("resume"):
                run.restore(resume)
        settings, state = run.optimiser.config(), run.random_state()
        ranks.check_same(theta=run.theta, optimiser=settings, rng=state)
        if out is not None:
            with _naming("out"):
                check_writable(out)
        start = run.theta, run.optimiser, sample, run.columns
        steps: Steps
        if isinstance(gradient, Trainable):
            steps = gradient.training_steps(*start)
        else:
            steps = HostSteps(gradient, *start)
        with _naming("log"):
            csv_log = CsvLog(log, columns, run.rows)
        if run.rng is not rng:
            copy_state(run.rng, rng)
            run.rng = rng

        def stops() -> bool:
            """Whether `stop` has seen enough of the scores or the log."""
            return stop is not None and bool(run.rows or run.scores) and bool(stop(run))

        def after_step() -> bool:
            """Validate, log and save, each at its multiples; return whether to stop."""
            validates = validate is not None and run.iteration % validate_every == 0
            logs = run.iteration % log_every == 0
            saves = run.iteration % checkpoint_every == 0
            if steps.full or validates or logs or saves:
                run.fetch(steps, bar)
            if validate is not None and validates:
                run.note_score(validate(run.theta.copy()))
            if validates or logs or saves:
                run.seconds = time.perf_counter() - started
            if logs:
                csv_log.write(run.close_row())
            if saves:
                run.save(out)
            if after is not None and ranks.rank == 0 and (validates or logs):
                after(run)
            return (validates or logs) and stops()

        def request() -> int:
            """0: this rank goes on; 1: `stop` ends it; 2: Ctrl-C or SIGTERM does."""
            return 2 if interrupt.requested else int(stop_now)

        started = time.perf_counter() - run.seconds
        column = "".join(run.columns[:1])
        bar = ProgressBar(progress, description, run.iteration, iterations, column)
        with csv_log, bar, Interrupt() as interrupt:
            stop_now, complete, before = stops(), run.iteration, None
            try:
                # [alg2-line2]
                while run.iteration < iterations and not ranks.agree(request()):
                    before = run.random_state() if ranks.size > 1 else None
                    # [alg2-line3]
                    batch = steps.draw(rng)
                    # [/alg2-line3]
                    steps.step(batch)  # line 10, in steps.py
                    before = None
                    run.iteration += 1
                    stop_now = after_step()
                    complete = run.iteration
                # [/alg2-line2]
            except Exception:
                # One of several ranks has failed. What all have completed is saved. A
                # second Ctrl-C is left out: it may break off an update of theta.
                if ranks.size > 1 and run.iteration == complete:
                    if before is not None:
                        run.set_random_state(before)
                    run.save(out)
                raise
            run.fetch(steps, bar)
            run.seconds = time.perf_counter() - started
            run.save(out)
            # The last row may average fewer steps. It is written after the checkpoint,
            # which must hold the running sums that a resumed run continues.
            if run.loss_count > 0:
                csv_log.write(run.close_row())
                if after is not None and ranks.rank == 0:
                    after(run)
            interrupted = ranks.agree(request()) == 2
        return TrainResult(
            theta=run.theta,
            iteration=run.iteration,
            losses=run.rows,
            interrupted=interrupted,
            seconds=run.seconds,
            optimiser=run.optimiser,
            scores=run.scores,
            best=run.best,
        )


@contextmanager
def _naming(argument: str) -> Iterator[None]:
    """Name the argument in an OSError raised within."""
    try:
        yield
    except OSError as error:
        reason = f"{argument}: {error.strerror}"
        raise OSError(error.errno, reason, error.filename) from error
