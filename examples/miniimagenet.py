"""Few-shot classification of MiniImagenet: section 5.2 of the paper, table 1.

    python examples/miniimagenet.py --data DIR        # 60,000 iterations: 16 hours
    python examples/miniimagenet.py --fast --standin  # a few minutes, without the data

DIR holds the images, which may not be distributed with the code, and the lists of Ravi
and Larochelle (train.csv, val.csv, test.csv): 64 classes to train, 16 to validate, 20
to test, 600 images each. See `tinymaml.tasks.miniimagenet` for the layouts it reads.

The recipe is that of the authors' code: 84x84 pixels, four convolutions to 32 features
with batch normalisation and max-pooling, 5 inner steps of 0.01 on the sum of the
cross-entropy / K, 15 query images a class in training and K at test, entries of the
meta-gradient clipped to 10; Adam with learning rate 0.001, 60,000 iterations.
Validation, test and the files written are as in omniglot.py.

Deviations: as in omniglot.py; 5-shot takes 2 tasks a step, as the paper has it (the
usage lines of the authors' code have 4).
"""

import argparse
import sys
from collections.abc import Mapping, Sequence

from few_shot import Experiment, make_parser, run_example
from tinymaml.tasks import miniimagenet
from tinymaml.tasks.images import ImageSet

RECIPES = ("mini-5w1s", "mini-5w5s")


def load(options: argparse.Namespace) -> Mapping[str, ImageSet]:
    """Images to train, to validate and to test on."""
    if options.standin:
        return miniimagenet.standin()
    return miniimagenet.load(options.data)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with command-line arguments; return the exit status."""
    parser = make_parser(__doc__ or "", "miniimagenet", RECIPES)
    experiment = Experiment(
        "miniimagenet", "examples/miniimagenet.py", load, rotations=False
    )
    return run_example(experiment, parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
