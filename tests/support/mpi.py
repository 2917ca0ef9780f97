"""Programs under `mpirun`, for the tests: several ranks on this computer.

The scenarios are functions of `rank_scenarios.py`, and each rank writes what it saw
into a file of its own. Open MPI and MPICH are used alike; more ranks than cores, and
the user root, are allowed.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.workers import ALLOWED
from tests.support.source_tree import ROOT

SECONDS = 120  # for a whole program, on a busy computer


def mpirun():
    """The path of mpirun: that of a wheel beside Python, or the system's; or None."""
    return shutil.which("mpirun", path=Path(sys.executable).parent) or shutil.which(
        "mpirun"
    )


def what_is_missing():
    """Why programs cannot be run under mpirun here; "" if they can."""
    if importlib.util.find_spec("mpi4py") is None:
        return "mpi4py is not installed"
    return "" if mpirun() else "there is no mpirun: pip install mpich"


def start(ranks, *arguments):
    """Start Python with these arguments on several ranks."""
    return subprocess.Popen(
        [mpirun(), "-n", str(ranks), sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **ALLOWED, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, seconds=SECONDS):
    """Wait for a program: its exit status, and all that it wrote."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"no end after {seconds} s:\n{out}\n{err}") from None
    return process.returncode, out + err


def scenario(ranks, name, folder, *arguments):
    """Start a scenario of `rank_scenarios.py` in a folder."""
    module = "tests.support.rank_scenarios"
    return start(ranks, "-m", module, name, folder, *arguments)


def reports(folder, ranks):
    """What the ranks of a scenario wrote, in their order; None for one that did not."""
    paths = [Path(folder, f"rank{rank}.json") for rank in range(ranks)]
    return [json.loads(p.read_text()) if p.exists() else None for p in paths]
