"""One letter, one meaning: the formulas keep to the tables of docs/symbols.md.

The tables give each letter its meaning on all pages. The last table gives letters
another meaning, or their only one, on one page. A letter that no table has, a second
meaning without a row that says so, and a row that nothing uses are faults.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.support.formulas import INLINE, formulas, symbols
from tests.support.pages import DOCS, pages, rows_of

TABLE = DOCS / "symbols.md"
LEFT_OUT = {"symbols", "log"}  # the table itself, and history with its old letters
LOCAL = "(sec-local-symbols)="
PAGE = re.compile(r"\{doc\}`([\w/.-]+)`")
Local = dict[str, dict[str, str]]


def leading_symbols(cell: str) -> list[str]:
    """Return the symbol that each formula of a table's cell is about."""
    found = (next(symbols(formula), None) for formula in INLINE.findall(cell))
    return [symbol for symbol in found if symbol]


def global_symbols(table: str) -> list[str]:
    """Return the symbols that mean the same on all pages; there may be repetitions."""
    text = table.split(LOCAL)[0]
    return [symbol for row in rows_of(text) for symbol in leading_symbols(row[0])]


def local_symbols(table: str) -> Local:
    """Return for each page its own letters with their meaning."""
    found: Local = {}
    for page, letters, meaning in rows_of(table.split(LOCAL)[1]):
        (name,) = PAGE.findall(page)
        own = found.setdefault(name, {})
        for letter in leading_symbols(letters):
            assert letter not in own, f"{name}: {letter} has two rows"
            own[letter] = meaning
    return found


def covered(symbol: str, known: Iterable[str]) -> bool:
    """Tell whether a symbol is known; a row for x is also one for x with an index."""
    return symbol in known or symbol.removesuffix("_") in known


def faults(page: str, everywhere: set[str], own: dict[str, str]) -> list[str]:
    """Return what is wrong with the letters of one page."""
    used = {symbol for formula in formulas(page) for symbol in symbols(formula)}
    found = [
        f"{symbol} is in no table"
        for symbol in sorted(used)
        if not covered(symbol, everywhere) and not covered(symbol, own)
    ]
    letters = {symbol.removesuffix("_") for symbol in everywhere}
    for symbol, meaning in own.items():
        letter = symbol.removesuffix("_")
        forms = used & {letter, f"{letter}_"}
        if not forms:
            found.append(f"{symbol} has a row for this page, which does not use it")
        if letter in letters and " not " not in f" {meaning} ":
            found.append(f"{symbol} means something else elsewhere")
        if not all(covered(form, own) for form in forms):
            found.append(f"{symbol} has two meanings on this page")
    return found


GLOBAL = global_symbols(TABLE.read_text(encoding="utf-8"))
OWN = local_symbols(TABLE.read_text(encoding="utf-8"))
PAGES = {path.relative_to(DOCS).with_suffix("").as_posix(): path for path in pages()}


@pytest.mark.parametrize("name", sorted(PAGES.keys() - LEFT_OUT))
def test_every_letter_of_a_page_is_in_the_tables(name: str) -> None:
    text = PAGES[name].read_text(encoding="utf-8")
    assert faults(text, {*GLOBAL}, OWN.get(name, {})) == [], "see docs/symbols.md"


def test_no_letter_has_two_rows() -> None:
    assert sorted(GLOBAL) == sorted({*GLOBAL})


def test_every_row_of_a_page_names_a_page_that_exists() -> None:
    assert OWN.keys() <= PAGES.keys() - LEFT_OUT


def test_the_tables_are_read() -> None:
    assert {"K", "theta", "mathcal L", "H_", "v_", "A_", "mathcal R"} <= {*GLOBAL}
    assert "A" not in GLOBAL
    assert OWN["paper/section-2-1"]["H"].startswith("horizon")


@pytest.mark.parametrize(
    ("page", "own", "fault"),
    [
        ("$K$ shots of $Z$", {}, "Z is in no table"),
        ("$$\nK = \\xi\n$$", {}, "xi is in no table"),
        ("$\\mathcal Z_i$", {}, "mathcal Z_ is in no table"),
        ("$A$", {}, "A is in no table"),  # A_t has a row, A has none
        ("```{admonition} A\n:name: a\n\n$Z$\n```\n", {}, "Z is in no table"),
        ("```python\n1\n```\n$Z$", {}, "Z is in no table"),
        ("$K$", {"K": "clusters"}, "K means something else elsewhere"),
        ("$K$", {"Z": "a"}, "Z has a row for this page, which does not use it"),
        ("$A A_t$", {"A": "a, not b", "A_": "c, not d"}, None),
        ("$H_j$, $H$", {"H_": "a, not b"}, "H_ has two meanings on this page"),
    ],
)
def test_a_letter_with_a_wrong_meaning_is_found(
    page: str, own: dict[str, str], fault: str | None
) -> None:
    assert faults(page, {*GLOBAL}, own) == ([fault] if fault else [])


@pytest.mark.parametrize(
    "page",
    [
        "$\\theta'_i = \\theta - \\alpha \\nabla\\mathcal L_{\\mathcal T_i}(f_\\phi)$",
        "$H_j v_{j+1}$ and $\\operatorname{diag}\\alpha$ and $F'v$",
        "`$Z$` is code",
        "```python\nprice = '$Z$'\n```\n",
        "---\ntitle: $Z$\n---\n\n# Page\n",
    ],
)
def test_letters_of_the_tables_are_accepted(page: str) -> None:
    assert faults(page, {*GLOBAL}, {}) == []


def test_two_rows_for_one_letter_of_a_page_are_refused(tmp_path: Path) -> None:
    row = "| {doc}`gpu` | $o$ | offset |\n"
    table = f"{LOCAL}\n| page | letters | meaning |\n|---|---|---|\n{row}{row}"
    with pytest.raises(AssertionError, match="two rows"):
        local_symbols(table)
