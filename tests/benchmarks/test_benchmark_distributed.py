"""benchmarks/distributed.py: the model by hand, and a short run under mpirun."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

from benchmarks import distributed  # noqa: E402
from benchmarks.distributed import Network, Work, exchange, iteration  # noqa: E402
from tests.support import mpi  # noqa: E402

WORK = Work("work", tasks=32, parameters=1000, task=1.0, draw=0.01, fixed=0.5)
FREE = Network(0.0, 0.0)
NETWORK = Network(latency=0.001, byte=1e-5)  # all numbers are 0.04 s


def test_without_a_network_tasks_are_all_that_is_divided():
    assert iteration(WORK, 32, 1, NETWORK) == pytest.approx(32 + 0.32 + 0.5)
    assert iteration(WORK, 32, 3, FREE) == pytest.approx(11 + 0.32 + 0.5)
    assert iteration(WORK, 32, 100, FREE) == pytest.approx(1 + 0.32 + 0.5)
    # Exact: 100 tasks are 32 blocks of at most 4, and no rank has less than a block.
    assert iteration(WORK, 100, 50, FREE, exact=True) == pytest.approx(4 + 1 + 0.5)
    assert iteration(WORK, 100, 50, FREE) == pytest.approx(2 + 1 + 0.5)
    # 40 tasks are 32 blocks of one or two, of which each half has 20 tasks.
    assert iteration(WORK, 40, 2, FREE, exact=True) == pytest.approx(20 + 0.4 + 0.5)


def test_an_exchange_is_that_of_the_formula():
    assert exchange(1, 1000, NETWORK, exact=False) == 0
    # Two agreements and a sum, of a message there and one back; each number goes once
    # each way, and half of them are there already.
    assert exchange(2, 1000, NETWORK, exact=False) == pytest.approx(6e-3 + 0.04)
    # Four ranks: 8 rows of a quarter, to three others, and back the sums.
    expected = 8e-3 + (3 + 2) * 1e-3 + 9 * 0.75 * 0.04
    assert exchange(4, 1000, NETWORK, exact=True) == pytest.approx(expected)
    # Of 16 blocks, of as many tasks, four are on each.
    expected = 8e-3 + (3 + 2) * 1e-3 + 5 * 0.75 * 0.04
    assert exchange(4, 1000, NETWORK, True, 16) == pytest.approx(expected)
    work = WORK._replace(draw=0.0, fixed=0.0)
    assert iteration(work, 16, 4, NETWORK, True) == pytest.approx(4 + expected)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--json", "nowhere/found.json", "cannot write nowhere/found.json"),
        ("--figure", ".", "expected a file, got the folder ."),
        ("--figure", "model.txt", "expected .pdf, .png or .svg, got 'model.txt'"),
        ("--rounds", "0", "expected a whole number >= 1, got '0'"),
        ("--bits", "0", "expected a whole number >= 1, got '0'"),
        ("--gbits", "0", "expected a number above 0, got '0'"),
        ("--seconds", "nan", "expected a number above 0, got 'nan'"),
        ("--latency", "soon", "expected a number above 0, got 'soon'"),
    ],
)
def test_a_bad_option_is_refused_before_anything_is_timed(
    option, value, message, capsys
):
    with pytest.raises(SystemExit):
        distributed.main([option, value])
    assert f"argument {option}: {message}" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--json", "--figure"])
def test_files_are_refused_where_bits_are_compared_and_nothing_is_timed(
    option, tmp_path, capsys
):
    file = tmp_path / "found.svg"
    with pytest.raises(SystemExit):
        distributed.main(["--bits", "3", option, str(file)])
    assert "argument --bits: not allowed with" in capsys.readouterr().err
    assert not file.exists()


def test_where_it_stops_gaining_a_rank_does_half_of_what_one_can():
    ranks = distributed.stops_gaining(WORK, 256, NETWORK)
    alone = iteration(WORK, 256, 1, NETWORK)
    good, bad = (
        alone / n / iteration(WORK, 256, n, NETWORK) for n in (ranks, 2 * ranks)
    )
    assert good >= 0.5 > bad and 1 < ranks < 256
    assert distributed.stops_gaining(WORK, 256, NETWORK, exact=True) <= 32


def test_the_figure_is_drawn(tmp_path):
    distributed.draw_figure(WORK, NETWORK, tmp_path / "model.svg")
    assert "4,096 tasks, exact" in (tmp_path / "model.svg").read_text(encoding="utf-8")


@pytest.mark.skipif(bool(mpi.what_is_missing()), reason=mpi.what_is_missing() or "-")
def test_bits_on_one_to_four_ranks_are_compared(monkeypatch, capsys):
    assert distributed.main(["--works", "sinusoid", "--bits", "3"]) == 0
    assert "sinusoid: the same: " in capsys.readouterr().out
    monkeypatch.setattr(distributed, "run", lambda ranks, *_: "ab"[ranks == 3])
    assert distributed.main(["--works", "sinusoid", "--bits", "3"]) == 1
    assert "sinusoid: DIFFERENT: a, a, b, a" in capsys.readouterr().out


@pytest.mark.skipif(bool(mpi.what_is_missing()), reason=mpi.what_is_missing() or "-")
def test_a_short_run_has_every_measurement(tmp_path, capsys):
    found = tmp_path / "found.json"
    options = ["--works", "sinusoid", "--rounds", "1", "--seconds", "0.1"]
    assert distributed.main([*options, "--json", str(found)]) == 0
    results = json.loads(found.read_text())
    assert results["measured"]["sinusoid"].keys() == distributed.RUNS.keys()
    for run in results["measured"]["sinusoid"].values():
        assert run["tasks"] == 25 and run["parameters"] == 1761
        assert 0 < run["draw"] < run["iteration"] < 1
    assert results["network"]["latency"] > 0
    assert "sinusoid" in capsys.readouterr().out
