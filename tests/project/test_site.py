"""The documentation as a site: one reading order, and checks that find planted faults.

The pages themselves are built and checked by `.ci/run`, with docs/check_site.py.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import tinymaml

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
TOCTREE = re.compile(r"^```\{toctree\}\n((?::.*\n)*)\n((?:.+\n)*)```$", re.M)
PARTS = [
    "Start",
    "Tutorial",
    "Play",
    "The paper",
    "Derivations",
    "Line by line",
    "Results",
    "Questions",
    "Gallery",
    "Reference",
]


def load(name: str, path: Path) -> ModuleType:
    """Import a file that is in no package."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


check_site = load("check_site", DOCS / "check_site.py")


def reading_order() -> dict[str, list[str]]:
    """Return the pages of each part of the site, as the start page lists them."""
    parts = {}
    for options, names in TOCTREE.findall((DOCS / "index.md").read_text("utf-8")):
        caption = re.search(r":caption: (.*)", options)
        assert caption is not None, "every toctree of the start page has a caption"
        parts[caption[1]] = names.split()
    return parts


ORDER = [name for names in reading_order().values() for name in names]


def test_the_parts_of_the_site_are_in_order() -> None:
    assert [*reading_order()] == PARTS


def test_every_page_is_in_the_reading_order_once() -> None:
    pages = {
        path.relative_to(DOCS).with_suffix("").as_posix()
        for path in DOCS.rglob("*.md")
        if "_build" not in path.parts
    }
    assert sorted(ORDER) == sorted(pages - {"index"})


def test_only_the_start_page_orders_pages() -> None:
    for page in DOCS.rglob("*.md"):
        if page != DOCS / "index.md" and "_build" not in page.parts:
            assert "{toctree}" not in page.read_text("utf-8"), page


def test_cards_of_the_start_page_follow_the_reading_order() -> None:
    linked = re.findall(r"^:link: (\S+)$", (DOCS / "index.md").read_text("utf-8"), re.M)
    assert linked == [names[0] for names in reading_order().values()]


def test_readme_follows_the_reading_order() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    section = text.split("## Read in this order")[1].split("<!-- tree -->")[0]
    linked = re.findall(r"\]\(docs/([\w/-]+)\.md\)", section)
    linked = [name for name in linked if name != "index"]
    assert linked == [names[0] for names in reading_order().values()]


def test_reference_has_the_modules_in_the_order_of_the_readme() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    section = text.split("## Read in this order")[1].split("<!-- tree -->")[0]
    read = [
        path.removesuffix(".py").replace("/", ".")
        for path in re.findall(r"\]\((tinymaml/[\w/]+\.py)\)", section)
    ]
    pages = [name for name in ORDER if name.startswith("reference/")]
    reference: dict[str, None] = {}
    for page in pages:
        page_text = (DOCS / f"{page}.md").read_text("utf-8")
        for name in re.findall(r"^\.\. auto\w+:: (\S+)", page_text, re.M):
            thing = getattr(tinymaml, name.removeprefix("tinymaml."), None)
            reference[getattr(thing, "__module__", name)] = None
    expected = [name for name in dict.fromkeys(read) if name in reference]
    assert len(expected) > 4
    assert expected == [name for name in reference if name in read]


def test_reference_describes_every_public_name_once() -> None:
    text = "".join(
        (DOCS / f"{name}.md").read_text("utf-8")
        for name in ORDER
        if name.startswith("reference/")
    )
    described = re.findall(
        r"^\.\. (?:autofunction|autoclass|autoexception|data):: tinymaml\.(\w+)$",
        text,
        re.M,
    )
    assert sorted(described) == sorted(tinymaml.__all__)


def test_gallery_names_every_example_that_is_a_program() -> None:
    gallery = (DOCS / "gallery.md").read_text("utf-8")
    for path in sorted((ROOT / "examples").glob("*.py")):
        # commands.py only starts the others.
        is_program = "\nif __name__ ==" in path.read_text("utf-8")
        if is_program and path.name != "commands.py":
            assert f"examples/{path.name}" in gallery, path.name


def test_searches_that_are_checked_lead_to_pages() -> None:
    assert set(check_site.SEARCHES.values()) <= set(ORDER)


def test_citation_has_the_version_of_the_package() -> None:
    text = (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"\nversion: {tinymaml.__version__}\n" in text


# Planted faults. The page is right as it stands.
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Page</title>
<link rel="stylesheet" href="style.css"></head>
<body style="margin: 1em; font-size: 16px; color: #222; background: #fff"><article>
<h1 id="top">Page</h1>
<p><a href="#top">up</a> <a href="other/page.html#here">there</a>
<a href="https://example.com/">outside</a></p>
<img src="picture.svg" alt="A square." width="10" height="10">
<table class="docutils"><caption>Numbers</caption><tr><td>1</td></tr></table>
<div class="highlight"><pre style="overflow-x: auto">print(1)  # {role}`x`</pre></div>
</article></body></html>
"""
OTHER = '<!doctype html><title>O</title><p id="here"><a href="../index.html">back</a>'
PICTURE = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"/>'
STYLE = "p { background: url(picture.svg) }"


def write_page(folder: Path, name: str, old: str, new: str) -> None:
    """Write PAGE with one change."""
    assert old in PAGE
    (folder / name).write_text(PAGE.replace(old, new, 1), "utf-8")


def site(folder: Path, old: str = "", new: str = "") -> Path:
    """Write a site of two pages, with one change."""
    (folder / "other").mkdir()
    write_page(folder, "index.html", old, new)
    (folder / "other" / "page.html").write_text(OTHER, "utf-8")
    (folder / "picture.svg").write_text(PICTURE, "utf-8")
    (folder / "favicon.ico").write_bytes(b"")
    (folder / "style.css").write_text(STYLE, "utf-8")
    return folder


def test_a_right_site_has_no_faults(tmp_path: Path) -> None:
    assert list(check_site.link_faults(site(tmp_path))) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("other/page.html#here", "other/gone.html", "leads to no file"),
        ("#here", "#gone", "leads to no anchor"),
        ('"#top"', '"#gone"', "leads to no anchor"),
        ("picture.svg", "gone.svg", "leads to no file"),
        ('"style.css"', '"https://cdn.example.com/x.css"', "loads https://cdn"),
        (
            "</head>",
            "<script src='//cdn.example.com/x.js'></script>",
            "loads //",
        ),
        (' alt="A square."', "", "no alternative text"),
        ("<caption>Numbers</caption>", "", "without a caption"),
        ("up</a>", "{doc}`faq`</a>", "shows its markup"),
        ("up</a>", "$$ x $$</a>", "shows its markup"),
    ],
)
def test_a_fault_in_the_files_is_found(
    tmp_path: Path, old: str, new: str, fault: str
) -> None:
    (found,) = check_site.link_faults(site(tmp_path, old, new))
    assert fault in found


def test_a_figure_that_no_cell_drew_is_found(tmp_path: Path) -> None:
    sources, html = tmp_path / "docs", tmp_path / "html"
    sources.mkdir()
    html.mkdir()
    cell = "```{code-cell}\n---\nmystnb:\n  figure:\n    name: fig-here\n---\n```\n"
    (sources / "index.md").write_text(cell, "utf-8")
    (sources / "not-built.md").write_text(cell, "utf-8")
    site(html)
    (found,) = check_site.missing_figures(html, sources)
    assert found == "index.html: the figure fig-here is missing"
    page = PAGE.replace("<img ", '<img id="fig-here" ')
    (html / "index.html").write_text(page, "utf-8")
    assert list(check_site.missing_figures(html, sources)) == []


def test_a_style_sheet_that_loads_from_elsewhere_is_found(tmp_path: Path) -> None:
    folder = site(tmp_path)
    (folder / "style.css").write_text("@import url('https://fonts.example.com/a')")
    assert "loads https://fonts" in "".join(check_site.link_faults(folder))


def test_links_are_followed_below_the_root_of_the_site(tmp_path: Path) -> None:
    folder = site(tmp_path, '"#top"', '"/tinymaml/other/page.html#here"')
    assert list(check_site.link_faults(folder, "/tinymaml/")) == []
    assert len(list(check_site.link_faults(folder))) == 1


@pytest.fixture
def needs_browser() -> None:
    if reason := check_site.why_no_browser():
        pytest.skip(reason)


LONG = "x" * 300
ON_PHONES = """<p class="phone">Words</p><style>.phone { display: none }
@media (width < 500px) { .phone { display: block; font-size: 8px } }</style>"""


@pytest.mark.slow
@pytest.mark.usefixtures("needs_browser")
def test_a_browser_finds_planted_faults_and_no_others(tmp_path: Path) -> None:
    planted = [
        ("print(1)", LONG, "code is cut"),
        ("<td>1</td>", f"<td>{LONG}</td>", "a table is cut"),
        ("color: #222", "color: #888", "contrast 3.5"),
        ("font-size: 16px", "font-size: 11px", "text of 11 pixels"),
        ("</article>", f"{ON_PHONES}</article>", "at 390: text of 8 pixels"),
        ("</article>", "<script>gone()</script></article>", "gone is not defined"),
        (
            "</article>",
            "<script>fetch('https://example.com/x')</script></article>",
            "requests https://example.com/x",
        ),
        (
            "</article>",
            f"<div class='math-box' style='overflow: auto'>{LONG}</div></article>",
            "a formula is cut",
        ),
    ]
    folder = site(tmp_path)
    for number, (old, new, _) in enumerate(planted):
        write_page(folder, f"{number}.html", old, new)
    names = ["index.html", *(f"{number}.html" for number in range(len(planted)))]
    found = check_site.browser_faults(folder, names, None, {})
    assert not [line for line in found if line.startswith("index.html")]
    for number, (_, _, fault) in enumerate(planted):
        lines = [line for line in found if line.startswith(f"{number}.html")]
        assert any(fault in line for line in lines), (fault, found)
