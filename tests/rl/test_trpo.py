"""Conjugate gradients, and a line search that never accepts a harmful step."""

import inspect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinymaml.rl.advantages import advantages
from tinymaml.rl.maml_trpo import MAMLTRPO
from tinymaml.rl.trpo import conjugate_gradient, trust_region_step


def positive_definite(rng, size, spread=10.0):
    """A random symmetric matrix with eigenvalues between 1 and `spread`."""
    basis, _ = np.linalg.qr(rng.standard_normal((size, size)))
    return basis * rng.uniform(1, spread, size) @ basis.T


@given(st.integers(0, 10**6), st.integers(1, 12))
def test_conjugate_gradients_solve_positive_definite_systems(seed, size):
    rng = np.random.default_rng(seed)
    a, b = positive_definite(rng, size), rng.standard_normal(size)
    x = conjugate_gradient(lambda v: a @ v, b, iterations=2 * size, tolerance=1e-24)
    np.testing.assert_allclose(x, np.linalg.solve(a, b), rtol=1e-7, atol=1e-9)


@given(st.integers(0, 10**6))
def test_each_iteration_is_nearer_in_the_norm_of_the_matrix(seed):
    rng = np.random.default_rng(seed)
    a, b = positive_definite(rng, 8), rng.standard_normal(8)
    exact = np.linalg.solve(a, b)
    errors = []
    for iterations in range(1, 7):
        away = conjugate_gradient(lambda v: a @ v, b, iterations) - exact
        errors.append(away @ a @ away)
    assert all(
        later <= sooner + 1e-12
        for sooner, later in zip(errors[:-1], errors[1:], strict=True)
    )


def test_conjugate_gradients_cost_one_product_an_iteration_and_stop_at_tolerance():
    rng = np.random.default_rng(0)
    a, b = positive_definite(rng, 9), rng.standard_normal(9)
    vectors = []

    def product(v):
        vectors.append(v)
        return a @ v

    conjugate_gradient(product, b, iterations=3)
    assert len(vectors) == 3
    vectors.clear()
    conjugate_gradient(product, b, iterations=100, tolerance=1e-10)
    assert len(vectors) < 20
    vectors.clear()
    assert (conjugate_gradient(product, np.zeros(9)) == 0).all() and not vectors


@given(st.integers(0, 10**6), st.integers(1, 4))
def test_singular_systems_are_solved_where_they_can_be(seed, rank):
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.standard_normal((6, 6)))
    a = basis[:, :rank] * rng.uniform(1, 3, rank) @ basis[:, :rank].T
    b = a @ rng.standard_normal(6)
    x = conjugate_gradient(lambda v: a @ v, b, iterations=50, tolerance=1e-20)
    np.testing.assert_allclose(a @ x, b, atol=1e-7)
    # There is no solution if b is not in the range of A. The solver must stop, and its
    # result must be finite.
    outside = b + basis[:, -1]
    assert np.isfinite(conjugate_gradient(lambda v: a @ v, outside, 50)).all()


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_no_curvature_no_step(value):
    b = np.array([1.0, 2.0])
    assert (conjugate_gradient(lambda v: value * v, b) == 0).all()


def test_curvature_along_the_solution_is_its_product_with_b():
    rng = np.random.default_rng(0)
    a, b = positive_definite(rng, 20, 1000.0), rng.standard_normal(20)
    for iterations in (1, 5, 10):
        x = conjugate_gradient(lambda v: a @ v, b, iterations)
        assert x @ a @ x == pytest.approx(x @ b, rel=1e-8)


def test_bad_systems_are_refused_by_name():
    with pytest.raises(ValueError, match="^b: expected a finite vector"):
        conjugate_gradient(lambda v: v, np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match="^iterations: expected at least 1, got 0"):
        conjugate_gradient(lambda v: v, np.ones(2), iterations=0)


def test_curvature_along_the_solution_of_float32_products_is_that_but_for_rounding():
    rng = np.random.default_rng(0)
    a, b = positive_definite(rng, 20, 1000.0), rng.standard_normal(20)
    rough = a.astype("float32")
    x = conjugate_gradient(lambda v: rough @ v.astype("float32"), b, 10)
    assert x @ a @ x == pytest.approx(x @ b, rel=0.02)


# --- the step -------------------------------------------------------------------------


CONSTANTS = {
    "discount": 0.99,
    "decay": 1.0,
    "max_kl": 0.01,
    "iterations": 10,
    "damping": 1e-5,
    "shorten": 0.8,
    "tries": 15,
}


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (MAMLTRPO, "discount decay max_kl iterations damping"),
        (advantages, "discount decay"),
        (trust_region_step, "max_kl iterations damping shorten tries"),
        (conjugate_gradient, "iterations"),
    ],
)
def test_defaults_are_the_constants_of_the_authors_code(function, names):
    parameters = inspect.signature(function).parameters
    for name in names.split():
        assert parameters[name].default == CONSTANTS[name], name


class Quadratic:
    """A loss with gradient g at 0, and a divergence v F v / 2 away from 0."""

    def __init__(self, seed=0, size=5, curvature=0.0):
        rng = np.random.default_rng(seed)
        self.f = positive_definite(rng, size)
        self.g = rng.standard_normal(size)
        self.curvature = curvature
        self.theta = np.zeros(size)

    loss = 0.0  # at theta

    def loss_and_kl(self, theta):
        loss = self.g @ theta + self.curvature / 2 * theta @ theta
        return float(loss), float(theta @ self.f @ theta / 2)

    def step(self, **options):
        options = {"damping": 0.0, **options}
        return trust_region_step(
            self.theta,
            self.loss,
            self.g,
            lambda v: self.f @ v,
            self.loss_and_kl,
            **options,
        )


def test_the_first_length_reaches_the_bound_along_the_natural_gradient():
    problem = Quadratic()
    step = problem.step(max_kl=0.01, shorten=0.8)
    natural = np.linalg.solve(problem.f, problem.g)
    cosine = step.theta @ natural / np.linalg.norm(step.theta) / np.linalg.norm(natural)
    assert cosine == pytest.approx(-1)
    # the model is exact here, so only rounding may cost a backtrack
    assert step.accepted and step.backtracks <= 1
    assert step.kl == pytest.approx(0.01 * 0.8 ** (2 * step.backtracks))


@given(
    seed=st.integers(0, 10**6),
    curvature=st.floats(-5, 2000),
    bias=st.floats(0.2, 50),
    max_kl=st.floats(1e-4, 1.0),
)
def test_no_step_is_accepted_that_worsens_the_loss_or_breaks_the_bound(
    seed, curvature, bias, max_kl
):
    problem = Quadratic(seed, curvature=curvature)
    honest = problem.loss_and_kl

    def loss_and_kl(theta):  # the divergence is not what the product says
        loss, kl = honest(theta)
        return loss, bias * kl

    problem.loss_and_kl = loss_and_kl
    step = problem.step(max_kl=max_kl)
    before, _ = loss_and_kl(problem.theta)
    loss, kl = loss_and_kl(step.theta)
    if step.accepted:
        assert loss < before and kl <= max_kl
        assert step.improvement == before - loss and step.kl == kl
    else:
        assert (step.theta == problem.theta).all()
        assert step.reason and step.improvement == step.kl == 0.0


def test_backtracking_shortens_until_the_loss_falls():
    problem = Quadratic(curvature=5.0)
    step = problem.step(max_kl=30.0)
    assert step.accepted and step.backtracks > 2
    natural = np.linalg.solve(problem.f, problem.g)
    full = np.sqrt(2 * 30.0 / (natural @ problem.f @ natural)) * natural
    np.testing.assert_allclose(step.theta, -(0.8**step.backtracks) * full, rtol=1e-6)
    longer = -(0.8 ** (step.backtracks - 1)) * full
    loss, kl = problem.loss_and_kl(longer)
    assert loss >= 0 or kl > 30.0


@pytest.mark.parametrize(
    ("loss_and_kl", "reason"),
    [
        (lambda theta: (1.0, 0.0), "none of 15 lengths"),  # never better
        (lambda theta: (0.0, 0.0), "none of 15 lengths"),  # nor is as good enough
        (lambda theta: (-float(theta.any()), 1.0), "none of 15 lengths"),  # too far
        (lambda theta: (np.nan, 0.0), "none of 15 lengths"),
        (lambda theta: (-float(theta.any()), np.nan), "none of 15 lengths"),
        (lambda theta: (-float(theta.any()), -5.0), "none of 15 lengths"),
        (lambda theta: (-float(theta.any()), -1e-3), "none of 15 lengths"),
    ],
)
def test_a_step_that_fails_leaves_theta_unchanged(loss_and_kl, reason):
    problem = Quadratic()
    problem.theta = np.zeros(5, np.float32)
    problem.loss_and_kl = loss_and_kl
    step = problem.step()
    assert not step.accepted and reason in step.reason
    assert step.backtracks == 15
    assert step.theta.tobytes() == problem.theta.tobytes()
    assert step.theta is not problem.theta


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_divergence_below_0_by_rounding_is_none_and_no_obstacle(dtype):
    problem = Quadratic()
    problem.theta = problem.theta.astype(dtype)
    rounding = -float(np.finfo(dtype).eps)
    problem.loss_and_kl = lambda theta: (-1.0, rounding)
    step = problem.step()
    assert step.accepted and step.kl == rounding


def test_the_loss_at_theta_is_the_one_given_and_not_computed_again():
    problem = Quadratic()
    thetas, honest = [], problem.loss_and_kl

    def loss_and_kl(theta):
        thetas.append(theta)
        return honest(theta)

    problem.loss_and_kl, problem.loss = loss_and_kl, 0.5
    step = problem.step()
    assert step.improvement == 0.5 - honest(step.theta)[0]
    assert len(thetas) == step.backtracks + 1 and all(theta.any() for theta in thetas)
    problem.loss = -1e9
    assert not problem.step().accepted


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"g": np.full(5, np.nan)}, "the loss or its gradient is not finite"),
        ({"loss": np.nan}, "the loss or its gradient is not finite"),
        ({"g": np.zeros(5)}, "the gradient is 0, or too short"),
        ({"g": np.full(5, 4e-6)}, "the gradient is 0, or too short"),
        ({"f": np.zeros((5, 5))}, "the curvature along the direction is 0"),
        ({"f": -np.eye(5)}, "the curvature along the direction is 0"),
    ],
)
def test_no_gradient_or_no_curvature_is_a_step_that_fails(change, reason):
    problem = Quadratic()
    for name, value in change.items():
        setattr(problem, name, value)
    step = problem.step()
    assert not step.accepted and step.reason.startswith(reason)
    assert (step.theta == 0).all()


def test_damping_is_added_to_the_product():
    problem = Quadratic()
    step = problem.step(damping=3.0, iterations=50)
    natural = np.linalg.solve(problem.f + 3 * np.eye(5), problem.g)
    cosine = step.theta @ natural / np.linalg.norm(step.theta) / np.linalg.norm(natural)
    assert cosine == pytest.approx(-1)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"max_kl": 0}, "max_kl: expected a positive number, got 0"),
        ({"max_kl": np.nan}, "max_kl: expected a positive number, got nan"),
        ({"damping": -1}, "damping: expected a number of at least 0, got -1"),
        ({"shorten": 1.0}, "shorten: expected a number in .0, 1., got 1.0"),
        ({"tries": 0}, "tries: expected at least 1, got 0"),
        ({"iterations": 0}, "iterations: expected at least 1, got 0"),
    ],
)
def test_bad_settings_are_refused_by_name(options, complaint):
    with pytest.raises(ValueError, match=f"^{complaint}"):
        Quadratic().step(**options)


@pytest.mark.parametrize("name", ["max_kl", "damping", "shorten"])
@pytest.mark.parametrize("bad", ["a", None, True])
def test_settings_that_are_no_numbers_are_refused_by_name(name, bad):
    with pytest.raises(TypeError, match=f"^{name}: expected a number, got {bad!r}"):
        Quadratic().step(**{name: bad})


@pytest.mark.parametrize(
    ("change", "error", "complaint"),
    [
        (
            {"theta": [0.0] * 5},
            TypeError,
            "theta: expected a float32 or float64 array, got list",
        ),
        (
            {"theta": np.zeros(5, int)},
            TypeError,
            "theta: expected a float32 or float64 array",
        ),
        ({"theta": np.zeros((1, 5))}, ValueError, "theta: expected shape .5,."),
        ({"theta": np.full(5, np.inf)}, ValueError, "theta: expected finite numbers"),
        ({"g": np.ones(4)}, ValueError, "gradient: expected theta's shape, .5,., got"),
        ({"g": np.ones((5, 1))}, ValueError, "gradient: expected theta's shape"),
        ({"loss": None}, TypeError, "loss: expected a number, got None"),
    ],
)
def test_bad_points_are_refused_by_name(change, error, complaint):
    problem = Quadratic()
    for name, value in change.items():
        setattr(problem, name, value)
    with pytest.raises(error, match=f"^{complaint}"):
        problem.step()
