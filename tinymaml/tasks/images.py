"""What the image data sets share: the result, the one error, folders and the cache.

A cache file is an ordinary uint8 .npy with the SHA-256 of all before it at its end. It
is named after the contents of its source, written whole or not at all, verified before
it is used and then memory-mapped. One that is truncated or altered is built again, with
a warning (category UserWarning, through Python's `warnings`).

Left out: the data sets themselves, in `omniglot.py` and `miniimagenet.py`, and their
stand-ins, in `strokes.py`.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

import numpy as np
from PIL import Image

from tinymaml.files import write_atomically

Array = np.ndarray[Any, Any]
FilePath = str | os.PathLike[str]
STANDIN = "procedural stand-in"


class DataError(ValueError):
    """Data are missing, damaged or not what they should be; the message says which."""


class ImageSet(NamedTuple):
    """Labelled images and where they come from."""

    images: Array  # (M, H, W, C) uint8
    labels: Array  # (M,) int, 0 .. len(classes) - 1
    classes: tuple[str, ...]  # the name of each label
    source: str  # "Omniglot", "MiniImagenet" or "procedural stand-in"

    def only(self, classes: Collection[str]) -> Self:
        """The images of these classes, labelled anew in the order of all classes.

        >>> images = np.zeros((2, 28, 28, 1), np.uint8)
        >>> both = ImageSet(images, np.arange(2), ("a", "b"), "nowhere")
        >>> both.only({"b"}).labels, both.only({"b"}).classes
        (array([0]), ('b',))
        """
        wanted = np.array([name in classes for name in self.classes], bool)
        which = wanted[self.labels]
        labels = (wanted.cumsum() - 1)[self.labels[which]]
        names = tuple(name for name in self.classes if name in classes)
        return self._replace(images=self.images[which], labels=labels, classes=names)


def cache_folder() -> Path:
    """Where caches and downloads go: $TINYMAML_CACHE, else the user's cache folder."""
    if folder := os.environ.get("TINYMAML_CACHE"):
        return Path(folder).expanduser()
    import platformdirs  # not everybody who imports this file needs it

    return Path(platformdirs.user_cache_dir("tinymaml"))


def data_folder(data: FilePath | None, name: str, parts: Collection[str]) -> Path:
    """The folder of a data set: `data`, else $TINYMAML_DATA, else the cache folder.

    It is that folder itself if one of `parts` is in it, else its subfolder `name`.
    """
    folder = Path(
        data or os.environ.get("TINYMAML_DATA") or cache_folder()
    ).expanduser()
    here = any((folder / part).exists() for part in parts)
    return folder if here else folder / name


def some(names: Iterable[str]) -> str:
    """A few names for a message, and how many there are.

    >>> some("abcdefg")
    '7: a, b, c, d, e and 2 more'
    """
    names = list(names)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{len(names)}: {', '.join(names[:5])}{more}"


def read_image(file: FilePath | IO[bytes], name: str, mode: str) -> Image.Image:
    """An image as grey "L" or colour "RGB"; DataError with its name if damaged."""
    try:
        with Image.open(file) as image:
            return image.convert(mode)
    # Pillow answers damaged bytes with several kinds of error.
    except Exception as error:
        message = f"{name}: expected an image, got a damaged file ({error})"
        raise DataError(message) from error


def cached(
    name: str,
    source: Any,
    shape: Sequence[int],
    build: Callable[[], Iterable[Array]],
) -> Array:
    """The uint8 array of `shape` that the blocks of `build()` make up, memory-mapped.

    name: begin of the file's name in the cache folder. source: JSON value; the file
    belongs to this value alone. build: yields blocks whose bytes, one after the other,
    are those of the array, and raises DataError for what it cannot read; called only
    if there is no whole file. Two processes may build at once: each writes a file of
    its own, and the last to finish stays.

    Raises DataError if the cache folder cannot be written, and what `build` raises.
    """
    key = hashlib.sha256(json.dumps([1, source, list(shape)]).encode()).hexdigest()
    path = cache_folder() / f"{name}-{key[:16]}.npy"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            if _is_whole(path, tuple(shape)):
                return np.load(path, mmap_mode="r", allow_pickle=False)
            warnings.warn(
                f"{path}: truncated or altered cache; building it again", stacklevel=3
            )
        with write_atomically(path) as file:
            for block in _with_digest(_encoded(tuple(shape), build())):
                file.write(block)
    except OSError as error:
        raise DataError(
            f"cannot use the cache: {error}; set TINYMAML_CACHE to a folder that can "
            "be written"
        ) from error
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _encoded(shape: tuple[int, ...], blocks: Iterable[Array]) -> Iterator[bytes]:
    yield _header(shape)
    left = int(np.prod(shape))
    for block in blocks:
        assert block.dtype == np.uint8
        left -= block.size
        yield block.tobytes()
    assert left == 0


def _header(shape: tuple[int, ...]) -> bytes:
    """A .npy file's bytes before the data: short, and always the same."""
    text = str({"descr": "|u1", "fortran_order": False, "shape": shape})
    text = text.ljust(-(len(text) + 11) % 64 + len(text)) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def _with_digest(blocks: Iterable[bytes]) -> Iterator[bytes]:
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
        yield block
    yield digest.digest()


def _is_whole(path: Path, shape: tuple[int, ...]) -> bool:
    header, digest = _header(shape), hashlib.sha256()
    left = len(header) + int(np.prod(shape))
    with open(path, "rb") as file:
        if (
            os.fstat(file.fileno()).st_size != left + 32
            or file.read(len(header)) != header
        ):
            return False
        digest.update(header)
        left -= len(header)
        while left and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
        return file.read() == digest.digest()
