"""Random calls of `Tape.record`: any primitive, shapes and attributes that may not fit.

A call is either refused (TypeError, ValueError), or the numba backend computes what the
NumPy backend computes and writes nowhere but in its workspace. The kernels check no
index, so this is what stands between an attribute and foreign memory.

The long form: python -m tests.support.fuzz_records 20000
"""

import sys
from collections import Counter

import numpy as np

from tests.support.running import assert_close
from tinymaml.autodiff.convolution import same_padding
from tinymaml.autodiff.tape import PRIMITIVES, Tape
from tinymaml.backends import get_backend

GUARD = 1 << 16  # elements before and behind the workspace
ODD = (-1, -7, 0, 1, 2, 3, 9, 99, 2.5, 1.0, float("nan"), float("inf"), True, None, "a")
ODD = (*ODD, (), (1,), (2, 3), (-1, 2), (0, 0), (2.0, 2), [1, 1], np.int64(2), 10**30)
ATTRIBUTES = {
    "full": ("shape", "number"),
    "scale": ("number",),
    "matmul": ("ta", "tb"),
    "sum": ("start", "stop"),
    "broadcast": ("start", "sizes"),
    "reshape": ("shape",),
    "rematerialise": ("number",),
    "slice": ("start", "stop"),
    "pad": ("start", "size"),
    **dict.fromkeys(
        ("conv", "conv_input", "conv_weight"), ("stride", "padding", "size")
    ),
    **dict.fromkeys(("max_gather", "max_scatter"), ("size",)),
}
ARGUMENTS = dict.fromkeys(PRIMITIVES, 1) | {"full": 0, "input": 0, "concat": 3}
ARGUMENTS |= dict.fromkeys(("add", "sub", "mul", "gate", "matmul", "conv"), 2)
ARGUMENTS |= dict.fromkeys(
    ("conv_input", "conv_weight", "max_gather", "max_scatter"), 2
)


def random_call(rng):
    """(primitive, shapes, attributes): right in most parts, so that much is recorded."""
    name = str(rng.choice([*PRIMITIVES]))
    count = ARGUMENTS[name] if rng.random() < 0.95 else int(rng.integers(0, 4))
    small = lambda n: tuple(int(k) for k in rng.integers(1, 6, n))
    rank = int(rng.integers(0, 5))
    shapes = (
        [small(rank)] * count
        if rng.random() < 0.8
        else [small(int(rng.integers(0, 5))) for _ in range(count)]
    )
    if name in ("slice", "pad", "concat"):
        shapes = [small(1) for _ in range(count)]
    if name == "matmul" and count == 2:
        shapes = [small(2), small(2)]
    whole = lambda: int(rng.integers(-2, 8))
    attributes = {
        "shape": lambda: tuple(
            rng.permutation(shapes[0]).tolist() if count else small(rank)
        ),
        "number": lambda: float(rng.choice([0.5, -2.0, 0.0, -0.0, np.nan])),
        "ta": lambda: bool(rng.integers(2)),
        "tb": lambda: bool(rng.integers(2)),
        "start": whole,
        "stop": whole,
        "size": whole,
        "sizes": lambda: small(int(rng.integers(0, 3))),
        "stride": lambda: int(rng.integers(-1, 4)),
        "padding": lambda: tuple(int(k) for k in rng.integers(-1, 4, 2)),
    }
    values = {key: attributes[key]() for key in ATTRIBUTES.get(name, ())}
    if name.startswith("conv") and name != "concat" and count == 2:
        shapes, values = random_convolution(rng, name)
    if name == "broadcast" and count and rng.random() < 0.7:
        start = int(rng.integers(0, rank + 1))
        sizes = small(int(rng.integers(0, 3)))
        shape = list(shapes[0])
        shape[start : start + len(sizes)] = [1] * len(shape[start : start + len(sizes)])
        shapes, values = [tuple(shape)], {"start": start, "sizes": sizes}
    if name.startswith("max") and count == 2 and rng.random() < 0.7:
        x, size = small(4), int(rng.integers(1, 3))
        pooled = (x[0], x[1] // size, x[2] // size, x[3])
        shapes = [x if name == "max_gather" else pooled, x]
        values = {"size": size}
    for key in values:
        if rng.random() < 0.1:
            values[key] = ODD[rng.integers(len(ODD))]
    if rng.random() < 0.02:
        values[str(rng.choice(["start", "axis", "number"]))] = 1
    if values and rng.random() < 0.02:
        values.pop(str(rng.choice([*values])))
    return name, shapes, values


def random_convolution(rng, name):
    """Shapes and attributes near those of a convolution; one number may be off."""
    n, height, width, c, f, kh, kw = (int(k) for k in rng.integers(1, 7, 7))
    stride = int(rng.integers(1, 4))
    (rows, top), (columns, left) = (
        same_padding(size, k, stride) for size, k in ((height, kh), (width, kw))
    )
    if rng.random() < 0.5:  # other windows than those of SAME padding
        rows, columns = (
            rows + int(rng.integers(-2, 3)),
            columns + int(rng.integers(-2, 3)),
        )
        top, left = top + int(rng.integers(-1, 3)), left + int(rng.integers(-1, 3))
    x, w, g = (
        (n, height, width, c),
        (kh, kw, c, f),
        (n, max(rows, 1), max(columns, 1), f),
    )
    shapes, size = {
        "conv": ([x, w], (rows, columns)),
        "conv_input": ([g, w], (height, width)),
        "conv_weight": ([x, g], (kh, kw)),
    }[name]
    return shapes, {"stride": stride, "padding": (top, left), "size": size}


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
