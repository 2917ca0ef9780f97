"""What the examples share: options, folders, intervals, tables, files."""

import argparse
import io
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

import shared
import tinymaml as tm
from stages import Stages
from tests.support.kill_runs import fork
from tests.support.running_examples import FOLDER, read_strict_json
from tinymaml.training.checkpoint import CheckpointError
from tinymaml.training.distributed import launched


def test_interval_is_that_of_the_authors():
    mean, interval = shared.mean_and_interval(np.float32([0, 1, 2, 3]))
    assert (mean, interval) == (1.5, pytest.approx(1.96 * 1.25**0.5 / 2))


def test_interval_of_nothing_is_not_a_number():
    assert np.isnan(shared.mean_and_interval(np.zeros(0))).all()


def test_results_are_strict_json_with_null_for_what_is_not_finite(tmp_path):
    path = tmp_path / "results.json"
    results = {
        "a": [float("nan"), 1, None, True],
        "b": {"c": np.float32(0.5)},
        "d": "±",
    }
    shared.write_json(path, results)
    assert read_strict_json(path) == {
        "a": [None, 1, None, True],
        "b": {"c": 0.5},
        "d": "±",
    }


def test_results_that_cannot_be_written_leave_the_old_ones(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")
    with pytest.raises(TypeError):
        shared.write_json(path, {"a": object()})
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_folder_is_made_with_its_parents(tmp_path):
    shared.prepare_folder(tmp_path / "a/b", ["results.json", "exact/log.csv"])
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["exact"]
    assert not any((tmp_path / "a/b/exact").iterdir())


def test_folder_that_cannot_be_used_is_left_as_it_was(tmp_path):
    (tmp_path / "results.json").mkdir()
    with pytest.raises(OSError, match="cannot write"):
        shared.prepare_folder(tmp_path, ["log.csv", "results.json"])
    with pytest.raises(OSError, match="cannot write"):
        shared.prepare_folder(tmp_path / "a/b", ["c/d/results.json", "e/f", "c/d"])
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "one", "", "1e-40", "1e39"])
def test_only_positive_finite_numbers_are_positive_numbers(text):
    assert shared.positive_number("1e-3") == 0.001
    with pytest.raises(argparse.ArgumentTypeError, match="expected a positive number"):
        shared.positive_number(text)


def test_missing_numba_is_one_line(monkeypatch, capsys):
    parser = shared.experiment_parser("doc", "out", 9, 1)

    def missing(*_):
        raise ImportError("backend 'numba' needs Numba: No module named 'numba'")

    monkeypatch.setattr(shared, "get_backend", missing)
    with pytest.raises(SystemExit) as stop:
        shared.read_options(parser, ["--backend", "numba"])
    assert stop.value.code == 2
    assert "needs Numba" in capsys.readouterr().err


def test_a_missing_mpi4py_under_mpirun_is_one_line(monkeypatch, capsys):
    launched.cache_clear()
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(SystemExit) as stop:
        shared.run_to_the_end(shared.Parser(prog="example.py"), lambda: None)
    launched.cache_clear()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("example.py: error: mpirun: several processes need mpi4py")
    assert error.count("\n") == 1


def test_streams_of_random_numbers_differ_by_purpose_and_by_number():
    streams = [(1, 0), (1, 1), (2, 0), (2, 1)]
    draws = [shared.random_stream(*stream).random() for stream in streams]
    assert len(set(draws)) == 4
    assert draws[1] == np.random.default_rng([1, 1]).random()


@pytest.mark.parametrize("interrupted", ["", " --resume 'my results'", " --resume=old"])
def test_the_command_that_continues_has_one_folder_quoted_for_a_shell(interrupted):
    stages = Stages("my results", ["exact"], {}, 9)
    given = f"python x.py{interrupted} --out 'my results'"
    assert shared.how_to_continue(given, stages) == (
        "Continue with\n  python x.py --out 'my results' --resume 'my results'"
    )


def test_a_folder_that_begins_with_a_dash_is_no_option_in_the_command_to_continue():
    stages = Stages("-x", ["exact"], {}, 9)
    assert shared.how_to_continue("python x.py --out=-x", stages) == (
        "Continue with\n  python x.py --out=-x --resume ./-x"
    )


def test_a_program_that_another_path_started_is_continued_by_that_path(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["../my code/x.py"])
    assert shared.how_to_continue(
        "python examples/x.py", Stages("s", ["a"], {}, 9)
    ) == ("Continue with\n  python '../my code/x.py' --resume s")


def test_an_empty_path_is_refused_and_is_not_the_current_folder(capsys):
    with pytest.raises(SystemExit):
        shared.experiment_parser("doc", "out", 9, 1).parse_args(["--out", ""])
    assert (
        "argument --out: expected a path, got an empty text" in capsys.readouterr().err
    )


def test_the_command_of_an_initialisation_names_no_folder():
    command = "python x.py --data 'my images' --seed 1 --overwrite --out a --resume a"
    assert shared.training_command(command) == "python x.py --seed 1"


def test_stages_are_opened_only_if_each_training_can_write_its_files(tmp_path, capsys):
    parser = shared.experiment_parser("doc", "out", 9, 1)
    shared.add_resume(parser, "--seed")
    options, _ = shared.read_options(parser, ["--out", str(tmp_path / "out")])

    def names_of(*names):
        with shared.open_stages(parser, options, "", names, {}, ["a.png"]) as stages:
            return stages.files

    assert names_of("exact") == ["exact/checkpoint.npz", "exact/log.csv"]
    (tmp_path / "out/oracle").write_text("a file where a folder must be")
    with pytest.raises(SystemExit) as stop:
        names_of("exact", "oracle")
    assert stop.value.code == 2
    assert "argument --out: " in capsys.readouterr().err


# --- the folder of a run --------------------------------------------------------------


def options_for(out, *arguments):
    parser = shared.experiment_parser("doc", "out", 9, 1)
    shared.add_resume(parser, "--seed")
    return parser, parser.parse_args(["--out", str(out), *map(str, arguments)])


def opens(out, *arguments):
    """Open a run's folder as an experiment does, write a result, close it."""
    parser, options = options_for(out, *arguments)
    with shared.open_folder(parser, options, ["results.json"]):
        (out / "results.json").write_text("{}")


def reads_options(out, *arguments):
    parser, _ = options_for(out)
    shared.read_options(parser, ["--out", str(out), *arguments])


@pytest.mark.parametrize(
    "file", ["results.json", "initialisation.npz", "exact/checkpoint.npz"]
)
def test_an_earlier_run_is_replaced_only_if_asked(tmp_path, capsys, file):
    out = tmp_path / "my out"
    (out / file).parent.mkdir(parents=True)
    (out / file).write_text("precious")
    for read in (opens, reads_options):
        with pytest.raises(SystemExit) as stop:
            read(out)
        assert stop.value.code == 2
        _, err = capsys.readouterr()
        assert err.count("\n") == 1
        assert f"{out} holds an earlier run ({file})" in err
        assert "--overwrite replaces it" in err
        assert (f"--resume '{out}' cont" in err) == ("checkpoint" in file)
    assert (out / file).read_text() == "precious"
    reads_options(out, "--overwrite")
    parser, options = options_for(out, "--resume", out)
    with shared.open_folder(parser, options, []):  # continues it
        assert (out / file).read_text() == "precious"
    opens(out, "--overwrite")
    assert not (out / "exact/checkpoint.npz").exists()
    assert (out / "results.json").read_text() == "{}"


@pytest.mark.parametrize("earlier", ["results.json", "pretrained/checkpoint.npz"])
def test_nothing_is_left_of_trainings_that_the_new_run_does_not_have(tmp_path, earlier):
    out, file = tmp_path / "out", tmp_path / "out" / earlier
    notes = out / "notes"
    notes.mkdir(parents=True), file.parent.mkdir(exist_ok=True)
    (notes / "log.csv").write_text("the user's own: no checkpoint is beside it")
    for path in (file, out / "initialisation.npz", file.with_name("log.csv")):
        path.write_text("old")
    opens(out, "--overwrite")
    left = [path for path in out.rglob("*") if path.is_file()]
    assert sorted(left) == [notes / "log.csv", out / "results.json"]
    assert (out / "results.json").read_text() == "{}"


def test_trainings_of_the_users_own_stay_where_the_run_writes_nothing(tmp_path, capsys):
    mine = tmp_path / "mine"
    mine.mkdir()
    arrays, files = {"theta": np.zeros(3)}, {"log.csv", "initialisation.npz"}
    for name in files:
        (mine / name).write_text("the user's own")
    tm.save_checkpoint(mine / "checkpoint.npz", arrays, {"alpha": 0.1}, {})
    opens(tmp_path)  # nothing is in its way
    opens(tmp_path, "--overwrite")
    assert {path.name for path in mine.iterdir()} == {"checkpoint.npz", *files}
    (tmp_path / "results.json").unlink()
    parser, options = options_for(tmp_path)
    with pytest.raises(SystemExit):
        shared.open_folder(parser, options, ["mine/checkpoint.npz", "mine/log.csv"])
    assert "holds an earlier run (mine/checkpoint.npz)" in capsys.readouterr().err
    assert {path.name for path in mine.iterdir()} == {"checkpoint.npz", *files}
    tm.save_checkpoint(mine / "checkpoint.npz", arrays, {"experiment": "x"}, {})
    opens(tmp_path, "--overwrite")
    assert not [*mine.iterdir()]


def test_a_continued_run_drops_no_results_unasked(tmp_path, capsys):
    def runs(tested, *arguments):
        """An experiment that trains "exact" alone."""
        parser, options = options_for(tmp_path, *arguments)
        options.iterations = 9
        given = ["python x.py", ["exact"], {"experiment": "x"}, ["results.json"]]
        with shared.open_stages(parser, options, *given, tested=tested):
            path = tmp_path / "exact/checkpoint.npz"
            tm.save_checkpoint(path, {"theta": np.zeros(3)}, {"experiment": "x"}, {})
            backend = tm.get_backend("numpy")
            shared.write_results("x", "x", options, backend, {}, [])

    again = ("--resume", tmp_path)
    runs(["exact", "random"])
    runs(["exact", "random", "oracle"], *again)
    with pytest.raises(SystemExit):
        runs(["exact"], *again)
    error = f"{tmp_path} has results that this run would drop (random, oracle); "
    assert error + "--overwrite drops them" in capsys.readouterr().err
    assert read_strict_json(tmp_path / "results.json")["tested"][1] == "random"
    runs(["exact"], *again, "--overwrite")
    runs(["exact"], *again)
    (tmp_path / "results.json").write_text('{"rows": []}')  # older
    runs(["exact"], *again)


def test_figures_of_an_earlier_run_do_not_stay_beside_the_files_of_a_new_one(tmp_path):
    opens(tmp_path)
    for name in ("curve.png", "mine.png"):
        (tmp_path / name).write_text("old")
    parser, options = options_for(tmp_path, "--overwrite")
    with shared.open_folder(parser, options, ["results.json", "curve.png"]):
        assert [path.name for path in tmp_path.glob("*.*")] == ["mine.png"]


def test_what_was_stopped_before_its_first_checkpoint_cannot_be_continued(tmp_path):
    parser, options = options_for(tmp_path)
    options.iterations = 9
    for expected, file in ("", "log.csv"), ("Continue", "checkpoint.npz"):
        with pytest.raises(KeyboardInterrupt) as stop:
            with shared.open_stages(parser, options, "python x.py", ["exact"], {}, []):
                (tmp_path / "exact" / file).write_text("")
                raise KeyboardInterrupt
        assert str(stop.value).partition(" ")[0] == expected


def test_a_folder_whose_name_is_no_text_is_written_into_results(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    shared.write_json(tmp_path / "results.json", {"command": f"x.py --out {name}"})
    command = read_strict_json(tmp_path / "results.json")["command"]
    assert command == f"x.py --out {name}"


def test_links_that_lead_in_a_circle_are_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "a").symlink_to(tmp_path / "b"), (tmp_path / "b").symlink_to("a")
    for arguments in ([tmp_path / "a"], [tmp_path / "c", "--resume", tmp_path / "a"]):
        parser, options = options_for(*arguments)
        options.iterations = 9
        with pytest.raises(SystemExit):
            with shared.open_stages(parser, options, "x", ["exact"], {}, []):
                pass
        assert capsys.readouterr().err.count("\n") == 1


def test_a_run_that_resumes_another_folder_replaces_nothing_unasked(tmp_path):
    opens(tmp_path / "a"), opens(tmp_path / "b")
    with pytest.raises(SystemExit):
        opens(tmp_path / "a", "--resume", tmp_path / "b")
    opens(tmp_path / "a", "--resume", tmp_path / "b", "--overwrite")


def hold(out, descriptor):
    """Lock a folder, and leave a child that must not keep the lock."""
    with shared.lock_folder(out):
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            signal.pause()
        os.write(descriptor, b"%d" % child)
        signal.pause()


def test_two_runs_never_share_a_folder_and_the_lock_ends_with_its_process(
    tmp_path, capsys
):
    reader, writer = os.pipe()
    other = fork(hold, tmp_path / "out", writer)
    os.close(writer)
    child = int(os.read(reader, 20))
    os.close(reader)
    with pytest.raises(SystemExit) as stop:
        opens(tmp_path / "out")
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert f"another run is writing into this folder: {tmp_path / 'out'}\n" in err
    opens(tmp_path / "elsewhere")
    os.kill(other, signal.SIGKILL), os.waitpid(other, 0)
    opens(tmp_path / "out")
    os.kill(child, signal.SIGKILL)


def test_a_folder_that_was_made_in_vain_is_removed(tmp_path, capsys):
    parser, options = options_for(tmp_path / "a/b", "--resume", tmp_path / "missing")
    with pytest.raises(SystemExit):
        with shared.open_stages(parser, options, "", ["exact"], {}, []):
            pass
    assert list(tmp_path.iterdir()) == []


def test_the_home_folder_may_be_written_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    parser = shared.experiment_parser("doc", "out", 9, 1)
    shared.add_resume(parser, "--seed")
    options = parser.parse_args(["--out=~/results", "--resume=~/earlier"])
    assert options.out == tmp_path / "results"
    assert options.resume == tmp_path / "earlier"


# --- how a run ends -------------------------------------------------------------------


def ends(run):
    return shared.run_to_the_end(shared.Parser(prog="x.py"), run)


def raises(error):
    def run():
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left", "results.json"), "No space left: results.json"),
        (OSError(28, "No space left"), "No space left"),
        (FloatingPointError("iteration 3:\nthe loss is nan"), "n 3: the loss is nan"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_a_fault_is_one_line(capsys, error, line):
    assert ends(raises(error)) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("x.py: error: ")
    assert err.endswith(f"{line}\n") and err.count("\n") == 1


def test_a_checkpoint_that_does_not_fit_is_a_wrong_option(capsys):
    with pytest.raises(SystemExit) as stop:
        ends(raises(CheckpointError("it is damaged")))
    assert stop.value.code == 2
    assert capsys.readouterr().err == "x.py: error: argument --resume: it is damaged\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_outside_a_training_end_the_run_in_one_line(capsys, number):
    before = signal.getsignal(number)
    assert ends(lambda: signal.raise_signal(number)) == 130
    assert capsys.readouterr() == ("Stopped. There are no results.\n", "")
    assert signal.getsignal(number) == before


def test_a_run_may_be_in_another_thread():
    statuses = []
    thread = threading.Thread(target=lambda: statuses.append(ends(lambda: None)))
    thread.start(), thread.join()
    assert statuses == [0]


def test_a_terminal_of_ascii_gets_plus_and_minus(monkeypatch):
    encoded = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(encoded, encoding="ascii"))
    assert ends(lambda: print("1.5 ± 0.1, é")) == 0
    assert encoded.getvalue() == b"1.5 +- 0.1, ?\n"


def test_output_that_nobody_reads_ends_quietly():
    code = (
        "import shared; print_all = lambda: [print(i) for i in range(10**5)]\n"
        "raise SystemExit(shared.run_to_the_end(shared.Parser(), print_all))"
    )
    command = f"{{ {sys.executable} -c '{code}'; echo $? >&2; }} | head -1"
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        cwd=FOLDER,
        env={**os.environ, "PYTHONPATH": str(FOLDER.parent)},
    )
    assert (done.stdout, done.stderr) == ("0\n", "141\n")


@pytest.mark.parametrize("name", ["own_images", "seeds", "sinusoid"])
def test_help_is_printed_and_nothing_is_trained(name, tmp_path):
    path = FOLDER / f"{name}.py"
    for option, status in (("--help", 0), ("--wrong", 2)):
        done = subprocess.run(
            [sys.executable, path, option],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(FOLDER.parent)},
        )
        assert done.returncode == status
        if status:
            assert done.stdout == "" and done.stderr.startswith(f"{name}.py: error: ")
        else:
            assert done.stdout.startswith("usage: ") and done.stderr == ""
        assert [*tmp_path.iterdir()] == []


def test_commands_are_those_of_the_package_if_it_was_started_so(monkeypatch):
    command = "examples/own_images.py", ["--out", "my results"]
    by_file = "python examples/own_images.py --out 'my results'"
    assert shared.command_line(*command) == by_file
    monkeypatch.setattr(sys, "argv", ["python -m tinymaml own-images"])
    by_package = "python -m tinymaml own-images --out 'my results'"
    assert shared.command_line(*command) == by_package
