"""Arguments as lists, fields of tuples with their comments: for the reference.

The docstrings of tinymaml are plain English. Arguments stand in them as
``loss: a function. alpha: a number.``, one after the other. On the pages they are a
list, which this extension makes for every documented function, method and class. Words
for arguments that a docstring leaves to its first line are in ``argument_words.py``.

The fields of a NamedTuple are described by the comments beside them in the source.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from textwrap import dedent
from typing import Any

from argument_words import REMARKS, WORDS
from sphinx.application import Sphinx
from sphinx.util.logging import getLogger

import tinymaml.variants

LOGGER = getLogger(__name__)
HIDDEN = {"self", "cls", "args", "kwargs"}
# Arguments that a variant passes on to `MAML`; its docstring says so once.
SETTINGS = {*inspect.signature(tinymaml.MAML).parameters, "options", "settings", "rest"}


def arguments_of(thing: Any) -> list[str]:
    """Return the names of the arguments of a function or of a class's constructor."""
    try:
        names = list(inspect.signature(thing).parameters)
    except (TypeError, ValueError):
        return []
    return [name for name in names if name not in HIDDEN]


def words_for(thing: Any) -> dict[str, str]:
    """Return the further words for an object, by argument or field."""
    if not hasattr(thing, "__qualname__"):
        return {}
    name = f"{thing.__module__}.{thing.__qualname__}"
    for key, words in WORDS.items():
        if name == key or name.endswith(f".{key}"):
            return words
    return {}


def split_arguments(
    text: str, names: list[str]
) -> tuple[str, list[tuple[list[str], str]]]:
    """Divide a paragraph into what stands before its arguments, and the arguments.

    >>> split_arguments("One. x, y: (N,). order: 2 or 1.", ["x", "y", "order"])
    ('One.', [(['x', 'y'], '(N,).'), (['order'], '2 or 1.')])
    """
    name = rf"(?:{'|'.join(map(re.escape, names))})"
    starts = list(
        re.finditer(rf"(?:^|(?<=[.;:,] ))({name}(?:, {name})*)(, the [^.:]*)?: ", text)
    )
    if not names or not starts:
        return text, []
    ends = [match.start() for match in starts[1:]] + [len(text)]
    found = []
    for match, end in zip(starts, ends, strict=True):
        words = re.sub(r"[;,]$", ".", text[match.end() : end].strip())
        if match[2]:  # "alpha, the inner learning rate: a number."
            words = f"{match[2].removeprefix(', ')}: {words}"
        found.append((match[1].split(", "), words))
    return text[: starts[0].start()].strip(), found


def split_remark(words: str) -> tuple[str, str]:
    """Divide the words of a paragraph's last argument from remarks on something else.

    >>> split_remark("(N,). Returns a number.")
    ('(N,).', 'Returns a number.')
    """
    starts = [words.find(f". {remark}") for remark in REMARKS]
    cut = min([start for start in starts if start >= 0], default=None)
    return (words, "") if cut is None else (words[: cut + 1], words[cut + 2 :])


def list_arguments(thing: Any, lines: list[str]) -> None:
    """Replace the paragraphs of a docstring that name arguments by one list.

    The list stands where the first of these paragraphs was, or before the first
    example. A docstring with a section "Args:" has a list already.
    """
    names = arguments_of(thing)
    if isinstance(thing, type) and issubclass(thing, tuple):
        return
    own = any(line.strip() in ("Args:", "Attributes:") for line in lines)
    if own:
        add_to_section(lines, words_for(thing), names)
        return
    listed: list[tuple[list[str], str]] = []
    place = None
    paragraphs: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            paragraphs[-1].append(line)
        elif paragraphs[-1]:
            paragraphs.append([])
    kept: list[list[str]] = []
    for paragraph in filter(None, paragraphs):
        head = paragraph[0]
        if not head.startswith((">>>", " ", "..")):
            text = " ".join(line.strip() for line in paragraph)
            before, found = split_arguments(text, names)
            if found:
                words, after = split_remark(found[-1][1])
                listed += [*found[:-1], (found[-1][0], words)]
                if before:
                    kept.append([before])
                place = len(kept) if place is None else place
                if after:
                    kept.append([after])
                continue
        kept.append(paragraph)
    named = {name for group, _ in listed for name in group}
    for name, words in words_for(thing).items():
        if name in names and name not in named:
            listed.append(([name], words))
    if not listed:
        return
    order = {name: number for number, name in enumerate(names)}
    listed.sort(key=lambda entry: order[entry[0][0]])
    if place is None:
        examples = [i for i, part in enumerate(kept) if part[0].startswith(">>>")]
        place = min([1, *examples], default=1) if kept else 0
    items = [":Arguments:"]
    for group, words in listed:
        items.append(f"    * **{', '.join(group)}** – {words}")
    kept.insert(place, items)
    lines[:] = [line for paragraph in kept for line in [*paragraph, ""]]


def add_to_section(lines: list[str], words: dict[str, str], names: list[str]) -> None:
    """Add further words to a docstring's own section of arguments."""
    further = [f"{name}: {text}" for name, text in words.items() if name in names]
    heads = [i for i, line in enumerate(lines) if line.strip() == "Args:"]
    if heads and further:
        lines[heads[0] + 1 : heads[0] + 1] = [f"    {added}" for added in further]
    elif further:
        lines += ["", "Args:", *(f"    {added}" for added in further), ""]


def field_words(cls: type, field: str) -> str:
    """Return the comment beside a field of a NamedTuple, or the further words for it.

    The comment ends the line of the field.
    """
    source = inspect.getsource(cls).splitlines()
    (node,) = ast.parse(dedent("\n".join(source))).body
    assert isinstance(node, ast.ClassDef)
    for statement in node.body:
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and statement.target.id == field
        ):
            comment = source[statement.lineno - 1].partition("  # ")[2]
            if comment:
                return comment
    return words_for(cls).get(field, "")


def keep_blocks(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]
) -> None:
    """Let an indented block behind a line with a colon be shown as it is written.

    In reStructuredText it would be a quotation, and its lines would run together.
    """
    for i in range(len(lines) - 2):
        line, blank, block = lines[i : i + 3]
        if (
            line.endswith(":")
            and not line.endswith("::")
            and not blank.strip()
            and len(block) - len(block.lstrip()) > len(line) - len(line.lstrip())
        ):
            lines[i] += ":"


def is_public(name: str) -> bool:
    """Say whether the package or `tinymaml.variants` exports a name, or its class."""
    words = name.split(".")
    if words[:2] == ["tinymaml", "variants"]:
        return len(words) > 2 and hasattr(tinymaml.variants, words[2])
    return words[0] == "tinymaml" and words[1] in tinymaml.__all__


def describe(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]
) -> None:
    """Make lists of arguments; Sphinx calls this after `|` and `*` have been escaped.

    An argument without words is a warning, which makes the build fail.
    """
    if what not in ("class", "exception", "function", "method"):
        return
    list_arguments(thing, lines)
    own = name.startswith(getattr(thing, "__module__", "")) or is_public(name)
    fields = isinstance(thing, type) and issubclass(thing, tuple)
    text = "\n".join(lines)
    variant = name.startswith("tinymaml.variants.")
    missing = [
        argument
        for argument in arguments_of(thing)
        if not (variant and argument in SETTINGS)
        if not re.search(rf"(\*|, |^\s*){argument}(, \w+)*(\*|: )", text, re.M)
    ]
    if missing and own and not fields:
        LOGGER.warning("%s: no words for the arguments %s", name, missing)


def describe_field(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]
) -> None:
    """Give the field of a NamedTuple its comment; Sphinx calls this after napoleon,
    which would take what stands before a colon for a type.
    """
    if type(thing).__name__ == "_tuplegetter":
        owner, _, field = name.rpartition(".")
        module, _, cls = owner.rpartition(".")
        text = field_words(getattr(sys.modules[module], cls), field)
        lines[:] = [re.sub(r"([|*])", r"\\\1", text), ""]
        if not text:
            LOGGER.warning("%s: a field without words", name)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the rewriting; napoleon's priority is 500."""
    app.connect("autodoc-process-docstring", keep_blocks, priority=350)
    app.connect("autodoc-process-docstring", describe, priority=450)
    app.connect("autodoc-process-docstring", describe_field, priority=600)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
