"""How Sphinx builds these pages.

From the root of a clone:

    python -m sphinx -W --keep-going -j auto -b html docs docs/_build/html
"""

import builtins
import hashlib
import os
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

from docutils import nodes  # noqa: E402
from jupyter_cache import get_cache  # noqa: E402

import tinymaml  # noqa: E402


def digest_of(paths):
    """Return a hash of the contents of files."""
    return hashlib.sha256(b"".join(p.read_bytes() for p in sorted(paths))).hexdigest()


project = "tinymaml"
author = "tinymaml contributors"
copyright = "tinymaml contributors"
version = release = tinymaml.__version__

# Where the repository is, for "edit" and "source" links, such as
# https://github.com/NAME/tinymaml, and where the site will be, for the addresses in its
# metadata. Unset, there are no such links.
repository = os.environ.get("TINYMAML_REPOSITORY", "")
branch = os.environ.get("TINYMAML_BRANCH", "main")
html_baseurl = os.environ.get(
    "TINYMAML_SITE", os.environ.get("READTHEDOCS_CANONICAL_URL", "")
)

extensions = [
    "myst_nb",
    "sphinx_design",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinxext.opengraph",
    "notfound.extension",
    "arguments",
    "code_lines",
    "explorables",
    "mathml",
    "names",
    "source_pages",
    "tagged_source",
    "notebooks",
    "tables",
]
exclude_patterns = ["_build", "_ext", "_static"]

# Text notebooks (docs/tutorial) are executed, once for each change of the page or of
# the package; an error in a cell fails the build. They import the package of this
# checkout and draw in SVG, whatever the settings of whoever builds.
files = (HERE.parent / "tinymaml").rglob("*")
digest = digest_of(path for path in files if path.suffix in (".py", ".npz", ".csv"))
ipython = HERE / "_build" / "ipython"
settings = ipython / "profile_default" / "ipython_kernel_config.py"
settings.parent.mkdir(parents=True, exist_ok=True)
settings.write_text('get_config().InlineBackend.figure_formats = {"svg"}\n')
os.environ["IPYTHONDIR"] = str(ipython)
os.environ.pop("MPLBACKEND", None)  # with "Agg", as in tests, cells show no figure
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")])
)
nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE / "_build" / "notebooks" / digest[:12])
# With `-j` several processes read pages; the first use of a cache makes its database.
get_cache(nb_execution_cache_path).list_cache_records()
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_execution_show_tb = True
nb_merge_streams = True
nb_ipywidgets_js = {}

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
html_title = "tinymaml"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["tinymaml.css"]
html_favicon = "_static/favicon.svg"
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
if repository:
    html_theme_options |= {
        "source_repository": repository,
        "source_branch": branch,
        "source_directory": "docs/",
    }

ogp_site_url = html_baseurl or "/"
ogp_site_name = "tinymaml: MAML from scratch"
ogp_social_cards = {"enable": False}
ogp_image = "_static/first_steps.png"
ogp_image_alt = "Three sine waves, before and after gradient steps from a learned start"
ogp_enable_meta_description = True

# The 404 page may be shown at any address, so its links begin at the root of the site.
if "READTHEDOCS" not in os.environ:
    notfound_urls_prefix = os.environ.get("TINYMAML_ROOT", "/")
notfound_context = {
    "title": "Page not found",
    "body": "<h1>Page not found</h1>\n<p>There is no page here. The search finds every"
    " page, and the start page lists them in reading order.</p>",
}


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


def split_keywords(app, doctree):
    """Index the words of a page's keywords one by one, as the search looks them up."""
    for node in doctree.findall(nodes.meta):
        if node.get("name") == "keywords":
            words = re.findall(r"[\w']+", node["content"])
            node["content"] = ", ".join(dict.fromkeys(words))


def setup(app):
    """Sphinx calls this. The priority puts plain text before napoleon's markup."""
    # All pages are made again when an extension has changed.
    extensions = digest_of((HERE / "_ext").glob("*.py"))
    app.add_config_value("digest_of_extensions", extensions, "env")
    app.connect("doctree-read", split_keywords)
    app.connect("autodoc-process-docstring", escape_plain_text, priority=400)
