"""The pages to play with: their numbers are tinymaml's, to 1e-5 of their size.

The models run in Node on the data that the site's build writes, and are compared with
tinymaml in float64, on the numpy backend. docs/check_explorables.py uses the pages in a
browser.
"""

import base64
import importlib.util
import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import tinymaml as tm
from tests.support.explorables import NODE, SCRIPTS, needs_node, run_model
from tinymaml.backends import get_backend
from tinymaml.tasks import sinusoid

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

POINTS = [[-4.0, 1.5], [-1.0, -2.0], [0.5, 0.3], [2.0, 3.0], [4.5, -1.0]]  # on no wave


@cache
def four_starts() -> Any:
    """The module that records the page's data."""
    path = DOCS / "explorables" / "four_starts.py"
    spec = importlib.util.spec_from_file_location("four_starts", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sinusoid_maml(alpha: float, order: int = 2) -> tm.MAML:
    """MAML of the page's loss, in float64 on the numpy backend."""
    return tm.MAML(four_starts().loss, alpha, order=order, backend="numpy")


def relative(came: Any, expected: Any) -> float:
    """The distance of two arrays, in units of the size of the second."""
    came, expected = np.asarray(came, float), np.asarray(expected, float)
    assert came.shape == expected.shape
    return float(np.linalg.norm(came - expected) / np.linalg.norm(expected))


def test_weighted_loss_with_weights_1_is_the_squared_error() -> None:
    module, rng = four_starts(), np.random.default_rng(0)
    theta = module.NETWORK.init(rng, "float64")
    x, y = rng.uniform(-5, 5, (2, module.PLACES, 1))
    run = get_backend("numpy").compile(module.step_tape(), "float64")
    given = {"theta": theta, "alpha": np.array(0.01), "x": x, "y": y}
    all_there = run(given | {"weights": np.ones_like(x)})
    expected = ((module.NETWORK.predict(theta, x) - y) ** 2).mean()
    np.testing.assert_allclose(all_there["error"], [expected], rtol=1e-12)
    adapted = sinusoid_maml(0.01).adapt(theta, x[None], y[None], steps=1)[:, 1]
    np.testing.assert_allclose(all_there["theta"], adapted, rtol=1e-12)
    # A place of weight 0 does not count, whatever stands there.
    three = np.arange(module.PLACES)[:, None] < 3
    some = run(given | {"weights": three * 1.0})
    adapted = sinusoid_maml(0.01).adapt(theta, x[None, :3], y[None, :3], steps=1)[:, 1]
    np.testing.assert_allclose(some["theta"], adapted, rtol=1e-12)


@needs_node
def test_each_start_adapts_and_predicts_as_tinymaml() -> None:
    data = four_starts().data()
    x, y = np.array(POINTS)[None, :, :1], np.array(POINTS)[None, :, 1:]
    grid = data["grid"][:, None]
    starts = list(data["starts"].values())
    calls = [("adapt", [s["theta"], s["alpha"], POINTS, 10]) for s in starts]
    answers = run_model("four-starts", calls)
    curves = run_model("four-starts", [("curve", [a["thetas"][10]]) for a in answers])
    for start, answer, curve in zip(starts, answers, curves, strict=True):
        theta = start["theta"].astype("float64")
        expected = sinusoid_maml(start["alpha"]).adapt(theta, x, y, steps=10)[0]
        assert answer["diverged"] is None
        for j in range(1, 11):  # of the change: theta itself would hide a wrong step
            moved = np.array(answer["thetas"][j]) - theta
            assert relative(moved, expected[j] - theta) < 1e-5, j
        predictions = [four_starts().NETWORK.predict(theta, x[0]) for theta in expected]
        errors = [((prediction - y[0]) ** 2).mean() for prediction in predictions]
        assert relative(answer["errors"], errors) < 1e-5
        assert (
            relative(curve, four_starts().NETWORK.predict(expected[10], grid)[:, 0])
            < 1e-5
        )


@needs_node
@pytest.mark.parametrize("order", [1, 2])
def test_meta_training_in_the_page_is_that_of_tinymaml(order: int) -> None:
    module, rng = four_starts(), np.random.default_rng(order)
    theta = module.NETWORK.init(rng)
    batches = [sinusoid.sample_tasks(rng) for _ in range(5)]
    flat = [{k: v.ravel() for k, v in tasks._asdict().items()} for tasks in batches]
    kind = {1: "first", 2: "exact"}[order]
    (answer,) = run_model("four-starts", [("metaTrainOn", [kind, theta, flat])])
    maml, adam = sinusoid_maml(module.ALPHA, order), tm.Adam(module.LEARNING_RATE)
    expected, losses = theta.astype("float64"), []
    for tasks in batches:
        tasks = tm.Tasks(*(array.astype("float64") for array in tasks))
        result = maml.meta_gradient(expected, tasks)
        adam.update(expected, result.gradient)
        losses.append(result.loss)
    assert relative(answer["losses"], losses) < 1e-5
    assert relative(answer["theta"] - theta, expected - theta) < 1e-5


@needs_node
def test_tasks_weights_and_errors_of_the_page_are_what_it_says() -> None:
    module = four_starts()
    wave = {"amplitude": 2.0, "phase": 0.5}
    grid = module.data()["grid"]
    theta, again, other, tasks, error, sizes = run_model(
        "four-starts",
        [
            ("randomTheta", [1]),
            ("randomTheta", [1]),
            ("randomTheta", [2]),
            ("tasksOf", [1, 2000]),
            ("waveError", [np.cos(grid), wave]),
            ("metaTrain", ["exact", 1, 2], 2),
        ],
    )
    assert theta == again != other
    for name, (span, shape) in module.NETWORK.layout.items():
        numbers = np.array(theta[span])
        if name.endswith("bias"):
            assert not numbers.any()
        else:  # the mean of n squares is known to about sqrt(2 / n) of itself
            variance = 2 / shape[0]
            assert (
                abs((numbers**2).mean() / variance - 1) < 4 * (2 / numbers.size) ** 0.5
            )
    for kind in ("support", "query"):
        x = np.array(tasks[f"x_{kind}"]).reshape(2000, 10)
        y = np.array(tasks[f"y_{kind}"]).reshape(2000, 10)
        # Least squares on sin x and cos x finds amplitude and phase, and no residual.
        for x_i, y_i in zip(x[:50], y[:50], strict=True):
            basis = np.stack([np.sin(x_i), np.cos(x_i)], 1)
            (a, b), *_ = np.linalg.lstsq(basis, y_i)
            assert np.abs(basis @ [a, b] - y_i).max() < 1e-5
            assert 0.1 <= np.hypot(a, b) <= 5 and b <= 0  # -b = A sin(phase)
        assert -5 <= x.min() < -4.99 and 4.99 < x.max() <= 5
        # The mean of all waves is -1.62 cos x; the mean of its products with cos x is
        # known to about 0.02 from as many points.
        mean = (y * np.cos(x)).mean() / (np.cos(x) ** 2).mean()
        assert abs(mean + 2.55 * 2 / np.pi) < 0.1
    expected = ((np.cos(grid) - 2 * np.sin(grid - 0.5)) ** 2).mean()
    assert relative([error], [expected]) < 1e-12
    assert [part["iteration"] for part in sizes] == [2, 4]
    assert all(len(part["losses"]) == 2 for part in sizes)


def test_error_of_the_mean_is_that_of_many_waves() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-5, 5, (200_000, 1, 1))
    y = sinusoid.sample_waves(rng, len(x))(x)
    errors = (y + 2.55 * 2 / np.pi * np.cos(x)) ** 2
    uncertain = errors.std() / len(x) ** 0.5
    assert abs(errors.mean() - four_starts().error_of_the_mean()) < 4 * uncertain


@needs_node
def test_pretrained_and_maml_starts_draw_about_the_mean_of_all_waves() -> None:
    data = four_starts().data()
    mean = -2.55 * 2 / np.pi * np.cos(data["grid"])
    for name, most in (("pretrained", 0.2), ("exact", 0.6)):
        theta = data["starts"][name]["theta"]
        (curve,) = run_model("four-starts", [("curve", [theta])])
        assert np.sqrt(((np.array(curve) - mean) ** 2).mean()) < most, name


@needs_node
def test_a_moved_point_moves_the_other_half_of_maml_but_not_of_pretrained() -> None:
    # "Drag the point on the right": what the page says will be seen, after one step.
    data = four_starts().data()
    on_wave = [[x, 4 * np.sin(x - 1)] for x in data["first"]["x"]]
    moved = [*on_wave[:-1], [on_wave[-1][0], 3.0]]
    starts = data["starts"].values()
    adapted = run_model(
        "four-starts",
        [
            ("adapt", [s["theta"], s["alpha"], points, 1])
            for s in starts
            for points in (on_wave, moved)
        ],
    )
    curves = run_model("four-starts", [("curve", [a["thetas"][1]]) for a in adapted])
    left = np.array(curves).reshape(3, 2, -1)[:, :, data["grid"] < 0]
    pretrained, first, exact = np.sqrt(((left[:, 0] - left[:, 1]) ** 2).mean(axis=1))
    assert pretrained < 0.1 and first > 1 and exact > 1


@needs_node
def test_a_start_that_diverges_says_at_which_step_and_has_no_nan() -> None:
    start = four_starts().data()["starts"]["exact"]
    calls = [("adapt", [start["theta"], alpha, POINTS, 10]) for alpha in (1e-4, 0.3)]
    small, large = run_model("four-starts", calls)
    assert small["diverged"] is None and len(small["errors"]) == 11
    assert large["diverged"] == len(large["errors"]) == len(large["thetas"]) <= 3
    assert all(0 < error < 1e4 for error in large["errors"])


# --- draw five characters -------------------------------------------------------------


# --- find the goal --------------------------------------------------------------------
