"""Drawn strokes: images for where the real data sets are not at hand.

A class is two to four curves; each of its images draws them with a slightly different
hand: every curve bent, all of them sheared, scaled and shifted. That is enough to try
every example and test without data, in the layout of the real sets. The task is easier
than theirs, so no result on these images says anything about the paper's.
"""

from typing import Any

import numpy as np
from PIL import Image, ImageDraw

Array = np.ndarray[Any, Any]
Colour = tuple[int, ...] | int


def hands(rng: np.random.Generator, count: int) -> Array:
    """One new class, drawn `count` times: points (count, strokes, 24, 2) in about 0..1.

    >>> hands(np.random.default_rng(0), 20).shape
    (20, 4, 24, 2)
    """
    strokes = rng.integers(2, 5)
    ends = rng.uniform(0.15, 0.85, (strokes, 4, 2))
    ends = ends + rng.normal(0.0, 0.025, (count, strokes, 4, 2))
    turn = np.eye(2) + rng.normal(0.0, 0.07, (count, 1, 2, 2))
    shift = 0.5 + rng.normal(0.0, 0.03, (count, 1, 1, 2))
    # Cubic Bezier curves: the binomial expansion of (s + t)^3, with s + t = 1.
    t = np.linspace(0.0, 1.0, 24)[:, None]
    s = 1.0 - t
    bends = np.concatenate([s**3, 3 * s**2 * t, 3 * s * t**2, t**3], axis=1)
    return (bends @ ends - 0.5) @ turn + shift


def draw(hand: Array, size: int, ink: Colour = 0, ground: Colour = 255) -> Image.Image:
    """An image of one `hand`, points (strokes, 24, 2); grey or RGB as the colours."""
    mode = "L" if isinstance(ink, int) else "RGB"
    image = Image.new(mode, (size, size), ground)
    pen = ImageDraw.Draw(image)
    for points in hand * size:
        pen.line(points.ravel().tolist(), ink, max(size // 30, 2))  # x, y, x, y ...
    return image
