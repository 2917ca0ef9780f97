"""Sinusoids: the regression tasks of section 5.1.

A task is a sine wave y = A sin(x - p). Its amplitude A is uniform in [0.1, 5] and its
phase p is uniform in [0, pi]; examples have x uniform in [-5, 5] and no noise. Each
call draws new tasks, so there are infinitely many.

The paper and the authors' code agree here.
"""

from typing import NamedTuple

import numpy as np

from tinymaml.checks import Array, check_dtype, check_generator, check_sizes
from tinymaml.tasks.batch import Tasks, array_table

AMPLITUDES = (0.1, 5.0)
PHASES = (0.0, np.pi)  # radians
INPUTS = (-5.0, 5.0)


class Waves(NamedTuple):
    """T sine waves: amplitude and phase, each of shape (T, 1, 1)."""

    amplitude: Array
    phase: Array

    def __call__(self, x: Array) -> Array:
        """A sin(x - p) at x (T, points, 1), in the dtype of x; float64 for integers."""
        y = self.amplitude * np.sin(x - self.phase)
        return y.astype(x.dtype if x.dtype.kind == "f" else y.dtype, copy=False)

    def __repr__(self) -> str:
        return array_table("Waves", self._asdict())


def sample_waves(rng: np.random.Generator, tasks: int) -> Waves:
    """T waves drawn from the paper's distribution.

    Raises ValueError or TypeError unless `tasks` is a whole number of at least 1.
    """
    check_generator(rng)
    check_sizes(tasks=tasks)
    amplitude = rng.uniform(*AMPLITUDES, (tasks, 1, 1))
    return Waves(amplitude, rng.uniform(*PHASES, (tasks, 1, 1)))


def sample_tasks(
    rng: np.random.Generator,
    tasks: int = 25,
    shots: int = 10,
    query: int | None = None,
    dtype: str = "float32",
) -> Tasks:
    """T new tasks: arrays (T, K, 1) of support and (T, query, 1) of query points.

    query: the number of query points of a task, by default K = `shots` as well.

    Raises ValueError unless there is at least one task, support and query point,
    TypeError for a dtype other than float32 and float64, or what is no generator.

    >>> tasks = sample_tasks(np.random.default_rng(0), tasks=25, shots=10)
    >>> tasks.x_support.shape, tasks.x_query.dtype
    ((25, 10, 1), dtype('float32'))
    """
    query = shots if query is None else query
    tasks, shots, query = check_sizes(tasks=tasks, shots=shots, query=query)
    return sample_points(rng, sample_waves(rng, tasks), shots, query, dtype)


def sample_points(
    rng: np.random.Generator,
    waves: Waves,
    shots: int,
    query: int,
    dtype: str = "float32",
) -> Tasks:
    """New points on given waves: K support and `query` query points on each.

    Raises ValueError or TypeError unless both are whole numbers of at least 1.
    """
    check_generator(rng)
    shots, query = check_sizes(shots=shots, query=query)
    # [alg2-line5]
    x = rng.uniform(*INPUTS, (len(waves.phase), shots + query, 1))
    x = x.astype(check_dtype(dtype))
    y = waves(x)
    return Tasks(x[:, :shots], y[:, :shots], x[:, shots:], y[:, shots:])
    # [/alg2-line5]
