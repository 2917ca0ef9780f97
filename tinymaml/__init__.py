"""tinymaml: model-agnostic meta-learning from scratch in NumPy and Numba.

Write a loss on symbolic values, and `MAML` gives its exact meta-gradient, by one
Hessian-vector product for each inner step. Read in this order: `maml`, then
`autodiff.tape`, `autodiff.primitives`, `autodiff.derivatives`; then how a tape is run:
`backends.numpy`, `backends.numba.planner`, `backends.numba.backend`.
"""

from tinymaml import variants as variants
from tinymaml.autodiff.convolution import conv2d, max_pool, mean_pool
from tinymaml.autodiff.derivatives import grad, hvp, jvp
from tinymaml.autodiff.functions import (
    clip,
    concatenate,
    cos,
    exp,
    log,
    logsumexp,
    maximum,
    minimum,
    relu,
    rsqrt,
    sigmoid,
    sin,
    softmax,
    softplus,
    sqrt,
    tanh,
    where,
)
from tinymaml.autodiff.tape import Tape, Value
from tinymaml.backends import get_backend
from tinymaml.backends.numba.planner import summary
from tinymaml.function import Function, function
from tinymaml.gradcheck import GradientError, gradcheck
from tinymaml.learner import MAML, MetaGradient, Parts
from tinymaml.losses import (
    cross_entropy,
    policy_gradient_loss,
    squared_error,
    surrogate_loss,
)
from tinymaml.networks.images import (
    BatchNorm,
    Conv2d,
    Flatten,
    MaxPool,
    MeanPool,
    MiniImagenetConv,
    OmniglotConv,
    OmniglotFC,
)
from tinymaml.networks.layers import MLP, Activation, Linear, Network
from tinymaml.paper.initialisations import Initialisation, pretrained
from tinymaml.paper.recipes import RECIPES, Recipe, accuracy
from tinymaml.rl.maml_trpo import MAMLTRPO
from tinymaml.rl.policy import GaussianPolicy
from tinymaml.rl.rollouts import Trajectories, roll_out
from tinymaml.tasks.batch import Tasks
from tinymaml.training.checkpoint import (
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
)
from tinymaml.training.optim import SGD, Adam
from tinymaml.training.run import NonFiniteLossError
from tinymaml.training.train import TrainResult, train

__version__ = "0.1.0"
# What a user imports, by what it is for.
# fmt: off
__all__ = [
    # meta-learning
    "MAML", "MetaGradient", "Parts", "Tasks", "train", "TrainResult", "SGD", "Adam",
    "NonFiniteLossError",
    # what a loss is written with
    "squared_error", "cross_entropy", "policy_gradient_loss", "surrogate_loss",
    "concatenate", "exp", "log", "logsumexp", "relu", "rsqrt", "sqrt", "softmax",
    "tanh", "sigmoid", "softplus", "sin", "cos", "where", "maximum", "minimum", "clip",
    "conv2d", "max_pool", "mean_pool",
    # networks
    "Network", "MLP", "Linear", "Activation", "OmniglotConv", "OmniglotFC",
    "MiniImagenetConv", "Conv2d", "BatchNorm", "MaxPool", "MeanPool", "Flatten",
    # autodiff and its checks
    "Tape", "Value", "grad", "jvp", "hvp", "gradcheck", "GradientError", "summary",
    "function", "Function", "get_backend",
    # the paper's settings and results
    "RECIPES", "Recipe", "accuracy", "pretrained", "Initialisation",
    # reinforcement learning
    "MAMLTRPO", "GaussianPolicy", "Trajectories", "roll_out",
    # files
    "save_checkpoint", "load_checkpoint", "CheckpointError",
]
# fmt: on
