"""tinymaml: model-agnostic meta-learning from scratch in NumPy and Numba.

Write a loss on symbolic values, and `MAML` gives its exact meta-gradient, by one
Hessian-vector product for each inner step. Read in this order: `maml`, then
`autodiff.tape`, `autodiff.primitives`, `autodiff.derivatives`; then how a tape is run:
`backends.numpy`, `backends.numba.planner`, `backends.numba.backend`.
"""

from tinymaml.autodiff.convolution import conv2d, max_pool, mean_pool
from tinymaml.autodiff.derivatives import grad, hvp, jvp
from tinymaml.autodiff.functions import (
    concatenate,
    exp,
    log,
    logsumexp,
    relu,
    rsqrt,
    softmax,
    tanh,
)
from tinymaml.autodiff.tape import Tape, Value
from tinymaml.backends import get_backend
from tinymaml.backends.numba.planner import summary
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
__all__ = [
    "MAML",
    "MAMLTRPO",
    "MLP",
    "RECIPES",
    "SGD",
    "Activation",
    "Adam",
    "BatchNorm",
    "CheckpointError",
    "Conv2d",
    "Flatten",
    "GaussianPolicy",
    "GradientError",
    "Initialisation",
    "Linear",
    "MaxPool",
    "MeanPool",
    "MetaGradient",
    "MiniImagenetConv",
    "Network",
    "NonFiniteLossError",
    "OmniglotConv",
    "OmniglotFC",
    "Parts",
    "Recipe",
    "Tape",
    "Tasks",
    "TrainResult",
    "Trajectories",
    "Value",
    "accuracy",
    "concatenate",
    "conv2d",
    "cross_entropy",
    "exp",
    "get_backend",
    "grad",
    "gradcheck",
    "hvp",
    "jvp",
    "load_checkpoint",
    "log",
    "logsumexp",
    "max_pool",
    "mean_pool",
    "policy_gradient_loss",
    "pretrained",
    "relu",
    "roll_out",
    "rsqrt",
    "save_checkpoint",
    "softmax",
    "squared_error",
    "summary",
    "surrogate_loss",
    "tanh",
    "train",
]
