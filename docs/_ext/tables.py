"""A table that is too wide for a phone becomes, there, one block for each row.

The first cell of a row is the block's title; every other cell stands below it, with the
heading of its column in front. On a wide screen these headings are hidden.
"""

from __future__ import annotations

import re

from docutils import nodes
from sphinx.application import Sphinx

PHONE = 36  # characters of text that a row has room for
PADDING = 2  # of a cell, in characters
COMMAND = re.compile(r"\\[A-Za-z]+")
LAYOUT = re.compile(r"[{}^_&\s]|\\[,;!]")


def longest_word(cell: nodes.Element) -> int:
    """Return the length of the longest word or formula of a cell; neither is broken."""
    words = cell.astext().replace("/", " ").split()
    for formula in cell.findall(nodes.math):
        symbols = LAYOUT.sub("", COMMAND.sub("x", formula.astext()))
        words = [word for word in words if word not in formula.astext().split()]
        words.append(symbols)
    return max(map(len, words), default=0)


def is_wide(rows: list[list[nodes.Element]]) -> bool:
    """Tell whether a row has no room on a phone."""
    columns = zip(*rows, strict=False)
    widths = [max(map(longest_word, column)) + PADDING for column in columns]
    return sum(widths) > PHONE


def add_labels(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put the heading of its column in front of every cell of a wide table."""
    if app.builder.format != "html":
        return
    for table in doctree.findall(nodes.table):
        rows = [list(row.children) for row in table.findall(nodes.row)]
        if not list(table.findall(nodes.thead)) or not is_wide(rows):
            continue
        table["classes"].append("stacks")
        headings, *body = rows
        for row in body:
            for heading, cell in zip(headings[1:], row[1:], strict=False):
                if heading.astext().strip() and cell.astext().strip():
                    content = [child.deepcopy() for child in heading[0].children]
                    label = nodes.inline("", "", *content, classes=["cell-label"])
                    cell.insert(0, nodes.container("", label, classes=["cell-head"]))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the transformation; Sphinx calls this."""
    app.connect("doctree-resolved", add_labels)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
