"""benchmarks/navigation.py: what agrees, what is caught, what is written."""

import json
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

from benchmarks import common, long_steps, navigation, navigation_parts  # noqa: E402
from benchmarks.common import DisagreementError  # noqa: E402

needs_torch = pytest.mark.skipif(
    find_spec("torch") is None, reason="torch is not installed"
)
needs_mujoco = pytest.mark.skipif(
    find_spec("mujoco") is None or find_spec("gymnasium") is None,
    reason="mujoco and gymnasium are not installed",
)
SMALL = {"tasks": 2, "trajectories": 3}
NAVIGATION = replace(navigation.SETTINGS["navigation"], sizes=[2, 10, 9, 2], **SMALL)
CHEETAH = replace(
    navigation.SETTINGS["cheetah"], sizes=[20, 10, 9, 6], horizon=30, **SMALL
)


@pytest.fixture(params=["navigation", pytest.param("cheetah", marks=needs_mujoco)])
def setting(request):
    """Few trajectories of a small policy: the same work, in less time."""
    return {"navigation": NAVIGATION, "cheetah": CHEETAH}[request.param]


@pytest.fixture
def folder(setting, tmp_path):
    navigation.save_data(setting, tmp_path)
    return tmp_path


def built(setting, folder, name, part, order=2, form="", **more):
    more = {"dtype": "float64", "implementation": name, "part": part, **more}
    request = navigation.request_of(setting, folder, order=order, form=form, **more)
    return navigation.build(request)


def vectors(setting, folder, name, order=2, form=""):
    workload = built(setting, folder, name, navigation.OUTER_STEP, order, form)
    return workload.read(workload.call())


def bench_of(setting, folder, references):
    return navigation.NavigationBench(
        Path("x"), folder, True, references, setting.tasks, setting=setting
    )


def test_the_experiments_are_those_of_the_issue_and_of_the_examples():
    cheetah, small = (navigation.SETTINGS[one] for one in ("cheetah", "navigation"))
    assert cheetah.sizes == [20, 100, 100, 6] and small.sizes == [2, 100, 100, 2]
    assert (cheetah.tasks, cheetah.trajectories, cheetah.horizon) == (20, 20, 200)
    assert (small.tasks, small.trajectories, small.horizon) == (20, 20, 100)


def check_float64(setting, folder, found, order):
    """The derivatives to 1e-10; the step less closely, since with so few samples ten
    iterations of conjugate gradients multiply rounding errors by up to 1e8.
    """
    expected = np.split(navigation.references(setting, folder)[order], 3)
    tolerances = zip(navigation.VECTORS, [1e-10, 1e-10, 1e-6], strict=True)
    pairs = zip(np.split(found, 3), expected, strict=True)
    for (name, tolerance), pair in zip(tolerances, pairs, strict=True):
        common.check_agreement(name, *pair, tolerance)


@pytest.mark.parametrize("order", [1, 2])
def test_both_backends_have_the_same_derivatives_and_step(setting, folder, order):
    ours = vectors(setting, folder, navigation.TINYMAML_NUMPY, order)
    check_float64(setting, folder, ours, order)


@needs_torch
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("form", navigation.FORMS)
def test_pytorch_has_the_same_derivatives_and_step(setting, folder, form, order):
    theirs = vectors(setting, folder, navigation.TORCH, order, form)
    check_float64(setting, folder, theirs, order)


def test_the_other_order_is_another_result(setting, folder):
    found = navigation.references(setting, folder)
    bench = bench_of(setting, folder, found)
    with pytest.raises(DisagreementError, match="first order, surrogate .* differs by"):
        bench.check("first order", found[1], 2, "float32")


@needs_torch
@pytest.mark.parametrize("form", navigation.FORMS)
def test_a_whole_iteration_in_pytorch_is_ours(setting, folder, form):
    steps = []
    for name in (navigation.TINYMAML_NUMPY, navigation.TORCH):
        workload = built(setting, folder, name, navigation.ITERATION, form=form)
        steps.append(workload.call())
        size = steps[-1].theta.size
        assert workload.read(steps[-1]).shape == (2 * size,)
    ours, theirs = steps
    assert ours.accepted and theirs.accepted
    moved = np.linalg.norm(ours.gradient)
    assert np.linalg.norm(ours.theta - theirs.theta) < 1e-3 * moved
    assert ours.kl == pytest.approx(theirs.kl, rel=1e-3)


def test_the_outer_step_alone_is_that_of_the_iteration(setting, folder):
    """Sampled in float32 by the same policies, so the steps are equal to the bit."""
    name, more = navigation.TINYMAML_NUMPY, {"dtype": "float32"}
    iteration = built(setting, folder, name, navigation.ITERATION, **more).call()
    alone = built(setting, folder, name, navigation.OUTER_STEP, **more).call()
    np.testing.assert_array_equal(iteration.theta, alone.theta)
    assert iteration.after == pytest.approx(alone.after, rel=1e-12)


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_each_of_the_vectors_is_checked(wrong, tmp_path):
    bench = bench_of(NAVIGATION, tmp_path, {2: np.ones(6)})
    assert bench.check("right", np.ones(6), 2, "float32") == 0
    found = np.ones(6)
    found[2 * wrong] = 1.01
    name = navigation.VECTORS[wrong]
    with pytest.raises(DisagreementError, match=f"^wrong, {name}: expected the ref"):
        bench.check("wrong", found, 2, "float32")
    bench.part = navigation.ITERATION
    if wrong < 2:
        with pytest.raises(DisagreementError, match=f"^wrong, {name}: "):
            bench.check("wrong", found[:4], 2, "float32")
    with pytest.raises(ValueError):
        bench.check("a vector is missing", np.ones(2), 2, "float32")


# --- where the time goes --------------------------------------------------------------


class Ticks:
    """A clock that a test sets."""

    def __init__(self):
        self.now = 0.0

    def work(self, seconds, inner=lambda: None):
        self.now += seconds
        inner()


@pytest.mark.parametrize("whole", [set(), {"outer"}])
def test_a_part_has_its_own_time_or_all_of_it(whole):
    clock = Ticks()
    stopwatch = navigation_parts.Stopwatch(whole, lambda: clock.now)
    inner = stopwatch.timed("inner", lambda: clock.work(5.0))
    middle = stopwatch.timed("middle", lambda: clock.work(0.5, inner))
    outer = stopwatch.timed("outer", lambda: clock.work(2.0, middle))
    outer()
    inner()
    if whole:
        assert stopwatch.seconds == {"outer": 7.5, "inner": 5.0}
    else:
        assert stopwatch.seconds == {"outer": 2.0, "middle": 0.5, "inner": 10.0}


def test_functions_are_watched_only_for_a_while_and_keep_their_errors():
    clock = Ticks()
    before = Ticks.work
    stopwatch = navigation_parts.Stopwatch(clock=lambda: clock.now)

    def fail():
        raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        with stopwatch.watching([navigation_parts.Place("work", Ticks, "work")]):
            assert Ticks.work is not before
            clock.work(1.0, fail)
    assert Ticks.work is before and stopwatch.seconds == {"work": 1.0}


@pytest.mark.parametrize(
    "name",
    [navigation.TINYMAML_NUMPY, pytest.param(navigation.TORCH, marks=needs_torch)],
)
def test_every_part_of_an_iteration_is_found(setting, folder, name):
    workload = built(setting, folder, name, navigation.PARTS, form="batched")
    found = dict(zip(navigation_parts.PARTS, workload.call(), strict=True))
    absent = {part for part, seconds in found.items() if not seconds > 0}
    expected = set()
    if name == navigation.TORCH:
        expected.add("KL of the inner step")
    assert absent == expected


def test_the_table_of_parts_leaves_out_what_nobody_has():
    ours, theirs = (np.zeros(len(navigation_parts.PARTS)) for _ in "ab")
    fisher = navigation_parts.PARTS.index("Fisher products")
    ours[[0, fisher]], theirs[fisher] = (1.0, 3.0), 8.0
    table = navigation_parts.parts_table({"ours": ours, "theirs": theirs})
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in table.splitlines()]
    assert rows[2:] == [
        ["sampling: policy", "1,000", "25%", "", ""],
        ["Fisher products", "3,000", "75%", "8,000", "100%"],
        ["sum", "4,000", "100%", "8,000", "100%"],
    ]


# --- what is printed and written ------------------------------------------------------


def test_what_is_left_out_is_named(capsys):
    competitors = navigation.implementations(2, [], with_numpy=False)
    assert [one.name for one in competitors] == [
        navigation.TINYMAML_NUMBA,
        navigation.TINYMAML_NUMBA,
    ]
    out = capsys.readouterr().out
    assert "skipped: PyTorch double backward: left out by --peers" in out
    assert "skipped: tinymaml numpy: only navigation without --quick has it" in out


@pytest.mark.parametrize(("slower", "verdict"), [(3.5, "met"), (2.5, "NOT met")])
def test_the_claim_is_put_to_the_test(slower, verdict, capsys):
    rows = [
        common.row_of([seconds], "a work", name, 2, 2, None)
        for name, seconds in (
            (navigation.TINYMAML_NUMBA, 1.0),
            (navigation.TORCH, slower),
        )
    ]
    navigation.print_claims(common.with_ratios(rows), goal=3.0)
    out = capsys.readouterr().out
    assert (
        f"a work: goal: 3 times faster than PyTorch; measured {slower:.2f}: {verdict}"
        in out
    )


def test_help_names_the_peers_and_the_time_of_this_benchmark(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["navigation.py", "--help"])
    with pytest.raises(SystemExit):
        navigation.main()
    out = capsys.readouterr().out
    assert "jax" not in out and "--peers [{torch}" in out and "three minutes" in out


def test_a_missing_simulator_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mujoco", None)
    monkeypatch.setattr(sys, "argv", ["navigation.py", "--env", "cheetah"])
    with pytest.raises(SystemExit) as ended:
        navigation.main()
    assert ended.value.code == 1
    found = capsys.readouterr()
    line = 'mujoco is missing: pip install "tinymaml[locomotion]"\n'
    assert found.err == line and found.out == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["navigation", pytest.param("cheetah", marks=needs_mujoco)]
)
def test_quick_benchmark_checks_and_writes_rows(name, tmp_path, monkeypatch, capsys):
    path = tmp_path / "results.json"
    # With fewer tasks conjugate gradients multiply float32's rounding errors too much.
    few = {
        "navigation": replace(navigation.SETTINGS["navigation"], tasks=4),
        "cheetah": replace(CHEETAH, tasks=4, trajectories=10),
    }
    monkeypatch.setattr(navigation, "SETTINGS", few)
    monkeypatch.setattr(navigation, "BUDGET", {True: 0.1})
    monkeypatch.setattr(long_steps, "MIN_ROUNDS", (1, 1))
    arguments = ["--env", name, "--quick", "--threads", "1", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["navigation.py", *arguments, "--peers"])
    assert navigation.main() == 0
    rows = json.loads(path.read_text())["rows"]
    assert {row["order"] for row in rows} == {1, 2}
    works = {f"{name}, 4 tasks: {part}" for part in ("iteration", "outer step")}
    assert {row["work"] for row in rows} == works
    assert {row["implementation"] for row in rows} == {navigation.TINYMAML_NUMBA}
    out = capsys.readouterr().out
    assert "float64" in out and "float32, order 2" in out
    assert "Fisher products" in out
