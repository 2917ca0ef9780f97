"""Omniglot: 1623 handwritten characters of 50 alphabets, 20 drawings each, section 5.2.

`load()` reads the two archives of https://github.com/brendenlake/omniglot, or their
unpacked folders, and gives 28 x 28 images with strokes of 255 on 0; `split` divides the
characters. Without data, `standin()` draws characters of its own: results on them are
no results on Omniglot, and `source` says so.

Images are made grey, shrunk from 105 x 105 to 28 x 28 by Pillow's LANCZOS filter and
inverted. Deviation: the authors' code asks for the same filter on one-bit images, where
Pillow always takes NEAREST instead; theirs have two values, ours are smooth.

Deviation: their split depends on the order in which their file system lists folders, so
nobody can have it. Ours has the same sizes and stands in `omniglot_split.csv`; it was
made by `draw_splits`, seed 2017.
"""

import csv
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cache, partial
from io import BytesIO, FileIO
from pathlib import Path
from typing import IO, NamedTuple

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
from tinymaml.tasks.strokes import draw, hands

DRAWINGS = 20
NUMBERS = tuple(f"{number:02}" for number in range(1, DRAWINGS + 1))
SIZE, SMALL = 105, 28  # pixels along an edge, upstream and here
URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
ARCHIVES = {  # name and published MD5
    "images_background.zip": "68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation.zip": "6b91aef0f799c5bb55b94e3f2daec811",
}
PARTS = ("images_background", "images_evaluation")
SEED = 2017
STANDIN_ALPHABETS = 10


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
        fingerprints = [
            file.fingerprint for name in sorted(files) for file in files[name]
        ]
        images = cached(
            "omniglot",
            ["LANCZOS", fingerprints],
            (len(fingerprints), SMALL, SMALL, 1),
            lambda: _decode(files),
        )
    labels = np.arange(len(files)).repeat(DRAWINGS)
    return ImageSet(images, labels, tuple(sorted(files)), "Omniglot")


def split(image_set: ImageSet, name: str = "authors") -> dict[str, ImageSet]:
    """Divide the characters of `load()` or `standin()` into train, validation and test.

    "authors": train 1100, validation 100, test 423, as the authors' code. "paper":
    train 1200 (train and validation of the above), the same test 423. "background":
    test is the evaluation set, 659 characters of 20 other alphabets; validation is
    Arcadian, Braille, Gujarati and Inuktitut of the background set, 116 characters;
    train is the rest of it, 848.

    The stand-in is divided in like manner: 186 / 24 / 30, 210 / 30 and 120 / 24 / 96.
    Returns sets that have no character in common. Raises ValueError: another name, or
    not the characters of these two.

    >>> parts = split(standin())
    >>> {name: len(part.classes) for name, part in parts.items()}
    {'train': 186, 'validation': 24, 'test': 30}
    """
    if name not in ("authors", "paper", "background"):
        raise ValueError(f"name: expected authors, paper or background, got {name!r}")
    table = rows()
    if image_set.source == STANDIN:
        first = {f"Strokes_{a:02}" for a in range(STANDIN_ALPHABETS * 3 // 5)}
        parts = {c: PARTS[c.split("/")[0] not in first] for c in _standin_classes()}
        table = draw_splits(parts, validation=24, test=30)
    if set(image_set.classes) != {row.character for row in table}:
        raise ValueError(
            "image_set: expected all characters of load() or standin(), got "
            f"{len(image_set.classes)} of {image_set.source}"
        )
    members: dict[str, set[str]] = {"train": set(), "validation": set(), "test": set()}
    for row in table:
        members[row.background if name == "background" else row.authors].add(
            row.character
        )
    if name == "paper":
        members["train"] |= members.pop("validation")
    return {part: image_set.only(members[part]) for part in members}


def standin(seed: int = 0) -> ImageSet:
    """Drawn strokes in the layout of `load()`: 10 alphabets of 24 characters.

    Its source says "procedural stand-in". The same seed gives the same images.

    >>> standin().images.shape, standin().source
    ((4800, 28, 28, 1), 'procedural stand-in')
    """
    classes = _standin_classes()
    images = [
        shrink(draw(hand, SIZE))
        for number in range(len(classes))
        for hand in hands(np.random.default_rng((seed, number)), DRAWINGS)
    ]
    labels = np.arange(len(classes)).repeat(DRAWINGS)
    return ImageSet(np.stack(images), labels, classes, STANDIN)


def _standin_classes() -> tuple[str, ...]:
    return tuple(
        f"Strokes_{alphabet:02}/character{character:02}"
        for alphabet in range(STANDIN_ALPHABETS)
        for character in range(1, 25)
    )


def draw_splits(
    parts: Mapping[str, str], validation: int = 100, test: int = 423
) -> tuple[Row, ...]:
    """How omniglot_split.csv was made, from the part of each character.

    authors: the sorted characters in the order of `default_rng(2017).permutation`; the
    last `test` are test, the `validation` before them validation.
    background: the sorted alphabets of the background set in such an order; the first
    of them that have `validation` characters or more are validation.
    """
    characters = sorted(parts)
    train = len(characters) - validation - test
    names = ["train"] * train + ["validation"] * validation + ["test"] * test
    order = np.random.default_rng(SEED).permutation(len(characters))
    authors = {characters[i]: name for i, name in zip(order, names, strict=True)}
    background = {c: "train" if parts[c] == PARTS[0] else "test" for c in characters}
    alphabets = sorted({c.split("/")[0] for c in parts if parts[c] == PARTS[0]})
    for i in np.random.default_rng(SEED).permutation(len(alphabets)):
        if list(background.values()).count("validation") < validation:
            ours = [c for c in characters if c.split("/")[0] == alphabets[i]]
            background |= dict.fromkeys(ours, "validation")
    return tuple(Row(c, parts[c], authors[c], background[c]) for c in characters)


# --- the source -----------------------------------------------------------------------


def fetch(path: Path, url: str = URL, retries: int = 3) -> None:
    """Download the archive that `path` names from `url`, whole or not at all.

    It must have the published MD5 checksum. Raises DataError after `retries` more
    attempts, or if the folder cannot be written.
    """
    import pooch  # slow to import, and only needed here

    shelf = pooch.create(
        path.parent,
        url,
        registry={path.name: f"md5:{ARCHIVES[path.name]}"},
        retry_if_failed=retries,
    )
    http = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=60)
    try:
        shelf.fetch(path.name, downloader=http)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path.name}: expected to download it from {url}, but {error}; try again, "
            f"or put it into {path.parent} yourself"
        ) from error


class File(NamedTuple):
    """A drawing in an archive or a folder."""

    path: str  # as in the archive: images_background/Alphabet/character01/0001_01.png
    fingerprint: int | list[int]  # changes with its contents
    open: Callable[[], IO[bytes]]


def _list_files(folder: Path, part: str, stack: ExitStack) -> list[File]:
    """All files of a part, from its archive or else from its unpacked folder."""
    path = folder / f"{part}.zip"
    if path.exists():
        try:
            archive = stack.enter_context(zipfile.ZipFile(path))
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(
                f"{path}: expected a zip archive, got a damaged file ({error}); delete "
                "it and get it again"
            ) from error
        return [
            File(entry.filename, entry.CRC, partial(archive.open, entry))
            for entry in archive.infolist()
        ]
    if not (folder / part).is_dir():
        raise DataError(
            f"Omniglot: expected {part}.zip or the folder {part} in {folder}, found "
            "neither; put it there, name its folder (--data or TINYMAML_DATA), or pass "
            "download=True / --download"
        )
    files = []
    for file in sorted((folder / part).rglob("*.png")):
        status = file.stat()
        fingerprint = [status.st_size, status.st_mtime_ns]
        name = file.relative_to(folder).as_posix()
        files.append(File(name, fingerprint, partial(FileIO, file)))
    return files


def _drawings(part: str, listed: Sequence[File]) -> dict[str, list[File]]:
    """The files of each character, in the order of their names; all must be there."""
    expected = {row.character for row in rows() if row.part == part}
    found: dict[str, dict[str, File]] = {name: {} for name in expected}
    extra = []
    for file in listed:
        root, _, name = file.path.rpartition("/")
        # Macs add __MACOSX/images_background/... and ._files, which are no drawings.
        if not root.startswith(f"{part}/") or not name.endswith(".png"):
            continue
        if name.startswith("."):
            continue
        character = root.removeprefix(f"{part}/")
        number = name.removesuffix(".png")[-2:]  # of 0709_01.png
        if number in NUMBERS and number not in found.get(character, NUMBERS):
            found[character][number] = file
        else:
            extra.append(file.path)
    seen = {name.split("/")[0] for name, files in found.items() if files}
    missing = [
        f"alphabet {name}"
        for name in sorted({name.split("/")[0] for name in expected} - seen)
    ] + [
        name if not files else f"{name} drawing {number}"
        for name, files in sorted(found.items())
        if name.split("/")[0] in seen
        for number in NUMBERS[: DRAWINGS if files else 1]
        if number not in files
    ]
    for problem, names in (("missing", missing), ("not expected", extra)):
        if names:
            raise DataError(
                f"{part}: expected {DRAWINGS} drawings of each of {len(expected)} "
                f"characters; {problem}: {some(names)}; get this part again"
            )
    return {name: [found[name][number] for number in NUMBERS] for name in found}


def _decode(files: dict[str, list[File]]) -> Iterator[Array]:
    """Small images, one after the other, in the order of the characters' names."""
    names = tqdm(sorted(files), "Omniglot", unit=" characters", disable=None)
    for name in names:
        for file in files[name]:
            try:
                with file.open() as stream:
                    encoded = stream.read()  # to its end: only there zips are checked
            except (OSError, zipfile.BadZipFile, zlib.error) as error:
                raise DataError(f"{file.path}: cannot be read ({error})") from error
            image = read_image(BytesIO(encoded), file.path, "L")
            if image.size != (SIZE, SIZE):
                raise DataError(
                    f"{file.path}: expected {SIZE} x {SIZE} pixels, got "
                    f"{image.size[0]} x {image.size[1]}"
                )
            yield shrink(image)


def shrink(image: Image.Image) -> Array:
    """A grey image of dark strokes on white as (28, 28, 1) uint8, strokes 255."""
    small = image.resize((SMALL, SMALL), Image.Resampling.LANCZOS)
    return 255 - np.asarray(small)[..., None]
