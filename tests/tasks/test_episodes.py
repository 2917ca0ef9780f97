"""Episodes: classes and images of a task, order, rotations, seeds, refusals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tests.support.running_examples import load_example
from tinymaml.tasks.episodes import Episodes


def rng(seed=0):
    return np.random.default_rng(seed)


def numbered_images(counts, size=2, channels=1):
    """An image of class c and number i holds c, i and pixels that tell how it lies."""
    labels = np.repeat(np.arange(len(counts)), counts)
    images = np.zeros((len(labels), size, size, channels))
    images[:, 0, 0] = labels[:, None] + 1
    images[:, 0, 1] = np.concatenate([np.arange(n) for n in counts])[:, None] + 1000
    order = rng(9).permutation(len(labels))  # classes need not lie side by side
    return images[order], labels[order]


def read(x):
    """Class, number and quarter turns of images (T, N, 2, 2, C) made as above."""
    flat = x[..., 0].reshape(*x.shape[:2], 4)
    corner = np.argmax((flat > 0) & (flat < 1000), axis=-1)
    turns = np.array([0, 3, 1, 2])[corner]  # rot90 turns against the clock
    return (
        np.take_along_axis(flat, corner[..., None], -1)[..., 0] - 1,
        flat.max(-1) - 1000,
        turns,
    )


SHAPES = {
    "ways": st.integers(1, 5),
    "shots": st.integers(1, 3),
    "queries": st.integers(1, 3),
    "tasks": st.integers(1, 4),
    "seed": st.integers(0, 2**16),
}


@given(**SHAPES, more=st.integers(0, 4), channels=st.sampled_from([1, 3]))
def test_a_task_has_each_class_and_image_once_and_one_hot_labels(
    ways, shots, queries, tasks, seed, more, channels
):
    counts = rng(seed).integers(shots + queries, shots + queries + 4, ways + more)
    images, labels = numbered_images(counts, channels=channels)
    episodes = Episodes(
        images, labels, ways=ways, shots=shots, queries=queries, tasks=tasks
    )
    batch = episodes(rng(seed))
    for kind, slots in ((0, shots), (2, queries)):
        x, y = batch[kind : kind + 2]
        assert x.shape == (tasks, ways * slots, 2, 2, channels)
        assert y.shape == (tasks, ways * slots, ways)
        assert x.dtype == y.dtype == "float32"
        assert ((y == 0) | (y == 1)).all() and (y.sum(-1) == 1).all()
    x = np.concatenate([batch.x_support, batch.x_query], axis=1)
    label = np.concatenate([batch.y_support, batch.y_query], axis=1).argmax(-1)
    shown, number, turns = read(x)
    assert (turns == 0).all()
    for task in range(tasks):
        # Each slot holds every class once, and a class always has the same label.
        slots = label[task].reshape(-1, ways)
        assert (np.sort(slots, axis=1) == np.arange(ways)).all()
        pairs = set(zip(label[task], shown[task], strict=True))
        assert len(pairs) == ways == len({c for _, c in pairs})
        images_seen = set(zip(shown[task], number[task], strict=True))
        assert len(images_seen) == ways * (shots + queries)


def test_uint8_images_are_given_out_as_0_to_1_and_floating_ones_as_they_are():
    bright, labels = np.full((8, 3, 3), 255, np.uint8), np.repeat([0, 1], 4)
    options = {"ways": 2, "shots": 1, "queries": 1}
    for images, value in ((bright, 1.0), (bright // 5, 0.2), (bright / 2.0, 127.5)):
        for dtype in ("float32", "float64"):
            batch = Episodes(images, labels, dtype=dtype, **options)(rng())
            assert {array.dtype for array in batch} == {np.dtype(dtype)}
            assert (batch.x_query == np.dtype(dtype).type(value)).all()


def test_images_are_never_copied_or_changed(tmp_path):
    pixels = rng().integers(0, 256, (40, 5, 5, 3), np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    labels = np.repeat(np.arange(4), 10)
    options = {"ways": 3, "shots": 2, "queries": 2, "rotations": True, "tasks": 5}
    batches = []
    for images in (pixels, mapped):
        episodes = Episodes(images, labels, **options)
        assert np.shares_memory(episodes.images, images)
        batches.append(episodes(rng(1)))
    assert all(np.array_equal(a, b) for a, b in zip(*batches, strict=True))
    assert np.array_equal(mapped, pixels)


def test_a_class_is_turned_as_one_in_support_and_query_and_all_turns_are_drawn():
    images, labels = numbered_images([6] * 8)
    episodes = Episodes(
        images, labels, ways=4, shots=2, queries=2, rotations=True, tasks=500
    )
    batch = episodes(rng())
    x = np.concatenate([batch.x_support, batch.x_query], axis=1)
    label = np.concatenate([batch.y_support, batch.y_query], axis=1).argmax(-1)
    turns = np.take_along_axis(read(x)[2], label.argsort(axis=1, kind="stable"), axis=1)
    turns = turns.reshape(500, 4, 4)  # tasks, classes, images of a class
    assert (turns == turns[..., :1]).all()
    assert stats.chisquare(np.bincount(turns[..., 0].ravel())).pvalue > 0.01
    # Turns of two classes of a task have nothing to do with each other.
    pairs = np.bincount(4 * turns[:, 0, 0] + turns[:, 1, 0], minlength=16)
    assert stats.chisquare(pairs).pvalue > 0.01


def test_a_turned_image_is_the_original_turned_and_not_mirrored():
    originals = rng().random((20, 5, 5, 2))
    labels = np.repeat(np.arange(4), 5)
    turned = {np.rot90(image, k).tobytes() for image in originals for k in range(4)}
    episodes = Episodes(
        originals,
        labels,
        ways=4,
        shots=1,
        queries=1,
        rotations=True,
        tasks=500,
        dtype="float64",
    )
    x = episodes(rng()).x_query.reshape(-1, 5, 5, 2)
    assert {image.tobytes() for image in x} == turned


def test_classes_of_unequal_size_give_all_their_images():
    images, labels = numbered_images([2, 9, 4])
    episodes = Episodes(images, labels, ways=3, shots=1, queries=1, tasks=300)
    shown, number, _ = read(episodes(rng()).x_query)
    for label, count in enumerate([2, 9, 4]):
        assert set(number[shown == label]) == set(range(count))


def test_every_class_has_every_label_and_every_image_every_slot_equally_often():
    images, labels = numbered_images([4] * 6)
    episodes = Episodes(images, labels, ways=3, shots=1, queries=1, tasks=6000)
    batch = episodes(rng(3))
    shown, number, _ = read(batch.x_support)
    first = batch.y_support.argmax(-1)
    table = np.bincount((6 * first + shown).astype(int).ravel(), minlength=18)
    assert stats.chisquare(table).pvalue > 0.01
    slots = np.bincount(number.astype(int).ravel(), minlength=4)
    assert stats.chisquare(slots).pvalue > 0.01
    position = first[:, 0]  # which label comes first in the support
    assert stats.chisquare(np.bincount(position)).pvalue > 0.01


def test_tasks_depend_on_the_seed_alone():
    images, labels = numbered_images([5] * 7)
    options = {"ways": 3, "shots": 1, "queries": 2, "rotations": True}
    episodes = Episodes(images, labels, tasks=4, **options)
    first, same, other = (episodes(rng(seed)) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, same, strict=True))
    assert not np.array_equal(first.x_query, other.x_query)
    kept = episodes.fixed(6, 50)
    rematerialise = Episodes(images, labels, tasks=9, **options).fixed(seed=6, count=50)
    assert all(np.array_equal(a, b) for a, b in zip(kept, rematerialise, strict=True))
    assert not np.array_equal(kept.x_query, episodes.fixed(7, 50).x_query)
    assert len(episodes.fixed(6).x_query) == 600


def test_labels_may_be_strings_and_shapes_may_leave_out_the_channel():
    labels = np.array(["bee", "ant", "cow", "ant", "bee", "cow"])
    images = np.array([2.0, 1.0, 3.0, 1.0, 2.0, 3.0])[:, None, None] * np.ones((2, 4))
    batch = Episodes(images, list(labels), ways=3, shots=1, queries=1)(rng())
    assert batch.x_support.shape == (1, 3, 2, 4, 1)
    for x, y in (batch[:2], batch[2:]):
        assert sorted(x[0, :, 0, 0, 0]) == [1, 2, 3]
        assert x[0, y[0].argmax(0)].tobytes() == (
            batch.x_support[0, batch.y_support[0].argmax(0)].tobytes()
        )


def refused(kind, message, images=None, labels=None, **changed):
    options = {"ways": 2, "shots": 1, "queries": 1} | changed
    images = np.zeros((6, 4, 4), np.uint8) if images is None else images
    labels = np.repeat(["x", "y"], 3) if labels is None else labels
    with pytest.raises(kind, match=message):
        Episodes(images, labels, **options)


def test_arguments_that_cannot_work_are_refused_with_a_reason():
    refused(ValueError, r"class y: expected at least 2 \+ 1 images .* got 2",
            labels=np.array(list("xxxxyy")), shots=2)  # fmt: skip
    refused(ValueError, "expected at least 3 classes, got 2", ways=3)
    for name in ("ways", "shots", "queries", "tasks"):
        refused(ValueError, f"{name}: expected at least 1, got 0", **{name: 0})
    refused(TypeError, "expected uint8 or a floating dtype, got int64",
            np.zeros((6, 4, 4), "int64"))  # fmt: skip
    refused(ValueError, "expected shape .* got \\(6, 4\\)", np.zeros((6, 4)))
    refused(ValueError, "one for each of 6 images, got shape \\(5,\\)", labels=[0] * 5)
    wide = np.zeros((6, 4, 5), np.uint8)
    refused(ValueError, r"rotations: expected square images, got \(4, 5\)",
            wide, rotations=True)  # fmt: skip
    Episodes(wide, np.repeat(["x", "y"], 3), ways=2, shots=1, queries=1)(rng())
    episodes = Episodes(wide, [0] * 3 + [1] * 3, ways=2, shots=1, queries=1)
    with pytest.raises(ValueError, match="count: expected at least 1, got 0"):
        episodes.fixed(0, 0)


def test_counts_that_are_no_whole_numbers_are_refused_and_lists_are_welcome():
    images, labels = np.zeros((60, 8, 8)), np.repeat(np.arange(6), 10)
    for name in ("ways", "shots", "queries", "tasks"):
        counts = {"ways": 5, "shots": 1, "queries": 1, "tasks": 1, name: 1.5}
        with pytest.raises(TypeError, match=f"{name}: expected a whole number"):
            Episodes(images, labels, **counts)
    sample = Episodes(images.tolist(), labels.tolist(), ways=5, shots=1, queries=1)
    assert sample.fixed(0, 2).x_query.shape == (2, 5, 8, 8, 1)


def test_the_example_of_own_images_learns_more_than_chance():
    before, after = load_example("own_images").main(iterations=60)
    assert before < 0.3 < 0.4 < after
