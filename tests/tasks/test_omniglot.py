"""Omniglot: splits, the loader, and what it refuses.

Damage is tried on small archives and folders of drawn strokes. Tests of the real
archives run where $TINYMAML_DATA has them.
"""

import io
import os
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from tests.support.drawn_archives import (
    CHARACTERS,
    DRAWINGS,
    cache_files,
    encode,
    own_folders,
    small,
    write_archives,
    write_folders,
)
from tinymaml.tasks import images, omniglot
from tinymaml.tasks.episodes import Episodes
from tinymaml.tasks.images import DataError

FIXTURES = [own_folders, small]
pytestmark = pytest.mark.usefixtures("own_folders")
REAL = os.environ.get("TINYMAML_DATA")
needs_data = pytest.mark.skipif(
    not REAL or not (omniglot.find_data(REAL) / "images_background.zip").exists(),
    reason="needs TINYMAML_DATA, a folder with Omniglot's archives",
)


# --- the split list -------------------------------------------------------------------


def test_the_split_list_holds_1623_characters_of_50_alphabets():
    rows = omniglot.rows()
    assert len({row.character for row in rows}) == len(rows) == 1623
    assert [row.character for row in rows] == sorted(row.character for row in rows)
    alphabets = {(row.part, row.character.split("/")[0]) for row in rows}
    assert Counter(part for part, _ in alphabets) == {
        "images_background": 30,
        "images_evaluation": 20,
    }
    assert Counter(row.part for row in rows)["images_background"] == 964


def test_the_split_list_is_what_its_seed_draws():
    rows = omniglot.rows()
    assert omniglot.draw_splits({row.character: row.part for row in rows}) == rows


@pytest.mark.parametrize(
    "name, sizes", [("authors", (1100, 100, 423)), ("background", (848, 116, 659))]
)
def test_splits_have_their_documented_sizes(name, sizes):
    counts = Counter(getattr(row, name) for row in omniglot.rows())
    assert (counts["train"], counts["validation"], counts["test"]) == sizes


def all_characters():
    """As `load()`, but with one black image for every drawing."""
    names = tuple(row.character for row in omniglot.rows())
    labels = np.arange(1623).repeat(20)
    blank = np.broadcast_to(np.uint8(0), (len(labels), 28, 28, 1))
    return images.ImageSet(blank, labels, names, "Omniglot")


@pytest.mark.parametrize("name", ["authors", "paper", "background"])
def test_split_divides_all_characters_and_keeps_their_images(name):
    whole = all_characters()
    pixels = np.zeros((len(whole.labels), 1, 1, 2), np.uint8)
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = whole.labels % 256, whole.labels // 256
    parts = omniglot.split(whole._replace(images=pixels), name)
    assert sorted(c for part in parts.values() for c in part.classes) == list(
        whole.classes
    )
    for part in parts.values():
        numbers = part.images[:, 0, 0, 0] + 256 * part.images[:, 0, 0, 1].astype(int)
        assert [whole.classes[n] for n in numbers] == [
            part.classes[label] for label in part.labels
        ]
        assert (np.bincount(part.labels) == 20).all()


def test_the_papers_split_is_the_authors_with_validation_in_train():
    whole = all_characters()
    authors, paper = (omniglot.split(whole, name) for name in ("authors", "paper"))
    assert list(paper) == ["train", "test"] and len(paper["train"].classes) == 1200
    assert paper["test"].classes == authors["test"].classes
    both = authors["train"].classes + authors["validation"].classes
    assert set(paper["train"].classes) == set(both)


def test_the_background_split_shares_no_alphabet():
    parts = omniglot.split(all_characters(), "background").values()
    alphabets = [{c.split("/")[0] for c in part.classes} for part in parts]
    assert [len(a) for a in alphabets] == [26, 4, 20]
    assert len(set.union(*alphabets)) == 50


def test_split_refuses_another_name_and_other_characters():
    with pytest.raises(ValueError, match="name: expected authors, paper or .* 'dev'"):
        omniglot.split(all_characters(), "dev")
    some = all_characters().only(all_characters().classes[:7])
    with pytest.raises(ValueError, match="image_set: .* got 7 of Omniglot"):
        omniglot.split(some)
    standin = omniglot.split(omniglot.standin())["train"]
    with pytest.raises(ValueError, match="got 186 of procedural stand-in"):
        omniglot.split(standin)


# --- loading --------------------------------------------------------------------------


@pytest.mark.parametrize("write", [write_archives, write_folders])
@pytest.mark.parametrize("place", [".", "omniglot"])
def test_load_reads_archives_and_folders_and_inverts(small, tmp_path, write, place):
    write(tmp_path / place)
    loaded = omniglot.load(tmp_path)
    assert loaded.classes == tuple(sorted(sum(CHARACTERS.values(), [])))
    assert loaded.source == "Omniglot"
    assert np.array_equal(loaded.labels, np.arange(5).repeat(20))
    assert loaded.images.shape == (100, 28, 28, 1) and loaded.images.dtype == np.uint8
    for index in (0, 19, 99):
        part = CHARACTERS["images_background"]
        character = loaded.classes[index // 20]
        part = f"images_{'background' if character in part else 'evaluation'}"
        path = f"{part}/{character}/0042_{index % 20 + 1:02}.png"
        image = Image.open(io.BytesIO(DRAWINGS[path])).convert("L")
        small_image = image.resize((28, 28), Image.Resampling.LANCZOS)
        assert np.array_equal(
            loaded.images[index, :, :, 0], 255 - np.array(small_image)
        )


def test_find_data_takes_the_argument_then_the_variable_then_the_cache(
    tmp_path, monkeypatch
):
    assert omniglot.find_data() == tmp_path / "cache" / "omniglot"
    monkeypatch.setenv("TINYMAML_DATA", str(tmp_path / "variable"))
    assert omniglot.find_data() == tmp_path / "variable" / "omniglot"
    assert omniglot.find_data(tmp_path / "a") == tmp_path / "a" / "omniglot"
    write_archives(tmp_path / "a")
    assert omniglot.find_data(str(tmp_path / "a")) == tmp_path / "a"


def test_the_users_own_cache_folder_is_used_by_default(monkeypatch):
    monkeypatch.delenv("TINYMAML_CACHE")
    assert images.cache_folder().name == "tinymaml"


def test_what_macs_add_to_archives_is_passed_over(small, tmp_path):
    extra = {
        "images_background/.DS_Store": b"x",
        "images_background/Odd/character01/._0042_01.png": b"x",
        "__MACOSX/images_background/Odd/character01/._0042_01.png": b"x",
    }
    write_archives(tmp_path, DRAWINGS | extra)
    assert len(omniglot.load(tmp_path).classes) == 5


def test_the_data_folder_may_be_read_only(small, tmp_path):
    write_folders(tmp_path / "data")
    before = sorted((tmp_path / "data").rglob("*"))
    omniglot.load(tmp_path / "data")
    assert sorted((tmp_path / "data").rglob("*")) == before


# --- what is missing or damaged -------------------------------------------------------


def without(*parts):
    return {p: d for p, d in DRAWINGS.items() if not any(part in p for part in parts)}


ODD = "images_background/Odd/character01/0042_07.png"
DAMAGED = [
    (without("Odd/"), "missing: 1: alphabet Odd;"),
    (without("Drawn/character02"), "missing: 1: Drawn/character02;"),
    (
        without("Odd/character01/0042_07", "Odd/character01/0042_11"),
        "missing: 2: Odd/character01 drawing 07, Odd/character01 drawing 11;",
    ),
    (
        DRAWINGS | {"images_evaluation/New/character02/0001_01.png": b"x"},
        "not expected: 1: images_evaluation/New/character02/0001_01.png;",
    ),
    (
        DRAWINGS | {"images_evaluation/New/character01/0001_03.png": b"x"},
        "images_evaluation: expected 20 drawings of each of 2 characters; not expected",
    ),
    (DRAWINGS | {ODD: DRAWINGS[ODD][:60]}, f"{ODD}: expected an image, got a damaged"),
    (DRAWINGS | {ODD: b"GIF nonsense"}, f"{ODD}: expected an image, got a damaged"),
    (
        DRAWINGS | {ODD: encode(Image.new("L", (105, 104)))},
        f"{ODD}: expected 105 x 105 pixels, got 105 x 104",
    ),
]


@pytest.mark.parametrize("write", [write_archives, write_folders])
@pytest.mark.parametrize("drawings, message", DAMAGED)
def test_load_says_what_is_missing_or_damaged(
    small, tmp_path, write, drawings, message
):
    write(tmp_path / "data", drawings)
    with pytest.raises(DataError) as error:
        omniglot.load(tmp_path / "data")
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "cache").exists() or not cache_files(tmp_path)


def test_load_says_where_it_looked_and_what_to_do(small, tmp_path):
    for part in CHARACTERS:
        with pytest.raises(DataError, match=rf"{part}.zip or the folder .* --download"):
            omniglot.load(tmp_path / "data")
        write_archives(tmp_path / "data")
        (tmp_path / "data" / "images_evaluation.zip").unlink()


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.999])
def test_a_truncated_archive_is_refused(small, tmp_path, keep):
    path = write_archives(tmp_path) / "images_evaluation.zip"
    encoded = path.read_bytes()
    path.write_bytes(encoded[: int(keep if keep > 1 else keep * len(encoded))])
    with pytest.raises(
        DataError, match="images_evaluation.zip: expected a zip archive"
    ):
        omniglot.load(tmp_path)


def test_an_archive_with_wrong_bytes_inside_is_refused(small, tmp_path):
    path = write_archives(tmp_path) / "images_background.zip"
    encoded = bytearray(path.read_bytes())
    encoded[encoded.index(b"IDAT") + 8] ^= 255  # the zip's checksum no longer fits
    path.write_bytes(encoded)
    with pytest.raises(
        DataError, match="Drawn/character01/0042_01.png: cannot be read"
    ):
        omniglot.load(tmp_path)
    assert not cache_files(tmp_path)


# --- the real archives ----------------------------------------------------------------


@needs_data
@pytest.mark.slow
def test_the_real_archives_are_whole_and_give_episodes():
    loaded = omniglot.load(REAL)
    assert loaded.images.shape == (32460, 28, 28, 1) and len(loaded.classes) == 1623
    assert loaded.classes == tuple(row.character for row in omniglot.rows())
    per_image = loaded.images.reshape(32460, -1)
    assert (per_image.max(1) > 128).all()  # strokes everywhere,
    assert 0.03 < (per_image > 127).mean() < 0.12  # and mostly ground
    assert len(np.unique(per_image, axis=0)) > 32_000  # hardly two alike
    train = omniglot.split(loaded)["train"]
    assert train.images.shape == (22_000, 28, 28, 1)
    sample = Episodes(train.images, train.labels, ways=20, shots=5, queries=5, tasks=2)
    batch = sample(np.random.default_rng(0))
    assert batch.x_query.shape == (2, 100, 28, 28, 1)
    assert batch.x_query.min() == 0.0 and batch.x_query.max() == 1.0
