"""Every public name shows in its docstring how it is used, as a doctest."""

import doctest

import pytest

import tinymaml as tm

# What another name returns is shown by the doctest of that name.
RETURNED_BY = {
    "MetaGradient": "MAML",
    "TrainResult": "train",
    "Function": "function",
    "Initialisation": "pretrained",
}


def examples(name: str) -> list[doctest.Example]:
    """The examples in the docstring of a public name."""
    return doctest.DocTestParser().get_examples(getattr(tm, name).__doc__ or "")


@pytest.mark.parametrize("name", sorted(tm.__all__))
def test_every_public_name_has_a_doctest(name: str) -> None:
    thing = getattr(tm, name)
    if isinstance(thing, type) and issubclass(thing, Exception):
        assert thing.__doc__, "what it means; the doctest is of what raises it"
    elif name in RETURNED_BY:
        assert f"{RETURNED_BY[name]}(" in "".join(
            example.source for example in examples(RETURNED_BY[name])
        )
    elif isinstance(thing, dict):
        assert name == "RECIPES", "a table has no docstring of its own"
    else:
        assert any(example.want for example in examples(name))
