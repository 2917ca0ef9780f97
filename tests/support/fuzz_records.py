"""Random calls of `Tape.record`: any primitive, shapes and attributes that may not fit.

A call is either refused (TypeError, ValueError), or the numba backend computes what the
NumPy backend computes and writes nowhere but in its workspace. The kernels check no
index, so this is what stands between an attribute and foreign memory.

The long form: python -m tests.support.fuzz_records 20000
"""

import sys
from collections import Counter
from functools import partial

import numpy as np

from tests.support.running import assert_close
from tinymaml.autodiff.convolution import same_padding
from tinymaml.autodiff.tape import PRIMITIVES, Tape
from tinymaml.backends import get_backend

GUARD = 1 << 16  # elements before and behind the workspace
ODD = (-1, -7, 0, 1, 2, 3, 9, 99, 2.5, 1.0, float("nan"), float("inf"), True, None, "a")
ODD = (*ODD, (), (1,), (2, 3), (-1, 2), (0, 0), (2.0, 2), [1, 1], np.int64(2), 10**30)


def some(rng, low, high, count=1):
    """Whole numbers in low .. high - 1."""
    return tuple(rng.integers(low, high, count).tolist())


def elementwise(rng, arguments=1):
    return [some(rng, 1, 6, rng.integers(0, 5))] * arguments, {}


def scaled(rng):
    return elementwise(rng)[0], {"number": float(rng.choice([0.5, -2.0, -0.0, np.nan]))}


def constant(rng):
    ((shape,), number) = scaled(rng)
    return [], {"shape": shape, **number}


def constants(rng):
    ((shape,), _) = elementwise(rng)
    numbers = tuple(
        rng.normal(size=int(np.prod(shape)) + int(rng.random() < 0.1)).tolist()
    )
    return [], {"shape": shape, "numbers": numbers}


def swap(rng):
    start, middle, stop = sorted(some(rng, -1, 6, 3))
    return elementwise(rng)[0], {"start": start, "middle": middle, "stop": stop}


def product(rng):
    m, k, n = some(rng, 1, 9, 3)
    ta, tb = (bool(flag) for flag in some(rng, 0, 2, 2))
    shapes = [(k, m) if ta else (m, k), (n, k) if tb else (k, n)]
    return shapes, {"ta": ta, "tb": tb}


def total(rng):
    start, stop = some(rng, -1, 5, 2)
    return elementwise(rng)[0], {"start": start, "stop": stop}


def broadcast(rng):
    (shape,), start = elementwise(rng)[0], *some(rng, -1, 4)
    sizes = some(rng, 0, 5, rng.integers(0, 3))
    shape = tuple(
        1 if start <= i < start + len(sizes) else n for i, n in enumerate(shape)
    )
    return [shape], {"start": start, "sizes": sizes}


def reshaped(rng):
    ((shape,), _) = elementwise(rng)
    return [shape], {"shape": tuple(rng.permutation(shape).tolist())}


def window(rng, other):
    """A slice, or a pad, whose other number is the size."""
    first, second = some(rng, -1, 9, 2)
    return [some(rng, 1, 9)], {"start": first, other: second}


def vectors(rng):
    return [some(rng, 1, 9) for _ in range(rng.integers(0, 4))], {}


def convolution(rng, name):
    """Shapes and attributes of a convolution; half of them are not of SAME padding."""
    n, height, width, c, f, kh, kw = some(rng, 1, 8, 7)
    (stride,) = some(rng, 1, 4)
    (rows, top), (columns, left) = (
        same_padding(size, k, stride) for size, k in ((height, kh), (width, kw))
    )
    if rng.random() < 0.5:
        more = some(rng, -1, 3, 4)
        rows, columns = max(rows + more[0], 1), max(columns + more[1], 1)
        top, left = top + more[2], left + more[3]
    x, w, g = (n, height, width, c), (kh, kw, c, f), (n, rows, columns, f)
    shapes, size = {
        "conv": ([x, w], (rows, columns)),
        "conv_input": ([g, w], (height, width)),
        "conv_weight": ([x, g], (kh, kw)),
    }[name]
    return shapes, {"stride": stride, "padding": (top, left), "size": size}


def pooling(rng, name):
    x, (size,) = some(rng, 1, 7, 4), some(rng, 1, 4)
    small = (x[0], max(x[1] // size, 1), max(x[2] // size, 1), x[3])
    return [x if name == "max_gather" else small, x], {"size": size}


CALLS = {
    **dict.fromkeys(PRIMITIVES, elementwise),
    **dict.fromkeys(("add", "sub", "mul", "gate"), partial(elementwise, arguments=2)),
    **dict.fromkeys(("scale", "rematerialise"), scaled),
    **dict.fromkeys(("full", "input"), constant),
    "constant_array": constants,
    "swap": swap,
    "matmul": product,
    "sum": total,
    "broadcast": broadcast,
    "reshape": reshaped,
    "slice": partial(window, other="stop"),
    "pad": partial(window, other="size"),
    "concat": vectors,
    **{n: partial(convolution, name=n) for n in ("conv", "conv_input", "conv_weight")},
    **{n: partial(pooling, name=n) for n in ("max_gather", "max_scatter")},
}


def random_call(rng):
    """(primitive, shapes, attributes): often right, or with one thing that is not."""
    name = str(rng.choice([*PRIMITIVES]))
    shapes, attributes = CALLS[name](rng)
    for key in attributes:
        if rng.random() < 0.1:
            attributes[key] = ODD[rng.integers(len(ODD))]
    if rng.random() < 0.1:  # a shape too many, too few, or of another call
        other = [some(rng, 1, 6, rng.integers(0, 5))]
        shapes = [shapes[:-1], shapes + other, other + shapes[1:]][rng.integers(3)]
    if rng.random() < 0.03:
        attributes[str(rng.choice(["start", "axis", "number"]))] = 1
    elif attributes and rng.random() < 0.03:
        attributes.pop(str(rng.choice([*attributes])))
    return name, shapes, attributes


def run_guarded(tape, inputs, dtype):
    """The outputs on the numba backend, whose workspace lies between guard zones.

    The zones hold NaN, so that what is read there is seen in the outputs.
    """
    program = get_backend("numba", 1).compile(tape, dtype)
    size = program.plan.size
    memory = np.full((1, size + 2 * GUARD), np.nan, dtype)
    program.workspaces = memory[:, GUARD : GUARD + size]
    for start, length, number in program.plan.constant_ranges():
        program.workspaces[:, start : start + length] = number
    outputs = program(inputs)
    guards = np.concatenate([memory[0, :GUARD], memory[0, GUARD + size :]])
    assert np.isnan(guards).all(), "a kernel wrote outside of its workspace"
    return outputs


def check_call(rng, call):
    """Record a call and run it on both backends: "refused" or "the same"."""
    name, shapes, attributes = call
    tape = Tape()
    # What the primitive reads is computed, so that nothing is fused away by chance.
    values = [tape.input(f"x{i}", shape) * 2.0 for i, shape in enumerate(shapes)]
    try:
        value = tape.record(name, *values, **attributes)
    except (TypeError, ValueError) as error:
        assert "\n" not in str(error)
        return "refused"
    tape.output("value", value)
    tape.output("total", value.sum())
    inputs = {n: rng.standard_normal(i.shape) for n, i in tape.inputs.items()}
    expected = get_backend("numpy").compile(tape, "float64")(inputs)
    actual = run_guarded(tape, inputs, "float64")
    for key, array in expected.items():
        number = np.nan_to_num(array, nan=1e9, posinf=1e10, neginf=-1e10)
        other = np.nan_to_num(actual[key], nan=1e9, posinf=1e10, neginf=-1e10)
        assert_close(other, number, 1e-12, f"{call}: {key}", floor=1.0)
    return "the same"


def fuzz(count, seed=0):
    """How many calls were refused, and how many gave the same on both backends."""
    results = Counter()
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        call = random_call(rng)
        try:
            results[check_call(rng, call)] += 1
        except Exception as error:
            raise AssertionError(f"call {number} of seed {seed}: {call}") from error
    return results


if __name__ == "__main__":
    print(dict(fuzz(int(sys.argv[1]))))
