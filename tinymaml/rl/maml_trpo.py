"""MAML for reinforcement learning: algorithm 3 of the paper, with TRPO's outer step.

    learner = MAMLTRPO(policy, Navigation(), alpha=0.5)
    batch = learner.draw(rng, tasks=20)   # goals, and the noise of all trajectories
    step = learner.step(theta, batch)     # step.theta, step.after, step.accepted

In each task a policy samples trajectories and takes a policy-gradient step on them;
then the adapted policy samples new trajectories. The outer step improves the *adapted*
policies as far as a bound on their mean KL divergence allows. Through the inner step
theta_i' = theta - alpha grad L_i(theta) it needs derivatives with respect to theta. The
Jacobian of the inner step is I - alpha H_i, with the Hessian H_i of L_i, so

    the gradient is     mean_i (I - H_i alpha) g_i'
    the product F v is  mean_i (I - H_i alpha) F_i' (I - alpha H_i) v

(a vector alpha stands for a diagonal matrix, so the order of alpha and H_i counts),
where g_i' is the gradient of the surrogate loss, and F_i' the Hessian of the KL
divergence, with respect to theta_i'. Only Hessian-vector products are computed. Third
derivatives do not occur: docs/derivations/fisher-vector-product.md shows why.

Left out, as in the paper and in the authors' code: that the *distribution* of the first
trajectories depends on theta too.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tinymaml.backends import Backend
from tinymaml.checks import (
    check_alpha,
    check_choice,
    check_dtype,
    check_fractions,
    check_kind,
    check_sizes,
    check_that,
    check_theta,
    whole_number,
)
from tinymaml.networks.layers import ReadOnly
from tinymaml.rl.advantages import advantages
from tinymaml.rl.policy import GaussianPolicy
from tinymaml.rl.policy_losses import PolicyLosses, Samples, chunk_steps
from tinymaml.rl.rollouts import Environment, Trajectories, roll_out
from tinymaml.rl.trpo import check_settings, trust_region_step
from tinymaml.training.steps import ONE_PROCESS, OneProcess

Array = np.ndarray[Any, Any]
Alpha = float | Array
# In 2D navigation the mean KL of the inner step grows from 0.006 to 20 within the 100
# outer steps of the recipe, and training goes well. Beyond this an outer step fails.
LARGEST_INNER_KL = 100.0


class MetaBatch(NamedTuple):
    """T tasks and the noise of their trajectories: all randomness of an outer step."""

    tasks: Array  # (T, ...), from `Environment.draw`
    noise: Array  # (J + 1, T, B, horizon, A), standard normal: one set per policy
    start_noise: Array | None = None  # (J + 1, T, B, D): where a trajectory starts

    def of(self, tasks: slice) -> "MetaBatch":
        """Some of the tasks."""
        noise, start_noise = self.noise[:, tasks], self.start_noise
        if start_noise is not None:
            start_noise = start_noise[:, tasks]
        return MetaBatch(self.tasks[tasks], noise, start_noise)

    def __repr__(self) -> str:
        text = f"tasks {self.tasks.shape}, noise {self.noise.shape}"
        if self.start_noise is not None and self.start_noise.size > 0:
            text += f", start_noise {self.start_noise.shape}"
        return f"MetaBatch({text})"


class Adaptation(NamedTuple):
    """The inner loop of T tasks: the policies 0 .. J and what each of them sampled."""

    thetas: list[Array]  # theta_0 .. theta_J, each (T, P)
    trajectories: list[Trajectories]  # J + 1 of them
    samples: list[Samples]  # the same steps in chunks, with advantages

    def __repr__(self) -> str:
        steps, shape = len(self.thetas) - 1, self.thetas[0].shape
        means = self.returns().mean(axis=0).round(2).tolist()
        return f"Adaptation({steps} inner steps, thetas {shape}, mean returns {means})"

    def returns(self) -> Array:
        """The mean return of each task after 0 .. J inner steps: (T, J + 1)."""
        return np.stack([t.returns() for t in self.trajectories], axis=1)


class MetaStep(NamedTuple):
    """The result of an outer step.

    With `gradient` as the gradient, SGD with learning rate 1 takes this same step, up
    to rounding.
    """

    theta: Array  # (P,), the new parameters
    gradient: Array  # (P,), old minus new parameters; 0 if no step was accepted
    loss: float  # minus the mean return after the inner steps
    before: float  # mean return before the inner steps
    after: float  # mean return after the inner steps
    inner_kl: float  # mean KL(theta || theta_i'): how far the inner steps move
    kl: float  # mean KL(old || new) of the adapted policies
    improvement: float  # decrease of the surrogate loss
    backtracks: int  # as in `TrustRegionStep`
    accepted: bool
    reason: str  # why no step was accepted, or "" if one was

    def __repr__(self) -> str:
        verdict = "accepted" if self.accepted else f"not accepted: {self.reason}"
        return (
            f"MetaStep(mean return {self.before:.4g} before and {self.after:.4g} after "
            f"inner steps, inner_kl={self.inner_kl:.4g}, kl={self.kl:.4g}, "
            f"improvement={self.improvement:.4g}, "
            f"{self.theta.size} parameters, {verdict})"
        )


class MAMLTRPO(ReadOnly):
    """Meta-learning of a policy in an environment.

    policy: a GaussianPolicy.
    environment: any object with the methods of `Environment`.
    alpha: inner learning rate (step size), a number or one number for each parameter.
    steps: J, the number of inner steps, each on new trajectories; 0 is plain TRPO.
    order: 2, or 1 for first-order MAML, which leaves out the Hessians H_i.
    trajectories: B, sampled in each task before each inner step and after the last.
    transitions: how many steps of the environment an inner step uses in each task, or
    None for all; trajectories beyond them do not count.
    max_kl, iterations, damping: settings of the outer step, see
    `trpo.trust_region_step`.
    discount, decay: the discount of rewards, and lambda of GAE, see
    `advantages.advantages`.
    backend, threads: see `get_backend`.

    ranks: the processes over which an outer step spreads the tasks; one, unless
    `training.distributed.Distributed` has set others.

    Attributes are read-only: another setting is another learner.

    A call returns the outer step as a gradient, for `train` with `optimiser=SGD(1.0)`
    and `sample=lambda rng: learner.draw(rng, tasks)`; another optimiser would take
    other steps, on which there is no bound.

    Raises ValueError or TypeError naming the argument. Source: algorithm 3 of the
    paper, with TRPO (Schulman et al., 2015) as the outer step.

    >>> import tinymaml as tm
    >>> from tinymaml.tasks.navigation import Navigation
    >>> policy = GaussianPolicy(tm.MLP([2, 8, 2]), actions=2, backend="numpy")
    >>> learner = MAMLTRPO(policy, Navigation(), trajectories=4, backend="numpy")
    >>> rng = np.random.default_rng(0)
    >>> theta = policy.init(rng)
    >>> step = learner.step(theta, learner.draw(rng, tasks=3))
    >>> step.accepted, step.kl <= learner.max_kl, step.theta.shape == theta.shape
    (True, True, True)
    """

    ranks: OneProcess = ONE_PROCESS

    def __init__(
        self,
        policy: GaussianPolicy,
        environment: Environment,
        alpha: Alpha = 0.1,
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
        check_kind("policy", policy, GaussianPolicy, "a GaussianPolicy")
        check_sizes(trajectories=trajectories)
        if transitions is not None:
            check_sizes(transitions=transitions)
        check_settings(max_kl, iterations, damping)
        check_fractions(discount=discount, decay=decay)
        self.policy, self.environment = policy, environment
        self.alpha = check_alpha(alpha, policy.size)
        self.steps = whole_number("steps", steps, least=0)
        self.order = check_choice("order", order, (1, 2))
        self.trajectories, self.transitions = trajectories, transitions
        self.max_kl, self.iterations, self.damping = max_kl, iterations, damping
        self.discount, self.decay = discount, decay
        self.losses = PolicyLosses(policy, backend, threads)

    def __repr__(self) -> str:
        alpha = f"{self.alpha:g}" if self.alpha.ndim == 0 else f"{self.alpha.shape}"
        return (
            f"MAMLTRPO({self.policy}, {self.environment}, alpha={alpha}, "
            f"steps={self.steps}, order={self.order}, "
            f"trajectories={self.trajectories}, max_kl={self.max_kl:g})"
        )

    def draw(
        self, rng: np.random.Generator, tasks: int, dtype: str = "float32"
    ) -> MetaBatch:
        """New tasks, and the noise of all their trajectories."""
        # [alg3-line3]
        new_tasks = self.environment.draw(rng, (tasks,))
        # [/alg3-line3]
        noise = self.noise(rng, tasks, self.steps, dtype)
        return MetaBatch(new_tasks, noise, self.start_noise(rng, tasks, self.steps))

    def noise(
        self, rng: np.random.Generator, tasks: int, steps: int, dtype: str = "float32"
    ) -> Array:
        """The noise of trajectories with `steps` inner steps.

        Returns shape (steps + 1, T, B, horizon, A): the last policy samples too.
        """
        sizes = (tasks, self.trajectories, self.environment.horizon)
        shape = (steps + 1, *sizes, self.policy.actions)
        return rng.standard_normal(shape, check_dtype(dtype).type)

    def start_noise(self, rng: np.random.Generator, tasks: int, steps: int) -> Array:
        """The noise of these trajectories' first states: (steps + 1, T, B, D), float64.

        Where the environment starts all alike, D is 0 and nothing is drawn.
        """
        sizes = (tasks, self.trajectories, self.environment.start_noise)
        return rng.standard_normal((steps + 1, *sizes))

    def adapt(
        self, theta: Array, batch: MetaBatch, alphas: Sequence[Alpha] | None = None
    ) -> Adaptation:
        """The inner loop: sample, take a step, sample with the new policy, and so on.

        theta: (P,). alphas: the inner learning rate of each step; the default is
        `alpha` for each of the `steps`.

        Raises ValueError or TypeError naming the argument that does not fit, and
        FloatingPointError when a step is so large that actions overflow.
        """
        alphas = [self.alpha] * self.steps if alphas is None else alphas
        alphas = [check_alpha(alpha, self.policy.size) for alpha in alphas]
        check_theta(theta, self.policy.size)
        fits, came = len(batch.noise) == len(alphas) + 1, len(batch.noise)
        check_that(fits, "noise", f"it for {len(alphas)} steps and one more", came)
        starts = [None] * came if batch.start_noise is None else batch.start_noise
        expected = f"it for {came} policies"
        check_that(len(starts) == came, "start_noise", expected, len(starts))
        thetas = np.broadcast_to(theta.copy(), (len(batch.tasks), theta.size))
        adaptation = Adaptation([], [], [])
        for j, (noise, start) in enumerate(zip(batch.noise, starts, strict=True)):
            if j > 0:
                thetas = self.inner_step(thetas, adaptation.samples[-1], alphas[j - 1])
            trajectories = roll_out(
                self.policy, self.environment, thetas, batch.tasks, noise, start
            )
            if not np.isfinite(trajectories.actions).all():
                cause = f"alpha: after inner step {j}" if j > 0 else "theta:"
                raise FloatingPointError(f"{cause} actions are not finite")
            if self.transitions is not None:
                trajectories = trajectories.first(self.transitions)
            estimates = advantages(trajectories, self.discount, self.decay)
            adaptation.thetas.append(thetas)
            adaptation.trajectories.append(trajectories)
            adaptation.samples.append(chunk_steps(trajectories, estimates))
        return adaptation

    def step(self, theta: Array, batch: MetaBatch) -> MetaStep:
        """One outer step from theta (P,): lines 4 to 10 of algorithm 3.

        Raises what `adapt` raises. A step that the line search does not accept is no
        error: theta then stays as it was.
        """
        ranks = self.ranks.for_tasks(len(batch.tasks))
        adaptation = self.adapt(theta, batch.of(ranks.share(len(batch.tasks))))
        inner_kl = self.inner_kl(adaptation, ranks)
        if not inner_kl <= LARGEST_INNER_KL:
            raise FloatingPointError(
                f"alpha: the inner step moves the policy by a KL of {inner_kl:.3g}: "
                "alpha or the initial weights are too large"
            )
        objective = Objective(self, adaptation, ranks)
        # [alg3-line10]
        step = trust_region_step(
            theta,
            objective.loss,
            objective.gradient,
            objective.fisher,
            objective.surrogate_and_kl,
            self.max_kl,
            self.iterations,
            self.damping,
        )
        # [/alg3-line10]
        returns = ranks.mean(adaptation.returns())
        return MetaStep(
            gradient=theta - step.theta,
            loss=-float(returns[-1]),
            before=float(returns[0]),
            after=float(returns[-1]),
            inner_kl=inner_kl,
            **step._asdict(),
        )

    __call__ = step

    def inner_kl(
        self, adaptation: Adaptation, ranks: OneProcess = ONE_PROCESS
    ) -> float:
        """How far the inner steps move the policies: the mean KL(theta || theta_i').

        The divergence is that of the actions in the states that theta sampled.
        """
        theta, samples = adaptation.thetas[0], adaptation.samples[0]
        samples = self.losses.attach_old_policy(theta, samples)
        _, kl = self.losses.surrogate_and_kl(adaptation.thetas[-1], samples)
        return float(ranks.mean(kl))

    # [alg3-line7]
    def inner_step(self, thetas: Array, samples: Samples, alpha: Alpha) -> Array:
        """theta_i' = theta_i - alpha grad L_i(theta_i) in each task: (T, P)."""
        alpha = np.asarray(alpha, thetas.dtype)
        return thetas - alpha * self.losses.gradient(thetas, samples)

    # [/alg3-line7]


class Objective:
    """What the outer step optimises, as functions of theta: means over all tasks.

    adaptation: of T tasks, this rank's share, by the learner's own alpha; `ranks` take
        the means over all ranks.
    loss, gradient: the surrogate loss of the adapted policies, and its gradient (P,).

    All values are on the trajectories of `adaptation`; nothing is sampled here. With
    first-order MAML the Jacobians I - alpha H_i of the inner steps are replaced by I.
    """

    def __init__(
        self, learner: MAMLTRPO, adaptation: Adaptation, ranks: OneProcess = ONE_PROCESS
    ) -> None:
        self.learner, self.losses, self.ranks = learner, learner.losses, ranks
        *inner_thetas, adapted = adaptation.thetas
        *self.inner_samples, samples = adaptation.samples
        self.alpha = learner.alpha.astype(adapted.dtype)
        self.tasks = len(adapted)
        # H_i at theta_0 .. theta_{J-1}: functions v (T, P) -> H_i v (T, P)
        inner = zip(inner_thetas, self.inner_samples, strict=True)
        steps = inner if learner.order == 2 else ()
        self.hessians = [self.losses.hessian(*step) for step in steps]
        # F_i', a function v (T, P) -> F_i' v (T, P)
        self.fisher_of_adapted = self.losses.fisher(adapted, samples)
        self.samples = self.losses.attach_old_policy(adapted, samples)
        loss, gradients = self.losses.surrogate(adapted, self.samples)
        self.loss = float(ranks.mean(loss))
        self.gradient = self._backpropagate(gradients)

    # [maml-fisher]
    def fisher(self, v: Array) -> Array:
        """F v = mean_i (I - H_i alpha) F_i' (I - alpha H_i) v, for v (P,): (P,)."""
        # Forward mode, from the first inner step to the last. If theta moves along v,
        # theta_j moves along a tangent. The step theta_j - alpha grad L_i(theta_j)
        # multiplies that tangent by its Jacobian, I - alpha H_i.
        tangents = np.broadcast_to(v, (self.tasks, v.size))
        for hessian in self.hessians:
            tangents = tangents - self.alpha * hessian(tangents)
        return self._backpropagate(self.fisher_of_adapted(tangents))

    def _backpropagate(self, v: Array) -> Array:
        """mean_i (I - H_i alpha) v_i, for gradients v (T, P) at theta_J: (P,)."""
        # Reverse mode, from the last inner step to the first. The chain rule multiplies
        # a gradient by the transposed Jacobian. H_i is symmetric, and alpha may differ
        # from parameter to parameter, so the transpose is I - H_i alpha.
        for hessian in reversed(self.hessians):
            v = v - hessian(self.alpha * v)
        return self.ranks.mean(v)

    # [/maml-fisher]

    def surrogate_and_kl(self, theta: Array) -> tuple[float, float]:
        """Surrogate loss and mean KL divergence of the policies adapted from theta.

        The inner steps are taken again, from this theta and on the same trajectories.
        """
        thetas = np.broadcast_to(theta, (self.tasks, theta.size))
        for samples in self.inner_samples:
            thetas = self.learner.inner_step(thetas, samples, self.learner.alpha)
        loss, kl = self.losses.surrogate_and_kl(thetas, self.samples)
        return float(self.ranks.mean(loss)), float(self.ranks.mean(kl))
