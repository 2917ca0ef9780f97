"""Omniglot: 1623 handwritten characters of 50 alphabets, 20 drawings each, section 5.2.

`load()` reads the two archives of https://github.com/brendenlake/omniglot, or their
unpacked folders, and returns 28 x 28 images with strokes of 255 on a ground of 0;
`split` divides the characters. Without data, `standin()` draws characters of its own.
Results on them are no results on Omniglot, and `source` says so.

Images are converted to grey, shrunk from 105 x 105 to 28 x 28 pixels by Pillow's
LANCZOS filter and inverted. Deviation: the authors' code asks for the same filter on
one-bit images, where Pillow always takes NEAREST instead. Their pixels have two values,
ours have many.

Deviation: the authors' split depends on the order in which their file system listed
folders, so nobody can repeat it. Ours has the same sizes. It is in
`omniglot_split.csv`, drawn from seed 2017 as `tests/tasks/test_omniglot.py` shows.
"""

import csv
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cache, partial
from io import BytesIO, FileIO
from itertools import product
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from tqdm import tqdm

from tinymaml.checks import check_choice, check_that
from tinymaml.tasks import images
from tinymaml.tasks.images import STANDIN, Array, DataError, FilePath, Image, ImageSet
from tinymaml.tasks.strokes import draw, sample_strokes

DRAWINGS = 20
NUMBERS = tuple(f"{number:02}" for number in range(1, DRAWINGS + 1))
SIZE, SMALL = 105, 28  # pixels along an edge, in the archives and here
LIMIT = 1 << 17  # bytes of a drawing's file, which normally has some 200
URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
ARCHIVES = {  # file names and published MD5 checksums
    "images_background.zip": "68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation.zip": "6b91aef0f799c5bb55b94e3f2daec811",
}
PARTS = ("images_background", "images_evaluation")
# Where they may be in the folder that the user names: torchvision and a clone of the
# repository have them deeper.
SUBFOLDERS = "omniglot omniglot-py python omniglot/omniglot-py omniglot/python".split()
SEED = 2017
STANDIN_ALPHABETS = 10


class Character(NamedTuple):
    """A line of omniglot_split.csv: the archive and the splits of a character."""

    name: str  # "Alphabet/character01"
    part: str  # the archive that it is in, one of PARTS
    authors: str  # train, validation or test in the split "authors"
    background: str  # train, validation or test in the split "background"


@cache
def characters() -> tuple[Character, ...]:
    """All characters of omniglot_split.csv, sorted by name."""
    path = Path(__file__).with_name("omniglot_split.csv")
    with open(path, encoding="utf-8", newline="") as file:
        return tuple(Character(*row) for row in list(csv.reader(file))[1:])


def find_data(data: FilePath | None = None) -> Path:
    """The folder of the archives, in `data`, $TINYMAML_DATA or the user's cache folder.

    The first of the three that is given counts. The result is this folder, or a
    subfolder as torchvision (omniglot-py) or a clone of the repository (python) has it,
    if an archive or an unpacked folder is there, and otherwise its subfolder
    "omniglot", which need not exist.
    """
    return images.data_folder(data, SUBFOLDERS, [*PARTS, *ARCHIVES])


def load(data: FilePath | None = None, download: bool = False) -> ImageSet:
    """All 1623 characters: images (32460, 28, 28, 1) uint8, strokes 255, ground 0.

    Classes are "Alphabet/character01", sorted; the 20 drawings of one are consecutive.
    The first call takes seconds and writes 25 MB to the cache folder ($TINYMAML_CACHE).
    Later calls verify the names and fingerprints of the drawings, and the contents of
    the cache.

    data: folder, see `find_data`. download: fetch archives that are missing (16 MB).

    Drawings are PNG files, dark on white or on nothing. The checksums of archives and
    of PNG files are verified.

    Raises DataError: something is missing, damaged, of another size or format.
    ImportError: `download` needs pooch.
    """
    folder = find_data(data)
    with ExitStack() as stack:
        drawings: dict[str, list[SourceFile]] = {}
        for part in PARTS:
            archive = folder / f"{part}.zip"
            if download and not archive.exists() and not (folder / part).is_dir():
                fetch(archive)
            drawings |= _group_drawings(part, _list_files(folder, part, stack))
        fingerprints = [
            file.fingerprint for name in sorted(drawings) for file in drawings[name]
        ]
        source, shape = ["LANCZOS", fingerprints], (len(fingerprints), SMALL, SMALL, 1)
        build = partial(_decode, drawings)
        pixels = images.load_cached("omniglot", source, shape, build)
    labels = np.arange(len(drawings)).repeat(DRAWINGS)
    return ImageSet(pixels, labels, tuple(sorted(drawings)), "Omniglot")


def split(image_set: ImageSet, name: str = "authors") -> dict[str, ImageSet]:
    """Divide the characters of `load()` or `standin()` into train, validation and test.

    "authors": 1100 to train, 100 to validate and 423 to test, as in the authors' code.
    "paper": 1200 to train, which are train and validation of "authors", and the same
    423 to test. "background": the test set is the evaluation archive, 659 characters of
    20 other alphabets; of the background archive four alphabets (Arcadian, Braille,
    Gujarati and Inuktitut, 116 characters) are the validation set, and the other 848
    characters the training set.

    The stand-in is divided likewise: 186 / 24 / 30, 210 / 30 and 120 / 24 / 96. No
    character is in two sets. Raises ValueError: another name, or an image set
    that has other characters than `load()` and `standin()`.

    >>> parts = split(standin())
    >>> {name: len(part.classes) for name, part in parts.items()}
    {'train': 186, 'validation': 24, 'test': 30}
    """
    check_choice("name", name, ("authors", "paper", "background"))
    table = _standin_characters() if image_set.source == STANDIN else characters()
    fits = set(image_set.classes) == {character.name for character in table}
    came = f"{len(image_set.classes)} of {image_set.source}"
    check_that(fits, "image_set", "all characters of load() or standin()", came)
    names: dict[str, set[str]] = {"train": set(), "validation": set(), "test": set()}
    for c in table:
        names[c.background if name == "background" else c.authors].add(c.name)
    if name == "paper":
        names["train"] |= names.pop("validation")
    return {subset: image_set.select(names[subset]) for subset in names}


def standin(seed: int = 0) -> ImageSet:
    """Drawn strokes in the layout of `load()`: 10 alphabets of 24 characters.

    Its source says "procedural stand-in". The same seed gives the same images.

    >>> standin().images.shape, standin().source
    ((4800, 28, 28, 1), 'procedural stand-in')
    """
    classes = _standin_classes()
    drawn = [
        shrink(draw(strokes, SIZE))
        for number in range(len(classes))
        for strokes in sample_strokes(np.random.default_rng((seed, number)), DRAWINGS)
    ]
    labels = np.arange(len(classes)).repeat(DRAWINGS)
    return ImageSet(np.stack(drawn), labels, classes, STANDIN)


def _standin_classes() -> tuple[str, ...]:
    numbers = product(range(STANDIN_ALPHABETS), range(1, 25))
    return tuple(f"Strokes_{a:02}/character{c:02}" for a, c in numbers)


def _standin_characters() -> tuple[Character, ...]:
    """The splits of the stand-in: six of its alphabets count as background."""
    order = np.random.default_rng(SEED).permutation(_standin_classes()).tolist()
    authors = dict.fromkeys(order, "train") | dict.fromkeys(order[186:], "validation")
    authors |= dict.fromkeys(order[210:], "test")
    background = ["validation", *["train"] * 5, *["test"] * 4]  # of each alphabet
    return tuple(
        Character(name, "", authors[name], background[int(name[8:10])])
        for name in _standin_classes()
    )


# --- reading the source ---------------------------------------------------------------


def fetch(path: Path, url: str = URL, retries: int = 3) -> None:
    """Download the archive that `path` names from `url`, whole or not at all.

    It must have the published MD5 checksum. Raises DataError after `retries` more
    attempts, or if the folder cannot be written.
    """
    try:
        import pooch  # slow to import, and only needed here
    except ImportError:
        raise ImportError(f"pooch{images.EXTRA}") from None
    sums = {path.name: f"md5:{ARCHIVES[path.name]}"}
    registry = pooch.create(path.parent, url, registry=sums, retry_if_failed=retries)
    http = pooch.HTTPDownloader(progressbar=images.show_progress(), timeout=60)
    try:
        registry.fetch(path.name, downloader=http)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path.name}: expected to download it from {url}, but {error}; try again, "
            f"or put it into {path.parent} yourself"
        ) from error


class SourceFile(NamedTuple):
    """A file of an archive or a folder, normally a drawing."""

    path: str  # as in the archive: images_background/Alphabet/character01/0001_01.png
    fingerprint: int | list[int]  # differs if the contents do
    open: Callable[[], IO[bytes]]


def _list_files(folder: Path, part: str, stack: ExitStack) -> list[SourceFile]:
    """All files of a part, from its archive if it is there, or its unpacked folder."""
    path = folder / f"{part}.zip"
    if path.exists():
        images.fingerprint(path)
        try:
            archive = stack.enter_context(zipfile.ZipFile(path))
            # zipfile reads other methods without a limit, or not at all.
            methods = {member.compress_type for member in archive.infolist()}
            if not methods <= {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                raise zipfile.BadZipFile("its compression is not deflate")
        # zipfile raises many kinds of error for what it cannot read.
        except Exception as error:
            raise DataError(
                f"{path}: expected a zip archive, got one that is damaged, unknown or "
                f"not to be read ({error}); if damaged, delete it and get it again"
            ) from error
        return [
            # Some programs for Windows write backslashes.
            SourceFile(m.filename.replace("\\", "/"), m.CRC, partial(archive.open, m))
            for m in archive.infolist()
        ]
    if not (folder / part).is_dir():
        raise DataError(
            f"Omniglot: expected {part}.zip or the folder {part} in {folder}, found "
            "neither; put it there, name its folder (--data or TINYMAML_DATA), or pass "
            "download=True / --download"
        )
    files = []
    # Unlike rglob, glob follows symbolic links; the bound on the depth ends a circle.
    for depth in range(4):
        for file in (folder / part).glob("*/" * depth + "*.png"):
            name, date = file.relative_to(folder).as_posix(), images.fingerprint(file)
            files.append(SourceFile(name, date, partial(FileIO, file)))
    return files


def _group_drawings(
    part: str, files: Sequence[SourceFile]
) -> dict[str, list[SourceFile]]:
    """The 20 drawings of each character of a part, in the order of their numbers.

    Raises DataError if one is missing, or if there are files that are not expected.
    """
    names = {character.name for character in characters() if character.part == part}
    drawings: dict[str, dict[str, SourceFile]] = {name: {} for name in names}
    extra = []
    for file in files:
        # A Mac adds __MACOSX/... and ._files.
        hidden = any(n.startswith((".", "__MACOSX")) for n in file.path.split("/"))
        if hidden or not file.path.endswith(".png"):
            continue
        # Many programs unpack an archive into one more folder of its own name.
        character = "/".join(file.path.split("/")[-3:-1])
        number = file.path.removesuffix(".png")[-2:]  # of 0709_01.png
        if number in NUMBERS and number not in drawings.get(character, NUMBERS):
            drawings[character][number] = file
        else:
            extra.append(file.path)
    missing = _name_missing(drawings)
    expected = f"{DRAWINGS} drawings of each of {len(names)} characters"
    for what, paths in (("fewer; missing", missing), ("more; not expected", extra)):
        came = f"{what}: {images.abbreviate(paths)}; get this part again"
        check_that(not paths, part, expected, came, DataError)
    return {name: [drawings[name][n] for n in NUMBERS] for name in drawings}


def _name_missing(drawings: dict[str, dict[str, SourceFile]]) -> list[str]:
    """The alphabets, characters and single drawings that are missing, each once."""
    alphabets = {name.split("/")[0] for name in drawings}
    present = {name.split("/")[0] for name in drawings if drawings[name]}
    missing = [f"alphabet {alphabet}" for alphabet in sorted(alphabets - present)]
    for name, numbers in sorted(drawings.items()):
        if not numbers and name.split("/")[0] in present:
            missing.append(name)
        elif numbers:
            missing += [f"{name} drawing {n}" for n in NUMBERS if n not in numbers]
    return missing


def _decode(drawings: dict[str, list[SourceFile]]) -> Iterator[Array]:
    """Small images, one after the other, in the order of the characters' names."""
    show = images.show_progress()
    names = tqdm(sorted(drawings), "Omniglot", unit=" characters", disable=not show)
    for name in names:
        for file in drawings[name]:
            try:
                with file.open() as stream:
                    # Read to the end: only there does zipfile compare the checksum.
                    encoded = stream.read(LIMIT + 1)
                if len(encoded) > LIMIT:
                    raise ValueError(f"expected at most {LIMIT} bytes, got more")
            except Exception as error:
                raise DataError(f"{file.path}: cannot be read ({error})") from error
            stream = BytesIO(encoded)
            image = images.read_image(stream, file.path, "L", ("PNG",), (SIZE, SIZE))
            yield shrink(image)


def shrink(image: Image.Image) -> Array:
    """A grey image of dark strokes on white as (28, 28, 1) uint8, strokes 255."""
    small = image.resize((SMALL, SMALL), Image.Resampling.LANCZOS)
    return 255 - np.asarray(small)[..., None]
