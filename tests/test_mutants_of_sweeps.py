"""Mistakes in the sweeps and in MAML's recursion must be caught, by the suite's own
tests, called here as functions."""

import sys

import pytest
import test_gradcheck
import test_maml
import test_maml_calls
import test_sweeps
from maml_problems import alpha_vector, problem
from mutants import put, survives

import tinymaml as tm
from tinymaml import maml, sweeps

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
    test_maml.test_maml_eq1_is_first_order_plus_the_hessian_terms(
        "numpy", "squared_error", 2, False
    )


def alpha_gradient():
    test_maml.test_alpha_gradient_matches_finite_differences("numpy", 2)


def step_weights():
    test_maml.test_maml_meta_objective_is_the_weighted_sum_over_steps("numpy")


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
        (sweeps, "grad", "g = fan_in(tape, cotangents.pop(index))"),
        "g = cotangents.pop(index)[0]",
        [fan_out, reverse_order],
    ),
    (  # the product rule loses a term, and with it the Hessian
        (sweeps, "jvp", "fan_in(tape, known)"),
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
        (maml, "record_inner_loop", "thetas[-1] - alpha"),
        "thetas[-1] + alpha",
        [inner_update_by_hand],
    ),
    (  # the built-in mutant of MAML
        (maml, "record_meta_gradient", "if order == 2:"),
        "if order == 1:",
        [routes(), parts],
    ),
    (
        (maml, "record_meta_gradient", "v = v - corrections[-1]"),
        "v = v + corrections[-1]",
        [routes(), parts],
    ),
    (
        (maml, "record_meta_gradient", "hvp(support_loss, theta_k, alpha * v)"),
        "hvp(support_loss, theta_k, v)",
        [routes(), parts],
    ),
    (  # right for one number, wrong for one per parameter
        (maml, "record_meta_gradient", "hvp(support_loss, theta_k, alpha * v)"),
        "alpha * hvp(support_loss, theta_k, v)",
        [routes_with_alpha_vector],
    ),
    (
        (maml, "record_meta_gradient", "in reversed(range(steps))"),
        "in range(steps)",
        [routes(), parts],
    ),
    (
        (maml, "record_meta_gradient", "support_loss = loss(theta_k, *support)"),
        "support_loss = loss(theta, *support)",
        [routes()],
    ),
    (
        (maml, "record_meta_gradient", "grad(support_loss, theta_k) * v"),
        "grad(support_loss, theta_k) * query_gradient",
        [alpha_gradient],
    ),
    (
        (maml, "record_meta_gradient", "v = v + gradient_k"),
        "v = v",
        [step_weights],
    ),
    (
        (maml, "record_meta_gradient", "weights[max(k, 1) - 1]"),
        "weights[-1]",
        [step_weights],
    ),
    (
        (maml, "record_meta_gradient", "again(thetas[k]) if recompute else thetas[k]"),
        "thetas[k]",
        [recomputation],
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
