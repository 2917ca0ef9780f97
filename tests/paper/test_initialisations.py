"""Initialisations: saved, loaded, or refused; those of the package are as accurate as
their facts say."""

import os
from pathlib import Path

import numpy as np
import pytest

import tinymaml as tm
from tests.support.damaged_files import run_campaign
from tinymaml.paper.initialisations import load_initialisation, save_initialisation
from tinymaml.tasks import omniglot
from tinymaml.tasks.episodes import Episodes
from tinymaml.training.checkpoint import CheckpointError, save_checkpoint

PARAMETERS = Path(tm.__file__).parent / "paper" / "parameters"
NAMES = sorted(path.stem for path in PARAMETERS.glob("*.npz"))


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
        "  recipe      20w1s, losses scaled mean",
        "  facts.data  none",
        "  facts.n     3",
    ]


def test_theta_of_another_network_is_refused(tmp_path):
    with pytest.raises(ValueError, match="theta: expected shape"):
        save_initialisation(
            tmp_path / "a.npz", np.zeros(3, "float32"), tm.RECIPES["5w1s"], {}
        )
    assert list(tmp_path.iterdir()) == []


def test_theta_of_another_dtype_is_refused(tmp_path):
    recipe = tm.RECIPES["5w1s"]
    with pytest.raises(TypeError, match="theta: expected a float32 or float64 array"):
        save_initialisation(
            tmp_path / "a.npz", np.zeros(recipe.network().size, int), recipe, {}
        )


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"recipe": "5w1s"},
        {"recipe": "x", "scaling": "mean"},
        {"recipe": ["5w1s"], "scaling": "mean"},
        {"recipe": "5w1s", "scaling": "sum"},
        {"recipe": "5w1s", "scaling": "mean"},
    ],
)
def test_another_checkpoint_is_refused(tmp_path, config):
    save_checkpoint(tmp_path / "a.npz", {"theta": np.zeros(3)}, config, {})
    with pytest.raises(CheckpointError, match="expected an initialisation"):
        load_initialisation(tmp_path / "a.npz")


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
    with pytest.raises(ValueError, match=r"expected one of .*omniglot-5w1s"):
        tm.pretrained("omniglot-7w1s")


@pytest.mark.parametrize("name", NAMES)
def test_pretrained_is_small_and_has_facts_about_its_training(name):
    assert (PARAMETERS / f"{name}.npz").stat().st_size < 1_000_000
    start = tm.pretrained(name)
    assert start.facts["data"] == "Omniglot"
    assert start.facts["command"].startswith("python examples/omniglot.py")
    assert start.facts["accuracy"] > 95


@pytest.mark.parametrize("name", NAMES)
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
@pytest.mark.parametrize("name", NAMES)
def test_pretrained_reaches_its_accuracy_on_the_test_characters(name):
    start = tm.pretrained(name)
    split = "background" if name.endswith("background") else "authors"
    images = omniglot.split(omniglot.load(), split)["test"]
    accuracy = 100 * accuracy_after(start, images, 200, start.recipe.test_steps)[-1]
    assert abs(accuracy - start.facts["accuracy"]) < 2  # 3 intervals of 200 tasks
