"""ProtoMAML: the last layer starts from the means of the classes.

The features of all layers but the last, f(x), have a mean for each class of a task, its
prototype c_k. The last layer of the network starts from

    w_k = 2 c_k,   b_k = -|c_k|^2

so that its logits are -|f(x) - c_k|^2, apart from |f(x)|^2, which is the same for every
class and therefore changes no probability. Without inner steps this is a prototypical
network. The difference from `maml.py` is this start, through which the meta-gradient
passes as well, also with order=1. The last layer's own numbers in theta are never read,
and their meta-gradient is 0. A few lines are for checks of network and labels.

Sources: Triantafillou et al., Meta-Dataset: a dataset of datasets for learning to learn
from few examples, ICLR 2020, arXiv:1903.03096; Snell, Swersky, Zemel,
Prototypical networks for few-shot learning, NeurIPS 2017, arXiv:1703.05175, sections
2.2 and 2.4.
"""

from typing import Any

from tinymaml.autodiff.functions import concatenate
from tinymaml.autodiff.tape import Value
from tinymaml.checks import check_that, shown
from tinymaml.maml import Examples
from tinymaml.networks.layers import Linear, Network
from tinymaml.variants.unrolled import Unrolled


class ProtoMAML(Unrolled):
    """MAML whose last layer starts from prototypes.

    network: the classifier of the loss, whose last layer is `Linear` (F, N ways).

    The other arguments are those of `MAML`, but `recompute` is refused. With steps=0 it
    is a prototypical network. The labels y of a task are one-hot, and each class has a
    support example: else its prototype is not a number.

    Raises ValueError for another last layer, or for labels of another number of ways.

    >>> import numpy as np
    >>> from tinymaml.losses import cross_entropy
    >>> network = Network([Linear(1, 1), Linear(1, 2)])
    >>> def loss(theta, x, y):
    ...     return cross_entropy(network(theta, x), y)
    >>> theta = np.array([1.0, 0, 0, 0, 0, 0])        # features x + 0, so c = 1, 3
    >>> x, y = np.array([[[1.0], [3.0]]]), np.eye(2)[None]
    >>> proto = ProtoMAML(loss, network=network, backend="numpy")
    >>> proto.adapt(theta, x, y, steps=0)             # then weights 2 c, biases -c^2
    array([[[ 1.,  0.,  2.,  6., -1., -9.]]])
    """

    own_settings = Unrolled.own_settings | {"network": lambda n: check_last_layer(n)}

    def __init__(self, *settings: Any, network: Network, **options: Any) -> None:
        self.network = network
        super().__init__(*settings, **options)

    def record_inner_loop(
        self, theta: Value, support: Examples, alpha: Value, steps: int
    ) -> list[Value]:
        """[theta_0, ..., theta_J], where theta_0 has the last layer from prototypes."""
        x, y = support
        *body, (last, _) = self.network.unpack(theta)
        features, ways = last.shapes["weight"]
        fits, expected = y.shape == (x.shape[0], ways), f"shape {x.shape[0], ways}"
        check_that(fits, "y_support", expected, y.shape)
        # [proto-maml]
        for layer, parameters in body:
            x = layer(parameters, x)
        c = y.T @ x / y.sum(0).reshape(-1, 1)  # (ways, features)
        w, b = 2 * c.T, -(c * c).sum(1)
        # [/proto-maml]
        body_theta = theta[: theta.size - (features + 1) * ways]
        theta_0 = concatenate([body_theta, w.reshape(-1), b])
        return super().record_inner_loop(theta_0, support, alpha, steps)


def check_last_layer(network: Network) -> Network:
    """The network, which must end with a linear layer behind other parameters."""
    shapes = [layer.shapes for layer in getattr(network, "layers", ()) if layer.shapes]
    plain = type(network).__call__ is Network.__call__  # the layers, one by one
    fits = plain and len(shapes) > 1 and isinstance(network.layers[-1], Linear)
    expected = "a Network with parameters before a last layer Linear"
    check_that(fits, "network", expected, shown(network))
    return network
