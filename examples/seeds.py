"""One table from the results of several seeds, with the interval over seeds.

    python examples/seeds.py results/seed*/results.json
    python examples/seeds.py results/seed*/results.json --shots 1 --steps 3

Reads the `results.json` of sinusoid.py, omniglot.py, miniimagenet.py, navigation.py,
locomotion.py or compare.py and writes nothing. For each method, order and number of
gradient steps it prints, in Markdown, the mean over seeds, the half-width of its 95 %
interval (Student's t, one sample for each seed) and the value of each seed. Runs of one
line must differ in their seeds alone; others are refused. Images have a line for each
normalisation of query examples, transductive and by support statistics. A method of
compare.py has one line at equal iterations and one at equal time, in which each seed
has its own number of outer steps. Needs SciPy, for the quantiles of Student's t.
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
    without,
)
from tinymaml.checks import real_number

Row = dict[str, Any]
METRICS = ("mse", "accuracy", "return")
LABELS = ("method", "order", "steps", "shots", "paper", "seed")  # of a row
STATISTICS = {"batch": ", transductive", "support": ", support statistics"}
# Entries of a results.json that are measured or differ from seed to seed. All others
# are settings.
NO_SETTINGS = frozenset(
    "accepted_steps backend baseline_iterations best_iteration command costs curves "
    "equal_seconds one_shot returns_by_goal rows seconds seed tested validation "
    "version".split()
)


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


def read_results(file: Path) -> dict[str, Any]:
    """A results.json; its rows have their metric under "value", and their seed.

    Raises ValueError if it is another file.
    """

    def parse(results: Any) -> dict[str, Any]:
        for row in results["rows"]:
            row["value"] = next(row[metric] for metric in METRICS if metric in row)
            for key in ("value", "paper"):
                if row[key] is not None:
                    row[key] = real_number(key, row[key])
            row.setdefault("seed", results.get("seed"))
            hash(tuple(row[label] for label in LABELS))
            texts = [row["method"], row.get("statistics", ""), row.get("at", "")]
            fits = all(isinstance(text, str) for text in texts)
            if not fits or {type(row["shots"]), type(row["steps"])} != {int}:
                raise TypeError("a row of another kind")
        return dict(results)

    expected = "the results.json of an experiment with seeds"
    results: dict[str, Any] = read_json(file, expected, parse)
    return results


def settings_of(results: Row, row: Row) -> Row:
    """The settings under which a row was trained and tested."""
    settings = {k: v for k, v in results.items() if k not in NO_SETTINGS}
    # Its own, where methods of a run have different ones. At equal time it is what the
    # time allowed, by costs that are measured.
    if "iterations" in row and row.get("at") != "equal time":
        settings["iterations"] = row["iterations"]
    if row["method"] != "context":
        settings.pop("context", None)
    if settings.get("initialisation"):  # the command that made it
        made_by = without(str(settings["initialisation"]), "--seed", "--threads")
        settings["initialisation"] = made_by
    return settings


class Line:
    """One line of the table: the value of each seed."""

    def __init__(self, paper: float | None) -> None:
        self.paper = paper
        self.values: list[float | None] = []
        self.seeds: set[int] = set()
        self.settings: Row = {}  # those of all runs until now

    def add(self, file: Path, settings: Row, row: Row) -> None:
        """Take a row of a run.

        Raises ValueError if its run differs from an earlier one in a setting that both
        have, or has a seed that is here already.
        """
        for name in sorted(settings.keys() & self.settings.keys()):
            ours, theirs = settings[name], self.settings[name]
            if ours != theirs:
                raise ValueError(
                    f"{file}: expected a run of {row['method']} that differs in its "
                    f"seed alone, got {name} {ours!r} and not {theirs!r}"
                )
        if row["seed"] in self.seeds:
            raise ValueError(
                f"{file}: expected another seed of {row['method']}, got {row['seed']} "
                "once more"
            )
        if row["seed"] is not None:  # older results have none, and `nearest` has none
            self.seeds.add(row["seed"])
        self.settings |= settings
        self.values.append(row["value"])


def table(options: argparse.Namespace) -> list[str]:
    """The lines of the table."""
    found: dict[tuple[str, int | None, int], Line] = {}
    steps_of: dict[int, set[int]] = defaultdict(set)  # by number of shots
    for file in options.files:
        results = read_results(file)
        for row in results["rows"]:
            steps_of[row["shots"]].add(row["steps"])
            if row["shots"] == options.shots and row["steps"] in options.steps:
                name = row["method"] + STATISTICS.get(row.get("statistics", ""), "")
                name += f", {row['at']}" if "at" in row else ""
                key = (name, row["order"], row["steps"])
                line = found.setdefault(key, Line(row["paper"]))
                line.add(file, settings_of(results, row), row)
    if not found:
        there = f"{', '.join(map(str, sorted(steps_of)))} shots"
        if options.shots in steps_of:
            numbers = map(str, sorted(steps_of[options.shots]))
            there = f"these shots after {', '.join(numbers)}"
        raise ValueError(
            f"expected results with --shots {options.shots} after one of --steps "
            f"{' '.join(map(str, options.steps))}, got those with {there}"
        )
    lines = ["| method | order | steps | paper | mean | 95 % | each seed |"]
    lines.append("|---|---:|---:|---:|---:|---:|---|")
    for (method, order, steps), line in found.items():
        finite = [value for value in line.values if value is not None]  # or inf, NaN
        all_finite = len(finite) == len(line.values)
        cells = (
            method,
            order or "",
            steps,
            line.paper or "",
            f"{mean(finite):.3g}" if all_finite else "not finite",
            f"{interval(finite):.2g}" if all_finite and len(finite) > 1 else "",
            ", ".join("inf" if v is None else f"{v:.3g}" for v in line.values),
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
