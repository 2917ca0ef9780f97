"""A tape as JSON: what is written, that nothing is lost, and what is refused."""

import json

import numpy as np
import pytest

import tinymaml as tm
from tests.support.node_backend import TAPE_JS, javascript_backend
from tests.support.primitive_cases import CASES
from tests.support.primitive_checks import derivative_tape
from tinymaml import files
from tinymaml.autodiff.derivatives import grad
from tinymaml.autodiff.tape import PRIMITIVES, Tape
from tinymaml.backends.javascript import export, exported


def loss_tape():
    """sum(theta x): two inputs, one of them per task, and a dead node."""
    tape = Tape()
    theta, x = tape.input("theta", (3,)), tape.input("x", (3,), per_task=True)
    tm.tanh(theta)  # nothing reads it
    loss = (theta * x).sum()
    tape.output("loss", loss)
    tape.output("gradient", grad(loss, theta), "sum")
    return tape


def strict_json(text):
    """What the text says; a NaN or an infinity is no JSON."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


# --- what is written ------------------------------------------------------------------


def test_live_nodes_are_written_in_running_order_under_new_numbers():
    written = exported(loss_tape())
    assert [node[0] for node in written["nodes"]] == [
        *("input", "input", "mul", "sum", "reshape"),
    ]
    assert written["nodes"][2:] == [
        ["mul", [0, 1], {}, [3]],
        ["sum", [2], {"start": 0, "stop": 1}, [1]],
        ["reshape", [3], {"shape": []}, []],
    ]
    assert written["inputs"]["x"] == {"node": 1, "shape": [3], "per_task": True}
    assert written["outputs"] == {
        "loss": {"node": 4, "shape": [], "reduction": "each"},
        "gradient": {"node": 1, "shape": [3], "reduction": "sum"},
    }


def test_an_input_that_nothing_reads_is_written():
    tape = Tape()
    unread, x = tape.input("unread", (2,)), tape.input("x", ())
    tape.output("y", x * 2.0)
    written = exported(tape)
    assert [*written["inputs"]] == ["unread", "x"]
    number = written["inputs"]["unread"]["node"]
    assert written["nodes"][number][3] == [*unread.shape]


@pytest.mark.parametrize("primitive", CASES)
def test_arguments_come_first_and_json_brings_everything_back(primitive):
    for shapes, attributes in CASES[primitive].odd[:3]:
        written = exported(derivative_tape(primitive, shapes, attributes))
        assert strict_json(json.dumps(written)) == written
        for number, (name, arguments, _, _) in enumerate(written["nodes"]):
            assert name in PRIMITIVES and all(i < number for i in arguments)


def test_what_is_written_does_not_change_with_the_tape():
    tape = loss_tape()
    before = exported(tape)
    text = json.dumps(before)
    tape.output("late", tm.exp(tape.value(0)))
    assert json.dumps(before) == text != json.dumps(exported(tape))


NUMBERS = [np.nan, np.inf, -np.inf, -0.0, 0.0, 0.1, 5e-324, -1.7e308, 1 / 3]


@pytest.mark.parametrize("number", NUMBERS)
def test_every_number_arrives_in_javascript(number):
    tape = Tape()
    tape.output("full", tape.constant(number, (2,)))
    tape.output("scale", tape.input("x", (2,)) * number)
    strict_json(json.dumps(exported(tape)))
    program = javascript_backend().compile(tape, "float64")
    results = program({"x": np.ones(2)})
    expected = np.full((1, 2), number)
    for name, array in results.items():
        assert array.tobytes() == expected.tobytes() or np.isnan(number), name
        assert np.array_equal(array, expected, equal_nan=True), name


# --- the file -------------------------------------------------------------------------


def test_the_file_is_what_exported_says(tmp_path):
    tape = loss_tape()
    export(tape, tmp_path / "loss.json")
    text = (tmp_path / "loss.json").read_text("ascii")
    assert strict_json(text) == exported(tape)
    export(tape, str(tmp_path / "again.json"))
    assert (tmp_path / "again.json").read_text("ascii") == text


def test_a_flag_of_numpy_is_written(tmp_path):
    tape = Tape()
    tape.output("double", tape.input("x", (3,), per_task=np.bool_(True)) * 2.0)
    export(tape, tmp_path / "tape.json")
    written = strict_json((tmp_path / "tape.json").read_text("ascii"))
    assert written["inputs"]["x"]["per_task"] is True


def test_a_name_of_any_text_is_written(tmp_path):
    tape = Tape()
    tape.output('θ"\n\ud800', tape.input("NaN", ()) * 2.0)
    export(tape, tmp_path / "tape.json")
    written = strict_json((tmp_path / "tape.json").read_text("ascii"))
    assert [*written["outputs"]] == ['θ"\n\ud800'] and [*written["inputs"]] == ["NaN"]


@pytest.mark.parametrize("came", [None, 3, {"format": "tinymaml-tape-1"}, Tape])
def test_what_is_no_tape_is_refused(came, tmp_path):
    for function in (exported, lambda tape: export(tape, tmp_path / "tape.json")):
        with pytest.raises(TypeError, match="^tape: expected a Tape, got .*$"):
            function(came)
    assert not [*tmp_path.iterdir()]


def test_a_tape_without_output_is_refused(tmp_path):
    tape = Tape()
    tape.input("x", (3,))
    with pytest.raises(
        ValueError, match="tape: expected at least one output, got Tape"
    ):
        export(tape, tmp_path / "tape.json")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("came", [None, 3, ["tape.json"]])
def test_what_is_no_path_is_refused(came):
    with pytest.raises(TypeError, match="^file: expected text or a Path, got "):
        export(loss_tape(), came)


def test_a_missing_folder_is_an_error_of_one_line(tmp_path):
    path = tmp_path / "missing" / "tape.json"
    with pytest.raises(OSError, match="its folder does not exist") as caught:
        export(loss_tape(), path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_cannot_be_finished_leaves_the_old_one(monkeypatch, tmp_path):
    path = tmp_path / "tape.json"
    path.write_text("old")

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        export(loss_tape(), path)
    assert path.read_text() == "old" and [*tmp_path.iterdir()] == [path]


def test_tape_js_is_beside_the_exporter():
    assert "function tinymamlTape() {" in TAPE_JS.read_text("utf-8")
