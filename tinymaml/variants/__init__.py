"""Relatives of MAML, each a file that reads as a difference from `maml.py`."""

from tinymaml.variants.anil import ANIL
from tinymaml.variants.inner_optimisers import InnerAdam, InnerMomentum
from tinymaml.variants.maml_plus_plus import MAMLPlusPlus, annealed_weights
from tinymaml.variants.meta_sgd import MetaSGD
from tinymaml.variants.step_rates import StepRates
from tinymaml.variants.unrolled import Unrolled

__all__ = [
    "ANIL",
    "InnerAdam",
    "InnerMomentum",
    "MAMLPlusPlus",
    "MetaSGD",
    "StepRates",
    "Unrolled",
    "annealed_weights",
]
