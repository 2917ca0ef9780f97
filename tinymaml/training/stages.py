"""Several trainings, one after the other, that share a checkpoint, a log and a resume.

With this file an experiment that trains a method and its baselines is one run: Ctrl-C
in any of its trainings saves all of them, and a resumed run continues each where it
was, bit for bit. The checkpoint holds a complete training state per training, so a
finished one can be prolonged as well.

    stages = Stages("results", config={"seed": 0}, iterations=9)
    exact = stages.train("exact", maml, theta, sample, iterations=9, ...)

Left out: trainings at the same time.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tinymaml.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    CheckpointFile,
    load_checkpoint,
    save_checkpoint,
)
from tinymaml.training.console import Table
from tinymaml.training.optim import Optimiser
from tinymaml.training.run import FilePath, GradientResult
from tinymaml.training.train import TrainResult, train


class Stages:
    """The trainings of one run, in one folder.

    Args:
        folder: where `checkpoint.npz` and `log.csv` are written; it must exist by the
            time of the first training.
        config: JSON values in which a resumed run must agree with its checkpoint.
        iterations: what no training will exceed; a checkpoint must not have done so.
        resume: a checkpoint of such a run, read and checked here.
        progress: whether trainings show their bars.

    Raises:
        CheckpointError: `resume` is damaged, or belongs to another run.
        OSError: `resume` cannot be read.
    """

    def __init__(
        self,
        folder: FilePath,
        config: Mapping[str, Any],
        iterations: int,
        resume: FilePath | None = None,
        progress: bool = True,
    ) -> None:
        self.checkpoint = Path(folder) / "checkpoint.npz"
        self.log = Path(folder) / "log.csv"
        self.config = dict(config)
        self.progress = progress
        self.results: dict[str, TrainResult] = {}
        self._resume = resume
        self._parts = {} if resume is None else _load_parts(resume)
        for name, part in self._parts.items():
            for key, ours in self.config.items():
                theirs = part.config.get(key, "nothing")
                if ours != theirs:
                    raise CheckpointError(
                        f"resume: expected a checkpoint with {key} = {ours!r}, but "
                        f"{resume} was written with {theirs!r} (training {name!r})"
                    )
            done = part.state.get("iteration", 0)
            if done > iterations:
                raise CheckpointError(
                    f"resume: expected at least {done} iterations, as far as "
                    f"{resume} has come (training {name!r}), got {iterations}"
                )

    def train(
        self,
        name: str,
        gradient: Callable[[np.ndarray, Any], GradientResult],
        theta: np.ndarray,
        sample: Callable[[np.random.Generator], Any],
        *,
        iterations: int,
        optimiser: Optimiser,
        rng: np.random.Generator,
        config: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> TrainResult:
        """`train`, as a part of this run: the checkpoint and the log are seen to.

        Arguments as in `train`. `name` stands in the log, in the progress bar and in
        the checkpoint; `config` is what this training adds to that of the run.

        Raises KeyboardInterrupt after Ctrl-C, when all is saved; otherwise as `train`.
        """
        before = [
            (other, row)
            for other, result in self.results.items()
            for row in result.losses
        ]
        part = _Part(self.checkpoint, name, self._parts)
        # Read from the memory of this run, so errors name the file it came from.
        known = _Part(self._resume or self.checkpoint, name, self._parts)
        result = train(
            gradient,
            theta,
            sample,
            iterations=iterations,
            optimiser=optimiser,
            rng=rng,
            out=part,
            log=Table(self.log, name, before, options.get("columns", ())),
            config={**self.config, **(config or {})},
            resume=known if name in self._parts else None,
            progress=self.progress,
            description=name,
            **options,
        )
        self.results[name] = result
        if result.interrupted:
            raise KeyboardInterrupt
        return result


@dataclass
class _Part(CheckpointFile):
    """One training's part of a checkpoint file; saving it keeps all other parts."""

    path: FilePath
    name: str
    parts: dict[str, Checkpoint]

    def save(
        self,
        arrays: Mapping[str, np.ndarray],
        config: Mapping[str, Any],
        state: Mapping[str, Any],
    ) -> None:
        # Copies: training goes on changing the arrays, and other parts save this one.
        copies = {name: array.copy() for name, array in arrays.items()}
        self.parts[self.name] = Checkpoint(copies, dict(config), dict(state))
        save_checkpoint(
            self.path,
            {
                f"{part}/{name}": array
                for part, checkpoint in self.parts.items()
                for name, array in checkpoint.arrays.items()
            },
            {"trainings": {n: part.config for n, part in self.parts.items()}},
            {"trainings": {n: part.state for n, part in self.parts.items()}},
        )

    def load(self) -> Checkpoint:
        part = self.parts[self.name]
        return replace(part, arrays={n: a.copy() for n, a in part.arrays.items()})


def _load_parts(path: FilePath) -> dict[str, Checkpoint]:
    whole = load_checkpoint(path)
    try:
        return {
            name: Checkpoint(
                {
                    key.removeprefix(f"{name}/"): array
                    for key, array in whole.arrays.items()
                    if key.startswith(f"{name}/")
                },
                dict(config),
                dict(whole.state["trainings"][name]),
            )
            for name, config in whole.config["trainings"].items()
        }
    except (KeyError, TypeError, AttributeError, ValueError):
        raise CheckpointError(
            "resume: expected a checkpoint of several trainings, but "
            f"{os.fspath(path)} holds something else"
        ) from None
