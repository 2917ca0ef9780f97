"""What the page walk-back gets from tinymaml."""

from typing import Any


def data() -> dict[str, Any]:
    """The data."""
    return {}
