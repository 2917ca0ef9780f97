"""Small archives like those of Omniglot, for the tests of the loader and the cache.

They hold five characters of drawn strokes instead of 1623. A test file that imports the
fixtures `own_folders` and `small` can use them.
"""

import io
import zipfile

import numpy as np
import pytest

from tinymaml.tasks import omniglot
from tinymaml.tasks.strokes import draw, sample_strokes

CHARACTERS = {
    "images_background": ["Drawn/character01", "Drawn/character02", "Odd/character01"],
    "images_evaluation": ["Ancient/character01", "New/character01"],
}


def encode(image):
    file = io.BytesIO()
    image.convert("1").save(file, "png")
    return file.getvalue()


def make_drawings():
    """105 x 105 one-bit PNG files, by their paths in the archives."""
    drawings = {}
    for part, characters in CHARACTERS.items():
        for character in characters:
            rng = np.random.default_rng(list(character.encode()))
            for number, strokes in enumerate(sample_strokes(rng, 20), 1):
                path = f"{part}/{character}/0042_{number:02}.png"
                drawings[path] = encode(draw(strokes, 105))
    return drawings


DRAWINGS = make_drawings()


def write_archives(folder, drawings=DRAWINGS):
    folder.mkdir(exist_ok=True)
    for part in CHARACTERS:
        with zipfile.ZipFile(folder / f"{part}.zip", "w") as archive:
            for path, encoded in drawings.items():
                if path.startswith(part):
                    archive.writestr(zipfile.ZipInfo(path), encoded)
    return folder


def write_folders(folder, drawings=DRAWINGS):
    for path, encoded in drawings.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(encoded)
    return folder


def cache_files(folder):
    return sorted((folder / "cache").iterdir())


@pytest.fixture
def own_folders(tmp_path, monkeypatch):
    """The test has a cache folder of its own, and no folder of data."""
    monkeypatch.setenv("TINYMAML_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TINYMAML_DATA", raising=False)


@pytest.fixture
def small(monkeypatch, own_folders):
    """The loader expects the five drawn characters instead of the real ones."""
    expect_drawn_characters(monkeypatch)


def expect_drawn_characters(monkeypatch):
    characters = tuple(
        omniglot.Character(character, part, "train", "train")
        for part, characters in CHARACTERS.items()
        for character in characters
    )
    monkeypatch.setattr(omniglot, "characters", lambda: characters)
