"""The image benchmark: peers compute the same, limits hold, tables say what they claim.

A peer that is not installed is skipped. No time is judged here.
"""

import doctest
import sys
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

# benchmarks/ is no part of the installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import (
    common,
    image_peers,
    long_steps,
    measure,
    omniglot,
    workers,
)
from benchmarks import omniglot_tables as tables
from benchmarks.common import DisagreementError, Row
from benchmarks.measure import Implementation, Variant
from benchmarks.peers import COMPILED, GRAPHS
from tinymaml.autodiff import convolution
from tinymaml.paper.recipes import NETWORKS, RECIPES

ROOT = Path(omniglot.__file__).resolve().parents[1]
# Two of everything are enough, and take seconds.
SMALL = {
    "5w1s": replace(RECIPES["5w1s"], tasks=2, steps=2),
    "mini-5w1s": replace(RECIPES["mini-5w1s"], tasks=2, steps=1, ways=2, queries=1),
}
FEATURES = 4
SCRIPT = """
import sys, time
sys.path.insert(0, {root!r})
from functools import partial
from tinymaml.paper.recipes import NETWORKS, RECIPES, Recipe
RECIPES.update({small!r})
for name in ("omniglot", "miniimagenet"):
    NETWORKS[name] = partial(NETWORKS[name], features={features})
import numpy as np
from benchmarks import image_peers_torch, omniglot, workers

def capture_graph(function, form):  # torch.compile without minutes of its C++ compiler
    import torch
    return torch.compile(function, fullgraph=True, backend="aot_eager")

image_peers_torch.compile_with_torch = capture_graph

def build(request):
    if request["implementation"] == "sleeper":
        seconds = float(request["form"])
        return workers.Workload(lambda: time.sleep(seconds), lambda _: np.ones(2))
    if request["implementation"] == "hoarder":
        memory = np.ones(50_000_000)
        time.sleep(60)
        return workers.Workload(lambda: memory, lambda _: np.ones(2))
    return omniglot.build(request)

if __name__ == "__main__":
    workers.serve(build)
"""
# JAX compiles for seconds, so each of its networks is written in one way only; the
# benchmark itself checks all of them.
PEERS = [
    *(
        (case, name, "torch", forms, device)
        for case in SMALL
        for name, forms, device in [
            (tables.LOOP, image_peers.LOOP_FORMS, ""),
            (tables.LOOP, image_peers.LOOP_FORMS, "cpu"),
            (tables.PROCESSES, image_peers.LOOP_FORMS[:1], ""),
            (tables.VMAP, image_peers.VMAP_FORMS[1:], ""),
            (tables.VMAP, image_peers.VMAP_FORMS[1:], "cpu"),
        ]
    ),
    ("5w1s", COMPILED, "torch", [f + GRAPHS for f in image_peers.VMAP_FORMS], "cpu"),
    ("5w1s", tables.JAX_MAP, "jax", image_peers.MAP_FORMS[2:], ""),
    ("mini-5w1s", tables.JAX_VMAP, "jax", image_peers.VMAP_FORMS[:1], ""),
    ("mini-5w1s", tables.JAX_VMAP, "jax", image_peers.VMAP_FORMS[:1], "cpu"),
]


@pytest.fixture
def script(tmp_path):
    """The benchmark's workers with small recipes, and two with bad manners."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.format(root=str(ROOT), small=SMALL, features=FEATURES))
    return path


@pytest.fixture
def sleepers(script, tmp_path):
    """A bench whose reference is what the sleepers answer."""
    references = {2: np.ones(2), 1: np.ones(2)}
    return omniglot.CaseBench(script, tmp_path, False, references, 1, case="5w1s")


@pytest.fixture
def small(monkeypatch, tmp_path, script):
    """case -> a bench of the small recipe, with the numpy backend's references."""

    def make(case):
        monkeypatch.setitem(RECIPES, case, SMALL[case])
        architecture = SMALL[case].architecture
        narrow = partial(NETWORKS[architecture], features=FEATURES)
        monkeypatch.setitem(NETWORKS, architecture, narrow)
        omniglot.save_data(tmp_path, case)
        bench = omniglot.bench_of(tmp_path, case, False, 2, tables.TINYMAML_NUMPY)
        bench.script = script
        return bench

    return make


# --- the peers ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("case", "name", "module", "forms", "device"), PEERS)
def test_peer_computes_loss_and_gradient_of_both_orders(
    case, name, module, forms, device, small, capsys
):
    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    peer = Implementation(name, module, (1,), forms)
    bench = small(case)
    bench.device = device  # "cpu": from the host to the host, as on a card
    measure.check_float64(bench, [peer], every_form=True)
    agreed = f"float64: {2 * len(forms)} gradients agree"
    assert agreed in capsys.readouterr().out


def test_wrong_loss_or_gradient_is_refused(small):
    bench = small("5w1s")
    good = bench.references[2]
    assert bench.check("right", good * (1 + 1e-12), 2, "float64") < 1e-10
    wrong_loss, wrong_gradient = good.copy(), good.copy()
    wrong_loss[0] *= 1 + 1e-6
    wrong_gradient[1:] *= 1 + 1e-6
    with pytest.raises(DisagreementError, match="peer, loss: expected"):
        bench.check("peer", wrong_loss, 2, "float64")
    with pytest.raises(DisagreementError, match="peer: expected"):
        bench.check("peer", wrong_gradient, 2, "float64")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_first_order_gradient_is_refused_as_exact_and_the_reverse(small, dtype):
    bench = small("5w1s")
    for order in (1, 2):
        with pytest.raises(DisagreementError, match="differs by"):
            bench.check("other order", bench.references[3 - order], order, dtype)


def test_gradient_without_beta_is_refused(small):
    bench = small("5w1s")
    layout = RECIPES["5w1s"].network().layout
    for name, (piece, _) in layout.items():
        if name.startswith("batchnorm"):
            forgotten = bench.references[2].copy()
            forgotten[1:][piece] = 0
            with pytest.raises(DisagreementError, match="differs by"):
                bench.check("forgetful", forgotten, 2, "float32")


@pytest.mark.parametrize("case", [*omniglot.CASES])
def test_layouts_are_permutations_and_inverse_to_each_other(case):
    settings = omniglot.settings_of(case, 2)
    theta = np.arange(RECIPES[case].network().size, dtype=float)
    arrays = image_peers.parameters_of(theta, settings)
    torch_arrays = image_peers.torch_layout(arrays, settings)
    assert [a.shape for a in torch_arrays if a.ndim == 4] == [
        (a.shape[3], a.shape[2], 3, 3) for a in arrays if a.ndim == 4
    ]
    back = image_peers.from_torch_layout(torch_arrays, settings)
    np.testing.assert_array_equal(image_peers.flatten_result(7.0, back), [7.0, *theta])


def test_last_weight_of_pooled_maps_reads_channels_first():
    settings = omniglot.settings_of("mini-5w1s", 2)
    theta = np.random.default_rng(0).random(RECIPES["mini-5w1s"].network().size)
    arrays = image_peers.parameters_of(theta, settings)
    torch_arrays = image_peers.torch_layout(arrays, settings)
    maps = np.random.default_rng(1).random((1, 5, 5, 32))
    expected = maps.reshape(1, -1) @ arrays[-2]
    result = maps.transpose(0, 3, 1, 2).reshape(1, -1) @ torch_arrays[-2]
    np.testing.assert_allclose(result, expected, rtol=1e-12)


def test_what_peers_adapt_is_what_tinymaml_gives_a_step_size():
    for case in omniglot.CASES:
        settings = omniglot.settings_of(case, 2)
        alpha = RECIPES[case].network().adapted_only(settings.alpha)
        steps = image_peers.parameters_of(alpha, settings)
        moved = [i for i, piece in enumerate(steps) if piece.any()]
        assert moved == settings.adapted
        assert all((steps[i] == settings.alpha).all() for i in moved)


@given(size=st.integers(2, 100), stride=st.sampled_from([1, 2]))
def test_peers_pad_as_tinymaml_does(size, stride):
    out, before = convolution.same_padding(size, 3, stride)
    result = image_peers.same_padding(size, stride)
    assert result[0] == before
    assert (size + sum(result) - 3) // stride + 1 == out


# --- limits and choices ---------------------------------------------------------------


def test_fastest_form_is_kept_and_the_slower_closed(sleepers, capsys):
    sleeper = Implementation("sleeper", "peer", (1,), ("0.2", "0.01", "0.1"))
    with ExitStack() as stack:
        chosen, seconds, error = long_steps.fastest(sleepers, sleeper, 2, stack)
        assert chosen.variant.form == "0.01" and seconds < 0.1 and error == 0
        assert chosen.worker.ask("memory")["before_bytes"] is not None
    assert "sleeper: 0.01, 1 thread (tried: 0.2" in capsys.readouterr().out


def test_step_over_its_limit_is_skipped_with_the_reason(sleepers, capsys):
    sleepers.limits = workers.Limits(60, 0.05, 8e9)
    sleeper = Implementation("sleeper", "peer", (1,), ("0.06",))
    with ExitStack() as stack:
        assert long_steps.fastest(sleepers, sleeper, 2, stack) is None
    assert "skipped: sleeper (0.06, 1 thread): " in capsys.readouterr().out


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")
@pytest.mark.parametrize(
    ("name", "limits", "reason"),
    [
        ("sleeper", workers.Limits(1.0, 1.0, 8e9), "needs more than 1 s to start"),
        ("hoarder", workers.Limits(60.0, 1.0, 2e8), "needs more than 0.2 GB"),
    ],
)
def test_process_that_needs_too_much_is_ended(sleepers, name, limits, reason):
    variant = Variant(Implementation(name, "peer", (1,), ("30",)), "30", 1)
    with sleepers.start(1) as worker:
        worker.send("prepare", **sleepers.request(variant, 2))
        with pytest.raises(workers.WorkerError, match=reason):
            worker.receive(limits)
        with pytest.raises(workers.WorkerError, match="its process ended"):
            worker.ask("memory")


def test_measuring_gives_a_row_for_each_and_the_peak(sleepers):
    sleepers.quick = True
    compared = [Implementation("sleeper", "peer", (n,), ("0.01",)) for n in (1, 2)]
    result = long_steps.measure_steps(sleepers, compared, "work", 1, budget=0.1)
    assert [(one.threads, one.order) for one in result.rows] == [(1, 1), (2, 1)]
    assert all(one.min_seconds >= 0.01 for one in result.rows)
    assert len(result.before) == len(result.errors) == 2 and result.peak > 1e8


def test_peer_with_another_gradient_ends_the_benchmark_before_any_time(sleepers):
    sleepers.references[2] = np.array([1.0, 1.01])
    sleeper = Implementation("sleeper", "peer", (1,), ("0.01",))
    with pytest.raises(DisagreementError, match="sleeper .0.01, 1 thread, order 2"):
        long_steps.measure_steps(sleepers, [sleeper], "work", 2, budget=0.1)


@given(st.floats(1e-3, 1e3), st.floats(1, 1e3), st.booleans())
def test_rounds_keep_to_the_budget_between_least_and_most(seconds, budget, quick):
    rounds = long_steps.rounds_for(seconds, budget, quick)
    least = long_steps.MIN_ROUNDS[not quick]
    assert least <= rounds <= long_steps.MAX_ROUNDS[not quick]
    assert rounds == least or rounds * seconds <= budget


# --- tables and options ---------------------------------------------------------------


def row(implementation, seconds, case="5w1s", order=2, threads=2, peak=None):
    spread = (seconds, seconds, seconds)
    work = tables.work_of(case)
    return Row(work, implementation, order, threads, *spread, peak)


def cells_of(table):
    return [[c.strip() for c in line.split("|")[1:-1]] for line in table.splitlines()]


def test_table_of_times_has_fractions_of_the_peak_of_all_threads():
    rows = common.with_ratios([row(tables.TINYMAML_NUMBA, 0.1), row(tables.LOOP, 1.0)])
    result = long_steps.Measurement(rows, [10**6, None], [1e-6, 2e-6], peak=1e10)
    header, _, ours, loop = cells_of(tables.times_table(result, 10**9, 2))[:4]
    assert dict(zip(header, ours, strict=True))["of peak"] == "50.0%"
    named = dict(zip(header, loop, strict=True))
    assert (named["ratio"], named["GFLOP/s"], named["of peak"]) == (
        "10.00",
        "1",
        "5.0%",
    )
    assert (named["before MB"], named["error"]) == ("?", "2e-06")


def test_table_of_orders_compares_the_same_implementation_and_work():
    rows = [row(tables.TINYMAML_NUMBA, 0.3), row(tables.TINYMAML_NUMBA, 0.2, order=1)]
    rows += [
        row(tables.LOOP, 9.0, order=1),
        row(tables.TINYMAML_NUMBA, 5.0, case="20w1s"),
    ]
    _, _, *lines = cells_of(tables.order_table(rows))
    assert len(lines) == 1
    assert lines[0][1] == tables.TINYMAML_NUMBA and lines[0][-3:] == [
        "1.50",
        "50%",
        "33%",
    ]


def test_claims_are_met_or_missed_by_the_fastest_peer_and_the_exact_step():
    rows = [row(tables.TINYMAML_NUMBA, 1.0), row(tables.JAX_VMAP, 9.0)]
    rows += [row(tables.JAX_MAP, 4.0), row(tables.LOOP, 5.0)]
    rows += [
        row(tables.TINYMAML_NUMBA, 1.0, order=1),
        row(tables.LOOP, 1.0, order=1),
    ]
    rows += [row(tables.TINYMAML_NUMBA, 1.0, "20w1s", peak=2 * 10**9)]
    rows = common.with_ratios(rows)
    _, _, *lines = cells_of(tables.claims_table(rows, {"5w1s": 5 * 10**6}))
    verdicts = {line[0]: line[-1] for line in lines}
    assert verdicts == {
        f"5w1s: 5 times faster than {tables.LOOP}": "met",
        f"5w1s: 5 times faster than {tables.JAX_MAP}": "MISSED",
        "5w1s: workspace of a thread": "met",
        "20w1s: peak memory in all": "MISSED",
    }


def test_workspace_grows_with_steps_only_where_activations_are_kept(small, tmp_path):
    small("5w1s")
    table = omniglot.workspace_table(tmp_path, "5w1s", (1, 3))
    header, _, *lines = cells_of(table)
    exact = [line for line in lines if line[header.index("order")] == "2"]
    stored, recomputed = ([float(line[i]) for line in exact] for i in (2, 3))
    assert stored[1] - stored[0] > 2 * (recomputed[1] - recomputed[0])


def test_cases_are_chosen_by_name_and_others_refused(capsys):
    parse = omniglot.parser_of().parse_args
    assert parse(["--cases", "20w1s", "5w1s"]).cases == ["20w1s", "5w1s"]
    assert parse([]).cases is None
    with pytest.raises(SystemExit):
        parse(["--cases", "fc-5w1s"])
    assert "argument --cases: invalid choice: 'fc-5w1s'" in capsys.readouterr().err


def test_peers_left_out_are_named(capsys):
    competitors = omniglot.implementations("20w1s", 2, chosen_peers=[], quick=False)
    assert {one.name for one in competitors} == {
        tables.TINYMAML_NUMBA,
        tables.RECOMPUTE,
    }
    assert "skipped: JAX jit + map: left out by --peers" in capsys.readouterr().out


def test_examples_in_the_docstrings_are_right():
    for module in (common, long_steps):
        result = doctest.testmod(module)
        assert result.attempted > 0 and result.failed == 0
