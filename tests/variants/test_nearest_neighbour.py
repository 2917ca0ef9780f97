"""Nearest neighbour: the same as a loop over pairs, on inputs and on features."""

import tracemalloc

import numpy as np
import pytest

import tinymaml as tm
from tests.support.running import BACKENDS
from tinymaml.variants.nearest_neighbour import nearest_neighbour

every_backend = pytest.mark.parametrize("backend", BACKENDS)
NETWORK = tm.MLP([4, 6, 3])


def learner(backend):
    def loss(theta, x, y):
        return tm.squared_error(NETWORK(theta, x), y)

    return tm.MAML(loss, backend=backend, threads=1)


def image_tasks(dtype):
    rng = np.random.default_rng(0)
    shapes = [(3, n, *s) for n in (5, 7) for s in ((2, 2, 1), (2,))]
    return tm.Tasks(*(rng.standard_normal(shape).astype(dtype) for shape in shapes))


def by_loops(f_support, y_support, f_query):
    """The y of the support example at the least distance, one query after the other."""
    chosen = []
    for example in f_query:
        distances = [np.linalg.norm(example - other) for other in f_support]
        chosen.append(y_support[distances.index(min(distances))])
    return np.array(chosen)


@every_backend
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nearest_neighbour_of_pixels_is_that_of_a_loop(backend, dtype):
    tasks = image_tasks(dtype)
    found = nearest_neighbour(
        learner(backend), lambda theta, x, x_support: x, np.zeros(1, dtype), tasks
    )
    assert found.dtype == dtype
    for task, (xs, ys, xq, _) in enumerate(zip(*tasks, strict=True)):
        assert np.array_equal(found[task], by_loops(xs, ys, xq))


@every_backend
def test_nearest_neighbour_of_features_is_that_of_a_loop(backend):
    tasks = image_tasks("float64")
    theta = NETWORK.init(np.random.default_rng(1), "float64")
    body = tm.Network(NETWORK.layers[:-1])

    def features(theta, x, x_support):
        return body(theta[: body.size], x.reshape(-1, 4))

    found = nearest_neighbour(learner(backend), features, theta, tasks)
    pixels = nearest_neighbour(learner(backend), lambda t, x, s: x, theta, tasks)
    for task, (xs, ys, xq, _) in enumerate(zip(*tasks, strict=True)):
        fs, fq = (body.predict(theta[: body.size], x.reshape(-1, 4)) for x in (xs, xq))
        assert np.array_equal(found[task], by_loops(fs, ys, fq))
    assert not np.array_equal(found, pixels)


def test_of_equally_near_examples_the_first_counts():
    x = np.array([[[1.0], [3.0], [1.0]]])
    y = np.array([[[10.0], [30.0], [50.0]]])
    new = np.array([[[2.0], [1.0]]])
    tasks = tm.Tasks(x, y, new, new)
    found = nearest_neighbour(
        learner("numpy"), lambda theta, x, x_support: x, np.zeros(1), tasks
    )
    assert found[0, :, 0].tolist() == [10.0, 10.0]


def test_what_maml_refuses_is_refused():
    tasks = image_tasks("float64")
    with pytest.raises(TypeError, match="function: expected a function"):
        nearest_neighbour(learner("numpy"), None, np.zeros(1), tasks)
    with pytest.raises(TypeError, match="x_support: expected an array of theta's"):
        nearest_neighbour(
            learner("numpy"), lambda t, x, s: x, np.zeros(1, "float32"), tasks
        )


def test_nearest_neighbour_holds_the_distances_of_one_task_at_a_time():
    """Differences of all pairs of 40 tasks would be 50 MB here, and GB of real ones."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 20, 400)), np.zeros((40, 20, 1))
    tracemalloc.start()
    nearest_neighbour(learner("numpy"), lambda t, x, s: x, np.zeros(1), (x, y, x, y))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
