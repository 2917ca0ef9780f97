"""Small tapes for each thing the planner does to save time or memory.

A recipe takes an empty tape and returns the values to be outputs. Its decorator lists
the kernels that the CPU's plan must call, in alphabetical order, so that no recipe can
pass because nothing was fused. `fusion.py` quotes some of them as counter-examples.
"""

from tests.support import plan_recipes_images  # noqa: F401 (adds recipes)
from tests.support.plan_registry import RECIPES, inputs, pad, product, recipe
from tinymaml.autodiff.derivatives import accumulate_cotangents
from tinymaml.autodiff.functions import (
    concatenate,
    exp,
    relu,
    rematerialise,
    tanh,
)

__all__ = ["RECIPES"]


# --- broadcasts and sums that are not stored ------------------------------------------


@recipe("add matmul")
def bias_is_read_as_a_broadcast(tape):
    x, w, b = inputs(tape, (5, 3), (3, 7), (7,))
    return [x @ w + b]


@recipe("add_relu matmul")
def relu_after_bias_is_one_call(tape):
    x, w, b = inputs(tape, (5, 3), (3, 7), (7,))
    return [relu(x @ w + b)]


@recipe("add_relu matmul")
def relu_after_bias_on_the_left_is_one_call(tape):
    x, w, b = inputs(tape, (5, 3), (3, 7), (7,))
    return [relu(b + x @ w)]


@recipe("add matmul relu")
def sum_before_relu_that_is_an_output_is_stored(tape):
    x, w, b = inputs(tape, (5, 3), (3, 7), (7,))
    total = x @ w + b
    return [total, relu(total)]


@recipe("add matmul mul relu")
def sum_before_relu_that_is_read_again_is_stored(tape):
    x, w, b = inputs(tape, (5, 3), (3, 7), (7,))
    total = x @ w + b
    return [relu(total) * total]


@recipe("add mul relu")
def sum_before_relu_whose_reshape_is_read_again_is_stored(tape):
    x, b = inputs(tape, (4, 3), (3,))
    total = (x + b).reshape(2, 6)
    return [relu(total) * total]


@recipe("add broadcast")
def broadcast_that_is_an_output_is_stored(tape):
    x, b = inputs(tape, (4, 3), (3,))
    return [b.broadcast_to((4, 3)), x + b]


@recipe("broadcast mul mul tanh")
def broadcast_that_feeds_a_function_is_stored(tape):
    x, b = inputs(tape, (4, 3), (3,))
    return [tanh(b.broadcast_to((4, 3))) * x * b.broadcast_to((4, 3))]


@recipe("sub")
def right_side_of_sub_is_read_as_a_broadcast(tape):
    x, b = inputs(tape, (4, 3), (4, 1))
    return [x - b]


@recipe("broadcast sub")
def left_side_of_sub_is_stored(tape):
    x, b = inputs(tape, (4, 3), (4, 1))
    return [b - x]


@recipe("mul")
def middle_axis_is_read_as_a_broadcast(tape):
    x, b = inputs(tape, (2, 5, 3), (2, 1, 3))
    return [x * b]


@recipe("broadcast mul")
def one_of_two_broadcasts_is_stored(tape):
    a, b = inputs(tape, (4, 1), (1, 3))
    return [a * b]


@recipe("add broadcast mul relu")
def broadcast_on_both_sides_is_stored(tape):
    (a,) = inputs(tape, (4, 1))
    wide = a.broadcast_to((4, 3))
    return [wide * wide, relu(tape.record("add", wide, wide))]


@recipe("mul_sum sum sum sum sum sum")
def long_sum_is_a_sum_of_sums_of_blocks(tape):
    x, y, z = inputs(tape, (2, 150, 3), (2, 150, 3), (131,))
    terms = [x, x * y]
    return [z.sum(), *(tape.record("sum", t, start=1, stop=2) for t in terms)]


@recipe("sum")
def short_sum_is_one_call(tape):
    (x,) = inputs(tape, (64, 3))
    return [x.sum(0)]


# --- matrix products ------------------------------------------------------------------


@recipe("matmul matmul matmul")
def sum_of_products_accumulates_in_place(tape):
    a, b, c, d, e, f = inputs(tape, (5, 3), (3, 7), (5, 2), (2, 7), (5, 4), (4, 7))
    return [a @ b + c @ d + e @ f]


@recipe("matmul relu tanh")
def product_is_added_before_a_relu(tape):
    a, b, x = inputs(tape, (5, 3), (3, 7), (5, 7))
    return [relu(tanh(x) + a @ b)]


@recipe("matmul tanh")
def product_is_added_to_a_value_on_its_left(tape):
    a, b, x = inputs(tape, (5, 3), (3, 7), (5, 7))
    return [tanh(x) + a @ b]


@recipe("matmul tanh")
def product_is_added_to_a_value_on_its_right(tape):
    a, b, x = inputs(tape, (5, 3), (3, 7), (5, 7))
    return [a @ b + tanh(x)]


@recipe("exp matmul tanh tanh tanh tanh")
def operands_of_a_deferred_product_stay_in_memory(tape):
    a, b, x = inputs(tape, (5, 3), (3, 7), (5, 7))
    early = tanh(a) @ exp(b)
    return [tanh(tanh(tanh(x))) + early]


@recipe("add matmul")
def product_does_not_accumulate_into_an_input(tape):
    a, b, x = inputs(tape, (5, 3), (3, 7), (5, 7))
    return [x + a @ b]


@recipe("add matmul")
def product_does_not_accumulate_into_a_view(tape):
    a, b, x = inputs(tape, (5, 3), (3, 7), (40,))
    return [x[2:37].reshape(5, 7) + a @ b]


@recipe("add matmul matmul")
def product_that_is_an_output_is_not_accumulated_into(tape):
    a, b, c, d = inputs(tape, (5, 3), (3, 7), (5, 2), (2, 7))
    return [a @ b, a @ b + c @ d]


@recipe("add exp matmul tanh")
def value_read_elsewhere_is_not_accumulated_into(tape):
    a, b, x = inputs(tape, (5, 3), (3, 7), (5, 7))
    return [tanh(x) + a @ b, exp(tanh(x))]


@recipe("dots tanh")
def column_is_made_of_dots_that_accumulate(tape):
    a, b, x = inputs(tape, (5, 3), (3, 1), (5, 1))
    return [tanh(x) + a @ b]


@recipe("dots tanh")
def row_by_transposed_matrix_is_made_of_dots_that_accumulate(tape):
    a, b, x = inputs(tape, (1, 3), (7, 3), (1, 7))
    return [tanh(x) + product(a, b, tb=True)]


@recipe("matmul tanh")
def column_of_a_transposed_matrix_accumulates(tape):
    a, b, x = inputs(tape, (3, 5), (3, 1), (5, 1))
    return [tanh(x) + product(a, b, ta=True)]


@recipe("dots")
def row_by_transposed_matrix_is_made_of_dots(tape):
    a, b = inputs(tape, (1, 3), (7, 3))
    return [product(a, b, tb=True)]


@recipe("matmul")
def column_of_a_transposed_matrix_is_a_row(tape):
    a, b = inputs(tape, (3, 5), (3, 1))
    return [product(a, b, ta=True)]


@recipe("dots dots transpose transpose")
def narrow_product_is_made_of_dots(tape):
    a, b, c, d = inputs(tape, (9, 5), (5, 2), (9, 5), (5, 2))
    return [a @ b + c @ d]


@recipe("dots")
def narrow_product_takes_a_transposed_matrix_as_it_is(tape):
    a, b = inputs(tape, (9, 5), (3, 5))
    return [product(a, b, tb=True)]


@recipe("add matmul matmul transpose transpose")
def narrow_product_of_a_transposed_matrix_is_transposed_and_does_not_accumulate(tape):
    a, b, c, d = inputs(tape, (5, 9), (5, 2), (5, 9), (5, 2))
    return [product(a, b, ta=True) + product(c, d, ta=True)]


@recipe("matmul matmul transpose")
def transposed_matrix_is_copied_once(tape):
    a, b, w = inputs(tape, (5, 3), (2, 3), (7, 3))
    return [product(a, w, tb=True), product(b, w, tb=True)]


@recipe("matmul matmul transpose transpose")
def transposed_matrix_is_copied_anew_after_a_rematerialisation(tape):
    a, b, w = inputs(tape, (5, 3), (2, 3), (7, 3))
    return [product(a, w, tb=True), product(rematerialise(b), w, tb=True)]


@recipe("matmul matmul tanh transpose transpose")
def transposed_copies_of_two_shapes_of_one_vector_differ(tape):
    a, b, w = inputs(tape, (5, 4), (2, 7), (28,))
    w = tanh(w)
    first = product(a, w.reshape(7, 4), tb=True)
    return [first, product(b, w.reshape(4, 7), tb=True)]


@recipe("matmul transpose")
def both_operands_are_transposed(tape):
    a, b = inputs(tape, (3, 5), (7, 3))
    return [product(a, b, ta=True, tb=True)]


# --- other products -------------------------------------------------------------------


@recipe("mul mul_add mul_add")
def sum_of_elementwise_products_accumulates_in_place(tape):
    a, b, c, d, e = inputs(tape, (4, 3), (4, 3), (4, 3), (3,), (4, 1))
    return [a * b + c * d + c * e]


@recipe("mul_add tanh")
def elementwise_product_is_added_to_a_value(tape):
    a, b, x = inputs(tape, (4, 3), (3,), (4, 3))
    return [a * b + tanh(x)]


@recipe("add mul tanh")
def elementwise_product_read_twice_is_stored(tape):
    a, b, x = inputs(tape, (4, 3), (4, 3), (4, 3))
    return [tanh(x) + a * b, a * b]


@recipe("mul_sum")
def product_that_is_summed_is_not_stored(tape):
    a, b = inputs(tape, (4, 3, 2), (4, 3, 2))
    return [(a * b).sum(1)]


@recipe("mul_sum")
def product_that_is_reshaped_and_summed_is_not_stored(tape):
    a, b = inputs(tape, (4, 3), (4, 3))
    return [(a * b).reshape(12).sum()]


@recipe("mul sum")
def product_that_is_summed_and_an_output_is_stored(tape):
    a, b = inputs(tape, (4, 3), (4, 3))
    return [a * b, (a * b).sum(0)]


@recipe("mul sum tanh")
def product_that_is_summed_and_read_is_stored(tape):
    a, b = inputs(tape, (4, 3), (4, 3))
    return [tanh(a * b), (a * b).sum(0)]


@recipe("mul sum")
def product_with_a_broadcast_is_stored_before_its_sum(tape):
    a, b = inputs(tape, (4, 3), (3,))
    return [(a * b).sum(1)]


@recipe("mul_sum")
def square_that_is_summed_is_not_stored(tape):
    (a,) = inputs(tape, (5, 3))
    return [(a * a).sum(0)]


@recipe("add_relu")
def relu_after_a_reshaped_bias_is_one_call(tape):
    x, b = inputs(tape, (4, 3), (3,))
    return [relu((x + b).reshape(2, 6))]


# --- vectors --------------------------------------------------------------------------


@recipe("exp tanh")
def parts_are_computed_where_they_are_joined(tape):
    a, b = inputs(tape, (5,), (3,))
    return [concatenate([tanh(a), exp(b)])]


@recipe("matmul tanh")
def reshaped_parts_are_computed_where_they_are_joined(tape):
    a, b, c = inputs(tape, (5, 3), (3, 7), (2, 2))
    return [concatenate([(a @ b).reshape(35), tanh(c).reshape(4)])]


@recipe("copy tanh")
def part_joined_twice_is_copied_once(tape):
    (a,) = inputs(tape, (5,))
    return [concatenate([tanh(a), tanh(a)])]


@recipe("copy copy tanh")
def inputs_and_constants_are_copied_into_a_concat(tape):
    a, b = inputs(tape, (5,), (3,))
    return [concatenate([b, tape.constant(2.0, (4,)), tanh(a)])]


@recipe("exp tanh")
def part_may_be_an_output_as_well(tape):
    a, b = inputs(tape, (5,), (3,))
    return [tanh(a), concatenate([exp(b), tanh(a)]), exp(b)]


@recipe("copy copy exp tanh")
def parts_of_two_concats_live_in_one(tape):
    a, b = inputs(tape, (5,), (3,))
    return [
        concatenate([tanh(a), exp(b)]),
        concatenate([exp(b), tanh(a)]),
    ]


@recipe("copy exp tanh tanh")
def concat_of_a_concat_is_copied(tape):
    a, b, c = inputs(tape, (5,), (3,), (2,))
    return [concatenate([concatenate([tanh(a), exp(b)]), tanh(c)])]


@recipe("matmul matmul tanh")
def product_accumulates_inside_a_concat(tape):
    a, b, c, d, x = inputs(tape, (5, 3), (3, 7), (5, 2), (2, 7), (4,))
    return [concatenate([tanh(x), (a @ b + c @ d).reshape(35)])]


@recipe("exp tanh")
def slices_of_slices_are_views(tape):
    (a,) = inputs(tape, (20,))
    return [tanh(a[3:17][2:9]), exp(a)[1:4]]


@recipe("copy copy")
def pads_that_tile_a_vector_are_copies(tape):
    a, b = inputs(tape, (5,), (3,))
    return [accumulate_cotangents(tape, [pad(a, 0, 8), pad(b, 5, 8)])]


@recipe("copy copy copy")
def pads_with_a_gap_are_copies_and_zeros(tape):
    a, b = inputs(tape, (5,), (3,))
    return [accumulate_cotangents(tape, [pad(b, 6, 9), pad(a, 0, 9)])]


@recipe("copy copy copy copy copy")
def pads_with_gaps_at_both_ends_are_copies_and_zeros(tape):
    a, b = inputs(tape, (5,), (3,))
    return [accumulate_cotangents(tape, [pad(a, 2, 14), pad(b, 8, 14)])]


@recipe("add copy copy copy copy")
def pads_that_overlap_are_added(tape):
    a, b = inputs(tape, (5,), (3,))
    return [accumulate_cotangents(tape, [pad(a, 0, 7), pad(b, 4, 7)])]


@recipe("add copy copy")
def pads_are_added_to_a_whole_vector(tape):
    a, b, c = inputs(tape, (5,), (3,), (8,))
    return [accumulate_cotangents(tape, [pad(a, 0, 8), c, pad(b, 5, 8)])]


@recipe("pad tanh")
def one_pad_is_a_pad(tape):
    (a,) = inputs(tape, (5,))
    return [tanh(pad(a, 2, 9))]


# --- outputs that nothing computes ----------------------------------------------------


@recipe("")
def outputs_may_be_inputs_constants_and_views(tape):
    a, b = inputs(tape, (20,), (3, 2))
    constant = tape.constant(-1.5, (4,))
    return [a, b, constant, tape.constant(2.0), a[3:17], a[3:17][2:9], b.reshape(6)]


@recipe("tanh")
def inputs_may_be_unused(tape):
    a, _, _ = inputs(tape, (3,), (4,), (5,))
    return [tanh(a)]


@recipe("exp tanh")
def one_value_may_be_several_outputs(tape):
    (a,) = inputs(tape, (6,))
    return [
        tanh(a),
        tanh(a),
        exp(tanh(a)),
        tanh(a).reshape(2, 3),
        rematerialise(tanh(a)),
    ]
