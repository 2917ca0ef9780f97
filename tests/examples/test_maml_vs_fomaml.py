"""examples/maml_vs_fomaml.py: what it measures, what it writes, what it refuses."""

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
from tests.support.training import read_rows
from tinymaml.tasks import omniglot, sinusoid

draw_characters = cache(omniglot.standin)
QUANTITIES = {
    "first_order_norm",
    "correction_norm",
    "exact_norm",
    "angle_degrees",
    "score",
    "score_at_equal_iterations",
    "score_at_equal_time",
    "seconds",
    "flops",
    "percent_seconds_saved",
    "percent_flops_saved",
    "workspace_bytes",
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Run in a clean directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def example():
    """Return the example, with few inner steps to measure."""
    module = load_example("maml_vs_fomaml")

    def small(make):
        def made(*arguments):
            problem = make(*arguments)
            probe = tm.Tasks(*(array[:12] for array in problem.probe))
            return problem._replace(steps=(1, 2, 4), rounds=2, probe=probe)

        return made

    module.sinusoids = small(module.sinusoids)
    module.omniglot_5_way = small(module.omniglot_5_way)
    return module


@pytest.fixture
def problem(example):
    """Return the sinusoids."""
    return example.sinusoids(tm.get_backend("numpy"))


def run(module, *arguments, out="out"):
    """Run it; return the rows of its results."""
    given = ["--iterations", "5", "--threads", "1", *map(str, arguments), "--out", out]
    assert module.main(given) == 0
    return read_strict_json(Path(out) / "results.json")["rows"]


def values(rows, quantity, **about):
    wanted = {"quantity": quantity, **about}
    return [r["value"] for r in rows if all(r[key] == wanted[key] for key in wanted)]


@pytest.mark.usefixtures("painted")
def test_run_writes_its_files_into_its_folder_and_nothing_elsewhere(
    example, folder, capsys
):
    rows = run(example)
    assert sorted(path.name for path in folder.iterdir()) == ["out"]
    assert sorted(path.name for path in (folder / "out").iterdir()) == [
        "exact",
        "first-order",
        "maml_vs_fomaml.png",
        "results.json",
    ]
    assert (folder / "out/maml_vs_fomaml.png").read_bytes().startswith(b"\x89PNG")
    assert {row["quantity"] for row in rows} == QUANTITIES
    fields = {"quantity", "value", "start", "order", "iteration", "steps"}
    fields |= {"recompute", "paper"}
    assert all(set(row) == fields for row in rows)
    results = read_strict_json(folder / "out/results.json")
    assert results["experiment"] == "maml_vs_fomaml"
    assert (results["version"], results["iterations"]) == (tm.__version__, 5)
    (paper,) = (row for row in rows if row["paper"] is not None)
    assert (paper["quantity"], paper["steps"], paper["paper"]) == (
        "percent_seconds_saved",
        1,
        33.0,
    )
    for name in ("exact", "first-order"):
        (row,) = read_rows(folder / "out" / name / "log.csv")
        assert row["iteration"] == "5"
    out, _ = capsys.readouterr()
    assert "angle_degrees" in out and "% time saved" in out


def test_exact_is_first_order_minus_correction_whenever_measured(example):
    rows = run(example)
    for order in (1, 2):
        of = {"order": order}
        first, correction, exact, angle = (
            np.array(values(rows, quantity, **of))
            for quantity in (
                "first_order_norm",
                "correction_norm",
                "exact_norm",
                "angle_degrees",
            )
        )
        assert len(first) == 6  # before each of the five iterations and after the last
        # By the law of cosines: |first - exact| is the correction's norm.
        sides = first**2 + exact**2 - 2 * first * exact * np.cos(np.radians(angle))
        np.testing.assert_allclose(np.sqrt(sides), correction, rtol=2e-2)
        assert (correction > 0).all()


def test_scores_are_compared_at_equal_iterations_and_at_equal_time(example):
    rows = run(example)
    exact, first = (
        values(rows, "seconds", order=order, steps=1)[0] for order in (2, 1)
    )
    in_time = min(5, int(5 * first / exact))
    for name, order, iteration in (
        ("iterations", 2, 5),
        ("iterations", 1, 5),
        ("time", 2, in_time),
        ("time", 1, 5),
    ):
        about = {"order": order, "iteration": iteration}
        (score,) = values(rows, "score", start="trained", **about)
        assert values(rows, f"score_at_equal_{name}", **about) == [score]


def test_score_of_a_sinusoid_is_the_error_after_one_step(problem):
    theta = np.random.default_rng(0).normal(0, 0.1, problem.network.size)
    theta = theta.astype(np.float32)
    maml = tm.MAML(problem.maml().loss, 0.01, backend="numpy")
    expected = maml.meta_gradient(theta, problem.probe).loss
    assert problem.evaluate(theta, problem.probe) == pytest.approx(expected, rel=1e-5)


def test_omniglot_is_measured_on_stand_ins_and_at_the_shipped_theta(
    example, folder, monkeypatch, capsys
):
    monkeypatch.setattr(omniglot, "standin", draw_characters)
    arguments = ("--problem", "omniglot", "--standin", "--iterations", "2")
    rows = run(example, *arguments)
    assert "shipped omniglot-5w1s" in capsys.readouterr().out
    (shipped,) = values(rows, "score", start="omniglot-5w1s")
    scores = values(rows, "score", start="trained", order=2)
    assert len(scores) == 3 and 0 <= min(scores) and shipped > max(scores)
    title = read_strict_json(folder / "out/results.json")["problem"]
    assert title == "5-way 1-shot, procedural stand-in"


def test_omniglot_without_data_takes_stand_ins_and_says_so(
    example, folder, monkeypatch, capsys
):
    monkeypatch.setattr(omniglot, "standin", draw_characters)
    monkeypatch.setenv("TINYMAML_DATA", str(folder / "nowhere"))
    options = example.make_parser().parse_args(["--problem", "omniglot"])
    problem = example.choose_problem(None, options, tm.get_backend("numpy"))
    said = capsys.readouterr().out
    assert said.startswith("Drawn stand-ins take the place of Omniglot: ")
    assert str(folder / "nowhere") in said
    assert problem.title.endswith("stand-in")
    assert str(options.out) == "results/maml_vs_fomaml_omniglot"


def test_damaged_data_are_no_missing_data(example, folder, monkeypatch, capsys):
    data = folder / "omniglot"
    data.mkdir(parents=True)
    (data / "images_background.zip").write_bytes(b"PK")
    monkeypatch.setenv("TINYMAML_DATA", str(folder))
    parser = example.make_parser()
    options = parser.parse_args(["--problem", "omniglot"])
    with pytest.raises(SystemExit) as stop:
        example.choose_problem(parser, options, tm.get_backend("numpy"))
    out, err = capsys.readouterr()
    assert (stop.value.code, out, err.count("\n")) == (2, "", 1)
    assert "argument --data: " in err and "images_background.zip" in err


def test_problem_chooses_the_iterations_unless_they_are_given(example):
    parser = example.make_parser()
    for arguments, iterations in (
        (["--problem", "omniglot"], 1_000),
        (["--problem", "omniglot", "--fast"], 40),
        (["--iterations", "7", "--problem", "omniglot"], 7),
        (["--fast"], 1_000),
    ):
        options, _ = example.read_options(parser, [*arguments, "--backend", "numpy"])
        assert options.iterations == iterations


def test_measuring_does_not_change_the_training(example, folder):
    run(example)
    losses = []
    for name in ("exact", "first-order"):
        rows = read_rows(folder / "out" / name / "log.csv")
        losses += [float(row["loss"]) for row in rows]
    for order, loss in zip((2, 1), losses, strict=True):
        problem = example.sinusoids(tm.get_backend("auto", 1))
        maml = problem.maml(order=order)
        plain = tm.train(
            maml.meta_gradient,
            problem.network.init(np.random.default_rng([1, 0])),
            sinusoid.sample_tasks,
            iterations=5,
            optimiser=tm.Adam(0.001),
            rng=np.random.default_rng([2, 0]),
            progress=False,
        )
        assert plain.losses[-1].loss == loss


def test_recomputation_keeps_memory_from_growing_with_activations(example, problem):
    rows = example.count_memory(problem)
    exact, recomputed = (
        values(rows, "workspace_bytes", order=2, recompute=recompute)
        for recompute in (False, True)
    )
    assert recomputed < exact
    growth = (recomputed[-1] - recomputed[0]) / (problem.steps[-1] - problem.steps[0])
    # One theta_k per step, and nothing else worth mentioning.
    assert growth == pytest.approx(4 * problem.network.size, rel=0.1)
    assert (exact[-1] - exact[0]) > 4 * (recomputed[-1] - recomputed[0])


def test_cost_rows_say_what_first_order_saves(example, problem):
    rows = example.measure_cost(problem)
    for steps in problem.steps:
        for quantity in ("seconds", "flops"):
            exact, first = (
                values(rows, quantity, order=order, steps=steps)[0] for order in (2, 1)
            )
            (saved,) = values(rows, f"percent_{quantity}_saved", steps=steps)
            assert saved == pytest.approx(100 * (1 - first / exact))
    assert values(rows, "percent_flops_saved", steps=1)[0] == pytest.approx(50, abs=10)


def test_ctrl_c_stops_with_one_line(example, folder, monkeypatch, capsys):
    sample = ctrl_c_at_call(5, sinusoid.sample_tasks)
    monkeypatch.setattr(sinusoid, "sample_tasks", sample)
    assert example.main(["--iterations", "20", "--threads", "1", "--out", "out"]) == 130
    out, err = capsys.readouterr()
    assert out == "Stopped. There are no results.\n"
    assert "Traceback" not in err
    assert not (folder / "out/results.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--iterations", "-1"], "--iterations: expected a whole number of at least 0"),
        (["--backend", "abacus"], "--backend: invalid choice: 'abacus'"),
        (
            ["--threads", "0"],
            "--threads: expected a whole number of at least 1, got '0'",
        ),
        (["--out", "file"], "--out: "),
        (["--problem", "chess"], "--problem: invalid choice: 'chess'"),
        (["--problem", "omniglot", "--data", "nowhere"], "--data: "),
        (
            ["--problem", "omniglot", "--data", "nowhere", "--standin"],
            "--standin: not allowed with argument --data",
        ),
        (["--standin"], "--standin: expected --problem omniglot, got --problem sinu"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(example, folder, capsys, arguments, message):
    (folder / "file").write_text("precious")
    assert message in refusal(example, arguments, capsys)
    assert [path.name for path in folder.iterdir()] == ["file"]
    assert (folder / "file").read_text() == "precious"
