"""What the reference describes shows in its docstring how it is used, as a doctest."""

import doctest
import inspect
import pkgutil
import re
from operator import attrgetter
from typing import Any

import pytest

import tinymaml as tm
from tests.support.source_tree import ROOT

NAMED = re.compile(r"^\.\. auto(?:class|function|method):: (\S+)", re.MULTILINE)
NAMES = sorted(
    {
        name
        for page in (ROOT / "docs" / "reference").glob("*.md")
        for name in NAMED.findall(page.read_text(encoding="utf-8"))
    }
    | {f"tinymaml.{name}" for name in tm.__all__}
)
# What another name returns, or takes, is shown by the doctest of that name.
SHOWN_BY = {
    "tinymaml.MetaGradient": "tinymaml.MAML",
    "tinymaml.TrainResult": "tinymaml.train",
    "tinymaml.Function": "tinymaml.function",
    "tinymaml.Initialisation": "tinymaml.pretrained",
    "tinymaml.gradcheck.Errors": "tinymaml.gradcheck",
    "tinymaml.training.optim.Schedule": "tinymaml.training.optim.cosine",
    "tinymaml.training.optim.Optimiser": "tinymaml.Adam",
}
# A subclass defines these; docs/variants.md writes one. They need a tape.
OVERRIDDEN = re.compile(
    r"tinymaml\.(MAML\.record_\w+|variants\.Unrolled|learner\.TaskOnTape)"
)
# Doctests run in every environment, and these need a package that may be missing:
# tests/rl/ and tests/training/test_distributed.py use them where it is there.
NEEDS_A_PACKAGE = re.compile(
    r"tinymaml\.(rl\.(locomotion|gymnasium_adapter)|training\.distributed)\.[A-Z]\w+"
)


def resolve(name: str) -> Any:
    """What a name stands for: tinymaml.function is the function, not the module."""
    try:
        return attrgetter(name.removeprefix("tinymaml."))(tm)
    except AttributeError:
        return pkgutil.resolve_name(name)


def examples(name: str) -> list[doctest.Example]:
    """The examples in the docstring of a name."""
    text = inspect.getdoc(resolve(name)) or ""
    return doctest.DocTestParser().get_examples(text)


@pytest.mark.parametrize("name", NAMES)
def test_what_the_reference_describes_has_a_doctest(name: str) -> None:
    thing = resolve(name)
    if name == "tinymaml.RECIPES" or (
        inspect.isclass(thing) and issubclass(thing, Exception)
    ):
        return  # a table, and what is raised
    assert inspect.getdoc(thing), name
    if OVERRIDDEN.fullmatch(name) or NEEDS_A_PACKAGE.fullmatch(name):
        return
    shown = examples(SHOWN_BY.get(name, name))
    assert any(example.want for example in shown)


def test_the_lists_of_exceptions_are_needed() -> None:
    assert len(NAMES) > 100
    for name in NAMES:
        if name in SHOWN_BY or OVERRIDDEN.fullmatch(name):
            assert not examples(name), f"{name} has a doctest of its own"
