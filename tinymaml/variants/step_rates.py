"""Learned rates per layer and per step, of MAML++.

    theta_{j+1} = theta_j - alpha_{j,l} grad S(theta_j) in layer l, alpha learned

The outer loop learns theta and J rates for each of L layers: a vector of P + J L
numbers, theta first, then the rates of step 0, of step 1, and so on.

Half of the file is the layout of this vector, which `start` makes and `record_start`
splits.

Source: Antoniou, Edwards, Storkey, How to train your MAML, ICLR 2019, arXiv:1810.09502
(learning per-layer per-step learning rates and gradient directions).
"""

from functools import partial
from typing import Any

import numpy as np

from tinymaml.autodiff.functions import concatenate
from tinymaml.autodiff.tape import Value
from tinymaml.checks import Array, check_that, check_theta, whole_number, whole_numbers
from tinymaml.maml import Loss
from tinymaml.networks.layers import Network
from tinymaml.variants.unrolled import Moments, Unrolled


class StepRates(Unrolled):
    """MAML with learned rates: theta is (theta, alpha), of shape (P + J L,).

    network: the network of the loss, which has L layers with parameters.
    alpha: where all rates start, one number; see `start`. Afterwards the rates are
        those in theta, whatever alpha is set to.

    The rest as in `MAML`, by name; `recompute` and steps=0 are refused. Steps after the
    J of meta-training take the rates of the last. Raises ValueError for a theta of
    another size, or for what is no `Network`.

    >>> from tinymaml.losses import squared_error
    >>> from tinymaml.networks.layers import MLP
    >>> network = MLP([1, 2, 1])                      # P = 7, L = 2
    >>> rates = StepRates(
    ...     lambda theta, x, y: squared_error(network(theta, x), y),
    ...     network,
    ...     alpha=0.5,
    ...     steps=3,
    ... )
    >>> rates.start(np.zeros(7))[7:]
    array([0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
    """

    own_settings = Unrolled.own_settings | {
        "layers": partial(whole_numbers, "layers"),
        "steps": partial(whole_number, "steps"),
    }

    def __init__(
        self, loss: Loss, network: Network, alpha: float = 0.01, **options: Any
    ) -> None:
        check_that(isinstance(network, Network), "network", "a Network", type(network))
        self.layers = tuple(s.stop - s.start for s in network.layer_slices().values())
        super().__init__(loss, alpha, **options)

    def start(self, theta: Array) -> Array:
        """(theta, alpha), (P + J L,), where the outer loop starts from theta (P,)."""
        check_theta(theta, sum(self.layers))
        came = f"shape {self.alpha.shape}"
        check_that(self.alpha.ndim == 0, "alpha", "one number", came)
        rates = np.full(self.steps * len(self.layers), self.alpha, theta.dtype)
        return np.r_[theta, rates]

    def record_start(self, theta: Value, alpha: Value) -> tuple[Value, Value]:
        """theta_0 (P,) and the learned alpha (J L,), from both end to end."""
        count, rates = sum(self.layers), self.steps * len(self.layers)
        fits = theta.size == count + rates
        check_that(fits, "theta", f"(theta, alpha), {count} + {rates}", theta.size)
        return theta[:count], theta[count:]

    def record_inner_step(
        self, j: int, gradient: Value, alpha: Value, moments: Moments
    ) -> tuple[Value, Moments]:
        """The step of each layer, by its own rate in step j."""
        # [step-rates]
        first = min(j, self.steps - 1) * len(self.layers)
        rates = [
            alpha[first + layer].broadcast_to((size,))
            for layer, size in enumerate(self.layers)
        ]
        return concatenate(rates) * gradient, moments
        # [/step-rates]
