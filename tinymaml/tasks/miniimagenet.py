"""MiniImagenet: 100 classes of 600 photographs, section 5.2.

`load()` reads a folder of images and the three lists of Ravi and Larochelle (2017),
train.csv, val.csv and test.csv. It returns 84 x 84 colour images of 64, 16 and 20
classes. ImageNet's licence forbids passing the images on, so there is no download.
Without data, `standin()` draws images of its own. Results on them are no results on
MiniImagenet, and `source` says so.

As in the authors' code, Pillow's LANCZOS filter shrinks the images to 84 x 84, and
nothing else is done to them. The paper speaks of 64 / 12 / 24 classes; the lists, the
authors' code and this file have 64 / 16 / 20.
"""

import csv
import os
from collections import Counter
from collections.abc import Iterator
from functools import cache, partial
from itertools import chain, combinations
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tinymaml.checks import check_that, whole_number
from tinymaml.files import check_path
from tinymaml.tasks import images
from tinymaml.tasks.images import STANDIN, Array, DataError, FilePath, Image, ImageSet
from tinymaml.tasks.strokes import draw, sample_strokes

SIZE = 84  # pixels along an edge
LISTS = {"train": "train", "validation": "val", "test": "test"}  # names of csv files
CLASSES = {"train": 64, "validation": 16, "test": 20}
IMAGES = 600  # of each class
SUFFIXES = (".jpg", ".jpeg", ".png")


def load(
    data: FilePath | None = None, splits: FilePath | None = None
) -> dict[str, ImageSet]:
    """Train, validation and test: images (600 x classes, 84, 84, 3) uint8, by class.

    The images are memory-mapped from the cache folder ($TINYMAML_CACHE), where the
    first call writes 1.3 GB in minutes. Later calls verify that no file has changed
    its size or date, and verify the contents of the cache.

    data: the folder of the images, or one with a subfolder "miniimagenet"; by default
        $TINYMAML_DATA, else the user's cache folder. An image is looked for in images/,
        train|val|test/<class>/, <class>/ and the folder itself, in this order; it may
        be a .png or .jpeg file as well. The checksums of a .png are verified, a .jpeg
        has none.
    splits: the folder of train.csv, val.csv and test.csv; by default the folder of the
        images. Each file has lines `filename,label` under that heading; a byte-order
        mark and blank lines do no harm.

    Raises DataError: something is missing, damaged or listed in other numbers.
    """
    parts = [*(f"{name}.csv" for name in LISTS.values()), "images", *LISTS.values()]
    folder = images.data_folder(data, ["miniimagenet"], parts)
    # A bare folder of images or classes, or nothing, has no folder "miniimagenet".
    folder = folder if folder.is_dir() else folder.parent
    came = f"{folder}, which is no folder; choose one with --data or TINYMAML_DATA"
    check_that(folder.is_dir(), "data", "a folder of images", came, DataError)
    check_path("splits", splits, or_none=True)
    listed = {name: _read_list(splits or folder, name) for name in LISTS}
    for one, other in combinations(LISTS, 2):
        both = sorted(listed[one].keys() & listed[other].keys())
        expected = "classes that no other list has"
        came = f"{images.abbreviate(both)} of {LISTS[one]}.csv too"
        check_that(not both, f"{LISTS[other]}.csv", expected, came, DataError)
    files = {name: _find(folder, name, listed[name]) for name in LISTS}
    paths = Counter(path for split in files.values() for path in chain(*split.values()))
    if twice := [path.name for path, count in paths.items() if count > 1]:
        came = images.abbreviate(twice)
        raise DataError(f"expected different images, got twice {came}")
    return {name: _load_split(name, files[name]) for name in LISTS}


def standin(seed: int = 0, images: int = 20) -> dict[str, ImageSet]:
    """Drawn colour images in the layout of `load()`, with fewer images of each class.

    A class has its own strokes and, with some noise, its own two colours. `source` says
    "procedural stand-in"; the same seed gives the same images.

    >>> validation = standin(images=2)["validation"]
    >>> validation.images.shape, len(validation.classes), validation.source
    ((32, 84, 84, 3), 16, 'procedural stand-in')
    """
    sets, first, images = {}, 0, whole_number("images", images)
    for split, count in CLASSES.items():
        drawn = [
            image
            for number in range(first, first + count)
            for image in _draw_class(np.random.default_rng((seed, number)), images)
        ]
        names = tuple(f"strokes{number:03}" for number in range(first, first + count))
        labels = np.arange(count).repeat(images)
        sets[split] = ImageSet(np.stack(drawn), labels, names, STANDIN)
        first += count
    return sets


def _draw_class(rng: np.random.Generator, images: int) -> Iterator[Array]:
    colours = rng.uniform(0, 255, (2, 3))
    for strokes in sample_strokes(rng, images):
        ink, ground = (colours + rng.normal(0, 25, (2, 3))).clip(0, 255).astype(int)
        image = draw(strokes, SIZE, tuple(ink.tolist()), tuple(ground.tolist()))
        noise = rng.normal(0, 12, (SIZE, SIZE, 1))
        yield (np.asarray(image) + noise).clip(0, 255).astype(np.uint8)


# --- reading the source ---------------------------------------------------------------


def _read_list(folder: FilePath, split: str) -> dict[str, list[str]]:
    """The file names of each class from one csv file; classes and names are sorted.

    Raises DataError unless the list has the published number of classes and images.
    """
    path = Path(os.path.expanduser(folder), f"{LISTS[split]}.csv")
    try:
        images.fingerprint(path)
        # Spreadsheets write a byte-order mark, and editors blank last lines.
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file) if any(map(str.strip, row))]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(
            f"{path}: expected a list of MiniImagenet's images, but {error}; put "
            "train.csv, val.csv and test.csv there, or call load with splits="
        ) from error
    if not rows or rows[0] != ["filename", "label"] or {*map(len, rows)} != {2}:
        raise DataError(f"{path}: expected lines filename,label under that heading")
    classes: dict[str, list[str]] = {}
    for name, label in sorted(rows[1:], key=lambda row: row[::-1]):
        classes.setdefault(label, []).append(name)
    expected, count = f"{CLASSES[split]} classes", len(classes)
    check_that(count == CLASSES[split], path, expected, count, DataError)
    wrong = [
        f"{label} ({len({*names})})"
        for label, names in classes.items()
        if not len(names) == len({*names}) == IMAGES
    ]
    expected = f"{IMAGES} different images of each class"
    came = f"other numbers for {images.abbreviate(wrong)}"
    check_that(not wrong, path, expected, came, DataError)
    return classes


def _find(
    folder: Path, split: str, classes: dict[str, list[str]]
) -> dict[str, list[Path]]:
    """The files of each class; a DataError names those that are missing."""

    @cache
    def images_in(directory: Path) -> dict[str, Path]:
        if not os.path.isdir(directory):
            return {}
        paths = sorted(directory.iterdir(), reverse=True)
        paths = [path for path in paths if path.suffix.lower() in SUFFIXES]
        return {path.stem: path for path in paths} | {path.name: path for path in paths}

    missing: list[str] = []
    files: dict[str, list[Path]] = {label: [] for label in classes}
    for label, names in classes.items():
        sides = [folder / side / label for side in (LISTS[split], split)]
        directories = [folder / "images", *sides, folder / label, folder]
        for name in names:
            # The first directory counts, and in it the very name that is listed.
            keys = (Path(name).name, Path(name).stem)
            paths = [p for d in directories for k in keys if (p := images_in(d).get(k))]
            files[label] += paths[:1]
            missing += [] if paths else [name]
    if missing:
        raise DataError(
            f"MiniImagenet: expected all images of {LISTS[split]}.csv in {folder} "
            f"(images/, {LISTS[split]}/<class>/ or <class>/); missing "
            f"{images.abbreviate(missing)}"
        )
    return files


def _load_split(split: str, files: dict[str, list[Path]]) -> ImageSet:
    paths = [path for label in files for path in files[label]]
    source = [[p.stem for p in paths], [images.fingerprint(p) for p in paths]]
    shape, build = (len(paths), SIZE, SIZE, 3), partial(_decode, split, paths)
    pixels = images.load_cached(f"miniimagenet-{split}", source, shape, build)
    labels = np.arange(len(files)).repeat(IMAGES)
    return ImageSet(pixels, labels, tuple(files), "MiniImagenet")


def _decode(split: str, paths: list[Path]) -> Iterator[Array]:
    for path in tqdm(paths, split, unit=" images", disable=not images.show_progress()):
        image = images.read_image(path, str(path), "RGB")
        yield np.asarray(image.resize((SIZE, SIZE), Image.Resampling.LANCZOS))
