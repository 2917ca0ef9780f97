"""The directive ``tagged``: quote the code of one tag from the live source.

::

    ```{tagged} maml-eq1
    ```

shows the code between ``# [maml-eq1]`` and ``# [/maml-eq1]``, wherever in ``tinymaml/``
or ``examples/`` it is, under its file and line numbers, and names the tests that check
it; both are links to the source. With the option ``:no-tests:`` the tests are not
named. A tag that is lost, or occurs twice, or has no test is an error, which ``-W``
makes fail the build.
"""

from __future__ import annotations

from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from source_files import lines_of_tests
from source_pages import make_link, quotations
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from tags import ROOT, all_fenced, checking_tests


class Tagged(SphinxDirective):
    """Quote the one tagged part of the source whose tag is the argument."""

    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {"no-tests": directives.flag}

    def run(self) -> list[nodes.Node]:
        """Return the quotation and the line that names its tests."""
        tag = self.arguments[0]
        try:
            parts = all_fenced().get(tag, [])
        except ValueError as error:
            raise self.error(str(error)) from None
        if len(parts) != 1:
            raise self.error(f"the tag [{tag}] is in the source {len(parts)} times")
        part = parts[0]
        self.env.note_dependency(str(part.path))
        literal = nodes.literal_block(part.text, part.text, language="python")
        self.set_source_info(literal)
        file = part.path.relative_to(ROOT).as_posix()
        where = nodes.Text(f"{file}, lines {part.first}–{part.last}")
        caption = nodes.caption("", "", make_link(file, part.first, where))
        box = nodes.container("", caption, literal, literal_block=True)
        box["classes"] += ["literal-block-wrapper", "tagged"]
        self.set_source_info(box)
        place = (file, part.first, tag)
        quotations(self.env).setdefault(self.env.docname, []).append(place)
        quoted: list[nodes.Node] = [box]
        if "no-tests" in self.options:
            return quoted
        tests = checking_tests(tag)
        if not tests:
            raise self.error(f"no test has the tag [{tag}] in its name")
        line = nodes.paragraph("", "Tested by ", classes=["tested-by"])
        for i, (path, name) in enumerate(tests):
            self.env.note_dependency(str(path))
            line += nodes.Text(", " if i else "")
            line += make_link(*lines_of_tests()[name], nodes.literal(name, name))
        return [*quoted, line]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive; Sphinx calls this."""
    app.add_directive("tagged", Tagged)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
