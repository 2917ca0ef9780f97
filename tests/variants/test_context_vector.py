"""Context vectors: what the network sees, what adapts, and the exact meta-gradient.

Only z is adapted, but all parameters are learned: the Hessian's mixed blocks, between z
and the weights, decide what the outer loop does.
"""

import numpy as np
import pytest

import tinymaml as tm
from tests.support.image_problems import image_problem, on_numbers, random
from tests.support.maml_problems import (
    Problem,
    assert_is_gradient_of,
    by_dense_hessians,
    by_recursion,
    by_reverse_over_reverse,
)
from tests.support.running import BACKENDS, assert_close, difference
from tinymaml.networks.images import ImageNetwork
from tinymaml.variants.context_vector import Context, OmniglotContext

every_backend = pytest.mark.parametrize("backend", BACKENDS)
X, Z = 3, 2  # inputs, and numbers of the context


class ContextImages(ImageNetwork):
    """A small network of images of which a recipe would adapt the context alone."""

    adapted_only = OmniglotContext.adapted_only


def context_problem():
    """A small network (x, z) -> 4 -> 2 in float64, and the alpha that moves z alone."""
    network = tm.Network([Context(Z), *tm.MLP([X + Z, 4, 2], "tanh").layers])

    def loss(theta, x, y):
        return tm.squared_error(network(theta, x), y)

    tasks = tm.Tasks(*(random(3, n, c, seed=n + c) for n in (5, 6) for c in (X, 2)))
    theta = network.init(np.random.default_rng(0), "float64")
    alpha = network.vector(0.0, "float64", **{"context1.z": 0.3})
    return Problem(loss, theta + 0.3 * random(network.size), tasks), alpha


# --- what the network sees ------------------------------------------------------------


@every_backend
@pytest.mark.parametrize("sizes", [(), (1,), (2, 3)], ids=str)
@pytest.mark.parametrize(("channels", "free"), [(3, 2), (1, 1), (1, 4), (4, 1)])
def test_context_vector_stands_behind_the_inputs_of_every_example(
    backend, sizes, channels, free
):
    x, z = random(5, *sizes, channels), random(*sizes, free, seed=1)
    layer = Context(*z.shape)
    joined = on_numbers(lambda x, z: layer([z], x), x, z, backend=backend)
    repeated = np.broadcast_to(z, (5, *z.shape))
    assert np.array_equal(joined, np.concatenate([x, repeated], axis=-1))


def test_a_network_without_weights_for_the_context_is_the_one_without_a_context():
    plain, network = tm.OmniglotConv(5), OmniglotContext(5)
    theta, images = (
        plain.init(np.random.default_rng(0), "float64"),
        random(3, 28, 28, 1),
    )
    span, shape = network.layout["conv2d1.weight"]
    both = np.zeros(shape)
    both[:, :, :1] = theta[: 9 * 64].reshape(3, 3, 1, 64)
    z = random(28 * 28, seed=1)
    whole = np.concatenate([z, both.ravel(), theta[9 * 64 :]])
    assert_close(network.predict(whole, images), plain.predict(theta, images), 1e-13)
    whole[span] = random(both.size, seed=2)
    assert np.ptp(network.predict(whole, images) - plain.predict(theta, images)) > 0.1


def test_the_context_starts_at_zero_and_draws_no_random_numbers():
    plain = tm.MLP([X + Z, 4, 2])
    network = tm.Network([Context(Z), *plain.layers])
    theta = network.init(np.random.default_rng(0))
    assert theta[:Z].tolist() == [0.0, 0.0]
    assert np.array_equal(theta[Z:], plain.init(np.random.default_rng(0)))


# --- what adapts ----------------------------------------------------------------------


@every_backend
def test_inner_steps_move_the_context_and_no_weight(backend):
    p, alpha = context_problem()
    thetas = p.maml(backend, alpha).adapt(p.theta, *p.tasks[:2], steps=3)
    assert np.array_equal(
        thetas[:, :, Z:], np.broadcast_to(p.theta[Z:], (3, 4, p.theta.size - Z))
    )
    assert (np.abs(np.diff(thetas[:, :, :Z], axis=1)) > 1e-4).all()


@pytest.mark.parametrize("mode", ["batch", "support"])
def test_the_recipes_of_table_3_adapt_the_context_alone(mode):
    recipe = tm.RECIPES["context-5w1s"]
    network = recipe.network(mode)
    alpha = recipe.maml(network, backend="numpy").alpha
    span, shape = network.layout["context1.z"]
    assert shape == (28, 28, 1) and (alpha[span] == 0.4).all()
    assert np.count_nonzero(alpha) == 28 * 28


# --- the meta-gradient ----------------------------------------------------------------


@every_backend
def test_a_linear_model_has_the_meta_gradient_computed_by_hand(backend):
    """f(x) = x w + z u + b, one inner step of alpha on z, mean squared error.

    With support residuals r and their mean m, the gradient in z is 2 m u. So
    z' = z - 2 alpha m u, and z' u = z u - c m with c = 2 alpha |u|^2: the adapted model
    is x w + z u + b - c m.
    """
    network = tm.Network([Context(Z), tm.Linear(X + Z, 1)])
    theta, alpha = random(network.size, seed=4) + 1, 0.1
    z, w, u, b = np.split(theta, [Z, Z + X, Z + X + Z])
    xs, ys, xq, yq = tasks = [
        random(1, n, c, seed=n + c) + 1 for n in (5, 6) for c in (X, 1)
    ]
    m = (xs[0] @ w + z @ u + b - ys[0, :, 0]).mean()
    c, mean_x = 2 * alpha * u @ u, xs[0].mean(axis=0)
    residuals = xq[0] @ w + z @ u + b - c * m - yq[0, :, 0]
    mean = residuals.mean()
    of_w = 2 * (residuals[:, None] * (xq[0] - c * mean_x)).mean(axis=0)
    of_u = 2 * mean * (z - c * z - 4 * alpha * m * u)
    of_z, of_b = 2 * mean * (1 - c) * u, [2 * mean * (1 - c)]
    by_hand = np.concatenate([of_z, of_w, of_u, of_b])

    def loss(theta, x, y):
        return tm.squared_error(network(theta, x), y)

    p = Problem(loss, theta, tm.Tasks(*tasks))
    vector = network.vector(0.0, "float64", **{"context1.z": alpha})
    result = p.maml(backend, vector).meta_gradient(theta, p.tasks)
    assert_close(result.gradient, by_hand, 1e-13)
    assert_close(result.losses, [(residuals**2).mean()], 1e-13)
    first_order = by_recursion(p, 1, vector, backend, order=1)
    for span, _ in network.layout.values():
        term = np.linalg.norm((first_order - by_hand)[span])
        assert term > 0.1 * np.linalg.norm(by_hand[span])


@every_backend
@pytest.mark.parametrize("steps", [1, 3])
def test_the_meta_gradient_in_all_parameters_agrees_by_four_routes(backend, steps):
    p, alpha = context_problem()
    gradient = by_recursion(p, steps, alpha, backend)
    assert_close(gradient, by_reverse_over_reverse(p, steps, alpha, backend), 1e-12)
    exact, first_order, corrections = by_dense_hessians(p, steps, alpha)
    assert_close(gradient, exact, 1e-12)
    assert_is_gradient_of(gradient, lambda t: p.objective(t, alpha, steps)[-1], p.theta)
    # The weights have no learning rate of their own, yet they have a Hessian term.
    size = np.linalg.norm(corrections[:, Z:].sum(axis=0))
    assert size > 0.05 * np.linalg.norm(exact[Z:])
    assert np.linalg.norm(gradient - first_order) > 0.05 * np.linalg.norm(exact)


def test_the_hessian_term_is_how_the_support_gradient_changes_along_the_context():
    p, alpha = context_problem()
    exact, first_order = (by_recursion(p, 1, alpha, order=order) for order in (2, 1))
    maml, expected = p.maml(alpha=1.0), np.zeros(p.theta.size)
    for task in range(3):
        one = tm.Tasks(*(array[task : task + 1] for array in p.tasks))
        v = Problem(p.loss, p.theta, one).maml(alpha=alpha, order=1)
        direction = alpha * v.meta_gradient(p.theta, one).gradient
        assert np.count_nonzero(direction) == Z

        def support_gradient(theta, one=one):
            return theta - maml.adapt(theta, *one[:2], steps=1)[0, 1]

        expected += difference(support_gradient, p.theta, direction)
    assert_close(first_order - exact, expected, 1e-9)


@every_backend
@pytest.mark.parametrize("mode", ["batch", "support"])
def test_an_image_networks_meta_gradient_matches_finite_differences(backend, mode):
    network = ContextImages(
        [
            Context(5, 5, 2),
            tm.Conv2d(4, 3, stride=2),
            tm.BatchNorm(3, mode),
            tm.Activation("tanh"),
            tm.MeanPool(),
            tm.Flatten(),
            tm.Linear(3, 3),
        ]
    )
    p = image_problem(network)

    def objective(theta):
        return p.maml(steps=2, alpha=2.0).evaluate(theta, p.tasks)[:, -1].sum()

    exact, first_order = (
        p.maml(backend, steps=2, alpha=2.0, order=order).meta_gradient(p.theta, p.tasks)
        for order in (2, 1)
    )
    assert_is_gradient_of(exact.gradient, objective, p.theta)
    weights = slice(network.layout["context1.z"][0].stop, None)
    term = np.linalg.norm((exact.gradient - first_order.gradient)[weights])
    assert term > 0.01 * np.linalg.norm(exact.gradient[weights])


# --- refusals -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "error", "message"),
    [
        ((), ValueError, r"^shape: expected at least one size, got \(\)"),
        ((0,), ValueError, "^shape: expected at least 1, got 0"),
        ((2.0,), TypeError, "^shape: expected a whole number, got 2.0"),
        (((28, 28, 1),), TypeError, "^shape: expected a whole number"),
    ],
)
def test_a_shape_that_is_none_is_refused(shape, error, message):
    with pytest.raises(error, match=message):
        Context(*shape)


@pytest.mark.parametrize(
    ("shape", "x", "expected"),
    [
        ((2,), (5,), "shape (N, C)"),
        ((2,), (5, 3, 1), "shape (N, C)"),
        ((4, 4, 1), (5, 3, 4, 1), "shape (N, 4, 4, C)"),
        ((4, 4, 1), (4, 4, 1), "shape (N, 4, 4, C)"),
    ],
)
def test_examples_of_another_shape_are_refused(shape, x, expected):
    tape = tm.Tape()
    z = tape.input("z", shape)
    with pytest.raises(ValueError) as caught:
        Context(*shape)([z], tape.input("x", x))
    assert str(caught.value) == f"x: expected {expected}, got {x}"


def test_an_array_is_refused():
    z = tm.Tape().input("z", (2,))
    with pytest.raises(TypeError, match="^x: expected a Value of a tape, got an array"):
        Context(2)([z], np.zeros((5, 3)))
