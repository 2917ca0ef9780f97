"""What a plan for a GPU must never do, checked without running it.

As in planning.py, launches are replayed twice on integers that stand for "who wrote
this element last": in the memory of a `Layout`, and with memory of its own for every
buffer of every task. Wherever something is read, both must tell the same. Besides, no
launch may depend on the order of its threads: an element that a thread writes is
neither written nor read by another thread of the same launch.
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


def spread(outer, middle, inner):
    """For each element of a broadcast, the element that it is a copy of."""
    few = np.arange(outer * inner).reshape(outer, 1, inner)
    return np.broadcast_to(few, (outer, middle, inner)).reshape(-1)


def elements_read(link):
    """Of each operand of an elementwise operation, the element that thread i reads."""
    own = np.arange(prod(link.sizes))
    if link.kernel == "broadcast":
        return [spread(*link.sizes)]
    if link.kernel == "scale":
        return [own, 0 * own]
    if len(link.sizes) == 3:
        return [own, spread(*link.sizes)]
    return [own for _ in link.reads]


def touched(launch):
    """Steps of a launch: ((place, elements) written, [(place, elements, thread) read]).

    Thread i writes element i; thread ALL stands for threads that read anything.
    """
    if launch.links:
        for link in launch.links:
            own = np.arange(prod(link.sizes))
            elements = elements_read(link)
            reads = [(p, e, own) for p, e in zip(link.reads, elements, strict=True)]
            if accumulates(link):
                reads.append((link.out, own, own))
            yield (link.out, own), reads
        return
    written, sizes = extents_on_device(launch.kernel, launch.sizes)
    own = np.arange(written)
    reads = [
        (place, np.arange(size), np.full(size, ALL))
        for place, size in zip(launch.reads, sizes, strict=True)
    ]
    if accumulates(launch) or (launch.kernel == "col2im" and launch.sizes[-1]):
        reads.append((launch.out, own, own))
    yield (launch.out, own), reads


def assert_threads_keep_apart(steps):
    """steps: ((elements, threads) written, [(elements, threads) read]) of a launch."""
    steps = list(steps)
    most = max(max(e.max() for e, _ in (out, *reads)) for out, reads in steps)
    owner = np.full(most + 1, NOBODY)

    def touch(elements, threads):
        free_or_own = (owner[elements] == NOBODY) | (owner[elements] == threads)
        assert free_or_own.all(), "threads meet in what one of them writes"

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
        self.together = np.full(self.layout.size, NOBODY)
        self.apart = {}
        self.writers = 0  # so far
        inputs = [i for i in plan.tape.inputs.values() if plan.holds(i.node)]
        shared = [plan.place_of(i.node).buffer for i in inputs if not i.per_task]
        self.shared = {*shared, *plan.constants}

    def own(self, buffer, task):
        """The memory of its own that a task has for a buffer."""
        key = buffer, None if buffer in self.shared else task
        size = self.plan.buffer_size(buffer)
        return self.apart.setdefault(key, np.full(size, NOBODY))

    def address(self, place, task):
        start, step = self.layout.operand(place)
        return start + task * step

    def mark(self, size):
        """Numbers that no other elements have."""
        self.writers += size
        return np.arange(self.writers - size, self.writers)

    def read(self, place, elements, task):
        planned = self.together[self.address(place, task) + elements]
        own = self.own(place.buffer, task)[place.offset + elements]
        assert (own != NOBODY).all(), f"{place}: read before anything was written"
        assert (planned == own).all(), f"{place}: overwritten while it was needed"

    def write(self, place, elements, task):
        marks = self.mark(elements.size)
        self.together[self.address(place, task) + elements] = marks
        self.own(place.buffer, task)[place.offset + elements] = marks

    def fill(self, start, size):
        """Write outside of all buffers."""
        assert 0 <= start and start + size <= self.layout.size
        marks = self.mark(size)
        self.together[start : start + size] = marks
        return start, marks

    def assert_kept(self, filled):
        for start, marks in filled:
            kept = self.together[start : start + marks.size] == marks
            assert kept.all(), "overwritten, and to be kept"

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
            if self.plan.holds(node):
                buffer = self.plan.place_of(node).buffer
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

    def run_tape(self, launch):
        steps = list(touched(launch))
        everyone = range(self.tasks)

        def addresses(task, place, elements, threads):
            mine = np.where(threads == ALL, ALL, threads * self.tasks + task)
            return self.address(place, task) + elements, mine

        assert_threads_keep_apart(
            (
                addresses(task, *out, out[1]),
                [addresses(task, *read) for read in reads],
            )
            for out, reads in steps
            for task in everyone
        )
        for task in everyone:
            for out, reads in steps:
                for place, elements, _ in reads:
                    self.read(place, elements, task)
                self.write(*out, task)

    def fetch_outputs(self):
        filled, layout = [], self.layout
        for name, (node, shape, reduction) in self.plan.tape.outputs.items():
            size, each = prod(shape), reduction == "each"
            for task in range(self.tasks):
                self.read(self.plan.place_of(node), np.arange(size), task)
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
    for launch in plan.launches:
        replay.run_tape(launch)
    filled += replay.fetch_outputs()
    replay.assert_kept(filled)  # for the next call and for the host
