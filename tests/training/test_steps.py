"""Steps on the host: what they change, what they report, and who may replace them."""

from types import SimpleNamespace

import numpy as np
import pytest

from tests.support.training import START, never, noise, parabola, run, with_size
from tinymaml.training.optim import SGD, Adam
from tinymaml.training.steps import ONE_PROCESS, HostSteps, StepResult, Trainable


def test_alg2_line10_gives_the_gradient_to_the_optimiser():
    theta, target = np.array([4.0, 0.0]), np.array([0.0, 8.0])
    steps = HostSteps(parabola, theta, SGD(learning_rate=0.25), lambda rng: target)
    batch = steps.draw(None)
    assert batch is target
    steps.step(batch)  # theta - 1/4 * 2 (theta - target): half of the way
    assert theta.tolist() == [2.0, 4.0]
    assert steps.fetch() == [StepResult(80.0)]


def test_results_are_fetched_once_and_in_order():
    losses = iter([3.0, 1.0, 2.0])

    def gradient(theta, _):
        return SimpleNamespace(loss=next(losses), gradient=theta)

    steps = HostSteps(gradient, START.copy(), SGD(), noise)
    assert steps.full and steps.fetch() == []
    steps.step(None), steps.step(None)
    assert [result.loss for result in steps.fetch()] == [3.0, 1.0]
    steps.step(None)
    assert [result.loss for result in steps.fetch()] == [2.0]
    assert steps.fetch() == []


def test_columns_are_numbers_of_the_gradients_result():
    columns = ["size", "loss"]
    steps = HostSteps(with_size, START.copy(), SGD(), noise, columns)
    steps.step(np.float32([1, -2, 3]))
    assert steps.fetch() == [StepResult(0.0, (6.0, 0.0))]


@pytest.mark.parametrize(
    ("loss", "entry", "failure"),
    [
        (np.nan, 1.0, "the loss is nan"),
        (-np.inf, np.nan, "the loss is -inf"),
        (
            1.0,
            np.inf,
            "2 of 3 entries of the gradient are not finite (the first, at 1, is inf)",
        ),
    ],
)
def test_a_failed_step_changes_neither_theta_nor_the_optimiser(loss, entry, failure):
    def gradient(theta, _):
        return SimpleNamespace(loss=loss, gradient=np.array([1.0, entry, entry]))

    theta, optimiser = np.ones(3), Adam()
    steps = HostSteps(gradient, theta, optimiser, noise)
    steps.step(None)
    (result,) = steps.fetch()
    assert result.failure == failure
    assert theta.tolist() == [1, 1, 1] and optimiser.state()["step"] == 0


def test_a_gradient_that_raises_without_a_text_has_failed():
    def gradient(theta, _):
        raise FloatingPointError

    steps = HostSteps(gradient, np.ones(3), Adam(), noise, ["loss"])
    steps.step(None)
    (result,) = steps.fetch()
    assert result.failure == "FloatingPointError"


class Learner(Trainable):
    """The parabola as a learner."""

    def __call__(self, theta, batch):
        return parabola(theta, batch)


def test_a_learner_is_trained_here_unless_it_says_otherwise():
    learner = Learner()
    assert type(learner.training_steps(START, SGD(), noise)) is HostSteps
    assert run(gradient=learner).theta.tobytes() == run().theta.tobytes()


def test_train_takes_the_steps_of_a_learner_that_trains_elsewhere():
    """Here: steps that finish in batches of 4, as those of a device do."""

    class LateSteps(HostSteps):
        full = False

        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.waiting, self.fetches = [], []

        def step(self, batch):
            self.waiting.append(batch)
            self.full = len(self.waiting) == 4

        def fetch(self):
            self.fetches.append(len(self.waiting))
            for batch in self.waiting:
                super().step(batch)
            self.waiting, self.full = [], False
            return super().fetch()

    class Elsewhere(Learner):
        def training_steps(self, *arguments):
            self.steps = LateSteps(parabola, *arguments)
            return self.steps

        __call__ = never

    learner = Elsewhere()
    options = {"log_every": 6, "validate": np.sum, "validate_every": 5}
    late, host = run(13, gradient=learner, **options), run(13, **options)
    assert late.theta.tobytes() == host.theta.tobytes()
    assert [row[:2] for row in late.losses] == [row[:2] for row in host.losses]
    assert late.scores == host.scores
    # Full after 4; validation at 5 and 10; the log at 6 and 12; the end at 13.
    assert learner.steps.fetches == [4, 1, 1, 4, 2, 1]


def test_one_process_has_all_tasks_and_exchanges_nothing():
    rows = np.float32([[1, 2], [2, 4]])
    with ONE_PROCESS as ranks:
        assert (ranks.rank, ranks.size, ranks.exact) == (0, 1, False)
        assert ranks.agree() == 0 and ranks.agree(2) == 2
        assert rows[ranks.share(2)].tolist() == rows.tolist()
        assert ranks.gather(rows) is rows and ranks.sampler(noise) is noise
        assert ranks.mean(rows).tolist() == [1.5, 3.0]
        assert ranks.mean(rows).dtype == np.float64
        assert ranks.for_tasks(1) is ranks and ranks.threads() is None
        ranks.check_same(theta=rows)
        ranks.leave(1)
    with pytest.raises(ValueError, match="^told to nobody"), ONE_PROCESS:
        raise ValueError("told to nobody")
