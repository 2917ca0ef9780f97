"""From a tape to launches on a GPU: planned like the CPU's, for all tasks at once.

    tape
      | fuse, select   with GPU_RULES
      | fused_groups   neighbouring elementwise operations become one launch
      | place          as on the CPU; inputs and constants have memory of their own
      v
    Plan: a list of launches, an offset for each buffer, the workspace of one task

Three things differ from the CPU. Matrix products are left to cuBLAS, which transposes
as it reads, and convolutions are products of patches (`im2col`). A launch costs
microseconds, so neighbouring elementwise operations are fused. And a sum of many terms
is computed in several passes, because one thread computes each result and a GPU wants
thousands of them at a time.

An `Instruction` of the plan is one launch of a kernel, or one call of cuBLAS, for all
tasks; that of a fused group has the kernel "elementwise" and its `operations`. Every
buffer becomes an array of all tasks: what begins at offset o of the workspace for one
task begins at T o for T tasks.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

from tinymaml.autodiff.tape import Node, Tape
from tinymaml.backends.numba.fusion import fuse
from tinymaml.backends.numba.planner import ALIGNMENT, Plan, place
from tinymaml.backends.numba.selection import (
    CPU_RULES,
    Instruction,
    Rule,
    Selection,
    View,
    Views,
    convolution_sizes,
    select,
    sum_call,
)

# The elementwise kernels, in the order of `enum Opcode` in kernels.cu.
ELEMENTWISE = (
    *("add", "sub", "mul", "mul_add", "add_relu", "gate", "scale", "relu", "exp"),
    *("log", "sin", "cos", "tanh", "reciprocal", "rsqrt", "copy", "broadcast"),
)
# A sum of more terms than this takes several passes, if the number of terms has a
# divisor from 8 to 64.
LONG_SUM = 64
# A product with few results and more terms than this is computed in parts, which are
# then added: cuBLAS gives each block of threads a tile of the results, so that few
# results would keep few of a GPU's processors busy.
LONG_PRODUCT, FEW_RESULTS = 512, 2**14


def device_plan(tape: Tape) -> Plan:
    """Plan a tape for a GPU.

    >>> tape = Tape()
    >>> x = tape.input("x", (4, 3), per_task=True)
    >>> tape.output("y", (x * x * 2.0 + x))
    >>> [(call.kernel, len(call.operations)) for call in device_plan(tape).instructions]
    [('elementwise', 3)]
    """
    selection = select(fuse(tape, can_accumulate), GPU_RULES)
    # Fuse before assigning memory. The operations of one launch run concurrently, so
    # none of their buffers may share memory with another's.
    launches = fused_groups(selection.instructions)
    return place(selection, launches, inputs_in_workspace=False)


# --- rules that differ from the CPU's -------------------------------------------------


def can_accumulate(product: Node) -> bool:
    """Whether a product can be added to what is in memory.

    cuBLAS and every kernel for a product can do so, a product in parts cannot.
    """
    name, results = product.primitive.name, prod(product.shape)
    return name != "conv_weight" or results > FEW_RESULTS


def select_library_matmul(
    s: Selection, index: int, node: Node, *, ta: bool, tb: bool, accumulate: int = 0
) -> None:
    """A product by cuBLAS, which reads transposed matrices as they are."""
    shape = s.tape.nodes[node.arguments[0]].shape
    sizes = (*node.shape, shape[0] if ta else shape[1], int(ta), int(tb), accumulate)
    s.emit("matmul", index, s.reads(node), sizes)


def select_patch_convolution(
    s: Selection, index: int, node: Node, *, accumulate: int = 0, **_: Any
) -> None:
    """Patches (P, Q) times a kernel (Q, F) give the pixels (P, F) of the outputs.

    P is the number of pixels of all outputs, Q = kh kw C the number of terms of each.
    The other two convolutions are the transposes of this product. `conv_input` gives
    patches, which are summed where they overlap in the images; `conv_weight` gives the
    kernel.
    """
    images, outputs, kernel, steps = convolution_sizes(s, node)
    first, second = s.reads(node)
    pixels, weights, features = prod(outputs[:3]), prod(kernel[:3]), kernel[3]
    window = (*images, *outputs[1:3], *kernel[:2], *steps)
    if node.primitive.name == "conv_input":
        product = (pixels, weights, features, 0, 1, 0)
        patches = s.emit_scratch("matmul", pixels * weights, (first, second), product)
        s.emit("col2im", index, (patches,), (*window, accumulate))
        return
    patches = s.emit_once("im2col", pixels * weights, first, window)
    if node.primitive.name == "conv":
        product = (pixels, features, weights, 0, 0, accumulate)
    else:
        product = (weights, features, pixels, 1, 0, accumulate)
    results, parts = weights * features, parts_of(pixels)
    # The tasks' arrays must follow each other without gaps, so that all parts of all
    # tasks are equally far apart and can be one call.
    aligned = all(pixels * columns % ALIGNMENT == 0 for columns in (weights, features))
    if can_accumulate(node) or parts == 1 or not aligned:
        s.emit("matmul", index, (patches, second), product)
    else:
        part = (weights, features, pixels // parts, 1, 0, 0, parts)
        each = s.emit_scratch("matmul", parts * results, (patches, second), part)
        emit_long_sum(s, index, "sum", (each,), (1, parts, results))


def select_window_pooling(s: Selection, index: int, node: Node, *, size: int) -> None:
    """Pooling in which each thread finds the largest element of its window."""
    shape = s.tape.nodes[node.arguments[1]].shape
    s.emit(node.primitive.name, index, s.reads(node), (*shape, size))


def select_long_sum(
    s: Selection, index: int, node: Node, *, start: int, stop: int
) -> None:
    """A sum over some neighbouring axes, in several passes if it has many terms."""
    emit_long_sum(s, index, *sum_call(s, node, start, stop))


def emit_long_sum(
    s: Selection, index: int, kernel: str, reads: Views, sizes: tuple[int, ...]
) -> None:
    """Passes over the middle of (outer, middle, inner)."""
    outer, middle, inner = sizes
    while (terms := divisor_of(middle)) < middle:
        middle //= terms
        sizes = (outer * middle, terms, inner)
        reads = (s.emit_scratch(kernel, outer * middle * inner, reads, sizes),)
        kernel = "sum"  # the first pass alone multiplies
    s.emit(kernel, index, reads, (outer, middle, inner))


def divisor_of(terms: int) -> int:
    """The largest divisor of `terms` up to LONG_SUM; `terms` if that is less than 8.

    >>> divisor_of(50), divisor_of(980), divisor_of(2 * 509)
    (50, 49, 1018)
    """
    if terms <= LONG_SUM:
        return terms
    largest = max(d for d in range(1, LONG_SUM + 1) if terms % d == 0)
    return largest if largest >= 8 else terms


def parts_of(terms: int) -> int:
    """In how many equal parts of 64 to LONG_PRODUCT terms a product is computed; or 1.

    >>> parts_of(400), parts_of(529_200), parts_of(2 * 509)
    (1, 1050, 2)
    """
    few = range(-(-terms // LONG_PRODUCT), terms // 64 + 1)
    return next((parts for parts in few if terms % parts == 0), 1)


GPU_RULES: dict[str, Rule] = {
    **CPU_RULES,
    "sum": select_long_sum,
    "matmul": select_library_matmul,
    **dict.fromkeys(("conv", "conv_input", "conv_weight"), select_patch_convolution),
    **dict.fromkeys(("max_gather", "max_scatter"), select_window_pooling),
}


# --- fused groups ---------------------------------------------------------------------


def fused_groups(instructions: Sequence[Instruction]) -> list[Instruction]:
    """Launches; neighbouring elementwise operations of one size become one launch.

    In a launch, one thread computes element i of all operations of the group, in their
    order. Threads do not wait for each other.
    """
    launches: list[Instruction] = []
    for call in instructions:
        if call.kernel in ELEMENTWISE:
            size, alone = (prod(call.sizes),), (call,)
            group = Instruction("elementwise", call.out, call.reads, size, alone)
            if launches and can_join(call, launches[-1]):
                earlier = launches.pop()
                reads = (*earlier.reads, earlier.out, *call.reads)
                operations = (*earlier.operations, call)
                group = group._replace(reads=reads, operations=operations)
            launches.append(group)
        else:
            launches.append(call)
    return launches


def can_join(call: Instruction, group: Instruction) -> bool:
    """Whether the thread of element i may run the call right after the group's part.

    Other threads may be ahead or behind. So memory that the call shares with an earlier
    operation must be touched by the same thread in both: if one of the two writes it,
    the two must use exactly the same elements, one for each thread.

    Counter-examples (tests/backends/cuda/test_fused_groups.py): after `y = tanh(x)`, a
    call that reads y shifted by one element or broadcasts a row of y reads what another
    thread may not have written yet; after a call that broadcasts b, a call that writes
    to b overwrites what another thread may still have to read.
    """
    n = prod(call.sizes)
    if not group.operations or group.sizes != (n,):
        return False
    for operation in group.operations:
        written = (operation.out, n)
        shared = [((call.out, n), written)]
        shared += [(read, written) for read in extents_read(call)]
        shared += [(read, (call.out, n)) for read in extents_read(operation)]
        if any(overlap(a, b) and a != b for a, b in shared):
            return False
    return True


def extents_read(call: Instruction) -> list[tuple[View, int]]:
    """The views that an elementwise operation reads, and how many elements of each."""
    n = prod(call.sizes)
    sizes = [n, n]
    if call.kernel == "scale":
        sizes = [n, 1]
    elif call.kernel == "broadcast":
        sizes = [call.sizes[0] * call.sizes[2]]
    elif len(call.sizes) == 3:
        sizes = [n, call.sizes[0] * call.sizes[2]]
    return list(zip(call.reads, sizes, strict=False))


def overlap(one: tuple[View, int], other: tuple[View, int]) -> bool:
    """Whether two extents have an element in common."""
    (a, size_a), (b, size_b) = one, other
    disjoint = a.offset + size_a <= b.offset or b.offset + size_b <= a.offset
    return a.buffer == b.buffer and not disjoint
