"""Partial evaluation: the two tapes give the outputs of the whole tape, and the second
runs fewer operations."""

import numpy as np
import pytest

import tinymaml as tm
from tests.support.running import BACKENDS, assert_close, run_tape
from tinymaml.autodiff.derivatives import grad, hvp, jvp
from tinymaml.autodiff.functions import rematerialise
from tinymaml.autodiff.partial_evaluation import partially_evaluate

RNG = np.random.default_rng(0)
NETWORK = tm.MLP([2, 6, 5, 2])


def whole_tape(recompute=False):
    """A tape with H v of a network's loss and more outputs, and arrays for its inputs.

    With `recompute`, one output reads a rematerialised copy of theta.
    """
    tape = tm.Tape()
    theta = tape.input("theta", (NETWORK.size,))
    v = tape.input("v", (NETWORK.size,), per_task=True)
    x = tape.input("x", (7, 2), per_task=True)
    y = tape.input("y", (7, 2), per_task=True)
    out = NETWORK(theta, x)
    loss = (out * out).mean()
    tape.output("hvp", hvp(loss, theta, v))
    tape.output("slope", (grad(loss, theta) * v).sum(), "sum")
    tape.output("loss", loss)
    copy = rematerialise(theta) if recompute else theta
    tape.output("jvp", (NETWORK(copy, x) * jvp(out, theta, v)).sum() + y.sum())
    inputs = {"theta": RNG.standard_normal(NETWORK.size)}
    inputs |= {"v": RNG.standard_normal((3, NETWORK.size))}
    inputs |= {name: RNG.standard_normal((3, 7, 2)) for name in ("x", "y")}
    return tape, inputs


def run_both(tape, inputs, unknown, backend):
    """The outputs, by way of the residuals."""
    known, remaining = partially_evaluate(tape, unknown)
    residuals = run_tape(known, {n: inputs[n] for n in known.inputs}, backend)
    arrays = inputs | residuals
    return run_tape(remaining, {n: arrays[n] for n in remaining.inputs}, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("unknown", ["v", "x"])
def test_both_tapes_give_the_outputs_of_the_whole_tape(backend, recompute, unknown):
    tape, inputs = whole_tape(recompute)
    expected = run_tape(tape, inputs, backend)
    outputs = run_both(tape, inputs, unknown, backend)
    assert outputs.keys() == expected.keys()
    for name, array in expected.items():
        assert_close(outputs[name], array, 1e-12, name)


def test_the_second_tape_repeats_nothing_that_is_known():
    tape, _ = whole_tape(recompute=True)
    known, remaining = partially_evaluate(tape, "v")
    assert "v" not in known.inputs and {"v", "theta"} <= set(remaining.inputs)
    assert known.flops() + remaining.flops() <= tape.flops()
    assert remaining.flops() < 0.75 * tape.flops()


def test_no_residual_is_handed_over_twice():
    # Recomputed activations are the same residuals: `rematerialise` has disappeared.
    known, remaining = partially_evaluate(whole_tape(recompute=True)[0], "v")
    residuals = [output.node for output in known.outputs.values()]
    assert len(set(residuals)) == len(residuals)
    for part in (known, remaining):
        names = {node.primitive.name for node in part.nodes}
        assert "rematerialise" not in names


def test_an_output_that_is_known_is_a_residual():
    tape = tm.Tape()
    x, v = tape.input("x", (3,)), tape.input("v", (3,))
    tape.output("square", x * x)
    tape.output("sum", x + v)
    known, remaining = partially_evaluate(tape, "v")
    (residual,) = known.outputs
    assert remaining.outputs["square"].node == remaining.inputs[residual].node


def test_an_input_that_the_tape_lacks_is_refused():
    tape, _ = whole_tape()
    with pytest.raises(ValueError, match="^unknown: expected one of .*, got 'w'"):
        partially_evaluate(tape, "w")
