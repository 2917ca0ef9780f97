"""What a long run shows: a CSV log and a progress bar; and how it handles Ctrl-C.

With this file the training loop (`train.py`) writes a row every so many iterations,
draws a tqdm bar, and notices Ctrl-C between two steps. Each class is a context manager
that leaves the file closed, the terminal clean and the signal handler as it was.

Left out: log files in other formats and remote dashboards; every program opens a CSV.
"""

import csv
import os
import signal
import threading
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple


class LogRow(NamedTuple):
    """One row of the log: means over the iterations since the row before it."""

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
        path: str | os.PathLike[str] | None,
        columns: Iterable[str] = (),
        rows: Iterable[LogRow] = (),
    ) -> None:
        target = os.devnull if path is None else path
        self._file = open(target, "w", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerow(["iteration", "loss", "seconds", *columns])
        for row in rows:
            self.write(row)

    def write(self, row: LogRow) -> None:
        """Append a row; the loss in as many digits as give the same number back."""
        seconds = f"{row.seconds:.3f}"
        self._writer.writerow([row.iteration, row.loss, seconds, *row.more])
        self._file.flush()

    def __exit__(self, *_: object) -> None:
        self._file.close()


class Interrupt:
    """Turns the first Ctrl-C into a flag, so that it never breaks off a step.

    Attributes:
        requested: whether Ctrl-C has been pressed. A second Ctrl-C raises
            KeyboardInterrupt at once.
    """

    requested = False

    def __enter__(self) -> "Interrupt":
        self._previous = signal.getsignal(signal.SIGINT)
        # Python allows handlers in the main thread only. A handler that was set from C
        # (None here) could not be restored, and a program started with SIGINT ignored
        # is meant to ignore it.
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


class ProgressBar(AbstractContextManager["ProgressBar"]):
    """A tqdm bar with rate and smoothed loss, redrawn at most ten times a second.

    The loss shown is an exponential moving average over about 50 steps. It is divided
    by 1 - 0.98^n after n steps, as Adam corrects its moments: without this the average,
    which starts at 0, would be far too small in the first steps.

    tqdm is called only when the bar is redrawn, so other steps cost well under 1 us.

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
        self._average = 0.0
        self._next_drawing = 0.0
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
        """Show the loss (a finite number) of an iteration."""
        if self._bar is None:
            return
        self._iteration = iteration
        self._average += 0.02 * (loss - self._average)
        now = time.perf_counter()
        if now >= self._next_drawing:
            self._next_drawing = now + 0.1
            self._draw()

    def _draw(self) -> None:
        count = self._iteration - self._bar.initial
        if count:
            loss = self._average / (1 - 0.98**count)
            self._bar.set_postfix_str(f"loss {loss:.4g}", refresh=False)
        self._bar.update(self._iteration - self._bar.n)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._draw()
            self._bar.close()
