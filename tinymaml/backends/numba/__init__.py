"""The fast CPU backend; `backend.py` says how it works.

Compiled kernels are kept on disk under a hash of their sources (`kernel_cache.py`).
The sources are read here, before Python imports them. So a file that is replaced while
the process runs, or while it starts, gives no old code a new name.
"""

from hashlib import sha256
from pathlib import Path

# All files whose functions are compiled, and the one that says how they are kept.
COMPILED = ("backend", "image_kernels", "kernel_cache", "kernels", "tiles")


def hash_of_sources() -> str:
    """A hash of the sources as they are on disk now; "" where they are no files."""
    files = [Path(__file__).with_name(f"{name}.py") for name in COMPILED]
    try:
        return sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()
    except OSError:  # in a zip archive, or installed without sources
        return ""


SOURCES = hash_of_sources()
