"""The pages to play with: their numbers are tinymaml's, to 1e-5 of their size.

The models run in Node on the data that the site's build writes, and are compared with
tinymaml in float64, on the numpy backend. docs/check_explorables.py uses the pages in a
browser.
"""

import base64
import json
import subprocess
from functools import cache
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
from tinymaml.tasks import omniglot
from tinymaml.tasks.images import Image

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

OMNIGLOT_INK = 0.084  # mean of the pixels of the 423 test characters, from 0 to 1


@cache
def five_samples() -> tuple[list[Any], list[Any], Any]:
    """Strokes of five characters, of another drawing of each, and all ten images."""
    characters = recorded_data("five-characters")["samples"][:5]
    calls = [("shake", [strokes, n]) for n, strokes in enumerate(characters)]
    queries = run_model("five-characters", calls)
    calls = [("draw", [strokes]) for strokes in characters + queries]
    images = np.array(run_model("five-characters", calls), np.float32)
    return characters, queries, images.reshape(2, 5, 28, 28, 1)


@needs_node
def test_drawings_are_prepared_as_omniglot_is() -> None:
    characters, _, images = five_samples()
    (ink,) = run_model("five-characters", [("ink", [characters[0]])])
    near = np.zeros((105, 105), bool)  # within 2.5 pixels of a point of a line
    y, x = np.mgrid[:105, :105] + 0.5
    for stroke in np.array(characters[0]) * 105:
        for t in np.linspace(0, 1, 21):
            for px, py in stroke[:-1] * (1 - t) + stroke[1:] * t:
                near |= (x - px) ** 2 + (y - py) ** 2 <= 2.5**2
    image = np.array(ink, np.uint8).reshape(105, 105)
    assert not (near & (image == 0)).any() and (near != (image == 255)).sum() < 10
    expected = omniglot.shrink(Image.fromarray(255 - image)) / 255
    assert abs(images[0, 0] - expected).max() < 1.5 / 255
    assert abs(images.mean() / OMNIGLOT_INK - 1) < 0.2


@needs_node
def test_another_hand_bends_turns_and_moves_as_the_stand_in_does() -> None:
    line = np.linspace([0.2, 0.3], [0.8, 0.6], 24)
    calls = [("shake", [[line.tolist()], seed]) for seed in range(400)]
    shaken = np.array(run_model("five-characters", calls))[:, 0]  # (400, 24, 2)
    # Cubic curves: their fourth differences are zero, and their third ones are not.
    assert abs(np.diff(shaken, 4, axis=1)).max() < 1e-12
    assert abs(np.diff(shaken, 3, axis=1)).max() > 1e-6
    # An end moves with its control point, by the turn of all points and by the shift.
    turn = 0.07 * np.hypot(*(line[0] - 0.5))
    deviation = 2.5 * np.sqrt(0.025**2 + turn**2 + 0.03**2)
    moved = shaken[:, 0] - line[0]
    assert np.allclose(moved.std(0) / deviation, 1, atol=0.15)  # four standard errors
    assert abs(moved.mean(0)).max() < 4 * deviation / 20


@needs_node
def test_five_characters_are_learned_and_told_apart_as_by_tinymaml() -> None:
    start = tm.pretrained("omniglot-5w1s")
    _, _, images = five_samples()
    support, batch = images.reshape(2, -1)
    same = np.tile(images[1, 0], (5, 1, 1, 1)).ravel()  # five times the first query
    learned, longer = run_model(
        "five-characters", [("adapt", [support, 0.4, 1]), ("adapt", [support, 0.1, 2])]
    )
    adapted = np.array(learned["theta"], np.float32)
    modes, thetas = ("batch", "support", "alone"), (start.theta, adapted)
    cases = [
        (m, t, queries) for m in modes for t in thetas for queries in (batch, same)
    ]
    calls = [("classify", [t, support, queries, m]) for m, t, queries in cases]
    answers = np.array(run_model("five-characters", calls)).reshape(3, 2, 2, 5, 5)

    # theta_J and the support losses: the adaptation of `MAML`, in float64.
    maml = start.recipe.maml(start.network, backend="numpy")
    theta, x, y = start.theta.astype(float), images.astype(float), np.eye(5)[None]
    for result, alpha, steps in ((learned, 0.4, 1), (longer, 0.1, 2)):
        maml.alpha = start.network.adapted_only(alpha, "float64")
        change = maml.adapt(theta, x[:1], y, steps)[0, -1] - theta
        error = np.array(result["theta"]) - theta - change
        assert abs(error).max() < 1e-5 * abs(change).max()
        losses = maml.evaluate(theta, tm.Tasks(x[:1], y, x[:1], y), steps)[0]
        assert np.allclose(result["losses"], losses, rtol=1e-5, atol=1e-6)

    # Logits: those of the networks of the three statistics, in float64.
    modes = [start.recipe.network(mode) for mode in ("batch", "support")]
    for j, theta_j in enumerate(thetas):
        parameters = theta_j.astype(float)
        each = [modes[0].predict(parameters, x[1, n : n + 1])[0] for n in range(5)]
        expected = [
            modes[0].predict(parameters, x[1]),
            modes[1].predict(parameters, x[1], x[0]),
            np.array(each),
        ]
        for mode in range(3):
            error = abs(answers[mode, j, 0] - expected[mode]).max()
            assert error < 1e-5 * abs(expected[mode]).max()
    # Only in the batch does the answer depend on the other queries.
    depends = abs(answers[:, 1, 0, 0] - answers[:, 1, 1, 0]).max(-1)
    assert depends[0] > 1 and (depends[1:] == 0).all()


@needs_node
def test_one_step_tells_five_characters_apart_unless_a_query_is_alone() -> None:
    characters, queries, _ = five_samples()
    lesson = {"characters": characters, "batch": queries, "which": 2, "alpha": 0.4}
    lesson |= {"steps": 1, "batches": 4, "seed": 100}
    (values,) = run_model("five-characters", [("lesson", [lesson], 5)])
    first, *_, last = values
    for mode in ("batch", "support"):
        assert np.argmax(first["after"][mode]) == 2 and first["after"][mode][2] > 0.9
        assert last["score"]["before"][mode] <= 10 and last["score"]["of"] == 20
    assert np.isclose(np.sum(first["before"]["batch"]), 1)
    after = last["score"]["after"]
    assert after["batch"] >= 19 and after["support"] >= 18 and after["alone"] <= 10


# --- find the goal --------------------------------------------------------------------
