"""The sinusoid's meta-gradient in tinymaml, PyTorch and JAX: checked, then timed.

    python benchmarks/sinusoid.py --quick             # about a minute
    python benchmarks/sinusoid.py --json results.json # about 20 minutes
    python benchmarks/sinusoid.py --backend cupy      # on a graphics card: gpu.py

The work is one step of the paper's regression experiment (section 5.1): 25 tasks, 10
support and 10 query points each, a 1-40-40-1 relu net, one inner step, float32, exact
(order 2) and first-order (order 1). First every implementation's gradient is compared
with the numpy backend's in float64; then come the times, the start-up, and 1 to 2,500
tasks. README.md, beside this file, says how it is measured.

Left out: the optimiser and the sampling of tasks, which cost all of them the same.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Run as a script, Python looks for modules beside the script and not in the root.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common, devices, gpu, measure, peers, startup, workers
from benchmarks.common import Array, Row, times_of
from benchmarks.measure import Bench, Implementation, Variant
from benchmarks.peers import COMPILED, JAX_MAP, JAX_VMAP, LOOP, VMAP
from benchmarks.workers import Workload

SIZES = [1, 40, 40, 1]
SHOTS, ALPHA, STEPS = 10, 0.01, 1
TASKS = 25
SCALING = [1, 25, 250, 2_500]
TINYMAML_NUMBA, TINYMAML_NUMPY = "tinymaml numba", "tinymaml numpy"
# On a GPU: number of tasks -> the target for an exact step, times faster than the best.
GPU_TASKS = {25: None, 2_500: 3.0}
GPU_TOLERANCE = gpu.Tolerance(float32=1e-4, tf32=1e-2)


# --- inside a worker ------------------------------------------------------------------


def parameters_of(theta: Array) -> list[Array]:
    """theta as a list of weights (inputs, outputs) and biases, layer by layer."""
    layers = zip(SIZES[:-1], SIZES[1:], strict=True)
    return devices.unflatten(theta, [s for i, o in layers for s in ((i, o), (o,))])


def torch_loss(parameters: Sequence[Any], x: Any, y: Any) -> Any:
    """Mean squared error of the net, in PyTorch."""
    import torch

    # addmm and mse_loss: at most 6 % from the fastest of other spellings, everywhere.
    *hidden, weight, bias = parameters
    for w, b in zip(hidden[::2], hidden[1::2], strict=True):
        x = torch.relu(torch.addmm(b, x, w))
    return torch.nn.functional.mse_loss(torch.addmm(bias, x, weight), y)


def jax_loss(parameters: Sequence[Any], x: Any, y: Any) -> Any:
    """Mean squared error of the net, in JAX."""
    import jax
    import jax.numpy as jnp

    *hidden, weight, bias = parameters
    for w, b in zip(hidden[::2], hidden[1::2], strict=True):
        x = jax.nn.relu(x @ w + b)
    return jnp.mean((x @ weight + bias - y) ** 2)


def tinymaml_of(backend: str, order: int, threads: int | None) -> Any:
    """tinymaml's MAML for this work."""
    import tinymaml as tm

    network = tm.MLP(SIZES)

    def loss(theta: tm.Value, x: tm.Value, y: tm.Value) -> tm.Value:
        return tm.squared_error(network(theta, x), y)

    return tm.MAML(loss, ALPHA, STEPS, order, backend=backend, threads=threads)


def build(request: dict[str, Any]) -> Workload:
    """The workload of a request; imports only the library that it needs."""
    name, order, form = request["implementation"], request["order"], request["form"]
    if name == measure.PEAK:
        return devices.matmul_peak(request["device"])
    with np.load(Path(request["folder"]) / f"{request['tasks']}.npz") as data:
        theta, *arrays = (data[key].astype(request["dtype"]) for key in data.files)
    if name.startswith("tinymaml"):
        threads = None if request["device"] else request["threads"]
        maml = tinymaml_of(name.split()[1], order, threads)
        return devices.tinymaml_workload(maml, theta, arrays, lambda r: r.gradient)
    settings, device = (ALPHA, STEPS, order), request["device"]
    if name in (JAX_VMAP, JAX_MAP):
        function = peers.jax_function(jax_loss, *settings, form)
        return devices.jax_workload(function, parameters_of(theta), arrays, device)
    import torch

    torch.set_num_threads(request["threads"])
    if name == LOOP:
        function = peers.torch_loop(torch_loss, *settings)
    else:
        function = peers.torch_vmap(torch_loss, *settings, form, name == COMPILED)
    parameters = [torch.tensor(piece) for piece in parameters_of(theta)]
    tensors = [torch.tensor(array) for array in arrays]
    return devices.torch_workload(
        function, parameters, tensors, device, request["tf32"]
    )


# --- the data and the reference -------------------------------------------------------


def save_data(folder: Path, sizes: Sequence[int]) -> None:
    """One file per number of tasks: theta, then the tasks' arrays."""
    from tinymaml import MLP
    from tinymaml.tasks.sinusoid import sample_tasks

    for size in sizes:
        rng = np.random.default_rng(0)
        # With the authors' small initial weights the Hessian term would be so small
        # that the check could not find a peer that drops it. So the weights are He's.
        theta = MLP(SIZES).init(rng)
        tasks = sample_tasks(rng, size, SHOTS)
        np.savez(folder / f"{size}.npz", theta, *tasks)


def references(
    folder: Path, tasks: int = TASKS, tolerance: float = common.TOLERANCES["float32"]
) -> dict[int, Array]:
    """The numpy backend's float64 gradients; that the orders differ is checked.

    tolerance: the largest error of a gradient that this benchmark accepts.
    """
    gradients = {}
    for order in (2, 1):
        request = {
            "implementation": TINYMAML_NUMPY,
            "order": order,
            "form": "",
            "threads": 1,
        }
        request |= {"dtype": "float64", "tasks": tasks, "folder": str(folder)}
        request |= {"device": ""}
        workload = build(request)
        gradients[order] = workload.read(workload.call())
    difference = common.relative_error(gradients[1], gradients[2])
    if difference < max(100 * common.TOLERANCES["float32"], 10 * tolerance):
        raise common.DisagreementError(
            f"orders 1 and 2 differ by {difference:.1e} only: the check could not tell"
        )
    return gradients


def cost(folder: Path, order: int, tasks: int) -> tuple[int, int]:
    """FLOPs of one step for this number of tasks, and workspace bytes of one thread."""
    from tinymaml import Tasks
    from tinymaml.backends.numba.planner import plan

    with np.load(folder / f"{TASKS}.npz") as data:
        theta, *arrays = (data[key] for key in data.files)
    tape = tinymaml_of("numpy", order, 1).tape(theta, Tasks(*arrays))
    return tape.flops() * tasks, plan(tape).bytes("float32")


# --- the benchmark --------------------------------------------------------------------


def implementations(
    threads: int, chosen_peers: Sequence[str], quick: bool
) -> list[Implementation]:
    """The implementations to compare, tinymaml first."""
    both = tuple(sorted({1, threads}))
    forms = peers.FORMS
    candidates = [
        *(Implementation(TINYMAML_NUMBA, "tinymaml", (n,)) for n in reversed(both)),
        Implementation(TINYMAML_NUMPY, "tinymaml", (1,)),
        Implementation(LOOP, "torch", both),
        Implementation(VMAP, "torch", both, forms),
        Implementation(COMPILED, "torch", both, forms, slow_to_compile=True),
        Implementation(JAX_VMAP, "jax", both, forms),
        Implementation(JAX_MAP, "jax", both, ("map", "scan")),
    ]
    left_out = {JAX_MAP: "left out by --quick, it is not JAX's best"} if quick else {}
    return measure.to_compare(candidates, chosen_peers, left_out)


def print_times(
    rows: Sequence[Row], speeds: dict[int, float], flops: dict[int, int]
) -> None:
    """Median, spread, ratio and fraction of the matmul peak."""
    header = ["implementation", "order", "threads", *common.TIMES]
    header += ["GFLOP/s", "of peak", "peak MB"]
    cells = []
    for row in rows:
        speed = flops[row.order] / row.median_seconds
        cells.append(
            [row.implementation, str(row.order), str(row.threads), *times_of(row)]
            + [f"{speed / 1e9:.3g}", f"{speed / speeds[row.threads]:.1%}"]
            + [common.megabytes(row.peak_bytes)]
        )
    print("\n" + common.format_table(header, cells))
    for threads, speed in sorted(speeds.items()):
        print(f"matmul peak on {threads}: {speed / 1e9:.0f} GFLOP/s (float32)")


def print_scaling(rows: Sequence[Row], workspace: int, threads: int) -> None:
    """Time per task, and how memory grows from one task on."""
    header = ["implementation", "tasks", "threads", *common.TIMES]
    header += ["us/task", "peak MB", "growth MB", "inputs MB"]
    smallest: dict[str, int | None] = {}
    cells = []
    for row in rows:
        tasks = int(row.work.split()[1].replace(",", ""))  # as `run` has written it
        if tasks == 1:
            smallest[row.implementation] = row.peak_bytes
        first, growth = smallest.get(row.implementation), None
        if row.peak_bytes is not None and first is not None:
            growth = row.peak_bytes - first
        cells.append(
            [row.implementation, f"{tasks:,}", str(row.threads), *times_of(row)]
            + [f"{row.median_seconds / tasks * 1e6:.3g}"]
            + [common.megabytes(n) for n in (row.peak_bytes, growth)]
            + [common.megabytes(tasks * 4 * SHOTS * 4)]
        )
    print("\n" + common.format_table(header, cells))
    print(
        f"tinymaml's workspace: {workspace:,} bytes a thread, {threads} threads, for "
        "any number of tasks"
    )


def print_start(rows: Sequence[Row]) -> None:
    """Start-up times in seconds."""
    cells = [
        [row.work, row.implementation, str(row.threads)]
        + [f"{s:.2f}" for s in (row.median_seconds, row.min_seconds, row.max_seconds)]
        for row in rows
    ]
    header = ["start-up", "implementation", "threads", "median s", "min", "max"]
    print("\n" + common.format_table(header, cells))


def scaling_work(size: int) -> str:
    """The name of the work for this number of tasks."""
    return f"scaling, {size:,} task{'s' * (size > 1)}"


def run(
    bench: Bench, threads: int, chosen_peers: Sequence[str], machine: dict[str, Any]
) -> list[Row]:
    """Run all parts and print their tables."""
    competitors = implementations(threads, chosen_peers, bench.quick)
    competitors = measure.check_float64(bench, competitors)
    work = f"sinusoid, {TASKS} tasks"
    rows: list[Row] = []
    speeds: dict[int, float] = {}
    for order in bench.references:
        order_rows, peaks = measure.measure(bench, competitors, work, order)
        rows += order_rows
        speeds = {n: max(peaks[n], speeds.get(n, 0.0)) for n in peaks}
    rows = common.with_ratios(rows)
    flops = {order: cost(bench.folder, order, TASKS)[0] for order in bench.references}
    print_times(rows, speeds, flops)
    machine["matmul_gflops"] = {str(n): speed / 1e9 for n, speed in speeds.items()}

    numba = Variant(competitors[0], "", threads)
    if bench.quick:
        print("peers: start-up and more tasks are left out by --quick")
    libraries = [] if bench.quick else ["torch", "jax"]
    modules = {TINYMAML_NUMBA: ("tinymaml", threads)}
    modules |= {m: (m, 1) for m in libraries if any(i.module == m for i in competitors)}
    names = [] if bench.quick else [VMAP, COMPILED, JAX_VMAP]
    start_variants = [
        numba,
        *(bench.fastest[name] for name in names if name in bench.fastest),
    ]
    start_rows = startup.measure_imports(bench, modules)
    start_rows += startup.measure_start(bench, start_variants, work, order=2)
    start_rows = common.with_ratios(start_rows)
    print_start(start_rows)

    names = [] if bench.quick else [VMAP, JAX_VMAP]
    scaling_competitors = [competitors[0]]
    scaling_competitors += [
        i for i in competitors if i.name in names and i.name in bench.fastest
    ]
    scaling_rows = common.with_ratios(
        measure.measure_scaling(
            bench, scaling_competitors, SCALING, scaling_work, order=2
        )
    )
    print_scaling(scaling_rows, cost(bench.folder, 2, 1)[1], threads)
    return rows + start_rows + scaling_rows


def gpu_works(folder: Path, options: argparse.Namespace) -> Iterator[gpu.Work]:
    """The meta-gradient of a few tasks, and of many, on a card."""
    save_data(folder, [*GPU_TASKS])
    competitors = gpu.implementations(options, ("",), peers.FORMS)
    settings = gpu.settings(options, GPU_TOLERANCE)
    for tasks, target in GPU_TASKS.items():
        bench = Bench(
            Path(__file__),
            folder,
            options.quick,
            references(folder, tasks, settings["tolerances"]["float32"]),
            tasks,
            **settings,
        )
        flops = {order: cost(folder, order, tasks)[0] for order in bench.references}
        yield gpu.Work(f"sinusoid, {tasks:,} tasks", bench, competitors, flops, target)


def main() -> int:
    """Run the benchmark from the command line."""
    parser = common.parser_of(__doc__.splitlines()[0])
    gpu.add_option(parser)
    options = parser.parse_args()
    if options.backend != "numba":
        return gpu.main(options, build, gpu_works)

    def run_all(
        folder: Path, machine: dict[str, Any]
    ) -> tuple[list[Row], dict[str, Any]]:
        save_data(folder, SCALING)
        bench = Bench(Path(__file__), folder, options.quick, references(folder), TASKS)
        return run(bench, options.threads, options.peers, machine), {}

    return workers.run_benchmark(options, build, run_all)


if __name__ == "__main__":
    sys.exit(main())
