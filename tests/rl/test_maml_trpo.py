"""Algorithm 3: its outer gradient and products F v by three routes, and whole steps."""

import inspect

import numpy as np
import pytest

import tinymaml as tm
from tests.support.mutants import put, survives
from tests.support.policy_problems import (
    TASKS,
    by_one_function,
    dense,
    problem,
    small_learner,
    small_policy,
    start,
    task_inputs,
)
from tests.support.running import BACKENDS, assert_close, difference, relative_error
from tinymaml.rl import maml_trpo
from tinymaml.rl.maml_trpo import MAMLTRPO, MetaStep, Objective
from tinymaml.rl.policy_losses import PolicyLosses
from tinymaml.rl.trpo import trust_region_step
from tinymaml.tasks.navigation import Navigation

every_backend = pytest.mark.parametrize("backend", BACKENDS)
some_steps = pytest.mark.parametrize("steps", [0, 1, 2])


def direction(size, seed=3):
    v = np.random.default_rng(seed).standard_normal(size)
    return v / np.linalg.norm(v)


def check_gradient(p):
    """The surrogate's gradient: reverse over reverse, and differences of its value."""
    objective = p.objective()
    reverse = by_one_function(p, "surrogate")["gradient"]
    assert_close(objective.gradient, reverse, 1e-10, "reverse over reverse")
    v = direction(p.theta.size)
    slope = difference(lambda theta: objective.surrogate_and_kl(theta)[0], p.theta, v)
    assert_close(objective.gradient @ v, slope, 1e-8, "finite differences")


def check_fisher(p):
    """F v: the Hessian of the divergence, and differences of its exact gradient."""
    v = direction(p.theta.size)
    product = p.objective().fisher(v)
    assert_close(product, by_one_function(p, "kl", v=v)["hvp"], 1e-10, "hessian")

    def slope(theta):
        return by_one_function(p, "kl", theta)["gradient"]

    assert_close(product, difference(slope, p.theta, v), 1e-8, "finite differences")


@every_backend
@some_steps
def test_alg3_line10_surrogate_gradient_by_three_routes(backend, steps):
    check_gradient(problem(backend, steps))


@every_backend
@some_steps
def test_maml_fisher_product_by_three_routes(backend, steps):
    check_fisher(problem(backend, steps))


def test_maml_fisher_is_the_dense_hessian_of_the_divergence_and_no_negative_one():
    p = problem()
    size = p.theta.size
    ours = dense(p.objective().fisher, size)
    hessian = dense(lambda e: by_one_function(p, "kl", v=e)["hvp"], size)
    assert_close(ours, hessian, 1e-10)
    assert_close(ours, ours.T, 1e-10, "symmetric")
    assert np.linalg.eigvalsh(ours).min() > -1e-12
    v = direction(size)
    assert_close(
        v @ ours @ v / 2 * 1e-6,
        p.objective().surrogate_and_kl(p.theta + 1e-3 * v)[1],
        0.01,
    )


def test_alg3_line10_divergence_and_its_slope_are_0_at_the_old_parameters():
    p = problem()
    results = by_one_function(p, "kl")
    assert abs(results["loss"]) < 1e-14
    assert np.abs(results["gradient"]).max() < 1e-14
    loss, kl = p.objective().surrogate_and_kl(p.theta)
    assert loss == pytest.approx(by_one_function(p, "surrogate")["loss"], abs=1e-12)
    assert abs(kl) < 1e-14


@pytest.mark.parametrize("steps", [1, 2])
def test_without_the_hessian_the_routes_disagree(steps):
    exact, first = problem(steps=steps), problem(steps=steps, order=1)
    v = direction(exact.theta.size)
    gradients = [p.objective().gradient for p in (exact, first)]
    products = [p.objective().fisher(v) for p in (exact, first)]
    assert relative_error(*gradients[::-1]) > 0.01
    assert relative_error(*products[::-1]) > 0.01
    for check in (check_gradient, check_fisher):
        with pytest.raises(AssertionError):
            check(first)


def test_first_order_leaves_out_the_hessian_and_nothing_else():
    p = problem(order=1)
    objective = p.objective()
    losses, adapted = p.learner.losses, p.adaptation.thetas[-1]
    _, gradients = losses.surrogate(adapted, objective.samples)
    assert_close(objective.gradient, gradients.mean(axis=0), 1e-14)
    v = direction(p.theta.size)
    vs = np.broadcast_to(v, adapted.shape)
    product = losses.fisher(adapted, objective.samples)(vs).mean(axis=0)
    assert_close(objective.fisher(v), product, 1e-14)


def test_the_loss_at_the_old_parameters_is_the_mean_over_tasks():
    p = problem()
    last = p.adaptation.samples[-1]
    last.arrays["advantages"] += 1.0 + last.task_of_chunk[:, None]  # their mean was 0
    objective = p.objective()
    assert objective.loss == pytest.approx(-np.mean([1, 2, 3]))
    assert objective.surrogate_and_kl(p.theta)[0] == pytest.approx(objective.loss)


def test_an_inner_learning_rate_for_each_parameter():
    p = problem(alpha=np.linspace(0.0, 0.5, small_policy().size))
    objective, v = p.objective(), direction(p.theta.size)
    slope = difference(lambda theta: objective.surrogate_and_kl(theta)[0], p.theta, v)
    assert_close(objective.gradient @ v, slope, 1e-8)
    hessian = p.learner.losses.hessian(p.adaptation.thetas[0], p.adaptation.samples[0])
    fisher = p.learner.losses.fisher(p.adaptation.thetas[1], objective.samples)
    total = 0.0
    for task in range(TASKS):
        h, f = (
            dense(lambda e, f=f, i=task: f(np.tile(e, (TASKS, 1)))[i], p.theta.size)
            for f in (hessian, fisher)
        )
        jacobian = np.eye(p.theta.size) - p.learner.alpha[:, None] * h
        total = total + jacobian.T @ f @ jacobian @ v / TASKS
    assert_close(objective.fisher(v), total, 1e-10)


# What would go wrong, then the method, the old text and the new text.
REVERSED = "reversed(self.hessians)"
ADAPTED = "self.fisher_of_adapted(tangents)"
FORWARD = "tangents = tangents - self.alpha * hessian(tangents)"
MUTANTS = {
    "wrong sign of the Hessian in forward mode": (
        (Objective, "fisher", "tangents - self", "tangents + self")
    ),
    "no Hessian in forward mode": (Objective, "fisher", FORWARD, "pass"),
    "no Fisher matrix": (Objective, "fisher", f"self._backpropagate({ADAPTED})", "v"),
    "forward mode through the first inner step only": (
        (Objective, "fisher", "self.hessians:", "self.hessians[:1]:")
    ),
    "forward mode from the last inner step to the first": (
        (Objective, "fisher", "self.hessians:", "self.hessians[::-1]:")
    ),
    "no alpha in reverse mode": (Objective, "_backpropagate", "self.alpha * v)", "v)"),
    "wrong sign of the Hessian in reverse mode": (
        (Objective, "_backpropagate", "v = v - hessian", "v = v + hessian")
    ),
    "reverse mode from the first inner step to the last": (
        (Objective, "_backpropagate", REVERSED, "self.hessians")
    ),
    "reverse mode through the first inner step only": (
        (Objective, "_backpropagate", REVERSED, "self.hessians[:1]")
    ),
    "losses without the inner steps": (
        (Objective, "surrogate_and_kl", "in self.inner_samples:", "in []:")
    ),
    "Hessian of the inner loss in place of the Fisher matrix": (
        (Objective, "__init__", "fisher(adapted", "hessian(adapted")
    ),
    "Fisher matrix in place of the Hessian of the inner loss": (
        (PolicyLosses, "hessian", '"hessian", thetas', '"fisher", thetas')
    ),
}


@pytest.mark.parametrize(
    ("owner", "name", "old", "new"), MUTANTS.values(), ids=list(MUTANTS)
)
def test_broken_objective_is_caught(monkeypatch, owner, name, old, new):
    put(monkeypatch, owner, name, old, new)

    def checks():
        for check in (check_gradient, check_fisher):
            check(problem(steps=2))

    assert not survives(checks)


# --- the outer step -------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_same_seed_same_bits_with_any_number_of_threads(threads):
    steps = []
    for n in (1, threads):
        policy = tm.GaussianPolicy(tm.MLP([2, 8, 2]), 2, "numba", n)
        learner = MAMLTRPO(
            policy, Navigation(horizon=20), 0.5, backend="numba", threads=n
        )
        steps.append(learner.step(*start(learner, "float32")))
    assert steps[0].theta.tobytes() == steps[1].theta.tobytes()
    assert steps[0][2:] == steps[1][2:]


def test_both_backends_take_the_same_step():
    steps = []
    for backend in BACKENDS:
        learner = small_learner(backend, damping=0.1)  # CG multiplies rounding
        steps.append(learner.step(*start(learner)))
    assert steps[0].accepted and steps[1].accepted
    assert_close(steps[0].theta, steps[1].theta, 1e-8)


def test_alg3_line10_step_lowers_the_surrogate_within_the_divergence():
    for seed in range(4):
        learner = small_learner(max_kl=0.01)
        theta, batch = start(learner, seed=seed)
        step = learner.step(theta, batch)
        assert step.accepted and step.reason == ""
        objective = Objective(learner, learner.adapt(theta, batch))
        before, _ = objective.surrogate_and_kl(theta)
        after, kl = objective.surrogate_and_kl(step.theta)
        assert after < before and 0 < kl <= 0.01
        assert before - after == pytest.approx(step.improvement)
        assert kl == pytest.approx(step.kl)
        assert (step.gradient == theta - step.theta).all()
        assert step.loss == -step.after


def test_the_trust_region_gets_the_settings_of_the_learner(monkeypatch):
    learner = small_learner(max_kl=0.3, iterations=4, damping=0.2)
    theta, batch = start(learner)
    given = {}

    def recorder(*arguments, **options):
        bound = inspect.signature(trust_region_step).bind(*arguments, **options)
        given.update(bound.arguments)
        return trust_region_step(*arguments, **options)

    monkeypatch.setattr(maml_trpo, "trust_region_step", recorder)
    learner.step(theta, batch)
    objective = Objective(learner, learner.adapt(theta, batch))
    assert given["theta"] is theta and given["loss"] == objective.loss
    np.testing.assert_array_equal(given["gradient"], objective.gradient)
    settings = [given[name] for name in ("max_kl", "iterations", "damping")]
    assert settings == [0.3, 4, 0.2]


def test_a_step_that_fails_leaves_theta_unchanged_and_says_the_reason(monkeypatch):
    learner = small_learner()
    theta, batch = start(learner)
    monkeypatch.setattr(Objective, "surrogate_and_kl", lambda self, theta: (1e9, 0.0))
    step = learner.step(theta, batch)
    assert not step.accepted and "lengths" in step.reason
    assert (step.theta == theta).all() and (step.gradient == 0).all()
    assert (step.kl, step.improvement) == (0.0, 0.0)


def test_returns_are_those_of_the_trajectories_before_and_after():
    learner = small_learner()
    theta, batch = start(learner)
    step, adaptation = learner.step(theta, batch), learner.adapt(theta, batch)
    before, after = (t.rewards.sum(axis=2).mean() for t in adaptation.trajectories)
    assert step.before != step.after
    assert (step.before, step.after) == pytest.approx((before, after))


def test_no_inner_step_is_plain_trpo():
    learner = small_learner(steps=0, alpha=123.0)
    theta, batch = start(learner)
    step = learner.step(theta, batch)
    assert step.accepted and step.before == step.after
    losses, samples = learner.losses, learner.adapt(theta, batch).samples[0]
    thetas = np.broadcast_to(theta, (len(batch.tasks), theta.size))
    old = losses.attach_old_policy(thetas, samples)
    loss, gradients = losses.surrogate(thetas, old)
    fisher = losses.fisher(thetas, samples)

    def loss_and_kl(new):
        values = losses.surrogate_and_kl(np.broadcast_to(new, thetas.shape), old)
        return tuple(float(value.mean()) for value in values)

    plain = trust_region_step(
        theta,
        float(loss.mean()),
        gradients.mean(axis=0),
        lambda v: fisher(np.broadcast_to(v, thetas.shape)).mean(axis=0),
        loss_and_kl,
        learner.max_kl,
        learner.iterations,
        learner.damping,
    )
    assert_close(step.theta, plain.theta, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, 2])
def test_a_few_outer_steps_learn_to_adapt(order):
    """In the mean of two seeds: one alone may learn a good start that hardly adapts."""
    runs = [returns_of_training(order, seed) for seed in (0, 1)]
    before, after = np.mean(runs, axis=0)
    assert after[1] > before[1] + 0.8
    assert after[1] > after[0] + 0.8


def returns_of_training(order, seed):
    """Mean returns after 0 and 1 inner steps, before and after 15 outer steps."""
    policy = tm.GaussianPolicy(tm.MLP([2, 16, 2]), 2, threads=1)
    learner = MAMLTRPO(
        policy, Navigation(horizon=20), 0.5, order=order, max_kl=0.05, threads=1
    )
    rng = np.random.default_rng(seed)
    theta = policy.init(rng)
    test_batch = learner.draw(rng, 20)
    before = learner.adapt(theta, test_batch).returns().mean(axis=0)
    for _ in range(15):
        theta = learner.step(theta, learner.draw(rng, 10)).theta
    return before, learner.adapt(theta, test_batch).returns().mean(axis=0)


def test_an_adaptation_keeps_the_parameters_that_sampled_it():
    learner = small_learner()
    theta, batch = start(learner)
    adaptation = learner.adapt(theta, batch)
    before = adaptation.thetas[0].copy()
    theta += 1  # as an outer step in place
    assert np.array_equal(adaptation.thetas[0], before)


# --- the size of the inner step -------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2])
def test_inner_kl_is_the_divergence_between_the_first_and_the_adapted_policies(steps):
    p = problem(steps=steps)
    expected = []
    for task in range(TASKS):
        x = task_inputs(p, task)["x0"]
        old, new = (p.adaptation.thetas[j][task] for j in (0, -1))
        mean, other = (p.learner.policy.network.predict(t[:-2], x) for t in (old, new))
        sigma, tau = np.exp(old[-2:]), np.exp(new[-2:])
        kl = np.log(tau / sigma) + (sigma**2 + (mean - other) ** 2) / (2 * tau**2) - 0.5
        expected.append(kl.sum(axis=1).mean())
    assert p.learner.inner_kl(p.adaptation) == pytest.approx(
        np.mean(expected), rel=1e-10
    )
    assert p.learner.inner_kl(p.adaptation) > 1e-3


def test_a_step_reports_how_far_the_inner_step_moves_the_policy():
    learner = small_learner()
    theta, batch = start(learner)
    step = learner.step(theta, batch)
    assert step.inner_kl == learner.inner_kl(learner.adapt(theta, batch)) > 0
    plain = small_learner(steps=0)
    theta, batch = start(plain)
    assert plain.step(theta, batch).inner_kl == pytest.approx(0, abs=1e-15)


def test_an_absurd_inner_step_is_an_error_that_says_what_to_change():
    learner = small_learner(alpha=1e3)
    theta, batch = start(learner)
    complaint = (
        r"^alpha: the inner step moves the policy by a KL of \S+: alpha or the initial "
        "weights are too large$"
    )
    with pytest.raises(FloatingPointError, match=complaint):
        learner.step(theta, batch)


# --- what is shown --------------------------------------------------------------------


def test_a_learner_shows_its_settings():
    learner = small_learner(max_kl=0.02)
    assert repr(learner) == (
        f"MAMLTRPO({learner.policy}, {learner.environment}, alpha=0.4, steps=1, "
        "order=2, trajectories=4, max_kl=0.02)"
    )
    vector = small_learner(alpha=np.full(learner.policy.size, 0.1))
    assert "alpha=(29,)" in repr(vector)


def test_an_adaptation_shows_its_sizes_and_returns():
    learner = small_learner(steps=2)
    theta, batch = start(learner)
    adaptation = learner.adapt(theta, batch)
    means = adaptation.returns().mean(axis=0).round(2).tolist()
    assert repr(adaptation) == (
        f"Adaptation(2 inner steps, thetas (3, 29), mean returns {means})"
    )
    assert repr(batch) == "MetaBatch(tasks (3, 2), noise (3, 3, 4, 7, 2))"


def test_a_meta_step_shows_its_returns_and_whether_it_was_accepted():
    step = MetaStep(
        np.zeros(29), np.zeros(29), 3.5, -4.25, -3.5, 0.3, 0.009, 0.1, 2, True, ""
    )
    shown = (
        "MetaStep(mean return -4.25 before and -3.5 after inner steps, inner_kl=0.3, "
        "kl=0.009, improvement=0.1, 29 parameters, "
    )
    assert repr(step) == shown + "accepted)"
    step = step._replace(accepted=False, reason="no curvature")
    assert repr(step) == shown + "not accepted: no curvature)"
