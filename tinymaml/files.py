"""Files that are whole or not there.

With this file a result is written next to its place and moved there in one step, so a
full disk, a crash or Ctrl-C never leaves half a file under the name a reader opens.
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
    """Open a temporary file that takes the place of `path` when all went well.

    Args:
        path: the file to write or replace; a symbolic link stays one.

    Yields:
        A binary file in the folder of `path`, for writing.

    Raises:
        OSError: the folder is missing or cannot be written, or `path` is something else
            than a plain file.
    """
    target = Path(os.path.realpath(path))
    # Not the tempfile module: its files are readable by their owner alone, for good.
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        # os.replace would put a plain file in the place of a device such as /dev/null.
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
            # Without it a power cut may leave the new name with the old disk's zeros.
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise the OSError of a later `write_atomically(path)` now; leave no trace."""

    class Abandon(Exception):
        pass

    try:
        with write_atomically(path):
            raise Abandon
    except Abandon:
        pass
