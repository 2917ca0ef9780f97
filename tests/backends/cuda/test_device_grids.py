"""Grids of a GPU: a thread for each element of each task, up to the largest grid."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backends.numba.test_planner import tape_of
from tests.backends.test_random_programs import output_picks, wide, with_outputs
from tests.support.device_planning import touched
from tests.support.plan_recipes import RECIPES
from tests.support.random_programs import random_inputs
from tests.support.serial_cupy import WHY_NOT, SerialBackend
from tinymaml.backends.cuda import backend as cuda
from tinymaml.backends.cuda.device_program import BLOCKS

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
many = settings(max_examples=5 * settings().max_examples)


def grid_for(elements, tasks, threads=128):
    """Blocks with a thread for each element, as far as grids go, and tasks."""
    return (min(-(-elements // threads), 4096), min(tasks, 65535)), (threads,)


@many
@given(program=wide, picks=output_picks, tasks=st.integers(1, 40))
def test_grids_have_a_thread_for_each_element(program, picks, tasks):
    assert_grids_fit(with_outputs(program, picks), tasks)


@pytest.mark.parametrize("recipe", RECIPES)
def test_grids_have_a_thread_for_each_element_of(recipe):
    assert_grids_fit(tape_of(recipe), tasks=2)


def work_of(launch):
    """An element is a thread's work; in a softmax a row, in im2col one of each row."""
    (_, elements), _ = list(touched(launch))[-1]
    if launch.kernel == "softmax":
        return launch.sizes[0]
    rows = launch.sizes[4] if launch.kernel == "im2col" else 1
    return elements.size // rows


def assert_grids_fit(tape, tasks):
    """With blocks of one thread, a grid is the number of elements itself."""
    backend = SerialBackend()
    program = backend.compile(tape, "float64")
    inputs = random_inputs(tape, seed=0, tasks=tasks)
    tasks = 1 if not any(i.per_task for i in tape.inputs.values()) else tasks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "THREADS", 1)
        program({name: np.array(array) for name, array in inputs.items()})
    expected = []
    for launch in program.plan.instructions:
        if launch.kernel != "matmul":
            expected.append((launch.kernel, *grid_for(work_of(launch), tasks, 1)))
    for output in tape.outputs.values():
        size = int(np.prod(output.shape))
        if output.reduction == "each":
            expected.append(("pad", *grid_for(size, tasks, 1)))
        else:
            for blocks in (min(BLOCKS, tasks), 1):
                expected.append(("sum_tasks", *grid_for(size, blocks, 1)))
    assert backend.cupy.launches == 2 * expected  # once before the replay


@pytest.mark.parametrize(("work", "tasks"), [(1, 1), (129, 2), (10**7, 70_000)])
def test_grids_are_no_larger_than_a_gpu_takes(work, tasks):
    backend = SerialBackend()
    backend.device.launch("sum_tasks", "float64", work, tasks, (0,) * 6)
    backend.device.stream.synchronize()
    assert backend.cupy.launches == [("sum_tasks", *grid_for(work, tasks))]
