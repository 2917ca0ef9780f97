"""The log, the progress bar and Ctrl-C, alone and in a training."""

import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from tests.support.training import (
    at_call,
    noise,
    press_ctrl_c,
    read_csv,
    run,
    untimed,
    with_size,
)
from tinymaml.training.checkpoint import load_checkpoint
from tinymaml.training.console import CsvLog, Interrupt, LogRow, ProgressBar

# --- the log --------------------------------------------------------------------------


def test_a_log_begins_with_the_rows_it_is_given_and_replaces_an_older_file(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("older\n" * 9)
    rows = [LogRow(2, 0.1 + 0.2, 1.0), LogRow(4, 1 / 3, 2.34567)]
    with CsvLog(path, rows=rows[:1]) as log:
        log.write(rows[1])
    assert path.read_text() == (
        "iteration,loss,seconds\n2,0.30000000000000004,1.000\n"
        "4,0.3333333333333333,2.346\n"
    )


def test_no_path_means_no_log():
    with CsvLog(None) as log:
        log.write(LogRow(1, 2.0, 3.0))


def test_the_log_holds_the_mean_loss_since_the_row_before(tmp_path):
    log = tmp_path / "log.csv"
    losses = iter([1.0, 2.0, 4.0, 8.0, 16.0])

    def gradient(theta, _):
        return SimpleNamespace(loss=next(losses), gradient=theta)

    result = run(5, gradient=gradient, log=log, log_every=2)
    assert untimed(result.losses) == [(2, 1.5), (4, 6.0), (5, 16.0)]
    header, *rows = read_csv(log)
    assert header == ["iteration", "loss", "seconds"]
    assert [(int(row[0]), float(row[1])) for row in rows] == untimed(result.losses)
    assert b"\r" not in log.read_bytes()


def test_the_log_holds_the_means_of_further_columns(tmp_path):
    log = tmp_path / "log.csv"
    options = {"gradient": with_size, "columns": ["size"], "log_every": 2}
    result = run(5, log=log, **options)
    rng = np.random.default_rng(0)
    draws = [np.abs(noise(rng)).sum() for _ in range(5)]
    means = [np.mean(draws[:2]), np.mean(draws[2:4]), draws[4]]
    np.testing.assert_allclose([row.more for row in result.losses], np.c_[means])
    header, *rows = read_csv(log)
    assert header == ["iteration", "loss", "seconds", "size"]
    np.testing.assert_allclose([float(row[3]) for row in rows], means)
    assert untimed(result.losses) == untimed(run(5, log_every=2).losses)


def test_each_row_of_the_log_is_on_disk_at_once(tmp_path):
    log = tmp_path / "log.csv"
    rows = []
    look = at_call(5, lambda: rows.extend(read_csv(log)))
    run(6, sample=look, log=log, log_every=2)
    assert [row[0] for row in rows] == ["iteration", "2", "4"]


# --- Ctrl-C ---------------------------------------------------------------------------


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_noted_once_and_raised_the_second_time(first, second):
    handlers = [signal.getsignal(number) for number in (first, second)]
    with pytest.raises(KeyboardInterrupt), Interrupt() as interrupt:
        assert not interrupt.requested
        signal.raise_signal(first)
        assert interrupt.requested
        signal.raise_signal(second)
    assert [signal.getsignal(number) for number in (first, second)] == handlers


def test_ctrl_c_is_given_back_where_there_is_no_sigusr1():
    """As on Windows."""
    code = """
import signal
del signal.SIGUSR1
from tinymaml.training.console import Interrupt
before = signal.getsignal(signal.SIGINT)
with Interrupt():
    assert signal.getsignal(signal.SIGINT) is not before
assert signal.getsignal(signal.SIGINT) is before
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sigterm_is_noted_where_ctrl_c_is_ignored():
    """A shell starts background jobs so; `kill` must still save."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        press = at_call(2, lambda: signal.raise_signal(signal.SIGTERM))
        result = run(5, sample=press)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert (result.interrupted, result.iteration) == (True, 2)


def test_a_log_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def full():
        raise OSError(28, "No space left on device")

    log = CsvLog(tmp_path / "log.csv")
    log._file.close()
    monkeypatch.setattr(log, "_writer", SimpleNamespace(writerow=lambda _: None))
    monkeypatch.setattr(log, "_file", SimpleNamespace(flush=full, close=full))
    for act in (lambda: log.write(LogRow(1, 2.0, 3.0)), log.__exit__):
        with pytest.raises(OSError, match="No space left .*log.csv"):
            act()


def test_a_log_into_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="log: something that is no plain file"):
        run(1, log=tmp_path / "pipe")


def test_a_second_ctrl_c_raises_keyboard_interrupt_at_once(tmp_path):
    out = tmp_path / "c.npz"
    handler = signal.getsignal(signal.SIGINT)
    reached = []

    def press_twice():
        press_ctrl_c()
        reached.append(1)
        press_ctrl_c()
        reached.append(2)

    with pytest.raises(KeyboardInterrupt):
        run(10, sample=at_call(4, press_twice), out=out, checkpoint_every=2)
    assert reached == [1]
    assert signal.getsignal(signal.SIGINT) is handler
    assert load_checkpoint(out).state["iteration"] == 2
    assert os.listdir(tmp_path) == ["c.npz"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_handler_is_restored_after_any_error(error):
    def fail():
        raise error

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(error):
        run(10, sample=at_call(2, fail))
    assert signal.getsignal(signal.SIGINT) is handler


def test_an_ignored_ctrl_c_stays_ignored():
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        result = run(5, sample=at_call(2, press_ctrl_c))
    finally:
        signal.signal(signal.SIGINT, handler)
    assert (result.interrupted, result.iteration) == (False, 5)


def test_training_works_outside_the_main_thread():
    results = []
    thread = threading.Thread(target=lambda: results.append(run(5)))
    thread.start()
    thread.join()
    assert results[0].theta.tobytes() == run(5).theta.tobytes()


# --- the progress bar -----------------------------------------------------------------


@pytest.fixture
def terminal(monkeypatch, capsys):
    """Let stderr be a terminal; return a function that reads what it shows."""
    # The stream in the test may be another one of the same kind.
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda _: True)
    return lambda: capsys.readouterr().err


def test_the_progress_bar_shows_description_count_rate_and_loss(terminal):
    def gradient(theta, _):
        return SimpleNamespace(loss=2.5, gradient=theta)

    run(50, gradient=gradient, progress=True, description="second order")
    last = terminal().split("\r")[-1]
    assert last.startswith("second order: 100%")
    assert "50/50" in last and "it/s" in last and "loss 2.5" in last


def test_the_progress_bar_shows_the_mean_of_recent_losses_from_the_start_on(terminal):
    for losses, shown in [
        ([7.0], "loss 7"),
        ([60.0, 30.0], "loss 44.85"),  # (0.98 60 + 30) / 1.98
        ([100.0] + [0.0] * 49, "loss 1.169"),  # 2 0.98^49 / (1 - 0.98^50)
        ([100.0] * 500 + [1.0] * 500, "loss 1.004"),
    ]:
        with ProgressBar(True, "", 0, len(losses)) as bar:
            for iteration, loss in enumerate(losses, start=1):
                bar.step(iteration, loss)
        assert terminal().rstrip().endswith(f"{shown}]")


def test_the_progress_bar_shows_the_first_further_column_of_the_last_step(terminal):
    values = iter([0.5, 0.25, 0.03125])

    def gradient(theta, _):
        return SimpleNamespace(loss=2.5, gradient=theta, size=next(values), more=7.0)

    run(3, gradient=gradient, progress=True, columns=("size", "more"))
    assert terminal().rstrip().endswith("loss 2.5, size 0.0312]")


def test_the_progress_bar_starts_where_the_checkpoint_ends(tmp_path, terminal):
    run(3, out=tmp_path / "c.npz")
    run(3, resume=tmp_path / "c.npz", progress=True)
    shown = terminal()
    assert "3/3" in shown and "0/3" not in shown


def test_no_progress_bar_means_no_output_at_all(terminal):
    run(50, description="second order")
    assert terminal() == ""


def test_no_progress_bar_is_drawn_into_a_file(capsys):
    run(50, progress=True)
    assert capsys.readouterr() == ("", "")


def test_the_progress_bar_is_drawn_by_time_not_by_iteration(terminal):
    started = time.perf_counter()
    run(3000, progress=True)
    seconds = time.perf_counter() - started
    assert terminal().count("\r") < 10 + 20 * seconds


def test_without_stderr_there_is_no_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)  # as in a program without a console
    with ProgressBar(True, "", 0, 10) as bar:
        bar.step(1, 2.0)
