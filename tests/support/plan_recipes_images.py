"""Small tapes of images for each thing the planner does, as in plan_recipes.py."""

from tests.support.plan_registry import inputs, recipe
from tinymaml.autodiff.convolution import conv2d, max_pool
from tinymaml.autodiff.derivatives import grad
from tinymaml.autodiff.functions import relu, rematerialise, tanh
from tinymaml.networks.images import BatchNorm


@recipe("conv conv_input conv_weight tanh tanh tanh transpose")
def convolutions_of_every_kind_accumulate(tape):
    x, w, g = inputs(tape, (2, 4, 5, 2), (3, 2, 2, 3), (2, 2, 3, 3))
    how = {"stride": 2, "padding": (0, 0)}
    return [
        tanh(g) + conv2d(x, w, stride=2),
        tanh(x) + tape.record("conv_input", g, w, size=(4, 5), **how),
        tanh(w) + tape.record("conv_weight", x, g, size=(3, 2), **how),
    ]


@recipe("conv tanh")
def convolution_of_a_large_kernel_accumulates(tape):
    x, w, g = inputs(tape, (1, 3, 3, 32), (3, 3, 32, 33), (1, 3, 3, 33))
    return [tanh(g) + conv2d(x, w)]


@recipe(
    "add add add_relu conv conv conv_input conv_weight gate mul mul mul mul mul "
    "mul_add mul_sum mul_sum rsqrt scale scale scale scale scale scale scale scale "
    "sub sub sum sum sum transpose"
)
def gradient_of_a_convolution_with_batch_normalisation(tape):
    x, w, beta, last = inputs(tape, (2, 4, 5, 2), (3, 2, 2, 3), (3,), (2, 2, 3, 2))
    h = BatchNorm(3)([beta], conv2d(x, w, stride=2))
    out = conv2d(relu(h), last)
    return [grad((out * out).sum(), w)]


@recipe(
    "conv conv conv_input conv_weight largest max_gather max_scatter scale transpose"
)
def gradient_of_a_convolution_with_max_pooling(tape):
    x, w, last = inputs(tape, (2, 5, 4, 2), (2, 3, 2, 3), (1, 1, 3, 2))
    out = conv2d(max_pool(conv2d(x, w)), last)
    return [grad((out * out).sum(), w)]


@recipe("largest largest max_gather max_gather max_gather")
def largest_elements_are_found_once_for_each_size_and_value(tape):
    x, z = inputs(tape, (1, 4, 5, 2), (1, 4, 5, 2))
    gathered = tape.record("max_gather", z, x, size=2)
    return [max_pool(x), gathered, max_pool(x, 3)]


@recipe("largest largest max_gather max_gather")
def largest_elements_of_two_values_of_one_shape_differ(tape):
    x, z = inputs(tape, (1, 4, 5, 2), (1, 4, 5, 2))
    return [max_pool(x), max_pool(z)]


@recipe("largest largest max_gather max_gather")
def largest_elements_are_found_anew_after_a_rematerialisation(tape):
    (x,) = inputs(tape, (1, 4, 4, 2))
    return [max_pool(x), max_pool(rematerialise(x))]
