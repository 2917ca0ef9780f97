"""The pages to play with: their numbers are tinymaml's, to 1e-5 of their size.

The models run in Node on the data that the site's build writes, and are compared with
tinymaml in float64, on the numpy backend. docs/check_explorables.py uses the pages in a
browser.
"""

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import tinymaml as tm
from tests.support.explorables import NODE, SCRIPTS, needs_node

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
COMMON = {"tools", "kit", "explorable"}
NAMES = sorted({path.stem for path in SCRIPTS.glob("*.js")} - COMMON)


# --- what all pages share -------------------------------------------------------------

TOOLS = """
const { random, adam } = require(process.argv[1]);
const input = require("fs").readFileSync(0, "utf8");
const { thetas, gradients, rate, seed } = JSON.parse(input);
const theta = Float32Array.from(thetas);
const optimiser = adam(theta.length, rate);
for (const gradient of gradients) optimiser.update(theta, gradient);
const draw = random(seed);
const normal = Array.from({ length: 20000 }, () => draw.normal());
const uniform = Array.from({ length: 20000 }, () => draw.uniform(-5, 5));
const again = random(seed);
process.stdout.write(JSON.stringify({ theta: Array.from(theta), normal, uniform,
  again: Array.from({ length: 5 }, () => again.normal()) }));
"""


def run_tools(**request: Any) -> dict[str, Any]:
    """Run tools.js in Node: some steps of Adam, and many random numbers."""
    assert NODE is not None
    run = subprocess.run(
        [NODE, "-e", TOOLS, str(SCRIPTS / "tools.js")],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=True,
    )
    answer: dict[str, Any] = json.loads(run.stdout)
    return answer


@needs_node
def test_adam_of_the_pages_is_tinymamls() -> None:
    rng = np.random.default_rng(0)
    theta = rng.normal(size=30).astype(np.float32)
    gradients = rng.normal(size=(7, 30)) * 10.0 ** rng.integers(-6, 3, 30)
    gradients[:, 3] = 0  # it stays where it is
    answer = run_tools(
        thetas=theta.tolist(), gradients=gradients.tolist(), rate=0.01, seed=1
    )
    expected, adam = theta.astype(np.float64), tm.Adam(0.01)
    for gradient in gradients:
        adam.update(expected, gradient)
    change = np.array(answer["theta"]) - theta
    assert change[3] == 0
    np.testing.assert_allclose(change, expected - theta, rtol=1e-4, atol=1e-7)


@needs_node
def test_random_numbers_of_the_pages_are_normal_uniform_and_repeatable() -> None:
    answer = run_tools(thetas=[0.0], gradients=[], rate=0.1, seed=7)
    normal, uniform = np.array(answer["normal"]), np.array(answer["uniform"])
    assert answer["again"] == answer["normal"][:5]
    assert stats.kstest(normal, "norm").pvalue > 1e-3
    assert stats.kstest(uniform, "uniform", (-5, 10)).pvalue > 1e-3
    neighbours = np.corrcoef(normal[:-1], normal[1:])[0, 1]
    assert abs(neighbours) < 0.03


def test_data_of_a_page_come_back_as_they_were() -> None:
    from recorded import encode

    array = np.array([[1.5, -0.0], [np.inf, 2.0**-149]], np.float32)
    encoded = encode({"a": array, "b": [np.float64(0.5), "words", None, True]})
    assert encoded["b"] == [0.5, "words", None, True]
    raw = np.frombuffer(base64.b64decode(encoded["a"]["base64"]), "<f4")
    assert raw.tobytes() == array.tobytes() and encoded["a"]["shape"] == [2, 2]
    with pytest.raises(TypeError, match="int64"):
        encode(np.arange(3))


@pytest.mark.parametrize("name", NAMES)
def test_every_explorable_has_a_page_data_a_figure_and_a_check(name: str) -> None:
    page = (DOCS / "explorables" / f"{name}.md").read_text("utf-8")
    assert f"{{explorable}} {name}\n" in page
    assert (DOCS / "explorables" / f"{name.replace('-', '_')}.py").exists()
    assert f"_static/figures/explorable-{name}.png" in page
    checks = (DOCS / "check_explorables.py").read_text("utf-8")
    assert f'"{name}": check_{name.replace("-", "_")},' in checks


# --- walk back ------------------------------------------------------------------------


# --- same points, four starts ---------------------------------------------------------


# --- draw five characters -------------------------------------------------------------


# --- find the goal --------------------------------------------------------------------
