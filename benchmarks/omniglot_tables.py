"""The tables of the image benchmark, and the claims that it tests.

Left out: the workspace against inner steps, which needs the networks.
"""

from collections.abc import Sequence

from benchmarks import common, long_steps
from benchmarks.common import Row, verdict
from benchmarks.peers import JAX_MAP, JAX_VMAP, LOOP, VMAP

TINYMAML_NUMBA, RECOMPUTE = common.REFERENCE, f"{common.REFERENCE}, recompute"
TINYMAML_NUMPY = "tinymaml numpy"
PROCESSES = "PyTorch processes"
# (case, implementations, how many times slower than tinymaml they must be), exact steps
SPEED_CLAIMS: tuple[tuple[str, tuple[str, ...], float], ...] = (
    ("5w1s", (LOOP,), 5.0),
    ("5w1s", (JAX_VMAP, JAX_MAP), 5.0),
    ("5w1s", (PROCESSES,), 3.0),
    *(
        (case, names, least)
        for case, least in (("20w1s", 3.0), ("mini-5w1s", 2.0))
        for names in ((LOOP,), (PROCESSES,), (VMAP,), (JAX_VMAP, JAX_MAP))
    ),
)


def work_of(case: str) -> str:
    """The name of the work of a case, as in its rows."""
    from tinymaml.paper.recipes import RECIPES

    recipe = RECIPES[case]
    plural = "s" * (recipe.steps > 1)
    return f"{case}, {recipe.tasks} tasks, {recipe.steps} step{plural}"


def times_table(measurement: long_steps.Measurement, flops: int, threads: int) -> str:
    """Times, ratios, fraction of the matmul peak, memory before and at the peak."""
    header = ["implementation", "order", "threads", *common.TIMES, "GFLOP/s"]
    header += ["of peak", "before MB", "peak MB", "error"]
    cells = []
    for row, before, error in zip(
        measurement.rows, measurement.before, measurement.errors, strict=True
    ):
        speed = flops / row.median_seconds
        cells.append(
            [row.implementation, str(row.order), str(row.threads)]
            + [*common.times_of(row), f"{speed / 1e9:.3g}"]
            + [f"{speed / (measurement.peak * row.threads):.1%}"]
            + [common.megabytes(before), common.megabytes(row.peak_bytes)]
            + [f"{error:.0e}"]
        )
    lines = [common.markdown_table(header, cells), ""]
    lines += [
        f"Matmul peak: {measurement.peak / 1e9:.0f} GFLOP/s (float32) on one thread, "
        f"taken {threads} times on {threads}. One step: {flops / 1e9:.1f} GFLOP by "
        "tinymaml's tape.",
        "Before, peak: resident memory of the process before its first call, and at "
        "most.",
    ]
    return "\n".join(lines)


def order_table(rows: Sequence[Row]) -> str:
    """What first-order MAML saves; the paper says roughly 33 % (section 5.2)."""
    header = ["work", "implementation", "threads", "exact ms", "first-order ms"]
    header += ["exact / first-order", "faster by", "time saved"]
    exact = {(r.work, r.implementation): r for r in rows if r.order == 2}
    # tinymaml has a row for 1 thread and one for N threads; the last one wins.
    first = {(r.work, r.implementation): r for r in rows if r.order == 1}
    cells = []
    for key, row in first.items():
        if key in exact:
            ratio = exact[key].median_seconds / row.median_seconds
            cells.append(
                [*key, str(row.threads)]
                + [common.milliseconds(exact[key].median_seconds)]
                + [common.milliseconds(row.median_seconds)]
                + [f"{ratio:.2f}", f"{ratio - 1:.0%}", f"{1 - 1 / ratio:.0%}"]
            )
    return common.markdown_table(header, cells)


def claims_table(rows: Sequence[Row], workspaces: dict[str, int]) -> str:
    """The claims about tinymaml beside the measured values."""
    cells = []
    exact = [row for row in rows if row.order == 2]
    for case, names, least in SPEED_CLAIMS:
        ratios = {
            row.implementation: row.ratio
            for row in exact
            if row.work == work_of(case) and row.implementation in names
            if row.ratio is not None
        }
        if ratios:
            best = min(ratios, key=lambda name: ratios[name])
            claim = f"{case}: {least:g} times faster than {best}"
            cells.append(verdict(claim, ratios[best], ">=", least))
    if "5w1s" in workspaces:
        claim = "5w1s: workspace of a thread"
        cells.append(verdict(claim, workspaces["5w1s"] / 1e6, "<=", 12, " MB"))
    ours = [
        r
        for r in exact
        if r.work == work_of("20w1s") and r.implementation == TINYMAML_NUMBA
    ]
    peaks = [row.peak_bytes for row in ours if row.peak_bytes is not None]
    if peaks:
        claim = "20w1s: peak memory in all"
        cells.append(verdict(claim, max(peaks) / 1e6, "<=", 1000, " MB"))
    return common.markdown_table(["claim", "measured", "bound", ""], cells)
