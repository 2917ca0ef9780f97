"""A loss as a function of arrays: its value and its derivatives, as numbers.

    f = function(loss)               # loss(theta, *data), of Values, written once
    f(theta, x, y)                   # its value
    f.gradient(theta, x, y)          # (P,)
    f.hvp(theta, v, x, y)            # the Hessian times v, (P,)
    f.jvp(theta, v, x, y)            # the derivative along v

This is the way from tinymaml to other libraries. SciPy's optimisers, for example, call
a function and its derivatives with the point first, then a direction, then data:

    scipy.optimize.minimize(f, theta, (x, y), "Newton-CG", f.gradient, hessp=f.hvp)

The loss is recorded when it is first called with arrays of new shapes, and compiled;
later calls only run the program.
"""

from collections.abc import Callable
from typing import Any

from tinymaml.autodiff.derivatives import grad, hvp, jvp
from tinymaml.autodiff.tape import Tape, Value, check_values
from tinymaml.backends import Backend, Program, get_backend
from tinymaml.backends.programs import ProgramCache, weakly
from tinymaml.checks import Array, check_arrays, check_function, check_that, check_theta


class Function:
    """A loss of arrays, with its derivatives; `function` makes one."""

    def __init__(self, loss: Callable[..., Value], backend: Backend) -> None:
        self.loss, self.backend = loss, backend
        self._programs = ProgramCache()

    def __repr__(self) -> str:
        name = getattr(self.loss, "__name__", repr(self.loss))
        return f"Function({name}, backend={self.backend.name!r})"

    def __call__(self, theta: Array, *data: Array) -> Any:
        """The value of the loss: a number, or an array if the loss is an array."""
        return self._run("value", theta, data)[0]

    def gradient(self, theta: Array, *data: Array) -> Array:
        """The gradient with respect to theta, (P,). The loss must be one number."""
        return self._run("gradient", theta, data)[1]

    def value_and_gradient(self, theta: Array, *data: Array) -> tuple[Any, Array]:
        """Both in one run, for a caller that needs both at the same point."""
        value, gradient = self._run("gradient", theta, data)
        return value, gradient

    def hvp(self, theta: Array, v: Array, *data: Array) -> Array:
        """The Hessian times v (P,), which costs two to three gradients: (P,)."""
        return self._run("hvp", theta, data, v)[1]

    def jvp(self, theta: Array, v: Array, *data: Array) -> Any:
        """The derivative of the value when theta moves along v (P,): as the value."""
        return self._run("jvp", theta, data, v)[1]

    def _run(
        self, kind: str, theta: Array, data: tuple[Array, ...], v: Array | None = None
    ) -> list[Any]:
        """The value, and the derivative of this kind if it is one."""
        check_theta(theta, finite=False)
        arrays = {"theta": theta, **{f"data {i}": a for i, a in enumerate(data)}}
        if v is not None:
            check_arrays(v=v)
            check_that(v.shape == theta.shape, "v", f"shape {theta.shape}", v.shape)
            arrays["v"] = v
        check_arrays(**arrays)
        shapes = tuple(array.shape for array in arrays.values())

        def compile_derivative() -> Program:
            tape = Tape()
            values = {name: tape.input(name, a.shape) for name, a in arrays.items()}
            point, direction = values["theta"], values.pop("v", None)
            value = self.loss(*values.values())
            check_values(loss=value)
            if kind != "jvp" and kind != "value":
                fits = value.shape == ()
                check_that(fits, "loss", "one number", f"shape {value.shape}")
            tape.output("value", value)
            if kind == "gradient":
                tape.output("derivative", grad(value, point))
            elif direction is not None:
                along = hvp if kind == "hvp" else jvp
                tape.output("derivative", along(value, point, direction))
            return self.backend.compile(tape, theta.dtype)

        key = kind, shapes, theta.dtype, self.backend, *weakly(self.loss)
        results = self._programs.get(key, compile_derivative)(arrays)
        # There is one task; and a number is Python's, not an array without axes.
        return [a[0] if a.ndim > 1 else a[0].item() for a in results.values()]


def function(loss: Callable[..., Value], backend: str | Backend = "auto") -> Function:
    """A loss of arrays: its value, gradient, Hessian- and Jacobian-vector products.

    Args:
        loss: a function of Values: loss(theta, *data).
        backend: what computes; see `get_backend`.

    Returns:
        A `Function`. theta is an array (P,) of float32 or float64, and all data have
        its dtype.

    Raises:
        TypeError: `loss` is no function.
        ValueError: there is no such backend.

    >>> import numpy as np
    >>> f = function(lambda theta: (theta**3).sum(), backend="numpy")
    >>> theta = np.array([1.0, 2.0])
    >>> f(theta), f.gradient(theta), f.hvp(theta, np.array([1.0, 0.5]))
    (9.0, array([ 3., 12.]), array([6., 6.]))
    """
    return Function(check_function("loss", loss), get_backend(backend))
