"""MAML++: weights and order as functions of the iteration, and a training with both."""

import numpy as np
import pytest

import tinymaml as tm
from tests.support.maml_problems import (
    assert_exact,
    assert_float32_agrees,
    problem,
    variant_of,
)
from tests.support.running import BACKENDS, assert_close
from tinymaml.tasks import sinusoid
from tinymaml.variants import MAMLPlusPlus, StepRates, annealed_weights

every_backend = pytest.mark.parametrize("backend", BACKENDS)
NETWORK = tm.MLP([2, 5, 3], "tanh")  # that of `problem`


def annealed(iteration):
    return annealed_weights(iteration, steps=3, until=10)


def learner(p, backend="numpy", weights_at=annealed, order_at=lambda t: 2, **options):
    options = {"steps": 3, "backend": backend, **options}
    maml = variant_of(MAMLPlusPlus, p, NETWORK, weights_at, order_at, **options)
    return maml, maml.start(p.theta)


# --- schedules ------------------------------------------------------------------------


def test_annealed_weights_are_equal_first_and_on_the_last_step_in_the_end():
    assert annealed(0) == annealed(-5) == pytest.approx([1 / 3] * 3)
    assert annealed(5) == pytest.approx([1 / 6, 1 / 6, 2 / 3])
    assert annealed(10) == annealed(10**6) == [0.0, 0.0, 1.0]
    late = annealed_weights(99, steps=3, until=100)
    assert late == pytest.approx([0.01, 0.01, 0.98])
    assert annealed_weights(3, steps=1, until=10) == [1.0]
    for iteration in range(12):
        assert sum(annealed(iteration)) == pytest.approx(1)


# --- the meta-gradient ----------------------------------------------------------------


@every_backend
@pytest.mark.parametrize("order", [1, 2])
def test_weights_on_the_last_step_alone_and_constant_rates_are_maml(backend, order):
    p = problem("cross_entropy")
    maml, start = learner(p, backend, lambda t: [0, 0, 1], lambda t: order)
    result = maml.meta_gradient(start, p.tasks)
    plain = p.maml(backend, steps=3, order=order).meta_gradient(p.theta, p.tasks)
    assert_close(result.gradient[: p.theta.size], plain.gradient, 1e-12)
    assert_close(result.losses, plain.losses, 1e-14)


@every_backend
@pytest.mark.parametrize("iteration", [0, 4, 20])
def test_annealed_loss_of_an_iteration_is_that_of_fixed_weights(backend, iteration):
    p = problem()
    maml, start = learner(p, backend, order_at=lambda t: 1 if t < 4 else 2)
    result = maml.at(iteration).meta_gradient(start, p.tasks)
    fixed = {"step_weights": annealed(iteration), "order": 1 if iteration < 4 else 2}
    rates = variant_of(StepRates, p, NETWORK, steps=3, backend=backend, **fixed)
    expected = rates.meta_gradient(start, p.tasks)
    assert_close(result.gradient, expected.gradient, 1e-13)
    assert_close(result.losses, expected.losses, 1e-14)


def test_losses_without_weight_are_not_computed():
    p = problem()
    maml, start = learner(p)
    rates = variant_of(StepRates, p, NETWORK, steps=3)
    fewest = rates.tape(start, p.tasks).flops()
    assert maml.at(10).tape(start, p.tasks).flops() < fewest + 10
    assert maml.at(9).tape(start, p.tasks).flops() > 1.2 * fewest
    halved, _ = learner(p, weights_at=lambda t: [0.0, 0.0, 0.5])
    result = halved.meta_gradient(start, p.tasks).gradient
    assert_close(2 * result, rates.meta_gradient(start, p.tasks).gradient, 1e-13)


def test_annealed_loss_has_the_gradient_of_finite_differences():
    p = problem()
    maml, start = learner(p)
    for iteration in (0, 7):
        assert_exact(maml.at(iteration), start, p.tasks, annealed(iteration))


@every_backend
def test_float32_is_close(backend):
    p = problem()
    assert_float32_agrees(*learner(p, backend), p.tasks)


# --- training -------------------------------------------------------------------------


def train(kind=MAMLPlusPlus, iterations=12, backend="numba", **options):
    """A training on sinusoids; first order until iteration 4."""
    network = tm.MLP([1, 8, 1])
    seen = []

    def weights_at(iteration):
        seen.append(iteration)
        return annealed(iteration)

    maml = kind(
        lambda theta, x, y: tm.squared_error(network(theta, x), y),
        *(network, weights_at, lambda t: 1 if t < 4 else 2),
        steps=3,
        backend=backend,
        threads=1,
    )
    seen.clear()
    result = tm.train(
        *(maml, maml.start(network.init(np.random.default_rng(0), "float64"))),
        lambda rng: sinusoid.sample_tasks(rng, 4, dtype="float64"),
        iterations=iterations,
        rng=np.random.default_rng(1),
        progress=False,
        **{"optimiser": tm.Adam(0.01), **options},
    )
    return result, seen, maml


@every_backend
def test_a_training_counts_its_iterations_and_compiles_three_programs(backend):
    _, seen, maml = train(backend=backend)
    assert seen == [*range(12)]
    # Of first order, of second order, and after iteration 10 without early losses.
    assert len(maml._programs) == 3


def test_a_resumed_training_goes_on_at_its_iteration(tmp_path):
    whole, _, _ = train()
    train(iterations=7, out=tmp_path / "checkpoint.npz")
    resumed, seen, _ = train(resume=tmp_path / "checkpoint.npz")
    assert seen == [*range(7, 12)]
    assert np.array_equal(resumed.theta, whole.theta)


def test_a_training_takes_the_gradients_of_its_iterations():
    result, _, maml = train(iterations=6)
    rng, adam = np.random.default_rng(1), tm.Adam(0.01)
    network = tm.MLP([1, 8, 1])
    theta = maml.start(network.init(np.random.default_rng(0), "float64"))
    for iteration in range(6):
        fixed = StepRates(
            maml.loss,
            network,
            steps=3,
            step_weights=annealed(iteration),
            order=1 if iteration < 4 else 2,
            backend="numpy",
        )
        tasks = sinusoid.sample_tasks(rng, 4, dtype="float64")
        adam.update(theta, fixed.meta_gradient(theta, tasks).gradient)
    assert_close(result.theta, theta, 1e-10)


def test_another_number_of_steps_needs_other_weights():
    p = problem()
    maml, _ = learner(p, weights_at=lambda t: [0.5, 0.5] if t else [1 / 3] * 3)
    maml.steps = 2
    start = maml.start(p.theta)
    with pytest.raises(ValueError, match="^weights_at: expected 2 finite weights, got"):
        maml.meta_gradient(start, p.tasks)
    losses = maml.at(1).evaluate(start, p.tasks)[:, 1:].mean(axis=1)
    assert_close(maml.meta_gradient(start, p.tasks).losses, losses, 1e-13)


def test_an_optimiser_of_ones_own_needs_a_count_of_steps():
    class Uncounted(tm.SGD):
        def state(self):
            return {}

    with pytest.raises(ValueError, match="^optimiser: expected a state with 'step'"):
        train(iterations=1, optimiser=Uncounted(0.1))


# --- refusals -------------------------------------------------------------------------


def test_schedules_that_are_none_are_refused():
    p = problem()
    with pytest.raises(TypeError, match=r"^weights_at: expected a function, got \[1\]"):
        learner(p, weights_at=[1])
    with pytest.raises(TypeError, match="^order_at: expected a function, got 2"):
        learner(p, order_at=2)
    with pytest.raises(ValueError, match=r"^weights_at: expected 3 finite weights"):
        learner(p, weights_at=lambda t: [0.5, 0.5])
    with pytest.raises(ValueError, match="^order: expected one of 1, 2, got 3"):
        learner(p, order_at=lambda t: 3)
    for name, value in (("order", 1), ("step_weights", [0, 0, 1])):
        with pytest.raises(TypeError, match=f"multiple values .* '{name}'"):
            learner(p, **{name: value})
    maml, _ = learner(p)
    with pytest.raises(TypeError, match="^weights_at: expected a function, got 3"):
        maml.weights_at = 3
    with pytest.raises(ValueError, match=r"^step_weights: expected None, got \[1\]"):
        maml.step_weights = [1]
    with pytest.raises(ValueError, match="^until: expected at least 1, got 0"):
        annealed_weights(0, steps=2, until=0)
