"""The package can be read in one sitting: no long file, and not many lines in all."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("tinymaml", "examples", "benchmarks", "tests", "docs/_ext")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
FILE_LIMIT = 300
PACKAGE_LIMIT = 6_500
ENGINE_LIMIT = 3_500
ENGINE = (
    "tape.py",
    "primitives.py",
    "convolution.py",
    "functions.py",
    "sweeps.py",
    "splitting.py",
    "maml.py",
    "batch.py",
    "parts.py",
    "backends",
)
WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def code_lines(source: str) -> int:
    """Count the lines that hold code: not blank, not comment, not docstring."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, WITH_DOCSTRING) and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            assert docstring.end_lineno is not None
            lines.difference_update(range(docstring.lineno, docstring.end_lineno + 1))
    return len(lines)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_is_within_its_line_budget(path: Path) -> None:
    assert code_lines(path.read_text(encoding="utf-8")) <= FILE_LIMIT


def test_package_is_within_its_line_budget() -> None:
    lines = {
        path: code_lines(path.read_text(encoding="utf-8"))
        for path in FILES
        if path.is_relative_to(ROOT / "tinymaml")
    }
    for path, count in sorted(lines.items(), key=lambda item: -item[1]):
        print(f"{count:5d}  {path.relative_to(ROOT)}")
    print(f"{sum(lines.values()):5d}  lines of code in the package")
    assert 0 < sum(lines.values()) <= PACKAGE_LIMIT


def test_engine_and_maml_are_within_their_line_budget() -> None:
    parts = [ROOT / "tinymaml" / name for name in ENGINE]
    files = [path for path in FILES if any(path.is_relative_to(part) for part in parts)]
    total = sum(code_lines(path.read_text(encoding="utf-8")) for path in files)
    assert len(files) > len(ENGINE) and 0 < total <= ENGINE_LIMIT


def test_counting_leaves_out_blanks_comments_and_docstrings() -> None:
    docstrings = '"""One.\n\nMore."""\n\n# why\ndef f():\n    """Two."""\n'
    assert code_lines(docstrings) == 1
    assert code_lines(docstrings + '    return """a\n\nb"""\n') == 4
