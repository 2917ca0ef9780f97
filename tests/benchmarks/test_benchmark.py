"""The benchmarks measure what they say: agreement, ratios, turns, JSON, bad news.

No peer is needed: their own tests are skipped where they are not installed. No time is
judged here.
"""

import doctest
import itertools
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

# benchmarks/ is no part of the installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import common, measure, peers, sinusoid, startup, workers
from benchmarks.common import DisagreementError, Row, check_agreement

ROOT = Path(sinusoid.__file__).resolve().parents[1]
ROW_KEYS = {
    "work",
    "implementation",
    "order",
    "threads",
    "median_seconds",
    "min_seconds",
    "max_seconds",
    "peak_bytes",
    "ratio",
}
NUMPY = measure.Implementation(sinusoid.TINYMAML_NUMPY, "tinymaml", (1,))

# A benchmark of its own: its worker makes noise and answers as its name says.
SCRIPT = """
import os, sys
sys.path.insert(0, {root!r})
import numpy as np
from benchmarks import measure, workers

def build(request):
    name = request["implementation"]
    if name == measure.PEAK:
        return workers.Workload(lambda: 1.0, np.array)
    print("a library that prints")
    os.write(1, b"and one that writes to the descriptor\\n")
    if name == "crashing":
        print("the last words", file=sys.stderr, flush=True)
        os._exit(1)
    if name == "failing":
        raise RuntimeError("no C++ compiler\\nand a long trace")
    gradient = np.ones(3)
    if name == "wrong":
        gradient = gradient * 1.001
    return workers.Workload(lambda: gradient, np.asarray)

workers.serve(build)
"""


@pytest.fixture
def bench(tmp_path):
    """A benchmark whose reference is a vector of ones, run by SCRIPT."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(root=str(ROOT)))
    ones = np.ones(3)
    return measure.Bench(script, tmp_path, True, {2: ones, 1: ones}, tasks=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with the sinusoid's data."""
    folder = tmp_path_factory.mktemp("data")
    sinusoid.save_data(folder, [1, sinusoid.TASKS])
    return folder


def sinusoid_bench(folder):
    references = sinusoid.references(folder)
    script = Path(sinusoid.__file__)
    return measure.Bench(script, folder, True, references, sinusoid.TASKS)


def one(name, module="tinymaml", threads=(1,), **options):
    return measure.Implementation(name, module, threads, **options)


# --- agreement ------------------------------------------------------------------------


def test_agreement_accepts_rounding_and_returns_the_error():
    gradient = np.linspace(-1, 1, 7)
    error = check_agreement("peer", gradient * (1 + 2e-6), gradient, 1e-5)
    assert error == pytest.approx(2e-6, rel=1e-3)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda g: g * (1 + 2e-5),
        lambda g: -g,
        lambda g: np.zeros_like(g),
        lambda g: np.where(np.arange(len(g)) == 2, np.nan, g),
        lambda g: g[:-1],
        lambda g: g[::-1],
    ],
    ids=["2e-5 too long", "sign", "zero", "NaN", "shape", "another parameter order"],
)
def test_agreement_rejects_a_wrong_gradient(wrong):
    gradient = np.linspace(1, 2, 7)
    with pytest.raises(DisagreementError, match="peer: expected"):
        check_agreement("peer", wrong(gradient), gradient, 1e-5)


def test_agreement_rejects_the_first_order_gradient(data):
    references = sinusoid.references(data)
    with pytest.raises(DisagreementError, match="differs by"):
        check_agreement("first-order", references[1], references[2], 1e-5)


def test_references_are_refused_where_orders_could_not_be_told_apart(data, monkeypatch):
    monkeypatch.setattr(sinusoid, "ALPHA", 1e-9)
    with pytest.raises(DisagreementError, match="the check could not tell"):
        sinusoid.references(data)


# --- ratios and JSON ------------------------------------------------------------------


def row(implementation, threads, seconds, work="work", order=2):
    return Row(work, implementation, order, threads, seconds, seconds, seconds, None)


def test_ratio_is_median_over_the_numba_median_on_most_threads():
    rows = [
        row("tinymaml numba", 1, 4.0),
        row("tinymaml numba", 2, 2.0),
        row("JAX", 1, 5.0),
        row("tinymaml numba", 2, 10.0, order=1),
        row("JAX", 1, 5.0, order=1),
        row("JAX", 1, 5.0, work="another"),
    ]
    ratios = [filled.ratio for filled in common.with_ratios(rows)]
    assert ratios == [2.0, 1.0, 2.5, 1.0, 0.5, None]


def test_row_holds_median_and_extremes_of_the_samples():
    one = common.row_of([3.0, 1.0, 2.0, 9.0], "work", "name", 2, 1, 77)
    assert (one.median_seconds, one.min_seconds, one.max_seconds) == (2.5, 1.0, 9.0)


def test_json_has_the_schema_every_benchmark_shares(tmp_path):
    path = tmp_path / "results.json"
    machine = common.describe_machine()
    common.write_json(
        path, machine, common.with_ratios([row("tinymaml numba", 1, 4.0)])
    )
    content = json.loads(path.read_text())
    assert set(content) == {"machine", "rows"}
    assert content["machine"] == machine
    assert [set(written) for written in content["rows"]] == [ROW_KEYS]
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")
    with pytest.raises(ValueError):
        common.write_json(path, {}, [row("tinymaml numba", 1, float("nan"))])
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


# --- turns ----------------------------------------------------------------------------


class FakeWorker:
    """Answers at once with a fixed time and notes that it was asked."""

    def __init__(self, name, seconds, journal):
        self.name, self.seconds, self.journal = name, seconds, journal
        self.closed = False

    def ask(self, kind, **request):
        self.journal.append(self.name)
        return {"seconds": self.seconds}

    def close(self):
        self.closed = True


def test_every_round_times_everybody_once():
    journal = []
    fakes = [FakeWorker(name, i, journal) for i, name in enumerate("abcd")]
    samples = workers.time_interleaved(fakes, rounds=9, seconds=0.01)
    assert samples == [[i] * 9 for i in range(4)]
    turns = [journal[i : i + 4] for i in range(0, len(journal), 4)]
    assert all(sorted(turn) == [*"abcd"] for turn in turns) and len(turns) == 9


def test_rounds_have_no_fixed_order_and_are_reproducible():
    turns = [*workers.interleaved(5, 20)]
    assert len({turn[0] for turn in turns}) > 2
    assert turns == [*workers.interleaved(5, 20)]


def test_choice_is_the_fastest_variant_and_the_others_close(bench, capsys):
    implementation = one("peer", threads=(1, 2), forms=("map", "scan"))
    tried = [
        measure.Runner(
            measure.Variant(implementation, form, threads),
            FakeWorker(form, seconds, []),
        )
        for form, threads, seconds in [("map", 1, 3), ("map", 2, 1), ("scan", 1, 2)]
    ]
    chosen = measure.choose(bench, tried)
    assert str(chosen.variant) == "map, 2 threads"
    assert [candidate.worker.closed for candidate in tried] == [True, False, True]
    assert "scan, 1 thread 2,000 ms" in capsys.readouterr().out


# --- workers --------------------------------------------------------------------------


def test_batch_is_as_long_as_asked_for_and_at_least_one_call(monkeypatch):
    now, second = [0.0], 2.0**-8

    def call():
        now[0] += second

    clock = SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr(workers, "time", clock)
    assert workers.time_batch(call, 20 * second) == (second, 20)
    assert workers.time_batch(call, 0.0) == (second, 1)


@pytest.mark.parametrize(("used", "slices"), [([0, 0], 1), ([0, 1, 1, 2, 2, 2], 3)])
def test_settle_sleeps_until_nobody_computes(used, slices, monkeypatch):
    process_time, sleeps = map(float, used).__next__, []
    clock = SimpleNamespace(
        perf_counter=lambda: 0.0, process_time=process_time, sleep=sleeps.append
    )
    monkeypatch.setattr(workers, "time", clock)
    workers.settle(slice_seconds=0.5, limit=1.0)
    assert sleeps == [0.5] * slices


def test_settle_gives_up_at_its_limit(monkeypatch):
    now, used, sleeps = itertools.count(), itertools.count(), []  # always busy
    clock = SimpleNamespace(
        perf_counter=now.__next__, process_time=used.__next__, sleep=sleeps.append
    )
    monkeypatch.setattr(workers, "time", clock)
    workers.settle(slice_seconds=0.5, limit=3)
    assert sleeps == [0.5, 0.5]


def test_worker_computes_the_gradient_times_it_and_tells_its_memory(data):
    references = sinusoid.references(data)
    variant = measure.Variant(NUMPY, "", 1)
    bench = sinusoid_bench(data)
    with bench.start(1) as worker:
        reply = worker.ask("prepare", **bench.request(variant, order=2))
        timed = worker.ask("time", seconds=0.01)
    check_agreement("worker", np.array(reply["result"]), references[2], 1e-5)
    assert timed["seconds"] > 0 and timed["calls"] >= 1
    assert timed["peak_bytes"] is None or timed["peak_bytes"] > 10e6


def test_worker_reports_failures_with_their_reason(bench):
    with bench.start(1) as worker:
        variant = measure.Variant(one("failing"), "", 1)
        with pytest.raises(
            workers.WorkerError, match="^RuntimeError: no C.. compiler$"
        ):
            worker.ask("prepare", **bench.request(variant, order=2))
        with pytest.raises(workers.WorkerError, match="nothing is prepared"):
            worker.ask("time", seconds=0.01)
        variant = measure.Variant(one("crashing"), "", 1)
        with pytest.raises(workers.WorkerError, match="ended: the last words"):
            worker.ask("prepare", **bench.request(variant, order=2))
        with pytest.raises(workers.WorkerError, match="the last words"):
            worker.ask("memory")


# --- what is compared -----------------------------------------------------------------


def test_missing_peer_is_skipped_with_its_reason(capsys):
    competitors = measure.available([one("ours"), one("theirs", "no_such_module")])
    assert [implementation.name for implementation in competitors] == ["ours"]
    assert "skipped: theirs: no_such_module is not installed" in capsys.readouterr().out


def test_failing_peer_is_skipped_and_the_rest_is_measured(bench, capsys):
    compared = [one("right"), one("failing", "peer"), one("crashing", "peer")]
    rows, speeds = measure.measure(bench, compared, "work", order=2)
    assert [one.implementation for one in rows] == ["right"]
    assert set(speeds) == {1}
    out = capsys.readouterr().out
    assert "skipped: failing (1 thread, order 2, float32): RuntimeError: no C++" in out
    assert "skipped: crashing" in out and "1 gradients agree" in out


def test_peer_that_fails_in_float64_is_not_timed(bench, capsys):
    bench.quick = False
    twice = one("right", "peer", forms=("", "other"))
    compared = [one("right"), one("failing", "peer"), one("crashing", "peer"), twice]
    assert measure.check_float64(bench, compared) == [compared[0], twice]
    out = capsys.readouterr().out
    assert "skipped: failing (1 thread, order 2, float64): RuntimeError" in out
    assert "skipped: crashing" in out and "float64: 4 gradients agree" in out


def test_form_that_fails_in_float64_is_not_timed(bench, monkeypatch):
    def works(bench, implementation, form):
        bench.errors.append(0.0)
        return form != "bad"

    monkeypatch.setattr(measure, "works_in_float64", works)
    bench.quick = False
    peer = one("right", "peer", forms=("bad", "good"))
    rest = [one("right", "peer", forms=("good",))]
    assert measure.check_float64(bench, [peer], every_form=True) == rest
    assert measure.check_float64(bench, [peer]) == []  # nothing of it is checked
    bench.errors.append(0.0)
    bench.quick = True
    assert measure.check_float64(bench, [peer]) == [peer]


def test_failure_of_tinymaml_is_not_skipped(bench):
    with pytest.raises(workers.WorkerError):
        measure.measure(bench, [one("failing")], "work", order=2)


def test_peer_with_a_wrong_gradient_ends_the_benchmark_before_any_time(bench):
    compared = [one("right"), one("wrong", "peer")]
    with pytest.raises(DisagreementError, match="wrong .1 thread, order 2, float32."):
        measure.measure(bench, compared, "work", order=2)
    with pytest.raises(DisagreementError, match="float64"):
        bench.quick = False
        measure.check_float64(bench, compared)


def test_scaling_has_a_row_for_every_number_of_tasks(bench):
    rows = measure.measure_scaling(
        bench, [one("right")], [1, 2], "{} tasks".format, order=2
    )
    assert [one.work for one in rows] == ["1 tasks", "2 tasks"]
    with pytest.raises(DisagreementError, match="wrong .1 thread, 1 tasks."):
        measure.measure_scaling(
            bench, [one("right"), one("wrong")], [1], "{} tasks".format, order=2
        )


def test_start_up_has_a_cold_and_a_warm_row(bench):
    variant = measure.Variant(one("right"), "", 1)
    rows = startup.measure_start(bench, [variant], "work", order=2)
    assert [one.work for one in rows] == ["work, cold start", "work, warm start"]
    assert all(one.median_seconds > 0 for one in rows)


def test_a_peer_that_fails_in_later_tables_is_skipped_too(bench, capsys):
    compared = [one("right"), one("failing", "peer")]
    rows = measure.measure_scaling(bench, compared, [1], "{} tasks".format, order=2)
    assert [one.implementation for one in rows] == ["right"]
    assert (
        "skipped: failing (1 thread, 1 tasks): RuntimeError" in capsys.readouterr().out
    )
    variants = [measure.Variant(one, "", 1) for one in compared]
    rows = startup.measure_start(bench, variants, "work", order=2)
    assert {one.implementation for one in rows} == {"right"}
    out, _ = capsys.readouterr()
    assert "skipped: failing (1 thread, cold start): RuntimeError" in out
    assert out.count("skipped") == 1


def test_json_goes_where_a_link_leads(tmp_path):
    (tmp_path / "link.json").symlink_to(tmp_path / "there.json")
    common.write_json(common.output_file(str(tmp_path / "link.json")), {}, [])
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "there.json").read_text()) == {
        "machine": {},
        "rows": [],
    }


@pytest.mark.slow
@pytest.mark.parametrize("module", ["torch", "jax"])
def test_peers_compute_the_same_gradients_in_float64(data, module):
    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    bench = sinusoid_bench(data)
    bench.quick = False
    forms = {"torch": peers.FORMS, "jax": (peers.FORMS[1], "scan")}[module]
    name = {"torch": sinusoid.VMAP, "jax": sinusoid.JAX_VMAP}[module]
    compared = [one(name, module, forms=(form,)) for form in forms]
    if module == "torch":
        compared.append(one(sinusoid.LOOP, module))
    measure.check_float64(bench, compared)


# --- the command line -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--threads", "0"], "argument --threads: expected a whole number >= 1"),
        (["--json", "no/such/folder/file.json"], "argument --json: cannot write"),
        (["--json", "."], "argument --json: expected a file, got the folder"),
        (["--json", "/dev/null"], "argument --json: expected a file, got the device"),
        (["--peers", "tensorflow"], "argument --peers: invalid choice"),
    ],
)
def test_bad_options_are_refused_at_once(arguments, complaint, capsys):
    with pytest.raises(SystemExit):
        common.parser_of("A benchmark.").parse_args(arguments)
    assert complaint in capsys.readouterr().err


def test_peers_left_out_are_named(capsys):
    competitors = sinusoid.implementations(2, chosen_peers=[], quick=True)
    assert {implementation.module for implementation in competitors} == {"tinymaml"}
    assert "skipped: JAX jit + vmap: left out by --peers" in capsys.readouterr().out


def test_examples_in_the_docstrings_are_right():
    for module in (common, workers):
        failed, attempted = doctest.testmod(module)
        assert failed == 0 and attempted > 0


@pytest.mark.slow
def test_quick_benchmark_writes_rows_of_every_kind(tmp_path, monkeypatch, capsys):
    path = tmp_path / "results.json"
    arguments = ["--quick", "--threads", "1", "--json", str(path), "--peers"]
    monkeypatch.setattr(sys, "argv", ["sinusoid.py", *arguments])
    monkeypatch.setattr(sinusoid, "SCALING", [1, sinusoid.TASKS])
    start = one(sinusoid.TINYMAML_NUMPY)  # a cold start of the numba backend takes long
    measure_start = startup.measure_start

    def start_numpy(bench, variants, work, order):
        variants = [measure.Variant(start, "", 1)]
        return measure_start(bench, variants, work, order)

    monkeypatch.setattr(startup, "measure_start", start_numpy)
    assert sinusoid.main() == 0
    rows = json.loads(path.read_text())["rows"]
    assert all(set(written) == ROW_KEYS for written in rows)
    assert {written["order"] for written in rows} == {1, 2}
    works = {r["work"]: r for r in rows if r["implementation"] == "tinymaml numba"}
    assert {*works} == {"import", "sinusoid, 25 tasks", "scaling, 1 task"} | {
        "scaling, 25 tasks"
    }
    assert all(written["ratio"] == 1.0 for written in works.values())
    assert "sinusoid, 25 tasks, cold start" in {written["work"] for written in rows}
    out = capsys.readouterr().out
    assert "float64: 4 gradients agree" in out and "of peak" in out
