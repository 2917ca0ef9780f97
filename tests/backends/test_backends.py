"""Promises of all backends beyond equal numbers: names, threads, NaN, no Numba."""

import numpy as np
import pytest

import tinymaml as tm
from tests.support.gpu_backends import gpu_backend
from tests.support.node_backend import JAVASCRIPT, javascript_backend
from tests.support.running import BACKENDS, DTYPES, run_python, run_tape
from tinymaml.autodiff.tape import Tape
from tinymaml.backends import get_backend


def backend_named(name):
    if name == "javascript":
        return javascript_backend()
    return gpu_backend(name) if name == "stand-in" else get_backend(name)


every_backend = pytest.mark.parametrize("backend", BACKENDS)
in_javascript_too = pytest.mark.parametrize("backend", [*BACKENDS, JAVASCRIPT])


# --- with and without Numba -----------------------------------------------------------


def test_import_does_not_load_numba():
    out, _ = run_python("import sys, tinymaml; print(*sys.modules)")
    assert not {"numba", "matplotlib"} & set(out.split())


WITHOUT_NUMBA = """
import sys
sys.modules["numba"] = None  # as if it were not installed
import numpy as np
import tinymaml as tm
"""


def test_auto_without_numba_is_numpy_with_a_notice_of_one_line():
    out, notice = run_python(
        WITHOUT_NUMBA
        + "print(tm.get_backend().name, tm.get_backend('auto', 2).name)\n"
        + "one = np.ones((1, 1, 1))\n"
        + "loss = lambda theta, x, y: ((x * theta - y) * (x * theta - y)).mean()\n"
        + "tasks = tm.Tasks(one, one, one, one)\n"
        + "print(tm.MAML(loss, 0.25).meta_gradient(np.zeros(1), tasks).gradient)\n"
    )
    assert out.splitlines() == ["numpy numpy", "[-0.5]"]
    assert notice == "tinymaml: Numba is missing, so NumPy computes.\n"


def test_without_numbas_compiler_numpy_computes_with_a_notice_of_one_line(monkeypatch):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    out, notice = run_python(
        "import tinymaml as tm\n"
        "print(tm.get_backend().name, tm.get_backend('numba', 2).name)\n"
        "from tinymaml.backends.numba.backend import NumbaBackend\n"
        "try: NumbaBackend()\n"
        "except ImportError as error: print(error)\n"
    )
    assert out.splitlines() == [
        "numpy numpy",
        "NUMBA_DISABLE_JIT switches Numba's compiler off",
    ]
    assert notice == "tinymaml: NUMBA_DISABLE_JIT is set, so NumPy computes.\n"


def test_numba_without_numba_is_an_import_error():
    out, notice = run_python(
        WITHOUT_NUMBA
        + "try:\n    tm.get_backend('numba')\n"
        + "except ImportError as error:\n    print(error)\n"
    )
    assert out.startswith("backend 'numba' needs Numba: ")
    assert notice == ""


def test_choosing_numpy_gives_no_notice():
    _, notice = run_python(WITHOUT_NUMBA + "tm.get_backend('numpy')")
    assert notice == ""


def test_auto_is_numba_where_it_is_installed():
    assert tm.get_backend().name == "numba"


# --- names and threads ----------------------------------------------------------------


def test_the_class_of_a_backend_is_no_backend():
    numpy_backend = type(get_backend("numpy"))
    with pytest.raises(ValueError, match="^backend: expected one of auto, .*, got <cl"):
        get_backend(numpy_backend)


def test_backend_is_its_own_name():
    backend = tm.get_backend("numpy")
    assert tm.get_backend(backend) is backend


@pytest.mark.parametrize("name", ["cuda", "", "NumPy", None, 3])
def test_unknown_backend_is_refused(name):
    with pytest.raises(ValueError, match=f"backend: expected one of auto,.*{name!r}"):
        tm.get_backend(name)


@every_backend
def test_a_backend_has_the_number_of_threads_given(backend):
    assert tm.get_backend(backend, 3).threads == 3
    assert tm.get_backend(backend, np.int64(2)).threads == 2
    assert tm.get_backend(backend).threads >= 1


@every_backend
@pytest.mark.parametrize(
    ("threads", "error", "message"),
    [
        (0, ValueError, "threads: expected at least 1, got 0"),
        (-2, ValueError, "threads: expected at least 1, got -2"),
        (1.5, TypeError, "threads: expected a whole number, got 1.5"),
        (True, TypeError, "threads: expected a whole number, got True"),
        ("2", TypeError, "threads: expected a whole number, got '2'"),
    ],
)
def test_threads_are_a_whole_number_of_at_least_one(backend, threads, error, message):
    with pytest.raises(error, match=message):
        tm.get_backend(backend, threads)


# --- NaN and infinity -----------------------------------------------------------------


@in_javascript_too
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_are_results_and_not_lost(backend, dtype):
    tape = Tape()
    x = tape.input("x", (5,))
    tape.output("relu", tm.relu(x))
    tape.output("gate", tape.record("gate", tape.constant(2.0, (5,)), x))
    tape.output("log", tm.log(x))
    tape.output("exp", tm.exp(x * 1e4))
    tape.output("product", (x.reshape(1, 5) @ x.reshape(5, 1)))
    tape.output("matrix", x.reshape(5, 1) @ x.reshape(1, 5))
    tape.output("sum", x.sum())
    tape.output("zero times", x * tape.record("gate", x, x - x))
    numbers = np.array([np.nan, -1.0, 0.0, 1.0, np.inf])
    results = {
        k: a[0] for k, a in run_tape(tape, {"x": numbers}, backend, dtype).items()
    }
    nan, inf = np.nan, np.inf
    with np.errstate(invalid="ignore"):
        outer = np.outer(numbers, numbers)
    for name, expected in {
        "relu": [nan, 0, 0, 1, inf],
        "gate": [2, 0, 0, 2, 2],
        "log": [nan, nan, -inf, 0, inf],
        "exp": [nan, 0, 1, inf, inf],
        "zero times": [nan, 0, 0, 0, inf],
        "matrix": outer,
        "product": [[nan]],
        "sum": nan,
    }.items():
        assert np.array_equal(results[name], expected, equal_nan=True), name


# --- the inputs of a program ----------------------------------------------------------


def sum_program(backend):
    tape = Tape()
    a, b = tape.input("a", (3,), per_task=True), tape.input("b", (3,))
    tape.output("sum", a + b)
    return tm.get_backend(backend).compile(tape, "float64")


RIGHT = {"a": np.ones((2, 3)), "b": np.ones(3)}


@every_backend
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"a": np.ones((2, 4))}, ValueError, r"a: expected shape \(2, 3\).*\(2, 4\)"),
        ({"a": np.ones(3)}, ValueError, r"a: expected shape \(3, 3\).*got \(3,\)"),
        ({"a": np.ones((0, 3))}, ValueError, "tasks: expected at least one task"),
        ({"b": np.ones((1, 3))}, ValueError, r"b: expected shape \(3,\), got \(1, 3\)"),
        (
            {"b": np.ones(3, "float32")},
            TypeError,
            "b: expected .* float64, got float32",
        ),
        ({"b": [1.0] * 3}, TypeError, "b: expected an array of float64, got list"),
        ({"c": np.ones(3)}, ValueError, r"inputs: expected \['a', 'b'\], got .*'c'"),
    ],
)
def test_program_refuses_inputs_that_do_not_fit(backend, change, error, message):
    program = sum_program(backend)
    assert program(RIGHT)["sum"].tolist() == [[2] * 3] * 2
    with pytest.raises(error, match=message):
        program({**RIGHT, **change})
    with pytest.raises(ValueError, match=r"inputs: expected \['a', 'b'\], got \['a'\]"):
        program({"a": RIGHT["a"]})


@every_backend
@pytest.mark.parametrize("dtype", ["float16", "int64", "complex128", "nonsense", None])
def test_other_dtypes_are_refused(backend, dtype):
    tape = Tape()
    tape.output("a", tape.input("a", (3,)))
    if dtype is None:
        program = tm.get_backend(backend).compile(tape, dtype)
        assert program({"a": np.ones(3)})["a"].dtype == "float64"  # NumPy's default
        return
    with pytest.raises(TypeError, match=f"expected float32 or float64, got '?{dtype}"):
        tm.get_backend(backend).compile(tape, dtype)


@in_javascript_too
def test_tape_without_per_task_inputs_has_one_task(backend):
    tape = Tape()
    a = tape.input("a", (3,))
    tape.output("each", a * 2.0)
    tape.output("sum", a * 3.0, "sum")
    results = run_tape(tape, {"a": np.ones(3)}, backend)
    assert results["each"].tolist() == [[2] * 3]
    assert results["sum"].tolist() == [3] * 3


@in_javascript_too
@pytest.mark.parametrize("tasks", [1, 5, 31, 32, 33, 64, 65, 100])
def test_sums_run_over_all_tasks_once(backend, tasks):
    tape = Tape()
    a = tape.input("a", (), per_task=True)
    tape.output("each", a)
    tape.output("sum", a, "sum")
    tape.output("count", tape.constant(1.0), "sum")
    numbers = 2.0 ** (np.arange(tasks) % 50)
    results = run_tape(tape, {"a": numbers}, backend, threads=2)
    assert np.array_equal(results["each"], numbers)
    assert results["sum"] == numbers.sum()
    assert results["count"] == tasks


# --- what a program is made of --------------------------------------------------------


@pytest.mark.parametrize("backend", [*BACKENDS, "stand-in", JAVASCRIPT])
def test_a_program_does_not_change_with_its_tape(backend):
    tape = Tape()
    x = tape.input("x", (64,))
    a = tm.tanh(x)
    tape.output("d", tm.exp(tm.tanh(tm.exp(a))))
    program = backend_named(backend).compile(tape, "float64")
    arrays = {"x": np.linspace(-1, 1, 64)}
    before = program(arrays)["d"]
    tape.output("a", a)
    tape.output("sum", a.sum(), "sum")
    tape.input("y", (3,))
    for outputs in (
        program(arrays),
        program.bind({})(arrays),
        program.bind(arrays)({}),
    ):
        assert outputs.keys() == {"d"} and np.array_equal(outputs["d"], before)


@pytest.mark.parametrize("backend", [*BACKENDS, "stand-in", JAVASCRIPT])
@pytest.mark.parametrize("first", [0.0, -0.0])
def test_zeros_keep_their_signs(backend, first):
    tape = Tape()
    x = tape.input("x", (3,))
    for name, zero in (("a", first), ("b", -first)):
        tape.output(name, 1.0 / (x * zero))
        tape.output(f"{name} constant", 1.0 / tape.constant(zero, (3,)) + x)
    outputs = backend_named(backend).compile(tape, "float64")({"x": np.ones(3)})
    infinity = np.copysign(np.inf, first)
    for name, array in outputs.items():
        assert (array == (infinity if name[0] == "a" else -infinity)).all(), name


@every_backend
def test_a_masked_array_is_refused_and_a_matrix_is_an_array(backend):
    tape = Tape()
    x = tape.input("x", (2, 2))
    tape.output("product", x * x)
    program = backend_named(backend).compile(tape, "float64")
    with pytest.raises(TypeError, match="x: expected an array of float64, got Masked"):
        program({"x": np.ma.masked_array(np.ones((2, 2)), [[0, 0], [0, 1]])})
    matrix = np.array([[1.0, 2.0], [3.0, 4.0]]).view(np.matrix)
    assert program({"x": matrix})["product"][0].tolist() == [[1.0, 4.0], [9.0, 16.0]]
