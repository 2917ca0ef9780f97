"""examples/first_steps.py: it fits one screen, learns, prints and draws."""

import re
from pathlib import Path

import numpy as np
import pytest

import tinymaml as tm
from tests.support.running_examples import FOLDER, load_example
from tests.support.source_tree import code_lines
from tinymaml.tasks import sinusoid


@pytest.fixture
def example(monkeypatch):
    """Return the example, shortened."""
    module = load_example("first_steps")
    monkeypatch.setattr(module, "ITERATIONS", 400)
    return module


def test_it_fits_one_screen():
    assert code_lines(FOLDER / "first_steps.py") <= 40


@pytest.mark.usefixtures("painted")
def test_errors_on_new_waves_fall_with_each_step_and_the_fits_are_drawn(
    example, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    example.main()
    out, _ = capsys.readouterr()
    _, *lines = out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["MAML", "first-order MAML"]
    for line in lines:
        errors = [float(number) for number in re.findall(r"\d+\.\d*", line)]
        assert len(errors) == 4
        assert errors == sorted(errors, reverse=True)
        assert errors[1] < 0.9 * errors[0]
    assert [path.name for path in Path().iterdir()] == ["first_steps.png"]
    assert Path("first_steps.png").read_bytes().startswith(b"\x89PNG")


def test_the_loop_is_that_of_train(example):
    maml = tm.MAML(example.loss, alpha=0.003, backend="numpy")
    example.ITERATIONS = 3
    rng = np.random.default_rng(0)
    theta = example.network.init(rng)
    result = tm.train(
        maml,
        theta,
        sinusoid.sample_tasks,
        iterations=3,
        optimiser=tm.Adam(0.005),
        rng=rng,
        progress=False,
    )
    np.testing.assert_array_equal(example.meta_train(maml), result.theta)
