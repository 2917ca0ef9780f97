"""Several ranks: results with the bits of one process, and runs that end together."""

import json
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import tinymaml as tm
from tests.support import mpi
from tests.support.policy_problems import small_learner
from tests.support.rank_scenarios import FAULT_AT, episodes, run_training
from tests.support.training import contents, read_rows, untimed_csv
from tinymaml.tasks import sinusoid
from tinymaml.tasks.batch import block_bounds
from tinymaml.training import distributed
from tinymaml.training.checkpoint import load_checkpoint
from tinymaml.training.distributed import (
    Distributed,
    DistributedBackend,
    Ranks,
    launched,
)
from tinymaml.training.optim import SGD
from tinymaml.training.steps import ONE_PROCESS, OneProcess, Trainable
from tinymaml.training.train import train

needs_mpi = pytest.mark.skipif(
    bool(mpi.what_is_missing()), reason=mpi.what_is_missing() or "-"
)
ENDS_WITHIN = 10 + 20  # seconds after a fault: what is promised, and a busy computer


@pytest.fixture(scope="module", params=[2, 3])
def compared(request, tmp_path_factory):
    """What the ranks found beside one process, in the scenario `same`."""
    folder = tmp_path_factory.mktemp(f"same{request.param}")
    status, text = mpi.finish(mpi.scenario(request.param, "same", folder))
    assert status == 0, text
    reports = mpi.reports(folder, request.param)
    assert all(report == reports[0] for report in reports)
    assert reports[0].pop("size") == request.param
    assert reports[0].pop("threads") == [9 // request.param, 2]
    return reports[0]


@needs_mpi
def test_exact_results_have_the_bits_of_one_process(compared):
    exact = {name: found for name, found in compared.items() if "exact" in name}
    assert len(exact) == 14 and set(exact.values()) == {"same"}, exact


@needs_mpi
def test_other_results_agree_up_to_rounding(compared):
    fast = {name: found for name, found in compared.items() if "fast" in name}
    errors = [error for error in fast.values() if error != "same"]
    assert len(fast) == 14 and max(errors) < 1e-5
    # The order of a sum does change its bits, so `exact` is no empty promise.
    assert fast["25 tasks, fast"] != "same" and fast["parts, fast"] != "same"


def alone(folder, iterations):
    """The training of the scenario in one process: all of its checkpoint, its log."""
    run_training(folder, iterations)
    path = Path(folder, "c.npz")
    return contents(path), untimed_csv(path.with_name("log.csv"))


@needs_mpi
def test_another_number_of_ranks_continues_to_the_same_bits(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir(), parts.mkdir()
    for ranks, iterations in ((2, 4), (3, 9)):
        process = mpi.scenario(ranks, "train", parts, iterations)
        status, text = mpi.finish(process)
        assert status == 0, text
    assert [report["resumed"] for report in mpi.reports(parts, 3)] == [True] * 3
    expected, log = alone(whole, 9)
    assert contents(parts / "c.npz") == expected
    assert untimed_csv(parts / "log.csv") == log
    # The first rank alone has written, and nothing is left behind.
    files = {path.name for path in parts.iterdir()}
    assert files == {"c.npz", "log.csv", *(f"rank{rank}.json" for rank in range(3))}


def check_resumable(folder, iteration):
    """The checkpoint is that of this iteration, and continues to one process's bits."""
    assert load_checkpoint(folder / "c.npz").state["iteration"] == iteration
    for path in folder.glob("rank*.json"):
        path.unlink()
    whole = folder / "whole"
    whole.mkdir()
    resumed, _ = alone(folder, 9)
    assert resumed == alone(whole, 9)[0]


@needs_mpi
@pytest.mark.parametrize("faulty", [0, 1, "all"])
def test_an_exception_on_a_rank_ends_all_after_the_same_iteration(tmp_path, faulty):
    process = mpi.scenario(2, "train", tmp_path, 20, "sample", faulty)
    status, text = mpi.finish(process)
    assert status not in (0, None)
    assert "ValueError: no such task" in text
    for rank, report in enumerate(mpi.reports(tmp_path, 2)):
        if faulty in (rank, "all"):
            assert report["error"] == "ValueError"
        else:
            assert report["error"] == "RankError"
            expected = f"rank {faulty} of 2 failed: ValueError: no such task"
            assert report["message"] == expected
    # Iteration 5 failed; the checkpoint of every 100 iterations was far away.
    check_resumable(tmp_path, FAULT_AT - 1)


@needs_mpi
def test_a_rank_that_fails_ends_nothing_before_the_first_has_saved(tmp_path):
    # With -m mpi4py an exception that leaves the program of a rank ends all ranks.
    program = "-m", "mpi4py", "-m", "tests.support.rank_scenarios", "bare", tmp_path
    status, text = mpi.finish(mpi.start(2, *program, 20, "sample", 1))
    assert status not in (0, None)
    assert "ValueError: no such task" in text
    check_resumable(tmp_path, FAULT_AT - 1)


@needs_mpi
def test_an_exception_in_the_validation_of_a_rank_ends_all(tmp_path):
    process = mpi.scenario(3, "train", tmp_path, 20, "validate", 2)
    status, text = mpi.finish(process)
    assert status not in (0, None), text
    errors = [report["error"] for report in mpi.reports(tmp_path, 3)]
    assert errors == ["RankError", "RankError", "OSError"]
    check_resumable(tmp_path, FAULT_AT)


@needs_mpi
def test_a_loss_that_is_not_finite_on_a_rank_ends_all_at_that_iteration(tmp_path):
    process = mpi.scenario(2, "train", tmp_path, 20, "nan", 1)
    status, text = mpi.finish(process)
    assert status not in (0, None), text
    reports = mpi.reports(tmp_path, 2)
    assert [r["error"] for r in reports] == ["NonFiniteLossError"] * 2
    assert [r["iteration"] for r in reports] == [FAULT_AT] * 2


@needs_mpi
def test_a_rank_that_wants_to_stop_stops_all(tmp_path):
    status, text = mpi.finish(mpi.scenario(3, "train", tmp_path, 20, "stop", 2))
    assert status == 0, text
    ended = [(r["iteration"], r["interrupted"]) for r in mpi.reports(tmp_path, 3)]
    assert ended == [(FAULT_AT, False)] * 3
    check_resumable(tmp_path, FAULT_AT)


@needs_mpi
def test_sigterm_to_one_rank_saves_and_ends_all(tmp_path):
    status, text = mpi.finish(mpi.scenario(2, "train", tmp_path, 20, "signal", 1))
    assert status not in (0, None), text
    ended = [(r["iteration"], r["interrupted"]) for r in mpi.reports(tmp_path, 2)]
    assert ended == [(FAULT_AT, True)] * 2
    check_resumable(tmp_path, FAULT_AT)


@needs_mpi
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_to_mpirun_saves(tmp_path, number):
    process = mpi.scenario(2, "train", tmp_path, 10**6, "slow")
    deadline = time.monotonic() + mpi.SECONDS
    log = tmp_path / "log.csv"
    while not log.exists() or log.read_text().count("\n") < 4:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    status, text = mpi.finish(process, ENDS_WITHIN)
    assert status not in (0, None), text
    saved = load_checkpoint(tmp_path / "c.npz").state["iteration"]
    assert saved > 0
    ended = [r["iteration"] for r in mpi.reports(tmp_path, 2) if r is not None]
    assert ended or number != signal.SIGTERM
    assert all(iteration == saved for iteration in ended)


@needs_mpi
def test_a_rank_that_is_killed_ends_all_and_leaves_the_checkpoint_whole(tmp_path):
    status, text = mpi.finish(mpi.scenario(2, "train", tmp_path, 3))
    assert status == 0, text
    before = (tmp_path / "c.npz").read_bytes()
    status, text = mpi.finish(mpi.scenario(2, "train", tmp_path, 20, "kill", 1))
    assert status not in (0, None)
    assert time.time() - (tmp_path / "killed").stat().st_mtime < 10
    assert (tmp_path / "c.npz").read_bytes() == before
    check_resumable(tmp_path, 3)


@needs_mpi
def test_ranks_that_do_not_start_alike_are_refused(tmp_path):
    status, text = mpi.finish(mpi.scenario(2, "train", tmp_path, 20, "start"))
    assert status not in (0, None), text
    for report in mpi.reports(tmp_path, 2):
        expected = "theta: expected the same on every rank, got another on some"
        assert (report["error"], report["message"]) == ("ValueError", expected)


@needs_mpi
def test_a_rank_that_fails_outside_of_a_training_ends_the_others(tmp_path):
    status, text = mpi.finish(mpi.scenario(2, "train", tmp_path, 3, "outside"))
    assert status not in (0, None)
    assert "ValueError: after the training" in text


@needs_mpi
@pytest.mark.parametrize(
    "options",
    [
        ["sinusoid", "--fast", "--iterations", 4, "--order", 2],
        ["omniglot", "--fast", "--iterations", 2, "--standin", "--recipe", "fc-5w1s"],
        # It shares its training and its test with navigation, which takes longer.
        ["locomotion", "--fast", "--iterations", 1, "--methods", "exact"],
    ],
    ids=lambda options: options[0],
)
def test_an_example_gives_the_bits_of_one_process(tmp_path, options):
    if options[0] == "locomotion":
        pytest.importorskip("mujoco", reason='needs pip install ".[locomotion]"')

    def files_of(folder):
        results = json.loads((folder / "results.json").read_text())
        for key in ("seconds", "command"):
            del results[key]
        names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
        theta = load_checkpoint(folder / "exact/checkpoint.npz").arrays["theta"]
        log = read_rows(folder / "exact/log.csv")
        for row in log:
            row.pop("seconds"), row.pop("physics_per_second", None)
        return results, names, log, theta.tobytes()

    options, found = [f"examples/{options[0]}.py", *options[1:]], {}
    for ranks in (1, 2):
        out = tmp_path / str(ranks)
        process = mpi.start(ranks, *options, "--exact", "--out", out)
        status, text = mpi.finish(process)
        assert status == 0, text
        assert text.count("files are in") == 1
        found[ranks] = files_of(out)
    assert found[1] == found[2]


@needs_mpi
def test_what_an_option_refuses_is_said_once_by_the_first_rank(tmp_path):
    tmp_path.joinpath("results.json").touch()
    options = ["examples/sinusoid.py", "--fast", "--out", tmp_path]
    status, text = mpi.finish(mpi.start(2, *options))
    assert status not in (0, None)
    assert text.count("holds an earlier run") == 1, text


# --- without MPI ----------------------------------------------------------------------


def test_one_process_is_no_rank(monkeypatch):
    launched.cache_clear()
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "1")
    assert launched() is ONE_PROCESS
    launched.cache_clear()


def test_a_missing_mpi4py_is_said_in_one_line(monkeypatch):
    launched.cache_clear()
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setitem(__import__("sys").modules, "mpi4py", None)
    with pytest.raises(ImportError, match="^several processes need mpi4py and MPI: "):
        launched()
    launched.cache_clear()


def test_an_mpi_that_the_launcher_is_not_of_is_refused(monkeypatch):
    launched.cache_clear()
    world = SimpleNamespace(Get_size=lambda: 1)
    module = SimpleNamespace(MPI=SimpleNamespace(COMM_WORLD=world))
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    monkeypatch.setitem(__import__("sys").modules, "mpi4py", module)
    with pytest.raises(ImportError, match="^8 processes were started, but mpi4py sees"):
        launched()
    launched.cache_clear()


@pytest.mark.parametrize("comm", [None, 4, "world"])
def test_a_communicator_must_be_one(comm):
    with pytest.raises(TypeError, match="^comm: expected a communicator such as MPI"):
        Ranks(comm)


def test_exact_needs_sums_of_blocks():
    ranks = SimpleNamespace(exact=True)
    with pytest.raises(ValueError, match="^exact: expected backend numba, got numpy"):
        DistributedBackend(tm.get_backend("numpy"), ranks)


def test_exact_that_is_refused_changes_nothing_for_others():
    network = tm.MLP([1, 4, 1])

    def loss(theta, x, y):
        return tm.squared_error(network(theta, x), y)

    def learner(backend, exact=False):
        return Distributed(tm.MAML(loss, backend=backend), ranks, exact)

    ranks = ranks_of_one(size=1, rank=0, exact=False)
    ranks.agree, ranks.add = lambda: None, lambda numbers: None
    ranks.add_in_order = lambda rows, blocks: rows.sum(axis=0)
    plain = learner("numpy")
    with pytest.raises(ValueError, match="^exact: expected backend numba, got numpy"):
        learner("numpy", exact=True)
    assert ranks.exact is False
    exact = learner("numba", exact=True)
    assert ranks.exact is True
    theta = network.init(np.random.default_rng(0))
    tasks = sinusoid.sample_tasks(np.random.default_rng(1), 40)
    gradients = [m(theta, tasks).gradient for m in (plain, exact)]
    np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-5)


def test_what_is_distributed_already_or_has_nothing_to_share_is_refused():
    ranks = ranks_of_one(size=2, rank=0, exact=False)
    backend = DistributedBackend(tm.get_backend("numpy"), ranks)
    with pytest.raises(ValueError, match="^backend: expected not distributed, got Dis"):
        Distributed(tm.MAML(tm.squared_error, backend=backend), ranks)
    policy = Distributed(small_learner("numpy"), ranks)
    with pytest.raises(ValueError, match="^learner: expected one of a single process"):
        Distributed(policy, ranks)
    with pytest.raises(ValueError, match="^tape: expected an input per task"):
        tm.function(lambda theta: (theta * theta).sum(), backend)(np.ones(2))


@pytest.mark.parametrize("tasks", [1, 2, 7])
def test_a_rank_without_a_task_looks_up_no_image(tasks):
    sample = episodes(tasks)
    whole = sample(np.random.default_rng(0))
    total = [np.zeros_like(array) for array in whole]
    for rank in range(3):
        ranks = ranks_of_one(size=3, rank=rank, exact=True)
        own = ranks.sampler(sample)(np.random.default_rng(0))
        for array, part in zip(total, own, strict=True):
            array += part
    for array, expected in zip(total, whole, strict=True):
        np.testing.assert_array_equal(array, expected)


def test_a_timer_ends_with_the_wait_that_ctrl_c_breaks_off(monkeypatch):
    ranks, calls = ranks_of_one(size=2, rank=0, exact=False), []
    ranks._told = None

    def interrupted(request, error=None):
        raise KeyboardInterrupt

    class Timer:
        def __init__(self, seconds, function, arguments):
            assert function == ranks._abort

        def start(self):
            calls.append("start")

        def cancel(self):
            calls.append("cancel")

    ranks._exchange = interrupted
    monkeypatch.setattr(distributed, "Timer", Timer)
    with pytest.raises(KeyboardInterrupt), ranks:
        raise ValueError("mine")
    assert calls == ["start", "cancel"]


def ranks_of_one(size, rank, exact):
    """Ranks without a communicator, to ask them for shares."""
    ranks = Ranks.__new__(Ranks)
    ranks.rank, ranks.size, ranks.exact = rank, size, exact
    return ranks


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("tasks", [1, 5, 31, 32, 33, 40, 1000])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 32, 50])
def test_shares_are_all_tasks_once_and_in_exact_mode_whole_blocks(tasks, size, exact):
    shares = [ranks_of_one(size, rank, exact).share(tasks) for rank in range(size)]
    covered = [task for share in shares for task in range(share.start, share.stop)]
    assert covered == list(range(tasks))
    if exact:
        bounds = {*block_bounds(tasks)}
        assert all({share.start, share.stop} <= bounds for share in shares)
    counts = [share.stop - share.start for share in shares]
    if not exact or tasks <= 32:
        assert max(counts) - min(counts) <= 1
    serves = ranks_of_one(size, 0, exact).for_tasks(tasks)
    assert (serves is ONE_PROCESS) == (min(counts) == 0)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_update_that_ctrl_c_breaks_off_is_not_saved(tmp_path, error):
    class Two(OneProcess):
        size = 2

    class Parabola(Trainable):
        ranks = Two()

        def __call__(self, theta, batch):
            if error is ValueError and batch == 3:
                raise error
            return SimpleNamespace(loss=theta @ theta, gradient=2 * theta)

    class Broken(SGD):
        def update(self, theta, gradient):
            super().update(theta, gradient)
            if self.state()["step"] == 3:
                raise KeyboardInterrupt  # a second Ctrl-C, when theta has changed

    out, batches = tmp_path / "c.npz", iter(range(1, 9))
    with pytest.raises(error):
        train(
            Parabola(),
            np.ones(2),
            lambda rng: next(batches),
            iterations=8,
            optimiser=Broken(0.25),
            rng=np.random.default_rng(0),
            out=out,
            progress=False,
        )
    # An exception in a gradient leaves all iterations before it whole.
    assert out.exists() == (error is ValueError)
    if out.exists():
        assert load_checkpoint(out).arrays["theta"].tolist() == [0.25, 0.25]


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_first_rank_calls_after_and_a_failed_score_saves_nothing(
    tmp_path, rank
):
    class Two(OneProcess):
        size = 2

    class Parabola(Trainable):
        ranks = Two()

        def __call__(self, theta, batch):
            return SimpleNamespace(loss=theta @ theta, gradient=2 * theta)

    def validate(theta):
        if len(scored) == 2:
            raise ValueError
        scored.append(theta)
        return 0.0

    Parabola.ranks.rank = rank
    scored, seen, out = [], [], tmp_path / "c.npz"
    with pytest.raises(ValueError):
        train(
            Parabola(),
            np.ones(2),
            lambda rng: None,
            iterations=8,
            optimiser=SGD(0.25),
            rng=np.random.default_rng(0),
            out=out,
            progress=False,
            validate=validate,
            validate_every=1,
            after=lambda run: seen.append(run.iteration),
        )
    assert seen == ([1, 2] if rank == 0 else [])
    # theta of iteration 3 without its score is not what a resumed run would have.
    assert not out.exists()


def test_a_learner_over_one_process_is_the_learner():
    maml = tm.MAML(lambda t, x, y: tm.squared_error(x * t, y), 0.25, backend="numpy")
    learner = Distributed(maml, ONE_PROCESS)
    one = np.ones((1, 1, 1))
    result = learner(np.zeros(1), tm.Tasks(one, one, one, one))
    assert (result.loss, result.gradient.tolist()) == (0.25, [-0.5])
    assert learner.alpha == 0.25 and learner.ranks is ONE_PROCESS
    assert "DistributedBackend" not in repr(maml) and maml.ranks is ONE_PROCESS
    learner.alpha = 0.5  # of the copy that computes: theta' = 1, so it leaves no error
    assert (learner.alpha, maml.alpha) == (0.5, 0.25)
    assert learner(np.zeros(1), tm.Tasks(one, one, one, one)).loss == 0
