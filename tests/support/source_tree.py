"""The project's source read as text: its files, their imports, their lines of code."""

import ast
import io
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "tinymaml"
MODULES = sorted(PACKAGE.rglob("*.py"))
WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
LAYOUT_TOKENS = {
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def count_lines(source: str) -> tuple[int, int]:
    """Count the lines that hold code, and those that hold comments or docstrings.

    A blank line is neither, also inside a docstring. A line with code and a comment
    behind it is code.
    """
    code: set[int] = set()
    prose: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        lines = range(token.start[0], token.end[0] + 1)
        if token.type == tokenize.COMMENT:
            prose.update(lines)
        elif token.type not in LAYOUT_TOKENS:
            code.update(lines)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, WITH_DOCSTRING) and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            assert docstring.end_lineno is not None
            lines = range(docstring.lineno, docstring.end_lineno + 1)
            code.difference_update(lines)
            prose.update(lines)
    blank = {n for n, line in enumerate(source.splitlines(), 1) if not line.strip()}
    return len(code), len(prose - code - blank)


def code_lines(path: Path) -> int:
    return count_lines(path.read_text(encoding="utf-8"))[0]


def module_name(path: Path) -> str:
    """The name under which a file of the package is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module_name(path) for path in MODULES}


def imports_of(path: Path) -> set[tuple[str, bool]]:
    """The modules of the package that a file imports, each with whether it is lazy.

    A lazy import stands inside a function. `from package import module` is an import of
    the module, `from package import name` one of the package.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.walk(node)
    }
    found: set[tuple[str, bool]] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            base = str(node.module)
            targets = [
                full if (full := f"{base}.{alias.name}") in NAMES else base
                for alias in node.names
            ]
        else:
            continue
        found |= {(target, node in lazy) for target in targets if target in NAMES}
    return found
