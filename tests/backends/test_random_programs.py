"""Random tapes: the hardest test of the planner and of the derivatives.

If buffers overlap while both are alive, if a fused operation is read elsewhere too, or
if a sum is accumulated in the wrong place, the numbers differ from the reference's.
"""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.support.node_backend import JAVASCRIPT
from tests.support.planning import assert_plan_is_sound
from tests.support.random_programs import (
    build,
    output_picks,
    programs,
    random_inputs,
    with_outputs,
)
from tests.support.running import (
    BACKENDS,
    DTYPES,
    all_finite,
    all_values,
    assert_backends_agree,
    assert_close,
    complex_step,
    run_tape,
)
from tinymaml.autodiff.derivatives import grad, jvp
from tinymaml.backends.numba.planner import plan

many = settings(max_examples=10 * settings().max_examples)
seeds = st.integers(0, 2**16)
wide = programs(sizes=(1, 2, 3, 7, 8, 9, 16, 33, 40, 41))


@pytest.mark.parametrize("backend", ["numba", JAVASCRIPT])
@pytest.mark.parametrize("dtype", DTYPES)
@many
@given(program=wide, picks=output_picks, seed=seeds)
def test_backends_agree_on_random_programs(dtype, backend, program, picks, seed):
    tape = with_outputs(program, picks)
    inputs = random_inputs(tape, seed, tasks=3)
    values = all_values(tape, {name: a.astype(dtype) for name, a in inputs.items()})
    assume(all_finite(values))
    assert_backends_agree(tape, inputs, dtype, backend=backend)


@many
@given(program=wide, picks=output_picks)
def test_plan_of_random_programs_is_sound(program, picks):
    assert_plan_is_sound(plan(with_outputs(program, picks)))


def derivative_tape(program):
    """The sum of a program's last value, and its derivatives by the first input."""
    tape, values = build(program)
    theta, loss = values[0], values[-1].sum()
    v = tape.input("v", theta.shape)
    gradient = grad(loss, theta)
    for name, value in {
        "loss": loss,
        "jvp": jvp(loss, theta, v),
        "gradient": gradient,
        "slope": (gradient * v).sum(),
        "hvp": jvp(gradient, theta, v),
        "hvp in reverse": grad((gradient * v).sum(), theta),
    }.items():
        tape.output(name, value)
    return tape


def assert_derivatives_are_exact(tape, inputs, backend):
    """Compare with complex steps, for one task. Errors are relative to the largest
    number on the tape, since terms may cancel."""
    results = run_tape(tape, inputs, backend)
    slopes = complex_step(tape, inputs, "x0", inputs["v"])
    values = all_values(tape, inputs)
    size = max(np.abs(array).max() for array in values.values())

    def close(actual, expected, name):
        assert_close(actual, expected, 1e-11, name, floor=size)

    close(results["slope"], slopes["loss"], "gradient")
    close(results["jvp"], slopes["loss"], "jvp")
    close(results["hvp"], slopes["gradient"], "hvp")
    close(results["hvp in reverse"], results["hvp"], "reverse over reverse")


@pytest.mark.parametrize("backend", BACKENDS)
@many
@given(program=programs(), seed=seeds)
def test_derivatives_of_random_programs_are_exact(backend, program, seed):
    tape = derivative_tape(program)
    inputs = random_inputs(tape, seed, tasks=1)
    assert_derivatives_are_exact(tape, inputs, backend)


@many
@given(program=programs(), seed=seeds)
def test_backends_agree_on_derivatives_of_random_programs(program, seed):
    tape = derivative_tape(program)
    assert_plan_is_sound(plan(tape))
    assert_backends_agree(tape, random_inputs(tape, seed, tasks=2))
