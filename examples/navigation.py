"""2D navigation: section 5.3 of the paper, figure 4 and table 4.

    python examples/navigation.py             # all methods: 8 minutes on two cores
    python examples/navigation.py --order 2   # without first-order MAML
    python examples/navigation.py --context 5 # and a context vector of 5 numbers
    python examples/navigation.py --fast      # a short run, in seconds

A task is to move to a goal that the agent does not see; it observes its own position
and learns from the rewards of some trajectories. Policies meta-learned by MAML (exact
and first-order) are compared with one pretrained on all goals at once, with random
weights, and with an oracle, which observes the goal as well. With --context SIZE there
is one policy more: it has SIZE free inputs beside the position, and the inner step
adapts these in place of all weights (appendix C.2 of the paper; MAML, exact).

The recipe is that of the authors' code: policy 2-100-100-2 with relu, actions normal
with standard deviations that are parameters too; one inner policy-gradient step of
alpha = 0.5 on 20 trajectories of at most 100 environment steps; discount 0.99, linear
baseline, standardised advantages; 100 outer steps by TRPO with a mean KL divergence of
0.01, on 40 goals each. Test: 40 goals, the same for all methods and seeds; 4,000
environment steps (40 trajectories or more) per gradient step; inner learning rate alpha
for the first gradient step and alpha / 2 after it; 95 % intervals of 1.96 standard
deviations / sqrt(40). Every 5 outer steps the mean return after 1 to 3 gradient steps
on 40 validation goals is measured, and the parameters with the highest are tested.

Deviations: alpha = 0.5 is in the name of the authors' file with the results of figure
4; the paper's text has 0.1 (try --alpha 0.1). The reward is minus the distance, as in
the code, and not minus its square, as in the text (try --reward squared). More are
listed in docs/paper/section-5-3.md.

Written into the folder of --out: figure4.png (return against gradient steps, training,
and trajectories), results.json, and for each training a folder with log.csv and
checkpoint.npz: exact (MAML), first-order (first-order MAML), context, pretrained,
oracle. A row of the log has the mean return before and after adaptation, and whether
the outer step was accepted; if not, it has changed no parameter. Ctrl-C or SIGTERM
saves and stops; a run continued with --resume gives the same bits as one that never
stopped.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from stages import Stages
from tqdm import tqdm

import tinymaml as tm
from navigation_figures import Curve, Paths, draw_figure_4
from navigation_results import METHODS, Row, rows_of, table
from shared import (
    Parser,
    add_resume,
    command_line,
    experiment_parser,
    open_stages,
    positive_number,
    random_stream,
    read_options,
    run_to_the_end,
    whole_number,
    write_results,
)
from tinymaml.backends import Backend
from tinymaml.networks.layers import xavier_uniform
from tinymaml.rl.maml_trpo import MAMLTRPO, Adaptation, MetaBatch, MetaStep
from tinymaml.rl.policy import GaussianPolicy
from tinymaml.rl.rollouts import Trajectories
from tinymaml.tasks.navigation import LARGEST_MOVE, REWARDS, Navigation
from tinymaml.variants.context_vector import Context

Array = np.ndarray[Any, Any]
FILES = ("figure4.png", "results.json")

# %% The recipe

HIDDEN = (100, 100)  # units of the policy's hidden layers
TASKS = 40  # goals in an outer step
TRAJECTORIES = 20  # for each goal, before and after the inner step
POOLED = 100  # trajectories in an outer step of a baseline, each with its own goal
TEST_TASKS, TEST_STEPS = 40, 4
TEST_TRANSITIONS = 4000  # environment steps per gradient step: 40 trajectories of 100
TEST_TRAJECTORIES = 160  # the most that are sampled if trajectories end early
VALIDATION_STEPS, VALIDATE_EVERY = 3, 5
COLUMNS = ("before", "after", "kl", "improvement", "backtracks", "accepted")

# Purposes of random numbers; each has a stream of its own (`random_stream`).
INITIAL, TRAINING, TEST, VALIDATION = 1, 2, 3, 4


# %% The policies
# A policy is written once. Sampling, the inner step and the outer step all use it.


def make_learner(
    options: argparse.Namespace,
    backend: Backend,
    goal_visible: bool = False,
    context: int = 0,
    **settings: Any,
) -> MAMLTRPO:
    """A learner with a new policy; the oracle's policy observes the goal.

    context: the number of free inputs, which are adapted in place of all parameters.
    """
    environment = Navigation(options.reward, goal_visible=goal_visible)
    sizes = [environment.observations + context, *HIDDEN, environment.actions]
    network: tm.Network = tm.MLP(sizes, initialiser=xavier_uniform())
    alpha = options.alpha
    if context:
        network = tm.Network([Context(context), *network.layers])
        alpha = network.vector(0.0, "float64", **{"context1.z": alpha})
        alpha = np.append(alpha, np.zeros(environment.actions))  # of log sigma
    policy = GaussianPolicy(network, environment.actions, backend=backend)
    settings = {"alpha": alpha, "trajectories": TRAJECTORIES, **settings}
    return MAMLTRPO(policy, environment, backend=backend, **settings)


# %% Meta-training, and the baselines
# The baselines take the same outer step, without an inner step before it. All goals are
# one task for them: each trajectory has its own goal, and one value function is fitted
# to all trajectories.


def draw_pooled(learner: MAMLTRPO, rng: np.random.Generator) -> MetaBatch:
    """A meta-batch of one task, in which each trajectory has its own goal."""
    goals = learner.environment.draw(rng, (1, learner.trajectories))
    return MetaBatch(goals, learner.noise(rng, tasks=1, steps=0))


def learners(options: argparse.Namespace, backend: Backend) -> dict[str, MAMLTRPO]:
    """The learners to train, by name."""
    trained = {
        name: make_learner(options, backend, order=order)
        for name, order in (("exact", 2), ("first-order", 1))
        if options.order in (str(order), "both")
    }
    if options.context:
        trained["context"] = make_learner(options, backend, context=options.context)
    plain: dict[str, Any] = {"steps": 0, "trajectories": POOLED}
    trained["pretrained"] = make_learner(options, backend, **plain)
    trained["oracle"] = make_learner(options, backend, goal_visible=True, **plain)
    return trained


def train_methods(
    stages: Stages, options: argparse.Namespace, backend: Backend
) -> dict[str, Array]:
    """Train what the options ask for, one after the other; return theta by name."""
    for name, learner in learners(options, backend).items():
        prepare(stages, name, learner, options, backend)
    results = {name: stages.train(name) for name in stages.names}
    return {
        name: result.theta if result.best is None else result.best
        for name, result in results.items()
    }


def prepare(
    stages: Stages,
    name: str,
    learner: MAMLTRPO,
    options: argparse.Namespace,
    backend: Backend,
) -> None:
    """Describe one method's training, and check what it is resumed from.

    Its best theta has the best return on validation goals: the mean of those after 1, 2
    and 3 gradient steps; the oracle, which does not adapt, has only the one before any
    step.
    """

    def sample(rng: np.random.Generator) -> MetaBatch:
        if learner.steps == 0:
            return draw_pooled(learner, rng)
        return learner.draw(rng, TASKS)

    def outer_step(theta: Array, draw: MetaBatch) -> MetaStep:
        step = learner.step(theta, draw)
        if not step.accepted:
            tqdm.write(
                f"{name}: an outer step changed nothing: {step.reason}", sys.stderr
            )
        return step

    def validate(theta: Array) -> float:
        steps = 0 if name == "oracle" else VALIDATION_STEPS
        adapted = adapt(name, theta, VALIDATION, steps, options, backend)
        return float(adapted.returns()[:, min(steps, 1) :].mean())

    stages.prepare(
        name,
        outer_step,
        learner.policy.init(random_stream(INITIAL, options.seed)),
        sample,
        iterations=options.iterations,
        optimiser=tm.SGD(1.0),  # the trust region decides the length of the step
        rng=random_stream(TRAINING, options.seed),
        columns=COLUMNS,
        log_every=1,
        checkpoint_every=VALIDATE_EVERY,
        validate=validate,
        validate_every=VALIDATE_EVERY,
        description=METHODS[name].label,
        config={"context": options.context} if name == "context" else None,
    )


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
    """A method's trajectories for 40 goals, before and after each gradient step."""
    learner = make_learner(
        options,
        backend,
        goal_visible=name == "oracle",
        context=options.context if name == "context" else 0,
        trajectories=TEST_TRAJECTORIES,
        transitions=TEST_TRANSITIONS,
    )
    rng = random_stream(purpose, 0)
    goals = learner.environment.draw(rng, (TEST_TASKS,))
    alphas = [learner.alpha] + [learner.alpha / 2] * steps
    draw = MetaBatch(goals, learner.noise(rng, TEST_TASKS, steps))
    return learner.adapt(theta, draw, alphas[:steps])


# %% Figure 4: the return against gradient steps, and trajectories


def path_of(sampled: Trajectories, task: int) -> Array:
    """The positions of a task's first trajectory: (moves + 1, 2).

    An observation is where a move begins, so the end of the last move is added.
    """
    alive = sampled.mask[task, 0]
    positions = sampled.observations[task, 0][alive]
    last_move = LARGEST_MOVE * np.clip(sampled.actions[task, 0][alive][-1:], -1, 1)
    return np.concatenate([positions, positions[-1:] + last_move])


def draw_figure(
    stages: Stages,
    rows: Mapping[str, Sequence[Row]],
    adapted: Mapping[str, Adaptation],
    goals: Array,
    out: Path,
) -> None:
    """Figure 4: curves of all methods, and paths of two policies to three goals."""
    curves, training = [], []
    for name, points in rows.items():
        method = METHODS[name]
        style = (method.label, method.colour, method.marker)
        values, interval = (
            np.array([row[key] for row in points]) for key in ("return", "ci95")
        )
        curves.append(Curve(*style, np.arange(len(values)), values, interval))
        if name in stages.results:
            log = stages.results[name].losses
            returns = np.array([-row.loss for row in log])
            iterations = np.array([row.iteration for row in log])
            training.append(Curve(*style, iterations, returns, None))
    first = next(iter(adapted))
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
        choices=("1", "2", "both", "none"),
        default="both",
        help="exact MAML (2), the first-order approximation (1), both (the default) or "
        "none",
    )
    parser.add_argument(
        "--context",
        type=whole_number(1),
        metavar="SIZE",
        help="also train a policy that adapts SIZE free inputs in place of all weights",
    )
    parser.add_argument(
        "--alpha",
        type=positive_number,
        default=0.5,
        metavar="RATE",
        help="inner learning rate (step size), in training and at test (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--reward",
        choices=REWARDS,
        default=REWARDS[0],
        help="the reward is minus the distance to the goal, as in the authors' code "
        "(default), or minus its square, as in the paper",
    )
    add_resume(parser, "--seed, --alpha, --reward and --context")
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
        context=options.context,
        accepted_steps=accepted,
        best_iteration=best,
    )
    print(f"Mean return over {TEST_TASKS} goals, ± 95 % (in brackets: the authors')")
    print(table(rows))
    print(f"{seconds['total']:.0f} seconds; files are in {options.out}")


def start(parser: Parser, arguments: Sequence[str]) -> None:
    """Read the options, check everything, and run."""
    options, backend = read_options(parser, arguments)
    config = {
        "experiment": "navigation",
        "seed": options.seed,
        "alpha": options.alpha,
        "reward": options.reward,
    }
    names = learners(options, backend)
    command = command_line("examples/navigation.py", arguments)
    with open_stages(parser, options, command, names, config, FILES) as stages:
        run(stages, options, backend, command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with command-line arguments; return the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = make_parser()
    return run_to_the_end(parser, lambda: start(parser, arguments))


if __name__ == "__main__":
    sys.exit(main())
