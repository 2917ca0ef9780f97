"""Without a GPU: kernels.cu compiles as CUDA, CuPy and cuBLAS have what is called."""

import ctypes
import inspect
import re
import shutil
import subprocess

import pytest

from tests.support.mutants import survives
from tinymaml.backends.cuda import cublas
from tinymaml.backends.cuda.backend import OLDEST_CUPY, REAL, SOURCE

TEXT = SOURCE.read_text(encoding="utf-8")
KERNELS = re.findall(r"^KERNEL (\w+)\(", TEXT, re.MULTILINE)
NVCC = shutil.which("nvcc")
every_real = pytest.mark.parametrize("real", REAL.values())
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc is not on the PATH")


def entry_points(ptx):
    """The names of the kernels in assembly."""
    return set(re.findall(r"\.visible .entry (\w+)\(", ptx))


# --- nvcc -----------------------------------------------------------------------------


def compile_with_nvcc(real, source, folder):
    """(messages of the compiler, the assembly)."""
    file, assembly = folder / "kernels.cu", folder / "kernels.ptx"
    file.write_text(source, encoding="utf-8")
    command = [NVCC, "-ptx", "-arch=sm_80", f"-DREAL={real}", "-o", str(assembly)]
    run = subprocess.run(
        [*command, str(file)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout + run.stderr, assembly.read_text(encoding="utf-8")


@needs_nvcc
@every_real
def test_nvcc_compiles_all_kernels_without_a_warning(real, tmp_path):
    messages, ptx = compile_with_nvcc(real, TEXT, tmp_path)
    assert not messages
    assert entry_points(ptx) == {*KERNELS}


def body(ptx, kernel):
    start = ptx.index(f".visible .entry {kernel}(")
    stop = ptx.find(".visible .entry", start + 1)
    return ptx[start : stop if stop >= 0 else None]


@needs_nvcc
def test_float32_is_not_computed_in_double_precision(tmp_path):
    """One constant of C would do that. Only the settings of training are in double.

    NVIDIA's sin and cos are, where they bring a large angle between -pi and pi.
    """
    text = TEXT.replace("return sin(x)", "return x").replace(
        "return cos(x)", "return x"
    )
    assert text != TEXT
    _, ptx = compile_with_nvcc("float", text, tmp_path)
    in_double = {kernel for kernel in KERNELS if ".f64" in body(ptx, kernel)}
    assert in_double == {"look_at", "begin_step", "sgd", "adam"}


@needs_nvcc
def test_nvcc_refuses_what_is_no_cuda(tmp_path):
    broken = TEXT.replace("blockIdx.y", "blockIdx.w")
    assert not survives(lambda: compile_with_nvcc("float", broken, tmp_path))


# --- CuPy -----------------------------------------------------------------------------


def cupy():
    reason = "CuPy is not installed"
    return pytest.importorskip("cupy", reason=reason, exc_type=ImportError)


def signature(function):
    """The signature as text; of a compiled function, from its docstring."""
    try:
        return str(inspect.signature(function))
    except (TypeError, ValueError):
        return (function.__doc__ or "").strip().split("\n")[0]


@every_real
def test_nvrtc_compiles_all_kernels(real):
    """NVRTC is the compiler that CuPy uses when the GPU backend is first used."""
    cupy()
    from cupy_backends.cuda.libs import nvrtc

    program = nvrtc.createProgram(TEXT, "kernels.cu", (), ())
    options = ("--gpu-architecture=compute_80", f"-DREAL={real}")
    nvrtc.compileProgram(program, options)
    assert not nvrtc.getProgramLog(program).strip("\0\n ")
    ptx = nvrtc.getPTX(program)
    ptx = ptx.decode() if isinstance(ptx, bytes) else ptx
    assert entry_points(ptx) == {*KERNELS}


def functions_of_cublas():
    """The names of the functions that cublas.py calls."""
    names = set(re.findall(r"cublas\w+_v2|cublasSet\w+", inspect.getsource(cublas)))
    return names | {f"cublas{letter}gemmStridedBatched" for letter in "SD"}


def test_library_that_cupy_loads_has_the_functions_of_cublas():
    cupy()
    from cupy_backends.cuda.libs import cublas as loaded

    library = ctypes.CDLL(loaded.__file__)
    names = functions_of_cublas()
    assert len(names) == 6
    for name in names:
        assert getattr(library, name)


def test_cupy_has_what_is_called():
    """Each function has its parameters, as far as its signature is known."""
    module = cupy()
    import cupyx

    cuda = module.cuda
    expected = {
        cuda.Stream.__init__: ["non_blocking"],
        cuda.Stream.synchronize: [],
        cuda.Stream.begin_capture: [],
        cuda.Stream.end_capture: [],
        cuda.Stream.__enter__: [],
        cuda.Event.__init__: ["disable_timing"],
        cuda.Event.record: ["stream"],
        cuda.Event.synchronize: [],
        cuda.Graph.launch: ["stream"],
        cuda.runtime.memGetInfo: [],
        cuda.runtime.getDeviceCount: [],
        module.get_default_memory_pool: [],
        cuda.MemoryPool.free_bytes: [],
        cuda.MemoryPool.used_bytes: [],
        cuda.MemoryPool.get_limit: [],
        module.ndarray.set: ["stream"],
        module.ndarray.get: ["stream", "out"],
        module.zeros: ["shape", "dtype"],
        module.empty: ["shape", "dtype"],
        cupyx.empty_pinned: ["shape", "dtype"],
        module.RawModule.get_function: ["name"],
    }
    for function, parameters in expected.items():
        text = signature(function)
        for name in parameters:
            assert re.search(rf"\b{name}\b", text), f"{function}: {text}"
    assert "code" in module.RawModule.__doc__ and "options" in module.RawModule.__doc__
    assert issubclass(cuda.memory.OutOfMemoryError, MemoryError)
    assert "ptr" in cuda.Stream.__doc__
    version = int(module.__version__.split(".")[0])
    assert version >= OLDEST_CUPY
