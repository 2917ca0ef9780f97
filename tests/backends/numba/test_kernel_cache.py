"""Compiled kernels on disk: whatever happens to a file, no other code is ever run."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from numba import njit

import tinymaml
from tinymaml.backends.numba import kernel_cache
from tinymaml.backends.numba.kernel_cache import kept_on_disk

# Call kernels of two operands on 3 and 5, through their addresses.
CALL = """
import ctypes, sys
import numpy as np
from tinymaml.backends.numba import backend
words = [ctypes.c_void_p] * 4
for name in sys.argv[1:]:
    address = backend.kernel_address(name, "float64")
    w, args = np.array([0.0, 3.0, 5.0]), np.array([0, 1, 2, 1, 1, 1])
    kernel = ctypes.CFUNCTYPE(ctypes.c_int, *words)(address)
    kernel(*(a.ctypes.data for a in (np.zeros(1), np.zeros(1), w, args)))
    print(w[0])
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A fresh folder of kernels, for this process and those that it starts."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("NUMBA_OPT", "1")  # compiled faster; what is tested is the same
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    kernel_cache.config.reload_config()  # as Numba does itself, but sooner
    return tmp_path / "cache"


def files_in(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def start(code, *args, **settings):
    return subprocess.Popen(
        [sys.executable, "-c", code, *args],
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def output_of(process):
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 0, text
    return text


def call(*names, before="", **settings):
    """The results of kernels, called in a fresh process."""
    process = start(before + CALL, *names, **settings)
    return [float(line) for line in output_of(process).splitlines()]


# --- in this process ------------------------------------------------------------------


def add_one(x):
    return x + 1


def add_two(x):
    return x + 2


def hits(function, name, argument=1):
    """Compile a function as a new process would: (its value, whether it was loaded)."""
    compiled = kept_on_disk(njit(function), name)
    return compiled(argument), bool(compiled.stats.cache_hits)


def test_one_file_for_each_function_and_types_is_written_and_loaded(folder):
    assert hits(add_one, "one") == (2, False)
    assert hits(add_one, "one", 1.5) == (2.5, False)
    assert hits(add_two, "two") == (3, False)
    assert len(files_in(folder)) == 3
    assert hits(add_one, "one") == (2, True)
    assert hits(add_one, "one", 1.5) == (2.5, True)
    assert hits(add_two, "two") == (3, True)


def test_a_damaged_file_is_compiled_anew_and_replaced(folder):
    hits(add_one, "one")
    (path,) = files_in(folder)
    good = path.read_bytes()
    places = [*range(34), *np.linspace(34, len(good) - 1, 16).astype(int)]
    flipped = [good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :] for i in places]
    cut = [good[:length] for length in (0, 1, 31, 32, 33, len(good) // 2, -1)]
    for damaged in [*flipped, *cut, good + b"\0", bytes(len(good))]:
        path.write_bytes(damaged)
        compiled = kept_on_disk(njit(add_one), "one")
        assert compiled._cache.load_overload((), compiled.targetctx) is None
    for damaged in (flipped[0], flipped[-1], cut[0], cut[-1]):
        path.write_bytes(damaged)
        assert hits(add_one, "one") == (2, False)
        assert path.read_bytes() != damaged
        assert hits(add_one, "one") == (2, True)


def test_the_file_of_another_kernel_is_not_run(folder):
    hits(add_one, "one")
    (one,) = files_in(folder)
    hits(add_two, "two")
    (two,) = {*files_in(folder)} - {one}
    shutil.copy(two, one)
    assert hits(add_one, "one") == (2, False)


def test_settings_of_numba_have_files_of_their_own(folder, monkeypatch):
    hits(add_one, "one")
    monkeypatch.setenv("NUMBA_BOUNDSCHECK", "1")
    kernel_cache.config.reload_config()
    assert hits(add_one, "one") == (2, False)
    monkeypatch.setenv("NUMBA_DEBUG_CACHE", "0")
    kernel_cache.config.reload_config()
    assert hits(add_one, "one") == (2, True)
    assert len(files_in(folder)) == 2


def test_files_of_other_sources_and_of_killed_processes_are_removed(
    folder, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(kernel_cache, "SOURCES", "0" * 64)
        patch.setattr(kernel_cache, "hash_of_sources", lambda: "0" * 64)
        hits(add_one, "one")
        hits(add_one, "other_one")
    old, other = files_in(folder)
    left = old.with_name(".tinymaml-0123abcd.tmp")  # as files.py names them
    left.write_bytes(b"half a file")
    assert hits(add_one, "one") == (2, False)
    assert not old.exists()
    assert not left.exists()
    assert other.exists()
    assert len(files_in(folder)) == 2


def test_a_package_in_a_folder_whose_name_is_no_text_has_a_cache(monkeypatch):
    name = os.fsdecode(b"/some/bad\xff/numba/kernel_cache.py")
    monkeypatch.setattr(kernel_cache, "__file__", name)
    places = [*kernel_cache._folders()]
    assert places and all(os.fsencode(place) for place in places)


def test_sources_that_changed_since_they_were_imported_keep_nothing(
    folder, monkeypatch
):
    monkeypatch.setattr(kernel_cache, "hash_of_sources", lambda: "0" * 64)
    assert hits(add_one, "one") == (2, False)
    assert files_in(folder) == []


def test_without_sources_nothing_is_kept_or_loaded(folder, monkeypatch):
    monkeypatch.setattr(kernel_cache, "SOURCES", "")
    monkeypatch.setattr(kernel_cache, "hash_of_sources", lambda: "")
    assert hits(add_one, "one") == (2, False)
    assert hits(add_one, "one") == (2, False)
    assert files_in(folder) == []


def test_the_users_folder_is_next_and_then_nothing_is_kept(
    tmp_path, folder, monkeypatch
):
    """A file stands where a folder would have to be: nobody can write there."""
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    kernel_cache.config.reload_config()
    monkeypatch.setenv("TINYMAML_CACHE", str(tmp_path / "home"))
    package = tmp_path / "package"
    package.mkdir()
    (package / "__pycache__").write_text("no folder")
    monkeypatch.setattr(kernel_cache, "__file__", str(package / "kernel_cache.py"))
    assert hits(add_one, "one") == (2, False)
    assert len(files_in(tmp_path / "home")) == 1
    assert hits(add_one, "one") == (2, True)
    shutil.rmtree(tmp_path / "home")
    monkeypatch.chdir(tmp_path)
    for home in (package / "__pycache__", Path("~/.cache")):  # a user without a home
        monkeypatch.setattr(kernel_cache, "cache_folder", lambda home=home: home)
        assert hits(add_one, "one") == (2, False)
        assert hits(add_one, "one") == (2, False)
    assert files_in(tmp_path) == [package / "__pycache__"]


def test_modules_with_compiled_functions_are_hashed():
    package = Path(kernel_cache.__file__).parent
    modules = {path.stem for path in package.glob("*.py") if path.stem != "__init__"}
    with_numba = {
        name
        for name in modules
        if "from numba" in (package / f"{name}.py").read_text(encoding="utf-8")
    }
    assert with_numba == {*tinymaml.backends.numba.COMPILED}


# --- in other processes ---------------------------------------------------------------

# Children are killed while they write: first each before one of its calls that change
# the folder, then each after a random time.
KILL = """
import os, random, signal, sys, time
from numba import njit
from tinymaml.backends.numba.kernel_cache import kept_on_disk, _folders

def compiled():
    return kept_on_disk(njit(lambda x: x + 1), "one")

function = compiled()
assert function(1) == 2
result, = function.overloads.values()
target, = next(_folders()).glob("*.kernel")
good, size = target.read_bytes(), target.stat().st_size
stale = target.with_name(target.name.replace(".kernel", "") + "old.kernel")
signature, loaded, missing = function.signatures[0], 0, 0

def save_and(die):
    child = os.fork()
    if child == 0:
        die()
        while True:
            function._cache.save_overload(signature, result)
            stale.write_bytes(b"old")
            if die is kill_before_a_call:
                os._exit(0)
    return child

def check(child):
    global loaded, missing
    killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    again = compiled()
    found = again._cache.load_overload(signature, again.targetctx)
    if target.exists():
        assert target.stat().st_size == size and found is not None
        loaded += 1
    else:
        missing += 1
    assert again(1) == 2
    assert [*target.parent.iterdir()] == [target] or found is not None
    return killed

def kill_before_a_call():
    events = 0
    folder = os.fspath(target.parent)
    def count(event, arguments):
        nonlocal events
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.listdir",
                     "os.scandir") and folder in str(arguments[0]):
            if events == step:
                os.kill(os.getpid(), signal.SIGKILL)
            events += 1
    sys.addaudithook(count)

for present in (True, False):
    step = 0
    while True:
        target.write_bytes(good) if present else target.unlink(missing_ok=True)
        if not check(save_and(kill_before_a_call)):
            break
        step += 1
    assert step >= 3, step
random.seed(0)
for i in range(30):
    target.write_bytes(good) if i % 2 else target.unlink(missing_ok=True)
    child = save_and(lambda: None)
    time.sleep(random.uniform(0, 0.02))
    os.kill(child, signal.SIGKILL)
    assert check(child)
assert loaded and missing
# The next process that compiles it removes all that killed ones left.
target.unlink(missing_ok=True)
assert compiled()(1) == 2
assert [*target.parent.iterdir()] == [target], [*target.parent.iterdir()]
print("ok")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
def test_a_process_killed_at_any_moment_leaves_the_file_whole_or_absent(folder):
    assert output_of(start(KILL)) == "ok\n"


FULL = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"


@pytest.mark.slow
def test_a_full_disk_and_other_sources_never_give_the_code_of_another(
    tmp_path, folder, monkeypatch
):
    """Sources are replaced, also by older ones, and the disk is full in between."""
    package = tmp_path / "installed" / "tinymaml"
    leave_out = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(tinymaml.__file__).parent, package, ignore=leave_out)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.chdir(package.parent)
    assert call("add") == [8]
    assert call("add", "mul", before=FULL) == [8, 15]
    (old_file,) = files_in(folder)
    source = package / "backends" / "numba" / "kernels.py"
    text = source.read_text(encoding="utf-8")
    changed = text.replace("value = combine(w[x + m]", "value = -combine(w[x + m]")
    assert changed != text
    source.write_text(changed, encoding="utf-8")
    assert call("mul", before=FULL) == [-15]
    assert call("add", "mul") == [-8, -15]
    assert not old_file.exists()
    source.write_text(text, encoding="utf-8")
    past = time.time() - 1e6
    os.utime(source, (past, past))
    assert call("mul", "add") == [15, 8]


@pytest.mark.slow
def test_processes_that_compile_at_once_and_later_ones_compute_right(folder):
    """All see an empty folder; hashes are seeded alike, so that names in machine code
    are as alike as they can be."""
    wait = "import time\ntime.sleep(max(0, float(sys.argv.pop()) - time.time()))\n"
    code = CALL.replace("words = ", wait + "words = ")
    moment, seed = str(time.time() + 4), {"PYTHONHASHSEED": "0"}
    names = ("add", "mul", "mul", "sub")
    processes = [start(code, name, moment, **seed) for name in names]
    results = [float(output_of(process)) for process in processes]
    assert results == [8, 15, 15, -2]
    assert len(files_in(folder)) == 3
    assert call("sub", "mul", "add", **seed) == [-2, 15, 8]
