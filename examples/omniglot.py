"""Few-shot classification of Omniglot: section 5.2 of the paper, tables 1 and 3.

    python examples/omniglot.py --data DIR --iterations 20000  # 20 to 50 minutes
    python examples/omniglot.py --data DIR             # 60,000 iterations: 1 to 3 hours
    python examples/omniglot.py --fast --standin       # a minute, without the data

A task is to tell N new characters apart, given K drawings of each. --recipe names the
cell of table 1: 5w1s is 5-way 1-shot, 20w5s 20-way 5-shot, and fc- the network without
convolutions. With context- (table 3) an image has a second channel of free numbers, and
the inner loop adapts these in place of all weights. --evaluate one-shot also tests on N
characters of one alphabet, as people are tested.

The times are those of two cores. The recipe is that of the authors' code: characters of
all alphabets, 28x28 pixels from 0, background, to 1, ink; 1100 characters to train, 100
to validate, 423 to test, each class of a task rotated by 0, 90, 180 or 270 degrees;
batch normalisation by the statistics of the batch, at test too (transductive), its beta
meta-learned and not adapted; Adam with learning rate 0.001, 60,000 iterations. Test:
600 tasks, the same for all runs, K query drawings a class, 0 to 10 gradient steps, 95 %
intervals of 1.96 standard deviations / sqrt(600).

Deviations: the convolutions have no bias (before batch normalisation it would have no
effect and no gradient); the split of characters is a list of our own, because the
authors' depends on the order in which a file system lists folders; pixels are grey,
theirs black or white; training tasks are new in each iteration, theirs 200,000 that
repeat; parameters are validated on 200 tasks every 500 iterations, theirs on 600, and
those of the highest accuracy are tested, theirs the latest. docs/deviations.md says why
and has those of other experiments.

Written into the folder of --out: curve.png (loss and validation accuracy), episode.png
(a test task before and after adaptation), initialisation.npz (the parameters tested),
results.json, and log.csv and checkpoint.npz in a folder named after the training: exact
(MAML), first-order, or the relative of --method, which has no initialisation.npz.
Ctrl-C or SIGTERM saves and stops; a run continued with --resume gives the same bits as
one that never stopped.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence

import numpy as np

import tinymaml as tm
from few_shot import Experiment, make_parser, run_example
from tinymaml.checks import check_that
from tinymaml.paper.recipes import RECIPES
from tinymaml.tasks import omniglot
from tinymaml.tasks.episodes import EpisodeIndices, Episodes
from tinymaml.tasks.images import ImageSet

CELLS = (
    *("5w1s", "5w5s", "20w1s", "20w5s", "fc-5w1s", "fc-5w5s"),
    *("context-5w1s", "context-5w5s"),
)


def load(options: argparse.Namespace) -> Mapping[str, ImageSet]:
    """Images to train, to validate and to test on."""
    if options.standin:
        return omniglot.split(omniglot.standin(), options.split)
    return omniglot.split(omniglot.load(options.data, options.download), options.split)


def one_shot_tasks(images: ImageSet, ways: int, count: int, seed: int = 0) -> tm.Tasks:
    """Tasks within an alphabet, as people and programs are tested on this data set.

    A task has N = `ways` characters of one alphabet. Its support examples are a drawing
    of each by one person, its query examples a drawing of each by another. Nothing is
    rotated. Raises ValueError where no alphabet is so large, or where a character has
    not 20 drawings, in the order of the people.

    Source: Lake, Salakhutdinov, Tenenbaum, Human-level concept learning through
    probabilistic program induction, Science 350, 2015; their 20 runs of 20 trials are
    fixed, these tasks are drawn.
    """
    consecutive = np.arange(len(images.classes)).repeat(omniglot.DRAWINGS)
    whole = np.array_equal(images.labels, consecutive)
    came = f"{len(images.labels)} images in {len(images.classes)} classes"
    check_that(whole, "images", "20 consecutive drawings of each character", came)
    names = np.array([name.split("/")[0] for name in images.classes])
    alphabets = [np.flatnonzero(names == name) for name in sorted({*names})]
    large = [characters for characters in alphabets if len(characters) >= ways]
    came = f"at most {max(map(len, alphabets))} of one alphabet"
    check_that(large, "images", f"an alphabet of {ways} characters", came)
    rng, drawings = np.random.default_rng(seed), np.empty((2, count, ways), np.int64)
    for task in range(count):
        characters = rng.choice(large[rng.integers(len(large))], ways, replace=False)
        # Drawing n of all characters of an alphabet is by one person.
        two_people = rng.choice(omniglot.DRAWINGS, 2, replace=False)
        drawings[:, task] = characters * omniglot.DRAWINGS + two_people[:, None]
    still, labels = np.zeros_like(drawings[0]), np.indices((count, ways))[1]
    indices = EpisodeIndices(drawings[0], still, labels, drawings[1], still, labels)
    episodes = Episodes(images.images, images.labels, ways=ways, shots=1, queries=1)
    return episodes.look_up(indices)


def one_shot(options: argparse.Namespace, images: ImageSet) -> tm.Tasks | None:
    """The tasks of --evaluate one-shot, if it is given."""
    recipe = RECIPES[options.recipe]
    if options.evaluate is None:
        return None
    if recipe.shots != 1:
        raise ValueError(f"expected a --recipe with one shot, got {recipe.name}")
    if options.split != "background":  # others train on characters of all alphabets
        raise ValueError(f"expected --split background, got {options.split}")
    return one_shot_tasks(images, recipe.ways, options.test_tasks)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with command-line arguments; return the exit status."""
    parser = make_parser(
        __doc__ or "", "omniglot", CELLS, ", --split and --no-rotations"
    )
    parser.add_argument(
        "--split",
        choices=("authors", "background"),
        default="authors",
        help="training characters: 1100 of all alphabets, as in the authors' code "
        "(default), or the data set's background alphabets, with the evaluation "
        "alphabets for the test",
    )
    parser.add_argument(
        "--download",
        action="store_true",
        help="fetch the archives from the official repository if they are missing",
    )
    parser.add_argument(
        "--no-rotations",
        action="store_true",
        help="classes are not rotated, neither in training nor at test",
    )
    parser.add_argument(
        "--evaluate",
        choices=("one-shot",),
        help="also test on tasks within an alphabet: N characters, one drawing of each "
        "by one person to learn from, one by another to classify; needs a recipe with "
        "one shot, and --split background",
    )
    experiment = Experiment("omniglot", "examples/omniglot.py", load, True, one_shot)
    return run_example(experiment, parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
