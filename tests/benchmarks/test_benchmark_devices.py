"""How the benchmarks bring arrays to a device and gradients back, without a card.

Device "cpu" is the path of a card, from arrays on the host to a gradient on the host.
"""

import doctest
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

# benchmarks/ is no part of the installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import tinymaml as tm
from benchmarks import devices, measure, peers, sinusoid
from benchmarks.measure import Bench, Implementation

# torch.compile takes a minute: `test_benchmark_gpu.py` has one form of it.
PEERS = {
    "torch": [(peers.LOOP, ("",)), (peers.VMAP, peers.FORMS)],
    "jax": [(peers.JAX_VMAP, peers.FORMS)],
}


@pytest.mark.slow
@pytest.mark.parametrize("module", PEERS)
def test_peers_compute_the_same_gradients_from_host_to_host(module, tmp_path, capsys):
    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    sinusoid.save_data(tmp_path, [sinusoid.TASKS])
    references, script = sinusoid.references(tmp_path), Path(sinusoid.__file__)
    bench = Bench(script, tmp_path, False, references, sinusoid.TASKS, device="cpu")
    competitors = [Implementation(n, module, (1,), forms) for n, forms in PEERS[module]]
    measure.check_float64(bench, competitors, every_form=True)
    count = 2 * sum(len(one.forms) for one in competitors)
    assert f"float64: {count} gradients agree" in capsys.readouterr().out


def test_peak_of_a_card_waits_for_its_product(monkeypatch):
    waits = []
    stream = SimpleNamespace(synchronize=lambda: waits.append(1))
    cupy = SimpleNamespace(
        asarray=np.asarray,
        asnumpy=np.asarray,
        empty_like=np.empty_like,
        matmul=np.matmul,
        cuda=SimpleNamespace(get_current_stream=lambda: stream),
    )
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(devices.PEAK_SIZES, "cuda", 8)
    workload = devices.matmul_peak("cuda")
    assert workload.read(workload.call()).shape == (1,)
    assert waits == [1]


@pytest.mark.parametrize(("tf32", "jax"), [(False, "highest"), (True, "tensorfloat32")])
def test_precision_is_the_same_for_all(tf32, jax):
    variables = devices.environment("cuda", tf32)
    assert variables["JAX_DEFAULT_MATMUL_PRECISION"] == jax
    assert variables["CUPY_TF32"] == str(int(tf32))
    assert devices.environment("", tf32) == devices.environment("cpu", tf32) == {}
    if find_spec("jax"):
        import jax as library

        with library.default_matmul_precision(jax):
            pass  # a name that JAX knows


def event(name, device="CUDA", **more):
    return SimpleNamespace(name=name, device_type=SimpleNamespace(name=device), **more)


def test_kernels_are_counted_without_copies_fills_labels_and_the_host():
    events = [
        event("ampere_sgemm_32x32"),
        event("triton_poi_fused_add_0", is_user_annotation=False),
        event("Memcpy HtoD (Pinned -> Device)"),
        event("Memset (Device)"),
        event("## Call CompiledFxGraph", is_user_annotation=True),
        event("aten::mm", device="CPU"),
    ]
    assert devices.count_kernels(events) == 2


def test_launches_of_tinymaml_are_its_programs():
    maml = tm.MAML(lambda theta, x, y: ((x * theta - y) * (x * theta - y)).mean())
    one = np.ones((1, 1, 1))
    for backend, launches in ((SimpleNamespace(launches=7), 7), (object(), None)):
        maml.backend = SimpleNamespace(compile=lambda tape, dtype, m=backend: m)
        workload = devices.tinymaml_workload(maml, np.zeros(1), [one] * 4, np.array)
        assert workload.launches() == launches


def test_examples_in_the_docstrings_are_right():
    result = doctest.testmod(devices)
    assert result.attempted > 0 and result.failed == 0
