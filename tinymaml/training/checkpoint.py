"""Checkpoints: arrays and settings in one .npz file that is whole or not there.

With this file one saves a training run and gets back exactly what was saved, or one
clear `CheckpointError`: a truncated, foreign or damaged file is never half loaded.
Nothing is pickled, so a stranger's checkpoint can hold wrong numbers but no code.

The file is an ordinary .npz: `numpy.load("checkpoint.npz")["theta"]` works. Beside the
arrays it holds four reserved members, all uint8:

- `format`: the text "tinymaml checkpoint 1";
- `config`, `state`: JSON;
- `sha256`: a digest of name, dtype, shape and bytes of all the others.

Left out: compression (float weights hardly shrink) and signatures (the digest finds
damage and careless edits; whoever means to deceive can compute a new one).
"""

import hashlib
import io
import json
import math
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from tinymaml.files import write_atomically

FORMAT = "tinymaml checkpoint 1"
RESERVED = ("format", "config", "state", "sha256")


class CheckpointError(ValueError):
    """A file is not a whole checkpoint, or not one that fits."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: arrays by name, and two JSON-able dictionaries."""

    arrays: dict[str, np.ndarray]
    config: dict[str, Any]
    state: dict[str, Any]


def save_checkpoint(
    path: str | os.PathLike[str],
    arrays: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    state: Mapping[str, Any],
) -> None:
    """Write a checkpoint, whole or not at all; replace an older one in a single step.

    Args:
        path: file to write; its folder must exist.
        arrays: bool, integer, float or complex arrays of any shape, by name (letters,
            digits and ``_ . / -``; "format", "config", "state" and "sha256" are taken).
        config: what the run was asked to do; JSON values (tuples come back as lists).
        state: how far it has come; JSON values, integers of any size.

    Raises:
        TypeError: an array or a value cannot be stored without pickle.
        ValueError: a name is not allowed, or a JSON value is NaN or infinite.
        OSError: the file cannot be written. Whatever the error, an older file at `path`
            is still there and no temporary file is left.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = folder.name + "/checkpoint.npz"
    >>> save_checkpoint(path, {"theta": np.zeros(3)}, {"alpha": 0.01}, {"iteration": 7})
    >>> load_checkpoint(path)
    Checkpoint(arrays={'theta': array([0., 0., 0.])}, config={'alpha': 0.01}, \
state={'iteration': 7})
    >>> folder.cleanup()
    """
    members = {
        "format": _text_to_array(FORMAT),
        "config": _text_to_array(to_json("config", config)),
        "state": _text_to_array(to_json("state", state)),
    }
    for name, array in arrays.items():
        members[name] = _check_storable(name, array)
    members["sha256"] = _digest(members)
    # Encoded in full before the disk is touched: a bad value leaves no trace there.
    encoded = io.BytesIO()
    with zipfile.ZipFile(encoded, "w", zipfile.ZIP_STORED) as archive:
        for name, array in members.items():
            # ZipInfo's fixed date keeps equal contents equal files.
            archive.writestr(zipfile.ZipInfo(name + ".npy"), _encode(array))
    with write_atomically(path) as file:
        file.write(encoded.getbuffer())


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint that `save_checkpoint` wrote, after verifying all of it.

    Memory stays within a few times the size of the file, whatever it claims to hold.

    Args:
        path: file to read.

    Returns:
        arrays (writable copies), config and state, as they were saved.

    Raises:
        CheckpointError: the file is truncated, damaged, foreign or of another version.
        OSError: the file is missing or cannot be read.
    """
    with open(path, "rb") as file:
        try:
            members = _read_members(file)
            digest = members.pop("sha256")
            if not np.array_equal(digest, _digest(members)):
                raise CheckpointError("its contents differ from its SHA-256 digest")
            config = json.loads(members.pop("config").tobytes())
            state = json.loads(members.pop("state").tobytes())
        except CheckpointError as error:
            raise CheckpointError(
                f"{os.fspath(path)}: expected a whole '{FORMAT}', but "
                f"{str(error)[:300]}"
            ) from None
        # zipfile and numpy answer damaged bytes with a dozen kinds of error.
        except Exception as error:
            raise CheckpointError(
                f"{os.fspath(path)}: expected a whole '{FORMAT}', got a file that is "
                f"truncated, damaged or of another kind ({str(error)[:300]})"
            ) from error
    del members["format"]
    return Checkpoint(members, config, state)


class CheckpointFile(os.PathLike[str]):
    """A file that checkpoints are saved to and loaded from.

    The training loop turns each path into one; a subclass may keep something else in
    the same file (`stages.py`).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    __str__ = __fspath__

    def save(
        self,
        arrays: Mapping[str, np.ndarray],
        config: Mapping[str, Any],
        state: Mapping[str, Any],
    ) -> None:
        """`save_checkpoint` to this file."""
        save_checkpoint(self.path, arrays, config, state)

    def load(self) -> Checkpoint:
        """`load_checkpoint` from this file."""
        return load_checkpoint(self.path)


def _check_storable(name: str, array: Any) -> np.ndarray:
    if not re.fullmatch(r"[A-Za-z0-9_./-]+", name) or name in RESERVED:
        raise ValueError(
            f"array name: expected letters, digits and _ . / - and none of {RESERVED}, "
            f"got {name!r}"
        )
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biufc":
        kind = getattr(array, "dtype", type(array).__name__)
        raise TypeError(
            f"array '{name}': expected a NumPy array of numbers, got {kind} "
            "(objects would need pickle)"
        )
    # Not ascontiguousarray, which turns a scalar array into a vector.
    return np.asarray(array, order="C")


def to_json(name: str, value: Mapping[str, Any]) -> str:
    """Return `value` as JSON text; an error about what JSON cannot hold says `name`."""
    try:
        return json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: expected JSON values, but {error}") from error


def _text_to_array(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


def _digest(members: Mapping[str, np.ndarray]) -> np.ndarray:
    digest = hashlib.sha256()
    for name in sorted(members):
        array = members[name]
        # The line before the bytes gives their number: no two contents run together.
        line = f"{name} {array.dtype.str} {array.shape} {array.nbytes}\n"
        digest.update(line.encode())
        digest.update(array.tobytes())
    return np.frombuffer(digest.digest(), np.uint8)


def _encode(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=(1, 0), allow_pickle=False)
    return file.getvalue()


def _decode(encoded: bytes) -> np.ndarray:
    """Read one .npy file; unlike numpy's reader, allocate only what is really there."""
    file = io.BytesIO(encoded)
    if np.lib.format.read_magic(file) != (1, 0):
        raise CheckpointError("an array in it has another .npy version")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.kind not in "biufc":
        raise CheckpointError(
            f"an array in it has dtype {dtype}, which is never loaded"
        )
    data = file.read()
    if fortran_order or len(data) != math.prod(shape) * dtype.itemsize:
        raise CheckpointError("an array in it does not have the size its header says")
    return np.frombuffer(data, dtype).reshape(shape).copy()


def _read_members(file: BinaryIO) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        names = [entry.filename.removesuffix(".npy") for entry in entries]
        if "format" not in names:
            raise CheckpointError(f"it is another file, holding {names[:5]}")
        if len(set(names)) < len(names):
            raise CheckpointError(f"a name occurs twice in {names}")
        # Stored members cannot be larger than the file: no zip bomb gets past here.
        size = os.fstat(file.fileno()).st_size
        if sum(entry.file_size for entry in entries) > size or any(
            entry.compress_type != zipfile.ZIP_STORED for entry in entries
        ):
            raise CheckpointError("its members are not stored as they are")
        version = _decode(archive.read("format.npy")).tobytes().decode()
        if version != FORMAT:
            raise CheckpointError(f"it calls itself {version[:60]!r}")
        return {
            name: _decode(archive.read(entry))
            for name, entry in zip(names, entries, strict=True)
        }
