"""Validation in training: scores at the right iterations, the best theta, resume."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.training import (
    START,
    at_call,
    closeness,
    contents,
    never,
    press_ctrl_c,
    run,
)
from tinymaml.training.checkpoint import load_checkpoint
from tinymaml.training.optim import SGD, Adam

shared_folder = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)


def scores_of(*scores):
    """A validation that returns these, one after the other."""
    rest = iter(scores)
    return lambda theta: next(rest)


def counting(iterations, scores, **options):
    """A run in which theta is the number of steps taken; a score after each of them."""
    return run(
        iterations,
        theta=np.zeros(1),
        gradient=lambda theta, _: type(
            "Down", (), {"loss": 0.0, "gradient": -(theta**0)}
        ),
        optimiser=SGD(learning_rate=1.0),
        validate=scores_of(*scores),
        validate_every=1,
        **options,
    )


def test_scores_come_at_every_multiple_with_theta_as_it_is_then():
    thetas = []

    def validate(theta):
        thetas.append(theta.copy())
        return len(thetas)

    result = run(11, validate=validate, validate_every=4)
    assert result.scores == [(4, 1.0), (8, 2.0)]
    for iteration, theta in zip((4, 8), thetas, strict=True):
        assert theta.dtype == START.dtype
        assert theta.tobytes() == run(iteration).theta.tobytes()
    assert all(type(score) is float for _, score in result.scores)


def test_without_validation_there_are_no_scores_and_no_best():
    result = run(5)
    assert result.scores == [] and result.best is None
    result = run(5, validate=never, validate_every=6)
    assert result.scores == [] and result.best is None


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([0.1, 0.5, 0.3, 0.2], 2),
        ([0.5, 0.5, 0.5, 0.5], 1),  # the first of equals
        ([0.1, 0.5, 0.2, 0.5], 2),
        ([-3.0, -2.0, -1.0, -0.5], 4),
        ([0.9, 0.5, 0.2, 0.1], 1),
        ([np.nan, 0.1, 0.3, 0.2], 3),  # not a number is never the highest
        ([0.1, np.nan, 0.3, np.nan], 3),
        ([-np.inf, -np.inf, 0.0, np.inf], 4),
    ],
)
def test_best_is_theta_at_the_first_highest_score(scores, best):
    result = counting(4, scores)
    assert result.best.tolist() == [best]
    assert result.theta.tolist() == [4]
    np.testing.assert_array_equal(result.scores, list(enumerate(scores, 1)))


@given(scores=st.lists(st.integers(0, 3), min_size=1, max_size=12), cut=st.integers(0))
@shared_folder
def test_best_across_a_resume_is_that_of_all_scores(tmp_path, scores, cut):
    cut, out = cut % (len(scores) + 1), tmp_path / "c.npz"
    counting(cut, scores[:cut], out=out)
    result = counting(len(scores), scores[cut:], resume=out)
    assert result.best.tolist() == [1 + int(np.argmax(scores))]
    assert result.scores == list(enumerate(scores, 1))


def test_best_and_theta_are_arrays_of_their_own():
    arguments = []

    def validate(theta):
        arguments.append(theta)
        score = closeness(theta)
        theta[:] = np.nan  # whatever it does to its argument
        return score

    spoilt = run(6, validate=validate, validate_every=2)
    plain = run(6, validate=closeness, validate_every=2)
    assert spoilt.theta.tobytes() == plain.theta.tobytes()
    assert spoilt.best.tobytes() == plain.best.tobytes()
    for array in (spoilt.theta, *arguments):
        assert not np.shares_memory(spoilt.best, array)


@pytest.mark.parametrize("every", [1, 3, 100])
def test_validation_changes_nothing_of_the_training(tmp_path, every):
    def part(name, **options):
        rng = np.random.default_rng(7)
        out = tmp_path / name
        result = run(10, rng=rng, out=out, log_every=2, **options)
        arrays, state = contents(out)
        for key in ("best", "scores"):
            arrays.pop(key, None)
        losses = [(row.iteration, row.loss) for row in result.losses]
        return result.theta.tobytes(), losses, arrays, state, rng.random(5).tolist()

    assert part("with", validate=closeness, validate_every=every) == part("without")


@pytest.mark.parametrize("score", [None, np.ones(3), "0.5"])
def test_a_score_that_is_no_number_is_refused_by_name(score):
    with pytest.raises(TypeError, match="validate: expected a number, got"):
        run(3, validate=lambda theta: score, validate_every=2)


@shared_folder
@given(
    first=st.integers(0, 9),
    second=st.integers(0, 9),
    every=st.integers(1, 6),
    checkpoint_every=st.integers(1, 20),
    dtype=st.sampled_from([np.float32, np.float64]),
    make=st.sampled_from([SGD, Adam]),
)
def test_resumed_run_has_the_scores_and_the_best_of_an_uninterrupted_one(
    tmp_path, first, second, every, checkpoint_every, dtype, make
):
    def part(iterations, name, **options):
        return run(
            iterations,
            theta=START.astype(dtype),
            sample=lambda rng: rng.normal(size=3).astype(dtype),
            optimiser=make(learning_rate=0.1),
            out=tmp_path / name,
            checkpoint_every=checkpoint_every,
            validate=closeness,
            validate_every=every,
            **options,
        )

    whole = part(first + second, "whole.npz")
    part(first, "half.npz")
    both = part(first + second, "both.npz", resume=tmp_path / "half.npz")
    assert both.theta.tobytes() == whole.theta.tobytes()
    assert both.scores == whole.scores
    assert [type(i) for i, _ in both.scores] == [int] * ((first + second) // every)
    if whole.scores:
        assert both.best.dtype == dtype
        assert both.best.tobytes() == whole.best.tobytes()
    else:
        assert both.best is whole.best is None
    assert contents(tmp_path / "both.npz") == contents(tmp_path / "whole.npz")


def test_ctrl_c_keeps_the_scores_until_then(tmp_path):
    out, options = tmp_path / "c.npz", {"validate": closeness, "validate_every": 2}
    stopped = run(10, sample=at_call(5, press_ctrl_c), out=out, **options)
    assert stopped.interrupted
    assert [iteration for iteration, _ in stopped.scores] == [2, 4]
    whole, resumed = run(10, **options), run(10, resume=out, **options)
    assert resumed.scores == whole.scores
    assert resumed.best.tobytes() == whole.best.tobytes()


def test_an_error_in_validation_leaves_the_last_checkpoint(tmp_path):
    out = tmp_path / "c.npz"
    with pytest.raises(StopIteration):
        run(9, out=out, checkpoint_every=2, validate=scores_of(1, 2), validate_every=3)
    assert load_checkpoint(out).state["iteration"] == 8
    assert load_checkpoint(out).arrays["scores"].tolist() == [[3, 1], [6, 2]]


# --- refusals -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"validate": 3}, TypeError, "^validate: expected a function, got 3"),
        ({"validate": 0}, TypeError, "^validate: expected a function, got 0"),
        ({"validate": [0.5]}, TypeError, r"^validate: expected a function, got \[0.5"),
        (
            {"validate_every": 0},
            ValueError,
            "^validate_every: expected at least 1, got 0",
        ),
        (
            {"validate_every": 2.5},
            TypeError,
            "^validate_every: expected a whole number",
        ),
        (
            {"validate_every": True},
            TypeError,
            "^validate_every: expected a whole number",
        ),
    ],
)
def test_a_bad_argument_of_validation_is_refused_before_training(
    tmp_path, options, error, message
):
    options = {"validate": never, **options}
    with pytest.raises(error, match=message):
        run(gradient=never, sample=never, out=tmp_path / "c.npz", **options)
    assert not [*tmp_path.iterdir()]
