"""MiniImagenet with generated images: layouts, lists, counts, cache and refusals."""

import csv
import io
import os

import numpy as np
import pytest
from PIL import Image

from tinymaml.tasks import miniimagenet
from tinymaml.tasks.images import DataError

CLASSES = {"train": ["n01", "n04"], "validation": ["n03"], "test": ["n02", "n05"]}
COUNT = 3
SIDES = {"train": "train", "validation": "val", "test": "test"}
ROWS = {
    side: [(f"{c}0000000{i}.jpg", c) for c in CLASSES[side] for i in range(COUNT)]
    for side in CLASSES
}


def encode(name, label):
    """A JPEG that is not square, of one colour that its name determines."""
    colour = (int(label[1:]) * 40, int(name[-5]) * 80, 128)
    file = io.BytesIO()
    Image.new("RGB", (100, 75), colour).save(file, "jpeg", quality=95)
    return file.getvalue()


def write_lists(folder, rows=ROWS):
    folder.mkdir(parents=True, exist_ok=True)
    for side, name in SIDES.items():
        with open(folder / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows([("filename", "label"), *rows[side]])
    return folder


LAYOUTS = {
    "all in images/": lambda side, label: "images",
    "split and class": lambda side, label: f"{SIDES[side]}/{label}",
    "split and class, long name": lambda side, label: f"{side}/{label}",
    "class": lambda side, label: label,
    "all in one folder": lambda side, label: ".",
}


def write_images(folder, layout="all in images/", suffix=".jpg"):
    for side, rows in ROWS.items():
        for name, label in rows:
            directory = folder / LAYOUTS[layout](side, label)
            directory.mkdir(parents=True, exist_ok=True)
            path = (directory / name).with_suffix(suffix)
            path.write_bytes(encode(name, label))
    return folder


@pytest.fixture(autouse=True)
def small_and_own_folders(tmp_path, monkeypatch):
    """The loader expects five classes of three images instead of a hundred of 600."""
    monkeypatch.setenv("TINYMAML_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TINYMAML_DATA", raising=False)
    sizes = {side: len(classes) for side, classes in CLASSES.items()}
    monkeypatch.setattr(miniimagenet, "CLASSES", sizes)
    monkeypatch.setattr(miniimagenet, "IMAGES", COUNT)


@pytest.fixture
def data(tmp_path):
    return write_lists(write_images(tmp_path / "data"))


def test_the_lists_are_expected_to_have_the_published_sizes(monkeypatch):
    monkeypatch.undo()
    assert miniimagenet.CLASSES == {"train": 64, "validation": 16, "test": 20}
    assert miniimagenet.IMAGES == 600


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_load_reads_each_layout(tmp_path, layout, suffix):
    data = write_lists(write_images(tmp_path / "data", layout, suffix))
    loaded = miniimagenet.load(data)
    assert list(loaded) == ["train", "validation", "test"]
    for side, part in loaded.items():
        assert part.classes == tuple(CLASSES[side]) and part.source == "MiniImagenet"
        assert part.images.shape == (COUNT * len(part.classes), 84, 84, 3)
        assert part.images.dtype == np.uint8
        assert np.array_equal(part.labels, np.arange(len(part.classes)).repeat(COUNT))
        for image, (name, label) in zip(part.images, ROWS[side], strict=True):
            colour = np.array([int(label[1:]) * 40, int(name[-5]) * 80, 128])
            assert np.abs(image.astype(int) - colour).max() < 6  # JPEG is lossy


def test_images_are_resized_by_lanczos(data):
    path = data / "images" / ROWS["test"][1][0]
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    Image.fromarray(noise).save(path)
    with Image.open(path) as image:
        expected = np.array(image.resize((84, 84), Image.Resampling.LANCZOS))
    assert np.array_equal(miniimagenet.load(data)["test"].images[1], expected)


def test_the_order_of_a_list_does_not_matter(data, tmp_path):
    before = miniimagenet.load(data)["train"].images
    write_lists(data, {side: rows[::-1] for side, rows in ROWS.items()})
    assert np.array_equal(miniimagenet.load(data)["train"].images, before)


def test_lists_may_lie_elsewhere_and_data_in_a_subfolder(tmp_path, monkeypatch):
    write_images(tmp_path / "data" / "miniimagenet")
    monkeypatch.setenv("TINYMAML_DATA", str(tmp_path / "data"))
    loaded = miniimagenet.load(splits=write_lists(tmp_path / "lists"))
    assert len(loaded["train"].labels) == 2 * COUNT


@pytest.mark.parametrize("layout", ["class", "all in one folder"])
def test_a_bare_folder_needs_no_list_in_it(tmp_path, layout):
    write_images(tmp_path / "bare", layout)
    lists = write_lists(tmp_path / "lists")
    assert len(miniimagenet.load(tmp_path / "bare", lists)["test"].labels) == 2 * COUNT


def test_images_are_memory_mapped_and_decoded_once(data, monkeypatch):
    first = miniimagenet.load(data)["train"].images
    assert isinstance(first, np.memmap) and not first.flags.writeable
    monkeypatch.delattr(miniimagenet.images, "read_image")  # decoding would now fail
    assert np.array_equal(miniimagenet.load(data)["train"].images, first)


def test_a_truncated_cache_is_built_again_with_a_warning(data, tmp_path):
    images = {
        side: np.array(part.images) for side, part in miniimagenet.load(data).items()
    }
    [path] = (tmp_path / "cache").glob("miniimagenet-validation-*")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="truncated or altered cache"):
        loaded = miniimagenet.load(data)
    assert all(np.array_equal(loaded[side].images, images[side]) for side in images)


# --- refusals -------------------------------------------------------------------------


def refusal(*arguments, **options):
    with pytest.raises(DataError) as error:
        miniimagenet.load(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_missing_folder_or_list_is_named(tmp_path, data):
    assert "expected a folder of images, got" in refusal(tmp_path / "nowhere")
    (data / "val.csv").unlink()
    message = refusal(data)
    assert "val.csv: expected a list" in message and "splits=" in message


def test_missing_images_are_counted_and_the_first_named(data):
    for name in ("n0200000001.jpg", "n0500000000.jpg"):
        (data / "images" / name).unlink()
    message = refusal(data)
    assert message.endswith("missing 2: n0200000001.jpg, n0500000000.jpg")
    assert "test.csv" in message


def test_a_damaged_image_is_named(data, tmp_path):
    path = data / "images" / "n0300000002.jpg"
    path.write_bytes(path.read_bytes()[:300])
    assert f"{path}: expected an image, got a file that is damaged" in refusal(data)
    assert not list((tmp_path / "cache").glob("miniimagenet-validation*"))


TRAIN = ROWS["train"]


@pytest.mark.parametrize(
    "rows, message",
    [
        (TRAIN[:-1], "train.csv: expected 3 different images of each class, got other"),
        ([*TRAIN[:-1], TRAIN[-2]], "other numbers for 1: n04 (2)"),
        (TRAIN[:COUNT], "train.csv: expected 2 classes, got 1"),
        ([*TRAIN, ("x.jpg",)], "train.csv: expected lines filename,label"),
        (
            TRAIN[:COUNT] + ROWS["test"][:COUNT],
            "expected classes that no other list has, got 1: n02 of train.csv too",
        ),
    ],
)
def test_lists_of_other_contents_are_refused(data, rows, message):
    write_lists(data, ROWS | {"train": rows})
    assert message in refusal(data)


@pytest.mark.parametrize("content", [b"", b"name,class\n", b"\xff\xfe\x00"])
def test_a_file_that_is_no_list_is_refused(data, content):
    (data / "test.csv").write_bytes(content)
    assert "test.csv: expected" in refusal(data)


CHANGES = {
    "CRLF": lambda text: text.replace("\n", "\r\n"),
    "CR": lambda text: text.replace("\n", "\r"),
    "byte-order mark": lambda text: "\ufeff" + text,
    "byte-order mark and quotes": lambda text: "\ufeff" + text.replace(
        "filename,label", '"filename","label"'
    ),
    "blank last lines": lambda text: text + "\n\n",
    "blank cells": lambda text: text + ",\n , \n",
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_lists_of_spreadsheets_and_editors_are_read(data, change):
    before = miniimagenet.load(data)
    for name in SIDES.values():
        path = data / f"{name}.csv"
        path.write_bytes(change(path.read_text()).encode())
    after = miniimagenet.load(data)
    for side, part in before.items():
        assert np.array_equal(after[side].images, part.images)
        assert after[side].classes == part.classes


@pytest.mark.parametrize("place", ["images/n0300000002.jpg", "val.csv"])
def test_a_named_pipe_is_refused_and_not_waited_for(data, place):
    (data / place).unlink()
    os.mkfifo(data / place)
    assert f"{data / place}: expected a file, got none, a folder, pipe" in refusal(data)


def test_which_of_two_images_is_read_is_decided_by_the_list_and_the_directory(data):
    """The directories have an order, and in one of them the very name counts."""
    name, label = ROWS["validation"][0]
    grey = {"validation": 200, "val": 100}
    for directory, value in grey.items():
        (data / directory / label).mkdir(parents=True)
        image = Image.new("RGB", (84, 84), (value, value, value))
        image.save(data / directory / label / name)

    def first_pixel():
        return miniimagenet.load(data)["validation"].images[0, 0, 0, 0]

    (data / "images" / name).unlink()
    assert abs(int(first_pixel()) - 100) < 3  # val/ comes before validation/
    for suffix, value in ((".JPEG", 50), (".png", 25)):
        path = (data / "val" / label / name).with_suffix(suffix)
        Image.new("RGB", (84, 84), (value, value, value)).save(path)
    assert abs(int(first_pixel()) - 100) < 3  # the list says .jpg
    (data / "val" / label / name).unlink()
    assert abs(int(first_pixel()) - 50) < 3  # .JPEG comes before .png


def test_an_image_of_two_classes_is_refused(data):
    rows = [*TRAIN[:-1], (ROWS["test"][0][0], TRAIN[-1][1])]
    write_lists(data, ROWS | {"train": rows})
    assert refusal(data).endswith("different images, got twice 1: n0200000000.jpg")


def test_a_label_that_can_be_no_folder_is_one_clear_error(data):
    long = "n" * 5000
    rows = [(name, long if label == "n04" else label) for name, label in TRAIN]
    write_lists(data, ROWS | {"train": [(f"x{name}", c) for name, c in rows]})
    assert "missing 6: xn0100000000.jpg" in refusal(data)


def test_a_tilde_in_splits_is_the_home_folder(data, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_lists(tmp_path / "lists")
    assert len(miniimagenet.load("~/data", "~/lists")["test"].labels) == 2 * COUNT


@pytest.mark.parametrize(("images", "error"), [(0, ValueError), (2.5, TypeError)])
def test_a_number_of_stand_ins_that_is_none_is_refused(images, error):
    with pytest.raises(error, match="^images: expected "):
        miniimagenet.standin(images=images)
