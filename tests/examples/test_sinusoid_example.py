"""examples/sinusoid.py: what it computes, what it writes, what it refuses."""

import shlex
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
from tests.support.training import read_rows
from tinymaml.paper.initialisations import load_initialisation
from tinymaml.paper.recipes import RecipeLoss, SinusoidRecipe
from tinymaml.tasks import sinusoid
from tinymaml.training.checkpoint import load_checkpoint, save_checkpoint

NAMES = ["exact", "first-order", "oracle", "pretrained"]
MULTITASK = ["multitask", "multitask-l2", "multitask-mean"]
STARTS = {"exact": "maml", "first-order": "maml", "pretrained": "pretrained"}
FILES = sorted([*NAMES, *MULTITASK, "figure2.png", "figure3.png", "results.json"])
TABLE_2 = {
    "maml": [0.67, 0.38, 0.35],
    "pretrained": [2.41, 2.23, 2.19],
    "multitask": [4.19, 3.85, 3.69],
    "multitask_l2": [7.18, 5.69, 5.60],
    "multitask_mean": [2.91, 2.72, 2.71],
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Run in a clean directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def example():
    """Return the example, with few tasks to evaluate on."""
    module = load_example("sinusoid")
    module.TASKS, module.CANDIDATES = 12, (0.01,)
    return module


@pytest.fixture
def small(example):
    """Leave out figures and most shots, which one other test covers."""
    example.draw_figure_2 = example.draw_figure_3 = lambda *_: None
    example.SHOTS = (5,)
    return example


def run(module, *arguments, out="out"):
    """Run it; return its results.json."""
    given = [*map(str, arguments)]
    given += [] if "--iterations" in given else ["--iterations", "6"]
    assert module.main([*given, "--threads", "1", "--out", str(out)]) == 0
    return read_strict_json(Path(out) / "results.json")


def rows_of(results, method, order=None, shots=5):
    return [
        row
        for row in results["rows"]
        if (row["method"], row["order"], row["shots"]) == (method, order, shots)
    ]


def trained(folder):
    """Return theta of each training of a run, and how far it came."""
    checkpoints = {
        path.parent.name: load_checkpoint(path)
        for path in folder.glob("*/checkpoint.npz")
    }
    return {
        name: (checkpoint.arrays["theta"].tobytes(), checkpoint.state["iteration"])
        for name, checkpoint in checkpoints.items()
    }


# --- what it writes and prints --------------------------------------------------------


@pytest.mark.usefixtures("painted")
def test_full_run_writes_all_its_files_into_its_folder_and_nothing_elsewhere(
    example, folder, capsys
):
    results = run(example, "--multitask", out="a/b")
    assert sorted(path.name for path in folder.iterdir()) == ["a"]
    assert sorted(path.name for path in (folder / "a/b").iterdir()) == FILES
    for name in [*NAMES, *MULTITASK]:
        written = sorted(path.name for path in (folder / "a/b" / name).iterdir())
        starts = ["initialisation.npz"] if name in STARTS else []
        assert written == ["checkpoint.npz", *starts, "log.csv"]
    for name in ("figure2.png", "figure3.png"):
        assert (folder / "a/b" / name).read_bytes().startswith(b"\x89PNG")
    assert set(results) == {
        "experiment",
        "command",
        "version",
        "seed",
        "iterations",
        "backend",
        "tested",
        "seconds",
        "alpha",
        "initial",
        "outer_learning_rate",
        "rows",
    }
    assert results["experiment"] == "sinusoid"
    assert results["command"] == (
        "python examples/sinusoid.py --multitask --iterations 6 --threads 1 --out a/b"
    )
    assert (results["version"], results["seed"]) == (tm.__version__, 0)
    assert (results["iterations"], results["backend"]) == (6, "numba")
    assert {"exact", "first-order", "pretrained", "total"} <= set(results["seconds"])
    assert len(results["rows"]) == 7 * 3 * 11

    out, _ = capsys.readouterr()
    for name, numbers in TABLE_2.items():
        rows = rows_of(results, name, order=2 if name == "maml" else None)
        assert [row["steps"] for row in rows] == list(range(11))
        paper = [rows[steps]["paper"] for steps in (1, 5, 10)]
        assert paper == numbers
        assert sum(row["paper"] is not None for row in rows) == 3
        assert any(all(f"{x:.2f}" in line for x in paper) for line in out.splitlines())
        assert f"{rows[1]['mse']:.2f} ± {rows[1]['ci95']:.2f}" in out
    assert "tuned learning rate, pretrained: " in out


def test_each_training_has_a_log_of_its_own(small, folder):
    run(small, "--iterations", 200, "--order", 1)
    names = ("first-order", "pretrained", "oracle")
    assert {path.parent.name for path in folder.glob("out/*/log.csv")} == {*names}
    for name in names:
        rows = read_rows(folder / "out" / name / "log.csv")
        assert [row["iteration"] for row in rows] == ["100", "200"]
        assert all(0 < float(row["loss"]) < 20 for row in rows)


@pytest.mark.parametrize(
    ("order", "orders"), [("1", {1, None}), ("2", {2, None}), ("both", {1, 2, None})]
)
def test_order_chooses_the_meta_gradients(small, order, orders):
    results = run(small, "--order", order)
    assert {row["order"] for row in results["rows"]} == orders


def test_method_trains_relatives_in_the_place_of_maml(small, capsys):
    results = run(small, "--method", "context", "first-order")
    methods = {row["method"]: row["order"] for row in results["rows"]}
    assert methods == {"context": None, "maml": 1, "pretrained": None, "oracle": None}
    assert sorted(path.name for path in Path("out").iterdir() if path.is_dir()) == [
        *("context", "first-order", "oracle", "pretrained")
    ]
    assert "context vector" in capsys.readouterr().out
    from methods import context_network

    # A context vector adapts with its own rate, whatever --alpha is.
    network = context_network(small.INITIALISERS["recipe"])
    rates = network.vector(0.0, **{"context1.z": 1.0})
    maml = tm.MAML(RecipeLoss(network, tm.squared_error), rates, backend="numpy")
    theta = load_checkpoint("out/context/checkpoint.npz").arrays["theta"]
    tasks, _ = small.new_tasks(small.EVALUATION, 5)
    errors = maml.evaluate(theta, tasks, steps=2)[:, 2]
    row = rows_of(results, "context")[2]
    assert row["mse"] == pytest.approx(errors.mean(), rel=1e-4)


@pytest.mark.usefixtures("painted")
def test_method_draws_the_fits_of_a_relative(example, folder):
    run(example, "--method", "context")
    assert (folder / "out/figure2.png").read_bytes().startswith(b"\x89PNG")


def test_method_resumes_to_the_same_bits(small, folder):
    whole = run(small, "--method", "context", "--iterations", 8, out="whole")
    run(small, "--method", "context", "--iterations", 4, out="half")
    arguments = ("--method", "context", "--iterations", 8, "--resume", "half")
    assert run(small, *arguments, out="resumed")["rows"] == whole["rows"]
    assert trained(folder / "whole") == trained(folder / "resumed")


@pytest.mark.parametrize(
    ("arguments", "iterations", "initial", "outer_learning_rate"),
    [
        ([], 70_000, "recipe", 0.001),
        (["--fast"], 3_000, "he", 0.005),
        (["--fast", "--iterations", "5"], 5, "he", 0.005),
        (["--fast", "--initial", "recipe"], 3_000, "recipe", 0.005),
        (["--initial", "he"], 70_000, "he", 0.001),
    ],
)
def test_fast_changes_length_weights_and_rate_unless_they_are_given(
    small, monkeypatch, arguments, iterations, initial, outer_learning_rate
):
    runs = []
    monkeypatch.setattr(
        small, "run", lambda stages, chosen, options, *_: runs.append(options)
    )
    assert small.main([*arguments, "--out", "out"]) == 0
    (options,) = runs
    assert options.iterations == iterations
    assert options.initial == initial
    assert options.outer_learning_rate == outer_learning_rate


def test_fast_says_in_one_line_what_it_shortened(small, capsys):
    run(small, "--fast")
    out, _ = capsys.readouterr()
    (line,) = (line for line in out.splitlines() if line.startswith("--fast: "))
    assert "6 iterations instead of 70,000, --initial he" in line
    assert "outer learning rate 0.005 instead of 0.001" in line
    run(small, out="full")
    assert "--fast: " not in capsys.readouterr().out


@pytest.mark.slow
def test_fast_shows_that_meta_learning_works(small, folder):
    small.TASKS = 600
    assert small.main(["--fast", "--out", "out"]) == 0
    results = read_strict_json(folder / "out/results.json")
    exact, first_order, pretrained = (
        rows_of(results, method, order)[1]["mse"]
        for method, order in (("maml", 2), ("maml", 1), ("pretrained", None))
    )
    assert exact < 0.6 * pretrained
    assert first_order < 0.7 * pretrained


def test_help_names_every_option(example, capsys):
    with pytest.raises(SystemExit) as stop:
        example.main(["--help"])
    out, _ = capsys.readouterr()
    assert stop.value.code == 0
    assert "figures 2, 3, 6, 7 and table 2" in out
    options = (
        "iterations order method alpha initial backend threads seed out resume fast"
    )
    for option in [*options.split(), "multitask"]:
        assert f"--{option} " in out


# --- what it computes -----------------------------------------------------------------


def test_same_seed_same_numbers_on_one_thread_or_two(small):
    first = run(small)
    assert small.main(["--iterations", "6", "--threads", "2", "--out", "two"]) == 0
    assert read_strict_json(Path("two") / "results.json")["rows"] == first["rows"]
    assert run(small, "--seed", 1, out="other")["rows"] != first["rows"]


def test_both_backends_agree(small):
    rows = [run(small, "--backend", m, out=m)["rows"] for m in ("numba", "numpy")]
    for ours, theirs in zip(*rows, strict=True):
        assert ours["mse"] == pytest.approx(theirs["mse"], rel=1e-3)


def test_mse_is_the_mean_error_on_the_query_points_of_the_evaluation_tasks(small):
    results = run(small, "--iterations", 0, "--alpha", 0.002)
    tasks, _ = small.new_tasks(small.EVALUATION, 5)
    theta = small.NETWORK.init(small.random_stream(small.INITIAL, 0))
    errors = []
    for x, y, x_query, y_query in zip(*tasks, strict=True):
        maml = tm.MAML(small.loss, 0.002, backend="numpy")
        adapted = maml.adapt(theta, x[None], y[None], steps=3)[0, 3]
        errors.append(
            np.square(small.NETWORK.predict(adapted, x_query) - y_query).mean()
        )
    row = rows_of(results, "maml", order=2)[3]
    assert row["steps"] == 3
    assert row["mse"] == pytest.approx(np.mean(errors), rel=1e-4)
    assert row["ci95"] == pytest.approx(
        1.96 * np.std(errors) / len(errors) ** 0.5, rel=1e-4
    )


def test_the_oracle_takes_no_steps(small):
    rows = rows_of(run(small), "oracle")
    assert len(rows) == 11
    assert len({row["mse"] for row in rows}) == 1


def test_the_oracle_has_amplitude_and_phase_of_its_own_task(small):
    tasks, waves = small.new_tasks(small.EVALUATION, 5)
    x, y, *_ = small.append_amplitude_and_phase(tasks, waves)
    assert x.dtype == np.float32
    np.testing.assert_allclose(
        x[..., 1] * np.sin(x[..., 0] - x[..., 2]), y[..., 0], atol=1e-5
    )


def test_pretraining_descends_the_support_loss_at_theta(small):
    tasks = small.sample_pooled_tasks(np.random.default_rng(0))
    theta = small.NETWORK.init(np.random.default_rng(0))
    result = tm.MAML(small.loss, steps=0, backend="numpy").meta_gradient(theta, tasks)
    x, y = tasks.x_support.reshape(-1, 1), tasks.y_support.reshape(-1, 1)
    error = np.square(small.NETWORK.predict(theta, x) - y).mean()
    assert result.loss == pytest.approx(error, rel=1e-5)


def test_tuning_picks_the_learning_rate_with_the_smallest_validation_error(small):
    small.CANDIDATES = (1e-9, 0.005, 1e6)
    theta = small.NETWORK.init(np.random.default_rng(0))
    assert small.tuned_learning_rate(theta, 10, tm.get_backend("numpy")) == 0.005


def test_divergence_is_shown_and_not_left_out_of_the_mean(small, capsys):
    results = run(small, "--iterations", 0, "--alpha", 30)
    rows = rows_of(results, "maml", order=2)
    assert rows[0]["mse"] is not None
    assert rows[10]["mse"] is None and rows[10]["ci95"] is None
    assert "diverges" in capsys.readouterr().out


# --- what others can start from -------------------------------------------------------


def test_initialisations_are_the_trained_parameters_with_their_test_errors(example):
    results = run(example, "--seed", 3)
    for name, method in STARTS.items():
        start = load_initialisation(f"out/{name}/initialisation.npz")
        theta = load_checkpoint(f"out/{name}/checkpoint.npz").arrays["theta"]
        assert start.theta.tobytes() == theta.tobytes()
        alpha = 0.01 if name == "pretrained" else 0.001
        assert start.recipe == SinusoidRecipe(alpha)
        facts = start.facts
        assert (facts["order"], facts["seed"], facts["iterations"]) == (
            {"exact": 2, "first-order": 1}.get(name),
            3,
            6,
        )
        assert (facts["test_tasks"], facts["initial"]) == (12, "recipe")
        for shots in (5, 10, 20):
            rows = rows_of(results, method, facts["order"], shots)
            rows = [rows[steps] for steps in facts["steps"]]
            figures = facts[f"{shots} shots"]
            assert figures["alpha"] == alpha
            for key in ("mse", "ci95"):
                expected = [row[key] for row in rows]
                np.testing.assert_allclose(figures[key], expected, rtol=1e-3)


def test_the_command_of_an_initialisation_makes_the_same_parameters(small, folder):
    given = ("--iterations", 4, "--seed", 2, "--initial", "he", "--alpha", 0.002)
    run(small, *given, "--order", 2, out="half")
    run(small, *given[2:], "--iterations", 8, "--resume", "half", out="my files")
    starts = [folder / "my files" / name / "initialisation.npz" for name in STARTS]
    expected = {path.parent.name: load_initialisation(path) for path in starts}
    assert {start.facts["iterations"] for start in expected.values()} == {8}
    command = shlex.split(expected["exact"].facts["command"])
    assert command[:2] == ["python", "examples/sinusoid.py"]
    assert not {"--resume", "--out", "half", "my files"} & {*command}
    assert small.main([*command[2:], "--out", "again"]) == 0
    for name, start in expected.items():
        again = load_initialisation(folder / "again" / name / "initialisation.npz")
        assert again.theta.tobytes() == start.theta.tobytes()
        assert (again.recipe, again.facts) == (start.recipe, start.facts)


def test_the_example_and_the_recipe_have_one_network(example):
    recipe, rng = SinusoidRecipe(), np.random.default_rng
    ours, theirs = (n.init(rng(0)) for n in (example.NETWORK, recipe.network()))
    assert ours.tobytes() == theirs.tobytes()
    assert example.make_parser().get_default("alpha") == recipe.alpha


@pytest.mark.parametrize("shots", [5, 10, 20])
def test_the_shipped_networks_have_the_example_s_learning_rates_and_errors(shots):
    module, backend = load_example("sinusoid"), tm.get_backend("auto")
    thetas = {}
    for name, start in (("exact", "maml"), ("pretrained", "pretrained")):
        thetas[name] = tm.pretrained(f"sinusoid-{start}").theta
    tuned = module.tuned_learning_rate(thetas["pretrained"], shots, backend)
    rates = {("exact", shots): 0.001, ("pretrained", shots): tuned}
    rows = module.evaluate(thetas, rates, backend)
    for name, start in (("exact", "maml"), ("pretrained", "pretrained")):
        facts = tm.pretrained(f"sinusoid-{start}").facts
        figures = facts[f"{shots} shots"]
        assert figures["alpha"] == rates[name, shots]
        points = module.rows_of(rows, name, shots)
        for key in ("mse", "ci95"):
            found = [points[steps][key] for steps in facts["steps"]]
            np.testing.assert_allclose(figures[key], found, rtol=2e-3)


def test_errors_that_are_not_finite_are_null_in_the_facts(small):
    run(small, "--iterations", 0, "--alpha", 30)
    facts = load_initialisation("out/exact/initialisation.npz").facts["5 shots"]
    assert facts["mse"][0] > 0 and facts["mse"][3] is facts["ci95"][3] is None


# --- stopping and resuming ------------------------------------------------------------


def test_a_run_resumed_to_twice_its_iterations_equals_an_uninterrupted_one(
    small, folder
):
    whole = run(small, "--iterations", 8, "--multitask", out="whole")
    run(small, "--iterations", 4, out="half")
    half = folder / "half"
    before = {path: path.read_bytes() for path in half.rglob("*") if path.is_file()}
    arguments = ("--iterations", 8, "--multitask", "--resume", half)
    resumed = run(small, *arguments, out="resumed")
    assert resumed["rows"] == whole["rows"]
    assert trained(folder / "whole") == trained(folder / "resumed")
    assert set(trained(folder / "whole")) == {*NAMES, *MULTITASK}
    now = {path: path.read_bytes() for path in half.rglob("*") if path.is_file()}
    assert now == before


@pytest.mark.parametrize("call", [2, 8, 20])
def test_ctrl_c_saves_and_the_resumed_run_equals_an_uninterrupted_one(
    small, folder, monkeypatch, capsys, call
):
    whole = run(small, out="whole")
    sample = ctrl_c_at_call(call, sinusoid.sample_points)
    with monkeypatch.context() as patch:
        patch.setattr(sinusoid, "sample_points", sample)
        capsys.readouterr()
        arguments = ["--iterations", "6", "--threads", "1", "--out", "stopped"]
        assert small.main(arguments) == 130
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    assert out.endswith("--out stopped --resume stopped\n")
    assert not (folder / "stopped/results.json").exists()
    resumed = run(small, "--resume", "stopped", out="stopped")
    assert resumed["rows"] == whole["rows"]


def test_a_loss_that_is_not_finite_stops_with_one_line_naming_the_iteration(
    small, folder, capsys
):
    assert small.main(["--iterations", "6", "--alpha", "1e35", "--threads", "1"]) == 1
    _, err = capsys.readouterr()
    last = err.splitlines()[-1]
    assert "error: iteration 1: the loss is" in last and "Traceback" not in err


# --- what it refuses ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--iterations", "-1"], "--iterations: expected a whole number of at least 0"),
        (
            ["--iterations", "many"],
            "--iterations: expected a whole number of at least 0",
        ),
        (["--backend", "abacus"], "--backend: invalid choice: 'abacus'"),
        (
            ["--threads", "0"],
            "--threads: expected a whole number of at least 1, got '0'",
        ),
        (["--seed", "-3"], "--seed: expected a whole number of at least 0, got '-3'"),
        (
            ["--iterations", "9" * 30],
            "a whole number of at most 1,000,000,000,000, got",
        ),
        (
            ["--threads", "9" * 30],
            "--threads: expected a whole number of at most 65,536",
        ),
        (["--alpha", "nan"], "--alpha: expected a positive number, got 'nan'"),
        (["--alpha", "-0.1"], "--alpha: expected a positive number, got '-0.1'"),
        (["--order", "3"], "--order: invalid choice: '3'"),
        (["--method", "sgd"], "--method: invalid choice: 'sgd'"),
        (["--method", "pretrained"], "--method: invalid choice: 'pretrained'"),
        (
            ["--order", "2", "--method", "anil"],
            "--method: not allowed with argument --order",
        ),
        (["--out", "file"], "--out: "),
        (["--out", "file/below"], "--out: "),
        (["--out", "taken"], "--out: "),
        (
            ["--resume", "missing.npz"],
            "--resume: No such file or directory: missing.npz",
        ),
        (["--resume", "file"], "--resume: file: expected a whole 'tinymaml checkpoint"),
        (["--resume", "foreign.npz"], "expected a checkpoint of several trainings"),
        (["--wrong"], "unrecognized arguments: --wrong"),
    ],
)
def test_bad_input_is_one_line_and_exit_2_before_anything_is_written(
    example, folder, capsys, monkeypatch, arguments, message
):
    (folder / "file").write_text("precious")
    (folder / "taken/results.json").mkdir(parents=True)
    save_checkpoint("foreign.npz", {"theta": np.zeros(3)}, {}, {})
    monkeypatch.setattr("stages.train", lambda *_, **__: pytest.fail("trained"))
    before = sorted(folder.rglob("*"))
    assert message in refusal(example, arguments, capsys)
    assert sorted(folder.rglob("*")) == before
    assert (folder / "file").read_text() == "precious"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--seed", "1"],
            "with seed = 1, but out/exact/checkpoint.npz was written with 0",
        ),
        (["--alpha", "0.1"], "with alpha = 0.1, but"),
        (["--iterations", "5"], "at least 6 iterations, as"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(
    small, folder, capsys, arguments, message
):
    run(small)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    given = ["--resume", "out", "--iterations", "6", *arguments]
    assert message in refusal(small, given, capsys)
    now = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert now == before


def test_a_checkpoint_of_another_architecture_is_refused(small, capsys):
    run(small)
    other = load_example("sinusoid")
    other.SIZES = [1, 20, 1]
    message = refusal(other, ["--resume", "out"], capsys)
    assert "with network = [1, 20, 1], but" in message
