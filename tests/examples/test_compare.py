"""examples/compare.py: equal iterations and equal time, what it writes and refuses."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import tinymaml as tm
from tests.support.running_examples import (
    ctrl_c_at_call,
    load_example,
    read_strict_json,
    refusal,
)
from tinymaml.paper.recipes import SinusoidRecipe
from tinymaml.tasks import omniglot, sinusoid
from tinymaml.training.checkpoint import load_checkpoint

# Seconds of an outer step, in the place of measured ones: in the time in which MAML
# takes 6 steps, first-order MAML takes 12 and MAML with five inner steps takes 2.
SECONDS = {"exact": 0.1, "first-order": 0.05, "exact-5": 0.3}
METHODS = ("exact", "first-order", "exact-5")
draw_characters = cache(omniglot.standin)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Run in a clean directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def example(monkeypatch):
    """Return the example, with few test tasks and known costs."""
    module = load_example("compare")
    sinusoids, omniglot_5_way = module.sinusoids, module.omniglot_5_way

    def few(tasks):
        return {k: tm.Tasks(*(a[:12] for a in batch)) for k, batch in tasks.items()}

    def small(problem):
        return problem._replace(
            tests=few(problem.tests),
            validation=few(problem.validation),
            validate_every=2,
            rounds=1,
        )

    module.sinusoids = lambda *options: small(sinusoids(*options))
    module.omniglot_5_way = lambda *options: small(omniglot_5_way(*options))
    module.shortest_seconds = lambda calls, *_: {
        name: SECONDS.get(name, 0.1) for name in calls
    }
    monkeypatch.setattr(omniglot, "standin", draw_characters)
    return module


def given(*arguments, out="out"):
    """The arguments of a small run."""
    given = [*map(str, arguments), "--threads", "1", "--out", str(out)]
    for option, values in (
        ("--iterations", ["6"]),
        ("--seeds", ["0"]),
        ("--methods", METHODS),
    ):
        given += [] if option in given else [option, *values]
    return given


def run(module, *arguments, out="out"):
    """Run it; return its results.json."""
    assert module.main(given(*arguments, out=out)) == 0
    return read_strict_json(Path(out) / "results.json")


def trained(folder):
    """The arrays of each training of a run, apart from the log with its seconds."""
    return {
        path.parent.name: {
            name: array.tobytes()
            for name, array in load_checkpoint(path).arrays.items()
            if name != "log"
        }
        for path in Path(folder).glob("*/checkpoint.npz")
    }


def theta_of(name):
    return load_checkpoint(f"out/{name}/checkpoint.npz").arrays["theta"]


# --- what it computes -----------------------------------------------------------------


def test_a_method_is_tested_after_equal_iterations_and_in_equal_time(example):
    rows = run(example)["rows"]
    ends = {(row["method"], row["at"]): row["iterations"] for row in rows}
    assert ends == {
        ("exact", "equal iterations"): 6,
        ("exact", "equal time"): 6,
        ("first-order", "equal iterations"): 6,
        ("first-order", "equal time"): 12,
        ("exact-5", "equal iterations"): 6,
        ("exact-5", "equal time"): 2,
    }


def test_without_iterations_there_is_no_time_either(example):
    rows = run(example, "--iterations", 0, "--methods", "exact")["rows"]
    assert {row["at"] for row in rows} == {"equal iterations", "equal time"}
    assert [row["iterations"] for row in rows] == [0] * len(rows)


def test_seconds_give_the_time_of_the_test_at_equal_time(example):
    results = run(example, "--seconds", 0.9)
    ends = {r["method"]: r["iterations"] for r in results["rows"] if "time" in r["at"]}
    assert ends == {"exact": 9, "first-order": 18, "exact-5": 3}
    assert results["equal_seconds"] == 0.9


@pytest.mark.parametrize(
    ("name", "order", "steps", "ends"),
    [("exact", 2, 1, [6]), ("first-order", 1, 1, [6, 12]), ("exact-5", 2, 5, [2, 6])],
)
def test_a_training_in_two_parts_is_one_training(example, name, order, steps, ends):
    run(example, "--seeds", 3)
    recipe = SinusoidRecipe()
    network = recipe.network()
    maml = recipe.maml(network, order, backend="numba")
    maml.steps = steps
    for part, end in zip(("", "-longer"), ends, strict=False):
        plain = tm.train(
            maml,
            network.init(np.random.default_rng([1, 3])),
            sinusoid.sample_tasks,
            iterations=end,
            optimiser=tm.Adam(0.001),
            rng=np.random.default_rng([2, 3]),
            progress=False,
        )
        assert theta_of(f"{name}-seed3{part}").tobytes() == plain.theta.tobytes()


def test_rows_are_the_errors_of_the_checkpoints_on_the_same_tasks(example):
    results = run(example)
    module = load_example("sinusoid")
    recipe = SinusoidRecipe()
    for training, method, at, steps in (
        ("exact-seed0", "exact", "equal time", 1),
        ("first-order-seed0", "first-order", "equal iterations", 1),
        ("first-order-seed0-longer", "first-order", "equal time", 1),
        ("exact-5-seed0", "exact-5", "equal time", 5),
        ("exact-5-seed0-longer", "exact-5", "equal iterations", 5),
    ):
        for shots in (5, 10):
            tasks = tm.Tasks(*(a[:12] for a in module.new_tasks(1000, shots)[0]))
            maml = recipe.maml(recipe.network(), backend="numpy")
            errors = maml.evaluate(theta_of(training), tasks, 10)
            key = {"method": method, "at": at, "shots": shots}
            rows = [r for r in results["rows"] if key.items() <= r.items()]
            found = [row["mse"] for row in rows]
            np.testing.assert_allclose(found, errors.mean(axis=0), rtol=1e-4)
            reported = [r["steps"] for r in rows if r["reported"]]
            assert reported == ([steps] if shots == 10 else [])


def test_the_curve_is_the_error_on_other_tasks_through_both_parts(example):
    results = run(example)
    curves = {curve["method"]: curve for curve in results["curves"]}
    assert curves["first-order"]["iterations"] == [2, 4, 6, 8, 10, 12]
    assert curves["exact-5"]["iterations"] == [2, 4, 6]
    tasks = load_example("sinusoid").new_tasks(2000, 10)[0]
    tasks = tm.Tasks(*(a[:12] for a in tasks))
    recipe = SinusoidRecipe()
    maml = recipe.maml(recipe.network(), backend="numpy")
    for part, number in (("", 2), ("-longer", 5)):
        theta = theta_of(f"first-order-seed0{part}")
        error = maml.evaluate(theta, tasks, 1)[:, 1].mean()
        assert curves["first-order"]["scores"][number] == pytest.approx(error, rel=1e-4)


def test_a_training_that_diverges_does_not_end_the_comparison(
    example, monkeypatch, capsys
):
    diverging = example.RELATIVES["exact-5"]._replace(
        learner=lambda maml, network: tm.MAML(maml.loss, 1e30, backend=maml.backend)
    )
    monkeypatch.setitem(example.RELATIVES, "exact-5", diverging)
    results = run(example)
    out, _ = capsys.readouterr()
    assert "MAML, 5 inner steps, seed 0: diverges in outer step 1\n" in out
    for row in results["rows"]:
        assert (row["mse"] is None) == (row["method"] == "exact-5")
    (line,) = (line for line in out.splitlines() if line.count("diverges") == 2)
    assert line.startswith("MAML, 5 inner steps")


def test_the_table_has_the_mean_over_seeds_and_its_interval(example, capsys):
    results = run(example, "--seeds", 0, 1, 2, "--methods", "first-order")
    rows = [r for r in results["rows"] if r["reported"] and r["at"] == "equal time"]
    assert [row["seed"] for row in rows] == [0, 1, 2]
    values = [row["mse"] for row in rows]
    half = 4.302653 * np.std(values, ddof=1) / 3**0.5  # Student's t of 2 degrees
    out, _ = capsys.readouterr()
    assert f"{np.mean(values):.2f} ± {half:.2f}" in out


def test_costs_are_those_of_the_tape_and_of_theta(example):
    costs = run(example)["costs"]
    recipe, rng = SinusoidRecipe(), np.random.default_rng(0)
    network = recipe.network()
    tasks = sinusoid.sample_tasks(rng)
    for name, order in (("exact", 2), ("first-order", 1)):
        tape = recipe.maml(network, order).tape(network.init(rng), tasks)
        assert costs[name]["flops"] == 25 * tape.flops()
        assert costs[name]["adapted"] == costs[name]["learned"] == 1761
        assert costs[name]["seconds"] == SECONDS[name]
    assert costs["exact-5"]["workspace_bytes"] > 2 * costs["exact"]["workspace_bytes"]


def test_parameters_that_no_loop_changes_are_not_counted(example):
    problem = example.sinusoids(tm.get_backend("numba", 1), False)
    counts = {}
    for name in ("cavia", "context"):
        entry = example.training(problem, name)
        theta = entry.first_theta(0)
        tasks = entry.sample(np.random.default_rng(0))
        context = entry.maml.alpha != 0
        gradient = entry.maml.meta_gradient(theta, tasks).gradient
        still = int((gradient[context] == 0).sum())
        assert example.adapted(problem, entry) == context.sum() == 5
        counts[name] = example.learned(problem, entry, theta)
        assert counts[name] == theta.size - still
    assert counts == {"cavia": 1961, "context": 1966}
    sets = omniglot.split(draw_characters())
    characters = example.omniglot_5_way(sets, tm.get_backend("numba", 1), True)
    entry = example.training(characters, "prototypical")
    assert example.adapted(characters, entry) == 0


def test_a_baseline_is_tested_with_the_rate_that_is_best_on_validation_tasks(example):
    problem = example.sinusoids(tm.get_backend("numba", 1), False)
    problem = problem._replace(candidates=(1e-9, 0.005, 1e6))
    entry = example.training(problem, "pretrained")
    theta = entry.first_theta(0)
    learner, start = example.at_test(problem, entry, theta, 10, 10)
    assert float(learner.maml.alpha) == 0.005 and start is theta
    exact = example.training(problem, "exact")
    assert example.at_test(problem, exact, theta, 10, 10) == (exact, theta)


# --- what it writes -------------------------------------------------------------------


@pytest.mark.usefixtures("painted")
def test_trainings_without_a_validation_leave_a_sentence_and_no_warning(
    example, tmp_path, recwarn
):
    problem = example.sinusoids(tm.get_backend("numpy"), True)
    curve = {"method": "exact", "seed": 0, "iterations": [], "scores": []}
    example.draw(problem, [curve], {"exact": {"seconds": 1.0}}, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert not recwarn.list


@pytest.mark.usefixtures("painted")
def test_run_writes_its_files_into_its_folder_and_nothing_elsewhere(
    example, folder, capsys
):
    results = run(example, out="a/b")
    assert [path.name for path in folder.iterdir()] == ["a"]
    names = ["exact-5-seed0", "exact-5-seed0-longer", "exact-seed0"]
    names += ["first-order-seed0", "first-order-seed0-longer"]
    files = ["compare.png", "costs.json", "results.json"]
    assert sorted(p.name for p in (folder / "a/b").iterdir()) == sorted(names + files)
    for name in names:
        written = sorted(path.name for path in (folder / "a/b" / name).iterdir())
        assert written == ["checkpoint.npz", "log.csv"]
    assert (folder / "a/b/compare.png").read_bytes().startswith(b"\x89PNG")
    assert results["experiment"] == "compare"
    assert (results["seed"], results["iterations"]) == ([0], 6)
    assert len(results["rows"]) == 3 * 2 * 2 * 11
    out, _ = capsys.readouterr()
    for row in (row for row in results["rows"] if row["reported"]):
        assert f"{row['mse']:.2f} ± {row['ci95']:.2f}" in out


def test_omniglot_is_compared_on_stand_ins(example, folder):
    results = run(example, "--task", "omniglot", "--standin")
    assert "procedural stand-in" in results["task"]
    assert {(row["shots"], row["steps"]) for row in results["rows"]} == {
        (1, steps) for steps in range(11)
    }
    reported = {r["method"]: r["steps"] for r in results["rows"] if r["reported"]}
    assert reported == {"exact": 3, "first-order": 3, "exact-5": 5}
    assert all(0 <= row["accuracy"] <= 100 for row in results["rows"])


def test_baselines_of_omniglot_are_the_pretrained_network_and_nearest_neighbour(
    example,
):
    given = ("--task", "omniglot", "--standin", "--iterations", 2, "--seeds", 5)
    results = run(example, *given, "--methods", "pretrained", "prototypical", "nearest")
    reported = [r for r in results["rows"] if r["reported"] and "time" in r["at"]]
    steps = {row["method"]: (row["steps"], row["seed"]) for row in reported}
    assert steps == {"pretrained": (3, 5), "prototypical": (0, 5), "nearest": (0, None)}
    # All training characters in four rotations are classes; at test there are five.
    problem = example.omniglot_5_way(
        omniglot.split(draw_characters()), tm.get_backend("numba", 1), False
    )
    wide = example.training(problem, "pretrained").network
    assert wide.layers[-1].shapes["bias"][0] % 4 == 0
    theta = theta_of("pretrained-seed5")
    entry = example.training(problem, "pretrained")
    learner, start = example.at_test(problem, entry, theta, 1, 3)
    assert learner.network is problem.network and start.size == problem.network.size
    body = problem.network.layer_slices()["linear1"].stop
    assert start[:body].tobytes() == theta[:body].tobytes()
    assert not start[-325:].any()
    # The most similar image of five, by a loop.
    x, y, x_query, y_query = problem.tests[1]
    right = [
        y[task][((x[task] - image) ** 2).sum((1, 2, 3)).argmin()].argmax()
        == label.argmax()
        for task in range(len(x))
        for image, label in zip(x_query[task], y_query[task], strict=True)
    ]
    (row,) = (row for row in reported if row["method"] == "nearest")
    assert row["accuracy"] == pytest.approx(100 * np.mean(right))


@pytest.mark.parametrize(
    ("arguments", "iterations", "seeds", "out"),
    [
        ([], 70_000, [0, 1, 2], "results/compare"),
        (["--fast"], 200, [0], "results/compare"),
        (["--task", "omniglot", "--standin"], 20_000, [0], "results/compare_omniglot"),
        (["--fast", "--seeds", "4", "4", "5"], 200, [4, 5], "results/compare"),
        (
            ["--out", "results/compare", "--task", "omniglot", "--standin"],
            *(20_000, [0], "results/compare"),
        ),
    ],
)
def test_task_and_fast_choose_iterations_seeds_and_folder(
    example, monkeypatch, arguments, iterations, seeds, out
):
    runs = []
    monkeypatch.setattr(example, "run", lambda *given: runs.append(given))
    assert example.main([*arguments, "--methods", "exact"]) == 0
    courses, options = runs[0][2], runs[0][5]
    assert options.iterations == iterations and str(options.out) == out
    assert [course.seed for course in courses] == seeds


# --- stopping and resuming ------------------------------------------------------------


@pytest.mark.parametrize("call", [5, 12, 18, 25])
def test_ctrl_c_saves_and_the_resumed_run_equals_an_uninterrupted_one(
    example, folder, monkeypatch, capsys, call
):
    whole = run(example, out="whole")
    sample = ctrl_c_at_call(call, sinusoid.sample_tasks)
    with monkeypatch.context() as patch:
        patch.setattr(sinusoid, "sample_tasks", sample)
        assert example.main(given(out="stopped")) == 130
    assert capsys.readouterr().out.splitlines()[-1].endswith(" --resume stopped")
    assert not (folder / "stopped/results.json").exists()
    # The lengths of the trainings are those of the run that was stopped.
    example.shortest_seconds = lambda calls, *_: dict.fromkeys(calls, 123.0)
    resumed = run(example, "--resume", "stopped", out="stopped")
    assert resumed["rows"] == whole["rows"] and resumed["curves"] == whole["curves"]
    assert trained("stopped") == trained("whole")


def test_a_resumed_run_may_be_longer_and_have_more_methods_and_seeds(example):
    whole = run(example, "--iterations", 9, "--seeds", 0, 1, out="whole")
    run(example, "--methods", "first-order", out="half")
    more = ("--iterations", 9, "--seeds", 0, 1, "--resume", "half")
    resumed = run(example, *more, out="resumed")
    assert resumed["rows"] == whole["rows"]
    assert trained("resumed") == trained("whole")


def test_a_run_is_not_continued_on_other_data(example, capsys):
    run(example, "--methods", "first-order", out="half")
    sinusoids = example.sinusoids
    example.sinusoids = lambda *options: sinusoids(*options)._replace(title="Others")
    error = refusal(
        example, given("--methods", "first-order", "--resume", "half"), capsys
    )
    assert "data" in error and "Others" in error


# --- what it refuses ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "sgd"], "--methods: invalid choice: 'sgd'"),
        (
            ["--task", "omniglot", "--standin", "--methods", "context"],
            "--methods: expected one of exact,",
        ),
        (
            ["--task", "omniglot", "--standin", "--methods", "nearest"],
            "--methods: expected one that is trained among them",
        ),
        (["--seconds", "0"], "--seconds: expected a positive number, got '0'"),
        (["--seeds", "-1"], "--seeds: expected a whole number of at least 0, got '-1'"),
        (["--task", "chess"], "--task: invalid choice: 'chess'"),
        (["--task", "omniglot", "--data", "nowhere"], "--data: "),
        (
            ["--data", "nowhere"],
            "--data: expected --task omniglot, got --task sinusoid",
        ),
        (["--standin"], "--standin: expected --task omniglot, got --task sinusoid"),
        (["--out", "file"], "--out: "),
        (["--resume", "nowhere"], "--resume: No such file or directory: nowhere"),
        (["--resume", "empty"], "expected the costs of an earlier run, got another"),
    ],
)
def test_bad_input_is_one_line_and_exit_2_before_anything_is_written(
    example, folder, capsys, monkeypatch, arguments, message
):
    (folder / "file").write_text("precious")
    (folder / "empty").mkdir()
    (folder / "empty/costs.json").write_text('{"costs": {"exact": {"seconds": "x"}}}')
    monkeypatch.setattr("stages.train", lambda *_, **__: pytest.fail("trained"))
    before = sorted(folder.rglob("*"))
    assert message in refusal(example, arguments, capsys)
    assert sorted(folder.rglob("*")) == before


def test_a_checkpoint_of_another_run_is_refused(example, folder, capsys):
    run(example)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for arguments, message in (
        (["--fast"], "with fast = True, but out/"),
        (["--iterations", "5"], "expected at least 6 iterations, as"),
    ):
        resumed = given(*arguments, "--resume", "out")
        assert message in refusal(example, resumed, capsys)
    now = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert now == before


def test_costs_that_are_no_numbers_are_refused(example, folder):
    for text in ("", "[]", '{"costs": 1}', '{"costs": {"exact": {}}}'):
        (folder / "costs.json").write_text(text)
        with pytest.raises(ValueError, match="expected the costs of an earlier run"):
            example.read_costs(folder)
    zero = dict.fromkeys(example.COST_KEYS, 0.0)
    (folder / "costs.json").write_text(json.dumps({"costs": {"exact": zero}}))
    with pytest.raises(ValueError, match="seconds"):
        example.read_costs(folder)
