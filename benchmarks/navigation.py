"""An outer step of 2D navigation in tinymaml and PyTorch: checked, then timed.

    python benchmarks/navigation.py --quick             # two minutes
    python benchmarks/navigation.py --json results.json

The work is one iteration of algorithm 3 with the settings of `examples/navigation.py`:
20 goals, 20 trajectories of 100 steps before and 20 after the inner step, policy
2-100-100-2, and TRPO's outer step with ten products F v, float32, exact (order 2) and
first-order (order 1). First the surrogate gradient and a product F v, on one set of
sampled trajectories, are compared with the numpy backend's in float64.

The environment, the advantages, conjugate gradients and the line search are the same
NumPy code for all. Left out: JAX.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# Run as a script, Python looks for modules beside the script and not in the root.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common, devices, long_steps, measure, workers
from benchmarks.common import Array, Row
from benchmarks.measure import Bench, Implementation, Variant
from benchmarks.workers import Workload

TINYMAML_NUMBA, TINYMAML_NUMPY = common.REFERENCE, "tinymaml numpy"
TORCH = "PyTorch double backward"
FORMS = ("batched", "loop")
SIZES = [2, 100, 100, 2]
TASKS, TRAJECTORIES, ALPHA = 20, 20, 0.5
WORK = f"navigation, {TASKS} tasks"
BUDGET = {True: 40.0, False: 180.0}  # seconds of timing for an order, if quick
# Of float32: a relu whose input is within rounding of 0 may fall on either side.
TOLERANCE = 1e-3
GOAL = 3.0  # times faster than PyTorch, exact steps


# --- inside a worker ------------------------------------------------------------------


def learner_of(
    backend: str, order: int, threads: int | None, sizes: Sequence[int]
) -> Any:
    """tinymaml's learner for this work, with a policy of these sizes."""
    import tinymaml as tm
    from tinymaml.networks.layers import xavier_uniform
    from tinymaml.tasks.navigation import Navigation

    environment = Navigation()
    network = tm.MLP(sizes, initialiser=xavier_uniform())
    options: dict[str, Any] = {"backend": backend, "threads": threads}
    policy = tm.GaussianPolicy(network, environment.actions, **options)
    return tm.MAMLTRPO(
        policy, environment, ALPHA, order=order, trajectories=TRAJECTORIES, **options
    )


def load(request: dict[str, Any]) -> tuple[Array, Array, Any, list[Any]]:
    """theta, v, the draw, and two sets of sampled trajectories with advantages."""
    from tinymaml.rl.maml_trpo import MetaBatch
    from tinymaml.rl.rollouts import Trajectories

    with np.load(Path(request["folder"]) / "data.npz") as data:
        dtype = request["dtype"]
        draw = MetaBatch(data["goals"], data["noise"].astype(dtype))
        sampled = []
        for i in (0, 1):
            x, actions, rewards, mask = (
                data[f"{name}{i}"] for name in Trajectories._fields
            )
            one = Trajectories(x.astype(dtype), actions.astype(dtype), rewards, mask)
            sampled.append((one, data[f"advantages{i}"]))
        return data["theta"].astype(dtype), data["v"].astype(dtype), draw, sampled


def derivatives(objective: Any, v: Array) -> Array:
    """What is compared: the surrogate gradient and F v, each over its largest entry."""
    arrays = objective.gradient, objective.fisher(v)
    return np.concatenate([array / np.abs(array).max() for array in arrays])


def build(request: dict[str, Any]) -> Workload:
    """The workload of a request; imports only the library that it needs."""
    name, order = request["implementation"], request["order"]
    if name == measure.PEAK:
        return devices.matmul_peak("")
    theta, v, draw, sampled = load(request)
    call: Any
    sizes = request["sizes"]
    if name in (TINYMAML_NUMBA, TINYMAML_NUMPY):
        from tinymaml.rl.maml_trpo import Adaptation, Objective
        from tinymaml.rl.policy_losses import chunk_steps

        learner = learner_of(name.split()[1], order, request["threads"], sizes)
        thetas = [np.broadcast_to(theta, (len(draw.tasks), theta.size))]
        samples = [chunk_steps(*one) for one in sampled]
        thetas.append(learner.inner_step(thetas[0], samples[0], learner.alpha))
        adaptation = Adaptation(thetas, [one for one, _ in sampled], samples)

        def check() -> Array:
            return derivatives(Objective(learner, adaptation), v)

        def call() -> Any:
            return learner.step(theta, draw)

    else:
        import torch

        from benchmarks import navigation_peers as peers

        torch.set_num_threads(request["threads"])
        network = learner_of("numpy", order, 1, sizes).policy.network
        policy = peers.TorchPolicy([shape for _, shape in network.layout.values()], 2)
        settings = (ALPHA, order, request["form"])

        def check() -> Array:
            return derivatives(peers.Objective(policy, theta, sampled, *settings), v)

        def call() -> Any:
            return peers.meta_step(policy, theta, draw, *settings)

    if request.get("check_only"):
        return Workload(check, lambda result: result)
    return Workload(call, lambda _: check())


# --- the data and the reference -------------------------------------------------------


def save_data(folder: Path) -> None:
    """theta as training starts, goals, noise, and what the policies sample with it."""
    from tinymaml.rl.advantages import advantages

    rng = np.random.default_rng(0)
    learner = learner_of("numpy", 2, 1, SIZES)
    theta = learner.policy.init(rng)
    draw = learner.draw(rng, TASKS)
    arrays = {"theta": theta, "goals": draw.tasks, "noise": draw.noise}
    arrays["v"] = rng.standard_normal(theta.size).astype(np.float32)
    for i, sampled in enumerate(learner.adapt(theta, draw).trajectories):
        for name, array in sampled._asdict().items():
            arrays[f"{name}{i}"] = array
        arrays[f"advantages{i}"] = advantages(sampled)
    np.savez(folder / "data.npz", **arrays)


def references(folder: Path) -> dict[int, Array]:
    """The numpy backend's float64 derivatives; that the orders differ is checked."""
    gradients = {}
    for order in (2, 1):
        request: dict[str, Any] = {"implementation": TINYMAML_NUMPY, "order": order}
        request |= {"form": "", "threads": 1, "dtype": "float64", "sizes": SIZES}
        request |= {"folder": str(folder), "check_only": True}
        gradients[order] = build(request).call()
    difference = common.relative_error(gradients[1], gradients[2])
    if difference < 10 * TOLERANCE:
        raise common.DisagreementError(
            f"orders 1 and 2 differ by {difference:.1e} only: the check could not tell"
        )
    return gradients


@dataclass
class NavigationBench(Bench):
    """A benchmark whose results are the derivatives of `derivatives`."""

    def request(self, variant: Variant, order: int, **changes: Any) -> dict[str, Any]:
        """The request that makes a worker build a variant and run it once."""
        return super().request(variant, order, sizes=SIZES, **changes)

    def check(self, label: str, result: Array, order: int, dtype: str) -> float:
        """The error of both derivatives."""
        tolerance = TOLERANCE if dtype == "float32" else common.TOLERANCES[dtype]
        return common.check_agreement(label, result, self.references[order], tolerance)


# --- the benchmark --------------------------------------------------------------------


def implementations(
    threads: int, chosen_peers: Sequence[str], quick: bool
) -> list[Implementation]:
    """The implementations to compare, tinymaml first."""
    both = tuple(sorted({1, threads}))
    candidates = [
        *(Implementation(TINYMAML_NUMBA, "tinymaml", (n,)) for n in reversed(both)),
        Implementation(TINYMAML_NUMPY, "tinymaml", (1,)),
        Implementation(TORCH, "torch", both, FORMS),
    ]
    left_out = {TINYMAML_NUMPY: "left out by --quick"} if quick else {}
    return measure.to_compare(candidates, chosen_peers, left_out)


def print_times(rows: Sequence[Row], errors: Sequence[float]) -> None:
    """Median, spread, ratio, memory and the error of the derivatives."""
    header = ["implementation", "order", "threads", *common.TIMES, "peak MB", "error"]
    cells = [
        [row.implementation, str(row.order), str(row.threads), *common.times_of(row)]
        + [common.megabytes(row.peak_bytes), f"{error:.0e}"]
        for row, error in zip(rows, errors, strict=True)
    ]
    print("\n" + common.markdown_table(header, cells) + "\n")


def print_claim(rows: Sequence[Row]) -> None:
    """Whether the exact step met its goal."""
    for row in rows:
        if row.implementation == TORCH and row.order == 2 and row.ratio is not None:
            verdict = "met" if row.ratio >= GOAL else "NOT met"
            print(
                f"goal: {GOAL:g} times faster than PyTorch; "
                f"measured {row.ratio:.2f}: {verdict}"
            )


def run(bench: Bench, threads: int, chosen_peers: Sequence[str]) -> list[Row]:
    """Check in float64, then time both orders."""
    competitors = implementations(threads, chosen_peers, bench.quick)
    measure.check_float64(bench, competitors, every_form=True)
    rows: list[Row] = []
    for order in bench.references:
        measurement = long_steps.measure_steps(
            bench, competitors, WORK, order, BUDGET[bench.quick]
        )
        order_rows = common.with_ratios(measurement.rows)
        print_times(order_rows, measurement.errors)
        rows += order_rows
    print_claim(rows)
    return rows


def main() -> int:
    """Run the benchmark from the command line."""
    parser = common.parser_of((__doc__ or "").splitlines()[0], "two minutes", ["torch"])
    options = parser.parse_args()

    def run_all(
        folder: Path, machine: dict[str, Any]
    ) -> tuple[list[Row], dict[str, Any]]:
        save_data(folder)
        bench = NavigationBench(
            Path(__file__), folder, options.quick, references(folder), TASKS
        )
        bench.limits = long_steps.LIMITS
        return run(bench, options.threads, options.peers), {}

    return workers.run_benchmark(options, build, run_all)


if __name__ == "__main__":
    sys.exit(main())
