"""The documentation's code runs and prints what the pages say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.markdown_blocks import agrees, python_blocks, run_page

DOCS = Path(__file__).resolve().parents[2] / "docs"
ALL_PAGES = [page for page in sorted(DOCS.rglob("*.md")) if "_build" not in page.parts]
PAGES = [page for page in ALL_PAGES if any(python_blocks(page))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_page_prints_the_numbers_it_shows(page: Path) -> None:
    run_page(page)


@pytest.mark.parametrize("name", ["hessian-vector-product", "maml-recursion"])
def test_derivation_has_numbers_that_are_checked(name: str) -> None:
    assert run_page(DOCS / "derivations" / f"{name}.md") >= 5


@pytest.mark.parametrize(
    ("promised", "printed"),
    [
        ("0.67", "0.69"),
        ("0.67", "-0.67"),
        ("3 tasks", "4 tasks"),
        ("3 tasks", "3 steps"),
        ("1 2", "1"),
        ("2", "2.4"),
        ("1.0", "nan"),
    ],
)
def test_wrong_number_is_rejected(promised: str, printed: str) -> None:
    assert not agrees(promised, printed)


@pytest.mark.parametrize(
    ("promised", "printed"),
    [("0.67", "0.6712"), ("[1. 2.]", "[1.  2. ]"), ("1e-9", "1e-9"), ("none", "none")],
)
def test_right_number_is_accepted(promised: str, printed: str) -> None:
    assert agrees(promised, printed)


def test_page_that_prints_another_number_fails(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("text\n\n```python\nprint(1 + 1)  # -> 3\n```\n")
    with pytest.raises(AssertionError, match="'3' but '2'"):
        run_page(page)


@pytest.mark.parametrize(
    ("package", "compared"), [("no_such_package", 1), ("numpy", 2)]
)
def test_block_is_left_out_only_where_its_package_is_missing(
    tmp_path: Path, package: str, compared: int
) -> None:
    page = tmp_path / "page.md"
    needy = f"```python\n# needs {package}\nimport {package}\nprint(1)  # -> 1\n```\n"
    page.write_text(f"{needy}\n```python\nprint(2)  # -> 2\n```\n")
    assert run_page(page) == compared


def test_block_is_left_out_where_its_data_are_not(tmp_path, monkeypatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\n# needs TINYMAML_DATA\nprint(1)  # -> 1\n```\n")
    for folder, compared in (("", 0), (str(tmp_path), 1)):
        monkeypatch.setenv("TINYMAML_DATA", folder)
        assert run_page(page) == compared
    monkeypatch.delenv("TINYMAML_DATA")
    assert run_page(page) == 0


def test_page_that_prints_nothing_fails(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 3  # -> 3\n```\n")
    with pytest.raises(AssertionError, match="promises 1"):
        run_page(page)
