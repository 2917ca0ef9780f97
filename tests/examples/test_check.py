"""examples/check.py: gradcheck of a user's file, one line for each derivative."""

import re
import sys

import pytest

from tests.support.markdown_blocks import python_blocks
from tests.support.running_examples import load_example, refusal
from tests.support.source_tree import ROOT
from tinymaml.autodiff.tape import PRIMITIVES

LOSS = """
import numpy as np
import tinymaml as tm
network = tm.MLP([1, 8, 1])
rng = np.random.default_rng(0)
def loss(theta, x, y, weight=1.0):
    error = tm.tanh(network(theta, x)) - y
    return (error * error).mean() * weight
"""
ARRAYS = """
theta = network.init(rng)
x = rng.uniform(-5, 5, (10, 1))
y = np.sin(x)
"""
MASKED = ARRAYS + "x = np.ma.masked_array(x)\n"
TASKS = """
from tinymaml.tasks import sinusoid
tasks = sinusoid.sample_tasks(rng, tasks=3, shots=4)
"""


@pytest.fixture
def check(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return load_example("check")


def lines(check, arguments, capsys, status=0):
    capsys.readouterr()
    assert check.main(arguments) == status
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("text", [LOSS + ARRAYS, LOSS + TASKS])
@pytest.mark.parametrize("target", ["mine.py", "mine.py:loss", "mine_module:loss"])
def test_right_derivatives_have_a_line_each(check, tmp_path, capsys, target, text):
    (tmp_path / "mine.py").write_text(text)
    (tmp_path / "mine_module.py").write_text(text)
    sys.modules.pop("mine_module", None)
    gradient, product = lines(check, [target], capsys)
    assert gradient.startswith("ok     loss: the gradient differs from its finite")
    assert product.startswith("ok     loss: the Hessian-vector product differs")
    for line in (gradient, product):
        assert float(line.split(" by ")[1].split()[0]) < 1e-8, "float64, whatever theta"


def test_the_file_of_the_readme_passes(check, tmp_path, capsys):
    blocks = [*python_blocks(ROOT / "README.md")]
    (block,) = (text for text in blocks if "arrays of these names" in text)
    (tmp_path / "mine.py").write_text(block)
    shown = "\n".join(lines(check, ["mine.py"], capsys))
    readme = (ROOT / "README.md").read_text("utf-8")
    error = re.compile(r"[\d.]+e-\d+")
    assert error.sub("E", shown) in error.sub("E", readme)


def test_a_maml_is_checked_by_its_losses(check, tmp_path, capsys):
    query = "def q(theta, x_query, y_query, x_support):\n"
    query += "    return loss(theta, x_query, y_query)\n"
    maml = "maml = tm.MAML(loss, query_loss=q)\nplain = tm.MAML(loss)\n"
    (tmp_path / "mine.py").write_text(LOSS + TASKS + query + maml)
    shown = [line.split(": ")[0] for line in lines(check, ["mine.py:maml"], capsys)]
    assert shown == ["ok     maml.loss"] * 2 + ["ok     maml.query_loss"] * 2
    assert len(lines(check, ["mine.py:plain"], capsys)) == 2


@pytest.mark.parametrize(
    ("rule", "shown"), [("vjp", ["WRONG"]), ("jvp", ["ok", "WRONG"])]
)
def test_a_wrong_derivative_is_the_last_line_and_status_1(
    check, tmp_path, capsys, monkeypatch, rule, shown
):
    (tmp_path / "mine.py").write_text(LOSS + ARRAYS)
    right = getattr(PRIMITIVES["tanh"], rule)

    def wrong(*arguments):
        return right(*arguments) * 1.01

    monkeypatch.setattr(PRIMITIVES["tanh"], rule, staticmethod(wrong))
    wrong_lines = lines(check, ["mine.py"], capsys, status=1)
    assert [line.split()[0] for line in wrong_lines] == shown
    assert "of its size; 1e-08 is allowed in float64" in wrong_lines[-1]


def test_the_file_imports_its_own_neighbours(check, tmp_path, capsys):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "few_shot_figures.py").write_text(LOSS + ARRAYS)
    sys.modules.pop("few_shot_figures", None)
    mine = tmp_path / "sub" / "mine.py"
    mine.write_text("from few_shot_figures import loss, theta, x, y\n")
    assert len(lines(check, [str(mine)], capsys)) == 2
    sys.modules.pop("few_shot_figures", None)


@pytest.mark.parametrize(
    ("arguments", "text", "message"),
    [
        (["nix.py"], "", "nix.py': FileNotFoundError: .*No such file"),
        (["nix.nix:loss"], "", "nix.nix': ModuleNotFoundError: No module named 'nix'"),
        (["."], "", "'.': TypeError"),
        ([""], "", "'': ValueError"),
        (["mine.py"], "def", "mine.py': SyntaxError: invalid syntax"),
        (["mine.py"], "import nix", "mine.py': ModuleNotFoundError: No module named"),
        (["mine.py"], "raise SystemExit(0)", "mine.py': SystemExit: 0"),
        (["mine.py"], "1 / 0", "mine.py': ZeroDivisionError: division by zero"),
        (
            ["mine.py"],
            "theta = 3\nloss = lambda theta: 1 / 0",
            "ZeroDivisionError: div",
        ),
        (["mine.py"], LOSS + MASKED, "x: expected an array, got a masked one"),
        (["mine.py:nix"], LOSS, "mine.py: expected a loss or a MAML named nix"),
        (
            ["mine.py:rng"],
            LOSS,
            "mine.py:rng: TypeError: expected a loss or a MAML, got Gen",
        ),
        (["mine.py"], LOSS, "one array for each of theta, x, y; there is no x, y"),
        (["mine.py"], "theta = 3\nloss = lambda theta: 3", "expected a Value"),
        ([], "", "FILE"),
        (["mine.py", "--seed", "x"], LOSS, "argument --seed: .*'x'"),
        (["mine.py", "--seed", "-1"], LOSS + ARRAYS, "seed: expected at least 0"),
    ],
)
def test_what_cannot_be_checked_is_refused_in_one_line(
    check, tmp_path, capsys, arguments, text, message
):
    (tmp_path / "mine.py").write_text(text)
    error = refusal(check, arguments, capsys)
    assert re.search(message, error), error
