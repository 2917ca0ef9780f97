"""Table 1 as data: for each of its cells, all that decides what is trained.

    recipe = RECIPES["5w1s"]
    network = recipe.network()
    maml = recipe.maml(network)
    train(maml, network.init(rng), episodes, ...)

The numbers are the authors' (paper, appendix A.1, and their code where the two differ
or the paper is silent). One of them is easily overlooked: the authors' code divides
the cross-entropy of a batch by K, not by the number of its examples, so a step of size
alpha is one of size N alpha on the mean. `scaling` says which of the two is meant, and
`step_on_mean` what it comes to.

Left out: the data, which are in `tinymaml.tasks`.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tinymaml.autodiff.tape import Value
from tinymaml.learner import MAML
from tinymaml.losses import cross_entropy
from tinymaml.networks.images import (
    ImageNetwork,
    MiniImagenetConv,
    OmniglotConv,
    OmniglotFC,
)

NETWORKS = {
    "omniglot": OmniglotConv,
    "omniglot-fc": OmniglotFC,
    "miniimagenet": MiniImagenetConv,
}
SCALINGS = ("per_shot", "mean")
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Recipe:
    """How one cell of table 1 is trained and tested.

    Attributes:
        name: as in `RECIPES`.
        architecture: key of `NETWORKS`.
        ways, shots: N and K; K support examples of each of N classes.
        queries: query examples of each class in meta-training; at test there are K.
        alpha: inner step size, on the loss as `scaling` has it.
        steps: inner steps in meta-training.
        test_steps: inner steps after which the paper reports the accuracy.
        tasks: tasks in a meta-batch.
        paper: the paper's accuracy in per cent, and its 95 % interval.
        paper_first_order: the same of first-order MAML, where the paper has it.
        clip: largest size of an entry of the meta-gradient, if it is clipped.
        scaling: of inner and outer loss: "per_shot", the sum over examples / K, as in
            the authors' code, or "mean", over examples, as in most other codes.
        learning_rate, iterations: of Adam in meta-training.
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
        """The inner step size in units of the mean cross-entropy over N K examples.

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
        """The same recipe with another scaling of the losses and the same alpha."""
        if scaling not in SCALINGS:
            raise ValueError(f"scaling: expected one of {SCALINGS}, got {scaling!r}")
        return replace(self, scaling=scaling)

    def network(self, mode: str = "batch") -> ImageNetwork:
        """The network; `mode` is that of its batch normalisation."""
        return NETWORKS[self.architecture](self.ways, mode=mode)

    def maml(self, network: ImageNetwork, order: int = 2, **options: Any) -> MAML:
        """MAML of this recipe; alpha is 0 for the parameters of batch normalisation.

        With a network of mode "support" the query loss takes the support examples'
        statistics. `options` are further arguments of `MAML`.
        """

        def loss(
            theta: Value, x: Value, y: Value, x_support: Value | None = None
        ) -> Value:
            logits = network(theta, x, x_support)
            return cross_entropy(logits, y, self.scaling, self.shots)

        return MAML(
            loss,
            network.adapted_only(self.alpha, "float64"),
            self.steps,
            order=order,
            query_loss=loss,
            clip=self.clip,
            **options,
        )

    def summary(self) -> str:
        """The recipe in words, one fact a line."""
        losses = {
            "per_shot": "sum over examples / K, as in the authors' code",
            "mean": "mean over examples",
        }
        facts = {
            "task": f"{self.ways}-way {self.shots}-shot, {self.queries} query examples "
            f"a class in training, {self.shots} at test",
            "network": f"{self.architecture}, {self.network().size:,} parameters",
            "cross-entropy": losses[self.scaling],
            "inner step": f"alpha = {self.alpha:g}, that is {self.step_on_mean:g} on "
            "the mean cross-entropy",
            "inner steps": f"{self.steps} in training; the paper reports "
            f"{self.test_steps} at test",
            "outer step": f"Adam, {self.learning_rate:g}, {self.tasks} tasks"
            + (f", entries clipped to {self.clip:g}" if self.clip else ""),
        }
        return "\n".join(f"{name + ':':<15}{fact}" for name, fact in facts.items())


def accuracy(logits: Array, y: Array) -> Array:
    """The share of examples whose largest logit is their class.

    logits: (..., N, classes); y: one-hot, of a shape that broadcasts to it; returns the
    shape without the last two axes. NaN logits count as wrong.

    >>> float(accuracy(np.array([[2.0, 1.0], [2.0, 1.0]]), np.eye(2)))
    0.5
    """
    logits, y = np.asarray(logits), np.asarray(y)
    if logits.ndim < 2 or y.shape[-1:] != logits.shape[-1:]:
        raise ValueError(
            f"y: expected rows of as many classes as logits of shape {logits.shape}, "
            f"got shape {y.shape}"
        )
    y = np.broadcast_to(y, logits.shape)
    right = np.take_along_axis(logits, y.argmax(-1, keepdims=True), axis=-1)
    others = np.where(y > 0, -np.inf, logits).max(axis=-1, keepdims=True)
    return (right > others)[..., 0].mean(axis=-1)


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
)}
# [/table-1]
# fmt: on
