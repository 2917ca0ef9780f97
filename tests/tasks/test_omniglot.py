"""Omniglot: splits, the loader, what it refuses, and downloads.

Damaged sources are small archives and folders of drawn strokes. Tests of the real
archives run where $TINYMAML_DATA has them.
"""

import gc
import io
import os
import threading
import tracemalloc
import zipfile
from collections import Counter
from functools import partial
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

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
from tinymaml import files
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
    characters = omniglot.characters()
    names = [character.name for character in characters]
    assert len(set(names)) == len(names) == 1623
    assert names == sorted(names)
    alphabets = {(c.part, c.name.split("/")[0]) for c in characters}
    assert Counter(part for part, _ in alphabets) == {
        "images_background": 30,
        "images_evaluation": 20,
    }
    assert Counter(c.part for c in characters)["images_background"] == 964


def draw_splits(parts, validation=100, test=423):
    """The characters of omniglot_split.csv, from the archive of each.

    authors: the sorted names are shuffled by `default_rng(2017).permutation`. The last
    `test` of them are the test set, and `validation` before these the validation set.
    background: the sorted alphabets of the background archive are shuffled likewise.
    The first of them are the validation set, until it has `validation` characters.
    """
    names = sorted(parts)
    train = len(names) - validation - test
    subsets = ["train"] * train + ["validation"] * validation + ["test"] * test
    order = np.random.default_rng(omniglot.SEED).permutation(len(names))
    authors = {names[i]: subset for i, subset in zip(order, subsets, strict=True)}
    background = {
        n: "train" if parts[n] == omniglot.PARTS[0] else "test" for n in names
    }
    alphabets = sorted(
        {n.split("/")[0] for n in names if parts[n] == omniglot.PARTS[0]}
    )
    for i in np.random.default_rng(omniglot.SEED).permutation(len(alphabets)):
        if list(background.values()).count("validation") < validation:
            members = [n for n in names if n.split("/")[0] == alphabets[i]]
            background |= dict.fromkeys(members, "validation")
    return tuple(
        omniglot.Character(n, parts[n], authors[n], background[n]) for n in names
    )


def test_the_split_list_is_what_its_seed_draws():
    characters = omniglot.characters()
    assert draw_splits({c.name: c.part for c in characters}) == characters


def test_the_stand_in_is_split_as_its_seed_draws():
    characters = omniglot._standin_characters()
    parts = {c.name: omniglot.PARTS[int(c.name[8:10]) > 5] for c in characters}
    drawn = draw_splits(parts, validation=24, test=30)
    assert [c._replace(part="") for c in drawn] == list(characters)


@pytest.mark.parametrize(
    "name, sizes", [("authors", (1100, 100, 423)), ("background", (848, 116, 659))]
)
def test_splits_have_their_documented_sizes(name, sizes):
    counts = Counter(getattr(character, name) for character in omniglot.characters())
    assert (counts["train"], counts["validation"], counts["test"]) == sizes


def all_characters():
    """An image set as of `load()`, with a black image for every drawing."""
    names = tuple(character.name for character in omniglot.characters())
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
    with pytest.raises(
        ValueError, match="name: expected one of authors, paper, .* 'dev'"
    ):
        omniglot.split(all_characters(), "dev")
    seven = all_characters().select(all_characters().classes[:7])
    with pytest.raises(ValueError, match="image_set: .* got 7 of Omniglot"):
        omniglot.split(seven)
    standin = omniglot.split(omniglot.standin())["train"]
    with pytest.raises(ValueError, match="got 186 of procedural stand-in"):
        omniglot.split(standin)


# --- loading --------------------------------------------------------------------------


@pytest.mark.parametrize("write", [write_archives, write_folders])
@pytest.mark.parametrize("subfolder", [".", "omniglot"])
def test_load_reads_archives_and_folders_and_inverts(small, tmp_path, write, subfolder):
    write(tmp_path / subfolder)
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
    assert files.cache_folder().name == "tinymaml"


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


PLACES = [
    "{part}/{part}/{character}",
    "omniglot/{part}/{part}/{character}",
    "omniglot-py/{part}/{character}",
    "omniglot/omniglot-py/{part}/{character}",
    "python/{part}/{character}",
    "omniglot/python/{part}/{character}",
]


@pytest.mark.parametrize("place", PLACES)
def test_load_finds_folders_where_programs_unpack_them(small, tmp_path, place):
    expected = omniglot.load(write_folders(tmp_path / "plain")).images
    moved = {}
    for path, encoded in DRAWINGS.items():
        part, _, rest = path.partition("/")
        character, _, name = rest.rpartition("/")
        moved[f"{place.format(part=part, character=character)}/{name}"] = encoded
    write_folders(tmp_path / "data", moved)
    assert np.array_equal(omniglot.load(tmp_path / "data").images, expected)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_load_follows_symbolic_links(small, tmp_path, depth):
    expected = omniglot.load(write_folders(tmp_path / "real")).images
    for path in (tmp_path / "real").glob("/".join("*" * depth)):
        link = tmp_path / "data" / path.relative_to(tmp_path / "real")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    assert np.array_equal(omniglot.load(tmp_path / "data").images, expected)


def test_a_circle_of_links_ends(small, tmp_path):
    write_folders(tmp_path)
    (tmp_path / "images_background" / "again").symlink_to("..")
    assert len(omniglot.load(tmp_path).classes) == 5  # nothing more in reach
    (tmp_path / "images_background" / "same").symlink_to(".")
    with pytest.raises(DataError, match="not expected"):
        omniglot.load(tmp_path)


@pytest.mark.parametrize(
    "rename", [lambda p: p.replace("/", "\\"), lambda p: f"a folder/{p}"]
)
def test_load_reads_archives_with_other_paths(small, tmp_path, rename):
    expected = omniglot.load(write_archives(tmp_path / "plain")).images
    for part in CHARACTERS:
        with zipfile.ZipFile(tmp_path / f"{part}.zip", "w") as archive:
            for path, encoded in DRAWINGS.items():
                if path.startswith(part):
                    archive.writestr(rename(path), encoded)
    assert np.array_equal(omniglot.load(tmp_path).images, expected)


# --- what is missing or damaged -------------------------------------------------------


def without(*parts):
    return {p: d for p, d in DRAWINGS.items() if not any(part in p for part in parts)}


ODD = "images_background/Odd/character01/0042_07.png"
NO_IMAGE = f"{ODD}: expected an image, got a file that is damaged"
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
        "images_evaluation: expected 20 drawings of each of 2 characters, got more; "
        "not expected",
    ),
    (DRAWINGS | {ODD: DRAWINGS[ODD][:60]}, NO_IMAGE),
    (DRAWINGS | {ODD: b"GIF nonsense"}, NO_IMAGE),
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


def set_bytes(at, *numbers, local=None):
    """A change of the first header of an archive's directory, and of a local header."""

    def change(archive):
        for signature, start in ((b"PK\1\2", at), (b"PK\3\4", local)):
            if start is not None:
                start += archive.index(signature)
                archive[start : start + len(numbers)] = bytes(numbers)

    return change


CHANGES = {
    "encrypted": (set_bytes(8, 1, local=6), "cannot be read .* encrypted"),
    "deflate64": (set_bytes(10, 9, 0, local=8), "its compression is not deflate"),
    "bzip2": (set_bytes(10, 12, 0, local=8), "its compression is not deflate"),
    "zstandard": (set_bytes(10, 93, 0, local=8), "its compression is not deflate"),
    "version 9.9": (set_bytes(6, 99), "zip file version 9.9"),
    "no UTF-8": (set_bytes(9, 8), "cannot be read .* header"),
    "more bytes than there are": (
        set_bytes(20, *(240, 255, 255, 255, 240, 255, 255, 0)),
        "cannot be read",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_archive_that_zipfile_cannot_read_is_one_clear_error(small, tmp_path, name):
    change, message = CHANGES[name]
    if name == "no UTF-8":  # the names are told to be UTF-8, and are not
        original = change

        def change(archive):
            original(archive)
            archive[archive.index(b"PK\1\2") + 46] = 255

        message = "expected a zip archive, .* can't decode"
    path = write_archives(tmp_path) / "images_background.zip"
    archive = bytearray(path.read_bytes())
    change(archive)
    path.write_bytes(archive)
    with pytest.raises(DataError, match=message):
        omniglot.load(tmp_path)


def test_an_archive_that_unpacks_to_far_more_is_refused_in_little_memory(
    small, tmp_path
):
    path = write_archives(tmp_path, without("Drawn/character01/0042_01"))
    path /= "images_background.zip"
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "images_background/Drawn/character01/0042_01.png", bytes(10**8)
        )
    tracemalloc.start()
    with pytest.raises(DataError, match="expected at most 131072 bytes, got more"):
        omniglot.load(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


@pytest.mark.parametrize("place", [ODD, "images_background.zip"])
def test_a_named_pipe_is_refused_and_not_waited_for(small, tmp_path, place):
    write_folders(tmp_path)
    (tmp_path / place).unlink(missing_ok=True)
    os.mkfifo(tmp_path / place)
    with pytest.raises(DataError, match=f"{place}: expected a file, got .* pipe"):
        omniglot.load(tmp_path)


# --- downloads ------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A local stand-in for GitHub: it has `files` by name; the first `fail` requests
    fail, and with `cut` an answer ends after so many bytes."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.requests.append(self.path)
            if len(server.requests) <= server.fail or self.path[1:] not in server.files:
                self.send_error(503)
                return
            body = server.files[self.path[1:]]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: server.cut])

        def log_message(self, *_):
            pass

    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        source = write_archives(tmp_path / "upstream")
        server.files = {path.name: path.read_bytes() for path in source.iterdir()}
        server.requests, server.fail, server.cut = [], 0, None
        server.url = f"http://127.0.0.1:{server.server_port}/"
        checksums = {n: md5(b).hexdigest() for n, b in server.files.items()}
        monkeypatch.setattr(omniglot, "ARCHIVES", checksums)
        thread = threading.Thread(target=partial(server.serve_forever, 0.01))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_the_published_archives_are_downloaded():
    assert omniglot.URL.startswith("https://raw.githubusercontent.com/brendenlake/")
    assert [omniglot.ARCHIVES[f"{part}.zip"] for part in omniglot.PARTS] == [
        "68d2efa1b9178cc56df9314c21c6e718",
        "6b91aef0f799c5bb55b94e3f2daec811",
    ]


def test_load_downloads_missing_archives_once(small, tmp_path, server, monkeypatch):
    monkeypatch.setattr(omniglot, "fetch", partial(omniglot.fetch, url=server.url))
    loaded = omniglot.load(tmp_path / "new", download=True)
    assert len(loaded.classes) == 5 and len(server.requests) == 2
    omniglot.load(tmp_path / "new", download=True)
    assert len(server.requests) == 2  # nothing is missing now


def test_a_download_is_tried_again(tmp_path, server):
    server.fail = 1
    omniglot.fetch(tmp_path / "images_background.zip", server.url, retries=1)
    assert len(server.requests) == 2
    encoded = (tmp_path / "images_background.zip").read_bytes()
    assert encoded == server.files["images_background.zip"]


# When a download breaks off, `requests` leaves its socket to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("fault", ["refused", "truncated", "altered", "no server"])
def test_a_failed_download_is_one_clear_error_and_leaves_nothing(
    tmp_path, server, fault
):
    path, url = tmp_path / "new" / "images_background.zip", server.url
    server.fail = 9 if fault == "refused" else 0
    server.cut = 1000 if fault == "truncated" else None
    if fault == "altered":
        server.files[path.name] = server.files[path.name][::-1]
    if fault == "no server":
        url = "http://127.0.0.1:9/"
    with pytest.raises(DataError, match="images_background.zip: .* try again, or put"):
        omniglot.fetch(path, url, retries=0)
    assert not path.parent.exists() or not list(path.parent.iterdir())
    gc.collect()


# --- the real archives ----------------------------------------------------------------


@needs_data
@pytest.mark.slow
def test_the_real_archives_are_whole_and_give_episodes():
    loaded = omniglot.load(REAL)
    assert loaded.images.shape == (32460, 28, 28, 1) and len(loaded.classes) == 1623
    assert loaded.classes == tuple(c.name for c in omniglot.characters())
    per_image = loaded.images.reshape(32460, -1)
    assert (per_image.max(1) > 128).all()  # strokes everywhere,
    assert 0.03 < (per_image > 127).mean() < 0.12  # and mostly ground
    assert len({image.tobytes() for image in per_image}) > 32_000  # hardly two alike
    train = omniglot.split(loaded)["train"]
    assert train.images.shape == (22_000, 28, 28, 1)
    sample = Episodes(train.images, train.labels, ways=20, shots=5, queries=5, tasks=2)
    batch = sample(np.random.default_rng(0))
    assert batch.x_query.shape == (2, 100, 28, 28, 1)
    assert batch.x_query.min() == 0.0 and batch.x_query.max() == 1.0


def test_each_evaluation_alphabet_is_large_enough_for_twenty_ways():
    names = [c.name for c in omniglot.characters() if c.background == "test"]
    sizes = Counter(name.split("/")[0] for name in names)
    assert len(sizes) == 20 and min(sizes.values()) >= 20
