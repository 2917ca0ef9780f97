"""Run the Python blocks of a Markdown page and compare what they print with the page.

The blocks of a page run one after the other, in one namespace. A block with the line

    # needs mujoco

is left out where that package is not installed, and one that needs TINYMAML_DATA where
this variable, the folder with the data, is not set. A line that prints says so behind
itself,

    print(2 / 3)  # -> 0.67

or, if it prints several lines, in the comment lines below. The words must agree exactly
and the numbers to the digits shown: to one unit in the last digit, or to the relative
tolerance where that is wider.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDS = re.compile(r"^# needs (\w+)$", re.MULTILINE)
DATA = "TINYMAML_DATA"  # the variable that names the folder with the data
PROMISE = re.compile(r"# -> (.*)$")
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?")


def is_there(name: str) -> bool:
    """Whether a package is installed or, if that is the name, TINYMAML_DATA is set."""
    return bool(os.environ.get(name) if name == DATA else find_spec(name))


def python_blocks(page: Path) -> Iterator[str]:
    """Yield the Python blocks, each at its own line number of the page."""
    text = page.read_text(encoding="utf-8")
    for block in BLOCK.finditer(text):
        yield "\n" * (text.count("\n", 0, block.start()) + 1) + block[1]


def last_digit(number: str) -> float:
    """Return the weight of the last digit written: 0.01 for "0.67", 1 for "12"."""
    digits, _, exponent = number.lower().partition("e")
    decimals = len(digits.partition(".")[2])
    return float(10.0 ** (int(exponent or 0) - decimals))


def agrees(promised: str, printed: str, relative: float = 0.0) -> bool:
    """Tell whether a printed line is the promised one, to the digits promised."""
    words = [" ".join(NUMBER.sub(" # ", text).split()) for text in (promised, printed)]
    wanted, found = NUMBER.findall(promised), NUMBER.findall(printed)
    if words[0] != words[1] or len(wanted) != len(found):
        return False
    for a, b in zip(wanted, found, strict=True):
        # A count is exact; 1.001 forgives the rounding of the subtraction.
        digit, fraction = (1.001 * last_digit(a), relative) if "." in a else (0.0, 0.0)
        if not math.isclose(float(a), float(b), rel_tol=fraction, abs_tol=digit):
            return False
    return True


def run_page(page: Path, relative: float = 0.0) -> int:
    """Run a page's blocks; return how many printed lines were compared.

    Raises:
        AssertionError: a line printed is not the one the page promises.
    """
    namespace: dict[str, Any] = {"__name__": "__page__"}
    compared = 0
    for block in python_blocks(page):
        if not all(map(is_there, NEEDS.findall(block))):
            continue
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(block, str(page), "exec"), namespace)
        promised = [p[1] for line in block.splitlines() if (p := PROMISE.search(line))]
        printed = output.getvalue().splitlines()
        assert len(promised) == len(printed), (
            f"{page.name} promises {len(promised)} printed lines and prints {printed}"
        )
        for want, got in zip(promised, printed, strict=True):
            assert agrees(want, got, relative), f"{page.name}: {want!r} but {got!r}"
        compared += len(promised)
    return compared
