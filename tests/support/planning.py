"""What a plan must never do, checked call by call without running it.

The calls are replayed twice on integers that stand for "who wrote this element last":
on one workspace, as planned, and with a memory of its own for every buffer. Wherever a
call reads, both must tell the same writer, and there must be one.
"""

from math import prod

import numpy as np

ONE_ARGUMENT = ("exp", "log", "tanh", "copy", "reciprocal", "rsqrt", "relu")
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
    if kernel == "pad":
        _, length, size = sizes
        return size, (length,)
    if kernel == "matmul":
        m, n, k, *_ = sizes
        return m * n, (m * k, k * n)
    if kernel == "dots":
        m, n, k, _ = sizes
        return m * n, (m * k, n * k)
    if kernel in ("broadcast", "sum", "mul_sum"):
        outer, middle, inner = sizes
        few, many = outer * inner, prod(sizes)
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
    last_size_tells = ("matmul", "dots", "conv", "conv_input", "conv_weight")
    told = call.kernel in last_size_tells and call.sizes[-1] == 1
    return told or call.kernel == "mul_add"


def pieces(plan, call):
    """(buffer, offset, size) of what a call writes, and of each of its reads."""
    written, reads = extents(call.kernel, call.sizes)
    out = (*call.out, written)
    sources = [(*p, n) for p, n in zip(call.reads, reads, strict=True)]
    return out, sources + ([out] if accumulates(call) else [])


def assert_plan_is_sound(plan):
    together = np.full(plan.size, NOBODY)
    apart: dict[int, np.ndarray] = {}

    def views(buffer, offset, size):
        start = plan.offsets[buffer] + offset
        assert 0 <= start and start + size <= plan.size
        own = apart.setdefault(buffer, np.full(plan.size, NOBODY))
        return together[start : start + size], own[offset : offset + size]

    def write(piece, writer):
        for view in views(*piece):
            view[:] = writer

    def read(piece):
        planned, own = views(*piece)
        assert (planned != NOBODY).all(), f"{piece}: read before anything was written"
        assert (planned == own).all(), f"{piece}: overwritten while it was needed"

    fixed = [
        (*place_of(plan, i.node), prod(i.shape))
        for i in plan.tape.inputs.values()
        if plan.holds(i.node)
    ]
    fixed += [(buffer, 0, plan._sizes[buffer]) for buffer in plan.constants]
    for writer, piece in enumerate(fixed):
        write(piece, -10 - writer)
    for time, call in enumerate(plan.instructions):
        out, sources = pieces(plan, call)
        for piece in sources:
            read(piece)
        if not accumulates(call):
            for piece in sources:
                assert apart_in_memory(plan, out, piece), (
                    f"{call}: writes what it reads"
                )
        write(out, time)
    for output in plan.tape.outputs.values():
        read((*place_of(plan, output.node), prod(output.shape)))
    for writer, piece in enumerate(fixed):  # kept for the next task
        assert (views(*piece)[0] == -10 - writer).all(), f"{piece}: not kept"


def place_of(plan, node):
    return plan._places[node]


def apart_in_memory(plan, one, other):
    first, second = (
        (plan.offsets[buffer] + offset, plan.offsets[buffer] + offset + size)
        for buffer, offset, size in (one, other)
    )
    return first[1] <= second[0] or second[1] <= first[0]
