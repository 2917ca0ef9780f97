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
from tests.support.explorables import (
    NODE,
    SCRIPTS,
    needs_node,
    recorded_data,
    run_model,
)

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

# S and Q as the page writes them; NumPy and tinymaml's tape both compute them.
WALKS: dict[str, tuple[Any, Any]] = {
    "quadratic": (
        lambda u, w: u * u + u * w + w * w / 2 - u,
        lambda u, w: ((u + 1) * (u + 1) + (w - 0.25) * (w - 0.25)) / 2,
    ),
    "parallel": (
        lambda u, w: u * u + u * w + w * w - u,
        lambda u, w: ((u + 1) * (u + 1) + (w - 0.25) * (w - 0.25)) / 2,
    ),
    "quartic": (
        lambda u, w: u * u * u * u / 4 + w * w / 2,
        lambda u, w: u + w / 2,
    ),
    "saddle": (
        lambda u, w: u * u / 2 - w * w / 2 + w * w * w * w / 4,
        lambda u, w: ((u - 0.5) * (u - 0.5) + (w - 1) * (w - 1)) / 2,
    ),
}


@needs_node
def test_walk_back_is_tinymamls_inner_loop_and_meta_gradient() -> None:
    one = np.ones((1, 1, 1))
    tasks = tm.Tasks(one, one, one, one)  # the losses here have their numbers inside
    cases = []
    for name, (support, query) in WALKS.items():
        begin = recorded_data("walk-back")["tasks"][name]["theta"]
        for alpha, steps in ((0.3, 1), (0.125, 2), (0.2, 5)):
            maml = tm.MAML(
                lambda theta, x, y, f=support: f(theta[0:1], theta[1:2]).sum(),
                query_loss=lambda theta, *_, f=query: f(theta[0:1], theta[1:2]).sum(),
                alpha=alpha,
                steps=steps,
                backend="numpy",
            )
            for theta in ([1.7, 0.4], [-0.6, -0.3], begin):
                cases.append((maml, np.array(theta), [name, theta, alpha, steps]))
    walks = run_model("walk-back", [("walk", call) for _, _, call in cases])
    for (maml, theta, _), walk in zip(cases, walks, strict=True):
        result = maml.meta_gradient(theta, tasks, parts=True)
        assert result.parts is not None
        exact, first_order = result.gradient, result.parts.query_gradient
        assert np.linalg.norm(exact - first_order) > 0.05 * np.linalg.norm(exact)
        size = max(np.linalg.norm(exact), np.linalg.norm(first_order))
        for came, expected in (
            (walk["thetas"], maml.adapt(theta, one, one)[0]),
            (walk["products"], result.parts.corrections),
            (walk["cotangents"][0], exact),
            (walk["cotangents"][-1], first_order),
            (walk["whole"]["exact"], exact),
            (walk["whole"]["firstOrder"], first_order),
            (walk["slope"], exact),  # finite differences, without any derivative
            (walk["queryLoss"], result.loss),
        ):
            np.testing.assert_allclose(came, expected, rtol=1e-5, atol=1e-6 * size)
        assert walk["difference"] < 1e-12


@needs_node
def test_walk_back_begins_with_the_numbers_of_the_derivation() -> None:
    tasks = recorded_data("walk-back")["tasks"]
    calls = [
        ("walk", [n, t["theta"], t["alpha"], t["steps"]]) for n, t in tasks.items()
    ]
    walks = dict(zip(tasks, run_model("walk-back", calls), strict=True))
    assert walks["quadratic"]["thetas"] == [[2, 0], [0.5, -1], [1, -0.75]]
    assert walks["quadratic"]["cotangents"] == [[0.75, -1], [0.5, -1.5], [2, -1]]
    assert walks["quadratic"]["products"] == [[-0.25, -0.5], [1.5, 0.5]]
    first, *_, last = walks["parallel"]["cotangents"]
    assert first == [last[0] / 4, last[1] / 4]
    assert [theta[0] for theta in walks["quartic"]["thetas"]] == [2, 1, 7 / 8]
    assert [v[0] for v in walks["quartic"]["cotangents"]] == [-5 / 16, 5 / 8, 1]
    saddle = walks["saddle"]["cotangents"]
    assert np.linalg.norm(saddle[0]) > 4 * np.linalg.norm(saddle[4])


@needs_node
def test_walk_back_says_what_its_losses_are() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(-2, 2, (50, 2))
    u, w = points.T
    tasks = recorded_data("walk-back")["tasks"]
    came = iter(
        run_model(
            "walk-back",
            [
                call
                for name in WALKS
                for call in (
                    ("support", [name, points.ravel()]),
                    ("after", [name, points.ravel(), 0.5, 0]),
                    ("after", [name, points.ravel(), 0.1, 3]),
                )
            ],
        )
    )
    for name, (support, query) in WALKS.items():
        for text, function in zip(tasks[name]["formulas"], WALKS[name], strict=True):
            formula = text.split("=")[1].replace("uw", "u*w").replace("−", "-")
            formula = formula.replace("²", "**2").replace("⁴", "**4")
            values = next(came)
            np.testing.assert_allclose(values, eval(formula), rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(values, function(u, w), rtol=1e-12, atol=1e-12)
        theta = points
        for _ in range(3):  # steps along central differences of S
            slopes = [
                (support(*(theta + s).T) - support(*(theta - s).T)) / 2e-5
                for s in 1e-5 * np.eye(2)
            ]
            theta = theta - 0.1 * np.stack(slopes, axis=1)
        np.testing.assert_allclose(next(came), query(*theta.T), rtol=1e-5, atol=1e-8)


def test_walk_back_lights_up_the_lines_of_maml() -> None:
    code = recorded_data("walk-back")["code"]
    source = [
        line.strip() for line in (ROOT / "tinymaml/maml.py").read_text().split("\n")
    ]
    assert all(line.strip() in source for line in code["lines"])
    first, middle, last = (code["lines"][i].strip() for i in code["each_step"])
    assert first == "for theta_j in reversed(thetas[:-1]):"
    assert middle == "v = v - hvp(loss(theta_j, *support), theta_j, alpha * v)"
    assert last == "cotangents.append(v)"
    assert code["lines"][code["at_the_end"][1]] == "v = grad(objective, thetas[-1])"


# --- same points, four starts ---------------------------------------------------------


# --- draw five characters -------------------------------------------------------------


# --- find the goal --------------------------------------------------------------------
