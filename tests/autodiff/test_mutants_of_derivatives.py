"""Mistakes in the sweeps and in MAML's recursion must be caught, by the suite's own
tests, called here as functions."""

import sys

import pytest

import tinymaml as tm
from tests import test_gradcheck, test_maml
from tests import test_learner as test_maml_calls
from tests.autodiff import test_derivatives as test_sweeps
from tests.support.maml_problems import alpha_vector, problem
from tests.support.mutants import put, survives
from tests.variants import test_multi_step_loss
from tinymaml import learner, maml
from tinymaml.autodiff import derivatives as sweeps
from tinymaml.variants import multi_step_loss

GRADCHECK = sys.modules["tinymaml.gradcheck"]  # its name in the package is the function


def gradcheck_net():
    tm.gradcheck(test_gradcheck.net_loss, test_gradcheck.point(), test_gradcheck.X)


def routes(**options):
    return lambda: test_maml.check_routes_meet(problem(), 2, **options)


def routes_with_alpha_vector():
    p = problem()
    test_maml.check_routes_meet(p, 2, alpha=alpha_vector(p.theta))


def inner_update_by_hand():
    test_maml_calls.test_maml_inner_update_is_gradient_descent_written_by_hand(
        "numpy", 0.1
    )


def overlapping_slices():
    test_sweeps.test_sweeps_grad_of_overlapping_slices_adds()


def slice_among_zeros():
    test_sweeps.test_sweeps_grad_of_a_slice_is_zero_elsewhere()


def dense_hessian():
    test_sweeps.test_sweeps_hvp_is_the_dense_hessian_times_v("numpy", 0)


def fan_out():
    test_sweeps.test_sweeps_grad_adds_what_comes_back_along_every_path()


def reverse_order():
    test_sweeps.test_sweeps_grad_completes_a_cotangent_before_it_is_handed_on("numpy")


def parts():
    test_maml_calls.test_maml_eq1_is_first_order_plus_the_hessian_terms(
        "numpy", "squared_error", 2, False
    )


def alpha_gradient():
    test_maml_calls.test_alpha_gradient_matches_finite_differences("numpy", 2)


def step_weights():
    test_multi_step_loss.test_multi_step_gradient_is_the_weighted_sum_over_steps("numpy")


def recomputation():
    test_maml_calls.test_recomputation_needs_one_theta_more_for_each_step()


# (module, function, old text, new text, the checks that must notice)
MUTANTS = [
    (  # missing fan-out sum
        (sweeps, "grad", "cotangents.setdefault(argument.index, []).append(part)"),
        "cotangents[argument.index] = [part]",
        [fan_out, gradcheck_net, dense_hessian],
    ),
    (
        (sweeps, "grad", "g = accumulate_cotangents(tape, cotangents.pop(index))"),
        "g = cotangents.pop(index)[0]",
        [fan_out, reverse_order],
    ),
    (  # the product rule loses a term, and with it the Hessian
        (sweeps, "jvp", "accumulate_cotangents(tape, known)"),
        "known[-1]",
        [gradcheck_net, dense_hessian, routes()],
    ),
    (
        (sweeps, "jvp", "tangents: dict[int, Value] = {theta.index: v}"),
        "tangents = {theta.index: v * 2.0}",
        [gradcheck_net, dense_hessian, routes()],
    ),
    (
        (
            sweeps,
            "_tile",
            "joined + _tile(tape, overlapping, size) if overlapping else",
        ),
        "",
        [overlapping_slices],
    ),
    (
        (sweeps, "_tile", "pieces.append(tape.constant(0.0, (start - end,)))"),
        "pieces.append(tape.constant(1.0, (start - end,)))",
        [slice_among_zeros],
    ),
    (
        (maml, "inner_loop", "theta_j - alpha"),
        "theta_j + alpha",
        [inner_update_by_hand],
    ),
    (  # the built-in mutant of MAML
        (maml, "meta_gradient", "if order == 2:"),
        "if order == 1:",
        [routes(), parts],
    ),
    (
        (maml, "meta_gradient", "v = v - hvp("),
        "v = v + hvp(",
        [routes(), parts],
    ),
    (
        (maml, "meta_gradient", "theta_j, alpha * v)"),
        "theta_j, v)",
        [routes(), parts],
    ),
    (  # right for one number, wrong for one per parameter
        (maml, "meta_gradient", "hvp(loss(theta_j, *support), theta_j, alpha * v)"),
        "alpha * hvp(loss(theta_j, *support), theta_j, v)",
        [routes_with_alpha_vector],
    ),
    (
        (maml, "meta_gradient", "in reversed(thetas[:-1])"),
        "in thetas[:-1]",
        [routes()],
    ),
    (
        (maml, "meta_gradient", "hvp(loss(theta_j, *support), theta_j"),
        "hvp(loss(thetas[0], *support), thetas[0]",
        [routes()],
    ),
    (
        (maml, "meta_gradient", "theta_j = rematerialise(theta_j)"),
        "theta_j = theta_j",
        [recomputation],
    ),
    (
        (learner.MAML, "_record_meta_gradient", "grad(support_loss, thetas[j]) * v"),
        "grad(support_loss, thetas[j]) * cotangents[-1]",
        [alpha_gradient],
    ),
    (
        (
            multi_step_loss,
            "multi_step_meta_gradient",
            "v = v + grad(loss_j, thetas[j])",
        ),
        "v = v",
        [step_weights],
    ),
    (
        (multi_step_loss, "multi_step_meta_gradient", "* weights[j - 1]\n"),
        "* weights[-1]\n",
        [step_weights],
    ),
]
CASES = [(*where, new, check) for where, new, checks in MUTANTS for check in checks]


@pytest.mark.parametrize(("module", "name", "old", "new", "check"), CASES)
def test_mutant_is_caught(monkeypatch, module, name, old, new, check):
    assert survives(check)
    put(monkeypatch, module, name, old, new)
    assert not survives(check)


@pytest.mark.parametrize("right", ["hvp", "grad"])
@pytest.mark.parametrize("factor", [0.0, -1.0, 1.001])
def test_gradcheck_rejects_what_it_is_given(monkeypatch, right, factor):
    function = getattr(GRADCHECK, right)
    monkeypatch.setattr(GRADCHECK, right, lambda *a: function(*a) * factor)
    with pytest.raises(tm.GradientError, match="differs from its finite difference"):
        gradcheck_net()


def test_gradcheck_of_order_1_does_not_see_the_hessian(monkeypatch):
    monkeypatch.setattr(GRADCHECK, "hvp", lambda loss, theta, v: v)
    tm.gradcheck(
        test_gradcheck.net_loss, test_gradcheck.point(), test_gradcheck.X, order=1
    )
    with pytest.raises(tm.GradientError, match="the Hessian-vector product differs"):
        gradcheck_net()
