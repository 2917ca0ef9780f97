"""Several trainings, one after the other: a method and its baselines as one run.

With this file an experiment writes a folder for each training (its checkpoint and its
log), stops all of them at Ctrl-C or SIGTERM, and continues each where it was, bit for
bit. A finished training can be prolonged as well.

    stages = Stages("results", ["exact", "pretrained"], {"seed": 0}, iterations=9)
    stages.prepare("exact", maml, theta, sample, iterations=9, ...)
    stages.prepare("pretrained", ...)
    exact, pretrained = stages.train("exact"), stages.train("pretrained")

Left out: trainings at the same time.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tinymaml.checks import check_choice
from tinymaml.files import FilePath
from tinymaml.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
)
from tinymaml.training.run import check_setting
from tinymaml.training.train import TrainResult, train

CHECKPOINT, LOG = "checkpoint.npz", "log.csv"


class Stages:
    """The trainings of one run. Training NAME writes into `folder`/NAME.

    Args:
        folder: the first training creates it, with its parents.
        names: of the trainings.
        config: JSON values in which a resumed run must agree with its checkpoints.
        iterations: the most that any training will take. A checkpoint that has more is
            refused.
        resume: `folder` of an earlier run, some of whose trainings are continued here.
            Its checkpoints are read and checked at once. The older format, one
            checkpoint file for all trainings, is accepted too.

    Raises:
        CheckpointError: `resume` is damaged, or belongs to another run.
        OSError: `resume` cannot be read.
    """

    def __init__(
        self,
        folder: FilePath,
        names: Iterable[str],
        config: Mapping[str, Any],
        iterations: int,
        resume: FilePath | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.names = list(names)
        self.config = dict(config)
        self.results: dict[str, TrainResult] = {}
        self._saved: set[str] = set()  # those whose checkpoint is of this run
        self._resumed: set[str] = set()
        self._loaded: dict[str, tuple[Path, Checkpoint]] = {}
        self._prepared: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self.iterations = iterations
        if resume is not None:
            self.resume(resume)

    def resume(self, resume: FilePath) -> None:
        """Read the checkpoints of an earlier run; the constructor says which."""
        for name, path, checkpoint in _load_trainings(Path(resume), self.names):
            for key, ours in self.config.items():
                check_setting(key, ours, checkpoint.config.get(key, "nothing"), path)
            _check_iterations(path, checkpoint, self.iterations)
            self._loaded[name] = path, checkpoint

    @property
    def files(self) -> list[str]:
        """The files that the trainings write, relative to `folder`."""
        return [f"{name}/{file}" for name in self.names for file in (CHECKPOINT, LOG)]

    def prepare(
        self,
        name: str,
        *arguments: Any,
        config: Mapping[str, Any] | None = None,
        anew_if: Iterable[str] = (),
        **options: Any,
    ) -> None:
        """Say how to run a training, and check that its checkpoint can be continued.

        An experiment prepares all of its trainings before it runs the first, so that
        none of them is refused hours later.

        name: one of the run's names. The other arguments are those of `train`: first
        gradient, theta and sample. `config` is added to that of the run. anew_if: keys
        of the configuration; a checkpoint that differs in one of them is not continued,
        and the training starts from its beginning.

        Raises CheckpointError if its checkpoint is not that of this training.
        """
        check_choice("name", name, self.names)
        options = {"description": name, **options}
        options["config"] = {**self.config, **(config or {})}
        self._prepared[name] = arguments, options
        path, checkpoint = self._loaded.get(name, (None, None))
        if checkpoint is None:
            return
        if any(options["config"][k] != checkpoint.config.get(k) for k in anew_if):
            del self._loaded[name]
            return
        assert path is not None
        _check_iterations(path, checkpoint, options.get("iterations", self.iterations))
        with TemporaryDirectory() as folder:
            copied = Path(folder, CHECKPOINT)
            save_checkpoint(copied, **vars(checkpoint))
            dry = {**options, "iterations": 0, "progress": False}
            try:
                train(*arguments, **dry, resume=copied)
            except CheckpointError as error:
                message = str(error).replace(str(copied), str(path))
                raise CheckpointError(message) from None

    def train(self, name: str, *arguments: Any, **options: Any) -> TrainResult:
        """`train` with a checkpoint and a log of its own, continued if it was resumed.

        name: a training that was prepared; if not, the other arguments are those of
        `prepare`. An earlier run's checkpoint of the same name is replaced.

        Raises KeyboardInterrupt after Ctrl-C or SIGTERM, once all is saved; otherwise
        as `train`.
        """
        if arguments:
            self.prepare(name, *arguments, **options)
        arguments, options = self._prepared[name]
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        # All resumed checkpoints are copied into this run's folder before any is
        # continued. If this run stops early, the folder holds what the next continues.
        while self._loaded:
            resumed, (_, checkpoint) = self._loaded.popitem()
            copied = self.folder / resumed / CHECKPOINT
            copied.parent.mkdir(exist_ok=True)
            save_checkpoint(copied, **vars(checkpoint))
            self._resumed.add(resumed)
        out = folder / CHECKPOINT
        before = _version(out)
        try:
            result = train(
                *arguments,
                out=out,
                log=folder / LOG,
                resume=out if name in self._resumed else None,
                **options,
            )
        finally:  # one that diverges leaves its last good checkpoint
            if _version(out) != before:
                self._saved.add(name)
        self.results[name] = result
        # This run has saved something, so checkpoints of an earlier run in this folder
        # must not be continued together with it.
        for other in {*self.names} - {*self.results} - self._saved - self._resumed:
            (self.folder / other / CHECKPOINT).unlink(missing_ok=True)
        if result.interrupted:
            raise KeyboardInterrupt
        return result


def _version(path: Path) -> tuple[int, int] | None:
    """What another file in its place does not have; None if there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def _check_iterations(path: Path, checkpoint: Checkpoint, most: int) -> None:
    """Refuse a checkpoint that has come further than this run will."""
    iteration = checkpoint.state.get("iteration", 0)
    if isinstance(iteration, int) and iteration > most:
        raise CheckpointError(
            f"resume: expected at least {iteration} iterations, as far as {path} has "
            f"come, got {most}"
        )


def _load_trainings(
    resume: Path, names: list[str]
) -> list[tuple[str, Path, Checkpoint]]:
    """Name, file and contents of the checkpoints of an earlier run."""
    paths = [(name, resume / name / CHECKPOINT) for name in names]
    found = [
        (name, path, load_checkpoint(path)) for name, path in paths if path.exists()
    ]
    old = resume / CHECKPOINT if resume.is_dir() else resume
    if not found and (old.exists() or not resume.is_dir()):
        trainings = _split(load_checkpoint(old), old)
        found = [(name, old, trainings[name]) for name in names if name in trainings]
    if not found:
        raise CheckpointError(
            f"resume: expected an earlier run with a training {' or '.join(names)}, "
            f"but {resume} has none"
        )
    return found


def _split(whole: Checkpoint, path: Path) -> dict[str, Checkpoint]:
    """The checkpoints that the older format kept in one file, by name of training."""
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
            "resume: expected a checkpoint of several trainings or the folder of an "
            f"earlier run, but {path} holds something else"
        ) from None
