"""Image sets and their cache: whole, verified, or one clear error."""

import subprocess
import sys
import warnings

import numpy as np
import pytest

from tests.support.drawn_archives import (
    DRAWINGS,
    cache_files,
    own_folders,
    small,
    write_archives,
    write_folders,
)
from tinymaml.tasks import images, omniglot
from tinymaml.tasks.images import DataError

FIXTURES = [own_folders, small]
pytestmark = pytest.mark.usefixtures("own_folders")


# --- image sets -----------------------------------------------------------------------


def test_an_image_set_shows_its_shapes_classes_and_source():
    pixels = np.zeros((6, 8, 8, 3), np.uint8)
    image_set = images.ImageSet(pixels, np.arange(6) // 2, ("a", "b", "c"), "Omniglot")
    assert repr(image_set) == (
        "ImageSet(6 images (8, 8, 3) uint8 in 3 classes; Omniglot)"
    )


def test_selected_classes_keep_their_images_and_get_new_labels():
    pixels = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1)
    labels = np.array([0, 1, 2, 0, 1, 2])
    image_set = images.ImageSet(pixels, labels, ("a", "b", "c"), "Omniglot")
    part = image_set.select({"c", "a"})
    assert part.classes == ("a", "c") and part.source == "Omniglot"
    assert part.images.ravel().tolist() == [0, 2, 3, 5]
    assert part.labels.tolist() == [0, 1, 0, 1]


# --- the cache ------------------------------------------------------------------------


def test_the_cache_is_used_the_second_time(small, tmp_path, monkeypatch):
    write_archives(tmp_path)
    first = omniglot.load(tmp_path)
    assert len(cache_files(tmp_path)) == 1
    monkeypatch.setattr(omniglot, "_decode", None)  # decoding would now fail
    assert np.array_equal(omniglot.load(tmp_path).images, first.images)


def test_the_cache_is_an_ordinary_file_without_pickle(small, tmp_path):
    loaded = omniglot.load(write_archives(tmp_path))
    [path] = cache_files(tmp_path)
    assert np.array_equal(np.load(path, allow_pickle=False), loaded.images)
    assert isinstance(loaded.images, np.memmap) and not loaded.images.flags.writeable


def truncate(encoded):
    return encoded[:-1000]


def flip(encoded):
    return encoded[:5000] + bytes([encoded[5000] ^ 1]) + encoded[5001:]


def claim_objects(encoded):
    return encoded.replace(b"'|u1'", b"'|O' ")


@pytest.mark.parametrize(
    "damage", [truncate, flip, claim_objects, lambda e: e + b"0", lambda e: b""]
)
def test_a_damaged_cache_is_built_again_with_a_warning(small, tmp_path, damage):
    write_archives(tmp_path)
    good = np.array(omniglot.load(tmp_path).images)
    [path] = cache_files(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match="truncated or altered cache; building it"):
        assert np.array_equal(omniglot.load(tmp_path).images, good)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(omniglot.load(tmp_path).images, good)


@pytest.mark.parametrize("write", [write_archives, write_folders])
def test_other_sources_have_other_caches(small, tmp_path, write):
    first = omniglot.load(write(tmp_path / "a"))
    changed = dict(zip(DRAWINGS, reversed(DRAWINGS.values()), strict=True))
    second = omniglot.load(write(tmp_path / "b", changed))
    assert len(cache_files(tmp_path)) == 2
    assert not np.array_equal(first.images, second.images)


def test_a_cache_folder_that_cannot_be_written_is_one_clear_error(small, tmp_path):
    (tmp_path / "cache").write_text("a file is in the way")
    with pytest.raises(DataError, match="cannot use the cache: .* set TINYMAML_CACHE"):
        omniglot.load(write_archives(tmp_path))


def test_a_failing_build_leaves_nothing(tmp_path):
    def build():
        yield np.zeros(10, np.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        images.load_cached("x", None, (20,), build)
    assert cache_files(tmp_path) == []


BUILD = """
import sys, time, numpy as np
from tinymaml.tasks.images import load_cached
def build():
    print("building", flush=True)
    for row in range(40):
        time.sleep(0.02)
        yield np.full(50_000, row, np.uint8)
print("ready", flush=True)
sys.stdin.readline()
print(int(load_cached("both", "same source", (40, 50_000), build).sum()))
"""


def test_two_processes_that_build_at_once_both_get_a_whole_cache(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", BUILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=60)[0].split() for process in processes]
    assert answers == [["building", str(50_000 * sum(range(40)))]] * 2
    assert len(cache_files(tmp_path)) == 1
