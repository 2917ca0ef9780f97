"""Relatives of MAML, each a file that reads as a difference from `maml.py`.

import tinymaml as tm

anil = tm.variants.ANIL(loss, network.alpha(head=0.1))
"""

from tinymaml.variants.anil import ANIL as ANIL
from tinymaml.variants.cavia import CAVIA as CAVIA
from tinymaml.variants.context_vector import Context as Context
from tinymaml.variants.fine_tuning import AllClasses as AllClasses
from tinymaml.variants.fine_tuning import new_last_layer as new_last_layer
from tinymaml.variants.implicit_maml import ImplicitMAML as ImplicitMAML
from tinymaml.variants.inner_optimisers import InnerAdam as InnerAdam
from tinymaml.variants.inner_optimisers import InnerMomentum as InnerMomentum
from tinymaml.variants.maml_plus_plus import MAMLPlusPlus as MAMLPlusPlus
from tinymaml.variants.maml_plus_plus import annealed_weights as annealed_weights
from tinymaml.variants.meta_sgd import MetaSGD as MetaSGD
from tinymaml.variants.nearest_neighbour import nearest_neighbour as nearest_neighbour
from tinymaml.variants.proto_maml import ProtoMAML as ProtoMAML
from tinymaml.variants.reptile import Reptile as Reptile
from tinymaml.variants.step_rates import StepRates as StepRates
from tinymaml.variants.unrolled import Unrolled as Unrolled
