"""No stale pointers: files, modules and tests named in prose exist.

Prose is every page, and every docstring and comment of the source. Names in the log and
the changelog may be of their day, so these two pages are left out.
"""

from __future__ import annotations

import ast
import importlib
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("tinymaml", "tests", "docs", "examples", "benchmarks")
HISTORY = ("docs/log.md", "CHANGELOG.md")
FILES = [
    path
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*"))
    if path.is_file() and not {"_build", "__pycache__"} & {*path.parts}
] + [path for path in sorted(ROOT.iterdir()) if path.is_file()]
SUFFIXES = {f"/{path.relative_to(ROOT).as_posix()}" for path in FILES}
PAGES = [
    path
    for path in FILES
    if path.suffix == ".md" and path.relative_to(ROOT).as_posix() not in HISTORY
]
SOURCES = [
    path for path in FILES if path.suffix in {".py", ".cu", ".c", ".h", ".js", ".css"}
]

# What follows a pointer if it is a pattern, such as test_<module>.py or test_*.py.
OPEN = r"(?![\w/<{*-]|\.\.\.|\.\w)"
PATH = re.compile(
    rf"(?<![\w./-])(?:(?:{'|'.join(FOLDERS)})/[\w./-]*[\w/]|(?:\.\./)*[\w/-]+\.(?:py|md|cu))"
    + OPEN
)
MODULE = re.compile(r"(?<![\w./-])tinymaml(?:\.[A-Za-z_]\w*)+")
TEST = re.compile(r"(?<![\w.])test_\w*[a-z0-9]\b" + OPEN)
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")
# A folder that a command makes, and the file of a reader.
OUTPUTS = ("docs/_build", "mine.py")
WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def comments_and_docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line number and the text of each comment and docstring."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, WITH_DOCSTRING) and ast.get_docstring(node) is not None:
            yield node.body[0].lineno, ast.get_docstring(node, clean=False) or ""


def prose_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line number and the text of each piece of prose in a file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        yield from comments_and_docstrings(text)
    else:
        yield 1, text


def names_in_code() -> set[str]:
    """Return all identifiers that begin with test_, and the stems of test files."""
    names = {path.stem for path in SOURCES if path.stem.startswith("test_")}
    for path in SOURCES:
        if path.suffix == ".py":
            text = path.read_text(encoding="utf-8")
            for token in tokenize.generate_tokens(io.StringIO(text).readline):
                if token.type == tokenize.NAME and token.string.startswith("test_"):
                    names.add(token.string)
    return names


def file_exists(pointer: str, page: Path) -> bool:
    """Tell whether a path exists: from the root, from its page, or as an ending.

    A path that begins with a top folder must exist from the root. Any other may leave
    out its first folders: `rl/trpo.py`, `trpo.py`.
    """
    if pointer.startswith(OUTPUTS):
        return True
    if pointer.split("/")[0] in FOLDERS:
        return (ROOT / pointer).exists()
    if (page.parent / pointer).exists():
        return True
    return any(suffix.endswith(f"/{pointer}") for suffix in SUFFIXES)


def module_exists(pointer: str) -> bool:
    """Tell whether a dotted name is a module of the package or something in one."""
    parts = pointer.split(".")
    for count in range(len(parts), 0, -1):
        try:
            thing: object = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for name in parts[count:]:
            if not hasattr(thing, name):
                return False
            thing = getattr(thing, name)
        return True
    return False


def stale_pointers(path: Path, tests: set[str]) -> list[str]:
    """Return "file:line: pointer" for each pointer of a file that leads nowhere."""
    stale = []
    for line, text in prose_of(path):
        found = [
            (match.start(), match[0])
            for pattern, exists in (
                (PATH, lambda pointer: file_exists(pointer, path)),
                # In a script `tinymaml` is an object of the page.
                (MODULE, lambda name: path.suffix == ".js" or module_exists(name)),
                (TEST, tests.__contains__),
            )
            for match in pattern.finditer(text)
            if not exists(match[0])
        ]
        if path.suffix == ".md":
            found += [
                (match.start(1), match[1])
                for match in LINK.finditer(text)
                if not (path.parent / match[1]).exists()
            ]
        for start, pointer in sorted(set(found)):
            where = line + text.count("\n", 0, start)
            stale.append(f"{path.name}:{where}: {pointer}")
    return stale


@pytest.fixture(scope="module")
def tests() -> set[str]:
    return names_in_code()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_page_points_to_what_exists(path: Path, tests: set[str]) -> None:
    assert stale_pointers(path, tests) == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_docstrings_and_comments_point_to_what_exists(
    folder: str, tests: set[str]
) -> None:
    sources = [path for path in SOURCES if path.is_relative_to(ROOT / folder)]
    assert [stale for path in sources for stale in stale_pointers(path, tests)] == []


@pytest.mark.parametrize(
    "text",
    [
        "tests/test_maml_of_old.py",
        "tests/reinforcement",
        "docs/derivations/hvp.md",
        "sweeps.py",
        "machines/planner.py",
        "kernels_of_old.cu",
        "tinymaml.nn",
        "tinymaml.maml.record_meta_gradient",
        "test_maml_eq1_is_forgotten",
        "../results/cartpole.md",
    ],
)
def test_a_stale_pointer_is_found(text: str, tests: set[str], tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\nSee `{text}`, and [that]({text}).\n")
    assert f"page.md:3: {text}" in stale_pointers(page, tests)
    docstring = tmp_path / "docstring.py"
    docstring.write_text(f'"""One.\n\nSee {text}.\n"""\n')
    assert stale_pointers(docstring, tests) == [f"docstring.py:3: {text}"]
    comment = tmp_path / "comment.py"
    comment.write_text(f"x = 1\ny = 2  # as in {text}: why\n")
    assert stale_pointers(comment, tests) == [f"comment.py:2: {text}"]


def test_a_stale_link_is_found(tests: set[str], tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n![A curve](gone.png) and [that page](gone.html)\n")
    expected = ["page.md:3: gone.png", "page.md:3: gone.html"]
    assert stale_pointers(page, tests) == expected


@pytest.mark.parametrize(
    "text",
    [
        "tinymaml/maml.py",
        "tests/support/",
        "backends/cuda/kernels.cu",
        "maml.py",
        "tinymaml.tasks.omniglot",
        "tinymaml.MAML.meta_gradient",
        "test_pointers",
        "test_a_stale_pointer_is_found",
        "tests/test_<module>.py",
        "test_maml_eq1_is_...",
        "docs/_build/html",
    ],
)
def test_a_pointer_to_what_exists_and_a_pattern_are_accepted(
    text: str, tests: set[str], tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"See `{text}`.\n")
    assert stale_pointers(page, tests) == []


def test_code_and_strings_are_not_prose(tests: set[str], tmp_path: Path) -> None:
    source = tmp_path / "source.py"
    source.write_text('name = "sweeps.py"\n"sweeps.py of old"\nsweeps.py = 1\n')
    assert stale_pointers(source, tests) == [], "only the first string is a docstring"
