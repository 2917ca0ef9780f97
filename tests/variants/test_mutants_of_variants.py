"""Mistakes in the relatives of MAML must be caught.

The checks are the suite's own tests, called here as functions. The name of a mutant
says what would go wrong.
"""

import pytest

from tests.support.mutants import put, survives
from tests.variants import (
    test_anil,
    test_inner_optimisers,
    test_maml_plus_plus,
    test_meta_sgd,
    test_step_rates,
    test_unrolled,
)
from tinymaml import learner, variants
from tinymaml.variants.anil import PartlyAdapted


def anil_is_maml():
    test_anil.test_anil_has_the_numbers_of_maml_with_this_alpha("numpy", "head", 2, 3)


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


MUTANTS = {  # name: (class or module, function, old text, new text, the check)
    "adapted parts climb": (
        *(variants.ANIL, "record_inner_loop"),
        *("values - rates[part]", "values + rates[part]", anil_is_maml),
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
}


@pytest.mark.parametrize("name", MUTANTS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_mutant_is_noticed(name, monkeypatch):
    owner, function, old, new, check = MUTANTS[name]
    assert survives(check)
    put(monkeypatch, owner, function, old, new)
    assert not survives(check)
