"""What the page five-characters gets from tinymaml."""

from typing import Any


def data() -> dict[str, Any]:
    """The data."""
    return {}
