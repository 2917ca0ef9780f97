"""What the page find-the-goal gets from tinymaml."""

from typing import Any


def data() -> dict[str, Any]:
    """The data."""
    return {}
