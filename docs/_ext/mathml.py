r"""Formulas as MathML, written into the page by the build: no script, no download.

LaTeX that cannot be converted is a warning, which ``-W`` makes fail the build, and the
formula's LaTeX stays in the page as the text alternative. A formula that is wider than
the page goes on in the next line, before a relation or a sum's sign that stands in no
brackets; if that is not enough, it scrolls in its own box. The number of ``\tag{1}``
stands outside that box and is always seen.
"""

from __future__ import annotations

import re
from html import escape

from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.application import Sphinx
from sphinx.domains.math import MathDomain
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator

TAG = re.compile(r"\\tag\{([^}]*)\}")
TOKEN = re.compile(r"\\[A-Za-z]+|\\.|\s+|.", re.DOTALL)
OPENING = {"{", "(", "[", r"\{", r"\left", r"\lVert", r"\lvert", r"\begin"}
CLOSING = {"}", ")", "]", r"\}", r"\right", r"\rVert", r"\rvert", r"\end"}
RELATIONS = {"=", r"\approx", r"\leftarrow", r"\le", r"\ge", r"\leq", r"\geq"}
SIGNS = {"+", "-"}
SPACES = {r"\quad", r"\qquad"}
SHORT = 30  # tokens of LaTeX, blanks included
logger = logging.getLogger(__name__)
converter = LatexToMathML(annotation=False, fancy_error=False)


def pieces(latex: str) -> list[list[str]]:
    """Split a formula where a new line may begin: in clauses, and those in pieces.

    A clause ends at a wide space, a piece before a relation or a sum's sign, both only
    where no bracket and no environment is open.
    """
    clauses = [[""]]
    depth, before = 0, ""
    for token in TOKEN.findall(latex):
        depth += (token in OPENING) - (token in CLOSING)
        if depth == 0 and token == r"\\":
            return [[latex]]
        operand = before and before not in {"_", "^", ",", *RELATIONS, *SPACES}
        splits = token in RELATIONS or (token in SIGNS and operand)
        if depth == 0 and splits and clauses[-1][-1].strip():
            clauses[-1].append("{}")
        clauses[-1][-1] += token
        if depth == 0 and token in SPACES:
            clauses.append([""])
        before = before if token.isspace() else token
    if depth:
        return [[latex]]
    if not clauses[-1][-1].strip():
        clauses.pop()
    return clauses


def to_mathml(latex: str, display: bool) -> str:
    """Return the MathML of a formula, with its LaTeX as the text alternative.

    Raises:
        ValueError: the formula is not LaTeX that can be converted.
    """
    latex = latex.strip()
    # A short formula inside a line stays whole.
    breaks = display or len(TOKEN.findall(latex)) > SHORT
    clauses = pieces(latex) if breaks else [[latex]]
    if clauses == [[latex]] and r"\\" in latex and r"\begin{" not in latex:
        clauses = [[rf"\begin{{aligned}}{latex}\end{{aligned}}"]]
    html = []
    for clause in clauses:
        converted = []
        for piece in clause:
            try:
                mathml = converter.convert_with_local_state(piece, displaystyle=display)
            except LatexError as error:
                raise ValueError(f"formula {latex!r}: {error}") from None
            text = escape(" ".join(piece.removeprefix("{}").split()))
            converted.append(mathml.replace("<math", f'<math alttext="{text}"', 1))
        html.append("<wbr>".join(converted))
    if len(html) > 1:
        html = [f'<span class="math-clause">{clause}</span>' for clause in html]
    return "<wbr>".join(html)


def split_tag(latex: str) -> tuple[str, str]:
    r"""Return a formula without its ``\tag{...}``, and what the tag holds, or ""."""
    tag = TAG.search(latex)
    return TAG.sub("", latex).strip(), tag[1] if tag else ""


def mathml_of(node: nodes.Element, latex: str, display: bool) -> str:
    """Convert a node's formula; warn, and return its LaTeX, where that fails."""
    try:
        return to_mathml(latex, display)
    except ValueError as error:
        logger.warning(str(error), location=node, type="mathml")
        return f"<code>{escape(latex)}</code>"


def visit_math(self: HTML5Translator, node: nodes.math) -> None:
    """Write a formula inside a line."""
    self.body.append(f'<span class="math">{mathml_of(node, node.astext(), False)}')
    self.body.append("</span>")
    raise nodes.SkipNode


def visit_math_block(self: HTML5Translator, node: nodes.math_block) -> None:
    """Write a formula in a line of its own, with its number behind it."""
    latex, tag = split_tag(node.astext())
    number = tag
    if not number and node.get("number"):
        number = get_node_equation_number(self, node)
    self.body.append(self.starttag(node, "div", CLASS="math"))
    self.body.append(f'<div class="math-box">{mathml_of(node, latex, True)}</div>')
    if number:
        self.body.append(f'<span class="eqno">({escape(str(number))})')
        if node.get("ids"):
            self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append("</div>\n")
    raise nodes.SkipNode


def number_by_tag(app: Sphinx, doctree: nodes.document) -> None:
    r"""Let {eq}`label` print what ``\tag`` says, and not Sphinx's own count."""
    domain = app.env.domains["math"]
    assert isinstance(domain, MathDomain)
    for node in doctree.findall(nodes.math_block):
        tag = split_tag(node.astext())[1]
        if tag and node.get("label"):
            domain.equations[node["label"]] = (app.env.docname, tag)  # type: ignore[assignment]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer; Sphinx calls this."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    app.connect("doctree-read", number_by_tag)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
