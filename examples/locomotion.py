"""Locomotion on MuJoCo: section 5.3 of the paper, figure 5 and table 5.

    python examples/locomotion.py --env cheetah-direction
    python examples/locomotion.py --env cheetah-velocity --out results/velocity
    python examples/locomotion.py --env ant-direction --methods exact
    python examples/locomotion.py --fast      # a short run, under a minute

A half-cheetah or an ant is to run at a velocity, forward or backward, or, the ant, to a
position, and does not see which; it learns it from the rewards of some trajectories. A
policy meta-learned by MAML is compared with one pretrained on all tasks at once, with
random weights, and with an oracle, which observes the goal as well; --methods chooses,
and has first-order MAML and a context vector (table 5: free inputs are adapted in place
of all weights) too.
Needs MuJoCo: pip install "tinymaml[locomotion]".

The recipe is that of the authors' code: a policy with two hidden layers of 100 relu
units, actions normal with standard deviations that are parameters too; one inner
policy-gradient step of alpha = 0.1; 40 tasks in an outer step by TRPO; discount 0.99,
linear baseline, standardised advantages; trajectories of at most 200 steps. The file
locomotion_settings.py has what differs between environments: the number of trajectories
of a task, and the size and the number of outer steps. The baselines take 100
trajectories in an outer step, each with its own goal. Test: 40 goals, the same for all
methods and seeds; inner learning rates s for the first gradient step and s / 2 after it
(s / 100 for ant-direction, as in the authors' code), with s = alpha for MAML and the
authors' for the others; 95 % intervals of 1.96 standard deviations / sqrt(40).

Deviations: the engine is a newer MuJoCo (tinymaml/rl/locomotion.py lists what differs).
The parameters tested are those with the best return on 40 validation goals, after 1 to
3 gradient steps; the paper has those with the best return during training. The authors
take 800 outer steps, and 1,000 (ant: 2,000) for baselines; --iterations and
--baseline-iterations choose.

Written into the folder of --out: figure5.png (return against gradient steps beside the
authors', training, and stick figures before and after the first gradient step),
results.json, with --gif adaptation.gif, and for each training a folder with log.csv and
checkpoint.npz. A row of the log has the size of the inner step as a mean KL divergence,
the mean return before and after adaptation, whether the outer step was accepted, the
steps of physics a second while the simulator ran, and how many trajectories unstable
physics has ended (MuJoCo says so on the terminal and in MUJOCO_LOG.TXT). Ctrl-C or
SIGTERM saves and stops; a run continued with --resume gives the same bits as one that
never stopped.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import numpy as np

from locomotion_figures import Film, draw_figure_5, write_animation
from locomotion_settings import BODIES, SETTINGS, Timed
from reinforcement import COLUMNS, TEST, Experiment, Recipe, methods
from reinforcement_figures import Curve
from shared import (
    Parser,
    add_resume,
    command_line,
    experiment_parser,
    fraction,
    open_stages,
    positive_number,
    read_options,
    run_to_the_end,
    text_table,
    whole_number,
)
from tinymaml.backends import Backend
from tinymaml.rl.locomotion import Locomotion
from tinymaml.rl.maml_trpo import MAMLTRPO, Adaptation, MetaBatch

Array = np.ndarray[Any, Any]
FILES = ("figure5.png", "results.json")
ANIMATION = "adaptation.gif"
METHODS = ("exact", "first-order", "context", "pretrained", "random", "oracle")

# %% The recipe

ALPHA = 0.1
TASKS = 40  # in an outer step
POOLED = 100  # trajectories in an outer step of a baseline, each with its own goal
TEST_TASKS, TEST_STEPS = 40, 3
VALIDATE_EVERY, VALIDATE_BASELINES_EVERY = 10, 50
FAST = {"tasks": 6, "trajectories": 8, "pooled": 16, "test_tasks": 8, "shots": 8}


class LocomotionExperiment(Experiment):
    """The trainings and the test in a body's environment."""

    columns = (*COLUMNS, "physics_per_second", "unstable")

    def step(self, learner: MAMLTRPO, theta: Array, batch: MetaBatch) -> Any:
        """An outer step, with the numbers of `columns`; counts are of all processes."""
        body = learner.environment
        assert isinstance(body, Timed)
        body.steps, body.seconds, body.unstable = 0, 0.0, 0
        step = learner.step(theta, batch)
        ranks = learner.ranks.for_tasks(len(batch.tasks))
        own = np.array([[body.steps, body.seconds, body.unstable]])
        steps, seconds, unstable = ranks.gather(own).T
        return SimpleNamespace(
            **step._asdict(),
            physics_per_second=steps.sum() / seconds.max(),
            unstable=unstable.sum(),
        )


def make_recipe(options: argparse.Namespace) -> Recipe:
    """The sizes that the options ask for."""
    setting = SETTINGS[options.env]
    sizes: dict[str, Any] = {
        "tasks": TASKS,
        "trajectories": setting.trajectories,
        "pooled": POOLED,
        "test_tasks": TEST_TASKS,
        "shots": setting.shots,
    }
    sizes |= FAST if options.fast else {}
    given = {"tasks": options.tasks, "trajectories": options.trajectories}
    sizes |= {name: size for name, size in given.items() if size is not None}
    # Ants fall; then more trajectories are sampled, at most twice as many.
    falls, shots = options.env.startswith("ant"), sizes["shots"]
    iterations = dict.fromkeys(METHODS, options.iterations)
    iterations |= dict.fromkeys(("pretrained", "oracle"), options.baseline_iterations)
    return Recipe(
        alpha=options.alpha,
        context=options.context,
        max_kl=options.max_kl,
        decay=options.decay,
        iterations=iterations,
        test_alphas={"pretrained": setting.pretrained, "random": setting.random},
        later=setting.later,
        test_steps=TEST_STEPS,
        test_trajectories=2 * shots if falls else shots,
        test_transitions=shots * 200 if falls else None,
        validate_every=VALIDATE_EVERY,
        validate_baselines_every=VALIDATE_BASELINES_EVERY,
        **sizes,
    )


def make_experiment(
    options: argparse.Namespace, backend: Backend
) -> LocomotionExperiment:
    """The trainings and the test that the options ask for.

    Raises ImportError if MuJoCo is missing.
    """
    body, _, task = options.env.partition("-")

    def environment(goal_visible: bool) -> Timed:
        return BODIES[body](task, goal_visible=goal_visible, threads=options.threads)

    environment(False)
    return LocomotionExperiment(
        "locomotion",
        environment,
        make_recipe(options),
        methods(SETTINGS[options.env].paper),
        options.methods,
        options,
        backend,
    )


# %% The two directions apart
# A policy that runs in one direction only has half of the mean return.


def by_direction(experiment: Experiment, adapted: Mapping[str, Adaptation]) -> str:
    """The mean returns of goals -1 and 1 as a table."""
    lines = []
    for name, rows in experiment.returns_by_goal(adapted).items():
        table = np.array(rows)
        for goal in np.unique(table[:, 0]):
            means = table[table[:, 0] == goal, 1:].mean(axis=0)
            label = f"{experiment.methods[name].label}, goal {goal:.0f}"
            cells = [f"{mean:.2f}" for mean in means]
            lines.append([label, *cells, *[""] * (TEST_STEPS + 1 - len(cells))])
    header = ["each direction", *(f"{j} steps" for j in range(TEST_STEPS + 1))]
    return text_table(header, lines)


# %% Figure 5: the return against gradient steps, and stick figures


def states_of(
    environment: Locomotion, batch: MetaBatch, adaptation: Adaptation, task: int, j: int
) -> Array:
    """The states of a task's first trajectory after j gradient steps: (steps + 1, S).

    The trajectory is that of the test. Its actions are taken again from its start, and
    give the same bits.
    """
    assert batch.start_noise is not None
    sampled, goal = adaptation.trajectories[j], batch.tasks[task : task + 1]
    states = [environment.start(goal, 1, batch.start_noise[j, task : task + 1, :1])]
    for action in sampled.actions[task, 0][sampled.mask[task, 0]]:
        states.append(environment.step(states[-1], action[None, None], goal)[0])
    return np.concatenate(states)[:, 0]


def films(
    experiment: Experiment, adapted: Mapping[str, Adaptation], env: str
) -> list[Film]:
    """The lowest and the highest goal, each before and after one gradient step.

    A position's first number decides, along x.
    """
    name = next((name for name in adapted if name != "oracle"), "oracle")
    adapts = name != "oracle"
    times = ["before", "after one gradient step"] if adapts else ["which it observes"]
    learner = experiment.tester(not adapts)
    steps = len(adapted[name].trajectories) - 1
    batch = experiment.test_batch(learner, TEST, steps)
    body = learner.environment
    assert isinstance(body, Locomotion)
    # A half-cheetah is seen from the side, and an ant from above.
    plane = [0, 2] if env.startswith("cheetah") else [0, 1]
    method, shown = experiment.methods[name], []
    for task in (batch.tasks[:, 0].argmin(), batch.tasks[:, 0].argmax()):
        goal = ", ".join(f"{number:.2g}" for number in batch.tasks[task])
        for j, when in enumerate(times):
            states = states_of(body, batch, adapted[name], int(task), j)
            poses = np.stack([body.skeleton(state) for state in states])[..., plane]
            title = f"{method.label}, goal {goal}: {when}"
            shown.append(Film(title, method.colour, poses))
    return shown


def draw(
    experiment: Experiment,
    curves: Sequence[Curve],
    training: Sequence[Curve],
    adapted: Mapping[str, Adaptation],
) -> None:
    """Write figure5.png and, if it is asked for, the animation."""
    options = experiment.options
    if options.env.endswith("direction"):
        print(by_direction(experiment, adapted))
    shown, floor = films(experiment, adapted, options.env), "cheetah" in options.env
    draw_figure_5(curves, training, shown, floor, options.out / "figure5.png")
    if options.gif:
        write_animation(shown, floor, options.out / ANIMATION)
    else:  # an earlier run's would be beside this run's figure
        (options.out / ANIMATION).unlink(missing_ok=True)


# %% Everything


def make_parser() -> Parser:
    """The options of this example."""
    parser = experiment_parser(
        __doc__ or "",
        out="results/locomotion",
        iterations="400 to 800, by --env; baselines have an option of their own",
        fast=3,
        fast_changes=", fewer tasks and trajectories",
    )
    add = parser.add_argument
    add(
        "--env",
        choices=SETTINGS,
        default="cheetah-direction",
        help="body and kind of task (default: %(default)s)",
    )
    add(
        "--methods",
        nargs="+",
        choices=METHODS,
        default=["exact", "pretrained", "random", "oracle"],
        metavar="NAME",
        help=f"what is compared: {', '.join(METHODS)} (default: all but the second and "
        "the third)",
    )
    add(
        "--context",
        type=whole_number(1),
        metavar="SIZE",
        help="free inputs of the policy with a context vector, for --methods context "
        f"(default: {Recipe.context})",
    )
    add(
        "--baseline-iterations",
        type=whole_number(0),
        metavar="N",
        help="number of outer steps of the pretrained policy and the oracle (default: "
        "500 for the half-cheetah, 1,000 for the ant)",
    )
    add(
        "--alpha",
        type=positive_number,
        default=ALPHA,
        metavar="RATE",
        help="MAML's inner learning rate (step size), in training and at test "
        "(default: %(default)s)",
    )
    add(
        "--max-kl",
        type=positive_number,
        metavar="KL",
        help="mean KL divergence of an outer step (default: 0.01; 0.02 for "
        "cheetah-direction)",
    )
    add(
        "--decay",
        type=fraction,
        default=1.0,
        metavar="LAMBDA",
        help="GAE's lambda: less than the authors' 1 (default) makes advantages less "
        "noisy, and biased",
    )
    add(
        "--tasks",
        type=whole_number(1),
        metavar="T",
        help=f"tasks in an outer step of MAML (default: {TASKS})",
    )
    add(
        "--trajectories",
        type=whole_number(1),
        metavar="B",
        help="trajectories of each task before and after the inner step of training "
        "(default: 10 to 40, by --env)",
    )
    add(
        "--gif",
        action="store_true",
        help=f"also write an animation, {ANIMATION}; without it, one that is in the "
        "folder of --out is removed",
    )
    add_resume(
        parser,
        "--env, --seed, --context, --alpha, --max-kl, --decay, --tasks, "
        "--trajectories, --fast and version of MuJoCo",
    )
    return parser


def fill_in(options: argparse.Namespace) -> None:
    """Give options without a value that of the environment."""
    setting = SETTINGS[options.env]
    if options.context is None:
        options.context = Recipe.context
    if options.iterations is None:
        options.iterations = setting.iterations
    if options.baseline_iterations is None:
        options.baseline_iterations = (
            options.iterations if options.fast else setting.baseline_iterations
        )
    if options.max_kl is None:
        options.max_kl = setting.max_kl


def start(parser: Parser, arguments: Sequence[str]) -> None:
    """Read the options, check everything, and run."""
    options, backend = read_options(parser, arguments)
    if options.context is not None and "context" not in options.methods:
        parser.error("argument --context: expected context among --methods")
    fill_in(options)
    try:
        experiment = make_experiment(options, backend)
    except ImportError as error:
        parser.error(str(error))
    recipe, names = experiment.recipe, experiment.trained
    settings = {
        "env": options.env,
        "alpha": options.alpha,
        "max_kl": options.max_kl,
        "decay": options.decay,
        "tasks": recipe.tasks,
        "trajectories": recipe.trajectories,
        "pooled": recipe.pooled,
        "mujoco": version("mujoco"),
    }
    more = {
        "baseline_iterations": options.baseline_iterations,
        "context": recipe.context,
        "shots": recipe.shots,
    }
    config = {"experiment": "locomotion", "seed": options.seed, **settings}
    command = command_line("examples/locomotion.py", arguments)
    files = [*FILES, ANIMATION] if options.gif else FILES
    most = max(recipe.iterations.values())
    tested = [*experiment.methods]
    with open_stages(
        parser, options, command, names, config, files, most, tested
    ) as stages:
        experiment.run(stages, command, partial(draw, experiment), **settings, **more)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with command-line arguments; return the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = make_parser()
    return run_to_the_end(parser, lambda: start(parser, arguments))


if __name__ == "__main__":
    sys.exit(main())
