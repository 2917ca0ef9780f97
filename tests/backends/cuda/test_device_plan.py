"""The plan for a GPU: sound in any order of threads; sums in passes; patches."""

import re
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinymaml as tm
from tests.backends.test_random_programs import (
    derivative_tape,
    output_picks,
    wide,
    with_outputs,
)
from tests.support.device_planning import assert_device_plan_is_sound
from tests.support.image_problems import image_problem, pooled_network, strided_network
from tests.support.maml_problems import problem
from tests.support.plan_recipes import RECIPES
from tests.support.planning import tape_of
from tests.support.policy_problems import problem as policy_problem
from tests.support.policy_problems import record as record_policy
from tests.support.policy_problems import task_inputs
from tests.support.primitive_cases import (
    plain_conv,
    plain_conv_input,
    plain_conv_weight,
)
from tests.support.random_programs import programs
from tests.support.running import assert_close
from tests.support.serial_cupy import WHY_NOT, run_serially
from tinymaml.autodiff.derivatives import grad
from tinymaml.backends.cuda import device_plan as plans
from tinymaml.backends.cuda import device_program
from tinymaml.backends.cuda.backend import SOURCE
from tinymaml.backends.cuda.cublas import Gemm, Matrix
from tinymaml.backends.cuda.device_plan import (
    ELEMENTWISE,
    LONG_PRODUCT,
    LONG_SUM,
    device_plan,
    divisor_of,
    parts_of,
)

needs_compiler = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
many = settings(max_examples=10 * settings().max_examples)


# --- memory and threads ---------------------------------------------------------------


def policy_tape(kind):
    p = policy_problem()
    inputs = {**task_inputs(p, 0), "theta": p.theta, "theta_old": p.theta, "v": p.theta}
    return record_policy(p, inputs, kind)


def meta_gradient(p, steps, **options):
    return p.maml(steps=steps, **options).tape(p.theta, p.tasks)


TAPES = {
    "sinusoid": lambda: meta_gradient(problem(sizes=(1, 40, 40, 1)), 1),
    "classes, recomputed": lambda: meta_gradient(
        problem("cross_entropy", "relu"), 3, recompute=True
    ),
    "classes, first order": lambda: meta_gradient(problem("cross_entropy"), 2, order=1),
    "stride and mean": lambda: meta_gradient(image_problem(strided_network()), 2),
    "max-pooling": lambda: meta_gradient(
        image_problem(pooled_network()), 2, recompute=True
    ),
    "policy": lambda: policy_tape("surrogate"),
    "divergence of policies": lambda: policy_tape("kl"),
}


@many
@given(program=wide, picks=output_picks, tasks=st.integers(1, 3))
def test_device_plan_of_random_programs_is_sound(program, picks, tasks):
    assert_device_plan_is_sound(device_plan(with_outputs(program, picks)), tasks)


@many
@given(program=programs())
def test_device_plan_of_derivatives_of_random_programs_is_sound(program):
    assert_device_plan_is_sound(device_plan(derivative_tape(program)))


@pytest.mark.parametrize("recipe", RECIPES)
def test_device_plan_is_sound_where(recipe):
    assert_device_plan_is_sound(device_plan(tape_of(recipe)), tasks=3)


@pytest.mark.parametrize("name", TAPES)
def test_device_plan_of_a_real_tape_is_sound_and_its_operations_fused(name):
    plan = device_plan(TAPES[name]())
    assert_device_plan_is_sound(plan)
    groups = [launch for launch in plan.instructions if launch.operations]
    operations = [call for launch in groups for call in launch.operations]
    assert len(groups) < 0.8 * len(operations)


def test_operations_have_the_numbers_of_the_enum_in_kernels_cu():
    source = SOURCE.read_text(encoding="utf-8")
    (names,) = re.findall(r"enum Opcode \{(.*?)\}", source, re.DOTALL)
    assert tuple(names.lower().replace(",", " ").split()) == ELEMENTWISE


# --- sums in several passes -----------------------------------------------------------

# Up to LONG_SUM, primes, products of two primes, powers, and numbers of many divisors.
terms = st.integers(1, 200) | st.sampled_from([509, 1009, 2 * 509, 8 * 127, 61 * 67])
terms |= st.sampled_from([4096, 5040, 64 * 65, 3**7])


def check_divisor(terms):
    divisors = [d for d in range(1, terms + 1) if terms % d == 0]
    some = divisor_of(terms)
    assert some in divisors
    if terms <= LONG_SUM:
        assert some == terms
    else:  # the largest that one thread should add; fewer than 8 would not pay
        assert some == max([d for d in divisors if 8 <= d <= LONG_SUM], default=terms)


@given(terms=terms)
def test_terms_of_a_pass_divide_the_sum_and_are_many_but_not_too_many(terms):
    check_divisor(terms)


@needs_compiler
@settings(max_examples=2 * settings().max_examples)
@given(
    outer=st.integers(1, 4),
    middle=terms,
    inner=st.integers(1, 4),
    product=st.booleans(),
)
def test_sums_of_many_terms_are_plain_sums(outer, middle, inner, product):
    shape = outer, middle, inner
    tape = tm.Tape()
    x, y = (tape.input(name, shape, per_task=True) for name in "xy")
    tape.output("sum", tape.record("sum", x * y if product else x, start=1, stop=2))
    arrays = np.random.default_rng(middle).integers(-9, 10, (2, 2, *shape))
    result = run_serially(tape, dict(zip("xy", arrays, strict=True)))["sum"]
    summed = arrays[0] * arrays[1] if product else arrays[0]
    assert np.array_equal(result[:, :, 0], summed.sum(axis=2))  # whole numbers: exact
    launches = device_plan(tape).instructions
    passes = [launch for launch in launches if not launch.operations]
    assert [launch.kernel for launch in passes][0] == ("mul_sum" if product else "sum")
    assert prod(launch.sizes[1] for launch in passes) == middle
    assert passes[0].sizes[1] == divisor_of(middle)


# --- convolutions ---------------------------------------------------------------------


@st.composite
def convolutions(draw):
    """(images, kernel, outputs) shapes, stride and padding; not only SAME and VALID."""

    def small(least, most):
        return draw(st.integers(least, most))

    height, width, kh, kw = small(1, 6), small(1, 6), small(1, 4), small(1, 4)
    stride = small(1, 3)
    padding = small(0, min(2, kh - 1)), small(0, min(2, kw - 1))
    # Every window meets a pixel: the last one starts before the end.
    rows = small(1, min(4, 1 + (height + padding[0] - 1) // stride))
    columns = small(1, min(4, 1 + (width + padding[1] - 1) // stride))
    n, channels, features = small(1, 3), small(1, 3), small(1, 4)
    images, kernel = (n, height, width, channels), (kh, kw, channels, features)
    return images, kernel, (n, rows, columns, features), stride, padding


@needs_compiler
@many
@given(case=convolutions(), more=st.booleans())
def test_convolutions_are_products_of_patches(case, more):
    """All three of them, plain and added to something, shared kernel or not."""
    images, kernel, outputs, stride, padding = case
    rng = np.random.default_rng(0)
    tape, tasks = tm.Tape(), 2
    x = tape.input("x", images, per_task=True)
    w = tape.input("w", kernel, per_task=more)
    g = tape.input("g", outputs, per_task=True)
    how = {"stride": stride, "padding": padding}
    values = [
        tape.record("conv", x, w, size=outputs[1:3], **how),
        tape.record("conv_input", g, w, size=images[1:3], **how),
        tape.record("conv_weight", x, g, size=kernel[:2], **how),
    ]
    for name, value, base in zip("gxw", values, (g, x, w), strict=True):
        tape.output(name, base * 2.0 + value if more else value)
    shapes = {"x": (tasks, *images), "g": (tasks, *outputs), "w": (tasks, *kernel)}
    inputs = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    sent = inputs if more else {**inputs, "w": inputs["w"][0]}
    results = run_serially(tape, sent)
    for task in range(tasks):
        x, g = (inputs[name][task] for name in "xg")
        w = inputs["w"][task if more else 0]
        expected = {
            "g": plain_conv(x, w, size=outputs[1:3], **how),
            "x": plain_conv_input(g, w, size=images[1:3], **how),
            "w": plain_conv_weight(x, g, size=kernel[:2], **how),
        }
        for name, array in expected.items():
            base = {"x": x, "g": g, "w": w}[name]
            array = 2 * base + array if more else array
            size = np.linalg.norm(x) + np.linalg.norm(g) + np.linalg.norm(w)
            assert_close(results[name][task], array, 1e-12, name, floor=size)


def test_patches_are_copied_once_for_all_products_that_read_them():
    tape = tm.Tape()
    x, w = tape.input("x", (2, 4, 4, 2)), tape.input("w", (3, 3, 2, 3))
    out = tm.conv2d(x, w)
    tape.output("gradient", grad((out * out).sum(), w))
    kernels = [launch.kernel for launch in device_plan(tape).instructions]
    assert kernels.count("im2col") == 1 and kernels.count("matmul") == 2


def weight_gradients(shared, images=(4, 16, 16, 2)):
    """conv_weight of images and cotangents, alone and added: a tape, and its inputs.

    shared: whether the tasks share the cotangents.
    """
    tape, rng = tm.Tape(), np.random.default_rng(0)
    x = tape.input("x", images, per_task=True)
    g = tape.input("g", (*images[:3], 4), per_task=not shared)
    w = tape.input("w", (3, 3, images[3], 4))
    how = {"size": (3, 3), "stride": 1, "padding": (1, 1)}
    tape.output("alone", tape.record("conv_weight", x, g, **how))
    tape.output("added", w * 2.0 + tape.record("conv_weight", x * 2.0, g, **how))
    shapes = {"x": (3, *x.shape), "g": g.shape if shared else (3, *g.shape)}
    return tape, {
        n: rng.standard_normal(s) for n, s in {**shapes, "w": w.shape}.items()
    }


def check_weight_gradients(shared, parts):
    """They are right, and products in `parts` parts (None: whole products)."""
    tape, inputs = weight_gradients(shared)
    plan = device_plan(tape)
    assert_device_plan_is_sound(plan, tasks=3)
    products = [launch for launch in plan.instructions if launch.kernel == "matmul"]
    assert [one.sizes[6:] for one in products] == [(parts,) if parts else ()] * 2
    results = run_serially(tape, inputs)
    for task, x in enumerate(inputs["x"]):
        g = inputs["g"] if shared else inputs["g"][task]
        alone = plain_conv_weight(x, g, size=(3, 3), stride=1, padding=(1, 1))
        assert_close(results["alone"][task], alone, 1e-12, "alone")
        added = 2 * inputs["w"] + 2 * alone
        assert_close(results["added"][task], added, 1e-12, "added")


@needs_compiler
@pytest.mark.parametrize("shared", [False, True])
def test_long_products_are_computed_in_parts(shared):
    """All in one call, or a call for each task if one does not follow the other."""
    check_weight_gradients(shared, parts=2)


def check_calls(most, calls):
    """Three tasks with two parts each are so many calls, of at most `most` products."""
    whole = Gemm(
        True,
        False,
        m=3,
        n=4,
        k=5,
        a=Matrix(64, 1, 30),
        b=Matrix(64, 1, 40),
        accumulate=False,
        c=Matrix(64, 1, 24),
        tasks=3,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_program, "MOST_TASKS", most)
        found = device_program.products_of_parts(whole, parts=2, itemsize=4)
    assert [call.tasks for call in found] == [6 // calls] * calls
    assert [call.c.address for call in found] == [64 + 96 * n for n in range(calls)]


@pytest.mark.parametrize(("most", "calls"), [(65_535, 1), (6, 1), (5, 3)])
def test_no_call_does_more_products_than_it_may(most, calls):
    check_calls(most, calls)


@needs_compiler
def test_products_with_many_results_are_whole_and_may_be_added(monkeypatch):
    monkeypatch.setattr(plans, "FEW_RESULTS", 71)  # these have 72
    check_weight_gradients(shared=False, parts=None)


def test_parts_that_would_not_be_aligned_are_one_product():
    tape, _ = weight_gradients(shared=False, images=(5, 14, 14, 1))
    assert parts_of(980) == 2
    launches = device_plan(tape).instructions
    assert all(len(one.sizes) == 6 for one in launches if one.kernel == "matmul")


@given(terms=st.integers(1, 2**20))
def test_parts_are_equal_and_neither_short_nor_long(terms):
    parts = parts_of(terms)
    assert terms % parts == 0
    if parts > 1:
        assert 64 <= terms // parts <= LONG_PRODUCT
    longer = [p for p in range(1, parts) if terms % p == 0]
    assert all(terms // p > LONG_PRODUCT for p in longer)
