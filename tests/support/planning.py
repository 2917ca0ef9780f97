"""What a plan must never do, checked call by call without running it.

The calls are replayed twice on integers that stand for "who wrote this element last":
on one workspace, as planned, and with a memory of its own for every buffer. Wherever a
call reads, both must give the same writer, and there must be one.

The tapes that tests of plans share are here as well.
"""

from math import prod

import numpy as np

import tinymaml as tm
from tests.support.plan_recipes import RECIPES

ONE_ARGUMENT = (
    *("exp", "log", "tanh", "copy", "reciprocal", "rsqrt", "relu", "sin", "cos"),
)
TWO_ARGUMENTS = ("add", "sub", "mul", "add_relu", "mul_add")
NOBODY, BEFOREHAND = -2, -1


def extents(kernel, sizes):
    """(elements written, (elements read of each operand)), from a call's sizes."""
    if kernel in TWO_ARGUMENTS:
        outer, middle, inner = sizes
        return prod(sizes), (prod(sizes), outer * inner)
    if kernel in ONE_ARGUMENT:
        return sizes[0], (sizes[0],)
    if kernel in ("gate", "scale"):
        return sizes[0], (sizes[0], sizes[0] if kernel == "gate" else 1)
    if kernel == "swap":
        return prod(sizes), (prod(sizes),)
    if kernel == "pad":
        _, length, size = sizes
        return size, (length,)
    if kernel == "matmul":
        m, n, k, _, _, _, *parts = sizes  # on a GPU a long product has parts
        return prod(parts) * m * n, (prod(parts) * m * k, prod(parts) * k * n)
    if kernel == "dots":
        m, n, k, _ = sizes
        return m * n, (m * k, n * k)
    if kernel in ("broadcast", "sum", "mul_sum"):
        outer, middle, inner, *blocks = sizes  # sums on the CPU have blocks
        few, many = outer * inner * prod(blocks), outer * middle * inner
        return {
            "broadcast": (many, (few,)),
            "sum": (few, (many,)),
            "mul_sum": (few, (many, many)),
        }[kernel]
    if kernel in ("conv", "conv_input", "conv_weight"):
        images, height, width, channels, rows, columns, features, kh, kw, *_ = sizes
        x = images * height * width * channels
        y, w = images * rows * columns * features, kh * kw * channels * features
        return {
            "conv": (y, (x, w)),
            "conv_input": (x, (y, w)),
            "conv_weight": (w, (x, y)),
        }[kernel]
    if kernel in ("largest", "max_gather", "max_scatter"):
        images, height, width, channels, size = sizes
        large = images * height * width * channels
        small = images * (height // size) * (width // size) * channels
        return {
            "largest": (2 * small, (large,)),
            "max_gather": (small, (large, small)),
            "max_scatter": (large, (small, small)),
        }[kernel]
    rows, columns = sizes
    written = {
        "transpose": rows * columns,
        "softmax": rows * columns,
        "logsumexp": rows,
    }
    return written[kernel], (rows * columns,)


def accumulates(call):
    flag_is_last = ("matmul", "dots", "conv", "conv_input", "conv_weight")
    flag = call.kernel in flag_is_last and call.sizes[-1] == 1
    return flag or call.kernel == "mul_add"


def extents_touched(call):
    """(buffer, offset, size) of what a call writes, and of each of its reads."""
    written, reads = extents(call.kernel, call.sizes)
    out = (*call.out, written)
    sources = [(*p, n) for p, n in zip(call.reads, reads, strict=True)]
    return out, sources + ([out] if accumulates(call) else [])


def assert_plan_is_sound(plan):
    workspace = np.full(plan.size, NOBODY)
    own_memory: dict[int, np.ndarray] = {}

    def writers(buffer, offset, size):
        """The last writers of an extent: as planned, and in memory of its own."""
        start = plan.offsets[buffer] + offset
        assert 0 <= start and start + size <= plan.size
        own = own_memory.setdefault(buffer, np.full(plan.size, NOBODY))
        return workspace[start : start + size], own[offset : offset + size]

    def write(extent, writer):
        for elements in writers(*extent):
            elements[:] = writer

    def read(extent):
        planned, own = writers(*extent)
        assert (planned != NOBODY).all(), f"{extent}: read before anything was written"
        assert (planned == own).all(), f"{extent}: overwritten while it was needed"

    fixed = [
        (*plan.views[i.node], prod(i.shape))
        for i in plan.tape.inputs.values()
        if i.node in plan.views
    ]
    fixed += [(buffer, 0, plan.buffer_sizes[buffer]) for buffer in plan.constants]
    for number, extent in enumerate(fixed):
        write(extent, -10 - number)
    for time, call in enumerate(plan.instructions):
        out, sources = extents_touched(call)
        for extent in sources:
            read(extent)
        if not accumulates(call):
            for extent in sources:
                assert are_disjoint(plan, out, extent), f"{call}: writes what it reads"
        write(out, time)
    for output in plan.tape.outputs.values():
        read((*plan.views[output.node], prod(output.shape)))
    for number, extent in enumerate(fixed):  # needed by the next task
        assert (writers(*extent)[0] == -10 - number).all(), f"{extent}: overwritten"


def are_disjoint(plan, one, other):
    """Whether two extents have no element of the workspace in common."""
    first, second = (
        (plan.offsets[buffer] + offset, plan.offsets[buffer] + offset + size)
        for buffer, offset, size in (one, other)
    )
    return first[1] <= second[0] or second[1] <= first[0]


# --- tapes ----------------------------------------------------------------------------


def tape_of(recipe):
    """The tape of a recipe: its values are outputs, with both reductions in turn."""
    function, _ = RECIPES[recipe]
    tape = tm.Tape()
    for i, value in enumerate(function(tape)):
        tape.output(f"value {i}", value, "sum" if i % 2 else "each")
    return tape


def meta_gradient_tape(**options):
    """The meta-gradient of a small network for one task, with the parts that it has."""
    network = tm.MLP([2, 8, 3], activation="tanh")

    def loss(theta, x, y):
        return tm.cross_entropy(network(theta, x), y)

    theta = np.zeros(network.size)
    tasks = tm.Tasks(*(np.zeros((1, 4, n)) for n in (2, 3, 2, 3)))
    maml = tm.MAML(loss, backend="numpy", **options)
    return maml.tape(theta, tasks, parts=maml.order == 2)
