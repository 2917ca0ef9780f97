"""The benchmarks on a graphics card, as far as they can be tested without one.

Device "cpu" is the path of a card, from arrays on the host to a gradient on the host,
without the card. CuPy and the card's own tools are stood in for. No time is judged.
"""

import doctest
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

# benchmarks/ is no part of the installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import tinymaml
from benchmarks import (
    common,
    gpu,
    long_steps,
    measure,
    omniglot,
    peers,
    sinusoid,
)
from benchmarks.common import Row
from benchmarks.measure import Bench, Implementation

CARD = {
    "name": "A card",
    "memory_bytes": 8_000_000_000,
    "compute_capability": "90",
    "driver": None,
    "cuda_driver": "12.4",
    "cuda_runtime": "12.2",
    "libraries": {"cupy-cuda12x": "13.0"},
}
TOLERANCE = gpu.Tolerance(1e-4, 1e-1)
# A benchmark whose workers count 17 launches, or fail to count.
SCRIPT = """
import sys
sys.path.insert(0, {root!r})
import numpy as np
from benchmarks import workers

def build(request):
    def launches():
        if request["implementation"] == "uncounted":
            raise RuntimeError("no profiler")
        return 17

    return workers.Workload(lambda: np.ones(3), np.asarray, launches=launches)

workers.serve(build)
"""


@pytest.fixture
def no_card(monkeypatch):
    """The path of a card on the processor, with next to no time for the clock."""
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(gpu, "BUDGET", {True: 0.01, False: 0.01})
    monkeypatch.setattr(gpu, "computes_on_card", lambda module: True)
    monkeypatch.setattr(gpu, "describe_card", lambda: CARD)


def options_of(*arguments, backend="cupy"):
    parser = common.parser_of("A benchmark.")
    gpu.add_option(parser)
    options = parser.parse_args(arguments)
    options.backend = backend
    return options


def row(work, implementation, seconds, order=2):
    return Row(work, implementation, order, 1, seconds, seconds, seconds, None)


def cells_of(table):
    return [[c.strip() for c in line.split("|")[1:-1]] for line in table.splitlines()]


# --- options and refusals -------------------------------------------------------------


@pytest.mark.parametrize("benchmark", [sinusoid, omniglot])
def test_backend_that_is_missing_ends_the_benchmark_before_it_starts(
    benchmark, monkeypatch, capsys
):
    def missing(name):
        raise ImportError(f"backend {name!r} needs CuPy")

    monkeypatch.setattr(tinymaml, "get_backend", missing)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--backend", "cupy-tf32"])
    assert benchmark.main() == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "--backend cupy-tf32: backend 'cupy-tf32' needs CuPy\n"


def test_backend_is_the_processor_unless_another_is_asked_for(capsys):
    parser = omniglot.parser_of()
    assert parser.parse_args([]).backend == "numba"
    assert parser.parse_args(["--backend", "cupy"]).backend == "cupy"
    with pytest.raises(SystemExit):
        parser.parse_args(["--backend", "numpy"])
    assert "argument --backend: invalid choice: 'numpy'" in capsys.readouterr().err


def test_peer_without_support_of_cards_is_left_out_with_its_reason(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "find_spec", lambda module: True)
    monkeypatch.setattr(gpu, "computes_on_card", lambda module: False)
    monkeypatch.setattr(common, "installed_version", lambda package: "9.9+cpu")
    competitors = gpu.implementations(options_of(), [""], peers.FORMS)
    assert [one.name for one in competitors] == ["tinymaml cupy"]
    out = capsys.readouterr().out
    assert "skipped: PyTorch loop: torch 9.9+cpu finds no graphics card" in out
    assert "skipped: JAX jit + vmap: jax 9.9+cpu finds no graphics card" in out


@pytest.mark.parametrize(
    ("probe", "found"),
    [
        ("print('loading'); print(True)", True),
        ("print(False)", False),
        ("raise ImportError", False),
    ],
)
def test_probe_says_whether_a_library_finds_a_card(probe, found, monkeypatch):
    monkeypatch.setitem(gpu.PROBES, "torch", probe)
    assert gpu.computes_on_card("torch") is found


def test_every_form_is_compiled_with_graphs_and_one_without(no_card, monkeypatch):
    monkeypatch.setattr(measure, "find_spec", lambda module: True)
    competitors = gpu.implementations(options_of(), [""], ["a", "b"])
    forms = {one.name: one.forms for one in competitors}
    assert forms[peers.COMPILED] == ("a, CUDA graphs", "b, CUDA graphs", "a")
    assert forms[peers.VMAP] == forms[peers.JAX_VMAP] == ("a", "b")


# --- the card -------------------------------------------------------------------------


@pytest.fixture
def card(monkeypatch):
    """A CuPy of which the benchmark may know this much."""
    facts = {"name": b"A card", "totalGlobalMem": 8_000_000_000}
    stand_in = SimpleNamespace(
        cuda=SimpleNamespace(
            Device=lambda: SimpleNamespace(
                id=0, compute_capability="90", pci_bus_id="0000:01:00.0"
            ),
            runtime=SimpleNamespace(
                getDeviceProperties=lambda number: facts,
                driverGetVersion=lambda: 12040,
                runtimeGetVersion=lambda: 12020,
            ),
        )
    )
    monkeypatch.setitem(sys.modules, "cupy", stand_in)


def test_card_is_described_with_its_driver_and_libraries(
    card, monkeypatch, tmp_path, capsys
):
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\n[ "$1" = --id=0000:01:00.0 ] && echo 550.54\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    packages = [("CuPy-CUDA12x", "13.0"), ("nvidia-cudnn-cu12", "9.1"), ("numpy", "2")]
    monkeypatch.setattr(
        gpu,
        "distributions",
        lambda: [SimpleNamespace(metadata={"Name": n}, version=v) for n, v in packages],
    )
    facts = gpu.describe_card()
    libraries = {"cupy-cuda12x": "13.0", "nvidia-cudnn-cu12": "9.1"}
    assert facts == CARD | {"driver": "550.54", "libraries": libraries}
    assert json.loads(json.dumps(facts)) == facts
    gpu.print_card(facts)
    out = capsys.readouterr().out
    assert "A card, 8,000.0 MB, compute capability 90, driver 550.54, CUDA 12.4" in out
    assert "cupy-cuda12x 13.0, nvidia-cudnn-cu12 9.1" in out


def test_driver_is_unknown_where_the_tool_is_missing_or_fails(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu.driver_version("0000:01:00.0") is None
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert gpu.driver_version("0000:01:00.0") is None


def test_worker_of_a_card_is_started_with_the_cards_environment(monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "Worker", lambda script, threads, variables: variables)
    settings = gpu.settings(options_of(), TOLERANCE)
    bench = Bench(tmp_path, tmp_path, True, {}, 1, **settings)
    assert bench.start(1)["JAX_PLATFORMS"] == "cuda"
    assert bench.start(1, {"JAX_PLATFORMS": "cpu"})["JAX_PLATFORMS"] == "cpu"
    assert Bench(tmp_path, tmp_path, True, {}, 1).start(1) == {}


def test_tf32_is_asked_for_and_tolerated_with_its_backend_only():
    plain = gpu.settings(options_of(backend="cupy"), TOLERANCE)
    assert (plain["tf32"], plain["tolerances"]) == (False, {"float32": 1e-4})
    tf32 = gpu.settings(options_of(backend="cupy-tf32"), TOLERANCE)
    assert (tf32["tf32"], tf32["tolerances"]) == (True, {"float32": 1e-1})


# --- launches -------------------------------------------------------------------------


def test_launches_are_asked_of_each_and_may_be_unknown(monkeypatch, tmp_path, capsys):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(root=str(Path(gpu.__file__).resolve().parents[1])))
    bench = Bench(script, tmp_path, True, {2: np.ones(3)}, 1, device="cpu")
    competitors = [
        Implementation(name, "peer", (1,)) for name in ("counted", "uncounted")
    ]
    found = long_steps.measure_steps(bench, competitors, "work", 2, budget=0.01)
    assert found.launches == [17, None]
    out = capsys.readouterr().out
    assert "launches of uncounted are not counted: RuntimeError: no profiler" in out


# --- tables ---------------------------------------------------------------------------


def test_table_of_times_has_launches_and_the_fraction_of_the_peak():
    rows = [row("work", "tinymaml cupy", 0.001), row("work", "JAX", 0.004)]
    rows = common.with_ratios(rows, "tinymaml cupy")
    found = long_steps.Measurement(
        rows, [None, None], [1e-6, 2e-6], 1e12, launches=[1234, None]
    )
    header, _, ours, jax = cells_of(gpu.times_table(found, flops=10**8))[:4]
    ours, jax = (dict(zip(header, cells, strict=True)) for cells in (ours, jax))
    assert (ours["launches"], jax["launches"]) == ("1,234", "")
    assert (ours["GFLOP/s"], ours["of peak"]) == ("100", "10.00%")
    assert (jax["ratio"], jax["of peak"], jax["error"]) == ("4.00", "2.50%", "2e-06")


@pytest.mark.parametrize(("least", "word"), [(3.0, "met"), (5.0, "MISSED")])
def test_target_is_judged_by_the_best_peer_and_the_exact_step(least, word):
    rows = [
        row("work", "tinymaml cupy", 1.0),
        row("work", "PyTorch loop", 90.0),
        row("work", "JAX", 4.0),
        row("work", "tinymaml cupy", 1.0, order=1),
        row("work", "JAX", 1.0, order=1),
        row("other", "tinymaml cupy", 1.0),
        row("other", "JAX", 1.0),
    ]
    rows = common.with_ratios(rows, "tinymaml cupy")
    _, _, *lines = cells_of(gpu.targets_table(rows, {"work": least}))
    assert lines == [
        [f"work: {least:g} times faster than JAX", "4", f">= {least:g}", word]
    ]


def test_target_without_a_peer_is_not_judged():
    rows = common.with_ratios([row("work", "tinymaml cupy", 1.0)], "tinymaml cupy")
    _, _, line = cells_of(gpu.targets_table(rows, {"work": 5.0}))
    assert line == ["work: no peer to compare with", "", ">= 5", "?"]


# --- everything but the card ----------------------------------------------------------


def test_benchmark_runs_checks_and_writes_as_on_a_card(
    no_card, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(sinusoid, "GPU_TASKS", {25: None, 50: 3.0})
    path = tmp_path / "results.json"
    options = options_of("--peers", "--json", str(path), "--quick", backend="numpy")
    assert gpu.main(options, sinusoid.build, sinusoid.gpu_works) == 0
    content = json.loads(path.read_text())
    assert content["machine"]["gpu"] == CARD
    names = ["sinusoid, 25 tasks", "sinusoid, 50 tasks"]
    assert [(r["work"], r["order"]) for r in content["rows"]] == [
        (name, order) for name in names for order in (2, 1)
    ]
    details = content["details"][f"{names[1]}, order 2"]
    assert details["launches"] == {"tinymaml numpy": None}
    assert details["errors"]["tinymaml numpy"] < 1e-5
    out = capsys.readouterr().out
    assert "A card, 8,000.0 MB" in out and "driver ?" in out
    assert "sinusoid, 50 tasks: no peer to compare with" in out


def test_first_order_gradient_stops_the_benchmark(no_card, tmp_path, monkeypatch):
    options = options_of("--peers", "--quick", backend="numpy")
    work = next(sinusoid.gpu_works(tmp_path, options))
    work.bench.references[2] = work.bench.references[1]
    with pytest.raises(common.DisagreementError, match="tinymaml numpy .1 thread, or"):
        gpu.run(iter([work]), "tinymaml numpy", quick=True)


def test_works_of_images_are_the_cases_with_their_targets_and_flops(
    no_card, tmp_path, monkeypatch
):
    monkeypatch.setattr(omniglot, "save_data", lambda folder, case: None)
    monkeypatch.setattr(
        omniglot,
        "bench_of",
        lambda *a, **settings: SimpleNamespace(references={2: 0, 1: 0}, **settings),
    )
    monkeypatch.setattr(omniglot, "plan_of", lambda folder, case, order: (order, 0))
    options = options_of("--peers")
    options.cases = [*omniglot.CASES]
    works = [*omniglot.gpu_works(tmp_path, options)]
    assert [work.target for work in works] == [5.0, None, None]
    assert works[0].flops == {2: 64, 1: 32}
    assert works[0].bench.tolerances == {"float32": 1e-4}


@pytest.mark.slow
def test_peers_are_timed_as_on_a_card(no_card, tmp_path, capsys):
    if find_spec("torch") is None:
        pytest.skip("torch is not installed")
    options = options_of("--quick", "--peers", "torch", backend="numpy")
    work = next(sinusoid.gpu_works(tmp_path, options))
    work = work._replace(flops={2: work.flops[2]}, target=3.0)
    rows, _ = gpu.run(iter([work]), "tinymaml numpy", quick=True)
    assert [one.implementation for one in rows] == [
        "tinymaml numpy",
        peers.LOOP,
        peers.VMAP,
        peers.COMPILED,
    ]
    assert "3 times faster than PyTorch" in capsys.readouterr().out


def test_examples_in_the_docstrings_are_right():
    result = doctest.testmod(gpu)
    assert result.attempted > 0 and result.failed == 0
