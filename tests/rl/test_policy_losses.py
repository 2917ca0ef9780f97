"""Equation (4), its Hessian and the Fisher matrix, on chunks of sampled steps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinymaml as tm
from tests.support.mutants import mutated
from tests.support.policy_problems import (
    TASKS,
    dense,
    problem,
    small_policy,
    small_theta,
)
from tests.support.running import BACKENDS, assert_close, run_tape
from tinymaml.autodiff.derivatives import hvp
from tinymaml.rl.policy import kl_divergence, log_probability
from tinymaml.rl.policy_losses import (
    QUANTITIES,
    PolicyLosses,
    _record,
    chunk_steps,
    record_fisher,
)
from tinymaml.rl.rollouts import Trajectories

every_backend = pytest.mark.parametrize("backend", BACKENDS)


def steps_of(samples, task, name):
    """An array of one task, without the padding of its last chunk."""
    chunks = samples.task_of_chunk == task
    real = samples.arrays["weights"][chunks].ravel() > 0
    array = samples.arrays[name][chunks]
    return array.reshape(-1, *array.shape[2:])[real]


# --- chunks ---------------------------------------------------------------------------


@given(seed=st.integers(0, 10**6), size=st.integers(1, 30))
def test_chunks_hold_every_step_that_was_taken_once_and_in_order(seed, size):
    rng = np.random.default_rng(seed)
    shape = (3, 4, 5)
    mask = rng.random(shape) < 0.6
    mask[:, 0, 0] = True
    number = rng.standard_normal(shape)
    x, actions = (np.stack([number, k * number], axis=-1) for k in (2, 3))
    trajectories = Trajectories(x, actions, number, mask)
    samples = chunk_steps(trajectories, 4 * number, size)
    weights = samples.arrays["weights"]
    assert weights.shape == (len(samples.task_of_chunk), size)
    assert (np.diff(samples.task_of_chunk) >= 0).all()
    assert samples.tasks == 3
    assert (np.unique(samples.task_of_chunk) == np.arange(3)).all()
    for task in range(3):
        chunks = samples.task_of_chunk == task
        assert chunks.sum() == -(-mask[task].sum() // size)
        assert weights[chunks].sum() == pytest.approx(1)
        expected = number[task][mask[task]]
        for name, array in (("x", x), ("actions", actions)):
            np.testing.assert_array_equal(
                steps_of(samples, task, name), array[task][mask[task]]
            )
        np.testing.assert_array_equal(
            steps_of(samples, task, "advantages"), 4 * expected
        )


@every_backend
def test_no_result_depends_on_the_size_of_chunks(backend):
    v = np.random.default_rng(0).standard_normal((TASKS, small_policy().size))
    results = []
    for chunk in (1, 4, 7, 250):
        p = problem(backend, chunk=chunk)
        losses, thetas = p.learner.losses, p.adaptation.thetas[-1]
        samples = losses.attach_old_policy(thetas, p.adaptation.samples[-1])
        loss, gradient = losses.surrogate(thetas, samples)
        other, kl = losses.surrogate_and_kl(thetas + 0.1, samples)
        results.append(
            [
                losses.gradient(thetas, samples),
                losses.hessian(thetas, samples)(v),
                losses.fisher(thetas, samples)(v),
                *(loss + 1, gradient, other, kl),
            ]
        )
    for others in results[1:]:
        for one, same in zip(results[0], others, strict=True):
            assert_close(same, one, 1e-11)


@pytest.mark.parametrize("name", QUANTITIES)
def test_a_quantity_reads_all_of_its_inputs(name):
    p = problem()
    losses, thetas = p.learner.losses, p.adaptation.thetas[-1]
    samples = losses.attach_old_policy(thetas, p.adaptation.samples[-1])
    theta = thetas[samples.task_of_chunk]
    tape = _record(losses.policy, name, samples.arrays | {"theta": theta, "v": theta})
    assert {placeholder.node for placeholder in tape.inputs.values()} <= {*tape.live()}


# --- equation (4) ---------------------------------------------------------------------


@every_backend
def test_maml_eq4_gradient_is_the_mean_of_log_probability_times_advantage(backend):
    """Against minus the mean, differentiated by hand for the output layer's bias."""
    p = problem(backend)
    theta, samples = p.adaptation.thetas[0], p.adaptation.samples[0]
    gradient = p.learner.losses.gradient(theta, samples)
    policy = p.learner.policy
    for task in range(TASKS):
        x, a = (steps_of(samples, task, name) for name in ("x", "actions"))
        advantages = steps_of(samples, task, "advantages")
        mean = policy.network.predict(p.theta[:-2], x)
        sigma = np.exp(p.theta[-2:])
        z = (a - mean) / sigma
        # d log pi / d mean = z / sigma; d log pi / d log sigma = z^2 - 1
        bias = -(advantages[:, None] * z / sigma).mean(axis=0)
        log_std = -(advantages[:, None] * (z**2 - 1)).mean(axis=0)
        assert_close(gradient[task, -4:-2], bias, 1e-11)
        assert_close(gradient[task, -2:], log_std, 1e-11)


def test_maml_eq4_gradient_is_that_of_the_expected_return():
    """One step, quadratic reward: E[r] and its gradient are known.

    Action a ~ N(mean, sigma^2), reward -(a - goal)^2, no baseline:
    E r = -(mean - goal)^2 - sigma^2.
    """
    policy = tm.GaussianPolicy(tm.MLP([1, 1]), 1, "numpy")
    theta = np.array([0.7, 0.2, np.log(0.5)])  # weight, bias, log sigma
    goal, x, count = 1.5, 2.0, 400_000
    noise = np.random.default_rng(0).standard_normal((1, count, 1))
    observations = np.full((1, count, 1), x)
    actions = policy.act(theta[None], observations, noise)
    rewards = -np.square(actions[..., 0] - goal)
    arrays = (observations, actions, rewards, rewards == rewards)
    trajectories = Trajectories(*(array[:, :, None] for array in arrays))
    samples = chunk_steps(trajectories, trajectories.rewards, count)
    gradient = PolicyLosses(policy, "numpy").gradient(theta[None], samples)[0]
    mean, variance = theta[0] * x + theta[1], np.exp(2 * theta[2])
    expected = np.array([2 * (mean - goal) * x, 2 * (mean - goal), 2 * variance])
    np.testing.assert_allclose(gradient, expected, rtol=0.02)


def test_maml_eq4_surrogate_has_the_same_gradient_at_the_old_policy_only():
    p = problem()
    losses, thetas = p.learner.losses, p.adaptation.thetas[1]
    samples = losses.attach_old_policy(thetas, p.adaptation.samples[1])
    loss, gradient = losses.surrogate(thetas, samples)
    assert_close(gradient, losses.gradient(thetas, samples), 1e-12)
    means = [steps_of(samples, task, "advantages").mean() for task in range(TASKS)]
    np.testing.assert_allclose(loss, -np.array(means), atol=1e-12)
    _, away = losses.surrogate(thetas + 0.1, samples)
    assert np.linalg.norm(away - losses.gradient(thetas + 0.1, samples)) > 1e-2


def test_the_surrogate_weighs_each_step_by_how_much_likelier_it_has_become():
    p = problem()
    losses, thetas = p.learner.losses, p.adaptation.thetas[1]
    samples = losses.attach_old_policy(thetas, p.adaptation.samples[1])
    moved = thetas + 0.05
    loss, _ = losses.surrogate_and_kl(moved, samples)
    now = losses.attach_old_policy(moved, p.adaptation.samples[1])
    for task in range(TASKS):
        old, new = (steps_of(s, task, "old_log_pi") for s in (samples, now))
        advantages = steps_of(samples, task, "advantages")
        ratio = np.exp(new - old)
        assert loss[task] == pytest.approx(-(ratio * advantages).mean())


# --- second derivatives ---------------------------------------------------------------


def one_task(p, kind, task=0):
    """Inner loss or divergence of one task, all steps at once, and its Hessian."""
    policy, samples = p.learner.policy, p.adaptation.samples[0]
    arrays = {
        name: steps_of(samples, task, name) for name in ("x", "actions", "advantages")
    }
    tape = tm.Tape()
    theta, v = tape.input("theta", p.theta.shape), tape.input("v", p.theta.shape)
    old = tape.input("theta_old", p.theta.shape)
    x, a, advantages = (tape.input(name, array.shape) for name, array in arrays.items())
    gaussian = policy(theta, x)
    if kind == "kl":
        loss = kl_divergence(policy(old, x), gaussian).mean()
    else:
        loss = -(log_probability(gaussian, a) * advantages).mean()
    tape.output("hvp", hvp(loss, theta, v))
    inputs = arrays | {"theta": p.theta, "theta_old": p.theta}
    return lambda e: run_tape(tape, inputs | {"v": e})["hvp"][0]


@every_backend
@pytest.mark.parametrize("kind", ["loss", "kl"])
def test_fisher_and_hvp_are_the_dense_hessians_of_divergence_and_loss(backend, kind):
    p = problem(backend)
    theta, samples = p.adaptation.thetas[0], p.adaptation.samples[0]
    losses = p.learner.losses
    make = losses.fisher if kind == "kl" else losses.hessian
    product = make(theta, samples)
    size = p.theta.size

    def ours(e):
        return product(np.tile(e, (TASKS, 1)))[0]

    hessian = dense(one_task(p, kind), size)
    assert_close(dense(ours, size), hessian, 1e-10)
    eigenvalues = np.linalg.eigvalsh(hessian)
    assert (eigenvalues.min() > -1e-12) == (kind == "kl")


def test_fisher_is_the_covariance_of_the_scores():
    """The other definition, by sampling actions: E[s s'] with s = grad log pi."""
    policy = tm.GaussianPolicy(tm.MLP([1, 2], "tanh"), 2, "numpy")
    rng = np.random.default_rng(0)
    theta = small_theta(policy)
    x = np.array([0.8])
    noise = rng.standard_normal((200_000, 2))
    sigma = np.exp(theta[-2:])
    scores = np.concatenate(  # weights, biases, log sigmas
        [x * noise / sigma, noise / sigma, noise**2 - 1], axis=1
    )
    covariance = scores.T @ scores / len(scores)
    one = np.ones((1, 1, 1, 1))
    actions, reward = np.zeros((1, 1, 1, 2)), one[0]
    trajectories = Trajectories(x * one, actions, reward, reward > 0)
    samples = chunk_steps(trajectories, reward, 1)
    product = PolicyLosses(policy, "numpy").fisher(theta[None], samples)
    fisher = dense(lambda e: product(e[None])[0], policy.size)
    np.testing.assert_allclose(covariance, fisher, atol=0.02 * np.abs(fisher).max())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(
            "log_std_dot * 2", "log_std_dot", id="curvature of log sigma is 1, not 2"
        ),
        pytest.param(
            "log_std * -2", "log_std * -1", id="curvature of the mean is 1/sigma"
        ),
        pytest.param(
            "log_std * -2", "log_std * 2", id="curvature of the mean is sigma^2"
        ),
        pytest.param(
            "mean_dot * exp", "gaussian.mean * exp", id="mean instead of its tangent"
        ),
        pytest.param(
            "inputs.weights.reshape(-1, 1)", "1.0", id="sum instead of mean over steps"
        ),
        pytest.param(
            " + (log_std * u_log_std).sum()", "", id="no gradient of log sigma"
        ),
        pytest.param(
            "rematerialise(inputs.theta)",
            "inputs.theta",
            id="gradient also flows through u",
        ),
    ],
)
def test_fisher_with_a_mistake_is_caught(monkeypatch, old, new):
    mutant = mutated(record_fisher, old, new)
    fisher = QUANTITIES["fisher"]._replace(record=mutant)
    monkeypatch.setitem(QUANTITIES, "fisher", fisher)
    with pytest.raises(AssertionError):
        test_fisher_and_hvp_are_the_dense_hessians_of_divergence_and_loss("numpy", "kl")


def test_both_backends_agree_in_float32():
    products = []
    for backend in BACKENDS:
        p = problem(backend)
        theta = p.adaptation.thetas[0].astype("float32")
        samples = p.adaptation.samples[0]
        arrays = {k: a.astype("float32") for k, a in samples.arrays.items()}
        samples = samples._replace(arrays=arrays)
        v = np.ones_like(theta)
        losses = p.learner.losses
        makers = (losses.hessian, losses.fisher)
        products.append([make(theta, samples)(v) for make in makers])
    for one, other in zip(*products, strict=True):
        assert one.dtype == other.dtype == np.float32
        assert_close(one, other, 1e-5)


def test_the_divergence_from_the_old_policy_is_the_closed_form():
    p = problem()
    losses, thetas = p.learner.losses, p.adaptation.thetas[1]
    samples = losses.attach_old_policy(thetas, p.adaptation.samples[1])
    moved = thetas + 0.1 * np.random.default_rng(0).standard_normal(thetas.shape)
    _, kl = losses.surrogate_and_kl(moved, samples)
    for task in range(TASKS):
        x = steps_of(samples, task, "x")
        gaussians = []
        for theta in (thetas[task], moved[task]):
            mean = p.learner.policy.network.predict(theta[:-2], x)
            gaussians.append((mean, np.exp(theta[-2:])))
        (m, s), (n, t) = gaussians
        expected = np.log(t / s) + (s**2 + (m - n) ** 2) / (2 * t**2) - 0.5
        assert kl[task] == pytest.approx(expected.sum(axis=1).mean(), rel=1e-9)
