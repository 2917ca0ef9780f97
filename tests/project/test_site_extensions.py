"""The documentation's own Sphinx extensions: formulas, notebooks, links to source."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sphinx")
pytest.importorskip("math_core")
pytest.importorskip("jupytext")

from code_lines import line_element
from docutils import nodes
from mathml import pieces, split_tag, to_mathml
from notebooks import is_notebook, to_notebook
from source_files import find_object, find_source, lines_of_tests, source_files
from source_pages import ALWAYS
from tables import is_wide, longest_word
from tags import ROOT

import tinymaml


@pytest.mark.parametrize(
    ("latex", "expected"),
    [
        ("a = b", [["a ", "{}= b"]]),
        ("a = b + c", [["a ", "{}= b ", "{}+ c"]]),
        ("a = -b", [["a ", "{}= -b"]]),
        ("-a", [["-a"]]),
        ("(a = b)", [["(a = b)"]]),
        (r"\left( a = b \right)", [[r"\left( a = b \right)"]]),
        (r"x^{a = b}", [["x^{a = b}"]]),
        (r"x \in [0, 1)", [[r"x \in [0, 1)"]]),
        (r"a, \quad b", [[r"a, \quad"], [" b"]]),
        (r"a &= b \\ c &= d", [[r"a &= b \\ c &= d"]]),
    ],
)
def test_formula_breaks_outside_of_brackets(
    latex: str, expected: list[list[str]]
) -> None:
    assert pieces(latex) == expected


def test_formula_keeps_all_its_symbols_when_it_breaks() -> None:
    html = to_mathml(r"\theta_{j+1} = \theta_j - \alpha \nabla S(\theta_j)", True)
    symbols = re.sub(r"<[^>]*>", "", html)
    assert symbols == "θj+1=θj−α∇S(θj)"
    assert html.count("<math ") == 3
    assert r'alttext="\theta_{j+1}"' in html


def test_formula_in_several_lines_is_one() -> None:
    assert to_mathml(r"a &= b \\ c &= d", True).count("<math ") == 1


def test_formula_that_is_no_latex_is_refused() -> None:
    with pytest.raises(ValueError, match="nosuchcommand"):
        to_mathml(r"\nosuchcommand x", True)


def test_number_of_a_formula_is_taken_out_of_it() -> None:
    assert split_tag("a = b\n\\tag{1}") == ("a = b", "1")
    assert split_tag("a = b") == ("a = b", "")


def test_line_of_code_knows_its_indentation() -> None:
    line = line_element('    <span class="k">return</span> x\n')
    assert '<span class="line" style="--indent:4">' in line
    assert re.sub(r"<[^>]*>", "", line) == "    return x\n"


CHAPTER = """---
file_format: mystnb
kernelspec:
  name: python3
  display_name: Python 3
---

(sec-one)=
# One

See {doc}`the paper <../paper/section-2-2>` and {ref}`equation (1) <maml-eq1>`.

```{admonition} Deviation: none
:class: tip
Nothing differs from `maml.py`.
```

```{code-cell}
print(1 + 1)
```
"""


def test_chapter_becomes_a_notebook() -> None:
    notebook = to_notebook(CHAPTER)
    first, second = notebook.cells
    assert (first.cell_type, second.cell_type) == ("markdown", "code")
    assert first.source == (
        "# One\n\nSee the paper and equation (1).\n\n"
        "> **Deviation: none**\n>\n> Nothing differs from `maml.py`."
    )
    assert second.source == "print(1 + 1)"


def test_notebook_holds_the_code_of_a_tag() -> None:
    quoted = CHAPTER.replace(
        "print(1", "```\n\n```{tagged} maml-eq1\n```\n\n```{x}\n", 1
    )
    sources = [cell.source for cell in to_notebook(quoted).cells]
    assert any("```python" in text and "hvp(" in text for text in sources)


def test_only_pages_with_a_kernel_are_notebooks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(CHAPTER)
    assert is_notebook(page)
    page.write_text("---\nmyst: {}\n---\n\nkernelspec:\n")
    assert not is_notebook(page)


@pytest.mark.parametrize("folder", ["tinymaml", "examples", "benchmarks"])
def test_every_file_has_a_page(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        file = path.relative_to(ROOT).as_posix()
        assert file in source_files() and file.startswith(ALWAYS)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("tinymaml/maml.py", "tinymaml/maml.py"),
        ("autodiff/tape.py", "tinymaml/autodiff/tape.py"),
        ("tape.py", "tinymaml/autodiff/tape.py"),
        ("kernels.cu", "tinymaml/backends/cuda/kernels.cu"),
        ("tinymaml.autodiff.tape", "tinymaml/autodiff/tape.py"),
        ("tinymaml.autodiff", "tinymaml/autodiff/__init__.py"),
    ],
)
def test_name_in_prose_finds_its_file(name: str, file: str) -> None:
    assert find_source(name) == (file, 0)


@pytest.mark.parametrize("name", ["numpy.py.py", "backend.py", "x", "tinymaml.nothing"])
def test_name_that_is_no_file_or_several_is_not_linked(name: str) -> None:
    assert find_source(name) is None


def test_name_of_a_test_finds_its_line() -> None:
    file, line = lines_of_tests()["test_name_of_a_test_finds_its_line"]
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    assert "def test_name_of_a_test_finds_its_line" in lines[line - 1]
    assert find_source("test_name_of_a_test_finds_its_line") == (file, line)


def test_public_object_finds_its_line() -> None:
    found = find_object("tinymaml", "MAML.meta_gradient")
    assert found is not None and tinymaml.MAML.meta_gradient
    file, line = found
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    assert "def meta_gradient" in lines[line - 1]


def test_an_object_is_found_by_a_process_that_has_not_read_its_page() -> None:
    """Of several that build the site, one writes what all have read."""
    code = """
import sys
from source_files import find_object
from source_pages import module_of
for name in ("standin", "MiniImageNet.load"):
    module = module_of(f"tinymaml.tasks.miniimagenet.{name}")
    assert module == "tinymaml.tasks.miniimagenet", module
assert find_object(module, "standin")[0] == "tinymaml/tasks/miniimagenet.py"
assert module_of("nothing.of.ours") == ""
"""
    path = os.pathsep.join([str(ROOT / "docs" / "_ext"), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


@pytest.mark.parametrize(
    ("cells", "wide"),
    [
        (["MAML", "0.67", "0.38", "0.35"], False),
        (["MAML", "-40.41", "(3.86)", "(3.71)", "(3.76)", "38.51"], True),
        (["a few short words that can be put into lines", "and more of them"], False),
        (["learning_rate_of_the_inner_loop", "adaptation.trajectories"], True),
    ],
)
def test_row_that_has_no_room_on_a_phone_is_found(cells: list[str], wide: bool) -> None:
    row: list[nodes.Element] = [nodes.entry("", nodes.Text(text)) for text in cells]
    assert is_wide([row]) == wide


def test_formula_in_a_cell_counts_as_one_word() -> None:
    formula = nodes.math("", r"\theta_1 v_2 + \theta_2 v_1 = 1 + 4")
    assert longest_word(nodes.entry("", formula)) == len("x1v2+x2v1=1+4")
