"""What a long run shows and hears: a CSV log, a progress bar and Ctrl-C.

With this file the training loop (`train.py`) writes one row per so many iterations,
draws a tqdm bar and notices Ctrl-C between two steps. Each is a context manager that
leaves the file closed, the terminal clean and the signal handler as it was.

Left out: log files in other formats and remote dashboards; the CSV opens everywhere.
"""

import csv
import os
import signal
import threading
import time
from collections.abc import Iterable
from typing import Any, NamedTuple


class LogRow(NamedTuple):
    """One row of the log: the mean loss since the row before it."""

    iteration: int
    loss: float
    seconds: float
    more: tuple[float, ...] = ()  # the means of further columns


class Table:
    """The CSV log, begun anew with the rows so far; each row is written out at once.

    Args:
        path: file to write or overwrite; None for no log.
        label: name of this training in a log of several, which has one column more.
        before: the rows of earlier trainings, each behind its own label.
        columns: names of what stands behind iteration, loss and seconds.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        label: str | None = None,
        before: Iterable[tuple[str, LogRow]] = (),
        columns: Iterable[str] = (),
    ) -> None:
        self.path = path
        self._label = [] if label is None else [label]
        self._before = list(before)
        self._columns = ("iteration", "loss", "seconds", *columns)

    def begin(self, rows: Iterable[LogRow]) -> None:
        """Open the file and write the rows that stand in it already."""
        path = os.devnull if self.path is None else self.path
        self._file = open(path, "w", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file, lineterminator="\n")
        heading = ["training"] if self._label else []
        self._writer.writerow([*heading, *self._columns])
        for label, row in self._before:
            self._write([label], row)
        for row in rows:
            self.write(row)

    def write(self, row: LogRow) -> None:
        """Append a row; the loss in as many digits as give the same number back."""
        self._write(self._label, row)
        self._file.flush()

    def _write(self, label: list[str], row: LogRow) -> None:
        seconds = f"{row.seconds:.3f}"
        self._writer.writerow([*label, row.iteration, row.loss, seconds, *row.more])

    def __enter__(self) -> "Table":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class Interrupt:
    """Turns the first Ctrl-C into a flag, so that none falls into the middle of a step.

    Attributes:
        requested: whether Ctrl-C has been pressed. A second one raises
            KeyboardInterrupt at once.
    """

    requested = False

    def __enter__(self) -> "Interrupt":
        self._previous = signal.getsignal(signal.SIGINT)
        # Python allows handlers in the main thread only. None, a handler from C, could
        # not be put back. And who starts us with SIGINT ignored means it.
        self._active = (
            threading.current_thread() is threading.main_thread()
            and self._previous not in (None, signal.SIG_IGN)
        )
        if self._active:
            signal.signal(signal.SIGINT, self._handle)
        return self

    def _handle(self, *_: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, *_: object) -> None:
        if self._active:
            signal.signal(signal.SIGINT, self._previous)


class ProgressBar:
    """A tqdm bar with rate and smoothed loss, redrawn ten times a second.

    The loss is a running mean over some 50 steps, and over all steps while they are
    fewer: a mean that begins at its first loss would show that one for too long.

    tqdm is asked only when it is time to draw: a step between costs well under 1 us.

    Args:
        enabled: False for no bar at all.
        description: text before the bar.
        iteration: where the run starts.
        iterations: where it is to end.
    """

    def __init__(
        self, enabled: bool, description: str, iteration: int, iterations: int
    ) -> None:
        self._iteration = iteration
        self._smoothed, self._seen = 0.0, 0
        self._due = 0.0
        self._bar: Any = None
        if enabled:
            from tqdm import tqdm

            self._bar = tqdm(
                desc=description or None,
                total=iterations,
                initial=iteration,
                mininterval=0,
                miniters=1,
            )

    def step(self, iteration: int, loss: float) -> None:
        """Note the loss (a finite number) of an iteration."""
        if self._bar is None:
            return
        self._iteration = iteration
        self._smoothed += 0.02 * (loss - self._smoothed)
        self._seen += 1
        now = time.perf_counter()
        if now >= self._due:
            self._due = now + 0.1
            self._draw()

    def _draw(self) -> None:
        if self._seen:
            loss = self._smoothed / (1 - 0.98**self._seen)  # as Adam's means begin at 0
            self._bar.set_postfix_str(f"loss {loss:.4g}", refresh=False)
        self._bar.update(self._iteration - self._bar.n)

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._draw()
            self._bar.close()
