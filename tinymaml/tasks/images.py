"""What the image data sets share: `ImageSet`, `DataError`, folders and the cache.

A cache file is an ordinary uint8 .npy file, followed by the SHA-256 of its contents. It
is named after the contents of its source, written whole or not at all, verified before
it is used, and then memory-mapped. A file that is truncated or altered is built again,
with a warning (category UserWarning, through Python's `warnings`).

Left out: the data sets themselves, in `omniglot.py` and `miniimagenet.py`, and their
stand-ins, in `strokes.py`.
"""

import hashlib
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

import numpy as np

from tinymaml.checks import check_that
from tinymaml.files import cache_folder, check_path, write_atomically

EXTRA = ' is missing: pip install "tinymaml[images]"'
try:
    from PIL import Image as Image  # the data sets have it from here
except ImportError:
    raise ImportError(f"Pillow{EXTRA}") from None

Array = np.ndarray[Any, Any]
FilePath = str | os.PathLike[str]
STANDIN = "procedural stand-in"


class DataError(ValueError):
    """Data are missing, damaged or unexpected; the message says which and where."""

    def __init__(self, text: str) -> None:
        # Names of files may hold line breaks or be endless, but an error is one line.
        text = text if len(text) < 900 else f"{text[:500]} ... {text[-300:]}"
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in text))


class ImageSet(NamedTuple):
    """Labelled images and where they come from.

    >>> images = np.zeros((2, 28, 28, 1), np.uint8)
    >>> both = ImageSet(images, np.arange(2), ("a", "b"), "nowhere")
    >>> both
    ImageSet(2 images (28, 28, 1) uint8 in 2 classes; nowhere)
    >>> both.select({"b"}).labels, both.select({"b"}).classes
    (array([0]), ('b',))
    >>> both.select({"b", "c"})
    Traceback (most recent call last):
    ValueError: classes: expected names of this set, got 1: 'c'
    """

    images: Array  # (M, H, W, C) uint8
    labels: Array  # (M,) int, 0 .. len(classes) - 1
    classes: tuple[str, ...]  # the name of each label
    source: str  # "Omniglot", "MiniImagenet" or "procedural stand-in"

    def __repr__(self) -> str:
        return (
            f"ImageSet({len(self.images)} images {self.images.shape[1:]} "
            f"{self.images.dtype} in {len(self.classes)} classes; {self.source})"
        )

    def select(self, classes: Collection[str]) -> Self:
        """The images of these classes, with new labels in the order of all classes."""
        classes = {classes} if isinstance(classes, str) else set(classes)
        unknown = sorted(map(repr, classes - set(self.classes)))
        check_that(not unknown, "classes", "names of this set", abbreviate(unknown))
        selected = np.array([name in classes for name in self.classes], bool)
        images = selected[self.labels]
        labels = (selected.cumsum() - 1)[self.labels[images]]
        names = tuple(name for name in self.classes if name in classes)
        return self._replace(images=self.images[images], labels=labels, classes=names)


def data_folder(data: FilePath | None, names: list[str], parts: list[str]) -> Path:
    """The folder of a data set, in `data`, $TINYMAML_DATA or the cache folder.

    The first of the three that is given counts. The data set is in this folder or one
    of its subfolders `names`: the first place that has one of `parts`. If none has, the
    result is the first subfolder, which need not exist.
    """
    check_path("data", data, or_none=True)
    given = data or os.environ.get("TINYMAML_DATA") or cache_folder()
    folder = Path(os.path.expanduser(given))
    for place in (folder, *(folder / name for name in names)):
        if any(os.path.exists(place / part) for part in parts):
            return place
    return folder / names[0]


def show_progress() -> bool:
    """Whether there is a terminal for a bar; a program without stderr has None."""
    return sys.stderr is not None and sys.stderr.isatty()


def abbreviate(names: Iterable[str]) -> str:
    """The number of names and the first five of them, for a message.

    >>> abbreviate("abcdefg")
    '7: a, b, c, d, e and 2 more'
    """
    names = list(names)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{len(names)}: {', '.join(names[:5])}{more}"


def fingerprint(path: FilePath) -> list[int]:
    """The size and date of a file; DataError if it is missing, or a pipe or folder.

    It comes before every opening of a file, which for a named pipe may take for ever.
    """
    if not os.path.isfile(path):
        raise DataError(f"{path}: expected a file, got none, a folder, pipe or device")
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]


def read_image(
    file: FilePath | IO[bytes],
    name: str,
    mode: str,
    formats: tuple[str, ...] = ("JPEG", "PNG"),
    size: tuple[int, int] | None = None,
) -> Image.Image:
    """An image in `mode`, "L" for grey or "RGB", on white where it is transparent.

    name: what a message calls the file. formats: the formats that are expected, by
    Pillow's names. size: the width and height that are expected.

    Raises DataError: the file is damaged, or of another format or size, or its pixels
    are not in 0 .. 255. The checksums of a PNG are verified; a JPEG has none.
    """
    try:
        with warnings.catch_warnings():
            # Below twice this size Pillow warns only.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # All of Pillow's formats would include EPS, which runs Ghostscript.
            with Image.open(file, formats=formats) as image:
                if size not in (None, image.size):
                    expected, got = (f"{w} x {h} pixels" for w, h in (size, image.size))
                    raise DataError(f"{name}: expected {expected}, got {got}")
                # convert() would clip 16 bits to 8 bits, or cut them off.
                if "16" in str(image.tile[0][3]):
                    raise DataError(f"{name}: expected 8 bits for a pixel, got 16")
                image.verify()  # reads checksums, which decoding does not, and closes
            with Image.open(file, formats=formats) as image:
                is_png, pixels = image.format == "PNG", image.convert()
            if is_transparent := pixels.has_transparency_data:
                white = Image.new("RGBA", pixels.size, "white")
                pixels = Image.alpha_composite(white, pixels.convert("RGBA"))
            pixels = pixels.convert(mode)
    except DataError:
        raise
    # Pillow raises several kinds of error for damaged bytes.
    except Exception as error:
        # The text may end with the address of a buffer.
        raise DataError(
            f"{name}: expected an image, got a file that is damaged, unreadable or not "
            f"{' or '.join(formats)} ({str(error).partition(' <')[0]})"
        ) from error
    if is_png and np.asarray(pixels).max() == 1:
        raise DataError(f"{name}: expected pixels of 0 .. 255, got only 0 and 1")
    if is_transparent and np.asarray(pixels).min() == 255:
        raise DataError(f"{name}: expected pixels that show on white, got none")
    return pixels


def load_cached(
    name: str, source: Any, shape: Sequence[int], build: Callable[[], Iterable[Array]]
) -> Array:
    """A memory-mapped uint8 array of `shape` from the cache, built if it is not there.

    name: how the file's name in the cache folder begins.
    source: a JSON value that identifies the contents; another value, another file.
    build: a function that yields blocks of uint8, which one after the other are the
        array. It is called only if there is no valid file, and raises DataError for
        files that it cannot read.

    Two processes may build the same array at once: each writes a file of its own, and
    the file of the last to finish stays.

    Raises DataError if the cache folder cannot be written, and what `build` raises.
    """
    key = hashlib.sha256(json.dumps([2, source, list(shape)]).encode()).hexdigest()
    path = cache_folder() / f"{name}-{key[:16]}.npy"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            if path.is_file() and _is_valid(path, tuple(shape)):
                return np.load(path, mmap_mode="r", allow_pickle=False)
            what = f"{path}: truncated or altered cache; building it again"
            warnings.warn(what, stacklevel=3)
        header, fields = io.BytesIO(), {"descr": "|u1", "fortran_order": False}
        np.lib.format.write_array_header_1_0(header, {**fields, "shape": tuple(shape)})
        digest = hashlib.sha256()
        with write_atomically(path) as file:
            for part in chain([header.getvalue()], map(np.ndarray.tobytes, build())):
                digest.update(part)
                file.write(part)
            # Otherwise `build` is wrong.
            assert file.tell() == header.tell() + np.prod(shape)
            file.write(digest.digest())
    except OSError as error:
        raise DataError(
            f"cannot use the cache: {error}; set TINYMAML_CACHE to a folder that can "
            "be written"
        ) from error
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _is_valid(path: Path, shape: tuple[int, ...]) -> bool:
    """Whether the file ends with the SHA-256 of what comes before, such an array."""
    if path.stat().st_size <= 32:
        return False
    contents = np.memmap(path, np.uint8, mode="r")
    whole = hashlib.sha256(contents[:-32].data).digest() == contents[-32:].tobytes()
    return whole and np.load(path, mmap_mode="r", allow_pickle=False).shape == shape
