"""Files that are whole or not there, and the folder for what can be made again.

With this file a result is written under a temporary name and renamed in one step, so a
full disk, a crash or Ctrl-C never leaves half a file under the name that readers open.
"""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def write_atomically(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `path` at the end of the `with` block.

    After an error in the block the temporary file is removed and `path` unchanged.

    Args:
        path: the file to write or replace. Of a symbolic link the target is replaced.

    Yields:
        A binary file in the folder of `path`, for writing.

    Raises:
        OSError: the folder is missing or cannot be written, or `path` is something else
            than a plain file.
    """
    target = Path(os.path.realpath(path))
    # The tempfile module is not used: only the owner could read its files.
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        # os.replace would replace a device such as /dev/null by a plain file.
        if target.exists() and not target.is_file():
            raise OSError(errno.EEXIST, "something that is no plain file is there")
        file = open(temporary, "xb")
    except OSError as error:
        reason = f"cannot write this file: {error.strerror}"
        if not target.parent.exists():
            reason = "cannot write this file: its folder does not exist"
        raise OSError(error.errno, reason, os.fspath(path)) from error
    try:
        with file:
            yield file
            file.flush()
            # Without it the new name may point to a file of zeros after a power cut.
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise now the OSError that `write_atomically(path)` would raise later.

    An existing file is not changed, and no new one is left.
    """

    class Abandon(Exception):
        pass

    try:
        with write_atomically(path):
            raise Abandon
    except Abandon:
        pass


def cache_folder() -> Path:
    """The folder of caches and downloads: $TINYMAML_CACHE, or the user's own one."""
    if folder := os.environ.get("TINYMAML_CACHE"):
        return Path(os.path.expanduser(folder))
    import platformdirs  # only users without TINYMAML_CACHE need it

    return Path(platformdirs.user_cache_dir("tinymaml"))
