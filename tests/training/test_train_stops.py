"""How training stops early: NaN, Ctrl-C, SIGTERM, `stop`, kill -9, a full disk."""

import os
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest

from tests.support.kill_runs import run_campaign
from tests.support.training import (
    START,
    at_call,
    closeness,
    contents,
    parabola,
    press_ctrl_c,
    run,
    untimed,
    with_fault,
)
from tinymaml.training.checkpoint import CheckpointError, load_checkpoint
from tinymaml.training.optim import SGD, Adam, cosine, step
from tinymaml.training.run import NonFiniteLossError


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
    assert "smaller inner learning rate alpha" in message
    assert f"{out} of iteration 4" in message
    assert caught.value.iteration == 5
    # The step was not taken, and the checkpoint is the one of iteration 4.
    assert caught.value.theta.tobytes() == good.theta.tobytes()
    assert contents(out)[0]["theta"] == contents(tmp_path / "good.npz")[0]["theta"]
    assert load_checkpoint(out).state["iteration"] == 4


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


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_gradient_whose_square_overflows_stops_adam_at_that_iteration(
    tmp_path, dtype
):
    huge = 10 * np.sqrt(np.finfo(dtype).max)
    out, theta = tmp_path / "c.npz", START.astype(dtype)
    with pytest.raises(NonFiniteLossError) as caught:
        run(
            20,
            gradient=with_fault(5, entry=huge),
            theta=theta,
            sample=lambda rng: rng.normal(size=3).astype(dtype),
            out=out,
            checkpoint_every=4,
        )
    assert caught.value.iteration == 5
    assert "iteration 5: Adam: the largest entry of the grad" in str(caught.value)
    saved = load_checkpoint(out)
    assert saved.state["iteration"] == 4
    assert caught.value.theta.tobytes() == saved.arrays["theta"].tobytes()


def test_many_squares_whose_sum_overflows_do_not_stop_adam():
    gradient = np.full(9, 1e19, np.float32)
    adam, theta = Adam(0.1), np.zeros(9, np.float32)
    adam.update(theta, gradient)
    np.testing.assert_allclose(theta, -0.1, rtol=1e-4)


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


def test_ctrl_c_in_the_last_iteration_is_still_reported():
    result = run(4, sample=at_call(4, press_ctrl_c))
    assert (result.interrupted, result.iteration) == (True, 4)


def test_sigterm_saves_and_returns_as_ctrl_c_does(tmp_path):
    out = tmp_path / "c.npz"
    result = run(10, out=out, sample=at_call(4, lambda: os.kill(os.getpid(), 15)))
    assert (result.interrupted, result.iteration) == (True, 4)
    assert run(10, resume=out).theta.tobytes() == run(10).theta.tobytes()


def no_better_in_the_last_three(run):
    scores = [score for _, score in run.scores]
    return len(scores) > 3 and max(scores[:-3]) >= max(scores[-3:])


VALIDATED = {"validate": closeness, "validate_every": 2, "log_every": 5}


def test_a_run_that_is_stopped_is_whole_and_can_be_resumed(tmp_path):
    out = tmp_path / "c.npz"
    options = {**VALIDATED, "optimiser": Adam(0.5)}
    whole = run(60, **options)
    stopped = run(60, out=out, stop=no_better_in_the_last_three, **options)
    assert 8 <= stopped.iteration < 60 and not stopped.interrupted
    assert stopped.scores == whole.scores[: len(stopped.scores)]
    assert no_better_in_the_last_three(stopped)
    assert stopped.theta.tobytes() == load_checkpoint(out).arrays["theta"].tobytes()
    again = run(60, resume=out, stop=no_better_in_the_last_three, **options)
    assert again.iteration == stopped.iteration  # it has already seen enough
    resumed = run(60, resume=out, **options)
    assert resumed.theta.tobytes() == whole.theta.tobytes()
    assert resumed.scores == whole.scores
    assert untimed(resumed.losses) == untimed(whole.losses)


def test_stop_is_asked_after_every_score_and_every_row_of_the_log():
    asked = []
    run(12, stop=lambda run: asked.append(run.iteration), **VALIDATED)
    assert asked == [2, 4, 5, 6, 8, 10, 12]
    result = run(12, stop=lambda run: run.rows[-1].iteration == 8, log_every=4)
    assert (result.iteration, len(result.losses)) == (8, 2)


def test_stop_sees_the_seconds_at_each_score():
    """Whether the log is written then or not."""
    seen = []
    options = {**VALIDATED, "validate_every": 1, "log_every": 100}
    run(
        3,
        sample=at_call(2, lambda: time.sleep(0.05)),
        stop=lambda r: seen.append(r.seconds),
        **options,
    )
    assert 0 < seen[0] < 0.05 < seen[1] < seen[2]


def test_a_score_that_raises_floating_point_error_is_no_iteration_that_failed():
    def overflow(theta):
        raise FloatingPointError("of the score")

    with pytest.raises(FloatingPointError, match="^of the score$") as raised:
        run(5, **{**VALIDATED, "validate": overflow})
    assert type(raised.value) is FloatingPointError


def test_a_gradient_that_raises_floating_point_error_loses_no_theta():
    """As MAMLTRPO does, where a step is so large that actions overflow."""
    whole = run(2)

    def overflow():
        raise FloatingPointError("alpha: actions are not finite")

    with pytest.raises(NonFiniteLossError, match="^iteration 3: alpha: act") as raised:
        run(5, gradient=at_call(3, overflow, parabola))
    assert raised.value.iteration == 3
    assert raised.value.theta.tobytes() == whole.theta.tobytes()


def test_after_sees_every_score_and_every_row_of_the_log():
    seen = []

    def after(run):
        assert run.theta.shape == (3,)
        seen.append((run.iteration, len(run.rows), len(run.scores)))

    run(12, after=after, **VALIDATED)
    assert seen == [
        *((2, 0, 1), (4, 0, 2), (5, 1, 2), (6, 1, 3), (8, 1, 4)),
        *((10, 2, 5), (12, 2, 6), (12, 3, 6)),  # the last row comes at the end
    ]
    with pytest.raises(TypeError, match="^after: expected a function, got 3"):
        run(3, after=3)


def test_a_schedule_continues_after_a_resume_and_must_be_the_same(tmp_path):
    out = tmp_path / "c.npz"
    whole = run(10, optimiser=Adam(cosine(0.1, 10)))
    run(4, out=out, optimiser=Adam(cosine(0.1, 10)))
    resumed = run(10, resume=out, optimiser=Adam(cosine(0.1, 10)))
    assert resumed.theta.tobytes() == whole.theta.tobytes()
    assert whole.theta.tobytes() != run(10, optimiser=Adam(0.1)).theta.tobytes()
    for other in (0.1, cosine(0.1, 20), step(0.1, 10)):
        with pytest.raises(CheckpointError, match="optimiser learning_rate = .* but "):
            run(10, resume=out, optimiser=Adam(other))


def test_stop_must_be_a_function():
    with pytest.raises(TypeError, match="^stop: expected a function, got 3"):
        run(3, stop=3)


def test_runs_that_are_killed_lose_nothing():
    started = time.perf_counter()
    ends = run_campaign(kills=12, seed=1)
    assert ends["SIGKILL"] > 0 and ends["SIGTERM"] > 0 and ends["finished"] > 0
    assert time.perf_counter() - started < 60


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
