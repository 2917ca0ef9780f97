"""Damaged files of every kind that the package reads: a campaign with a seed.

Every damage must end in one line of `DataError` or `CheckpointError`, or in right
data. Any other exception, a file that is waited for, and wrong data where a checksum
could have told are failures. The suite runs a short form of the campaign, and this is
the long one:

    python -m tests.support.damaged_files --count 3000
    python -m tests.support.damaged_files --kind archives --seed 7 --count 500

Case number i of a kind depends on the seed, the kind and i alone, so a failure, which
prints its number, is repeated by `--first i --count 1`.
"""

import argparse
import io
import os
import shutil
import signal
import sys
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.drawn_archives import (
    expect_drawn_characters,
    write_archives,
    write_folders,
)
from tinymaml.paper.initialisations import load_initialisation, save_initialisation
from tinymaml.paper.recipes import RECIPES, NavigationRecipe
from tinymaml.tasks import miniimagenet, omniglot
from tinymaml.tasks.images import DataError
from tinymaml.training.checkpoint import (
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
)

SECONDS = 30  # of a case that hangs
CLASSES = {"train": ["n01", "n04"], "validation": ["n03"], "test": ["n02", "n05"]}


# --- damage to the bytes of a file ----------------------------------------------------


def position(rng, content):
    """Anywhere, or in the first or the last bytes, where formats have their headers."""
    size, near = len(content), min(len(content), 1000)
    places = [rng.integers(size), rng.integers(near), size - 1 - rng.integers(near)]
    return int(places[rng.integers(3)])


def flip_a_bit(rng, content):
    content[position(rng, content)] ^= 1 << int(rng.integers(8))


def flip_bits(rng, content):
    for _ in range(rng.integers(2, 20)):
        flip_a_bit(rng, content)


def random_slice(rng, content):
    start = position(rng, content)
    return slice(start, start + int(rng.geometric(1 / 30)))


def overwrite(rng, content):
    where = random_slice(rng, content)
    content[where] = rng.bytes(len(content[where]))


def write_zeros(rng, content):
    where = random_slice(rng, content)
    content[where] = bytes(len(content[where]))


def delete(rng, content):
    del content[random_slice(rng, content)]


def repeat(rng, content):
    where = random_slice(rng, content)
    content[where] = 2 * content[where]


def insert(rng, content):
    at = position(rng, content)
    content[at:at] = rng.bytes(int(rng.integers(1, 50)))


def insert_text(rng, content):
    at = position(rng, content)
    texts = [b"\n", b"\r\n", b",", b'"', b"\0", b"\xef\xbb\xbf", b"\xff\xfe", b"../"]
    content[at:at] = texts[rng.integers(len(texts))]


def exchange(rng, content):
    one, two = random_slice(rng, content), random_slice(rng, content)
    content[one], content[two] = content[two], content[one]


def truncate(rng, content):
    del content[position(rng, content) :]


def append(rng, content):
    content += rng.bytes(int(rng.geometric(1 / 100)))


def set_an_extreme_number(rng, content):
    at = position(rng, content)
    numbers = [b"\xff" * 4, b"\x7f" + b"\xff" * 3, b"\x80\0\0\0", b"\xff\xff", bytes(4)]
    number = numbers[rng.integers(len(numbers))]
    content[at : at + len(number)] = number


BYTES = [
    *(flip_a_bit, flip_bits, overwrite, write_zeros, delete, repeat, insert),
    *(insert_text, exchange, truncate, append, set_an_extreme_number),
]


# --- another file in the place of a file ----------------------------------------------


def encode(pixels, kind="png", mode=None):
    file = io.BytesIO()
    Image.fromarray(pixels, mode).save(file, kind)
    return file.getvalue()


def make_foreign_files():
    grey = np.random.default_rng(0).integers(0, 256, (105, 105), np.uint8)
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "images_background/Drawn/character01/0042_01.png", bytes(10**7)
        )
    numbers = io.BytesIO()
    np.save(numbers, grey)
    return [
        b"",
        b"\0" * 1000,
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 105 105\n%%EndComments\n",
        b"filename,label\n",
        "filename,label\nx.jpg,n01\n".encode("utf-16"),
        b"\x80\x05cos\nsystem\n.",
        encode(grey, "gif"),
        encode(grey, "tiff"),
        encode(grey.astype(np.uint16) * 257),
        encode((grey > 127).astype(np.uint8)),
        zipped.getvalue(),
        numbers.getvalue(),
    ]


FOREIGN = make_foreign_files()


def remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def replace_by_a_foreign_file(rng, path):
    path.write_bytes(FOREIGN[rng.integers(len(FOREIGN))])


def replace_by_something_else(rng, path):
    remove(path)
    kind = ["nothing", "folder", "pipe", "dangling link", "circle", "device"]
    kind = kind[rng.integers(len(kind))]
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind != "nothing":
        target = {"circle": path.name, "device": "/dev/zero"}.get(kind, "nowhere")
        path.symlink_to(target)


def damage_bytes(rng, path):
    content = bytearray(path.read_bytes())
    BYTES[rng.integers(len(BYTES))](rng, content)
    path.write_bytes(content)


# --- damage that a checksum does not show ---------------------------------------------


def damage_a_member(rng, path):
    """Damage one drawing in an archive, and write the archive with right checksums."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = sorted(members)[rng.integers(len(members))]
    content = bytearray(members[name])
    BYTES[rng.integers(len(BYTES))](rng, content)
    renamed = name if rng.random() < 0.8 else name.replace("/", "\n", 1)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for other, encoded in members.items():
            if other == name:
                archive.writestr(renamed, content)
            else:
                archive.writestr(other, encoded)


VALUES = [None, True, -1, 1e300, "", "x\ny", [], [["a", 1]], {}, {"a": []}, "sum"]


def sign_other_contents(rng, path):
    """Write a checkpoint of other contents, whose digest is right."""
    checkpoint = load_checkpoint(path)
    arrays, config = dict(checkpoint.arrays), dict(checkpoint.config)
    value = VALUES[rng.integers(len(VALUES))]
    theta = arrays["theta"].copy()
    choice = rng.integers(6)
    if choice == 0:
        # Another number is an alpha as good as the true one.
        keys = sorted(config.keys() - {"alpha"})
        config[keys[rng.integers(len(keys))]] = value
    elif choice == 1:
        del config[sorted(config)[rng.integers(len(config))]]
    elif choice == 2:
        theta[rng.integers(theta.size)] = [np.nan, np.inf, -np.inf][rng.integers(3)]
        arrays["theta"] = theta
    elif choice == 3:
        arrays["theta"] = theta.astype(["int32", "float16", "c8", "?"][rng.integers(4)])
    elif choice == 4:
        shapes = [theta[:-1], theta[None], theta[:0], theta.sum()[...], theta[:, None]]
        arrays["theta"] = np.array(shapes[rng.integers(len(shapes))])
    else:
        del arrays["theta"]
    save_checkpoint(path, arrays, config, checkpoint.state)


# --- the kinds of files ---------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """How whole files are written, which of them are damaged, and how all are read."""

    write: Callable  # of a folder; writes whole files
    pattern: str  # the files that may be damaged
    read: Callable  # of a folder; returns a list of values
    damages: tuple = (
        *(damage_bytes, damage_bytes, damage_bytes),
        *(replace_by_a_foreign_file, replace_by_something_else),
    )
    checksums: bool = True  # data that are read are right data


def load_omniglot(folder):
    return list(omniglot.load(folder / "data"))


def write_and_load_archives(folder):
    write_archives(folder / "data")
    load_omniglot(folder)


def write_photographs(folder, suffix=".png"):
    rng, images = np.random.default_rng(0), folder / "data" / "images"
    images.mkdir(parents=True)
    for split, classes in CLASSES.items():
        lines = ["filename,label"]
        for label in classes:
            for name in (f"{label}0000000{number}.jpg" for number in range(2)):
                lines.append(f"{name},{label}")
                pixels = rng.integers(0, 256, (15, 20, 3), np.uint8)
                path = (images / name).with_suffix(suffix)
                path.write_bytes(encode(pixels, {".jpg": "jpeg"}.get(suffix, "png")))
        path = folder / "data" / f"{miniimagenet.LISTS[split]}.csv"
        path.write_text("\n".join(lines) + "\n")


def load_photographs(folder):
    sets = miniimagenet.load(folder / "data")
    return [value for image_set in sets.values() for value in image_set]


def write_an_initialisation(folder):
    recipe = RECIPES["fc-5w1s"]
    theta = recipe.network().init(np.random.default_rng(0))
    (folder / "data").mkdir()
    facts = {"data": "none", "accuracy": 97.5}
    save_initialisation(folder / "data" / "start.npz", theta, recipe, facts)
    theta = NavigationRecipe().network().init(np.random.default_rng(0))
    save_initialisation(folder / "data" / "other.npz", theta, NavigationRecipe(), facts)


def load_an_initialisation(folder):
    names = ("start", "other")
    starts = [load_initialisation(folder / "data" / f"{name}.npz") for name in names]
    return [
        value for start in starts for value in (start.theta, start.recipe, start.facts)
    ]


KINDS = {
    "archives": Kind(
        lambda folder: write_archives(folder / "data"),
        "data/*.zip",
        load_omniglot,
        (*Kind.damages, damage_a_member, damage_a_member),
    ),
    "drawings": Kind(
        lambda folder: write_folders(folder / "data"), "data/*/*/*/*", load_omniglot
    ),
    "photographs": Kind(write_photographs, "data/images/*", load_photographs),
    "photographs without checksums": Kind(
        lambda folder: write_photographs(folder, ".jpg"),
        "data/images/*",
        load_photographs,
        checksums=False,
    ),
    "lists": Kind(write_photographs, "data/*.csv", load_photographs),
    "caches": Kind(write_and_load_archives, "cache/*", load_omniglot),
    "initialisations": Kind(
        write_an_initialisation,
        "data/*",
        load_an_initialisation,
        # What is no plain file is the concern of the tests of checkpoints.
        (damage_bytes, damage_bytes, replace_by_a_foreign_file, sign_other_contents),
    ),
}


# --- the campaign ---------------------------------------------------------------------


@contextmanager
def at_most(seconds):
    """End code that hangs by an exception that no reader catches."""

    class Hangs(BaseException):
        pass

    def stop(*_):
        raise Hangs(f"no answer within {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def is_equal(one, two):
    if isinstance(one, np.ndarray):
        return one.dtype == two.dtype and np.array_equal(one, two)
    return one == two


def run_campaign(name, count, seed=0, first=0):
    """Count the outcomes of damages to files of one kind; AssertionError: a failure."""
    kind, outcomes = KINDS[name], Counter()
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        folder = Path(place)
        patch.setenv("TINYMAML_CACHE", str(folder / "cache"))
        patch.delenv("TINYMAML_DATA", raising=False)
        expect_drawn_characters(patch)
        sizes = {split: len(classes) for split, classes in CLASSES.items()}
        patch.setattr(miniimagenet, "CLASSES", sizes)
        patch.setattr(miniimagenet, "IMAGES", 2)
        kind.write(folder)
        victims = sorted(folder.glob(kind.pattern))
        right = [
            np.array(value) if isinstance(value, np.ndarray) else value
            for value in kind.read(folder)
        ]
        for number in range(first, first + count):
            rng = np.random.default_rng([seed, number, *name.encode()])
            victim = victims[rng.integers(len(victims))]
            content = victim.read_bytes()
            if victim.parent.name != "cache":
                shutil.rmtree(folder / "cache", ignore_errors=True)
            damage = kind.damages[rng.integers(len(kind.damages))]
            try:
                damage(rng, victim)
                outcomes[_outcome(kind, folder, right)] += 1
            except BaseException as error:
                where = f"{name}, seed {seed}, number {number}: {damage.__name__}"
                raise AssertionError(f"{where}: {repr(error)[:300]}") from error
            remove(victim)
            victim.write_bytes(content)
    return outcomes


def _outcome(kind, folder, right):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with at_most(SECONDS):
                values = kind.read(folder)
        except (DataError, CheckpointError) as error:
            assert str(error).isprintable(), "the error is more than one line"
            assert len(str(error)) < 1000, "the error is endless"
            return "one error"
    expected = "truncated or altered cache; building it again"
    others = [str(w.message) for w in caught if expected not in str(w.message)]
    assert not others, others
    if not kind.checksums:
        assert [np.shape(v) for v in values] == [np.shape(v) for v in right]
        return "data of the right shape"
    same = [is_equal(*pair) for pair in zip(values, right, strict=True)]
    assert all(same), f"wrong data in silence: {same}"
    return "right data, after a warning" if caught else "right data"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=KINDS, help="one kind only (default: all)")
    parser.add_argument("--count", type=int, default=3000, help="cases (default: 3000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    options = parser.parse_args()
    kinds = [options.kind] if options.kind else list(KINDS)
    for index, name in enumerate(kinds):
        count = (options.count + index) // len(kinds)
        outcomes = run_campaign(name, count, options.seed, options.first)
        print(f"{name}: {count} damaged files: {dict(outcomes)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
