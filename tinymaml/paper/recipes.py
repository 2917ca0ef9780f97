"""The paper's settings as data: everything that decides what is trained.

`RECIPES` has the cells of tables 1 and 3, `SinusoidRecipe` section 5.1,
`NavigationRecipe` section 5.3:

    recipe = RECIPES["5w1s"]
    network = recipe.network()
    maml = recipe.maml(network)
    train(maml, network.init(rng), episodes, ...)

The numbers are from the paper's appendix A.1, and from the authors' code where the two
differ or the paper is silent. One choice of theirs is easily overlooked: their code
divides the summed cross-entropy of the N K support examples by K and not by N K. An
inner learning rate alpha therefore acts like N alpha on the mean cross-entropy. The
option `scaling` chooses one of the two, and `step_on_mean` is the learning rate on the
mean.

Left out: the data, which are in `tinymaml.tasks`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from tinymaml.autodiff.tape import Value
from tinymaml.checks import Array, check_arrays, check_choice, check_that
from tinymaml.learner import MAML
from tinymaml.losses import cross_entropy, squared_error
from tinymaml.networks import images
from tinymaml.networks.images import ImageNetwork
from tinymaml.networks.layers import MLP, Network, truncated_normal, xavier_uniform
from tinymaml.rl.maml_trpo import MAMLTRPO
from tinymaml.rl.policy import GaussianPolicy
from tinymaml.tasks.navigation import Navigation
from tinymaml.variants.context_vector import OmniglotContext

NETWORKS = {
    "omniglot": images.OmniglotConv,
    "omniglot-fc": images.OmniglotFC,
    "omniglot-context": OmniglotContext,
    "miniimagenet": images.MiniImagenetConv,
}
SCALINGS = ("per_shot", "mean")


@dataclass(frozen=True)
class RecipeLoss:
    """The loss of a network's predictions; it can be pickled."""

    network: Network
    compare: Callable[[Value, Value], Value]  # predictions and y, to one number

    def __call__(
        self, theta: Value, x: Value, y: Value, x_support: Value | None = None
    ) -> Value:
        """The loss of examples x (N, ...) with targets or classes y (N, outputs)."""
        return self.compare(self.network(theta, x, x_support), y)


@dataclass(frozen=True)
class Recipe:
    """How one cell of table 1 or 3 is trained and tested.

    Attributes:
        name: the key of the recipe in `RECIPES`.
        architecture: a key of `NETWORKS`.
        ways, shots: N and K; K support examples of each of N classes.
        queries: query examples of each class in meta-training; in evaluation it is K.
        alpha: the inner learning rate, on the loss as `scaling` defines it.
        steps: J, the number of inner steps in meta-training.
        test_steps: the number of inner steps for which the paper reports the accuracy.
        tasks: T, the number of tasks of a meta-batch.
        paper: the paper's accuracy and its 95 % interval, in per cent.
        paper_first_order: the same for first-order MAML, where the paper reports it.
        clip: every element of the meta-gradient is clipped to [-clip, clip]; None: not.
        scaling: of the inner and the outer loss. "per_shot" is the sum over examples
            divided by K, as in the authors' code; "mean" is the mean over examples, as
            in most other implementations.
        learning_rate, iterations: the outer learning rate, and Adam's number of steps.

    >>> recipe = RECIPES["20w1s"]
    >>> recipe.ways, recipe.shots, recipe.alpha, recipe.steps, recipe.paper
    (20, 1, 0.1, 5, (95.8, 0.3))
    """

    name: str
    architecture: str
    ways: int
    shots: int
    queries: int
    alpha: float
    steps: int
    test_steps: int
    tasks: int
    paper: tuple[float, float]
    clip: float | None = None
    paper_first_order: tuple[float, float] | None = None
    scaling: str = "per_shot"
    learning_rate: float = 0.001
    iterations: int = 60_000

    @property
    def step_on_mean(self) -> float:
        """The inner learning rate that has the same effect on the mean cross-entropy.

        >>> RECIPES["5w1s"].step_on_mean, RECIPES["20w1s"].step_on_mean
        (2.0, 2.0)
        >>> RECIPES["5w1s"].scaled("mean").step_on_mean
        0.4
        """
        return self.alpha * (self.ways if self.scaling == "per_shot" else 1)

    def paper_of(self, order: int) -> tuple[float, float] | None:
        """The paper's accuracy and interval with exact (2) or first-order (1) MAML."""
        return self.paper if order == 2 else self.paper_first_order

    def scaled(self, scaling: str) -> "Recipe":
        """The recipe with another scaling of the losses and the same alpha."""
        check_choice("scaling", scaling, SCALINGS)
        return replace(self, scaling=scaling)

    def network(self, mode: str = "batch") -> ImageNetwork:
        """A network of this recipe; `mode`: see `BatchNorm`."""
        return NETWORKS[self.architecture](self.ways, mode=mode)

    def maml(self, network: ImageNetwork, order: int = 2, **options: Any) -> MAML:
        """`MAML` with the numbers of this recipe.

        alpha is 0 for what is not adapted: the parameters of batch normalisation, or,
        in a network with a context, all but the context. If the network has mode
        "support", its query loss uses the statistics of the support examples. options:
        further arguments of `MAML`.
        """
        compare = partial(cross_entropy, scaling=self.scaling, shots=self.shots)
        loss = RecipeLoss(network, compare)
        first = loss, network.adapted_only(self.alpha, "float64"), self.steps, order
        return MAML(*first, query_loss=loss, clip=self.clip, **options)


@dataclass(frozen=True)
class SinusoidRecipe:
    """Regression on sinusoids, section 5.1: one inner step in meta-training.

    Attributes:
        alpha: the inner learning rate, on the mean squared error.
        name: "sinusoid".

    >>> SinusoidRecipe().network().size
    1761
    """

    alpha: float = 0.001
    name = "sinusoid"

    def network(self) -> MLP:
        """The network 1-40-40-1 with the initial weights of the authors' code."""
        return MLP([1, 40, 40, 1], initialiser=truncated_normal(0.01))

    def maml(self, network: Network, order: int = 2, **options: Any) -> MAML:
        """`MAML` with the numbers of this recipe; options: its further arguments."""
        return MAML(RecipeLoss(network, squared_error), self.alpha, 1, order, **options)


@dataclass(frozen=True)
class NavigationRecipe:
    """2D navigation, section 5.3: one inner step in meta-training.

    Attributes:
        alpha: the inner learning rate; at test it is halved after the first step.
        reward: "distance" as in the authors' code, or "squared", see `Navigation`.
        name: "navigation".

    >>> NavigationRecipe().network().size
    10604
    """

    alpha: float = 0.5
    reward: str = "distance"
    name = "navigation"

    def network(self) -> GaussianPolicy:
        """The policy 2-100-100-2, a network and its actions' standard deviations."""
        return GaussianPolicy(MLP([2, 100, 100, 2], initialiser=xavier_uniform()), 2)

    def maml(self, policy: GaussianPolicy, order: int = 2, **options: Any) -> MAMLTRPO:
        """`MAMLTRPO` with the numbers of this recipe; options: further arguments."""
        first = policy, Navigation(self.reward), self.alpha
        return MAMLTRPO(*first, order=order, **options)


def accuracy(logits: Array, y: Array) -> Array:
    """The share of examples whose largest logit is their class.

    logits: (..., examples, classes). y: one-hot or probabilities, in a shape that
    broadcasts to that of logits; the class of an example is the most probable one. For
    the logits of `predict`, (T, steps + 1, N, ways), it is `y_query[:, None]`.
    Returns that shape without its last two axes. An example counts as wrong if two
    classes share the largest logit, or if a logit is NaN.

    Raises TypeError or ValueError for labels that are numbers of classes, and for
    anything else that is no probability. Without examples the result is NaN.

    >>> float(accuracy(np.array([[2.0, 1.0], [2.0, 1.0]]), np.eye(2)))
    0.5
    """
    check_arrays(logits=logits, y=y)
    for name, array in {"logits": logits, "y": y}.items():
        if array.dtype.kind not in "bfiu":
            raise TypeError(f"{name}: expected real numbers, got {array.dtype}")
    try:
        shape = np.broadcast_shapes(y.shape, logits.shape)
    except ValueError:
        shape = ()
    fits = shape == logits.shape and y.ndim > 1 and y.shape[-1] == shape[-1]
    expected = "one-hot rows or probabilities, as many classes as in logits of shape"
    check_that(fits, "y", f"{expected} {logits.shape}", f"shape {y.shape}")
    largest = y.max(axis=-1, keepdims=True)
    one_class = (y == largest).sum(axis=-1) == 1
    total = y.sum(axis=-1, dtype=float)
    if not (one_class & (y.min(axis=-1) >= 0) & (abs(total - 1) < 1e-3)).all():
        raise ValueError(
            "y: expected probabilities with one largest in each row, which add up to 1"
        )
    y = np.broadcast_to(y == largest, logits.shape)
    correct = np.take_along_axis(logits, y.argmax(-1, keepdims=True), axis=-1)
    others = np.where(y, -np.inf, logits).max(axis=-1, keepdims=True)
    return (correct > others)[..., 0].mean(axis=-1)


# fmt: off
# [table-1]
RECIPES = {recipe.name: recipe for recipe in (
    #      name         architecture   N  K queries alpha steps test tasks paper
    Recipe("5w1s",      "omniglot",     5, 1,  1, 0.4,  1,  3, 32, (98.7, 0.4)),
    Recipe("5w5s",      "omniglot",     5, 5,  5, 0.4,  1,  3, 32, (99.9, 0.1)),
    Recipe("20w1s",     "omniglot",    20, 1,  1, 0.1,  5,  5, 16, (95.8, 0.3)),
    Recipe("20w5s",     "omniglot",    20, 5,  5, 0.1,  5,  5, 16, (98.9, 0.2)),
    Recipe("fc-5w1s",   "omniglot-fc",  5, 1,  1, 0.4,  1,  3, 32, (89.7, 1.1)),
    Recipe("fc-5w5s",   "omniglot-fc",  5, 5,  5, 0.4,  1,  3, 32, (97.5, 0.6)),
    Recipe("mini-5w1s", "miniimagenet", 5, 1, 15, 0.01, 5, 10,  4, (48.70, 1.84),
           clip=10, paper_first_order=(48.07, 1.75)),
    Recipe("mini-5w5s", "miniimagenet", 5, 5, 15, 0.01, 5, 10,  2, (63.11, 0.92),
           clip=10, paper_first_order=(63.15, 0.91)),
    # table 3: a context vector is adapted, and no weights are
    Recipe("context-5w1s", "omniglot-context", 5, 1, 1, 0.4, 1, 3, 32, (94.9, 0.9)),
    Recipe("context-5w5s", "omniglot-context", 5, 5, 5, 0.4, 1, 3, 32, (97.7, 0.3)),
)}
# [/table-1]
# fmt: on
