"""Products by cuBLAS: what it is told of arrays, and what it was told before."""

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
from tinymaml.backends.cuda.cublas import WORKSPACE, Cublas, CublasError, Gemm

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
many = settings(max_examples=10 * settings().max_examples)
size, spare = st.integers(1, 5), st.integers(0, 3)


def handle(tf32=False, stream=1, workspace=2):
    library = SerialCublas(Queue()).library  # which does at once what it is told
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
    ta, tb, more = (data.draw(st.booleans()) for _ in range(3))
    shapes = {"a": (k, m) if ta else (m, k), "b": (n, k) if tb else (k, n), "c": (m, n)}
    rng, given_to_it, seen = np.random.default_rng(0), {}, {}
    for name, (rows, across) in shapes.items():
        ld = rows + data.draw(spare)
        step = ld * across + data.draw(spare)
        if name != "c" and data.draw(st.booleans()):
            step = 0  # shared by all tasks
        memory = rng.integers(-9, 10, ld * across + tasks * step).astype(dtype)
        given_to_it |= {name: memory.ctypes.data, f"ld{name}": ld, f"step_{name}": step}
        seen[name] = (
            memory,
            [columns(memory, t * step, (rows, across), ld) for t in range(tasks)],
        )
    before = seen["c"][0].copy()
    cublas, _ = handle()
    cublas.gemm(
        np.dtype(dtype),
        Gemm(
            transpose_a=ta,
            transpose_b=tb,
            more=more,
            tasks=tasks,
            m=m,
            n=n,
            k=k,
            **given_to_it,
        ),
    )
    for t in range(tasks):
        a, b, c = (seen[name][1][t] for name in "abc")
        ld, start = given_to_it["ldc"], t * given_to_it["step_c"]
        expected = columns(before, start, (m, n), ld)  # written to, in place
        product = (a.T if ta else a) @ (b.T if tb else b)
        expected[:] = product + more * expected
        assert np.array_equal(c, expected)
    assert np.array_equal(seen["c"][0], before)  # nothing but the products changed


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
    """Of each task or shared, transposed, in the middle of a buffer, added to."""
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
        def __getattr__(self, unbound):
            return (lambda *_: 3) if unbound == name else getattr(working, unbound)

    with pytest.raises(CublasError, match=f"{name} returned status 3"):
        Cublas(Broken(), 1, 2, False)


def product(**wrong):
    """Arguments of a product of two numbers, one of them wrong."""
    number = np.ones(1).ctypes.data
    matrix = {f"{word}{x}": 1 for word in ("ld", "step_") for x in "abc"}
    sizes = dict.fromkeys(("m", "n", "k", "tasks"), 1)
    flags = dict.fromkeys(("transpose_a", "transpose_b", "more"), False)
    arguments = {**matrix, **sizes, **flags, **dict.fromkeys("abc", number), **wrong}
    return Gemm(**arguments)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wrong", [{"k": 2, "ldb": 1}, {"m": 2}, {"tasks": -1}])
def test_a_product_is_refused_with_the_function_and_its_status(dtype, wrong):
    cublas, letter = handle()[0], {"float32": "S", "float64": "D"}[dtype]
    message = f"cublas{letter}gemmStridedBatched returned status 7"
    with pytest.raises(CublasError, match=message):
        cublas.gemm(np.dtype(dtype), product(**wrong))
    assert isinstance(CublasError(), RuntimeError)


def set_in(library):
    """What the library has been told, by name."""
    unbound = SimpleNamespace()
    for name in ("stream", "workspace", "workspace_size", "mode"):
        function = getattr(library, f"{name}_set")
        function.restype = ctypes.c_int if name == "mode" else ctypes.c_size_t
        setattr(unbound, name, function())
    return unbound


@pytest.mark.parametrize(("tf32", "mode"), [(False, 0), (True, 3), (False, 0)])
def test_handle_has_stream_workspace_and_mode(tf32, mode):
    far = 2**40 + 5  # addresses have 64 bits
    _, library = handle(tf32, stream=far, workspace=far + 1)
    told = set_in(library)
    assert (told.stream, told.workspace, told.mode) == (far, far + 1, mode)
    assert told.workspace_size == WORKSPACE == 32 * 2**20


def test_device_gives_its_stream_and_memory_of_its_own():
    cupy = SerialCupy()
    library = SerialCublas(cupy.queue)
    device = CupyDevice(cupy, cupy, library)
    told = set_in(library.library)
    assert told.stream == device.stream.ptr
    assert told.workspace == device._workspace.data.ptr
    assert device._workspace.array.nbytes == told.workspace_size
    assert told.mode == 0  # float32 means float32 unless asked
    CupyDevice(cupy, cupy, library, tf32=True)
    assert set_in(library.library).mode == 3
