"""Meta-learned initialisations: small verified files, some of them in the package.

    start = pretrained("omniglot-5w1s")
    maml = start.recipe.maml(start.network)
    logits = maml.predict(start.network, start.theta, tasks, steps=3)

What took an hour of meta-training adapts to five drawn characters in a moment. Others
fit a wave to a few points (sinusoid-), or move to a goal that is not seen
(navigation-). A file holds theta, the recipe that adapts it, and facts: what theta was
trained on, by which command, and how well it does at test. Its digest is verified when
it is read, and nothing is unpickled.
"""

import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from tinymaml.checks import Array, check_choice, check_kind, check_that, check_theta
from tinymaml.files import FilePath
from tinymaml.paper.recipes import RECIPES, NavigationRecipe, Recipe, SinusoidRecipe
from tinymaml.training.checkpoint import (
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
)

AnyRecipe = Recipe | SinusoidRecipe | NavigationRecipe


class Initialisation(NamedTuple):
    """A trained theta to adapt from, with its recipe, network and facts."""

    theta: Array  # (P,), float32 or float64; that of the package float32
    recipe: Any  # a Recipe, SinusoidRecipe or NavigationRecipe
    network: Any  # what theta is the parameters of; for navigation, a GaussianPolicy
    facts: dict[str, Any]  # data, method, test figures, command and more: as saved

    def __repr__(self) -> str:
        network = type(self.network).__name__
        facts = {
            "theta": f"{self.theta.shape} {self.theta.dtype}, parameters of {network}",
            **_settings(self.recipe),
            **{f"facts.{name}": value for name, value in self.facts.items()},
        }
        width = max(map(len, facts))
        lines = [f"  {name:<{width}}  {fact}" for name, fact in facts.items()]
        return "\n".join(["Initialisation", *lines])


def _settings(recipe: AnyRecipe) -> dict[str, Any]:
    """What a file says of a recipe: its name, and what differs between files."""
    if isinstance(recipe, Recipe):
        return {"recipe": recipe.name, "scaling": recipe.scaling}
    return {"recipe": recipe.name, **vars(recipe)}


def save_initialisation(
    path: FilePath, theta: Array, recipe: AnyRecipe, facts: Mapping[str, Any]
) -> None:
    """Write theta (P,) with its recipe and facts (JSON values), whole or not at all.

    Raises ValueError or TypeError if theta does not fit the network of the recipe or
    is not finite, and if the recipe is not what a reader will find: one of RECIPES,
    perhaps scaled, of which the file has the name.
    """
    check_kind("recipe", recipe, AnyRecipe, "a recipe, such as one of RECIPES")
    network: Any = recipe.network()
    check_theta(theta, network.size)
    recipe.maml(network, backend="numpy")  # refuses what a reader would refuse
    if isinstance(recipe, Recipe):
        known = [named.scaled(recipe.scaling) for named in RECIPES.values()]
        check_that(recipe in known, "recipe", "one of RECIPES, or scaled()", recipe)
    save_checkpoint(path, {"theta": theta}, _settings(recipe), facts)


def load_initialisation(path: FilePath) -> Initialisation:
    """Read what `save_initialisation` wrote.

    Raises CheckpointError when the file is damaged or is another checkpoint, OSError
    when it cannot be read.
    """
    checkpoint = load_checkpoint(path)
    try:
        settings = dict(checkpoint.config)
        name = settings.pop("recipe")
        kinds: dict[str, Any] = {k.name: k for k in (SinusoidRecipe, NavigationRecipe)}
        recipe = (RECIPES[name].scaled if name in RECIPES else kinds[name])(**settings)
        theta, network = checkpoint.arrays["theta"], recipe.network()
        check_theta(theta, network.size)
        recipe.maml(network, backend="numpy")  # refuses settings that do not fit
        came, expected = checkpoint.config, _settings(recipe)
        check_that(came == expected, "settings", f"all of {[*expected]}", [*came])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{os.fspath(path)}: expected an initialisation, got another checkpoint "
            f"({str(error)[:300]})"
        ) from None
    return Initialisation(theta, recipe, network, checkpoint.state)


def pretrained(name: str) -> Initialisation:
    """An initialisation that comes with the package.

    "omniglot-5w1s", "omniglot-5w1s-background" and, from five drawings of each,
    "omniglot-5w5s" classify five characters, "omniglot-20w1s" twenty: images (28, 28,
    1) from 0 to 1, with bright strokes, 1, on a background of 0.
    "sinusoid-maml", "sinusoid-first-order" and "sinusoid-pretrained" fit waves, from
    10 points of each in training: MAML, first-order MAML, and a network pretrained on
    all waves at once. "navigation-maml" and "navigation-pretrained" are policies.

    Raises ValueError for another name, with the names of all initialisations.

    >>> start = pretrained("omniglot-5w1s")
    >>> start.recipe.name, start.theta.shape, start.facts["data"]
    ('5w1s', (111749,), 'Omniglot')
    """
    folder = Path(str(resources.files("tinymaml.paper"))) / "parameters"
    check_choice("name", name, sorted(path.stem for path in folder.glob("*.npz")))
    return load_initialisation(folder / f"{name}.npz")
