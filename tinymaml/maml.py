"""Model-agnostic meta-learning: section 2.2 of the paper, and nothing else.

A task gives a few support examples to learn from and query examples to evaluate on.
MAML looks for an initialisation theta from which J gradient steps on the support loss S
lead to parameters with a small query loss Q:

    theta_0 = theta,   theta_{j+1} = theta_j - alpha grad S(theta_j)      inner loop
    meta-gradient = d Q(theta_J) / d theta_0                              equation (1)

Backpropagation through the inner loop is the chain rule, one factor for each step. The
Jacobian of theta_{j+1} with respect to theta_j is I - alpha H_j, where H_j is the
Hessian of S at theta_j. Backpropagation multiplies by its transpose I - H_j alpha (H_j
is symmetric; a vector alpha stands for a diagonal matrix), from the last step to the
first:

    v_J = grad Q(theta_J),   v_j = (I - H_j alpha) v_{j+1},   meta-gradient = v_0

No Hessian is formed: `hvp` gives the vector H_j (alpha v). An inner step and its
Hessian-vector product together cost about three gradients. First-order MAML (FOMAML)
leaves the Hessians out and takes v_J for v_0.

`grad(objective, thetas[0])` would give the same numbers. The recursion is written out
because it shows what MAML does, because first-order MAML is the same without one
line, and because the activations of a step can be computed a second time instead of
being stored.

Both functions record operations on a tape and compute nothing. They are written for one
task; a backend runs the tape for all tasks of a batch, and `learner.py` wraps them in
the class `MAML`. The outer step theta <- theta - beta v_0 is the optimiser's. The lines
`# [maml-...]` mark what the documentation quotes beside its equations.
"""

from collections.abc import Callable

from tinymaml.autodiff.derivatives import grad, hvp
from tinymaml.autodiff.functions import rematerialise
from tinymaml.autodiff.tape import Value

Loss = Callable[[Value, Value, Value], Value]  # (theta, x, y) -> one number
Examples = tuple[Value, Value]  # x and y, one row for each example


# [maml-inner-update]
def inner_loop(
    loss: Loss, theta: Value, support: Examples, alpha: Value, steps: int
) -> list[Value]:
    """The adapted parameters [theta_0, ..., theta_J], each (P,), after J = `steps`.

    theta: (P,). support: x (N, ...) and y (N, ...) of N examples. alpha, the inner
    learning rate (step size): one number () or one for each parameter (P,); 0 means
    that a parameter is not adapted.
    """
    thetas = [theta]
    for _ in range(steps):
        theta_j = thetas[-1]
        # One step of gradient descent on the support loss: theta' in the paper.
        thetas.append(theta_j - alpha * grad(loss(theta_j, *support), theta_j))
    return thetas


# [/maml-inner-update]


def meta_gradient(
    loss: Loss,
    thetas: list[Value],
    support: Examples,
    query: Examples,
    alpha: Value,
    order: int = 2,
    query_loss: Loss | None = None,
    recompute: bool = False,
) -> tuple[Value, list[Value]]:
    """The query loss (), and the cotangents [v_0, ..., v_J], each (P,).

    thetas: the J + 1 parameter vectors of `inner_loop`, each (P,). v_0 is the
    meta-gradient and v_J the first-order one. support, query, alpha: as in
    `inner_loop`. order: 2 is exact; 1 is first-order MAML, where all cotangents are
    v_J. query_loss: the loss Q, if it is another function than S. recompute: compute
    the activations of each inner step a second time during backpropagation, instead of
    storing them.
    """
    # [maml-eq1]
    # [maml-meta-objective]
    # The objective is the loss on the query examples, after the last inner step.
    objective = (query_loss or loss)(thetas[-1], *query)
    # [/maml-meta-objective]
    # Backpropagation starts at the end of the inner loop. FOMAML leaves v as it is.
    v = grad(objective, thetas[-1])
    cotangents = [v]
    for theta_j in reversed(thetas[:-1]):
        if order == 2:
            if recompute:  # a copy, under which the tape finds no stored activations
                theta_j = rematerialise(theta_j)
            # The chain rule through one inner step: v <- (I - H_j alpha) v. Without
            # `recompute`, `hvp` finds the gradient that `inner_loop` has recorded.
            v = v - hvp(loss(theta_j, *support), theta_j, alpha * v)
        cotangents.append(v)
    # [/maml-eq1]
    return objective, cotangents[::-1]
