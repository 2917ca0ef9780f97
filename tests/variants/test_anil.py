"""ANIL and BOIL: the numbers of MAML with zeros in alpha, for less work."""

import copy
import pickle
import re
import time

import numpy as np
import pytest

import tinymaml as tm
from tests.support.image_problems import image_problem, strided_network
from tests.support.maml_problems import (
    assert_exact,
    assert_float32_agrees,
    problem,
    variant_of,
)
from tests.support.running import BACKENDS, assert_close
from tinymaml.variants import ANIL, CAVIA
from tinymaml.variants.anil import adapted_parts

every_backend = pytest.mark.parametrize("backend", BACKENDS)
NETWORK = tm.MLP([2, 5, 3], "tanh")  # that of `problem`
ALPHAS = {
    "head": {"head": 0.3},
    "body": {"body": 0.3},
    "all": {"default": 0.3},
    "none": {},
    "a bias and a part of the head": {"linear1.bias": 0.2, "linear2.weight": 0.3},
    "two pieces": {"linear1.bias": 0.2, "linear2.bias": 0.3},  # and one between them
}
LEARNERS = {"MAML": tm.MAML, "ANIL": ANIL}


def alpha_of(name):
    return NETWORK.alpha(dtype="float64", **ALPHAS[name])


@every_backend
@pytest.mark.parametrize("name", ALPHAS)
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_anil_has_the_numbers_of_maml_with_this_alpha(backend, name, order, steps):
    p, alpha = problem("cross_entropy"), alpha_of(name)
    options = {"alpha": alpha, "steps": steps, "order": order}
    maml = p.maml(backend, **options)
    anil = variant_of(ANIL, p, backend=backend, **options)
    result, expected = (m.meta_gradient(p.theta, p.tasks) for m in (anil, maml))
    assert_close(result.gradient, expected.gradient, 1e-12)
    assert_close(result.losses, expected.losses, 1e-13)
    thetas, expected = (m.adapt(p.theta, *p.tasks[:2], steps=4) for m in (anil, maml))
    assert_close(thetas, expected, 1e-13)
    losses, expected = (m.evaluate(p.theta, p.tasks, steps=4) for m in (anil, maml))
    assert_close(losses, expected, 1e-13)


@every_backend
def test_anil_with_one_number_adapts_everything(backend):
    p = problem()
    anil = variant_of(ANIL, p, backend=backend, alpha=0.3, steps=2)
    expected = p.maml(backend, steps=2).meta_gradient(p.theta, p.tasks)
    result = anil.meta_gradient(p.theta, p.tasks)
    assert_close(result.gradient, expected.gradient, 1e-12)


@pytest.mark.parametrize("name", ["head", "body", "two pieces"])
def test_anil_meta_gradient_matches_finite_differences(name):
    p = problem()
    anil = variant_of(ANIL, p, alpha=alpha_of(name), steps=3)
    assert_exact(anil, p.theta, p.tasks)
    assert_float32_agrees(anil, p.theta, p.tasks)


@every_backend
@pytest.mark.parametrize("mode", ["batch", "support"])
def test_images_have_the_numbers_of_maml(backend, mode):
    p = image_problem(strided_network(mode))
    for part in ("head", "body", "conv2d2"):
        alpha = p.network.alpha(dtype="float64", **{part: 1.0})
        result, expected = (
            kind(p.loss, alpha, steps=2, query_loss=p.loss, backend=backend)(
                p.theta, p.tasks
            )
            for kind in (ANIL, tm.MAML)
        )
        assert_close(result.gradient, expected.gradient, 1e-12)


def test_a_loss_of_all_of_theta_at_once_has_its_gradient():
    """A penalty reads theta as a whole, and a slice may cross the edge of a part."""
    plain, alpha = problem(), alpha_of("head")
    edge = NETWORK.layout["linear2.weight"][0].start
    penalties = [
        lambda theta: 0.1 * (theta**2).sum(),
        lambda theta: (theta[edge - 2 : edge + 2] ** 3).sum(),
        lambda theta: (theta[::2] ** 2).sum(),
        lambda theta: (theta[edge + 1 :: 2] ** 3 + theta[1:edge:2][1:8].sum()).sum(),
    ]
    for penalty in penalties:

        def loss(theta, x, y, penalty=penalty):
            return plain.loss(theta, x, y) + penalty(theta)

        p = plain._replace(loss=loss)
        maml, anil = p.maml(alpha=alpha, steps=2), variant_of(ANIL, p, alpha=alpha)
        anil.steps = 2
        result, expected = (m.meta_gradient(p.theta, p.tasks) for m in (anil, maml))
        assert_close(result.gradient, expected.gradient, 1e-12)


# --- the work -------------------------------------------------------------------------


def omniglot(learner, steps, **rates):
    """A learner of 5-way 1-shot Omniglot with the fully connected network."""
    network = tm.OmniglotFC(5)

    def loss(theta, x, y, x_support=None):
        return tm.cross_entropy(network(theta, x, x_support), y)

    rng = np.random.default_rng(0)
    images = [rng.random((8, 5, 28, 28, 1), np.float32) for _ in range(2)]
    labels = np.tile(np.eye(5, dtype="float32"), (8, 1, 1))
    tasks = tm.Tasks(images[0], labels, images[1], labels)
    maml = LEARNERS[learner](loss, network.alpha(**rates), steps=steps, threads=1)
    return maml, network.init(rng), tasks


def operations(learner, steps, **rates):
    maml, theta, tasks = omniglot(learner, steps, **rates)
    return maml.tape(theta, tasks).flops()


def test_anil_computes_the_body_once_for_all_steps():
    one, two, five = (operations("ANIL", steps, head=0.4) for steps in (1, 2, 5))
    # Each further step costs the same, which is little: the head of the network alone.
    assert five - two == 3 * (two - one)
    assert two - one < 0.02 * one
    steps = [operations("MAML", steps, head=0.4) for steps in (1, 2, 5)]
    assert five < 0.2 * steps[2]
    assert steps[1] - steps[0] > 10 * (two - one)


def test_boil_leaves_out_the_gradient_of_the_head():
    maml, theta, tasks = omniglot("ANIL", 1, body=0.4)
    maml.order = 1
    fewer = maml.tape(theta, tasks).flops()
    maml, *_ = omniglot("MAML", 1, body=0.4)
    maml.order = 1
    head = 2 * 64 * 5 * 5  # the product for the gradient of the head's weights
    assert maml.tape(theta, tasks).flops() - fewer >= head


def test_a_step_of_anil_takes_less_time_than_one_of_maml():
    times = {}
    for name in LEARNERS:
        maml, theta, tasks = omniglot(name, 5, head=0.4)
        maml.meta_gradient(theta, tasks)
        seconds = []
        for _ in range(7):
            started = time.perf_counter()
            maml.meta_gradient(theta, tasks)
            seconds.append(time.perf_counter() - started)
        times[name] = min(seconds)
    assert times["ANIL"] < 0.5 * times["MAML"], times


def test_summary_counts_the_operations_of_a_variant():
    counts = {}
    for name in LEARNERS:
        maml, theta, tasks = omniglot(name, 5, head=0.4)
        text = tm.summary(maml.tape(theta, tasks))
        (flops,) = re.findall(r"^matmul +\d+ +([\d,]+)", text, re.M)
        counts[name] = int(flops.replace(",", ""))
    assert counts["ANIL"] < 0.2 * counts["MAML"]


# --- alpha ----------------------------------------------------------------------------


def test_a_new_alpha_takes_effect():
    p = problem()
    anil = variant_of(ANIL, p, alpha=alpha_of("head"))
    for name in ("head", "body", "head"):
        anil.alpha = alpha_of(name)
        expected = p.maml(alpha=alpha_of(name)).meta_gradient(p.theta, p.tasks)
        result = anil.meta_gradient(p.theta, p.tasks)
        assert_close(result.gradient, expected.gradient, 1e-12)
    assert len(anil._programs) == 2


@pytest.mark.parametrize("kind", [ANIL, CAVIA])
def test_a_refused_alpha_changes_nothing(kind):
    anil = variant_of(kind, problem(), alpha=alpha_of("head"))
    alpha_before, adapted = anil.alpha, anil.adapted
    for alpha in (np.tile([0.0, 0.1], 101), np.full(3, np.nan), "0.1"):
        with pytest.raises((TypeError, ValueError), match="^alpha: expected"):
            anil.alpha = alpha
        assert anil.alpha is alpha_before and anil.adapted == adapted


def test_an_alpha_that_is_changed_in_place_is_none_of_anils():
    alpha, p = alpha_of("head"), problem()
    anil = variant_of(ANIL, p, alpha=alpha)
    expected = anil.meta_gradient(p.theta, p.tasks).gradient
    alpha[:] = 0.1
    assert np.array_equal(anil.meta_gradient(p.theta, p.tasks).gradient, expected)
    with pytest.raises(ValueError, match="read-only"):
        anil.alpha[:] = 0.1


def squared_error(theta, x, y):  # of this file, so that it can be pickled
    return tm.squared_error(NETWORK(theta, x), y)


def pickled(learner):
    return pickle.loads(pickle.dumps(learner))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, copy.copy])
def test_a_copy_keeps_its_alpha_as_well(copied):
    p = problem()._replace(loss=squared_error)
    anil = variant_of(ANIL, p, alpha=alpha_of("head"))
    other = copied(anil)
    with pytest.raises(ValueError, match="read-only"):
        other.alpha[:] = 0.1
    assert other.adapted == anil.adapted
    ours, theirs = (a.meta_gradient(p.theta, p.tasks).gradient for a in (anil, other))
    assert np.array_equal(ours, theirs)


def test_a_loss_may_not_differentiate_in_a_partly_adapted_theta():
    """It reads the parts, so the derivative was silently 0."""
    p = problem()

    def penalised(theta, x, y):
        g = tm.grad(p.loss(theta, x, y), theta)
        return p.loss(theta, x, y) + 0.1 * (g * g).sum()

    for alpha in (alpha_of("head"), 0.3):
        anil = ANIL(penalised, alpha, backend="numpy")
        with pytest.raises(
            TypeError, match="^theta: expected a Value, got Partly.*use MAML"
        ):
            anil.evaluate(p.theta, p.tasks, steps=1)


def test_parts_are_where_alpha_is_not_zero():
    assert adapted_parts(np.array([0.0, 0.1, -0.2, 0.0, 0.3])) == ((1, 3), (4, 5))
    assert adapted_parts(np.zeros(3)) == ()
    assert adapted_parts(np.ones(3)) == ((0, 3),)
    assert len(adapted_parts(alpha_of("two pieces"))) == 2


def test_an_alpha_of_very_many_parts_is_refused():
    p = problem()
    alpha = np.tile([0.0, 0.1], 101)
    with pytest.raises(ValueError, match="^alpha: expected at most 100 adapted parts"):
        variant_of(ANIL, p, alpha=alpha)
    anil = variant_of(ANIL, p, alpha=alpha[:200])
    with pytest.raises(ValueError, match="^alpha: expected a number or one per param"):
        anil.meta_gradient(p.theta, p.tasks)
