"""The README's code runs and prints what it says; its commands and its tree exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.markdown_blocks import run_page

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
TREE = re.compile(r"^<!-- tree -->\n```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def tree_paths(text: str) -> list[Path]:
    """Return the paths named in the README's tree: one a line, first word, indented."""
    tree = TREE.search(text)
    assert tree is not None, "README.md has no ```text block below <!-- tree -->"
    paths = []
    parents: list[tuple[int, Path]] = []
    for line in tree[1].splitlines():
        if not line.strip():
            continue
        indent = len(line) - len(line.lstrip())
        while parents and parents[-1][0] >= indent:
            parents.pop()
        path = (parents[-1][1] if parents else ROOT) / line.split()[0]
        parents.append((indent, path))
        paths.append(path)
    return paths


def test_readme_prints_the_numbers_it_shows() -> None:
    # Trained in float32: the last digits may depend on the processor.
    assert run_page(README, relative=0.02) >= 2


def test_readme_tree_names_what_exists() -> None:
    paths = tree_paths(README.read_text(encoding="utf-8"))
    assert paths
    assert [path for path in paths if not path.exists()] == []


@pytest.mark.parametrize("folder", ["tinymaml", "examples", "benchmarks"])
def test_readme_tree_names_every_file(folder: str) -> None:
    named = {*tree_paths(README.read_text(encoding="utf-8"))}
    files = {p for p in (ROOT / folder).rglob("*.py") if p.name != "__init__.py"}
    assert sorted(str(path.relative_to(ROOT)) for path in files - named) == []


@pytest.mark.parametrize("name", ["sinusoid", "tests"])
def test_readme_command_is_one_line_of_shell(name: str) -> None:
    text = README.read_text(encoding="utf-8")
    block = rf"^<!-- run: {name} -->\n+```bash\n([^\n]+)\n```$"
    assert len(re.findall(block, text, re.MULTILINE)) == 1


def test_tree_is_read_with_its_folders() -> None:
    tree = "a/\n    b.py   words\n    c/\n        d.py\ne.md\n"
    text = f"<!-- tree -->\n```text\n{tree}```\n"
    names = [str(path.relative_to(ROOT)) for path in tree_paths(text)]
    assert names == ["a", "a/b.py", "a/c", "a/c/d.py", "e.md"]
