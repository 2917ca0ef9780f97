"""Find tagged code: the lines between ``# [maml-eq1]`` and ``# [/maml-eq1]``.

A tag is how an equation, or a line of an algorithm, finds its code. The same id is

- a fence in the source, opened once and closed once,
- an anchor in the documentation, ``(maml-eq1)=``,
- a quotation there, by the directive ``tagged``, and
- part of the name of a test, ``test_maml_eq1_is_...``.

Anchors in docs/ that stand for no tag begin with ``sec-``.

This file reads text and needs nothing but the standard library, so that the tests can
use it without Sphinx. ``tagged_source.py`` beside it makes the directive.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).resolve().parents[2]
SOURCE_FOLDERS = ("tinymaml", "examples")

FENCE = re.compile(r"^\s*# \[(?P<end>/?)(?P<tag>[a-z0-9-]+)\]$")
ANCHOR = re.compile(r"^\((?P<tag>[a-z0-9-]+)\)=$")
QUOTE = re.compile(r"^\s*[`:]{3,}\{tagged\}\s+(?P<tag>\S+)\s*$")


@dataclass(frozen=True)
class Fenced:
    """The code of one tag: its file, its first and last line (from 1), and its text."""

    tag: str
    path: Path
    first: int
    last: int
    text: str


def fenced_parts(path: Path) -> list[Fenced]:
    """Return the tagged parts of one source file, in the order in which they close.

    Parts may nest. The fences of inner parts are left out of the text of outer ones.

    Raises:
        ValueError: a fence is closed that is not the innermost open one, or stays open.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    open_fences: list[tuple[str, int]] = []
    parts = []
    for number, line in enumerate(lines, start=1):
        fence = FENCE.match(line)
        if fence is None:
            continue
        tag = fence["tag"]
        if not fence["end"]:
            open_fences.append((tag, number))
            continue
        if not open_fences or open_fences[-1][0] != tag:
            raise ValueError(f"{path}:{number}: closes [{tag}], which is not open here")
        start = open_fences.pop()[1]
        inside = [text for text in lines[start : number - 1] if not FENCE.match(text)]
        text = dedent("\n".join(inside)).strip("\n")
        parts.append(Fenced(tag, path, start + 1, number - 1, text))
    if open_fences:
        tag, number = open_fences[-1]
        raise ValueError(f"{path}:{number}: opens [{tag}] and never closes it")
    return parts


def all_fenced(root: Path = ROOT) -> dict[str, list[Fenced]]:
    """Return every tagged part below the source folders, by tag."""
    found: dict[str, list[Fenced]] = {}
    for folder in SOURCE_FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            for part in fenced_parts(path):
                found.setdefault(part.tag, []).append(part)
    return found


def excerpt_lines(
    tag: str, start: str = "", end: str = "", root: Path = ROOT
) -> tuple[Fenced, int, int]:
    """Return a tagged part and the first and last line (from 1) of an excerpt of it.

    start, end: how these lines begin, after their indentation; "" is the first and the
    last line of the part.

    Raises:
        ValueError: there is no such tag, or no such line, or there are several.
    """
    parts = all_fenced(root).get(tag, [])
    if len(parts) != 1:
        raise ValueError(f"the tag [{tag}] is in the source {len(parts)} times")
    part = parts[0]
    lines = part.path.read_text(encoding="utf-8").splitlines()

    def find(text: str, numbers: range) -> int:
        found = [n for n in numbers if lines[n - 1].strip().startswith(text)]
        if len(found) != 1:
            raise ValueError(f"[{tag}] has {len(found)} lines that begin with {text!r}")
        return found[0]

    first = find(start, range(part.first, part.last + 1)) if start else part.first
    last = find(end, range(first, part.last + 1)) if end else part.last
    return part, first, last


def page_marks(pattern: re.Pattern[str], root: Path = ROOT) -> dict[str, list[str]]:
    """Return where the pages of docs/ carry a mark, as "page:line", by tag."""
    found: dict[str, list[str]] = {}
    for path in sorted((root / "docs").rglob("*.md")):
        if "_build" in path.parts:
            continue
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, start=1):
            if mark := pattern.match(line):
                where = f"{path.relative_to(root)}:{number}"
                found.setdefault(mark["tag"], []).append(where)
    return found


@cache  # a build asks for it once for each tag
def functions_of_tests(root: Path = ROOT) -> tuple[tuple[Path, str, int], ...]:
    """Return the file, the name and the line of every test function."""
    return tuple(
        (path, node.name, node.lineno)
        for path in sorted((root / "tests").rglob("test_*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    )


def checking_tests(tag: str, root: Path = ROOT) -> list[tuple[Path, str]]:
    """Return the tests with the tag in their name; maml_eq10 does not hold maml-eq1."""
    words = re.compile(rf"(?:^|_){tag.replace('-', '_')}(?:_|$)")
    return [
        (path, name) for path, name, _ in functions_of_tests(root) if words.search(name)
    ]
