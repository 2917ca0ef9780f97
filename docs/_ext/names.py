"""Links between the names of the package, its reference, and the pages of the paper.

- The directive ``public-names`` lists what can be imported from `tinymaml`, in the
  groups of its ``__all__``, each with its first sentence and a link.
- A public name in backticks, such as `MAML` or `Tape.input`, links to its reference, at
  its first occurrence on a page.
- An object of the reference links to the pages that quote its code, and a quotation
  (see ``tagged_source.py``) to the reference of the objects in it.
"""

from __future__ import annotations

import ast
import inspect
import re

from docutils import nodes
from source_files import find_object
from source_pages import objects_of_reference, quotations, title_of
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from tags import ROOT, all_fenced

import tinymaml

KINDS = {"paper": "paper", "derivations": "derivation"}  # of pages, by their folder
# Public names that are also words: in backticks they may be something else.
WORDS = {"exp", "log", "accuracy", "clip", "function", "summary", "train"}


class paper_links(nodes.inline):
    """Stands for links from an object of the reference to the pages that quote it."""


class reference_links(nodes.inline):
    """Stands for links from a quotation to the reference of the objects in it."""


def groups() -> dict[str, list[str]]:
    """Return the names of `tinymaml.__all__` by the comment above them."""
    source = (ROOT / "tinymaml" / "__init__.py").read_text(encoding="utf-8")
    found: dict[str, list[str]] = {}
    for line in source.split("__all__ = [")[1].split("]")[0].splitlines():
        if comment := re.match(r"\s*# (.*)", line):
            names = found.setdefault(comment[1], [])
        elif line.strip():
            names += re.findall(r'"(\w+)"', line)
    return found


def definitions(file: str) -> list[tuple[int, int]]:
    """Return the first and last line of each function and class of a file."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [
        (min([node.lineno, *(d.lineno for d in node.decorator_list)]), node.end_lineno)
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8")))
        if isinstance(node, kinds) and node.end_lineno
    ]


def objects_in(file: str, first: int, last: int) -> list[int]:
    """Return where the objects begin that a part of a file has, or else is in."""
    spans = definitions(file)
    inside = [start for start, end in spans if first <= start and end <= last]
    around = [start for start, end in spans if start <= first and last <= end]
    return inside or around[-1:]


class PublicNames(SphinxDirective):
    """A table for each group of names."""

    def run(self) -> list[nodes.Node]:
        """Return the tables."""
        found: list[nodes.Node] = []
        self.env.note_dependency(str(ROOT / "tinymaml" / "__init__.py"))
        for group, names in groups().items():
            lines = [f":::{{table}} {group[0].upper()}{group[1:]}", ":class: names", ""]
            lines += ["| name | what it is |", "|---|---|"]
            for name in names:
                thing = getattr(tinymaml, name)
                text = inspect.getdoc(thing) if callable(thing) else None
                if name == "RECIPES":
                    text = "The recipes of tables 1 and 3, by name."
                if text is None:
                    raise self.error(f"{name}: expected a docstring, found none")
                words = text.split("\n\n")[0]
                words = re.sub(r"([|*<])", r"\\\1", " ".join(words.split()))
                lines.append(f"| {{py:obj}}`{name} <tinymaml.{name}>` | {words} |")
            lines += [":::"]
            found += self.parse_text_to_nodes("\n".join(lines))
        return found


def link(
    app: Sphinx, start: str, docname: str, anchor: str, *text: nodes.Node
) -> nodes.reference:
    """Return a link from one page to another."""
    uri = app.builder.get_relative_uri(start, docname) + (
        f"#{anchor}" if anchor else ""
    )
    return nodes.reference("", "", *text, internal=True, refuri=uri)


def mark_objects(app: Sphinx, doctree: nodes.document) -> None:
    """Leave room in the head of every object for links to the pages that quote it."""
    for description in doctree.findall(addnodes.desc):
        if description.get("domain") != "py":
            continue
        for signature in description.findall(addnodes.desc_signature):
            place = find_object(
                signature.get("module") or "", signature.get("fullname", "")
            )
            if signature.parent is description and place:
                signature += paper_links("", "", file=place[0], line=place[1])


def resolve(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Make the links, now that all pages are known."""
    env = app.env
    marks = list(doctree.findall(paper_links))
    fenced = all_fenced() if marks else {}  # it reads every source file
    for mark in marks:
        found: dict[str, nodes.Node] = {}
        for page, quoted in sorted(quotations(env).items()):
            for file, _, tag in quoted:
                part = fenced[tag][0]
                if file == mark["file"] and mark["line"] in objects_in(
                    file, part.first, part.last
                ):
                    kind = KINDS.get(page.split("/")[0], "page")
                    text = nodes.inline("", f"[{kind}]", classes=["viewcode-link"])
                    made = link(app, docname, page, tag, text)
                    made["reftitle"] = title_of(env, page)
                    found.setdefault(page, made)
        mark.replace_self(list(found.values()))
    documented: dict[tuple[str, int], tuple[str, str]] | None = None
    for mark in list(doctree.findall(reference_links)):
        documented = objects_of_reference(env) if documented is None else documented
        listed: list[nodes.Node] = []
        for line in objects_in(mark["file"], mark["first"], mark["last"]):
            if target := documented.get((mark["file"], line)):
                name = nodes.literal("", target[1].removeprefix("tinymaml."))
                listed += [nodes.Text(", " if listed else ". Reference: ")]
                listed += [link(app, docname, *target, name)]
        mark.replace_self(listed)
    link_public_names(app, doctree, docname)


def link_public_names(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Link the first occurrence of each public name in backticks to its reference."""
    objects = app.env.domains["py"].objects  # type: ignore[attr-defined]
    linked: set[str] = set()
    for literal in list(doctree.findall(nodes.literal)):
        name = re.sub(r"^(tm|tinymaml)\.|\(\)$", "", literal.astext())
        entry = objects.get(f"tinymaml.{name}")
        inside: nodes.Node | None = literal.parent
        while inside is not None and not isinstance(
            inside,
            nodes.reference | nodes.title | nodes.caption | addnodes.desc_signature,
        ):
            inside = inside.parent
        if (
            entry is None
            or inside is not None
            or literal.astext() in WORDS
            or name in linked
        ):
            continue
        linked.add(name)
        literal.replace_self(
            link(app, docname, entry.docname, entry.node_id, literal.deepcopy())
        )


def setup(app: Sphinx) -> dict[str, bool]:
    """Register everything; Sphinx calls this."""
    app.add_node(paper_links)
    app.add_node(reference_links)
    app.add_directive("public-names", PublicNames)
    app.connect("doctree-read", mark_objects)
    app.connect("doctree-resolved", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
