"""A tape in two parts gives what the whole tape gives, and runs less for each v."""

import numpy as np
import pytest

import tinymaml as tm
from tests.support.running import BACKENDS, assert_close, run_tape
from tinymaml.autodiff.derivatives import grad, hvp, jvp
from tinymaml.autodiff.functions import rematerialise
from tinymaml.autodiff.partial_evaluation import split

RNG = np.random.default_rng(0)
NETWORK = tm.MLP([2, 6, 5, 2])


def whole(recompute=False):
    """H v of a net's loss, and more outputs; the tape and its inputs."""
    tape = tm.Tape()
    theta = tape.input("theta", (NETWORK.size,))
    v = tape.input("v", (NETWORK.size,), per_task=True)
    x = tape.input("x", (7, 2), per_task=True)
    unused = tape.input("y", (7, 2), per_task=True)
    out = NETWORK(theta, x)
    loss = (out * out).mean()
    tape.output("hvp", hvp(loss, theta, v))
    tape.output("slope", (grad(loss, theta) * v).sum(), "sum")
    tape.output("loss", loss)
    copy = rematerialise(theta) if recompute else theta
    tape.output("jvp", (NETWORK(copy, x) * jvp(out, theta, v)).sum() + unused.sum())
    inputs = {"theta": RNG.standard_normal(NETWORK.size)}
    inputs |= {"v": RNG.standard_normal((3, NETWORK.size))}
    inputs |= {name: RNG.standard_normal((3, 7, 2)) for name in ("x", "y")}
    return tape, inputs


def in_two_parts(tape, inputs, changing, backend):
    first, second = split(tape, changing)
    kept = run_tape(first, {n: inputs[n] for n in first.inputs}, backend)
    given = inputs | kept
    return run_tape(second, {n: given[n] for n in second.inputs}, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("changing", ["v", "x"])
def test_two_parts_give_what_the_whole_gives(backend, recompute, changing):
    tape, inputs = whole(recompute)
    expected = run_tape(tape, inputs, backend)
    found = in_two_parts(tape, inputs, changing, backend)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert_close(found[name], array, 1e-12, name)


def test_the_second_part_repeats_nothing_that_does_not_change():
    tape, _ = whole(recompute=True)
    first, second = split(tape, "v")
    assert "v" not in first.inputs and {"v", "theta"} <= set(second.inputs)
    assert first.flops() + second.flops() <= tape.flops()
    assert second.flops() < 0.75 * tape.flops()
    kept = [output.node for output in first.outputs.values()]
    assert len(set(kept)) == len(kept)  # nothing is kept twice, `rematerialise` or not


def test_an_unknown_input_is_refused():
    tape, _ = whole()
    with pytest.raises(ValueError, match="^changing: expected one of .*, got 'w'"):
        split(tape, "w")
