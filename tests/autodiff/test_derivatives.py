"""Gradients, tangents and Hessian-vector products: cases worked out by hand, the dense
Hessian of a small network, and identities that hold for every loss."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinymaml as tm
from tests.support.running import BACKENDS, assert_close, run_tape
from tinymaml.autodiff import functions
from tinymaml.autodiff.derivatives import accumulate_cotangents, grad, hvp, jvp
from tinymaml.autodiff.tape import Tape

every_backend = pytest.mark.parametrize("backend", BACKENDS)
seeds = st.integers(0, 2**16)


def value_of(value, backend="numpy", **inputs):
    """The number or array that a value stands for, given all inputs of its tape."""
    value.tape.output(f"value {len(value.tape.outputs)}", value)
    return [*run_tape(value.tape, inputs, backend).values()][-1][0]


def tape_of(arrays):
    """Inputs of one tape, of the shapes of these arrays."""
    tape = Tape()
    return [tape.input(name, array.shape) for name, array in arrays.items()]


def number(name="a"):
    return Tape().input(name, ())


# --- hand-computed cases --------------------------------------------------------------


@every_backend
def test_autodiff_grad_completes_a_cotangent_before_it_is_passed_on(backend):
    # c = (2a)^2, so dc/da = 8a. Passing on b's cotangent half complete gives 4a.
    a = number()
    b = a + a
    assert value_of(grad(b * b, a), backend, a=3.0) == 24.0


def test_autodiff_grad_sums_the_contributions_of_all_paths():
    # f = a b + b^2 with b = a^2: f = a^3 + a^4.
    a = number()
    b = a * a
    assert value_of(grad(a * b + b * b, a), a=2.0) == 3 * 2**2 + 4 * 2**3


def test_autodiff_grad_of_a_recorded_sum_of_a_value_with_itself():
    a = number()
    b = a.tape.record("add", a, a)
    c = b.tape.record("sub", b, b * 3.0)
    assert value_of(grad(c.tape.record("mul", c, c), a), a=1.0) == 2 * 16.0


def test_autodiff_grad_of_theta_itself_is_one():
    a = number()
    assert value_of(grad(a, a), a=7.0) == 1.0


def test_autodiff_grad_is_zero_where_theta_is_not_reached():
    theta = Tape().input("theta", (3,))
    other = theta.tape.input("other", (3,))
    gradient = grad(other.sum(), theta)
    assert value_of(gradient, theta=np.ones(3), other=np.ones(3)).tolist() == [0] * 3


def test_autodiff_grad_treats_a_value_on_the_way_as_the_variable():
    # d(b^2 + a)/db at b = 2a: where b comes from does not matter.
    a = number()
    b = a * 2.0
    assert value_of(grad(b * b + a, b), a=3.0) == 2 * 6.0


# What recording simplifies: an operation on b, and one more that looks past b.
PAST = {
    "factor of a factor": (lambda x: x * 2.0, lambda b: (b * 3.0).sum()),
    "three factors": (lambda x: x * 2.0, lambda b: (b * 3.0 * 5.0).sum()),
    "sum of a factor": (lambda x: x + x, lambda b: b.sum()),
    "factor of a broadcast": (
        lambda x: x.reshape(1, 2, 6).broadcast_to((3, 2, 6)),
        lambda b: (b * 0.5).sum(),
    ),
    "factor of a product": (
        lambda x: x * x.sum().broadcast_to((2, 6)),
        lambda b: functions.exp(b * 0.1).sum(),
    ),
    "product with a transpose": (lambda x: x.T, lambda b: (b @ b.T).sum()),
    "transpose of a transpose": (lambda x: x.T, lambda b: (b.T * b.T).sum()),
    "reshape of a reshape": (
        lambda x: x.reshape(3, 4),
        lambda b: functions.exp(b.reshape(4, 3)).sum(),
    ),
    "reshape back": (
        lambda x: x.reshape(3, 4),
        lambda b: functions.exp(b.reshape(2, 6)).sum(),
    ),
    "part of a reshape": (lambda x: x.reshape(3, 4), lambda b: (b[0] * b[0]).sum()),
    "one of two ways": (
        lambda x: x.T,
        lambda b: (b @ functions.exp(b).T).sum() + (b * b).sum(),
    ),
}


@pytest.mark.parametrize("name", PAST)
def test_no_derivative_is_wrong_along_a_value_that_recording_looks_past(name):
    make, use = PAST[name]
    x = np.random.default_rng(0).uniform(0.5, 1.5, (2, 6))
    b = make(Tape().input("x", x.shape))
    output = use(b)
    for derivative in (
        lambda: grad(output, b),
        lambda: jvp(output, b, b.tape.constant(1.0, b.shape)),
        lambda: hvp(output, b, b.tape.constant(1.0, b.shape)),
    ):
        with pytest.raises(ValueError, match=r"theta: expected .* simplified away"):
            derivative()
    # Its numbers are the same as those of an input, and with a copy there is no error.
    free = Tape().input("x", b.shape)
    expected = value_of(grad(use(free), free), x=value_of(b, x=x))
    copy = functions.rematerialise(make(Tape().input("x", x.shape)))
    assert_close(value_of(grad(use(copy), copy), x=x), expected, 1e-12)


@pytest.mark.parametrize(
    "product",
    [
        lambda w, x: (w @ x.T).T,
        lambda w, x: x.T @ (x @ w.T),
        lambda w, x: w.reshape(3, 1).T @ x.T,
        lambda w, x: (w.T @ w).T @ (w.T @ w) @ x.T,
        lambda w, x: (w @ x.T)[:, 0],
        lambda w, x: ((w.T * 2.0).T @ x.T).reshape(2, 1).reshape(1, 2).T * 0.5,
    ],
)
def test_a_derivative_along_an_input_is_never_refused(product):
    arrays = {
        "w": np.linspace(1, 2, 3).reshape(1, 3),
        "x": np.arange(6.0).reshape(2, 3),
    }
    w, x = tape_of(arrays)
    out = product(w, x)
    gradient = value_of(grad(out.sum(), w), **arrays)

    def number_at(w):
        return value_of(product(*tape_of(arrays)).sum(), w=w, x=arrays["x"])

    moves = 1e-6 * np.eye(3).reshape(3, 1, 3)
    differences = [
        (number_at(arrays["w"] + m) - number_at(arrays["w"] - m)) / 2e-6 for m in moves
    ]
    assert_close(gradient.ravel(), np.array(differences), 1e-7)


def test_autodiff_grad_finds_a_value_that_is_looked_past_elsewhere():
    # b * 3 is another result than the loss, and a transpose back is the value itself.
    a = number()
    b = a * 2.0
    b * 3.0
    for _ in range(2):  # grad itself records a product that looks past b
        assert value_of(grad(b * b + a, b), a=3.0) == 2 * 6.0
    # The value is the transpose of b, but the loss reads it by way of b only.
    x = np.arange(6.0).reshape(2, 3)
    value = Tape().input("x", x.shape)
    b = value.T
    assert b.T.index == value.index
    assert value_of(grad((b * b).sum(), b), x=x).tolist() == (2 * x.T).tolist()


@given(seed=seeds)
def test_derivatives_along_a_value_on_the_way_are_right_or_refused(seed):
    rng = np.random.default_rng(seed)
    x = rng.uniform(0.5, 1.5, (4, 4))
    steps = {
        "double": lambda v: v * 2.0,
        "third": lambda v: v / 3.0,
        "transpose": lambda v: v.T,
        "reshape": lambda v: v.reshape(2, 8).reshape(4, 4),
        "wide": lambda v: (v.reshape(2, 8) * 0.5).reshape(4, 4),
        "product": lambda v: v @ v.T,
        "exp": lambda v: functions.exp(v * -0.1),
        "sum": lambda v: v - v.sum(0, keepdims=True).broadcast_to((4, 4)),
    }
    before, after = rng.choice([*steps], (2, 2)), rng.choice([*steps], 3)

    def run(value, names):
        for name in names:
            value = steps[name](value)
        return value

    def loss_of(b):
        return (run(b, after) * run(b, before[1])).sum()

    b = run(Tape().input("x", (4, 4)), before[0])
    # An input is never refused, nor is a copy.
    free = Tape().input("x", (4, 4))
    expected = value_of(grad(loss_of(free), free), x=value_of(b, x=x))
    copy = functions.rematerialise(run(Tape().input("x", (4, 4)), before[0]))
    assert_close(value_of(grad(loss_of(copy), copy), x=x), expected, 1e-9)
    loss = loss_of(b)
    try:
        gradient = grad(loss, b)
    except ValueError as error:
        assert "simplified away" in str(error)
        return
    assert_close(value_of(gradient, x=x), expected, 1e-9)


def test_autodiff_grad_passes_through_rematerialise():
    a = number()
    b = functions.rematerialise(a)
    assert value_of(grad(b * b * a, a), a=2.0) == 3 * 2.0**2


def test_autodiff_grad_of_a_slice_is_zero_elsewhere():
    theta = Tape().input("theta", (5,))
    gradient = grad((theta[2:4] * 3.0).sum(), theta)
    assert value_of(gradient, theta=np.ones(5)).tolist() == [0, 0, 3, 3, 0]


def test_autodiff_grad_of_overlapping_slices_adds():
    theta = Tape().input("theta", (5,))
    loss = (theta[0:3] * 2.0).sum() + (theta[2:5] * 3.0).sum() + theta[1:2].sum()
    gradient = value_of(grad(loss, theta), theta=np.zeros(5))
    assert gradient.tolist() == [2, 3, 5, 3, 3]


def test_autodiff_more_slices_may_overlap_than_python_nests_calls():
    size = 1200  # Python stops at a depth of 1000
    theta = Tape().input("theta", (size,))
    loss = theta[:1].sum() * 1.0
    for end in range(2, size + 1):
        loss = loss + (theta[:end] * float(end)).sum()
    gradient = value_of(grad(loss, theta), theta=np.zeros(size))
    numbers = np.arange(1, size + 1)
    assert gradient.tolist() == np.cumsum(numbers[::-1])[::-1].tolist()


@every_backend
def test_autodiff_jvp_is_the_hand_computed_one(backend):
    # f = tanh(a b): df along (2, 3) at (0, 5) is b da = 10, tanh' being 1 there.
    a, b = two_numbers()
    slope = jvp(tm.tanh(a * b), a, a.tape.constant(2.0))
    assert value_of(slope, backend, a=0.0, b=5.0) == 10.0


def two_numbers():
    tape = Tape()
    return tape.input("a", ()), tape.input("b", ())


def test_autodiff_jvp_of_theta_itself_is_the_tangent():
    a, v = two_numbers()
    assert jvp(a, a, v).index == v.index


def test_autodiff_jvp_is_zero_where_theta_is_not_reached():
    a, b = two_numbers()
    assert value_of(jvp(b * b, a, b), a=1.0, b=5.0) == 0.0


def test_autodiff_jvp_keeps_nested_derivatives_apart():
    # The derivative of x d/dy(x + y) by x is 1. Perturbation confusion gives 2.
    x, y = two_numbers()
    one = x.tape.constant(1.0)
    inner = jvp(x + y, y, one)
    assert value_of(jvp(x * inner, x, one), a=3.0, b=5.0) == 1.0


@every_backend
def test_autodiff_hvp_is_the_hand_computed_one(backend):
    # f = x^3 + x y: H = [[6x, 1], [1, 0]].
    theta = Tape().input("theta", (2,))
    v = theta.tape.input("v", (2,))
    x, y = theta[0:1], theta[1:2]
    product = hvp((x * x * x + x * y).sum(), theta, v)
    result = value_of(product, backend, theta=np.array([2.0, 9.0]), v=np.array([1, 10]))
    assert result.tolist() == [12 + 10, 1]


def test_autodiff_hvp_of_a_linear_loss_is_zero():
    theta = Tape().input("theta", (3,))
    product = hvp((theta * 2.0).sum(), theta, theta)
    assert value_of(product, theta=np.ones(3)).tolist() == [0] * 3


def test_autodiff_hvp_of_a_relu_is_zero_although_its_gradient_is_not():
    theta = Tape().input("theta", (3,))
    product = hvp(tm.relu(theta).sum(), theta, theta)
    assert value_of(product, theta=np.array([1.0, -1.0, 2.0])).tolist() == [0] * 3


def test_autodiff_hvp_records_no_second_gradient():
    theta = Tape().input("theta", (3,))
    loss = tm.tanh(theta * theta).sum()
    hvp(loss, theta, theta)
    before = len(theta.tape.nodes)
    grad(loss, theta)
    assert len(theta.tape.nodes) == before


# --- a tiny net, whose Hessian can be written out -------------------------------------

NETWORK = tm.MLP([2, 3, 2], activation="tanh")


def net_loss(theta, x, y):
    return tm.cross_entropy(NETWORK(theta, x), y)


class TinyNet:
    """A loss on a tape, at random numbers; products with its Hessian."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.tape = Tape()
        self.inputs = {
            "theta": NETWORK.init(rng, "float64"),
            "x": rng.standard_normal((5, 2)),
            "y": np.eye(2)[rng.integers(0, 2, 5)],
        }
        self.rng = rng
        self.theta, *data = [
            self.tape.input(name, a.shape) for name, a in self.inputs.items()
        ]
        self.loss = net_loss(self.theta, *data)
        self.v = self.tape.input("v", self.theta.shape)
        self.tape.output("hvp", hvp(self.loss, self.theta, self.v))
        self.tape.output(
            "reverse", grad((grad(self.loss, self.theta) * self.v).sum(), self.theta)
        )

    def products(self, v, backend="numpy"):
        results = run_tape(self.tape, {**self.inputs, "v": v}, backend)
        return {name: array[0] for name, array in results.items()}

    def vector(self):
        return self.rng.standard_normal(NETWORK.size)

    def dense_hessian(self, backend="numpy"):
        """Row by row in reverse over reverse: the gradient of each gradient element."""
        units = np.eye(NETWORK.size)
        return np.array([self.products(unit, backend)["reverse"] for unit in units])


@every_backend
@pytest.mark.parametrize("seed", [0, 1])
def test_autodiff_hvp_is_the_dense_hessian_times_v(backend, seed):
    net = TinyNet(seed)
    v = net.vector()
    hessian = net.dense_hessian()
    assert np.linalg.matrix_rank(hessian) > 2
    assert_close(net.products(v, backend)["hvp"], hessian @ v, 1e-13)
    assert_close(hessian, hessian.T, 1e-13)


@every_backend
@given(seed=seeds)
def test_autodiff_hvp_is_the_gradient_of_the_gradient_along_v(backend, seed):
    net = TinyNet(seed)
    products = net.products(net.vector(), backend)
    assert_close(products["hvp"], products["reverse"], 1e-12)


@given(seed=seeds, a=st.floats(-2, 2), b=st.floats(0.5, 2))
def test_autodiff_hvp_is_linear_in_v(seed, a, b):
    net = TinyNet(seed)
    v, u = net.vector(), net.vector()
    hv, hu, both = (net.products(w)["hvp"] for w in (v, u, a * v + b * u))
    size = abs(a) * np.linalg.norm(hv) + b * np.linalg.norm(hu)
    assert_close(both, a * hv + b * hu, 1e-13, floor=size)


@given(seed=seeds)
def test_autodiff_hvp_is_symmetric(seed):
    net = TinyNet(seed)
    v, u = net.vector(), net.vector()
    hv, hu = net.products(v)["hvp"], net.products(u)["hvp"]
    size = np.linalg.norm(u) * np.linalg.norm(hv)
    assert_close([u @ hv], [v @ hu], 1e-13, floor=size)


# --- sums of contributions ------------------------------------------------------------


@given(
    size=st.integers(1, 9),
    windows=st.lists(st.tuples(st.integers(0, 8), st.integers(1, 9)), max_size=5),
    whole=st.booleans(),
    seed=seeds,
)
def test_accumulate_cotangents_sums_pads_wherever_they_lie(size, windows, whole, seed):
    rng = np.random.default_rng(seed)
    tape, parts, inputs, expected = Tape(), [], {}, np.zeros(size)
    for i, (start, length) in enumerate(windows):
        start, length = start % size, 1 + length % (size - start % size)
        inputs[f"x{i}"] = rng.standard_normal(length)
        vector = tape.input(f"x{i}", (length,))
        parts.append(tape.record("pad", vector, start=start, size=size))
        expected[start : start + length] += inputs[f"x{i}"]
    if whole or not parts:
        parts.insert(len(parts) // 2, tape.input("whole", (size,)))
        inputs["whole"] = rng.standard_normal(size)
        expected += inputs["whole"]
    total = value_of(accumulate_cotangents(tape, parts), **inputs)
    assert_close(total, expected, 1e-14, floor=1.0)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=6))
def test_accumulate_cotangents_counts_equal_contributions(which):
    rng, tape = np.random.default_rng(0), Tape()
    arrays = {name: rng.standard_normal((4, 3)) for name in "abc"}
    values = [tape.input(name, array.shape) for name, array in arrays.items()]
    total = accumulate_cotangents(tape, [values[i] for i in which])
    expected = sum(arrays["abc"[i]] for i in which)
    assert_close(value_of(total, **arrays), expected, 1e-14)


# --- refusals -------------------------------------------------------------------------


def test_grad_refuses_a_loss_that_is_not_one_number():
    theta = Tape().input("theta", (3,))
    with pytest.raises(ValueError, match=r"loss: expected one number .*\(3,\)"):
        grad(theta, theta)


def test_grad_refuses_a_theta_of_another_tape():
    theta, other = Tape().input("theta", (3,)), Tape().input("theta", (3,))
    with pytest.raises(ValueError, match="another tape"):
        grad(theta.sum(), other)


def test_jvp_refuses_a_tangent_of_another_shape():
    theta = Tape().input("theta", (3,))
    with pytest.raises(ValueError, match=r"v: expected the shape of theta, \(3,\)"):
        jvp(theta, theta, theta[0:2])


def test_jvp_refuses_a_tangent_of_another_tape():
    theta, v = Tape().input("theta", (3,)), Tape().input("v", (3,))
    for output in (theta * theta, theta):
        with pytest.raises(ValueError, match="another tape"):
            jvp(output, theta, v)
