"""Episodes: classes and images of a task, order, rotations, seeds, refusals."""

import signal
from hashlib import sha256

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
    """Images whose pixels hold the class, its number in the class, and its rotation."""
    labels = np.repeat(np.arange(len(counts)), counts)
    images = np.zeros((len(labels), size, size, channels))
    images[:, 0, 0] = labels[:, None] + 1
    images[:, 0, 1] = np.concatenate([np.arange(n) for n in counts])[:, None] + 1000
    order = rng(9).permutation(len(labels))  # classes need not be contiguous
    return images[order], labels[order]


def read(x):
    """Class, number and quarter turns of numbered images (T, N*K, 2, 2, C)."""
    flat = x[..., 0].reshape(*x.shape[:2], 4)
    corner = np.argmax((flat > 0) & (flat < 1000), axis=-1)
    quarter_turns = np.array([0, 3, 1, 2])[corner]  # counterclockwise, as rot90
    return (
        np.take_along_axis(flat, corner[..., None], -1)[..., 0] - 1,
        flat.max(-1) - 1000,
        quarter_turns,
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
    for (x, y), groups in ((batch[:2], shots), (batch[2:], queries)):
        assert x.shape == (tasks, ways * groups, 2, 2, channels)
        assert y.shape == (tasks, ways * groups, ways)
        assert x.dtype == y.dtype == "float32"
        assert ((y == 0) | (y == 1)).all() and (y.sum(-1) == 1).all()
    x = np.concatenate([batch.x_support, batch.x_query], axis=1)
    label = np.concatenate([batch.y_support, batch.y_query], axis=1).argmax(-1)
    classes, numbers, quarter_turns = read(x)
    assert (quarter_turns == 0).all()
    for task in range(tasks):
        # Each group holds every class once, and a class always has the same label.
        groups = label[task].reshape(-1, ways)
        assert (np.sort(groups, axis=1) == np.arange(ways)).all()
        pairs = set(zip(label[task], classes[task], strict=True))
        assert len(pairs) == ways == len({c for _, c in pairs})
        distinct = set(zip(classes[task], numbers[task], strict=True))
        assert len(distinct) == ways * (shots + queries)


def test_uint8_images_are_scaled_to_0_to_1_and_floating_ones_are_unchanged():
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


def test_a_class_has_one_rotation_in_support_and_query_and_all_four_are_drawn():
    images, labels = numbered_images([6] * 8)
    episodes = Episodes(
        images, labels, ways=4, shots=2, queries=2, rotations=True, tasks=500
    )
    batch = episodes(rng())
    x = np.concatenate([batch.x_support, batch.x_query], axis=1)
    label = np.concatenate([batch.y_support, batch.y_query], axis=1).argmax(-1)
    by_class = label.argsort(axis=1, kind="stable")
    rotations = np.take_along_axis(read(x)[2], by_class, axis=1)
    rotations = rotations.reshape(500, 4, 4)  # tasks, classes, images of a class
    assert (rotations == rotations[..., :1]).all()
    assert stats.chisquare(np.bincount(rotations[..., 0].ravel())).pvalue > 0.01
    # The rotations of two classes of a task are independent.
    pairs = np.bincount(4 * rotations[:, 0, 0] + rotations[:, 1, 0], minlength=16)
    assert stats.chisquare(pairs).pvalue > 0.01


def test_a_rotated_image_is_the_original_rotated_and_not_mirrored():
    originals = rng().random((20, 5, 5, 2))
    labels = np.repeat(np.arange(4), 5)
    rotated = {np.rot90(image, k).tobytes() for image in originals for k in range(4)}
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
    assert {image.tobytes() for image in x} == rotated


def test_all_images_of_classes_of_unequal_size_are_drawn():
    images, labels = numbered_images([2, 9, 4])
    episodes = Episodes(images, labels, ways=3, shots=1, queries=1, tasks=300)
    classes, numbers, _ = read(episodes(rng()).x_query)
    for label, count in enumerate([2, 9, 4]):
        assert set(numbers[classes == label]) == set(range(count))


def test_every_class_gets_every_label_and_every_image_is_support_equally_often():
    images, labels = numbered_images([4] * 6)
    episodes = Episodes(images, labels, ways=3, shots=1, queries=1, tasks=6000)
    batch = episodes(rng(3))
    classes, numbers, _ = read(batch.x_support)
    labels = batch.y_support.argmax(-1)
    pairs = np.bincount((6 * labels + classes).astype(int).ravel(), minlength=18)
    assert stats.chisquare(pairs).pvalue > 0.01
    support = np.bincount(numbers.astype(int).ravel(), minlength=4)
    assert stats.chisquare(support).pvalue > 0.01
    # Every label is equally often that of the first support image.
    assert stats.chisquare(np.bincount(labels[:, 0])).pvalue > 0.01


def test_tasks_depend_on_the_seed_alone():
    images, labels = numbered_images([5] * 7)
    options = {"ways": 3, "shots": 1, "queries": 2, "rotations": True}
    episodes = Episodes(images, labels, tasks=4, **options)
    first, same, other = (episodes(rng(seed)) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, same, strict=True))
    assert not np.array_equal(first.x_query, other.x_query)
    fixed = episodes.fixed(6, 50)
    again = Episodes(images, labels, tasks=9, **options).fixed(seed=6, count=50)
    assert all(np.array_equal(a, b) for a, b in zip(fixed, again, strict=True))
    assert not np.array_equal(fixed.x_query, episodes.fixed(7, 50).x_query)
    assert len(episodes.fixed(6).x_query) == 600


def test_a_seed_draws_the_same_tasks_as_in_version_0_1():
    images, labels = numbered_images([5] * 7)
    options = {"ways": 3, "shots": 1, "queries": 2, "rotations": True, "tasks": 4}
    episodes = Episodes(images, labels, **options)
    digest = sha256()
    for array in episodes.draw(rng(5)):
        digest.update(array.astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == "ed29492dea5102cb"


def test_indices_look_up_the_tasks_that_are_drawn():
    images, labels = numbered_images([5] * 7)
    options = {"ways": 3, "shots": 1, "queries": 2, "rotations": True, "tasks": 4}
    episodes = Episodes(images, labels, **options)
    indices = episodes.draw(rng(5))
    assert all(array.dtype == np.int64 for array in indices)
    assert [array.shape for array in indices] == [(4, 3)] * 3 + [(4, 6)] * 3
    for kind in ("support", "query"):
        which, rotations, label = (
            getattr(indices, kind + field) for field in ("", "_rotations", "_labels")
        )
        x, y = (getattr(episodes(rng(5)), f"{name}_{kind}") for name in "xy")
        assert np.array_equal(y.argmax(-1), label)
        classes, _, quarter_turns = read(x)
        assert np.array_equal(classes, labels[which])
        assert np.array_equal(quarter_turns, rotations)


def test_rotations_of_indices_go_round_and_negative_numbers_are_refused():
    images, labels = numbered_images([5] * 7)
    episodes = Episodes(images, labels, ways=3, shots=1, queries=2, rotations=True)
    indices = episodes.draw(rng(5))
    again = indices._replace(query_rotations=indices.query_rotations + 4)
    for name, array in episodes.look_up(indices)._asdict().items():
        assert np.array_equal(getattr(episodes.look_up(again), name), array), name
    for name, array in indices._asdict().items():
        wrong = indices._replace(**{name: np.where(array == array.max(), -1, array)})
        with pytest.raises(
            ValueError, match="indices: expected numbers from 0 on, got -1"
        ):
            episodes.look_up(wrong)


def test_episodes_and_indices_show_what_they_are():
    images, labels = np.zeros((40, 8, 8), np.uint8), np.repeat(np.arange(4), 10)
    options = {"ways": 3, "shots": 2, "queries": 5, "tasks": 6}
    plain = Episodes(images, labels, **options)
    assert repr(plain).splitlines() == [
        "Episodes(3-way 2-shot, 5 queries a class, 6 tasks a batch, float32)",
        "  of 40 images (8, 8, 1) uint8 in 4 classes",
    ]
    rotated = Episodes(images, labels, rotations=True, dtype="float64", **options)
    assert "6 tasks a batch, rotated classes, float64)" in repr(rotated)
    lines = repr(plain.draw(rng())).splitlines()
    assert lines[0] == "EpisodeIndices"
    assert lines[1].split() == ["support", "(6,", "6)", "int64"]
    assert len(lines) == 7


def test_labels_may_be_strings_and_shapes_may_leave_out_the_channel():
    labels = np.array(["bee", "ant", "cow", "ant", "bee", "cow"])
    images = np.array([2.0, 1.0, 3.0, 1.0, 2.0, 3.0])[:, None, None] * np.ones((2, 4))
    batch = Episodes(images, list(labels), ways=3, shots=1, queries=1)(rng())
    assert batch.x_support.shape == (1, 3, 2, 4, 1)
    values = []  # of the images of classes 0, 1 and 2 of the task
    for x, y in (batch[:2], batch[2:]):
        assert sorted(x[0, :, 0, 0, 0]) == [1, 2, 3]
        values.append(x[0, y[0].argmax(0), 0, 0, 0].tolist())
    assert values[0] == values[1]


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
    refused(TypeError, "dtype: expected float32 or float64, got int8", dtype="int8")
    refused(ValueError, "expected shape .* got \\(6, 4\\)", np.zeros((6, 4)))
    refused(ValueError, "one for each of 6 images, got shape \\(5,\\)", labels=[0] * 5)
    wide = np.zeros((6, 4, 5), np.uint8)
    refused(ValueError, r"rotations: expected square images, got \(4, 5\)",
            wide, rotations=True)  # fmt: skip
    Episodes(wide, np.repeat(["x", "y"], 3), ways=2, shots=1, queries=1)(rng())
    episodes = Episodes(wide, [0] * 3 + [1] * 3, ways=2, shots=1, queries=1)
    with pytest.raises(ValueError, match="count: expected at least 1, got 0"):
        episodes.fixed(0, 0)
    for seed in (None, -1, 1.5, rng()):  # a list that no seed brings back
        with pytest.raises((TypeError, ValueError), match="seed: expected"):
            episodes.fixed(seed)


def test_data_that_would_be_taken_for_others_are_refused():
    pixels = np.full((6, 4, 4), 9, np.uint8)
    refused(TypeError, "images: expected no mask, got a masked array",
            np.ma.masked_array(pixels, mask=False))  # fmt: skip
    refused(TypeError, "images: expected no mask, got a masked array",
            [np.ma.masked_array(image, mask=False) for image in pixels])  # fmt: skip
    refused(TypeError, "labels: expected no mask, got a masked array",
            labels=np.ma.masked_array([0, 0, 0, 1, 1, 1], mask=False))  # fmt: skip
    for labels, kinds in (
        ([0.0, 0, 0, 1, 1, np.nan], "float, int"),
        ([None] * 3 + ["a"] * 3, "NoneType, str"),
        ([0j] * 6, "complex"),
        ([1, "1"] * 3, "int, str"),  # NumPy makes '1' of both
        (["a", b"a"] * 3, "bytes, str"),
        (np.array(["a", "a", "a", "b", "b", np.nan], object), "float, str"),
        (np.arange(6) / 2, "float64"),
    ):
        refused(TypeError, f"labels: expected integers or strings, got {kinds}$",
                labels=labels)  # fmt: skip
    for value in ("no", 1.0, np.ones(2)):
        refused(ValueError, "rotations: expected True or False, got", rotations=value)
    for shape in ((6, 0, 4), (6, 4, 4, 0), (0, 4, 4)):
        refused(ValueError, "images: expected pixels, got none, shape",
                np.zeros(shape, np.uint8), labels=["x"] * shape[0])  # fmt: skip
    refused(ValueError, "images: expected uint8 0 .. 255, got only 0 and 1",
            (pixels.cumsum(-1) > 20).astype(np.uint8))  # fmt: skip
    refused(TypeError, "dtype: expected float32 or float64, got int64", dtype=int)


def test_labels_may_be_strings_in_an_array_of_objects():
    labels = np.repeat(np.array(["x", "y"], object), 3)
    images = np.full((6, 4, 4), 9, np.uint8)
    batch = Episodes(images, labels, ways=2, shots=1, queries=2)(rng())
    assert batch.y_query.shape == (1, 4, 2)


def test_counts_may_be_small_integers():
    images, labels = np.zeros((600, 1, 1), np.float32), np.repeat([0, 1], 300)
    counts = {"shots": np.uint8(200), "queries": np.uint8(100), "tasks": np.uint8(2)}
    sample = Episodes(images, labels, ways=np.uint8(2), **counts)
    tasks = sample(np.random.default_rng(0))
    assert (tasks.x_support.shape[:2], tasks.x_query.shape[:2]) == ((2, 400), (2, 200))


def test_counts_must_be_whole_numbers_and_images_may_be_lists():
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


def test_the_example_of_own_images_reports_nothing_after_ctrl_c(monkeypatch, capsys):
    example = load_example("own_images")
    train = example.tm.train

    def stopped(*arguments, **options):
        return train(*arguments, **options, stop=interrupt, log_every=1)

    def interrupt(_):
        signal.raise_signal(signal.SIGINT)
        return False

    monkeypatch.setattr(example.tm, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        example.main(iterations=60)
    assert capsys.readouterr().out == ""
