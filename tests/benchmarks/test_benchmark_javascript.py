"""benchmarks/javascript.py: what agrees is timed, and what does not is refused."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

from benchmarks import common, javascript  # noqa: E402
from tests.support.node_backend import NODE, needs_node  # noqa: E402


@needs_node
def test_a_work_that_agrees_is_timed():
    work = javascript.meta_gradient_of_sinusoids(tasks=2)
    row, compiling = javascript.in_node(NODE, work, seconds=0.02)
    assert 0 < row.min_seconds <= row.median_seconds and compiling > 0
    assert javascript.on_numba(work, seconds=0.02).work == row.work


@needs_node
def test_another_gradient_is_refused(monkeypatch, tmp_path):
    source = javascript.TAPE_JS.read_text(encoding="utf-8")
    wrong = tmp_path / "tape.js"
    wrong.write_text(source.replace("x[i] <= 0 ? 0 : a[i]", "a[i]"))
    monkeypatch.setattr(javascript, "TAPE_JS", wrong)
    work = javascript.meta_gradient_of_sinusoids(tasks=2)
    with pytest.raises(common.DisagreementError, match=r"^tape.js in Node, \w+: "):
        javascript.in_node(NODE, work, seconds=0.02)


def test_the_works_are_those_of_the_pages():
    shapes = [
        {name: output.shape for name, output in work.tape.outputs.items()}
        for work in (
            javascript.meta_gradient_of_sinusoids(),
            javascript.gradient_of_drawings(),
        )
    ]
    assert shapes == [
        {"losses": (), "gradient": (1761,)},
        {"loss": (), "gradient": (111749,)},
    ]


def test_without_node_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(javascript.shutil, "which", lambda _: None)
    with pytest.raises(SystemExit):
        javascript.main([])
    assert "Node is missing: install it from" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["nan", "inf", "0", "-1"])
def test_a_time_that_is_no_positive_number_is_refused(seconds, capsys):
    with pytest.raises(SystemExit):
        javascript.main(["--seconds", seconds])
    assert "argument --seconds: expected a number above 0" in capsys.readouterr().err


@needs_node
def test_the_results_are_written(monkeypatch, tmp_path, capsys):
    few = javascript.meta_gradient_of_sinusoids(tasks=2)
    for work in ("meta_gradient_of_sinusoids", "gradient_of_drawings"):
        monkeypatch.setattr(javascript, work, lambda: few)
    javascript.main(["--seconds", "0.02", "--json", str(tmp_path / "results.json")])
    written = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert [row["implementation"] for row in written["rows"]] == [
        *(common.REFERENCE, javascript.IN_NODE) * 2,
    ]
    assert "All agree with numpy in float64." in capsys.readouterr().out
