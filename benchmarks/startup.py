"""Start-up times: imports, cold starts, warm starts.

Every sample is a fresh process. A start runs from starting Python to the first
meta-gradient in hand; it is cold if every library's compile cache is an empty folder,
and warm with the caches that the cold start has filled.

Left out: the disk's own cache. Files of the libraries have been read before.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.common import Row, row_of
from benchmarks.measure import Bench, Variant, prepared


def import_seconds(module: str) -> float:
    """The time that `import module` takes in a fresh interpreter."""
    code = (
        "import time; start = time.perf_counter()\n"
        f"import {module}\n"
        "import json; print(json.dumps(time.perf_counter() - start))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[1],  # where `import tinymaml` finds it
    )
    return float(json.loads(result.stdout.splitlines()[-1]))


def measure_imports(bench: Bench, modules: Mapping[str, tuple[str, int]]) -> list[Row]:
    """Rows of import times; modules: implementation -> (module, threads)."""
    samples: dict[str, list[float]] = {name: [] for name in modules}
    for _ in range(bench.rounds(3, 7)):
        for name, (module, _) in modules.items():
            samples[name].append(import_seconds(module))
    return [
        row_of(samples[name], "import", name, 2, threads, None)
        for name, (_, threads) in modules.items()
    ]


def time_start(
    bench: Bench, variant: Variant, order: int, caches: str, kind: str
) -> tuple[float, int | None] | None:
    """(seconds, peak bytes) of one start; None, with one line, where a peer fails.

    caches is the folder of the compile caches. kind, cold or warm, is for the line.
    """
    folders = {
        "NUMBA_CACHE_DIR": f"{caches}/numba",
        "TORCHINDUCTOR_CACHE_DIR": f"{caches}/inductor",
        "JAX_COMPILATION_CACHE_DIR": f"{caches}/jax",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    start = time.perf_counter()
    with bench.start(variant.threads, folders) as worker:
        worker.send("prepare", **bench.request(variant, order))
        reply = prepared(variant, worker, f"{kind} start")
        seconds = time.perf_counter() - start
    return None if reply is None else (seconds, reply["peak_bytes"])


def time_starts(
    bench: Bench, variant: Variant, order: int
) -> dict[str, list[tuple[float, int | None]]]:
    """The cold and the warm starts of a variant; empty where a peer fails."""
    starts: dict[str, list[tuple[float, int | None]]] = {"cold": [], "warm": []}
    colds, warms = bench.rounds(1, 3), bench.rounds(2, 5)
    for cold in range(colds):
        with tempfile.TemporaryDirectory() as caches:  # empty: the first start is cold
            for kind in ["cold"] + ["warm"] * (warms if cold == colds - 1 else 0):
                measured = time_start(bench, variant, order, caches, kind)
                if measured is None:
                    return {}
                starts[kind].append(measured)
    return starts


def measure_start(
    bench: Bench, variants: Sequence[Variant], work: str, order: int
) -> list[Row]:
    """Rows of cold and warm starts of each variant."""
    rows = []
    for variant in variants:
        name = variant.implementation.name
        starts = time_starts(bench, variant, order)
        known = [peak for _, peak in sum(starts.values(), []) if peak is not None]
        peak = max(known, default=None)
        for kind, measured in starts.items():
            seconds = [seconds for seconds, _ in measured]
            what = f"{work}, {kind} start"
            rows.append(row_of(seconds, what, name, order, variant.threads, peak))
    return rows
