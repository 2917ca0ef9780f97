"""One table from the results of several seeds, with the interval over seeds.

    python examples/seeds.py results/seed*/results.json

Reads the `results.json` of any experiment here; writes nothing. For each method, order,
number of shots and number of steps it prints the mean over seeds, the half-width of its
95 % interval (Student's t, seeds as samples) and the value of every seed, in Markdown.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from scipy.stats import t as student

METRICS = ("mse", "accuracy", "return")


def interval(values: Sequence[float]) -> float:
    """Half-width of the 95 % interval of a mean of at least two values."""
    width = student.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
    return float(width)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run with command-line arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, help="results.json, one a seed")
    parser.add_argument("--shots", type=int, default=5, help="K (default: 5)")
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[1, 5, 10], help="(default: 1 5 10)"
    )
    options = parser.parse_args(arguments)
    values: dict[tuple[str, int | None, int], list[float | None]] = defaultdict(list)
    papers: dict[tuple[str, int | None, int], float | None] = {}
    for file in options.files:
        for row in json.loads(file.read_text(encoding="utf-8"))["rows"]:
            if row["shots"] == options.shots and row["steps"] in options.steps:
                key = (row["method"], row["order"], row["steps"])
                values[key].append(next(row[m] for m in METRICS if m in row))
                papers[key] = row["paper"]
    print("| method | order | steps | paper | mean | 95 % | each seed |")
    print("|---|---:|---:|---:|---:|---:|---|")
    for (method, order, steps), found in values.items():
        finite = [value for value in found if value is not None]
        whole = len(finite) == len(found)
        cells = (
            method,
            order or "",
            steps,
            papers[method, order, steps] or "",
            f"{mean(finite):.3g}" if whole else "not finite",
            f"{interval(finite):.2g}" if whole and len(finite) > 1 else "",
            ", ".join("inf" if v is None else f"{v:.3g}" for v in found),
        )
        print("| " + " | ".join(str(cell) for cell in cells) + " |")


if __name__ == "__main__":
    main()
