"""examples/navigation.py: what it computes, what it writes, what it refuses."""

import csv
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from running_examples import ctrl_c_at_call, load_example, read_strict_json, refusal

import tinymaml as tm
from tinymaml.checkpoint import load_checkpoint
from tinymaml.maml_trpo import MAMLTRPO
from tinymaml.tasks.navigation import Navigation

FILES = ["checkpoint.npz", "figure4.png", "log.csv", "results.json"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Run in a clean directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def example():
    """Return the example, with few and short trajectories."""
    module = load_example("navigation")
    module.Navigation = partial(Navigation, horizon=12)
    module.TASKS, module.TRAJECTORIES, module.POOLED = 3, 4, 6
    module.HIDDEN = (9, 8)
    module.TEST_TASKS, module.TEST_TRAJECTORIES, module.TEST_TRANSITIONS = 4, 5, 40
    module.VALIDATE_EVERY = 2
    return module


@pytest.fixture
def small(example):
    """Leave out the figure, which another test has."""
    example.draw_figure = lambda *_: None
    return example


def run(module, *arguments, out="out"):
    """Run it; return results."""
    given = [*map(str, arguments)]
    given += [] if "--iterations" in given else ["--iterations", "3"]
    given += [] if "--machine" in given else ["--machine", "numpy"]
    assert module.main([*given, "--threads", "1", "--out", str(out)]) == 0
    return read_strict_json(Path(out) / "results.json")


def select(results, method, order=None):
    return [r for r in results["rows"] if (r["method"], r["order"]) == (method, order)]


def logged(folder="out"):
    with open(Path(folder) / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


# --- what it writes and prints --------------------------------------------------------


def test_full_run_writes_all_its_files_into_its_folder_and_nothing_elsewhere(
    example, folder, capsys
):
    results = run(example, out="a/b")
    assert sorted(path.name for path in folder.iterdir()) == ["a"]
    assert sorted(path.name for path in (folder / "a/b").iterdir()) == FILES
    assert (folder / "a/b/figure4.png").read_bytes().startswith(b"\x89PNG")
    assert results["experiment"] == "navigation"
    assert results["command"] == (
        "python examples/navigation.py --iterations 3 --machine numpy --threads 1 "
        "--out a/b"
    )
    assert (results["version"], results["seed"]) == (tm.__version__, 0)
    assert (results["alpha"], results["reward"]) == (0.5, "distance")
    trained = {"exact", "first-order", "pretrained", "oracle"}
    assert trained | {"test", "figures", "total"} == set(results["seconds"])
    assert set(results["best_iteration"]) == set(results["accepted_steps"]) == trained
    assert set(results["best_iteration"].values()) == {2}
    assert len(results["rows"]) == 4 * 5 + 1
    for row in results["rows"]:
        assert set(row) == {*("method order shots steps return ci95 paper".split())}
        assert row["shots"] == 40 and -40 < row["return"] < 0
    assert [row["paper"] for row in select(results, "maml", 2)] == [
        *(-40.41, -11.68, -3.33, -3.23, -3.35)
    ]
    assert all(row["paper"] is None for row in select(results, "maml", 1))
    out, _ = capsys.readouterr()
    row = select(results, "pretrained")[1]
    assert f"{row['return']:.2f} ± {row['ci95']:.2f} (-19.73)" in out


def test_log_has_a_row_for_each_outer_step_with_what_it_did(small):
    results = run(small, "--order", 2)
    rows = logged()
    assert [(row["training"], row["iteration"]) for row in rows] == [
        (name, str(n)) for name in ("exact", "pretrained", "oracle") for n in (1, 2, 3)
    ]
    for row in rows:
        assert float(row["loss"]) == -float(row["after"])
        assert row["accepted"] in ("0.0", "1.0")
        assert (float(row["kl"]) > 0) == (row["accepted"] == "1.0")
        assert float(row["kl"]) <= 0.01
    accepted = sum(row["accepted"] == "1.0" for row in rows[:3])
    assert results["accepted_steps"]["exact"] == accepted > 0


def test_an_outer_step_that_fails_is_in_the_log_and_changes_nothing(
    small, monkeypatch, capsys
):
    from tinymaml.maml_trpo import Objective

    monkeypatch.setattr(Objective, "evaluate", lambda self, theta: (1e9, 0.0))
    results = run(small, "--order", 2)
    assert {row["accepted"] for row in logged()} == {"0.0"}
    assert set(results["accepted_steps"].values()) == {0.0}
    _, err = capsys.readouterr()
    assert "exact: an outer step changed nothing: none of 15 lengths" in err
    trained, random = select(results, "maml", 2), select(results, "random")
    assert [r["return"] for r in trained] == [r["return"] for r in random]


@pytest.mark.parametrize(
    ("order", "orders"), [("1", {1, None}), ("both", {1, 2, None})]
)
def test_order_chooses_the_meta_gradients(small, order, orders):
    assert {row["order"] for row in run(small, "--order", order)["rows"]} == orders


def test_the_squared_reward_is_another_experiment_without_numbers_to_compare(small):
    squared = run(small, "--reward", "squared", "--order", 2)
    distance = run(small, "--order", 2, out="other")
    assert squared["reward"] == "squared"
    assert all(row["paper"] is None for row in squared["rows"])
    random = [select(r, "random")[0]["return"] for r in (squared, distance)]
    assert random[0] != random[1]


def test_fast_means_fewer_iterations_unless_they_are_given(small):
    parser = small.make_parser()
    for arguments, iterations in (
        ([], 100),
        (["--fast"], 5),
        (["--fast", "--iterations", "7"], 7),
    ):
        options, _ = small.read_options(parser, arguments)
        assert options.iterations == iterations


def test_help_names_every_option(example, capsys):
    with pytest.raises(SystemExit) as stop:
        example.main(["--help"])
    out, _ = capsys.readouterr()
    assert stop.value.code == 0
    assert "figure 4 and table 4" in out
    for (
        option
    ) in "iterations order alpha reward machine threads seed out resume fast".split():
        assert f"--{option} " in out


# --- what it computes -----------------------------------------------------------------


def test_same_seed_same_numbers(small):
    first = run(small, "--order", 2)["rows"]
    assert run(small, "--order", 2, out="again")["rows"] == first
    assert run(small, "--order", 2, "--seed", 1, out="other")["rows"] != first


def test_returns_are_those_of_adaptation_with_halved_steps(small):
    results = run(small, "--order", 2, "--alpha", 0.3)
    theta = load_checkpoint("out/checkpoint.npz").arrays["exact/best"]
    rules = small.Navigation("distance")
    policy = tm.GaussianPolicy(tm.MLP([2, 9, 8, 2]), 2, "numpy")
    learner = MAMLTRPO(policy, rules, trajectories=5, transitions=40, machine="numpy")
    rng = small.random(small.TEST, 0)
    draw = tm.maml_trpo.Draw(rules.draw(rng, (4,)), learner.noise(rng, 4, 4))
    returns = learner.adapt(theta, draw, [0.3, 0.15, 0.15, 0.15]).returns()
    rows = select(results, "maml", 2)
    np.testing.assert_allclose([r["return"] for r in rows], returns.mean(axis=0))
    np.testing.assert_allclose(
        [r["ci95"] for r in rows], 1.96 * returns.std(axis=0) / 2, rtol=1e-9
    )


def test_the_oracle_is_told_the_goal_and_takes_no_steps(small):
    results = run(small, "--order", 2)
    assert [row["steps"] for row in select(results, "oracle")] == [0]
    checkpoint = load_checkpoint("out/checkpoint.npz")
    sizes = [checkpoint.arrays[f"{n}/theta"].size for n in ("oracle", "pretrained")]
    assert sizes[0] - sizes[1] == 2 * 9


def test_baselines_have_a_goal_for_each_trajectory(small):
    options, machine = small.read_options(small.make_parser(), ["--machine", "numpy"])
    learner = small.learners(options, machine)["pretrained"]
    draw = small.pooled(learner, np.random.default_rng(0))
    assert draw.tasks.shape == (1, 6, 2) and draw.noise.shape == (1, 1, 6, 12, 2)
    assert learner.steps == 0
    assert len(np.unique(draw.tasks)) == 12


# --- stopping and resuming ------------------------------------------------------------


def test_a_run_resumed_to_twice_its_iterations_equals_an_uninterrupted_one(small):
    whole = run(small, "--iterations", 4, out="whole")
    run(small, "--iterations", 2, "--order", 2, out="half")
    arguments = ("--iterations", 4, "--resume", "half/checkpoint.npz")
    resumed = run(small, *arguments, out="resumed")
    assert resumed["rows"] == whole["rows"]
    assert resumed["best_iteration"] == whole["best_iteration"]
    rows = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in logged(name)]
        for name in ("whole", "resumed")
    ]
    assert rows[0] == rows[1]


def test_ctrl_c_saves_and_says_how_to_continue(small, monkeypatch, capsys):
    monkeypatch.setattr(MAMLTRPO, "step", ctrl_c_at_call(2, MAMLTRPO.step))
    arguments = ["--iterations", "5", "--machine", "numpy", "--out", "out"]
    assert small.main(arguments) == 130
    out, _ = capsys.readouterr()
    assert "--resume out/checkpoint.npz" in out
    assert not Path("out/results.json").exists()
    state = load_checkpoint("out/checkpoint.npz").state
    assert state["trainings"]["exact"]["iteration"] == 2


# --- what it refuses ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--reward", "money"], "argument --reward: invalid choice"),
        (["--alpha", "0"], "argument --alpha: expected a positive number"),
        (["--order", "3"], "argument --order: invalid choice"),
        (["--iterations", "-1"], "argument --iterations: expected a whole number"),
        (["--resume", "missing.npz"], "argument --resume: No such file"),
    ],
)
def test_bad_options_are_refused_in_one_line(example, arguments, complaint, capsys):
    assert complaint in refusal(example, arguments, capsys)


@pytest.mark.parametrize(
    "change", [["--seed", "1"], ["--alpha", "0.1"], ["--reward", "squared"]]
)
def test_a_checkpoint_of_another_run_is_refused(small, change, capsys):
    run(small, "--iterations", 0, "--order", 2)
    arguments = ["--resume", "out/checkpoint.npz", *change]
    assert "expected a checkpoint with" in refusal(small, arguments, capsys)
