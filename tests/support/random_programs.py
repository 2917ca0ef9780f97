"""Random tapes, drawn by Hypothesis: a few inputs, then steps on earlier values.

A program is plain data, so that Hypothesis can shrink and print one that fails: the
shapes of the inputs, and a list of steps (name, pick, pick, number). A pick chooses an
operand among the values that fit the step; a step without a fitting value is left out.
"""

import numpy as np
from hypothesis import strategies as st

from tinymaml.autodiff import functions
from tinymaml.autodiff.derivatives import accumulate_cotangents
from tinymaml.autodiff.tape import Tape

SMOOTH = {
    "tanh": functions.tanh,
    "relu": functions.relu,
    "sin": functions.sin,
    "cos": functions.cos,
    "exp": lambda a: functions.exp(functions.tanh(a)),
    "log": lambda a: functions.log(a * a + 1.0),
    "rsqrt": lambda a: functions.rsqrt(a * a + 1.0),
    "reciprocal": lambda a: 1 / (a * a + 1.0),
    "rematerialise": functions.rematerialise,
    "softmax": functions.softmax,
    "logsumexp": functions.logsumexp,
    "flatten": lambda a: a.reshape(a.size),
    "half": lambda a: a * 0.5,
    "sum": lambda a: a.sum(),
}
STEPS = (
    *SMOOTH,
    *("add", "sub", "mul", "gate"),
    *("matmul", "matmul", "product_sum", "product_sum"),
    *("swap", "part", "constant_array"),
    *("bias_relu", "sum_axis", "broadcast", "reshape", "transposed"),
    *("slice", "pad", "concat", "concat", "accumulate_cotangents", "constant"),
)


@st.composite
def programs(draw, sizes=(1, 2, 3, 5), most=14):
    """A random program: (shapes of the inputs, steps)."""
    size = st.sampled_from(
        draw(st.lists(st.sampled_from(sizes), min_size=1, max_size=2))
    )
    shape = st.tuples(size, size) | st.tuples(size)
    shapes = draw(st.lists(shape, min_size=1, max_size=4))
    pick = st.integers(0, 30)
    step = st.tuples(st.sampled_from(STEPS), pick, pick, pick)
    return shapes, draw(st.lists(step, min_size=1, max_size=most))


def build(program):
    """A tape, and the values of the inputs and steps of a program, in their order."""
    shapes, steps = program
    tape = Tape()
    values = [
        tape.input(f"x{i}", shape, per_task=i % 2 == 0)
        for i, shape in enumerate(shapes)
    ]
    for name, first, second, number in steps:
        value = record_step(tape, values, name, first, second, number)
        if value is not None and value.size <= 5000:
            values.append(value)
    return tape, values


output_picks = st.lists(st.integers(0, 20), min_size=1, max_size=4, unique=True)


def with_outputs(program, picks):
    """The tape of a program with some of its values, newest first, as outputs."""
    tape, values = build(program)
    for pick in picks:
        value = values[-1 - pick % len(values)]
        tape.output(f"value {pick}", value, "sum" if pick % 2 else "each")
    return tape


def pick_of(values, pick, fits):
    """The value that a pick chooses among those that fit, counted from the newest."""
    fitting = [value for value in reversed(values) if fits(value)]
    return fitting[pick % len(fitting)] if fitting else None


def is_vector(value):
    return len(value.shape) == 1


def is_matrix(value):
    return len(value.shape) == 2


def record_step(tape, values, name, first, second, number):
    """The value of one step, or None if nothing fits it."""
    if name in SMOOTH:
        return SMOOTH[name](pick_of(values, first, lambda v: len(v.shape) > 0))
    a = pick_of(values, first, lambda v: True)
    if name in ("add", "sub", "mul"):
        b = pick_of(values, second, lambda v: compatible(a.shape, v.shape))
        if number % 3 == 0 and a.shape == b.shape:
            return tape.record(name, a, b)  # not as 2 x, even for x + x
        return {"add": a.__add__, "sub": a.__sub__, "mul": a.__mul__}[name](b)
    if name == "gate":
        return tape.record(
            "gate", a, pick_of(values, second, lambda v: v.shape == a.shape)
        )
    if name == "constant":
        return tape.constant(0.5 * number, a.shape)
    if name == "constant_array":
        numbers = (np.arange(a.size) * 7 + number) % 5 - 1.5
        return tape.constant_array(numbers.reshape(a.shape))
    if name == "swap":
        rank = len(a.shape)
        if rank < 2:
            return None
        axis = number % rank
        return a.transpose(*[(i + axis) % rank for i in range(rank)])
    if name == "part":
        if not a.shape:
            return None
        axis = number % len(a.shape)
        step = 1 + second % 3
        window = slice(min(first % 2, a.shape[axis] - 1), None, step)
        return a[(*[slice(None)] * axis, window)]
    if name == "sum_axis":
        axis = number % max(len(a.shape), 1)
        return tape.record("sum", a, start=axis, stop=axis + 1) if a.shape else None
    if name == "broadcast":
        return broadcast(tape, values, first, number)
    if name == "reshape":
        return a.reshape(*[(a.size,), (1, a.size), (a.size, 1)][number % 3])
    if name in ("slice", "pad", "concat", "accumulate_cotangents"):
        vector = pick_of(values, first, is_vector)
        if vector is not None:
            return joins(tape, values, name, vector, second, number)
        return None
    return products(tape, values, name, first, second, number)


def compatible(a, b):
    """Whether two shapes of one rank broadcast to a common shape."""
    return len(a) == len(b) and all(
        m == n or 1 in (m, n) for m, n in zip(a, b, strict=True)
    )


def broadcast(tape, values, first, number):
    """A value with an axis of length 1, repeated along this axis."""
    a = pick_of(values, first, lambda v: 1 in v.shape)
    if a is None:
        return None
    ones = [i for i, n in enumerate(a.shape) if n == 1]
    sizes = (2 + number % 3,)
    return tape.record("broadcast", a, start=ones[number % len(ones)], sizes=sizes)


def joins(tape, values, name, vector, second, number):
    """Slices, pads, and concatenations and sums of them."""
    n = vector.shape[0]
    start = number % n
    if name == "slice":
        return vector[start : start + 1 + second % (n - start)]
    if name == "pad":
        return tape.record("pad", vector, start=number % 3, size=n + 4)
    other = pick_of(values, second, is_vector)
    if name == "concat":
        vectors = [vector, other, vector, tape.constant(1.0, (2,))]
        return functions.concatenate(vectors[: 2 + number % 3])
    size = n + other.shape[0] + 2
    parts = [  # pads that touch, overlap or leave gaps, and a whole vector
        tape.record("pad", vector, start=number % 3, size=size),
        tape.record(
            "pad", other, start=min(n + second % 3, size - other.size), size=size
        ),
        tape.record("pad", vector, start=number % 2, size=size),
        tape.constant(2.0, (size,)),
    ]
    return accumulate_cotangents(tape, parts[: 2 + second % 3])


def products(tape, values, name, first, second, number):
    """Matrix products, and the sums and relus with which the planner fuses them."""
    a = pick_of(values, first, is_matrix)
    if a is None:
        return None
    ta, tb = bool(number & 1), bool(number & 2)
    if name == "transposed":
        eye = pick_of(
            values, second, lambda v: is_matrix(v) and v.shape[0] == a.shape[0]
        )
        return tape.record("matmul", a, eye, ta=True, tb=False)
    k = a.shape[0] if ta else a.shape[1]
    b = pick_of(values, second, lambda v: is_matrix(v) and v.shape[tb] == k)
    if b is None:
        return None
    product = tape.record("matmul", a, b, ta=ta, tb=tb)
    fitting = pick_of(values, number // 4, lambda v: v.shape == product.shape)
    if name == "product_sum" and fitting is not None:
        return product + fitting if number & 4 else fitting + product
    if name == "bias_relu":
        bias = pick_of(values, number // 4, lambda v: v.shape == product.shape[1:])
        return None if bias is None else functions.relu(product + bias)
    return product


def random_inputs(tape, seed, tasks=2):
    """Arrays for every input of a tape, away from zero, where a relu has its kink."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, (_, shape, per_task) in tape.inputs.items():
        shape = (tasks, *shape) if per_task else shape
        arrays[name] = rng.uniform(0.1, 1.0, shape) * rng.choice([-1.0, 1.0], shape)
    return arrays
