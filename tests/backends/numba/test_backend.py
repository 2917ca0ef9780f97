"""The numba backend: its workspaces, blocks of tasks, packed outputs and threads."""

import os
import subprocess
import sys

import numpy as np
import pytest

import tinymaml as tm
from tests.support.maml_problems import problem
from tests.support.running import DTYPES
from tinymaml.autodiff.tape import Tape
from tinymaml.backends.numba import image_kernels
from tinymaml.backends.numba.backend import (
    INSTRUCTION_SIZE,
    NumbaBackend,
    PackedOutputs,
)
from tinymaml.backends.numba.planner import ALIGNMENT
from tinymaml.backends.numba.tiles import VECTOR_BYTES
from tinymaml.tasks.batch import BLOCKS, block_bounds


def squares(threads=1, dtype="float64"):
    """The squares of each task, and their sum over tasks."""
    tape = Tape()
    x = tape.input("x", (2,), per_task=True)
    tape.output("each", x * x)
    tape.output("sum", x * x, "sum")
    return NumbaBackend(threads).compile(tape, dtype)


def test_squares_by_hand():
    results = squares()({"x": np.array([[1.0, 2.0], [3.0, 4.0]])})
    assert results["each"].tolist() == [[1, 4], [9, 16]]
    assert results["sum"].tolist() == [10, 20]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("first", "last"), [(0, 4), (3, 7), (7, 8)])
def test_sums_of_blocks_are_rows_that_add_up_to_the_sum(threads, first, last):
    """Blocks 3 .. 6 of 100 tasks, run by themselves, have the bits that they have."""
    x = np.random.default_rng(0).standard_normal((100, 2)).astype("float32")
    bounds = block_bounds(100)[first : last + 1]
    own = x[bounds[0] : bounds[-1]]
    program = squares(threads, "float32")
    results = program.sums_of_blocks({"x": own}, [b - bounds[0] for b in bounds])
    assert results["each"].tobytes() == (own * own).tobytes()
    assert results["sum"].shape == (last - first, 2)
    for row, start, end in zip(results["sum"], bounds, bounds[1:], strict=False):
        total = np.zeros(2, "float32")
        for task in x[start:end]:
            total += task * task
        assert row.tobytes() == total.tobytes()
    program({"x": x})  # another number of tasks does not change rows returned before
    assert results["each"].tobytes() == (own * own).tobytes()


@pytest.mark.parametrize("tasks", [1, 31, 32, 33, 100])
def test_sums_are_sums_of_blocks_in_order(tasks):
    x = np.random.default_rng(0).standard_normal((tasks, 2)).astype("float32")
    count, total = min(BLOCKS, tasks), np.zeros(2, "float32")
    for block in range(count):
        first, end = block * tasks // count, (block + 1) * tasks // count
        block_sum = np.zeros(2, "float32")
        for task in range(first, end):
            block_sum += x[task] * x[task]
        total += block_sum
    for threads in (1, 2, 5):
        result = squares(threads, "float32")({"x": x})["sum"]
        assert result.tobytes() == total.tobytes()


def test_the_longest_instruction_fits():
    """A convolution has the most arguments: three offsets and its sizes."""
    assert INSTRUCTION_SIZE == 1 + 3 + len(image_kernels.Sizes._fields)


def test_code_has_one_instruction_a_row():
    program = squares()
    assert program.code.shape == (len(program.plan.instructions), INSTRUCTION_SIZE)
    assert (program.code[:, 0] != 0).all()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_workspaces_are_aligned_and_have_a_vector_of_room_behind_the_last(
    dtype, threads
):
    tape = Tape()
    a, b = tape.input("a", (3, 3)), tape.input("b", (3, 1))
    tape.output("product", a @ b)
    program = tm.get_backend("numba", threads).compile(tape, dtype)
    memory = program.workspaces
    assert memory.ctypes.data % (ALIGNMENT * memory.itemsize) == 0
    end = memory.ctypes.data + memory.nbytes
    while memory.base is not None:
        memory = memory.base
    assert end + VECTOR_BYTES <= memory.ctypes.data + memory.nbytes


def test_outputs_are_packed_end_to_end():
    tape = Tape()
    tape.output("one", tape.input("x", (2, 3)))
    tape.output("two", tape.input("y", ()))
    packed = PackedOutputs(NumbaBackend(1).compile(tape, "float64"), "each")
    rows = packed.empty(4)
    assert rows.shape == (4, 7)
    rows[:] = np.arange(28).reshape(4, 7)
    outputs = packed.unpack(rows)
    assert outputs["one"].tolist() == rows[:, :6].reshape(4, 2, 3).tolist()
    assert outputs["two"].tolist() == [6, 13, 20, 27]
    assert all(np.shares_memory(array, rows) for array in outputs.values())


@pytest.mark.parametrize("dtype", DTYPES)
def test_meta_gradients_have_the_same_bits_for_any_number_of_threads(dtype):
    p = problem(tasks=40).cast(dtype)
    results = [
        p.maml(backend=tm.get_backend("numba", threads)).meta_gradient(p.theta, p.tasks)
        for threads in (1, 2, 3, 7)
    ]
    assert len({result.gradient.tobytes() for result in results}) == 1
    assert len({result.losses.tobytes() for result in results}) == 1


def test_waiting_threads_do_not_spin_for_long():
    """OpenMP reads the variable when it is loaded: it must be set before Numba is."""
    code = "import os, tinymaml as tm; tm.get_backend('numba'); "
    code += "print(os.environ['GOMP_SPINCOUNT'])"
    environment = {n: v for n, v in os.environ.items() if n != "GOMP_SPINCOUNT"}
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == "10000"
