"""One table from the results of several seeds, with the interval over seeds.

    python examples/seeds.py results/seed*/results.json

Reads the `results.json` of sinusoid.py, omniglot.py, miniimagenet.py, navigation.py,
locomotion.py or compare.py and writes nothing. For each method, order and number of
gradient steps it prints, in Markdown, the mean over seeds, the half-width of its 95 %
interval (Student's t, one sample for each seed) and the value of each seed. Images have
a line for each normalisation of query examples, transductive and by support statistics.
A method of compare.py has one line at equal iterations and one at equal time. Needs
SciPy, for the quantiles of Student's t.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from shared import (
    file_path,
    plain_parser,
    read_json,
    reason,
    run_to_the_end,
    whole_number,
)
from tinymaml.checks import real_number

Row = dict[str, Any]
METRICS = ("mse", "accuracy", "return")
STATISTICS = {"batch": ", transductive", "support": ", support statistics"}


def interval(values: Sequence[float]) -> float:
    """Half-width of the 95 % interval of the mean of at least two values."""
    try:
        from scipy.stats import t as student
    except ImportError:
        program = Path(sys.argv[0]).name  # compare.py has intervals over seeds, too
        missing = 'SciPy is missing: pip install "tinymaml[seeds]"'
        raise SystemExit(f"{program}: error: {missing}") from None
    quantile = float(student.ppf(0.975, len(values) - 1))
    return quantile * stdev(values) / len(values) ** 0.5


def read_rows(file: Path) -> list[Row]:
    """The rows of a results.json, with its metric under "value".

    Raises ValueError if it is another file.
    """

    def parse(results: Any) -> list[Row]:
        for row in results["rows"]:
            row["value"] = next(row[metric] for metric in METRICS if metric in row)
            for key in ("value", "paper"):
                if row[key] is not None:
                    row[key] = real_number(key, row[key])
            {(row[key], row["paper"]) for key in ("method", "order", "steps", "shots")}
        return list(results["rows"])

    expected = "the results.json of an experiment with seeds"
    rows: list[Row] = read_json(file, expected, parse)
    return rows


def table(options: argparse.Namespace) -> list[str]:
    """The lines of the table."""
    values: dict[tuple[str, int | None, int], list[float | None]] = defaultdict(list)
    papers: dict[tuple[str, int | None, int], float | None] = {}
    found: set[int] = set()
    for file in options.files:
        for row in read_rows(file):
            found.add(row["shots"])
            if row["shots"] == options.shots and row["steps"] in options.steps:
                name = row["method"] + STATISTICS.get(row.get("statistics", ""), "")
                name += f", {row['at']}" if "at" in row else ""
                key = (name, row["order"], row["steps"])
                values[key].append(row["value"])
                papers[key] = row["paper"]
    if not values:
        shots = ", ".join(map(str, sorted(found)))
        raise ValueError(
            f"expected results with --shots {options.shots} after one of --steps "
            f"{' '.join(map(str, options.steps))}, got those with {shots} shots"
        )
    lines = ["| method | order | steps | paper | mean | 95 % | each seed |"]
    lines.append("|---|---:|---:|---:|---:|---:|---|")
    for (method, order, steps), seeds in values.items():
        finite = [value for value in seeds if value is not None]  # null: inf or NaN
        all_finite = len(finite) == len(seeds)
        cells = (
            method,
            order or "",
            steps,
            papers[method, order, steps] or "",
            f"{mean(finite):.3g}" if all_finite else "not finite",
            f"{interval(finite):.2g}" if all_finite and len(finite) > 1 else "",
            ", ".join("inf" if v is None else f"{v:.3g}" for v in seeds),
        )
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with command-line arguments; return the exit status."""
    parser = plain_parser(__doc__ or "")
    parser.add_argument(
        "files", nargs="+", type=file_path, help="results.json, one for each seed"
    )
    parser.add_argument(
        "--shots", type=whole_number(1), default=5, help="K (default: 5)"
    )
    parser.add_argument(
        "--steps",
        type=whole_number(0),
        nargs="+",
        default=[1, 5, 10],
        help="numbers of gradient steps (default: 1 5 10)",
    )

    def run() -> None:
        try:
            print("\n".join(table(parser.parse_args(arguments))))
        except (OSError, ValueError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            parser.error(f"argument files: {reason(error)}")

    return run_to_the_end(parser, run)


if __name__ == "__main__":
    sys.exit(main())
