"""Choosing and timing implementations whose calls take up to a minute and gigabytes.

`measure.py` starts all variants of an implementation together and times batches of
calls for a fixed number of rounds. Here one variant at a time is started, checked and
tried, under `Limits` of time and memory, and the number of rounds follows from the time
of one round. The last step is the same: the chosen variants are timed in turn.

Left out: float64, which is `measure.check_float64`.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from benchmarks import measure
from benchmarks.common import Row, milliseconds, row_of
from benchmarks.measure import PEAK, Bench, Implementation, Runner, Variant
from benchmarks.workers import Limits, Worker, WorkerError

LIMITS = Limits(start_seconds=300, step_seconds=60, bytes=8e9)
MIN_ROUNDS, MAX_ROUNDS = (3, 5), (7, 40)  # (quick, full)


class Measurement(NamedTuple):
    """The rows of one piece of work, with more facts about each of them."""

    rows: list[Row]
    before: list[int | None]  # peak memory of each row's process before its first call
    errors: list[float]  # of each row's gradient
    peak: float  # FLOP/s of the matrix product on one thread, or on the card
    launches: Sequence[int | None] = ()  # of each row in one call, on a card


def variants_of(bench: Bench, implementation: Implementation) -> list[Variant]:
    """Every form (`--quick`: only the first) on every number of threads."""
    forms = implementation.forms[: 1 if bench.quick else None]
    return [
        Variant(implementation, f, t) for f in forms for t in implementation.threads
    ]


def try_once(bench: Bench, variant: Variant, order: int, stack: ExitStack) -> Any:
    """(seconds of a call, worker, error of its gradient), or None if it is left out."""
    worker = stack.enter_context(bench.start(variant.threads))
    worker.send("prepare", **bench.request(variant, order))
    if not measure.agrees(bench, variant, worker, order, "float32"):
        worker.close()
        return None
    limits = bench.limits or LIMITS
    try:
        worker.send("time", seconds=measure.BATCH)
        twice = limits._replace(start_seconds=2 * limits.step_seconds)
        seconds = worker.receive(twice)["seconds"]
        if seconds > limits.step_seconds:
            raise WorkerError(f"{seconds:.0f} s a step")
    except WorkerError as error:
        worker.close()
        print(f"skipped: {variant.implementation.name} ({variant}): {error}")
        return None
    return seconds, worker, bench.errors[-1] if bench.errors else 0.0


def fastest(
    bench: Bench, implementation: Implementation, order: int, stack: ExitStack
) -> tuple[Runner, float, float] | None:
    """The fastest variant, its seconds and its error; the others are closed."""
    best, trials = None, []
    for variant in variants_of(bench, implementation):
        trial = try_once(bench, variant, order, stack)
        if trial is None:
            continue
        seconds, worker, error = trial
        trials.append(f"{variant} {milliseconds(seconds)} ms")
        if best is not None and best[1] <= seconds:
            worker.close()
            continue
        if best is not None:
            best[0].worker.close()
        best = Runner(variant, worker), seconds, error
    if best is not None and len(trials) > 1:
        print(f"{implementation.name}: {best[0].variant} (tried: {'; '.join(trials)})")
    if best is not None:
        bench.fastest.setdefault(implementation.name, best[0].variant)
    return best


def rounds_for(round_seconds: float, budget: float, quick: bool) -> int:
    """The number of rounds that the budget allows, between a minimum and a maximum.

    >>> rounds_for(1.0, budget=20, quick=False), rounds_for(60, 20, quick=True)
    (20, 3)
    """
    full = not quick
    return max(MIN_ROUNDS[full], min(MAX_ROUNDS[full], int(budget / round_seconds)))


def measure_steps(
    bench: Bench,
    implementations: Sequence[Implementation],
    work: str,
    order: int,
    budget: float,
) -> Measurement:
    """Choose and check a variant of each implementation, then time them in turn.

    budget: seconds. A sample is the mean of a batch of calls, after some that are not
    timed (`workers.time_batch`).
    """
    with ExitStack() as stack:
        runners, round_seconds, errors = [], 0.0, []
        for implementation in (*implementations, Implementation(PEAK, "numpy", (1,))):
            best = fastest(bench, implementation, order, stack)
            if best is not None:
                runners.append(best[0])
                round_seconds += 2 * best[1]
                errors.append(best[2])
        measure.print_agreement(bench, f"float32, order {order}")
        samples = measure.interleave_with_progress(
            [runner.worker for runner in runners],
            rounds_for(round_seconds, budget, bench.quick),
            f"{work}, order {order}",
        )
        *runners, product = runners
        *samples, product_samples = samples
        rows, before, launches = [], [], []
        for (variant, worker), times in zip(runners, samples, strict=True):
            memory = worker.ask("memory")
            name, peak = variant.implementation.name, memory["peak_bytes"]
            rows.append(row_of(times, work, name, order, variant.threads, peak))
            before.append(memory["before_bytes"])
            if bench.device:
                launches.append(launches_of(bench, worker, name))
        speed = bench.peak_flops / min(product_samples)
    assert product.variant.implementation.name == PEAK
    return Measurement(rows, before, errors[:-1], speed, launches)


def launches_of(bench: Bench, worker: Worker, name: str) -> int | None:
    """Launches in one call, None if they are unknown: a profiler may fail."""
    worker.send("launches")
    try:
        return worker.receive(bench.limits or LIMITS)["launches"]
    except WorkerError as error:
        print(f"launches of {name} are not counted: {error}")
        return None
