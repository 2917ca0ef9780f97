"""examples/navigation.py: what it computes, what it writes, what it refuses."""

import shlex
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import navigation_figures as figures
import tinymaml as tm
from reinforcement_figures import Curve
from shared import random_stream
from tests.support.running_examples import (
    ctrl_c_at_call,
    load_example,
    read_strict_json,
    refusal,
    select,
)
from tests.support.training import read_rows
from tinymaml.paper.initialisations import load_initialisation
from tinymaml.paper.recipes import NavigationRecipe
from tinymaml.rl.advantages import advantages
from tinymaml.rl.maml_trpo import MAMLTRPO
from tinymaml.rl.policy_losses import chunk_steps
from tinymaml.rl.rollouts import Trajectories, roll_out
from tinymaml.tasks.navigation import Navigation
from tinymaml.training.checkpoint import load_checkpoint

NAMES = ["exact", "first-order", "oracle", "pretrained"]
FILES = sorted([*NAMES, "figure4.png", "results.json"])


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Run in a clean directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def example(monkeypatch):
    """Return the example, with a small policy and few and short trajectories."""
    module = load_example("navigation")
    module.HIDDEN = (9, 8)
    network = tm.MLP([2, 9, 8, 2])
    small_policy = tm.GaussianPolicy(network, 2, "numpy")
    monkeypatch.setattr(NavigationRecipe, "network", lambda recipe: small_policy)
    module.Navigation = partial(Navigation, horizon=12)
    module.TASKS, module.TRAJECTORIES, module.POOLED = 3, 4, 6
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
    given += [] if "--backend" in given else ["--backend", "numpy"]
    assert module.main([*given, "--threads", "1", "--out", str(out)]) == 0
    return read_strict_json(Path(out) / "results.json")


def logged(name="exact", out="out"):
    return read_rows(Path(out) / name / "log.csv")


# --- what it writes and prints --------------------------------------------------------


@pytest.mark.usefixtures("painted")
def test_full_run_writes_all_its_files_into_its_folder_and_nothing_elsewhere(
    example, folder, capsys
):
    results = run(example, out="a/b")
    assert sorted(path.name for path in folder.iterdir()) == ["a"]
    assert sorted(path.name for path in (folder / "a/b").iterdir()) == FILES
    for name in NAMES:
        written = sorted(path.name for path in (folder / "a/b" / name).iterdir())
        starts = [] if name == "oracle" else ["initialisation.npz"]
        assert written == ["checkpoint.npz", *starts, "log.csv"]
    assert (folder / "a/b/figure4.png").read_bytes().startswith(b"\x89PNG")
    assert results["experiment"] == "navigation"
    assert results["command"] == (
        "python examples/navigation.py --iterations 3 --backend numpy --threads 1 "
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
        columns = "method order iterations shots trajectories steps return ci95 paper"
        assert set(row) == {*columns.split()}
        assert row["iterations"] == (0 if row["method"] == "random" else 3)
        assert row["shots"] == 40 and -40 < row["return"] < 0
        assert row["trajectories"] == 4  # of 5, since 4 have 40 steps
    assert [row["paper"] for row in select(results, "maml", 2)] == [
        *(-40.41, -11.68, -3.33, -3.23, -3.35)
    ]
    assert all(row["paper"] is None for row in select(results, "maml", 1))
    out, _ = capsys.readouterr()
    row = select(results, "pretrained")[1]
    assert f"{row['return']:.2f} ± {row['ci95']:.2f} (-19.73)" in out


def test_log_has_a_row_for_each_outer_step_with_what_it_did(small):
    results = run(small, "--order", 2)
    rows = [row for name in ("exact", "pretrained", "oracle") for row in logged(name)]
    assert [row["iteration"] for row in rows] == ["1", "2", "3"] * 3
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
    from tinymaml.rl.maml_trpo import Objective

    monkeypatch.setattr(Objective, "surrogate_and_kl", lambda self, theta: (1e9, 0.0))
    results = run(small, "--order", 2)
    for name in ("exact", "pretrained", "oracle"):
        assert {row["accepted"] for row in logged(name)} == {"0.0"}
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
    options = "iterations order context alpha reward backend threads seed out resume"
    for option in [*options.split(), "fast"]:
        assert f"--{option} " in out


# --- what it computes -----------------------------------------------------------------


def test_same_seed_same_numbers(small):
    first = run(small, "--order", 2)["rows"]
    assert run(small, "--order", 2, out="again")["rows"] == first
    assert run(small, "--order", 2, "--seed", 1, out="other")["rows"] != first


def test_returns_are_those_of_adaptation_with_halved_steps(small):
    results = run(small, "--order", 2, "--alpha", 0.3)
    theta = load_checkpoint("out/exact/checkpoint.npz").arrays["best"]
    rules = small.Navigation("distance")
    policy = tm.GaussianPolicy(tm.MLP([2, 9, 8, 2]), 2, "numpy")
    learner = MAMLTRPO(policy, rules, trajectories=5, backend="numpy")
    rng = random_stream(small.TEST, 0)
    goals, noises = rules.draw(rng, (4,)), learner.noise(rng, 4, 4)
    thetas, found = np.broadcast_to(theta, (4, theta.size)), []
    for noise, alpha in zip(noises, [0.3, 0.15, 0.15, 0.15, 0.0], strict=True):
        sampled = roll_out(policy, rules, thetas, goals, noise).first(40)
        found.append(sampled.returns())
        thetas = learner.inner_step(
            thetas, chunk_steps(sampled, advantages(sampled)), alpha
        )
    assert not sampled.mask[:, -1].any()  # 40 steps are less than all
    returns = np.stack(found, axis=1)
    rows = select(results, "maml", 2)
    np.testing.assert_allclose([r["return"] for r in rows], returns.mean(axis=0))
    np.testing.assert_allclose(
        [r["ci95"] for r in rows], 1.96 * returns.std(axis=0) / 2, rtol=1e-9
    )


def test_paths_in_the_figure_go_from_the_start_to_where_the_last_move_ended(example):
    x = np.array([[0.0, 0.0], [0.1, 0.05], [0.0, 0.0]])  # moved twice, then it was over
    actions = np.array([[3.0, 0.5], [-0.25, -9.0], [0.0, 0.0]])
    mask = np.array([True, True, False])
    task = (x, actions, mask.astype(float), mask)
    sampled = Trajectories(*(np.stack([a[::-1], a])[:, None] for a in task))
    expected = [[0, 0], [0.1, 0.05], [0.075, -0.05]]
    np.testing.assert_allclose(example.path_of(sampled, 1), expected)


def test_the_figure_has_a_band_for_the_oracle_and_whole_numbers_of_outer_steps(
    monkeypatch, tmp_path
):
    drawn = []
    monkeypatch.setattr(
        figures, "save_figure", lambda figure, out: drawn.append(figure)
    )
    steps, one = np.arange(5), np.array([-2.0])
    curves = [
        Curve("MAML", "C0", "o", steps, -10.0 / (steps + 1), steps / 10),
        Curve("oracle", "C1", "d", np.arange(1), one, np.array([0.5])),
    ]
    training = [Curve("MAML", "C0", "o", steps[1:], steps[1:], None)]
    path = np.array([[0.0, 0.0], [0.1, 0.05], [0.075, -0.05]])
    paths = [figures.Paths("MAML", "C0", [[path], [path]])]
    figures.draw_figure_4(curves, training, paths, np.array([[0.1, 0.2]]), tmp_path)
    above, below, panel, _ = drawn[0].axes
    (band,) = above.patches
    assert (band.get_y(), band.get_height()) == (-2.5, 1.0)
    assert all(tick == round(tick) for tick in below.get_xticks())
    assert below.get_ylabel() == above.get_ylabel() == "mean return"
    np.testing.assert_array_equal(panel.lines[0].get_xydata(), path)


def test_the_oracle_is_told_the_goal_and_takes_no_steps(small):
    results = run(small, "--order", 2)
    assert [row["steps"] for row in select(results, "oracle")] == [0]
    files = [f"out/{name}/checkpoint.npz" for name in ("oracle", "pretrained")]
    sizes = [load_checkpoint(file).arrays["theta"].size for file in files]
    assert sizes[0] - sizes[1] == 2 * 9


def test_a_context_vector_is_one_policy_more_whose_steps_move_the_context(small):
    results = run(small, "--order", "none", "--context", 3)
    rows = select(results, "context", 2)
    assert [row["paper"] for row in rows] == [-42.42, -13.90, -5.17, -3.18, None]
    assert select(results, "maml", 2) == [] and results["context"] == 3
    options, backend = small.read_options(
        small.make_parser(), ["--backend", "numpy", "--context", "3", "--alpha", "0.4"]
    )
    theta = load_checkpoint("out/context/checkpoint.npz").arrays["best"]
    assert theta.size == 3 + (2 + 3) * 9 + 9 + 9 * 8 + 8 + 8 * 2 + 2 + 2
    assert (theta[:3] != 0).all()  # the outer steps have moved the first context
    experiment = small.make_experiment(options, backend)
    adapted = experiment.adapt("context", theta, small.TEST, 2)
    moved = np.diff(adapted.thetas, axis=0)
    assert (moved[:, :, 3:] == 0).all() and (moved[:, :, :3] != 0).all()
    once = experiment.learner_of("context")
    gradients = once.losses.gradient(adapted.thetas[0], adapted.samples[0])
    np.testing.assert_allclose(moved[0][:, :3], -0.4 * gradients[:, :3], rtol=1e-4)


@pytest.mark.parametrize(
    ("order", "expected"), [("2", ["MAML", "pretrained"]), ("none", ["pretrained"])]
)
def test_figure_4_has_the_paths_of_each_policy_once(example, order, expected):
    drawn = []
    example.draw_figure_4 = lambda *given: drawn.append(given[2])
    run(example, "--order", order)
    assert [path.label for path in drawn[0]] == expected


def test_a_finished_run_may_be_continued_with_a_context_vector(small):
    before = run(small, "--order", 2)
    after = run(small, "--order", 2, "--context", 2, "--resume", "out", out="more")
    others = [row for row in after["rows"] if row["method"] != "context"]
    assert others == before["rows"]
    assert len(after["rows"]) == len(others) + 5


def test_a_context_of_another_size_is_not_continued(small, capsys):
    run(small, "--iterations", 0, "--order", "none", "--context", 2)
    arguments = ["--resume", "out", "--order", "none", "--context", "3"]
    assert "context" in refusal(small, arguments, capsys)


def test_baselines_have_a_goal_for_each_trajectory(small):
    options, backend = small.read_options(small.make_parser(), ["--backend", "numpy"])
    experiment = small.make_experiment(options, backend)
    learner = experiment.learner_of("pretrained")
    draw = experiment.draw_pooled(learner, np.random.default_rng(0))
    assert draw.tasks.shape == (1, 6, 2) and draw.noise.shape == (1, 1, 6, 12, 2)
    assert learner.steps == 0
    assert len(np.unique(draw.tasks)) == 12


# --- what others can start from -------------------------------------------------------


@pytest.mark.parametrize("reward", ["distance", "squared"])
def test_initialisations_are_the_tested_parameters_with_their_returns(small, reward):
    results = run(small, "--seed", 3, "--alpha", 0.3, "--reward", reward)
    for name in ("exact", "first-order", "pretrained"):
        start = load_initialisation(f"out/{name}/initialisation.npz")
        best = load_checkpoint(f"out/{name}/checkpoint.npz").arrays["best"]
        assert start.theta.tobytes() == best.tobytes()
        assert start.recipe == NavigationRecipe(0.3, reward)
        facts = start.facts
        assert (facts["seed"], facts["iterations"], facts["test_tasks"]) == (3, 3, 4)
        assert facts["best_iteration"] == results["best_iteration"][name]
        assert facts["alpha"] == [0.3, 0.15, 0.15, 0.15]
        order = {"exact": 2, "first-order": 1}.get(name)
        rows = select(results, "maml" if order else "pretrained", order)
        assert facts["order"] == order and facts["steps"] == [0, 1, 2, 3, 4]
        for key in ("return", "ci95"):
            expected = [row[key] for row in rows]
            np.testing.assert_allclose(facts[key], expected, rtol=1e-3)


def test_the_command_of_an_initialisation_makes_the_same_parameters(small, folder):
    run(small, "--iterations", 2, "--order", 2, "--seed", 2, out="half")
    given = ("--iterations", 4, "--order", 2, "--seed", 2)
    run(small, *given, "--resume", "half", out="rest")
    start = load_initialisation("rest/exact/initialisation.npz")
    command = shlex.split(start.facts["command"])
    assert command[:2] == ["python", "examples/navigation.py"]
    assert not {"--resume", "--out", "half", "rest"} & {*command}
    assert small.main([*command[2:], "--out", "again"]) == 0
    for name in ("exact", "pretrained"):
        start, again = (
            load_initialisation(folder / out / name / "initialisation.npz")
            for out in ("rest", "again")
        )
        assert again.theta.tobytes() == start.theta.tobytes()
        assert (again.recipe, again.facts) == (start.recipe, start.facts)


def test_the_example_and_the_recipe_have_one_policy():
    module = load_example("navigation")
    options, backend = module.read_options(module.make_parser(), ["--backend", "numpy"])
    recipe, rng = NavigationRecipe(), np.random.default_rng
    learner = module.make_experiment(options, backend).learner()
    policies = learner.policy, recipe.network()
    ours, theirs = (policy.init(rng(0)) for policy in policies)
    assert ours.tobytes() == theirs.tobytes()
    assert (options.alpha, options.reward) == (recipe.alpha, recipe.reward)


# --- stopping and resuming ------------------------------------------------------------


def test_a_run_resumed_to_twice_its_iterations_equals_an_uninterrupted_one(small):
    whole = run(small, "--iterations", 4, out="whole")
    run(small, "--iterations", 2, "--order", 2, out="half")
    arguments = ("--iterations", 4, "--resume", "half")
    resumed = run(small, *arguments, out="resumed")
    assert resumed["rows"] == whole["rows"]
    assert resumed["best_iteration"] == whole["best_iteration"]
    for name in NAMES:
        rows = [
            [{k: v for k, v in r.items() if k != "seconds"} for r in logged(name, out)]
            for out in ("whole", "resumed")
        ]
        assert rows[0] == rows[1] and len(rows[0]) == 4


def test_ctrl_c_saves_and_says_how_to_continue(small, monkeypatch, capsys):
    monkeypatch.setattr(MAMLTRPO, "step", ctrl_c_at_call(2, MAMLTRPO.step))
    arguments = ["--iterations", "5", "--backend", "numpy", "--out", "out"]
    assert small.main(arguments) == 130
    out, _ = capsys.readouterr()
    assert out.endswith("--out out --resume out\n")
    assert not Path("out/results.json").exists()
    assert load_checkpoint("out/exact/checkpoint.npz").state["iteration"] == 2


# --- what it refuses ------------------------------------------------------------------


def test_an_alpha_too_large_ends_the_run_in_one_line(small, capsys):
    arguments = ["--alpha", "1e30", "--iterations", "2", "--backend", "numpy"]
    assert small.main([*arguments, "--out", "out"]) == 1
    *_, last = capsys.readouterr().err.splitlines()
    expected = "alpha: after inner step 1 actions are not finite"
    assert f"error: iteration 1: {expected}" in last


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--reward", "money"], "argument --reward: invalid choice"),
        (["--alpha", "0"], "argument --alpha: expected a positive number"),
        (["--order", "3"], "argument --order: invalid choice"),
        (["--context", "0"], "argument --context: expected a whole number of at least"),
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
    arguments = ["--resume", "out", *change]
    assert "expected a checkpoint with" in refusal(small, arguments, capsys)
