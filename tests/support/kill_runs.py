"""Runs that are killed at random moments, and resumed: a campaign with a seed.

A small run of two trainings, which saves every few iterations, is killed by SIGKILL or
SIGTERM, resumed, and killed again, until it comes to its end. Then nothing may be lost:
its checkpoints and logs, their times apart, have the bits of those of a run that was
never interrupted, and no temporary file is left. A checkpoint that was seen once never
goes back, and every one that is there can be read. The suite runs a short form of the
campaign, and this is the long one, of a minute:

    python -m tests.support.kill_runs --kills 300
"""

import argparse
import os
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

from tests.support.running_examples import FOLDER  # so that examples can be imported
from tests.support.training import START, contents, parabola, untimed_csv
from tinymaml.training.checkpoint import load_checkpoint
from tinymaml.training.optim import Adam

assert FOLDER.is_dir()
NAMES, ITERATIONS = ("first", "second"), 60


def sample(rng):
    """A target of which half comes from the generator and half from its child."""
    return rng.normal(size=3) + rng.spawn(1)[0].normal(size=3)


def train(folder):
    """Start the run in `folder`, or resume it; return the exit status of an example."""
    import shared
    from stages import Stages

    options = argparse.Namespace(out=folder, iterations=ITERATIONS, overwrite=False)
    options.resume = folder if list(folder.glob("*/checkpoint.npz")) else None
    parser = shared.Parser(prog="kill_runs")

    def run():
        settings = (parser, options, "command", NAMES, {"seed": 0}, ["results.json"])
        with shared.open_stages(*settings) as stages:
            assert isinstance(stages, Stages)
            for number, name in enumerate(NAMES):
                stages.prepare(
                    name,
                    parabola,
                    START.astype(float),
                    sample,
                    iterations=ITERATIONS,
                    optimiser=Adam(0.1),
                    rng=np.random.default_rng(number),
                    checkpoint_every=2,
                    log_every=3,
                    progress=False,
                )
            for name in NAMES:
                stages.train(name)
            shared.write_json(folder / "results.json", {"done": True})

    return shared.run_to_the_end(parser, run)


def fork(function, *arguments):
    """Call a function in a forked process, quietly; return the process's number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns where there are threads
        child = os.fork()
    if child == 0:
        status = 99
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            status = function(*arguments)
        finally:
            os._exit(status)
    return child


def outcome(folder):
    """All of a finished run that must be reproducible."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [
        (str(path.relative_to(folder)), read(path))
        for path in paths
        if not path.name.startswith(".") or path.suffix == ".tmp"
    ]


def read(path):
    readers = {"checkpoint.npz": contents, "log.csv": untimed_csv}
    return readers.get(path.name, Path.read_bytes)(path)


def progress_of(folder):
    """The iteration of each checkpoint; each must be whole."""
    paths = (folder / name / "checkpoint.npz" for name in NAMES)
    return [load_checkpoint(p).state["iteration"] if p.exists() else 0 for p in paths]


def run_campaign(kills, seed=0):
    """Count the ways in which runs ended; an AssertionError is a failure."""
    rng, ends, runs = np.random.default_rng(seed), Counter(), 0
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place, "whole")
        started = time.perf_counter()
        _, status = os.waitpid(fork(train, whole), 0)
        seconds = time.perf_counter() - started
        assert status == 0
        while ends.total() - ends["finished"] < kills:
            runs += 1
            folder, before = Path(place, str(runs)), [0, 0]
            finished = False
            while not finished:
                child = fork(train, folder)
                time.sleep(rng.uniform(0, seconds / 2))
                number = [signal.SIGKILL, signal.SIGTERM][rng.integers(2)]
                os.kill(child, number)
                status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                # A SIGTERM that comes before Python handles it ends the process.
                assert status in (0, 130, -number), f"{runs}: status {status}"
                now = progress_of(folder)
                assert all(a <= b for a, b in zip(before, now, strict=True)), (
                    runs,
                    now,
                )
                before, finished = now, status == 0
                ends["finished" if finished else signal.Signals(number).name] += 1
            assert outcome(folder) == outcome(whole), f"run {runs} of seed {seed}"
    return ends


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(dict(run_campaign(options.kills, options.seed)))


if __name__ == "__main__":
    sys.exit(main())
