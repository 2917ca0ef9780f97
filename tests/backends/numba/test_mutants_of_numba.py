"""Mistakes in the planner must be caught by the tests that backends agree.

Mistakes in the kernels' own code are in uncompiled_kernels.py: there nothing is
compiled.
"""

import numpy as np
import pytest

from tests.backends.numba.test_planner import meta_gradient_tape, tape_of
from tests.support.mutants import put, survives
from tests.support.plan_recipes import RECIPES
from tests.support.planning import assert_plan_is_sound
from tests.support.primitive_cases import CASES
from tests.support.primitive_checks import check_agreement
from tests.support.random_programs import random_inputs
from tests.support.running import assert_backends_agree
from tinymaml.backends.numba.planner import Plan

MEMORY = [  # a buffer is given away too early, or never kept
    ("_place_buffers", "last[place.buffer] = time", "pass"),
    ("_place_buffers", "(call.out, *call.reads)", "(call.out,)"),
    ("_place_buffers", "last[pinned] = len(self.instructions)", "pass"),
    ("_place_buffers", "first[pinned] = 0", "pass"),
    ("_place_buffers", "pinned += self.constants", "pass"),
    ("_place_buffers", "if start - low >= sizes[buffer]", "if True"),
    ("_place_buffers", "low = max(low, stop)", "low = max(low, start)"),
    # computed in place where it must not be
    ("_claim", "and self._uses[first] == self._uses[second] == 1", ""),
    ("_claim", "and self._computed(first)", ""),
    ("_claim", "place.offset + size", "place.offset"),
    ("_count_uses", "uses[i] += 1", "uses[i] = 1"),
    ("_count_uses", "uses[output.node] += 2", "pass"),
]
FUSION = [
    ("_only_reader", "while self._uses[index] == 1", "while True"),
    ("_is_fused", "bias is None and self", "self"),
    ("_is_fused", "bias is not None and self", "self"),
    (
        "_readers",
        "if any(o.node == index for o in self.tape.outputs.values())",
        "if 0",
    ),
    ("_broadcast_operand", "if a == b", "if False"),
    ("_broadcast_operand", 'and self._name(index) != "sub"', ""),
    ("_select_concat", "if self._places[i] != place", "if False"),
    ("_select_slice", "place.offset + start", "place.offset"),
    ("_select_pad", "(start, length, size)", "(start + 1, length, size)"),
    (
        "_select_add",
        "_emit_matmul(index, products[0], accumulate=1",
        "_emit_matmul(index, products[0], accumulate=0",
    ),
    (
        "_select_add",
        "_emit_conv(index, products[0], accumulate=1",
        "_emit_conv(index, products[0], accumulate=0",
    ),
    ("_select_add", '"mul_add"', '"mul"'),
    ("_select_matmul", "accumulate=0", "accumulate=1"),
    ("_select_conv", "accumulate=0", "accumulate=1"),
    ("_select_sum", '"mul_sum"', '"sum"'),
    ("_emit_binary", "(self._places[a if spread == b else b]", "(self._places[a]"),
    ("_emit_matmul", "strides = (1, m) if ta else (k, 1)", "strides = (k, 1)"),
    ("_emit_matmul", "self._transposed(b, n, k)", "self._transposed(b, k, n)"),
    ("_once", "(kernel, read, *sizes)", "(kernel, read)"),
    ("_constant", '("constant", number, size)', '("constant", size)'),
]
IMAGES = [
    ("_conv_shapes", '"conv": (a, node.shape, b)', '"conv": (a, a, b)'),
    ("_conv_shapes", "(node.shape, a, b)", "(a, node.shape, b)"),
    ("_conv_shapes", "(a, b, node.shape)", "(a, b, node.shape[1::-1])"),
    ("_emit_conv", 'kind == "conv_input"', "False"),
    ("_emit_conv", "reads[1], prod(kernel[:3])", "reads[0], prod(kernel[:3])"),
    ("_emit_conv", "prod(kernel[:3]), kernel[3]", "kernel[3], prod(kernel[:3])"),
    ("_emit_conv", "*kernel[:2]", "*kernel[1::-1]"),
    ("_emit_conv", '(attributes["stride"], *', "(1, *"),
    ("_emit_conv", '*attributes["padding"])', '*attributes["padding"][::-1])'),
    ("_select_max_gather", "(self._places[z], ", "(self._places[x], "),
    ("_once", "(kernel, read, *sizes)", "(kernel, *sizes)"),
    ("_select_max_gather", '"largest", self._places[x]', '"largest", self._places[z]'),
    ("_select_max_gather", "(*self.tape.nodes[x].shape", "(*node.shape"),
    ("_select_max_gather", "shape, size)\n", "shape, 1)\n"),
    ("_select_max_gather", "2 * windows", "windows"),
]


def recipes_agree():
    for recipe in RECIPES:
        tape = tape_of(recipe)
        assert_backends_agree(tape, random_inputs(tape, seed=0, tasks=3))


def recipes_are_sound():
    for recipe in RECIPES:
        assert_plan_is_sound(Plan(tape_of(recipe)))


def meta_gradients_agree():
    for steps in (1, 2):
        tape = meta_gradient_tape(steps=steps)
        assert_backends_agree(tape, random_inputs(tape, seed=1, tasks=3))


def primitives_agree():
    for row in CASES:
        for seed, call in enumerate(CASES[row].odd):
            check_agreement(row, *call, seed, "float64")


def give_slack(monkeypatch):
    """Room behind the workspace, so that a mutant that reads too far hits no wall."""
    place_buffers = Plan._place_buffers

    def with_slack(self):
        offsets, size = place_buffers(self)
        return offsets, size + 8192

    monkeypatch.setattr(Plan, "_place_buffers", with_slack)


def test_unbroken_planner_passes():
    recipes_agree()
    recipes_are_sound()
    meta_gradients_agree()
    primitives_agree()


@pytest.mark.parametrize(("method", "old", "new"), MEMORY + FUSION + IMAGES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # mutants may make huge numbers
def test_broken_planner_is_caught(monkeypatch, method, old, new):
    put(monkeypatch, Plan, method, old, new)
    give_slack(monkeypatch)
    assert not survives(recipes_agree, meta_gradients_agree, primitives_agree)


def breaks(change):
    """Plans whose calls are changed, one by one, before they are run."""

    def put_in_place(monkeypatch):
        place_buffers = Plan._place_buffers

        def broken(self):
            self.instructions = [change(call) for call in self.instructions]
            return place_buffers(self)

        monkeypatch.setattr(Plan, "_place_buffers", broken)
        give_slack(monkeypatch)

    return put_in_place


def resized(kernel, change):
    def changed(call):
        if call.kernel != kernel:
            return call
        return call._replace(sizes=tuple(change(*call.sizes)))

    return breaks(changed)


def less_one(position):
    """One size smaller by one: the tail of a loop is cut off."""

    def change(*sizes):
        sizes = list(sizes)
        sizes[position] -= 1
        return sizes

    return change


def swapped_reads(kernel):
    return breaks(
        lambda call: (
            call._replace(reads=call.reads[::-1]) if call.kernel == kernel else call
        )
    )


SWAPPED = ("sub", "gate", "matmul", "conv", "max_gather", "max_scatter")
CALLS = {
    "matmul strides swapped": resized(
        "matmul", lambda m, n, k, rs, cs, more: (m, n, k, cs, rs, more)
    ),
    "matmul never accumulates": resized("matmul", lambda *s: (*s[:-1], 0)),
    "matmul always accumulates": resized("matmul", lambda *s: (*s[:-1], 1)),
    "conv never accumulates": resized("conv", lambda *s: (*s[:-1], 0)),
    "conv always accumulates": resized("conv", lambda *s: (*s[:-1], 1)),
    "dots never accumulates": resized("dots", lambda *s: (*s[:-1], 0)),
    "dots always accumulates": resized("dots", lambda *s: (*s[:-1], 1)),
    "transpose sizes swapped": resized("transpose", lambda m, n: (n, m)),
    "sum sizes turned": resized("sum", lambda o, m, i: (i, m, o)),
    "broadcast sizes turned": resized("broadcast", lambda o, m, i: (i, m, o)),
    "add sizes turned": resized("add", lambda o, m, i: (i, m, o)),
    **{f"{k} operands swapped": swapped_reads(k) for k in SWAPPED},
    **{
        f"{kernel} tail {position}": resized(kernel, less_one(position))
        for kernel, positions in {
            "matmul": (0, 2),
            "dots": (0, 1, 2),
            "transpose": (0,),
            "add": (0, 1, 2),
            "mul_add": (0, 1, 2),
            "mul_sum": (0, 1),
            "sub": (2,),
            "mul": (2,),
            "add_relu": (1, 2),
            "broadcast": (0, 1, 2),
            "sum": (0, 1),
            "softmax": (0,),
            "logsumexp": (0,),
            "pad": (1, 2),
            **dict.fromkeys(("conv", "conv_input", "conv_weight"), (0,)),
            **dict.fromkeys(("largest", "max_gather", "max_scatter"), (0,)),
            **dict.fromkeys(("copy", "scale", "gate", "relu", "exp", "log"), (0,)),
            **dict.fromkeys(("tanh", "reciprocal", "rsqrt"), (0,)),
        }.items()
        for position in positions
    },
}


@pytest.mark.parametrize("mistake", CALLS)
def test_broken_call_is_caught(monkeypatch, mistake):
    CALLS[mistake](monkeypatch)
    assert not survives(recipes_agree, primitives_agree)


@pytest.mark.parametrize(("method", "old", "new"), MEMORY[:5])
def test_broken_memory_is_seen_without_playing(monkeypatch, method, old, new):
    put(monkeypatch, Plan, method, old, new)
    assert not survives(recipes_are_sound)


def test_unwritten_and_overwritten_reads_are_told_apart(monkeypatch):
    plan = Plan(tape_of("operands_of_a_deferred_product_are_kept"))
    calls = plan.instructions
    plan.instructions = calls[1:]
    with pytest.raises(AssertionError, match="read before anything was written"):
        assert_plan_is_sound(plan)
    plan.instructions = calls
    plan.offsets = np.zeros(len(plan.offsets), int).tolist()
    with pytest.raises(AssertionError, match="overwritten while it was needed"):
        assert_plan_is_sound(plan)
