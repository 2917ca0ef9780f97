"""Programs that hold some of their inputs: the same results, whatever is held."""

from itertools import combinations

import numpy as np
import pytest
from mutants import put, survives
from playing import DTYPES, MACHINES

import tinymaml as tm
from tinymaml.machines import numba_machine
from tinymaml.tape import Tape

every_machine = pytest.mark.parametrize("machine", MACHINES)


def prepared(machine="numba", dtype="float64", threads=1):
    """A program whose outputs show inputs too; two shared inputs, three per task."""
    tape = Tape()
    w, c = tape.input("w", (3, 2)), tape.input("c", ())
    x, s = tape.input("x", (4, 3), per_task=True), tape.input("s", (), per_task=True)
    y = tape.input("y", (4, 2), per_task=True)
    tape.input("unused", (2,), per_task=True)
    tape.output("product", (x @ w + y * c) * s)
    tape.output("x", x)
    tape.output("sum", y * s, "sum")
    return tm.get_machine(machine, threads).prepare(tape, dtype)


def inputs_of(seed, tasks=3, dtype="float64"):
    """Whole numbers, so that results are exact; x is laid out column by column."""
    rng = np.random.default_rng(seed)
    shapes = {"w": (3, 2), "c": (), "x": (tasks, 3, 4), "s": (tasks,)}
    shapes |= {"y": (tasks, 4, 2), "unused": (tasks, 2)}
    arrays = {n: rng.integers(-9, 10, s).astype(dtype) for n, s in shapes.items()}
    arrays = {n: np.array(array) for n, array in arrays.items()}
    return arrays | {"x": arrays["x"].transpose(0, 2, 1)}


def check(played, given):
    w, c, x, s, y = (given[name] for name in "wcxsy")
    assert np.array_equal(played["product"], (x @ w + y * c) * s[:, None, None])
    assert np.array_equal(played["x"], x)
    assert np.array_equal(played["sum"], (y * s[:, None, None]).sum(0))


def parts(given, names):
    return tuple(
        {n: array for n, array in given.items() if (n in names) == held}
        for held in (True, False)
    )


def check_every_split(machine="numba", dtype="float64", threads=1):
    program, given = prepared(machine, dtype, threads), inputs_of(0, dtype=dtype)
    for count in range(len(given) + 1):
        for names in combinations(given, count):
            held, asked = parts(given, names)
            play = program.hold(held)
            check(play(asked), given)
            other = parts(inputs_of(1, dtype=dtype), names)[1]
            check(play(other), {**held, **other})


def check_several_at_once(machine="numba", threads=1):
    program = prepared(machine, threads=threads)
    plays = []
    for seed, tasks in ((0, 3), (1, 3), (2, 40)):
        held, asked = parts(inputs_of(seed, tasks), "wxs")
        plays.append((program.hold(held), held, asked))
    for _ in range(2):
        for play, held, asked in plays:
            check(play(asked), {**held, **asked})
            check(program(inputs_of(3, tasks=5)), inputs_of(3, tasks=5))


def check_what_is_shared_may_be_held_for_any_number_of_tasks(machine="numba"):
    program = prepared(machine)
    play = program.hold(parts(inputs_of(0), "wc")[0])
    for tasks in (3, 40, 1):
        held, asked = inputs_of(0), parts(inputs_of(1, tasks), "wc")[1]
        check(play(asked), {**held, **asked})


def refusal(call, inputs):
    try:
        call(inputs)
    except (TypeError, ValueError) as error:
        return str(error)
    raise AssertionError("not refused")


def check_refusals(machine="numba"):
    program, given = prepared(machine), inputs_of(0)
    y, four = given["y"], {"s": np.ones(4)}
    for held, message in (
        ({"y": y, "z": y}, "inputs: expected ['y'], got ['y', 'z']"),
        ({"y": y.reshape(3, 8)}, "y: expected shape (3, 4, 2) (first axis: tasks)"),
        ({"y": y.astype("float32")}, "y: expected an array of float64, got float32"),
        ({"y": y} | four, "y: expected shape (4, 4, 2) (first axis: tasks)"),
    ):
        assert refusal(program.hold, held).startswith(message)
    held, asked = parts(given, "wxy")
    play = program.hold(held)
    for inputs, message in (
        (given, "inputs: expected ['c', 's', 'unused'], got"),
        (asked | four, "s: expected shape (3,) (first axis: tasks), got (4,)"),
    ):
        assert refusal(play, inputs).startswith(message)


@every_machine
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 2])
def test_held_and_asked_inputs_give_what_all_together_give(machine, dtype, threads):
    check_every_split(machine, dtype, threads)


@every_machine
@pytest.mark.parametrize("threads", [1, 2])
def test_several_that_hold_inputs_of_one_program_do_not_meet(machine, threads):
    check_several_at_once(machine, threads)


@every_machine
def test_what_is_shared_may_be_held_for_any_number_of_tasks(machine):
    check_what_is_shared_may_be_held_for_any_number_of_tasks(machine)


@every_machine
def test_what_does_not_fit_is_refused(machine):
    check_refusals(machine)


@pytest.mark.parametrize(
    ("owner", "method", "old", "new"),
    [
        ("NumbaProgram", "hold", "(self, held)", "(self, {})"),
        (
            "NumbaProgram",
            "hold",
            "HeldProgram(self, held)",
            "self._play.__init__(self, held) or self._play",
        ),
        ("HeldProgram", "__init__", 'array.copy("C")', "array"),
        ("HeldProgram", "__call__", "count != self._room", "False"),
        ("HeldProgram", "__call__", "inputs, self._count", "inputs"),
        (
            "HeldProgram",
            "__call__",
            "self._arrays.items()",
            "list(self._arrays.items())[1:]",
        ),
        ("HeldProgram", "_addresses", "strides[0] if per_task", "strides[0] if False"),
        ("HeldProgram", "_addresses", "self._held | ", "self._arrays | "),
    ],
)
def test_broken_holding_is_caught(monkeypatch, owner, method, old, new):
    put(monkeypatch, getattr(numba_machine, owner), method, old, new)
    assert not survives(
        check_every_split,
        check_several_at_once,
        check_what_is_shared_may_be_held_for_any_number_of_tasks,
        check_refusals,
    )
