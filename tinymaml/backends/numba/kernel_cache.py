"""Compiled kernels on disk: one file for each kernel, dtype and processor.

    add.float32.5d1c...b7.90ea...14.kernel

The name is all there is to find a file by: the kernel, a hash of what it is compiled
for (types, processor, versions, settings of Numba), and a hash of all sources. The file
begins with a digest of its name and its contents. So code is run only if it was
compiled from these very sources under this very name, whatever happened to the folder:
two processes at once, a full disk, a kill at any moment, older sources restored. A file
that does not fit is compiled anew and replaced.

Kernels lie in `__pycache__`, beside Python's own, or in the user's cache folder where
that cannot be written; where $NUMBA_CACHE_DIR is set, they lie there only. Where
nothing can be written, they are compiled in each process.

Numba's own cache is not used: an index names its files 1, 2, 3, and all functions made
by one function share an index.
"""

import pickle
import sys
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from numba import config
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from tinymaml.backends.numba import SOURCES, hash_of_sources
from tinymaml.files import cache_folder, write_atomically

VERSIONS = sys.version, numba.__version__, llvmlite.__version__, np.__version__
SETTINGS = "OPT BOUNDSCHECK DEBUGINFO_DEFAULT LOOP_VECTORIZE SLP_VECTORIZE".split()


def kept_on_disk(function: Any, name: str | None = None) -> Any:
    """Let a jitted function load what it compiles from disk; the same function.

    name: of its files, by default that of the function. No two functions may share one.
    """
    if not config.DISABLE_JIT:
        function._cache = KernelCache(name or function.__name__)
    return function


def _digest(name: str, contents: bytes = b"") -> bytes:
    return sha256(name.encode() + contents).digest()


def _folders() -> Iterator[Path]:
    """Where files may lie, the best place first."""
    here = Path(__file__).parent
    place = f"numba-{_digest('', bytes(here)).hex()[:32]}"
    if not SOURCES:
        return
    if config.CACHE_DIR:
        yield Path(config.CACHE_DIR, place)
    else:
        yield here / "__pycache__"
        if (folder := cache_folder()).is_absolute():  # not "~", of a user without home
            yield folder / place


class KernelCache(NullCache):
    """What Numba asks for compiled code, for all signatures of one function."""

    def __init__(self, name: str) -> None:
        self.name = name

    def _names(self, signature: Any, context: Any) -> tuple[str, str]:
        """(what the names of all versions of a file begin with, the name of this)."""
        context.refresh()
        settings = [getattr(config, setting) for setting in SETTINGS]
        target = str(signature), context.codegen().magic_tuple(), VERSIONS, settings
        start = f"{self.name}.{_digest(self.name + repr(target)).hex()[:32]}."
        return start, f"{start}{SOURCES[:32]}.kernel"

    def load_overload(self, signature: Any, context: Any) -> Any:
        """The compiled function for a signature, or None."""
        _, name = self._names(signature, context)
        for folder in _folders():
            contents = b""
            with suppress(OSError):
                if (folder / name).is_file():  # to open a pipe could wait for ever
                    contents = (folder / name).read_bytes()
            if contents[:32] == _digest(name, contents[32:]):
                return CompileResult._rebuild(context, *pickle.loads(contents[32:]))
        return None

    def save_overload(self, signature: Any, result: Any) -> None:
        """Keep a compiled function and remove its versions from other sources."""
        start, name = self._names(signature, result.target_context)
        payload = dumps(result._reduce())
        for folder in _folders() if SOURCES == hash_of_sources() else ():
            with suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
                with write_atomically(folder / name) as file:
                    file.write(_digest(name, payload) + payload)
                for other in {*folder.glob(f"{start}*")} - {folder / name}:
                    other.unlink(missing_ok=True)
                return
