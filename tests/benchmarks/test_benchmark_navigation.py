"""benchmarks/navigation.py: what agrees, what is caught, what is written."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

from benchmarks import common, navigation  # noqa: E402
from benchmarks.common import DisagreementError  # noqa: E402

needs_torch = pytest.mark.skipif(
    find_spec("torch") is None, reason="torch is not installed"
)


@pytest.fixture
def few(monkeypatch):
    """Few trajectories of a small policy: the same work, in less time."""
    monkeypatch.setattr(navigation, "TASKS", 2)
    monkeypatch.setattr(navigation, "TRAJECTORIES", 3)
    monkeypatch.setattr(navigation, "SIZES", [2, 10, 9, 2])


@pytest.fixture
def folder(few, tmp_path):
    navigation.save_data(tmp_path)
    return tmp_path


def request(folder, name, order=2, form="", dtype="float64", **more):
    return {
        "implementation": name,
        "order": order,
        "form": form,
        "threads": 1,
        "dtype": dtype,
        "folder": str(folder),
        "sizes": navigation.SIZES,
        **more,
    }


def derivatives(folder, name, order=2, form=""):
    return navigation.build(request(folder, name, order, form, check_only=True)).call()


@pytest.mark.parametrize("order", [1, 2])
def test_both_backends_have_the_same_derivatives(folder, order):
    reference = navigation.references(folder)[order]
    ours = derivatives(folder, navigation.TINYMAML_NUMBA, order)
    common.check_agreement("numba", ours, reference, 1e-10)


@needs_torch
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("form", navigation.FORMS)
def test_pytorch_has_the_same_derivatives_by_double_backward(folder, form, order):
    reference = navigation.references(folder)[order]
    theirs = derivatives(folder, navigation.TORCH, order, form)
    common.check_agreement("PyTorch", theirs, reference, 1e-10)


def test_the_other_order_is_another_result(folder):
    found = navigation.references(folder)
    with pytest.raises(DisagreementError, match="differs by"):
        common.check_agreement("first order", found[1], found[2], navigation.TOLERANCE)


@needs_torch
@pytest.mark.parametrize("form", navigation.FORMS)
def test_a_whole_step_in_pytorch_is_ours(folder, form):
    steps = []
    for name in (navigation.TINYMAML_NUMPY, navigation.TORCH):
        workload = navigation.build(request(folder, name, form=form))
        steps.append(workload.call())
        assert workload.read(steps[-1]).shape == (2 * 151,)
    ours, theirs = steps
    assert ours.accepted and theirs.accepted
    moved = np.linalg.norm(ours.gradient)
    assert np.linalg.norm(ours.theta - theirs.theta) < 1e-3 * moved
    assert ours.kl == pytest.approx(theirs.kl, rel=1e-3)


def test_the_other_derivatives_are_refused(folder):
    references = {2: np.ones(4)}
    bench = navigation.NavigationBench(Path("x"), folder, True, references, 2)
    assert bench.check("right", np.ones(4), 2, "float32") == 0
    with pytest.raises(DisagreementError, match="^wrong: expected the reference"):
        bench.check("wrong", 1.01 * np.ones(4), 2, "float32")


def test_what_is_left_out_is_named(capsys):
    competitors = navigation.implementations(2, [], quick=True)
    assert [one.name for one in competitors] == [
        navigation.TINYMAML_NUMBA,
        navigation.TINYMAML_NUMBA,
    ]
    out = capsys.readouterr().out
    assert "skipped: PyTorch double backward: left out by --peers" in out
    assert "skipped: tinymaml numpy: left out by --quick" in out


@pytest.mark.parametrize(("slower", "verdict"), [(3.5, "met"), (2.5, "NOT met")])
def test_the_claim_is_put_to_the_test(slower, verdict, capsys):
    rows = [
        common.row_of([seconds], navigation.WORK, name, 2, 2, None)
        for name, seconds in (
            (navigation.TINYMAML_NUMBA, 1.0),
            (navigation.TORCH, slower),
        )
    ]
    navigation.print_claim(common.with_ratios(rows))
    out = capsys.readouterr().out
    assert f"measured {slower:.2f}: {verdict}" in out


def test_help_names_the_peers_and_the_time_of_this_benchmark(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["navigation.py", "--help"])
    with pytest.raises(SystemExit):
        navigation.main()
    out = capsys.readouterr().out
    assert "jax" not in out and "--peers [{torch}" in out and "two minutes" in out


@pytest.mark.slow
def test_quick_benchmark_checks_and_writes_rows(few, tmp_path, monkeypatch, capsys):
    path = tmp_path / "results.json"
    arguments = ["--quick", "--threads", "1", "--json", str(path), "--peers"]
    monkeypatch.setattr(sys, "argv", ["navigation.py", *arguments])
    monkeypatch.setattr(navigation, "BUDGET", {True: 0.1})
    assert navigation.main() == 0
    rows = json.loads(path.read_text())["rows"]
    assert {row["order"] for row in rows} == {1, 2}
    assert {row["implementation"] for row in rows} == {navigation.TINYMAML_NUMBA}
    out = capsys.readouterr().out
    assert "float64" in out and "float32, order 2" in out
