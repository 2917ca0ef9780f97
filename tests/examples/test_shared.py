"""What the examples share: options, folders, intervals, tables, files."""

import argparse
import sys

import numpy as np
import pytest
from stages import Stages

import shared
from tests.support.running_examples import read_strict_json


def test_interval_is_that_of_the_authors():
    mean, interval = shared.mean_and_interval(np.float32([0, 1, 2, 3]))
    assert (mean, interval) == (1.5, pytest.approx(1.96 * 1.25**0.5 / 2))


def test_interval_of_nothing_is_not_a_number():
    assert np.isnan(shared.mean_and_interval(np.zeros(0))).all()


def test_results_are_strict_json_with_null_for_what_is_not_finite(tmp_path):
    path = tmp_path / "results.json"
    results = {
        "a": [float("nan"), 1, None, True],
        "b": {"c": np.float32(0.5)},
        "d": "±",
    }
    shared.write_json(path, results)
    assert read_strict_json(path) == {
        "a": [None, 1, None, True],
        "b": {"c": 0.5},
        "d": "±",
    }


def test_results_that_cannot_be_written_leave_the_old_ones(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")
    with pytest.raises(TypeError):
        shared.write_json(path, {"a": object()})
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_folder_is_made_with_its_parents(tmp_path):
    shared.prepare_folder(tmp_path / "a/b", ["results.json", "exact/log.csv"])
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["exact"]
    assert not any((tmp_path / "a/b/exact").iterdir())


def test_folder_that_cannot_be_used_is_left_as_it_was(tmp_path):
    (tmp_path / "results.json").mkdir()
    with pytest.raises(OSError, match="cannot write"):
        shared.prepare_folder(tmp_path, ["log.csv", "results.json"])
    with pytest.raises(OSError, match="cannot write"):
        shared.prepare_folder(tmp_path / "a/b", ["c/d/results.json", "e/f", "c/d"])
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "one", ""])
def test_only_positive_finite_numbers_are_positive_numbers(text):
    assert shared.positive_number("1e-3") == 0.001
    with pytest.raises(argparse.ArgumentTypeError, match="expected a positive number"):
        shared.positive_number(text)


def test_missing_numba_is_one_line(monkeypatch, capsys):
    parser = shared.experiment_parser("doc", "out", 9, 1)

    def missing(*_):
        raise ImportError("backend 'numba' needs Numba: No module named 'numba'")

    monkeypatch.setattr(shared, "get_backend", missing)
    with pytest.raises(SystemExit) as stop:
        shared.read_options(parser, ["--backend", "numba"])
    assert stop.value.code == 2
    assert "needs Numba" in capsys.readouterr().err


def test_streams_of_random_numbers_differ_by_purpose_and_by_number():
    streams = [(1, 0), (1, 1), (2, 0), (2, 1)]
    draws = [shared.random_stream(*stream).random() for stream in streams]
    assert len(set(draws)) == 4
    assert draws[1] == np.random.default_rng([1, 1]).random()


def test_the_command_that_continues_quotes_the_folder_for_a_shell(tmp_path):
    stages = Stages("my results", ["exact"], {}, 9)
    command = shared.how_to_continue("python x.py --out 'my results'", stages)
    assert command == (
        "Continue with\n  python x.py --out 'my results' --resume 'my results'"
    )


def test_stages_are_opened_only_if_each_training_can_write_its_files(tmp_path, capsys):
    parser = shared.experiment_parser("doc", "out", 9, 1)
    shared.add_resume(parser, "--seed")
    options, _ = shared.read_options(parser, ["--out", str(tmp_path / "out")])
    stages = shared.open_stages(parser, options, ["exact"], {}, ["results.json"])
    assert stages.files == ["exact/checkpoint.npz", "exact/log.csv"]
    (tmp_path / "out/oracle").write_text("a file where a folder must be")
    with pytest.raises(SystemExit) as stop:
        shared.open_stages(parser, options, ["exact", "oracle"], {}, [])
    assert stop.value.code == 2
    assert "argument --out: " in capsys.readouterr().err


def test_commands_are_those_of_the_package_if_it_was_started_so(monkeypatch):
    command = "examples/own_images.py", ["--out", "my results"]
    by_file = "python examples/own_images.py --out 'my results'"
    assert shared.command_line(*command) == by_file
    monkeypatch.setattr(sys, "argv", ["python -m tinymaml own-images"])
    by_package = "python -m tinymaml own-images --out 'my results'"
    assert shared.command_line(*command) == by_package
