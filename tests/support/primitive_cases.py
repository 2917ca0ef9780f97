"""The table of primitives under test: one case for each primitive of the package.

A case says what the primitive computes in plain NumPy, at which odd shapes it is always
called, which shapes Hypothesis draws, and from where the numbers are drawn: how far
from kinks and poles.
"""

from collections.abc import Callable
from itertools import product
from math import prod
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from scipy import special

from tinymaml.autodiff.convolution import same_padding

Call = tuple[tuple[tuple[int, ...], ...], dict[str, Any]]  # shapes and attributes


class Case(NamedTuple):
    """How one primitive is called, what it computes, and where."""

    reference: Callable[..., Any]
    odd: list[Call]
    drawn: st.SearchStrategy[Call]
    positive: bool = False
    nearest: float = 0.1  # the least size of a number: kinks and poles are at zero
    spaced: bool = False  # whether no two elements of an argument may be almost equal


def arguments_of(primitive, shapes, seed, tasks=None):
    """Numbers between `nearest` and 1.5 in size, of either sign unless positive."""
    case, rng = CASES[primitive], np.random.default_rng(seed)
    arrays = []
    for shape in shapes:
        shape = shape if tasks is None else (tasks, *shape)
        signs = 1.0 if case.positive else rng.choice([-1.0, 1.0], shape)
        sizes = rng.uniform(case.nearest, 1.5, shape)
        if case.spaced:
            ladder = np.linspace(case.nearest, 1.5, prod(shape))
            sizes = rng.permutation(ladder).reshape(shape)
        arrays.append(sizes * signs)
    return arrays


# --- how primitives are called --------------------------------------------------------

small = st.integers(1, 6)
shapes_of_any_rank = st.lists(st.integers(1, 5), max_size=3).map(tuple)
numbers = st.floats(-3, 3, allow_subnormal=False)


def alike(arguments, **attributes):
    """Some arguments of one shape, with attributes drawn from strategies."""
    shapes = [(1,), (7,), (8,), (41,), (2, 3, 5), (1, 1), (13, 1), (1, 8), ()]
    first = {"number": -1.5} if attributes else {}
    drawn = st.fixed_dictionaries(attributes)
    return (
        [((shape,) * arguments, first) for shape in shapes],
        st.builds(lambda a, b: ((a,) * arguments, b), shapes_of_any_rank, drawn),
    )


def rows_of_logits():
    shapes = [(1,), (7,), (1, 1), (3, 1), (1, 5), (13, 2), (2, 3, 5)]
    drawn = st.lists(st.integers(1, 5), min_size=1, max_size=3)
    return (
        [((shape,), {}) for shape in shapes],
        drawn.map(lambda shape: ((tuple(shape),), {})),
    )


def product_call(m, n, k, ta, tb):
    return ((k, m) if ta else (m, k), (n, k) if tb else (k, n)), {"ta": ta, "tb": tb}


def products():
    """Products (m, k) @ (k, n) with every pair of transpose flags. Widths n are whole
    tiles of 40, 32, 16 and 8 columns and others that leave a remainder; m is even and
    odd; and every size is 1 once."""
    sizes = [(1, 1, 1), (1, 40, 1), (1, 1, 7), (5, 1, 3), (2, 40, 40), (3, 80, 2)]
    sizes += [(3, 41, 5), (7, 32, 4), (2, 39, 3), (1, 33, 8), (4, 8, 1), (5, 17, 9)]
    sizes += [(2, 7, 2), (1, 20, 3), (3, 16, 1), (2, 24, 11), (13, 1, 1), (1, 5, 17)]
    flags = list(product([False, True], repeat=2))
    drawn = st.builds(
        product_call, small, st.integers(1, 12), small, *[st.booleans()] * 2
    )
    return [product_call(*s, *f) for s, f in product(sizes, flags)], drawn


@st.composite
def ranges_of_axes(draw):
    """A shape and a range start .. stop - 1 of its axes."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    start = draw(st.integers(0, len(shape) - 1))
    return shape, start, draw(st.integers(start + 1, len(shape)))


def sum_call(shape, start, stop):
    return (shape,), {"start": start, "stop": stop}


def broadcast_call(shape, start, stop):
    ones = (*shape[:start], *(1,) * (stop - start), *shape[stop:])
    return (ones,), {"start": start, "sizes": shape[start:stop]}


AXES = [
    ((1,), 0, 1),
    ((7,), 0, 1),
    ((5, 1), 0, 1),
    ((5, 1), 1, 2),
    ((3, 7), 0, 1),
    ((3, 7), 1, 2),
    ((3, 7), 0, 2),
    ((2, 3, 5), 1, 2),
    ((2, 1, 5), 1, 3),
]


def with_axes(call):
    return [call(*axes) for axes in AXES], ranges_of_axes().map(
        lambda axes: call(*axes)
    )


@st.composite
def windows(draw):
    """The size of a vector and a window start .. stop - 1 in it."""
    size = draw(st.integers(1, 12))
    start = draw(st.integers(0, size - 1))
    return size, start, draw(st.integers(start + 1, size))


WINDOWS = [(1, 0, 1), (7, 0, 7), (7, 0, 3), (7, 6, 7), (41, 3, 40)]


def with_windows(call):
    return [call(*w) for w in WINDOWS], windows().map(lambda w: call(*w))


def slice_call(size, start, stop):
    return ((size,),), {"start": start, "stop": stop}


def pad_call(size, start, stop):
    return ((stop - start,),), {"start": start, "size": size}


def vectors_end_to_end():
    lengths = [(1,), (7,), (1, 1), (3, 5, 1), (40, 1, 8)]
    drawn = st.lists(small, min_size=1, max_size=4)
    return (
        [(tuple((n,) for n in ns), {}) for ns in lengths],
        drawn.map(lambda ns: (tuple((n,) for n in ns), {})),
    )


def reshapes():
    calls = [((), (1,)), ((1,), ()), ((6,), (2, 3)), ((2, 3), (3, 2)), ((4, 1), (4,))]
    drawn = shapes_of_any_rank.map(lambda shape: ((shape,), {"shape": (prod(shape),)}))
    return [((old,), {"shape": new}) for old, new in calls], drawn


def leaves(**attributes):
    """No arguments: the shape is an attribute."""
    shapes = [(1,), (7,), (2, 3), ()]
    drawn = shapes_of_any_rank.map(lambda shape: ((), {"shape": shape, **attributes}))
    return [((), {"shape": shape, **attributes}) for shape in shapes], drawn


CONVOLUTIONS = [  # images, H, W, C, F, kernel height and width, stride
    (1, 1, 1, 1, 1, 1, 1, 1),
    (1, 3, 3, 1, 1, 3, 3, 1),
    (2, 4, 5, 1, 2, 3, 3, 2),
    (2, 5, 4, 3, 1, 3, 3, 2),
    (1, 2, 3, 2, 3, 3, 3, 1),
    (3, 7, 7, 1, 9, 3, 3, 2),
    (2, 5, 6, 3, 33, 3, 3, 3),
    (2, 3, 3, 5, 8, 1, 2, 1),
    (1, 2, 2, 3, 2, 5, 4, 2),
    (1, 6, 2, 2, 65, 2, 3, 1),
]


def convolution_call(primitive):
    """How to call one of the three primitives of convolution, with SAME padding."""

    def call(n, height, width, channels, features, kh, kw, stride):
        rows, top = same_padding(height, kh, stride)
        columns, left = same_padding(width, kw, stride)
        x, w = (n, height, width, channels), (kh, kw, channels, features)
        g = (n, rows, columns, features)
        arguments, size = {
            "conv": ((x, w), (rows, columns)),
            "conv_input": ((g, w), (height, width)),
            "conv_weight": ((x, g), (kh, kw)),
        }[primitive]
        return arguments, {"stride": stride, "padding": (top, left), "size": size}

    return call


def convolutions(primitive):
    call = convolution_call(primitive)
    drawn = st.builds(
        call,
        *[st.integers(1, n) for n in (3, 6, 6, 4, 10, 4, 4, 3)],
    )
    return [call(*sizes) for sizes in CONVOLUTIONS], drawn


POOLS = [(1, 1, 1, 1, 1), (2, 4, 4, 3, 2), (1, 5, 7, 2, 2), (1, 6, 4, 1, 3)]
POOLS += [(2, 5, 4, 9, 2), (1, 4, 5, 9, 2)]  # rows or columns outside of all windows


def pools(scatter):
    def call(n, height, width, channels, size):
        size = min(size, height, width)
        x = (n, height, width, channels)
        small = (n, height // size, width // size, channels)
        return (small if scatter else x, x), {"size": size}

    drawn = st.builds(call, *[st.integers(1, n) for n in (2, 6, 6, 3, 3)])
    return [call(*sizes) for sizes in POOLS], drawn


def arrays_of_numbers():
    def call(shape):
        numbers = tuple(float(1.5 - i) for i in range(prod(shape)))
        return (), {"shape": shape, "numbers": numbers}

    shapes = [(1,), (7,), (2, 3), ()]
    return [call(shape) for shape in shapes], shapes_of_any_rank.map(call)


SWAPS = [((3, 7), 0, 1, 2), ((2, 3, 5), 1, 2, 3), ((2, 3, 5), 0, 1, 2)]
SWAPS += [((2, 3, 5), 0, 2, 3), ((2, 3, 1, 5), 0, 1, 4), ((2, 3, 4, 3), 1, 2, 3)]
SWAPS += [((9, 17), 0, 1, 2), ((1, 5), 0, 1, 2), ((2, 8, 8), 1, 2, 3)]


def swap_call(shape, start, middle, stop):
    return (shape,), {"start": start, "middle": middle, "stop": stop}


@st.composite
def drawn_swaps(draw):
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=2, max_size=4)))
    ends = st.integers(0, len(shape))
    three = draw(st.lists(ends, min_size=3, max_size=3, unique=True))
    return swap_call(shape, *sorted(three))


def swaps():
    return [swap_call(*swap) for swap in SWAPS], drawn_swaps()


# --- what primitives compute ----------------------------------------------------------


def plain_product(a, b, ta, tb):
    return np.einsum("km,kn->mn" if ta else "mk,kn->mn", a, b.T if tb else b)


def plain_sum(a, start, stop):
    for axis in range(start, stop):
        a = np.add.reduce(a, axis=axis, keepdims=True)
    return a


def plain_swap(a, start, middle, stop):
    for axis in range(middle, stop):  # one by one, each to its place before the others
        a = np.rollaxis(a, axis, start + axis - middle)
    return a


def plain_broadcast(a, start, sizes):
    for axis, size in enumerate(sizes, start):
        a = np.repeat(a, size, axis=axis)
    return a


def plain_pad(a, start, size):
    out = np.zeros(size)
    out[start : start + len(a)] = a
    return out


def pixels_and_taps(images, kernel, out, stride, padding):
    """Triples ((row, column), (u, v), (i, j)): for the output pixel (i, j), the tap
    (u, v) of the kernel meets the input pixel (row, column)."""
    for i, j, u, v in product(*map(range, (*out, *kernel))):
        row, column = stride * i + u - padding[0], stride * j + v - padding[1]
        if 0 <= row < images[0] and 0 <= column < images[1]:
            yield (row, column), (u, v), (i, j)


def plain_conv(x, w, stride, padding, size):
    y = np.zeros((len(x), *size, w.shape[3]))
    for p, tap, q in pixels_and_taps(x.shape[1:3], w.shape[:2], size, stride, padding):
        y[:, *q] += np.einsum("nc,cf->nf", x[:, *p], w[tap])
    return y


def plain_conv_input(g, w, stride, padding, size):
    x = np.zeros((len(g), *size, w.shape[2]))
    for p, tap, q in pixels_and_taps(size, w.shape[:2], g.shape[1:3], stride, padding):
        x[:, *p] += np.einsum("nf,cf->nc", g[:, *q], w[tap])
    return x


def plain_conv_weight(x, g, stride, padding, size):
    w = np.zeros((*size, x.shape[3], g.shape[3]))
    for p, tap, q in pixels_and_taps(x.shape[1:3], size, g.shape[1:3], stride, padding):
        w[tap] += np.einsum("nc,nf->cf", x[:, *p], g[:, *q])
    return w


def windows_of(x, size):
    """For each window: its index in the pooled array, and that of its largest element
    in x."""
    for n, i, j, c in np.ndindex(
        len(x), x.shape[1] // size, x.shape[2] // size, x.shape[3]
    ):
        window = x[n, i * size : (i + 1) * size, j * size : (j + 1) * size, c]
        u, v = np.unravel_index(np.argmax(window), window.shape)
        yield (n, i, j, c), (n, i * size + u, j * size + v, c)


def plain_max_gather(a, x, size):
    out = np.zeros((len(x), x.shape[1] // size, x.shape[2] // size, x.shape[3]))
    for small, large in windows_of(x, size):
        out[small] = a[large]
    return out


def plain_max_scatter(g, x, size):
    out = np.zeros(x.shape)
    for small, large in windows_of(x, size):
        out[large] = g[small]
    return out


CASES = {
    "input": Case(lambda shape, number: np.full(shape, number), *leaves(number=0.5)),
    "full": Case(lambda shape, number: np.full(shape, number), *leaves(number=-2.5)),
    "constant_array": Case(
        lambda shape, numbers: np.array(numbers).reshape(shape), *arrays_of_numbers()
    ),
    "add": Case(np.add, *alike(2)),
    "sub": Case(np.subtract, *alike(2)),
    "mul": Case(np.multiply, *alike(2)),
    "scale": Case(lambda a, number: np.multiply(number, a), *alike(1, number=numbers)),
    "gate": Case(lambda a, x: a * (x > 0), *alike(2)),
    "relu": Case(lambda a: np.maximum(a, 0), *alike(1)),
    "exp": Case(np.exp, *alike(1)),
    "sin": Case(lambda a: np.exp(1j * a).imag, *alike(1)),
    "cos": Case(lambda a: np.exp(1j * a).real, *alike(1)),
    "log": Case(np.log, *alike(1), positive=True, nearest=0.3),
    "tanh": Case(np.tanh, *alike(1)),
    "reciprocal": Case(lambda a: a**-1.0, *alike(1), nearest=0.3),
    "rsqrt": Case(lambda a: a**-0.5, *alike(1), positive=True, nearest=0.3),
    "logsumexp": Case(
        lambda a: special.logsumexp(a, axis=-1, keepdims=True), *rows_of_logits()
    ),
    "softmax": Case(lambda a: special.softmax(a, axis=-1), *rows_of_logits()),
    "matmul": Case(plain_product, *products()),
    "sum": Case(plain_sum, *with_axes(sum_call)),
    "broadcast": Case(plain_broadcast, *with_axes(broadcast_call)),
    "reshape": Case(lambda a, shape: np.array([*a.flat]).reshape(shape), *reshapes()),
    "swap": Case(plain_swap, *swaps()),
    "rematerialise": Case(lambda a, number: a, *alike(1, number=st.integers(0, 9))),
    "stop_gradient": Case(lambda a: a, *alike(1)),
    "slice": Case(lambda a, start, stop: a[start:stop], *with_windows(slice_call)),
    "pad": Case(plain_pad, *with_windows(pad_call)),
    "conv": Case(plain_conv, *convolutions("conv")),
    "conv_input": Case(plain_conv_input, *convolutions("conv_input")),
    "conv_weight": Case(plain_conv_weight, *convolutions("conv_weight")),
    "max_gather": Case(plain_max_gather, *pools(scatter=False), spaced=True),
    "max_scatter": Case(plain_max_scatter, *pools(scatter=True), spaced=True),
    "concat": Case(lambda *a: np.concatenate(a), *vectors_end_to_end()),
}
