"""One wrong argument at a time: each is refused in one line that begins with its name.

A call that works is repeated with one argument replaced by each of WRONG. It may
return, since 3 is a right number of steps; a file may be missing; and no gradient is
right at NaN. Anything else is a fault: an AttributeError from deep inside, or an error
of NumPy's that names no argument.

`test_bad_input.py` has the operations of a tape, with many arguments wrong at once.
"""

from pathlib import Path

import numpy as np
import pytest

import tinymaml as tm
from tinymaml.paper.initialisations import load_initialisation, save_initialisation
from tinymaml.paper.recipes import NavigationRecipe, SinusoidRecipe
from tinymaml.tasks import miniimagenet, omniglot
from tinymaml.tasks.images import DataError
from tinymaml.tasks.navigation import Navigation
from tinymaml.tasks.sinusoid import sample_tasks
from tinymaml.training import optim
from tinymaml.variants import ImplicitMAML, InnerAdam, MAMLPlusPlus, Reptile, StepRates

WRONG = (3, 0, -1, 2.5, True, None, "x", "", b"x", [], [1, 2], {}, {"a": 1}, object())
WRONG += (1j, float("nan"), (1,), Path("nowhere/x"), lambda *_: 1, np.ones(3, "f"))
WRONG += (np.zeros(3), np.full(3, np.nan), np.ones((2, 2)), np.array("x"))
NETWORK = tm.MLP([1, 4, 1])
THETA = NETWORK.init(np.random.default_rng(0))
POLICY = tm.GaussianPolicy(tm.MLP([2, 4, 2]), 2, backend="numpy")
# Other names with which a refusal may begin. The arrays of a batch must have the dtype
# of theta, so with another theta they do not fit. A function of the user's is called
# with Values, or returns what is refused. A file is named, and so is a part of it.
HEADS = {
    ("meta_gradient", "theta"): "x_support",
    ("evaluate", "theta"): "x_support",
    ("adapt", "theta"): "x_support",
    ("adapt", "x"): "x_support",
    ("adapt", "y"): "y_support",
    ("predict", "theta"): "x_support",
    ("predict", "function"): "value",
    ("train", "theta"): "x_support",
    ("train", "sample"): "tasks",
    ("train", "resume"): "x",  # a file that is no checkpoint
    ("save_checkpoint", "arrays"): "array 'a'",
    ("save_initialisation", "facts"): "state",
    ("accuracy", "logits"): "y",
    ("gradcheck", "theta"): "dtype",
}


def loss(theta, x, y):
    return tm.squared_error(NETWORK(theta, x), y)


def sample(rng):
    return sample_tasks(rng, tasks=2, shots=3)


def calls():
    """{name: (function, arguments that it takes)}, new for each use."""
    maml, rng = tm.MAML(loss, backend="numpy"), np.random.default_rng(0)
    tasks, theta = sample(rng), THETA.copy()
    inner = {"loss": loss, "alpha": 0.01, "steps": 1, "clip": None, "backend": "numpy"}
    more = {"order": 2, "reduction": "mean", "recompute": False, "query_loss": None}
    files = {"out": None, "log": None, "resume": None, "config": None}
    every = {"checkpoint_every": 1, "log_every": 1, "validate_every": 1}
    functions = {"validate": None, "stop": None, "after": None}
    training = {"iterations": 2, "optimiser": tm.SGD(0.01), "columns": (), "rng": rng}
    image = {"features": 4, "mode": "batch", "gamma": False}
    trpo = {"steps": 1, "order": 2, "trajectories": 3, "damping": 0.0, "discount": 0.99}
    sinusoid = SinusoidRecipe()
    weights = sinusoid.network().init(rng)
    return {
        "MAML": (tm.MAML, inner | more | {"step_weights": None, "threads": None}),
        "meta_gradient": (
            maml.meta_gradient,
            {"theta": theta, "tasks": tasks, "parts": False},
        ),
        "evaluate": (maml.evaluate, {"theta": theta, "tasks": tasks, "steps": 1}),
        "adapt": (maml.adapt, {"theta": theta, "x": tasks[0], "y": tasks[1]}),
        "predict": (
            maml.predict,
            {"function": lambda t, x, _: NETWORK(t, x), "theta": theta, "tasks": tasks},
        ),
        "train": (
            lambda theta, sample, **options: tm.train(maml, theta, sample, **options),
            {"theta": theta, "sample": sample} | (files | every | functions | training),
        ),
        "SGD": (tm.SGD, {"learning_rate": 0.1}),
        "Adam": (tm.Adam, {"learning_rate": 0.1, "beta1": 0.9, "epsilon": 1e-8}),
        "constant": (optim.constant, {"learning_rate": 0.1}),
        "step": (optim.step, {"learning_rate": 0.1, "every": 3, "factor": 0.1}),
        "cosine": (optim.cosine, {"learning_rate": 0.1, "iterations": 3, "last": 0.0}),
        "save_checkpoint": (
            tm.save_checkpoint,
            {"path": "a.npz", "arrays": {"a": theta}, "config": {}, "state": {}},
        ),
        "load_checkpoint": (tm.load_checkpoint, {"path": "a.npz"}),
        "save_initialisation": (
            save_initialisation,
            {"path": "i.npz", "theta": weights, "recipe": sinusoid, "facts": {}},
        ),
        "load_initialisation": (load_initialisation, {"path": "i.npz"}),
        "pretrained": (tm.pretrained, {"name": "sinusoid-maml"}),
        "SinusoidRecipe": (
            lambda **a: SinusoidRecipe(**a).maml(NETWORK, backend="numpy"),
            {"alpha": 0.1},
        ),
        "NavigationRecipe": (
            lambda **a: NavigationRecipe(**a).maml(POLICY, backend="numpy"),
            {"alpha": 0.1, "reward": "distance"},
        ),
        "accuracy": (tm.accuracy, {"logits": np.eye(3), "y": np.eye(3)}),
        "summary": (tm.summary, {"tape": tm.Tape()}),
        "function": (tm.function, {"loss": loss, "backend": "numpy"}),
        "gradcheck": (
            lambda **a: tm.gradcheck(lambda theta: (theta * theta).sum(), **a),
            {"theta": np.ones(3), "order": 2, "seed": 0, "tolerance": None},
        ),
        "MAMLTRPO": (
            lambda **a: tm.MAMLTRPO(environment=Navigation(), backend="numpy", **a),
            {"policy": POLICY, "alpha": 0.1, "transitions": None} | trpo,
        ),
        "sample_tasks": (
            sample_tasks,
            {"rng": rng, "tasks": 2, "shots": 3, "query": None, "dtype": "float32"},
        ),
        "Navigation": (
            Navigation,
            {"reward": "distance", "horizon": 5, "goal_visible": False},
        ),
        "omniglot.find_data": (omniglot.find_data, {"data": "nowhere"}),
        "miniimagenet.load": (miniimagenet.load, {"data": ".", "splits": None}),
        "MLP": (tm.MLP, {"sizes": [1, 2], "activation": "relu", "initialiser": None}),
        "Linear": (tm.Linear, {"inputs": 1, "outputs": 1, "initialiser": None}),
        "Conv2d": (
            tm.Conv2d,
            {"channels": 1, "features": 1, "stride": 1, "bias": False}
            | {"initialiser": None},
        ),
        "BatchNorm": (
            tm.BatchNorm,
            {"channels": 1, "mode": "batch", "gamma": False, "epsilon": 1e-3},
        ),
        "Network": (tm.Network, {"layers": [tm.Linear(1, 1)]}),
        "OmniglotConv": (tm.OmniglotConv, {"ways": 2} | image),
        "MiniImagenetConv": (tm.MiniImagenetConv, {"ways": 2} | image),
        "init": (NETWORK.init, {"rng": rng, "dtype": "float32"}),
        "network.predict": (
            NETWORK.predict,
            {"theta": theta, "x": np.zeros((3, 1), "f")},
        ),
        "Reptile": (Reptile, {"loss": loss, "batch": None, "backend": "numpy"}),
        "ImplicitMAML": (
            ImplicitMAML,
            inner | {"penalty": 2.0, "iterations": 5, "damping": 0.0},
        ),
        "InnerAdam": (InnerAdam, inner | {"beta1": 0.9, "epsilon": 1e-4}),
        "StepRates": (
            StepRates,
            {"loss": loss, "network": NETWORK, "alpha": 0.01, "backend": "numpy"},
        ),
        "MAMLPlusPlus": (
            MAMLPlusPlus,
            {"loss": loss, "network": NETWORK, "backend": "numpy"}
            | {"weights_at": lambda _: [1.0], "order_at": lambda _: 1},
        ),
    }


@pytest.mark.parametrize("name", calls())
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_wrong_argument_is_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TINYMAML_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TINYMAML_DATA", raising=False)
    function, arguments = calls()[name]
    if name not in ("load_checkpoint", "load_initialisation", "miniimagenet.load"):
        function(**arguments)
    faults = []
    for argument in arguments:
        heads, refused = (argument, HEADS.get((name, argument), argument)), 0
        for wrong in WRONG:
            function, arguments = calls()[name]
            try:
                function(**arguments | {argument: wrong})
                continue
            except (OSError, DataError) as error:  # of a right path, without the file
                assert isinstance(wrong, str | Path | None), (argument, wrong)
                assert str(wrong or "") in str(error)
            except tm.GradientError:
                assert name == "gradcheck" and np.isnan(wrong).any()
            except (TypeError, ValueError) as error:
                text = str(error)
                if "\n" in text or not text.startswith(tuple(f"{h}:" for h in heads)):
                    faults.append(f"{argument}={wrong!r}: {text}")
            except Exception as error:
                faults.append(f"{argument}={wrong!r}: {error!r}")
            refused += 1
        if not refused:
            faults.append(f"{argument}: everything is accepted")
    assert not faults, "\n".join(faults)
