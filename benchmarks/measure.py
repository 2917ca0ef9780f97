"""What is compared and how: choose, check, time, start up, scale.

A benchmark gives a script (its workers run it), a folder of data and a list of
`Implementation`s; it gets back rows. In this order:

1. `check_float64`: every implementation against the reference, to 1e-10.
2. `measure`: per implementation, each way to write it and each number of threads is
   started, checked to 1e-5 in float32 and tried; the fastest stays. Then all that
   stayed are timed in turn, together with a large matrix product, the backend's peak.
3. `measure_scaling`: more and more tasks, a fresh process for each number.

A peer that is missing or fails is skipped with one line that says why; one that
computes another gradient ends the benchmark.

Left out: start-up, which is in `startup.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import product
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
OURS = ("tinymaml", "numpy")  # modules that must not fail


@dataclass(frozen=True)
class Implementation:
    """Something to measure. `forms` are ways to write it, `threads` numbers to try."""

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
    """A running benchmark: its script, its data, what it has chosen and checked."""

    script: Path
    folder: Path
    quick: bool
    references: dict[int, Array]  # order -> the reference meta-gradient, float64
    tasks: int
    device: str = ""  # see `devices.py`
    tf32: bool = False
    tolerances: Mapping[str, float] = field(default_factory=lambda: TOLERANCES)
    chosen: dict[str, Variant] = field(default_factory=dict)
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
        """How often to measure."""
        return quick if self.quick else full

    def request(self, variant: Variant, order: int, **changes: Any) -> dict[str, Any]:
        """What a worker needs to know to prepare a variant."""
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


class Chosen(NamedTuple):
    """The fastest variant of an implementation, in a worker that holds it prepared."""

    variant: Variant
    worker: Worker


def available(implementations: Sequence[Implementation]) -> list[Implementation]:
    """Those whose module is installed; a line for each of the others."""
    kept = []
    for implementation in implementations:
        if implementation.module in OURS or find_spec(implementation.module):
            kept.append(implementation)
        else:
            print(
                f"skipped: {implementation.name}: {implementation.module} is not "
                'installed (pip install -e ".[bench]")'
            )
    return kept


def to_compare(
    everything: Sequence[Implementation],
    peers: Sequence[str],
    left_out: Mapping[str, str],
) -> list[Implementation]:
    """What is installed, asked for by --peers, and not left out for a reason.

    `left_out` has the reasons by name; each that is skipped gets a line that says why.
    """
    kept = []
    for one in everything:
        if one.module not in (*OURS, *peers):
            print(f"skipped: {one.name}: left out by --peers")
        elif one.name in left_out:
            print(f"skipped: {one.name}: {left_out[one.name]}")
        else:
            kept.append(one)
    return available(kept)


def check_float64(
    bench: Bench, implementations: Sequence[Implementation], every_form: bool = False
) -> None:
    """Every implementation's gradients, orders 1 and 2, in float64.

    One worker per library. With `--quick` tinymaml only: the peers take too long.
    Without `every_form` it is the first form's that are checked.
    """
    for module in dict.fromkeys(i.module for i in implementations):
        if bench.quick and module not in OURS:
            print(f"{module}: its float64 gradients are left out by --quick")
            continue
        with bench.start(1, {"JAX_ENABLE_X64": "1"}) as worker:
            for implementation in implementations:
                if implementation.module != module:
                    continue
                forms = implementation.forms[: None if every_form else 1]
                for form, order in product(forms, bench.references):
                    variant = Variant(implementation, form, 1)
                    request = bench.request(variant, order, dtype="float64")
                    worker.send("prepare", **request)
                    agrees(bench, variant, worker, order, "float64")
    print_agreement(bench, "float64")


def agrees(
    bench: Bench, variant: Variant, worker: Worker, order: int, dtype: str
) -> bool:
    """Whether the worker could prepare the variant; if so its gradient must agree."""
    name, module = variant.implementation.name, variant.implementation.module
    try:
        reply = worker.receive(bench.limits)
    except WorkerError as error:
        if module in OURS:
            raise
        print(f"skipped: {name} ({variant}, order {order}, {dtype}): {error}")
        return False
    if name != PEAK:
        label = f"{name} ({variant}, order {order}, {dtype})"
        result = np.array(reply["result"])
        bench.errors.append(bench.check(label, result, order, dtype))
    return True


def print_agreement(bench: Bench, what: str) -> None:
    """How many gradients have been checked since the last such line, and the worst."""
    count = len(bench.errors)
    print(f"{what}: {count} gradients agree, largest error {max(bench.errors):.0e}")
    bench.errors.clear()


def variants_of(
    bench: Bench, implementation: Implementation, order: int
) -> list[Variant]:
    """What to try. `--quick` tries threads, once for both orders, and not forms.

    Where compiling is slow it tries nothing, and order 2 only.
    """
    forms, threads = implementation.forms, implementation.threads
    if bench.quick:
        forms = forms[:1]
        if implementation.slow_to_compile:
            if order == 1:
                print(f"skipped: {implementation.name}: order 1 left out by --quick")
                return []
            threads = threads[:1]
        elif implementation.name in bench.chosen and len(threads) > 1:
            return [bench.chosen[implementation.name]]
    return [Variant(implementation, f, t) for f in forms for t in threads]


def start_all(
    bench: Bench,
    implementations: Sequence[Implementation],
    order: int,
    stack: ExitStack,
) -> list[Chosen]:
    """Every variant, each in its worker, prepared at the same time and checked."""
    started = []
    for implementation in implementations:
        for variant in variants_of(bench, implementation, order):
            worker = stack.enter_context(bench.start(variant.threads))
            worker.send("prepare", **bench.request(variant, order))
            started.append(Chosen(variant, worker))
    return [one for one in started if agrees(bench, *one, order, "float32")]


def choose(bench: Bench, tried: Sequence[Chosen]) -> Chosen:
    """The fastest variant of one implementation, timed in turn; the others close.

    What needs three times as long as the fastest in the first round is out at once: a
    loop over tasks on two threads of a busy machine may take seconds.
    """
    best = 0
    name = tried[0].variant.implementation.name
    if len(tried) > 1:
        samples = time_interleaved([one.worker for one in tried], 1, BATCH)
        limit = 3 * min(times[0] for times in samples)
        good = [i for i, times in enumerate(samples) if times[0] < limit]
        if len(good) > 1:
            more = time_interleaved([tried[i].worker for i in good], 5, BATCH)
            for i, times in zip(good, more, strict=True):
                samples[i] = times
        medians = [median(times) for times in samples]
        best = min(good, key=lambda i: medians[i])
        texts = [
            f"{one.variant} {milliseconds(seconds)} ms"
            for one, seconds in zip(tried, medians, strict=True)
        ]
        print(f"{name}: {tried[best].variant} (tried: {'; '.join(texts)})")
    for one in tried:
        if one is not tried[best]:
            one.worker.close()
    bench.chosen.setdefault(name, tried[best].variant)
    return tried[best]


def measure(
    bench: Bench, implementations: Sequence[Implementation], work: str, order: int
) -> tuple[list[Row], dict[int, float]]:
    """Rows of one piece of work, and the peak FLOP/s by number of threads."""
    peaks = [
        Implementation(PEAK, "numpy", (threads,))
        for threads in sorted({t for i in implementations for t in i.threads})
    ]
    with ExitStack() as stack:
        everything = [*implementations, *peaks]
        # One after the other needs less memory, all at the same time less patience.
        groups = [everything] if bench.quick else [[one] for one in everything]
        runners = []
        for group in groups:
            started = start_all(bench, group, order, stack)
            for implementation in group:
                tried = [
                    s for s in started if s.variant.implementation == implementation
                ]
                if tried:
                    runners.append(choose(bench, tried))
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
    """`time_interleaved` with a progress bar, on a terminal, that leaves no trace."""
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
    """Rows for more and more tasks, each in a fresh process.

    The form is the one chosen before, the number of threads is chosen for each size.
    All gradients must agree with the first implementation's. peak_bytes is the peak
    while it steps: the counter starts again after the first call, where the system
    allows it, so that compiling is left out.
    """
    rows = []
    for size in sizes:
        with ExitStack() as stack:
            runners, reference = [], None
            for implementation in implementations:
                chosen = bench.chosen.get(implementation.name)
                form = chosen.form if chosen else implementation.forms[0]
                tried = []
                for threads in implementation.threads:
                    variant = Variant(implementation, form, threads)
                    worker = stack.enter_context(bench.start(threads))
                    request = bench.request(variant, order, tasks=size)
                    gradient = np.array(worker.ask("prepare", **request)["result"])
                    if reference is None:
                        reference = gradient
                    label = f"{implementation.name} ({variant}, {work(size)})"
                    check_agreement(label, gradient, reference, TOLERANCES["float32"])
                    worker.ask("reset peak")
                    tried.append(Chosen(variant, worker))
                runners.append(choose(bench, tried))
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
