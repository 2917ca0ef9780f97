"""Every chapter that the build executes can be downloaded as a Jupyter notebook.

A chapter is a text notebook: Markdown that begins with a ``kernelspec``. Its page gets
a link to the .ipynb, which the build writes beside the pages. What only this site can
show is said in plain Markdown there: roles as their text, boxes as quotations, a tagged
part as its code.
"""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

import jupytext
import nbformat
from docutils import nodes
from sphinx.application import Sphinx
from tags import all_fenced, excerpt_lines

FOLDER = "_downloads/notebooks"
KERNEL = re.compile(r"\A---\n(?:(?!---\n).*\n)*?kernelspec:")
ANCHOR = re.compile(r"^\([a-z0-9-]+\)=\n", re.MULTILINE)
DIRECTIVE = re.compile(
    r"^(?P<fence>`{3,}|:{3,})\{(?P<name>[\w-]+)\}[ ]?(?P<title>.*)\n"
    r"(?P<body>(?:.*\n)*?)(?P=fence)$",
    re.MULTILINE,
)
ROLE = re.compile(r"\{[\w:-]+\}`(?P<text>[^`<]*?)\s*(?:<[^>]*>)?`")
OPTION = re.compile(r"^(?::[\w-]+:.*\n)+\n?|^---\n(?:.*\n)*?---\n")
EXCERPT_OPTION = re.compile(r'^:(from|to): "?(.*?)"?$', re.MULTILINE)
COLUMNS = ("grid", "grid-item")
FIGURES = ("figure", "image")


def is_notebook(path: Path) -> bool:
    """Tell whether a page is a text notebook."""
    return path.suffix == ".md" and bool(KERNEL.match(path.read_text(encoding="utf-8")))


def plain_directive(match: re.Match[str]) -> str:
    """Say a directive in plain Markdown."""
    name, title = match["name"], match["title"].strip()
    body = OPTION.sub("", match["body"]).strip()
    if name == "tagged":
        (part,) = all_fenced()[title]
        return f"```python\n{part.text}\n```"
    if name == "excerpt":
        options = dict(EXCERPT_OPTION.findall(match["body"]))
        part, first, last = excerpt_lines(
            title, options.get("from", ""), options.get("to", "")
        )
        lines = part.path.read_text(encoding="utf-8").splitlines()[first - 1 : last]
        return "```python\n" + dedent("\n".join(lines)) + "\n```"
    if name in COLUMNS:
        return DIRECTIVE.sub(plain_directive, body)
    if name in FIGURES:
        return f"*{body}*" if body else ""
    if name == "math":
        return f"$$\n{body}\n$$"
    heading = title or name.capitalize()
    text = f"**{heading}**\n\n{DIRECTIVE.sub(plain_directive, body)}"
    return "\n".join(f"> {line}".rstrip() for line in text.split("\n"))


def plain_role(match: re.Match[str]) -> str:
    """Say a role in plain Markdown: its text."""
    text = match["text"].strip()
    named = "<" in match[0] or "/" not in text
    return text if named else f"`{text.removeprefix('../')}`"


def to_notebook(text: str) -> nbformat.NotebookNode:
    """Return the notebook of a chapter."""
    notebook = jupytext.reads(text, fmt="md:myst")
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            source = ANCHOR.sub("", cell.source)
            source = DIRECTIVE.sub(plain_directive, source)
            cell.source = ROLE.sub(plain_role, source).strip()
    notebook.cells = [cell for cell in notebook.cells if cell.source]
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
    notebook.metadata.pop("myst", None)
    notebook.metadata.pop("jupytext", None)
    nbformat.validate(notebook)
    return notebook


def add_link(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put the link to the notebook below the title."""
    path = Path(app.env.doc2path(docname))
    if app.builder.format != "html" or not is_notebook(path):
        return
    title = next(iter(doctree.findall(nodes.title)), None)
    if title is None or title.parent is None:
        return
    up = "../" * docname.count("/")
    uri = f"{up}{FOLDER}/{path.stem}.ipynb"
    link = nodes.reference("", "Download it for Jupyter", internal=True, refuri=uri)
    words = nodes.Text("This chapter is a notebook, run when the site was built. ")
    line = nodes.paragraph("", "", words, link, nodes.Text("."))
    line["classes"].append("notebook-download")
    title.parent.insert(title.parent.index(title) + 1, line)


def write_notebooks(app: Sphinx, exception: Exception | None) -> None:
    """Write the notebook of every chapter."""
    if exception or app.builder.format != "html":
        return
    folder = Path(app.outdir) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for docname in app.env.found_docs:
        path = Path(app.env.doc2path(docname))
        if is_notebook(path):
            notebook = to_notebook(path.read_text(encoding="utf-8"))
            nbformat.write(notebook, folder / f"{path.stem}.ipynb")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension; Sphinx calls this."""
    app.connect("doctree-resolved", add_link)
    app.connect("build-finished", write_notebooks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
