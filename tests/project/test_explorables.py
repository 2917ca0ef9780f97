"""The pages to play with: their numbers are tinymaml's, to 1e-5 of their size.

The models run in Node on the data that the site's build writes, and are compared with
tinymaml in float64, on the numpy backend. docs/check_explorables.py uses the pages in a
browser.
"""

from pathlib import Path

import pytest

from tests.support.explorables import SCRIPTS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
COMMON = {"tools", "kit", "explorable"}
NAMES = sorted({path.stem for path in SCRIPTS.glob("*.js")} - COMMON)


# --- the pages ------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_explorable_has_a_page_data_a_figure_and_a_check(name: str) -> None:
    page = (DOCS / "explorables" / f"{name}.md").read_text("utf-8")
    assert f"{{explorable}} {name}\n" in page
    assert (DOCS / "explorables" / f"{name.replace('-', '_')}.py").exists()
    assert f"_static/figures/explorable-{name}.png" in page
    checks = (DOCS / "check_explorables.py").read_text("utf-8")
    assert f'"{name}": check_{name.replace("-", "_")},' in checks


# --- walk back ------------------------------------------------------------------------


# --- same points, four starts ---------------------------------------------------------


# --- draw five characters -------------------------------------------------------------


# --- find the goal --------------------------------------------------------------------
