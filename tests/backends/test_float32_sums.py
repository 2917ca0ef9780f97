"""Sums in float32: every backend against float64 and against closed forms.

Backends that add in the same order make the same mistake, so it is not enough that they
agree. The data have an offset, beside which the differences that matter are small.
"""

import numpy as np
import pytest
from scipy import special

import tinymaml as tm
from tests.support.gpu_backends import gpu_backend
from tests.support.mutants import mutated, put, survives
from tests.support.node_backend import needs_node
from tests.support.running import BACKENDS, assert_close, run_tape
from tinymaml import losses
from tinymaml.autodiff import convolution, functions, primitives
from tinymaml.autodiff.derivatives import grad, hvp
from tinymaml.backends import get_backend
from tinymaml.backends.numba import selection
from tinymaml.networks import images

every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_offset = pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
PIXELS = 75 * 84 * 84  # in a query set of MiniImagenet, 5-way
PRIME = 100_003  # it cannot be cut into blocks of one length


def conv_weight(x, g, side=3):
    padding = (side // 2, side // 2)
    how = {"stride": 1, "padding": padding, "size": (side, side)}
    return x.tape.record("conv_weight", x, g, **how)


def weights_of_pixels(x, g):
    return conv_weight(x, g, 1)


SUMS = {  # name: (function, shapes of its arguments)
    "sum of a vector": (lambda x: x.sum(), [(PIXELS,)]),
    "sum of rows": (lambda x: x.sum(1), [(3, PRIME)]),
    "sum of columns": (lambda x: x.sum(0), [(PRIME, 3)]),
    "sum of middles": (lambda x: x.sum(1), [(2, PRIME, 5)]),
    "mean of pixels": (lambda x: x.mean((0, 1, 2)), [(75, 84, 84, 2)]),
    "sum of products": (lambda x, y: (x * y).sum(0), [(PRIME, 3)] * 2),
    "sum of squares": (lambda x: (x * x).sum(), [(PRIME,)]),
    "row times column": (lambda x, y: x @ y, [(1, PRIME), (PRIME, 1)]),
    "narrow product": (lambda x, y: x @ y, [(2, PRIME), (PRIME, 3)]),
    "matrix product": (lambda x, y: x @ y, [(3, PRIME), (PRIME, 9)]),
    "mean pool": (convolution.mean_pool, [(1, 300, 300, 2)]),
    "convolution": (convolution.conv2d, [(1, 8, 8, 500), (3, 3, 500, 2)]),
    "convolution's weights": (conv_weight, [(20, 84, 84, 2), (20, 84, 84, 3)]),
    "weights of many images": (weights_of_pixels, [(PRIME, 1, 1, 1), (PRIME, 1, 1, 2)]),
    "logsumexp": (functions.logsumexp, [(2, PRIME)]),
    "softmax": (functions.softmax, [(2, PRIME)]),
    "squared error": (tm.squared_error, [(PRIME, 2)] * 2),
}
# Their blocks are those of BLAS or of the tiles, and longer.
PRODUCTS = ("row times column", "narrow product", "matrix product", "convolution")
PRODUCTS += ("convolution's weights", "weights of many images")


def result_of(function, arrays, backend="numpy", dtype="float32"):
    """The array that a function of values gives for arrays."""
    tape = tm.Tape()
    values = [tape.input(f"x{i}", array.shape) for i, array in enumerate(arrays)]
    tape.output("out", function(*values))
    inputs = {f"x{i}": array for i, array in enumerate(arrays)}
    return run_tape(tape, inputs, backend, dtype)["out"][0]


def error(function, arrays, backend):
    """The largest difference between float32 and float64, on the same numbers."""
    expected = result_of(function, arrays, "numpy", "float64")
    return np.abs(result_of(function, arrays, backend) - expected).max()


def drawn(shapes, offset):
    """Numbers between 0 and 1, shifted, in float32."""
    rng = np.random.default_rng(0)
    return [(rng.random(shape) + offset).astype("float32") for shape in shapes]


def check_sum(name, backend, offset):
    function, shapes = SUMS[name]
    arrays = drawn(shapes, offset)
    expected = result_of(function, arrays, "numpy", "float64")
    tolerance = 5e-5 if name in PRODUCTS else 4e-6
    assert_close(result_of(function, arrays, backend), expected, tolerance, name)


@every_backend
@every_offset
@pytest.mark.parametrize("name", SUMS)
def test_a_long_sum_is_that_of_float64(name, backend, offset):
    check_sum(name, backend, offset)


IN_JAVASCRIPT = ("sum of rows", "sum of columns", "row times column")
IN_JAVASCRIPT += ("convolution", "weights of many images", "logsumexp", "softmax")
# The others take seconds.


@needs_node
@pytest.mark.parametrize("name", IN_JAVASCRIPT)
def test_a_long_sum_in_javascript_is_that_of_float64(name):
    check_sum(name, "javascript", 1e3)


# number: of equal terms c, the result is known
CONSTANT = {
    "sum of columns": lambda c: PRIME * c,
    "mean of pixels": lambda c: c,
    "sum of squares": lambda c: PRIME * c**2,
    "logsumexp": lambda c: c + np.log(PRIME),
    "softmax": lambda c: 1 / PRIME,
    "row times column": lambda c: PRIME * c**2,
    "weights of many images": lambda c: PRIME * c**2,
    "squared error": lambda c: 0.0,
}


@every_backend
@pytest.mark.parametrize("number", [0.1, 1.3, 100.1, 1e6])
@pytest.mark.parametrize("name", CONSTANT)
def test_a_sum_of_equal_terms_has_its_closed_form(name, number, backend):
    function, shapes = SUMS[name]
    arrays = [np.full(shape, number, "float32") for shape in shapes]
    out = result_of(function, arrays, backend)
    expected = CONSTANT[name](np.float64(np.float32(number)))
    tolerance = 5e-5 if name in PRODUCTS else 4e-6
    assert_close(out, np.full(out.shape, expected), tolerance)


# --- batch normalisation --------------------------------------------------------------


def batch_norm(x, *support, mode="batch"):
    beta = x.tape.constant(0.0, x.shape[-1:])
    return tm.BatchNorm(x.shape[-1], mode)([beta], x, *support)


def from_support(x, support):
    return batch_norm(x, support, mode="support")


@every_backend
@pytest.mark.parametrize("number", [0.1, 1.3, 100.1, 1e4, 1e6])
def test_batch_norm_of_a_constant_channel_is_zero(number, backend):
    x = np.full((75, 84, 84, 2), number, "float32")
    assert np.abs(result_of(batch_norm, [x], backend)).max() < 1e-6
    other = result_of(from_support, [x[:2], x], backend)
    assert np.abs(other).max() < 1e-6


def check_batch_norm(backend, offset):
    rng, shape = np.random.default_rng(0), (75, 84, 84, 2)
    noise = (rng.standard_normal(shape) + offset).astype("float32")
    assert error(batch_norm, [noise], backend) < 2e-5
    assert error(from_support, [noise[:3], noise], backend) < 2e-5
    ground = np.full(shape, 0.9 + offset, "float32")  # with a little noise in it
    ground[:, 30:40, 30:40] += rng.random((75, 10, 10, 2))
    assert error(batch_norm, [ground], backend) < 2e-4


@every_backend
@every_offset
def test_batch_norm_is_that_of_float64(backend, offset):
    check_batch_norm(backend, offset)


@every_backend
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("function", [functions.rsqrt, lambda x: 1 / x])
def test_functions_of_zero_and_infinity_are_infinity_and_zero(function, dtype, backend):
    for size in (1, 3, 16, 100):  # with and without vectors
        x = np.resize([np.inf, 0.0], size)
        out = result_of(function, [x], backend, dtype)
        assert np.array_equal(out, np.resize([0.0, np.inf], size))


@every_backend
def test_batch_norm_of_huge_activations_is_finite(backend):
    # Their variance is infinite in float32, so its root divides them to 0.
    x = np.outer(np.linspace(-1, 1, 4), np.full(8, 3e19)).astype("float32")
    assert (result_of(batch_norm, [x], backend) == 0).all()


# --- cross-entropy --------------------------------------------------------------------


def cross_entropy(logits, y, backend="numpy", dtype="float32", **options):
    """Loss, gradient and a Hessian-vector product."""
    tape = tm.Tape()
    z, labels, v = (tape.input(name, logits.shape) for name in ("z", "y", "v"))
    loss = losses.cross_entropy(z, labels, **options)
    tape.output("loss", loss)
    tape.output("gradient", grad(loss, z))
    tape.output("hvp", hvp(loss, z, v))
    v = np.random.default_rng(1).standard_normal(logits.shape)
    inputs = {"z": logits, "y": y, "v": v}
    inputs = {name: np.array(array, dtype) for name, array in inputs.items()}
    run = (gpu_backend if backend == "stand-in" else get_backend)(backend)
    results = run.compile(tape, dtype)(inputs)
    return [results[name][0] for name in ("loss", "gradient", "hvp")]


def one_hot(examples, ways, seed=0):
    rng = np.random.default_rng(seed)
    return np.eye(ways)[rng.integers(0, ways, examples)]


# what the labels may be: y (N, ways) -> y
LABELS = {
    "one-hot": lambda y: y,
    "smoothed": lambda y: 0.9 * y + 0.1 / y.shape[1],
    "weighted": lambda y: 3.5 * y,
    "masked": lambda y: y * (np.arange(len(y)) % 2)[:, None],
}
every_label = pytest.mark.parametrize("kind", LABELS)
three_backends = pytest.mark.parametrize("backend", [*BACKENDS, "stand-in"])


def check_offsets(backend, offset, kind):
    """Shifted logits have the very loss and derivatives of those that are not."""
    y = LABELS[kind](one_hot(75, 5))
    # Multiples of 8, so that float32 holds the shifted ones exactly.
    logits = 8.0 * np.random.default_rng(1).integers(-2, 3, y.shape)
    expected = cross_entropy(logits, y, dtype="float64")
    for array, right in zip(
        cross_entropy(logits + offset, y, backend), expected, strict=True
    ):
        assert_close(array, right, 2e-6)
    terms = y * special.log_softmax(logits, axis=1)
    assert_close(expected[0], -terms.sum() / len(y), 1e-14)
    slope = y.sum(1, keepdims=True) * special.softmax(logits, axis=1) - y
    assert_close(expected[1], slope / len(y), 1e-14)


@three_backends
@every_label
@pytest.mark.parametrize("offset", [0.0, -1e3, 1e6, 1e8])
def test_cross_entropy_of_shifted_logits_loses_nothing(offset, kind, backend):
    check_offsets(backend, offset, kind)


@three_backends
@pytest.mark.parametrize("number", [0.0, 1e2, 1e4, 1e6, 1e8, -1e8])
@pytest.mark.parametrize("ways", [2, 5, 20])
def test_cross_entropy_of_equal_logits_is_the_log_of_their_number(
    number, ways, backend
):
    y = one_hot(10, ways)
    loss, gradient, _ = cross_entropy(np.full(y.shape, number), y, backend)
    assert_close(loss, np.log(ways), 2e-7)
    assert_close(gradient, (1 / ways - y) / 10, 1e-6)


def check_confident(backend):
    """The loss of a batch that is classified well is positive and right."""
    for seed in range(20):
        rng, y = np.random.default_rng(seed), one_hot(75, 5, seed)
        for margin in (5, 20, 60):
            logits = (rng.normal(0, margin / 6, y.shape) + margin * y).astype("float32")
            loss, *_ = cross_entropy(logits, y, backend)
            right, *_ = cross_entropy(logits, y, dtype="float64")
            assert loss >= 0
            # 1 + p is rounded to float32 before its logarithm is taken.
            assert abs(loss - right) < 1e-7 + 1e-6 * right


@three_backends
def test_cross_entropy_of_a_confident_batch_is_not_negative(backend):
    check_confident(backend)


def check_masked_classes(backend):
    """A class is often ruled out by a large negative logit. The others keep theirs."""
    logits = np.array([[1.5, -0.25, -1e9], [0.5, -1e9, 2.0]])
    y = np.array([[1.0, 0, 0], [0, 0, 1]])
    right = cross_entropy(logits, y, dtype="float64")
    for array, expected in zip(cross_entropy(logits, y, backend), right, strict=True):
        assert_close(array, expected, 1e-6)


@three_backends
def test_cross_entropy_ignores_masked_classes(backend):
    check_masked_classes(backend)


# --- mistakes -------------------------------------------------------------------------


SEQUENTIAL = {"numpy": (primitives, "BLOCK"), "numba": (selection, "LONG_SUM")}


@every_backend
def test_a_plain_sequential_sum_is_caught(monkeypatch, backend):
    monkeypatch.setattr(*SEQUENTIAL[backend], 10**9)
    for name in ("sum of columns", "mean of pixels", "sum of middles"):
        assert not survives(lambda name=name: check_sum(name, backend, 1e3)), name


REST = [
    ("centred = centred - rest", "pass"),
    ("pixels - mean - rest", "pixels - mean"),
]


@pytest.mark.parametrize(("old", "new"), REST)
def test_batch_norm_with_a_rounded_mean_is_caught(monkeypatch, old, new):
    call = mutated(images.BatchNorm.__call__, old, new)
    monkeypatch.setattr(images.BatchNorm, "__call__", call)
    assert not survives(lambda: check_batch_norm("numba", 1e6))


SHIFTS = {
    "none": ("functions.stop_gradient(true)", "(0.0 * y).sum(1)"),
    "that of labels that sum to 1": (" / (y.sum(1) + 1e-30)", ""),
    "the mean of all logits": ("functions.stop_gradient(true)", "logits.mean(1)"),
}


@pytest.mark.parametrize("shift", SHIFTS)
def test_cross_entropy_with_another_shift_is_caught(monkeypatch, shift):
    put(monkeypatch, losses, "cross_entropy", *SHIFTS[shift])
    offsets = [lambda k=k: check_offsets("numba", 1e8, k) for k in LABELS]
    assert not survives(*offsets, lambda: check_masked_classes("numba"))
