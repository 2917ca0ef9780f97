"""What the classification examples share: train a recipe, test it, draw the results.

`omniglot.py` and `miniimagenet.py` choose the images and the recipes; everything else
that they do is here.
"""

import argparse
import hashlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import tinymaml as tm
from few_shot_evaluation import (
    episode,
    fixed_tasks,
    logits,
    sampler,
    table,
    test,
)
from few_shot_figures import draw_curve, draw_episode
from methods import RELATIVES, meta_learners
from shared import (
    INITIALISATION,
    STARTS,
    Parser,
    add_images,
    add_resume,
    command_line,
    experiment_parser,
    file_path,
    open_stages,
    positive_number,
    random_stream,
    read_options,
    reason,
    run_to_the_end,
    training_command,
    whole_number,
    write_results,
)
from stages import Stages
from tinymaml.backends import Backend
from tinymaml.networks.images import ImageNetwork
from tinymaml.paper.initialisations import (
    Initialisation,
    load_initialisation,
    save_initialisation,
)
from tinymaml.paper.recipes import RECIPES, SCALINGS, Recipe, accuracy
from tinymaml.tasks.images import STANDIN, DataError, ImageSet
from tinymaml.training.optim import Schedule, cosine

Array = np.ndarray[Any, Any]
FILES = ("curve.png", "episode.png", "results.json", INITIALISATION)
TRAININGS = {1: "first-order", 2: "exact"}  # by order
PARTS = ("train", "validation", "test")
TEST_TASKS, TEST_TASKS_FAST = 600, 60
VALIDATION_TASKS, VALIDATION_TASKS_FAST = 200, 20
VALIDATE_EVERY, VALIDATE_EVERY_FAST = 500, 20

# Purposes of random numbers; each has a stream of its own (`random_stream`).
INITIAL, TRAINING, VALIDATION, TEST = 1, 2, 3, 4


class Experiment(NamedTuple):
    """What differs between data sets: names, images, whether tasks rotate them.

    one_shot: the tasks of --evaluate one-shot, or None without this option.
    """

    name: str
    program: str
    load: Callable[[argparse.Namespace], Mapping[str, ImageSet]]
    rotations: bool
    one_shot: Callable[[argparse.Namespace, ImageSet], tm.Tasks | None] = (
        lambda options, images: None
    )


# %% Options


def initialisation(text: str) -> tuple[Initialisation, Path | None]:
    """An argparse type: an initialisation by its .npz file, with this, or its name."""
    try:
        if text.endswith(".npz"):
            path = file_path(text)
            return load_initialisation(path), path
        return tm.pretrained(text), None
    except (OSError, ValueError) as error:
        words = reason(error)
        if words.startswith("name: "):
            words = words.removeprefix("name: ") + ", which is no .npz file either"
        raise argparse.ArgumentTypeError(words) from None


def make_parser(
    doc: str, name: str, recipes: Sequence[str], own_options: str = ""
) -> Parser:
    """The options of a classification example; `recipes` are cells of table 1.

    own_options: those of the example's own that a resumed run must share.
    """
    parser = experiment_parser(
        doc,
        f"results/{name}",
        RECIPES[recipes[0]].iterations,
        fast=60,
        fast_changes=f", {VALIDATION_TASKS_FAST} tasks for validation and "
        f"{TEST_TASKS_FAST} for the test",
    )
    add = parser.add_argument
    add(
        "--recipe",
        choices=recipes,
        default=recipes[0],
        help="the cell of table 1 or 3: N ways, K shots (default: %(default)s)",
    )
    trained = parser.add_mutually_exclusive_group()
    trained.add_argument(
        "--order",
        type=int,
        choices=(1, 2),
        help="exact MAML (2, the default) or the first-order approximation (1)",
    )
    trained.add_argument(
        "--method",
        choices=meta_learners("omniglot"),
        metavar="NAME",
        help="a relative of MAML (docs/variants.md) in the place of what --order says: "
        "%(choices)s",
    )
    add(
        "--scaling",
        choices=SCALINGS,
        default=SCALINGS[0],
        help="scale of the cross-entropy: its sum / K, as in the authors' code "
        "(per_shot, the default), or its mean, with inner steps N times smaller",
    )
    add(
        "--queries",
        type=whole_number(1),
        metavar="N",
        help="query examples of each class in training (default: K, for MiniImagenet "
        "15, as in the authors' code); validation and test have K",
    )
    add(
        "--clip",
        type=positive_number,
        metavar="X",
        help="clip every entry of the meta-gradient to [-X, X] (default: 10 for "
        "MiniImagenet, as in the authors' code, and with the methods step-rates and "
        "maml++; else no clipping)",
    )
    add(
        "--learning-rate",
        type=positive_number,
        metavar="X",
        help="Adam's learning rate (default: 0.001, as in the authors' code)",
    )
    add(
        "--decay",
        action="store_true",
        help="let Adam's learning rate fall to 0 over --iterations, as half a cosine "
        "wave (default: it stays, as in the authors' code)",
    )
    add(
        "--initialisation",
        type=initialisation,
        metavar="NAME",
        help="start from these parameters, not from random ones: the .npz file that "
        "another run wrote, or a name that tinymaml.pretrained knows; with "
        "--iterations 0 they are tested as they are. The --seed of that run draws its "
        "tasks again",
    )
    add_images(
        parser,
        "the data",
        standin="images drawn by a program instead of the data, to try the example",
    )
    add_resume(
        parser,
        "--recipe, --order, --method, --scaling, --queries, --clip, --learning-rate, "
        f"--decay, --initialisation, --seed, --standin, --fast{own_options}",
        ", but not with --decay",
    )
    # Omniglot's own options.
    parser.set_defaults(download=False, no_rotations=False, split="authors")
    return parser


def describe(recipe: Recipe, decay: bool = False) -> str:
    """A recipe in words, with one fact on each line."""
    losses = {
        "per_shot": "sum over examples / K, as in the authors' code",
        "mean": "mean over examples",
    }
    facts = {
        "task": f"{recipe.ways}-way {recipe.shots}-shot, {recipe.queries} query "
        f"examples a class in training, {recipe.shots} at test",
        "network": f"{recipe.architecture}, {recipe.network().size:,} parameters",
        "cross-entropy": losses[recipe.scaling],
        "inner step": f"alpha = {recipe.alpha:g}, that is {recipe.step_on_mean:g} on "
        "the mean cross-entropy",
        "inner steps": f"{recipe.steps} in training; the paper reports "
        f"{recipe.test_steps} at test",
        "outer step": f"Adam, {recipe.learning_rate:g}"
        + (" falling to 0, " if decay else ", ")
        + f"{recipe.tasks} tasks"
        + (f", entries clipped to {recipe.clip:g}" if recipe.clip else ""),
    }
    return "\n".join(f"{name + ':':<15}{fact}" for name, fact in facts.items())


# %% Meta-training


def learner(
    network: ImageNetwork, recipe: Recipe, options: argparse.Namespace, backend: Backend
) -> tm.MAML:
    """MAML or its relative, with the settings of the recipe and of --clip."""
    maml = recipe.maml(network, backend=backend)
    maml = RELATIVES[options.method].learner(maml, network)
    if options.clip is not None:
        maml.clip = options.clip
    return maml


def train(
    stages: Stages,
    experiment: Experiment,
    recipe: Recipe,
    sets: Mapping[str, ImageSet],
    options: argparse.Namespace,
    backend: Backend,
) -> tm.TrainResult:
    """Meta-train; the result's best theta has the highest validation accuracy."""
    network = recipe.network()
    maml = learner(network, recipe, options, backend)
    sample = sampler(
        sets["train"], recipe, experiment.rotations, recipe.queries, recipe.tasks
    )
    validation_tasks = fixed_tasks(
        sets["validation"],
        recipe,
        experiment.rotations,
        VALIDATION,
        options.validation_tasks,
    )
    steps = RELATIVES[options.method].reported_steps(recipe.test_steps, maml)

    def validate(theta: Array) -> float:
        after = logits(maml, [network], theta, validation_tasks, steps)[0, :, steps]
        return float(accuracy(after, validation_tasks.y_query).mean())

    rate: float | Schedule = recipe.learning_rate
    if options.decay and options.iterations:
        rate = cosine(recipe.learning_rate, options.iterations)
    if options.initialisation is None:
        theta = network.init(random_stream(INITIAL, options.seed))
    else:
        theta = options.initialisation.theta
    return stages.train(
        options.method,
        maml,
        RELATIVES[options.method].start(maml, theta),
        sample,
        iterations=options.iterations,
        optimiser=tm.Adam(rate),
        rng=random_stream(TRAINING, options.seed),
        validate=validate,
        validate_every=options.validate_every,
        checkpoint_every=options.validate_every,
        log_every=min(100, options.validate_every),
        description=RELATIVES[options.method].label,
    )


# %% Everything


def run(
    stages: Stages,
    experiment: Experiment,
    sets: Mapping[str, ImageSet],
    one_shot: tm.Tasks | None,
    options: argparse.Namespace,
    backend: Backend,
    command: str,
) -> None:
    """Train, test, print, draw. one_shot: more tasks for a test, if there are any."""
    recipe = RECIPES[options.recipe].scaled(options.scaling)
    source = sets["train"].source
    maml = learner(recipe.network(), recipe, options, backend)
    # A relative has its own inner loop; of several rates this is the largest.
    alpha = float(np.max(maml.alpha))
    trained = replace(
        recipe, queries=options.queries, learning_rate=options.learning_rate
    )
    own = replace(trained, alpha=alpha, steps=maml.steps, clip=maml.clip)
    print(describe(own, options.decay))
    print(f"{'data:':<15}{source}, classes: {class_counts(sets)}")
    if options.initialisation is not None:
        first = options.initialisation.recipe
        print(f"{'start:':<15}parameters of {first.name}, scaling {first.scaling}")
    result = train(stages, experiment, trained, sets, options, backend)
    theta = result.theta if result.best is None else result.best
    best = max(
        result.scores, key=lambda score: score[1], default=(result.iteration, None)
    )

    started = time.perf_counter()
    tasks = fixed_tasks(
        sets["test"], recipe, experiment.rotations, TEST, options.test_tasks
    )
    real = source != STANDIN
    as_in_paper = real and options.split == "authors" and not options.no_rotations
    rows = test(theta, recipe, tasks, maml, options.method, as_in_paper)
    of_one_shot = []
    if one_shot is not None:
        of_one_shot = test(theta, recipe, one_shot, maml, options.method, False)
    seconds = {"train": result.seconds, "test": time.perf_counter() - started}
    started = time.perf_counter()
    title = f"{recipe.name}, {RELATIVES[options.method].label}, {source}"
    draw_curve(result, title, options.out / "curve.png")
    steps = RELATIVES[options.method].reported_steps(recipe.test_steps, maml)
    shown = episode(theta, recipe, tasks, maml, steps)
    draw_episode(shown, title, options.out / "episode.png")
    seconds["figures"] = time.perf_counter() - started
    seconds["total"] = sum(seconds.values())
    facts = {
        "data": source,
        "classes": class_counts(sets),
        "recipe": recipe.name,
        "order": maml.order,
        "method": options.method,
        "scaling": recipe.scaling,
        "queries": trained.queries,
        "clip": maml.clip,
        "learning_rate": trained.learning_rate,
        "decay": options.decay,
        "initialisation": source_of_start(options.initialisation),
        "step_on_mean": own.step_on_mean,
        "best_iteration": best[0],
        "test_tasks": options.test_tasks,
        "rotations": experiment.rotations,
    }
    reported = rows[steps]  # transductive, as in the paper
    if options.method in STARTS:  # what others can start from is MAML's theta
        save_initialisation(
            options.out / INITIALISATION,
            theta,
            recipe,
            {
                **facts,
                "accuracy": reported["accuracy"],
                "ci95": reported["ci95"],
                "command": training_command(command),
            },
        )
    facts["validation"] = [list(score) for score in result.scores]
    if of_one_shot:
        facts["one_shot"] = of_one_shot
    write_results(experiment.name, command, options, backend, seconds, rows, **facts)
    print(f"\nAccuracy (%) on {options.test_tasks} tasks of test classes, {source}")
    print(table(rows, recipe, steps))
    if of_one_shot:
        print(
            f"\nOn {options.test_tasks} tasks, each of {recipe.ways} characters of one "
            "alphabet, drawn by two people"
        )
        print(table(of_one_shot, recipe, steps, paper=False))
    of = "the paper reports of MAML" if options.method in STARTS else "is reported"
    print(f"* the step that {of}; ± 95 % of the mean over tasks")
    if not real:
        print("These images are drawn stand-ins: not to be compared with the paper.")
    print(f"{seconds['total']:.0f} seconds; files are in {options.out}")


def class_counts(sets: Mapping[str, ImageSet]) -> str:
    """How many classes there are to train, to validate and to test on."""
    return ", ".join(f"{len(sets[part].classes)} {part}" for part in PARTS)


def source_of_start(start: Initialisation | None) -> str | None:
    """The command that made the start of a training; None: it was random."""
    return None if start is None else str(start.facts.get("command", "not known"))


def check_start(
    parser: Parser, start: Initialisation, recipe: Recipe, sets: Mapping[str, ImageSet]
) -> None:
    """End with an error unless training on these sets can go on from `start`.

    It must have the parameters of this recipe's network. From another split of the same
    data it may know the test classes.
    """
    networks = [
        f"{other.architecture} for {other.ways} classes"
        if isinstance(other, Recipe)
        else type(start.network).__name__
        for other in (recipe, start.recipe)
    ]
    if networks[0] != networks[1]:
        parser.error(
            "argument --initialisation: expected parameters of the network of "
            f"{recipe.name}, {networks[0]}, got those of {networks[1]}"
        )
    if start.theta.dtype != "float32":
        parser.error(
            "argument --initialisation: expected parameters in float32, got "
            f"{start.theta.dtype}"
        )
    ours, theirs = class_counts(sets), start.facts.get("classes")
    same_data = start.facts.get("data") == sets["train"].source
    if same_data and theirs is not None and theirs != ours:
        parser.error(
            "argument --initialisation: expected parameters of the same split, "
            f"{ours}, got those of {theirs}, which may know classes of the test"
        )


def run_example(
    experiment: Experiment, parser: Parser, arguments: Sequence[str] | None
) -> int:
    """Run with command-line arguments; return the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    return run_to_the_end(parser, lambda: start(experiment, parser, given))


def start(experiment: Experiment, parser: Parser, arguments: Sequence[str]) -> None:
    """Read options and data, check everything, and run."""
    options, backend = read_options(parser, arguments)
    if options.fast:
        options.validate_every = VALIDATE_EVERY_FAST
        options.validation_tasks, options.test_tasks = (
            VALIDATION_TASKS_FAST,
            TEST_TASKS_FAST,
        )
    else:
        options.validate_every = VALIDATE_EVERY
        options.validation_tasks, options.test_tasks = VALIDATION_TASKS, TEST_TASKS
    if options.standin and options.download:
        parser.error("argument --download: not allowed with argument --standin")
    try:
        sets = experiment.load(options)
    except (DataError, ImportError, OSError) as error:
        parser.error(f"argument --data: {reason(error).removeprefix('data: ')}")
    try:
        one_shot = experiment.one_shot(options, sets["test"])
    except ValueError as error:
        parser.error(f"argument --evaluate: {reason(error)}")
    if options.no_rotations:
        experiment = experiment._replace(rotations=False)
    # As a default of argparse, --order 2 beside --method would pass for not given.
    options.order = options.order or 2
    config = {
        "experiment": experiment.name,
        "data": sets["train"].source,
        "classes": class_counts(sets),
        "recipe": options.recipe,
        "order": options.order,
        "scaling": options.scaling,
        "seed": options.seed,
        "validate_every": options.validate_every,
    }
    recipe = RECIPES[options.recipe]
    options.queries = options.queries or recipe.queries
    options.learning_rate = options.learning_rate or recipe.learning_rate
    # Not with keys of their own, which the checkpoints of older runs have not.
    if options.queries != recipe.queries:
        try:
            sampler(sets["train"], recipe, False, options.queries)
        except ValueError as error:
            parser.error(f"argument --queries: {reason(error)}")
        config["recipe"] += f" --queries {options.queries}"
    if options.initialisation is not None:
        options.initialisation, file = options.initialisation
        replaced = options.out / INITIALISATION
        if file is not None and os.path.realpath(file) == os.path.realpath(replaced):
            parser.error(
                "argument --initialisation: expected a file that this run does not "
                f"replace, got {file}"
            )
        check_start(parser, options.initialisation, recipe, sets)
        digest = hashlib.sha256(options.initialisation.theta.tobytes()).hexdigest()
        config["recipe"] += f" --initialisation of digest {digest[:12]}"
    if options.learning_rate != recipe.learning_rate:
        config["recipe"] += f" --learning-rate {options.learning_rate!r}"
    if options.clip is not None:
        config["recipe"] += f" --clip {options.clip!r}"
    if options.decay:
        config["recipe"] += f" --decay over {options.iterations} iterations"
    if options.no_rotations:
        config["data"] += ", not rotated"
    if options.method is not None and "context" in options.recipe:
        parser.error(
            "argument --method: expected a --recipe that adapts weights, got "
            f"{options.recipe}"
        )
    if options.method is None:
        options.method = TRAININGS[options.order]
    else:
        config |= {"order": None, "method": options.method}
    names = [options.method]
    command = command_line(experiment.program, arguments)
    with open_stages(parser, options, command, names, config, FILES) as stages:
        run(stages, experiment, sets, one_shot, options, backend, command)
