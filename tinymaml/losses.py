"""The paper's losses, equations 2 to 4, recorded on a tape; each returns one number.

The supervised ones, equations 2 and 3, take a prediction and a target of shape
(N, outputs). The paper writes sums over examples, the authors' code means something
else in each case, and the size of an inner step depends on it; so the scaling is an
argument, and the default is the mean.

Those of reinforcement learning, equation 4, take log-probabilities of N actions, what
each was worth, and weights that say how to scale.
"""

from tinymaml.autodiff import functions
from tinymaml.autodiff.tape import Value


def _scaled(total: Value, examples: int, scaling: str, shots: int | None) -> Value:
    """A sum over examples, rescaled by name."""
    if scaling == "sum":
        return total
    if scaling == "mean":
        return total / examples
    if scaling == "per_shot":
        if shots is None or shots < 1:
            raise ValueError(f"shots: 'per_shot' needs K of at least 1, got {shots}")
        return total / shots
    raise ValueError(f"scaling: expected 'mean', 'sum' or 'per_shot', got {scaling!r}")


def _check_targets(prediction: Value, y: Value) -> None:
    if prediction.shape != y.shape or len(y.shape) != 2:
        raise ValueError(
            f"y: expected the prediction's shape (N, outputs), {prediction.shape}, "
            f"got {y.shape}"
        )


# [maml-eq2]
def squared_error(prediction: Value, y: Value, scaling: str = "mean") -> Value:
    """The squared error ||f(x) - y||^2 over a batch, paper eq. (2).

    prediction, y: (N, outputs). "sum" is the paper's formula; "mean", over examples and
    outputs, is what the authors' code computes.
    """
    _check_targets(prediction, y)
    difference = prediction - y
    return _scaled((difference * difference).sum(), y.size, scaling, None)


# [/maml-eq2]


# [maml-eq3]
def cross_entropy(
    logits: Value, y: Value, scaling: str = "mean", shots: int | None = None
) -> Value:
    """The cross-entropy - sum y log softmax(logits) over a batch, after paper eq. (3).

    logits: (N, classes); y: (N, classes), one-hot rows or probabilities. "sum" is the
    paper's formula up to its missing sign; "mean" is over examples; "per_shot" divides
    the sum by K = `shots`, as the authors' code does, which makes the inner step as
    many times larger as there are classes.
    """
    _check_targets(logits, y)
    total = (functions.logsumexp(logits) * y.sum(axis=1).reshape(-1, 1)).sum()
    total = total - (logits * y).sum()
    return _scaled(total, y.shape[0], scaling, shots)


# [/maml-eq3]


# [maml-eq4]
def policy_gradient_loss(
    log_probability: Value, advantages: Value, weights: Value
) -> Value:
    """A loss with the gradient of paper eq. (4), minus the expected sum of rewards.

    log_probability: of the actions taken, (N,). advantages, weights: (N,). With weights
    1 / N it is minus the mean of log pi(a | x) A; steps that were not taken have 0.
    """
    return -(log_probability * advantages * weights).sum()


def surrogate_loss(
    log_probability: Value, old: Value, advantages: Value, weights: Value
) -> Value:
    """Eq. (4) by importance sampling: minus the weighted sum of pi(a | x) / pi_old A.

    `old` is log pi_old of the same actions, (N,). At pi = pi_old its gradient is that
    of `policy_gradient_loss`; away from there it says what the change is worth.
    """
    return -(functions.exp(log_probability - old) * advantages * weights).sum()


# [/maml-eq4]
