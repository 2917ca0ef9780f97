"""Image sets and their cache: whole, verified, or one clear error."""

import io
import os
import subprocess
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from tests.support.damaged_files import KINDS, run_campaign
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
    assert image_set.select(iter("ac")).labels.tolist() == [0, 1, 0, 1]
    for unknown, shown in ({"a", "typo"}, "'typo'"), ("ab", "'ab'"):
        with pytest.raises(ValueError, match=f"classes: expected names .* 1: {shown}"):
            image_set.select(unknown)


def test_bars_are_drawn_on_terminals_only_and_a_closed_stderr_does_no_harm(monkeypatch):
    for terminal in (True, False):
        stderr = SimpleNamespace(isatty=lambda answer=terminal: answer)
        monkeypatch.setattr(sys, "stderr", stderr)
        assert images.show_progress() is terminal
    monkeypatch.setattr(sys, "stderr", None)
    assert not images.show_progress()
    assert list(omniglot._decode({})) == []


# --- images and folders ---------------------------------------------------------------

INK = np.random.default_rng(0).random((20, 30)) < 0.3
GREY = np.where(INK, 0, 255).astype(np.uint8)  # dark strokes on white


def png(pixels, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, "png", **options)
    return file


def palette_of_blacks():
    image = Image.fromarray(np.where(INK, 0, 1).astype(np.uint8)).convert("P")
    image.putpalette([0, 0, 0, 0, 0, 0])
    return image


def channels(*values):
    return np.stack([np.where(INK, *value) for value in values], -1).astype(np.uint8)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize(
    "file",
    [
        png(GREY),
        png(Image.fromarray(GREY).convert("1")),
        png(Image.fromarray(GREY).convert("P")),
        png(channels((0, 255), (0, 255), (0, 255))),
        png(channels((0, 0), (255, 0))),
        png(channels((0, 0), (0, 0), (0, 0), (255, 0))),
        png(np.where(INK, 0, 7).astype(np.uint8), transparency=7),
        png(channels((0, 7), (0, 8), (0, 9)), transparency=(7, 8, 9)),
        png(palette_of_blacks(), transparency=1),
        png(palette_of_blacks(), transparency=b"\xff\x00"),
    ],
    ids="L 1 P RGB LA RGBA L+key RGB+key P+key P+alpha".split(),
)
def test_dark_strokes_are_read_alike_from_every_kind_of_png(file, mode):
    pixels = np.asarray(images.read_image(file, "x", mode)).reshape(20, 30, -1)
    assert (pixels == GREY[..., None]).all()


RAMP = np.arange(600).reshape(20, 30)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 105 105\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize(
    "file, message",
    [
        (png((RAMP * 100).astype(np.uint16)), "expected 8 bits for a pixel, got 16"),
        (png(INK.astype(np.uint8)), r"expected pixels of 0 .. 255, got only 0 and 1"),
        (
            png(channels((255, 0), (255, 0))),
            "expected pixels that show on white",
        ),
        (io.BytesIO(EPS), r"not JPEG or PNG \(cannot identify image file\)"),
        (png(Image.new("1", (9500, 9500))), "expected an image, .* decompression bomb"),
    ],
    ids=["16 bits", "0 and 1", "white on nothing", "EPS", "90 million pixels"],
)
def test_images_that_would_be_read_wrong_are_refused(file, message):
    for mode in ("L", "RGB"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an error without pytest's settings too
            with pytest.raises(DataError, match=f"^x: .*{message}"):
                images.read_image(file, "x", mode)


def test_no_image_starts_ghostscript(small, tmp_path, monkeypatch):
    program, proof = tmp_path / "bin" / "gs", tmp_path / "proof"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho ran >> {proof}\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    with pytest.raises(DataError, match="that is damaged, unreadable or not PNG"):
        omniglot.load(write_archives(tmp_path, {**DRAWINGS, next(iter(DRAWINGS)): EPS}))
    assert not proof.exists()


def test_an_error_is_one_line_of_bounded_length_whatever_the_names():
    assert str(DataError("a\nb\r\u2028\udc80: é")) == r"a\nb\r\u2028\udc80: é"
    assert len(str(DataError("x" * 5000))) < 900


def test_a_tilde_is_the_home_folder_and_an_unknown_user_is_no_traceback(
    small, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TINYMAML_CACHE", "~/own")
    write_archives(tmp_path / "data")
    assert len(omniglot.load("~/data").classes) == 5
    assert list((tmp_path / "own").iterdir())
    with pytest.raises(DataError, match="found neither"):
        omniglot.load("~nobody_of_this_name/data")


# --- the cache ------------------------------------------------------------------------


def test_the_cache_is_used_the_second_time(small, tmp_path, monkeypatch):
    write_archives(tmp_path)
    first = omniglot.load(tmp_path)
    assert len(cache_files(tmp_path)) == 1
    monkeypatch.setattr(omniglot, "_decode", lambda drawings: 1 / 0)
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


def test_a_pipe_in_the_place_of_the_cache_is_one_error(small, tmp_path):
    omniglot.load(write_archives(tmp_path))
    [path] = cache_files(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.warns(UserWarning, match="altered cache"):
        with pytest.raises(DataError, match="cannot use the cache: .* no plain file"):
            omniglot.load(tmp_path)


# --- damaged files --------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"initialisations"}))
def test_damaged_files_end_in_one_error_or_right_data(kind):
    outcomes = run_campaign(kind, 25)
    assert outcomes["one error"] > 0 and outcomes.total() == 25


def test_the_campaign_finds_checksums_that_are_not_compared(monkeypatch):
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "verify", lambda image: None)
    with pytest.raises(AssertionError, match="wrong data in silence"):
        run_campaign("drawings", 300)
