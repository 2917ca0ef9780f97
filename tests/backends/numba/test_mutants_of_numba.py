"""Mistakes in the plan must be caught by the tests that backends agree.

Mistakes in the kernels' own code are in uncompiled_kernels.py: there nothing is
compiled.
"""

import numpy as np
import pytest

from tests.support.mutants import put, survives
from tests.support.plan_recipes import RECIPES
from tests.support.planning import (
    assert_plan_is_sound,
    meta_gradient_tape,
    tape_of,
)
from tests.support.primitive_cases import CASES
from tests.support.primitive_checks import check_agreement
from tests.support.random_programs import random_inputs
from tests.support.running import assert_backends_agree
from tinymaml.backends.numba import fusion, planner, selection
from tinymaml.backends.numba.fusion import Fusion
from tinymaml.backends.numba.selection import Selection

# What goes wrong: (owner, function, text of its source, what stands there instead)
LIVE_RANGES = {
    "a buffer is not needed after its first call": (
        (planner, "place", "last[view.buffer] = time", "pass")
    ),
    "a buffer is not needed by those who read it": (
        (planner, "place", "(call.out, *call.reads)", "(call.out,)")
    ),
    "inputs and outputs are not needed after their last call": (
        (planner, "place", "last[needed_throughout] = len(instructions)", "pass")
    ),
    "inputs are not needed before their first call": (
        (planner, "place", "first[needed_throughout] = 0", "pass")
    ),
    "constants are not needed for the next task": (
        (planner, "place", "*outputs, *constants]", "*outputs]")
    ),
}
MEMORY = {
    **LIVE_RANGES,
    "a buffer is placed in a gap that is too small": (
        (planner, "lowest_offsets", " >= sizes[buffer]", " >= 0")
    ),
    "a buffer is placed on its neighbour": (
        (planner, "lowest_offsets", "starts + sizes[neighbours]", "starts")
    ),
    "a gap begins behind one lower neighbour": (
        (planner, "lowest_offsets", "np.maximum.accumulate(", "np.array(")
    ),
    "neighbours are met in any order": (
        (planner, "lowest_offsets", "np.argsort(offsets[neighbours])", ":")
    ),
    "a product is added to a value that is read elsewhere": (
        (fusion, "fuse", "fusion.only_reader(term) == ", "")
    ),
    "a product is deferred that is read elsewhere": (
        (fusion, "fuse", "== fusion.only_reader(product) ==", "==")
    ),
    "a product is deferred for whoever reads it": (
        fusion,
        "fuse",
        "and fusion.only_reader(term) == fusion.only_reader(product) == index",
        "",
    ),
    "a product is added to an input or a view": (
        (fusion, "fuse", "and fusion.is_computed(term)", "")
    ),
    "all values that a concat joins start at 0": (
        (fusion, "fuse", "start += prod(tape.nodes[i].shape)", "pass")
    ),
    "a value inside another starts where that starts": (
        (selection, "select", "shifted(start)", "shifted(0)")
    ),
    "a value read twice has an only reader": (
        (Fusion, "only_reader", "len(readers) == 1", "readers")
    ),
    "an output has an only reader": (
        (Fusion, "only_reader", "and index not in self.outputs", "")
    ),
}
FUSION = {
    "a reshape is looked through that is read elsewhere": (
        Fusion,
        "_only_computing_reader",
        "reader = self.only_reader(reader)",
        "reader = self.readers[reader][0]",
    ),
    "a product with a broadcast is summed unstored": (
        (Fusion, "can_be_inlined", "broadcast is None and self", "self")
    ),
    "a sum without a broadcast is inlined in relu": (
        (Fusion, "can_be_inlined", "bias is not None and self", "self")
    ),
    "a broadcast that is an output is inlined": (
        (Fusion, "can_be_inlined", "index not in self.outputs and all(", "all(")
    ),
    "a broadcast is inlined in any operation": (
        (Fusion, "can_be_inlined", 'in ("add", "sub", "mul")', "is not None")
    ),
    "a broadcast is both operands": (
        (Fusion, "broadcast_operand", "if a == b", "if False")
    ),
    "operands of a difference are swapped": (
        (Fusion, "broadcast_operand", 'and node.primitive.name != "sub"', "")
    ),
    "what a concat joins is never copied": (
        (selection, "select_concat", "if s.views[i] != out", "if False")
    ),
    "a slice starts at 0": ((selection, "select_slice", "view.shifted(start)", "view")),
    "a pad is one element too long": (
        (selection, "select_pad", "(start, length, size)", "(start + 1, length, size)")
    ),
    "deferred products are not added": (
        (selection, "select_add", "accumulate=1", "accumulate=0")
    ),
    "a deferred matrix product is not added": (
        (selection, "select_matmul", "*strides, accumulate)", "*strides, 0)")
    ),
    "a deferred product of a narrow matrix is not added": (
        (selection, "select_matmul", "(m, n, k, accumulate)", "(m, n, k, 0)")
    ),
    "a deferred product of a row is not added": (
        (selection, "select_matmul", "(n, 1, k, accumulate)", "(n, 1, k, 0)")
    ),
    "a deferred product that is a column is not added": (
        (selection, "select_matmul", "k, k, 1, accumulate)", "k, k, 1, 0)")
    ),
    "a deferred convolution is not added": (
        (selection, "select_convolution", "*steps, accumulate)", "*steps, 0)")
    ),
    "a deferred elementwise product is not added": (
        (selection, "select_pair", '"mul_add" if accumulate', '"mul" if accumulate')
    ),
    "all matrix products are added": (
        (selection, "select_matmul", "accumulate: int = 0", "accumulate: int = 1")
    ),
    "all convolutions are added": (
        (selection, "select_convolution", "accumulate: int = 0", "accumulate: int = 1")
    ),
    "all elementwise products are added": (
        (selection, "select_pair", "accumulate: int = 0", "accumulate: int = 1")
    ),
    "an inlined product is a plain sum": (
        (selection, "sum_call", '"mul_sum"', '"sum"')
    ),
    "the first argument is never the broadcast": (
        (selection, "emit_pair", "s.views[a if broadcast == b else b]", "s.views[a]")
    ),
    "strides of a transposed matrix are those of a plain one": (
        (
            selection,
            "select_matmul",
            "strides = (1, m) if ta else (k, 1)",
            "strides = (k, 1)",
        )
    ),
    "rows and columns of a copy are swapped": (
        (
            selection,
            "select_matmul",
            "copy_transposed(s, b, n, k)",
            "copy_transposed(s, b, k, n)",
        )
    ),
    "copies of two shapes are one": (
        (Selection, "emit_once", "key = kernel, read, sizes", "key = kernel, read")
    ),
    "copies of two values are one": (
        (Selection, "emit_once", "key = kernel, read, sizes", "key = kernel, sizes")
    ),
    "constants of two numbers are one": (
        Selection,
        "constant",
        "key = number, repr(number), size",
        "key = next((k for k in self.constants if k[2] == size), (number, '', size))",
    ),
}
IMAGES = {
    "outputs of a convolution have the shape of its images": (
        selection,
        "convolution_sizes",
        '"conv": (a, node.shape, b)',
        '"conv": (a, a, b)',
    ),
    "images and outputs of conv_input are swapped": (
        (selection, "convolution_sizes", "(node.shape, a, b)", "(a, node.shape, b)")
    ),
    "height and width of conv_weight are swapped": (
        selection,
        "convolution_sizes",
        "(a, b, node.shape)",
        "(a, b, node.shape[1::-1])",
    ),
    "conv_input reads its kernel untransposed": (
        (
            selection,
            "select_convolution",
            'node.primitive.name == "conv_input"',
            "False",
        )
    ),
    "conv_input reads its images transposed": (
        (
            selection,
            "select_convolution",
            "copy_transposed(s, second",
            "copy_transposed(s, first",
        )
    ),
    "conv_input reads rows of its kernel as columns": (
        selection,
        "select_convolution",
        "prod(kernel[:3]), kernel[3]",
        "kernel[3], prod(kernel[:3])",
    ),
    "height and width of a kernel are swapped": (
        (selection, "select_convolution", "*kernel[:2]", "*kernel[1::-1]")
    ),
    "the stride is always 1": (
        (selection, "convolution_sizes", '(attributes["stride"], *', "(1, *")
    ),
    "padding of rows and columns is swapped": (
        selection,
        "convolution_sizes",
        '*attributes["padding"])',
        '*attributes["padding"][::-1])',
    ),
    "x itself is gathered where x is largest": (
        (selection, "select_pooling", "(z, largest)", "(x, largest)")
    ),
    "values are gathered where they are largest themselves": (
        (selection, "select_pooling", ", x, sizes)", ", z, sizes)")
    ),
    "a window has the shape of the result": (
        (selection, "select_pooling", "(*shape, size)", "(*node.shape, size)")
    ),
    "windows have one pixel": (
        (selection, "select_pooling", "(*shape, size)", "(*shape, 1)")
    ),
    "the largest elements have half the memory they need": (
        (selection, "select_pooling", "2 * prod(pooled", "prod(pooled")
    ),
}
MUTANTS = MEMORY | FUSION | IMAGES
# Results stay the same, but time or memory is lost: recipes call other kernels.
WASTE = {
    "copies are kept alive after a rematerialisation": (
        (selection, "select_rematerialise", "s.shared_results.clear()", "pass")
    ),
    "transposed copies are made each time": (
        (Selection, "emit_once", "if key not in self.shared_results", "if True")
    ),
    "deferred products are computed on their own as well": (
        (selection, "select", "and index not in fusion.deferred", "")
    ),
    "broadcasts are always stored": (
        (Fusion, "can_be_inlined", "return index not in", "return False and index in")
    ),
    "values are not computed inside a concat": (
        (fusion, "fuse", "if source not in parts and", "if False and")
    ),
    "only the second term may be deferred": (
        (fusion, "fuse", "(node.arguments, node.arguments[::-1])", "(node.arguments,)")
    ),
}


def recipes_agree():
    for recipe in RECIPES:
        tape = tape_of(recipe)
        assert_backends_agree(tape, random_inputs(tape, seed=0, tasks=3))


def recipes_are_sound():
    for recipe in RECIPES:
        assert_plan_is_sound(planner.plan(tape_of(recipe)))


def recipes_call_their_kernels():
    for recipe, (_, kernels) in RECIPES.items():
        calls = planner.plan(tape_of(recipe)).instructions
        assert sorted(call.kernel for call in calls) == kernels


def meta_gradients_agree():
    for steps in (1, 2):
        tape = meta_gradient_tape(steps=steps)
        assert_backends_agree(tape, random_inputs(tape, seed=1, tasks=3))


def primitives_agree():
    for primitive in CASES:
        for seed, call in enumerate(CASES[primitive].odd):
            check_agreement(primitive, *call, seed, "float64")


def give_slack(monkeypatch):
    """Room behind the workspace, so that a mutant that reads too far hits no wall."""
    place = planner.place

    def place_with_slack(selection, instructions):
        plan = place(selection, instructions)
        plan.size += 8192
        return plan

    monkeypatch.setattr(planner, "place", place_with_slack)


def test_unbroken_planner_passes():
    recipes_agree()
    recipes_are_sound()
    recipes_call_their_kernels()
    meta_gradients_agree()
    primitives_agree()


@pytest.mark.parametrize("mistake", MUTANTS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # mutants may make huge numbers
def test_broken_planner_is_caught_if(monkeypatch, mistake):
    put(monkeypatch, *MUTANTS[mistake])
    give_slack(monkeypatch)
    assert not survives(recipes_agree, meta_gradients_agree, primitives_agree)


@pytest.mark.parametrize("mistake", WASTE)
def test_wasteful_planner_is_caught_if(monkeypatch, mistake):
    put(monkeypatch, *WASTE[mistake])
    assert not survives(recipes_call_their_kernels)


def breaks(change):
    """Plans whose calls are changed, one by one, before they are placed."""

    def patch(monkeypatch):
        place = planner.place

        def place_changed(selection, instructions):
            return place(selection, [change(call) for call in instructions])

        monkeypatch.setattr(planner, "place", place_changed)
        give_slack(monkeypatch)

    return patch


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
    "sum sizes reversed": resized("sum", lambda o, m, i, b: (i, m, o, b)),
    "broadcast sizes reversed": resized("broadcast", lambda o, m, i: (i, m, o)),
    "add sizes reversed": resized("add", lambda o, m, i: (i, m, o)),
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


@pytest.mark.parametrize("mistake", LIVE_RANGES)
def test_broken_memory_is_caught_without_running_if(monkeypatch, mistake):
    put(monkeypatch, *LIVE_RANGES[mistake])
    assert not survives(recipes_are_sound)


def test_unwritten_and_overwritten_reads_are_distinguished(monkeypatch):
    plan = planner.plan(tape_of("operands_of_a_deferred_product_stay_in_memory"))
    calls = plan.instructions
    plan.instructions = calls[1:]
    with pytest.raises(AssertionError, match="read before anything was written"):
        assert_plan_is_sound(plan)
    plan.instructions = calls
    plan.offsets = np.zeros(len(plan.offsets), int).tolist()
    with pytest.raises(AssertionError, match="overwritten while it was needed"):
        assert_plan_is_sound(plan)
