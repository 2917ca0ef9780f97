"""MAML and its relatives by name: what `--method` and `compare.py` can train.

A method makes its learner from that of exact MAML, so it has the experiment's loss,
learning rate, number of inner steps and backend, and states only in what it differs.
The settings that a method has beyond MAML's are ours unless a comment names a source;
none of them has been searched for.

Left out: what the methods are. That is in `tinymaml.variants`, one file for each.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

import tinymaml as tm
from tinymaml.networks.layers import Initialiser, Network
from tinymaml.variants.context_vector import Context

Array = np.ndarray[Any, Any]
Learner = Callable[[tm.MAML, Network], tm.MAML]
PROBLEMS = ("sinusoid", "omniglot")
SETTINGS = ("loss", "alpha", "steps", "order", "query_loss", "clip", "backend")
INNER_STEPS = 5  # of the methods that are about several of them


class Published(NamedTuple):
    """A figure of a method's own paper or of a paper that compares methods."""

    value: float
    interval: float | None
    source: str
    setting: str  # in which it differs from ours


class Method(NamedTuple):
    """One method: its name in tables, and how its learner is made."""

    label: str
    learner: Learner  # from exact MAML and the network
    problems: tuple[str, ...] = PROBLEMS
    context: bool = False  # the network has a context vector beside its input
    pooled: bool = False  # trained without inner steps; the rate at test is tuned
    start: Callable[[Any, Array], Array] = lambda maml, theta: theta  # what is learned
    published: Mapping[str, Published] = {}  # by problem


def relative(kind: type[tm.MAML] = tm.MAML, **changes: Any) -> Learner:
    """How to make a learner with the settings of exact MAML, except for `changes`."""

    def learner(maml: tm.MAML, network: Network) -> tm.MAML:
        return kind(**{name: getattr(maml, name) for name in SETTINGS} | changes)

    return learner


# %% Networks with a context vector

CONTEXT = 5  # numbers in z
CONTEXT_RATE = 1.0  # inner learning rate of z


def context_network(initialiser: Initialiser) -> Network:
    """The network of the sinusoids with z behind x: 6-40-40-1."""
    return Network(
        [
            Context(CONTEXT),
            *tm.MLP([1 + CONTEXT, 40, 40, 1], initialiser=initialiser).layers,
        ]
    )


def adapt_context(maml: tm.MAML, network: Network) -> tm.MAML:
    """MAML that adapts z and nothing else."""
    rates = network.vector(0.0, "float64", **{"context1.z": CONTEXT_RATE})
    return relative(alpha=rates)(maml, network)


# %% The methods

RELATIVES: dict[str, Method] = {
    "exact": Method("MAML", relative()),
    "first-order": Method("MAML, first order", relative(order=1)),
    "exact-5": Method(f"MAML, {INNER_STEPS} inner steps", relative(steps=INNER_STEPS)),
    "multi-step": Method(
        "MAML, loss after each step",
        relative(steps=INNER_STEPS, step_weights=[1 / INNER_STEPS] * INNER_STEPS),
    ),
    "context": Method(
        "context vector", adapt_context, problems=("sinusoid",), context=True
    ),
    "pretrained": Method(
        "pretrained", relative(steps=0), problems=("sinusoid",), pooled=True
    ),
}


def names_for(problem: str) -> list[str]:
    """The methods that a problem can be learned with."""
    return [name for name, method in RELATIVES.items() if problem in method.problems]
