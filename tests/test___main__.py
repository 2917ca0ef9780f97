"""python -m tinymaml: lists, runs and refuses; each example's own options reach it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tinymaml

WHERE = str(Path(tinymaml.__file__).parents[1])  # a clone or site-packages

COMMANDS = [
    "check",
    "compare",
    "first-steps",
    "locomotion",
    "maml-vs-fomaml",
    "miniimagenet",
    "navigation",
    "omniglot",
    "own-images",
    "seeds",
    "sinusoid",
]


def run(*arguments, folder):
    """Run `python -m tinymaml` in a folder that is not the clone."""
    return subprocess.run(
        [sys.executable, "-m", "tinymaml", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": WHERE, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_without_a_command_it_lists_all_of_them(tmp_path, arguments):
    done = run(*arguments, folder=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    usage, _, *lines = done.stdout.splitlines()
    assert usage == "usage: python -m tinymaml NAME [--help] [OPTION ...]"
    assert [line.split()[0] for line in lines] == COMMANDS
    assert all(len(line.split()) > 4 for line in lines), "each says what it is"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_its_help(tmp_path, command):
    done = run(command, "--help", folder=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith(f"usage: python -m tinymaml {command} [-h]")
    if command != "seeds":
        assert f"    python -m tinymaml {command}" in done.stdout, "its usage lines"
        assert "python examples/" not in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_command_is_refused_in_one_line(tmp_path):
    done = run("sinus", "--fast", folder=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    known = ", ".join(COMMANDS)
    expected = f"python -m tinymaml: error: expected one of {known}, got sinus\n"
    assert done.stderr == expected


@pytest.mark.parametrize("command", ["sinusoid", "check", "first-steps"])
def test_a_wrong_option_is_refused_in_one_line(tmp_path, command):
    done = run(command, "--nonsense", folder=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"python -m tinymaml {command}: error: ")
    assert done.stderr.count("\n") == 1


def test_examples_import_their_own_neighbours(tmp_path):
    (tmp_path / "shared.py").write_text("raise SystemExit('the wrong one')\n")
    assert run("sinusoid", "--help", folder=tmp_path).returncode == 0
