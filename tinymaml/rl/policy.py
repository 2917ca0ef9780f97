"""A Gaussian policy: a normal distribution over actions, given an observation.

    policy = GaussianPolicy(MLP([2, 100, 100, 2]), actions=2)
    theta = policy.init(np.random.default_rng(0))    # the network's, then log sigma
    gaussian = policy(theta, x)                      # on Values: mean, log_std
    log_probability(gaussian, actions)               # (N,)

A network computes the mean of the actions from the observation. Their standard
deviations are parameters that do not depend on the observation. Both are part of theta,
so the inner loop also adapts how much the agent explores. This is the f_theta of the
paper's section 2.1 and algorithm 3.

Left out: policies for discrete actions, and correlated actions.
"""

from math import log, pi
from typing import NamedTuple

import numpy as np

from tinymaml.autodiff import functions
from tinymaml.autodiff.tape import Tape, Value
from tinymaml.backends import Backend, Program, get_backend
from tinymaml.backends.programs import ProgramCache
from tinymaml.checks import Array, check_dtype, check_sizes, check_that
from tinymaml.networks.images import BatchNorm
from tinymaml.networks.layers import MLP, Network, ReadOnly, xavier_uniform

LEAST_LOG_STD = log(1e-6)  # the lower bound in the authors' code


class Gaussian(NamedTuple):
    """A normal distribution of A independent actions for each of N observations."""

    mean: Value  # (N, A)
    log_std: Value  # (A,), log sigma


class GaussianPolicy(ReadOnly):
    """pi_theta(a | x): normal with mean f_theta(x) and standard deviation sigma.

    network: from observations (N, O) to means (N, actions).
    actions: A, the number of actions.
    backend, threads: what runs the network when the policy acts; see `get_backend`.

    The last A numbers of theta (P,) are log sigma. They start at 0, and a number below
    log 1e-6 counts as log 1e-6, as in the authors' code. An MLP without an initialiser
    starts from the authors' weights, `xavier_uniform()`: with the larger ones of
    `he_normal()` the observations of a fast body make actions so large that the first
    inner step ruins the policy. Other networks, a class derived from MLP among them,
    start as they say themselves. Batch normalisation is refused: actions are chosen in
    other batches than the losses see. Attributes are read-only.

    >>> from tinymaml.networks.layers import MLP
    >>> GaussianPolicy(MLP([2, 100, 100, 2]), actions=2, backend="numpy")
    GaussianPolicy(MLP, actions=2, 10604 parameters, backend='numpy')
    """

    def __init__(
        self,
        network: Network,
        actions: int,
        backend: str | Backend = "auto",
        threads: int | None = None,
    ) -> None:
        (actions,) = check_sizes(actions=actions)
        if not hasattr(network, "size") or not callable(network):
            expected = "expected a network from observations to means, such as an MLP"
            raise TypeError(f"network: {expected}, got {network!r}")
        for layer in network.layers if isinstance(network, Network) else []:
            alone = not isinstance(layer, BatchNorm) or layer.mode == "none"
            check_that(
                alone, "network", "one whose means depend on one row each", layer
            )
        if type(network) is MLP and network.initialiser is None:
            network = MLP(network.sizes, network.activation, xavier_uniform())
        self.network, self.actions = network, actions
        self.size = network.size + actions
        self.backend = get_backend(backend, threads)
        self._programs = ProgramCache()

    def __repr__(self) -> str:
        return (
            f"GaussianPolicy({type(self.network).__name__}, actions={self.actions}, "
            f"{self.size} parameters, backend={self.backend.name!r})"
        )

    def init(self, rng: np.random.Generator, dtype: str = "float32") -> Array:
        """Initial parameters theta (P,): the network's, and log sigma = 0."""
        theta = np.zeros(self.size, check_dtype(dtype))
        theta[: self.network.size] = self.network.init(rng, dtype)
        return theta

    def __call__(self, theta: Value, x: Value) -> Gaussian:
        """Record the distribution of actions for observations x (N, O) on their tape.

        Raises ValueError when theta or the network's output has a wrong shape.
        """
        shape: tuple[int, ...] = (self.size,)
        check_that(theta.shape == shape, "theta", f"shape {shape}", theta.shape)
        mean = self.network(theta[: self.network.size], x)
        shape = x.shape[0], self.actions
        expected = f"means of shape {shape}"
        check_that(mean.shape == shape, "network", expected, mean.shape)
        # relu(s - least) + least is the maximum of s and least.
        excess = functions.relu(theta[self.network.size :] - LEAST_LOG_STD)
        return Gaussian(mean, excess + LEAST_LOG_STD)

    def act(self, thetas: Array, x: Array, noise: Array) -> Array:
        """Actions f_theta(x) + sigma * noise in T tasks: (T, B, A).

        thetas: (T, P); x: (T, B, O); noise: (T, B, A), standard normal. All have the
        same dtype. The first call with a new B or dtype compiles a tape.
        """

        def compile_actions() -> Program:
            tape = Tape()
            theta = tape.input("theta", (self.size,), per_task=True)
            observations = tape.input("x", x.shape[1:], per_task=True)
            z = tape.input("noise", (x.shape[1], self.actions), per_task=True)
            mean, log_std = self(theta, observations)
            tape.output("actions", mean + z * functions.exp(log_std))
            return self.backend.compile(tape, thetas.dtype)

        program = self._programs.get((x.shape[1:], thetas.dtype), compile_actions)
        return program({"theta": thetas, "x": x, "noise": noise})["actions"]


def log_probability(gaussian: Gaussian, actions: Value) -> Value:
    """log pi(a | x) of actions (N, A), one for each of N observations: (N,)."""
    mean, log_std = gaussian
    z = (actions - mean) * functions.exp(-log_std)
    constant = 0.5 * log(2 * pi) * mean.shape[1]
    return (z * z).sum(axis=1) * -0.5 - log_std.sum() - constant


def kl_divergence(old: Gaussian, new: Gaussian) -> Value:
    """The Kullback-Leibler divergence KL(old || new) for each observation: (N,)."""
    difference = old.mean - new.mean
    # the mean of (action - new mean)^2 under the old policy
    second_moment = functions.exp(old.log_std * 2) + difference * difference
    change = new.log_std - old.log_std - 0.5
    return (second_moment * functions.exp(new.log_std * -2) * 0.5 + change).sum(axis=1)
