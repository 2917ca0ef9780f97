"""Several trainings in one run: one checkpoint, one log, one resume."""

import copy

import numpy as np
import pytest

from tests.support.training import (
    START,
    at_call,
    never,
    noise,
    parabola,
    press_ctrl_c,
    read_csv,
)
from tinymaml.training.checkpoint import (
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
)
from tinymaml.training.optim import Adam
from tinymaml.training.stages import Stages


def stages(folder, config=None, iterations=100, resume=None):
    folder.mkdir(exist_ok=True)
    config = {"seed": 0} if config is None else config
    return Stages(folder, config, iterations, resume, progress=False)


def run(stages, name, iterations=10, sample=noise, theta=START, **options):
    return stages.train(
        name,
        parabola,
        theta,
        sample,
        iterations=iterations,
        optimiser=Adam(learning_rate=0.1),
        rng=np.random.default_rng(len(name)),
        **options,
    )


def test_a_checkpoint_holds_all_trainings(tmp_path):
    both = stages(tmp_path)
    first, second = run(both, "first"), run(both, "second", iterations=7)
    checkpoint = load_checkpoint(tmp_path / "checkpoint.npz")
    assert checkpoint.arrays["first/theta"].tobytes() == first.theta.tobytes()
    assert checkpoint.arrays["second/theta"].tobytes() == second.theta.tobytes()
    states = checkpoint.state["trainings"]
    assert {name: state["iteration"] for name, state in states.items()} == {
        "first": 10,
        "second": 7,
    }


def test_a_resumed_run_continues_each_training_bit_for_bit(tmp_path):
    whole, part = stages(tmp_path / "whole"), stages(tmp_path / "part")
    for name in ("first", "second"):
        run(whole, name, iterations=20)
        run(part, name, iterations=8)
    rematerialise = stages(tmp_path / "part", resume=tmp_path / "part/checkpoint.npz")
    for name in ("first", "second"):
        resumed = run(rematerialise, name, iterations=20)
        assert resumed.theta.tobytes() == whole.results[name].theta.tobytes()


def test_a_finished_training_is_not_done_again(tmp_path):
    once = run(stages(tmp_path), "first")
    rematerialise = stages(tmp_path, resume=tmp_path / "checkpoint.npz")
    assert (
        run(rematerialise, "first", sample=never).theta.tobytes()
        == once.theta.tobytes()
    )


def test_ctrl_c_saves_all_and_raises(tmp_path):
    whole, stopped = stages(tmp_path / "whole"), stages(tmp_path / "stopped")
    run(whole, "first"), run(whole, "second")
    run(stopped, "first")
    with pytest.raises(KeyboardInterrupt):
        run(stopped, "second", sample=at_call(4, press_ctrl_c))
    file = tmp_path / "stopped/checkpoint.npz"
    rematerialise = stages(tmp_path / "stopped", resume=file)
    assert load_checkpoint(file).state["trainings"]["second"]["iteration"] == 4
    for name in ("first", "second"):
        theta = run(rematerialise, name).theta
        assert theta.tobytes() == whole.results[name].theta.tobytes()


def test_a_fault_in_one_training_leaves_the_others_as_they_were(tmp_path):
    both = stages(tmp_path)
    run(both, "first")
    before = (tmp_path / "checkpoint.npz").read_bytes()
    factors = iter([1, 1, np.nan])
    with pytest.raises(FloatingPointError, match="iteration 3"):
        run(both, "second", sample=lambda rng: next(factors) * noise(rng))
    assert (tmp_path / "checkpoint.npz").read_bytes() == before


def test_the_log_has_the_rows_of_all_trainings(tmp_path):
    both = stages(tmp_path)
    run(both, "first", log_every=5), run(both, "second", log_every=5)
    rows = read_csv(tmp_path / "log.csv")
    assert rows[0] == ["training", "iteration", "loss", "seconds"]
    expected = [(n, i) for n in ("first", "second") for i in ("5", "10")]
    assert [(name, iteration) for name, iteration, *_ in rows[1:]] == expected


def test_the_log_of_all_trainings_may_have_further_columns(tmp_path):
    both = stages(tmp_path)
    for name in ("first", "second"):
        run(both, name, log_every=10, columns=["loss"])
    rows = read_csv(tmp_path / "log.csv")
    assert rows[0] == ["training", "iteration", "loss", "seconds", "loss"]
    assert [row[2] for row in rows[1:]] == [row[4] for row in rows[1:]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": {"seed": 1}}, "with seed = 1, but .* was written with 0"),
        (
            {"config": {"seed": 0, "alpha": 2}},
            "alpha = 2, but .* was written with 'noth",
        ),
        ({"iterations": 9}, "expected at least 10 iterations, as far as .* got 9"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, changes, message):
    run(stages(tmp_path), "first")
    with pytest.raises(CheckpointError, match=message):
        stages(tmp_path, resume=tmp_path / "checkpoint.npz", **changes)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    run(stages(tmp_path), "first")
    rematerialise = stages(tmp_path, resume=tmp_path / "checkpoint.npz")
    with pytest.raises(CheckpointError, match=r"shape \(2,\).*checkpoint.npz.*\(3,\)"):
        run(rematerialise, "first", theta=START[:2], sample=never)


def damage(config, state):
    yield {}, {}
    yield {"trainings": None}, state
    yield {"trainings": ["first"]}, state
    yield {"trainings": {"first": 3}}, state
    yield config, {"trainings": {}}
    yield config, {"trainings": {"first": None}}
    for key in ("iteration", "rng", "optimiser"):
        fewer = copy.deepcopy(state)
        del fewer["trainings"]["first"][key]
        yield config, fewer


def test_a_checkpoint_with_parts_missing_is_refused(tmp_path):
    run(stages(tmp_path), "first")
    file, other = tmp_path / "checkpoint.npz", tmp_path / "other.npz"
    whole = load_checkpoint(file)
    for config, state in damage(whole.config, whole.state):
        save_checkpoint(other, whole.arrays, config, state)
        with pytest.raises(CheckpointError, match="^resume: expected"):
            run(stages(tmp_path, resume=other), "first", sample=never)
    assert load_checkpoint(file).state == whole.state
