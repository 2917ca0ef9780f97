"""Nearest neighbour, the baseline of table 1: the label of the most similar example.

    y(x) = y_i,   i = argmin_i |f(x) - f(x_i)|^2   over the support examples (x_i, y_i)

There is nothing to learn and there are no inner steps. f is the identity, so that
pixels are compared, or it gives the features of a network that was trained in another
way, for instance as `fine_tuning.py` does.

Source: Ravi, Larochelle, Optimization as a model for few-shot learning, ICLR 2017, from
which the MAML paper takes the baseline's accuracy on MiniImagenet.
"""

import numpy as np

from tinymaml.checks import Array
from tinymaml.learner import MAML, Prediction
from tinymaml.tasks.batch import Tasks, as_tasks


def nearest_neighbour(
    maml: MAML, features: Prediction, theta: Array, tasks: Tasks
) -> Array:
    """y of the nearest support example, for each query example: (T, N, ...).

    maml: what computes the features; its loss is not needed. features: (theta, x,
    x_support) -> f(x), (N, ...), on Values. theta: (P,). tasks: a batch of T.

    Of equally near examples the first counts. Raises what `MAML.predict` raises.

    >>> x, y = np.array([[[1.0], [3.0]]]), np.array([[[10.0], [30.0]]])
    >>> new = np.array([[[1.5], [9.0]]])              # one task; nearest are 1 and 3
    >>> maml = MAML(lambda theta, x, y: theta.sum(), backend="numpy")
    >>> inputs = lambda theta, x, x_support: x
    >>> nearest_neighbour(maml, inputs, np.zeros(1), (x, y, new, new)).tolist()
    [[[10.0], [30.0]]]
    """
    x, y, *_ = tasks = as_tasks(tasks)
    query, support = (
        maml.predict(features, theta, batch, steps=0).reshape(*batch[2].shape[:2], -1)
        for batch in (tasks, Tasks(x, y, x, y))
    )
    # [nearest-neighbour]
    # For each task the numbers of the nearest support examples. One task at a time,
    # because the differences of all pairs of all tasks would be large.
    pairs = zip(query, support, strict=True)
    nearest = [((q[:, None] - s) ** 2).sum(-1).argmin(-1) for q, s in pairs]
    # [/nearest-neighbour]
    return y[np.arange(len(y))[:, None], nearest]
