"""A page for every source file, with links both ways between it and the other pages.

- ``source/tinymaml/maml.py.html`` shows the file, each line under its own anchor
  ``#L12``. A tagged part links to the page that quotes it, a public object to its
  reference, and the head of the page to all pages that name the file.
- In a page, the name of a file, a module of the package or a test in backticks becomes
  a link: `tinymaml/maml.py`, `tape.py`, `tinymaml.losses`, `test_maml_eq1_is_...`.
- The role {source}`text <tinymaml/maml.py>` links under another text.
- The directive ``source-tree`` lists the files of a folder, each with what it is for.
- Every object of the reference has a link [source].

All of the package, the examples and the benchmarks have pages; of the tests those that
a page names.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from html import escape
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from code_lines import line_element
from docutils import nodes
from docutils.parsers.rst import directives
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from source_files import (
    find_object,
    find_source,
    first_sentence,
    source_files,
)
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective, SphinxRole
from tags import ROOT

ALWAYS = ("tinymaml/", "examples/", "benchmarks/", "docs/")
LEXERS = {".py": "python", ".cu": "cuda", ".js": "javascript"}


class source_link(nodes.inline):
    """A link to a file's page and line, made before it is known which page it is on."""


def make_link(file: str, line: int, *content: nodes.Node) -> source_link:
    """Return a link around the content to a line of a file, or to the file for 0."""
    return source_link("", "", *content, file=file, line=line)


def page_of(file: str) -> str:
    """Return the name of a file's page, as Sphinx counts pages."""
    return f"source/{file}"


# What the pages say about the files, by page, in the environment that Sphinx stores.


def quotations(env: BuildEnvironment) -> dict[str, list[tuple[str, int, str]]]:
    """Return for each page the file, first line and tag of every quotation."""
    if not hasattr(env, "source_quotations"):
        env.source_quotations = {}  # type: ignore[attr-defined]
    return env.source_quotations  # type: ignore[attr-defined, no-any-return]


def mentions(env: BuildEnvironment) -> dict[str, set[str]]:
    """Return for each page the files that it links to."""
    if not hasattr(env, "source_mentions"):
        env.source_mentions = {}  # type: ignore[attr-defined]
    return env.source_mentions  # type: ignore[attr-defined, no-any-return]


def purge(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    """Forget a page that is read anew."""
    quotations(env).pop(docname, None)
    mentions(env).pop(docname, None)


def merge(
    app: Sphinx, env: BuildEnvironment, docnames: set[str], other: BuildEnvironment
) -> None:
    """Take over what another process has read."""
    quotations(env).update(quotations(other))
    mentions(env).update(mentions(other))


# From pages to source


def link_names(app: Sphinx, doctree: nodes.document) -> None:
    """Link the files and tests named in backticks, and objects of the reference."""
    for literal in list(doctree.findall(nodes.literal)):
        found = find_source(literal.astext())
        inside = isinstance(literal.parent, nodes.reference | source_link | nodes.title)
        if (
            found
            and not inside
            and not isinstance(literal.parent, addnodes.pending_xref)
        ):
            literal.replace_self(make_link(*found, literal.deepcopy()))
            if found[1]:  # the line of a test, which moves with the file
                app.env.note_dependency(str(ROOT / found[0]))
    for description in doctree.findall(addnodes.desc):
        if description.get("domain") != "py":
            continue
        for signature in description.findall(addnodes.desc_signature):
            if signature.parent is description:
                found = find_object(
                    signature.get("module") or "", signature.get("fullname", "")
                )
                if found:
                    text = nodes.inline("", "[source]", classes=["viewcode-link"])
                    signature += make_link(*found, text)
    linked = {link["file"] for link in doctree.findall(source_link)}
    mentions(app.env)[app.env.docname] = linked


def resolve_links(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Make the links real, now that it is known from which page they start."""
    for link in list(doctree.findall(source_link)):
        if app.builder.format != "html":
            link.replace_self(link.children)
            continue
        uri = app.builder.get_relative_uri(docname, page_of(link["file"]))
        anchor = f"#L{link['line']}" if link["line"] else ""
        reference = nodes.reference("", "", internal=True, refuri=uri + anchor)
        reference["classes"].append("source-link")
        reference += link.children
        link.replace_self(reference)


class SourceRole(SphinxRole):
    """{source}`path`, or {source}`text <path>`; a path may end in #L12 or be a test."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return the link."""
        text, _, target = self.text.removesuffix(">").rpartition("<")
        name, _, line = target.partition("#L")
        found = find_source(name)
        if found is None:
            message = self.inliner.reporter.error(f"no source file: {name}")
            return [], [message]
        content = nodes.Text(text.strip()) if text else nodes.literal("", name)
        return [make_link(found[0], int(line or found[1]), content)], []


class SourceTree(SphinxDirective):
    """The files of a folder and its subfolders, each with the first words of it."""

    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {"class": directives.class_option}

    def run(self) -> list[nodes.Node]:
        """Return a definition list."""
        items = nodes.definition_list(classes=["source-tree"])
        for file in source_files():
            if not file.startswith(self.arguments[0] + "/"):
                continue
            self.env.note_dependency(str(ROOT / file))
            sentence = first_sentence(file)
            if not sentence:
                continue
            link = make_link(file, 0, nodes.literal("", file))
            term = nodes.term("", "", link)
            words = nodes.paragraph()
            for i, part in enumerate(sentence.split("`")):  # code stands between two
                words += nodes.literal("", part) if i % 2 else nodes.Text(part)
            items += nodes.definition_list_item("", term, nodes.definition("", words))
        return [items]


# From source to pages


def page_link(app: Sphinx, start: str, docname: str, anchor: str, text: str) -> str:
    """Return the HTML of a link from a source page to another page."""
    uri = app.builder.get_relative_uri(start, docname) + (
        f"#{anchor}" if anchor else ""
    )
    return f'<a href="{escape(uri)}">{escape(text)}</a>'


def title_of(env: BuildEnvironment, docname: str) -> str:
    """Return a page's title as text."""
    return env.titles[docname].astext()


@cache
def module_of(name: str) -> str:
    """Return the name of the module that has a documented object, and import it.

    Another process may have read the page with the object, or an earlier build.
    """
    while name:
        try:
            import_module(name)
        except ImportError:  # an object, or a module whose packages are missing
            name = name.rpartition(".")[0]
        else:
            break
    return name


def objects_of_reference(
    env: BuildEnvironment,
) -> dict[tuple[str, int], tuple[str, str]]:
    """Return the page and the anchor of every documented object, by file and line."""
    found = {}
    for name, entry in env.domains["py"].objects.items():  # type: ignore[attr-defined]
        if entry.objtype == "module":
            continue
        # tinymaml.function is a function of the package, and the name of a module, too.
        module = module_of(name.rpartition(".")[0])
        place = find_object(module, name.removeprefix(module).lstrip("."))
        if place and not entry.aliased:
            found[place] = (entry.docname, entry.node_id)
    return found


def source_html(app: Sphinx, file: str, notes: dict[int, str]) -> str:
    """Return a file's highlighted lines, with notes behind some of them."""
    lexer = get_lexer_by_name(LEXERS[Path(file).suffix])
    lexer.stripnl = False
    text = (ROOT / file).read_text(encoding="utf-8")
    lines = highlight(text, lexer, HtmlFormatter(nowrap=True)).splitlines()
    html = []
    for number, line in enumerate(lines, start=1):
        anchor = f'<a class="lineno" href="#L{number}" data-number="{number}"'
        anchor += f' aria-label="line {number}" tabindex="-1"></a>'
        html.append(line_element(line, anchor, notes.get(number, ""), f"L{number}"))
    return f'<div class="highlight source-file"><pre>{"".join(html)}</pre></div>'


def collect_pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield the page of every file."""
    if app.builder.format != "html":
        return
    env = app.env
    named = {file for files in mentions(env).values() for file in files}
    documented = objects_of_reference(env)
    for file in source_files():
        if not file.startswith(ALWAYS) and file not in named:
            continue
        start = page_of(file)
        notes: dict[int, str] = {}
        quoting = []
        for docname, quoted in sorted(quotations(env).items()):
            for quoted_file, line, tag in quoted:
                if quoted_file == file:
                    link = page_link(app, start, docname, tag, title_of(env, docname))
                    notes[line - 1] = (
                        f'<span class="source-note">quoted in {link}</span>'
                    )
                    quoting.append(docname)
        for (where, line), (docname, anchor) in documented.items():
            if where == file:
                link = page_link(app, start, docname, anchor, "reference")
                notes[line] = f'<span class="source-note">{link}</span>'
        naming = [doc for doc, files in sorted(mentions(env).items()) if file in files]
        links = [
            page_link(app, start, docname, "", title_of(env, docname))
            for docname in sorted({*quoting, *naming} - {"source"})
        ]
        tree = page_link(app, start, "source", "", "All source files")
        if repository := app.config.html_theme_options.get("source_repository"):
            branch = app.config.html_theme_options["source_branch"]
            uri = escape(f"{repository.rstrip('/')}/blob/{branch}/{file}")
            tree += f'; <a href="{uri}">this one in the repository</a>'
        head = f"<h1>{escape(file).replace('/', '/<wbr>')}</h1>\n<p>{tree}.</p>\n"
        if links:
            head += f'<p class="source-pages">On the pages {", ".join(links)}.</p>\n'
        context = {
            "parents": [],
            "title": file,
            "body": head + source_html(app, file, notes),
        }
        yield start, context, "page.html"


def setup(app: Sphinx) -> dict[str, bool]:
    """Register everything; Sphinx calls this."""
    app.add_node(source_link)
    app.add_role("source", SourceRole())
    app.add_directive("source-tree", SourceTree)
    app.connect("doctree-read", link_names)
    app.connect("doctree-resolved", resolve_links)
    app.connect("env-purge-doc", purge)
    app.connect("env-merge-info", merge)
    app.connect("html-collect-pages", collect_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
