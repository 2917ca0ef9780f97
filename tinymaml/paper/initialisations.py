"""Meta-learned initialisations: kept in small verified files, some in the package.

    start = pretrained("omniglot-5w1s")
    maml = start.recipe.maml(start.network)
    logits = maml.predict(start.network, start.theta, tasks, steps=3)

What took an hour to meta-train adapts to five drawn characters in a moment. A file
holds theta, the recipe it was trained with, and facts about the training; a digest is
checked on reading and nothing is unpickled.
"""

import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinymaml.networks.images import ImageNetwork
from tinymaml.paper.recipes import RECIPES, Recipe
from tinymaml.training.checkpoint import (
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
)


class Initialisation(NamedTuple):
    """A meta-learned theta, and what is needed to use it."""

    theta: np.ndarray[Any, Any]  # (P,) float32
    recipe: Recipe
    network: ImageNetwork
    facts: dict[str, Any]  # data, split, iteration, accuracy, the command: as saved


def save_initialisation(
    path: str | os.PathLike[str],
    theta: np.ndarray[Any, Any],
    recipe: Recipe,
    facts: Mapping[str, Any],
) -> None:
    """Write theta (P,) with its recipe and facts (JSON values), whole or not at all."""
    if theta.shape != (recipe.network().size,):
        raise ValueError(
            f"theta: expected shape ({recipe.network().size},) for recipe "
            f"{recipe.name!r}, got {theta.shape}"
        )
    config = {"recipe": recipe.name, "scaling": recipe.scaling}
    save_checkpoint(path, {"theta": theta}, config, facts)


def load_initialisation(path: str | os.PathLike[str]) -> Initialisation:
    """Read what `save_initialisation` wrote.

    Raises CheckpointError when the file is damaged or holds something else, OSError
    when it cannot be read.
    """
    saved = load_checkpoint(path)
    try:
        recipe = RECIPES[saved.config["recipe"]].scaled(saved.config["scaling"])
        theta, network = saved.arrays["theta"], recipe.network()
        if theta.shape != (network.size,):
            raise ValueError(f"theta has shape {theta.shape}")
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"{os.fspath(path)}: expected an initialisation, got another checkpoint "
            f"({error})"
        ) from None
    return Initialisation(theta, recipe, network, dict(saved.state))


def pretrained(name: str) -> Initialisation:
    """An initialisation that comes with the package.

    Raises ValueError, with the names there are, for another one.

    >>> start = pretrained("omniglot-5w1s")
    >>> start.recipe.name, start.theta.shape, start.facts["data"]
    ('5w1s', (111749,), 'Omniglot')
    """
    folder = Path(str(resources.files("tinymaml.paper"))) / "parameters"
    names = sorted(path.stem for path in folder.glob("*.npz"))
    if name not in names:
        raise ValueError(f"name: expected one of {', '.join(names)}, got {name!r}")
    return load_initialisation(folder / f"{name}.npz")
