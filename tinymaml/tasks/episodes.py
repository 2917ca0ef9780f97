"""Episodes: N-way K-shot classification tasks from labelled images (section 5.2).

With this file any labelled images become tasks. A task has N classes; for each class it
has K support images to learn from, and some query images that measure what was learned.
An `Episodes` object is the sampler that `train` takes, and it draws the fixed lists of
tasks of an evaluation.

A task never holds a class twice, and never an image twice. Which class gets label 0 is
random, so a network cannot memorise labels: it has to learn how to learn. As in the
authors' code the images come in groups of N, each with one image of every class in
random order. With `rotations` every class of every task is rotated by a random multiple
of 90 degrees, the same for all images of the class, in training and in evaluation.

Left out: the images themselves, which are in `omniglot.py` and `miniimagenet.py`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tinymaml.checks import Array, check_dtype, check_sizes, check_that, whole_number
from tinymaml.tasks.batch import Tasks, array_table


class EpisodeIndices(NamedTuple):
    """Which images of a data set make up T tasks: arrays (T, N*K) of int64.

    They are a few numbers for each example. A backend with the data set in its own
    memory needs no more, so the pixels need not travel in every step of training.
    """

    support: Array  # indices of images, 0 .. M - 1
    support_rotations: Array  # quarter turns, counterclockwise; 0 .. 3 are drawn
    support_labels: Array  # 0 .. N - 1
    query: Array
    query_rotations: Array
    query_labels: Array

    def __repr__(self) -> str:
        return array_table("EpisodeIndices", self._asdict())


class Episodes:
    """N-way K-shot tasks drawn from labelled images.

    Args:
        images: (M, H, W) or (M, H, W, C). Pixels of uint8 are scaled to 0 .. 1,
            floating pixels are returned as they are. The array is not copied, so a
            memory map stays on the disk.
        labels: (M,) integers or strings; images with equal labels are one class.
        ways: N, the number of classes of a task.
        shots: K, the number of support images of each class.
        queries: the number of query images of each class.
        rotations: rotate each class of each task by 0, 90, 180 or 270 degrees.
        tasks: T, the number of tasks of a batch.
        dtype: float32 or float64, of images and one-hot labels.

    `class_of` (M,) has the number of the class of each image, in the order of labels.

    Raises:
        TypeError: the images are neither uint8 nor floating, the labels are neither
            integers nor strings, an array is masked, or the dtype is another.
        ValueError: shapes do not fit; there are no pixels, or uint8 pixels of 0 and 1
            only; there are fewer than N classes; a class has fewer than K + queries
            images; rotations is no bool, or images to be rotated are not square.

    >>> images, labels = np.zeros((60, 8, 8), np.uint8), np.repeat(np.arange(6), 10)
    >>> episodes = Episodes(images, labels, ways=5, shots=1, queries=3, tasks=4)
    >>> episodes
    Episodes(5-way 1-shot, 3 queries a class, 4 tasks a batch, float32)
      of 60 images (8, 8, 1) uint8 in 6 classes
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
        sizes = check_sizes(ways=ways, shots=shots, queries=queries, tasks=tasks)
        ways, shots, queries, self.tasks = sizes
        flag = isinstance(rotations, bool | np.bool_)
        check_that(flag, "rotations", "True or False", repr(rotations))
        for name, values in (("images", images), ("labels", labels)):
            arrays = values if isinstance(values, list | tuple) else [values]
            if any(map(np.ma.isMaskedArray, arrays)):
                raise TypeError(f"{name}: expected no mask, got a masked array")
        images = np.asarray(images)
        if images.dtype != np.uint8 and images.dtype.kind != "f":
            expected = "uint8 or a floating dtype"
            raise TypeError(f"images: expected {expected}, got {images.dtype}")
        shape = images.shape
        expected = "shape (M, H, W) or (M, H, W, C)"
        check_that(len(shape) in (3, 4), "images", expected, shape)
        check_that(images.size > 0, "images", "pixels", f"none, shape {shape}")
        # The first image normally ends this search.
        if images.dtype == np.uint8 and not any(image.max() > 1 for image in images):
            check_that(not images.any(), "images", "uint8 0 .. 255", "only 0 and 1")
        fits = not rotations or shape[1] == shape[2]
        check_that(fits, "rotations", "square images", shape[1:3])
        self.images = images[..., None] if images.ndim == 3 else images
        given, labels = labels, np.asarray(labels)
        expected, came = f"one for each of {shape[0]} images", f"shape {labels.shape}"
        check_that(labels.shape == shape[:1], "labels", expected, came)
        # NumPy would make strings of integers, and one class of 1 and "1".
        strings = any(all(isinstance(x, kind) for x in given) for kind in (str, bytes))
        if labels.dtype.kind not in "biu" and not strings:
            kinds = ", ".join(sorted({type(label).__name__ for label in given}))
            raise TypeError(f"labels: expected integers or strings, got {kinds}")
        names, self.class_of = np.unique(labels, return_inverse=True)
        self._counts = np.bincount(self.class_of)
        # Class c owns the images order[starts[c] : starts[c] + counts[c]].
        self._order = np.argsort(self.class_of, kind="stable")
        self._starts = self._counts.cumsum() - self._counts
        check_that(len(names) >= ways, "labels", f"at least {ways} classes", len(names))
        expected = f"at least {shots} + {queries} images for support and query"
        for name, count in zip(names, self._counts, strict=True):
            check_that(count >= shots + queries, f"class {name}", expected, count)
        self.ways, self.shots, self.queries = ways, shots, queries
        self.rotations, self.dtype = rotations, check_dtype(dtype)

    def __repr__(self) -> str:
        rotated = ", rotated classes" if self.rotations else ""
        return (
            f"Episodes({self.ways}-way {self.shots}-shot, {self.queries} queries a "
            f"class, {self.tasks} tasks a batch{rotated}, {self.dtype})\n"
            f"  of {len(self.images)} images {self.images.shape[1:]} "
            f"{self.images.dtype} in {len(self._counts)} classes"
        )

    def __call__(self, rng: np.random.Generator) -> Tasks:
        """T new tasks: x (T, N*K, H, W, C) and one-hot y (T, N*K, N), in `dtype`."""
        return self.look_up(self.draw(rng))

    def draw(self, rng: np.random.Generator) -> EpisodeIndices:
        """The indices of the images of T new tasks; `look_up` fetches the images."""
        return self._draw(rng, self.tasks)

    def fixed(self, seed: int, count: int = 600) -> Tasks:
        """A list of tasks that depends on `seed` alone, whatever was drawn before.

        All of it is in memory: 600 tasks of 5-way 1-shot Omniglot take 19 MB, of 20-way
        5-shot 380 MB, of 5-way 5-shot MiniImagenet 2.5 GB.
        """
        (count,) = check_sizes(count=count)
        rng = np.random.default_rng(whole_number("seed", seed, least=0))
        return self.look_up(self._draw(rng, count))

    def look_up(self, indices: EpisodeIndices) -> Tasks:
        """The tasks that these indices stand for.

        Raises ValueError: a number is negative. IndexError: one is too large.
        """
        least = min(np.min(array, initial=0) for array in indices)
        check_that(least >= 0, "indices", "numbers from 0 on", least)
        one_hot = np.eye(self.ways, dtype=self.dtype)
        return Tasks(
            self._rotated_images(indices.support, indices.support_rotations),
            one_hot[indices.support_labels],
            self._rotated_images(indices.query, indices.query_rotations),
            one_hot[indices.query_labels],
        )

    def _draw(self, rng: np.random.Generator, tasks: int) -> EpisodeIndices:
        ways, per_class = self.ways, self.shots + self.queries
        classes = _sample_distinct(rng, np.full(tasks, len(self._counts)), ways)
        images = _sample_distinct(rng, self._counts[classes].ravel(), per_class)
        images = images.reshape(tasks, ways, per_class)
        images = self._order[images + self._starts[classes][..., None]]
        rotations = rng.integers(0, 4 if self.rotations else 1, (tasks, ways), np.int8)
        # labels[t, g, i] is the label of the i-th image of group g of task t.
        labels = rng.random((tasks, per_class, ways)).argsort(axis=-1)
        task, group = np.arange(tasks)[:, None, None], np.arange(per_class)[:, None]
        drawn = images[task, labels, group], rotations[task, labels], labels
        support, query = np.s_[:, : self.shots], np.s_[:, self.shots :]
        flat = [a[s].reshape(tasks, -1) for s in (support, query) for a in drawn]
        return EpisodeIndices(*(np.ascontiguousarray(a, np.int64) for a in flat))

    def _rotated_images(self, indices: Array, rotations: Array) -> Array:
        """Images by index (T, N*K), each rotated: (T, N*K, H, W, C) in `dtype`."""
        pixels = np.asarray(self.images[indices.ravel()])
        for quarter_turns in (1, 2, 3):
            chosen = np.flatnonzero(rotations.ravel() % 4 == quarter_turns)
            if chosen.size:
                pixels[chosen] = np.rot90(pixels[chosen], quarter_turns, axes=(1, 2))
        if pixels.dtype == np.uint8:
            pixels = np.divide(pixels, 255, dtype=self.dtype)
        pixels = pixels.astype(self.dtype, copy=False)
        return pixels.reshape(*indices.shape, *pixels.shape[1:])


def _sample_distinct(rng: np.random.Generator, sizes: Array, count: int) -> Array:
    """Row i: `count` different numbers of range(sizes[i]), all orders equally likely.

    This is Robert Floyd's algorithm, for all rows at once. It takes `count` steps, and
    a shuffle of range(size) would take `size`.
    """
    last = sizes[:, None] - count + np.arange(count)
    numbers = rng.integers(0, last, endpoint=True)
    for i in range(1, count):
        repeated = (numbers[:, :i] == numbers[:, i : i + 1]).any(axis=1)
        numbers[:, i] = np.where(repeated, last[:, i], numbers[:, i])
    # The sets are uniform but their order is not: large numbers tend to come late.
    order = rng.random(numbers.shape).argsort(axis=1)
    return np.take_along_axis(numbers, order, axis=1)
