"""The benchmarks on a graphics card: `--backend cupy` of sinusoid.py and omniglot.py.

    python benchmarks/sinusoid.py --backend cupy        # float32 products
    python benchmarks/omniglot.py --backend cupy-tf32   # TF32 products, for all

Each piece of work is done on one card by tinymaml, by PyTorch (a loop over tasks, vmap,
torch.compile) and by JAX (jit). First every gradient is compared with tinymaml's on the
processor in float64; then all are timed in turn, from arrays on the host to a gradient
on the host (`devices.py`), beside a large matrix product. The last table says whether
the targets are met.

Left out: start-up, memory of the card, several cards.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import common, long_steps, measure, workers
from benchmarks.common import Row
from benchmarks.measure import Bench, Implementation
from benchmarks.peers import COMPILED, GRAPHS, JAX_VMAP, LOOP, VMAP
from benchmarks.workers import Build, Limits

DEVICE = "cuda"
BACKENDS = ("numba", "cupy", "cupy-tf32")
BUDGET = {True: 20.0, False: 90.0}  # quick -> seconds of timing for a work and order
# torch.compile of five inner steps takes minutes, and gigabytes of the host's memory.
LIMITS = Limits(start_seconds=600, step_seconds=60, bytes=32e9)
QUICK_LIMITS = LIMITS._replace(start_seconds=75)
# Each prints True if the library computes on a card.
PROBES = {
    "torch": "import torch; print(torch.cuda.is_available())",
    "jax": "import jax; print(jax.default_backend() == 'gpu')",
}
LIBRARIES = ("cupy", "nvidia-", "jax-cuda", "triton")  # how their packages' names begin


class Tolerance(NamedTuple):
    """The largest error of a gradient, relative to its norm.

    The gradient of the other order is off by 0.9 or more.
    """

    float32: float
    tf32: float  # the factors of a product have 11 bits, its sum has 24


class Work(NamedTuple):
    """One piece of work, the implementations that do it, and tinymaml's target."""

    name: str
    bench: Bench
    competitors: list[Implementation]
    flops: dict[int, int]  # order -> FLOPs of one step
    target: float | None = None  # an exact step, times faster than the best peer


Works = Callable[[Path, argparse.Namespace], Iterator[Work]]


# --- the card -------------------------------------------------------------------------


def refusal(backend: str) -> str | None:
    """Why tinymaml cannot use this backend here, None if it can."""
    from tinymaml import get_backend

    try:
        get_backend(backend)
    except ImportError as error:
        return str(error)
    return None


def computes_on_card(module: str) -> bool:
    """Whether a library finds a card, tried in a process of its own that then ends."""
    command = [sys.executable, "-c", PROBES[module]]
    result = subprocess.run(command, capture_output=True, text=True)
    return result.stdout.split()[-1:] == ["True"]


def driver_version(bus: str) -> str | None:
    """The driver version of the card at this PCI address, None if it is unknown."""
    command = ["nvidia-smi", f"--id={bus}", "--query-gpu=driver_version"]
    try:
        result = subprocess.run(
            [*command, "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()


def describe_card() -> dict[str, Any]:
    """The facts about the card that explain the numbers, as JSON values."""
    import cupy

    device, runtime = cupy.cuda.Device(), cupy.cuda.runtime
    facts = runtime.getDeviceProperties(device.id)
    # What a broken installation has left behind may have no name.
    found = [(d.metadata["Name"] or "", d.version) for d in distributions()]
    names = {name.lower(): version for name, version in found}
    return {
        "name": facts["name"].decode(),
        "memory_bytes": int(facts["totalGlobalMem"]),
        "compute_capability": device.compute_capability,
        "driver": driver_version(device.pci_bus_id),
        "cuda_driver": cuda_version(runtime.driverGetVersion()),
        "cuda_runtime": cuda_version(runtime.runtimeGetVersion()),
        "libraries": {
            n: v for n, v in sorted(names.items()) if n.startswith(LIBRARIES)
        },
    }


def cuda_version(number: int) -> str:
    """CUDA's version number as text.

    >>> cuda_version(12040)
    '12.4'
    """
    return f"{number // 1000}.{number % 1000 // 10}"


def print_card(card: dict[str, Any]) -> None:
    """Print the description."""
    print(
        f"{card['name']}, {common.megabytes(card['memory_bytes'])} MB, compute "
        f"capability {card['compute_capability']}, driver {card['driver'] or '?'}, "
        f"CUDA {card['cuda_driver']} (driver), {card['cuda_runtime']} (runtime)"
    )
    print(", ".join(f"{name} {version}" for name, version in card["libraries"].items()))


# --- what is compared -----------------------------------------------------------------


def add_option(parser: argparse.ArgumentParser) -> None:
    """The option of the benchmarks that can be run on a card."""
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default="numba",
        help="numba: on the processor; cupy: everything on a graphics card; cupy-tf32: "
        "the same with products in TF32 (default: %(default)s)",
    )


def implementations(
    options: argparse.Namespace, loop_forms: Sequence[str], vmap_forms: Sequence[str]
) -> list[Implementation]:
    """What is compared on a card, tinymaml first."""
    compiled_forms = [*(form + GRAPHS for form in vmap_forms), vmap_forms[0]]
    candidates = [
        Implementation(f"tinymaml {options.backend}", "tinymaml", (1,)),
        Implementation(LOOP, "torch", (1,), tuple(loop_forms)),
        Implementation(VMAP, "torch", (1,), tuple(vmap_forms)),
        Implementation(COMPILED, "torch", (1,), tuple(compiled_forms)),
        Implementation(JAX_VMAP, "jax", (1,), tuple(vmap_forms)),
    ]
    left_out: dict[str, str] = {}
    for module in options.peers:
        if find_spec(module) and not computes_on_card(module):
            version = common.installed_version(module)
            reason = f"{module} {version} finds no graphics card"
            left_out |= {one.name: reason for one in candidates if one.module == module}
    return measure.to_compare(candidates, options.peers, left_out)


def settings(options: argparse.Namespace, tolerance: Tolerance) -> dict[str, Any]:
    """The fields of a Bench that differ on a card."""
    tf32 = options.backend == "cupy-tf32"
    return {
        "device": DEVICE,
        "tf32": tf32,
        "tolerances": {"float32": tolerance.tf32 if tf32 else tolerance.float32},
        "limits": QUICK_LIMITS if options.quick else LIMITS,
    }


# --- the benchmark --------------------------------------------------------------------


def times_table(measurement: long_steps.Measurement, flops: int) -> str:
    """Times, ratios, launches, fraction of the matmul peak, error of the gradient."""
    header = ["implementation", "order", *common.TIMES, "launches", "GFLOP/s"]
    header += ["of peak", "error"]
    cells = []
    for row, launches, error in zip(
        measurement.rows, measurement.launches, measurement.errors, strict=True
    ):
        speed = flops / row.median_seconds
        cells.append(
            [row.implementation, str(row.order), *common.times_of(row)]
            + ["" if launches is None else f"{launches:,}"]
            + [common.three_digits(speed / 1e9)]
            + [f"{speed / measurement.peak:.2%}", f"{error:.0e}"]
        )
    return "\n".join(
        [
            common.markdown_table(header, cells),
            "",
            f"Matmul peak: {measurement.peak / 1e9:,.0f} GFLOP/s. One step: "
            f"{flops / 1e9:.3g} GFLOP by tinymaml's tape.",
        ]
    )


def targets_table(rows: Sequence[Row], targets: dict[str, float]) -> str:
    """The targets for exact steps against the best peer, and whether they are met."""
    cells = []
    for work, least in targets.items():
        ratios = {
            row.implementation: row.ratio
            for row in rows
            if (row.work, row.order) == (work, 2) and row.ratio is not None
            if not row.implementation.startswith("tinymaml")
        }
        if ratios:
            best = min(ratios, key=lambda name: ratios[name])
            claim = f"{work}: {least:g} times faster than {best}"
            cells.append(common.verdict(claim, ratios[best], ">=", least))
        else:
            cells.append([f"{work}: no peer to compare with", "", f">= {least:g}", "?"])
    return common.markdown_table(["target", "measured", "bound", ""], cells)


def run(
    works: Iterator[Work], reference: str, quick: bool
) -> tuple[list[Row], dict[str, Any]]:
    """Check and time each piece of work; the rows, and what else the JSON holds."""
    rows: list[Row] = []
    targets: dict[str, float] = {}
    details: dict[str, Any] = {}
    for work in works:
        for order, flops in work.flops.items():
            measurement = long_steps.measure_steps(
                work.bench, work.competitors, work.name, order, BUDGET[quick]
            )
            measurement = measurement._replace(
                rows=common.with_ratios(measurement.rows, reference)
            )
            print(f"\n### {work.name}, order {order}\n")
            print(times_table(measurement, flops))
            rows += measurement.rows
            names = [row.implementation for row in measurement.rows]
            details[f"{work.name}, order {order}"] = {
                "flops": flops,
                "matmul_gflops": measurement.peak / 1e9,
                "launches": dict(zip(names, measurement.launches, strict=True)),
                "errors": dict(zip(names, measurement.errors, strict=True)),
            }
        if work.target is not None:
            targets[work.name] = work.target
    if targets:
        print("\n### Targets\n")
        print(targets_table(rows, targets))
    return rows, details


def main(options: argparse.Namespace, build: Build, works: Works) -> int:
    """Run a benchmark on a card, if there is one; the exit status."""
    reason = refusal(options.backend)
    if reason is not None:
        print(f"--backend {options.backend}: {reason}", file=sys.stderr)
        return 1

    def run_all(
        folder: Path, machine: dict[str, Any]
    ) -> tuple[list[Row], dict[str, Any]]:
        machine["gpu"] = describe_card()
        print_card(machine["gpu"])
        reference = f"tinymaml {options.backend}"
        rows, details = run(works(folder, options), reference, options.quick)
        return rows, {"details": details}

    return workers.run_benchmark(options, build, run_all)
