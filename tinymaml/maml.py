"""Model-agnostic meta-learning: section 2.2 of the paper, on a tape.

`MAML(loss, alpha, steps).meta_gradient(theta, tasks)` is the gradient of the query loss
after adaptation, by the chain rule from its end, K inner steps long:

    theta_0 = theta;   theta_{k+1} = theta_k - alpha grad S(theta_k)     S: support loss
    v_K = grad Q(theta_K)                                                Q: query loss
    v_k = v_{k+1} - H_S(theta_k) (alpha v_{k+1});   meta-gradient = v_0

One Hessian-vector product per inner step, and first-order MAML is the same without it.
Because alpha may be a vector, with one entry per parameter, parameters can be
meta-learned and not adapted (alpha = 0 there).

All of this is recorded, once, for one task; a machine plays it for all tasks.
Adaptation at test time (`adapt`, `evaluate`) records the same inner loop.

Left out: the optimiser and the loop of meta-training, which are in `optim.py` and
`train.py`.
"""

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any, NamedTuple

import numpy as np

from tinymaml.batch import Tasks, as_tasks, check_tasks
from tinymaml.functions import again, concatenate
from tinymaml.machines import Machine, Program, get_machine
from tinymaml.optim import SGD, Adam, Optimiser
from tinymaml.parts import Parts, parts_of
from tinymaml.sweeps import grad, hvp
from tinymaml.tape import Tape, Value

Array = np.ndarray[Any, Any]
Loss = Callable[[Value, Value, Value], Value]
Prediction = Callable[[Value, Value, Value], Value]


class MetaGradient(NamedTuple):
    """The result of one meta-gradient: for T tasks and P parameters."""

    gradient: Array  # (P,)
    loss: float  # query loss after adaptation: its mean or sum over tasks
    losses: Array  # (T,) the same, per task
    parts: Parts | None = None


# --- what goes on the tape ------------------------------------------------------------


# [maml-inner-update]
def record_inner_loop(
    loss: Loss, theta: Value, x: Value, y: Value, alpha: Value, steps: int
) -> list[Value]:
    """[theta_0, ..., theta_K]: K gradient steps on the support loss.

    Paper section 2.2: theta' = theta - alpha grad L(f_theta), here for any K.
    """
    thetas = [theta]
    for _ in range(steps):
        thetas.append(thetas[-1] - alpha * grad(loss(thetas[-1], x, y), thetas[-1]))
    return thetas


# [/maml-inner-update]


class Recorded(NamedTuple):
    """The values of one task's meta-gradient on its tape."""

    query_loss: Value
    gradient: Value
    query_gradient: Value
    corrections: list[Value]
    alpha_gradient: Value


# [maml-eq1]
def record_meta_gradient(
    loss: Loss,
    theta: Value,
    support: tuple[Value, Value],
    query: tuple[Value, Value],
    alpha: Value,
    steps: int,
    order: int = 2,
    recompute: bool = False,
    step_weights: Sequence[float] | None = None,
    outer_loss: Loss | None = None,
) -> Recorded:
    """The meta-gradient of one task, by the recursion of Hessian-vector products.

    `step_weights` w_1 .. w_K makes the objective sum_k w_k Q(theta_k); by default it is
    Q(theta_K), as in the paper. With `recompute` the activations of an inner step are
    made again when the recursion comes back to it, and only the theta_k are kept.
    `outer_loss` is the loss of the query examples where it is another function.
    """
    outer_loss = outer_loss or loss
    weights = [0.0] * (steps - 1) + [1.0] if step_weights is None else [*step_weights]
    weights = weights or [1.0]  # no inner step: the query loss at theta itself
    thetas = record_inner_loop(loss, theta, *support, alpha, steps)

    # [maml-meta-objective]
    def weighted_query_loss(k: int) -> Value:
        return outer_loss(thetas[k], *query) * weights[max(k, 1) - 1]

    # [/maml-meta-objective]

    query_loss = weighted_query_loss(steps)
    v = query_gradient = grad(query_loss, thetas[steps])
    corrections = []
    alpha_gradient = theta.tape.constant(0.0, theta.shape)
    for k in reversed(range(steps)):
        theta_k = again(thetas[k]) if recompute else thetas[k]
        support_loss = loss(theta_k, *support)
        alpha_gradient = alpha_gradient - grad(support_loss, theta_k) * v
        if order == 2:
            corrections.append(hvp(support_loss, theta_k, alpha * v))
            v = v - corrections[-1]
        if k > 0 and weights[k - 1] != 0:
            query_loss_k = weighted_query_loss(k)
            query_loss = query_loss + query_loss_k
            gradient_k = grad(query_loss_k, thetas[k])
            query_gradient = query_gradient + gradient_k
            v = v + gradient_k
    return Recorded(query_loss, v, query_gradient, corrections[::-1], alpha_gradient)


# [/maml-eq1]


# --- what a user calls ----------------------------------------------------------------


class MAML:
    """Model-agnostic meta-learning of a loss, on a machine.

    loss: a function (theta, x, y) -> one number, written on Values.
    alpha: inner step size, a number or an array of one number per parameter.
    steps: K, the number of inner steps in meta-training.
    order: 2 for the exact meta-gradient, 1 for the first-order one (section 5.2).
    reduction: "mean" over tasks, as the authors' code, or "sum", as paper eq. (1).
    recompute: keep no activations of inner steps; make them again. Memory O(K P).
    step_weights: K weights of the query losses after steps 1 .. K; default: last only.
    query_loss: (theta, x_query, y_query, x_support) -> one number; default: loss.
    clip: largest size of an entry of the meta-gradient, or None; parts are not clipped.
    machine, threads: see `machines.get_machine`.

    >>> import numpy as np
    >>> def loss(theta, x, y):                        # f_theta(x) = theta x
    ...     return ((x * theta - y) * (x * theta - y)).mean()
    >>> one = np.ones((1, 1, 1))                      # one task, one example: x = y = 1
    >>> maml = MAML(loss, alpha=0.25, machine="numpy")
    >>> result = maml.meta_gradient(np.zeros(1), Tasks(one, one, one, one))
    >>> result.loss, result.gradient                  # theta' = 1/2, so (1 - 1/2)^2 and
    (0.25, array([-0.5]))
    >>> # ... - 2 (1 - theta') (1 - 2 alpha) = -1 * 1/2: the Hessian term halves it.
    """

    def __init__(
        self,
        loss: Loss,
        alpha: float | Array = 0.01,
        steps: int = 1,
        order: int = 2,
        reduction: str = "mean",
        recompute: bool = False,
        step_weights: Sequence[float] | None = None,
        query_loss: Callable[[Value, Value, Value, Value], Value] | None = None,
        clip: float | None = None,
        machine: str | Machine = "auto",
        threads: int | None = None,
    ) -> None:
        if order not in (1, 2):
            raise ValueError(f"order: expected 1 or 2, got {order!r}")
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction: expected 'mean' or 'sum', got {reduction!r}")
        self.loss = loss
        self.alpha = alpha
        self.steps = check_steps(steps)
        if step_weights is not None:
            step_weights = _check_step_weights(step_weights, self.steps)
        self.order = order
        self.reduction = reduction
        self.recompute = recompute
        self.step_weights = step_weights
        self.query_loss = query_loss
        if clip is not None and not 0 < clip < np.inf:
            raise ValueError(f"clip: expected a positive number or None, got {clip!r}")
        self.clip = clip
        self.machine = get_machine(machine, threads)
        self._programs: dict[Any, Program] = {}

    @property
    def alpha(self) -> Array:
        """The inner step size, an array of shape () or (P,)."""
        return self._alpha

    @alpha.setter
    def alpha(self, alpha: float | Array) -> None:
        self._alpha = check_alpha(alpha)

    def meta_gradient(
        self, theta: Array, tasks: Tasks, parts: bool = False
    ) -> MetaGradient:
        """The gradient of the tasks' query loss after adaptation, paper eq. (1).

        theta: (P,), float32 or float64. tasks: four arrays (T, N, ...) of the same
        dtype. Costs about 3 gradients per inner step and 1 for the query loss; no
        Hessian is formed. With `parts` the result also says what it is made of.

        Raises ValueError or TypeError naming the argument that does not fit.
        """
        if parts and self.order == 1:
            raise ValueError("parts: order=1 leaves out the corrections; use order=2")
        count = check_tasks(theta, tasks := as_tasks(tasks))
        results = self._play("meta-gradient", theta, tasks, self.steps, parts=parts)
        scale = 1.0 / count if self.reduction == "mean" else 1.0
        losses = results["losses"]
        gradient = results["gradient"] * losses.dtype.type(scale)
        made_of = parts_of(gradient, results, scale, self.steps) if parts else None
        if self.clip is not None:
            gradient = gradient.clip(-self.clip, self.clip)
        return MetaGradient(gradient, float(losses.sum() * scale), losses, made_of)

    __call__ = meta_gradient

    def resident(
        self,
        theta: Array,
        optimiser: Optimiser,
        sample: Callable[[np.random.Generator], Any],
    ) -> Any:
        """Training from here on that stays on the machine, if it has memory of its own.

        `train` asks for this when it is given this object. See `machines.resident`;
        None where a machine or an optimiser has no such thing.
        """
        make = getattr(self.machine, "resident", None)
        if make is None or type(optimiser) not in (SGD, Adam):
            return None

        def prepare(tasks: Tasks) -> Program:
            check_tasks(theta, tasks)
            return self._program("meta-gradient", theta, tasks, self.steps)

        shared = {"alpha": self.alpha.astype(theta.dtype)}
        mean = self.reduction == "mean"
        return make(prepare, theta, shared, optimiser, mean, self.clip, sample)

    def adapt(
        self, theta: Array, x: Array, y: Array, steps: int | None = None
    ) -> Array:
        """Every theta_k of the inner loop on support examples: (T, steps + 1, P).

        theta: (P,); x, y: (T, N, ...). `steps` may differ from meta-training.
        """
        steps = self.steps if steps is None else check_steps(steps)
        check_tasks(theta, Tasks(x, y, x, y))
        results = self._play("adapt", theta, Tasks(x, y, x, y), steps)
        return results["thetas"].reshape(len(x), steps + 1, theta.size)

    def evaluate(self, theta: Array, tasks: Tasks, steps: int | None = None) -> Array:
        """The query loss of each task after 0 .. steps inner steps: (T, steps + 1)."""
        steps = self.steps if steps is None else check_steps(steps)
        check_tasks(theta, tasks := as_tasks(tasks))
        results = self._play("evaluate", theta, tasks, steps)
        return np.stack([results[f"loss{k}"] for k in range(steps + 1)], axis=1)

    def predict(
        self,
        function: Prediction,
        theta: Array,
        tasks: Tasks,
        steps: int | None = None,
    ) -> Array:
        """function(theta_k, x_query, x_support) after 0 .. steps inner steps.

        `function` returns a Value, such as a network's logits (N, ways); the result has
        shape (T, steps + 1, N, ways).
        """
        if not callable(function):
            raise TypeError(f"function: expected a function, got {function!r}")
        steps = self.steps if steps is None else check_steps(steps)
        check_tasks(theta, tasks := as_tasks(tasks))
        results = self._play("predict", theta, tasks, steps, function=function)
        return np.stack([results[f"out{k}"] for k in range(steps + 1)], axis=1)

    def tape(
        self,
        theta: Array,
        tasks: Tasks,
        kind: str = "meta-gradient",
        parts: bool = False,
    ) -> Tape:
        """The tape that a call plays for one task; `tape.summary()` says what it costs.

        kind: "meta-gradient", "adapt" or "evaluate".
        """
        kinds = ("meta-gradient", "adapt", "evaluate")
        if kind not in kinds:
            raise ValueError(f"kind: expected one of {', '.join(kinds)}, got {kind!r}")
        check_tasks(theta, tasks := as_tasks(tasks))
        return self._record(kind, theta, tasks, self.steps, parts)

    def _record(
        self,
        kind: str,
        theta: Array,
        tasks: Tasks,
        steps: int,
        parts: bool = False,
        function: Prediction | None = None,
    ) -> Tape:
        if self.alpha.ndim and self.alpha.shape != theta.shape:
            raise ValueError(
                f"alpha: expected a number or one per parameter, shape {theta.shape}, "
                f"got shape {self.alpha.shape}"
            )
        tape = Tape()
        theta_0 = tape.input("theta", theta.shape)
        alpha = tape.input("alpha", self.alpha.shape)
        names = Tasks._fields[:2] if kind == "adapt" else Tasks._fields
        values = [
            tape.input(name, array.shape[1:], per_task=True)
            for name, array in zip(names, tasks, strict=False)
        ]
        x_support, support, query = values[0], (values[0], values[1]), values[2:]
        if kind != "meta-gradient":
            thetas = record_inner_loop(self.loss, theta_0, *support, alpha, steps)
            if kind == "adapt":
                tape.output("thetas", concatenate(thetas))
            for k, theta_k in enumerate(thetas):
                if kind == "evaluate":
                    loss_k = self._outer_loss(x_support)(theta_k, *query)
                    tape.output(f"loss{k}", loss_k)
                elif function is not None:
                    tape.output(f"out{k}", function(theta_k, query[0], x_support))
            return tape
        recorded = record_meta_gradient(
            self.loss,
            theta_0,
            support,
            (query[0], query[1]),
            alpha,
            steps,
            self.order,
            self.recompute,
            self.step_weights,
            self._outer_loss(x_support),
        )
        tape.output("losses", recorded.query_loss)
        tape.output("gradient", recorded.gradient, "sum")
        if parts:
            tape.output("query_gradient", recorded.query_gradient, "sum")
            tape.output("alpha_gradient", recorded.alpha_gradient, "sum")
            for k, correction in enumerate(recorded.corrections):
                tape.output(f"correction{k}", correction, "sum")
        return tape

    def _outer_loss(self, x_support: Value) -> Loss:
        """The query loss as a function (theta, x, y)."""
        query_loss = self.query_loss
        if query_loss is None:
            return self.loss
        return lambda theta, x, y: query_loss(theta, x, y, x_support)

    def _program(
        self,
        kind: str,
        theta: Array,
        tasks: Tasks,
        steps: int,
        parts: bool = False,
        function: Prediction | None = None,
    ) -> Program:
        """The program for these shapes, recorded and prepared at its first use."""
        shapes = tuple(array.shape[1:] for array in tasks)
        options = (self.order, self.recompute, self.step_weights, self.alpha.shape)
        key = (kind, theta.size, theta.dtype, shapes, steps, parts, function, options)
        program = self._programs.get(key)
        if program is None:
            tape = self._record(kind, theta, tasks, steps, parts, function)
            program = self._programs[key] = self.machine.prepare(tape, theta.dtype)
        return program

    def _play(
        self, kind: str, theta: Array, tasks: Tasks, steps: int, **what: Any
    ) -> dict[str, Array]:
        """Play the program for these shapes; say which input is not finite, if any."""
        program = self._program(kind, theta, tasks, steps, **what)
        inputs = {
            "theta": theta,
            "alpha": self.alpha.astype(theta.dtype),
            "x_support": tasks.x_support,
            "y_support": tasks.y_support,
        }
        if kind != "adapt":
            inputs |= {"x_query": tasks.x_query, "y_query": tasks.y_query}
        results = program(inputs)
        # A sum of squares is finite unless something is not (or is huge): a cheap look
        # at the results, and only then one at the inputs, to say where it came from.
        # A loss alone may hide infinite data, as tanh does; its gradient does not. And
        # without inner steps nothing may have read the support data.
        finite = all(isfinite(np.vdot(r, r)) for r in results.values())
        if steps == 0 or kind in ("evaluate", "predict") or not finite:
            for name, array in inputs.items():
                if not np.isfinite(array).all():
                    raise ValueError(f"{name}: expected finite numbers, got NaN or inf")
        return results


def check_steps(steps: int) -> int:
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer):
        raise TypeError(f"steps: expected a whole number, got {steps!r}")
    if steps < 0:
        raise ValueError(f"steps: expected at least 0, got {steps}")
    return int(steps)


def _check_step_weights(weights: Sequence[float], steps: int) -> tuple[float, ...]:
    try:
        array = np.asarray(weights, dtype=float)
    except (TypeError, ValueError):
        array = np.array(float("nan"))
    if array.shape != (steps,) or not np.isfinite(array).all():
        raise ValueError(
            f"step_weights: expected {steps} finite weights, got {weights!r}"
        )
    return tuple(array.tolist())


def check_alpha(alpha: float | Array) -> Array:
    try:
        array = np.asarray(alpha)
    except ValueError:
        raise TypeError(
            f"alpha: expected a number or a vector, got {alpha!r}"
        ) from None
    if array.dtype.kind not in "fiu" or array.ndim > 1:
        raise TypeError(
            f"alpha: expected a number or a vector of numbers, got {alpha!r}"
        )
    if not np.isfinite(array).all():
        raise ValueError("alpha: expected finite numbers, got NaN or inf")
    return array
