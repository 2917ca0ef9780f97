"""What tests read in the pages of docs/: rows of tables, anchors, and boxes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
RULE = re.compile(r"\|(?:\s*:?-+:?\s*\|)+")
CELL = re.compile(r"(?<!\\)\|")
ANCHOR = re.compile(r"^\(([\w-]+)\)=$|^\s*:?name: ([\w-]+)$", re.MULTILINE)
BOX = re.compile(r"^```\{admonition\} (.+)\n((?::\w+:.*\n)*)", re.MULTILINE)


def pages() -> Iterator[Path]:
    """Yield the pages of the site."""
    for path in sorted(DOCS.rglob("*.md")):
        if "_build" not in path.parts:
            yield path


def rows_of(text: str) -> list[list[str]]:
    """Return the cells of the rows of all tables of a page, without their heads."""
    rows: list[list[str]] = []
    lines = text.splitlines()
    inside = False
    for line in lines:
        if RULE.fullmatch(line.strip()):
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside:
            rows.append([cell.strip() for cell in CELL.split(line.strip()[1:-1])])
    return rows


def anchors_of(text: str) -> set[str]:
    """Return the anchors of a page: of headings, boxes, figures and tables."""
    return {a or b for a, b in ANCHOR.findall(text)}


def anchors_of_all_pages() -> set[str]:
    """Return the anchors that a page may refer to."""
    return {name for path in pages() for name in anchors_of(path.read_text("utf-8"))}


def boxes_of(text: str) -> dict[str, str]:
    """Return the titles of a page's boxes that have a name, by this name."""
    boxes = {}
    for title, options in BOX.findall(text):
        if name := re.search(r"^:name: (.+)$", options, re.MULTILINE):
            boxes[name[1]] = title
    return boxes
