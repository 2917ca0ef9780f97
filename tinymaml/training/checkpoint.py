"""Checkpoints: arrays and settings in one .npz file that is whole or not there.

With this file one saves a training run and gets back exactly what was saved, or one
clear `CheckpointError`: a truncated, foreign or damaged file is never half loaded.
Nothing is pickled, so a checkpoint from a stranger may hold wrong numbers but no code.

The file is an ordinary .npz: `numpy.load("checkpoint.npz")["theta"]` works. Beside the
arrays it holds four reserved members, all uint8:

- `format`: the text "tinymaml checkpoint 1";
- `config`, `state`: JSON;
- `sha256`: a digest of name, dtype, shape and bytes of all the others.

Left out: compression, because float weights hardly shrink, and signatures: the digest
finds damage and careless edits, but an attacker can compute a new one.
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

from tinymaml.checks import check_kind, check_that, dtype_or_type, is_array
from tinymaml.files import FilePath, check_plain, write_atomically

FORMAT = "tinymaml checkpoint 1"
RESERVED = ("format", "config", "state", "sha256")


class CheckpointError(ValueError):
    """A file is not a whole checkpoint, or not one that fits."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: arrays by name, and two dictionaries of JSON values."""

    arrays: dict[str, np.ndarray]
    config: dict[str, Any]
    state: dict[str, Any]


def save_checkpoint(
    path: FilePath,
    arrays: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    state: Mapping[str, Any],
) -> None:
    """Write a checkpoint, whole or not at all; replace an older one in a single step.

    Args:
        path: file to write; its folder must exist.
        arrays: bool, integer, float or complex arrays of any shape, by name (letters,
            digits and ``_ . / -``; "format", "config", "state" and "sha256" are taken).
        config: settings of the run; JSON values (tuples come back as lists).
        state: how far it has come; JSON values, integers of any size.

    Raises:
        TypeError: an array or a value cannot be stored without pickle, or a key of a
            dictionary is no text.
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
    check_kind("arrays", arrays, Mapping, "a dictionary of arrays")
    texts = {"format": FORMAT, "config": to_json("config", config)}
    texts["state"] = to_json("state", state)
    members = {n: np.frombuffer(text.encode(), np.uint8) for n, text in texts.items()}
    for name, array in arrays.items():
        members[name] = _check_storable(name, array)
    members["sha256"] = _digest(members)
    # All is encoded before a file is opened, so a bad value leaves no trace on disk.
    encoded = io.BytesIO()
    with zipfile.ZipFile(encoded, "w", zipfile.ZIP_STORED) as archive:
        for name, array in members.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, (1, 0), allow_pickle=False)
            # The fixed date of ZipInfo makes equal contents equal files.
            archive.writestr(zipfile.ZipInfo(name + ".npy"), member.getvalue())
    with write_atomically(path) as file:
        file.write(encoded.getbuffer())


def load_checkpoint(path: FilePath) -> Checkpoint:
    """Read a checkpoint that `save_checkpoint` wrote, after verifying all of it.

    Memory stays within a few times the size of the file, whatever it claims to hold.

    Args:
        path: file to read.

    Returns:
        arrays (writable copies), config and state, as they were saved.

    Raises:
        CheckpointError: the file is truncated, damaged, foreign or of another version.
        OSError: the file is missing, cannot be read or is no plain file.
        MemoryError: there is no memory for what it holds.

    >>> load_checkpoint(np.__file__)  # a file, but no checkpoint
    Traceback (most recent call last):
    tinymaml.training.checkpoint.CheckpointError: ...
    """
    check_plain(path)
    with open(path, "rb") as file:
        try:
            members = _read_members(file)
            digest = members.pop("sha256")
            if not np.array_equal(digest, _digest(members)):
                raise CheckpointError("its contents differ from its SHA-256 digest")
            config, state = (
                _to_dictionary(members.pop(name)) for name in ("config", "state")
            )
        except MemoryError:
            raise
        # zipfile and numpy raise a dozen kinds of error for damaged bytes.
        except Exception as error:
            raise CheckpointError(
                f"{os.fspath(path)}: expected a whole '{FORMAT}', got a file that is "
                f"truncated, damaged or of another kind: {str(error)[:300]}"
            ) from error
    del members["format"]
    return Checkpoint(members, config, state)


def _check_storable(name: str, array: Any) -> np.ndarray:
    letters = isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_./-]+", name)
    expected = f"letters, digits and _ . / - and none of {RESERVED}"
    check_that(letters and name not in RESERVED, "array name", expected, repr(name))
    if not is_array(array) or array.dtype.kind not in "biufc":
        came = f"{dtype_or_type(array)} (objects would need pickle)"
        raise TypeError(f"array '{name}': expected an array of numbers, got {came}")
    # np.ascontiguousarray would turn an array of shape () into one of shape (1,).
    return np.asarray(array, order="C")


def to_json(name: str, value: Mapping[str, Any]) -> str:
    """Return `value` as JSON text; an error names the argument as `name`."""
    try:
        text = json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: expected JSON values, but {error}") from error
    _check_keys(name, value)
    return text


def _check_keys(name: str, value: Any) -> None:
    """Refuse keys that are no text: JSON would make text of them, or one of two."""
    if isinstance(value, Mapping):
        for key in value:
            check_kind(name, key, str, "text as keys")
        value = value.values()
    elif not isinstance(value, list | tuple):
        return
    for item in value:
        _check_keys(name, item)


def _to_dictionary(text: np.ndarray) -> dict[str, Any]:
    value = json.loads(text.tobytes())
    if not isinstance(value, dict):
        raise CheckpointError(f"its settings are no dictionary but {value!r:.60}")
    return value


def _digest(members: Mapping[str, np.ndarray]) -> np.ndarray:
    digest = hashlib.sha256()
    for name in sorted(members):
        array = members[name]
        # The line gives the number of bytes that follow, so that no bytes can move from
        # one array to the next without changing the digest.
        line = f"{name} {array.dtype.str} {array.shape} {array.nbytes}\n"
        digest.update(line.encode())
        digest.update(array.tobytes())
    return np.frombuffer(digest.digest(), np.uint8)


def _decode(encoded: bytes) -> np.ndarray:
    """Read one .npy file.

    Unlike numpy's reader this allocates no more than the file holds, whatever size its
    header claims.
    """
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
        # Members that are stored, not compressed, are together smaller than the file.
        # Checking this stops a zip bomb before it is unpacked.
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
