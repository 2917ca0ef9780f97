"""Files that are whole or not there, and the folder for what can be made again.

With this file a result is written under a temporary name and renamed in one step, so a
full disk, a crash or Ctrl-C never leaves half a file under the name that readers open.
What a killed writer leaves behind, the next write into the same folder removes.
"""

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from tinymaml.checks import check_kind

try:
    import fcntl
except ImportError:  # Windows has no such locks: there nothing is removed
    fcntl = None  # type: ignore[assignment]

FilePath = str | os.PathLike[str]


def check_path(name: str, path: Any, or_none: bool = False) -> None:
    """Raise TypeError unless the argument is text or a `pathlib.Path`."""
    if not (or_none and path is None):
        check_kind(name, path, (str, os.PathLike), "text or a Path")


@contextmanager
def write_atomically(path: FilePath) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `path` at the end of the `with` block.

    After an error in the block the temporary file is removed and `path` unchanged. A
    file that is replaced leaves its permissions to the new one.

    Args:
        path: the file to write or replace. Of a symbolic link the target is replaced.

    Yields:
        A binary file in the folder of `path`, for writing.

    Raises:
        OSError: the folder is missing or cannot be written, or `path` is something else
            than a plain file, or the disk is full.
    """
    check_path("path", path)
    target = Path(os.path.realpath(path))
    try:
        # os.replace would replace a device such as /dev/null by a plain file.
        check_plain(target)
        file = _temporary(target.parent)
    except OSError as error:
        reason = f"cannot write this file: {error.strerror}"
        if not target.parent.exists():
            reason = "cannot write this file: its folder does not exist"
        raise OSError(error.errno, reason, os.fspath(path)) from error
    try:
        with naming_file(path), file:  # the lock is kept until the file has its name
            if target.exists():
                os.chmod(file.name, stat.S_IMODE(target.stat().st_mode))
            yield file
            file.flush()
            # Without it the new name may point to a file of zeros after a power cut.
            os.fsync(file.fileno())
            if fcntl is None:  # Windows gives an open file no other name
                file.close()
            os.replace(file.name, target)
    except BaseException:
        Path(file.name).unlink(missing_ok=True)
        raise
    with suppress(OSError):  # not every file system can: the file itself is on disk
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # after a power cut the name is still there
        finally:
            os.close(folder)


def _temporary(folder: Path) -> BinaryIO:
    """A new, locked file in the folder; those whose writers were killed are removed.

    A lock ends with its process. The name is short, so it fits wherever the name of the
    target does. (The tempfile module is not used: only the owner could read its files.)
    """
    for left in folder.glob(".tinymaml-*.tmp"):
        with suppress(OSError), open(left, "rb+") as found:
            if fcntl is not None:
                fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()
    while True:
        file = open(folder / f".tinymaml-{secrets.token_hex(4)}.tmp", "xb")
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
        # Another writer may have removed the file before it was locked.
        if os.path.exists(file.name):
            return file
        file.close()


@contextmanager
def naming_file(path: FilePath) -> Iterator[None]:
    """Give an OSError raised within, such as that of a full disk, the file's name."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)
        raise


def check_plain(path: FilePath) -> None:
    """Raise OSError if something else than a plain file is there.

    Opening a pipe can wait for ever, and a device can be endless.
    """
    # An open file's number is no path: to open it would end in closing it.
    check_path("path", path)
    if os.path.exists(path := os.fspath(path)) and not os.path.isfile(path):
        raise OSError(errno.EEXIST, "something that is no plain file is there", path)


def check_writable(path: FilePath) -> None:
    """Raise now the OSError that `write_atomically(path)` would raise later.

    An existing file is not changed, and no new one is left.
    """

    class Abandon(Exception): ...

    with suppress(Abandon), write_atomically(path):
        raise Abandon


def cache_folder() -> Path:
    """The folder of caches and downloads: $TINYMAML_CACHE, or the user's own one."""
    if folder := os.environ.get("TINYMAML_CACHE"):
        return Path(os.path.expanduser(folder))
    import platformdirs  # only users without TINYMAML_CACHE need it

    return Path(platformdirs.user_cache_dir("tinymaml"))
