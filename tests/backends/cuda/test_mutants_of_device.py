"""Mistakes in plans for a GPU must be caught by named checks."""

import pytest

from tests.support.device_checks import (
    chains,
    convolutions,
    divisors,
    noticed,
    numbers,
    pools,
    sound,
    sums,
)
from tests.support.mutants import put
from tests.support.serial_cupy import WHY_NOT
from tinymaml.backends.cuda import device_plan
from tinymaml.backends.cuda.device_plan import DevicePlan

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)

PLAN = {
    "_place_buffers": [
        (sound, "self.instructions = ", "_ = "),
    ],
    "_emit_matmul": [
        (numbers, "a[0] if ta else a[1]", "a[1]"),
        (numbers, "ta, tb, accumulate)", "tb, ta, accumulate)"),
        (numbers, "ta, tb, accumulate)", "ta, tb, 0)"),
        (numbers, "ta, tb, accumulate)", "ta, tb, 1)"),
    ],
    "_conv_shapes": [
        (convolutions, '"conv": (a, node.shape, b)', '"conv": (a, a, b)'),
        (convolutions, "(node.shape, a, b)", "(a, node.shape, b)"),
    ],
    "_emit_conv": [
        (convolutions, "taps, features, 0, 1, 0)", "taps, features, 0, 0, 0)"),
        (convolutions, "taps, features, 0, 1, 0)", "taps, features, 0, 1, 1)"),
        (convolutions, "(*window, accumulate)", "(*window, 0)"),
        (convolutions, "(*window, accumulate)", "(*window, 1)"),
        (convolutions, "taps, 0, 0, accumulate)", "taps, 0, 0, 0)"),
        (convolutions, "places, 1, 0, accumulate)", "places, 1, 0, 0)"),
        (convolutions, "places, 1, 0, accumulate)", "places, 0, 0, accumulate)"),
        (convolutions, "*kernel[:2], *where", "*kernel[1::-1], *where"),
        (convolutions, "*outputs[1:3]", "*outputs[2:0:-1]"),
        (convolutions, '*attributes["padding"]', '*attributes["padding"][::-1]'),
        (convolutions, 'attributes["stride"], *', "1, *"),
        (convolutions, '_once("im2col", first', '_once("im2col", second'),
    ],
    "_select_max_gather": [
        (pools, "node.arguments[1]].shape", "node.arguments[0]].shape"),
        (pools, "for i in node.arguments)", "for i in node.arguments[::-1])"),
    ],
    "_emit": [
        (sums, "groups = outer * middle // terms", "groups = outer"),
        (sums, "(outer, middle // terms, inner)", "(outer, terms, inner)"),
        (sums, "Instruction(kernel, some", 'Instruction("sum", some'),
        (sums, 'self._emit("sum"', "self._emit(kernel"),
    ],
}
FUNCTIONS = {
    "divisor_of": [
        (divisors, "largest >= 8", "largest > 8"),
        (divisors, "largest >= 8", "True"),
        (divisors, "terms % d == 0", "terms % d < 2"),
        (divisors, "LONG_SUM + 1", "LONG_SUM"),
        (divisors, "terms <= LONG_SUM", "terms <= 2 * LONG_SUM"),
    ],
    "chained": [
        (sound, "(*last.reads, last.out, *call.reads)", "(*last.reads, *call.reads)"),
        (sound, "(*last.reads, last.out, *call.reads)", "(last.out, *call.reads)"),
        (sound, "(*last.reads, last.out, *call.reads)", "(*last.reads, last.out)"),
        (numbers, "(*last.links, call)", "(call, *last.links)"),
        (numbers, "(*last.links, call)", "(call,)"),
        (chains, "_joins(call, launches[-1])", "_joins(call, launches[0])"),
    ],
    "_joins": [
        (chains, "if not chain.links or", "if"),
        (chains, "for link in chain.links", "for link in chain.links[1:]"),
        (chains, "_overlap(a, b) and a != b", "_overlap(a, b)"),
    ],
    "extents_read": [
        (chains, "[n, 1]", "[n, n]"),
        (chains, "sizes = [call.sizes[0] * call.sizes[2]]", "pass"),
        (chains, "sizes = [n, call.sizes[0] * call.sizes[2]]", "pass"),
        (chains, "sizes = [n, n]", "sizes = [n, 1]"),
    ],
    "_overlap": [
        (chains, "a.offset + size_a <= b.offset", "a.offset + size_a < b.offset"),
        (chains, "b.offset + size_b <= a.offset", "b.offset + size_b < a.offset"),
        (chains, "a.buffer == b.buffer and", ""),
    ],
}
OWNERS = [
    (DevicePlan, PLAN),
    (device_plan, FUNCTIONS),
]
EVERY = [
    (owner, name, *mutant)
    for owner, table in OWNERS
    for name, mutants in table.items()
    for mutant in mutants
]
CHECKS = {check for _, _, check, _, _ in EVERY}


@pytest.mark.parametrize("check", CHECKS)
def test_unbroken_backend_passes(check):
    check()


@pytest.mark.parametrize(("owner", "name", "check", "old", "new"), EVERY)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # mutants may make huge numbers
def test_broken_backend_is_caught(monkeypatch, owner, name, check, old, new):
    put(monkeypatch, owner, name, old, new)
    assert noticed(check)
