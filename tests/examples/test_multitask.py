"""examples/multitask.py: regressors trained at once, and their mean."""

import numpy as np
import pytest

import tinymaml as tm
from tests.support.running_examples import load_example


@pytest.fixture
def example():
    return load_example("multitask")


NETWORK = tm.MLP([1, 10, 1])


def loss(theta, x, y):
    return tm.squared_error(NETWORK(theta, x), y)


def test_the_running_mean_is_the_mean_of_its_targets(example):
    targets = np.random.default_rng(0).normal(size=(5, 3))
    theta, mean = np.zeros(3), example.RunningMean()
    for target in targets:
        mean.update(theta, theta - target)
    np.testing.assert_allclose(theta, targets.mean(0))
    other = example.RunningMean()
    other.load_state(mean.state())
    assert other.count == 5


def test_regressors_learn_their_waves_and_a_penalty_holds_them_back(example):
    centre = NETWORK.init(np.random.default_rng(9))
    backend = tm.get_backend("numba", 1)
    results = {}
    for name, steps, strength in (
        ("untrained", 1, 0.0),
        ("free", 150, 0.0),
        ("penalised", 150, 1.0),
    ):
        group = example.Group(NETWORK, loss, backend, steps, strength, True)
        results[name] = group(centre, np.random.default_rng(0))
    assert results["free"].loss < 0.6 * results["untrained"].loss
    # The gradient is the centre minus the group's mean.
    distances = {name: np.linalg.norm(results[name].gradient) for name in results}
    assert distances["penalised"] < 0.6 * distances["free"]
