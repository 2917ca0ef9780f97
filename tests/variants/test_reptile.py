"""Reptile: where gradient descent leads, by plain NumPy and by `MAML.adapt`."""

import numpy as np
import pytest

import tinymaml as tm
from tests.support.maml_problems import alpha_vector, assert_is_gradient_of, problem
from tests.support.running import AGREE, BACKENDS, assert_close
from tinymaml.tasks import sinusoid
from tinymaml.variants.reptile import Reptile

every_backend = pytest.mark.parametrize("backend", BACKENDS)


def reptile(p, backend="numpy", alpha=0.3, **options):
    options = {"reduction": "sum", "threads": 1, **options}
    return Reptile(p.loss, alpha, backend=backend, **options)


def joined(p):
    """Support and query examples of each task end to end: x and y."""
    x, y, x_query, y_query = p.tasks
    return np.concatenate([x, x_query], axis=1), np.concatenate([y, y_query], axis=1)


def linear_problem():
    """x theta + theta_P in plain NumPy: the gradient of its squared error, and data."""
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal((1, 7, 3)), rng.standard_normal((1, 7, 1))

    def loss(theta, x, y):
        error = x @ theta[:3].reshape(3, 1) + theta[3] - y
        return (error * error).mean()

    def gradient(theta, x, y):
        error = x @ theta[:3] + theta[3] - y[:, 0]
        return 2 * np.append(error @ x, error.sum()) / len(x)

    tasks = tm.Tasks(x[:, :3], y[:, :3], x[:, 3:], y[:, 3:])
    return loss, gradient, rng.standard_normal(4), tasks, x[0], y[0]


@every_backend
@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy"])
@pytest.mark.parametrize("steps", [1, 4])
def test_reptile_is_the_way_from_theta_to_the_end_of_the_inner_loop(
    backend, loss, steps
):
    p = problem(loss)
    result = reptile(p, backend, steps=steps).meta_gradient(p.theta, p.tasks)
    ends = p.maml(steps=steps).adapt(p.theta, *joined(p))[:, -1]
    assert_close(result.gradient, ((p.theta - ends) / 0.3).sum(axis=0), 1e-12)
    tasks = tm.Tasks(*joined(p), *p.tasks[2:])
    losses = p.maml(steps=steps).evaluate(p.theta, tasks)[:, -1]
    assert_close(result.losses, losses, 1e-13)


def test_a_query_loss_is_reported_and_not_trained_on():
    p = problem()

    def query_loss(theta, x, y, x_support):
        return 3 * p.loss(theta, x, y)

    plain = reptile(p, steps=2).meta_gradient(p.theta, p.tasks)
    other = reptile(p, steps=2, query_loss=query_loss).meta_gradient(p.theta, p.tasks)
    assert_close(other.losses, 3 * plain.losses, 1e-14)
    assert np.array_equal(other.gradient, plain.gradient)


@every_backend
def test_one_step_is_the_gradient_of_the_joint_loss(backend):
    p = problem()
    gradient = reptile(p, backend, steps=1).meta_gradient(p.theta, p.tasks).gradient
    plain, tasks = p.maml(steps=0), tm.Tasks(*joined(p), *joined(p))
    assert_is_gradient_of(
        gradient, lambda theta: plain.evaluate(theta, tasks).sum(), p.theta
    )


@every_backend
@pytest.mark.parametrize(
    ("batch", "starts"), [(2, (0, 2, 4, 0, 2)), (3, (0, 3, 0, 3, 0)), (7, 5 * (0,))]
)
@pytest.mark.parametrize("alpha", [0.1, np.array([0.1, 0.0, 0.2, 0.3])], ids=str)
def test_batches_follow_each_other_and_begin_again(backend, batch, starts, alpha):
    loss, gradient, theta, tasks, x, y = linear_problem()
    learner = Reptile(loss, alpha, 5, batch=batch, backend=backend)
    theta_j, total = theta, np.zeros(4)
    for start in starts:
        g = gradient(theta_j, x[start : start + batch], y[start : start + batch])
        theta_j, total = theta_j - alpha * g, total + g
    assert_close(learner.meta_gradient(theta, tasks).gradient, total, 1e-13)


def test_a_batch_that_is_set_later_is_used_by_the_next_call():
    loss, _, theta, tasks, *_ = linear_problem()
    learner = Reptile(loss, 0.1, 3, backend="numpy")
    before = learner.meta_gradient(theta, tasks).gradient
    learner.batch = 2
    after = learner.meta_gradient(theta, tasks).gradient
    anew = Reptile(loss, 0.1, 3, batch=2, backend="numpy")
    assert np.array_equal(after, anew.meta_gradient(theta, tasks).gradient)
    assert np.linalg.norm(after - before) > 0.1 * np.linalg.norm(before)


def test_an_outer_step_of_sgd_is_the_papers_move_towards_the_adapted_parameters():
    p, alpha, beta = problem(), 0.3, 0.03
    learner = reptile(p, alpha=alpha, steps=3, reduction="mean")
    theta = p.theta.copy()
    tm.SGD(beta).update(theta, learner.meta_gradient(theta, p.tasks).gradient)
    ends = p.maml(alpha=alpha, steps=3).adapt(p.theta, *joined(p))[:, -1]
    epsilon = beta / alpha
    assert_close(theta, p.theta + epsilon * (ends - p.theta).mean(axis=0), 1e-13)


@every_backend
def test_float32_loses_no_more_than_its_rounding(backend):
    p = problem("cross_entropy")
    alpha = 0.001  # theta_0 - theta_J would lose three digits
    exact = reptile(p, alpha=alpha, steps=3).meta_gradient(p.theta, p.tasks).gradient
    p = p.cast("float32")
    short = reptile(p, backend, alpha, steps=3).meta_gradient(p.theta, p.tasks)
    assert_close(short.gradient, exact, AGREE["float32"])


def test_adaptation_at_test_is_that_of_maml():
    p, alpha = problem(), alpha_vector(problem().theta)
    learner, maml = reptile(p, alpha=alpha, batch=2), p.maml(alpha=alpha)
    for method in ("evaluate", "adapt"):
        data = [p.tasks] if method == "evaluate" else p.tasks[:2]
        results = [getattr(m, method)(p.theta, *data, steps=4) for m in (learner, maml)]
        assert np.array_equal(*results)


def test_reptile_trains_sine_waves_better_than_joint_training_does():
    network = tm.MLP([1, 20, 20, 1])

    def loss(theta, x, y):
        return tm.squared_error(network(theta, x), y)

    def sample(rng):
        return sinusoid.sample_tasks(rng, tasks=20, shots=10)

    new = sample(np.random.default_rng(1))
    errors = []
    for steps in (1, 5):  # one step is joint training
        learner = Reptile(loss, 0.005, steps, batch=None if steps == 1 else 10)
        rng = np.random.default_rng(0)
        theta = network.init(rng)
        settings = {"iterations": 500, "optimiser": tm.Adam(0.003), "rng": rng}
        theta = tm.train(learner, theta, sample, **settings, progress=False).theta
        errors.append(learner.evaluate(theta, new, steps=10)[:, -1].mean())
    assert errors[1] < 0.8 * errors[0]


def test_the_tape_has_no_second_order_operation():
    """The gradients of J steps and one query loss, and nothing else."""
    p = problem()
    plain = p.maml(steps=0)
    everything = tm.Tasks(*joined(p), *joined(p))
    gradient = plain.tape(p.theta, everything).flops()
    loss = plain.tape(p.theta, everything, kind="evaluate").flops()
    assert reptile(p, steps=4).tape(p.theta, p.tasks).flops() < 4.4 * gradient + loss


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch: expected at least 1, got 0"),
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"step_weights": [1.0]}, r"step_weights: expected None, got \[1.0\]"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        reptile(problem(), **options)


def test_a_batch_larger_than_a_task_and_parts_are_refused():
    p = problem()
    with pytest.raises(ValueError, match="batch: expected at most 9 examples, got 10"):
        reptile(p, batch=10).meta_gradient(p.theta, p.tasks)
    with pytest.raises(ValueError, match="parts: expected False"):
        reptile(p).meta_gradient(p.theta, p.tasks, parts=True)
