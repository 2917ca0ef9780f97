"""A tape in two parts gives what the whole tape gives, and plays less for each v."""

import numpy as np
import pytest
from playing import MACHINES, assert_close, play

import tinymaml as tm
from tinymaml.functions import again
from tinymaml.splitting import split
from tinymaml.sweeps import grad, hvp, jvp

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
    copy = again(theta) if recompute else theta
    tape.output("jvp", (NETWORK(copy, x) * jvp(out, theta, v)).sum() + unused.sum())
    inputs = {"theta": RNG.standard_normal(NETWORK.size)}
    inputs |= {"v": RNG.standard_normal((3, NETWORK.size))}
    inputs |= {name: RNG.standard_normal((3, 7, 2)) for name in ("x", "y")}
    return tape, inputs


def in_two_parts(tape, inputs, changing, machine):
    first, second = split(tape, changing)
    kept = play(first, {n: inputs[n] for n in first.inputs}, machine)
    given = inputs | kept
    return play(second, {n: given[n] for n in second.inputs}, machine)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("changing", ["v", "x"])
def test_two_parts_give_what_the_whole_gives(machine, recompute, changing):
    tape, inputs = whole(recompute)
    expected = play(tape, inputs, machine)
    found = in_two_parts(tape, inputs, changing, machine)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert_close(found[name], array, 1e-12, name)


def test_the_second_part_repeats_nothing_that_does_not_change():
    tape, _ = whole(recompute=True)
    first, second = split(tape, "v")
    assert "v" not in first.inputs and {"v", "theta"} <= set(second.inputs)
    assert first.flops() + second.flops() <= tape.flops()
    assert second.flops() < 0.75 * tape.flops()
    kept = [output.entry for output in first.outputs.values()]
    assert len(set(kept)) == len(kept)  # nothing is kept twice, `again` or not


def test_an_unknown_input_is_refused():
    tape, _ = whole()
    with pytest.raises(ValueError, match="^changing: expected one of .*, got 'w'"):
        split(tape, "w")
