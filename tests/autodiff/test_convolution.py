"""Convolution and pooling against loops, SciPy and sums worked out by hand.

The derivatives of their primitives are in test_primitives.py.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import signal

from tests.support.image_problems import (
    direct,
    on_numbers,
    published_padding,
    random,
    windows,
)
from tests.support.running import BACKENDS, assert_backends_agree, assert_close
from tinymaml.autodiff.convolution import conv2d, max_pool, mean_pool, same_padding
from tinymaml.autodiff.derivatives import grad
from tinymaml.autodiff.tape import Tape

every_backend = pytest.mark.parametrize("backend", BACKENDS)
sizes = st.integers(1, 12)
kernels = st.integers(1, 5)
strides = st.integers(1, 4)


# --- convolution ----------------------------------------------------------------------


@given(size=st.integers(1, 100), kernel=st.integers(1, 9), stride=st.integers(1, 9))
def test_same_padding_is_the_published_rule(size, kernel, stride):
    out, before, _ = published_padding(size, kernel, stride)
    assert same_padding(size, kernel, stride) == (out, before)


@pytest.mark.parametrize(
    ("stride", "expected"),
    [
        (
            1,
            [[12, 21, 16], [27, 45, 33], [24, 39, 28]],
        ),  # each pixel and its neighbours
        (2, [[12, 16], [24, 28]]),
        (3, [[45]]),
    ],
)
@every_backend
def test_conv2d_of_ones_is_the_hand_computed_sum(backend, stride, expected):
    x = np.arange(1.0, 10).reshape(1, 3, 3, 1)
    out = on_numbers(
        lambda x, w: conv2d(x, w, stride), x, np.ones((3, 3, 1, 1)), backend=backend
    )
    assert out[0, :, :, 0].tolist() == expected


def test_conv2d_does_not_flip_the_kernel_and_pads_more_at_the_end():
    x = np.array([[1.0, 2, 3, 4]]).reshape(1, 1, 4, 1)
    w = np.array([[1.0, 10, 100]]).reshape(1, 3, 1, 1)
    plain, strided = (
        on_numbers(lambda x, w, s=s: conv2d(x, w, s), x, w).ravel() for s in (1, 2)
    )
    assert plain.tolist() == [210, 321, 432, 43]
    assert strided.tolist() == [321, 43]


@given(sizes, sizes, kernels, kernels, strides, st.integers(1, 3), st.integers(1, 5))
def test_conv2d_is_the_direct_loop(height, width, kh, kw, stride, channels, features):
    x, w = random(2, height, width, channels), random(kh, kw, channels, features)
    expected = direct(x, w, stride)
    for backend in BACKENDS:
        out = on_numbers(lambda x, w: conv2d(x, w, stride), x, w, backend=backend)
        assert_close(out, expected, 1e-13, backend)


@given(sizes, sizes, st.sampled_from([1, 3, 5]), st.sampled_from([1, 3]))
def test_conv2d_with_an_odd_kernel_is_scipys_correlation(height, width, kh, kw):
    x, w = random(height, width), random(kh, kw)
    out = on_numbers(conv2d, x[None, :, :, None], w[:, :, None, None])[0, :, :, 0]
    padded = np.pad(x, ((kh // 2, kh // 2), (kw // 2, kw // 2)))
    assert_close(out, signal.correlate(padded, w, "valid", "direct"), 1e-13)


@given(sizes, sizes, kernels, kernels, strides)
def test_a_strided_convolution_is_a_selection_of_that_of_stride_one(
    h, w, kh, kw, stride
):
    x, kernel = random(1, h, w, 2), random(kh, kw, 2, 3)
    whole, part = (
        on_numbers(lambda x, w, s=s: conv2d(x, w, s), x, kernel) for s in (1, stride)
    )
    row, column = (
        same_padding(n, k, 1)[1] - same_padding(n, k, stride)[1]
        for n, k in ((h, kh), (w, kw))
    )
    assert_close(part, whole[:, row::stride, column::stride], 1e-13)


@every_backend
def test_a_kernel_of_one_tap_is_a_matrix_product(backend):
    x, w = random(2, 3, 5, 4), random(1, 1, 4, 6)
    assert_close(on_numbers(conv2d, x, w, backend=backend), x @ w[0, 0], 1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("images", "kernel", "stride"),
    [
        ((2, 40, 38, 3), (3, 3, 3, 16), 1),  # one image exceeds a block
        (
            (9, 12, 11, 5),
            (3, 3, 5, 16),
            1,
        ),  # one block is smaller
        ((3, 9, 8, 32), (3, 3, 32, 33), 2),  # the kernel exceeds a block
    ],
)
def test_backends_agree_where_convolutions_are_cut_into_blocks(
    dtype, images, kernel, stride
):
    tape = Tape()
    x = tape.input("x", images, per_task=True)
    w = tape.input("w", kernel)
    y = conv2d(x, w, stride)
    g = tape.input("g", y.shape)
    tape.output("y", y)
    tape.output("dw", grad((y * g).sum(), w))
    tape.output("dx", grad((y * g).sum(), x))
    inputs = {"x": random(2, *images), "w": random(*kernel), "g": random(*y.shape)}
    assert_backends_agree(tape, inputs, dtype)


# --- pooling --------------------------------------------------------------------------


@every_backend
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_max_pool_is_the_largest_of_each_whole_window(backend, size):
    x = random(2, 5, 7, 3)
    out = on_numbers(lambda x: max_pool(x, size), x, backend=backend)
    assert np.array_equal(out, windows(x, size).max((3, 4)))


@every_backend
@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_mean_pool_is_the_mean_of_each_window(backend, size):
    x = random(2, 6, 12, 3)
    out = on_numbers(lambda x: mean_pool(x, size), x, backend=backend)
    assert_close(out, windows(x, size).mean((3, 4)), 1e-14)
    whole = on_numbers(mean_pool, x, backend=backend)
    assert_close(whole, x.mean((1, 2), keepdims=True), 1e-14)


# --- refusals -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "shapes", "message"),
    [
        (conv2d, [(2, 4, 3), (3, 3, 3, 4)], r"^x: expected images .*\(2, 4, 3\)"),
        (conv2d, [(1, 4, 4, 3), (3, 3, 4)], r"^w: expected a kernel .*\(3, 3, 4\)"),
        (conv2d, [(1, 4, 4, 3), (3, 3, 2, 4)], r"^x: .*2 channels, got .*\(1, 4, 4, 3"),
        (
            lambda x, w: conv2d(x, w, stride=0),
            [(1, 4, 4, 3), (3, 3, 3, 4)],
            "^stride: expected at least 1, got 0",
        ),
        (max_pool, [(4, 4)], r"^x: expected images .*\(4, 4\)"),
        (max_pool, [(1, 4, 1, 2)], r"^size: expected .*, got 2 for .*\(1, 4, 1, 2\)"),
        (lambda x: max_pool(x, 0), [(1, 4, 4, 2)], "^size: expected at least 1, got 0"),
        (mean_pool, [(4, 4)], r"^x: expected images .*\(4, 4\)"),
        (
            lambda x: mean_pool(x, 0),
            [(1, 4, 4, 2)],
            "^size: expected at least 1, got 0",
        ),
        (lambda x: mean_pool(x, 8), [(1, 4, 4, 2)], "^size: expected .*, got 8 for"),
        (
            lambda x: mean_pool(x, 2),
            [(1, 4, 5, 2)],
            "^size: expected a divisor .*got 2",
        ),
    ],
)
def test_a_shape_that_does_not_fit_is_refused_by_name(function, shapes, message):
    tape = Tape()
    values = [tape.input(f"x{i}", shape) for i, shape in enumerate(shapes)]
    with pytest.raises(ValueError, match=message) as caught:
        function(*values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [1.5, 2.0, True])
def test_a_window_or_stride_that_is_no_whole_number_is_refused(number):
    tape = Tape()
    x, w = tape.input("x", (1, 4, 4, 3)), tape.input("w", (3, 3, 3, 4))
    for call in (max_pool, mean_pool, lambda x, n: conv2d(x, w, n)):
        with pytest.raises(TypeError, match="^(size|stride): expected a whole number"):
            call(x, number)
