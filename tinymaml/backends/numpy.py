"""The reference backend: a tape run with NumPy, one array operation after another.

Read this backend first. It does what every backend must do, in the order in which the
tape was recorded, and all others are tested against its numbers::

    run = NumpyBackend().compile(tape, "float64")
    results = run({"theta": theta, "x": x})      # {name: array} in, {name: array} out

A tape describes the computation for one task. To run it for many tasks at once, every
array gets a leading task axis: of length T for a value that differs from task to task,
of length 1 for a value that all tasks share. NumPy's broadcasting does the rest, so
that one call of NumPy computes a node for all tasks.

Left out: anything that makes it fast. Each node allocates a new array and passes over
memory once; `numba` fuses nodes and computes them in the cache.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tinymaml.autodiff.tape import Tape
from tinymaml.backends import Backend, bind_by_merging
from tinymaml.checks import Array, check_dtype, check_inputs, check_threads

BLOCK = 32  # tasks run together; memory grows with it and not with T


class NumpyBackend(Backend):
    """Runs tapes with NumPy. It accepts a number of threads and does not use it.

    >>> tape = Tape()
    >>> x = tape.input("x", (2,), per_task=True)
    >>> tape.output("squares", (x * x).sum(), "sum")
    >>> run = NumpyBackend().compile(tape, "float64")
    >>> run({"x": np.array([[1.0, 2.0], [3.0, 4.0]])})["squares"]
    array(30.)
    """

    name = "numpy"

    def __init__(self, threads: int | None = None) -> None:
        self.threads = check_threads(threads, default=1)

    def compile(self, tape: Tape, dtype: str) -> "NumpyProgram":
        """A program that runs the tape in float32 or float64."""
        return NumpyProgram(tape, check_dtype(dtype))


class NumpyProgram:
    """One tape, ready to be run in one dtype."""

    def __init__(self, tape: Tape, dtype: np.dtype[Any]) -> None:
        self.tape = tape = tape.snapshot()
        self.dtype = dtype
        # Nodes on which no output depends are not computed.
        self._live = tape.live()
        # An array may be freed right after the last node that reads it, or the memory
        # of all inner steps would be needed at once. Outputs are read at the very end.
        outputs = {output.node for output in tape.outputs.values()}
        last_reader = {i: t for t in self._live for i in tape.nodes[t].arguments}
        self._last_reads: dict[int, list[int]] = {t: [] for t in self._live}
        for index, reader in last_reader.items():
            if index not in outputs:
                self._last_reads[reader].append(index)

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the tape for all tasks; sums are over tasks, block after block."""
        tasks = check_inputs(self.tape.inputs, self.dtype, inputs) or 1
        starts = range(0, tasks, BLOCK)
        blocks = [self._run_block(inputs, i, min(i + BLOCK, tasks)) for i in starts]
        results = {}
        for name, output in self.tape.outputs.items():
            arrays = [block[name] for block in blocks]
            each = output.reduction == "each"
            results[name] = np.asarray(np.concatenate(arrays) if each else sum(arrays))
        return results

    bind = bind_by_merging

    def _run_block(
        self, inputs: Mapping[str, Array], start: int, stop: int
    ) -> dict[str, Array]:
        """Run the tape for the tasks start .. stop - 1."""
        # The value of each node, as far as it is needed. Inputs come first: they are
        # nodes too, whose value is given and not computed.
        values: dict[int, Array] = {}
        for name, (index, _, per_task) in self.tape.inputs.items():
            array = np.asarray(inputs[name])  # `*` of np.matrix is another product
            values[index] = array[start:stop] if per_task else array[None]
        with np.errstate(all="ignore"):  # NaN and infinity are results, not accidents
            for index in self._live:
                if index not in values:
                    primitive, arguments, attributes, _ = self.tape.nodes[index]
                    operands = (values[i] for i in arguments)
                    value = primitive.evaluate(*operands, **dict(attributes))
                    # A constant may have come as float64 into a float32 computation.
                    values[index] = value.astype(self.dtype, copy=False)
                for i in self._last_reads[index]:
                    del values[i]
        results = {}
        for name, (index, shape, reduction) in self.tape.outputs.items():
            # A value that all tasks share counts once for each of them, in sums too.
            array = np.broadcast_to(values[index], (stop - start, *shape))
            results[name] = array.sum(axis=0) if reduction == "sum" else array
        return results
