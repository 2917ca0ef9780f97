"""MAMLTRPO's inner loop: its trajectories, its steps, and what it refuses."""

import copy
import pickle

import numpy as np
import pytest

from tests.support.policy_problems import small_learner, start
from tests.support.running import BACKENDS, assert_close
from tinymaml.rl.advantages import advantages
from tinymaml.rl.maml_trpo import MetaBatch
from tinymaml.rl.policy_losses import chunk_steps
from tinymaml.rl.rollouts import roll_out

every_backend = pytest.mark.parametrize("backend", BACKENDS)


def test_alg3_line3_draws_new_goals_and_noise_from_the_generator_alone():
    learner = small_learner(steps=2)
    one, same, other = (
        learner.draw(np.random.default_rng(seed), tasks=5) for seed in (0, 0, 1)
    )
    assert one.tasks.shape == (5, 2) and one.noise.shape == (3, 5, 4, 7, 2)
    assert one.noise.dtype == np.float32
    assert all((a == b).all() for a, b in zip(one, same, strict=True))
    assert one.start_noise.shape == (3, 5, 4, 0)  # navigation always starts at (0, 0)
    assert all((a != b).any() for a, b in zip(one[:2], other[:2], strict=True))


def test_some_tasks_of_a_batch_are_adapted_as_among_the_others():
    """Their trajectories have the bits that they have in the whole batch."""
    learner = small_learner("numba")
    theta, batch = start(learner)
    whole, part = (learner.adapt(theta, b) for b in (batch, batch.of(slice(1, 3))))
    assert part.returns().tobytes() == whole.returns()[1:3].tobytes()
    assert part.thetas[1].tobytes() == whole.thetas[1][1:3].tobytes()
    assert batch.of(slice(1, 3)).start_noise.shape[1] == 2


def test_a_call_is_an_outer_step():
    learner = small_learner()
    theta, batch = start(learner)
    called, step = learner(theta, batch), learner.step(theta, batch)
    assert called.theta.tobytes() == step.theta.tobytes() != theta.tobytes()


@every_backend
def test_alg3_line7_is_a_step_down_each_tasks_own_gradient(backend):
    learner = small_learner(backend)
    theta, batch = start(learner)
    adaptation = learner.adapt(theta, batch)
    for task, after in enumerate(adaptation.thetas[1]):
        alone = MetaBatch(batch.tasks[task : task + 1], batch.noise[:, task : task + 1])
        by_itself = learner.adapt(theta, alone)
        assert_close(after, by_itself.thetas[1][0], 1e-12)
        gradient = learner.losses.gradient(theta[None], by_itself.samples[0])
        assert_close(after, theta - 0.4 * gradient[0], 1e-12)
    assert len({tuple(row) for row in adaptation.thetas[1]}) == 3


def test_adaptation_takes_the_given_inner_learning_rates():
    learner = small_learner()
    theta, batch = start(learner)
    noise = np.concatenate([batch.noise, batch.noise[:1]])
    alphas = [0.4, 0.2]
    adaptation = learner.adapt(theta, MetaBatch(batch.tasks, noise), alphas)
    assert adaptation.returns().shape == (3, 3)
    for j, alpha in enumerate(alphas):
        before, after = adaptation.thetas[j : j + 2]
        gradient = learner.losses.gradient(before, adaptation.samples[j])
        np.testing.assert_allclose(after, before - alpha * gradient, atol=1e-12)


def test_adaptation_uses_the_first_trajectories_up_to_a_number_of_transitions():
    learner = small_learner(steps=2)
    theta, batch = start(learner)
    adaptation = small_learner(steps=2, transitions=10).adapt(theta, batch)
    thetas = np.broadcast_to(theta, (3, theta.size))
    for j, noise in enumerate(batch.noise):
        whole = roll_out(
            learner.policy, learner.environment, thetas, batch.tasks, noise
        )
        first = whole.first(10)
        assert not first.mask[:, -1].any() and whole.mask[:, -1].any()
        for one, same in zip(first, adaptation.trajectories[j], strict=True):
            np.testing.assert_array_equal(one, same)
        np.testing.assert_array_equal(thetas, adaptation.thetas[j])
        thetas = learner.inner_step(thetas, chunk_steps(first, advantages(first)), 0.4)


def test_adaptation_weighs_actions_with_the_learners_discount_and_decay():
    learner = small_learner(discount=0.7, decay=0.6)
    adaptation = learner.adapt(*start(learner))
    pairs = zip(adaptation.trajectories, adaptation.samples, strict=True)
    for trajectories, samples in pairs:
        estimates = advantages(trajectories, 0.7, 0.6)
        expected = chunk_steps(trajectories, estimates)
        for name, array in expected.arrays.items():
            np.testing.assert_array_equal(samples.arrays[name], array)


# --- bad input ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"order": 3}, "order: expected one of 1, 2, got 3"),
        ({"trajectories": 0}, "trajectories: expected at least 1, got 0"),
        ({"transitions": 0}, "transitions: expected at least 1, got 0"),
        ({"steps": -1}, "steps: expected at least 0, got -1"),
        ({"alpha": np.nan}, "alpha: expected finite numbers"),
        ({"max_kl": 0.0}, "max_kl: expected a positive number, got 0.0"),
        ({"damping": -1.0}, "damping: expected a number of at least 0, got -1.0"),
        ({"discount": 1.5}, "discount: expected a number in .0, 1., got 1.5"),
        ({"decay": -0.5}, "decay: expected a number in .0, 1., got -0.5"),
        ({"iterations": 0}, "iterations: expected at least 1, got 0"),
        ({"alpha": np.ones(3)}, "alpha: expected 1 or 29 numbers, got 3"),
    ],
)
def test_bad_settings_are_refused_by_name(options, complaint):
    with pytest.raises(ValueError, match=f"^{complaint}"):
        small_learner(**options)


@pytest.mark.parametrize("name", ["trajectories", "transitions", "iterations"])
@pytest.mark.parametrize("bad", [1.5, 2.0, True, np.nan, "7"])
def test_numbers_that_are_not_whole_are_refused_by_name(name, bad):
    complaint = f"^{name}: expected a whole number, got {bad!r}"
    with pytest.raises(TypeError, match=complaint):
        small_learner(**{name: bad})


@pytest.mark.parametrize("bad", [1.5, True, np.nan, "7"])
def test_an_order_that_is_not_1_or_2_is_refused(bad):
    with pytest.raises(ValueError, match=f"^order: expected one of 1, 2, got {bad!r}"):
        small_learner(order=bad)


@pytest.mark.parametrize("name", ["max_kl", "damping", "discount", "decay"])
@pytest.mark.parametrize("bad", ["a", None])
def test_settings_that_are_no_numbers_are_refused_by_name(name, bad):
    with pytest.raises(TypeError, match=f"^{name}: expected a number, got {bad!r}"):
        small_learner(**{name: bad})


def test_bad_inner_learning_rates_are_refused_by_name():
    learner = small_learner()
    for bad in ([np.ones(3)], [np.nan]):
        with pytest.raises(ValueError, match="^alpha: expected"):
            learner.adapt(*start(learner), bad)


@every_backend
def test_a_step_after_which_actions_overflow_names_alpha(backend):
    learner = small_learner(backend, alpha=1e30)
    theta, batch = start(learner, "float32")
    complaint = "^alpha: after inner step 1 actions are not finite"
    with pytest.raises(FloatingPointError, match=complaint):
        learner.step(theta, batch)
    theta[-1] = 100  # a standard deviation of exp(100)
    with pytest.raises(FloatingPointError, match="^theta: actions are not finite"):
        learner.adapt(theta, batch)


def test_bad_theta_tasks_and_noise_are_refused_by_name():
    learner = small_learner()
    theta, batch = start(learner)
    for bad, complaint in [
        ((theta[:-1], batch), "theta: expected shape"),
        (
            (theta, batch._replace(noise=batch.noise[:1])),
            "noise: expected it for 1 steps",
        ),
        (
            (theta, batch._replace(noise=batch.noise[:, :, :, :-1])),
            "noise: expected shape",
        ),
        ((theta, batch._replace(tasks=batch.tasks[:2])), "noise: expected shape"),
        (
            (theta, batch._replace(noise=batch.noise[:, :, :0])),
            "trajectories: expected",
        ),
    ]:
        with pytest.raises(ValueError, match=f"^{complaint}"):
            learner.adapt(*bad)
    with pytest.raises(
        TypeError, match="^theta: expected a float32 or float64 array, got list"
    ):
        learner.step(theta.tolist(), batch)
    with pytest.raises(TypeError, match="^noise: expected dtype float64, got float32"):
        learner.adapt(theta, batch._replace(noise=batch.noise.astype("float32")))
    with pytest.raises(ValueError, match="^theta: expected finite numbers"):
        learner.step(np.full_like(theta, np.nan), batch)


@every_backend
def test_a_used_learner_can_be_copied_and_pickled(backend):
    learner = small_learner(backend)
    theta, batch = start(learner)
    adapted = learner.adapt(theta, batch).thetas[1]
    assert np.abs(adapted - theta).max() > 0
    copies = copy.deepcopy(learner), pickle.loads(pickle.dumps(learner))
    for other in copies:
        np.testing.assert_array_equal(other.adapt(theta, batch).thetas[1], adapted)
    del learner
    for other in copies:
        np.testing.assert_array_equal(other.adapt(theta, batch).thetas[1], adapted)


@pytest.mark.parametrize("name", ["alpha", "order", "policy", "max_kl", "discount"])
def test_a_learner_is_read_only(name):
    learner = small_learner()
    with pytest.raises(AttributeError, match=f"^{name}: a MAMLTRPO cannot be changed"):
        setattr(learner, name, getattr(learner, name))
