"""A file is written whole or not at all, and nothing else is touched."""

import os
import signal
import stat

import numpy as np
import pytest

from tinymaml import files
from tinymaml.files import check_writable, write_atomically
from tinymaml.training.checkpoint import load_checkpoint, save_checkpoint

ARRAYS = {"theta": np.arange(3, dtype=np.float32), "optimiser/step": np.array(7)}
CONFIG = {"alpha": 0.01}
STATE = {"iteration": 12}


@pytest.mark.parametrize("system", ["POSIX", "Windows"])
def test_a_file_gets_its_name_while_it_is_locked_or_where_it_must_be_closed(
    tmp_path, monkeypatch, system
):
    if system == "Windows":  # it has no fcntl, and renames no open file
        monkeypatch.setattr(files, "fcntl", None)
    written, replace = [], os.replace

    def note(source, target):
        assert written[0].closed == (system == "Windows")
        replace(source, target)

    monkeypatch.setattr(os, "replace", note)
    with write_atomically(tmp_path / "a") as file:
        written.append(file)
        file.write(b"text")
    assert (tmp_path / "a").read_bytes() == b"text"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    "write", [lambda p: save_checkpoint(p, {}, {}, {}), check_writable]
)
def test_an_unwritable_place_gives_one_clear_error_and_no_trace(tmp_path, write):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for place, error, reason in [
        ("missing/checkpoint.npz", FileNotFoundError, "its folder does not exist"),
        ("file/checkpoint.npz", NotADirectoryError, "Not a directory"),
        ("folder", FileExistsError, "no plain file"),
    ]:
        path = tmp_path / place
        with pytest.raises(
            error, match=f"cannot write this file: .*{reason}"
        ) as caught:
            write(path)
        assert caught.value.filename == str(path)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "mine"


def test_a_device_is_not_replaced_by_a_file(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="no plain file"):
        save_checkpoint(pipe, ARRAYS, CONFIG, STATE)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_check_writable_changes_nothing(tmp_path):
    path = tmp_path / "checkpoint.npz"
    check_writable(path)
    assert os.listdir(tmp_path) == []
    path.write_text("older")
    check_writable(path)
    assert os.listdir(tmp_path) == ["checkpoint.npz"]
    assert path.read_text() == "older"


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_write_that_breaks_off_leaves_the_older_file_alone(tmp_path, error):
    path = tmp_path / "checkpoint.npz"
    path.write_text("older")
    with pytest.raises(type(error)), write_atomically(path) as file:
        file.write(b"half of the new")
        file.flush()
        raise error
    assert os.listdir(tmp_path) == ["checkpoint.npz"]
    assert path.read_text() == "older"


def test_a_replacement_that_fails_leaves_no_temporary_file(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError("replace")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError, match="replace"):
        save_checkpoint(tmp_path / "checkpoint.npz", ARRAYS, CONFIG, STATE)
    assert os.listdir(tmp_path) == []


def test_the_new_file_appears_only_when_it_is_whole_and_on_disk(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.npz"
    events = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor):
        events.append(("fsync", os.fstat(descriptor).st_size))
        fsync(descriptor)

    def watched_replace(source, target):
        assert not path.exists()
        events.append(("replace", os.stat(source).st_size))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    save_checkpoint(path, ARRAYS, CONFIG, STATE)
    size = path.stat().st_size
    assert events[:2] == [("fsync", size), ("replace", size)]
    assert [name for name, _ in events[2:]] == ["fsync"]  # of the folder


def test_a_checkpoint_has_the_permissions_of_any_new_file(tmp_path):
    save_checkpoint(tmp_path / "checkpoint.npz", ARRAYS, CONFIG, STATE)
    (tmp_path / "other").write_text("")
    modes = [(tmp_path / name).stat().st_mode for name in ("checkpoint.npz", "other")]
    assert modes[0] == modes[1]


def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path):
    path = tmp_path / "checkpoint.npz"
    for mode in (0o600, 0o444, 0o640):
        path.touch()
        path.chmod(mode)
        with write_atomically(path) as file:
            (temporary,) = tmp_path.glob(".*.tmp")
            assert stat.S_IMODE(temporary.stat().st_mode) == mode
            file.write(b"private from the first byte")
        assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize("length", [200, 241, 242, 255])
def test_every_name_that_can_be_written_is_written(tmp_path, length):
    path = tmp_path / ("x" * (length - 4) + ".npz")
    save_checkpoint(path, ARRAYS, CONFIG, STATE)
    assert load_checkpoint(path).state == STATE


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device: .*c.npz") as caught:
        save_checkpoint(tmp_path / "c.npz", ARRAYS, CONFIG, STATE)
    assert caught.value.filename == str(tmp_path / "c.npz")
    assert os.listdir(tmp_path) == []


def start_writer(path):
    """A forked process that opens `path` for writing, and waits; return its number."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with write_atomically(path) as file:
            file.write(b"half of it")
            os.write(writer, b"x")
            signal.pause()
    os.read(reader, 1)
    os.close(reader), os.close(writer)
    return child


def test_the_next_write_removes_what_killed_ones_left_and_nothing_else(tmp_path):
    killed = [start_writer(tmp_path / f"{number}.npz") for number in range(3)]
    for child in killed:
        os.kill(child, signal.SIGKILL), os.waitpid(child, 0)
    alive = start_writer(tmp_path / "alive.npz")
    (tmp_path / "mine.tmp").touch()
    try:
        assert len(list(tmp_path.glob(".*.tmp"))) == 1  # the live writer swept, too
        save_checkpoint(tmp_path / "other.npz", ARRAYS, CONFIG, STATE)
        assert len(list(tmp_path.glob(".*.tmp"))) == 1
    finally:
        os.kill(alive, signal.SIGKILL), os.waitpid(alive, 0)
    save_checkpoint(tmp_path / "other.npz", ARRAYS, CONFIG, STATE)
    assert sorted(os.listdir(tmp_path)) == ["mine.tmp", "other.npz"]


def test_writers_of_one_file_never_remove_each_others_work(tmp_path):
    path, children = tmp_path / "c.npz", []
    for _ in range(3):
        children.append(os.fork())
        if children[-1] == 0:
            status = 1
            try:
                for _ in range(60):
                    save_checkpoint(path, ARRAYS, CONFIG, STATE)
                status = 0
            finally:
                os._exit(status)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert load_checkpoint(path).state == STATE
    assert os.listdir(tmp_path) == ["c.npz"]


@pytest.mark.parametrize("kind", ["pipe", "folder", "/dev/zero", "descriptor"])
def test_what_is_no_plain_file_is_not_read(tmp_path, kind):
    path = tmp_path / kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "descriptor":
        path = os.open(os.devnull, os.O_RDONLY)
    with pytest.raises((OSError, TypeError), match="no plain file|^path: expected"):
        load_checkpoint(path)
    if kind == "descriptor":
        os.close(path)  # it is still open


def test_a_symbolic_link_stays_one_and_its_target_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    link = tmp_path / "checkpoint.npz"
    link.symlink_to(tmp_path / "disk" / "real.npz")
    save_checkpoint(link, ARRAYS, CONFIG, STATE)
    assert link.is_symlink()
    assert load_checkpoint(tmp_path / "disk" / "real.npz").state == STATE
