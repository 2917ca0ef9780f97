"""What the reference says of arguments and fields for which a docstring has no words.

The keys are names as a reader writes them, with as much of the module in front as makes
them unambiguous. `arguments.py` beside this file adds the words to the docstring's own;
a test fails if a public argument has neither, or if a name here is no argument.
"""

THETA = "(P,), float32 or float64: all parameters of the network."
TASKS = "a `Tasks` of four arrays (T, N, ...), of the dtype of theta."
STEPS = "the number of inner steps; by default those of meta-training."
RNG = "a `numpy.random.Generator`, advanced in place."
DTYPE = 'the dtype of the result, "float32" or "float64".'
ANY = "a Value of any shape."
OTHER = "a Value or a number; both are broadcast to a common shape."
END = "an end of the range, a Value or a number."
MODE = 'of batch normalisation: "batch", "support" or "none", see `BatchNorm`.'
GAMMA = "of batch normalisation: whether it has a factor, see `BatchNorm`."
FEATURES = "the number of features after each convolution."
ACTIVATION = (
    'the name of a function, such as "relu", or a function of your own, from a Value'
    " to a Value of the same shape."
)
AXES = "one axis or several; None: all."
KEEPDIMS = "whether the axes stay, with length 1."
POINT = {
    "theta": "(P,), float32 or float64: the point.",
    "data": "further arguments of the loss, of the dtype of theta.",
}
WAYS = "N, the number of classes, which is the size of the result."
INITIALISER = "a function (rng, shape) that returns the first weights."
LOCOMOTION = {
    "horizon": "steps of the longest trajectory, at least 1.",
    "goal_visible": "whether observations end with the goal, as for an oracle.",
    "threads": "of MuJoCo; by default one per core.",
}
IMAGES = "a Value (N, H, W, C): N images of H by W pixels with C channels."
SEED = "the seed of the random numbers."

# How sentences begin that follow the last argument of a paragraph and are not about it.
REMARKS = (
    "All have the same dtype",
    "At pi = pi_old",
    "Costs about",
    "Errors are relative",
    "Returns",
    "The prediction is 0",
    "The rest is as in",
    "With weights 1 / N",
    "`steps` may differ",
)

WORDS: dict[str, dict[str, str]] = {
    # meta-learning
    "maml.inner_loop": {
        "loss": "the support loss S, a function (theta, x, y) that returns a Value ().",
        "steps": "J, the number of inner steps.",
    },
    "maml.meta_gradient": {"loss": "the support loss S, as in `inner_loop`."},
    "multi_step_meta_gradient": {
        "loss": "as in `meta_gradient`.",
        "thetas": "as in `meta_gradient`: J + 1 Values, each (P,).",
        "support": "as in `meta_gradient`: x (N, ...) and y (N, ...).",
        "query": "as in `meta_gradient`: x (N, ...) and y (N, ...).",
        "alpha": "as in `meta_gradient`: () or (P,).",
        "order": "as in `meta_gradient`: 2 or 1.",
        "query_loss": "as in `meta_gradient`.",
        "recompute": "as in `meta_gradient`.",
    },
    "MAML.meta_gradient": {
        "parts": "whether the result has `Parts`; only with order 2."
    },
    "MAML.adapt": {"steps": STEPS},
    "MAML.record_inner_loop": {
        "theta": "theta_0, a Value (P,).",
        "alpha": "the inner learning rate, a Value () or (P,).",
    },
    "MAML.record_meta_gradient": {
        "thetas": "theta_0 .. theta_J, what `record_inner_loop` returned.",
        "task": "the examples, alpha and the query loss: a `TaskOnTape`.",
        "order": "2, or 1 for first-order MAML.",
    },
    "MAML.evaluate": {"theta": THETA, "tasks": TASKS, "steps": STEPS},
    "MAML.predict": {
        "function": "a network, or a function (theta, x_query, x_support) of Values"
        " that returns one Value.",
        "theta": THETA,
        "tasks": TASKS,
        "steps": STEPS,
    },
    "MAML.tape": {
        "theta": THETA,
        "tasks": TASKS,
        "parts": "whether the parts of the meta-gradient are recorded, too.",
    },
    "MetaGradient": {"parts": "what the gradient is made of, if that was wanted."},
    "Tasks": {
        "x_support": "(T, N, ...): what the inner loop learns from.",
        "y_support": "(T, N, ...): the targets of `x_support`.",
        "x_query": "(T, N', ...): what the meta-gradient is of.",
        "y_query": "(T, N', ...): the targets of `x_query`.",
    },
    # losses
    "cross_entropy": {"shots": 'K, the support examples of a class, for "per_shot".'},
    "surrogate_loss": {
        "advantages": "(N,), as in `policy_gradient_loss`.",
        "weights": "(N,), as in `policy_gradient_loss`.",
    },
    # what a loss is written with
    "concatenate": {
        "values": "a list of Values.",
        "axis": "the axis along which they are joined.",
    },
    "clip": {"x": ANY, "lowest": END, "highest": END},
    "cos": {"x": ANY},
    "exp": {"x": ANY},
    "maximum": {"a": ANY, "b": OTHER},
    "minimum": {"a": ANY, "b": OTHER},
    "sigmoid": {"x": ANY},
    "sin": {"x": ANY},
    "softplus": {"x": ANY},
    "sqrt": {"x": ANY + " Its numbers must not be negative."},
    "where": {"a": "what is taken there, a Value or a number.", "b": "what else."},
    "log": {"x": ANY + " Its numbers must be positive."},
    "relu": {"x": ANY},
    "rsqrt": {"x": ANY + " Its numbers must be positive."},
    "tanh": {"x": ANY},
    "logsumexp": {"x": ANY, "axis": "the axis of the terms."},
    "softmax": {"x": ANY, "axis": "the axis of the classes."},
    "conv2d": {
        "x": IMAGES,
        "w": "a Value (kh, kw, C, F): F kernels of kh by kw pixels.",
        "stride": "the distance between neighbouring windows, in pixels.",
    },
    "max_pool": {"x": IMAGES, "size": "the height and width of a window."},
    "mean_pool": {
        "x": IMAGES,
        "size": "the height and width of a window; None: the whole image.",
    },
    # networks
    "Network.__call__": {
        "theta": "a Value (P,).",
        "x": "a Value (N, ...): N examples.",
        "x_support": "a Value: the support examples of the task. Only layers that use"
        ' their statistics read it: `BatchNorm` of mode "support".',
    },
    "Network.init": {"rng": RNG, "dtype": DTYPE},
    "Network.unpack": {"theta": "a Value (P,)."},
    "Network.predict": {
        "theta": "(P,), an array.",
        "x": "(N, ...), an array of the dtype of theta.",
    },
    "Network.unflatten": {"theta": "(P,), an array."},
    "Network.flatten": {
        "arrays": "arrays by the names of parameters, which are the keys of `layout`.",
        "torch": "whether they are in PyTorch's layout, as in `unflatten`.",
        "dtype": DTYPE,
    },
    "layers.Layer.init": {"rng": RNG},
    "layers.Layer.__call__": {
        "parameters": "Values of the layer's own parameters, in the order of `shapes`.",
        "x": "the input, a Value (N, ...).",
    },
    "ImageNetwork": {"layers": "as of `Network`."},
    "ImageNetwork.adapted_only": {"alpha": "the inner learning rate.", "dtype": DTYPE},
    "layers.normal": {"std": "the standard deviation, a number."},
    "layers.truncated_normal": {"std": "the standard deviation before the cut."},
    "Network.vector": {
        "default": "the number of every parameter that is not in `values`.",
        "dtype": DTYPE,
        "values": "numbers by name: of a parameter, of a layer, `head` or `body`.",
    },
    "Network.alpha": {
        "default": "the learning rate of every parameter that is not in `rates`.",
        "dtype": DTYPE,
        "rates": "learning rates by name, as the values of `vector`.",
    },
    "MLP": {
        "sizes": "the sizes of input, hidden layers and output.",
        "activation": ACTIVATION,
        "initialiser": INITIALISER,
    },
    "Linear": {
        "inputs": "the size of an example.",
        "outputs": "the size of the result.",
        "initialiser": INITIALISER,
    },
    "Linear.init": {"rng": RNG},
    "OmniglotConv": {"ways": WAYS, "features": FEATURES, "mode": MODE, "gamma": GAMMA},
    "OmniglotContext": {"ways": WAYS, "mode": MODE},
    "OmniglotFC": {"ways": WAYS, "mode": MODE, "gamma": GAMMA},
    "MiniImagenetConv": {
        "ways": WAYS,
        "features": FEATURES,
        "mode": MODE,
        "gamma": GAMMA,
    },
    "Conv2d": {
        "channels": "C, the channels of the images.",
        "features": "F, the channels of the result.",
        "kernel": "the height and width of the kernels.",
        "stride": "the distance between neighbouring windows, in pixels.",
        "initialiser": INITIALISER,
    },
    "Conv2d.init": {"rng": RNG},
    "BatchNorm": {
        "channels": "the size of the last axis.",
        "epsilon": "is added to the variance; more than 0.",
    },
    "BatchNorm.init": {"rng": RNG},
    "MaxPool": {"size": "the height and width of a window."},
    "MeanPool": {"size": "the height and width of a window; None: the whole image."},
    # variants
    "MetaSGD.start": {"theta": THETA},
    "StepRates.start": {"theta": THETA},
    "MAMLPlusPlus": {"network": "whose layers have rates of their own."},
    "MAMLPlusPlus.at": {"iteration": "of the outer loop, counted from 0."},
    "annealed_weights": {
        "iteration": "of the outer loop, counted from 0.",
        "steps": "J, the number of inner steps.",
        "until": "the iteration from which only the last loss counts.",
    },
    "new_last_layer": {
        "trained": "the network to which theta belongs.",
        "network": "one that differs from it in its last layer.",
    },
    "Unrolled.record_inner_step": {
        "j": "the number of the step, counted from 0.",
        "gradient": "of the support loss at theta_j, a Value (P,).",
        "alpha": "the inner learning rate, a Value () or (P,).",
        "moments": "two Values (P,) that the optimiser of the inner loop keeps.",
    },
    # autodiff
    "Tape.input": {
        "name": "the name under which a run gets the array.",
        "shape": "the shape for one task.",
        "per_task": "whether the array has a task axis in front of this shape.",
    },
    "Tape.constant_array": {"numbers": "an array, or nested lists, of real numbers."},
    "Tape.constant": {
        "number": "the number in every place.",
        "shape": "the shape; () by default.",
    },
    "Tape.output": {
        "name": "the name under which a run returns the array.",
        "value": "a Value of this tape.",
        "reduction": 'over tasks: "each" or "sum".',
    },
    "Tape.record": {
        "name": "the name of a primitive, see `primitives.py`.",
        "arguments": "the Values that it reads.",
        "attributes": "what else it takes, such as the axes of a sum.",
    },
    "Tape.value": {"index": "the number of a node, counted from 0."},
    "Tape.check": {"value": "anything; only a Value of this tape is returned."},
    "Tape.node_flops": {"index": "the number of a node, counted from 0."},
    "Value": {
        "tape": "the `Tape` on which it lives.",
        "index": "the number of the node that computes it.",
        "shape": "its shape for one task.",
    },
    "Value.reshape": {"shape": "the new sizes."},
    "Value.broadcast_to": {"shape": "the new shape."},
    "Value.sum": {"axis": AXES, "keepdims": KEEPDIMS},
    "Value.mean": {"axis": AXES, "keepdims": KEEPDIMS},
    "Value.transpose": {"axes": "the axes in their new order."},
    "Function": {
        "loss": "a function of Values: the parameters, then data.",
        "backend": "what computes.",
    },
    "Function.__call__": POINT,
    "Function.gradient": POINT,
    "Function.value_and_gradient": POINT,
    "Function.hvp": {**POINT, "v": "(P,), of the dtype of theta."},
    "Function.jvp": {**POINT, "v": "(P,), of the dtype of theta."},
    "grad": {"loss": "a Value of one number.", "theta": "a Value of the same tape."},
    "jvp": {
        "output": "a Value of any shape.",
        "theta": "a Value of the same tape.",
        "v": "a Value shaped like `theta`: the direction.",
    },
    "hvp": {
        "loss": "a Value of one number.",
        "theta": "a Value of the same tape.",
        "v": "a Value shaped like `theta`: what the Hessian is multiplied by.",
    },
    "Tape.ancestors": {
        "ends": "indices of nodes.",
        "start": "the index of a node that is not looked behind.",
    },
    "Tape.lost_by": {"index": "of the node."},
    "gradcheck": {
        "order": "1 checks the gradient, 2 also the Hessian-vector product.",
        "seed": "of the direction v.",
        "backend": "what runs the tape, see `get_backend`.",
        "tolerance": "the largest error that is let through; None: by dtype.",
    },
    "Errors": {
        "order1": "of the gradient.",
        "order2": "of the Hessian-vector product; NaN with order 1.",
    },
    "summary": {
        "tape": "a `Tape`, such as that of `MAML.tape`.",
        "dtype": '"float32" or "float64".',
    },
    # the paper's settings
    "Recipe.paper_of": {"order": "2 or 1."},
    "Recipe.scaled": {"scaling": '"per_shot" or "mean".'},
    "Recipe.network": {"mode": '"batch", "support" or "none".'},
    "Recipe.maml": {"network": "that of `Recipe.network`.", "order": "2 or 1."},
    "SinusoidRecipe.maml": {
        "network": "that of `SinusoidRecipe.network`.",
        "order": "2 or 1.",
    },
    "NavigationRecipe.maml": {
        "policy": "that of `NavigationRecipe.network`.",
        "order": "2 or 1.",
    },
    "pretrained": {"name": 'such as "omniglot-5w1s" or "sinusoid-maml".'},
    "save_initialisation": {
        "path": "file to write.",
        "theta": "(P,), float32 or float64.",
        "recipe": "what adapts it.",
        "facts": "what else is to be known of it, JSON values by name.",
    },
    "load_initialisation": {"path": "file to read."},
    # tasks
    "Waves": {
        "amplitude": "(T, 1, 1), from 0.1 to 5.",
        "phase": "(T, 1, 1), from 0 to pi.",
    },
    "sample_waves": {"rng": RNG, "tasks": "T."},
    "sample_tasks": {
        "rng": RNG,
        "tasks": "T, the number of tasks.",
        "shots": "K, the number of support points of a task.",
        "dtype": DTYPE,
    },
    "sample_points": {
        "rng": RNG,
        "waves": "those of `sample_waves`.",
        "shots": "K, the number of support points of a task.",
        "query": "the number of query points of a task.",
        "dtype": DTYPE,
    },
    "Episodes.draw": {"rng": RNG},
    "Episodes.__call__": {"rng": RNG},
    "Episodes.fixed": {
        "seed": SEED,
        "count": "T, the number of tasks.",
    },
    "Episodes.look_up": {"indices": "those of `Episodes.draw`."},
    "EpisodeIndices": {
        "query": "as `support`, of query examples.",
        "query_rotations": "as `support_rotations`.",
        "query_labels": "as `support_labels`.",
    },
    "DataError": {"text": "the message."},
    "ImageSet.select": {"classes": "names of classes."},
    "omniglot.find_data": {"data": "a folder, or None."},
    "omniglot.split": {
        "image_set": "all characters, from `load()` or `standin()`.",
        "name": '"authors", "paper" or "background".',
    },
    "omniglot.standin": {"seed": SEED},
    "miniimagenet.standin": {
        "seed": SEED,
        "images": "the number of images of each class.",
    },
    # training
    "NonFiniteLossError": {"message": "what was not finite, and where."},
    "Schedule.__call__": {"iteration": "counted from 1."},
    "optim.constant": {"learning_rate": "positive."},
    "optim.step": {
        "learning_rate": "that of the first iterations, positive.",
        "every": "a whole number of iterations.",
        "factor": "in (0, 1].",
    },
    "optim.cosine": {
        "learning_rate": "that of the first iteration, positive.",
        "iterations": "how many it takes to fall.",
        "last": "from 0 to `learning_rate`.",
    },
    "Ranks.agree": {"request": "this rank's."},
    "Ranks.share": {"tasks": "T, the number of tasks of all ranks."},
    "Ranks.gather": {"rows": "those of this rank; each may have another number."},
    "Ranks.mean": {"rows": "those of this rank, with a leading task axis."},
    "Ranks.leave": {"status": "the exit status of the program."},
    "LogRow": {
        "iteration": "counted from 1.",
        "loss": "the mean since the row before.",
    },
    # reinforcement learning
    "MAMLTRPO.draw": {"rng": RNG, "tasks": "T, the number of tasks.", "dtype": DTYPE},
    "MAMLTRPO.noise": {
        "rng": RNG,
        "tasks": "T, the number of tasks.",
        "steps": "the number of inner steps.",
        "dtype": DTYPE,
    },
    "MAMLTRPO.start_noise": {
        "rng": RNG,
        "tasks": "T, the number of tasks.",
        "steps": "the number of inner steps.",
    },
    "MAMLTRPO.inner_kl": {
        "adaptation": "the inner loop, from `MAMLTRPO.adapt`.",
        "ranks": "over which processes the mean is taken, this one by default.",
    },
    "MetaBatch.of": {"tasks": "which."},
    "MAMLTRPO.adapt": {"batch": "tasks and noise, from `MAMLTRPO.draw`."},
    "MAMLTRPO.step": {
        "theta": "(P,), float32 or float64.",
        "batch": "tasks and noise, from `MAMLTRPO.draw`.",
    },
    "MAMLTRPO.inner_step": {
        "thetas": "(T, P), the parameters in each task.",
        "samples": "what these policies sampled, as `Samples`.",
        "alpha": "inner learning rate (step size), () or (P,).",
    },
    "GaussianPolicy.init": {"rng": RNG, "dtype": DTYPE},
    "GaussianPolicy.__call__": {
        "theta": "a Value (P,).",
        "x": "a Value (N, O): observations.",
    },
    "roll_out": {"environment": "any object with the methods of `Environment`."},
    "MetaStep": {
        "accepted": "whether the line search accepted a step.",
        "reason": 'why not, or "" if it did.',
    },
    "TrustRegionStep": {"accepted": "whether the line search accepted a step."},
    "Quantity": {
        "record": "records the computation.",
        "inputs": "the names of the inputs.",
    },
    "linear_baseline": {"mask": "(T, B, horizon), bool: whether a step was taken."},
    "gae": {
        "rewards": "(T, B, horizon).",
        "values": "(T, B, horizon), V.",
        "mask": "(T, B, horizon), bool: whether a step was taken.",
        "discount": "of rewards, in [0, 1].",
        "decay": "lambda, in [0, 1].",
    },
    "standardise": {
        "advantages": "(T, B, horizon).",
        "mask": "(T, B, horizon), bool: whether a step was taken.",
    },
    "discounted_sums": {"discount": "of rewards, in [0, 1]."},
    "advantages.advantages": {"trajectories": "those of `roll_out`."},
    "conjugate_gradient": {
        "product": "a function: v (P,) to A v (P,).",
        "iterations": "the largest number of products.",
        "tolerance": "of the squared residual, by `TOLERANCE`.",
    },
    "trust_region_step": {"theta": "(P,), float32 or float64."},
    "Optimiser": {"settings": "numbers by name, which are stored in checkpoints."},
    "HalfCheetah": {"task": '"velocity" or "direction".', **LOCOMOTION},
    "Ant": {"task": '"velocity", "direction" or "position".', **LOCOMOTION},
    "Locomotion.draw": {"rng": RNG, "shape": "the leading axes, such as (T,)."},
    "Locomotion.start": {
        "goals": "(T, G), or (T, B, G): one for each trajectory.",
        "trajectories": "B.",
        "noise": "(T, B, D), standard normal.",
    },
    "Locomotion.observe": {"states": "(T, B, S).", "goals": "(T, G) or (T, B, G)."},
    "Locomotion.step": {"states": "(T, B, S).", "goals": "(T, G) or (T, B, G)."},
    "Locomotion.skeleton": {"state": "(S,), one of those that `step` returns."},
    "FromGymnasium.start": {
        "tasks": "(T, ...), or (T, B, ...): one for each trajectory.",
        "trajectories": "B.",
        "noise": "(T, B, 1), standard normal: seeds of the copies.",
    },
    "FromGymnasium.observe": {"states": "(T, B, O).", "tasks": "(T, ...)."},
    "FromGymnasium.step": {
        "states": "(T, B, O), what the last call returned.",
        "actions": "(T, B, A), clipped to [-1, 1].",
        "tasks": "(T, ...).",
    },
    "ToGymnasium": {"environment": "any `Environment`, such as `Navigation()`."},
    "ToGymnasium.reset": {
        "seed": "of the start noise, or None to go on with the generator.",
        "options": "not used.",
    },
    "ToGymnasium.step": {"action": "(A,)."},
    "Navigation.draw": {"rng": RNG, "shape": "the leading axes, such as (T,)."},
    "Navigation.observe": {"positions": "(T, B, 2).", "goals": "(T, 2)."},
    "Navigation.start": {"goals": "(T, 2).", "trajectories": "B."},
    "Navigation.step": {
        "positions": "(T, B, 2).",
        "actions": "(T, B, 2).",
        "goals": "(T, 2).",
    },
    "Trajectories.first": {"steps": "the number of steps to keep."},
    "Actor.act": {"thetas": "(T, P).", "x": "(T, B, O).", "noise": "(T, B, A)."},
    "Environment.draw": {"rng": RNG, "shape": "the leading axes, such as (T,)."},
    "Environment.start": {
        "tasks": "(T, ...).",
        "trajectories": "B.",
        "noise": "(T, B, D), standard normal.",
    },
    "Environment.observe": {"states": "(T, B, ...).", "tasks": "(T, ...)."},
    "Environment.step": {
        "states": "(T, B, ...).",
        "actions": "(T, B, A).",
        "tasks": "(T, ...).",
    },
    "log_probability": {
        "gaussian": "the policy's distribution for N observations.",
        "actions": "a Value (N, A).",
    },
    "kl_divergence": {
        "old": "a `Gaussian` for N observations.",
        "new": "another for the same observations.",
    },
    "chunk_steps": {
        "trajectories": "B trajectories of each of T tasks.",
        "size": "the number of steps in a chunk.",
    },
    "PolicyLosses.gradient": {"thetas": "(T, P).", "samples": "of T tasks."},
    "PolicyLosses.hessian": {"thetas": "(T, P).", "samples": "of T tasks."},
    "PolicyLosses.fisher": {"thetas": "(T, P).", "samples": "of T tasks."},
    "PolicyLosses.attach_old_policy": {"samples": "of T tasks."},
    "PolicyLosses.surrogate": {
        "thetas": "(T, P).",
        "samples": "those of `attach_old_policy`.",
    },
    "PolicyLosses.surrogate_and_kl": {
        "thetas": "(T, P).",
        "samples": "those of `attach_old_policy`.",
    },
}
