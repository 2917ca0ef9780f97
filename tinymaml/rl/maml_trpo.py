"""MAML for reinforcement learning: algorithm 3 of the paper, with TRPO's outer step.

    learner = MAMLTRPO(policy, Navigation(), alpha=0.5)
    draw = learner.draw(rng, tasks=20)    # goals, and noise for all trajectories
    step = learner.step(theta, draw)      # step.theta, step.after, step.accepted

A policy samples trajectories in each task, takes a policy-gradient step on them, and
the adapted policy samples again. The outer step makes the *adapted* policies better, by
as much as their mean KL divergence may change. Everything it needs from the inner step
theta_i' = theta - alpha grad L_i(theta) is its derivative, I - alpha H_i:

    gradient    mean_i (I - alpha H_i) g_i'                   g_i' of the surrogate loss
    F v         mean_i (I - alpha H_i) F_i' (I - alpha H_i) v     F_i' of the adapted KL

These are Hessian-vector products and no third derivatives; docs/derivations/
fisher-vector-product.md says why none are missing.

Left out, as in the paper and the authors' code: the dependence of the *distribution* of
the first trajectories on theta.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tinymaml.backends import Backend
from tinymaml.checks import (
    check_alpha,
    check_dtype,
    check_fractions,
    check_sizes,
    check_theta,
    whole_number,
)
from tinymaml.rl.advantages import advantages
from tinymaml.rl.policy import GaussianPolicy
from tinymaml.rl.policy_losses import PolicyLosses, Samples, cut
from tinymaml.rl.rollouts import Environment, Trajectories, roll_out
from tinymaml.rl.trpo import check_settings, trust_region_step

Array = np.ndarray[Any, Any]


class Draw(NamedTuple):
    """All that is random in an iteration."""

    tasks: Array  # (T, ...), what makes tasks differ
    noise: Array  # (K + 1, T, B, H, A), standard normal: of each step and the last


class Adaptation(NamedTuple):
    """The inner loop of T tasks: K + 1 parameters, and what each of them sampled."""

    thetas: list[Array]  # K + 1 of (T, P)
    trajectories: list[Trajectories]  # K + 1
    samples: list[Samples]  # K + 1, their steps with advantages

    def returns(self) -> Array:
        """The mean return of each task after 0 .. K steps: (T, K + 1)."""
        return np.stack([t.returns() for t in self.trajectories], axis=1)


class MetaStep(NamedTuple):
    """An outer step; the training loop may take it as SGD(1.0) on `gradient`."""

    theta: Array  # (P,), new
    gradient: Array  # (P,), old theta minus new theta: 0 where nothing was accepted
    loss: float  # minus the mean return after the inner steps
    before: float  # mean return before them
    after: float  # mean return after them
    kl: float  # mean KL divergence of adapted policies, old from new
    improvement: float  # by which the surrogate loss fell
    backtracks: int
    accepted: bool
    why: str  # nothing was accepted; "" if something was


class MAMLTRPO:
    """Meta-learning of a policy in an environment.

    policy: a GaussianPolicy. environment: whatever has the methods of `Environment`.
    alpha: inner step size, one number or one per parameter.
    steps: K, inner steps, each on trajectories of its own; 0 is plain TRPO.
    order: 2, or 1 for first-order MAML, which leaves out the H_i above.
    trajectories: B, sampled in each task before each inner step and after the last.
    transitions: if given, only as many of these count as have so many steps in all.
    max_kl, iterations, damping: of the outer step, see `trpo.trust_region_step`.
    discount, decay: of rewards and of GAE. backend, threads: see `get_backend`.
    """

    def __init__(
        self,
        policy: GaussianPolicy,
        environment: Environment,
        alpha: float | Array = 0.1,
        steps: int = 1,
        order: int = 2,
        trajectories: int = 20,
        transitions: int | None = None,
        max_kl: float = 0.01,
        iterations: int = 10,
        damping: float = 1e-5,
        discount: float = 0.99,
        decay: float = 1.0,
        backend: str | Backend = "auto",
        threads: int | None = None,
    ) -> None:
        check_sizes(order=order, trajectories=trajectories)
        if order > 2:
            raise ValueError(f"order: expected 1 or 2, got {order}")
        if transitions is not None:
            check_sizes(transitions=transitions)
        check_settings(max_kl, iterations, damping)
        check_fractions(discount=discount, decay=decay)
        self.policy = policy
        self.environment = environment
        self.alpha = self._check_alpha(alpha)
        self.steps = whole_number("steps", steps, least=0)
        self.order = order
        self.trajectories, self.transitions = trajectories, transitions
        self.max_kl, self.iterations, self.damping = max_kl, iterations, damping
        self.discount, self.decay = discount, decay
        self.losses = PolicyLosses(policy, backend, threads)

    def draw(
        self, rng: np.random.Generator, tasks: int, dtype: str = "float32"
    ) -> Draw:
        """New tasks, and noise for all of their trajectories."""
        # [alg3-line3]
        drawn = self.environment.draw(rng, (tasks,))
        # [/alg3-line3]
        return Draw(drawn, self.noise(rng, tasks, self.steps, dtype))

    def noise(
        self, rng: np.random.Generator, tasks: int, steps: int, dtype: str = "float32"
    ) -> Array:
        """The noise of `steps` inner steps and one more: (steps + 1, T, B, H, A)."""
        sizes = (tasks, self.trajectories, self.environment.horizon)
        shape = (steps + 1, *sizes, self.policy.actions)
        return rng.standard_normal(shape, check_dtype(dtype).type)

    def adapt(
        self, theta: Array, draw: Draw, alphas: Sequence[float | Array] | None = None
    ) -> Adaptation:
        """The inner loop: sample, take a step, sample again, ...

        theta: (P,). alphas: the size of each step, by default `steps` times alpha.
        Raises ValueError or TypeError naming the argument that does not fit, and
        FloatingPointError when a step is so long that what the policy does overflows.
        """
        alphas = [self.alpha] * self.steps if alphas is None else alphas
        alphas = [self._check_alpha(alpha) for alpha in alphas]
        check_theta(theta, self.policy.size)
        if len(draw.noise) != len(alphas) + 1:
            raise ValueError(
                f"noise: expected it for {len(alphas)} steps and one more, got "
                f"{len(draw.noise)}"
            )
        thetas = [np.broadcast_to(theta, (len(draw.tasks), theta.size))]
        adaptation = Adaptation(thetas, [], [])
        for noise, alpha in zip(draw.noise, [*alphas, None], strict=True):
            sampled = roll_out(
                self.policy, self.environment, thetas[-1], draw.tasks, noise
            )
            if not np.isfinite(sampled.actions).all():
                k = len(thetas) - 1
                cause = f"alpha: after inner step {k}" if k else "theta:"
                raise FloatingPointError(f"{cause} actions are not finite")
            if self.transitions is not None:
                sampled = sampled.first(self.transitions)
            weighed = advantages(sampled, self.discount, self.decay)
            adaptation.trajectories.append(sampled)
            adaptation.samples.append(cut(sampled, weighed))
            if alpha is not None:
                thetas.append(
                    self.inner_step(thetas[-1], adaptation.samples[-1], alpha)
                )
        return adaptation

    def step(self, theta: Array, draw: Draw) -> MetaStep:
        """One outer step from theta (P,): algorithm 3, lines 4 to 10."""
        adaptation = self.adapt(theta, draw)
        objective = Objective(self, adaptation)
        # [alg3-line10]
        step = trust_region_step(
            theta,
            objective.loss,
            objective.gradient,
            objective.fisher,
            objective.evaluate,
            self.max_kl,
            self.iterations,
            self.damping,
        )
        # [/alg3-line10]
        returns = adaptation.returns().mean(axis=0)
        return MetaStep(
            theta=step.theta,
            gradient=theta - step.theta,
            loss=-float(returns[-1]),
            before=float(returns[0]),
            after=float(returns[-1]),
            kl=step.kl,
            improvement=step.improvement,
            backtracks=step.backtracks,
            accepted=step.accepted,
            why=step.why,
        )

    def _check_alpha(self, alpha: float | Array) -> Array:
        """A step size as an array, of one number or one for each parameter."""
        checked, size = check_alpha(alpha), self.policy.size
        if checked.size not in (1, size):
            raise ValueError(f"alpha: expected 1 or {size} numbers, got {checked.size}")
        return checked

    # [alg3-line7]
    def inner_step(
        self, thetas: Array, samples: Samples, alpha: float | Array
    ) -> Array:
        """theta_i' = theta_i - alpha grad L_i(theta_i), in each task."""
        alpha = np.asarray(alpha, thetas.dtype)
        return thetas - alpha * self.losses.gradient(thetas, samples)

    # [/alg3-line7]


class Objective:
    """What the outer step asks about the adapted policies, as functions of theta.

    First-order MAML has no `hessians`; nothing else differs.
    """

    def __init__(self, learner: MAMLTRPO, adaptation: Adaptation) -> None:
        self.learner = learner
        self.losses = learner.losses
        self.inner, last = adaptation.samples[:-1], adaptation.samples[-1]
        *before, adapted = adaptation.thetas
        self.alpha = learner.alpha.astype(adapted.dtype)
        self.tasks = len(adapted)
        self.hessians = [
            self.losses.hessian(thetas, samples)
            for thetas, samples in zip(before, self.inner, strict=True)
            if learner.order == 2
        ]
        self.samples = self.losses.attach_old_policy(adapted, last)
        self.adapted_fisher = self.losses.fisher(adapted, last)
        loss, v = self.losses.surrogate(adapted, self.samples)
        self.loss = float(loss.mean(dtype=np.float64))
        self.gradient = self._pull_back(v)

    # [maml-fisher]
    def fisher(self, v: Array) -> Array:
        """mean_i (I - H_i alpha) F_i' (I - alpha H_i) v, for v (P,): (P,)."""
        tangents = np.broadcast_to(v, (self.tasks, v.size))
        for hessian in self.hessians:
            tangents = tangents - self.alpha * hessian(tangents)
        return self._pull_back(self.adapted_fisher(tangents))

    def _pull_back(self, v: Array) -> Array:
        """mean_i (I - H_i alpha) v_i, for v (T, P): the chain rule."""
        for hessian in reversed(self.hessians):
            v = v - hessian(self.alpha * v)
        return v.mean(axis=0, dtype=np.float64)

    # [/maml-fisher]

    def evaluate(self, theta: Array) -> tuple[float, float]:
        """Surrogate loss and KL divergence of the policies that theta adapts to.

        On the trajectories there are: nothing is sampled anew.
        """
        thetas = np.broadcast_to(theta, (self.tasks, theta.size))
        for samples in self.inner:
            thetas = self.learner.inner_step(thetas, samples, self.learner.alpha)
        loss, kl = self.losses.surrogate_and_kl(thetas, self.samples)
        return float(loss.mean(dtype=np.float64)), float(kl.mean(dtype=np.float64))
