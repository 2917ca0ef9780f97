"""Episodes: N-way K-shot classification tasks from labelled images (section 5.2).

With this file any labelled images become tasks: a task holds N classes, for each of
them K images to learn from (support) and some more to be judged by (query). It is what
`train` wants of a sampler, and it draws the fixed lists of tasks of an evaluation.

A task never holds a class twice, and never an image twice. The class that gets label 0
is random, so there is nothing to remember but how to learn. As in the authors' code
the images come in slots, each with every class once in random order, and with
`rotations` every class of every task is turned by a random multiple of 90 degrees:
all its images alike, at training and at evaluation.

Left out: the images themselves, which are in `omniglot.py` and `miniimagenet.py`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tinymaml.checks import check_sizes
from tinymaml.tasks.batch import Tasks

Array = np.ndarray[Any, Any]


class Places(NamedTuple):
    """Where the examples of T tasks are in a data set: whole numbers (T, N*K)."""

    support: Array  # numbers of images
    support_turns: Array  # by how many quarters each is turned, against the clock
    support_labels: Array  # 0 .. N - 1
    query: Array
    query_turns: Array
    query_labels: Array


class Episodes:
    """N-way K-shot tasks drawn from labelled images.

    Args:
        images: (M, H, W) or (M, H, W, C); uint8, given out as 0 to 1, or floating,
            given out as they are. Not copied, so a memory map stays on the disk.
        labels: (M,) integers or strings; equal labels are one class.
        ways: N, classes in a task.
        shots: K, support images of each class.
        queries: query images of each class.
        rotations: turn each class of each task by 0, 90, 180 or 270 degrees.
        tasks: T, tasks in a batch.
        dtype: of all that is given out.

    Raises:
        TypeError: the images are neither uint8 nor floating.
        ValueError: shapes do not fit; there are fewer than N classes; a class has fewer
            than K + queries images; images to be turned are not square.

    >>> images, labels = np.zeros((60, 8, 8), np.uint8), np.repeat(np.arange(6), 10)
    >>> episodes = Episodes(images, labels, ways=5, shots=1, queries=3, tasks=4)
    >>> [array.shape for array in episodes(np.random.default_rng(0))]
    [(4, 5, 8, 8, 1), (4, 5, 5), (4, 15, 8, 8, 1), (4, 15, 5)]
    """

    def __init__(
        self,
        images: Array,
        labels: Array | Sequence[Any],
        *,
        ways: int,
        shots: int,
        queries: int,
        rotations: bool = False,
        tasks: int = 1,
        dtype: str = "float32",
    ) -> None:
        check_sizes(ways=ways, shots=shots, queries=queries, tasks=tasks)
        images = np.asarray(images)
        if images.dtype != np.uint8 and images.dtype.kind != "f":
            raise TypeError(
                f"images: expected uint8 or a floating dtype, got {images.dtype}"
            )
        if images.ndim not in (3, 4):
            raise ValueError(
                f"images: expected shape (M, H, W) or (M, H, W, C), got {images.shape}"
            )
        if rotations and images.shape[1] != images.shape[2]:
            raise ValueError(
                f"rotations: expected square images, got {images.shape[1:3]}"
            )
        self.images = images[..., None] if images.ndim == 3 else images
        labels = np.asarray(labels)
        if labels.shape != images.shape[:1]:
            raise ValueError(
                f"labels: expected one for each of {len(images)} images, "
                f"got shape {labels.shape}"
            )
        # Class c owns the images order[starts[c] : starts[c] + counts[c]].
        self._order = np.argsort(labels, kind="stable")
        classes, self._starts, self._counts = np.unique(
            labels[self._order], return_index=True, return_counts=True
        )
        if len(classes) < ways:
            raise ValueError(
                f"labels: expected at least {ways} classes, got {len(classes)}"
            )
        for name, count in zip(classes, self._counts, strict=True):
            if count < shots + queries:
                raise ValueError(
                    f"class {name}: expected at least {shots} + {queries} images for "
                    f"support and query, got {count}"
                )
        self.ways, self.shots, self.queries = ways, shots, queries
        self.rotations, self.tasks = rotations, tasks
        self.dtype = np.dtype(dtype)

    def __call__(self, rng: np.random.Generator) -> Tasks:
        """T new tasks: x (T, N*K, H, W, C) and one-hot y (T, N*K, N), in `dtype`."""
        return self.look_up(self.draw(rng))

    def draw(self, rng: np.random.Generator) -> Places:
        """Where the examples of T new tasks are; `look_up` fetches them."""
        return self._draw(rng, self.tasks)

    def fixed(self, seed: int, count: int = 600) -> Tasks:
        """A list of tasks that `seed` alone decides, whatever was drawn before.

        All of it is in memory: 600 tasks of 5-way 1-shot Omniglot take 19 MB, of 20-way
        5-shot 380 MB, of 5-way 5-shot MiniImagenet 2.5 GB.
        """
        check_sizes(count=count)
        return self.look_up(self._draw(np.random.default_rng(seed), count))

    def look_up(self, places: Places) -> Tasks:
        """The examples at these places."""
        one_hot = np.eye(self.ways, dtype=self.dtype)
        return Tasks(
            self._images(places.support, places.support_turns),
            one_hot[places.support_labels],
            self._images(places.query, places.query_turns),
            one_hot[places.query_labels],
        )

    def _draw(self, rng: np.random.Generator, tasks: int) -> Places:
        ways, slots = self.ways, self.shots + self.queries
        classes = _distinct(rng, np.full(tasks, len(self._counts)), ways)
        images = _distinct(rng, self._counts[classes].ravel(), slots)
        images = images.reshape(tasks, ways, slots) + self._starts[classes][..., None]
        images = self._order[images]
        turns = np.zeros((tasks, ways), np.int8)
        if self.rotations:
            turns = rng.integers(0, 4, (tasks, ways), np.int8)
        # label[t, s, i] is what the i-th image of slot s of task t shows.
        label = rng.random((tasks, slots, ways)).argsort(axis=-1)
        task, slot = np.arange(tasks)[:, None, None], np.arange(slots)[:, None]
        images, turns = images[task, label, slot], turns[task, label]
        support, query = np.s_[:, : self.shots], np.s_[:, self.shots :]
        return Places(
            *(
                np.ascontiguousarray(array[part].reshape(tasks, -1), np.int64)
                for part in (support, query)
                for array in (images, turns, label)
            )
        )

    def _images(self, images: Array, turns: Array) -> Array:
        """Images by number (T, N*K), each turned: (T, N*K, H, W, C) in `dtype`."""
        pixels, turns = np.asarray(self.images[images.ravel()]), turns.ravel()
        for quarters in (1, 2, 3):
            chosen = np.flatnonzero(turns == quarters)
            if chosen.size:
                pixels[chosen] = np.rot90(pixels[chosen], quarters, axes=(1, 2))
        if pixels.dtype == np.uint8:
            pixels = np.divide(pixels, 255, dtype=self.dtype)
        pixels = pixels.astype(self.dtype, copy=False)
        return pixels.reshape(len(images), -1, *pixels.shape[1:])


def _distinct(rng: np.random.Generator, sizes: Array, count: int) -> Array:
    """Row i: `count` different numbers of range(sizes[i]), all orders equally likely.

    Robert Floyd's sampling, for all rows at once: it costs count steps, not size steps.
    """
    last = sizes[:, None] - count + np.arange(count)
    drawn = rng.integers(0, last, endpoint=True)
    for i in range(1, count):
        seen = (drawn[:, :i] == drawn[:, i : i + 1]).any(axis=1)
        drawn[:, i] = np.where(seen, last[:, i], drawn[:, i])
    # Floyd's sets are uniform, their order is not: large numbers tend to come late.
    order = rng.random(drawn.shape).argsort(axis=1)
    return np.take_along_axis(drawn, order, axis=1)
