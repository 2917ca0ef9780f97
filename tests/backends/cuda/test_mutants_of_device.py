"""Mistakes in plans for a GPU must be caught by named checks."""

import pytest

from tests.support.device_checks import (
    convolutions,
    divisors,
    groups,
    long_products,
    noticed,
    numbers,
    pools,
    sound,
    sums,
)
from tests.support.mutants import put
from tests.support.serial_cupy import WHY_NOT
from tinymaml.backends.cuda import device_plan
from tinymaml.backends.numba import selection

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)

PLAN = {
    "device_plan": [  # buffers are placed as if operations ran one after another
        (
            sound,
            "return place(selection, launches, inputs_in_workspace=False)",
            "plan = place(selection, selection.instructions, False)\n"
            "    plan.instructions = launches\n"
            "    return plan",
        ),
    ],
    "select_library_matmul": [
        (numbers, "shape[0] if ta else shape[1]", "shape[1]"),
        (numbers, "int(ta), int(tb), accumulate)", "int(tb), int(ta), accumulate)"),
        (numbers, "int(tb), accumulate)", "int(tb), 0)"),
        (numbers, "int(tb), accumulate)", "int(tb), 1)"),
    ],
    "select_patch_convolution": [
        (convolutions, "weights, features, 0, 1, 0)", "weights, features, 0, 0, 0)"),
        (convolutions, "weights, features, 0, 1, 0)", "weights, features, 0, 1, 1)"),
        (convolutions, "(*window, accumulate)", "(*window, 0)"),
        (convolutions, "(*window, accumulate)", "(*window, 1)"),
        (convolutions, "weights, 0, 0, accumulate)", "weights, 0, 0, 0)"),
        (long_products, "pixels, 1, 0, accumulate)", "pixels, 1, 0, 0)"),
        (long_products, "1, 0, 0, parts)", "1, 0, 1, parts)"),
        (long_products, "(1, parts, results)", "(1, 1, results)"),
        (convolutions, "pixels, 1, 0, accumulate)", "pixels, 0, 0, accumulate)"),
        (convolutions, "*kernel[:2], *steps", "*kernel[1::-1], *steps"),
        (convolutions, "*outputs[1:3]", "*outputs[2:0:-1]"),
        (convolutions, "weights, first, window)", "weights, second, window)"),
    ],
    "can_accumulate": [
        (long_products, "results > FEW_RESULTS", "True"),
        (long_products, "results > FEW_RESULTS", "False"),
    ],
    "parts_of": [
        (long_products, "terms % parts == 0", "True"),
        (long_products, "-(-terms // LONG_PRODUCT)", "1"),
    ],
    "select_window_pooling": [
        (pools, "node.arguments[1]].shape", "node.arguments[0]].shape"),
        (pools, "s.reads(node)", "s.reads(node)[::-1]"),
    ],
    "emit_long_sum": [
        (sums, "(outer * middle, terms", "(outer, terms"),
        (sums, "middle //= terms", "middle = terms"),
        (sums, "s.emit_scratch(kernel,", 's.emit_scratch("sum",'),
        (sums, 'kernel = "sum"', "pass"),
    ],
    "divisor_of": [
        (divisors, "largest >= 8", "largest > 8"),
        (divisors, "largest >= 8", "True"),
        (divisors, "terms % d == 0", "terms % d < 2"),
        (divisors, "LONG_SUM + 1", "LONG_SUM"),
        (divisors, "terms <= LONG_SUM", "terms <= 2 * LONG_SUM"),
    ],
    "fused_groups": [
        (
            sound,
            "*earlier.reads, earlier.out, *call.reads",
            "*earlier.reads, *call.reads",
        ),
        (sound, "*earlier.reads, earlier.out, *call.reads", "earlier.out, *call.reads"),
        (
            sound,
            "*earlier.reads, earlier.out, *call.reads",
            "*earlier.reads, earlier.out",
        ),
        (numbers, "(*earlier.operations, call)", "(call, *earlier.operations)"),
        (numbers, "(*earlier.operations, call)", "(call,)"),
        (groups, "can_join(call, launches[-1])", "can_join(call, launches[0])"),
    ],
    "can_join": [
        (groups, "if not group.operations or", "if"),
        (groups, "in group.operations:", "in group.operations[1:]:"),
        (groups, "overlap(a, b) and a != b", "overlap(a, b)"),
    ],
    "extents_read": [
        (groups, "[n, 1]", "[n, n]"),
        (groups, "sizes = [call.sizes[0] * call.sizes[2]]", "pass"),
        (groups, "sizes = [n, call.sizes[0] * call.sizes[2]]", "pass"),
        (groups, "sizes = [n, n]", "sizes = [n, 1]"),
    ],
    "overlap": [
        (groups, "a.offset + size_a <= b.offset", "a.offset + size_a < b.offset"),
        (groups, "b.offset + size_b <= a.offset", "b.offset + size_b < a.offset"),
        (groups, "a.buffer == b.buffer and", ""),
    ],
}
SHAPES = {
    "convolution_sizes": [
        (convolutions, '"conv": (a, node.shape, b)', '"conv": (a, a, b)'),
        (convolutions, "(node.shape, a, b)", "(a, node.shape, b)"),
        (convolutions, '*attributes["padding"]', '*attributes["padding"][::-1]'),
        (convolutions, 'attributes["stride"], *', "1, *"),
    ],
}
OWNERS = [
    (device_plan, PLAN),
    (selection, SHAPES),
]
EVERY = [
    (owner, name, *mutant)
    for owner, table in OWNERS
    for name, mutants in table.items()
    for mutant in mutants
]
CHECKS = list(dict.fromkeys(check for _, _, check, _, _ in EVERY))


@pytest.mark.parametrize("check", CHECKS)
def test_unbroken_backend_passes(check):
    check()


@pytest.mark.parametrize(("owner", "name", "check", "old", "new"), EVERY)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # mutants may make huge numbers
def test_broken_backend_is_caught(monkeypatch, owner, name, check, old, new):
    put(monkeypatch, owner, name, old, new)
    assert noticed(check)
