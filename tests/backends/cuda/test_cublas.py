"""Products by cuBLAS: its arguments, and the settings of its handle."""

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinymaml as tm
from tests.support.running import DTYPES
from tests.support.serial_cupy import (
    WHY_NOT,
    Queue,
    SerialCublas,
    SerialCupy,
    run_serially,
)
from tinymaml.backends.cuda.backend import CupyDevice
from tinymaml.backends.cuda.cublas import WORKSPACE, Cublas, CublasError, Gemm, Matrix

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
many = settings(max_examples=10 * settings().max_examples)
size, spare = st.integers(1, 5), st.integers(0, 3)


def handle(tf32=False, stream=1, workspace=2):
    library = SerialCublas(Queue()).library  # it computes at once
    return Cublas(library, stream, workspace, tf32), library


def columns(memory, start, shape, ld):
    """A matrix in memory as the library sees it: columns next to each other."""
    step = memory.itemsize
    strides = step, ld * step
    return np.lib.stride_tricks.as_strided(memory[start:], shape, strides)


@many
@given(data=st.data(), dtype=st.sampled_from(DTYPES))
def test_gemm_is_a_product_for_each_task(data, dtype):
    """With room between columns and between tasks, and steps of 0; whole numbers, so
    that results are exact."""
    m, n, k, tasks = (data.draw(size) for _ in range(4))
    ta, tb, accumulate = (data.draw(st.booleans()) for _ in range(3))
    shapes = {"a": (k, m) if ta else (m, k), "b": (n, k) if tb else (k, n), "c": (m, n)}
    rng, matrices, arrays = np.random.default_rng(0), {}, {}
    for name, (rows, across) in shapes.items():
        ld = rows + data.draw(spare)
        step = ld * across + data.draw(spare)
        if name != "c" and data.draw(st.booleans()):
            step = 0  # shared by all tasks
        memory = rng.integers(-9, 10, ld * across + tasks * step).astype(dtype)
        matrices[name] = Matrix(memory.ctypes.data, ld, step)
        arrays[name] = (
            memory,
            [columns(memory, t * step, (rows, across), ld) for t in range(tasks)],
        )
    before = arrays["c"][0].copy()
    cublas, _ = handle()
    cublas.gemm(
        np.dtype(dtype),
        Gemm(
            transpose_a=ta,
            transpose_b=tb,
            accumulate=accumulate,
            tasks=tasks,
            m=m,
            n=n,
            k=k,
            **matrices,
        ),
    )
    for t in range(tasks):
        a, b, c = (arrays[name][1][t] for name in "abc")
        ld, start = matrices["c"].ld, t * matrices["c"].step
        expected = columns(before, start, (m, n), ld)  # written to, in place
        product = (a.T if ta else a) @ (b.T if tb else b)
        expected[:] = product + accumulate * expected
        assert np.array_equal(c, expected)
    assert np.array_equal(arrays["c"][0], before)  # nothing but the products changed


@many
@given(
    sizes=st.tuples(size, size, size),
    tasks=size,
    flags=st.tuples(*[st.booleans()] * 4),
    more=st.sampled_from(["", "before", "behind"]),
    dtype=st.sampled_from(DTYPES),
)
def test_matrices_of_tapes_have_rows_next_to_each_other(
    sizes, tasks, flags, more, dtype
):
    """Factors per task or shared, transposed, inside of a buffer, added to a value."""
    (m, n, k), (ta, tb, shared_a, shared_b) = sizes, flags
    shapes = {"a": (k, m) if ta else (m, k), "b": (n, k) if tb else (k, n), "c": (m, n)}
    shared = {"a": shared_a, "b": shared_b, "c": True}
    tape, rng, inputs, values = tm.Tape(), np.random.default_rng(0), {}, {}
    for name, shape in shapes.items():
        flat = tape.input(name, (np.prod(shape) + 3,), per_task=not shared[name])
        values[name] = flat[2 : 2 + np.prod(shape)].reshape(*shape)
        whole = flat.shape if shared[name] else (tasks, *flat.shape)
        inputs[name] = rng.integers(-9, 10, whole)
    product = tape.record("matmul", values["a"], values["b"], ta=ta, tb=tb)
    base = values["c"] * 2.0
    tape.output(
        "out", {"": product, "before": base + product}.get(more, product + base)
    )
    out = run_serially(tape, inputs, dtype)["out"]
    a, b, c = (
        np.broadcast_to(array, (len(out), array.shape[-1]))[:, 2:-1].reshape(-1, *shape)
        for array, shape in zip(inputs.values(), shapes.values(), strict=True)
    )
    a, b = a.swapaxes(1, 2) if ta else a, b.swapaxes(1, 2) if tb else b
    assert np.array_equal(out, a @ b + (2 * c if more else 0))


@pytest.mark.parametrize("name", ["cublasCreate_v2", "cublasSetMathMode"])
def test_a_handle_is_refused_with_the_function_and_its_status(name):
    working = handle()[0]._library

    class Broken:
        def __getattr__(self, function):
            return (lambda *_: 3) if function == name else getattr(working, function)

    with pytest.raises(CublasError, match=f"{name} returned status 3"):
        Cublas(Broken(), 1, 2, False)


def product(**wrong):
    """Arguments of a product of two numbers, one of them wrong."""
    matrices = dict.fromkeys("abc", Matrix(np.ones(1).ctypes.data, ld=1, step=1))
    sizes = dict.fromkeys(("m", "n", "k", "tasks"), 1)
    flags = dict.fromkeys(("transpose_a", "transpose_b", "accumulate"), False)
    return Gemm(**{**matrices, **sizes, **flags, **wrong})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wrong", [{"k": 2}, {"m": 2}, {"tasks": -1}])
def test_a_product_is_refused_with_the_function_and_its_status(dtype, wrong):
    cublas, letter = handle()[0], {"float32": "S", "float64": "D"}[dtype]
    message = f"cublas{letter}gemmStridedBatched returned status 7"
    with pytest.raises(CublasError, match=message):
        cublas.gemm(np.dtype(dtype), product(**wrong))
    assert isinstance(CublasError(), RuntimeError)


def settings_of(library):
    """The settings of the library's handle, by name."""
    settings = SimpleNamespace()
    for name in ("stream", "workspace", "workspace_size", "mode"):
        function = getattr(library, f"{name}_set")
        function.restype = ctypes.c_int if name == "mode" else ctypes.c_size_t
        setattr(settings, name, function())
    return settings


@pytest.mark.parametrize(("tf32", "mode"), [(False, 0), (True, 3), (False, 0)])
def test_handle_has_stream_workspace_and_mode(tf32, mode):
    far = 2**40 + 5  # addresses have 64 bits
    _, library = handle(tf32, stream=far, workspace=far + 1)
    found = settings_of(library)
    assert (found.stream, found.workspace, found.mode) == (far, far + 1, mode)
    assert found.workspace_size == WORKSPACE == 32 * 2**20


def test_device_gives_its_stream_and_memory_of_its_own():
    cupy = SerialCupy()
    library = SerialCublas(cupy.queue)
    device = CupyDevice(cupy, cupy, library)
    found = settings_of(library.library)
    assert found.stream == device.stream.ptr
    assert found.workspace == device._workspace.data.ptr
    assert device._workspace.array.nbytes == found.workspace_size
    assert found.mode == 0  # float32 means float32 by default
    CupyDevice(cupy, cupy, library, tf32=True)
    assert settings_of(library.library).mode == 3


def test_what_waits_behind_a_failed_call_never_runs():
    queue, ran = Queue(), []
    queue.call(lambda: 7)  # the status of a refused product
    queue.call(ran.append, "behind it")
    with pytest.raises(AssertionError, match="failed"):
        queue.wait()
    queue.call(ran.append, "later")
    queue.wait()
    assert ran == ["later"] and queue.finished == 3
