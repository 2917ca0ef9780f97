"""Initialisations: kept whole or refused; those in the package do what they say."""

import os
from pathlib import Path

import numpy as np
import pytest

import tinymaml as tm
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


def test_initialisation_comes_back_as_it_was_saved(tmp_path):
    recipe = tm.RECIPES["20w1s"].scaled("mean")
    theta = recipe.network().init(np.random.default_rng(0))
    save_initialisation(tmp_path / "a.npz", theta, recipe, {"data": "none", "n": 3})
    start = load_initialisation(tmp_path / "a.npz")
    assert start.theta.tobytes() == theta.tobytes() and start.theta.dtype == "float32"
    assert start.recipe == recipe and start.facts == {"data": "none", "n": 3}
    assert start.network.size == theta.size


def test_theta_of_another_network_is_refused(tmp_path):
    with pytest.raises(ValueError, match="theta: expected shape"):
        save_initialisation(
            tmp_path / "a.npz", np.zeros(3, "float32"), tm.RECIPES["5w1s"], {}
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("config", [{}, {"recipe": "5w1s"}, {"recipe": "x"}])
def test_another_checkpoint_is_refused(tmp_path, config):
    save_checkpoint(tmp_path / "a.npz", {"theta": np.zeros(3)}, config, {})
    with pytest.raises(CheckpointError, match="expected an initialisation"):
        load_initialisation(tmp_path / "a.npz")


def test_damaged_file_is_refused(tmp_path):
    recipe = tm.RECIPES["fc-5w1s"]
    theta = recipe.network().init(np.random.default_rng(0))
    save_initialisation(tmp_path / "a.npz", theta, recipe, {})
    whole = (tmp_path / "a.npz").read_bytes()
    for broken in (whole[:-100], whole[:5000] + b"\x01" + whole[5001:], b""):
        (tmp_path / "a.npz").write_bytes(broken)
        with pytest.raises(CheckpointError):
            load_initialisation(tmp_path / "a.npz")


def test_unknown_name_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match=r"expected one of .*omniglot-5w1s"):
        tm.pretrained("omniglot-7w1s")


@pytest.mark.parametrize("name", NAMES)
def test_pretrained_is_small_and_says_where_it_comes_from(name):
    assert (PARAMETERS / f"{name}.npz").stat().st_size < 1_000_000
    start = tm.pretrained(name)
    assert start.facts["data"] == "Omniglot"
    assert start.facts["command"].startswith("python examples/omniglot.py")
    assert start.facts["accuracy"] > 95


@pytest.mark.parametrize("name", NAMES)
def test_pretrained_learns_characters_of_another_kind_where_a_fresh_start_does_not(
    name,
):
    start = tm.pretrained(name)
    images = omniglot.split(omniglot.standin())["test"]
    fresh = start._replace(theta=start.network.init(np.random.default_rng(0)))
    steps = start.recipe.test_steps
    learned = accuracy_after(start, images, 60, steps)[-1]
    assert learned > accuracy_after(fresh, images, 60, steps)[-1] + 0.1
    assert learned > 0.9


@pytest.mark.slow
@pytest.mark.skipif(
    "TINYMAML_DATA" not in os.environ, reason="TINYMAML_DATA: no real Omniglot here"
)
@pytest.mark.parametrize("name", NAMES)
def test_pretrained_reaches_its_accuracy_on_characters_never_seen(name):
    start = tm.pretrained(name)
    split = "background" if name.endswith("background") else "authors"
    images = omniglot.split(omniglot.load(), split)["test"]
    reached = 100 * accuracy_after(start, images, 200, start.recipe.test_steps)[-1]
    assert abs(reached - start.facts["accuracy"]) < 2  # 3 intervals of 200 tasks
