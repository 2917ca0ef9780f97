"""What pyproject.toml cannot say: the examples' folder, and the README's links."""

import re
import tomllib
from pathlib import Path

from setuptools import find_namespace_packages, setup

ROOT = Path(__file__).resolve().parent
README = (ROOT / "README.md").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
# Folders of data count as packages, too.
PACKAGES = find_namespace_packages(include=["tinymaml*"], exclude=["*.__pycache__"])
RELATIVE_LINK = re.compile(r"\]\((?![a-z]+:|#)([^)\s]+)\)")


def absolute(link: re.Match[str]) -> str:
    """A Markdown link to a file of the repository, as a package index needs it."""
    kind = "raw" if link[1].endswith((".png", ".svg")) else "blob"
    return f"]({PROJECT['urls']['Repository']}/{kind}/main/{link[1]})"


setup(
    # The wheel has the examples as tinymaml/examples; in a clone they stay where they
    # are, and tinymaml/__main__.py finds them in either place.
    packages=[*PACKAGES, "tinymaml.examples"],
    package_dir={"tinymaml.examples": "examples"},
    long_description=RELATIVE_LINK.sub(absolute, README),
    long_description_content_type="text/markdown",
)
