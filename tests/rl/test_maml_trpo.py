"""Algorithm 3: the outer step's gradient and F v by three routes, and a whole step."""

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
)
from tests.support.running import BACKENDS, assert_close, difference, relative_error
from tinymaml.rl import maml_trpo
from tinymaml.rl.maml_trpo import MAMLTRPO, Objective
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
    slope = difference(lambda theta: objective.evaluate(theta)[0], p.theta, v)
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
        v @ ours @ v / 2 * 1e-6, p.objective().evaluate(p.theta + 1e-3 * v)[1], 0.01
    )


def test_alg3_line10_divergence_and_its_slope_are_0_at_the_old_parameters():
    p = problem()
    found = by_one_function(p, "kl")
    assert abs(found["loss"]) < 1e-14
    assert np.abs(found["gradient"]).max() < 1e-14
    loss, kl = p.objective().evaluate(p.theta)
    assert loss == pytest.approx(by_one_function(p, "surrogate")["loss"], abs=1e-12)
    assert abs(kl) < 1e-14


@pytest.mark.parametrize("steps", [1, 2])
def test_without_the_hessian_the_routes_do_not_meet(steps):
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
    _, slopes = losses.surrogate(adapted, objective.samples)
    assert_close(objective.gradient, slopes.mean(axis=0), 1e-14)
    v = direction(p.theta.size)
    vs = np.broadcast_to(v, adapted.shape)
    product = losses.fisher(adapted, objective.samples)(vs).mean(axis=0)
    assert_close(objective.fisher(v), product, 1e-14)


def test_the_loss_at_the_old_parameters_is_the_mean_over_tasks():
    p = problem()
    last = p.adaptation.samples[-1]
    last.arrays["advantages"] += 1.0 + last.task[:, None]  # standardised, they have 0
    objective = p.objective()
    assert objective.loss == pytest.approx(-np.mean([1, 2, 3]))
    assert objective.evaluate(p.theta)[0] == pytest.approx(objective.loss)


def test_a_step_size_for_each_parameter():
    p = problem(alpha=np.linspace(0.0, 0.5, small_policy().size))
    objective, v = p.objective(), direction(p.theta.size)
    slope = difference(lambda theta: objective.evaluate(theta)[0], p.theta, v)
    assert_close(objective.gradient @ v, slope, 1e-8)
    hessian = p.learner.losses.hessian(p.adaptation.thetas[0], p.adaptation.samples[0])
    fisher = p.learner.losses.fisher(p.adaptation.thetas[1], objective.samples)
    total = 0.0
    for task in range(TASKS):
        h, f = (
            dense(lambda e, f=f, i=task: f(np.tile(e, (TASKS, 1)))[i], p.theta.size)
            for f in (hessian, fisher)
        )
        one = np.eye(p.theta.size) - p.learner.alpha[:, None] * h
        total = total + one.T @ f @ one @ v / TASKS
    assert_close(objective.fisher(v), total, 1e-10)


# (method, old text, new text): mistakes that one of the checks must notice
WAY = "tangents = tangents - self.alpha * hessian(tangents)"
MUTANTS = [
    (Objective, "fisher", "tangents - self", "tangents + self"),
    (Objective, "fisher", WAY, "pass"),
    (Objective, "fisher", "self._pull_back(self.adapted_fisher(tangents))", "v"),
    (Objective, "fisher", "in self.hessians:", "in self.hessians[:1]:"),
    (Objective, "fisher", "in self.hessians:", "in self.hessians[::-1]:"),
    (Objective, "_pull_back", "self.alpha * v)", "v)"),
    (Objective, "_pull_back", "v = v - hessian", "v = v + hessian"),
    (Objective, "_pull_back", "reversed(self.hessians)", "self.hessians"),
    (Objective, "_pull_back", "reversed(self.hessians)", "self.hessians[:1]"),
    (Objective, "evaluate", "for samples in self.inner:", "for samples in []:"),
    (Objective, "__init__", "fisher(adapted, last)", "hessian(adapted, last)"),
    (PolicyLosses, "hessian", "record_hvp", "record_fisher"),
]


@pytest.mark.parametrize(("owner", "name", "old", "new"), MUTANTS)
def test_broken_objective_is_caught(monkeypatch, owner, name, old, new):
    put(monkeypatch, owner, name, old, new)

    def checks():
        for check in (check_gradient, check_fisher):
            check(problem(steps=2))

    assert not survives(checks)


# --- the outer step -------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_same_seed_same_bits_whatever_the_threads(threads):
    found = []
    for n in (1, threads):
        policy = tm.GaussianPolicy(tm.MLP([2, 8, 2]), 2, "numba", n)
        learner = MAMLTRPO(
            policy, Navigation(horizon=20), 0.5, backend="numba", threads=n
        )
        theta, draw = start(learner, "float32")
        found.append(learner.step(theta, draw))
    assert found[0].theta.tobytes() == found[1].theta.tobytes()
    assert found[0][2:] == found[1][2:]


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
        theta, draw = start(learner, seed=seed)
        step = learner.step(theta, draw)
        assert step.accepted and step.why == ""
        objective = Objective(learner, learner.adapt(theta, draw))
        before, _ = objective.evaluate(theta)
        after, kl = objective.evaluate(step.theta)
        assert after < before and 0 < kl <= 0.01
        assert before - after == pytest.approx(step.improvement)
        assert kl == pytest.approx(step.kl)
        assert (step.gradient == theta - step.theta).all()
        assert step.loss == -step.after


def test_the_trust_region_gets_the_settings_of_the_learner(monkeypatch):
    learner = small_learner(max_kl=0.3, iterations=4, damping=0.2)
    theta, draw = start(learner)
    given = {}

    def recorder(*arguments, **options):
        bound = inspect.signature(trust_region_step).bind(*arguments, **options)
        given.update(bound.arguments)
        return trust_region_step(*arguments, **options)

    monkeypatch.setattr(maml_trpo, "trust_region_step", recorder)
    learner.step(theta, draw)
    objective = Objective(learner, learner.adapt(theta, draw))
    assert given["theta"] is theta and given["loss"] == objective.loss
    np.testing.assert_array_equal(given["gradient"], objective.gradient)
    assert [given[name] for name in ("max_kl", "iterations", "damping")] == [
        0.3,
        4,
        0.2,
    ]


def test_a_step_that_fails_leaves_theta_alone_and_says_why(monkeypatch):
    learner = small_learner()
    theta, draw = start(learner)
    monkeypatch.setattr(Objective, "evaluate", lambda self, theta: (1e9, 0.0))
    step = learner.step(theta, draw)
    assert not step.accepted and "lengths" in step.why
    assert (step.theta == theta).all() and (step.gradient == 0).all()
    assert (step.kl, step.improvement) == (0.0, 0.0)


def test_returns_are_those_of_the_trajectories_before_and_after():
    learner = small_learner()
    theta, draw = start(learner)
    step, adaptation = learner.step(theta, draw), learner.adapt(theta, draw)
    before, after = (t.rewards.sum(axis=2).mean() for t in adaptation.trajectories)
    assert step.before != step.after
    assert (step.before, step.after) == pytest.approx((before, after))


def test_no_inner_step_is_plain_trpo():
    learner = small_learner(steps=0, alpha=123.0)
    theta, draw = start(learner)
    step = learner.step(theta, draw)
    assert step.accepted and step.before == step.after


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, 2])
def test_a_few_outer_steps_learn_to_adapt(order):
    policy = tm.GaussianPolicy(tm.MLP([2, 16, 2]), 2, threads=1)
    learner = MAMLTRPO(
        policy, Navigation(horizon=20), 0.5, order=order, max_kl=0.05, threads=1
    )
    rng = np.random.default_rng(0)
    theta = policy.init(rng)
    kept = learner.draw(rng, 20)
    before = learner.adapt(theta, kept).returns().mean(axis=0)
    for _ in range(15):
        theta = learner.step(theta, learner.draw(rng, 10)).theta
    after = learner.adapt(theta, kept).returns().mean(axis=0)
    assert after[1] > before[1] + 0.8
    assert after[1] > after[0] + 0.8
