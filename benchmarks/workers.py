"""How a time is taken: each implementation in a process of its own, one at a time.

    with Worker(script, threads=2) as worker:         # a fresh process of the benchmark
        reply = worker.ask("prepare", order=2, ...)   # first call: reply["result"]
        worker.ask("time", seconds=0.02)["seconds"]   # mean time of one call in a batch

Libraries that share a process share its memory allocator, and their thread pools spin
(OpenMP, BLAS and XLA all busy-wait for milliseconds after work) into each other's
measurements. So every implementation runs in its own process and has the machine to
itself while its batch runs: the others wait on a pipe, and a worker answers only when
its threads have stopped using the processor (`settle`). `time_interleaved` takes one
batch of every worker, in a new order each round, so that a slow minute of the machine
slows all of them.

Left out: pinning to cores and fixing the clock, which need privileges.
"""

import argparse
import json
import math
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from benchmarks import common

Array = np.ndarray[Any, Any]
# More ranks than cores, and the user root, under mpirun of Open MPI.
ALLOWED = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",  # Open MPI 4
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",  # Open MPI 5
    "OMPI_MCA_mpi_yield_when_idle": "1",
}
# Each library reads its own variable; OpenMP creates its thread pools at these sizes.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "NPROC",  # the pool of JAX's CPU client
    "PJRT_NPROC",
)
WARM_UP = 0.005  # seconds of untimed calls before a batch: threads wake, caches fill


class Workload(NamedTuple):
    """An implementation ready to be timed: the call, and how its result is read."""

    call: Callable[[], Any]
    read: Callable[[Any], Array]
    others: Callable[[], int] = lambda: 0  # peak memory of its child processes
    launches: Callable[[], int | None] = lambda: None  # of one call, on a GPU


class Limits(NamedTuple):
    """The time and memory above which an implementation is left out."""

    start_seconds: float  # to build it and call it once, compiling included
    step_seconds: float  # one call
    bytes: float  # peak resident memory


Build = Callable[[dict[str, Any]], Workload]


# --- inside a worker ------------------------------------------------------------------


def settle(slice_seconds: float = 0.01, limit: float = 1.0) -> None:
    """Sleep until no thread of this process uses the processor any more."""
    end = time.perf_counter() + limit
    while time.perf_counter() < end:
        before = time.process_time()
        time.sleep(slice_seconds)
        if time.process_time() - before < 0.1 * slice_seconds:
            return


def time_batch(call: Callable[[], Any], seconds: float) -> tuple[float, int]:
    """The mean time of a call in a batch of about `seconds`, and their number."""
    start = now = time.perf_counter()
    warm = 0
    while now - start < WARM_UP:
        call()
        warm += 1
        now = time.perf_counter()
    count = max(1, math.ceil(seconds * warm / (now - start)))
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count, count


def peak_bytes(process: int | str = "self") -> int | None:
    """The peak resident memory of a process, None where the system does not report it.

    On Linux from /proc: getrusage would report the parent's peak if that was higher,
    because the counter outlives the exec that starts a child.
    """
    try:
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    if process != "self" or sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak() -> bool:
    """Reset the peak to the memory that is resident now, where Linux allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def run_benchmark(
    options: argparse.Namespace,
    build: Build,
    run: Callable[[Path, dict[str, Any]], tuple[list[common.Row], dict[str, Any]]],
) -> int:
    """Serve as a worker or run a benchmark, as the options say; the exit status.

    `run` is called with an empty folder and the description of the machine; it returns
    the rows, and what else the JSON file is to hold.
    """
    if options.serve:
        serve(build)
        return 0
    machine = common.describe_machine()
    common.print_machine(machine)
    try:
        with tempfile.TemporaryDirectory() as name:
            rows, more = run(Path(name), machine)
    except (common.DisagreementError, WorkerError) as error:
        print(f"STOPPED: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing is written", file=sys.stderr)
        return 130
    if options.json is not None:
        common.write_json(options.json, machine, rows, **more)
        print(f"wrote {options.json}")
    return 0


def serve(build: Build) -> None:
    """Answer requests from stdin, one JSON object a line, until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the output of libraries must not mix with the replies
    workload: Workload | None = None
    before: int | None = None

    def memory() -> int | None:
        own = peak_bytes()
        return own if own is None or workload is None else own + workload.others()

    for line in sys.stdin:
        request = json.loads(line)
        kind = request.pop("kind")
        reply: dict[str, Any] = {}
        try:
            if kind == "prepare":
                workload = build(request)
                before = memory()
                reply["result"] = workload.read(workload.call()).ravel().tolist()
            elif kind == "time" and workload is not None:
                seconds = time_batch(workload.call, request["seconds"])
                reply["seconds"], reply["calls"] = seconds
            elif kind == "launches" and workload is not None:
                reply["launches"] = workload.launches()
            elif kind == "reset peak":
                reply["done"] = reset_peak()
            elif kind != "memory":
                raise ValueError(f"kind: {kind!r} is unknown, or nothing is prepared")
            settle()
            reply["peak_bytes"], reply["before_bytes"] = memory(), before
        except Exception as error:  # a peer may raise anything; the parent decides
            text = str(error).strip() or type(error).__name__
            reply = {"error": f"{type(error).__name__}: {text.splitlines()[0]}"}
        print(json.dumps(reply), file=replies, flush=True)


# --- outside --------------------------------------------------------------------------


class WorkerError(Exception):
    """A worker failed to answer a request; the message says why."""


class Worker:
    """A fresh process of a benchmark script, run as `script --serve`.

    threads: the number for every library in it. environment: more variables.
    """

    def __init__(
        self,
        script: Path,
        threads: int,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        variables = dict.fromkeys(THREAD_VARIABLES, str(threads))
        variables["JAX_PLATFORMS"] = "cpu"
        # The log is a file, because nobody would read a pipe while the worker works.
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        self._process = subprocess.Popen(
            [sys.executable, str(script), "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, **variables, **(environment or {})},
        )

    def send(self, kind: str, **request: Any) -> None:
        """Send a request; `receive` waits for the reply."""
        assert self._process.stdin is not None
        try:
            print(
                json.dumps({"kind": kind, **request}),
                file=self._process.stdin,
                flush=True,
            )
        except OSError:
            pass  # the process has ended: `receive` raises its last output

    def receive(self, limits: Limits | None = None) -> dict[str, Any]:
        """The reply to the oldest open request; raises WorkerError if it failed.

        With limits, the process is ended when it exceeds them.
        """
        assert self._process.stdout is not None
        if limits is not None:
            self._wait(limits)
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            words = self._log.read().strip().splitlines() or ["it said nothing"]
            raise WorkerError(f"its process ended: {words[-1]}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise WorkerError(reply["error"])
        return reply

    def _wait(self, limits: Limits) -> None:
        """Wait until there is a reply; kill the process if it exceeds a limit."""
        assert self._process.stdout is not None
        end = time.monotonic() + limits.start_seconds
        while not select.select([self._process.stdout.fileno()], [], [], 0.1)[0]:
            excess = ""
            if time.monotonic() > end:
                excess = f"{limits.start_seconds:g} s to start"
            elif (peak_bytes(self._process.pid) or 0) > limits.bytes:
                excess = f"{limits.bytes / 1e9:g} GB"
            if excess:
                self._process.kill()
                raise WorkerError(f"needs more than {excess}")

    def ask(self, kind: str, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its reply."""
        self.send(kind, **request)
        return self.receive()

    def close(self) -> None:
        """End the process, by force if it is busy."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.close()
        except OSError:
            pass
        try:
            process.wait(timeout=3)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        self._log.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._process.kill()
        self.close()


def interleaved(count: int, rounds: int, seed: int = 0) -> Iterator[list[int]]:
    """For each round a random order of 0 .. count - 1.

    >>> all(sorted(order) == [0, 1, 2] for order in interleaved(3, rounds=10))
    True
    """
    rng = np.random.default_rng(seed)
    for _ in range(rounds):
        yield rng.permutation(count).tolist()


def time_interleaved(
    workers: Sequence[Worker],
    rounds: int,
    seconds: float,
    after_round: Callable[[], Any] = lambda: None,
) -> list[list[float]]:
    """For each worker the mean time of a call, one sample for each round."""
    samples: list[list[float]] = [[] for _ in workers]
    for order in interleaved(len(workers), rounds):
        for i in order:
            samples[i].append(workers[i].ask("time", seconds=seconds)["seconds"])
        after_round()
    return samples
