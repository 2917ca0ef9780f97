"""Settings as data: the published numbers, scaling of losses, clipping, accuracy."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinymaml as tm
from tests.support.running import BACKENDS, assert_close, run_tape
from tinymaml.networks.images import ImageNetwork
from tinymaml.paper.recipes import (
    RECIPES,
    SCALINGS,
    NavigationRecipe,
    SinusoidRecipe,
    accuracy,
)
from tinymaml.variants.context_vector import OmniglotContext

every_recipe = pytest.mark.parametrize("name", RECIPES)
every_backend = pytest.mark.parametrize("backend", BACKENDS)


# --- the numbers ----------------------------------------------------------------------

# ways, shots, query examples a class, alpha, steps, test steps, tasks, paper, interval
PUBLISHED = {
    "5w1s": (5, 1, 1, 0.4, 1, 3, 32, 98.7, 0.4),
    "5w5s": (5, 5, 5, 0.4, 1, 3, 32, 99.9, 0.1),
    "20w1s": (20, 1, 1, 0.1, 5, 5, 16, 95.8, 0.3),
    "20w5s": (20, 5, 5, 0.1, 5, 5, 16, 98.9, 0.2),
    "fc-5w1s": (5, 1, 1, 0.4, 1, 3, 32, 89.7, 1.1),
    "fc-5w5s": (5, 5, 5, 0.4, 1, 3, 32, 97.5, 0.6),
    "mini-5w1s": (5, 1, 15, 0.01, 5, 10, 4, 48.70, 1.84),
    "mini-5w5s": (5, 5, 15, 0.01, 5, 10, 2, 63.11, 0.92),
    "context-5w1s": (5, 1, 1, 0.4, 1, 3, 32, 94.9, 0.9),
    "context-5w5s": (5, 5, 5, 0.4, 1, 3, 32, 97.7, 0.3),
}
STEPS_ON_MEAN = {  # N alpha
    "5w1s": 2.0,
    "5w5s": 2.0,
    "20w1s": 2.0,
    "20w5s": 2.0,
    "fc-5w1s": 2.0,
    "fc-5w5s": 2.0,
    "mini-5w1s": 0.05,
    "mini-5w5s": 0.05,
    "context-5w1s": 2.0,
    "context-5w5s": 2.0,
}


def test_table1_and_table3_have_these_cells():
    assert RECIPES.keys() == PUBLISHED.keys()
    assert all(recipe.name == name for name, recipe in RECIPES.items())


@every_recipe
def test_table1_numbers_are_the_published_ones(name):
    r = RECIPES[name]
    numbers = (r.ways, r.shots, r.queries, r.alpha, r.steps, r.test_steps, r.tasks)
    assert (*numbers, *r.paper) == PUBLISHED[name]
    assert (r.learning_rate, r.iterations, r.scaling) == (0.001, 60_000, "per_shot")
    assert r.clip == (10 if name.startswith("mini") else None)


@every_recipe
def test_table1_numbers_of_first_order_maml_are_those_of_miniimagenet(name):
    published = {"mini-5w1s": (48.07, 1.75), "mini-5w5s": (63.15, 0.91)}
    assert RECIPES[name].paper_of(1) == published.get(name)
    assert RECIPES[name].paper_of(2) == PUBLISHED[name][-2:]


@every_recipe
def test_table1_networks_are_those_of_the_data_set(name):
    network = RECIPES[name].network()
    kinds = {
        "mini": tm.MiniImagenetConv,
        "fc": tm.OmniglotFC,
        "context": OmniglotContext,
    }
    assert type(network) is kinds.get(name.split("-")[0], tm.OmniglotConv)
    *_, (_, shape) = network.layout.values()
    assert shape == (RECIPES[name].ways,)
    assert not any("gamma" in parameter for parameter in network.layout)
    for mode in ("batch", "support", "none"):
        layers = RECIPES[name].network(mode).layers
        modes = [layer.mode for layer in layers if isinstance(layer, tm.BatchNorm)]
        assert modes == [mode] * 4


@every_recipe
def test_step_on_mean_is_n_times_alpha_for_the_authors_scaling_only(name):
    recipe = RECIPES[name]
    assert recipe.step_on_mean == pytest.approx(STEPS_ON_MEAN[name], rel=1e-15)
    assert recipe.scaled("per_shot") == recipe
    mean = recipe.scaled("mean")
    assert mean.step_on_mean == mean.alpha == recipe.alpha
    assert replace(mean, scaling="per_shot") == recipe


def test_scaled_refuses_another_name():
    with pytest.raises(ValueError, match=r"^scaling: expected one of .*, got 'sum'"):
        RECIPES["5w1s"].scaled("sum")


# --- losses and MAML ------------------------------------------------------------------


def small_network(ways, mode="batch"):
    return ImageNetwork(
        [
            tm.Conv2d(1, 3, stride=2),
            tm.BatchNorm(3, mode),
            tm.Activation("relu"),
            tm.MeanPool(),
            tm.Flatten(),
            tm.Linear(3, ways),
        ]
    )


def tasks_of(recipe, tasks=2):
    """Tasks of random 5x5 images, with as many examples as the recipe has."""
    rng = np.random.default_rng(0)
    arrays = []
    for per_class in (recipe.shots, recipe.queries):
        n = recipe.ways * per_class
        arrays.append(rng.standard_normal((tasks, n, 5, 5, 1)))
        arrays.append(np.tile(np.eye(recipe.ways), (tasks, per_class, 1)))
    return tm.Tasks(*arrays)


def start(network):
    rng = np.random.default_rng(1)
    return network.init(rng, "float64") + 0.3 * rng.standard_normal(network.size)


def mean_cross_entropy(network, theta, x, y):
    """The mean cross-entropy of a batch, in NumPy."""
    logits = network.predict(theta, x)
    logits = logits - logits.max(1, keepdims=True)
    log_softmax = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return -(y * log_softmax).sum(1).mean()


@every_recipe
@pytest.mark.parametrize("scaling", SCALINGS)
def test_losses_are_scaled_as_the_recipe_says(name, scaling):
    """ "per_shot" is N times the mean for support examples, and N queries / K times the
    mean for query examples."""
    recipe = RECIPES[name].scaled(scaling)
    network = small_network(recipe.ways)
    maml = recipe.maml(network, backend="numpy")
    theta, tasks = start(network), tasks_of(recipe)
    factors = {
        "support": recipe.ways if scaling == "per_shot" else 1,
        "query": recipe.ways * recipe.queries / recipe.shots
        if scaling == "per_shot"
        else 1,
    }
    tape = tm.Tape()
    values = [tape.input("theta", theta.shape)]
    values += [tape.input(k, a.shape[1:]) for k, a in zip("xy", tasks[:2], strict=True)]
    tape.output("loss", maml.loss(*values))
    inputs = {"theta": theta, "x": tasks.x_support[0], "y": tasks.y_support[0]}
    support = run_tape(tape, inputs)["loss"][0]
    plain = mean_cross_entropy(network, *inputs.values())
    assert support == pytest.approx(factors["support"] * plain, rel=1e-13)
    query = maml.evaluate(theta, tasks, steps=0)[:, 0]
    means = [
        mean_cross_entropy(network, theta, x, y)
        for x, y in zip(*tasks[2:], strict=True)
    ]
    assert_close(query, factors["query"] * np.array(means), 1e-13)


@every_recipe
@every_backend
def test_a_step_of_the_recipe_is_step_on_mean_times_the_mean_gradient(name, backend):
    recipe = RECIPES[name]
    network = small_network(recipe.ways)
    theta, tasks = start(network), tasks_of(recipe)
    adapted = recipe.maml(network, backend=backend).adapt(theta, *tasks[:2], steps=1)
    mean = recipe.scaled("mean").maml(network, backend=backend)
    mean.alpha = network.adapted_only(recipe.step_on_mean, "float64")
    expected = mean.adapt(theta, *tasks[:2], steps=1)
    assert_close(adapted - theta, expected - theta, 1e-12)


@every_recipe
@pytest.mark.parametrize("order", [1, 2])
def test_maml_of_a_recipe_has_its_options(name, order):
    recipe = RECIPES[name]
    network = small_network(recipe.ways)
    maml = recipe.maml(network, order, backend="numpy", recompute=True)
    assert (maml.order, maml.steps, maml.recompute) == (order, recipe.steps, True)
    assert maml.reduction == "mean"
    assert np.array_equal(maml.alpha, network.adapted_only(recipe.alpha, "float64"))


def test_the_query_loss_takes_support_statistics_in_mode_support_only():
    recipe = RECIPES["5w1s"]
    tasks = tasks_of(recipe)
    other = tasks._replace(x_support=2 * tasks.x_support + 1)
    for mode, depends in (("support", True), ("batch", False)):
        network = small_network(5, mode)
        maml = recipe.maml(network, backend="numpy")
        before, after = (
            maml.evaluate(start(network), each, steps=0) for each in (tasks, other)
        )
        assert (before != after).all() == depends
        assert (before == after).all() != depends


# --- clipping -------------------------------------------------------------------------


@every_backend
def test_the_meta_gradient_is_clipped_element_by_element(backend):
    recipe = RECIPES["mini-5w1s"]
    network = small_network(5)
    maml = recipe.maml(network, backend=backend)
    theta, tasks = start(network), tasks_of(recipe)
    plain = maml.meta_gradient(theta, tasks, parts=True)
    limit = float(np.median(np.abs(plain.gradient)))
    clipping = replace(recipe, clip=limit).maml(network, backend=backend)
    clipped = clipping.meta_gradient(theta, tasks, parts=True)
    for part, whole in zip(clipped.parts, plain.parts, strict=True):
        np.testing.assert_array_equal(part, whole)  # parts are not clipped
    large = np.abs(plain.gradient) > limit
    signs = np.sign(plain.gradient[large])
    assert 0.3 < large.mean() < 0.7
    assert np.array_equal(clipped.gradient[~large], plain.gradient[~large])
    assert np.array_equal(clipped.gradient[large], limit * signs)
    assert np.array_equal(clipped.losses, plain.losses) and clipped.loss == plain.loss


@every_recipe
def test_only_the_recipes_of_miniimagenet_clip_and_at_10(name):
    recipe = RECIPES[name]
    maml = recipe.maml(recipe.network(), backend="numpy")
    assert maml.clip == (10 if name.startswith("mini") else None)


# --- accuracy -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("logits", "correct"),
    [
        ([2.0, 1.0, 0.0], True),
        ([1.0, 2.0, 0.0], False),
        ([-1.0, -2.0, -3.0], True),
        ([-1e30, -2e30, -3e30], True),
        ([1.0, 1.0, 0.0], False),  # a tie is no decision
        ([1.0, 0.0, 1.0], False),
        ([0.0, 0.0, 0.0], False),
        ([np.nan, 1.0, 0.0], False),
        ([1.0, np.nan, 0.0], False),
        ([1.0, 0.0, np.nan], False),
        ([np.nan, np.nan, np.nan], False),
        ([np.inf, 1.0, 0.0], True),
        ([np.inf, np.inf, 0.0], False),
        ([0.0, -np.inf, -np.inf], True),
    ],
)
def test_an_example_is_correct_if_its_class_alone_has_the_largest_logit(
    logits, correct
):
    for shift in range(3):  # the class may be the first, second or third
        shifted = np.roll([logits], shift, axis=1)
        y = np.roll([[1.0, 0.0, 0.0]], shift, axis=1)
        assert accuracy(shifted, y) == float(correct)


def test_accuracy_is_the_share_of_examples_for_each_task_and_step():
    y = np.eye(2)[[[0, 1, 0, 1], [1, 1, 1, 0]]]  # (T, N, classes)
    first = np.eye(2)[[[0, 1, 0, 1], [0, 0, 0, 0]]]
    second = np.eye(2)[[[0, 1, 1, 1], [1, 1, 0, 1]]]
    logits = np.stack([first, second], axis=1)  # (T, steps, N, classes)
    shares = accuracy(logits, y[:, None])
    assert shares.tolist() == [[1.0, 0.75], [0.25, 0.5]]


@given(seed=st.integers(0, 2**16), shift=st.floats(-5, 5), factor=st.floats(0.1, 10))
def test_accuracy_counts_the_largest_whatever_their_scale(seed, shift, factor):
    rng = np.random.default_rng(seed)
    logits, labels = rng.standard_normal((8, 20, 5)), rng.integers(0, 5, (8, 20))
    expected = (logits.argmax(-1) == labels).mean(-1)
    y = np.eye(5)[labels]
    assert np.array_equal(accuracy(logits, y), expected)
    assert np.array_equal(accuracy(factor * logits + shift, y), expected)


def test_accuracy_refuses_another_number_of_classes():
    message = r"^y: expected .* logits of shape \(3, 4\), got shape \(3, 5\)"
    with pytest.raises(ValueError, match=message):
        accuracy(np.zeros((3, 4)), np.eye(5)[:3])


@given(seed=st.integers(0, 2**16), smoothing=st.floats(0, 0.7))
def test_accuracy_takes_the_most_probable_class_of_smoothed_labels(seed, smoothing):
    rng = np.random.default_rng(seed)
    logits, labels = rng.standard_normal((2, 20, 5)), rng.integers(0, 5, (2, 20))
    hard = np.eye(5)[labels]
    soft = (1 - smoothing) * hard + smoothing / 5
    assert np.array_equal(accuracy(logits, soft), accuracy(logits, hard))
    single = soft.astype("float32")
    assert np.array_equal(accuracy(logits, single), accuracy(logits, hard))
    assert np.array_equal(accuracy(logits, hard > 0), accuracy(logits, hard))


@pytest.mark.parametrize(
    ("y", "error"),
    [
        (np.array([0, 1, 2, 0, 1]), ValueError),  # numbers of classes
        (np.array([0.0, 0.0, 1.0, 0.0, 0.0]), ValueError),  # numbers that look one-hot
        (np.array([[0, 1, 2, 0, 1]]), ValueError),
        (np.zeros((5, 5)), ValueError),
        (np.ones((5, 5)), ValueError),
        (np.full((5, 5), 0.2), ValueError),  # no class
        (np.eye(5) * 2 - 0.2, ValueError),
        (np.eye(5) * np.nan, ValueError),
        (np.stack([np.eye(5)] * 2), ValueError),  # more tasks than logits
        (np.ma.masked_array(np.eye(5)), TypeError),
        (np.eye(5).tolist(), TypeError),
        (np.eye(5).astype("U"), TypeError),
        (np.eye(5) * 1j, TypeError),
    ],
)
def test_accuracy_refuses_what_is_no_probability(y, error):
    with pytest.raises(error, match="^y: expected "):
        accuracy(np.eye(5), y)


# --- sent to another process ----------------------------------------------------------


@every_recipe
def test_recipe_and_its_loss_can_be_pickled(name):
    recipe = RECIPES[name]
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    loss = recipe.maml(recipe.network(), backend="numpy").loss
    back = pickle.loads(pickle.dumps(loss))
    assert back.compare.keywords == {"scaling": recipe.scaling, "shots": recipe.shots}
    assert repr(back.network) == repr(loss.network)


@pytest.mark.parametrize("recipe", [SinusoidRecipe(0.002), NavigationRecipe(0.2)])
def test_recipes_of_sections_5_1_and_5_3_can_be_pickled(recipe):
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    network = recipe.network()
    back = pickle.loads(pickle.dumps(recipe.maml(network, backend="numpy")))
    assert back.alpha == recipe.alpha and back.order == 2


# --- sections 5.1 and 5.3 -------------------------------------------------------------


def test_the_sinusoid_recipe_adapts_on_the_mean_squared_error():
    recipe = SinusoidRecipe(alpha=0.01)
    network = recipe.network()
    theta = network.init(np.random.default_rng(0), "float64")
    theta[theta == 0] = 0.1  # biases, so that the gradient has no zeros
    maml = recipe.maml(network, order=1, backend="numpy")
    assert (maml.steps, maml.order) == (1, 1)
    x = np.linspace(-5, 5, 10).reshape(1, 10, 1)
    adapted = maml.adapt(theta, x, np.sin(x))[0, 1]

    def mean_squared_error(theta):
        return np.square(network.predict(theta, x[0]) - np.sin(x[0])).mean()

    # Along any direction the step is minus alpha times the derivative of the error.
    v = np.random.default_rng(1).normal(size=theta.size)
    h = 1e-6
    slope = mean_squared_error(theta + h * v) - mean_squared_error(theta - h * v)
    np.testing.assert_allclose((theta - adapted) @ v, 0.01 * slope / (2 * h), rtol=1e-6)


@pytest.mark.parametrize("reward", ["distance", "squared"])
def test_the_navigation_recipe_has_its_environment_and_policy(reward):
    recipe = NavigationRecipe(0.3, reward)
    policy = recipe.network()
    maml = recipe.maml(policy, order=1, trajectories=7, backend="numpy")
    assert maml.policy is policy and maml.environment.reward == reward
    assert (maml.alpha, maml.steps, maml.order, maml.trajectories) == (0.3, 1, 1, 7)
    assert policy.size == 2 * 100 + 100 + 100 * 100 + 100 + 100 * 2 + 2 + 2
