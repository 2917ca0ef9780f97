"""What training refuses before its first step: bad arguments, foreign checkpoints."""

import numpy as np
import pytest

from tests.support.training import files_below, never, run
from tinymaml.training.checkpoint import (
    CheckpointError,
)
from tinymaml.training.optim import Adam


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"iterations": -1}, ValueError, "^iterations: expected at least 0, got -1"),
        (
            {"iterations": 1.5},
            TypeError,
            "^iterations: expected a whole number, got 1.5",
        ),
        ({"iterations": True}, TypeError, "^iterations: expected a whole number"),
        ({"checkpoint_every": 0}, ValueError, "^checkpoint_every: expected at least 1"),
        ({"log_every": 0}, ValueError, "^log_every: expected at least 1, got 0"),
        ({"theta": [1.0]}, TypeError, "^theta: expected .* array, got list"),
        ({"theta": np.zeros(3, int)}, TypeError, "^theta: expected .*got int64"),
        ({"theta": np.zeros((3, 1))}, ValueError, r"^theta: expected .*\(3, 1\)"),
        ({"theta": np.zeros(0)}, ValueError, r"^theta: expected .*\(0,\)"),
        ({"theta": np.full(3, np.nan)}, ValueError, "^theta: expected finite"),
        ({"rng": 0}, TypeError, "^rng: expected a numpy.random.Generator, got 0"),
        ({"rng": np.random}, TypeError, "^rng: expected"),
        ({"gradient": None}, TypeError, "^gradient: expected a function, got None"),
        ({"sample": 3}, TypeError, "^sample: expected a function, got 3"),
        ({"optimiser": "adam"}, TypeError, "^optimiser: expected .*'adam'"),
        ({"optimiser": Adam}, TypeError, "^optimiser: expected"),
        ({"columns": "size"}, TypeError, "^columns: expected a list of names, got 'si"),
        ({"columns": [1]}, TypeError, r"^columns: expected a list of names, got \[1"),
        ({"columns": None}, TypeError, "^columns: expected a list of names, got None"),
        ({"columns": iter(["a"])}, TypeError, "^columns: expected a list of names"),
        ({"columns": [1], "log": "file"}, TypeError, "^columns: expected a list"),
        ({"config": {"f": print}}, TypeError, "^config: expected JSON values"),
        ({"out": 3}, TypeError, "^out: expected text or a Path, got 3"),
        ({"out": "missing/c.npz"}, FileNotFoundError, "out: .*folder does not exist"),
        ({"out": "file/c.npz"}, NotADirectoryError, "out: .*'file/c.npz'"),
        ({"out": "folder"}, FileExistsError, "out: .*no plain file.*'folder'"),
        ({"log": "missing/l.csv"}, FileNotFoundError, "log: .*'missing/l.csv'"),
        ({"log": "file/l.csv"}, NotADirectoryError, "log: .*'file/l.csv'"),
        ({"log": "folder"}, FileExistsError, "log: .*no plain file.*'folder'"),
        ({"resume": "missing.npz"}, FileNotFoundError, "resume: .*'missing.npz'"),
        ({"resume": "file"}, CheckpointError, "^file: expected a whole"),
        ({"log": "c.npz", "out": "./c.npz"}, ValueError, "^log: .*of its own"),
        ({"log": "file", "resume": "file"}, ValueError, "^log: .*of its own"),
    ],
)
def test_a_bad_argument_is_refused_by_name_before_training(
    tmp_path, monkeypatch, options, error, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    before = files_below(tmp_path)
    with pytest.raises(error, match=message.replace("^", r"^(\[Errno \d+\] )?")):
        run(**{"gradient": never, "sample": never, **options})
    assert files_below(tmp_path) == before


def test_a_truncated_checkpoint_is_refused_and_kept(tmp_path):
    out = tmp_path / "c.npz"
    run(3, out=out)
    out.write_bytes(out.read_bytes()[:-1])
    before = files_below(tmp_path)
    with pytest.raises(CheckpointError, match="truncated"):
        run(5, sample=never, resume=out, out=out, log=tmp_path / "log.csv")
    assert files_below(tmp_path) == before
