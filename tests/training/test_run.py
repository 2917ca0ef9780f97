"""The state of a run: its checkpoints, the sums of its log, its best theta, faults."""

import numpy as np
import pytest

from tests.support.signed_checkpoints import BIT_GENERATORS, run_campaign
from tests.support.training import (
    START,
    closeness,
    contents,
    files_below,
    never,
    run,
    with_fault,
    with_size,
)
from tinymaml.training.checkpoint import (
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
)
from tinymaml.training.console import ProgressBar
from tinymaml.training.optim import SGD, Adam
from tinymaml.training.run import NonFiniteLossError, TrainingRun
from tinymaml.training.steps import StepResult


def new_run(**fields):
    rng = np.random.default_rng(0)
    return TrainingRun(START.copy(), SGD(0.1), rng, {}, **fields)


class Results:
    """Steps of which only the results matter."""

    def __init__(self, *results):
        self.results = results

    def fetch(self):
        return list(self.results)


# --- results of steps -----------------------------------------------------------------


def test_a_row_of_the_log_has_the_means_of_all_steps_fetched_for_it():
    state, bar = new_run(columns=("size",), iteration=3), ProgressBar(False, "", 0, 9)
    state.fetch(Results(*(StepResult(i, (10.0 * i,)) for i in (1.0, 2.0, 6.0))), bar)
    assert state.close_row() == (3, 3.0, 0.0, (30.0,))
    state.iteration = 4
    state.fetch(Results(StepResult(5.0, (7.0,))), bar)
    state.fetch(Results(), bar)
    assert state.close_row() == (4, 5.0, 0.0, (7.0,))
    assert [row.iteration for row in state.rows] == [3, 4]


def test_a_failed_step_among_many_is_found_by_its_number():
    state = new_run(iteration=12)
    nan = StepResult(np.nan, failure="the loss is bad")
    with pytest.raises(
        NonFiniteLossError, match="^iteration 11: the loss is bad; "
    ) as e:
        steps = Results(StepResult(1.0), StepResult(2.0), nan, nan)
        state.fetch(steps, ProgressBar(False, "", 0, 9))
    assert e.value.iteration == 11
    assert (state.loss_sum, state.loss_count) == (3.0, 2)


def test_the_best_theta_is_a_copy_of_that_with_the_first_highest_score():
    state = new_run()
    for iteration, score in enumerate([np.nan, 1.0, np.nan, 3.0, 3.0, 2.0], start=1):
        state.iteration = iteration
        state.theta[:] = iteration
        state.note_score(score)
    assert state.best.tolist() == [4, 4, 4]
    np.testing.assert_array_equal(
        [s for _, s in state.scores], [np.nan, 1, np.nan, 3, 3, 2]
    )


# --- resuming -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": {"alpha": 0.1}}, r"config alpha = 0\.1, but .*c\.npz .* 0\.01"),
        ({"config": {}}, "config alpha = 'nothing', but .* 0.01"),
        ({"config": {"alpha": 0.01, "order": 1}}, "config order = 1, but .* 'nothing'"),
        ({"theta": np.zeros(4, np.float32)}, r"parameters = .*\(4,\).*, but .*\(3,\)"),
        ({"theta": np.zeros(3)}, "parameters = 'float64 .*, but .*float32"),
        ({"optimiser": SGD()}, "optimiser name = 'SGD', but .* 'Adam'"),
        ({"optimiser": Adam(0.2)}, r"optimiser learning_rate = 0\.2, but .* 0\.1"),
        (
            {"rng": np.random.Generator(np.random.MT19937())},
            "random generator = 'MT19937', but .* 'PCG64'",
        ),
    ],
)
def test_resume_refuses_the_checkpoint_of_another_run_naming_the_difference(
    tmp_path, options, message
):
    out = tmp_path / "c.npz"
    run(3, out=out, config={"alpha": 0.01})
    before = files_below(tmp_path)
    options = {"config": {"alpha": 0.01}, "rng": np.random.default_rng(8), **options}
    rng_before = repr(options["rng"].bit_generator.state)
    with pytest.raises(CheckpointError, match=f"^resume: expected .* with {message}"):
        run(9, sample=never, resume=out, log=tmp_path / "log.csv", **options)
    assert files_below(tmp_path) == before
    assert repr(options["rng"].bit_generator.state) == rng_before


def test_only_the_iterations_of_a_configuration_may_differ(tmp_path):
    out = tmp_path / "c.npz"
    config = {"iterations": 3, "shape": (1, 40), "inner": {"iterations": 1}}
    run(3, out=out, config=config)
    run(5, resume=out, config={**config, "iterations": 5})
    with pytest.raises(CheckpointError, match="config inner"):
        run(5, resume=out, config={**config, "inner": {"iterations": 2}})


@pytest.mark.parametrize("missing", ["theta", "log", "rng", "loss_sum", "optimiser"])
def test_resume_refuses_a_checkpoint_that_is_no_training_run(tmp_path, missing):
    out = tmp_path / "c.npz"
    run(3, out=out)
    whole = load_checkpoint(out)
    arrays = {name: a for name, a in whole.arrays.items() if name != missing}
    state = {key: value for key, value in whole.state.items() if key != missing}
    save_checkpoint(out, arrays, whole.config, state)
    with pytest.raises(CheckpointError, match=f"^resume: .* has no '{missing}'"):
        run(5, sample=never, resume=out)


@pytest.mark.parametrize("bits", BIT_GENERATORS)
def test_what_is_signed_but_not_that_of_a_run_is_refused_before_a_step(bits):
    start = BIT_GENERATORS.index(bits) * 25
    assert run_campaign(25, seed=3, first=start)["one error"] > 10


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("iteration", value) for value in ("x", -1, 2.5, True, 2, 3 + 1, None)),
        *(("seconds", value) for value in (None, "1", -1.0, True)),
        *(("loss_count", value) for value in (-4, 0, 2.0)),
        *(("rng", value) for value in ("x", {"bit_generator": "PCG64"}, [], None)),
        *(("optimiser", value) for value in ([], None, "Adam")),
        *(("sums", value) for value in ([1.0], None, {})),
        *(("theta", value) for value in (np.full(3, np.nan), np.zeros(3, complex))),
        *(("log", value) for value in (np.array(1.0), np.full((1, 3), np.nan))),
        ("log", np.array([[9.0, 1.0, 1.0]])),
        ("best", np.zeros(9, np.float32)),
        ("scores", np.zeros((1, 2))),
        ("optimiser/first_moment", np.zeros(9, np.float32)),
        ("optimiser/step", np.array(2**62)),
    ],
)
def test_contents_of_a_checkpoint_are_checked(tmp_path, key, value):
    out = tmp_path / "c.npz"
    run(3, out=out, log_every=2)
    whole = load_checkpoint(out)
    (whole.arrays if isinstance(value, np.ndarray) else whole.state)[key] = value
    save_checkpoint(out, whole.arrays, whole.config, whole.state)
    with pytest.raises(CheckpointError, match="^resume: expected ") as caught:
        run(5, sample=never, resume=out, log_every=2)
    assert "c.npz" in str(caught.value) and "\n" not in str(caught.value)


def test_an_index_with_which_a_generator_would_read_foreign_memory_is_refused(tmp_path):
    out = tmp_path / "c.npz"
    for bits, key in ((np.random.MT19937, "pos"), (np.random.Philox, "buffer_pos")):
        run(3, out=out, rng=np.random.Generator(bits(0)))
        whole = load_checkpoint(out)
        state = whole.state["rng"]
        (state if key in state else state["state"])[key] = 10**6
        save_checkpoint(out, whole.arrays, whole.config, whole.state)
        with pytest.raises(CheckpointError, match="an index of the random generator"):
            run(5, sample=never, resume=out, rng=np.random.Generator(bits(0)))


def test_a_sampler_that_spawns_generators_goes_on_with_the_next_ones(tmp_path):
    out, drawn = tmp_path / "c.npz", []

    def sample(rng):
        drawn.append(rng.spawn(1)[0].normal(size=3).astype(np.float32))
        return drawn[-1]

    whole = run(8, sample=sample, rng=np.random.default_rng([3, 4]))
    expected, drawn[:] = [*drawn], []
    run(4, sample=sample, rng=np.random.default_rng([3, 4]), out=out)
    resumed = run(8, sample=sample, rng=np.random.default_rng(99), resume=out)
    assert [d.tolist() for d in drawn] == [e.tolist() for e in expected]
    assert resumed.theta.tobytes() == whole.theta.tobytes()


def test_a_checkpoint_that_is_refused_leaves_the_generator_alone(tmp_path):
    out, rng = tmp_path / "c.npz", np.random.default_rng(7)
    run(3, out=out)
    before = repr(rng.bit_generator.state), rng.bit_generator.seed_seq.state
    with pytest.raises(OSError, match="log: "):
        run(5, resume=out, rng=rng, log=tmp_path)
    assert (repr(rng.bit_generator.state), rng.bit_generator.seed_seq.state) == before


def test_a_checkpoint_of_an_older_version_has_no_seed_sequence(tmp_path):
    out = tmp_path / "c.npz"
    run(3, out=out)
    whole = load_checkpoint(out)
    del whole.state["seeds"], whole.state["sums"]
    save_checkpoint(out, whole.arrays, whole.config, whole.state)
    assert run(7, resume=out).theta.tobytes() == run(7).theta.tobytes()


def test_further_columns_survive_a_resume_and_must_be_the_same(tmp_path):
    options = {"gradient": with_size, "columns": ["size"], "log_every": 2}
    whole = run(6, out=tmp_path / "whole.npz", **options)
    run(3, out=tmp_path / "half.npz", **options)
    half = tmp_path / "half.npz"
    both = run(6, out=tmp_path / "both.npz", resume=half, **options)
    assert [row.more for row in both.losses] == [row.more for row in whole.losses]
    assert contents(tmp_path / "both.npz") == contents(tmp_path / "whole.npz")
    with pytest.raises(CheckpointError, match="width of the log = 3"):
        run(6, resume=half)
    other = {**options, "columns": ["loss"]}
    with pytest.raises(CheckpointError, match="columns of the log = .'loss'.*'size'"):
        run(6, resume=half, **other)
    # Older versions did not save the names.
    older = load_checkpoint(half)
    del older.state["columns"]
    save_checkpoint(half, older.arrays, older.config, older.state)
    run(6, out=tmp_path / "both.npz", resume=half, **options)
    assert contents(tmp_path / "both.npz") == contents(tmp_path / "whole.npz")


@pytest.mark.parametrize("size", [np.nan, np.inf, -np.inf])
def test_a_diagnostic_that_is_not_finite_ends_no_training(tmp_path, size):
    def with_fault_in_size(theta, target):
        result = with_size(theta, target)
        result.size = size
        return result

    options = {"gradient": with_fault_in_size, "columns": ["size"], "log_every": 4}
    whole = run(6, **options)
    run(3, out=tmp_path / "half.npz", **options)
    both = run(6, resume=tmp_path / "half.npz", **options)
    assert both.theta.tobytes() == whole.theta.tobytes()
    for result in (whole, both):
        np.testing.assert_array_equal(result.losses[0].more, [size])


# --- faults ---------------------------------------------------------------------------


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


# --- checkpoints written before there was validation, or without it -------------------


def test_a_checkpoint_without_scores_is_what_it_was_before(tmp_path):
    run(4, out=tmp_path / "c.npz")
    arrays = load_checkpoint(tmp_path / "c.npz").arrays
    assert {"theta", "log"} <= arrays.keys()
    assert not arrays.keys() & {"best", "scores"}


def test_a_run_resumed_from_a_checkpoint_without_scores_starts_its_own(tmp_path):
    out, options = tmp_path / "c.npz", {"validate": closeness, "validate_every": 2}
    run(4, out=out)
    resumed, whole = run(9, resume=out, **options), run(9, **options)
    assert resumed.theta.tobytes() == whole.theta.tobytes()
    assert resumed.scores == whole.scores[2:]
    assert [iteration for iteration, _ in resumed.scores] == [6, 8]
    assert closeness(resumed.best) == max(score for _, score in resumed.scores)


def test_scores_of_a_checkpoint_are_kept_where_the_resumed_run_makes_none(tmp_path):
    out, elsewhere = tmp_path / "c.npz", tmp_path / "other.npz"
    first = run(4, out=out, validate=closeness, validate_every=2)
    second = run(8, resume=out, out=elsewhere)
    assert second.scores == first.scores
    assert second.best.tobytes() == first.best.tobytes()
    assert load_checkpoint(elsewhere).arrays["best"].tobytes() == first.best.tobytes()


def test_optimiser_arrays_and_scores_of_a_checkpoint_are_told_apart(tmp_path):
    """What stands beside theta in the file must not reach the optimiser."""
    out, old = tmp_path / "c.npz", tmp_path / "old.npz"
    run(4, out=out, validate=closeness, validate_every=2)
    whole = load_checkpoint(out)
    fewer = {n: a for n, a in whole.arrays.items() if n not in ("best", "scores")}
    save_checkpoint(old, fewer, whole.config, whole.state)
    with_scores, without = run(8, resume=out), run(8, resume=old)
    assert with_scores.theta.tobytes() == without.theta.tobytes()
    assert with_scores.optimiser.state().keys() == without.optimiser.state().keys()
    assert without.scores == [] and without.best is None


@pytest.mark.parametrize("make", [np.random.PCG64, np.random.MT19937])
def test_a_random_state_that_is_set_again_gives_the_same_numbers_and_children(make):
    rng = np.random.Generator(make(3))
    rng.spawn(2)
    state = TrainingRun(START, SGD(), rng, {}).random_state()

    def draw():
        return [rng.normal(), rng.integers(9), rng.spawn(1)[0].normal()]

    drawn = draw()
    TrainingRun(START, SGD(), rng, {}).set_random_state(state)
    assert draw() == drawn != draw()
