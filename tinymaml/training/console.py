"""What a long run shows: a CSV log and a progress bar; and how it handles signals.

With this file the training loop (`train.py`) writes a row every so many iterations,
draws a tqdm bar, and notices Ctrl-C and SIGTERM between two steps. Each class is a
context manager that leaves the file closed, the terminal clean and the signal handlers
as they were.

Left out: log files in other formats and remote dashboards; every program opens a CSV.
"""

import csv
import os
import signal
import sys
import threading
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from tinymaml.files import FilePath, check_plain, naming_file


class LogRow(NamedTuple):
    """One row of the log: means over the iterations since the row before it.

    >>> LogRow(iteration=100, loss=2.5, seconds=0.75)
    LogRow(iteration=100, loss=2.5, seconds=0.75, more=())
    """

    iteration: int
    loss: float
    seconds: float  # since the start of the training
    more: tuple[float, ...] = ()  # values of further columns


class CsvLog(AbstractContextManager["CsvLog"]):
    """A CSV file of `LogRow`s, each on disk as soon as it is written.

    path: file to write or overwrite; None for no log. columns: names of the numbers
    behind iteration, loss and seconds. rows: written at once, as a resumed run needs.
    """

    def __init__(
        self,
        path: FilePath | None,
        columns: Iterable[str] = (),
        rows: Iterable[LogRow] = (),
    ) -> None:
        if path is not None:
            check_plain(path)
        self._path = os.devnull if path is None else path
        self._file = open(self._path, "w", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerow(["iteration", "loss", "seconds", *columns])
        for row in rows:
            self.write(row)

    def write(self, row: LogRow) -> None:
        """Append a row; the loss in as many digits as give the same number back."""
        seconds = f"{row.seconds:.3f}"
        with naming_file(self._path):
            self._writer.writerow([row.iteration, row.loss, seconds, *row.more])
            self._file.flush()

    def __exit__(self, *_: object) -> None:
        with naming_file(self._path):
            self._file.close()


# Windows has no SIGUSR1. A set has each signal once.
STOPPING = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGINT)}


class Interrupt:
    """Turns the first Ctrl-C or SIGTERM into a flag, so that it breaks off no step.

    SIGTERM is how `kill`, a scheduler or a container asks a program to end. SIGUSR1 is
    taken for the same: a scheduler can send it long before it ends a program, and
    Open MPI's `mpirun` passes it on to its ranks and waits for them.

    Attributes:
        requested: whether one of them has come. A second one raises KeyboardInterrupt
            at once.
    """

    requested = False

    def __enter__(self) -> "Interrupt":
        self._previous: dict[int, Any] = {}
        # Python allows handlers in the main thread only. A handler that was set from C
        # (None here) could not be restored, and a program started with a signal ignored
        # is meant to ignore it.
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                if signal.getsignal(number) not in (None, signal.SIG_IGN):
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, *_: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class ProgressBar(AbstractContextManager["ProgressBar"]):
    """A tqdm bar with rate and smoothed loss, for a terminal.

    The loss shown is an exponential moving average over about 50 steps. It is divided
    by 1 - 0.98^n after n steps, as Adam corrects its moments: without this the average,
    which starts at 0, would be far too small in the first steps. tqdm decides when to
    draw, ten times a second; a step costs 0.4 us.

    Args:
        enabled: False for no bar at all; True for a bar if stderr is a terminal, so
            that none is drawn into a file.
        description: text before the bar.
        iteration: where the run starts.
        iterations: where it is to end.
        column: the name of a further number to show, the last one as it is.
    """

    def __init__(
        self,
        enabled: bool,
        description: str,
        iteration: int,
        iterations: int,
        column: str = "",
    ) -> None:
        self._column, self._value = column, ""
        self._start = self._iteration = iteration
        self._average = 0.0
        self._bar: Any = None
        if enabled and sys.stderr is not None:
            from tqdm import tqdm

            bar = tqdm(
                desc=description or None,
                total=iterations,
                initial=iteration,
                miniters=1,
                disable=None,
            )
            self._bar = None if bar.disable else bar

    def step(self, iteration: int, loss: float, more: Sequence[float] = ()) -> None:
        """Show the loss (a finite number) of an iteration, and the first of `more`."""
        if self._bar is None:
            return
        if more:
            self._value = f", {self._column} {more[0]:.3g}"
        steps, self._iteration = iteration - self._iteration, iteration
        self._average += 0.02 * (loss - self._average)
        if self._bar.update(steps):
            self._note_loss()

    def _note_loss(self) -> None:
        """Give tqdm the loss to show when it draws the next time."""
        count = self._iteration - self._start
        if count:
            text = f"loss {self._average / (1 - 0.98**count):.4g}{self._value}"
            self._bar.set_postfix_str(text, refresh=False)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._note_loss()
            self._bar.close()
