"""A checkpoint comes back exactly as saved or not at all, with one clear error."""

import io
import json
import os
import pickle
import warnings
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tinymaml.training.checkpoint import (
    CheckpointError,
    _digest,
    load_checkpoint,
    save_checkpoint,
)

ARRAYS = {"theta": np.arange(3, dtype=np.float32), "optimiser/step": np.array(7)}
CONFIG = {"alpha": 0.01, "network": [1, 40, 40, 1], "order": None}
STATE = {"iteration": 12, "rng": {"state": 2**127 + 1, "inc": -(2**70)}}

# tmp_path is shared by the examples of one test: each overwrites the file of the last.
shared_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])

names = st.from_regex(r"[A-Za-z0-9_./-]{1,12}", fullmatch=True).filter(
    lambda name: name not in ("format", "config", "state", "sha256")
)
dtypes = (
    npst.boolean_dtypes()
    | npst.integer_dtypes(endianness="?")
    | npst.unsigned_integer_dtypes(endianness="?")
    | npst.floating_dtypes(endianness="?", sizes=(16, 32, 64))
    | npst.complex_number_dtypes(endianness="?", sizes=(64, 128))
)
arrays = npst.arrays(dtypes, npst.array_shapes(min_dims=0, min_side=0, max_side=4))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
).filter(lambda value: "Infinity" not in json.dumps(value))
json_dictionaries = st.dictionaries(st.text(), json_values, max_size=4)


def assert_same_arrays(got, expected):
    assert sorted(got) == sorted(expected)
    for name, array in expected.items():
        assert got[name].dtype == array.dtype
        assert got[name].shape == array.shape
        assert got[name].tobytes() == array.tobytes()


def saved_bytes(tmp_path, arrays=ARRAYS):
    path = tmp_path / "checkpoint.npz"
    save_checkpoint(path, arrays, CONFIG, STATE)
    return path.read_bytes()


def members_of(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def npz_of(members, compression=zipfile.ZIP_STORED):
    """Write a list or dictionary of named members as a zip file."""
    pairs = members.items() if isinstance(members, dict) else members
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of a name that occurs twice
        for name, content in pairs:
            archive.writestr(name, content)
    return file.getvalue()


def npy_of(array, **options):
    file = io.BytesIO()
    np.lib.format.write_array(file, array, **options)
    return file.getvalue()


def refusal(tmp_path, content):
    """Return the message with which load_checkpoint refuses this content."""
    path = tmp_path / "refused.npz"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: expected a whole 'tinymaml checkpoint 1', ")
    assert "\n" not in message
    return message


@shared_folder
@given(
    arrays=st.dictionaries(names, arrays, max_size=3),
    config=json_dictionaries,
    state=json_dictionaries,
)
def test_what_was_saved_comes_back_exactly(tmp_path, arrays, config, state):
    path = tmp_path / "checkpoint.npz"
    save_checkpoint(path, arrays, config, state)
    checkpoint = load_checkpoint(path)
    assert_same_arrays(checkpoint.arrays, arrays)
    assert json.dumps(checkpoint.config) == json.dumps(config)
    assert json.dumps(checkpoint.state) == json.dumps(state)


def test_fortran_order_and_strides_do_not_matter(tmp_path):
    array = np.arange(24.0).reshape(4, 6)
    for view in (array.T, array[::2, ::-3], np.asfortranarray(array)):
        save_checkpoint(tmp_path / "c.npz", {"view": view}, {}, {})
        assert_same_arrays(load_checkpoint(tmp_path / "c.npz").arrays, {"view": view})


def test_loaded_arrays_can_be_written_to(tmp_path):
    saved_bytes(tmp_path)
    theta = load_checkpoint(tmp_path / "checkpoint.npz").arrays["theta"]
    theta += 1
    assert theta.tolist() == [1, 2, 3]


def test_equal_contents_make_equal_files_and_plain_numpy_reads_them(tmp_path):
    assert saved_bytes(tmp_path) == saved_bytes(tmp_path)
    with zipfile.ZipFile(tmp_path / "checkpoint.npz") as archive:
        dates = {entry.date_time for entry in archive.infolist()}
    assert dates == {(1980, 1, 1, 0, 0, 0)}
    with np.load(tmp_path / "checkpoint.npz", allow_pickle=False) as file:
        assert_same_arrays({name: file[name] for name in ARRAYS}, ARRAYS)
        assert json.loads(file["config"].tobytes()) == CONFIG
        assert json.loads(file["state"].tobytes()) == STATE


def test_truncation_at_every_length_is_refused(tmp_path):
    content = saved_bytes(tmp_path)
    path = tmp_path / "cut.npz"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="cut.npz: expected a whole"):
            load_checkpoint(path)


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_no_flipped_byte_changes_what_is_loaded(tmp_path, flip):
    content = saved_bytes(tmp_path)
    path = tmp_path / "flipped.npz"
    refused = 0
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= flip
        path.write_bytes(damaged)
        try:
            checkpoint = load_checkpoint(path)
        except CheckpointError:
            refused += 1
        else:  # a byte without meaning, such as the date of a member
            assert_same_arrays(checkpoint.arrays, ARRAYS)
            assert (checkpoint.config, checkpoint.state) == (CONFIG, STATE)
    assert refused > 0.8 * len(content)


@shared_folder
@given(data=st.data())
def test_arbitrary_damage_gives_no_other_error_than_checkpoint_error(tmp_path, data):
    content = bytearray(saved_bytes(tmp_path))
    positions = st.integers(0, len(content) - 1)
    for _ in range(data.draw(st.integers(1, 8))):
        start = data.draw(positions)
        content[start : data.draw(positions)] = data.draw(st.binary(max_size=20))
    path = tmp_path / "damaged.npz"
    path.write_bytes(content)
    try:
        assert_same_arrays(load_checkpoint(path).arrays, ARRAYS)
    except CheckpointError:
        pass


@pytest.mark.parametrize("member", ["theta.npy", "config.npy", "state.npy"])
def test_a_member_rewritten_with_valid_zip_checksums_is_refused(tmp_path, member):
    members = members_of(saved_bytes(tmp_path))
    content = bytearray(members[member])
    content[-1] ^= 1
    members[member] = bytes(content)
    assert "SHA-256" in refusal(tmp_path, npz_of(members))


@pytest.mark.parametrize(
    "change",
    [
        {"optimiser/step.npy": npy_of(np.array([7]))},  # shape
        {"theta.npy": npy_of(np.arange(3, dtype=np.float32).view(np.int32))},  # dtype
        {"more.npy": npy_of(np.zeros(2))},  # one array more
        {"theta.npy": None},  # one array less
        {"theta.npy": None, "theta2.npy": npy_of(ARRAYS["theta"])},  # another name
        {"sha256.npy": npy_of(np.zeros(32, np.uint8))},
    ],
)
def test_the_digest_covers_names_shapes_and_dtypes(tmp_path, change):
    members = {**members_of(saved_bytes(tmp_path)), **change}
    members = {name: content for name, content in members.items() if content}
    assert "SHA-256" in refusal(tmp_path, npz_of(members))


@pytest.mark.parametrize("missing", ["sha256", "config", "state"])
def test_a_missing_reserved_member_is_refused(tmp_path, missing):
    members = members_of(saved_bytes(tmp_path))
    del members[missing + ".npy"]
    refusal(tmp_path, npz_of(members))


def test_another_version_is_refused_by_its_name(tmp_path):
    text = np.frombuffer(b"tinymaml checkpoint 2", np.uint8)
    members = members_of(saved_bytes(tmp_path)) | {"format.npy": npy_of(text)}
    assert "'tinymaml checkpoint 2'" in refusal(tmp_path, npz_of(members))


def test_a_name_that_occurs_twice_is_refused(tmp_path):
    members = list(members_of(saved_bytes(tmp_path)).items())
    assert "twice" in refusal(tmp_path, npz_of([*members, members[-1]]))


def test_foreign_files_are_refused(tmp_path):
    file = io.BytesIO()
    np.savez(file, weights=np.zeros(3), bias=np.zeros(1))
    message = refusal(tmp_path, file.getvalue())
    assert "another file" in message and "'weights', 'bias'" in message
    refusal(tmp_path, npy_of(np.zeros(3)))
    refusal(tmp_path, b"")
    refusal(tmp_path, b"iteration,loss,seconds\n")
    refusal(tmp_path, pickle.dumps({"theta": [1, 2, 3]}))


class Trap:
    """An object whose pickle runs code when it is loaded."""

    sprung = False

    @staticmethod
    def spring():
        Trap.sprung = True

    def __reduce__(self):
        return (Trap.spring, ())


def test_pickled_arrays_are_neither_loaded_nor_run(tmp_path):
    pickled = npy_of(np.array([Trap()], dtype=object), allow_pickle=True)
    np.lib.format.read_array(io.BytesIO(pickled), allow_pickle=True)
    assert Trap.sprung, "the trap itself does not work"
    Trap.sprung = False
    members = members_of(saved_bytes(tmp_path)) | {"theta.npy": pickled}
    assert "dtype object" in refusal(tmp_path, npz_of(members))
    assert not Trap.sprung


def test_compressed_members_are_refused_before_they_are_unpacked(tmp_path):
    bomb = npy_of(np.zeros(50_000_000, np.uint8))
    members = members_of(saved_bytes(tmp_path)) | {"theta.npy": bomb}
    content = npz_of(members, zipfile.ZIP_DEFLATED)
    assert len(content) < 1_000_000
    assert "not stored as they are" in refusal(tmp_path, content)
    noise = np.random.default_rng(0).bytes(10_000)  # grows under compression
    members["theta.npy"] = npy_of(np.frombuffer(noise, np.uint8))
    content = npz_of(members, zipfile.ZIP_DEFLATED)
    assert "not stored as they are" in refusal(tmp_path, content)


def test_members_that_claim_more_than_the_file_holds_are_refused(tmp_path):
    # One member's bytes listed under many names: a tiny directory, a large sum.
    content = npz_of(
        {**members_of(saved_bytes(tmp_path)), "theta.npy": npy_of(np.zeros(9000))}
    )
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entry = archive.getinfo("theta.npy")
        directory = archive.start_dir
        records = content[directory:-22].split(b"PK\x01\x02")[1:]
    original = next(record for record in records if record.endswith(b"theta.npy"))
    copies = [original[:-9] + b"th%03d.npy" % number for number in range(100)]
    central = b"".join(b"PK\x01\x02" + record for record in records + copies)
    count = (len(records) + len(copies)).to_bytes(2, "little")
    end = content[-22:-14] + count + count + len(central).to_bytes(4, "little")
    overlapping = content[:directory] + central + end + content[-6:]
    with zipfile.ZipFile(io.BytesIO(overlapping)) as archive:
        assert archive.getinfo("th099.npy").file_size == entry.file_size
    assert "not stored as they are" in refusal(tmp_path, overlapping)


@pytest.mark.parametrize(
    ("shape", "fortran_order", "message"),
    [
        *(
            (shape, False, "does not have the size its header says")
            for shape in [(10**15,), (2**40, 2**40), (4,), (2,), (-3,)]
        ),
        ((3,), True, "does not have the size its header says"),
        ((-1, -3), False, "damaged"),
    ],
)
def test_a_header_that_claims_another_size_is_refused(
    tmp_path, shape, fortran_order, message
):
    header = io.BytesIO()
    fields = {"descr": "<f4", "fortran_order": fortran_order, "shape": shape}
    np.lib.format.write_array_header_1_0(header, fields)
    content = header.getvalue() + ARRAYS["theta"].tobytes()
    members = members_of(saved_bytes(tmp_path)) | {"theta.npy": content}
    assert message in refusal(tmp_path, npz_of(members))


def test_a_missing_file_is_a_file_not_found_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.npz"):
        load_checkpoint(tmp_path / "nowhere.npz")


# --- what cannot be saved -------------------------------------------------------------


@pytest.mark.parametrize(
    "array",
    [
        np.array([{}], dtype=object),
        np.array(["text"]),
        np.zeros(2, dtype=[("x", "f4")]),
        np.array(["2026-11-22"], dtype="M8[D]"),
        [1.0, 2.0],
        None,
    ],
)
def test_arrays_that_need_pickle_are_refused_by_name(tmp_path, array):
    path = tmp_path / "checkpoint.npz"
    with pytest.raises(TypeError, match="^array 'theta': expected .* numbers, got"):
        save_checkpoint(path, {"theta": array}, {}, {})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "name", ["", "format", "sha256", "state", "a b", "é", "a\n", 1]
)
def test_array_names_that_could_be_confused_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="^array name: expected"):
        save_checkpoint(tmp_path / "checkpoint.npz", {name: np.zeros(1)}, {}, {})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("argument", ["config", "state"])
@pytest.mark.parametrize(
    ("value", "error"),
    [
        ({"alpha": float("nan")}, ValueError),
        ({"alpha": float("inf")}, ValueError),
        ({"steps": np.int64(3)}, TypeError),
        ({"loss": print}, TypeError),
    ],
)
def test_values_beyond_json_are_refused_by_argument(tmp_path, argument, value, error):
    dictionaries = {"config": {}, "state": {}, argument: value}
    with pytest.raises(error, match=f"^{argument}: expected JSON values"):
        save_checkpoint(tmp_path / "checkpoint.npz", {}, **dictionaries)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "bad", [{1: "a"}, {None: 1}, {1: "a", "1": "b"}, {"a": [{"b": ({2.5: 1},)}]}]
)
@pytest.mark.parametrize("where", ["config", "state"])
def test_keys_that_json_would_change_are_refused(tmp_path, bad, where):
    parts = {"config": {}, "state": {}, where: bad}
    with pytest.raises(TypeError, match=f"^{where}: expected text as keys, got "):
        save_checkpoint(tmp_path / "c.npz", ARRAYS, **parts)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("text", ["[]", "3", "null", '"x"'])
@pytest.mark.parametrize("name", ["config", "state"])
def test_settings_that_are_no_dictionary_are_refused(tmp_path, name, text):
    members = members_of(saved_bytes(tmp_path))
    arrays = {
        n.removesuffix(".npy"): np.load(io.BytesIO(c)) for n, c in members.items()
    }
    arrays[name] = np.frombuffer(text.encode(), np.uint8)
    del arrays["sha256"]
    arrays["sha256"] = _digest(arrays)
    content = npz_of({f"{n}.npy": npy_of(a, version=(1, 0)) for n, a in arrays.items()})
    assert "no dictionary but" in refusal(tmp_path, content)
