"""What training refuses before its first step: bad arguments, foreign checkpoints."""

import numpy as np
import pytest

from tests.support.training import files_below, never, run
from tinymaml.training.checkpoint import (
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
)
from tinymaml.training.optim import SGD, Adam


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
        ({"rng": 0}, TypeError, "^rng: expected a numpy.random.Generator, got .*int"),
        ({"rng": np.random}, TypeError, "^rng: expected"),
        ({"gradient": None}, TypeError, "^gradient: expected a function, got None"),
        ({"sample": 3}, TypeError, "^sample: expected a function, got 3"),
        ({"optimiser": "adam"}, TypeError, "^optimiser: expected .*'adam'"),
        ({"optimiser": Adam}, TypeError, "^optimiser: expected"),
        ({"config": {"f": print}}, TypeError, "^config: expected JSON values"),
        ({"out": "missing/c.npz"}, FileNotFoundError, "out: .*folder does not exist"),
        ({"out": "file/c.npz"}, NotADirectoryError, "out: .*'file/c.npz'"),
        ({"out": "folder"}, FileExistsError, "out: .*no plain file.*'folder'"),
        ({"log": "missing/l.csv"}, FileNotFoundError, "log: .*'missing/l.csv'"),
        ({"log": "file/l.csv"}, NotADirectoryError, "log: .*'file/l.csv'"),
        ({"log": "folder"}, IsADirectoryError, "log: .*'folder'"),
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": {"alpha": 0.1}}, r"config alpha = 0\.1, but .*c\.npz .* 0\.01"),
        ({"config": {}}, "config alpha = 'nothing', but .* 0.01"),
        ({"config": {"alpha": 0.01, "order": 1}}, "config order = 1, but .* 'nothing'"),
        ({"theta": np.zeros(4, np.float32)}, r"parameters = .*\(4,\).*, but .*\(3,\)"),
        ({"theta": np.zeros(3)}, "parameters = 'float64 .*, but .*float32"),
        ({"optimiser": SGD()}, "optimiser name = 'SGD', but .* 'Adam'"),
        ({"optimiser": Adam(0.2)}, r"optimiser learning_rate = 0\.2, but .* 0\.1"),
        (
            {"rng": np.random.Generator(np.random.MT19937())},
            "random generator = 'MT19937', but .* 'PCG64'",
        ),
    ],
)
def test_resume_refuses_the_checkpoint_of_another_run_naming_the_difference(
    tmp_path, options, message
):
    out = tmp_path / "c.npz"
    run(3, out=out, config={"alpha": 0.01})
    before = files_below(tmp_path)
    options = {"config": {"alpha": 0.01}, "rng": np.random.default_rng(8), **options}
    rng_before = repr(options["rng"].bit_generator.state)
    with pytest.raises(CheckpointError, match=f"^resume: expected .* with {message}"):
        run(9, sample=never, resume=out, log=tmp_path / "log.csv", **options)
    assert files_below(tmp_path) == before
    assert repr(options["rng"].bit_generator.state) == rng_before


def test_only_the_iterations_of_a_configuration_may_differ(tmp_path):
    out = tmp_path / "c.npz"
    config = {"iterations": 3, "shape": (1, 40), "inner": {"iterations": 1}}
    run(3, out=out, config=config)
    run(5, resume=out, config={**config, "iterations": 5})
    with pytest.raises(CheckpointError, match="config inner"):
        run(5, resume=out, config={**config, "inner": {"iterations": 2}})


@pytest.mark.parametrize("missing", ["theta", "log", "rng", "loss_sum", "optimiser"])
def test_resume_refuses_a_checkpoint_that_is_no_training_run(tmp_path, missing):
    out = tmp_path / "c.npz"
    run(3, out=out)
    whole = load_checkpoint(out)
    arrays = {name: a for name, a in whole.arrays.items() if name != missing}
    state = {key: value for key, value in whole.state.items() if key != missing}
    save_checkpoint(out, arrays, whole.config, state)
    with pytest.raises(CheckpointError, match=f"^resume: .* has no '{missing}'"):
        run(5, sample=never, resume=out)


def test_a_truncated_checkpoint_is_refused_and_kept(tmp_path):
    out = tmp_path / "c.npz"
    run(3, out=out)
    out.write_bytes(out.read_bytes()[:-1])
    before = files_below(tmp_path)
    with pytest.raises(CheckpointError, match="truncated"):
        run(5, sample=never, resume=out, out=out, log=tmp_path / "log.csv")
    assert files_below(tmp_path) == before
