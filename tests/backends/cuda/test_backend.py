"""The GPU backend: whether it can be used, the notices if not, and its calls of CuPy.

Broken installations of CuPy are imitated by packages in a folder on Python's path.
"""

import copy
import os
import pickle
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import tinymaml as tm
from tests.support.gpu_backends import gpu_backend
from tests.support.serial_cupy import WHY_NOT, SerialCublas, SerialCupy
from tinymaml.backends.cuda import backend as cuda
from tinymaml.backends.cuda.backend import MOST_BLOCKS, THREADS, CupyDevice
from tinymaml.backends.cuda.cublas import WORKSPACE

needs_compiler = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
WORKS = """
__version__ = "14.2.0"
from types import SimpleNamespace
cuda = SimpleNamespace(runtime=SimpleNamespace(getDeviceCount=lambda: 1))
"""
NO_GPU = WORKS.replace("lambda: 1", "lambda: 0")
OLD_DRIVER = """
__version__ = "14.2.0"
from types import SimpleNamespace
def count():
    raise RuntimeError("cudaErrorInsufficientDriver: the driver is too old\\nfor this")
cuda = SimpleNamespace(runtime=SimpleNamespace(getDeviceCount=count))
"""
INSTALLATIONS = {
    "broken": ("raise ImportError('libnvrtc.so\\nnot found')", "libnvrtc.so not found"),
    "silent": ("raise ImportError", "ImportError"),
    "too old": ("__version__ = '12.3.0'", "CuPy 12.3.0 is too old, 13 is needed"),
    "no GPU": (NO_GPU, "CuPy finds no GPU"),
    "old driver": (
        OLD_DRIVER,
        "cudaErrorInsufficientDriver: the driver is too old for",
    ),
    "no cuBLAS": (WORKS, "libcublas is missing"),
}


def run_python(code, folder=None, driver=False):
    """A fresh interpreter with packages of a folder: (status, stdout, stderr)."""
    environment = {**os.environ, "PATH": str(folder) if driver else ""}
    if folder is not None:
        paths = (str(folder), os.environ.get("PYTHONPATH", ""))
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return run.returncode, run.stdout, run.stderr


def install(folder, cupy):
    """Packages as CuPy has them; cuBLAS is missing."""
    libraries = folder / "cupy_backends" / "cuda" / "libs"
    libraries.mkdir(parents=True)
    for name, text in (("cupy", cupy), ("cupyx", "")):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(text)
    for package in (libraries, *list(libraries.parents)[:2]):
        (package / "__init__.py").write_text("")
    (libraries / "cublas.py").write_text("raise ImportError('libcublas is missing')")


TAKE = """
import tinymaml as tm
for _ in range(2):
    print(tm.get_backend().name)
"""
ASK = """
import tinymaml as tm
try:
    tm.get_backend("cupy")
except ImportError as error:
    print(error)
"""
WITHOUT_CUPY = "import sys; sys.modules['cupy'] = None\n"


@pytest.mark.parametrize("fault", INSTALLATIONS)
def test_an_unusable_installation_gives_one_line_and_auto_does_without(fault, tmp_path):
    text, reason = INSTALLATIONS[fault]
    install(tmp_path, text)
    status, out, notice = run_python(TAKE, tmp_path)
    assert (status, out.split()) == (0, ["numba", "numba"])
    assert notice.startswith("tinymaml: no GPU is used: ") and reason in notice
    assert notice.count("\n") == 1
    status, out, notice = run_python(ASK, tmp_path)
    assert (status, notice) == (0, "")
    assert out.startswith("backend 'cupy': ") and reason in out
    assert out.count("\n") == 1


@pytest.mark.parametrize("tf32", [False, True])
def test_a_copy_or_a_pickle_finds_the_device_anew(tf32, monkeypatch):
    device = SimpleNamespace(cupy=sys)  # a module, as CuPy is one, has no pickle
    monkeypatch.setattr(cuda, "_find_device", lambda tf32: (device, ""))
    backend = cuda.CupyBackend(3, tf32)
    maml = tm.MAML(tm.squared_error, backend=backend)
    for other in (copy.deepcopy(maml).backend, pickle.loads(pickle.dumps(backend))):
        assert other is not backend and other.device is device
        assert (other.name, other.threads) == (backend.name, 3)


def test_missing_cupy_is_reported_only_where_there_is_a_driver(tmp_path):
    if not os.path.exists("/dev/nvidiactl"):
        status, out, notice = run_python(WITHOUT_CUPY + TAKE)
        assert (status, out.split(), notice) == (0, ["numba", "numba"], "")
    smi = tmp_path / "nvidia-smi"
    smi.write_text("")
    smi.chmod(0o755)
    status, out, notice = run_python(WITHOUT_CUPY + TAKE, tmp_path, driver=True)
    assert (status, out.split()) == (0, ["numba", "numba"])
    line = "CuPy is missing (pip install 'tinymaml[cuda]')"
    assert notice == f"tinymaml: no GPU is used: {line}.\n"
    status, out, notice = run_python(WITHOUT_CUPY + ASK)
    assert (status, out, notice) == (0, f"backend 'cupy': {line}\n", "")


def test_import_does_not_load_cupy(tmp_path):
    install(tmp_path, "raise SystemExit('loaded')")
    assert run_python("import tinymaml; print('done')", tmp_path) == (0, "done\n", "")


def test_examples_refuse_a_backend_that_is_not_there_in_one_line():
    code = WITHOUT_CUPY + (
        "import sys; sys.path.append('examples')\n"
        "from shared import experiment_parser, read_options\n"
        "parser = experiment_parser('', out='x', iterations=1, fast=1)\n"
        "read_options(parser, ['--backend', 'cupy'])\n"
    )
    status, out, message = run_python(code)
    assert (status, out) == (2, "")
    assert message.count("\n") == 1
    assert "argument --backend: backend 'cupy': CuPy is missing" in message


# --- where a GPU can be used ----------------------------------------------------------


@needs_compiler
def test_auto_takes_the_gpu_where_it_can_be_used(monkeypatch):
    device = gpu_backend("stand-in").device
    monkeypatch.setattr(cuda, "_find_device", lambda tf32: (device, ""))
    monkeypatch.setattr(cuda, "has_gpu_software", lambda: True)
    assert tm.get_backend().name == "cupy"
    assert tm.get_backend("cupy-tf32", threads=3).threads == 3
    tape = tm.Tape()
    x = tape.input("x", (3,), per_task=True)
    tape.output("square", x * x)
    run_tape = tm.get_backend("cupy").compile(tape, "float32")
    found = run_tape({"x": np.array([[1, 2, 3]], "float32")})["square"]
    assert found.tolist() == [[1, 4, 9]]


@needs_compiler
@pytest.mark.parametrize("tf32", [False, True])
def test_cublas_gets_stream_workspace_and_precision(tf32):
    cupy = SerialCupy()
    cublas = SerialCublas(cupy.queue)
    device = CupyDevice(cupy, cupy, cublas, tf32)
    assert cublas.library.stream_set() == device.stream.ptr
    assert cublas.library.workspace_size_set() == WORKSPACE
    assert cublas.library.mode_set() == (3 if tf32 else 0)


@needs_compiler
@pytest.mark.parametrize("work", [1, THREADS, THREADS + 1, 10**9])
@pytest.mark.parametrize("tasks", [1, 70_000])
def test_grids_cover_the_work_as_far_as_grids_go(work, tasks):
    backend = gpu_backend("stand-in")
    backend.device.launch("pad", "float32", work, tasks, (0, 0, 0, 0, 0, 0, 0))
    backend.device.stream.synchronize()
    ((_, (across, down), (threads,)),) = backend.cupy.launches
    assert threads == THREADS
    assert across * threads >= work or across == MOST_BLOCKS[0]
    assert (across - 1) * threads < work
    assert down == min(tasks, MOST_BLOCKS[1])


@needs_compiler
def test_capture_records_calls_and_replays_them():
    backend = gpu_backend("stand-in")
    calls = []
    replay = backend.device.capture([lambda: calls.append("called")])
    assert calls == ["called", "called"]  # once before the capture, and once in it
    counter = backend.device.put(np.array([0.0]))
    one = backend.device.put(np.array([1.0]))
    operations = backend.device.put(
        np.array([[0, *(counter.address, 0) * 2, one.address, 0, 1, 1]])
    )
    arguments = (operations.address, 1, 1)
    replay = backend.device.capture(
        [lambda: backend.device.launch("elementwise", "float64", 1, 1, arguments)]
    )
    assert backend.device.read(counter, 0, 1) == [1]  # before the capture only
    replay()
    replay()
    assert backend.device.read(counter, 0, 1) == [3]
