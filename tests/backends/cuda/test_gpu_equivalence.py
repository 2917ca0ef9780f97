"""The GPU backend gives the numbers of the reference, on a stand-in and on a GPU.

Every primitive of the table with its derivatives of orders 1, 2 and 3, random programs,
and the meta-gradients of small networks and policies. Tests of the backend "cupy" say
why they are skipped where no GPU can be used.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinymaml as tm
from tests.support.gpu_backends import AGREE, GPU_BACKENDS, gpu_backend
from tests.support.image_problems import (
    image_problem,
    pooled_network,
    small_network,
    strided_network,
)
from tests.support.maml_problems import alpha_vector, problem
from tests.support.policy_problems import problem as policy_problem
from tests.support.primitive_cases import CASES
from tests.support.primitive_checks import derivative_inputs, derivative_tape
from tests.support.random_programs import (
    output_picks,
    programs,
    random_inputs,
    with_outputs,
)
from tests.support.running import (
    DTYPES,
    all_values,
    assert_close,
    largest,
    relative_error,
    run_tape,
)
from tinymaml.autodiff.tape import Tape

every_backend = pytest.mark.parametrize("backend", GPU_BACKENDS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
NETWORKS = (small_network, pooled_network, strided_network)


def assert_agrees(tape, inputs, backend, dtype):
    """All outputs are the reference's, relative to the largest number on the tape."""
    inputs = {name: np.array(array, dtype) for name, array in inputs.items()}
    expected = run_tape(tape, inputs, "numpy", dtype)
    actual = backend.compile(tape, dtype)(inputs)
    floor = largest(all_values(tape, inputs))
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert actual[name].dtype == dtype
        assert_close(actual[name], array, AGREE[dtype], name, floor)


@pytest.mark.parametrize("name", CASES)
@every_backend
@every_dtype
def test_primitive_and_its_derivatives_agree(name, backend, dtype):
    backend = gpu_backend(backend)
    for seed, (shapes, attributes) in enumerate(CASES[name].odd):
        tape = derivative_tape(name, shapes, attributes)
        inputs = derivative_inputs(tape, name, shapes, attributes, seed)
        assert_agrees(tape, inputs, backend, dtype)


@every_backend
@settings(max_examples=5 * settings().max_examples)
@given(program=programs(), picks=output_picks, seed=st.integers(0, 2**16))
def test_random_programs_agree(backend, program, picks, seed):
    backend = gpu_backend(backend)
    tape = with_outputs(program, picks)
    assert_agrees(tape, random_inputs(tape, seed, tasks=3), backend, "float64")


# --- meta-gradients -------------------------------------------------------------------


def both(p, backend, **options):
    """(meta-gradient of the backend, of the reference)."""
    return [
        p.maml(backend=m, **options).meta_gradient(
            p.theta, p.tasks, parts=options.get("order", 2) == 2
        )
        for m in (backend, "numpy")
    ]


def assert_same(results, dtype):
    actual, expected = results
    assert actual.gradient.dtype == dtype
    assert_close(actual.gradient, expected.gradient, AGREE[dtype], "gradient")
    assert_close(actual.losses, expected.losses, AGREE[dtype], "losses")
    if expected.parts is not None:
        for name in ("query_gradient", "corrections", "alpha_gradient"):
            one, other = (getattr(r.parts, name) for r in results)
            floor = np.linalg.norm(expected.gradient)
            assert_close(one, other, AGREE[dtype], name, floor)


@every_backend
@every_dtype
@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy"])
def test_meta_gradients_of_perceptrons_agree(backend, dtype, steps, order, loss):
    p = problem(loss, tasks=7).cast(dtype)
    backend = gpu_backend(backend)
    for options in (
        {},
        {"recompute": True, "reduction": "mean"},
        {"alpha": alpha_vector(p.theta)},
    ):
        found = both(p, backend, steps=steps, order=order, **options)
        assert_same(found, dtype)


@every_backend
@every_dtype
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("network", NETWORKS)
def test_meta_gradients_of_convolutional_networks_agree(backend, dtype, order, network):
    p = image_problem(network(), size=6 if network is small_network else 5).cast(dtype)
    assert_same(both(p, gpu_backend(backend), steps=2, order=order), dtype)


@every_backend
def test_adaptation_evaluation_and_prediction_agree(backend):
    p = problem(tasks=5)
    ours, reference = p.maml(backend=gpu_backend(backend)), p.maml()
    x, y = p.tasks[:2]
    assert_close(*(m.adapt(p.theta, x, y, 3) for m in (ours, reference)), 1e-10)
    assert_close(*(m.evaluate(p.theta, p.tasks, 3) for m in (ours, reference)), 1e-10)
    network = tm.MLP([2, 5, 3], "tanh")
    logits = [m.predict(network, p.theta, p.tasks, 3) for m in (ours, reference)]
    assert logits[0].shape[:2] == (5, 4)
    assert_close(*logits, 1e-10)


@every_backend
def test_an_outer_step_of_policy_search_agrees(backend):
    backend = gpu_backend(backend)
    v = np.random.default_rng(0).standard_normal(policy_problem().theta.size)
    ours, reference = (policy_problem(m).objective() for m in (backend, "numpy"))
    assert_close(ours.gradient, reference.gradient, 1e-9, "surrogate gradient")
    assert_close(ours.fisher(v), reference.fisher(v), 1e-9, "F v")


# --- repeatability --------------------------------------------------------------------


@every_backend
@every_dtype
def test_a_replay_gives_the_same_bits(backend, dtype):
    p = image_problem(strided_network(), tasks=35).cast(dtype)
    maml = p.maml(backend=gpu_backend(backend), steps=2)
    first = maml.meta_gradient(p.theta, p.tasks)
    maml.meta_gradient(p.theta * 2, p.tasks)
    second = maml.meta_gradient(p.theta, p.tasks)
    assert first.gradient.tobytes() == second.gradient.tobytes()
    assert first.losses.tobytes() == second.losses.tobytes()


def test_no_order_of_threads_changes_a_bit():
    p = image_problem(pooled_network(), tasks=3).cast("float32")
    results = [
        p.maml(backend=gpu_backend("stand-in", **options)).meta_gradient(
            p.theta, p.tasks
        )
        for options in ({}, {"grid": (3, 2), "threads": 5, "seed": 1})
    ]
    assert results[0].gradient.tobytes() == results[1].gradient.tobytes()


@every_backend
def test_nan_and_infinity_are_results(backend):
    tape = Tape()
    x = tape.input("x", (5,))
    tape.output("relu", tm.relu(x))
    tape.output("gate", tape.record("gate", tape.constant(2.0, (5,)), x))
    tape.output("exp", tm.exp(x * 1e4))
    tape.output("log", tm.log(x))
    tape.output("sum", x.sum())
    numbers = np.array([np.nan, -1.0, 0.0, 1.0, np.inf])
    found = gpu_backend(backend).compile(tape, "float64")({"x": numbers})
    nan, inf = np.nan, np.inf
    for name, expected in {
        "relu": [nan, 0, 0, 1, inf],
        "gate": [2, 0, 0, 2, 2],
        "exp": [nan, 0, 1, inf, inf],
        "log": [nan, nan, -inf, 0, inf],
        "sum": nan,
    }.items():
        assert np.array_equal(found[name][0], expected, equal_nan=True), name


# --- work larger than a grid ----------------------------------------------------------


def check_squares(backend, shape, tasks):
    """Squares of whole numbers, and their sums over tasks: exact in float64."""
    tape = Tape()
    x = tape.input("x", shape, per_task=True)
    tape.output("each", x * x)
    tape.output("sum", x * x, "sum")
    numbers = np.arange(tasks * np.prod(shape)).reshape(tasks, *shape) % 1000.0
    found = backend.compile(tape, "float64")({"x": numbers})
    assert np.array_equal(found["each"], numbers**2)
    assert np.array_equal(found["sum"], (numbers**2).sum(axis=0))


@every_backend
def test_more_tasks_than_are_launched_together(backend):
    check_squares(gpu_backend(backend), (3,), 70_000)


@every_backend
def test_more_elements_than_a_grid_has_threads(backend):
    check_squares(gpu_backend(backend), (1000, 1100), 2)


@every_backend
def test_programs_may_take_turns(backend):
    backend, p = gpu_backend(backend), problem(tasks=3)
    mamls = [p.maml(backend=backend, steps=steps) for steps in (1, 2)]
    alone = [maml.meta_gradient(p.theta, p.tasks).gradient for maml in mamls]
    for _ in range(2):
        for maml, gradient in zip(mamls, alone, strict=True):
            second = maml.meta_gradient(p.theta, p.tasks).gradient
            assert second.tobytes() == gradient.tobytes()


def test_tf32_rounds_factors_and_float32_does_not():
    exact, rounded = gpu_backend("cupy"), gpu_backend("cupy-tf32")
    tape = Tape()
    a, b = (tape.input(name, (512, 512)) for name in "ab")
    tape.output("product", a @ b)
    rng = np.random.default_rng(0)
    inputs = {name: rng.standard_normal((512, 512)) for name in "ab"}
    expected = inputs["a"] @ inputs["b"]
    inputs = {name: array.astype("float32") for name, array in inputs.items()}
    errors = [
        relative_error(m.compile(tape, "float32")(inputs)["product"][0], expected)
        for m in (exact, rounded)
    ]
    assert errors[0] < 1e-5 < errors[1] < 1e-2
