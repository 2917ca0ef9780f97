"""One table from the results of several seeds, with the interval over seeds.

    python examples/seeds.py results/seed*/results.json

Reads the `results.json` of any experiment here and writes nothing. For each method,
order and number of gradient steps it prints, in Markdown, the mean over seeds, the
half-width of its 95 % interval (Student's t, one sample for each seed) and the value of
each seed. Needs SciPy, for the quantiles of Student's t.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

METRICS = ("mse", "accuracy", "return")


def interval(values: Sequence[float]) -> float:
    """Half-width of the 95 % interval of the mean of at least two values."""
    try:
        from scipy.stats import t as student
    except ImportError:
        message = 'seeds.py: error: SciPy is missing: pip install "tinymaml[seeds]"'
        raise SystemExit(message) from None
    quantile = float(student.ppf(0.975, len(values) - 1))
    return quantile * stdev(values) / len(values) ** 0.5


def main(arguments: Sequence[str] | None = None) -> None:
    """Run with command-line arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "files", nargs="+", type=Path, help="results.json, one for each seed"
    )
    parser.add_argument("--shots", type=int, default=5, help="K (default: 5)")
    parser.add_argument(
        "--steps",
        type=int,
        nargs="+",
        default=[1, 5, 10],
        help="numbers of gradient steps (default: 1 5 10)",
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
        print("| " + " | ".join(str(cell) for cell in cells) + " |")


if __name__ == "__main__":
    main()
