"""Every line of highlighted code is an element of its own, so that it can be wrapped.

On a narrow screen a long line goes on below, indented a little deeper than it began:
the style sheet takes the depth from the variable ``--indent``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from typing import Any

from pygments.formatters import HtmlFormatter
from sphinx.application import Sphinx
from sphinx.highlighting import PygmentsBridge

MARKUP = re.compile(r"<[^>]*>")


def line_element(html: str, before: str = "", after: str = "", name: str = "") -> str:
    """Return the element of one highlighted line, with what stands before and after."""
    text = unescape(MARKUP.sub("", html)).rstrip("\n")
    indent = len(text) - len(text.lstrip(" "))
    identity = f' id="{name}"' if name else ""
    style = f' style="--indent:{indent}"' if indent else ""
    code = html.removesuffix("\n")
    return f'<span class="line"{identity}{style}>{before}{code}{after}\n</span>'


class LineFormatter(HtmlFormatter):  # type: ignore[type-arg]
    """Pygments' formatter for HTML, with an element for each line."""

    def _format_lines(self, tokensource: Any) -> Iterator[tuple[int, str]]:
        for is_code, html in super()._format_lines(tokensource):
            yield is_code, line_element(html) if is_code else html


def setup(app: Sphinx) -> dict[str, bool]:
    """Let Sphinx highlight with this formatter; Sphinx calls this."""
    PygmentsBridge.html_formatter = LineFormatter
    return {"parallel_read_safe": True, "parallel_write_safe": True}
