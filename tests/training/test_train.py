"""The training loop: hand-computed steps, exact resume, log and checkpoints."""

import copy
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.training import (
    START,
    at_call,
    contents,
    never,
    noise,
    read_csv,
    run,
    untimed,
    untimed_csv,
)
from tinymaml.training.checkpoint import load_checkpoint
from tinymaml.training.optim import SGD, Adam

BIT_GENERATORS = [
    np.random.PCG64,
    np.random.PCG64DXSM,
    np.random.MT19937,
    np.random.Philox,
    np.random.SFC64,
]

shared_folder = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)


def test_alg2_line10_steps_are_the_hand_computed_ones():
    # theta <- theta - 1/4 * 2 (theta - target) halves the distance to the target.
    targets = iter([0.0, 8.0, 4.0])
    result = run(
        3,
        theta=np.array([4.0]),
        sample=lambda rng: next(targets),
        optimiser=SGD(learning_rate=0.25),
        log_every=2,
    )
    assert result.theta.tolist() == [4.5]  # 4 -> 2 -> 5 -> 4.5
    assert untimed(result.losses) == [(2, (16 + 36) / 2), (3, 1.0)]
    assert result.iteration == 3
    assert not result.interrupted


def test_alg2_line3_draws_once_an_iteration_and_leaves_other_arguments_alone():
    theta, optimiser, rng = START.copy(), Adam(), np.random.default_rng(3)
    optimiser.update(np.zeros(3, np.float32), np.ones(3, np.float32))
    before = copy.deepcopy(optimiser.state())
    result = run(7, theta=theta, optimiser=optimiser, rng=rng)
    assert theta.tobytes() == START.tobytes()
    assert not np.shares_memory(theta, result.theta)
    for name, array in optimiser.state().items():
        np.testing.assert_array_equal(array, before[name])
    assert result.optimiser.state()["step"] == 8
    expected = np.random.default_rng(3)
    for _ in range(7):
        noise(expected)
    assert rng.bit_generator.state == expected.bit_generator.state


def test_alg2_line2_repeats_not_even_once_if_not_asked():
    result = run(0)
    assert result.theta.tobytes() == START.tobytes()
    assert (result.iteration, result.losses, result.interrupted) == (0, [], False)


@shared_folder
@given(
    first=st.integers(0, 12),
    second=st.integers(0, 12),
    log_every=st.integers(1, 5),
    checkpoint_every=st.integers(1, 30),
    dtype=st.sampled_from([np.float32, np.float64]),
    make=st.sampled_from([SGD, Adam]),
    bit_generator=st.sampled_from(BIT_GENERATORS),
)
def test_resumed_run_equals_uninterrupted_run_bit_for_bit(
    tmp_path, first, second, log_every, checkpoint_every, dtype, make, bit_generator
):
    def part(iterations, name, log, seed=5, **options):
        rng = np.random.Generator(bit_generator(seed))
        rng.integers(9, dtype=np.uint32)  # leaves half a word in the generator's buffer
        result = run(
            iterations,
            theta=START.astype(dtype),
            sample=lambda rng: rng.normal(size=3).astype(dtype),
            optimiser=make(learning_rate=0.1),
            rng=rng,
            out=tmp_path / name,
            log=tmp_path / log,
            log_every=log_every,
            checkpoint_every=checkpoint_every,
            config={"alpha": 0.01, "iterations": iterations},
            **options,
        )
        return result, rng

    half = tmp_path / "half.npz"
    whole, whole_rng = part(first + second, "whole.npz", "whole.csv")
    part(first, half.name, "parts.csv")
    parts, parts_rng = part(
        first + second, "both.npz", "parts.csv", seed=99, resume=half
    )
    assert parts.theta.dtype == dtype
    assert parts.theta.tobytes() == whole.theta.tobytes()
    assert parts.iteration == whole.iteration == first + second
    assert untimed(parts.losses) == untimed(whole.losses)
    assert contents(tmp_path / "both.npz") == contents(tmp_path / "whole.npz")
    assert untimed_csv(tmp_path / "parts.csv") == untimed_csv(tmp_path / "whole.csv")
    assert parts_rng.random(5).tolist() == whole_rng.random(5).tolist()


def test_resume_after_a_crash_drops_later_rows_and_repeats_them(tmp_path):
    out, log = tmp_path / "c.npz", tmp_path / "log.csv"
    options = {"log": log, "out": out, "log_every": 2, "checkpoint_every": 5}
    whole = run(12, **options)
    expected_contents, expected_rows = contents(out), untimed_csv(log)

    class Crash(Exception):
        pass

    def crash():
        raise Crash

    with pytest.raises(Crash):
        run(12, sample=at_call(9, crash), **options)
    assert load_checkpoint(out).state["iteration"] == 5
    assert untimed_csv(log)[-1][0] == "8"
    resumed = run(12, resume=out, **options)
    assert resumed.theta.tobytes() == whole.theta.tobytes()
    assert contents(out) == expected_contents
    assert untimed_csv(log) == expected_rows


def test_resume_restores_the_rows_of_a_lost_log(tmp_path):
    out, log = tmp_path / "c.npz", tmp_path / "log.csv"
    run(6, out=out, log_every=2)
    resumed = run(8, resume=out, log=log, log_every=2)
    assert [row[0] for row in read_csv(log)] == ["iteration", "2", "4", "6", "8"]
    assert [row.iteration for row in resumed.losses] == [2, 4, 6, 8]


def test_resuming_past_the_end_returns_at_once(tmp_path):
    out, elsewhere = tmp_path / "c.npz", tmp_path / "copy.npz"
    straight = run(10, out=out)
    before = out.read_bytes()

    for iterations in (10, 3, 0):
        resumed = run(iterations, sample=never, resume=out, out=out)
        assert resumed.theta.tobytes() == straight.theta.tobytes()
        assert resumed.iteration == 10
        assert untimed(resumed.losses) == untimed(straight.losses)
        assert out.read_bytes() == before
    run(3, sample=never, resume=out, out=elsewhere)
    assert contents(elsewhere) == contents(out)


def test_seconds_go_on_across_a_resume(tmp_path):
    out, log = tmp_path / "c.npz", tmp_path / "log.csv"
    first = run(
        2, sample=at_call(2, lambda: time.sleep(0.05)), out=out, log=log, log_every=1
    )
    second = run(4, resume=out, log=log, log_every=1)
    assert 0.05 < first.seconds <= second.seconds
    seconds = [float(row[2]) for row in read_csv(log)[1:]]
    assert seconds == sorted(seconds)
    assert seconds[0] < 0.05 <= seconds[1]


def test_an_optimiser_whose_settings_are_a_tuple_is_resumed(tmp_path):
    class Paired(SGD):
        def config(self):
            return {**super().config(), "betas": (0.9, 0.99)}

    out = tmp_path / "c.npz"
    run(2, optimiser=Paired(0.1), out=out)
    resumed = run(4, optimiser=Paired(0.1), resume=out)
    assert resumed.theta.tobytes() == run(4, optimiser=Paired(0.1)).theta.tobytes()


def test_in_memory_continuation_takes_the_optimiser_along():
    whole = run(8, rng=np.random.default_rng(1))
    rng = np.random.default_rng(1)
    half = run(4, rng=rng)
    rest = run(4, rng=rng, theta=half.theta, optimiser=half.optimiser)
    assert rest.theta.tobytes() == whole.theta.tobytes()


def test_checkpoints_are_written_at_every_multiple_and_at_the_end(
    tmp_path, monkeypatch
):
    saved = []

    def note(path, arrays, config, state):
        saved.append(state["iteration"])

    monkeypatch.setattr("tinymaml.training.run.save_checkpoint", note)
    run(10, out=tmp_path / "c.npz", checkpoint_every=4)
    assert saved == [4, 8, 10]
    saved.clear()
    run(8, out=tmp_path / "c.npz", checkpoint_every=4)
    assert saved == [4, 8]
