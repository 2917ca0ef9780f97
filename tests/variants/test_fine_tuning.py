"""Fine-tuning: labels of all classes, and the last layer of a new task."""

import numpy as np
import pytest

import tinymaml as tm
from tinymaml.tasks.episodes import Episodes
from tinymaml.variants.fine_tuning import AllClasses, new_last_layer

NAMES = np.array(["d", "a", "c", "b"])  # class k in order of its name is "abcd"[k]


def numbered_episodes(rotations=False):
    """Images (3, 3) of four classes: the class, 10 times, plus a 0.5 that turns."""
    labels = np.repeat(NAMES, 6)
    images = np.zeros((24, 3, 3))
    images += 10.0 * np.searchsorted(sorted(NAMES), labels).reshape(-1, 1, 1)
    images[:, 0, 0] += 0.5
    settings = {"ways": 3, "shots": 2, "queries": 1, "tasks": 50, "dtype": "float64"}
    return Episodes(images, labels, rotations=rotations, **settings)


@pytest.mark.parametrize("rotations", [False, True])
def test_every_image_has_the_label_of_its_class_in_every_episode(rotations):
    episodes = numbered_episodes(rotations)
    sample = AllClasses(episodes)
    assert sample.classes == (16 if rotations else 4)
    tasks = sample(np.random.default_rng(0))
    assert tasks.x_query.shape == (50, 9, 3, 3, 1)
    assert tasks.y_query.shape == (50, 9, sample.classes)
    assert (tasks.y_query.sum(axis=-1) == 1).all()
    x = tasks.x_query[..., 0]
    corners = x[:, :, [0, 2, 2, 0], [0, 0, 2, 2]]  # counterclockwise, from the first
    expected = x[:, :, 1, 1] / 10
    if rotations:
        expected = 4 * expected + corners.argmax(axis=-1)
    assert np.array_equal(tasks.y_query.argmax(axis=-1), expected)
    assert len(np.unique(expected)) == sample.classes
    assert np.array_equal(tasks.x_support, tasks.x_query)
    assert np.array_equal(tasks.y_support, tasks.y_query)


def test_the_images_are_those_of_the_episodes():
    episodes = numbered_episodes()
    tasks = AllClasses(episodes)(np.random.default_rng(3))
    x, _, x_query, _ = episodes(np.random.default_rng(3))
    assert np.array_equal(tasks.x_query, np.concatenate([x, x_query], axis=1))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_new_last_layer_is_zero_and_all_else_is_kept(dtype):
    wide, narrow = tm.OmniglotConv(40, features=4), tm.OmniglotConv(5, features=4)
    theta = wide.init(np.random.default_rng(0), dtype)
    new = new_last_layer(theta, wide, narrow)
    assert new.dtype == dtype
    before, after = wide.unflatten(theta), narrow.unflatten(new)
    for name, array in after.items():
        if name.startswith("linear"):
            assert not array.any()
        else:
            assert np.array_equal(array, before[name]), name


def test_networks_that_differ_elsewhere_are_refused():
    wide, narrow = tm.MLP([2, 4, 9]), tm.MLP([2, 5, 3])
    with pytest.raises(ValueError, match=r"linear1\.weight: expected shape \(2, 5\)"):
        new_last_layer(np.zeros(wide.size), wide, narrow)
    with pytest.raises(ValueError, match=r"linear2\.weight: expected shape \(4, 4\)"):
        new_last_layer(np.zeros(wide.size), wide, tm.MLP([2, 4, 4, 3]))


def test_classes_learned_jointly_help_with_new_ones():
    """Classes are directions of two inputs; ten others are noise."""
    rng = np.random.default_rng(0)

    def images_of(angles):
        points = np.repeat(np.stack([np.cos(angles), np.sin(angles)], axis=1), 20, 0)
        noise = 1.5 * rng.standard_normal((len(points), 10))
        return np.concatenate([points, noise], axis=1).reshape(-1, 1, 12)

    settings = {"shots": 1, "queries": 5, "tasks": 40}
    labels = np.repeat(np.arange(8), 20)
    train = Episodes(images_of(np.arange(8) * np.pi / 4), labels, ways=4, **settings)
    angles = np.arange(3) * 2 * np.pi / 3 + 0.3
    test = Episodes(images_of(angles), labels[:60], ways=3, **settings)
    sample = AllClasses(train)
    wide, narrow = (
        tm.Network([tm.Flatten(), *tm.MLP([12, 16, ways]).layers]) for ways in (8, 3)
    )

    def learner(network, **options):
        def loss(theta, x, y):
            return tm.cross_entropy(network(theta, x), y)

        return tm.MAML(loss, alpha=0.5, **options)

    theta = wide.init(rng)
    settings = {"iterations": 150, "optimiser": tm.Adam(0.01), "rng": rng}
    result = tm.train(learner(wide, steps=0), theta, sample, **settings, progress=False)
    tasks, accuracies = test(np.random.default_rng(1)), []
    for start in (theta, result.theta):
        start = new_last_layer(start, wide, narrow)
        logits = learner(narrow).predict(narrow, start, tasks, steps=10)[:, -1]
        accuracies.append(tm.accuracy(logits, tasks.y_query).mean())
    assert accuracies[1] > accuracies[0] + 0.2
