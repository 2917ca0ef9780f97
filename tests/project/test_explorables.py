"""The pages to play with: their numbers are tinymaml's, to 1e-5 of their size.

The models run in Node on the data that the site's build writes, and are compared with
tinymaml in float64, on the numpy backend. docs/check_explorables.py uses the pages in a
browser.
"""

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
from tests.support.explorables import SCRIPTS, recorded_data, run_model
from tests.support.node_backend import NODE, needs_node
from tinymaml.backends import get_backend
from tinymaml.rl.advantages import CLIP, advantages
from tinymaml.rl.maml_trpo import MAMLTRPO, MetaBatch
from tinymaml.rl.rollouts import Trajectories
from tinymaml.tasks import omniglot, sinusoid
from tinymaml.tasks.images import Image
from tinymaml.tasks.navigation import LARGEST_MOVE, Navigation

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


BLOCKED = """
globalThis.tinymamlTape = () => ({});
globalThis.tinymamlTools = () => ({});
globalThis.Worker = class {
  constructor() { setTimeout(() => this.onerror({ message: "blocked" }), 20); }
  postMessage() {}
  terminate() {}
};
const tinymaml = require(process.argv[1]);
const model = () => ({ *count(n) { for (let i = 0; i < n; i++) yield i; } });
const worker = tinymaml.startWorker(model, {});
const seen = { stopped: [], whole: [], broken: [] };
let open = 3;
const print = () => { process.stdout.write(JSON.stringify(seen)); process.exit(); };
const ended = () => { if (--open === 0) setTimeout(print, 50); }; // and nothing more
setTimeout(print, 20000);
const ask = (name, method, args) => worker.stream(method, args,
  (value) => seen[name].push(value),
  (error) => { seen[name].push(error ? "error" : "end"); ended(); });
ask("stopped", "count", [1e9]).stop();
ask("whole", "count", [3]);
ask("broken", "nothing", []);
"""


@needs_node
def test_a_page_whose_worker_is_blocked_answers_all_but_what_was_stopped() -> None:
    assert NODE is not None
    command = [NODE, "-e", BLOCKED, str(SCRIPTS / "explorable.js")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == {
        "stopped": ["end"],
        "whole": [0, 1, 2, "end"],
        "broken": ["error"],
    }


DECODED = """
const { decode } = require(process.argv[1]), data = decode(JSON.parse(process.argv[2]));
const bytes = (array) => [array.constructor.name, [...new Uint8Array(array.buffer)]];
console.log(JSON.stringify([bytes(data.a), bytes(data.b[0]), data.b.slice(1)]));
"""


@needs_node
def test_data_of_a_page_come_back_as_they_were() -> None:
    from recorded import encode

    assert NODE is not None
    a = np.array([[1.5, -0.0], [np.inf, 2.0**-149]], np.float32)
    b = np.array([np.nan, 2.0**-1074])
    text = json.dumps(encode({"a": a, "b": [b, np.float64(0.5), "words", None, True]}))
    command = [NODE, "-e", DECODED, str(SCRIPTS / "explorable.js"), text]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == [
        ["Float32Array", [*a.tobytes()]],
        ["Float64Array", [*b.tobytes()]],
        [0.5, "words", None, True],
    ]
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
    (values,) = run_model("five-characters", [("lesson", [lesson], 17)])
    first, *_, last = values  # after each of three kinds of statistics comes a null
    for mode in ("batch", "support"):
        assert np.argmax(first["after"][mode]) == 2 and first["after"][mode][2] > 0.9
        assert last["score"]["before"][mode] <= 10 and last["score"]["of"] == 20
    assert np.isclose(np.sum(first["before"]["batch"]), 1)
    after = last["score"]["after"]
    assert after["batch"] >= 19 and after["support"] >= 18 and after["alone"] <= 10


@needs_node
def test_a_lesson_finds_what_another_alpha_does_not_change() -> None:
    characters, queries, _ = five_samples()
    lesson = {"characters": characters, "batch": queries, "which": 2, "alpha": 0.4}
    lesson |= {"steps": 1, "batches": 1, "seed": 100}
    others = [{"alpha": 0.04}, {"steps": 0}, {"seed": 7}, {"characters": queries}]
    calls = [("lesson", [lesson | other], 5) for other in ({}, *others)]
    _, *answers = run_model("five-characters", calls)
    for call, answer in zip(calls[1:], answers, strict=True):
        assert [answer] == run_model("five-characters", [call])
    without_a_step = answers[1][-1]["score"]
    assert without_a_step["after"] == without_a_step["before"]


# --- find the goal --------------------------------------------------------------------

GOAL, ALPHAS = np.array([0.3, 0.4]), {"maml": 0.5, "pretrained": 0.2}


def close(came: Any, expected: np.ndarray, size: float | None = None) -> None:
    """Assert that arrays agree to 1e-5 of the largest number, or of `size`."""
    came = np.asarray(came, np.float64).reshape(expected.shape)
    tolerance = 1e-5 * (np.abs(expected).max() if size is None else size)
    np.testing.assert_allclose(came, expected, rtol=0, atol=tolerance)


@cache
def goal_learner() -> MAMLTRPO:
    """The learner of the page, on the numpy backend."""
    start = tm.pretrained("navigation-maml")
    policy = tm.GaussianPolicy(start.network.network, 2, backend="numpy")
    learner: MAMLTRPO = start.recipe.maml(policy, trajectories=20, backend="numpy")
    return learner


@cache
def goal_stages() -> tuple[list[dict[str, Any]], np.ndarray]:
    """Stages 0 to 3 of both policies, in turn, and the noise: (4, 1, 20, 100, 2)."""
    calls = [("adaptations", [GOAL.tolist(), ALPHAS, 7], 8), ("noise", [7])]
    stages, noise = run_model("find-the-goal", calls)
    return stages, np.reshape(noise, (4, 1, 20, 100, 2))


def unrolled(paths: dict[str, Any]) -> Trajectories:
    """The paths of the model as tinymaml's trajectories of one task."""
    positions = np.reshape(paths["positions"], (1, 20, 101, 2))[:, :, :-1]
    mask = np.arange(100) < np.reshape(paths["lengths"], (1, 20, 1))
    rewards = np.reshape(paths["rewards"], (1, 20, 100))
    actions = np.reshape(paths["actions"], (1, 20, 100, 2))
    arrays = (positions * mask[..., None], actions * mask[..., None], rewards)
    return Trajectories(*arrays, mask)


@needs_node
@pytest.mark.parametrize("name", ALPHAS)
def test_find_the_goal_adapts_as_tinymaml_does(name: str) -> None:
    learner, alpha = goal_learner(), ALPHAS[name]
    stages, noise = goal_stages()
    stages = stages[list(ALPHAS).index(name) :: 2]
    theta = tm.pretrained(f"navigation-{name}").theta.astype(np.float64)
    batch = MetaBatch(GOAL[None], noise)
    adapted = learner.adapt(theta, batch, [alpha, alpha / 2, alpha / 2])
    grid = np.linspace(-0.9, 0.9, 10)
    grid = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1).reshape(1, 100, 2)
    means = [learner.policy.act(t, grid, 0 * grid)[0] for t in adapted.thetas]
    for j, stage in enumerate(stages):
        assert (stage["name"], stage["step"]) == (name, j)
        expected, came = adapted.trajectories[j], unrolled(stage["paths"])
        np.testing.assert_array_equal(came.mask, expected.mask)
        close(came.observations, expected.observations)
        close(came.actions, expected.actions)
        close(came.rewards, expected.rewards)
        close(stage["paths"]["return"], expected.returns()[0])
        if j > 0:
            step = adapted.thetas[j][0] - adapted.thetas[j - 1][0]
            close(np.subtract(stage["theta"], stages[j - 1]["theta"]), step)
            close(stages[j - 1]["field"], means[j] - means[j - 1])
        # A path that ends early is at the goal; one may be there at its last move, too.
        early = (~expected.mask[0, :, -1]).sum()
        last = expected.mask[0, :, -1] & (expected.rewards[0, :, -1] > -0.015)
        assert early <= stage["paths"]["arrived"] <= early + last.sum()
    assert not adapted.trajectories[2].mask.all()  # some paths have ended early


@needs_node
def test_find_the_goal_has_tinymamls_advantages_for_paths_of_any_length() -> None:
    rng = np.random.default_rng(4)
    lengths = np.array([1, 2, 100, *rng.integers(1, 101, 17)])
    mask = np.arange(100) < lengths[:, None]
    positions = rng.normal(size=(20, 101, 2)) * rng.choice([0.1, 8.0], (20, 1, 1))
    rewards = np.where(mask, -np.abs(rng.normal(size=(20, 100))), 0.0)
    paths = {"positions": positions, "rewards": rewards, "lengths": lengths * 1.0}
    assert (np.abs(positions) > CLIP).any()
    (came,) = run_model("find-the-goal", [("advantages", [paths])])
    observations = positions[None, :, :-1]
    trajectories = Trajectories(observations, observations, rewards[None], mask[None])
    close(came, advantages(trajectories)[0])


class Walker:
    """A policy that knows its goal and goes straight there, or stands still."""

    size, actions = 1, 2

    def __init__(self, speed: float) -> None:
        self.speed = speed

    def act(self, thetas: np.ndarray, x: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """The actions that lead to the goal at once, to be clipped."""
        return self.speed * (GOAL - x) / LARGEST_MOVE


@needs_node
def test_find_the_goal_says_what_the_best_and_the_laziest_policy_get() -> None:
    (came,) = run_model("find-the-goal", [("references", [GOAL.tolist()])])
    theta, noise = np.zeros((1, 1)), np.zeros((1, 1, 100, 2))
    for key, speed in [("straight", 1.0), ("still", 0.0)]:
        paths = tm.roll_out(Walker(speed), Navigation(), theta, GOAL[None], noise)
        close(came[key], paths.returns()[0])
    # Three clipped moves and one of 0.1 upwards, whatever the environment does.
    hand = -(np.hypot(0.2, 0.3) + np.hypot(0.1, 0.2) + 0.1 + 0.0)
    close(came["straight"], np.array(hand))
    close(came["still"], np.array(-50.0))


@needs_node
def test_find_the_goal_changes_log_sigma_by_the_closed_form() -> None:
    """d log pi / d log sigma = z^2 - 1, with z = (action - mean) / sigma."""
    stages, noise = goal_stages()
    trajectories = unrolled(stages[0]["paths"])
    assert trajectories.mask.all()  # so z of every action is its noise
    weighted = advantages(trajectories)[..., None] * (noise[0] ** 2 - 1)
    change = np.subtract(stages[2]["theta"], stages[0]["theta"])[-2:]
    close(change, ALPHAS["maml"] * weighted.mean(axis=(0, 1, 2)))
