"""The procedural stand-ins: layout, seeds, classes that differ, and their source."""

import numpy as np
import pytest

from tinymaml.tasks import miniimagenet, omniglot, strokes
from tinymaml.tasks.episodes import Episodes

DRAWN = omniglot.standin()


def nearest_mean_accuracy(image_set, shots):
    """How many images are nearest to the mean of the first `shots` of their class."""
    classes = len(image_set.classes)
    x = image_set.images.reshape(classes, -1, image_set.images[0].size) / 255.0
    means = x[:, :shots].mean(1)
    tests = x[:, shots:].reshape(-1, x.shape[-1])
    distance = (means**2).sum(1) - 2 * tests @ means.T
    truth = np.arange(classes).repeat(x.shape[1] - shots)
    return (distance.argmin(1) == truth).mean()


def test_strokes_differ_a_little_within_a_class_and_a_lot_between_classes():
    classes = [strokes.sample_strokes(np.random.default_rng(s), 20) for s in range(20)]
    assert {points.shape[1] for points in classes} == {2, 3, 4}
    starts = np.array([points[:, 0, 0] for points in classes])  # (class, image, 2)
    within, between = starts.std(axis=1).mean(), starts.mean(axis=1).std(axis=0).mean()
    assert 0.01 < within < between / 3


@pytest.mark.parametrize(
    "ink, ground, mode", [(0, 255, "L"), ((9, 9, 9), (80, 0, 0), "RGB")]
)
def test_draw_puts_ink_on_ground(ink, ground, mode):
    points = strokes.sample_strokes(np.random.default_rng(0), 1)[0]
    image = strokes.draw(points, 50, ink, ground)
    colours = dict(map(reversed, image.getcolors()))
    assert image.mode == mode and image.size == (50, 50)
    assert set(colours) == {ink, ground}
    assert 0 < colours[ink] < colours[ground]


def test_the_omniglot_standin_has_omniglots_layout_and_its_own_source():
    assert DRAWN.source == "procedural stand-in"
    assert DRAWN.images.dtype == np.uint8
    assert DRAWN.images.shape == (len(DRAWN.classes) * 20, 28, 28, 1)
    assert np.array_equal(DRAWN.labels, np.arange(len(DRAWN.classes)).repeat(20))
    assert list(DRAWN.classes) == sorted(set(DRAWN.classes))
    assert not set(DRAWN.classes) & {
        character.name for character in omniglot.characters()
    }
    # Strokes are bright on an empty ground, as in the inverted originals.
    assert (DRAWN.images.max(axis=(1, 2, 3)) > 128).all()
    assert 5 < DRAWN.images.mean() < 40


def test_standins_depend_on_the_seed_alone(monkeypatch):
    monkeypatch.setattr(omniglot, "STANDIN_ALPHABETS", 1)  # for a quick test
    assert np.array_equal(DRAWN.images[:480], omniglot.standin().images)
    assert not np.array_equal(DRAWN.images[:480], omniglot.standin(seed=1).images)
    first, same, other = (miniimagenet.standin(s, images=1)["test"] for s in (0, 0, 1))
    assert np.array_equal(first.images, same.images)
    assert not np.array_equal(first.images, other.images)


@pytest.mark.parametrize("name", ["authors", "paper", "background"])
def test_the_omniglot_standin_splits_into_disjoint_classes(name):
    parts = omniglot.split(DRAWN, name)
    classes = [c for part in parts.values() for c in part.classes]
    assert sorted(classes) == sorted(DRAWN.classes)
    assert all(part.source == DRAWN.source for part in parts.values())
    # Enough classes and images everywhere for 20-way 5-shot.
    for part in parts.values():
        Episodes(part.images, part.labels, ways=20, shots=5, queries=5, rotations=True)
    if name == "background":
        alphabets = [{c.split("/")[0] for c in p.classes} for p in parts.values()]
        assert not set.intersection(*alphabets[:2]) | (alphabets[0] & alphabets[2])


def test_the_standins_can_be_learned_and_are_not_trivial():
    assert 10 / 240 < nearest_mean_accuracy(DRAWN, shots=1) < 0.9


def test_the_miniimagenet_standin_has_its_layout_and_its_own_source():
    sets = miniimagenet.standin(images=2)
    assert {name: len(part.classes) for name, part in sets.items()} == {
        "train": 64,
        "validation": 16,
        "test": 20,
    }
    for part in sets.values():
        assert part.source == "procedural stand-in"
        assert part.images.dtype == np.uint8
        assert part.images.shape == (2 * len(part.classes), 84, 84, 3)
        assert np.array_equal(part.labels, np.arange(len(part.classes)).repeat(2))
    assert len({c for part in sets.values() for c in part.classes}) == 100
