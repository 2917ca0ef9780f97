"""Tapes for JavaScript: `export` writes one as JSON, and `tape.js` runs it."""

from tinymaml.backends.javascript.export import export, exported

__all__ = ["export", "exported"]
