"""Meta-learned initialisations: small verified files, some of them in the package.

    start = pretrained("omniglot-5w1s")
    maml = start.recipe.maml(start.network)
    logits = maml.predict(start.network, start.theta, tasks, steps=3)

What took an hour of meta-training adapts to five drawn characters in a moment. A file
holds theta, the recipe that theta was trained with, and facts about the training. Its
digest is verified when it is read, and nothing is unpickled.
"""

import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from tinymaml.checks import Array, check_choice, check_theta
from tinymaml.networks.images import ImageNetwork
from tinymaml.paper.recipes import RECIPES, Recipe
from tinymaml.training.checkpoint import (
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
)


class Initialisation(NamedTuple):
    """A meta-learned theta, with its recipe, network and facts about the training."""

    theta: Array  # (P,) float32
    recipe: Recipe
    network: ImageNetwork
    facts: dict[str, Any]  # data, classes, iteration, accuracy, command: as saved

    def __repr__(self) -> str:
        network = type(self.network).__name__
        facts = {
            "theta": f"{self.theta.shape} {self.theta.dtype}, parameters of {network}",
            "recipe": f"{self.recipe.name}, losses scaled {self.recipe.scaling}",
            **{f"facts.{name}": value for name, value in self.facts.items()},
        }
        width = max(map(len, facts))
        lines = [f"  {name:<{width}}  {fact}" for name, fact in facts.items()]
        return "\n".join(["Initialisation", *lines])


def save_initialisation(
    path: str | os.PathLike[str], theta: Array, recipe: Recipe, facts: Mapping[str, Any]
) -> None:
    """Write theta (P,) with its recipe and facts (JSON values), whole or not at all.

    Raises ValueError or TypeError if theta does not fit the network of the recipe or
    is not finite.
    """
    check_theta(theta, recipe.network().size)
    config = {"recipe": recipe.name, "scaling": recipe.scaling}
    save_checkpoint(path, {"theta": theta}, config, facts)


def load_initialisation(path: str | os.PathLike[str]) -> Initialisation:
    """Read what `save_initialisation` wrote.

    Raises CheckpointError when the file is damaged or is another checkpoint, OSError
    when it cannot be read.
    """
    checkpoint = load_checkpoint(path)
    try:
        name, scaling = (checkpoint.config[key] for key in ("recipe", "scaling"))
        recipe = RECIPES[name].scaled(scaling)
        theta, network = checkpoint.arrays["theta"], recipe.network()
        check_theta(theta, network.size)
        facts = dict(checkpoint.state)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{os.fspath(path)}: expected an initialisation, got another checkpoint "
            f"({str(error)[:300]})"
        ) from None
    return Initialisation(theta, recipe, network, facts)


def pretrained(name: str) -> Initialisation:
    """An initialisation that comes with the package.

    Raises ValueError for another name, with the names of all initialisations.

    >>> start = pretrained("omniglot-5w1s")
    >>> start.recipe.name, start.theta.shape, start.facts["data"]
    ('5w1s', (111749,), 'Omniglot')
    """
    folder = Path(str(resources.files("tinymaml.paper"))) / "parameters"
    check_choice("name", name, sorted(path.stem for path in folder.glob("*.npz")))
    return load_initialisation(folder / f"{name}.npz")
