"""The paper is covered: each of its items has a row, and each row leads somewhere.

The items are data, in paper_items.csv beside this file: sections, displayed equations,
lines of algorithms, figures and tables. The rows are the tables of
docs/paper/coverage.md.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from tests.support.pages import DOCS, anchors_of_all_pages, rows_of

PAGE = DOCS / "paper" / "coverage.md"
ITEMS = Path(__file__).with_name("paper_items.csv")
REFERENCE = re.compile(r"\{ref\}`[^`<]*<([\w-]+)>`")
DOCUMENT = re.compile(r"\{doc\}`(?:[^`<]*<([\w/.-]+)>|([\w/.-]+))`")
MISSING = "Not here: "


def items_of_the_paper() -> dict[str, str]:
    """Return what each item of the paper is, in the paper's order."""
    with ITEMS.open(encoding="utf-8", newline="") as file:
        return {row["item"]: row["what"] for row in csv.DictReader(file)}


def faults(text: str, folder: Path, anchors: set[str]) -> list[str]:
    """Return what is wrong with the rows of a page in this folder."""
    found = []
    for item, _, where in rows_of(text):
        pages = [a or b for a, b in DOCUMENT.findall(where)]
        names = REFERENCE.findall(where)
        found += [f"{item}: no anchor {name}" for name in names if name not in anchors]
        found += [
            f"{item}: no page {page}"
            for page in pages
            if not (folder / f"{page}.md").exists()
        ]
        reason = where.removeprefix(MISSING)
        if where.startswith(MISSING):
            if len(reason.split()) < 4:
                found.append(f"{item}: says in no sentence why it is missing")
        elif not pages and not names:
            found.append(f"{item}: leads nowhere")
    return found


def test_every_item_of_the_paper_has_its_row() -> None:
    rows = rows_of(PAGE.read_text(encoding="utf-8"))
    assert [(item, what) for item, what, _ in rows] == [*items_of_the_paper().items()]


def test_every_row_leads_to_a_place_that_exists() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert faults(text, PAGE.parent, anchors_of_all_pages()) == []


def test_the_list_of_items_is_the_papers() -> None:
    items = items_of_the_paper()
    for number, required, lines in ((1, 2, 9), (2, 2, 11), (3, 2, 11)):
        algorithm = [item for item in items if item.startswith(f"Algorithm {number},")]
        assert len(algorithm) == required + lines
    for kind, count in (("Equation (", 4), ("Figure ", 7), ("Table ", 5)):
        numbers = [item for item in items if item.startswith(kind)]
        assert len(numbers) == count


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("| A | a | {ref}`code <no-such-anchor>` |", "A: no anchor no-such-anchor"),
        ("| A | a | {doc}`section-9` |", "A: no page section-9"),
        ("| A | a | {doc}`here <section-9>` |", "A: no page section-9"),
        ("| A | a | somewhere |", "A: leads nowhere"),
        ("| A | a | Not here: later. |", "A: says in no sentence why it is missing"),
    ],
)
def test_a_row_that_leads_nowhere_is_found(row: str, fault: str) -> None:
    table = f"| item | what | where |\n|---|---|---|\n{row}\n"
    assert faults(table, PAGE.parent, anchors_of_all_pages()) == [fault]


def test_a_reason_may_stand_in_for_a_place() -> None:
    row = "| A | a | Not here: it needs a simulator. |"
    table = f"| item | what | where |\n|---|---|---|\n{row}\n"
    assert faults(table, PAGE.parent, set()) == []
