"""Checks of arguments: what passes, and the one-line message of everything else."""

import ast
import inspect
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinymaml import checks
from tinymaml.checks import (
    check_alpha,
    check_arrays,
    check_choice,
    check_dtype,
    check_finite,
    check_fractions,
    check_inputs,
    check_numbers,
    check_sizes,
    check_step_weights,
    check_tasks,
    check_that,
    check_theta,
    check_threads,
    whole_number,
)

NAN, INF = float("nan"), float("inf")


def refused(error, message, check, *arguments, **options):
    """The check raises this error, with exactly this message."""
    with pytest.raises(error) as caught:
        check(*arguments, **options)
    assert str(caught.value) == message


def test_the_file_imports_nothing_of_the_package():
    for node in ast.walk(ast.parse(inspect.getsource(checks))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0 and not node.module.startswith("tinymaml")
        if isinstance(node, ast.Import):
            assert not any(name.name.startswith("tinymaml") for name in node.names)


def test_what_does_not_fit_is_told_in_one_form():
    assert check_that(True, "clip", "a number", None) is None
    assert check_that(np.True_, "clip", "a number", None) is None
    for no in (False, np.False_, (), None):
        message = "clip: expected a number or None, got [1]"
        refused(ValueError, message, check_that, no, "clip", "a number or None", [1])


# --- numbers and names ----------------------------------------------------------------


@given(st.integers(-5, 5), st.integers(-5, 5))
def test_a_whole_number_is_at_least_the_least(number, least):
    if number >= least:
        assert whole_number("n", number, least) == number
    else:
        message = f"n: expected at least {least}, got {number}"
        refused(ValueError, message, whole_number, "n", number, least)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int64, np.uint64])
def test_integers_of_numpy_become_ints(kind):
    assert type(whole_number("n", kind(3))) is int
    assert whole_number("n", kind(3)) == 3


WHOLE_IN_VALUE_ONLY = [1.0, np.float64(2), np.array(3), "3", None, NAN, INF, 1j, [1]]


@pytest.mark.parametrize("value", [True, False, np.True_, *WHOLE_IN_VALUE_ONLY])
def test_a_whole_number_is_an_int_and_no_bool(value):
    message = f"steps: expected a whole number, got {value!r}"
    refused(TypeError, message, whole_number, "steps", value, 0)
    refused(TypeError, message, check_sizes, shots=1, steps=value)


def test_sizes_are_whole_numbers_of_at_least_one():
    check_sizes()
    check_sizes(ways=5, shots=np.int32(1))
    refused(ValueError, "shots: expected at least 1, got 0", check_sizes, shots=0)
    refused(ValueError, "b: expected at least 1, got -2", check_sizes, a=1, b=-2)


def test_sizes_are_returned_as_ints_so_that_small_integers_do_not_overflow():
    sizes = check_sizes(ways=np.uint8(5), shots=3)
    assert sizes == [5, 3] and [*map(type, sizes)] == [int, int]


def test_numbers_are_real_and_no_bools():
    check_numbers(a=1, b=0.5, c=np.float32(2), d=np.int64(3), e=NAN, f=-INF)
    for value in (True, np.True_, 1j, "1", None, np.ones(1), [1.0]):
        message = f"a: expected a number, got {value!r}"
        refused(TypeError, message, check_numbers, a=value)
        refused(TypeError, message, check_fractions, a=value)


def test_fractions_are_from_0_to_1():
    check_fractions(a=0, b=1, c=0.5, d=np.float32(1), e=0.0)
    for value in (-1e-9, 1 + 1e-9, 2, INF, -INF, NAN):
        message = f"discount: expected a number in [0, 1], got {value}"
        refused(ValueError, message, check_fractions, ok=0.5, discount=value)


def test_threads_are_a_whole_number_or_the_default():
    assert check_threads(None, 7) == 7
    assert check_threads(3, 7) == 3 and type(check_threads(np.int8(3), 7)) is int
    refused(ValueError, "threads: expected at least 1, got 0", check_threads, 0, 7)
    refused(
        TypeError, "threads: expected a whole number, got 2.0", check_threads, 2.0, 7
    )


def test_a_choice_is_one_of_the_names():
    check_choice("mode", "a", ("a", "b"))
    check_choice("mode", "b", {"a": 1, "b": 2})
    for value in ("c", "", None, 1, ["a"]):
        message = f"mode: expected one of a, b, got {value!r}"
        refused(ValueError, message, check_choice, "mode", value, ("a", "b"))
    message = "mode: expected one of a, b, got 'c'"
    refused(ValueError, message, check_choice, "mode", "c", iter("ab"))


# --- arrays ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_a_dtype_may_be_given_in_every_form(name):
    for form in (name, np.dtype(name), getattr(np, name), np.dtype(name).str):
        assert check_dtype(form) == np.dtype(name)
        assert isinstance(check_dtype(form), np.dtype)


def test_other_dtypes_are_refused():
    expected = "dtype: expected float32 or float64, got"
    for name in ("float16", "int64", "complex128", "bool", "object"):
        refused(TypeError, f"{expected} {name}", check_dtype, name)
    refused(TypeError, f"{expected} 'floaty'", check_dtype, "floaty")
    assert check_dtype(None) == np.float64  # NumPy's default


def test_arrays_are_numpy_arrays():
    check_arrays(a=np.zeros(2), b=np.zeros((), int))
    for value, came in (([1.0], "list"), (1.0, "float"), (np.float64(1), "float64")):
        message = f"b: expected an array, got {came}"
        refused(TypeError, message, check_arrays, a=np.zeros(1), b=value)


@pytest.mark.parametrize("number", [NAN, INF, -INF])
def test_finite_arrays_hold_no_nan_and_no_infinity(number):
    check_finite(a=np.ones(3), b=np.zeros(0), c=np.array(1), d=np.arange(3))
    array = np.ones((2, 3), "float32")
    array[1, 2] = number
    message = "b: expected finite numbers, got NaN or inf"
    refused(ValueError, message, check_finite, a=np.ones(3), b=array)


def test_theta_is_a_vector_of_finite_numbers():
    for dtype in ("float32", "float64"):
        theta = np.ones(3, dtype)
        assert check_theta(theta) is theta and check_theta(theta, 3) is theta
    for value, came in (
        ([1.0], "list"),
        (None, "NoneType"),
        (np.ones(3, "float16"), "float16"),
        (np.ones(3, int), "int64"),
    ):
        message = f"theta: expected a float32 or float64 array, got {came}"
        refused(TypeError, message, check_theta, value)
    for shape in ((), (0,), (1, 3)):
        message = f"theta: expected shape (P,), P > 0, got {shape}"
        refused(ValueError, message, check_theta, np.ones(shape))
    message = "theta: expected shape (4,), got (3,)"
    refused(ValueError, message, check_theta, np.ones(3), 4)


def test_theta_is_searched_for_nan_unless_that_would_take_too_long():
    theta = np.array([1.0, NAN])
    refused(
        ValueError, "theta: expected finite numbers, got NaN or inf", check_theta, theta
    )
    assert check_theta(theta, finite=False) is theta


def test_alpha_is_a_finite_number_or_vector():
    for alpha in (1, 0.5, np.float32(2), np.ones(3), [0.1, 0.2], 0, -1.0):
        assert np.array_equal(check_alpha(alpha), alpha)
        assert isinstance(check_alpha(alpha), np.ndarray)
    ragged = [[1.0], [1.0, 2.0]]
    for alpha in (True, "0.1", None, 1j, np.ones((2, 2)), [True, False], ragged):
        message = f"alpha: expected a number or a vector of numbers, got {alpha!r}"
        message = " ".join(message.split())
        refused(TypeError, message, check_alpha, alpha)
    for alpha in (NAN, INF, [0.1, -INF]):
        message = "alpha: expected finite numbers, got NaN or inf"
        refused(ValueError, message, check_alpha, alpha)


def test_step_weights_are_one_finite_number_for_each_step():
    weights = check_step_weights(np.array([1, 2]), 2)
    assert weights == (1.0, 2.0) and all(type(w) is float for w in weights)
    assert check_step_weights((), 0) == ()
    for wrong in ([1.0], [1.0, NAN], [1.0, INF], 1.0, "ab", None, [[1], [2]]):
        message = f"step_weights: expected 2 finite weights, got {wrong!r}"
        refused(ValueError, message, check_step_weights, wrong, 2)


# --- the inputs of a compiled tape ----------------------------------------------------

PLACEHOLDERS = {
    "theta": SimpleNamespace(shape=(3,), per_task=False),
    "x": SimpleNamespace(shape=(4, 2), per_task=True),
    "y": SimpleNamespace(shape=(), per_task=True),
}
FLOAT64 = np.dtype("float64")


def inputs(tasks=5, **changed):
    arrays = {"theta": np.zeros(3), "x": np.zeros((tasks, 4, 2)), "y": np.zeros(tasks)}
    return arrays | changed


def test_inputs_that_fit_give_the_number_of_tasks():
    assert check_inputs(PLACEHOLDERS, FLOAT64, inputs()) == 5
    assert check_inputs(PLACEHOLDERS, FLOAT64, inputs(), 5) == 5
    shared = {"theta": PLACEHOLDERS["theta"]}
    assert check_inputs(shared, FLOAT64, {"theta": np.zeros(3)}) is None
    assert check_inputs(shared, FLOAT64, {"theta": np.full(3, NAN)}, 2) == 2
    assert check_inputs({}, FLOAT64, {}) is None


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        (
            {"theta": np.zeros(3)},
            ValueError,
            "inputs: expected ['theta', 'x', 'y'], got ['theta']",
        ),
        (
            inputs(z=np.zeros(1)),
            ValueError,
            "inputs: expected ['theta', 'x', 'y'], got ['theta', 'x', 'y', 'z']",
        ),
        (
            inputs(theta=[0.0, 0.0, 0.0]),
            TypeError,
            "theta: expected an array of float64, got list",
        ),
        (
            inputs(x=np.zeros((5, 4, 2), "float32")),
            TypeError,
            "x: expected an array of float64, got float32",
        ),
        (
            inputs(theta=np.zeros(4)),
            ValueError,
            "theta: expected shape (3,), got (4,)",
        ),
        (
            inputs(x=np.zeros((5, 4, 3))),
            ValueError,
            "x: expected shape (5, 4, 2) (first axis: tasks), got (5, 4, 3)",
        ),
        (
            inputs(y=np.zeros(6)),
            ValueError,
            "y: expected shape (5,) (first axis: tasks), got (6,)",
        ),
        (inputs(tasks=0), ValueError, "tasks: expected at least one task, got none"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(arrays, error, message):
    refused(error, message, check_inputs, PLACEHOLDERS, FLOAT64, arrays)


def test_inputs_must_have_as_many_tasks_as_bound_ones():
    message = "x: expected shape (4, 4, 2) (first axis: tasks), got (5, 4, 2)"
    refused(ValueError, message, check_inputs, PLACEHOLDERS, FLOAT64, inputs(), 4)


# --- a batch of tasks -----------------------------------------------------------------

THETA = np.zeros(3)


def batch(**changed):
    shapes = {"x_support": (2, 4, 1), "y_support": (2, 4, 3)}
    shapes |= {"x_query": (2, 6, 1), "y_query": (2, 6, 3)}
    arrays = {name: np.zeros(shape) for name, shape in shapes.items()}
    return tuple((arrays | changed).values())


def test_a_batch_that_fits_gives_the_number_of_tasks():
    assert check_tasks(THETA, batch()) == 2
    # NaN is left to the results, where it is found without reading all examples.
    assert check_tasks(THETA * NAN, batch(x_query=np.full((2, 6, 1), NAN))) == 2


EXAMPLES = (
    "expected shape (tasks, examples, ...) with at least one example "
    "for each of 2 tasks"
)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        (
            {"y_query": np.zeros((2, 6, 3), "float32")},
            TypeError,
            "y_query: expected an array of theta's dtype, float64, got float32",
        ),
        (
            {"x_support": [[0.0]]},
            TypeError,
            "x_support: expected an array of theta's dtype, float64, got list",
        ),
        (
            {"y_support": np.zeros(2)},
            ValueError,
            f"y_support: {EXAMPLES}, got (2,)",
        ),
        (
            {"x_query": np.zeros((3, 6, 1))},
            ValueError,
            f"x_query: {EXAMPLES}, got (3, 6, 1)",
        ),
        (
            {"x_query": np.zeros((2, 0, 1))},
            ValueError,
            f"x_query: {EXAMPLES}, got (2, 0, 1)",
        ),
        (
            {"x_support": np.zeros(())},
            ValueError,
            "x_support: expected shape (tasks, examples, ...) with at least one "
            "example for each of 0 tasks, got ()",
        ),
        (
            {"y_support": np.zeros((2, 5, 3))},
            ValueError,
            "y_support: expected 4 examples as in x_support, got 5",
        ),
        (
            {"y_query": np.zeros((2, 1, 3))},
            ValueError,
            "y_query: expected 6 examples as in x_query, got 1",
        ),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(changed, error, message):
    refused(error, message, check_tasks, THETA, batch(**changed))


def test_a_batch_needs_a_theta():
    message = "theta: expected a float32 or float64 array, got list"
    refused(TypeError, message, check_tasks, [0.0], batch())


# --- sizes, numbers, flags ------------------------------------------------------------


def test_whole_numbers_become_a_tuple_of_ints():
    sizes = checks.whole_numbers("shape", np.array([2, 3]))
    assert sizes == (2, 3) and all(type(n) is int for n in sizes)
    assert checks.whole_numbers("shape", []) == ()
    for bad in (3, None, 2.5):
        message = f"shape: expected whole numbers, got {bad!r}"
        refused(TypeError, message, checks.whole_numbers, "shape", bad)
    message = "shape: expected a whole number, got 2.5"
    refused(TypeError, message, checks.whole_numbers, "shape", (1, 2.5))
    message = "shape: expected at least 0, got -1"
    refused(ValueError, message, checks.whole_numbers, "shape", (1, -1), least=0)


def test_real_number_becomes_a_float():
    third = checks.real_number("x", np.float32(1 / 3))
    assert type(third) is float and third == float(np.float32(1 / 3))
    message = "x: expected a number below 1.8e308"
    refused(ValueError, message, checks.real_number, "x", 10**400)
    refused(TypeError, "x: expected a number, got True", checks.real_number, "x", True)


def test_flags_are_true_or_false():
    checks.check_flags(a=True, b=np.bool_(False))
    message = "a: expected True or False, got 'no'"
    refused(TypeError, message, checks.check_flags, a="no")


def test_a_generator_is_numpys():
    checks.check_generator(np.random.default_rng())
    message = "rng: expected a numpy.random.Generator, got 0"
    refused(TypeError, message, checks.check_generator, 0)


def test_what_came_is_shown_in_one_short_line():
    assert checks.shown(np.eye(2)) == "array([[1., 0.], [0., 1.]])"
    assert len(checks.shown("x" * 10_000)) < 210


# --- masked arrays --------------------------------------------------------------------


def test_masked_arrays_are_refused():
    masked = np.ma.masked_array(np.ones((2, 3, 1)), mask=False)
    vector, plain = masked[0, :, 0], np.ones((2, 3, 1))
    message = "a: expected an array, got MaskedArray"
    refused(TypeError, message, check_arrays, a=masked)
    message = "theta: expected a float32 or float64 array, got MaskedArray"
    refused(TypeError, message, check_theta, vector)
    message = "y: expected an array of theta's dtype, float64, got MaskedArray"
    tasks = [plain, plain, plain, masked]
    message = message.replace("y:", "y_query:")
    refused(TypeError, message, check_tasks, np.ones(2), tasks)
    placeholder = SimpleNamespace(shape=(3, 1), per_task=True)
    message = "x: expected an array of float64, got MaskedArray"
    dtype = np.dtype("float64")
    refused(TypeError, message, check_inputs, {"x": placeholder}, dtype, {"x": masked})
    with pytest.raises(TypeError, match="^alpha: expected .*, got masked_array"):
        check_alpha(vector)
    with pytest.raises(
        ValueError, match="^step_weights: expected .*, got masked_array"
    ):
        check_step_weights(vector, 3)
