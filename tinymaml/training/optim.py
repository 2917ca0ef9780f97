"""SGD and Adam, by hand, on one flat parameter vector, and learning-rate schedules.

With this file one takes the outer step of MAML: equation (1) of the paper is `SGD` on
the meta-gradient; the authors' experiments use `Adam` instead. The outer learning rate,
beta in the paper, is `learning_rate` here, because Adam has two betas of its own. It
is a number, or one of the schedules `constant`, `step` and `cosine`: a function of the
iteration.

Left out: parameter groups and weight decay, which no experiment of the paper uses. The
inner loop has no optimiser object: it is part of the tape (`maml.py`).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinymaml.checks import check_arrays, check_that, number_in, whole_number

# The smallest normal float32: smaller settings are imprecise there, or count as 0.
TINY = float(np.finfo(np.float32).tiny)


# --- schedules ------------------------------------------------------------------------


@dataclass(frozen=True)
class Schedule:
    """A learning rate that is a function of the iteration, counted from 1.

    name: of the rule, a key of `RULES`. numbers: its arguments. Both are saved with a
    training, and a resumed one must have the same.
    """

    name: str
    numbers: tuple[float, ...]

    def __call__(self, iteration: int) -> float:
        """The learning rate of this iteration."""
        return RULES[self.name](iteration, *self.numbers)

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{number!r}' for number in self.numbers)})"


def constant(learning_rate: float) -> Schedule:
    """The same learning rate in every iteration. Raises ValueError unless positive.

    >>> rule = constant(0.001)
    >>> rule, rule(1), rule(60_000)
    (constant(0.001), 0.001, 0.001)
    """
    return Schedule("constant", (_positive("learning_rate", learning_rate),))


def step(learning_rate: float, every: int, factor: float = 0.1) -> Schedule:
    """Multiplied by `factor`, in (0, 1], after each `every` iterations.

    >>> [step(0.8, every=2, factor=0.5)(iteration) for iteration in range(1, 6)]
    [0.8, 0.8, 0.4, 0.4, 0.2]
    """
    numbers = _positive("learning_rate", learning_rate), whole_number("every", every)
    return Schedule("step", (*numbers, number_in("factor", factor, TINY, 1, "]")))


def cosine(learning_rate: float, iterations: int, last: float = 0.0) -> Schedule:
    """Half a wave: from `learning_rate` down to `last` after `iterations`, then `last`.

    Iteration t has last + (learning_rate - last) (1 + cos(pi (t - 1) / iterations)) / 2
    until then.

    >>> [round(cosine(1.0, 4)(iteration), 3) for iteration in range(1, 7)]
    [1.0, 0.854, 0.5, 0.146, 0.0, 0.0]
    """
    learning_rate = _positive("learning_rate", learning_rate)
    iterations = whole_number("iterations", iterations)
    last = number_in("last", last, 0, learning_rate, "]")
    return Schedule("cosine", (learning_rate, iterations, last))


def _step(iteration: int, learning_rate: float, every: float, factor: float) -> float:
    return learning_rate * factor ** ((iteration - 1) // every)


def _cosine(iteration: int, first: float, iterations: float, last: float) -> float:
    part = min((iteration - 1) / iterations, 1.0)
    return last + (first - last) * (1 + math.cos(math.pi * part)) / 2


RULES: dict[str, Callable[..., float]] = {
    "constant": lambda _, rate: rate,
    "step": _step,
    "cosine": _cosine,
}


# --- optimisers -----------------------------------------------------------------------


class Optimiser:
    """What SGD and Adam share: checks, the count of steps, moments, working memory.

    The training loop also takes any other object with the methods `update`, `state`,
    `load_state` and `config`.
    """

    moment_names: tuple[str, ...] = ()

    def __init__(self, **settings: Any) -> None:
        self._settings = settings
        self._step = 0
        self._moments = [np.zeros(0) for _ in self.moment_names]
        self._scratch = np.zeros(0)

    def update(self, theta: np.ndarray, gradient: np.ndarray) -> None:
        """Take one step downhill: change `theta` in place.

        All steps must have the size and dtype of the first.

        Args:
            theta: parameters, shape (P,), float32 or float64; overwritten.
            gradient: shape (P,), dtype of `theta`. The caller makes sure that it is
                finite, as `train` does: NaN would never leave Adam's moments again.

        Raises:
            FloatingPointError: Adam cannot square the gradient. Nothing is changed.
            ValueError: `theta` and `gradient` (or the moments) do not fit each other.
        """
        if not type(theta) is type(gradient) is np.ndarray:  # the quick answer
            check_arrays(theta=theta, gradient=gradient)
        if not theta.flags.writeable:
            raise ValueError("theta: expected a writable array, got a read-only one")
        fits = theta.shape == gradient.shape == self._scratch.shape
        if not (fits and theta.dtype == gradient.dtype == self._scratch.dtype):
            self._allocate(theta, gradient)
        step = self._step + 1
        self._apply(theta, gradient, step)
        vars(self)["_step"] = step  # without the check of `__setattr__`, every step

    def state(self) -> dict[str, np.ndarray]:
        """Return a copy of the step count and the moments, by name.

        Returns:
            "step", an int64 array of shape (), and each moment, shape (P,) in the dtype
            of theta; moments have shape (0,) before the first step.
        """
        moments = dict(zip(self.moment_names, self._moments, strict=True))
        filled = slice(None if self._step else 0)  # a refused first step leaves memory
        copies = {name: moment[filled].copy() for name, moment in moments.items()}
        return {"step": np.array(self._step, np.int64), **copies}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from `state`, as `state()` returned it; the arrays are copied.

        Raises:
            ValueError: a key is missing or unknown, or an array has the wrong shape,
                dtype or a value that no optimiser reaches. Nothing is changed then.
        """
        names = ["step", *self.moment_names]
        same = sorted(state) == sorted(names)
        check_that(same, "optimiser state", f"the keys {names}", list(state))
        step, *moments = (np.asarray(state[name]) for name in names)
        valid = step.shape == () and step.dtype == np.int64 and 0 <= step < 2**53
        check_that(valid, "optimiser state 'step'", "one int64 >= 0", f"{step!r:.60}")
        for name, moment in zip(self.moment_names, moments, strict=True):
            what, kind, first = f"optimiser state '{name}'", _kind(moment), moments[0]
            _check_vector(what, moment)
            check_that(kind == _kind(first), what, f"{_kind(first)} as before", kind)
            fits = (step == 0) == (moment.size == 0)
            check_that(fits, what, "shape (0,) exactly at step 0", f"{kind}, {step=!s}")
            largest, lowest = np.abs(moment).max(initial=0), moment.min(initial=0)
            check_that(np.isfinite(largest), what, "finite values", largest)
            signed = name != "second_moment"
            check_that(signed or lowest >= 0, what, "values >= 0", lowest)
        self._step = int(step)
        self._moments = [moment.copy() for moment in moments]
        # `update` compares theta with this array, and so refuses another size.
        self._scratch = np.empty_like(moments[0]) if moments else np.zeros(0)

    def config(self) -> dict[str, Any]:
        """Return name and settings, ready for JSON; a resumed run must have both."""
        rate = self._settings.get("learning_rate")
        plain = {"learning_rate": repr(rate)} if isinstance(rate, Schedule) else {}
        return {"name": type(self).__name__, **self._settings, **plain}

    def __getattr__(self, name: str) -> Any:
        settings = self.__dict__.get("_settings", {})
        if name not in settings:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return settings[name]

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("_settings", {}):
            kind = type(self).__name__
            raise AttributeError(
                f"{name}: an optimiser cannot be changed; make a new {kind}, which can "
                "load_state() this one's state()"
            )
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        settings = [f"{key}={value!r}" for key, value in self._settings.items()]
        return f"{type(self).__name__}({', '.join(settings)})"

    def _allocate(self, theta: np.ndarray, gradient: np.ndarray) -> None:
        """Allocate memory at the first step; at a later one say what does not fit."""
        _check_vector("theta", theta)
        kind = _kind(theta)
        same = kind == _kind(gradient)
        check_that(same, "gradient", f"{kind} like theta", _kind(gradient))
        new = self._step == 0 or self._scratch.size == 0
        check_that(new, "theta", f"{_kind(self._scratch)} as in the steps before", kind)
        self._moments = [np.zeros_like(theta) for _ in self.moment_names]
        self._scratch = np.empty_like(theta)

    def _rate(self, t: int) -> float:
        """The learning rate of step number t, counted from 1."""
        rate = self._settings["learning_rate"]
        return rate(t) if isinstance(rate, Schedule) else rate

    def _apply(self, theta: np.ndarray, gradient: np.ndarray, t: int) -> None:
        """Take step number t, counted from 1."""
        raise NotImplementedError


class SGD(Optimiser):
    """Plain gradient descent: theta <- theta - learning_rate * gradient.

    With the meta-gradient this is equation (1) of the paper; learning_rate is its beta.

    Args:
        learning_rate: positive, or a schedule such as `cosine(0.01, 60_000)`.

    Raises:
        ValueError: `learning_rate` is neither a positive finite number nor a schedule.
        TypeError: it is a function, and no schedule.

    >>> theta = np.array([1.0, 2.0])
    >>> SGD(learning_rate=0.5).update(theta, np.array([2.0, -2.0]))
    >>> theta
    array([0., 3.])
    """

    def __init__(self, learning_rate: float | Schedule = 1e-2) -> None:
        super().__init__(learning_rate=_rate_or_schedule(learning_rate))

    def _apply(self, theta: np.ndarray, gradient: np.ndarray, t: int) -> None:
        np.multiply(gradient, self._rate(t), out=self._scratch)
        theta -= self._scratch


class Adam(Optimiser):
    r"""Adam: gradient descent scaled by running moments of the gradient.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \qquad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        \theta_t &= \theta_{t-1} - \eta
            \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t} \frac{m_t}{\sqrt{v_t} + \epsilon}

    Deviation: this is the efficient order given at the end of section 2 of the source,
    with epsilon outside the bias correction, as in the framework of MAML's authors
    (TensorFlow 1). Algorithm 1 of the source has m_hat / (sqrt(v_hat) + epsilon): our
    epsilon acts like its epsilon / sqrt(1 - beta2^t), 32 times epsilon at t = 1.

    Here g_t is the gradient and eta the learning rate, which the source calls alpha (on
    these pages alpha is the inner learning rate). A step makes thirteen passes over P
    numbers (12 us for P = 1761) and allocates no memory.

    Args:
        learning_rate: eta, positive; beta in the paper on MAML. Or a schedule, such as
            `cosine(0.001, 60_000)`.
        beta1: decay rate of the first moment m, in [0, 1).
        beta2: decay rate of the second moment v, in [0, 1).
        epsilon: positive (in float32 too: at least 1.2e-38). It keeps a parameter in
            place whose gradient has always been 0, where the step would be 0 / 0.

    Raises:
        ValueError: an argument is out of its range.
        TypeError: `learning_rate` is a function, and no schedule.

    The first step changes each parameter by `learning_rate`, however large its gradient
    is, unless that is 0:

    >>> theta = np.array([1.0, 2.0, 3.0])
    >>> Adam(learning_rate=0.1).update(theta, np.array([5.0, -0.001, 0.0]))
    >>> theta.round(4)
    array([0.9, 2.1, 3. ])

    Source: Kingma and Ba, Adam: a method for stochastic optimization, ICLR 2015,
    arXiv:1412.6980.
    """

    moment_names = ("first_moment", "second_moment")

    def __init__(
        self,
        learning_rate: float | Schedule = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
    ) -> None:
        super().__init__(
            learning_rate=_rate_or_schedule(learning_rate),
            beta1=number_in("beta1", beta1, 0, 1),
            beta2=number_in("beta2", beta2, 0, 1),
            epsilon=number_in("epsilon", epsilon, TINY, math.inf),
        )

    def _apply(self, theta: np.ndarray, gradient: np.ndarray, t: int) -> None:
        _, beta1, beta2, epsilon = self._settings.values()
        (m, v), scratch = self._moments, self._scratch
        # An infinite v would keep its parameter in place for ever. The sum of squares
        # is the cheapest look at all of them, but it can overflow where none does.
        if not math.isfinite(np.vdot(gradient, gradient)):
            largest = float(np.abs(gradient).max())
            if not largest * largest <= float(np.finfo(gradient.dtype).max):
                raise FloatingPointError(
                    f"Adam: the largest entry of the gradient is {largest:g}, whose "
                    f"square is no finite {gradient.dtype}"
                )

        m *= beta1
        np.multiply(gradient, 1 - beta1, out=scratch)
        m += scratch

        v *= beta2
        np.multiply(gradient, gradient, out=scratch)
        scratch *= 1 - beta2
        v += scratch

        np.sqrt(v, out=scratch)
        scratch += epsilon
        np.divide(m, scratch, out=scratch)
        # The factor is a Python number, so it has 53 bits even if theta is float32.
        scratch *= self._rate(t) * math.sqrt(1 - beta2**t) / (1 - beta1**t)
        theta -= scratch


def _kind(array: np.ndarray) -> str:
    return f"{array.dtype} of shape {array.shape}"


def _check_vector(name: str, array: np.ndarray) -> None:
    flat = array.ndim == 1 and array.dtype in (np.float32, np.float64)
    check_that(flat, name, "a flat float32 or float64 vector", _kind(array))


def _positive(name: str, value: float) -> float:
    return number_in(name, value, TINY, math.inf)


def _rate_or_schedule(value: Any) -> Any:
    if callable(value) and not isinstance(value, Schedule):
        expected = "a number, or a schedule: constant, step or cosine"
        raise TypeError(f"learning_rate: expected {expected}, got {value!r:.60}")
    return value if isinstance(value, Schedule) else _positive("learning_rate", value)
