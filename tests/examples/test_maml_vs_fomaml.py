"""examples/maml_vs_fomaml.py: what it measures, what it writes, what it refuses."""

import csv
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
from tinymaml.tasks import sinusoid

QUANTITIES = {
    "first_order_norm",
    "correction_norm",
    "exact_norm",
    "angle_degrees",
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
    module.STEPS = (1, 2, 4)
    module.ROUNDS = 2
    return module


def run(module, *arguments, out="out"):
    """Run it; return the rows of its results."""
    given = ["--iterations", "5", "--threads", "1", *map(str, arguments), "--out", out]
    assert module.main(given) == 0
    return read_strict_json(Path(out) / "results.json")["rows"]


def values(rows, quantity, **about):
    wanted = {"quantity": quantity, **about}
    return [r["value"] for r in rows if all(r[key] == wanted[key] for key in wanted)]


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
    fields = {"quantity", "value", "order", "iteration", "steps", "recompute", "paper"}
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
        with open(folder / "out" / name / "log.csv", newline="") as file:
            assert [row["iteration"] for row in csv.DictReader(file)] == ["5"]
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


def test_measuring_does_not_change_the_training(example, folder):
    run(example)
    losses = []
    for name in ("exact", "first-order"):
        with open(folder / "out" / name / "log.csv", newline="") as file:
            losses += [float(row["loss"]) for row in csv.DictReader(file)]
    for order, loss in zip((2, 1), losses, strict=True):
        maml = tm.MAML(example.loss, example.ALPHA, order=order, threads=1)
        plain = tm.train(
            maml.meta_gradient,
            example.NETWORK.init(np.random.default_rng([1, 0])),
            sinusoid.sample_tasks,
            iterations=5,
            optimiser=tm.Adam(0.001),
            rng=np.random.default_rng([2, 0]),
            progress=False,
        )
        assert plain.losses[-1].loss == loss


def test_recomputation_keeps_memory_from_growing_with_activations(example):
    rows = example.count_memory(tm.get_backend("numpy"))
    exact, recomputed = (
        values(rows, "workspace_bytes", order=2, recompute=recompute)
        for recompute in (False, True)
    )
    assert recomputed < exact
    growth = (recomputed[-1] - recomputed[0]) / (example.STEPS[-1] - example.STEPS[0])
    # One theta_k per step, and nothing else worth mentioning.
    assert growth == pytest.approx(4 * example.NETWORK.size, rel=0.1)
    assert (exact[-1] - exact[0]) > 4 * (recomputed[-1] - recomputed[0])


def test_cost_rows_say_what_first_order_saves(example):
    rows = example.measure_cost(tm.get_backend("numpy"))
    for steps in example.STEPS:
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
    ],
)
def test_bad_input_is_one_line_and_exit_2(example, folder, capsys, arguments, message):
    (folder / "file").write_text("precious")
    assert message in refusal(example, arguments, capsys)
    assert [path.name for path in folder.iterdir()] == ["file"]
    assert (folder / "file").read_text() == "precious"
