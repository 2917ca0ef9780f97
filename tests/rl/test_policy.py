"""The Gaussian policy, compared with SciPy's normal distributions and by quadrature."""

import copy
import pickle

import numpy as np
import pytest
from scipy import stats

import tinymaml as tm
from tests.support.policy_problems import small_policy, small_theta
from tests.support.running import BACKENDS, assert_close, run_tape
from tinymaml.networks.layers import he_normal, xavier_uniform
from tinymaml.rl.policy import Gaussian, kl_divergence, log_probability

RNG = np.random.default_rng(5)
MEAN, OTHER = RNG.standard_normal((2, 7, 3))
LOG_STD, OTHER_LOG_STD = RNG.uniform(-1, 0.5, (2, 3))
ACTIONS = RNG.standard_normal((7, 3))


def evaluate(function, **arrays):
    """Record a function of tape inputs, which returns a Value, and run the tape."""
    tape = tm.Tape()
    inputs = {name: tape.input(name, array.shape) for name, array in arrays.items()}
    tape.output("out", function(**inputs))
    return run_tape(tape, arrays)["out"][0]


def test_log_probability_is_the_normal_density():
    ours = evaluate(
        lambda mean, log_std, a: log_probability(Gaussian(mean, log_std), a),
        mean=MEAN,
        log_std=LOG_STD,
        a=ACTIONS,
    )
    expected = stats.norm.logpdf(ACTIONS, MEAN, np.exp(LOG_STD)).sum(axis=1)
    assert_close(ours, expected, 1e-14)


def divergence(mean, log_std, mean_2, log_std_2):
    return evaluate(
        lambda m, s, n, t: kl_divergence(Gaussian(m, s), Gaussian(n, t)),
        m=mean,
        s=log_std,
        n=mean_2,
        t=log_std_2,
    )


def test_divergence_is_the_mean_log_ratio_under_the_old_policy():
    ours = divergence(MEAN, LOG_STD, OTHER, OTHER_LOG_STD)
    old, new = np.exp(LOG_STD), np.exp(OTHER_LOG_STD)
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)  # exact: a quadratic
    a = MEAN[..., None] + old[:, None] * nodes
    ratio = stats.norm.logpdf(a, MEAN[..., None], old[:, None])
    ratio = ratio - stats.norm.logpdf(a, OTHER[..., None], new[:, None])
    expected = (ratio @ weights / weights.sum()).sum(axis=1)
    assert_close(ours, expected, 1e-12)
    assert (ours > 0).all()
    assert np.abs(divergence(MEAN, LOG_STD, MEAN, LOG_STD)).max() < 1e-15


@pytest.mark.parametrize("backend", BACKENDS)
def test_policy_acts_by_mean_and_standard_deviation_of_each_task(backend):
    policy = small_policy(backend)
    thetas = np.stack([small_theta(policy, seed) for seed in (0, 1)])
    x, noise = np.random.default_rng(0).standard_normal((2, 2, 4, 2))
    actions = policy.act(thetas, x, noise)
    for i, theta in enumerate(thetas):
        mean = policy.network.predict(theta[:-2], x[i])
        assert_close(actions[i], mean + np.exp(theta[-2:]) * noise[i], 1e-12)
    with pytest.raises(ValueError, match="^theta: expected shape"):
        policy.act(thetas[:, :-1], x, noise)


def test_initial_parameters_are_the_networks_and_standard_deviation_1():
    policy = small_policy()
    theta = policy.init(np.random.default_rng(0))
    assert theta.dtype == np.float32 and theta.shape == (policy.size,)
    assert (theta[-2:] == 0).all()
    network = policy.network.init(np.random.default_rng(0))
    assert (theta[:-2] == network).all()


def test_standard_deviations_do_not_fall_below_a_millionth():
    policy = small_policy()
    theta = small_theta(policy)
    theta[-2:] = -50
    actions = policy.act(theta[None], np.zeros((1, 1, 2)), np.ones((1, 1, 2)))
    mean = policy.network.predict(theta[:-2], np.zeros((1, 2)))
    np.testing.assert_allclose(actions[0] - mean, 1e-6, rtol=1e-6)


def test_gradients_of_the_policy_pass_gradcheck():
    policy = small_policy()
    x, a = np.random.default_rng(0).standard_normal((2, 6, 2))

    def loss(theta, x, a):
        gaussian = policy(theta, x)
        other = Gaussian(x, gaussian.log_std * 0.5)
        divergence = kl_divergence(gaussian, other).sum()
        return log_probability(gaussian, a).sum() + divergence

    tm.gradcheck(loss, small_theta(policy), x, a)


def test_a_policy_shows_its_network_and_its_size():
    assert repr(small_policy("numpy")) == (
        "GaussianPolicy(MLP, actions=2, 29 parameters, backend='numpy')"
    )


def test_bad_policies_are_refused_by_name():
    with pytest.raises(ValueError, match="^actions: expected at least 1, got 0"):
        tm.GaussianPolicy(tm.MLP([2, 2]), actions=0)
    policy = tm.GaussianPolicy(tm.MLP([2, 4]), actions=2)
    tape = tm.Tape()
    theta, x = tape.input("theta", (policy.size,)), tape.input("x", (3, 2))
    with pytest.raises(ValueError, match="^network: expected means of shape"):
        policy(theta, x)
    with pytest.raises(ValueError, match="^theta: expected shape"):
        policy(theta[:-1], x)


@pytest.mark.parametrize("network", [20, None, np.zeros(3), "MLP"])
def test_a_policy_of_something_else_than_a_network_is_refused(network):
    with pytest.raises(TypeError, match="^network: expected a network"):
        tm.GaussianPolicy(network, 6)


@pytest.mark.parametrize("mode", ["batch", "support", "none"])
def test_a_policy_that_would_depend_on_the_batch_is_refused(mode):
    """`act` and the losses see batches of other observations."""
    layers = [tm.Linear(2, 8), tm.BatchNorm(8, mode), tm.Linear(8, 2)]
    if mode == "none":
        assert tm.GaussianPolicy(tm.Network(layers), 2).actions == 2
    else:
        complaint = (
            "^network: expected one whose means depend on one row each, got Batch"
        )
        with pytest.raises(ValueError, match=complaint):
            tm.GaussianPolicy(tm.Network(layers), 2)


def test_a_used_policy_can_be_copied_and_pickled():
    policy = small_policy("numba")
    theta = small_theta(policy)
    observations, noise = np.random.default_rng(1).standard_normal((2, 2, 3, 2))
    acted = policy.act(np.stack([theta, theta]), observations, noise)
    assert np.ptp(acted) > 0
    for other in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
        again = other.act(np.stack([theta, theta]), observations, noise)
        np.testing.assert_array_equal(again, acted)


@pytest.mark.parametrize("name", ["network", "actions", "backend", "size"])
def test_a_policy_is_read_only(name):
    policy = small_policy()
    for other in (policy, copy.copy(policy), pickle.loads(pickle.dumps(policy))):
        before = getattr(other, name)
        with pytest.raises(AttributeError, match=f"^{name}: a GaussianPolicy cannot"):
            setattr(other, name, before)


# --- default weights ------------------------------------------------------------------


def test_a_network_without_an_initialiser_starts_from_the_authors_weights():
    default = tm.GaussianPolicy(tm.MLP([3, 50, 2], "tanh"), 2, backend="numpy")
    xavier = tm.MLP([3, 50, 2], "tanh", xavier_uniform())
    chosen = tm.GaussianPolicy(xavier, 2, backend="numpy")
    he = tm.GaussianPolicy(tm.MLP([3, 50, 2], "tanh", he_normal()), 2, backend="numpy")
    weights, same, other = (
        policy.init(np.random.default_rng(0)) for policy in (default, chosen, he)
    )
    assert weights.tobytes() == same.tobytes() != other.tobytes()
    assert np.abs(weights[:150]).max() <= np.sqrt(6 / 53)
    names = [type(layer).__name__ for layer in default.network.layers]
    assert names == ["Linear", "Activation", "Linear"]
    assert default.network.layers[1].name == "tanh"


def test_a_class_derived_from_mlp_stays_what_it_is():
    class Residual(tm.MLP):
        def __call__(self, theta, x, x_support=None):
            return super().__call__(theta, x, x_support) + x

    network = Residual([2, 2])
    policy = tm.GaussianPolicy(network, 2, backend="numpy")
    assert policy.network is network
    x = np.full((1, 3, 2), 0.5)
    actions = policy.act(np.zeros((1, policy.size)), x, np.zeros_like(x))
    np.testing.assert_array_equal(actions, x)
