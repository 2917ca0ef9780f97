"""Each row of docs/deviations.md leads to its box, and each box has its row."""

from __future__ import annotations

import re

import pytest

from tests.support.pages import BOX, DOCS, boxes_of, pages, rows_of

TABLES = DOCS / "deviations.md"
BOX_LINK = re.compile(r"\{ref\}`[^`<]+<(dev-[\w-]+)>`")
PAGE_LINK = re.compile(r"\{doc\}`[^`<]+<([\w/.-]+)>`")
NO_BOX = "no deviation"
# The experiments' pages may gather several rows in one box, which needs no name.
EXPERIMENTS = ("paper/section-5-1", "paper/section-5-2", "paper/section-5-3")

ALL_BOXES = [name for path in pages() for name in boxes_of(path.read_text("utf-8"))]


def faults(text: str, boxes: list[str]) -> list[str]:
    """Return the rows that lead to no box, and the boxes to which no row leads."""
    found, linked = [], set()
    for number, table in enumerate(text.split("\n## ")[1:]):
        for what, *_, where in rows_of(table):
            names, targets = BOX_LINK.findall(where), PAGE_LINK.findall(where)
            linked.update(names)
            found += [f"{what}: no box {name}" for name in names if name not in boxes]
            experiment = number > 0 and (where == NO_BOX or {*targets} & {*EXPERIMENTS})
            if not names and not experiment:
                found.append(f"{what}: leads to no box")
    return found + [f"{name}: no row" for name in boxes if name not in linked]


def test_every_row_leads_to_its_box_and_every_box_has_a_row() -> None:
    assert faults(TABLES.read_text(encoding="utf-8"), ALL_BOXES) == []


def test_no_two_boxes_have_one_name() -> None:
    assert sorted(ALL_BOXES) == sorted({*ALL_BOXES})


@pytest.mark.parametrize("name", ["2-1", "2-2", "3-1", "3-2", "4", "6", "appendix"])
def test_every_deviation_of_the_general_sections_has_a_name(name: str) -> None:
    page = DOCS / "paper" / (name if name == "appendix" else f"section-{name}")
    text = page.with_suffix(".md").read_text(encoding="utf-8")
    boxes = [box for box in BOX.findall(text) if box[0].startswith("Deviation")]
    assert len(boxes) == text.count("{admonition} Deviation")
    for title, options in boxes:
        assert ":name: dev-" in options, f"{name}: {title}"


def test_the_page_of_an_experiment_has_a_box() -> None:
    for page in EXPERIMENTS:
        boxes = BOX.findall((DOCS / f"{page}.md").read_text(encoding="utf-8"))
        assert any(title.startswith("Deviation") for title, _ in boxes), page


@pytest.mark.parametrize(
    ("where", "fault"),
    [
        ("{ref}`box <dev-gone>`", "a: no box dev-gone"),
        ("{doc}`section 5.1 <paper/section-5-1>`", "a: leads to no box"),
        ("no deviation", "a: leads to no box"),
        ("somewhere", "a: leads to no box"),
    ],
)
def test_a_row_of_the_first_table_without_a_box_is_found(
    where: str, fault: str
) -> None:
    table = f"# D\n\n## All\n\n| what | box |\n|---|---|\n| a | {where} |\n"
    assert faults(table, []) == [fault]


def test_a_box_without_a_row_is_found() -> None:
    assert faults("# D\n", ["dev-lost"]) == ["dev-lost: no row"]
