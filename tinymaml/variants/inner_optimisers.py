"""Inner loops with momentum or Adam, differentiated through.

    m_{j+1} = mu m_j + grad S(theta_j),   theta_{j+1} = theta_j - alpha m_{j+1}

and Adam in the same way. Every task starts from moments of 0. The state of the inner
loop is (theta_j, moments), and `grad` follows theta_0 through both, so the
meta-gradient is exact.

Adam here divides by sqrt(s + epsilon^2) and not by sqrt(s) + epsilon, where s is the
second moment: the slope of a root is infinite at s = 0, where a parameter whose
gradient has always been 0 (behind a relu whose input is negative) would have the
meta-gradient infinity times 0.

Two methods are in this file, each of about 20 lines.

Source of Adam: Kingma and Ba, ICLR 2015, arXiv:1412.6980, algorithm 1.
"""

from functools import partial
from typing import Any

from tinymaml.autodiff.functions import rsqrt
from tinymaml.autodiff.tape import Value
from tinymaml.checks import number_in
from tinymaml.variants.unrolled import Moments, Unrolled

TINY = 1e-12  # A derivative divides by its third power, which is no 0 in float32.


class InnerMomentum(Unrolled):
    """MAML whose inner steps have momentum.

    momentum: mu, in [0, 1); 0 is MAML.

    The rest as in `MAML`; `recompute` is refused.

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

    own_settings = Unrolled.own_settings | {
        "momentum": partial(number_in, "momentum", low=0, high=1)
    }

    def __init__(self, *settings: Any, momentum: float = 0.9, **options: Any) -> None:
        self.momentum = momentum
        super().__init__(*settings, **options)

    def record_inner_step(
        self, j: int, gradient: Value, alpha: Value, moments: Moments
    ) -> tuple[Value, Moments]:
        """alpha m_{j+1}, and m_{j+1}."""
        # [inner-momentum]
        m = self.momentum * moments[0] + gradient
        return alpha * m, (m, m)
        # [/inner-momentum]


class InnerAdam(Unrolled):
    """MAML whose inner steps are those of Adam.

    beta1, beta2: decay rates of the moments, in [0, 1).
    epsilon: at least 1e-12 and below 1. A gradient much smaller than this hardly moves
        its parameter.

    The rest as in `MAML`; `recompute` is refused.

    >>> import numpy as np
    >>> one = np.ones((1, 1, 1))
    >>> maml = InnerAdam(
    ...     lambda theta, x, y: 5 * (theta * x).mean(), alpha=0.1, backend="numpy"
    ... )
    >>> maml.adapt(np.ones(1), one, one, steps=2).round(3).ravel()
    array([1. , 0.9, 0.8])
    """

    own_settings = Unrolled.own_settings | {
        "beta1": partial(number_in, "beta1", low=0, high=1),
        "beta2": partial(number_in, "beta2", low=0, high=1),
        "epsilon": partial(number_in, "epsilon", low=TINY, high=1),
    }

    def __init__(
        self,
        *settings: Any,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-4,
        **options: Any,
    ) -> None:
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon
        super().__init__(*settings, **options)

    def record_inner_step(
        self, j: int, gradient: Value, alpha: Value, moments: Moments
    ) -> tuple[Value, Moments]:
        """A step of Adam, and its two moments."""
        b1, b2 = self.beta1, self.beta2
        # [inner-adam]
        m = b1 * moments[0] + (1 - b1) * gradient
        s = b2 * moments[1] + (1 - b2) * gradient * gradient
        unbiased = m / (1 - b1 ** (j + 1)), s / (1 - b2 ** (j + 1))
        step = alpha * unbiased[0] * rsqrt(unbiased[1] + self.epsilon**2)
        # [/inner-adam]
        return step, (m, s)
