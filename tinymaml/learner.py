"""`MAML`, the class that a user calls: meta-gradients, adaptation and evaluation.

    maml = MAML(loss, alpha=0.01, steps=1)
    result = maml.meta_gradient(theta, tasks)    # result.loss, result.gradient
    errors = maml.evaluate(theta, tasks, steps=10)

The mathematics is in `maml.py`. This file records it on a tape for the shapes of a
batch, lets a backend compile the tape, keeps the compiled program for the next batch of
these shapes, and checks every argument. Adaptation at test time records the same inner
loop that meta-training records.

Left out: the optimiser and the loop of meta-training, which are in `training/`.
"""

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any, ClassVar, NamedTuple

import numpy as np

from tinymaml.autodiff.derivatives import grad, hvp
from tinymaml.autodiff.functions import concatenate
from tinymaml.autodiff.tape import Tape, Value, check_values
from tinymaml.backends import Backend, Program, get_backend
from tinymaml.backends.programs import ProgramCache, weakly
from tinymaml.checks import (
    check_alpha,
    check_choice,
    check_finite,
    check_flags,
    check_function,
    check_step_weights,
    check_tasks,
    check_that,
    real_number,
    whole_number,
)
from tinymaml.maml import Examples, Loss, inner_loop, meta_gradient
from tinymaml.multi_step_loss import multi_step_meta_gradient
from tinymaml.tasks.batch import Tasks, as_tasks
from tinymaml.training.optim import Optimiser
from tinymaml.training.steps import Columns, OneProcess, Sample, Steps, Trainable

Array = np.ndarray[Any, Any]
Prediction = Callable[[Value, Value, Value], Value]


class Parts(NamedTuple):
    """What a meta-gradient is made of: exact = query_gradient - corrections.sum(0).

    >>> def loss(theta, x, y):                        # f_theta(x) = theta x
    ...     return ((theta.reshape(1, 1) * x - y) ** 2).mean()
    >>> one = np.ones((1, 1, 1))                      # x = y = 1, so the Hessian is 2
    >>> maml = MAML(loss, alpha=0.25, backend="numpy")
    >>> tasks = Tasks(one, one, one, one)
    >>> parts = maml.meta_gradient(np.zeros(1), tasks, parts=True).parts
    >>> parts.query_gradient, parts.corrections  # -1 at theta' = 1/2, and 2 alpha (-1)
    (array([-1.]), array([[-0.5]]))
    """

    query_gradient: Array  # (P,) the first-order meta-gradient
    corrections: Array  # (J, P) H_j (alpha v_{j+1}) for j = 0 .. J - 1
    alpha_gradient: Array  # (P,) derivative of the meta-loss along each entry of alpha
    cosine: float  # of the angle between first-order and exact
    norm_ratio: float  # |first-order| / |exact|

    def __repr__(self) -> str:
        steps, size = self.corrections.shape
        return (
            f"Parts(cosine={self.cosine:.4g}, norm_ratio={self.norm_ratio:.4g}, "
            f"query_gradient ({size},), corrections ({steps}, {size}))"
        )


class MetaGradient(NamedTuple):
    """The result of one meta-gradient, for T tasks and P parameters."""

    gradient: Array  # (P,)
    loss: float  # query loss after adaptation: its mean or sum over tasks
    losses: Array  # (T,) query loss of each task after adaptation
    parts: Parts | None = None

    def __repr__(self) -> str:
        parts = "" if self.parts is None else f",\n  parts={self.parts}"
        return (
            f"MetaGradient(loss={self.loss:.4g}, losses {self.losses.shape}, gradient "
            f"{self.gradient.shape} of norm {np.linalg.norm(self.gradient):.4g}{parts})"
        )


class Call(NamedTuple):
    """What is recorded: the kind of call, J, and what some kinds want besides."""

    kind: str  # "meta-gradient", "adapt", "evaluate" or "predict"
    steps: int
    parts: bool = False  # whether a meta-gradient also returns its parts
    function: Prediction | None = None  # what a prediction computes


class TaskOnTape(NamedTuple):
    """What the meta-gradient of one task is recorded from: inputs of a tape, and Q."""

    support: Examples  # x and y, one row for each example
    query: Examples
    alpha: Value  # () or (P,), which all tasks share
    query_loss: Loss  # Q, a function (theta, x, y)


class MAML(Trainable):
    """Model-agnostic meta-learning of a loss.

    loss: a function (theta, x, y) -> one number, written on Values.
    alpha: inner learning rate (step size), a number or one number for each parameter.
    steps: J, the number of inner steps in meta-training.
    order: 2 for the exact meta-gradient, 1 for first-order MAML (section 5.2).
    reduction: "mean" over tasks, as the authors' code, or "sum", as paper eq. (1).
    recompute: rebuild the activations of inner steps instead of keeping them.
    step_weights: J weights of the query losses after steps 1 .. J; default: last only.
    query_loss: (theta, x_query, y_query, x_support) -> one number; default: loss.
    clip: largest size of an entry of the meta-gradient, or None; parts are not clipped.
    backend, threads: see `get_backend`.

    Attributes may be set later; the next call uses them, but a training on a GPU keeps
    those of its start. A loss, or a function that predicts, is recorded once for each
    shape of its inputs: a number that it takes from elsewhere, such as an annealed
    weight, stays what it was then. A deep copy or a pickle compiles anew.

    >>> import numpy as np
    >>> def loss(theta, x, y):                        # f_theta(x) = theta x
    ...     return ((x * theta - y) * (x * theta - y)).mean()
    >>> one = np.ones((1, 1, 1))                      # one task, one example: x = y = 1
    >>> maml = MAML(loss, alpha=0.25, backend="numpy")
    >>> result = maml.meta_gradient(np.zeros(1), Tasks(one, one, one, one))
    >>> result.loss, result.gradient                  # theta' = 1/2, so (1 - 1/2)^2 and
    (0.25, array([-0.5]))
    >>> # ... - 2 (1 - theta') (1 - 2 alpha) = -1 * 1/2: the Hessian term halves it.
    >>> maml.adapt(np.zeros(1), one, one, steps=2)[0, :, 0]  # half of the way each time
    array([0.  , 0.5 , 0.75])
    >>> maml.evaluate(np.zeros(1), Tasks(one, one, one, one), steps=2)
    array([[1.    , 0.25  , 0.0625]])
    """

    _programs: ProgramCache
    backend: Backend
    # A variant's own settings: the check of each, by the name of the attribute. What is
    # recorded may depend on them, so they are a part of a program's key.
    own_settings: ClassVar[dict[str, Callable[[Any], Any]]] = {}

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
        backend: str | Backend = "auto",
        threads: int | None = None,
    ) -> None:
        self.loss, self.query_loss = loss, query_loss
        self.alpha, self.steps, self.order = check_alpha(alpha), steps, order
        self.reduction, self.recompute = reduction, recompute
        self.step_weights, self.clip = step_weights, clip
        self.backend = get_backend(backend, threads)
        self._weights()

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; what the constructor refuses is refused here as well.

        Step weights are compared with J at the next call; `threads` is the backend's.
        """
        check = self.own_settings.get(name) or CHECKS.get(name)
        super().__setattr__(name, check(value) if check else value)
        if name in ("loss", "query_loss"):  # its programs are those of another loss
            self._programs = ProgramCache()

    def __repr__(self) -> str:
        alpha = f"{self.alpha:g}" if self.alpha.ndim == 0 else f"{self.alpha.shape}"
        loss = getattr(self.loss, "__name__", type(self.loss).__name__)
        return (
            f"{type(self).__name__}({loss}, alpha={alpha}, "
            f"steps={self.steps}, order={self.order}, "
            f"reduction={self.reduction!r}, backend={self.backend.name!r})"
        )

    # --- what a user calls ------------------------------------------------------------

    def meta_gradient(
        self, theta: Array, tasks: Tasks, parts: bool = False
    ) -> MetaGradient:
        """The gradient of the tasks' query loss after adaptation, paper eq. (1).

        theta: (P,), float32 or float64. tasks: four arrays (T, N, ...) of the same
        dtype. Costs about 3 gradients for each inner step and 1 for the query loss; no
        Hessian is formed. With `parts` the result also says what it is made of.

        Raises ValueError or TypeError naming the argument that does not fit.
        """
        self._check_parts(parts)
        count = check_tasks(theta, tasks := as_tasks(tasks))
        results = self._run(Call("meta-gradient", self.steps, parts), theta, tasks)
        scale = 1.0 / count if self.reduction == "mean" else 1.0
        losses = results["losses"]
        gradient = results["gradient"] * losses.dtype.type(scale)
        terms = _parts_of(gradient, results, scale, self.steps) if parts else None
        # An infinite entry stays one, so that the step counts as failed.
        if self.clip is not None and np.isfinite(gradient).all():
            gradient = gradient.clip(-self.clip, self.clip)
        return MetaGradient(gradient, float(losses.sum() * scale), losses, terms)

    __call__ = meta_gradient

    def adapt(
        self, theta: Array, x: Array, y: Array, steps: int | None = None
    ) -> Array:
        """Every theta_j of the inner loop on support examples: (T, steps + 1, P).

        theta: (P,); x, y: (T, N, ...). `steps` may differ from meta-training. Raises as
        `meta_gradient` does, and so do `evaluate` and `predict`.
        """
        steps = self._steps(steps)
        check_tasks(theta, Tasks(x, y, x, y))
        results = self._run(Call("adapt", steps), theta, Tasks(x, y, x, y))
        return results["thetas"].reshape(len(x), steps + 1, -1)

    def evaluate(self, theta: Array, tasks: Tasks, steps: int | None = None) -> Array:
        """The query loss of each task after 0 .. steps inner steps: (T, steps + 1)."""
        return self._after_each_step("evaluate", theta, tasks, steps)

    def predict(
        self, function: Prediction, theta: Array, tasks: Tasks, steps: int | None = None
    ) -> Array:
        """function(theta_j, x_query, x_support) after 0 .. steps inner steps.

        `function` is a network, or returns a Value such as logits (N, ways); the result
        has shape (T, steps + 1, N, ways). It is called with all three arguments.
        The result does not depend on y_query, which may be any finite numbers.
        """
        check_function("function", function)
        return self._after_each_step("predict", theta, tasks, steps, function)

    def tape(
        self,
        theta: Array,
        tasks: Tasks,
        kind: str = "meta-gradient",
        parts: bool = False,
    ) -> Tape:
        """The tape that a call runs for one task; `summary(tape)` says what it costs.

        kind: "meta-gradient", "adapt" or "evaluate".
        """
        check_choice("kind", kind, ("meta-gradient", "adapt", "evaluate"))
        self._check_parts(parts)
        check_tasks(theta, tasks := as_tasks(tasks))
        return self._record(Call(kind, self.steps, parts), theta, tasks)

    def training_steps(
        self, theta: Array, optimiser: Optimiser, sample: Sample, columns: Columns = ()
    ) -> Steps:
        """The outer steps of `train`: on the backend's device if it has one, else here.

        Further `columns` of the log are computed here only, so with them all is done
        here. Arguments as in `training.steps.HostSteps`.
        """

        def compile(tasks: Tasks) -> Program:
            check_tasks(theta, tasks)
            return self._program(Call("meta-gradient", self.steps), theta, tasks)

        on_device = None
        if not columns:
            on_device = self.backend.training_steps(
                optimiser,
                compile=compile,
                theta=theta,
                shared=self.shared_inputs(theta),
                mean=self.reduction == "mean",
                clip=self.clip,
                sample=sample,
            )
        return on_device or super().training_steps(theta, optimiser, sample, columns)

    @property
    def ranks(self) -> OneProcess:
        """The processes over which the backend spreads the tasks."""
        return getattr(self.backend, "ranks", super().ranks)

    # --- recording, compiling, running ------------------------------------------------

    def _steps(self, steps: int | None) -> int:
        return self.steps if steps is None else whole_number("steps", steps, least=0)

    def _weights(self) -> tuple[float, ...] | None:
        """The step weights; their number must be J, which may have been set later."""
        weights = self.step_weights
        return None if weights is None else check_step_weights(weights, self.steps)

    def _after_each_step(
        self,
        kind: str,
        theta: Array,
        tasks: Tasks,
        steps: int | None,
        function: Prediction | None = None,
    ) -> Array:
        """What is computed from theta_0 .. theta_J: (T, J + 1, ...)."""
        call = Call(kind, self._steps(steps), function=function)
        check_tasks(theta, tasks := as_tasks(tasks))
        results = self._run(call, theta, tasks)
        return np.stack([results[f"out{j}"] for j in range(call.steps + 1)], axis=1)

    def _record(self, call: Call, theta: Array, tasks: Tasks) -> Tape:
        """The tape of one task, with placeholders for theta, alpha and the examples."""
        tape = Tape()
        learned = tape.input("theta", theta.shape)
        arrays = self.shared_inputs(theta).items()
        shared = {name: tape.input(name, array.shape) for name, array in arrays}
        theta_0, alpha = self.record_start(learned, shared["alpha"])
        names = Tasks._fields[:2] if call.kind == "adapt" else Tasks._fields
        shapes = [(name, getattr(tasks, name).shape[1:]) for name in names]
        values = [tape.input(name, shape, per_task=True) for name, shape in shapes]
        support, query = (values[0], values[1]), values[2:]

        def query_loss(theta: Value, x: Value, y: Value) -> Value:
            own, given = self.query_loss, (theta, x, y)
            value = self.loss(*given) if own is None else own(*given, values[0])
            name = "loss" if own is None else "query_loss"
            check_values(**{name: value})
            check_that(value.size == 1, name, "one number", f"shape {value.shape}")
            return value.reshape()

        thetas = self.record_inner_loop(theta_0, support, alpha, call.steps)
        if call.kind == "meta-gradient":
            task = TaskOnTape(support, (query[0], query[1]), alpha, query_loss)
            self._record_results(thetas, task, call.parts)
        elif call.kind == "adapt":
            tape.output("thetas", concatenate(thetas))
        else:
            # A loss takes the query labels, a prediction the support examples.
            function: Any = query_loss if call.function is None else call.function
            last = query[1] if call.function is None else values[0]
            for j, theta_j in enumerate(thetas):
                tape.output(f"out{j}", function(theta_j, query[0], last))
        return tape

    def shared_inputs(self, theta: Array) -> dict[str, Array]:
        """The arrays that all tasks share, apart from theta; a variant may add some."""
        return {"alpha": self.alpha.astype(theta.dtype)}

    def record_start(self, theta: Value, alpha: Value) -> tuple[Value, Value]:
        """theta_0 (P,) and alpha, from what is learned; a variant may override it.

        theta: all that the outer loop learns, theta_0 and what a variant adds to it.
        alpha: one number () or a vector, of the length of theta here.
        """
        expected = f"a number or one per parameter, shape {theta.shape}"
        fits = alpha.shape in ((), theta.shape)
        check_that(fits, "alpha", expected, f"shape {alpha.shape}")
        return theta, alpha

    def record_inner_loop(
        self, theta: Value, support: Examples, alpha: Value, steps: int
    ) -> list[Value]:
        """[theta_0, ..., theta_J] on the tape, each (P,); a variant may override it.

        support: x and y of one task. steps: J.
        """
        return inner_loop(self.loss, theta, support, alpha, steps)

    def record_meta_gradient(
        self, thetas: list[Value], task: TaskOnTape, order: int
    ) -> tuple[Value, list[Value]]:
        """The objective, and [v_0, ...] on the tape; a variant may override it.

        v_0 is the meta-gradient: as long as what the outer loop learns.
        """
        support, query, alpha, query_loss = task
        examples, weights = (self.loss, thetas, support, query, alpha), self._weights()
        options = order, query_loss, self.recompute
        if weights is None:
            return meta_gradient(*examples, *options)
        return multi_step_meta_gradient(*examples, weights, *options)

    def _record_results(
        self, thetas: list[Value], task: TaskOnTape, parts: bool
    ) -> None:
        """Record the recursion and name its results; with `parts` its terms as well."""
        tape, support, alpha = thetas[0].tape, task.support, task.alpha
        objective, cotangents = self.record_meta_gradient(thetas, task, self.order)
        tape.output("losses", objective)
        tape.output("gradient", cotangents[0], "sum")
        if not parts:
            return
        # These operations are on the tape already, without `recompute`: recording them
        # again finds them.
        first_order = self.record_meta_gradient(thetas, task, order=1)[1]
        tape.output("query_gradient", first_order[0], "sum")
        for j, v in enumerate(cotangents[1:]):
            correction = hvp(self.loss(thetas[j], *support), thetas[j], alpha * v)
            tape.output(f"correction{j}", correction, "sum")
        by_alpha = alpha_gradient(self.loss, thetas, support, cotangents)
        tape.output("alpha_gradient", by_alpha, "sum")

    def _check_parts(self, parts: bool) -> None:
        """Refuse parts where the meta-gradient is not made of them."""
        check_flags(parts=parts)
        if not parts:
            return
        if self.order == 1:
            raise ValueError("parts: order=1 leaves out the corrections; use order=2")
        methods = "record_start", "record_inner_loop", "record_meta_gradient"
        own = any(getattr(type(self), n) is not getattr(MAML, n) for n in methods)
        expected = "False, as the meta-gradient is made of other terms than MAML's"
        check_that(not own, "parts", expected, f"True for {type(self).__name__}")

    def _program(self, call: Call, theta: Array, tasks: Tasks) -> Program:
        """The program for these shapes and settings, compiled at its first use."""
        shapes = theta.size, theta.dtype, *[array.shape[1:] for array in tasks]
        settings = (self.order, self.recompute, self._weights(), self.alpha.shape)
        own = tuple(map(self.__getattribute__, self.own_settings))
        parts = () if call.function is None else weakly(call.function)
        recorded = call if call.function is None else call._replace(function=None)
        key = recorded, *parts, shapes, settings, own, self.backend
        return self._programs.get(
            key,
            lambda: self.backend.compile(self._record(call, theta, tasks), theta.dtype),
        )

    def _run(self, call: Call, theta: Array, tasks: Tasks) -> dict[str, Array]:
        """Run the program for these shapes; say which input is not finite, if any."""
        program = self._program(call, theta, tasks)
        inputs = {"theta": theta, **self.shared_inputs(theta)}
        inputs["x_support"], inputs["y_support"] = tasks.x_support, tasks.y_support
        if call.kind != "adapt":
            inputs["x_query"], inputs["y_query"] = tasks.x_query, tasks.y_query
        results = program(inputs)
        # To read all inputs takes longer than to read the results, so the results come
        # first: their sum of squares is finite unless something in them is not, or is
        # huge. Only then are the inputs searched for the cause. They are also searched
        # where the results may hide infinite data: tanh does so in a loss (not in its
        # gradient), and without inner steps nothing has read the support examples.
        finite = all(isfinite(np.vdot(r, r)) for r in results.values())
        if call.steps == 0 or call.kind in ("evaluate", "predict") or not finite:
            check_finite(**inputs)
        return results


def alpha_gradient(
    loss: Loss, thetas: list[Value], support: Examples, cotangents: list[Value]
) -> Value:
    """The derivative of the query loss along each entry of alpha, (P,).

    Arguments as in `maml.meta_gradient`, which returns the cotangents.
    """
    total = thetas[0].tape.constant(0.0, thetas[0].shape)
    for theta_j, v in zip(thetas[:-1], cotangents[1:], strict=True):
        # theta_{j+1} depends on alpha through - alpha grad S(theta_j).
        total = total - grad(loss(theta_j, *support), theta_j) * v
    return total


def _check_clip(clip: float | None) -> float | None:
    fits = clip is None or 0 < real_number("clip", clip) < np.inf
    check_that(fits, "clip", "a positive number or None", repr(clip))
    return clip if clip is None else float(clip)


# What is checked whenever an attribute of a `MAML` is set.
CHECKS: dict[str, Callable[[Any], Any]] = {
    "loss": lambda loss: check_function("loss", loss),
    "query_loss": lambda f: f if f is None else check_function("query_loss", f),
    "alpha": check_alpha,
    "steps": lambda steps: whole_number("steps", steps, least=0),
    "order": lambda order: check_choice("order", order, (1, 2)),
    "reduction": lambda name: check_choice("reduction", name, ("mean", "sum")),
    "clip": _check_clip,
    "recompute": lambda on: check_flags(recompute=on)[0],
    "backend": get_backend,
}


def _parts_of(
    gradient: Array, results: dict[str, Array], scale: float, steps: int
) -> Parts:
    """Parts of the exact meta-gradient (P,), from the outputs of its tape.

    results: sums over tasks, which `scale` makes sums or means; steps: J.
    """
    first, exact = results["query_gradient"] * scale, gradient.astype(float)
    corrections = [results[f"correction{j}"] * scale for j in range(steps)]
    # In float64: squares of small or large float32 numbers may be 0 or infinite.
    norms = [float(np.linalg.norm(a)) for a in (first.astype(float), exact)]
    return Parts(
        first,
        np.array(corrections, gradient.dtype).reshape(steps, len(gradient)),
        results["alpha_gradient"] * scale,
        float(first @ exact) / norms[0] / norms[1] if all(norms) else float("nan"),
        norms[0] / norms[1] if norms[1] else float("nan"),
    )
