"""MAML of networks of images: routes to the meta-gradient, predictions, query losses.

There are two small networks, of the paper's two kinds: one has strides and the mean of
the last map, the other max-pooling. Both have batch normalisation, whose parameters are
meta-learned and not adapted.
"""

import numpy as np
import pytest

import tinymaml as tm
from tests.support.image_problems import (
    image_problem,
    on_numbers,
    pooled_network,
    strided_network,
)
from tests.support.running import (
    AGREE,
    BACKENDS,
    DTYPES,
    assert_close,
    difference,
    relative_error,
    run_tape,
)
from tinymaml.autodiff.derivatives import grad
from tinymaml.backends.numba.planner import plan
from tinymaml.maml import inner_loop
from tinymaml.networks.images import MODES

NETWORKS = {"strided": strided_network, "max-pooled": pooled_network}
every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_network = pytest.mark.parametrize("network", NETWORKS)
one_or_five_steps = pytest.mark.parametrize("steps", [1, 5])
both_statistics = pytest.mark.parametrize("mode", ["batch", "support"])


def problem_of(network, mode="batch", **options):
    return image_problem(NETWORKS[network](mode), **options)


def by_recursion(p, steps, backend="numpy", **options):
    maml = p.maml(backend, steps=steps, **options)
    return maml.meta_gradient(p.theta, p.tasks).gradient


def by_reverse_over_reverse(p, steps, backend="numpy"):
    """Backpropagation through the whole unrolled inner loop, on one tape."""
    tape = tm.Tape()
    theta = tape.input("theta", p.theta.shape)
    alpha = tape.input("alpha", p.theta.shape)
    x, y, x_query, y_query = (
        tape.input(name, array.shape[1:], per_task=True)
        for name, array in p.tasks._asdict().items()
    )
    last = inner_loop(p.loss, theta, (x, y), alpha, steps)[-1]
    gradient = grad(p.loss(last, x_query, y_query, x), theta)
    tape.output("gradient", gradient, "sum")
    inputs = {"theta": p.theta, "alpha": p.maml().alpha, **p.tasks._asdict()}
    return run_tape(tape, inputs, backend)["gradient"]


def check_routes_agree(p, steps, backend="numpy", **options):
    """The recursion, which MAML records, against two routes that share little code."""
    gradient = by_recursion(p, steps, backend, **options)
    reverse = by_reverse_over_reverse(p, steps, backend)
    assert_close(gradient, reverse, 1e-12, "reverse over reverse")
    assert_is_difference(gradient, p, steps)


def assert_is_difference(gradient, p, steps):
    """Compare the gradient with differences along three random directions.

    The step is small, because an inner gradient jumps where another element of a window
    becomes the largest.
    """
    maml = p.maml(steps=steps)

    def objective(theta):
        return maml.evaluate(theta, p.tasks)[:, -1].sum()

    directions = np.random.default_rng(9).standard_normal((3, p.theta.size))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    slopes = [difference(objective, p.theta, v, h=1e-5) for v in directions]
    assert_close(directions @ gradient, slopes, 1e-8, "differences")


@every_backend
@every_network
@one_or_five_steps
@both_statistics
def test_maml_eq1_of_images_by_three_routes(backend, network, steps, mode):
    check_routes_agree(problem_of(network, mode), steps, backend)


@every_network
@one_or_five_steps
@both_statistics
def test_without_the_hessian_the_routes_of_images_disagree(network, steps, mode):
    p = problem_of(network, mode)
    exact, first = (by_recursion(p, steps, order=order) for order in (2, 1))
    assert relative_error(first, exact) > 0.01
    with pytest.raises(AssertionError, match="reverse over reverse"):
        check_routes_agree(p, steps, order=1)
    with pytest.raises(AssertionError, match="differences"):
        assert_is_difference(first, p, steps)


@every_backend
@every_network
@both_statistics
def test_parameters_of_batch_norm_are_meta_learned_but_not_adapted(
    backend, network, mode
):
    p = problem_of(network, mode)
    fixed = p.maml().alpha == 0
    assert fixed.any() and not fixed.all()
    thetas = p.maml(backend).adapt(p.theta, *p.tasks[:2], steps=3)
    assert (thetas[:, :, fixed] == p.theta[fixed]).all()
    assert np.abs(by_recursion(p, 1, backend)[fixed]).min() > 1e-6


# --- backends, threads, memory --------------------------------------------------------


@every_network
@pytest.mark.parametrize("dtype", DTYPES)
@both_statistics
def test_backends_agree_on_the_meta_gradient_of_images(network, dtype, mode):
    p = problem_of(network, mode).cast(dtype)
    numba, numpy = (by_recursion(p, 2, backend) for backend in ("numba", "numpy"))
    assert_close(numba, numpy, AGREE[dtype])


@every_network
@pytest.mark.parametrize("dtype", DTYPES)
def test_alg2_line4_of_images_has_the_same_bits_for_any_number_of_threads(
    network, dtype
):
    p = problem_of(network, tasks=5).cast(dtype)
    one, two, three = (
        p.maml("numba", steps=2, threads=n).meta_gradient(p.theta, p.tasks)
        for n in (1, 2, 3)
    )
    assert one.gradient.tobytes() == two.gradient.tobytes() == three.gradient.tobytes()
    assert one.losses.tobytes() == two.losses.tobytes() == three.losses.tobytes()


@every_backend
@every_network
@one_or_five_steps
def test_recomputed_activations_of_images_give_the_same_meta_gradient(
    backend, network, steps
):
    p = problem_of(network, "support")
    stored, recomputed = (
        by_recursion(p, steps, backend, recompute=recompute)
        for recompute in (False, True)
    )
    assert_close(recomputed, stored, 1e-12)


@every_network
def test_recomputation_of_images_needs_less_memory(network):
    p = problem_of(network)
    stored, recomputed = (
        plan(p.maml(steps=5, recompute=recompute).tape(p.theta, p.tasks)).size
        for recompute in (False, True)
    )
    assert recomputed < 0.6 * stored


# --- predictions ----------------------------------------------------------------------


@every_backend
@every_network
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("steps", [0, 3])
def test_predict_is_the_network_at_the_adapted_thetas(backend, network, mode, steps):
    p = problem_of(network, mode)
    maml = p.maml(backend)
    logits = maml.predict(p.network, p.theta, p.tasks, steps)
    assert logits.shape == (2, steps + 1, 6, 3)
    thetas = maml.adapt(p.theta, *p.tasks[:2], steps=steps)
    for task in range(2):
        x, support = p.tasks.x_query[task], p.tasks.x_support[task]
        for j in range(steps + 1):
            expected = on_numbers(p.network, thetas[task, j], x, support)
            assert_close(logits[task, j], expected, 1e-12)
            if mode == "batch":
                alone = p.network.predict(thetas[task, j], x)
                assert_close(logits[task, j], alone, 1e-12)


@every_backend
def test_predict_takes_the_steps_of_meta_training_by_default(backend):
    p = problem_of("strided")
    maml = p.maml(backend, steps=2)
    default = maml.predict(p.network, p.theta, p.tasks)
    assert np.array_equal(default, maml.predict(p.network, p.theta, p.tasks, 2))
    assert default.shape[1] == 3


@every_backend
def test_predict_of_two_functions_gives_each_its_own(backend):
    p = problem_of("strided")
    maml = p.maml(backend)
    plain = maml.predict(p.network, p.theta, p.tasks)
    twice = maml.predict(lambda *a: p.network(*a) * 2.0, p.theta, p.tasks)
    assert_close(twice, 2 * plain, 1e-15)


def test_predict_needs_no_labels_of_the_query():
    p = problem_of("strided")
    unknown = p.tasks._replace(y_query=np.zeros_like(p.tasks.y_query))
    predictions = [
        p.maml().predict(p.network, p.theta, tasks) for tasks in (p.tasks, unknown)
    ]
    assert np.array_equal(*predictions)


# --- the query loss -------------------------------------------------------------------


@every_backend
@one_or_five_steps
def test_a_query_loss_that_ignores_the_support_is_the_loss(backend, steps):
    p = problem_of("strided")

    def same(theta, x, y, x_support):
        return p.loss(theta, x, y)

    plain, other = (
        p.maml(backend, steps=steps, query_loss=query_loss)
        for query_loss in (None, same)
    )
    one, two = (maml.meta_gradient(p.theta, p.tasks, True) for maml in (plain, other))
    assert one.gradient.tobytes() == two.gradient.tobytes()
    assert one.losses.tobytes() == two.losses.tobytes()
    assert one.parts.corrections.tobytes() == two.parts.corrections.tobytes()
    losses = plain.evaluate(p.theta, p.tasks), other.evaluate(p.theta, p.tasks)
    assert np.array_equal(*losses)


@every_backend
def test_the_outer_loop_minimises_the_query_loss_and_the_inner_loop_the_loss(backend):
    p = problem_of("strided", "support")
    plain = p.maml(backend)
    tripled = p.maml(backend, query_loss=lambda *arguments: p.loss(*arguments) * 3.0)
    one, three = (maml.meta_gradient(p.theta, p.tasks) for maml in (plain, tripled))
    assert_close(three.gradient, 3 * one.gradient, 1e-14)
    losses = (maml.evaluate(p.theta, p.tasks) for maml in (tripled, plain))
    assert_close(next(losses), 3 * next(losses), 1e-14)
    thetas = [maml.adapt(p.theta, *p.tasks[:2]) for maml in (plain, tripled)]
    assert np.array_equal(*thetas)


@every_backend
def test_the_query_loss_gets_the_support_examples_of_its_own_task(backend):
    p = problem_of("strided", "support")
    maml = p.maml(backend)
    both = maml.evaluate(p.theta, p.tasks)
    for task in range(2):
        alone = tm.Tasks(*(array[task : task + 1] for array in p.tasks))
        assert_close(both[task], maml.evaluate(p.theta, alone)[0], 1e-14)
    other = p.maml(backend, query_loss=None).evaluate(p.theta, p.tasks)
    assert relative_error(other, both) > 0.01
