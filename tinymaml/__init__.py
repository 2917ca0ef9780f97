"""tinymaml: model-agnostic meta-learning from scratch in NumPy and Numba.

Write a loss on symbolic values, and `MAML` gives its exact meta-gradient, by one
Hessian-vector product per inner step. Read in this order: `tape`, `primitives`,
`sweeps`, `maml`, `machines.numpy_machine`, `machines.planner`,
`machines.numba_machine`.
"""

from tinymaml.batch import Tasks
from tinymaml.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from tinymaml.convnets import (
    BatchNorm,
    Conv2d,
    Flatten,
    MaxPool,
    MeanPool,
    MiniImagenetConv,
    OmniglotConv,
    OmniglotFC,
)
from tinymaml.convolution import conv2d, max_pool, mean_pool
from tinymaml.functions import (
    concatenate,
    exp,
    log,
    logsumexp,
    relu,
    rsqrt,
    softmax,
    tanh,
)
from tinymaml.gradcheck import GradientError, gradcheck
from tinymaml.initialisations import Initialisation, pretrained
from tinymaml.losses import (
    cross_entropy,
    policy_gradient_loss,
    squared_error,
    surrogate_loss,
)
from tinymaml.machines import get_machine
from tinymaml.maml import MAML, MetaGradient
from tinymaml.maml_trpo import MAMLTRPO
from tinymaml.nn import MLP, Activation, Linear, Network
from tinymaml.optim import SGD, Adam
from tinymaml.parts import Parts
from tinymaml.policy import GaussianPolicy
from tinymaml.recipes import RECIPES, Recipe, accuracy
from tinymaml.sweeps import grad, hvp, jvp
from tinymaml.tape import Tape, Value
from tinymaml.train import TrainResult, train
from tinymaml.training_run import NonFiniteLossError
from tinymaml.trajectories import Trajectories, roll_out

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
    "get_machine",
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
    "surrogate_loss",
    "tanh",
    "train",
]
