"""What is compared and how: choose, check, time, start up, scale.

A benchmark gives a script (its workers run it), a folder of data and a list of
`Implementation`s; it gets back rows. In this order:

1. `check_float64` compares every implementation with the reference, to 1e-10.
2. `measure` starts each implementation in every form and on every number of threads,
   checks it to 1e-5 in float32 and keeps the fastest variant. These are then timed in
   turn, together with a large matrix product, whose speed is the peak of the machine.
3. `measure_scaling` takes growing numbers of tasks, a fresh process for each.

A peer that is missing or fails is skipped with one line that says why; one that
computes another gradient ends the benchmark.

Left out: start-up, which is in `startup.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from benchmarks import devices
from benchmarks.common import (
    TOLERANCES,
    Array,
    Row,
    check_agreement,
    milliseconds,
    row_of,
)
from benchmarks.workers import Limits, Worker, WorkerError, time_interleaved

BATCH = 0.03  # seconds of calls in one sample
PEAK = "matmul peak"
OWN_MODULES = ("tinymaml", "numpy")  # modules that must not fail


@dataclass(frozen=True)
class Implementation:
    """Something to measure: `forms` and `threads` are the ways and numbers to try."""

    name: str
    module: str
    threads: tuple[int, ...]
    forms: tuple[str, ...] = ("",)
    slow_to_compile: bool = False


class Variant(NamedTuple):
    """An implementation written in one way, on one number of threads."""

    implementation: Implementation
    form: str
    threads: int

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"{self.form}, {threads}" if self.form else threads


@dataclass
class Bench:
    """A running benchmark: its script and data, the variants that it has chosen.

    references: for each order the reference meta-gradient, in float64. device, tf32:
    see `devices.py`. fastest: for each implementation the variant that is timed.
    errors: those of the gradients checked since the last line that was printed.
    """

    script: Path
    folder: Path
    quick: bool
    references: dict[int, Array]
    tasks: int
    device: str = ""
    tf32: bool = False
    tolerances: Mapping[str, float] = field(default_factory=lambda: TOLERANCES)
    fastest: dict[str, Variant] = field(default_factory=dict)
    errors: list[float] = field(default_factory=list)
    limits: Limits | None = None

    def start(
        self, threads: int, environment: Mapping[str, str] | None = None
    ) -> Worker:
        """A fresh worker."""
        variables = devices.environment(self.device, self.tf32)
        return Worker(self.script, threads, {**variables, **(environment or {})})

    @property
    def peak_flops(self) -> int:
        """FLOPs of the matrix product that is the peak."""
        return 2 * devices.PEAK_SIZES[self.device] ** 3

    def rounds(self, quick: int, full: int) -> int:
        """The number of rounds, with `--quick` or without."""
        return quick if self.quick else full

    def request(self, variant: Variant, order: int, **changes: Any) -> dict[str, Any]:
        """The request that makes a worker build a variant and run it once."""
        return {
            "implementation": variant.implementation.name,
            "form": variant.form,
            "threads": variant.threads,
            "order": order,
            "dtype": "float32",
            "tasks": self.tasks,
            "device": self.device,
            "tf32": self.tf32,
            "folder": str(self.folder),
            **changes,
        }

    def check(self, label: str, result: Array, order: int, dtype: str) -> float:
        """The error of a result; raises DisagreementError if it is too large."""
        reference = self.references[order]
        return check_agreement(label, result, reference, self.tolerances[dtype])


class Runner(NamedTuple):
    """A variant and the worker that has built it and waits to run it."""

    variant: Variant
    worker: Worker


def available(implementations: Sequence[Implementation]) -> list[Implementation]:
    """The implementations whose module is installed; the others get a printed line."""
    installed = []
    for implementation in implementations:
        if implementation.module in OWN_MODULES or find_spec(implementation.module):
            installed.append(implementation)
        else:
            print(
                f"skipped: {implementation.name}: {implementation.module} is not "
                'installed (pip install -e ".[bench]")'
            )
    return installed


def to_compare(
    candidates: Sequence[Implementation],
    peers: Sequence[str],
    left_out: Mapping[str, str],
) -> list[Implementation]:
    """The candidates that are installed, named by --peers, and not in `left_out`.

    left_out: name -> reason. A line with the reason is printed for each candidate that
    is skipped.
    """
    remaining = []
    for one in candidates:
        if one.module not in (*OWN_MODULES, *peers):
            print(f"skipped: {one.name}: left out by --peers")
        elif one.name in left_out:
            print(f"skipped: {one.name}: {left_out[one.name]}")
        else:
            remaining.append(one)
    return available(remaining)


def check_float64(
    bench: Bench, implementations: Sequence[Implementation], every_form: bool = False
) -> list[Implementation]:
    """Compare gradients, orders 1 and 2, in float64; the implementations that agree.

    A peer that fails is not among them, nor is a form of it that fails. `--quick`
    checks tinymaml only, because the peers take too long. Without `every_form` only the
    first form of each is checked, and a peer in which that one fails is left out.
    """
    checked = []
    for implementation in implementations:
        if bench.quick and implementation.module not in OWN_MODULES:
            name = implementation.name
            print(f"{name}: its float64 gradients are left out by --quick")
            checked.append(implementation)
            continue
        forms = implementation.forms[: None if every_form else 1]
        failed = [
            form for form in forms if not works_in_float64(bench, implementation, form)
        ]
        if len(failed) < len(forms):
            rest = tuple(form for form in implementation.forms if form not in failed)
            checked.append(replace(implementation, forms=rest))
    print_agreement(bench, "float64")
    return checked


def works_in_float64(bench: Bench, implementation: Implementation, form: str) -> bool:
    """Whether a fresh worker could build both orders; their gradients must agree."""
    variant = Variant(implementation, form, 1)
    with bench.start(1, {"JAX_ENABLE_X64": "1"}) as worker:
        for order in bench.references:
            request = bench.request(variant, order, dtype="float64")
            worker.send("prepare", **request)
            if not agrees(bench, variant, worker, order, "float64"):
                return False
    return True


def prepared(
    variant: Variant, worker: Worker, what: str, limits: Limits | None = None
) -> dict[str, Any] | None:
    """The worker's reply to "prepare"; None, with one line, where a peer fails."""
    try:
        return worker.receive(limits)
    except WorkerError as error:
        if variant.implementation.module in OWN_MODULES:
            raise
        name = variant.implementation.name
        print(f"skipped: {name} ({variant}, {what}): {error}")
        return None


def agrees(
    bench: Bench, variant: Variant, worker: Worker, order: int, dtype: str
) -> bool:
    """Whether the worker could build the variant; its gradient must then agree."""
    what = f"order {order}, {dtype}"
    reply = prepared(variant, worker, what, bench.limits)
    if reply is None:
        return False
    name = variant.implementation.name
    if name != PEAK:
        label = f"{name} ({variant}, {what})"
        result = np.array(reply["result"])
        bench.errors.append(bench.check(label, result, order, dtype))
    return True


def print_agreement(bench: Bench, what: str) -> None:
    """Print how many gradients agree since the last call, and the largest error."""
    count = len(bench.errors)
    print(f"{what}: {count} gradients agree, largest error {max(bench.errors):.0e}")
    bench.errors.clear()


def variants_of(
    bench: Bench, implementation: Implementation, order: int
) -> list[Variant]:
    """The variants to try: every form on every number of threads.

    `--quick` tries one form only, and the numbers of threads once for both orders. An
    implementation that compiles slowly has then one variant, for order 2.
    """
    forms, threads = implementation.forms, implementation.threads
    if bench.quick:
        forms = forms[:1]
        if implementation.slow_to_compile:
            if order == 1:
                print(f"skipped: {implementation.name}: order 1 left out by --quick")
                return []
            threads = threads[:1]
        elif implementation.name in bench.fastest and len(threads) > 1:
            return [bench.fastest[implementation.name]]
    return [Variant(implementation, f, t) for f in forms for t in threads]


def start_all(
    bench: Bench,
    implementations: Sequence[Implementation],
    order: int,
    stack: ExitStack,
) -> list[Runner]:
    """Start a worker for every variant, all at once, and check the gradients."""
    runners = []
    for implementation in implementations:
        for variant in variants_of(bench, implementation, order):
            worker = stack.enter_context(bench.start(variant.threads))
            worker.send("prepare", **bench.request(variant, order))
            runners.append(Runner(variant, worker))
    return [one for one in runners if agrees(bench, *one, order, "float32")]


def choose(bench: Bench, candidates: Sequence[Runner]) -> Runner:
    """Time the variants of one implementation in turn; close all but the fastest.

    A variant that takes three times as long as the fastest in the first round is not
    timed again: a loop over tasks on two threads of a busy machine may take seconds.
    """
    best = 0
    name = candidates[0].variant.implementation.name
    if len(candidates) > 1:
        samples = time_interleaved([one.worker for one in candidates], 1, BATCH)
        limit = 3 * min(times[0] for times in samples)
        good = [i for i, times in enumerate(samples) if times[0] < limit]
        if len(good) > 1:
            more = time_interleaved([candidates[i].worker for i in good], 5, BATCH)
            for i, times in zip(good, more, strict=True):
                samples[i] = times
        medians = [median(times) for times in samples]
        best = min(good, key=lambda i: medians[i])
        texts = [
            f"{one.variant} {milliseconds(seconds)} ms"
            for one, seconds in zip(candidates, medians, strict=True)
        ]
        print(f"{name}: {candidates[best].variant} (tried: {'; '.join(texts)})")
    for one in candidates:
        if one is not candidates[best]:
            one.worker.close()
    bench.fastest.setdefault(name, candidates[best].variant)
    return candidates[best]


def measure(
    bench: Bench, implementations: Sequence[Implementation], work: str, order: int
) -> tuple[list[Row], dict[int, float]]:
    """Rows of one piece of work, and the peak FLOP/s by number of threads."""
    peaks = [
        Implementation(PEAK, "numpy", (threads,))
        for threads in sorted({t for i in implementations for t in i.threads})
    ]
    with ExitStack() as stack:
        competitors = [*implementations, *peaks]
        # Starting one after the other needs less memory, all together less time.
        groups = [competitors] if bench.quick else [[one] for one in competitors]
        runners = []
        for group in groups:
            all_runners = start_all(bench, group, order, stack)
            for implementation in group:
                candidates = [
                    s for s in all_runners if s.variant.implementation == implementation
                ]
                if candidates:
                    runners.append(choose(bench, candidates))
        print_agreement(bench, f"float32, order {order}")
        samples = interleave_with_progress(
            [runner.worker for runner in runners],
            bench.rounds(7, 40),
            f"order {order}",
        )
        rows, speeds = [], {}
        for (variant, worker), times in zip(runners, samples, strict=True):
            name = variant.implementation.name
            if name == PEAK:
                speeds[variant.threads] = bench.peak_flops / min(times)
                continue
            # The peak of a process that did this work and nothing else.
            peak = worker.ask("memory")["peak_bytes"]
            rows.append(row_of(times, work, name, order, variant.threads, peak))
    return rows, speeds


def interleave_with_progress(
    workers: Sequence[Worker], rounds: int, description: str
) -> list[list[float]]:
    """`time_interleaved` with a progress bar, if stderr is a terminal."""
    with tqdm(total=rounds, desc=description, leave=False, disable=None) as bar:
        return time_interleaved(workers, rounds, BATCH, lambda: bar.update())


# --- scaling --------------------------------------------------------------------------


def measure_scaling(
    bench: Bench,
    implementations: Sequence[Implementation],
    sizes: Sequence[int],
    work: Callable[[int], str],
    order: int,
) -> list[Row]:
    """Rows for growing numbers of tasks, each measured in a fresh process.

    The form is the fastest one of `measure`; the number of threads is chosen for each
    size. All gradients must agree with the first implementation's. peak_bytes leaves
    out compiling: where the system allows it, the counter starts again after the first
    call.
    """
    rows = []
    for size in sizes:
        with ExitStack() as stack:
            runners, reference = [], None
            for implementation in implementations:
                fastest = bench.fastest.get(implementation.name)
                form = fastest.form if fastest else implementation.forms[0]
                candidates = []
                for threads in implementation.threads:
                    variant = Variant(implementation, form, threads)
                    worker = stack.enter_context(bench.start(threads))
                    worker.send("prepare", **bench.request(variant, order, tasks=size))
                    reply = prepared(variant, worker, work(size))
                    if reply is None:
                        continue
                    gradient = np.array(reply["result"])
                    if reference is None:
                        reference = gradient
                    label = f"{implementation.name} ({variant}, {work(size)})"
                    check_agreement(label, gradient, reference, TOLERANCES["float32"])
                    worker.ask("reset peak")
                    candidates.append(Runner(variant, worker))
                if candidates:
                    runners.append(choose(bench, candidates))
            workers = [runner.worker for runner in runners]
            samples = interleave_with_progress(
                workers, bench.rounds(5, 15), f"{size} tasks"
            )
            for (variant, worker), times in zip(runners, samples, strict=True):
                name = variant.implementation.name
                peak = worker.ask("memory")["peak_bytes"]
                rows.append(
                    row_of(times, work(size), name, order, variant.threads, peak)
                )
    return rows
