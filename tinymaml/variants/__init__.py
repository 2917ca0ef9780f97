"""Relatives of MAML, each a file that reads as a difference from `maml.py`.

import tinymaml as tm

anil = tm.variants.ANIL(loss, network.alpha(head=0.1))
"""

from tinymaml.variants.anil import ANIL as ANIL
from tinymaml.variants.inner_optimisers import InnerAdam as InnerAdam
from tinymaml.variants.inner_optimisers import InnerMomentum as InnerMomentum
from tinymaml.variants.maml_plus_plus import MAMLPlusPlus as MAMLPlusPlus
from tinymaml.variants.maml_plus_plus import annealed_weights as annealed_weights
from tinymaml.variants.meta_sgd import MetaSGD as MetaSGD
from tinymaml.variants.step_rates import StepRates as StepRates
from tinymaml.variants.unrolled import Unrolled as Unrolled
