"""2D navigation: section 5.3 of the paper, figure 4 and table 4.

    python examples/navigation.py             # all methods: 8 minutes on two cores
    python examples/navigation.py --order 2   # without first-order MAML
    python examples/navigation.py --context 5 # and a context vector of 5 numbers
    python examples/navigation.py --fast      # a short run, under a minute

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

Deviations: alpha = 0.5 is the authors' script's, and in the name of their file with the
results of figure 4; the paper's text has 0.1 (try --alpha 0.1). The reward is minus the
distance, as in the code, and not minus its square, as in the text (try --reward
squared). More are listed in docs/paper/section-5-3.md.

Written into the folder of --out: figure4.png (return against gradient steps, training,
and trajectories), results.json, and for each training a folder with log.csv and
checkpoint.npz: exact (MAML), first-order (first-order MAML), context, pretrained,
oracle. All but context and oracle also have initialisation.npz, the parameters that are
tested, with their returns; exact and pretrained of seed 0 come with the package
(tinymaml.pretrained). A row of the log has the size of the inner step as a mean KL
divergence, the mean return before and after adaptation, and whether the outer step was
accepted; if not, it has changed no parameter. Ctrl-C or SIGTERM saves and stops; a run
continued with --resume gives the same bits as one that never stopped.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from navigation_figures import Paths, draw_figure_4
from reinforcement import ORDERS, TEST, Experiment, Recipe, Row, methods
from reinforcement_figures import Curve
from shared import (
    INITIALISATION,
    STARTS,
    Parser,
    add_resume,
    command_line,
    experiment_parser,
    finite,
    four_digits,
    open_stages,
    positive_number,
    read_options,
    run_to_the_end,
    training_command,
    whole_number,
)
from tinymaml.backends import Backend
from tinymaml.paper.initialisations import save_initialisation
from tinymaml.paper.recipes import NavigationRecipe
from tinymaml.rl.maml_trpo import Adaptation
from tinymaml.rl.rollouts import Trajectories
from tinymaml.tasks.navigation import LARGEST_MOVE, REWARDS, Navigation

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
VALIDATE_EVERY = 5
METHODS = ("exact", "first-order", "context", "pretrained", "random", "oracle")
# The returns in the authors' files behind figure 4; the context vector's in table 4.
PAPER = {
    "exact": (-40.41, -11.68, -3.33, -3.23, -3.35),
    "context": (-42.42, -13.90, -5.17, -3.18),
    "pretrained": (-40.81, -19.73, -11.72, -8.47, -7.49),
    "random": (-82.66, -57.96, -53.84, -46.81),
    "oracle": (-2.29,),
}


def make_experiment(options: argparse.Namespace, backend: Backend) -> Experiment:
    """The trainings and the test that the options ask for."""

    def environment(goal_visible: bool) -> Navigation:
        return Navigation(options.reward, goal_visible=goal_visible)

    orders = {"exact": ("2", "both"), "first-order": ("1", "both")}
    left_out = [name for name in orders if options.order not in orders[name]]
    left_out += [] if options.context else ["context"]
    recipe = Recipe(
        alpha=options.alpha,
        context=options.context or 0,
        tasks=TASKS,
        trajectories=TRAJECTORIES,
        pooled=POOLED,
        iterations=dict.fromkeys(METHODS, options.iterations),
        hidden=HIDDEN,
        test_tasks=TEST_TASKS,
        test_steps=TEST_STEPS,
        test_trajectories=TEST_TRAJECTORIES,
        test_transitions=TEST_TRANSITIONS,
        validate_every=VALIDATE_EVERY,
        validate_baselines_every=VALIDATE_EVERY,
    )
    papers = PAPER if options.reward == "distance" else {}
    names = [name for name in METHODS if name not in left_out]
    return Experiment(
        "navigation", environment, recipe, methods(papers), names, options, backend
    )


# %% What others can start from
# The policies that adapt, with what they were trained on and how well they find new
# goals: two of the files behind `tm.pretrained`.

REWARD_WORDS = {
    "distance": "the reward is minus the distance",
    "squared": "the reward is minus the squared distance",
}


def save_starts(
    experiment: Experiment,
    command: str,
    thetas: Mapping[str, Array],
    rows: Mapping[str, Sequence[Row]],
    best: Mapping[str, int],
) -> None:
    """Write initialisation.npz into the folders of the trainings in `STARTS`."""
    options, recipe = experiment.options, experiment.recipe
    for name in [name for name in thetas if name in STARTS]:
        facts = {
            "data": f"2D navigation: unseen goals, {REWARD_WORDS[options.reward]}",
            "method": experiment.methods[name].label,
            "order": ORDERS.get(name),
            "iterations": options.iterations,
            "best_iteration": best.get(name),
            "seed": options.seed,
            "test_tasks": TEST_TASKS,
            "transitions": TEST_TRANSITIONS,
            "steps": [row["steps"] for row in rows[name]],
            "alpha": recipe.inner_learning_rates(recipe.alpha, TEST_STEPS),
            **four_digits(rows[name], "return", "ci95"),
            "command": training_command(command),
        }
        start = NavigationRecipe(options.alpha, options.reward)
        path = options.out / name / INITIALISATION
        save_initialisation(path, thetas[name], start, finite(facts))


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
    experiment: Experiment,
    curves: Sequence[Curve],
    training: Sequence[Curve],
    adapted: dict[str, Adaptation],
) -> None:
    """Figure 4: curves of all methods, and paths of two policies to three goals."""
    goals = experiment.test_batch(experiment.tester(), TEST, 0).tasks
    chosen = np.argsort(goals @ [1.0, 1.0])[[0, len(goals) // 2, -1]]
    paths = [
        Paths(
            experiment.methods[name].label,
            experiment.methods[name].colour,
            [
                [path_of(sampled, task) for task in chosen]
                for sampled in adapted[name].trajectories[:TEST_STEPS]
            ],
        )
        for name in dict.fromkeys((next(iter(adapted)), "pretrained"))
    ]
    out = experiment.options.out / "figure4.png"
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


def start(parser: Parser, arguments: Sequence[str]) -> None:
    """Read the options, check everything, and run."""
    options, backend = read_options(parser, arguments)
    settings = {"alpha": options.alpha, "reward": options.reward}
    config = {"experiment": "navigation", "seed": options.seed, **settings}
    experiment = make_experiment(options, backend)
    command = command_line("examples/navigation.py", arguments)
    names = experiment.trained
    starts = [f"{name}/{INITIALISATION}" for name in names if name in STARTS]
    draw = partial(draw_figure, experiment)
    save = partial(save_starts, experiment, command)
    files = [*FILES, *starts]
    tested = [*experiment.methods]
    with open_stages(
        parser, options, command, names, config, files, tested=tested
    ) as stages:
        more = {**settings, "context": options.context}
        experiment.run(stages, command, draw, save, **more)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with command-line arguments; return the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = make_parser()
    return run_to_the_end(parser, lambda: start(parser, arguments))


if __name__ == "__main__":
    sys.exit(main())
