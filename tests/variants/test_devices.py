"""Relatives of MAML on the GPU backend, and their training on the device."""

import numpy as np
import pytest

import tinymaml as tm
from tests.support.gpu_backends import AGREE, GPU_BACKENDS, gpu_backend
from tests.support.running import assert_close
from tinymaml import variants
from tinymaml.tasks import sinusoid
from tinymaml.training.steps import HostSteps

every_backend = pytest.mark.parametrize("backend", GPU_BACKENDS)
NETWORK = tm.MLP([1, 8, 1])
ALPHA = NETWORK.alpha(head=0.02)


def loss(theta, x, y):
    return tm.squared_error(NETWORK(theta, x), y)


def annealed(iteration):
    return variants.annealed_weights(iteration, steps=2, until=10)


LEARNERS = {
    "ANIL": lambda **options: variants.ANIL(loss, ALPHA, **options),
    "MetaSGD": lambda **options: variants.MetaSGD(loss, 0.02, **options),
    "StepRates": lambda **options: variants.StepRates(loss, NETWORK, **options),
    "MAMLPlusPlus": lambda **options: variants.MAMLPlusPlus(
        loss, NETWORK, annealed, lambda t: 1 if t < 4 else 2, **options
    ),
    "InnerMomentum": lambda **options: variants.InnerMomentum(loss, **options),
    "InnerAdam": lambda **options: variants.InnerAdam(loss, **options),
    "Reptile": lambda **options: variants.Reptile(loss, batch=3, **options),
    "ImplicitMAML": lambda **options: variants.ImplicitMAML(loss, 0.02, **options),
    "CAVIA": lambda **options: variants.CAVIA(loss, ALPHA, **options),
}
every_learner = pytest.mark.parametrize("name", LEARNERS)


def learner(name, backend, order=2):
    """A relative of MAML, and where it starts."""
    options = {"steps": 2, "backend": backend}
    if name != "MAMLPlusPlus":  # its order is that of its iteration
        options["order"] = order
    maml = LEARNERS[name](**options)
    theta = NETWORK.init(np.random.default_rng(0), "float64")
    return maml, maml.start(theta) if hasattr(maml, "start") else theta


def sample_waves(rng):
    return sinusoid.sample_tasks(rng, tasks=5, shots=4, dtype="float64")


@every_backend
@every_learner
@pytest.mark.parametrize("order", [1, 2])
def test_the_meta_gradient_is_that_of_the_reference(backend, name, order):
    ours, start = learner(name, gpu_backend(backend), order)
    reference, _ = learner(name, "numpy", order)
    tasks = sample_waves(np.random.default_rng(2))
    result, expected = (m.meta_gradient(start, tasks) for m in (ours, reference))
    assert_close(result.gradient, expected.gradient, AGREE["float64"])
    assert_close(result.losses, expected.losses, AGREE["float64"])


@every_backend
@every_learner
def test_training_on_the_device_is_that_of_the_host(backend, name):
    thetas = []
    for where in (gpu_backend(backend), "numpy"):
        maml, start = learner(name, where)
        result = tm.train(
            *(maml, start, sample_waves),
            iterations=12,
            optimiser=tm.Adam(0.01),
            rng=np.random.default_rng(1),
            progress=False,
        )
        thetas.append(result.theta)
        assert not np.array_equal(result.theta, start)
    assert_close(*thetas, 1e-9)
    steps = learner(name, gpu_backend(backend))[0].training_steps(
        start, tm.Adam(), sample_waves
    )
    # The weights of MAML++ change in every iteration; all others stay on the device.
    assert isinstance(steps, HostSteps) == (name == "MAMLPlusPlus")
