"""A Gaussian policy: what an agent does, as a distribution over actions.

    policy = GaussianPolicy(MLP([2, 100, 100, 2]), actions=2)
    theta = policy.init(np.random.default_rng(0))    # the network's, then log sigma
    gaussian = policy(theta, x)                      # on Values: mean, log_std
    log_probability(gaussian, actions)               # (N,)

The network gives the mean of each action; the standard deviations do not depend on what
is seen. Both are parameters, so the inner loop adapts how much the agent explores too.

Left out: policies for discrete actions, and correlated ones.
"""

from math import log, pi
from typing import Any, NamedTuple

import numpy as np

from tinymaml.autodiff import functions
from tinymaml.autodiff.tape import Tape, Value
from tinymaml.backends import Backend, Program, get_backend
from tinymaml.checks import check_dtype, check_sizes
from tinymaml.networks.layers import Network

Array = np.ndarray[Any, Any]
LEAST_LOG_STD = log(1e-6)  # the floor of the authors' code


class Gaussian(NamedTuple):
    """A normal distribution of independent actions for each of N observations."""

    mean: Value  # (N, A)
    log_std: Value  # (A,)


class GaussianPolicy:
    """pi_theta(a | x): normal with mean f_theta(x) and deviation exp(log sigma).

    network: from observations (N, O) to means (N, actions).
    actions: A, the number of actions.
    backend, threads: what runs the network when the policy acts.

    Of theta (P,) the last A numbers are log sigma; they start at 0 and count as no less
    than log 1e-6, as in the authors' code.

    >>> from tinymaml.networks.layers import MLP
    >>> policy = GaussianPolicy(MLP([2, 100, 100, 2]), actions=2)
    >>> policy.size
    10604
    """

    def __init__(
        self,
        network: Network,
        actions: int,
        backend: str | Backend = "auto",
        threads: int | None = None,
    ) -> None:
        check_sizes(actions=actions)
        self.network = network
        self.actions = actions
        self.size = network.size + actions
        self.backend = get_backend(backend, threads)
        self._programs: dict[Any, Program] = {}

    def init(self, rng: np.random.Generator, dtype: str = "float32") -> Array:
        """Starting parameters theta (P,): the network's, and log sigma = 0."""
        theta = np.zeros(self.size, check_dtype(dtype))
        theta[: self.network.size] = self.network.init(rng, dtype)
        return theta

    def __call__(self, theta: Value, x: Value) -> Gaussian:
        """The distribution of actions for x (N, O), recorded."""
        if theta.shape != (self.size,):
            raise ValueError(f"theta: expected shape ({self.size},), got {theta.shape}")
        mean = self.network(theta[: self.network.size], x)
        if mean.shape != (x.shape[0], self.actions):
            raise ValueError(
                f"network: expected means of shape ({x.shape[0]}, {self.actions}), "
                f"got {mean.shape}"
            )
        above = functions.relu(theta[self.network.size :] - LEAST_LOG_STD)
        return Gaussian(mean, above + LEAST_LOG_STD)

    def act(self, thetas: Array, x: Array, noise: Array) -> Array:
        """Actions f_theta(x) + sigma * noise in T tasks: (T, B, A).

        thetas: (T, P); x: (T, B, O); noise: (T, B, A), standard normal; of one dtype.
        """
        key = (x.shape[1:], thetas.dtype)
        program = self._programs.get(key)
        if program is None:
            tape = Tape()
            theta = tape.input("theta", (self.size,), per_task=True)
            seen = tape.input("x", x.shape[1:], per_task=True)
            drawn = tape.input("noise", (x.shape[1], self.actions), per_task=True)
            mean, log_std = self(theta, seen)
            tape.output("actions", mean + drawn * functions.exp(log_std))
            program = self._programs[key] = self.backend.compile(tape, thetas.dtype)
        return program({"theta": thetas, "x": x, "noise": noise})["actions"]


def log_probability(gaussian: Gaussian, actions: Value) -> Value:
    """log pi(a | x) of actions (N, A), for each of N observations: (N,)."""
    mean, log_std = gaussian
    z = (actions - mean) * functions.exp(-log_std)
    constant = 0.5 * log(2 * pi) * mean.shape[1]
    return (z * z).sum(axis=1) * -0.5 - log_std.sum() - constant


def kl_divergence(old: Gaussian, new: Gaussian) -> Value:
    """KL(old || new) for each of N observations: (N,)."""
    difference = old.mean - new.mean
    spread = functions.exp(old.log_std * 2) + difference * difference
    change = new.log_std - old.log_std - 0.5
    return (spread * functions.exp(new.log_std * -2) * 0.5 + change).sum(axis=1)


def entropy(gaussian: Gaussian) -> Value:
    """The entropy of one observation's actions: one number, the same for all."""
    return gaussian.log_std.sum() + 0.5 * log(2 * pi * np.e) * gaussian.log_std.size
