"""The reference backend: blocks of tasks, shared values, memory that is freed."""

import weakref

import numpy as np
import pytest

from tests.support.running import DTYPES
from tinymaml.autodiff.functions import log, tanh
from tinymaml.autodiff.tape import PRIMITIVES, Tape
from tinymaml.backends.numpy import BLOCK, NumpyBackend

every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def compiled(record, dtype="float64"):
    """A program of a tape to which `record` adds inputs and outputs."""
    tape = Tape()
    record(tape)
    return NumpyBackend().compile(tape, dtype)


def mixed(tape):
    """w is shared, x is per task."""
    w, x = tape.input("w", (2,)), tape.input("x", (2,), per_task=True)
    tape.output("product", w * x)
    tape.output("total", w * x, "sum")
    tape.output("shared", w * 2.0)
    tape.output("shared total", w * 2.0, "sum")


@every_dtype
def test_shared_values_count_once_for_each_task(dtype):
    results = compiled(mixed, dtype)(
        {
            "w": np.array([1, 10], dtype),
            "x": np.array([[1, 2], [3, 4], [5, 6]], dtype),
        }
    )
    assert {array.dtype for array in results.values()} == {np.dtype(dtype)}
    assert results["product"].tolist() == [[1, 20], [3, 40], [5, 60]]
    assert results["total"].tolist() == [9, 120]
    assert results["shared"].tolist() == [[2, 20]] * 3
    assert results["shared total"].tolist() == [6, 60]


@pytest.mark.parametrize("tasks", [1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 5])
def test_blocks_have_all_tasks_in_order(tasks):
    x = np.arange(2.0 * tasks).reshape(tasks, 2)
    results = compiled(mixed)({"w": np.ones(2), "x": x})
    assert np.array_equal(results["product"], x)
    assert np.array_equal(results["total"], x.sum(axis=0))


def test_dead_nodes_are_not_computed(monkeypatch):
    def record(tape):
        x = tape.input("x", (3,))
        log(x)
        tape.output("double", x + x)

    program = compiled(record)
    primitive = next(
        n.primitive for n in program.tape.nodes if n.primitive.name == "log"
    )
    monkeypatch.setattr(primitive, "evaluate", None)
    assert program({"x": np.ones(3)})["double"].tolist() == [[2, 2, 2]]


def test_values_are_freed_after_their_last_reader(monkeypatch):
    """A chain of a hundred nodes never has more than three values in memory."""

    def record(tape):
        x = tape.input("x", (3,), per_task=True)
        for _ in range(100):
            x = tanh(x)
        tape.output("x", x)

    program = compiled(record)
    made, alive, evaluate = [], [], PRIMITIVES["tanh"].evaluate

    def noted(x):
        result = evaluate(x)
        made.append(weakref.ref(result))
        alive.append(sum(value() is not None for value in made))
        return result

    monkeypatch.setattr(PRIMITIVES["tanh"], "evaluate", staticmethod(noted))
    assert program({"x": np.ones((2, 3))})["x"].shape == (2, 3)
    assert len(made) == 100 and max(alive) <= 3


def test_nan_and_infinity_come_without_a_warning():
    def record(tape):
        x = tape.input("x", (3,))
        tape.output("log", log(x))

    result = compiled(record)({"x": np.array([0.0, -1.0, np.nan])})["log"][0]
    assert result[0] == -np.inf and np.isnan(result[1:]).all()


def test_results_do_not_share_memory_with_later_calls():
    program = compiled(mixed)
    inputs = {"w": np.ones(2), "x": np.ones((2, 2))}
    first = program(inputs)["product"].copy()
    results = program(inputs)
    program({"w": np.zeros(2), "x": np.ones((2, 2))})
    assert np.array_equal(results["product"], first)
