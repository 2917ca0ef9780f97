"""The paper's supervised losses: cases by hand, other formulas, scalings, extremes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

import tinymaml as tm
from tests.support.running import BACKENDS, DTYPES, assert_close, run_tape
from tinymaml.autodiff.derivatives import grad

every_backend = pytest.mark.parametrize("backend", BACKENDS)
seeds = st.integers(0, 2**16)
sizes = st.tuples(st.integers(1, 6), st.integers(1, 5))


def evaluate(loss, prediction, y, backend="numpy", dtype="float64", **options):
    """Loss and its gradient with respect to the prediction."""
    tape = tm.Tape()
    inputs = {"prediction": np.asarray(prediction), "y": np.asarray(y)}
    values = [tape.input(name, array.shape) for name, array in inputs.items()]
    value = loss(*values, **options)
    tape.output("loss", value)
    tape.output("gradient", grad(value, values[0]))
    results = run_tape(tape, inputs, backend, dtype)
    return results["loss"][0], results["gradient"][0]


# --- squared error --------------------------------------------------------------------

# errors 1, 0, 2, -2, -3, 0: their squares add up to 18
PREDICTION = [[1.0, 2.0], [3.0, -1.0], [0.0, 0.0]]
TARGET = [[0.0, 2.0], [1.0, 1.0], [3.0, 0.0]]


@every_backend
def test_maml_eq2_is_the_hand_computed_one(backend):
    total, gradient = evaluate(
        tm.squared_error, PREDICTION, TARGET, backend, scaling="sum"
    )
    assert total == 18.0
    assert gradient.tolist() == [[2, 0], [4, -4], [-6, 0]]
    mean, gradient = evaluate(tm.squared_error, PREDICTION, TARGET, backend)
    assert mean == 3.0
    assert_close(gradient, np.array([[2, 0], [4, -4], [-6, 0]]) / 6, 1e-15)


@given(size=sizes, seed=seeds)
def test_maml_eq2_sums_the_squared_norms_of_the_errors(size, seed):
    f, y = np.random.default_rng(seed).standard_normal((2, *size))
    expected = sum(np.linalg.norm(row) ** 2 for row in f - y)
    assert_close(evaluate(tm.squared_error, f, y, scaling="sum")[0], expected, 1e-14)
    assert_close(evaluate(tm.squared_error, f, y)[0], expected / f.size, 1e-14)


# --- cross-entropy --------------------------------------------------------------------


@every_backend
def test_maml_eq3_is_the_hand_computed_one(backend):
    # softmax of (0, log 3) is (1/4, 3/4): -log 3/4 and -log 1/4
    logits = [[0.0, np.log(3)], [0.0, np.log(3)]]
    total, gradient = evaluate(
        tm.cross_entropy, logits, [[0, 1], [1, 0]], backend, scaling="sum"
    )
    assert_close(total, np.log(4 / 3) + np.log(4), 1e-15)
    assert_close(gradient, [[0.25, -0.25], [-0.75, 0.75]], 1e-15)


@given(size=sizes, seed=seeds, hard=st.booleans())
def test_maml_eq3_is_minus_y_times_log_softmax(size, seed, hard):
    rng = np.random.default_rng(seed)
    logits = 3 * rng.standard_normal(size)
    y = np.eye(size[1])[rng.integers(0, size[1], size[0])] if hard else rng.random(size)
    expected = -(y * special.log_softmax(logits, axis=1)).sum()
    total, gradient = evaluate(tm.cross_entropy, logits, y, scaling="sum")
    assert_close(total, expected, 1e-13, floor=1.0)
    expected = special.softmax(logits, axis=1) * y.sum(axis=1, keepdims=True) - y
    assert_close(gradient, expected, 1e-13, floor=1.0)
    mean, _ = evaluate(tm.cross_entropy, logits, y)
    assert_close(mean, total / size[0], 1e-15)


@every_backend
@pytest.mark.parametrize("dtype", DTYPES)
def test_maml_eq3_of_extreme_logits_is_finite_and_right(backend, dtype):
    logits = np.array([[1000.0, 0.0, -1000.0], [-5000.0, -5000.0, -4990.0]])
    y = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    total, gradient = evaluate(
        tm.cross_entropy, logits, y, backend, dtype, scaling="sum"
    )
    tolerance = 1e-6 if dtype == "float32" else 1e-12
    expected = -(y * special.log_softmax(logits, axis=1)).sum()
    assert_close(total, expected, tolerance)
    assert_close(gradient, special.softmax(logits, axis=1) - y, tolerance)


# --- scalings and refusals ------------------------------------------------------------


def test_per_shot_divides_the_sum_by_the_shots():
    logits, y = np.zeros((6, 3)), np.tile(np.eye(3), (2, 1))  # 3 ways, 2 shots
    total, _ = evaluate(tm.cross_entropy, logits, y, scaling="sum")
    shot, gradient = evaluate(tm.cross_entropy, logits, y, scaling="per_shot", shots=2)
    mean, mean_gradient = evaluate(tm.cross_entropy, logits, y)
    assert total == pytest.approx(6 * np.log(3))
    assert shot == pytest.approx(total / 2)
    assert_close(gradient, 3 * mean_gradient, 1e-15)  # larger by the number of ways
    assert shot == pytest.approx(3 * mean)


@pytest.mark.parametrize(
    ("loss", "shapes", "options", "message"),
    [
        (
            tm.squared_error,
            [(4, 1), (4, 2)],
            {},
            r"y: expected .*\(4, 1\), got \(4, 2\)",
        ),
        (tm.squared_error, [(4, 1), (4,)], {}, r"y: expected .*\(4, 1\), got \(4,\)"),
        (tm.squared_error, [(4,), (4,)], {}, r"prediction: expected .*\(N, outputs\)"),
        (
            tm.cross_entropy,
            [(4, 3), (4, 1)],
            {},
            r"y: expected .*\(4, 3\), got \(4, 1\)",
        ),
        (
            tm.cross_entropy,
            [(4, 3), (4, 3)],
            {"scaling": "max"},
            "scaling: expected one of mean, sum, per_shot, got 'max'",
        ),
        (
            tm.cross_entropy,
            [(4, 3), (4, 3)],
            {"scaling": "per_shot"},
            "shots: 'per_shot' needs the number K, got None",
        ),
        (
            tm.cross_entropy,
            [(4, 3), (4, 3)],
            {"scaling": "per_shot", "shots": 0},
            "shots: expected at least 1, got 0",
        ),
    ],
)
def test_losses_refuse(loss, shapes, options, message):
    tape = tm.Tape()
    values = [tape.input(name, shape) for name, shape in zip("fy", shapes, strict=True)]
    with pytest.raises(ValueError, match=message):
        loss(*values, **options)


def test_squared_error_refuses_per_shot_because_it_has_no_shots():
    tape = tm.Tape()
    f, y = tape.input("f", (4, 1)), tape.input("y", (4, 1))
    with pytest.raises(ValueError, match="shots|scaling"):
        tm.squared_error(f, y, scaling="per_shot")


@pytest.mark.parametrize("loss", [tm.policy_gradient_loss, tm.surrogate_loss])
def test_losses_of_policies_refuse_other_shapes(loss):
    """(N, 1) beside (N,) would broadcast to (N, N)."""
    tape = tm.Tape()
    vector, column = tape.input("vector", (4,)), tape.input("column", (4, 1))
    count = 3 if loss is tm.policy_gradient_loss else 4
    for i in range(1, count):
        values = [vector] * count
        values[i] = column
        with pytest.raises(ValueError, match=r"^\w+: expected the shape of log_prob"):
            loss(*values)
    with pytest.raises(ValueError, match=r"^log_probability: expected shape \(N,\)"):
        loss(*[column] * count)


@pytest.mark.parametrize("shots", [True, 1.5, "5", float("nan")])
def test_cross_entropy_refuses_shots_that_are_no_whole_number(shots):
    tape = tm.Tape()
    values = [tape.input(name, (4, 3)) for name in "fy"]
    with pytest.raises(TypeError, match="^shots: expected a whole number"):
        tm.cross_entropy(*values, scaling="per_shot", shots=shots)


@pytest.mark.parametrize("loss", [tm.squared_error, tm.cross_entropy])
def test_losses_refuse_arrays_by_name(loss):
    y = tm.Tape().input("y", (4, 3))
    with pytest.raises(TypeError, match="^y: expected a Value of a tape, got an array"):
        loss(y, np.ones((4, 3)))
    with pytest.raises(TypeError, match="^(prediction|logits): .*got an array"):
        loss(np.ones((4, 3)), y)
