"""An outer step of reinforcement learning in tinymaml and PyTorch: checked, then timed.

    python benchmarks/navigation.py --quick             # three minutes
    python benchmarks/navigation.py --env cheetah       # the half-cheetah, on MuJoCo
    python benchmarks/navigation.py --json results.json

The work is algorithm 3 with 20 tasks, 20 trajectories in each before and 20 after the
inner step, and TRPO's outer step with ten products F v, float32, exact (order 2) and
first-order (order 1): a whole iteration, and the outer step alone, which starts from
trajectories that were sampled before. `SETTINGS` has the two experiments. First the
surrogate gradient, a product F v and the outer step, on one set of trajectories, are
compared with the numpy backend's in float64.

The environment, the advantages, conjugate gradients and the line search are the same
NumPy code for all; MuJoCo has as many threads as the rest. Left out: JAX.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

# Run as a script, Python looks for modules beside the script and not in the root.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tinymaml as tm
from benchmarks import common, devices, long_steps, measure, navigation_parts, workers
from benchmarks.common import Array, Row
from benchmarks.measure import Bench, Implementation, Variant
from benchmarks.workers import Workload
from tinymaml.rl import maml_trpo
from tinymaml.rl.advantages import advantages
from tinymaml.rl.policy_losses import chunk_steps
from tinymaml.rl.rollouts import Trajectories
from tinymaml.tasks.navigation import Navigation

TINYMAML_NUMBA, TINYMAML_NUMPY = common.REFERENCE, "tinymaml numpy"
TORCH = "PyTorch double backward"
FORMS = ("batched", "loop")
ITERATION, OUTER_STEP = "iteration", "outer step"  # what is timed
DERIVATIVES, PARTS = "derivatives", "parts"  # what else a worker can be asked for
BUDGET = {
    True: 20.0,
    False: 90.0,
}  # seconds of timing for a work and an order, if quick
# Of float32: a relu whose input is within rounding of 0 may fall on either side.
TOLERANCES = {**common.TOLERANCES, "float32": 1e-3}
VECTORS = ("surrogate gradient", "product F v", "outer step")  # what is compared


@dataclass(frozen=True)
class Setting:
    """An experiment: what a worker has to know, and the goal of the exact steps."""

    environment: str
    sizes: Sequence[int]  # of the policy's layers
    alpha: float
    horizon: int
    goal: float  # times faster than PyTorch
    tasks: int = 20
    trajectories: int = 20

    @property
    def work(self) -> str:
        """What its rows are called."""
        return f"{self.environment}, {self.tasks} tasks"


SETTINGS = {
    "navigation": Setting("navigation", [2, 100, 100, 2], 0.5, 100, goal=3.0),
    "cheetah": Setting("cheetah", [20, 100, 100, 6], 0.1, 200, goal=2.5),
}


# --- inside a worker ------------------------------------------------------------------


class SampledBefore(tm.MAMLTRPO):
    """A learner with given trajectories before and after the inner step, `sampled`."""

    sampled: Sequence[Trajectories] = ()

    def adapt(self, theta: Array, batch: Any, alphas: Any = None) -> Any:
        """The inner step on `sampled`, whatever the batch is."""
        sampled = list(self.sampled)
        samples = [chunk_steps(one, advantages(one)) for one in sampled]
        before = np.broadcast_to(theta, (len(sampled[0].mask), theta.size))
        after = self.inner_step(before, samples[0], self.alpha)
        return maml_trpo.Adaptation([before, after], sampled, samples)


def environment_of(request: dict[str, Any]) -> Any:
    """The environment of a request; MuJoCo has as many threads as the request."""
    if request["environment"] == "cheetah":
        from tinymaml.rl.locomotion import HalfCheetah

        return HalfCheetah("direction", request["horizon"], threads=request["threads"])
    return Navigation(horizon=request["horizon"])


def learner_of(
    request: dict[str, Any], learner: type[tm.MAMLTRPO] = tm.MAMLTRPO
) -> tm.MAMLTRPO:
    """tinymaml's learner for a request; numpy's backend for another library."""
    backend = "numba" if request["implementation"] == TINYMAML_NUMBA else "numpy"
    options: dict[str, Any] = {"backend": backend, "threads": request["threads"]}
    environment = environment_of(request)
    policy = tm.GaussianPolicy(tm.MLP(request["sizes"]), environment.actions, **options)
    settings = {key: request[key] for key in ("alpha", "order", "trajectories")}
    return learner(policy, environment, **settings, **options)


def load(
    request: dict[str, Any],
) -> tuple[Array, Array, maml_trpo.MetaBatch, list[Trajectories]]:
    """theta, v, the draw, and the trajectories before and after the inner step."""
    with np.load(Path(request["folder"]) / "data.npz") as data:
        dtype = request["dtype"]
        noise = data["noise"].astype(dtype)
        draw = maml_trpo.MetaBatch(data["tasks"], noise, data["start_noise"])
        sampled = []
        for i in (0, 1):
            x, actions, rewards, mask = (
                data[f"{name}{i}"] for name in Trajectories._fields
            )
            x, actions = x.astype(dtype), actions.astype(dtype)
            sampled.append(Trajectories(x, actions, rewards, mask))
        return data["theta"].astype(dtype), data["v"].astype(dtype), draw, sampled


def build(request: dict[str, Any]) -> Workload:
    """The workload of a request; imports only the library that it needs."""
    name, order = request["implementation"], request["order"]
    if name == measure.PEAK:
        return devices.matmul_peak("")
    theta, v, draw, sampled = load(request)
    if name in (TINYMAML_NUMBA, TINYMAML_NUMPY):
        learner, sampled_before = (
            learner_of(request),
            learner_of(request, SampledBefore),
        )
        environment = learner.environment
        places = navigation_parts.our_places()

        sampled_before.sampled = sampled

        def iteration() -> Any:
            return learner.step(theta, draw)

        def outer_step() -> Any:
            return sampled_before.step(theta, draw)

        def objective() -> Any:
            adaptation = sampled_before.adapt(theta, draw)
            return maml_trpo.Objective(sampled_before, adaptation)

    else:
        import torch

        from benchmarks import navigation_peers as peers

        torch.set_num_threads(request["threads"])
        learner = learner_of(request)
        environment = learner.environment
        shapes = [shape for _, shape in learner.policy.network.layout.values()]
        policy = peers.TorchPolicy(shapes, environment.actions)
        alpha, settings = request["alpha"], (request["alpha"], order, request["form"])
        places = navigation_parts.torch_places()

        def iteration() -> Any:
            samples = peers.sample(policy, environment, theta, draw, alpha)
            return peers.outer_step(policy, theta, samples, *settings)

        def tensors() -> Any:
            return [peers.tensors_of(one, theta.dtype) for one in sampled]

        def outer_step() -> Any:
            return peers.outer_step(policy, theta, tensors(), *settings)

        def objective() -> Any:
            return peers.Objective(policy, theta, tensors(), *settings)

    def derivatives() -> Array:
        here = objective()
        return np.concatenate([here.gradient, here.fisher(v)])

    def all_vectors(step: Any) -> Array:
        return np.concatenate([derivatives(), theta - step.theta])

    def seconds_of_parts() -> Array:
        return navigation_parts.seconds_of_parts(iteration, places)

    places += navigation_parts.environment_places(environment)
    return {
        ITERATION: Workload(iteration, lambda _: derivatives()),
        OUTER_STEP: Workload(outer_step, all_vectors),
        DERIVATIVES: Workload(derivatives, lambda result: result),
        PARTS: Workload(seconds_of_parts, lambda seconds: seconds),
    }[request["part"]]


# --- the data and the reference -------------------------------------------------------


def request_of(setting: Setting, folder: Path, **more: Any) -> dict[str, Any]:
    """What every request has, and more."""
    return {**asdict(setting), "folder": str(folder), "order": 2, "threads": 1, **more}


def save_data(setting: Setting, folder: Path) -> None:
    """theta as training starts, tasks, noise, and what the policies sample with it."""
    rng = np.random.default_rng(0)
    learner = learner_of(request_of(setting, folder, implementation=TINYMAML_NUMPY))
    theta = learner.policy.init(rng)
    draw = learner.draw(rng, setting.tasks)
    arrays = {"theta": theta, **draw._asdict()}
    arrays["v"] = rng.standard_normal(theta.size).astype(np.float32)
    for i, sampled in enumerate(learner.adapt(theta, draw).trajectories):
        for name, array in sampled._asdict().items():
            arrays[f"{name}{i}"] = array
    np.savez(folder / "data.npz", **arrays)


def references(setting: Setting, folder: Path) -> dict[int, Array]:
    """The float64 vectors of each order; that the orders differ is checked.

    The derivatives are the numpy backend's. It would need minutes for the outer step,
    which is therefore the numba backend's, from derivatives that agree with these.
    """
    found = {}
    for order in (2, 1):
        request = request_of(setting, folder, order=order, dtype="float64")
        request |= {"implementation": TINYMAML_NUMPY, "part": DERIVATIVES}
        derivatives = build(request).call()
        request |= {"implementation": TINYMAML_NUMBA, "part": OUTER_STEP}
        ours = build(request)
        *our_derivatives, step = np.split(ours.read(ours.call()), len(VECTORS))
        common.check_agreement(
            f"{TINYMAML_NUMBA} (order {order}, float64)",
            np.concatenate(our_derivatives),
            derivatives,
            TOLERANCES["float64"],
        )
        found[order] = np.concatenate([derivatives, step])
    pairs = zip(*(np.split(one, len(VECTORS)) for one in found.values()), strict=True)
    for name, (exact, first_order) in zip(VECTORS, pairs, strict=True):
        difference = common.relative_error(first_order, exact)
        if difference < 10 * TOLERANCES["float32"]:
            raise common.DisagreementError(
                f"{name}: orders 1 and 2 differ by {difference:.1e} only: "
                "the check could not tell"
            )
    return found


@dataclass
class NavigationBench(Bench):
    """A benchmark of a setting; `part` is what its workers are asked for."""

    setting: Setting = SETTINGS["navigation"]
    part: str = OUTER_STEP

    def request(self, variant: Variant, order: int, **changes: Any) -> dict[str, Any]:
        """The request that makes a worker build a variant and run it once."""
        more = {**asdict(self.setting), "part": self.part, **changes}
        return super().request(variant, order, **more)

    def check(self, label: str, result: Array, order: int, dtype: str) -> float:
        """The largest error of the vectors; a whole iteration has the first two."""
        expected = np.split(self.references[order], len(VECTORS))
        found = np.split(result, range(expected[0].size, result.size, expected[0].size))
        # A step from trajectories that were sampled anew would be another one.
        names = VECTORS[:2] if self.part == ITERATION else VECTORS
        vectors = zip(names, found, expected[: len(names)], strict=True)
        return max(
            common.check_agreement(f"{label}, {name}", one, other, TOLERANCES[dtype])
            for name, one, other in vectors
        )


# --- the benchmark --------------------------------------------------------------------


def implementations(
    threads: int, chosen_peers: Sequence[str], with_numpy: bool
) -> list[Implementation]:
    """The implementations to compare, tinymaml first."""
    both = tuple(sorted({1, threads}))
    candidates = [
        *(Implementation(TINYMAML_NUMBA, "tinymaml", (n,)) for n in reversed(both)),
        Implementation(TINYMAML_NUMPY, "tinymaml", (1,)),
        Implementation(TORCH, "torch", both, FORMS),
    ]
    reason = "only navigation without --quick has it, it needs minutes"
    left_out = {} if with_numpy else {TINYMAML_NUMPY: reason}
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


def print_claims(rows: Sequence[Row], goal: float) -> None:
    """Whether the exact steps met the goal."""
    for row in rows:
        if row.implementation == TORCH and row.order == 2 and row.ratio is not None:
            verdict = "met" if row.ratio >= goal else "NOT met"
            print(
                f"{row.work}: goal: {goal:g} times faster than PyTorch; "
                f"measured {row.ratio:.2f}: {verdict}"
            )


def print_parts(bench: NavigationBench, competitors: Sequence[Implementation]) -> None:
    """Where the time of an exact iteration goes, in each part's fastest round."""
    bench.part = PARTS
    variants = [
        Variant(one, "", *one.threads) if one.name == TINYMAML_NUMBA else chosen
        for one in competitors
        if (chosen := bench.fastest.get(one.name)) and one.name != TINYMAML_NUMPY
    ]
    rounds: list[list[Array]] = []
    for _ in range(bench.rounds(2, 5)):
        rounds.append([])
        for variant in variants:
            with bench.start(variant.threads) as worker:
                reply = worker.ask("prepare", **bench.request(variant, 2))
            rounds[-1].append(np.array(reply["result"]))
    titles = [f"{variant.implementation.name} ({variant})" for variant in variants]
    columns = dict(zip(titles, np.min(rounds, axis=0), strict=True))
    print("\n" + navigation_parts.parts_table(columns) + "\n")


def run(bench: NavigationBench, threads: int, chosen_peers: Sequence[str]) -> list[Row]:
    """Check in float64, then time both orders of an iteration and of its outer step."""
    with_numpy = bench.setting.environment == "navigation" and not bench.quick
    competitors = implementations(threads, chosen_peers, with_numpy)
    competitors = measure.check_float64(bench, competitors, every_form=True)
    rows: list[Row] = []
    for bench.part in (ITERATION, OUTER_STEP):
        for order in bench.references:
            work = f"{bench.setting.work}: {bench.part}"
            measurement = long_steps.measure_steps(
                bench, competitors, work, order, BUDGET[bench.quick]
            )
            part_rows = common.with_ratios(measurement.rows)
            print_times(part_rows, measurement.errors)
            rows += part_rows
    print_parts(bench, competitors)
    print_claims(rows, bench.setting.goal)
    return rows


def main() -> int:
    """Run the benchmark from the command line."""
    parser = common.parser_of(
        (__doc__ or "").splitlines()[0], "three minutes, or ten for cheetah", ["torch"]
    )
    parser.add_argument(
        "--env",
        choices=SETTINGS,
        default="navigation",
        help="the environment (default: %(default)s)",
    )
    options = parser.parse_args()
    setting = SETTINGS[options.env]
    try:
        environment_of({**asdict(setting), "threads": 1})
    except ImportError as error:  # MuJoCo is missing
        parser.exit(1, f"{error}\n")

    def run_all(
        folder: Path, machine: dict[str, Any]
    ) -> tuple[list[Row], dict[str, Any]]:
        save_data(setting, folder)
        bench = NavigationBench(
            Path(__file__),
            folder,
            options.quick,
            references(setting, folder),
            setting.tasks,
            setting=setting,
        )
        bench.limits = long_steps.LIMITS
        return run(bench, options.threads, options.peers), {}

    return workers.run_benchmark(options, build, run_all)


if __name__ == "__main__":
    sys.exit(main())
