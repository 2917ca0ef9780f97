"""Bad input to MAML: each raises one clear error with the argument and what came."""

import numpy as np
import pytest

import tinymaml as tm
from tests.support import fuzz_calls
from tests.support.maml_problems import problem
from tests.support.running import BACKENDS
from tinymaml.autodiff import functions

every_backend = pytest.mark.parametrize("backend", BACKENDS)
P = problem()  # T = 3 tasks, 4 support and 5 query examples, 2 inputs, 3 outputs
SIZE = P.theta.size


# --- the constructor ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"order": 0}, ValueError, "order: expected one of 1, 2, got 0"),
        ({"order": 3}, ValueError, "order: expected one of 1, 2, got 3"),
        ({"order": "2"}, ValueError, "order: expected one of 1, 2, got '2'"),
        ({"steps": -1}, ValueError, "steps: expected at least 0, got -1"),
        ({"steps": 1.5}, TypeError, "steps: expected a whole number, got 1.5"),
        ({"steps": True}, TypeError, "steps: expected a whole number, got True"),
        ({"steps": "3"}, TypeError, "steps: expected a whole number, got '3'"),
        ({"alpha": np.nan}, ValueError, "alpha: expected finite numbers, got NaN"),
        ({"alpha": [0.1, -np.inf]}, ValueError, "alpha: expected finite numbers"),
        ({"alpha": "0.1"}, TypeError, "alpha: expected a number or a vector"),
        ({"alpha": None}, TypeError, "alpha: expected a number or a vector"),
        ({"alpha": np.ones((2, 2))}, TypeError, "alpha: expected a number or a vector"),
        ({"alpha": True}, TypeError, "alpha: expected a number or a vector"),
        ({"alpha": 1j}, TypeError, "alpha: expected a number or a vector"),
        (
            {"reduction": "max"},
            ValueError,
            "reduction: expected one of mean, sum, got 'm",
        ),
        (
            {"step_weights": [1, 2]},
            ValueError,
            r"step_weights: expected 1 finite w.*2\]",
        ),
        ({"step_weights": 1.0}, ValueError, "step_weights: expected 1 finite weights"),
        ({"step_weights": [np.nan]}, ValueError, "step_weights: expected 1 finite wei"),
        ({"backend": "cuda"}, ValueError, "backend: expected one of .*, got 'cuda'"),
        ({"threads": 0}, ValueError, "threads: expected at least 1, got 0"),
    ],
)
def test_maml_refuses_options(options, error, message):
    with pytest.raises(error, match=message):
        P.maml(**options)


# --- theta and tasks ------------------------------------------------------------------


def changed(**arrays):
    return P.tasks._replace(**arrays)


def with_number(name, number):
    """The tasks with one number of one array replaced."""
    array = getattr(P.tasks, name).copy()
    array[1, 2, 0] = number
    return changed(**{name: array})


def calls(theta=None, tasks=None):
    """The methods of MAML that take theta and tasks."""
    theta = P.theta if theta is None else theta
    tasks = P.tasks if tasks is None else tasks
    return [
        lambda maml: maml.meta_gradient(theta, tasks),
        lambda maml: maml.evaluate(theta, tasks),
        lambda maml: maml.adapt(theta, *tasks[:2]),
    ]


X, Y, X_QUERY, Y_QUERY = P.tasks
BAD_TASKS = {
    "x with another number of tasks": (
        changed(x_query=X_QUERY[:2]),
        ValueError,
        r"x_query: .* each of 3 tasks, got \(2, 5, 2\)",
    ),
    "y with another number of examples": (
        changed(y_support=Y[:, :3]),
        ValueError,
        "y_support: expected 4 examples as in x_support, got 3",
    ),
    "query y with another number of examples": (
        changed(y_query=Y_QUERY[:, :3]),
        ValueError,
        "y_query: expected 5 examples as in x_query, got 3",
    ),
    "x with another number of features": (
        changed(x_support=X[:, :, :1]),
        ValueError,
        r"x: expected shape \(N, inputs\) with 2 inputs, got \(4, 1\)",
    ),
    "query x with another number of features": (
        changed(x_query=np.ones((3, 5, 3))),
        ValueError,
        r"x: expected shape \(N, inputs\) with 2 inputs, got \(5, 3\)",
    ),
    "y with another number of outputs": (
        changed(y_support=Y[:, :, :1]),
        ValueError,
        r"y: expected the shape of (?:prediction|logits), \(4, 3\), got \(4, 1\)",
    ),
    "no tasks": (
        tm.Tasks(*(array[:0] for array in P.tasks)),
        ValueError,
        r"x_support: .* at least one example for each of 0 tasks, got \(0, 4, 2\)",
    ),
    "no examples": (
        changed(x_support=X[:, :0], y_support=Y[:, :0]),
        ValueError,
        r"x_support: .* at least one example .*, got \(3, 0, 2\)",
    ),
    "no task axis": (
        tm.Tasks(*(array[0, :, 0] for array in P.tasks)),
        ValueError,
        r"x_support: expected shape \(tasks, examples, ...\) .*, got \(4,\)",
    ),
    "ragged tasks in lists": (
        changed(x_support=[X[0], X[1, :2], X[2]]),
        TypeError,
        "x_support: expected an array of theta's dtype, float64, got list",
    ),
    "ragged tasks in an array of objects": (
        changed(x_query=np.array([X[0], X[1, :2], X[2]], dtype=object)),
        TypeError,
        "x_query: expected an array of theta's dtype, float64, got object",
    ),
    "another dtype": (
        changed(y_support=Y.astype("float32")),
        TypeError,
        "y_support: expected an array of theta's dtype, float64, got float32",
    ),
    "whole numbers": (
        changed(y_query=Y_QUERY.astype(int)),
        TypeError,
        "y_query: expected an array of theta's dtype, float64, got int64",
    ),
}


@every_backend
@pytest.mark.parametrize("case", BAD_TASKS)
def test_maml_refuses_tasks(backend, case):
    tasks, error, message = BAD_TASKS[case]
    maml = P.maml(backend)
    for call in calls(tasks=tasks)[: 2 if "query" in message + case else 3]:
        with pytest.raises(error, match=message):
            call(maml)


@every_backend
@pytest.mark.parametrize("name", tm.Tasks._fields)
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_maml_refuses_tasks_that_are_not_finite(backend, name, number):
    maml = P.maml(backend)
    for call in calls(tasks=with_number(name, number))[: 2 if "query" in name else 3]:
        with pytest.raises(
            ValueError, match=f"^{name}: expected finite numbers, got NaN"
        ):
            call(maml)


@every_backend
@pytest.mark.parametrize("name", tm.Tasks._fields)
def test_numbers_that_no_result_shows_must_be_finite_too(backend, name):
    def hides(theta, x, x_support):  # tanh of infinity is 1
        return tm.tanh(x) * theta.sum() + x_support.sum() * 0.0

    bad = with_number(name, np.inf)
    none = P.maml(backend, steps=0)
    for call in (none.meta_gradient, none.evaluate):
        with pytest.raises(ValueError, match=f"^{name}: expected finite numbers"):
            call(P.theta, bad)
    with pytest.raises(ValueError, match=f"^{name}: expected finite numbers"):
        P.maml(backend).predict(hides, P.theta, bad)


@every_backend
@pytest.mark.parametrize(
    ("theta", "error", "message"),
    [
        (P.theta[:-1], ValueError, rf"theta: expected shape \({SIZE},\), got"),
        (P.theta[None], ValueError, r"theta: expected shape \(P,\), P > 0, got \(1,"),
        ([*P.theta], TypeError, "theta: expected a float32 or float64 array, got list"),
        (np.full(SIZE, np.nan), ValueError, "^theta: expected finite numbers, got NaN"),
        (np.full(SIZE, np.inf), ValueError, "^theta: expected finite numbers, got NaN"),
        (P.theta.astype("float32"), TypeError, "x_support: .* float32, got float64"),
        (P.theta.astype(int), TypeError, "theta: .* float32 or float64 array, got int"),
    ],
)
def test_maml_refuses_theta(backend, theta, error, message):
    maml = P.maml(backend)
    for call in calls(theta=theta):
        with pytest.raises(error, match=message):
            call(maml)


def test_maml_refuses_half_precision():
    half = P.cast("float16")
    with pytest.raises(
        TypeError, match="theta: expected a float32 or float64 array, got float16"
    ):
        P.maml().meta_gradient(half.theta, half.tasks)


def test_maml_refuses_three_arrays():
    with pytest.raises(
        ValueError, match=r"tasks: expected \(x, y\) for support and que"
    ):
        P.maml().meta_gradient(P.theta, P.tasks[:3])


@pytest.mark.parametrize("size", [1, SIZE - 1, SIZE + 1])
def test_maml_refuses_an_alpha_of_the_wrong_size(size):
    maml = P.maml(alpha=np.full(size, 0.1))
    expected = rf"alpha: expected .* shape \({SIZE},\), got shape \({size},\)"
    for call in calls():
        with pytest.raises(ValueError, match=expected):
            call(maml)


@pytest.mark.parametrize(("steps", "error"), [(-1, ValueError), (0.5, TypeError)])
def test_adapt_and_evaluate_refuse_steps(steps, error):
    maml = P.maml()
    with pytest.raises(error, match="steps: expected"):
        maml.adapt(P.theta, X, Y, steps=steps)
    with pytest.raises(error, match="steps: expected"):
        maml.evaluate(P.theta, P.tasks, steps=steps)


def test_parts_of_first_order_maml_are_refused():
    with pytest.raises(ValueError, match="parts: order=1 leaves out the corrections"):
        P.maml(order=1).meta_gradient(P.theta, P.tasks, parts=True)


# --- the loss -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda theta, x, y: theta, r"loss: expected one number .*got \(\d+,\)"),
        (lambda theta, x, y: x.mean(axis=0), r"loss: expected one number .*got \(2,\)"),
        (lambda theta, x, y: None, "loss: expected one number .*got NoneType"),
        (lambda theta, x, y: 1.0, "loss: expected one number .*got float"),
        (lambda theta, x, y: tm.Tape().input("a", (3,)).sum(), "another tape"),
        (lambda theta, x, y: x.sum() * tm.Tape().input("a", ()), "another tape"),
    ],
)
def test_maml_refuses_a_loss_that_is_not_one_number_of_its_tape(loss, message):
    maml = tm.MAML(loss, backend="numpy")
    for call in calls():
        with pytest.raises(ValueError, match=message):
            call(maml)


@every_backend
def test_overflow_of_finite_input_is_returned_and_not_blamed_on_it(backend):
    maml = P.maml(backend, alpha=1e200, steps=3)
    result = maml.meta_gradient(P.theta, P.tasks)
    assert not np.isfinite(result.losses).all()


@every_backend
def test_maml_works_on_after_a_refusal(backend):
    maml = P.maml(backend)
    before = maml.meta_gradient(P.theta, P.tasks).gradient
    with pytest.raises(ValueError, match="x_support: expected finite"):
        maml.meta_gradient(P.theta, with_number("x_support", np.nan))
    assert np.array_equal(maml.meta_gradient(P.theta, P.tasks).gradient, before)


# --- options changed after construction -----------------------------------------------


def test_a_changed_order_or_alpha_is_not_answered_from_the_cache():
    theta, tasks = P.theta, tuple(P.tasks)
    maml = P.maml(alpha=0.1, backend="numpy")
    exact = maml.meta_gradient(theta, tasks).gradient
    maml.order = 1
    first = maml.meta_gradient(theta, tasks).gradient
    assert np.abs(exact - first).max() > 1e-6
    maml.order, maml.alpha = 2, 0.0
    plain = P.maml(alpha=0.0, backend="numpy").meta_gradient(theta, tasks).gradient
    np.testing.assert_array_equal(maml.meta_gradient(theta, tasks).gradient, plain)
    with pytest.raises(ValueError, match="alpha: expected finite numbers"):
        maml.alpha = float("nan")


# --- random calls ---------------------------------------------------------------------


def test_every_bad_call_is_answered_by_one_line_that_names_an_argument():
    """The long form: python -m tests.support.fuzz_calls 10000."""
    ends, complaints = fuzz_calls.fuzz(3000)
    assert not complaints, "\n".join(complaints)
    assert min(ends["returned"], ends["TypeError"], ends["ValueError"]) > 300


def test_a_foreign_error_would_be_noticed(monkeypatch):
    monkeypatch.setattr(functions, "check_values", lambda **_: None)
    _, complaints = fuzz_calls.fuzz(300)
    assert any("AttributeError" in complaint for complaint in complaints)
