"""Initialisations: saved, loaded, or refused; those of the package are as accurate as
their facts say."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tinymaml as tm
from tests.support.damaged_files import run_campaign
from tinymaml.paper.initialisations import load_initialisation, save_initialisation
from tinymaml.paper.recipes import RECIPES, NavigationRecipe, SinusoidRecipe
from tinymaml.rl.maml_trpo import MetaBatch
from tinymaml.tasks import omniglot, sinusoid
from tinymaml.tasks.episodes import Episodes
from tinymaml.training.checkpoint import CheckpointError, save_checkpoint

PARAMETERS = Path(tm.__file__).parent / "paper" / "parameters"
NAMES = sorted(path.stem for path in PARAMETERS.glob("*.npz"))
OMNIGLOT, SINUSOID, NAVIGATION = (
    [name for name in NAMES if name.startswith(f"{data}-")]
    for data in ("omniglot", "sinusoid", "navigation")
)
SIZES = {"omniglot": 500_000, "sinusoid": 9_000, "navigation": 45_000}  # bytes


def mean_and_interval(values):
    """The mean of (N,) and the half-width of its 95 % interval."""
    return values.mean(), 1.96 * values.std() / len(values) ** 0.5


def accuracy_after(start, images, count, steps):
    """The mean accuracy on `count` tasks of these images."""
    recipe = start.recipe
    tasks = Episodes(
        images.images,
        images.labels,
        ways=recipe.ways,
        shots=recipe.shots,
        queries=recipe.shots,
        rotations=True,
    ).fixed(seed=7, count=count)
    maml = recipe.maml(start.network)
    logits = maml.predict(start.network, start.theta, tasks, steps)
    return tm.accuracy(logits, tasks.y_query[:, None]).mean(0)


def test_an_initialisation_is_loaded_as_it_was_saved(tmp_path):
    recipe = tm.RECIPES["20w1s"].scaled("mean")
    theta = recipe.network().init(np.random.default_rng(0))
    save_initialisation(tmp_path / "a.npz", theta, recipe, {"data": "none", "n": 3})
    start = load_initialisation(tmp_path / "a.npz")
    assert start.theta.tobytes() == theta.tobytes() and start.theta.dtype == "float32"
    assert start.recipe == recipe and start.facts == {"data": "none", "n": 3}
    assert start.network.size == theta.size
    assert repr(start).splitlines() == [
        "Initialisation",
        f"  theta       ({theta.size},) float32, parameters of OmniglotConv",
        "  recipe      20w1s",
        "  scaling     mean",
        "  facts.data  none",
        "  facts.n     3",
    ]


def test_theta_of_another_network_is_refused(tmp_path):
    with pytest.raises(ValueError, match="theta: expected shape"):
        save_initialisation(
            tmp_path / "a.npz", np.zeros(3, "float32"), tm.RECIPES["5w1s"], {}
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("recipe", "argument"),
    [
        (SinusoidRecipe(alpha="x"), "alpha"),
        (NavigationRecipe(reward="typo"), "reward"),
    ],
)
def test_a_recipe_that_a_reader_would_refuse_replaces_no_file(
    tmp_path, recipe, argument
):
    (tmp_path / "a.npz").write_bytes(b"mine")
    theta = np.zeros(recipe.network().size)
    with pytest.raises((TypeError, ValueError), match=f"^{argument}: expected"):
        save_initialisation(tmp_path / "a.npz", theta, recipe, {})
    assert (tmp_path / "a.npz").read_bytes() == b"mine"


def test_theta_of_another_dtype_is_refused(tmp_path):
    recipe = tm.RECIPES["5w1s"]
    with pytest.raises(TypeError, match="theta: expected a float32 or float64 array"):
        save_initialisation(
            tmp_path / "a.npz", np.zeros(recipe.network().size, int), recipe, {}
        )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "recipe"),
        ({"recipe": "5w1s"}, "scaling"),
        ({"recipe": "x", "scaling": "mean"}, "'x'"),
        ({"recipe": ["5w1s"], "scaling": "mean"}, "list"),
        ({"recipe": "5w1s", "scaling": "sum"}, "scaling: expected one of"),
    ],
)
def test_another_checkpoint_is_refused(tmp_path, config, message):
    theta = np.zeros(tm.RECIPES["5w1s"].network().size, np.float32)
    save_checkpoint(tmp_path / "a.npz", {"theta": theta}, config, {})
    with pytest.raises(CheckpointError, match=f"expected an initialisation.*{message}"):
        load_initialisation(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "config",
    [{"recipe": "5w1s", "scaling": "mean"}, {"recipe": "sinusoid", "alpha": 0.001}],
)
def test_theta_of_another_size_is_refused(tmp_path, config):
    save_checkpoint(tmp_path / "a.npz", {"theta": np.zeros(3)}, config, {})
    expected = r"expected an initialisation.*theta: expected shape \(\d+,\), got \(3,\)"
    with pytest.raises(CheckpointError, match=expected):
        load_initialisation(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("recipe", "line"),
    [
        (SinusoidRecipe(0.005), "  alpha   0.005"),
        (NavigationRecipe(0.1, "squared"), "  reward  squared"),
    ],
)
def test_recipes_of_sections_5_1_and_5_3_are_loaded_as_they_were_saved(
    tmp_path, recipe, line
):
    theta = recipe.network().init(np.random.default_rng(0))
    save_initialisation(tmp_path / "a.npz", theta, recipe, {})
    start = load_initialisation(tmp_path / "a.npz")
    assert start.theta.tobytes() == theta.tobytes() and start.recipe == recipe
    assert line in repr(start).splitlines()


@pytest.mark.parametrize(
    ("recipe", "settings", "message"),
    [
        (SinusoidRecipe(), {}, r"settings: expected all of \['recipe', 'alpha'\]"),
        (SinusoidRecipe(), {"alpha": "x"}, "alpha: expected a number"),
        (SinusoidRecipe(), {"alpha": None}, "alpha: expected a number"),
        (SinusoidRecipe(), {"alpha": 0.1, "reward": "distance"}, "reward"),
        (NavigationRecipe(), {"alpha": 0.5}, "settings: expected all of"),
        (NavigationRecipe(), {"alpha": 0.5, "reward": "money"}, "reward: expected one"),
        (NavigationRecipe(), {"alpha": [1, 2], "reward": "distance"}, "alpha: "),
        (NavigationRecipe(), {"alpha": 1, "reward": "distance", "name": "x"}, "name"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, recipe, settings, message):
    theta = recipe.network().init(np.random.default_rng(0))
    config = {"recipe": recipe.name, **settings}
    save_checkpoint(tmp_path / "a.npz", {"theta": theta}, config, {})
    with pytest.raises(CheckpointError, match=f"expected an initialisation.*{message}"):
        load_initialisation(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "recipe",
    [
        replace(RECIPES["fc-5w1s"], alpha=0.01),
        replace(RECIPES["fc-5w1s"], name="mine"),
    ],
)
def test_a_recipe_that_no_reader_would_find_again_is_not_saved(tmp_path, recipe):
    theta = np.zeros(recipe.network().size, np.float32)
    with pytest.raises(ValueError, match="recipe: expected one of RECIPES"):
        save_initialisation(tmp_path / "a.npz", theta, recipe, {})
    assert not [*tmp_path.iterdir()]


def test_a_damaged_file_is_refused(tmp_path):
    recipe = tm.RECIPES["fc-5w1s"]
    theta = recipe.network().init(np.random.default_rng(0))
    save_initialisation(tmp_path / "a.npz", theta, recipe, {})
    content = (tmp_path / "a.npz").read_bytes()
    for damaged in (content[:-100], content[:5000] + b"\x01" + content[5001:], b""):
        (tmp_path / "a.npz").write_bytes(damaged)
        with pytest.raises(CheckpointError):
            load_initialisation(tmp_path / "a.npz")


def test_damaged_files_end_in_one_error_or_the_right_initialisation():
    outcomes = run_campaign("initialisations", 60)
    assert outcomes["one error"] > 0 and outcomes.total() == 60


def test_theta_that_is_not_finite_is_refused(tmp_path):
    recipe = tm.RECIPES["fc-5w1s"]
    theta = recipe.network().init(np.random.default_rng(0))
    config = {"recipe": recipe.name, "scaling": recipe.scaling}
    theta[7] = np.nan
    with pytest.raises(ValueError, match="theta: expected finite numbers"):
        save_initialisation(tmp_path / "a.npz", theta, recipe, {})
    save_checkpoint(tmp_path / "a.npz", {"theta": theta}, config, {})
    with pytest.raises(CheckpointError, match="got another .* expected finite numbers"):
        load_initialisation(tmp_path / "a.npz")


def test_an_unknown_name_is_refused_with_all_names():
    for name in ("omniglot-7w1s", "../sinusoid-maml", ""):
        with pytest.raises(ValueError, match="^name: expected one of ") as error:
            tm.pretrained(name)
        assert all(known in str(error.value) for known in NAMES)


def test_the_package_has_initialisations_of_three_experiments():
    trainings = ["20w1s", "5w1s", "5w1s-background", "5w5s"]
    assert OMNIGLOT == [f"omniglot-{training}" for training in trainings]
    methods = ["first-order", "maml", "pretrained"]
    assert SINUSOID == [f"sinusoid-{method}" for method in methods]
    assert NAVIGATION == ["navigation-maml", "navigation-pretrained"]
    assert len(NAMES) == 9


@pytest.mark.parametrize("name", NAMES)
def test_pretrained_is_small_and_has_facts_about_its_training(name):
    data = name.split("-")[0]
    assert (PARAMETERS / f"{name}.npz").stat().st_size < SIZES[data]
    start = tm.pretrained(name)
    assert start.theta.dtype == "float32"
    assert start.facts["command"].startswith(f"python examples/{data}.py")
    if data == "omniglot":
        assert start.facts["data"] == "Omniglot"
        assert start.facts["accuracy"] > (92 if "20w" in name else 95)
        assert 0 < start.facts["ci95"] < 1
        assert "--resume" not in start.facts["command"]
    else:
        method = {"maml": "MAML", "first-order": "MAML, first order"}
        key = name.removeprefix(f"{data}-")
        assert start.facts["method"] == method.get(key, "pretrained")
        assert start.facts["order"] == {"maml": 2, "first-order": 1}.get(key)
        assert start.facts["seed"] == 0
        assert start.facts["iterations"] == {"sinusoid": 70_000}.get(data, 100)


# --- sinusoids ------------------------------------------------------------------------


@pytest.mark.parametrize("shots", [5, 10, 20])
@pytest.mark.parametrize("name", SINUSOID)
def test_pretrained_has_the_errors_of_its_facts_on_new_waves(name, shots):
    start = tm.pretrained(name)
    facts = start.facts[f"{shots} shots"]
    tasks = sinusoid.sample_tasks(np.random.default_rng(7), 300, shots)
    maml = replace(start.recipe, alpha=facts["alpha"]).maml(start.network)
    errors = maml.evaluate(start.theta, tasks, steps=10)[:, start.facts["steps"]]
    for steps, mse, ci95 in zip(errors.T, facts["mse"], facts["ci95"], strict=True):
        mean, interval = mean_and_interval(steps)
        assert abs(mean - mse) < 1.5 * np.hypot(interval, ci95)
    assert (np.diff(facts["mse"]) < 0).all()  # every step helps


def test_the_recipe_of_a_sinusoid_start_has_the_alpha_of_5_shots():
    for name in SINUSOID:
        start = tm.pretrained(name)
        assert start.recipe.alpha == start.facts["5 shots"]["alpha"]
    maml, pretrained = (tm.pretrained(f"sinusoid-{m}") for m in ("maml", "pretrained"))
    assert maml.recipe.alpha == 0.001 < pretrained.recipe.alpha


def test_maml_learns_a_wave_better_than_the_pretrained_network():
    for shots in (5, 10, 20):
        maml, first_order, pretrained = (
            tm.pretrained(f"sinusoid-{name}").facts[f"{shots} shots"]["mse"]
            for name in ("maml", "first-order", "pretrained")
        )
        for steps in (1, 2, 3):
            assert max(maml[steps], first_order[steps]) < 0.5 * pretrained[steps]


# --- 2D navigation --------------------------------------------------------------------


@pytest.mark.parametrize("name", NAVIGATION)
def test_pretrained_has_the_returns_of_its_facts_on_new_goals(name):
    start = tm.pretrained(name)
    facts = start.facts
    settings = {"trajectories": 160, "transitions": facts["transitions"]}
    learner = start.recipe.maml(start.network, **settings)
    rng = np.random.default_rng(7)
    goals = learner.environment.draw(rng, (12,))
    batch = MetaBatch(goals, learner.noise(rng, 12, steps=2))
    returns = learner.adapt(start.theta, batch, facts["alpha"][:2]).returns()
    for steps, (values, mean_of_facts, ci95) in enumerate(
        zip(returns.T, facts["return"], facts["ci95"], strict=False)
    ):
        mean, interval = mean_and_interval(values)
        assert abs(mean - mean_of_facts) < 1.5 * np.hypot(interval, ci95), steps
    assert returns[:, 2].mean() > returns[:, 0].mean() + 10  # two steps help


def test_the_first_step_helps_maml_and_not_the_pretrained_policy():
    maml, pretrained = (tm.pretrained(name).facts["return"] for name in NAVIGATION)
    assert maml[1] > maml[0] + 20
    assert pretrained[1] < pretrained[0]  # alpha = 0.5 is too much for it
    assert (np.diff(maml) > 0).all() and maml[3] > pretrained[3] + 5


# --- Omniglot -------------------------------------------------------------------------


@pytest.mark.parametrize("name", OMNIGLOT)
def test_pretrained_learns_drawn_characters_better_than_a_random_initialisation(name):
    start = tm.pretrained(name)
    images = omniglot.split(omniglot.standin())["test"]
    random = start._replace(theta=start.network.init(np.random.default_rng(0)))
    steps = start.recipe.test_steps
    accuracy = accuracy_after(start, images, 60, steps)[-1]
    assert accuracy > accuracy_after(random, images, 60, steps)[-1] + 0.1
    assert accuracy > 0.9


@pytest.mark.slow
@pytest.mark.skipif(
    "TINYMAML_DATA" not in os.environ, reason="needs TINYMAML_DATA, with Omniglot"
)
@pytest.mark.parametrize("name", OMNIGLOT)
def test_pretrained_reaches_its_accuracy_on_the_test_characters(name):
    start = tm.pretrained(name)
    split = "background" if name.endswith("background") else "authors"
    images = omniglot.split(omniglot.load(), split)["test"]
    accuracy = 100 * accuracy_after(start, images, 200, start.recipe.test_steps)[-1]
    assert abs(accuracy - start.facts["accuracy"]) < 2  # 3 intervals of 200 tasks
