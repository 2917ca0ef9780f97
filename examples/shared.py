"""What the examples share: options, a folder to write to, intervals, tables, figures.

This file keeps the examples short. It reads their options, with one-line errors; checks
before training that their files can be written; continues an earlier run; and writes
results and figures completely or not at all.

Left out: settings files, searches over settings, and trackers of experiments.
"""

import argparse
import io
import json
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from stages import Stages

from tinymaml.backends import BACKENDS, Backend, get_backend
from tinymaml.files import check_writable, write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# --- options --------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, with exit status 2."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and stop."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def plain_parser(doc: str) -> Parser:
    """A parser without options; `doc` is its description."""
    return Parser(
        prog=os.path.basename(sys.argv[0]),
        description=as_started(doc),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def experiment_parser(
    doc: str, out: str, iterations: int, fast: int, fast_changes: str = ""
) -> Parser:
    """A parser with the options of every experiment; `doc` is its description.

    fast: the number of iterations with --fast. fast_changes: what else it changes.
    """
    parser = plain_parser(doc)
    add = parser.add_argument
    add(
        "--iterations",
        type=whole_number(0),
        metavar="N",
        help=f"number of outer steps of each training (default: {iterations:,})",
    )
    add(
        "--fast",
        action="store_true",
        help=f"a short run to try the program: {fast:,} iterations{fast_changes}; its "
        "numbers are worse than those of a full run",
    )
    add(
        "--backend",
        choices=BACKENDS,
        default="auto",
        help="what runs the computations (default: auto, a GPU if there is one, else "
        "numba)",
    )
    add(
        "--threads",
        type=whole_number(1),
        metavar="N",
        help="threads of the numba backend; no result depends on it (default: cores)",
    )
    add(
        "--seed",
        type=whole_number(0),
        default=0,
        metavar="N",
        help="seed of the initial weights and training tasks; test tasks do not depend "
        "on it "
        "(default: %(default)s)",
    )
    add(
        "--out",
        type=Path,
        default=Path(out),
        metavar="DIR",
        help="folder for all files of this run, made if missing (default: %(default)s)",
    )
    parser.set_defaults(default_iterations=iterations, fast_iterations=fast)
    return parser


def add_resume(parser: Parser, settings: str) -> None:
    """Add --resume; `settings` are the options in which both runs must agree."""
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="DIR",
        help="folder of an earlier run (its --out) to continue from, with the same "
        f"{settings}; --iterations may be larger",
    )


def whole_number(least: int) -> Callable[[str], int]:
    """An argparse type: a whole number of at least `least`."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(
                f"expected a whole number of at least {least}, got {text!r}"
            )
        return number

    return parse


def positive_number(text: str) -> float:
    """An argparse type: a finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return number


def read_options(
    parser: Parser, arguments: Sequence[str] | None
) -> tuple[argparse.Namespace, Backend]:
    """The options, with `iterations` filled in, and the backend they ask for."""
    options = parser.parse_args(arguments)
    if options.iterations is None:
        options.iterations = (
            options.fast_iterations if options.fast else options.default_iterations
        )
    try:
        return options, get_backend(options.backend, options.threads)
    except (ImportError, ValueError) as error:
        parser.error(f"argument --backend: {error}")


def prepare_folder(folder: Path, files: Iterable[str]) -> None:
    """Make the folder if it is missing, and check that these files can be written.

    files: paths relative to the folder; their folders are made as well. Raises OSError
    after removing all folders that were made here.
    """
    paths = [folder / name for name in files]
    parents = {folder, *(path.parent for path in paths)}
    parents |= {ancestor for parent in parents for ancestor in parent.parents}
    missing = [parent for parent in parents if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            check_writable(path)
    except OSError:
        for parent in sorted(missing, reverse=True):  # the innermost first
            if parent.is_dir():
                parent.rmdir()
        raise


def open_stages(
    parser: Parser,
    options: argparse.Namespace,
    names: Iterable[str],
    config: Mapping[str, Any],
    files: Iterable[str],
) -> Stages:
    """The trainings of this run, resumed if --resume is given.

    Before anything is trained, this reads and checks `options.resume`, and checks that
    the trainings' files and `files` can be written into `options.out`. If not, the
    program ends with a one-line error.
    """
    try:
        stages = Stages(options.out, names, config, options.iterations, options.resume)
    except (OSError, ValueError) as error:
        parser.error(f"argument --resume: {reason(error)}")
    open_folder(parser, options, [*stages.files, *files])
    return stages


def open_folder(
    parser: Parser, options: argparse.Namespace, files: Iterable[str]
) -> None:
    """`prepare_folder` for `options.out`; the program ends if it cannot be written."""
    try:
        prepare_folder(options.out, files)
    except OSError as error:
        parser.error(f"argument --out: {reason(error)}")


def reason(error: Exception) -> str:
    """An error in one line, without error numbers."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}"
    return " ".join(str(error).split())


def run_to_the_end(parser: Parser, run: Callable[[], None], stopped: str) -> int:
    """Run; return the exit status: 0, 130 after Ctrl-C, 1 after a fault in the run.

    `stopped` is printed after Ctrl-C.
    """
    try:
        run()
    except KeyboardInterrupt:
        print(f"Stopped. {stopped}")
        return 130
    except (FloatingPointError, OSError) as error:
        print(f"{parser.prog}: error: {reason(error)}", file=sys.stderr)
        return 1
    return 0


def command_line(program: str, arguments: Sequence[str]) -> str:
    """The command that was given, ready to be pasted into a shell.

    >>> command_line("examples/sinusoid.py", ["--out", "my results"])
    "python examples/sinusoid.py --out 'my results'"
    """
    return as_started(shlex.join(["python", program, *arguments]))


def as_started(text: str) -> str:
    """The text with its commands as they are in an installed package, if this is one.

    `python -m tinymaml sinusoid` instead of `python examples/sinusoid.py`, if that is
    how this program was started.
    """
    if not sys.argv[0].startswith("python -m tinymaml "):
        return text
    command = re.compile(r"\bpython examples/(\w+)\.py")
    return command.sub(lambda m: f"python -m tinymaml {m[1].replace('_', '-')}", text)


def how_to_continue(command: str, stages: Stages) -> str:
    """What to print after Ctrl-C: the command that resumes this run."""
    return f"Continue with\n  {command} --resume {shlex.quote(str(stages.folder))}"


# --- numbers --------------------------------------------------------------------------


def random_stream(purpose: int, number: int) -> np.random.Generator:
    """Random numbers for one purpose of an experiment, such as its test tasks.

    Streams of different purposes are independent: how many numbers one of them uses
    changes nothing in the others. `number` is the seed, or counts within the purpose.
    """
    return np.random.default_rng([purpose, number])


def mean_and_interval(values: np.ndarray) -> tuple[float, float]:
    """Mean and half-width of the 95 % interval of numbers (N,), in float64.

    The half-width is 1.96 standard deviations / sqrt(N), as in the authors' code. If
    there are no numbers, both are NaN.

    >>> mean_and_interval(np.array([1.0, 3.0]))
    (2.0, 1.3859292911256331)
    """
    values = np.asarray(values, np.float64)
    if len(values) == 0:
        return math.nan, math.nan
    with np.errstate(all="ignore"):  # the interval of infinite values is NaN
        interval = 1.96 * values.std() / math.sqrt(len(values))
    return float(values.mean()), float(interval)


def text_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in plain text: the first column to the left, the others to the right.

    >>> print(text_table(["method", "MSE"], [["MAML", "0.35"]]))
    method   MSE
    MAML    0.35
    """
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            text.rjust(width) if column else text.ljust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


# --- files ----------------------------------------------------------------------------


def write_results(
    experiment: str,
    command: str,
    options: argparse.Namespace,
    backend: Backend,
    seconds: Mapping[str, float],
    rows: Sequence[Mapping[str, Any]],
    **more: Any,
) -> None:
    """Write `results.json` into `options.out`, as `write_json` does.

    `more` has further facts about the run, which are written before its rows.
    """
    from tinymaml import __version__

    results = {
        "experiment": experiment,
        "command": command,
        "version": __version__,
        "seed": options.seed,
        "iterations": options.iterations,
        "backend": backend.name,
        "seconds": seconds,
        **more,
        "rows": rows,
    }
    write_json(options.out / "results.json", results)


def write_json(path: str | os.PathLike[str], results: Mapping[str, Any]) -> None:
    """Write JSON, completely or not at all; NaN and infinity become null."""
    text = json.dumps(_finite(results), indent=1, allow_nan=False, ensure_ascii=False)
    with write_atomically(path) as file:
        file.write(text.encode() + b"\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value


def save_figure(figure: "Figure", path: str | os.PathLike[str]) -> None:
    """Write a figure as PNG, completely or not at all."""
    encoded = io.BytesIO()
    figure.savefig(encoded, format="png", dpi=150)
    with write_atomically(path) as file:
        file.write(encoded.getbuffer())
