"""The letters of the formulas in docs/: what tests/project/test_symbols.py reads.

A symbol is a letter with what belongs to it: `theta`, `mathcal T`, `bar a` is `a`. A
letter whose subscripted form means something else has both: `H` and `H_`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

GREEK = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta iota kappa lambda mu nu "
    "xi pi rho sigma tau upsilon phi varphi chi psi omega ell Gamma Delta Theta "
    "Lambda Pi Sigma Phi Psi Omega"
).split()
FENCE = re.compile(r"^\s*(`{3,})(?:\{(\w[\w-]*)\}.*|\w*)$")
PROSE = {"admonition", "note", "tip", "warning", "table", "figure", "math"}
CODE = re.compile(r"(?<!`)`(?!`)[^`]*`(?!`)")
FRONT = re.compile(r"\A---\n.*?^---\n", re.MULTILINE | re.DOTALL)
DISPLAY = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
INLINE = re.compile(r"(?<![\\$])\$(?!\$)([^$]+?)(?<!\\)\$")
WORDS = re.compile(
    r"\\(?:text|mathrm|operatorname\*?|tag|begin|end|mathbf|label)\s*\{[^{}]*\}"
)
SYMBOL = re.compile(
    r"\\(?P<font>mathcal|mathbb)\s*\{?(?P<inner>[A-Za-z])\}?"
    rf"|\\(?P<greek>{'|'.join(GREEK)})(?![A-Za-z])"
    r"|\\(?P<command>[A-Za-z]+|.)"
    r"|(?P<letter>[A-Za-z])"
)
SUBSCRIPT = re.compile(r"['’]*\s*_")


def without_code(page: str) -> str:
    """Return a page without its front matter, its code and its notebook cells."""
    lines: list[str] = []
    opened: list[tuple[str, bool]] = []  # backticks of a block, whether to read it
    for line in FRONT.sub("", page).splitlines():
        fence = FENCE.match(line)
        reading = all(read for _, read in opened)
        if fence and opened and fence[1] == opened[-1][0] and line.strip() == fence[1]:
            opened.pop()
        elif fence and reading:
            opened.append((fence[1], fence[2] in PROSE))
        elif reading:
            lines.append(line)
    return CODE.sub(" ", "\n".join(lines))


def formulas(page: str) -> Iterator[str]:
    """Yield the formulas of a page, displayed and in lines."""
    text = without_code(page)
    yield from DISPLAY.findall(text)
    yield from INLINE.findall(DISPLAY.sub(" ", text))


def symbols(formula: str) -> Iterator[str]:
    """Yield the symbols of a formula; with a subscript they end in an underscore."""
    text = WORDS.sub(" ", formula)
    for match in SYMBOL.finditer(text):
        name = match["greek"] or match["letter"]
        if match["font"]:
            name = f"{match['font']} {match['inner']}"
        if name:
            yield name + ("_" if SUBSCRIPT.match(text, match.end()) else "")
