"""Which source files the site shows, and how a name in prose finds its file and line.

Reads text and needs nothing but the standard library. ``source_pages.py`` beside it
makes the pages.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from functools import cache
from pathlib import Path

from tags import ROOT, functions_of_tests

FOLDERS = (
    *("tinymaml", "examples", "benchmarks", "tests"),
    *("docs/explorables", "docs/_static/explorables"),
)
SUFFIXES = (".py", ".cu", ".js")
COMMENT = re.compile(r"^(?://|/\*| \*/?) ?")


@cache
def source_files() -> tuple[str, ...]:
    """Return all files that may have a page, as paths from the root."""
    return tuple(
        path.relative_to(ROOT).as_posix()
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in SUFFIXES
    )


@cache
def lines_of_tests() -> dict[str, tuple[str, int]]:
    """Return the file and the line of every test; the first where two share a name."""
    found: dict[str, tuple[str, int]] = {}
    for path, name, line in functions_of_tests():
        found.setdefault(name, (path.relative_to(ROOT).as_posix(), line))
    return found


@cache
def find_source(name: str) -> tuple[str, int] | None:
    """Return the file and the line that a name means, line 0 for a whole file.

    A name is a path from the root, the end of a path if no other file ends so, a module
    ("tinymaml.maml"), or a test function. Anything else gives None.
    """
    files = source_files()
    if name in files:
        return name, 0
    if name.endswith(SUFFIXES):
        ends = [file for file in files if file.endswith(f"/{name}")]
        return (ends[0], 0) if len(ends) == 1 else None
    if name.startswith("test_"):
        return lines_of_tests().get(name)
    if name.startswith("tinymaml."):
        stem = name.replace(".", "/")
        for file in (f"{stem}.py", f"{stem}/__init__.py"):
            if file in files:
                return file, 0
    return None


@cache
def find_object(module: str, name: str) -> tuple[str, int] | None:
    """Return the file and the line that define an object of an imported module.

    The result is kept: Python parses the whole file to find the line, and many pages
    ask for the same object.
    """
    thing: object = sys.modules.get(module)
    for part in name.split(".") if name else ():
        thing = getattr(thing, part, None)
    thing = getattr(thing, "fget", thing)
    try:
        unwrapped = inspect.unwrap(thing)  # type: ignore[arg-type]
        path = Path(str(inspect.getsourcefile(unwrapped)))
        line = inspect.getsourcelines(unwrapped)[1]
        file = path.resolve().relative_to(ROOT).as_posix()
    except (TypeError, OSError, ValueError):
        return None
    return (file, line) if file in source_files() else None


def first_sentence(file: str) -> str:
    """Return the first paragraph of a file's docstring or of its opening comment."""
    text = (ROOT / file).read_text(encoding="utf-8")
    if file.endswith(".py"):
        text = ast.get_docstring(ast.parse(text)) or ""
    else:
        lines = [line for line in text.splitlines()[:12] if COMMENT.match(line)]
        text = "\n".join(COMMENT.sub("", line).strip() for line in lines)
    return " ".join(text.split("\n\n")[0].split())
