"""Pages to play with: what tinymaml recorded, and the scripts that run it in a browser.

    ```{explorable} walk-back
    ![What is to be seen](../_static/figures/explorable-walk-back.png)

    One sentence that stands here, with the figure, where there is no JavaScript.
    ```

`docs/explorables/walk_back.py` has a function `data()`, which records tapes and arrays
with tinymaml. The build writes what it returns as a script, `walk-back.data.js`,
since a page that is opened from a local file may load scripts but no data. The page
also loads `tape.js` from the package, and from `_static/explorables` the kit and the
page's own script, in this order and only on pages that have the directive.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from recorded import DOCS, FOLDER, recorded
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective

import tinymaml

PACKAGE = Path(tinymaml.__file__).resolve().parent
TAPE = PACKAGE / "backends" / "javascript" / "tape.js"
COMMON = ("tape.js", "tools.js", "kit.js", "explorable.js")
HEIGHT = re.compile(r"\d+(\.\d+)?(rem|em|px)")


def scripts_of(name: str) -> list[str]:
    """The scripts of a page in their order, as paths below `_static`."""
    return [f"{FOLDER}/{file}" for file in (*COMMON, f"{name}.data.js", f"{name}.js")]


class explorable(nodes.General, nodes.Element):
    """The place of an explorable, around what stands there without JavaScript."""


def visit(translator: Any, node: explorable) -> None:
    """Open the element in which the script will put the view."""
    style = f' style="min-height: {node["height"]}"' if node["height"] else ""
    translator.body.append(
        f'<div class="explorable" data-name="{node["name"]}"{style}>\n'
    )


def depart(translator: Any, node: explorable) -> None:
    """Close it."""
    translator.body.append("</div>\n")


def skip(translator: Any, node: explorable) -> None:
    """Other builders show the figure and the sentence."""


class ExplorableDirective(SphinxDirective):
    """The directive `explorable`."""

    required_arguments = 1
    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {"height": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        """Return the element, and note that this page needs the scripts."""
        (name,) = self.arguments
        height = self.options.get("height", "")
        if height and not HEIGHT.fullmatch(height):
            raise self.error(f"height: expected a length such as 34rem, got {height!r}")
        if not (DOCS / "_static" / FOLDER / f"{name}.js").exists():
            raise self.error(f"explorable: there is no _static/{FOLDER}/{name}.js")
        self.env.metadata[self.env.docname]["explorable"] = name
        # Where one of these has changed the page is written again, with its checksum;
        # the other scripts are the build's own.
        for file in ("explorables.css", *scripts_of(name)):
            if (path := DOCS / "_static" / file).exists():
                self.env.note_dependency(str(path))
        node = explorable(name=name, height=height)
        node += self.parse_content_to_nodes()
        if not list(node.findall(nodes.image)):
            raise self.error("explorable: a figure must stand there without JavaScript")
        return [node]


def add_scripts(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Add the scripts and the style of an explorable to its page."""
    name = app.env.metadata.get(page, {}).get("explorable")
    if name:
        app.add_css_file("explorables.css")
        for file in scripts_of(name):
            app.add_js_file(file, loading_method="defer")


def write_data(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Write tape.js and the data of every page beside the other scripts.

    The pages that load them are written after this: a script's address has a checksum
    of it, so that no browser takes an old one from its cache. Returns the pages of
    which one of these has changed; Sphinx writes them, too.
    """
    if app.builder.format != "html":
        return []
    folder = Path(app.outdir) / "_static" / FOLDER
    folder.mkdir(parents=True, exist_ok=True)

    def write(file: str, content: bytes) -> bool:
        """Write a file, and return whether it has changed."""
        path = folder / file
        changed = not path.exists() or path.read_bytes() != content
        if changed:
            path.write_bytes(content)
        return changed

    pages = {p: m["explorable"] for p, m in env.metadata.items() if "explorable" in m}
    changed = [*pages] if write("tape.js", TAPE.read_bytes()) else []
    for page, name in pages.items():
        text = json.dumps(recorded(name), separators=(",", ":"), allow_nan=False)
        if write(f"{name}.data.js", f'tinymaml.data["{name}"] = {text};\n'.encode()):
            changed.append(page)
    return changed


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive; Sphinx calls this."""
    app.add_directive("explorable", ExplorableDirective)
    skipped = (skip, skip)
    app.add_node(explorable, html=(visit, depart), latex=skipped, text=skipped)
    app.connect("html-page-context", add_scripts)
    app.connect("env-updated", write_data)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
