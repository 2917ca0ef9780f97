"""Mistakes in the relatives of MAML must be caught.

The checks are the suite's own tests, called here as functions. The name of a mutant
says what would go wrong.
"""

import pytest

from tests.support.mutants import put, survives
from tests.variants import (
    test_anil,
    test_cavia,
    test_fine_tuning,
    test_implicit_maml,
    test_inner_optimisers,
    test_maml_plus_plus,
    test_meta_sgd,
    test_proto_maml,
    test_reptile,
    test_step_rates,
    test_unrolled,
)
from tinymaml import learner, variants
from tinymaml.variants import implicit_maml
from tinymaml.variants.anil import PartlyAdapted


def anil_is_maml():
    test_anil.test_anil_has_the_numbers_of_maml_with_this_alpha("numpy", "head", 2, 3)


def pieces():
    test_anil.test_anil_has_the_numbers_of_maml_with_this_alpha(
        "numpy", "two pieces", 2, 3
    )


def any_slice():
    test_anil.test_a_loss_of_all_of_theta_at_once_has_its_gradient()


def work():
    test_anil.test_anil_computes_the_body_once_for_all_steps()


def meta_sgd():
    test_meta_sgd.test_meta_sgd_matches_finite_differences_in_theta_and_alpha(None)


def rates():
    test_step_rates.test_step_rates_adapt_every_layer_by_its_own_rate_in_each_step(
        "numpy"
    )


def rates_are_learned():
    test_step_rates.test_step_rates_match_finite_differences_in_theta_and_rates(None)


def first_order():
    test_unrolled.test_unrolled_has_the_numbers_of_the_recursion("numpy", 1, None)


def early_losses():
    test_unrolled.test_unrolled_meta_gradient_matches_finite_differences((0.5, -1, 1.5))


def annealed():
    test_maml_plus_plus.test_annealed_loss_of_an_iteration_is_that_of_fixed_weights(
        "numpy", 4
    )


def iterations():
    test_maml_plus_plus.test_a_training_takes_the_gradients_of_its_iterations()


def momentum():
    test_inner_optimisers.test_momentum_on_a_quadratic_has_the_closed_form()


def adam():
    test_inner_optimisers.test_inner_adam_takes_the_steps_of_adam("numpy")


def shut_relu():
    test_inner_optimisers.test_a_parameter_whose_gradient_is_always_zero_does_no_harm(
        "numpy", "adam", "float64"
    )


def reptile():
    test_reptile.test_reptile_is_the_way_from_theta_to_the_end_of_the_inner_loop(
        "numpy", "squared_error", 4
    )


def reported():
    test_reptile.test_a_query_loss_is_reported_and_not_trained_on()


def batches():
    test_reptile.test_batches_follow_each_other_and_begin_again(
        "numpy", 3, (0, 3, 0, 3, 0), 0.1
    )


def quadratic():
    test_implicit_maml.test_imaml_converges_to_the_closed_form_on_quadratics("numpy")


def dense():
    test_implicit_maml.test_the_linear_system_is_solved_as_dense_algebra_does(
        "numpy", "squared_error", 3, "some"
    )


def negative():
    test_implicit_maml.test_a_negative_alpha_adapts_as_well()


def damped():
    test_implicit_maml.test_damping_enters_the_linear_system_alone("numpy", 0.2)


def krylov():
    test_implicit_maml.test_few_iterations_are_the_best_of_their_krylov_space(3)


def context():
    test_cavia.test_cavia_is_maml_for_the_weights_and_0_for_the_context("numpy", 2, 3)


def prototypes():
    test_proto_maml.test_proto_maml_without_steps_compares_distances_to_prototypes(
        "numpy"
    )


def through_prototypes():
    test_proto_maml.test_proto_maml_start_is_differentiated_as_finite_differences_say(
        "numpy", 1
    )


def turned_classes():
    test_fine_tuning.test_every_image_has_the_label_of_its_class_in_every_episode(True)


MUTANTS = {  # name: (class or module, function, old text, new text, the check)
    "adapted parts climb": (
        *(variants.ANIL, "record_inner_loop"),
        *("values - rates[part]", "values + rates[part]", anil_is_maml),
    ),
    "all adapted parts have the rate of the first": (
        *(variants.ANIL, "record_inner_loop"),
        *("rates[part] *", "rates[parts[0]][0] *", pieces),
    ),
    "a slice that is partly new is taken for an old one": (
        *(PartlyAdapted, "_part"),
        *("if all(stop <= first or", "if any(True or", any_slice),
    ),
    "a slice of a new part forgets its step": (
        *(PartlyAdapted, "_part"),
        *("stop - first : step]", "stop - first]", any_slice),
    ),
    "all layers depend on what was adapted": (
        *(PartlyAdapted, "_part"),
        *("if all(stop", "if False and all(stop", work),
    ),
    "the gradient of alpha has the wrong sign": (
        *(variants.MetaSGD, "record_meta_gradient"),
        *(", for_alpha]", ", -for_alpha]", meta_sgd),
    ),
    "the gradient of alpha takes the last cotangent for all steps": (
        *(learner, "alpha_gradient"),
        *("theta_j) * v\n", "theta_j) * cotangents[-1]\n", meta_sgd),
    ),
    "alpha is not what was learned": (
        *(variants.MetaSGD, "record_start"),
        *("theta[count:]", "alpha", meta_sgd),
    ),
    "all steps have the rates of the first": (
        *(variants.StepRates, "record_inner_step"),
        *("min(j, self.steps - 1)", "0", rates),
    ),
    "only theta_0 is learned": (
        *(variants.Unrolled, "record_meta_gradient"),
        *('tape.inputs["theta"].node', "thetas[0].index", rates_are_learned),
    ),
    "first order is exact": (
        *(variants.Unrolled, "support_gradient"),
        *("if self.order == 2 else", "if True else", first_order),
    ),
    "weights belong to the step before": (
        *(variants.Unrolled, "record_objective"),
        *("thetas[1:-1]", "thetas[:-2]", early_losses),
    ),
    "annealed weights weigh the theta before the step": (
        *(variants.MAMLPlusPlus, "record_objective"),
        *("thetas[first + 1 :]", "thetas[first:-1]", annealed),
    ),
    "the order is not annealed": (
        *(variants.MAMLPlusPlus, "at"),
        *("self.order_at(iteration)", "2", iterations),
    ),
    "momentum starts anew in each step": (
        *(variants.InnerMomentum, "record_inner_step"),
        *("(m, m)", "moments", momentum),
    ),
    "the bias of the second moment is corrected by one step too many": (
        *(variants.InnerAdam, "record_inner_step"),
        *("b2 ** (j + 1)", "b2 ** (j + 2)", adam),
    ),
    "Adam's root has an infinite slope": (
        *(variants.InnerAdam, "record_inner_step"),
        *(" + self.epsilon**2)", ")", shut_relu),
    ),
    "Reptile takes the last gradient alone": (
        *(variants.Reptile, "record_meta_gradient"),
        *("alpha * g, v + g", "alpha * g, g", reptile),
    ),
    "Reptile reports another loss": (
        *(variants.Reptile, "record_meta_gradient"),
        *("task.query_loss(theta_j", "self.loss(theta_j", reported),
    ),
    "Reptile's batches run over the end": (
        *(variants.Reptile, "record_meta_gradient"),
        *("j % (x.shape[0] // size) * size", "j * size % x.shape[0]", batches),
    ),
    "the proximal term has no half": (
        *(variants.ImplicitMAML, "record_inner_loop"),
        *("self.penalty / 2 *", "self.penalty *", quadratic),
    ),
    "the Hessian is that of the first point": (
        *(variants.ImplicitMAML, "record_meta_gradient"),
        "phi, alpha = thetas[-1], task.alpha\n"
        "    objective = task.query_loss(phi, *task.query)\n"
        "    v = grad(objective, phi)\n",
        "phi, alpha = thetas[0], task.alpha\n"
        "    objective = task.query_loss(thetas[-1], *task.query)\n"
        "    v = grad(objective, thetas[-1])\n",
        dense,
    ),
    "what is not adapted has no second-order term": (
        *(variants.ImplicitMAML, "record_meta_gradient"),
        *("v - curvature(v_0) if", "v if", dense),
    ),
    "a negative alpha does not adapt": (
        *(variants.ImplicitMAML, "record_meta_gradient"),
        *("where(alpha * alpha,", "where(alpha,", negative),
    ),
    "damping is not used": (
        *(variants.ImplicitMAML, "record_meta_gradient"),
        *("(self.penalty + self.damping)", "self.penalty", damped),
    ),
    "conjugate gradients forget the last direction": (
        *(implicit_maml, "conjugate_gradients"),
        *("residual + square / (last + TINY) * p", "residual", krylov),
    ),
    "CAVIA learns its context": (
        *(variants.CAVIA, "record_start"),
        *("where(alpha * alpha, 0.0, theta)", "theta", context),
    ),
    "prototypes are sums over all examples": (
        *(variants.ProtoMAML, "record_inner_loop"),
        *(" / y.sum(0).reshape(-1, 1)", " / len(self.network.layers)", prototypes),
    ),
    "the biases have the wrong sign": (
        *(variants.ProtoMAML, "record_inner_loop"),
        *("-(c * c)", "(c * c)", prototypes),
    ),
    "prototypes are constants": (
        *(variants.ProtoMAML, "record_inner_loop"),
        *("w, b = 2 *", "c = c.tape.record('stop_gradient', c); w, b = 2 *"),
        through_prototypes,
    ),
    "a rotated class has the label of another": (
        *(variants.AllClasses, "__call__"),
        *("* self._turns + turns", "* self._turns", turned_classes),
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_mutant_is_noticed(name, monkeypatch):
    owner, function, old, new, check = MUTANTS[name]
    assert survives(check)
    put(monkeypatch, owner, function, old, new)
    assert not survives(check)
