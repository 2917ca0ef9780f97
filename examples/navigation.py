"""2D navigation: section 5.3 of the paper, figure 4 and table 4.

    python examples/navigation.py                 # all methods
    python examples/navigation.py --order 2       # without first-order MAML
    python examples/navigation.py --fast          # a trial

A task is a goal that the agent is not told; it sees its own position and, after some
trajectories, what they were paid. Policies meta-learned by MAML (exact and first-order)
are compared with one pretrained on all goals at once, with random weights, and with an
oracle that is told the goal.

The recipe is that of the authors' code: policy 2-100-100-2 with relu, actions normal
with standard deviations that are parameters too; one inner policy-gradient step of
alpha = 0.5 on 20 trajectories of at most 100 steps; discount 0.99, linear baseline,
standardised advantages; outer steps by TRPO with a mean KL divergence of 0.01, 40 goals
each, 100 of them. Test: 40 goals, the same for all methods and seeds, 4,000 steps (40
trajectories or more) for each gradient step, the first of size alpha and the others of
half of it; 95 % intervals of 1.96 deviations / sqrt(40). Parameters tested are those
that did best on 40 other goals, in the mean over 1 to 3 steps, every 5 outer steps.

Deviations: alpha = 0.5 is what the file behind the authors' figure is named after; the
paper's text has 0.1 (try --alpha 0.1). The reward is minus the distance, as in the
code, and not minus its square, as in the text (try --reward squared). More are listed
in docs/paper/section-5-3.md.

Written into the folder of --out: figure4.png (return against gradient steps, training,
and trajectories), results.json, log.csv and checkpoint.npz. A row of the log has the
mean return before and after adaptation, and whether the outer step was accepted: one
that was not has left the parameters as they were. Ctrl-C saves and stops; --resume
continues to the same bits.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import tinymaml as tm
from navigation_figures import Curve, Paths, draw_figure_4
from navigation_results import METHODS, Row, rows_of, table
from shared import (
    Parser,
    add_resume,
    command_line,
    experiment_parser,
    how_to_continue,
    open_stages,
    positive_number,
    random_stream,
    read_options,
    run_to_the_end,
    write_results,
)
from tinymaml.backends import Backend
from tinymaml.networks.layers import xavier_uniform
from tinymaml.rl.maml_trpo import MAMLTRPO, Adaptation, Draw, MetaStep
from tinymaml.rl.policy import GaussianPolicy
from tinymaml.rl.rollouts import Trajectories
from tinymaml.tasks.navigation import LARGEST_MOVE, REWARDS, Navigation
from tinymaml.training.stages import Stages

Array = np.ndarray[Any, Any]
FILES = ("figure4.png", "results.json")

# %% The recipe

HIDDEN = (100, 100)  # sizes of the policy's hidden layers
TASKS = 40  # goals in an outer step
TRAJECTORIES = 20  # of each, before and after the inner step
POOLED = 100  # trajectories in an outer step of a baseline, each with its own goal
TEST_TASKS, TEST_STEPS = 40, 4
TEST_TRANSITIONS = 4000  # steps for each gradient step, 40 trajectories if all are long
TEST_TRAJECTORIES = 160  # at most, where they are short
VALIDATION_STEPS, VALIDATE_EVERY = 3, 5
COLUMNS = ("before", "after", "kl", "improvement", "backtracks", "accepted")

# Each use of random numbers has a stream of its own, so none disturbs another.
INITIAL, TRAINING, TEST, VALIDATION = 1, 2, 3, 4


# %% The policies
# Written once; what is sampled, the inner step and the outer step are derived from it.


def make_learner(
    options: argparse.Namespace, backend: Backend, told: bool = False, **settings: Any
) -> MAMLTRPO:
    """A policy in its environment; `told` makes it the oracle's."""
    rules = Navigation(options.reward, told=told)
    sizes = [rules.observations, *HIDDEN, rules.actions]
    network = tm.MLP(sizes, initialiser=xavier_uniform())
    policy = GaussianPolicy(network, rules.actions, backend=backend)
    settings = {"alpha": options.alpha, "trajectories": TRAJECTORIES, **settings}
    return MAMLTRPO(policy, rules, backend=backend, **settings)


# %% Meta-training, and the baselines
# The baselines are the same outer step without an inner one. All goals are then one
# task: each trajectory has a goal of its own, and one baseline is fitted to them all.


def pooled(learner: MAMLTRPO, rng: np.random.Generator) -> Draw:
    """Trajectories with a goal each, as one task."""
    goals = learner.environment.draw(rng, (1, learner.trajectories))
    return Draw(goals, learner.noise(rng, tasks=1, steps=0))


def learners(options: argparse.Namespace, backend: Backend) -> dict[str, MAMLTRPO]:
    """What is trained, by name."""
    made = {
        name: make_learner(options, backend, order=order)
        for name, order in (("exact", 2), ("first-order", 1))
        if options.order in (str(order), "both")
    }
    plain: dict[str, Any] = {"steps": 0, "trajectories": POOLED}
    made["pretrained"] = make_learner(options, backend, **plain)
    made["oracle"] = make_learner(options, backend, told=True, **plain)
    return made


def train_methods(
    stages: Stages, options: argparse.Namespace, backend: Backend
) -> dict[str, Array]:
    """Train what the options ask for, one after the other; return theta by name."""
    return {
        name: train_one(stages, name, learner, options, backend)
        for name, learner in learners(options, backend).items()
    }


def train_one(
    stages: Stages,
    name: str,
    learner: MAMLTRPO,
    options: argparse.Namespace,
    backend: Backend,
) -> Array:
    """Train one method; its theta with the best return on validation goals.

    Judged as it is tested: by the mean of what it gets after 1, 2 and 3 steps, the
    oracle by what it gets at once.
    """
    meta = learner.steps > 0

    def sample(rng: np.random.Generator) -> Draw:
        return learner.draw(rng, TASKS) if meta else pooled(learner, rng)

    def outer_step(theta: Array, draw: Draw) -> MetaStep:
        step = learner.step(theta, draw)
        if not step.accepted:
            tqdm.write(f"{name}: an outer step changed nothing: {step.why}", sys.stderr)
        return step

    def validate(theta: Array) -> float:
        steps = 0 if name == "oracle" else VALIDATION_STEPS
        adapted = adapt(name, theta, VALIDATION, steps, options, backend)
        return float(adapted.returns()[:, min(steps, 1) :].mean())

    result = stages.train(
        name,
        outer_step,
        learner.policy.init(random_stream(INITIAL, options.seed)),
        sample,
        iterations=options.iterations,
        optimiser=tm.SGD(1.0),  # the step has its length from the trust region
        rng=random_stream(TRAINING, options.seed),
        columns=COLUMNS,
        log_every=1,
        checkpoint_every=VALIDATE_EVERY,
        validate=validate,
        validate_every=VALIDATE_EVERY,
    )
    return result.theta if result.best is None else result.best


# %% The test: 40 goals, 0 to 4 gradient steps
# Adaptation at test time is meta-training's own inner loop, with smaller steps after
# the first.


def adapt(
    name: str,
    theta: Array,
    purpose: int,
    steps: int,
    options: argparse.Namespace,
    backend: Backend,
) -> Adaptation:
    """What a method does on 40 goals, in so many gradient steps."""
    learner = make_learner(
        options,
        backend,
        told=name == "oracle",
        trajectories=TEST_TRAJECTORIES,
        transitions=TEST_TRANSITIONS,
    )
    rng = random_stream(purpose, 0)
    goals = learner.environment.draw(rng, (TEST_TASKS,))
    alphas = [options.alpha] + [options.alpha / 2] * steps
    draw = Draw(goals, learner.noise(rng, TEST_TASKS, steps))
    return learner.adapt(theta, draw, alphas[:steps])


# %% Figure 4: the return against gradient steps, and trajectories


def path_of(sampled: Trajectories, task: int) -> Array:
    """Where the first trajectory of a task was: (moves + 1, 2).

    What is observed is where a move begins; where the last one ended is added.
    """
    taken = sampled.mask[task, 0]
    positions = sampled.observations[task, 0][taken]
    last = LARGEST_MOVE * np.clip(sampled.actions[task, 0][taken][-1:], -1, 1)
    return np.concatenate([positions, positions[-1:] + last])


def draw_figure(
    stages: Stages,
    rows: Mapping[str, Sequence[Row]],
    adapted: Mapping[str, Adaptation],
    goals: Array,
    out: Path,
) -> None:
    """Curves of all methods; what MAML and the pretrained policy do for three goals."""
    curves, training = [], []
    for name, points in rows.items():
        method = METHODS[name]
        style = (method.label, method.colour, method.marker)
        values, interval = (
            np.array([row[key] for row in points]) for key in ("return", "ci95")
        )
        curves.append(Curve(*style, np.arange(len(values)), values, interval))
        if name in stages.results:
            logged = stages.results[name].losses
            returns = np.array([-row.loss for row in logged])
            at = np.array([row.iteration for row in logged])
            training.append(Curve(*style, at, returns, None))
    first = "exact" if "exact" in adapted else "first-order"
    chosen = np.argsort(goals @ [1.0, 1.0])[[0, len(goals) // 2, -1]]
    paths = [
        Paths(
            METHODS[name].label,
            METHODS[name].colour,
            [
                [path_of(sampled, task) for task in chosen]
                for sampled in adapted[name].trajectories[:TEST_STEPS]
            ],
        )
        for name in (first, "pretrained")
    ]
    draw_figure_4(curves, training, paths, goals[chosen], out)


# %% Everything


def make_parser() -> Parser:
    """The options of this example."""
    parser = experiment_parser(
        __doc__ or "", out="results/navigation", iterations=100, fast=5
    )
    parser.add_argument(
        "--order",
        choices=("1", "2", "both"),
        default="both",
        help="exact MAML (2), the first-order approximation (1), or both (default)",
    )
    parser.add_argument(
        "--alpha",
        type=positive_number,
        default=0.5,
        metavar="SIZE",
        help="inner step size, in training and at test (default: %(default)s)",
    )
    parser.add_argument(
        "--reward",
        choices=REWARDS,
        default=REWARDS[0],
        help="minus the distance to the goal, as in the authors' code (default), or "
        "minus its square, as in the paper",
    )
    add_resume(parser, "--seed, --alpha and --reward")
    return parser


def run(
    stages: Stages, options: argparse.Namespace, backend: Backend, command: str
) -> None:
    """Train, test, print, draw."""
    thetas = train_methods(stages, options, backend)
    start = make_learner(options, backend).policy.init(
        random_stream(INITIAL, options.seed)
    )
    thetas["random"] = start
    seconds = {name: result.seconds for name, result in stages.results.items()}

    started = time.perf_counter()
    names = [name for name in METHODS if name in thetas]
    adapted = {
        name: adapt(
            name,
            thetas[name],
            TEST,
            0 if name == "oracle" else TEST_STEPS,
            options,
            backend,
        )
        for name in names
    }
    rows = {name: rows_of(name, adapted[name], options.reward) for name in names}
    seconds["test"] = time.perf_counter() - started

    started = time.perf_counter()
    goals = Navigation().draw(random_stream(TEST, 0), (TEST_TASKS,))
    draw_figure(stages, rows, adapted, goals, options.out / "figure4.png")
    seconds["figures"] = time.perf_counter() - started
    seconds["total"] = sum(seconds.values())
    accepted = {
        name: sum(row.more[COLUMNS.index("accepted")] for row in result.losses)
        for name, result in stages.results.items()
    }
    best = {
        name: max(result.scores, key=lambda score: score[1])[0]
        for name, result in stages.results.items()
        if result.scores
    }
    write_results(
        "navigation",
        command,
        options,
        backend,
        seconds,
        [row for name in names for row in rows[name]],
        alpha=options.alpha,
        reward=options.reward,
        accepted_steps=accepted,
        best_iteration=best,
    )
    print(f"Mean return over {TEST_TASKS} goals, ± 95 % (in brackets: the authors')")
    print(table(rows))
    print(f"{seconds['total']:.0f} seconds; files are in {options.out}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with command-line arguments; return the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = make_parser()
    options, backend = read_options(parser, arguments)
    config = {
        "experiment": "navigation",
        "seed": options.seed,
        "alpha": options.alpha,
        "reward": options.reward,
    }
    names = learners(options, backend)
    stages = open_stages(parser, options, names, config, FILES)
    command = command_line("examples/navigation.py", arguments)
    return run_to_the_end(
        parser,
        lambda: run(stages, options, backend, command),
        stopped=how_to_continue(command, stages),
    )


if __name__ == "__main__":
    sys.exit(main())
