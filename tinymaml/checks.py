"""Checks of arguments, each in one place: one clear error that names the argument.

A check of a type raises TypeError and a check of a value ValueError. The message is one
line with the name of the argument, what was expected, and what came:

    steps = whole_number("steps", steps, least=0)   # steps: expected at least 0, got -1

Checks that convert their argument return it in the type that the package computes with.
Conditions that only one function has stay in that function.

This file imports nothing of the package, so every file of the package may import it.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
DTYPES = (np.dtype("float32"), np.dtype("float64"))
MASKED = np.ma.MaskedArray


def check_that(
    fits: Any, name: object, expected: str, came: Any, error: Any = ValueError
) -> None:
    """Raise an error in the one form of all messages unless the argument fits.

    name: of the argument, or the path of a file. error: the type of what is raised.

    >>> check_that(2 < 1, "actions", "shape (2,)", (3,))
    Traceback (most recent call last):
    ValueError: actions: expected shape (2,), got (3,)
    """
    if not fits:
        raise error(f"{name}: expected {expected}, got {came}")


# --- numbers and names ----------------------------------------------------------------


def shown(value: Any) -> str:
    """What came, in one line of a message."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 200 else f"{text[:200]}..."


def check_kind(name: str, value: Any, kind: Any, expected: str) -> Any:
    """The value, if it is of this type, or of one in a tuple of types.

    >>> check_kind("tape", 3, np.ndarray, "an array")
    Traceback (most recent call last):
    TypeError: tape: expected an array, got 3
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name}: expected {expected}, got {shown(value)}")
    return value


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """The value as an int of at least `least`; NumPy's integers count, bools do not.

    >>> whole_number("shots", 5)
    5
    >>> whole_number("shots", 0)
    Traceback (most recent call last):
    ValueError: shots: expected at least 1, got 0
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: expected a whole number, got {shown(value)}")
    check_that(value >= least, name, f"at least {least}", value)
    return int(value)


def whole_numbers(name: str, values: Any, least: int = 1) -> tuple[int, ...]:
    """The values as whole numbers of at least `least`, such as the sizes of a shape.

    >>> whole_numbers("shape", (2, 0))
    Traceback (most recent call last):
    ValueError: shape: expected at least 1, got 0
    """
    try:
        numbers = tuple(values)
    except TypeError:
        message = f"{name}: expected whole numbers, got {shown(values)}"
        raise TypeError(message) from None
    if all(type(number) is int and number >= least for number in numbers):
        return numbers  # As the tape's own sizes always are: a look is enough.
    return tuple(whole_number(name, number, least) for number in numbers)


def check_sizes(**sizes: int) -> list[int]:
    """The arguments, which are whole numbers of at least 1, in Python's own type."""
    return [whole_number(name, value) for name, value in sizes.items()]


def check_numbers(**numbers: float) -> None:
    """Check that every argument is a real number: NaN is allowed, a bool is not."""
    for name, value in numbers.items():
        real_number(name, value)


def real_number(name: str, value: Any) -> float:
    """The value as a float64 number; NaN and infinity are allowed, bools are not."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number, got {shown(value)}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name}: expected a number below 1.8e308") from None


def number_in(name: str, value: Any, low: float, high: float, end: str = ")") -> float:
    """The value as a float in [low, high), or with end="]" in [low, high].

    Neither bool nor NaN is one.
    """
    number = isinstance(value, Real) and not isinstance(value, bool)
    valid = number and (low <= value < high or (value == high and end == "]"))
    check_that(valid, name, f"a number in [{low:.3g}, {high:.3g}{end}", shown(value))
    return real_number(name, value)


def check_fractions(**numbers: float) -> None:
    """Check that every argument is a number in [0, 1], which NaN is not."""
    for name, number in numbers.items():
        fits = 0 <= real_number(name, number) <= 1
        check_that(fits, name, "a number in [0, 1]", number)


def plain(value: Any) -> Any:
    """Numbers and sequences of numbers in Python's own types: ints, floats, tuples."""
    if isinstance(value, tuple | list):
        return tuple(plain(part) for part in value)
    return value.item() if isinstance(value, np.generic) else value


def check_flags(**flags: bool) -> list[bool]:
    """The arguments, each of which is True or False."""
    kinds, expected = (bool, np.bool_), "True or False"
    return [check_kind(name, flag, kinds, expected) for name, flag in flags.items()]


def check_end(
    kind: str, name: str, taken: Collection[str], per_task: bool = False
) -> None:
    """Check a new input or output of a tape, which has the `taken` names already."""
    check_flags(per_task=per_task)
    check_kind("name", name, str, "text")
    if name in taken:
        raise ValueError(f"{kind} {name!r}: the tape already has an {kind} so named")


def check_threads(threads: int | None, default: int) -> int:
    """The number of threads: at least 1, or the default for None."""
    return default if threads is None else whole_number("threads", threads)


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> Any:
    """The value, which must be one of the choices.

    >>> check_choice("mode", "bach", ("batch", "support"))
    Traceback (most recent call last):
    ValueError: mode: expected one of batch, support, got 'bach'
    """
    choices = list(choices)
    known = isinstance(value, str | int | np.integer) and not isinstance(value, bool)
    names = ", ".join(map(str, choices))
    check_that(known and value in choices, name, f"one of {names}", shown(value))
    return value


def check_function(name: str, function: Any) -> Any:
    """The function, or any other object that can be called."""
    return check_kind(name, function, Callable, "a function")


# --- arrays ---------------------------------------------------------------------------


def check_dtype(dtype: Any) -> np.dtype[Any]:
    """The dtype, float32 or float64, as NumPy's object."""
    expected = "dtype: expected float32 or float64, got"
    try:
        numpy_dtype = np.dtype(dtype)
    except TypeError:
        raise TypeError(f"{expected} {shown(dtype)}") from None
    if numpy_dtype not in DTYPES:
        raise TypeError(f"{expected} {numpy_dtype}")
    return numpy_dtype


def is_array(value: Any) -> bool:
    """Whether it is a NumPy array; a masked one is not, for its mask would be lost."""
    if type(value) is np.ndarray:  # the quick answer, for every step of training
        return True
    return isinstance(value, np.ndarray) and not isinstance(value, MASKED)


def check_arrays(**arrays: Array) -> None:
    """Check that every argument is a NumPy array, and no list or masked array."""
    for name, array in arrays.items():
        if not is_array(array):
            raise TypeError(f"{name}: expected an array, got {type(array).__name__}")


def check_generator(rng: Any) -> None:
    """Check that the argument `rng` is a random generator of NumPy."""
    check_kind("rng", rng, np.random.Generator, "a numpy.random.Generator")


def check_finite(**arrays: Array) -> None:
    """Check that no argument holds a NaN or an infinity."""
    for name, array in arrays.items():
        check_that(np.isfinite(array).all(), name, "finite numbers", "NaN or inf")


def dtype_or_type(value: Any) -> Any:
    """What a message says about an array, or about something that is no array."""
    kind = type(value).__name__
    return kind if isinstance(value, MASKED) else getattr(value, "dtype", kind)


def check_theta(theta: Array, size: int | None = None, finite: bool = True) -> Array:
    """theta, if it is a vector (P,) of finite float32 or float64 numbers.

    size: P, or None for any P of at least 1. finite: False leaves out the search for
    NaN and infinity, which reads all of theta and is too slow for every training step.
    """
    if not is_array(theta) or theta.dtype not in DTYPES:
        came = dtype_or_type(theta)
        raise TypeError(f"theta: expected a float32 or float64 array, got {came}")
    if theta.ndim != 1 or theta.size == 0 or size not in (None, theta.size):
        expected = f"({size},)" if size else "(P,), P > 0"
        raise ValueError(f"theta: expected shape {expected}, got {theta.shape}")
    if finite:
        check_finite(theta=theta)
    return theta


def check_alpha(alpha: float | Array, size: int | None = None) -> Array:
    """A copy of the inner learning rate as an array: a finite number (), or (P,).

    size: P, or None where theta is not known yet.
    """
    try:
        array = np.array(None if isinstance(alpha, MASKED) else alpha)
    except ValueError:  # a ragged list
        array = np.asarray(None)
    if array.dtype.kind not in "fiu" or array.ndim > 1:
        came = shown(alpha)
        raise TypeError(f"alpha: expected a number or a vector of numbers, got {came}")
    fits = size is None or array.size in (1, size)
    check_that(fits, "alpha", f"1 or {size} numbers", array.size)
    check_finite(alpha=array)
    return array


def check_step_weights(
    weights: Sequence[float], steps: int, name: str = "step_weights"
) -> tuple[float, ...]:
    """The weights as floats, one finite number for each inner step."""
    try:
        masked = isinstance(weights, MASKED)
        array = np.asarray(None if masked else weights, dtype=float)
    except (TypeError, ValueError, OverflowError):
        array = np.array(float("nan"))
    fits = array.shape == (steps,) and np.isfinite(array).all()
    check_that(fits, name, f"{steps} finite weights", shown(weights))
    return tuple(array.tolist())


# --- the inputs of a compiled tape ----------------------------------------------------


def check_inputs(
    placeholders: Mapping[str, Any],
    dtype: np.dtype[Any],
    inputs: Mapping[str, Array],
    tasks: int | None = None,
) -> int | None:
    """The number of tasks T, or None if no input has a task axis.

    placeholders: inputs of a tape. Each needs an array of its name, shape and dtype.
    The array of an input per task has a leading axis of length T. tasks: T, where
    inputs that were bound earlier have decided it.

    Raises ValueError or TypeError. This check runs in every step of training, so it
    compares names, dtypes and shapes, and reads no numbers.
    """
    if inputs.keys() != placeholders.keys():
        raise ValueError(f"inputs: expected {[*placeholders]}, got {[*inputs]}")
    for name, placeholder in placeholders.items():
        array, shape = inputs[name], placeholder.shape
        if not is_array(array) or array.dtype != dtype:
            came = dtype_or_type(array)
            raise TypeError(f"{name}: expected an array of {dtype}, got {came}")
        if placeholder.per_task and array.ndim and tasks is None:
            tasks = len(array)
        expected = (tasks, *shape) if placeholder.per_task else shape
        if array.shape != expected:
            note = " (first axis: tasks)" if placeholder.per_task else ""
            raise ValueError(
                f"{name}: expected shape {expected}{note}, got {array.shape}"
            )
    if tasks == 0:
        raise ValueError("tasks: expected at least one task, got none")
    return tasks


# --- a batch of tasks -----------------------------------------------------------------


def check_tasks(theta: Array, tasks: Any) -> int:
    """The number of tasks T, if the arrays of a batch fit each other and theta.

    theta: (P,). tasks: x_support, y_support, x_query, y_query, each (T, N, ...) in the
    dtype of theta; x and y have the same number N of examples.
    """
    check_theta(theta, finite=False)
    names = ("x_support", "y_support", "x_query", "y_query")
    for name, array in zip(names, tasks, strict=True):
        if not is_array(array) or array.dtype != theta.dtype:
            expected = f"an array of theta's dtype, {theta.dtype}"
            raise TypeError(f"{name}: expected {expected}, got {dtype_or_type(array)}")
        if array.ndim < 2 or len(array) != len(tasks[0]) or array.size == 0:
            count = sum(tasks[0].shape[:1])  # 0 for what has no axes
            raise ValueError(
                f"{name}: expected shape (tasks, examples, ...) with at least one "
                f"example for each of {count} tasks, got {array.shape}"
            )
    for kind, x, y in (("support", *tasks[:2]), ("query", *tasks[2:])):
        if x.shape[1] != y.shape[1]:  # the message is made only where it is needed
            expected = f"{x.shape[1]} examples as in x_{kind}"
            raise ValueError(f"y_{kind}: expected {expected}, got {y.shape[1]}")
    return len(tasks[0])
