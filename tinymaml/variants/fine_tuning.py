"""Fine-tuning, the baseline of table 1: learn everything jointly, then adapt.

    v_0 = grad Q(theta)

This is `MAML` with steps=0, whose outer loop does not know that there will be inner
steps; at test, `evaluate` and `predict` take some. On sine waves it is the pretrained
network of section 5.1. Images need more, because a class has another label in every
episode, and no network can learn that. So all classes are learned at once, with as many
outputs as there are classes, and a new task gets a new last layer:

    sample = AllClasses(episodes)
    wide, narrow = OmniglotConv(sample.classes), OmniglotConv(ways)
    trained = train(MAML(loss_of(wide), steps=0), wide.init(rng), sample, ...)
    theta = new_last_layer(trained.theta, wide, narrow)

Source: Ravi, Larochelle, Optimization as a model for few-shot learning, ICLR 2017, from
which the MAML paper takes the baseline's accuracy on MiniImagenet.
"""

import numpy as np

from tinymaml.checks import Array
from tinymaml.networks.layers import Network
from tinymaml.tasks.batch import Tasks
from tinymaml.tasks.episodes import Episodes


class AllClasses:
    """Batches of episodes in which a class has the same label always.

    episodes: where the images come from. A class that is rotated counts as a class of
        its own, as it does in the episodes.

    `classes` is the number of classes, and the length of the one-hot labels.

    >>> images, labels = np.zeros((6, 8, 8, 1)), np.repeat([7, 8, 9], 2)
    >>> episodes = Episodes(images, labels, ways=2, shots=1, queries=1, tasks=4)
    >>> sample = AllClasses(episodes)
    >>> sample.classes, sample(np.random.default_rng(0)).y_query.shape
    (3, (4, 4, 3))
    """

    def __init__(self, episodes: Episodes) -> None:
        self.episodes, self._turns = episodes, 4 if episodes.rotations else 1
        self.classes = (int(episodes.class_of.max()) + 1) * self._turns

    def __call__(self, rng: np.random.Generator) -> Tasks:
        """T new tasks: all images of an episode, as support and as query examples."""
        drawn = self.episodes.draw(rng)
        images = np.concatenate([drawn.support, drawn.query], axis=1)
        turns = np.concatenate([drawn.support_rotations, drawn.query_rotations], axis=1)
        tasks = self.episodes.look_up(drawn)
        x = np.concatenate([tasks.x_support, tasks.x_query], axis=1)
        one_hot = np.eye(self.classes, dtype=self.episodes.dtype)
        y = one_hot[self.episodes.class_of[images] * self._turns + turns]
        return Tasks(x, y, x, y)


def new_last_layer(theta: Array, trained: Network, network: Network) -> Array:
    """theta of `network` (P,): that of `trained`, and zeros for the last layer.

    theta: parameters of `trained`. Both networks end with `Linear`. Raises ValueError
    where another parameter than those of the last layer has another shape.

    >>> from tinymaml.networks.layers import MLP
    >>> new_last_layer(np.arange(7.0), MLP([1, 2, 1]), MLP([1, 2, 2]))
    array([0., 1., 2., 3., 0., 0., 0., 0., 0., 0.])
    """
    parameters = trained.unflatten(theta)
    for name in [*network.layout][-2:]:
        parameters[name] = np.zeros(network.layout[name][1])
    return network.flatten(parameters, dtype=theta.dtype)
