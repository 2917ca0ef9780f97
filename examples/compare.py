"""MAML and its relatives compared: equal iterations, and equal time.

    python examples/compare.py                                  # sine waves
    python examples/compare.py --methods exact first-order --seeds 0
    python examples/compare.py --task omniglot --data DIR       # characters
    python examples/compare.py --fast                           # half a minute

Every method learns the sine waves of section 5.1, three seeds, or 5-way 1-shot Omniglot
with the network without convolutions (table 1), one seed. All have the same tasks,
initial weights, outer optimiser and inner learning rate, except for what the method is
about (examples/methods.py), and the same test tasks.

Each training is tested twice: after --iterations outer steps, and after as many as it
takes in the time in which exact MAML takes these (or in --seconds). An outer step is to
draw tasks, the meta-gradient, and Adam; its time is the shortest processor time of
many, all methods in turns, measured before the trainings begin. So other programs on
the computer do not decide the comparison, and a resumed run has the same trainings. On
another computer the tests at equal time come after other numbers of steps.

The parameters tested are those at the end of the training, and not those with the best
validation as in omniglot.py: no method has an advantage by its noise. Intervals of 95 %
are over seeds (Student's t, one sample for each seed; for these SciPy must be there:
pip install "tinymaml[seeds]"), or over test tasks if there is one seed. A baseline
without an inner learning rate of its own has the one that is best on the validation
tasks: in the table the best mean over 1 to 10 steps, whichever of them is shown, and in
the figure the best for what it shows, on the same tasks.

Deviations: what each method leaves out of its paper is in docs/variants.md. Published
figures are from other networks and settings, where the table says so.

Written into the folder of --out: compare.png (error or accuracy against training time),
results.json, costs.json (what an outer step costs), and for each training a folder with
log.csv and checkpoint.npz, such as exact-seed0, and exact-seed0-longer for what follows
the first of its two tests. Ctrl-C or SIGTERM saves and stops; a run continued with
--resume gives the same bits as one that never stopped.
"""

import argparse
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import tinymaml as tm
from compare_figures import draw, summary
from compare_problems import (
    TEST_STEPS,
    Problem,
    Training,
    adapted,
    at_test,
    learned,
    omniglot_5_way,
    reported_steps,
    scores,
    sinusoids,
    training,
)
from methods import RELATIVES, names_for
from seeds import interval
from shared import (
    Parser,
    add_images,
    add_problem,
    add_resume,
    command_line,
    experiment_parser,
    mean_and_interval,
    open_stages,
    positive_number,
    random_stream,
    read_json,
    read_options,
    reason,
    refuse_images,
    run_to_the_end,
    shortest_seconds,
    write_json,
    write_results,
)
from sinusoid import TRAINING
from stages import Stages
from tinymaml.backends import Backend
from tinymaml.backends.numba.planner import plan
from tinymaml.checks import check_that, real_number
from tinymaml.tasks import omniglot
from tinymaml.tasks.images import DataError

Array = np.ndarray[Any, Any]
Row = dict[str, Any]
Cost = dict[str, float]
COSTS = "costs.json"
FILES = ("compare.png", "results.json", COSTS)
ITERATIONS = {"sinusoid": (70_000, 200), "omniglot": (20_000, 20)}  # and with --fast
SEEDS = {"sinusoid": [0, 1, 2], "omniglot": [0]}
REFERENCE = "exact"  # its time for --iterations is the time that every method gets

# %% What an outer step costs


def measure_costs(
    problem: Problem, trainings: Mapping[str, Training], backend: Backend
) -> dict[str, Cost]:
    """Time, operations and memory of an outer step, and numbers of parameters."""
    calls, costs = {}, {}
    for name, entry in trainings.items():
        theta, rng = entry.first_theta(0), random_stream(TRAINING, 0)
        adam = tm.Adam(problem.learning_rate)

        def step(
            entry: Training = entry,
            theta: Array = theta,
            rng: np.random.Generator = rng,
            adam: tm.Adam = adam,
        ) -> None:
            gradient = entry.maml.meta_gradient(theta, entry.sample(rng)).gradient
            adam.update(theta.copy(), gradient)  # no training: theta stays where it is

        tasks = entry.sample(random_stream(TRAINING, 0))
        tape = entry.maml.tape(theta, tasks)
        calls[name] = step
        costs[name] = {
            "flops": len(tasks.x_query) * tape.flops(),
            "workspace_bytes": plan(tape).bytes("float32"),
            "adapted": adapted(problem, entry),
            "learned": learned(problem, entry, theta),
        }
    seconds = shortest_seconds(calls, problem.rounds, backend)
    return {name: {"seconds": seconds[name], **costs[name]} for name in costs}


def read_costs(folder: Path) -> dict[str, Cost]:
    """The costs that an earlier run has measured; ValueError for another file."""

    def parse(results: Any) -> dict[str, Cost]:
        costs = {
            str(name): {key: real_number(key, cost[key]) for key in COST_KEYS}
            for name, cost in results["costs"].items()
        }
        for cost in costs.values():
            positive = 0 < cost["seconds"] < math.inf
            check_that(positive, "seconds", "a positive number", cost["seconds"])
        return costs

    costs: dict[str, Cost] = read_json(
        folder / COSTS, "the costs of an earlier run", parse
    )
    return costs


COST_KEYS = ("seconds", "flops", "workspace_bytes", "adapted", "learned")

# %% Training: to the first of the two tests, and on to the second


class Part(NamedTuple):
    """A part of a training, with a checkpoint of its own."""

    name: str
    begins: int  # numbers of outer steps
    ends: int


class Course(NamedTuple):
    """One method with one seed, from the first outer step to the last."""

    name: str  # of the method
    seed: int
    entry: Training
    ends: Mapping[str, int]  # outer steps before each of the two tests
    rng: np.random.Generator  # of the training tasks; each part advances it

    @property
    def parts(self) -> list[Part]:
        """One part if both tests come after as many outer steps, else two."""
        first, *longer = sorted({*self.ends.values()})
        own = f"{self.name}-seed{self.seed}"
        return [Part(own, 0, first)] + [
            Part(f"{own}-longer", first, last) for last in longer
        ]


def courses(
    trainings: Mapping[str, Training],
    costs: Mapping[str, Cost],
    options: argparse.Namespace,
) -> list[Course]:
    """All trainings, seed by seed."""

    def ends(name: str) -> dict[str, int]:
        seconds = options.seconds
        in_time = max(
            int(seconds > 0), round(min(seconds / costs[name]["seconds"], 1e12))
        )
        return {"equal iterations": options.iterations, "equal time": in_time}

    return [
        Course(name, seed, entry, ends(name), random_stream(TRAINING, seed))
        for seed in options.seed
        for name, entry in trainings.items()
    ]


def prepare(
    stages: Stages,
    problem: Problem,
    course: Course,
    part: Part,
    theta: Array,
    optimiser: Any,
) -> None:
    """Describe a part of a training, which starts from these parameters."""
    entry, shots = course.entry, problem.shots
    tasks, steps = problem.validation[shots], reported_steps(problem, entry)

    def validate(theta: Array) -> float:
        learner = at_test(problem, entry, theta, shots, max(1, steps))
        values = scores(problem, *learner, tasks, steps)[:, steps]
        return problem.better * float(values.mean(dtype=np.float64))

    stages.prepare(
        part.name,
        entry.maml,
        theta,
        entry.sample,
        iterations=part.ends - part.begins,
        optimiser=optimiser,
        rng=course.rng,
        config={"method": course.name, "seed": course.seed, "begins": part.begins},
        anew_if=["begins"],
        validate=validate,
        validate_every=problem.validate_every,
        description=f"{entry.method.label}, seed {course.seed}",
    )


def prepare_all(stages: Stages, problem: Problem, all_courses: list[Course]) -> None:
    """Describe all trainings, and check what is resumed, before the first begins."""
    for course in all_courses:
        theta = course.entry.first_theta(course.seed)
        for part in course.parts:
            adam = tm.Adam(problem.learning_rate)
            prepare(stages, problem, course, part, theta, adam)


def train(
    stages: Stages, problem: Problem, course: Course
) -> tuple[dict[int, Array | None], Row]:
    """The parameters at the end of each part, and the scores on validation tasks.

    A training that diverges ends, and has no parameters; the comparison goes on.
    """
    thetas: dict[int, Array | None] = dict.fromkeys(course.ends.values())
    curve: list[tuple[int, float]] = []
    result: tm.TrainResult | None = None
    for part in course.parts:
        if result is not None:  # what the second part starts from is known only now
            prepare(stages, problem, course, part, result.theta, result.optimiser)
        try:
            result = stages.train(part.name)
        except tm.NonFiniteLossError as error:
            name, at = course.entry.method.label, part.begins + error.iteration
            print(f"{name}, seed {course.seed}: diverges in outer step {at:,}")
            break
        thetas[part.ends] = result.theta
        curve += [(part.begins + at, score) for at, score in result.scores]
    return thetas, {
        "method": course.name,
        "seed": course.seed,
        "iterations": [at for at, _ in curve],
        "scores": [problem.better * score for _, score in curve],
    }


# %% Test


def test(
    problem: Problem, course: Course, theta: Array | None, where: Mapping[str, Any]
) -> list[Row]:
    """The rows of results.json: mean and interval for each K and number of steps.

    theta: None if the training has diverged. where: what a row says about how far the
    training had come.
    """
    rows = []
    entry = course.entry
    published = entry.method.published.get(problem.name)
    table = problem.shots, reported_steps(problem, entry)
    most = max(TEST_STEPS, table[1])
    for shots, tasks in problem.tests.items():
        values = np.full((1, most + 1), np.nan)
        if theta is not None:
            learner = at_test(problem, entry, theta, shots, most)
            values = scores(problem, *learner, tasks, most)
        for steps in range(most + 1):
            mean, half_width = mean_and_interval(values[:, steps])
            reported = (shots, steps) == table
            rows.append(
                {
                    "method": course.name,
                    "order": entry.maml.order,
                    **where,
                    "shots": shots,
                    "steps": steps,
                    problem.metric: mean,
                    "ci95": half_width,
                    "paper": published.value if published and reported else None,
                    "reported": reported,
                }
            )
    return rows


def test_nearest_neighbour(problem: Problem) -> list[Row]:
    """Its rows: it learns nothing, so it is the same at all times and for all seeds."""
    if problem.nearest is None:
        return []
    rows = []
    for shots, tasks in problem.tests.items():
        mean, half_width = mean_and_interval(problem.nearest(tasks))
        about = {"method": "nearest", "order": None, "seed": None, "iterations": 0}
        values = {"shots": shots, "steps": 0, problem.metric: mean, "ci95": half_width}
        rows += [
            {**about, "at": at, **values, "paper": None, "reported": True}
            for at in ("equal iterations", "equal time")
        ]
    return rows


# %% Options, and everything in order


def make_parser() -> Parser:
    """The options of this example."""
    parser = experiment_parser(
        __doc__ or "",
        "results/compare",
        f"{ITERATIONS['sinusoid'][0]:,}, or {ITERATIONS['omniglot'][0]:,} for omniglot",
        ITERATIONS["sinusoid"][1],
        ", one seed",
        seeds=SEEDS["sinusoid"],
    )
    parser.set_defaults(default_iterations=ITERATIONS["sinusoid"][0])
    add_problem(
        parser,
        "--task",
        ITERATIONS,
        "sinusoid (default) or omniglot, which has seed 0 (unless --seeds is given) "
        f"and with --fast {ITERATIONS['omniglot'][1]} iterations",
    )
    add = parser.add_argument
    add(
        "--methods",
        nargs="+",
        choices=[*RELATIVES],
        metavar="NAME",
        help="which to compare (default: all that fit the task): %(choices)s",
    )
    add(
        "--seconds",
        type=positive_number,
        metavar="S",
        help="processor time that each method gets for the test at equal time "
        "(default: what MAML needs for --iterations)",
    )
    add_images(parser)
    add_resume(parser, "--task, --standin and --fast")
    return parser


def choose_problem(
    parser: Parser, options: argparse.Namespace, backend: Backend
) -> Problem:
    """The problem of --task, with its data."""
    if options.task == "sinusoid":
        refuse_images(parser, options, "--task")
        return sinusoids(backend, options.fast)
    try:
        images = omniglot.standin() if options.standin else omniglot.load(options.data)
    except (DataError, ImportError, OSError) as error:
        parser.error(f"argument --data: {reason(error)}")
    return omniglot_5_way(omniglot.split(images), backend, options.fast)


def run(
    stages: Stages,
    problem: Problem,
    all_courses: list[Course],
    others: list[Row],
    costs: Mapping[str, Cost],
    options: argparse.Namespace,
    backend: Backend,
    command: str,
) -> None:
    """Train, test, print, draw. others: rows of what is not trained."""
    prepare_all(stages, problem, all_courses)
    write_json(options.out / COSTS, {"costs": costs})
    seconds = {"training": 0.0, "test": 0.0}
    rows, curves = [], []
    for course in all_courses:
        thetas, curve = train(stages, problem, course)
        curves.append(curve)
        started = time.perf_counter()
        for at, iterations in course.ends.items():
            where = {"seed": course.seed, "at": at, "iterations": iterations}
            rows += test(problem, course, thetas[iterations], where)
        seconds["test"] += time.perf_counter() - started
    rows += others
    seconds["training"] = sum(result.seconds for result in stages.results.values())
    seconds["total"] = sum(seconds.values())
    facts = {
        "task": problem.title,
        "equal_seconds": options.seconds,
        "given_seconds": options.given_seconds,
        "costs": costs,
        "curves": curves,
    }
    write_results("compare", command, options, backend, seconds, rows, **facts)
    draw(problem, curves, costs, options.out / "compare.png")
    print(summary(problem, rows, costs))
    print(f"{seconds['total']:.0f} seconds; files are in {options.out}")


def start(parser: Parser, arguments: Sequence[str]) -> None:
    """Read the options, check everything, measure the costs, and run."""
    options, backend = read_options(parser, arguments)
    if options.seed is parser.get_default("seed"):
        options.seed = [0] if options.fast else SEEDS[options.task]
    names = options.methods or names_for(options.task)
    for name in names:
        if name not in names_for(options.task):
            fitting = ", ".join(names_for(options.task))
            parser.error(
                f"argument --methods: expected one of {fitting} for --task "
                f"{options.task}, got {name}"
            )
    options.seed, names = [*dict.fromkeys(options.seed)], [*dict.fromkeys(names)]
    if len(options.seed) > 1:
        interval([0.0, 1.0])  # says at once whether SciPy is missing
    problem = choose_problem(parser, options, backend)
    trainings = {n: training(problem, n) for n in names if RELATIVES[n].trained}
    if not trainings:
        parser.error("argument --methods: expected one that is trained among them")
    costs: dict[str, Cost] = {}
    if options.resume is not None:
        try:
            costs = read_costs(options.resume)
        except (OSError, ValueError) as error:
            parser.error(f"argument --resume: {reason(error)}")
    measured = trainings
    if options.seconds is None:
        measured = {REFERENCE: training(problem, REFERENCE), **trainings}
    missing = {name: entry for name, entry in measured.items() if name not in costs}
    costs |= measure_costs(problem, missing, backend)
    options.given_seconds = options.seconds
    if options.seconds is None:
        options.seconds = options.iterations * costs[REFERENCE]["seconds"]

    planned = courses(trainings, costs, options)
    parts = [part for course in planned for part in course.parts]
    config = {
        "experiment": "compare",
        "task": options.task,
        "fast": options.fast,
        "data": problem.title,
    }
    command = command_line("examples/compare.py", arguments)
    folders = [part.name for part in parts]
    most = max(part.ends for part in parts)
    tested = [course.parts[0].name for course in planned]
    tested += [name for name in names if not RELATIVES[name].trained]
    with open_stages(
        parser, options, command, folders, config, FILES, most, tested
    ) as stages:
        others = test_nearest_neighbour(problem) if "nearest" in names else []
        run(stages, problem, planned, others, costs, options, backend, command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with command-line arguments; return the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = make_parser()
    return run_to_the_end(parser, lambda: start(parser, arguments))


if __name__ == "__main__":
    sys.exit(main())
