"""Several processes: measured against one process of as many threads, and a model.

    python benchmarks/distributed.py               # all works, ten minutes
    python benchmarks/distributed.py --works sinusoid --rounds 2 --seconds 2
    python benchmarks/distributed.py --json FILE --figure FILE.svg
    python benchmarks/distributed.py --bits 300    # is theta the same on 1 to 4 ranks?

For each work, outer steps are timed as `train` takes them: in one process of one thread
and of two threads, and on two ranks of one thread, in exact mode and not. All of it is
repeated, one after the other, for some rounds; the table has medians. Two ranks beside
two threads is the comparison that a quiet computer of two cores allows.

The model says what an iteration takes on N ranks of one thread, with T tasks:

    draw(T) + fixed + ceil(T / N) task + exchanges exchange(N)

In exact mode a rank has whole blocks of tasks. There is one exchange in an iteration
(that of the losses, a number for each task, is left out: two more messages a level);
policies have about 30, in conjugate gradients and the line search. `task`, `draw` and
`fixed` (the optimiser's step, the log) come from the run of one process of one thread;
`exchange` from the latency and the bandwidth between ranks. The table has what the
model says of two ranks on this computer, beside the measurement. The figure has the
time of an iteration against the number of ranks on a network whose latency and
bandwidth are options: it is a calculation, and no cluster was used.

With --bits nothing is timed: each work is trained in exact mode on one to four ranks,
and the digests of theta are compared. Navigation has 4 trajectories for a task then,
and not 20.

Needs mpi4py and mpirun. The images are drawn by a program: time does not depend on
what they show.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from math import ceil, log2
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# Run as a script, Python looks for modules beside the script and not in the root.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tinymaml as tm
from benchmarks.common import (
    describe_machine,
    format_table,
    milliseconds,
    output_file,
    positive,
    positive_float,
    print_machine,
    usable_cores,
)
from benchmarks.workers import ALLOWED, THREAD_VARIABLES
from tinymaml.files import write_atomically
from tinymaml.paper.recipes import NavigationRecipe
from tinymaml.tasks import omniglot, sinusoid
from tinymaml.tasks.batch import BLOCKS, block_bounds
from tinymaml.tasks.episodes import Episodes
from tinymaml.tasks.navigation import Navigation
from tinymaml.training.distributed import Distributed, Ranks, launched
from tinymaml.training.steps import ONE_PROCESS
from tinymaml.training.train import train

Array = np.ndarray[Any, Any]
WORKS = ("sinusoid", "omniglot-5w1s", "omniglot-20w1s", "navigation")
TARGETS = {"omniglot-5w1s": 1.10, "omniglot-20w1s": 1.05, "navigation": 1.10}
META_BATCHES = (32, 256, 4096)  # tasks, in the figure


# --- the model ------------------------------------------------------------------------


class Work(NamedTuple):
    """What one process needs for an outer step, in seconds; T tasks, P parameters."""

    name: str
    tasks: int
    parameters: int
    task: float  # for each task that a rank computes
    draw: float  # for each task of the batch, on every rank
    fixed: float  # for each outer step
    exchanges: int = 1  # sums over ranks in an outer step


class Network(NamedTuple):
    """Between ranks: seconds until a message arrives, and seconds for each byte."""

    latency: float
    byte: float


ITEM = 4  # bytes of a float32


def exchange(
    ranks: int, parameters: int, network: Network, exact: bool, blocks: int = BLOCKS
) -> float:
    """Seconds in which N ranks agree and add up their P sums.

    Agreeing, twice an iteration, takes log2 N messages there and back. A sum over ranks
    takes 2 log2 N messages and twice (1 - 1/N) of the bytes. In exact mode each rank
    sends its rows of blocks to the N - 1 others, each a part of the columns, and then
    receives the sums of their columns; the time to copy and add rows is left out.
    """
    if ranks == 1:
        return 0.0
    levels, part = ceil(log2(ranks)), 1 - 1 / ranks
    agree = 2 * 2 * levels * network.latency
    size = parameters * ITEM * network.byte
    if not exact:
        return agree + 2 * levels * network.latency + 2 * part * size
    rows = ceil(blocks / ranks)
    messages = (ranks - 1) + levels
    return agree + messages * network.latency + (rows + 1) * part * size


def is_policy(work: Work) -> bool:
    """Whether exact sums gather the rows of all tasks, which is not modelled."""
    return work.exchanges > 1


def iteration(
    work: Work, tasks: int, ranks: int, network: Network, exact: bool = False
) -> float:
    """Seconds of an outer step with T tasks on N ranks of one thread."""
    bounds = block_bounds(tasks) if exact else range(tasks + 1)
    blocks = len(bounds) - 1
    whole = np.arange(ranks + 1) * blocks // ranks  # as `Ranks.share` has it
    share = int(np.diff(np.array(bounds)[whole]).max())
    together = exchange(ranks, work.parameters, network, exact, blocks)
    computed = share * work.task + tasks * work.draw + work.fixed
    return computed + work.exchanges * together


def stops_gaining(work: Work, tasks: int, network: Network, exact: bool = False) -> int:
    """The largest number of ranks of which each still does half of what one can."""
    alone = iteration(work, tasks, 1, network)
    counts = [2**k for k in range(15)]
    times = {n: iteration(work, tasks, n, network, exact) for n in counts}
    return max(n for n in counts if 2 * alone >= n * times[n])


# --- what is timed: a training, in this process or on the ranks of this run -----------


def make(
    name: str, threads: int, trajectories: int = 20
) -> tuple[Any, Callable[..., Any], Array, Any]:
    """The learner of a work, its sampler, its first theta, and an optimiser."""
    rng = np.random.default_rng(0)
    if name == "sinusoid":
        network = tm.MLP([1, 40, 40, 1])

        def loss(theta: tm.Value, x: tm.Value, y: tm.Value) -> tm.Value:
            return tm.squared_error(network(theta, x), y)

        maml = tm.MAML(loss, 0.001, threads=threads)
        return maml, sinusoid.sample_tasks, network.init(rng), tm.Adam()
    if name == "navigation":
        recipe = NavigationRecipe()
        backend = tm.get_backend("numba", threads)
        policy = tm.GaussianPolicy(tm.MLP([2, 100, 100, 2]), 2, backend=backend)
        options: Any = {"trajectories": trajectories, "backend": backend}
        learner = tm.MAMLTRPO(policy, Navigation(), recipe.alpha, **options)
        sample = lambda rng: learner.draw(rng, 40)  # noqa: E731
        return learner, sample, policy.init(rng), tm.SGD(1.0)
    cell = tm.RECIPES[name.removeprefix("omniglot-")]
    classifier = cell.network()
    images = omniglot.split(omniglot.standin())["train"]
    episodes = Episodes(
        images.images,
        images.labels,
        ways=cell.ways,
        shots=cell.shots,
        queries=cell.queries,
        rotations=True,
        tasks=cell.tasks,
    )
    maml = cell.maml(classifier, backend=tm.get_backend("numba", threads))
    return maml, episodes, classifier.init(rng), tm.Adam(cell.learning_rate)


def time_training(name: str, threads: int, exact: bool, seconds: float) -> Any:
    """Medians of an iteration and of its parts, in a training of about `seconds`."""
    ranks = launched()
    if ranks is not ONE_PROCESS:
        ranks.exact = exact
    learner, sample, theta, optimiser = make(name, threads)
    learner = Distributed(learner, ranks)
    starts, drawn, tasks = [], [], 0

    def timed(rng: np.random.Generator) -> Any:
        nonlocal tasks
        starts.append(time.perf_counter())
        batch = ranks.sampler(sample)(rng)
        drawn.append(time.perf_counter() - starts[-1])
        tasks = len(batch[0])
        return batch

    options = {"optimiser": optimiser, "progress": False, "log_every": 10**9}
    rng = np.random.default_rng(1)
    warm = train(learner, theta, timed, iterations=3, rng=rng, **options)
    once = max(starts[-1] - starts[-2], 1e-6)
    count = ranks.agree(min(900, max(4, int(seconds / once))))
    del starts[:], drawn[:]
    train(learner, warm.theta, timed, iterations=count, rng=rng, **options)
    batch, calls = ranks.sampler(sample)(rng), []
    for _ in range(max(3, count // 4)):
        started = time.perf_counter()
        learner(warm.theta, batch)
        calls.append(time.perf_counter() - started)
    shared = 0.0  # of drawing, what a rank does for its own tasks only
    if isinstance(sample, Episodes):
        indices = sample.draw(rng)
        started = time.perf_counter()
        sample.look_up(indices)
        shared = time.perf_counter() - started
    return {
        "iteration": statistics.median(np.diff(starts)),
        "look_up": shared,
        "call": statistics.median(calls),
        "draw": statistics.median(drawn),
        "tasks": tasks,
        "parameters": theta.size,
        "iterations": count,
    }


def final_bits(name: str, iterations: int) -> str:
    """A digest of theta after a training in exact mode, on the ranks of this run."""
    ranks = launched()
    if ranks is not ONE_PROCESS:
        ranks.exact = True
    learner, sample, theta, optimiser = make(name, threads=1, trajectories=4)
    options = {"optimiser": optimiser, "progress": False, "log_every": 10**9}
    rng = np.random.default_rng(1)
    learner = Distributed(learner, ranks)
    result = train(learner, theta, sample, iterations=iterations, rng=rng, **options)
    return hashlib.sha256(result.theta.tobytes()).hexdigest()[:16]


def time_network() -> dict[str, float]:
    """Latency and seconds a byte between two ranks, from sums of 1 and 10^6 numbers."""
    ranks, medians = launched(), []
    assert isinstance(ranks, Ranks)
    for size, repeats in ((1, 3000), (10**6, 60)):
        numbers, times = np.zeros(size, np.float32), []
        for _ in range(repeats):
            started = time.perf_counter()
            ranks.add(numbers)
            times.append(time.perf_counter() - started)
        medians.append(statistics.median(times))
    # A sum over two ranks is two messages, and moves the numbers once there and back.
    latency = medians[0] / 2
    return {"latency": latency, "byte": (medians[1] - medians[0]) / (ITEM * 10**6)}


# --- running it -----------------------------------------------------------------------


def run(ranks: int, *arguments: Any, threads: int = 1) -> Any:
    """This program on some ranks, of some threads each; what its first rank prints."""
    command = [sys.executable, str(Path(__file__).resolve()), *map(str, arguments)]
    command += ["--threads", str(threads)]
    if ranks > 1:
        beside = str(Path(sys.executable).parent)
        mpirun = shutil.which("mpirun", path=beside) or shutil.which("mpirun")
        if mpirun is None:
            raise SystemExit("distributed.py: error: no mpirun: pip install mpich")
        command = [mpirun, "-n", str(ranks), *command]
    of_threads = dict.fromkeys(THREAD_VARIABLES, str(threads))  # BLAS too
    environment = {**os.environ, **of_threads, **ALLOWED}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


RUNS = {  # name: ranks, threads, exact
    "1 thread": (1, 1, False),
    "2 threads": (1, 2, False),
    "2 ranks": (2, 1, False),
    "2 ranks, exact": (2, 1, True),
}


def measure(name: str, rounds: int, seconds: float) -> dict[str, Any]:
    """The medians over rounds of each of the runs of a work."""
    found: dict[str, list[Any]] = {key: [] for key in RUNS}
    for done in range(rounds):
        for key, (ranks, threads, exact) in RUNS.items():
            options = [] if not exact else ["--exact"]
            arguments = ["--work", name, "--seconds", seconds, *options]
            found[key].append(run(ranks, *arguments, threads=threads))
        latest = [milliseconds(runs[-1]["iteration"]) for runs in found.values()]
        label = f"{name}, round {done + 1} of {rounds}"
        print(f"{label}: {', '.join(latest)} ms", flush=True)
    return {
        key: {part: statistics.median(one[part] for one in runs) for part in runs[0]}
        for key, runs in found.items()
    }


def compare_bits(names: Sequence[str], iterations: int) -> int:
    """Print the digests of 1 to 4 ranks; 1 if those of a work differ, else 0."""
    status = 0
    for name in names:
        arguments = ["--work", name, "--bits", iterations]
        found = [run(ranks, *arguments) for ranks in (1, 2, 3, 4)]
        same = len({*found}) == 1
        status |= not same
        print(f"{name}: {'the same' if same else 'DIFFERENT'}: {', '.join(found)}")
    return status


def work_of(name: str, runs: dict[str, Any]) -> Work:
    """The model's numbers, from the run of one process of one thread."""
    alone = runs["1 thread"]
    tasks = int(alone["tasks"])
    fixed = max(0.0, alone["iteration"] - alone["draw"] - alone["call"])
    sums = 30 if name == "navigation" else 1  # conjugate gradients, line search
    sizes = tasks, int(alone["parameters"])
    task = (alone["call"] + alone["look_up"]) / tasks
    draw = max(0.0, alone["draw"] - alone["look_up"]) / tasks
    return Work(name, *sizes, task, draw, fixed, sums)


def draw_figure(work: Work, network: Network, path: Path) -> None:
    """The model's iteration against ranks, for three sizes of the meta-batch."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4))
    counts = [2**k for k in range(13)]
    for tasks, colour in zip(
        META_BATCHES, ("#0072B2", "#E69F00", "#009E73"), strict=True
    ):
        for exact, style in ((False, "-"), (True, "--")):
            times = [iteration(work, tasks, n, network, exact) for n in counts]
            label = f"{tasks:,} tasks{', exact' if exact else ''}"
            axes.plot(counts, np.array(times) * 1e3, style, color=colour, label=label)
        ideal = [1e3 * iteration(work, tasks, 1, network) / n for n in counts]
        axes.plot(counts, ideal, ":", color="0.7", lw=1)
    axes.set(xscale="log", yscale="log", xlabel="ranks", ylabel="ms an iteration")
    axes.set_ylim(bottom=500 * work.task)
    axes.set_title(
        f"{work.name}, model: latency {network.latency * 1e6:.0f} µs, "
        f"{8e-9 / network.byte:.0f} Gbit/s",
        fontsize=10,
    )
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def tables(works: dict[str, Work], measured: dict[str, Any], here: Network) -> str:
    """What was measured beside what the model says, and where it stops gaining."""
    rows = []
    for name, runs in measured.items():
        work, both = works[name], runs["2 threads"]["iteration"]
        ratio = runs["2 ranks"]["iteration"] / both
        target = TARGETS.get(name)
        verdict = "" if target is None else "met" if ratio <= target else "missed"
        says = [
            milliseconds(iteration(work, work.tasks, 2, here, exact))
            if not (exact and is_policy(work))
            else ""
            for exact in (False, True)
        ]
        rows.append(
            [
                name,
                *(milliseconds(runs[key]["iteration"]) for key in RUNS),
                *says,
                f"{ratio:.2f}",
                "" if target is None else f"<= {target:.2f} {verdict}",
            ]
        )
    header = ["ms an iteration", *RUNS, "model", "model, exact", "ranks/threads", ""]
    return format_table(header, rows)


def gains(works: dict[str, Work], network: Network) -> str:
    """For each work and meta-batch: up to how many ranks each does half of its best."""
    rows = []
    for work in works.values():
        for tasks in META_BATCHES:
            ends = [stops_gaining(work, tasks, network, e) for e in (False, True)]
            best = iteration(work, tasks, ends[0], network)
            alone = iteration(work, tasks, 1, network)
            cells = [f"{n:,}" for n in (tasks, *ends)]
            cells[2] = "" if is_policy(work) else cells[2]
            rows.append([work.name, *cells, *map(milliseconds, (alone, best))])
    header = ["work", "tasks", "ranks", "exact", "ms on 1", "ms on ranks"]
    return format_table(header, rows)


def figure_file(text: str) -> Path:
    """The type of an argument that names a file for a figure."""
    path = output_file(text)
    if path.suffix not in (".pdf", ".png", ".svg"):
        raise argparse.ArgumentTypeError(f"expected .pdf, .png or .svg, got {text!r}")
    return path


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--works", nargs="+", choices=WORKS, default=WORKS, help="what to time")
    add("--rounds", type=positive, default=3, help="repetitions (default: %(default)s)")
    add(
        "--seconds",
        type=positive_float,
        default=5.0,
        help="of a run (default: %(default)s)",
    )
    add(
        "--latency",
        type=positive_float,
        default=20e-6,
        help="of the figure's network, s",
    )
    add("--gbits", type=positive_float, default=25.0, help="its bandwidth, Gbit/s")
    add("--json", type=output_file, help="write all numbers into this file")
    add(
        "--figure",
        type=figure_file,
        help="draw the model of the second work into this .pdf, .png or .svg file",
    )
    add("--bits", type=positive, help="compare theta after so many iterations instead")
    add("--work", choices=(*WORKS, "network"), help=argparse.SUPPRESS)
    add("--threads", type=int, default=1, help=argparse.SUPPRESS)
    add("--exact", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.bits and not options.work and (options.json or options.figure):
        parser.error("argument --bits: not allowed with argument --json or --figure")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, draw."""
    options = parse(arguments)
    if options.work:  # one run, on the ranks that this program starts
        found: Any
        if options.bits:
            found = final_bits(options.work, options.bits)
        elif options.work == "network":
            found = time_network()
        else:
            one = options.work, options.threads, options.exact, options.seconds
            found = time_training(*one)
        if launched().rank == 0:
            print(json.dumps(found), flush=True)
        return 0
    if options.bits:  # nothing is timed, so nothing is written
        return compare_bits(options.works, options.bits)
    machine = describe_machine()
    print_machine(machine)
    if usable_cores() < 2:
        print("WARNING: two ranks share one core here")
    here = Network(**run(2, "--work", "network"))
    print(
        f"between two ranks here: latency {here.latency * 1e6:.1f} µs, "
        f"{1e-9 / here.byte:.1f} GB/s"
    )
    measured, works = {}, {}
    for name in options.works:
        measured[name] = measure(name, options.rounds, options.seconds)
        works[name] = work_of(name, measured[name])
        if options.json:  # after each work: a long run may be ended early
            found = {"machine": machine, "network": here._asdict()}
            found["model"] = {name: work._asdict() for name, work in works.items()}
            found["measured"] = measured
            with write_atomically(options.json) as file:
                file.write(json.dumps(found, indent=1).encode())
    print(tables(works, measured, here))
    network = Network(options.latency, 8e-9 / options.gbits)
    print(f"\nmodel: {options.latency * 1e6:.0f} µs, {options.gbits:g} Gbit/s; up to")
    print("how many ranks each still does half of what one alone does")
    print(gains(works, network))
    if options.figure:
        chosen = list(works.values())[min(1, len(works) - 1)]
        draw_figure(chosen, network, options.figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
