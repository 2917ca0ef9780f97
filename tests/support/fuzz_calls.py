"""Random calls of the public functions, with wrong and right arguments.

A call may return, or raise TypeError or ValueError in one line that begins with the
name of an argument, from a line of the package. Nothing else: no AttributeError from
deep inside, no error of NumPy's about arrays that the caller never made, no crash.

The long form: python -m tests.support.fuzz_calls 10000
"""

import inspect
import re
import sys
import traceback
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np

import tinymaml as tm
from tinymaml.autodiff import functions
from tinymaml.autodiff.tape import PRIMITIVES

UNARY = ("relu", "exp", "log", "tanh", "rsqrt", "logsumexp", "softmax")
UNARY += ("rematerialise", "stop_gradient", "sin", "cos", "sqrt", "sigmoid", "softplus")
PACKAGE = str(Path(tm.__file__).parent)
PLAIN = (3, 0, -1, 2.5, True, None, "x", "", b"x", (), [], [1, 2], (2, -1), {}, {1: 2})
PLAIN += (
    float("nan"),
    float("inf"),
    -0.0,
    10**400,
    1j,
    object(),
    slice(1, 2),
)
PLAIN += (np.float32(3), np.int64(2), np.int64(-1), np.bool_(True), np.float64("nan"))
ARRAYS = (np.zeros(3), np.ones((2, 3)), np.array(1.0), np.array("x"), np.zeros(0))
ARRAYS += (np.ones((4, 3), "float32"), np.ma.masked_array([1.0, 2.0], [0, 1]))
ARRAYS += (np.array([1, 2, 3]), np.array([object()]), np.eye(3), np.full(3, np.nan))
SHAPES = ((), (1,), (3,), (4, 3), (4, 1), (1, 3), (2, 3, 3, 1), (3, 3, 1, 2), (13,))
# Messages may also begin with the name of an operation, a side of an operator, or the
# argument of a function that the called one calls.
HEADS = {"operand", "factor", "divisor", "index", *PRIMITIVES}
HEADS |= {"value", "primitive", "shape", "shapes", "size", "axis", "parameter", "dtype"}
HEADS |= {"activation", "theta", "number", "exponent"}


def loss(theta, *data):
    """A loss that works for every theta and any data."""
    return (theta * theta).sum()


def bad_loss(theta, *data):
    """A loss that is no number."""
    return 3.0


class World:
    """Arguments to draw from: values of two tapes, arrays, and what is neither."""

    def __init__(self, rng):
        self.rng = rng
        self.tape, other = tm.Tape(), tm.Tape()
        self.values = [self.tape.input(f"x{i}", s) for i, s in enumerate(SHAPES)]
        self.values += [self.tape.constant(2.0, (3,)), self.values[2] * 2.0]
        self.values.append(tm.exp(self.values[3]).sum())
        self.others = [other.input("x", (3,)), other.input("y", (4, 3))]

    def pick(self, choices):
        return choices[self.rng.integers(len(choices))]

    def value(self):
        """A Value, in one of ten cases something else."""
        chance = self.rng.random()
        if chance < 0.9:
            return self.pick(self.values)
        return self.pick(self.others) if chance < 0.92 else self.anything()

    def matrix(self):
        return self.pick(self.values[3:6]) if self.rng.random() < 0.7 else self.value()

    def vector(self):
        return self.pick(self.values[1:3]) if self.rng.random() < 0.7 else self.value()

    def images(self):
        return self.pick(self.values[6:8]) if self.rng.random() < 0.8 else self.value()

    def anything(self):
        return self.pick([*PLAIN, *ARRAYS, *self.values, *self.others, loss])

    def often(self, *right):
        """One of these, in one of three cases something else."""
        return self.pick(right) if self.rng.random() < 0.7 else self.anything()

    def array(self):
        return self.pick(ARRAYS[:2]) if self.rng.random() < 0.7 else self.anything()

    def generator(self):
        return self.often(np.random.default_rng(0))

    def list_of(self, draw):
        return [draw() for _ in range(self.rng.integers(0, 4))]


def calls(w):
    """{name: what draws arguments and returns the function and them}"""
    x, m, v = w.value, w.matrix, w.vector
    one = {
        name: partial(lambda f: (f, [x()]), getattr(functions, name)) for name in UNARY
    }
    sizes = w.pick(SHAPES)
    scaling = partial(w.often, "mean", "sum", "per_shot")
    network = tm.MLP([3, 2, 1])
    size = partial(w.often, 1, 2, 3)
    theta = w.often(np.zeros(network.size), np.zeros(network.size, "float32"))
    left, right = w.pick(w.values), partial(w.often, *w.values, 2.0, np.float32(0.5))
    operators = {
        "+": lambda a, b: a + b,
        "-": lambda a, b: a - b,
        "*": lambda a, b: a * b,
        "/": lambda a, b: a / b,
        "@": lambda a, b: a @ b,
        "r+": lambda a, b: a.__radd__(b),
        "r-": lambda a, b: a.__rsub__(b),
        "r*": lambda a, b: a.__rmul__(b),
        "r/": lambda a, b: a.__rtruediv__(b),
        "r@": lambda a, b: a.__rmatmul__(b),
        "**": lambda a, b: a**b,
    }
    binary = {
        name: partial(lambda f: (f, [left, right()]), f)
        for name, f in operators.items()
    }
    refused = {
        name: partial(lambda f: (f, [x()]), f)
        for name, f in {
            "bool": lambda a: bool(a) if isinstance(a, tm.Value) else left.__bool__(),
            "len": lambda a: left.__len__(),
            "iter": lambda a: iter(left),
            "float": lambda a: left.__float__(),
            "array": lambda a: left.__array__(),
            "==": lambda a: left == a,
            "!=": lambda a: left != a,
            "<": lambda a: left.__lt__(a),
            "in": lambda a: left.__contains__(a),
        }.items()
    }
    tape = tm.Tape()
    return {
        **one,
        **binary,
        **refused,
        "broadcast_to": lambda: (left.broadcast_to, [w.often(*SHAPES)]),
        "concatenate": lambda: (
            functions.concatenate,
            [w.often(w.list_of(v), tuple(w.list_of(v)))],
        ),
        "where": lambda: (functions.where, [w.value(), w.value(), right()]),
        "maximum": lambda: (functions.maximum, [x(), right()]),
        "minimum": lambda: (functions.minimum, [x(), right()]),
        "clip": lambda: (functions.clip, [x(), w.often(0.0, -1), w.often(1.0, 2)]),
        "abs": lambda: (left.__abs__, []),
        "T": lambda: (lambda a: a.T, [left]),
        "transpose": lambda: (left.transpose, w.list_of(w.anything)),
        "function": lambda: (tm.function(loss), [w.array(), *w.list_of(w.array)]),
        "reshape": lambda: (left.reshape, [w.often(*SHAPES, -1, (-1, 3), [3])]),
        "reshape of sizes": lambda: (left.reshape, w.list_of(size)),
        "sum": lambda: (left.sum, [w.often(None, 0, -1, (0, 1), np.int64(0))]),
        "mean": lambda: (left.mean, [w.often(None, 0, -1, (0, 1), [0])]),
        "index": lambda: (
            left.__getitem__,
            [w.often(slice(0, 1), slice(w.anything(), None))],
        ),
        "input": lambda: (tape.input, [w.often("a", "b"), w.often(*SHAPES)]),
        "constant": lambda: (tape.constant, [w.often(1.0, 2), w.often(*SHAPES)]),
        "output": lambda: (
            w.tape.output,
            [w.often("a", "b"), x(), w.often("each", "sum")],
        ),
        "record": lambda: (w.tape.record, [w.often(*PRIMITIVES), *w.list_of(x)]),
        "grad": lambda: (tm.grad, [w.often(w.values[-1], w.values[0]), x()]),
        "jvp": lambda: (tm.jvp, [x(), v(), v()]),
        "hvp": lambda: (tm.hvp, [w.often(w.values[-1]), m(), m()]),
        "conv2d": lambda: (tm.conv2d, [w.images(), w.images(), size()]),
        "max_pool": lambda: (tm.max_pool, [w.images(), size()]),
        "mean_pool": lambda: (tm.mean_pool, [w.images(), w.often(None, 1, 3)]),
        "squared_error": lambda: (tm.squared_error, [m(), m(), scaling()]),
        "cross_entropy": lambda: (tm.cross_entropy, [m(), m(), scaling(), size()]),
        "policy_gradient_loss": lambda: (tm.policy_gradient_loss, [v(), v(), v()]),
        "surrogate_loss": lambda: (tm.surrogate_loss, [v(), v(), v(), v()]),
        "accuracy": lambda: (
            tm.accuracy,
            [w.array(), w.often(np.eye(3), np.eye(4, 3))],
        ),
        "MLP": lambda: (tm.MLP, [w.often([3, 1], (2, 2)), w.often("relu", "tanh")]),
        "Network": lambda: (
            tm.Network,
            [w.often([tm.Linear(2, 3)], [tm.Flatten(), 3])],
        ),
        "Linear": lambda: (tm.Linear, [size(), size()]),
        "Activation": lambda: (tm.Activation, [w.often("relu")]),
        "Conv2d": lambda: (tm.Conv2d, [size(), size(), size(), size()]),
        "BatchNorm": lambda: (
            tm.BatchNorm,
            [size(), w.often("batch", "support"), w.often(True), w.often(1e-3)],
        ),
        "MaxPool": lambda: (tm.MaxPool, [size()]),
        "MeanPool": lambda: (tm.MeanPool, [size()]),
        "OmniglotConv": lambda: (tm.OmniglotConv, [size(), size(), w.often("none")]),
        "OmniglotFC": lambda: (tm.OmniglotFC, [size(), w.often("batch")]),
        "MiniImagenetConv": lambda: (tm.MiniImagenetConv, [size(), size()]),
        "init": lambda: (network.init, [w.generator(), w.often("float32", "float64")]),
        "network": lambda: (network, [w.often(w.values[8], w.values[-1]), m()]),
        "predict": lambda: (network.predict, [theta, w.array()]),
        "vector": lambda: (
            partial(network.vector, **{"linear1.bias": w.often(1.0)}),
            [w.often(0.5, 1), w.often("float32", "float64")],
        ),
        "unpack": lambda: (lambda theta: [*network.unpack(theta)], [v()]),
        "gradcheck": lambda: (
            tm.gradcheck,
            [w.often(loss, bad_loss), w.often(np.ones(3)), *w.list_of(w.array)],
        ),
        "gradcheck with options": lambda: (
            partial(
                tm.gradcheck,
                order=w.often(1, 2),
                seed=w.often(0, 1),
                backend=w.often("numpy"),
                tolerance=w.often(None, 1e-3),
            ),
            [loss, np.ones(sizes)],
        ),
    }


def complaint(function, error):
    """What is wrong with an error that a call has raised, or an empty string."""
    if not isinstance(error, TypeError | ValueError):
        return "neither TypeError nor ValueError"
    *_, last = traceback.extract_tb(error.__traceback__)
    if not last.filename.startswith(PACKAGE):
        return f"raised in {last.filename}"
    text = str(error)
    if "\n" in text or len(text) > 500:
        return "more than one line"
    while isinstance(function, partial):
        function = function.func
    try:
        arguments = {*inspect.signature(function).parameters}
    except ValueError:
        arguments = set()
    head = re.match(r"(?:shape of input |Value\()?(\w[\w.]*)", text)
    # Python itself says which argument of a primitive is missing or one too many.
    if re.match(r"\w+\.shape\(\) (missing|takes|got)", text):
        return ""
    if head is None or ":" not in text:
        return "it begins with no name"
    word = head.group(1)
    known = word in arguments | HEADS or word.startswith(("x", "linear"))
    known = known or text.startswith(("Value(", "input ", "output ", "vectors["))
    return "" if known else f"{word} is no argument"


def fuzz(count, seed=0):
    """(how calls ended, complaints): each complaint names the call that led to it."""
    ends, complaints = Counter(), []
    for number in range(count):
        world = World(np.random.default_rng([seed, number]))
        table = calls(world)
        name = world.pick([*table])
        function, arguments = table[name]()
        try:
            function(*arguments)
            ends["returned"] += 1
        except tm.GradientError:
            ends["returned"] += 1
        except Exception as error:
            ends[type(error).__name__] += 1
            wrong = complaint(function, error)
            if wrong:
                shown = ", ".join(repr(a) for a in arguments)
                what = f"{type(error).__name__}: {error}: {wrong}"
                complaints.append(f"{number}: {name}({shown}): {what}")
    return ends, complaints


if __name__ == "__main__":
    ends, complaints = fuzz(int(sys.argv[1]))
    print(*complaints, sep="\n")
    print(f"{dict(ends)}, {len(complaints)} complaints")
    sys.exit(bool(complaints))
