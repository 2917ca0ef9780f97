"""Every tag has its code, its place in the docs and its test, and the other way.

See docs/_ext/tags.py for what a tag is.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tags import (
    ANCHOR,
    QUOTE,
    all_fenced,
    checking_tests,
    fenced_parts,
    functions_of_tests,
    page_marks,
)

FENCED = all_fenced()
TAGS = sorted(FENCED)
EQUATIONS = {
    "maml-inner-update",
    "maml-meta-objective",
    "maml-eq1",
    "maml-eq2",
    "maml-eq3",
}


def test_the_equations_of_the_paper_are_tagged() -> None:
    assert set(TAGS) >= EQUATIONS


@pytest.mark.parametrize("tag", TAGS)
def test_tag_is_fenced_once_and_holds_code(tag: str) -> None:
    (part,) = FENCED[tag]
    assert part.text.strip()


@pytest.mark.parametrize("tag", TAGS)
def test_tag_has_one_anchor_and_one_quotation(tag: str) -> None:
    assert len(page_marks(ANCHOR).get(tag, [])) == 1, f"docs/ needs one line ({tag})="
    assert len(page_marks(QUOTE).get(tag, [])) == 1, "docs/ must quote the tag once"


@pytest.mark.parametrize("tag", TAGS)
def test_tag_is_in_the_name_of_a_test(tag: str) -> None:
    name = f"test_{tag.replace('-', '_')}_..."
    assert checking_tests(tag), f"no test is called {name}"


def test_anchors_and_quotations_have_tags() -> None:
    anchors = {tag for tag in page_marks(ANCHOR) if not tag.startswith("sec-")}
    assert anchors <= set(TAGS)
    assert set(page_marks(QUOTE)) <= set(TAGS)


def test_no_two_tests_of_a_file_have_one_name() -> None:
    names = [(path, name) for path, name, _ in functions_of_tests()]
    assert not {name for name in names if names.count(name) > 1}


def test_inner_fences_are_left_out_of_the_outer_text(tmp_path: Path) -> None:
    path = tmp_path / "source.py"
    path.write_text(
        "    # [outer]\n    a\n    # [inner]\n    b\n    # [/inner]\n    # [/outer]\n"
    )
    inner, outer = fenced_parts(path)
    assert (inner.text, inner.first, inner.last) == ("b", 4, 4)
    assert (outer.text, outer.first, outer.last) == ("a\nb", 2, 5)


@pytest.mark.parametrize(
    "source",
    [
        "# [one]\n",
        "# [/one]\n",
        "# [one]\n# [two]\n# [/one]\n# [/two]\n",
        "# [one]\n# [/one]\n# [/one]\n",
    ],
)
def test_fences_that_do_not_match_are_refused(tmp_path: Path, source: str) -> None:
    path = tmp_path / "source.py"
    path.write_text(source)
    with pytest.raises(ValueError, match=r"source\.py:\d+: (opens|closes) \["):
        fenced_parts(path)


def test_tag_is_not_found_in_the_name_of_a_longer_one(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_x.py").write_text("def test_maml_eq10_holds(): ...\n")
    assert not checking_tests("maml-eq1", tmp_path)
    assert len(checking_tests("maml-eq10", tmp_path)) == 1
