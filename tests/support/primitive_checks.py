"""What is checked of a primitive: its value, and its derivatives of orders 1, 2, 3.

Each check raises AssertionError; the mutants of test_mutants_of_primitives.py must not
survive the same checks.

All arguments of a primitive are slices of one vector theta, so that second derivatives
include the mixed ones. Derivatives are taken of

    straight = sum(w out)          whose gradient is the vjp of w, and of
    curved = sum(w out^2)          which is curved even where the primitive is linear
"""

import numpy as np

from tests.support.primitive_cases import CASES, arguments_of
from tests.support.running import (
    assert_backends_agree,
    assert_close,
    compile_tape,
    difference,
    run_tape,
)
from tinymaml.autodiff.derivatives import grad, hvp, jvp
from tinymaml.autodiff.tape import PRIMITIVES, Tape


def record(tape, primitive, arguments, attributes):
    """The primitive's value; an input gets its number when the tape is run."""
    if primitive == "input":
        return tape.input("leaf", attributes["shape"])
    return tape.record(primitive, *arguments, **attributes)


def derivative_tape(primitive, shapes, attributes):
    """A tape of one primitive and its derivatives along v, up to order 3."""
    tape, start, arguments = Tape(), 0, []
    sizes = [int(np.prod(shape)) for shape in shapes]
    theta = tape.input("theta", (max(sum(sizes), 1),))
    v, u = tape.input("v", theta.shape), tape.input("u", theta.shape)
    for shape, size in zip(shapes, sizes, strict=True):
        arguments.append(theta[start : start + size].reshape(*shape))
        start += size
    out = record(tape, primitive, arguments, attributes)
    w = tape.input("w", out.shape)
    straight, curved = total(primitive, w * out), total(primitive, w * (out * out))
    curved_hvp = hvp(curved, theta, v)
    tape.output("out", out)
    tape.output("straight", straight)
    tape.output("jvp", jvp(out, theta, v))
    tape.output("vjp", grad(straight, theta))
    tape.output("gradient", grad(curved, theta))
    tape.output("hvp", curved_hvp)
    tape.output("u hvp", (u * curved_hvp).sum())
    tape.output("third", grad((u * curved_hvp).sum(), theta))
    return tape


def total(primitive, a):
    """The sum of all elements. Where the primitive under test is `sum` itself, it is a
    matrix product, so that a wrong sign does not occur twice and vanish."""
    if primitive != "sum":
        return a.sum()
    ones = a.tape.constant(1.0, (1, a.size))
    return (ones @ a.reshape(-1, 1)).reshape()


def derivative_inputs(tape, primitive, shapes, attributes, seed):
    rng = np.random.default_rng([seed, 1])
    inputs = {
        name: np.array(rng.uniform(0.5, 1.5, i.shape) * rng.choice([-1, 1], i.shape))
        for name, i in tape.inputs.items()
    }
    arrays = arguments_of(primitive, shapes, seed)
    if arrays:
        inputs["theta"] = np.concatenate([array.ravel() for array in arrays])
    if primitive == "input":
        inputs["leaf"] = np.full(attributes["shape"], attributes["number"])
    return inputs


class Derivatives:
    """All derivatives of a primitive at one point, and their finite differences."""

    def __init__(self, primitive, shapes, attributes, seed, backend):
        self.tape = derivative_tape(primitive, shapes, attributes)
        inputs = derivative_inputs(self.tape, primitive, shapes, attributes, seed)
        program = compile_tape(self.tape, backend)

        def at(theta):
            results = program({**inputs, "theta": theta})
            return np.concatenate([array.ravel() for array in results.values()])

        self.v = inputs["v"]
        self.here = self._parts(at(inputs["theta"]))
        slopes = difference(at, inputs["theta"], self.v)
        if primitive == "stop_gradient":  # by definition, whatever its numbers do
            slopes = np.zeros_like(slopes)
        self.slopes = self._parts(slopes)

    def _parts(self, vector):
        """The outputs of the tape, from one vector of all of them."""
        parts = {}
        for name, output in self.tape.outputs.items():
            size = int(np.prod(output.shape))
            parts[name], vector = vector[:size], vector[size:]
        return parts


def check_values(primitive, shapes, attributes, seed, backend):
    """The value is that of the plain expression, for shared and per-task arguments."""
    arrays = arguments_of(primitive, shapes, seed, tasks=3)
    for shared in range(len(shapes) + 1):  # the number of arguments that tasks share
        tape, inputs = Tape(), {}
        for i, (shape, array) in enumerate(zip(shapes, arrays, strict=True)):
            tape.input(f"x{i}", shape, per_task=i >= shared)
            inputs[f"x{i}"] = array[0] if i < shared else array
        values = [tape.value(i.node) for i in tape.inputs.values()]
        tape.output("out", record(tape, primitive, values, attributes))
        if primitive == "input":
            inputs["leaf"] = np.full(attributes["shape"], attributes["number"])
        for dtype, tolerance in (("float64", 1e-13), ("float32", 1e-6)):
            out = run_tape(tape, inputs, backend, dtype)["out"]
            for task in range(len(out)):
                reads = [a[0 if i < shared else task] for i, a in enumerate(arrays)]
                expected = CASES[primitive].reference(*reads, **attributes)
                size = max([np.linalg.norm(a) for a in reads], default=0.0)
                assert_close(out[task], expected, tolerance, primitive, floor=size)


def check_first_order(at):
    """jvp along v is the difference of the value; vjp of w is its adjoint."""
    assert_tangent(at, "jvp", "out", 1e-8)
    assert_adjoint(at, "vjp", "straight", 1e-8)


def check_second_order(at):
    """hvp along v is the difference of the exact gradient."""
    assert_tangent(at, "hvp", "gradient", 1e-8)


def check_third_order(at):
    """The gradient of u H v is recorded in primitives of the table and is right."""
    table = set(PRIMITIVES.values())
    assert all(node.primitive in table for node in at.tape.nodes)
    assert_adjoint(at, "third", "u hvp", 1e-7)


def assert_tangent(at, tangent, output, tolerance):
    """A tangent is the slope of an output; where the terms of a sum cancel, rounding of
    the quotient is relative to them, so to |v|."""
    size = 0.1 * np.linalg.norm(at.v)
    assert_close(at.here[tangent], at.slopes[output], tolerance, tangent, floor=size)


def assert_adjoint(at, gradient, output, tolerance):
    """gradient v is the slope of an output, relative to |gradient| |v|."""
    size = max(np.linalg.norm(at.here[gradient]), 0.1) * np.linalg.norm(at.v)
    slope = [at.here[gradient] @ at.v]
    assert_close(slope, at.slopes[output], tolerance, gradient, floor=size)


def check_derivatives(primitive, shapes, attributes, seed, backend):
    """All three orders."""
    at = Derivatives(primitive, shapes, attributes, seed, backend)
    check_first_order(at)
    check_second_order(at)
    check_third_order(at)


def check_agreement(primitive, shapes, attributes, seed, dtype, backend="numba"):
    """Value and derivatives of all orders are those of the reference."""
    tape = derivative_tape(primitive, shapes, attributes)
    inputs = derivative_inputs(tape, primitive, shapes, attributes, seed)
    assert_backends_agree(tape, inputs, dtype, backend=backend)
