"""ANIL and BOIL: an inner loop for a part of the network.

    theta_{j+1} = theta_j - alpha grad S(theta_j) on the adapted part; the rest is theta

ANIL (almost no inner loop) adapts the last layer, the head, and BOIL (body only update
in inner loop) all layers but the head. The outer loop learns all of theta in both.

    anil = ANIL(loss, network.alpha(head=0.1))
    boil = ANIL(loss, network.alpha(body=0.1))

What is adapted is where alpha is not 0. `MAML` with this alpha has the same numbers; it
computes gradients that are multiplied by 0. Here they are not recorded. The layers in
front of the adapted part are computed once for all inner steps, since a tape records
equal operations on equal values once, and backpropagation goes through them once.

The file is longer than others here, because a theta of which parts are new must look
like any other theta to a loss: this is `PartlyAdapted`.

Sources: Raghu, Raghu, Bengio, Vinyals, Rapid learning or feature reuse?, ICLR 2020,
arXiv:1909.09157, section 4; Oh, Yoo, Kim, Yun, BOIL: towards representation change for
few-shot learning, ICLR 2021, arXiv:2008.08882.
"""

from itertools import pairwise
from typing import Any

import numpy as np

from tinymaml.autodiff.functions import concatenate
from tinymaml.autodiff.tape import Value
from tinymaml.checks import Array, check_alpha, check_that
from tinymaml.maml import Examples
from tinymaml.variants.unrolled import Unrolled

Part = tuple[int, int]  # start and stop of a piece of theta
MOST = 100  # parts; each is a few operations on the tape of every inner step


def adapted_parts(alpha: Array) -> tuple[Part, ...]:
    """The slices (start, stop) of theta where alpha (P,) is not 0.

    The result for one number is not used: all of theta is adapted then.
    """
    edges = np.flatnonzero(np.diff(np.r_[False, np.atleast_1d(alpha) != 0, False]))
    few = len(edges) <= 2 * MOST
    check_that(few, "alpha", f"at most {MOST} adapted parts", len(edges) // 2)
    return tuple(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


class PartlyAdapted(Value):
    """theta_j, whose parts that are not adapted are slices of theta itself.

    A plain concatenation of old and new parts would have the same numbers, but then all
    layers would depend on what was adapted.
    """

    def __init__(self, theta: Value, parts: dict[Part, Value]) -> None:
        ends = sorted({0, theta.size}.union(*parts))
        pieces = {(a, b): theta[a:b] for a, b in pairwise(ends)} | parts
        joined = concatenate([*pieces.values()])
        super().__init__(joined.tape, joined.index, joined.shape)
        self.theta, self.parts = theta, parts

    def _part(self, axis: int, start: int, stop: int, step: int) -> Value:
        for (first, last), part in self.parts.items():
            if first <= start and stop <= last:
                return part[start - first : stop - first : step]
        if all(stop <= first or last <= start for first, last in self.parts):
            return self.theta[start:stop:step]
        return super()._part(axis, start, stop, step)


class ANIL(Unrolled):
    """MAML that adapts the part of theta where alpha is not 0, and computes no more.

    alpha: one inner learning rate for each parameter (P,), as from `network.alpha`.
        With one number, all parameters are adapted. A copy is kept.

    The rest as in `MAML`, but `recompute`, which is refused. Raises ValueError for an
    alpha that is not 0 in more than 100 pieces of theta, and TypeError where the loss
    itself takes a derivative with respect to theta (`MAML` can).

    >>> from tinymaml.tasks.batch import Tasks
    >>> def loss(theta, x, y):                        # f(x) = w u x, theta = (w, u)
    ...     error = theta[0] * theta[1] * x - y
    ...     return (error * error).mean()
    >>> one = np.ones((1, 1, 1))                      # one task, one example: x = y = 1
    >>> anil = ANIL(loss, np.array([0.0, 0.0625]), backend="numpy")
    >>> anil.adapt(np.array([2.0, 0.0]), one, one)    # u' = u - 2 alpha w (w u - 1)
    array([[[2.  , 0.  ],
            [2.  , 0.25]]])
    >>> anil.meta_gradient(np.array([2.0, 0.0]), Tasks(one, one, one, one)).gradient
    array([-0.5, -1. ])
    >>> # 2 (w u' - 1) = -1 times the derivatives of w u': 4 alpha w, w - 2 alpha w^3.
    """

    own_settings = Unrolled.own_settings | {"adapted": tuple}

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; alpha says what is adapted."""
        if name == "alpha":
            self.adapted = adapted_parts(check_alpha(value))  # it may refuse
        super().__setattr__(name, value)
        if name == "alpha":
            self.alpha.flags.writeable = False  # else it could differ from `adapted`

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.alpha = self.alpha  # NumPy's copies and pickles are writeable

    def record_inner_loop(
        self, theta: Value, support: Examples, alpha: Value, steps: int
    ) -> list[Value]:
        """[theta_0, ..., theta_J]: theta itself, then partly adapted."""
        parts = self.adapted if alpha.shape else ((0, theta.size),)
        rates = {p: alpha[slice(*p)] if alpha.shape else alpha for p in parts}
        adapted = {part: theta[slice(*part)] for part in parts}
        thetas = [theta]
        # [anil]
        for _ in range(steps):
            support_loss = self.loss(PartlyAdapted(theta, adapted), *support)
            adapted = {
                part: values - rates[part] * self.support_gradient(support_loss, values)
                for part, values in adapted.items()
            }
            thetas.append(PartlyAdapted(theta, adapted))
        # [/anil]
        return thetas
