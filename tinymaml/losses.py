"""The paper's losses, equations (2) to (4), recorded on a tape; each is one number.

The supervised losses, equations (2) and (3), compare predictions with targets, both of
shape (N, outputs) for N examples. The paper writes sums over examples, and the authors'
code divides them by a number that differs between experiments. The size of an inner
step depends on this number, so it is an argument, `scaling`. The default is the mean.

The losses of reinforcement learning, equation (4), take log-probabilities of N actions,
their advantages, and weights with which the actions are summed.

Left out: the networks and policies that make the predictions.
"""

from tinymaml.autodiff import functions
from tinymaml.autodiff.tape import Value, check_values
from tinymaml.checks import check_choice, check_that, whole_number


def _scaled(total: Value, examples: int, scaling: str, shots: int | None) -> Value:
    """The sum over examples as it is ("sum"), or divided ("mean", "per_shot")."""
    if scaling == "sum":
        return total
    if scaling == "mean":
        return total / examples
    if shots is None:
        raise ValueError("shots: 'per_shot' needs the number K, got None")
    return total / whole_number("shots", shots)


def _check_shapes(rank: int, **values: Value) -> None:
    """Check that all are Values of one tape and one shape, with so many axes."""
    check_values(**values)
    (first, value), *rest = values.items()
    expected = "shape (N,)" if rank == 1 else "shape (N, outputs)"
    check_that(len(value.shape) == rank, first, expected, value.shape)
    for name, other in rest:
        expected = f"the shape of {first}, {value.shape}"
        check_that(other.shape == value.shape, name, expected, other.shape)


# [maml-eq2]
def squared_error(prediction: Value, y: Value, scaling: str = "mean") -> Value:
    """The squared error ||f(x) - y||^2 over a batch, paper eq. (2).

    prediction, y: (N, outputs). scaling: "sum" is the paper's formula; "mean" is over
    examples and outputs, as in the authors' code.

    Raises ValueError when shapes differ or the scaling is not one of these.

    Of two examples one is predicted as 1 where 0 is right, the other as 2 for 4:

    >>> import numpy as np
    >>> import tinymaml as tm
    >>> f = tm.function(lambda p, y: squared_error(p.reshape(2, 1), y), "numpy")
    >>> f(np.array([1.0, 2.0]), np.array([[0.0], [4.0]]))  # (1 + 4) / 2
    2.5
    """
    _check_shapes(2, prediction=prediction, y=y)
    check_choice("scaling", scaling, ("mean", "sum"))
    difference = prediction - y
    return _scaled((difference * difference).sum(), y.size, scaling, None)


# [/maml-eq2]


# [maml-eq3]
def cross_entropy(
    logits: Value, y: Value, scaling: str = "mean", shots: int | None = None
) -> Value:
    """The cross-entropy - sum y log softmax(logits) over a batch, after paper eq. (3).

    logits: (N, classes). y: (N, classes), one-hot or probabilities. scaling: "sum" is
    the paper's first term with the minus sign that it lacks; "mean" is over examples.
    "per_shot" divides the sum by K = `shots`, as the authors' code does. The inner step
    is then larger than with "mean", by a factor of the number of classes.

    Raises ValueError when shapes differ, scaling is unknown, or, for "per_shot", shots
    is below 1; nothing else reads it.

    Two examples of two classes, both with probability 1/2 for the right one:

    >>> import numpy as np
    >>> import tinymaml as tm
    >>> f = tm.function(lambda z, y: cross_entropy(z.reshape(2, 2), y), "numpy")
    >>> f(np.zeros(4), np.eye(2))  # log 2
    0.6931
    """
    _check_shapes(2, logits=logits, y=y)
    check_choice("scaling", scaling, ("mean", "sum", "per_shot"))
    # Only differences of logits matter, and in float32 large logits lose theirs if they
    # are added to anything first. So the true logit (a mean of logits, if y is soft) is
    # subtracted from all. The result does not depend on it, so it has no derivative. A
    # row of y may be 0, so that its example does not count.
    true = (logits * y).sum(1) / (y.sum(1) + 1e-30)
    logits = logits - functions.stop_gradient(true).reshape(-1, 1)
    log_softmax = logits - functions.logsumexp(logits)
    return _scaled(-(log_softmax * y).sum(), y.shape[0], scaling, shots)


# [/maml-eq3]


# [maml-eq4]
def policy_gradient_loss(
    log_probability: Value, advantages: Value, weights: Value
) -> Value:
    """The policy-gradient loss: its gradient is an estimate of that of paper eq. (4).

    log_probability: log pi(a | x) of the sampled actions, (N,). advantages, weights:
    (N,). With weights 1 / N the loss is minus the mean of log pi(a | x) times the
    advantage. A step of weight 0 does not count. The value of the loss means nothing.

    Raises ValueError when shapes differ.

    Descent makes the first action, of advantage 1, more probable, the second one less:

    >>> import numpy as np
    >>> import tinymaml as tm
    >>> f = tm.function(policy_gradient_loss, "numpy")
    >>> f.gradient(np.log([0.2, 0.5]), np.array([1.0, -1.0]), np.full(2, 1 / 2))
    array([-0.5, 0.5])
    """
    _check_shapes(
        1, log_probability=log_probability, advantages=advantages, weights=weights
    )
    return -(log_probability * advantages * weights).sum()


def surrogate_loss(
    log_probability: Value, old_log_pi: Value, advantages: Value, weights: Value
) -> Value:
    """Eq. (4) by importance sampling: minus the weighted sum of pi / pi_old advantage.

    log_probability: log pi(a | x), (N,). old_log_pi: the same of the policy that
    sampled the actions, pi_old. At pi = pi_old the gradient equals that of
    `policy_gradient_loss`. Elsewhere the value estimates how good pi is: below, pi
    takes the first action twice as often as pi_old did, and the second half as often,
    so it is -(2 - 1/2) / 2.

    Raises ValueError when shapes differ.

    >>> import numpy as np
    >>> import tinymaml as tm
    >>> f = tm.function(surrogate_loss, "numpy")
    >>> log_pi, old_log_pi = np.log([0.4, 0.2]), np.log([0.2, 0.4])
    >>> f(log_pi, old_log_pi, np.array([1.0, -1.0]), np.full(2, 1 / 2))
    -0.75
    """
    _check_shapes(
        1,
        log_probability=log_probability,
        old_log_pi=old_log_pi,
        advantages=advantages,
        weights=weights,
    )
    ratio = functions.exp(log_probability - old_log_pi)
    return -(ratio * advantages * weights).sum()


# [/maml-eq4]
