"""Outer steps, computed in this process or on a device with its own memory.

With this file the training loop (`train.py`) is the same for every learner: it asks for
`Steps`, draws a batch, takes a step, and reads back the losses. `HostSteps` calls a
gradient function and an optimiser in this process. A learner that can train elsewhere
is a `Trainable`, as `MAML` is; `backends/cuda/training.py` does so on a GPU.

Left out: what surrounds a step (validation, log, checkpoints), which is in `train.py`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from tinymaml.training.optim import Optimiser

Array = np.ndarray[Any, Any]
Sample = Callable[[np.random.Generator], Any]
# From theta (P,) and a batch to an object with a number `loss` and a `gradient` (P,).
Gradient = Callable[[Array, Any], Any]
Columns = Sequence[str]  # names of further numbers in the log


class RankError(RuntimeError):
    """Another process of the run has failed; the message has its number and error."""


class OneProcess:
    """The processes of a run that is one process: nothing is exchanged.

    `training.distributed.Ranks` has the same methods for several processes, the ranks.
    Algorithms call them wherever tasks are shared out or summed.
    """

    rank, size, exact = 0, 1, False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """At an exception, tell the other ranks of it."""

    def threads(self) -> int | None:
        """How many threads a rank may use; None: the backend decides."""
        return None

    def agree(self, request: int = 0) -> int:
        """The largest of the requests of all ranks."""
        return request

    def check_same(self, **values: Any) -> None:
        """Refuse values that differ from rank to rank."""

    def leave(self, status: int) -> None:
        """End with the other ranks, or end them."""

    def share(self, tasks: int) -> slice:
        """Which of the tasks this rank computes."""
        return slice(0, tasks)

    def for_tasks(self, tasks: int) -> "OneProcess":
        """The ranks that share this many tasks."""
        return self

    def gather(self, rows: Array) -> Array:
        """The rows of all ranks, in the order of ranks."""
        return rows

    def mean(self, rows: Array) -> Array:
        """The mean, in float64, of the rows of all ranks."""
        return rows.mean(axis=0, dtype=np.float64)

    def sampler(self, sample: Sample) -> Sample:
        """`sample`, without the work for tasks of other ranks."""
        return sample


ONE_PROCESS = OneProcess()


class StepResult(NamedTuple):
    """What the log, and an error, say of one outer step."""

    loss: float
    columns: tuple[float, ...] = ()  # further numbers for the log
    failure: str = ""  # why the step has changed nothing; "" if it succeeded


class Steps(Protocol):
    """The outer steps of one training, on theta and an optimiser given at the start.

    theta and the optimiser are up to date after `fetch`, and need not be before it. A
    step whose loss or gradient is not finite changes neither.
    """

    @property
    def full(self) -> bool:
        """Whether results must be fetched before the next step."""

    def draw(self, rng: np.random.Generator) -> Any:
        """A batch for `step`."""

    def step(self, batch: Any) -> None:
        """Take an outer step, or start one: paper, equation (1)."""

    def fetch(self) -> list[StepResult]:
        """Finish all steps and return the results since the last fetch, in order."""


class HostSteps:
    """Outer steps in this process, each finished when `step` returns.

    gradient: from theta (P,) and a batch to an object with `loss` and `gradient`.
    theta, optimiser: changed in place. sample: from a random generator to a batch; it
    becomes the method `draw`. columns: attributes of the gradient's result, numbers
    that go into the log.
    """

    full = True  # so each loss reaches the progress bar at once

    def __init__(
        self,
        gradient: Gradient,
        theta: Array,
        optimiser: Optimiser,
        sample: Sample,
        columns: Columns = (),
    ) -> None:
        self._gradient, self._theta, self._optimiser = gradient, theta, optimiser
        self.draw, self._columns = sample, columns
        self._results: list[StepResult] = []

    def step(self, batch: Any) -> None:
        """Compute the gradient and let the optimiser change theta."""
        loss, columns = math.nan, tuple[float, ...]()
        # [alg2-line10]
        try:
            result = self._gradient(self._theta, batch)
            loss = float(result.loss)
            failure = _failure(loss, result.gradient)
            if not failure:
                self._optimiser.update(self._theta, result.gradient)
        except FloatingPointError as error:  # of MAMLTRPO, or of Adam
            failure = str(error) or type(error).__name__
        # [/alg2-line10]
        if self._columns and not failure:
            columns = tuple(float(getattr(result, name)) for name in self._columns)
        self._results.append(StepResult(loss, columns, failure))

    def fetch(self) -> list[StepResult]:
        """The results since the last fetch."""
        results, self._results = self._results, []
        return results


class Trainable:
    """A gradient function that decides where it is trained; `MAML` is one.

    A subclass that does not override `training_steps` is trained in this process. Over
    several processes, `ranks` are those.
    """

    @property
    def ranks(self) -> OneProcess:
        """The processes that compute one gradient together."""
        return ONE_PROCESS

    def __call__(self, theta: Array, batch: Any, /) -> Any:
        """An object with a number `loss` and a `gradient` (P,), at theta (P,)."""
        raise NotImplementedError

    def training_steps(
        self, theta: Array, optimiser: Optimiser, sample: Sample, columns: Columns = ()
    ) -> Steps:
        """The steps that `train` takes from theta on; arguments as in `HostSteps`."""
        return HostSteps(self, theta, optimiser, self.ranks.sampler(sample), columns)


def _failure(loss: float, gradient: Array) -> str:
    """Which number is not finite; "" if all are."""
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if np.isfinite(gradient).all():
        return ""
    entries = np.flatnonzero(~np.isfinite(gradient))
    return (
        f"{entries.size} of {gradient.size} entries of the gradient are not finite "
        f"(the first, at {entries[0]}, is {gradient[entries[0]]})"
    )
