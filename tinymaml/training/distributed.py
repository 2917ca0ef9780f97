"""Meta-batches over several processes, by MPI: the tasks of an outer step are shared.

    mpirun -n 4 python -m mpi4py mine.py

    ranks = launched()
    maml = Distributed(MAML(loss, threads=ranks.threads()), ranks)
    train(maml, theta, sample, ...)      # all else as in one process

Every rank, a process of the run, has the same theta and draws the same tasks, with the
same random numbers. It computes its share of them; sums over tasks are added up over
ranks, and every rank takes the same outer step. Three names:

- `Ranks`: the processes, and what they exchange;
- `DistributedBackend`: a backend that runs the rank's share of the tasks;
- `Distributed`: a learner on such a backend, which `train` takes in its place.

With `exact=True` results have the bits of one process for any number of ranks: the sums
of the same blocks of tasks are added in the same order. Else they agree up to rounding.

Left out: asynchronous steps, ranks that join or leave, and parameters that do not fit
one process. docs/distributed.md has commands, measurements and a model of the time.
"""

import copy
import os
import sys
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from math import prod
from threading import Timer
from typing import Any

import numpy as np

from tinymaml.checks import check_flags, check_that
from tinymaml.tasks.batch import Tasks, block_bounds
from tinymaml.tasks.episodes import EpisodeIndices, Episodes
from tinymaml.training.optim import Optimiser
from tinymaml.training.steps import (
    ONE_PROCESS,
    Columns,
    OneProcess,
    RankError,
    Sample,
    Steps,
    Trainable,
)

Array = np.ndarray[Any, Any]
FAILED = 1000  # the request of a rank that failed is larger than this
PATIENCE = 60.0  # seconds that a rank that failed waits for the others, at each wait
FAREWELL = 5.0  # seconds that it waits for the others at its end
# Launchers tell each process how many there are in one of these variables: Open MPI,
# MPICH and others with PMI, and SLURM's srun.
SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")


# --- the processes --------------------------------------------------------------------


class Ranks(OneProcess):
    """The ranks of a run, and what they exchange.

    comm: a communicator of mpi4py, such as MPI.COMM_WORLD; a duplicate is used.
    exact: whether sums have the bits of one process; may be set later.

    Every rank must call the same methods in the same order. `agree` comes before each
    exchange of numbers: a rank that has failed since the last one says so there, and
    the others raise RankError. So none waits for numbers that never come.

    Raises TypeError where `comm` is no communicator, ImportError without mpi4py.
    """

    def __init__(self, comm: Any, exact: bool = False) -> None:
        if not hasattr(comm, "Allreduce"):
            expected = "expected a communicator such as MPI.COMM_WORLD"
            raise TypeError(f"comm: {expected}, got {comm!r}")
        from mpi4py import MPI

        self._mpi, self.exact = MPI, exact
        self._comm, self._farewell = comm.Dup(), comm.Dup()
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        self._word = np.zeros(1, np.int64)
        self._told: BaseException | None = None

    def __repr__(self) -> str:
        return f"Ranks({self.rank} of {self.size}, exact={self.exact})"

    def threads(self) -> int:
        """How many threads this rank may use: its part of the cores of its node.

        A launcher may have bound each rank to some cores; then these are counted.
        """
        self.agree()
        node = self._comm.Split_type(self._mpi.COMM_TYPE_SHARED)
        if hasattr(os, "sched_getaffinity"):
            own = os.sched_getaffinity(0)
        else:
            own = set(range(os.cpu_count() or 1))
        cores, ranks = set[int]().union(*node.allgather(own)), node.size
        node.Free()
        return max(1, min(len(own), len(cores) // ranks))

    # --- ending together ---

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Tell the other ranks of an exception, once; wait until all have ended.

        The first rank saves before it comes here, and a rank that fails must not end
        the program, and with it the first rank, before that.
        """
        if error is None or error is self._told:
            return
        self._told = error
        if not isinstance(error, RankError):
            # Where the others never ask, as they have gone another way, all are ended.
            timer = Timer(PATIENCE, self._abort, [error, 1])
            timer.start()
            try:
                with suppress(RankError):  # this rank has an error of its own to raise
                    self._exchange(FAILED + self.size - self.rank, error)
            finally:
                timer.cancel()
        self._all_come(PATIENCE)

    def agree(self, request: int = 0) -> int:
        """The largest of the requests of all ranks: whole numbers from 0 to 999.

        Raises RankError if a rank has failed.
        """
        return self._exchange(request)

    def _exchange(self, request: int, error: BaseException | None = None) -> int:
        self._word[0] = request
        self._comm.Allreduce(self._mpi.IN_PLACE, self._word, self._mpi.MAX)
        verdict = int(self._word[0])
        if verdict < FAILED:
            return verdict
        # Of several that fail, the first rank says why.
        failed = FAILED + self.size - verdict
        reason = f"{type(error).__name__}: {error}" if error is not None else ""
        reason = self._comm.bcast(" ".join(reason.split()), root=failed)
        raise RankError(f"rank {failed} of {self.size} failed: {reason}")

    def leave(self, status: int) -> None:
        """End the program: wait for the other ranks, or end them after 5 seconds.

        Without this, a rank that fails where the others do not notice would wait for
        them for ever, as the end of MPI does.
        """
        if not self._all_come(FAREWELL):
            self._abort(sys.exception(), status)

    def _all_come(self, seconds: float) -> bool:
        """Wait for all ranks to come here; whether they do so within some seconds."""
        request, started = self._farewell.Ibarrier(), time.monotonic()
        while not request.Test():
            if time.monotonic() - started > seconds:
                return False
            time.sleep(0.01)
        return True

    def _abort(self, error: BaseException | None, status: int) -> None:
        """End all ranks at once; Python has had no time to print the error."""
        if error is not None:
            sys.excepthook(type(error), error, error.__traceback__)
        self._comm.Abort(status)

    def check_same(self, **values: Any) -> None:
        """Raise ValueError naming the first value that differs from rank to rank."""
        for name, value in values.items():
            raw = value.tobytes() if hasattr(value, "tobytes") else repr(value).encode()
            same = len({*self.gather(np.array([zlib.crc32(raw)])).tolist()}) == 1
            check_that(same, name, "the same on every rank", "another on some")

    # --- sharing tasks, adding up results ---

    def share(self, tasks: int) -> slice:
        """The tasks of this rank, neighbours: in exact mode whole blocks of them."""
        bounds = block_bounds(tasks) if self.exact else range(tasks + 1)
        blocks = len(bounds) - 1
        first, last = (r * blocks // self.size for r in (self.rank, self.rank + 1))
        return slice(bounds[first], bounds[last])

    def for_tasks(self, tasks: int) -> OneProcess:
        """These ranks, if each has a task; else one process: each computes all."""
        blocks = len(block_bounds(tasks)) - 1 if self.exact else tasks
        return self if blocks >= self.size else ONE_PROCESS

    def gather(self, rows: Array) -> Array:
        """The rows of all ranks, (n, ...) of each, in the order of ranks."""
        self.agree()
        counts = np.array(self._comm.allgather(len(rows)))
        gathered = np.empty((counts.sum(), *rows.shape[1:]), rows.dtype)
        received = gathered, counts * prod(rows.shape[1:])
        self._comm.Allgatherv(np.ascontiguousarray(rows), received)
        return gathered

    def mean(self, rows: Array) -> Array:
        """The mean over the rows (n, ...) of all ranks, in float64."""
        if self.exact:
            return super().mean(self.gather(rows))
        total = np.append(rows.sum(axis=0, dtype=np.float64), len(rows))
        self.agree()
        self.add(total)
        return (total[:-1] / total[-1]).reshape(rows.shape[1:])

    def add(self, numbers: Array) -> None:
        """Replace numbers by their sum over ranks, in an order that MPI chooses."""
        self._comm.Allreduce(self._mpi.IN_PLACE, numbers)

    def add_in_order(self, rows: Array, blocks: int) -> Array:
        """The sum (S,) of the rows of all blocks, (n, S) on each rank, in their order.

        Each rank adds up its part of the columns. So it receives all rows of these, and
        the sums of the others, which is much less than all rows.
        """
        counts, widths = (
            np.diff(np.arange(self.size + 1) * number // self.size)
            for number in (blocks, rows.shape[1])
        )
        columns = np.split(rows, np.cumsum(widths)[:-1], axis=1)
        width = widths[self.rank]
        sent = np.concatenate([part.reshape(-1) for part in columns])
        received = np.empty(blocks * width, rows.dtype)
        self._comm.Alltoallv((sent, len(rows) * widths), (received, counts * width))
        part, total = np.zeros(width, rows.dtype), np.empty(rows.shape[1], rows.dtype)
        for row in received.reshape(blocks, width):
            part += row
        self._comm.Allgatherv(part, (total, widths))
        return total

    def sampler(self, sample: Sample) -> Sample:
        """`sample`, but images are looked up for this rank's tasks only.

        The arrays of a batch keep their shapes. In the place of other ranks' images
        they have zeros, which nothing reads and which take no memory in large batches.
        """
        # Not for subclasses of Episodes: they may do more than look up images.
        if type(sample) is not Episodes:
            return sample

        def sample_share(rng: np.random.Generator) -> Tasks:
            drawn = sample.draw(rng)
            own = self.share(len(drawn.support))
            parts = sample.look_up(EpisodeIndices(*(array[own] for array in drawn)))
            shapes = [(len(drawn.support), *part.shape[1:]) for part in parts]
            batch = Tasks(*(np.zeros(shape, sample.dtype) for shape in shapes))
            for whole, part in zip(batch, parts, strict=True):
                whole[own] = part
            return batch

        return sample_share


@cache
def launched() -> OneProcess:
    """The ranks of this run, if `mpirun` or `srun` has started it; else one process.

    They are the same object in each call, so that all parts of a program agree on it.

    Raises ImportError in one line where mpi4py or MPI is missing, or where mpi4py uses
    another MPI than the launcher: then each process would be a run of its own.

    >>> ranks = launched()
    >>> ranks.rank < ranks.size
    True
    """
    size = max(int(os.environ.get(name) or 1) for name in SIZES)
    if size == 1:
        return ONE_PROCESS
    # Where ranks share cores, with others or with other programs, a rank that waits
    # must let them run: measured, 0.8 ms in place of 17.5 for a sinusoid's iteration.
    os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise ImportError(f"several processes need mpi4py and MPI: {error}") from error
    if MPI.COMM_WORLD.Get_size() == 1:
        raise ImportError(
            f"{size} processes were started, but mpi4py sees one: it uses another MPI "
            "than mpirun or srun (for srun, see its option --mpi)"
        )
    return Ranks(MPI.COMM_WORLD)


# --- a learner over several processes -------------------------------------------------


class DistributedBackend:
    """A backend whose programs run the rank's share of the tasks, and add up.

    backend: what runs the share. ranks: a `Ranks`. exact: whether results
    must have the bits of one process, also if the ranks are set so only later. All
    ranks get all results.

    Raises ValueError for exact results on a backend that cannot return sums of blocks
    of tasks, which numba can; for a backend that is distributed already; and when it
    compiles a tape that has no input per task.
    """

    def __init__(self, backend: Any, ranks: OneProcess, exact: bool = False) -> None:
        fits = not (exact or ranks.exact) or backend.name == "numba"
        check_that(fits, "exact", "backend numba", backend.name)
        check_that(not hasattr(backend, "ranks"), "backend", "not distributed", backend)
        self.local, self.ranks = backend, ranks
        self.name, self.threads = backend.name, backend.threads

    def __repr__(self) -> str:
        return f"DistributedBackend({self.local!r}, {self.ranks!r})"

    def compile(self, tape: Any, dtype: Any) -> "DistributedProgram":
        """A program that runs the tape over all ranks."""
        fits = any(each.per_task for each in tape.inputs.values())
        check_that(fits, "tape", "an input per task, to be shared", [*tape.inputs])
        return DistributedProgram(self.local.compile(tape, dtype), self.ranks)

    def training_steps(self, optimiser: Optimiser, **settings: Any) -> Steps | None:
        """None: outer steps are taken in each process."""
        return None


class DistributedProgram:
    """A compiled tape, run over all ranks: {name: array} -> {name: array} as in one.

    program: the rank's own, with the attributes `tape` and `dtype`. Results are exact
    where the ranks are and the program can return sums of blocks.
    """

    def __init__(self, program: Any, ranks: Any) -> None:
        self.program, self.ranks, self.tape = program, ranks, program.tape

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the share of this rank, and return the results for all tasks."""
        ranks, dtype = self.ranks, self.program.dtype
        exact = ranks.exact and hasattr(self.program, "sums_of_blocks")
        per_task = [name for name, i in self.tape.inputs.items() if i.per_task]
        tasks = len(inputs[per_task[0]])
        own, bounds = ranks.share(tasks), block_bounds(tasks)
        share = {**inputs, **{name: inputs[name][own] for name in per_task}}
        results: dict[str, Array] = {}
        # With more ranks than tasks some have none, and add zeros.
        if own.start < own.stop and exact:
            of_share = [b - own.start for b in bounds if own.start <= b <= own.stop]
            results = self.program.sums_of_blocks(share, of_share)
        elif own.start < own.stop:
            results = self.program(share)
        ranks.agree()
        for name, (_, shape, reduction) in self.tape.outputs.items():
            part = results.get(name, np.zeros((0, *shape), dtype))
            if reduction == "each":
                results[name] = np.zeros((tasks, *shape), dtype)
                results[name][own] = part
                # Zeros are added to the bits, so that even the sign of a zero stays.
                ranks.add(results[name].view(f"u{dtype.itemsize}"))
            elif exact:
                rows = part.reshape(len(part), prod(shape))
                total = ranks.add_in_order(rows, len(bounds) - 1)
                results[name] = total.reshape(shape)
            else:
                part = part if part.shape == shape else np.zeros(shape)
                results[name] = np.array(part, dtype)
                ranks.add(results[name])
        return results


class Distributed(Trainable):
    """A learner whose tasks are shared by several processes.

    learner: a `MAML` or a `MAMLTRPO`; it stays as it is. comm: what `launched()`
    returns, the same for all learners of a program; or a communicator of mpi4py, such
    as MPI.COMM_WORLD. exact: whether results have the bits of one process, for any
    number of ranks; a `MAML` then needs the backend numba. This is a setting of the
    ranks: earlier learners on them become exact if their backend can, and a later
    `MAML` with another backend raises ValueError.

    It has all methods and attributes of the learner, and every rank must call the same
    ones in the same order. Outside of `train`, an exception on one rank leaves the
    others waiting; start such programs with `python -m mpi4py`, which ends all.

    Raises what `Ranks` and `DistributedBackend` raise.
    """

    def __init__(self, learner: Any, comm: Any, exact: bool = False) -> None:
        check_flags(exact=exact)
        fits = not isinstance(learner, Distributed)
        check_that(fits, "learner", "one of a single process", learner)
        self._ranks = comm if isinstance(comm, OneProcess) else Ranks(comm)
        self.learner: Any = copy.copy(learner)
        if not isinstance(learner, Trainable):
            # A policy's tasks also act in environments: it spreads them itself.
            vars(self.learner)["ranks"] = self._ranks
        elif self._ranks is not ONE_PROCESS:
            backend = self.learner.backend
            self.learner.backend = DistributedBackend(backend, self._ranks, exact)
        if exact and self._ranks is not ONE_PROCESS:
            self._ranks.exact = True

    @property
    def ranks(self) -> OneProcess:
        """The processes that compute one gradient together."""
        return self._ranks

    def __call__(self, theta: Array, batch: Any, /) -> Any:
        """The gradient of all tasks of a batch, the same on every rank."""
        return self.learner(theta, batch)

    def training_steps(
        self, theta: Array, optimiser: Optimiser, sample: Sample, columns: Columns = ()
    ) -> Steps:
        """The outer steps of `train`, as the learner takes them."""
        # `MAMLPlusPlus` has steps of its own.
        own = getattr(self.learner, "training_steps", super().training_steps)
        return own(theta, optimiser, sample, columns)

    def __getattr__(self, name: str) -> Any:
        if name == "learner":  # not there yet: a copy is being made
            raise AttributeError(name)
        return getattr(self.learner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, such as alpha, of the learner that computes."""
        if name in ("learner", "_ranks"):
            super().__setattr__(name, value)
        else:
            setattr(self.learner, name, value)

    def __repr__(self) -> str:
        return f"Distributed({self.learner!r}, {self._ranks!r})"
