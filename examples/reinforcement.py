"""What the experiments of section 5.3 share: methods, training, test, results.

Policies meta-learned by MAML, exact and first-order, are compared with one pretrained
on all tasks at once, with random weights, and with an oracle, which observes what the
agent must find out. A policy with a context vector (appendix C.2 of the paper) is
meta-learned by exact MAML, too, but adapts its free inputs in place of all weights. An
experiment gives its environment, its sizes and its methods;
here each method is trained, its best parameters are tested, and results are written.

The baselines take the same outer step as MAML, without an inner step before it. All
tasks are one for them: each trajectory has a goal of its own, and one value function is
fitted to all trajectories. The parameters tested are those with the best return on
validation tasks, adapted as at test; the paper has those with the best return during
training.

Left out: the figures.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

import tinymaml as tm
from reinforcement_figures import Curve
from shared import mean_and_interval, random_stream, text_table, write_results
from stages import Stages
from tinymaml.backends import Backend
from tinymaml.networks.layers import xavier_uniform
from tinymaml.rl.maml_trpo import MAMLTRPO, Adaptation, MetaBatch
from tinymaml.rl.policy import GaussianPolicy
from tinymaml.rl.rollouts import Environment
from tinymaml.training.distributed import Distributed, launched
from tinymaml.training.steps import ONE_PROCESS, OneProcess, Trainable
from tinymaml.variants.context_vector import Context

Array = np.ndarray[Any, Any]
Row = dict[str, Any]  # of results.json
# The progress bar shows the first: how far the inner step moves the policy.
COLUMNS = ("inner_kl", "before", "after", "kl", "improvement", "backtracks", "accepted")
ORDERS = {"exact": 2, "first-order": 1, "context": 2}  # the trainings of MAML

# Purposes of random numbers; each has a stream of its own (`random_stream`).
INITIAL, TRAINING, TEST, VALIDATION = 1, 2, 3, 4


class Method(NamedTuple):
    """One of the methods compared, for the table and the figure."""

    label: str
    paper: tuple[float, ...]  # returns after 0, 1, 2 ... gradient steps
    colour: str
    marker: str


def methods(papers: Mapping[str, Sequence[float]]) -> dict[str, Method]:
    """The methods by name of training, with the authors' returns where known."""
    styles = {
        "exact": ("MAML", "#0072B2", "o"),
        "first-order": ("MAML, first order", "#E69F00", "s"),
        "context": ("context vector", "#CC79A7", "D"),
        "pretrained": ("pretrained", "#CC3311", "^"),
        "random": ("random", "0.5", "v"),
        "oracle": ("oracle", "#009E73", "d"),
    }
    return {
        name: Method(label, tuple(papers.get(name, ())), colour, marker)
        for name, (label, colour, marker) in styles.items()
    }


@dataclass(frozen=True)
class Recipe:
    """The sizes of an experiment, and its learning rates."""

    alpha: float  # inner learning rate (step size) in training
    tasks: int  # in an outer step
    trajectories: int  # for each task, before and after the inner step
    pooled: int  # trajectories in an outer step of a baseline
    iterations: Mapping[str, int]  # outer steps, by name of training
    context: int = 5  # free inputs of the policy with a context vector
    hidden: tuple[int, ...] = (100, 100)  # units of the policy's hidden layers
    max_kl: float = 0.01  # mean KL divergence of an outer step
    decay: float = 1.0  # GAE's lambda
    test_alphas: Mapping[str, float] | None = None  # by method, if not `alpha`
    later: float = 0.5  # at test, alpha is multiplied by it after the first step
    test_tasks: int = 40
    test_steps: int = 4
    shots: int = 40  # K: trajectories for each gradient step, if none ends early
    test_trajectories: int = 160  # the most that are sampled if trajectories end early
    test_transitions: int | None = None  # steps of the environment for a gradient step
    validation_steps: int = 3
    validate_every: int = 5  # outer steps of MAML
    validate_baselines_every: int = 5

    def inner_learning_rates(self, alpha: Any, steps: int) -> list[Any]:
        """At test: alpha for the first gradient step, then `later` times alpha."""
        return ([alpha] + [alpha * self.later] * steps)[:steps]


class OuterStep(Trainable):
    """An outer step as `train` takes it, over the processes of the run."""

    def __init__(
        self, step: Callable[[Array, MetaBatch], Any], ranks: OneProcess
    ) -> None:
        self._step, self._ranks = step, ranks

    @property
    def ranks(self) -> OneProcess:
        """The processes that take one outer step together."""
        return self._ranks

    def __call__(self, theta: Array, batch: MetaBatch, /) -> Any:
        """The step, with the numbers of the log."""
        return self._step(theta, batch)


class Experiment:
    """The trainings and the test of one environment.

    name: of the experiment, in results.json. environment: from whether the goal is
    visible to an environment. names: the methods that are compared, keys of `methods`.
    """

    columns: tuple[str, ...] = COLUMNS

    def __init__(
        self,
        name: str,
        environment: Callable[[bool], Environment],
        recipe: Recipe,
        methods: Mapping[str, Method],
        names: Sequence[str],
        options: argparse.Namespace,
        backend: Backend,
    ) -> None:
        self.name, self.environment, self.recipe = name, environment, recipe
        self.methods = {key: methods[key] for key in methods if key in names}
        self.options, self.ranks = options, launched()
        # Policies act in environments, so their learner spreads the tasks.
        self.backend = getattr(backend, "local", backend)
        self.trained = [key for key in self.methods if key != "random"]
        self._testers: dict[tuple[bool, int], MAMLTRPO] = {}

    # --- learners ---
    # A policy is written once. Sampling, the inner step and the outer step all use it.

    def learner(
        self, goal_visible: bool = False, context: int = 0, **settings: Any
    ) -> MAMLTRPO:
        """A learner with a new policy; the oracle's policy observes the goal.

        context: the number of free inputs, which are adapted in place of all else.
        """
        environment, recipe = self.environment(goal_visible), self.recipe
        sizes = [
            environment.observations + context,
            *recipe.hidden,
            environment.actions,
        ]
        network: tm.Network = tm.MLP(sizes, initialiser=xavier_uniform())
        alpha: Any = recipe.alpha
        if context:
            network = tm.Network([Context(context), *network.layers])
            alpha = network.vector(0.0, "float64", **{"context1.z": alpha})
            alpha = np.append(alpha, np.zeros(environment.actions))  # of log sigma
        policy = GaussianPolicy(network, environment.actions, backend=self.backend)
        given = {
            "alpha": alpha,
            "trajectories": recipe.trajectories,
            "max_kl": recipe.max_kl,
            "decay": recipe.decay,
        }
        given |= settings
        learner = MAMLTRPO(policy, environment, backend=self.backend, **given)
        return Distributed(learner, self.ranks).learner

    def learner_of(self, name: str) -> MAMLTRPO:
        """The learner of a training."""
        if name in ORDERS:
            return self.learner(context=self.context_of(name), order=ORDERS[name])
        pooled: dict[str, Any] = {"steps": 0, "trajectories": self.recipe.pooled}
        return self.learner(goal_visible=name == "oracle", **pooled)

    def context_of(self, name: str) -> int:
        """The number of free inputs of a method's policy."""
        return self.recipe.context if name == "context" else 0

    def draw_pooled(self, learner: MAMLTRPO, rng: np.random.Generator) -> MetaBatch:
        """A meta-batch of one task, in which each trajectory has its own goal."""
        goals = learner.environment.draw(rng, (1, learner.trajectories))
        noise = learner.noise(rng, tasks=1, steps=0)
        return MetaBatch(goals, noise, learner.start_noise(rng, tasks=1, steps=0))

    # --- training ---

    def step(self, learner: MAMLTRPO, theta: Array, batch: MetaBatch) -> Any:
        """An outer step, with the numbers of `columns`."""
        return learner.step(theta, batch)

    def prepare(self, stages: Stages, name: str) -> None:
        """Describe one method's training, and check what it is resumed from.

        Its best theta has the best return on validation goals: the mean of those after
        1, 2 and 3 gradient steps; the oracle, which does not adapt, has only the one
        before any step.
        """
        learner, recipe, seed = self.learner_of(name), self.recipe, self.options.seed

        def sample(rng: np.random.Generator) -> MetaBatch:
            if name in ORDERS:
                return learner.draw(rng, recipe.tasks)
            return self.draw_pooled(learner, rng)

        def outer_step(theta: Array, batch: MetaBatch) -> Any:
            step = self.step(learner, theta, batch)
            if not step.accepted and self.ranks.rank == 0:
                tqdm.write(
                    f"{name}: an outer step changed nothing: {step.reason}", sys.stderr
                )
            return step

        def validate(theta: Array) -> float:
            steps, ranks = recipe.validation_steps, self.ranks
            ranks = ranks.for_tasks(recipe.test_tasks)
            adapted = self.adapt(name, theta, VALIDATION, steps, ranks)
            returns = ranks.gather(adapted.returns())
            return float(returns[:, min(1, returns.shape[1] - 1) :].mean())

        every = (
            recipe.validate_every if name in ORDERS else recipe.validate_baselines_every
        )
        stages.prepare(
            name,
            OuterStep(outer_step, self.ranks),
            learner.policy.init(random_stream(INITIAL, seed)),
            sample,
            iterations=recipe.iterations[name],
            optimiser=tm.SGD(1.0),  # the trust region decides the length of the step
            rng=random_stream(TRAINING, seed),
            columns=self.columns,
            log_every=1,
            checkpoint_every=every,
            validate=validate,
            validate_every=every,
            description=self.methods[name].label,
            config={"context": recipe.context} if name == "context" else None,
        )

    def train(self, stages: Stages) -> dict[str, Array]:
        """Train all methods, one after the other; return theta by name of method."""
        for name in self.trained:
            self.prepare(stages, name)
        thetas = {}
        for name in self.trained:
            result = stages.train(name)
            thetas[name] = result.theta if result.best is None else result.best
        if "random" in self.methods:
            initial = random_stream(INITIAL, self.options.seed)
            thetas["random"] = self.learner().policy.init(initial)
        return {name: thetas[name] for name in self.methods}

    # --- the test ---
    # Adaptation at test time is meta-training's own inner loop, with smaller steps
    # after the first.

    def tester(self, goal_visible: bool = False, context: int = 0) -> MAMLTRPO:
        """The learner that adapts at test and validation."""
        if (goal_visible, context) not in self._testers:
            self._testers[goal_visible, context] = self.learner(
                goal_visible,
                context,
                trajectories=self.recipe.test_trajectories,
                transitions=self.recipe.test_transitions,
            )
        return self._testers[goal_visible, context]

    def test_batch(self, learner: MAMLTRPO, purpose: int, steps: int) -> MetaBatch:
        """The goals of the test or the validation, and the noise of trajectories."""
        rng, tasks = random_stream(purpose, 0), self.recipe.test_tasks
        goals = learner.environment.draw(rng, (tasks,))
        noise = learner.noise(rng, tasks, steps)
        return MetaBatch(goals, noise, learner.start_noise(rng, tasks, steps))

    def adapt(
        self,
        name: str,
        theta: Array,
        purpose: int,
        steps: int,
        ranks: OneProcess = ONE_PROCESS,
    ) -> Adaptation:
        """A method's trajectories, before and after each of at most `steps` steps.

        They are those of the tasks that `ranks` give this process.
        """
        oracle = name == "oracle"
        learner = self.tester(oracle, self.context_of(name))
        steps = 0 if oracle else steps
        alpha = (self.recipe.test_alphas or {}).get(name, learner.alpha)
        alphas = self.recipe.inner_learning_rates(alpha, steps)
        batch = self.test_batch(learner, purpose, steps)
        own = ranks.share(len(batch.tasks))
        return learner.adapt(theta, batch.of(own), alphas)

    def test(self, thetas: Mapping[str, Array]) -> dict[str, Adaptation]:
        """The adaptation of all methods to the test goals."""
        steps = self.recipe.test_steps
        return {
            name: self.adapt(name, theta, TEST, steps) for name, theta in thetas.items()
        }

    # --- results ---

    def rows_of(self, name: str, adaptation: Adaptation) -> list[Row]:
        """The rows of `results.json`: mean and interval for each number of steps.

        "shots" is the number of trajectories if none ends early. "trajectories" is the
        mean number that was used: if some end early, more are sampled.
        """
        paper, rows = self.methods[name].paper, []
        iterations = self.recipe.iterations[name] if name in self.trained else 0
        for steps, returns in enumerate(adaptation.returns().T):
            counts = adaptation.trajectories[steps].mask.any(axis=2).sum(axis=1)
            mean, interval = mean_and_interval(returns)
            rows.append(
                {
                    "method": "maml" if name in ("exact", "first-order") else name,
                    "order": ORDERS.get(name),
                    "iterations": iterations,
                    "shots": self.recipe.shots,
                    "trajectories": float(counts.mean()),
                    "steps": steps,
                    "return": mean,
                    "ci95": interval,
                    "paper": paper[steps] if steps < len(paper) else None,
                }
            )
        return rows

    def table(self, rows: Mapping[str, Sequence[Row]]) -> str:
        """Returns after 0 to 3 steps, each followed by the authors' number."""
        lines = []
        for name, points in rows.items():
            line = [self.methods[name].label]
            for row in points[:4]:
                paper = "" if row["paper"] is None else f" ({row['paper']:.2f})"
                line.append(f"{row['return']:.2f} ± {row['ci95']:.2f}{paper}")
            lines.append(line + [""] * (5 - len(line)))
        header = ["return after", "0 steps", "1 step", "2 steps", "3 steps"]
        return text_table(header, lines)

    def curves(
        self, stages: Stages, rows: Mapping[str, Sequence[Row]]
    ) -> tuple[list[Curve], list[Curve]]:
        """Returns against gradient steps, and in training against outer steps."""
        adaptation, training = [], []
        for name, points in rows.items():
            label, paper, colour, marker = self.methods[name]
            style = (label, colour, marker)
            values, interval = (
                np.array([row[key] for row in points]) for key in ("return", "ci95")
            )
            steps = np.arange(len(values))
            authors = np.array(paper[: len(values)])
            adaptation.append(Curve(*style, steps, values, interval, authors))
            if name in stages.results:
                log = stages.results[name].losses
                returns = np.array([-row.loss for row in log])
                iterations = np.array([row.iteration for row in log])
                training.append(Curve(*style, iterations, returns))
        return adaptation, training

    def returns_by_goal(
        self, adapted: Mapping[str, Adaptation]
    ) -> dict[str, list[list[float]]]:
        """For each method, rows of a goal and the returns after 0, 1, 2 ... steps."""
        goals = self.test_batch(self.tester(), TEST, 0).tasks
        table = {}
        for name, adaptation in adapted.items():
            rows = np.concatenate([goals, adaptation.returns()], axis=1).round(4)
            table[name] = rows[np.lexsort(goals.T[::-1])].tolist()
        return table

    def run(
        self,
        stages: Stages,
        command: str,
        draw: Callable[..., None],
        save: Callable[..., None] | None = None,
        **more: Any,
    ) -> None:
        """Train, test, draw, print, and write results.json with `more` settings.

        draw: called with the curves of adaptation, those of training, and the
        adaptation of each method. save: called with the tested theta and the rows of
        each method, and the iteration of the best theta of each training.
        """
        thetas = self.train(stages)
        results = stages.results
        seconds = {name: result.seconds for name, result in results.items()}
        started = time.perf_counter()
        adapted = self.test(thetas)
        rows = {name: self.rows_of(name, adapted[name]) for name in adapted}
        seconds["test"] = time.perf_counter() - started
        started = time.perf_counter()
        draw(*self.curves(stages, rows), adapted)
        seconds["figures"] = time.perf_counter() - started
        seconds["total"] = sum(seconds.values())
        best = {
            name: max(result.scores, key=lambda score: score[1])[0]
            for name, result in results.items()
            if result.scores
        }
        if save is not None:
            save(thetas, rows, best)
        accepted = self.columns.index("accepted")
        write_results(
            self.name,
            command,
            self.options,
            self.backend,
            seconds,
            [row for points in rows.values() for row in points],
            **more,
            returns_by_goal=self.returns_by_goal(adapted),
            accepted_steps={
                name: sum(row.more[accepted] for row in result.losses)
                for name, result in results.items()
            },
            best_iteration=best,
        )
        tasks, out = self.recipe.test_tasks, self.options.out
        print(f"Mean return over {tasks} goals, ± 95 % (in brackets: the authors')")
        print(self.table(rows))
        print(f"{seconds['total']:.0f} seconds; files are in {out}")
