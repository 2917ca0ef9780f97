"""CAVIA: a context vector that adapts from 0, and weights that the outer loop learns.

    z_0 = 0,   z_{j+1} = z_j - alpha dS(z_j, w) / dz,   v_0 = dQ(z_J, w) / dw

theta holds the context z and the weights w. The difference from the paper's context
vector (`context_vector.py`): z starts from 0 in every task and is not learned. Its
numbers in theta are never read, and their meta-gradient is 0.

What z adds to a linear layer is the same for all examples. Batch normalisation behind
that layer subtracts it again, and z does not move.

    alpha = network.vector(0.0, **{"context1.z": 0.5})
    cavia = CAVIA(loss, alpha)

Source: Zintgraf, Shiarlis, Kurin, Hofmann, Whiteson, Fast context adaptation via
meta-learning, ICML 2019, arXiv:1810.03642, section 3.
"""

from tinymaml.autodiff.functions import where
from tinymaml.autodiff.tape import Value
from tinymaml.checks import check_that
from tinymaml.variants.anil import ANIL


class CAVIA(ANIL):
    """ANIL that adapts from 0 what it adapts, and learns the rest.

    alpha: one inner learning rate for each parameter (P,): that of z, and 0 for all
        weights; with one number a call raises ValueError.

    The other arguments are those of `ANIL`.

    >>> import numpy as np
    >>> def loss(theta, x, y):                        # f(x) = w x + z, theta = (z, w)
    ...     error = theta[1] * x + theta[0] - y
    ...     return (error * error).mean()
    >>> one = np.ones((1, 1, 1))                      # one task, one example: x = y = 1
    >>> cavia = CAVIA(loss, np.array([0.25, 0]), backend="numpy")
    >>> theta = np.array([9.0, 0.0])                  # the 9 is not read
    >>> cavia.adapt(theta, one, one)                  # z = 2 alpha (1 - w)
    array([[[0. , 0. ],
            [0.5, 0. ]]])
    >>> cavia.meta_gradient(theta, (one, one, one, one)).gradient
    array([ 0. , -0.5])
    >>> # 2 (w + z - 1) = -1 times the derivative of w + z in w, 1 - 2 alpha = 1/2.
    """

    def record_start(self, theta: Value, alpha: Value) -> tuple[Value, Value]:
        """theta with 0 for z, so that no derivative leads to its z; and alpha."""
        expected = f"a vector {theta.shape} that is 0 for the weights"
        check_that(alpha.shape, "alpha", expected, "one number")
        theta, alpha = super().record_start(theta, alpha)
        # [cavia]
        return where(alpha * alpha, 0.0, theta), alpha
        # [/cavia]
