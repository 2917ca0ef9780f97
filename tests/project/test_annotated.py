"""The line-by-line notes show every line of the heart once."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from tags import FENCE, ROOT, all_fenced, excerpt_lines

PAGES = sorted((ROOT / "docs" / "annotated").glob("*.md"))
EXCERPT = re.compile(
    r'^```\{excerpt\} (\S+)\n:from: "?(.*?)"?\n:to: "?(.*?)"?\n```$', re.MULTILINE
)
ITEM = re.compile(r"^:::\{grid-item\}\n(.*?)^:::$", re.MULTILINE | re.DOTALL)
HEART = [
    "maml-inner-update",
    "maml-eq1",
    "autodiff-grad",
    "autodiff-jvp",
    "autodiff-hvp",
]


def docstring_lines(path: Path) -> set[int]:
    """Return the numbers of all lines of docstrings."""
    found: set[int] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node):
            text = node.body[0]
            found.update(range(text.lineno, (text.end_lineno or 0) + 1))
    return found


@pytest.mark.parametrize("tag", HEART)
def test_every_line_of_the_heart_has_a_note(tag: str) -> None:
    (part,) = all_fenced()[tag]
    lines = part.path.read_text(encoding="utf-8").splitlines()
    shown: list[int] = []
    for page in PAGES:
        for other, start, end in EXCERPT.findall(page.read_text(encoding="utf-8")):
            if other == tag:
                _, first, last = excerpt_lines(tag, start.strip(), end.strip())
                shown += range(first, last + 1)
    assert len(shown) == len(set(shown)), "a line is shown twice"
    skipped = docstring_lines(part.path)
    for number in range(part.first, part.last + 1):
        line = lines[number - 1]
        if line.strip() and not FENCE.match(line) and number not in skipped:
            assert number in shown, f"{part.path.name}:{number}: {line}"


def test_excerpts_quote_tags_in_the_form_that_is_read_here() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert len(EXCERPT.findall(text)) == text.count("{excerpt}") > 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_excerpt_has_words_beside_it(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    items = ITEM.findall(text)
    notes, code = items[::2], items[1::2]
    assert len(notes) == len(code) > 0
    assert sum(one.count("{excerpt}") for one in code) == text.count("{excerpt}")
    for note in notes:
        assert "{excerpt}" not in note and len(note.split()) > 3, note


@pytest.mark.parametrize(
    ("tag", "start", "end", "reason"),
    [
        ("no-such-tag", "", "", "0 times"),
        ("maml-eq1", "no such line", "", "0 lines"),
        ("maml-eq1", "v = grad", "objective = ", "0 lines"),
        ("autodiff-grad", "def ", "", "2 lines"),
    ],
)
def test_an_excerpt_that_is_not_there_is_refused(
    tag: str, start: str, end: str, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        excerpt_lines(tag, start, end)


def test_a_downloaded_notebook_has_the_code_of_an_excerpt() -> None:
    pytest.importorskip("jupytext")
    from notebooks import to_notebook

    page = (
        "# Page\n\n::::{grid} 1 1 2 2\n:gutter: 3\n\n:::{grid-item}\nA note.\n:::\n\n"
        ":::{grid-item}\n```{excerpt} maml-inner-update\n"
        ':from: "# One step of"\n:to: thetas.append\n```\n:::\n::::\n'
    )
    (cell,) = to_notebook(page).cells
    assert "grid" not in cell.source.lower() and ":::" not in cell.source
    assert "A note.\n\n```python\n# One step of" in cell.source.replace(
        "\n\n\n", "\n\n"
    )
    assert "thetas.append(theta_j" in cell.source
