"""Mistakes in the derivatives and in MAML's recursion must be caught.

The checks are the suite's own tests, called here as functions. The name of a mutant
says what would go wrong.
"""

import sys

import pytest

import tinymaml as tm
from tests import test_gradcheck, test_maml, test_multi_step_loss
from tests import test_learner as test_maml_calls
from tests.autodiff import test_derivatives
from tests.support.maml_problems import alpha_vector, problem
from tests.support.mutants import put, survives
from tinymaml import learner, maml, multi_step_loss
from tinymaml.autodiff import derivatives

GRADCHECK = sys.modules["tinymaml.gradcheck"]  # its name in the package is the function


def gradcheck_net():
    tm.gradcheck(test_gradcheck.net_loss, test_gradcheck.point(), test_gradcheck.X)


def routes(**options):
    def routes_meet():
        test_maml.check_routes_meet(problem(), 2, **options)

    return routes_meet


def routes_with_alpha_vector():
    p = problem()
    test_maml.check_routes_meet(p, 2, alpha=alpha_vector(p.theta))


def inner_update_by_hand():
    test_maml_calls.test_maml_inner_update_is_gradient_descent_written_by_hand(
        "numpy", 0.1
    )


def overlapping_slices():
    test_derivatives.test_autodiff_grad_of_overlapping_slices_adds()


def slice_among_zeros():
    test_derivatives.test_autodiff_grad_of_a_slice_is_zero_elsewhere()


def dense_hessian():
    test_derivatives.test_autodiff_hvp_is_the_dense_hessian_times_v("numpy", 0)


def fan_out():
    test_derivatives.test_autodiff_grad_sums_the_contributions_of_all_paths()


def reverse_order():
    test_derivatives.test_autodiff_grad_completes_a_cotangent_before_it_is_passed_on(
        "numpy"
    )


def parts():
    test_maml_calls.test_maml_eq1_is_first_order_plus_the_hessian_terms(
        "numpy", "squared_error", 2, False
    )


def alpha_gradient():
    test_maml_calls.test_alpha_gradient_matches_finite_differences("numpy", 2, "sum", 1)


def step_weights():
    test_multi_step_loss.test_multi_step_gradient_is_the_weighted_sum_over_steps(
        "numpy"
    )


def recomputation():
    test_maml_calls.test_recomputation_needs_one_theta_more_for_each_step()


MUTANTS = {  # name: (module, function, old text, new text, the checks that must notice)
    "only the last path counts": (
        derivatives,
        "cotangents",
        "contributions.setdefault(argument.index, []).append(part)",
        "contributions[argument.index] = [part]",
        [fan_out, gradcheck_net, dense_hessian],
    ),
    "only the first path counts": (
        derivatives,
        "cotangents",
        "g = accumulate_cotangents(tape, contributions.pop(index))",
        "g = contributions.pop(index)[0]",
        [fan_out, reverse_order],
    ),
    "the product rule loses a term, and the Hessian with it": (
        derivatives,
        "jvp",
        "accumulate_cotangents(tape, terms)",
        "terms[-1]",
        [gradcheck_net, dense_hessian, routes()],
    ),
    "tangents are twice as large": (
        derivatives,
        "jvp",
        "tangents: dict[int, Value] = {theta.index: v}",
        "tangents = {theta.index: v * 2.0}",
        [gradcheck_net, dense_hessian, routes()],
    ),
    "overlapping slices are forgotten": (
        derivatives,
        "accumulate_cotangents",
        "joined, pads = _join_pads(tape, pads, parts[0].size)",
        "joined, pads = _join_pads(tape, pads, parts[0].size)[0], []",
        [overlapping_slices],
    ),
    "the gradient is one where nothing reads theta": (
        derivatives,
        "_join_pads",
        "vectors.append(tape.constant(0.0, (start - end,)))",
        "vectors.append(tape.constant(1.0, (start - end,)))",
        [slice_among_zeros],
    ),
    "the inner loop climbs": (
        maml,
        "inner_loop",
        "theta_j - alpha",
        "theta_j + alpha",
        [inner_update_by_hand],
    ),
    "second order is first-order MAML": (
        maml,
        "meta_gradient",
        "if order == 2:",
        "if order == 1:",
        [routes(), parts],
    ),
    "the Hessian term has the wrong sign": (
        maml,
        "meta_gradient",
        "v = v - hvp(",
        "v = v + hvp(",
        [routes(), parts],
    ),
    "the Hessian term lacks the inner learning rate": (
        maml,
        "meta_gradient",
        "theta_j, alpha * v)",
        "theta_j, v)",
        [routes(), parts],
    ),
    # This is right for one number and wrong for one per parameter.
    "the inner learning rate multiplies H v instead of v": (
        maml,
        "meta_gradient",
        "hvp(loss(theta_j, *support), theta_j, alpha * v)",
        "alpha * hvp(loss(theta_j, *support), theta_j, v)",
        [routes_with_alpha_vector],
    ),
    "the recursion starts at the first inner step": (
        maml,
        "meta_gradient",
        "in reversed(thetas[:-1])",
        "in thetas[:-1]",
        [routes()],
    ),
    "all Hessians are those of the initial theta": (
        maml,
        "meta_gradient",
        "hvp(loss(theta_j, *support), theta_j",
        "hvp(loss(thetas[0], *support), thetas[0]",
        [routes()],
    ),
    "activations are kept although recomputation is asked for": (
        maml,
        "meta_gradient",
        "theta_j = rematerialise(theta_j)",
        "theta_j = theta_j",
        [recomputation],
    ),
    "the gradient of alpha takes the last cotangent for all steps": (
        learner,
        "alpha_gradient",
        "theta_j) * v\n",
        "theta_j) * cotangents[-1]\n",
        [alpha_gradient],
    ),
    "the query losses before the last step are left out": (
        multi_step_loss,
        "multi_step_meta_gradient",
        "v = v + grad(loss_j, thetas[j])",
        "v = v",
        [step_weights],
    ),
    "the weight of the last step weighs all steps": (
        multi_step_loss,
        "multi_step_meta_gradient",
        "* weights[j - 1]\n",
        "* weights[-1]\n",
        [step_weights],
    ),
}
CASES = [
    pytest.param(*mutant, check, id=f"{name}-{check.__name__}")
    for name, (*mutant, checks) in MUTANTS.items()
    for check in checks
]


@pytest.mark.parametrize(("module", "function", "old", "new", "check"), CASES)
def test_mutant_is_caught(monkeypatch, module, function, old, new, check):
    assert survives(check)
    put(monkeypatch, module, function, old, new)
    assert not survives(check)


@pytest.mark.parametrize("name", ["hvp", "grad"])
@pytest.mark.parametrize("factor", [0.0, -1.0, 1.001])
def test_gradcheck_rejects_wrong_derivatives(monkeypatch, name, factor):
    function = getattr(GRADCHECK, name)
    monkeypatch.setattr(GRADCHECK, name, lambda *a: function(*a) * factor)
    with pytest.raises(tm.GradientError, match="differs from its finite difference"):
        gradcheck_net()


def test_gradcheck_of_order_1_does_not_see_the_hessian(monkeypatch):
    monkeypatch.setattr(GRADCHECK, "hvp", lambda loss, theta, v: v)
    tm.gradcheck(
        test_gradcheck.net_loss, test_gradcheck.point(), test_gradcheck.X, order=1
    )
    with pytest.raises(tm.GradientError, match="the Hessian-vector product differs"):
        gradcheck_net()
