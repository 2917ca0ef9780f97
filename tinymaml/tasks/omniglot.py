"""Omniglot: 1623 handwritten characters of 50 alphabets, 20 drawings each, section 5.2.

`load()` reads the two archives of https://github.com/brendenlake/omniglot, or their
unpacked folders, and gives 28 x 28 images with strokes of 255 on 0; `split` divides the
characters. Without data, `standin()` draws characters of its own: results on them are
no results on Omniglot, and `source` says so.

As the authors' code: Pillow's LANCZOS filter from 105 x 105 to 28 x 28, then inverted.
Deviation: their split depends on the order in which their file system lists folders, so
nobody can have it. Ours has the same sizes and stands in `omniglot_split.csv`; it was
made by `draw_splits`, seed 2017.
"""

import csv
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from tinymaml.tasks.images import (
    STANDIN,
    Array,
    DataError,
    FilePath,
    ImageSet,
    cached,
    data_folder,
    read_image,
    some,
)

DRAWINGS = 20
SIZE, SMALL = 105, 28  # pixels along an edge, upstream and here
URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
ARCHIVES = {  # name and published MD5
    "images_background.zip": "68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation.zip": "6b91aef0f799c5bb55b94e3f2daec811",
}
PARTS = ("images_background", "images_evaluation")
SEED = 2017


class Row(NamedTuple):
    """A line of omniglot_split.csv: where a character belongs."""

    character: str  # "Alphabet/character01"
    part: str  # one of PARTS
    authors: str  # train, validation or test
    background: str  # the same


@cache
def rows() -> tuple[Row, ...]:
    """The split list, sorted by character."""
    path = Path(__file__).with_name("omniglot_split.csv")
    with open(path, encoding="utf-8", newline="") as file:
        return tuple(Row(*row) for row in list(csv.reader(file))[1:])


def find_data(data: FilePath | None = None) -> Path:
    """The folder of the archives: in `data`, else $TINYMAML_DATA, else a user's cache.

    It is that folder if an archive or an unpacked folder is in it, else its subfolder
    "omniglot", whether or not that exists.
    """
    return data_folder(data, "omniglot", [*PARTS, *ARCHIVES])


def load(data: FilePath | None = None, download: bool = False) -> ImageSet:
    """All 1623 characters: images (32460, 28, 28, 1) uint8, strokes 255, ground 0.

    Classes are "Alphabet/character01", sorted; the 20 drawings of one are consecutive.
    The first call takes seconds and leaves 25 MB in the cache folder ($TINYMAML_CACHE);
    later ones verify the names of the source and the contents of the cache.

    data: folder, see `find_data`. download: fetch archives that are not there (14 MB).

    Raises DataError: something is missing, damaged or of another size.
    """
    folder = find_data(data)
    with ExitStack() as stack:
        files: dict[str, list[File]] = {}
        for part in PARTS:
            archive = folder / f"{part}.zip"
            if download and not archive.exists() and not (folder / part).is_dir():
                fetch(archive)
            files |= _drawings(part, _list_files(folder, part, stack))
        sizes = [file.fingerprint for name in sorted(files) for file in files[name]]
        images = cached(
            "omniglot",
            ["LANCZOS", sizes],
            (len(sizes), SMALL, SMALL, 1),
            lambda: (_decode(file) for file in _progress(files)),
        )
    labels = np.arange(len(files)).repeat(DRAWINGS)
    return ImageSet(images, labels, tuple(sorted(files)), "Omniglot")


def split(image_set: ImageSet, name: str = "authors") -> dict[str, ImageSet]:
    """Divide the characters of `load()` or `standin()`: by name, sets with none common.

    "authors": train 1100, validation 100, test 423, as the authors' code.
    "paper": train 1200 (train and validation of the above), test 423.
    "background": test is the evaluation set, 659; validation is the background set's
        alphabets Atemayar... (see `draw_splits`), train the rest of it.

    The stand-in is divided by the same rules into smaller parts.
    """
    if name not in ("authors", "paper", "background"):
        raise ValueError(f"name: expected authors, paper or background, got {name!r}")
    table = rows()
    if image_set.source == STANDIN:
        half = image_set.classes[len(image_set.classes) * 3 // 5]
        alphabets = half.split("/")[0]
        table = draw_splits(
            {c: PARTS[c.split("/")[0] >= alphabets] for c in image_set.classes},
            validation=len(image_set.classes) // 8,
            test=len(image_set.classes) // 4,
        )
    elif set(image_set.classes) != {row.character for row in table}:
        raise ValueError("image_set: expected all of load() or standin()")
    members: dict[str, set[str]] = {}
    for row in table:
        part = row.background if name == "background" else row.authors
        if name == "paper" and part == "validation":
            part = "train"
        members.setdefault(part, set()).add(row.character)
    order = [part for part in ("train", "validation", "test") if part in members]
    return {part: image_set.only(members[part]) for part in order}


def draw_splits(
    parts: dict[str, str], validation: int = 100, test: int = 423
) -> tuple[Row, ...]:
    """How omniglot_split.csv was made, from the part of each character.

    authors: the sorted characters in the order of `default_rng(2017).permutation`; the
    last `test` are test, the `validation` before them validation.
    background: the sorted alphabets of the background set in such an order; the first
    of them that have `validation` characters or more are validation.
    """
    characters = sorted(parts)
    order = np.random.default_rng(SEED).permutation(len(characters))
    train = len(characters) - validation - test
    authors = {
        characters[i]: "train" if k < train else "validation" if k < train + validation
        else "test"
        for k, i in enumerate(order)
    }
    ours = [c for c in characters if parts[c] == PARTS[0]]
    alphabets = sorted({c.split("/")[0] for c in ours})
    held: set[str] = set()
    for i in np.random.default_rng(SEED).permutation(len(alphabets)):
        if len(held) < validation:
            held |= {c for c in ours if c.split("/")[0] == alphabets[i]}
    return tuple(
        Row(c, parts[c], authors[c], "test" if parts[c] != PARTS[0]
            else "validation" if c in held else "train")
        for c in characters
    )


# --- reading the source ---------------------------------------------------------------


class File(NamedTuple):
    """A drawing in an archive or a folder."""

    path: str  # as in the archive: images_background/Alphabet/character01/0001_01.png
    fingerprint: Any  # changes with its contents
    open: Callable[[], Any]


def _list_files(folder: Path, part: str, stack: ExitStack) -> list[File]:
    """All drawings of a part, from its archive or else from its unpacked folder."""
    path = folder / f"{part}.zip"
    if path.exists():
        try:
            archive = stack.enter_context(zipfile.ZipFile(path))
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(
                f"{path}: expected a zip archive, got a damaged file ({error}); delete "
                "it and download it again"
            ) from error
        return [
            File(entry.filename, entry.CRC, lambda entry=entry: archive.open(entry))
            for entry in archive.infolist()
        ]
    if not (folder / part).is_dir():
        raise DataError(
            f"Omniglot: expected {part}.zip or the folder {part} in {folder}, found "
            f"neither; put it there (or name its folder with --data or TINYMAML_DATA), "
            "or pass download=True / --download"
        )
    found = sorted((folder / part).glob("*/*/*.png"))
    return [
        File(
            file.relative_to(folder).as_posix(),
            [file.stat().st_size, file.stat().st_mtime_ns],
            lambda file=file: open(file, "rb"),
        )
        for file in found
    ]


def _drawings(part: str, listed: Sequence[File]) -> dict[str, list[File]]:
    """The files of each character, in the order of their names; all must be there."""
    expected = {row.character for row in rows() if row.part == part}
    found: dict[str, list[File]] = {}
    for file in listed:
        place = file.path.split("/")
        # What Macs add to archives is no drawing: __MACOSX/images_background/...
        if len(place) == 4 and place[0] == part and not place[3].startswith("."):
            if place[3].endswith(".png"):
                found.setdefault("/".join(place[1:3]), []).append(file)
    wrong = [
        f"{name} ({len(found.get(name, ()))} drawings)"
        for name in sorted(expected | found.keys())
        if _numbers(found.get(name, ())) != (_expected_numbers(name in expected))
    ]
    if wrong:
        raise DataError(
            f"{part}: expected {DRAWINGS} drawings of each of {len(expected)} "
            f"characters, got other numbers for {some(wrong)}; download it again"
        )
    return {name: sorted(found[name], key=lambda file: file.path) for name in found}
