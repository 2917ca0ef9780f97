"""Programs under threads, forks, failed allocations and copies: right numbers, or a
refusal of one line."""

import copy
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import tinymaml as tm
from tests.support.mutants import put, survives
from tests.support.running import BACKENDS
from tinymaml.autodiff.tape import Tape
from tinymaml.backends.numba.backend import BoundProgram
from tinymaml.backends.programs import ProgramCache

one_or_two_threads = pytest.mark.parametrize("threads", [1, 2])


def compiled(threads, backend="numba"):
    tape = Tape()
    x, w = tape.input("x", (20, 30), per_task=True), tape.input("w", (30, 20))
    tape.output("each", x @ w)
    tape.output("sum", (x @ w).sum(), "sum")
    return tm.get_backend(backend, threads).compile(tape, "float64")


def inputs_of(tasks):
    rng = np.random.default_rng(tasks)
    x = rng.standard_normal((tasks, 20, 30))
    return {"x": x, "w": rng.standard_normal((30, 20))}


def numbers(run, inputs):
    """The outputs, to the last bit."""
    return {name: array.tobytes() for name, array in run(inputs).items()}


def check_threads_of_python(run, batches, expected):
    """Four threads of Python call for several batches, again and again."""
    with ThreadPoolExecutor(4) as pool:
        for _ in range(50):
            calls = [pool.submit(numbers, run, inputs) for inputs in batches]
            assert [call.result() for call in calls] == expected


@pytest.mark.parametrize("backend", BACKENDS)
@one_or_two_threads
def test_several_threads_of_python_may_call_one_program(backend, threads):
    program = compiled(threads, backend)
    batches = [inputs_of(tasks) for tasks in (3, 25, 25, 3, 40, 25)]
    expected = [numbers(program, inputs) for inputs in batches]
    check_threads_of_python(program, batches, expected)


@one_or_two_threads
def test_several_threads_of_python_may_call_one_binding(threads):
    program, inputs = compiled(threads), inputs_of(25)
    run = program.bind({"w": inputs.pop("w")})
    batches = [{"x": inputs["x"][:tasks]} for tasks in (3, 25, 12, 25)]
    expected = [numbers(run, inputs) for inputs in batches]
    check_threads_of_python(run, batches, expected)


WORKQUEUE = """
from concurrent.futures import ThreadPoolExecutor
from tests.backends.test_sharing import compiled, inputs_of, numbers

programs, inputs = [compiled(2) for _ in range(4)], inputs_of(25)
expected = numbers(programs[0], inputs)
with ThreadPoolExecutor(4) as pool:
    for _ in range(50):
        results = pool.map(lambda program: numbers(program, inputs), programs)
        assert all(result == expected for result in results)
"""


def test_two_parallel_programs_do_not_end_a_process_without_openmp():
    """Numba's layer `workqueue` ends it if two threads of Python call it at once."""
    run = subprocess.run(
        [sys.executable, "-c", WORKQUEUE],
        env={**os.environ, "NUMBA_THREADING_LAYER": "workqueue"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("inherited", [True, False])
def test_a_forked_process_computes_the_same_numbers(inherited):
    """Also after parallel calls, with the parent's program or with one of its own."""
    program, inputs = compiled(2), inputs_of(25)
    expected = numbers(program, inputs)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def work():
        queue.put(numbers(program if inherited else compiled(2), inputs) == expected)

    child = context.Process(target=work)
    child.start()
    child.join(30)
    try:
        assert child.exitcode == 0
        assert queue.get()
    finally:
        child.kill()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_in_the_middle_of_a_call_leaves_the_child_free_to_call():
    """A lock that another thread holds at the fork would never be released there."""
    program, inputs = compiled(1), inputs_of(25)
    programs = ProgramCache()
    programs.get(("key",), lambda: program)
    expected = numbers(program, inputs)
    with program.lock, programs._lock:  # as in the middle of a call
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            again = programs.get(("key",), lambda: None)
            threading.Thread(
                target=lambda: os._exit(numbers(again, inputs) != expected)
            ).start()
            signal.pause()
    assert os.waitpid(child, 0)[1] == 0
    assert numbers(program, inputs) == expected


def interrupted(run, inputs, method, line, error):
    """Call, with an error raised at a line of a method: whether it was reached."""
    code, reached = method.__code__, []

    def trace(frame, event, _):
        if frame.f_code is not code:
            return trace if event == "call" else None
        if event == "line" and frame.f_lineno == line and not reached:
            reached.append(line)
            raise error
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run(inputs)
    except error:
        pass
    finally:
        sys.settrace(before)
    return bool(reached)


def check_interruptions(method, error=MemoryError):
    code = getattr(BoundProgram, method).__code__
    lines = {line for *_, line in code.co_lines() if line} - {code.co_firstlineno}
    expected, reached = numbers(compiled(1), inputs_of(7)), 0
    for line in sorted(lines):
        program = compiled(1)
        before = numbers(program, inputs_of(3))
        function = getattr(BoundProgram, method)
        reached += interrupted(program, inputs_of(7), function, line, error)
        assert numbers(program, inputs_of(7)) == expected
        assert numbers(program, inputs_of(3)) == before
    assert reached >= 4


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("method", ["_allocate", "_addresses", "__call__"])
def test_an_interrupted_call_leaves_the_program_as_it_was(method, error):
    check_interruptions(method, error)


@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, pickle.dumps], ids=lambda f: f.__name__
)
def test_programs_cannot_be_copied(duplicate, bound):
    program = compiled(1)
    with pytest.raises(TypeError, match=r"^a compiled program cannot be copied or .*$"):
        duplicate(program.bind({}) if bound else program)


def test_a_size_that_is_noted_before_its_memory_exists_is_caught(monkeypatch):
    put(
        monkeypatch,
        BoundProgram,
        "_allocate",
        "arrays = {",
        "self._memory = self._memory._replace(tasks=tasks) if tasks == 7 else None\n"
        "    arrays = {",
    )
    assert not survives(lambda: check_interruptions("_allocate"))


def test_a_call_holds_the_lock_of_its_program():
    """Races are rare on a quiet machine: the lock is seen to be held instead."""
    program, inputs, held = compiled(1), inputs_of(3), []

    class Watched(dict):
        """Inputs that note, whenever one is read, whether the lock is held."""

        def __getitem__(self, name):
            held.append(program.lock.locked())
            return super().__getitem__(name)

    program(Watched(inputs))
    program.bind({"w": inputs["w"]})(Watched(x=inputs["x"]))
    # Inputs are checked before the lock is taken, and copied while it is held.
    assert held == [False, False, True, True, False, True]
    assert not program.lock.locked()
