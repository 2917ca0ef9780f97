"""examples/omniglot.py and miniimagenet.py: what they write, what they refuse.

On drawn stand-ins, with few tasks; one test reads the real data where it is present.
"""

import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from few_shot import describe
from methods import RELATIVES
from tests.support.running_examples import (
    ctrl_c_at_call,
    load_example,
    read_strict_json,
    refusal,
)
from tests.support.training import read_rows
from tinymaml.paper.initialisations import load_initialisation, save_initialisation
from tinymaml.paper.recipes import RECIPES
from tinymaml.tasks import miniimagenet, omniglot
from tinymaml.tasks.episodes import Episodes
from tinymaml.tasks.images import STANDIN, ImageSet
from tinymaml.training.checkpoint import load_checkpoint

FILES = [
    "curve.png",
    "episode.png",
    "exact",
    "initialisation.npz",
    "results.json",
]
TRAINING_FILES = ["checkpoint.npz", "log.csv"]
draw_characters, draw_images = cache(omniglot.standin), cache(miniimagenet.standin)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Run in a clean directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def few_shot(monkeypatch):
    """What the examples share, with few tasks to validate and test on."""
    load_example("omniglot")
    import few_shot

    monkeypatch.setattr(few_shot, "TEST_TASKS", 6)
    monkeypatch.setattr(few_shot, "VALIDATION_TASKS", 4)
    monkeypatch.setattr(few_shot, "VALIDATE_EVERY", 2)
    monkeypatch.setattr(omniglot, "standin", draw_characters)
    monkeypatch.setattr(miniimagenet, "standin", draw_images)
    return few_shot


@pytest.fixture
def example(few_shot):
    """The Omniglot example."""
    return load_example("omniglot")


@pytest.fixture
def drawn(monkeypatch):
    """All tasks that a run draws, in their order."""
    tasks, look_up = [], Episodes.look_up

    def note(episodes, indices):
        tasks.append(look_up(episodes, indices))
        return tasks[-1]

    monkeypatch.setattr(Episodes, "look_up", note)
    return tasks


def run(module, *arguments, out="out"):
    """Run on stand-ins; return results.json."""
    given = [*map(str, arguments), "--threads", "1", "--out", str(out)]
    assert module.main(["--standin", *given]) == 0
    return read_strict_json(Path(out) / "results.json")


def trained(path):
    """The state of the training in a checkpoint, as bytes."""
    arrays = load_checkpoint(path).arrays
    return {k: a.tobytes() for k, a in arrays.items() if k != "log"}


@pytest.mark.usefixtures("painted")
def test_run_writes_all_its_files_into_its_folder_and_nothing_elsewhere(
    example, folder, capsys
):
    results = run(example, "--iterations", 5, out="a/b")
    assert sorted(path.name for path in folder.iterdir()) == ["a"]
    assert sorted(path.name for path in (folder / "a/b").iterdir()) == FILES
    written = [path.name for path in (folder / "a/b/exact").iterdir()]
    assert sorted(written) == TRAINING_FILES
    for name in ("curve.png", "episode.png"):
        assert (folder / "a/b" / name).read_bytes().startswith(b"\x89PNG")
    out, _ = capsys.readouterr()
    assert "alpha = 0.4, that is 2 on the mean cross-entropy" in out
    assert [score[0] for score in results["validation"]] == [2, 4]
    best = max(results["validation"], key=lambda score: score[1])
    assert results["best_iteration"] == best[0]
    assert (results["recipe"], results["scaling"]) == ("5w1s", "per_shot")
    keys = [(row["statistics"], row["steps"]) for row in results["rows"]]
    assert keys == [(mode, k) for mode in ("batch", "support") for k in range(11)]
    for row in results["rows"]:
        assert 0 <= row["accuracy"] <= 100
        assert f"{row['accuracy']:.2f} ± {row['ci95']:.2f}" in out


def test_results_on_stand_ins_say_so_and_stand_beside_no_number_of_the_paper(
    example, capsys
):
    results = run(example, "--iterations", 1)
    out, _ = capsys.readouterr()
    assert results["data"] == "procedural stand-in"
    assert all(row["paper"] is None for row in results["rows"])
    assert "98.7" not in out
    assert "not to be compared with the paper" in out


def test_initialisation_written_is_the_best_theta_of_the_checkpoint(example):
    results = run(example, "--iterations", 5)
    start = load_initialisation("out/initialisation.npz")
    assert (start.facts["clip"], start.facts["decay"]) == (None, False)
    best = load_checkpoint("out/exact/checkpoint.npz").arrays["best"]
    assert start.theta.tobytes() == best.tobytes()
    assert start.recipe.name == "5w1s"
    assert start.facts["best_iteration"] == results["best_iteration"]
    for figure in ("accuracy", "ci95"):
        assert start.facts[figure] == results["rows"][3][figure]


@pytest.mark.parametrize("order", [1, 2])
def test_resumed_run_ends_with_the_same_bits(example, order):
    run(example, "--iterations", 6, "--order", order, out="whole")
    run(example, "--iterations", 3, "--order", order, out="half")
    name, resume = {1: "first-order", 2: "exact"}[order], ["--resume", "half"]
    run(example, "--iterations", 6, "--order", order, *resume, out="rest")
    files = [f"{folder}/{name}/checkpoint.npz" for folder in ("rest", "whole")]
    assert trained(files[0]) == trained(files[1])
    rows = [
        read_strict_json(Path(d) / "results.json")["rows"] for d in ("rest", "whole")
    ]
    assert rows[0] == rows[1]


def test_ctrl_c_saves_and_names_the_command_that_continues(
    example, few_shot, monkeypatch, capsys
):
    monkeypatch.setattr(few_shot, "accuracy", ctrl_c_at_call(2, few_shot.accuracy))
    given = ["--standin", "--iterations", "9", "--threads", "1", "--out", "out"]
    assert example.main(given) == 130
    out, _ = capsys.readouterr()
    assert out.endswith("--out out --resume out\n")
    assert load_checkpoint("out/exact/checkpoint.npz").state["iteration"] == 4


def test_scaling_and_order_reach_the_training(example, capsys):
    results = run(
        example, "--scaling", "mean", "--order", 1, "--iterations", 2, out="mean"
    )
    out, _ = capsys.readouterr()
    assert "that is 0.4 on the mean cross-entropy" in out
    assert {row["order"] for row in results["rows"]} == {1}
    (row,) = read_rows("mean/first-order/log.csv")
    assert 1 < float(row["loss"]) < 20  # a mean over 5 classes, not its fivefold sum


def test_a_context_vector_is_trained_and_tested_like_the_other_recipes(example):
    results = run(example, "--recipe", "context-5w1s", "--iterations", 2)
    assert results["recipe"] == "context-5w1s" and len(results["rows"]) == 22
    start = load_initialisation("out/initialisation.npz")
    z = start.theta[start.network.layout["context1.z"][0]]
    assert z.size == 28 * 28 and (z != 0).mean() > 0.9  # the outer steps moved it


def test_method_trains_a_relative_in_the_place_of_maml(example, folder, capsys):
    arguments = ("--recipe", "fc-5w1s", "--method", "multi-step", "--iterations")
    whole = run(example, *arguments, 4, out="whole")
    assert (whole["method"], whole["order"]) == ("multi-step", 2)
    assert {row["method"] for row in whole["rows"]} == {"multi-step"}
    assert not (folder / "whole/initialisation.npz").exists()  # MAML's recipe is other
    run(example, *arguments, 2, out="half")
    resumed = run(example, *arguments, 4, "--resume", "half", out="rest")
    assert resumed["rows"] == whole["rows"]
    files = [f"{folder}/multi-step/checkpoint.npz" for folder in ("rest", "whole")]
    assert trained(files[0]) == trained(files[1])
    capsys.readouterr()
    given = ["--standin", *arguments[:2], "--resume", "half"]
    assert "--resume: resume: expected an earlier run" in refusal(
        example, given, capsys
    )


@pytest.mark.parametrize("name", ["exact-5", "meta-sgd", "maml++", "prototypical"])
def test_a_method_trains_what_it_learns_and_says_how_it_adapts(example, name, capsys):
    results = run(example, "--recipe", "fc-5w1s", "--method", name, "--iterations", 1)
    assert results["method"] == name
    maml = few_shot_learner(name)
    assert f"inner steps:   {maml.steps} in training" in capsys.readouterr().out
    assert results["step_on_mean"] == pytest.approx(5 * np.max(maml.alpha))


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        *(("exact", 3), ("first-order", 3), ("meta-sgd", 3)),
        *(("exact-5", 5), ("maml++", 5), ("implicit", 16), ("prototypical", 0)),
    ],
)
def test_a_method_is_validated_and_reported_after_its_own_steps(
    example, few_shot, monkeypatch, capsys, name, steps
):
    asked, logits = [], few_shot.logits

    def note(maml, networks, theta, tasks, steps):
        asked.append(steps)
        return logits(maml, networks, theta, tasks, steps)

    monkeypatch.setattr(few_shot, "logits", note)
    method = ["--order", 1] if name == "first-order" else ["--method", name]
    method = [] if name == "exact" else method
    results = run(example, "--recipe", "fc-5w1s", *method, "--iterations", 2)
    assert {*asked} == {steps}
    assert len(results["rows"]) == 2 * (max(10, steps) + 1)
    marked = [line for line in capsys.readouterr().out.splitlines() if " * " in line]
    assert [line.split()[0] for line in marked] == [str(steps)]


def few_shot_learner(name):
    """The learner of a method on fc-5w1s, where a step is on five times the mean."""
    recipe = RECIPES["fc-5w1s"]
    network = recipe.network()
    return RELATIVES[name].learner(recipe.maml(network), network)


def test_one_shot_tests_within_an_alphabet_as_well(example, capsys):
    given = "--split", "background", "--iterations", 1, "--evaluate", "one-shot"
    results = run(example, *given)
    rows = results["one_shot"]
    assert [row["steps"] for row in rows] == 2 * [*range(11)]
    assert {(row["ways"], row["shots"], row["paper"]) for row in rows} == {(5, 1, None)}
    assert rows != results["rows"] and results["rotations"]
    out = capsys.readouterr().out
    assert (
        "On 6 tasks, each of 5 characters of one alphabet, drawn by two people" in out
    )


def test_without_rotations_tasks_hold_drawings_as_they_are(
    example, few_shot, drawn, capsys
):
    results = run(example, "--iterations", 1, "--no-rotations")
    assert sorted(map(len, (tasks.x_query for tasks in drawn))) == [4, 6, 32]
    assert results["rotations"] is False
    upright = {image.tobytes() for image in draw_characters().images}
    for tasks in drawn:
        for x in (tasks.x_support, tasks.x_query):
            pixels = (255 * x).round().astype(np.uint8).reshape(-1, 28, 28, 1)
            assert all(image.tobytes() in upright for image in pixels)
    capsys.readouterr()
    given = ["--standin", "--resume", "out"]
    assert "not rotated" in refusal(example, given, capsys)


def test_training_alone_has_the_number_of_query_examples_asked_for(
    example, drawn, capsys
):
    results = run(example, "--iterations", 1, "--queries", "3")
    shapes = {tasks.x_query.shape[:2] for tasks in drawn}
    assert shapes == {(32, 15), (4, 5), (6, 5)}  # training, validation, test
    assert results["queries"] == 3
    assert "5-way 1-shot, 3 query examples a class in training, 1 at test" in (
        capsys.readouterr().out
    )
    start = load_initialisation("out/initialisation.npz")
    assert (start.facts["queries"], start.recipe) == (3, RECIPES["5w1s"])
    given = ["--standin", "--resume", "out", "--iterations", "1"]
    message = refusal(example, [*given, "--queries", "2"], capsys)
    assert "recipe = '5w1s --queries 2', but" in message
    assert "written with '5w1s --queries 3'" in message
    # One drawing of the 20 is the support example.
    message = refusal(example, ["--standin", "--queries", "20"], capsys)
    assert "argument --queries: class" in message
    assert "argument --queries" in refusal(
        example, ["--standin", "--queries", "0"], capsys
    )
    # What is the default anyway needs not be repeated to continue.
    run(example, "--iterations", 1, "--queries", "1", out="one")
    run(example, "--iterations", 2, "--resume", "one", out="two")


def test_learning_rate_reaches_the_training(example, capsys):
    faster = ("--learning-rate", "3e-3")
    results = run(example, "--iterations", 3, *faster)
    assert results["learning_rate"] == 0.003
    assert "Adam, 0.003, 32 tasks" in capsys.readouterr().out
    state = load_checkpoint("out/exact/checkpoint.npz").state
    assert state["optimiser"]["learning_rate"] == 0.003
    given = ["--standin", "--resume", "out", "--iterations", "3"]
    message = refusal(example, given, capsys)
    assert "written with '5w1s --learning-rate 0.003'" in message
    run(example, "--iterations", 3, *faster, "--decay", out="falling")
    state = load_checkpoint("falling/exact/checkpoint.npz").state
    assert state["optimiser"]["learning_rate"] == "cosine(0.003, 3, 0.0)"
    for rate in ("0", "nan", "x"):
        message = refusal(example, ["--standin", "--learning-rate", rate], capsys)
        assert "argument --learning-rate: expected a positive number" in message


def test_training_starts_from_an_initialisation(example, capsys):
    run(example, "--iterations", 2, "--recipe", "fc-5w1s", out="first")
    path = "first/initialisation.npz"
    first = load_initialisation(path)
    given = ("--recipe", "fc-5w1s", "--initialisation", path)
    run(example, "--iterations", 0, *given, "--seed", "3", out="none")
    assert "start:         parameters of fc-5w1s, scaling per_shot\n" in (
        capsys.readouterr().out
    )
    untrained = load_initialisation("none/initialisation.npz")
    assert untrained.theta.tobytes() == first.theta.tobytes()
    # Adam's first step moves no parameter further than the learning rate.
    results = run(example, "--iterations", 1, *given, "--learning-rate", "1e-4")
    arrays = load_checkpoint("out/exact/checkpoint.npz").arrays
    moved = np.abs(arrays["theta"] - first.theta).max()
    assert 0.9e-4 < moved < 1.1e-4
    assert path in results["command"]
    facts = load_initialisation("out/initialisation.npz").facts
    assert path in facts["command"]
    assert facts["initialisation"] == first.facts["command"]
    assert first.facts["initialisation"] is None
    method = ("--method", "meta-sgd", "--iterations", 0)
    run(example, *given, *method, out="relative")
    theta = load_checkpoint("relative/meta-sgd/checkpoint.npz").arrays["theta"]
    assert theta[: first.theta.size].tobytes() == first.theta.tobytes()
    # A copy of the file is the same initialisation; another theta is not.
    Path("moved.npz").write_bytes(Path(path).read_bytes())
    same = ("--initialisation", "moved.npz", "--learning-rate", "1e-4")
    run(example, "--iterations", 2, *given[:2], *same, "--resume", "out", out="more")
    run(example, "--iterations", 1, "--recipe", "fc-5w1s", out="second")
    for other in ([], ["--initialisation", "second/initialisation.npz"]):
        resumed = [*given[:2], "--learning-rate", "1e-4", *other, "--resume", "out"]
        message = refusal(example, ["--standin", *resumed], capsys)
        assert "--initialisation of digest " in message and "written with" in message


def test_an_initialisation_that_does_not_fit_is_refused(example, capsys):
    message = refusal(
        example, ["--standin", "--initialisation", "omniglot-7w1s"], capsys
    )
    assert "argument --initialisation: expected one of " in message
    assert " omniglot-5w1s, " in message
    assert "got 'omniglot-7w1s', which is no .npz file either" in message
    for recipe, name, expected, came in (
        ("fc-5w1s", "omniglot-5w1s", "omniglot-fc for 5", "omniglot for 5 classes"),
        ("20w1s", "omniglot-5w1s", "omniglot for 20", "omniglot for 5 classes"),
        ("5w1s", "sinusoid-maml", "omniglot for 5", "MLP"),
    ):
        given = ["--standin", "--recipe", recipe, "--initialisation", name]
        message = refusal(example, given, capsys)
        assert f"{recipe}, {expected} classes, got those of {came}\n" in message
    given = ["--standin", "--initialisation", "omniglot-5w1s"]
    message = refusal(load_example("miniimagenet"), given, capsys)
    assert "miniimagenet for 5 classes, got those of omniglot for 5 clas" in message
    recipe = RECIPES["fc-5w1s"]
    theta = np.zeros(recipe.network().size)
    save_initialisation("float64.npz", theta, recipe, {})
    known = {"data": STANDIN, "classes": "1100 train, 100 validation, 423 test"}
    save_initialisation("split.npz", theta.astype("float32"), recipe, known)
    for path, expected in (
        ("float64.npz", "expected parameters in float32, got float64"),
        ("split.npz", f"{known['classes']}, which may know classes of the test"),
    ):
        given = ["--standin", "--recipe", "fc-5w1s", "--initialisation", path]
        message = refusal(example, [*given, "--split", "background"], capsys)
        assert "argument --initialisation: " in message and expected in message
    Path("results").mkdir()
    Path("split.npz").rename("results/initialisation.npz")
    given = ["--standin", "--recipe", "fc-5w1s", "--out", "results", "--overwrite"]
    given += ["--initialisation", "results/../results/initialisation.npz"]
    message = refusal(example, given, capsys)
    assert "argument --initialisation: expected a file that this run does" in message
    Path("results/initialisation.npz").unlink()  # it is still there
    Path("results").rmdir()
    Path("broken.npz").write_bytes(b"PK")
    for path in ("missing.npz", "broken.npz"):
        message = refusal(example, ["--standin", "--initialisation", path], capsys)
        assert "argument --initialisation: " in message and path in message
    assert not Path("results").exists()


def test_clipping_and_a_falling_rate_reach_the_training(example, capsys):
    def moment(folder):
        arrays = load_checkpoint(f"{folder}/exact/checkpoint.npz").arrays
        return np.abs(arrays["optimiser/first_moment"]).max()

    run(example, "--iterations", 3, out="plain")
    clip, largest = ("--clip", "1e-3"), 1e-3 * (1 - 0.9**3)  # of Adam's moment
    results = run(example, "--iterations", 3, *clip, "--decay", out="both")
    assert (results["clip"], results["decay"]) == (1e-3, True)
    assert 0.9 * largest < moment("both") < 1.001 * largest < moment("plain")
    state = load_checkpoint("both/exact/checkpoint.npz").state
    assert state["optimiser"]["learning_rate"] == "cosine(0.001, 3, 0.0)"
    line = "Adam, 0.001 falling to 0, 32 tasks, entries clipped to 0.001\n"
    assert line in capsys.readouterr().out
    given = ["--standin", "--resume", "both", "--iterations", "3"]
    for options, ours in (
        (
            [*clip, "--decay", "--iterations", "4"],
            "--clip 0.001 --decay over 4 iterations'",
        ),
        (clip, "recipe = '5w1s --clip 0.001', but"),
        (["--decay"], "recipe = '5w1s --decay over 3 iterations', but"),
    ):
        message = refusal(example, [*given, *options], capsys)
        assert ours in message, message
        assert "written with '5w1s --clip 0.001 --decay over 3 it" in message
    assert "argument --clip" in refusal(example, ["--standin", "--clip", "0"], capsys)
    run(example, "--iterations", 0, "--decay", out="none")
    run(example, "--iterations", 1, "--method", "step-rates", *clip, out="rates")
    assert "entries clipped to 0.001\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "nowhere"], "argument --data"),
        (
            ["--standin", "--evaluate", "one-shot", "--recipe", "5w5s"],
            "argument --evaluate: expected a --recipe with one shot, got 5w5s",
        ),
        (
            ["--standin", "--evaluate", "one-shot"],
            "argument --evaluate: expected --split background, got authors",
        ),
        (["--recipe", "5w2s"], "argument --recipe"),
        (["--order", "3"], "argument --order"),
        (["--method", "context"], "argument --method: invalid choice: 'context'"),
        (
            ["--standin", "--method", "anil", "--recipe", "context-5w1s"],
            "argument --method: expected a --recipe that adapts weights, got context",
        ),
        (["--standin", "--resume", "nowhere"], "argument --resume"),
        # What contradicts another option is not ignored.
        (
            ["--standin", "--data", "nowhere"],
            "argument --data: not allowed with argument --standin",
        ),
        (
            ["--standin", "--download"],
            "argument --download: not allowed with argument --standin",
        ),
        (
            ["--standin", "--order", "1", "--method", "anil"],
            "argument --method: not allowed with argument --order",
        ),
        (
            ["--standin", "--order", "2", "--method", "first-order"],
            "argument --method: not allowed with argument --order",
        ),
    ],
)
def test_wrong_options_are_refused_in_one_line_before_anything_is_written(
    example, folder, capsys, monkeypatch, arguments, words
):
    monkeypatch.delenv("TINYMAML_DATA", raising=False)
    assert words in refusal(example, arguments, capsys)
    assert list(folder.iterdir()) == []


def test_missing_folder_of_miniimagenet_names_the_option_once(few_shot, capsys):
    message = refusal(load_example("miniimagenet"), ["--data", "nowhere"], capsys)
    assert "argument --data: expected a folder of images, got" in message


def test_checkpoint_of_another_recipe_is_refused(example, capsys):
    run(example, "--iterations", 1)
    given = ["--standin", "--recipe", "5w5s", "--resume", "out"]
    assert "recipe" in refusal(example, given, capsys)


@pytest.mark.slow
def test_miniimagenet_runs_on_stand_ins(few_shot, monkeypatch, capsys):
    monkeypatch.setattr(few_shot, "TEST_TASKS", 2)
    results = run(load_example("miniimagenet"), "--iterations", 1)
    out, _ = capsys.readouterr()
    assert (results["experiment"], results["recipe"]) == ("miniimagenet", "mini-5w1s")
    assert results["clip"] == 10
    assert "64 train, 16 validation, 20 test" in out
    assert sorted(path.name for path in Path("out").iterdir()) == FILES


@pytest.mark.slow
@pytest.mark.skipif(
    "TINYMAML_DATA" not in os.environ, reason="TINYMAML_DATA: no real Omniglot here"
)
def test_table_1_stands_beside_results_on_the_real_characters(example, capsys):
    assert example.main(["--iterations", "1", "--out", "out"]) == 0
    results = read_strict_json(Path("out/results.json"))
    out, _ = capsys.readouterr()
    assert results["data"] == "Omniglot"
    options = ["--iterations", "1", "--no-rotations", "--out", "upright"]
    assert example.main(options) == 0
    upright = read_strict_json(Path("upright/results.json"))
    assert {row["paper"] for row in upright["rows"]} == {None}
    assert [r["steps"] for r in results["rows"] if r["paper"] == 98.7] == [3]
    assert "1100 train, 100 validation, 423 test" in out
    assert np.isfinite([row["accuracy"] for row in results["rows"]]).all()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_in_words_names_alpha_and_the_step_on_the_mean_loss(name):
    recipe = RECIPES[name]
    facts = dict(line.split(":", 1) for line in describe(recipe).splitlines())
    step = facts["inner step"]
    assert f"alpha = {recipe.alpha:g}," in step
    assert f"{recipe.step_on_mean:g} on the mean" in step
    assert "sum over examples / K" in facts["cross-entropy"]
    assert f"{recipe.ways}-way {recipe.shots}-shot" in facts["task"]
    assert ("clipped to 10" in facts["outer step"]) == (recipe.clip is not None)
    assert f"{recipe.network().size:,} parameters" in facts["network"]
    mean = describe(recipe.scaled("mean"))
    assert f"{recipe.alpha:g} on the mean" in mean and "mean over examples" in mean


# --- tasks of one alphabet ------------------------------------------------------------


def numbered_characters(sizes):
    """Alphabets of these sizes; the pixels of a drawing say which one it is."""
    names = [
        f"A{a}/character{c:02}" for a, size in enumerate(sizes) for c in range(size)
    ]
    drawings = np.arange(len(names) * 20)
    pixels = np.stack([drawings // 20, drawings % 20], axis=1).astype(np.uint8)
    return ImageSet(
        pixels.reshape(-1, 1, 2, 1), drawings // 20, tuple(names), "numbers"
    )


def test_one_shot_tasks_are_characters_of_one_alphabet_drawn_by_two_people(example):
    characters = numbered_characters([7, 5, 3, 9])
    alphabet_of = np.array([name.split("/")[0] for name in characters.classes])
    tasks = example.one_shot_tasks(characters, ways=5, count=200, seed=3)
    support, query = (
        (255 * x.reshape(200, 5, 2)).round().astype(int)
        for x in (tasks.x_support, tasks.x_query)
    )
    np.testing.assert_array_equal(support[..., 0], query[..., 0])
    assert all(len({*task}) == 5 for task in support[..., 0])
    people = np.stack([support[..., 1], query[..., 1]])
    assert (people == people[..., :1]).all() and (people[0] != people[1]).all()
    alphabets = [{*alphabet_of[task]} for task in support[..., 0]]
    assert all(len(names) == 1 for names in alphabets)
    assert set.union(*alphabets) == {"A0", "A1", "A3"}  # of the third there are three
    for y in (tasks.y_support, tasks.y_query):
        np.testing.assert_array_equal(y, np.broadcast_to(np.eye(5), (200, 5, 5)))
    again = example.one_shot_tasks(characters, ways=5, count=200, seed=3)
    assert all((a == b).all() for a, b in zip(tasks, again, strict=True))
    other = example.one_shot_tasks(characters, ways=5, count=200, seed=4)
    assert (other.x_support != tasks.x_support).any()


def test_one_shot_tasks_need_an_alphabet_that_is_large_enough(example):
    message = "images: expected an alphabet of 6 characters, got at most 5 of one"
    with pytest.raises(ValueError, match=message):
        example.one_shot_tasks(numbered_characters([2, 5]), ways=6, count=1)
    characters = numbered_characters([5])
    one_less = ImageSet(*(part[1:] for part in characters[:2]), *characters[2:])
    with pytest.raises(ValueError, match="images: expected 20 consecutive drawings"):
        example.one_shot_tasks(one_less, ways=5, count=1)
