"""examples/seeds.py: means and intervals over seeds, with and without SciPy."""

import json
import os
import sys

import pytest

from tests.support.running_examples import load_example


@pytest.fixture
def example():
    return load_example("seeds")


def write(folder, *errors):
    """Write one results.json for each error; return their paths."""
    paths = []
    for seed, mse in enumerate(errors):
        row = {"method": "maml", "order": 2, "shots": 5, "steps": 1, "mse": mse}
        other = {**row, "shots": 10, "mse": 9.0}
        rows = [{**row, "paper": 0.67}, {**other, "paper": None}]
        paths.append(folder / f"{seed}.json")
        paths[-1].write_text(json.dumps({"rows": rows}))
    return [str(path) for path in paths]


def test_interval_is_students_t_times_the_standard_error(example):
    # Two values have one degree of freedom, whose quantile is tan(0.95 pi / 2).
    assert example.interval([1.0, 3.0]) == pytest.approx(12.7062, rel=1e-5)
    assert example.interval([1.0, 2.0, 3.0]) == pytest.approx(4.30265 / 3**0.5)


@pytest.mark.parametrize(
    ("errors", "cells"),
    [
        ((1.0, 3.0), "2 | 13 | 1, 3 |"),
        ((0.5,), "0.5 |  | 0.5 |"),
        ((1.0, None), "not finite |  | 1, inf |"),
    ],
)
def test_a_row_has_the_mean_the_interval_and_each_seed(
    example, tmp_path, capsys, errors, cells
):
    example.main(write(tmp_path, *errors))
    out, _ = capsys.readouterr()
    assert out.splitlines()[2:] == [f"| maml | 2 | 1 | 0.67 | {cells}"]


def test_the_two_normalisations_of_images_are_not_seeds_of_each_other(
    example, tmp_path, capsys
):
    row = {"method": "maml", "order": 2, "shots": 1, "steps": 3, "paper": None}
    files = []
    for seed, (batch, support) in enumerate([(99.0, 95.0), (98.0, 94.0)]):
        rows = [
            {**row, "statistics": "batch", "accuracy": batch, "paper": 98.7},
            {**row, "statistics": "support", "accuracy": support},
        ]
        files.append(tmp_path / f"{seed}.json")
        files[-1].write_text(json.dumps({"rows": rows}))
    example.main([*map(str, files), "--shots", "1", "--steps", "3"])
    lines = capsys.readouterr().out.splitlines()[2:]
    assert lines == [
        "| maml, transductive | 2 | 3 | 98.7 | 98.5 | 6.4 | 99, 98 |",
        "| maml, support statistics | 2 | 3 |  | 94.5 | 6.4 | 95, 94 |",
    ]
    with pytest.raises(SystemExit):
        example.main([*map(str, files), "--steps", "3"])
    assert "results with --shots 5 after" in capsys.readouterr().err


def test_equal_iterations_and_equal_time_are_not_seeds_of_each_other(
    example, tmp_path, capsys
):
    rows = [
        {"method": "anil", "order": 2, "shots": 5, "steps": 1, "paper": None}
        | {"seed": seed, "at": at, "mse": mse + seed, "iterations": iterations}
        for seed in (0, 1)
        for at, mse, iterations in (
            ("equal iterations", 1.0, 100),
            ("equal time", 3.0, 290 + seed),  # by the costs that this run has measured
        )
    ]
    (tmp_path / "results.json").write_text(json.dumps({"rows": rows}))
    example.main([str(tmp_path / "results.json")])
    lines = capsys.readouterr().out.splitlines()[2:]
    assert lines == [
        "| anil, equal iterations | 2 | 1 |  | 1.5 | 6.4 | 1, 2 |",
        "| anil, equal time | 2 | 1 |  | 3.5 | 6.4 | 3, 4 |",
    ]


def test_runs_that_differ_in_more_than_the_seed_are_not_averaged(
    example, tmp_path, capsys
):
    def refusal(first=None, row=None, **second):
        run = {"experiment": "sinusoid", "seed": 0, "iterations": 9, "seconds": 1.0}
        run |= first or {}
        files = [tmp_path / "first.json", tmp_path / "second.json"]
        for file, results in zip(files, (run, {**run, **second}), strict=True):
            rows = [{**ROW, **(row or {})}]
            file.write_text(json.dumps({**results, "rows": rows}))
        try:
            example.main([*map(str, files)])
        except SystemExit as stop:
            assert stop.code == 2
        return capsys.readouterr().err.replace(f"{tmp_path}/", "")

    error = "error: argument files: second.json: expected "
    assert error + "another seed of maml, got 0 once more" in refusal()
    other = ("iterations", 8), ("experiment", "omniglot"), ("mujoco", "3.3.5")
    for name, value in other:
        got = refusal({"mujoco": "3.4.0"}, seed=1, **{name: value})
        assert error + "a run of maml that differs in its seed alone" in got
        assert f"got {name} {value!r} and not" in got
    # What is measured may differ, and so may a setting that older results did not have,
    # what concerns another method, and the seed with which a start was made.
    assert refusal(seed=1, seconds=2.0, decay=False, context=5) == ""
    assert refusal(seed=1, iterations=8, row={"iterations": 9}) == ""
    made = "python examples/omniglot.py --recipe 20w1s --seed {}"
    first = {"initialisation": made.format(0)}
    assert refusal(first, seed=1, initialisation=made.format(1)) == ""
    assert "got initialisation" in refusal(first, seed=1, initialisation="python x")


def test_a_setting_that_the_first_run_does_not_say_must_agree_in_the_others(
    example, tmp_path, capsys
):
    files = []
    for seed, more in enumerate(({}, {"decay": True}, {"decay": False})):
        files.append(str(tmp_path / f"{seed}.json"))
        results = {"seed": seed, **more, "rows": [ROW]}
        (tmp_path / f"{seed}.json").write_text(json.dumps(results))
    example.main(files[:2])
    with pytest.raises(SystemExit):
        example.main(files)
    assert "got decay False and not True" in capsys.readouterr().err


def test_seeds_of_a_program_are_averaged_and_another_alpha_is_not(
    example, tmp_path, capsys
):
    program = load_example("sinusoid")
    program.TASKS, program.CANDIDATES, program.SHOTS = 12, (0.01,), (5,)
    program.draw_figure_2 = program.draw_figure_3 = lambda *_: None
    options = ["--fast", "--iterations", "0", "--order", "1", "--backend", "numba"]
    files = []
    for number, more in enumerate(
        (["--seed", "1"], ["--seed", "2"], ["--alpha", "0.1"])
    ):
        out = tmp_path / str(number)
        assert program.main([*options, *more, "--out", str(out)]) == 0
        files.append(str(out / "results.json"))
    capsys.readouterr()
    example.main(files[:2])
    line = capsys.readouterr().out.splitlines()[2]
    assert line.startswith("| maml | 1 | 1 | ") and line.count(",") == 1
    with pytest.raises(SystemExit):
        example.main(files)
    assert "got alpha 0.1 and not 0.001" in capsys.readouterr().err


def test_steps_that_no_run_has_are_told_from_shots_that_none_has(
    example, tmp_path, capsys
):
    files = write(tmp_path, 1.0)
    for options, there in (
        (["--steps", "7"], "those with these shots after 1"),
        (["--shots", "7"], "those with 5, 10 shots"),
    ):
        with pytest.raises(SystemExit):
            example.main([*files, *options])
        assert capsys.readouterr().err.endswith(f"got {there}\n")


@pytest.mark.parametrize("program", ["seeds.py", "compare.py"])
def test_without_scipy_one_line_says_what_to_install(example, monkeypatch, program):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    monkeypatch.setattr(sys, "argv", [f"examples/{program}"])
    with pytest.raises(SystemExit) as stop:
        example.interval([1.0, 2.0])
    message = f'{program}: error: SciPy is missing: pip install "tinymaml[seeds]"'
    assert stop.value.code == message


ROW = {"method": "maml", "order": 2, "shots": 5, "steps": 1, "mse": 1.0, "paper": None}


@pytest.mark.parametrize(
    "text",
    [
        *("", '{"rows": [', "{}", "[]", '{"rows": null}', '{"rows": [3]}', "\xff\xfe"),
        json.dumps({"rows": [{"quantity": "exact_norm", "value": 1.0, "paper": None}]}),
        *(json.dumps({"rows": [{**ROW, key: []}]}) for key in ROW),
        *(json.dumps({"rows": [{**ROW, key: 3}]}) for key in ("method", "statistics")),
        *(json.dumps({"rows": [{**ROW, key: None}]}) for key in ("shots", "steps")),
        json.dumps({"rows": [{**ROW, "mse": "1"}]}),
        json.dumps({"seed": [0], "rows": [ROW]}),
        "[" * 10**5,
    ],
)
def test_another_file_is_refused_in_one_line(example, tmp_path, capsys, text):
    path = tmp_path / "r.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(SystemExit) as stop:
        example.main([str(path)])
    out, err = capsys.readouterr()
    assert (stop.value.code, out, err.count("\n")) == (2, "", 1)
    assert f"{path}: expected the results.json of an experiment with seeds" in err


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
def test_what_is_no_file_is_refused_in_one_line(example, tmp_path, capsys, kind):
    path = tmp_path / kind
    {"missing": lambda _: None, "folder": os.mkdir, "pipe": os.mkfifo}[kind](path)
    with pytest.raises(SystemExit):
        example.main([str(path)])
    _, err = capsys.readouterr()
    assert str(path) in err and err.count("\n") == 1
