"""Omniglot's cache and downloads: whole, verified, or one clear error."""

import gc
import os
import subprocess
import sys
import threading
import warnings
from functools import partial
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

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


# --- the cache ------------------------------------------------------------------------


def test_the_cache_is_used_the_second_time(small, tmp_path, monkeypatch):
    write_archives(tmp_path)
    first = omniglot.load(tmp_path)
    assert len(cache_files(tmp_path)) == 1
    monkeypatch.setattr(omniglot, "_decode", None)  # cannot decode any more
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
        images.cached("x", None, (20,), build)
    assert cache_files(tmp_path) == []


BUILD = """
import sys, time, numpy as np
from tinymaml.tasks.images import cached
def build():
    print("building", flush=True)
    for row in range(40):
        time.sleep(0.02)
        yield np.full(50_000, row, np.uint8)
print("ready", flush=True)
sys.stdin.readline()
print(int(cached("both", "same source", (40, 50_000), build).sum()))
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


# --- downloads ------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A local stand-in for GitHub: `files` by name, `fail` requests fail first."""

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


def test_the_published_archives_are_what_is_downloaded():
    assert omniglot.URL.startswith("https://raw.githubusercontent.com/brendenlake/")
    assert [omniglot.ARCHIVES[f"{part}.zip"] for part in omniglot.PARTS] == [
        "68d2efa1b9178cc56df9314c21c6e718",
        "6b91aef0f799c5bb55b94e3f2daec811",
    ]


def test_load_downloads_what_is_not_there(small, tmp_path, server, monkeypatch):
    monkeypatch.setattr(omniglot, "fetch", partial(omniglot.fetch, url=server.url))
    loaded = omniglot.load(tmp_path / "new", download=True)
    assert len(loaded.classes) == 5 and len(server.requests) == 2
    omniglot.load(tmp_path / "new", download=True)
    assert len(server.requests) == 2  # all is there now


def test_a_download_is_tried_again(tmp_path, server):
    server.fail = 1
    omniglot.fetch(tmp_path / "images_background.zip", server.url, retries=1)
    assert len(server.requests) == 2
    encoded = (tmp_path / "images_background.zip").read_bytes()
    assert encoded == server.files["images_background.zip"]


# Of a download that breaks off requests leaves the socket to the garbage collector.
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
