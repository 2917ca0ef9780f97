"""What the page five-characters gets from tinymaml, and the numbers of its table.

    python docs/explorables/five_characters.py --data DIR   # Omniglot, half a minute
    python docs/explorables/five_characters.py              # drawn characters

`data()` records the inner step and the logits of a query drawing for three choices of
the statistics of batch normalisation. Run as a program, the file prints the accuracy
with each choice: 600 tasks of 5 ways and 1 shot, of the 423 test characters, classes
rotated, one query drawing of each class.
"""

import argparse
from typing import Any

import numpy as np

import tinymaml as tm
from tinymaml.maml import inner_loop
from tinymaml.tasks import omniglot
from tinymaml.tasks.episodes import Episodes
from tinymaml.tasks.strokes import sample_strokes

START = "omniglot-5w1s"
WAYS, IMAGE = 5, (28, 28, 1)
# Characters of `omniglot.standin()`, the first drawing of each: samples for the reader.
# fmt: off
SAMPLES = (59, 94, 193, 8, 183, 145, 98, 104, 174, 207,
           53, 16, 109, 48, 196, 92, 101, 117, 119, 78)
# fmt: on


def support_loss(steps: int) -> tm.Tape:
    """S(theta_0) of one support drawing a class, and theta_1 if there is a step."""
    start = tm.pretrained(START)
    tape = tm.Tape()
    theta = tape.input("theta", start.theta.shape)
    support = tape.input("x", (WAYS, *IMAGE)), tape.input("y", (WAYS, WAYS))
    loss = start.recipe.maml(start.network).loss
    tape.output("loss", loss(theta, *support))
    if steps:
        alpha = tape.input("alpha", start.theta.shape)
        tape.output("theta", inner_loop(loss, theta, support, alpha, steps)[-1])
    return tape


def logits(statistics: str) -> tm.Tape:
    """Logits of query drawings, with the statistics of the images that are named.

    "batch": five query drawings together. "alone": a batch of one drawing. "support":
    one drawing, by the statistics of the five support drawings.
    """
    start = tm.pretrained(START)
    network = start.recipe.network("support" if statistics == "support" else "batch")
    tape = tm.Tape()
    theta = tape.input("theta", start.theta.shape)
    count = WAYS if statistics == "batch" else 1
    x = tape.input("x", (count, *IMAGE), per_task=True)
    shared = {"support": (WAYS, *IMAGE)} if statistics == "support" else {}
    support = [tape.input(f"x_{name}", shape) for name, shape in shared.items()]
    tape.output("logits", network(theta, x, *support))
    return tape


def data() -> dict[str, Any]:
    """The initialisation, the tapes, and strokes of sample drawings."""
    start = tm.pretrained(START)
    adapted = start.network.adapted_only(1.0)  # 0 where a parameter is not adapted
    ends = np.flatnonzero(np.diff(adapted, prepend=1, append=1)).reshape(-1, 2)
    drawings = [sample_strokes(np.random.default_rng((0, n)), 20)[0] for n in SAMPLES]
    return {
        "theta": start.theta,
        "alpha": start.recipe.alpha,
        "fixed": ends.tolist(),  # from .. to of the parameters that are not adapted
        "innerStep": support_loss(steps=1),
        "loss": support_loss(steps=0),
        "logits": {name: logits(name) for name in ("batch", "alone", "support")},
        "samples": [drawing.round(3).tolist() for drawing in drawings],
    }


def accuracies(tasks: tm.Tasks) -> dict[str, list[float]]:
    """Accuracy after 0 and 1 inner steps, with each choice of the statistics."""
    start = tm.pretrained(START)
    maml = start.recipe.maml(start.network)

    def accuracy(network: Any, tasks: tm.Tasks) -> Any:
        logits = maml.predict(network, start.theta, tasks, steps=1)
        return tm.accuracy(logits, tasks.y_query[:, None]).mean(axis=0)

    single = [
        accuracy(
            start.network,
            tasks._replace(
                x_query=tasks.x_query[:, [n]], y_query=tasks.y_query[:, [n]]
            ),
        )
        for n in range(WAYS)
    ]
    return {
        "batch": accuracy(start.network, tasks).tolist(),
        "support": accuracy(start.recipe.network("support"), tasks).tolist(),
        "alone": np.mean(single, axis=0).tolist(),
    }


def main() -> None:
    """Print the accuracies on Omniglot's test characters, or on drawn ones."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument(
        "--data", help="folder of Omniglot; without it, drawn characters"
    )
    options = parser.parse_args()
    images = omniglot.load(options.data) if options.data else omniglot.standin()
    test = omniglot.split(images)["test"]
    episodes = Episodes(
        test.images, test.labels, ways=WAYS, shots=1, queries=1, rotations=True
    )
    tasks = episodes.fixed(seed=1, count=600)
    print(f"{test.source}, {len(test.classes)} characters, 600 tasks")
    for name, (before, after) in accuracies(tasks).items():
        print(f"{name:8} {before:6.1%} before, {after:6.1%} after one step")


if __name__ == "__main__":
    main()
