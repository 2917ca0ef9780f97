"""examples/methods.py: every method keeps the experiment's settings and learns."""

import numpy as np
import pytest

import tinymaml as tm
from tests.support.running_examples import load_example
from tinymaml.networks.layers import truncated_normal
from tinymaml.paper.recipes import RECIPES, SinusoidRecipe
from tinymaml.tasks import sinusoid

methods = load_example("methods")
problems = load_example("compare_problems")
NAMES = methods.names_for("sinusoid")


@pytest.fixture(scope="module")
def problem():
    """The sinusoids, from initial weights with which learning begins at once."""
    weights = truncated_normal(0.2)
    return problems.sinusoids(tm.get_backend("numba", 1), True)._replace(
        network=tm.MLP([1, 40, 40, 1], initialiser=weights),
        context=methods.context_network(weights),
    )


def test_a_method_keeps_the_settings_of_exact_maml():
    recipe = RECIPES["mini-5w1s"]
    network = recipe.network()
    maml = recipe.maml(network, backend="numpy")
    made = methods.RELATIVES["first-order"].learner(maml, network)
    assert made.order == 1
    for name in ("loss", "query_loss", "steps", "clip", "backend", "reduction"):
        assert getattr(made, name) == getattr(maml, name), name
    assert np.array_equal(made.alpha, maml.alpha)


def test_exact_is_the_recipe_s_own_learner():
    recipe, rng = SinusoidRecipe(), np.random.default_rng(0)
    network = recipe.network()
    theta, tasks = network.init(rng), sinusoid.sample_tasks(rng)
    maml = recipe.maml(network, backend="numba")
    made = methods.RELATIVES["exact"].learner(maml, network)
    expected = maml.meta_gradient(theta, tasks).gradient
    assert made.meta_gradient(theta, tasks).gradient.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_a_method_adapts_as_many_parameters_as_it_says(problem, name):
    entry = problems.training(problem, name)
    # Units of relu are dead at all points with some parameters, but not with all.
    rng, moved = np.random.default_rng(0), False
    for _ in range(12):
        theta = rng.normal(size=entry.network.size).astype(np.float32)
        theta = entry.method.start(entry.maml, theta)
        tasks = sinusoid.sample_tasks(rng, tasks=20, shots=40)
        thetas = entry.maml.adapt(theta, tasks.x_support, tasks.y_support, 1)
        moved = moved | (thetas[:, 0] != thetas[:, 1]).any(axis=0)
    assert np.count_nonzero(moved) == problems.adapted(problem, entry)


@pytest.mark.parametrize("name", NAMES)
def test_parts_of_the_network_are_adapted_and_rates_are_learned(problem, name):
    entry = problems.training(problem, name)
    adapted = {"anil": 41, "boil": 1761 - 41, "cavia": 5, "context": 5}
    learned = {"cavia": 1761 + 5 * 41, "context": 1761 + 5 * 41, "meta-sgd": 2 * 1761}
    learned |= dict.fromkeys(("step-rates", "maml++"), 1761 + 5 * 3)
    assert problems.adapted(problem, entry) == adapted.get(name, 1761)
    assert entry.first_theta(0).size == learned.get(name, 1761)


def test_inner_steps_and_orders_of_the_methods(problem):
    five = {"exact-5", "multi-step", "step-rates", "maml++", "momentum", "adam"}
    for name in NAMES:
        maml = problems.training(problem, name).maml
        own = dict.fromkeys(five, 5) | {"reptile": 5, "implicit": 30, "pretrained": 0}
        assert maml.steps == own.get(name, 1), name
        assert maml.order == (1 if name == "first-order" else 2), name


@pytest.mark.parametrize(("name", "steps"), [("proto-maml", 1), ("prototypical", 0)])
def test_the_last_layer_of_proto_maml_starts_from_prototypes(name, steps):
    recipe, rng = RECIPES["fc-5w1s"], np.random.default_rng(0)
    network = recipe.network()
    maml = recipe.maml(network, backend="numba")
    made = methods.RELATIVES[name].learner(maml, network)
    assert made.steps == steps
    theta = network.init(rng)
    x = rng.uniform(size=(1, 5, 28, 28, 1)).astype(np.float32)
    y = np.eye(5, dtype=np.float32)[None]
    start, *_ = made.adapt(theta, x, y, steps=0)[0]
    assert start[:-325].tobytes() == theta[:-325].tobytes()
    # Each support image is its class's prototype: no other class is nearer.
    tasks = tm.Tasks(x, y, x, y)
    logits = made.predict(network, theta, tasks, steps=0)[0, 0]
    assert (logits.argmax(axis=1) == np.arange(5)).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_method_learns_sine_waves(problem, name):
    entry = problems.training(problem, name)
    theta, steps = entry.first_theta(0), problems.reported_steps(problem, entry)
    result = tm.train(
        entry.maml,
        theta,
        entry.sample,
        iterations={"reptile": 1500, "implicit": 600}.get(name, 300),
        optimiser=tm.Adam(problem.learning_rate),
        rng=np.random.default_rng(0),
        progress=False,
    )
    before, after = (
        problems.scores(
            problem,
            *problems.at_test(problem, entry, vector, 10, steps),
            problem.tests[10],
            steps,
        )[:, steps].mean()
        for vector in (theta, result.theta)
    )
    assert after < 0.9 * before


@pytest.mark.parametrize("problem_name", methods.PROBLEMS)
def test_published_figures_name_their_source_and_setting(problem_name):
    for name in methods.names_for(problem_name):
        published = methods.RELATIVES[name].published.get(problem_name)
        assert published is None or (published.source and published.setting)
