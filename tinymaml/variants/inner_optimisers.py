"""Inner loops with momentum or Adam, differentiated through.

    m_{j+1} = mu m_j + grad S(theta_j),   theta_{j+1} = theta_j - alpha m_{j+1}

and Adam in the same way. Every task starts from moments of 0. The state of the inner
loop is (theta_j, moments), and `grad` follows theta_0 through both, so the meta-gradient
is exact.

Adam here divides by sqrt(v + epsilon^2) and not by sqrt(v) + epsilon: the slope of a
root is infinite at v = 0, where a parameter whose gradient has always been 0 (behind a
relu that is shut) would have the meta-gradient infinity times 0.

Source of Adam: Kingma and Ba, ICLR 2015, arXiv:1412.6980, algorithm 1.
"""

from collections.abc import Callable
from typing import Any, ClassVar

from tinymaml.autodiff.functions import rsqrt
from tinymaml.autodiff.tape import Value
from tinymaml.checks import check_that, real_number
from tinymaml.maml import Examples, Loss
from tinymaml.variants.unrolled import Unrolled

Settings = dict[str, Callable[[Any], Any]]


def _decay(name: str) -> Callable[[Any], float]:
    """The check of a decay rate of that name, a number in [0, 1)."""

    def check(value: Any) -> float:
        fits = 0 <= real_number(name, value) < 1
        check_that(fits, name, "a number in [0, 1)", value)
        return float(value)

    return check


def _positive(epsilon: Any) -> float:
    fits = 1e-15 <= real_number("epsilon", epsilon) < 1
    check_that(fits, "epsilon", "a number in [1e-15, 1)", epsilon)
    return float(epsilon)


class InnerMomentum(Unrolled):
    """MAML whose inner steps have momentum.

    momentum: mu, in [0, 1); 0 is MAML.

    The rest as in `MAML`, by name; `recompute` is refused.

    >>> import numpy as np
    >>> one = np.ones((1, 1, 1))
    >>> maml = InnerMomentum(
    ...     lambda theta, x, y: (theta * x).mean(),       # its gradient is 1 everywhere
    ...     momentum=0.5,
    ...     alpha=0.1,
    ...     backend="numpy",
    ... )
    >>> maml.adapt(np.ones(1), one, one, steps=3).round(3).ravel()
    array([1.   , 0.9  , 0.75 , 0.575])
    """

    own_settings: ClassVar[Settings] = {
        **Unrolled.own_settings,
        "momentum": _decay("momentum"),
    }

    def __init__(self, loss: Loss, momentum: float = 0.9, **options: Any) -> None:
        self.momentum = momentum
        super().__init__(loss, **options)

    def record_inner_loop(
        self, theta: Value, support: Examples, alpha: Value, steps: int
    ) -> list[Value]:
        """[theta_0, ..., theta_J], each (P,)."""
        thetas, m = [theta], theta.tape.constant(0.0, theta.shape)
        for _ in range(steps):
            support_loss = self.loss(thetas[-1], *support)
            # [inner-momentum]
            m = self.momentum * m + self.support_gradient(support_loss, thetas[-1])
            thetas.append(thetas[-1] - alpha * m)
            # [/inner-momentum]
        return thetas


class InnerAdam(Unrolled):
    """MAML whose inner steps are those of Adam.

    beta1, beta2: decay rates of the moments, in [0, 1).
    epsilon: positive. A gradient much smaller than this hardly moves its parameter.

    The rest as in `MAML`, by name; `recompute` is refused.

    >>> import numpy as np
    >>> one = np.ones((1, 1, 1))
    >>> maml = InnerAdam(
    ...     lambda theta, x, y: 5 * (theta * x).mean(), alpha=0.1, backend="numpy"
    ... )
    >>> maml.adapt(np.ones(1), one, one, steps=2).round(3).ravel()
    array([1. , 0.9, 0.8])
    """

    own_settings: ClassVar[Settings] = {
        **Unrolled.own_settings,
        "beta1": _decay("beta1"),
        "beta2": _decay("beta2"),
        "epsilon": _positive,
    }

    def __init__(
        self,
        loss: Loss,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-4,
        **options: Any,
    ) -> None:
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon
        super().__init__(loss, **options)

    def record_inner_loop(
        self, theta: Value, support: Examples, alpha: Value, steps: int
    ) -> list[Value]:
        """[theta_0, ..., theta_J], each (P,)."""
        thetas, m = [theta], theta.tape.constant(0.0, theta.shape)
        v, b1, b2 = m, self.beta1, self.beta2
        for t in range(1, steps + 1):
            g = self.support_gradient(self.loss(thetas[-1], *support), thetas[-1])
            # [inner-adam]
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            m_hat, v_hat = m * (1 / (1 - b1**t)), v * (1 / (1 - b2**t))
            thetas.append(thetas[-1] - alpha * m_hat * rsqrt(v_hat + self.epsilon**2))
            # [/inner-adam]
        return thetas
