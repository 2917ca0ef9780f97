"""Lists of arguments and fields in the reference, made by docs/_ext/arguments.py."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

pytest.importorskip("sphinx")

import arguments
from argument_words import WORDS
from arguments import arguments_of, field_words, list_arguments, split_arguments

import tinymaml as tm

MODULES = [
    importlib.import_module(f"tinymaml.{name}")
    for name in (
        "maml learner losses gradcheck function autodiff.tape autodiff.derivatives"
        " autodiff.functions autodiff.convolution backends backends.numba.planner"
        " networks.layers networks.images multi_step_loss"
        " variants.context_vector variants.unrolled variants.anil variants.meta_sgd"
        " variants.step_rates variants.maml_plus_plus variants.inner_optimisers"
        " variants.reptile variants.implicit_maml variants.cavia variants.proto_maml"
        " variants.fine_tuning variants.nearest_neighbour"
        " tasks.batch"
        " tasks.sinusoid tasks.episodes tasks.images tasks.omniglot"
        " tasks.miniimagenet tasks.navigation training.console training.optim"
        " training.run training.train training.checkpoint training.distributed"
        " paper.recipes"
        " paper.initialisations rl.maml_trpo rl.policy rl.policy_losses rl.rollouts"
        " rl.advantages rl.trpo rl.locomotion rl.gymnasium_adapter"
    ).split()
]


def objects(key: str) -> list[Any]:
    """Return the objects that a key of the words may mean."""
    found = []
    for module in MODULES:
        thing: Any = module
        names = key.split(".")
        if module.__name__.endswith(f".{names[0]}") and len(names) > 1:
            names = names[1:]
        for name in names:
            thing = getattr(thing, name, None)
        if getattr(thing, "__module__", None) == module.__name__:
            found.append(thing)
    return found


@pytest.mark.parametrize("key", sorted(WORDS))
def test_words_are_for_arguments_that_exist(key: str) -> None:
    (thing,) = objects(key)
    extra = {"values", "options", "settings", "vectors", "shape"}
    assert set(WORDS[key]) <= {*arguments_of(thing), *extra}


def test_arguments_of_maml_are_a_list() -> None:
    lines = (tm.MAML.__doc__ or "").splitlines()
    lines = [line.removeprefix("    ") for line in lines]
    list_arguments(tm.MAML, lines)
    listed = [line for line in lines if line.startswith("    * **")]
    # backend and threads share a line.
    assert len(listed) == 10
    assert listed[0].startswith("    * **loss** – a function (theta, x, y)")
    assert any(line.startswith(">>>") for line in lines)


def test_arguments_in_one_paragraph_are_taken_apart() -> None:
    text = "First words. x, y: (N,); z: a number, such as x: none. order: 2 or 1."
    before, found = split_arguments(text, ["x", "y", "z", "order"])
    assert before == "First words."
    alpha = "alpha, the inner learning rate: one number or (P,)."
    assert split_arguments(alpha, ["alpha"]) == (
        "",
        [(["alpha"], "the inner learning rate: one number or (P,).")],
    )
    assert found == [
        (["x", "y"], "(N,)."),
        (["z"], "a number, such as x: none."),
        (["order"], "2 or 1."),
    ]


def test_a_field_has_the_comment_beside_it() -> None:
    assert field_words(tm.Parts, "norm_ratio") == "|first-order| / |exact|"
    assert field_words(tm.Tasks, "x_query").startswith("(T, N', ...)")


@pytest.mark.parametrize("name", sorted(tm.__all__))
def test_every_field_of_a_public_tuple_has_words(name: str) -> None:
    thing = getattr(tm, name)
    for field in getattr(thing, "_fields", ()):
        assert field_words(thing, field), field


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (__name__, f"{__name__}.function"),
        ("tinymaml.training.train", "tinymaml.train"),  # so the page calls it
    ],
)
def test_an_argument_without_words_is_reported(
    monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    def function(known: int, unknown: int) -> None:
        """Do it. known: a number."""

    reported: list[Any] = []
    monkeypatch.setattr(
        arguments.LOGGER, "warning", lambda *values: reported.append(values)
    )
    lines = [function.__doc__ or ""]
    function.__module__ = module
    arguments.describe(None, "function", name, function, {}, lines)  # type: ignore[arg-type]
    assert lines == ["Do it.", "", ":Arguments:", "    * **known** – a number.", ""]
    assert [values[2] for values in reported] == [["unknown"]]
