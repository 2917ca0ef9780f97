"""What a user calls: adapt, evaluate, batches of tasks, threads, recomputation."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinymaml as tm
from tests.support.maml_problems import (
    LOSSES,
    alpha_vector,
    assert_is_gradient_of,
    by_dense_hessians,
    by_recursion,
    problem,
)
from tests.support.running import AGREE, BACKENDS, DTYPES, assert_close, run_tape
from tinymaml.backends.numba.planner import ALIGNMENT, plan
from tinymaml.tasks import sinusoid

every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_loss = pytest.mark.parametrize("loss", LOSSES)
some_steps = pytest.mark.parametrize("steps", [1, 2, 5])


def sinusoids(tasks=25, dtype="float32", seed=0):
    """The paper's net and its tasks."""
    network = tm.MLP([1, 40, 40, 1])

    def loss(theta, x, y):
        return tm.squared_error(network(theta, x), y)

    rng = np.random.default_rng(seed)
    theta = network.init(rng, dtype)
    return loss, theta, sinusoid.sample_tasks(rng, tasks, dtype=dtype)


def results_of(maml, theta, tasks):
    """Everything a meta-gradient returns, as arrays."""
    result = maml.meta_gradient(theta, tasks, parts=True)
    parts = result.parts
    return [
        result.gradient,
        result.losses,
        np.array(result.loss),
        parts.query_gradient,
        parts.corrections,
        parts.alpha_gradient,
    ]


# --- the loss -------------------------------------------------------------------------


def test_a_loss_of_shape_1_is_one_number():
    loss, theta, tasks = sinusoids(tasks=4, dtype="float64")
    plain = tm.MAML(loss, backend="numpy")
    listed = tm.MAML(lambda *given: loss(*given).reshape(1), backend="numpy")
    assert listed.meta_gradient(theta, tasks).losses.shape == (4,)
    assert listed.evaluate(theta, tasks).shape == (4, 2)
    for ours, theirs in zip(
        results_of(listed, theta, tasks), results_of(plain, theta, tasks), strict=True
    ):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("name", ["loss", "query_loss"])
@pytest.mark.parametrize("call", ["meta_gradient", "evaluate"])
def test_a_loss_that_is_not_one_number_is_refused(name, call):
    loss, theta, tasks = sinusoids(tasks=2)
    for wrong, error, got in (
        (lambda theta, x, *_: x, ValueError, r"shape \(10, 1\)"),
        (lambda *_: 3.0, TypeError, "float"),
    ):
        losses = {"loss": loss, name: wrong}
        maml = tm.MAML(**losses, steps=0, backend="numpy")
        with pytest.raises(error, match=f"^{name}: expected .*{got}"):
            getattr(maml, call)(theta, tasks)


def test_an_alpha_that_is_changed_in_place_afterwards_changes_nothing():
    loss, theta, tasks = sinusoids(tasks=2)
    alpha = np.full(theta.size, 0.01)
    maml = tm.MAML(loss, alpha, backend="numpy")
    before = maml.meta_gradient(theta, tasks).gradient
    alpha *= 10
    assert np.array_equal(maml.meta_gradient(theta, tasks).gradient, before)


def test_parts_without_steps_have_the_dtype_of_theta():
    loss, theta, tasks = sinusoids(tasks=2)
    maml = tm.MAML(loss, steps=0, backend="numpy")
    assert maml.meta_gradient(theta, tasks, parts=True).parts.corrections.dtype == "f4"


# --- adaptation -----------------------------------------------------------------------


@every_backend
@pytest.mark.parametrize("alpha", [0.1, np.array([0.1, 0.2, 0.0, 0.3])])
def test_maml_inner_update_is_gradient_descent_written_by_hand(backend, alpha):
    """A linear model y = x W + b and its squared error, forwards and backwards."""
    network = tm.Network([tm.Linear(3, 1)])
    rng = np.random.default_rng(0)
    theta, x = rng.standard_normal(4), rng.standard_normal((2, 6, 3))
    y = rng.standard_normal((2, 6, 1))
    maml = tm.MAML(
        lambda theta, x, y: tm.squared_error(network(theta, x), y),
        alpha=alpha,
        backend=backend,
    )
    thetas = maml.adapt(theta, x, y, steps=5)
    assert thetas.shape == (2, 6, 4)
    for task in range(2):
        weight, bias = theta[:3].copy(), theta[3]
        for k in range(6):
            assert_close(thetas[task, k], [*weight, bias], 1e-13, f"theta_{k}")
            error = x[task] @ weight + bias - y[task, :, 0]
            steps = np.broadcast_to(alpha, 4)
            weight = weight - steps[:3] * (2 / 6 * x[task].T @ error)
            bias = bias - steps[3] * (2 / 6 * error.sum())


@every_backend
def test_maml_inner_update_starts_from_theta_itself(backend):
    p = problem()
    thetas = p.maml(backend).adapt(p.theta, *p.tasks[:2], steps=3)
    assert (thetas[:, 0] == p.theta).all()
    nothing = p.maml(backend).adapt(p.theta, *p.tasks[:2], steps=0)
    assert nothing.shape == (3, 1, p.theta.size)
    assert (nothing == p.theta).all()


@every_backend
def test_more_steps_continue_the_same_path(backend):
    p = problem()
    maml = p.maml(backend, steps=2)
    short, long = (maml.adapt(p.theta, *p.tasks[:2], steps=k) for k in (2, 6))
    assert np.array_equal(long[:, :3], short)
    assert np.array_equal(maml.adapt(p.theta, *p.tasks[:2]), short)


@every_backend
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_evaluate_is_the_query_loss_at_the_adapted_thetas(backend, loss, steps):
    p = problem(loss)
    maml = p.maml(backend, steps=steps)
    losses = maml.evaluate(p.theta, p.tasks)
    assert losses.shape == (3, steps + 1)
    tape = tm.Tape()
    theta = tape.input("theta", p.theta.shape, per_task=True)
    data = [tape.input(n, a.shape[1:]) for n, a in zip("xy", p.tasks[2:], strict=True)]
    tape.output("loss", p.loss(theta, *data))
    thetas = maml.adapt(p.theta, *p.tasks[:2])
    for task, (x, y) in enumerate(zip(*p.tasks[2:], strict=True)):
        expected = run_tape(tape, {"theta": thetas[task], "x": x, "y": y})["loss"]
        assert_close(losses[task], expected, 1e-13, f"task {task}")


@every_backend
def test_meta_gradient_reports_the_losses_that_evaluate_gives(backend):
    p = problem()
    maml = p.maml(backend, steps=3)
    losses = maml.meta_gradient(p.theta, p.tasks).losses
    assert_close(losses, maml.evaluate(p.theta, p.tasks)[:, -1], 1e-14)


# --- batches of tasks -----------------------------------------------------------------


def one_task(tasks, i):
    return tm.Tasks(*(array[i : i + 1] for array in tasks))


@every_backend
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_maml_eq1_of_a_batch_is_that_of_its_tasks_one_by_one(backend, reduction):
    p = problem(tasks=35)  # more than one block of 32
    maml = p.maml(backend, steps=2, reduction=reduction)
    batch = maml.meta_gradient(p.theta, p.tasks)
    singles = [maml.meta_gradient(p.theta, one_task(p.tasks, i)) for i in range(35)]
    scale = 1 / 35 if reduction == "mean" else 1.0
    expected = scale * np.sum([single.gradient for single in singles], axis=0)
    assert_close(batch.gradient, expected, 1e-12)
    assert_close(batch.losses, [single.loss for single in singles], 1e-14)
    assert batch.loss == pytest.approx(scale * batch.losses.sum(), rel=1e-14)


def test_numba_losses_of_a_batch_are_those_of_single_tasks_to_the_bit():
    loss, theta, tasks = sinusoids(tasks=7)
    maml = tm.MAML(loss, backend="numba", threads=2)
    batch = maml.meta_gradient(theta, tasks).losses
    single = [maml.meta_gradient(theta, one_task(tasks, i)).losses[0] for i in range(7)]
    assert batch.tolist() == [float(x) for x in single]


@every_backend
def test_order_of_tasks_does_not_matter(backend):
    p = problem(tasks=9)
    order = np.random.default_rng(0).permutation(9)
    maml = p.maml(backend, steps=2)
    plain = maml.meta_gradient(p.theta, p.tasks)
    shuffled = tm.Tasks(*(array[order] for array in p.tasks))
    other = maml.meta_gradient(p.theta, shuffled)
    assert_close(other.losses, plain.losses[order], 1e-14)
    assert_close(other.gradient, plain.gradient, 1e-12)


@given(count=st.integers(1, 6))
def test_one_maml_serves_batches_of_any_size(count):
    p = problem(tasks=6)
    tasks = tm.Tasks(*(array[:count] for array in p.tasks))
    one, other = (
        SHARED.meta_gradient(p.theta, tasks),
        p.maml().meta_gradient(p.theta, tasks),
    )
    assert_close(one.gradient, other.gradient, 1e-12)


SHARED = problem().maml("numba")


def test_one_maml_serves_other_shapes_and_dtypes():
    p = problem()
    maml = p.maml("numba")
    whole = maml.meta_gradient(p.theta, p.tasks)
    fewer = tm.Tasks(p.tasks[0][:, :2], p.tasks[1][:, :2], *p.tasks[2:])
    maml.meta_gradient(p.theta, fewer)
    single = p.cast("float32")
    assert maml.meta_gradient(single.theta, single.tasks).gradient.dtype == "float32"
    rematerialise = maml.meta_gradient(p.theta, p.tasks)
    assert rematerialise.gradient.dtype == "float64"
    assert np.array_equal(rematerialise.gradient, whole.gradient)


def test_inputs_are_left_as_they_were():
    p = problem()
    copies = [array.copy() for array in (p.theta, *p.tasks)]
    for array in (p.theta, *p.tasks):
        array.flags.writeable = False
    p.maml("numba").meta_gradient(p.theta, p.tasks)
    for array, copy in zip((p.theta, *p.tasks), copies, strict=True):
        assert np.array_equal(array, copy)


# --- threads and backends -------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("tasks", [1, 2, 25, 33, 70])
def test_alg2_line4_gives_the_same_bits_for_any_number_of_threads(dtype, tasks):
    loss, theta, batch = sinusoids(tasks, dtype)
    one, two, four = (
        results_of(tm.MAML(loss, backend="numba", threads=n), theta, batch)
        for n in (1, 2, 4)
    )
    for a, b, c in zip(one, two, four, strict=True):
        assert a.tobytes() == b.tobytes() == c.tobytes()


@every_dtype
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_backends_agree_on_the_papers_net(dtype, steps):
    loss, theta, tasks = sinusoids(tasks=33, dtype=dtype)
    numba, numpy = (
        results_of(tm.MAML(loss, steps=steps, backend=backend), theta, tasks)
        for backend in ("numba", "numpy")
    )
    for actual, expected in zip(numba, numpy, strict=True):
        assert_close(actual, expected, AGREE[dtype])


@every_dtype
@pytest.mark.parametrize("loss", LOSSES)
def test_backends_agree_on_adaptation(dtype, loss):
    p = problem(loss, "relu").cast(dtype)
    numba, numpy = (p.maml(backend, steps=10) for backend in ("numba", "numpy"))
    for call in (
        lambda maml: maml.adapt(p.theta, *p.tasks[:2]),
        lambda maml: maml.evaluate(p.theta, p.tasks),
    ):
        assert_close(call(numba), call(numpy), AGREE[dtype])


# --- recomputation --------------------------------------------------------------------


@every_backend
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_recomputed_activations_give_the_same_meta_gradient(backend, loss, steps):
    p = problem(loss)
    stored, recomputed = (
        by_recursion(p, steps, backend=backend, recompute=recompute)
        for recompute in (False, True)
    )
    assert_close(recomputed, stored, 1e-12)


def workspace(steps, recompute):
    loss, theta, tasks = sinusoids(tasks=1)
    maml = tm.MAML(loss, steps=steps, recompute=recompute, backend="numpy")
    return plan(maml.tape(theta, tasks)).bytes("float32")


def test_recomputation_needs_one_theta_more_for_each_step():
    theta = -(-1761 // ALIGNMENT) * ALIGNMENT * 4  # in whole cache lines
    recomputed = [workspace(steps, recompute=True) for steps in range(2, 7)]
    stored = [workspace(steps, recompute=False) for steps in range(2, 7)]
    assert np.diff(recomputed).tolist() == [theta] * 4
    assert (np.diff(stored) > 2 * theta).all()


# --- parts of the meta-gradient -------------------------------------------------------


@every_backend
@every_loss
@some_steps
@pytest.mark.parametrize("recompute", [False, True])
def test_maml_eq1_is_first_order_plus_the_hessian_terms(
    backend, loss, steps, recompute
):
    p = problem(loss)
    maml = p.maml(backend, steps=steps, recompute=recompute, reduction="mean")
    result = maml.meta_gradient(p.theta, p.tasks, parts=True)
    parts, tasks = result.parts, len(result.losses)
    exact, first, corrections = by_dense_hessians(p, steps)
    assert_close(parts.query_gradient, first / tasks, 1e-12)
    assert parts.corrections.shape == corrections.shape
    for k in range(steps):
        assert_close(parts.corrections[k], corrections[k] / tasks, 1e-12, f"step {k}")
    assert_close(
        result.gradient, parts.query_gradient - parts.corrections.sum(0), 1e-13
    )
    assert_close(result.gradient, exact / tasks, 1e-12)
    first_order = by_recursion(p, steps, backend=backend, order=1, reduction="mean")
    assert_close(first_order, parts.query_gradient, 1e-13)
    norms = np.linalg.norm(first), np.linalg.norm(exact)
    assert parts.cosine == pytest.approx(first @ exact / np.prod(norms), rel=1e-12)
    assert parts.norm_ratio == pytest.approx(norms[0] / norms[1], rel=1e-12)


def test_parts_do_not_change_the_meta_gradient():
    p = problem()
    maml = p.maml("numba", steps=2)
    with_parts = maml.meta_gradient(p.theta, p.tasks, parts=True)
    without = maml.meta_gradient(p.theta, p.tasks)
    assert without.parts is None
    assert_close(with_parts.gradient, without.gradient, 1e-14)
    assert with_parts.loss == pytest.approx(without.loss, rel=1e-14)


def test_cosine_and_ratio_of_a_zero_gradient_are_not_numbers():
    maml = tm.MAML(lambda theta, x, y: theta.sum() * 0.0, backend="numpy")
    one = np.ones((1, 1, 4))
    tasks = tm.Tasks(one, one, one, one)
    parts = maml.meta_gradient(np.ones(4), tasks, parts=True).parts
    assert np.isnan(parts.cosine) and np.isnan(parts.norm_ratio)


@pytest.mark.parametrize("size", [1e-30, 1e-23, 1.0, 1e23, 1e30])
def test_cosine_and_ratio_of_a_gradient_whose_squares_float32_has_not_are_exact(size):
    """The loss is linear: there is no Hessian, and both gradients are the same."""
    maml = tm.MAML(lambda theta, x, y: (theta * x).sum() * size, 0.1, backend="numpy")
    one = np.ones((1, 1, 4), np.float32)
    tasks = tm.Tasks(one, one, one, one)
    parts = maml.meta_gradient(np.ones(4, np.float32), tasks, parts=True).parts
    assert parts.cosine == pytest.approx(1, rel=1e-12)
    assert parts.norm_ratio == pytest.approx(1, rel=1e-12)


@every_backend
@some_steps
@pytest.mark.parametrize(("reduction", "share"), [("sum", 1), ("mean", 1 / 3)])
def test_alpha_gradient_matches_finite_differences(backend, steps, reduction, share):
    p = problem("cross_entropy")
    alpha = alpha_vector(p.theta)
    maml = p.maml(backend, alpha, steps=steps, reduction=reduction)
    assert_is_gradient_of(
        maml.meta_gradient(p.theta, p.tasks, True).parts.alpha_gradient,
        lambda moved: share * p.objective(p.theta, moved, steps)[-1],
        alpha,
    )


def test_alpha_gradient_of_a_scalar_alpha_is_per_parameter():
    p = problem()
    scalar, vector = (
        p.maml(alpha=alpha, steps=2).meta_gradient(p.theta, p.tasks, parts=True)
        for alpha in (0.3, np.full(p.theta.size, 0.3))
    )
    assert_close(scalar.parts.alpha_gradient, vector.parts.alpha_gradient, 1e-14)


@pytest.mark.parametrize("clip", [np.float64(2), np.int64(2), np.uint8(2), Fraction(2)])
def test_a_clip_of_any_kind_of_number_leaves_the_dtype(clip):
    maml = tm.MAML(lambda theta, x, y: (theta * x).sum(), steps=0, clip=clip)
    assert type(maml.clip) is float
    x = np.array([[[-5.0, 1.0, 5.0]]], np.float32)
    gradient = maml(np.zeros(3, np.float32), (x, x, x, x)).gradient
    assert gradient.dtype == np.float32 and gradient.tolist() == [-2, 1, 2]


# --- objects that show themselves -----------------------------------------------------


@every_backend
def test_a_gradient_that_is_not_finite_is_not_clipped_to_one_that_is(backend):
    x = np.full((1, 1, 1), 1e30, np.float32)
    maml = tm.MAML(
        lambda theta, x, y: (theta * x * x).sum(), steps=0, clip=10.0, backend=backend
    )
    theta = np.full(1, 1e-40, np.float32)
    with np.errstate(over="ignore"):
        assert np.isinf(maml(theta, (x, x, x, x)).gradient).all()
        with pytest.raises(tm.NonFiniteLossError, match="iteration 1: 1 of 1 entries"):
            tm.train(
                maml,
                theta,
                lambda rng: (x, x, x, x),
                iterations=3,
                optimiser=tm.SGD(0.1),
                rng=np.random.default_rng(0),
                progress=False,
            )


def test_maml_shows_its_settings():
    p = problem()
    shown = repr(p.maml("numpy", alpha=0.25, steps=3, order=1))
    assert "\n" not in shown
    for fact in ("MAML(", "alpha=0.25", "steps=3", "order=1", "'numpy'"):
        assert fact in shown
    vector = repr(p.maml("numpy", alpha=np.full(p.theta.size, 0.1)))
    assert f"alpha=({p.theta.size},)" in vector


def test_results_show_shapes_and_not_all_their_numbers():
    p = problem()
    result = p.maml("numpy").meta_gradient(p.theta, p.tasks, parts=True)
    assert len(repr(result)) < 300 and repr(result).count("\n") == 1
    assert f"({p.theta.size},)" in repr(result)
    assert f"cosine={result.parts.cosine:.4g}" in repr(result.parts)
