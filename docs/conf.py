"""How Sphinx builds these pages.

From the root of a clone:

    python -m sphinx -W --keep-going -b html docs docs/_build/html
"""

import builtins
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

import tinymaml  # noqa: E402

project = "tinymaml"
author = "tinymaml contributors"
copyright = "tinymaml contributors"
version = release = tinymaml.__version__

extensions = [
    "myst_parser",
    "sphinx_design",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx.ext.mathjax",
    "tagged_source",
]
exclude_patterns = ["_build", "_ext"]

# A reference to an object that does not exist must fail the build; Python's and NumPy's
# own objects live on other sites, which a build must not depend on.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", rf"(numpy|np|collections)\..*|{'|'.join(dir(builtins))}")
]
# `name` in a docstring is code, as in Markdown.
default_role = "code"
# Annotations name NumPy's types, whose documentation would have to be downloaded.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = True
napoleon_google_docstring = True

myst_enable_extensions = [
    "amsmath",
    "attrs_block",
    "attrs_inline",
    "colon_fence",
    "deflist",
    "dollarmath",
]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"tinymaml {release}"
html_static_path = ["_static"]
html_css_files = ["tinymaml.css"]
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"


def escape_plain_text(app, what, name, obj, options, lines):
    """Escape | and * in docstrings, which are plain English: |H v|, *args, a * b.

    Left alone: `code`, doctests, and blocks that hang on a line with two colons.
    """
    block = None  # the indentation of the line on which a block hangs, -1 for a doctest
    for i, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if block == -1:
            block = None if not line.strip() else block
        elif block is not None and line.strip() and indent <= block:
            block = None
        if line.lstrip().startswith(">>>"):
            block = -1
        if block is None:
            parts = re.split(r"(``.*?``|`.*?`|:\S+:)", line)
            parts[::2] = [re.sub(r"([|*])", r"\\\1", part) for part in parts[::2]]
            lines[i] = "".join(parts)
            if line.endswith("::"):
                block = indent


def setup(app):
    """Sphinx calls this. The priority puts plain text before napoleon's markup."""
    app.connect("autodoc-process-docstring", escape_plain_text, priority=400)
