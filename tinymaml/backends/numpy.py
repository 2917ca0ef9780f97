"""The reference backend: the table of primitives, run one array operation at a time.

Every array has a leading task axis, of length 1 where all tasks share the array, so one
NumPy call computes an node for a whole block of tasks. Blocks keep memory independent
of the number of tasks; within a block an array is dropped after its last use.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tinymaml.autodiff.tape import Tape
from tinymaml.backends import bind_by_merging
from tinymaml.checks import check_dtype, check_inputs, check_threads

BLOCK = 32  # tasks run together
Array = np.ndarray[Any, Any]


class NumpyBackend:
    """Runs tapes with NumPy. Threads are accepted for symmetry and not used.

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
        """A callable that runs the tape: {name: array} in, {name: array} out."""
        return NumpyProgram(tape, check_dtype(dtype))


class NumpyProgram:
    """One tape, ready to be run in one dtype."""

    def __init__(self, tape: Tape, dtype: np.dtype[Any]) -> None:
        self.tape = tape = tape.snapshot()
        self.dtype = dtype
        self._live = tape.live()
        outputs = {output.node for output in tape.outputs.values()}
        last = {i: t for t in self._live for i in tape.nodes[t].arguments}
        self._forget: dict[int, list[int]] = {t: [] for t in self._live}
        for index, time in last.items():
            if index not in outputs:
                self._forget[time].append(index)

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the tape for all tasks; sums run over tasks in task order."""
        tasks = check_inputs(self.tape.inputs, self.dtype, inputs) or 1
        blocks = []
        for start in range(0, tasks, BLOCK):
            stop = min(start + BLOCK, tasks)
            blocks.append(self._run(inputs, start, stop))
        results = {}
        for name, output in self.tape.outputs.items():
            parts = [block[name] for block in blocks]
            joined = np.concatenate(parts) if output.reduction == "each" else sum(parts)
            results[name] = np.asarray(joined)
        return results

    bind = bind_by_merging

    def _run(
        self, inputs: Mapping[str, Array], start: int, stop: int
    ) -> dict[str, Array]:
        """One block of tasks, start .. stop - 1."""
        arrays: dict[int, Array] = {}
        for name, (index, _, per_task) in self.tape.inputs.items():
            array = np.asarray(inputs[name])  # a matrix would multiply otherwise
            arrays[index] = array[start:stop] if per_task else array[None]
        with np.errstate(all="ignore"):  # NaN and infinity are results, not accidents
            for index in self._live:
                if index not in arrays:
                    primitive, arguments, attributes, _ = self.tape.nodes[index]
                    reads = (arrays[i] for i in arguments)
                    array = primitive.evaluate(*reads, **dict(attributes))
                    arrays[index] = array.astype(self.dtype, copy=False)
                for i in self._forget[index]:
                    del arrays[i]
        results = {}
        for name, (index, shape, reduction) in self.tape.outputs.items():
            array = np.broadcast_to(arrays[index], (stop - start, *shape))
            results[name] = array.sum(axis=0) if reduction == "sum" else array
        return results
