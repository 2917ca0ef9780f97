"""A query loss after every inner step, not only after the last.

The objective is the weighted sum  sum_j w_j Q(theta_j)  for j = 1 .. J. It differs from
`maml.meta_gradient` in one line: each theta_j has a query gradient of its own, which
joins the cotangent when the recursion arrives there.

Source: Antoniou, Edwards, Storkey, How to train your MAML, ICLR 2019, arXiv:1810.09502,
section 4 (multi-step loss optimization).
"""

from collections.abc import Sequence

from tinymaml.autodiff.derivatives import grad, hvp
from tinymaml.autodiff.functions import rematerialise
from tinymaml.autodiff.tape import Value
from tinymaml.maml import Examples, Loss


def multi_step_meta_gradient(
    loss: Loss,
    thetas: list[Value],
    support: Examples,
    query: Examples,
    alpha: Value,
    weights: Sequence[float],
    order: int = 2,
    query_loss: Loss | None = None,
    recompute: bool = False,
) -> tuple[Value, list[Value]]:
    """The weighted query loss (), and the cotangents [v_0, ..., v_J], each (P,).

    weights: w_1 .. w_J, one for each inner step. The rest is as in `meta_gradient`, but
    first-order cotangents are sums: v_j of the weighted query gradients from step j on.
    """
    query_loss = query_loss or loss
    steps = len(thetas) - 1
    objective = query_loss(thetas[-1], *query) * (weights[-1] if steps else 1.0)
    v = grad(objective, thetas[-1])
    cotangents = [v]
    for j in reversed(range(steps)):
        theta_j = thetas[j]
        if order == 2:
            if recompute:
                theta_j = rematerialise(theta_j)
            v = v - hvp(loss(theta_j, *support), theta_j, alpha * v)
        if j > 0 and weights[j - 1] != 0:  # w_j belongs to theta_j, j = 1 .. J
            loss_j = query_loss(thetas[j], *query) * weights[j - 1]
            objective = objective + loss_j
            v = v + grad(loss_j, thetas[j])
        cotangents.append(v)
    return objective, cotangents[::-1]
