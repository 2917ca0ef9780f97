"""What a page to play with gets from tinymaml, as JSON: tapes, arrays, numbers, words.

`docs/explorables/walk_back.py` has a function `data()`; `recorded("walk-back")` is what
it returns, in the form that `_static/explorables/explorable.js` reads. Sphinx is not
needed, so that the tests run where only they are installed.
"""

from __future__ import annotations

import base64
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

import tinymaml
from tinymaml.backends.javascript import exported

DOCS = Path(__file__).resolve().parents[1]
FOLDER = "explorables"  # of the pages, and of the scripts in _static


def encode(value: Any) -> Any:
    """Return JSON for data of a page: tapes as exported, arrays as text of bytes.

    On the page an array is flat.
    """
    if isinstance(value, tinymaml.Tape):
        return exported(value)
    if isinstance(value, dict):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        if value.dtype.name not in ("float32", "float64"):
            raise TypeError(f"data: expected float32 or float64, got {value.dtype}")
        array = np.ascontiguousarray(value, value.dtype.newbyteorder("<"))
        text = base64.b64encode(array.tobytes()).decode("ascii")
        return {"base64": text, "dtype": value.dtype.name}
    return value


def recorded(name: str) -> Any:
    """Return what the page's `data()` gives, ready for JSON."""
    path = DOCS / FOLDER / f"{name.replace('-', '_')}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return encode(module.data())
