"""What every benchmark shares: rows, ratios, JSON, tables, agreement, the machine.

A benchmark is a list of `Row`s: one implementation doing one piece of work.
`write_json` stores them and `format_table` prints them. `check_agreement` comes first:
an implementation that computes another gradient is not timed.

Left out: how a time is taken (`workers.py`) and what is compared (`measure.py`).
"""

import argparse
import json
import math
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
REFERENCE = "tinymaml numba"
TOLERANCES = {"float32": 1e-5, "float64": 1e-10}
PACKAGES = ("numpy", "numba", "torch", "jax", "jaxlib", "cupy", "mujoco")


class DisagreementError(Exception):
    """An implementation computes another gradient, so its time means nothing."""


# --- rows and their ratios ------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One implementation doing one piece of work.

    median, min and max are over rounds, each sample the mean of a batch of calls.
    peak_bytes is the peak resident memory of the process that did the work, None where
    the system does not tell. ratio is filled in by `with_ratios`.
    """

    work: str
    implementation: str
    order: int
    threads: int
    median_seconds: float
    min_seconds: float
    max_seconds: float
    peak_bytes: int | None
    ratio: float | None = None


def row_of(
    samples: Sequence[float],
    work: str,
    implementation: str,
    order: int,
    threads: int,
    peak_bytes: int | None,
) -> Row:
    """A row from the samples of its rounds, in seconds."""
    spread = statistics.median(samples), min(samples), max(samples)
    return Row(work, implementation, order, threads, *spread, peak_bytes)


def with_ratios(rows: Sequence[Row], reference_name: str = REFERENCE) -> list[Row]:
    """The rows with ratio = median over the median of the reference implementation.

    The reference is its row for the same work and order on the most threads. The ratio
    is None where there is no such row.
    """
    references: dict[tuple[str, int], Row] = {}
    for row in rows:
        best = references.get((row.work, row.order))
        if row.implementation == reference_name:
            if best is None or row.threads > best.threads:
                references[row.work, row.order] = row
    filled = []
    for row in rows:
        reference = references.get((row.work, row.order))
        if reference is not None:
            row = replace(row, ratio=row.median_seconds / reference.median_seconds)
        filled.append(row)
    return filled


def write_json(
    path: str | Path, machine: dict[str, Any], rows: Sequence[Row], **more: Any
) -> None:
    """Write {"machine": ..., "rows": [...], **more}, all of it or nothing.

    Raises ValueError for a number that is not finite.
    """
    from tinymaml.files import write_atomically  # not in the processes of the peers

    content = {"machine": machine, "rows": [asdict(row) for row in rows], **more}
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    with write_atomically(path) as file:
        file.write(text.encode())


# --- agreement ------------------------------------------------------------------------


def relative_error(gradient: Array, reference: Array) -> float:
    """The norm of the difference over the norm of the reference, in float64."""
    difference = np.asarray(gradient, np.float64) - reference
    return float(np.linalg.norm(difference) / np.linalg.norm(reference))


def check_agreement(
    name: str, gradient: Array, reference: Array, tolerance: float
) -> float:
    """The relative error of a gradient, if it is within the tolerance.

    Raises DisagreementError if not, or if the shape is another or a number not finite.
    """
    if np.shape(gradient) != np.shape(reference):
        raise DisagreementError(
            f"{name}: expected a gradient of shape {np.shape(reference)}, "
            f"got {np.shape(gradient)}"
        )
    error = relative_error(gradient, reference)
    if not error <= tolerance:  # so that NaN is refused
        raise DisagreementError(
            f"{name}: expected the reference gradient within {tolerance:.0e}, "
            f"got one that differs by {error:.1e}"
        )
    return error


# --- the machine ----------------------------------------------------------------------


def usable_cores() -> int:
    """The cores this process may run on, which may be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor_name() -> str:
    """The processor's model name, where the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def installed_version(package: str) -> str | None:
    """The version of a package, None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def describe_machine() -> dict[str, Any]:
    """The facts that a reader needs to judge the numbers, as JSON values."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "processor": processor_name(),
        "cores": usable_cores(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: v for name in PACKAGES if (v := installed_version(name))},
        "load_at_start": load,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def print_machine(machine: dict[str, Any]) -> None:
    """Print the description, with a warning if other programs use the machine."""
    packages = ", ".join(f"{n} {v}" for n, v in machine["packages"].items())
    print(f"{machine['processor']}, {machine['cores']} cores, {machine['system']}")
    print(f"Python {machine['python']}, {packages}")
    load = machine["load_at_start"]
    if load is not None and load > 0.5:
        print(f"WARNING: the machine is busy (load {load:.1f}): do not trust the times")


# --- tables ---------------------------------------------------------------------------


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as plain text: the first column flush left, the others flush right.

    >>> print(format_table(["name", "ms"], [["numba", "0.30"], ["numpy", "12.00"]]))
    name      ms
    -----  -----
    numba   0.30
    numpy  12.00
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for cells in (header, ["-" * width for width in widths], *rows):
        padded = [cells[0].ljust(widths[0])]
        padded += [c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True)]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same table in Markdown, which is also readable in a terminal.

    >>> print(markdown_table(["name", "ms"], [["numba", "0.30"], ["numpy", "12.00"]]))
    | name  |    ms |
    |:------|------:|
    | numba |  0.30 |
    | numpy | 12.00 |
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * (width + 1) for width in widths]
    lines = ["|:" + rule[0] + "|" + "".join(f"{dashes}:|" for dashes in rule[1:])]
    for cells in (header, *rows):
        padded = [cells[0].ljust(widths[0])]
        padded += [c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True)]
        lines.append("| " + " | ".join(padded) + " |")
    return "\n".join([lines[1], lines[0], *lines[2:]])


def three_digits(number: float) -> str:
    """A number to three digits, or all of those before the point.

    >>> three_digits(0.02046), three_digits(999.6), three_digits(3603.2)
    ('0.0205', '1,000', '3,603')
    """
    return f"{number:,.0f}" if number >= 99.95 else f"{number:,.3g}"


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds, to three digits or more."""
    return three_digits(seconds * 1e3)


def megabytes(count: int | None) -> str:
    """Bytes as MB (10^6), "?" for None."""
    return "?" if count is None else f"{count / 1e6:,.1f}"


def times_of(row: Row) -> list[str]:
    """The cells that every table has: median, min, max in ms, and the ratio."""
    spread = (row.median_seconds, row.min_seconds, row.max_seconds)
    ratio = "" if row.ratio is None else f"{row.ratio:,.2f}"
    return [*map(milliseconds, spread), ratio]


def verdict(
    claim: str, value: float, sign: str, bound: float, unit: str = ""
) -> list[str]:
    """The cells of a claim: its text, the measured value, its bound, and the verdict.

    >>> verdict("twice as fast", 2.5, ">=", 2)
    ['twice as fast', '2.5', '>= 2', 'met']
    """
    holds = value >= bound if sign == ">=" else value <= bound
    return [
        claim,
        f"{three_digits(value)}{unit}",
        f"{sign} {bound:g}{unit}",
        "met" if holds else "MISSED",
    ]


TIMES = ["median ms", "min", "max", "ratio"]


# --- options --------------------------------------------------------------------------


def output_file(text: str) -> Path:
    """The type of an argument that names a writable file, which is tried at once.

    A link stays; the file to which it leads is written.
    """
    path = Path(os.path.realpath(text))
    if path.exists() and not path.is_file():
        what = "the folder" if path.is_dir() else "the device or pipe"
        raise argparse.ArgumentTypeError(f"expected a file, got {what} {text}")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            return path
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"cannot write {text}: {error.strerror or error}"
        ) from None


def positive(text: str) -> int:
    """The type of an argument that is a whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got {text!r}")
    return number


def positive_float(text: str) -> float:
    """The type of an argument that is a finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return number


def parser_of(
    description: str,
    quick: str = "about a minute",
    peers: Sequence[str] = ("torch", "jax"),
) -> argparse.ArgumentParser:
    """The options that every benchmark has.

    quick: how long the benchmark takes with --quick. peers: the libraries it knows.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--json",
        type=output_file,
        metavar="FILE",
        help="also write the results there",
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"fewer rounds and choices: {quick}"
    )
    parser.add_argument(
        "--threads",
        type=positive,
        default=min(2, usable_cores()),
        metavar="N",
        help="a number of threads to measure besides 1 (default: %(default)s)",
    )
    parser.add_argument(
        "--peers",
        nargs="*",
        choices=peers,
        default=list(peers),
        help="the libraries to compare with; none: tinymaml alone (default: all)",
    )
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    return parser
