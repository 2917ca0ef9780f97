"""Derivatives of your own loss against finite differences.

    python -m tinymaml check mine.py       # the function `loss` in this file
    python -m tinymaml check mine.py:maml  # a MAML: its loss and its query_loss
    python -m tinymaml check package.module:name

Each parameter of the loss is looked up by its name, so the file also has the arrays
theta, x and y at which loss(theta, x, y) is checked. If it has no theta, its `network`
draws one; if it has no x and y, they are the support examples of the first of its
`tasks` (an array x_query is in a batch of tasks, too).

Everything is done in float64, by `tinymaml.gradcheck`, and one line is printed for each
derivative. The exit status is 0 if all are right, 1 if one is wrong, and 2 if nothing
could be checked. At a kink, such as relu at 0, no derivative is right: choose another
theta.
"""

import argparse
import importlib
import inspect
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

import tinymaml as tm

HERE = Path(__file__).resolve().parent
DERIVATIVES = {1: "gradient", 2: "Hessian-vector product"}  # by their order


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, with exit status 2.

    It is not the one in shared.py: the user's file may import a module of that name.
    """

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and stop."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def names_in(source: str) -> dict[str, Any]:
    """What a file or module defines, with theta, x, y, ... from its network and tasks.

    Modules beside the file can be imported by it; those beside this one cannot.
    """
    is_file = source.endswith(".py")
    folder = Path(source).resolve().parent if is_file else Path.cwd()
    others = [place for place in sys.path if Path(place).resolve() != HERE]
    sys.path[:] = [str(folder), *others]
    names = runpy.run_path(source) if is_file else vars(importlib.import_module(source))
    found: dict[str, Any] = {}
    network, tasks = names.get("network"), names.get("tasks")
    if isinstance(network, tm.Network):
        found["theta"] = network.init(np.random.default_rng(0), "float64")
    if isinstance(tasks, tm.Tasks):
        found |= {name: array[0] for name, array in tasks._asdict().items()}
        found |= {"x": found["x_support"], "y": found["y_support"]}
    return found | names


def arguments_of(loss: Any, names: Mapping[str, Any]) -> list[np.ndarray]:
    """The arrays of a loss, in float64, by the names of its parameters."""
    if not callable(loss):
        raise TypeError(f"expected a loss or a MAML, got {type(loss).__name__}")
    parameters = inspect.signature(loss).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty]
    missing = [name for name in needed if name not in names]
    if missing:
        raise ValueError(
            f"expected one array for each of {', '.join(needed)}; there is no "
            f"{', '.join(missing)}"
        )
    for name in needed:
        if isinstance(names[name], np.ma.MaskedArray):
            raise ValueError(f"{name}: expected an array, got a masked one")
    return [np.asarray(names[name], np.float64) for name in needed]


def check(label: str, loss: Any, names: Mapping[str, Any], seed: int) -> bool:
    """Print one line for each derivative; the first wrong one is the last."""
    arrays = arguments_of(loss, names)
    for order, derivative in DERIVATIVES.items():
        try:
            error = tm.gradcheck(loss, *arrays, order=order, seed=seed)[order - 1]
        except tm.GradientError as wrong:
            print(f"WRONG  {label}: {wrong}")
            return False
        print(
            f"ok     {label}: the {derivative} differs from its finite difference by "
            f"{error:.1e} of its size"
        )
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with command-line arguments; return the exit status."""
    parser = Parser(
        prog=Path(sys.argv[0]).name,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("target", metavar="FILE.py[:NAME]", help="or MODULE[:NAME]; default: loss")
    add("--seed", type=int, default=0, help="of the random direction (default: 0)")
    options = parser.parse_args(arguments)
    source, name = options.target, "loss"
    if source.rpartition(":")[2].isidentifier() and ":" in source:
        source, _, name = source.rpartition(":")
    try:
        names = names_in(source)
    except (Exception, SystemExit) as error:  # whatever the file does when it runs
        parser.error(f"{source!r}: {type(error).__name__}: {error}")
    if name not in names:
        parser.error(f"{source}: expected a loss or a MAML named {name}, found none")
    losses = {name: names[name]}
    if isinstance(maml := names[name], tm.MAML):
        losses = {f"{name}.loss": maml.loss}
        if maml.query_loss is not None:
            losses[f"{name}.query_loss"] = maml.query_loss
    try:
        right = [check(*loss, names, options.seed) for loss in losses.items()]
    except Exception as error:  # whatever the loss does when it is recorded
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        parser.error(f"{options.target}: {kind}{error}")
    return 0 if all(right) else 1


if __name__ == "__main__":
    sys.exit(main())
