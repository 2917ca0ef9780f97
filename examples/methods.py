"""MAML and its relatives by name: what `--method` and `compare.py` can train.

A method makes its learner from that of exact MAML, so it has the experiment's loss,
learning rate, number of inner steps and backend, and states only in what it differs.
The settings that a method has beyond MAML's are ours unless a comment names a source;
none has been searched for, except implicit MAML's on sine waves, by seven short trials.

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
    trained: bool = True
    test_steps: int | None = None  # inner steps at test, if not those of the problem
    start: Callable[[Any, Array], Array] = lambda maml, theta: theta  # what is learned
    published: Mapping[str, Published] = {}  # by problem

    def reported_steps(self, usual: int, maml: tm.MAML) -> int:
        """The inner steps after which it is validated and reported.

        They are at least those of its training. usual: those of the problem.
        """
        return max(usual, maml.steps) if self.test_steps is None else self.test_steps


def settings(maml: tm.MAML) -> dict[str, Any]:
    """The arguments with which another learner is like this one."""
    return {name: getattr(maml, name) for name in SETTINGS}


def relative(kind: Callable[..., tm.MAML] = tm.MAML, **changes: Any) -> Learner:
    """How to make a learner with the settings of exact MAML, except for `changes`."""

    def learner(maml: tm.MAML, network: Network) -> tm.MAML:
        return kind(**settings(maml) | changes)

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
IMPLICIT_RATE = 0.02
CLIP = 10.0  # of the meta-gradient, as in the code of MAML++'s authors for photographs
ANNEALED = 7_000  # iterations, a tenth of section 5.1's


def step_rates(maml: tm.MAML, network: Network) -> tm.MAML:
    """Learned rates for each layer and step, which all start from the one of MAML."""
    kind = partial(variants.StepRates, network=network)
    changes: dict[str, Any] = {"alpha": first_rate(maml), "clip": CLIP}
    return relative(kind, **changes, steps=INNER_STEPS)(maml, network)


def maml_plus_plus(maml: tm.MAML, network: Network) -> tm.MAML:
    """The same with annealed losses; second order always, so that a step has one cost.

    Batch normalisation is that of the network; the outer rate is not annealed here.
    """
    options = settings(maml) | {"alpha": first_rate(maml), "steps": INNER_STEPS}
    options["clip"] = CLIP
    del options["order"]  # it is that of the schedule
    weights_at = partial(variants.annealed_weights, steps=INNER_STEPS, until=ANNEALED)
    schedules: dict[str, Any] = {"weights_at": weights_at, "order_at": second_order}
    return variants.MAMLPlusPlus(network=network, **schedules, **options)


def second_order(iteration: int) -> int:
    """Order 2 in every iteration."""
    return 2


def inner_adam(maml: tm.MAML, network: Network) -> tm.MAML:
    """Inner steps by Adam, for what MAML adapts."""
    rates = rescaled(maml, ADAM_RATE)
    return relative(variants.InnerAdam, alpha=rates, steps=INNER_STEPS)(maml, network)


def first_rate(maml: tm.MAML) -> float:
    """The largest inner learning rate: that of all parameters which are adapted."""
    return float(maml.alpha.max())


def rescaled(maml: tm.MAML, rate: float) -> Array:
    """This rate for all parameters that MAML adapts, 0 for the others."""
    return np.where(maml.alpha != 0, rate, 0.0)


def reptile(maml: tm.MAML, network: Network) -> tm.MAML:
    """Reptile with the authors' batches of 10 and rate of 0.02 on sine waves.

    On images all examples of a task are one batch, with the rate of MAML.
    """
    changes: dict[str, Any] = {"steps": INNER_STEPS}
    if maml.alpha.ndim == 0:
        changes |= {"alpha": 0.02, "batch": 10}
    return relative(variants.Reptile, **changes)(maml, network)


def implicit(maml: tm.MAML, network: Network) -> tm.MAML:
    """Implicit MAML. On images with the authors' penalty, steps and iterations.

    The steps need a rate with which they come near the minimum. On sine waves the
    settings are ours: without damping most trainings diverge.
    """
    changes: dict[str, Any] = {"alpha": rescaled(maml, IMPLICIT_RATE), "steps": 16}
    changes |= {"penalty": 2.0, "iterations": 5}
    if maml.alpha.ndim == 0:
        changes |= {"alpha": maml.alpha, "steps": 30, "penalty": 3.0, "damping": 20.0}
    return relative(variants.ImplicitMAML, **changes)(maml, network)


def cavia(maml: tm.MAML, network: Network) -> tm.MAML:
    """CAVIA: the same, but z is not learned."""
    return relative(variants.CAVIA)(adapt_context(maml, network), network)


def proto_maml(maml: tm.MAML, network: Network) -> tm.MAML:
    """ProtoMAML."""
    return relative(variants.ProtoMAML, network=network)(maml, network)


def prototypical(maml: tm.MAML, network: Network) -> tm.MAML:
    """Prototypical networks: ProtoMAML without inner steps."""
    return relative(variants.ProtoMAML, network=network, steps=0)(maml, network)


def with_rates(maml: Any, theta: Array) -> Array:
    """(theta, alpha), if the rates are learned as well."""
    return np.asarray(maml.start(theta))


# %% The methods
# Published figures are those of 5-way 1-shot Omniglot. Most networks have convolutions
# and ours has none, so only the order of the methods can be compared.

CONVOLUTIONS = "with convolutions"
FINN = "Finn et al. 2017, table 1"
NICHOL = "Nichol et al. 2018, arXiv:1803.02999"
LI = "Li et al. 2017, arXiv:1707.09835, as cited by Lian et al., ICLR 2020"
ANTONIOU = "Antoniou et al. 2019, arXiv:1810.09502, as cited by Lian et al., ICLR 2020"
RAJESWARAN = "Rajeswaran et al. 2019, arXiv:1909.04630, table 2, gradient descent"
SNELL = "Snell et al. 2017, arXiv:1703.05175"


def omniglot(
    value: float, interval: float | None, source: str, setting: str = CONVOLUTIONS
) -> Mapping[str, Published]:
    """An accuracy in per cent, 5-way 1-shot."""
    return {"omniglot": Published(value, interval, source, setting)}


RELATIVES: dict[str, Method] = {
    "exact": Method(
        "MAML", relative(), published=omniglot(89.7, 1.1, FINN, "the same network")
    ),
    "first-order": Method(
        "MAML, first order", relative(order=1), published=omniglot(98.3, 0.5, NICHOL)
    ),
    "exact-5": Method(f"MAML, {INNER_STEPS} inner steps", relative(steps=INNER_STEPS)),
    "multi-step": Method(
        "MAML, loss after each step",
        relative(steps=INNER_STEPS, step_weights=[1 / INNER_STEPS] * INNER_STEPS),
    ),
    "anil": Method("ANIL", adapt_head),
    "boil": Method("BOIL", adapt_body),
    "meta-sgd": Method(
        "Meta-SGD",
        relative(variants.MetaSGD),
        start=with_rates,
        published=omniglot(99.53, 0.26, LI),
    ),
    "step-rates": Method("rates per layer and step", step_rates, start=with_rates),
    "maml++": Method(
        "MAML++",
        maml_plus_plus,
        start=with_rates,
        published=omniglot(99.47, None, ANTONIOU),
    ),
    "momentum": Method(
        "inner momentum", relative(variants.InnerMomentum, steps=INNER_STEPS)
    ),
    "adam": Method("inner Adam", inner_adam),
    "reptile": Method("Reptile", reptile, published=omniglot(97.68, 0.04, NICHOL)),
    "implicit": Method(
        "implicit MAML", implicit, published=omniglot(99.16, 0.35, RAJESWARAN)
    ),
    "proto-maml": Method("ProtoMAML", proto_maml, problems=("omniglot",)),
    "prototypical": Method(
        "prototypical network",
        prototypical,
        problems=("omniglot",),
        test_steps=0,
        published=omniglot(98.8, None, SNELL, "with convolutions, trained 60-way"),
    ),
    "cavia": Method("CAVIA", cavia, problems=("sinusoid",), context=True),
    "context": Method(
        "context vector", adapt_context, problems=("sinusoid",), context=True
    ),
    "pretrained": Method("pretrained, fine-tuned", relative(steps=0), pooled=True),
    "nearest": Method(
        "nearest neighbour", relative(), ("omniglot",), trained=False, test_steps=0
    ),
}


def names_for(problem: str) -> list[str]:
    """The methods that a problem can be learned with."""
    return [name for name, method in RELATIVES.items() if problem in method.problems]


def meta_learners(problem: str) -> list[str]:
    """Those of them that learn from tasks: what `--method` can train."""
    return [
        name
        for name in names_for(problem)
        if RELATIVES[name].trained and not RELATIVES[name].pooled
    ]
