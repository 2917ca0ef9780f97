"""What a plan for a GPU must never do, checked without running it.

As in planning.py, launches are replayed twice on integers that stand for "who wrote
this element last": in the memory of a `Layout`, and with memory of its own for every
buffer of every task. Wherever something is read, both must give the same writer.
Besides, no launch may depend on the order of its threads: an element that a thread
writes is neither written nor read by another thread of the same launch.
"""

from math import prod

import numpy as np

from tests.support.planning import accumulates, extents
from tinymaml.backends.cuda.device_program import BLOCKS, Layout

NOBODY, ALL = -1, -2  # who wrote an element; which thread reads it


def extents_on_device(kernel, sizes):
    """(elements written, (elements read of each operand)) of a kernel for one task."""
    if kernel in ("im2col", "col2im"):
        images, height, width, channels, rows, columns, kh, kw, *_ = sizes
        pixels = images * height * width * channels
        patches = images * rows * columns * kh * kw * channels
        return (patches, (pixels,)) if kernel == "im2col" else (pixels, (patches,))
    if kernel in ("max_gather", "max_scatter"):
        images, height, width, channels, size = sizes
        large = images * height * width * channels
        small = images * (height // size) * (width // size) * channels
        gather = kernel == "max_gather"
        return (small, (large, large)) if gather else (large, (small, large))
    return extents(kernel, sizes)


def broadcast_sources(outer, middle, inner):
    """For each element of a broadcast, the element that it is a copy of."""
    few = np.arange(outer * inner).reshape(outer, 1, inner)
    return np.broadcast_to(few, (outer, middle, inner)).reshape(-1)


def elements_read(operation):
    """For each operand of an elementwise operation, the element that thread i reads."""
    own = np.arange(prod(operation.sizes))
    if operation.kernel == "broadcast":
        return [broadcast_sources(*operation.sizes)]
    if operation.kernel == "scale":
        return [own, 0 * own]
    if len(operation.sizes) == 3:
        return [own, broadcast_sources(*operation.sizes)]
    return [own for _ in operation.reads]


def touched(launch):
    """Steps of a launch: ((view, elements) written, [(view, elements, thread) read]).

    Thread i writes element i; thread ALL stands for threads that read anything.
    """
    if launch.operations:
        for operation in launch.operations:
            own = np.arange(prod(operation.sizes))
            elements = zip(operation.reads, elements_read(operation), strict=True)
            reads = [(view, read, own) for view, read in elements]
            if accumulates(operation):
                reads.append((operation.out, own, own))
            yield (operation.out, own), reads
        return
    written, sizes = extents_on_device(launch.kernel, launch.sizes)
    own = np.arange(written)
    reads = [
        (view, np.arange(size), np.full(size, ALL))
        for view, size in zip(launch.reads, sizes, strict=True)
    ]
    if accumulates(launch) or (launch.kernel == "col2im" and launch.sizes[-1]):
        reads.append((launch.out, own, own))
    yield (launch.out, own), reads


def assert_threads_do_not_meet(steps):
    """steps: ((elements, threads) written, [(elements, threads) read]) of a launch."""
    steps = list(steps)
    most = max(max(e.max() for e, _ in (out, *reads)) for out, reads in steps)
    owner = np.full(most + 1, NOBODY)

    def touch(elements, threads):
        free_or_own = (owner[elements] == NOBODY) | (owner[elements] == threads)
        assert free_or_own.all(), "threads meet in an element that one of them writes"

    for out, _ in steps:
        touch(*out)
        owner[out[0]] = out[1]
    for _, reads in steps:
        for read in reads:
            touch(*read)


class Replay:
    """Launches of a plan, replayed on who wrote what."""

    def __init__(self, plan, tasks):
        self.plan, self.tasks = plan, tasks
        self.layout = Layout(plan, tasks)
        self.planned = np.full(self.layout.size, NOBODY)
        self.own_memory = {}
        self.writers = 0  # so far
        inputs = [i for i in plan.tape.inputs.values() if i.node in plan.views]
        shared = [plan.views[i.node].buffer for i in inputs if not i.per_task]
        self.shared = {*shared, *plan.constants}

    def own(self, buffer, task):
        """The memory of its own that a task has for a buffer."""
        key = buffer, None if buffer in self.shared else task
        size = self.plan.buffer_sizes[buffer]
        return self.own_memory.setdefault(key, np.full(size, NOBODY))

    def address(self, view, task):
        start, step = self.layout.operand(view)
        return start + task * step

    def mark(self, size):
        """Numbers that no other elements have."""
        self.writers += size
        return np.arange(self.writers - size, self.writers)

    def read(self, view, elements, task):
        planned = self.planned[self.address(view, task) + elements]
        own = self.own(view.buffer, task)[view.offset + elements]
        assert (own != NOBODY).all(), f"{view}: read before anything was written"
        assert (planned == own).all(), f"{view}: overwritten while it was needed"

    def write(self, view, elements, task):
        marks = self.mark(elements.size)
        self.planned[self.address(view, task) + elements] = marks
        self.own(view.buffer, task)[view.offset + elements] = marks

    def fill(self, start, size):
        """Write outside of all buffers."""
        assert 0 <= start and start + size <= self.layout.size
        marks = self.mark(size)
        self.planned[start : start + size] = marks
        return start, marks

    def assert_unchanged(self, filled):
        for start, marks in filled:
            unchanged = self.planned[start : start + marks.size] == marks
            assert unchanged.all(), "overwritten, though it is needed later"

    def fill_from_host(self):
        """Inputs and constants, as a program sends them: what all tasks share first."""
        filled, layout = [], self.layout
        for name, (node, shape, per_task) in self.plan.tape.inputs.items():
            size, tasks = prod(shape), self.tasks if per_task else 1
            start = layout.inputs[name].start
            begin, end = (
                (layout.per_task, layout.from_host)
                if per_task
                else (0, layout.per_task)
            )
            assert begin <= start and start + size * tasks <= end
            filled.append(self.fill(start, size * tasks))
            if node in self.plan.views:
                buffer = self.plan.views[node].buffer
                for task, marks in enumerate(np.split(filled[-1][1], tasks)):
                    self.own(buffer, task)[:] = marks
        numbers = []
        for start, size, number in layout.constants():
            assert start + size <= layout.per_task
            filled.append(self.fill(start, size))
            numbers.append(number)
        assert numbers == list(self.plan.constants.values())
        for buffer, (_, marks) in zip(
            self.plan.constants, filled[len(layout.inputs) :], strict=True
        ):
            self.own(buffer, 0)[:] = marks
        return filled

    def run_launch(self, launch):
        steps = list(touched(launch))
        everyone = range(self.tasks)

        def addresses(task, view, elements, threads):
            mine = np.where(threads == ALL, ALL, threads * self.tasks + task)
            return self.address(view, task) + elements, mine

        assert_threads_do_not_meet(
            (
                addresses(task, *out, out[1]),
                [addresses(task, *read) for read in reads],
            )
            for out, reads in steps
            for task in everyone
        )
        for task in everyone:
            for out, reads in steps:
                for view, elements, _ in reads:
                    self.read(view, elements, task)
                self.write(*out, task)

    def fetch_outputs(self):
        filled, layout = [], self.layout
        for name, (node, shape, reduction) in self.plan.tape.outputs.items():
            size, each = prod(shape), reduction == "each"
            for task in range(self.tasks):
                self.read(self.plan.views[node], np.arange(size), task)
            if not each:
                blocks = min(BLOCKS, self.tasks)
                self.fill(layout.partial_sums[name].start, blocks * size)
            start = layout.outputs[name].start
            assert start >= layout.outputs_start
            filled.append(self.fill(start, size * (self.tasks if each else 1)))
        return filled


def assert_device_plan_is_sound(plan, tasks=2):
    replay = Replay(plan, tasks)
    filled = replay.fill_from_host()
    for launch in plan.instructions:
        replay.run_launch(launch)
    filled += replay.fetch_outputs()
    replay.assert_unchanged(filled)  # for the next call and for the host
