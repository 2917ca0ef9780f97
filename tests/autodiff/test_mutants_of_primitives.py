"""Broken derivatives must be caught: a suite that accepts them proves nothing.

Each test breaks the vjp or the jvp of one primitive and shows that the checks of the
suite, and `gradcheck`, reject it. The unbroken rules pass the same checks.
"""

import numpy as np
import pytest

import tinymaml as tm
from tests.support.primitive_cases import CASES, arguments_of
from tests.support.primitive_checks import check_derivatives, check_values, total
from tinymaml.autodiff.tape import PRIMITIVES

DAMAGE = {
    "wrong_by_a_percent": lambda value: value * 1.01,
    "wrong_sign": lambda value: -value,
    "dropped": lambda value: None,
}
ARITY = {name: max(len(c[0]) for c in case.odd) for name, case in CASES.items()}
# (primitive, argument) where the derivative is zero, and where it is not.
ZERO = {("gate", 1), ("max_gather", 1), ("max_scatter", 1), ("stop_gradient", 0)}
RULES = [(name, i) for name, n in ARITY.items() for i in range(n)]
RULES = [rule for rule in RULES if rule not in ZERO]
every_rule = pytest.mark.parametrize(("primitive", "argument"), RULES)
every_kind = pytest.mark.parametrize("kind", ["vjp", "jvp"])
every_damage = pytest.mark.parametrize("damage", DAMAGE)


def break_rule(monkeypatch, primitive, argument, kind, damage):
    """Damage what a rule returns for one of its arguments."""
    right = getattr(PRIMITIVES[primitive], kind)

    def broken(i, *values, **attributes):
        value = right(i, *values, **attributes)
        return DAMAGE[damage](value) if i == argument and value is not None else value

    monkeypatch.setattr(PRIMITIVES[primitive], kind, staticmethod(broken))


def check_all_calls(primitive):
    for seed, call in enumerate(CASES[primitive].odd):
        check_derivatives(primitive, *call, seed, "numpy")


def gradcheck_all_calls(primitive):
    """gradcheck of sum(w out^2) + sum(w out) sum(w theta).

    The second term is there because a wrong sign in the jvp of a primitive that is its
    own transpose (scale, gate) occurs twice in the Hessian of the first, and vanishes.
    """
    for seed, (shapes, attributes) in enumerate(CASES[primitive].odd):
        arrays = arguments_of(primitive, shapes, seed)
        w = np.random.default_rng(seed).uniform(0.5, 1.5, 5000)

        def loss(theta, w, shapes=shapes, attributes=attributes):
            arguments, start = [], 0
            for shape in shapes:
                stop = start + int(np.prod(shape))
                arguments.append(theta[start:stop].reshape(*shape))
                start = stop
            out = theta.tape.record(primitive, *arguments, **attributes)
            weights = w[0 : out.size].reshape(*out.shape)
            once, twice = (
                total(primitive, weights * out),
                total(primitive, weights * out * out),
            )
            return twice + once * total(primitive, w[0 : theta.size] * theta)

        tm.gradcheck(loss, np.concatenate([a.ravel() for a in arrays]), w)


DIFFERENTIATED = [n for n in CASES if ARITY[n] and n != "stop_gradient"]


@pytest.mark.parametrize("primitive", DIFFERENTIATED)
def test_gradcheck_accepts_every_primitive(primitive):
    gradcheck_all_calls(primitive)


@every_rule
@every_kind
@every_damage
def test_broken_rule_is_rejected(monkeypatch, primitive, argument, kind, damage):
    break_rule(monkeypatch, primitive, argument, kind, damage)
    with pytest.raises(AssertionError):
        check_all_calls(primitive)


@every_rule
@every_kind
@every_damage
def test_broken_rule_is_rejected_by_gradcheck(
    monkeypatch, primitive, argument, kind, damage
):
    break_rule(monkeypatch, primitive, argument, kind, damage)
    with pytest.raises(tm.GradientError):
        gradcheck_all_calls(primitive)


def test_a_gradient_that_is_stopped_on_a_path_that_matters_is_rejected():
    with pytest.raises(tm.GradientError):
        gradcheck_all_calls("stop_gradient")


def test_invented_derivative_of_a_stopped_gradient_is_rejected(monkeypatch):
    def vjp(i, g, out, a):
        return g

    monkeypatch.setattr(PRIMITIVES["stop_gradient"], "vjp", staticmethod(vjp))
    with pytest.raises(AssertionError):
        check_all_calls("stop_gradient")


def test_invented_derivative_of_a_gate_is_rejected(monkeypatch):
    def vjp(i, g, out, a, x):
        return g.tape.record("gate", g, x)  # for x as well, whose derivative is zero

    monkeypatch.setattr(PRIMITIVES["gate"], "vjp", staticmethod(vjp))
    with pytest.raises(AssertionError):
        check_all_calls("gate")


@pytest.mark.parametrize("primitive", [name for name in CASES if name != "input"])
def test_wrong_value_is_rejected(monkeypatch, primitive):
    def wrong(*arrays, right=PRIMITIVES[primitive].evaluate, **attributes):
        return right(*arrays, **attributes) * 1.001

    monkeypatch.setattr(PRIMITIVES[primitive], "evaluate", staticmethod(wrong))
    with pytest.raises(AssertionError):
        for seed, call in enumerate(CASES[primitive].odd):
            check_values(primitive, *call, seed, "numpy")
