"""Several trainings in one run: a checkpoint and a log each, one resume."""

import copy

import numpy as np
import pytest

from stages import Stages
from tests.support.training import (
    START,
    at_call,
    closeness,
    files_below,
    never,
    noise,
    parabola,
    press_ctrl_c,
    read_csv,
)
from tests.support.training import run as train_alone
from tinymaml.training.checkpoint import (
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
)
from tinymaml.training.optim import Adam

NAMES = ("first", "second")


def stages(folder, config=None, iterations=100, resume=None, names=NAMES):
    config = {"seed": 0} if config is None else config
    return Stages(folder, names, config, iterations, resume)


def run(stages, name, iterations=10, sample=noise, theta=START, **options):
    return stages.train(
        name,
        parabola,
        theta,
        sample,
        iterations=iterations,
        optimiser=Adam(learning_rate=0.1),
        rng=np.random.default_rng(len(name)),
        progress=False,
        **options,
    )


def save_in_one_file(folder, path):
    """Write the checkpoints of a run as the older format did: all in one file."""
    parts = {n: load_checkpoint(folder / n / "checkpoint.npz") for n in NAMES}
    arrays = {
        f"{name}/{key}": array
        for name, part in parts.items()
        for key, array in part.arrays.items()
    }
    config = {"trainings": {name: part.config for name, part in parts.items()}}
    state = {"trainings": {name: part.state for name, part in parts.items()}}
    save_checkpoint(path, arrays, config, state)


def test_each_training_has_a_checkpoint_of_its_own_that_train_can_resume(tmp_path):
    both = stages(tmp_path)
    results = run(both, "first"), run(both, "second", iterations=7)
    for name, result in zip(NAMES, results, strict=True):
        file = tmp_path / name / "checkpoint.npz"
        checkpoint = load_checkpoint(file)
        assert checkpoint.arrays["theta"].tobytes() == result.theta.tobytes()
        assert checkpoint.state["iteration"] == result.iteration
        alone = train_alone(20, resume=file, config={"seed": 0})
        again = run(stages(tmp_path / name, resume=tmp_path), name, iterations=20)
        assert alone.theta.tobytes() == again.theta.tobytes()
    assert both.files == [
        f"{name}/{file}" for name in NAMES for file in ("checkpoint.npz", "log.csv")
    ]
    assert all((tmp_path / file).is_file() for file in both.files)


@pytest.mark.parametrize("out", ["part", "elsewhere"])
def test_a_resumed_run_continues_each_training_bit_for_bit(tmp_path, out):
    whole, part = stages(tmp_path / "whole"), stages(tmp_path / "part")
    for name in NAMES:
        run(whole, name, iterations=20)
        run(part, name, iterations=8)
    resumed = stages(tmp_path / out, resume=tmp_path / "part")
    for name in NAMES:
        theta = run(resumed, name, iterations=20).theta
        assert theta.tobytes() == whole.results[name].theta.tobytes()


@pytest.mark.parametrize("of", ["file", "folder"])
def test_a_run_of_the_older_format_is_resumed_bit_for_bit(tmp_path, of):
    whole, part = stages(tmp_path / "whole"), stages(tmp_path / "part")
    for name in NAMES:
        run(whole, name, iterations=20)
        run(part, name, iterations=8)
    (tmp_path / "old").mkdir()
    file = tmp_path / "old/checkpoint.npz"
    save_in_one_file(tmp_path / "part", file)
    before = file.read_bytes()
    resume = {"file": file, "folder": file.parent}[of]
    resumed = stages(tmp_path / "new", resume=resume)
    for name in NAMES:
        theta = run(resumed, name, iterations=20).theta
        assert theta.tobytes() == whole.results[name].theta.tobytes()
    assert file.read_bytes() == before


def test_a_finished_training_is_not_repeated(tmp_path):
    once = run(stages(tmp_path), "first")
    resumed = stages(tmp_path, resume=tmp_path)
    theta = run(resumed, "first", sample=never).theta
    assert theta.tobytes() == once.theta.tobytes()


def test_ctrl_c_saves_all_and_raises(tmp_path):
    whole, stopped = stages(tmp_path / "whole"), stages(tmp_path / "stopped")
    run(whole, "first"), run(whole, "second")
    run(stopped, "first")
    with pytest.raises(KeyboardInterrupt):
        run(stopped, "second", sample=at_call(4, press_ctrl_c))
    folder = tmp_path / "stopped"
    resumed = stages(folder, resume=folder)
    state = load_checkpoint(folder / "second/checkpoint.npz").state
    assert state["iteration"] == 4
    for name in NAMES:
        theta = run(resumed, name).theta
        assert theta.tobytes() == whole.results[name].theta.tobytes()


def test_ctrl_c_in_a_resumed_run_loses_no_training_of_the_run_before(tmp_path):
    """What is resumed is in the new folder, even what this run has not come to."""
    whole, part = stages(tmp_path / "whole"), stages(tmp_path / "part")
    for name in NAMES:
        run(whole, name, iterations=20)
        run(part, name, iterations=8)
    stopped = stages(tmp_path / "stopped", resume=tmp_path / "part")
    with pytest.raises(KeyboardInterrupt):
        press = at_call(2, press_ctrl_c)
        run(stopped, "first", iterations=20, sample=press)
    last = stages(tmp_path / "last", resume=tmp_path / "stopped")
    for name, left in (("first", 20 - 10), ("second", 20 - 8)):
        count = at_call(left + 1, never)
        theta = run(last, name, iterations=20, sample=count).theta
        assert theta.tobytes() == whole.results[name].theta.tobytes()


def test_checkpoints_of_an_earlier_run_in_the_folder_are_not_resumed(tmp_path):
    """A new run, stopped in its first training, is resumed alone."""
    earlier = stages(tmp_path, {"seed": 1})
    run(earlier, "first"), run(earlier, "second")
    new = stages(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(new, "first", sample=at_call(4, press_ctrl_c))
    resumed = stages(tmp_path, resume=tmp_path)
    run(resumed, "first", sample=at_call(7, never))
    run(resumed, "second", sample=at_call(11, never))


def test_a_run_that_fails_before_it_saves_leaves_earlier_checkpoints(tmp_path):
    earlier = stages(tmp_path)
    run(earlier, "first"), run(earlier, "second")
    before = files_below(tmp_path)
    with pytest.raises(FloatingPointError, match="iteration 1"):
        run(stages(tmp_path), "first", sample=lambda rng: np.nan * noise(rng))
    now = files_below(tmp_path)
    for name in NAMES:
        file = tmp_path / name / "checkpoint.npz"
        assert now[file] == before[file]


def test_a_fault_in_one_training_leaves_the_others_as_they_were(tmp_path):
    both = stages(tmp_path)
    run(both, "first")
    before = files_below(tmp_path / "first")
    factors = iter([1, 1, np.nan])
    with pytest.raises(FloatingPointError, match="iteration 3"):
        run(both, "second", sample=lambda rng: next(factors) * noise(rng))
    assert files_below(tmp_path / "first") == before


def test_a_training_that_diverged_keeps_its_checkpoint_when_others_go_on(tmp_path):
    both, factors = stages(tmp_path), iter([1, 1, np.nan])
    diverging = {"sample": lambda rng: next(factors) * noise(rng)}
    with pytest.raises(FloatingPointError, match="iteration 3"):
        run(both, "first", **diverging, checkpoint_every=1)
    run(both, "second")
    saved = load_checkpoint(tmp_path / "first" / "checkpoint.npz")
    assert saved.state["iteration"] == 2
    # Where it had saved nothing yet, the checkpoint would be that of an earlier run.
    both = stages(tmp_path, {"seed": 1})
    with pytest.raises(FloatingPointError, match="iteration 1"):
        run(both, "first", sample=lambda rng: np.nan * noise(rng))
    run(both, "second")
    assert not (tmp_path / "first" / "checkpoint.npz").exists()


def test_each_training_has_a_log_of_its_own(tmp_path):
    both = stages(tmp_path)
    run(both, "first", log_every=5), run(both, "second", log_every=10)
    for name, iterations in (("first", ["5", "10"]), ("second", ["10"])):
        rows = read_csv(tmp_path / name / "log.csv")
        assert rows[0] == ["iteration", "loss", "seconds"]
        assert [row[0] for row in rows[1:]] == iterations


def test_the_logs_may_have_further_columns(tmp_path):
    both = stages(tmp_path)
    for name in NAMES:
        run(both, name, log_every=10, columns=["loss"])
        rows = read_csv(tmp_path / name / "log.csv")
        assert rows[0] == ["iteration", "loss", "seconds", "loss"]
        assert [row[1] for row in rows[1:]] == [row[3] for row in rows[1:]]


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
        stages(tmp_path, resume=tmp_path, **changes)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    run(stages(tmp_path), "first")
    resumed = stages(tmp_path, resume=tmp_path)
    with pytest.raises(CheckpointError, match=r"shape \(2,\).*checkpoint.npz.*\(3,\)"):
        run(resumed, "first", theta=START[:2], sample=never)


def test_a_training_that_was_not_named_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^name: expected one of .*, got 'third'"):
        run(stages(tmp_path), "third", sample=never)
    assert not [*tmp_path.iterdir()]


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
    both = stages(tmp_path)
    run(both, "first"), run(both, "second")
    file, other = tmp_path / "file.npz", tmp_path / "other.npz"
    save_in_one_file(tmp_path, file)
    whole = load_checkpoint(file)
    for config, state in damage(whole.config, whole.state):
        save_checkpoint(other, whole.arrays, config, state)
        with pytest.raises(CheckpointError, match="^resume: expected"):
            run(stages(tmp_path / "new", resume=other), "first", sample=never)
    assert load_checkpoint(file).state == whole.state


def test_an_earlier_run_without_trainings_of_this_run_is_refused(tmp_path):
    both, file = stages(tmp_path / "both"), tmp_path / "old.npz"
    run(both, "first"), run(both, "second")
    save_in_one_file(both.folder, file)
    for resume in (both.folder, file):
        with pytest.raises(CheckpointError, match=f"training a or b, but {resume} has"):
            stages(tmp_path, resume=resume, names=("a", "b"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        stages(tmp_path, resume=tmp_path / "nowhere")


def test_the_checkpoint_of_one_training_is_refused(tmp_path):
    run(stages(tmp_path), "first")
    file = tmp_path / "first/checkpoint.npz"
    with pytest.raises(CheckpointError, match="or the folder of an earlier run, but"):
        stages(tmp_path, resume=file)


def run_validated(stages, name, iterations, sample=noise):
    options = {"validate": closeness, "validate_every": 3}
    return run(stages, name, iterations, sample, **options)


def test_stages_keep_scores_and_best_of_each_training(tmp_path):
    whole, part = stages(tmp_path / "whole"), stages(tmp_path / "part")
    for name in ("first", "second"):
        run_validated(whole, name, 20)
        run_validated(part, name, 8)
    continued = stages(tmp_path / "part", resume=tmp_path / "part")
    for name in ("first", "second"):
        resumed, expected = run_validated(continued, name, 20), whole.results[name]
        assert [iteration for iteration, _ in resumed.scores] == [3, 6, 9, 12, 15, 18]
        assert resumed.scores == expected.scores
        assert resumed.best.tobytes() == expected.best.tobytes()
    first, second = (continued.results[name] for name in ("first", "second"))
    assert first.scores != second.scores


def test_a_finished_stage_still_tells_its_scores_and_best(tmp_path):
    once = run_validated(stages(tmp_path), "first", 10)
    continued = stages(tmp_path, resume=tmp_path)
    resumed = run_validated(continued, "first", 10, sample=never)
    assert resumed.scores == once.scores
    assert resumed.best.tobytes() == once.best.tobytes()


# --- trainings that are prepared ------------------------------------------------------


def prepare(stages, name, iterations=20, optimiser=None, sample=noise, **options):
    stages.prepare(
        name,
        parabola,
        START,
        sample,
        iterations=iterations,
        optimiser=optimiser or Adam(learning_rate=0.1),
        rng=np.random.default_rng(len(name)),
        progress=False,
        **options,
    )


@pytest.mark.parametrize("layout", ["a file each", "one file"])
def test_what_cannot_be_continued_is_refused_before_anything_is_trained(
    tmp_path, layout
):
    both = stages(tmp_path / "both")
    run(both, "first"), run(both, "second")
    resume = tmp_path / "both"
    if layout == "one file":
        resume = tmp_path / "old.npz"
        save_in_one_file(tmp_path / "both", resume)
    resumed = stages(tmp_path / "new", resume=resume)
    prepare(resumed, "first", sample=never)
    with pytest.raises(CheckpointError, match=r"learning_rate = 0\.2, but") as caught:
        prepare(resumed, "second", sample=never, optimiser=Adam(learning_rate=0.2))
    named = resume if layout == "one file" else resume / "second/checkpoint.npz"
    assert str(named) in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_a_training_that_has_come_further_is_refused_though_another_may_go_on(tmp_path):
    both = stages(tmp_path)
    run(both, "first"), run(both, "second", iterations=7)
    resumed = stages(tmp_path, resume=tmp_path)
    prepare(resumed, "first", iterations=10, sample=never)
    with pytest.raises(CheckpointError, match="at least 7 .*second/.* got 6"):
        prepare(resumed, "second", iterations=6, sample=never)


def test_prepared_trainings_are_continued_bit_for_bit(tmp_path):
    thetas = []
    for folder, iterations in (("whole", 20), ("part", 8), ("part", 20)):
        resume = tmp_path / "part" if (tmp_path / "part").exists() else None
        some = stages(tmp_path / folder, resume=resume)
        for name in NAMES:
            prepare(some, name, iterations)
        thetas.append([some.train(name).theta.tobytes() for name in NAMES])
    assert thetas[0] == thetas[2] != thetas[1]


def test_a_training_whose_length_depends_on_the_run_starts_anew(tmp_path):
    first = stages(tmp_path)
    for name in NAMES:
        prepare(first, name, config={"steps": 1}, anew_if=["steps"])
        first.train(name)
    resumed = stages(tmp_path, resume=tmp_path)
    prepare(resumed, "first", sample=never, config={"steps": 1}, anew_if=["steps"])
    draws = at_call(21, never)
    prepare(resumed, "second", sample=draws, config={"steps": 2}, anew_if=["steps"])
    for name in NAMES:
        resumed.train(name)
    assert load_checkpoint(tmp_path / "second/checkpoint.npz").config["steps"] == 2


@pytest.mark.parametrize("iteration", ["x", None, 2.5, []])
def test_a_checkpoint_with_a_wrong_iteration_is_refused(tmp_path, iteration):
    run(stages(tmp_path), "first")
    file = tmp_path / "first/checkpoint.npz"
    whole = load_checkpoint(file)
    state = {**whole.state, "iteration": iteration}
    save_checkpoint(file, whole.arrays, whole.config, state)
    with pytest.raises(CheckpointError, match="^resume: expected a training run, but"):
        prepare(stages(tmp_path, resume=tmp_path), "first", sample=never)
