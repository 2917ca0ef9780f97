"""Run the models of the site's explorables in Node, on what the build gives them.

    data = recorded_data("walk-back")                 # docs/explorables/walk_back.py
    (path,) = run_model("walk-back", [("walk", ["quadratic", [2.0, 0.0], 0.5, 2])])

A model is the part of a page's script that computes. It has no document, so Node runs
the very text that a reader's browser does. Arrays go in as NumPy arrays or lists and
come back as lists.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tests.support.node_backend import NODE, TAPE_JS

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "docs" / "_static" / "explorables"
RUNNER = Path(__file__).with_name("run_explorable.js")

sys.path.append(str(ROOT / "docs" / "_ext"))


def run_model(
    name: str, calls: Sequence[tuple[Any, ...]], data: Any = None
) -> list[Any]:
    """Return the results of calls (method, arguments[, values to take]) of a model."""
    from recorded import encode

    assert NODE is not None
    scripts = (SCRIPTS / f"{part}.js" for part in ("tools", "explorable", name))
    request = {
        "name": name,
        "data": encode(data) if data is not None else recorded_data(name),
        "calls": [encode(call if len(call) == 3 else (*call, None)) for call in calls],
    }
    run = subprocess.run(
        [NODE, RUNNER, TAPE_JS, *scripts],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    answers: list[Any] = json.loads(run.stdout)
    return answers


@cache
def recorded_data(name: str) -> Any:
    """What the build writes for a page, as JSON."""
    from recorded import recorded

    return recorded(name)
