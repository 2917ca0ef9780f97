"""SGD and Adam against hand-computed steps and a plain re-derivation."""

import copy
import json
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinymaml.training.optim import SGD, Adam, constant, cosine, step

DTYPES = [np.float32, np.float64]
SMALLEST = float(np.finfo(np.float32).tiny)

# Gradients away from 0, where both orders of the epsilon are the same rule.
entries = st.floats(0.01, 100) | st.floats(-100, -0.01)
gradient_lists = st.integers(1, 4).flatmap(
    lambda size: st.lists(
        st.lists(entries, min_size=size, max_size=size), min_size=1, max_size=12
    )
)


def run(optimiser, gradients, dtype=np.float64):
    """Take one step per row of gradients, from 0; return theta."""
    theta = np.zeros(len(gradients[0]), dtype)
    for gradient in gradients:
        optimiser.update(theta, np.array(gradient, dtype))
    return theta


def adam_algorithm_1(gradients, learning_rate, beta1, beta2):
    """Kingma and Ba's algorithm 1 with epsilon = 0, one Python number at a time."""
    thetas = []
    for column in zip(*gradients, strict=True):
        theta = m = v = 0.0
        for t, g in enumerate(column, start=1):
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * g**2
            m_hat = m / (1 - beta1**t)
            v_hat = v / (1 - beta2**t)
            theta = theta - learning_rate * m_hat / math.sqrt(v_hat)
        thetas.append(theta)
    return thetas


def test_sgd_step_is_the_hand_computed_one():
    theta = np.array([1.0, 2.0])
    SGD(learning_rate=0.25).update(theta, np.array([4.0, -8.0]))
    assert theta.tolist() == [0.0, 4.0]


def test_adam_first_two_steps_are_the_hand_computed_ones():
    # beta1 = beta2 = 0 leaves theta - learning_rate * g / (|g| + epsilon).
    theta = np.array([1.0])
    Adam(0.5, beta1=0.0, beta2=0.0, epsilon=1.0).update(theta, np.array([3.0]))
    assert theta.tolist() == [1.0 - 0.5 * 3 / 4]

    # Step 1: m = 2, v = 4, correction sqrt(1/4) / (1/2) = 1: minus 0.1.
    # Step 2: m = 1 - 1/2, v = 3 + 1/4, correction sqrt(7/16) / (3/4).
    theta = np.array([0.0])
    optimiser = Adam(0.1, beta1=0.5, beta2=0.75, epsilon=1e-30)
    optimiser.update(theta, np.array([4.0]))
    assert theta[0] == pytest.approx(-0.1, rel=1e-14)
    optimiser.update(theta, np.array([-1.0]))
    step = 0.1 * math.sqrt(7 / 16) / (3 / 4) * 0.5 / math.sqrt(3.25)
    assert theta[0] == pytest.approx(-0.1 - step, rel=1e-14)


def test_adam_puts_epsilon_outside_the_bias_correction():
    # Section 2 of the source: sqrt(1 - beta2) / (1 - beta1) * m / (sqrt(v) + epsilon)
    # = sqrt(0.01) / 0.5 * 1 / (0.2 + 0.3) = 0.4. Algorithm 1: 2 / (2 + 0.3) = 0.87.
    theta = np.array([0.0])
    optimiser = Adam(learning_rate=1.0, beta1=0.5, beta2=0.99, epsilon=0.3)
    optimiser.update(theta, np.array([2.0]))
    assert theta[0] == pytest.approx(-0.4, rel=1e-12)


@given(
    gradients=gradient_lists,
    learning_rate=st.floats(1e-4, 1),
    beta1=st.floats(0, 0.99),
    beta2=st.floats(0, 0.9999),
)
def test_adam_matches_algorithm_1_of_its_source(gradients, learning_rate, beta1, beta2):
    theta = run(Adam(learning_rate, beta1, beta2, epsilon=SMALLEST), gradients)
    expected = adam_algorithm_1(gradients, learning_rate, beta1, beta2)
    scale = learning_rate * len(gradients)
    np.testing.assert_allclose(theta, expected, rtol=1e-9, atol=1e-10 * scale)


@given(gradients=gradient_lists)
def test_float32_steps_stay_float32_and_near_the_float64_ones(gradients):
    gradients = np.float32(gradients).tolist()
    for make in (SGD, Adam):
        optimiser = make(learning_rate=0.1)
        single = run(optimiser, gradients, np.float32)
        double = run(make(learning_rate=0.1), gradients, np.float64)
        assert single.dtype == np.float32
        moments = [array for key, array in optimiser.state().items() if key != "step"]
        assert all(moment.dtype == np.float32 for moment in moments)
        scale = 0.1 * np.abs(gradients).sum() + 0.1 * len(gradients)
        np.testing.assert_allclose(single, double, atol=1e-5 * scale)


def test_adam_leaves_a_parameter_without_gradient_in_place():
    theta = np.array([1.0, 1.0], np.float32)
    optimiser = Adam(epsilon=SMALLEST)
    for _ in range(3):
        optimiser.update(theta, np.array([0.0, 1.0], np.float32))
    assert theta[0] == 1.0
    assert theta[1] < 1.0


@pytest.mark.parametrize("make", [SGD, Adam])
def test_update_works_in_place_and_leaves_the_gradient_alone(make):
    theta = np.ones(3)
    gradient = np.array([1.0, -2.0, 3.0])
    assert make().update(theta, gradient) is None
    assert gradient.tolist() == [1.0, -2.0, 3.0]
    assert (theta != 1.0).all()


@pytest.mark.parametrize("make", [SGD, Adam])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("steps_before", [0, 1, 5])
def test_a_loaded_state_continues_bit_for_bit(make, dtype, steps_before):
    gradients = np.random.default_rng(0).normal(size=(9, 4))
    straight = run(make(), gradients, dtype)
    first, second = make(), make()
    theta = np.zeros(4, dtype)
    for gradient in gradients[:steps_before].astype(dtype):
        first.update(theta, gradient)
    second.load_state(first.state())
    for gradient in gradients[steps_before:].astype(dtype):
        second.update(theta, gradient)
    assert theta.tobytes() == straight.tobytes()
    assert second.state()["step"] == 9


def test_state_is_a_copy_in_both_directions():
    optimiser = Adam()
    theta = np.zeros(2)
    optimiser.update(theta, np.ones(2))
    state = optimiser.state()
    before = {key: value.copy() for key, value in state.items()}
    other = Adam()
    other.load_state(state)
    for array in state.values():
        array[...] = 99
    for one in (optimiser, other):
        for key, value in one.state().items():
            np.testing.assert_array_equal(value, before[key])


def test_state_counts_steps_in_an_int64_scalar():
    optimiser = SGD()
    run(optimiser, [[1.0]] * 3)
    step = optimiser.state()["step"]
    assert step.shape == () and step.dtype == np.int64 and step == 3


def test_config_is_json_and_rebuilds_the_optimiser():
    adam = Adam(0.002, beta1=0.8, beta2=np.float64(0.99), epsilon=1e-7)
    config = json.loads(json.dumps(adam.config()))
    assert config == {
        "name": "Adam",
        "learning_rate": 0.002,
        "beta1": 0.8,
        "beta2": 0.99,
        "epsilon": 1e-7,
    }
    assert repr(adam) == (
        "Adam(learning_rate=0.002, beta1=0.8, beta2=0.99, epsilon=1e-07)"
    )
    assert SGD(1).config() == {"name": "SGD", "learning_rate": 1.0}


@pytest.mark.parametrize(
    ("argument", "value"),
    [(name, bad) for name in ("learning_rate", "epsilon") for bad in (0, -1, math.inf)]
    + [(name, bad) for name in ("beta1", "beta2") for bad in (-0.1, 1, 1.5, math.inf)]
    + [(name, math.nan) for name in ("learning_rate", "beta1", "beta2", "epsilon")]
    + [(name, "0.1") for name in ("learning_rate", "beta1", "beta2", "epsilon")]
    + [(name, True) for name in ("learning_rate", "beta1", "beta2", "epsilon")]
    + [("epsilon", 1e-50)],
)
def test_constructor_refuses_a_bad_argument_by_name(argument, value):
    with pytest.raises(ValueError, match=f"^{argument}: expected .*, got {value!r}"):
        Adam(**{argument: value})
    if argument == "learning_rate":
        with pytest.raises(ValueError, match="^learning_rate: expected"):
            SGD(value)


@pytest.mark.parametrize("make", [SGD, Adam])
@pytest.mark.parametrize(
    ("theta", "gradient", "message"),
    [
        (np.zeros(2), np.zeros(3), r"^gradient: expected .*\(2,\).*\(3,\)"),
        (np.zeros(2), np.zeros(2, np.float32), "^gradient: expected float64.*float32"),
        (np.zeros((2, 1)), np.zeros((2, 1)), r"^theta: expected a flat.*\(2, 1\)"),
        (np.zeros(2, int), np.zeros(2), "^theta: expected a flat float32 or.*int64"),
        (np.zeros(2), np.zeros(2, complex), "^gradient: expected float64.*complex"),
        (np.zeros(4), np.zeros(4), r"^theta: expected .*\(3,\).*got .*\(4,\)"),
        (
            np.zeros(3, np.float32),
            np.zeros(3, np.float32),
            "^theta: expected float64.*got float32",
        ),
        (np.broadcast_to(0.0, 3), np.zeros(3), "^theta: expected a writable"),
    ],
)
def test_update_refuses_what_does_not_fit_and_changes_nothing(
    make, theta, gradient, message
):
    optimiser = make()
    optimiser.update(np.zeros(3), np.ones(3))
    before = optimiser.state()
    with pytest.raises(ValueError, match=message):
        optimiser.update(theta, gradient)
    assert not theta.any()
    for key, value in optimiser.state().items():
        np.testing.assert_array_equal(value, before[key])


def good_state():
    optimiser = Adam()
    run(optimiser, [[1.0, 2.0]])
    return optimiser.state()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": None}, "expected the keys .*'step'"),
        ({"second_moment": None}, "expected the keys .*'second_moment'"),
        ({"momentum": np.zeros(2)}, "got .*'momentum'"),
        ({"step": np.array(-1)}, "'step': expected .*-1"),
        ({"step": np.array(1.0)}, r"'step': expected .*array\(1\.\)"),
        ({"step": np.array([1])}, r"'step': expected .*array\(\[1\]\)"),
        ({"step": np.array(0)}, r"'first_moment': expected shape \(0,\)"),
        ({"first_moment": np.zeros((2, 1))}, r"'first_moment': .*\(2, 1\)"),
        ({"first_moment": np.zeros(2, int)}, "'first_moment': .*int64"),
        ({"first_moment": np.array([np.nan, 0])}, "'first_moment': .*finite.*nan"),
        ({"second_moment": np.array([np.inf, 0])}, "'second_moment': .*finite"),
        ({"second_moment": np.array([-1.0, 0])}, "'second_moment': .*>= 0.*-1"),
        ({"second_moment": np.zeros(3)}, r"'second_moment': expected .*\(3,\)"),
        ({"second_moment": np.zeros(2, "f4")}, "'second_moment': .*float32"),
    ],
)
def test_load_state_refuses_a_bad_state_by_name_and_changes_nothing(change, message):
    optimiser = Adam()
    run(optimiser, [[3.0, 4.0]] * 2)
    before = optimiser.state()
    state = {**good_state(), **change}
    state = {key: value for key, value in state.items() if value is not None}
    with pytest.raises(ValueError, match=f"optimiser state.*{message}"):
        optimiser.load_state(state)
    for key, value in optimiser.state().items():
        np.testing.assert_array_equal(value, before[key])


def test_load_state_refuses_moments_without_values_after_a_step():
    state = {**good_state(), "first_moment": np.zeros(0), "second_moment": np.zeros(0)}
    with pytest.raises(ValueError, match="'first_moment': expected shape"):
        Adam().load_state(state)


def test_a_loaded_state_fixes_size_and_dtype_of_theta():
    optimiser = Adam()
    optimiser.load_state(good_state())
    with pytest.raises(ValueError, match=r"^theta: expected .*\(2,\).*got .*\(3,\)"):
        optimiser.update(np.zeros(3), np.zeros(3))


@pytest.mark.parametrize("make", [SGD, Adam])
def test_settings_can_be_read_but_not_changed(make):
    optimiser = make(learning_rate=0.5)
    assert optimiser.learning_rate == 0.5
    for name in optimiser.config().keys() - {"name"}:
        with pytest.raises(AttributeError, match=f"^{name}: an optimiser cannot be ch"):
            setattr(optimiser, name, 0.1)
    assert optimiser.config() == make(learning_rate=0.5).config()
    with pytest.raises(AttributeError, match="has no attribute 'momentum'"):
        assert optimiser.momentum
    for copied in (copy.deepcopy(optimiser), pickle.loads(pickle.dumps(optimiser))):
        assert copied.config() == optimiser.config()


def test_adam_refuses_what_it_cannot_square_and_changes_nothing():
    adam, theta = Adam(), np.zeros(3, np.float32)
    adam.update(theta, np.ones(3, np.float32))
    before, moved = adam.state(), theta.copy()
    for bad in (1e20, -1e20, np.inf, np.nan):
        gradient = np.array([1.0, bad, 0.0], np.float32)
        with pytest.raises(FloatingPointError, match="the largest entry of the grad"):
            adam.update(theta, gradient)
    assert theta.tolist() == moved.tolist()
    for key, value in adam.state().items():
        np.testing.assert_array_equal(value, before[key])


def test_a_first_step_that_adam_refuses_is_none():
    adam, bad = Adam(), np.array([1e20, 0.0, 0.0], np.float32)
    with pytest.raises(FloatingPointError):
        adam.update(np.zeros(3, np.float32), bad)
    again = Adam()
    again.load_state(adam.state())  # as at the beginning
    theta, expected = np.zeros(2), np.zeros(2)
    adam.update(theta, np.ones(2))  # of another size
    Adam().update(expected, np.ones(2))
    assert theta.tolist() == expected.tolist()
    assert adam.state()["first_moment"].shape == (2,)
    with pytest.raises(ValueError, match="as in the steps before"):
        adam.update(np.zeros(3), np.ones(3))


@pytest.mark.parametrize("make", [SGD, Adam])
def test_masked_arrays_are_refused(make):
    plain, masked = np.zeros(3), np.ma.ones(3)
    with pytest.raises(TypeError, match="^gradient: expected an array, got Masked"):
        make().update(plain, masked)
    with pytest.raises(TypeError, match="^theta: expected an array, got Masked"):
        make().update(masked, plain)
    assert not plain.any()


# --- schedules ------------------------------------------------------------------------


def test_schedules_have_the_values_of_their_formulas():
    assert [constant(0.5)(t) for t in (1, 10**6)] == [0.5, 0.5]
    assert [step(0.8, 3, 0.5)(t) for t in (1, 3, 4, 6, 7)] == [0.8, 0.8, 0.4, 0.4, 0.2]
    wave = cosine(3.0, 4, last=1.0)
    root = math.sqrt(0.5)
    expected = [3, 2 + root, 2, 2 - root, 1, 1]
    assert [wave(t) for t in range(1, 7)] == pytest.approx(expected, rel=1e-15)
    assert wave(10**9) == 1.0


@pytest.mark.parametrize("schedule", [step(0.1, 2), cosine(0.1, 3, 0.02)])
@pytest.mark.parametrize("make", [SGD, Adam])
def test_a_schedule_gives_each_step_the_rate_of_its_iteration(make, schedule):
    gradients = [[1.0, -2.0], [0.5, 3.0], [-1.0, 1.0], [2.0, 2.0]]
    theta = expected = np.zeros(2)
    expected = expected.copy()
    scheduled, state = make(schedule), make(1.0).state()
    for t, gradient in enumerate(gradients, start=1):
        gradient = np.array(gradient)
        scheduled.update(theta, gradient)
        plain = make(schedule(t))  # an optimiser of this one learning rate
        plain.load_state(state)
        plain.update(expected, gradient)
        state = plain.state()
        assert theta.tobytes() == expected.tobytes(), t


def test_a_constant_schedule_is_the_number():
    gradients = [[1.0, -2.0], [0.5, 3.0]]
    assert run(Adam(constant(0.1)), gradients).tolist() == (
        run(Adam(0.1), gradients).tolist()
    )


def test_the_configuration_of_a_schedule_is_json_and_names_all_of_it():
    rates = [0.1, 0.1000001]
    schedules = [
        *(f(rate, n) for f in (step, cosine) for rate in rates for n in (8, 9)),
        *map(constant, rates),
        step(0.1, 8, 0.5),
        cosine(0.1, 8, 0.05),
    ]
    configs = [json.dumps(SGD(schedule).config()) for schedule in schedules]
    assert len({*configs}) == len(configs)
    expected = {"name": "SGD", "learning_rate": "cosine(0.1, 8, 0.0)"}
    assert SGD(cosine(0.1, 8)).config() == expected
    copied = pickle.loads(pickle.dumps(Adam(cosine(0.1, 8))))
    assert copied.config() == Adam(cosine(0.1, 8)).config()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: cosine(0, 5), ValueError, "learning_rate: expected a number in"),
        (lambda: cosine(0.1, 0), ValueError, "iterations: expected at least 1, got 0"),
        (lambda: cosine(0.1, 2.5), TypeError, "iterations: expected a whole number"),
        (lambda: cosine(0.1, 5, 0.2), ValueError, "last: expected a number in"),
        (lambda: step(0.1, 0), ValueError, "every: expected at least 1, got 0"),
        (lambda: step(0.1, 5, -0.5), ValueError, "factor: expected a number in"),
        (lambda: step(0.1, 5, 0), ValueError, "factor: expected a number in"),
        (lambda: cosine(1, 5, 1.5), ValueError, r"last: .* in \[0, 1\], got 1.5"),
        (lambda: step(0.1, 5, 1.5), ValueError, r"factor: .*, 1\], got 1.5"),
        (lambda: SGD(10**400), ValueError, "learning_rate: expected a number below"),
        (lambda: constant(-1), ValueError, "learning_rate: expected a number in"),
        (
            lambda: Adam(lambda t: 0.1),
            TypeError,
            "learning_rate: expected a number, or a schedule: constant, step or",
        ),
        (lambda: SGD(cosine), TypeError, "learning_rate: expected a number, or a sch"),
    ],
)
def test_schedules_refuse_bad_arguments_by_name(make, error, message):
    with pytest.raises(error, match=f"^{message}"):
        make()


def test_the_ends_of_a_range_that_are_allowed_are_allowed():
    assert step(0.1, 5, 1)(100) == 0.1
    assert cosine(0.1, 5, 0.1)(3) == 0.1


@pytest.mark.parametrize(
    ("make", "defaults"),
    [
        (SGD, {"learning_rate": 0.01}),
        (Adam, {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}),
    ],
)
def test_defaults_are_those_of_the_papers(make, defaults):
    assert make().config() == {"name": make.__name__, **defaults}
