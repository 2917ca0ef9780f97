"""The sinusoid tasks of section 5.1: ranges, formula, seeds, refusals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tests.support.running import DTYPES
from tinymaml.tasks import sinusoid


def rng(seed=0):
    return np.random.default_rng(seed)


@given(
    tasks=st.integers(1, 5),
    shots=st.integers(1, 6),
    query=st.none() | st.integers(1, 7),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**16),
)
def test_alg2_line5_draws_support_and_query_points_of_each_wave(
    tasks, shots, query, dtype, seed
):
    batch = sinusoid.sample_tasks(rng(seed), tasks, shots, query, dtype)
    waves = sinusoid.sample_waves(rng(seed), tasks)  # sample_tasks draws them first
    sizes = [shots, shots, query or shots, query or shots]
    assert [array.shape for array in batch] == [(tasks, n, 1) for n in sizes]
    for x, y in (batch[:2], batch[2:]):
        assert x.dtype == y.dtype == dtype
        assert (np.abs(x) <= 5).all()
        formula = waves.amplitude * np.sin(x.astype("float64") - waves.phase)
        assert np.abs(y - formula).max() < 1e-5


def test_amplitudes_phases_and_inputs_are_uniform_in_the_papers_ranges():
    waves = sinusoid.sample_waves(rng(), 4000)
    x = sinusoid.sample_tasks(rng(1), 400, 5).x_support
    for sample, low, high in (
        (waves.amplitude, 0.1, 5.0),
        (waves.phase, 0.0, np.pi),
        (x, -5.0, 5.0),
    ):
        assert (
            stats.kstest(sample.ravel(), stats.uniform(low, high - low).cdf).pvalue
            > 0.01
        )
    independent = stats.spearmanr(waves.amplitude.ravel(), waves.phase.ravel())
    assert independent.pvalue > 0.01


def test_query_points_are_no_support_points():
    tasks = sinusoid.sample_tasks(rng(), 50, shots=5, query=7, dtype="float64")
    assert tasks.x_query.shape == (50, 7, 1)
    assert not np.isin(tasks.x_query, tasks.x_support).any()


def test_tasks_depend_on_the_seed_alone():
    first, same, other = (sinusoid.sample_tasks(rng(s), 3, 4) for s in (0, 0, 1))
    for a, b, c in zip(first, same, other, strict=True):
        assert np.array_equal(a, b)
        assert not np.array_equal(a, c)


def test_each_call_draws_new_tasks():
    generator = rng()
    first, second = (sinusoid.sample_tasks(generator, 3, 4) for _ in range(2))
    assert not np.array_equal(first.y_support, second.y_support)


def test_waves_keep_the_dtype_of_x():
    waves = sinusoid.sample_waves(rng(), 2)
    for dtype in DTYPES:
        assert waves(np.zeros((2, 3, 1), dtype)).dtype == dtype


def test_waves_at_whole_numbers_are_not_truncated():
    waves = sinusoid.sample_waves(np.random.default_rng(0), 2)
    x = np.repeat(np.arange(-5, 6).reshape(1, -1, 1), 2, axis=0)
    for dtype in ("int64", "int16", "int8"):
        y = waves(x.astype(dtype))
        assert y.dtype == np.float64
        assert np.array_equal(y, waves(x.astype(float)))
    assert waves(x.astype(np.float16)).dtype == np.float16


def test_waves_and_points_are_at_least_one():
    rng = np.random.default_rng(0)
    waves = sinusoid.sample_waves(rng, 2)
    before = rng.bit_generator.state
    with pytest.raises(ValueError, match="^tasks: expected at least 1, got 0"):
        sinusoid.sample_waves(rng, 0)
    with pytest.raises(ValueError, match="^shots: expected at least 1, got -1"):
        sinusoid.sample_points(rng, waves, -1, 5)
    with pytest.raises(ValueError, match="^query: expected at least 1, got 0"):
        sinusoid.sample_points(rng, waves, 5, 0)
    assert rng.bit_generator.state == before


def test_waves_show_their_shapes():
    assert repr(sinusoid.sample_waves(rng(), 25)).splitlines() == [
        "Waves",
        "  amplitude  (25, 1, 1)  float64",
        "  phase      (25, 1, 1)  float64",
    ]


def test_numbers_of_points_that_are_small_integers_do_not_overflow():
    rng = np.random.default_rng(0)
    tasks = sinusoid.sample_tasks(rng, 2, np.uint8(200), np.uint8(100))
    assert (tasks.x_support.shape, tasks.x_query.shape) == ((2, 200, 1), (2, 100, 1))


def test_sample_tasks_refuses_another_dtype():
    with pytest.raises(TypeError, match="dtype: expected float32 or float64, got int"):
        sinusoid.sample_tasks(rng(), dtype="int64")


@pytest.mark.parametrize("other", [0, None, np.random, np.random.RandomState(0)])
def test_what_is_no_generator_is_refused(other):
    expected = "^rng: expected a numpy.random.Generator, got"
    with pytest.raises(TypeError, match=expected):
        sinusoid.sample_tasks(other)
    with pytest.raises(TypeError, match=expected):
        sinusoid.sample_points(other, sinusoid.sample_waves(rng(), 2), 1, 1)


@pytest.mark.parametrize("name", ["tasks", "shots", "query"])
@pytest.mark.parametrize("number", [0, -1])
def test_sample_tasks_refuses_fewer_than_one(name, number):
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, got {number}"):
        sinusoid.sample_tasks(rng(), **{name: number})
