"""MAML and its relatives by name: what `--method` and `compare.py` can train.

A method makes its learner from that of exact MAML, so it has the experiment's loss,
learning rate, number of inner steps and backend, and states only in what it differs.
The settings that a method has beyond MAML's are ours unless a comment names a source;
none of them has been searched for.

Left out: what the methods are. That is in `tinymaml.variants`, one file for each.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import tinymaml as tm
from tinymaml import variants
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


def relative(kind: Callable[..., tm.MAML] = tm.MAML, **changes: Any) -> Learner:
    """How to make a learner with the settings of exact MAML, except for `changes`."""

    def learner(maml: tm.MAML, network: Network) -> tm.MAML:
        return kind(**{name: getattr(maml, name) for name in SETTINGS} | changes)

    return learner


# %% What is adapted


def heads(network: Network) -> Array:
    """1 for each parameter of the last layer, 0 for the others, (P,)."""
    return network.alpha(head=1.0)


def adapt_head(maml: tm.MAML, network: Network) -> tm.MAML:
    """ANIL."""
    return relative(variants.ANIL, alpha=maml.alpha * heads(network))(maml, network)


def adapt_body(maml: tm.MAML, network: Network) -> tm.MAML:
    """BOIL."""
    rates = maml.alpha * (1 - heads(network))
    return relative(variants.ANIL, alpha=rates)(maml, network)


CONTEXT = 5  # numbers in z
CONTEXT_RATE = 1.0  # inner learning rate of z; both as in the code of CAVIA's authors


def context_network(initialiser: Initialiser) -> Network:
    """The network of the sinusoids with z behind x: 6-40-40-1."""
    network = tm.MLP([1 + CONTEXT, 40, 40, 1], initialiser=initialiser)
    return Network([Context(CONTEXT), *network.layers])


def adapt_context(maml: tm.MAML, network: Network) -> tm.MAML:
    """MAML that adapts z and nothing else."""
    rates = network.vector(0.0, "float64", **{"context1.z": CONTEXT_RATE})
    return relative(alpha=rates)(maml, network)


# %% How steps are taken

ADAM_RATE = 0.01  # of inner steps by Adam
ANNEALED = 7_000  # iterations, a tenth of section 5.1's


def step_rates(maml: tm.MAML, network: Network) -> tm.MAML:
    """Learned rates for each layer and step, which all start from the one of MAML."""
    rate = float(maml.alpha.max())
    kind = partial(variants.StepRates, network=network)
    return relative(kind, alpha=rate, steps=INNER_STEPS)(maml, network)


def maml_plus_plus(maml: tm.MAML, network: Network) -> tm.MAML:
    """The same with annealed losses; second order always, so that a step has one cost.

    Batch normalisation is that of the network, and the outer rate is not annealed.
    """
    rate = float(maml.alpha.max())
    kind = partial(
        variants.MAMLPlusPlus,
        network=network,
        weights_at=partial(
            variants.annealed_weights, steps=INNER_STEPS, until=ANNEALED
        ),
        order_at=second_order,
    )
    return relative(kind, alpha=rate, steps=INNER_STEPS)(maml, network)


def second_order(iteration: int) -> int:
    """Order 2 in every iteration."""
    return 2


def inner_adam(maml: tm.MAML, network: Network) -> tm.MAML:
    """Inner steps by Adam, for what MAML adapts."""
    rates = np.where(maml.alpha != 0, ADAM_RATE, 0.0)
    return relative(variants.InnerAdam, alpha=rates, steps=INNER_STEPS)(maml, network)


def with_rates(maml: Any, theta: Array) -> Array:
    """(theta, alpha), if the rates are learned as well."""
    return np.asarray(maml.start(theta))


# %% The methods

RELATIVES: dict[str, Method] = {
    "exact": Method("MAML", relative()),
    "first-order": Method("MAML, first order", relative(order=1)),
    "exact-5": Method(f"MAML, {INNER_STEPS} inner steps", relative(steps=INNER_STEPS)),
    "multi-step": Method(
        "MAML, loss after each step",
        relative(steps=INNER_STEPS, step_weights=[1 / INNER_STEPS] * INNER_STEPS),
    ),
    "anil": Method("ANIL", adapt_head),
    "boil": Method("BOIL", adapt_body),
    "meta-sgd": Method("Meta-SGD", relative(variants.MetaSGD), start=with_rates),
    "step-rates": Method("rates per layer and step", step_rates, start=with_rates),
    "maml++": Method("MAML++", maml_plus_plus, start=with_rates),
    "momentum": Method(
        "inner momentum", relative(variants.InnerMomentum, steps=INNER_STEPS)
    ),
    "adam": Method("inner Adam", inner_adam),
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
