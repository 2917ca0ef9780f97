"""Binding some inputs of a program: the same results, whichever inputs are bound."""

from itertools import combinations

import numpy as np
import pytest

import tinymaml as tm
from tests.support.mutants import put, survives
from tests.support.running import BACKENDS, DTYPES
from tinymaml.autodiff.tape import Tape
from tinymaml.backends.numba import backend as numba_backend

every_backend = pytest.mark.parametrize("backend", BACKENDS)


def compiled(backend="numba", dtype="float64", threads=1):
    """A program whose outputs show inputs too; two shared inputs, three per task."""
    tape = Tape()
    w, c = tape.input("w", (3, 2)), tape.input("c", ())
    x, s = tape.input("x", (4, 3), per_task=True), tape.input("s", (), per_task=True)
    y = tape.input("y", (4, 2), per_task=True)
    tape.input("unused", (2,), per_task=True)
    tape.output("product", (x @ w + y * c) * s)
    tape.output("x", x)
    tape.output("sum", y * s, "sum")
    return tm.get_backend(backend, threads).compile(tape, dtype)


def inputs_of(seed, tasks=3, dtype="float64"):
    """Whole numbers, so that results are exact; x is laid out column by column."""
    rng = np.random.default_rng(seed)
    shapes = {"w": (3, 2), "c": (), "x": (tasks, 3, 4), "s": (tasks,)}
    shapes |= {"y": (tasks, 4, 2), "unused": (tasks, 2)}
    arrays = {n: rng.integers(-9, 10, s).astype(dtype) for n, s in shapes.items()}
    arrays = {n: np.array(array) for n, array in arrays.items()}
    return arrays | {"x": arrays["x"].transpose(0, 2, 1)}


def check(outputs, given):
    w, c, x, s, y = (given[name] for name in "wcxsy")
    assert np.array_equal(outputs["product"], (x @ w + y * c) * s[:, None, None])
    assert np.array_equal(outputs["x"], x)
    assert np.array_equal(outputs["sum"], (y * s[:, None, None]).sum(0))


def parts(given, names):
    """(inputs of these names, the other inputs)."""
    return tuple(
        {n: array for n, array in given.items() if (n in names) == bound}
        for bound in (True, False)
    )


def check_every_split(backend="numba", dtype="float64", threads=1):
    program, given = compiled(backend, dtype, threads), inputs_of(0, dtype=dtype)
    for count in range(len(given) + 1):
        for names in combinations(given, count):
            bound, unbound = parts(given, names)
            run_tape = program.bind(bound)
            check(run_tape(unbound), given)
            other = parts(inputs_of(1, dtype=dtype), names)[1]
            check(run_tape(other), {**bound, **other})


def check_several_at_once(backend="numba", threads=1):
    program = compiled(backend, threads=threads)
    runs = []
    for seed, tasks in ((0, 3), (1, 3), (2, 40)):
        bound, unbound = parts(inputs_of(seed, tasks), "wxs")
        runs.append((program.bind(bound), bound, unbound))
    for _ in range(2):
        for run_tape, bound, unbound in runs:
            check(run_tape(unbound), {**bound, **unbound})
            check(program(inputs_of(3, tasks=5)), inputs_of(3, tasks=5))


def check_shared_inputs_serve_any_number_of_tasks(backend="numba"):
    program = compiled(backend)
    run_tape = program.bind(parts(inputs_of(0), "wc")[0])
    for tasks in (3, 40, 1):
        bound, unbound = inputs_of(0), parts(inputs_of(1, tasks), "wc")[1]
        check(run_tape(unbound), {**bound, **unbound})


def refusal(call, inputs):
    try:
        call(inputs)
    except (TypeError, ValueError) as error:
        return str(error)
    raise AssertionError("not refused")


def check_refusals(backend="numba"):
    program, given = compiled(backend), inputs_of(0)
    y, four = given["y"], {"s": np.ones(4)}
    for bound, message in (
        ({"y": y, "z": y}, "inputs: expected ['y'], got ['y', 'z']"),
        ({"y": y.reshape(3, 8)}, "y: expected shape (3, 4, 2) (first axis: tasks)"),
        ({"y": y.astype("float32")}, "y: expected an array of float64, got float32"),
        ({"y": y} | four, "y: expected shape (4, 4, 2) (first axis: tasks)"),
    ):
        assert refusal(program.bind, bound).startswith(message)
    bound, unbound = parts(given, "wxy")
    run_tape = program.bind(bound)
    for inputs, message in (
        (given, "inputs: expected ['c', 's', 'unused'], got"),
        (unbound | four, "s: expected shape (3,) (first axis: tasks), got (4,)"),
    ):
        assert refusal(run_tape, inputs).startswith(message)


@every_backend
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 2])
def test_bound_and_other_inputs_give_what_all_give_together(backend, dtype, threads):
    check_every_split(backend, dtype, threads)


@every_backend
@pytest.mark.parametrize("threads", [1, 2])
def test_several_bindings_of_one_program_do_not_interfere(backend, threads):
    check_several_at_once(backend, threads)


@every_backend
def test_the_dictionary_of_bound_inputs_may_change_afterwards(backend):
    program, given = compiled(backend), inputs_of(0)
    bound, unbound = parts(given, ("w", "x"))
    run_tape = program.bind(bound)
    bound["w"] = bound["w"] + 1
    check(run_tape(unbound), given)
    bound.clear()
    check(run_tape(unbound), given)


@every_backend
def test_shared_inputs_serve_any_number_of_tasks(backend):
    check_shared_inputs_serve_any_number_of_tasks(backend)


@every_backend
def test_inputs_that_do_not_fit_are_refused(backend):
    check_refusals(backend)


MUTANTS = {
    "nothing is bound": ("NumbaProgram", "bind", "(self, bound)", "(self, {})"),
    "all bindings are one": (
        "NumbaProgram",
        "bind",
        "BoundProgram(self, bound)",
        "self._run.__init__(self, bound) or self._run",
    ),
    "arrays in columns are read by rows": (
        "BoundProgram",
        "__init__",
        'array.copy("C")',
        "array",
    ),
    "other numbers of tasks get no memory": (
        "BoundProgram",
        "_fit_memory",
        "tasks != self._memory.tasks",
        "False",
    ),
    "bound tasks are not counted": (
        "BoundProgram",
        "_check",
        "inputs, bound_tasks",
        "inputs",
    ),
    "the first input is not copied": (
        "BoundProgram",
        "_run_blocks",
        "self._memory.arrays.items()",
        "list(self._memory.arrays.items())[1:]",
    ),
    "all tasks have the first task's inputs": (
        "BoundProgram",
        "_addresses",
        "strides[0] if per_task",
        "strides[0] if False",
    ),
    "bound inputs are forgotten": (
        "BoundProgram",
        "_addresses",
        "self._bound | ",
        "unbound | ",
    ),
}


@pytest.mark.parametrize(
    ("owner", "method", "old", "new"), MUTANTS.values(), ids=MUTANTS
)
def test_broken_binding_is_caught(monkeypatch, owner, method, old, new):
    put(monkeypatch, getattr(numba_backend, owner), method, old, new)
    assert not survives(
        check_every_split,
        check_several_at_once,
        check_shared_inputs_serve_any_number_of_tasks,
        check_refusals,
    )
