"""How training stops early: NaN, Ctrl-C, a full disk; and the bar shown until then."""

import os
import signal
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from tests.support.training import (
    START,
    at_call,
    contents,
    parabola,
    press_ctrl_c,
    run,
    untimed,
)
from tinymaml.training.checkpoint import load_checkpoint
from tinymaml.training.console import ProgressBar
from tinymaml.training.optim import SGD
from tinymaml.training.run import NonFiniteLossError


def with_fault(number, loss=None, entry=None):
    """Return the parabola with a bad loss or gradient entry in one call."""
    calls = iter(range(1, 10**6))

    def gradient(theta, target):
        result = parabola(theta, target)
        if next(calls) == number:
            if loss is not None:
                result.loss = loss
            if entry is not None:
                result.gradient[1] = entry
        return result

    return gradient


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["loss", "entry"])
def test_a_number_that_is_not_finite_stops_training_by_name(tmp_path, bad, where):
    out = tmp_path / "c.npz"
    good = run(4, theta=START)
    run(4, out=tmp_path / "good.npz")
    with pytest.raises(NonFiniteLossError) as caught:
        run(20, gradient=with_fault(5, **{where: bad}), out=out, checkpoint_every=4)
    message = str(caught.value)
    assert message.startswith("iteration 5: ")
    if where == "loss":
        assert f"the loss is {bad}" in message
    else:
        assert "1 of 3 entries of the gradient" in message
        assert f"at 1, is {bad}" in message
    assert "smaller inner step size alpha" in message
    assert f"{out} of iteration 4" in message
    assert caught.value.iteration == 5
    # The step was not taken, and the checkpoint is the one of iteration 4.
    assert caught.value.theta.tobytes() == good.theta.tobytes()
    assert contents(out)[0]["theta"] == contents(tmp_path / "good.npz")[0]["theta"]
    assert load_checkpoint(out).state["iteration"] == 4


def test_a_fault_before_any_checkpoint_does_not_name_an_older_file(tmp_path):
    out = tmp_path / "c.npz"
    run(3, out=out)
    before = out.read_bytes()
    with pytest.raises(NonFiniteLossError, match="no checkpoint has been written"):
        run(9, gradient=with_fault(2, loss=np.nan), out=out)
    assert out.read_bytes() == before


def test_a_fault_after_a_resume_names_the_checkpoint_resumed_from(tmp_path):
    out = tmp_path / "c.npz"
    run(3, out=out)
    with pytest.raises(
        NonFiniteLossError, match=r"iteration 5: .*c\.npz of iteration 3"
    ):
        run(9, gradient=with_fault(2, loss=np.nan), resume=out)


@pytest.mark.parametrize("out_given", [False, True])
@pytest.mark.parametrize("checkpoint_every", [1, 100])
def test_parameters_that_overflow_are_never_saved_or_returned(
    tmp_path, out_given, checkpoint_every
):
    out = tmp_path / "c.npz" if out_given else None

    def gradient(theta, _):
        return SimpleNamespace(loss=1.0, gradient=np.full(3, -3e38, np.float32))

    with pytest.raises(NonFiniteLossError, match="iteration 2: theta is no longer"):
        with np.errstate(over="ignore"):
            run(
                2,
                gradient=gradient,
                optimiser=SGD(learning_rate=0.9),
                out=out,
                checkpoint_every=checkpoint_every,
            )
    saved = {1: [1], 100: []}[checkpoint_every] if out_given else []
    assert [load_checkpoint(p).state["iteration"] for p in tmp_path.iterdir()] == saved


@pytest.mark.parametrize("in_gradient", [False, True])
def test_ctrl_c_finishes_the_iteration_saves_and_returns(tmp_path, in_gradient):
    out = tmp_path / "c.npz"
    handler = signal.getsignal(signal.SIGINT)
    press = {"sample": at_call(4, press_ctrl_c)}
    if in_gradient:
        press = {"gradient": at_call(4, press_ctrl_c, parabola)}
    result = run(10, out=out, log_every=3, **press)
    assert signal.getsignal(signal.SIGINT) is handler
    assert result.interrupted
    assert result.iteration == 4
    assert result.theta.tobytes() == run(4).theta.tobytes()
    assert load_checkpoint(out).arrays["theta"].tobytes() == result.theta.tobytes()
    resumed = run(10, resume=out, log_every=3)
    assert resumed.theta.tobytes() == run(10).theta.tobytes()
    assert untimed(resumed.losses) == untimed(run(10, log_every=3).losses)


def test_ctrl_c_without_a_checkpoint_still_returns_cleanly():
    result = run(10, sample=at_call(2, press_ctrl_c))
    assert (result.interrupted, result.iteration) == (True, 2)


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


def test_ctrl_c_in_the_last_iteration_is_still_reported():
    result = run(4, sample=at_call(4, press_ctrl_c))
    assert (result.interrupted, result.iteration) == (True, 4)


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


def test_a_disk_that_fills_up_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    out = tmp_path / "c.npz"

    def full(_):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        run(
            9,
            sample=at_call(4, lambda: monkeypatch.setattr(os, "fsync", full)),
            out=out,
            checkpoint_every=3,
        )
    assert os.listdir(tmp_path) == ["c.npz"]
    assert load_checkpoint(out).state["iteration"] == 3


def test_the_progress_bar_shows_description_count_rate_and_loss(capsys):
    def gradient(theta, _):
        return SimpleNamespace(loss=2.5, gradient=theta)

    run(50, gradient=gradient, progress=True, description="second order")
    shown = capsys.readouterr()
    last = shown.err.split("\r")[-1]
    assert shown.out == ""
    assert last.startswith("second order: 100%")
    assert "50/50" in last and "it/s" in last and "loss 2.5" in last


def test_the_progress_bar_shows_the_mean_of_recent_losses_from_the_start_on(capsys):
    for losses, shown in [
        ([7.0], "loss 7"),
        ([60.0, 30.0], "loss 44.85"),  # (0.98 60 + 30) / 1.98
        ([100.0] + [0.0] * 49, "loss 1.169"),  # 2 0.98^49 / (1 - 0.98^50)
        ([100.0] * 500 + [1.0] * 500, "loss 1.004"),
    ]:
        with ProgressBar(True, "", 0, len(losses)) as bar:
            for iteration, loss in enumerate(losses, start=1):
                bar.step(iteration, loss)
        assert capsys.readouterr().err.rstrip().endswith(f"{shown}]")


def test_the_progress_bar_starts_where_the_checkpoint_ends(tmp_path, capsys):
    run(3, out=tmp_path / "c.npz")
    run(3, resume=tmp_path / "c.npz", progress=True)
    shown = capsys.readouterr().err
    assert "3/3" in shown and "0/3" not in shown


def test_no_progress_bar_means_no_output_at_all(capsys):
    run(50, description="second order")
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "")


def test_the_progress_bar_is_drawn_by_time_not_by_iteration(capsys):
    started = time.perf_counter()
    run(3000, progress=True)
    seconds = time.perf_counter() - started
    assert capsys.readouterr().err.count("\r") < 10 + 20 * seconds
