"""The cache of compiled programs: bounded, and left behind by copies and pickles."""

import copy
import pickle
import sys
from dataclasses import dataclass, field

import numpy as np
import pytest

import tinymaml as tm
from tests.support.maml_problems import problem
from tinymaml.backends.programs import CAPACITY, ProgramCache
from tinymaml.tasks.sinusoid import sample_tasks


def test_the_program_that_was_used_longest_ago_is_dropped():
    programs, compiled = ProgramCache(capacity=2), []
    for key in "abacab":
        programs.get(key, lambda key=key: compiled.append(key) or key)
    assert compiled == ["a", "b", "c", "b"]
    assert len(programs) == 2


def test_a_failed_compilation_leaves_nothing_behind():
    programs = ProgramCache()
    with pytest.raises(MemoryError):
        programs.get("key", lambda: (_ for _ in ()).throw(MemoryError))
    assert len(programs) == 0
    assert programs.get("key", lambda: "program") == "program"


def test_an_interrupted_call_never_pairs_a_key_with_another_program():
    """KeyboardInterrupt before each bytecode of `get`; then both keys are looked up."""
    code = ProgramCache.get.__code__
    for interrupted in range(len(code.co_code) // 2):
        programs, executed = ProgramCache(), []
        programs.get("a", lambda: "program a")

        def trace(frame, event, _, interrupted=interrupted, executed=executed):
            if frame.f_code is code:
                frame.f_trace_opcodes = True
                if event == "opcode":
                    executed.append(event)
                    if len(executed) == interrupted + 1:
                        raise KeyboardInterrupt
            return trace

        sys.settrace(trace)
        try:
            programs.get("b", lambda: "program b")
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        for name in "abba":
            program = programs.get(name, lambda name=name: f"program {name}")
            assert program == f"program {name}", interrupted
    assert len(executed) > 20


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_programs_do_not_travel(duplicate):
    programs = ProgramCache(capacity=3)
    programs.get("key", object)
    other = duplicate(programs)
    assert (len(other), other.capacity, len(programs)) == (0, 3, 1)


def test_a_deep_copy_of_a_used_learner_answers_for_its_own_inputs():
    p, q = problem(seed=0), problem(seed=1)
    maml = p.maml("numba")
    maml.meta_gradient(p.theta, p.tasks)
    duplicate = copy.deepcopy(maml)
    results = [m.meta_gradient(q.theta, q.tasks).gradient for m in (duplicate, maml)]
    assert results[0].tobytes() == results[1].tobytes()
    del maml, results
    again = duplicate.meta_gradient(p.theta, p.tasks).gradient
    fresh = p.maml("numba").meta_gradient(p.theta, p.tasks).gradient
    assert again.tobytes() == fresh.tobytes()


def test_a_new_function_in_every_call_does_not_fill_the_memory():
    p = problem()
    maml = p.maml("numpy")
    functions = [lambda theta, x, s: theta.sum() for _ in range(2 * CAPACITY)]
    for function in functions:  # all of them stay alive
        maml.predict(function, p.theta, p.tasks)
    assert len(maml._programs) == CAPACITY


@pytest.mark.parametrize("name", ["loss", "query_loss"])
def test_another_loss_is_heeded(name):
    p = problem()

    def double(theta, x, y, x_support=None):
        return p.loss(theta, x, y) * 2.0

    maml = p.maml("numpy", alpha=0.0)
    before = maml.meta_gradient(p.theta, p.tasks).loss
    setattr(maml, name, double)
    assert maml.meta_gradient(p.theta, p.tasks).loss == pytest.approx(2 * before)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("order", 3, ValueError),
        ("order", True, ValueError),
        ("reduction", "max", ValueError),
        ("steps", 1.5, TypeError),
        ("clip", -1.0, ValueError),
        ("clip", True, TypeError),
        ("clip", "a", TypeError),
        ("recompute", "no", TypeError),
        ("query_loss", 0, TypeError),
        ("backend", "numbat", ValueError),
        ("loss", 7, TypeError),
        ("alpha", np.nan, ValueError),
    ],
)
def test_what_the_constructor_refuses_is_refused_later(name, value, error):
    maml = problem().maml("numpy")
    before = getattr(maml, name)
    with pytest.raises(error, match=f"^{name}: expected"):
        setattr(maml, name, value)
    assert getattr(maml, name) is before


def test_the_number_of_step_weights_is_checked_when_they_are_used():
    p = problem()
    maml = p.maml("numpy", steps=2)
    maml.step_weights = [0.5, 0.5]
    maml.meta_gradient(p.theta, p.tasks)
    maml.steps = 3
    with pytest.raises(ValueError, match="step_weights: expected 3 finite weights"):
        maml.meta_gradient(p.theta, p.tasks)
    assert isinstance(maml, tm.MAML)


class Scorer:
    """An object with a method to predict with; it counts how often it is recorded."""

    def __init__(self, network):
        self.network, self.recorded = network, 0

    def score(self, theta, x, x_support):
        self.recorded += 1
        return self.network(theta, x)


def test_a_program_goes_with_the_function_that_it_was_compiled_for():
    network, theta, tasks, maml = prediction_problem()
    for _ in range(10):
        maml.predict(lambda t, x, s: network(t, x), theta, tasks, steps=1)
        assert len(maml._programs) <= 2
    scorer = Scorer(network)
    for _ in range(3):  # each `scorer.score` is a new object, but the same method
        maml.predict(scorer.score, theta, tasks, steps=0)
    assert scorer.recorded == 1
    del scorer
    maml.predict(lambda t, x, s: network(t, x), theta, tasks, steps=1)
    assert len(maml._programs) == 1


def test_functions_in_the_place_of_gone_ones_are_not_taken_for_them():
    network, theta, tasks, maml = prediction_problem()
    plain = maml.predict(network, theta, tasks, steps=1)
    for factor in range(1, 30):  # CPython gives the next lambda the same address
        scaled = maml.predict(lambda t, x, s: network(t, x) * factor, theta, tasks, 1)  # noqa: B023
        np.testing.assert_allclose(scaled, factor * plain, rtol=1e-5)


def test_a_function_that_allows_no_weak_reference_is_kept():
    class Slotted:
        __slots__ = ()

        def __call__(self, theta, x, x_support):
            return network(theta, x)

    network, theta, tasks, maml = prediction_problem()
    function = Slotted()
    for _ in range(2):
        maml.predict(function, theta, tasks, steps=1)
    assert len(maml._programs) == 1


def test_equal_functions_and_those_without_a_hash_have_programs_of_their_own():
    @dataclass
    class Scaled:
        factor: float

        def __call__(self, theta, x, x_support):
            return network(theta, x) * self.factor

    network, theta, tasks, maml = prediction_problem()
    plain = maml.predict(network, theta, tasks, steps=1)
    one, same, two = Scaled(1.0), Scaled(1.0), Scaled(2.0)
    for scaled in (one, same, two, one):
        out = maml.predict(scaled, theta, tasks, steps=1)
        np.testing.assert_allclose(out, scaled.factor * plain, rtol=1e-5)
    assert len(maml._programs) == 4


@pytest.mark.parametrize("slots", [False, True])  # with slots: no weak references
@pytest.mark.parametrize("method", ["score", "__call__"])
def test_equal_objects_and_their_methods_have_programs_of_their_own(slots, method):
    @dataclass(frozen=True, slots=slots)
    class Scaled:
        name: str
        factor: float = field(compare=False)

        def score(self, theta, x, x_support):
            return network(theta, x) * self.factor

        __call__ = score

    network, theta, tasks, maml = prediction_problem()
    plain = maml.predict(network, theta, tasks, steps=1)
    kinds = [Scaled("a", 1.0), Scaled("a", 2.0)]
    for scaled in (*kinds, kinds[0]):
        function = scaled.score if method == "score" else scaled
        out = maml.predict(function, theta, tasks, steps=1)
        np.testing.assert_allclose(out, scaled.factor * plain, rtol=1e-5)
    assert len(maml._programs) == 3  # it is found again


@pytest.mark.parametrize("slots", [False, True])
def test_a_method_of_an_object_without_a_hash_has_a_program(slots):
    @dataclass(slots=slots)
    class Scaled:
        factor: float

        def loss(self, theta):
            return (theta * theta).sum() * self.factor

    two, three = Scaled(2.0), Scaled(3.0)
    for scaled in (two, three, two):
        value = tm.function(scaled.loss, backend="numpy")(np.ones(2))
        assert value == 2 * scaled.factor


def prediction_problem():
    network = tm.MLP([1, 4, 1])
    rng = np.random.default_rng(0)
    maml = tm.MAML(lambda t, x, y: tm.squared_error(network(t, x), y), backend="numpy")
    return network, network.init(rng), sample_tasks(rng, tasks=2, shots=3), maml


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("step_weights", [0.5, 0.5]),
        ("alpha", np.linspace(0.1, 0.4, problem().theta.size)),
        ("recompute", True),
        ("steps", 3),
        ("order", 1),
        ("backend", tm.get_backend("numba", 1)),
    ],
)
def test_what_is_set_after_a_call_counts_in_the_next(name, value):
    p = problem()
    maml = p.maml("numpy", steps=2)
    before = maml.meta_gradient(p.theta, p.tasks).gradient
    setattr(maml, name, value)
    after = maml.meta_gradient(p.theta, p.tasks).gradient
    assert len(maml._programs) == 2
    options = {"backend": "numpy", "steps": 2, name: value}
    expected = p.maml(**options).meta_gradient(p.theta, p.tasks).gradient
    np.testing.assert_array_equal(after, expected)
    if name not in ("recompute", "backend"):
        assert not np.allclose(after, before)
