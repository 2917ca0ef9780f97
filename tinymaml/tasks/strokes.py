"""Drawn strokes: images for use where the real data sets are missing.

A class is two to four curves. Each of its images draws the same curves with a slightly
different hand: every curve is bent, and all of them are sheared, scaled and shifted.
With these images every example and test runs without data, in the layout of the real
sets. The tasks are easier than the real ones, so results on them say nothing about the
paper's.
"""

import numpy as np
from PIL import Image, ImageDraw

from tinymaml.checks import Array

Colour = tuple[int, ...] | int


def sample_strokes(rng: np.random.Generator, count: int) -> Array:
    """The strokes of `count` images of one new class, points in about 0 .. 1.

    Returns shape (count, strokes, 24, 2): a stroke is a line through 24 points (x, y).

    >>> sample_strokes(np.random.default_rng(0), 20).shape
    (20, 4, 24, 2)
    """
    strokes = rng.integers(2, 5)
    controls = rng.uniform(0.15, 0.85, (strokes, 4, 2))
    controls = controls + rng.normal(0.0, 0.025, (count, strokes, 4, 2))
    transform = np.eye(2) + rng.normal(0.0, 0.07, (count, 1, 2, 2))
    shift = 0.5 + rng.normal(0.0, 0.03, (count, 1, 1, 2))
    # Cubic Bezier curves: the weights of the four control points at t are the terms of
    # (s + t)^3, with s + t = 1.
    t = np.linspace(0.0, 1.0, 24)[:, None]
    s = 1.0 - t
    weights = np.concatenate([s**3, 3 * s**2 * t, 3 * s * t**2, t**3], axis=1)
    return (weights @ controls - 0.5) @ transform + shift


def draw(
    strokes: Array, size: int, ink: Colour = 0, ground: Colour = 255
) -> Image.Image:
    """An image of strokes (strokes, 24, 2); the colours decide if it is grey or RGB."""
    image = Image.new("L" if isinstance(ink, int) else "RGB", (size, size), ground)
    pen = ImageDraw.Draw(image)
    for points in strokes * size:
        pen.line(points.ravel().tolist(), ink, max(size // 30, 2))  # x, y, x, y ...
    return image
