"""What the image data sets share: `ImageSet`, `DataError`, folders and the cache.

A cache file is an ordinary uint8 .npy file, followed by the SHA-256 of its contents. It
is named after the contents of its source, written whole or not at all, verified before
it is used, and then memory-mapped. A file that is truncated or altered is built again,
with a warning (category UserWarning, through Python's `warnings`).

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
    """Data are missing, damaged or unexpected; the message says which and where."""


class ImageSet(NamedTuple):
    """Labelled images and where they come from.

    >>> images = np.zeros((2, 28, 28, 1), np.uint8)
    >>> both = ImageSet(images, np.arange(2), ("a", "b"), "nowhere")
    >>> both
    ImageSet(2 images (28, 28, 1) uint8 in 2 classes; nowhere)
    >>> both.select({"b"}).labels, both.select({"b"}).classes
    (array([0]), ('b',))
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
        selected = np.array([name in classes for name in self.classes], bool)
        images = selected[self.labels]
        labels = (selected.cumsum() - 1)[self.labels[images]]
        names = tuple(name for name in self.classes if name in classes)
        return self._replace(images=self.images[images], labels=labels, classes=names)


def cache_folder() -> Path:
    """The folder of caches and downloads: $TINYMAML_CACHE, or the user's own one."""
    if folder := os.environ.get("TINYMAML_CACHE"):
        return Path(folder).expanduser()
    import platformdirs  # only users without TINYMAML_CACHE need it

    return Path(platformdirs.user_cache_dir("tinymaml"))


def data_folder(data: FilePath | None, name: str, parts: Collection[str]) -> Path:
    """The folder of a data set, in `data`, $TINYMAML_DATA or the cache folder.

    The first of the three that is given counts. It is the data set's folder itself if
    one of `parts` is in it, otherwise its subfolder `name` is.
    """
    folder = Path(
        data or os.environ.get("TINYMAML_DATA") or cache_folder()
    ).expanduser()
    is_data_set = any((folder / part).exists() for part in parts)
    return folder if is_data_set else folder / name


def abbreviate(names: Iterable[str]) -> str:
    """The number of names and the first five of them, for a message.

    >>> abbreviate("abcdefg")
    '7: a, b, c, d, e and 2 more'
    """
    names = list(names)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{len(names)}: {', '.join(names[:5])}{more}"


def read_image(file: FilePath | IO[bytes], name: str, mode: str) -> Image.Image:
    """An image in `mode`, "L" for grey or "RGB"; DataError if the file is damaged.

    name: what the message calls the file.
    """
    try:
        with Image.open(file) as image:
            return image.convert(mode)
    # Pillow raises several kinds of error for damaged bytes.
    except Exception as error:
        message = f"{name}: expected an image, got a damaged file ({error})"
        raise DataError(message) from error


def load_cached(
    name: str,
    source: Any,
    shape: Sequence[int],
    build: Callable[[], Iterable[Array]],
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
    key = hashlib.sha256(json.dumps([1, source, list(shape)]).encode()).hexdigest()
    path = cache_folder() / f"{name}-{key[:16]}.npy"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            if _is_valid(path, tuple(shape)):
                return np.load(path, mmap_mode="r", allow_pickle=False)
            warnings.warn(
                f"{path}: truncated or altered cache; building it again", stacklevel=3
            )
        with write_atomically(path) as file:
            for block in _append_digest(_encode(tuple(shape), build())):
                file.write(block)
    except OSError as error:
        raise DataError(
            f"cannot use the cache: {error}; set TINYMAML_CACHE to a folder that can "
            "be written"
        ) from error
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _encode(shape: tuple[int, ...], blocks: Iterable[Array]) -> Iterator[bytes]:
    """The bytes of a .npy file; an AssertionError says that `build` is wrong."""
    yield _header(shape)
    missing = int(np.prod(shape))
    for block in blocks:
        assert block.dtype == np.uint8
        missing -= block.size
        yield block.tobytes()
    assert missing == 0


def _header(shape: tuple[int, ...]) -> bytes:
    """The bytes of a .npy file before the data, the same for every release of NumPy."""
    text = str({"descr": "|u1", "fortran_order": False, "shape": shape})
    text = text.ljust(-(len(text) + 11) % 64 + len(text)) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def _append_digest(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The blocks, and after the last one the SHA-256 of all of them."""
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
        yield block
    yield digest.digest()


def _is_valid(path: Path, shape: tuple[int, ...]) -> bool:
    """Whether the file holds an array of this shape, and the right digest."""
    header, pixels, digest = _header(shape), int(np.prod(shape)), hashlib.sha256()
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size != len(header) + pixels + digest.digest_size:
            return False
        if file.read(len(header)) != header:
            return False
        digest.update(header)
        while pixels and (block := file.read(min(pixels, 1 << 20))):
            digest.update(block)
            pixels -= len(block)
        return file.read() == digest.digest()
