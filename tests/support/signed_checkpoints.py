"""Checkpoints of other contents, whose digest is right: a campaign with a seed.

Another program, another version or a hand can write a checkpoint that is whole and yet
not that of a run. One of its arrays or values is changed here to what no run writes,
and the file is signed anew. Each must end in one line of `CheckpointError` before a
step is taken. Exempt are numbers for which another number is as good, such as the
seconds of a run: these must be taken over as they are. The suite runs a short form of
the campaign, and this is the long one, of some seconds:

    python -m tests.support.signed_checkpoints --count 3000
"""

import argparse
import copy
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from tests.support.training import closeness, run, with_size
from tinymaml.training.checkpoint import (
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
)
from tinymaml.training.optim import SGD, Adam

VALUES = [
    *(None, True, False, -1, 0, 7, 2.5, -2.5, 1e300, 10**30, -(10**30), "", "x", "0"),
    *([], [1], [["a", 1]], [None], {}, {"a": []}, {"state": 1}, [0.0] * 700),
]
# Where a number may be replaced by another of its type without being wrong.
PLAUSIBLE = ("loss_sum", "seconds", "sums", "rng", "seeds")
BIT_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")


def places(value, path=()):
    """All places in nested dictionaries and lists, the inner ones too."""
    if path:
        yield path
    if isinstance(value, dict | list):
        keys = value if isinstance(value, dict) else range(min(len(value), 3))
        for key in keys:
            yield from places(value[key], (*path, key))


def change_the_state(rng, arrays, state):
    """Replace, remove or add a value; return whether the state may still be right."""
    every = list(places(state))
    *outer, key = every[rng.integers(len(every))]
    inside = state
    for step in outer:
        inside = inside[step]
    choice = rng.integers(6)
    if choice == 0:
        del inside[key]
        # Older versions did not save these.
        return not outer and key in ("seeds", "columns", "sums")
    if choice == 1 and isinstance(inside, dict):
        inside["another"] = inside[key]
        return False
    old, new = inside[key], VALUES[rng.integers(len(VALUES))]
    inside[key] = copy.deepcopy(new)
    alike = type(new) is type(old) or {type(new), type(old)} == {int, float}
    part = (outer or [key])[0]
    plain = not isinstance(new, list | dict)
    return (
        json.dumps(new) == json.dumps(old)
        or (part in PLAUSIBLE and alike and plain)
        or (part == "seeds" and len(outer) > 0)  # another seed, of any form
    )


def change_an_array(rng, arrays, state):
    """Replace, remove or add an array by one that no run writes."""
    names = sorted(arrays)
    name = names[rng.integers(len(names))]
    old = arrays[name]
    bad = [np.nan, np.inf, -np.inf][rng.integers(3)]
    choice = rng.integers(8)
    if choice == 0:
        del arrays[name]
    elif choice == 1:
        arrays["another"] = old
    elif choice == 2:
        arrays[name] = old.astype(["int32", "float16", "c16", "?"][rng.integers(4)])
    elif choice == 3:
        arrays[name] = np.array([old[None], old[..., None]][rng.integers(2)])
    elif choice == 4 and old.ndim:
        arrays[name] = old[:-1] if name != "scores" else old[:, :-1]
    elif choice == 5 and old.ndim and old.dtype.kind == "f":
        arrays[name] = new = old.copy()
        new.flat[rng.integers(new.size)] = bad
        # A score may be NaN or infinite, and so may a further column of the log.
        return (
            name == "scores"
            and np.isfinite(new[:, 0]).all()
            or (name == "log" and np.isfinite(new[:, :3]).all())
        )
    elif choice == 6 and name in ("log", "scores"):
        arrays[name] = old[::-1].copy()
    else:
        arrays[name] = np.full_like(old, -3) if name != "theta" else old[:0]
        if name in ("best", "optimiser/first_moment"):
            arrays[name] = np.concatenate([old, old])
    return False


def make_run(case, **options):
    """A run that has everything: columns, scores, moments."""
    optimiser = [Adam, SGD][case % 2](0.1)
    bits = getattr(np.random, BIT_GENERATORS[case % len(BIT_GENERATORS)])
    return run(
        gradient=with_size,
        optimiser=optimiser,
        rng=np.random.Generator(bits(5)),
        columns=["size"],
        validate=closeness,
        validate_every=2,
        log_every=3,
        config={"alpha": 0.01},
        **options,
    )


def run_campaign(count, seed=0, first=0):
    """Count the outcomes of signed changes; an AssertionError is a failure."""
    outcomes = Counter()
    with tempfile.TemporaryDirectory() as place:
        path, good = Path(place, "signed.npz"), []
        for case in range(2 * len(BIT_GENERATORS)):
            make_run(case, iterations=7, out=path)
            good.append(load_checkpoint(path))
        for number in range(first, first + count):
            rng = np.random.default_rng([seed, number])
            whole = copy.deepcopy(good[number % len(good)])
            change = [change_the_state, change_an_array][rng.integers(2)]
            plausible = change(rng, whole.arrays, whole.state)
            save_checkpoint(path, whole.arrays, whole.config, whole.state)
            where = f"seed {seed}, number {number}: {change.__name__}"
            try:
                result = make_run(number, iterations=9, resume=path)
            except CheckpointError as error:
                assert str(error).isprintable(), f"{where}: more than one line"
                assert len(str(error)) < 1000, f"{where}: endless"
                outcomes["one error"] += 1
            except Exception as error:
                raise AssertionError(f"{where}: {repr(error)[:300]}") from error
            else:
                assert plausible, f"{where}: trained on"
                assert result.iteration == 9 and np.isfinite(result.theta).all(), where
                outcomes["as good"] += 1
    return outcomes


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    options = parser.parse_args()
    print(dict(run_campaign(options.count, options.seed, options.first)))


if __name__ == "__main__":
    sys.exit(main())
