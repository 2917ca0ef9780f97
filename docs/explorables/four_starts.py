"""What the page four-starts gets from tinymaml."""

from typing import Any


def data() -> dict[str, Any]:
    """The data."""
    return {}
